"""The file while it is open: its connections, and how they are opened anew after a failure."""

import os
import queue
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import apsw

from jobpipe.errors import StoreError, StoreUnavailable
from jobpipe.store.sqlite.opening import (
    cause,
    check_path,
    connect,
    exclusive,
    mapped,
    prepare,
    warn_of_others,
)

CHECKPOINT_PAGES = 1000
"""How long SQLite's log may grow before it is moved into the database: its own default."""

Pool = Literal["read", "search"]
"""What a connection reads: short things, or texts to be searched, which may take their time."""

POOLS: Mapping[Pool, int] = {"read": 2, "search": 1}
"""How many connections read in each pool."""

READ_PATIENCE = 2.0
"""Seconds that reads under way have to end before the file is opened anew."""

Reader = tuple[Pool, apsw.Connection | None]
"""A connection that reads, in its pool; None: closed, and not opened anew yet."""


class Database:
    """The file while it is open: one connection that writes, and some that read. The caller holds the lock.

    After an input or output error, a failed fsync above all, what SQLite remembers may be another thing than what
    the disk holds: `doubt` it, and the next `ready` closes every connection and reads the file anew, through
    the checks of the start. One thread at a time writes and calls the methods; `reader` may be called from any.
    """

    writer: apsw.Connection

    def __init__(self, path: Path, sync: Literal["full", "normal"]) -> None:
        self.path, self._sync = path, sync
        self._wal = Path(os.path.realpath(path) + "-wal")
        self._readers: dict[Pool, queue.SimpleQueue[apsw.Connection | None]] = {
            pool: queue.SimpleQueue() for pool in POOLS
        }
        self._doubt: str | None = None
        self._log_pages = 0
        self._open(apsw.SQLITE_OPEN_CREATE)

    @contextmanager
    def reader(self, pool: Pool = "read") -> Iterator[apsw.Connection]:
        """A connection to read with; waits for one. Raises `StoreUnavailable` while the file cannot be opened anew."""
        connection = self._readers[pool].get()
        try:
            if connection is None:
                raise StoreUnavailable(f"{self.path} could not be reopened after: {self._doubt}")
            yield connection
        finally:
            self._readers[pool].put(connection)

    def doubt(self, error: apsw.IOError) -> None:
        """Trust nothing that is remembered of the file."""
        self._doubt = f"{error}: {cause(error)}"

    def ready(self) -> str | None:
        """Make sure that what is written now goes into the file that people see, and that it can be trusted.

        Returns the error after which the file was opened anew, if it was. Raises `StoreUnavailable` when it is not in
        its place, or cannot be opened anew yet.
        """
        if (now := _identity(self.path)) != self._identity:
            self._empty_log()
            raise _misplaced(self.path, now)
        if (now := _identity(self._wal)) != self._wal_identity:
            if now is not None:  # not to be read, nor deleted: nobody knows whose it is
                raise _misplaced(self._wal, now)
            self._doubt = self._doubt or f"{self._wal} was deleted"
        if (doubted := self._doubt) is not None:
            self._reopen()
        return doubted

    def _empty_log(self) -> None:
        """Move the log into the file that is open, wherever it lies now: found beside another, it would spoil that."""
        with suppress(apsw.Error):
            self.writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def checkpoint(self) -> None:
        """Move SQLite's log into the database when it has grown long; what is committed stays so, whatever happens."""
        if self._log_pages < CHECKPOINT_PAGES:
            return
        # SQLite would do this by itself, but keeps to itself that it failed.
        try:
            self.writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.IOError as error:
            self.doubt(error)
        except apsw.Error:
            pass  # no room, or somebody reads: the log holds everything, and the next commit tries again

    def close(self) -> None:
        """Close what is open."""
        if _identity(self.path) != self._identity:
            self._empty_log()
        for readers in self._readers.values():
            with suppress(queue.Empty):
                while True:
                    self._close_one(readers.get_nowait())
        self._close_one(self.writer)

    def _open(self, flag: int = 0) -> None:
        self.writer = connect(self.path, flags=apsw.SQLITE_OPEN_READWRITE | flag, sync=self._sync)
        opened: list[Reader] = []
        try:
            prepare(self.writer, self.path)
            self.writer.set_wal_hook(self._note_pages)
            for pool in _each_pool():
                opened.append((pool, connect(self.path, flags=apsw.SQLITE_OPEN_READONLY, sync=self._sync)))  # noqa: PERF401 - what is open when one fails has to be closed
            self._identity, self._wal_identity = _identity(self.path), _identity(self._wal)
        except BaseException:
            for connection in (*_connections(opened), self.writer):
                self._close_one(connection)
            raise
        self._put(opened)

    def _note_pages(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _reopen(self) -> None:
        """Close every connection and open the file again, once all that was committed is in the database.

        Without that a transaction whose fsync failed could come back out of the log, though it was told as not done.
        """
        readers = self._take_readers()
        try:
            if None not in _connections(readers):  # else everything is closed already
                self.writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                for connection in (*_connections(readers), self.writer):
                    self._close_one(connection)
                readers = [(pool, None) for pool in _each_pool()]
            self._open()
        except BaseException:
            self._put(readers)
            raise
        self._doubt, self._log_pages = None, 0

    def _take_readers(self) -> Sequence[Reader]:
        taken: list[Reader] = []
        try:
            for pool in _each_pool():
                taken.append((pool, self._readers[pool].get(timeout=READ_PATIENCE)))  # noqa: PERF401 - what is taken when one does not come has to be put back
        except queue.Empty:
            self._put(taken)
            raise StoreUnavailable(f"a read of {self.path} does not finish") from None
        return taken

    def _put(self, readers: Sequence[Reader]) -> None:
        for pool, connection in readers:
            self._readers[pool].put(connection)

    def _close_one(self, connection: apsw.Connection | None) -> None:
        if connection is not None:
            # An error of the last checkpoint: the log stays then, and is read when the file is opened again.
            with suppress(apsw.Error):
                connection.close()


def _each_pool() -> Iterator[Pool]:
    """A pool for each connection that reads."""
    for pool, count in POOLS.items():
        yield from [pool] * count


def _connections(readers: Sequence[Reader]) -> Sequence[apsw.Connection | None]:
    return [connection for _, connection in readers]


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file is there; None: none that can be seen."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _misplaced(path: Path, now: object) -> StoreUnavailable:
    what = "deleted or moved away" if now is None else "replaced by another file"
    return StoreUnavailable(f"{path} was {what} while in use: put the original file back, or restart jobpipe")


@contextmanager
def open_database(path: Path, sync: Literal["full", "normal"]) -> Iterator[Database]:
    """The locked, checked and migrated file."""
    check_path(path)
    with exclusive(path):
        try:
            with mapped(path):
                opened = Database(path, sync)
        except StoreUnavailable as error:
            raise StoreError(str(error)) from error
        try:
            warn_of_others(path)
            yield opened
        finally:
            opened.close()
