"""HTTP/1.1 over the wire, against the real application: what is refused, with which words, and what goes on."""

import contextlib
import json
import re
import socket
import struct
from http import HTTPStatus

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from jobpipe.api.front import Front
from jobpipe.api.heads import HEAD, METHODS
from jobpipe.api.hosts import Guard
from jobpipe.api.spool import Spool
from tests.api.client import open_door

GET = b"GET /health HTTP/1.1\r\nHost: test\r\n"
END = b"Connection: close\r\n\r\n"


async def exchanged(stream, *pieces, eof=False):
    """Send, and return all that comes back until the server closes the connection."""
    with contextlib.suppress(trio.BrokenResourceError):
        for piece in pieces:
            await stream.send_all(piece)
        if eof:
            await stream.send_eof()
    with trio.fail_after(60):
        return b"".join([part async for part in stream])


def statuses(got):
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", got)]


def problem(got):
    """The problem in an answer, which must be one in all that is promised of problems."""
    head, _, body = got.partition(b"\r\n\r\n")
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert fields[b"content-type"] == b"application/problem+json"
    assert int(fields[b"content-length"]) == len(body)
    details = json.loads(body)
    assert details["status"] == int(head.split()[1])
    assert details["detail"]
    return details


# What the parser refuses


@pytest.mark.parametrize(
    ("request_bytes", "status", "code", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request", "no Host"),
        (b"GET / HTTP/1.2\r\n\r\n", 400, "bad_request", "no Host"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "bad_request", "several Host"),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "bad_request", "not a host"),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "bad_request", "not a host"),
        (b"GET / HTTP/1.1\r\nHost: joe@test\r\n\r\n", 400, "bad_request", "not a host"),
        (b"GET / HTTP/1.1\r\nHost: test:port\r\n\r\n", 400, "bad_request", "not a host"),
        (b"GET / HTTP/1.1\r\nHost: test:123456\r\n\r\n", 400, "bad_request", "not a host"),
        (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400, "bad_request", "not a host"),
        (b"GET / HTTP/1.1\r\nHost: t\xc3\xa9st\r\n\r\n", 400, "bad_request", "not a host"),
        (b"GET /\r\n\r\n", 400, "bad_request", "request line"),
        (b"GET  /  HTTP/1.1\r\nHost: test\r\n\r\n", 400, "bad_request", "request line"),
        (b"GET / x HTTP/1.1\r\nHost: test\r\n\r\n", 400, "bad_request", "request line"),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: test\r\n\r\n", 400, "bad_request", "request line"),
        (b"G@T / HTTP/1.1\r\nHost: test\r\n\r\n", 400, "bad_request", "request line"),
        (b"GET / http/1.1\r\nHost: test\r\n\r\n", 400, "bad_request", "request line"),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400, "bad_request", "request line"),
        (b"GET / HTTP/1.1\r\nHost: test\r\nNo colon\r\n\r\n", 400, "bad_request", "header"),
        (b"GET / HTTP/1.1\r\nHost: test\r\nName : value\r\n\r\n", 400, "bad_request", "header"),
        (b"GET / HTTP/1.1\r\n folded\r\nHost: test\r\n\r\n", 400, "bad_request", "header"),
        (b"GET / HTTP/1.1\r\nHost: test\r\nNul: \x00\r\n\r\n", 400, "bad_request", "header"),
        (
            b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            400,
            "bad_request",
            "differ",
        ),
        (b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1, 2\r\n\r\nab", 400, "bad_request", "differ"),
        (b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: -1\r\n\r\n", 400, "bad_request", "not a number"),
        (b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: +1\r\n\r\na", 400, "bad_request", "not a number"),
        (b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1e3\r\n\r\n", 400, "bad_request", "not a number"),
        (
            b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
            400,
            "bad_request",
            "not a number",
        ),
        (
            b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "bad_request",
            "given twice",
        ),
        (
            b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "bad_request",
            "given twice",
        ),
        (
            b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            501,
            "not_implemented",
            "chunked",
        ),
        (
            b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            501,
            "not_implemented",
            "chunked",
        ),
        (b"GET / HTTP/2.0\r\nHost: test\r\n\r\n", 505, "http_version", "send HTTP/1.1"),
        (b"GET / HTTP/0.9\r\nHost: test\r\n\r\n", 505, "http_version", "send HTTP/1.1"),
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
            505,
            "http_version",
            "send HTTP/1.1",
        ),
        (b"get / HTTP/1.1\r\nHost: test\r\n\r\n", 501, "not_implemented", "'get'"),
        (
            b"Post /enqueue HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n{}",
            501,
            "not_implemented",
            "'Post'",
        ),
        (b"BREW / HTTP/1.1\r\nHost: test\r\n\r\n", 501, "not_implemented", "'BREW'"),
        (b"TRACE / HTTP/1.1\r\nHost: test\r\n\r\n", 501, "not_implemented", "'TRACE'"),
        (b"CONNECT test:80 HTTP/1.1\r\nHost: test\r\n\r\n", 501, "not_implemented", "'CONNECT'"),
        (b"GET * HTTP/1.1\r\nHost: test\r\n\r\n", 400, "bad_request", "neither a path"),
        (b"GET health HTTP/1.1\r\nHost: test\r\n\r\n", 400, "bad_request", "neither a path"),
        (b"GET test:80 HTTP/1.1\r\nHost: test\r\n\r\n", 400, "bad_request", "neither a path"),
        (b"GET ftp://test/health HTTP/1.1\r\nHost: test\r\n\r\n", 400, "bad_request", "neither a path"),
        (b"GET http://joe@test/health HTTP/1.1\r\nHost: test\r\n\r\n", 400, "bad_request", "not a host"),
        (b"GET /health#top HTTP/1.1\r\nHost: test\r\n\r\n", 400, "bad_request", "fragment"),
        (b"GET /jobs/%00 HTTP/1.1\r\nHost: test\r\n\r\n", 400, "bad_request", "NUL"),
        (b"GET /jobs?text=%00 HTTP/1.1\r\nHost: test\r\n\r\n", 400, "bad_request", "NUL"),
        (b"GET /jobs/%ff HTTP/1.1\r\nHost: test\r\n\r\n", 400, "bad_request", "UTF-8"),
        (b"GET /jobs/%ed%a0%80 HTTP/1.1\r\nHost: test\r\n\r\n", 400, "bad_request", "UTF-8"),
    ],
)
async def test_what_breaks_http_is_refused_with_a_problem_and_the_connection_ends(
    door, request_bytes, status, code, words
):
    async with door.connected() as stream:
        got = await exchanged(stream, request_bytes)

    assert statuses(got) == [status]
    details = problem(got)
    assert details["code"] == code
    assert words in details["detail"]
    assert b"\r\nconnection: close\r\n" in got.lower()
    assert "bytearray" not in details["detail"]


async def test_a_refusal_of_a_head_request_has_no_body(door):
    async with door.connected() as stream:
        got = await exchanged(stream, b"HEAD /health#top HTTP/1.1\r\nHost: test\r\n\r\n")

    assert got.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert got.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("chunk", [b"x\r\n", b"-1\r\n", b"2\r\n{}x", b"fffffffffffffffffffff\r\n"])
@pytest.mark.parametrize("path", [b"/enqueue", b"/jobs/a/retry"])
async def test_a_malformed_chunk_is_refused(door, path, chunk):
    head = b"POST " + path + b" HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with door.connected() as stream:
        got = await exchanged(stream, head, chunk)

    assert statuses(got)[-1:] in ([400], [404])  # a retry of a job that is not there needs no body
    assert await door.stored() == 0


def with_padding(size):
    """A request whose head has so many bytes."""
    rest = GET + b"Pad: \r\n" + END
    return GET + b"Pad: " + b"x" * (size - len(rest)) + b"\r\n" + END


@pytest.mark.parametrize("whole", [True, False], ids=["at once", "in pieces"])
@pytest.mark.parametrize(("size", "status"), [(HEAD, 200), (HEAD + 1, 431)])
async def test_a_head_has_a_limit(door, size, status, whole):
    sent = with_padding(size)
    assert len(sent) == size
    async with door.connected() as stream:
        pieces = [sent] if whole else [sent[:5000], sent[5000:-1], sent[-1:]]
        got = await exchanged(stream, *pieces)

    assert statuses(got) == [status]


async def test_a_head_that_does_not_end_is_refused_and_the_refusal_can_be_read(door):
    async with door.connected() as stream:
        got = await exchanged(stream, b"GET /health HTTP/1.1\r\nHost: test\r\nPad: ", *[b"x" * 1000] * 1000)

    assert statuses(got) == [431]
    assert problem(got)["code"] == "head_too_large"


# What is let pass


@pytest.mark.parametrize(
    "more",
    [
        b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIA==\r\n",
        b"Upgrade: TLS/1.0\r\nConnection: upgrade\r\n",
    ],
)
async def test_an_upgrade_is_passed_over(door, more):
    async with door.connected() as stream:
        got = await exchanged(stream, GET + more + b"\r\n", GET + END)

    assert statuses(got) == [200, 200]
    assert b"101" not in got.partition(b"\r\n\r\n")[0]
    assert b"upgrade" not in got.lower()


async def test_upgrades_under_load_are_answered_each(door):
    ask = GET + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    answers = []

    async def client(port):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            answers.append(statuses(await exchanged(stream, ask * 9, GET + END)))

    async with door.served() as port, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(client, port)

    assert answers == [[200] * 10] * 20


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://test/health", 200),
        (b"HTTP://TEST:80/health?", 200),
        (b"https://test/health", 200),
        (b"http://test", 302),
        (b"http://test?x=1", 422),
        (b"//health", 404),
        (b"//evil.example/jobs", 404),
        (b"//jobs", 404),
        (b"/jobs//", 404),
        (b"///", 404),
        (b"/../health", 404),
        (b"/jobs/../health", 404),
        (b"/jobs/..", 404),
        (b"/jobs/.", 404),
        (b"/static/../docs", 404),
        (b"/static/..%2f..%2fapp.py", 404),
        (b"/static/%2e%2e/app.py", 404),
        (b"/static//etc/passwd", 404),
        (b"/static/", 404),
        (b"/jobs/%zz", 404),
        (b"/jobs/a%0Ab", 404),
        (b"/jobs/a%7f", 404),
        (b"/jobs/%e2%80%ae", 404),
        (b"/jobs/%", 404),
        (b"/jobs/%C3%A9", 404),
        (b"/jobs/%F0%9F%A6%A6", 404),
        (b"/" + b"x" * 8000, 404),
        (b"/jobs/" + b"x" * 8000, 404),
        (b"/health?" + b"&" * 50, 200),
        (b"/health?" + b"&" * 500, 422),
        (b"/jobs?%", 422),
        (b"/jobs?limit=%ff", 422),
        (b"/<script>", 404),
        (b'/{}|^`\\"', 404),
    ],
)
async def test_odd_targets_are_answered_as_any_other(door, target, status):
    async with door.connected() as stream:
        got = await exchanged(stream, b"GET " + target + b" HTTP/1.1\r\nHost: test\r\n" + END)

    assert statuses(got) == [status]
    assert b"location: //" not in got.lower()


