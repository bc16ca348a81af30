"""Wall time, and how it follows Trio's clock under test."""

import time

import pytest
import trio
from trio.testing import MockClock

from jobpipe.clock import NAP, Clock, VirtualClock, WallClock

DAY = 86_400.0


async def test_the_wall_clock_tells_the_machines_time_in_milliseconds() -> None:
    """So that a time survives its way through JSON."""
    before = time.time()
    now = WallClock().now()
    after = time.time()

    assert before - 0.001 <= now <= after + 0.001
    assert now == round(now, 3)


async def test_nobody_sleeps_long_on_the_wall_clock() -> None:
    """It may be set at any time, so a sleeper looks again; what has come already needs no sleep."""
    clock = WallClock()

    assert clock.nap(time.time() + DAY) == NAP
    assert 0 < clock.nap(time.time() + NAP / 2) <= NAP / 2
    assert clock.nap(time.time() - DAY) == 0
    assert clock.nap(float("inf")) == NAP


async def test_a_virtual_clock_starts_where_it_is_told(mock_clock: MockClock) -> None:
    """At its first look, however long the run has lasted."""
    mock_clock.jump(DAY)

    assert VirtualClock(1000.0).now() == 1000.0


async def test_a_virtual_clock_follows_trios_clock(autojump_clock: MockClock) -> None:
    """Days pass in milliseconds."""
    clock = VirtualClock(1000.0)
    clock.now()
    await trio.sleep(3 * DAY)

    assert clock.now() == 1000.0 + 3 * DAY


async def test_a_virtual_clock_tells_whole_milliseconds(mock_clock: MockClock) -> None:
    """As the wall clock does."""
    clock = VirtualClock(1000.0)
    clock.now()
    mock_clock.jump(0.123456)

    assert clock.now() == 1000.123


async def test_a_nap_on_the_virtual_clock_ends_at_its_time(autojump_clock: MockClock) -> None:
    """The whole wait, since nothing else moves this clock."""
    clock = VirtualClock(1000.0)
    until = clock.now() + 10 * DAY
    await trio.sleep(clock.nap(until))

    assert clock.now() == until
    assert clock.nap(until) == 0
    assert clock.nap(until - DAY) == 0


@pytest.mark.parametrize("seconds", [DAY, -DAY])
async def test_a_virtual_clock_can_be_set_by_hand(mock_clock: MockClock, seconds: float) -> None:
    """Forward and back, as somebody sets the machine's clock; Trio's own goes on as before."""
    clock = VirtualClock(1_000_000.0)
    clock.now()
    clock.step(seconds)
    mock_clock.jump(5)

    assert clock.now() == 1_000_005.0 + seconds


@pytest.mark.parametrize("clock", [WallClock(), VirtualClock()], ids=["wall", "virtual"])
async def test_each_clock_can_stand_for_the_other(clock: Clock) -> None:
    """Whoever waits with `nap` until a time finds that it has come."""
    until = clock.now() - 1

    assert clock.nap(until) == 0
    assert clock.nap(clock.now() + 1) > 0
