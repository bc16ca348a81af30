"""`POST /enqueue`: what is taken, what is refused and how, and that the same request twice makes one job."""

import functools
import json
import urllib.parse
from datetime import datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobpipe.job import DEEPEST
from jobpipe.store.base import Filter
from tests.api.client import Breakable, asked, open_door

EVERYTHING = {
    "id": "all",
    "kind": "play",
    "payload": {"a": [1, 2.5, "é", None, True]},
    "queue": "mail.out",
    "priority": -5,
    "max_retries": 0,
    "delay": 60,
    "timeout": 1.5,
    "backoff": {"base": 2, "factor": 1, "cap": 10, "jitter": "none"},
    "expires_at": "2099-01-01T00:00:00Z",
    "on_crash": "fail",
    "tags": ["a", "b"],
}

ODD_IDS = [
    "a?b",
    "a#b",
    "a%b",
    "a%2Fb",
    "a+b&c=d",
    "a;b",
    "a\\b",
    "...",
    "~'\"<>|{}^`",
    "é",
    "日本",
    "\U0001f600",
    "x" * 200,
]


def pointers(answer):
    """The places of the faults that an answer lists."""
    assert answer.headers["content-type"] == "application/problem+json"
    return [fault["pointer"] for fault in answer.json()["faults"]]


# What is taken


async def test_the_curl_line_of_the_origin_is_answered_202_with_the_job_and_where_it_is(door):
    body = b'{"id":"t1","payload":"data","max_retries":3}'

    answer = await door.post(
        "/enqueue", content=body, headers={"Content-Type": "application/x-www-form-urlencoded"}
    )

    assert (answer.status_code, answer.headers["location"]) == (202, "/jobs/t1")
    assert answer.headers["content-type"] == "application/json"
    told = answer.json()
    assert (told["id"], told["kind"], told["queue"], told["status"]) == ("t1", "echo", "default", "queued")
    assert (told["payload"], told["max_retries"], told["attempt"], told["attempts"]) == ("data", 3, 0, [])


async def test_everything_may_be_left_out(door):
    answer = await door.post("/enqueue", content=b"{}")

    told = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/jobs/{told['id']}"
    assert (told["payload"], told["max_retries"], told["priority"], told["tags"]) == (None, 3, 0, [])


async def test_everything_that_can_be_said_is_kept_and_shown(either_door):
    answer = await either_door.enqueue(**EVERYTHING)

    shown = (await either_door.get("/jobs/all")).json()
    assert answer.json() == {name: value for name, value in shown.items() if name != "waits_for"}
    told = {name: value for name, value in EVERYTHING.items() if name not in ("delay", "expires_at")}
    assert {name: shown[name] for name in told} == told
    assert shown["status"] == "scheduled"
    created_at, run_at = (datetime.fromisoformat(shown[name]) for name in ("created_at", "run_at"))
    assert run_at - created_at == timedelta(seconds=60)
    assert shown["expires_at"] == "2099-01-01T00:00:00.000Z"


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "application/vnd.api+json",
        "text/json",
        "",
    ],
)
async def test_json_is_taken_under_its_names(door, content_type):
    answer = await door.post("/enqueue", content=b"{}", headers={"Content-Type": content_type})

    assert answer.status_code == 202


async def test_a_body_without_a_content_type_is_taken_as_json(door, parts):
    answer = await door.call("/enqueue", parts(b"{", b"}"))

    assert answer.status == 202


@pytest.mark.parametrize(
    "payload",
    [
        b"0",
        b"-0.0",
        b"1e308",
        b"18446744073709551616",
        b"-" + b"9" * 300,
        b'"\\u0000\\ud83d\\ude00"',
        b'"\xf0\x9f\x98\x80"',
        b'{"":{"":[]},"a":{"a":1}}',
        b"[[],{},null,true]",
    ],
)
async def test_a_payload_comes_back_as_it_was_sent(either_door, payload):
    await either_door.post("/enqueue", content=b'{"id":"p","payload":' + payload + b"}")

    told = await either_door.ended("p")

    assert (told["payload"], told["result"]) == (json.loads(payload), json.loads(payload))


