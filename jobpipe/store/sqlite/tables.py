"""The tables of SQLite, for the verbs: see `jobpipe.store.verbs.transaction.Transaction`."""

import math
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import apsw
import msgspec

from jobpipe.job import ENDED, Job, JobError, NewJob, Status
from jobpipe.store.base import LONGEST_LEASE, STORED, Add, ClaimRequest, QueueState, Settlement
from jobpipe.store.rows import Row, encoded_error, stored_from
from jobpipe.store.sqlite import reader
from jobpipe.store.sqlite.adding import Adding
from jobpipe.store.sqlite.claiming import IS_SERVED, Claiming
from jobpipe.store.sqlite.counts import HELD, CountChanges, mend_loudly
from jobpipe.store.sqlite.gated import HELD_IN_QUEUE
from jobpipe.store.sqlite.known import Known
from jobpipe.store.sqlite.lanes import Lanes
from jobpipe.store.sqlite.opening import STORES_OWN
from jobpipe.store.sqlite.rows import (
    ASIDE,
    FIRST_IN_LINE,
    JOB_COLUMNS,
    READY_BY_QUEUE,
    READY_IN_LANE,
    as_json,
    fetch,
    transaction,
)
from jobpipe.store.sqlite.settling import Settling
from jobpipe.store.verbs import order
from jobpipe.store.verbs.blocked import FORGET
from jobpipe.store.verbs.blocked import as_json as numbers
from jobpipe.store.verbs.dialect import translated
from jobpipe.store.verbs.difference import changed, ended, ended_attempts, stopped, tags, wait_no_more
from jobpipe.store.verbs.transaction import (
    DELETED,
    DeadNodes,
    Ended,
    LinePlace,
    Removal,
    Standing,
    at_once,
)
from jobpipe.transitions import Stored, follows

_DEAD = """
select node
from (select distinct node from jobs where held = 1) as held left join nodes using (node)
where (lease_until is null or lease_until not between ? and ?) and name is not ?
"""
_HELD_BY = f"select {JOB_COLUMNS} from jobs where held = 1 and jobs.node is ? limit ?"
_SERVED = f"select {JOB_COLUMNS} from jobs where seq = :seq and {IS_SERVED}"
_STANDING = "select id, seq, status from jobs where id in {each ids}"
_BLOCKED = f"select {JOB_COLUMNS} from jobs where seq {{among seqs}}"
_BLOCK = "update jobs set status = 'blocked' where seq = ?"
_HELD = "select seq, claim from jobs where seq = ? and claim = ? and held = 1"
_END_LEASES = """
update nodes
set lost_at = lease_until - coalesce(lease, 0), lease_until = null
where lease_until not between ? and ? and name <> ?
"""

