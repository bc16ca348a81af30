"""Jobs that depend on others, over HTTP: how they are asked for, shown, retried and promoted."""

import json

import pytest
import trio

from tests.api.client import Breakable, asked, open_door

NDJSON = {"Content-Type": "application/x-ndjson"}


async def status_of(door, job_id):
    return (await door.get(f"/jobs/{job_id}")).json()["status"]


async def test_a_job_waits_until_the_others_are_done(autojump_clock, door):
    """And is shown with those that it still waits for."""
    await door.enqueue(id="a", delay=5)
    await door.enqueue(id="b")
    await door.ended("b")
    answer = await door.enqueue(id="x", depends_on=["a", "b", "a"])
    shown = (await door.get("/jobs/x")).json()
    listed = (await door.get("/jobs?status=blocked")).json()["jobs"]
    (queue,) = (await door.get("/queues")).json()["queues"]
    health = (await door.get("/health")).json()
    done = await door.ended("x")

    assert (answer.status_code, answer.json()["status"], answer.headers["Location"]) == (
        202,
        "blocked",
        "/jobs/x",
    )
    assert (shown["depends_on"], shown["needs"]) == (["a", "b"], "done")
    assert shown["waits_for"] == {"reason": "dependencies", "open": ["a"], "count": 1}
    assert [(job["id"], "waits_for" in job) for job in listed] == [("x", False)]
    assert queue["counts"] == {"blocked": 1, "scheduled": 1, "done": 1}
    assert (health["blocked"], health["scheduled"]) == (1, 1)
    assert done["status"] == "done"
    assert "waits_for" not in done
    assert done["run_at"] >= (await door.get("/jobs/a")).json()["finished_at"]


async def test_a_job_that_depends_on_what_is_done_runs_at_once(door):
    await door.enqueue(id="a")
    await door.ended("a")
    answer = await door.enqueue(id="x", depends_on=["a"])

    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert (await door.ended("x"))["status"] == "done"


async def test_a_job_that_depends_on_nothing_says_nothing_of_it(door):
    shown = (await door.enqueue(id="a", depends_on=[])).json()

    assert {"depends_on", "needs", "waits_for"}.isdisjoint(shown)


async def test_a_failure_is_passed_on_to_whom_needs_success(autojump_clock, door):
    """Whoever waits for one of those hears of it at once; `needs: ended` is content."""
    await door.enqueue(id="a", kind="play", payload="hold, then clean up")
    await door.enqueue(id="x", depends_on=["a"])
    await door.enqueue(id="y", depends_on=["x"])
    await door.enqueue(id="z", depends_on=["a"], needs="ended")
    await door.post("/jobs/a/cancel")
    door.stage.cleaned.set()
    x, y, z = [await door.ended(job_id) for job_id in "xyz"]

    assert (x["status"], y["status"], z["status"]) == ("cancelled", "cancelled", "done")
    assert x["error"] == {
        "type": "DependencyFailed",
        "message": "the job depends on 'a', which was cancelled",
        "traceback": None,
    }
    assert y["error"]["message"] == "the job depends on 'x', which was cancelled"


@pytest.mark.parametrize("act", ["cancel", "delete"])
async def test_what_is_done_by_hand_to_a_job_reaches_those_that_wait_for_it(autojump_clock, door, act):
    """And the requests that are held for them, without a look at the store."""
    await door.enqueue(id="a", delay=1000)
    await door.enqueue(id="x", depends_on=["a"])
    await (door.post("/jobs/a/cancel") if act == "cancel" else door.delete("/jobs/a"))
    x = await door.ended("x")

    assert x["status"] == "cancelled"
    assert x["error"]["message"].endswith("was cancelled" if act == "cancel" else "was deleted")


async def test_an_unknown_job_cannot_be_depended_on(door):
    """With the ids, and the line of a stream."""
    await door.enqueue(id="a", delay=1000)
    one = await door.enqueue(id="x", depends_on=["a", "no", "nor"])
    array = await door.post("/enqueue/bulk", json=[{"id": "y"}, {"id": "x", "depends_on": ["no", "y"]}])
    lines = await door.post(
        "/enqueue/bulk", content=b'{"id":"p","delay":9}\n{"id":"x","depends_on":["no"]}', headers=NDJSON
    )
    told = [json.loads(line) for line in lines.content.splitlines()]

    assert (one.status_code, one.json()["code"], one.json()["ids"]) == (
        422,
        "unknown_dependency",
        ["no", "nor"],
    )
    assert (array.status_code, array.json()["code"], array.json()["ids"]) == (
        422,
        "unknown_dependency",
        ["no"],
    )
    assert told[0] == {"id": "p", "status": "scheduled"}
    assert (told[1]["code"], told[1]["ids"], told[1]["line"]) == ("unknown_dependency", ["no"], 2)
    assert (await door.get("/jobs/y")).status_code == 404


