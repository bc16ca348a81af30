"""The kind `demo`: works a while and fails now and then."""

from typing import Any

import msgspec
import pytest
import trio

from jobpipe.handlers.registry import Handler, load
from jobpipe.job import Options, Status
from tests.engine.conftest import PLAIN, running


def demo() -> Handler:
    found = load([]).find("demo")
    assert found is not None
    return found


@pytest.mark.parametrize(
    "payload",
    [
        None,
        "data",
        5,
        1.5,
        True,
        [1],
        {},
        {"fail": 0},
        {"shortest": 1, "longest": 2, "fail": 1},
        {"steps": 3},
    ],
)
def test_any_payload_will_do(payload: Any) -> None:
    """The original's curl lines say `"payload":"data"`; an object may say how to work."""
    demo().typed(payload)


@pytest.mark.parametrize(
    "payload",
    [{"fail": 2}, {"fail": -0.1}, {"shortest": -1}, {"longest": 1e9}, {"fail": "often"}, {"steps": -1}],
)
def test_an_object_must_make_sense(payload: Any) -> None:
    """It is refused at the door."""
    with pytest.raises(msgspec.ValidationError):
        demo().typed(payload)


async def test_it_works_as_long_as_it_is_told(autojump_clock) -> None:
    """And says how long that was, and in which attempt."""
    async with running(handlers=[demo()]) as rig:
        begun = trio.current_time()
        await rig.enqueue("a", kind="demo", payload=b'{"shortest":3,"longest":3,"fail":0}')
        job = await rig.ended("a")
        took = trio.current_time() - begun

    assert took == 3
    assert msgspec.json.decode(job.state.result or b"") == {"worked": 3, "attempt": 1}


async def test_it_tells_its_steps(autojump_clock) -> None:
    """As progress and in its log."""
    async with running(handlers=[demo()]) as rig:
        payload = b'{"shortest":3,"longest":3,"fail":0,"steps":3}'
        await rig.enqueue("a", kind="demo", payload=payload)
        job = await rig.ended("a")
        page = await rig.store.log("a")

    assert job.progress is not None
    assert page is not None
    assert (job.progress.fraction, job.progress.message) == (1, "step 3 of 3")
    assert [line.text for line in page.lines] == ["step done"] * 3


async def test_by_itself_it_works_up_to_half_a_second_and_fails_one_time_in_five(autojump_clock) -> None:
    """So that a few of them show what retries do."""
    async with running(handlers=[demo()], workers=1000, max_backlog=1000) as rig:
        begun = trio.current_time()
        for number in range(1000):
            await rig.enqueue(str(number), kind="demo", payload=b"null", max_retries=0)
        jobs = [await rig.ended(str(number)) for number in range(1000)]
        took = trio.current_time() - begun
    failed = sum(job.status is Status.FAILED for job in jobs)
    worked = [msgspec.json.decode(job.state.result)["worked"] for job in jobs if job.state.result]

    assert took <= 0.5
    assert 100 <= failed <= 300  # one in five, and less than one run in 10 ** 14 misses these bounds
    assert min(worked) >= 0.1


async def test_a_demo_job_gets_through_in_the_end(autojump_clock) -> None:
    """Fifty of them, with enough retries; the error of a failed attempt is told."""
    async with running(handlers=[demo()]) as rig:
        for number in range(50):
            await rig.enqueue(
                str(number), kind="demo", max_retries=30, options=Options(backoff=PLAIN.backoff)
            )
        jobs = [await rig.ended(str(number)) for number in range(50)]
    errors = {one.error.message for job in jobs for one in job.attempts if one.error}

    assert {job.status for job in jobs} == {Status.DONE}
    assert errors == {"demo: failed, as it does now and then"}
