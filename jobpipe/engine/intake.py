"""The one task that claims ready jobs and sends them down the channel."""

from collections.abc import Sequence

import trio

from jobpipe.engine.attempt import Attempt
from jobpipe.engine.attempts import Attempts
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.queue import Queue
from jobpipe.engine.unforeseen import PAUSE, Unforeseen
from jobpipe.store.base import Claimed


class Intake:
    """Owns the intake scope: when that is cancelled, the send channel closes, and the workers end after their jobs."""

    def __init__(self, ledger: Ledger, queue: Queue, attempts: Attempts) -> None:
        self._ledger, self._queue, self._attempts = ledger, queue, attempts
        self.scope = trio.CancelScope()
        self._taken: Sequence[Attempt] = ()
        self.ticks = 0
        """grows with every look for room and every claim"""
        self._unforeseen = Unforeseen()

    async def run(self) -> None:
        """Claim and send until the scope is cancelled."""
        with self.scope, self._queue.send:
            while True:
                try:
                    await self._take()
                except Exception as error:  # noqa: BLE001 - costs what was just claimed, and a pause
                    self._unforeseen.tell(error, "what was just claimed is handed back")
                    self._give_up()
                    await trio.sleep(PAUSE)

    async def _take(self) -> None:
        room = await self._queue.has_room()
        self.ticks += 1
        await self._ledger.claim(room, self._hold)
        # No await between the claim and the send: a cancel cannot fall between them.
        self._send()
        self.ticks += 1

    def _hold(self, jobs: Sequence[Claimed]) -> None:
        self._queue.coming = len(jobs)
        self._taken = self._attempts.hold(jobs)

    def _send(self) -> None:
        self._queue.coming = 0
        taken, self._taken = self._taken, ()
        for attempt in taken:
            try:
                self._queue.send.send_nowait(attempt)
            except (trio.WouldBlock, trio.BrokenResourceError):  # a worker that waited has gone
                self._attempts.hand_back(attempt)
            except Exception as error:  # noqa: BLE001 - costs this job a way back to the store
                self._unforeseen.tell(error, "the job is handed back", job=attempt.job.id)
                self._attempts.hand_back(attempt)

    def _give_up(self) -> None:
        self._queue.coming = 0
        taken, self._taken = self._taken, ()
        for attempt in taken:
            self._attempts.hand_back(attempt)
