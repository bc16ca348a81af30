"""Other programs' transactions on the tables: what they lock costs the job that it belongs to, and no other."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import trio

from jobpipe.errors import StoreUnavailable, TablesLocked
from jobpipe.job import Outcome, Status
from jobpipe.store.base import Add, LogLine, Note, Store
from jobpipe.store.postgres import open_postgres
from tests.api.client import open_door
from tests.store.server import empty_schema, server_url, with_query
from tests.store.test_contract import LATER, NOW, Node, add, get, listed, new_job, settlement, start

pytestmark = pytest.mark.slow

VERDICTS = ["stored", "locked", "stored"]


@pytest.fixture
def schema() -> Iterator[str]:
    with empty_schema() as name:
        yield name


@pytest.fixture
async def store(schema: str) -> AsyncIterator[Store]:
    async with open_postgres(with_query(server_url(), schema=schema), leases="caller") as opened:
        yield opened


@pytest.fixture
async def node(store: Store) -> Node:
    one = Node(store)
    await one.join()
    return one


@pytest.fixture
def application(store: Store, schema: str) -> Iterator[psycopg.Connection[Any]]:
    """Another program, which leaves a transaction open."""
    with psycopg.connect(server_url()) as connection:
        connection.execute(f"set search_path = {schema}".encode())
        connection.commit()
        yield connection
        connection.rollback()


def verdicts(receipts: Any) -> list[str]:
    return [receipt.verdict for receipt in receipts]


async def test_an_id_in_an_open_transaction_costs_that_job_alone(node: Node, application: Any) -> None:
    """The other jobs of the exchange are stored, what ended is written, and ready ones are claimed."""
    await add(node.store, new_job("done"))
    held = await node.take()
    application.execute("select enqueue('echo', id => 'x')")
    with trio.fail_after(5):
        receipts = await node.exchange(
            settlements=[settlement(held, Outcome.DONE)],
            adds=[Add([new_job("a"), new_job("x"), new_job("b")]), Add([new_job("c")])],
            claim=1,
            lease_until=LATER,
        )

    assert list(map(verdicts, receipts.adds)) == [VERDICTS, ["stored"]]
    assert [job.id for job in receipts.claimed] == ["a"]
    assert not receipts.lease_lost
    assert (await get(node.store, "done")).status is Status.DONE
    assert await node.store.get("x") is None


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_an_id_that_was_locked_can_be_had_when_that_is_over(
    node: Node, application: Any, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The same content again is the same job."""
    monkeypatch.setattr("jobpipe.store.postgres.locks.REFUSE", 0)
    application.execute("select enqueue('echo', '{\"n\": 1}', id => 'x', max_retries => 3)")
    before = await add(node.store, new_job("x"))
    getattr(application, end)()
    after = await add(node.store, new_job("x"))

    assert verdicts(before) == ["locked"]
    assert verdicts(after) == ["existing" if end == "commit" else "stored"]


async def test_a_locked_id_is_asked_for_once_in_a_while(node: Node, application: Any) -> None:
    """A client that sends it again and again does not make the others wait each time."""
    application.execute("select enqueue('echo', id => 'x')")
    await add(node.store, new_job("x"))
    with trio.fail_after(5):  # each alone would wait a quarter of a second
        for number in range(100):
            assert verdicts(await add(node.store, new_job("x"), new_job(f"j{number}"))) == [
                "locked",
                "stored",
            ]


async def test_jobs_of_which_all_or_none_are_stored_are_none(node: Node, application: Any) -> None:
    """Where one of them is locked."""
    application.execute("select enqueue('echo', id => 'x')")
    refused = await add(node.store, new_job("a"), new_job("x"), atomic=True)

    assert verdicts(refused) == ["refused", "locked"]
    assert await listed(node.store) == []


async def test_the_first_job_of_a_queue_in_an_open_transaction_stands_in_nobodys_way(
    node: Node, application: Any
) -> None:
    """Others use that queue at once; it is listed when the transaction is committed and a node has looked."""
    application.execute("select enqueue('echo', id => 'x', queue => 'mail')")
    application.execute("select enqueue('echo', id => 'y', queue => 'alone')")
    with trio.fail_after(0.2):
        receipts = await add(node.store, new_job("a", queue="mail"))
    before = [queue.name for queue in await node.store.queues()]
    application.commit()
    await node.exchange()

    assert verdicts(receipts) == ["stored"]
    assert before == ["mail"]
    assert [queue.name for queue in await node.store.queues()] == ["alone", "mail"]


async def test_a_job_of_a_queue_that_nobody_noted_is_claimed(node: Node, application: Any) -> None:
    """And its queue can be paused and counted like any other."""
    application.execute("select enqueue('echo', id => 'x', queue => 'mail')")
    application.execute("update jobs set created_at = %s, run_at = %s", (NOW, NOW))
    application.execute("update live set run_at = %s", (NOW,))
    application.commit()
    await node.store.pause("other")
    claimed = await node.claim(5)

    assert [job.id for job in claimed] == ["x"]
    assert [queue.name for queue in await node.store.queues()] == ["mail", "other"]