async def test_of_a_key_given_twice_the_last_one_counts(door):
    answer = await door.post("/enqueue", content=b'{"id":"a","id":"b","payload":1,"payload":2}')

    assert (answer.json()["id"], answer.json()["payload"]) == ("b", 2)


@pytest.mark.parametrize("job_id", ODD_IDS)
async def test_the_location_of_any_id_leads_to_the_job(either_door, job_id):
    location = (await either_door.enqueue(id=job_id)).headers["location"]

    assert location == "/jobs/" + urllib.parse.quote(job_id, safe="")
    assert (await either_door.get(location)).json()["id"] == job_id


async def test_the_location_leads_to_the_job_over_a_socket_too(door):
    async with door.served() as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for job_id in ODD_IDS:
            location = (await client.post("/enqueue", json={"id": job_id})).headers["location"]

            assert (await client.get(location)).json()["id"] == job_id
            assert (await client.post(f"{location}/retry")).status_code in (202, 409)


async def test_a_time_that_has_passed_means_now(door):
    answer = await door.enqueue(run_at="0001-01-01T00:00:00+14:00")

    assert answer.json()["status"] == "queued"
    assert answer.json()["run_at"] == answer.json()["created_at"]


async def test_a_handlers_own_number_of_retries_counts_where_the_job_names_none(door):
    told = [
        (await door.enqueue(kind="mail", payload={"to": "a@b"}, **more)).json()
        for more in ({}, {"max_retries": 1})
    ]

    assert [job["max_retries"] for job in told] == [7, 1]


# What is refused


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"id":"a"',
        b"{'id':'a'}",
        b"id=t1&payload=data",
        b'{"payload":NaN}',
        b'{"payload":Infinity}',
        b'{"payload":-Infinity}',
        b'{"payload":01}',
        b'{"payload":"\n"}',
        b'{"payload":"\\ud800"}',
        b'{"payload":"\\udc00\\ud800"}',
        b'{"payload":"\xff"}',
        b'{"id":"\xff"}',
        b'{"\xff":1}',
        b'{"payload":"\xed\xa0\x80"}',
        '{"payload":1}'.encode("utf-16"),
        b"{} {}",
        b"{}\x00",
        b'{"payload":"a\x00b"}',
        b'{"a":1,}',
        b"\x1f\x8b\x08",
    ],
)
async def test_what_is_not_json_is_refused_with_400(door, body):
    answer = await door.post("/enqueue", content=body)

    assert (answer.status_code, answer.json()["code"]) == (400, "not_json")
    assert answer.headers["content-type"] == "application/problem+json"
    assert await door.stored() == 0


@pytest.mark.parametrize("body", [b"null", b"[]", b"1", b'"text"', b"true", b'[{"id":"a"}]'])
async def test_json_that_is_no_object_is_refused_as_a_whole(door, body):
    answer = await door.post("/enqueue", content=body)

    assert answer.status_code == 422
    assert pointers(answer) == [""]


