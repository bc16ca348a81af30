"""`unique`, `throttle` and `debounce` over HTTP: how they are asked for, answered and shown."""

import json

import pytest
import trio

NDJSON = {"Content-Type": "application/x-ndjson"}
LATER = {"delay": 1000}


async def statuses(door, *jobs):
    return [((await door.enqueue(**job)).status_code) for job in jobs]


# --- unique -----------------------------------------------------------------------------------------------------------


async def test_a_request_for_what_is_there_is_answered_with_that_job(door):
    """With its URL; and it is shown with what was asked for, defaults included."""
    first = await door.enqueue(id="a", payload=1, unique={"key": "k"}, **LATER)
    second = await door.enqueue(id="b", payload=2, unique={"key": "k"})

    assert (first.status_code, second.status_code) == (202, 200)
    assert second.headers["Location"] == "/jobs/a"
    assert (second.json()["id"], second.json()["payload"]) == ("a", 1)
    assert second.json()["unique"] == {
        "key": "k",
        "over": ["kind"],
        "while": ["queued", "running"],
        "for": None,
        "on_conflict": "return",
    }
    assert {"throttle", "debounce"}.isdisjoint(second.json())
    assert (await door.get("/jobs/b")).status_code == 404


async def test_without_a_key_the_payload_is_one(door):
    await door.enqueue(id="a", payload={"x": 1, "y": 2}, unique={}, **LATER)
    same = await door.enqueue(id="b", payload={"y": 2, "x": 1.0}, unique={}, **LATER)
    other = await door.enqueue(id="c", payload={"x": 2}, unique={}, **LATER)

    assert (same.status_code, same.json()["id"]) == (200, "a")
    assert same.json()["unique"]["over"] == ["kind", "payload"]
    assert other.status_code == 202


async def test_a_request_may_be_refused_for_what_is_there(door):
    """With the id of the job that has the key."""
    await door.enqueue(id="a", unique={"key": "k"}, **LATER)
    answer = await door.enqueue(id="b", unique={"key": "k", "on_conflict": "reject"})
    same = await door.enqueue(id="a", unique={"key": "k"}, **LATER)

    assert (answer.status_code, answer.json()["code"], answer.json()["ids"]) == (409, "not_unique", ["a"])
    assert answer.json()["detail"] == "the key is that of job 'a', which is scheduled; nothing was stored"
    assert same.status_code == 200


async def test_a_request_may_replace_what_waits_and_nothing_else(autojump_clock, door):
    asked = {"unique": {"key": "k", "on_conflict": "replace"}, "kind": "play"}
    await door.enqueue(id="a", payload="hold, then clean up", **asked, **LATER)
    answer = await door.enqueue(id="b", payload="hold, then clean up", priority=7, **asked)
    while (await door.get("/jobs/a")).json()["status"] != "running":  # noqa: ASYNC110 - no event tells
        await trio.sleep(0.1)
    refused = await door.enqueue(id="c", payload="done", **asked)
    again = await door.enqueue(id="a", payload="hold, then clean up", **asked, **LATER)
    await door.post("/jobs/a/cancel")
    door.stage.cleaned.set()
    await door.ended("a")
    free = await door.enqueue(id="c", payload="done", **asked)

    assert (answer.status_code, answer.json()["id"], answer.json()["priority"]) == (200, "a", 7)
    assert (refused.status_code, refused.json()["ids"]) == (409, ["a"])
    assert "which is running" in refused.json()["detail"]
    assert (again.status_code, free.status_code) == (200, 202)


async def test_a_key_that_is_taken_for_a_while_is_said_to_be(autojump_clock, door):
    """Also of a job that is gone; `return` has none to return then."""
    await door.enqueue(id="a", unique={"key": "k", "for": "1h"})
    await door.ended("a")
    done = await door.enqueue(unique={"key": "k"})
    refused = await door.enqueue(unique={"key": "k", "on_conflict": "reject"})
    await door.delete("/jobs/a")
    gone = await door.enqueue(unique={"key": "k"})
    await trio.sleep(3600)
    free = await door.enqueue(unique={"key": "k"})

    assert (done.status_code, done.json()["status"]) == (200, "done")
    assert (refused.status_code, gone.status_code) == (409, 409)
    assert refused.json()["detail"].startswith("the key is that of job 'a', which is done, but its time")
    assert gone.json()["detail"].startswith("the key is that of job 'a', which is gone, but its time")
    assert gone.json()["ids"] == ["a"]
    assert free.status_code == 202


async def test_a_request_that_is_held_waits_for_the_job_that_has_the_key(autojump_clock, door):
    await door.enqueue(id="a", payload="a", unique={"key": "k"}, delay=5)
    answer = await door.post("/enqueue?wait=60", json={"payload": "b", "unique": {"key": "k"}})

    assert (answer.status_code, answer.json()["id"], answer.json()["result"]) == (200, "a", "a")


