"""The tables of PostgreSQL, for the verbs: see `jobpipe.store.verbs.transaction.Transaction`.

A job stands in two rows: what was asked of it in `jobs`; how it stands in `live`, or once it has ended in `ended`. Rows
are locked in one order: first those in `live`, then those in `jobs`, each by seq; then those of the counts. Whoever
changes a job that has ended locks its row in `jobs`. An exchange keeps to the order within each statement that starts
or settles. Where it does both, it may be in a deadlock with a verb that locks several jobs: whoever has waited long
enough gives up first. What follows the end of a job waits for no lock, and a job that is to depend on others waits for
none while it holds one.
"""

import functools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import msgspec

from jobpipe.job import ENDED, Job, JobError, NewJob, Status
from jobpipe.store.base import LONGEST_LEASE, OTHERS, Add, ClaimRequest, QueueState, Settlement
from jobpipe.store.postgres import reader
from jobpipe.store.postgres.adding import Adding
from jobpipe.store.postgres.address import Leases
from jobpipe.store.postgres.arrays import binaries, integers, texts
from jobpipe.store.postgres.claiming import HEAD, HEAD_OF_OTHERS, HEAD_OF_QUEUE
from jobpipe.store.postgres.counts import CountChanges, fold, forget_empty, mend_loudly
from jobpipe.store.postgres.exchange import CLOCK
from jobpipe.store.postgres.failures import ENTRYS_OWN, Locked
from jobpipe.store.postgres.lanes import (
    AHEAD_IN_LANE,
    GATE,
    HEAD_IN_LANES,
    HEAD_IN_LANES_OF_OTHERS,
    HEAD_IN_LANES_OF_QUEUE,
    HELD_IN,
    HELD_IN_LANE,
    IN_LANES,
    LANE_KEY,
    MEND,
    RATED_AT,
    TOLD,
    move_up,
    tell,
)
from jobpipe.store.postgres.notifications import CANCEL, ended_words, notify
from jobpipe.store.postgres.reader import JOB_COLUMNS
from jobpipe.store.postgres.session import Row, Session, Values
from jobpipe.store.postgres.settling import Settling, lock_claims
from jobpipe.store.rows import encoded_error, stored_from
from jobpipe.store.verbs import order
from jobpipe.store.verbs.blocked import FORGET, as_json
from jobpipe.store.verbs.dialect import translated
from jobpipe.store.verbs.difference import changed, ended, ended_attempts, stopped, tags, wait_no_more
from jobpipe.store.verbs.transaction import (
    DELETED,
    READY,
    DeadNodes,
    Ended,
    LinePlace,
    Overtaken,
    Removal,
    Standing,
)
from jobpipe.transitions import Stored, expired, follows

_LOCK_LIVE = """
select l.seq
from live l join jobs j on j.seq = l.seq
where j.id = any(%(ids)s)
order by l.seq
for update of l
"""
_LOCK_JOBS = """
select seq
from jobs
where id = any(%(ids)s)
order by seq
for no key update
"""

# Locks the rows in "live" that nobody else has locked; tells of each whether it is locked by this.
_LOCK_STANDING = """
with wanted as materialized (
    select l.seq
    from live l join jobs j on j.seq = l.seq
    where j.id = any(%(ids)s)
),
free as materialized (
    select l.seq
    from live l
    where l.seq = any (array(select seq from wanted))
    for no key update of l skip locked
)
select w.seq, f.seq is not null
from wanted w left join free f on f.seq = w.seq
order by w.seq
"""
_LOCK_ONE = "select seq from live where seq = %(seq)s for no key update"
_STANDING = """
select j.id, j.seq, coalesce(l.status, e.status, 'cancelled'), l.seq is not null
from jobs j left join live l on l.seq = j.seq left join ended e on e.seq = j.seq
where j.id = any(%(ids)s)
"""
ROUNDS = 20
"""How often rows are waited for, one at a time, that are to be locked together."""

