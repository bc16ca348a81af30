"""The way in: how many jobs may wait, and who is refused."""

import pytest
import trio

from jobpipe.errors import Draining, JobpipeError, QueueFull, StoreUnavailable
from jobpipe.job import Status
from tests.engine.conftest import FaultyStore, Rig, new_job, running


async def tried(rig: Rig, *ids: str) -> bool:
    """Whether the jobs were taken."""
    try:
        await rig.add(*(new_job(job_id, "wait") for job_id in ids))
    except QueueFull:
        return False
    return True


async def test_a_full_queue_refuses(autojump_clock) -> None:
    """One runs and two wait in the channel, as in the original; the next one is refused until there is room."""
    async with running(workers=1, queue_size=2, max_backlog=2) as rig:
        taken = [await tried(rig, job_id) for job_id in "abcd"]
        rig.actor.gate.set()
        await rig.ended("c")
        later = await tried(rig, "d")
        await rig.ended("d")

    assert taken == [True, True, True, False]
    assert later


async def test_a_refusal_says_how_many_wait(autojump_clock) -> None:
    """And what to change."""
    async with running(max_backlog=1) as rig:
        await rig.node.control.pause("default")
        await rig.enqueue("a")
        with pytest.raises(QueueFull, match="1 jobs are waiting already, and MAX_BACKLOG allows 1"):
            await rig.enqueue("b")


@pytest.mark.parametrize("size", [1, 3])
async def test_a_burst_is_refused_from_the_first_job_too_many(autojump_clock, size) -> None:
    """Jobs that are on their way to the store count as well: also those that come many at a time."""
    store = FaultyStore()
    taken: list[bool] = []

    async def ask(number: int) -> None:
        taken.append(await tried(rig, *(f"{number}-{one}" for one in range(size))))

    async with running(store, max_backlog=12) as rig:
        await rig.node.control.pause("default")
        store.before = trio.Event()
        async with trio.open_nursery() as askers:
            for number in range(10):
                askers.start_soon(ask, number)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(10, 30):
                askers.start_soon(ask, number)
            await trio.testing.wait_all_tasks_blocked()
            store.before.set()
        statuses = await rig.statuses()

    assert taken.count(True) == 12 // size
    assert statuses[Status.QUEUED] == 12


async def test_many_at_once_are_taken_whole_or_not_at_all(autojump_clock) -> None:
    """None of a refused add is stored."""
    async with running(max_backlog=5) as rig:
        await rig.node.control.pause("default")
        taken = [await tried(rig, *"abc"), await tried(rig, *"def"), await tried(rig, *"gh")]
        statuses = await rig.statuses()

    assert taken == [True, False, True]
    assert statuses[Status.QUEUED] == 5


async def test_a_scheduled_job_takes_up_room_too(autojump_clock) -> None:
    """Whatever waits in the store counts, whatever it waits for."""
    async with running(max_backlog=1) as rig:
        await rig.enqueue("a", run_at=rig.node.clock.now() + 100)
        full = not await tried(rig, "b")
        await rig.ended("a")
        room = await tried(rig, "b")
        rig.actor.gate.set()

    assert (full, room) == (True, True)


async def test_a_node_that_drains_takes_no_new_job(autojump_clock) -> None:
    """From the moment on that it drains; what it has acknowledged is stored."""
    async with running() as rig:
        await rig.enqueue("a", ("sleep", 10))
        rig.node.drain()
        with pytest.raises(Draining):
            await rig.enqueue("b")
        job = await rig.ended("a")

    assert job.status is Status.DONE


async def test_a_job_on_its_way_when_the_drain_begins_is_stored(autojump_clock) -> None:
    """Acknowledged or not: it was handed in before."""
    store = FaultyStore()
    async with running(store) as rig:
        store.before = trio.Event()
        async with trio.open_nursery() as askers:
            askers.start_soon(rig.enqueue, "a")
            await trio.testing.wait_all_tasks_blocked()
            rig.node.drain()
            store.before.set()
        job = await rig.job("a")

    assert job.status is Status.QUEUED


async def test_nothing_is_taken_that_cannot_be_stored(autojump_clock) -> None:
    """The asker is told, and may come again with the same job."""
    store = FaultyStore()
    async with running(store, expected=["the store cannot write"]) as rig:
        store.broken = True
        with pytest.raises(StoreUnavailable):
            await rig.enqueue("a")
        store.broken = False
        await rig.enqueue("a")
        job = await rig.ended("a")

    assert job.status is Status.DONE
    assert issubclass(StoreUnavailable, JobpipeError)
