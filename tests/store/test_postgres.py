"""What only the PostgreSQL store has: several nodes on one database, its clock, its migrations, its roles."""

import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg
import pytest
import trio

from jobpipe.errors import StoreError, StoreUnavailable
from jobpipe.job import Options, Outcome, Status
from jobpipe.store import factory
from jobpipe.store.base import Claimed, Retention, SharedStore, Store
from jobpipe.store.migrations import GO_ON, MUST_HAVE_STOPPED, migrations
from jobpipe.store.postgres import PostgresStore, migrate, open_postgres, opening
from jobpipe.store.postgres.address import read_address
from jobpipe.store.postgres.claiming import CLAIM, MINE
from jobpipe.store.postgres.connector import Connector, Limits
from tests.store.server import ask, server_url, with_query
from tests.store.test_contract import KINDS, NOW, Node, add, edit, get, look, new_job, settlement, start


def url_of(schema: str, **more: str) -> str:
    return with_query(server_url(), schema=schema, **more)


@asynccontextmanager
async def two_nodes(schema: str, **how: Any) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes, each with a store of its own, as two processes have."""
    async with open_postgres(url_of(schema), **how) as one, open_postgres(url_of(schema), **how) as other:
        nodes = Node(one, "one"), Node(other, "other")
        for node in nodes:
            await node.join(lease_until=NOW + 100)
        yield nodes


# --- several nodes ----------------------------------------------------------------------------------------------------


async def test_it_is_a_shared_store(schema: str) -> None:
    """The engine asks so whether there may be other nodes."""
    async with open_postgres(url_of(schema)) as store:
        assert isinstance(store, SharedStore)
        assert abs(store.clock_offset) < 60


async def test_nodes_that_claim_at_once_share_the_jobs(schema: str) -> None:
    """Each job is claimed once, whoever is quicker, and none is left."""
    async with two_nodes(schema) as nodes:
        await add(
            nodes[0].store, *(new_job(f"j{number:03}", queue=f"q{number % 3}") for number in range(300))
        )
        claimed: dict[str, list[str]] = {"one": [], "other": []}

        async def claim_all(node: Node) -> None:
            while jobs := await node.claim(7):
                claimed[node.name] += [job.id for job in jobs]

        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(claim_all, node)
        both = claimed["one"] + claimed["other"]

        assert sorted(both) == [f"j{number:03}" for number in range(300)]


@pytest.mark.parametrize("paused", [False, True])
async def test_a_claim_that_began_before_an_edit_runs_what_was_edited(
    schema: str, monkeypatch: pytest.MonkeyPatch, paused: bool
) -> None:
    """It sees the row that it locks as it is, but what it joins as it was when it began."""
    monkeypatch.setattr("jobpipe.store.postgres.store.BRIEF", 20.0)
    async with two_nodes(schema) as (one, other):
        await add(one.store, new_job(), new_job("b"), new_job("c", queue="paused"))
        if paused:
            await one.store.pause("paused")
        options = Options(timeout=2.0, tags=("t",))
        claimed: list[Claimed] = []

        async def claim() -> None:
            claimed.extend(await other.claim(3 - paused))

        with psycopg.connect(server_url()) as holder:
            holder.execute(f"select from {schema}.nodes where name = 'other' for update".encode())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(claim)
                await blocked(schema)
                await edit(one.store, payload=b"2", priority=1, max_retries=0, timeout=2.0, tags=("t",))
                holder.rollback()

    a, b, *_ = claimed
    assert (a.id, a.payload, a.priority, a.max_retries, a.options) == ("a", b"2", 1, 0, options)
    assert (b.id, b.payload) == ("b", new_job().payload)
    assert len(claimed) == 3 - paused


async def blocked(schema: str) -> None:
    """Wait until a statement on a schema's tables waits for a lock."""
    waits = (
        "select 1 from pg_locks w join pg_locks h on h.pid = w.pid "
        f"where not w.granted and h.relation = '{schema}.nodes'::regclass"
    )
    with trio.fail_after(15):
        while not ask(waits):  # noqa: ASYNC110 - another session's lock rings no bell
            await trio.sleep(0.01)


