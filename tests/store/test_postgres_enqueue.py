"""The SQL function `enqueue`: a job in the caller's own transaction, from any language."""

import json
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import msgspec
import psycopg
import pytest
from msgspec import inspect

from jobpipe.api.schemas import EnqueueRequest
from jobpipe.job import Backoff, Options, Outcome, Status, new_job_id
from jobpipe.store.base import QueueSettings, Store
from jobpipe.store.postgres import open_postgres
from tests.api.client import open_door
from tests.store.bounds import of_fields
from tests.store.server import ask, empty_schema, server_url, with_query
from tests.store.test_contract import Node, add, edit, get, listed, look, new_job


@pytest.fixture
def schema() -> Iterator[str]:
    with empty_schema() as name:
        yield name


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


class RawJson(str):
    """JSON as it is sent."""

    __slots__ = ()


def nested(levels: int) -> RawJson:
    """An array in an array, so many times."""
    return RawJson("[" * levels + "]" * levels)


def as_json(value: Any) -> str:
    """A value as JSON, with what is JSON already as it is."""
    if isinstance(value, RawJson):
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {as_json(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_json, value)) + "]"
    return json.dumps(value)


UNFIT = (
    "\x01\t\n\x1f \x7f\x80\x85\x9b\x9f\xa0/"
    "\u1680\u2000\u200a\u200e\u200f\u2028\u2029\u202a\u202e\u202f\u205f\u2066\u2069\u3000\ufeff"
)
"""What no id may hold: control characters, spaces, slashes, and what turns or hides the text around it."""