async def test_a_retry_by_hand_is_refused_while_another_job_has_the_key(door):
    """And names it."""
    await door.enqueue(id="a", unique={"key": "k"}, **LATER)
    await door.post("/jobs/a/cancel")
    await door.enqueue(id="b", unique={"key": "k"}, **LATER)
    refused = await door.post("/jobs/a/retry")
    await door.delete("/jobs/b")
    retried = await door.post("/jobs/a/retry")

    assert (refused.status_code, refused.json()["code"], refused.json()["ids"]) == (409, "not_unique", ["b"])
    assert refused.json()["detail"].startswith(
        "the key of job 'a' is that of job 'b' now; nothing was changed"
    )
    assert retried.status_code == 202


async def test_a_job_may_be_unique_and_wait_for_others(autojump_clock, door):
    await door.enqueue(id="x", delay=5)
    first = await door.enqueue(id="a", depends_on=["x"], unique={"key": "k"})
    second = await door.enqueue(id="b", unique={"key": "k"})

    assert (first.json()["status"], second.json()["id"], second.json()["status"]) == (
        "blocked",
        "a",
        "blocked",
    )
    assert (await door.ended("a"))["status"] == "done"


async def test_full_is_full_for_unique_jobs_too(door):
    """As for all others."""
    node = door.node
    node.backlog._max_backlog = 1
    await door.enqueue(id="a", **LATER)
    answer = await door.enqueue(id="b", unique={"key": "k"})

    assert (answer.status_code, answer.json()["code"]) == (503, "queue_full")


# --- throttle and debounce --------------------------------------------------------------------------------------------


async def test_a_throttled_request_is_answered_with_the_first_of_its_window(autojump_clock, door):
    throttle = {"key": "k", "every": "10m"}
    first = await door.enqueue(id="a", payload=1, throttle=throttle)
    second = await door.enqueue(id="b", payload=2, throttle=throttle)
    await trio.sleep(600)
    third = await door.enqueue(id="c", payload=3, throttle=throttle)

    assert [one.status_code for one in (first, second, third)] == [202, 200, 202]
    assert second.json()["id"] == "a"
    assert first.json()["throttle"] == {"key": "k", "every": 600.0, "trailing": False}


async def test_the_last_of_a_window_runs_at_its_end(autojump_clock, door):
    throttle = {"key": "k", "every": 100, "trailing": True}
    answers = [await door.enqueue(id=f"a{n}", payload=n, throttle=throttle) for n in range(4)]
    first, last = await door.ended("a0"), await door.ended("a1")

    assert [one.status_code for one in answers] == [202, 202, 200, 200]
    assert [one.json()["id"] for one in answers] == ["a0", "a1", "a1", "a1"]
    assert answers[1].json()["status"] == "scheduled"
    assert (first["result"], last["result"]) == (0, 3)
    assert last["run_at"] > first["created_at"]


async def test_a_debounced_job_runs_once_it_is_quiet(autojump_clock, door):
    """Each request moves it; the last one counts."""
    answers = []
    for n in range(3):
        answers.append(await door.enqueue(id=f"a{n}", payload=n, debounce={"key": "k", "wait": 5}))
        await trio.sleep(4)
    job = await door.ended("a0")

    assert [one.status_code for one in answers] == [202, 200, 200]
    assert answers[0].json()["status"] == "scheduled"
    assert answers[0].json()["debounce"] == {"key": "k", "wait": 5.0, "max_wait": 50.0}
    assert len({one.json()["run_at"] for one in answers}) == 3
    assert job["result"] == 2
    assert await door.stored() == 1


# --- many at once -----------------------------------------------------------------------------------------------------

MIXED = [
    {"id": "a", "payload": "a", "unique": {"key": "k"}, **LATER},
    {"id": "p"},
    {"id": "b", "payload": "b", "unique": {"key": "k"}},
    {"id": "c", "payload": "c", "unique": {"key": "k", "on_conflict": "replace"}, **LATER},
    {"id": "d", "payload": "d", "unique": {"key": "k", "on_conflict": "reject"}},
    {"id": "e", "depends_on": ["a"]},
]


async def test_an_array_tells_what_became_of_its_jobs(either_door):
    """What is kept out by another job does not keep the others out."""
    door = either_door
    first = await door.post("/enqueue/bulk", json=MIXED)
    payload = (await door.get("/jobs/a")).json()["payload"]
    again = await door.post("/enqueue/bulk", json=MIXED)

    assert (first.status_code, first.json()) == (
        202,
        {"enqueued": 3, "existing": 1, "replaced": 1, "rejected": 1},
    )
    assert payload == "c"
    assert again.json() == {"enqueued": 0, "existing": 4, "replaced": 1, "rejected": 1}


