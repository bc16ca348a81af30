"""`GET /events`: server-sent events of all jobs, live or from the store."""

import json
from contextlib import aclosing, asynccontextmanager

import msgspec
import pytest
import trio

from jobpipe.api.cursors import cursor_of
from jobpipe.api.events import ended_events, live_events
from jobpipe.api.streams import HEARTBEAT
from jobpipe.engine.ends import Ending
from jobpipe.engine.feed import LINGER
from jobpipe.errors import StoreUnavailable
from jobpipe.job import ENDED, Status
from jobpipe.store.base import EndPlace, Filter
from jobpipe.store.matching import EventFilter
from tests.api.client import Breakable, open_door
from tests.api.test_streams import read

ALL = Filter()


class Stream:
    """Reads a stream in a task of its own, as fast as it comes."""

    def __init__(self, events):
        self.text, self.over, self._events = "", False, events
        self.read = trio.Event()
        self.read.set()
        self.scope = trio.CancelScope()

    async def run(self):
        with self.scope:
            async with aclosing(self._events):
                async for part in self._events:
                    self.text += part.decode()
                    await self.read.wait()
            self.over = True

    @property
    def events(self):
        return read(self.text)

    @property
    def told(self):
        return [(data["id"], data.get("status", name)) for _, name, data in self.events if name != "missed"]

    @property
    def names(self):
        return [name for _, name, _ in self.events]

    @property
    def mark(self):
        """The id that a client would send that connects again."""
        return [line for line in self.text.splitlines() if line.startswith("id: ")][-1].removeprefix("id: ")


@asynccontextmanager
async def watching(door, where=ALL, seen=None):
    """A stream of live events that listens by now."""
    async with trio.open_nursery() as nursery:
        stream = Stream(live_events(door.node, EventFilter(where), seen))
        nursery.start_soon(stream.run)
        await trio.sleep(0.01)
        yield stream
        stream.scope.cancel()


def ending(door, *statuses, lease=10.0, troubled=lambda: False):
    return Ending(door.store, door.node.clock, statuses or sorted(ENDED), lease=lease, troubled=troubled)


@asynccontextmanager
async def following(door, where=ALL, place=None, since=None, reader=None):
    """A stream of ends."""
    async with trio.open_nursery() as nursery:
        events = ended_events(door.node, reader or ending(door), EventFilter(where), place, since)
        stream = Stream(events)
        nursery.start_soon(stream.run)
        await trio.sleep(0.01)
        yield stream
        stream.scope.cancel()


async def test_what_becomes_of_each_job_is_told(door, autojump_clock):
    async with watching(door) as stream:
        await door.enqueue(id="a", kind="play", payload="hold")
        await door.stage.begun.wait()
        await trio.sleep(1)
        door.stage.release.set()
        await door.ended("a")
        await door.enqueue(id="b", kind="play", payload="fail")
        await door.ended("b")
        await door.post("/jobs/b/retry")
        await trio.sleep(1)
        await door.enqueue(id="c", delay=100)
        await trio.sleep(1)
        await door.post("/jobs/c/cancel")
        await trio.sleep(1)
        await door.delete("/jobs/c")
        await trio.sleep(1)

    assert stream.told == [
        ("a", "queued"),
        ("a", "running"),
        ("a", "done"),
        ("b", "queued"),
        ("b", "failed"),
        ("b", "queued"),
        ("b", "failed"),
        ("c", "scheduled"),
        ("c", "cancelled"),
        ("c", "deleted"),
    ]


async def test_jobs_that_come_of_others_are_told_too(door, autojump_clock):
    """Those of groups, those that wait for others, and those that expire."""
    async with watching(door) as stream:
        await door.enqueue(id="first", delay=5)
        await door.enqueue(id="second", depends_on=["first"])
        await door.enqueue(id="late", delay=50, expires_at="2023-11-14T22:13:23Z")
        await door.post("/groups", json={"id": "g", "jobs": [{"id": "m"}], "then": {"id": "then"}})
        await trio.sleep(10)

    assert [status for job_id, status in stream.told if job_id == "second"] == ["blocked", "queued", "done"]
    assert [status for job_id, status in stream.told if job_id == "then"] == ["blocked", "queued", "done"]
    assert {("m", "queued"), ("m", "done"), ("first", "done")} <= set(stream.told)


