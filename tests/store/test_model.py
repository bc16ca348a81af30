"""Whole lives of jobs, drawn at random: each store against a plain model of the contract.

The model is a dict and a few loops, written from `jobpipe.store.base`, with no thought for speed. What it takes
for granted, the contract tests show one by one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from msgspec.structs import astuple, replace

from jobpipe.fingerprints import marked
from jobpipe.job import (
    ACTIVE,
    ENDED,
    FOLLOWS,
    LEVELS,
    WAITING,
    AttemptRecord,
    Job,
    JobError,
    NewJob,
    Options,
    Outcome,
    Progress,
    State,
    Status,
    retries_of,
)
from jobpipe.store.base import (
    OTHERS,
    Add,
    Batch,
    Change,
    Claimed,
    ClaimRequest,
    Filter,
    LogLine,
    LogPage,
    Note,
    QueueSettings,
    QueueState,
    Receipts,
    Retention,
    Settlement,
    Share,
    Start,
    Store,
    StoredLine,
)

QUICK = settings(
    stateful_step_count=40,
    deadline=None,
    derandomize=False,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

EPOCH = 1_700_000_000.0
IDS = ("a", "b", "c", "d", "ü'%")
NODES = ("n1", "n2", "n3")
QUEUES = ("x", "y")
SERVES = {"n1": frozenset({"echo", "demo"}), "n2": frozenset({"echo"}), "n3": frozenset({"demo"})}


# --- the model --------------------------------------------------------------------------------------------------------


@dataclass
class Entry:
    """A job as the model has it."""

    new: NewJob
    arrival: int
    status: Status
    run_at: float
    expires_at: float | None
    attempt: int = 0
    claim: int = 0
    holder: str | None = None
    begun: bool = False
    rescued: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    result: bytes | None = None
    error: JobError | None = None
    size: int = 0
    records: list[AttemptRecord] = field(default_factory=list)
    first: NewJob | None = None
    """what was asked first, where it was edited since"""
    waits: list["Entry"] = field(default_factory=list)
    """those that it depends on and that had not ended when it came to wait"""
    progress: tuple[int, Progress] | None = None
    """under which claim, and what"""
    log: list[StoredLine] = field(default_factory=list)
    written: tuple[int, int] = (0, 0)
    """the claim and the number of the last line"""

    @property
    def ready(self) -> bool:
        return self.status is Status.QUEUED and self.holder is None

    def end(self, status: Status, at: float, size: int) -> None:
        self.status, self.finished_at, self.size, self.holder = status, at, size, None

    def shown(self) -> Job:
        told = self.progress is not None and self.progress[0] == self.claim
        return Job(
            self.asked,
            State(
                status=self.status,
                attempt=self.attempt,
                claim=self.claim,
                started_at=self.started_at,
                finished_at=self.finished_at,
                result=self.result,
                error=self.error,
            ),
            tuple(self.records),
            original=self.first,
            progress=self.progress[1] if told and self.progress else None,
        )

    @property
    def asked(self) -> NewJob:
        return replace(self.new, run_at=self.run_at, expires_at=self.expires_at)


class Model:
    """The contract, in the plainest words."""

    def __init__(self) -> None:
        self.jobs: dict[str, Entry] = {}
        self.leases: dict[str, float] = {}
        self.paused: dict[str, bool] = {}
        """by each queue that is known"""
        self.until: dict[str, float] = {}
        """when pauses end by themselves"""
        self.closed: set[str] = set()
        self.arrivals = 0

    def waiting(self) -> int:
        return sum(entry.status in WAITING and entry.holder is None for entry in self.jobs.values())

    def next_due(self) -> float | None:
        idle = [entry for entry in self.jobs.values() if entry.status in WAITING and entry.holder is None]
        times = [entry.run_at for entry in idle if entry.status not in {Status.QUEUED, Status.BLOCKED}]
        times += [entry.expires_at for entry in idle if entry.expires_at is not None]
        times += self.until.values()
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """End what pauses are over, expire what is overdue, then queue what is due."""
        for queue in [name for name, until in self.until.items() if until <= now]:
            self.paused[queue] = False
            del self.until[queue]
        for entry in self.jobs.values():
            if entry.status in WAITING and entry.holder is None:
                if entry.expires_at is not None and entry.expires_at <= now:
                    entry.end(Status.EXPIRED, now, len(entry.new.payload))
                elif entry.status not in {Status.QUEUED, Status.BLOCKED} and entry.run_at <= now:
                    entry.status = Status.QUEUED

    def follow(self, now: float) -> None:
        """Release or cancel those that wait for jobs which have ended, then those behind these."""
        while self.follow_once(now):
            pass

    def follow_once(self, now: float) -> bool:
        blocked = [entry for entry in self.jobs.values() if entry.status is Status.BLOCKED]
        ends = [
            (entry, [(one, end) for one in entry.waits if (end := self.end_of(one))]) for entry in blocked
        ]
        for entry, ended in ends:
            needs_done = entry.new.options.needs == "done"
            in_vain = [(one, end) for one, end in ended if needs_done and end != "done"]
            if in_vain:
                other, end = min(in_vain, key=lambda pair: pair[0].arrival)
                words = f"the job depends on {other.new.id!r}, which {END_IN_WORDS[end]}"
                entry.error = JobError("DependencyFailed", words)
                entry.end(Status.CANCELLED, now, len(entry.new.payload))
                continue
            gone = [one for one, _ in ended]
            entry.waits = [one for one in entry.waits if one not in gone]
            if not entry.waits:
                entry.status = Status.SCHEDULED if entry.run_at > now else Status.QUEUED
                entry.run_at = max(entry.run_at, now)
        return any(ended for _, ended in ends)

    def end_of(self, entry: Entry) -> str | None:
        """How a job has ended; None: it has not."""
        if self.jobs.get(entry.new.id) is not entry:
            return "deleted"
        return entry.status.value if entry.status in ENDED else None

    def still_open(self, options: Options) -> list[Entry]:
        """The jobs that are there and have not ended."""
        there = [self.jobs[one] for one in options.depends_on if one in self.jobs]
        return [entry for entry in there if entry.status not in ENDED]

    def failed(self, options: Options) -> list[str]:
        """The jobs that are there and have ended otherwise than needed."""
        there = [self.jobs[one] for one in options.depends_on if one in self.jobs]
        bad = ENDED - {Status.DONE} if options.needs == "done" else frozenset()
        return [entry.new.id for entry in there if entry.status in bad]

    def add_dependents(self, jobs: Sequence[NewJob], *, atomic: bool) -> list[tuple[str, list[str]]]:
        """The receipts: (verdict, ids of dependencies)."""
        kept, arrivals, paused = dict(self.jobs), self.arrivals, dict(self.paused)
        receipts = [self.add_dependent(new) for new in jobs]
        if atomic and {verdict for verdict, _ in receipts} - {"stored", "existing"}:
            self.jobs, self.arrivals, self.paused = kept, arrivals, paused
            return [("refused" if verdict == "stored" else verdict, ids) for verdict, ids in receipts]
        return receipts

    def add_dependent(self, new: NewJob) -> tuple[str, list[str]]:
        options = new.options
        if new.id not in self.jobs:
            if new.queue in self.closed:
                return "closed", []
            if unknown := [one for one in options.depends_on if one not in self.jobs]:
                return "unknown_dependency", unknown
            if failed := self.failed(options):
                return "dependency_failed", failed
        waits = self.still_open(options)
        verdict, _ = self.add_one(new)
        if verdict == "stored" and waits:
            self.jobs[new.id].status, self.jobs[new.id].waits = Status.BLOCKED, waits
        return verdict, []

    def held(self, seq_of: dict[int, int], seq: int, claim: int) -> Entry | None:
        """The entry that a claim number gives the right to write; `seq_of`: arrival by the store's own number."""
        for entry in self.jobs.values():
            if entry.arrival == seq_of.get(seq) and entry.holder is not None and entry.claim == claim:
                return entry
        return None

    def start(self, entry: Entry, one: Start) -> None:
        if entry.status is Status.QUEUED:
            entry.status = Status.RUNNING
        if entry.begun:
            entry.records.pop()
        entry.begun, entry.attempt, entry.started_at = True, one.attempt, one.started_at
        entry.records.append(
            AttemptRecord(
                number=one.attempt,
                claim=one.claim,
                node=entry.holder,
                started_at=one.started_at,
                due_at=entry.run_at,
            )
        )

    def note(self, entry: Entry, one: Note) -> None:
        if one.progress is not None:
            entry.progress = (one.claim, one.progress)
        for line in one.lines:
            claim, number = entry.written
            skipped = line.number - (number if claim == one.claim else 0) - 1
            if skipped >= 0:
                n = (entry.log[-1].n if entry.log else 0) + skipped + 1
                entry.log.append(StoredLine(n, line.at, one.attempt, line.level, line.text, line.fields))
                entry.written = (one.claim, line.number)

    def settle(self, entry: Entry, one: Settlement) -> None:
        if entry.begun:
            entry.records.pop()
        if one.outcome is not None:
            assert one.started_at is not None
            entry.records.append(
                AttemptRecord(
                    number=one.number,
                    claim=one.claim,
                    node=entry.holder,
                    started_at=one.started_at,
                    finished_at=one.settled_at,
                    outcome=one.outcome,
                    error=one.error,
                    due_at=entry.run_at,
                )
            )
        entry.attempt = one.attempt
        entry.started_at = one.started_at if one.started_at is not None else entry.started_at
        entry.run_at = one.run_at if one.run_at is not None else entry.run_at
        entry.begun, cancelling = False, entry.status is Status.CANCELLING
        if one.status in ENDED:
            entry.result, entry.error = one.result, one.error
            entry.end(one.status, one.settled_at, one.size)
            return
        entry.error = one.error or entry.error
        entry.status, entry.holder = one.status, None
        if cancelling:
            entry.end(Status.CANCELLED, one.settled_at, one.size)

    def bring(self, one: Settlement) -> Settlement:
        """Store what a settlement brings, all or none; returns how the job ends then."""
        kept, arrivals, paused = dict(self.jobs), self.arrivals, dict(self.paused)
        for new in one.jobs:
            if why := REFUSED.get(self.add_one(new)[0]):
                self.jobs, self.arrivals, self.paused = kept, arrivals, paused
                told = why.format(id=new.id, queue=new.queue)
                words = f"nothing that the handler has enqueued was stored: {told}"
                failed = marked(JobError("EnqueueError", words), self.jobs[one.id].new.kind)
                size = one.size - len(one.result or b"") + len(words)
                return replace(
                    one, outcome=Outcome.FAIL, status=Status.FAILED, result=None, error=failed, size=size
                )
        return one

    def add(self, one: Add) -> list[tuple[str, str | None]]:
        """The receipts: (verdict, id of the job handed over)."""
        kept, arrivals, paused = dict(self.jobs), self.arrivals, dict(self.paused)
        receipts = [self.add_one(new) for new in one.jobs]
        if one.atomic and {"conflict", "closed"} & {verdict for verdict, _ in receipts}:
            self.jobs, self.arrivals, self.paused = kept, arrivals, paused
            return [
                ("refused", None) if verdict == "stored" else (verdict, job_id)
                for verdict, job_id in receipts
            ]
        return receipts

    def add_one(self, new: NewJob) -> tuple[str, str | None]:
        entry = self.jobs.get(new.id)
        if entry is None and new.queue in self.closed:
            return "closed", None
        if entry is None:
            self.arrivals += 1
            status = Status.SCHEDULED if new.run_at > new.created_at else Status.QUEUED
            self.jobs[new.id] = Entry(new, self.arrivals, status, new.run_at, new.expires_at)
            self.paused.setdefault(new.queue, False)
            return "stored", None
        old = entry.first or entry.asked
        same = new == replace(old, created_at=new.created_at, run_at=new.run_at)
        return ("existing" if same else "conflict"), new.id

    def claim(self, batch: Batch) -> list[Entry]:
        return [entry for claim in batch.claims for entry in self.claim_for(claim, batch)]

    def claim_for(self, claim: ClaimRequest, batch: Batch) -> list[Entry]:
        ready = [
            entry
            for entry in self.jobs.values()
            if entry.ready
            and entry.new.kind in claim.kinds
            and not self.paused[entry.new.queue]
            and not (entry.expires_at is not None and entry.expires_at <= batch.now)
        ]
        ready.sort(key=lambda entry: (-entry.new.priority, entry.run_at, entry.arrival))
        taken = self.dealt(claim, ready) if claim.queues else ready[: claim.limit]
        for entry in taken:
            entry.claim, entry.holder, entry.started_at = entry.claim + 1, batch.node, None
        return taken

    def dealt(self, claim: ClaimRequest, ready: list[Entry]) -> list[Entry]:
        """Of each queue its share, again and again; then of those that have none."""
        named = {share.queue for share in claim.queues} - {OTHERS}
        taken: list[Entry] = []
        for share in [*[one for one in claim.queues if one.jobs] * claim.limit, *claim.queues]:
            of_queue = [
                entry
                for entry in ready
                if entry not in taken
                and (entry.new.queue if entry.new.queue in named else OTHERS) == share.queue
            ]
            taken += of_queue[: min(share.jobs or claim.limit, claim.limit - len(taken))]
        return [entry for entry in ready if entry in taken]

    def rescue(self, node: str, now: float) -> set[tuple[str, str, Status, bool]]:
        self.leases = {name: until for name, until in self.leases.items() if until > now or name == node}
        held = [entry for entry in self.jobs.values() if entry.holder is not None]
        return {
            self.rescue_one(entry, now)
            for entry in held
            if entry.holder != node and entry.holder not in self.leases
        }

    def rescue_one(self, entry: Entry, now: float) -> tuple[str, str, Status, bool]:
        begun, status, message = entry.begun, Status.QUEUED, None
        if entry.status is Status.CANCELLING:
            status = Status.CANCELLED
        elif entry.status is Status.RUNNING:
            message = "the node died during the attempt"
            if entry.new.options.on_crash == "fail":
                status, message = Status.FAILED, message + ', and "on_crash" is "fail"'
            elif entry.attempt > retries_of(entry.new.max_retries):
                status, message = Status.FAILED, "the node died during the last attempt"
        error = None if message is None else marked(JobError("NodeDied", message), entry.asked.kind)
        if begun:
            outcome = Outcome.CANCELLED if status is Status.CANCELLED else Outcome.INTERRUPTED
            entry.records[-1] = replace(entry.records[-1], finished_at=now, outcome=outcome, error=error)
        entry.error = error or entry.error
        entry.status, entry.holder, entry.begun = status, None, False
        entry.rescued += 1
        if status in ENDED:
            entry.end(status, now, len(entry.new.payload))
        return entry.new.id, entry.new.queue, status, begun

    def prune(self, now: float, retention: Retention) -> int:
        def ended() -> list[Entry]:
            found = [entry for entry in self.jobs.values() if entry.finished_at is not None]
            return sorted(found, key=lambda entry: (entry.finished_at, entry.arrival))

        before = len(self.jobs)
        for entry in ended():
            age = retention.done_age if entry.status is Status.DONE else retention.failed_age
            if entry.finished_at is not None and entry.finished_at <= now - age:
                del self.jobs[entry.new.id]
        while len(ended()) > retention.jobs or sum(entry.size for entry in ended()) > retention.size:
            del self.jobs[ended()[0].new.id]
        used = {entry.new.queue for entry in self.jobs.values()}
        self.paused = {
            name: paused
            for name, paused in self.paused.items()
            if paused or name in used or name in self.closed
        }
        return before - len(self.jobs)

    def delete_queue(self, name: str) -> str:
        if name not in self.paused:
            return "absent"
        if any(entry.new.queue == name for entry in self.jobs.values()):
            return "refused"
        del self.paused[name]
        self.until.pop(name, None)
        self.closed.discard(name)
        return "changed"

    def cancel(self, job_id: str, now: float) -> str:
        entry = self.jobs.get(job_id)
        if entry is None:
            return "absent"
        if entry.status in ENDED:
            return "refused"
        if entry.holder is None:
            entry.end(Status.CANCELLED, now, len(entry.new.payload))
        else:
            entry.status = Status.CANCELLING
        return "changed"

    def retry(self, job_id: str, now: float, before: dict[str, tuple[list[str], list[Entry]]]) -> str:
        """`before`: of each job what of its dependencies had failed and was open when the verb began."""
        entry = self.jobs.get(job_id)
        if entry is None:
            return "absent"
        failed, waits = before[job_id]
        if entry.status not in ENDED or failed:
            return "refused"
        entry.waits = waits
        if entry.expires_at is not None and entry.expires_at <= now:
            entry.first = entry.first or entry.asked
            entry.expires_at = None
        entry.status, entry.attempt, entry.run_at = Status.BLOCKED if waits else Status.QUEUED, 0, now
        entry.started_at = entry.finished_at = entry.result = entry.error = None
        return "changed"

    def promote(self, job_id: str, now: float) -> str:
        entry = self.jobs.get(job_id)
        if entry is None:
            return "absent"
        if entry.status not in WAITING - {Status.BLOCKED} or entry.holder is not None:
            return "refused"
        if entry.status is not Status.QUEUED:
            entry.status, entry.run_at = Status.QUEUED, now
        return "changed"

    def edit(self, job_id: str, edits: dict[str, Any], now: float) -> str:
        entry = self.jobs.get(job_id)
        if entry is None:
            return "absent"
        if entry.status not in WAITING or entry.holder is not None:
            return "refused"
        before = entry.asked
        if edits.get("queue", before.queue) in self.closed - {before.queue}:
            return "closed"
        asked = {name: value for name, value in edits.items() if name not in {"tags", "timeout"}}
        options = {name: value for name, value in edits.items() if name in {"tags", "timeout"}}
        entry.new = replace(before, **asked, options=replace(before.options, **options))
        entry.run_at, entry.expires_at = entry.new.run_at, entry.new.expires_at
        if entry.new != before and entry.first is None:
            entry.first = before
        if entry.status is Status.BLOCKED:
            pass
        elif "run_at" in edits and entry.run_at <= now:
            entry.status = Status.QUEUED
        elif "run_at" in edits and entry.status is Status.QUEUED:
            entry.status = Status.SCHEDULED
        self.paused.setdefault(entry.new.queue, False)
        return "changed"

    def delete(self, job_id: str) -> str:
        entry = self.jobs.get(job_id)
        if entry is None:
            return "absent"
        if entry.holder is not None:
            return "refused"
        del self.jobs[job_id]
        return "changed"

    def newest_first(self) -> list[Entry]:
        return sorted(self.jobs.values(), key=lambda entry: (-entry.new.created_at, -entry.arrival))

    def errors(self) -> dict[str, tuple[int, float, float]]:
        """How many jobs have failed with errors of which fingerprint, and when the first and the last of them did."""
        ends: dict[str, list[float]] = {}
        for entry in self.jobs.values():
            if (fingerprint := entry.shown().state.fingerprint) and entry.finished_at is not None:
                ends.setdefault(fingerprint, []).append(entry.finished_at)
        return {fingerprint: (len(at), min(at), max(at)) for fingerprint, at in ends.items()}

    def queues(self) -> list[QueueState]:
        states = []
        for name in sorted(self.paused):
            entries = [entry for entry in self.jobs.values() if entry.new.queue == name]
            counts = {status: sum(entry.status is status for entry in entries) for status in Status}
            states.append(
                QueueState(
                    name=name,
                    paused=self.paused[name],
                    paused_until=self.until.get(name),
                    settings=QueueSettings(closed=name in self.closed),
                    counts={status: count for status, count in counts.items() if count},
                    oldest_queued_at=min((entry.run_at for entry in entries if entry.ready), default=None),
                )
            )
        return states