async def test_the_host_of_an_absolute_target_counts(door):
    """However good the Host beside it is (RFC 9112, section 3.2.2)."""
    async with door.connected() as stream:
        got = await exchanged(
            stream,
            b"GET http://evil.example/health HTTP/1.1\r\nHost: test\r\n\r\n",
            b"GET http://test/health HTTP/1.1\r\nHost: evil.example\r\n" + END,
        )

    assert statuses(got) == [421, 200]


@pytest.mark.parametrize("target", [b"*", b"http://test"])
async def test_options_of_the_whole_server_tells_its_methods(door, target):
    async with door.connected() as stream:
        got = await exchanged(stream, b"OPTIONS " + target + b" HTTP/1.1\r\nHost: test\r\n" + END)

    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nallow: GET, HEAD, POST, PATCH, DELETE, OPTIONS\r\n" in got
    assert got.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("host", [b"", b"Host: test\r\n"])
async def test_http_1_0_is_answered_and_the_connection_ends(door, host):
    """Some health checks send it, without a Host."""
    async with door.connected() as stream:
        got = await exchanged(stream, b"GET /health HTTP/1.0\r\n" + host + b"\r\n")

    assert got.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_length_that_is_given_twice_and_the_same_counts_once(door):
    body = b'{"id":"a"}'
    length = b"Content-Length: %d\r\n" % len(body)
    async with door.connected() as stream:
        got = await exchanged(
            stream,
            b"POST /enqueue HTTP/1.1\r\nHost: test\r\n" + length * 2 + b"\r\n" + body,
            b"POST /enqueue HTTP/1.1\r\nHost: test\r\nContent-Length: 10, 10\r\n" + END + body,
        )

    assert statuses(got) == [202, 200]


