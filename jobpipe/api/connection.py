"""One client: its bytes go to the protocol, and what that says goes to the client. It ends when a client stalls."""

import enum
import socket
from contextlib import suppress
from math import inf

import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr

from jobpipe.api.http1 import Http1, Waiting
from jobpipe.api.inbox import Requests
from jobpipe.api.limits import Limits
from jobpipe.api.problems import internal, timed_out

AT_ONCE = 1 << 16
"""Bytes that are read at once."""

GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)

log = structlog.get_logger("jobpipe")


class End(enum.Enum):
    """Why a connection ends."""

    CLOSED = enum.auto()
    """all was said, or nothing was asked for long enough"""
    STALLED = enum.auto()
    """a request came no further"""
    GONE = enum.auto()
    """the client can no longer be reached"""


class Connection:
    """One client. Its reader is one task, however many requests there are; each request has a task of its own.

    Nothing here waits with a deadline, which would cost every request: `check` is called once a second instead.
    """

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        limits: Limits,
        stream: trio.SocketStream,
    ) -> None:
        """Raises OSError when the client is gone already."""
        self._context, self._limits, self._stream = context, limits, stream
        self._sending, self._sending_since = trio.Lock(), inf
        self._reading, self._all = trio.CancelScope(), trio.CancelScope()
        self._end: End | None = None
        self._reads = self._ended = False
        self._quiet = True
        """whether nothing has come of the next request"""
        self._since = self._begun = trio.current_time()
        """when the client last sent something or was last answered; when its request began"""
        self._size = 0
        """bytes of the request so far"""
        self._requests = Requests()
        sock = stream.socket
        self._protocol = Http1(
            app,
            config,
            context,
            self._requests,  # type: ignore[arg-type]  # of a TaskGroup, HTTP/1.1 needs no more
            ConnectionState({}),
            False,  # noqa: FBT003 - Hypercorn's `ssl`
            parse_socket_addr(sock.family, sock.getpeername()),
            parse_socket_addr(sock.family, sock.getsockname()),
            self._say,
        )

    def idle(self, now: float) -> float:
        """For how long no request has been under way; 0 while one is."""
        return now - self._since if self._reads and self._quiet and self._end is None else 0.0

    def pace(self, now: float) -> float | None:
        """Bytes a second at which its request comes in; None where none does, or one that has only just begun."""
        age = now - self._begun
        if not self._reads or self._quiet or self._end is not None or age < self._limits.youth:
            return None
        return None if self._protocol.waiting is Waiting.ANSWER else self._size / age

    async def run(self) -> None:
        """Serve until either side has enough. A fault of this one connection is logged, and ends nothing else."""
        try:
            with self._all:
                await self._converse()
        except* GONE:
            pass
        except* Exception:
            log.exception("a connection failed")

    async def _converse(self) -> None:
        async with trio.open_nursery() as nursery:
            self._requests.nursery = nursery
            await self._serve()

    async def _serve(self) -> None:
        with self._reading:
            await self._read()
        self._end = self._end or End.CLOSED
        if self._end is End.STALLED:
            await self._protocol.refuse(timed_out())
        if self._end is not End.GONE:
            await self._close()
        await self._protocol.handle(Closed())
        await trio.aclose_forcefully(self._stream)

    async def _read(self) -> None:
        """Hand on what comes in. Returns when the client is gone, or has ended its side and is answered."""
        data = b"to begin with"
        while data:
            self._reads = True
            try:
                data = bytes(await self._stream.receive_some(AT_ONCE))
            except GONE:
                self._end = End.GONE
                return
            self._reads = False
            self._note(len(data))
            await self._receive(data)
        if self._protocol.answering:
            await trio.sleep_forever()  # until all is said, or `check` finds the client gone

    def _note(self, size: int) -> None:
        self._since = trio.current_time()
        if self._quiet:
            self._quiet, self._begun, self._size = False, self._since, 0
        self._size += size

    async def _receive(self, data: bytes) -> None:
        try:
            await self._protocol.receive(data)
        except GONE:
            raise
        except Exception:
            log.exception("a request failed")
            await self._protocol.refuse(internal())

    async def _say(self, event: Event) -> None:
        """What the protocol has to say (Hypercorn knows this as `protocol_send`)."""
        match event:
            case RawData(data):
                await self._send(data)
            case Updated(idle=True):
                # The client had its answer before this, and may have sent its next request since.
                self._size = self._protocol.ahead
                self._quiet = not self._size
                self._since = self._begun = trio.current_time()
                if self._quiet and self._context.terminated.is_set():
                    self.hang_up()
            case Closed():
                self._hang_up(End.CLOSED)

    async def _send(self, data: bytes) -> None:
        try:
            self._sending.acquire_nowait()
        except trio.WouldBlock:
            await self._sending.acquire()
        rest = memoryview(data)
        try:
            while rest:
                self._sending_since = trio.current_time()
                rest = rest[await self._stream.socket.send(rest) :]
        except GONE:
            self._hang_up(End.GONE)
        except trio.Cancelled:
            if len(rest) < len(data):
                await trio.aclose_forcefully(self._stream)  # a part is out: nothing must follow it
            raise
        finally:
            self._sending_since = inf
            self._sending.release()

    def close(self) -> None:
        """Close the socket, once `run` has ended."""
        self._stream.socket.close()

    def hang_up(self) -> None:
        """Close the connection, which must be idle, unless the system has something of its next request by now."""
        if not self._stream.socket.is_readable():
            self._hang_up(End.CLOSED)

    def stall(self) -> None:
        """Refuse the request that is coming in: it takes too long."""
        self._hang_up(End.STALLED)

    def abort(self) -> None:
        """Close the connection as it is; requests under way are cancelled."""
        self._all.cancel()

    def _hang_up(self, end: End) -> None:
        self._end = self._end or end
        self._reading.cancel()

    async def _close(self) -> None:
        """Let the client read what was said, and then close.

        Closed at once, with something of the client's unread, the connection would be reset, and its last answer lost.
        Of a client that stalls, all was read.
        """
        with suppress(*GONE):
            await self._stream.send_eof()
            if self._end is not End.STALLED and self._protocol.unread:
                with trio.move_on_after(self._limits.linger):
                    while await self._stream.receive_some(AT_ONCE):
                        pass

    def check(self, now: float) -> None:
        """End what has waited for the client for too long. Called now and then, about once a second."""
        limits = self._limits
        if self._sending_since < inf:
            if now - self._sending_since > limits.stalled:
                self.abort()
        elif self._end is not None:
            pass
        elif not self._reads:
            if self._lost():
                self._hang_up(End.GONE)
            elif self._protocol.minded:
                self._requests.nursery.start_soon(self._protocol.ask)
        elif self._quiet:
            if self.idle(now) > limits.keep_alive or self._context.terminated.is_set():
                self.hang_up()
        elif self._late(now):
            self._hang_up(End.STALLED)

    def _late(self, now: float) -> bool:
        match self._protocol.waiting:
            case Waiting.ANSWER:
                return not self._protocol.answering  # which only a fault of ours can bring about
            case Waiting.REQUEST if now - self._begun > self._limits.head:
                return True
            case _:
                return now - self._since > self._limits.stalled

    def _lost(self) -> bool:
        """Whether the system knows by now that the client is gone, while nothing is read from it."""
        return bool(self._stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
