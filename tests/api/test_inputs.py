"""What a request may bring: on every route, whatever it does not declare is refused by its name."""

import re
import urllib.parse
from typing import get_args

import pytest

from jobpipe.api.inputs import SHOWN
from jobpipe.api.problems import LISTED
from jobpipe.store.base import Filter, NewOperation, OperationVerb

NEVER = "never_a_name"
"""What will never be the name of a parameter or a field."""


def every_request(door):
    """A request for each route and method of the application, its path as it would be for a job that is there."""
    for rule in door.app._app.url_map.iter_rules():
        path = re.sub(r"<(?:path:)?(\w+)>", lambda found: PLACES[found[1]], rule.rule)
        yield from ((method, path) for method in sorted(rule.methods))


PLACES = {
    "job_id": "a",
    "name": "default",
    "key": "k",
    "node_name": "n",
    "group_id": "g",
    "operation_id": "o",
    "fingerprint": "1-x",
    "filename": "docs.css",
}
BULK = tuple(f"/jobs/{verb}" for verb in get_args(OperationVerb))
"""What takes a filter."""


def places(answer):
    return [fault["pointer"] for fault in answer.json()["faults"]]


async def everything(door):
    """All that a request could change."""
    answers = [
        (await door.get(path)).json()
        for path in ("/jobs/a", "/queues", "/schedules", "/operations", "/audit")
    ]
    return answers, await door.stored()


async def in_group(tx):
    """Have a job be one of an error group, whatever has become of it."""
    tx.run("update jobs set fingerprint = '1-x' where id = 'a'", {})


@pytest.fixture
async def ended(door, autojump_clock):
    """A door whose job `a` has ended, so that it could be retried and deleted; an operation, `o`; and a node, `n`."""
    now = door.node.clock.now()
    await door.node.store.join("n", now, now + 1e6)
    await door.enqueue(id="a")
    await door.ended("a")
    asked = NewOperation(id="o", verb="cancel", where=Filter(id="none"))
    await door.node.store.begin_operation(asked, door.node.clock.now())
    await door.node.store.stop_operation("o", door.node.clock.now())
    return door


async def test_an_unknown_parameter_is_refused_on_every_route(ended):
    before, seen = await everything(ended), []
    for method, path in every_request(ended):
        answer = await ended.request(method, f"{path}?{NEVER}=1")
        seen.append((method, path))

        assert answer.status_code == 422, (method, path)
        assert method == "HEAD" or places(answer) == [f"?{NEVER}"], (method, path)

    assert len(seen) > 30
    assert await everything(ended) == before


async def test_an_unknown_parameter_is_refused_by_the_application_behind_the_front_too(ended, parts):
    for path in ("/enqueue", "/enqueue/bulk"):
        answer = await ended.call(path, parts(b"{}"), query=f"{NEVER}=1", app=ended.app._app)

        assert answer.status == 422


@pytest.mark.parametrize("empty", [b"", b" \r\n", b"{}", b"null", b"\xef\xbb\xbf{}"])
async def test_a_body_that_says_nothing_is_taken_by_every_route(ended, empty):
    for method, path in every_request(ended):
        if not path.startswith(("/enqueue", "/groups", *BULK)) and method not in (
            "PATCH",
            "PUT",
        ):  # which take a body
            if (method, path) == ("GET", "/events"):
                continue  # whose answer has no end
            await ended.enqueue(id="a")
            await ended.request("PUT", "/schedules/default", json={"every": 1e6})
            await ended.ended("a")
            await ended.node.store._transact(in_group)
            answer = await ended.request(method, path, content=empty)

            assert answer.status_code in (200, 202, 204, 302, 409), (method, path)


async def test_an_unknown_field_is_refused_on_every_route(ended):
    before = await everything(ended)
    for method, path in every_request(ended):
        body = {NEVER: 1, "jobs": [{}]} if path == "/groups" else {NEVER: 1}
        answer = await ended.request(method, path, json=[body] if path == "/enqueue/bulk" else body)

        takes = path.startswith(("/enqueue", "/groups", *BULK)) or path.endswith("/pause")
        if takes and method == "OPTIONS":
            continue  # which takes what its route takes, and does nothing with it
        assert answer.status_code == 422, (method, path)
        place = f"/0/{NEVER}" if path == "/enqueue/bulk" else f"/{NEVER}"
        assert method == "HEAD" or place in places(answer), (method, path)

    assert await everything(ended) == before


@pytest.mark.parametrize("body", [b"for=60", b"[]", b"60", b'"x"', b"{", b"\xff", b"[" * 100_000, b"x"])
async def test_a_body_that_is_no_object_is_refused_where_none_is_taken(ended, body):
    answer = await ended.post("/queues/default/resume", content=body)

    assert (answer.status_code, places(answer)) == (422, [""])
    assert "takes no body" in answer.json()["detail"]


async def test_every_unknown_field_is_named(ended):
    answer = await ended.post("/jobs/a/retry", json={"max_retries": 9, "a/b": 1})

    assert places(answer) == ["/max_retries", "/a~1b"]