@pytest.mark.parametrize(("paused", "passed"), [(0, 10), (1, 10), (1, 5)])
async def test_a_claim_locks_what_it_takes_whatever_the_number_of_queues(
    schema: str, paused: int, passed: int
) -> None:
    """So that what one node is about to take does not keep the others from the rest; by priority over all queues."""
    async with two_nodes(schema) as (one, other):
        await add(
            one.store,
            *(new_job(f"j{n:03}", queue=f"q{n % 50}", priority=-(n // 100)) for n in range(300)),
        )
        for number in range(paused):
            await one.store.pause(f"q{number}")
        with psycopg.connect(server_url()) as claiming:
            claiming.execute(f'set local search_path = "{schema}"'.encode())
            values = {"node": "one", "now": NOW, "limit": 90, "token": 1, "slot": 0}
            bounds = {"passed": passed, "walked": 50, "after": "q3", "kinds": sorted(KINDS)}
            rows = claiming.execute(CLAIM.encode(), values | bounds).fetchall()
            first = [str(row[4]) for row in rows if row[MINE]]
            meanwhile = [job.id for job in await other.claim(90)]
        ready = [f"j{n:03}" for n in range(300) if n % 50 >= paused]

        assert sorted(first) == ready[:90]
        assert meanwhile == ready[90:180]


@pytest.mark.parametrize("waiting", [1, 10, 11])
async def test_paused_jobs_are_passed_over_or_left_aside_but_never_taken(
    schema: str, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    """Many of them, at the head of the line, make the claim go by queue; the order is the same."""
    monkeypatch.setattr("jobpipe.store.postgres.exchange.PASSED", 10)
    async with two_nodes(schema) as (one, _):
        await add(one.store, *(new_job(f"p{n}", queue="paused", priority=9) for n in range(waiting)))
        await add(one.store, *(new_job(f"j{n}", queue=f"q{n % 2}", priority=n % 3) for n in range(9)))
        await one.store.pause("paused")
        claimed = [job.id for job in await one.claim(6)]
        await one.store.resume("paused")
        rest = [job.id for job in await one.claim(4)]

        assert claimed == ["j2", "j5", "j8", "j1", "j4", "j7"]
        assert rest == (["p0", "j0", "j3", "j6"] if waiting == 1 else ["p0", "p1", "p2", "p3"])


async def test_jobs_of_a_queue_that_was_paused_are_not_claimed(schema: str) -> None:
    """By no node, from the commit on; those of the others are, in their order, and all when it goes on."""
    async with two_nodes(schema) as (one, other):
        await add(one.store, *(new_job(f"j{n}", queue=f"q{n % 3}", priority=n % 2) for n in range(6)))
        await one.store.pause("q1")
        others = [job.id for job in await other.claim(10)]
        await other.store.resume("q1")
        rest = [job.id for job in await one.claim(10)]

        assert others == ["j3", "j5", "j0", "j2"]
        assert rest == ["j1", "j4"]


async def test_what_one_node_adds_the_other_sees(schema: str) -> None:
    """Jobs, counts, how many wait, and what is due next."""
    async with two_nodes(schema) as (one, other):
        await add(one.store, new_job("a"), new_job("b", run_at=NOW + 9))
        await add(other.store, new_job("c", queue="x"))
        receipts = [await look(node.store) for node in (one, other)]
        queues = [await node.store.queues() for node in (one, other)]
        again = await add(other.store, new_job("a"))

        assert [(seen.waiting, seen.next_due) for seen in receipts] == [(3, NOW + 9)] * 2
        assert queues[0] == queues[1]
        assert [queue.counts for queue in queues[0]] == [
            {Status.QUEUED: 1, Status.SCHEDULED: 1},
            {Status.QUEUED: 1},
        ]
        assert again[0].verdict == "existing"


async def test_nodes_that_add_the_same_jobs_at_once_make_each_once(schema: str) -> None:
    """In opposite orders too: one of them waits, or is tried again, or is told so and asks again."""
    async with two_nodes(schema) as nodes:
        jobs = [new_job(f"j{number:04}") for number in range(1200)]
        verdicts: list[str] = []

        async def add_all(node: Node, backwards: bool) -> None:
            for start_at in range(0, 1200, 300):
                part = jobs[start_at : start_at + 300]
                asked = part[::-1] if backwards else part
                while asked:
                    receipts = await add(node.store, *asked)
                    verdicts.extend(one.verdict for one in receipts if one.verdict != "locked")
                    told = zip(asked, receipts, strict=True)
                    asked = [job for job, one in told if one.verdict == "locked"]

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(add_all, nodes[0], False)
                nursery.start_soon(add_all, nodes[1], True)

        assert sorted(verdicts) == ["existing"] * 1200 + ["stored"] * 1200
        assert (await look(nodes[0].store)).waiting == 1200


async def test_counts_are_right_whoever_wrote_them(schema: str) -> None:
    """Each writer counts in a slot of its own; a prune gathers them, and the sums stay."""
    async with two_nodes(schema) as (one, other):
        for node, prefix in ((one, "x"), (other, "y")):
            await add(node.store, *(new_job(f"{prefix}{number}") for number in range(10)))
        jobs = [*await one.claim(6), *await other.claim(6)]
        ends = [settlement(job, Outcome.DONE) for job in jobs]
        await one.exchange(settlements=ends[:3])
        await other.exchange(settlements=ends[3:])
        await one.store.cancel(["y8", "y9"], NOW)
        before = await other.store.queues()
        slots = ask(f"select count(distinct slot) from {schema}.counts")
        await other.store.prune(NOW, _keep_all())

        assert before[0].counts == {Status.DONE: 12, Status.QUEUED: 6, Status.CANCELLED: 2}
        assert slots[0][0] > 1  # type: ignore[operator]  # a number
        assert ask(f"select count(distinct slot) from {schema}.counts") == [(1,)]
        assert await one.store.queues() == before
        assert (await look(one.store)).waiting == 6


async def test_no_two_nodes_share_a_slot_of_the_counts(schema: str) -> None:
    """However many have started: each would wait for the other. What is left in their slots is gathered."""
    async with two_nodes(schema) as (one, other):
        for _ in range(70):
            ask(f"select nextval('{schema}.slots')")
        async with open_postgres(url_of(schema)) as third:
            for number, store in enumerate((one.store, other.store, third)):
                await add(store, new_job(f"j{number}"))
        slots = ask(f"select slot from {schema}.counts order by slot")
        await one.store.prune(NOW, _keep_all())

        assert slots == [(0,), (2,), (144,)]
        assert ask(f"select count(*) from {schema}.counts") == [(1,)]
        assert (await look(other.store)).waiting == 3


def _keep_all() -> Any:
    from tests.store.test_contract import KEEP_ALL  # noqa: PLC0415 - the only use

    return KEEP_ALL


async def test_a_wish_to_cancel_is_told_with_the_next_start_or_renewal(schema: str) -> None:
    """For one that came before the node knew that it holds the job."""
    async with two_nodes(schema) as (one, other):
        await add(one.store, new_job("a"), new_job("b"))
        jobs = await one.claim(2)
        await other.store.cancel(["a"], NOW)
        told = [
            (await one.exchange(starts=[start(jobs[1])])).cancelling,
            (await one.exchange(lease_until=NOW + 100)).cancelling,
            (await other.exchange(lease_until=NOW + 100)).cancelling,
        ]
        await one.settle(jobs[0], Outcome.CANCELLED)
        after = (await one.exchange(lease_until=NOW + 100)).cancelling

        assert told == [{(jobs[0].seq, 1)}, {(jobs[0].seq, 1)}, frozenset()]
        assert after == frozenset()


# --- leases -----------------------------------------------------------------------------------------------------------


async def test_leases_go_by_the_clock_of_the_database(schema: str) -> None:
    """A node whose clock is an hour off keeps its jobs, and takes none of the living."""
    async with two_nodes(schema) as (one, other):
        await add(one.store, new_job())
        claimed = await one.take()
        ahead = await other.store.rescue("other", NOW + 3600 * 24)
        await one.exchange(NOW - 3600, lease_until=NOW - 3600 + 100)
        behind = await other.store.rescue("other", NOW + 3600)
        receipts = await one.settle(claimed, Outcome.DONE)

        assert list(ahead) == list(behind) == []
        assert not receipts.stale


async def test_a_silent_node_is_rescued_when_its_lease_has_ended(schema: str) -> None:
    """Whatever time it is for those who ask."""
    async with two_nodes(schema) as (one, other):
        await add(one.store, new_job())
        await one.take()
        await one.join(NOW, NOW - 1)  # it ended a second ago, by the database's clock
        rescued = await other.store.rescue("other", NOW - 100)
        lost = await one.exchange(lease_until=NOW + 100, claim=1)

        assert [job.id for job in rescued] == ["a"]
        assert (lost.lease_lost, list(lost.claimed)) == (True, [])


async def test_a_node_at_work_is_not_taken_for_dead(schema: str) -> None:
    """Its row is locked while it claims, so that no rescue falls between claim and commit."""
    async with two_nodes(schema, leases="caller") as (one, other):
        await add(one.store, new_job())
        await one.take()
        with psycopg.connect(server_url()) as claiming:
            claiming.execute(f"select from {schema}.nodes where name = 'one' for share".encode())
            meanwhile = await other.store.rescue("other", NOW + 1000)
        afterwards = await other.store.rescue("other", NOW + 1000)

        assert list(meanwhile) == []
        assert [job.id for job in afterwards] == ["a"]


# --- migrations -------------------------------------------------------------------------------------------------------


async def test_twenty_nodes_may_start_at_once_on_an_empty_database(schema: str) -> None:
    """One makes the tables, the others find them."""
    names: list[str] = []

    async def open_one(number: int) -> None:
        async with open_postgres(url_of(schema)) as store:
            await add(store, new_job(f"j{number}"))
            names.append(store.name)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(open_one, number)

    assert len(names) == 20
    assert ask(f"select count(*) from {schema}.jobs") == [(20,)]


async def test_a_schema_of_a_newer_version_is_refused(schema: str) -> None:
    """With what to do; and it stays as it is."""
    migrate(url_of(schema))
    ask(f"insert into {schema}.versions (version) values (999)")
    with pytest.raises(StoreError, match=r"newer jobpipe \(version 999, this one knows") as caught:
        async with open_postgres(url_of(schema)):
            pass

    assert "run that version" in str(caught.value)
    assert ask(f"select max(version) from {schema}.versions") == [(999,)]


async def test_a_schema_of_an_unreleased_version_is_refused(schema: str) -> None:
    """In one line that says what to do; `migrate` says the same, and it stays as it is."""
    ask(f"create schema {schema}; create table {schema}.versions (version int primary key)")
    ask(f"insert into {schema}.versions (version) values (1)")
    with pytest.raises(
        StoreError, match=f"schema {schema} of .* was made by an unreleased version"
    ) as opened:
        async with open_postgres(url_of(schema)):
            pass
    with pytest.raises(StoreError) as migrated:
        migrate(url_of(schema))

    assert "drop it, or name another one in STORE" in str(opened.value)
    assert str(migrated.value) == str(opened.value)
    assert ask("select count(*) from pg_tables where schemaname = %s", schema) == [(1,)]


def test_to_migrate_twice_changes_nothing(schema: str) -> None:
    """It says what it did."""
    newest = migrations("jobpipe.store.postgres")[-1][0]
    first, second = migrate(url_of(schema)), migrate(url_of(schema))

    assert f"schema {schema} went from version 0 to {newest}" in first
    assert f"is at version {newest} already" in second


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Makes a migration that comes after all others, with this first line; returns its number."""

    def made(first_line: str) -> int:
        known = migrations("jobpipe.store.postgres")
        number = known[-1][0] + 1
        new = (number, f"{first_line}\ncreate table more (a int);\n")
        monkeypatch.setattr(opening, "migrations", lambda _: [*known, new])
        return number

    return made


async def test_a_migration_that_older_nodes_would_not_survive_waits_until_they_have_stopped(
    schema: str, next_version: Callable[[str], int]
) -> None:
    """It names them, and changes nothing; a start that waits for the database waits for them too."""
    async with open_postgres(url_of(schema)) as store:
        now = time.time()
        for name, lease in (("old-1", 60.0), ("old-2", 60.0), ("dead", -1.0)):
            await store.join(name, now, now + lease)
        number = next_version(MUST_HAVE_STOPPED)
        with pytest.raises(StoreUnavailable, match=r"stop old-1, old-2$"):
            migrate(url_of(schema))
        left = ask(f"select to_regclass(%s), (select max(version) from {schema}.versions)", f"{schema}.more")
        for name in ("old-1", "old-2"):
            await store.leave(name)
        done = migrate(url_of(schema))

    assert left == [(None, number - 1)]
    assert f"to {number}" in done


async def test_a_migration_that_older_nodes_do_not_notice_is_applied_beside_them(
    schema: str, next_version: Callable[[str], int]
) -> None:
    async with open_postgres(url_of(schema)) as store:
        await store.join("old", time.time(), time.time() + 60)
        number = next_version(GO_ON)

        assert f"to {number}" in migrate(url_of(schema))


def test_each_migration_says_what_it_means_for_older_nodes() -> None:
    """The first has none before it."""
    _, *later = migrations("jobpipe.store.postgres")

    assert [
        text.splitlines()[0] for _, text in later if not text.startswith((GO_ON, MUST_HAVE_STOPPED))
    ] == []


# --- roles and words --------------------------------------------------------------------------------------------------

GRANTS = (
    'grant usage on schema "{0}" to {1}',
    'grant select, insert, update, delete on all tables in schema "{0}" to {1}',
    'grant usage on all sequences in schema "{0}" to {1}',
    'grant execute on all functions in schema "{0}" to {1}',
)


@asynccontextmanager
async def role(schema: str) -> AsyncIterator[str]:
    """A user who may do nothing yet, with the URL's way in."""
    name = f"{schema}_user"
    ask(f"create role {name} login password 'sesame'")
    try:
        yield name
    finally:
        ask(f"drop owned by {name} cascade")
        ask(f"drop role {name}")


def as_user(name: str, schema: str) -> str:
    return url_of(schema, user=name, password="sesame")


async def test_a_node_needs_no_right_to_make_tables(schema: str) -> None:
    """Those of docs/scaling.md will do: somebody else migrates."""
    async with role(schema) as user:
        with pytest.raises(StoreError, match="run `jobpipe migrate` as a user who may"):
            async with open_postgres(as_user(user, schema)):
                pass
        migrate(url_of(schema))
        for grant in GRANTS:
            ask(grant.format(schema, user))
        async with open_postgres(as_user(user, schema)) as store:
            node = Node(store)
            await node.join()
            await add(store, new_job(options=Options(tags=("t",))))
            receipts = await node.settle(await node.take(), Outcome.DONE)
            await store.prune(NOW + 1e9, _keep_all())
            await store.delete(["a"], NOW)

            assert not receipts.stale
            assert await store.get("a") is None


async def test_a_user_without_rights_is_told_so(schema: str) -> None:
    """And the message shows no password."""
    migrate(url_of(schema))
    async with role(schema) as user:
        with pytest.raises(StoreError, match=r"docs/scaling\.md") as caught:
            async with open_postgres(as_user(user, schema)) as store:
                await store.ping()

        assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://joe:secret@db:5433/jobs", "postgresql://joe@db:5433/jobs"),
        ("postgres://db", "postgresql://db"),
        (
            "postgresql:///jobs?host=/run/pg&user=joe&password=secret",
            "postgresql:///jobs?host=/run/pg&user=joe",
        ),
        ("postgresql:///?service=jobs&schema=mine", "postgresql:///?service=jobs&schema=mine"),
        ("postgresql://a,b/jobs?sslpassword=secret&sslmode=require", "postgresql://a,b/jobs?sslmode=require"),
    ],
)
def test_a_store_is_shown_without_secrets(url: str, shown: str) -> None:
    """Its name goes into logs and /health."""
    address = read_address(url)

    assert address.shown == shown
    assert "secret" not in address.shown


@pytest.mark.parametrize("part", ["schema=a-b", "schema=", "prepare=maybe", "listen=1"])
def test_a_wrong_part_of_an_address_is_refused(part: str) -> None:
    """Before anything is opened."""
    with pytest.raises(StoreError, match=part.split("=", maxsplit=1)[0]):
        read_address(f"postgresql://db/jobs?{part}")


@pytest.mark.parametrize(
    ("more", "prepare", "listen"),
    [
        ("", False, False),
        ("&prepare=on", True, False),
        ("&listen=on", False, True),
        ("&listen=off", False, False),
    ],
)
def test_behind_a_pooler_what_it_might_lose_is_off_unless_it_is_asked_for(
    more: str, prepare: bool, listen: bool
) -> None:
    """Prepared statements and notifications; tests/process/nodes/test_pooler.py has a real one."""
    address = read_address(f"postgresql://db/jobs?schema=mine{more}").behind_a_pooler()

    assert (address.prepare, address.listen) == (prepare, listen)
    assert address.schema == "mine"


async def test_a_server_is_not_taken_for_a_pooler(schema: str) -> None:
    """It names its own process."""
    async with open_postgres(url_of(schema)) as store:
        address = store._connector.address

    assert (address.prepare, address.listen, address.pooled) == (True, True, False)


@pytest.mark.parametrize("lease", [1, 15, 3600, 10 * 24 * 3600])
def test_any_lease_asks_for_keepalives_that_the_system_can_do(lease: float) -> None:
    """Linux counts to 127 of them, and refuses the connection otherwise; a test server with a socket does not tell."""
    options = Connector(read_address("postgresql://db/jobs"), Limits(lease=lease)).options
    with socket.socket() as tcp:
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, options["keepalives_count"])
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, options["keepalives_idle"])
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, options["tcp_user_timeout"])


