"""The wait before a retry: bounds, growth, jitter, and no overflow whatever the policy."""

import math
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobpipe.backoff import ceiling, delay
from jobpipe.job import Backoff

UNTIMED = settings(deadline=None)
"""A busy machine is no fault."""

TINY = 5e-324
HUGE = 1 << 62

POLICIES = st.builds(
    Backoff,
    base=st.floats(0, 86_400),
    factor=st.floats(1, 100),
    cap=st.floats(0, 31_536_000),
    jitter=st.sampled_from(["full", "equal", "none"]),
)
RETRIES = st.integers(1, 10_000)
RANDOM = st.floats(0, 1, exclude_max=True)


def always(number: float) -> Callable[[], float]:
    return lambda: number


@pytest.mark.parametrize(
    ("retry", "seconds"), [(1, 1), (2, 2), (3, 4), (5, 16), (12, 2048), (13, 3600), (100, 3600)]
)
def test_the_usual_wait_doubles_until_an_hour(retry: int, seconds: float) -> None:
    """1, 2, 4, 8 seconds and so on, before jitter."""
    assert ceiling(Backoff(), retry) == pytest.approx(seconds)


def test_factor_and_base_are_what_they_say() -> None:
    """base * factor ** (retry - 1)."""
    policy = Backoff(base=0.5, factor=3, cap=1000, jitter="none")

    assert [delay(policy, retry, always(0.5)) for retry in (1, 2, 3, 4)] == pytest.approx(
        [0.5, 1.5, 4.5, 13.5]
    )


@UNTIMED
@given(policy=POLICIES, retry=RETRIES, number=RANDOM)
@example(policy=Backoff(base=86_400, factor=100, cap=31_536_000), retry=10_000, number=1 - 2**-53)
@example(policy=Backoff(base=TINY, factor=100, cap=31_536_000), retry=10_000, number=0.5)
@example(policy=Backoff(base=TINY, factor=19, cap=1), retry=243, number=0.5)
@example(policy=Backoff(base=TINY, factor=1, cap=TINY), retry=HUGE, number=0.5)
@example(policy=Backoff(base=1, factor=1 + 2**-52, cap=2), retry=HUGE, number=0.0)
@example(policy=Backoff(base=0, factor=100, cap=0), retry=HUGE, number=0.0)
def test_a_wait_lies_between_nothing_and_the_cap(policy: Backoff, retry: int, number: float) -> None:
    """A finite number of seconds for every policy, retry and draw."""
    wait = delay(policy, retry, always(number))

    assert math.isfinite(wait)
    assert 0 <= wait <= policy.cap


@UNTIMED
@given(policy=POLICIES, retry=RETRIES)
def test_a_later_retry_never_waits_less(policy: Backoff, retry: int) -> None:
    """Before jitter, the wait grows until it is the cap, and stays there."""
    first, second = ceiling(policy, retry), ceiling(policy, retry + 1)

    assert first <= second
    assert first < policy.cap or second == policy.cap


@UNTIMED
@given(policy=POLICIES, retry=st.integers(1, 60))
def test_the_wait_is_the_formula_where_that_can_be_computed(policy: Backoff, retry: int) -> None:
    """min(cap, base * factor ** (retry - 1))."""
    plain = min(policy.cap, policy.base * policy.factor ** (retry - 1))

    assert ceiling(policy, retry) == pytest.approx(plain, rel=1e-9, abs=1e-300)


@UNTIMED
@given(policy=POLICIES)
def test_the_first_wait_is_the_base(policy: Backoff) -> None:
    """Unless the cap is lower."""
    assert ceiling(policy, 1) == pytest.approx(min(policy.base, policy.cap), abs=1e-300)


@pytest.mark.parametrize(("jitter", "lowest"), [("full", 0.0), ("equal", 0.5), ("none", 1.0)])
@UNTIMED
@given(policy=POLICIES, retry=RETRIES, number=RANDOM)
def test_jitter_spreads_over_its_part_of_the_wait(
    jitter: str, lowest: float, policy: Backoff, retry: int, number: float
) -> None:
    """Full: from zero on; equal: the upper half; none: the wait itself."""
    policy = Backoff(policy.base, policy.factor, policy.cap, jitter)  # type: ignore[arg-type] # one of the three
    longest = ceiling(policy, retry)
    wait = delay(policy, retry, always(number))

    assert lowest * longest <= wait <= longest


@pytest.mark.parametrize(("jitter", "low", "middle"), [("full", 0.0, 0.5), ("equal", 0.5, 0.75)])
def test_jitter_uses_its_whole_part(jitter: str, low: float, middle: float) -> None:
    """Evenly, so that jobs which failed together do not come back together."""
    policy = Backoff(base=1, cap=1, jitter=jitter)  # type: ignore[arg-type] # one of the three
    random = Random(17).random
    waits = [delay(policy, 1, random) for _ in range(10_000)]

    assert min(waits) == pytest.approx(low, abs=0.01)
    assert max(waits) == pytest.approx(1, abs=0.01)
    assert sum(waits) / len(waits) == pytest.approx(middle, abs=0.01)


def test_without_jitter_nothing_is_drawn() -> None:
    """The wait is the same each time."""

    def never() -> float:
        raise AssertionError

    assert delay(Backoff(jitter="none"), 3, never) == pytest.approx(4)
