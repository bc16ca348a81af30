"""Wall time for run_at and for what is kept; under test it follows Trio's clock."""

import time
from collections.abc import Callable
from typing import Protocol

import trio

NAP = 5.0
"""Seconds after which a sleeper looks at the wall clock again, in case somebody set it."""


class Clock(Protocol):
    """Tells the time and waits for it."""

    def now(self) -> float:
        """Seconds since the epoch, in whole milliseconds, so that a time survives its way through JSON."""

    def nap(self, until: float) -> float:
        """How many seconds a task should sleep before it looks again whether `until` has come."""


class WallClock:
    """The machine's clock. It may be set back and forward: nobody sleeps long without looking again.

    `offset` tells by how many seconds the clock that all nodes share is ahead of this machine's; None: it is this one.
    """

    def __init__(self, offset: Callable[[], float] | None = None) -> None:
        self._offset = offset

    def now(self) -> float:
        """Seconds since the epoch."""
        now = time.time() if self._offset is None else time.time() + self._offset()
        return int(now * 1000) / 1000  # a quarter of what round() costs

    def nap(self, until: float) -> float:
        """At most `NAP` seconds."""
        ahead = 0.0 if self._offset is None else self._offset()
        return min(max(until - time.time() - ahead, 0.0), NAP)


class VirtualClock:
    """Follows Trio's clock from a fixed start: with an autojump clock days pass in milliseconds.

    `step` moves it by hand, as somebody who sets the machine's clock would.
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._start = start
        self._origin: float | None = None
        self._last = 0.0

    def now(self) -> float:
        """Seconds since the epoch, from `start` on. In a thread, which cannot ask Trio, the last time that was told."""
        if trio.lowlevel.in_trio_run():
            self._last = trio.current_time()
        if self._origin is None:
            self._origin = self._last
        return round(self._start + self._last - self._origin, 3)

    def nap(self, until: float) -> float:
        """The whole wait: nothing but Trio's clock moves this one."""
        return max(until - self.now(), 0.0)

    def step(self, seconds: float) -> None:
        """Set the clock forward (or back, when negative) at once."""
        self._start += seconds
