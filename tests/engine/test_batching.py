"""When a batch is written and how much goes into it, as one decision."""

import math
from collections.abc import Sequence

import msgspec
import pytest
import trio

from jobpipe.clock import VirtualClock
from jobpipe.engine import outcomes
from jobpipe.engine.attempt import Attempt
from jobpipe.engine.batching import (
    ADDING,
    ADDS,
    BATCH,
    BATCH_WHILE_ADDING,
    GATHER_ADDS,
    GATHER_DELAY,
    LOCKED_DELAY,
    LONGEST_PAUSE,
    SETTLE_DELAY,
    START_DELAY,
    STUCK,
    Batching,
)
from jobpipe.engine.entries import Entry
from jobpipe.job import Backoff
from jobpipe.store.base import Add, ClaimRequest, Receipt
from tests.engine.conftest import NOW, claimed, new_job


def batching(*, due: float | None = None, added: int = 0) -> Batching:
    """After a batch with so many adds; nothing waits, and nothing is ready."""
    made = Batching(VirtualClock(NOW), lease=15)
    made.gathered(added, left=False)
    made.learn(NOW, due=due, dry=())
    return made


def wait(made: Batching, adds: int = 0, *, presses: bool = False) -> float:
    """For how many seconds nothing is written, as things stand."""
    return made.when(adds, lambda: presses) - trio.current_time()


class Claimer:
    """Who claims jobs."""

    def __init__(self, wanted: int, *, pressing: bool) -> None:
        self._wanted, self._pressing = wanted, pressing

    def learn(self, *, held_back: bool) -> None:
        pass

    def wanted(self) -> int:
        return self._wanted

    def pressing(self) -> bool:
        return self._pressing

    def request(self, limit: int) -> ClaimRequest:
        raise NotImplementedError

    def take(self, asked: ClaimRequest, attempts: Sequence[Attempt]) -> None:
        raise NotImplementedError


async def test_the_first_batch_is_written_at_once(autojump_clock) -> None:
    """Nobody knows yet what is due."""
    assert wait(Batching(VirtualClock(NOW), lease=15)) == 0


async def test_without_anything_that_waits_nothing_is_written(autojump_clock) -> None:
    """Until a job is due."""
    assert wait(batching()) == math.inf
    assert wait(batching(due=math.nan)) == math.inf
    assert wait(batching(due=NOW + 100)) == pytest.approx(100)


async def test_what_presses_is_written_at_once(autojump_clock) -> None:
    """Though few adds wait for company."""
    assert wait(batching(), presses=True) == 0
    assert wait(batching(added=100), 1, presses=True) == 0


@pytest.mark.parametrize(
    ("added", "adds", "seconds"),
    [
        (0, 1, 0),
        (3, 1, 0),
        (4, 1, GATHER_DELAY),
        (4, 2, 0),
        (100, GATHER_ADDS - 1, GATHER_DELAY),
        (100, GATHER_ADDS, 0),
    ],
)
async def test_a_few_adds_wait_for_half_of_those_who_came_with_the_last_batch(
    autojump_clock, added, adds, seconds
) -> None:
    """For eight of them at the most, and only a moment."""
    made = batching(added=added)

    assert wait(made, adds) == pytest.approx(seconds)
    await trio.sleep(GATHER_DELAY)
    assert wait(made, adds) <= 0


async def test_an_outcome_waits_for_others_and_a_start_for_outcomes(autojump_clock) -> None:
    """What has to be written first decides; a batch full of outcomes does not wait."""
    made = batching()
    made.noted()
    start = wait(made)
    made.settled(1)
    outcome = wait(made)
    made.settled(BATCH)

    assert [start, outcome, wait(made)] == pytest.approx([START_DELAY, SETTLE_DELAY, 0])


async def test_what_does_not_go_into_one_batch_goes_into_the_next(autojump_clock) -> None:
    """At once."""
    made = batching()
    made.gathered(0, left=True)
    left = wait(made)
    made.gathered(0, left=False)

    assert (left, wait(made)) == (-math.inf, math.inf)


