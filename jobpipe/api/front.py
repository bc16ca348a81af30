"""The thin ASGI front: serves the hot routes from bytes to answer, and hands everything else to Quart."""

import tempfile
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from jobpipe.api.answers import Answer, problem_answer
from jobpipe.api.bulk import NDJSON_TYPES, bulk_array, bulk_stream
from jobpipe.api.enqueue import enqueue, is_json
from jobpipe.api.problems import Problem, cross_site, too_large, unsupported
from jobpipe.engine.node import Node

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

SPOOL = 1 << 20
"""Bytes of a stream's answers that are kept in memory when the client does not read them yet; the rest goes to a file."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class ClientGone(Exception):  # noqa: N818 - what has happened, and no fault
    """The client hung up before its request was whole."""


class Front:
    """An ASGI application around Quart's. `POST /enqueue` and `POST /enqueue/bulk` never get that far."""

    def __init__(self, node: Node, app: App) -> None:
        self._node, self._app = node, app
        self._routes = {"/enqueue": self._enqueue, "/enqueue/bulk": self._bulk}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3)."""
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        route = self._routes.get(scope["path"]) if scope["method"] == "POST" else None
        try:
            if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
                raise cross_site()
            if route is None:
                await self._app(scope, receive, send)
            else:
                await route(headers, receive, send)
        except Problem as problem:
            await respond(send, problem_answer(problem))
        except ClientGone:
            return

    async def _enqueue(self, headers: Mapping[bytes, bytes], receive: Receive, send: Send) -> None:
        body = await read_body(receive, self._node.settings.max_body)
        await respond(send, await enqueue(self._node, _content_type(headers), body))

    async def _bulk(self, headers: Mapping[bytes, bytes], receive: Receive, send: Send) -> None:
        content_type = _content_type(headers)
        if content_type.partition(";")[0].strip().lower() in NDJSON_TYPES:
            await self._stream(receive, send)
        elif is_json(content_type):
            body = await read_body(receive, self._node.settings.max_body)
            await respond(send, await bulk_array(self._node, body))
        else:
            raise unsupported(content_type, "application/json (an array) or application/x-ndjson (a stream)")

    async def _stream(self, receive: Receive, send: Send) -> None:
        """Answer a stream while it comes in, without ever waiting for a client that sends and does not read."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-ndjson")]})
        spool, chunks = Spool(), Chunks(receive)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spool.pour, send)
            try:
                await bulk_stream(self._node, chunks.next, spool.write)
            except ClientGone:
                nursery.cancel_scope.cancel()
            spool.end()


class Chunks:
    """A request's body, part by part."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._more = receive, True

    async def next(self) -> bytes | None:
        """The next part, or None at the end; raises `ClientGone` when the body does not come whole."""
        if not self._more:
            return None
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientGone
        self._more = message.get("more_body", False)
        return bytes(message["body"])


class Spool:
    """What was answered and is not sent yet: in memory while it is little, else in a temporary file."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=SPOOL)  # noqa: SIM115 - closed by `pour`
        self._written = self._sent = 0
        self._ended = False
        self._more = trio.Event()

    async def write(self, answers: bytes) -> None:
        """Append; never waits for the client."""
        self._file.seek(self._written)
        self._file.write(answers)
        self._written += len(answers)
        self._more.set()
        await trio.lowlevel.checkpoint()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._more.set()

    async def pour(self, send: Send) -> None:
        """Send what is there as the client takes it, until the end."""
        with self._file:
            while not (self._ended and self._sent == self._written):
                await self._more.wait()
                self._more = trio.Event()
                while self._sent < self._written:
                    self._file.seek(self._sent)
                    part = self._file.read(min(1 << 16, self._written - self._sent))
                    self._sent += len(part)
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def respond(send: Send, answer: Answer) -> None:
    """Send an answer."""
    headers = [(b"content-type", answer.content_type.encode()), (b"content-length", b"%d" % len(answer.body))]
    headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole body; raises `Problem` beyond the limit and `ClientGone` when it does not come whole."""
    chunks, parts, size = Chunks(receive), [], 0
    while (part := await chunks.next()) is not None:
        parts.append(part)
        size += len(part)
        if size > limit:
            raise too_large(limit)
    return b"".join(parts)


def _content_type(headers: Mapping[bytes, bytes]) -> str:
    return headers.get(b"content-type", b"").decode("latin-1")
