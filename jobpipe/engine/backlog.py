"""The way in: who may store jobs, and how many may wait."""

from collections.abc import Sequence

from jobpipe.engine.channel import Channel
from jobpipe.engine.ledger import Ledger
from jobpipe.errors import Draining, QueueFull
from jobpipe.job import NewJob
from jobpipe.store.base import Receipt


class Backlog:
    """Stores jobs through the ledger, while there is room."""

    def __init__(self, ledger: Ledger, channels: Sequence[Channel], *, max_backlog: int) -> None:
        self._ledger, self._channels, self._max_backlog = ledger, channels, max_backlog
        self.draining = False
        """whether the node drains, so that no new job is taken in"""

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
    def waiting(self) -> int:
        """How many jobs wait, in the store and in the channels."""
        waiting = self._ledger.waiting
        for channel in self._channels:
            waiting += channel.buffered
        return waiting
