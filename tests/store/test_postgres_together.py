"""Several nodes and people at once on one PostgreSQL, at random: nothing is lost, doubled or miscounted."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from jobpipe.job import Options, Outcome, Status
from jobpipe.lanes import Limits, PerKey
from jobpipe.store.base import (
    OTHERS,
    Add,
    Batch,
    Claimed,
    ClaimRequest,
    Retention,
    Settlement,
    Share,
)
from jobpipe.store.postgres import PostgresStore, open_postgres
from tests.store.server import ask, server_url, with_query
from tests.store.test_contract import NOW, new_job, settlement, start, wish

NODES, ROUNDS, IDS = 3, 60, 80
SERVES = (frozenset({"echo", "demo"}), frozenset({"echo"}))

OUTCOMES = [Outcome.DONE, Outcome.DONE, Outcome.FAIL, Outcome.RETRY, Outcome.INTERRUPTED, None]


class Life:
    """One node with its store: what it does, and what it was told that it did."""

    def __init__(self, name: str, store: PostgresStore, chance: random.Random, kinds: frozenset[str]) -> None:
        self.name, self.store, self.chance, self.kinds = name, store, chance, kinds
        self.held: list[Claimed] = []
        self.asked: Sequence[ClaimRequest] = ()
        self.keyed = False
        """whether some of its jobs have keys"""
        self.claims: list[tuple[int, int]] = []
        self.written: list[tuple[int, int]] = []

    async def work(self) -> None:
        """As the engine's ledger does, busy and careless: it starts and settles some of what it holds."""
        for number in range(ROUNDS):
            now = NOW + number
            self.chance.shuffle(self.held)
            settled, self.held = self.held[: self.chance.randrange(8)], self.held[self.chance.randrange(8) :]
            ends = [settlement(job, self.chance.choice(OUTCOMES), now, run_at=now) for job in settled]
            starts = [start(job, now) for job in self.held if self.chance.random() < 0.3]
            receipts = await self.store.exchange(
                Batch(
                    node=self.name,
                    now=now,
                    lease_until=now + 100,
                    starts=starts,
                    settlements=ends,
                    adds=[self.add(now)],
                    claims=[*self.reserved(), *wish(self.chance.randrange(12), self.kinds)],
                )
            )
            for claim, claimed in zip(self.asked, receipts.claims, strict=False):
                assert claim.names is None or {job.queue for job in claimed} <= claim.names
            # What met a lock for too long is not written, and here given up.
            self.note(ends, receipts.stale | receipts.locked)
            assert {job.kind for job in receipts.claimed} <= self.kinds
            self.claims += [(job.seq, job.claim) for job in receipts.claimed]
            self.held += receipts.claimed
            if receipts.lease_lost:
                await self.store.join(self.name, now, now + 100, self.kinds)

    def reserved(self) -> Sequence[ClaimRequest]:
        """A claim of some queues, now and then."""
        queues = self.chance.sample(["x", "y", OTHERS], self.chance.randrange(4))
        shares = [Share(queue, self.chance.randrange(4)) for queue in queues]
        claim = ClaimRequest(limit=self.chance.randrange(1, 6), kinds=self.kinds, queues=shares)
        self.asked = [claim] if shares else []
        return self.asked

    def add(self, now: float) -> Add:
        jobs = [
            new_job(
                f"j{self.chance.randrange(IDS)}",
                kind=self.chance.choice(["echo", "demo"]),
                queue=self.chance.choice("xy"),
                priority=self.chance.randrange(3),
                created_at=now,
                run_at=now + self.chance.choice([0, 0, 2]),
                options=Options(
                    tags=("t",) if self.chance.random() < 0.2 else (),
                    key=self.chance.choice([None, None, "k", "l"]) if self.keyed else None,
                ),
            )
            for _ in range(self.chance.randrange(6))
        ]
        return Add(jobs, atomic=self.chance.random() < 0.3)

    def edits(self, number: int) -> dict[str, Any]:
        """Any of what can be edited."""
        edits: dict[str, Any] = {
            "payload": b"%d" % number,
            "queue": self.chance.choice("xy"),
            "priority": self.chance.randrange(3),
            "run_at": NOW + number + self.chance.choice([0, 2]),
            "tags": self.chance.choice([(), ("t",), ("t", "u")]),
        }
        return {name: value for name, value in edits.items() if self.chance.random() < 0.5}

    def note(self, ends: list[Settlement], lost: frozenset[tuple[int, int]]) -> None:
        self.written += [(one.seq, one.claim) for one in ends if (one.seq, one.claim) not in lost]

    async def meddle(self) -> None:
        """As people and housekeepers do."""
        for number in range(ROUNDS):
            ids = [f"j{self.chance.randrange(IDS)}" for _ in range(3)]
            match self.chance.randrange(10):
                case 0:
                    await self.store.cancel(ids, NOW + number)
                case 1 | 2:
                    await self.store.retry(ids, NOW + number)
                case 3:
                    await self.store.delete(ids, NOW)
                case 4:
                    await self.store.prune(
                        NOW + number, Retention(done_age=20, failed_age=20, jobs=40, size=10**9)
                    )
                case 5:
                    await self.store.leave(f"n{self.chance.randrange(NODES)}")
                case 6:
                    await self.store.rescue(self.name, NOW + number)
                case 7:
                    await self.store.edit(ids, self.edits(number), NOW + number)
                case 8:
                    await self.store.promote(ids, NOW + number)
                case _:
                    await self.store.queues()


