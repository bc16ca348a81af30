"""What is claimed for the workers: how many, in which order, when."""

import pytest
import trio

from jobpipe.engine.batching import SETTLE_DELAY
from jobpipe.engine.prefetch import HOLD
from jobpipe.job import Options, Status
from jobpipe.store.memory import MemoryStore
from tests.engine.conftest import DAY, HOUR, NOW, Actor, FaultyStore, Rig, new_job, running


async def test_the_intake_claims_what_channel_and_workers_can_take(autojump_clock) -> None:
    """The rest waits in the store, where it can be seen, cancelled and taken by others."""
    async with running(workers=2, queue_size=3) as rig:
        await rig.add(*(new_job(str(number), "wait") for number in range(20)))
        await rig.actor.begun(2)
        await trio.testing.wait_all_tasks_blocked()
        held, waiting = len(list(rig.node.held)), rig.node.ledger.waiting
        rig.actor.gate.set()
        for number in range(20):
            await rig.ended(str(number))

    assert (held, waiting) == (5, 15)
    assert set(rig.actor.order()[:2]) == {"0", "1"}


async def test_priority_is_strict_without_a_buffer(autojump_clock) -> None:
    """With QUEUE_SIZE 0 a job is claimed when a worker is free for it: the highest priority of that moment."""
    async with running(workers=1, queue_size=0) as rig:
        await rig.enqueue("first", "wait")
        await rig.actor.begun(1)
        for priority in (0, -5, 7, 0, 100):
            await rig.enqueue(f"{priority}-{rig.node.ledger.commits}", priority=priority)
        rig.actor.gate.set()
        await trio.sleep(1)

    assert [job_id.rpartition("-")[0] for job_id in rig.actor.order()[1:]] == ["100", "7", "0", "0", "-5"]


async def test_jobs_are_claimed_by_priority_then_run_at_then_arrival(autojump_clock) -> None:
    """Whatever order they came in."""
    async with running(workers=1, queue_size=0) as rig:
        await rig.enqueue("first", "wait")
        await rig.actor.begun(1)
        await rig.add(
            new_job("late"),
            new_job("later"),
            new_job("earlier", run_at=NOW - 1),
            new_job("high", priority=1),
        )
        rig.actor.gate.set()
        await trio.sleep(1)

    assert rig.actor.order() == ["first", "high", "earlier", "late", "later"]


@pytest.mark.parametrize("size", [0, 1, 2, 64])
@pytest.mark.parametrize("workers", [1, 3])
async def test_every_size_of_channel_moves_every_job(autojump_clock, size, workers) -> None:
    """With and without a buffer, however many workers there are."""
    async with running(workers=workers, queue_size=size) as rig:
        await rig.add(*(new_job(str(number), ("sleep", number % 3)) for number in range(100)))
        for number in range(100):
            await rig.ended(str(number))

    assert sorted(rig.actor.order(), key=int) == [str(number) for number in range(100)]


# --- claims follow the run time ---------------------------------------------------------------------------------------


def durable(beside: MemoryStore | None = None) -> FaultyStore:
    """A store for which nothing is claimed that the workers do not soon come to."""
    store = FaultyStore(beside)
    store.durable = True
    return store


async def learned(rig: Rig, jobs: int = 50) -> None:
    """Let the node run short jobs, so that it claims many ahead."""
    await rig.add(*(new_job(f"short-{number}", ("sleep", 0.001)) for number in range(jobs)))
    for number in range(jobs):
        await rig.ended(f"short-{number}")


async def test_of_unknown_jobs_as_many_are_claimed_as_workers_are_free(autojump_clock) -> None:
    """Whatever QUEUE_SIZE is: nobody knows how long they take, and other nodes may be idle."""
    async with running(durable(), workers=3, queue_size=64) as rig:
        await rig.add(*(new_job(str(number), "wait") for number in range(20)))
        await rig.actor.begun(3)
        await trio.testing.wait_all_tasks_blocked()
        held, waiting = len(list(rig.node.held)), rig.node.ledger.waiting
        rig.actor.gate.set()
        for number in range(20):
            await rig.ended(str(number))

    assert (held, waiting) == (3, 17)


async def test_short_jobs_are_claimed_many_at_a_time(autojump_clock) -> None:
    """So that one commit pays for many of them."""
    store = durable()
    async with running(store, workers=2, queue_size=64) as rig:
        await learned(rig, 500)
        claims = [claim.limit for batch in store.batches for claim in batch.claims]

    assert max(claims) > 20
    assert len(claims) < 60


@pytest.mark.parametrize("size", [0, 1, 5])
async def test_no_more_is_claimed_ahead_than_the_channel_holds(autojump_clock, size) -> None:
    """QUEUE_SIZE stays the cap."""
    store, most = durable(), 0
    async with running(store, workers=2, queue_size=size) as rig:
        await rig.add(*(new_job(f"short-{number}", ("sleep", 0.001)) for number in range(200)))
        for number in range(200):
            await rig.ended(f"short-{number}")
            most = max(most, len(list(rig.node.held)))

    assert 2 <= most <= 2 + size


