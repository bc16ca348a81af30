"""Keeps the log short when the same thing happens again and again."""

from collections.abc import Callable

import trio

WINDOW = 1.0
"""Seconds after which lines are let through again."""


class LogThrottle:
    """Lets at most `limit` lines in a `WINDOW` through, and counts those that it holds back."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._since, self._told = 0.0, 0
        self.held_back = 0
        """how many lines were held back since the last one that came through"""

    def tell(self, write: Callable[..., object], event: str, **more: object) -> None:
        """Write a line, where it may be written now, with how many more there were since the last one."""
        if self.lets_through():
            if held_back := self.take():
                more["more"] = held_back
            write(event, **more)

    def lets_through(self) -> bool:
        """Whether a line may be written now. Ask once a line."""
        now = trio.current_time()
        if now - self._since >= WINDOW:
            self._since, self._told = now, 0
        self._told += 1
        if self._told > self._limit:
            self.held_back += 1
            return False
        return True

    def take(self) -> int:
        """How many were held back, to be told with the line that came through."""
        held_back, self.held_back = self.held_back, 0
        return held_back
