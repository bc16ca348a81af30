"""The server: what goes over the wire when, and when a connection ends."""

import contextlib
import socket
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from jobpipe.api.limits import Limits
from jobpipe.api.server import LOOK, serve

KEEP_ALIVE = 5.0
GRACE = 3.0
LINGER = 2.0
ASK = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture
def serving():
    """Serves an application; `ask()` opens a connection, `over` ends the service, `ended` tells that it has."""

    @contextlib.asynccontextmanager
    async def opened(app, **limits):
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        chosen = Limits(**{"connections": 1000, "keep_alive": KEEP_ALIVE, "grace": GRACE, "linger": LINGER, **limits})
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


# The end of the service


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
