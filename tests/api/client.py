"""A client of the real application, and what stands behind it: handlers to direct, and a store to break."""

import contextlib
import importlib
import json
import math
import socket
import types
from typing import Annotated, Any, NamedTuple

import httpx
import msgspec
import trio
import trio.testing
from werkzeug.routing import Rule

from jobpipe.api.app import create_app
from jobpipe.api.limits import Limits
from jobpipe.api.server import serve
from jobpipe.clock import VirtualClock
from jobpipe.engine.node import Node
from jobpipe.errors import StoreUnavailable
from jobpipe.handlers.context import Context
from jobpipe.handlers.exceptions import Fail
from jobpipe.handlers.registry import SHIPPED, Registry, handler, handlers_of
from jobpipe.settings import Settings
from jobpipe.store.memory import MemoryStore

ORIGIN = "http://test"


class Mail(msgspec.Struct):
    """A payload with a type, so that the door can check it."""

    to: Annotated[str, msgspec.Meta(pattern="@")]
    lines: list[int] = []
    labels: dict[str, int] = {}


class Stage:
    """The handlers of these tests: one whose payload says how its attempt ends, and one with a typed payload."""

    def __init__(self):
        self.release = trio.Event()
        """lets `hold` go on"""
        self.cleaned = trio.Event()
        """lets the cleanup of `hold` end"""
        self.begun = trio.Event()
        """set once a handler has begun"""
        self.children, self.last_cleanup = 0, math.inf
        """how many child tasks of a handler are there, and when the last one ended"""

    async def child(self, number):
        """A child task that takes its time to clean up, up to a second."""
        self.children += 1
        if number == 0:
            self.begun.set()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(number / 1000)
            self.children -= 1
            self.last_cleanup = trio.current_time()

    def registry(self, more=()):
        @handler("play")
        async def play(payload: Any, context: Context) -> Any:
            self.begun.set()
            match payload:
                case "tell" | "tell, and end":
                    context.progress(0.5, "half of it")
                    context.log.info("first", to=["ann"])
                    context.log.warning("second")
                    if payload == "tell":
                        await self.release.wait()
                    context.log.error("third")
                case "fail":
                    raise Fail("as told")
                case "hold":
                    await self.release.wait()
                case "hold, then clean up":
                    try:
                        await self.release.wait()
                    finally:
                        with trio.CancelScope(shield=True):
                            await self.cleaned.wait()
            return payload

        @handler("family")
        async def family(payload: int) -> None:
            async with trio.open_nursery() as nursery:
                for number in range(payload):
                    nursery.start_soon(self.child, number)

        @handler("mail", max_retries=7)
        async def mail(payload: Mail) -> None:
            assert "@" in payload.to

        module = types.ModuleType("stage")
        module.__dict__.update(play=play, family=family, mail=mail)
        shipped = [one for name in SHIPPED for one in handlers_of(importlib.import_module(name))]
        return Registry([*shipped, *handlers_of(module), *more])


class Breakable(MemoryStore):
    """A memory store that can be told to refuse, to hang, or to keep its jobs to itself."""

    def __init__(self):
        super().__init__()
        self.refuses = self.hangs = self.keeps = False
        self.refuses_writing = self.hangs_writing = False

    async def _obey(self, *, writing=False):
        if self.refuses or (writing and self.refuses_writing):
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable("the disk is full")
        while self.hangs or (writing and self.hangs_writing):  # noqa: ASYNC110 - a switch, to be thrown and thrown back
            await trio.sleep(1)

    async def exchange(self, batch):
        await self._obey(writing=True)
        if not self.keeps:
            return await super().exchange(batch)
        receipts = await super().exchange(msgspec.structs.replace(batch, claims=()))
        return msgspec.structs.replace(receipts, claims=[()] * len(batch.claims))

    async def ping(self):
        await self._obey()
        await super().ping()

    async def get(self, job_id):
        await self._obey()
        return await super().get(job_id)

    async def log(self, *which):
        await self._obey()
        return await super().log(*which)

    async def jobs(self, where, limit, before):
        await self._obey()
        return await super().jobs(where, limit, before)

    async def queues(self, *page):
        await self._obey()
        return await super().queues(*page)

    async def queue(self, name):
        await self._obey()
        return await super().queue(name)

    async def overview(self, kinds, queues=None):
        await self._obey()
        return await super().overview(kinds, queues)

    async def delete_queue(self, queue, **by):
        await self._obey()
        return await super().delete_queue(queue, **by)

    async def cancel(self, ids, now, **by):
        await self._obey()
        return await super().cancel(ids, now, **by)

    async def retry(self, ids, now, **by):
        await self._obey()
        return await super().retry(ids, now, **by)

    async def promote(self, ids, now, **by):
        await self._obey()
        return await super().promote(ids, now, **by)

    async def edit(self, ids, edits, now, **by):
        await self._obey()
        return await super().edit(ids, edits, now, **by)

    async def delete(self, ids, now, **by):
        await self._obey()
        return await super().delete(ids, now, **by)

    async def add_group(self, new, now):
        await self._obey()
        return await super().add_group(new, now)

    async def group(self, group_id):
        await self._obey()
        return await super().group(group_id)

    async def close_group(self, group_id, now, **by):
        await self._obey()
        return await super().close_group(group_id, now, **by)

    async def add_dependents(self, jobs, *, atomic, strict=False):
        await self._obey()
        return await super().add_dependents(jobs, atomic=atomic, strict=strict)

    async def put_schedule(self, *what, **by):
        await self._obey()
        return await super().put_schedule(*what, **by)

    async def pause_schedule(self, *what, **by):
        await self._obey()
        return await super().pause_schedule(*what, **by)

    async def resume_schedule(self, *what, **by):
        await self._obey()
        return await super().resume_schedule(*what, **by)

    async def delete_schedule(self, name, **by):
        await self._obey()
        return await super().delete_schedule(name, **by)

    async def schedule(self, name):
        await self._obey()
        return await super().schedule(name)

    async def schedules(self, *page):
        await self._obey()
        return await super().schedules(*page)

    async def pause(self, *what, **by):
        await self._obey()
        await super().pause(*what, **by)

    async def begin_operation(self, *what, **by):
        await self._obey()
        return await super().begin_operation(*what, **by)

    async def stop_operation(self, *what, **by):
        await self._obey()
        return await super().stop_operation(*what, **by)

    async def operation(self, operation):
        await self._obey()
        return await super().operation(operation)

    async def operations(self, *page):
        await self._obey()
        return await super().operations(*page)

    async def error_groups(self, *wanted):
        await self._obey()
        return await super().error_groups(*wanted)

    async def error_group(self, *wanted):
        await self._obey()
        return await super().error_group(*wanted)

    async def nodes(self, *page):
        await self._obey()
        return await super().nodes(*page)

    async def node(self, name):
        await self._obey()
        return await super().node(name)

    async def put_queue(self, queue, settings, limits=None, **by):
        await self._obey()
        await super().put_queue(queue, settings, limits, **by)

    async def resume(self, queue, **by):
        await self._obey()
        await super().resume(queue, **by)

    async def keys(self, *what):
        await self._obey()
        return await super().keys(*what)

    async def key(self, *what):
        await self._obey()
        return await super().key(*what)

    async def put_key(self, *what, **by):
        await self._obey()
        return await super().put_key(*what, **by)

    async def pause_key(self, *what, **by):
        await self._obey()
        return await super().pause_key(*what, **by)

    async def resume_key(self, *what, **by):
        await self._obey()
        return await super().resume_key(*what, **by)

    async def add_by_hand(self, *what):
        await self._obey()
        return await super().add_by_hand(*what)

    async def audit(self, *wanted):
        await self._obey()
        return await super().audit(*wanted)


