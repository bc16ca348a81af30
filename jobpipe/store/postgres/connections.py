"""Connections and transactions: how they are opened, bounded in time, and what PostgreSQL's errors mean."""

import functools
import select
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, Literal, TypeVar

import msgspec
import psycopg
import structlog
import trio
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import ConnStatus

from jobpipe.errors import StoreError, StoreUnavailable
from jobpipe.store.postgres.address import Address
from jobpipe.store.postgres.session import NO_VALUES, Connection, Session, Values

R = TypeVar("R")
Verb = Callable[[Session], Awaitable[R]]
"""What is done in a transaction. It may be done again: whatever came of it before counts for nothing."""

TRIES = 6
"""How often a transaction is tried that the server undid for another one's sake: nothing of it was written."""

BRIEF, PATIENT = 0.25, 0.5
"""Seconds that a statement waits for a lock of another session: the engine's, and what people ask.

Nodes hold theirs for milliseconds. Whoever holds one for longer costs the job that is locked, and no other. Both
are shorter than the server's `deadlock_timeout`, a second as a rule: a deadlock shows as a wait in vain.
"""

INSISTENCE = 1.25
"""Seconds within which what people ask is begun again when it waited for a lock in vain.

It may be a deadlock of nodes, of which one side has given up by then, or a crowd of them. A lock that another program
keeps is met three times, and is told of after 3 * `PATIENT`, one and a half seconds.
"""

READERS = 3
"""The most connections that read what is short."""

SEARCHERS = 1
"""The most connections that search texts, which may take their time: nothing else that is read waits for them."""

SEARCH_PATIENCE = 10.0
"""Seconds that a search waits for those before it."""

AT_ONCE = 0.25
"""Seconds within which a lost connection has to be noticed for its transaction to be tried again at once."""

_SETTINGS = """
select
    set_config('search_path', %(path)s, {local}),
    set_config('statement_timeout', %(statement)s, {local}),
    set_config('lock_timeout', %(lock)s, {local}),
    set_config('idle_in_transaction_session_timeout', %(transaction)s, {local}),
    set_config('synchronous_commit', %(durable)s, {local}),
    -- Whatever the role or the database has set, statements here mean what they were written to mean.
    set_config('standard_conforming_strings', 'on', {local}),
    set_config('extra_float_digits', '1', {local}),
    -- Every query here goes by an index to few rows; what the planner knows of arrays and of tables whose
    -- rows come and go within seconds would have it read whole tables.
    set_config('enable_indexscan', 'on', {local}),
    set_config('enable_nestloop', 'on', {local}),
    set_config('enable_seqscan', 'off', {local}),
    set_config('enable_hashjoin', 'off', {local}),
    set_config('enable_mergejoin', 'off', {local}),
    set_config('enable_bitmapscan', 'off', {local}),
    set_config('jit', 'off', {local}),
    set_config('plan_cache_mode', 'force_generic_plan', {local})
"""

_SINCE = {
    140000: "set_config('idle_session_timeout', '0', {local})",
    # Also when only a part of what was sent has arrived.
    170000: "set_config('transaction_timeout', %(transaction)s, {local})",
}
"""What PostgreSQL has from these versions on."""

_LASTING = "where pg_backend_pid() = %(pid)s"
"""For as long as the connection stands, if it leads to the server itself: the process there is the one that greeted us.

A pooler, which may share its connections between transactions, greets with a number that it made up.
"""

WRITE = b"BEGIN ISOLATION LEVEL READ COMMITTED"
"""How a transaction begins that writes, whatever the role or the database takes for usual."""

READ = b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
"""How a transaction begins that reads, all from one state of the database."""

OF_NO_USE = ("08", "57P", "58", "25006", "53300", "F0", "XX")
"""The SQLSTATEs, or their beginnings, after which a connection is made anew.

The connection or the server is at fault (08, 57P, 58, F0, XX), or it is another server's turn: one that takes no
writes (25006) was the primary before a fail-over, or is a replica that a name led to.
"""

log = structlog.get_logger("jobpipe")


class CommitUnknown(StoreUnavailable):
    """The connection was lost while the commit was under way: it may have been carried out, or not."""


