"""What people ask of jobs: cancel, retry, promote, delete."""

from typing import Any

import pytest
import trio

from jobpipe.engine.control import ACTS
from jobpipe.errors import StoreUnavailable
from jobpipe.handlers.exceptions import Fail, Retry, Snooze
from jobpipe.handlers.registry import Handler
from jobpipe.job import ENDED, Options, Outcome, Status
from tests.engine.conftest import FaultyStore, new_job, running, turns

# --- cancel: what waits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "status", "attempt"),
    [(("retry", 1000), Status.RETRYING, 1), (("snooze", 1000), Status.SCHEDULED, 0)],
)
async def test_a_job_that_waits_for_its_next_attempt_is_cancelled_at_once(
    autojump_clock, step, status, attempt
) -> None:
    """Between its attempts nothing has to be stopped."""
    async with running() as rig:
        await rig.enqueue("a", step)
        await rig.actor.begun()
        await trio.sleep(1)
        before = await rig.job("a")
        change = await rig.node.control.cancel("a")
        await trio.sleep(2000)
        job = await rig.job("a")

    assert before.status is status
    assert change.verdict == "changed"
    assert (job.status, job.state.attempt, len(rig.actor.runs)) == (Status.CANCELLED, attempt, 1)


@pytest.mark.parametrize("later", [0, 1000])
async def test_a_job_that_waits_in_the_store_is_cancelled_at_once(autojump_clock, later) -> None:
    """Queued or scheduled; who waits for its end hears of it."""
    async with running() as rig:
        await rig.node.control.pause("default")
        await rig.enqueue("a", run_at=rig.node.clock.now() + later)
        with rig.node.events.watch("a") as watch, trio.fail_after(1):
            await rig.node.control.cancel("a")
            await watch.ended()
        await rig.node.control.resume("default")
        await trio.sleep(2 * later)
        job = await rig.job("a")

    assert (job.status, job.state.attempt, rig.actor.runs) == (Status.CANCELLED, 0, [])


@pytest.mark.parametrize("others", [0, 2])
async def test_a_job_that_waits_in_the_channel_is_cancelled_at_once(autojump_clock, others) -> None:
    """Though every worker is busy for long: it never begins, and the worker passes over it."""
    async with running(workers=1, queue_size=4) as rig:
        await rig.add(new_job("long", ("sleep", 1000)))
        await rig.actor.begun()
        await rig.add(*(new_job(job_id) for job_id in ["x", "a", "y"][: others + 1]), new_job("b"))
        await trio.testing.wait_all_tasks_blocked()
        target = "a" if others else "x"
        begun = trio.current_time()
        await rig.node.control.cancel(target)
        job = await rig.ended(target)
        took = trio.current_time() - begun
        last = await rig.ended("b")

    assert (job.status, job.state.attempt, job.attempts, took) == (Status.CANCELLED, 0, (), 0)
    assert last.status is Status.DONE
    assert target not in rig.actor.order()
    assert len(rig.actor.runs) == 2 + others


# --- cancel: what runs ------------------------------------------------------------------------------------------------


async def test_a_running_job_is_cancelled_when_its_cleanup_has_ended(autojump_clock) -> None:
    """Its child tasks and their cleanup come first; until then it is `cancelling`."""
    async with running() as rig:
        await rig.enqueue("a", ("hang", 7))
        await rig.actor.begun()
        await trio.sleep(1)
        change = await rig.node.control.cancel("a")
        asked = trio.current_time()
        await trio.sleep(6)
        meanwhile = await rig.job("a")
        job = await rig.ended("a")
        took = trio.current_time() - asked

    assert change.job is not None
    assert (change.verdict, change.job.status) == ("changed", Status.CANCELLING)
    assert meanwhile.status is Status.CANCELLING
    assert (job.status, job.state.attempt, job.state.error, took) == (Status.CANCELLED, 1, None, 7)
    assert [one.outcome for one in job.attempts] == [Outcome.CANCELLED]


async def test_a_cancel_twice_is_one(autojump_clock) -> None:
    """The second finds the first; the cleanup runs once."""
    async with running() as rig:
        await rig.enqueue("a", ("hang", 7))
        await rig.actor.begun()
        changes = [await rig.node.control.cancel("a")]
        await trio.sleep(1)
        changes.append(await rig.node.control.cancel("a"))
        job = await rig.ended("a")
        changes.append(await rig.node.control.cancel("a"))

    assert [change.verdict for change in changes] == ["changed", "changed", "refused"]
    assert job.status is Status.CANCELLED


async def test_what_the_cleanup_of_a_cancelled_job_raises_is_kept(autojump_clock) -> None:
    """The job is cancelled all the same, and not tried again."""
    async with running() as rig:
        await rig.enqueue("a", "spoil")
        await rig.actor.begun()
        await rig.node.control.cancel("a")
        job = await rig.ended("a")

    assert (job.status, job.state.attempt) == (Status.CANCELLED, 1)
    assert job.state.error is not None
    assert (job.state.error.type, job.state.error.message) == ("OSError", "the cleanup failed")


