"""Limits and turns hold whoever claims at the same time, rolls back or dies; and what a claim from lanes reads."""

import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack

import psycopg
import pytest
import trio

from jobpipe.job import ENDED, Job, Options, Outcome, State, Status
from jobpipe.lanes import Limits, PerKey, Rate
from jobpipe.obstacles import Obstacle
from jobpipe.store.base import Add, Batch, Claimed, ClaimRequest, Share
from jobpipe.store.migrations import migrations
from jobpipe.store.postgres import PostgresStore, migrate, open_postgres
from jobpipe.store.postgres.address import read_address
from jobpipe.store.postgres.connector import Connector
from jobpipe.store.postgres.connector import Limits as TimeLimits
from jobpipe.store.postgres.nodes import Nodes
from jobpipe.store.postgres.session import Session
from jobpipe.store.postgres.tables import Tables
from jobpipe.store.postgres.writer import Writer
from jobpipe.store.verbs import obstacles
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
        opened = [await stack.enter_async_context(open_postgres(url, leases="caller")) for _ in range(NODES)]
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
        ends = [settlement(job, outcome, run_at=NOW) for job, outcome in zip(settled, outcomes, strict=True)]
        receipts = await self.store.exchange(Batch(node=self.name, now=NOW, settlements=ends, claims=[claim]))
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
            held = (
                f"select queue, key, count(*) from {self._schema}.live where node is not null group by 1, 2"
            )
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


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 2))])
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


async def test_nodes_that_claim_at_once_keep_to_a_rate(schema: str) -> None:
    """By the clock of the database, whatever the nodes think."""
    url = with_query(server_url(), schema=schema)
    taken = Counter[str]()

    def clock() -> float:
        return float(str(ask("select extract(epoch from clock_timestamp())")[0][0]))

    async def work(store: PostgresStore, name: str, ahead: float) -> None:
        for _ in range(50):
            claim = ClaimRequest(limit=5, kinds=ECHO)
            receipts = await store.exchange(Batch(node=name, now=time.time() + ahead, claims=[claim]))
            taken.update(job.options.key for job in receipts.claimed if job.options.key)

    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(open_postgres(url)) for _ in range(NODES)]
        for number, store in enumerate(opened):
            await store.join(f"n{number}", time.time(), time.time() + 15, ECHO)
        limits = Limits(rate=Rate(100, 1.0, 11), per_key=PerKey(rate=Rate(20, 1.0, 5)))
        await opened[0].put_limits("mail", limits)
        jobs = [
            new_job(f"j{number}", queue="mail", options=Options(key=f"k{number % 9}"))
            for number in range(2000)
        ]
        begun = clock()
        await opened[0].exchange(Batch(node="door", now=time.time(), adds=[Add(jobs)]))
        async with trio.open_nursery() as nursery:
            for number, store in enumerate(opened):
                nursery.start_soon(work, store, f"n{number}", number - 2.0)
        seconds = clock() - begun

    assert 11 <= sum(taken.values()) <= 11 + seconds * 90
    assert max(taken.values()) <= 5 + seconds * 16


async def test_a_key_with_very_many_jobs_does_not_keep_others_waiting_on_any_node(
    schema: str, stores: Sequence[PostgresStore]
) -> None:
    """Two nodes take turns over the same keys."""
    few = [f"k{number}" for number in range(9)]
    jobs = [new_job(f"big{number}", queue="mail", options=Options(key="big")) for number in range(600)]
    await stores[0].exchange(Batch(node="n0", now=NOW, adds=[Add(jobs)]))
    jobs = [
        new_job(f"{key}-{number}", queue="mail", options=Options(key=key))
        for number in range(20)
        for key in few
    ]
    await stores[0].exchange(Batch(node="n0", now=NOW, adds=[Add(jobs)]))
    taken: list[str] = []

    async def work(number: int) -> None:
        claim = ClaimRequest(limit=10, kinds=ECHO)
        while len(taken) < 400:
            receipts = await stores[number].exchange(Batch(node=f"n{number}", now=NOW, claims=[claim]))
            taken.extend(job.options.key or "" for job in receipts.claimed)
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(work, number)
    last_of_few = max(place for place, key in enumerate(taken) if key != "big")

    assert Counter(taken[: last_of_few + 1])["big"] <= 20 + 2 * 10
    assert set(few) <= set(taken)


