"""One node in this process, without HTTP in front: `python -m benchmarks.ab.play ROLE STORE ...`.

The roles are the functions at the end; each prints what it found as JSON. CPU is that of this process.
"""

import json
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from benchmarks import adapter
from benchmarks.fill import NODE, ended, now
from benchmarks.work import DAY, jobs
from jobpipe import handler
from jobpipe.engine.node import Node
from jobpipe.job import NewJob
from jobpipe.store.base import Add, Batch, Settlement, Store

WORKERS = 4
SEED = 4
"""Of the order of mixed jobs: every run of every version has the same."""

URGENT = 1000
"""The priority of the urgent job."""

IDLE = 0.01
"""Seconds between two samples, so that the node sleeps when the next comes."""

SETTLED = 0.25
"""Seconds after the first job has begun, when a node has claimed what it claims for later."""

PATIENCE = 600

Told = dict[str, Any]
Run = tuple[float, float]


class Runs:
    """When jobs began and ended, by the clock that every process of this machine shares."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.ended: list[Run] = []
        self._more = trio.Event()

    async def run(self, seconds: float) -> None:
        """Be a job that takes so long."""
        began = time.perf_counter()
        self.begun.append(began)
        self._tell()
        if seconds:
            await trio.sleep(seconds)
        self.ended.append((began, time.perf_counter()))
        self._tell()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Return when this is so."""
        while not reached():
            await self._more.wait()

    def _tell(self) -> None:
        self._more.set()
        self._more = trio.Event()


runs, urgent_runs = Runs(), Runs()


@handler("work")
async def work(seconds: Any) -> None:  # noqa: ANN401 - a number
    """Take so long."""
    await runs.run(seconds)


@handler("urgent")
async def run_urgent(_: Any) -> None:  # noqa: ANN401 - takes any payload
    """Take no time."""
    await urgent_runs.run(0)


@asynccontextmanager
async def running(store: Store, url: str) -> AsyncIterator[Node]:
    """A node that runs as long as the context is open; what runs then is cancelled."""
    settings = adapter.settings(store=url, workers=WORKERS, keep_jobs=10**9, max_backlog=10**9, grace=0)
    node = adapter.node(settings, store, __name__)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        adapter.spare_the_collector()
        yield node
        node.stop()


async def latency(store: Store, url: str, samples: str) -> Told:
    """From enqueue to the handler's first line on an idle node, so many times."""
    starts = []
    async with running(store, url) as node:
        worked = time.process_time()
        for number in range(int(samples)):
            await trio.sleep(IDLE)
            new = work_of([0.0], f"latency-{number}")
            began = time.perf_counter()
            await adapter.enqueue(node, new)
            while len(runs.begun) == number:
                await trio.lowlevel.checkpoint()
            starts.append(runs.begun[-1] - began)
        worked = time.process_time() - worked
    return {"starts": starts, "cpu": worked}


async def urgent(store: Store, url: str, count: str, seconds: str) -> Told:
    """From enqueue to start of one job of the highest priority, behind many that wait and some that run."""
    async with running(store, url) as node:
        behind = work_of([float(seconds)] * int(count), "report")
        await adapter.enqueue(node, [msgspec.structs.replace(job, queue="reports") for job in behind])
        await runs.until(lambda: len(runs.begun) == WORKERS)
        await trio.sleep(SETTLED)
        (job,) = jobs("urgent", 1, kind="urgent", priority=URGENT)
        asked = time.perf_counter()
        await adapter.enqueue(node, [msgspec.structs.replace(job, queue="mail")])
        await urgent_runs.until(lambda: bool(urgent_runs.begun))
        return {"seconds": urgent_runs.begun[0] - asked}


async def mixed(store: Store, url: str, count: str, seconds: str) -> Told:
    """When each of many jobs ran, half of them short, that wait when the node starts."""
    new = mixture(int(count), float(seconds))
    await store.exchange(Batch(node=NODE, now=now(), adds=[Add(new)]))
    async with running(store, url):
        await runs.until(lambda: len(runs.ended) == len(new))
    return {"runs": runs.ended}


async def pool(store: Store, _: str, count: str, seconds: str) -> Told:
    """The same jobs run by tasks that each claim one job at a time, by the store's own verbs."""
    new = mixture(int(count), float(seconds))
    await store.exchange(Batch(node=NODE, now=now(), adds=[Add(new)]))
    await adapter.join(store, NODE, now(), now() + DAY, ["work"])
    async with trio.open_nursery() as nursery:
        for _ in range(WORKERS):
            nursery.start_soon(claim_and_run, store)
    return {"runs": runs.ended}


async def claim_and_run(store: Store) -> None:
    """Settle the job before, claim one, run it, until there is no more."""
    settlements: Sequence[Settlement] = ()
    while True:
        receipts = await store.exchange(
            adapter.claiming(Batch(node=NODE, now=now(), settlements=settlements), 1, ["work"])
        )
        if not receipts.claimed:
            return
        await runs.run(msgspec.json.decode(receipts.claimed[0].payload))
        settlements = [ended(receipts.claimed[0])]


def work_of(seconds: Sequence[float], prefix: str) -> list[NewJob]:
    """A job for each of these times."""
    new = jobs(prefix, len(seconds), kind="work")
    return [
        msgspec.structs.replace(job, payload=msgspec.json.encode(each))
        for job, each in zip(new, seconds, strict=True)
    ]


def mixture(count: int, seconds: float) -> list[NewJob]:
    """So many jobs, half of 1 ms and half of so many seconds, in an order that is always the same."""
    times = [0.001] * (count // 2) + [seconds] * (count - count // 2)
    random.Random(SEED).shuffle(times)  # noqa: S311 - an order, no secret
    return work_of(times, "mixed")


ROLES: dict[str, Callable[..., Awaitable[Told]]] = {
    "latency": latency,
    "urgent": urgent,
    "mixed": mixed,
    "pool": pool,
}


async def main(role: str, url: str, *more: str) -> Told:
    """Play a role over a store."""
    async with adapter.opened(url) as store:
        with trio.fail_after(PATIENCE):
            return await ROLES[role](store, url, *more)


if __name__ == "__main__":
    with adapter.telling_what_is_lacking():
        print(json.dumps(trio.run(main, *sys.argv[1:])))