async def test_what_has_failed_cannot_be_needed(door):
    await door.enqueue(id="a", kind="play", payload="fail", max_retries=0)
    await door.ended("a")
    refused = await door.enqueue(id="x", depends_on=["a"])
    array = await door.post("/enqueue/bulk", json=[{"id": "y"}, {"depends_on": ["a"]}])
    taken = await door.enqueue(id="x", depends_on=["a"], needs="ended")

    assert (refused.status_code, refused.json()["code"], refused.json()["ids"]) == (
        409,
        "dependency_failed",
        ["a"],
    )
    assert (array.status_code, array.json()["code"]) == (409, "dependency_failed")
    assert (taken.status_code, taken.json()["status"]) == (202, "queued")
    assert (await door.get("/jobs/y")).status_code == 404


async def test_the_jobs_of_an_array_depend_on_one_another_in_any_order(door):
    """Counted like all others, also when the array is sent again."""
    flow = [
        {"id": "c", "depends_on": ["b", "a"]},
        {"id": "p"},
        {"id": "b", "depends_on": ["a"]},
        {"id": "a"},
    ]
    first = await door.post("/enqueue/bulk", json=flow)
    done = [(await door.ended(job_id))["started_at"] for job_id in "abc"]
    again = await door.post("/enqueue/bulk", json=flow)

    assert (first.status_code, first.json()) == (
        202,
        {"enqueued": 4, "existing": 0, "replaced": 0, "rejected": 0},
    )
    assert done == sorted(done)
    assert (again.status_code, again.json()) == (
        202,
        {"enqueued": 0, "existing": 4, "replaced": 0, "rejected": 0},
    )


@pytest.mark.parametrize(
    ("flow", "pointers", "ids"),
    [
        ([{"id": "a", "depends_on": ["a"]}], ["/0/depends_on"], ["a"]),
        (
            [{"id": "a", "depends_on": ["b"]}, {"id": "p"}, {"id": "b", "depends_on": ["a"]}],
            ["/0/depends_on", "/2/depends_on"],
            ["a", "b"],
        ),
    ],
)
async def test_jobs_that_wait_for_themselves_are_refused(door, flow, pointers, ids):
    answer = await door.post("/enqueue/bulk", json=flow)
    faults = answer.json()["faults"]

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert [fault["pointer"] for fault in faults] == pointers
    assert len(ids) == 1 or all(job_id in fault["detail"] for fault in faults for job_id in ids)
    assert await door.stored() == 0


@pytest.mark.parametrize(
    ("job", "pointer"),
    [
        ({"id": "x", "depends_on": ["x"]}, "/depends_on"),
        ({"id": "x", "depends_on": "a"}, "/depends_on"),
        ({"id": "x", "depends_on": ["a b"]}, "/depends_on/0"),
        ({"id": "x", "depends_on": ["a"] * 1001}, "/depends_on"),
        ({"id": "x", "needs": "ended"}, "/needs"),
        ({"id": "x", "depends_on": ["a"], "needs": "success"}, "/needs"),
    ],
)
async def test_faults_are_named(door, job, pointer):
    answer = await door.post("/enqueue", json=job)

    assert (answer.status_code, [fault["pointer"] for fault in answer.json()["faults"]]) == (422, [pointer])


async def test_the_same_request_again_is_the_same_job(door):
    """Whatever came of those that it depends on; other dependencies are another content."""
    await door.enqueue(id="a", delay=1000)
    await door.enqueue(id="b", delay=1000)
    await door.enqueue(id="x", depends_on=["a"])
    await door.delete("/jobs/a")
    again = await door.enqueue(id="x", depends_on=["a"])
    others = [
        await door.enqueue(id="x", **changes)
        for changes in ({"depends_on": ["b"]}, {}, {"depends_on": ["b"], "needs": "ended"})
    ]

    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    assert [(one.status_code, one.json()["code"]) for one in others] == [(409, "id_conflict")] * 3


