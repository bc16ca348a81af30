"""What a job costs to enqueue, to claim and to settle at more and more rows: straight through the store, fsync on.

`python -m benchmarks.growth FOLDER REPEATS BATCHES ROWS...` prints, for each verb and number of rows, the
microseconds a job in each repeat; the sizes take turns within a repeat.
"""

import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from benchmarks.adapter import claiming, join
from benchmarks.fill import ended, fill, now
from benchmarks.work import DAY, jobs
from jobpipe.store.base import Add, Batch, Receipts, Store
from jobpipe.store.factory import open_store

SIZE = 64
"""Jobs a batch."""

NODE = "grower"

Costs = dict[str, dict[int, list[float]]]


async def timed(exchange: Callable[[Batch], Awaitable[Receipts]], batch: Batch) -> tuple[float, Receipts]:
    """Microseconds a job, and the receipts."""
    began = time.perf_counter()
    receipts = await exchange(batch)
    return (time.perf_counter() - began) / SIZE * 1e6, receipts


async def one_round(store: Store, prefix: str) -> dict[str, float]:
    """Add a batch, claim a batch, settle it: there are as many waiting jobs after it as before."""
    new = jobs(prefix, SIZE)
    enqueue, _ = await timed(store.exchange, Batch(node=NODE, now=now(), adds=[Add(new)]))
    claim, receipts = await timed(store.exchange, claiming(Batch(node=NODE, now=now()), SIZE, ["noop"]))
    assert len(receipts.claimed) == SIZE
    settlements = [ended(job) for job in receipts.claimed]
    settle, _ = await timed(store.exchange, Batch(node=NODE, now=now(), settlements=settlements))
    return {"enqueue": enqueue, "claim": claim, "settle": settle}


async def main(folder: Path, repeats: int, batches: int, sizes: list[int]) -> Costs:
    """Fill a file for each size, then measure in turns."""
    costs: Costs = defaultdict(lambda: defaultdict(list))
    async with AsyncExitStack() as stack:
        stores: dict[int, Store] = {}
        for rows in sizes:
            path = folder / f"growth-{rows}.db"
            async with open_store(f"sqlite:{path}", "normal") as store:
                await fill(store, "queued", rows)
            stores[rows] = await stack.enter_async_context(open_store(f"sqlite:{path}", "full"))
            await join(stores[rows], NODE, now(), now() + DAY, ["noop"])
        for repeat in range(repeats):
            for rows, store in stores.items():
                rounds = [await one_round(store, f"r{repeat}-{number}") for number in range(batches)]
                for verb in rounds[0]:
                    costs[verb][rows].append(statistics.median(one[verb] for one in rounds))
    return costs


if __name__ == "__main__":
    folder, repeats, batches, *sizes = sys.argv[1:]
    print(json.dumps(trio.run(main, Path(folder), int(repeats), int(batches), [int(one) for one in sizes])))