async def test_jobs_that_turn_out_to_be_long_go_back_within_two_tenths_of_a_second(autojump_clock) -> None:
    """Unspent; and they run where and when a worker is free."""
    async with running(durable(), workers=2, queue_size=64) as rig:
        await rig.add(
            *(new_job(f"short-{number}", ("sleep", 0.001)) for number in range(100)),
            *(new_job(f"long-{number}", ("sleep", 10)) for number in range(20)),
        )
        for number in range(100):
            await rig.ended(f"short-{number}")
        await rig.actor.begun(102)
        before = len(list(rig.node.held))
        await trio.sleep(2 * HOLD + SETTLE_DELAY + 0.001)
        after, waiting = len(list(rig.node.held)), await rig.job("long-19")
        for number in range(20):
            await rig.ended(f"long-{number}")

    assert before > 2
    assert after == 2
    assert (waiting.status, waiting.state.attempt) == (Status.QUEUED, 0)
    assert sorted(rig.actor.order()[100:]) == sorted(f"long-{number}" for number in range(20))


async def test_a_busy_pool_leaves_jobs_to_another_node(autojump_clock) -> None:
    """It begins with them as soon as it looks, though the first node could hold them all."""
    store = durable()
    actors = Actor(), Actor()
    async with running(store, actor=actors[0], workers=4) as first:
        await learned(first)
        await trio.sleep(1)
        await first.add(*(new_job(str(number), ("sleep", 0.3), created_at=NOW + 2) for number in range(16)))
        begun = trio.current_time()
        async with running(durable(store), actor=actors[1], workers=4, name="n2") as second:
            second.node.ledger.look()
            for number in range(16):
                await _ended_anywhere(store, str(number))
            took = trio.current_time() - begun

    ran = [len([run for run in actor.runs if not run.id.startswith("short")]) for actor in actors]
    assert ran == [8, 8]
    assert took < 0.8


async def _ended_anywhere(store: MemoryStore, job_id: str) -> None:
    while (job := await store.get(job_id)) is None or job.status is not Status.DONE:  # noqa: ASYNC110 - of another node nobody tells here
        await trio.sleep(0.01)


async def test_an_urgent_job_overtakes_what_has_not_begun(autojump_clock) -> None:
    """It waits for the next free worker, not for what was claimed before it came."""
    async with running(durable(), workers=4, queue_size=64) as rig:
        await learned(rig)
        await rig.add(*(new_job(str(number), ("sleep", 1), queue="reports") for number in range(60)))
        await trio.sleep(0.01)
        asked = trio.current_time()
        await rig.enqueue("urgent", queue="mail", priority=1000)
        await rig.ended("urgent")
        waited = next(run.began for run in rig.actor.runs if run.id == "urgent") - asked
        for number in range(60):
            await rig.ended(str(number))

    assert waited < 1.5


async def test_a_pool_that_was_idle_starts_to_learn_anew(autojump_clock) -> None:
    """What comes next may be of another kind: again only the free workers are served."""
    async with running(durable(), workers=2, queue_size=64) as rig:
        await learned(rig)
        await trio.sleep(2 * HOLD)
        await rig.add(*(new_job(str(number), ("sleep", 5)) for number in range(10)))
        await rig.actor.begun(52)
        held = len(list(rig.node.held))
        for number in range(10):
            await rig.ended(str(number))

    assert held == 2


async def test_without_a_buffer_nothing_is_timed(autojump_clock) -> None:
    """A node with busy workers and an empty channel sleeps until one of them is free."""
    store = durable()
    async with running(store, workers=2, lease=HOUR) as rig:
        await rig.add(*(new_job(str(number), ("sleep", 600)) for number in range(4)))
        await rig.actor.begun(2)
        await trio.sleep(1)
        store.batches.clear()
        await trio.sleep(500)
        batches = list(store.batches)
        for number in range(4):
            await rig.ended(str(number))

    assert batches == []


# --- when -------------------------------------------------------------------------------------------------------------


async def test_a_scheduled_job_starts_at_its_run_at(autojump_clock) -> None:
    """Exactly, also among others that come earlier and later."""
    began = {}
    async with running() as rig:
        start = trio.current_time()
        for seconds in (300, 100.25, 200, 100):
            await rig.enqueue(str(seconds), run_at=NOW + seconds)
        for seconds in (300, 100.25, 200, 100):
            await rig.ended(str(seconds))
        began = {run.id: round(run.began - start, 3) for run in rig.actor.runs}

    assert began == {"100": 100, "100.25": 100.25, "200": 200, "300": 300}


async def test_an_idle_node_asks_the_store_for_nothing_but_its_lease(autojump_clock) -> None:
    """No polling: in hours without jobs there are only heartbeats, and a claim rides with each."""
    store = FaultyStore()
    async with running(store, lease=3600) as rig:
        await trio.testing.wait_all_tasks_blocked()
        claims, store.batches[:] = rig.node.ledger.claims, []
        await trio.sleep(3 * HOUR)
        batches, still = list(store.batches), rig.node.ledger.claims

    assert {batch.lease_until is not None for batch in batches} == {True}
    assert 0 < len(batches) <= 3 * 3
    assert still == claims


