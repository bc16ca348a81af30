"""Hypercorn's HTTP over connections of our own, which cost a request less than those of its Trio worker."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from math import inf
from socket import socket
from typing import Any

import h11
import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIReceiveEvent,
    ASGISendEvent,
    ConnectionState,
    H11SendableEvent,
    Scope,
)
from hypercorn.utils import parse_socket_addr

AT_ONCE = 1 << 16
"""Bytes that are read at once."""

BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)

Send = Callable[[ASGISendEvent | None], Awaitable[None]]

log = structlog.get_logger("jobpipe")


async def serve(
    app: Any,  # noqa: ANN401 - an ASGI application: Hypercorn and Quart each have types of their own for it
    listener: socket,
    config: Config,
    until: Callable[[], Awaitable[object]],
) -> None:
    """Serve an ASGI application on a listening socket, which is closed in the end, until `until` returns.

    Then nobody new is let in, and requests under way have `config.graceful_timeout` seconds to be answered. A cancel
    ends them at once. Of `config` the times and limits count; there is no TLS, no lifespan and no access log.
    """
    context = WorkerContext(None)
    listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]

    async def converse(stream: trio.SocketStream) -> None:
        await Connection(ASGIWrapper(app), config, context, stream).run()

    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as door:
            door.start_soon(partial(trio.serve_listeners, converse, listeners, handler_nursery=connections))
            await until()
            door.cancel_scope.cancel()
        await context.terminated.set()
        connections.cancel_scope.deadline = trio.current_time() + config.graceful_timeout


class Connection:
    """One client: its bytes go to Hypercorn's protocol, and what that says goes to the client.

    One task waits for the next request, however many there were: `Updated` moves its deadline.
    """

    def __init__(
        self, app: AppWrapper, config: Config, context: WorkerContext, stream: trio.SocketStream
    ) -> None:
        self._app, self._config, self._context, self._stream = app, config, context, stream
        self._sending = trio.Lock()
        self._quiet = trio.CancelScope()
        self._busy = self._over = False

    async def run(self) -> None:
        """Serve until either side has enough. A fault of this one connection is logged, and ends nothing else."""
        try:
            await self._converse()
        except* BROKEN:
            pass
        except* Exception:
            log.exception("a connection failed")

    async def _converse(self) -> None:
        socket = self._stream.socket
        try:
            client = parse_socket_addr(socket.family, socket.getpeername())
        except OSError:
            return  # gone already
        async with trio.open_nursery() as nursery:
            self._protocol = Protocol(
                self._app,
                self._config,
                self._context,
                Requests(nursery),
                ConnectionState({}),
                False,  # noqa: FBT003 - Hypercorn's `ssl`
                client,
                parse_socket_addr(socket.family, socket.getsockname()),
                self._say,
            )
            await self._protocol.initiate()
            self._quiet.deadline = trio.current_time() + self._config.keep_alive_timeout
            nursery.start_soon(self._keep_alive)
            await self._listen()

    async def _listen(self) -> None:
        """Hand on what comes in until nothing more comes. What was asked for may be answered all the same."""
        with suppress(*BROKEN):
            data = b"to begin with"
            while data:
                data = bytes(await self._stream.receive_some(AT_ONCE))
                await self._protocol.handle(RawData(data))
        self._end()
        await self._protocol.handle(Closed())

    async def _say(self, event: Event) -> None:
        """What the protocol has to say (Hypercorn knows this as `protocol_send`)."""
        match event:
            case RawData(data):
                await self._send(data)
            case Updated(idle=True):
                self._busy = False
                wait = 0 if self._context.terminated.is_set() else self._config.keep_alive_timeout
                self._quiet.deadline = trio.current_time() + wait
            case Updated(idle=False):
                self._busy, self._quiet.deadline = True, inf
            case Closed():
                await self._hang_up()

    async def _send(self, data: bytes) -> None:
        try:
            self._sending.acquire_nowait()
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            await self._stream.send_all(data)
        except BROKEN:
            await self._protocol.handle(Closed())
        except trio.Cancelled:
            await trio.aclose_forcefully(self._stream)  # a part may be out: nothing must follow it
            raise
        finally:
            self._sending.release()

    async def _keep_alive(self) -> None:
        """Hang up once nothing was asked for long enough, or the service ends and nothing is asked for."""
        with self._quiet:
            await self._context.terminated.wait()
            if self._busy:
                await trio.sleep_forever()  # until the answer moves the deadline
        if not self._over:
            await self._hang_up()

    async def _hang_up(self) -> None:
        self._end()
        with suppress(*BROKEN, trio.BusyResourceError):
            await self._stream.send_eof()
        await self._stream.aclose()
        await self._protocol.handle(Closed())

    def _end(self) -> None:
        """Wait for no further request."""
        self._over = True
        self._quiet.cancel()


class Requests:
    """Starts a task for each request (Hypercorn knows this as `TaskGroup`)."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def spawn(self, run: Callable[..., Awaitable[Any]], *args: Any) -> None:  # noqa: ANN401 - as Trio has it
        """Start a task of the protocol's own."""
        self._nursery.start_soon(run, *args)

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Scope, send: Send
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Start the application on a request; returns what to call with each part of that."""
        inbox = Inbox(config.max_app_queue_size)
        self._nursery.start_soon(_answer, app, scope, inbox, send)
        return inbox.put


async def _answer(app: AppWrapper, scope: Scope, inbox: "Inbox", send: Send) -> None:
    try:
        await app(scope, inbox.take, send, trio.to_thread.run_sync, trio.from_thread.run)
    except Exception:
        log.exception("a request failed")
    inbox.close()
    await send(None)


class Inbox:
    """The parts of a request that the application has not taken yet; no task switch where none has to wait."""

    def __init__(self, size: int) -> None:
        self._put, self._take = trio.open_memory_channel[ASGIReceiveEvent](size)

    async def put(self, part: ASGIReceiveEvent) -> None:
        """Append a part; waits for room, except to say that the client is gone. Nothing is done once it is closed."""
        if part["type"] == "http.disconnect":
            self._put.close()  # said by the application's own task too, which must not wait for itself
            return
        with suppress(*BROKEN):
            try:
                self._put.send_nowait(part)
            except trio.WouldBlock:
                await self._put.send(part)

    async def take(self) -> ASGIReceiveEvent:
        """Take the next part; waits for it."""
        with suppress(trio.EndOfChannel):
            try:
                return self._take.receive_nowait()
            except trio.WouldBlock:
                return await self._take.receive()
        return {"type": "http.disconnect"}

    def close(self) -> None:
        """Take no more: who waits to put a part goes on."""
        self._take.close()


class Protocol(ProtocolWrapper):
    """Hypercorn's choice between HTTP/1.1 and HTTP/2, with an HTTP/1.1 that writes a whole answer at once."""

    def __init__(self, *args: Any) -> None:  # noqa: ANN401 - Hypercorn's own
        super().__init__(*args)
        self.protocol = Http1(*args)


class Http1(H11Protocol):
    """HTTP/1.1 where the head of an answer of known length waits for the body, which is there already.

    That makes one write of two, and one wake-up of the client. The head of a stream goes out at once.
    """

    _head = b""

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        try:
            data = self._head + (self.connection.send(event) or b"")
        except h11.LocalProtocolError:
            if self.connection.their_state != h11.ERROR:
                raise
            return
        self._head = b""
        if isinstance(event, h11.Response) and any(name == b"content-length" for name, _ in event.headers):
            self._head = data
        elif data:
            await self.send(RawData(data))
