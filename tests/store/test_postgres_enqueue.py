"""The SQL function `enqueue`: a job in the caller's own transaction, from any language."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from jobpipe.job import Backoff, Options, Outcome, Status, new_job_id
from jobpipe.store.base import Store
from jobpipe.store.postgres import open_postgres
from tests.store.server import ask, server_url, with_query
from tests.store.test_contract import Node, add, get, listed, look, new_job


@pytest.fixture
async def store(schema: str) -> AsyncIterator[Store]:
    """A store with its tables made."""
    async with open_postgres(with_query(server_url(), schema=schema)) as opened:
        yield opened


@pytest.fixture
def application(store: Store, schema: str) -> Iterator[psycopg.Connection[Any]]:
    """Somebody's own connection."""
    with psycopg.connect(server_url()) as connection:
        connection.execute(f"set search_path = {schema}".encode())
        connection.commit()
        yield connection


def enqueue(application: psycopg.Connection[Any], **given: Any) -> str:
    """Call the function with named arguments, as an application does."""
    arguments = ", ".join(f"{name} => %({name})s{CASTS.get(name, '')}" for name in given)
    values = {
        name: json.dumps(value) if name in {"payload", "backoff"} else value for name, value in given.items()
    }
    row = application.execute(f"select enqueue({arguments})".encode(), values).fetchone()
    assert row is not None
    return str(row[0])


CASTS = {"payload": "::jsonb", "backoff": "::jsonb", "run_at": "::timestamptz", "expires_at": "::timestamptz"}


async def test_a_job_is_there_when_the_transaction_is_committed(store: Store, application: Any) -> None:
    """Not before, and not when it is undone."""
    job_id = enqueue(application, kind="echo", payload={"n": 1})
    before = await store.get(job_id)
    application.commit()
    job = await get(store, job_id)
    other = enqueue(application, kind="echo")
    application.rollback()

    assert before is None
    assert (job.kind, job.queue, job.status, job.priority, job.max_retries) == (
        "echo",
        "default",
        Status.QUEUED,
        0,
        None,
    )
    assert json.loads(job.payload) == {"n": 1}
    assert job.run_at == job.created_at
    assert job.options == Options()
    assert await store.get(other) is None
    assert (await look(store)).waiting == 1


async def test_everything_that_can_be_asked_is_kept(store: Store, application: Any) -> None:
    """As the API keeps it."""
    given = {
        "kind": "email.send",
        "payload": ["größe"],
        "queue": "mail",
        "id": "ü",
        "priority": -7,
        "max_retries": 0,
        "run_at": "2040-01-31T12:00:00.5Z",
        "expires_at": "2041-01-31T12:00:00Z",
        "timeout": 1.5,
        "backoff": {"base": 0.1, "jitter": "none"},
        "on_crash": "fail",
        "tags": ["blue", "größe", "blue"],
    }
    enqueue(application, **given)
    application.commit()
    job = await get(store, "ü")

    assert (job.kind, job.queue, job.status, job.priority, job.max_retries) == (
        "email.send",
        "mail",
        Status.SCHEDULED,
        -7,
        0,
    )
    assert (job.run_at, job.expires_at) == (2211624000.5, 2243246400.0)
    assert job.options == Options(
        timeout=1.5,
        backoff=Backoff(base=0.1, jitter="none"),
        on_crash="fail",
        tags=("blue", "größe"),
        run_at=2211624000.5,
    )
    assert await listed(store, tag="größe") == ["ü"]


async def test_a_delay_counts_from_the_call(store: Store, application: Any) -> None:
    """And is kept as it was asked for."""
    enqueue(application, kind="echo", id="a", delay=5)
    application.commit()
    job = await get(store, "a")

    assert round(job.run_at - job.created_at, 3) == 5
    assert (job.status, job.options) == (Status.SCHEDULED, Options(delay=5))


async def test_the_same_call_twice_makes_one_job(store: Store, application: Any) -> None:
    """In one transaction or in two, and beside a request over HTTP for the same."""
    given: dict[str, Any] = {
        "kind": "echo",
        "id": "a",
        "payload": {"x": 1, "y": [2.0]},
        "backoff": {"base": 2},
    }
    first, second = enqueue(application, **given), enqueue(application, **given)
    application.commit()
    third = enqueue(application, **given)
    application.commit()
    twin = new_job(payload=b'{"y":[2],"x":1}', max_retries=None, options=Options(backoff=Backoff(base=2)))
    (receipt,) = await add(store, twin)
    enqueue(application, kind="echo", id="b", payload={"n": 1})
    application.commit()
    (other,) = await add(store, new_job("b", max_retries=None))

    assert first == second == third == "a"
    assert receipt.verdict == other.verdict == "existing"
    assert await listed(store) == ["b", "a"]
    assert (await look(store)).waiting == 2