async def test_a_claim_looks_behind_lanes_that_give_nothing(stores: Sequence[PostgresStore]) -> None:
    """However many of them there are: they are closed, and it is asked again."""
    store = stores[0]
    await store.put_limits("mail", Limits(per_key=PerKey(max_running=1)))
    jobs = [
        new_job(f"j{key}-{number}", queue="mail", options=Options(key=f"k{key:02}"))
        for key in range(50)
        for number in range(2)
    ]
    await store.exchange(Batch(node="n0", now=NOW, adds=[Add(jobs)]))
    await store.exchange(Batch(node="n0", now=NOW, claims=[ClaimRequest(limit=50, kinds=ECHO)]))
    await store.put_limits("mail", Limits(per_key=PerKey(max_running=1)))  # opens them all
    late = new_job("late", queue="mail", options=Options(key="zz"))
    await store.exchange(Batch(node="n0", now=NOW, adds=[Add([late])]))
    found: list[str] = []
    for _ in range(30):
        receipts = await store.exchange(Batch(node="n0", now=NOW, claims=[ClaimRequest(limit=2, kinds=ECHO)]))
        found += [job.id for job in receipts.claimed]
        if not receipts.more_ready:
            break

    assert found == ["late"]


async def test_a_job_that_sql_enqueues_keeps_to_the_limits(
    schema: str, stores: Sequence[PostgresStore]
) -> None:
    """Also one that was enqueued before the queue had any, in a transaction that ends later."""
    store = stores[0]
    claim = ClaimRequest(limit=9, kinds=ECHO)
    with psycopg.connect(server_url()) as connection:
        connection.execute(f"select {schema}.enqueue('echo', queue => 'mail', id => 'long')".encode())
        await store.put_limits("mail", Limits(max_running=2))
        await store.exchange(Batch(node="n0", now=NOW, claims=[claim]))
        connection.commit()
    ask(f"select {schema}.enqueue('echo', queue => 'mail', id => 'j' || n) from generate_series(1, 5) n")
    now = float(str(ask("select extract(epoch from clock_timestamp())")[0][0])) + 1
    taken = [await store.exchange(Batch(node="n0", now=now, claims=[claim])) for _ in range(3)]

    assert sum(len(receipts.claimed) for receipts in taken) == 2
    assert (await store.key("mail", "")).waiting == 4


@pytest.mark.parametrize("keyed", [2, 20])
async def test_a_claim_that_begins_anew_takes_no_more_than_it_asks_for(
    schema: str, stores: Sequence[PostgresStore], keyed: int
) -> None:
    """Jobs of its kinds stand aside, which it does not know, and others stand in lanes."""
    await stores[3].join("stranger", NOW, LATER, frozenset({"demo"}))
    store = stores[0]
    jobs = [new_job(f"a{number}") for number in range(20)]
    jobs += [new_job(f"k{number}", queue="mail", options=Options(key="k")) for number in range(keyed)]
    await stores[1].exchange(Batch(node="n1", now=NOW, adds=[Add(jobs)]))
    claims = [ClaimRequest(limit=limit, kinds=ECHO) for limit in (5, 9)]
    receipts = await store.exchange(Batch(node="n0", now=NOW, claims=claims))
    ids = {job.id for job in receipts.claimed}
    held = ask(f"select count(*) from {schema}.live where node is not null")

    assert [len(claimed) for claimed in receipts.claims] == [5, 9]
    assert (len(ids), held) == (14, [(14,)])


async def test_kinds_that_no_node_serves_are_told_of_jobs_in_lanes_too(
    stores: Sequence[PostgresStore],
) -> None:
    """Of the first thousand lanes."""
    store = stores[0]
    asked = [
        ("a", None, "demo"),
        ("b", "k", "demo"),
        ("c", "l", "demo"),
        ("d", "l", "echo"),
        ("e", "m", "none"),
    ]
    jobs = [
        new_job(job_id, kind=kind, queue="mail" if key else "default", options=Options(key=key))
        for job_id, key, kind in asked
    ]
    await store.exchange(Batch(node="n0", now=NOW, adds=[Add(jobs)]))

    assert [(one.kind, one.jobs) for one in await store.unserved()] == [("demo", 3), ("none", 1)]


