"""Durations in requests: numbers of seconds, or texts such as `5m`."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobpipe.api.durations import PATTERN, in_seconds
from jobpipe.api.schemas import EnqueueRequest, WaitQuery
from jobpipe.job import Backoff, Options
from jobpipe.settings import read_duration

EXPECTED = 'expected a number of seconds from 0 to 315360000 (ten years) or a duration such as "90s", "5m" or "1h30m"'

NUMBERS = st.decimals(0, 10**6, places=3, allow_nan=False).map(lambda number: f"{number:f}")
TEXTS = st.lists(st.tuples(NUMBERS, st.sampled_from(["ms", "s", "m", "h", "d"])), min_size=1, max_size=5)


@given(st.text("0123456789.smhd ", max_size=8) | TEXTS.map(lambda parts: "".join(map("".join, parts))))
def test_the_pattern_of_the_spec_means_what_is_read(text):
    if re.search(PATTERN, text):
        assert in_seconds({"delay": text}, EnqueueRequest) == {"delay": read_duration(text)}
    else:
        assert in_seconds({"delay": text}, EnqueueRequest) == {"delay": text}


def test_what_holds_no_duration_stays_the_same_object():
    """Also where there is a text that looks like one: a payload is the handler's."""
    body = {"payload": {"delay": "5m"}, "id": "5m", "delay": 5, "backoff": None, "timeout": "soon"}

    assert in_seconds(body, EnqueueRequest) is body


async def test_durations_in_words_are_stored_as_seconds(either_door):
    job = {"id": "a", "delay": "1h30m", "timeout": "90s", "backoff": {"base": "500ms", "cap": "1.5m"}}
    answer = await either_door.enqueue(**job)
    shown, stored = answer.json(), await either_door.store.get("a")

    assert answer.status_code == 202
    assert (shown["timeout"], shown["backoff"]["base"], shown["backoff"]["cap"]) == (90, 0.5, 90)
    assert stored.asked.options == Options(
        timeout=90.0, backoff=Backoff(base=0.5, cap=90.0), delay=5400.0, run_at=None
    )
    assert stored.asked.run_at == stored.asked.created_at + 5400


async def test_a_request_in_words_is_the_same_as_one_in_numbers(either_door):
    words: dict[str, Any] = {
        "id": "a",
        "delay": "2d",
        "timeout": "5m",
        "backoff": {"base": "1s", "cap": "1h"},
    }
    numbers = {"id": "a", "delay": 172_800, "timeout": 300, "backoff": {"base": 1, "cap": 3600}}
    first = await either_door.enqueue(**words)
    again = [await either_door.enqueue(**job) for job in (numbers, words)]
    other = await either_door.enqueue(**words | {"timeout": "301s"})

    assert [first.status_code, *(answer.status_code for answer in again)] == [202, 200, 200]
    assert (other.status_code, other.json()["code"]) == (409, "id_conflict")


@pytest.mark.parametrize("payload", ['"5m"', "1.50", '{"delay": "5m"}', '"\\u00e9"', " [1,  2]"])
async def test_the_payload_beside_a_duration_in_words_is_stored_as_it_was_sent(either_door, payload):
    await either_door.post("/queues/default/pause")
    body = f'{{"id":"a","payload":{payload},"delay":"0s","timeout":"1m"}}'

    answer = await either_door.post("/enqueue", content=body.encode())

    sent = payload.strip().replace("\\u00e9", "é")
    assert answer.status_code == 202
    assert (await either_door.store.get("a")).asked.payload == sent.encode()


async def test_arrays_and_streams_take_durations_in_words(either_door):
    jobs: list[dict[str, Any]] = [{"id": "a", "delay": "1m"}, {"id": "b", "delay": 60}]
    lines = b"".join(json.dumps(job | {"id": f"{job['id']}2"}).encode() + b"\n" for job in jobs)
    array = await either_door.post("/enqueue/bulk", json=jobs)
    stream = await either_door.post(
        "/enqueue/bulk", content=lines, headers={"Content-Type": "application/x-ndjson"}
    )
    wrong = await either_door.post("/enqueue/bulk", json=[{"id": "c"}, {"id": "d", "delay": "1 month"}])
    delays = [(await either_door.store.get(job_id)).asked.options.delay for job_id in ("a", "b", "a2", "b2")]

    assert (array.status_code, stream.status_code, delays) == (202, 200, [60.0] * 4)
    assert [fault["pointer"] for fault in wrong.json()["faults"]] == ["/1/delay"]