_SKIP_LOCKED = """
select l.seq
from live l join jobs j on j.seq = l.seq
where {which}
for update of l skip locked
"""
_LOCK_BLOCKED = _SKIP_LOCKED.format(which="l.seq = any(%(seqs)s)")
_LOCK_OVERDUE = _SKIP_LOCKED.format(
    which="""l.expires_at is not null and l.node is null and l.expires_at <= %(now)s
    and (l.followed or names_deadline(j.options))
order by l.expires_at
limit %(limit)s"""
)
_LIVING = "select seq from live where seq = any(%(seqs)s)"
_BLOCK = "update live set status = 'blocked' where seq = any(%(seqs)s)"
_FOLLOW = "update live set followed = true where seq = any(%(seqs)s) and not followed"

# A node whose row is locked is at work just now: it is not dead.
_END_LEASES = """
update nodes
set lost_at = lease_until - coalesce(lease, 0), lease_until = null, idle = false
where node in (
    select node
    from nodes
    where (lease_until <= {clock} or lease_until > {clock} + {longest}) and name <> %(node)s
    for update skip locked
)
"""
_END_LEASES_BY = {
    "database": _END_LEASES.format(clock=CLOCK, longest=LONGEST_LEASE),
    "caller": _END_LEASES.format(clock="%(now)s", longest=LONGEST_LEASE),
}
# Locked first, then read: a start that is committed between the two would be missed by one statement for both.
_LOCK_HELD = """
select l.seq
from live l
left join nodes n on n.node = l.node
join jobs j on j.seq = l.seq
where l.node is not null and (n.node is null or (n.lease_until is null and n.name <> %(node)s))
order by l.seq
limit %(limit)s
for update of l skip locked
"""
# A damaged database may have rows without a job, and nobody can run them.
_DROP_LOST = """
delete from live
where seq in (
    select l.seq
    from live l left join nodes n on n.node = l.node
    where l.node is not null
        and (n.node is null or (n.lease_until is null and n.name <> %(node)s))
        and not exists (select from jobs j where j.seq = l.seq)
    for update of l skip locked
)
"""
_BY_SEQ = f"select {JOB_COLUMNS} from shown where seq = any(%(seqs)s) order by seq"

_END = f"""
with gone as (
    delete from live
    where seq = %(seq)s
    returning node, queue, key
),
{TOLD.format(ready="false", those="gone", which="node is not null")}
insert into ended (
    seq, status, kind, queue, created_at, run_at, attempt,
    claim, node, rescued, started_at, finished_at, size, error, fingerprint
)
select
    j.seq, %(status)s, j.kind, j.queue, j.created_at, %(run_at)s, %(attempt)s,
    %(claim)s, g.node, %(rescued)s, %(started_at)s, %(finished_at)s, %(size)s, %(error)s, %(fingerprint)s
from gone g cross join jobs j
where j.seq = %(seq)s
"""
# Only a damaged job that has ended is in "live" already.
_REVIVE = f"""
with gone as (
    delete from ended
    where seq = %(seq)s
),
keyed as (
    select jobs.*, {LANE_KEY.format(asked="%(key)s", queue="queue")} as key
    from jobs
    where seq = %(seq)s
),
alive as (
    insert into live (
        seq, kind, queue, key, status, priority, run_at,
        created_at, expires_at, attempt, claim, rescued, error
    )
    select
        seq, case when key is not null then kind end, queue, key, %(status)s, priority, %(run_at)s,
        created_at, expires_at, %(attempt)s, %(claim)s, %(rescued)s, %(error)s
    from keyed
    on conflict (seq) do update set
    queue = excluded.queue,
    kind = excluded.kind,
    key = excluded.key,
    status = excluded.status,
    priority = excluded.priority,
    run_at = excluded.run_at,
    created_at = excluded.created_at,
    expires_at = excluded.expires_at,
    attempt = excluded.attempt,
    node = null,
    token = null,
    started_at = null,
    error = excluded.error
    returning queue, key, status
),
{TOLD.format(ready="true", those="alive", which="status = 'queued'")}
select 1
"""
# A job that changes where nobody may run it meanwhile is ready then, or held no more.
_UPDATE_LIVE = f"""
with changed as (
    update live
    set {{assignments}}
    where seq = %(seq)s
    returning queue, key, status, node
),
{TOLD.format(ready="status = 'queued'", those="changed", which="node is null")}
select 1
"""
# Behind the change of its queue or its key.
_STAND = f"""
with changed as (
    update live l
    set kind = case when k.key is not null then j.kind end,
        key = k.key
    from jobs j cross join lateral (
        select {LANE_KEY.format(asked="%(key)s", queue="j.queue")} as key
    ) k
    where l.seq = %(seq)s and j.seq = %(seq)s and l.node is null
    returning l.queue, l.key, l.status
),
{TOLD.format(ready="true", those="changed", which="status = 'queued'")}
select 1
"""
_UPDATE_JOBS = "update jobs set {assignments} where seq = %(seq)s"

