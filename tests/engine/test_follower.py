"""What follows the ends of jobs, by a node that works: releases, cascades, and what another node has left."""

import itertools
from collections.abc import Sequence
from typing import Any

import trio
from msgspec.structs import replace

from jobpipe.clock import VirtualClock
from jobpipe.engine.follower import LONGEST_PAUSE
from jobpipe.errors import StoreUnavailable
from jobpipe.job import GroupOutcome, NewJob, Options, Status
from jobpipe.store.base import Changed, Followed, NewGroup
from jobpipe.store.memory import MemoryStore
from jobpipe.store.verbs.followers import LEVELS, MOST
from tests.engine.conftest import DAY, NOW, FaultyStore, Step, new_job, running


def after(
    job_id: str, depends_on: Sequence[str], *steps: Step, needs: Any = "done", **changes: Any
) -> NewJob:
    plain = new_job(job_id, *steps, **changes)
    return replace(plain, options=replace(plain.options, depends_on=tuple(depends_on), needs=needs))


async def enqueue(rig: Any, *jobs: NewJob) -> None:
    receipts = await rig.node.backlog.enqueue_dependents(jobs, atomic=True)
    assert {one.verdict for one in receipts} == {"stored"}


async def test_jobs_run_in_the_order_of_their_dependencies(autojump_clock) -> None:
    """Retries of one included; the next begins as soon as the last has ended."""
    async with running(workers=4) as rig:
        await enqueue(
            rig,
            new_job("a", ("sleep", 2.0)),
            new_job("b", "error", ("sleep", 1.0)),
            after("c", ["a", "b"], ("sleep", 1.0)),
            after("d", ["c"]),
        )
        job = await rig.ended("d")
        runs = {run.id: run for run in rig.actor.runs}

    assert job.status is Status.DONE
    assert runs["c"].began >= max(runs["a"].ended or 0.0, runs["b"].ended or 0.0)
    assert runs["d"].began - (runs["c"].ended or 0.0) < 0.1


async def test_a_cascade_of_thousands_is_done_in_steps_and_told(autojump_clock) -> None:
    """Who waits for the last of them hears of it, though no job there has run."""
    async with running(workers=4) as rig:
        many = [f"x{number}" for number in range(3 * MOST)]
        deep = [f"y{number}" for number in range(2 * LEVELS)]
        chain = zip(deep, ["a", *deep], strict=False)
        await enqueue(
            rig,
            new_job("a", "fail"),
            *(after(job_id, ["a"]) for job_id in many),
            *(after(job_id, [before]) for job_id, before in chain),
            after("cleanup", [many[-1], deep[-1]], needs="ended"),
        )
        done = await rig.ended("cleanup")
        statuses = await rig.statuses()

    assert done.status is Status.DONE
    assert statuses == {Status.FAILED: 1, Status.CANCELLED: len(many) + len(deep), Status.DONE: 1}


async def test_what_another_node_has_left_is_done_at_the_start(autojump_clock) -> None:
    """After a crash between two steps."""
    store = MemoryStore()
    await store.join("dead", NOW - 9, NOW - 5, frozenset({"act"}))
    await store.add_dependents(
        [new_job("a"), *(after(f"x{number}", ["a"]) for number in range(MOST + 10))], atomic=True
    )
    await store.cancel(["a"], NOW - 5)
    before = (await store.overview(frozenset())).counts
    async with running(store) as rig:
        await rig.ended(f"x{MOST + 9}")
        statuses = await rig.statuses()

    assert before == {Status.BLOCKED: 10, Status.CANCELLED: MOST + 1}
    assert statuses == {Status.CANCELLED: MOST + 11}


class Reluctant(FaultyStore):
    """One whose `follow` says for a while that others have locked what is left, or that it cannot write."""

    def __init__(self) -> None:
        super().__init__()
        self.script: list[Any] = []
        self.looks: list[float] = []

    async def follow(self, now: float) -> Followed:
        self.looks.append(trio.current_time())
        if self.script:
            await trio.lowlevel.checkpoint()
            match self.script.pop(0):
                case Exception() as error:
                    raise error
                case Followed() as followed:
                    return followed
        return await super().follow(now)


async def test_what_is_left_is_tried_again_soon_and_then_less_often(autojump_clock) -> None:
    """Whether it is locked, cannot be written, or something is wrong that nobody foresaw: the node lives."""
    store = Reluctant()
    async with running(store, expected=["unforeseen"], lease=15) as rig:
        store.script = [
            *[Followed(more=True)] * 4,
            StoreUnavailable("disk full"),
            KeyError("x"),
            *[Followed(more=True)] * 10,
            Followed([Changed("a", Status.QUEUED)], more=True),
        ]
        rig.node.follower.wake()
        await trio.sleep(14)
        looks = store.looks[1:]
        pauses = [round(later - sooner, 6) for sooner, later in itertools.pairwise(looks)]

    assert len(looks) >= 17
    assert pauses[0] < 0.1
    assert max(pauses[:15]) <= LONGEST_PAUSE + 0.1
    assert pauses == sorted(pauses[:15]) + pauses[15:]
    assert rig.logged("could not go on with jobs that waited for others")
    assert rig.logged("unforeseen exception")


