"""A handler that blocks the event loop of the one process that a SQLite file has."""

import pytest

from jobpipe.engine.watchdog import BLOCKED
from tests.process.running import until

pytestmark = pytest.mark.slow

LEASE = 2
SOON = 0.3
"""Seconds before the job that blocks is due: the answer to who enqueued it is out by then."""
LOST = "this node lost its lease"


@pytest.fixture
def runs(trace):
    """Return when so many runs of a job have started."""

    async def started(job_id, count=1):
        async def so():
            return sum(line["job"] == job_id and line["event"] == "start" for line in trace()) >= count

        await until(so)

    return started


async def test_a_block_of_three_leases_stops_nothing(serve, gate, runs):
    """Nobody else can have taken the jobs, so what ran goes on with its first attempt."""
    service = await serve(LEASE=LEASE, WORKERS=2)
    service.expected_errors.add("the event loop is blocked")
    await service.enqueue("beside", payload={"until": gate.path})
    await service.runs("beside")
    await service.enqueue("blocker", "block-loop", payload={"seconds": 3 * LEASE + 0.5}, delay=SOON)
    ended = await service.all_ended("blocker")
    gate.open()
    ended |= await service.all_ended("beside")

    assert {job_id: (job["status"], job["attempt"]) for job_id, job in ended.items()} == {
        "blocker": ("done", 1),
        "beside": ("done", 1),
    }
    assert not service.has_said(LOST)
    assert not service.has_said("late write refused")


async def test_a_process_that_stays_blocked_ends_and_the_next_one_runs_its_job(serve, gate, runs):
    service = await serve(MAX_BLOCKED=2)
    service.expected_errors |= {"the event loop is blocked", "the event loop was blocked"}
    await service.enqueue("blocker", "block-loop", payload={"until": gate.path}, delay=SOON)
    await runs("blocker")
    code = await service.ended()
    gate.open()
    ended = await (await serve()).all_ended("blocker")

    assert code == BLOCKED
    assert "in block_loop" in (await service.said("the event loop was blocked for MAX_BLOCKED"))["stack"]
    assert ended["blocker"]["status"] == "done"
    await runs("blocker", 2)
