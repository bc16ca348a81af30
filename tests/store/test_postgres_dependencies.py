"""Jobs that wait for others on a PostgreSQL that nodes share: who sees whom, and who waits for which lock."""

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from types import ModuleType
from typing import Any

import psycopg
import pytest
import trio

from jobpipe.job import ENDED, NewJob, Options, Outcome, Status
from jobpipe.store.base import Add, Batch, Changed, Claimed, GroupReceipt, Receipt, Receipts, Store
from jobpipe.store.postgres import PostgresStore, open_postgres
from jobpipe.store.postgres.session import Session
from jobpipe.store.postgres.tables import _LOCK_STANDING
from jobpipe.store.verbs import dependencies, groups
from tests.store.server import ask, empty_schema, server_url, with_query
from tests.store.test_contract import NOW, Node, add, get, new_job, settlement, start, wish
from tests.store.test_dependencies import dependent, enqueue, followed, statuses
from tests.store.test_groups import new_group
from tests.store.test_postgres_deadlocks import LONG, Other


@pytest.fixture
def schema() -> Iterator[str]:
    with empty_schema() as name:
        yield name


@pytest.fixture
async def store(schema: str) -> AsyncIterator[Store]:
    url = with_query(server_url(), schema=schema)
    async with open_postgres(url, lease=2 * LONG, leases="caller") as opened:
        yield opened


@pytest.fixture
async def node(store: Store) -> Node:
    one = Node(store)
    await one.join()
    return one


@pytest.fixture
def other(store: Store, schema: str) -> Iterator[Other]:
    with psycopg.connect(server_url()) as connection:
        connection.execute(f"set search_path = {schema}".encode())
        connection.commit()
        yield Other(connection)
        connection.rollback()


# --- an add, and an end at the same time ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["done", "failed"])
async def test_an_add_waits_for_an_end_that_is_under_way(node: Node, other: Other, status: str) -> None:
    """And goes by what came of it: it is neither blocked for ever nor refused for nothing."""
    await add(node.store, new_job("a"), new_job("b"))
    await node.claim(1)
    # As an exchange of another node, before its commit.
    other.connection.execute("delete from live where seq = (select seq from jobs where id = 'a')")
    other.connection.execute(
        "insert into ended (seq, status, kind, queue, created_at, run_at, attempt, claim, rescued, finished_at, size) "
        f"select seq, '{status}', kind, queue, created_at, run_at, 1, 1, 0, {NOW}, 0 from jobs where id = 'a'".encode()
    )
    told: list[Receipt] = []

    async def asked() -> None:
        told.extend(await enqueue(node.store, dependent("x", "a", "b")))

    with trio.fail_after(LONG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asked)
            await other.blocks()
            other.connection.commit()

    if status == "done":
        assert told[0].job is not None
        assert (told[0].verdict, told[0].job.status) == ("stored", Status.BLOCKED)
        assert (await node.store.open_dependencies("x", 9)).ids == ["b"]
    else:
        assert told == [Receipt("dependency_failed", dependencies=["a"])]


