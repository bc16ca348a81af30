"""What the engine writes: one function a verb, each run whole inside one transaction."""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence

import apsw
import msgspec

from jobpipe.job import ATTEMPTS_KEPT, ENDED, WAITING, JobError, NewJob, Status, as_stored
from jobpipe.store.base import STEP, STORED, Add, Batch, Claimed, Receipt, Receipts, Settlement, Start
from jobpipe.store.rows import Row, claimed_from, compared, encoded_error
from jobpipe.store.sqlite import reader
from jobpipe.store.sqlite.rows import (
    CLAIMED_AS_BYTES,
    CLAIMED_COLUMNS,
    as_text,
    fetch,
    fetch_one,
    new_row,
    transaction,
)
from jobpipe.store.sqlite.tally import HELD, Tally, waiting
from jobpipe.store.sqlite.values import execute_values

_RENEW = "update nodes set lease_until = ? where name = ? and lease_until is not null"
_NODE = "select node from nodes where name = ? and lease_until is not null"

_DUE = (
    "select seq, queue, status from jobs where status in ('scheduled', 'retrying') and run_at <= ? "
    "order by run_at limit ?"
)
_PROMOTE = "update jobs set status = 'queued' where seq = ?"
_OVERDUE = (
    "select seq, queue, status, length(payload) from jobs "
    "where expires_at is not null and finished_at is null and held = 0 and expires_at <= ? order by expires_at limit ?"
)
_EXPIRE = "update jobs set status = 'expired', finished_at = ?, size = ? where seq = ?"
_NEXT_DUE = (
    "select min(at) from (select min(run_at) as at from jobs where status in ('scheduled', 'retrying') union all "
    "select min(expires_at) from jobs where expires_at is not null and finished_at is null and held = 0)"
)

_START = (
    "update jobs set status = iif(status = 'queued', 'running', status), attempt = ?, started_at = ? "
    "where seq = ? and claim = ? and held = 1"
)

_END = (
    "update jobs set status = v.column1, attempt = v.column2, started_at = coalesce(v.column3, started_at), "
    "finished_at = v.column4, result = v.column5, error = v.column6, size = v.column7, held = 0 "
    "from ({values}) as v where jobs.seq = v.column8 and jobs.claim = v.column9 and held = 1"
)
_AGAIN = (
    "update jobs set status = iif(status = 'cancelling', 'cancelled', ?1), "
    "finished_at = iif(status = 'cancelling', ?2, null), size = iif(status = 'cancelling', ?3, 0), "
    "attempt = ?4, run_at = coalesce(?5, run_at), started_at = coalesce(?6, started_at), "
    "error = coalesce(?7, error), held = 0 "
    "where seq = ?8 and claim = ?9 and held = 1 returning status"
)
_RECORD = (
    "insert or replace into attempts (seq, claim, number, node, started_at, finished_at, outcome, error) "
    "select seq, claim, ?, node, ?, ?, ?, ? from jobs where seq = ?"
)
_FORGET = "delete from attempts where seq = ?1 and claim <= (select claim from jobs where seq = ?1) - ?2"

_INSERT = (
    "insert into jobs "
    "(id, kind, queue, status, priority, run_at, max_retries, created_at, expires_at, options, payload) {values}"
)
_INSERT_NEW = _INSERT.replace(
    "insert", "insert or ignore", 1
)  # costs less than "on conflict (id) do nothing"
_TAG = "insert or ignore into tags (tag, seq) select ?, seq from jobs where id = ?"
_NAME = "insert or ignore into queues (name) values (?)"
_ACTIVE = "select name from queues where paused = 0"