async def test_an_event_says_what_a_job_is(door, autojump_clock):
    async with watching(door) as stream:
        job = {"id": "a", "kind": "play", "payload": "fail", "queue": "q", "tags": ["x"], "key": "k"}
        await door.post("/enqueue", json=job)
        await door.ended("a")
        await trio.sleep(1)
    mark, name, data = stream.events[-1]
    async with following(door, Filter(fingerprint=data["error"].pop("fingerprint")), since=0.0) as durable:
        await trio.sleep(1)

    assert stream.text.startswith("retry: 2000\n\nid: n1.")
    assert (mark.rpartition(".")[0], name) == ("n1", "job")
    assert data.pop("at").startswith("2023-11-14T22:13:20.")
    assert data == {
        "id": "a",
        "status": "failed",
        "kind": "play",
        "queue": "q",
        "key": "k",
        "tags": ["x"],
        "attempt": 1,
        "node": "n1",
        "error": {"type": "Fail", "message": "as told"},
    }
    assert durable.told == [("a", "failed")]


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        (Filter(status=(Status.DONE, Status.FAILED)), ["mail", "news"]),
        (Filter(status=Status.DONE, queue="q"), ["mail"]),
        (Filter(status=Status.DONE, kind="pl*"), ["news"]),
        (Filter(status=Status.DONE, kind=("x", "echo")), ["mail"]),
        (Filter(status=Status.DONE, tag=("x", "y")), ["mail"]),
        (Filter(status=Status.DONE, key="k"), ["news"]),
        (Filter(status=Status.DONE, id=("news", "other")), ["news"]),
        (Filter(status=Status.DONE, node="n1"), ["mail", "news"]),
        (Filter(status=Status.DONE, node="n2"), []),
        (Filter(status=Status.DONE, group="g"), []),
        (Filter(status=Status.DONE, error_type="Fail"), []),
        (Filter(fingerprint="none"), []),
    ],
)
async def test_filters_are_those_of_lists(door, autojump_clock, where, ids):
    async with watching(door, where) as stream, following(door, where) as durable:
        await door.enqueue(id="mail", queue="q", tags=["x"])
        await door.enqueue(id="news", kind="play", payload=1, key="k")
        await trio.sleep(3)

    assert sorted(job_id for job_id, _ in stream.told) == ids
    assert sorted(job_id for job_id, _ in durable.told) == ids


async def test_what_cannot_be_judged_by_an_event_is_refused_by_name(door):
    faults = {}
    for name in (
        "text=a",
        "created_after=2030-01-01T00:00:00Z",
        "ended_after=2030-01-01T00:00:00Z",
        "nonsense=1",
    ):
        answer = await door.get(f"/events?{name}")
        assert answer.status_code == 422
        (fault,) = answer.json()["faults"]
        faults[fault["pointer"]] = fault["detail"]
    wrong = await door.get("/events?durable=done,running")

    assert "GET /jobs" in faults["?text"]
    assert "GET /jobs" in faults["?created_after"]
    assert "durable" in faults["?ended_after"]
    assert "known are status" in faults["?nonsense"]
    assert wrong.json()["faults"][0]["pointer"] == "?durable"


async def test_a_client_that_comes_back_misses_nothing(door, autojump_clock):
    """What came while nobody listened is kept for a while."""
    async with watching(door) as stream:
        await door.enqueue(id="a", delay=100)
        await trio.sleep(1)
    await door.enqueue(id="b", delay=100)
    await trio.sleep(LINGER / 2)
    async with watching(door, seen=stream.mark) as again:
        await trio.sleep(1)
    first = stream.text.split("\n\n")[1].removeprefix("id: ")
    async with watching(door, seen=first) as whole:
        await trio.sleep(1)

    assert again.told == [("b", "scheduled")]
    assert whole.told == [("a", "scheduled"), ("b", "scheduled")]


async def test_nothing_is_kept_for_long_when_nobody_listens(door, autojump_clock):
    """And a client that comes back then is told since when events are missing."""
    async with watching(door) as stream:
        await door.enqueue(id="a", delay=100)
        await trio.sleep(1)
        assert door.node.events.sink is not None
    await trio.sleep(LINGER + 1)
    assert door.node.events.sink is None
    async with watching(door, seen=stream.mark) as again:
        await door.enqueue(id="b", delay=100)
        await trio.sleep(1)

    assert again.names == ["missed", "job"]
    assert again.events[0][2] == {"since": "2023-11-14T22:13:20.010Z"}
    assert door.node.feed.ring.end == 1


@pytest.mark.parametrize(
    ("seen", "since"),
    [
        ("n2.1700000000000000", "2023-11-14T22:13:20.000Z"),  # of another node
        ("n1.9999999999999999", None),  # yet to be
        ("n1.-5", None),
        ("nonsense", None),
        ("", None),
        ("n1.0", None),
        ("\N{SNOWMAN}.٣", None),
        ("9" * 5000, None),
    ],
)
async def test_an_id_that_is_none_of_this_node_is_told_what_it_misses(door, autojump_clock, seen, since):
    async with watching(door, seen=seen) as stream:
        await door.enqueue(id="a", delay=100)
        await trio.sleep(1)

    assert stream.names == ["missed", "job"]
    assert stream.events[0][2] == {"since": since}


