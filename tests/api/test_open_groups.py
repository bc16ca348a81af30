"""Groups to which jobs are added, over HTTP and by handlers, until they are closed."""

import json
from typing import Any

import pytest
import trio

from jobpipe.handlers.context import Context
from jobpipe.handlers.registry import Handler
from jobpipe.job import Options
from tests.api.client import open_door

NDJSON = {"Content-Type": "application/x-ndjson"}
OPEN = {"id": "g", "open": "1h", "then": {"kind": "total"}}


async def total(payload: Any, context: Context) -> Any:
    assert context.group is not None
    return [context.group.jobs, context.group.done, context.group.timed_out]


async def crawl(depth: int, context: Context) -> None:
    """Adds pages to its own group."""
    if depth:
        await context.enqueue_many("crawl", [depth - 1] * 2, group=context.member_of)


TOTAL = Handler(kind="total", function=total, is_async=True, takes_context=True, payload_type=Any)
CRAWL = Handler(kind="crawl", function=crawl, is_async=True, takes_context=True, payload_type=int)


async def test_jobs_are_added_by_requests_of_any_form(autojump_clock) -> None:
    """One, an array, lines; what waits for the group says that it is open. Its close is answered at once."""
    async with open_door(handlers=[TOTAL]) as door:
        stored = await door.post("/groups", json=OPEN)
        await door.enqueue(id="a", group="g")
        await door.post("/enqueue/bulk", json=[{"id": "b", "group": "g"}, {"id": "c", "group": "g"}])
        lines = [{"id": "d", "group": "g"}, {"id": "e", "group": "none"}]
        answers = await door.post("/enqueue/bulk", content="\n".join(map(json.dumps, lines)), headers=NDJSON)
        await door.get("/jobs/d?wait=9")
        await trio.sleep(600)
        waits = (await door.get("/jobs/g.then")).json()
        closed = await door.post("/groups/g/close")
        again = await door.post("/groups/g/close")
        then = await door.get("/jobs/g.then?wait=9")
        group = (await door.get("/groups/g")).json()
        job = (await door.get("/jobs/b")).json()

    assert stored.status_code == 202
    assert (stored.json()["jobs"], stored.json()["counts"], stored.json()["closed_at"]) == (0, {}, None)
    assert stored.json()["open_until"] > stored.json()["created_at"]
    assert [json.loads(line).get("code") for line in answers.text.splitlines()] == [None, "unknown_group"]
    assert waits["status"] == "blocked"
    assert waits["waits_for"] == {"reason": "group", "group": "g", "group_open": True, "open": [], "count": 0}
    assert (closed.status_code, again.status_code) == (200, 200)
    assert (closed.json()["counts"], closed.json()["closed_at"]) == ({"done": 4}, again.json()["closed_at"])
    assert then.json()["result"] == [4, 4, False]
    assert (group["jobs"], group["ended_at"]) == (4, closed.json()["ended_at"])
    assert job["group"] == "g"


async def test_what_a_group_does_not_take_is_told(autojump_clock) -> None:
    """With what is wrong; the same request again is answered with its job."""
    async with open_door(handlers=[TOTAL]) as door:
        await door.post("/groups", json=OPEN)
        await door.enqueue(id="a", group="g", delay=50)
        circle = await door.enqueue(id="c", group="g", depends_on=["g.then"])
        await door.post("/groups/g/close")
        told = [
            await door.enqueue(id="b", group="g"),
            await door.enqueue(id="b", group="none"),
            await door.enqueue(group="a b"),
            await door.enqueue(group="g", unique={"key": "k"}),
            await door.post("/enqueue/bulk", json=[{"id": "x"}, {"group": "g"}]),
            await door.post("/enqueue/bulk", json=[{"id": "x"}, {"group": "none"}]),
            await door.post("/groups/none/close"),
        ]
        same = await door.enqueue(id="a", group="g", delay=50)
        other = await door.enqueue(id="a", delay=50)
        stored = [(await door.get(f"/jobs/{name}")).status_code for name in "bcx"]

    assert [(one.status_code, one.json()["code"]) for one in told] == [
        (409, "group_closed"),
        (422, "unknown_group"),
        (422, "invalid"),
        (422, "invalid"),
        (409, "group_closed"),
        (422, "unknown_group"),
        (404, "no_such_group"),
    ]
    assert [one.json()["faults"][0]["pointer"] for one in (circle, told[2], told[3])] == [
        "/depends_on",
        "/group",
        "/unique",
    ]
    assert circle.json()["faults"][0]["detail"] == "waits for itself: c -> g.then -> c"
    assert (same.status_code, other.status_code, other.json()["code"]) == (200, 409, "id_conflict")
    assert stored == [404, 404, 404]


