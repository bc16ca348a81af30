"""Groups of jobs: how they are stored, closed and shown, and what follows when jobs of them end.

A group has ended when it is closed, as most are from the first, and none of its members is open any more: nothing is
counted on the way, so nobody waits for a row.
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
from jobpipe.store.verbs.joining import join
from jobpipe.store.verbs.transaction import Ended, Overtaken, Transaction
from jobpipe.transitions import Stored, called_back, given_up

_KNOWN = "select on_failure, jobs, callback is not null, open_until - created_at from groups where id = :id"
_TAKEN = "select id from jobs where id in {each ids}"
_SEQ = "select seq from jobs where id = :id"
_PUT = """
insert into groups (id, callback, on_failure, jobs, created_at, open_until)
values (:id, :callback, :on_failure, :jobs, :now, :open_until)
on conflict (id) do nothing
returning grp
"""
_CLOSE = """
update groups
set closed_at = case when open_until < :now then open_until else :now end
where id = :id and closed_at is null and open_until is not null
returning grp
"""

_MARK = """
update members
set ended = ends.how
from {rows ends: ended_seq bigint, how text}
where members.seq = ends.ended_seq and members.ended is null
returning grp, seq
"""
_LOCK = """
select
    grp,
    id,
    callback,
    on_failure,
    jobs,
    closed_at is null and open_until is not null,
    coalesce(closed_at >= open_until, false)
from groups
where grp {among grps} and ended_at is null
order by grp
{skip locked}
"""
_NOT_ENDED = "select grp from groups where grp {among grps} and ended_at is null"
_UNFINISHED = """
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
_SHUT = "update groups set closed_at = :now where grp {among grps} and closed_at is null"

# Before the group can be had alone: as long as jobs are added, it may never be.
_SHUT_FAILED = """
update groups
set closed_at = :now
where grp in (
    select g.grp
    from groups g
    where g.grp {among grps}
        and g.on_failure = 'cancel'
        and g.closed_at is null
        and g.open_until is not null
        and exists (select 1 from members m where m.grp = g.grp and m.ended <> 'done')
    {skip updated}
)
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

# Waits for who ends such a group; what has ended then is left out, since the condition is on the row that is locked.
_REJOINED = """
select grp
from groups
where ended_at is null
    and grp in (select grp from members where seq in (select seq from jobs where id in {each ids}))
order by grp
{share lock}
"""
_REJOIN = """
update members
set ended = null
where seq in (select seq from jobs where id in {each ids}) and grp {among grps}
returning seq
"""

_STATE = """
select g.grp, g.id, g.on_failure, g.jobs, j.id, g.created_at, g.open_until, g.closed_at, g.ended_at
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
select g.grp, g.id, g.closed_at is null and g.open_until is not null
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

_OVERDUE = """
select grp
from groups
where closed_at is null and open_until <= :now
order by open_until
limit 100
{skip updated}
"""
_CLOSE_OVERDUE = "update groups set closed_at = open_until where grp {among grps}"
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

ROUNDED = 0.01
"""Seconds by which the time may differ for which two requests have a group open."""

CLOSED = 0
"""In the place of a member's number: the group is to be looked at since it was closed."""


class Group(NamedTuple):
    """A group that has not ended, locked."""

    grp: int
    id: str
    callback: int | None
    on_failure: str
    jobs: int
    """how many there were when it was stored"""
    is_open: bool
    """whether jobs can still be added"""
    timed_out: bool
    """whether it was open, and nobody closed it in time"""


# --- how they are stored ----------------------------------------------------------------------------------------------


async def add(tx: Transaction, new: NewGroup, now: float) -> GroupReceipt:
    """See `jobpipe.store.base.EngineStore.add_group`."""
    if (known := await _known(tx, new)) is not None:
        return known
    if twice := _named_twice(new.every):
        return GroupReceipt("conflict", twice)
    if taken := await _taken(tx, new.every, also_equal=True):
        # Those of the group itself, where the same request has been stored elsewhere between the two looks.
        if (known := await _known(tx, new)) is not None:
            return known
        conflicts = [
            Receipt("conflict", taken[job.id]) if job.id in taken else Receipt("refused") for job in new.every
        ]
        return GroupReceipt("conflict", conflicts)
    receipts = await dependencies.add(tx, new.every, atomic=True, of_group=new.id)
    if any(one.verdict == "existing" for one in receipts):
        raise Overtaken(
            "another request stores jobs of this group: try again"
        )  # which finds what that has stored
    if any(one.verdict != "stored" for one in receipts):
        return GroupReceipt("refused", receipts)
    await _join(tx, new, now)
    return GroupReceipt("stored", receipts)


async def _known(tx: Transaction, new: NewGroup) -> GroupReceipt | None:
    """What a group comes to whose id is taken; None: it is not."""
    known = await tx.rows(_KNOWN, {"id": new.id})
    if not known:
        return None
    same = _same(new, *known[0]) and not await _taken(tx, new.every, also_equal=False)
    return GroupReceipt("existing" if same else "conflict")


def _same(new: NewGroup, on_failure: str, jobs: int, called_back: bool, open_for: float | None) -> bool:  # noqa: FBT001 - a row
    asked = (new.on_failure, len(new.jobs), new.then is not None, new.open_for is not None)
    if asked != (on_failure, jobs, called_back, open_for is not None):
        return False
    return new.open_for is None or open_for is None or abs(new.open_for - open_for) < ROUNDED


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
    open_until = None if new.open_for is None else round(now + new.open_for, 3)
    made = await tx.rows(_PUT, {**asked, "now": float(now), "open_until": open_until})
    if not made:
        raise Overtaken("another request stores a group with this id: try again")
    if new.jobs:
        await join(tx, {job.id: made[0][0] for job in new.jobs})