@pytest.mark.parametrize(
    ("seed", "keyed"),
    [
        (0, False),
        (3, True),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in ((1, False), (2, False), (4, True))),
    ],
)
async def test_whatever_nodes_and_people_do_at_once_every_row_is_accounted_for(
    schema: str, seed: int, *, keyed: bool
) -> None:
    """Each claim is made once and settled at most once, and the counts are those of the rows. With keys, too."""
    async with AsyncExitStack() as stack:
        lives = []
        for number in range(NODES):
            url = with_query(server_url(), schema=schema)
            store = await stack.enter_async_context(open_postgres(url))
            lives.append(Life(f"n{number}", store, random.Random(seed * 100 + number), SERVES[number % 2]))
            await store.join(f"n{number}", NOW, NOW + 100, SERVES[number % 2])
            lives[-1].keyed = keyed
        if keyed:
            await lives[0].store.put_limits("y", Limits(max_running=9, per_key=PerKey(max_running=4)))
        async with trio.open_nursery() as nursery:
            for life in lives:
                nursery.start_soon(life.work)
                nursery.start_soon(life.meddle)
        counts = {queue.name: queue.counts for queue in await lives[0].store.queues() if queue.counts}
        waiting = (await lives[0].store.exchange(Batch(node="door", now=NOW))).waiting

    claims = Counter(claim for life in lives for claim in life.claims)
    written = Counter(fence for life in lives for fence in life.written)
    rows = ask(f"select queue, status, held, count(*) from {schema}.shown group by 1, 2, 3")
    found: defaultdict[str, Counter[Status]] = defaultdict(Counter)
    for queue, status, _, jobs in rows:
        found[str(queue)][Status(str(status))] += int(str(jobs))

    assert set(claims.values()) == {1}
    assert set(written.values()) == {1}
    assert written.keys() <= claims.keys()
    assert counts == found
    assert waiting == sum(
        int(str(jobs))
        for _, status, held, jobs in rows
        if not held and status in {"scheduled", "queued", "retrying"}
    )
    assert ask(
        f"select count(*) from {schema}.jobs j "
        f"full join {schema}.live l using (seq) full join {schema}.ended e using (seq) "
        "where j.id is null or (l.status is null) = (e.status is null)"
    ) == [(0,)]
    assert ask(
        f"select count(*) from {schema}.tags t where not exists (select from {schema}.jobs j where j.seq = t.seq)"
    ) == [(0,)]
    assert ask(
        f"select count(*) from {schema}.attempts a where not exists (select from {schema}.jobs j where j.seq = a.seq)"
    ) == [(0,)]