async def test_lines_and_arrays_mix_jobs_of_both_sorts(door):
    lines = [
        {"id": "a", "delay": 1000},
        {"id": "x", "depends_on": ["a"]},
        {"id": "y", "depends_on": ["x"]},
        {"id": "p", "delay": 1000},
    ]
    body = "\n".join(json.dumps(line) for line in lines)
    answer = await door.post("/enqueue/bulk", content=body, headers=NDJSON)
    again = await door.post("/enqueue/bulk", content=body, headers=NDJSON)

    told = [json.loads(line) for line in answer.content.splitlines()]
    assert told == [
        {"id": "a", "status": "scheduled"},
        {"id": "x", "status": "blocked"},
        {"id": "y", "status": "blocked"},
        {"id": "p", "status": "scheduled"},
    ]
    assert [json.loads(line) for line in again.content.splitlines()] == told
    assert await door.stored() == 4


async def test_a_blocked_job_can_be_edited_cancelled_and_deleted_but_not_promoted(door):
    await door.enqueue(id="a", delay=1000)
    for job_id in "xyz":
        await door.enqueue(id=job_id, depends_on=["a"])
    edited = await door.patch("/jobs/x", json={"priority": 7})
    fixed = await door.patch("/jobs/x", json={"depends_on": []})
    promoted = await door.post("/jobs/x/promote")
    cancelled = await door.post("/jobs/y/cancel")
    deleted = await door.delete("/jobs/z")

    assert (edited.status_code, edited.json()["status"], edited.json()["priority"]) == (200, "blocked", 7)
    assert edited.json()["depends_on"] == ["a"]
    assert (fixed.status_code, fixed.json()["faults"][0]["pointer"]) == (422, "/depends_on")
    assert (promoted.status_code, promoted.json()["code"]) == (409, "wrong_status")
    assert promoted.json()["detail"] == "job 'x' is blocked: it waits for other jobs to end"
    assert "Retry-After" not in promoted.headers
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert deleted.status_code == 204


async def test_a_job_that_was_cancelled_with_another_is_retried_after_it(door):
    await door.enqueue(id="a", delay=1000)
    await door.enqueue(id="x", depends_on=["a"])
    await door.post("/jobs/a/cancel")
    await door.ended("x")
    refused = await door.post("/jobs/x/retry")
    await door.post("/queues/default/pause")
    await door.post("/jobs/a/retry")
    left = await status_of(door, "x")
    again = await door.post("/jobs/x/retry")
    await door.post("/queues/default/resume")

    assert (refused.status_code, refused.json()["code"]) == (409, "wrong_status")
    assert "retry that one first" in refused.json()["detail"]
    assert left == "cancelled"
    assert (again.status_code, again.json()["status"]) == (202, "blocked")
    assert (await door.ended("x"))["status"] == "done"


async def test_blocked_jobs_count_as_a_backlog():
    async with open_door(max_backlog=3) as door:
        await door.enqueue(id="a", delay=1000)
        await door.enqueue(id="x", depends_on=["a"])
        array = await door.post("/enqueue/bulk", json=[{"depends_on": ["a"]}, {"depends_on": ["a"]}])
        last = await door.enqueue(id="y", depends_on=["a"])
        full = await door.enqueue(id="z", depends_on=["a"])

    assert (array.status_code, array.json()["code"]) == (503, "queue_full")
    assert (last.status_code, full.status_code, full.json()["code"]) == (202, 503, "queue_full")


async def test_a_node_that_drains_takes_none():
    async with open_door() as door:
        await door.enqueue(id="a", delay=1000)
        door.node.drain()
        answer = await door.enqueue(id="x", depends_on=["a"])

    assert (answer.status_code, answer.json()["code"]) == (503, "draining")


async def test_a_store_that_cannot_write_stores_none():
    store = Breakable()
    async with open_door(store) as door:
        await door.enqueue(id="a", delay=1000)
        store.refuses = True
        answer = await door.enqueue(id="x", depends_on=["a"])
        store.refuses = False

        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert (await door.get("/jobs/x")).status_code == 404


async def test_a_request_is_held_until_a_blocked_job_has_ended(autojump_clock, door):
    await door.enqueue(id="a", delay=5)
    async with trio.open_nursery() as nursery:
        answers = await asked(
            nursery, lambda: door.post("/enqueue?wait=60", json={"id": "x", "depends_on": ["a"]})
        )

    assert (answers[0].status_code, answers[0].json()["status"]) == (200, "done")
