"""Between Hypercorn's protocol and the application: a task for each request, and the parts that it has not taken."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import structlog
import trio
from hypercorn.config import Config
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ASGISendEvent, Scope

Send = Callable[[ASGISendEvent | None], Awaitable[None]]

CLOSED = (trio.BrokenResourceError, trio.ClosedResourceError)

log = structlog.get_logger("jobpipe")


class Requests:
    """Starts a task for each request (Hypercorn knows this as `TaskGroup`)."""

    nursery: trio.Nursery
    """that of the connection, once it is open"""

    def spawn(self, run: Callable[..., Awaitable[Any]], *args: Any) -> None:  # noqa: ANN401 - as Trio has it
        """Start a task of the protocol's own."""
        self.nursery.start_soon(run, *args)

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Scope, send: Send
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Start the application on a request; returns what to call with each part of that."""
        inbox = Inbox(config.max_app_queue_size)
        self.nursery.start_soon(_answer, app, scope, inbox, send)
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
        with suppress(*CLOSED):
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
