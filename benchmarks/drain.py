"""Drains a backlog with a node in this process, as the service has one, without HTTP in front.

`python -m benchmarks.drain STORE JOBS QUEUE_SIZE SYNC [KEYS [MOST]]` adds the jobs to the store, and prints the seconds
from the node's start to its end, which is when every outcome is written, and how many of CPU this process used for it.
With KEYS, the jobs have so many keys in turn, of each of which MOST may run at once.
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
from jobpipe.job import NewJob, Status
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


async def drain(
    store: Store, settings: Settings, count: int, keys: int = 0, most: int = 0
) -> dict[str, float]:
    """Add the jobs, run them, drain the node; returns the seconds of it and of CPU, the adding not counted."""
    global countdown
    if most:
        await adapter.limit_keys(store, most)
    for number, size in slices(count):
        new: Sequence[NewJob] = jobs(f"drain-{number}", size, kind="counted")
        if keys:
            new = adapter.keyed(new, lambda place, first=number * 1000: f"k{(first + place) % keys}")  # type: ignore[misc]
        await store.exchange(Batch(node=NODE, now=now(), adds=[Add(new)]))
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
    keys: int = 0,
    most: int = 0,
) -> dict[str, float]:
    """Drain a store."""
    settings = adapter.settings(store=url, sync=sync, queue_size=size, keep_jobs=10**9, max_backlog=10**9)
    async with adapter.opened(settings.store, settings.sync) as store:
        with trio.fail_after(600):
            return await drain(store, settings, count, keys, most)


if __name__ == "__main__":
    with adapter.telling_what_is_lacking():
        url, count, size, sync, *keyed = sys.argv[1:]
        print(json.dumps(trio.run(main, url, int(count), int(size), sync, *map(int, keyed))))
