"""PostgreSQL that goes away: connections that are cut, that fall silent, that are lost in the middle of a commit."""

import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
import trio
import trio.testing
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobpipe.errors import StoreUnavailable
from jobpipe.job import Options, Outcome, Status
from jobpipe.store.base import Change, LogLine, Note, Notification
from jobpipe.store.postgres import PostgresStore, open_postgres
from jobpipe.store.postgres.address import read_address
from jobpipe.store.postgres.connector import Connector, Limits
from jobpipe.store.postgres.session import Connection, Session
from tests.store.proxy import Proxy, open_proxy
from tests.store.server import OwnServer, ask, server_url, with_query
from tests.store.test_contract import LATER, NOW, Node, add, get, listed, look, new_job, settlement, start

pytestmark = pytest.mark.slow

PATH = "select current_setting('search_path')"
LEASE = 2.0
"""Short, so that what does not answer is given up within a second."""


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """A way to the server that can be broken."""
    # Not in pytest's folder: the name of a socket must be short.
    with tempfile.TemporaryDirectory() as folder:
        async with open_proxy(Path(folder)) as opened:
            yield opened


@pytest.fixture
async def node(proxy: Proxy, schema: str) -> AsyncIterator[Node]:
    """A node that reaches the server through the proxy."""
    async with open_postgres(proxy.url(schema=schema), lease=LEASE) as store:
        one = Node(store)
        await one.join(lease_until=NOW + 100)
        yield one


@asynccontextmanager
async def beside(schema: str) -> AsyncIterator[PostgresStore]:
    """A store that reaches the server directly."""
    async with open_postgres(with_query(server_url(), schema=schema)) as store:
        yield store


async def test_an_exchange_is_one_round_trip(node: Node, proxy: Proxy) -> None:
    """The commit goes out with all statements: none of them needs to know what an earlier one answered."""
    for job_id in ("a", "b", "c"):  # what is new to the connection is prepared
        await add(node.store, new_job(job_id, run_at=NOW + 60))
    before = proxy.trips
    await add(node.store, new_job("d", run_at=NOW + 60))  # not ready: nobody is woken

    assert proxy.trips - before == 1


async def test_an_exchange_with_notes_is_three_round_trips(node: Node, proxy: Proxy) -> None:
    """One locks the rows, one reads the last lines; the third is that of every exchange."""
    await add(node.store, new_job())
    job = await node.take()
    trips = []
    for number in range(1, 4):
        lines = [LogLine(number, NOW, "info", "hello")]
        before = proxy.trips
        await node.exchange(notes=[Note(seq=job.seq, id="a", claim=job.claim, attempt=1, lines=lines)])
        trips.append(proxy.trips - before)

    assert trips[-1] == 3


@pytest.mark.parametrize(
    ("verb", "trips"), [("cancel", 2), ("retry", 3), ("promote", 2), ("edit", 2), ("delete", 2)]
)
async def test_what_is_asked_of_a_job_is_two_round_trips(
    node: Node, proxy: Proxy, verb: str, trips: int
) -> None:
    """One locks and reads, the other writes and commits. A retry looks first for the keys that it has to lock."""
    store = node.store
    asked: dict[str, Callable[[list[str]], Awaitable[Sequence[Change]]]] = {
        "cancel": lambda ids: store.cancel(ids, NOW),
        "retry": lambda ids: store.retry(ids, NOW),
        "promote": lambda ids: store.promote(ids, NOW),
        "edit": lambda ids: store.edit(ids, {"payload": b"2"}, NOW),
        "delete": lambda ids: store.delete(ids, NOW),
    }
    await add(store, *(new_job(job_id, run_at=NOW + 60) for job_id in "abcd"))
    if verb == "retry":
        await store.cancel(list("abcd"), NOW)
    for job_id in "abc":  # what is new to the connection is prepared
        await asked[verb]([job_id])
    before = proxy.trips
    (change,) = await asked[verb](["d"])

    assert change.verdict == "changed"
    assert proxy.trips - before == trips