@pytest.mark.parametrize(
    ("job", "pointer"),
    [
        ({"id": 1}, "/id"),
        ({"id": ""}, "/id"),
        ({"id": "x" * 201}, "/id"),
        ({"id": "a/b"}, "/id"),
        ({"id": "a b"}, "/id"),
        ({"id": "a\x00b"}, "/id"),
        ({"id": "a\x1fb"}, "/id"),
        ({"id": "a\x7f"}, "/id"),
        ({"id": "a\u2028"}, "/id"),
        ({"id": "a\n"}, "/id"),
        ({"id": "."}, "/id"),
        ({"id": ".."}, "/id"),
        ({"kind": "no such kind"}, "/kind"),
        ({"kind": "nobody.performs.this"}, "/kind"),
        ({"kind": None}, "/kind"),
        ({"queue": ""}, "/queue"),
        ({"queue": "a/b"}, "/queue"),
        ({"queue": "a\n"}, "/queue"),
        ({"queue": ".a"}, "/queue"),
        ({"priority": 1.5}, "/priority"),
        ({"priority": 1001}, "/priority"),
        ({"priority": 10**30}, "/priority"),
        ({"max_retries": -1}, "/max_retries"),
        ({"max_retries": "3"}, "/max_retries"),
        ({"max_retries": True}, "/max_retries"),
        ({"max_retries": 10**30}, "/max_retries"),
        ({"delay": -1}, "/delay"),
        ({"delay": "1 hour"}, "/delay"),
        ({"delay": 1e300}, "/delay"),
        ({"run_at": "tomorrow"}, "/run_at"),
        ({"run_at": "2030-01-01T00:00:00"}, "/run_at"),
        ({"run_at": 1893456000}, "/run_at"),
        ({"run_at": "9999-12-31T23:59:59.9999Z"}, "/run_at"),
        ({"run_at": "9999-12-31T23:59:59-23:59"}, "/run_at"),
        ({"expires_at": "9999-12-31T23:59:59-01:00"}, "/expires_at"),
        ({"expires_at": "2023-11-14T22:13:20Z"}, "/expires_at"),
        ({"timeout": 0}, "/timeout"),
        ({"backoff": {"factor": 0.5}}, "/backoff/factor"),
        ({"backoff": {"bse": 1}}, "/backoff/bse"),
        ({"backoff": {"jitter": "some"}}, "/backoff/jitter"),
        ({"backoff": 5}, "/backoff"),
        ({"on_crash": "explode"}, "/on_crash"),
        ({"tags": ["a", ""]}, "/tags/1"),
        ({"tags": ["a"] * 21}, "/tags"),
        ({"tags": "a"}, "/tags"),
        ({"max_retry": 3}, "/max_retry"),
        ({"a/b~c": 3}, "/a~1b~0c"),
        ({"kind": "mail"}, "/payload"),
        ({"kind": "mail", "payload": {"to": "nobody"}}, "/payload/to"),
        ({"kind": "mail", "payload": {"to": "a@b", "lines": [1, "2"]}}, "/payload/lines/1"),
        ({"kind": "mail", "payload": {"to": "a@b", "labels": {"x": "y"}}}, "/payload/labels"),
        ({"delay": 1, "run_at": "2030-01-01T00:00:00Z"}, "/run_at"),
    ],
)
async def test_a_fault_is_refused_with_422_and_its_json_pointer(door, job, pointer):
    answer = await door.enqueue(**job)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert pointers(answer) == [pointer]
    assert await door.stored() == 0


async def test_every_fault_is_listed_at_once(door):
    job = {
        "max_retry": 1,
        "id": "a b",
        "priority": "high",
        "tags": [1, "fine", ""],
        "backoff": {"base": -1, "cap": "day", "fctor": 2},
    }

    answer = await door.enqueue(**job)

    assert set(pointers(answer)) == {
        "/max_retry",
        "/id",
        "/priority",
        "/tags/0",
        "/tags/2",
        "/backoff/base",
        "/backoff/cap",
        "/backoff/fctor",
    }
    assert len(pointers(answer)) == 8


async def test_a_typo_is_told_what_was_meant(door):
    (fault,) = (await door.enqueue(max_retry=3)).json()["faults"]

    assert "did you mean max_retries?" in fault["detail"]


async def test_a_number_that_is_none_is_refused(door):
    answer = await door.post("/enqueue", content=b'{"payload":1e999}')

    assert answer.status_code == 422
    assert pointers(answer) == ["/payload"]


async def test_thousands_of_faults_do_not_make_a_huge_answer(door):
    body = json.dumps({f"field {number}" * 10: None for number in range(5000)})

    answer = await door.post("/enqueue", content=body)

    assert answer.status_code == 422
    assert len(pointers(answer)) == 100
    assert len(answer.content) < len(body)


def nested(depth):
    return b'{"payload":' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize("depth", [1, DEEPEST - 1, DEEPEST])
async def test_a_payload_may_nest(either_door, depth):
    answer = await either_door.post("/enqueue", content=nested(depth))

    assert answer.status_code == 202
    assert answer.json()["payload"] is not None


@pytest.mark.parametrize("depth", [DEEPEST + 1, 2 * DEEPEST, 100_000])
async def test_a_payload_that_nests_too_deep_is_refused(door, depth):
    answer = await door.post("/enqueue", content=nested(depth))

    assert answer.status_code == 422
    assert pointers(answer) == ["/payload"]


