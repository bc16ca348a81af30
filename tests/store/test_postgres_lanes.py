"""Limits and turns hold whoever claims at the same time, rolls back or dies; and what a claim from lanes reads."""

import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest
import trio

from jobpipe.job import ENDED, Options, Outcome
from jobpipe.lanes import Limits, PerKey, Rate
from jobpipe.store.base import Add, Batch, Claimed, ClaimRequest, Receipts, Share
from jobpipe.store.postgres import PostgresStore, migrate, open_postgres
from jobpipe.store.postgres.address import read_address
from jobpipe.store.postgres.connector import Connector
from jobpipe.store.postgres.connector import Limits as TimeLimits
from jobpipe.store.postgres.nodes import Nodes
from jobpipe.store.postgres.session import Session
from jobpipe.store.postgres.writer import Writer
from tests.store.server import ask, empty_schema, new_schema, server_url, with_query
from tests.store.test_contract import LATER, NOW, new_job, settlement
from tests.store.test_postgres_plans import Counting

ECHO = frozenset({"echo"})
NODES, ROUNDS, JOBS = 4, 40, 300

OUTCOMES = [Outcome.DONE, Outcome.DONE, Outcome.DONE, Outcome.FAIL, Outcome.RETRY, None]

ALLOWED = {"both": (5, 2), "keys": (None, 1), "whole": (3, None)}
"""Of each queue how many jobs may run, and of each of its keys."""


@pytest.fixture
def schema() -> Iterator[str]:
    with empty_schema() as name:
        yield name


@pytest.fixture
async def stores(schema: str) -> AsyncIterator[Sequence[PostgresStore]]:
    """Of several nodes, n0, n1 and so on."""
    url = with_query(server_url(), schema=schema)
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(open_postgres(url, leases="caller")) for _ in range(NODES)
        ]
        for number, store in enumerate(opened):
            await store.join(f"n{number}", NOW, LATER, ECHO)
        yield opened


class Life:
    """A node that claims and settles; now and then it dies, and comes again under another name."""

    def __init__(self, name: str, store: PostgresStore, chance: random.Random) -> None:
        self.name, self.store, self.chance = name, store, chance
        self.held: list[Claimed] = []
        self.done = Counter[str]()

    async def work(self) -> None:
        for _ in range(ROUNDS):
            await self.turn()
            if self.chance.random() < 0.1:
                await self.die()

    async def turn(self) -> None:
        """An exchange that settles some of what it holds, and claims."""
        self.chance.shuffle(self.held)
        count = self.chance.randrange(len(self.held) + 1)
        settled, self.held = self.held[:count], self.held[count:]
        shares = [Share(queue, 2) for queue in self.chance.sample(sorted(ALLOWED), self.chance.randrange(3))]
        await self.exchange(
            [self.chance.choice(OUTCOMES) for _ in settled],
            settled,
            ClaimRequest(
                limit=self.chance.randrange(1, 9), kinds=ECHO, queues=shares, free=self.chance.randrange(9)
            ),
        )

    async def exchange(
        self, outcomes: Sequence[Outcome | None], settled: Sequence[Claimed], claim: ClaimRequest
    ) -> None:
        ends = [
            settlement(job, outcome, run_at=NOW) for job, outcome in zip(settled, outcomes, strict=True)
        ]
        receipts = await self.store.exchange(
            Batch(node=self.name, now=NOW, settlements=ends, claims=[claim])
        )
        self.done += Counter(
            one.id for one in ends if one.status in ENDED and (one.seq, one.claim) not in receipts.stale
        )
        self.held += receipts.claimed

    async def drain(self) -> None:
        """End whatever is there, all at one time: no lane is opened by the clock."""
        idle = 0
        while idle < 2:
            settled, self.held = self.held, []
            await self.exchange([Outcome.DONE] * len(settled), settled, ClaimRequest(limit=8, kinds=ECHO))
            idle = 0 if self.held else idle + 1

    async def die(self) -> None:
        """What it holds is rescued by somebody."""
        await self.store.leave(self.name)
        self.held = []
        self.name += "+"
        await self.store.join(self.name, NOW, LATER, ECHO)
        await self.store.rescue(self.name, NOW)


class Observer:
    """Sees every committed state that it looks at, and the most that ran of a queue and of a key."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self.most: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.looks = 0

    def watch(self, over: trio.Event) -> None:
        with psycopg.connect(server_url(), autocommit=True) as connection:
            held = f"select queue, key, count(*) from {self._schema}.live where node is not null group by 1, 2"
            while not over.is_set():
                running = Counter[str]()
                for queue, _, jobs in connection.execute(held.encode()).fetchall():
                    running[queue] += jobs
                    self.most[queue][1] = max(self.most[queue][1], jobs)
                for queue, jobs in running.items():
                    self.most[queue][0] = max(self.most[queue][0], jobs)
                self.looks += 1


def meddle(schema: str, over: trio.Event) -> None:
    """Claims what it can, again and again, and rolls back."""
    steps = [
        "select move_into_lanes(1000)",
        "select line_up('{}', '{}', '{}', '{}')",
        f"select open_due({NOW})",
        "select lock_limited(null)",
        f"select seq from claim_gated('n0', {NOW}, 4, 4, array['echo'], 1, 1, null, null)",
    ]
    with psycopg.connect(server_url()) as connection:
        connection.execute(f"set search_path = {schema}".encode())
        connection.execute(b"set lock_timeout = '500ms'")
        connection.commit()
        while not over.is_set():
            for sql in steps:
                connection.execute(sql.encode())
            connection.rollback()


@pytest.mark.parametrize("seed", range(2))
async def test_no_limit_is_passed_and_no_job_is_forgotten(
    schema: str, stores: Sequence[PostgresStore], seed: int
) -> None:
    """Whatever several nodes do at once: they claim, settle, roll back, and die."""
    chance = random.Random(seed)
    for queue, (whole, each) in ALLOWED.items():
        await stores[0].put_limits(queue, Limits(max_running=whole, per_key=PerKey(max_running=each)))
    jobs = [
        new_job(
            f"j{number}",
            queue=chance.choice(sorted(ALLOWED)),
            max_retries=1000,
            options=Options(key=chance.choice([None, "a", "b", "c"])),
        )
        for number in range(JOBS)
    ]
    lives = [Life(f"n{number}", store, random.Random(seed + number)) for number, store in enumerate(stores)]
    observer, over = Observer(schema), trio.Event()
    async with trio.open_nursery() as watching:
        watching.start_soon(trio.to_thread.run_sync, observer.watch, over)
        watching.start_soon(trio.to_thread.run_sync, meddle, schema, over)
        async with trio.open_nursery() as nursery:
            for life in lives:
                nursery.start_soon(life.work)
            for first in range(0, JOBS, 10):
                added = [Add(jobs[first : first + 10])]
                await stores[1].exchange(Batch(node="door", now=NOW, adds=added))
        over.set()
    for life in lives:
        await life.drain()

    assert observer.looks > 0
    for queue, (whole, each) in ALLOWED.items():
        most_of_queue, most_of_key = observer.most[queue]
        assert 0 < most_of_queue <= (whole or JOBS)
        assert 0 < most_of_key <= (each or JOBS)
    done = sum((life.done for life in lives), Counter[str]())
    assert set(done.values()) == {1}
    assert ask(f"select count(*) from {schema}.live") == [(0,)]
    assert ask(f"select count(*) from {schema}.lane_news") == [(0,)]
