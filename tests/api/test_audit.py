"""The audit over HTTP: every route that changes something by hand writes one row, and no other does."""

import re
from typing import Any, get_args

import pytest
import trio

from jobpipe.acts import Act, What
from jobpipe.schedules import Spec
from jobpipe.store.base import Filter, NewOperation
from tests.api.client import open_door
from tests.store.test_contract import new_job

ENQUEUES = {("post", "/enqueue"), ("post", "/enqueue/bulk"), ("post", "/groups")}
"""Routes that programs use for new jobs: these are no acts."""

LATER = {"delay": 1000}
SCHEDULE = {"every": 3600, "job": {"kind": "echo"}}
FILTER = {"filter": {"queue": "bulk"}}
BODIES: dict[Any, dict[str, Any]] = {
    ("put", "/queues/{name}"): {"closed": True},
    ("put", "/queues/{name}/keys/{key}"): {"weight": 3},
    ("put", "/schedules/{name}"): SCHEDULE,
    ("patch", "/jobs/{job_id}"): {"priority": 5},
    ("post", "/queues/{name}/pause"): {"reason": "lunch"},
    ("post", "/schedules/{name}/pause"): {"reason": "lunch"},
    ("post", "/jobs/move"): FILTER | {"queue": "slow"},
    ("post", "/jobs/edit"): FILTER | {"changes": {"priority": 5}},
    **{("post", f"/jobs/{verb}"): FILTER for verb in ("cancel", "retry", "delete", "promote")},
}
"""What is sent to a route; nothing to the others."""


async def prepare(door, route, name):
    """Have something of a name be there that a route can change; returns the name."""
    control = door.node.control
    match route:
        case "post", "/jobs/{job_id}/retry":
            await door.enqueue(id=name, payload=1)
            await door.ended(name)
        case _, str(path) if path.startswith("/jobs/{job_id}"):
            await door.enqueue(id=name, **LATER)
        case ("post", "/queues/{name}/resume") | ("delete", "/queues/{name}"):
            await control.pause(name)
        case "post", "/queues/{name}/keys/{key}/resume":
            await control.pause_key(name, name)
        case "post", "/groups/{group_id}/close":
            await door.post("/groups", json={"id": name, "open": 100})
        case "post", "/operations/{operation_id}/stop":
            asked = NewOperation(id=name, verb="cancel", where=Filter(queue="bulk"), rate=0.1)
            for number in range(3):
                await door.enqueue(id=str(number), queue="bulk", **LATER)
            await door.node.operations.begin(asked)
        case method, str(path) if path.startswith("/schedules/") and method != "put":
            await control.put_schedule(name, Spec(every=3600), new_job(""))
            if path.endswith("/resume"):
                await control.pause_schedule(name, None)


async def acting(door):
    """The routes that are no reads, as the spec has them."""
    paths = (await door.get("/openapi.json")).json()["paths"]
    return [
        (method, path)
        for path, methods in paths.items()
        for method in methods
        if method in ("post", "put", "patch", "delete")
    ]


async def acts(door, query=""):
    return (await door.get(f"/audit?{query}")).json()["acts"]


def expected(method, path):
    """What a route does, and to what; None: it enqueues."""
    if (method, path) in ENQUEUES:
        return None
    if path.startswith("/jobs/") and "{" not in path:
        return path.removeprefix("/jobs/"), "operation"
    verb = {"put": "put", "patch": "edit", "delete": "delete"}.get(method) or path.rpartition("/")[2]
    what = "key" if "{key}" in path else path.split("/")[1].removesuffix("s")
    return verb, what


async def test_every_route_that_changes_something_writes_one_row(door):
    """Derived from the spec: a new route without an act fails here, unless it is one that programs use for new jobs."""
    seen = []
    for number, route in enumerate(await acting(door)):
        method, path = route
        name = f"n{number}"
        await prepare(door, route, name)
        before = len(await acts(door, "limit=100"))
        body = {"json": BODIES[route]} if route in BODIES else {}
        answered = await door.request(method, re.sub(r"\{\w+\}", name, path), **body)
        rows = await acts(door, "limit=100")
        if (wanted := expected(method, path)) is None:
            assert len(rows) == before
            continue
        (row,) = rows[: len(rows) - before]

        assert answered.is_success
        assert (row["act"], row["what"]) == wanted
        assert (row["who"], row["address"], row["node"]) == ("127.0.0.1", "127.0.0.1", "n1")
        assert row["name"] == (name if "{" in path else answered.json()["id"])
        assert row["changes"]
        assert (row["error"], row["reason"]) == (None, BODIES.get(route, {}).get("reason"))
        seen.append(wanted)

    assert {what for _, what in seen} == set(get_args(What))
    assert {act for act, _ in seen} | {"enqueue"} == set(get_args(Act))


