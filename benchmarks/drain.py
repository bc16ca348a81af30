"""Drains a backlog with a node in this process, as the service has one, without HTTP in front.

`python -m benchmarks.drain STORE JOBS QUEUE_SIZE SYNC [SHAPE NUMBER WAITING]` adds the jobs to the store. It prints the
seconds from the node's start to its end, which is when every outcome is written, and how many of CPU this process used
for it. With SHAPE, the jobs use a feature, as `benchmarks.shapes` has it, and WAITING are added, of which JOBS are run.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import trio

from benchmarks import adapter
from benchmarks.fill import NODE, now
from benchmarks.work import jobs, slices
from jobpipe import handler
from jobpipe.job import Status
from jobpipe.settings import Settings
from jobpipe.store.base import Add, Batch, Store


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


async def fill(store: Store, count: int, shape: str, number: int) -> None:
    """Add the jobs."""
    if shape:
        from benchmarks.shapes import SHAPES  # noqa: PLC0415 - older versions have not all that it needs

        await SHAPES[shape](store, count, number)
        return
    for part, size in slices(count):
        await store.exchange(
            Batch(node=NODE, now=now(), adds=[Add(jobs(f"drain-{part}", size, kind="counted"))])
        )


async def drain(store: Store, settings: Settings, count: int) -> dict[str, float]:
    """Run so many jobs and drain the node; returns the seconds of it and of CPU."""
    global countdown
    await store.resume("default")
    before = await done(store)
    countdown, node = Countdown(count), adapter.node(settings, store, __name__)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        adapter.spare_the_collector()
        began, worked = time.perf_counter(), time.process_time()
        await countdown.over.wait()
        node.drain()
    told = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - worked}
    assert await done(store) >= before + count
    return told


async def done(store: Store) -> int:
    """How many jobs are done."""
    return sum(queue.counts.get(Status.DONE, 0) for queue in await store.queues())


async def main(
    url: str,
    count: int,
    size: int,
    sync: Any,  # noqa: ANN401 - checked by Settings' users
    shape: Sequence[str] = (),
) -> dict[str, float]:
    """Fill a store, and drain it."""
    settings = adapter.settings(store=url, sync=sync, queue_size=size, keep_jobs=10**9, max_backlog=10**9)
    word, number, waiting = shape or ("", "0", "0")
    async with adapter.opened(settings.store, settings.sync) as store:
        with trio.fail_after(600):
            await fill(store, max(count, int(waiting)), word, int(number))
            return await drain(store, settings, count)


if __name__ == "__main__":
    with adapter.telling_what_is_lacking():
        url, count, size, sync, *shape = sys.argv[1:]
        print(json.dumps(trio.run(main, url, int(count), int(size), sync, shape)))