async def test_an_edit_takes_durations_in_words(either_door):
    await either_door.enqueue(id="a", delay=60)

    answer = await either_door.patch("/jobs/a", json={"timeout": "2m", "backoff": {"cap": "1d"}})
    wrong = await either_door.patch("/jobs/a", json={"timeout": "0s", "backoff": {"cap": "1y"}})

    assert (answer.json()["timeout"], answer.json()["backoff"]["cap"]) == (120, 86_400)
    assert [fault["pointer"] for fault in wrong.json()["faults"]] == ["/timeout", "/backoff/cap"]


@pytest.mark.parametrize(
    ("delay", "detail"),
    [
        ("", f"{EXPECTED}, got a string"),
        ("60", f"{EXPECTED}, got a string"),
        ("5 m", f"{EXPECTED}, got a string"),
        ("5m\n", f"{EXPECTED}, got a string"),
        ("1h30", f"{EXPECTED}, got a string"),
        ("-5m", f"{EXPECTED}, got a string"),
        ("1s" * 6, f"{EXPECTED}, got a string"),
        ("PT5M", f"{EXPECTED}, got a string"),
        (True, f"{EXPECTED}, got a boolean"),
        ("3651d", EXPECTED),
        ("9" * 18 + "d", EXPECTED),
        (-1, EXPECTED),
    ],
)
async def test_a_duration_that_is_none_is_refused_in_words(door, delay, detail):
    answer = await door.enqueue(delay=delay, timeout="1m")

    assert answer.status_code == 422
    assert answer.json()["faults"] == [{"pointer": "/delay", "detail": detail}]


async def test_every_fault_beside_a_duration_in_words_is_listed(door):
    job = {
        "delay": "9999d",
        "timeout": "0s",
        "backoff": {"base": "2d", "factor": 0, "cap": "5m"},
        "priority": "x",
    }

    answer = await door.enqueue(**job)

    pointers = {fault["pointer"] for fault in answer.json()["faults"]}
    assert pointers == {"/delay", "/timeout", "/backoff/base", "/backoff/factor", "/priority"}


@pytest.mark.parametrize("body", [b'{"priority":"x","priority":1}', b'{"delay":"x","delay":1}'])
async def test_a_value_that_does_not_count_must_fit_too(door, body):
    answer = await door.post("/enqueue", content=body)

    assert answer.status_code == 422


@pytest.mark.parametrize(("wait", "seconds"), [("1m30s", 90), ("100ms", 0.1), ("10m", 600), ("7.5", 7.5)])
async def test_a_wait_may_be_given_in_words(door, autojump_clock, wait, seconds):
    await door.enqueue(id="a", delay=3600)
    begun = door.node.clock.now()

    answer = await door.get(f"/jobs/a?wait={wait}")

    assert answer.json()["status"] == "scheduled"
    assert door.node.clock.now() - begun == pytest.approx(seconds)


@pytest.mark.parametrize("wait", ["11m", "long", "", "5 m", "true"])
async def test_a_wait_that_is_none_is_refused_in_words(door, wait):
    answer = await door.get("/jobs/a", params={"wait": wait})
    (fault,) = answer.json()["faults"]

    assert fault == {
        "pointer": "?wait",
        "detail": 'expected a number of seconds from 0 to 600 or a duration such as "90s", "5m" or "1h30m", '
        f"got {wait!r}",
    }


async def test_the_spec_says_what_a_duration_is(door):
    spec = (await door.get("/openapi.json")).json()
    request = spec["components"]["schemas"]["EnqueueRequest"]["properties"]
    (wait,) = (one for one in spec["paths"]["/jobs/{job_id}"]["get"]["parameters"] if one["name"] == "wait")

    assert request["delay"]["anyOf"][0]["oneOf"] == [
        {"type": "number", "minimum": 0, "maximum": 315_360_000},
        {"type": "string", "pattern": PATTERN},
    ]
    assert request["delay"]["description"] == EXPECTED.removeprefix("expected ")
    assert wait["schema"]["default"] == WaitQuery().wait
    assert spec["components"]["schemas"]["Backoff"]["properties"]["base"]["type"] == "number"
    assert "x-duration" not in json.dumps(spec)
