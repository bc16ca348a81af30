"""What the engine writes: one function a verb, each run whole inside one transaction."""

import heapq
import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import apsw
import msgspec

from jobpipe.job import ATTEMPTS_KEPT, ENDED, WAITING, Job, JobError, NewJob, State, Status
from jobpipe.store.base import (
    STEP,
    STORED,
    Add,
    Batch,
    Changed,
    Claimed,
    ClaimRequest,
    Receipt,
    Receipts,
    Settlement,
    Start,
)
from jobpipe.store.rows import Row, claimed_from, compared, encoded_error
from jobpipe.store.sqlite import reader
from jobpipe.store.sqlite.counts import HELD, CountChanges, waiting
from jobpipe.store.sqlite.rows import (
    ASIDE,
    CLAIMED_AS_BYTES,
    CLAIMED_COLUMNS,
    NEXT_QUEUE,
    READY,
    READY_BY_QUEUE,
    as_json,
    as_text,
    fetch,
    fetch_one,
    new_row,
    transaction,
)
from jobpipe.store.sqlite.values import execute_values

_RENEW = "update nodes set lease_until = ? where name = ? and lease_until is not null"
_NODE = "select node from nodes where name = ? and lease_until is not null"

_DUE = """
select seq, queue, status
from jobs indexed by jobs_later
where status in ('scheduled', 'retrying') and run_at <= ?
order by run_at
limit ?
"""
_PROMOTE = "update jobs set status = 'queued' where seq = ?"
_OVERDUE = """
select seq, id, queue, status, length(payload)
from jobs
where expires_at is not null and finished_at is null and held = 0 and expires_at <= ?
order by expires_at
limit ?
"""
_EXPIRE = "update jobs set status = 'expired', finished_at = ?, size = ? where seq = ?"
_NEXT_DUE = """
select min(at)
from (
    select min(run_at) as at
    from jobs indexed by jobs_later
    where status in ('scheduled', 'retrying')
    union all
    select min(expires_at)
    from jobs
    where expires_at is not null and finished_at is null and held = 0
)
"""

_START = """
update jobs
set status = iif(status = 'queued', 'running', status),
    attempt = ?,
    started_at = ?
where seq = ? and claim = ? and held = 1
"""

_END = """
update jobs
set status = v.column1,
    attempt = v.column2,
    started_at = coalesce(v.column3, started_at),
    finished_at = v.column4,
    result = v.column5,
    error = v.column6,
    size = v.column7,
    held = 0
from ({values}) as v
where jobs.seq = v.column8 and jobs.claim = v.column9 and held = 1
"""
_AGAIN = """
update jobs
set status = iif(status = 'cancelling', 'cancelled', ?1),
    finished_at = iif(status = 'cancelling', ?2, null),
    size = iif(status = 'cancelling', ?3, 0),
    attempt = ?4,
    run_at = coalesce(?5, run_at),
    started_at = coalesce(?6, started_at),
    error = coalesce(?7, error),
    held = 0
where seq = ?8 and claim = ?9 and held = 1
returning status
"""
_RECORD = """
insert or replace into attempts (seq, claim, number, node, started_at, finished_at, outcome, error)
select seq, claim, ?, node, ?, ?, ?, ?
from jobs
where seq = ?
"""
_FORGET = """
delete from attempts
where seq = ?1 and claim <= (select claim from jobs where seq = ?1) - ?2
"""

_NEW = "id, kind, queue, status, priority, run_at, max_retries, created_at, expires_at, options, payload"
_INSERT = f"""
insert into jobs ({_NEW})
{{values}}
"""
# "or ignore" costs less than "on conflict (id) do nothing".
_INSERT_NEW = f"""
insert or ignore into jobs ({_NEW})
{{values}}
"""
_INSERT_NEW_ASIDE = f"""
insert or ignore into jobs ({_NEW}, aside)
{{values}}
"""
_TAG = """
insert or ignore into tags (tag, created_at, seq)
select ?, created_at, seq
from jobs
where id = ?
"""

PASSED = 2_000
"""How many ready jobs of paused queues a claim passes over before it reads queue by queue instead."""

WALKED = 1_000
"""How many queues such a claim reads; the next one continues behind them."""

SLICE, SLICES = 1_000, 5
"""How many ready jobs are looked at in one step to put aside those of other kinds, and how often in one exchange."""

