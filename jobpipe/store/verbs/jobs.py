"""What people ask of jobs: lock, decide by a transition, save."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from jobpipe.store.base import Change
from jobpipe.store.rows import shown
from jobpipe.store.verbs import merging, order, queues
from jobpipe.store.verbs.transaction import Removal, Transaction
from jobpipe.transitions import Stored, cancelled, edited, promoted


async def cancel(tx: Transaction, ids: Sequence[str], now: float) -> Sequence[Change]:
    """See `jobpipe.store.base.ControlStore.cancel`."""
    return await change(tx, ids, lambda stored: cancelled(stored, now))


async def promote(tx: Transaction, ids: Sequence[str], now: float) -> Sequence[Change]:
    """See `jobpipe.store.base.ControlStore.promote`."""
    return await change(tx, ids, lambda stored: promoted(stored, now))


async def edit(tx: Transaction, ids: Sequence[str], edits: Mapping[str, Any], now: float) -> Sequence[Change]:
    """See `jobpipe.store.base.ControlStore.edit`."""
    return await edit_locked(tx, await tx.lock(ids), ids, edits, now)


async def edit_locked(
    tx: Transaction, locked: Mapping[str, Stored], ids: Sequence[str], edits: Mapping[str, Any], now: float
) -> Sequence[Change]:
    """The same, with those of the jobs that are there locked before."""
    queue = edits.get("queue")
    if queue is None or not await queues.closed(tx, [queue]):
        return change_locked(tx, locked, ids, lambda stored: edited(stored, edits, now))
    outside = {job_id for job_id, one in locked.items() if one.job.asked.queue != queue}
    changes = change_locked(
        tx, locked, ids, lambda stored: None if stored.job.id in outside else edited(stored, edits, now)
    )
    return [
        replace(one, verdict="closed")
        if one.id in outside and edited(locked[one.id], edits, now) is not None
        else one
        for one in changes
    ]


async def change(
    tx: Transaction, ids: Sequence[str], becomes: Callable[[Stored], Stored | None]
) -> Sequence[Change]:
    """Change jobs by a transition. An id that is named twice is changed twice."""
    return change_locked(tx, await tx.lock(ids), ids, becomes)


def change_locked(
    tx: Transaction,
    locked: Mapping[str, Stored],
    ids: Sequence[str],
    becomes: Callable[[Stored], Stored | None],
) -> Sequence[Change]:
    """The same, with those of the jobs that are there locked before."""
    there = dict(locked)
    changes, told = list[tuple[Stored, Stored]](), list[Change]()
    for job_id in ids:
        before = there.get(job_id)
        after = before and becomes(before)
        if before is not None and after is not None:
            changes.append((before, after))
            there[job_id] = after
        told.append(_told(job_id, before, after))
    tx.save(changes)
    return told


def _told(job_id: str, before: Stored | None, after: Stored | None) -> Change:
    if before is None:
        return Change(job_id, "absent")
    if after is None:
        return Change(job_id, "refused", shown(before))
    return Change(job_id, "changed", shown(after), was=before.job)


async def delete(tx: Transaction, ids: Sequence[str], now: float) -> Sequence[Change]:
    """See `jobpipe.store.base.ControlStore.delete`."""
    return await delete_locked(tx, await tx.lock(ids), ids, now)


async def delete_locked(
    tx: Transaction, locked: Mapping[str, Stored], ids: Sequence[str], now: float
) -> Sequence[Change]:
    """The same, with those of the jobs that are there locked before."""
    there = dict(locked)
    removals, told, keys = list[Removal](), list[Change](), list[int]()
    deleted = list[Stored]()
    for job_id in ids:
        stored = there.get(job_id)
        if stored is None:
            told.append(Change(job_id, "absent"))
        elif stored.held:
            told.append(Change(job_id, "refused", shown(stored)))
        else:
            removals.append(_removal(there.pop(job_id)))
            deleted.append(stored)
            told.append(Change(job_id, "changed", was=stored.job))
            if stored.job.damage or stored.job.asked.options.merging is not None:
                keys.append(stored.seq)
    tx.erase(removals)
    order.deleted(tx, deleted)
    await merging.forget(tx, keys, now)
    return told


def _removal(stored: Stored) -> Removal:
    job = stored.job
    return Removal(
        seq=stored.seq,
        queue=job.asked.queue,
        state=job.status.value,
        size=stored.size,
        tags=None if job.damage else job.asked.options.tags,
        watched=job.id if stored.watched else None,
        followed=job.id if stored.followed else None,
    )
