"""What the engine writes: one function a verb, each run whole inside one transaction."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apsw

from jobpipe.job import ATTEMPTS_KEPT, ENDED, WAITING, Job, NewJob, Status, as_stored, same_content
from jobpipe.store.base import STEP, STORED, Add, Batch, Claimed, Receipt, Receipts, Settlement, Start
from jobpipe.store.sqlite.reader import one
from jobpipe.store.sqlite.rows import (
    CLAIMED_COLUMNS,
    Row,
    decoded_options,
    encoded_error,
    fetch,
    fetch_one,
    new_row,
    transaction,
)
from jobpipe.store.sqlite.tally import HELD, Tally, waiting

_RENEW = "update nodes set lease_until = ? where name = ? and lease_until is not null"
_NODE = "select node from nodes where name = ? and lease_until is not null"

_DUE = "select seq, queue, status from jobs where status in ('scheduled', 'retrying') and run_at <= ? order by run_at limit ?"
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
    "update jobs set status = ?, attempt = ?, started_at = coalesce(?, started_at), finished_at = ?, "
    "result = ?, error = ?, size = ?, held = 0 where seq = ? and claim = ? and held = 1"
)
_AGAIN = (
    "update jobs set status = iif(status = 'cancelling', 'cancelled', ?1), "
    "finished_at = iif(status = 'cancelling', ?2, null), size = iif(status = 'cancelling', ?3, 0), "
    "attempt = ?4, run_at = coalesce(?5, run_at), started_at = coalesce(?6, started_at), error = coalesce(?7, error), held = 0 "
    "where seq = ?8 and claim = ?9 and held = 1 returning status"
)
_RECORD = (
    "insert or replace into attempts (seq, claim, number, node, started_at, finished_at, outcome, error) "
    "select seq, claim, ?, node, ?, ?, ?, ? from jobs where seq = ?"
)
_FORGET = "delete from attempts where seq = ?1 and claim <= (select claim from jobs where seq = ?1) - ?2"

_INSERT = (
    "insert into jobs (id, kind, queue, status, priority, run_at, max_retries, created_at, expires_at, options, payload) "
    "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict (id) do nothing"
)
_TAG = "insert or ignore into tags (tag, seq) select ?, seq from jobs where id = ?"
_NAME = "insert or ignore into queues (name) values (?)"
_ACTIVE = "select name from queues where paused = 0"

_READY = (
    "select -priority, run_at, seq from jobs where status = 'queued' and held = 0 and queue = ?1 "
    "and (expires_at is null or expires_at > ?2) order by priority desc, run_at, seq limit ?3"
)
_CLAIM = "update jobs set claim = claim + 1, node = ?, held = 1, started_at = null where seq "
_CLAIM_QUEUE = (
    _CLAIM + "in (select seq from jobs where status = 'queued' and held = 0 and queue = ? "
    "and (expires_at is null or expires_at > ?) order by priority desc, run_at, seq limit ?) returning " + CLAIMED_COLUMNS
)
_CLAIM_ONE = _CLAIM + "= ? returning " + CLAIMED_COLUMNS


class Writer:
    """The writing half of the store: prepared on one connection, used by one thread at a time."""

    def __init__(self, db: apsw.Connection) -> None:
        self.db = db
        self._names = {row[0] for row in db.execute("select name from queues")}

    def exchange(self, batch: Batch) -> Receipts:
        """Carry out a batch; see `jobpipe.store.base.EngineStore.exchange`."""
        try:
            with transaction(self.db):
                receipts = self._carry_out(batch)
        except BaseException:
            self._names.clear()  # a name may have gone with the transaction; to write it again is harmless
            raise
        return receipts

    def _carry_out(self, batch: Batch) -> Receipts:
        tally = Tally()
        lease_lost = not self._renew(batch)
        self.promote(batch.now, tally)
        stale = self._start(batch.starts)
        settled = self._settle(batch.settlements, tally, stale)
        adds = [self._add(add, tally) for add in batch.adds]
        claimed = self._claim(batch, tally) if batch.claim and not lease_lost else []
        tally.write(self.db)
        return Receipts(
            lease_lost=lease_lost,
            stale=frozenset(stale),
            settled=settled,
            adds=adds,
            claimed=claimed,
            waiting=waiting(self.db),
            next_due=self.db.execute(_NEXT_DUE).get,
        )

    def _renew(self, batch: Batch) -> bool:
        if batch.lease_until is not None:
            self.db.execute(_RENEW, (batch.lease_until, batch.node))
            return bool(self.db.changes())
        return not batch.claim or self.db.execute(_NODE, (batch.node,)).get is not None

    def promote(self, now: float, tally: Tally) -> None:
        """Expire what is past its expires_at, then queue what is due; at most `STEP` of each."""
        overdue = fetch(self.db, _OVERDUE, (now, STEP))
        for seq, queue, status, size in overdue:
            self.db.execute(_EXPIRE, (now, size, seq))
            tally.move(queue, status, Status.EXPIRED, size=size)
        due = fetch(self.db, _DUE, (now, STEP))
        self.db.executemany(_PROMOTE, [(seq,) for seq, _, _ in due])
        for _, queue, status in due:
            tally.move(queue, status, Status.QUEUED)

    def _start(self, starts: Sequence[Start]) -> set[tuple[int, int]]:
        stale = set()
        for start in starts:
            self.db.execute(_START, (start.attempt, start.started_at, start.seq, start.claim))
            if not self.db.changes():
                stale.add((start.seq, start.claim))
        return stale

    def _settle(
        self, settlements: Sequence[Settlement], tally: Tally, stale: set[tuple[int, int]]
    ) -> dict[int, Status]:
        """Write outcomes under their fences; gathers stale ones, returns those that became something else."""
        missed = self._end([one for one in settlements if one.status in ENDED])
        changed: dict[int, Status] = {}
        for one in settlements:
            status = self._again(one) if one.status in WAITING else one.status
            if status is None or (one.seq, one.claim) in missed:
                stale.add((one.seq, one.claim))
                continue
            if status != one.status:
                changed[one.seq] = status
            tally.move(one.queue, HELD, status, size=one.size if status in ENDED else 0)
            self._record(one, status)
        return changed

    def _end(self, ends: Sequence[Settlement]) -> set[tuple[int, int]]:
        """End jobs, all in one statement; only when one of them is stale, one by one. Returns the stale ones."""
        if self._whole(_END, [_end_values(one) for one in ends]):
            return set()
        return {(one.seq, one.claim) for one in ends if not self._changed(_END, _end_values(one))}

    def _whole(self, sql: str, rows: Sequence[Row]) -> bool:
        """Run a statement for all rows; when it did not change one each, undo it and return False."""
        before = self.db.total_changes()
        self.db.execute("savepoint whole")
        self.db.executemany(sql, rows)
        whole = self.db.total_changes() - before == len(rows)
        if not whole:
            self.db.execute("rollback to whole")
        self.db.execute("release whole")
        return whole

    def _changed(self, sql: str, values: Row) -> bool:
        self.db.execute(sql, values)
        return bool(self.db.changes())

    def _again(self, one: Settlement) -> Status | None:
        values = (one.status.value, one.settled_at, one.size, one.attempt, one.run_at, one.started_at)
        row = fetch_one(self.db, _AGAIN, (*values, encoded_error(one.error), one.seq, one.claim))
        return None if row is None else Status(row[0])

    def _record(self, one: Settlement, status: Status) -> None:
        """Keep an attempt; one that ended its job well stands in the job's own row."""
        if one.outcome is None or status is Status.DONE:
            return
        values = (one.number, one.started_at, one.settled_at, one.outcome.value, encoded_error(one.error), one.seq)
        self.db.execute(_RECORD, values)
        self.db.execute(_FORGET, (one.seq, ATTEMPTS_KEPT))

    def _add(self, add: Add, tally: Tally) -> Sequence[Receipt]:
        if add.atomic and (refused := self._refusal(add.jobs)):
            return refused
        if self._whole(_INSERT, [new_row(job) for job in add.jobs]):
            stored: Sequence[NewJob] = add.jobs
            receipts: Sequence[Receipt] = [STORED] * len(add.jobs)
        else:
            receipts = [STORED if self._changed(_INSERT, new_row(job)) else self._twin(job) for job in add.jobs]
            stored = [job for job, receipt in zip(add.jobs, receipts, strict=True) if receipt is STORED]
        for queue in {job.queue for job in stored} - self._names:
            self._name(queue)
        for job in stored:
            tally.move(job.queue, None, job.status.value)
            for tag in job.options.tags:
                self.db.execute(_TAG, (tag, job.id))
        return receipts

    def _name(self, queue: str) -> None:
        """Make a queue known."""
        self.db.execute(_NAME, (queue,))
        self._names.add(queue)

    def _twin(self, new: NewJob) -> Receipt:
        return _compared(new, one(self.db, new.id))

    def _refusal(self, jobs: Sequence[NewJob]) -> Sequence[Receipt] | None:
        """The receipts of an atomic add that cannot be: None when no job of it is in conflict."""
        receipts: list[Receipt] = []
        seen: dict[str, NewJob] = {}
        for job in jobs:
            twin = as_stored(seen[job.id]) if job.id in seen else one(self.db, job.id)
            receipts.append(Receipt("refused") if twin is None else _compared(job, twin))
            seen.setdefault(job.id, job)
        return receipts if any(receipt.verdict == "conflict" for receipt in receipts) else None

    def _claim(self, batch: Batch, tally: Tally) -> Sequence[Claimed]:
        node = self.db.execute(_NODE, (batch.node,)).get
        queues: list[str] = [row[0] for row in fetch(self.db, _ACTIVE)]
        if len(queues) == 1:
            rows = fetch(self.db, _CLAIM_QUEUE, (node, queues[0], batch.now, batch.claim))
        else:
            rows = [row for seq in self._ready(queues, batch) for row in fetch(self.db, _CLAIM_ONE, (node, seq))]
        claimed = sorted((_claimed(row) for row in rows), key=lambda job: (-job.priority, job.run_at, job.seq))
        for job in claimed:
            tally.move(job.queue, Status.QUEUED, HELD)
        return claimed

    def _ready(self, queues: Iterable[str], batch: Batch) -> Sequence[int]:
        """The seqs of the next jobs over several queues: each is read only as far as it is taken from."""
        cursors: list[Iterator[Row]] = [self.db.cursor().execute(_READY, (queue, batch.now, batch.claim)) for queue in queues]
        merged = heapq.merge(*cursors)
        return [row[2] for row, _ in zip(merged, range(batch.claim), strict=False)]


def _end_values(one: Settlement) -> Row:
    return (
        one.status.value,
        one.attempt,
        one.started_at,
        one.settled_at,
        one.result,
        encoded_error(one.error),
        one.size,
        one.seq,
        one.claim,
    )


def _claimed(row: Row) -> Claimed:
    values: Sequence[Any] = (*row[:-1], decoded_options(row[-1]))
    return Claimed(*values)


def _compared(new: NewJob, job: Job | None) -> Receipt:
    return Receipt("existing" if job is not None and same_content(new, job) else "conflict", job)
