"""What people ask of jobs and queues, and what keeps the house clean: nodes, rescue, prune."""

import itertools
import math
from collections.abc import Collection, Container, Mapping, Sequence

import apsw
import structlog

from jobpipe.job import ACTIVE, ENDED, Job, JobError, Status, after_crash
from jobpipe.store.base import LONGEST_LEASE, STEP, Change, QueueChange, Rescued, Retention
from jobpipe.store.rows import Row, encoded_error, job_from, tags_of
from jobpipe.store.sqlite import reader
from jobpipe.store.sqlite.opening import STORES_OWN
from jobpipe.store.sqlite.reader import find, one
from jobpipe.store.sqlite.rows import JOB_COLUMNS, as_json, fetch, fetch_one, transaction
from jobpipe.store.sqlite.tally import HELD, Tally, mend
from jobpipe.store.sqlite.writer import SIDELINE

MOST_RESCUED = 1_000_000
"""How far rescues of a job are counted; a damaged count must not grow beyond what a column holds."""

_CANCEL = "update jobs set status = 'cancelled', finished_at = ?, size = length(payload) where seq = ?"
_ASK_CANCEL = "update jobs set status = 'cancelling' where seq = ?"
_RETRY = (
    "update jobs set status = 'queued', attempt = 0, run_at = ?1, started_at = null, finished_at = null, "
    "expires_at = iif(expires_at <= ?1, null, expires_at), result = null, error = null, size = 0 where seq = ?2"
)
_KEEP_ATTEMPT = (
    "insert or replace into attempts (seq, claim, number, node, started_at, finished_at, outcome) "
    "select seq, claim, attempt, node, started_at, coalesce(finished_at, created_at), 'done' from jobs where seq = ?"
)
_DELETE = (
    "delete from jobs where seq = ?",
    "delete from attempts where seq = ?",
)
_UNTAG = "delete from tags where tag = ?1 and created_at = (select created_at from jobs where seq = ?2) and seq = ?2"
_UNTAG_ALL = "delete from tags where seq = ?"  # reads them all
_FORGET_QUEUE = (
    "delete from counts where queue = ?",
    "delete from queues where name = ?",
)
# Rows of counts in which nothing is left, and rows of queues in which nothing is set.
_FORGET_EMPTY = (
    "delete from counts where (queue, state) in (select queue, state from counts where jobs = 0 and size = 0 limit ?)",
    "delete from queues where name in (select name from queues where paused = 0 limit ?)",
)
FORGOTTEN = 10_000
"""How many such rows one prune deletes."""

_PAUSE = "insert into queues (name, paused) values (?1, ?2) on conflict do update set paused = ?2"

_JOIN = (
    "insert into nodes (name, lease_until, kinds) values (?, ?, ?) "
    "on conflict (name) do update set lease_until = excluded.lease_until, kinds = excluded.kinds"
)
_LEAVE = "update nodes set lease_until = null where name = ?"
_DEAD = (
    "select node from (select distinct node from jobs where held = 1) as held "
    "left join nodes using (node) where (lease_until is null or lease_until not between ? and ?) and name is not ?"
)
_HELD_BY = f"select {JOB_COLUMNS} from jobs where held = 1 and jobs.node is ?"  # noqa: S608 - a constant
_TAKE_BACK = (
    "update jobs set status = ?, finished_at = ?, error = coalesce(?, error), size = ?, held = 0, "  # noqa: S608 - a constant
    f"rescued = min(rescued, {MOST_RESCUED}) + 1 where seq = ?"
)
_INTERRUPTED = (
    "insert or replace into attempts (seq, claim, number, node, started_at, finished_at, outcome, error) "
    "select seq, claim, attempt, node, started_at, ?, ?, ? from jobs where seq = ?"
)
_EXPIRE_LEASES = "update nodes set lease_until = null where lease_until not between ? and ? and name <> ?"

_OLDEST = (
    "select finished_at, seq, queue, status, size, options from jobs "
    "where status = ? and finished_at is not null and finished_at <= ? order by finished_at, seq limit ?"
)
_TOTALS = (
    "select cast(total(jobs) as integer), cast(total(size) as integer) from totals "
    "where state in ('done', 'failed', 'cancelled', 'expired')"
)