_IS_PAUSED = "queue in (select name from queues where paused = 1)"
_ANY_PAUSED = "select exists (select 1 from queues where paused = 1)"
_FRESH = "(expires_at is null or expires_at > :now)"
_ORDER = "order by priority desc, run_at, seq"
_FIRST = f"""
select seq
from {READY}
    and {_FRESH}
{_ORDER}
limit :limit
"""
# The inner query reads only its index, where passing over an entry costs a tenth of a microsecond.
_FIRST_UNPAUSED = f"""
select -priority, run_at, seq
from (
    select seq, queue
    from {READY}
    {_ORDER}
    limit :look
) as near
cross join jobs using (seq)
where not near.{_IS_PAUSED}
    and {_FRESH}
limit :limit
"""
_ANY_BEHIND = f"""
select 1
from {READY}
{_ORDER}
limit 1
offset :look
"""
_OF_QUEUE = f"""
select -priority, run_at, seq
from {READY_BY_QUEUE}
    and queue = :name
    and aside = 0
    and {_FRESH}
{_ORDER}
limit :limit
"""
_OF_KIND = f"""
select -priority, run_at, seq
from {ASIDE}
    and kind = :name
    and not {_IS_PAUSED}
    and {_FRESH}
{_ORDER}
limit :limit
"""
_KIND_HEADS = f"""
select -j.priority, j.run_at, j.seq, served.value
from json_each(:kinds) as served
cross join jobs j on j.seq = (
    select seq
    from {ASIDE}
        and kind = served.value
        and not {_IS_PAUSED}
        and {_FRESH}
    {_ORDER}
    limit 1
)
"""
_ANY_ASIDE = f"select exists (select 1 from {ASIDE})"
_MINE_ASIDE = f"""
select exists (
    select 1
    from json_each(:kinds) as served cross join {ASIDE}
        and kind = served.value
)
"""
_HEADS = f"""
with recursive walked (queue) as (
    select {NEXT_QUEUE.format(after=":after")}
    union all
    select {NEXT_QUEUE.format(after="walked.queue")}
    from walked
    where walked.queue < :until
)
select -j.priority, j.run_at, j.seq, walked.queue
from walked
cross join jobs j on j.seq = (
    select seq
    from {READY_BY_QUEUE}
        and queue = walked.queue
        and aside = 0
        and {_FRESH}
    {_ORDER}
    limit 1
)
where walked.queue <= :until and not walked.{_IS_PAUSED}
limit :queues
"""
LAST_NAME = chr(0x10FFFF)
"""Sorts behind the name of every queue."""

_IS_SERVED = "kind in (select value from json_each(:kinds))"
_CLAIM = """
update jobs
set claim = claim + 1,
    node = :node,
    held = 1,
    started_at = null
where seq {which}
returning -priority, run_at, {columns}, expires_at
"""
_THESE = "in (select value from json_each(:seqs))"
_CLAIM_FIRST = _CLAIM.format(which=f"in ({_FIRST})", columns=CLAIMED_COLUMNS)
_CLAIM_FIRST_SERVED = _CLAIM.format(which=f"in ({_FIRST}) and {_IS_SERVED}", columns=CLAIMED_COLUMNS)
_CLAIM_THESE = _CLAIM.format(which=f"{_THESE} and {_IS_SERVED}", columns=CLAIMED_COLUMNS)
_CLAIM_AS_BYTES = _CLAIM.format(which=f"= :seq and {_IS_SERVED}", columns=CLAIMED_AS_BYTES)
_CLAIMED, _KIND, _EXPIRES_AT = slice(2, -1), 4, -1
"""In what is returned: the values of `Claimed`, and where kind and expires_at stand."""

_PUT_ASIDE = f"""
update jobs
set aside = 1
where seq {{which}} and not {_IS_SERVED}
"""
_PUT_FIRST_ASIDE = _PUT_ASIDE.format(which=f"in ({_FIRST})")
_PUT_THESE_ASIDE = _PUT_ASIDE.format(which=_THESE)
_SERVED = "select kinds from nodes where lease_until is not null and kinds <> '[]'"
SIDELINE = """
update jobs
set status = 'failed',
    finished_at = ?,
    error = ?,
    size = length(payload),
    held = 0
where seq = ?
"""
_SIDELINED = f"""
select id, queue, length(payload)
from jobs
where seq = :seq and {_IS_SERVED}
"""


class _Mismatch(Exception):  # noqa: N818 - no error: it is caught where it is raised for
    """A statement for many rows did not change each of them: some are stale, or there already."""


class _Unserved(Exception):  # noqa: N818 - no error: it is caught where it is raised for
    """A claim took a job of a kind that it did not ask for."""


Values = dict[str, Any]


