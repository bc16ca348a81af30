"""The front: what it hands on and what it answers itself, limits, hang-ups, pages of other sites."""

import json

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from jobpipe.api.front import LINGER
from tests.api.client import Breakable, open_door


async def exchanged(stream, *pieces):
    """Send, and return all that comes back until the server closes the connection."""
    for piece in pieces:
        await stream.send_all(piece)
    return b"".join([part async for part in stream])


def post(path, *headers, body=b""):
    return b"\r\n".join((b"POST " + path + b" HTTP/1.1", b"Host: test", *headers, b"", body))


# Routes and methods


@pytest.mark.parametrize(
    "path", ["/nothing", "/enqueue/nothing", "/jobs/a/b/c", "/queues/a/b", "/favicon", "/ENQUEUE"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_unknown_route_is_told_with_404(door, method, path):
    answer = await door.request(method, path)

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.headers["content-type"] == "application/problem+json"
    assert path in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/enqueue", {"POST", "OPTIONS"}),
        ("HEAD", "/enqueue", {"POST", "OPTIONS"}),
        ("PUT", "/enqueue/bulk", {"POST", "OPTIONS"}),
        ("POST", "/jobs", {"GET", "HEAD", "OPTIONS"}),
        ("PUT", "/jobs/a", {"GET", "HEAD", "PATCH", "DELETE", "OPTIONS"}),
        ("GET", "/jobs/a/cancel", {"POST", "OPTIONS"}),
        ("GET", "/jobs/a/retry", {"POST", "OPTIONS"}),
        ("DELETE", "/queues", {"GET", "HEAD", "OPTIONS"}),
        ("GET", "/queues/a/pause", {"POST", "OPTIONS"}),
        ("PATCH", "/queues/a/resume", {"POST", "OPTIONS"}),
        ("POST", "/health", {"GET", "HEAD", "OPTIONS"}),
    ],
)
async def test_another_method_is_refused_with_405_and_the_ones_that_are_taken(door, method, path, allowed):
    answer = await door.request(method, path)

    assert answer.status_code == 405
    assert answer.headers["content-type"] == "application/problem+json"
    assert {one.strip() for one in answer.headers["allow"].split(",")} == allowed
    if method != "HEAD":
        assert answer.json()["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/enqueue", "/enqueue/bulk", "/jobs", "/jobs/a", "/queues", "/health"])
async def test_options_tells_the_methods(door, path):
    answer = await door.options(path)

    assert answer.status_code == 200
    assert "OPTIONS" in answer.headers["allow"]


@pytest.mark.parametrize("path", ["/jobs", "/queues", "/health", "/jobs/a"])
async def test_head_answers_as_get_does_without_the_body(door, path):
    await door.enqueue(id="a", delay=60)
    async with door.connected() as stream:
        got = await exchanged(
            stream, b"HEAD " + path.encode() + b" HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
        )

    assert got.startswith(b"HTTP/1.1 200")
    assert b"content-type: application/json" in got
    assert got.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("path", ["/enqueue/", "/enqueue"])
async def test_a_slash_at_the_end_makes_no_difference(door, path):
    answer = await door.post(path, content=b'{"id":"a"}')

    assert answer.status_code == 202


@pytest.mark.parametrize("path", ["/jobs/", "/queues/", "/health/", "/jobs/a/"])
async def test_a_slash_at_the_end_makes_no_difference_to_reads(door, path):
    await door.enqueue(id="a")

    assert (await door.get(path)).status_code == 200


async def test_a_stream_may_be_sent_to_the_path_with_a_slash_at_the_end(door):
    answer = await door.post(
        "/enqueue/bulk/", content=b"{}\n", headers={"Content-Type": "application/x-ndjson"}
    )

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")


# Pages of other sites


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/enqueue"),
        ("POST", "/enqueue/bulk"),
        ("POST", "/jobs/a/cancel"),
        ("POST", "/jobs/a/retry"),
        ("DELETE", "/jobs/a"),
        ("POST", "/queues/default/pause"),
        ("POST", "/queues/default/resume"),
    ],
)
async def test_a_page_of_another_site_may_change_nothing(door, site, method, path):
    await door.enqueue(id="a", delay=60)

    answer = await door.request(method, path, headers={"Sec-Fetch-Site": site})

    assert (answer.status_code, answer.json()["code"]) == (403, "cross_site")
    assert (await door.get("/jobs/a")).json()["status"] == "scheduled"
    assert [queue["paused"] for queue in (await door.get("/queues")).json()["queues"]] == [False]
    assert await door.stored() == 1


@pytest.mark.parametrize("site", ["none", "same-origin"])
async def test_a_page_of_its_own_and_the_person_at_the_browser_may(door, site):
    answer = await door.post("/enqueue", content=b"{}", headers={"Sec-Fetch-Site": site})

    assert answer.status_code == 202


async def test_reading_is_left_to_the_browsers_own_rules(door):
    answer = await door.get("/jobs", headers={"Sec-Fetch-Site": "cross-site"})

    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


# Too large


