"""The way in: back-pressure, and the channel between intake and workers."""

from collections.abc import Sequence

import trio

from jobpipe.engine.attempt import Attempt
from jobpipe.engine.batching import SETTLE_DELAY
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.prefetch import Prefetch
from jobpipe.errors import Draining, QueueFull
from jobpipe.job import NewJob
from jobpipe.store.base import Receipt


class Queue:
    """Stores jobs through the ledger while there is room, and holds the ends of the channel.

    `prefetch` says how much of the channel is filled; with None all of it, for a store that would lose at the end
    what is not in it.
    """

    def __init__(self, ledger: Ledger, prefetch: Prefetch | None, *, size: int, max_backlog: int) -> None:
        self._ledger, self.prefetch, self._size, self._max_backlog = ledger, prefetch, size, max_backlog
        self.send, self.receive = trio.open_memory_channel[Attempt](size)
        self._took = trio.Event()
        self._short = 0
        self.draining = False

    async def enqueue(self, jobs: Sequence[NewJob], *, atomic: bool = False) -> Sequence[Receipt]:
        """Store jobs, and return a receipt for each once they survive a crash.

        Raises `Draining`, `QueueFull` or `StoreUnavailable`; then nothing was stored. A cancel leaves either
        all of them stored or none.
        """
        if self.draining:
            raise Draining("this node is shutting down and takes no new jobs")
        if (waiting := self.waiting + self._ledger.arriving) + len(jobs) > self._max_backlog:
            raise QueueFull(f"{waiting} jobs are waiting already, and MAX_BACKLOG allows {self._max_backlog}")
        return await self._ledger.add(jobs, atomic=atomic)

    @property
    def buffered(self) -> int:
        """How many jobs wait in the channel."""
        return self.send.statistics().current_buffer_used

    @property
    def free(self) -> int:
        """How many workers wait for a job."""
        return self.send.statistics().tasks_waiting_receive

    @property
    def waiting(self) -> int:
        """How many jobs wait, in the store, in the channel and between them."""
        return self._ledger.waiting + self._ledger.coming + self.buffered

    # What workers tell

    def took(self) -> None:
        """There is one place more: a worker took a job that waited in the channel, or is about to wait for one."""
        self._short -= 1
        if self._short == 0:
            self._took.set()

    def worked(self, jobs: int, seconds: float) -> None:
        """A worker was busy for `seconds` with so many jobs, which are over."""
        if self.prefetch is not None:
            self.prefetch.worked(jobs, seconds)

    def idle(self) -> None:
        """A worker is about to wait for a job."""
        if self.prefetch is not None:
            self.prefetch.idle()
        self.took()
        self._ledger.hurry()

    # What the intake asks, and the ledger while a claim stands

    def recheck(self) -> None:
        """There may be more room than places were taken: jobs went back to the store."""
        self._took.set()

    async def has_room(self) -> None:
        """Wait until a claim pays: for a free worker, or for half of what is claimed ahead."""
        while True:
            statistics = self.send.statistics()
            ahead = self._ahead(statistics.tasks_waiting_receive)
            room = ahead - statistics.current_buffer_used + statistics.tasks_waiting_receive
            worth = 1 if self.prefetch is None else max(1, ahead // 2)
            if room >= worth:
                return
            self._took, self._short = trio.Event(), worth - room
            await self._took.wait()

    def wanted(self) -> int:
        """How many jobs are worth claiming at this moment; none when less than one."""
        statistics = self.send.statistics()
        free = statistics.tasks_waiting_receive
        return self._ahead(free) - statistics.current_buffer_used + free

    def pressing(self) -> bool:
        """Whether a claim is not to wait for outcomes to share a commit with: a worker is free, or will be by then."""
        if self.prefetch is None or self.free:
            return True
        return self.prefetch.runs_dry(self.buffered, self._ledger.exchange_seconds + SETTLE_DELAY)

    def _ahead(self, free: int) -> int:
        if self.prefetch is None:
            return self._size
        return self.prefetch.ahead(free, self._ledger.exchange_seconds)