async def test_a_slow_reader_is_told_what_it_missed_and_goes_on_from_now(door, autojump_clock, monkeypatch):
    """Neither the service nor other readers wait for it."""
    monkeypatch.setattr(door.node.feed.ring, "_size", 50)
    async with watching(door, Filter(id="last")) as other, watching(door) as slow:
        slow.read = trio.Event()
        await door.enqueue(id="first", delay=100)
        for number in range(100):
            await door.enqueue(id=f"j{number}", delay=100)
            await trio.sleep(0.01)
        await trio.sleep(1)
        await door.enqueue(id="last", delay=100)
        await trio.sleep(1)
        told = other.told
        slow.read.set()
        await trio.sleep(1)
        await door.enqueue(id="next", delay=100)
        await trio.sleep(1)

    assert told == [("last", "scheduled")]
    assert slow.told[0] == ("first", "scheduled")
    assert slow.told[-1] == ("next", "scheduled")
    assert slow.names.count("missed") == 1
    assert len(slow.told) < 60


async def test_thousands_of_jobs_at_once_are_all_told(door, autojump_clock):
    jobs = [{"id": f"j{number}", "delay": 100} for number in range(2000)]
    async with watching(door, Filter(status=Status.SCHEDULED)) as stream:
        await door.post("/enqueue/bulk", json=jobs)
        await trio.sleep(5)

    assert sorted(stream.told) == sorted((job["id"], "scheduled") for job in jobs)


async def test_more_than_can_wait_is_told_as_missed(door, autojump_clock, monkeypatch):
    monkeypatch.setattr("jobpipe.engine.feed.MOST", 100)
    async with watching(door) as stream:
        await door.post("/enqueue/bulk", json=[{"delay": 100}] * 500)
        await trio.sleep(5)

    assert stream.names == ["job"] * 100 + ["missed"]


async def test_nothing_new_is_said_now_and_then(door, autojump_clock):
    """With the id at which a client goes on, though it is shown nothing."""
    async with watching(door, Filter(queue="q")) as live, following(door) as durable:
        await door.enqueue(id="a", delay=1000)
        await trio.sleep(4 * HEARTBEAT + 3)
    async with watching(door, seen=live.mark) as again:
        await trio.sleep(1)

    assert live.text.count(": nothing new\n") == durable.text.count(": nothing new\n") == 4
    assert again.names == []


async def test_streams_end_with_the_node(autojump_clock):
    async with open_door() as door, watching(door) as live, following(door) as durable:
        door.node.drain()
        await trio.sleep(10)
        assert live.over
        assert durable.over
        async with watching(door) as late:
            await trio.sleep(1)
        assert late.over


async def test_what_ends_while_a_node_drains_is_told(autojump_clock):
    """Up to the last job."""
    async with open_door() as door, watching(door) as live:
        await door.enqueue(id="a", kind="play", payload="hold")
        await door.stage.begun.wait()
        await trio.sleep(1)
        door.node.drain()
        await trio.sleep(1)
        door.stage.release.set()
        await trio.sleep(10)
        assert live.over

    assert live.told[-1] == ("a", "done")


async def test_a_lookup_that_fails_is_told_as_missed(autojump_clock):
    class Unread(Breakable):
        unread = False

        async def summaries(self, ids):
            if self.unread:
                raise StoreUnavailable("away")
            return await super().summaries(ids)

    store = Unread()
    async with open_door(store) as door, watching(door) as stream:
        await door.enqueue(id="a", delay=100)
        await trio.sleep(1)
        store.unread = True
        await door.enqueue(id="b", delay=100)
        await trio.sleep(1)
        store.unread = False
        await door.enqueue(id="c", delay=100)
        await trio.sleep(1)

    assert stream.told == [("a", "scheduled"), ("c", "scheduled")]
    assert stream.names == ["job", "missed", "job"]


async def test_streams_are_counted_together_and_a_client_that_leaves_frees_its_own(autojump_clock):
    async with open_door(max_connections=4) as door:
        async with trio.open_nursery() as nursery:
            for path in ("/events", "/events?durable=done"):
                nursery.start_soon(door.get, path)
            await trio.sleep(1)
            refused = await door.get("/events")
            nursery.cancel_scope.cancel()
        head = await door.request("HEAD", "/events")
        assert door.node.feed._readers == 0

    assert (refused.status_code, refused.json()["code"]) == (503, "too_many_streams")
    assert (head.status_code, head.headers["Content-Type"], head.text) == (200, "text/event-stream", "")


