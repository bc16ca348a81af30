"""When the ledger writes, and how much of what waits goes into one batch. Pure, but for the time."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from operator import attrgetter

import trio

from jobpipe.clock import Clock
from jobpipe.engine.entries import Claimer, Entry
from jobpipe.store.base import Add, Receipt, Settlement

START_DELAY = 0.05
"""Seconds that a start waits for a batch to ride with, before it gets one of its own."""

SETTLE_DELAY = 0.01
"""Seconds that an outcome waits for others, and for new jobs, to share a commit with; none when somebody waits."""

LOCKED_DELAY = 1.0
"""Seconds before what could not be written because another program had locked its row is tried again."""

GATHER_ADDS, GATHER_DELAY = 8, 0.001
"""How many adds a commit waits for, and how many seconds at the most, where twice as many came with the last one."""

STUCK = 0.05
"""Seconds before the store is asked again for jobs that were due before the last batch and still are."""

LONGEST_PAUSE = 5.0
"""The longest wait, in seconds, before a store that could not write is tried again."""

ADDS = 1000
"""About how many jobs are added in one transaction at the most."""

BATCH = 400
"""How many outcomes are written, and how many jobs claimed, in one transaction at the most."""

BATCH_WHILE_ADDING, ADDING = 128, 1.0
"""How many while clients add, who wait for the transaction under way; and for how many seconds they count as adding."""


_JOBS = attrgetter("jobs")


class Batching:
    """Is told what is handed in and what came of each batch, and decides. Knows entries by their number only."""

    def __init__(self, clock: Clock, lease: float) -> None:
        self._clock, self._lease = clock, lease
        self.write_at = math.inf
        """in Trio's clock: when to write outcomes and starts that nobody waits for; infinite while there are none"""
        self._unlock_at = math.inf  # in Trio's clock: when to try again what was locked
        self._gather_until = math.inf  # in Trio's clock
        self._adding_until = -math.inf  # in Trio's clock
        self._added = 0  # with the last batch that had any
        # What is known of the jobs in the store: for which claimers none is ready, and when the next one is due.
        self._dry: Collection[Claimer] = ()
        self._look_again = False
        self._next_due = self._was_due = -math.inf
        self._pause = 0.0
        self._woken = trio.Event()

    # When to write

    def when(self, adds: int, presses: Callable[[], bool]) -> float:
        """When to write, in Trio's clock, given how many adds wait, and whether anything presses; the past means now.

        It holds as long as nothing more is handed in: ask again after each `woken`. There are three cases. What presses
        is written now. Adds are too, but where many came with the last batch a few wait a moment for the others.
        Outcomes, noted starts, what was locked and what becomes due have a time of their own.
        """
        now = trio.current_time()
        if adds >= self._enough or presses():
            return now
        if adds:
            self._gather_until = min(self._gather_until, now + GATHER_DELAY)
            return self._gather_until
        self._gather_until = math.inf
        return min(self.write_at, self._unlock_at, self._due_at(now))

    async def woken(self, until: float) -> None:
        """Sleep until a time of Trio's clock, or until something was handed in."""
        self._woken = trio.Event()
        with trio.move_on_at(until):
            await self._woken.wait()

    def wake(self) -> None:
        """Something was handed in that may have to be written now."""
        self._woken.set()

    def hurry(self, claimer: Claimer) -> None:
        """A claim may pay now, or press."""
        if claimer not in self._dry:
            self.wake()

    @property
    def _enough(self) -> int:
        """How many adds do not wait for more. Clients that had their answers together come back one after the other.

        A commit for the first alone would make the others wait; one for half of them is written while the other half is
        served.
        """
        return max(1, min(GATHER_ADDS, self._added // 2))

    def presses(self, claimer: Claimer) -> bool:
        """Whether to write for a claim alone."""
        return claimer not in self._dry and claimer.wanted() > 0 and claimer.pressing()

    def within(self, seconds: float) -> None:
        """Write what is there in so many seconds, unless there is a reason to do it before."""
        at = trio.current_time() + seconds
        if at < self.write_at:
            self.wake()
            self.write_at = at

    def noted(self) -> None:
        """The first start waits that nobody waits for."""
        self.within(START_DELAY)

    def settled(self, outcomes: int) -> None:
        """So many outcomes wait, that nobody waits for; to be told of the first, and of each that fills a batch."""
        self.within(0.0 if outcomes >= BATCH else SETTLE_DELAY)

    def kept(self) -> None:
        """Something of a batch that failed waits again."""
        self.write_at = -math.inf

    def locked(self) -> None:
        """Something could not be written because of a lock."""
        self._unlock_at = min(self._unlock_at, trio.current_time() + LOCKED_DELAY)

    def unlocks(self) -> bool:
        """Whether what was locked goes into the batch that is gathered."""
        return self._unlock_at <= trio.current_time()

    def unlocked(self) -> None:
        """It does; nothing else is locked."""
        self._unlock_at = math.inf

    # How much

    def first_adds(
        self, adds: Iterable[Entry[Add, Sequence[Receipt]]]
    ) -> list[Entry[Add, Sequence[Receipt]]]:
        """Those that have waited longest, as many as go into one batch."""
        first: list[Entry[Add, Sequence[Receipt]]] = []
        jobs = 0
        for entry in adds:
            jobs += len(entry.what.jobs)
            if first and jobs > ADDS:
                break
            first.append(entry)
        return first

    def first_outcomes(self, settlements: Sequence[Settlement], most: int) -> Sequence[Settlement]:
        """Those that have waited longest, at most so many, as go into one batch with all that they bring."""
        first = settlements[:most]
        if not any(map(_JOBS, first)):
            return first
        jobs = 0
        for place, one in enumerate(first):
            jobs += len(one.jobs)
            if place and jobs > ADDS:
                return first[:place]
        return first

    def most(self, *, adding: bool) -> int:
        """How many outcomes, and how many jobs claimed, go into the next batch at the most."""
        now = trio.current_time()
        if adding:
            self._adding_until = now + ADDING
        return BATCH_WHILE_ADDING if now < self._adding_until else BATCH

    # What came of it

    def gathered(self, adds: int, *, left: bool) -> None:
        """A batch takes so many adds, and all outcomes but for some that are `left`."""
        self._look_again = False
        self._gather_until = math.inf
        self._added = adds or self._added
        self.write_at = -math.inf if left else math.inf

    def pause(self) -> float:
        """How many seconds to wait before a store that could not write is tried again: longer each time."""
        self._pause = min(LONGEST_PAUSE, self._lease / 6, self._pause * 2 or 0.1)  # renewals wait behind this
        return self._pause

    def learn(self, now: float, *, due: float | None, dry: Collection[Claimer]) -> None:
        """A batch of the time `now` is written. `due`: when the next job is; `dry`: who asked and found too little."""
        self._pause = 0.0
        self._next_due, self._dry = self._believed(now, due), dry
        if self._look_again:
            # Somebody said so meanwhile: this batch may have looked before there was anything.
            self._next_due, self._dry = -math.inf, ()

    def _believed(self, now: float, due: float | None) -> float:
        """When to look for due jobs again, given when the next one is due. A time that is no time counts as none."""
        if due is None or math.isnan(due):
            return math.inf
        # What was due before this batch and still is may be locked, or cannot be written: not again at once.
        stuck = due <= now and due == self._was_due
        self._was_due = due
        return now + STUCK if stuck else due

    def look(self) -> None:
        """Jobs may have become ready or due: look with the next batch."""
        self._dry, self._next_due, self._look_again = (), -math.inf, True
        self.wake()

    def _due_at(self, now: float) -> float:
        """When the next job is due, in Trio's clock."""
        if self._next_due <= self._clock.now():
            return now
        return now + self._clock.nap(self._next_due) if self._next_due < math.inf else math.inf
