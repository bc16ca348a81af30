"""`GET /jobs/ID/events`: what becomes of one job, as server-sent events (the HTML standard, section 9.2).

An event is a state, not a change: a client that is slow, or connects again with the id of its last event, gets the
state as it is now, whichever node answers.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

import trio
from quart import Blueprint, Response, request
from quart_schema import tag_blueprint

from jobpipe.api.answers import Answer, encode
from jobpipe.api.departure import departure_of
from jobpipe.api.holding import found
from jobpipe.api.jobs import JobInPath
from jobpipe.api.problems import Code, too_many_streams
from jobpipe.api.responses import respond
from jobpipe.api.schemas import JobView, stored_view
from jobpipe.api.spec import Content, answers, problems
from jobpipe.engine.node import Node
from jobpipe.errors import StoreError
from jobpipe.job import ENDED, Job, Status

EVENTS = "text/event-stream"

HEARTBEAT = 15.0
"""Seconds without an event after which a comment is sent, so that nobody in between takes the connection for dead."""

RETRY = 2000
"""Milliseconds after which a client connects again."""


class Streams:
    """How many streams are open: about half of the connections at most, so that other requests get through."""

    def __init__(self, most: int) -> None:
        self._most, self._open = most, 0

    def check(self) -> None:
        """Raise `Problem` when there are as many as there may be."""
        if self._open >= self._most:
            raise too_many_streams(self._most)

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Count one as long as the context is open."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


def streams_of(node: Node) -> Streams:
    """What counts the streams of a node, whichever route they are of."""
    return Streams(max(1, node.settings.max_connections // 2))


def streams_blueprint(node: Node, streams: Streams) -> Blueprint:
    """The route that streams what becomes of one job."""
    routes = Blueprint("streams", __name__)
    tag_blueprint(routes, ["jobs"])

    @routes.get("/jobs/<job_id>/events")
    @answers(
        200,
        "A stream of events. `job`: the job as it is, `deleted`: it is gone. The stream ends when the job has ended.",
        Content(JobView, EVENTS),
    )
    @answers(204, "The job has ended, and `Last-Event-ID` says that the client knows.")
    @problems(Code.NO_SUCH_JOB, Code.INVALID, Code.TOO_MANY_STREAMS, Code.STORE_UNAVAILABLE)
    async def watch_job(job_id: JobInPath) -> Response:
        """Watch a job.

        Server-sent events: the job as it is, and again each time its status or its progress has changed, until it has
        ended. Payload and result come with the last event only. A client that connects again with `Last-Event-ID` gets
        what is new.
        """
        job = await found(node, job_id)
        seen = request.headers.get("Last-Event-ID")
        if job.status in ENDED and seen == mark_of(job):
            return respond(Answer(204, b""))
        return streamed(streams, job_events(node, job_id, seen))

    return routes


def streamed(streams: Streams, events: AsyncGenerator[bytes, None]) -> Response:
    """The response that sends events; to a HEAD request only that it would.

    Raises `Problem` for one stream too many.
    """
    streams.check()
    departure_of(request.scope).probe = b":\n\n"
    body = b"" if request.method == "HEAD" else _counted(streams, events)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    response = Response(body, headers=headers, content_type=EVENTS)
    response.timeout = None
    return response


async def _counted(streams: Streams, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    with streams.one_more():
        async with aclosing(events):
            async for event in events:
                yield event  # noqa: ASYNC119 - Quart closes what it iterates, also when the client is gone


async def job_events(node: Node, job_id: str, seen: str | None) -> AsyncGenerator[bytes, None]:
    """The events of a job whose client has seen the one with the id `seen`; ends when the job or this node does."""
    yield b"retry: %d\n\n" % RETRY
    said_at = trio.current_time()
    try:
        async with node.waiting.following(job_id, progress=True) as following:
            while True:
                job = await following.look()
                if job is None:
                    yield event_text("deleted", None, {"id": job_id})  # noqa: ASYNC119 - closed by whoever iterates
                    return
                if _is_new(mark_of(job), seen):
                    seen, said_at = mark_of(job), trio.current_time()
                    yield event_text("job", seen, _shown(job, node))  # noqa: ASYNC119 - as above
                elif trio.current_time() - said_at >= HEARTBEAT:
                    said_at = trio.current_time()
                    yield b": nothing new\n\n"  # noqa: ASYNC119 - as above
                if job.status in ENDED or following.over:
                    return
    except StoreError:
        return  # the client connects again, and is told then


def _shown(job: Job, node: Node) -> JobView:
    whole = job.status in ENDED
    return stored_view(job, node.registry, content=whole, attempts=False, progress=True)


def mark_of(job: Job) -> str:
    """The id of the event that tells of a job as it is: the same on every node."""
    said_at = "" if job.progress is None else f".{job.progress.at:.3f}"
    return f"{job.state.claim}.{job.status}{said_at}"


def _is_new(mark: str, seen: str | None) -> bool:
    """Whether there is something to tell. That a queued job is claimed, and not begun, is nothing."""
    return mark != seen and not (seen is not None and {_status(mark), _status(seen)} == {Status.QUEUED})


def _status(mark: str) -> str:
    return mark.split(".")[1] if "." in mark else ""


def event_text(name: str, mark: str | None, data: object) -> bytes:
    """An event as it is sent; `mark`: its id."""
    head = b"" if mark is None else b"id: %s\n" % mark.encode()
    # A line ends the field. In JSON, line ends stand between tokens only: a payload has those that its client sent.
    line = encode(data).replace(b"\n", b" ").replace(b"\r", b" ")
    return head + b"event: %s\ndata: %s\n\n" % (name.encode(), line)
