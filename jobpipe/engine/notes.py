"""What running jobs write between their start and their end: kept here until a batch has taken it."""

import contextlib
import math
import threading
from collections.abc import Callable, Sequence

import trio

from jobpipe.clock import Clock
from jobpipe.engine.attempt import Attempt
from jobpipe.engine.notebook import Notebook
from jobpipe.engine.unforeseen import Unforeseen
from jobpipe.job import Level, Progress
from jobpipe.store.base import Note

DELAY = 0.2
"""Seconds that a line, or a progress that is due, waits for a batch to ride with, before it gets one of its own."""

APART = 1.0
"""Seconds between two progresses of one attempt that are written; the last one is written with its end."""

MEMORY = 8 << 20
"""About how many bytes of memory lines take that are not written yet; beyond that each job keeps but its last line."""


class Notes:
    """Takes what handlers write, in whichever thread, and never makes them wait for the store.

    The ledger asks for it when it gathers a batch, and says what was written. `within` has the ledger write in so many
    seconds.
    """

    def __init__(self, clock: Clock, within: Callable[[float], None]) -> None:
        self._clock, self._within = clock, within
        self._open: dict[Attempt, Notebook] = {}
        self._size = 0
        self._unforeseen = Unforeseen()
        # Held for microseconds. Reentrant, since what the collector of garbage finalizes in between may log, too.
        self._lock = threading.RLock()
        self._home: tuple[int, trio.lowlevel.TrioToken] | None = None

    # What handlers write

    def progress(self, run: Attempt, fraction: float, message: str) -> None:
        """Say how far an attempt is; one that is over says nothing any more."""
        progress = Progress(fraction, message, self._clock.now())
        with self._lock:
            book = self._book(run)
            first = book is not None and book.progress is None
            if book is not None:
                book.progress = progress
        if first:
            self._tell(run)

    def line(self, run: Attempt, level: Level, text: str, fields: bytes | None) -> None:
        """Log a line of an attempt; one that is over logs nothing any more."""
        at = self._clock.now()
        with self._lock:
            book = self._book(run)
            first = book is not None and not book.has_lines
            if book is not None:
                before = book.size
                book.log(at, level, text, fields)
                while self._size - before + book.size > MEMORY and book.make_room():
                    pass
                self._size += book.size - before
        if first:
            self._tell(run)

    def _book(self, run: Attempt) -> Notebook | None:
        """Where an attempt writes; None once it is over."""
        if run.over:
            return None
        if run.notebook is None:
            run.notebook = Notebook()
        self._open[run] = run.notebook
        return run.notebook

    def _tell(self, run: Attempt) -> None:
        """Have it written in time: in Trio's thread, whichever this is."""
        if self._home is None or self._home[0] == threading.get_ident():
            self._schedule(run)
        else:
            with contextlib.suppress(trio.RunFinishedError):  # a thread that outlives the service
                self._home[1].run_sync_soon(self._schedule, run)

    def _schedule(self, *some: Attempt) -> None:
        """Have the ledger write what some attempts have written, when the first of it is due."""
        now, soonest = trio.current_time(), math.inf
        for run in some:
            if run.notebook is not None:
                soonest = min(soonest, _wait(run.notebook, now))
            if soonest == DELAY:
                break
        if soonest < math.inf:
            self._within(soonest)

    # What the ledger tells and asks

    def gathered(self) -> Sequence[Note]:
        """What goes into the next batch. It stays here until it is `written`."""
        if self._home is None:
            self._home = threading.get_ident(), trio.lowlevel.current_trio_token()
        if not self._open:
            return ()
        now = trio.current_time()
        with self._lock:
            lost = [run for run, book in self._open.items() if run.over and not book.closed]
            for run in lost:
                self._drop(run)
            notes = [self._note(run, book, now) for run, book in list(self._open.items())]
        return [note for note in notes if note is not None]

    def _note(self, run: Attempt, book: Notebook, now: float) -> Note | None:
        """What is to be written of an attempt now; None: nothing, or it cannot be had."""
        with self._unforeseen.costs("what a running job wrote is dropped", job=run.job.id):
            due = book.closed or book.told_at is None or book.told_at + APART <= now
            progress, lines = book.progress if due else None, book.lines
            if progress is None and not lines:
                return None
            return Note(
                seq=run.job.seq,
                id=run.job.id,
                claim=run.job.claim,
                attempt=run.number,
                progress=progress,
                lines=lines,
            )
        self._drop(run)
        return None

    def written(self, notes: Sequence[Note]) -> None:
        """Notes are written, or were refused for good; what has come meanwhile is written soon."""
        if notes:
            of_claims = {(note.seq, note.claim): note for note in notes}
            now = trio.current_time()
            with self._lock:
                for run, book in list(self._open.items()):
                    if note := of_claims.get((run.job.seq, run.job.claim)):
                        self._forget(run, book, note, now)
        self.again()

    def again(self) -> None:
        """What is here is to be written soon."""
        if not self._open:
            return
        with self._lock:
            waiting = list(self._open)
        self._schedule(*waiting)

    def _forget(self, run: Attempt, book: Notebook, note: Note, now: float) -> None:
        before = book.size
        book.written(note.lines, note.progress, now)
        self._size += book.size - before
        if not book.has_lines and book.progress is None:
            del self._open[run]

    def _drop(self, run: Attempt) -> None:
        """Nothing of an attempt will be written: its claim was lost."""
        self._size -= self._open.pop(run).size


def _wait(book: Notebook, now: float) -> float:
    """In how many seconds what is in a notebook is to be written; infinite: there is nothing."""
    if book.has_lines:
        return DELAY
    if book.progress is None:
        return math.inf
    return DELAY if book.told_at is None else max(DELAY, book.told_at + APART - now)
