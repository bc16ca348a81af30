"""One of the node's N tasks: receives jobs, runs one attempt at a time, until the channel ends."""

import contextvars
from contextlib import closing

import trio

from jobpipe.engine.attempt import Attempt
from jobpipe.engine.channel import Channel
from jobpipe.engine.executor import Executor
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.scope import ReusableScope
from jobpipe.engine.unforeseen import PAUSE, Unforeseen

ROUND = 0.001
"""Seconds in which all workers have had their turn, where handlers never wait: so long other tasks wait for theirs."""

SHORTEST_TURN, LONGEST_TURN = 0.00005, 0.0002
"""Seconds after which such a worker lets other tasks run. At each job it would take a fifth of a drain."""


async def work(
    receive: trio.MemoryReceiveChannel[Attempt],
    channel: Channel,
    ledger: Ledger,
    executor: Executor,
    *,
    run_buffered: bool,
) -> None:
    """Perform jobs from an own clone of the receive side, which it closes at the end.

    While the node drains, what only waited in the channel goes back to the store, unless `run_buffered`
    (a store that would lose it). A cancel stops the attempt; its job goes back too.
    """
    unforeseen = Unforeseen()
    with receive, closing(ReusableScope()) as scope:
        source = Source(receive, channel)
        while True:
            try:
                attempt = await source.next()
                if attempt is None:
                    return
                if channel.draining and not run_buffered:
                    ledger.hand_back(attempt)
                else:
                    await executor.perform(attempt, scope)
            except Exception as error:  # noqa: BLE001 - a fault of jobpipe's own: costs a pause
                unforeseen.tell(error, "a worker pauses, and hands its job back", seconds=PAUSE)
                if source.last is not None:
                    ledger.hand_back(source.last)
                await trio.sleep(PAUSE)


TOLD, WORTH_TELLING = 8, 0.001
"""After so many jobs, or so many seconds, a worker that is busy says how long its jobs take."""


class Source:
    """Where a worker has its attempts from, each with a context that no handler has touched."""

    def __init__(self, receive: trio.MemoryReceiveChannel[Attempt], channel: Channel) -> None:
        self._receive, self._channel = receive, channel
        self._turn = min(max(ROUND / channel.workers, SHORTEST_TURN), LONGEST_TURN)
        self._task, self._clean = trio.lowlevel.current_task(), contextvars.copy_context()
        self._time = trio.lowlevel.current_clock().current_time  # a third of what trio.current_time() costs
        self._begun = self._time()
        # What the channel has not been told of.
        self._jobs, self._busy = 0, 0.0
        self.last: Attempt | None = None
        """what came out of the channel last: somebody must settle it, whatever happens to this worker"""

    async def next(self) -> Attempt | None:
        """Wait for an attempt; None: there will be no more. Others have their turn in between: see `ROUND`."""
        try:
            attempt = self.last = self._receive.receive_nowait()
        except trio.WouldBlock:
            return await self._wait()
        except trio.EndOfChannel:
            return None
        self._channel.took()
        now = self._time()
        if now - self._begun >= self._turn or contextvars.copy_context() != self._clean:
            self._end_turn(now)
            if self._jobs >= TOLD or self._busy >= WORTH_TELLING:
                self._tell()
            await trio.lowlevel.checkpoint()
            self._begun = self._time()
        self._jobs += 1
        return attempt

    async def _wait(self) -> Attempt | None:
        self._end_turn(self._time())
        if self._jobs:
            self._tell()
        self._channel.idle()
        try:
            attempt = self.last = await self._receive.receive()
        except trio.EndOfChannel:
            return None
        self._begun, self._jobs, self._busy = self._time(), 1, 0.0
        return attempt

    def _end_turn(self, now: float) -> None:
        # What one handler binds, to its log lines say, must not reach the next job. Counts from the next wait on.
        self._task.context = self._clean.copy()
        self._busy += now - self._begun

    def _tell(self) -> None:
        self._channel.worked(self._jobs, self._busy)
        self._jobs, self._busy = 0, 0.0