_READY = (
    "select -priority, run_at, seq from jobs where status = 'queued' and held = 0 and queue = ?1 "
    "and (expires_at is null or expires_at > ?2) order by priority desc, run_at, seq limit ?3"
)
_HEADS = (
    "select -j.priority, j.run_at, j.seq, q.name from queues q join jobs j on j.seq = "
    "(select seq from jobs where status = 'queued' and held = 0 and queue = q.name "
    "and (expires_at is null or expires_at > ?1) order by priority desc, run_at, seq limit 1) "
    "where q.paused = 0"
)
_CLAIM = "update jobs set claim = claim + 1, node = ?, held = 1, started_at = null where seq "
_TAKEN = f" returning -priority, run_at, {CLAIMED_COLUMNS}, expires_at"
_CLAIM_QUEUE = (
    f"{_CLAIM} in (select seq from jobs where status = 'queued' and held = 0 and queue = ? "  # noqa: S608 - every part is a constant
    f"and (expires_at is null or expires_at > ?) order by priority desc, run_at, seq limit ?) {_TAKEN}"
)
_CLAIM_ONE = f"{_CLAIM} = ? {_TAKEN}"
_CLAIM_AS_BYTES = _CLAIM_ONE.replace(CLAIMED_COLUMNS, CLAIMED_AS_BYTES)
SIDELINE = (
    "update jobs set status = 'failed', finished_at = ?, error = ?, size = length(payload), held = 0 "
    "where seq = ?"
)
_SIDELINED = "select id, queue, length(payload) from jobs where seq = ?"


class _Mismatch(Exception):  # noqa: N818 - no error: it is caught where it is raised for
    """A statement for many rows did not change each of them: some are stale, or there already."""


