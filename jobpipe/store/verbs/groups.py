"""Groups of jobs: how they are stored and shown, and what follows when jobs of them end.

A group has ended when none of its members is open any more: nothing is counted on the way, so nobody waits for a row.
Whoever ends a member marks it, then tries to lock the group. Who has the lock looks, in a new statement, whether a
member is open; who does not get it leaves a note, and the group is looked at again. So the last two, who may end at the
same time and not see one another, cannot both go away without looking.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from jobpipe.job import GroupOutcome, Job, NewJob, State
from jobpipe.store.base import (
    STEP,
    Change,
    Changed,
    Followed,
    GroupReceipt,
    GroupState,
    NewGroup,
    OpenDependencies,
    Receipt,
    Retention,
)
from jobpipe.store.rows import compared
from jobpipe.store.verbs import dependencies, merging
from jobpipe.store.verbs.blocked import as_json, carefully
from jobpipe.store.verbs.transaction import Ended, Overtaken, Transaction
from jobpipe.transitions import Stored, called_back, given_up

_KNOWN = "select on_failure, jobs, callback is not null from groups where id = :id"
_TAKEN = "select id from jobs where id in {each ids}"
_SEQ = "select seq from jobs where id = :id"
_PUT = """
insert into groups (id, callback, on_failure, jobs, created_at)
values (:id, :callback, :on_failure, :jobs, :now)
on conflict (id) do nothing
returning grp
"""
_JOIN = """
insert into members (grp, created_at, seq)
select :grp, created_at, seq
from jobs
where id in {each ids}
returning seq
"""

_MARK = """
update members
set ended = ends.how
from {rows ends: ended_seq bigint, how text}
where members.seq = ends.ended_seq and members.ended is null
returning grp, seq
"""
_LOCK = """
select grp, id, callback, on_failure, jobs
from groups
where grp {among grps} and ended_at is null
order by grp
{skip locked}
"""
_NOT_ENDED = "select grp from groups where grp {among grps} and ended_at is null"
_OPEN = """
select grp
from groups g
where grp {among grps}
    and exists (select 1 from members m where m.grp = g.grp and m.ended is null)
"""
_FAILED = """
select grp
from groups g
where grp {among grps}
    and exists (select 1 from members m where m.grp = g.grp and m.ended <> 'done')
"""
_OUTCOMES = """
select grp, ended, count(*)
from members
where grp {among grps} and ended is not null
group by grp, ended
"""
_END = "update groups set ended_at = :now where grp {among grps}"
_REST = """
select m.seq
from members m join {shown} s on s.seq = m.seq
where m.grp = :grp
    and m.ended is null
    and s.status in ('blocked', 'scheduled', 'queued', 'running', 'retrying')
order by m.seq
limit :limit
"""

_NOTE = """
insert into group_notes (grp, seq)
select grp, seq
from {rows notes: grp bigint, seq bigint}
where true
on conflict (grp, seq) do nothing
"""
_NOTED = """
select grp, seq
from group_notes
order by grp, seq
limit :limit
{skip locked}
"""
_TAKE = """
delete from group_notes
where (grp, seq) in (select grp, seq from {rows notes: grp bigint, seq bigint})
"""

_REJOINED = """
select grp
from groups
where ended_at is null
    and grp in (select grp from members where seq in (select seq from jobs where id in {each ids}))
