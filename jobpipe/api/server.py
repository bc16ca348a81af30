"""Hypercorn's HTTP/1.1 over connections of our own: who is let in, and when all of it ends."""

import heapq
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext

from jobpipe.api.connection import Connection
from jobpipe.api.heads import HEAD
from jobpipe.api.limits import Limits

LOOK = 1.0
"""Seconds between two looks at every connection."""

PAUSE = 0.1
"""Seconds after which a connection that could not be accepted is tried again."""

QUIET = 5.0
"""Seconds between two log lines about that; after so many without trouble it is over."""

log = structlog.get_logger("jobpipe")


async def serve(
    app: Any,  # noqa: ANN401 - an ASGI application: Hypercorn and Quart each have types of their own for it
    listeners: Sequence[socket.socket],
    limits: Limits,
    until: Callable[[], Awaitable[object]],
) -> None:
    """Serve an ASGI application on listening sockets, which are closed in the end, until `until` returns.

    Then nobody new is let in, and requests under way have `limits.grace` seconds to be answered. A cancel ends them at
    once. There is no TLS, no lifespan and no access log. Whatever one connection does ends that connection at most.
    """
    house = Connections(app, limits)
    async with trio.open_nursery() as keepers:
        keepers.start_soon(house.look_after)
        async with trio.open_nursery() as clients:
            async with trio.open_nursery() as door:
                for listener in listeners:
                    door.start_soon(_let_in, listener, house, clients)
                await until()
                door.cancel_scope.cancel()
            await house.drain()
            clients.cancel_scope.deadline = trio.current_time() + limits.grace
        keepers.cancel_scope.cancel()


async def _let_in(listener: socket.socket, house: "Connections", clients: trio.Nursery) -> None:
    """Accept for ever. What keeps it from that is logged now and then, and it goes on once that is over."""
    trouble = Trouble()
    async with trio.SocketListener(trio.socket.from_stdlib_socket(listener)) as accepting:
        while True:
            try:
                await _let_one_in(accepting, trouble, house, clients)
            except Exception:
                log.exception("a connection could not be accepted")
                await trio.sleep(PAUSE)


async def _let_one_in(
    accepting: trio.SocketListener, trouble: "Trouble", house: "Connections", clients: trio.Nursery
) -> None:
    stream = None
    try:
        with trio.move_on_at(trouble.over_at):
            stream = await accepting.accept()
    except OSError as error:
        trouble.note(error)
        house.make_room()
        await trio.sleep(PAUSE)
    else:
        if stream is None:
            trouble.end()
        else:
            await house.welcome(stream, clients)


class Trouble:
    """Why nobody can be let in, such as a lack of file descriptors: one line now and then, and one when it is over."""

    def __init__(self) -> None:
        self.over_at = float("inf")
        """when it will be over, unless it happens again"""
        self._next_line = 0.0

    def note(self, error: OSError) -> None:
        """A connection could not be accepted."""
        now = trio.current_time()
        if self.over_at == float("inf") or now >= self._next_line:
            self._next_line = now + QUIET
            log.error(
                f"cannot accept connections ({error.strerror}): raise `ulimit -n`, or lower MAX_CONNECTIONS"
            )
        self.over_at = now + QUIET

    def end(self) -> None:
        """It has not happened again."""
        self.over_at = float("inf")
        log.info("accepting connections again")


class Connections:
    """Every connection there is. It makes room for new ones, and ends those whose client takes too long."""

    def __init__(self, app: Any, limits: Limits) -> None:  # noqa: ANN401 - see `serve`
        self._app, self._limits = ASGIWrapper(app), limits
        self._config = Config()
        self._config.errorlog = None  # Hypercorn has nothing to say
        self._config.include_server_header = False
        self._config.h11_max_incomplete_size = HEAD
        self._context = WorkerContext(None)
        self._all: set[Connection] = set()
        self._changed = trio.Event()

    async def welcome(self, stream: trio.SocketStream, clients: trio.Nursery) -> None:
        """Serve a new client in a task of its own, as soon as there is room for one more."""
        try:
            await self._room()
            connection = Connection(self._app, self._config, self._context, self._limits, stream)
        except trio.Cancelled:
            stream.socket.close()
            raise
        except Exception as error:
            stream.socket.close()
            if not isinstance(error, OSError):  # which says that the client is gone already
                log.exception("a connection failed")
            return
        self._all.add(connection)
        self._change()
        clients.start_soon(self._host, connection)

    async def _host(self, connection: Connection) -> None:
        try:
            await connection.run()
        except Exception:
            log.exception("a connection failed")
        finally:
            connection.close()
            self._all.discard(connection)
            self._change()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _room(self) -> None:
        """Return when there is room for one more."""
        while len(self._all) >= self._limits.connections:
            self.make_room()
            with trio.move_on_after(self._limits.rest):
                await self._changed.wait()

    def make_room(self) -> None:
        """Close what is missed the least: connections without a request, the longest first; else the slowest senders.

        A hundredth of all at once, so that a crowd costs no look at every connection for each of its members.
        """
        now, many = trio.current_time(), max(1, self._limits.connections // 100)
        idle = [(each.idle(now), each) for each in self._all]
        if rested := [pair for pair in idle if pair[0] >= self._limits.rest]:
            for _, connection in heapq.nlargest(many, rested, key=_measure):
                connection.hang_up()
            return
        slow = [(pace, each) for each in self._all if (pace := each.pace(now)) is not None]
        for _, connection in heapq.nsmallest(many, slow, key=_measure):
            connection.stall()

    async def look_after(self) -> None:
        """Look at every connection now and then; sleeps while there is none."""
        while True:
            while not self._all:
                await self._changed.wait()
            self._check()
            await trio.sleep(LOOK)

    def _check(self) -> None:
        now = trio.current_time()
        for connection in tuple(self._all):
            try:
                connection.check(now)
            except Exception:
                log.exception("a connection failed")
                connection.abort()

    async def drain(self) -> None:
        """Take no further requests: idle connections are closed, others once they are answered."""
        await self._context.terminated.set()
        self._check()


def _measure(pair: tuple[float, Connection]) -> float:
    return pair[0]
