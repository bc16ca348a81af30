"""The wall clock is set while the service runs: nothing is lost, nothing runs twice, and no lease is lost."""

import pytest

from tests.faults.invariants import broken_invariants
from tests.process.running import PATIENCE, read_jobs

pytestmark = pytest.mark.faults

HOUR, DAY = 3600, 86400


def starts_of(trace, job_id):
    return [line for line in trace() if line["job"] == job_id and line["event"] == "start"]


@pytest.mark.parametrize("seconds", [-HOUR, DAY], ids=["back", "forward"])
async def test_a_clock_that_is_set_costs_no_job_and_no_lease(serve, faults, store, trace, gate, seconds):
    """What runs goes on, what waits runs, what is enqueued afterwards too; so after a kill as well."""
    service = await serve(LEASE=2, WORKERS=4, QUEUE_SIZE=4)
    await service.enqueue("active", payload={"until": gate.path})
    await service.runs("active")
    await service.http.post("/queues/mail/pause")
    waiting = [f"mail-{index}" for index in range(10)]
    for job_id in waiting:
        await service.enqueue(job_id, queue="mail")

    faults.clock(seconds)
    await service.enqueue("afterwards")
    assert (await service.job("afterwards", wait=PATIENCE))["status"] == "done"
    await service.enqueue("long", payload={"seconds": 2.5})  # longer than the lease
    await service.enqueue("again", payload={"retries": 1})
    await service.all_ended("long", "again")
    assert (await service.http.get("/health")).status_code == 200
    await service.kill()
    service = await serve(LEASE=2)
    gate.open()
    await service.http.post("/queues/mail/resume")
    ended = await service.all_ended("active", "afterwards", *waiting)

    assert {job["status"] for job in ended.values()} == {"done"}
    assert not service.has_said("this node lost its lease")
    once = ["afterwards", "long", *waiting]
    assert [job_id for job_id in once if len(starts_of(trace, job_id)) != 1] == []
    assert len(starts_of(trace, "active")) == 2  # once for the kill
    await service.kill()
    assert broken_invariants(store) == []
    assert {job["status"] for job in read_jobs(store).values()} == {"done"}


async def test_a_clock_set_back_does_not_hold_up_what_was_ready(serve, faults):
    """Ready jobs go by their order, not by the time; a delay asked for afterwards is as long as it says."""
    service = await serve(WORKERS=1)
    await service.http.post("/queues/default/pause")
    await service.enqueue("before")
    faults.clock(-HOUR)
    await service.enqueue("soon", delay=1, queue="other")
    await service.http.post("/queues/default/resume")
    ended = await service.all_ended("before", "soon")

    assert {job["status"] for job in ended.values()} == {"done"}


async def test_a_clock_set_forward_makes_due_what_was_scheduled(serve, faults):
    service = await serve()
    await service.enqueue("tomorrow", delay=DAY - 60)
    faults.clock(DAY)

    assert (await service.job("tomorrow", wait=PATIENCE))["status"] == "done"


async def test_a_start_with_a_clock_that_is_behind_takes_everything_back(serve, faults, trace):
    """The dead node's lease lies an hour ahead: its jobs are rescued all the same, since the file is ours alone."""
    service = await serve()
    await service.enqueue("active", payload={"seconds": 1})
    await service.runs("active")
    await service.kill()
    faults.clock(-HOUR)
    service = await serve()

    assert await service.said("recovered 1 jobs")
    assert (await service.job("active", wait=PATIENCE))["status"] == "done"