_LIVE = frozenset(
    (
        "queue",
        "status",
        "priority",
        "run_at",
        "attempt",
        "claim",
        "started_at",
        "expires_at",
        "error",
        "rescued",
    )
)
"""Columns of `live` that change."""

_FAIL = """
insert into ended (
    seq, status, kind, queue, created_at, run_at, attempt,
    claim, rescued, finished_at, size, error
)
select
    seq, 'failed', kind, queue, created_at, run_at, %(attempt)s,
    %(claim)s, %(rescued)s, %(now)s, length(payload), %(error)s
from jobs
where seq = any(%(seqs)s)
"""

_ASKED = frozenset(
    ("kind", "queue", "priority", "max_retries", "expires_at", "options", "payload", "original")
)
"""Columns of `jobs` that change."""

_RELEASED = {"node": None, "token": None}
"""What a row in `live` has that nobody holds."""

_EDITED = {"edited": True}
"""What a row in `live` has whose row in `jobs` has changed.

A claim that joins the two may have begun before the change: it sees the lock's row as it is now, the other one as it
was.
"""

_ATTEMPT = """
insert into attempts (seq, claim, number, node, started_at, finished_at, outcome, error, due_at)
values (
    %(seq)s, %(claim)s, %(number)s, (select node from nodes where name = %(node)s),
    %(started_at)s, %(finished_at)s, %(outcome)s, %(error)s, %(due_at)s
)
on conflict do nothing
"""
_TAG = """
insert into tags (tag, created_at, seq)
values (%(tag)s, %(created_at)s, %(seq)s)
on conflict do nothing
"""
_UNTAG = """
delete from tags t
using unnest(%(tags)s, %(seqs)s) as v (tag, seq) join jobs j on j.seq = v.seq
where t.tag = v.tag and t.created_at = j.created_at and t.seq = v.seq
"""
_UNTAG_ALL = "delete from tags where seq = any(%(seqs)s)"  # reads them all
_LEAVE = (
    "delete from live where seq = any(%(seqs)s)",
    "delete from ended where seq = any(%(seqs)s)",
)
_DELETE = (
    *_LEAVE,
    "delete from jobs where seq = any(%(seqs)s)",
    "delete from attempts where seq = any(%(seqs)s)",
    "delete from progress where seq = any(%(seqs)s)",
    "delete from logs where seq = any(%(seqs)s)",
    "delete from children where parent = any(%(seqs)s)",
)
# Locked and summed once more: a job may have come since the look. One that comes later is counted in a row of its own.
_FORGET_COUNTS = """
with locked as (
    select state, jobs, size
    from counts
    where queue = %(queue)s
    order by state, slot
    for update
)
delete from counts
where queue = %(queue)s
    and not exists (select from locked group by state having sum(jobs) <> 0 or sum(size) <> 0)
"""
_HEADS = {True: (HEAD_OF_OTHERS, HEAD_IN_LANES_OF_OTHERS), False: (HEAD_OF_QUEUE, HEAD_IN_LANES_OF_QUEUE)}
"""The first ready job that stands in no lane, and the first of one: of all others, or of a named queue."""

_FORGET_QUEUE = (
    "delete from queues where name = %(queue)s",
    "delete from lanes where queue = %(queue)s",
    "delete from lane_news where queue = %(queue)s",
    "delete from stopped_keys where queue = %(queue)s",
)
_FIRST_OF_KEY = "select j.id from first_in_line(%(queue)s, %(key)s) f join jobs j on j.seq = f.seq"
_ALONE = "select pg_try_advisory_xact_lock(hashtextextended(%(name)s, 1))"


