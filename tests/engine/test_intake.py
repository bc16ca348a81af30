"""The one task that claims: how many, in which order, when."""

import pytest
import trio

from jobpipe.engine.ledger import SETTLE_DELAY
from jobpipe.job import Status
from tests.engine.conftest import DAY, NOW, FaultyStore, new_job, running


async def test_the_intake_claims_what_channel_and_workers_can_take(autojump_clock) -> None:
    """The rest waits in the store, where it can be seen, cancelled and taken by others."""
    async with running(workers=2, queue_size=3) as rig:
        await rig.add(*(new_job(str(number), "wait") for number in range(20)))
        await rig.actor.begun(2)
        await trio.testing.wait_all_tasks_blocked()
        held, waiting = len(list(rig.node.attempts)), rig.node.ledger.waiting
        rig.actor.gate.set()
        for number in range(20):
            await rig.ended(str(number))

    assert (held, waiting) == (5, 15)
    assert set(rig.actor.order()[:2]) == {"0", "1"}


async def test_priority_is_strict_without_a_buffer(autojump_clock) -> None:
    """With QUEUE_SIZE 0 a job is claimed when a worker is free for it: the highest priority of that moment."""
    async with running(workers=1, queue_size=0) as rig:
        await rig.enqueue("first", "wait")
        await rig.actor.begun(1)
        for priority in (0, -5, 7, 0, 100):
            await rig.enqueue(f"{priority}-{rig.node.ledger.commits}", priority=priority)
        rig.actor.gate.set()
        await trio.sleep(1)

    assert [job_id.rpartition("-")[0] for job_id in rig.actor.order()[1:]] == ["100", "7", "0", "0", "-5"]


async def test_jobs_are_claimed_by_priority_then_run_at_then_arrival(autojump_clock) -> None:
    """Whatever order they came in."""
    async with running(workers=1, queue_size=0) as rig:
        await rig.enqueue("first", "wait")
        await rig.actor.begun(1)
        await rig.add(
            new_job("late"),
            new_job("later"),
            new_job("earlier", run_at=NOW - 1),
            new_job("high", priority=1),
        )
        rig.actor.gate.set()
        await trio.sleep(1)

    assert rig.actor.order() == ["first", "high", "earlier", "late", "later"]


@pytest.mark.parametrize("size", [0, 1, 2, 64])
@pytest.mark.parametrize("workers", [1, 3])
async def test_every_size_of_channel_moves_every_job(autojump_clock, size, workers) -> None:
    """With and without a buffer, however many workers there are."""
    async with running(workers=workers, queue_size=size) as rig:
        await rig.add(*(new_job(str(number), ("sleep", number % 3)) for number in range(100)))
        for number in range(100):
            await rig.ended(str(number))

    assert sorted(rig.actor.order(), key=int) == [str(number) for number in range(100)]


async def test_a_durable_store_is_asked_for_half_a_channel_at_least(autojump_clock) -> None:
    """So that one commit pays for many claims while a backlog is worked off."""
    store = FaultyStore()
    store.durable = True
    async with running(store, workers=1, queue_size=10) as rig:
        await rig.add(*(new_job(str(number), ("sleep", 1)) for number in range(100)))
        for number in range(100):
            await rig.ended(str(number))
        claims = [batch.claim for batch in store.batches if batch.claim]

    assert min(claims) >= 5
    assert len(claims) < 50


async def test_a_scheduled_job_starts_at_its_run_at(autojump_clock) -> None:
    """Exactly, also among others that come earlier and later."""
    began = {}
    async with running() as rig:
        start = trio.current_time()
        for seconds in (300, 100.25, 200, 100):
            await rig.enqueue(str(seconds), run_at=NOW + seconds)
        for seconds in (300, 100.25, 200, 100):
            await rig.ended(str(seconds))
        began = {run.id: round(run.began - start, 3) for run in rig.actor.runs}

    assert began == {"100": 100, "100.25": 100.25, "200": 200, "300": 300}


async def test_an_idle_node_asks_the_store_for_nothing_but_its_lease(autojump_clock) -> None:
    """No polling: in a day without jobs there are only heartbeats."""
    store = FaultyStore()
    async with running(store, lease=3600) as rig:
        await trio.testing.wait_all_tasks_blocked()
        ticks, store.batches[:] = rig.node.intake.ticks, []
        await trio.sleep(DAY)
        batches, still = list(store.batches), rig.node.intake.ticks

    assert {batch.lease_until is not None for batch in batches} == {True}
    assert len(batches) <= 3 * 24
    assert still == ticks


async def test_every_look_and_every_claim_is_a_tick(autojump_clock) -> None:
    """So that who checks the health of the node sees it work."""
    async with running() as rig:
        ticks = [rig.node.intake.ticks]
        for job_id in "abc":
            await rig.enqueue(job_id)
            await rig.ended(job_id)
            ticks.append(rig.node.intake.ticks)

    assert ticks == sorted(set(ticks))


async def test_a_paused_queue_waits_until_it_is_resumed(autojump_clock) -> None:
    """Others go on meanwhile, and what runs already too."""
    async with running(queue_size=0) as rig:
        await rig.enqueue("running", "wait", queue="mail")
        await rig.actor.begun(1)
        await rig.node.control.pause("mail")
        await rig.enqueue("a", queue="mail")
        await rig.enqueue("b", queue="other")
        rig.actor.gate.set()
        await rig.ended("running")
        await rig.ended("b")
        await trio.sleep(DAY / 10)
        waiting = await rig.job("a")
        await rig.node.control.resume("mail")
        job = await rig.ended("a")

    assert waiting.status is Status.QUEUED
    waited = (job.started_at or 0) - NOW
    assert job.status is Status.DONE
    assert DAY / 10 <= waited <= DAY / 10 + 2 * SETTLE_DELAY  # the outcomes before it wait a little
    assert rig.actor.order() == ["running", "b", "a"]


async def test_a_job_that_expires_in_line_never_runs(autojump_clock) -> None:
    """It ends at its expires_at, while a job of another worker blocks the way."""
    async with running(workers=1, queue_size=0) as rig:
        await rig.enqueue("long", ("sleep", 100))
        await rig.actor.begun(1)
        await rig.enqueue("a", expires_at=NOW + 50)
        await rig.ended("long")
        job = await rig.job("a")

    assert (job.status, job.attempt) == (Status.EXPIRED, 0)
    assert rig.actor.order() == ["long"]
