"""Connections and transactions: how they are opened, bounded in time, and what PostgreSQL's errors mean."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict

from jobpipe.errors import StoreError, StoreUnavailable
from jobpipe.store.postgres.address import Address
from jobpipe.store.postgres.arrays import register

R = TypeVar("R")
Row = tuple[Any, ...]
Connection = psycopg.Connection[Row]

TRIES = 6
"""How often a transaction is tried that the server undid for another one's sake: nothing of it was written."""

_BEGIN = (
    "select set_config('search_path', %s, true), set_config('statement_timeout', %s, true), "
    "set_config('lock_timeout', %s, true), set_config('idle_in_transaction_session_timeout', %s, true), "
    # Every query here goes by an index to few rows; what the planner knows of arrays and of tables whose
    # rows come and go within seconds would have it read whole tables.
    "set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true), "
    "set_config('enable_mergejoin', 'off', true), set_config('enable_bitmapscan', 'off', true), "
    "set_config('jit', 'off', true), set_config('plan_cache_mode', 'force_generic_plan', true), "
    "set_config('synchronous_commit', %s, true)"
)
"""Set for the transaction alone, so that it works through poolers that share connections between transactions."""


class CommitUnknown(StoreUnavailable):
    """The connection was lost while the commit was under way: it may have been carried out, or not."""


class Limits(msgspec.Struct, frozen=True):
    """How long things may take, in seconds, so that a dead connection is known before the lease ends."""

    lease: float
    durable_commits: bool = True

    @property
    def connect(self) -> int:
        """To connect; libpq takes whole seconds, from 2 on."""
        return max(2, round(self.lease / 5))

    @property
    def statement(self) -> float:
        """For one statement."""
        return self.lease / 3

    @property
    def transaction(self) -> float:
        """For a whole transaction, as seen from here: after it the connection counts as dead."""
        return self.lease / 2

    @property
    def silence(self) -> int:
        """For the network to answer. Linux takes no more than 127 keepalives, one a second here."""
        return min(max(2, round(self.lease / 5)), 120)


class Deadlines:
    """Which connections are in use, and until when: a thread that waits for a dead one is freed by `sever`."""

    def __init__(self) -> None:
        self._until: dict[Connection, float] = {}

    @contextmanager
    def bound(self, connection: Connection, seconds: float) -> Iterator[None]:
        """Let the connection be used so long."""
        self._until[connection] = time.monotonic() + seconds
        try:
            yield
        finally:
            del self._until[connection]

    def sever_late(self) -> int:
        """Cut the connections whose time is over; returns how many."""
        now = time.monotonic()
        late = [connection for connection, until in list(self._until.items()) if until < now]
        for connection in late:
            sever(connection)
        return len(late)


