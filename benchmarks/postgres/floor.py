"""The floor: one task settles and claims in one transaction, a memory channel, four workers. No features.

`python -m benchmarks.postgres.floor URL SLOT JOBS QUEUE_SIZE ROLE ...`; the roles are the functions at the end.
"""

import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import trio

from benchmarks.postgres import stage
from benchmarks.postgres.slots import Slot
from benchmarks.work import PAYLOAD, slices

WORKERS = 4
IDLE = 0.001

TABLE = """
create table if not exists jobs (
    seq bigint generated always as identity primary key, id text not null unique, kind text not null,
    payload bytea, status text not null default 'queued', priority int not null default 0,
    run_at timestamptz not null default now(), attempt int not null default 0, max_retries int not null default 3,
    created_at timestamptz not null default now(), started_at timestamptz, finished_at timestamptz, node text,
    claim bigint not null default 0, error text, result bytea
) with (fillfactor = 70);
create index if not exists ready on jobs (priority desc, run_at, seq) where status = 'queued';
"""
PLANS = """
set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off; set enable_bitmapscan = off;
set plan_cache_mode = force_generic_plan; set jit = off;
"""
"""As jobpipe has it. Left to itself the planner reads whole tables when many jobs go by, and the floor caves in."""

INSERT = (
    b"insert into jobs (id, kind, payload) select id, 'noop', payload "
    b"from unnest(%b::text[], %b::bytea[]) as v (id, payload) on conflict do nothing"
)
SETTLE = (
    b"update jobs j set status = 'done', finished_at = now(), node = null, result = v.result "
    b"from unnest(%b::bigint[], %b::bigint[], %b::bytea[]) as v (seq, claim, result) "
    b"where j.seq = v.seq and j.claim = v.claim and j.status = 'running'"
)
CLAIM = (
    b"with ready as (select seq from jobs where status = 'queued' and run_at <= now() "
    b"order by priority desc, run_at, seq limit %b for update skip locked) "
    b"update jobs j set status = 'running', attempt = attempt + 1, claim = claim + 1, "
    b"started_at = now(), node = 'n' from ready where j.seq = ready.seq "
    b"returning j.seq, j.claim, j.id, j.kind, j.payload, j.attempt, j.max_retries"
)

Row = tuple[Any, ...]
Connection = psycopg.Connection[Row]
numbers = itertools.count()


def insert(connection: Connection, count: int, payload: bytes = PAYLOAD) -> None:
    """So many new jobs."""
    ids = [f"{os.getpid()}-{next(numbers)}" for _ in range(count)]
    connection.execute(INSERT, (ids, [payload] * count), prepare=True, binary=True)


def settle_and_claim(connection: Connection, ended: list[Row], room: int) -> list[Row]:
    """One transaction, one round trip."""
    rows: list[Row] = []
    with connection.pipeline():
        if ended:
            seqs, claims, results = map(list, zip(*ended, strict=True))
            connection.execute(SETTLE, (seqs, claims, results), prepare=True, binary=True)
        cursor = connection.execute(CLAIM, (room,), prepare=True, binary=True) if room else None
        connection.commit()
        if cursor:
            rows = cursor.fetchall()
    return rows


class Pipeline:
    """Connection, channel, workers."""

    def __init__(self, connection: Connection, slot: Slot, size: int) -> None:
        self._connection, self._slot, self._size = connection, slot, size
        self._send, self._receive = trio.open_memory_channel[Row](size)
        self._ended: list[Row] = []
        self._took = trio.Event()
        self._thread = trio.CapacityLimiter(1)

    async def run(self) -> None:
        """Run jobs for ever."""
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(self._work, self._receive.clone())
            await self._claim()

    async def _claim(self) -> None:
        while True:
            room = self._size - self._send.statistics().current_buffer_used
            rows = await self._step(room)
            for row in rows:
                self._send.send_nowait(row)
            if not rows:
                await trio.sleep(IDLE)
            while self._send.statistics().current_buffer_used > self._size // 2:
                self._took = trio.Event()
                await self._took.wait()

    async def _work(self, receive: trio.MemoryReceiveChannel[Row]) -> None:
        async for row in receive:
            self._took.set()
            with trio.move_on_after(60):
                self._ended.append((row[0], row[1], await self._noop()))

    async def _noop(self) -> bytes:
        self._slot.note(None)
        return b"null"

    async def _step(self, room: int) -> list[Row]:
        ended, self._ended = self._ended, []
        return await trio.to_thread.run_sync(
            settle_and_claim, self._connection, ended, room, limiter=self._thread
        )


def fill(url: str, count: int) -> None:
    """The table, with so many jobs."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(TABLE.encode())
        for _, size in slices(count):
            insert(connection, size)


def work(connection: Connection, slot: Slot, size: int) -> None:
    """Run jobs until told to stop."""

    async def main() -> None:
        pipeline = Pipeline(connection, slot, size)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipeline.run)
            await trio.to_thread.run_sync(stage.over)
            nursery.cancel_scope.cancel()

    trio.run(main)


def commits(connection: Connection, rate: float, seconds: float) -> Iterator[float]:
    """Insert one job a commit at a rate, as well as it goes; yields how long each took."""
    for at in stage.times(rate, seconds):
        time.sleep(max(0.0, at - time.perf_counter()))
        began = time.perf_counter()
        insert(connection, 1)
        connection.commit()
        yield time.perf_counter() - began


def enqueue(connection: Connection, seconds: float, size: int) -> None:
    """Insert so many jobs a commit."""
    done, began = 0, time.perf_counter()
    while time.perf_counter() < began + seconds:
        insert(connection, size)
        connection.commit()
        done += size
    stage.tell({"jobs": done, "seconds": time.perf_counter() - began})


def main(url: str, slot: Slot, size: int, role: str, *more: str) -> None:
    """Do one part, when all are ready."""
    with psycopg.connect(url) as connection:
        connection.execute(PLANS.encode())
        connection.commit()
        stage.ready()
        match role, *map(float, more):
            case "work", *_:
                work(connection, slot, size)
            case "asking", rate, seconds:
                stage.tell({"waits": list(commits(connection, rate, seconds))})
                stage.over()
            case "enqueue", seconds, tasks, jobs:
                enqueue(connection, seconds, int(tasks * jobs))


if __name__ == "__main__":
    url, path, count, size, role, *more = sys.argv[1:]
    if role == "fill":
        fill(url, int(count))
    else:
        main(url, Slot(Path(path), int(count)), int(size), role, *more)