log = structlog.get_logger("jobpipe")


class Control:
    """The other half of the writing: each method is one transaction."""

    def __init__(self, db: apsw.Connection) -> None:
        self.db = db

    def cancel(self, ids: Sequence[str], now: float) -> Sequence[Change]:
        """See `jobpipe.store.base.ControlStore.cancel`."""
        with transaction(self.db):
            return [self._cancel(job_id, now) for job_id in ids]

    def _cancel(self, job_id: str, now: float) -> Change:
        found = find(self.db, job_id)
        if found is None:
            return Change(job_id, "absent")
        job, seq, held, _ = found
        if job.status in ENDED:
            return Change(job_id, "refused", job)
        if held:
            self.db.execute(_ASK_CANCEL, (seq,))
        else:
            self.db.execute(_CANCEL, (now, seq))
            self._count(job, job.status, Status.CANCELLED, size=len(job.payload))
        return Change(job_id, "changed", one(self.db, job_id))

    def retry(self, ids: Sequence[str], now: float) -> Sequence[Change]:
        """See `jobpipe.store.base.ControlStore.retry`."""
        with transaction(self.db):
            return [self._retry(job_id, now) for job_id in ids]

    def _retry(self, job_id: str, now: float) -> Change:
        found = find(self.db, job_id)
        if found is None:
            return Change(job_id, "absent")
        job, seq, _, size = found
        if job.status not in ENDED:
            return Change(job_id, "refused", job)
        if job.status is Status.DONE:
            self.db.execute(_KEEP_ATTEMPT, (seq,))
        self.db.execute(_RETRY, (now, seq))
        self._drop(job.queue, job.status, size)
        self._count(job, None, Status.QUEUED)
        return Change(job_id, "changed", one(self.db, job_id))

    def delete(self, ids: Sequence[str]) -> Sequence[Change]:
        """See `jobpipe.store.base.ControlStore.delete`."""
        with transaction(self.db):
            return [self._delete(job_id) for job_id in ids]

    def _delete(self, job_id: str) -> Change:
        found = find(self.db, job_id)
        if found is None:
            return Change(job_id, "absent")
        job, seq, held, size = found
        if held:
            return Change(job_id, "refused", job)
        self._erase(seq, None if job.damage else job.options.tags)
        self._drop(job.queue, job.status, size)
        return Change(job_id, "changed")

    def pause(self, queue: str, *, paused: bool) -> None:
        """Pause a queue, or resume it."""
        with transaction(self.db):
            self.db.execute(_PAUSE, (queue, int(paused)))

    def delete_queue(self, queue: str) -> QueueChange:
        """See `jobpipe.store.base.ControlStore.delete_queue`."""
        with transaction(self.db):
            state = reader.queue(self.db, queue)
            if state is None:
                return QueueChange("absent")
            if state.counts:
                return QueueChange("refused", state)
            for sql in _FORGET_QUEUE:
                self.db.execute(sql, (queue,))
            return QueueChange("changed")

    def join(self, node: str, lease_until: float, kinds: Collection[str] = ()) -> None:
        """See `jobpipe.store.base.EngineStore.join`."""
        with transaction(self.db):
            self.db.execute(_JOIN, (node, lease_until, as_json(kinds)))
            self._mend()

    def leave(self, node: str) -> None:
        """See `jobpipe.store.base.EngineStore.leave`. The row stays: attempts are shown with the node's name."""
        with transaction(self.db):
            self.db.execute(_LEAVE, (node,))

    def end_leases(self) -> None:
        """End every lease: the lock on the file proves that their nodes are dead."""
        with transaction(self.db):
            self.db.execute("update nodes set lease_until = null")

    def rescue(self, node: str, now: float) -> Sequence[Rescued]:
        """See `jobpipe.store.base.EngineStore.rescue`."""
        with transaction(self.db):
            sound = (math.nextafter(now, math.inf), now + LONGEST_LEASE)
            dead = [row[0] for row in self.db.execute(_DEAD, (*sound, node))]
            rows = [row for one in dead for row in fetch(self.db, _HELD_BY, (one,))]
            self.db.execute(_EXPIRE_LEASES, (*sound, node))
            return [self._rescue_alone(row, now) for row in rows]

    def _rescue_alone(self, row: Row, now: float) -> Rescued:
        """Take one job back; where its row does not allow that, it fails."""
        try:
            with transaction(self.db):
                return self._rescue(row, now)
        except STORES_OWN:
            raise
        except Exception as error:
            log.exception("a job of a dead node cannot be taken back: it fails", job=row[0])
            words = f"the job could not be taken back from a dead node ({type(error).__name__}: {error})"
            self.db.execute(SIDELINE, (now, encoded_error(JobError("DamagedRow", words[:500])), row[17]))
            return Rescued(row[0], row[2], Status.FAILED, begun=False)

    def _rescue(self, row: Row, now: float) -> Rescued:
        job, seq = job_from(row), row[17]
        status, error = after_crash(job)
        begun = job.status in ACTIVE and job.started_at is not None
        stored_error = encoded_error(error)
        if begun:
            outcome = "cancelled" if status is Status.CANCELLED else "interrupted"
            self.db.execute(_INTERRUPTED, (now, outcome, stored_error, seq))
        size = len(job.payload) if status in ENDED else 0
        self.db.execute(_TAKE_BACK, (status.value, now if status in ENDED else None, stored_error, size, seq))
        self._count(job, HELD, status, size=size)
        return Rescued(job.id, job.queue, status, begun)

    def prune(self, now: float, retention: Retention) -> int:
        """See `jobpipe.store.base.EngineStore.prune`."""
        with transaction(self.db):
            self._mend()  # or a wrong count might have everything deleted
            rows = self._too_much(now, retention)
            tally = Tally()
            for _, seq, queue, status, size, options in rows:
                self._erase(seq, tags_of(options))
                tally.drop(queue, status, 1, size)
            tally.write(self.db)
            if len(rows) < STEP:
                for sql in _FORGET_EMPTY:
                    self.db.execute(sql, (FORGOTTEN,))
            return len(rows)

    def _mend(self) -> None:
        if mend(self.db):
            log.error("the counts of jobs could not be true, and were made anew from the jobs")

    def _too_much(self, now: float, retention: Retention) -> list[Row]:
        """The ended jobs to delete: what is too old, and while there are too many or they are too large, the oldest."""
        chosen = self._oldest({status: now - _age(status, retention) for status in ENDED})
        jobs, size = (total or 0 for total in fetch_one(self.db, _TOTALS) or (0, 0))
        jobs, size = jobs - len(chosen), size - sum(row[4] for row in chosen)
        if len(chosen) == STEP or (jobs <= retention.jobs and size <= retention.size):
            return chosen
        for row in self._oldest(dict.fromkeys(ENDED, math.inf), skip={row[1] for row in chosen}):
            if len(chosen) == STEP or (jobs <= retention.jobs and size <= retention.size):
                break
            chosen.append(row)
            jobs, size = jobs - 1, size - row[4]
        return chosen

    def _oldest(self, until: Mapping[Status, float], skip: Container[int] = ()) -> list[Row]:
        """At most `STEP` jobs that ended until then, the oldest end first."""
        by_status = [fetch(self.db, _OLDEST, (status.value, at, STEP)) for status, at in until.items()]
        return [row for row in sorted(itertools.chain(*by_status)) if row[1] not in skip][:STEP]

    def _erase(self, seq: int, tags: Sequence[str] | None) -> None:
        if tags is None:
            self.db.execute(_UNTAG_ALL, (seq,))
        for tag in tags or ():
            self.db.execute(_UNTAG, (tag, seq))
        for sql in _DELETE:
            self.db.execute(sql, (seq,))

    def _count(self, job: Job, before: str | None, after: str, size: int = 0) -> None:
        tally = Tally()
        tally.move(job.queue, before, after, size=size)
        tally.write(self.db)

    def _drop(self, queue: str, state: str, size: int) -> None:
        tally = Tally()
        tally.drop(queue, state, 1, size)
        tally.write(self.db)


def _age(status: Status, retention: Retention) -> float:
    return retention.done_age if status is Status.DONE else retention.failed_age
