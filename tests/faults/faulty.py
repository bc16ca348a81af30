"""`jobpipe` on a disk and a clock that do what a test tells them: run as a program in jobpipe's place.

The file named by JOBPIPE_TEST_FAULTS holds the faults that are in force, as JSON, and may change at any moment:
`disk`, a list of {"call": "write" or "sync", "file": the end of a file's name, "seconds": a delay,
"error": "io" or "full" or null, "times": how often, null for ever}, and `clock`, seconds added to the wall clock.
Each fault that strikes is a line in the file beside it that ends in `.struck`.
"""

import json
import os
import sys
import threading
import time
from typing import Any

import apsw

from jobpipe.cli import main

FAULTS = os.environ["JOBPIPE_TEST_FAULTS"]
IO_ERRORS = {"write": apsw.SQLITE_IOERR_WRITE, "sync": apsw.SQLITE_IOERR_FSYNC}


class Faults:
    """What is in force now; the file is read again when it has been replaced."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: int | None = None
        self.disk: list[dict[str, Any]] = []
        self.clock = 0.0

    def look(self) -> None:
        """Follow the file."""
        try:
            found = os.stat(FAULTS)  # noqa: PTH116 - once a call: the short way
        except FileNotFoundError:
            return
        if found.st_mtime_ns != self._read:
            with open(FAULTS) as file:  # noqa: PTH123 - the same
                told = json.load(file)
            self._read, self.disk, self.clock = found.st_mtime_ns, told.get("disk", []), told.get("clock", 0)

    def strike(self, call: str, name: str) -> None:
        """Do to a call what is in force for it: nothing, a delay, an error."""
        with self._lock:
            self.look()
            fault = next(
                (one for one in self.disk if one["call"] == call and name.endswith(one["file"])), None
            )
            if fault is None or fault["times"] == 0:
                return
            if fault["times"] is not None:
                fault["times"] -= 1
            with open(f"{FAULTS}.struck", "a") as file:  # noqa: PTH123 - the same
                file.write(f"{call} {name}\n")
        time.sleep(fault["seconds"])
        if fault["error"] == "full":
            raise apsw.FullError("database or disk is full")
        if fault["error"] == "io":
            error = apsw.IOError("disk I/O error")
            error.result, error.extendedresult = apsw.SQLITE_IOERR, IO_ERRORS[call]  # type: ignore[attr-defined]  # APSW's own way
            raise error


faults = Faults()


class File(apsw.VFSFile):
    """A file of SQLite whose writes and syncs may be struck."""

    def __init__(self, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._name = name.filename() if isinstance(name, apsw.URIFilename) else name or ""
        super().__init__("unix", name, flags)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802 - SQLite's name
        """Write, unless it is struck."""
        faults.strike("write", self._name)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        """Sync, unless it is struck."""
        faults.strike("sync", self._name)
        super().xSync(flags)


class Disk(apsw.VFS):
    """The usual way to files, through `File`."""

    def __init__(self) -> None:
        super().__init__("faulty", "unix", makedefault=True)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> File:  # noqa: N802 - SQLite's name
        """Open a file."""
        return File(name, flags)


def set_clock() -> None:
    """From now on the wall clock is off by what the faults say; what counts seconds that pass is not."""
    real = time.time

    def told() -> float:
        faults.look()
        return real() + faults.clock

    time.time = told


if __name__ == "__main__":
    disk = Disk()
    set_clock()
    sys.exit(main())