@pytest.mark.parametrize("pooler", [True, False])
async def test_settings_stay_on_a_connection_of_ones_own_alone(
    node: Node, proxy: Proxy, schema: str, pooler: bool
) -> None:
    """Who shares it through a pooler would have them otherwise, and might swap it for one without."""
    proxy.pooler = pooler
    proxy.cut()
    await _tried_until_it_works(lambda: add(node.store, new_job()))
    connection = node.store._engine_connection  # type: ignore[attr-defined]  # that of PostgreSQL has one
    within = await connection.transact(lambda session: session.row(PATH))
    after = await trio.to_thread.run_sync(lambda: connection._connection.execute(PATH).fetchone())

    assert within == (f'"{schema}", pg_temp',)
    assert (after == within) is not pooler


async def test_connections_that_were_cut_are_made_anew(node: Node, proxy: Proxy) -> None:
    """No verb fails: what was lost while nobody used it is noticed before anything is sent."""
    await add(node.store, new_job())
    await node.store.cancel(["absent"], NOW)
    await get(node.store)
    proxy.cut()
    await trio.testing.wait_all_tasks_blocked(0.05)
    job = await get(node.store)
    claimed = await node.claim()
    (change,) = await node.store.cancel(["a"], NOW)

    assert job.status is Status.QUEUED
    assert [one.id for one in claimed] == ["a"]
    assert change.verdict == "changed"


async def test_backends_that_the_server_ends_are_replaced(schema: str) -> None:
    """As at a restart, or when an administrator ends them."""
    url = with_query(server_url(), schema=schema, application_name=schema)
    async with open_postgres(url) as store:
        await add(store, new_job("a"), new_job("b"))
        await store.watch("a")
        await store.ping()
        verbs = (
            lambda: store.cancel(["a"], NOW),
            lambda: store.watch("b"),
            lambda: store.pause("x"),
            lambda: store.retry(["a"], NOW),
            lambda: store.rescue("n", NOW),
            lambda: look(store),
            store.queues,
            lambda: store.delete(["a"], NOW),
        )
        for verb in verbs:  # each is the first one after all sessions were ended
            ended = ask(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = %s",
                schema,
            )
            assert ended
            await verb()

        assert (await look(store)).waiting == 1


@pytest.fixture
def own_server() -> Iterator[OwnServer]:
    """A server of this test's own."""
    with tempfile.TemporaryDirectory() as folder:
        server = OwnServer(Path(folder) / "data")
        try:
            yield server
        finally:
            server.delete()


async def test_a_server_that_is_stopped_and_started_again_has_all_that_was_acknowledged(
    own_server: OwnServer,
) -> None:
    """Meanwhile every verb says that it is away; afterwards work goes on, and the listener hears again."""
    async with open_postgres(own_server.url, lease=LEASE) as store, store.changes() as stream:
        node = Node(store)
        await node.join(lease_until=NOW + 100)
        await add(store, new_job("a"), new_job("b"))
        claimed = await node.take()
        await trio.to_thread.run_sync(own_server.stop)
        for verb in (node.claim, store.ping, lambda: add(store, new_job("c"))):
            await _fails(verb)
        await trio.to_thread.run_sync(own_server.start)
        settled = await _tried_until_it_works(lambda: node.settle(claimed, Outcome.DONE))
        again = await _tried_until_it_works(lambda: add(store, new_job("c")))
        with trio.fail_after(10):
            while not store.listening:  # noqa: ASYNC110 - nobody else is told
                await trio.sleep(0.01)
        told = await anext(stream)

        assert not settled.stale
        assert again[0].verdict == "stored"
        assert [job.id for job in await node.claim(5)] == ["b", "c"]
        assert (await get(store, "a")).status is Status.DONE
        assert told == Notification("missed")


async def test_a_silent_database_is_given_up_within_the_lease(node: Node, proxy: Proxy) -> None:
    """For writes and reads alike; when it is back, it is used again."""
    await add(node.store, new_job())
    proxy.mode = "silent"
    with trio.fail_after(2 * LEASE):
        async with trio.open_nursery() as nursery:
            for verb in (node.claim, node.store.queues, lambda: node.store.cancel(["x"], NOW)):
                nursery.start_soon(_fails, verb)
    proxy.mode = "open"
    with trio.fail_after(10):
        claimed = await _tried_until_it_works(node.claim)

    assert [job.id for job in claimed] == ["a"]