async def test_damaged_rows_keep_nobody_waiting(schema: str, stores: Sequence[PostgresStore]) -> None:
    """Neither of jobs, nor of lanes, nor of queues."""
    store = stores[0]
    await store.put_limits("mail", Limits(max_running=100, rate=Rate(99, 1.0, 99)))
    await store.put_limits("plain", Limits(per_key=PerKey(max_running=50, rate=Rate(99, 1.0, 99))))
    jobs = [
        new_job(f"{queue}{key}{number}", queue=queue, options=Options(key=key))
        for queue in ("mail", "plain")
        for key in "abcd"
        for number in range(3)
    ]
    await store.exchange(Batch(node="n0", now=NOW, adds=[Add(jobs)]))
    for sql in (
        "delete from {0}.jobs where id = 'maila0'",
        "update {0}.live set kind = 'echo' where seq = (select seq from {0}.jobs where id = 'mailb0')",
        "update {0}.jobs set kind = 'demo' where id = 'mailb0'",
        "update {0}.lanes set turn = '-infinity', tat = 'nan', until = 'infinity' where key = 'a'",
        "update {0}.lanes set turn = 'nan', weight = -5 where key = 'b'",
        "update {0}.lanes set turn = 'infinity', max_running = -1 where key = 'c'",
        "update {0}.lanes set state = 77 where key = 'd' and queue = 'plain'",
        "update {0}.queues set turn = 'nan', tat = 'infinity' where name = 'mail'",
        "update {0}.queues set turn = '-infinity', rate_limit = 5, rate_period = 'nan' where name = 'plain'",
    ):
        ask(sql.format(schema))
    claim = ClaimRequest(limit=100, kinds=ECHO)
    taken = set[str]()
    for now in (NOW, NOW + 2, NOW + 200):
        receipts = await store.exchange(Batch(node="n0", now=now, claims=[claim]))
        taken |= {job.id for job in receipts.claimed}

    assert {one for one in taken if one.startswith("mail")} == {
        *("maila1", "maila2", "mailb1", "mailb2", "maild0", "maild1", "maild2")
    }
    assert {one for one in taken if one.startswith("plain")} == {
        f"plain{key}{number}" for key in "ab" for number in range(3)
    }


async def test_a_job_that_sql_enqueues_may_have_a_key(schema: str, stores: Sequence[PostgresStore]) -> None:
    """It gates its queue, as over HTTP; also one that is due later; and the same again is the same job."""
    store = stores[0]
    await store.put_limits("mail", Limits(per_key=PerKey(max_running=1)))
    call = f"select {schema}.enqueue('echo', queue => %s, id => %s, key => %s, delay => %s)"
    for queue, job_id, key, delay in (
        ("mail", "a", "k", 0),
        ("mail", "b", "k", 0),
        ("mail", "c", "l", 0),
        ("mail", "d", "m", 5),
        ("other", "e", "k", 0),
        ("mail", "a", "k", 0),
    ):
        assert ask(call, queue, job_id, key, delay) == [(job_id,)]
    now = float(str(ask("select extract(epoch from clock_timestamp())")[0][0]))
    claim = ClaimRequest(limit=9, kinds=ECHO)
    first = await store.exchange(Batch(node="n0", now=now, claims=[claim]))
    then = await store.exchange(Batch(node="n0", now=now + 6, claims=[claim]))
    with pytest.raises(psycopg.errors.UniqueViolation):
        ask(call, "mail", "a", "other", 0)

    assert {job.id for job in first.claimed} == {"a", "c", "e"}
    assert {job.options.key for job in first.claimed} == {"k", "l"}
    assert [job.id for job in then.claimed] == ["d"]
    assert await store.gate("other", now) is not None


