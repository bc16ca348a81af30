"""The heartbeat, what happens when it is lost, and the rescue of the jobs of dead nodes."""

from typing import Any

import msgspec
import pytest
import trio

from jobpipe.clock import VirtualClock
from jobpipe.engine.batching import SETTLE_DELAY
from jobpipe.engine.lease import BEATS, SAFE
from jobpipe.handlers.context import Context
from jobpipe.handlers.registry import Handler
from jobpipe.job import Options, Outcome, Status
from jobpipe.store.memory import MemoryStore
from jobpipe.store.sqlite.tables import carry_out
from jobpipe.store.verbs import nodes
from tests.engine.conftest import DAY, HOUR, NOW, PLAIN, Actor, FaultyStore, new_job, running

LEASE = 15.0
LOST = ["this node lost its lease", "the store cannot write"]
NEVER_TWICE = Options(on_crash="fail")


# --- the heartbeat ----------------------------------------------------------------------------------------------------


async def test_the_lease_is_renewed_several_times_within_its_length(autojump_clock) -> None:
    """So that one that is late loses nothing, and always for the whole length again."""
    store = FaultyStore()
    async with running(store, lease=LEASE):
        await trio.sleep(100)
        renewals = [
            (batch.now, batch.lease_until) for batch in store.batches if batch.lease_until is not None
        ]

    assert [now for now, _ in renewals] == [NOW + LEASE / BEATS * (beat + 1) for beat in range(len(renewals))]
    assert [until for _, until in renewals] == [now + LEASE for now, _ in renewals]
    assert len(renewals) >= 19


async def test_the_heartbeat_does_not_wait_behind_handlers(autojump_clock) -> None:
    """All workers are busy for longer than a lease, and it is kept."""
    async with running(workers=2, lease=LEASE) as rig:
        await rig.add(new_job("a", ("sleep", 100)), new_job("b", ("sleep", 100)))
        jobs = [await rig.ended("a"), await rig.ended("b")]

    assert [(job.status, job.state.attempt) for job in jobs] == [(Status.DONE, 1)] * 2
    assert rig.node.lease.losses == 0


async def test_a_short_trouble_of_the_store_costs_no_lease(autojump_clock) -> None:
    """The node tries again until it is almost too late; its attempts go on."""
    store = FaultyStore()
    async with running(store, lease=LEASE, expected=LOST[1:]) as rig:
        await rig.enqueue("a", ("sleep", 60))
        await rig.actor.begun()
        await trio.sleep(11)
        store.broken = True
        await trio.sleep(9)
        store.broken = False
        job = await rig.ended("a")

    assert (job.status, job.state.attempt, len(rig.actor.runs)) == (Status.DONE, 1, 1)
    assert rig.node.lease.losses == 0


# --- a lost lease -----------------------------------------------------------------------------------------------------


async def test_a_node_that_cannot_renew_stops_its_attempts_before_another_runs_them(autojump_clock) -> None:
    """Also their cleanup has ended by then, so that two runs of one job do not overlap; its late word is refused."""
    shared, actor, clock = MemoryStore(), Actor(), VirtualClock(NOW)
    own = FaultyStore(beside=shared)
    async with running(own, actor=actor, clock=clock, lease=LEASE, expected=LOST) as first:
        await first.add(new_job("a", ("hang", 2), "done"), new_job("b", ("stubborn", 12.4), "done"))
        await actor.begun(2)
        await trio.sleep(0.1)
        async with running(shared, actor=actor, clock=clock, name="n2", lease=LEASE, expected=LOST) as second:
            own.broken = True
            job, other = await second.ended("a"), await second.ended("b")
            own.broken = False
            await trio.sleep(10)
        runs = {run.id: run for run in actor.runs[:2]}

    assert round((runs["a"].ended or 0) - runs["a"].began, 3) == LEASE * SAFE + 2
    assert [(one.status, one.state.attempt, one.attempts[-1].node) for one in (job, other)] == [
        (Status.DONE, 2, "n2")
    ] * 2
    assert job.attempts[0].outcome is Outcome.INTERRUPTED
    assert len(actor.runs) == 4
    assert first.node.lease.losses == 1
    assert first.node.ledger.stale == 2
    assert actor.overlaps == []


