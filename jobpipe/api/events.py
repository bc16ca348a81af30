"""`GET /events`: what becomes of all jobs, as server-sent events; or every end of a job, read from the store."""

from collections.abc import AsyncGenerator
from typing import Annotated

import trio
from msgspec import UNSET, Meta
from quart import Blueprint, Response, request
from quart_schema import document_querystring, tag_blueprint

from jobpipe.api.cursors import cursor_of, place_of
from jobpipe.api.filters import plain_filter_from
from jobpipe.api.inputs import query
from jobpipe.api.problems import Code, Fault, Problem, invalid
from jobpipe.api.schemas import EventError, EventQuery, EventView, GoneView, MissedView, rfc3339, when
from jobpipe.api.spec import Content, answers, problems
from jobpipe.api.streams import EVENTS, HEARTBEAT, RETRY, Streams, event_text, streamed
from jobpipe.engine.ends import Ending
from jobpipe.engine.feed import PART, Reader
from jobpipe.engine.node import Node
from jobpipe.engine.ring import Entry, Missed
from jobpipe.errors import StoreError
from jobpipe.job import JobError, Status
from jobpipe.store.base import EndPlace, Summary
from jobpipe.store.matching import EventFilter

LOOK = 1.0
"""Seconds between two looks for ends."""

EXAMPLE = """\
retry: 2000

id: web-1-412-9f3a2c.1906545600123456
event: job
data: {"id":"t1","status":"done","at":"2030-06-01T12:00:00.123Z","kind":"echo","queue":"default","tags":[],"attempt":1,\
"node":"web-1-412-9f3a2c","error":null}

"""

STREAM = Annotated[
    str,
    Meta(
        description="server-sent events: `job`, what became of a job; `deleted`, of one that was deleted; `missed`, "
        "events are missing"
    ),
]


def events_blueprint(node: Node, streams: Streams) -> Blueprint:
    """The route that streams what becomes of all jobs."""
    routes = Blueprint("events", __name__)
    tag_blueprint(routes, ["jobs"])

    @routes.get("/events")
    @document_querystring(EventQuery)
    @answers(
        200,
        "A stream of events.",
        Content(STREAM, EVENTS, examples={"events": EXAMPLE}, lines=(EventView, GoneView, MissedView)),
    )
    @problems(Code.INVALID, Code.TOO_MANY_STREAMS, Code.STORE_UNAVAILABLE)
    async def watch_jobs() -> Response:
        """Watch all jobs.

        Server-sent events from now on: each time a job comes to a status, on any node. A client that connects again
        with `Last-Event-ID` gets what came meanwhile, where this node still has it; else a `missed` says since when
        events are missing. So it is with a client that reads too slowly.

        With `durable`, the ends of jobs are read from the store, and none is missed, whichever node is asked and
        however long the client was away. After it has connected again, some may come twice.
        """
        wanted, seen = query(EventQuery), request.headers.get("Last-Event-ID")
        await node.store.ping()
        means = EventFilter(plain_filter_from(wanted))
        if wanted.durable is None:
            if wanted.ended_after is not None:
                fault = "goes only with durable: live events begin now, or where Last-Event-ID says"
                raise invalid([Fault("?ended_after", fault)])
            return streamed(streams, live_events(node, means, seen))
        since = None if wanted.ended_after is None else wanted.ended_after.timestamp()
        return streamed(
            streams, ended_events(node, _reader(node, wanted.durable), means, _place(seen), since)
        )

    return routes


def _reader(node: Node, durable: str) -> Ending:
    statuses = [Status(one) for one in dict.fromkeys(durable.split(","))]
    return Ending(
        node.store,
        node.clock,
        statuses,
        lease=node.settings.lease,
        troubled=lambda: node.ledger.trouble is not None,
    )


def _place(seen: str | None) -> EndPlace | None:
    try:
        return place_of(seen, EndPlace)
    except Problem:
        fault = "is not an id of this stream: send that of its last event, or leave it out to begin now"
        raise invalid([Fault("Last-Event-ID", fault)]) from None


