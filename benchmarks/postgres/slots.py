"""When jobs began, noted by the processes that run them: a file each, mapped into memory, so that noting costs nothing.

Cells of 8 bytes: how many, then for each job when it began and, where its payload says so, when it was asked for. All
by the clock that every process of this machine shares.
"""

import mmap
import struct
import time
from pathlib import Path

CELL = 8


class Slot:
    """What one process has begun."""

    def __init__(self, path: Path, jobs: int) -> None:
        with path.open("w+b") as file:
            file.truncate((1 + 2 * jobs) * CELL)
            self._cells = memoryview(mmap.mmap(file.fileno(), 0)).cast("d")
        self._count = 0

    def note(self, payload: object) -> None:
        """A job began. The payload may be when it was asked for, as a number or its text."""
        now, place = time.perf_counter(), 1 + 2 * self._count
        if place >= len(self._cells):
            raise OverflowError("more jobs began than there should be")
        self._cells[place] = now
        if isinstance(payload, float):
            self._cells[place + 1] = payload
        self._count += 1
        self._cells[0] = self._count


def count(path: Path) -> int:
    """How many jobs a process has begun by now."""
    with path.open("rb") as file:
        return int(struct.unpack("d", file.read(CELL))[0])


def begun(path: Path) -> list[tuple[float, float]]:
    """When each job began, and when it was asked for (0: it did not say)."""
    with path.open("rb") as file:
        jobs = int(struct.unpack("d", file.read(CELL))[0])
        return list(struct.iter_unpack("dd", file.read(2 * CELL * jobs)))
