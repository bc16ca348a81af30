"""The way in: back-pressure, and the channel between intake and workers."""

from collections.abc import Sequence

import trio

from jobpipe.engine.attempt import Attempt
from jobpipe.engine.ledger import Ledger
from jobpipe.errors import Draining, QueueFull
from jobpipe.job import NewJob
from jobpipe.store.base import Receipt


class Queue:
    """Stores jobs through the ledger while there is room, and holds the ends of the channel."""

    def __init__(self, ledger: Ledger, *, size: int, refill: int, max_backlog: int) -> None:
        self._ledger, self._size, self._refill, self._max_backlog = ledger, size, refill, max_backlog
        self.send, self.receive = trio.open_memory_channel[Attempt](size)
        self._took = trio.Event()
        self._short = 0
        self.coming = 0
        """how many jobs are claimed already and about to be sent down the channel"""
        self.draining = False

    async def enqueue(self, jobs: Sequence[NewJob], *, atomic: bool = False) -> Sequence[Receipt]:
        """Store jobs, and return a receipt for each once they survive a crash.

        Raises `Draining`, `QueueFull` or `StoreUnavailable`; then nothing was stored. A cancel leaves either
        all of them stored or none.
        """
        if self.draining:
            raise Draining("this node is shutting down and takes no new job")
        if (waiting := self.waiting + self._ledger.arriving) + len(jobs) > self._max_backlog:
            raise QueueFull(f"{waiting} jobs wait already, and MAX_BACKLOG allows {self._max_backlog}")
        return await self._ledger.add(jobs, atomic=atomic)

    @property
    def waiting(self) -> int:
        """How many jobs wait, in the store, in the channel and between them."""
        return self._ledger.waiting + self.coming + self.send.statistics().current_buffer_used

    def took(self) -> None:
        """There is one place more: a worker took a job that waited in the channel, or is about to wait for one."""
        self._short -= 1
        if self._short == 0:
            self._took.set()

    def room(self) -> int:
        """How many jobs can be sent down the channel right now without waiting."""
        statistics = self.send.statistics()
        return self._size - statistics.current_buffer_used + statistics.tasks_waiting_receive

    async def has_room(self) -> int:
        """Wait until at least `refill` jobs can be sent; returns how many can."""
        while (room := self.room()) < self._refill:
            self._took, self._short = trio.Event(), self._refill - room
            await self._took.wait()
        return room