class Heart:
    """Knows when nothing was said for so long that somebody in between may take the connection for dead."""

    def __init__(self) -> None:
        self._said_at = trio.current_time()

    @property
    def left(self) -> float:
        """Seconds until something has to be said."""
        return self._said_at + HEARTBEAT - trio.current_time()

    def beat(self) -> None:
        """Something was said."""
        self._said_at = trio.current_time()


async def live_events(node: Node, wanted: EventFilter, seen: str | None) -> AsyncGenerator[bytes, None]:
    """What becomes of jobs, for a client whose last event had the id `seen`; ends when this node does."""
    feed, heart = node.feed, Heart()
    yield b"retry: %d\n\n" % RETRY
    try:
        async with feed.reading(seen) as reader:
            yield _mark(node, reader)  # noqa: ASYNC119 - closed by whoever iterates
            while True:
                entries = reader.take()
                if text := b"".join(_shown(node, one) for one in entries if _is_wanted(one, wanted)):
                    heart.beat()
                    yield text  # noqa: ASYNC119 - as above
                elif heart.left <= 0:
                    heart.beat()
                    yield b": nothing new\n" + _mark(node, reader)  # noqa: ASYNC119 - as above
                if entries:
                    await trio.lowlevel.checkpoint()  # thousands may be of no interest here
                elif feed.closed:
                    return
                else:
                    await reader.more(heart.left)
    except StoreError:
        return  # the client connects again, and is told then


def _mark(node: Node, reader: Reader) -> bytes:
    """What has the client know where to go on, though there is no event."""
    return b"id: %s\n\n" % node.feed.mark(reader.number).encode()


def _is_wanted(one: Entry, wanted: EventFilter) -> bool:
    return isinstance(one, Missed) or wanted.means(one.id, one.status, one.job)


def _shown(node: Node, one: Entry) -> bytes:
    mark = node.feed.mark(one.number)
    if isinstance(one, Missed):
        return event_text("missed", mark, MissedView(when(one.since)))
    if not one.shown:
        if one.job is None or one.status == "deleted":
            one.shown = event_text("deleted", mark, GoneView(one.id))
        else:
            one.shown = event_text("job", mark, _view(one.job, one.status, one.at))
    return one.shown


def _view(job: Summary, status: Status, at: float) -> EventView:
    return EventView(
        id=job.id,
        status=status,
        at=rfc3339(at),
        kind=job.kind,
        queue=job.queue,
        key=UNSET if job.key is None else job.key,
        group=UNSET if job.group is None else job.group,
        tags=job.tags,
        attempt=job.attempt,
        node=job.node,
        error=None if job.error is None else _error(job.error),
    )


def _error(error: JobError) -> EventError:
    return EventError(error.type, error.message, error.fingerprint or UNSET)


async def ended_events(
    node: Node, reader: Ending, wanted: EventFilter, place: EndPlace | None, since: float | None
) -> AsyncGenerator[bytes, None]:
    """The ends of jobs behind a place, or since a time, or from now on; stops when this node does."""
    heart = Heart()
    yield b"retry: %d\n\n" % RETRY
    try:
        if place is not None:
            reader.go_on(place)
        elif since is not None:
            reader.go_on(EndPlace(since, -1))
        else:
            await reader.pass_over()
        mark = cursor_of(reader.horizon)
        yield b"id: %s\n\n" % mark.encode()
        while not node.feed.closed:
            ends = await reader.part()
            views = [
                _view(job, job.status, place.at)
                for place, job in ends
                if job.status is not None and wanted.means(job.id, job.status, job)
                if since is None or place.at >= since
            ]
            before, mark = mark, cursor_of(reader.horizon)
            # Only who has the last of them has them all.
            told = [event_text("job", before, view) for view in views[:-1]]
            told += [event_text("job", mark, view) for view in views[-1:]]
            for start in range(0, len(told), PART):
                heart.beat()
                yield b"".join(told[start : start + PART])
            if heart.left <= 0:
                heart.beat()
                yield b": nothing new\nid: %s\n\n" % mark.encode()
            if not ends:
                with trio.move_on_after(min(LOOK, max(heart.left, 0.0))):
                    await node.feed.ended()
    except StoreError:
        return  # the client connects again with its last id, and goes on there
