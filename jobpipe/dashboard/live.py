"""Streams of what changes, for all who look: drawn once, whoever and how many they are, by one task of the node.

Viewers of one topic share its parts. Each knows which of them it was sent last, by their digests; whenever there are
others, it sends those as they are then. So a slow reader skips what came between, and costs nobody anything: what it
holds is one message that is being written.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
import trio

from jobpipe.api.departure import departure_of
from jobpipe.dashboard.topics import Parts, Topic, Topics, topic_of
from jobpipe.engine.unforeseen import Unforeseen
from jobpipe.errors import StoreError

PERIOD = 1.0
"""Seconds between two looks at the least."""

IDLE = 19
"""How many times as long as a look took nothing is done after it: looking takes a twentieth of the node at most."""

VIEWERS = 200
"""The most streams at once; whoever comes then asks now and then instead."""

BLOCKED = 10.0
"""Seconds after which a viewer that reads nothing is let go."""

HEARTBEAT = 15.0
"""Seconds without news after which a comment is sent, so that nobody in between takes the connection for dead."""

RETRY_AFTER = b"10"

Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]

HEADERS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]

FRESH, STALE = b"event: fresh\ndata:\n\n", b"event: stale\ndata:\n\n"

log = structlog.get_logger("jobpipe")


class Watched:
    """A topic that somebody watches."""

    def __init__(self) -> None:
        self.viewers = 0
        self.stale = False
        """whether the store could not tell when it was last asked"""
        self.drawn = False
        """whether it was drawn at all"""
        self._messages: dict[str, tuple[str, bytes]] = {}
        self._changed = trio.Event()

    def update(self, parts: Parts) -> None:
        """Take new parts, and wake those who have not seen them."""
        before, was_stale = dict(self._messages), self.stale
        self.stale, self.drawn = False, True
        for name, body in parts.items():
            digest = hashlib.blake2b(body, digest_size=8).hexdigest()
            if before.get(name, ("",))[0] != digest:
                self._messages[name] = (digest, message(name, body))
        for name in before.keys() - parts.keys():
            del self._messages[name]
        if self._messages != before or was_stale:
            self.wake()

    def fail(self) -> None:
        """The store cannot tell."""
        if not self.stale:
            self.stale = True
            self.wake()

    def wake(self) -> None:
        """Have every viewer look."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    @property
    def changed(self) -> trio.Event:
        """Set once there is something new."""
        return self._changed

    @property
    def digests(self) -> dict[str, str]:
        """What there is now."""
        return {name: digest for name, (digest, _) in self._messages.items()}

    def news(self, seen: Mapping[str, str]) -> bytes:
        """The parts that are others than those that were seen."""
        return b"".join(body for name, (digest, body) in self._messages.items() if seen.get(name) != digest)


def message(name: str, body: bytes) -> bytes:
    """A part of a page as an event: htmx puts it where the element with its name is."""
    opening = f'<hx-partial hx-target="#{name}" hx-swap="outerMorph">'.encode()
    lines = (opening + body.strip() + b"</hx-partial>").replace(b"\r", b"").split(b"\n")
    return b"".join(b"data: " + line + b"\n" for line in lines) + b"\n"


class Live:
    """The watcher of a node, and its viewers."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._watched: dict[Topic, Watched] = {}
        self._somebody = trio.Event()
        self._unforeseen = Unforeseen()
        self.looks = 0
        """how many times it has looked"""

    @property
    def viewers(self) -> int:
        """How many streams are open."""
        return sum(one.viewers for one in self._watched.values())

    async def run(self) -> None:
        """Look once a second while somebody watches, and sleep while nobody does. For ever."""
        while True:
            await self._somebody.wait()
            began = trio.current_time()
            for topic in list(self._watched):
                await self._look(topic)
            self.looks += 1
            took = trio.current_time() - began
            await trio.sleep(max(PERIOD - took, IDLE * took))
            if not self._watched:
                self._somebody = trio.Event()

    async def _look(self, topic: Topic) -> None:
        watched = self._watched.get(topic)
        if watched is None:
            return
        try:
            parts = await self._topics.draw(topic)
        except StoreError:
            watched.fail()
        except Exception as error:  # noqa: BLE001 - costs this look at this topic
            self._unforeseen.tell(error, "viewers of a page see nothing new", page=topic.page)
            watched.fail()
        else:
            watched.update(parts)

    async def serve(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve a stream, or with `once` the parts as they are now (ASGI 3)."""
        query = scope["query_string"]
        once = query.endswith((b"&once=1", b"once=1"))
        topic = topic_of(
            scope["path"].partition("/live/")[2], query.removesuffix(b"once=1").removesuffix(b"&")
        )
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, [(b"allow", b"GET, HEAD")])
        elif topic is None:
            await _answer(send, 404)
        elif once:
            await self._once(topic, dict(scope["headers"]), send)
        elif self.viewers >= VIEWERS:
            await _answer(send, 503, [(b"retry-after", RETRY_AFTER)])
        elif scope["method"] == "HEAD":
            await _answer(send, 200, [(b"content-type", b"text/event-stream")])
        else:
            departure_of(scope).probe = b":\n\n"
            await self._stream(topic, receive, send)

    async def _once(self, topic: Topic, headers: Mapping[bytes, bytes], send: Send) -> None:
        try:
            parts = await self._topics.draw(topic)
        except StoreError:
            await _answer(send, 503, [(b"retry-after", RETRY_AFTER)])
            return
        body = b"".join(
            f'<hx-partial hx-target="#{name}" hx-swap="outerMorph">'.encode() + part + b"</hx-partial>\n"
            for name, part in parts.items()
        )
        tag = hashlib.blake2b(body, digest_size=8).hexdigest().encode()
        if headers.get(b"hx-ptag") == tag:
            await _answer(send, 304, [(b"hx-ptag", tag)])
        else:
            await _answer(
                send, 200, [(b"content-type", b"text/html; charset=utf-8"), (b"hx-ptag", tag)], body
            )

    async def _stream(self, topic: Topic, receive: Receive, send: Send) -> None:
        watched = self._watched.setdefault(topic, Watched())
        watched.viewers += 1
        self._somebody.set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_gone, receive, nursery.cancel_scope)
                await _tell(watched, send)
                nursery.cancel_scope.cancel()
        finally:
            watched.viewers -= 1
            if not watched.viewers:
                self._watched.pop(topic, None)


async def _until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _tell(watched: Watched, send: Send) -> None:
    """Send what is new, for ever; returns when the viewer has read nothing for `BLOCKED` seconds."""
    headers = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no"), *HEADERS]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    seen: Mapping[str, str] = {}
    stale = False
    data = b"retry: 2000\n\n"
    while True:
        with trio.move_on_after(BLOCKED) as patience:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        if patience.cancelled_caught:
            return
        while not (data := _next(watched, seen, stale=stale)):
            with trio.move_on_after(HEARTBEAT) as quiet:
                await watched.changed.wait()
            if quiet.cancelled_caught:
                data = b":\n\n"
                break
        seen, stale = watched.digests, watched.stale


def _next(watched: Watched, seen: Mapping[str, str], *, stale: bool) -> bytes:
    """What a viewer is to be told that has seen so much."""
    news = watched.news(seen)
    if watched.stale != stale:
        news += STALE if watched.stale else FRESH
    return news


async def _answer(send: Send, status: int, headers: Any = (), body: bytes = b"") -> None:  # noqa: ANN401 - ASGI's own
    length = [(b"content-length", b"%d" % len(body))] if status != 304 else []  # noqa: PLR2004 - has no body
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *HEADERS, *length]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