REFUSED = {
    "conflict": "the id {id!r} belongs to another job",
    "closed": "the queue {queue!r} of the job {id!r} takes no new jobs",
}
END_IN_WORDS = {
    "failed": "has failed",
    "cancelled": "was cancelled",
    "expired": "has expired",
    "deleted": "was deleted",
}


# --- the machine ------------------------------------------------------------------------------------------------------

SECONDS = st.sampled_from([0.5, 1.0, 5.0, 20.0])
ERRORS = st.sampled_from(
    [
        JobError("ValueError", "first"),
        JobError("KeyError", "second", "Traceback ...", fingerprint="1-second"),
        JobError("KeyError", "third", "Traceback ...", "shop.send", "1-third"),
    ]
)
RETENTIONS = st.builds(
    Retention,
    done_age=st.sampled_from([0.0, 7.25, 1e9]),
    failed_age=st.sampled_from([0.0, 7.25, 1e9]),
    jobs=st.sampled_from([0, 1, 3, 100]),
    size=st.sampled_from([0, 30, 100, 1000]),
)
NEW_JOBS = st.fixed_dictionaries(
    {
        "id": st.sampled_from(IDS),
        "kind": st.sampled_from(["echo", "echo", "demo"]),
        "queue": st.sampled_from(QUEUES),
        "payload": st.sampled_from([b"1", b'"' + b"x" * 28 + b'"']),
        "priority": st.sampled_from([0, 0, -1, 5]),
        "max_retries": st.sampled_from([0, 1]),
        "delay": st.sampled_from([0.0, 0.0, 5.0]),
        "expiry": st.sampled_from([None, None, 5.0, 20.0]),
        "options": st.sampled_from(
            [Options(), Options(), Options(on_crash="fail"), Options(tags=("t", "u"))]
        ),
    }
)
BROUGHT: st.SearchStrategy[list[dict[str, Any]]] = st.just([]) | st.lists(NEW_JOBS, min_size=1, max_size=3)
EDITS = st.fixed_dictionaries(
    {},
    optional={
        "queue": st.sampled_from(QUEUES),
        "payload": st.sampled_from([b"1", b"[true]"]),
        "priority": st.sampled_from([0, -1, 5]),
        "max_retries": st.sampled_from([0, 1]),
        "run_at": st.sampled_from([0.0, 5.0]),
        "expires_at": st.sampled_from([None, 7.0, 20.0]),
        "tags": st.sampled_from([(), ("u", "v")]),
        "timeout": st.sampled_from([None, 3.0]),
    },
)
SHARES = st.lists(
    st.builds(Share, queue=st.sampled_from([*QUEUES, "none", OTHERS]), jobs=st.integers(0, 3)),
    min_size=1,
    unique_by=lambda share: share.queue,
)
FRACTIONS = st.sampled_from([0.0, 0.25, 1.0])
LINES = st.dictionaries(st.integers(1, 6), st.sampled_from(LEVELS), max_size=3)
SETTLED_AS = {
    Outcome.DONE: Status.DONE,
    Outcome.RETRY: Status.RETRYING,
    Outcome.FAIL: Status.FAILED,
    Outcome.SNOOZE: Status.SCHEDULED,
    Outcome.CANCELLED: Status.CANCELLED,
    Outcome.INTERRUPTED: Status.QUEUED,
}


