"""Broken variants of jobpipe, each a small patch of behaviour: the test of the tests.

A mutant is a function that patches; its docstring says what is wrong with it. `CAUGHT_BY` names, for each, the scene
of `tests/race` in which it must be caught, the store, and the rules of the witness that it breaks. `FAILS` names, for
each of the others, the test of a promise over every store that it must fail.
"""

import itertools
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import pytest
import trio

import jobpipe.engine.node
from jobpipe import schedules
from jobpipe.engine import outcomes
from jobpipe.engine.executor import Executor
from jobpipe.engine.held import Held
from jobpipe.engine.lease import Lease
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.worker import work
from jobpipe.errors import JobpipeError
from jobpipe.job import NewJob
from jobpipe.store.base import STORED, Receipt
from jobpipe.store.rows import stored_from
from jobpipe.store.sqlite import gated, settling
from jobpipe.store.sqlite.rows import JOB_COLUMNS, fetch
from jobpipe.store.sqlite.tables import Tables
from jobpipe.store.verbs.transaction import DeadNodes
from jobpipe.transitions import Stored
from tests.store import test_lanes, test_order, test_schedules
from tests.store.test_lanes_model import a_slot_leaks_at_a_crash

Mutant = Callable[[pytest.MonkeyPatch], None]
Test = Callable[..., Awaitable[None]]
"""One that asks for stores and nodes alone, as fixtures."""


class Caught(msgspec.Struct, frozen=True):
    """Where a mutant is caught."""

    scene: str
    store: str
    rules: frozenset[str]


CAUGHT_BY: dict[Mutant, Caught] = {}


FAILS: dict[Mutant, Test] = {}


def fails(test: Test) -> Callable[[Mutant], Mutant]:
    def note(mutant: Mutant) -> Mutant:
        FAILS[mutant] = test
        return mutant

    return note


def caught_by(scene: str, store: str, *rules: str) -> Callable[[Mutant], Mutant]:
    def note(mutant: Mutant) -> Mutant:
        CAUGHT_BY[mutant] = Caught(scene, store, frozenset(rules))
        return mutant

    return note


@caught_by("pair", "memory", "ran twice at once")
def settle_without_the_fence(patch: pytest.MonkeyPatch) -> None:
    """An outcome is written to whatever row is held, whichever claim it belongs to."""
    patch.setattr(settling, "_START", settling._START.replace("claim = ?", "? is not null"))
    patch.setattr(settling, "_END", settling._END.replace("jobs.claim = v.column9", "v.column9 is not null"))
    patch.setattr(settling, "_AGAIN", settling._AGAIN.replace("claim = ?9", "?9 is not null"))


@caught_by("storm", "lasting", "acknowledged before it was stored", "acknowledged and lost")
def acknowledged_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    """An enqueue is answered when the ledger has it, not when the store has."""
    add = Ledger.add

    async def early(self: Ledger, jobs: Sequence[NewJob], *, atomic: bool = False) -> Sequence[Receipt]:
        async def late() -> None:
            with suppress(JobpipeError):
                await add(self, jobs, atomic=atomic)

        trio.lowlevel.spawn_system_task(late)
        await trio.lowlevel.checkpoint()
        return [STORED] * len(jobs)

    patch.setattr(Ledger, "add", early)


@caught_by("storm", "lasting", "left behind by an orderly stop")
def intake_leaves_its_claim_behind(patch: pytest.MonkeyPatch) -> None:
    """What is claimed for an intake that the drain has cancelled is not handed back."""
    patch.setattr(Ledger, "return_claimed", lambda _self, _jobs: None)


@caught_by("storm", "memory", "held by a node that ended")
def intake_forgets_what_it_holds(patch: pytest.MonkeyPatch) -> None:
    """At the drain, what waits in the channel is not handed back."""
    patch.setattr(Held, "untaken", lambda _self: [])


@caught_by("pair", "memory", "ran twice at once")
def rescue_by_age_alone(patch: pytest.MonkeyPatch) -> None:
    """A job that has run for as long as a lease is taken back, though its node lives."""
    lock_held = Tables.lock_held
    old = (
        f"select {JOB_COLUMNS} from jobs where held = 1 "
        "and node <> (select node from nodes where name = ?) and started_at <= ?"
    )

    async def by_age(self: Tables, nodes: DeadNodes, limit: int) -> Sequence[Stored]:
        dead = await lock_held(self, nodes, limit)
        return [*dead, *map(stored_from, fetch(self._db, old, (nodes.node, nodes.now - 15)))]

    patch.setattr(Tables, "lock_held", by_age)


