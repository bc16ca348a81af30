"""The order within keys holds whoever claims at the same time, commits late, rolls back or dies."""

import itertools
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import psycopg
import pytest
import trio

from jobpipe.job import Options, Outcome
from jobpipe.lanes import Limits, PerKey
from jobpipe.store.base import Add, Batch, Claimed, ClaimRequest
from jobpipe.store.postgres import PostgresStore, migrate, open_postgres
from tests.store.server import ask, new_schema, server_url, with_query
from tests.store.test_contract import LATER, NOW, new_job, settlement
from tests.store.test_postgres_lanes import ECHO, NODES, Life, meddle

ORDERED = Limits(per_key=PerKey(ordered=True))
STOPPING = Limits(per_key=PerKey(ordered=True, on_failure="stop"))
QUEUES = {"go": ORDERED, "halt": STOPPING}
KEYS = ("a", "b", "c")
PRODUCERS, EACH = 3, 40

# What is committed, in an order in which nothing comes before what it has seen.
_LOG = """
create table log (n bigserial primary key, what text, seq bigint, queue text, key text);
create function note() returns trigger language plpgsql as $$
begin
    if tg_table_name = 'stopped_keys' and tg_op = 'INSERT' then
        insert into log (what, seq, queue, key) values ('stops', new.seq, new.queue, new.key);
    elsif tg_table_name = 'stopped_keys' then
        insert into log (what, seq, queue, key) values ('goes on', old.seq, old.queue, old.key);
    elsif tg_op = 'DELETE' then
        insert into log (what, seq, queue, key) values ('ends', old.seq, old.queue, old.key);
    elsif old.node is null and new.node is not null then
        insert into log (what, seq, queue, key) values ('claimed', old.seq, old.queue, old.key);
    elsif old.node is not null and new.node is null then
        insert into log (what, seq, queue, key) values ('back', old.seq, old.queue, old.key);
    end if;
    return null;
end
$$;
create trigger noted after update or delete on live for each row execute function note();
create trigger noted after insert or delete on stopped_keys for each row execute function note();
"""


@pytest.fixture
def schema() -> Iterator[str]:
    """One of its own, that notes what is committed."""
    with new_schema() as name:
        migrate(with_query(server_url(), schema=name))
        with psycopg.connect(server_url(), autocommit=True) as connection:
            connection.execute(f"set search_path = {name}".encode())
            connection.execute(_LOG.encode())
        yield name


@pytest.fixture
async def stores(schema: str) -> AsyncIterator[Sequence[PostgresStore]]:
    """Of several nodes, n0, n1 and so on."""
    url = with_query(server_url(), schema=schema)
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(open_postgres(url, leases="caller")) for _ in range(NODES)]
        for number, store in enumerate(opened):
            await store.join(f"n{number}", NOW, LATER, ECHO)
        yield opened


class DisorderError(AssertionError):
    """What the judge finds."""


class Timed(Life):
    """A node whose clock goes on with each exchange of any node: so jobs wait a while for their retries."""

    ticks = itertools.count()

    async def exchange(
        self, outcomes: Sequence[Outcome | None], settled: Sequence[Claimed], claim: ClaimRequest
    ) -> None:
        now = NOW + next(self.ticks)
        ends = [
            settlement(job, outcome, now, run_at=now + 6)
            for job, outcome in zip(settled, outcomes, strict=True)
        ]
        batch = Batch(node=self.name, now=now, lease_until=now + 1e6, settlements=ends, claims=[claim])
        self.held += (await self.store.exchange(batch)).claimed


