"""A deadline over all attempts of a job, in virtual time."""

import pytest
import trio

from jobpipe.fingerprints import marked
from jobpipe.handlers.context import Context
from jobpipe.job import Options, Outcome, Status
from jobpipe.transitions import PAST_DEADLINE
from tests.engine.conftest import NOW, PLAIN, running
from tests.engine.test_enqueuing import handler

LATE = marked(PAST_DEADLINE, "play")


async def test_an_attempt_is_stopped_at_the_deadline_and_is_the_last(autojump_clock) -> None:
    """Its cleanup is waited for."""
    seen = list[float]()

    async def play(job: Context) -> None:
        seen.append(job.deadline - trio.current_time())
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)

    async with running(handlers=[handler(play)]) as rig:
        options = Options(timeout=60, deadline=NOW + 10)
        await rig.enqueue(kind="play", max_retries=5, expires_at=NOW + 10, options=options)
        job = await rig.ended()

    assert seen == [pytest.approx(10, abs=0.1)]
    assert (job.status, job.state.attempt, job.state.error) == (Status.FAILED, 1, LATE)
    assert job.state.finished_at == pytest.approx(NOW + 12, abs=0.1)
    assert [one.outcome for one in job.attempts] == [Outcome.FAIL]


async def test_a_timeout_before_the_deadline_is_a_timeout(autojump_clock) -> None:
    """And a retry that would come after the deadline is none."""

    async def play(job: Context) -> None:
        await trio.sleep_forever()

    async with running(handlers=[handler(play)]) as rig:
        options = Options(timeout=4, deadline=NOW + 10, backoff=PLAIN.backoff)
        await rig.enqueue(kind="play", max_retries=5, expires_at=NOW + 10, options=options)
        job = await rig.ended()

    errors = [one.error and one.error.type for one in job.attempts]
    assert errors[0] == "Timeout"
    assert (job.status, job.state.error) == (Status.FAILED, LATE)
    assert job.state.finished_at == pytest.approx(NOW + 10, abs=0.1)


async def test_a_job_whose_turn_comes_after_the_deadline_is_not_begun(autojump_clock) -> None:
    """It was claimed before."""
    begun = list[str]()

    async def play(job: Context) -> None:
        begun.append(job.id)
        await trio.sleep(30)

    async with running(handlers=[handler(play)], workers=1) as rig:
        await rig.enqueue("long", kind="play")
        await trio.sleep(1)
        await rig.enqueue("b", kind="play", expires_at=NOW + 10, options=Options(deadline=NOW + 10))
        job = await rig.ended("b")

    assert (job.status, job.state.attempt, job.state.error) == (Status.FAILED, 0, LATE)
    assert begun == ["long"]


async def test_what_is_done_in_time_is_done(autojump_clock) -> None:
    async def play(job: Context) -> None:
        await trio.sleep(9)

    async with running(handlers=[handler(play)]) as rig:
        await rig.enqueue(kind="play", expires_at=NOW + 10, options=Options(deadline=NOW + 10))
        job = await rig.ended()

    assert job.status is Status.DONE
