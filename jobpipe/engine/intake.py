"""The tasks that claim ready jobs, send them down the channel, and hand back those that the workers do not come to."""

from collections.abc import Sequence

import trio

from jobpipe.engine.attempt import Attempt
from jobpipe.engine.channel import Channel
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.prefetch import HOLD, Prefetch, horizon
from jobpipe.engine.unforeseen import PAUSE, Unforeseen


class Intake:
    """Owns the intake scope: when that is cancelled, the send channel closes, and the workers end after their jobs."""

    def __init__(self, ledger: Ledger, channel: Channel) -> None:
        self._ledger, self._channel = ledger, channel
        self.scope = trio.CancelScope()
        self._taken: Sequence[Attempt] = ()
        self._own = channel.receive.clone()
        self._sent = 0
        self._buffered = trio.Event()
        self.ticks = 0
        """grows with every look for room and every claim"""
        self._unforeseen = Unforeseen()

    async def run(self) -> None:
        """Claim and send until the scope is cancelled."""
        with self.scope, self._channel.send, self._own:
            async with trio.open_nursery() as nursery:
                if self._channel.prefetch is not None:
                    nursery.start_soon(self._watch, self._channel.prefetch)
                while True:
                    try:
                        await self._take()
                    except Exception as error:  # noqa: BLE001 - costs what was just claimed, and a pause
                        self._unforeseen.tell(error, "what was just claimed is handed back")
                        self._give_up()
                        await trio.sleep(PAUSE)

    async def _take(self) -> None:
        await self._channel.has_room()
        self.ticks += 1
        self._taken = await self._ledger.claim(self._channel)
        # No await between the claim and the send: a cancel cannot fall between them.
        self._send()
        self.ticks += 1

    def _send(self) -> None:
        taken, self._taken = self._taken, ()
        self._sent += len(taken)
        for attempt in taken:
            try:
                self._channel.send.send_nowait(attempt)
            except (trio.WouldBlock, trio.BrokenResourceError):  # a worker that waited has gone
                self._ledger.hand_back(attempt)
            except Exception as error:  # noqa: BLE001 - costs this job a way back to the store
                self._unforeseen.tell(error, "the job is handed back", job=attempt.job.id)
                self._ledger.hand_back(attempt)
        if self._channel.buffered:
            self._buffered.set()

    def _give_up(self) -> None:
        taken, self._taken = self._taken, ()
        for attempt in taken:
            self._ledger.hand_back(attempt)

    async def _watch(self, prefetch: Prefetch) -> None:
        """Look every `HOLD` seconds, as long as jobs wait in the channel, whether the workers come to them."""
        while True:
            await self._buffered.wait()
            before = self._sent - self._channel.buffered
            await trio.sleep(HOLD)
            with self._unforeseen.costs("what waits in the channel is looked at again soon"):
                self._trim(prefetch, self._sent - self._channel.buffered - before)
            if not self._channel.buffered:
                self._buffered = trio.Event()

    def _trim(self, prefetch: Prefetch, taken: int) -> None:
        """Hand back what the workers do not come to, given how many jobs they took of late."""
        keep = round(taken * horizon(self._ledger.exchange_seconds) / HOLD)
        if self._channel.buffered > 2 * keep:
            self._hand_back(keep)
            prefetch.forget()
            self._channel.recheck()

    def _hand_back(self, keep: int) -> None:
        """Hand back what waits in the channel, but for the first so many jobs."""
        waiting = [self._own.receive_nowait() for _ in range(self._channel.buffered)]
        self._sent -= len(waiting) - keep
        for attempt in waiting[:keep]:
            self._channel.send.send_nowait(attempt)
        for attempt in waiting[keep:]:
            self._ledger.hand_back(attempt)