_FAIL = """
update jobs
set status = 'failed',
    finished_at = ?,
    error = ?,
    size = length(payload),
    held = 0
where seq = ?
"""
_ATTEMPT = """
insert or replace into attempts (seq, claim, number, node, started_at, finished_at, outcome, error, due_at)
values (?, ?, ?, (select node from nodes where name = ?), ?, ?, ?, ?, ?)
"""
_TAG = "insert into tags (tag, created_at, seq) values (?, ?, ?)"
_UNTAG = "delete from tags where tag = ?1 and created_at = (select created_at from jobs where seq = ?2) and seq = ?2"
_UNTAG_ALL = "delete from tags where seq = ?"  # reads them all
_DELETE = (
    "delete from jobs where seq = ?",
    "delete from attempts where seq = ?",
)
# What only some jobs have: for all of them in one statement, and only where some job has any.
_DELETE_NOTES = (
    ("select min(seq) from progress", "delete from progress where seq in (select value from json_each(?))"),
    ("select min(seq) from logs", "delete from logs where seq in (select value from json_each(?))"),
    (
        "select min(parent) from children",
        "delete from children where parent in (select value from json_each(?))",
    ),
)
_IN_LANES = f"""
select
    lane.value,
    (select count(*) from {READY_IN_LANE} and queue = :queue and key = lane.value),
    (
        select count(*)
        from jobs indexed by jobs_held_in_lane
        where key is not null and held = 1 and queue = :queue and key = lane.value
    )
from json_each(:keys) as lane
"""
_HELD_IN_LANE = HELD_IN_QUEUE + " and key = ?"
_FIRST_OF_KEY = f"select id from jobs where seq = {FIRST_IN_LINE.format(queue=':queue', key=':key')}"
_SERVED_FROM = """
select kind.value
from nodes, json_each(kinds) as kind
where lease_until is not null
    and (queues is null or exists (select 1 from json_each(nodes.queues) as taken where taken.value = :queue))
"""
# The first ready jobs in order, and how many of them come before one: all that do, where others come behind them.
_AHEAD = """
select count(*) filter (where {which}), count(*)
from (
    select priority, run_at, seq, queue
    from {ready}
    order by priority desc, run_at, seq
    limit :limit
)
where (-priority, run_at, seq) < (-:priority, :run_at, :seq)
"""
_AHEAD_IN_QUEUE = _AHEAD.format(which="true", ready=f"{READY_BY_QUEUE} and queue = :queue and aside = 0")
# The index of those that stand aside has their queue last: among the first of all queues.
_AHEAD_ASIDE = _AHEAD.format(which="queue = :queue", ready=f"{ASIDE} and kind = :kind")
_AHEAD_IN_LANE = f"""
select ahead, ahead
from (
    select (
        select count(*)
        from (
            select priority, run_at, seq
            from {READY_IN_LANE}
                and queue = :queue
                and key = :key
                and kind = served.value
            order by priority desc, run_at, seq
            limit :limit
        )
        where (-priority, run_at, seq) < (-:priority, :run_at, :seq)
    ) as ahead
    from json_each(:kinds) as served
)
"""
_FORGET_QUEUE = (
    "delete from counts where queue = ?",
    "delete from queues where name = ?",
    "delete from lanes where queue = ?",
    "delete from stopped_keys where queue = ?",
)
# Rows of counts in which nothing is left, and rows of queues in which nothing is set.
_FORGET_EMPTY = (
    "delete from counts where (queue, state) in (select queue, state from counts where jobs = 0 and size = 0 limit ?)",
    """
update queues
set gated = 0
where name in (
    select name
    from queues
    where gated = 1
        and lining_up = 0
        and coalesce(max_running, rate_limit, key_max_running, key_rate_limit) is null
        and key_order is null
        and not exists (select 1 from lanes where queue = name)
        and not exists (
            select 1
            from jobs indexed by jobs_held_in_lane
            where jobs.key is not null and jobs.held = 1 and jobs.queue = queues.name
        )
    limit ?
)
""",
    """
delete from queues
where name in (select name from queues where paused = 0 and has_settings = 0 and gated = 0 limit ?)
""",
)
FORGOTTEN = 10_000
"""How many such rows one prune deletes."""


R = TypeVar("R")


