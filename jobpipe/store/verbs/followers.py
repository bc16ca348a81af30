"""What follows the ends of jobs, in the transaction in which they end: those that wait go on, or are cancelled.

Every end is noted first, in `follow_ups`. What follows it is done a step at a time: of what is more than a transaction
should do, or is locked by somebody else, the note is left, and `follow` goes on with it. So no end is forgotten, no
transaction is long, and nothing here ever waits for a lock: exchanges do this too.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from jobpipe.job import Status
from jobpipe.store.base import Changed, Followed
from jobpipe.store.rows import Row
from jobpipe.store.verbs import children, groups
from jobpipe.store.verbs.blocked import FORGET, as_json, carefully
from jobpipe.store.verbs.transaction import Ended, Transaction
from jobpipe.transitions import Stored, forsaken, released

R = TypeVar("R")

MOST = 500
"""How many waiting jobs one transaction releases or cancels, about."""

LEVELS = 20
"""How far one transaction follows from a job to those behind it, and to those behind these."""

NOTES = 100
"""How many noted ends one `follow` takes up."""

_NOTE = """
insert into follow_ups (seq, upto, id, ended)
select
    ends.ended_seq,
    (select max(w.seq) from waits w where w.on_seq = ends.ended_seq),
    ends.id,
    ends.how
from {rows ends: ended_seq bigint, id text, how text}
where exists (select 1 from waits w where w.on_seq = ends.ended_seq)
on conflict (seq, upto) do nothing
"""
_NOTED = """
select seq
from follow_ups
order by seq, upto
limit :limit
{skip locked}
"""
_WAITING = """
select f.seq, f.id, f.ended, w.seq, w.needs_done
from follow_ups f join waits w on w.on_seq = f.seq and w.seq <= f.upto
where f.seq {among seqs}
order by f.seq, f.upto, w.seq
limit :limit
"""
_MET = """
delete from waits
where seq {among seqs}
    and exists (
        select 1
        from follow_ups f
        where f.seq = waits.on_seq
            and waits.seq <= f.upto
            and (f.ended = 'done' or waits.needs_done = 0)
    )
"""
_STILL_WAIT = "select distinct seq from waits where seq {among seqs}"
_SETTLED = """
delete from follow_ups
where seq {among seqs}
    and not exists (
        select 1 from waits w where w.on_seq = follow_ups.seq and w.seq <= follow_ups.upto
    )
