"""One page of a list, read part by part, so that neither its bytes nor its time grow with what the store holds."""

import time
from collections.abc import Callable

from jobpipe.job import Job
from jobpipe.store.base import PAGE_BYTES, Filter, Page, Place
from jobpipe.store.rows import Row, job_from

LOOK = 100_000
"""The most rows that one list looks at."""

FIRST = 100
"""How many rows a text search looks at first: each may hold megabytes."""

SECONDS = 0.25
"""How long a list goes on looking: a search that has spent it returns a short page with a cursor."""

ROW = 700
"""Bytes that a job takes in an answer beside its texts."""

Clock = Callable[[], float]


class Pager:
    """A page in the making: says how many rows to look at next, takes what was found, and knows when to end.

    The first job is always taken, however large, so that a list can go on behind it.
    """

    def __init__(
        self, where: Filter, limit: int, before: Place | None, clock: Clock = time.monotonic
    ) -> None:
        self._limit, self._clock = limit, clock
        self._begun = self._mark = clock()
        self._jobs: list[Job] = []
        self._size = self._fitting = self._looked = 0
        self._next: Place | None = None
        self.before = before
        """the next part begins behind this place; None: with the newest"""
        self.look = min(LOOK, FIRST if where.text is not None else max(limit, 10 * FIRST))
        """how many rows the next part looks at"""
        self.over = False

    @property
    def room(self) -> int:
        """How many jobs more the page may hold."""
        return self._limit - len(self._jobs)

    def fits(self, size: int, place: Place) -> bool:
        """Whether a job of so many bytes comes in; when not, the page ends before it."""
        self._size += size + ROW
        if self._fitting and self._size > PAGE_BYTES:
            self.over = True
            return False
        self._fitting += 1
        self._next = place
        return True

    def take(self, row: Row) -> None:
        """Add a job that fits, from the store's JOB_COLUMNS."""
        self._jobs.append(job_from(row))
        self.over = self.over or len(self._jobs) == self._limit

    def looked(self, edge: Place | None) -> None:
        """A part was looked at down to the place `edge`; None: the list ends there."""
        if self.over:
            return
        now = self._clock()
        self._looked += self.look
        self._next = edge
        self.over = edge is None or self._looked >= LOOK or now - self._begun >= SECONDS
        if edge is not None:
            self.before = edge
            self.look = min(self._grown(now - self._mark), LOOK - self._looked)
            self._mark = now

    def _grown(self, seconds: float) -> int:
        """Twice as many rows as before, unless those took a good part of the time."""
        return self.look if seconds > SECONDS / 8 else 2 * self.look

    def page(self) -> Page:
        """What was found."""
        return Page(self._jobs, self._next)
