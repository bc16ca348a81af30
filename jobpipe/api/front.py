"""The thin ASGI front: serves the hot routes from bytes to answer, and hands everything else to Quart."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

import structlog
import trio

from jobpipe.api.acting import by_client_of
from jobpipe.api.answers import Answer, problem_answer
from jobpipe.api.bulk import NDJSON, bulk_array, bulk_stream, is_ndjson
from jobpipe.api.departure import DEPARTURE, Departure
from jobpipe.api.enqueue import enqueue
from jobpipe.api.holding import awaited, check
from jobpipe.api.hosts import Guard
from jobpipe.api.inputs import NoQuery, query_from
from jobpipe.api.problems import Problem, internal, no_route, problem_from, too_large
from jobpipe.api.schemas import EnqueueQuery
from jobpipe.api.spool import Files, Spool
from jobpipe.api.traffic import NO_ROUTE, Traffic
from jobpipe.engine.node import Node
from jobpipe.errors import JobpipeError, StoreError
from jobpipe.job import Job

T = TypeVar("T")

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]
Route = Callable[[Node, str, bytes], Awaitable[Answer]]

LINGER = 5.0
"""Seconds that a client has to finish sending once it is answered: if cut off, it might never read the answer."""

ALLOWED = "GET, HEAD, POST, PATCH, DELETE, OPTIONS"
"""The methods that routes take: the answer to `OPTIONS *`."""

HUNG_UP = "the client hung up, with on_disconnect=cancel"
"""Why a job is cancelled, in the audit."""

ROUTES: Mapping[str, Route] = {"/enqueue": enqueue, "/enqueue/bulk": bulk_array}

log = structlog.get_logger("jobpipe")


class ClientGone(Exception):  # noqa: N818 - what has happened, and no fault
    """The client hung up before its request was whole."""


class Front:
    """An ASGI application around Quart's. `POST /enqueue` and `POST /enqueue/bulk` never get that far."""

    def __init__(self, node: Node, app: App, traffic: Traffic) -> None:
        self._node, self._app, self._traffic = node, app, traffic
        self._guard = Guard(node.settings.host, node.settings.allowed_hosts)
        self._files = Files()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, chunks = dict(scope["headers"]), Chunks(receive)
        path, method = scope["path"].removesuffix("/"), scope["method"]
        route = ROUTES.get(path) if method == "POST" else None
        server = scope.get("server")
        refusal = self._guard.refusal(method, headers, server[0] if server else "")
        if refusal is None and route is not None and scope["query_string"]:
            try:
                route = self._with_parameters(path, scope, chunks)
            except Problem as problem:
                refusal = problem
        if refusal is not None:
            answer = problem_answer(refusal)
            self._count(path if route else NO_ROUTE, method, answer, 0.0)
            await respond(send, answer, chunks)
        elif route is not None and path == "/enqueue/bulk" and is_ndjson(_content_type(headers)):
            self._traffic.note(path, method, 200, None)
            await self._stream(chunks, send)
        elif route is not None:
            begun = trio.current_time()
            if (told := await self._answered(route, headers, chunks)) is not None:
                self._count(path, method, told, trio.current_time() - begun)
                await respond(send, told, chunks)
        elif path == "*" or path.startswith("//"):  # Quart would take two slashes for one
            answer = (
                Answer(200, b"", "text/plain", {"Allow": ALLOWED})
                if path == "*"
                else problem_answer(no_route(f"{method} {path}"))
            )
            self._count(NO_ROUTE, method, answer, 0.0)
            await respond(send, answer, chunks)
        else:
            await self._hand_on(_whole(scope, headers), chunks, send)

    def _with_parameters(self, path: str, scope: Scope, chunks: "Chunks") -> Route:
        """What serves a hot route with parameters. Raises `Problem` where it does not take them."""
        if path != "/enqueue":
            query_from(scope["query_string"], NoQuery)
            return ROUTES[path]
        wanted = query_from(scope["query_string"], EnqueueQuery)
        check(wanted)
        by = by_client_of(self._node, scope) if wanted.by_hand else None
        if not wanted.wait:
            return partial(enqueue, by=by)

        async def hold(job_id: str) -> Job:
            departure = Departure(job_id if wanted.on_disconnect == "cancel" else None)
            scope.get("state", {})[DEPARTURE] = departure
            try:
                return await unless_gone(chunks, partial(awaited, self._node, job_id, wanted.wait))
            except ClientGone as error:
                gone = error
            await self._part(departure, scope)
            raise gone

        return partial(enqueue, hold=hold, by=by)

    async def _part(self, departure: Departure, scope: Scope) -> None:
        """Do what a request asked for in case its client hangs up."""
        if departure.job_id is None:
            return
        try:
            by = by_client_of(self._node, scope, HUNG_UP)
            await self._node.control.cancel(departure.job_id, by=by)
        except StoreError as error:
            log.warning(
                "a client hung up, and its job could not be cancelled",
                job=departure.job_id,
                error=str(error),
            )

    async def _hand_on(self, scope: Scope, chunks: "Chunks", send: Send) -> None:
        """Let Quart answer, and send the end of its answer from here.

        When it gets the end, Hypercorn reports a disconnect, and closes the connection if it is to be closed. Quart
        cancels its request on a disconnect: that would cancel the very call that closes the connection, and leave it
        open.
        """
        end: list[Mapping[str, Any]] = []
        departure = Departure()
        state = scope.get("state", {})
        state[DEPARTURE] = departure

        async def send_but_end(message: Mapping[str, Any]) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                end.append(message)
            else:
                await send(message)

        await self._app({**scope, "state": state}, chunks.receive, send_but_end)
        if chunks.gone and not end:
            await self._part(departure, scope)
        for message in end:
            await chunks.drop()
            await send(message)

    async def _answered(
        self, route: Route, headers: Mapping[bytes, bytes], chunks: "Chunks"
    ) -> Answer | None:
        """The answer of a hot route; None: the client is gone."""
        try:
            body = await read_body(chunks, headers, self._node.settings.max_body)
            return await route(self._node, _content_type(headers), body)
        except ClientGone:
            return None
        except (Problem, JobpipeError) as error:
            return problem_answer(problem_from(error))
        except Exception:
            log.exception("a request failed")
            return problem_answer(internal())

    def _count(self, route: str, method: str, answer: Answer, seconds: float) -> None:
        self._traffic.note(route, method, answer.status, seconds)
        if answer.code is not None:
            self._node.tallies.refused[answer.code] += 1

    async def _stream(self, chunks: "Chunks", send: Send) -> None:
        """Answer a stream while it comes in; once the spool is full, wait for a client that sends and does not read."""
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", NDJSON.encode())]}
        )
        with closing(Spool(self._files)) as spool:
            await self._pour(chunks, spool, send)

    async def _pour(self, chunks: "Chunks", spool: Spool, send: Send) -> None:
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
        self._receive = receive
        self.more = True
        """whether something is still to come"""
        self.gone = False
        """whether the client has hung up"""

    async def receive(self) -> Mapping[str, Any]:
        """The server's next message."""
        message = await self._receive()
        self.gone = message["type"] != "http.request"
        self.more = not self.gone and message.get("more_body", False)
        return message

    async def next(self) -> bytes | None:
        """The next part, or None at the end; raises `ClientGone` when the body does not come whole."""
        if not self.more:
            return None
        message = await self.receive()
        if message["type"] != "http.request":
            raise ClientGone
        return bytes(message.get("body", b""))

    async def drop(self) -> None:
        """Read the rest and drop it, for at most `LINGER` seconds."""
        with trio.move_on_after(LINGER):
            try:
                while await self.next() is not None:
                    pass
            except ClientGone:
                return


