"""The server: what goes over the wire when, and when a connection ends."""

import contextlib
import errno
import inspect
import os
import socket
import struct
from types import SimpleNamespace

import h11
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from jobpipe.api.connection import Connection
from jobpipe.api.http1 import Http1, Stream
from jobpipe.api.inbox import Inbox, Requests
from jobpipe.api.limits import Limits
from jobpipe.api.server import PAUSE, QUIET, serve

KEEP_ALIVE = 5.0
GRACE = 3.0
LINGER = 2.0
HEAD, STALLED = 8.0, 20.0
ASK = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture
def serving():
    """Serves an application; `ask()` opens a connection, `over` ends the service, `ended` tells that it has."""

    @contextlib.asynccontextmanager
    async def opened(app, **limits):
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        chosen = Limits(
            **{
                "connections": 1000,
                "keep_alive": KEEP_ALIVE,
                "grace": GRACE,
                "linger": LINGER,
                "head": HEAD,
                "stalled": STALLED,
                **limits,
            }
        )
        over, ended = trio.Event(), trio.Event()

        async def run():
            await serve(app, [listener], chosen, over.wait)
            ended.set()

        async def connect():
            return await trio.open_tcp_stream(*address)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield SimpleNamespace(connect=connect, over=over, ended=ended, address=address)
            nursery.cancel_scope.cancel()

    return opened