async def test_a_server_that_is_too_old_is_refused(schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is needed, and before anything is made in it."""
    monkeypatch.setattr("jobpipe.store.postgres.opening.OLDEST", 990000)
    with pytest.raises(StoreError, match="is too old: PostgreSQL 99 or newer is needed"):
        async with open_postgres(url_of(schema)):
            pass

    assert ask("select count(*) from pg_namespace where nspname = %s", schema) == [(0,)]


async def test_a_server_that_is_not_there_is_told_of(tmp_path: Any) -> None:
    """At the start: later it is waited for."""
    with pytest.raises(StoreUnavailable, match="cannot be used now") as caught:
        async with open_postgres(f"postgresql://joe:secret@/jobs?host={tmp_path}"):
            pass

    assert "secret" not in str(caught.value)


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the store is opened, not when a handler first runs."""
    import jobpipe.store  # noqa: PLC0415 - to take something out of it

    monkeypatch.delattr(jobpipe.store, "postgres")
    monkeypatch.setitem(sys.modules, "jobpipe.store.postgres", None)
    with pytest.raises(StoreError, match=r"pip install 'psycopg\[binary\]'"):
        factory.open_store("postgresql://db/jobs", "full")


async def test_the_factory_opens_it(schema: str) -> None:
    """Under both names of the scheme."""
    url = url_of(schema)
    async with AsyncExitStack() as stack:
        stores: list[Store] = [
            await stack.enter_async_context(factory.open_store(url, "full")),
            await stack.enter_async_context(
                factory.open_store(url.replace("postgresql://", "postgres://"), "normal")
            ),
        ]
        await add(stores[0], new_job())

        assert all(isinstance(store, PostgresStore) for store in stores)
        assert (await get(stores[1])).status is Status.QUEUED


async def test_it_works_without_prepared_statements(schema: str) -> None:
    """For poolers that cannot follow them."""
    async with open_postgres(url_of(schema, prepare="off", listen="off")) as store:
        node = Node(store)
        await node.join()
        for number in range(8):  # more often than psycopg waits before it prepares by itself
            await add(store, new_job(f"j{number}"))
            await node.settle(await node.take(), Outcome.DONE)
        async with store.changes():
            listening = store.listening

        assert not listening
        assert ask(
            "select count(*) from pg_stat_activity where query like 'LISTEN%%' and application_name = %s",
            schema,
        ) == [(0,)]


@pytest.mark.parametrize(("sync", "commits"), [("full", "on"), ("normal", "off")])
async def test_a_commit_waits_for_the_disk_as_sync_says(schema: str, sync: Any, commits: str) -> None:
    """Whatever the server does by default, and for our own transactions alone."""
    async with factory.open_store(url_of(schema), sync) as store:
        assert isinstance(store, PostgresStore)
        connection = store._engine_connection
        found = await connection.transact(
            lambda session: session.row("select current_setting('synchronous_commit')")
        )

        assert found == (commits,)


async def test_what_claims_and_ends_leave_dead_is_vacuumed(
    schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so much work, not after so much time."""
    for name, value in {"HOT_DEAD": 20, "COLD_DEAD": 5, "COLD_SHARE": 0.0, "PAUSE": 0.0}.items():
        monkeypatch.setattr(f"jobpipe.store.postgres.vacuum.{name}", value)
    async with open_postgres(url_of(schema)) as store:
        node = Node(store)
        await node.join(lease_until=NOW + 100)
        await add(store, *(new_job(f"j{number}") for number in range(30)))
        for _ in range(2):
            jobs = await node.claim(5)
            await node.exchange(settlements=[settlement(job, Outcome.DONE) for job in jobs])
            await store.prune(NOW + 1, Retention(done_age=0.0, failed_age=0.0, jobs=100, size=10**9))
        with trio.fail_after(20):
            while not store.vacuum.rounds:  # noqa: ASYNC110 - nobody is told
                await trio.sleep(0.01)

    for table in ("live", "jobs", "ended"):
        assert ask(f"select pg_stat_get_vacuum_count('{schema}.{table}'::regclass)") == [(1,)]


@pytest.mark.parametrize(
    "part",
    [{"user": "nobody_of_this_name"}, {"dbname": "no_database_of_this_name"}],
    ids=["user", "database"],
)
def test_a_server_that_refuses_the_connection_is_not_waited_for(part: dict[str, str]) -> None:
    """A wrong user, password or database will not pass by itself."""
    with pytest.raises(
        StoreError, match=r"refused the connection .*: check the user, the password"
    ) as caught:
        migrate(url_of("jobpipe", **part))

    assert not isinstance(caught.value, StoreUnavailable)


@pytest.mark.parametrize(
    "words",
    [
        "FATAL:  sorry, too many clients already",
        "FATAL:  remaining connection slots are reserved for roles",
        "FATAL:  no more connections allowed (max_client_conn)",
    ],
)
def test_a_server_that_is_full_is_waited_for(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That passes by itself."""

    def connect(_connector: Connector) -> Any:
        raise psycopg.OperationalError(f"connection failed: {words}")

    monkeypatch.setattr(Connector, "connect", connect)
    with pytest.raises(StoreUnavailable, match="cannot be used now"):
        migrate(url_of("jobpipe"))


@pytest.mark.parametrize("host", ["127.0.0.1", "no-host-of-this-name.invalid"])
def test_a_server_that_is_not_there_yet_is_waited_for(host: str) -> None:
    """Its name may come with it, as that of a container does."""
    with socket.socket() as taken:  # bound, but not listening: the port is nobody else's meanwhile
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(StoreUnavailable, match="cannot be used now"):
            migrate(f"postgresql://joe@{host}:{taken.getsockname()[1]}/jobs")