async def test_a_node_whose_commits_hang_stops_its_attempts_too(autojump_clock) -> None:
    """A stalled disk answers nothing at all, not even an error."""
    store = FaultyStore()
    async with running(store, lease=LEASE, expected=LOST) as rig:
        await rig.enqueue("a", ("hang", 1), "done")
        await rig.actor.begun()
        await trio.sleep(0.1)
        store.before = trio.Event()
        await trio.sleep(LEASE)
        ended = rig.actor.runs[0].ended
        store.before.set()
        job = await rig.ended("a")

    assert ended == rig.actor.runs[0].began + LEASE * SAFE + 1
    assert (job.status, job.state.attempt) == (Status.DONE, 1)
    assert [one.outcome for one in job.attempts] == [Outcome.INTERRUPTED, Outcome.DONE]


async def test_a_node_that_was_taken_for_dead_learns_of_it_and_goes_on(autojump_clock) -> None:
    """At its next heartbeat: it stops what it has lost, takes a new lease, and works again at once."""
    store = MemoryStore()
    async with running(store, lease=LEASE, workers=1, queue_size=1, expected=LOST) as rig:
        await rig.add(new_job("a", ("hang", 0), "done"), new_job("b"), new_job("c"), new_job("d"))
        await rig.actor.begun()
        await trio.sleep(1)
        await store.leave("n1")
        taken = await store.rescue("inspector", rig.node.clock.now())
        jobs = [await rig.ended(job_id) for job_id in "abcd"]
        took = trio.current_time() - rig.actor.runs[0].began

    assert {(one.id, one.begun) for one in taken} == {("a", True), ("b", False)}
    assert [(job.status, job.state.attempt) for job in jobs] == [
        (Status.DONE, 2),
        (Status.DONE, 1),
        (Status.DONE, 1),
        (Status.DONE, 1),
    ]
    assert LEASE / BEATS <= round(took, 3) <= LEASE / BEATS + SETTLE_DELAY
    assert rig.node.lease.losses == 1


@pytest.mark.parametrize("workers", [1, 4])
async def test_a_lost_job_may_come_back_while_its_old_attempt_still_cleans_up(
    autojump_clock, workers
) -> None:
    """The two are told apart: the new run is the one that counts, and the old one's word is refused."""
    began: list[int] = []

    async def slow_to_leave(payload: Any, context: Context) -> str:
        began.append(context.claim)
        try:
            await trio.sleep(20 if len(began) > 1 else DAY)
        finally:
            if len(began) == 1:
                with trio.CancelScope(shield=True):
                    await trio.sleep(30)
        return "ok"

    store = MemoryStore()
    handler = Handler(kind="slow", function=slow_to_leave, is_async=True, takes_context=True)
    async with running(store, lease=LEASE, workers=workers, handlers=[handler], expected=LOST) as rig:
        await rig.enqueue("a", kind="slow")
        await trio.sleep(1)
        await store.leave("n1")
        await store.rescue("inspector", rig.node.clock.now())
        job = await rig.ended("a")
        await trio.sleep(100)
        later, held = await rig.job("a"), list(rig.node.held)

    assert began == [1, 2]
    assert (job.status, job.state.attempt, job.state.claim) == (Status.DONE, 2, 2)
    assert later == job
    assert held == []


async def test_a_late_start_ends_the_attempt(autojump_clock) -> None:
    """Somebody else has the job: whatever write of the attempt is refused first, its run is stopped."""
    store = FaultyStore()
    async with running(store, lease=LEASE, workers=1) as rig:
        store.before = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.enqueue, "a", ("hang", 0), "done")
            await trio.testing.wait_all_tasks_blocked()
            store.before.set()
            await rig.actor.begun(1)
        store._nodes.leave("n1")
        carry_out(store._writer.db, lambda tx: nodes.rescue(tx, "inspector", NOW))
        store._nodes.join("n1", NOW + LEASE)
        job = await rig.ended("a")

    assert (job.status, job.state.attempt, len(rig.actor.runs)) == (Status.DONE, 1, 2)
    assert rig.node.ledger.stale == 2
    assert rig.node.lease.losses == 0


