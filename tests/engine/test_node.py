"""A node from its first lease to the end of its drain: what becomes of every job, whatever happens."""

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from trio.testing import MockClock

from jobpipe.clock import VirtualClock
from jobpipe.engine import outcomes
from jobpipe.engine.node import CLEANUP, Node, node_name
from jobpipe.engine.outcomes import Verdict
from jobpipe.handlers.registry import Registry
from jobpipe.job import ENDED, Backoff, JobError, NewJob, Options, Outcome, Status
from jobpipe.settings import Settings
from jobpipe.store.memory import MemoryStore
from tests.engine.conftest import DAY, NOW, PLAIN, Actor, FaultyStore, Rig, Step, claimed, new_job, running

LEASE = 15.0
UNWRITTEN = ["the last outcomes could not be written", "the store cannot write"]


class DurableStore(MemoryStore):
    """Says that what waits in it survives the process, as with SQLite."""

    durable = True


async def test_a_job_runs_and_is_done(autojump_clock) -> None:
    """From the enqueue to the result."""
    async with running() as rig:
        await rig.enqueue("a")
        job = await rig.ended("a")

    assert (job.status, job.state.result, job.state.attempt, job.state.error) == (
        Status.DONE,
        b'"ok"',
        1,
        None,
    )
    assert [(one.number, one.node, one.outcome) for one in job.attempts] == [(1, "n1", Outcome.DONE)]


async def test_a_running_job_is_shown_as_running(autojump_clock) -> None:
    """From the commit that holds its start, a moment after the handler began."""
    async with running() as rig:
        await rig.enqueue("a", ("sleep", 10))
        await rig.actor.begun()
        await trio.sleep(1)
        job = await rig.job("a")
        busy = rig.node.held.busy
        await rig.ended("a")

    assert (job.status, job.state.attempt, job.state.started_at, busy) == (Status.RUNNING, 1, NOW, 1)
    assert rig.node.held.busy == 0


def test_no_two_nodes_have_one_name() -> None:
    """Not even those of one process, or of the same process number after a restart."""
    assert len({node_name() for _ in range(100)}) == 100


# --- drain and stop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", [MemoryStore, DurableStore])
async def test_a_drain_waits_for_what_runs_and_takes_nothing_new(autojump_clock, store) -> None:
    """And returns as soon as that has ended, long before the grace is over."""
    async with running(store(), grace=1000) as rig:
        await rig.enqueue("a", ("sleep", 10))
        await rig.enqueue("later", run_at=NOW + 5)
        await rig.actor.begun()
        begun = trio.current_time()
        await rig.drained()
        took = trio.current_time() - begun
        jobs = [await rig.job("a"), await rig.job("later")]

    assert took == 10
    assert [(job.status, job.state.attempt) for job in jobs] == [(Status.DONE, 1), (Status.QUEUED, 0)]
    assert rig.actor.order() == ["a"]
    assert rig.node.account() == {"finished": 1, "handed_back": 0, "abandoned": []}


async def test_a_job_that_waits_for_its_retry_does_not_hold_up_a_drain(autojump_clock) -> None:
    """It is in the store, with its attempts counted."""
    async with running() as rig:
        await rig.enqueue("a", ("retry", 100))
        await rig.actor.begun()
        begun = trio.current_time()
        await rig.drained()
        took = trio.current_time() - begun
        job = await rig.job("a")

    assert (took, job.status, job.state.attempt) == (0, Status.RETRYING, 1)


async def test_when_the_grace_runs_out_what_runs_is_interrupted(autojump_clock) -> None:
    """Its cleanup runs to its end, the job goes back to the store, and the attempt does not count."""
    async with running(grace=30) as rig:
        await rig.enqueue("short", ("sleep", 20))
        await rig.enqueue("long", ("hang", 4))
        await rig.actor.begun(2)
        await trio.sleep(1)
        begun = trio.current_time()
        await rig.drained()
        took = trio.current_time() - begun
        short, long = await rig.job("short"), await rig.job("long")

    assert took == 34
    assert (short.status, short.state.attempt) == (Status.DONE, 1)
    assert (long.status, long.state.attempt, long.state.error) == (Status.QUEUED, 0, None)
    assert [one.outcome for one in long.attempts] == [Outcome.INTERRUPTED]
    assert rig.node.account() == {"finished": 1, "handed_back": 1, "abandoned": []}


