"""What clients of a service have sent, and what they were told: the book that the judge reads."""

import random
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Role = Literal["plain", "once", "cancel", "retry"]

LIMITED = "limited"
"""A queue whose limits the service is told at first, see `rule`."""
MOST, MOST_OF_KEY = 5, 2
"""How many of its jobs run at once, and of each of its keys."""
KEYS = ("a", "b", "c", None)

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
        self.callbacks: dict[str, Sequence[str]] = {}
        """jobs that wait for the end of a group, and its members"""
        self.sent: dict[str, dict[str, Any]] = {}
        """every job that a client tried to enqueue, by id"""
        self.roles: dict[str, Role] = {}
        """what is going to be asked of a job: nothing, that it may not run twice, to be cancelled, to be retried"""
        self.acknowledged: dict[str, None] = {}
        self.cancelled: dict[str, float] = {}
        """jobs whose cancel was answered with "cancelled", and when"""
        self.retried: dict[str, float] = {}
        """jobs whose retry was accepted, and when the last such request was sent"""

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

    def whole(self, whole: Whole) -> None:
        """A request for several jobs was answered: they are stored."""
        for job, role in zip(whole.jobs, whole.roles, strict=True):
            self.stored(role, job)
        for name in [name for name, one in self.wholes.items() if one is whole]:
            del self.wholes[name]

    def of(self, role: Role) -> list[str]:
        """The ids of the jobs of a role that are known to be stored."""
        return [job_id for job_id in self.acknowledged if self.roles[job_id] == role]

    def stored(self, role: Role, job: dict[str, Any]) -> None:
        """A job that somebody else has enqueued."""
        self.sent[job["id"]], self.roles[job["id"]], self.acknowledged[job["id"]] = job, role, None

    @property
    def unanswered(self) -> list[dict[str, Any]]:
        """The jobs that may or may not be stored."""
        return [job for job_id, job in self.sent.items() if job_id not in self.acknowledged]

    def where(self, job_id: str) -> tuple[str, str | None]:
        """The queue and the key of a job."""
        job = self.sent[job_id]
        return job.get("queue", "default"), job.get("key")


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
            "fail": rng.random() < 0.1,
        },
        "on_crash": "fail" if role == "once" else "retry",
        "max_retries": 5,
    } | ({"key": key} if limited and (key := rng.choice(KEYS)) else {})