@caught_by("pair", "memory", "ran twice at once")
def heartbeat_waits_behind_handlers(patch: pytest.MonkeyPatch) -> None:
    """The lease is renewed only when no handler runs."""
    renew = Lease._renew

    async def polite(self: Lease) -> bool:
        while self._held.busy:  # noqa: ASYNC110 - no event tells
            await trio.sleep(0.1)
        return await renew(self)

    patch.setattr(Lease, "_renew", polite)


@caught_by("storm", "memory", "left behind by an orderly stop")
def drain_drops_the_buffer(patch: pytest.MonkeyPatch) -> None:
    """While the node drains, workers throw away what they find in the channel."""

    perform = Executor.perform

    async def careless(receive: Any, channel: Any, ledger: Any, executor: Any, **options: Any) -> None:
        async def dropping(attempt: Any, scope: Any) -> None:
            if channel.draining:
                executor._held.lose(attempt)
            else:
                await perform(executor, attempt, scope)

        executor.perform = dropping
        await work(receive, channel, ledger, executor, **options)

    patch.setattr(jobpipe.engine.node, "work", careless)


@caught_by("storm", "lasting", "cancelled before its cleanup ended")
def cancel_answers_before_the_cleanup(patch: pytest.MonkeyPatch) -> None:
    """A cancelled job is settled when its handler is told to stop, not when it has."""
    stop = Ledger.stop

    def hasty(self: Any, attempts: Any, reason: Any) -> None:
        stopped = list(attempts)
        stop(self, stopped, reason)
        for attempt in stopped if reason == "cancel" else ():
            self.end(attempt, outcomes.CANCELLED)

    patch.setattr(Ledger, "stop", hasty)


@caught_by("storm", "lasting", "acknowledged before it was stored", "acknowledged and lost")
def cancelled_waiter_is_told_stored(patch: pytest.MonkeyPatch) -> None:
    """Who is cancelled while the ledger has not begun to write its jobs hears that they are stored."""
    add = Ledger.add

    async def lying(self: Ledger, jobs: Sequence[NewJob], *, atomic: bool = False) -> Sequence[Receipt]:
        try:
            return await add(self, jobs, atomic=atomic)
        except trio.Cancelled:  # noqa: ASYNC103 - the fault
            return [STORED] * len(jobs)  # noqa: ASYNC104 - the fault

    patch.setattr(Ledger, "add", lying)


fails(test_lanes.test_jobs_of_a_dead_node_count_until_they_are_rescued)(a_slot_leaks_at_a_crash)


@fails(test_lanes.test_of_a_queue_no_more_run_than_it_allows)
def counted_outside_the_transaction(patch: pytest.MonkeyPatch) -> None:
    """How many jobs of a queue run is what a claim has counted before, in another transaction."""
    room = gated.Gated._room
    counted: dict[str, int] = {}

    def stale(self: gated.Gated, gate: gated._Gate) -> int:
        running = int(self._db.execute(gated.HELD_IN_QUEUE, (gate.queue,)).get)
        before, counted[gate.queue] = counted.get(gate.queue, 0), running
        rest: int = room(self, gate) + running - before
        return rest

    patch.setattr(gated.Gated, "_room", stale)


@fails(test_order.test_the_next_job_waits_until_the_first_has_ended_for_good)
def a_retry_that_waits_leaves_its_place(patch: pytest.MonkeyPatch) -> None:
    """Between two attempts of a job the next one of its key comes first, since that is ready."""
    for name in ("_FIRST_JOBS", "_WAITING"):
        first = getattr(gated, name)
        broken = first.replace("order by claim = 0", "and status <> 'retrying' order by claim = 0")
        assert broken != first
        patch.setattr(gated, name, broken)


@fails(test_schedules.test_a_job_whose_id_is_there_is_not_made_again)
def a_firing_without_its_unique_row(patch: pytest.MonkeyPatch) -> None:
    """The job of a firing has an id of its own, which no other job of that firing has."""
    firing_job, numbers = schedules.firing_job, itertools.count()

    def anew(*firing: Any) -> NewJob:
        job = firing_job(*firing)
        return msgspec.structs.replace(job, id=f"{job.id}-{next(numbers)}")

    patch.setattr(schedules, "firing_job", anew)