@pytest.mark.parametrize("blank", [b"\r\n", b"\r\n\r\n", b"\n"])
async def test_blank_lines_between_requests_are_passed_over(door, blank):
    body = b"{}"
    post = b"POST /enqueue HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n" + body
    async with door.connected() as stream:
        got = await exchanged(stream, blank + post + blank + post + blank, blank + GET + END)

    assert statuses(got) == [202, 202, 200]


async def test_what_follows_the_last_request_is_passed_over(door):
    async with door.connected() as stream:
        got = await exchanged(stream, GET + END + GET + b"\r\n" + b"\x00garbage" * 10_000)

    assert statuses(got) == [200]


@pytest.mark.parametrize(
    "value", [b"bytes=0-9", b"bytes=9999999-", b"bytes=-0", b"bytes=a-b", b"lines=1-2", b"bytes=0-1,5-9"]
)
async def test_a_static_file_comes_whole_whatever_part_is_asked_for(door, value):
    path = b"/static/docs.css"
    head = b"GET " + path + b" HTTP/1.1\r\nHost: test\r\nRange: " + value + b"\r\n"
    async with door.connected() as stream:
        got = await exchanged(stream, head + b"\r\n", head + b'If-Range: "x"\r\n' + END)

    first, second = (part.partition(b"\r\n\r\n") for part in got.split(b"HTTP/1.1 200 OK\r\n")[1:])
    assert len(first[2]) == len(second[2]) > 300