async def test_a_stop_during_the_drain_ends_the_grace(autojump_clock) -> None:
    """As at the second signal."""
    async with running(grace=1000) as rig:
        await rig.enqueue("a", ("hang", 1))
        await rig.actor.begun()
        begun = trio.current_time()
        rig.node.drain()
        await trio.sleep(5)
        rig.node.stop()
        rig.node.stop()
        await rig.over.wait()
        took = trio.current_time() - begun
        job = await rig.job("a")

    assert (took, job.status, job.state.attempt) == (6, Status.QUEUED, 0)


async def test_a_handler_that_finishes_in_spite_of_the_stop_is_done(autojump_clock) -> None:
    """Its work is not thrown away."""
    async with running() as rig:
        await rig.enqueue("a", ("stubborn", 3))
        await rig.actor.begun()
        rig.node.stop()
        await rig.over.wait()
        job = await rig.job("a")

    assert (job.status, job.state.attempt) == (Status.DONE, 1)
    assert rig.node.account() == {"finished": 1, "handed_back": 0, "abandoned": []}


async def test_a_cancelled_job_is_cancelled_though_the_node_stops_meanwhile(autojump_clock) -> None:
    """The first reason counts, and the wish is in the store."""
    async with running() as rig:
        await rig.enqueue("a", ("hang", 3))
        await rig.actor.begun()
        await rig.node.control.cancel("a")
        rig.node.stop()
        await rig.over.wait()
        job = await rig.job("a")

    assert (job.status, job.state.attempt) == (Status.CANCELLED, 1)


async def test_a_wish_to_cancel_may_come_while_the_node_stops(autojump_clock) -> None:
    """The interrupted job does not wait again then."""
    async with running() as rig:
        await rig.enqueue("a", ("hang", 3))
        await rig.actor.begun()
        rig.node.stop()
        await trio.sleep(1)
        await rig.node.control.cancel("a")
        await rig.over.wait()
        job = await rig.job("a")

    assert job.status is Status.CANCELLED


async def test_a_drain_that_comes_before_the_start_is_over_is_a_drain(autojump_clock) -> None:
    """As when the signal comes while the store opens: the node ends without having run anything."""
    store = MemoryStore()
    node = Node(Settings(), store, Registry([Actor().handler]), VirtualClock(NOW), name="n1")
    phases = [node.phase]
    node.drain()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.run)
        for _ in range(20):
            phases.append(node.phase)
            await trio.lowlevel.checkpoint()

    assert set(phases[1:]) == {"draining", "stopped"}
    assert node.phase == "stopped"


async def test_who_waits_for_a_job_is_woken_when_the_node_ends(autojump_clock) -> None:
    """Since it can tell no more."""
    async with running() as rig:
        await rig.enqueue("a", run_at=NOW + DAY)
        with rig.node.events.watch("a") as watch, trio.fail_after(10):
            await rig.drained()
            await watch.ended()
        job = await rig.job("a")

    assert job.status is Status.SCHEDULED


async def test_a_node_leaves_when_it_has_ended(autojump_clock) -> None:
    """Its lease need not run out before others know."""
    store = MemoryStore()
    async with running(store) as rig:
        await rig.drained()

    assert store._db.execute("select name from nodes where lease_until is not null").fetchall() == []


# --- the account ------------------------------------------------------------------------------------------------------


async def test_handlers_that_ignore_their_cancel_are_abandoned_by_name(autojump_clock) -> None:
    """Their jobs go back to the store; what they come to later is neither written nor counted."""
    async with running(grace=5) as rig:
        await rig.enqueue("finished", ("sleep", 3))
        await rig.enqueue("ended", ("hang", 1))
        await rig.enqueue("stuck", ("stubborn", 13))
        await rig.actor.begun(3)
        rig.node.drain()
        await trio.sleep(5 + CLEANUP)
        abandoned = rig.node.abandon()
        await rig.node.settle_up()
        account = rig.node.account(abandoned)
        handed_back = await rig.job("stuck")
        await rig.over.wait()
        job = await rig.job("stuck")

    assert account == {"finished": 1, "handed_back": 1, "abandoned": ["stuck (act)"]}
    assert (handed_back.status, handed_back.state.attempt) == (Status.QUEUED, 0)
    assert job == handed_back
    assert rig.node.account(abandoned) == account
    assert rig.node.ledger.stale == 0


