"""Procrastinate: psycopg 3, 100 jobs at the same time, notifications on, jobs that are done deleted.

`python -m benchmarks.postgres.procrastinate URL SLOT JOBS QUEUE_SIZE ROLE ...`; its queue size is its own.
"""

import asyncio
import logging
import sys
import time
from pathlib import Path

import procrastinate

from benchmarks.postgres import stage
from benchmarks.postgres.slots import Slot
from benchmarks.work import PAYLOAD, slices

CONCURRENCY = 100
TEXT = PAYLOAD.decode()


class Queue:
    """The app with its one task."""

    def __init__(self, url: str, slot: Slot | None) -> None:
        logging.getLogger("procrastinate").setLevel(logging.ERROR)  # it warns of apps in main modules
        self.app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))

        @self.app.task(name="noop")
        async def noop(payload: object) -> None:
            assert slot is not None
            slot.note(payload)

        self.noop = noop

    async def bulk(self, size: int) -> None:
        """Enqueue so many jobs in one call."""
        if size == 1:
            await self.noop.defer_async(payload=TEXT)
        else:
            await self.noop.batch_defer_async(*({"payload": TEXT} for _ in range(size)))

    async def work(self) -> None:
        """Run jobs until told to stop."""
        running = asyncio.create_task(
            self.app.run_worker_async(
                concurrency=CONCURRENCY,
                delete_jobs="always",
                listen_notify=True,
                install_signal_handlers=False,
            )
        )
        await asyncio.to_thread(stage.over)
        running.cancel()

    async def asking(self, rate: float, seconds: float) -> None:
        """Enqueue at a rate."""
        waits = await stage.asked_by_asyncio(
            lambda began: self.noop.defer_async(payload=began), rate, seconds
        )
        stage.tell({"waits": waits})
        await asyncio.to_thread(stage.over)

    async def enqueue(self, seconds: float, tasks: int, size: int) -> None:
        """Enqueue so many jobs a call in so many tasks."""
        began = time.perf_counter()
        calls = await stage.enqueued_by_asyncio(lambda: self.bulk(size), seconds, tasks)
        stage.tell({"jobs": calls * size, "seconds": time.perf_counter() - began})


async def fill(url: str, count: int) -> None:
    """Its tables, with so many jobs."""
    queue = Queue(url, None)
    async with queue.app.open_async():
        await queue.app.schema_manager.apply_schema_async()
        for _, size in slices(count):
            await queue.bulk(size)


async def main(url: str, slot: Slot, role: str, *more: str) -> None:
    """Do one part, when all are ready."""
    queue = Queue(url, slot)
    async with queue.app.open_async():
        stage.ready()
        match role, *map(float, more):
            case "work", *_:
                await queue.work()
            case "asking", rate, seconds:
                await queue.asking(rate, seconds)
            case "enqueue", seconds, tasks, size:
                await queue.enqueue(seconds, int(tasks), int(size))


if __name__ == "__main__":
    url, path, count, _, role, *more = sys.argv[1:]
    asyncio.run(
        fill(url, int(count)) if role == "fill" else main(url, Slot(Path(path), int(count)), role, *more)
    )