async def close(tx: Transaction, group_id: str, now: float) -> None:
    """See `jobpipe.store.base.ControlStore.close_group`.

    It waits for no add: an update goes beside the locks of these. What they add is seen by whoever has the group alone
    after them, as every end has to have it.
    """
    tx.closed += [grp for (grp,) in await tx.rows(_CLOSE, {"id": group_id, "now": float(now)})]


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
    again = await tx.rows(_REJOIN, {**values, "grps": as_json(grps)})
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
    if left:
        tx.run(_SHUT_FAILED, {"grps": as_json(sorted(left)), "now": float(now)})
    # A new statement: it sees whoever had a lock before.
    unfinished = {grp for (grp,) in await tx.rows(_UNFINISHED, grps)}
    failed = await _failed(tx, [one for one in locked if one.is_open or one.grp in unfinished], now)
    over = [one for one in locked if one.grp not in unfinished and (one in failed or not one.is_open)]
    changes, missed = await _end(tx, over, now) if over else ([], set())
    left |= missed
    if hasty := [one for one in failed if one.grp in unfinished]:
        more, missed = await _give_up(tx, hasty, now, limit)
        changes += more
        left |= missed
    if left:
        note(tx, {grp: touched[grp] for grp in left})
    return Followed(changes, more=bool(left))


async def _failed(tx: Transaction, groups: Sequence[Group], now: float) -> Sequence[Group]:
    """Those of the groups that end with the first job which did not succeed; they are closed from now on."""
    hasty = [one for one in groups if one.on_failure == "cancel"]
    if not hasty:
        return []
    failed = {grp for (grp,) in await tx.rows(_FAILED, {"grps": as_json([one.grp for one in hasty])})}
    if shut := [one.grp for one in hasty if one.is_open and one.grp in failed]:
        tx.run(_SHUT, {"grps": as_json(shut), "now": float(now)})
    return [one for one in hasty if one.grp in failed]


async def _end(tx: Transaction, over: Sequence[Group], now: float) -> tuple[list[Changed], set[int]]:
    """Release the jobs that wait for groups which have ended; also returns the groups where that has to wait."""
    counts: dict[int, dict[str, int]] = {}
    for grp, how, jobs in await tx.rows(_OUTCOMES, {"grps": as_json([one.grp for one in over])}):
        counts.setdefault(grp, {})[how] = jobs
    outcomes = {
        one.callback: _outcome(one, counts.get(one.grp, {})) for one in over if one.callback is not None
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


def _outcome(group: Group, counts: Mapping[str, int]) -> GroupOutcome:
    jobs = max(group.jobs, sum(counts.values()))
    return GroupOutcome(group.id, jobs, **counts, timed_out=bool(group.timed_out))


async def _give_up(
    tx: Transaction, failed: Sequence[Group], now: float, limit: int
) -> tuple[list[Changed], set[int]]:
    """Cancel the open members of groups of which one did not succeed; also returns the groups that have more."""
    changes, left = list[Changed](), set[int]()
    for one in failed:
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
    ((grp, name, on_failure, jobs, callback, created_at, open_until, closed_at, ended_at),) = found
    counts: dict[str, int] = dict(await tx.rows(_COUNTS, {"grp": grp}))
    return GroupState(
        id=name,
        on_failure=on_failure,
        jobs=max(jobs, sum(counts.values())),
        counts=counts,
        callback=callback,
        created_at=created_at,
        open_until=open_until,
        closed_at=created_at if open_until is None else closed_at,
        ended_at=ended_at,
    )


async def still_open(tx: Transaction, job_id: str, limit: int) -> OpenDependencies:
    """See `jobpipe.store.base.ReadStore.open_dependencies`."""
    found = await tx.rows(_WAITED_FOR, {"id": job_id})
    if not found:
        return await dependencies.still_open(tx, job_id, limit)
    ((grp, name, is_open),) = found
    ids = await tx.rows(_FIRST_OPEN, {"grp": grp, "limit": limit})
    ((count,),) = await tx.rows(_COUNT_OPEN, {"grp": grp})
    return OpenDependencies([one for (one,) in ids], count, name, bool(is_open))


async def sweep(tx: Transaction, now: float, retention: Retention) -> None:
    """Forget groups that ended so long ago that all their jobs may be gone; a thousand members at a time.

    Also close open ones whose time is over, and find ends of members that nobody noticed, of jobs deleted by hand in
    the database, or damaged.
    """
    old = await tx.rows(_OLD, {"until": now - max(retention.done_age, retention.failed_age)})
    if old:
        grps = {"grps": as_json([grp for (grp,) in old])}
        tx.run(_PART, {**grps, "limit": STEP})
        tx.run(_EMPTY, grps)
    if overdue := [grp for (grp,) in await tx.rows(_OVERDUE, {"now": float(now)})]:
        tx.run(_CLOSE_OVERDUE, {"grps": as_json(overdue)})
        tx.closed += overdue
    missed = await tx.rows(_MISSED, {"look": LOOKED, "limit": STEP})
    tx.ended += [Ended(seq, "", status) for seq, status in missed]


def _as_json(value: object) -> str:
    return msgspec.json.encode(value).decode()
