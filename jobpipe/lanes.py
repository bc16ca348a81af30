"""Lanes: how many jobs of a queue, or of one key in it, run at once and are claimed over time, and whose turn it is.

A *key* says whom a job is for, within its queue. What waits of one key in one queue is a *lane*. A queue is *gated*
once it has limits, or a job with a key: then its jobs without a key stand in the lane of the key `''`.

Pure: no clock, no store, no task. Times are seconds since the epoch.
"""

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

R = TypeVar("R")
L = TypeVar("L", bound="Lane")

Running = Annotated[
    int, Meta(ge=0, le=1_000_000, description="a whole number from 0 to 1000000; how many jobs run at once")
]
Weight = Annotated[int, Meta(ge=1, le=1000, description="a whole number from 1 to 1000")]

MOST_RATE = 1_000_000
"""The most jobs of a period."""

SHORTEST, LONGEST = 0.001, 31_536_000.0
"""Seconds of a period."""


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """In any window of `period` seconds at most `limit` jobs are claimed, and at most `burst` at once.

    Each claim counts, that of a retry too; one that is handed back unbegun has counted.
    A burst of 1 spaces the claims evenly. A larger burst pays with a lower steady rate, so that the bound holds.
    """

    limit: Annotated[
        int, Meta(ge=1, le=MOST_RATE, description="a whole number from 1 to 1000000; jobs in a period")
    ]
    period: Annotated[
        float, Meta(ge=SHORTEST, le=LONGEST, description="a number of seconds from 0.001 to 31536000")
    ]
    burst: Annotated[
        int, Meta(ge=1, le=MOST_RATE, description="a whole number from 1 to limit; jobs at once")
    ] = 1

    @property
    def sound(self) -> bool:
        """Whether it says something that can be kept; a stored one may be damaged."""
        return 1 <= self.burst <= self.limit <= MOST_RATE and SHORTEST <= self.period <= LONGEST

    @property
    def every(self) -> float:
        """Seconds from one token to the next."""
        return self.period / (self.limit - self.burst + 1)

    def cut(self, tat: float | None, now: float) -> float | None:
        """What `taken` returned, cut to what it can be: beyond that, the clock was set back. To be stored, then.

        So a clock that was set back delays by one token at most.
        """
        return None if tat is None else min(tat, now + self.burst * self.every)

    def opens_at(self, tat: float | None, now: float) -> float:
        """When there is a token, or `now` when there is one. `tat`: what `taken` returned last, `cut`; or None."""
        return max(now, (tat or now) - (self.burst - 1) * self.every)

    def tokens(self, tat: float | None, now: float) -> int:
        """How many jobs may be claimed now."""
        if tat is None or tat <= now:
            return self.burst
        opens_at = tat - (self.burst - 1) * self.every
        return 0 if now < opens_at else min(self.burst, math.floor((now - opens_at) / self.every) + 1)

    def rests_until(self, tat: float | None, now: float) -> float | None:
        """When the next job may be claimed; None: now."""
        tat = self.cut(tat, now)
        return None if self.tokens(tat, now) else self.opens_at(tat, now)

    def taken(self, tat: float | None, jobs: int, now: float) -> float:
        """So many jobs are claimed now: the time at which all tokens will be there again, to be stored."""
        return max(tat or now, now) + jobs * self.every


AfterFailure = Literal["go_on", "stop"]
"""What a job that failed for good means for those behind it: nothing, or that they wait until somebody sees to it."""


class PerKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What each key of a queue may do.

    `ordered`: of each key one job at a time in the order of arrival, which is that of their numbers; the next one is
    claimed when the one before has ended for good. `''` is no key in this: jobs without one have no order.
    `on_failure` counts for ordered keys.
    """

    max_running: Running | None = None
    rate: Rate | None = None
    ordered: bool = False
    on_failure: AfterFailure = "go_on"

    @property
    def stops(self) -> bool:
        """Whether a key stops at a job that failed."""
        return self.ordered and self.on_failure == "stop"

    def most(self, own: int | None) -> int | None:
        """How many jobs of a key run at once, of which so many may where that is set; None: no limit."""
        return self.max_running if own is None else own


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a queue allows, and each of its keys; None: as much as anybody likes.

    `max_running`: in every committed state at most so many jobs are held. What runs is held. Jobs of a dead node count
    until they are rescued, since their code may still run. A lowered limit counts from the next claim on: nothing is
    stopped.
    """

    max_running: Running | None = None
    rate: Rate | None = None
    per_key: PerKey = PerKey()

    @property
    def count(self) -> bool:
        """Whether a number of jobs is limited: order alone limits none."""
        numbers = (self.max_running, self.rate, self.per_key.max_running, self.per_key.rate)
        return any(number is not None for number in numbers)


NO_LIMITS = Limits()


class KeySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is set for one key of a queue."""

    weight: Weight = 1
    """of two keys with waiting jobs, one of weight 2 gets twice as many turns as one of weight 1"""
    max_running: Running | None = None
    """instead of what the queue says of each key; None: what the queue says"""


USUAL = KeySettings()

KeyStanding = Literal["open", "resting", "full", "empty", "paused", "stopped"]
"""How a lane stands: `resting` waits for its rate, `full` has as many jobs running as it may, `empty` has none ready.

Where order counts it is `empty` while the first job is not ready, and `stopped` by a job that failed.

It is what the last claim found: one that is `open` may be found otherwise by the next.
"""

STANDINGS: tuple[KeyStanding, ...] = ("open", "resting", "full", "empty", "paused", "stopped")
"""By the number in a lane's row."""

OPEN, RESTING, FULL, EMPTY, PAUSED, STOPPED = range(len(STANDINGS))


class Lane(msgspec.Struct):
    """An open lane as a claim finds it."""

    key: str
    turn: float
    """how many of its jobs were claimed, by its weight: the lane with the lowest comes next"""
    weight: int = 1
    room: int = 1 << 30
    """how many more jobs its limits allow"""


def in_turn(lanes: Sequence[tuple[L, Iterator[R]]]) -> Iterator[tuple[L, R]]:
    """What open lanes give, whose turn it is first, and of each in its order: as far as it is asked for.

    As long as two lanes both have jobs and room, their turns differ by at most one job of the lighter one from what
    they were, or are brought closer. Changes nothing of the lanes.
    """
    heap = [
        (lane.turn, place, lane.room, lane, jobs) for place, (lane, jobs) in enumerate(lanes) if lane.room > 0
    ]
    heapq.heapify(heap)
    round_robin = itertools.count(len(lanes))  # of equal turns, those that have not given yet come first
    while heap:
        turn, _, room, lane, jobs = heap[0]
        job: Any = next(jobs, heap)  # the heap itself: no job can be that
        if job is heap:
            heapq.heappop(heap)
            continue
        if room > 1:
            heapq.heapreplace(heap, (turn + 1 / lane.weight, next(round_robin), room - 1, lane, jobs))
        else:
            heapq.heappop(heap)
        yield lane, job


def share(limit: int, lanes: int) -> int:
    """About how many jobs each of so many lanes gives to a claim of `limit`."""
    return -(-limit // max(lanes, 1))