# --- rescue -----------------------------------------------------------------------------------------------------------


async def test_the_jobs_of_a_dead_node_are_run_by_another(autojump_clock) -> None:
    """Within the lease and one beat; the broken attempt counts, and what had only been claimed is unspent."""
    store, actor, clock = MemoryStore(), Actor(), VirtualClock(NOW)
    async with running(store, actor=actor, clock=clock, workers=1, queue_size=1, lease=LEASE) as first:
        await first.add(new_job("a", ("hang", 0), "done"), new_job("b"), new_job("c"))
        await actor.begun()
        await trio.sleep(1)
        died = trio.current_time()
        await first.kill()
        async with running(store, actor=actor, clock=clock, name="n2", lease=LEASE) as second:
            jobs = [await second.ended(job_id) for job_id in "abc"]
            took = trio.current_time() - died

    assert [(job.status, job.state.attempt) for job in jobs] == [
        (Status.DONE, 2),
        (Status.DONE, 1),
        (Status.DONE, 1),
    ]
    assert [(one.node, one.outcome) for one in jobs[0].attempts] == [
        ("n1", Outcome.INTERRUPTED),
        ("n2", Outcome.DONE),
    ]
    assert took <= LEASE + LEASE / BEATS
    assert len(second.logged("recovered a job of a dead node")) == 2


async def test_a_node_tells_at_its_start_what_it_rescued(autojump_clock) -> None:
    """When the dead one's lease is over by then."""
    store, actor, clock = MemoryStore(), Actor(), VirtualClock(NOW)
    async with running(store, actor=actor, clock=clock, lease=LEASE) as first:
        await first.enqueue("a", ("hang", 0), "done")
        await first.actor.begun()
        await trio.sleep(1)
        await first.kill()
    await trio.sleep(100)
    async with running(store, actor=actor, clock=clock, name="n2") as second:
        (line,) = second.logged("recovered a job of a dead node")
        job = await second.ended("a")

    assert (line["job"], line["begun"], line["status"]) == ("a", True, "queued")
    assert job.status is Status.DONE


@pytest.mark.parametrize("retries", [0, 1, 2])
async def test_a_job_that_kills_its_node_cannot_do_so_for_ever(autojump_clock, retries) -> None:
    """Each crash during an attempt spends it; after `max_retries` of them the job has failed."""
    store, actor, clock = MemoryStore(), Actor(), VirtualClock(NOW)
    for number in range(retries + 1):
        async with running(store, actor=actor, clock=clock, name=f"n{number}", lease=LEASE) as rig:
            if number == 0:
                await rig.enqueue("a", ("hang", 0), max_retries=retries)
            await actor.begun(number + 1)
            await trio.sleep(1)
            await rig.kill()
        await trio.sleep(2 * LEASE)
    async with running(store, actor=actor, clock=clock, name="last") as rig:
        job = await rig.job("a")

    assert (job.status, job.state.attempt, len(actor.runs)) == (Status.FAILED, retries + 1, retries + 1)
    assert job.state.error is not None
    assert job.state.error.type == "NodeDied"


@pytest.mark.parametrize("retries", [0, 1, 5])
async def test_a_job_that_kills_its_node_has_the_retries_of_its_handler(autojump_clock, retries) -> None:
    """Where it names no number: the node that claims it decides, and it does not begin once more than allowed."""
    store, actor, clock = MemoryStore(), Actor(), VirtualClock(NOW)
    own = msgspec.structs.replace(actor.handler, kind="own", max_retries=retries)
    for number in range(retries + 1):
        async with running(
            store, actor=actor, handlers=[own], clock=clock, name=f"n{number}", lease=LEASE
        ) as rig:
            if number == 0:
                await rig.enqueue("a", ("hang", 0), kind="own", max_retries=None)
            await actor.begun(number + 1)
            await trio.sleep(1)
            await rig.kill()
        await trio.sleep(2 * LEASE)
    async with running(store, actor=actor, handlers=[own], clock=clock, name="last") as rig:
        job = await rig.ended("a")

    assert (job.status, job.state.attempt, len(actor.runs)) == (Status.FAILED, retries + 1, retries + 1)
    assert job.state.error is not None
    assert job.state.error.type == "NodeDied"
    assert len(job.attempts) == retries + 1