async def test_an_array_that_is_refused_changes_nothing(door):
    await door.enqueue(id="a", payload="a", unique={"key": "k"}, **LATER)
    await door.enqueue(id="taken")
    jobs = [
        {"payload": "b", "unique": {"key": "k", "on_conflict": "replace"}},
        {"id": "taken", "payload": "other"},
    ]
    answer = await door.post("/enqueue/bulk", json=jobs)

    assert (answer.status_code, answer.json()["ids"]) == (409, ["taken"])
    assert (await door.get("/jobs/a")).json()["payload"] == "a"


async def test_each_line_of_a_stream_is_told_of_its_own_job(door):
    body = "\n".join(json.dumps(line) for line in MIXED)
    answer = await door.post("/enqueue/bulk", content=body, headers=NDJSON)
    told = [json.loads(line) for line in answer.content.splitlines()]

    assert [one.get("id") for one in told] == ["a", "p", "a", "a", None, "e"]
    assert [one.get("status") for one in told] == [
        "scheduled",
        "queued",
        "scheduled",
        "scheduled",
        409,
        "blocked",
    ]
    assert (told[4]["code"], told[4]["ids"], told[4]["line"]) == ("not_unique", ["a"], 5)


# --- faults -----------------------------------------------------------------------------------------------------------

K = {"key": "k"}


@pytest.mark.parametrize(
    ("job", "pointers"),
    [
        ({"unique": 1}, ["/unique"]),
        ({"unique": {"key": ""}}, ["/unique/key"]),
        ({"unique": {"key": "k" * 201}}, ["/unique/key"]),
        ({"unique": {"over": ["queue"]}}, ["/unique/over/0"]),
        ({"unique": {"over": []}}, ["/unique"]),
        ({"unique": {"over": ["payload"], "on_conflict": "replace"}}, ["/unique/over"]),
        ({"unique": {"key": "k", "while": []}}, ["/unique/while"]),
        ({"unique": {"key": "k", "while": ["running"]}}, ["/unique/while"]),
        ({"unique": {"key": "k", "while": ["done"]}}, ["/unique/while/0"]),
        ({"unique": {"key": "k", "for": 0}}, ["/unique/for"]),
        ({"unique": {"key": "k", "for": "5 m"}}, ["/unique/for"]),
        ({"unique": {"key": "k", "on_conflict": "ignore"}}, ["/unique/on_conflict"]),
        ({"unique": {"key": "k", "until": 5}}, ["/unique/until"]),
        ({"unique": {"key": "k", "on_conflict": "replace"}, "depends_on": ["a"]}, ["/depends_on"]),
        ({"throttle": {"every": 5}}, ["/throttle/key"]),
        ({"throttle": {"key": "k"}}, ["/throttle/every"]),
        ({"throttle": {"key": "k", "every": 0}}, ["/throttle/every"]),
        ({"throttle": {"key": "k", "every": 5}, "delay": 5}, ["/delay"]),
        ({"throttle": {"key": "k", "every": 5}, "depends_on": ["a"]}, ["/depends_on"]),
        ({"debounce": {"key": "k"}}, ["/debounce/wait"]),
        ({"debounce": {"key": "k", "wait": 5, "max_wait": 4}}, ["/debounce/max_wait"]),
        ({"debounce": {"key": "k", "wait": 5}, "run_at": "2030-01-31T12:00:00Z"}, ["/run_at"]),
        ({"debounce": {"key": "k", "wait": 5}, "unique": K}, ["/debounce"]),
        (
            {"debounce": {"key": "k", "wait": 5}, "unique": K, "throttle": {"key": "k", "every": 5}},
            ["/throttle", "/debounce"],
        ),
        ({"debounce": {"key": "k", "wait": 5}, "expires_at": "2001-01-31T12:00:00Z"}, ["/expires_at"]),
    ],
)
async def test_faults_are_named(door, job, pointers):
    answer = await door.post("/enqueue", json=job)

    assert (answer.status_code, [fault["pointer"] for fault in answer.json().get("faults", ())]) == (
        422,
        pointers,
    )
    assert await door.stored() == 0


@pytest.mark.parametrize("name", ["unique", "throttle", "debounce"])
async def test_a_schedule_refuses_them_by_name(door, name):
    """Its overlap says what happens to the job of the last firing."""
    answer = await door.put("/schedules/s", json={"every": 60, "job": {name: {"key": "k"}}})

    assert (answer.status_code, answer.json()["faults"][0]["pointer"]) == (422, f"/job/{name}")


@pytest.mark.parametrize("name", ["unique", "throttle", "debounce"])
async def test_an_edit_refuses_them_by_name(door, name):
    await door.enqueue(id="a", **LATER)
    answer = await door.patch("/jobs/a", json={name: {"key": "k"}})

    assert (answer.status_code, answer.json()["faults"][0]["pointer"]) == (422, f"/{name}")
