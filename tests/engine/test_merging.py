"""Jobs that are merged with others, on a node that runs them, in virtual time: when they run, and how often."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import trio

from jobpipe.clock import VirtualClock
from jobpipe.job import Debounce, NewJob, Options, Status, Throttle, Unique
from jobpipe.store.base import Receipt
from tests.engine.conftest import NOW, Rig, Step, new_job, running


async def say(rig: Rig, job_id: str, *steps: Step, **merging: Any) -> Receipt:
    """Ask for a job now, as a request does."""
    debounce = merging.get("debounce")
    now = rig.node.clock.now()
    new = rig.node.admission.new_job(
        msgspec.json.encode(steps or ("done",)), job_id=job_id, kind="act", **merging
    )
    assert debounce is None or new.run_at == now + debounce.wait
    (receipt,) = await rig.node.admission.enqueue([new])
    return receipt


async def said(rig: Rig, times: Sequence[float], **merging: Any) -> list[Receipt]:
    """Ask again and again, at so many seconds from now."""
    begin, receipts = trio.current_time(), list[Receipt]()
    for number, at in enumerate(times):
        await trio.sleep_until(begin + at)
        receipts.append(await say(rig, f"j{number}", **merging))
    return receipts


def unique(**changes: Any) -> Unique:
    return msgspec.structs.replace(Unique("k", ("kind",), ("queued", "running"), None, "return"), **changes)


# --- debounce ---------------------------------------------------------------------------------------------------------


async def test_a_burst_runs_once_after_a_quiet_period(autojump_clock) -> None:
    async with running() as rig:
        begin = trio.current_time()
        receipts = await said(rig, [0, 1, 2, 3], debounce=Debounce("k", 5.0, 50.0))
        await rig.ended("j0")
        (run,) = rig.actor.runs

    assert [one.verdict for one in receipts] == ["stored", "replaced", "replaced", "replaced"]
    assert run.began - begin == pytest.approx(8, abs=0.1)


async def test_requests_that_never_cease_run_all_the_same(autojump_clock) -> None:
    """Each time the longest wait is over; while one runs, the next lines up."""
    async with running() as rig:
        begin = trio.current_time()
        await said(rig, range(100), debounce=Debounce("k", 5.0, 20.5))
        await trio.sleep(200)
        began = [run.began - begin for run in rig.actor.runs]
        statuses = await rig.statuses()

    assert began == [pytest.approx(at, abs=0.1) for at in (20.5, 41.5, 62.5, 83.5, 104)]
    assert statuses == {Status.DONE: 5}


async def test_what_is_said_while_one_runs_runs_next(autojump_clock) -> None:
    """Nothing is lost, however long the first takes."""
    async with running() as rig:
        await say(rig, "a", ("sleep", 100), debounce=Debounce("k", 5.0, 50.0))
        await rig.actor.begun()
        receipts = [await say(rig, name, ("sleep", 1), debounce=Debounce("k", 5.0, 50.0)) for name in "bcd"]
        await rig.ended("a")
        await rig.ended("b")

    assert [one.verdict for one in receipts] == ["stored", "replaced", "replaced"]
    assert rig.actor.order() == ["a", "b"]
    assert rig.actor.began() == [0, 5]


# --- throttle ---------------------------------------------------------------------------------------------------------


async def test_of_requests_that_never_cease_one_a_window_runs(autojump_clock) -> None:
    async with running() as rig:
        await said(rig, range(95), throttle=Throttle("k", 10.0, trailing=False))
        await trio.sleep(200)

    assert rig.actor.began() == [pytest.approx(10 * number, abs=0.1) for number in range(10)]


async def test_with_trailing_the_last_one_runs_too(autojump_clock) -> None:
    """At the end of its window; so one a window again."""
    async with running() as rig:
        receipts = await said(rig, [0, 1, 2, 11, 12, 13, 100], throttle=Throttle("k", 10.0, trailing=True))
        await trio.sleep(200)

    assert rig.actor.began() == [pytest.approx(at, abs=0.1) for at in (0, 10, 20, 100)]
    assert [one.verdict for one in receipts] == [
        "stored",
        "stored",
        "replaced",
        "stored",
        "replaced",
        "replaced",
        "stored",
    ]


# --- unique -----------------------------------------------------------------------------------------------------------


async def test_a_job_is_unique_through_its_retries(autojump_clock) -> None:
    """Until it has failed for good."""
    async with running() as rig:
        await say(rig, "a", "error", "error", "done", unique=unique(), max_retries=1)
        told = []
        while (await rig.job("a")).status not in {Status.FAILED, Status.DONE}:
            told.append((await say(rig, "b", unique=unique())).verdict)
            await trio.sleep(0.1)
        free = await say(rig, "b", unique=unique())

    assert set(told) == {"existing"}
    assert free.verdict == "stored"


async def test_the_next_may_line_up_while_one_runs_when_asked_so(autojump_clock) -> None:
    """But not a third."""
    async with running() as rig:
        asked = unique(while_=("queued",))
        await say(rig, "a", ("sleep", 5), unique=asked)
        await rig.actor.begun()
        await rig.node.control.pause("default")
        receipts = [await say(rig, name, unique=asked) for name in "bc"]
        await rig.node.control.resume("default")
        await rig.ended("b")

    assert [one.verdict for one in receipts] == ["stored", "existing"]
    assert rig.actor.order() == ["a", "b"]


async def test_a_key_survives_the_death_of_the_node(autojump_clock) -> None:
    """The job is rescued, and is the only one of its key."""
    clock = VirtualClock(NOW)
    async with running(workers=1, clock=clock) as first:
        await say(first, "a", "wait", "done", unique=unique())
        await first.actor.begun()
        await trio.sleep(1)  # until its start is written
        await first.kill()
        async with running(first.store, actor=first.actor, name="n2", clock=clock) as second:
            told = await say(second, "b", unique=unique())
            job = await second.ended("a")
            free = await say(second, "b", unique=unique())

    assert (told.verdict, told.other) == ("existing", "a")
    assert (job.status, job.state.attempt, free.verdict) == (Status.DONE, 2, "stored")


async def test_plain_jobs_beside_unique_ones_stay_in_the_exchange(autojump_clock, monkeypatch) -> None:
    """They go with the others of the node, and each receipt is where its job was."""
    async with running() as rig:
        went: list[Sequence[NewJob]] = []
        careful = rig.store.add_dependents

        async def noted(jobs: Sequence[NewJob], *, atomic: bool, strict: bool) -> Sequence[Receipt]:
            went.append(jobs)
            return await careful(jobs, atomic=atomic, strict=strict)

        monkeypatch.setattr(rig.store, "add_dependents", noted)
        now = rig.node.clock.now()
        jobs = [
            new_job(
                name,
                created_at=now,
                run_at=now,
                options=Options(unique=unique()) if name in "bd" else Options(),
            )
            for name in "abcd"
        ]
        receipts = await rig.node.admission.enqueue(jobs)
        plain = await rig.node.admission.enqueue([new_job("e", created_at=now, run_at=now)])

    assert [one.verdict for one in receipts] == ["stored", "stored", "stored", "existing"]
    assert plain[0].verdict == "stored"
    assert [[job.id for job in jobs] for jobs in went] == [["b", "d"]]
