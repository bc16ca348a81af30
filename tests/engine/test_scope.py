"""The scope that one worker's handlers share: what befalls one attempt must not reach the next."""

import math
from contextlib import closing
from typing import Any

import pytest
import trio

from jobpipe.engine.scope import ReusableScope
from jobpipe.job import Options, Status
from tests.engine.conftest import new_job, running
from tests.engine.test_executor import odd


async def cancelled(scope: ReusableScope) -> bool:
    """Whether an attempt in the scope would be cancelled at its first wait."""
    with scope:
        await trio.lowlevel.checkpoint()
        return False
    return True


async def test_a_cancel_ends_one_attempt_and_not_the_next() -> None:
    with closing(ReusableScope()) as scope:
        with scope:
            scope.cancel()
            await trio.sleep(math.inf)

        assert not await cancelled(scope)


async def test_a_cancel_that_comes_too_late_for_one_attempt_does_not_reach_the_next() -> None:
    """It returned without waiting once more."""
    with closing(ReusableScope()) as scope:
        with scope:
            scope.cancel()

        assert not await cancelled(scope)


async def test_a_deadline_ends_one_attempt_and_not_the_next(autojump_clock) -> None:
    with closing(ReusableScope()) as scope:
        with scope:
            scope.limit(trio.current_time() + 5)
            await trio.sleep(10)
        took = trio.current_time()
        with scope:
            scope.limit(trio.current_time() + 5)
        await trio.sleep(10)

        assert took == 5
        assert not await cancelled(scope)


async def test_what_an_attempt_raises_passes() -> None:
    with closing(ReusableScope()) as scope:
        with pytest.raises(ValueError, match="no luck"), scope:
            raise ValueError("no luck")

        assert not await cancelled(scope)


async def test_a_cancel_of_the_worker_passes_through_the_lane() -> None:
    """It is not the scope's to catch, though that was cancelled too."""
    with trio.CancelScope() as worker, closing(ReusableScope()) as scope:
        with scope:
            scope.cancel()
            worker.cancel()
            await trio.sleep(math.inf)
        pytest.fail("the worker's cancel was caught")

    assert worker.cancelled_caught


async def test_a_scope_that_a_handler_left_open_ends_with_its_attempt() -> None:
    with closing(ReusableScope()) as scope:
        left = trio.CancelScope()
        with pytest.raises(RuntimeError, match="Cancel scope stack corrupted"), scope:
            left.__enter__()
        left.cancel()

        assert not await cancelled(scope)


async def test_a_handler_that_leaves_a_scope_open_fails_and_harms_no_other(autojump_clock) -> None:
    """As an async generator does that is given up inside of a timeout: it would go off in another job."""

    async def leave_open(payload: Any) -> None:
        if payload == "leave":
            trio.CancelScope(deadline=trio.current_time() + 1).__enter__()
        else:
            await trio.sleep(10)

    def job(job_id: str, payload: str) -> Any:
        return new_job(job_id, kind="odd", payload=b'"%s"' % payload.encode(), max_retries=0)

    async with running(handlers=[odd(leave_open)], workers=1) as rig:
        await rig.add(job("a", "leave"), job("b", "wait"), job("c", "wait"))
        jobs = [await rig.ended(job_id) for job_id in "abc"]

    assert [one.status for one in jobs] == [Status.FAILED, Status.DONE, Status.DONE]
    assert jobs[0].state.error is not None
    assert "Cancel scope stack corrupted" in jobs[0].state.error.message


async def test_a_timeout_of_one_job_leaves_the_next_on_the_same_worker_alone(autojump_clock) -> None:
    async with running(workers=1) as rig:
        await rig.add(
            new_job("a", ("sleep", 20), max_retries=0, options=Options(timeout=5)),
            new_job("b", ("sleep", 20)),
        )
        jobs = [await rig.ended(job_id) for job_id in "ab"]

    assert [one.status for one in jobs] == [Status.FAILED, Status.DONE]


async def test_a_cancel_of_one_job_leaves_the_next_on_the_same_worker_alone(autojump_clock) -> None:
    async with running(workers=1) as rig:
        await rig.add(new_job("a", ("sleep", 20)), new_job("b", ("sleep", 20)))
        await rig.actor.begun()
        await rig.node.control.cancel("a")
        jobs = [await rig.ended(job_id) for job_id in "ab"]

    assert [one.status for one in jobs] == [Status.CANCELLED, Status.DONE]