@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.RETRY, None])
async def test_an_outcome_whose_row_is_locked_is_written_later(
    node: Node, application: Any, outcome: Outcome | None
) -> None:
    """Those beside it are written now; nothing is stale."""
    await add(node.store, new_job("a"), new_job("b"), new_job("c"))
    jobs = await node.claim(2)
    application.execute("select from live where seq = %s for update", (jobs[0].seq,))
    with trio.fail_after(5):
        receipts = await node.exchange(
            starts=[start(job) for job in jobs] if outcome is not None else [],
            settlements=[settlement(job, outcome) for job in jobs],
            claim=1,
        )
        again = await node.exchange(settlements=[settlement(jobs[0], outcome)])
    application.rollback()
    at_last = await node.exchange(settlements=[settlement(jobs[0], outcome)])

    assert receipts.locked == again.locked == {(jobs[0].seq, 1)}
    assert (receipts.stale, again.stale, at_last.stale, at_last.locked) == ((frozenset(),) * 4)
    assert len(receipts.claimed) == 1
    for job in jobs:
        assert (await get(node.store, job.id)).status is settlement(job, outcome).status


@pytest.mark.parametrize("act", ["delete", "update"])
async def test_rows_that_an_open_transaction_changes_wait_for_it(
    node: Node, application: Any, act: str
) -> None:
    """A job that was deleted then is stale, and its id is free."""
    await add(node.store, new_job("a"), new_job("b"))
    jobs = await node.claim(2)
    if act == "delete":
        application.execute("delete from live where seq = %s", (jobs[0].seq,))
        application.execute("delete from jobs where seq = %s", (jobs[0].seq,))
    else:
        application.execute("update live set priority = 1 where seq = %s", (jobs[0].seq,))
    receipts = await node.exchange(settlements=[settlement(job, Outcome.DONE) for job in jobs])
    application.commit()
    at_last = await node.exchange(settlements=[settlement(jobs[0], Outcome.DONE)])

    assert receipts.locked == {(jobs[0].seq, 1)}
    assert at_last.stale == ({(jobs[0].seq, 1)} if act == "delete" else frozenset())


async def test_a_note_whose_row_is_locked_is_written_later(node: Node, application: Any) -> None:
    """Neither lost, nor taken for stale, and the others of its exchange are written."""
    await add(node.store, new_job("x"), new_job("b"))
    jobs = await node.claim(2)
    lines = [LogLine(1, NOW, "info", "hello")]
    notes = [Note(seq=one.seq, id=one.id, claim=one.claim, attempt=1, lines=lines) for one in jobs]
    application.execute("select from live where seq = %s for update", [jobs[0].seq])
    with trio.fail_after(5):
        receipts = await node.exchange(notes=notes, adds=[Add([new_job("a")])])
        meanwhile = await node.store.log("x")
        application.rollback()
        at_last = await node.exchange(notes=notes)

    logs = [await node.store.log(job_id) for job_id in ("x", "b")]
    assert receipts.locked == {(jobs[0].seq, 1)}
    assert (receipts.stale, at_last.stale, at_last.locked) == ((frozenset(),) * 3)
    assert meanwhile is not None
    assert meanwhile.lines == []
    assert [log and [one.text for one in log.lines] for log in logs] == [["hello"], ["hello"]]


@pytest.mark.parametrize("locked", ["an id", "the row"])
async def test_an_end_that_brings_a_locked_job_is_written_later(
    node: Node, application: Any, locked: str
) -> None:
    """With all that it brings; those beside it are written now."""
    await add(node.store, new_job("a"), new_job("b"), new_job("c"))
    jobs = await node.claim(2)
    if locked == "an id":
        application.execute("select enqueue('echo', id => 'of-a')")
    else:
        application.execute("select from live where seq = %s for update", (jobs[0].seq,))
    ends = [
        settlement(job, Outcome.DONE, jobs=[new_job(f"of-{job.id}"), new_job(f"too-of-{job.id}")])
        for job in jobs
    ]
    with trio.fail_after(5):
        receipts = await node.exchange(settlements=ends, claim=1)
        between = sorted(await listed(node.store))
    application.rollback()
    at_last = await node.exchange(settlements=ends[:1])

    assert receipts.locked == {(jobs[0].seq, 1)}
    assert (receipts.stale, at_last.stale, at_last.locked) == ((frozenset(),) * 3)
    assert [job.id for job in receipts.claimed] == ["c"]
    assert between == ["a", "b", "c", "of-b", "too-of-b"]
    assert sorted(await listed(node.store)) == ["a", "b", "c", "of-a", "of-b", "too-of-a", "too-of-b"]