def enqueue(application: psycopg.Connection[Any], **given: Any) -> str:
    """Call the function with named arguments, as an application does."""
    arguments = ", ".join(f"{name} => %({name})s{CASTS.get(name, '')}" for name in given)
    values = {
        name: as_json(value) if name in {"payload", "backoff"} else value for name, value in given.items()
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
    assert (job.asked.kind, job.asked.queue, job.status, job.asked.priority, job.asked.max_retries) == (
        "echo",
        "default",
        Status.QUEUED,
        0,
        None,
    )
    assert json.loads(job.asked.payload) == {"n": 1}
    assert job.asked.run_at == job.asked.created_at
    assert job.asked.options == Options()
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

    assert (job.asked.kind, job.asked.queue, job.status, job.asked.priority, job.asked.max_retries) == (
        "email.send",
        "mail",
        Status.SCHEDULED,
        -7,
        0,
    )
    assert (job.asked.run_at, job.asked.expires_at) == (2211624000.5, 2243246400.0)
    assert job.asked.options == Options(
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

    assert round(job.asked.run_at - job.asked.created_at, 3) == 5
    assert (job.status, job.asked.options) == (Status.SCHEDULED, Options(delay=5))


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


EDGES: list[dict[str, Any]] = [
    {"id": "x" * 200},
    {"id": "..."},
    {"id": "größe-\u00a1\u2010\u2027\u202f"[:-1]},
    {"queue": "Q._-9"},
    {"run_at": "0001-01-01T00:00:00Z"},
    {"run_at": "9999-12-31T23:59:59Z"},
    {"expires_at": "9999-12-31T23:59:59Z"},
    {"payload": nested(500)},
    {"payload": "x" * (2**20 - 2)},
    {"payload": RawJson("1" * 4300)},
    {"payload": [1e-320, 1e22, "9" * 5000, -0.0]},
    {"backoff": {"base": 0, "factor": 1, "cap": 0, "jitter": "equal"}},
    {"tags": ["ü" * 100] * 20},
    {"tags": None},
    {"max_retries": None},
]
BEYOND: list[tuple[str, dict[str, Any]]] = [
    ("id", {"id": "x" * 201}),
    *(("id", {"id": f"a{mark}b"}) for mark in UNFIT),
    ("kind", {"kind": "k" * 101}),
    ("kind", {"kind": "a\n"}),
    ("queue", {"queue": "ö"}),
    ("run_at", {"run_at": "infinity"}),
    ("run_at", {"run_at": "-infinity"}),
    ("run_at", {"run_at": "0001-12-31T23:59:59Z BC"}),
    ("run_at", {"run_at": "10000-01-01T00:00:00Z"}),
    ("run_at", {"run_at": "9999-12-31T23:59:59.9995Z"}),
    ("expires_at", {"expires_at": "infinity"}),
    ("expires_at", {"expires_at": "-infinity"}),
    ("expires_at", {"expires_at": "10000-01-01T00:00:00Z"}),
    *((name, {name: value}) for name in ("delay", "timeout") for value in (math.nan, math.inf, -math.inf)),
    ("payload", {"payload": nested(501)}),
    ("payload", {"payload": {"a": nested(499), "b": [nested(500)]}}),
    ("payload", {"payload": nested(5000)}),
    ("payload", {"payload": "x" * (2**20 - 1)}),
    ("payload", {"payload": RawJson("1" * 4301)}),
    ("payload", {"payload": RawJson('{"a": [1e-400]}')}),
    ("payload", {"payload": RawJson("1" + "0" * 309 + ".5")}),
    ("backoff", {"backoff": {"jitter": None}}),
    ("backoff", {"backoff": {"base": None}}),
    ("backoff", {"backoff": RawJson('{"base": 1e-400}')}),
    ("tags", {"tags": ["t"] * 21}),
    ("tags", {"tags": [None]}),
]


@pytest.mark.parametrize("given", EDGES, ids=[f"{n}-{next(iter(one))}" for n, one in enumerate(EDGES)])
async def test_what_is_allowed_can_be_shown_and_sent_over_http_again(
    store: Store, application: Any, given: dict[str, Any]
) -> None:
    """Right at each limit: a node answers with the job, and takes the same request for the same job."""
    job_id = enqueue(application, **{"kind": "echo", "id": "a"} | given)
    application.commit()
    sent = {name: value for name, value in ({"kind": "echo", "id": "a"} | given).items() if value is not None}
    async with open_door(store, max_body=2**21) as door:
        shown = await door.get(f"/jobs/{quote(job_id)}")
        again = await door.post("/enqueue", content=as_json(sent))

    assert shown.status_code == 200
    assert (again.status_code, again.json().get("id")) == (200, job_id)


@pytest.mark.parametrize(
    "given",
    [{"run_at": "9999-12-31T23:59:59.999Z"}, {"expires_at": "9999-12-31T23:59:59.999Z"}, {"kind": "k" * 100}],
    ids=["run_at", "expires_at", "kind"],
)
async def test_the_last_moment_and_the_longest_name_are_kept(
    store: Store, application: Any, given: dict[str, Any]
) -> None:
    """And a node can show the job."""
    enqueue(application, **{"kind": "echo", "id": "a"} | given)
    application.commit()
    async with open_door(store) as door:
        shown = await door.get("/jobs/a")

    assert given.items() <= shown.json().items()


@pytest.mark.parametrize(("named", "given"), BEYOND, ids=[f"{n}-{one}" for n, (one, _) in enumerate(BEYOND)])
async def test_what_is_beyond_a_limit_is_refused_with_its_name(
    store: Store, application: Any, named: str, given: dict[str, Any]
) -> None:
    """And nothing is stored."""
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=f"jobpipe.enqueue: {named}: "):
        enqueue(application, **{"kind": "echo"} | given)
    application.rollback()

    assert await listed(store) == []


OVER_HTTP_ONLY = frozenset({"depends_on", "needs", "group", "unique", "throttle", "debounce"})
"""What the function does not take: it would have to lock rows that others wait for until the caller's commit."""


async def test_the_function_knows_no_jobs_that_wait_for_others_or_are_merged_with_them(
    store: Store, application: Any
) -> None:
    """An application is told so, and nothing is stored."""
    await add(store, new_job("b"))
    for given in (
        {"depends_on": ["b"]},
        {"needs": "ended"},
        {'"group"': "g"},  # a word of SQL's own, as the next
        {'"unique"': "{}"},
        {"throttle": "{}"},
        {"debounce": "{}"},
    ):
        with pytest.raises(psycopg.errors.UndefinedFunction, match=next(iter(given)).strip('"')):
            enqueue(application, kind="echo", id="a", **given)
        application.rollback()

    assert await listed(store) == ["b"]


async def test_the_function_has_the_bounds_of_the_request(store: Store, application: Any) -> None:
    """Each that the schema of `POST /enqueue` names, at the bound and beyond it: both say the same."""
    cases = [
        (given, within)
        for given, within in of_fields(
            inspect.type_info(EnqueueRequest), lambda name, value: {"kind": "echo", name: value}
        )
        if OVER_HTTP_ONLY.isdisjoint(given)
    ]
    for given, within in cases:
        try:
            msgspec.json.decode(json.dumps(given), type=EnqueueRequest)
            taken = True
        except msgspec.ValidationError:
            taken = False
        try:
            enqueue(application, **given)
            stored = True
        except psycopg.errors.InvalidParameterValue:
            stored = False
        application.rollback()

        assert taken == within, given
        assert stored == within or "a\x9b" in {given.get("id"), given.get("key")}, given

    assert len(cases) > 60


async def test_a_closed_queue_takes_no_jobs(store: Store, application: Any) -> None:
    """One that is there already is returned; another queue takes them."""
    first = enqueue(application, kind="echo", queue="mail", id="a")
    application.commit()
    await store.put_queue("mail", QueueSettings(closed=True))
    again = enqueue(application, kind="echo", queue="mail", id="a")
    other = enqueue(application, kind="echo", id="b")
    application.commit()
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="the queue mail is closed"):
        enqueue(application, kind="echo", queue="mail")
    application.rollback()
    await store.put_queue("mail", QueueSettings())
    enqueue(application, kind="echo", queue="mail", id="c")
    application.commit()

    assert (first, again, other) == ("a", "a", "b")
    assert sorted(await listed(store)) == ["a", "b", "c"]


