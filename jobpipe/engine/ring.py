"""The latest events of a node, as many as are kept: whoever reads them later than that has missed some. Pure."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

import msgspec

from jobpipe.job import Status
from jobpipe.store.base import Summary

KEPT = 10_000
"""How many events a node keeps."""


class JobEvent(msgspec.Struct):
    """What became of a job."""

    number: int
    """grows from event to event"""
    id: str
    status: Status | Literal["deleted"]
    at: float
    job: Summary | None
    """the job as it was shortly after; None: it was deleted"""
    shown: bytes = b""
    """the event as it is sent, once somebody has made that: it is the same for all"""


class Missed(msgspec.Struct, frozen=True):
    """Events are missing here."""

    number: int
    since: float | None
    """None: nobody knows since when"""
    at: float


Entry = JobEvent | Missed


class Ring:
    """Keeps the last `size` events. A place in it is the count of all events before it."""

    def __init__(self, size: int = KEPT) -> None:
        self._size = size
        self._slots: list[Entry] = []
        self.end = 0
        """the place behind the last event"""
        self.number = 0
        """of the last event"""
        self._floor = 0  # the number of the last event that is kept no more

    def begin(self, now: float) -> None:
        """Keep nothing of what was before, and number what comes by the time, so that each number says when it was."""
        self._slots, self.end = [], 0
        self._floor = self.number = max(self.number, int(now * 1e6))

    def next_number(self, now: float) -> int:
        """The number of the next event: microseconds since the epoch, so that events that are lost have a time."""
        return max(self.number + 1, int(now * 1e6))

    def append(self, one: Entry) -> None:
        """Add an event; its number is that of `next_number`."""
        if len(self._slots) < self._size:
            self._slots.append(one)
        else:
            self._floor = self._slots[self.end % self._size].number
            self._slots[self.end % self._size] = one
        self.end += 1
        self.number = one.number

    @property
    def first(self) -> int:
        """The place of the oldest event that is kept."""
        return self.end - len(self._slots)

    def behind(self, number: int) -> int | None:
        """The place behind the event of a number; None where events behind it are kept no more, or it is yet to be."""
        if not self._floor <= number <= self.number:
            return None
        places = range(self.first, self.end)
        return self.first + bisect_right(places, number, key=lambda place: self._at(place).number)

    def part(self, place: int, limit: int) -> Sequence[Entry]:
        """At most so many events from a place on, which is not before the first."""
        return [self._at(one) for one in range(place, min(self.end, place + limit))]

    def _at(self, place: int) -> Entry:
        return self._slots[place % self._size]
