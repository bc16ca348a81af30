"""Streams: one watcher for all, the same bytes to all, only what has changed, and no cost of who does not read."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from jobpipe.dashboard import live as live_module
from jobpipe.dashboard.live import BLOCKED, Watched, message
from jobpipe.dashboard.topics import Topic, topic_of


class Viewer:
    """A stream, read by hand: what it was sent, and whether it reads."""

    def __init__(self):
        self.sent, self.gone, self.reads, self.ended = [], trio.Event(), True, False

    async def send(self, message):
        while not self.reads:  # noqa: ASYNC110 - a switch
            await trio.sleep(0.1)
        self.sent.append(message)

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}

    @property
    def text(self):
        return b"".join(one.get("body", b"") for one in self.sent).decode()

    async def watch(self, dashboard, path, query=b""):
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": query,
            "headers": [],
            "state": {},
        }
        await dashboard(scope, self.receive, self.send)
        self.ended = True


@pytest.fixture
def dashboard(door):
    return door.app._pages


async def test_a_viewer_gets_all_of_the_page_and_then_what_changes(door, dashboard, nursery, autojump_clock):
    viewer = Viewer()
    nursery.start_soon(viewer.watch, dashboard, "/dashboard/live/overview")
    await trio.sleep(5)
    first = viewer.text
    await door.enqueue(id="a", delay=600)
    await trio.sleep(5)
    later = viewer.text.removeprefix(first)

    for name in ("head", "needs", "river", "queues", "node"):
        assert first.count(f'hx-target="#f-{name}"') == 1
    assert 'hx-target="#f-river"' in later
    assert 'hx-target="#f-node"' not in later
    viewer.gone.set()


async def test_viewers_share_the_bytes_and_the_last_one_ends_the_looking(
    door, dashboard, nursery, autojump_clock
):
    viewers = [Viewer() for _ in range(20)]
    for viewer in viewers:
        nursery.start_soon(viewer.watch, dashboard, "/dashboard/live/overview")
    await trio.sleep(10)
    looks, shared = dashboard.live.looks, {viewer.text for viewer in viewers}
    for viewer in viewers:
        viewer.gone.set()
    await trio.sleep(10)
    after = dashboard.live.looks
    await trio.sleep(100)

    assert len(shared) == 1
    assert 5 <= looks <= 11
    assert after <= looks + 1
    assert dashboard.live.looks == after
    assert (dashboard.live.viewers, dashboard.live._watched) == (0, {})


async def test_who_reads_nothing_is_let_go_and_delays_nobody(door, dashboard, nursery, autojump_clock):
    slow, quick = Viewer(), Viewer()
    for viewer in (slow, quick):
        nursery.start_soon(viewer.watch, dashboard, "/dashboard/live/overview")
    await trio.sleep(3)
    slow.reads = False
    for number in range(3):
        await door.enqueue(id=f"j{number}", delay=600)
        await trio.sleep(2)
    assert quick.text.count('hx-target="#f-river"') == 4
    await trio.sleep(BLOCKED)

    assert (slow.ended, quick.ended) == (True, False)
    quick.gone.set()


async def test_one_viewer_too_many_is_told_to_come_back(
    door, dashboard, nursery, autojump_clock, monkeypatch
):
    monkeypatch.setattr(live_module, "VIEWERS", 1)
    viewer = Viewer()
    nursery.start_soon(viewer.watch, dashboard, "/dashboard/live/overview")
    await wait_all_tasks_blocked()
    refused = await door.get("/dashboard/live/overview")
    viewer.gone.set()

    assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")


async def test_who_asks_now_and_then_gets_only_what_is_new(door):
    first = await door.get("/dashboard/live/overview?once=1")
    again = await door.get("/dashboard/live/overview?once=1", headers={"HX-PTag": first.headers["hx-ptag"]})
    await door.enqueue(id="a", delay=600)
    third = await door.get("/dashboard/live/overview?once=1", headers={"HX-PTag": first.headers["hx-ptag"]})

    assert (first.status_code, again.status_code, third.status_code) == (200, 304, 200)
    assert again.content == b""
    assert first.text.count("<hx-partial") == 5


async def test_rows_of_jobs_are_told_by_their_ids_and_new_ones_are_counted(door, autojump_clock):
    await door.enqueue(id="a<b>", delay=600)
    page = await door.get("/dashboard/jobs")
    address = page.text.partition('hx-sse:connect="')[2].partition('"')[0].replace("&amp;", "&")
    await trio.sleep(1)
    await door.post("/jobs/a%3Cb%3E/cancel")
    told = await door.get(f"{address}&once=1")

    assert "s-cancelled" in told.text
    assert 'hx-target="#f-tabs"' in told.text
    assert 'hx-target="#f-new"' in told.text


async def test_a_job_that_is_gone_has_no_parts_and_an_address_that_means_nothing_is_none(door):
    gone = await door.get("/dashboard/live/jobs/none?once=1")
    nothing = [
        await door.get(path)
        for path in ("/dashboard/live/none", "/dashboard/live/jobs?after=x", "/dashboard/live/")
    ]
    posted = await door.post("/dashboard/live/overview")

    assert (gone.status_code, gone.content) == (200, b"")
    assert [answer.status_code for answer in nothing] == [404] * 3
    assert posted.status_code == 405


def test_an_address_says_what_is_watched():
    assert topic_of("jobs", b"q=status%3Afailed&after=1.5&id=a&id=b") == Topic(
        page="jobs", search="status:failed", after=1.5, ids=("a", "b")
    )
    assert topic_of("jobs/a%2Fb", b"") == Topic(page="job", id="a/b")
    assert topic_of("jobs", b"&".join([b"id=a"] * 100)) is None


def test_a_part_is_an_event_however_many_lines_it_has():
    assert message("f-x", b"<p>\r\na</p>\n") == (
        b'data: <hx-partial hx-target="#f-x" hx-swap="outerMorph"><p>\ndata: a</p></hx-partial>\n\n'
    )


def test_parts_that_are_gone_are_forgotten_and_the_same_are_not_told_again():
    watched = Watched()
    watched.update({"a": b"1", "b": b"2"})
    seen = watched.digests
    changed = watched.changed
    watched.update({"a": b"1"})

    assert changed.is_set()
    assert watched.news(seen) == b""
    assert watched.digests.keys() == {"a"}
    watched.fail()
    assert watched.stale


async def test_a_stream_goes_through_the_real_server(door):
    async with door.connected() as stream:
        await stream.send_all(b"GET /dashboard/live/overview HTTP/1.1\r\nHost: localhost\r\n\r\n")
        seen = b""
        with trio.fail_after(60):
            while b"hx-partial" not in seen:
                seen += await stream.receive_some()

    assert b"\r\ncontent-type: text/event-stream\r\n" in seen
    assert b"retry: 2000\n\n" in seen
