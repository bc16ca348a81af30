"""A node of jobpipe in this process, as the service has one, without HTTP in front.

`python -m benchmarks.postgres.node URL SLOT JOBS QUEUE_SIZE ROLE ...`; the roles are the functions at the end.
"""

import itertools
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import trio

from benchmarks import adapter
from benchmarks.fill import NODE, now
from benchmarks.postgres import stage
from benchmarks.postgres.slots import Slot
from benchmarks.work import jobs, slices
from jobpipe import handler
from jobpipe.engine.node import Node
from jobpipe.store.base import Add, Batch

TENTH = 0.1
IDLE = 0.5
"""Seconds after which nodes that began together are idle for certain."""
PATIENCE = 5

slot: Slot
numbers = itertools.count()


@handler("counted")
async def counted(payload: Any) -> None:  # noqa: ANN401 - takes any payload
    """Do nothing but note it."""
    slot.note(payload)


@handler("slept")
async def slept(seconds: Any) -> None:  # noqa: ANN401 - a number
    """Sleep, and note when that was over and when it began."""
    began = time.perf_counter()
    await trio.sleep(seconds)
    slot.note(began)


@handler("endless")
async def endless(_: Any) -> None:  # noqa: ANN401 - takes any payload
    """Keep a worker busy."""
    await trio.sleep_forever()


def some(count: int) -> list[Any]:
    """New jobs."""
    return jobs(f"{os.getpid()}-{next(numbers)}", count, kind="counted")


async def ask(node: Node, began: float) -> None:
    """Enqueue one job, which says when it was asked for."""
    (job,) = some(1)
    await adapter.enqueue(node, [msgspec.structs.replace(job, payload=msgspec.json.encode(began))])


async def fill(url: str, count: int, shape: str = "", number: str = "0") -> None:
    """Put so many jobs into the store, without a node."""
    async with adapter.opened(url, "full") as store:
        if shape:
            from benchmarks.shapes import SHAPES  # noqa: PLC0415 - older versions have not all that it needs

            await SHAPES[shape](store, count, int(number))
            return
        for _, size in slices(count):
            await store.exchange(Batch(node=NODE, now=now(), adds=[Add(some(size))]))


async def work(_: Node) -> None:
    """Run jobs until told to stop."""
    await trio.to_thread.run_sync(stage.over)


async def asking(node: Node, rate: str, seconds: str) -> None:
    """Enqueue at a rate, and run jobs."""
    stage.tell({"waits": await stage.asked(lambda began: ask(node, began), float(rate), float(seconds))})
    await work(node)


async def asking_many(node: Node, count: str, seconds: str) -> None:
    """Enqueue so many jobs that sleep in one call, when the other nodes are idle, and run some of them."""
    await trio.sleep(IDLE)
    new = jobs(f"slept-{os.getpid()}", int(count), kind="slept")
    began = time.perf_counter()
    await adapter.enqueue(node, [msgspec.structs.replace(job, payload=seconds.encode()) for job in new])
    stage.tell({"asked": began})
    await work(node)


async def asking_sql(node: Node, rate: str, seconds: str) -> None:
    """The same by the SQL function, on a connection that has nothing to do with the node."""
    with psycopg.connect(node.settings.store, autocommit=True) as connection:

        async def by_sql(began: float) -> None:
            await trio.to_thread.run_sync(
                connection.execute, b"select jobpipe.enqueue('counted', %s::text::jsonb)", (repr(began),)
            )

        stage.tell({"waits": await stage.asked(by_sql, float(rate), float(seconds))})
    await work(node)


async def asking_busy(node: Node, rate: str, seconds: str) -> None:
    """Enqueue at a node whose one worker is busy: others run the jobs."""
    await trio.sleep(TENTH)  # then it asks for jobs, and takes its own in the very transaction that stores it
    await adapter.enqueue(node, jobs(f"endless-{os.getpid()}", 1, kind="endless"))
    with trio.fail_after(PATIENCE):
        while not node.held.busy:  # noqa: ASYNC110 - before anything is measured
            await trio.sleep(TENTH)
    await asking(node, rate, seconds)


async def enqueue(node: Node, seconds: str, tasks: str, size: str) -> None:
    """Enqueue so many jobs a call in so many tasks."""
    calls: list[int] = []

    async def one() -> None:
        calls.append(await stage.enqueued(lambda: adapter.enqueue(node, some(int(size))), float(seconds)))

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(int(tasks)):
            nursery.start_soon(one)
    stage.tell({"jobs": sum(calls) * int(size), "seconds": time.perf_counter() - began})


ROLES: dict[str, Callable[..., Awaitable[None]]] = {
    "work": work,
    "asking": asking,
    "asking-many": asking_many,
    "asking-sql": asking_sql,
    "asking-busy": asking_busy,
    "enqueue": enqueue,
}


async def main(url: str, size: int, role: str, *more: str) -> None:
    """Start a node when all are ready, let it do its part, and drain it."""
    busy = role == "asking-busy"
    settings = adapter.settings(
        store=url,
        workers=1 if busy else 4,
        queue_size=0 if busy else size,
        keep_jobs=10**9,
        max_backlog=10**9,
        grace=0,
    )
    async with adapter.opened(url, "full") as store:
        if role == "enqueue":
            await store.pause("default")
        node = adapter.node(settings, store, __name__)
        stage.ready()
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            adapter.spare_the_collector()
            await ROLES[role](node, *more)
            node.drain()


if __name__ == "__main__":
    url, path, count, size, role, *more = sys.argv[1:]
    with adapter.telling_what_is_lacking():
        if role == "fill":
            trio.run(fill, url, int(count), *more)
        else:
            slot = Slot(Path(path), int(count))
            trio.run(main, url, int(size), role, *more)