async def test_a_job_tells_its_history_and_keeps_it(door):
    """Times as times, payloads by their sizes; by its name also once it is gone."""
    await door.enqueue(id="a", payload="x", **LATER)
    await door.enqueue(id="b", **LATER)
    await door.patch("/jobs/a", json={"payload": [1, 2], "run_at": "2030-01-31T12:00:00Z"})
    await door.delete("/jobs/b")
    await door.delete("/jobs/a")
    await door.post("/jobs/a/cancel")  # it is gone

    deleted, edited = await acts(door, "what=job&name=a")
    assert deleted["changes"] == {
        "status": {"from": "scheduled", "to": None},
        "kind": {"from": "echo", "to": None},
        "queue": {"from": "default", "to": None},
    }
    assert edited["changes"]["payload_bytes"] == {"from": 3, "to": 5}
    assert edited["changes"]["run_at"]["to"] == "2030-01-31T12:00:00.000Z"
    assert edited["at"].endswith("Z")


async def test_an_operation_is_one_row_with_its_filter_and_its_count(door):
    for job_id in "abc":
        await door.enqueue(id=job_id, queue="bulk", **LATER)
    await door.post("/jobs/cancel", json=FILTER | {"dry_run": True})
    times = {"queue": "bulk", "created_before": "2030-01-31T12:00:00Z"}
    done = (await door.post("/jobs/cancel", json={"filter": times})).json()

    (row,) = await acts(door)
    assert (row["act"], row["what"], row["name"], row["jobs"]) == ("cancel", "operation", done["id"], 3)
    assert row["changes"]["filter"]["to"] == {"queue": ["bulk"], "created_before": "2030-01-31T12:00:00.000Z"}


@pytest.mark.parametrize("query", ["by_hand=true", "by_hand=true&wait=10"])
async def test_who_enqueues_by_hand_says_so(door, query):
    """Other jobs have no row, also those of the same request sent again."""
    for job_id in ("a", "a", "b"):
        answered = await door.post(f"/enqueue?{query}", json={"id": job_id, "payload": 1})
        assert answered.status_code in (200, 202)
    await door.enqueue(id="c")
    late = await door.post("/enqueue?by_hand=true", json={"id": "d", "expires_at": "2020-01-31T12:00:00Z"})

    assert late.status_code == 422
    assert [(row["act"], row["name"]) for row in await acts(door)] == [("enqueue", "b"), ("enqueue", "a")]


async def test_a_client_that_hangs_up_has_cancelled_its_job(door, parts):
    """Where it has asked for that; the reason says so."""
    receive = parts(b'{"id": "a", "kind": "play", "payload": "hold"}', whole=True)
    sent = iter([await receive(), await receive()])

    async def then_gone():
        await trio.lowlevel.checkpoint()
        return next(sent, {"type": "http.disconnect"})

    await door.call("/enqueue", then_gone, query="wait=10&on_disconnect=cancel")

    (row,) = await acts(door)
    assert (row["act"], row["name"], row["who"]) == ("cancel", "a", "127.0.0.1")
    assert row["reason"] == "the client hung up, with on_disconnect=cancel"


async def test_pages_follow_one_another(door):
    for number in range(5):
        await door.post("/queues/q/pause", json={"reason": str(number)})
    reasons, cursor = [], ""
    while cursor is not None:
        page = (await door.get(f"/audit?limit=2{cursor and f'&cursor={cursor}'}")).json()
        reasons += [row["reason"] for row in page["acts"]]
        cursor = page["next_cursor"]

    assert reasons == ["4", "3", "2", "1", "0"]
    assert [row["reason"] for row in await acts(door, "who=127.0.0.1&act=pause&limit=1")] == ["4"]
    assert await acts(door, "who=10.0.0.7") == await acts(door, "before=2000-01-31T12:00:00Z") == []


@pytest.mark.parametrize(
    "query", ["act=explode", "what=node", "name=", "after=then", "limit=101", "cursor=x"]
)
async def test_what_is_no_filter_is_refused(door, query):
    answered = await door.get(f"/audit?{query}")

    assert answered.status_code == 422
    assert answered.json()["faults"][0]["pointer"] == f"?{query.partition('=')[0]}"


async def test_with_keep_audit_0_nothing_is_written():
    async with open_door(keep_audit=0) as door:
        await door.post("/queues/q/pause", json={"reason": "lunch"})
        await door.post("/enqueue?by_hand=true", json={"id": "a"})

        assert await acts(door) == []


async def test_acts_are_kept_as_long_as_was_asked(autojump_clock):
    async with open_door(keep_audit=100) as door:
        await door.post("/queues/q/pause")
        await trio.sleep(95)
        kept = len(await acts(door))
        await trio.sleep(20)

        assert (kept, await acts(door)) == (1, [])