DEPENDENT_JOBS = st.tuples(
    NEW_JOBS,
    st.lists(st.sampled_from(IDS), max_size=3, unique=True).map(tuple),
    st.sampled_from(["done", "ended"]),
)


def wishes(node: str, *limits: int) -> Sequence[ClaimRequest]:
    """What a node asks for."""
    return [ClaimRequest(limit=limit, kinds=SERVES[node]) for limit in limits if limit]


class Lives(RuleBasedStateMachine):
    """Draws what nodes and people do; after each step the store must look like the model."""

    open_store: Callable[[], tuple[Store, Callable[[], None]]]

    def __init__(self) -> None:
        super().__init__()
        self.store, self.close = self.open_store()
        self.model = Model()
        self.now = EPOCH
        self.claims: list[Claimed] = []
        """every claim that was ever made"""
        self.begun: dict[tuple[int, int], float] = {}
        self.arrival: dict[int, int] = {}
        """which arrival each of the store's numbers is"""
        self.last: dict[int, Job] = {}

    def teardown(self) -> None:
        self.close()

    def call(self, verb: Callable[..., Any], *args: Any) -> Any:
        return trio.from_thread.run(verb, *args)

    # what nodes do

    @initialize()
    def first_node_joins(self) -> None:
        self.join("n1", 20.0)

    @rule(node=st.sampled_from(NODES), lease=SECONDS)
    def join(self, node: str, lease: float) -> None:
        self.call(self.store.join, node, self.now, self.now + lease, SERVES[node])
        self.model.leases[node] = self.now + lease

    @rule(node=st.sampled_from(NODES))
    def leave(self, node: str) -> None:
        self.call(self.store.leave, node)
        self.model.leases.pop(node, None)

    @rule(node=st.sampled_from(NODES), lease=SECONDS)
    def heartbeat(self, node: str, lease: float) -> None:
        self.exchange(Batch(node=node, now=self.now, lease_until=self.now + lease))

    @rule(jobs=st.lists(NEW_JOBS, min_size=1, max_size=4), atomic=st.booleans())
    def add(self, jobs: list[dict[str, Any]], atomic: bool) -> None:
        self.exchange(Batch(node="door", now=self.now, adds=[Add(self.new_jobs(jobs), atomic=atomic)]))

    @rule(jobs=st.lists(DEPENDENT_JOBS, min_size=1, max_size=4), atomic=st.booleans())
    def add_dependents(self, jobs: list[tuple[dict[str, Any], tuple[str, ...], Any]], atomic: bool) -> None:
        """Each may depend on any that is there, and on those before it."""
        new = [
            replace(job, options=replace(job.options, depends_on=ids, needs=needs))
            for job, (_, ids, needs) in zip(self.new_jobs([job for job, _, _ in jobs]), jobs, strict=True)
            if job.id not in ids
        ]
        receipts = self.call(lambda: self.store.add_dependents(new, atomic=atomic))

        found = [(one.verdict, list(one.dependencies)) for one in receipts]
        assert found == self.model.add_dependents(new, atomic=atomic)

    @rule()
    def follow(self) -> None:
        """Nothing is left to be done: of so few jobs all is done at once."""
        assert not self.call(self.store.follow, self.now).more

    @rule(job_id=st.sampled_from(IDS))
    def add_again(self, job_id: str) -> None:
        """The same request once more, whatever has become of it."""
        if entry := self.model.jobs.get(job_id):
            twin = replace(entry.first or entry.asked, created_at=self.now, run_at=self.now)
            self.exchange(Batch(node="door", now=self.now, adds=[Add([twin])]))

    @rule(node=st.sampled_from(NODES), limit=st.integers(1, 3))
    def claim(self, node: str, limit: int) -> None:
        self.exchange(Batch(node=node, now=self.now, claims=wishes(node, limit)))

    @rule(limits=st.permutations([1, 2, 3]))
    def claim_for_several(self, limits: list[int]) -> None:
        """Each asker of a node runs but one of its kinds."""
        pairs = zip(limits, sorted(SERVES["n1"]), strict=False)
        claims = [ClaimRequest(limit=limit, kinds=frozenset({kind})) for limit, kind in pairs]
        self.exchange(Batch(node="n1", now=self.now, claims=claims))

    @rule(limit=st.integers(1, 4), shares=SHARES)
    def claim_of_queues(self, limit: int, shares: list[Share]) -> None:
        """By a node that serves all kinds: one that meets others may ask again, and deals anew then."""
        claim = ClaimRequest(limit=limit, kinds=SERVES["n1"], queues=shares)
        self.exchange(Batch(node="n1", now=self.now, claims=[claim, *wishes("n1", limit - 1)]))

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.exchange(Batch(node="door", now=self.now, starts=self.starts(data)))

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        self.exchange(Batch(node="door", now=self.now, settlements=self.settlements(data)))

    @rule(data=st.data())
    def note(self, data: st.DataObject) -> None:
        self.exchange(Batch(node="door", now=self.now, notes=self.notes(data)))

    @rule(
        data=st.data(),
        node=st.sampled_from(NODES),
        jobs=st.lists(NEW_JOBS, max_size=2),
        limit=st.integers(0, 3),
    )
    def all_in_one(self, data: st.DataObject, node: str, jobs: list[dict[str, Any]], limit: int) -> None:
        """As a busy node's ledger does."""
        adds = [Add([new]) for new in self.new_jobs(jobs)]
        lease_until = data.draw(st.none() | SECONDS.map(lambda seconds: self.now + seconds))
        batch = Batch(
            node=node,
            now=self.now,
            lease_until=lease_until,
            starts=self.starts(data),
            notes=self.notes(data),
            settlements=self.settlements(data),
            adds=adds,
            claims=wishes(node, limit),
        )
        self.exchange(batch)

    @rule(node=st.sampled_from(NODES))
    def rescue(self, node: str) -> None:
        rescued = self.call(self.store.rescue, node, self.now)
        found = {(one.id, one.queue, one.status, one.begun) for one in rescued}

        assert len(found) == len(rescued)
        assert found == self.model.rescue(node, self.now)
        self.model.follow(self.now)

    @rule(retention=RETENTIONS)
    def prune(self, retention: Retention) -> None:
        assert self.call(self.store.prune, self.now, retention) == self.model.prune(self.now, retention)

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # what people do

    @rule(ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=3))
    def cancel(self, ids: list[str]) -> None:
        self.compare(
            self.call(self.store.cancel, ids, self.now), ids, lambda one: self.model.cancel(one, self.now)
        )

    @rule(ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=3))
    def retry(self, ids: list[str]) -> None:
        before = {
            job_id: (self.model.failed(entry.new.options), self.model.still_open(entry.new.options))
            for job_id, entry in self.model.jobs.items()
        }
        self.compare(
            self.call(self.store.retry, ids, self.now),
            ids,
            lambda one: self.model.retry(one, self.now, before),
        )

    @rule(ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=3))
    def promote(self, ids: list[str]) -> None:
        self.compare(
            self.call(self.store.promote, ids, self.now), ids, lambda one: self.model.promote(one, self.now)
        )

    @rule(ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=3), edits=EDITS)
    def edit(self, ids: list[str], edits: dict[str, Any]) -> None:
        for name in {"run_at", "expires_at"} & edits.keys():
            edits |= {name: None if edits[name] is None else self.now + edits[name]}
        self.compare(
            self.call(self.store.edit, ids, edits, self.now),
            ids,
            lambda one: self.model.edit(one, edits, self.now),
        )

    @rule(ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=2))
    def delete(self, ids: list[str]) -> None:
        self.compare(self.call(self.store.delete, ids, self.now), ids, self.model.delete)

    @rule(queue=st.sampled_from(QUEUES), paused=st.booleans(), lasts=st.none() | SECONDS)
    def pause_or_resume(self, queue: str, paused: bool, lasts: float | None) -> None:
        self.model.until.pop(queue, None)
        if paused and lasts is not None:
            self.model.until[queue] = self.now + lasts
        if paused:
            self.call(self.store.pause, queue, None, self.model.until.get(queue))
        else:
            self.call(self.store.resume, queue)
        self.model.paused[queue] = paused

    @rule(queue=st.sampled_from(QUEUES), closed=st.booleans())
    def close_or_open(self, queue: str, closed: bool) -> None:
        self.call(self.store.put_queue, queue, QueueSettings(closed=closed))
        self.model.paused.setdefault(queue, False)
        (self.model.closed.add if closed else self.model.closed.discard)(queue)

    @rule(queue=st.sampled_from(QUEUES))
    def delete_queue(self, queue: str) -> None:
        assert self.call(self.store.delete_queue, queue).verdict == self.model.delete_queue(queue)

    # what must hold after each step

    @invariant()
    def each_job_is_as_the_model_has_it(self) -> None:
        found = {job_id: self.call(self.store.get, job_id) for job_id in IDS}
        assert found == {job_id: entry and entry.shown() for job_id, entry in self.of_each_id().items()}
        self.check_transitions([(entry.arrival, found[job_id]) for job_id, entry in self.model.jobs.items()])

    def check_transitions(self, jobs: Sequence[tuple[int, Job]]) -> None:
        """Each status follows the one before; claims only grow."""
        for arrival, job in jobs:
            before = self.last.get(arrival, job)
            assert job.status is before.status or job.status in FOLLOWS[before.status]
            assert job.state.claim >= before.state.claim
            assert (job.state.finished_at is not None) == (job.status in ENDED)
            assert job.status not in ACTIVE or job.state.claim > 0
        self.last = dict(jobs)

    @invariant()
    def each_log_is_as_the_model_has_it(self) -> None:
        for job_id, entry in self.of_each_id().items():
            page: LogPage | None = self.call(self.store.log, job_id)
            assert (page is None) == (entry is None)
            if page is not None and entry is not None:
                last = entry.log[-1].n if entry.log else 0
                assert (list(page.lines), page.last) == (entry.log, last)
                assert (page.dropped, page.ended) == (last - len(entry.log), entry.status in ENDED)

    @invariant()
    def each_live_node_serves_its_kinds(self) -> None:
        served = frozenset(kind for node in self.model.leases for kind in SERVES[node])
        assert self.call(self.store.kinds) == served
        ready = {entry.new.kind for entry in self.model.jobs.values() if entry.ready}
        assert {one.kind for one in self.call(self.store.unserved)} <= ready - served

    @invariant()
    def lists_and_counts_agree_with_the_rows(self) -> None:
        page = self.call(self.store.jobs, Filter(), 100, None)
        assert list(page.jobs) == [
            replace(entry.shown(), attempts=(), original=None, progress=None)
            for entry in self.model.newest_first()
        ]
        queues = self.model.queues()
        assert list(self.call(self.store.queues)) == queues
        assert [self.call(self.store.queue, queue.name) for queue in queues] == queues
        overview = self.call(self.store.overview, SERVES["n1"])
        assert overview.counts == {
            status: total
            for status in Status
            if (total := sum(queue.counts.get(status, 0) for queue in queues))
        }
        ready = {queue.name for queue in queues if queue.oldest_queued_at is not None and not queue.paused}
        assert overview.ready == bool(ready)
        errors = self.call(self.store.error_groups).groups
        assert {
            one.fingerprint: (one.jobs, one.first_at, one.last_at) for one in errors
        } == self.model.errors()
        for name in QUEUES:
            assert self.call(self.store.overview, SERVES["n1"], frozenset({name})).ready == (name in ready)

    # how

    def of_each_id(self) -> dict[str, Entry | None]:
        return {job_id: self.model.jobs.get(job_id) for job_id in IDS}

    def new_jobs(self, jobs: list[dict[str, Any]]) -> list[NewJob]:
        """Jobs of this moment."""
        return [
            NewJob(
                created_at=self.now,
                run_at=self.now + job["delay"],
                expires_at=None if job["expiry"] is None else self.now + job["expiry"],
                **{name: value for name, value in job.items() if name not in {"delay", "expiry"}},
            )
            for job in jobs
        ]

    def some_claims(self, data: st.DataObject) -> list[Claimed]:
        """Claims of any age, each once: mostly those that stand."""
        standing = [job for job in self.claims if self.standing(job)]
        choices = [st.sampled_from(jobs) for jobs in (standing, standing, self.claims) if jobs]
        if not choices:
            return []
        claims = st.lists(st.one_of(choices), max_size=3, unique_by=lambda job: (job.seq, job.claim))
        drawn: list[Claimed] = data.draw(claims)
        return drawn

    def starts(self, data: st.DataObject) -> list[Start]:
        """Starts, one for each claim; those of claims that are over may come as often as they like."""
        return [
            Start(job.seq, job.claim, job.attempt + 1, self.now)
            for job in self.some_claims(data)
            if (job.seq, job.claim) not in self.begun or not self.standing(job)
        ]

    def notes(self, data: st.DataObject) -> list[Note]:
        """What handlers write: new lines, some left out before them, and some that were written before."""
        return [
            Note(
                seq=job.seq,
                id=job.id,
                claim=job.claim,
                attempt=job.attempt + 1,
                progress=data.draw(
                    st.none() | FRACTIONS.map(lambda share: Progress(share, "so far", self.now))
                ),
                lines=[
                    LogLine(number, self.now, level, f"line {number}", b'{"n":1}' if number % 2 else None)
                    for number, level in sorted(data.draw(LINES).items())
                ],
            )
            for job in self.some_claims(data)
        ]

    def standing(self, job: Claimed) -> bool:
        return self.model.held(self.arrival, job.seq, job.claim) is not None

    def settlements(self, data: st.DataObject) -> list[Settlement]:
        return [self.settlement(data, job) for job in self.some_claims(data)]

    def settlement(self, data: st.DataObject, job: Claimed) -> Settlement:
        begun = self.begun.get((job.seq, job.claim))
        outcome = data.draw(st.sampled_from([*Outcome, None] if begun is None else list(Outcome)))
        status = Status.QUEUED if outcome is None else SETTLED_AS[outcome]
        counts = outcome in {Outcome.DONE, Outcome.RETRY, Outcome.FAIL, Outcome.CANCELLED}
        again = outcome in {Outcome.RETRY, Outcome.SNOOZE}
        return Settlement(
            seq=job.seq,
            id=job.id,
            queue=job.queue,
            claim=job.claim,
            outcome=outcome,
            status=status,
            attempt=job.attempt + counts,
            number=job.attempt + 1,
            run_at=self.now + data.draw(SECONDS) if again else None,
            started_at=None if outcome is None else begun or self.now,
            settled_at=self.now,
            result=b"[true]" if outcome is Outcome.DONE else None,
            error=data.draw(ERRORS) if outcome in {Outcome.RETRY, Outcome.FAIL} else None,
            size=data.draw(st.sampled_from([10, 40])),
            jobs=self.new_jobs(data.draw(BROUGHT)) if outcome is Outcome.DONE else (),
        )

    def exchange(self, batch: Batch) -> None:
        """Let the store and the model carry out a batch, and compare what they say.

        What an exchange releases may be claimed by it, or by the next one.
        """
        if any(one.jobs for one in batch.settlements):
            self.exchange_at_once(replace(batch, adds=(), claims=()))
            batch = Batch(node=batch.node, now=batch.now, adds=batch.adds, claims=batch.claims)
        if batch.claims and any(entry.status is Status.BLOCKED for entry in self.model.jobs.values()):
            self.exchange_at_once(replace(batch, claims=()))
            batch = Batch(node=batch.node, now=batch.now, claims=batch.claims)
        self.exchange_at_once(batch)

    def exchange_at_once(self, batch: Batch) -> None:
        receipts: Receipts = self.call(self.store.exchange, batch)
        taken, last = [list(claimed) for claimed in receipts.claims], receipts
        while batch.claims and last.more_ready:
            short = [
                (replace(claim, limit=claim.limit - len(claimed)), claimed)
                for claim, claimed in zip(batch.claims, taken, strict=True)
                if len(claimed) < claim.limit
            ]
            rest = Batch(node=batch.node, now=batch.now, claims=[claim for claim, _ in short])
            last = self.call(self.store.exchange, rest)
            for (_, claimed), more in zip(short, last.claims, strict=True):
                claimed.extend(more)
        known = batch.node in self.model.leases
        if known and batch.lease_until is not None:
            self.model.leases[batch.node] = batch.lease_until
        lease_lost = not known and bool(batch.lease_until is not None or batch.claims)
        self.model.tick(batch.now)
        stale, settled = self.model_writes(batch)
        self.model.follow(batch.now)
        adds = [self.model.add(one) for one in batch.adds]
        entries = self.model.claim(batch) if not lease_lost else []

        assert receipts.lease_lost == lease_lost
        assert (set(receipts.stale), receipts.settled) == (stale, settled)
        found = [[(one.verdict, one.job.id if one.job else None) for one in add] for add in receipts.adds]
        for told, expected in zip(found, adds, strict=True):
            assert len(told) == len(expected)
            assert all(map(self.may_be_told, told, expected)), (told, expected)
        self.compare_claimed([job for each in taken for job in each], entries)
        if last is not receipts:
            self.model.tick(batch.now)  # the second exchange expires what the first one brought back too late
        assert (last.waiting, last.next_due) == (self.model.waiting(), self.model.next_due())

    def may_be_told(self, told: tuple[str, str | None], expected: tuple[str, str | None]) -> bool:
        """A job for a closed queue may be compared with one of its id that the same batch stores elsewhere."""
        verdict, job_id = told
        compared = verdict in {"conflict", "existing"} and job_id in self.model.jobs
        return told == expected or (expected[0] == "closed" and compared)

    def model_writes(self, batch: Batch) -> tuple[set[tuple[int, int]], dict[int, Status]]:
        stale: set[tuple[int, int]] = set()
        settled: dict[int, Status] = {}
        for one in batch.starts:
            if entry := self.model.held(self.arrival, one.seq, one.claim):
                self.model.start(entry, one)
                self.begun[one.seq, one.claim] = one.started_at
            else:
                stale.add((one.seq, one.claim))
        for note in batch.notes:
            if entry := self.model.held(self.arrival, note.seq, note.claim):
                self.model.note(entry, note)
            else:
                stale.add((note.seq, note.claim))
        for end in batch.settlements:
            if entry := self.model.held(self.arrival, end.seq, end.claim):
                self.model.settle(entry, self.model.bring(end))
                if entry.status is not end.status:
                    settled[end.seq] = entry.status
            else:
                stale.add((end.seq, end.claim))
        return stale, settled

    def compare_claimed(self, claimed: Sequence[Claimed], expected: Sequence[Entry]) -> None:
        assert [astuple(job)[1:] for job in claimed] == [
            (
                *(entry.new.id, entry.new.kind, entry.new.queue, entry.new.payload, entry.new.priority),
                *(
                    entry.run_at,
                    entry.attempt,
                    entry.new.max_retries,
                    entry.claim,
                    entry.rescued,
                    entry.new.options,
                    None,  # no damage
                ),
            )
            for entry in expected
        ]
        for job, entry in zip(claimed, expected, strict=True):
            assert self.arrival.setdefault(job.seq, entry.arrival) == entry.arrival
            self.claims.append(job)

    def compare(self, changes: Sequence[Change], ids: Sequence[str], verb: Callable[[str], str]) -> None:
        """Let the model do what the store did, id by id."""
        expected = []
        for job_id in ids:
            verdict = verb(job_id)
            entry = self.model.jobs.get(job_id)
            expected.append(Change(job_id, verdict, entry and entry.shown()))  # type: ignore[arg-type] # one of four

        assert [replace(one, was=None) for one in changes] == expected
        self.model.follow(self.now)


# --- the test ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("lives", [10, pytest.param(60, marks=pytest.mark.slow)])
async def test_a_store_lives_like_the_model(open_store: Any, lives: int) -> None:
    """Whatever nodes and people do, in whatever order, a store keeps the contract."""
    thorough = settings.get_current_profile_name() == "thorough"
    chosen = settings() if thorough else settings(QUICK, max_examples=lives)

    async def opened(task_status: trio.TaskStatus[tuple[Store, trio.CancelScope]]) -> None:
        async with open_store() as store:
            with trio.CancelScope() as scope:
                task_status.started((store, scope))
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:

        def open_one() -> tuple[Store, Callable[[], None]]:
            store, scope = trio.from_thread.run(nursery.start, opened)
            return store, lambda: trio.from_thread.run_sync(scope.cancel)

        class Machine(Lives):
            open_store = staticmethod(open_one)

        # Hypothesis is not async: it runs in a thread, from which each verb is called in this loop.
        await trio.to_thread.run_sync(lambda: run_state_machine_as_test(Machine, settings=chosen))
