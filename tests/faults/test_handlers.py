"""Handlers that behave badly: the attempt bears it, the service does not."""

import signal

import pytest
import trio

from tests.faults.invariants import broken_invariants
from tests.process.running import PATIENCE, until

pytestmark = pytest.mark.faults

LOST = "this node lost its lease"


async def is_well(service):
    return (await service.http.get("/health")).status_code == 200


async def test_a_handler_that_blocks_the_loop_longer_than_the_lease_loses_nothing(serve, store, gate):
    """Nothing runs meanwhile; afterwards everything goes on."""
    service = await serve(LEASE=2, WORKERS=2)
    service.expected_errors |= {LOST, "the event loop"}
    await service.enqueue("beside", payload={"until": gate.path})
    await service.runs("beside")
    await service.enqueue("blocker", "block", payload={"seconds": 4})
    gate.open()
    ended = await service.all_ended("beside", "blocker")
    await until(lambda: is_well(service))
    await service.enqueue("afterwards")

    assert {job["status"] for job in ended.values()} == {"done"}
    assert (await service.job("afterwards", wait=PATIENCE))["status"] == "done"
    await service.kill()
    assert broken_invariants(store) == []


async def test_a_handler_that_blocks_the_loop_is_named_and_costs_no_lease(serve, gate):
    """In the log and in /health, with its job; what runs beside it is not stopped."""
    service = await serve(LEASE=2, WORKERS=2)
    service.expected_errors |= {LOST, "the event loop"}
    await service.enqueue("beside", payload={"until": gate.path})
    await service.runs("beside")
    await service.enqueue("blocker", "block", payload={"seconds": 4})
    await service.all_ended("blocker")
    health = await service.http.get("/health")
    gate.open()
    beside = (await service.all_ended("beside"))["beside"]

    assert not service.has_said(LOST)
    named = [line for line in service.lines if line.get("job") == "blocker"]
    assert {line["level"] for line in named} & {"warning", "error"}
    assert "blocker" in health.text
    assert beside["attempt"] == 1


async def test_a_handler_that_ignores_its_cancel_holds_up_nobody_else(serve):
    """The one who cancels is told `cancelling`; since it returned all the same, its result stands."""
    service = await serve(WORKERS=2)
    await service.enqueue("deaf", "ignore", payload={"seconds": 2})
    await service.runs("deaf")
    answer = await service.http.post("/jobs/deaf/cancel?wait=0.2")
    await service.enqueue("beside")
    beside = await service.job("beside", wait=PATIENCE)

    assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")
    assert beside["status"] == "done"
    deaf = await service.job("deaf", wait=PATIENCE)
    assert (deaf["status"], deaf["result"]) == ("done", "so there")


async def test_a_handler_that_leaks_a_thread_costs_the_service_nothing_but_the_thread(serve):
    """The drain does not wait for it."""
    service = await serve()
    ids = [f"leak-{index}" for index in range(50)]
    for job_id in ids:
        await service.enqueue(job_id, "leak", payload={"seconds": 3600})
    ended = await service.all_ended(*ids)
    service.signal(signal.SIGTERM)

    assert {job["status"] for job in ended.values()} == {"done"}
    assert await service.ended() == 0


async def test_a_result_of_50_megabytes_is_refused_and_the_service_stays_well(serve, store):
    """The job fails and says why; its result is not stored."""
    service = await serve()
    await service.enqueue("huge", "huge", payload={"size": 50_000_000}, max_retries=0)
    job = await service.job("huge", wait=PATIENCE)
    await service.enqueue("beside")

    assert job["status"] == "failed"
    assert job["result"] is None
    assert len(job["error"]["message"]) < 10_000
    assert (await service.job("beside", wait=PATIENCE))["status"] == "done"
    await until(lambda: is_well(service))
    assert store.stat().st_size < 5_000_000


async def test_a_cleanup_that_fails_while_it_is_cancelled_leaves_the_job_cancelled(serve):
    """What it raised is kept with the attempt."""
    service = await serve(WORKERS=1)
    await service.enqueue("spite", "spiteful", payload={})
    await service.runs("spite")
    answer = await service.http.post("/jobs/spite/cancel?wait=10")
    await service.enqueue("beside")
    job = await service.job("spite")

    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert "out of spite" in job["attempts"][0]["error"]["message"]
    assert (await service.job("beside", wait=PATIENCE))["status"] == "done"


async def test_a_cleanup_that_fails_while_the_service_stops_hands_the_job_back(serve, store):
    service = await serve(WORKERS=1, GRACE=0)
    await service.enqueue("spite", "spiteful", payload={})
    await service.runs("spite")
    service.signal(signal.SIGTERM)

    assert await service.ended() == 0
    assert broken_invariants(store) == []
    service = await serve(WORKERS=1)
    await service.runs("spite")


async def test_ten_thousand_failures_at_once_leave_the_service_responsive_and_the_log_short(serve, store):
    """/health and enqueue are answered meanwhile."""
    service = await serve(WORKERS=64, QUEUE_SIZE=256)
    await service.http.post("/queues/default/pause")
    for part in range(10):
        fields = {"kind": "fails", "payload": {"size": 1000}, "max_retries": 0}
        jobs = [{"id": f"f{part}-{each}"} | fields for each in range(1000)]
        assert (await service.http.post("/enqueue/bulk", json=jobs)).status_code == 202
    before = len(service.lines)
    await service.http.post("/queues/default/resume")
    asked, unwell = 0, []
    with trio.fail_after(PATIENCE):
        while True:
            health = (await service.http.get("/health")).json()
            unwell += [health] if health["status"] != "ok" else []
            await service.enqueue(f"beside-{asked}", "echo", queue="other", payload="x")
            asked += 1
            if health["queued"] == health["busy"] == 0:
                break
    ended = (await service.http.get("/queues")).json()

    assert unwell == []
    assert "10000" in str(ended)
    written = service.lines[before:]
    assert sum(len(str(line)) for line in written) < 1_000_000
    assert len(written) < 2000
    await service.kill()
    assert broken_invariants(store) == []
