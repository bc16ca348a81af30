"""The origin's integration test: a hundred jobs of which some fail, and every one ends."""

from pathlib import Path
from typing import Any

import pytest
import trio

from jobpipe.job import Backoff, Options, Outcome, Status
from jobpipe.store.sqlite import open_sqlite
from tests.engine.conftest import NOW, Rig, Step, new_job, running

JOBS = 100
SOON = Options(backoff=Backoff(base=0.01, factor=1, jitter="full"))


def steps(number: int) -> list[Step]:
    """Of ten jobs, six go well at once, two after errors, one never, and one gives up."""
    match number % 10:
        case 3:
            return ["error", "done"]
        case 5:
            return [("retry", 0.01), ("snooze", 0.01), "error", "done"]
        case 7:
            return ["error"]
        case 9:
            return ["fail"]
        case _:
            return [("sleep", 0.001 * (number % 7)), "done"]


def end(number: int) -> tuple[Status, int]:
    """The status and the number of attempts of that job."""
    match number % 10:
        case 3:
            return Status.DONE, 2
        case 5:
            return Status.DONE, 3
        case 7:
            return Status.FAILED, 4
        case 9:
            return Status.FAILED, 1
        case _:
            return Status.DONE, 1


async def every_job_ends(rig: Rig) -> None:
    """Enqueue a hundred jobs from ten clients, wait for each, and look at what became of them."""

    async def client(first: int) -> None:
        for number in range(first, JOBS, 10):
            await rig.add(new_job(str(number), *steps(number), options=SOON, priority=number % 3))

    async with trio.open_nursery() as clients:
        for first in range(10):
            clients.start_soon(client, first)
    jobs = [await rig.ended(str(number)) for number in range(JOBS)]
    statuses = await rig.statuses()
    again = await rig.add(
        *(new_job(str(number), *steps(number), options=SOON, priority=number % 3) for number in range(JOBS))
    )

    assert [(job.status, job.state.attempt) for job in jobs] == [end(number) for number in range(JOBS)]
    assert +statuses == {Status.DONE: 80, Status.FAILED: 20}
    assert rig.actor.overlaps == []
    assert len(rig.actor.runs) == 60 + 10 * 2 + 10 * 4 + 10 * 4 + 10
    assert all(job.state.error is not None for job in jobs if job.status is Status.FAILED)
    assert [len(job.attempts) for job in jobs] == [rig.actor.order().count(job.id) for job in jobs]
    assert {job.attempts[-1].outcome for job in jobs} == {Outcome.DONE, Outcome.FAIL}
    assert {receipt.verdict for receipt in again} == {"existing"}


@pytest.mark.parametrize(("workers", "size"), [(4, 64), (1, 0), (25, 3)])
async def test_a_hundred_jobs_end_done_or_failed_in_memory(autojump_clock, workers, size) -> None:
    """Each once, and none runs twice at once."""
    async with running(workers=workers, queue_size=size) as rig:
        await every_job_ends(rig)


@pytest.mark.parametrize(("workers", "size"), [(4, 64), (1, 0), (25, 3)])
async def test_a_hundred_jobs_end_done_or_failed_in_sqlite(tmp_path: Path, workers, size) -> None:
    """Each once, and none runs twice at once; in real time, since the store works in threads."""
    async with (
        open_sqlite(tmp_path / "jobs.db", sync="normal") as store,
        running(store, workers=workers, queue_size=size, patience=30) as rig,
    ):
        await every_job_ends(rig)


async def test_what_was_acknowledged_is_there_after_a_restart(tmp_path: Path) -> None:
    """A node stops in the midst of its work; the next one on the same file ends it, and no run is lost or doubled."""
    done: dict[str, Any] = {}
    async with open_sqlite(tmp_path / "jobs.db", sync="normal") as store, running(store, name="n1") as rig:
        await rig.add(*(new_job(str(number), ("sleep", 0.005), "done") for number in range(JOBS)))
        await rig.actor.begun(JOBS // 4)
        rig.node.stop()
        await rig.over.wait()
        first = len(rig.actor.runs)
        done |= {str(number): await rig.job(str(number)) for number in range(JOBS)}
    async with (
        open_sqlite(tmp_path / "jobs.db", sync="normal") as store,
        running(store, name="n2", patience=30) as rig,
    ):
        jobs = [await rig.ended(str(number)) for number in range(JOBS)]
        second = rig.actor.order()

    assert {job.status for job in done.values()} == {Status.DONE, Status.QUEUED}
    assert {(job.status, job.state.attempt) for job in jobs} == {(Status.DONE, 1)}
    assert set(second) == {job_id for job_id, job in done.items() if job.status is Status.QUEUED}
    assert JOBS <= first + len(second) <= JOBS + 4
    assert all(job.asked.created_at == NOW for job in jobs)