@pytest.mark.parametrize("retries", [0, 1, 5])
async def test_a_failing_job_has_the_retries_of_its_handler(autojump_clock, retries) -> None:
    """Where it names no number; one of a handler that names none has three."""
    actor = Actor()
    own = msgspec.structs.replace(actor.handler, kind="own", max_retries=retries)
    async with running(actor=actor, handlers=[own]) as rig:
        await rig.enqueue("a", "error", kind="own", max_retries=None)
        await rig.enqueue("b", "error", max_retries=None)
        jobs = [await rig.ended("a"), await rig.ended("b")]

    assert [job.state.attempt for job in jobs] == [retries + 1, 4]


async def test_a_rescued_job_begins_only_when_its_start_is_stored(autojump_clock) -> None:
    """So that one which kills its node at once is counted from the second time on."""
    store, actor, clock = FaultyStore(), Actor(), VirtualClock(NOW)
    async with running(store, actor=actor, clock=clock, lease=LEASE) as rig:
        await rig.enqueue("a", ("hang", 0), max_retries=0)
        await actor.begun()
        await rig.kill()  # sooner than its start was written
    await trio.sleep(2 * LEASE)
    store.after = trio.Event()
    async with running(store, actor=actor, clock=clock, name="n2", lease=LEASE) as rig:
        await trio.testing.wait_all_tasks_blocked()
        while (job := await rig.job("a")).status is not Status.RUNNING:
            store.after.set()  # one commit after the other, up to the one that holds the start
            store.after = trio.Event()
            await trio.testing.wait_all_tasks_blocked()
        before = len(actor.runs)
        store.after.set()
        await actor.begun(2)
        await rig.kill()
    await trio.sleep(2 * LEASE)
    async with running(store, actor=actor, clock=clock, name="n3", lease=LEASE) as rig:
        failed = await rig.job("a")

    assert (before, job.status, job.state.attempt) == (1, Status.RUNNING, 1)
    assert (failed.status, failed.state.attempt, len(actor.runs)) == (Status.FAILED, 1, 2)


async def test_a_job_that_may_not_run_twice_fails_when_its_node_dies(autojump_clock) -> None:
    """With `on_crash: fail`, even when the node dies in the very moment in which the handler begins."""
    store, actor, clock = MemoryStore(), Actor(), VirtualClock(NOW)
    async with running(store, actor=actor, clock=clock, lease=LEASE) as rig:
        await rig.enqueue("a", ("hang", 0), options=NEVER_TWICE)
        await actor.begun()
        await rig.kill()
    await trio.sleep(2 * LEASE)
    async with running(store, actor=actor, clock=clock, name="n2") as rig:
        job = await rig.job("a")

    assert (job.status, job.state.attempt, len(actor.runs)) == (Status.FAILED, 1, 1)
    assert job.state.error is not None
    assert (job.state.error.type, '"on_crash"' in job.state.error.message) == ("NodeDied", True)


async def test_a_job_that_may_not_run_twice_runs_again_after_errors(autojump_clock) -> None:
    """`on_crash` is about crashes; a handler's own errors are tried again as usual."""
    async with running() as rig:
        await rig.enqueue("a", "error", "done", options=Options(on_crash="fail", backoff=PLAIN.backoff))
        job = await rig.ended("a")

    assert (job.status, job.state.attempt) == (Status.DONE, 2)


async def test_a_job_that_may_not_run_twice_does_not_begin_while_the_store_cannot_write(
    autojump_clock,
) -> None:
    """It goes back to the store, and runs once the store can."""
    store = FaultyStore()
    async with running(store, workers=1, queue_size=1, expected=LOST[1:]) as rig:
        await rig.enqueue("first", ("sleep", 5))
        await rig.enqueue("a", options=NEVER_TWICE)
        await rig.actor.begun()
        store.broken = True
        await trio.sleep(8)
        before = rig.actor.order()
        store.broken = False
        job = await rig.ended("a")

    assert before == ["first"]
    assert (job.status, job.state.attempt) == (Status.DONE, 1)


