"""The spool of a stream: what its client has not read yet is kept, up to a bound."""

import contextlib

import pytest
import trio
import trio.testing

from jobpipe.api.spool import PART, SPOOL, Files, Spool

LONGEST = 3 * SPOOL


class Client:
    """Takes what is sent when it is told to."""

    def __init__(self):
        self.got = bytearray()
        self._parts, self._more = 0, trio.Event()

    def read(self, parts):
        self._parts += parts
        self._more.set()

    async def send(self, message):
        while not self._parts:
            self._more = trio.Event()
            await self._more.wait()
        self._parts -= 1
        self.got += message.get("body", b"")


@pytest.fixture
def spooling():
    """Makes spools; they are closed in the end."""
    with contextlib.ExitStack() as stack:
        yield lambda files: stack.enter_context(contextlib.closing(Spool(files, LONGEST)))


async def filled(spool, pieces):
    """How many pieces are taken before the spool waits."""
    taken = 0

    async def fill():
        nonlocal taken
        for piece in pieces:
            await spool.write(piece)
            taken += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return taken


PIECE = b"x" * (1 << 16)


@pytest.mark.parametrize(("files", "room"), [(1, LONGEST), (0, SPOOL)])
async def test_what_nobody_reads_is_kept_up_to_a_bound_and_then_waits(spooling, files, room):
    """The bound is smaller where no file is to be had."""
    spool = spooling(Files(files))

    assert await filled(spool, [PIECE] * 100) == room // len(PIECE)
    assert spool.size == room


async def test_it_goes_on_as_soon_as_all_is_read_and_in_order(spooling):
    spool, client = spooling(Files()), Client()
    pieces = [b"%06d" % number * (PART // 6) for number in range(150)]

    async def fill():
        for piece in pieces:
            await spool.write(piece)
        spool.end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill)
        nursery.start_soon(spool.pour, client.send)
        await trio.testing.wait_all_tasks_blocked()
        assert spool.size > LONGEST - PART
        client.read(10_000)

    assert bytes(client.got) == b"".join(pieces)


async def test_one_write_may_be_larger_than_the_bound(spooling):
    spool = spooling(Files())

    assert await filled(spool, [PIECE * 100, b"more"]) == 1


@pytest.mark.parametrize("ends", [True, False])
async def test_a_file_is_given_back(spooling, ends):
    """At the end of a stream, and when its client is gone."""
    files = Files(1)
    spool, client = spooling(files), Client()
    await filled(spool, [PIECE] * 20)
    assert not files.take()
    if ends:
        spool.end()
        client.read(10_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(spool.pour, client.send)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    spool.close()

    assert files.take()


async def test_a_file_that_cannot_be_opened_is_done_without(spooling, monkeypatch):
    def rollover(_file):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", rollover)
    files = Files(1)

    assert await filled(spooling(files), [PIECE] * 100) == SPOOL // len(PIECE)
    assert files.take()