@pytest.mark.parametrize(
    "changes", [{"payload": 2}, {"kind": "demo"}, {"queue": "x"}, {"priority": 1}, {"timeout": 3.0}], ids=str
)
async def test_the_same_id_with_other_content_is_refused(
    store: Store, application: Any, changes: dict[str, Any]
) -> None:
    """Whoever stored the job."""
    await add(store, new_job(payload=b"1"))
    with pytest.raises(psycopg.errors.UniqueViolation, match="another job with the id a"):
        enqueue(application, **{"kind": "echo", "id": "a", "payload": 1} | changes)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"kind": None}, "kind"),
        ({"kind": "a b"}, "kind"),
        ({"queue": ""}, "queue"),
        ({"queue": None}, "queue"),
        ({"id": ""}, "id"),
        ({"id": ".."}, "id"),
        ({"id": "a/b"}, "id"),
        ({"id": "a\n"}, "id"),
        ({"id": "x" * 201}, "id"),
        ({"payload": None, "kind": "echo"}, None),
        ({"priority": 1001}, "priority"),
        ({"priority": None}, "priority"),
        ({"max_retries": -1}, "max_retries"),
        ({"delay": -1}, "delay"),
        ({"delay": 1, "run_at": "2040-01-01T00:00:00Z"}, "delay, run_at"),
        ({"timeout": 0}, "timeout"),
        ({"on_crash": "explode"}, "on_crash"),
        ({"expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"delay": 60, "expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"tags": ["t"] * 21}, "tags"),
        ({"tags": [""]}, "tags"),
        ({"tags": ["x" * 101]}, "tags"),
        ({"backoff": []}, "backoff"),
        ({"backoff": {"bases": 1}}, "backoff"),
        ({"backoff": {"base": "1"}}, "backoff"),
        ({"backoff": {"base": -1}}, "backoff"),
        ({"backoff": {"factor": 0}}, "backoff"),
        ({"backoff": {"jitter": "some"}}, "backoff"),
    ],
    ids=str,
)
async def test_what_the_api_refuses_the_function_refuses(
    store: Store, application: Any, given: dict[str, Any], named: str | None
) -> None:
    """With the name of what is wrong, and nothing is stored."""
    if named is None:
        enqueue(application, **given)  # JSON's null is a payload
        return
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=f"jobpipe.enqueue: {named}"):
        enqueue(application, **{"kind": "echo"} | given)
    application.rollback()

    assert await listed(store) == []


async def test_ids_are_made_in_the_order_of_time(store: Store, application: Any) -> None:
    """Of the same form as those that the API makes."""
    ids = [enqueue(application, kind="echo") for _ in range(3)]
    application.commit()
    like = new_job_id((await get(store, ids[0])).created_at, lambda _bits: 0)

    assert len(set(ids)) == 3
    assert {len(one) for one in ids} == {36}
    assert {one[14] for one in ids} == {"7"}
    assert ids[0][:6] == like[:6]


async def test_a_job_of_the_function_is_run_like_any_other(store: Store, application: Any) -> None:
    """Counts and all; those of many calls are gathered."""
    for number in range(250):
        enqueue(application, kind="echo", id=f"j{number}", queue="q")
    application.commit()
    node = Node(store)
    await node.join()
    receipts = await node.exchange((await get(store, "j0")).created_at + 1, claim=250)
    (queue,) = await store.queues()

    assert [job.id for job in receipts.claimed] == [f"j{number}" for number in range(250)]
    assert receipts.waiting == 0
    assert queue.counts == {Status.QUEUED: 250}
    await node.settle(receipts.claimed[0], Outcome.DONE)
    assert (await store.queues())[0].counts == {Status.QUEUED: 249, Status.DONE: 1}


async def test_a_caller_needs_the_right_to_call_it_and_no_other(
    store: Store, application: Any, schema: str
) -> None:
    """It runs as its owner, with a search_path of its own."""
    ask(f"create role {schema}_app")
    ask(f"grant usage on schema {schema} to {schema}_app")
    application.execute(f"set role {schema}_app".encode())
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        enqueue(application, kind="echo")
    application.rollback()
    ask(f"grant execute on function {schema}.enqueue to {schema}_app")
    application.execute(f"set role {schema}_app".encode())
    application.execute("set search_path = pg_temp")
    application.execute(f"select {schema}.enqueue('echo', id => 'a')".encode())
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        application.execute(f"select * from {schema}.jobs".encode())
    application.rollback()
    application.close()
    ask(f"drop owned by {schema}_app")
    ask(f"drop role {schema}_app")

    assert await store.get("a") is None