async def test_who_is_cancelled_while_it_reads_does_not_wait(node: Node, proxy: Proxy) -> None:
    """Though the database does not answer; its connection is of no more use, and made anew."""
    await node.store.ping()
    proxy.mode = "silent"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.store.queues)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    proxy.mode = "open"

    assert await node.store.queues() == []


async def test_who_is_cancelled_while_it_writes_waits_until_it_is_written(node: Node) -> None:
    """All of it: what another step of the same transaction writes too."""
    assert isinstance(node.store, PostgresStore)
    connection, begun, goes_on = node.store._engine_connection, trio.Event(), trio.Event()

    async def pause_two(session: Session) -> None:
        await session.rows("insert into queues values ('a', true)")
        begun.set()
        await goes_on.wait()
        session.run("insert into queues values ('b', true)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.transact, pause_two)
        await begun.wait()
        nursery.cancel_scope.cancel()
        goes_on.set()

    assert [queue.name for queue in await node.store.queues()] == ["a", "b"]


@pytest.mark.parametrize("why", ["cancelled", "too slow"])
async def test_a_connection_that_nobody_waits_for_any_more_is_closed(schema: str, why: str) -> None:
    """As soon as it is made: in a thread, which cannot be stopped."""
    connector = Connector(read_address(with_query(server_url(), schema=schema)), Limits(lease=LEASE))
    made: list[Connection] = []
    goes_on = threading.Event()

    def prepare(connection: Connection) -> None:
        made.append(connection)
        goes_on.wait()

    with trio.move_on_after(0.5 if why == "cancelled" else 10), suppress(psycopg.OperationalError):
        await connector.opened(prepare, 0.5 if why == "too slow" else 10)
    open_still = [connection.closed for connection in made]
    goes_on.set()
    with trio.fail_after(10):
        while not made[0].closed:  # noqa: ASYNC110 - a thread does it
            await trio.sleep(0.01)

    assert open_still == [False]


async def test_what_is_larger_than_a_socket_holds_goes_both_ways(node: Node) -> None:
    """Twenty megabytes of new jobs in one transaction, and then of claimed ones."""
    jobs = [new_job(f"j{number:02}", payload=b'"%s"' % (b"%02d" % number * 100_000)) for number in range(100)]
    await add(node.store, *jobs)
    claimed = await node.claim(100)

    assert [job.payload for job in claimed] == [job.payload for job in jobs]


async def _fails(verb: Any) -> None:
    with pytest.raises(StoreUnavailable):
        await verb()


async def _tried_until_it_works(verb: Any) -> Any:
    while True:
        try:
            return await verb()
        except StoreUnavailable:
            await trio.sleep(0.05)


async def test_while_the_server_is_away_every_verb_says_so(node: Node, proxy: Proxy) -> None:
    """And names what is away."""
    proxy.mode = "refuse"
    proxy.cut()
    for verb in (lambda: look(node.store), node.store.ping, lambda: node.store.pause("x")):
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=r"postgresql://.* cannot be used now"):
                await verb()
    proxy.mode = "open"

    assert (await look(node.store)).waiting == 0


@pytest.mark.parametrize("mode", ["lose the commit", "lose its answer"])
async def test_an_add_whose_commit_was_not_answered_may_be_repeated(
    node: Node, proxy: Proxy, mode: Any
) -> None:
    """It is stored now, or was so before."""
    proxy.mode = mode
    with pytest.raises(StoreUnavailable, match="lost during a commit"):
        await add(node.store, new_job("a"), new_job("b"), atomic=True)
    receipts = await add(node.store, new_job("a"), new_job("b"), atomic=True)

    assert proxy.lost.is_set()
    assert {receipt.verdict for receipt in receipts} == {
        "stored" if mode == "lose the commit" else "existing"
    }
    assert (await look(node.store)).waiting == 2
    assert await listed(node.store) == ["b", "a"]


