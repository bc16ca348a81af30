"""The arithmetic of lanes: rates in any window, and turns."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as some

from jobpipe.lanes import Lane, Rate, in_turn, share

NOW = 1_700_000_000.0


@some.composite
def rates(draw: some.DrawFn) -> Rate:
    """Any rate."""
    limit = draw(some.integers(1, 50))
    period = draw(some.sampled_from([0.5, 1.0, 3.0, 60.0, 3600.0]))
    return Rate(limit, period, draw(some.integers(1, limit)))


steps = some.lists(some.tuples(some.floats(0, 2), some.integers(0, 60)), max_size=80)
"""Parts of a period that pass, and how many jobs are wanted then."""


@given(rates(), steps)
def test_no_window_of_a_period_has_more_than_the_limit(rate: Rate, asked: list[tuple[float, int]]) -> None:
    """Whenever jobs are claimed, and however many at once; nor are there ever more at once than the burst."""
    now, tat, taken = NOW, None, list[float]()
    for passes, wanted in asked:
        now += passes * rate.period
        jobs = min(wanted, rate.tokens(tat, now))
        assert jobs <= rate.burst
        if jobs:
            tat = rate.taken(tat, jobs, now)
            taken += [now] * jobs

    for number, first in enumerate(taken):
        # Times of today are told apart by less than a microsecond.
        window = [at for at in taken[number:] if at < first + rate.period - 1e-4]
        assert len(window) <= rate.limit


@given(rates(), steps)
def test_there_is_a_token_when_it_says_so_and_not_before(rate: Rate, asked: list[tuple[float, int]]) -> None:
    """So nobody looks in vain, or for ever at the same time."""
    now, tat = NOW, None
    for passes, wanted in asked:
        now += passes * rate.period
        if jobs := min(wanted, rate.tokens(tat, now)):
            tat = rate.taken(tat, jobs, now)
        opens_at = rate.opens_at(tat, now)
        assert (opens_at == now) == (rate.tokens(tat, now) > 0)
        assert rate.tokens(tat, opens_at) >= 1


@given(rates())
def test_as_many_as_the_limit_go_through_in_a_period(rate: Rate) -> None:
    """Who asks all the time gets all of it."""
    now, tat, taken = NOW, None, 0
    while now < NOW + rate.period - 1e-4:
        if jobs := rate.tokens(tat, now):
            tat = rate.taken(tat, jobs, now)
            taken += jobs
        now = max(rate.opens_at(tat, now), now + rate.period / 10_000)

    assert rate.limit - 1 <= taken <= rate.limit


@given(rates(), some.floats(0, 1e9))
def test_a_clock_that_is_set_back_delays_by_a_token_at_most(rate: Rate, back: float) -> None:
    """Else a wrong clock would stop a queue for years."""
    now = NOW - back
    tat = rate.cut(rate.taken(None, rate.burst, NOW), now)

    assert rate.opens_at(tat, now) <= now + rate.every * 1.001 + 1e-6
    assert rate.cut(tat, now + 1.0) == tat


@pytest.mark.parametrize(
    "rate", [Rate(0, 1.0), Rate(1, 0.0), Rate(2, 1.0, 3), Rate(1, float("nan")), Rate(1, 1.0, 0)]
)
def test_a_damaged_rate_is_not_sound(rate: Rate) -> None:
    """It counts as none."""
    assert not rate.sound


@given(
    some.lists(some.tuples(some.integers(1, 5), some.integers(0, 40)), min_size=1, max_size=12),
    some.integers(0, 200),
)
def test_turns_of_lanes_with_jobs_stay_together(lanes: list[tuple[int, int]], limit: int) -> None:
    """Whatever their weights: no lane is more than one job ahead of another that still has some."""
    made = [(Lane(str(number), 0.0, weight), jobs) for number, (weight, jobs) in enumerate(lanes)]
    giving = in_turn([(lane, iter(range(jobs))) for lane, jobs in made])
    taken = Counter(lane.key for (lane, _), _ in zip(giving, range(limit), strict=False))

    for lane, _ in made:
        for other, jobs in made:
            if taken[other.key] < jobs:
                ahead = taken[lane.key] / lane.weight - taken[other.key] / other.weight
                assert ahead <= 1 / lane.weight + 1e-9
    assert sum(taken.values()) == min(limit, sum(jobs for _, jobs in made))


def test_a_lane_gives_no_more_than_its_room() -> None:
    """The others give what it does not."""
    lanes = [
        (Lane("a", 0.0, room=2), iter("uvwxyz")),
        (Lane("b", 1.0), iter("rst")),
        (Lane("c", 0.0, room=0), iter("q")),
    ]

    assert "".join(job for _, job in in_turn(lanes)) == "urvst"


def test_a_lane_that_is_behind_comes_first() -> None:
    """Until it is level with the others."""
    lanes = [(Lane("a", 5.0), iter("abc")), (Lane("b", 7.0), iter("xyz"))]

    assert "".join(job for _, job in in_turn(lanes)) == "abxcyz"


def test_a_share_is_rounded_up() -> None:
    """So that all together give enough."""
    assert [share(10, 3), share(2, 5), share(4, 0)] == [4, 1, 4]
