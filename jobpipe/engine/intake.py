"""The task that has ready jobs claimed for the channels, and hands back those that the workers do not come to."""

from collections.abc import Sequence
from contextlib import ExitStack

import trio

from jobpipe.engine.channel import Channel
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.prefetch import HOLD, Prefetch, horizon
from jobpipe.engine.unforeseen import Unforeseen


class Intake:
    """Owns the intake scope: when that is cancelled, the send channels close, and the workers end after their jobs.

    The channels claim in their order, so of two that want the same job the first gets it.
    """

    def __init__(self, ledger: Ledger, channels: Sequence[Channel]) -> None:
        self._ledger, self._channels = ledger, channels
        self.scope = trio.CancelScope()
        self._unforeseen = Unforeseen()

    async def run(self) -> None:
        """Have jobs claimed until the scope is cancelled; those that are just being claimed go back."""
        with self.scope, ExitStack() as claiming:
            for channel in self._channels:
                claiming.enter_context(channel.claiming())
            async with trio.open_nursery() as watches:
                for channel in self._channels:
                    watches.start_soon(self._watch, channel)

    async def _watch(self, channel: Channel) -> None:
        """Look every `HOLD` seconds, as long as jobs wait in a channel, whether the workers come to them."""
        if channel.prefetch is None:
            await trio.sleep_forever()
            return
        while True:
            await channel.filled.wait()
            before = channel.sent - channel.buffered
            await trio.sleep(HOLD)
            with self._unforeseen.costs("what waits in the channel is looked at again soon"):
                self._trim(channel, channel.prefetch, channel.sent - channel.buffered - before)
            if not channel.buffered:
                channel.filled = trio.Event()

    def _trim(self, channel: Channel, prefetch: Prefetch, taken: int) -> None:
        """Hand back what the workers do not come to, given how many jobs they took of late."""
        keep = round(taken * horizon(self._ledger.exchange_seconds) / HOLD)
        if channel.buffered > 2 * keep:
            for attempt in channel.withdraw(keep):
                self._ledger.hand_back(attempt)
            prefetch.forget()
            self._ledger.hurry(channel)