async def test_what_nobody_closes_closes_by_itself(autojump_clock) -> None:
    async with open_door(handlers=[TOTAL]) as door:
        await door.post("/groups", json={**OPEN, "open": "10m"})
        await door.enqueue(group="g")
        await trio.sleep(500)
        before = (await door.get("/groups/g")).json()
        await trio.sleep(101)
        late = await door.enqueue(group="g")
        then = await door.get("/jobs/g.then?wait=60")
        after = (await door.get("/groups/g")).json()

    assert (before["closed_at"], before["ended_at"]) == (None, None)
    assert (late.status_code, late.json()["code"]) == (409, "group_closed")
    assert then.json()["result"] == [1, 1, True]
    assert after["closed_at"] == after["open_until"]


async def test_a_handler_adds_jobs_to_its_own_group(autojump_clock) -> None:
    """Nobody has to know when it is complete: it has ended when no job adds any more."""
    async with open_door(handlers=[TOTAL, CRAWL]) as door:
        await door.post(
            "/groups",
            json={"id": "site", "jobs": [{"kind": "crawl", "payload": 4}], "then": {"kind": "total"}},
        )
        then = await door.get("/jobs/site.then?wait=60")

    assert then.json()["result"] == [31, 31, False]


@pytest.mark.parametrize("group", ["none", "g"])
async def test_a_handler_that_adds_to_another_group_fails_where_that_takes_none(
    autojump_clock, group: str
) -> None:
    async def function(payload: Any, context: Context) -> None:
        await context.enqueue("echo", group=group)

    adds = Handler(kind="adds", function=function, is_async=True, takes_context=True, payload_type=Any)
    async with open_door(handlers=[TOTAL, adds]) as door:
        await door.post("/groups", json={**OPEN, "open": 1})
        await door.enqueue(id="well", kind="adds", delay=0.5 if group == "g" else 2)
        await door.enqueue(id="late", kind="adds", delay=2)
        jobs = [(await door.get(f"/jobs/{name}?wait=9")).json() for name in ("well", "late")]

    assert [job["status"] for job in jobs] == ["done" if group == "g" else "failed", "failed"]
    assert jobs[1]["error"]["type"] == "EnqueueError"


async def test_an_open_group_is_seen_among_the_blocked(autojump_clock) -> None:
    """So one that is forgotten is found; its callback may be cancelled, and it be closed."""
    async with open_door(handlers=[TOTAL]) as door:
        await door.post("/groups", json=OPEN)
        listed = (await door.get("/jobs?status=blocked")).json()["jobs"]
        cancelled = await door.post("/jobs/g.then/cancel")
        added = await door.enqueue(group="g")
        closed = await door.post("/groups/g/close")
        await trio.sleep(1)
        group = (await door.get("/groups/g")).json()
        asked = await door.store.get("g.then")

    assert [job["id"] for job in listed] == ["g.then"]
    assert (cancelled.status_code, added.status_code, closed.status_code) == (200, 202, 200)
    assert group["ended_at"] is not None
    assert asked is not None
    assert asked.asked.options == Options(callback_of="g")
