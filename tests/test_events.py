"""Job changes, told to whoever listens inside this process."""

import pytest
import trio

from jobpipe.events import Events
from jobpipe.job import ENDED, Status


@pytest.mark.parametrize("status", sorted(ENDED))
async def test_who_watches_a_job_is_woken_by_its_end(autojump_clock, status) -> None:
    """Whatever it ended as."""
    events = Events()
    with events.watch("a") as watch, trio.fail_after(1):
        events.publish("a", status)
        await watch.ended()


@pytest.mark.parametrize("status", sorted(set(Status) - ENDED))
async def test_who_watches_a_job_sleeps_through_other_changes(autojump_clock, status) -> None:
    """Only the end counts."""
    events = Events()
    with events.watch("a") as watch, trio.move_on_after(1) as waiting:
        events.publish("a", status)
        await watch.ended()

    assert waiting.cancelled_caught


async def test_who_watches_a_job_hears_nothing_of_others(autojump_clock) -> None:
    """Not even of those whose id begins the same."""
    events = Events()
    with events.watch("a") as watch, trio.move_on_after(1) as waiting:
        events.publish("ab", Status.DONE)
        events.publish("", Status.DONE)
        await watch.ended()

    assert waiting.cancelled_caught


async def test_everybody_who_watches_a_job_is_woken(autojump_clock) -> None:
    """Each has a watch of its own, and those who came after the end hear of the next one only."""
    events = Events()
    with trio.fail_after(1), events.watch("a") as first, events.watch("a") as second:
        events.publish("a", Status.DONE)
        await first.ended()
        await second.ended()
    with events.watch("a") as late, trio.move_on_after(1) as waiting:
        await late.ended()

    assert waiting.cancelled_caught


async def test_an_end_told_before_the_wait_is_not_missed(autojump_clock) -> None:
    """From the moment on that the watch is open."""
    events = Events()
    with events.watch("a") as watch, trio.fail_after(1):
        events.publish("a", Status.FAILED)
        await trio.sleep(0.5)
        await watch.ended()


async def test_who_watches_looks_when_something_may_have_been_missed(autojump_clock) -> None:
    """Once for each reason, also for one that came before the wait; the end is another matter."""
    events = Events()
    with events.watch("a") as watch, events.watch("b") as other:
        events.recheck()
        with trio.fail_after(1):
            await watch.rechecked()
        with trio.move_on_after(1) as waiting:
            await watch.rechecked()
        with trio.move_on_after(1) as still:
            await other.ended()
        events.publish("a", Status.DONE)
        with trio.fail_after(1):
            for _ in range(2):
                await watch.rechecked()

    assert waiting.cancelled_caught
    assert still.cancelled_caught
    assert (watch.over, other.over) == (True, False)


async def test_who_leaves_leaves_nothing_behind(autojump_clock) -> None:
    """Also when cancelled, and while others still watch the same job."""
    events = Events()
    with events.watch("a") as stays:
        with pytest.raises(KeyError), events.watch("a"), events.watch("b"):
            raise KeyError
        with events.watch("a") as leaves, trio.move_on_after(1):
            await leaves.ended()
        events.publish("a", Status.DONE)
        await stays.ended()

    assert events._watches == {}


async def test_a_job_that_nobody_watches_may_end(autojump_clock) -> None:
    """Nothing is kept for it."""
    events = Events()
    events.publish("a", Status.DONE)

    assert events._watches == {}


async def test_at_the_end_of_the_node_everybody_is_woken(autojump_clock) -> None:
    """Who watches, and who comes later: nothing more will be told."""
    events = Events()
    with trio.fail_after(1), events.watch("a") as watch, events.watch("b") as other:
        events.close()
        await watch.ended()
        await other.ended()
    with trio.fail_after(1), events.watch("c") as late:
        await late.ended()