class Writer:
    """The writing half of the store: prepared on one connection, used by one thread at a time.

    The file is locked, so what this writer knows of queues, nodes and counts it need not ask for again.
    """

    def __init__(self, db: apsw.Connection) -> None:
        self.db = db
        self.forget()

    def forget(self) -> None:
        """Ask the database for everything again: somebody else has written, or a transaction was undone."""
        self._names: set[str] = set()
        self._active: list[str] | None = None
        self._nodes: dict[str, int] = {}
        self._waiting: int | None = None
        self._next_due: float | None = None
        self._due_known = False

    def exchange(self, batch: Batch) -> Receipts:
        """Carry out a batch; see `jobpipe.store.base.EngineStore.exchange`."""
        try:
            return self._written(batch, one_by_one=False)
        except (_Mismatch, UnicodeDecodeError):  # a claimed row may hold text that is no UTF-8
            return self._written(batch, one_by_one=True)

    def sideline(self, batch: Batch, words: str) -> str | None:
        """See `jobpipe.store.base.EngineStore.sideline`."""
        tally = Tally()
        try:
            with transaction(self.db):
                self._promote(batch.now, tally)
                for seq in self._ready(msgspec.structs.replace(batch, claim=1)):
                    job_id, queue, size = fetch(self.db, _SIDELINED, (seq,))[0]
                    error = encoded_error(JobError("DamagedRow", words))
                    self.db.execute(SIDELINE, (batch.now, error, seq))
                    tally.move(queue, Status.QUEUED, Status.FAILED, size=size)
                    tally.write(self.db)
                    return str(job_id)
        finally:
            self.forget()
        return None

    def _written(self, batch: Batch, *, one_by_one: bool) -> Receipts:
        try:
            with transaction(self.db):
                receipts = self._carry_out(batch, one_by_one=one_by_one)
        except BaseException:
            self.forget()
            raise
        return receipts

    def _carry_out(self, batch: Batch, *, one_by_one: bool) -> Receipts:
        tally = Tally()
        lease_lost = not self._renew(batch)
        self._promote(batch.now, tally)
        stale = self._start(batch.starts)
        settled = self._settle(batch.settlements, tally, stale, one_by_one=one_by_one)
        adds = [self._add(add, tally, one_by_one=one_by_one) for add in batch.adds]
        claimed: Sequence[Claimed] = []
        if batch.claim and not lease_lost:
            claimed = self._claim(batch, tally, one_by_one=one_by_one)
        tally.write(self.db)
        return Receipts(
            lease_lost=lease_lost,
            stale=frozenset(stale),
            settled=settled,
            adds=adds,
            claimed=claimed,
            waiting=self._count_waiting(tally),
            next_due=self._due(),
        )

    def _count_waiting(self, tally: Tally) -> int:
        self._waiting = waiting(self.db) if self._waiting is None else self._waiting + tally.waiting
        return self._waiting

    def _due(self) -> float | None:
        """When the next job is to be promoted or expired."""
        if not self._due_known:
            self._next_due, self._due_known = self.db.execute(_NEXT_DUE).get, True
        return self._next_due

    def _node(self, name: str) -> int | None:
        """The number of a node that has a lease."""
        if name not in self._nodes and (row := fetch_one(self.db, _NODE, (name,))):
            self._nodes[name] = row[0]
        return self._nodes.get(name)

    def _renew(self, batch: Batch) -> bool:
        if batch.lease_until is not None:
            self.db.execute(_RENEW, (batch.lease_until, batch.node))
            return bool(self.db.changes())
        return not batch.claim or self._node(batch.node) is not None

    def _promote(self, now: float, tally: Tally) -> None:
        """Expire what is past its expires_at, then queue what is due; at most `STEP` of each."""
        due_at = self._due()
        if due_at is None or due_at > now:
            return
        overdue = fetch(self.db, _OVERDUE, (now, STEP))
        for seq, queue, status, size in overdue:
            self.db.execute(_EXPIRE, (now, size, seq))
            tally.move(queue, status, Status.EXPIRED, size=size)
        due = fetch(self.db, _DUE, (now, STEP))
        self.db.executemany(_PROMOTE, [(seq,) for seq, _, _ in due])
        for _, queue, status in due:
            tally.move(queue, status, Status.QUEUED)
        self._due_known = False

    def _start(self, starts: Sequence[Start]) -> set[tuple[int, int]]:
        stale = set()
        for start in starts:
            self.db.execute(_START, (start.attempt, start.started_at, start.seq, start.claim))
            if not self.db.changes():
                stale.add((start.seq, start.claim))
        return stale

    def _settle(
        self,
        settlements: Sequence[Settlement],
        tally: Tally,
        stale: set[tuple[int, int]],
        *,
        one_by_one: bool,
    ) -> dict[int, Status]:
        """Write outcomes under their fences; gathers stale ones, returns those that became something else."""
        ends = [one for one in settlements if one.status in ENDED]
        missed = self._end(ends, one_by_one=one_by_one)
        if missed:
            stale |= missed
            ends = [one for one in ends if (one.seq, one.claim) not in missed]
        for one in ends:
            tally.move(one.queue, HELD, one.status, size=one.size)
            self._record(one, one.status)
        changed: dict[int, Status] = {}
        for one in settlements:
            if one.status in WAITING:
                self._settle_waiting(one, tally, stale, changed)
        return changed

    def _end(self, ends: Sequence[Settlement], *, one_by_one: bool) -> set[tuple[int, int]]:
        """End jobs, all at once or one by one; returns the stale ones."""
        if one_by_one:
            return {
                (one.seq, one.claim) for one in ends if not execute_values(self.db, _END, [_end_values(one)])
            }
        if execute_values(self.db, _END, list(map(_end_values, ends))) != len(ends):
            raise _Mismatch
        return set()

    def _settle_waiting(
        self, one: Settlement, tally: Tally, stale: set[tuple[int, int]], changed: dict[int, Status]
    ) -> None:
        """Let a job wait again, or end it when it was asked to cancel meanwhile."""
        status = self._again(one)
        if status is None:
            stale.add((one.seq, one.claim))
            return
        if status is not one.status:
            changed[one.seq] = status
        self._due_known = False
        tally.move(one.queue, HELD, status, size=one.size if status in ENDED else 0)
        self._record(one, status)

    def _again(self, one: Settlement) -> Status | None:
        values = (one.status.value, one.settled_at, one.size, one.attempt, one.run_at, one.started_at)
        row = fetch_one(self.db, _AGAIN, (*values, encoded_error(one.error), one.seq, one.claim))
        return None if row is None else Status(row[0])

    def _record(self, one: Settlement, status: Status) -> None:
        """Keep an attempt; one that ended its job well stands in the job's own row."""
        if one.outcome is None or status is Status.DONE:
            return
        values = (
            one.number,
            one.started_at,
            one.settled_at,
            one.outcome.value,
            encoded_error(one.error),
            one.seq,
        )
        self.db.execute(_RECORD, values)
        self.db.execute(_FORGET, (one.seq, ATTEMPTS_KEPT))

    def _add(self, add: Add, tally: Tally, *, one_by_one: bool) -> Sequence[Receipt]:
        if add.atomic and (refused := self._refusal(add.jobs)):
            return refused
        receipts = self._insert(add.jobs, one_by_one=one_by_one)
        stored = [job for job, receipt in zip(add.jobs, receipts, strict=True) if receipt is STORED]
        self._note(stored, tally)
        return receipts

    def _insert(self, jobs: Sequence[NewJob], *, one_by_one: bool) -> Sequence[Receipt]:
        if one_by_one:
            return [
                STORED if execute_values(self.db, _INSERT_NEW, [new_row(job)]) else self._twin(job)
                for job in jobs
            ]
        if execute_values(self.db, _INSERT_NEW, list(map(new_row, jobs))) != len(jobs):
            raise _Mismatch
        return [STORED] * len(jobs)

    def _note(self, stored: Sequence[NewJob], tally: Tally) -> None:
        """Count new jobs, and make their queues and tags known."""
        for (queue, status), jobs in Counter([(job.queue, job.status) for job in stored]).items():
            tally.move(queue, None, status, jobs)
            if queue not in self._names:
                self.db.execute(_NAME, (queue,))
                self._names.add(queue)
                self._active = None
        for job in stored:
            if job.run_at > job.created_at or job.expires_at is not None:
                self._due_known = False
            for tag in job.options.tags:
                self.db.execute(_TAG, (tag, job.id))

    def _twin(self, new: NewJob) -> Receipt:
        twin = reader.one(self.db, new.id)
        if twin is None:
            execute_values(self.db, _INSERT, [new_row(new)])  # raises what was ignored
        return compared(new, twin)

    def _refusal(self, jobs: Sequence[NewJob]) -> Sequence[Receipt] | None:
        """The receipts of an atomic add that cannot be: None when no job of it is in conflict."""
        receipts: list[Receipt] = []
        seen: dict[str, NewJob] = {}
        for job in jobs:
            twin = reader.one(self.db, job.id) or (as_stored(seen[job.id]) if job.id in seen else None)
            receipts.append(Receipt("refused") if twin is None else compared(job, twin))
            seen.setdefault(job.id, job)
        return receipts if any(receipt.verdict == "conflict" for receipt in receipts) else None

    def _claim(self, batch: Batch, tally: Tally, *, one_by_one: bool) -> Sequence[Claimed]:
        node = self._node(batch.node)
        if self._active is None:
            self._active = [row[0] for row in fetch(self.db, _ACTIVE)]
        if one_by_one:
            rows = [self._claimed_as_bytes(node, seq) for seq in self._ready(batch)]
        elif len(self._active) == 1:
            rows = fetch(self.db, _CLAIM_QUEUE, (node, self._active[0], batch.now, batch.claim))
            rows.sort()  # by -priority, run_at, seq: what an update returns has no order
        else:
            rows = [row for seq in self._ready(batch) for row in fetch(self.db, _CLAIM_ONE, (node, seq))]
        if any(row[-1] is not None for row in rows):
            self._due_known = False  # a held job does not expire
        claimed = claimed_from([row[2:-1] for row in rows])
        for queue, jobs in Counter(job.queue for job in claimed).items():
            tally.move(queue, Status.QUEUED, HELD, jobs)
        return claimed

    def _claimed_as_bytes(self, node: int | None, seq: int) -> Row:
        """Claim a job some of whose text may not be UTF-8."""
        row = self.db.execute(_CLAIM_AS_BYTES, (node, seq)).fetchall()[0]
        return (*row[:3], *(as_text(1, text) for text in row[3:6]), *row[6:])

    def _ready(self, batch: Batch) -> Sequence[int]:
        """The seqs of the next jobs over several queues: each is read only as far as it is taken from."""
        heads = sorted(fetch(self.db, _HEADS, (batch.now,)))[: batch.claim]
        share = 2 * batch.claim // max(len(heads), 1) + 1
        merged = heapq.merge(*(self._queue_from(head, share, batch) for head in heads))
        return [row[2] for row, _ in zip(merged, range(batch.claim), strict=False)]

    def _queue_from(self, head: Row, share: int, batch: Batch) -> Iterator[Row]:
        """The ready jobs of a queue, given its first; it is read when more is asked for, and first only a share."""
        yield head[:3]
        queue = head[3]
        rows = fetch(self.db, _READY, (queue, batch.now, share))
        yield from rows[1:]
        if len(rows) == share:
            yield from fetch(self.db, _READY, (queue, batch.now, batch.claim))[share:]


def _end_values(one: Settlement) -> Row:
    return (
        one.status,
        one.attempt,
        one.started_at,
        one.settled_at,
        one.result,
        None if one.error is None else encoded_error(one.error),
        one.size,
        one.seq,
        one.claim,
    )
