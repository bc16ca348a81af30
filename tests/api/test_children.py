"""Jobs that handlers enqueue, over HTTP: whose children they are, and that a cancel goes down to them."""

from typing import Any

import trio

from jobpipe.handlers.context import Context
from jobpipe.handlers.registry import Handler
from tests.api.client import open_door


async def function(payload: Any, context: Context) -> Any:
    await context.enqueue("demo", {"shortest": 500, "longest": 500}, id="now", now=True)
    await context.enqueue("echo", 1, id="detached", detach=True, delay="10m")
    await context.enqueue("echo", 2, id="then")
    await trio.sleep(payload)


FANS = Handler(kind="fans", function=function, is_async=True, takes_context=True, payload_type=float)


async def test_a_cancel_stops_the_children_too(autojump_clock) -> None:
    async with open_door(handlers=[FANS]) as door:
        await door.enqueue(id="a", kind="fans", payload=100.0)
        await trio.sleep(5)
        cancelled = await door.post("/jobs/a/cancel?wait=5")
        child = await door.get("/jobs/now?wait=5")
        others = [(await door.get(f"/jobs/{name}")).status_code for name in ("then", "detached")]

    assert cancelled.json()["status"] == "cancelled"
    assert (child.json()["status"], child.json()["parent"]) == ("cancelled", "a")
    assert others == [404, 404]


async def test_whose_child_a_job_is_is_shown_in_lists_too(autojump_clock) -> None:
    """And an end changes nothing for them."""
    async with open_door(handlers=[FANS]) as door:
        await door.enqueue(id="a", kind="fans", payload=1.0)
        await door.get("/jobs/a?wait=5")
        refused = await door.post("/jobs/a/cancel")
        await door.get("/jobs/then?wait=5")
        listed = {job["id"]: job for job in (await door.get("/jobs")).json()["jobs"]}

    assert refused.status_code == 409
    assert {name: (job["status"], job.get("parent")) for name, job in listed.items()} == {
        "a": ("done", None),
        "now": ("running", "a"),
        "detached": ("scheduled", None),
        "then": ("done", "a"),
    }
