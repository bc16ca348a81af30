"""`/jobs/ID/events`: server-sent events of one job."""

import json

import pytest
import trio

from jobpipe.api.streams import HEARTBEAT, job_events
from jobpipe.store.memory import open_memory
from tests.api.client import Breakable, open_door


def read(stream):
    """The events of a stream: (id, name, data); comments and `retry` are left out."""
    found = []
    for block in stream.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":")
        )
        if "event" in fields:
            found.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return found


class Listener:
    """Reads a stream until it ends."""

    def __init__(self, door, job_id, seen=None):
        self.text, self.over = "", False
        self._events = job_events(door.node, job_id, seen)

    async def listen(self):
        async for event in self._events:
            self.text += event.decode()
        self.over = True

    @property
    def statuses(self):
        return [data["status"] for _, name, data in read(self.text) if name == "job"]


async def test_a_stream_ends_with_the_job_and_its_result(either_door):
    await either_door.enqueue(id="a", payload={"n": 1})
    answer = await either_door.get("/jobs/a/events")
    events = read(answer.text)
    mark, name, last = events[-1]

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.text.startswith("retry: 2000\n\n")
    assert (mark, name, last["status"], last["result"]) == ("1.done", "job", "done", {"n": 1})
    assert "attempts" not in last


async def test_each_status_is_told_and_the_payload_only_at_the_end(door, autojump_clock):
    await door.enqueue(id="a", kind="play", payload="hold", delay=10)
    listener = Listener(door, "a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.listen)
        await door.stage.begun.wait()
        await trio.sleep(3)
        before = read(listener.text)
        door.stage.release.set()

    assert listener.statuses == ["scheduled", "queued", "running", "done"]
    assert all("payload" not in data and "result" not in data for _, _, data in before)
    assert read(listener.text)[-1][2]["payload"] == "hold"


async def test_a_cancel_is_told_when_it_is_asked_and_when_it_is_done(door, autojump_clock):
    await door.enqueue(id="a", kind="play", payload="hold, then clean up")
    await door.stage.begun.wait()
    await trio.sleep(1)
    listener = Listener(door, "a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.listen)
        await trio.sleep(3)
        await door.post("/jobs/a/cancel")
        await trio.sleep(1)
        asked = listener.statuses
        door.stage.cleaned.set()

    assert asked == ["running", "cancelling"]
    assert listener.statuses == ["running", "cancelling", "cancelled"]


async def test_a_client_that_comes_back_is_told_what_is_new(door, autojump_clock):
    await door.enqueue(id="a", payload=1)
    await door.ended("a")
    again = await door.get("/jobs/a/events", headers={"Last-Event-ID": "1.running"})
    known = await door.get("/jobs/a/events", headers={"Last-Event-ID": "1.done"})
    nonsense = await door.get("/jobs/a/events", headers={"Last-Event-ID": "☃".encode()})

    assert [mark for mark, _, _ in read(again.text)] == ["1.done"]
    assert (known.status_code, known.text) == (204, "")
    assert [mark for mark, _, _ in read(nonsense.text)] == ["1.done"]


async def test_nothing_new_is_said_now_and_then(door, autojump_clock):
    await door.enqueue(id="a", delay=1000)
    listener = Listener(door, "a")
    with trio.move_on_after(4 * HEARTBEAT + 3):
        await listener.listen()

    assert listener.text.count(": nothing new\n\n") in {3, 4}
    assert listener.statuses == ["scheduled"]


async def test_a_job_that_is_deleted_ends_its_stream(door, autojump_clock):
    await door.enqueue(id="a", delay=1000)
    listener = Listener(door, "a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.listen)
        await trio.sleep(1)
        await door.delete("/jobs/a")

    assert read(listener.text)[-1] == (None, "deleted", {"id": "a"})


async def test_a_retry_by_hand_is_another_life(door, autojump_clock):
    """Its events have other ids than those before."""
    await door.enqueue(id="a", payload=1)
    await door.ended("a")
    await door.post("/jobs/a/retry")
    answer = await door.get("/jobs/a/events", headers={"Last-Event-ID": "1.done"})

    assert read(answer.text)[-1][0] == "2.done"


async def test_a_job_that_is_not_there_is_404_and_head_has_no_body(door):
    await door.enqueue(id="a", delay=1000)
    missing = await door.get("/jobs/none/events")
    head = await door.request("HEAD", "/jobs/a/events")

    assert (missing.status_code, missing.json()["code"]) == (404, "no_such_job")
    assert (head.status_code, head.headers["Content-Type"], head.text) == (200, "text/event-stream", "")


async def test_streams_leave_room_for_other_requests(autojump_clock):
    """Those that are closed count no more."""
    async with open_door(max_connections=4) as door:
        await door.enqueue(id="a", delay=1000)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(door.get, "/jobs/a/events")
            await trio.sleep(1)
            refused = await door.get("/jobs/a/events")
            health = await door.get("/health")
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(door.get, "/jobs/a/events")
            await trio.sleep(1)
            await door.delete("/jobs/a")

    assert (refused.status_code, refused.json()["code"]) == (503, "too_many_streams")
    assert "Retry-After" in refused.headers
    assert health.status_code == 200


async def test_a_node_that_stops_ends_its_streams(autojump_clock):
    async with open_memory() as store, open_door(store) as door:
        await door.enqueue(id="a", delay=1000)
        listener = Listener(door, "a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.listen)
            await trio.sleep(1)
            door.node.drain()

    assert listener.over
    assert listener.statuses == ["scheduled"]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_store_that_cannot_be_read_ends_the_stream(autojump_clock, when):
    """The client connects again, and gets 503 as long as that lasts."""
    store = Breakable()
    async with open_door(store) as door:
        await door.enqueue(id="a", delay=1000)
        listener = Listener(door, "a")
        store.refuses = when == "before"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.listen)
            await trio.sleep(1)
            store.refuses = True
        answer = await door.get("/jobs/a/events")
        store.refuses = False

    assert listener.over
    assert answer.status_code == 503


async def test_progress_is_told(door, autojump_clock):
    """With the job; its attempts are not."""
    await door.enqueue(id="a", kind="demo", payload={"steps": 3, "shortest": 9, "longest": 9, "fail": 0})
    answer = await door.get("/jobs/a/events")
    told = [data.get("progress") for _, _, data in read(answer.text)]

    assert [one["fraction"] for one in told if one][-1] == 1
    assert len({one["fraction"] for one in told if one}) > 1


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\n\n"])
async def test_line_ends_in_a_payload_do_not_end_the_event(door, end):
    """A payload is stored as it was sent."""
    body = f'{{"id":"a","payload":{{{end}"n":{end}1,"text":"a\\nb"}}}}'
    await door.post("/enqueue", content=body.encode())
    await door.ended("a")
    answer = await door.get("/jobs/a/events")
    ((_, _, last),) = read(answer.text)

    assert last["payload"] == {"n": 1, "text": "a\nb"}
    assert "\r" not in answer.text
