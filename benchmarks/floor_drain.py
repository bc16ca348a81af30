"""The floor of a drain: one task claims and settles in one transaction, a memory channel, four workers. No features.

`python -m benchmarks.floor_drain FILE JOBS QUEUE_SIZE SYNC` prints the seconds that it took.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import apsw
import trio

from benchmarks.plain import INSERT, table
from benchmarks.work import PAYLOAD, slices

WORKERS = 4

SETTLE = (
    "update jobs set status = 'done', finished_at = ?, result = ?, node = null "
    "where seq = ? and claim = ? and status = 'running'"
)
CLAIM = (
    "update jobs set status = 'running', attempt = attempt + 1, claim = claim + 1, started_at = ?1, node = 'n' "
    "where seq in (select seq from jobs where status = 'queued' and run_at <= ?1 "
    "order by priority desc, run_at, seq limit ?2) returning seq, claim, id, kind, payload, attempt, max_retries"
)

Row = tuple[Any, ...]


class Pipeline:
    """Table, channel, workers."""

    def __init__(self, connection: apsw.Connection, size: int) -> None:
        self._connection, self._size = connection, size
        self._send, self._receive = trio.open_memory_channel[Row](size)
        self._ended: list[Row] = []
        self._took = trio.Event()
        self._thread = trio.CapacityLimiter(1)

    async def drain(self, jobs: int) -> None:
        """Run so many jobs, and write how they ended."""
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(self._work, self._receive.clone())
            self._receive.close()
            await self._claim(jobs)
        await self._step(0)

    async def _claim(self, jobs: int) -> None:
        with self._send:
            while jobs:
                room = self._size - self._send.statistics().current_buffer_used
                rows = await self._step(min(room, jobs))
                jobs -= len(rows)
                for row in rows:
                    self._send.send_nowait(row)
                while self._send.statistics().current_buffer_used > self._size // 2:
                    self._took = trio.Event()
                    await self._took.wait()

    async def _work(self, receive: trio.MemoryReceiveChannel[Row]) -> None:
        with receive:
            async for row in receive:
                self._took.set()
                with trio.move_on_after(60):
                    self._ended.append((time.time(), await noop(row[4]), row[0], row[1]))

    async def _step(self, room: int) -> list[Row]:
        ended, self._ended = self._ended, []
        return await trio.to_thread.run_sync(self._written, ended, room, limiter=self._thread)

    def _written(self, ended: list[Row], room: int) -> list[Row]:
        rows: list[Row] = []
        with self._connection:
            self._connection.executemany(SETTLE, ended)
            if room:
                rows = self._connection.execute(CLAIM, (time.time(), room)).fetchall()
        return rows


async def noop(_: bytes) -> bytes:
    """Do nothing."""
    return b"null"


def main(path: Path, jobs: int, size: int, sync: str) -> float:
    """Fill the table, drain it; returns the seconds of the drain."""
    connection = table(path, sync)
    for number, count in slices(jobs):
        now = time.time()
        with connection:
            connection.executemany(
                INSERT, [(f"j-{number}-{one}", "noop", PAYLOAD, 3, now, now) for one in range(count)]
            )

    async def timed() -> float:
        pipeline = Pipeline(connection, size)
        began = time.perf_counter()
        await pipeline.drain(jobs)
        return time.perf_counter() - began

    took = trio.run(timed)
    assert connection.execute("select count(*) from jobs where status = 'done'").get == jobs
    return took


if __name__ == "__main__":
    print(json.dumps({"seconds": main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])}))