@pytest.mark.parametrize("field", ["tags", "nothing", "backoff"])
async def test_nesting_elsewhere_is_refused_too(door, field):
    answer = await door.post(
        "/enqueue", content=b'{"%b":%b}' % (field.encode(), b"[" * 100_000 + b"]" * 100_000)
    )

    assert answer.status_code == 422


async def test_brackets_without_an_end_are_refused(door):
    answer = await door.post("/enqueue", content=b'{"payload":' + b"[" * 100_000)

    assert answer.status_code in (400, 422)


@pytest.mark.parametrize(
    "content_type", ["text/plain", "multipart/form-data; boundary=x", "application/xml", "nonsense"]
)
async def test_another_media_type_is_refused_with_415(door, content_type):
    answer = await door.post("/enqueue", content=b"{}", headers={"Content-Type": content_type})

    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert await door.stored() == 0


async def test_a_body_of_the_longest_length_is_taken_and_a_longer_one_refused():
    async with open_door(max_body=100) as door:
        answers = [
            await door.post("/enqueue", content=b'{"payload":"%b"}' % (b"x" * (size - 14)))
            for size in (100, 101)
        ]

        assert [answer.status_code for answer in answers] == [202, 413]
        assert answers[1].json()["code"] == "too_large"
        assert await door.stored() == 1


# Waiting for the job's end


@pytest.mark.parametrize(("payload", "status"), [("return", "done"), ("fail", "failed")])
async def test_with_wait_the_answer_is_the_job_once_it_has_ended(either_door, payload, status):
    answer = await either_door.post("/enqueue?wait=30", json={"id": "a", "kind": "play", "payload": payload})

    assert (answer.status_code, answer.json()["status"]) == (200, status)
    assert answer.json() == (await either_door.get("/jobs/a")).json()
    assert answer.headers["location"] == "/jobs/a"


async def test_a_wait_that_is_over_is_answered_202_with_the_job_as_it_is(door, autojump_clock):
    begun = trio.current_time()

    answer = await door.post("/enqueue?wait=7500ms", json={"id": "a", "kind": "play", "payload": "hold"})

    assert (answer.status_code, answer.json()["status"], answer.json()["attempt"]) == (202, "running", 1)
    assert answer.headers["location"] == "/jobs/a"
    assert trio.current_time() == begun + 7.5


async def test_a_job_that_is_due_later_is_waited_for_as_well(door, autojump_clock):
    answer = await door.post("/enqueue?wait=1m", json={"id": "a", "delay": 30, "payload": 5})

    assert (answer.status_code, answer.json()["result"]) == (200, 5)


async def test_a_request_that_is_sent_again_waits_for_the_same_job(door, autojump_clock):
    """And is answered at once when that has ended."""
    job = {"id": "a", "kind": "play", "payload": "hold"}
    async with trio.open_nursery() as nursery:
        first = await asked(nursery, functools.partial(door.post, "/enqueue?wait=600", json=job))
        again = await asked(nursery, functools.partial(door.post, "/enqueue?wait=600", json=job))
        short = await door.post("/enqueue?wait=1", json=job)
        door.stage.release.set()
    begun = trio.current_time()
    late = await door.post("/enqueue?wait=600", json=job)

    assert [answer.status_code for answer in (*first, *again, short, late)] == [200, 200, 202, 200]
    assert trio.current_time() == begun
    assert await door.stored() == 1


@pytest.mark.parametrize("query", ["wait=0", "wait=0s"])
async def test_a_wait_of_nothing_is_none(door, query):
    answer = await door.post(f"/enqueue?{query}", json={"id": "a"})

    assert (answer.status_code, answer.json()["status"]) == (202, "queued")


async def test_a_wait_that_is_none_is_refused_and_nothing_is_stored(door):
    for query in ("wait=soon", "wait=601", "wait=1&wait=1", "wiat=1"):
        answer = await door.post(f"/enqueue?{query}", json={"id": "a"})

        assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert await door.stored() == 0


