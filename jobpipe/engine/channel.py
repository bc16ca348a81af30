"""The channel between intake and workers, and how much of it is filled."""

import trio

from jobpipe.engine.attempt import Attempt
from jobpipe.engine.batching import SETTLE_DELAY
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.prefetch import Prefetch


class Channel:
    """Holds both ends, counts the room in between, and says how many jobs are worth claiming.

    `prefetch` says how much of the channel is filled; with None all of it, for a store that would lose at the end
    what is not in it.
    """

    def __init__(self, ledger: Ledger, prefetch: Prefetch | None, *, size: int) -> None:
        self._ledger, self.prefetch, self._size = ledger, prefetch, size
        self.send, self.receive = trio.open_memory_channel[Attempt](size)
        self._took = trio.Event()
        self._short = 0
        self.draining = False
        """whether the node drains: nothing more is claimed, and no new job is taken in"""

    @property
    def buffered(self) -> int:
        """How many jobs wait in the channel."""
        return self.send.statistics().current_buffer_used

    @property
    def free(self) -> int:
        """How many workers wait for a job."""
        return self.send.statistics().tasks_waiting_receive

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