@pytest.mark.parametrize("mode", ["lose the commit", "lose its answer"])
async def test_a_claim_whose_commit_was_not_answered_is_handed_back(
    node: Node, proxy: Proxy, mode: Any
) -> None:
    """Nobody knows of it, so nobody would run it, and its node lives."""
    await add(node.store, *(new_job(f"j{number}") for number in range(3)))
    first = await node.take()
    proxy.mode = mode
    with pytest.raises(StoreUnavailable):
        await node.claim(2)
    receipts = await node.exchange(claim=5)
    settled = await node.settle(first, Outcome.DONE)

    assert {(job.id, job.claim, job.attempt, job.rescued) for job in receipts.claimed} == {
        (job_id, 1 if mode == "lose the commit" else 2, 0, 0) for job_id in ("j1", "j2")
    }
    assert receipts.waiting == 0
    assert not settled.stale


async def test_a_claim_that_was_lost_is_handed_back_though_it_was_asked_to_cancel(
    node: Node, proxy: Proxy
) -> None:
    """It is cancelled then, and does not wait again."""
    await add(node.store, new_job())
    proxy.mode = "lose its answer"
    with pytest.raises(StoreUnavailable):
        await node.claim()
    await node.store.cancel(["a"], NOW)
    receipts = await node.exchange(LATER, claim=1)
    job = await get(node.store)

    assert list(receipts.claimed) == []
    assert (job.status, job.state.finished_at, job.attempts) == (Status.CANCELLED, LATER, ())
    assert (await node.store.queues())[0].counts == {Status.CANCELLED: 1}


@pytest.mark.parametrize("outcome", [*Outcome, None])
@pytest.mark.parametrize("mode", ["lose the commit", "lose its answer"])
async def test_settlements_whose_commit_was_not_answered_are_not_stale_when_repeated(
    node: Node, proxy: Proxy, mode: Any, outcome: Outcome | None
) -> None:
    """They are written once, and their node is told that they are."""
    await add(node.store, new_job())
    claimed = await node.take()
    parts: dict[str, Any] = {
        "starts": [] if outcome is None else [start(claimed)],
        "settlements": [settlement(claimed, outcome)],
    }
    proxy.mode = mode
    with pytest.raises(StoreUnavailable):
        await node.exchange(**parts)
    again = await node.exchange(settlements=parts["settlements"])
    job = await get(node.store)
    late = await node.exchange(settlements=[settlement(claimed, outcome)])

    assert not again.stale
    assert job.status is settlement(claimed, outcome).status
    assert len(job.attempts) == (outcome is not None)
    assert late.stale == {(claimed.seq, 1)}


async def test_a_settlement_that_another_node_made_meaningless_stays_stale(
    node: Node, proxy: Proxy, schema: str
) -> None:
    """Its job was rescued and claimed again before it was repeated."""
    await add(node.store, new_job())
    claimed = await node.take()
    await node.start(claimed)
    proxy.mode = "lose the commit"
    with pytest.raises(StoreUnavailable):
        await node.settle(claimed, Outcome.DONE)
    async with beside(schema) as store:
        other = Node(store, "other")
        await other.join(lease_until=NOW + 100)
        await node.join(NOW, NOW - 1)
        await store.rescue("other", NOW)
        await other.take()
        again = await node.settle(claimed, Outcome.DONE)

        assert again.stale == {(claimed.seq, 1)}
        assert (await get(store)).status is Status.QUEUED


async def test_a_listener_hears_again_after_the_network_was_away(node: Node, proxy: Proxy) -> None:
    """It is told that it may have missed something, and then told what happens."""
    store = node.store
    assert isinstance(store, PostgresStore)
    with trio.fail_after(20):
        async with store.changes() as stream:
            assert await anext(stream) == Notification("missed")
            proxy.mode = "refuse"
            proxy.cut()
            while store.listening:  # noqa: ASYNC110 - nobody else is told
                await trio.sleep(0.01)
            proxy.mode = "open"
            while not store.listening:  # noqa: ASYNC110 - nobody else is told
                await trio.sleep(0.01)
            assert await anext(stream) == Notification("missed")
            await _tried_until_it_works(lambda: store.resume("x"))

            assert await anext(stream) == Notification("look")