@pytest.mark.parametrize(
    ("content", "content_type"),
    [(b'[{"id":"a"}]', "application/json"), (b'{"id":"a"}', "application/x-ndjson")],
)
async def test_an_array_or_a_stream_is_not_waited_for(door, content, content_type):
    bulk = await door.post("/enqueue/bulk?wait=1", content=content, headers={"Content-Type": content_type})
    single = await door.post("/enqueue?wait=1", content=content, headers={"Content-Type": content_type})

    assert pointers(bulk) == ["?wait"]
    assert single.status_code in (415, 422)
    assert await door.stored() == 0


async def test_a_job_that_is_deleted_while_it_is_waited_for_is_told(door, autojump_clock):
    await door.post("/queues/default/pause")
    async with trio.open_nursery() as nursery:
        answers = await asked(nursery, functools.partial(door.post, "/enqueue?wait=60", json={"id": "a"}))
        await door.delete("/jobs/a")

    assert (answers[0].status_code, answers[0].json()["code"]) == (404, "no_such_job")


async def test_a_store_that_refuses_during_a_wait_has_stored_the_job_all_the_same(autojump_clock):
    """A 503 would say that nothing was stored."""
    store = Breakable()
    async with open_door(store) as door:
        await door.post("/queues/default/pause")
        async with trio.open_nursery() as nursery:
            answers = await asked(nursery, functools.partial(door.post, "/enqueue?wait=60", json={"id": "a"}))
            store.refuses = True
        store.refuses = False

    assert (answers[0].status_code, answers[0].json()["status"]) == (202, "queued")


async def test_who_enqueues_and_waits_is_answered_when_the_node_stops(door, autojump_clock):
    async with trio.open_nursery() as nursery:
        job = {"id": "a", "delay": 3600}
        answers = await asked(nursery, functools.partial(door.post, "/enqueue?wait=600", json=job))
        door.node.drain()

    assert (answers[0].status_code, answers[0].json()["status"]) == (202, "scheduled")


async def test_a_client_that_stops_waiting_leaves_its_job_alone(door, autojump_clock):
    gone = trio.Event()
    parts = iter([{"type": "http.request", "body": b'{"id":"a","kind":"play","payload":"hold"}'}])

    async def receive():
        if message := next(parts, None):
            await trio.lowlevel.checkpoint()
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(door.call, "/enqueue", receive, query="wait=600"))
        await trio.testing.wait_all_tasks_blocked()
        watched = dict(door.node.events._watches)
        gone.set()
    door.stage.release.set()
    job = await door.ended("a")

    assert list(watched) == ["a"]
    assert door.node.events._watches == {}
    assert job["status"] == "done"


# The same request twice


@pytest.mark.parametrize(
    "job",
    [
        {},
        {"payload": {"a": 1, "b": 2}},
        {"delay": 60},
        {"delay": "1m"},
        {"run_at": "2030-01-01T00:00:00Z"},
        {"run_at": "2000-01-01T00:00:00Z"},
        {"expires_at": "2030-01-01T00:00:00Z", "tags": ["a"], "backoff": {"base": 5}},
    ],
)
async def test_the_same_request_again_is_answered_200_with_the_job_as_it_is(either_door, job):
    first = await either_door.enqueue(id="a", **job)

    again = await either_door.enqueue(id="a", **job)

    assert (first.status_code, again.status_code) == (202, 200)
    assert again.headers["location"] == "/jobs/a"
    assert again.json()["created_at"] == first.json()["created_at"]
    assert await either_door.stored() == 1


async def test_the_order_of_keys_and_the_white_space_are_no_other_content(door):
    await door.post("/enqueue", content=b'{"id":"a","payload":{"x":1,"y":2}}')

    again = await door.post("/enqueue", content=b' { "payload" : {"y":2,"x":1}, "id":"a" } ')

    assert again.status_code == 200


async def test_the_same_request_is_answered_after_the_job_has_ended_too(door, autojump_clock):
    await door.enqueue(id="a", payload=1)
    await door.ended("a")

    again = await door.enqueue(id="a", payload=1)

    assert (again.status_code, again.json()["status"], again.json()["result"]) == (200, "done", 1)


