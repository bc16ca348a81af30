"""The file: opening, locking, checking and migrating it, and what SQLite's errors mean."""

import fcntl
import os
import queue
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Literal

import apsw

from jobpipe.errors import StoreError, StoreUnavailable

APPLICATION_ID = 0x6A6F6270
"""Marks a file as jobpipe's ("jobp"; SQLite's pragma application_id)."""

BUSY_MILLISECONDS = 2000
"""How long to wait for somebody else's write, such as a backup tool's."""

CHECKPOINT_PAGES = 1000
"""How long SQLite's log may grow before it is moved into the database: its own default."""

READ_PATIENCE = 2.0
"""Seconds that reads under way have to end before the file is opened anew."""

CHECKED_WHOLE = 8 << 20
"""Bytes up to which a file is checked whole at the start (0.1 s): of a larger one, only what the start reads."""


def migrations() -> list[tuple[int, str]]:
    """The numbered SQL files in order: (number, SQL)."""
    folder = files("jobpipe.store.sqlite") / "migrations"
    found = [
        (int(match[1]), file)
        for file in folder.iterdir()
        if (match := re.match(r"(\d{4})_\w+\.sql$", file.name))
    ]
    return [
        (number, file.read_text(encoding="utf-8")) for number, file in sorted(found, key=lambda pair: pair[0])
    ]


@contextmanager
def mapped(path: Path) -> Iterator[None]:
    """Raise SQLite's errors as jobpipe's, each with what to do."""
    try:
        yield
    except apsw.FullError as error:
        raise StoreUnavailable(f"the disk that holds {path} is full ({error}): free some space") from error
    except apsw.IOError as error:
        raise StoreUnavailable(f"{path} cannot be used now ({error}: {_cause(error)})") from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise StoreUnavailable(f"{path} is in use by another program ({error})") from error
    except (apsw.ReadOnlyError, apsw.CantOpenError) as error:
        raise StoreUnavailable(f"{path} cannot be used now ({error})") from error
    except apsw.NotADBError as error:
        raise StoreError(f"{path} is not a SQLite database: name another file in STORE") from error
    except apsw.CorruptError as error:
        raise _corrupt(path, error) from error


def _cause(error: apsw.Error) -> str:
    """Which input or output failed, in SQLite's word for it: SQLITE_IOERR_FSYNC."""
    code = getattr(error, "extendedresult", 0)  # APSW sets it, its types do not tell
    return str(apsw.mapping_extended_result_codes.get(code, "unknown"))


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock beside the file, so that one process at a time uses it as its store.

    The lock is the operating system's (flock) and ends with the process, however that ends. It lies beside the file
    itself, as SQLite's log does: a link to the file is another name for the same store.
    """
    lock_path = Path(os.path.realpath(path) + ".lock")
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(
            f"cannot write {lock_path} ({error.strerror}): jobpipe needs to write beside {path}"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 100).decode(errors="replace").strip() or "unknown"
            raise StoreError(
                f"{path} is in use by another jobpipe (process {holder}): stop it, or give this one another STORE"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def connect(path: Path, *, flags: int, sync: Literal["full", "normal"]) -> apsw.Connection:
    """A connection with the settings that every one has."""
    connection = apsw.Connection(str(path), flags=flags)
    connection.set_busy_timeout(BUSY_MILLISECONDS)
    # fullfsync: on macOS a plain fsync leaves the data in the disk's own cache. Elsewhere it means nothing.
    whole = sync == "full"
    pragmas = (
        f"synchronous={sync}",
        f"fullfsync={whole:d}",
        f"checkpoint_fullfsync={whole:d}",
        "cache_size=-16384",
        "wal_autocheckpoint=0",  # see Database.checkpoint
    )
    for pragma in (*pragmas, "temp_store=memory", "foreign_keys=off"):
        connection.execute(f"pragma {pragma}")
    return connection


def prepare(connection: apsw.Connection, path: Path) -> None:
    """Refuse what is not jobpipe's, newer than this program or corrupt, unchanged; then apply missing migrations."""
    known = migrations()
    version = connection.pragma("user_version")
    marked = _is_ours(connection, path)
    _refuse_newer(version, known[-1][0], path)
    _refuse_corrupt(connection, path)
    connection.execute("pragma journal_mode=wal").fetchall()
    with connection:
        for number, sql in known:
            if number > version:
                connection.execute(sql)
                connection.pragma("user_version", number)
        if not marked:  # else it would be one more commit
            connection.pragma("application_id", APPLICATION_ID)


def _is_ours(connection: apsw.Connection, path: Path) -> bool:
    """Whether the file has jobpipe's mark; one without it must be empty."""
    marked = bool(connection.pragma("application_id") == APPLICATION_ID)
    tables = connection.execute("select count(*) from sqlite_schema").get
    if not marked and tables:
        raise StoreError(f"{path} is a SQLite database, but not one of jobpipe's: name another file in STORE")
    return marked


def _refuse_newer(version: int, newest: int, path: Path) -> None:
    if version > newest:
        raise StoreError(
            f"{path} was made by a newer jobpipe (schema {version}, this one knows {newest}): run that version"
        )


