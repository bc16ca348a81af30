"""Connections that are kept: each for one transaction after another, and made anew after it was lost."""

from contextlib import suppress
from typing import TypeVar

import psycopg
import trio

from jobpipe.errors import StoreUnavailable
from jobpipe.store.postgres.connector import READ, WRITE, Connector, Verb
from jobpipe.store.postgres.failures import CommitUnknown, Locked, mapped
from jobpipe.store.postgres.session import NO_VALUES, Connection, Session, Values
from jobpipe.store.verbs.transaction import Overtaken

R = TypeVar("R")

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
