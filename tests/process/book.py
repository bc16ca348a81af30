"""What clients of a service have sent, and what they were told: the book that the judge reads."""

import random
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Role = Literal["plain", "once", "cancel", "retry"]

LIMITED = "limited"
"""A queue whose limits the service is told at first, see `rule`."""
MOST, MOST_OF_KEY = 5, 2
"""How many of its jobs run at once, and of each of its keys."""
KEYS = ("a", "b", "c", None)

ORDERED = "ordered"
"""A queue of which each key has its jobs run one after another; see `rule`, too."""
ORDERED_KEYS = ("x", "y", "z")

TICK, EVERY = "tick", 1.0
"""A schedule that fires so often all the time; each firing is made up for, however long nobody was there."""


class Whole(NamedTuple):
    """Jobs that are stored all or none, by one request."""

    path: str
    body: object
    jobs: Sequence[dict[str, Any]]
    roles: Sequence[Role]


class Book:
    """What was sent and what was answered; nothing else of the service is known here."""

    def __init__(self) -> None:
        self.ruled = False
        """whether the service was told the limits and the schedule"""
        self.schedule: dict[str, Any] = {}
        """how the schedule stood in the end"""
        self.wholes: dict[str, Whole] = {}
        """requests for several jobs that may or may not be stored, by name"""
        self.behind: dict[str, tuple[Sequence[str], str]] = {}
        """jobs that wait for others: which, and what they need of them"""
        self.orders: dict[str, list[str]] = {key: [] for key in ORDERED_KEYS}
        """the jobs of each ordered key, in the order of arrival"""
        self.callbacks: dict[str, list[str]] = {}
        """jobs that wait for the end of a group, and its members"""
        self.groups: dict[str, str] = {}
        """groups that are open at first, each with the job that waits for its end"""
        self.closing: dict[str, float] = {}
        """groups of which somebody was going to ask that they be closed, and when first"""
        self.closed: set[str] = set()
        """groups whose close was answered"""
        self.late: set[str] = set()
        """jobs that were sent for the first time when their group was closed"""
        self.refused: dict[str, float] = {}
        """jobs that are not stored, since their group takes no more, and when somebody was told so first"""
        self.sent: dict[str, dict[str, Any]] = {}
        """every job that a client tried to enqueue, by id"""
        self.roles: dict[str, Role] = {}
        """what is going to be asked of a job: nothing, that it may not run twice, to be cancelled, to be retried"""
        self.acknowledged: dict[str, None] = {}
        self.cancelled: dict[str, float] = {}
        """jobs whose cancel was answered with "cancelled", and when"""
        self.retried: dict[str, float] = {}
        """jobs whose retry was accepted, and when the last such request was sent"""
        self._joined = 0
        """how many requests to add jobs to a group there were"""

    def new(self, rng: random.Random) -> dict[str, Any]:
        """One more job to send."""
        role: Role = rng.choices(("plain", "once", "cancel", "retry"), (5, 3, 1, 1))[0]
        job = _drawn(rng, role, f"{role}-{len(self.sent)}")
        self.sent[job["id"]], self.roles[job["id"]] = job, role
        return job

    def flow(self, rng: random.Random) -> Whole:
        """An array of jobs of which the last waits for the others."""
        name = f"flow-{len(self.behind)}"
        roles: list[Role] = [rng.choice(("plain", "once")) for _ in range(rng.randint(2, 4))]
        jobs = [_drawn(rng, role, f"{name}-{number}") for number, role in enumerate(roles)]
        *others, last = (f"{name}-{number}" for number in range(len(jobs)))
        needs = rng.choice(("done", "ended"))
        jobs[-1] |= {"depends_on": others, "needs": needs}
        self.behind[last] = others, needs
        self.wholes[name] = Whole("/enqueue/bulk", jobs, jobs, roles)
        return self.wholes[name]

    def in_order(self, rng: random.Random) -> Whole:
        """The next jobs of an ordered key; as long as those before them are not known to be stored, these once more."""
        key = rng.choice(ORDERED_KEYS)
        if (name := f"order-{key}") not in self.wholes:
            order = self.orders[key]
            roles: list[Role] = rng.choices(("plain", "once", "cancel"), (6, 3, 1), k=rng.randint(1, 3))
            jobs = [
                _drawn(rng, role, f"{name}-{number}") | {"queue": ORDERED, "key": key}
                for number, role in enumerate(roles, len(order))
            ]
            order += [job["id"] for job in jobs]
            self.wholes[name] = Whole("/enqueue/bulk", jobs, jobs, roles)
        return self.wholes[name]

    def group(self, rng: random.Random) -> Whole:
        """A group of jobs, and one that waits for its end."""
        name = f"group-{len(self.callbacks)}"
        roles: list[Role] = [rng.choice(("plain", "once")) for _ in range(rng.randint(1, 8))]
        jobs = [_drawn(rng, role, f"{name}-{number}") for number, role in enumerate(roles)]
        then = {"id": f"{name}-then", "kind": "work", "payload": {}, "max_retries": 5}
        self.callbacks[f"{name}-then"] = [f"{name}-{number}" for number in range(len(jobs))]
        body = {"id": name, "jobs": jobs, "then": then}
        self.wholes[name] = Whole("/groups", body, [*jobs, then], [*roles, "plain"])
        return self.wholes[name]

    def open_group(self, rng: random.Random) -> Whole:
        """A group to which jobs can be added, some of them at once, and one that waits for its end."""
        name = f"open-{len(self.groups)}"
        roles = _roles_of_members(rng, rng.randint(0, 2))
        jobs = [_drawn(rng, role, f"{name}-first-{number}") for number, role in enumerate(roles)]
        for job in jobs:  # so that some still run when the group is closed
            job["payload"]["seconds"] = rng.choice((0, 0.5))
        self.groups[name] = callback = f"{name}-then"
        self.callbacks[callback] = []
        then = {"id": callback, "kind": "work", "payload": {}, "max_retries": 5}
        body = {"id": name, "open": "1h", "jobs": jobs, "then": then}
        members = [job | {"group": name} for job in jobs]
        self.wholes[name] = Whole("/groups", body, [*members, then], [*roles, "plain"])
        return self.wholes[name]

    def joining(self, rng: random.Random, group: str) -> Whole:
        """Jobs to add to a group, be it open or closed."""
        self._joined += 1
        name = f"join-{self._joined}"
        roles = _roles_of_members(rng, rng.randint(1, 3))
        jobs = [
            _drawn(rng, role, f"{group}-{name}-{number}") | {"group": group}
            for number, role in enumerate(roles)
        ]
        if group in self.closed:
            self.late |= {job["id"] for job in jobs}
        path, body = ("/enqueue", jobs[0]) if len(jobs) == 1 else ("/enqueue/bulk", jobs)
        self.wholes[name] = Whole(path, body, jobs, roles)
        return self.wholes[name]

    def opened(self) -> list[str]:
        """The groups that are known to be there, and were open at first."""
        return [name for name, then in self.groups.items() if then in self.acknowledged]

    def to_close(self) -> list[str]:
        """Those of them that are not known to be closed."""
        return [name for name in self.opened() if name not in self.closed]

    def going_to_close(self, group: str) -> None:
        """Somebody is about to ask that a group be closed."""
        self.closing.setdefault(group, time.monotonic())

    def whole(self, whole: Whole) -> None:
        """A request for several jobs was answered: they are stored."""
        for job, role in zip(whole.jobs, whole.roles, strict=True):
            self.stored(role, job)
        self._answered(whole)

    def refuse(self, whole: Whole) -> None:
        """A request for several jobs was answered: their group takes no more.

        Of two requests that are under way at the same time one may come just before the close, and the other behind it,
        so they may be answered differently. Then the jobs are stored.
        """
        for job in whole.jobs:
            if job["id"] not in self.acknowledged:
                self.sent[job["id"]] = job
                self.refused.setdefault(job["id"], time.monotonic())
        self._answered(whole)

    def _answered(self, whole: Whole) -> None:
        for name in [name for name, one in self.wholes.items() if one is whole]:
            del self.wholes[name]

    def of(self, role: Role) -> list[str]:
        """The ids of the jobs of a role that are known to be stored."""
        return [job_id for job_id in self.acknowledged if self.roles[job_id] == role]

    def stored(self, role: Role, job: dict[str, Any]) -> None:
        """A job that is known to be stored."""
        job_id = job["id"]
        self.sent[job_id], self.roles[job_id], self.acknowledged[job_id] = job, role, None
        self.refused.pop(job_id, None)
        then = self.groups.get(job.get("group", ""))
        if then is not None and job_id not in self.callbacks[then]:
            self.callbacks[then].append(job_id)

    @property
    def unanswered(self) -> list[dict[str, Any]]:
        """The jobs that may or may not be stored."""
        return [
            job
            for job_id, job in self.sent.items()
            if job_id not in self.acknowledged and job_id not in self.refused
        ]

    def where(self, job_id: str) -> tuple[str, str | None]:
        """The queue and the key of a job."""
        job = self.sent[job_id]
        return job.get("queue", "default"), job.get("key")


def _roles_of_members(rng: random.Random, count: int) -> list[Role]:
    return rng.choices(("plain", "once"), k=count)


def _drawn(rng: random.Random, role: Role, job_id: str) -> dict[str, Any]:
    limited = role in ("plain", "once") and rng.random() < 0.25
    return {
        "id": job_id,
        "kind": rng.choice(("work", "thread")),
        "queue": LIMITED if limited else rng.choice(("default", "mail")),
        # So that some run when they are cancelled.
        "priority": rng.randrange(4 if role == "cancel" else 3),
        "payload": {
            "seconds": 0.3 if role == "cancel" else rng.choice((0, 0, rng.uniform(0, 0.1), 0.05)),
            "retries": rng.choice((0, 0, 1)),
            "after": rng.choice((0, 0.2)),
            "fail": rng.random() < 0.1,
        },
        "on_crash": "fail" if role == "once" else "retry",
        "max_retries": 5,
    } | ({"key": key} if limited and (key := rng.choice(KEYS)) else {})