def _refuse_corrupt(connection: apsw.Connection, path: Path) -> None:
    if path.stat().st_size > CHECKED_WHOLE:
        return
    found = connection.execute("pragma quick_check(1)").get
    if found != "ok":
        raise _corrupt(path, found)


def _corrupt(path: Path, found: object) -> StoreError:
    what = " ".join(str(found).split())
    return StoreError(f"{path} is corrupt ({what}): restore it from a backup, or move it away")


def check_path(path: Path) -> None:
    """Refuse, in words, a path that can't hold a database."""
    # os.path, since pathlib raises where a folder on the way may not be looked into.
    if os.path.isdir(path):  # noqa: PTH112 - see above
        raise StoreError(f"{path} is a directory: name a file in STORE")
    if not os.path.isdir(path.parent):  # noqa: PTH112 - see above
        raise StoreError(f"{path.parent} does not exist: make it, or name another file in STORE")
    exists = os.path.exists(path)  # noqa: PTH110 - see above
    if exists and not path.is_file():
        raise StoreError(f"{path} is not a file: name another in STORE")
    if exists and not os.access(path, os.R_OK | os.W_OK):
        raise StoreError(f"no permission to read and write {path}: mend it, or name another file in STORE")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise StoreError(f"no permission to write in {path.parent}: SQLite keeps its log beside {path.name}")


class Database:
    """The file while it is open: one connection that writes, and some that read. The caller holds the lock.

    After an input or output error, a failed fsync above all, what SQLite remembers may be another thing than what
    the disk holds: `doubt` it, and the next `ready` closes every connection and reads the file anew, through
    the checks of the start. One thread at a time writes and calls the methods; `reader` may be called from any.
    """

    writer: apsw.Connection

    def __init__(self, path: Path, sync: Literal["full", "normal"], readers: int) -> None:
        self.path, self._sync, self._count = path, sync, readers
        self._wal = Path(os.path.realpath(path) + "-wal")
        self._readers: queue.SimpleQueue[apsw.Connection | None] = queue.SimpleQueue()
        self._doubt: str | None = None
        self._log_pages = 0
        self._open(apsw.SQLITE_OPEN_CREATE)

    @contextmanager
    def reader(self) -> Iterator[apsw.Connection]:
        """A connection to read with; waits for one. Raises `StoreUnavailable` while the file cannot be opened anew."""
        connection = self._readers.get()
        try:
            if connection is None:
                raise StoreUnavailable(f"{self.path} could not be opened anew after: {self._doubt}")
            yield connection
        finally:
            self._readers.put(connection)

    def doubt(self, error: apsw.IOError) -> None:
        """Trust nothing that is remembered of the file."""
        self._doubt = f"{error}: {_cause(error)}"

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
        with suppress(queue.Empty):
            while True:
                self._close_one(self._readers.get_nowait())
        self._close_one(self.writer)

    def _open(self, flag: int = 0) -> None:
        self.writer = connect(self.path, flags=apsw.SQLITE_OPEN_READWRITE | flag, sync=self._sync)
        opened: list[apsw.Connection] = []
        try:
            prepare(self.writer, self.path)
            self.writer.set_wal_hook(self._note_pages)
            while len(opened) < self._count:
                opened.append(connect(self.path, flags=apsw.SQLITE_OPEN_READONLY, sync=self._sync))
            self._identity, self._wal_identity = _identity(self.path), _identity(self._wal)
        except BaseException:
            for connection in (*opened, self.writer):
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
            if None not in readers:  # else everything is closed already
                self.writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                for connection in (*readers, self.writer):
                    self._close_one(connection)
                readers = [None] * self._count
            self._open()
        except BaseException:
            self._put(readers)
            raise
        self._doubt, self._log_pages = None, 0

    def _take_readers(self) -> Sequence[apsw.Connection | None]:
        taken: list[apsw.Connection | None] = []
        try:
            while len(taken) < self._count:
                taken.append(self._readers.get(timeout=READ_PATIENCE))
        except queue.Empty:
            self._put(taken)
            raise StoreUnavailable(f"a read of {self.path} does not end") from None
        return taken

    def _put(self, readers: Sequence[apsw.Connection | None]) -> None:
        for connection in readers:
            self._readers.put(connection)

    def _close_one(self, connection: apsw.Connection | None) -> None:
        if connection is not None:
            # An error of the last checkpoint: the log stays then, and is read when the file is opened again.
            with suppress(apsw.Error):
                connection.close()


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file is there; None: none that can be seen."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _misplaced(path: Path, now: object) -> StoreUnavailable:
    what = "deleted or moved away" if now is None else "replaced by another file"
    return StoreUnavailable(
        f"{path} was {what} while in use: put back the one that was there, or stop jobpipe and start it again"
    )


@contextmanager
def open_database(path: Path, sync: Literal["full", "normal"], readers: int) -> Iterator[Database]:
    """The locked, checked and migrated file."""
    check_path(path)
    with exclusive(path):
        try:
            with mapped(path):
                opened = Database(path, sync, readers)
        except StoreUnavailable as error:
            raise StoreError(str(error)) from error
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def database(path: Path, sync: Literal["full", "normal"]) -> Iterator[apsw.Connection]:
    """The writer's connection to a locked, checked and migrated file."""
    with open_database(path, sync, readers=0) as opened:
        yield opened.writer
