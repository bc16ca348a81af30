"""The way in: back-pressure, and the channel between intake and workers."""

from collections.abc import Sequence

import trio

from jobpipe.engine.ledger import Ledger
from jobpipe.errors import Draining, QueueFull
from jobpipe.job import NewJob
from jobpipe.store.base import Claimed, Receipt


class Queue:
    """Stores jobs through the ledger while there is room, and holds the ends of the channel."""

    def __init__(self, ledger: Ledger, *, size: int, max_backlog: int) -> None:
        self._ledger, self._size, self._max_backlog = ledger, size, max_backlog
        self.send, self.receive = trio.open_memory_channel[Claimed](size)
        self._took = trio.Event()
        self.draining = False

    async def enqueue(self, jobs: Sequence[NewJob], *, atomic: bool = False) -> Sequence[Receipt]:
        """Store jobs, and return a receipt for each once they survive a crash.

        Raises `Draining`, `QueueFull` or `StoreUnavailable`; then nothing was stored. A cancel leaves either
        all of them stored or none.
        """
        if self.draining:
            raise Draining("this node is shutting down and takes no new job")
        if self.waiting + self._ledger.pending + len(jobs) > self._max_backlog:
            raise QueueFull(f"{self.waiting} jobs wait already, and MAX_BACKLOG allows {self._max_backlog}")
        return await self._ledger.add(jobs, atomic=atomic)

    @property
    def waiting(self) -> int:
        """How many jobs wait, in the store and in the channel."""
        return self._ledger.waiting + self.send.statistics().current_buffer_used

    def took(self) -> None:
        """A worker has taken a job out of the channel, or is about to wait for one."""
        self._took.set()

    def room(self) -> int:
        """How many jobs can be sent down the channel right now without waiting."""
        statistics = self.send.statistics()
        return self._size - statistics.current_buffer_used + statistics.tasks_waiting_receive

    async def has_room(self) -> int:
        """Wait until half of the channel is free (of one without a buffer: until a worker waits); returns the room."""
        enough = max(1, self._size // 2)
        while (room := self.room()) < enough:
            self._took = trio.Event()
            await self._took.wait()
        return room