async def test_the_account_begins_with_the_drain(autojump_clock) -> None:
    """What had ended before is not part of it."""
    async with running() as rig:
        for job_id in "abc":
            await rig.enqueue(job_id)
            await rig.ended(job_id)
        await rig.enqueue("d", ("sleep", 3))
        await rig.actor.begun(4)
        await rig.drained()

    assert rig.node.account() == {"finished": 1, "handed_back": 0, "abandoned": []}


# --- a store that fails -----------------------------------------------------------------------------------------------


async def test_trouble_with_the_store_loses_no_outcome(autojump_clock) -> None:
    """Jobs end while nothing can be written; their outcomes are stored later, and no handler runs twice."""
    store = FaultyStore()
    async with running(store, workers=10, lease=3600, expected=["the store cannot write"]) as rig:
        await rig.add(*(new_job(str(number), ("sleep", number)) for number in range(10)))
        await rig.actor.begun(10)
        await trio.sleep(0.5)
        store.broken = True
        await trio.sleep(20)
        trouble, running_still = rig.node.ledger.trouble, rig.node.held.busy
        store.broken = False
        jobs = [await rig.ended(str(number)) for number in range(10)]

    assert (trouble, running_still) == ("disk full", 0)
    assert {(job.status, job.state.attempt) for job in jobs} == {(Status.DONE, 1)}
    assert len(rig.actor.runs) == 10
    assert rig.node.ledger.trouble is None


async def test_a_store_that_recovers_during_the_last_writes_gets_them(autojump_clock) -> None:
    """The node waits for it as long as for a cleanup."""
    store = FaultyStore()
    async with running(store, lease=3600, expected=["the store cannot write"]) as rig:
        await rig.enqueue("a", ("sleep", 10))
        await rig.actor.begun()
        await trio.sleep(1)
        store.broken = True
        rig.node.drain()
        await trio.sleep(9 + CLEANUP / 2)
        store.broken = False
        await rig.over.wait()
        job = await rig.job("a")

    assert (job.status, job.state.attempt) == (Status.DONE, 1)


async def test_a_store_that_fails_to_the_end_ends_the_node_all_the_same(autojump_clock) -> None:
    """It says that the job will run again, and that is what happens."""
    store, actor, clock = FaultyStore(), Actor(), VirtualClock(NOW)
    with capture_logs() as log:
        async with running(store, actor=actor, clock=clock, lease=LEASE, expected=UNWRITTEN) as rig:
            await rig.enqueue("a", ("sleep", 3), "done")
            await actor.begun()
            await trio.sleep(1)
            store.broken = True
            rig.node.drain()
            await rig.over.wait()
            store.broken = False
            rig.life.cancel()  # it still holds the job, as after a crash
            lines = rig.logged("the last outcomes")
    await trio.sleep(2 * LEASE)
    async with running(store, actor=actor, clock=clock, name="n2") as rig:
        job = await rig.ended("a")

    assert [line["error"] for line in lines] == ["disk full"]
    assert log == []
    assert (job.status, job.state.attempt, len(actor.runs)) == (Status.DONE, 2, 2)


async def test_a_node_whose_store_fails_at_the_start_does_not_start(autojump_clock) -> None:
    """Whoever starts it is told why."""
    store = FaultyStore()
    store.broken = True
    node = Node(Settings(), store, Registry([]), VirtualClock(NOW))
    with pytest.raises(Exception, match="disk full"):
        await node.run()

    assert node.phase == "starting"


# --- random lives -----------------------------------------------------------------------------------------------------

STEPS: list[Step] = ["done", "error", "fail", ("retry", 5), ("snooze", 3), ("sleep", 2)]
SAID: dict[Step, Verdict] = {
    "done": Verdict(Outcome.DONE),
    "error": Verdict(Outcome.RETRY, error=JobError("", "")),
    "fail": Verdict(Outcome.FAIL, error=JobError("", "")),
    ("retry", 5): Verdict(Outcome.RETRY, error=JobError("", ""), after=5),
    ("snooze", 3): Verdict(Outcome.SNOOZE, after=3),
    ("sleep", 2): Verdict(Outcome.DONE),
}
QUICK = settings(max_examples=40, deadline=None)


