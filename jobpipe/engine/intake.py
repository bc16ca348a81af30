"""The task that has ready jobs claimed for the channel, and hands back those that the workers do not come to."""

import trio

from jobpipe.engine.channel import Channel
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.prefetch import HOLD, Prefetch, horizon
from jobpipe.engine.unforeseen import Unforeseen


class Intake:
    """Owns the intake scope: when that is cancelled, the send channel closes, and the workers end after their jobs."""

    def __init__(self, ledger: Ledger, channel: Channel) -> None:
        self._ledger, self._channel = ledger, channel
        self.scope = trio.CancelScope()
        self._own = channel.receive.clone()
        self._unforeseen = Unforeseen()

    async def run(self) -> None:
        """Have jobs claimed until the scope is cancelled; those that are just being claimed go back."""
        with self.scope, self._channel.send, self._own, self._ledger.claiming(self._channel):
            if self._channel.prefetch is None:
                await trio.sleep_forever()
            else:
                await self._watch(self._channel.prefetch)

    async def _watch(self, prefetch: Prefetch) -> None:
        """Look every `HOLD` seconds, as long as jobs wait in the channel, whether the workers come to them."""
        while True:
            await self._channel.filled.wait()
            before = self._channel.sent - self._channel.buffered
            await trio.sleep(HOLD)
            with self._unforeseen.costs("what waits in the channel is looked at again soon"):
                self._trim(prefetch, self._channel.sent - self._channel.buffered - before)
            if not self._channel.buffered:
                self._channel.filled = trio.Event()

    def _trim(self, prefetch: Prefetch, taken: int) -> None:
        """Hand back what the workers do not come to, given how many jobs they took of late."""
        keep = round(taken * horizon(self._ledger.exchange_seconds) / HOLD)
        if self._channel.buffered > 2 * keep:
            self._hand_back(keep)
            prefetch.forget()
            self._ledger.hurry()

    def _hand_back(self, keep: int) -> None:
        """Hand back what waits in the channel, but for the first so many jobs."""
        waiting = [self._own.receive_nowait() for _ in range(self._channel.buffered)]
        self._channel.sent -= len(waiting) - keep
        for attempt in waiting[:keep]:
            self._channel.send.send_nowait(attempt)
        for attempt in waiting[keep:]:
            self._ledger.hand_back(attempt)