@pytest.mark.parametrize(
    ("path", "meant"),
    [("/jobs/a?wiat=5", "did you mean wait?"), ("/jobs?stats=done", "did you mean status?")],
)
async def test_a_parameter_that_is_close_to_a_known_one_is_told_so(ended, path, meant):
    answer = await ended.get(path)

    assert meant in answer.json()["faults"][0]["detail"]


async def test_a_route_without_parameters_says_so(ended):
    (fault,) = (await ended.post("/enqueue/bulk?wait=5", json=[])).json()["faults"]

    assert fault == {"pointer": "?wait", "detail": "unknown parameter; this request takes no parameters"}


@pytest.mark.parametrize(
    "query", ["wait=1&wait=1", "wait=1&wait=2", "wait=1&wait=1&wait=1", "wait=1&%77ait=1"]
)
async def test_a_parameter_that_is_given_twice_is_refused(ended, query):
    answer = await ended.get(f"/jobs/a?{query}")

    assert answer.status_code == 422
    assert set(places(answer)) == {"?wait"}
    assert "twice" in answer.json()["detail"]


MALFORMED = {
    "wait": ["", "x", "-1", "601", "nan", "inf", "1e400", "null", " 1", "1_0", "0x10", "true", "1,5"],
    "limit": ["", "0", "1001", "1.5", "null", "ten", "-0x1", "9" * 5000],
    "payload": ["", "yes", "on", "2", "null"],
    "status": ["", "null", "Done", "no such", "x" * 5000],
    "kind": ["", "a b", "a/b", "a\n", "\u202e", "x" * 101],
    "queue": ["", "a b", ".a", "a\x00"],
    "tag": ["", "x" * 101, "a\nb", "a\u202eb", "\x9b"],
    "text": ["", "x" * 1001],
    "cursor": ["", "nonsense", "MA", "null", "\u00e9"],
    "created_after": [
        "",
        "null",
        "1893456000",
        "tomorrow",
        "2030-01-31",
        "2030-01-31T12:00:00",
        "2016-12-31T23:59:60Z",
        "0000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "2030-01-01T00:00:00+24:00",
    ],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in MALFORMED for value in MALFORMED[name]]
)
async def test_a_malformed_value_is_refused_by_the_name_of_its_parameter(ended, name, value):
    path = "/jobs/a" if name == "wait" else "/jobs"
    answer = await ended.get(f"{path}?{urllib.parse.urlencode({name: value})}")

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert places(answer) == [f"?{name}"]
    assert "`" not in answer.json()["detail"]
    assert len(answer.content) < 1000 + 2 * SHOWN


@pytest.mark.parametrize("query", ["wait=0", "wait=600", "wait=1e2", ""])
async def test_the_edges_of_wait_are_taken(ended, query):
    assert (await ended.get(f"/jobs/a?{query}")).status_code == 200


@pytest.mark.parametrize(
    "time",
    [
        "0001-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59.999Z",
        "9999-12-31T23:59:59.999999-23:59",
        "1969-12-31T23:59:59.999Z",
        "2030-01-01T00:00:00+01:00",
    ],
)
@pytest.mark.parametrize("name", ["created_after", "created_before"])
async def test_a_list_may_be_bounded_by_any_time(ended, name, time):
    answer = await ended.get(f"/jobs?{urllib.parse.urlencode({name: time})}")

    later = time < "2000"
    assert answer.status_code == 200
    assert len(answer.json()["jobs"]) == (later == (name == "created_after"))


async def test_a_plus_that_became_a_space_is_told_so(ended):
    answer = await ended.get("/jobs?created_after=2030-01-01T00:00:00+01:00")

    assert "write + as %2B" in answer.json()["detail"]


@pytest.mark.parametrize("query", ["text=%FF", "%FF=1"])
async def test_a_query_that_is_not_utf8_is_refused(ended, query, parts):
    answer = await ended.call("/jobs", parts(), method="GET", query=query)

    assert answer.status == 422
    assert b"percent-encode" in answer.body


@pytest.mark.parametrize(("number", "status"), [(LISTED - 1, 422), (LISTED + 1, 422)])
async def test_a_flood_of_parameters_makes_no_flood_of_an_answer(ended, number, status):
    answer = await ended.get("/jobs?" + "&".join(f"{'x' * 300}{n}=1" for n in range(number)))

    assert answer.status_code == status
    assert len(answer.content) < 60_000


async def test_a_stream_is_refused_for_its_parameters_before_it_stores_anything(ended):
    answer = await ended.post(
        f"/enqueue/bulk?{NEVER}=1",
        content=b'{"id":"b"}\n',
        headers={"Content-Type": "application/x-ndjson"},
    )

    assert answer.status_code == 422
    assert await ended.stored() == 1


async def test_an_unknown_route_stays_unknown_whatever_its_parameters(ended):
    assert (await ended.get(f"/nowhere?{NEVER}=1")).status_code == 404
    assert (await ended.put(f"/jobs?{NEVER}=1")).status_code == 405
