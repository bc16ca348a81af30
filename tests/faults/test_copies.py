"""A copy of the database and its log, taken at any moment, is a whole store with all that was acknowledged by then."""

import os
import random
import shutil
import signal

import pytest
import trio

from tests.faults.invariants import broken_invariants
from tests.process.book import Book
from tests.process.clients import Clients
from tests.process.running import nothing_runs, read_jobs

pytestmark = pytest.mark.faults

SEED = int(os.environ.get("JOBPIPE_TEST_SEED") or random.SystemRandom().randrange(10**6))
"""Of everything random in here; set JOBPIPE_TEST_SEED to the one that a failed test printed."""

COPIES = int(os.environ.get("JOBPIPE_TEST_COPIES", "30"))
"""How many moments; `JOBPIPE_TEST_COPIES=200 just test-faults` takes its time."""


async def test_copies_taken_at_random_moments_are_whole_and_hold_what_was_acknowledged(
    serve, store, tmp_path
):
    """The process is stopped for the instant of the copy, as a snapshot of the disk would find it."""
    print(f"JOBPIPE_TEST_SEED={SEED}")  # noqa: T201 - pytest shows it when the test fails
    rng, book = random.Random(SEED), Book()
    service = await serve(WORKERS=8)
    taken = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Clients(book, service.url, str(SEED)).run)
        for number in range(COPIES):
            await trio.sleep(rng.uniform(0, 0.15))
            folder = tmp_path / f"copy-{number}"
            folder.mkdir()
            await service.stand_still()
            acknowledged = list(book.acknowledged)
            for name in ("jobs.db", "jobs.db-wal"):
                shutil.copy(store.with_name(name), folder / name)
            service.go_on()
            taken.append((folder / "jobs.db", acknowledged))
        await service.kill()

    wrong = [(copy.parent.name, found) for copy, _ in taken if (found := broken_invariants(copy))]
    lost = [(copy.parent.name, missing) for copy, known in taken if (missing := set(known) - ids_in(copy))]
    assert wrong == []
    assert lost == []
    assert taken[-1][1], "nothing was acknowledged meanwhile"


def ids_in(path):
    return set(read_jobs(path))


async def test_a_service_started_on_a_copy_takes_everything_back_and_ends_it(serve, store, tmp_path):
    rng, book = random.Random(SEED), Book()
    service = await serve(WORKERS=8)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Clients(book, service.url, str(SEED)).run)
        await trio.sleep(rng.uniform(0.3, 1))
        await service.stand_still()
        acknowledged = list(book.acknowledged)
        for name in ("jobs.db", "jobs.db-wal"):
            shutil.copy(store.with_name(name), tmp_path / name.replace("jobs", "copy"))
        await service.kill()

    service = await serve(STORE="sqlite:copy.db", WORKERS=8)
    for group in book.groups:  # those that are not in the copy are unknown there
        answer = await service.http.post(f"/groups/{group}/close")
        assert answer.status_code in (200, 404), answer.text
    ended = await service.all_ended(*acknowledged)
    service.signal(signal.SIGTERM)
    assert await service.ended() == 0

    assert {job["status"] for job in ended.values()} <= {"done", "failed", "cancelled"}
    assert broken_invariants(tmp_path / "copy.db") == []
    assert nothing_runs(tmp_path / "copy.db")