class Writer:
    """The writing half of the store: prepared on one connection, used by one thread at a time.

    The file is locked, so what this writer knows of queues, nodes and counts it need not ask for again.
    """

    def __init__(self, db: apsw.Connection) -> None:
        self.db = db
        self._walked = ""
        self.forget()

    def forget(self) -> None:
        """Ask the database for everything again: somebody else has written, or a transaction was undone."""
        self._any_paused: bool | None = None
        self._served: Sequence[frozenset[str]] | None = None
        self._nodes: dict[str, int] = {}
        self._waiting: int | None = None
        self._next_due: float | None = None
        self._due_known = False

    def exchange(self, batch: Batch) -> Receipts:
        """Carry out a batch; see `jobpipe.store.base.EngineStore.exchange`.

        First in the hope that all is as it mostly is: what is found to be otherwise is undone, and done with care.
        """
        one_by_one = wary = False
        while True:
            try:
                return self._written(batch, one_by_one=one_by_one, wary=wary)
            except (_Mismatch, UnicodeDecodeError):  # a claimed row may hold text that is no UTF-8
                if one_by_one:
                    raise
                one_by_one = True
            except _Unserved:
                wary = True

    def sideline(self, batch: Batch, words: str) -> str | None:
        """See `jobpipe.store.base.EngineStore.sideline`."""
        counts = CountChanges()
        kinds = as_json(next((claim.kinds for claim in batch.claims), ()))
        try:
            with transaction(self.db):
                self._promote(batch.now, counts)
                for seq in self._seqs({"now": batch.now, "limit": 1, "kinds": kinds}):
                    for job_id, queue, size in fetch(self.db, _SIDELINED, {"seq": seq, "kinds": kinds}):
                        error = encoded_error(JobError("DamagedRow", words))
                        self.db.execute(SIDELINE, (batch.now, error, seq))
                        counts.move(queue, Status.QUEUED, Status.FAILED, size=size)
                        counts.write(self.db)
                        return str(job_id)
        finally:
            self.forget()
        return None

    def _written(self, batch: Batch, *, one_by_one: bool, wary: bool) -> Receipts:
        try:
            with transaction(self.db):
                receipts = self._carry_out(batch, one_by_one=one_by_one, wary=wary)
        except BaseException:
            self.forget()
            raise
        return receipts

    def _carry_out(self, batch: Batch, *, one_by_one: bool, wary: bool) -> Receipts:
        counts = CountChanges()
        lease_lost = not self._renew(batch)
        changes = self._promote(batch.now, counts)
        stale = self._start(batch.starts)
        settled = self._settle(batch.settlements, counts, stale, one_by_one=one_by_one)
        adds = [self._add(add, counts, one_by_one=one_by_one) for add in batch.adds]
        claims: list[Sequence[Claimed]] = [[]] * len(batch.claims)
        more_ready = False
        if not lease_lost:
            for number, claim in enumerate(batch.claims):
                claims[number], more = self._claim(batch, claim, counts, one_by_one=one_by_one, wary=wary)
                more_ready |= more
        counts.write(self.db)
        return Receipts(
            lease_lost=lease_lost,
            stale=frozenset(stale),
            settled=settled,
            adds=adds,
            claims=claims,
            more_ready=more_ready,
            waiting=self._count_waiting(counts),
            next_due=self._due(),
            changes=changes,
        )

    def _count_waiting(self, counts: CountChanges) -> int:
        self._waiting = waiting(self.db) if self._waiting is None else self._waiting + counts.waiting
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
        return not batch.claims or self._node(batch.node) is not None

    def _promote(self, now: float, counts: CountChanges) -> Sequence[Changed]:
        """Expire what is past its expires_at, then queue what is due; at most `STEP` of each. Returns what expired."""
        due_at = self._due()
        if due_at is None or due_at > now:
            return ()
        overdue = fetch(self.db, _OVERDUE, (now, STEP))
        for seq, _, queue, status, size in overdue:
            self.db.execute(_EXPIRE, (now, size, seq))
            counts.move(queue, status, Status.EXPIRED, size=size)
        due = fetch(self.db, _DUE, (now, STEP))
        self.db.executemany(_PROMOTE, [(seq,) for seq, _, _ in due])
        for _, queue, status in due:
            counts.move(queue, status, Status.QUEUED)
        self._due_known = False
        return [Changed(job_id, Status.EXPIRED) for _, job_id, _, _, _ in overdue]

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
        counts: CountChanges,
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
            counts.move(one.queue, HELD, one.status, size=one.size)
            self._record(one, one.status)
        changed: dict[int, Status] = {}
        for one in settlements:
            if one.status in WAITING:
                self._settle_waiting(one, counts, stale, changed)
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
        self, one: Settlement, counts: CountChanges, stale: set[tuple[int, int]], changed: dict[int, Status]
    ) -> None:
        """Let a job wait again, or end it when it was asked to cancel meanwhile."""
        status = self._again(one)
        if status is None:
            stale.add((one.seq, one.claim))
            return
        if status is not one.status:
            changed[one.seq] = status
        self._due_known = False
        counts.move(one.queue, HELD, status, size=one.size if status in ENDED else 0)
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

    def _add(self, add: Add, counts: CountChanges, *, one_by_one: bool) -> Sequence[Receipt]:
        if add.atomic and (refused := self._refusal(add.jobs)):
            return refused
        receipts = self._insert(add.jobs, one_by_one=one_by_one)
        stored = [job for job, receipt in zip(add.jobs, receipts, strict=True) if receipt is STORED]
        self._note(stored, counts)
        return receipts

    def _insert(self, jobs: Sequence[NewJob], *, one_by_one: bool) -> Sequence[Receipt]:
        aside = self._not_served_by_all({job.kind for job in jobs})
        if one_by_one:
            return [STORED if self._inserted([job], aside) else self._twin(job) for job in jobs]
        if self._inserted(jobs, aside) != len(jobs):
            raise _Mismatch
        return [STORED] * len(jobs)

    def _inserted(self, jobs: Sequence[NewJob], aside: Collection[str]) -> int:
        """Insert what is not there, and tell how many were not; those of some kinds stand aside."""
        if not aside:
            return execute_values(self.db, _INSERT_NEW, list(map(new_row, jobs)))
        rows = [(*new_row(job), int(job.kind in aside)) for job in jobs]
        return execute_values(self.db, _INSERT_NEW_ASIDE, rows)

    def _not_served_by_all(self, kinds: set[str]) -> set[str]:
        """Those of the kinds that some live node has no handler for: their jobs stand aside."""
        if self._served is None:
            self._served = [frozenset(msgspec.json.decode(kinds)) for (kinds,) in fetch(self.db, _SERVED)]
        return {kind for kind in kinds if any(kind not in served for served in self._served)}

    def _note(self, stored: Sequence[NewJob], counts: CountChanges) -> None:
        """Count new jobs, and make their tags known."""
        for (queue, status), jobs in Counter([(job.queue, job.status) for job in stored]).items():
            counts.move(queue, None, status, jobs)
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
        seen: dict[str, Job] = {}
        for job in jobs:
            twin = reader.one(self.db, job.id) or seen.get(job.id)
            receipts.append(Receipt("refused") if twin is None else compared(job, twin))
            seen.setdefault(job.id, Job(job, State(job.status)))
        return receipts if any(receipt.verdict == "conflict" for receipt in receipts) else None

    def _claim(
        self, batch: Batch, claim: ClaimRequest, counts: CountChanges, *, one_by_one: bool, wary: bool
    ) -> tuple[Sequence[Claimed], bool]:
        """Hold ready jobs; returns them, and whether more may be ready although fewer were taken than asked for."""
        rows, more_ready = self._take(batch, claim, one_by_one=one_by_one, wary=wary)
        if any(row[_EXPIRES_AT] is not None for row in rows):
            self._due_known = False  # a held job does not expire
        claimed = claimed_from([row[_CLAIMED] for row in rows])
        for queue, jobs in Counter(job.queue for job in claimed).items():
            counts.move(queue, Status.QUEUED, HELD, jobs)
        return claimed, more_ready

    def _take(
        self, batch: Batch, claim: ClaimRequest, *, one_by_one: bool, wary: bool
    ) -> tuple[list[Row], bool]:
        """Hold the next jobs; returns their rows in order, and whether more may be ready.

        Raises `_Unserved` when one of them is of another kind, unless it is `wary` of that.
        """
        values = {"node": self._node(batch.node), "now": batch.now, "limit": claim.limit}
        if one_by_one:
            return self._take_with_care(values | {"kinds": as_json(claim.kinds)}), False
        if wary or self._paused() or self.db.execute(_ANY_ASIDE).get:
            return self._take_served(values | {"kinds": as_json(claim.kinds)})
        rows = self._sorted(_CLAIM_FIRST, values)
        if any(row[_KIND] not in claim.kinds for row in rows):
            raise _Unserved
        return rows, False

    def _take_served(self, values: Values) -> tuple[list[Row], bool]:
        """Hold the next jobs of the kinds that are served. What is in their way, of other kinds, is put aside."""
        limit = values["limit"]
        rows = self._hold(values)
        for _ in range(SLICES):
            if len(rows) == limit or not self._put_aside(values | {"limit": SLICE}):
                return rows, False
            rows += self._hold(values | {"limit": limit - len(rows)})
        return rows, len(rows) < limit

    def _take_with_care(self, values: Values) -> list[Row]:
        """Hold the next jobs one by one: some of their text may not be UTF-8."""
        rows: list[Row] = []
        for seq in self._seqs(values):
            found = self.db.execute(_CLAIM_AS_BYTES, values | {"seq": seq}).fetchall()
            for minus_priority, run_at, _, job_id, kind, queue, *rest in found:
                names = (as_text(1, name) for name in (job_id, kind, queue))
                rows.append((minus_priority, run_at, seq, *names, *rest))
        return rows

    def _seqs(self, values: Values) -> Sequence[int]:
        """The next jobs of the served kinds; what is in their way is put aside, a bounded number."""
        for _ in range(SLICES):
            if not self._put_aside(values | {"limit": SLICE}):
                break
        return [seq for _, _, seq in self._next(values)]

    def _hold(self, values: Values) -> list[Row]:
        if self._paused() or self.db.execute(_MINE_ASIDE, values).get:
            return self._sorted(_CLAIM_THESE, values | {"seqs": _seqs(self._next(values))})
        return self._sorted(_CLAIM_FIRST_SERVED, values)

    def _sorted(self, sql: str, values: Values) -> list[Row]:
        return sorted(
            fetch(self.db, sql, values)
        )  # by -priority, run_at, seq: what an update returns has no order

    def _put_aside(self, values: Values) -> bool:
        """Put jobs of other kinds aside that are in front; whether there were any."""
        if self._paused():
            self.db.execute(_PUT_THESE_ASIDE, values | {"seqs": _seqs(self._unpaused(values))})
        else:
            self.db.execute(_PUT_FIRST_ASIDE, values)
        return bool(self.db.changes())

    def _paused(self) -> bool:
        """Whether a queue is paused."""
        if self._any_paused is None:
            self._any_paused = bool(self.db.execute(_ANY_PAUSED).get)
        return self._any_paused

    def _next(self, values: Values) -> Sequence[Row]:
        """The next jobs, merged with those of the served kinds that stand aside."""
        limit = values["limit"]
        heads = fetch(self.db, _KIND_HEADS, values)
        aside = [self._from(head, _OF_KIND, _share(limit, heads), values) for head in heads]
        return list(itertools.islice(heapq.merge(self._unpaused(values), *aside), limit))

    def _unpaused(self, values: Values) -> Sequence[Row]:
        """The next jobs while queues are paused, those that stand aside left out.

        They are read from the index over all queues, unless too many jobs of paused queues are in the way.
        """
        limit = values["limit"]
        looked = values | {"look": limit + PASSED}
        near = fetch(self.db, _FIRST_UNPAUSED, looked)
        if len(near) == limit or fetch_one(self.db, _ANY_BEHIND, looked) is None:
            return near
        heads = sorted(self._heads(values["now"]))[:limit]
        merged = heapq.merge(*(self._from(head, _OF_QUEUE, _share(limit, heads), values) for head in heads))
        return list(itertools.islice(merged, limit))

    def _heads(self, now: float) -> list[Row]:
        """The first ready job of each queue that is not paused, of `WALKED` queues at most: each in its turn.

        Among more queues than that, priorities hold among those that are read together.
        """
        heads: list[Row] = []
        for after, until in ((self._walked, LAST_NAME), ("", self._walked)):
            values = {"now": now, "after": after, "until": until, "queues": WALKED - len(heads)}
            heads += fetch(self.db, _HEADS, values)
        self._walked = ""
        if len(heads) == WALKED:
            *_, self._walked = heads[-1]
        return heads

    def _from(self, head: Row, sql: str, share: int, values: Values) -> Iterator[Row]:
        """The ready jobs of a queue or kind, given its first; more are read when asked for, and first only a share."""
        *place, name = head
        yield tuple(place)
        named = values | {"name": name}
        rows = fetch(self.db, sql, named | {"limit": share})
        yield from rows[1:]
        if len(rows) == share:
            yield from fetch(self.db, sql, named)[share:]


def _share(limit: int, heads: Sequence[Row]) -> int:
    return 2 * limit // max(len(heads), 1) + 1


def _seqs(rows: Sequence[Row]) -> str:
    return msgspec.json.encode([seq for _, _, seq in rows]).decode()


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
