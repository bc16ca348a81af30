"""Drains a backlog with a node in this process, as the service has one, without HTTP in front.

`python -m benchmarks.drain FILE JOBS QUEUE_SIZE SYNC` adds the jobs to the file, and prints the seconds from the
node's start to its end, which is when every outcome is written.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import trio

from benchmarks.fill import NODE, now
from benchmarks.work import jobs, slices
from jobpipe import handler
from jobpipe.clock import WallClock
from jobpipe.engine.node import Node
from jobpipe.handlers.registry import load
from jobpipe.job import Status
from jobpipe.service import spare_the_collector
from jobpipe.settings import Settings
from jobpipe.store.base import Add, Batch, Store
from jobpipe.store.factory import open_store


class Countdown:
    """Tells when the last of so many jobs runs."""

    def __init__(self, jobs: int) -> None:
        self.left, self.over = jobs, trio.Event()

    def one_less(self) -> None:
        """A job runs."""
        self.left -= 1
        if not self.left:
            self.over.set()


countdown: Countdown


@handler("counted")
async def counted(_: Any) -> None:  # noqa: ANN401 - takes any payload
    """Do nothing but count."""
    countdown.one_less()


async def drain(store: Store, settings: Settings, count: int) -> float:
    """Add the jobs, run them, drain the node; returns the seconds of it, the adding not counted."""
    global countdown
    for number, size in slices(count):
        new = jobs(f"drain-{number}", size, kind="counted")
        await store.exchange(Batch(node=NODE, now=now(), adds=[Add(new)]))
    await store.resume("default")
    before = await done(store)
    countdown, node = Countdown(count), Node(settings, store, load([__name__]), WallClock())
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        spare_the_collector()
        began = time.perf_counter()
        await countdown.over.wait()
        node.drain()
    took = time.perf_counter() - began
    assert await done(store) >= before + count
    return took


async def done(store: Store) -> int:
    """How many jobs are done."""
    return sum(queue.counts.get(Status.DONE, 0) for queue in await store.queues())


async def main(path: Path, count: int, size: int, sync: Any) -> float:  # noqa: ANN401 - checked by Settings' users
    """Drain a file."""
    settings = Settings(
        store=f"sqlite:{path}", sync=sync, queue_size=size, keep_jobs=10**9, max_backlog=10**9
    )
    async with open_store(settings.store, settings.sync) as store:
        with trio.fail_after(600):
            return await drain(store, settings, count)


if __name__ == "__main__":
    print(
        json.dumps(
            {"seconds": trio.run(main, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])}
        )
    )
