"""The keeper of operations: a slice at a time, of each in its turn, whatever goes wrong."""

from typing import Any

import trio
from msgspec.structs import replace

from jobpipe.clock import VirtualClock
from jobpipe.engine.operations import RETRY, SLICE
from jobpipe.engine.unforeseen import UNFORESEEN
from jobpipe.errors import StoreUnavailable
from jobpipe.job import Status
from jobpipe.store.base import Filter, NewOperation, Operation
from jobpipe.store.memory import MemoryStore, open_memory
from tests.engine.conftest import NOW, Rig, new_job, running

CANCEL = NewOperation(id="o", verb="cancel", where=Filter(queue="default"))
LATER = NOW + 1e6


class Counting(MemoryStore):
    """Counts slices, and can be told to raise."""

    def __init__(self) -> None:
        super().__init__()
        self.slices: list[tuple[str, int]] = []
        self.times: list[float] = []
        self.raises: Exception | None = None
        self.broken = ""

    async def take_operation(self, *args: Any) -> Any:
        if self.raises is not None:
            raise self.raises
        return await super().take_operation(*args)

    async def slice(self, part: Any, *args: Any) -> Any:
        if self.broken in part.ids:
            raise ZeroDivisionError(self.broken)
        self.slices.append((part.operation, len(part.ids)))
        self.times.append(trio.current_time())
        return await super().slice(part, *args)


async def fill(rig: Rig, count: int, **changes: Any) -> None:
    await rig.add(*(new_job(f"j{number}", run_at=LATER, **changes) for number in range(count)))


async def ended(rig: Rig, operation: str = "o") -> Operation:
    found = await rig.node.operations.ended(operation, 1e4)
    assert found is not None
    assert found.state == "done"
    return found


async def test_an_operation_is_done_in_slices(autojump_clock):
    """As fast as it goes; what runs goes on meanwhile."""
    store = Counting()
    async with running(store) as rig:
        await fill(rig, SLICE * 2 + 1)
        await rig.node.operations.begin(CANCEL)
        done = await ended(rig)

        assert [jobs for _, jobs in store.slices] == [SLICE, SLICE, 1]
        assert (done.changed, await rig.statuses()) == (SLICE * 2 + 1, {Status.CANCELLED: SLICE * 2 + 1})


async def test_a_running_job_is_told_to_stop(autojump_clock):
    """On this node at once, as a cancel of one job does it."""
    async with running() as rig:
        await rig.enqueue("a", ("sleep", 1000))
        await rig.actor.begun()
        await rig.node.operations.begin(CANCEL)
        job = await rig.ended("a")

        assert job.status is Status.CANCELLED


async def test_a_job_that_breaks_a_slice_costs_only_itself(autojump_clock):
    """It is passed over, and the log has it."""
    store = Counting()
    async with running(store, expected=[UNFORESEEN]) as rig:
        await fill(rig, 10)
        store.broken = "j4"
        await rig.node.operations.begin(CANCEL)
        done = await ended(rig)

        assert (done.matched, done.changed, done.refused) == (10, 9, 1)
        assert await rig.statuses() == {Status.CANCELLED: 9, Status.SCHEDULED: 1}
        assert [line["job"] for line in rig.logged(UNFORESEEN)] == ["j4"]
        await store.delete(["j4"], NOW)


async def test_while_the_store_cannot_be_used_it_is_tried_again(autojump_clock):
    store = Counting()
    async with running(store) as rig:
        await fill(rig, 3)
        store.raises = StoreUnavailable("the disk is full")
        await rig.node.operations.begin(CANCEL)
        await trio.sleep(3 * RETRY)
        before = list(store.slices)
        store.raises = None
        done = await ended(rig)

        assert (before, done.changed) == ([], 3)


async def test_operations_take_turns(autojump_clock):
    """One with a rate rests while others go on."""
    store = Counting()
    async with running(store) as rig:
        await fill(rig, 4)
        await rig.node.operations.begin(replace(CANCEL, id="a-slow", verb="promote", rate=1.0))
        await rig.node.operations.begin(replace(CANCEL, id="fast"))
        await ended(rig, "fast")
        fast_at = trio.current_time()
        slow = await ended(rig, "a-slow")

        assert store.slices[0] == ("a-slow", 1)
        assert trio.current_time() - fast_at > 2
        assert slow.matched == 4


async def test_an_operation_that_was_there_at_the_start_goes_on(autojump_clock):
    """Within a lease, when the node that was about it is gone."""
    async with open_memory() as store:
        await store.begin_operation(CANCEL, NOW)
        await store.take_operation("gone", NOW, NOW + 10)
        async with running(store, lease=10.0) as rig:
            await trio.sleep(25)
            found = await store.operation("o")

            assert found is not None
            assert (found.state, await rig.statuses()) == ("done", {})


async def test_a_rate_holds_over_nodes_and_after_a_crash(autojump_clock):
    """In any time at most so many jobs, and a slice more: when it goes on, is written with the slice before."""
    store, clock, rate = Counting(), VirtualClock(NOW), 10.0
    async with (
        running(store, clock=clock, lease=10.0) as first,
        running(store, name="n2", clock=clock, lease=10.0) as second,
    ):
        await fill(first, 200)
        await first.node.operations.begin(replace(CANCEL, rate=rate))
        await trio.sleep(5.5)
        first.life.cancel()
        done = await ended(second)

    jobs = [count for _, count in store.slices]
    for begin in range(len(jobs)):
        for end in range(begin, len(jobs)):
            within = store.times[end] - store.times[begin]
            assert sum(jobs[begin : end + 1]) <= rate * within + rate + 1e-6
    assert (done.changed, sum(jobs)) == (200, 200)
    assert store.times[-1] - store.times[0] < 200 / rate + 2 * 10
