"""What people ask of queues."""

from jobpipe.store.base import QueueChange
from jobpipe.store.verbs.transaction import PAUSED, READY, Transaction

_PAUSE = """
insert into queues (name, paused)
values (:name, :paused)
on conflict (name) do update set paused = excluded.paused
"""


async def pause(tx: Transaction, queue: str) -> None:
    """See `jobpipe.store.base.ControlStore.pause`."""
    tx.run(_PAUSE, {"name": queue, "paused": True})
    tx.tell(PAUSED)


async def resume(tx: Transaction, queue: str) -> None:
    """See `jobpipe.store.base.ControlStore.resume`."""
    tx.run(_PAUSE, {"name": queue, "paused": False})
    tx.tell(READY)


async def delete(tx: Transaction, queue: str) -> QueueChange:
    """See `jobpipe.store.base.ControlStore.delete_queue`."""
    state = await tx.queue(queue)
    if state is None:
        return QueueChange("absent")
    if state.counts:
        return QueueChange("refused", state)
    tx.forget_queue(queue)
    return QueueChange("changed")