class Line:
    """What the judge knows of one key."""

    def __init__(self) -> None:
        self.turn: int | None = None
        """the job that has begun and has not ended"""
        self.held: int | None = None
        self.stops = set[int]()
        self.begun = list[int]()
        """in the order in which they were claimed for the first time"""

    def see(self, what: str, seq: int) -> None:
        match what:
            case "claimed":
                if self.held is not None or self.turn not in (None, seq) or self.stops:
                    raise DisorderError(f"{seq} is claimed: {self.held=} {self.turn=} {self.stops=}")
                self.turn = self.held = seq
                if seq not in self.begun:
                    self.begun.append(seq)
            case "back":
                self.held = None
            case "ends" if seq == self.turn:
                self.turn = self.held = None
            case "stops":
                self.stops.add(seq)
            case "goes on":
                self.stops.discard(seq)


def judged(schema: str, sent: Sequence[Sequence[str]]) -> None:
    """Raises `DisorderError` unless each key ran one job at a time, those of each producer as they were sent."""
    lines: defaultdict[tuple[str, str], Line] = defaultdict(Line)
    events: Sequence[Any] = ask(f"select what, seq, queue, key from {schema}.log order by n")
    for what, seq, queue, key in events:
        lines[queue, key].see(what, seq)
    stored: Sequence[Any] = ask(f"select id, seq from {schema}.jobs")
    seq_of: Mapping[str, int] = dict(stored)
    for jobs, line in itertools.product(sent, lines.values()):
        expected = [seq_of[job] for job in jobs if job in seq_of and seq_of[job] in line.begun]
        began = [seq for seq in line.begun if seq in set(expected)]
        if began != expected:
            raise DisorderError(f"{began} began, sent as {expected}")


async def produce(store: PostgresStore, name: str, chance: random.Random) -> Sequence[str]:
    """Sends jobs one after another, each acknowledged before the next is sent; returns their ids."""
    sent = list[str]()
    while len(sent) < EACH:
        jobs = [
            new_job(
                f"{name}-{len(sent) + number}",
                queue=chance.choice(sorted(QUEUES)),
                max_retries=1000,
                priority=chance.randrange(-5, 5),
                options=Options(key=chance.choice(KEYS)),
            )
            for number in range(chance.randrange(1, 4))
        ]
        await store.exchange(Batch(node="door", now=NOW, adds=[Add(jobs)]))
        sent += [job.id for job in jobs]
    return sent


def enqueue_slowly(schema: str, chance: random.Random, over: trio.Event) -> None:
    """Jobs that get their number early and are committed late, or not at all."""
    number = itertools.count()
    with ExitStack() as stack:
        opened = [stack.enter_context(psycopg.connect(server_url())) for _ in range(4)]
        while not over.is_set():
            connection = chance.choice(opened)
            connection.execute(
                f"select {schema}.enqueue('echo', id => %s, queue => %s, key => %s)".encode(),
                (f"slow{next(number)}", chance.choice(sorted(QUEUES)), chance.choice(KEYS)),
            )
            if chance.random() < 0.5:
                chance.choice([connection.commit, connection.commit, connection.rollback])()
        for connection in opened:
            connection.commit()


async def see_to(store: PostgresStore, chance: random.Random) -> int:
    """Somebody retries or deletes the jobs at which keys have stopped, or has the keys go on."""
    keys = await store.keys("halt", state="stopped")
    for key in keys:
        assert key.stopped_by is not None
        match chance.randrange(3):
            case 0:
                await store.retry([key.stopped_by], NOW)
            case 1:
                await store.delete([key.stopped_by], NOW)
            case _:
                await store.resume_key("halt", key.key)
    return len(keys)


