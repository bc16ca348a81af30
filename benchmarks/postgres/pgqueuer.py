"""PgQueuer: asyncpg and uvloop, 100 jobs a batch, durable as it is by default.

`python -m benchmarks.postgres.pgqueuer URL SLOT JOBS QUEUE_SIZE ROLE ...`; its queue size is its own.
"""

import asyncio
import struct
import sys
import time
from pathlib import Path

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from benchmarks.postgres import stage
from benchmarks.postgres.slots import Slot
from benchmarks.work import PAYLOAD, slices

BATCH = 100


async def fill(url: str, count: int) -> None:
    """Its tables, with so many jobs."""
    connection = await asyncpg.connect(url)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    for _, size in slices(count):
        await queries.enqueue(["noop"] * size, [PAYLOAD] * size, [0] * size)
    await connection.close()


async def work(connection: asyncpg.Connection, slot: Slot) -> None:
    """Run jobs until told to stop."""
    queue = PgQueuer(AsyncpgDriver(connection))

    @queue.entrypoint("noop")
    async def noop(job: Job) -> None:
        payload = job.payload or b""
        slot.note(struct.unpack("d", payload)[0] if len(payload) == struct.calcsize("d") else None)

    running = asyncio.create_task(queue.run(batch_size=BATCH))
    await asyncio.to_thread(stage.over)
    running.cancel()


async def asking(connection: asyncpg.Connection, rate: float, seconds: float) -> None:
    """Enqueue at a rate."""
    queries = Queries(AsyncpgDriver(connection))
    waits = await stage.asked_by_asyncio(
        lambda began: queries.enqueue("noop", struct.pack("d", began)), rate, seconds
    )
    stage.tell({"waits": waits})
    await asyncio.to_thread(stage.over)


async def enqueue(connection: asyncpg.Connection, seconds: float, tasks: int, size: int) -> None:
    """Enqueue so many jobs a call in so many tasks."""
    queries, began = Queries(AsyncpgDriver(connection)), time.perf_counter()
    calls = await stage.enqueued_by_asyncio(
        lambda: queries.enqueue(["noop"] * size, [PAYLOAD] * size, [0] * size), seconds, tasks
    )
    stage.tell({"jobs": calls * size, "seconds": time.perf_counter() - began})


async def main(url: str, slot: Slot, role: str, *more: str) -> None:
    """Do one part, when all are ready."""
    connection = await asyncpg.connect(url)
    stage.ready()
    match role, *map(float, more):
        case "work", *_:
            await work(connection, slot)
        case "asking", rate, seconds:
            await asking(connection, rate, seconds)
        case "enqueue", seconds, tasks, size:
            await enqueue(connection, seconds, int(tasks), int(size))


if __name__ == "__main__":
    url, path, count, _, role, *more = sys.argv[1:]
    uvloop.run(
        fill(url, int(count)) if role == "fill" else main(url, Slot(Path(path), int(count)), role, *more)
    )
