"""How connections are opened, and how a transaction on one is bounded in time."""

import functools
import select
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any, Literal, TypeVar

import msgspec
import psycopg
import structlog
import trio
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import ConnStatus

from jobpipe.store.postgres.address import Address
from jobpipe.store.postgres.failures import CommitUnknown, mapped, words_of
from jobpipe.store.postgres.session import Connection, Session

R = TypeVar("R")
Verb = Callable[[Session], Awaitable[R]]
"""What is done in a transaction. It may be done again: whatever came of it before counts for nothing."""


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
        lost = f"the connection was lost during a commit ({words_of(error)})"
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
