"""Requests that are merged on a PostgreSQL that nodes share: who sees whom, who waits for which lock, what it costs."""

import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import msgspec
import psycopg
import pytest
import trio

from jobpipe.errors import StoreUnavailable
from jobpipe.job import NewJob, Outcome, Status
from jobpipe.merging import Holder, Taken
from jobpipe.store.base import Add, Batch, Claimed, Receipt, Retention, Store
from jobpipe.store.postgres import PostgresStore, open_postgres
from jobpipe.store.postgres.session import Session
from jobpipe.store.verbs import merging
from jobpipe.store.verbs.merging import Merging
from jobpipe.store.verbs.transaction import Transaction
from tests.store.server import ask as server_says
from tests.store.server import empty_schema, server_url, with_query
from tests.store.test_contract import NOW, Node, add, get, new_job, settlement, wish
from tests.store.test_merging import ask, debounced, throttled, unique
from tests.store.test_postgres_deadlocks import LONG, Other


@pytest.fixture
def schema() -> Iterator[str]:
    with empty_schema() as name:
        yield name


@pytest.fixture
async def store(schema: str) -> AsyncIterator[Store]:
    async with opened(schema) as one:
        yield one


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


def opened(schema: str) -> Any:
    return open_postgres(with_query(server_url(), schema=schema), lease=2 * LONG, leases="caller")


# --- two at the same time ---------------------------------------------------------------------------------------------


async def asked_at_once(schema: str, first: NewJob, second: NewJob) -> tuple[Receipt, Receipt]:
    """Two nodes ask; the second comes to the key while the first has stored its job and has not committed."""
    write, stored, go_on = Merging.write, trio.Event(), trio.Event()
    told: dict[str, Receipt] = {}

    async def slow(self: Merging) -> None:
        await write(self)
        if first in self._jobs:
            stored.set()
            await go_on.wait()

    async def asks(store: Store, job: NewJob) -> None:
        (told[job.id],) = await ask(store, job)

    with pytest.MonkeyPatch.context() as patch, trio.fail_after(LONG):
        patch.setattr(Merging, "write", slow)
        async with opened(schema) as one, opened(schema) as two, trio.open_nursery() as nursery:
            nursery.start_soon(asks, one, first)
            await stored.wait()
            nursery.start_soon(asks, two, second)
            await _one_waits()
            go_on.set()
    return told[first.id], told[second.id]


async def _one_waits() -> None:
    """Return when a transaction waits for another one."""
    query = "select count(*) from pg_stat_activity where cardinality(pg_blocking_pids(pid)) > 0"
    while not server_says(query)[0][0]:  # noqa: ASYNC110 - no event tells
        await trio.sleep(0.01)


async def test_of_two_requests_at_once_the_second_sees_what_the_first_has_stored(schema: str) -> None:
    """Though it was not there when its own statement began."""
    first, second = await asked_at_once(schema, unique("a"), unique("b", on_conflict="reject"))

    assert (first.verdict, second.verdict, second.other) == ("stored", "not_unique", "a")


async def test_the_same_request_at_once_is_one_job(schema: str) -> None:
    """Although the key is taken when the second one looks: by itself."""
    _, second = await asked_at_once(schema, unique(on_conflict="reject"), unique(on_conflict="reject"))

    assert second.verdict == "existing"


async def test_a_request_that_replaces_one_which_was_not_there_when_it_began(schema: str) -> None:
    _, second = await asked_at_once(schema, debounced("a", NOW), debounced("b", NOW + 1))

    assert (second.verdict, second.other) == ("replaced", "a")


