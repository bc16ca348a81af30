"""What people ask of jobs and queues, and what keeps the house clean: nodes, rescue, prune."""

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from jobpipe.job import ENDED, AttemptRecord, Job, JobError, Outcome, Status, after_crash
from jobpipe.store.base import STEP, Change, Rescued, Retention
from jobpipe.store.memory.line import Entry
from jobpipe.store.memory.shelves import Row, Shelves


class Control:
    """The other half of the writing."""

    def __init__(self, shelves: Shelves) -> None:
        self._shelves = shelves

    def cancel(self, job_id: str, now: float) -> Change:
        """See `jobpipe.store.base.ControlStore.cancel`."""
        row = self._shelves.by_id.get(job_id)
        if row is None:
            return Change(job_id, "absent")
        if row.job.status in ENDED:
            return Change(job_id, "refused", row.job)
        if row.node is None:
            self._shelves.end(row, replace(row.job, status=Status.CANCELLED, finished_at=now))
        else:
            self._shelves.become(row, replace(row.job, status=Status.CANCELLING), row.node)
        return Change(job_id, "changed", row.job)

    def retry(self, job_id: str, now: float) -> Change:
        """See `jobpipe.store.base.ControlStore.retry`."""
        row = self._shelves.by_id.get(job_id)
        if row is None:
            return Change(job_id, "absent")
        if row.job.status not in ENDED:
            return Change(job_id, "refused", row.job)
        expires_at = row.job.expires_at
        job = replace(
            row.job,
            status=Status.QUEUED,
            attempt=0,
            run_at=now,
            started_at=None,
            finished_at=None,
            expires_at=None if expires_at is not None and expires_at <= now else expires_at,
            result=None,
            error=None,
        )
        self._shelves.become(row, job)
        return Change(job_id, "changed", job)

    def delete(self, job_id: str) -> Change:
        """See `jobpipe.store.base.ControlStore.delete`."""
        row = self._shelves.by_id.get(job_id)
        if row is None:
            return Change(job_id, "absent")
        if row.node is not None:
            return Change(job_id, "refused", row.job)
        self._shelves.remove(row)
        return Change(job_id, "changed")

    def pause(self, queue: str, *, paused: bool) -> None:
        """Pause a queue, or resume it."""
        self._shelves.queues[queue].paused = paused

    def join(self, node: str, lease_until: float) -> None:
        """See `jobpipe.store.base.EngineStore.join`."""
        self._shelves.leases[node] = lease_until

    def leave(self, node: str) -> None:
        """See `jobpipe.store.base.EngineStore.leave`."""
        self._shelves.leases.pop(node, None)

    def rescue(self, node: str, now: float) -> Sequence[Rescued]:
        """See `jobpipe.store.base.EngineStore.rescue`."""
        leases = self._shelves.leases
        for name in [name for name, until in leases.items() if until <= now and name != node]:
            del leases[name]
        dead = [name for name in self._shelves.held if name not in leases and name != node]
        rows = [row for name in dead for row in self._shelves.held[name].values()]
        return [self._rescue(row, now) for row in rows]

    def _rescue(self, row: Row, now: float) -> Rescued:
        status, error = after_crash(row.job)
        begun = row.job.started_at is not None
        job = replace(
            row.job,
            status=status,
            error=error or row.job.error,
            attempts=_interrupted(row.job, status, error, now) if begun else row.job.attempts,
        )
        row.rescued += 1
        if status in ENDED:
            self._shelves.end(row, replace(job, finished_at=now))
        else:
            self._shelves.become(row, job)
        return Rescued(job.id, job.queue, status, begun)

    def prune(self, now: float, retention: Retention) -> int:
        """See `jobpipe.store.base.EngineStore.prune`."""
        for pruned in range(STEP):
            row = self._too_old(now, retention) or self._too_many(retention)
            if row is None:
                return pruned
            self._shelves.remove(row)
        return STEP

    def _too_old(self, now: float, retention: Retention) -> Row | None:
        lines = ((self._shelves.done, retention.done_age), (self._shelves.failed, retention.failed_age))
        firsts = ((line.first(), age) for line, age in lines)
        return self._first(first for first, age in firsts if first and first[0][0] <= now - age)

    def _too_many(self, retention: Retention) -> Row | None:
        lines = (self._shelves.done, self._shelves.failed)
        if sum(map(len, lines)) <= retention.jobs and self._shelves.ended_size <= retention.size:
            return None
        return self._first(first for line in lines if (first := line.first()))

    def _first(self, entries: Iterable[Entry]) -> Row | None:
        first = min(entries, default=None)
        return None if first is None else self._shelves.rows[first[1]]


def _interrupted(job: Job, status: Status, error: JobError | None, now: float) -> tuple[AttemptRecord, ...]:
    """A job's attempts when the node that ran the last one is dead."""
    outcome = Outcome.CANCELLED if status is Status.CANCELLED else Outcome.INTERRUPTED
    return (*job.attempts[:-1], replace(job.attempts[-1], finished_at=now, outcome=outcome, error=error))
