"""Jobs that come of other jobs, and are cancelled with them: down the tree, a step at a time."""

from collections.abc import Sequence
from typing import Any

import msgspec

from jobpipe.job import ENDED, NewJob
from jobpipe.store.base import Changed, Followed
from jobpipe.store.verbs.blocked import as_json, carefully
from jobpipe.store.verbs.transaction import Transaction
from jobpipe.transitions import cancelled

NOTES = 100
"""How many jobs' children one step looks for."""

_JOIN = """
insert into children (parent, seq)
select p.seq, j.seq
from {rows kin: parent text, child text}
    join jobs p on p.id = kin.parent
    join jobs j on j.id = kin.child
where true
on conflict (parent, seq) do nothing
"""
_NOTE = """
insert into stops (seq, after)
select distinct parent, 0
from children
where parent {among seqs}
on conflict (seq) do nothing
"""
_NOTED = """
select seq, after
from stops
order by seq
limit :limit
{skip locked}
"""
_CHILDREN = """
select c.seq, s.status
from children c left join {shown} s on s.seq = c.seq
where c.parent = :seq and c.seq > :after
order by c.seq
limit :limit
"""
_GO_ON = "update stops set after = :after where seq = :seq"
_DONE = "delete from stops where seq = :seq"


def join(tx: Transaction, jobs: Sequence[NewJob]) -> None:
    """Note of whom new jobs come, which are stored in this transaction; of a parent that is gone they do not."""
    kin = [{"parent": job.options.parent, "child": job.id} for job in jobs if job.options.parent is not None]
    if kin:
        tx.run(_JOIN, {"kin": _as_json(kin)})


def note(tx: Transaction) -> bool:
    """Note the jobs that were stopped in this transaction: their children are to be; returns whether there were any."""
    stopped, tx.stopped = tx.stopped, []
    if stopped:
        tx.run(_NOTE, {"seqs": as_json(sorted(stopped))})
    return bool(stopped)


async def step(tx: Transaction, now: float, limit: int) -> Followed:
    """Cancel children of jobs that were cancelled, about so many at the most; what is left stays noted."""
    notes = await tx.rows(_NOTED, {"limit": NOTES})
    changes = list[Changed]()
    left = len(notes) == NOTES
    for seq, after in notes:
        room = limit - len(changes)
        if room <= 0:
            return Followed(changes, more=True)
        rows = await tx.rows(_CHILDREN, {"seq": seq, "after": after, "limit": room})
        stopped, upto = await _stop(tx, [(child, status) for child, status in rows], now)
        changes += stopped
        if upto is None and len(rows) < room:
            tx.run(_DONE, {"seq": seq})
        else:
            left = True
            tx.run(_GO_ON, {"seq": seq, "after": rows[-1][0] if upto is None else upto})
    return Followed(changes, more=left)


async def _stop(
    tx: Transaction, children: Sequence[tuple[int, str | None]], now: float
) -> tuple[Sequence[Changed], int | None]:
    """Cancel those that have not ended; of the others go on with their children.

    Returns also behind which to go on, where somebody else has locked one; None: all are done.
    """
    over = [seq for seq, status in children if status in ENDED]
    tx.stopped += over
    living = [seq for seq, status in children if status is not None and status not in ENDED]
    met = set[int]()

    async def stop(seqs: Sequence[int]) -> Sequence[Changed]:
        locked = await tx.lock_blocked(seqs)
        met.update(locked)
        pairs = [
            (stored, after)
            for stored in locked.values()
            if stored is not None and (after := cancelled(stored, now)) is not None
        ]
        tx.save(pairs)
        return [Changed(after.job.id, after.job.status) for _, after in pairs]

    changes = await carefully(tx, living, stop, now) if living else []
    missed = [seq for seq in living if seq not in met]
    return changes, missed[0] - 1 if missed else None


def _as_json(value: Any) -> str:  # noqa: ANN401 - rows
    return msgspec.json.encode(value).decode()
