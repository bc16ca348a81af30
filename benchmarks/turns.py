"""How long others wait for one who has very many jobs: `python -m benchmarks.turns STORE JOBS OTHERS`.

A node works on so many jobs of one key. While it does, others enqueue one job each, of a key of their own. Prints the
seconds until the last of those has run.
"""

import json
import sys
import time
from typing import Any

import trio

from benchmarks import adapter
from benchmarks.drain import Countdown
from benchmarks.fill import NODE, now
from benchmarks.shapes import with_options
from benchmarks.work import jobs, slices
from jobpipe import handler
from jobpipe.store.base import Add, Batch

SETTLED = 0.3
"""Seconds for which the node works on the jobs of the one, before those of others come."""

others: Countdown


@handler("mine")
async def mine(_: Any) -> None:  # noqa: ANN401 - takes any payload
    """Do nothing, for very many jobs."""


@handler("theirs")
async def theirs(_: Any) -> None:  # noqa: ANN401 - takes any payload
    """Do nothing but count."""
    others.one_less()


async def main(url: str, count: int, number: int) -> dict[str, float]:
    """Measure the wait."""
    global others
    settings = adapter.settings(store=url, queue_size=64, max_backlog=10**9)
    async with adapter.opened(url) as store:
        for part, size in slices(count):
            new = [with_options(job, key="mine") for job in jobs(f"mine-{part}", size, kind="mine")]
            await store.exchange(Batch(node=NODE, now=now(), adds=[Add(new)]))
        others, node = Countdown(number), adapter.node(settings, store, __name__)
        with trio.fail_after(600):
            async with trio.open_nursery() as nursery:
                await nursery.start(node.run)
                await trio.sleep(SETTLED)
                new = jobs("theirs", number, kind="theirs")
                began = time.perf_counter()
                await adapter.enqueue(
                    node, [with_options(job, key=f"k{place}") for place, job in enumerate(new)]
                )
                await others.over.wait()
                seconds = time.perf_counter() - began
                node.drain()
    return {"seconds": seconds}


if __name__ == "__main__":
    with adapter.telling_what_is_lacking():
        print(json.dumps(trio.run(main, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
