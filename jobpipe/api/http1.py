"""HTTP/1.1 as RFC 9112 has it: Hypercorn's protocol around h11, stricter, and refusals as problem details."""

import enum
import http
from collections.abc import Sequence
from typing import Any

import h11
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Request, Response
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import ASGISendEvent, H11SendableEvent
from hypercorn.utils import suppress_body

from jobpipe.api.answers import Answer, problem_answer
from jobpipe.api.departure import departure_of
from jobpipe.api.heads import HEAD, Fields, read_head
from jobpipe.api.problems import Problem, bad_request, internal, not_implemented, too_long_head

REASONS = {status.value: status.phrase.encode() for status in http.HTTPStatus}

WORDS = (
    ("Missing mandatory Host", "there is no Host header: HTTP/1.1 needs one"),
    ("Found multiple Host", "there are several Host headers: send one"),
    ("conflicting Content-Length", "there are several Content-Lengths that differ: send one"),
    ("bad Content-Length", "the Content-Length is not a number: send the number of the body's bytes"),
    ("illegal request line", "the request line is not of the form `GET /path HTTP/1.1`"),
    ("no request line", "the request line is not of the form `GET /path HTTP/1.1`"),
    ("illegal header line", "a header is not of the form `Name: value`"),
    ("continuation line", "a header is not of the form `Name: value`"),
    ("illegal chunk", "the chunked body is malformed"),
    ("malformed chunk", "the chunked body is malformed"),
    ("peer", "the request ended before it was complete"),
)
"""How h11 begins what it says of a request that it cannot read, and how that is said here."""


class Waiting(enum.Enum):
    """What a connection waits for."""

    REQUEST = enum.auto()
    """the next request, or the rest of a head"""
    BODY = enum.auto()
    """the rest of a body"""
    ANSWER = enum.auto()
    """the application"""