async def test_what_the_handler_says_is_not_fixed_by_who_enqueues(store: Store, application: Any) -> None:
    """By SQL, then over HTTP: one job, with the handler's retries, though SQL knows of no handler."""
    enqueue(application, kind="mail", id="a", payload={"to": "a@b", "lines": []})
    application.commit()
    async with open_door(store) as door:
        again = await door.enqueue(kind="mail", id="a", payload={"to": "a@b", "lines": []})
        fewer = await door.enqueue(kind="mail", id="a", payload={"to": "a@b", "lines": []}, max_retries=7)

    assert (again.status_code, again.json()["max_retries"]) == (200, 7)
    assert fewer.status_code == 409


async def test_a_call_that_is_repeated_is_compared_with_what_was_asked_first(
    store: Store, application: Any
) -> None:
    """The application may not know that the job was edited since."""
    given: dict[str, Any] = {
        "kind": "echo",
        "id": "a",
        "payload": {"text": "é"},
        "expires_at": "2100-01-31T12:00:00.123Z",
        "backoff": {"base": 0.1},
        "tags": ["t", "ü"],
    }
    enqueue(application, **given)
    application.commit()
    await edit(store, payload=b"2", queue="x", max_retries=1, expires_at=None, backoff=None, tags=())
    again = enqueue(application, **given)

    assert again == "a"
    with pytest.raises(psycopg.errors.UniqueViolation, match="another job with the id a"):
        enqueue(application, kind="echo", id="a", payload=2, queue="x", max_retries=1)


async def test_a_first_request_that_sql_cannot_hold_is_another_one(store: Store, application: Any) -> None:
    """Whatever the job holds now."""
    await add(store, new_job(payload=b'"a\\u0000b"'))
    await edit(store, payload=b'"ab"')
    with pytest.raises(psycopg.errors.UniqueViolation, match="another job with the id a"):
        enqueue(application, kind="echo", id="a", payload="ab", max_retries=3)


async def test_a_job_that_sql_cannot_hold_is_another_job(store: Store, application: Any) -> None:
    """Over HTTP a payload may hold a NUL, which jsonb may not."""
    await add(store, new_job(payload=b'"a\\u0000b"'))
    with pytest.raises(psycopg.errors.UniqueViolation, match="another job with the id a"):
        enqueue(application, kind="echo", id="a", payload="ab", max_retries=3)


SESSION = (
    "set standard_conforming_strings = off",
    "set extra_float_digits = -15",
    "set datestyle = 'SQL, DMY'",
    "set timezone = 'Asia/Kathmandu'",
    "set bytea_output = 'escape'",
    "set default_transaction_isolation = serializable",
    "set escape_string_warning = off",
    "set intervalstyle = 'sql_standard'",
)


async def test_settings_of_the_callers_session_change_nothing(
    store: Store, application: Any, schema: str
) -> None:
    """Nor does its search_path."""
    application.commit()
    for setting in SESSION:
        application.execute(setting.encode())
    application.execute("set search_path = pg_temp, public")
    application.commit()
    given = {
        "payload": {"x": [0.1, 123456.789012345]},
        "backoff": {"base": 0.123456789012345},
        "timeout": 0.1 + 0.2,
    }
    for _ in range(2):
        application.execute(
            f"select {schema}.enqueue('echo', %s::jsonb, id => 'a.b', timeout => %s, backoff => %s::jsonb, "
            "run_at => '2040-01-31T12:00:00.5Z')".encode(),
            (json.dumps(given["payload"]), given["timeout"], json.dumps(given["backoff"])),
        )
    application.commit()
    job = await get(store, "a.b")

    assert json.loads(job.asked.payload) == given["payload"]
    assert job.asked.run_at == 2211624000.5
    assert job.asked.options == Options(
        timeout=0.1 + 0.2, backoff=Backoff(base=0.123456789012345), run_at=2211624000.5
    )
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        application.execute(f"select {schema}.enqueue('echo', id => 'a b')".encode())


@pytest.mark.parametrize("value", ["'infinity'", "'-infinity'", "'NaN'", "253402300800", "-62135596801"])
async def test_no_time_that_cannot_be_shown_can_be_written_by_hand(
    store: Store, application: Any, value: str
) -> None:
    """The schema refuses it in every column that holds a time."""
    await add(store, new_job())
    columns = application.execute(
        "select c.table_name, c.column_name from information_schema.columns c "
        "where c.table_schema = current_schema() and c.domain_name = 'moment' "
        "and c.table_name not in ('shown', 'ended_jobs')"
    ).fetchall()
    for table, column in columns:
        with pytest.raises(psycopg.errors.CheckViolation):
            application.execute(
                f"insert into {table} ({column}) values (({value})::double precision)".encode()
            )
        application.rollback()

    assert {column for _, column in columns} >= {
        "run_at",
        "created_at",
        "started_at",
        "finished_at",
        "expires_at",
    }


async def test_ids_are_made_in_the_order_of_time(store: Store, application: Any) -> None:
    """Of the same form as those that the API makes."""
    ids = [enqueue(application, kind="echo") for _ in range(3)]
    application.commit()
    like = new_job_id((await get(store, ids[0])).asked.created_at, lambda _bits: 0)

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
    receipts = await node.exchange((await get(store, "j0")).asked.created_at + 1, claim=250)
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