"""
_LEFT = "select count(*) from follow_ups where seq {among seqs}"

_WORDS = {
    "failed": "has failed",
    "cancelled": "was cancelled",
    "expired": "has expired",
    "deleted": "was deleted",
}


class Wait(msgspec.Struct, frozen=True):
    """A job waits for one that has ended."""

    ended: Ended
    seq: int
    needs_done: bool

    @property
    def in_vain(self) -> bool:
        """Whether it did not end as needed."""
        return self.needs_done and self.ended.status != Status.DONE


async def carried_out(
    verb: Callable[[Transaction], Coroutine[Any, Any, R]], tx: Transaction, now: float | None
) -> tuple[R, Followed]:
    """Carry out a verb, and what follows the ends of jobs in it; `now` is None for a verb that ends none."""
    result = await verb(tx)
    if not (tx.ended or tx.stopped or tx.closed):
        return result, Followed()
    if now is None:
        raise RuntimeError("a verb has ended jobs, or closed groups, and does not know when")
    return result, await finish(tx, now)


async def finish(tx: Transaction, now: float) -> Followed:
    """Do what follows the ends of jobs in this transaction. To be called before its commit.

    Whatever else is to follow the end of a job belongs here: a further step for each level of ends, as those of groups
    and of children.
    """
    changes, seqs, left = list[Changed](), set[int](), False
    for _ in range(LEVELS):
        if not (tx.ended or tx.stopped or tx.closed) or len(changes) >= MOST:
            break
        if children.note(tx):
            below = await children.step(tx, now, MOST)
            changes += below.changes
            left |= below.more
        level, touched = await _note(tx)
        seqs.update(level)
        if level:
            changes += await _step(tx, level, now, max(MOST - len(changes), 0))
        if touched:
            of_groups = await groups.step(tx, touched, now, MOST)
            changes += of_groups.changes
            left |= of_groups.more
    level, touched = await _note(tx)
    seqs.update(level)
    if touched:
        groups.note(tx, touched)
    left |= children.note(tx) or bool(touched)
    return Followed(changes, more=(bool(seqs) and await _tidied(tx, seqs)) or left)


async def _note(tx: Transaction) -> tuple[Sequence[int], Mapping[int, int]]:
    """Note the ends of jobs in this transaction: of those that others wait for, and of members of groups.

    Returns their numbers, and the numbers of the groups to be looked at, each with that of a member.
    """
    ended, tx.ended = tx.ended, []
    closed, tx.closed = tx.closed, []
    touched: Mapping[int, int] = dict.fromkeys(closed, groups.CLOSED)
    if not ended:
        return [], touched
    ends = [{"ended_seq": one.seq, "id": one.id, "how": one.status} for one in ended]
    tx.run(_NOTE, {"ends": msgspec.json.encode(ends).decode()})
    return [one.seq for one in ended], {**touched, **await groups.mark(tx, ended)}


async def follow(tx: Transaction, now: float) -> Followed:
    """See `jobpipe.store.base.EngineStore.follow`."""
    seqs = sorted({seq for (seq,) in await tx.rows(_NOTED, {"limit": NOTES})})
    touched = await groups.noted(tx, NOTES)
    below = await children.step(tx, now, MOST)
    if not (seqs or touched or below.changes or below.more or tx.stopped):
        return Followed()
    changes = list(await _step(tx, seqs, now, MOST)) if seqs else []
    left = bool(seqs) and await _tidied(tx, seqs)
    of_groups = await groups.step(tx, touched, now, MOST) if touched else Followed()
    further = await finish(tx, now)
    more = left or of_groups.more or below.more or further.more or NOTES in {len(seqs), len(touched)}
    return Followed([*below.changes, *changes, *of_groups.changes, *further.changes], more=more)


async def _step(tx: Transaction, seqs: Sequence[int], now: float, limit: int) -> Sequence[Changed]:
    """Do what follows some noted ends, for so many waits at the most; returns what became of the jobs that waited."""
    waits = list(map(_wait, await tx.rows(_WAITING, {"seqs": as_json(seqs), "limit": limit})))
    if not waits:
        return []

    async def change(seqs: Sequence[int]) -> Sequence[Changed]:
        some = frozenset(seqs)
        return await _changed(tx, [one for one in waits if one.seq in some], now)

    return await carefully(tx, sorted({one.seq for one in waits}), change, now)


async def _changed(tx: Transaction, waits: Sequence[Wait], now: float) -> Sequence[Changed]:
    """Release or cancel those of the jobs that nobody else has locked."""
    locked = await tx.lock_blocked(sorted({one.seq for one in waits}))
    gone = [
        seq for seq, stored in locked.items() if stored is None or stored.job.status is not Status.BLOCKED
    ]
    if gone:
        tx.run(FORGET, {"seqs": as_json(gone)})
    blocked = {seq: one for seq, one in locked.items() if one is not None and seq not in gone}
    pairs = [(one, after) for one, after in _cancelled(waits, blocked, now) if after is not None]
    cancelled = {one.seq for one, _ in pairs}
    pairs += await _released(tx, {seq: one for seq, one in blocked.items() if seq not in cancelled}, now)
    tx.save(pairs)
    return [Changed(after.job.id, after.job.status) for _, after in pairs]


def _wait(row: Row) -> Wait:
    on_seq, on_id, ended, seq, needs_done = row
    return Wait(Ended(on_seq, on_id, ended), seq, bool(needs_done))


def _cancelled(
    waits: Sequence[Wait], blocked: Mapping[int, Stored], now: float
) -> Sequence[tuple[Stored, Stored | None]]:
    """What those become that wait in vain. The first end that was not as needed is the one that is named."""
    in_vain = {one.seq: one.ended for one in reversed(waits) if one.in_vain}
    return [
        (one, forsaken(one, now, _in_words(in_vain[seq].id, in_vain[seq].status)))
        for seq, one in blocked.items()
        if seq in in_vain
    ]


def _in_words(job_id: str, ended: str) -> str:
    """Why a job cannot run that depends on one which has ended so."""
    return f"the job depends on {job_id!r}, which {_WORDS[ended]}"


async def _released(
    tx: Transaction, blocked: Mapping[int, Stored], now: float
) -> list[tuple[Stored, Stored]]:
    """What those become that have nothing left to wait for."""
    if not blocked:
        return []
    values = {"seqs": as_json(list(blocked))}
    tx.run(_MET, values)
    # Those are locked, so whoever else ends a job that they wait for leaves the rest to this, or comes after it.
    still_wait = {seq for (seq,) in await tx.rows(_STILL_WAIT, values)}
    return [
        (one, after)
        for seq, one in blocked.items()
        if seq not in still_wait and (after := released(one, now)) is not None
    ]


async def _tidied(tx: Transaction, seqs: Sequence[int] | set[int]) -> bool:
    """Delete the notes of ends that nobody waits for any more; returns whether any are left."""
    values = {"seqs": as_json(sorted(seqs))}
    tx.run(_SETTLED, values)
    ((left,),) = await tx.rows(_LEFT, values)
    return bool(left)