@pytest.mark.parametrize(
    "field",
    [
        b"If-Modified-Since: yesterday",
        b'If-None-Match: "',
        b"If-None-Match: *",
        b'If-Match: "x"',
        b"If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT",
        b"Accept-Encoding: \xff",
        b"Cookie: =;;=",
        b"Authorization: Basic !",
        b"Content-Type: ;;;",
        b"X-Forwarded-For: x",
        b"Expect: everything",
        b"Date: \xe9",
    ],
)
@pytest.mark.parametrize("path", [b"/static/docs.css", b"/docs", b"/health", b"/jobs"])
async def test_odd_headers_are_no_fault_of_jobpipe(door, path, field):
    async with door.connected() as stream:
        got = await exchanged(stream, b"GET " + path + b" HTTP/1.1\r\nHost: test\r\n" + field + b"\r\n" + END)

    assert statuses(got)[0] < 500


# Status lines


@pytest.mark.parametrize(
    ("start", "line"),
    [
        (b"GET /health", b"HTTP/1.1 200 OK"),
        (b"GET /", b"HTTP/1.1 302 Found"),
        (b"GET /nothing", b"HTTP/1.1 404 Not Found"),
        (b"PUT /jobs", b"HTTP/1.1 405 Method Not Allowed"),
        (
            b"GET /jobs?limit=0",
            b"HTTP/1.1 422 " + HTTPStatus(422).phrase.encode(),
        ),  # Python 3.13 says Content
        (b"POST /queues/a/pause", b"HTTP/1.1 200 OK"),
    ],
)
async def test_a_status_line_has_its_reason(door, start, line):
    async with door.connected() as stream:
        got = await exchanged(stream, start + b" HTTP/1.1\r\nHost: test\r\n" + END)

    assert got.split(b"\r\n", 1)[0] == line


async def test_an_interim_answer_has_its_reason(door):
    async with door.connected() as stream:
        await stream.send_all(
            b"POST /enqueue HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 2\r\n" + END
        )
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 Continue\r\n")
        got = await exchanged(stream, b"{}")

    assert statuses(got) == [202]