async def unless_gone(chunks: Chunks, wait: Callable[[], Awaitable[T]]) -> T:
    """What `wait` returns or raises; `ClientGone` when the client hangs up before that: then `wait` is cancelled."""
    ended: list[T] = []
    failed: list[Exception] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, chunks, nursery.cancel_scope)
        try:
            ended.append(await wait())
        except Exception as error:  # noqa: BLE001 - it is raised below, where no group is made of it
            failed.append(error)
        nursery.cancel_scope.cancel()
    if failed:
        raise failed[0]
    if not ended:
        raise ClientGone
    return ended[0]


async def _watch(chunks: Chunks, waits: trio.CancelScope) -> None:
    """Cancel what waits once the client hangs up. Its request must have been read to the end."""
    await chunks.receive()
    waits.cancel()


async def respond(send: Send, answer: Answer, chunks: Chunks) -> None:
    """Send an answer. What is still to come of the request is read and dropped before the connection closes."""
    headers = [(b"content-type", answer.content_type.encode()), (b"content-length", b"%d" % len(answer.body))]
    headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": chunks.more})
    if chunks.more:
        await chunks.drop()
        await send({"type": "http.response.body", "body": b""})


async def read_body(chunks: Chunks, headers: Mapping[bytes, bytes], limit: int) -> bytes:
    """The whole body; raises `Problem` beyond the limit and `ClientGone` when it does not come whole."""
    if int(headers.get(b"content-length", b"0")) > limit:
        raise too_large(limit)
    parts, size = [], 0
    while (part := await chunks.next()) is not None:
        parts.append(part)
        size += len(part)
        if size > limit:
            raise too_large(limit)
    return b"".join(parts)


def _whole(scope: Scope, headers: Mapping[bytes, bytes]) -> Scope:
    """A request without its Range header: files here are small, and a server may ignore ranges."""
    if b"range" not in headers:
        return scope
    return {**scope, "headers": [(name, value) for name, value in scope["headers"] if name != b"range"]}


def _content_type(headers: Mapping[bytes, bytes]) -> str:
    return headers.get(b"content-type", b"").decode("latin-1")