@pytest.mark.parametrize("expired", ["while it waited", "after its end"])
async def test_the_same_request_is_answered_after_its_expiry_too(door, autojump_clock, expired):
    job = {"id": "a", "expires_at": "2023-11-14T22:14:20Z"}
    if expired == "while it waited":
        await door.post("/queues/default/pause")
    await door.enqueue(**job)
    await trio.sleep(120)

    again = await door.enqueue(**job)
    other = await door.enqueue(**job, payload="other")

    assert (again.status_code, other.status_code) == (200, 409)
    assert again.json()["status"] == ("expired" if expired == "while it waited" else "done")


@pytest.mark.parametrize(
    "other",
    [
        {"payload": 2},
        {"kind": "play"},
        {"queue": "other"},
        {"priority": 1},
        {"max_retries": 4},
        {"delay": 2},
        {"run_at": "2030-01-01T00:00:00Z"},
        {"expires_at": "2030-01-01T00:00:00Z"},
        {"timeout": 1},
        {"backoff": {"base": 2}},
        {"on_crash": "fail"},
        {"tags": ["a"]},
    ],
)
async def test_another_content_with_the_same_id_is_refused_with_409(either_door, other):
    await either_door.enqueue(id="a", payload=1, delay=1)

    answer = await either_door.enqueue(
        **{"id": "a", "payload": 1, **({} if "run_at" in other else {"delay": 1}), **other}
    )

    assert (answer.status_code, answer.json()["code"], answer.json()["ids"]) == (409, "id_conflict", ["a"])
    assert await either_door.stored() == 1


async def test_the_same_request_many_times_at_once_makes_one_job(either_door):
    answers = []

    async def enqueue():
        answers.append(await either_door.enqueue(id="a", payload=[1]))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(enqueue)

    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [202]
    assert await either_door.stored() == 1


async def test_other_contents_for_one_id_at_once_make_one_job(either_door):
    answers = []

    async def enqueue(number):
        answers.append(await either_door.enqueue(id="a", payload=number))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(enqueue, number)

    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 19
    assert await either_door.stored() == 1


# When it cannot be


async def test_a_full_queue_is_told_with_503_and_when_to_come_again():
    async with open_door(max_backlog=3) as door:
        await door.post("/queues/default/pause")
        answers = [await door.enqueue(id=f"j{number}") for number in range(4)]

        assert [answer.status_code for answer in answers] == [202, 202, 202, 503]
        assert (answers[3].json()["code"], answers[3].headers["retry-after"]) == ("queue_full", "1")
        assert await door.stored() == 3


async def test_a_node_that_drains_says_so_with_503_and_when_to_come_again(door):
    await door.enqueue(id="held", kind="play", payload="hold")
    await trio.testing.wait_all_tasks_blocked()
    door.node.drain()

    answer = await door.enqueue(id="late")

    assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert answer.headers["retry-after"] == "1"
    assert (await door.get("/jobs/late")).status_code == 404


async def test_a_store_that_refuses_is_told_with_503_and_nothing_is_stored(autojump_clock):
    store = Breakable()
    async with open_door(store) as door:
        store.refuses = True
        refused = await door.enqueue(id="a")
        store.refuses = False
        taken = await door.enqueue(id="a")

        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        assert refused.headers["retry-after"] == "1"
        assert "the disk is full" in refused.json()["detail"]
        assert taken.status_code == 202


