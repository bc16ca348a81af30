"""One of the node's N tasks: receives jobs, runs one attempt at a time, until the channel ends."""

import contextvars

import trio

from jobpipe.engine.attempt import Attempts
from jobpipe.engine.queue import Queue
from jobpipe.store.base import Claimed


async def work(
    receive: trio.MemoryReceiveChannel[Claimed], queue: Queue, attempts: Attempts, *, run_buffered: bool
) -> None:
    """Perform jobs from an own clone of the receive side, which it closes at the end.

    While the node drains, what only waited in the channel goes back to the store, unless `run_buffered`
    (a store that would lose it). A cancel stops the attempt; its job goes back too.
    """
    task, clean = trio.lowlevel.current_task(), contextvars.copy_context()
    with receive:
        while True:
            # From the next wait on: what one handler binds, to its log lines say, must not reach the next job.
            task.context = clean.copy()
            queue.took()  # tells of the place that the last job left, and that this worker waits now
            try:
                job = await receive.receive()
            except trio.EndOfChannel:
                return
            queue.took()
            if queue.draining and not run_buffered:
                attempts.hand_back(job)
            else:
                await attempts.perform(job)
