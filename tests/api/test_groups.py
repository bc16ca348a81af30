"""`POST /groups` and `GET /groups/ID`: what is answered to what is asked."""

from typing import Any

import pytest
import trio

from jobpipe.handlers.context import Context
from jobpipe.handlers.registry import Handler
from tests.api.client import open_door

ASKED = {
    "id": "import",
    "jobs": [{"kind": "echo", "payload": 1}, {"id": "second", "payload": 2}],
    "then": {"kind": "total"},
    "on_failure": "cancel",
}


async def function(payload: Any, context: Context) -> Any:
    assert context.group is not None
    return {"of": context.group.id, "done": context.group.done, "failed": context.group.failed}


TOTAL = Handler(kind="total", function=function, is_async=True, takes_context=True, payload_type=Any)


async def test_a_group_runs_and_then_the_job_that_waits_for_it(autojump_clock) -> None:
    """Its handler is told how the others have ended."""
    async with open_door(handlers=[TOTAL]) as door:
        stored = await door.post("/groups", json=ASKED)
        then = await door.get("/jobs/import.then?wait=10")
        group = await door.get("/groups/import")
        again = await door.post("/groups", json=ASKED)
        first = await door.get("/jobs/import.1")
        listed = await door.get("/jobs?group=import")

    assert (stored.status_code, stored.headers["Location"]) == (202, "/groups/import")
    assert {**stored.json(), "created_at": None} == {
        "id": "import",
        "jobs": 2,
        "counts": {"queued": 2},
        "then": "import.then",
        "on_failure": "cancel",
        "created_at": None,
        "open_until": None,
        "closed_at": stored.json()["created_at"],
        "ended_at": None,
    }
    assert then.json()["result"] == {"of": "import", "done": 2, "failed": 0}
    assert then.json()["callback_of"] == "import"
    assert group.json()["counts"] == {"done": 2}
    assert group.json()["ended_at"] is not None
    assert (again.status_code, again.json()) == (200, group.json())
    assert (first.json()["group"], first.json()["result"]) == ("import", 1)
    assert [job["id"] for job in listed.json()["jobs"]] == ["second", "import.1"]


async def test_what_waits_is_shown(autojump_clock) -> None:
    async with open_door(handlers=[TOTAL]) as door:
        jobs = [{"delay": 60}] * 2
        await door.post("/groups", json={"id": "g", "jobs": jobs, "then": {"kind": "total"}})
        then = (await door.get("/jobs/g.then")).json()

    assert then["status"] == "blocked"
    assert then["waits_for"] == {"reason": "group", "group": "g", "open": ["g.1", "g.2"], "count": 2}


async def test_a_failure_cancels_the_others_if_asked_to(autojump_clock) -> None:
    """Also one that runs: its handler is stopped."""
    async with open_door(handlers=[TOTAL]) as door:
        jobs = [
            {"kind": "demo", "payload": {"fail": 1, "shortest": 1, "longest": 1}, "max_retries": 0},
            {"kind": "demo", "payload": {"fail": 0, "shortest": 500, "longest": 500}},
            {"kind": "demo", "delay": 500},
        ]
        asked = {"id": "g", "jobs": jobs, "then": {"kind": "total"}, "on_failure": "cancel"}
        await door.post("/groups", json=asked)
        begun = trio.current_time()
        then = await door.get("/jobs/g.then?wait=60")
        took = trio.current_time() - begun
        counts = (await door.get("/groups/g")).json()["counts"]
        error = (await door.get("/jobs/g.3")).json()["error"]

    assert then.json()["result"] == {"of": "g", "done": 0, "failed": 1}
    assert took < 5
    assert counts == {"failed": 1, "cancelled": 2}
    assert error["type"] == "GroupFailed"


async def test_a_group_without_id_and_without_callback(autojump_clock) -> None:
    async with open_door() as door:
        stored = (await door.post("/groups", json={"jobs": [{}]})).json()
        job = await door.get(f"/jobs/{stored['id']}.1?wait=9")

    assert (stored["then"], stored["on_failure"], job.status_code) == (None, "go_on", 200)


