"""A transaction under way, by libpq's own pipeline: statements go out together, and are answered in their order.

psycopg's cursors talk to the socket after every statement, also in its pipeline mode: for an exchange of one job that
was most of its time, and each talk is a wait for the interpreter's lock. Here nothing is sent before an answer is
asked for, or the commit.
"""

import functools
import itertools
import re
import select
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from jobpipe.store.postgres.parameters import Parameter, in_binary

Row = tuple[Any, ...]
Values = Sequence[Any] | Mapping[str, Any]
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


class Answer:
    """What a statement answers, once it has. `prepares`: the statement that is prepared if all goes well."""

    def __init__(self, session: "Session", prepares: Statement | None = None) -> None:
        self._session, self.prepares = session, prepares
        self.result: PGresult | None = None

    def rows(self) -> list[Row]:
        """Wait for its rows."""
        result = self._session.received(self)
        loading = Transformer(self._session.connection)
        loading.set_pgresult(result)
        return loading.load_rows(0, result.ntuples, tuple)

    def row(self) -> Row | None:
        """Wait for its first row."""
        rows = self.rows()
        return rows[0] if rows else None


class Session:
    """What happens on a connection between `begin` and `end`: `run` does not wait, to ask for an answer does."""

    def __init__(self, connection: Connection, *, prepare: bool) -> None:
        self.connection, self._prepare = connection, prepare
        self._pgconn = connection.pgconn
        self._asked: deque[Answer] = deque()  # what is not answered yet
        self._socket = select.poll()
        self._socket.register(self._pgconn.socket, select.POLLIN)

    def run(self, sql: str, values: Values = (), *, prepare: bool = True) -> Answer:
        """Ask for a statement with its values for `%s`, or `%(name)s`; all statements are constants of this package."""
        text, names = _numbered(sql)
        given = (
            [in_binary(values[name]) for name in names]
            if isinstance(values, Mapping)
            else map(in_binary, values)
        )
        sent: list[Parameter] = list(given)
        bytes_, types, formats = zip(*sent, strict=True) if sent else ((), (), ())
        if self._prepare and prepare:
            self._pgconn.send_query_prepared(self._name(sql, text, types), bytes_, formats, 1)
        else:
            self._pgconn.send_query_params(text, bytes_, types, formats, 1)
        return self._ask()

    def rows(self, sql: str, values: Values = ()) -> list[Row]:
        """Ask for a statement and wait for its rows."""
        return self.run(sql, values).rows()

    def row(self, sql: str, values: Values = ()) -> Row | None:
        """Ask for a statement and wait for its first row."""
        return self.run(sql, values).row()

    def _name(self, sql: str, text: bytes, types: tuple[int, ...]) -> bytes:
        """The name of a prepared statement, which is prepared if need be."""
        prepared, key = self.connection.prepared, (sql, types)
        if key not in prepared:
            prepared[key] = b"jobpipe_%d" % next(self.connection.numbers)
            self._pgconn.send_prepare(prepared[key], text, types)
            self._ask(key)
        return prepared[key]

    def _ask(self, prepares: Statement | None = None) -> Answer:
        answer = Answer(self, prepares)
        self._asked.append(answer)
        return answer

    def begin(self, command: bytes) -> None:
        """Begin the transaction."""
        self._pgconn.enter_pipeline_mode()
        self._command(command)

    def end(self) -> None:
        """Commit, with all that was asked for and not sent yet; then every answer is there."""
        self._command(b"COMMIT")
        self._pgconn.pipeline_sync()
        self._ask()
        while self._asked:
            self._receive()
        self._pgconn.exit_pipeline_mode()

    def undo(self) -> None:
        """Roll back; closes a connection with which that cannot be done."""
        try:
            self._pgconn.pipeline_sync()
            last = self._ask()
            while last.result is None:
                with suppress(psycopg.Error):
                    self._receive()
                if self.connection.closed:
                    return
            self._pgconn.exit_pipeline_mode()
            self.connection.rollback()
        except psycopg.Error:
            self.connection.close()

    def _command(self, command: bytes) -> None:
        self._pgconn.send_query_params(command, None)
        self._ask()

    def received(self, answer: Answer) -> PGresult:
        """Wait for an answer."""
        if answer.result is None:
            # A sync, not a mere flush: after it the server knows that it waits for us, and for how long it may; else
            # a transaction whose client has fallen silent keeps its locks until the network tells.
            self._pgconn.pipeline_sync()
            self._ask()
        while answer.result is None:
            self._receive()
        return answer.result

    def _receive(self) -> None:
        """Wait for the next answer; raises what the server makes of it."""
        self._flush()
        result = self._result()
        while result is None:  # the end of the answer before
            result = self._result()
        answer = self._asked.popleft()
        answer.result = result
        if result.status in _FAILED:
            if answer.prepares is not None:
                del self.connection.prepared[answer.prepares]
            raise psycopg.errors.error_from_result(result)

    def _flush(self) -> None:
        while self._pgconn.flush():
            self._socket.modify(self._pgconn.socket, select.POLLIN | select.POLLOUT)
            if any(happened & ~select.POLLOUT for _, happened in self._socket.poll()):
                self._pgconn.consume_input()  # or both sides would wait for one another
            self._socket.modify(self._pgconn.socket, select.POLLIN)

    def _result(self) -> PGresult | None:
        while self._pgconn.is_busy():
            self._socket.poll()
            self._pgconn.consume_input()
        return self._pgconn.get_result()


@functools.cache
def _numbered(sql: str) -> tuple[bytes, tuple[str, ...]]:
    """A statement with PostgreSQL's own `$1`, `$2`; and the names of its values, where they have names."""
    places: dict[str, int] = {}

    def number(found: re.Match[str]) -> str:
        name = found["name"] or str(len(places))
        return f"${places.setdefault(name, len(places) + 1)}"

    text = re.sub(r"%(?:s|\((?P<name>\w+)\)s)", number, sql)
    return text.encode(), tuple(places)