@pytest.mark.parametrize("method", sorted(METHODS))
async def test_each_known_method_is_a_routes_business(door, method):
    async with door.connected() as stream:
        got = await exchanged(stream, method + b" /health HTTP/1.1\r\nHost: test\r\n" + END)

    assert statuses(got)[0] in (200, 405)


# Clients that end their side, or go


async def test_a_client_that_ends_its_side_is_answered_however_long_it_takes(autojump_clock):
    """With `?wait=` too: the end of its side says that no further request comes, not that it has gone."""
    async with open_door() as door, door.connected() as stream:
        await door.enqueue(id="a", kind="play", payload="hold")
        await stream.send_all(b"GET /jobs/a?wait=600 HTTP/1.1\r\nHost: test\r\n\r\n")
        await stream.send_eof()
        await trio.sleep(90)
        door.stage.release.set()
        got = await exchanged(stream)

    assert statuses(got) == [200]
    assert b'"status":"done"' in got


async def test_long_polls_that_come_together_are_answered_in_order(autojump_clock):
    async with open_door() as door, door.connected() as stream:
        await door.enqueue(id="a", kind="play", payload="hold")
        await door.enqueue(id="b", delay=60)
        await stream.send_all(
            b"".join(
                b"GET /jobs/%s HTTP/1.1\r\nHost: test\r\n\r\n" % target
                for target in (b"a?wait=30", b"b?wait=1", b"a?wait=600")
            )
        )
        await stream.send_eof()
        await trio.sleep(50)
        door.stage.release.set()
        got = await exchanged(stream)

    bodies = [json.loads(part.partition(b"\r\n\r\n")[2]) for part in got.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert [(body["id"], body["status"]) for body in bodies] == [
        ("a", "running"),
        ("b", "scheduled"),
        ("a", "done"),
    ]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /hea",
        b"POST /enqueue HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n{",
        b"POST /enqueue HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        b"POST /jobs/a/retry HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n{",
    ],
)
async def test_a_client_that_ends_its_side_within_a_request_is_told(door, sent):
    async with door.connected() as stream:
        got = await exchanged(stream, sent, eof=True)

    assert statuses(got)[0] in (400, 404)
    assert await door.stored() == 0


@pytest.mark.parametrize("half_closed", [False, True], ids=["open", "half-closed"])
@pytest.mark.parametrize("sent", [b"%s", b"%s%s"], ids=["one", "pipelined"])
async def test_a_wait_ends_with_its_client(mock_clock, sent, half_closed):
    wait = b"GET /jobs/a?wait=600 HTTP/1.1\r\nHost: test\r\n\r\n"
    async with open_door() as door, door.served() as port:
        await door.enqueue(id="a", kind="play", payload="hold")
        await trio.testing.wait_all_tasks_blocked(0.05)
        before = trio.lowlevel.current_statistics().tasks_living
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(sent.replace(b"%s", wait))
        if half_closed:
            await stream.send_eof()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert trio.lowlevel.current_statistics().tasks_living > before
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()
        for _ in range(4):
            await trio.testing.wait_all_tasks_blocked(0.05)
            mock_clock.jump(1)
        await trio.testing.wait_all_tasks_blocked(0.05)

        assert trio.lowlevel.current_statistics().tasks_living == before


HOLD = b"GET /jobs/a?wait=600&on_disconnect=cancel HTTP/1.1\r\nHost: test\r\n\r\n"
HOLD_NEW = (
    b"POST /enqueue?wait=600&on_disconnect=cancel HTTP/1.1\r\nHost: test\r\nContent-Length: 41\r\n\r\n"
    b'{"id":"a","kind":"play","payload":"hold"}'
)


async def looked_after(mock_clock, seconds=4):
    """Let the server look after its connections, once a second."""
    for _ in range(seconds):
        await trio.testing.wait_all_tasks_blocked(0.05)
        mock_clock.jump(1)
    await trio.testing.wait_all_tasks_blocked(0.05)