def sever(connection: Connection) -> None:
    """Cut a connection under whoever waits for it, in whatever thread: its wait ends with an error."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as twin:
        twin.shutdown(socket.SHUT_RDWR)


class Session:
    """A transaction under way, in pipeline mode: `run` does not wait, to fetch from its cursor does."""

    def __init__(self, connection: Connection, *, prepare: bool) -> None:
        self.connection, self._prepare = connection, prepare

    def run(self, sql: str, values: Row = ()) -> "psycopg.Cursor[Row]":
        """Send a statement; all of them are constants of this package."""
        return self.connection.execute(sql.encode(), values, prepare=self._prepare, binary=True)

    def rows(self, sql: str, values: Row = ()) -> list[Row]:
        """Send a statement and wait for its rows."""
        return self.run(sql, values).fetchall()

    def row(self, sql: str, values: Row = ()) -> Row | None:
        """Send a statement and wait for its first row."""
        return self.run(sql, values).fetchone()


class Lines:
    """Opens connections to one address, and transactions on them."""

    def __init__(self, address: Address, limits: Limits) -> None:
        self.address, self.limits = address, limits
        self.deadlines = Deadlines()
        # A name within the transaction: $user and public must not come before our schema.
        self._path = f'"{address.schema}", pg_temp'

    @property
    def options(self) -> dict[str, Any]:
        """What `psycopg.connect` and pools are given beside the address; the address itself goes before."""
        silence = self.limits.silence
        ours: dict[str, Any] = {
            "application_name": "jobpipe",
            "connect_timeout": self.limits.connect,
            "keepalives": 1,
            "keepalives_idle": silence,
            "keepalives_interval": 1,
            "keepalives_count": silence,
            "tcp_user_timeout": 1000 * silence,
        }
        asked = conninfo_to_dict(self.address.conninfo)
        return {name: value for name, value in ours.items() if name not in asked}

    @property
    def prepare_threshold(self) -> int | None:
        """After how many executions psycopg prepares a statement by itself."""
        return 5 if self.address.prepare else None

    def connect(self, *, autocommit: bool = False) -> Connection:
        """A new connection. Raises what psycopg does."""
        connection = psycopg.connect(
            self.address.conninfo,
            autocommit=autocommit,
            prepare_threshold=self.prepare_threshold,
            **self.options,
        )
        register(connection.adapters)
        return connection

    @contextmanager
    def transaction(self, connection: Connection, within: float | None = None) -> Iterator[Session]:
        """Everything inside is committed as one, or not at all. Closes a connection that is of no more use.

        The connection is in autocommit mode: psycopg's own begin and commit would each be a round trip. The last
        statements go out with the commit, so what they answered may be fetched when this is over.
        """
        seconds = within or self.limits.transaction
        committing = False
        try:
            with self.deadlines.bound(connection, seconds), connection.pipeline():
                connection.execute(self._begin(connection), prepare=False)
                session = Session(connection, prepare=self.address.prepare)
                session.run(_BEGIN, self._bounds(seconds))
                yield session
                committing = True
                connection.execute(b"COMMIT", prepare=False)
        except psycopg.Error as error:
            _abandon(connection)
            if committing and connection.closed:
                raise CommitUnknown(f"the connection was lost during a commit ({_words(error)})") from error
            raise
        except BaseException:
            _abandon(connection)
            raise

    @staticmethod
    def _begin(connection: Connection) -> bytes:
        return b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" if connection.read_only else b"BEGIN"

    def _bounds(self, seconds: float) -> Row:
        statement = min(self.limits.statement, seconds) if seconds <= self.limits.transaction else seconds
        return (
            self._path,
            f"{statement * 1000:.0f}",
            f"{statement * 1000:.0f}",
            f"{max(seconds, self.limits.transaction) * 1000:.0f}",
            "on" if self.limits.durable_commits else "off",
        )


def _abandon(connection: Connection) -> None:
    """Undo what was done on a connection; close it if that cannot be."""
    try:
        connection.rollback()
    except psycopg.Error:
        connection.close()
    if connection.broken:
        connection.close()


class Line:
    """One connection that is kept, for one thread at a time, and made anew after it was lost."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._connection: Connection | None = None

    def transact(self, verb: Callable[[Session], R], within: float | None = None) -> R:
        """Run `verb` in a transaction, again when the server undid it for the sake of another one.

        Raises `StoreUnavailable`; `CommitUnknown` when it cannot be known whether it was carried out.
        """
        with mapped(self._lines.address):
            for _ in range(TRIES - 1):
                with suppress(psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected):
                    return self._once(verb, within)
            return self._once(verb, within)

    def _once(self, verb: Callable[[Session], R], within: float | None) -> R:
        connection = self._connection
        if connection is None or connection.closed:
            connection = self._connection = self._lines.connect(autocommit=True)
        with self._lines.transaction(connection, within) as session:
            return verb(session)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


@contextmanager
def mapped(address: Address) -> Iterator[None]:
    """Raise PostgreSQL's errors as jobpipe's, each with what to do. No message shows a password."""
    try:
        yield
    except (
        psycopg.errors.InvalidSchemaName,
        psycopg.errors.UndefinedTable,
        psycopg.errors.UndefinedColumn,
    ) as error:
        raise StoreError(
            f"{address.shown} has not the tables of this jobpipe in schema {address.schema} ({_words(error)}): "
            "run `jobpipe migrate`"
        ) from error
    except (psycopg.errors.DuplicatePreparedStatement, psycopg.errors.InvalidSqlStatementName) as error:
        raise StoreError(
            f"{address.shown} swaps connections between transactions and loses prepared statements ({_words(error)}): "
            "add prepare=off to STORE"
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise StoreError(
            f"{address.shown}: the user of STORE may not do this ({_words(error)}): see docs/scaling.md"
        ) from error
    except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError) as error:
        # InternalError: a server that became a replica takes no writes any more.
        raise StoreUnavailable(f"{address.shown} cannot be used now ({_words(error)})") from error
    except psycopg.Error as error:
        raise StoreError(
            f"{address.shown} refused a statement ({type(error).__name__}: {_words(error)})"
        ) from error


def _words(error: psycopg.Error) -> str:
    return " ".join((error.diag.message_primary or str(error) or type(error).__name__).split())
