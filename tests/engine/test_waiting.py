"""Waiting for a job's end: told at once here, found by looking elsewhere, and never for nothing."""

import trio

from jobpipe.engine.waiting import LOOK_AGAIN
from jobpipe.job import Status
from tests.engine.conftest import NOW, running


async def test_who_waits_has_the_job_as_soon_as_it_has_ended(autojump_clock) -> None:
    """With its result; for one that has ended already there is nothing to wait for."""
    async with running() as rig:
        await rig.enqueue("a", ("sleep", 100))
        begun = trio.current_time()
        job = await rig.node.waiting.ended("a")
        took = trio.current_time() - begun
        again = await rig.node.waiting.ended("a")

    assert job is not None
    assert (job.status, again) == (Status.DONE, job)
    assert 100 <= took <= 100.1


async def test_who_waits_for_a_job_that_expires_hears_of_it_at_once(autojump_clock) -> None:
    """With the exchange that expires it, not with the next look."""
    async with running() as rig:
        await rig.node.store.pause("default")
        await rig.enqueue("a", expires_at=NOW + LOOK_AGAIN / 2)
        begun = trio.current_time()
        job = await rig.node.waiting.ended("a")
        took = trio.current_time() - begun

    assert job is not None
    assert job.status is Status.EXPIRED
    assert took < LOOK_AGAIN


async def test_an_end_that_nobody_told_is_found_by_looking(autojump_clock) -> None:
    """Once every `LOOK_AGAIN` seconds."""
    async with running() as rig:
        await rig.enqueue("a", run_at=NOW + 1000)
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.node.waiting.ended, "a")
            await trio.testing.wait_all_tasks_blocked()
            await rig.store.cancel(["a"], NOW)
        took = trio.current_time() - begun

    assert took == LOOK_AGAIN


async def test_nobody_waits_for_a_job_that_is_not_there(autojump_clock) -> None:
    """Nor for one that is deleted meanwhile."""
    async with running() as rig:
        absent = await rig.node.waiting.ended("a")
        await rig.enqueue("b", run_at=NOW + 1000)
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.node.waiting.ended, "b")
            await trio.testing.wait_all_tasks_blocked()
            await rig.node.control.delete("b")
        took = trio.current_time() - begun

    assert (absent, took) == (None, 0)


async def test_a_node_that_stops_tells_how_the_job_is(autojump_clock) -> None:
    """It can tell no more, so nobody waits on."""
    told = []
    async with trio.open_nursery() as nursery, running() as rig:

        async def wait() -> None:
            told.append(await rig.node.waiting.ended("a"))

        await rig.enqueue("a", run_at=NOW + 1000)
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()

    assert [job and job.status for job in told] == [Status.SCHEDULED]