def test_who_may_enqueue_by_sql_may_do_so_after_the_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function is another one then."""
    every = migrations("jobpipe.store.postgres")
    of_lanes = next(number for number, sql in every if "create table lanes" in sql)
    with new_schema() as name:
        role, url = f"{name}_app", with_query(server_url(), schema=name)
        with monkeypatch.context() as patched:
            before = [(number, sql) for number, sql in every if number < of_lanes]
            patched.setattr("jobpipe.store.postgres.opening.migrations", lambda _: before)
            migrate(url)
        ask(f"create role {role}")
        try:
            ask(f"grant execute on function {name}.enqueue to {role}")
            migrate(url)
            may = ask(f"select has_function_privilege('{role}', '{name}.enqueue'::regproc, 'execute')")
            public = ask(f"select has_function_privilege('public', '{name}.enqueue'::regproc, 'execute')")
            ask(f"drop owned by {role}")
        finally:
            ask(f"drop role {role}")

    assert (may, public) == ([(True,)], [(False,)])


# What is read

LANES, EACH = 1000, 20
_FILL = (
    (
        "with new as (insert into {0}.jobs (id, kind, queue, priority, run_at, max_retries, created_at, payload) "
        f"select 'j' || k || '-' || n, 'echo', 'mail', 0, {NOW}, 3, {NOW}, '1' "
        f"from generate_series(1, {LANES}) k, generate_series(1, {EACH}) n returning *) "
        "insert into {0}.live (seq, kind, queue, key, status, priority, run_at, created_at) "
        "select seq, kind, queue, 'k' || substring(id from '^j(.*)-'), 'queued', priority, run_at, created_at from new"
    ),
    (  # one lane with very many jobs, of a kind that no node serves
        "with new as (insert into {0}.jobs (id, kind, queue, priority, run_at, max_retries, created_at, payload) "
        f"select 'd' || n, 'demo', 'mail', 9, {NOW}, 3, {NOW}, '1' from generate_series(1, 20000) n returning *) "
        "insert into {0}.live (seq, kind, queue, key, status, priority, run_at, created_at) "
        "select seq, kind, queue, 'k1', 'queued', priority, run_at, created_at from new"
    ),
    "insert into {0}.queues (name, gated) values ('mail', true)",
    "insert into {0}.lanes (queue, key, turn) select 'mail', 'k' || n, 0 from generate_series(1, 1000) n",
    "insert into {0}.counts select queue, status, 999, count(*), 0 from {0}.live group by 1, 2",
    "insert into {0}.totals select state, 999, sum(jobs), 0 from {0}.counts group by 1",
    "vacuum (analyze) {0}.jobs",
    "vacuum (analyze) {0}.live",
    "vacuum (analyze) {0}.lanes",
)
_READ = (
    "select coalesce(sum(seq_tup_read), 0)::int, coalesce(sum(idx_tup_fetch), 0)::int from pg_stat_xact_user_tables "
    "where schemaname = %(schema)s and relname in ('jobs', 'live', 'lanes', 'queues', 'lane_news')"
)


class Reading(Counting):
    """Tells how many rows a transaction read, those of lanes and queues too."""

    async def _read(self, session: Session) -> tuple[int, int, int]:
        ((whole, by_index),) = await session.rows(_READ, {"schema": self._schema})
        return whole, by_index, 0


@pytest.fixture(scope="module")
def connection() -> Iterator[Reading]:
    """A connection to a database with a thousand lanes."""
    with new_schema() as name:
        url = with_query(server_url(), schema=name)
        migrate(url)
        for sql in _FILL:
            ask(sql.format(name))
        opened = Reading(Connector(read_address(url), TimeLimits(lease=60.0)))
        trio.run(Nodes(opened, "caller", "lanes").join, "n", NOW, LATER, frozenset({"echo", "other"}))
        try:
            yield opened
        finally:
            opened.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "limits",
    [
        "",
        "max_running = 100000, rate_limit = 1000000, rate_period = 1, rate_burst = 100000",
        "key_max_running = 1000, key_rate_limit = 1000000, key_rate_period = 1, key_rate_burst = 100000",
        "key_order = 'stop'",
    ],
)
async def test_a_claim_from_lanes_reads_what_it_takes(connection: Reading, limits: str) -> None:
    """Of a thousand lanes, one of which has very many jobs; also while many others of them are held."""
    if limits:
        ask(f"update {connection._schema}.queues set {limits}")
    writer = Writer(connection, 0, "caller", "lanes")
    read = []
    held: Sequence[Claimed] = ()
    for limit in (1, 10, 100):
        claim = ClaimRequest(limit=limit, kinds=frozenset({"echo", "other"}))
        ends = [settlement(job, Outcome.DONE) for job in held]
        batch = Batch(node="n", now=NOW, settlements=ends, claims=[claim])
        held = (await writer.exchange(batch, 1.0)).claimed
        read.append((len(held), connection.whole, connection.by_index <= 100 + 40 * (limit + len(ends))))
    await writer.exchange(
        Batch(node="n", now=NOW, settlements=[settlement(job, Outcome.RETRY, run_at=NOW) for job in held]),
        1.0,
    )

    assert read == [(1, 0, True), (10, 0, True), (100, 0, True)]


@pytest.mark.slow
async def test_the_place_in_a_lane_is_read_from_few_rows(connection: Reading) -> None:
    """Also in the one that has very many jobs of a kind that is served nowhere."""

    async def looked(session: Session) -> Obstacle | None:
        job = Job(new_job("j1-20", queue="mail", options=Options(key="k1")), State(Status.QUEUED))
        return await obstacles.first(Tables(session, 1, "caller", "lanes"), job, NOW)

    none = "max_running = null, rate_limit = null, key_max_running = null, key_rate_limit = null, key_order = null"
    ask(f"update {connection._schema}.queues set {none}")
    obstacle = await connection.transact(looked)

    assert obstacle is not None
    assert obstacle == Obstacle(reason="turn", key="k1", place=obstacle.place, exact=True)
    assert obstacle.place in range(10, 21)  # other tests have taken the first ones
    assert (connection.whole, connection.by_index <= 50) == (0, True)