@pytest.mark.slow
async def test_a_client_that_hangs_up_is_noticed(door):
    """Within seconds, though there is nothing to tell it."""
    async with door.connected() as client:
        await client.send_all(b"GET /events HTTP/1.1\r\nHost: test\r\n\r\n")
        while b"id: n1." not in await client.receive_some():
            pass
        assert door.node.feed._readers == 1
        await client.aclose()
        with trio.fail_after(5):
            while door.node.feed._readers:  # noqa: ASYNC110 - no event tells
                await trio.sleep(0.05)


# The ends of jobs, from the store


async def test_ends_are_told_from_the_store(either_door):
    """Those from now on, and after a reconnect those that came meanwhile."""
    door = either_door
    await door.enqueue(id="before")
    await door.ended("before")
    async with following(door) as stream:
        await door.enqueue(id="a")
        await door.enqueue(id="b", kind="play", payload="fail")
        await door.ended("b")
        with trio.fail_after(10):
            while len(stream.told) < 2:  # noqa: ASYNC110 - no event tells
                await trio.sleep(0.1)
    await door.enqueue(id="c")
    await door.ended("c")
    place = msgspec.json.decode(_decoded(stream.mark), type=EndPlace)
    async with following(door, place=place) as again:
        with trio.fail_after(10):
            while ("c", "done") not in again.told:  # noqa: ASYNC110 - no event tells
                await trio.sleep(0.1)

    assert sorted(stream.told) == [("a", "done"), ("b", "failed")]
    assert again.told.count(("c", "done")) == 1
    assert {job_id for job_id, _ in again.told} <= {"before", "a", "b", "c"}


def _decoded(mark):
    import base64  # noqa: PLC0415 - the only use

    return base64.urlsafe_b64decode(mark + "=" * (-len(mark) % 4))


async def test_ends_since_a_time(door, autojump_clock):
    for job_id in ("a", "b"):
        await door.enqueue(id=job_id)
        await door.ended(job_id)
        await trio.sleep(100)
    since = door.node.clock.now() - 150
    async with following(door, since=since) as stream:
        await trio.sleep(1)
    async with following(door, since=0.0) as all_of_them:
        await trio.sleep(1)

    assert stream.told == [("b", "done")]
    assert all_of_them.told == [("a", "done"), ("b", "done")]


async def test_a_client_that_is_cut_off_anywhere_misses_nothing(door, autojump_clock):
    """In the middle of what is sent at once, too."""
    everything = [f"j{number}" for number in range(20)]
    for job_id in everything:
        await door.enqueue(id=job_id)
        await door.ended(job_id)
        await trio.sleep(1)
    reader = ending(door, lease=0.5)
    await trio.sleep(1)
    async with following(door, since=0.0, reader=reader) as stream:
        await trio.sleep(5)
    blocks = [block for block in stream.text.split("\n\n") if "data: " in block]
    again = []
    for number, block in enumerate(blocks, start=1):
        place = msgspec.json.decode(_decoded(block.splitlines()[0].removeprefix("id: ")), type=EndPlace)
        async with following(door, place=place, reader=ending(door, lease=0.5)) as rest:
            await trio.sleep(1)
        known, again = [job_id for job_id, _ in stream.told[:number]], rest.told
        assert sorted({*known, *(job_id for job_id, _ in again)}) == sorted(everything)

    assert len(blocks) == 20
    assert len(again) < 5


async def test_a_garbled_id_of_an_end_is_refused(door):
    """A browser would connect again for ever, and would never learn what is wrong."""
    for seen in (
        "nonsense",
        "n1.1700000000000000",
        cursor_of({"at": 1}),
        cursor_of([1.0]),
        cursor_of(["a", 1]),
        cursor_of([1.0, 1 << 63]),
    ):
        answer = await door.get("/events?durable=done", headers={"Last-Event-ID": seen})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
        assert answer.json()["faults"][0]["pointer"] == "Last-Event-ID"


async def test_a_store_that_cannot_be_read_ends_a_stream_of_ends(autojump_clock):
    """The client connects again with its last id."""

    class Unread(Breakable):
        async def ends(self, *which):
            await self._obey()
            return await super().ends(*which)

    store = Unread()
    async with open_door(store) as door, following(door) as stream:
        store.refuses = True
        await trio.sleep(3)
        assert stream.over
        assert json.loads(_decoded(stream.mark))