@pytest.mark.parametrize("table", ["live", "jobs", "counts", "totals"])
async def test_the_lease_is_renewed_though_a_table_is_locked(
    node: Node, application: Any, table: str
) -> None:
    """Nothing else can be written then, and whoever asks is told within a moment."""
    application.execute(f"lock table {table}".encode())
    with trio.fail_after(5):
        with pytest.raises(TablesLocked) as told:
            await node.exchange(lease_until=LATER + 100, adds=[Add([new_job("a")])])
        with pytest.raises(StoreUnavailable):
            await add(node.store, new_job("a"))
    application.rollback()
    rescued = await node.store.rescue("other", LATER)
    receipts = await node.exchange(LATER, lease_until=LATER + 200, adds=[Add([new_job("a")])])

    assert not told.value.lease_lost
    assert not rescued
    assert not receipts.lease_lost
    assert verdicts(receipts.adds[0]) == ["stored"]


@pytest.mark.parametrize("verb", ["cancel", "retry", "delete", "watch"])
async def test_a_verb_that_meets_a_locked_row_gives_up_soon(node: Node, application: Any, verb: str) -> None:
    """It can be asked again; for other jobs it works meanwhile."""
    for job_id in "ab":
        await add(node.store, new_job(job_id))
        if verb == "retry":
            await node.settle(await node.take(), Outcome.DONE)
    table = "jobs" if verb == "retry" else "live"
    application.execute(
        f"select from {table} where seq = (select seq from jobs where id = 'a') for update".encode()
    )

    async def asked(job_id: str) -> Any:
        match verb:
            case "cancel":
                return await node.store.cancel([job_id], NOW)
            case "retry":
                return await node.store.retry([job_id], NOW)
            case "delete":
                return await node.store.delete([job_id], NOW)
            case _:
                return await node.store.watch(job_id)  # type: ignore[attr-defined]  # a shared store has it

    with trio.fail_after(5):
        with pytest.raises(StoreUnavailable, match="another session holds a lock"):
            await asked("a")
        await asked("b")
    application.rollback()
    await asked("a")


async def test_a_rescue_leaves_locked_jobs_for_the_next_one(node: Node, application: Any) -> None:
    """The others are taken back."""
    await add(node.store, new_job("a", max_retries=0), new_job("b"), new_job("c"))
    jobs = await node.claim(3)
    await node.exchange(starts=[start(job) for job in jobs])
    for job in jobs[:2]:
        application.execute("select from live where seq = %s for update", (job.seq,))
    with trio.fail_after(5):
        first = await node.store.rescue("other", LATER)
    application.rollback()
    second = await node.store.rescue("other", LATER)

    assert [job.id for job in first] == ["c"]
    assert [job.id for job in second] == ["a", "b"]


async def test_expiry_passes_over_locked_jobs(node: Node, application: Any) -> None:
    """They expire when they can."""
    await add(node.store, new_job("a", expires_at=NOW + 1), new_job("b", expires_at=NOW + 1))
    application.execute("select from live where seq = (select seq from jobs where id = 'a') for update")
    with trio.fail_after(2):
        await node.exchange(LATER)
    before = [(await get(node.store, job_id)).status for job_id in "ab"]
    application.rollback()
    await node.exchange(LATER)

    assert before == [Status.QUEUED, Status.EXPIRED]
    assert (await get(node.store, "a")).status is Status.EXPIRED


async def test_a_job_of_which_a_row_was_deleted_by_hand_can_be_shown_and_deleted(
    node: Node, application: Any
) -> None:
    """And a rescue comes to an end."""
    await add(node.store, new_job("a"), new_job("b"))
    await node.claim(2)
    application.execute("delete from live where seq = (select seq from jobs where id = 'a')")
    application.execute("delete from jobs where id = 'b'")
    application.commit()
    job = await get(node.store, "a")
    with trio.fail_after(5):
        rescued = await node.store.rescue("other", LATER)
        (change,) = await node.store.delete(["a"], NOW)

    assert job.status is Status.CANCELLED
    assert not rescued
    assert change.verdict == "changed"
    assert await listed(node.store) == []


async def test_over_http_a_locked_id_is_503_and_everything_else_goes_on(
    store: Store, application: Any
) -> None:
    """Alone, in an array, and as a line of a stream."""
    async with open_door(store) as door:
        application.execute("select enqueue('echo', id => 'x', queue => 'mail')")
        alone = await door.enqueue(id="x", queue="mail")
        array = await door.post("/enqueue/bulk", json=[{"id": "a"}, {"id": "x"}])
        lines = await door.post(
            "/enqueue/bulk",
            content=b'{"id":"b"}\n{"id":"x"}\n{"id":"c","queue":"mail"}\n',
            headers={"Content-Type": "application/x-ndjson"},
        )
        health = await door.get("/health")
        application.rollback()
        stored = await listed(store)

    assert (alone.status_code, array.status_code, health.status_code) == (503, 503, 200)
    assert "Retry-After" in alone.headers
    assert "another program" in alone.json()["detail"]
    assert ['"status":503' in line for line in lines.text.splitlines()] == [False, True, False]
    assert stored == ["c", "b"]