"""
_REJOIN = """
update members
set ended = null
where seq in (select seq from jobs where id in {each ids}) and grp {among grps}
returning seq
"""

_STATE = """
select g.grp, g.id, g.on_failure, g.jobs, j.id, g.created_at, g.ended_at
from groups g left join jobs j on j.seq = g.callback
where g.id = :id
"""
_COUNTS = """
select coalesce(m.ended, s.status, 'deleted'), count(*)
from members m left join {shown} s on m.ended is null and s.seq = m.seq
where m.grp = :grp
group by 1
"""
_WAITED_FOR = """
select g.grp, g.id
from groups g join jobs j on j.seq = g.callback
where j.id = :id and g.ended_at is null
"""
_FIRST_OPEN = """
select j.id
from members m join jobs j on j.seq = m.seq
where m.grp = :grp and m.ended is null
order by m.seq
limit :limit
"""
_COUNT_OPEN = "select count(*) from members where grp = :grp and ended is null"

_OLD = "select grp from groups where ended_at <= :until order by ended_at limit 10"
_PART = """
delete from members
where seq in (select seq from members where grp {among grps} limit :limit)
"""
_EMPTY = """
delete from groups
where grp {among grps} and not exists (select 1 from members m where m.grp = groups.grp)
"""
_MISSED = """
select m.seq, coalesce(s.status, 'deleted')
from (
    select seq
    from members
    where ended is null
    order by grp, seq
    limit :look
) m left join {shown} s on s.seq = m.seq
where s.seq is null or s.status in ('done', 'failed', 'cancelled', 'expired')
limit :limit
"""
LOOKED = 10 * STEP
"""At how many open members a prune looks, whether one has ended unnoticed."""


class Group(NamedTuple):
    """A group that has not ended, locked."""

    grp: int
    id: str
    callback: int | None
    on_failure: str
    jobs: int


# --- how they are stored ----------------------------------------------------------------------------------------------


async def add(tx: Transaction, new: NewGroup, now: float) -> GroupReceipt:
    """See `jobpipe.store.base.EngineStore.add_group`."""
    if known := await tx.rows(_KNOWN, {"id": new.id}):
        asked = (new.on_failure, len(new.jobs), new.then is not None)
        same = tuple(known[0]) == asked and not await _taken(tx, new.every, also_equal=False)
        return GroupReceipt("existing" if same else "conflict")
    if twice := _named_twice(new.every):
        return GroupReceipt("conflict", twice)
    if taken := await _taken(tx, new.every, also_equal=True):
        conflicts = [
            Receipt("conflict", taken[job.id]) if job.id in taken else Receipt("refused") for job in new.every
        ]
        return GroupReceipt("conflict", conflicts)
    receipts = await dependencies.add(tx, new.every, atomic=True)
    if any(one.verdict != "stored" for one in receipts):
        return GroupReceipt("refused", receipts)
    await _join(tx, new, now)
    return GroupReceipt("stored", receipts)


def _named_twice(jobs: Sequence[NewJob]) -> Sequence[Receipt]:
    """The receipts of jobs of which some have the same id; none where each has its own."""
    if len({job.id for job in jobs}) == len(jobs):
        return ()
    first: dict[str, NewJob] = {}
    return [
        Receipt(
            "refused" if (other := first.setdefault(job.id, job)) is job else "conflict", _as_stored(other)
        )
        for job in jobs
    ]


def _as_stored(new: NewJob) -> Job:
    return Job(new, State(new.status))


async def _taken(tx: Transaction, jobs: Sequence[NewJob], *, also_equal: bool) -> Mapping[str, Job]:
    """The jobs that have the ids of new ones: those that differ, or `also_equal` ones."""
    by_id = {job.id: job for job in jobs}
    found = [job_id for (job_id,) in await tx.rows(_TAKEN, {"ids": _as_json(list(by_id))})]
    twins = await tx.twins(found) if found else {}
    return {
        job_id: twin
        for job_id, twin in twins.items()
        if also_equal or compared(by_id[job_id], twin).verdict == "conflict"
    }


async def _join(tx: Transaction, new: NewGroup, now: float) -> None:
    """Make a group of jobs that are stored in this transaction."""
    callback: int | None = None
    if new.then is not None:
        ((callback,),) = await tx.rows(_SEQ, {"id": new.then.id})
        tx.block({callback: new.then})
    asked = {"id": new.id, "callback": callback, "on_failure": new.on_failure, "jobs": len(new.jobs)}
    made = await tx.rows(_PUT, {**asked, "now": float(now)})
    if not made:
        raise Overtaken("another request stores a group with this id: try again")
    joined = await tx.rows(_JOIN, {"grp": made[0][0], "ids": _as_json([job.id for job in new.jobs])})
    tx.follow(sorted(seq for (seq,) in joined))


async def retry(tx: Transaction, ids: Sequence[str], now: float) -> Sequence[Change]:
    """See `jobpipe.store.base.ControlStore.retry`."""
    await merging.lock_keys_of(tx, ids)
    return await retry_locked(tx, await tx.lock(ids), ids, now)


async def retry_locked(
    tx: Transaction, locked: Mapping[str, Stored], ids: Sequence[str], now: float
) -> Sequence[Change]:
    """The same, with those of the jobs that are there locked before."""
    changes = await dependencies.retry_locked(tx, locked, ids, now)
    members = [one.id for one in changes if one.verdict == "changed" and _is_member(one.job)]
    if members:
        await _rejoin(tx, members)
    return changes


def _is_member(job: Job | None) -> bool:
    return job is not None and job.asked.options.group is not None


async def _rejoin(tx: Transaction, ids: Sequence[str]) -> None:
    """Have members that are retried count again, where their groups have not ended. They are locked."""
    values = {"ids": _as_json(ids)}
    grps = [grp for (grp,) in await tx.rows(_REJOINED, values)]
    if not grps:
        return
    locked = [row[0] for row in await tx.rows(_LOCK, {"grps": as_json(grps)})]
    if len(locked) < len(grps):
        raise Overtaken("another job of the group ends just now: try again")
    again = await tx.rows(_REJOIN, {**values, "grps": as_json(locked)})
    tx.follow(sorted(seq for (seq,) in again))


# --- what follows -----------------------------------------------------------------------------------------------------


async def mark(tx: Transaction, ended: Sequence[Ended]) -> Mapping[int, int]:
    """Mark those of the jobs that are members of groups; returns their groups, each with one of them."""
    ends = _as_json([{"ended_seq": one.seq, "how": one.status} for one in ended])
    return dict(await tx.rows(_MARK, {"ends": ends}))


def note(tx: Transaction, touched: Mapping[int, int]) -> None:
    """Note groups, each with a member that has ended: they are to be looked at again."""
    tx.run(_NOTE, {"notes": _as_json([{"grp": grp, "seq": seq} for grp, seq in sorted(touched.items())])})


async def noted(tx: Transaction, limit: int) -> Mapping[int, int]:
    """Groups that are to be looked at again, each with a member that has ended; they are noted no more."""
    rows = await tx.rows(_NOTED, {"limit": limit})
    if rows:
        tx.run(_TAKE, {"notes": _as_json([{"grp": grp, "seq": seq} for grp, seq in rows])})
    return dict(rows)


async def step(tx: Transaction, touched: Mapping[int, int], now: float, limit: int) -> Followed:
    """Do what follows the ends of members of groups, for so many jobs at the most; what is left is noted."""
    grps = {"grps": as_json(sorted(touched))}
    locked = [Group(*row) for row in await tx.rows(_LOCK, grps)]
    left = {grp for (grp,) in await tx.rows(_NOT_ENDED, grps)} - {one.grp for one in locked}
    # A new statement: it sees whoever had a lock before.
    still_open = {grp for (grp,) in await tx.rows(_OPEN, grps)}
    over = [one for one in locked if one.grp not in still_open]
    changes, missed = await _end(tx, over, now) if over else ([], set())
    left |= missed
    if hasty := [one for one in locked if one.grp in still_open and one.on_failure == "cancel"]:
        more, missed = await _give_up(tx, hasty, now, limit)
        changes += more
        left |= missed
    if left:
        note(tx, {grp: touched[grp] for grp in left})
    return Followed(changes, more=bool(left))


async def _end(tx: Transaction, over: Sequence[Group], now: float) -> tuple[list[Changed], set[int]]:
    """Release the jobs that wait for groups which have ended; also returns the groups where that has to wait."""
    counts: dict[int, dict[str, int]] = {}
    for grp, how, jobs in await tx.rows(_OUTCOMES, {"grps": as_json([one.grp for one in over])}):
        counts.setdefault(grp, {})[how] = jobs
    outcomes = {
        one.callback: GroupOutcome(one.id, one.jobs, **counts.get(one.grp, {}))
        for one in over
        if one.callback is not None
    }
    met = set[int]()

    async def release(seqs: Sequence[int]) -> Sequence[Changed]:
        locked = await tx.lock_blocked(seqs)
        met.update(locked)
        pairs = [
            (stored, after)
            for seq, stored in locked.items()
            if stored is not None and (after := called_back(stored, now, outcomes[seq])) is not None
        ]
        return _saved(tx, pairs)

    changes = list(await carefully(tx, sorted(outcomes), release, now)) if outcomes else []
    done = [one.grp for one in over if one.callback is None or one.callback in met]
    tx.run(_END, {"grps": as_json(done), "now": float(now)})
    return changes, {one.grp for one in over}.difference(done)


async def _give_up(
    tx: Transaction, hasty: Sequence[Group], now: float, limit: int
) -> tuple[list[Changed], set[int]]:
    """Cancel the open members of groups of which one did not succeed; also returns the groups that have more."""
    failed = {grp for (grp,) in await tx.rows(_FAILED, {"grps": as_json([one.grp for one in hasty])})}
    changes, left = list[Changed](), set[int]()
    for one in hasty:
        if one.grp in failed:
            room = max(limit - len(changes), 1)
            rest = [seq for (seq,) in await tx.rows(_REST, {"grp": one.grp, "limit": room})]
            stopped = await _stop(tx, rest, one, now) if rest else []
            changes += stopped
            if len(stopped) < len(rest) or len(rest) == room:
                left.add(one.grp)
    return changes, left


async def _stop(tx: Transaction, seqs: Sequence[int], group: Group, now: float) -> Sequence[Changed]:
    words = f"another job of the group {group.id!r} did not succeed"

    async def stop(some: Sequence[int]) -> Sequence[Changed]:
        locked = await tx.lock_blocked(some)
        pairs = [
            (stored, after)
            for stored in locked.values()
            if stored is not None and (after := given_up(stored, now, words)) is not None
        ]
        return _saved(tx, pairs)

    return await carefully(tx, seqs, stop, now)


def _saved(tx: Transaction, pairs: Sequence[tuple[Stored, Stored]]) -> Sequence[Changed]:
    tx.save(pairs)
    return [Changed(after.job.id, after.job.status) for _, after in pairs]


# --- how they are shown, and forgotten --------------------------------------------------------------------------------


async def state(tx: Transaction, group_id: str) -> GroupState | None:
    """See `jobpipe.store.base.ReadStore.group`."""
    found = await tx.rows(_STATE, {"id": group_id})
    if not found:
        return None
    ((grp, name, on_failure, jobs, callback, created_at, ended_at),) = found
    counts: dict[str, int] = dict(await tx.rows(_COUNTS, {"grp": grp}))
    return GroupState(
        id=name,
        on_failure=on_failure,
        jobs=jobs,
        counts=counts,
        callback=callback,
        created_at=created_at,
        ended_at=ended_at,
    )


async def still_open(tx: Transaction, job_id: str, limit: int) -> OpenDependencies:
    """See `jobpipe.store.base.ReadStore.open_dependencies`."""
    found = await tx.rows(_WAITED_FOR, {"id": job_id})
    if not found:
        return await dependencies.still_open(tx, job_id, limit)
    ((grp, name),) = found
    ids = await tx.rows(_FIRST_OPEN, {"grp": grp, "limit": limit})
    ((count,),) = await tx.rows(_COUNT_OPEN, {"grp": grp})
    return OpenDependencies([one for (one,) in ids], count, name)


async def sweep(tx: Transaction, now: float, retention: Retention) -> None:
    """Forget groups that ended so long ago that all their jobs may be gone; a thousand members at a time.

    Also find ends of members that nobody noticed, of jobs deleted by hand in the database, or damaged.
    """
    old = await tx.rows(_OLD, {"until": now - max(retention.done_age, retention.failed_age)})
    if old:
        grps = {"grps": as_json([grp for (grp,) in old])}
        tx.run(_PART, {**grps, "limit": STEP})
        tx.run(_EMPTY, grps)
    missed = await tx.rows(_MISSED, {"look": LOOKED, "limit": STEP})
    tx.ended += [Ended(seq, "", status) for seq, status in missed]


def _as_json(value: object) -> str:
    return msgspec.json.encode(value).decode()