class Http1(H11Protocol):
    """One connection's HTTP/1.1. No upgrade is offered, and none is accepted: such headers are passed over.

    The head of an answer of known length waits for the body, which is there already. That makes one write of two, and
    one wake-up of the client. The head of a stream goes out at once.
    """

    connection: h11.Connection
    _head = b""
    _method = b""

    @property
    def waiting(self) -> Waiting:
        """What this connection waits for."""
        match self.connection.their_state:
            case h11.IDLE:
                return Waiting.REQUEST
            case h11.SEND_BODY:
                return Waiting.BODY
            case _:
                return Waiting.ANSWER

    @property
    def answering(self) -> bool:
        """Whether a request is with the application."""
        return self.stream is not None

    @property
    def ahead(self) -> int:
        """How many bytes of the next request have come."""
        return len(self.connection.trailing_data[0])

    @property
    def unread(self) -> bool:
        """Whether the client may still be sending something that nobody will read."""
        state = self.connection.their_state
        return state in (h11.SEND_BODY, h11.ERROR) or bool(self.connection.trailing_data[0])

    @property
    def minded(self) -> bool:
        """Whether it makes a difference to the request that is answered when its client goes."""
        if self.stream is None:
            return False
        return self._probe is not None or departure_of(self.stream.scope).job_id is not None

    @property
    def _probe(self) -> bytes | None:
        return None if self.stream is None else departure_of(self.stream.scope).probe

    async def ask(self) -> None:
        """Find out whether a client from which nothing is read is still there: one that is gone resets what it is sent.

        A stream of events takes a comment at any time. Before the head of an answer, an interim response is what every
        client of HTTP/1.1 passes over (RFC 9110, section 15.2), one with this status even those that do not know the
        rule.
        """
        if self.connection.our_state is h11.SEND_RESPONSE and self.connection.their_http_version == b"1.1":
            await self._go_on()
        elif self.connection.our_state is h11.SEND_BODY and self._probe is not None:
            await self._send_h11_event(h11.Data(data=self._probe))

    async def receive(self, data: bytes) -> None:
        """Take what the client sent; nothing, when it ended its side.

        Waits while the application takes no more, and while an earlier request of the client is answered.
        """
        if self.connection.their_state in (h11.MUST_CLOSE, h11.ERROR):
            return  # nothing that comes after the last request counts
        if self.connection.their_state is h11.IDLE and data and not self.connection.trailing_data[0]:
            # Some clients end a body with a line of its own (RFC 9112, section 2.2).
            data = data.lstrip(b"\r\n")
            if not data:
                return  # and not the end of the client's side, which nothing stands for
        self.connection.receive_data(data)
        await self._handle_events()

    async def refuse(self, problem: Problem) -> None:
        """Answer what the client has sent so far with a problem, where no answer has begun, and hang up."""
        await self._close_stream()
        if self.connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = problem_answer(problem)
            await self._send_h11_event(_response(answer.status, [*_headers(answer), *self._common()]))
            if self._method != b"HEAD":
                await self._send_h11_event(h11.Data(data=answer.body))
            await self._send_h11_event(h11.EndOfMessage())
        await self.send(Closed())

    async def stream_send(self, event: StreamEvent) -> None:
        """Send a part of an answer (Hypercorn calls this)."""
        if isinstance(event, Response):
            headers = [*event.headers, *self._common()]
            if self.context.terminated.is_set():
                headers.append((b"connection", b"close"))
            await self._send_h11_event(_response(event.status_code, headers))
        else:
            await super().stream_send(event)

    async def _handle_events(self) -> None:
        """Take from h11 what it has read, until it needs more."""
        while self.connection.their_state not in (h11.MUST_CLOSE, h11.ERROR):
            if self.connection.they_are_waiting_for_100_continue:
                await self._go_on()
            try:
                event = self.connection.next_event()
            except h11.RemoteProtocolError as error:
                await self.refuse(_problem_from(error))
                return
            if event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
                return
            if event is h11.PAUSED:
                await self.can_read.clear()
                await self.can_read.wait()
            else:
                await self._take(event)

    async def _take(self, event: h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]) -> None:
        match event:
            case h11.Request():
                await self._begin(event)
            case h11.Data() if self.stream is not None:
                await self.stream.handle(Body(stream_id=STREAM_ID, data=event.data))
            case h11.EndOfMessage() if self.stream is not None:
                await self.stream.handle(EndBody(stream_id=STREAM_ID))
            case _:
                pass  # the rest of a request that was answered already

    async def _begin(self, request: h11.Request) -> None:
        self._method = request.method
        await self.send(Updated(idle=False))
        try:
            target, headers = read_head(request)
        except Problem as problem:
            await self.refuse(problem)
            return
        self.stream = Stream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=headers,
                http_version=request.http_version.decode(),
                method=request.method.decode(),
                raw_path=target,
                state=self.connection_state,
            )
        )

    async def _maybe_recycle(self) -> None:
        """Go on to the next request once one is answered, unless either side has said that it was the last."""
        await self._close_stream()
        goes_on = self.connection.our_state is self.connection.their_state is h11.DONE
        if goes_on:
            self.connection.start_next_cycle()
            self._pass_over_blank_lines()
        await self.can_read.set()
        await self.send(Updated(idle=True) if goes_on else Closed())

    def _pass_over_blank_lines(self) -> None:
        waiting = self.connection.trailing_data[0] if self.connection.their_state is h11.IDLE else b""
        if waiting.startswith((b"\r\n", b"\n")):
            self.connection = h11.Connection(h11.SERVER, self.config.h11_max_incomplete_size)
            if rest := waiting.lstrip(b"\r\n"):
                self.connection.receive_data(rest)

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

    async def _go_on(self) -> None:
        """Send a `100 Continue`."""
        await self._send_h11_event(
            h11.InformationalResponse(status_code=100, headers=self._common(), reason=REASONS[100])
        )

    def _common(self) -> Fields:
        return self.config.response_headers("h11")


class Stream(HTTPStream):
    """One request and its answer, in ASGI's messages. What is sent after the end is passed over."""

    app_put = None  # type: ignore[assignment]  # until the request is begun; Hypercorn asks whether it is None

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """Send a message of the application, or None when it has ended."""
        if not self.closed:
            await super().app_send(message)

    async def _send_error_response(self, status_code: int) -> None:  # noqa: ARG002 - Hypercorn's: of ours it is always 500
        answer = problem_answer(internal())
        await self.send(Response(self.stream_id, headers=_headers(answer), status_code=answer.status))
        if not suppress_body(self.scope["method"], answer.status):
            await self.send(Body(self.stream_id, answer.body))
        await self.send(EndBody(self.stream_id))


def _problem_from(error: h11.RemoteProtocolError) -> Problem:
    text = str(error)
    match error.error_status_hint:
        case 431:
            return too_long_head(HEAD)
        case 501:
            return not_implemented("the only supported transfer coding is `chunked`, given once")
        case _:
            known = (words for beginning, words in WORDS if text.startswith(beginning))
            return bad_request(next(known, "the request is not HTTP/1.1"))


def _response(status: int, headers: Sequence[tuple[bytes, bytes]]) -> h11.Response:
    return h11.Response(status_code=status, headers=list(headers), reason=REASONS.get(status, b""))


def _headers(answer: Answer) -> list[Any]:
    """The headers of a refusal, after which the connection ends."""
    return [
        (b"content-type", answer.content_type.encode()),
        (b"content-length", b"%d" % len(answer.body)),
        (b"connection", b"close"),
    ]