@pytest.mark.parametrize("end", ["reset", "closed", "half-closed, then reset", "half-closed, then closed"])
@pytest.mark.parametrize("sent", [HOLD, HOLD_NEW], ids=["GET", "POST"])
async def test_a_client_that_hangs_up_has_its_job_cancelled_where_it_said_so(mock_clock, sent, end):
    """One that closes both its sides looks like one that ends its own, until it is sent something."""
    async with open_door() as door, door.served() as port:
        await door.enqueue(id="a", kind="play", payload="hold")
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(sent)
        await looked_after(mock_clock)
        before = (await door.store.get("a")).status
        if end.startswith("half-closed"):
            await stream.send_eof()
            await looked_after(mock_clock)
        between = (await door.store.get("a")).status
        if end.endswith("reset"):
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()
        await looked_after(mock_clock)
        after = (await door.store.get("a")).status

    assert (before, between, after) == ("running", "running", "cancelled")


@pytest.mark.parametrize("sent", [HOLD, HOLD_NEW], ids=["GET", "POST"])
async def test_a_client_that_only_ends_its_side_has_not_hung_up(mock_clock, sent):
    """It may get interim responses, and then its answer."""
    async with open_door() as door, door.connected() as stream:
        await door.enqueue(id="a", kind="play", payload="hold")
        await stream.send_all(sent)
        await stream.send_eof()
        await looked_after(mock_clock, 10)
        between = (await door.store.get("a")).status
        door.stage.release.set()
        got = await exchanged(stream)

    assert between == "running"
    assert set(statuses(got)[:-1]) == {100}
    assert statuses(got)[-1] == 200
    assert b'"status":"done"' in got.rpartition(b"HTTP/1.1 200")[2]


async def test_a_client_of_http_1_0_gets_no_interim_response(mock_clock):
    async with open_door() as door, door.connected() as stream:
        await door.enqueue(id="a", kind="play", payload="hold")
        await stream.send_all(HOLD.replace(b"HTTP/1.1", b"HTTP/1.0"))
        await stream.send_eof()
        await looked_after(mock_clock)
        door.stage.release.set()
        got = await exchanged(stream)

    assert statuses(got) == [200]


async def test_a_client_that_hangs_up_leaves_its_job_alone_otherwise(mock_clock):
    async with open_door() as door, door.connected() as stream:
        await door.enqueue(id="a", kind="play", payload="hold")
        await stream.send_all(HOLD_NEW.replace(b"&on_disconnect=cancel", b""))
        await looked_after(mock_clock)
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()
        await looked_after(mock_clock)
        status = (await door.store.get("a")).status

    assert status == "running"


@pytest.mark.parametrize("sent", [HOLD, HOLD_NEW], ids=["GET", "POST"])
async def test_a_wait_that_the_service_ends_cancels_no_job(mock_clock, sent):
    """However much its client would have minded."""
    async with open_door() as door, trio.open_nursery() as nursery:
        async with door.served() as port:
            await door.enqueue(id="a", kind="play", payload="hold")
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(sent)
            await looked_after(mock_clock)
            nursery.start_soon(looked_after, mock_clock, 10)  # the server ends meanwhile, with its grace
        status = (await door.store.get("a")).status
        await stream.aclose()

    assert status == "running"


# A fault of jobpipe


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Guard, "refusal"),
        (Front, "__call__"),
        (Front, "_answered"),
        (Front, "_hand_on"),
        (Front, "_stream"),
        (Front, "_pour"),
        (Spool, "write"),
        (Spool, "pour"),
        (Spool, "_next"),
    ],
)
async def test_an_unforeseen_exception_of_the_front_costs_its_request(door, monkeypatch, owner, name):
    def fails(*_args, **_options):
        raise LookupError

    requests = [
        (b"GET /health", b""),
        (b"POST /enqueue", b"Content-Length: 2\r\n\r\n{}"),
        (b"POST /enqueue/bulk", b"Content-Type: application/x-ndjson\r\nContent-Length: 2\r\n\r\n{}"),
    ]
    with capture_logs() as logs, monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        for start, body in requests:
            async with door.connected() as stream:
                got = await exchanged(
                    stream, start + b" HTTP/1.1\r\nHost: test\r\nConnection: close\r\n" + (body or b"\r\n")
                )
            assert statuses(got)[:1] in ([200], [202], [500])
            if got.startswith(b"HTTP/1.1 500"):
                assert problem(got)["code"] == "internal"

    assert [line["log_level"] for line in logs if line.get("exc_info")]
    assert (await door.get("/health")).status_code == 200