@pytest.mark.parametrize(
    ("changes", "status", "code", "pointers"),
    [
        ({"jobs": []}, 422, "invalid", ["/jobs"]),
        ({"jobs": [{}, {"kind": "no", "delay": -1}, {"whatever": 1}]}, 422, "invalid", None),
        ({"jobs": [{}, {"kind": "no"}]}, 422, "invalid", ["/jobs/1/kind"]),
        ({"then": {"kind": "no"}}, 422, "invalid", ["/then/kind"]),
        ({"then": {"depends_on": ["a"]}}, 422, "invalid", ["/then/depends_on"]),
        ({"then": {"expires_at": "2020-01-01T00:00:00Z"}}, 422, "invalid", ["/then/expires_at"]),
        ({"jobs": [{"expires_at": "2020-01-01T00:00:00Z"}]}, 422, "invalid", ["/jobs/0/expires_at"]),
        ({"jobs": [{"depends_on": ["no"]}]}, 422, "unknown_dependency", None),
        (
            {"jobs": [{"id": "x", "depends_on": ["y"]}, {"id": "y", "depends_on": ["x"]}]},
            422,
            "invalid",
            None,
        ),
        ({"id": "a b"}, 422, "invalid", ["/id"]),
        ({"on_failure": "explode"}, 422, "invalid", ["/on_failure"]),
        ({"open": 0}, 422, "invalid", ["/open"]),
        ({"open": "soon", "id": "a b"}, 422, "invalid", ["/id", "/open"]),
        ({"jobs": [{"group": "other"}]}, 422, "invalid", ["/jobs/0/group"]),
        ({"jobs": [{"id": "taken"}]}, 409, "id_conflict", None),
        ({"jobs": [{"id": "x"}, {"id": "x"}]}, 409, "id_conflict", None),
        ({"id": "taken-group"}, 409, "id_conflict", None),
        ({"jobs": [{}, {"queue": "shut"}]}, 409, "queue_closed", None),
        ({"jobs": [{"unique": {"key": "k"}}]}, 422, "invalid", ["/jobs/0/unique"]),
    ],
)
async def test_what_cannot_be_stored_is_told_and_nothing_is_stored(
    autojump_clock, changes: Any, status: int, code: str, pointers: Any
) -> None:
    async with open_door(handlers=[TOTAL]) as door:
        await door.put("/queues/shut", json={"closed": True})
        await door.post("/enqueue", json={"id": "taken", "payload": "other", "delay": 60})
        await door.post("/groups", json={"id": "taken-group", "jobs": [{"id": "other", "delay": 60}]})
        told = await door.post("/groups", json={**ASKED, **changes})
        ids = {job["id"] for job in (await door.get("/jobs")).json()["jobs"]}

    assert (told.status_code, told.json()["code"]) == (status, code)
    if pointers is not None:
        assert [one["pointer"] for one in told.json()["faults"]] == pointers
    assert ids == {"taken", "other"}


async def test_every_fault_of_every_job_is_told(autojump_clock) -> None:
    async with open_door() as door:
        jobs = [{"kind": "no"}, {}, {"delay": -1, "nope": 1}]
        told = await door.post("/groups", json={"jobs": jobs, "then": {"priority": 5000}})

    assert [one["pointer"] for one in told.json()["faults"]] == [
        "/jobs/0/kind",
        "/jobs/2/nope",
        "/jobs/2/delay",
        "/then/priority",
    ]


async def test_a_group_that_is_not_there(autojump_clock) -> None:
    async with open_door() as door:
        none, bad = await door.get("/groups/none"), await door.get("/groups/a%20b")

    assert (none.status_code, none.json()["code"]) == (404, "no_such_group")
    assert (bad.status_code, bad.json()["code"]) == (422, "invalid")


@pytest.mark.parametrize("name", ["unique", "throttle", "debounce"])
async def test_jobs_of_a_group_are_not_merged_with_others(autojump_clock, name: str) -> None:
    """The group would wait for a job that is not its own."""
    how = {
        "unique": {"key": "k"},
        "throttle": {"key": "k", "every": 60},
        "debounce": {"key": "k", "wait": 60},
    }
    async with open_door() as door:
        refused = await door.post("/groups", json={"jobs": [{}, {name: how[name]}]})
        listed = await door.get("/jobs")

    (fault,) = refused.json()["faults"]
    assert (refused.status_code, fault["pointer"]) == (422, f"/jobs/1/{name}")
    assert listed.json()["jobs"] == []


async def test_a_group_of_jobs_for_a_closed_queue_is_not_stored(autojump_clock) -> None:
    async with open_door() as door:
        await door.put("/queues/mail", json={"closed": True})
        refused = await door.post("/groups", json={"id": "g", "jobs": [{}, {"queue": "mail"}]})
        group = await door.get("/groups/g")

    assert (refused.status_code, refused.json()["code"]) == (409, "queue_closed")
    assert group.status_code == 404