async def test_a_cancelling_job_of_a_dead_node_is_cancelled(autojump_clock) -> None:
    """The wish survives the node."""
    store, actor, clock = MemoryStore(), Actor(), VirtualClock(NOW)
    async with running(store, actor=actor, clock=clock, lease=LEASE) as rig:
        await rig.enqueue("a", ("hang", 100))
        await actor.begun()
        await rig.node.control.cancel("a")
        await rig.kill()
    await trio.sleep(LEASE)
    async with running(store, actor=actor, clock=clock, name="n2") as rig:
        job = await rig.job("a")

    assert (job.status, len(actor.runs)) == (Status.CANCELLED, 1)


async def test_a_store_that_cannot_rescue_now_is_asked_again(autojump_clock) -> None:
    """It is a warning, no end of the node."""
    shared = MemoryStore()
    own = FaultyStore(beside=shared)
    async with running(own, lease=LEASE) as rig:

        async def fail(node: str, now: float) -> Any:
            own.broken = True
            try:
                return await FaultyStore.rescue(own, node, now)
            finally:
                own.broken = False

        own.rescue = fail  # type: ignore[method-assign]  # this verb alone fails, as when its table is locked
        await trio.sleep(LEASE)
        await rig.enqueue("a")
        job = await rig.ended("a")
        del own.rescue

    assert job.status is Status.DONE
    assert rig.logged("could not look for jobs of dead nodes")[0]["log_level"] == "warning"


# --- the wall clock ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [-HOUR, -1, 1, HOUR, DAY])
async def test_a_clock_that_is_set_costs_no_lease_and_no_attempt(autojump_clock, step) -> None:
    """Somebody sets the machine's clock: what runs goes on, what is new runs, timeouts count real time."""
    clock = VirtualClock(NOW)
    async with running(clock=clock, lease=LEASE) as rig:
        await rig.enqueue("long", ("sleep", 60))
        await rig.enqueue("slow", ("hang", 0), max_retries=0, options=Options(timeout=30))
        await rig.actor.begun(2)
        await trio.sleep(1)
        clock.step(step)
        await rig.enqueue("new")
        jobs = [await rig.ended(job_id) for job_id in ("long", "slow", "new")]
        runs = {run.id: (run.ended or 0) - run.began for run in rig.actor.runs}

    assert [(job.status, job.state.attempt) for job in jobs] == [
        (Status.DONE, 1),
        (Status.FAILED, 1),
        (Status.DONE, 1),
    ]
    assert {job_id: round(took, 3) for job_id, took in runs.items()} == {"long": 60, "slow": 30, "new": 0}
    assert rig.node.lease.losses == 0


async def test_a_clock_set_forward_makes_jobs_due_at_the_next_look(autojump_clock) -> None:
    """At the latest with the next heartbeat."""
    clock = VirtualClock(NOW)
    async with running(clock=clock, lease=LEASE) as rig:
        await rig.enqueue("a", run_at=NOW + DAY)
        await trio.sleep(1)
        begun = trio.current_time()
        clock.step(DAY)
        job = await rig.ended("a")
        took = trio.current_time() - begun

    assert job.status is Status.DONE
    assert took <= LEASE / BEATS


async def test_a_clock_set_back_puts_off_what_waits_for_a_time(autojump_clock) -> None:
    """It runs when its time has come once more, not before and not never."""
    clock = VirtualClock(NOW)
    async with running(clock=clock, lease=LEASE) as rig:
        await rig.enqueue("a", run_at=NOW + 100)
        await trio.sleep(50)
        clock.step(-HOUR)
        begun = trio.current_time()
        job = await rig.ended("a")
        took = trio.current_time() - begun

    assert (job.status, round(took, 3)) == (Status.DONE, HOUR + 50)
