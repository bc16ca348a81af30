"""The node's N tasks: so many attempts at once, whatever the handlers do."""

import itertools
from typing import Any

import pytest
import trio

from jobpipe.engine.batching import SETTLE_DELAY
from jobpipe.engine.worker import LONGEST_TURN
from jobpipe.job import Options, Status
from jobpipe.store.memory import MemoryStore
from tests.engine.conftest import Actor, Do, FaultyStore, Step, new_job, running
from tests.engine.test_executor import odd


class DurableStore(MemoryStore):
    """Says that what waits in it survives the process, as with SQLite."""

    durable = True


def most_at_once(actor: Actor) -> int:
    """How many runs there were at the same time."""
    changes = [(run.began, 1) for run in actor.runs] + [(run.ended or 0, -1) for run in actor.runs]
    return max(itertools.accumulate(change for _, change in sorted(changes)))


@pytest.mark.parametrize("workers", [1, 4, 25])
async def test_as_many_jobs_run_at_once_as_there_are_workers(autojump_clock, workers) -> None:
    """No more, and while enough wait no fewer."""
    async with running(workers=workers) as rig:
        begun = trio.current_time()
        await rig.add(*(new_job(str(number), ("sleep", 10)) for number in range(100)))
        for number in range(100):
            await rig.ended(str(number))
        took = trio.current_time() - begun

    assert most_at_once(rig.actor) == workers
    assert took == 100 / workers * 10


async def test_no_handler_costs_a_worker(autojump_clock) -> None:
    """After every kind of end, on each worker, all of them still work."""
    ends: list[Step] = [
        "done",
        "error",
        "fail",
        ("retry", 1),
        ("snooze", 1),
        "spoil",
        ("hang", 1),
        ("stubborn", 5),
    ]
    async with running(workers=3) as rig:
        await rig.add(*(new_job(f"{one}-{end}", *_once(end)) for one in range(3) for end in range(len(ends))))
        await rig.add(
            *(
                new_job(f"{one}-{step}", *_once(step), max_retries=0, options=Options(timeout=2))
                for one in range(3)
                for step in ends
            )
        )
        await trio.sleep(1000)
        rig.actor.runs.clear()
        await rig.add(*(new_job(f"last-{number}", ("sleep", 10)) for number in range(30)))
        for number in range(30):
            await rig.ended(f"last-{number}")

    assert most_at_once(rig.actor) == 3


def _once(step: Step | int) -> list[Step]:
    """The step, and then success."""
    done: list[Step] = ["done"]
    return done if isinstance(step, int) else [step, "done"]


async def test_a_job_that_waits_for_its_retry_occupies_no_worker(autojump_clock) -> None:
    """It goes back to the store, and others run meanwhile."""
    async with running(workers=1) as rig:
        await rig.enqueue("a", ("retry", 1000), "done")
        await rig.enqueue("b", ("sleep", 10))
        job = await rig.ended("b")
        waiting = await rig.job("a")
        await rig.ended("a")

    assert (job.status, waiting.status) == (Status.DONE, Status.RETRYING)


async def test_a_drain_lets_buffered_jobs_of_a_volatile_store_run(autojump_clock) -> None:
    """It would lose them; what had not been claimed is lost with it in any case."""
    async with running(workers=1, queue_size=3) as rig:
        await rig.add(*(new_job(job_id, ("sleep", 5)) for job_id in "abcdef"))
        await rig.actor.begun(1)
        await trio.testing.wait_all_tasks_blocked()
        await rig.drained()
        statuses = await rig.statuses()

    assert rig.actor.order() == list("abcd")
    assert statuses == {Status.DONE: 4, Status.QUEUED: 2}
    assert rig.node.account() == {"finished": 4, "handed_back": 0, "abandoned": []}


async def test_every_place_of_the_channel_is_filled_from_a_volatile_store(autojump_clock) -> None:
    """Also the last one, when jobs come one by one: so a drain runs all that QUEUE_SIZE jobs of backlog can be."""
    async with running(workers=1, queue_size=4, max_backlog=4) as rig:
        await rig.enqueue("active", ("sleep", 5))
        await rig.actor.begun()
        for job_id in "abcd":
            await rig.enqueue(job_id)
        await rig.drained()
        statuses = await rig.statuses()

    assert +statuses == {Status.DONE: 5}


async def test_a_drain_hands_buffered_jobs_of_a_durable_store_back(autojump_clock) -> None:
    """At once and unstarted, so that another node need not wait for the active ones to finish."""
    store = DurableStore()
    async with running(store, workers=1, queue_size=3) as rig:
        await rig.add(*(new_job(str(number), ("sleep", 0.001)) for number in range(10)))
        await rig.actor.begun(10)  # so that more are claimed than workers are free
        await rig.add(*(new_job(job_id, ("sleep", 5)) for job_id in "abcdef"))
        await rig.actor.begun(11)
        await trio.testing.wait_all_tasks_blocked()
        rig.node.drain()
        await trio.sleep(2 * SETTLE_DELAY)
        early = await rig.statuses()
        held = [attempt.job.id for attempt in rig.node.held]
        await rig.drained()
        jobs = [await rig.job(job_id) for job_id in "abcdef"]

    assert held == ["a"]
    assert early[Status.QUEUED] == 5
    assert rig.actor.order()[10:] == ["a"]
    assert [job.status for job in jobs] == [Status.DONE] + [Status.QUEUED] * 5
    assert [(job.state.attempt, job.attempts) for job in jobs[1:]] == [(0, ())] * 5
    assert rig.node.account() == {"finished": 1, "handed_back": 3, "abandoned": []}


@pytest.mark.parametrize("do", ["hang", "wait", "sleep"])
async def test_a_stop_ends_every_attempt_and_hands_its_job_back(autojump_clock, do: Do) -> None:
    """Attempts that had begun and jobs that had not, none of them counted."""
    store = FaultyStore()
    async with running(store, workers=2, queue_size=2) as rig:
        await rig.add(*(new_job(job_id, (do, 10)) for job_id in "abcdef"))
        await rig.actor.begun(2)
        await trio.testing.wait_all_tasks_blocked()
        rig.node.stop()
        await rig.over.wait()
        jobs = [await rig.job(job_id) for job_id in "abcdef"]

    assert {(job.status, job.state.attempt) for job in jobs} == {(Status.QUEUED, 0)}
    assert rig.node.account() == {"finished": 0, "handed_back": 4, "abandoned": []}


async def test_jobs_that_never_wait_let_others_have_their_turn(autojump_clock) -> None:
    """However many of them are there: after a short while a worker gives way."""
    began: list[int] = []

    async def never_wait(payload: Any) -> None:
        began.append(turn)
        autojump_clock.jump(LONGEST_TURN)  # as if the job had taken that long

    turn = 0
    async with running(handlers=[odd(never_wait)], workers=1) as rig:
        await rig.add(*(new_job(str(number), kind="odd") for number in range(10)))
        while len(began) < 10:
            turn += 1
            await trio.lowlevel.checkpoint()
        await rig.ended("9")

    assert len(set(began)) >= 5  # two of them may fall between two turns of this task