def foretold(script: Sequence[Step], retries: int) -> tuple[Status, int, list[float]]:
    """How a job ends and when its attempts begin, by the pure functions alone."""
    now, attempt, began = NOW, 0, []
    for step in [*script, "done"]:
        began.append(round(now - NOW, 3))
        one = outcomes.settlement(
            claimed(attempt=attempt, max_retries=retries),
            SAID[step],
            started_at=now,
            now=now,
            policy=PLAIN.backoff or Backoff(),
            random=lambda: 0,
        )
        attempt = one.attempt
        if one.status in ENDED:
            return one.status, attempt, began
        now = one.run_at or now
    raise AssertionError


def in_virtual_time(life: Any, *arguments: Any) -> Any:
    return trio.run(life, *arguments, clock=MockClock(autojump_threshold=0))


@given(st.lists(st.sampled_from(STEPS), max_size=8), st.integers(0, 4))
@QUICK
def test_a_job_lives_as_the_pure_functions_say(script: list[Step], retries: int) -> None:
    """Whatever its attempts come to: the same end, the same count, the same times."""

    async def life() -> tuple[Status, int, list[float]]:
        async with running(lease=3600) as rig:
            await rig.enqueue("a", *script, "done", max_retries=retries, options=PLAIN)
            job = await rig.ended("a")
        return job.status, job.state.attempt, rig.actor.began()

    assert in_virtual_time(life) == foretold(script, retries)


SCRIPTS = st.lists(st.sampled_from([*STEPS, ("sleep", 20), ("hang", 1)]), max_size=3)
ENDS = st.lists(st.tuples(st.sampled_from(["drain", "stop", "kill"]), st.floats(0, 30)), max_size=4)


@given(st.lists(SCRIPTS, min_size=1, max_size=12), ENDS, st.integers(1, 3), st.sampled_from([0, 1, 5]))
@QUICK
def test_no_job_is_lost_whatever_happens_to_its_nodes(
    scripts: list[list[Step]], ends: list[tuple[str, float]], workers: int, size: int
) -> None:
    """One node after another drains, stops or dies at some moment: in the end every job has ended."""

    async def life() -> None:
        store, actor, clock = DurableStore(), Actor(), VirtualClock(NOW)
        shape: dict[str, Any] = {"workers": workers, "queue_size": size, "lease": LEASE, "grace": 5}
        jobs = [_job(str(number), script) for number, script in enumerate(scripts)]
        for number, (end, seconds) in enumerate(ends):
            async with running(store, actor=actor, clock=clock, name=f"n{number}", **shape) as rig:
                await rig.add(*(jobs.pop() for _ in range(min(4, len(jobs)))))
                await trio.sleep(seconds)
                held = len(list(rig.node.held))
                await _end(rig, end)
                _check(rig, end, held, workers + size)
        async with running(store, actor=actor, clock=clock, name="last", patience=3000, **shape) as rig:
            await rig.add(*jobs)
            for number in range(len(scripts)):
                await rig.ended(str(number))
            statuses = await rig.statuses()

        assert set(statuses) <= {Status.DONE, Status.FAILED}
        assert sum(statuses.values()) == len(scripts)

    in_virtual_time(life)


def _job(job_id: str, script: list[Step]) -> NewJob:
    """A job that is done in the end, however often its node dies before."""
    return new_job(
        job_id, *script, "done", max_retries=20, options=Options(timeout=25, backoff=PLAIN.backoff)
    )


async def _end(rig: Rig, end: str) -> None:
    match end:
        case "drain":
            await rig.drained()
        case "stop":
            rig.node.stop()
            await rig.over.wait()
        case _:
            await rig.kill()


def _check(rig: Rig, end: str, held: int, coming: int) -> None:
    """After an orderly end all that was held, and what was just being claimed, is accounted for."""
    if end == "kill":
        return
    account: dict[str, Any] = rig.node.account()

    assert held <= account["finished"] + account["handed_back"] <= held + coming