class Tables:
    """The tables within the transaction of a session, whose counts go into a slot of this writer's own."""

    def __init__(self, session: Session, slot: int, leases: Leases, channel: str) -> None:
        self._session, self._slot, self._leases, self._channel = session, slot, leases, channel
        self.ended, self.stopped, self.closed = list[Ended](), list[int](), list[int]()

    async def rows(self, sql: str, values: Mapping[str, Any]) -> Sequence[Row]:
        return await self._session.rows(translated(sql, "postgres"), values)

    def run(self, sql: str, values: Mapping[str, Any]) -> None:
        self._session.run(translated(sql, "postgres"), values)

    async def lock(self, ids: Sequence[str]) -> Mapping[str, Stored]:
        names = [job_id for job_id in ids if "\0" not in job_id]
        # One round trip: each statement sees what those before it have waited for.
        values = {"ids": texts(names)}
        live, _ = self._session.run(_LOCK_LIVE, values), self._session.run(_LOCK_JOBS, values)
        found = await reader.stored(self._session, names)
        locked = {seq for (seq,) in live.rows()}
        if not all(one.job.status in ENDED or one.seq in locked for one in found.values()):
            # Somebody retried one between the two locks. Its row in "live" is not for whoever holds rows in "jobs".
            raise Overtaken("other requests keep retrying and deleting this job: try again")
        return found

    async def lock_claims(self, claims: Sequence[tuple[int, int]]) -> frozenset[tuple[int, int]]:
        return await lock_claims(self._session, claims)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        settling = Settling(settlements, self._slot, followed=True)
        settling.send(self._session)
        await self._session.answered()
        settling.judge()
        self.ended += settling.ended
        notify(self._session, self._channel, ended_words(settling.watched))

    async def lock_held(self, nodes: DeadNodes, limit: int) -> Sequence[Stored]:
        values = {"node": nodes.node, "now": float(nodes.now), "limit": limit}
        self._session.run(_END_LEASES_BY[self._leases], values)
        self._session.run(_DROP_LOST, values)
        return await self._locked(_LOCK_HELD, values)

    async def lock_standing(self, ids: Sequence[str]) -> Mapping[str, Standing]:
        """Where a row is locked by somebody else, all are let go, that one is waited for, and kept for the next try."""
        values = {"ids": texts([job_id for job_id in ids if "\0" not in job_id])}
        self._session.run("savepoint part", prepare=False)
        for _ in range(ROUNDS):
            wanted: dict[int, bool] = dict(await self._session.rows(_LOCK_STANDING, values))
            if missing := [seq for seq, locked in wanted.items() if not locked]:
                self._session.run("rollback to savepoint part", prepare=False)
                await self._session.row(_LOCK_ONE, {"seq": missing[0]})
                continue
            # A new statement: it sees whoever has ended before its row was locked; and who came or was retried since
            # the others were.
            rows = await self._session.rows(_STANDING, values)
            if all(seq in wanted for _, seq, _, lives in rows if lives):
                return {job_id: Standing(seq, status) for job_id, seq, status, _ in rows}
        raise Locked("other requests keep changing the jobs that this one depends on: try again")

    async def lock_blocked(self, seqs: Sequence[int]) -> Mapping[int, Stored | None]:
        values = {"seqs": integers(seqs)}
        found = {one.seq: one for one in await self._locked(_LOCK_BLOCKED, values)}
        missing = [seq for seq in seqs if seq not in found]
        if not missing:
            return found
        living = {seq for (seq,) in await self._session.rows(_LIVING, {"seqs": integers(missing)})}
        return {**found, **{seq: None for seq in missing if seq not in living}}

    async def _locked(self, sql: str, values: Values) -> Sequence[Stored]:
        """Lock jobs, then read them in a new statement."""
        if not (locked := await self._session.rows(sql, values)):
            return []
        seqs = {"seqs": integers([seq for (seq,) in locked])}
        return [stored_from(row) for row in await self._session.rows(_BY_SEQ, seqs)]

    async def expire_with_care(self, now: float, limit: int) -> Sequence[Stored]:
        """Expire jobs that are past their time, and that others wait for or that have a deadline.

        At most so many; returns what they become. Passes over those that somebody else has locked.
        """
        overdue = await self._locked(_LOCK_OVERDUE, {"now": float(now), "limit": limit})
        pairs = [(one, after) for one in overdue if (after := expired(one, now)) is not None]
        self.save(pairs)
        return [after for _, after in pairs]

    async def twins(self, ids: Sequence[str]) -> Mapping[str, Job]:
        return await reader.several(self._session, ids)

    async def first_ready(self, claim: ClaimRequest, now: float) -> Stored | None:
        values = {"now": float(now), "kinds": texts(sorted(claim.kinds))}
        named = {"queues": texts([share.queue for share in claim.queues])}
        heads = [(_HEADS[share.queue == OTHERS], {**named, "name": share.queue}) for share in claim.queues]
        for (head, in_lanes), of_queue in heads or [((HEAD, HEAD_IN_LANES), {})]:
            found = [self._session.run(sql, {**values, **of_queue}) for sql in (head, in_lanes)]
            await self._session.answered()
            # In the order of the claim, which goes by "live".
            if places := sorted(place for one in found for place in one.rows()):
                rows = await self._session.rows(_BY_SEQ, {"seqs": integers([places[0][-1]])})
                return stored_from(rows[0]) if rows else None
        return None

    def save(self, changes: Sequence[tuple[Stored, Stored]]) -> None:
        for before, after in changes:
            follows(before, after)
        counts = CountChanges(self._slot)
        for before, after in changes:
            self._write(before, after)
            self._write_beside(before, after)
            size = before.size if before.job.status in ENDED else 0
            if not before.held:
                counts.drop(before.job.asked.queue, before.job.status, 1, size)
            if not after.held:
                counts.move(after.job.asked.queue, None, after.job.status, size=after.size)
        counts.write(self._session)
        order.saved(self, changes)
        self._tell(changes)
        self.ended += ended(changes)
        self.stopped += stopped(changes)
        if seqs := wait_no_more(changes):
            self.run(FORGET, {"seqs": as_json(seqs)})

    def _write(self, before: Stored, after: Stored) -> None:
        columns = changed(before, after)
        lived, lives = before.job.status not in ENDED, after.job.status not in ENDED
        if lived and not lives:
            self._end(after, columns)
        elif lives and not lived:
            self._revive(after, columns)
        else:
            asked = _asked(columns)
            live = {name: value for name, value in columns.items() if name in _LIVE}
            live |= _RELEASED if before.held and not after.held else {}
            live |= _EDITED if asked else {}
            self._update(_UPDATE_LIVE, before.seq, live)
            self._update(_UPDATE_JOBS, before.seq, asked)
            one, other = before.job.asked, after.job.asked
            if lives and (one.queue, one.options.key) != (other.queue, other.options.key):
                self._session.run(_STAND, {"seq": before.seq, "key": other.options.key})

    def _update(self, sql: str, seq: int, columns: Mapping[str, Any]) -> None:
        if columns:
            self._session.run(_assigning(sql, tuple(columns)), {**columns, "seq": seq})

    def _end(self, after: Stored, columns: Mapping[str, Any]) -> None:
        """Put a row into `ended` for what stood in `live`."""
        self._update(_UPDATE_JOBS, after.seq, _asked(columns))
        state = after.job.state
        ends = {"finished_at": state.finished_at, "size": after.size, "fingerprint": state.fingerprint}
        self._session.run(_END, {**_standing(after), **ends})

    def _revive(self, after: Stored, columns: Mapping[str, Any]) -> None:
        """Put a row into `live` for a job that had ended."""
        self._update(_UPDATE_JOBS, after.seq, _asked(columns))
        self._session.run(_REVIVE, {**_standing(after), "key": after.job.asked.options.key})

    def _write_beside(self, before: Stored, after: Stored) -> None:
        """Write the rows that belong to a job: its attempts and tags."""
        for attempt in ended_attempts(before, after):
            values = {
                "seq": before.seq,
                "claim": attempt.claim,
                "number": attempt.number,
                "node": attempt.node,
                "started_at": attempt.started_at,
                "finished_at": attempt.finished_at,
                "outcome": str(attempt.outcome),
                "error": encoded_error(attempt.error),
                "due_at": attempt.due_at,
            }
            self._session.run(_ATTEMPT, values)
        gone, new = tags(before, after)
        if gone:
            seqs = integers([before.seq] * len(gone))
            self._session.run(_UNTAG, {"tags": binaries([tag.encode() for tag in gone]), "seqs": seqs})
        for tag in new:
            values = {"tag": tag.encode(), "created_at": float(after.job.asked.created_at), "seq": before.seq}
            self._session.run(_TAG, values)

    def _tell(self, changes: Sequence[tuple[Stored, Stored]]) -> None:
        """Notify other nodes of what concerns them."""
        statuses = {after.job.status for _, after in changes}
        if Status.CANCELLING in statuses:
            self.tell(CANCEL)
        if Status.QUEUED in statuses:
            self.tell(READY)
        ended = [one.job.id for one, other in changes if one.watched and other.job.status in ENDED]
        notify(self._session, self._channel, ended_words(ended))

    async def add(self, jobs: Sequence[NewJob]) -> Sequence[str]:
        adding = Adding([Add(jobs)], self._slot)
        adding.send(self._session)
        await self._session.answered()
        if any(job.status is Status.QUEUED for job in adding.stored):
            self.tell(READY)
        return [job.id for job in adding.stored]

    def block(self, jobs: Mapping[int, NewJob]) -> None:
        if not jobs:
            return
        self._session.run(_BLOCK, {"seqs": integers(list(jobs))})
        counts = CountChanges(self._slot)
        for job in jobs.values():
            counts.move(job.queue, job.status, Status.BLOCKED)
        counts.write(self._session)

    def follow(self, seqs: Sequence[int]) -> None:
        self._session.run(_FOLLOW, {"seqs": integers(seqs)})

    def erase(self, jobs: Sequence[Removal]) -> None:
        if not jobs:
            return
        if unreadable := [job.seq for job in jobs if job.tags is None]:
            self._session.run(_UNTAG_ALL, {"seqs": integers(unreadable)})
        pairs = [(tag.encode(), job.seq) for job in jobs for tag in job.tags or ()]
        if pairs:
            tags_of_all, seqs = zip(*pairs, strict=True)
            self._session.run(_UNTAG, {"tags": binaries(tags_of_all), "seqs": integers(seqs)})
        values = {"seqs": integers([job.seq for job in jobs])}
        for sql in _DELETE:
            self._session.run(sql, values)
        counts = CountChanges(self._slot)
        for job in jobs:
            counts.drop(job.queue, job.state, 1, job.size)
        counts.write(self._session)
        self.ended += [Ended(job.seq, job.followed, DELETED) for job in jobs if job.followed is not None]
        if blocked := [job.seq for job in jobs if job.state == Status.BLOCKED]:
            self.run(FORGET, {"seqs": as_json(blocked)})
        watched = [job.watched for job in jobs if job.watched is not None]
        notify(self._session, self._channel, ended_words(watched))

    async def fail(self, stored: Stored, now: float, words: str) -> None:
        """The job leaves `live` even where its end cannot be written."""
        seqs = {"seqs": integers([stored.seq])}
        tell(self._session, [stored.seq])
        for sql in _LEAVE:
            self._session.run(sql, seqs)
        values = {"now": float(now), "error": encoded_error(JobError("DamagedRow", words))}
        with suppress(*ENTRYS_OWN):
            async with self._session.savepoint():
                self._session.run(_FAIL, {**_standing(stored), **values, **seqs})
        counts = CountChanges(self._slot)
        before = None if stored.held else stored.job.status
        counts.move(stored.job.asked.queue, before, Status.FAILED, size=len(stored.job.asked.payload))
        counts.write(self._session)
        if stored.followed:
            self.ended.append(Ended(stored.seq, stored.job.id, Status.FAILED.value))
        if stored.watched:
            notify(self._session, self._channel, ended_words([stored.job.id]))
        order.failed(self, stored)

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        return self._savepoint()

    @asynccontextmanager
    async def _savepoint(self) -> AsyncIterator[None]:
        before = len(self.ended), len(self.stopped), len(self.closed)
        try:
            async with self._session.savepoint():
                yield
        except BaseException:
            del self.ended[before[0] :], self.stopped[before[1] :], self.closed[before[2] :]
            raise

    def blames(self, error: Exception) -> bool:
        return isinstance(error, ENTRYS_OWN)

    def tell(self, what: str) -> None:
        notify(self._session, self._channel, [what])

    async def queue(self, name: str) -> QueueState | None:
        return await reader.queue(self._session, name)

    async def gate(self, queue: str) -> None:
        for sql in GATE:
            self._session.run(sql, {"queue": queue})

    def move_up(self, lanes: Sequence[tuple[str, str]]) -> None:
        if lanes:
            move_up(self._session, lanes)
            self.tell(READY)

    async def mend_lanes(self, after: tuple[str, str], limit: int) -> tuple[str, str]:
        queue, key = after
        row = await self._session.row(MEND, {"queue": queue, "key": key, "limit": limit})
        return (row[0], row[1]) if row and row[2] == limit else ("", "")

    async def in_lanes(self, queue: str, keys: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        rows = await self._session.rows(IN_LANES, {"queue": queue, "keys": texts(keys)})
        return {key: (waiting, running) for key, waiting, running in rows}

    async def held_in(self, queue: str, key: str | None = None) -> int:
        sql = HELD_IN if key is None else HELD_IN_LANE
        row = await self._session.row(sql, {"queue": queue, "key": key})
        return int(row[0]) if row else 0

    async def rated_at(self, now: float) -> float:
        row = await self._session.row(RATED_AT[self._leases], {"now": float(now)})
        return float(row[0]) if row else now

    async def first_in_line(self, queue: str, key: str) -> str | None:
        rows = await self._session.rows(_FIRST_OF_KEY, {"queue": queue, "key": key})
        return rows[0][0] if rows else None

    async def served_from(self, queue: str) -> frozenset[str]:
        rows = await self._session.rows(reader.SERVED_FROM, {"queue": queue})
        return frozenset(kind for (kind,) in rows)

    async def ahead(self, place: LinePlace, kinds: frozenset[str], limit: int) -> tuple[int, bool]:
        values = msgspec.structs.asdict(place) | {"kinds": texts(sorted(kinds)), "limit": limit}
        parts = reader.AHEAD if place.key is None else (AHEAD_IN_LANE,)
        counts = [count for sql in parts for (count,) in await self._session.rows(sql, values)]
        jobs = sum(counts)
        return min(jobs, limit), jobs < limit

    def forget_queue(self, name: str) -> None:
        self._session.run(_FORGET_COUNTS, {"queue": name})
        for sql in _FORGET_QUEUE:
            self._session.run(sql, {"queue": name})

    def forget_empty(self, *, thoroughly: bool) -> None:
        fold(self._session, self._slot, all_slots=thoroughly)
        if thoroughly:
            forget_empty(self._session)

    async def mend_counts(self) -> None:
        await mend_loudly(self._session)

    async def try_alone(self, what: str) -> bool:
        row = await self._session.row(_ALONE, {"name": f"{self._channel} {what}"})
        return bool(row and row[0])


def _standing(stored: Stored) -> dict[str, Any]:
    """How a job stands, as `live` and `ended` have it."""
    job = stored.job
    return {
        "seq": stored.seq,
        "status": job.status.value,
        "run_at": job.asked.run_at,
        "attempt": max(job.state.attempt, 0),
        "claim": job.state.claim,
        "rescued": stored.rescued,
        "started_at": job.state.started_at,
        "error": encoded_error(job.state.error),
    }


def _asked(columns: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in columns.items() if name in _ASKED}


@functools.cache
def _assigning(sql: str, columns: tuple[str, ...]) -> str:
    """A statement that sets these columns: one text, which is prepared once, however often it is run."""
    return sql.format(assignments=",\n    ".join(f"{name} = %({name})s" for name in columns))
