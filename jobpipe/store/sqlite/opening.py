"""The file before it is open: its lock, its checks, its migrations, and what SQLite's errors mean."""

import fcntl
import os
import re
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import apsw
import structlog

from jobpipe.errors import StoreError, StoreUnavailable
from jobpipe.store.migrations import UNRELEASED, migrations

log = structlog.get_logger("jobpipe")

APPLICATION_ID = 0x6A6F6270
"""Marks a file as jobpipe's ("jobp"; SQLite's pragma application_id)."""

BUSY_MILLISECONDS = 2000
"""How long to wait for somebody else's write, such as a backup tool's."""

CHECKED_WHOLE = 8 << 20
"""Bytes up to which a file is checked whole at the start (0.1 s): of a larger one, only what the start reads."""


STORES_OWN = (
    apsw.FullError,
    apsw.IOError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.ReadOnlyError,
    apsw.CantOpenError,
    apsw.NotADBError,
    apsw.CorruptError,
)
"""Errors of the file, not of what is written into it; `mapped` has words for each."""


@contextmanager
def mapped(path: Path | str) -> Iterator[None]:
    """Raise SQLite's errors as jobpipe's, each with what to do. `path`: the database, as people know it."""
    try:
        yield
    except apsw.FullError as error:
        raise StoreUnavailable(f"the disk that holds {path} is full ({error}): free some space") from error
    except apsw.IOError as error:
        raise StoreUnavailable(f"{path} cannot be used now ({error}: {cause(error)})") from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise StoreUnavailable(f"{path} is in use by another program ({error})") from error
    except (apsw.ReadOnlyError, apsw.CantOpenError) as error:
        raise StoreUnavailable(f"{path} cannot be used now ({error})") from error
    except apsw.NotADBError as error:
        raise StoreError(f"{path} is not a SQLite database: name another file in STORE") from error
    except apsw.CorruptError as error:
        raise _corrupt(path, error) from error


def cause(error: apsw.Error) -> str:
    """Which input or output failed, in SQLite's word for it: SQLITE_IOERR_FSYNC."""
    code = getattr(error, "extendedresult", 0)  # APSW sets it, its types do not tell
    return str(apsw.mapping_extended_result_codes.get(code, "unknown"))


PRIVATE = 0o600
"""The mode of new files: jobs may hold secrets. SQLite gives its log the mode of the database."""

OTHERS = 0o007
"""The bits of a mode that let everybody read, write or execute."""


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the file, so that one process at a time uses it as its store; makes the file when it is not there.

    There are two locks, and both end with the process, however that ends. One (flock) is on a file beside the database,
    where SQLite's log lies: a link to the file is another name for the same store. The other is on the database itself,
    for a file that was moved while in use. Raises `StoreError` when another process holds one, and for a file that has
    several names which SQLite cannot tell from several files.
    """
    real = Path(os.path.realpath(path))
    with _locked_beside(path, real):
        _refuse_other_names(path, real)
        with _locked_itself(path, real):
            yield


@contextmanager
def _locked_beside(path: Path, real: Path) -> Iterator[None]:
    lock_path = Path(f"{real}.lock")
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    except OSError as error:
        raise StoreError(
            f"cannot write {lock_path} ({error.strerror}): jobpipe keeps a lock file next to {path}"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 100).decode(errors="replace").strip() or "unknown"
            raise _in_use(path, f"process {holder}") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def _refuse_other_names(path: Path, real: Path) -> None:
    """Refuse a file with hard links, and one that is mounted alone.

    SQLite's log lies beside the name by which the file was opened: what a crashed process left there would be missed by
    the next one that uses another name, and the database be corrupt.
    """
    try:
        links = real.stat().st_nlink
    except FileNotFoundError:
        return
    if links > 1:
        raise StoreError(
            f"{path} has {links} names (hard links), and SQLite keeps a log beside each: remove the other names, or "
            "copy the file and use the copy"
        )
    if _is_mount(real):
        raise StoreError(
            f"{path} is mounted as a single file, and SQLite keeps its log beside it: mount its folder instead"
        )


def _is_mount(real: Path) -> bool:
    """Whether something is mounted just there; always false where there is no /proc."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    # The fifth field; blanks, tabs, line feeds and backslashes in it are written as three octal digits.
    name = re.sub(r"[ \t\n\\]", lambda match: f"\\{ord(match[0]):03o}", str(real))
    return any(line.split(" ", 5)[4] == name for line in mounts.splitlines())