class Tables:
    """The tables within a transaction that the caller has begun. Nothing here ever waits."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self.ended, self.stopped, self.closed = list[Ended](), list[int](), list[int]()

    @property
    def _lanes(self) -> Lanes:
        return Lanes(self._db, Known(self._db))

    async def rows(self, sql: str, values: Mapping[str, Any]) -> Sequence[Row]:
        return fetch(self._db, translated(sql, "sqlite"), values)

    def run(self, sql: str, values: Mapping[str, Any]) -> None:
        self._db.execute(translated(sql, "sqlite"), values)

    async def lock(self, ids: Sequence[str]) -> Mapping[str, Stored]:
        found = {job_id: reader.stored(self._db, job_id) for job_id in ids}
        return {job_id: stored for job_id, stored in found.items() if stored is not None}

    async def lock_claims(self, claims: Sequence[tuple[int, int]]) -> frozenset[tuple[int, int]]:
        rows = (self._db.execute(_HELD, claim).fetchone() for claim in claims)
        return frozenset(row for row in rows if row is not None)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        counts = CountChanges()
        Settling(self._db, Known(self._db)).settle(settlements, counts, set(), one_by_one=True)
        counts.write(self._db)
        self.ended += [Ended(one.seq, one.id, one.status.value) for one in settlements]

    async def lock_held(self, nodes: DeadNodes, limit: int) -> Sequence[Stored]:
        sound = (math.nextafter(nodes.now, math.inf), nodes.now + LONGEST_LEASE)
        dead = [row[0] for row in self._db.execute(_DEAD, (*sound, nodes.node))]
        self._db.execute(_END_LEASES, (*sound, nodes.node))
        rows = [row for node in dead for row in fetch(self._db, _HELD_BY, (node, limit))]
        return [stored_from(row) for row in rows[:limit]]

    async def lock_standing(self, ids: Sequence[str]) -> Mapping[str, Standing]:
        rows = await self.rows(_STANDING, {"ids": as_json(ids)})
        return {job_id: Standing(seq, status) for job_id, seq, status in rows}

    async def lock_blocked(self, seqs: Sequence[int]) -> Mapping[int, Stored | None]:
        found = {one.seq: one for one in map(stored_from, await self.rows(_BLOCKED, {"seqs": numbers(seqs)}))}
        return {seq: found.get(seq) for seq in seqs}

    async def twins(self, ids: Sequence[str]) -> Mapping[str, Job]:
        found = {job_id: reader.one(self._db, job_id) for job_id in ids}
        return {job_id: job for job_id, job in found.items() if job is not None}

    async def first_ready(self, claim: ClaimRequest, now: float) -> Stored | None:
        seqs = Claiming(self._db, Known(self._db)).first(claim, now)
        kinds = as_json(claim.kinds)
        rows = [row for seq in seqs for row in fetch(self._db, _SERVED, {"seq": seq, "kinds": kinds})]
        return stored_from(rows[0]) if rows else None

    def save(self, changes: Sequence[tuple[Stored, Stored]]) -> None:
        for before, after in changes:
            follows(before, after)
        counts = CountChanges()
        for before, after in changes:
            self._save(before, after)
            counts.drop(
                before.job.asked.queue, _state(before), 1, before.size if before.job.status in ENDED else 0
            )
            counts.move(after.job.asked.queue, None, _state(after), size=after.size)
        counts.write(self._db)
        self._lanes.saved(changes)
        order.saved(self, changes)
        self.ended += ended(changes)
        self.stopped += stopped(changes)
        if seqs := wait_no_more(changes):
            self.run(FORGET, {"seqs": numbers(seqs)})

    def _save(self, before: Stored, after: Stored) -> None:
        columns = dict(changed(before, after))
        if before.held and not after.held:
            columns["held"] = 0
        if columns:
            assignments = ", ".join(f"{name} = ?" for name in columns)
            values = (*columns.values(), before.seq)
            self._db.execute(f"update jobs set {assignments} where seq = ?", values)
        for attempt in ended_attempts(before, after):
            error = encoded_error(attempt.error)
            times = (attempt.started_at, attempt.finished_at)
            self._db.execute(
                _ATTEMPT,
                (
                    before.seq,
                    attempt.claim,
                    attempt.number,
                    attempt.node,
                    *times,
                    attempt.outcome,
                    error,
                    attempt.due_at,
                ),
            )
        gone, new = tags(before, after)
        for tag in gone:
            self._db.execute(_UNTAG, (tag, before.seq))
        for tag in new:
            self._db.execute(_TAG, (tag, after.job.asked.created_at, before.seq))

    async def add(self, jobs: Sequence[NewJob]) -> Sequence[str]:
        counts = CountChanges()
        known = Known(self._db)
        receipts = Adding(self._db, known, Lanes(self._db, known)).add(Add(jobs), counts, one_by_one=True)
        counts.write(self._db)
        return [job.id for job, receipt in zip(jobs, receipts, strict=True) if receipt is STORED]

    def block(self, jobs: Mapping[int, NewJob]) -> None:
        counts = CountChanges()
        for seq, job in jobs.items():
            self._db.execute(_BLOCK, (seq,))
            counts.move(job.queue, job.status, Status.BLOCKED)
        counts.write(self._db)

    def follow(self, seqs: Sequence[int]) -> None:
        """Whether anybody waits for a job is seen in `waits`."""

    def erase(self, jobs: Sequence[Removal]) -> None:
        counts = CountChanges()
        for job in jobs:
            if job.tags is None:
                self._db.execute(_UNTAG_ALL, (job.seq,))
            for tag in job.tags or ():
                self._db.execute(_UNTAG, (tag, job.seq))
            for sql in _DELETE:
                self._db.execute(sql, (job.seq,))
            counts.drop(job.queue, job.state, 1, job.size)
        seqs = msgspec.json.encode([job.seq for job in jobs]).decode()
        for first, sql in _DELETE_NOTES:
            if self._db.execute(first).get is not None:
                self._db.execute(sql, (seqs,))
        counts.write(self._db)
        self.ended += [Ended(job.seq, job.followed, DELETED) for job in jobs if job.followed is not None]
        if blocked := [job.seq for job in jobs if job.state == Status.BLOCKED]:
            self.run(FORGET, {"seqs": numbers(blocked)})

    async def fail(self, stored: Stored, now: float, words: str) -> None:
        error = encoded_error(JobError("DamagedRow", words))
        self._db.execute(_FAIL, (now, error, stored.seq))
        if stored.followed:
            self.ended.append(Ended(stored.seq, stored.job.id, Status.FAILED.value))
        counts = CountChanges()
        counts.move(stored.job.asked.queue, _state(stored), Status.FAILED, size=len(stored.job.asked.payload))
        counts.write(self._db)
        if stored.held:
            self._lanes.settled([stored.seq])
        order.failed(self, stored)

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        return self._savepoint()

    @asynccontextmanager
    async def _savepoint(self) -> AsyncIterator[None]:
        before = len(self.ended), len(self.stopped), len(self.closed)
        try:
            with transaction(self._db):
                yield
        except BaseException:
            del self.ended[before[0] :], self.stopped[before[1] :], self.closed[before[2] :]
            raise

    def blames(self, error: Exception) -> bool:
        return not isinstance(error, STORES_OWN)

    def tell(self, what: str) -> None:
        """There is no other node."""

    async def queue(self, name: str) -> QueueState | None:
        return reader.queue(self._db, name)

    async def gate(self, queue: str) -> None:
        self._lanes.gate(queue)

    def move_up(self, lanes: Sequence[tuple[str, str]]) -> None:
        self._lanes.move_up(lanes)

    async def mend_lanes(self, after: tuple[str, str], limit: int) -> tuple[str, str]:
        return self._lanes.mend(after, limit)

    async def in_lanes(self, queue: str, keys: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        asked = {"queue": queue, "keys": as_json(keys)}
        return {key: (ready, held) for key, ready, held in fetch(self._db, _IN_LANES, asked)}

    async def held_in(self, queue: str, key: str | None = None) -> int:
        if key is None:
            return int(self._db.execute(HELD_IN_QUEUE, (queue,)).get)
        return int(self._db.execute(_HELD_IN_LANE, (queue, key)).get)

    async def rated_at(self, now: float) -> float:
        return now

    async def first_in_line(self, queue: str, key: str) -> str | None:
        rows = fetch(self._db, _FIRST_OF_KEY, {"queue": queue, "key": key})
        return rows[0][0] if rows else None

    async def served_from(self, queue: str) -> frozenset[str]:
        return frozenset(kind for (kind,) in fetch(self._db, _SERVED_FROM, {"queue": queue}))

    async def ahead(self, place: LinePlace, kinds: frozenset[str], limit: int) -> tuple[int, bool]:
        values = msgspec.structs.asdict(place) | {"kinds": as_json(kinds), "limit": limit}
        parts = [_AHEAD_IN_QUEUE, _AHEAD_ASIDE] if place.key is None else [_AHEAD_IN_LANE]
        rows = [row for sql in parts for row in fetch(self._db, sql, values)]
        jobs = sum(ahead for ahead, _ in rows)
        return min(jobs, limit), jobs < limit and all(looked < limit for _, looked in rows)

    def forget_queue(self, name: str) -> None:
        for sql in _FORGET_QUEUE:
            self._db.execute(sql, (name,))

    def forget_empty(self, *, thoroughly: bool) -> None:
        if thoroughly:
            for sql in _FORGET_EMPTY:
                self._db.execute(sql, (FORGOTTEN,))

    async def mend_counts(self) -> None:
        mend_loudly(self._db)

    async def try_alone(self, what: str) -> bool:  # noqa: ARG002 - there is nobody else
        return True


def carry_out(db: apsw.Connection, verb: Callable[[Tables], Coroutine[Any, Any, R]]) -> R:
    """Carry out a verb in a transaction."""
    with transaction(db):
        return at_once(verb(Tables(db)))


def looked(db: apsw.Connection, verb: Callable[[Tables], Coroutine[Any, Any, R]]) -> R:
    """Carry out a verb that only reads, with any connection: all from one state of the database."""
    with transaction(db):
        return at_once(verb(Tables(db)))


def _state(stored: Stored) -> str:
    """What a job counts as."""
    return HELD if stored.held else stored.job.status.value