async def test_to_lock_and_look_in_one_statement_is_not_enough(
    schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement that waits for a lock sees of other rows what was there when it began: a job comes twice."""
    monkeypatch.setattr(merging, "_locked", _locked_and_looked)
    monkeypatch.setattr(merging, "_look_at_holders", _not_again)
    first, second = await asked_at_once(schema, unique("a"), unique("b", on_conflict="reject"))

    assert (first.verdict, second.verdict) == ("stored", "stored")


_LOCK_AND_LOOK = f"""
with locked as ({merging._LOCK})
select l.key, l.seq, l.id, l.claim, l.since, l.until, s.status, s.claim, s.created_at, s.run_at
from locked l left join {{shown}} s on s.seq = l.seq
"""


async def _locked_and_looked(tx: Transaction, names: Sequence[str]) -> dict[str, merging._Key]:
    keys = msgspec.json.encode([{"key": name} for name in names]).decode()
    found = {}
    for row in await tx.rows(_LOCK_AND_LOOK, {"keys": keys}):
        key = merging._Key(Taken(*row[:6]))
        key.holder = None if row[6] is None else Holder(Status(row[6]), *row[7:])
        found[row[0]] = key
    return found


async def _not_again(tx: Transaction, keys: Sequence[merging._Key]) -> None:
    await trio.lowlevel.checkpoint()


async def test_a_retry_by_hand_waits_for_a_request_that_takes_its_key(node: Node, schema: str) -> None:
    """And sees that the job is there."""
    await ask(node.store, unique("a"))
    await node.store.cancel(["a"], NOW)
    told: list[Any] = []
    write, stored, go_on = Merging.write, trio.Event(), trio.Event()

    async def slow(self: Merging) -> None:
        await write(self)
        stored.set()
        await go_on.wait()

    async def retried(store: Store) -> None:
        told.extend(await store.retry(["a"], NOW))

    with pytest.MonkeyPatch.context() as patch, trio.fail_after(LONG):
        patch.setattr(Merging, "write", slow)
        async with opened(schema) as two, trio.open_nursery() as nursery:
            nursery.start_soon(ask, node.store, unique("b"))
            await stored.wait()
            nursery.start_soon(retried, two)
            await _one_waits()
            go_on.set()

    assert [(one.verdict, one.other) for one in told] == [("not_unique", "b")]


# --- locks of others --------------------------------------------------------------------------------------------------


async def test_a_replacement_waits_for_a_claim_that_is_under_way(node: Node, other: Other) -> None:
    """And leaves alone what that has taken: the next one lines up."""
    await ask(node.store, debounced("a", NOW))
    told: list[Receipt] = []

    async def asked() -> None:
        told.extend(await ask(node.store, debounced("b", NOW + 5)))

    # As an exchange of another node, before its commit.
    held = "update live set node = (select min(node) from nodes), claim = 1, status = 'queued'"
    with trio.fail_after(LONG):
        async with trio.open_nursery() as nursery:
            other.connection.execute(held.encode())
            nursery.start_soon(asked)
            await other.blocks()
            other.connection.commit()

    assert told == [Receipt("stored")]
    assert (await get(node.store)).asked.payload == b'"a"'


async def test_a_job_that_is_deleted_while_a_request_waits_for_it_is_gone(node: Node, other: Other) -> None:
    await ask(node.store, debounced("a", NOW))
    told: list[Receipt] = []

    async def asked() -> None:
        told.extend(await ask(node.store, debounced("b", NOW + 1)))

    with trio.fail_after(LONG):
        async with trio.open_nursery() as nursery:
            other.connection.execute(b"delete from live")
            other.connection.execute(b"delete from jobs")
            nursery.start_soon(asked)
            await other.blocks()
            other.connection.commit()

    assert told == [Receipt("stored")]


async def test_who_deletes_a_job_waits_for_nobody_who_has_its_key(node: Node, other: Other) -> None:
    """Or the two would wait for one another."""
    await ask(node.store, unique("a"))
    other.connection.execute(b"select from uniques for update")
    with trio.fail_after(LONG):
        (change,) = await node.store.delete(["a"], NOW)
        await ask(node.store, unique("b", key="l"))
        await node.settle(await node.take(), Outcome.DONE)
        pruned = await node.store.prune(NOW + 1, Retention(done_age=0, failed_age=0, jobs=0, size=0))
    other.connection.rollback()
    (again,) = await ask(node.store, unique("c"))

    assert (change.verdict, pruned, again.verdict) == ("changed", 1, "stored")


async def test_a_retry_by_hand_locks_keys_before_jobs(node: Node, other: Other) -> None:
    """As an add does, which may wait for a job while it has a key: else the two would wait for one another."""
    await ask(node.store, unique("a"))
    await node.store.cancel(["a"], NOW)
    await add(node.store, new_job("b"))
    other.connection.execute(b"select from uniques for update")
    with trio.fail_after(LONG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.store.retry, ["a", "b"], NOW)
            await other.blocks()
            other.lock("live", "b", wait=False)
            other.lock("jobs", "a", wait=False)
            other.connection.rollback()


# --- what it costs others ---------------------------------------------------------------------------------------------


async def test_whoever_has_no_key_asks_for_none(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to be stored, run, retried and deleted, nor beside those that have one."""
    await ask(node.store, unique("k", run_at=NOW + 60))
    ran: list[str] = []
    run = Session.run

    def noted(self: Session, sql: str, *values: Any, **how: Any) -> Any:
        ran.append(sql)
        return run(self, sql, *values, **how)

    monkeypatch.setattr(Session, "run", noted)
    await add(node.store, new_job("a"), new_job("b"))
    job = await node.take()
    await node.start(job)
    await node.settle(job, Outcome.FAIL)
    await node.store.retry(["a"], NOW)
    await node.store.edit(["a"], {"priority": 1}, NOW)
    await node.store.cancel(["a"], NOW)
    await node.store.delete(["a"], NOW)
    await node.store.add_dependents([new_job("c")], atomic=True)

    assert ran
    assert not [sql for sql in ran if "uniques" in sql]


# --- many at once -----------------------------------------------------------------------------------------------------

NODES, ROUNDS, KEYS = 4, 40, ("k", "l", "m")

TWICE = """
select split_part(j.id, '-', 1), count(*)
from {0}.live l join {0}.jobs j using (seq)
where j.id like 'u%'
group by 1
having count(*) > 1
"""


class Life:
    """A node that asks for the same as others, in any order, runs what it gets, and people who meddle; at random."""

    def __init__(self, name: str, store: PostgresStore, chance: random.Random, ids: list[str]) -> None:
        self.name, self.store, self.chance, self.ids = name, store, chance, ids
        self.held: list[Claimed] = []
        self.ran: list[bytes] = []
        self.refused = 0

    async def work(self) -> None:
        for number in range(2 * ROUNDS):
            self.chance.shuffle(self.held)
            cut = self.chance.randrange(4)
            settled, self.held = self.held[:cut], self.held[cut:]
            outcomes = [Outcome.DONE, Outcome.DONE, Outcome.FAIL, Outcome.RETRY, None]
            ends = [settlement(job, self.chance.choice(outcomes), NOW + number) for job in settled]
            receipts = await self.store.exchange(
                Batch(
                    node=self.name,
                    now=NOW + number,
                    lease_until=NOW + 1000,
                    settlements=ends,
                    adds=[Add([new_job(f"p{self.name}-{number}")])],
                    claims=wish(3),
                )
            )
            self.held += receipts.claimed
            self.held += [job for job in settled if (job.seq, job.claim) in receipts.locked]
            self.ran += [job.payload for job in receipts.claimed]

    async def add(self) -> None:
        for number in range(ROUNDS):
            jobs = [self.job(key, number) for key in self.chance.sample(KEYS, 2)]
            jobs.append(debounced(f"d-{self.name}-{number}", NOW + number, key="d", wait=1.0, max_wait=3.0))
            atomic = self.chance.random() < 0.5
            try:
                receipts = await ask(self.store, *jobs, atomic=atomic)
            except (
                StoreUnavailable
            ):  # a lock was held for too long: nothing was done, and a client asks again
                receipts = await ask(self.store, *jobs, atomic=atomic)
            self.ids += [job.id for job, one in zip(jobs, receipts, strict=True) if one.verdict == "stored"]

    def job(self, key: str, number: int) -> NewJob:
        policy = self.chance.choice(["return", "reject", "replace"])
        return unique(f"u{key}-{self.name}-{number}", NOW + number, key=key, on_conflict=policy)

    async def meddle(self) -> None:
        for number in range(ROUNDS):
            ids = self.chance.sample(self.ids, min(2, len(self.ids)))
            with suppress(StoreUnavailable):  # a lock was held for too long: nothing was done
                match self.chance.randrange(4):
                    case 0:
                        await self.store.cancel(ids, NOW + number)
                    case 1:
                        await self.store.delete([one for one in ids if one.startswith("u")], NOW + number)
                    case _:
                        changes = await self.store.retry(ids, NOW + number)
                        self.refused += sum(one.verdict == "not_unique" for one in changes)
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 2))])
async def test_nodes_that_ask_crosswise_never_have_two_jobs_of_a_key(schema: str, seed: int) -> None:
    """In no committed state; nobody is in a deadlock, and what was said last is run."""
    deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
    before = server_says(deadlocks)
    ids: list[str] = []
    seen: dict[str, int] = defaultdict(int)
    async with AsyncExitStack() as stack:
        lives = []
        for number in range(NODES):
            store = await stack.enter_async_context(opened(schema))
            await store.join(f"n{number}", NOW, NOW + 1000, frozenset({"echo"}))
            lives.append(Life(f"n{number}", store, random.Random(f"{seed} {number}"), ids))
        with trio.fail_after(LONG):
            await _all_at_once(lives, schema, seen)
        last = debounced("d-last", NOW + ROUNDS, key="d", wait=1.0, max_wait=3.0)
        await ask(lives[0].store, last)
        ran = lives[0].ran
        for number in range(10):
            await lives[0].store.exchange(Batch(node="n0", now=NOW + 1000 + number))
            receipts = await lives[0].store.exchange(Batch(node="n0", now=NOW + 1000, claims=wish(500)))
            ran += [job.payload for job in receipts.claimed]

    assert seen["looks"] > 20
    assert seen["twice"] == 0
    assert server_says(deadlocks) == before
    assert b'"d-last"' in ran
    assert len(ids) > ROUNDS / 2


async def _all_at_once(lives: Sequence[Life], schema: str, seen: dict[str, int]) -> None:
    async with trio.open_nursery() as nursery:

        async def observe() -> None:
            while True:
                twice = await trio.to_thread.run_sync(server_says, TWICE.format(schema))
                seen["looks"] += 1
                seen["twice"] += len(twice)

        nursery.start_soon(observe)
        async with trio.open_nursery() as busy:
            for life in lives:
                busy.start_soon(life.work)
                busy.start_soon(life.add)
                busy.start_soon(life.meddle)
        nursery.cancel_scope.cancel()


async def test_throttled_requests_of_many_nodes_are_one_a_window(schema: str) -> None:
    """However many come at once."""
    receipts: list[Receipt] = []

    async def asks(store: Store, name: str) -> None:
        for number in range(10):
            receipts.extend(await ask(store, throttled(f"{name}-{number}", NOW + number / 100)))

    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(schema)) for _ in range(NODES)]
        with trio.fail_after(LONG):
            async with trio.open_nursery() as nursery:
                for number, store in enumerate(stores):
                    nursery.start_soon(asks, store, f"t{number}")

    assert sorted(one.verdict for one in receipts) == ["existing"] * (10 * NODES - 1) + ["stored"]
