"""A blocked event loop is noticed, and the job that blocks it is named. In real time: nothing else can be seen here."""

import time

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from jobpipe.engine import watchdog
from jobpipe.engine.watchdog import Watchdog
from tests.engine.conftest import running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notice a block after 50 ms."""
    monkeypatch.setattr(watchdog, "BEAT", 0.01)
    monkeypatch.setattr(watchdog, "PATIENCE", 0.05)


async def test_a_loop_that_lives_is_left_alone() -> None:
    """However often it beats."""
    with capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            dog = Watchdog()
            nursery.start_soon(dog.run)
            for _ in range(1000):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    assert lines == []
    assert dog.trouble() is None


async def test_what_blocks_the_loop_is_told_once_and_remembered() -> None:
    """Where no job does it, so is said."""
    with capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            dog = Watchdog()
            nursery.start_soon(dog.run)
            await trio.testing.wait_all_tasks_blocked()
            time.sleep(0.3)  # noqa: ASYNC251 - blocks the loop: that is what is tested
            await trio.sleep(0.02)
            nursery.cancel_scope.cancel()

    # A busy machine may not let the watchdog run for 50 ms: that is told too, and is no block.
    told = [line for line in lines if line["event"] != "this process stood still"]
    assert [line["event"].split(":")[0] for line in told] == [
        "the event loop is blocked",
        "the event loop is running again",
    ]
    assert "time.sleep(0.3)" in told[0]["stack"]
    assert (dog.trouble() or "").startswith("something blocked the event loop for 0.")


async def test_the_job_whose_handler_blocks_is_named() -> None:
    """By its id and kind."""
    async with running(expected=["the event loop is blocked"]) as rig, trio.open_nursery() as nursery:
        nursery.start_soon(rig.node.watchdog.run)
        await trio.testing.wait_all_tasks_blocked()
        await rig.enqueue("bad", ("block", 0.3))
        await rig.ended("bad")
        await trio.sleep(0.02)
        nursery.cancel_scope.cancel()

    blocked = [line for line in rig.log if line["event"].startswith("the event loop is blocked")]
    assert [line["job"] for line in blocked] == ["bad"]
    assert "job bad" in (rig.node.watchdog.trouble() or "")