@pytest.mark.parametrize("asked", ["an answer", "nothing"])
async def test_a_node_that_falls_silent_in_a_transaction_keeps_its_locks_no_longer_than_that_may_take(
    node: Node, proxy: Proxy, schema: str, asked: str
) -> None:
    """The server ends it, though nothing tells it that the network is gone; others go on."""
    if asked == "nothing" and int(str(ask("show server_version_num")[0][0])) < 170000:
        pytest.skip("before PostgreSQL 17 a half-sent transaction is noticed by the network only")
    await add(node.store, new_job())
    assert isinstance(node.store, PostgresStore)
    connection, held = node.store._engine_connection, trio.Event()

    async def hold(session: Session) -> None:
        session.run("select seq from live for update")
        if asked == "an answer":
            await session.answered()
        else:
            session._pgconn.send_flush_request()
            await session._flush()
        held.set()
        await trio.sleep(0.2 + connection._connector.limits.transaction)  # as long as the network is away

    async with beside(schema) as other, trio.open_nursery() as nursery:

        async def held_by_it() -> None:
            with suppress(StoreUnavailable):
                await connection.transact(hold)

        nursery.start_soon(held_by_it)
        await held.wait()
        proxy.mode = "silent"
        await _tried_until_it_works(lambda: other.cancel(["a"], NOW))
        proxy.mode = "open"
        job = await get(other)

    assert job.status is Status.CANCELLED


async def test_deadlocks_are_tried_again(node: Node, schema: str) -> None:
    """The server undid one of two transactions for the other's sake: nothing of it was written."""
    await add(node.store, new_job("a"), new_job("b"))
    jobs = await node.claim(2)
    connection = node.store._engine_connection  # type: ignore[attr-defined]  # that of PostgreSQL has one
    tries: list[int] = []

    async def verb(session: Any) -> int:
        values = {"seq": jobs[len(tries) % 2].seq}
        await session.row(f"select from {schema}.live where seq = %(seq)s for update", values)
        tries.append(1)
        if len(tries) < 3:
            await session.rows("do $$ begin raise exception using errcode = 'deadlock_detected'; end $$")
        return len(tries)

    assert await connection.transact(verb) == 3


async def test_what_was_written_before_an_error_is_undone(node: Node, schema: str) -> None:
    """A statement that the server refuses takes its whole exchange with it; the next one is not hindered."""
    await add(node.store, new_job())
    claimed = await node.take()
    ask(f"alter table {schema}.counts rename to counted")
    with pytest.raises(Exception, match="run `jobpipe migrate`"):
        await node.exchange(settlements=[settlement(claimed, Outcome.DONE)])
    ask(f"alter table {schema}.counted rename to counts")
    receipts = await node.exchange(settlements=[settlement(claimed, Outcome.DONE)])

    assert not receipts.stale
    assert (await get(node.store)).status is Status.DONE


async def test_a_connection_on_which_nothing_can_be_undone_is_closed(node: Node, proxy: Proxy) -> None:
    """The database fell silent just then: who waits is told within the lease, and the next one has a new connection."""
    assert isinstance(node.store, PostgresStore)
    connection = node.store._engine_connection
    used: list[Connection] = []

    async def fall_silent(session: Session) -> None:
        await session.rows("insert into queues values ('a', true)")
        used.append(session.connection)
        proxy.mode = "silent"
        raise LookupError

    with trio.fail_after(2 * LEASE), pytest.raises(StoreUnavailable, match="no answer within"):
        await connection.transact(fall_silent)
    closed = [connection.closed for connection in used]
    proxy.mode = "open"

    assert closed == [True]
    assert await node.claim() == []
    assert await node.store.queues() == []


