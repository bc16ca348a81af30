"""A day of load in small: many jobs through the tables, and how the tables and an exchange look along the way.

`python -m benchmarks.postgres.churn URL JOBS POINTS`. Each exchange adds 200 jobs, takes 200 and settles those before;
20,000 wait all the time; retention keeps 100,000 that have ended, as maintenance does it.
"""

import sys
import time
from collections.abc import Sequence

import psycopg
import trio

from benchmarks.adapter import claiming, join
from benchmarks.fill import NODE, ended, now
from benchmarks.measuring import quantile
from benchmarks.work import DAY, jobs, slices
from jobpipe.store.base import STEP, Add, Batch, Claimed, Retention, Store
from jobpipe.store.factory import open_store

STEP_SIZE = 200
WAITING = 20_000
KEPT = Retention(done_age=DAY, failed_age=DAY, jobs=100_000, size=10**12)
PAUSE = 1.0
"""Seconds between two looks for what is to be pruned."""

TABLES = ("jobs", "live", "counts")
SIZES = (
    b"select relname, n_live_tup, n_dead_tup, pg_table_size(relid), pg_indexes_size(relid), "
    b"vacuum_count + autovacuum_count "
    b"from pg_stat_user_tables where schemaname = 'jobpipe' and relname = any(%b)"
)
HEAD = (
    f"{'jobs':>10}{'jobs/s':>9}{'exchange p50':>14}{'p99':>9}{'claim':>10}   "
    f"{'table':<8}{'rows':>10}{'dead':>10}{'table MB':>10}{'indexes MB':>12}{'vacuums':>9}"
)


class Churn:
    """Jobs through the tables."""

    def __init__(self, store: Store, url: str) -> None:
        self._store, self._url = store, url
        self._taken: Sequence[Claimed] = ()
        self._jobs = 0

    async def fill(self) -> None:
        """Those that wait all the time."""
        for number, size in slices(WAITING):
            await self._store.exchange(Batch(node=NODE, now=now(), adds=[Add(jobs(f"wait-{number}", size))]))

    async def some(self, count: int) -> list[float]:
        """So many jobs; returns the seconds of each exchange."""
        waits = []
        for number, size in slices(count, STEP_SIZE):
            new, settled = jobs(f"{self._jobs}-{number}", size), [ended(job) for job in self._taken]
            lease = now() + DAY if number % STEP_SIZE == 0 else None
            began = time.perf_counter()
            batch = Batch(node=NODE, now=now(), lease_until=lease, settlements=settled, adds=[Add(new)])
            receipts = await self._store.exchange(claiming(batch, size, ["noop"]))
            waits.append(time.perf_counter() - began)
            self._taken = receipts.claimed
        self._jobs += count
        return waits

    async def claim(self) -> float:
        """Seconds of an exchange that only takes one job."""
        began = time.perf_counter()
        receipts = await self._store.exchange(claiming(Batch(node=NODE, now=now()), 1, ["noop"]))
        self._taken = [*self._taken, *receipts.claimed]
        return time.perf_counter() - began

    async def prune(self) -> None:
        """Delete what is too much, for ever."""
        while True:
            if await self._store.prune(now(), KEPT) < STEP:
                await trio.sleep(PAUSE)

    async def point(self, count: int) -> None:
        """So many jobs, and a line on how it stands."""
        began = time.perf_counter()
        waits = await self.some(count)
        took = time.perf_counter() - began
        claims = [await self.claim() for _ in range(20)]
        line = f"{self._jobs:>10,}{count / took:>9,.0f}" + "".join(
            f"{seconds * 1000:>{width - 3}.1f} ms"
            for seconds, width in (
                (quantile(waits, 0.5), 14),
                (quantile(waits, 0.99), 9),
                (quantile(claims, 0.5), 10),
            )
        )
        for number, table in enumerate(_tables(self._url)):
            print(f"{line if not number else '':<52}   {table}", flush=True)


def _tables(url: str) -> list[str]:
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute(SIZES, (list(TABLES),)).fetchall()
    rows.sort(key=lambda row: TABLES.index(row[0]))
    return [
        f"{name:<8}{live:>10,}{dead:>10,}{table / 1e6:>10.1f}{indexes / 1e6:>12.1f}{vacuums:>9,}"
        for name, live, dead, table, indexes, vacuums in rows
    ]


async def main(url: str, count: int, points: int) -> None:
    """Drive it, and print a line at each point."""
    async with open_store(url, "full") as store, trio.open_nursery() as nursery:
        await join(store, NODE, now(), now() + DAY, ["noop"])
        churn = Churn(store, url)
        await churn.fill()
        nursery.start_soon(churn.prune)
        print(HEAD, flush=True)
        for _ in range(points):
            await churn.point(count // points)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