async def test_what_was_locked_is_tried_again_after_a_second(autojump_clock) -> None:
    """A second after the first of it."""
    made = batching()
    made.locked()
    await trio.sleep(LOCKED_DELAY / 2)
    made.locked()
    half, unlocks = wait(made), made.unlocks()
    await trio.sleep(LOCKED_DELAY)

    assert half == pytest.approx(LOCKED_DELAY / 2)
    assert (unlocks, made.unlocks()) == (False, True)
    made.unlocked()
    assert (wait(made), made.unlocks()) == (math.inf, False)


async def test_what_is_due_still_is_not_asked_for_again_at_once(autojump_clock) -> None:
    """It may be locked."""
    made = batching(due=NOW - 1)
    first = wait(made)
    made.learn(NOW, due=NOW - 1, dry=())

    assert [first, wait(made)] == pytest.approx([0, STUCK])


async def test_a_claim_presses_while_jobs_may_be_ready(autojump_clock) -> None:
    """And where the claimer does not wait for others to share a commit with."""
    made, claimer, other = batching(), Claimer(1, pressing=True), Claimer(1, pressing=True)
    made.learn(NOW, due=None, dry=[claimer])
    told = [made.presses(claimer), made.presses(other)]
    made.look()

    assert told == [False, True]
    assert made.presses(claimer)
    assert not made.presses(Claimer(0, pressing=True))
    assert not made.presses(Claimer(1, pressing=False))


async def test_a_look_asked_for_while_a_batch_is_written_outlasts_it(autojump_clock) -> None:
    """That batch may have looked too early. One asked for before it was gathered is done."""
    made = batching()
    made.look()
    made.gathered(0, left=False)
    made.learn(NOW, due=None, dry=())
    done = wait(made)
    made.look()
    made.learn(NOW, due=None, dry=())

    assert (done, wait(made)) == (math.inf, 0)


async def test_batches_are_smaller_while_clients_add(autojump_clock) -> None:
    """And for a second after that."""
    made = batching()
    before, adding = made.most(adding=False), made.most(adding=True)
    soon = made.most(adding=False)
    await trio.sleep(ADDING)

    assert (before, adding, soon, made.most(adding=False)) == (
        BATCH,
        BATCH_WHILE_ADDING,
        BATCH_WHILE_ADDING,
        BATCH,
    )


@pytest.mark.parametrize(
    ("sizes", "fit"), [([], 0), ([2 * ADDS], 1), ([ADDS, 1], 1), ([ADDS - 1, 1, 1], 2), ([1, 2 * ADDS], 1)]
)
async def test_adds_stay_whole_and_a_batch_takes_those_that_fit(autojump_clock, sizes, fit) -> None:
    """In order; one that is larger than a batch has one of its own."""
    entries = [Entry[Add, Sequence[Receipt]](Add([new_job("a")] * size)) for size in sizes]

    assert batching().first_adds(entries) == entries[:fit]


@pytest.mark.parametrize(
    ("brought", "most", "fit"),
    [([0, 0, 0], 2, 2), ([900, 100, 1], 9, 2), ([0, 5000, 0], 9, 1), ([5000, 0, 0], 9, 1), ([500] * 4, 9, 2)],
)
async def test_an_outcome_stays_whole_with_what_it_brings(autojump_clock, brought, most, fit) -> None:
    """In order; one that brings more than a batch holds has one of its own."""
    made = [
        outcomes.settlement(
            claimed(), outcomes.CANCELLED, started_at=None, now=NOW, policy=Backoff(), random=float
        )
    ] * len(brought)
    ends = [
        msgspec.structs.replace(one, jobs=[new_job()] * jobs) for one, jobs in zip(made, brought, strict=True)
    ]

    assert batching().first_outcomes(ends, most) == ends[:fit]


async def test_a_store_that_cannot_write_is_tried_again_less_and_less_often(autojump_clock) -> None:
    """But often enough for the lease; and anew after a batch that was written."""
    made = batching()
    pauses = [made.pause() for _ in range(10)]
    made.learn(NOW, due=None, dry=())

    assert pauses == [*sorted(pauses[:-1]), min(LONGEST_PAUSE, 15 / 6)]
    assert made.pause() == pauses[0] == 0.1