@contextmanager
def _locked_itself(path: Path, real: Path) -> Iterator[None]:
    # Nothing else may open the database and close it while SQLite has it open: that would end SQLite's own locks.
    try:
        file = os.open(real, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    except OSError as error:
        raise StoreError(f"cannot open {path} ({error.strerror}): name another file in STORE") from error
    try:
        if not _lock_far_byte(file):
            raise _in_use(path, "which opened it by another name")
        yield
    finally:
        os.close(file)


FAR = 1 << 62
"""A byte that SQLite never locks: it uses some hundred from 1 << 30 on."""


def _lock_far_byte(file: int) -> bool:
    """Lock one byte of the file for as long as it is open; false when another process has. Only Linux can do that.

    An open file description lock, since a plain one would end with the first close of this file in this process.
    """
    if sys.platform == "linux":
        # struct flock, as fcntl(2) has it: type, whence, start, length, and a process id that must be 0.
        request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, FAR, 1, 0)
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, request)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES
            return False
        except OSError:
            return True  # a file system without locks: the other one has to do
    return True


def warn_of_others(path: Path) -> None:
    """Say when everybody may open the store. An existing file keeps its mode: somebody may have chosen it."""
    mode = path.stat().st_mode & 0o777
    if mode & OTHERS:
        log.warning(
            "every user of this machine may open the store: run `chmod o-rwx` on it, unless you want that",
            store=f"sqlite:{path}",
            mode=f"{mode:o}",
        )


def _in_use(path: Path, holder: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"{path} is in use by another jobpipe ({holder}): stop it, or set STORE to another file"
    )


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
    """Refuse what is not jobpipe's, of another age or corrupt, unchanged; then apply missing migrations."""
    known = migrations("jobpipe.store.sqlite")
    version = connection.pragma("user_version")
    marked = _is_ours(connection, path)
    _refuse_unknown(version, known[0][0], known[-1][0], path)
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


def _refuse_unknown(version: int, oldest: int, newest: int, path: Path) -> None:
    if 0 < version < oldest:
        raise StoreError(f"{path} {UNRELEASED}: move it away, or name another file in STORE")
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


def _corrupt(path: Path | str, found: object) -> StoreError:
    what = " ".join(str(found).split())
    return StoreError(f"{path} is corrupt ({what}): restore it from a backup, or move it away")


def check_path(path: Path) -> None:
    """Refuse, in words, a path that can't hold a database."""
    # os.path, since pathlib raises where a folder on the way may not be looked into.
    if os.path.isdir(path):  # noqa: PTH112 - see above
        raise StoreError(f"{path} is a directory: name a file in STORE")
    if not os.path.isdir(path.parent):  # noqa: PTH112 - see above
        raise StoreError(f"{path.parent} does not exist: create it, or name another file in STORE")
    exists = os.path.exists(path)  # noqa: PTH110 - see above
    if exists and not path.is_file():
        raise StoreError(f"{path} is not a regular file: name another one in STORE")
    if exists and not os.access(path, os.R_OK | os.W_OK):
        raise StoreError(f"{_denied(path, 'read and write')} {path}: fix that, or name another file in STORE")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise StoreError(
            f"{_denied(path.parent, 'write in')} {path.parent}: SQLite keeps its log next to {path.name}"
        )


def _denied(path: Path, verb: str) -> str:
    """Why something may not be done with a path."""
    try:
        read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    except OSError:
        read_only = 0
    return f"the file system is read-only: jobpipe cannot {verb}" if read_only else f"no permission to {verb}"
