"""What one attempt has written, and the store does not have yet. Pure: no clock, no store, no task."""

from collections import deque
from collections.abc import Sequence

from jobpipe.job import Level, Progress
from jobpipe.store.base import LOG_BYTES, LOG_LINES, LogLine

OVERHEAD = 256
"""About how many bytes of memory a line takes beside its text and its fields."""


class Notebook:
    """Keeps the latest progress, and of the log lines what the store would keep: the first and the last ones.

    Nothing is taken out until it is written, so a batch that fails costs nothing. The numbers of lines tell which of
    them are there already, where one is written twice.
    """

    __slots__ = (
        "_first",
        "_last",
        "_last_size",
        "_logged",
        "_number",
        "closed",
        "progress",
        "size",
        "told_at",
    )

    def __init__(self) -> None:
        self.progress: Progress | None = None
        """what is to be written of it"""
        self.told_at: float | None = None
        """in Trio's clock: when progress was written last"""
        self.closed = False
        """whether the settlement is handed in: what is here is written no later than that"""
        self.size = 0
        """about how many bytes of memory its lines take"""
        self._number = self._logged = 0  # lines so far, and their bytes
        self._first: list[LogLine] = []
        self._last: deque[LogLine] | None = None  # made when it is needed: hardly any attempt logs so much
        self._last_size = 0

    @property
    def has_lines(self) -> bool:
        """Whether lines wait."""
        return bool(self._first or self._last)

    @property
    def lines(self) -> Sequence[LogLine]:
        """The lines that wait, in their order."""
        return [*self._first, *(self._last or ())]

    def log(self, at: float, level: Level, text: str, fields: bytes | None) -> None:
        """Take in a line."""
        self._number += 1
        line = LogLine(self._number, at, level, text, fields)
        size = line.size
        self._logged += size
        self.size += size + OVERHEAD
        if self._number <= LOG_LINES // 2 and self._logged <= LOG_BYTES // 2:
            self._first.append(line)
            return
        last = self._last = deque() if self._last is None else self._last
        last.append(line)
        self._last_size += size
        while len(last) > LOG_LINES // 2 or self._last_size > LOG_BYTES // 2:
            self._leave_out(last.popleft(), last=True)

    def make_room(self) -> bool:
        """Leave out a line of the middle; False: there is only one."""
        if self._last is not None and len(self._last) > 1:
            self._leave_out(self._last.popleft(), last=True)
        elif self._last and self._first:
            self._leave_out(self._first.pop(), last=False)
        elif len(self._first) > 1:
            newest = self._first.pop()
            self._leave_out(self._first.pop(), last=False)
            self._first.append(newest)
        else:
            return False
        return True

    def written(self, lines: Sequence[LogLine], progress: Progress | None, now: float) -> None:
        """So much of it is written."""
        if progress is not None:
            self.told_at = now
            if self.progress is progress:
                self.progress = None
        if lines:
            upto = lines[-1].number
            written = [line for line in self._first if line.number <= upto]
            for line in written:
                self._leave_out(line, last=False)
            del self._first[: len(written)]
            while self._last and self._last[0].number <= upto:
                self._leave_out(self._last.popleft(), last=True)

    def _leave_out(self, line: LogLine, *, last: bool) -> None:
        size = line.size
        self.size -= size + OVERHEAD
        if last:
            self._last_size -= size
