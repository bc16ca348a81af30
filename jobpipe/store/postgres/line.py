"""Connections and transactions: how they are opened, bounded in time, and what PostgreSQL's errors mean."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeVar

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict

from jobpipe.errors import StoreError, StoreUnavailable
from jobpipe.store.postgres.address import Address
from jobpipe.store.postgres.session import Connection, Session

R = TypeVar("R")

TRIES = 6
"""How often a transaction is tried that the server undid for another one's sake: nothing of it was written."""

_SETTINGS = (
    "select set_config('search_path', %(path)s, {local}), set_config('statement_timeout', %(statement)s, {local}), "
    "set_config('lock_timeout', %(statement)s, {local}), "
    "set_config('idle_in_transaction_session_timeout', %(transaction)s, {local}), "
    # Every query here goes by an index to few rows; what the planner knows of arrays and of tables whose
    # rows come and go within seconds would have it read whole tables.
    "set_config('enable_seqscan', 'off', {local}), set_config('enable_hashjoin', 'off', {local}), "
    "set_config('enable_mergejoin', 'off', {local}), set_config('enable_bitmapscan', 'off', {local}), "
    "set_config('jit', 'off', {local}), set_config('plan_cache_mode', 'force_generic_plan', {local}), "
    "set_config('synchronous_commit', %(durable)s, {local})"
)

_WHOLE = ", set_config('transaction_timeout', %(transaction)s, {local})"
"""Also when only a part of what was sent has arrived; PostgreSQL has it from 17 on."""

_WHOLE_SINCE = 170000

_LASTING = " where pg_backend_pid() = %(pid)s"
"""For as long as the connection stands, if it leads to the server itself: the process there is the one that greeted us.

A pooler, which may share its connections between transactions, greets with a number that it made up.
"""

_READ = b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


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

    def connect(self) -> Connection:
        """A new connection, in autocommit mode. Raises what psycopg does."""
        return Connection.connect(
            self.address.conninfo, autocommit=True, prepare_threshold=None, **self.options
        )

    def tune(self, connection: Connection) -> None:
        """Make the settings of every transaction for good, unless a pooler may be in between."""
        values = self._settings | {"pid": connection.info.backend_pid}
        with self.deadlines.bound(connection, self.limits.statement):
            text = _settings_of(connection, local="false") + _LASTING
            connection.tuned = connection.execute(text.encode(), values).fetchone() is not None

    @contextmanager
    def transaction(self, connection: Connection) -> Iterator[Session]:
        """Everything inside is committed as one, or not at all. Closes a connection that is of no more use.

        The last statements go out with the commit, so what they answered may be asked for when this is over.
        """
        session, committing = Session(connection, prepare=self.address.prepare), False
        with self.deadlines.bound(connection, self.limits.transaction):
            try:
                session.begin(_READ if connection.read_only else b"BEGIN")
                if not connection.tuned:
                    # For the transaction alone, as it must be through poolers.
                    session.run(_settings_of(connection, local="true"), self._settings)
                yield session
                committing = True
                session.end()
            except psycopg.Error as error:
                session.undo()
                if committing and connection.closed:
                    raise self._unknown(error) from error
                raise
            except BaseException:
                session.undo()
                raise

    def _unknown(self, error: psycopg.Error) -> CommitUnknown:
        lost = f"the connection was lost during a commit ({_words(error)})"
        return CommitUnknown(f"{self.address.shown} cannot be used now: {lost}")

    @property
    def _settings(self) -> dict[str, str]:
        return {
            "path": self._path,
            "statement": f"{self.limits.statement * 1000:.0f}",
            "transaction": f"{self.limits.transaction * 1000:.0f}",
            "durable": "on" if self.limits.durable_commits else "off",
        }


def _settings_of(connection: Connection, *, local: Literal["true", "false"]) -> str:
    return (_SETTINGS + _WHOLE * (connection.info.server_version >= _WHOLE_SINCE)).format(local=local)


class Line:
    """One connection that is kept, for one thread at a time, and made anew after it was lost."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._connection: Connection | None = None

    def transact(self, verb: Callable[[Session], R]) -> R:
        """Run `verb` in a transaction, again when the server undid it for the sake of another one.

        Raises `StoreUnavailable`; `CommitUnknown` when it cannot be known whether it was carried out.
        """
        with mapped(self._lines.address):
            for _ in range(TRIES - 1):
                with suppress(psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected):
                    return self._once(verb)
            return self._once(verb)

    def _once(self, verb: Callable[[Session], R]) -> R:
        connection = self._connection
        if connection is None or connection.closed:
            connection = self._connection = self._lines.connect()
            self._lines.tune(connection)
        with self._lines.transaction(connection) as session:
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