async def test_every_claim_that_takes_something_is_counted(autojump_clock) -> None:
    """So that a probe of the node's health sees it work."""
    async with running() as rig:
        claims = [rig.node.ledger.claims]
        for job_id in "abc":
            await rig.enqueue(job_id)
            await rig.ended(job_id)
            claims.append(rig.node.ledger.claims)
        rig.node.ledger.look()
        await trio.sleep(1)
        nothing = rig.node.ledger.claims

    assert claims == sorted(set(claims))
    assert nothing == claims[-1]


async def test_a_paused_queue_waits_until_it_is_resumed(autojump_clock) -> None:
    """Others go on meanwhile, and what runs already too."""
    async with running(queue_size=0) as rig:
        await rig.enqueue("running", "wait", queue="mail")
        await rig.actor.begun(1)
        await rig.node.control.pause("mail")
        await rig.enqueue("a", queue="mail")
        await rig.enqueue("b", queue="other")
        rig.actor.gate.set()
        await rig.ended("running")
        await rig.ended("b")
        await trio.sleep(DAY / 10)
        waiting = await rig.job("a")
        await rig.node.control.resume("mail")
        job = await rig.ended("a")

    assert waiting.status is Status.QUEUED
    waited = (job.state.started_at or 0) - NOW
    assert job.status is Status.DONE
    assert DAY / 10 <= waited <= DAY / 10 + 2 * SETTLE_DELAY  # the outcomes before it wait a little
    assert rig.actor.order() == ["running", "b", "a"]


async def test_a_job_that_expires_in_line_never_runs(autojump_clock) -> None:
    """It ends at its expires_at, while a job of another worker blocks the way."""
    async with running(workers=1, queue_size=0) as rig:
        await rig.enqueue("long", ("sleep", 100))
        await rig.actor.begun(1)
        await rig.enqueue("a", expires_at=NOW + 50)
        await rig.ended("long")
        job = await rig.job("a")

    assert (job.status, job.state.attempt) == (Status.EXPIRED, 0)
    assert rig.actor.order() == ["long"]


# --- pause ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lasting", [False, True])
async def test_no_job_starts_once_pause_has_answered(autojump_clock, lasting) -> None:
    """Not even one that waits in the channel: those go back to the store, unspent, and other queues go on."""
    store = durable() if lasting else FaultyStore()
    async with running(store, workers=2, queue_size=64) as rig:
        await learned(rig)
        await rig.add(*(new_job(str(number), ("sleep", 0.5), queue="x") for number in range(20)))
        await rig.add(*(new_job(f"y{number}", ("sleep", 0.5), queue="y") for number in range(4)))
        await rig.actor.begun(52)
        await trio.sleep(0.25)
        await rig.node.control.pause("x")
        begun = len(rig.actor.runs)
        for number in range(4):
            await rig.ended(f"y{number}")
        await trio.sleep(100)
        after = [run.id for run in rig.actor.runs[begun:]]
        (state,) = [one for one in await store.queues() if one.name == "x"]
        await rig.node.control.resume("x")
        jobs = [await rig.ended(str(number)) for number in range(20)]

    assert sorted(after) == ["y0", "y1", "y2", "y3"]
    assert state.counts == {Status.DONE: 2, Status.QUEUED: 18}
    assert {(job.status, job.state.attempt) for job in jobs} == {(Status.DONE, 1)}


async def test_what_is_being_claimed_when_a_queue_is_paused_goes_back(autojump_clock) -> None:
    """The claim was stored before the pause, and its answer comes after it."""
    store = FaultyStore()
    async with running(store) as rig:
        store.after = trio.Event()
        async with trio.open_nursery() as askers:
            askers.start_soon(rig.enqueue, "a")
            await trio.testing.wait_all_tasks_blocked()
            await rig.node.control.pause("default")
            store.after.set()
        await trio.sleep(10)
        job, begun = await rig.job("a"), list(rig.actor.runs)
        await rig.node.control.resume("default")
        await rig.ended("a")

    assert (job.status, job.state.attempt, begun) == (Status.QUEUED, 0, [])


async def test_a_job_whose_start_is_being_written_when_its_queue_is_paused_does_not_begin(
    autojump_clock,
) -> None:
    """A worker has it already, and waits until its start has survived."""
    store = FaultyStore()
    async with running(store) as rig:
        await rig.enqueue("a", options=Options(on_crash="fail"))
        while not any(attempt.taken for attempt in rig.node.held):
            await trio.lowlevel.checkpoint()
        store.after = trio.Event()
        await trio.testing.wait_all_tasks_blocked()
        await rig.node.control.pause("default")
        store.after.set()
        await trio.sleep(10)
        job, begun = await rig.job("a"), list(rig.actor.runs)
        await rig.node.control.resume("default")
        await rig.ended("a")

    assert (job.status, job.state.attempt, begun) == (Status.QUEUED, 0, [])
