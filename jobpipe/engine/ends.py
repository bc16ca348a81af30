"""Every end of a job, from the store: in the order of the ends, and none is left out.

Ends are written some time after they were, and not in their order. So a reader keeps a horizon: all that ended before
it is written by now, and was read. Now and then it reads all from there once more, and remembers what of that it has
read already. A reader that goes on at the horizon of an earlier one, on any node, misses nothing. It may read some ends
again.
"""

import math
from collections.abc import Callable, Sequence
from operator import itemgetter

from jobpipe.clock import Clock
from jobpipe.job import Status
from jobpipe.store.base import EndPlace, ReadStore, Summary

PAGE = 500
"""How many ends are looked at in one transaction."""

BACK = 1.5
"""After so many leases an end is written, or never will be.

A node that cannot write keeps the ends of its jobs and tries again. When it has not renewed its lease for a lease,
another node takes these jobs within a third of that, and the late ends do not count any more.
"""

NEAR = 2.0
"""Seconds after which an end is written, as a rule. The others are found by the look that goes back to the horizon."""

REMEMBERED = 200_000
"""The most ends that a reader remembers. Of more, the horizon goes past the first half."""

FAR = 1e12
"""A time that no clock shows: what a damaged row says, is taken for this."""

End = tuple[EndPlace, Summary]


class Remembered:
    """The ends that were read, by the second, so that those of a time are forgotten at once. Pure."""

    def __init__(self) -> None:
        self._seconds: dict[int, set[int]] = {}
        self._number = 0

    def __contains__(self, place: object) -> bool:
        return isinstance(place, EndPlace) and _mark(place) in self._seconds.get(_second(place.at), ())

    def add(self, place: EndPlace) -> None:
        """Remember one more."""
        self._seconds.setdefault(_second(place.at), set()).add(_mark(place))
        self._number += 1

    def forget(self, before: float) -> None:
        """Forget those of whole seconds before a time."""
        for second in [one for one in self._seconds if one < _second(before)]:
            self._number -= len(self._seconds.pop(second))

    def forget_first(self, most: int) -> float | None:
        """Of more than so many, forget the first half, and return the time up to which all are forgotten."""
        if self._number <= most:
            return None
        upto = None
        for second in sorted(self._seconds):
            if self._number <= most // 2:
                break
            self._number -= len(self._seconds.pop(second))
            upto = second + 1.0
        return upto


def _second(at: float) -> int:
    return int(_bounded(at) // 1)


def _bounded(at: float) -> float:
    return max(min(at, FAR), -FAR)


def _mark(place: EndPlace) -> int:
    """An end within its second: the job's number and the microsecond, since a job that is retried ends again."""
    return place.seq << 20 | int(_bounded(place.at) % 1 * 1e6)


class Ending:
    """Reads the ends of one or more statuses.

    `troubled`: whether this node cannot write now. Then ends may be written late, and the horizon stays for a lease.
    """

    def __init__(
        self,
        store: ReadStore,
        clock: Clock,
        statuses: Sequence[Status],
        *,
        lease: float,
        troubled: Callable[[], bool],
    ) -> None:
        self._store, self._clock, self._statuses, self._lease = store, clock, statuses, lease
        self._back, self._troubled = BACK * lease, troubled
        now = clock.now()
        self.horizon = EndPlace(now - self._back, 0)
        """where a reader goes on that is to miss nothing"""
        self._read = Remembered()
        # The look under way: where it stands in each status, and what is read of it and not handed on.
        self._looking, self._places = False, dict[Status, EndPlace]()
        self._ends: list[End] = []
        self._final = self.horizon  # up to where all is written
        self._from_horizon = False
        self._looked_at = now
        self._goes_back_at = -math.inf
        self._stays_until = now + lease

    async def pass_over(self) -> None:
        """Count as read what has ended by now. Raises `StoreError`."""
        while await self.part():
            pass

    def go_on(self, horizon: EndPlace) -> None:
        """Read what an earlier reader with this horizon has not read, and perhaps a little more. To be called first."""
        self.horizon = min(horizon, self.horizon)

    async def part(self) -> Sequence[End]:
        """The next ends that were not read yet; none: that is all for now. Raises `StoreError`.

        The horizon goes on with it.
        """
        if not self._looking:
            self._begin()
        while self._places:
            if ready := await self._more():
                for place, _ in ready:
                    self._read.add(place)
                if self._from_horizon:
                    self._move(min(ready[-1][0], self._final))
                return ready
        self._looking = False
        if self._from_horizon:
            self._move(self._final)
        return ()

    def _begin(self) -> None:
        """Begin to look."""
        now = self._clock.now()
        if self._troubled():
            self._stays_until = now + self._lease
        if now < self._looked_at:  # the clock was set back
            self._stays_until, self._goes_back_at = min(self._stays_until, now + self._lease), now
            self.horizon = min(self.horizon, EndPlace(now - self._back, 0))
        start = self.horizon
        self._from_horizon = now >= self._goes_back_at
        if self._from_horizon:
            self._goes_back_at = now + self._back / 2
        else:
            start = max(start, EndPlace(self._looked_at - NEAR, 0))
        self._final = EndPlace(now - self._back, 0) if now >= self._stays_until else self.horizon
        self._looked_at = now
        self._looking = True
        self._places, self._ends = dict.fromkeys(self._statuses, start), []

    async def _more(self) -> Sequence[End]:
        """Look a page further in the status that lags, and return what comes before all that is not looked at."""
        status = min(self._places, key=self._places.__getitem__)
        page = await self._store.ends(status, self._places[status], PAGE, self._read)
        self._ends += page.jobs
        if page.next is None:
            del self._places[status]
        else:
            self._places[status] = page.next
        upto = min(self._places.values(), default=None)
        self._ends.sort(key=itemgetter(0))
        ready = [one for one in self._ends if upto is None or one[0] <= upto]
        self._ends = self._ends[len(ready) :]
        return ready

    def _move(self, horizon: EndPlace) -> None:
        """Move the horizon on, and forget what lies before it."""
        if horizon > self.horizon:
            self.horizon = horizon
            self._read.forget(horizon.at)
        if (upto := self._read.forget_first(REMEMBERED)) is not None:
            self.horizon = max(self.horizon, EndPlace(upto, 0))