class Call(NamedTuple):
    """What an application sent, as it sent it."""

    status: int | None
    headers: dict[str, str]
    body: bytes

    @property
    def lines(self):
        return [json.loads(line) for line in self.body.splitlines()]


_builders: dict[tuple[str, bool], Any] = {}
_compile_builder = Rule._compile_builder


def _compiled_once(rule, append_unknown=True):
    key = (rule.rule, append_unknown)
    if key not in _builders:
        _builders[key] = _compile_builder(rule, append_unknown)
    return _builders[key]


# Werkzeug compiles the rules of each application anew, which takes a third of the time of a short test.
Rule._compile_builder = _compiled_once  # type: ignore[method-assign]


class Door(httpx.AsyncClient):
    """A client of the application, with the node and the store behind it at hand."""

    def __init__(self, node, stage):
        self.node, self.stage, self.store, self.app = node, stage, node.store, create_app(node)
        transport = httpx.ASGITransport(self.app)  # type: ignore[arg-type]  # httpx's own ASGI types
        super().__init__(transport=transport, base_url=ORIGIN)

    async def enqueue(self, **job):
        """POST /enqueue."""
        return await self.post("/enqueue", json=job)

    async def ended(self, job_id):
        """The job, once it has ended."""
        return (await self.get(f"/jobs/{job_id}?wait=600")).json()

    async def stored(self):
        """How many jobs there are."""
        return sum(sum(queue.counts.values()) for queue in await self.store.queues())

    async def call(self, path, receive, *, method="POST", query="", headers=(), app=None, send=None):
        """Call the application as a server does, with a `receive` and, where told, a `send` made by hand."""
        sent = []

        async def collect(message):
            sent.append(message)
            await trio.lowlevel.checkpoint()
            if send:
                await send(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in dict(headers).items()],
            "server": ("test", 80),
            "client": ("127.0.0.1", 1),
            "extensions": {},
        }
        await (app or self.app)(scope, receive, collect)
        start = next((one for one in sent if one["type"] == "http.response.start"), None)
        body = b"".join(one.get("body", b"") for one in sent if one["type"] == "http.response.body")
        if start is None:
            return Call(None, {}, body)
        return Call(
            start["status"], {name.decode(): value.decode() for name, value in start["headers"]}, body
        )

    @contextlib.asynccontextmanager
    async def served(self):
        """Serve the application on a free port of this machine, as the service does; yields the port."""
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        limits = Limits(connections=1000, grace=1)
        over = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, self.app, [listener], limits, over.wait)  # noqa: ASYNC113 - it listens already
            yield port
            over.set()

    @contextlib.asynccontextmanager
    async def connected(self):
        """A connection to the application, to send bytes of one's own."""
        async with self.served() as port, await trio.open_tcp_stream("127.0.0.1", port) as stream:
            yield stream


async def asked(nursery, call):
    """Make a request in a task of its own; returns the list that its answer will be put into."""
    answers = []

    async def ask():
        answers.append(await call())

    nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    return answers


@contextlib.asynccontextmanager
async def open_door(store=None, *, name="n1", handlers=(), **settings):
    """Open a door with settings of its own; its node runs until the door is closed."""
    stage = Stage()
    defaults = {"store": "memory:", "max_backlog": 10_000, "workers": 2, "allowed_hosts": ("test",)}
    chosen = Settings(**{**defaults, **settings})
    node = Node(chosen, store or MemoryStore(), stage.registry(handlers), VirtualClock(), name=name)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        try:
            async with Door(node, stage) as door:
                yield door
        finally:
            stage.cleaned.set()  # a test that failed must not wait for a cleanup
        nursery.cancel_scope.cancel()
