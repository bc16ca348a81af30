"""The one task that claims ready jobs and sends them down the channel."""

import trio

from jobpipe.engine.attempt import Attempts
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.queue import Queue
from jobpipe.store.base import Claimed


class Intake:
    """Owns the intake scope: when that is cancelled, the send channel closes, and the workers end after their jobs."""

    def __init__(self, ledger: Ledger, queue: Queue, attempts: Attempts) -> None:
        self._ledger, self._queue, self._attempts = ledger, queue, attempts
        self.scope = trio.CancelScope()
        self.ticks = 0
        """grows with every look for room and every claim"""

    async def run(self) -> None:
        """Claim and send until the scope is cancelled."""
        with self.scope, self._queue.send:
            while True:
                room = await self._queue.has_room()
                self.ticks += 1
                for job in await self._ledger.claim(room, self._hold):
                    # No await between the claim and the send: a cancel cannot fall between them.
                    self._queue.coming -= 1
                    try:
                        self._queue.send.send_nowait(job)
                    except (trio.WouldBlock, trio.BrokenResourceError):  # a worker that waited has gone
                        self._attempts.hand_back(job)
                self.ticks += 1

    def _hold(self, job: Claimed) -> None:
        self._queue.coming += 1
        self._attempts.hold(job)