async def live(schema: str, stores: Sequence[PostgresStore], seed: int, sent: list[Sequence[str]]) -> None:
    """Nodes, producers and people at once, until nothing is left; gathers what each producer has `sent`."""
    chance = random.Random(seed)
    for queue, limits in QUEUES.items():
        await stores[0].put_limits(queue, limits)
    lives = [Timed(f"n{number}", store, random.Random(seed + number)) for number, store in enumerate(stores)]
    over = trio.Event()

    async def producer(number: int) -> None:
        store = stores[number % len(stores)]
        sent.append(await produce(store, f"p{number}", random.Random(100 * seed + number)))

    async def person() -> None:
        while not over.is_set():
            await see_to(stores[2], chance)
            await trio.sleep(0.01)

    async with trio.open_nursery() as watching:
        watching.start_soon(trio.to_thread.run_sync, meddle, schema, over)
        watching.start_soon(trio.to_thread.run_sync, enqueue_slowly, schema, random.Random(seed), over)
        watching.start_soon(person)
        try:
            async with trio.open_nursery() as nursery:
                for life in lives:
                    nursery.start_soon(life.work)
                for number in range(PRODUCERS):
                    nursery.start_soon(producer, number)
        finally:
            over.set()
    while True:
        for life in lives:
            await life.drain()
        if not await see_to(stores[2], chance) and ask(f"select count(*) from {schema}.live") == [(0,)]:
            break


async def test_a_job_that_is_committed_late_waits_for_one_that_has_begun(
    schema: str,
    stores: Sequence[PostgresStore],
) -> None:
    """Though its number is smaller: it was acknowledged later."""
    store, claim = stores[0], ClaimRequest(limit=9, kinds=ECHO)
    await store.put_limits("go", ORDERED)
    with psycopg.connect(server_url()) as connection:
        connection.execute(
            f"select {schema}.enqueue('echo', id => 'late', queue => 'go', key => 'a')".encode()
        )
        await store.exchange(
            Batch(node="n0", now=NOW, adds=[Add([new_job("a0", queue="go", options=Options(key="a"))])])
        )
        (first,) = (await store.exchange(Batch(node="n0", now=NOW, claims=[claim]))).claimed
        connection.commit()
    again = settlement(first, Outcome.RETRY, run_at=NOW + 5)
    none = await store.exchange(Batch(node="n0", now=NOW, settlements=[again], claims=[claim]))
    (second,) = (await store.exchange(Batch(node="n0", now=NOW + 5, claims=[claim]))).claimed
    done = [settlement(second, Outcome.DONE)]
    later = float(str(ask("select extract(epoch from clock_timestamp())")[0][0])) + 1
    await store.join("n0", later, later + 60, ECHO)
    (third,) = (await store.exchange(Batch(node="n0", now=later, settlements=done, claims=[claim]))).claimed

    assert (first.id, none.claimed, second.id, third.id) == ("a0", [], "a0", "late")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_the_order_holds_and_no_job_is_forgotten(
    schema: str,
    stores: Sequence[PostgresStore],
    seed: int,
) -> None:
    """Whatever several nodes do at once: they claim, settle, roll back, and die; jobs come late, keys stop."""
    sent = list[Sequence[str]]()
    with trio.fail_after(120):
        await live(schema, stores, seed, sent)

    judged(schema, sent)


BROKEN: Mapping[str, tuple[str, Sequence[tuple[str, str]]]] = {
    "a job that waits for a retry loses its turn": (
        "first_in_line",
        [("order by (l.claim", "and l.status = 'queued' and l.node is null order by (l.claim")],
    ),
    "a key goes on behind a job that failed": (
        "claim_gated",
        [
            ("and exists (select from stopped_keys", "and false and exists (select from stopped_keys"),
            ("when j.stopped then 5", "when false then 5"),
        ],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN)
async def test_the_judge_finds_what_breaks_the_order(
    schema: str,
    stores: Sequence[PostgresStore],
    broken: str,
) -> None:
    """Whether everything runs in the end or not."""
    function, changes = BROKEN[broken]
    body = str(ask(f"select pg_get_functiondef('{schema}.{function}'::regproc)")[0][0])
    for right, wrong in changes:
        assert right in body
        body = body.replace(right, wrong)
    ask(f"set search_path = {schema}; {body}")
    sent = list[Sequence[str]]()
    with trio.move_on_after(20):
        await live(schema, stores, 1, sent)
    with pytest.raises(DisorderError):
        judged(schema, sent)
