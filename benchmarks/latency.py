"""From enqueue to the handler's first line on an idle node in this process, beside one commit alone.

`python -m benchmarks.latency FILE SAMPLES` prints the seconds of both, sample by sample in turn. The node's jobs go
to the queue `front`; what lies in `default` lies behind them.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import trio
import trio.lowlevel

from benchmarks import adapter
from benchmarks.plain import INSERT, table
from benchmarks.work import PAYLOAD, jobs
from jobpipe import handler
from jobpipe.clock import WallClock
from jobpipe.engine.node import Node
from jobpipe.handlers.registry import load
from jobpipe.service import spare_the_collector
from jobpipe.settings import Settings
from jobpipe.store.factory import open_store

IDLE = 0.01
"""Seconds between two samples, so that the node sleeps when the next comes."""

started: list[float] = []


@handler("started")
async def note_start(_: Any) -> None:  # noqa: ANN401 - takes any payload
    """Note when it began."""
    started.append(time.perf_counter())


async def measure(node: Node, path: Path, samples: int) -> tuple[list[float], list[float]]:
    """The waits from enqueue to start, and the times of the commits."""
    plain = table(path, "full")
    starts, commits = [], []
    for number in range(samples):
        await trio.sleep(IDLE)
        now, began = time.time(), time.perf_counter()
        with plain:
            plain.execute(INSERT, (f"latency-{number}", "echo", PAYLOAD, 3, now, now))
        commits.append(time.perf_counter() - began)
        await trio.sleep(IDLE)
        (job,) = jobs(f"latency-{number}", 1, kind="started")
        job = msgspec.structs.replace(job, queue="front")
        began = time.perf_counter()
        await adapter.enqueue(node, [job])
        while len(started) == number:
            await trio.lowlevel.checkpoint()
        starts.append(started[-1] - began)
    return starts, commits


async def main(path: Path, samples: int) -> tuple[list[float], list[float]]:
    """Start a node on a file, measure, and end it."""
    settings = Settings(store=f"sqlite:{path}", keep_jobs=10**9, max_backlog=10**9)
    async with open_store(settings.store, settings.sync) as store:
        await store.pause("default")
        node = Node(settings, store, load([__name__]), WallClock())
        with trio.fail_after(600):
            async with trio.open_nursery() as nursery:
                await nursery.start(node.run)
                spare_the_collector()
                result = await measure(node, path.with_name(f"plain-{path.name}"), samples)
                node.drain()
    return result


if __name__ == "__main__":
    starts, commits = trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps({"starts": starts, "commits": commits}))
