"""A service that is started without a module whose jobs still wait: on SQLite, as it is deployed."""

import json
import signal

import pytest
import trio

from tests.process.running import PATIENCE, Service, until

pytestmark = pytest.mark.slow

MODULE = """
from jobpipe import handler


@handler("my.kind")
def mine(payload):
    return payload
"""


@pytest.fixture
def with_module(serve, tmp_path):
    """Start the service with a module of the user's own, which lies in its folder."""
    (tmp_path / "mymodule.py").write_text(MODULE)

    async def started(**settings):
        return await serve(HANDLERS="traced,mymodule", **settings)

    return started


async def ends(service: Service):
    """Stop the service as an operator does."""
    service.signal(signal.SIGTERM)
    assert await service.ended() == 0


async def unserved(service: Service):
    """What `/health` says, which is 200 whatever waits; `/queues` says the same."""
    health, queues = await service.http.get("/health"), await service.http.get("/queues")
    assert (health.status_code, health.json()["status"]) == (200, "ok")
    told = health.json()["unserved"]
    if [one["kind"] for one in queues.json()["unserved"]] != [one["kind"] for one in told]:
        return []  # counted anew between the two: ask again
    return told


async def test_a_job_whose_module_is_gone_waits_unspent_and_everything_else_goes_on(serve, with_module):
    """Due before the start or after it, retried by hand or new; with the module back it runs."""
    service = await with_module()
    await service.enqueue("old", "my.kind", payload=1)
    await service.all_ended("old")
    await service.http.post("/queues/held/pause")
    for number in range(2):
        await service.enqueue(f"due-{number}", "my.kind", payload=number, queue="held")
    await service.enqueue("kept", "my.kind", payload="k", delay=3, max_retries=0)
    await ends(service)

    service = await serve()
    retried = await service.http.post("/jobs/old/retry")
    await service.http.post("/queues/held/resume")
    warned = await service.said("jobs wait: no live node has a handler for their kind")

    async def all_wait():
        return [(one["kind"], one["jobs"]) for one in await unserved(service)] == [("my.kind", 4)]

    await until(all_wait)
    refused = await service.http.post("/enqueue", json={"kind": "my.kimd"})
    await service.enqueue("other")
    assert (await service.job("other", wait=PATIENCE))["status"] == "done"
    kept = await service.job("kept")
    ended = {
        "due-0": await service.http.post("/jobs/due-0/cancel"),
        "due-1": await service.http.delete("/jobs/due-1"),
    }

    assert (retried.status_code, warned["level"], warned["kind"]) == (202, "warning", "my.kind")
    assert refused.status_code == 422
    assert (kept["status"], kept["attempt"], kept["attempts"], kept["error"]) == ("queued", 0, [], None)
    assert {name: answer.status_code for name, answer in ended.items()} == {"due-0": 200, "due-1": 204}
    assert (await service.job("due-0"))["status"] == "cancelled"
    await ends(service)

    service = await with_module()
    assert (await service.all_ended("old", "kept"))["kept"]["result"] == "k"
    assert await unserved(service) == []


async def test_a_backlog_of_a_kind_that_is_gone_does_not_keep_others_waiting(serve, with_module):
    """Twenty thousand of the highest priority, met once at the start."""
    service = await with_module()
    await service.http.post("/queues/held/pause")
    lines = b"".join(
        json.dumps({"kind": "my.kind", "queue": "held", "priority": 1000}).encode() + b"\n"
        for _ in range(20_000)
    )
    answer = await service.http.post(
        "/enqueue/bulk", content=lines, headers={"Content-Type": "application/x-ndjson"}
    )
    assert answer.text.count('"queued"') == 20_000
    await ends(service)

    service = await serve()
    await service.http.post("/queues/held/resume")
    with trio.fail_after(PATIENCE):
        await service.enqueue("other")
        assert (await service.job("other", wait=PATIENCE))["status"] == "done"

    async def all_are_counted():
        return [(one["kind"], one["jobs"]) for one in await unserved(service)] == [("my.kind", 20_000)]

    await until(all_are_counted)