def answering(*parts, length=None, wait=None):
    """An application that answers in parts, of known `length` where there is one; waits before the first part."""

    async def app(scope, receive, send):
        while (await receive())["more_body"]:
            pass
        headers = [] if length is None else [(b"content-length", b"%d" % length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if wait is not None:
            await wait()
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


async def asked(stream, request=ASK):
    """Send a request; returns what one read brings."""
    await stream.send_all(request)
    return await stream.receive_some(1 << 16)


async def rest(stream):
    """All that comes until the server closes the connection."""
    return b"".join([part async for part in stream])


async def until_blocked():
    """Let all happen that can happen without waiting for a clock."""
    await trio.testing.wait_all_tasks_blocked(0.05)


async def pass_time(clock, seconds):
    """Let so much time go by, in steps in which a client may be looked at."""
    for _ in range(round(seconds)):
        await trio.testing.wait_all_tasks_blocked(0.01)
        clock.jump(1)
    await until_blocked()


def hand_over(stream, connection, data):
    """Send something, so that the system has it at the server's end, where nothing can have read it yet."""
    os.write(stream.socket.fileno(), data)
    while not connection._stream.socket.is_readable():
        pass


def reset(stream):
    """Go, so that the server is told at once."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


def tasks():
    return trio.lowlevel.current_statistics().tasks_living


# What is written when


async def test_an_answer_of_known_length_comes_whole_with_the_first_read(serving):
    async with serving(answering(b"all of it", length=9)) as service, await service.connect() as stream:
        for _ in range(20):
            answer = await asked(stream)

            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.endswith(b"\r\n\r\nall of it")


async def test_the_head_of_a_stream_does_not_wait_for_its_first_part(serving):
    more = trio.Event()
    async with (
        serving(answering(b"late", wait=more.wait)) as service,
        await service.connect() as stream,
    ):
        head = await asked(stream)
        more.set()
        body = await stream.receive_some()

    assert head.startswith(b"HTTP/1.1 200")
    assert b"late" not in head
    assert b"late" in body


async def test_a_head_without_a_body_is_sent(serving):
    async with serving(answering(length=5)) as service, await service.connect() as stream:
        answer = await asked(stream, ASK.replace(b"GET", b"HEAD"))

        assert answer.startswith(b"HTTP/1.1 200")
        assert b"content-length: 5" in answer
        assert (await asked(stream, ASK.replace(b"GET", b"HEAD"))).startswith(b"HTTP/1.1 200")


async def test_a_client_that_asks_whether_to_go_on_is_told_so_before_it_sends(serving):
    async with serving(answering(b"ok", length=2)) as service, await service.connect() as stream:
        question = b"POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        assert (await asked(stream, question)).startswith(b"HTTP/1.1 100")

        assert (await asked(stream, b"abc")).endswith(b"\r\n\r\nok")


async def test_requests_that_come_together_are_answered_in_order(serving):
    async def app(scope, receive, send):
        body = scope["raw_path"]
        head = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})

    async with serving(app) as service, await service.connect() as stream:
        paths = [b"/1", b"/2", b"/3"]
        await stream.send_all(b"".join(ASK.replace(b"/ ", path + b" ", 1) for path in paths))
        await stream.send_eof()
        answers = await rest(stream)

    assert [part[:2] for part in answers.split(b"\r\n\r\n")[1:]] == paths


async def test_a_client_that_ends_its_side_after_the_request_is_answered(serving):
    waits = trio.Event()
    async with (
        serving(answering(b"late", length=4, wait=waits.wait)) as service,
        await service.connect() as stream,
    ):
        await stream.send_all(ASK)
        await stream.send_eof()
        await trio.testing.wait_all_tasks_blocked(0.05)
        waits.set()

        assert (await rest(stream)).endswith(b"late")


# When a connection ends


async def test_a_connection_on_which_nothing_is_asked_ends(serving, mock_clock):
    async with serving(answering(b"ok", length=2)) as service, await service.connect() as stream:
        await asked(stream)
        await trio.testing.wait_all_tasks_blocked(0.05)
        mock_clock.jump(KEEP_ALIVE - 0.1)
        assert (await asked(stream)).endswith(b"ok")  # and the time begins anew
        await trio.testing.wait_all_tasks_blocked(0.05)
        mock_clock.jump(KEEP_ALIVE - 0.1)
        assert (await asked(stream)).endswith(b"ok")
        await trio.testing.wait_all_tasks_blocked(0.05)
        mock_clock.jump(KEEP_ALIVE + 0.1)

        assert await stream.receive_some() == b""


async def test_a_connection_on_which_nothing_was_ever_asked_ends(serving, mock_clock):
    async with serving(answering(b"ok", length=2)) as service, await service.connect() as stream:
        await trio.testing.wait_all_tasks_blocked(0.05)
        mock_clock.jump(KEEP_ALIVE + 0.1)

        assert await stream.receive_some() == b""


async def test_an_answer_may_take_longer_than_a_connection_is_kept(serving, mock_clock):
    waits = trio.Event()
    async with (
        serving(answering(b"late", length=4, wait=waits.wait)) as service,
        await service.connect() as stream,
    ):
        await stream.send_all(ASK)
        await trio.testing.wait_all_tasks_blocked(0.05)
        mock_clock.jump(KEEP_ALIVE * 3)
        await trio.testing.wait_all_tasks_blocked(0.05)
        waits.set()

        assert (await stream.receive_some(1 << 16)).endswith(b"late")


@pytest.mark.parametrize("said", [b"", ASK], ids=["never asked", "kept alive"])
async def test_a_client_that_leaves_leaves_nothing_behind(serving, said):
    async with serving(answering(b"ok", length=2)) as service:
        await trio.testing.wait_all_tasks_blocked(0.05)
        before = tasks()
        for _ in range(5):
            async with await service.connect() as stream:
                if said:
                    await asked(stream, said)
        await trio.testing.wait_all_tasks_blocked(0.05)

        assert tasks() == before


async def test_a_client_that_sends_more_than_is_taken_leaves_nothing_behind(serving, mock_clock):
    """What it sends waits to be taken, by an application that has ended meanwhile."""
    refuse = trio.Event()

    async def app(scope, receive, send):
        await refuse.wait()
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def flood(stream):
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 999999999\r\n\r\n")
            await stream.send_all(bytes(50_000_000))

    async with serving(app) as service, trio.open_nursery() as nursery:
        await trio.testing.wait_all_tasks_blocked(0.05)
        before = tasks()
        async with await service.connect() as stream:
            nursery.start_soon(flood, stream)
            await trio.testing.wait_all_tasks_blocked(0.05)
            refuse.set()
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 413")
            await trio.testing.wait_all_tasks_blocked(0.05)
            mock_clock.jump(LINGER + 0.1)
            await trio.testing.wait_all_tasks_blocked(0.05)

            assert tasks() == before


@pytest.mark.slow
async def test_a_connection_has_no_limit_of_requests(serving):
    async with serving(answering(b"ok", length=2)) as service, await service.connect() as stream:
        for _ in range(30):
            await stream.send_all(ASK * 100)
            got = b""
            while got.count(b"\r\n\r\nok") < 100:
                got += await stream.receive_some()
            assert b"close" not in got


# Clients that stall


@pytest.mark.parametrize("sent", [b"G", ASK[:-2], b"\r\n"])
async def test_a_head_that_does_not_come_to_its_end_is_refused_in_time(serving, mock_clock, sent):
    """Counted from its first byte: who sends a byte now and then gains nothing."""
    async with serving(answering(b"ok", length=2)) as service, await service.connect() as stream:
        await pass_time(mock_clock, KEEP_ALIVE - 2)
        await stream.send_all(sent)
        await pass_time(mock_clock, HEAD - 2)
        await stream.send_all(b"X")
        await pass_time(mock_clock, 4)
        got = await rest(stream)

    assert got.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b'"code":"request_timeout"' in got


POST = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [POST, POST + b"123", POST.replace(b"Content-Length: 10", b"Transfer-Encoding: chunked") + b"5\r\n12"],
)
async def test_a_body_that_stalls_is_refused(serving, mock_clock, sent):
    async with serving(answering(b"ok", length=2)) as service, await service.connect() as stream:
        await until_blocked()
        before = tasks()
        await stream.send_all(sent)
        await pass_time(mock_clock, STALLED - 1)
        assert tasks() > before
        await pass_time(mock_clock, 3)
        got = await rest(stream)

    assert got.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert got.count(b"HTTP/1.1 ") == 1


@pytest.mark.slow
async def test_a_body_may_come_slowly(serving, mock_clock):
    async with serving(answering(b"ok", length=2)) as service, await service.connect() as stream:
        await stream.send_all(POST)
        for _ in range(10):
            await pass_time(mock_clock, STALLED - 1)
            await stream.send_all(b"x")

        assert (await stream.receive_some()).endswith(b"ok")


async def test_a_client_that_waits_for_the_application_does_not_stall(serving, mock_clock):
    """Neither with its body, which nobody takes, nor with its next request, which has its turn later."""
    waits = trio.Event()

    async def app(scope, receive, send):
        await waits.wait()
        await answering(b"ok", length=2)(scope, receive, send)

    large = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5000000\r\n\r\n" + bytes(5_000_000)
    async with serving(app) as service, await service.connect() as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, large + ASK[:-2])
        await pass_time(mock_clock, 2 * (STALLED + HEAD))
        waits.set()
        assert (await stream.receive_some()).endswith(b"ok")
        await stream.send_all(ASK[-2:])

        assert (await stream.receive_some()).endswith(b"ok")


async def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(serving, mock_clock):
    large = bytes(50_000_000)
    async with serving(answering(large, length=len(large))) as service:
        await until_blocked()
        before = tasks()
        async with await service.connect() as deaf:
            await deaf.send_all(ASK)
            await pass_time(mock_clock, STALLED - 2)
            assert tasks() > before
            await pass_time(mock_clock, 4)

            assert tasks() == before


async def test_an_answer_may_be_taken_slowly(serving, mock_clock):
    large = bytes(20_000_000)
    ask = ASK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    async with (
        serving(answering(large, length=len(large))) as service,
        await service.connect() as stream,
    ):
        await stream.send_all(ask)
        got, part = 0, b"to begin with"
        while part:
            await pass_time(mock_clock, STALLED / 2)
            for _ in range(60):
                part = await stream.receive_some(1 << 16)
                got += len(part)

    assert got > len(large)


# Clients that go


@pytest.mark.parametrize("said", [b"", b"GET / HT", ASK, ASK * 3, POST, POST + b"1234567890"])
@pytest.mark.parametrize("half_closed", [False, True])
async def test_a_client_that_is_gone_leaves_nothing_behind(serving, mock_clock, said, half_closed):
    """Whatever it asked for, and whether it had ended its side before."""

    async def app(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass

    async with serving(app) as service:
        await until_blocked()
        before = tasks()
        stream = await service.connect()
        if said:
            await stream.send_all(said)
        if half_closed:
            await stream.send_eof()
        await until_blocked()
        reset(stream)
        await pass_time(mock_clock, 2)

        assert tasks() == before


# More clients than there is room for


async def test_room_is_made_by_closing_what_is_idle_for_longest(serving, mock_clock):
    async with contextlib.AsyncExitStack() as stack:
        service = await stack.enter_async_context(serving(answering(b"ok", length=2), connections=3))
        first, second, third = [await stack.enter_async_context(await service.connect()) for _ in range(3)]
        for stream in (first, second, third, first):
            assert (await asked(stream)).endswith(b"ok")
            await pass_time(mock_clock, 1)
        fourth = await stack.enter_async_context(await service.connect())
        assert (await asked(fourth)).endswith(b"ok")

        assert await second.receive_some() == b""
        for stream in (first, third, fourth):
            assert (await asked(stream)).endswith(b"ok")


async def test_room_is_made_by_refusing_the_slowest_request(serving, mock_clock):
    async with contextlib.AsyncExitStack() as stack:
        service = await stack.enter_async_context(serving(answering(b"ok", length=2), connections=2))
        stalled, slow = [await stack.enter_async_context(await service.connect()) for _ in range(2)]
        await stalled.send_all(POST)
        await slow.send_all(POST)
        await pass_time(mock_clock, 2)
        await slow.send_all(b"12345")
        fourth = await stack.enter_async_context(await service.connect())
        assert (await asked(fourth)).endswith(b"ok")

        assert (await rest(stalled)).startswith(b"HTTP/1.1 408")
        assert (await asked(slow, b"67890")).endswith(b"ok")


@pytest.mark.slow
async def test_who_waits_for_an_answer_is_never_closed_for_others(serving, mock_clock):
    """The others are let in when there is room."""
    waits = trio.Event()
    async with contextlib.AsyncExitStack() as stack:
        service = await stack.enter_async_context(
            serving(answering(b"late", length=4, wait=waits.wait), connections=2)
        )
        asking = [await stack.enter_async_context(await service.connect()) for _ in range(5)]
        for stream in asking:
            await stream.send_all(ASK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        await pass_time(mock_clock, 300)
        waits.set()

        for stream in asking:
            assert (await rest(stream)).endswith(b"late")


async def test_a_lack_of_file_descriptors_is_logged_now_and_then_and_when_it_is_over(
    serving, mock_clock, monkeypatch
):
    lacking, real = True, trio.SocketListener.accept

    async def accept(listener):
        if lacking:
            await trio.lowlevel.checkpoint()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return await real(listener)

    monkeypatch.setattr(trio.SocketListener, "accept", accept)
    with capture_logs() as logs:
        async with serving(answering(b"ok", length=2)) as service, await service.connect() as stream:
            for _ in range(round(3.5 * QUIET / PAUSE)):
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(PAUSE)
            told = [line["log_level"] for line in logs]
            lacking = False
            await pass_time(mock_clock, 1)
            assert (await asked(stream)).endswith(b"ok")
            await pass_time(mock_clock, QUIET - 2)
            assert [line["log_level"] for line in logs] == told
            await pass_time(mock_clock, 3)

    assert told == ["error"] * 4
    assert "Too many open files" in logs[0]["event"]
    assert [(line["log_level"], line["event"]) for line in logs[4:]] == [
        ("info", "accepting connections again")
    ]


# Requests that come early


def answering_early(first_ends, second_begins):
    """Answers `/` at once, and ends its answer later; answers `/second` as late as it is told."""

    async def app(scope, receive, send):
        if scope["path"] == "/second":
            await second_begins()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok", "more_body": True})
        if scope["path"] == "/":
            await first_ends()
        await send({"type": "http.response.body", "body": b""})

    return app


async def the_end(service, _clock):
    service.over.set()
    await until_blocked()


async def much_time(_service, clock):
    await pass_time(clock, 3 * (KEEP_ALIVE + HEAD))


async def a_full_house(service, clock):
    async with await service.connect():
        await pass_time(clock, 2)


@pytest.mark.parametrize("happens", [the_end, much_time, a_full_house])
@pytest.mark.parametrize("together", [False, True])
async def test_a_request_that_comes_before_the_last_one_has_ended_is_answered(
    serving, mock_clock, happens, together
):
    """A client knows its answer as soon as the last byte is there, and may ask again before the server goes on."""
    second = ASK.replace(b"/", b"/second", 1)
    ends, begins = trio.Event(), trio.Event()
    async with (
        serving(answering_early(ends.wait, begins.wait), connections=1) as service,
        await service.connect() as stream,
    ):
        assert (await asked(stream, ASK + second if together else ASK)).endswith(b"ok")
        if not together:
            await stream.send_all(second)
        await until_blocked()
        ends.set()
        await until_blocked()
        await happens(service, mock_clock)
        begins.set()

        assert (await stream.receive_some()).endswith(b"ok")


async def test_half_a_request_that_comes_before_the_last_one_has_ended_has_no_more_time_than_others(
    serving, mock_clock
):
    ends = trio.Event()
    async with (
        serving(answering_early(ends.wait, trio.sleep_forever)) as service,
        await service.connect() as stream,
    ):
        assert (await asked(stream, ASK + ASK[:-2])).endswith(b"ok")
        ends.set()
        await pass_time(mock_clock, HEAD - 1)
        await stream.send_all(b"X")
        await pass_time(mock_clock, 3)

        assert (await rest(stream)).startswith(b"HTTP/1.1 408")


async def test_a_blank_line_that_comes_before_the_last_request_has_ended_is_no_request(serving, mock_clock):
    ends = trio.Event()
    async with (
        serving(answering_early(ends.wait, trio.sleep_forever)) as service,
        await service.connect() as stream,
    ):
        assert (await asked(stream, ASK + b"\r\n")).endswith(b"ok")
        ends.set()
        await until_blocked()
        service.over.set()

        assert await rest(stream) == b""
        await service.ended.wait()


@pytest.mark.parametrize("happens", [the_end, much_time])
async def test_a_request_that_comes_just_when_its_connection_would_be_closed_is_answered(
    serving, mock_clock, monkeypatch, happens
):
    """The system has its bytes, and nothing here has read them yet."""
    real = Connection.check
    async with serving(answering(b"ok", length=2)) as service, await service.connect() as stream:
        assert (await asked(stream)).endswith(b"ok")
        sent: list[bytes] = []

        def check(connection, now):
            if not sent and (service.over.is_set() or connection.idle(now) > KEEP_ALIVE):
                sent.append(ASK)
                hand_over(stream, connection, ASK)
            real(connection, now)

        monkeypatch.setattr(Connection, "check", check)
        await happens(service, mock_clock)

        assert (await stream.receive_some()).endswith(b"ok")
        assert sent


# The end of the service


async def test_the_last_answer_of_a_connection_says_so(serving):
    """So that its client sends the next request elsewhere; one that it has sent already is not answered."""
    begins = trio.Event()
    async with (
        serving(answering_early(trio.sleep_forever, begins.wait)) as service,
        await service.connect() as stream,
    ):
        await stream.send_all(2 * ASK.replace(b"/", b"/second", 1))
        await until_blocked()
        service.over.set()
        await until_blocked()
        begins.set()
        got = await rest(stream)

        assert got.count(b"HTTP/1.1 200") == 1
        assert b"\r\nconnection: close\r\n" in got
        await service.ended.wait()


@pytest.mark.parametrize("unread", [False, True])
async def test_who_asks_again_before_the_end_of_an_answer_that_was_not_the_last_is_answered(
    serving, mock_clock, monkeypatch, unread
):
    """The answer began before the end of the service, and so said nothing of it."""
    second = ASK.replace(b"/", b"/second", 1)
    ends = trio.Event()
    real = Http1._maybe_recycle

    async with (
        serving(answering_early(ends.wait, trio.lowlevel.checkpoint)) as service,
        await service.connect() as stream,
    ):

        async def recycle(protocol):
            if ends.is_set() and unread and protocol.stream.scope["path"] == "/":
                hand_over(stream, protocol.send.__self__, second)
            await real(protocol)

        monkeypatch.setattr(Http1, "_maybe_recycle", recycle)
        assert (await asked(stream, ASK)).endswith(b"ok")
        if not unread:
            await stream.send_all(second)
        await until_blocked()
        service.over.set()
        await until_blocked()
        ends.set()
        got = await rest(stream)

        assert b"\r\nconnection: close\r\n" in got
        assert got.endswith(b"ok")
        await service.ended.wait()


async def test_who_asks_nothing_more_is_let_go_at_the_end_of_an_answer(serving, mock_clock):
    ends = trio.Event()
    async with (
        serving(answering_early(ends.wait, trio.sleep_forever)) as service,
        await service.connect() as stream,
    ):
        assert (await asked(stream)).endswith(b"ok")
        service.over.set()
        await until_blocked()
        ends.set()

        assert await rest(stream) == b""
        await service.ended.wait()


async def test_the_end_waits_for_no_client_that_asks_nothing(serving, mock_clock):
    async with serving(answering(b"ok", length=2)) as service:
        async with await service.connect() as silent, await service.connect() as kept:
            await asked(kept)
            service.over.set()
            await service.ended.wait()

            assert await rest(silent) == await rest(kept) == b""
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(service.address)


async def test_the_end_waits_for_an_answer(serving, mock_clock):
    waits = trio.Event()
    async with (
        serving(answering(b"late", length=4, wait=waits.wait)) as service,
        await service.connect() as stream,
    ):
        await stream.send_all(ASK)
        await trio.testing.wait_all_tasks_blocked(0.05)
        service.over.set()
        await trio.testing.wait_all_tasks_blocked(0.05)
        mock_clock.jump(GRACE - 0.1)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not service.ended.is_set()
        waits.set()

        assert (await rest(stream)).endswith(b"late")
        await service.ended.wait()


async def test_the_end_waits_no_longer_than_its_grace(serving, mock_clock):
    """Neither for an application nor for a client that does not take its answer."""
    large = bytes(50_000_000)
    async with (
        serving(answering(large, length=len(large))) as service,
        await service.connect() as deaf,
    ):
        await deaf.send_all(ASK)
        await trio.testing.wait_all_tasks_blocked(0.05)
        service.over.set()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not service.ended.is_set()
        mock_clock.jump(GRACE + 0.1)

        await service.ended.wait()


# Faults


async def test_an_application_that_fails_is_told_to_its_client_and_to_the_log_alone(serving):
    async def app(scope, receive, send):
        raise LookupError(scope["path"])

    async with serving(app) as service:
        with capture_logs() as logs:
            for _ in range(2):
                async with await service.connect() as stream:
                    assert (await asked(stream)).startswith(b"HTTP/1.1 500")

    assert [line["event"] for line in logs] == ["a request failed"] * 2


async def test_an_answer_that_breaks_http_ends_its_own_connection_alone(serving):
    app = answering(b"too much", length=3)
    async with serving(app) as service:
        with capture_logs() as logs:
            for _ in range(2):
                async with await service.connect() as stream:
                    await stream.send_all(ASK)
                    await rest(stream)

    assert "a request failed" in {line["event"] for line in logs}


async def test_garbage_is_refused(serving):
    async with serving(answering(b"ok", length=2)) as service, await service.connect() as stream:
        assert (await asked(stream, b"\x16\x03\x01 garbage\r\n\r\n")).startswith(b"HTTP/1.1 400")
        assert await rest(stream) == b""


# A fault of jobpipe


@pytest.mark.parametrize("request_sent", [ASK, POST + b"1234567890"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (h11.Connection, "receive_data"),
        (h11.Connection, "next_event"),
        (h11.Connection, "send"),
        (h11.Connection, "start_next_cycle"),
        (Http1, "receive"),
        (Http1, "stream_send"),
        (Http1, "_begin"),
        (Http1, "_take"),
        (Http1, "_maybe_recycle"),
        (Stream, "handle"),
        (Stream, "app_send"),
        (Inbox, "put"),
        (Inbox, "take"),
        (Inbox, "close"),
        (Requests, "spawn_app"),
        (Connection, "__init__"),
        (Connection, "run"),
        (Connection, "_converse"),
        (Connection, "_serve"),
        (Connection, "_read"),
        (Connection, "_note"),
        (Connection, "_receive"),
        (Connection, "_say"),
        (Connection, "_send"),
        (Connection, "_close"),
        (Connection, "check"),
    ],
    ids=lambda value: (
        getattr(value, "__name__", value) if not isinstance(value, bytes) else value[:4].decode()
    ),
)
async def test_an_unforeseen_exception_costs_its_connection_at_most(
    serving, mock_clock, monkeypatch, owner, name, request_sent
):
    """It is logged with its traceback, the client is told or cut off, and others go on as before."""
    async with serving(answering(b"ok", length=2)) as service:
        await until_blocked()
        before = tasks()
        with capture_logs() as logs, monkeypatch.context() as patch:
            patch.setattr(owner, name, failing(getattr(owner, name)))
            async with await service.connect() as stream:
                await stream.send_all(request_sent)
                await pass_time(mock_clock, KEEP_ALIVE + LINGER + 2)
                with contextlib.suppress(trio.BrokenResourceError):
                    got = await rest(stream)
                    assert got == b"" or got.startswith((b"HTTP/1.1 500 ", b"HTTP/1.1 200 "))
            await until_blocked()

        assert tasks() == before
        assert any(line.get("exc_info") for line in logs)
        async with await service.connect() as stream:
            assert (await asked(stream)).endswith(b"ok")


class UnforeseenError(Exception):
    """What nobody thought of."""


def failing(function):
    """The function, which now fails; as its signature has it, at once or when it is awaited."""

    async def later(*_args, **_options):
        await trio.lowlevel.checkpoint()
        raise UnforeseenError

    def fails(*_args, **_options):
        raise UnforeseenError

    return later if inspect.iscoroutinefunction(function) else fails