# Whatever comes


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "id": JSON | st.sampled_from(["a", "b", "c\n", ".."]),
        "kind": st.sampled_from(["echo", "play", "mail", "none"]) | JSON,
        "payload": JSON,
        "queue": st.sampled_from(["default", "q"]) | JSON,
        "priority": st.integers() | JSON,
        "max_retries": st.integers(-1, 20) | JSON,
        "delay": st.floats(allow_nan=False) | st.sampled_from(["5m", "1y"]) | JSON,
        "run_at": st.datetimes().map(lambda time: time.isoformat() + "Z") | JSON,
        "expires_at": st.datetimes().map(lambda time: time.isoformat() + "-23:59") | JSON,
        "timeout": st.floats(allow_nan=False) | JSON,
        "backoff": st.dictionaries(st.sampled_from(["base", "factor", "cap", "jitter", "x"]), JSON) | JSON,
        "on_crash": st.sampled_from(["retry", "fail"]) | JSON,
        "tags": st.lists(st.text()) | JSON,
        "max_retry": JSON,
    },
)
BODIES = st.binary() | st.text().map(str.encode) | JSON.map(lambda value: json.dumps(value).encode())
NEAR_BODIES = NEARLY.map(lambda job: json.dumps(job).encode())


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bodies=st.lists(BODIES | NEAR_BODIES | NEAR_BODIES, min_size=1, max_size=8))
def test_whatever_is_sent_is_taken_or_refused_whole(bodies):
    """No body makes a 500, and none that is refused stores anything; what is taken can be shown."""

    async def send_all():
        async with open_door() as door:
            await door.post("/queues/default/pause")
            for body in bodies:
                before = await door.stored()
                answer = await door.post("/enqueue", content=body)
                after = await door.stored()

                assert answer.status_code in (200, 202, 400, 409, 422)
                assert after - before == (answer.status_code == 202)
                if answer.status_code in (200, 202):
                    assert (await door.get(answer.headers["location"])).status_code == 200
                elif answer.status_code == 422:
                    assert pointers(answer)
            page = await door.store.jobs(Filter(), 100, None)
            assert (await door.get("/jobs?payload=true")).status_code == 200
            assert len(page.jobs) == await door.stored()

    trio.run(send_all)


# --- without the shipped kinds ----------------------------------------------------------------------------------------


@pytest.fixture
async def strict():
    """A door of a node that has turned the shipped kinds off."""
    async with open_door(shipped_kinds="off") as opened:
        yield opened


async def test_without_the_shipped_kinds_a_request_has_to_name_its_kind(strict):
    """One that forgot it would end `done` by `echo`. Even where a kind of that name is there."""
    forgotten = await strict.enqueue(id="a", payload=1)
    named = await strict.enqueue(id="b", kind="play")

    (fault,) = forgotten.json()["faults"]
    assert (forgotten.status_code, named.status_code) == (422, 202)
    assert fault["pointer"] == "/kind"
    assert fault["detail"].startswith("is required here; ")
    assert "play" in fault["detail"]
    assert await strict.stored() == 1


async def test_without_the_shipped_kinds_every_job_of_many_has_to_name_its_kind(strict):
    """In an array, and in each line of a stream."""
    array = await strict.post("/enqueue/bulk", json=[{"id": "a", "kind": "play"}, {"id": "b"}])
    lines = await strict.post(
        "/enqueue/bulk",
        content=b'{"id":"c"}\n{"id":"d","kind":"play"}\n',
        headers={"Content-Type": "application/x-ndjson"},
    )

    assert array.status_code == 422
    assert array.json()["faults"][0]["pointer"] == "/1/kind"
    first, second = map(json.loads, lines.text.splitlines())
    assert (first["faults"][0]["pointer"], second["id"]) == ("/kind", "d")


async def test_the_spec_says_whether_a_kind_has_to_be_named(strict, door):
    """As the node has it."""
    required, optional = [
        (await each.get("/openapi.json")).json()["components"]["schemas"]["EnqueueRequest"]
        for each in (strict, door)
    ]

    assert required["required"] == ["kind"]
    assert "default" not in required["properties"]["kind"]["description"]
    assert "required" not in optional or "kind" not in optional["required"]
    assert "echo" in optional["properties"]["kind"]["description"]


class Fussy(msgspec.Struct):
    """A payload that refuses to be made in ways of its own."""

    how: str

    def __post_init__(self) -> None:
        raise {"key": KeyError("x"), "zero": ZeroDivisionError("y")}[self.how]


@pytest.mark.parametrize(
    ("payload_type", "payload"), [(Fussy, {"how": "key"}), (Fussy, {"how": "zero"}), (set[Any], [[1]])]
)
async def test_a_payload_that_its_type_cannot_take_is_a_fault_of_the_request(door, payload_type, payload):
    """And no error of the service, whatever the type raises."""
    play = door.node.registry.find("play")
    door.node.registry._by_kind["play"] = msgspec.structs.replace(play, payload_type=payload_type)

    response = await door.enqueue(kind="play", payload=payload)

    assert response.status_code == 422
    assert response.json()["faults"][0]["detail"].startswith("its handler cannot read it: ")
