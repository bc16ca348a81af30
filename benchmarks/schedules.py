"""What schedules cost, of which as many fire a second however many there are.

`python -m benchmarks.schedules fill URL COUNT PERIOD` puts so many schedules into a new store, each of which fires once
in PERIOD seconds, one after the other.

`... fires URL SECONDS` has a node fire them and run their jobs, and prints how many seconds of CPU a second that takes
this process, and by how many seconds the handler's first line was behind the time of each firing.

`... costs REPEATS FIRINGS URL...` prints what a firing costs in each store, in microseconds: alone in its transaction,
and among 100 of them; the stores take turns. Its clock is the schedules' own: it does not wait for them.
"""

import itertools
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import apsw
import trio

from benchmarks import adapter
from benchmarks.fill import NODE, ended, now
from benchmarks.work import DAY, PAYLOAD
from jobpipe import Context, handler
from jobpipe.job import NewJob
from jobpipe.schedules import Spec, decided, template
from jobpipe.store.base import SCHEDULES, Batch, Store
from jobpipe.store.verbs.schedules import encode

BEFORE = 1.0
"""Seconds for which a node runs before it is measured: it catches up with what was due before it began."""

PATIENCE = 60.0
"""Seconds for the first firing."""

COLUMNS = "name, version, spec, job, next_at, last_at, created_at"

late: list[float] = []


@handler("counted")
async def counted(_: Any, job: Context) -> None:  # noqa: ANN401 - takes any payload
    """Note how late it is."""
    assert job.schedule
    late.append(time.time() - job.schedule.at)


def rows(count: int, period: float, base: float) -> Iterator[tuple[Any, ...]]:
    """Schedules as `put_schedule` stores them, which fire after `base`, and have fired a period ago."""
    new = NewJob(
        id="",
        kind="counted",
        queue="default",
        payload=PAYLOAD,
        priority=0,
        max_retries=3,
        created_at=0,
        run_at=0,
    )
    job = encode(template(new))
    for number in range(count):
        at = round(base + number * period / count, 3)
        spec = Spec(every=period, starts_at=at)
        yield f"schedule-{number:07}", 1, encode(spec), job, at, round(at - period, 3), base


async def fill(url: str, count: int, period: float) -> None:
    """Put schedules into a new store, many at a time, since a transaction for each would take minutes."""
    async with adapter.opened(url, "normal") as store:
        await store.ping()
    if url.startswith(adapter.POSTGRES):
        _copy(url, count, period)
    else:
        with apsw.Connection(url.removeprefix("sqlite:")) as connection:
            sql = f"insert into schedules ({COLUMNS}) values (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - no input
            connection.executemany(sql, rows(count, period, now()))


def _copy(url: str, count: int, period: float) -> None:
    import psycopg  # noqa: PLC0415 - not needed for a file

    with psycopg.connect(url) as connection:
        with connection.cursor().copy(f"copy jobpipe.schedules ({COLUMNS}) from stdin".encode()) as copying:
            for row in rows(count, period, now()):
                copying.write_row(row)
        connection.execute("analyze jobpipe.schedules")


async def fires(url: str, seconds: float) -> dict[str, Any]:
    """Have a node fire what is due, for so many seconds."""
    settings = adapter.settings(store=url, keep_jobs=10**9, max_backlog=10**9)
    async with adapter.opened(url) as store:
        node = adapter.node(settings, store, __name__)
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            adapter.spare_the_collector()
            await trio.sleep(BEFORE)
            late.clear()
            began, worked = time.perf_counter(), time.process_time()
            await trio.sleep(seconds)
            with trio.fail_after(PATIENCE):
                while not late:  # noqa: ASYNC110 - on a machine that is far too busy for this
                    await trio.sleep(seconds)
            cpu = (time.process_time() - worked) / (time.perf_counter() - began)
            told = list(late)
            node.drain()
    return {"cpu": cpu, "late": told}


async def one_round(store: Store, at_once: int) -> float:
    """Microseconds a firing, where so many are due at once. Their jobs are ended, so that none overlaps the next."""
    due = await store.due_schedules(1e11, at_once)
    at = due.schedules[-1].next_at
    assert at is not None
    began = time.perf_counter()
    due = await store.due_schedules(at, SCHEDULES)
    fired = await store.fire([decided(one, at) for one in due.schedules], at)
    took = time.perf_counter() - began
    assert len(fired.stored) == len(due.schedules) >= at_once, fired
    claim = adapter.claiming(Batch(node=NODE, now=at + 1), SCHEDULES, ["counted"])
    claimed = (await store.exchange(claim)).claimed
    await store.exchange(Batch(node=NODE, now=at + 1, settlements=[ended(job) for job in claimed]))
    return took / len(due.schedules) * 1e6


async def costs(repeats: int, firings: int, urls: list[str]) -> list[dict[str, list[float]]]:
    """What a firing costs in each store."""
    found: list[dict[str, list[float]]] = [defaultdict(list) for _ in urls]
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(adapter.opened(url)) for url in urls]
        for store in stores:
            await adapter.join(store, NODE, now(), now() + DAY, ["counted"])
            await one_round(store, 1)  # what is done once, at the first of them
        for _ in range(repeats):
            took: list[dict[int, list[float]]] = [defaultdict(list) for _ in urls]
            for at_once, _ in itertools.product((1, SCHEDULES), range(firings)):
                for store, times in zip(stores, took, strict=True):
                    times[at_once].append(await one_round(store, at_once))
            for cost, times in zip(found, took, strict=True):
                for at_once, each in times.items():
                    cost[str(at_once)].append(statistics.median(each))
    return found


if __name__ == "__main__":
    match sys.argv[1:]:
        case "fill", url, count, period:
            trio.run(fill, url, int(count), float(period))
        case "fires", url, seconds:
            print(json.dumps(trio.run(fires, url, float(seconds))))
        case "costs", repeats, firings, *urls:
            print(json.dumps(trio.run(costs, int(repeats), int(firings), urls)))