async def test_sessions_that_take_no_writes_are_given_up(own_server: OwnServer) -> None:
    """As after a fail-over: each connection is made anew, the listener's too, until writes are taken again."""

    def say(*statements: str) -> None:
        with psycopg.connect(own_server.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def sessions() -> set[int]:
        with psycopg.connect(own_server.url, autocommit=True, application_name="test") as connection:
            rows = connection.execute("select pid from pg_stat_activity where application_name = 'jobpipe'")
            return {row[0] for row in rows}

    async with open_postgres(own_server.url, lease=LEASE) as store, store.changes() as stream:
        node = Node(store)
        await node.join(lease_until=NOW + 100)
        await store.cancel(["absent"], NOW)
        say(
            "alter database postgres set default_transaction_read_only = on",
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'jobpipe'",
        )
        await store.ping()
        with trio.fail_after(10):
            while await anext(stream) != Notification("missed") or not store.listening:
                pass
        before = await trio.to_thread.run_sync(sessions)
        for verb in (lambda: add(store, new_job("a")), lambda: store.pause("x")):
            with pytest.raises(StoreUnavailable, match="read-only"):
                await verb()
        say(
            "set default_transaction_read_only = off",
            "alter database postgres reset default_transaction_read_only",
        )
        with trio.fail_after(10):
            receipts = await _tried_until_it_works(lambda: add(store, new_job("a")))
            await _tried_until_it_works(lambda: store.pause("x"))
            await store.ping()
            while await anext(stream) != Notification("missed"):
                pass
        say("select pg_notify('jobpipe jobpipe', 'ended last')")
        with trio.fail_after(10):
            while await anext(stream) != Notification("ended", id="last"):
                pass
        after = await trio.to_thread.run_sync(sessions)

    assert receipts[0].verdict == "stored"
    assert after
    assert not before & after


STRANGE = (
    "default_transaction_isolation = serializable",
    "default_transaction_deferrable = on",
    "standard_conforming_strings = off",
    "escape_string_warning = off",
    "backslash_quote = off",
    "search_path = pg_temp, public, pg_catalog",
    "bytea_output = 'escape'",
    "datestyle = 'SQL, DMY'",
    "intervalstyle = 'sql_standard'",
    "timezone = 'Asia/Kathmandu'",
    "extra_float_digits = -15",
    "client_encoding = 'LATIN1'",
    "statement_timeout = 1000",
    "lock_timeout = 1",
    "idle_in_transaction_session_timeout = 1000",
    "enable_indexscan = off",
    "enable_nestloop = off",
    "array_nulls = off",
    "transform_null_equals = on",
)


async def test_settings_of_the_role_change_nothing(schema: str) -> None:
    """Whatever an administrator has set for it: what counts is pinned for each connection, or each transaction."""
    role = f"{schema}_odd"
    ask(f"create role {role} login superuser")
    for setting in STRANGE:
        ask(f"alter role {role} set {setting}")
    url = make_conninfo(server_url(), user=role)
    parts = conninfo_to_dict(url)
    host = quote(str(parts.get("host") or "localhost"), safe="")
    try:
        address = f"postgresql://{role}@/{parts['dbname']}?host={host}&port={parts.get('port') or 5432}&schema={schema}"
        async with open_postgres(address, leases="caller") as store, store.changes() as stream:
            node = Node(store)
            await node.join()
            heard = await anext(stream)
            job = new_job(
                "größe",
                payload='"größe\\\\"'.encode(),
                run_at=NOW + 0.123,
                options=Options(timeout=0.1 + 0.2, tags=("größe",)),
            )
            await add(store, job)
            claimed = await node.claim(1, NOW + 1)
            await node.settle(claimed[0], Outcome.RETRY, at=NOW + 1, run_at=NOW + 2.345)
            found = await listed(store, text="such file")
            again = await node.claim(1, NOW + 3)
            await node.settle(again[0], Outcome.DONE, at=NOW + 4)
            done = await get(store, "größe")
            await store.retry(["größe"], NOW + 5)
            await store.cancel(["größe"], NOW + 6)

            assert heard == Notification("missed")
            assert (claimed[0].run_at, again[0].run_at) == (NOW + 0.123, NOW + 2.345)
            assert (done.asked.payload, done.asked.options) == (job.payload, job.options)
            assert found == ["größe"]
            assert await listed(store, tag="größe") == ["größe"]
    finally:
        ask(f"drop schema if exists {schema} cascade")
        ask(f"drop role {role}")
