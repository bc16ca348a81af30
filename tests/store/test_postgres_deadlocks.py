"""Our own transactions in one another's way: the order in which they lock rows, and who gives up and tries again."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from typing import Any

import psycopg
import pytest
import trio

from jobpipe.job import Outcome, Status
from jobpipe.store.base import Store
from jobpipe.store.postgres import open_postgres, reader
from jobpipe.store.postgres.session import Session
from tests.store.server import ask, empty_schema, server_url, with_query
from tests.store.test_contract import NOW, Node, add, get, new_job, settlement, start

LONG = 60.0
"""Seconds: longer than any test takes."""


@pytest.fixture
def schema() -> Iterator[str]:
    with empty_schema() as name:
        yield name


@pytest.fixture
async def store(schema: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    """One whose waits end by what the others do, and not by the clock."""
    monkeypatch.setattr("jobpipe.store.postgres.store.INSISTENCE", LONG)
    monkeypatch.setattr("jobpipe.store.postgres.store.BRIEF", LONG)
    url = with_query(server_url(), schema=schema)
    async with open_postgres(url, lease=2 * LONG, leases="caller") as opened:
        yield opened


@pytest.fixture
async def node(store: Store) -> Node:
    one = Node(store)
    await one.join()
    return one


class Other:
    """A transaction of another node, step by step."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def lock(self, table: str, job_id: str, *, wait: bool = True) -> None:
        """Lock a row of a job."""
        how = "for update" if wait else "for update nowait"
        of = "select seq from jobs where id = %s"
        rows = self.connection.execute(f"select from {table} where seq = ({of}) {how}".encode(), (job_id,))
        assert rows.rowcount == 1

    async def blocks(self, but: object = None) -> object:
        """Wait until a transaction waits for it, `but` for this one; returns what tells it from any other."""
        query = "select pid, xact_start from pg_stat_activity where %s = any(pg_blocking_pids(pid))"
        rows: list[tuple[object, ...]] = []
        while not rows or rows[0] == but:
            await trio.sleep(0.01)
            rows = ask(query, self.connection.info.backend_pid)
        return rows[0]


@pytest.fixture
def other(store: Store, schema: str) -> Iterator[Other]:
    with psycopg.connect(server_url()) as connection:
        connection.execute(f"set search_path = {schema}".encode())
        connection.commit()
        yield Other(connection)
        connection.rollback()


async def test_a_verb_in_a_deadlock_is_carried_out_when_the_other_side_has_ended(
    node: Node, other: Other
) -> None:
    """Each has what the other one waits for. The server does not see it: the verb gives up before it would look."""
    await add(node.store, new_job("a"), new_job("b"))
    other.lock("live", "b")
    with trio.fail_after(LONG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.store.cancel, ["a", "b"], NOW)
            await other.blocks()
            with suppress(psycopg.errors.DeadlockDetected):  # on a machine that stood still for a second
                await trio.to_thread.run_sync(other.lock, "live", "a")
            other.connection.rollback()

    assert [(await get(node.store, job_id)).status for job_id in "ab"] == [Status.CANCELLED] * 2


@pytest.mark.parametrize("verb", ["cancel", "retry", "delete"])
async def test_a_verb_that_waited_in_vain_begins_again(node: Node, other: Other, verb: str) -> None:
    """A crowd before it is served in the end."""
    await add(node.store, new_job("a"))
    if verb == "retry":
        await node.settle(await node.take(), Outcome.FAIL)
    other.lock("jobs" if verb == "retry" else "live", "a")
    ask_for = {
        "cancel": lambda: node.store.cancel(["a"], NOW),
        "retry": lambda: node.store.retry(["a"], NOW),
        "delete": lambda: node.store.delete(["a"], NOW),
    }[verb]
    told: list[Any] = []

    async def asked() -> None:
        told.extend(await ask_for())

    with trio.fail_after(LONG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asked)
            first = await other.blocks()
            await other.blocks(but=first)
            other.connection.rollback()

    assert [change.verdict for change in told] == ["changed"]


async def test_others_have_their_turn_while_a_verb_tries_again(node: Node, other: Other) -> None:
    """And whoever is cancelled meanwhile has changed nothing."""
    await add(node.store, new_job("a"), new_job("b"))
    other.lock("live", "a")
    with trio.fail_after(LONG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.store.cancel, ["a"], NOW)
            await other.blocks()
            await node.store.cancel(["b"], NOW)
            nursery.cancel_scope.cancel()
    other.connection.rollback()

    assert [(await get(node.store, job_id)).status for job_id in "ab"] == [Status.QUEUED, Status.CANCELLED]


async def test_a_verb_waits_for_no_row_in_live_while_it_has_one_in_jobs(
    node: Node, other: Other, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where somebody retried the job between the two locks: whoever has its row in "live" wants the other one."""
    await add(node.store, new_job("a"))
    await node.settle(await node.take(), Outcome.FAIL)
    other.lock("jobs", "a")  # as a retry, before its commit
    other.connection.execute("delete from ended")
    other.connection.execute(
        "insert into live (seq, queue, status, priority, run_at, created_at) "
        "select seq, queue, 'queued', priority, run_at, created_at from jobs"
    )
    stored, looked = reader.stored, trio.Event()

    async def look(session: Session, ids: Sequence[str]) -> Any:
        found = await stored(session, ids)
        if not looked.is_set():
            other.lock("live", "a")
            looked.set()
        return found

    monkeypatch.setattr(reader, "stored", look)
    with trio.fail_after(LONG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.store.cancel, ["a"], NOW)
            await other.blocks()
            other.connection.commit()
            await looked.wait()
            await other.blocks()
            other.lock("jobs", "a", wait=False)
            other.connection.rollback()

    assert (await get(node.store, "a")).status is Status.CANCELLED


@pytest.mark.parametrize("what", [Outcome.DONE, Outcome.FAIL, Outcome.RETRY, None, "starts"])
async def test_an_exchange_locks_the_jobs_of_a_statement_in_their_order(
    node: Node, other: Other, what: Any
) -> None:
    """By seq, as verbs do, however the batch names them."""
    await add(node.store, *(new_job(job_id) for job_id in "abc"))
    held = list(reversed(await node.claim(3)))
    starts = [start(job) for job in held] if what == "starts" else []
    settlements = [] if starts else [settlement(job, what) for job in held]
    receipts: list[Any] = []

    async def exchange() -> None:
        receipts.append(await node.exchange(starts=starts, settlements=settlements))

    other.lock("live", "a")
    with trio.fail_after(LONG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exchange)
            await other.blocks()
            other.lock("live", "b", wait=False)
            other.lock("live", "c", wait=False)
            other.connection.rollback()

    assert (receipts[0].stale, receipts[0].locked) == (frozenset(), frozenset())
