"""A real process with more clients than it has room for, and with few file descriptors."""

import contextlib
import resource
import socket
import time

import pytest
import trio

from tests.process.running import PATIENCE

pytestmark = pytest.mark.slow

MODULE = """
from jobpipe import handler

@handler("opens")
def opens(payload):
    files = [open(__file__) for _ in range(payload)]
    for file in files:
        file.close()
    return len(files)
"""

HEAD = b"POST /enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Le"
BODY = b'POST /enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{"id":'


@pytest.fixture
def files():
    """Sets how many files this process and those that it starts may have open, until the end of the test."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda many: resource.setrlimit(resource.RLIMIT_NOFILE, (many, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("sent", [HEAD, BODY, b""], ids=["half a head", "half a body", "nothing"])
async def test_clients_that_stall_keep_nobody_out_and_handlers_can_open_files(serve, files, tmp_path, sent):
    (tmp_path / "opening.py").write_text(MODULE)
    files(1024)
    service = await serve(HANDLERS="opening", STORE="memory:")
    files(4096)
    service.expected_errors = {
        "the event loop is blocked"
    }  # by other work of this machine, which then starves it
    address = service.url.removeprefix("http://").rsplit(":", 1)
    with contextlib.ExitStack() as stack:
        for _ in range(1100):
            stalled = stack.enter_context(
                socket.create_connection((address[0], int(address[1])), timeout=PATIENCE)
            )
            stalled.sendall(sent)
        began = time.monotonic()
        for number in range(5):
            assert (
                await service.http.post(
                    "/enqueue", json={"id": f"o{number}", "kind": "opens", "payload": 100}
                )
            ).status_code == 202
        jobs = [(await service.http.get(f"/jobs/o{number}?wait=60")).json() for number in range(5)]
        took = time.monotonic() - began

    assert [(job["status"], job["result"]) for job in jobs] == [("done", 100)] * 5
    print(f"let in within {took:.1f} s")  # noqa: T201 - a figure, and no limit of this test
    assert (await service.http.get("/health")).json()["status"] == "ok"


async def test_without_file_descriptors_it_says_so_now_and_then_and_goes_on(serve, files):
    files(60)
    service = await serve(STORE="memory:", MAX_CONNECTIONS=1000)
    files(4096)
    service.expected_errors = {"cannot accept connections"}
    address = service.url.removeprefix("http://").rsplit(":", 1)
    await service.said("MAX_CONNECTIONS is 1000, but this process may open 60 files only")
    with contextlib.ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(socket.create_connection((address[0], int(address[1])), timeout=PATIENCE))
        await service.said("cannot accept connections (Too many open files)")
        with trio.fail_after(PATIENCE):
            async with await trio.open_tcp_stream(address[0], int(address[1])) as stream:
                await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
    await service.said("accepting connections again")
    told = [line for line in service.lines if line["event"].startswith("cannot accept connections")]

    assert len(told) <= 5
    assert not any("Traceback" in str(line) for line in service.lines)


@pytest.mark.parametrize("host", ["localhost", "::", "127.0.0.1,::1"])
async def test_it_listens_on_both_families(serve, host):
    service = await serve(HOST=host)
    port = service.url.rsplit(":", 1)[1]

    event = service.lines[0]["event"]
    assert event.count(f":{port}") == event.count("http://") == 2
    for address in ("127.0.0.1", "::1"):
        with socket.create_connection((address, int(port)), timeout=PATIENCE):
            pass
