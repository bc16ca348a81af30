"""Puts jobs into a database through the store itself: `python -m benchmarks.fill FILE STATE COUNT`.

They lie in the queue `default`, which is paused: `waiting` ones behind all others, `scheduled` ones for a year.
"""

import sys
import time
from pathlib import Path

import trio

from benchmarks import adapter
from benchmarks.work import DAY, jobs, slices
from jobpipe.job import Outcome, Status
from jobpipe.store.base import Add, Batch, Claimed, Settlement, Store
from jobpipe.store.factory import open_store

NODE = "filler"
STATES = ("scheduled", "waiting", "finished")


def now() -> float:
    """Seconds since the epoch, as jobpipe keeps them."""
    return round(time.time(), 3)


def ended(job: Claimed) -> Settlement:
    """The settlement of a job that is done."""
    at = now()
    return Settlement(
        seq=job.seq,
        id=job.id,
        queue=job.queue,
        claim=job.claim,
        outcome=Outcome.DONE,
        status=Status.DONE,
        attempt=job.attempt + 1,
        number=job.attempt + 1,
        started_at=at,
        settled_at=at,
        result=b"null",
        size=len(job.payload) + 4,
    )


async def fill(store: Store, state: str, count: int, prefix: str = "behind") -> None:
    """Add so many jobs, and bring them where they are to be."""
    await adapter.join(store, NODE, now(), now() + DAY, ["echo"])
    for number, size in slices(count):
        wait, priority = (365 * DAY if state == "scheduled" else 0), (-1 if state == "waiting" else 0)
        new = jobs(f"{prefix}-{number}", size, kind="echo", priority=priority, wait=wait)
        batch = Batch(node=NODE, now=now(), adds=[Add(new)])
        if state == "finished":
            batch = adapter.claiming(batch, size, ["echo"])
        receipts = await store.exchange(batch)
        if state == "finished":
            assert len(receipts.claimed) == size
            await store.exchange(
                Batch(node=NODE, now=now(), settlements=[ended(job) for job in receipts.claimed])
            )
    await store.leave(NODE)


async def main(path: Path, state: str, count: int) -> None:
    """Fill a file."""
    async with open_store(f"sqlite:{path}", "normal") as store:
        await fill(store, state, count)
        await store.pause("default")


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