async def test_a_node_without_such_jobs_looks_once_in_a_lease(autojump_clock) -> None:
    store = Reluctant()
    async with running(store, lease=15) as rig:
        await rig.enqueue("a")
        await rig.ended("a")
        await rig.enqueue("b", ("sleep", 1000.0))
        await rig.node.control.cancel("b")
        await trio.sleep(149)

    assert len(store.looks) == 10


async def test_new_jobs_wait_in_the_order_of_the_batch(autojump_clock) -> None:
    """A cancel by hand of one that others wait for reaches those who wait for these here, at once."""
    async with running() as rig:
        now = rig.node.clock.now()
        await enqueue(rig, new_job("a", run_at=now + DAY), after("x", ["a"]), after("y", ["x"]))
        with rig.node.events.watch("y") as watch:
            await rig.node.control.cancel("a")
            with trio.fail_after(0.5):
                await watch.ended()
        y = await rig.job("y")

    assert y.status is Status.CANCELLED


async def test_a_rescue_is_followed(autojump_clock) -> None:
    """The job of a dead node that fails takes those with it that need it."""
    store = MemoryStore()
    async with running(store, name="n1") as rig:
        await enqueue(rig, new_job("a", ("sleep", 1000.0), max_retries=0), after("x", ["a"]))
        await rig.actor.begun()
        await trio.sleep(1)
        await rig.kill()
    async with running(store, name="n2") as rig:
        x = await rig.ended("x")

    assert x.status is Status.CANCELLED
    assert x.state.error is not None
    assert x.state.error.message == "the job depends on 'a', which has failed"


async def put_group(
    rig: Any, group_id: str, *jobs: NewJob, on_failure: Any = "go_on", then: Step = "done"
) -> None:
    """Store a group, whose callback is `GROUP.then`."""
    new = NewGroup(
        id=group_id,
        on_failure=on_failure,
        jobs=[replace(job, options=replace(job.options, group=group_id)) for job in jobs],
        then=new_job(f"{group_id}.then", then, options=Options(callback_of=group_id)),
    )
    receipt = await rig.node.admission.enqueue_group(new)
    assert receipt.verdict == "stored"


async def test_a_group_is_called_back_once_when_all_have_ended(autojump_clock) -> None:
    """Retries included; soon after the last of them."""
    async with running(workers=3) as rig:
        await put_group(
            rig, "g", new_job("a", ("sleep", 2.0)), new_job("b", "error", ("sleep", 5.0)), new_job("c")
        )
        job = await rig.ended("g.then")
        runs = [run for run in rig.actor.runs if run.id == "g.then"]
        last = max(run.ended or 0.0 for run in rig.actor.runs if run.id != "g.then")

    assert (job.status, len(runs)) == (Status.DONE, 1)
    assert 0 <= runs[0].began - last < 0.1
    assert job.asked.options.outcome == GroupOutcome("g", 3, done=3)


async def test_a_group_that_cancels_stops_handlers_here(autojump_clock) -> None:
    """Whether the job that failed was settled, or was cancelled by hand."""
    async with running(workers=6) as rig:
        await put_group(rig, "g", new_job("a", ("sleep", 1.0), "fail", max_retries=0), on_failure="cancel")
        await put_group(
            rig,
            "h",
            new_job("b", "fail"),
            new_job("c", ("hang", 1.0)),
            new_job("d", run_at=NOW + 500),
            on_failure="cancel",
        )
        await put_group(
            rig, "i", new_job("e", ("hang", 1.0)), new_job("f", ("hang", 2.0)), on_failure="cancel"
        )
        begun = trio.current_time()
        await rig.ended("h.then")
        took = trio.current_time() - begun
        await rig.node.control.cancel("e")
        await rig.ended("i.then")
        outcomes = [(await rig.job(f"{name}.then")).asked.options.outcome for name in "hi"]
        await rig.ended("g.then")

    assert 1 <= took < 3
    assert outcomes == [GroupOutcome("h", 3, failed=1, cancelled=2), GroupOutcome("i", 2, cancelled=2)]


async def test_a_crash_calls_back_neither_early_nor_twice_nor_never(autojump_clock) -> None:
    """The node dies while the last member runs; another one takes it over."""
    store, clock = MemoryStore(), VirtualClock(NOW)
    async with running(store, clock=clock, name="n1", workers=2) as first:
        await put_group(first, "g", new_job("a"), new_job("b", ("sleep", 1000.0), "done"))
        await first.ended("a")
        await trio.sleep(1)
        await first.kill()
        between = (await first.job("g.then")).status
        async with running(store, clock=clock, name="n2") as second:
            await second.ended("g.then")
            runs = second.actor.order()

    assert between is Status.BLOCKED
    assert runs == ["b", "g.then"]