async def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes():
    async with open_door(max_body=100) as door, door.connected() as stream:
        await stream.send_all(post(b"/enqueue", b"Content-Length: 101"))
        got = b""
        while b"MAX_BODY" not in got:
            got += await stream.receive_some()

    assert got.startswith(b"HTTP/1.1 413")
    assert b"content-type: application/problem+json" in got
    assert b"connection: close" in got


@pytest.mark.parametrize("path", [b"/enqueue", b"/enqueue/bulk"])
async def test_a_body_that_does_not_say_its_length_is_refused_at_the_limit(path):
    async with open_door(max_body=100) as door, door.connected() as stream:
        chunk = b"40\r\n" + b"x" * 64 + b"\r\n"
        got = await exchanged(stream, post(path, b"Transfer-Encoding: chunked"), chunk, chunk, b"0\r\n\r\n")

    assert got.startswith(b"HTTP/1.1 413")
    assert b'"code":"too_large"' in got


async def test_a_client_that_sends_a_huge_body_to_its_end_reads_the_refusal():
    """Its bytes are let go by, so that the connection is not reset before it looks."""
    size = 20_000_000
    async with open_door(max_body=100) as door, door.connected() as stream:
        got = await exchanged(
            stream, post(b"/enqueue", b"Content-Length: %d" % size), *[b"x" * 100_000] * (size // 100_000)
        )

    assert got.startswith(b"HTTP/1.1 413")
    assert got.count(b"HTTP/1.1") == 1


async def test_a_huge_body_that_a_route_has_no_use_for_does_not_hold_the_connection(door):
    size = 5_000_000
    head = post(b"/jobs/a/retry", b"Content-Length: %d" % size)
    async with door.connected() as stream:
        got = await exchanged(stream, head, b"x" * size, post(b"/jobs/b/retry", b"Connection: close"))

    assert [part[:3] for part in got.split(b"HTTP/1.1 ")[1:]][:1] == [b"413"]


async def test_who_never_ends_its_request_is_not_waited_for_long(autojump_clock):
    async with open_door(max_body=100) as door:
        begun = trio.current_time()

        async def receive():
            await trio.sleep(1)
            return {"type": "http.request", "body": b"x" * 200, "more_body": True}

        answer = await door.call("/enqueue", receive)

        assert answer.status == 413
        assert trio.current_time() == begun + 1 + LINGER


async def test_a_connection_goes_on_after_a_refusal(door):
    async with door.connected() as stream:
        got = await exchanged(
            stream,
            post(b"/enqueue", b"Content-Length: 1", body=b"x"),
            post(b"/enqueue", b"Content-Length: 2", b"Sec-Fetch-Site: cross-site", body=b"{}"),
            post(b"/enqueue", b"Content-Length: 2", b"Content-Type: text/plain", body=b"{}"),
            post(b"/enqueue", b"Content-Length: 2", b"Connection: close", body=b"{}"),
        )

    assert [part[:3] for part in got.split(b"HTTP/1.1 ")[1:]] == [b"400", b"403", b"415", b"202"]


# Hang-ups


@pytest.mark.parametrize("path", ["/enqueue", "/enqueue/bulk"])
async def test_a_client_that_hangs_up_in_its_body_leaves_nothing(either_door, parts, path):
    answer = await either_door.call(path, parts(b'{"id":"a"}', whole=False))

    assert answer.status is None
    assert await either_door.stored() == 0


async def test_a_client_that_hangs_up_after_its_body_leaves_the_whole_job(door):
    async with door.served() as port:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(post(b"/enqueue", b"Content-Length: 22", body=b'{"id":"a","payload":1'))
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(post(b"/enqueue", b"Content-Length: 22", body=b'{"id":"b","payload":1}'))
        with trio.fail_after(60):
            while await door.stored() == 0:
                await trio.lowlevel.checkpoint()

    assert (await door.get("/jobs/a")).status_code == 404
    assert (await door.get("/jobs/b")).json()["payload"] == 1


async def test_a_request_that_is_cancelled_leaves_a_whole_job_or_none(either_door, parts):
    """However far it has come: a cancel falls after each of its steps."""
    for steps in range(12):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    either_door.call, "/enqueue", parts(b'{"id":"j%d","payload":[1,2]}' % steps)
                )
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        answer = await either_door.get(f"/jobs/j{steps}")

        assert answer.status_code in (200, 404)
        if answer.status_code == 200:
            assert answer.json()["payload"] == [1, 2]


# A fault of jobpipe


class Broken(Breakable):
    """A store with a fault that nobody foresaw."""

    async def get(self, job_id):
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/jobs/a", None),
        ("POST", "/enqueue", {"id": "a", "expires_at": "2000-01-01T00:00:00Z"}),
        ("POST", "/enqueue/bulk", [{"id": "a", "expires_at": "2000-01-01T00:00:00Z"}]),
    ],
)
async def test_a_fault_of_jobpipe_is_answered_with_500_and_told_in_the_log(method, path, body):
    async with open_door(Broken()) as door:
        with capture_logs() as lines:
            answer = await door.request(method, path, content=None if body is None else json.dumps(body))

        assert (answer.status_code, answer.json()["code"]) == (500, "internal")
        assert answer.headers["content-type"] == "application/problem+json"
        assert [(line["log_level"], bool(line["exc_info"])) for line in lines] == [("error", True)]
        assert "ZeroDivision" not in answer.text