class Locked(StoreUnavailable):
    """Another session holds a lock that this would have to wait for. Nothing was written."""


class Overtaken(StoreUnavailable):
    """Something that was to be locked first became another session's meanwhile: undo it all, and try again."""


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
    def read(self) -> float:
        """To get a connection to read with: who asks /health does not wait much longer."""
        return min(2.0, self.statement)

    @property
    def silence(self) -> int:
        """For the network to answer. Linux takes no more than 127 keepalives, one a second here."""
        return min(max(2, round(self.lease / 5)), 120)


class Connector:
    """Opens connections to one address, and transactions on them."""

    def __init__(self, address: Address, limits: Limits) -> None:
        self.address, self.limits = address, limits
        # A name within the transaction: $user and public must not come before our schema.
        self._path = f'"{address.schema}", pg_temp'
        self._generation = 0
        self.on_distrust: Callable[[], None] = lambda: None
        """called in the step in which a connection turned out to lead to the wrong server"""

    @property
    def options(self) -> dict[str, Any]:
        """What `psycopg.connect` is given beside the address; the address itself goes before."""
        silence = self.limits.silence
        ours: dict[str, Any] = {
            "application_name": "jobpipe",
            "client_encoding": "utf8",
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
        """A new connection, in autocommit mode; waits for it. Raises what psycopg does."""
        generation = self._generation
        connection = Connection.connect(
            self.address.conninfo, autocommit=True, prepare_threshold=None, **self.options
        )
        connection.generation = generation
        return connection

    def distrust(self) -> None:
        """Have every connection made anew before it is used again: they may lead to a server of the past."""
        self._generation += 1
        self.on_distrust()

    def usable(self, connection: Connection) -> bool:
        """Whether an idle connection can still be used, as far as is known here; closes one that cannot.

        What the server or the network has said meanwhile is read, without waiting: so a connection that was ended
        while nobody used it costs nobody an error.
        """
        if not connection.closed and (
            connection.generation < self._generation or not _still_open(connection)
        ):
            connection.close()
        return not connection.closed

    async def opened(self, prepare: Callable[[Connection], object], seconds: float) -> Connection:
        """A new connection, made and prepared in a thread, since names are looked up there. Raises what psycopg does.

        It may take so many seconds. When they are over, or at a cancel, it is closed as soon as it is made.
        """
        lock, wanted, made = threading.Lock(), True, list[Connection]()

        def make() -> Connection:
            connection = self.connect()
            try:
                prepare(connection)
            except BaseException:
                connection.close()
                raise
            with lock:
                made.append(connection)
                if not wanted:
                    connection.close()
            return connection

        taken = False
        try:
            with trio.move_on_after(seconds):
                connection = await trio.to_thread.run_sync(make, abandon_on_cancel=True)
                taken = True
                return connection
        finally:
            if not taken:
                with lock:
                    wanted = False
                    for late in made:
                        late.close()
        raise psycopg.OperationalError(f"no connection within {seconds:g} s")

    def tune(self, connection: Connection) -> None:
        """Make the settings of every transaction for good, unless a pooler may be in between; waits for it."""
        values = self._settings(connection) | {"pid": connection.info.backend_pid}
        text = f"{_settings(connection.info.server_version, local='false')} {_LASTING}"
        connection.tuned = connection.execute(text.encode(), values).fetchone() is not None

    def transact_alone(self, verb: Verb[R]) -> R:
        """Run `verb` in a transaction on a connection made for it; for a thread without Trio, which waits for it.

        It may take as long as it takes to connect, and a transaction more. Raises `StoreError`.
        """
        with mapped(self.address), closing(self.connect()) as connection:
            return trio.run(self.transact, connection, verb)

    async def transact(self, connection: Connection, verb: Verb[R], begin: bytes = WRITE) -> R:
        """Run `verb`; all that it does is committed as one, or not at all.

        Its last statements go out with the commit, so what they answered may be asked for when this is over. A
        connection that is of no more use is closed: after a cancel, or when it does not answer in time. Raises what
        psycopg does, and `CommitUnknown`.
        """
        session = Session(connection, prepare=self.address.prepare)
        try:
            with trio.fail_after(self.limits.transaction):
                return await self._carry_out(session, verb, begin)
        except trio.TooSlowError:
            late = psycopg.OperationalError(f"no answer within {self.limits.transaction:g} s")
            log.warning("the database does not respond: connection closed", store=self.address.shown)
            raise self._unknown(late) if session.committing else late from None
        except psycopg.Error as error:
            if session.committing and connection.closed:
                raise self._unknown(error) from error
            self._give_up(connection, error.sqlstate or "")
            raise

    def _give_up(self, connection: Connection, sqlstate: str) -> None:
        """Close a connection that an error shows to be of no more use."""
        if sqlstate.startswith(OF_NO_USE):
            connection.close()
        if sqlstate == "25006":
            self.distrust()

    async def _carry_out(self, session: Session, verb: Verb[R], begin: bytes) -> R:
        try:
            session.begin(begin)
            if not session.connection.tuned:
                # For the transaction alone, as it must be through poolers.
                settings = _settings(session.connection.info.server_version, local="true")
                session.run(settings, self._settings(session.connection))
            done = await verb(session)
            await session.end()
        except Exception:
            # Whoever is cancelled in here hears of that, not of what is to be undone.
            await session.undo()  # noqa: ASYNC120
            raise
        except BaseException:
            session.connection.close()
            raise
        return done

    def _unknown(self, error: psycopg.Error) -> CommitUnknown:
        lost = f"the connection was lost during a commit ({_words(error)})"
        return CommitUnknown(f"{self.address.shown} cannot be used now: {lost}")

    def _settings(self, connection: Connection) -> dict[str, str]:
        return {
            "path": self._path,
            "statement": f"{self.limits.statement * 1000:.0f}",
            "lock": f"{connection.lock_wait * 1000:.0f}",
            "transaction": f"{self.limits.transaction * 1000:.0f}",
            "durable": "on" if self.limits.durable_commits else "off",
        }


@functools.cache
def _settings(server_version: int, *, local: Literal["true", "false"]) -> str:
    """The statement for the settings of every transaction."""
    later = [text for since, text in _SINCE.items() if server_version >= since]
    return ", ".join([_SETTINGS, *later]).format(local=local)


def _still_open(connection: Connection) -> bool:
    pgconn = connection.pgconn
    waiting = select.poll()
    waiting.register(pgconn.socket, select.POLLIN)
    try:
        while waiting.poll(0):
            pgconn.consume_input()
            while pgconn.notifies() is not None:
                pass  # nobody listens here
            if pgconn.status != ConnStatus.OK:
                return False
    except psycopg.Error:
        return False
    return True


class KeptConnection:
    """One connection that is kept, for one transaction after another, and made anew after it was lost.

    `lock`: seconds that a statement waits for a lock; `insists`: seconds within which a transaction is begun again
    that waited for one in vain.
    """

    def __init__(
        self, connector: Connector, *, reads: bool = False, lock: float = PATIENT, insists: float = 0.0
    ) -> None:
        self._connector, self._reads, self._lock, self._insists = connector, reads, lock, insists
        self._begin = READ if reads else WRITE
        self._connection: Connection | None = None
        self._turn = trio.Lock()

    async def transact(self, verb: Verb[R], *, repeatable: bool = False) -> R:
        """Run `verb` in a transaction, again when the server undid it for the sake of another one.

        One that is `repeatable` is also tried again when its commit was not answered. Raises `StoreUnavailable`;
        `Locked` when each try within `insists` waited for a lock in vain; `CommitUnknown` when it cannot be known
        whether it was carried out. Once begun it is carried out whole, also when the caller is cancelled; one that
        only reads, or that waited for a lock in vain and is to begin again, is given up then.
        """
        last: float | None = None
        while True:
            # Between two tries others that wait for this connection have their turn.
            async with self._turn:
                last = last or trio.current_time() + self._insists
                try:
                    with trio.CancelScope(shield=not self._reads):
                        return await self._in_turn(verb, repeatable=repeatable)
                except Locked:
                    if trio.current_time() >= last:
                        raise

    async def run(self, sql: str, values: Values = NO_VALUES) -> None:
        """Run a single statement, which may be repeated, in a transaction of its own; see `transact`."""

        async def verb(session: Session) -> None:
            session.run(sql, values)

        await self.transact(verb, repeatable=True)

    async def _in_turn(self, verb: Verb[R], *, repeatable: bool) -> R:
        try:
            return await self._tried(verb)
        except CommitUnknown:
            if not repeatable:
                raise
        return await self._tried(verb)

    async def _tried(self, verb: Verb[R]) -> R:
        with mapped(self._connector.address):
            for _ in range(TRIES - 1):
                with suppress(
                    psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected, Overtaken
                ):
                    return await self._on_a_sound_connection(verb)
            return await self._on_a_sound_connection(verb)

    async def _on_a_sound_connection(self, verb: Verb[R]) -> R:
        """Again on a new connection when one that was kept turns out to be lost: nothing of it was committed."""
        kept = self._connection
        begun = trio.current_time()
        try:
            return await self._once(verb)
        except psycopg.OperationalError:
            lost = kept is not None and kept is self._connection and kept.closed
            if not lost or trio.current_time() > begun + AT_ONCE:  # what took its time is not repeated
                raise
        return await self._once(verb)

    async def _once(self, verb: Verb[R]) -> R:
        connection = self._connection
        if connection is None or not self._connector.usable(connection):
            limits = self._connector.limits
            seconds = limits.read if self._reads else limits.connect + limits.statement
            connection = self._connection = await self._connector.opened(self._tune, seconds)
        return await self._connector.transact(connection, verb, self._begin)

    def _tune(self, connection: Connection) -> None:
        connection.lock_wait = self._lock
        self._connector.tune(connection)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


class ReadPool:
    """A few connections that read, opened as they are needed. `patience`: seconds that a caller waits for one."""

    def __init__(self, connector: Connector, count: int, patience: float) -> None:
        self._connector, self._patience = connector, patience
        self._all = [KeptConnection(connector, reads=True) for _ in range(count)]
        self._free = list(self._all)
        self._places = trio.Semaphore(count)

    async def read(self, verb: Verb[R]) -> R:
        """Read, all from one state of the database. Raises `StoreUnavailable`."""
        try:
            with trio.fail_after(self._patience):
                await self._places.acquire()
        except trio.TooSlowError:
            busy = f"no free connection for reading within {self._patience:g} s"
            raise StoreUnavailable(f"{self._connector.address.shown} cannot be used now ({busy})") from None
        connection = self._free.pop()
        try:
            return await connection.transact(verb)
        finally:
            self._free.append(connection)
            self._places.release()

    def close(self) -> None:
        """Close the connections."""
        for connection in self._all:
            connection.close()


ENTRYS_OWN = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.StatementTooComplex,
    psycopg.errors.RaiseException,
)
"""Errors of what is written or of a row that is met, not of the database: they are raised as they are.

Classes 22, 23 and 54 of SQLSTATE, and what somebody's own trigger raises.
"""


@contextmanager
def mapped(address: Address) -> Iterator[None]:
    """Raise PostgreSQL's errors as jobpipe's, each with what to do. No message shows a password.

    An error that is the fault of what is written, or of a row, is raised as it is.
    """
    try:
        yield
    except ENTRYS_OWN:
        raise
    except (
        psycopg.errors.InvalidSchemaName,
        psycopg.errors.UndefinedTable,
        psycopg.errors.UndefinedColumn,
    ) as error:
        raise StoreError(
            f"schema {address.schema} of {address.shown} does not have the tables of this version ({_words(error)}): "
            "run `jobpipe migrate`"
        ) from error
    except (psycopg.errors.DuplicatePreparedStatement, psycopg.errors.InvalidSqlStatementName) as error:
        raise StoreError(
            f"{address.shown} swaps connections between transactions and loses prepared statements ({_words(error)}): "
            "add prepare=off to STORE"
        ) from error
    except psycopg.errors.LockNotAvailable as error:
        raise Locked(
            f"{address.shown} cannot be used now: another session holds a lock on it ({_words(error)})"
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
