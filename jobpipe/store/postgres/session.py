"""A transaction under way, by libpq's own pipeline: statements go out together, and are answered in their order.

psycopg's cursors talk to the socket after every statement, also in its pipeline mode: for an exchange of one job that
was most of its time. Here nothing is sent before an answer is waited for, or the commit. Trio waits for the socket.
"""

import functools
import itertools
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import psycopg
import trio
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from jobpipe.store.postgres.arrays import in_binary

Row = tuple[Any, ...]
Values = Mapping[str, Any]
"""The values of a statement, by name; those that it does not name are passed over."""

NO_VALUES: Values = MappingProxyType({})
Statement = tuple[str, tuple[int, ...]]
"""The text of a statement, and the types of its values."""

_FAILED = (ExecStatus.FATAL_ERROR, ExecStatus.PIPELINE_ABORTED)


class Connection(psycopg.Connection[Row]):
    """A connection that knows what it has prepared, and whether it has the settings of every transaction for good."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as psycopg has it
        super().__init__(*args, **kwargs)
        self.prepared: dict[Statement, bytes] = {}
        self.numbers = itertools.count()
        self.tuned = False
        self.lock_wait = 0.5
        """seconds that a statement on it waits for a lock of another session"""
        self.generation = 0
        """how many times connections were distrusted before this one was made"""


class Result:
    """What a statement answers, there once it was waited for. `prepares`: the statement that it prepares, if any."""

    def __init__(self, connection: Connection, prepares: Statement | None = None) -> None:
        self._connection, self.prepares = connection, prepares
        self.result: PGresult | None = None

    def rows(self) -> list[Row]:
        """Its rows."""
        if self.result is None:
            raise RuntimeError("nobody has waited for this answer")
        loading = Transformer(self._connection)
        loading.set_pgresult(self.result)
        return loading.load_rows(0, self.result.ntuples, tuple)

    def row(self) -> Row | None:
        """Its first row."""
        rows = self.rows()
        return rows[0] if rows else None


class Session:
    """What happens on a connection between `begin` and `end`: `run` only asks, and `answered` and `end` wait.

    A cancel while it waits leaves the connection in the middle of things: close it then.
    """

    def __init__(self, connection: Connection, *, prepare: bool) -> None:
        self.connection, self._prepare = connection, prepare
        self._pgconn = connection.pgconn
        self._asked: deque[Result] = deque()  # what is not answered yet
        self.committing = False
        """whether the commit may be under way"""

    def run(self, sql: str, values: Values = NO_VALUES, *, prepare: bool = True) -> Result:
        """Ask for a statement with its values for `%(name)s`; all statements are constants of this package."""
        text, names = _numbered(sql)
        sent = [in_binary(values[name]) for name in names]
        bytes_, types, formats = zip(*sent, strict=True) if sent else ((), (), ())
        if self._prepare and prepare:
            self._pgconn.send_query_prepared(self._name(sql, text, types), bytes_, formats, 1)
        else:
            self._pgconn.send_query_params(text, bytes_, types, formats, 1)
        return self._ask()

    async def rows(self, sql: str, values: Values = NO_VALUES) -> list[Row]:
        """Ask for a statement and wait for its rows."""
        answer = self.run(sql, values)
        await self.answered()
        return answer.rows()

    async def row(self, sql: str, values: Values = NO_VALUES) -> Row | None:
        """Ask for a statement and wait for its first row."""
        answer = self.run(sql, values)
        await self.answered()
        return answer.row()

    async def answered(self) -> None:
        """Wait for all that was asked for; raises what the server makes of it."""
        # A sync, not a mere flush: after it the server knows that it waits for us, and for how long it may; else
        # a transaction whose client has fallen silent keeps its locks until the network tells.
        self._sync()
        while self._asked:
            await self._receive()

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """What is asked for inside is answered at the end of the context; an error of the server undoes that alone."""
        self.run("savepoint part", prepare=False)
        try:
            yield
            self.run("release savepoint part", prepare=False)
            await self.answered()
        except psycopg.Error:
            # Cancelled here, the transaction is undone as a whole: the error does not matter any more.
            await self._passed_over()  # noqa: ASYNC120 - see above
            self.run("rollback to savepoint part", prepare=False)
            await self.answered()  # noqa: ASYNC120 - see above
            raise

    def begin(self, command: bytes) -> None:
        """Begin the transaction."""
        self._pgconn.enter_pipeline_mode()
        self._command(command)

    async def end(self) -> None:
        """Commit, with all that was asked for and not sent yet; then every answer is there."""
        self.committing = True
        self._command(b"COMMIT")
        await self.answered()
        self._pgconn.exit_pipeline_mode()

    async def undo(self) -> None:
        """Roll back; closes a connection with which that cannot be done, or was cancelled."""
        try:
            self._sync()
            await self._passed_over()
            self._command(b"ROLLBACK")
            self._sync()
            await self._passed_over()
            self._pgconn.exit_pipeline_mode()
        except psycopg.Error:
            self.connection.close()
        except BaseException:
            self.connection.close()
            raise

    def _name(self, sql: str, text: bytes, types: tuple[int, ...]) -> bytes:
        """The name of a prepared statement, which is prepared if need be."""
        prepared, key = self.connection.prepared, (sql, types)
        if key not in prepared:
            prepared[key] = b"jobpipe_%d" % next(self.connection.numbers)
            self._pgconn.send_prepare(prepared[key], text, types)
            self._ask(key)
        return prepared[key]

    def _ask(self, prepares: Statement | None = None) -> Result:
        answer = Result(self.connection, prepares)
        self._asked.append(answer)
        return answer

    def _command(self, command: bytes) -> None:
        self._pgconn.send_query_params(command, None)
        self._ask()

    def _sync(self) -> None:
        self._pgconn.pipeline_sync()
        self._ask()

    async def _passed_over(self) -> None:
        """Wait for all answers, whatever they are; raises what is wrong with the connection."""
        while rest := len(self._asked):
            try:
                await self._receive()
            except psycopg.Error:
                if len(self._asked) == rest:  # not the error of a statement
                    raise

    async def _receive(self) -> None:
        """Wait for the next answer; raises what the server makes of it."""
        await self._flush()
        result = await self._result()
        while result is None:  # the end of the answer before
            result = await self._result()
        answer = self._asked.popleft()
        answer.result = result
        if result.status in _FAILED:
            if answer.prepares is not None:
                del self.connection.prepared[answer.prepares]
            raise psycopg.errors.error_from_result(result)

    async def _flush(self) -> None:
        while self._pgconn.flush():
            await _readable_or_writable(self._pgconn.socket)
            self._pgconn.consume_input()  # or both sides would wait for one another

    async def _result(self) -> PGresult | None:
        while self._pgconn.is_busy():
            await trio.lowlevel.wait_readable(self._pgconn.socket)
            self._pgconn.consume_input()
        return self._pgconn.get_result()


async def _readable_or_writable(socket: int) -> None:
    async with trio.open_nursery() as nursery:

        async def first(wait: Callable[[int], Awaitable[None]]) -> None:
            await wait(socket)
            nursery.cancel_scope.cancel()

        nursery.start_soon(first, trio.lowlevel.wait_readable)
        nursery.start_soon(first, trio.lowlevel.wait_writable)


@functools.cache
def _numbered(sql: str) -> tuple[bytes, tuple[str, ...]]:
    """A statement with PostgreSQL's own `$1`, `$2`; and the names of its values, in that order."""
    places: dict[str, int] = {}

    def number(found: re.Match[str]) -> str:
        return f"${places.setdefault(found['name'], len(places) + 1)}"

    text = re.sub(r"%\((?P<name>\w+)\)s", number, sql)
    return text.encode(), tuple(places)
