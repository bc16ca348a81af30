"""What it costs to enqueue jobs that are merged with others: `python -m benchmarks.merging STORE WAY KEYS REQUESTS`.

So many keys are taken by a waiting job each, and no job runs. Then REQUESTS jobs are enqueued at a node, as the API
does it: `none` without a key, `taken` with the keys that are taken, in turn, `new` with a key of its own each. First
from 16 tasks with one job a call, then from one task with 1,000 a call (`... in calls of 1,000`). Prints the requests
a second. WAY is `unique`, `throttle` or `debounce`.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import trio

from benchmarks import adapter
from benchmarks.shapes import some, with_options
from benchmarks.work import slices
from jobpipe import handler
from jobpipe.engine.node import Node
from jobpipe.job import Debounce, NewJob, Throttle, Unique

TASKS = 16
LONG = 86_400.0
"""Seconds of a window and of a quiet period: longer than any measurement."""

CALLS = ("", " in calls of 1,000")
SIDES = ("none", "taken", "new")


@handler("counted")
async def counted(_: Any) -> None:  # noqa: ANN401 - takes any payload
    """Never run: the queue is paused."""


Make = Callable[[int], Sequence[NewJob]]
"""Makes so many jobs."""

WAYS: dict[str, Callable[[NewJob, str], NewJob]] = {
    "unique": lambda job, key: with_options(
        job, unique=Unique(key, over=(), while_=("queued", "running"), for_=None, on_conflict="return")
    ),
    "throttle": lambda job, key: with_options(job, throttle=Throttle(key, every=LONG, trailing=False)),
    "debounce": lambda job, key: with_options(job, debounce=Debounce(key, wait=LONG, max_wait=10 * LONG)),
}


async def enqueue(node: Node, new: Sequence[NewJob]) -> None:
    """Enqueue jobs through the way in that theirs is."""
    if new[0].options.merging:
        await node.backlog.enqueue_dependents(new, atomic=False)
    else:
        await node.backlog.enqueue(new)


async def one_by_one(node: Node, make: Make, requests: int) -> None:
    """One job a call, from many tasks."""
    calls = iter(range(requests))

    async def some_of_them() -> None:
        for _ in calls:
            await enqueue(node, make(1))

    async with trio.open_nursery() as nursery:
        for _ in range(TASKS):
            nursery.start_soon(some_of_them)


async def in_slices(node: Node, make: Make, requests: int) -> None:
    """Very many jobs a call."""
    for _, size in slices(requests):
        await enqueue(node, make(size))


async def measure(node: Node, way: str, keys: int, requests: int) -> dict[str, float]:
    """Take the keys, then measure side by side."""
    merged, numbers = WAYS[way], itertools.count()

    def with_key(count: int, key: Callable[[int], str]) -> Sequence[NewJob]:
        return [merged(job, key(next(numbers))) for job in some(count)]

    taken = partial(with_key, key=lambda number: f"taken-{number % keys}")
    makes: dict[str, Make] = {
        "none": some,
        "taken": taken,
        "new": partial(with_key, key=lambda number: f"new-{number}"),
    }
    await in_slices(node, taken, keys)
    await one_by_one(node, some, TASKS)  # what is done once, at the first of them
    rates = {}
    for side, (words, send) in itertools.product(SIDES, zip(CALLS, (one_by_one, in_slices), strict=True)):
        began = time.perf_counter()
        await send(node, makes[side], requests)
        rates[side + words] = requests / (time.perf_counter() - began)
    return rates


async def main(url: str, way: str, keys: int, requests: int) -> dict[str, float]:
    """Measure at a node."""
    settings = adapter.settings(store=url, keep_jobs=10**9, max_backlog=10**9)
    async with adapter.opened(url) as store:
        await store.pause("default")
        node = adapter.node(settings, store, __name__)
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            adapter.spare_the_collector()
            told = await measure(node, way, keys, requests)
            node.drain()
    return told


if __name__ == "__main__":
    url, way, keys, requests = sys.argv[1:]
    print(json.dumps(trio.run(main, url, way, int(keys), int(requests))))