@pytest.mark.parametrize(
    "word", [Retry(after=1), Snooze(1), Fail("no"), SystemExit()], ids=lambda word: type(word).__name__
)
async def test_a_cancelled_job_is_cancelled_whatever_its_handler_says_to_it(autojump_clock, word) -> None:
    """No word of the handler outlives the wish to cancel, except that it is done."""

    async def object_to(payload: Any) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise word

    handler = Handler(kind="odd", function=object_to, is_async=True, takes_context=False)
    async with running(handlers=[handler]) as rig:
        await rig.enqueue("a", kind="odd")
        await trio.sleep(1)
        await rig.node.control.cancel("a")
        job = await rig.ended("a")
        await trio.sleep(100)
        later = await rig.job("a")

    assert job.status is Status.CANCELLED
    assert later == job


async def test_a_handler_that_returns_in_spite_of_a_cancel_is_done(autojump_clock) -> None:
    """The work is done, and its result is kept."""
    async with running() as rig:
        await rig.enqueue("a", ("stubborn", 10))
        await rig.actor.begun()
        await rig.node.control.cancel("a")
        job = await rig.ended("a")

    assert (job.status, job.state.result) == (Status.DONE, b'"ok"')


@pytest.mark.parametrize(
    ("step", "status"), [("done", Status.DONE), ("fail", Status.FAILED), (("retry", 1), Status.CANCELLED)]
)
async def test_a_cancel_that_comes_after_the_handler_ended_changes_no_end(
    autojump_clock, step, status
) -> None:
    """Done wins, and failed too; only a job that would run again is cancelled instead."""
    store = FaultyStore()
    async with running(store) as rig:
        store.before = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.enqueue, "a", step)
            await trio.testing.wait_all_tasks_blocked()
            store.before.set()
            store.before = trio.Event()  # holds up the outcome
        await rig.actor.begun()
        await trio.testing.wait_all_tasks_blocked()
        held = list(rig.node.held)
        change = await rig.node.control.cancel("a")
        store.before.set()
        job = await rig.ended("a")
        await trio.sleep(100)
        later = await rig.job("a")

    assert held == []
    assert change.job is not None
    assert change.job.status is Status.CANCELLING
    assert (job.status, later) == (status, job)


@pytest.mark.parametrize("on_crash", ["retry", "fail"])
@pytest.mark.parametrize("moment", range(25))
async def test_no_cancel_is_lost_in_whatever_moment_it_comes(autojump_clock, moment, on_crash) -> None:
    """From the commit that stores the job, over its claim and its start, to its run: it is stopped."""
    async with running(lease=3600) as rig:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.enqueue, "a", ("hang", 0))
            await turns(moment)
            while (await rig.node.control.cancel("a")).verdict == "absent":
                await turns(1)
        with trio.fail_after(10):
            job = await rig.ended("a")

    assert job.status is Status.CANCELLED
    assert len(rig.actor.runs) == job.state.attempt


async def test_a_job_cancelled_while_its_start_is_stored_never_begins(autojump_clock) -> None:
    """One that asked for a stored start: it is not too late until the handler runs."""
    store = FaultyStore()
    async with running(store) as rig:
        store.after = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: rig.enqueue("a", options=Options(on_crash="fail")))
            await trio.testing.wait_all_tasks_blocked()
            store.after.set()
            store.after = trio.Event()
        await trio.testing.wait_all_tasks_blocked()
        begun = await rig.job("a")
        await rig.node.control.cancel("a")
        store.after.set()
        job = await rig.ended("a")

    assert begun.status is Status.RUNNING
    assert (job.status, rig.actor.runs) == (Status.CANCELLED, [])


async def test_a_cancel_that_cannot_be_stored_stops_nothing(autojump_clock) -> None:
    """Its asker is told; otherwise a crash would forget what was promised."""
    store = FaultyStore()
    async with running(store, expected=["the store cannot write"]) as rig:
        await rig.enqueue("a", ("sleep", 10))
        await rig.actor.begun()
        store.broken = True
        with pytest.raises(StoreUnavailable):
            await rig.node.control.cancel("a")
        await trio.sleep(1)
        store.broken = False
        job = await rig.ended("a")

    assert job.status is Status.DONE


async def test_a_cancel_of_no_job_is_told_so(autojump_clock) -> None:
    """And of one that has ended."""
    async with running() as rig:
        absent = await rig.node.control.cancel("a")
        await rig.enqueue("a")
        await rig.ended("a")
        refused = await rig.node.control.cancel("a")

    assert (absent.verdict, absent.job) == ("absent", None)
    assert refused.job is not None
    assert (refused.verdict, refused.job.status) == ("refused", Status.DONE)