async def test_an_end_waits_for_an_add_that_is_under_way(node: Node, other: Other) -> None:
    """And does what follows for the new job, which its own statement could not see when it began."""
    await add(node.store, new_job("a"))
    job = await node.take()
    # As an add of another node, before its commit.
    other.lock("live", "a")
    other.connection.execute("update live set followed = true")
    other.connection.execute(
        "with new as (insert into jobs (id, kind, queue, priority, run_at, created_at, payload) "
        f"values ('x', 'echo', 'default', 0, {NOW}, {NOW}, '1') returning *), "
        "alive as (insert into live (seq, queue, status, priority, run_at, created_at) "
        "select seq, queue, 'blocked', priority, run_at, created_at from new) "
        "insert into waits select (select seq from jobs where id = 'a'), seq, 1 from new".encode()
    )
    told: list[Receipts] = []

    async def settled() -> None:
        told.append(await node.settle(job, Outcome.DONE))

    with trio.fail_after(LONG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(settled)
            await other.blocks()
            other.connection.commit()

    assert (told[0].stale, told[0].changes) == (frozenset(), [Changed("x", Status.QUEUED)])
    assert await statuses(node.store, "ax") == ["done", "queued"]


async def test_an_add_waits_for_no_lock_while_it_holds_one(node: Node, other: Other) -> None:
    """However the locks of others lie: so it is in no deadlock with an exchange."""
    await add(node.store, *(new_job(job_id) for job_id in "abc"))
    other.lock("live", "b")
    told: list[Receipt] = []

    async def asked() -> None:
        told.extend(await enqueue(node.store, dependent("x", "a", "b", "c")))

    with trio.fail_after(LONG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asked)
            await other.blocks()
            other.lock("live", "a", wait=False)
            other.lock("live", "c", wait=False)
            other.connection.rollback()

    assert told[0].verdict == "stored"
    assert (await node.store.open_dependencies("x", 9)).ids == ["a", "b", "c"]


@pytest.mark.parametrize("before", ["absent", "failed"])
async def test_an_add_locks_a_job_that_came_or_was_retried_after_it_had_locked_the_others(
    node: Node, schema: str, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Or that one would end unseen."""
    await add(node.store, new_job("b", run_at=NOW + 60))
    if before == "failed":
        await add(node.store, new_job("a"))
        await node.settle(await node.take(), Outcome.FAIL)
    genuine, looks = Session.rows, list[str]()

    async def rows(self: Session, sql: str, *values: Any) -> Any:
        found = await genuine(self, sql, *values)
        if sql == _LOCK_STANDING and not looks:
            looks.append(sql)
            async with open_postgres(with_query(server_url(), schema=schema), leases="caller") as second:
                await (second.retry(["a"], NOW) if before == "failed" else add(second, new_job("a")))
        return found

    monkeypatch.setattr(Session, "rows", rows)
    (receipt,) = await enqueue(node.store, dependent("x", "a", "b"))

    assert looks
    assert receipt.verdict == "stored"
    assert ask(f"select count(*) from {schema}.live where followed") == [(2,)]
    assert (await node.store.open_dependencies("x", 9)).count == 2


# --- locks of other programs ------------------------------------------------------------------------------------------


async def test_a_lock_on_a_blocked_job_keeps_nobody_from_ending(node: Node, other: Other) -> None:
    """The end is noted, and the job is released once its row is free."""
    await add(node.store, new_job("a"))
    await enqueue(node.store, dependent("x", "a"), dependent("y", "a"))
    other.lock("live", "x")
    receipts = await node.settle(await node.take(), Outcome.DONE)
    before = await statuses(node.store, "axy")
    step = await node.store.follow(NOW)
    other.connection.rollback()
    after = await followed(node.store)

    assert (receipts.following, before) == (True, ["done", "blocked", "queued"])
    assert (list(step.changes), step.more) == ([], True)
    assert [list(one.changes) for one in after] == [[Changed("x", Status.QUEUED)]]


async def test_a_lock_on_a_job_that_others_wait_for_costs_its_own_settlement(
    node: Node, other: Other
) -> None:
    """Those of others are written, with what follows; it is tried again later."""
    await add(node.store, new_job("a"), new_job("b"), new_job("c"))
    await enqueue(node.store, dependent("x", "a"), dependent("y", "b"))
    claimed = await node.claim(3)
    other.lock("live", "a")
    receipts = await node.exchange(settlements=[settlement(job, Outcome.DONE) for job in claimed])
    before = await statuses(node.store, "abcxy")
    other.connection.rollback()
    again = await node.settle(claimed[0], Outcome.DONE)

    assert receipts.locked == {(claimed[0].seq, claimed[0].claim)}
    assert not receipts.stale
    assert before == ["queued", "done", "done", "blocked", "queued"]
    assert (again.locked, again.stale, again.changes) == (
        frozenset(),
        frozenset(),
        [Changed("x", Status.QUEUED)],
    )


async def test_two_nodes_that_end_the_last_two_at_once_release_the_job(node: Node, other: Other) -> None:
    """Whoever finds it locked by the other leaves a note."""
    await add(node.store, new_job("a"), new_job("b"))
    await enqueue(node.store, dependent("x", "a", "b"))
    first, second = await node.claim(2)
    await node.settle(first, Outcome.DONE)
    other.lock("live", "x")  # as the other one, who looks for others that it waits for
    receipts = await node.settle(second, Outcome.DONE)
    other.connection.rollback()
    await followed(node.store)

    assert receipts.following
    assert await statuses(node.store, "x") == ["queued"]


# --- what it costs others ---------------------------------------------------------------------------------------------


async def test_a_batch_that_ends_no_job_for_which_others_wait_runs_not_one_statement_more(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a transaction more, whoever waits for what."""
    await add(node.store, *(new_job(f"a{number}") for number in range(6)), new_job("b", run_at=NOW + 60))
    claimed = list(await node.claim(6))
    ran: list[str] = []
    run, begin = Session.run, Session.begin

    def counted(self: Session, sql: str, *values: Any, **how: Any) -> Any:
        ran.append(sql)
        return run(self, sql, *values, **how)

    def begun(self: Session, command: bytes) -> None:
        ran.append("begin")
        begin(self, command)

    monkeypatch.setattr(Session, "run", counted)
    monkeypatch.setattr(Session, "begin", begun)

    async def batch() -> list[str]:
        """What a busy node's exchange runs."""
        ran.clear()
        ends = [
            settlement(claimed.pop(), Outcome.DONE),
            settlement(claimed.pop(), Outcome.FAIL),
            settlement(claimed.pop(), None),
        ]
        await node.exchange(settlements=ends, adds=[Add([new_job(f"c{len(claimed)}")])])
        return list(ran)

    alone = await batch()
    await enqueue(node.store, dependent("x", "b"))
    beside = await batch()

    assert beside == alone
    assert alone.count("begin") == 1


# --- several nodes at once --------------------------------------------------------------------------------------------

NODES, ROUNDS = 3, 40


class Life:
    """A node that adds jobs crosswise, claims, starts and ends them, and people who meddle; all at random."""

    def __init__(self, name: str, store: PostgresStore, chance: random.Random, ids: list[str]) -> None:
        self.name, self.store, self.chance, self.ids = name, store, chance, ids
        self.held: list[Claimed] = []
        self.needs: dict[str, Options] = {}

    async def work(self) -> None:
        for number in range(ROUNDS):
            self.chance.shuffle(self.held)
            cut = self.chance.randrange(8)
            settled, self.held = self.held[:cut], self.held[cut:]
            outcomes = [Outcome.DONE, Outcome.DONE, Outcome.DONE, Outcome.FAIL, Outcome.INTERRUPTED]
            ends = [settlement(job, self.chance.choice(outcomes), NOW + number) for job in settled]
            receipts = await self.store.exchange(
                Batch(
                    node=self.name,
                    now=NOW + number,
                    lease_until=NOW + 1000,
                    starts=[start(job) for job in self.held if self.chance.random() < 0.5],
                    settlements=ends,
                    adds=[Add([new_job(self.new_id(number, part)) for part in range(2)])],
                    claims=wish(8),
                )
            )
            assert not receipts.lease_lost
            self.held += receipts.claimed
            self.held += [job for job in settled if (job.seq, job.claim) in receipts.locked]

    async def add(self) -> None:
        for number in range(ROUNDS):
            jobs: list[NewJob] = []
            for part in range(3):
                known = [*self.ids[-30:], *(job.id for job in jobs)]
                on = self.chance.sample(known, min(len(known), self.chance.randrange(1, 6)))
                needs = self.chance.choice(["done", "ended"])
                jobs.append(dependent(f"d{self.name}-{number}-{part}", *on, needs=needs))
            receipts = await self.store.add_dependents(jobs, atomic=self.chance.random() < 0.5)
            stored = [job for job, one in zip(jobs, receipts, strict=True) if one.verdict == "stored"]
            self.ids += [job.id for job in stored]
            self.needs |= {job.id: job.options for job in stored}

    async def meddle(self) -> None:
        for number in range(ROUNDS):
            ids = self.chance.sample(self.ids, min(2, len(self.ids)))
            match self.chance.randrange(4):
                case 0:
                    await self.store.cancel(ids, NOW + number)
                case 1:
                    await self.store.edit(ids, {"priority": number}, NOW + number)
                case _:
                    await self.store.follow(NOW + number)

    def new_id(self, number: int, part: int) -> str:
        job_id = f"p{self.name}-{number}-{part}"
        self.ids.append(job_id)
        return job_id


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 3))])
async def test_nodes_that_add_and_end_crosswise_leave_nobody_waiting(schema: str, seed: int) -> None:
    """Nobody is in a deadlock, and in the end every job has come to what it had to."""
    deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
    before = ask(deadlocks)
    ids: list[str] = []
    async with AsyncExitStack() as stack:
        lives = []
        for number in range(NODES):
            url = with_query(server_url(), schema=schema)
            store = await stack.enter_async_context(open_postgres(url))
            lives.append(Life(f"n{number}", store, random.Random(seed * 100 + number), ids))
            await store.join(f"n{number}", NOW, NOW + 1000, frozenset({"echo"}))
        with trio.fail_after(LONG):
            async with trio.open_nursery() as nursery:
                for life in lives:
                    nursery.start_soon(life.work)
                    nursery.start_soon(life.add)
                    nursery.start_soon(life.meddle)
            node = Node(lives[0].store, "n0", frozenset({"echo"}))
            held = [job for life in lives for job in life.held]
            while held := [*held, *await node.claim(200, NOW + 1000)]:
                await node.exchange(settlements=[settlement(job, Outcome.DONE) for job in held])
                await followed(lives[0].store)
                held = []
        left = (await lives[0].store.exchange(Batch(node="door", now=NOW + 5000))).waiting
        found = {job_id: await get(lives[0].store, job_id) for life in lives for job_id in life.needs}
        others = {
            one: await get(lives[0].store, one)
            for job in found.values()
            for one in job.asked.options.depends_on
        }

    assert left == 0
    assert ask(deadlocks) == before
    assert {job.status for job in (*found.values(), *others.values())} <= ENDED
    for job in found.values():
        options = job.asked.options
        vain = [one for one in options.depends_on if others[one].status is not Status.DONE]
        if options.needs == "done" and vain:
            assert job.status is Status.CANCELLED
        elif job.state.error is not None:
            assert job.state.error.type != "DependencyFailed"
    for table in ("waits", "follow_ups"):
        assert ask(f"select count(*) from {schema}.{table}") == [(0,)]


# --- a group that two nodes store at the same time --------------------------------------------------------------------


@pytest.mark.parametrize(("room", "step"), [(groups, "_known"), (groups, "_taken"), (dependencies, "add")])
async def test_a_group_that_another_node_stores_meanwhile_is_that_group(
    store: Store, schema: str, monkeypatch: pytest.MonkeyPatch, room: ModuleType, step: str
) -> None:
    """A request that is sent again before the first one is answered meets jobs that were not there a moment ago.

    Whichever of its looks comes after the first one's commit.
    """
    new, real = new_group("a", "b"), getattr(room, step)
    async with open_postgres(with_query(server_url(), schema=schema), leases="caller") as elsewhere:

        async def late(*which: Any, **how: Any) -> Any:
            monkeypatch.setattr(room, step, real)
            assert (await elsewhere.add_group(new, NOW)).verdict == "stored"
            return await real(*which, **how)

        monkeypatch.setattr(room, step, late)
        receipt = await store.add_group(new, NOW)

    assert receipt == GroupReceipt("existing")