# --- retry, promote, delete -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["done", "failed", "cancelled"])
async def test_a_job_that_has_ended_can_be_run_again(autojump_clock, end) -> None:
    """At once, with all its retries, and with its earlier attempts on record."""
    async with running() as rig:
        await rig.enqueue("a", "fail" if end == "failed" else ("sleep", 5), "error", "done")
        await rig.actor.begun()
        if end == "cancelled":
            await rig.node.control.cancel("a")
        first = await rig.ended("a")
        change = await rig.node.control.retry("a")
        again = await rig.ended("a")

    assert first.status == end
    assert change.job is not None
    assert (change.job.status, change.job.state.attempt) == (Status.QUEUED, 0)
    assert (again.status, again.state.attempt, again.state.result) == (Status.DONE, 2, b'"ok"')
    assert len(again.attempts) == 3
    assert again.state.claim > first.state.claim


async def test_a_job_that_has_not_ended_cannot_be_run_again(autojump_clock) -> None:
    """Neither while it waits nor while it runs."""
    async with running() as rig:
        await rig.enqueue("a", ("sleep", 5), run_at=rig.node.clock.now() + 5)
        waiting = await rig.node.control.retry("a")
        await rig.actor.begun()
        active = await rig.node.control.retry("a")
        job = await rig.ended("a")

    assert (waiting.verdict, active.verdict) == ("refused", "refused")
    assert (job.status, len(rig.actor.runs)) == (Status.DONE, 1)


@pytest.mark.parametrize("step", ["done", ("retry", 1000)])
async def test_a_promoted_job_runs_at_once(autojump_clock, step) -> None:
    """Whether it waited for its time or for its next attempt."""
    async with running() as rig:
        await rig.enqueue("a", step, "done", run_at=rig.node.clock.now() + (60 if step == "done" else 0))
        await trio.sleep(10)
        begun = trio.current_time()
        change = await rig.node.control.promote("a")
        job = await rig.ended("a")
        took = trio.current_time() - begun

    assert change.job is not None
    assert (change.verdict, change.job.status) == ("changed", Status.QUEUED)
    assert (job.status, took < 1) == (Status.DONE, True)


async def test_a_job_can_be_deleted_unless_a_node_holds_it(autojump_clock) -> None:
    """Waiting or ended; a held one, also when it only waits in the channel, must be cancelled first."""
    async with running(workers=1, queue_size=1) as rig:
        await rig.enqueue("runs", ("sleep", 10))
        await rig.actor.begun()
        await rig.enqueue("channel")
        await rig.enqueue("waits")
        await trio.testing.wait_all_tasks_blocked()
        early = [
            (await rig.node.control.delete(job_id)).verdict
            for job_id in ("runs", "channel", "waits", "absent")
        ]
        await rig.ended("channel")
        late = [(await rig.node.control.delete(job_id)).verdict for job_id in ("runs", "channel")]
        gone = await rig.store.get("runs")

    assert early == ["refused", "refused", "changed", "absent"]
    assert (late, gone) == (["changed", "changed"], None)
    assert rig.actor.order() == ["runs", "channel"]


async def test_a_deleted_id_is_free_again(autojump_clock) -> None:
    """A new job may have it, and has no past."""
    async with running() as rig:
        await rig.enqueue("a", "fail")
        await rig.ended("a")
        await rig.node.control.delete("a")
        await rig.enqueue("a")
        job = await rig.ended("a")

    assert (job.status, job.state.claim, len(job.attempts)) == (Status.DONE, 1, 1)
    assert job.status in ENDED


async def test_who_waits_for_a_job_is_woken_when_it_is_deleted(autojump_clock) -> None:
    async with running() as rig:
        await rig.node.control.pause("default")
        await rig.enqueue("a")
        with rig.node.events.watch("a") as watch, trio.fail_after(1):
            await rig.node.control.delete("a")
            await watch.ended()
        gone = await rig.store.get("a")

    assert gone is None


# --- lines of the log -------------------------------------------------------------------------------------------------


async def test_each_act_of_a_person_has_a_line_that_names_what_it_was_about(autojump_clock) -> None:
    """What did nothing has none."""
    async with running() as rig:
        control = rig.node.control
        await control.pause("default")
        await rig.enqueue("a")
        for act in (control.cancel, control.cancel, control.retry, control.retry, control.cancel):
            await act("a")
        await rig.enqueue("b", run_at=rig.node.clock.now() + 60)
        await control.promote("b")
        await control.promote("absent")
        await control.delete("a")
        await control.delete("a")
        await control.resume("default")
        told = [(line["event"], line.get("job") or line["queue"]) for line in rig.log]

    assert {line["log_level"] for line in rig.log} == {"info"}
    assert told == [
        ("queue paused", "default"),
        ("cancel requested", "a"),
        ("retry requested", "a"),
        ("cancel requested", "a"),
        ("promote requested", "b"),
        ("job deleted", "a"),
        ("queue resumed", "default"),
    ]


async def test_a_thousand_acts_have_few_lines(autojump_clock) -> None:
    """With how many more there were."""
    async with running() as rig:
        for _ in range(1000):
            await rig.node.control.pause("default")
        await trio.sleep(2)
        await rig.node.control.pause("default")

        assert len(rig.log) == ACTS + 1
        assert rig.log[-1]["more"] == 1000 - ACTS
