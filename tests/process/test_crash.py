"""Ends at any moment, by kill -9 or a signal: what was acknowledged ends, and no two runs of a job overlap."""

import os
import random
import re
import signal
from contextlib import suppress

import pytest
import trio

from tests.process.book import Book
from tests.process.clients import GONE, Clients, rule
from tests.process.judge import (
    all_come_to_an_end,
    assert_held_within_limits,
    assert_one_process_at_a_time,
    check,
    count_of_starts,
    open_runs,
)
from tests.process.running import PATIENCE, Died, nothing_runs, read_jobs, until

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("JOBPIPE_TEST_SEED") or random.SystemRandom().randrange(10**6))
"""Of everything random in here; set JOBPIPE_TEST_SEED to the one that a failed test printed."""

KILLS = int(os.environ.get("JOBPIPE_TEST_KILLS", "50"))
"""How many under load in one run, and half as many orderly ends; `just test-crash-short` has 10."""


def starts_of(trace, job_id):
    return [line for line in trace() if line["job"] == job_id and line["event"] == "start"]


async def killed(service):
    service.signal(signal.SIGKILL)
    assert await service.ended() == -signal.SIGKILL


async def rescued(service):
    """How many jobs were taken back at the start, and how many of those had begun."""
    await service.said("workers: ")  # the last line of the start
    found = [
        re.search(r"^recovered (\d+) jobs .*\((\d+) had started\)", line["event"]) for line in service.lines
    ]
    return next(((int(each[1]), int(each[2])) for each in found if each), (0, 0))


# --- one kill, and what it costs each job -----------------------------------------------------------------------------


async def test_after_a_kill_a_job_that_ran_runs_again_and_one_that_waited_has_spent_nothing(
    serve, trace, gate
):
    service = await serve(WORKERS=1, QUEUE_SIZE=4)
    await service.enqueue("active", payload={"until": gate.path}, max_retries=1)
    waiting = [f"w{index}" for index in range(4)]
    for job_id in waiting:
        await service.enqueue(job_id, max_retries=0)
    await service.runs("active")

    await killed(service)
    gate.open()
    service = await serve(WORKERS=1)
    ended = await service.all_ended("active", *waiting)

    held, begun = await rescued(service)
    assert 1 <= held <= 5  # the one that ran, and what was in the channel
    assert begun == 1
    assert {job["status"] for job in ended.values()} == {"done"}
    assert {job_id: ended[job_id]["attempt"] for job_id in ended} == {"active": 2} | dict.fromkeys(waiting, 1)
    assert [one["outcome"] for one in ended["active"]["attempts"]] == ["interrupted", "done"]
    assert ended["active"]["attempts"][0]["error"]["type"] == "NodeDied"
    assert [len(starts_of(trace, job_id)) for job_id in waiting] == [1, 1, 1, 1]


async def test_a_job_that_must_not_run_twice_fails_after_a_kill(serve, trace):
    """Its start is stored before its handler runs, so that a kill at the very beginning counts too."""
    service = await serve(WORKERS=1)
    await service.enqueue("once", payload={"until": "/never"}, on_crash="fail")
    await service.enqueue("waiting", on_crash="fail")
    await until(lambda: has_begun(trace, "once"))

    await killed(service)
    service = await serve()
    ended = await service.all_ended("once", "waiting")

    assert (ended["once"]["status"], ended["once"]["error"]["type"]) == ("failed", "NodeDied")
    assert len(starts_of(trace, "once")) == 1
    assert (ended["waiting"]["status"], len(starts_of(trace, "waiting"))) == ("done", 1)


async def has_begun(trace, job_id):
    return bool(starts_of(trace, job_id))


async def test_a_wish_to_cancel_survives_a_kill(serve, trace):
    service = await serve()
    await service.enqueue("cleaning", payload={"until": "/never", "cleanup_until": "/never"})
    await service.runs("cleaning")
    answer = await service.http.post("/jobs/cleaning/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")

    await killed(service)
    service = await serve()

    assert (await service.job("cleaning", wait=PATIENCE))["status"] == "cancelled"
    assert len(starts_of(trace, "cleaning")) == 1


async def test_a_paused_queue_stays_paused_over_a_kill(serve):
    service = await serve()
    assert (await service.http.post("/queues/mail/pause")).is_success
    await service.enqueue("letter", queue="mail")
    await service.enqueue("other")
    await service.job("other", wait=PATIENCE)

    await killed(service)
    service = await serve()
    await service.enqueue("another")
    await service.job("another", wait=PATIENCE)

    assert (await service.job("letter"))["status"] == "queued"
    assert (await service.http.post("/queues/mail/resume")).is_success
    assert (await service.job("letter", wait=PATIENCE))["status"] == "done"


async def test_a_job_that_kills_its_node_cannot_do_so_for_ever(serve, launch, trace):
    """It has its attempts and no more, but for one that may have gone uncounted; those beside it lose nothing."""
    service = await serve(WORKERS=1)
    await service.http.post("/queues/default/pause")
    await service.enqueue("bomb", "bomb", max_retries=2, priority=1)
    innocent = [f"i{index}" for index in range(5)]
    for job_id in innocent:
        await service.enqueue(job_id, max_retries=0)
    with suppress(*GONE):  # it may die before it has answered
        await service.http.post("/queues/default/resume")
    assert await service.ended() == 9

    deaths = 1
    while True:
        service = await launch(WORKERS=1)
        with suppress(Died, *GONE):
            await service.starts()
            await service.job("bomb", wait=PATIENCE)
            break
        assert await service.ended() == 9
        deaths += 1
    ended = await service.all_ended("bomb", *innocent)

    assert (ended["bomb"]["status"], ended["bomb"]["error"]["type"]) == ("failed", "NodeDied")
    assert ended["bomb"]["attempt"] == 3
    assert deaths == len(starts_of(trace, "bomb"))
    assert 3 <= deaths <= 4
    assert {(job["status"], job["attempt"]) for job_id, job in ended.items() if job_id != "bomb"} == {
        ("done", 1)
    }
    assert [len(starts_of(trace, job_id)) for job_id in innocent] == [1] * 5


# --- kills at random moments ------------------------------------------------------------------------------------------


async def test_after_kills_at_random_moments_every_acknowledged_job_ends(launch, trace, store):
    await live_and_die(launch, trace, store, kills=2)


@pytest.mark.crash
async def test_after_many_kills_at_random_moments_every_acknowledged_job_ends(launch, trace, store):
    book = await live_and_die(launch, trace, store, kills=KILLS)

    assert book.cancelled, "nothing was cancelled meanwhile"
    assert book.retried, "nothing was retried meanwhile"
    assert book.refused, "nobody came too late for a group"


WORKERS = 16


async def live_and_die(launch, trace, store, *, kills):
    """Let clients use one process after the other, each killed under their load, and see what came of their jobs.

    Before each third one, another is killed in its start.
    """
    print(f"JOBPIPE_TEST_SEED={SEED}")  # noqa: T201 - pytest shows it when the test fails
    rng, book = random.Random(SEED), Book()
    for life in range(kills):
        if life % 3 == 2:
            await killed_in_its_start(launch, rng)
        service = await launch(WORKERS=WORKERS, SYNC=rng.choice(("full", "normal")))
        await service.starts()
        if life % 3 != 2:
            await tells_what_it_rescued(service, trace)
        await rule(service.http, book)
        clients = Clients(book, service.url, f"{SEED} {life}")
        await used_and_killed(service, book, clients, rng.uniform(0, 1.5))
        assert_held_within_limits(read_jobs(store).values())
    service = await launch(WORKERS=WORKERS)
    await service.starts()
    jobs = await all_come_to_an_end(service, book)

    lines = trace()
    assert_one_process_at_a_time(lines)
    check(book, jobs, lines, uncounted=WORKERS * (kills + kills // 3))
    what = f"{len(jobs)} jobs, {len(book.cancelled)} cancelled, {len(book.retried)} retried"
    print(f"{kills} kills under load: {what}, {count_of_starts(lines)} runs")  # noqa: T201 - shown with -s
    return book


async def killed_in_its_start(launch, rng):
    """Kill a process before it listens, or a little later."""
    service = await launch(WORKERS=WORKERS)
    await trio.sleep(rng.uniform(0, 1))
    await killed(service)


async def used_and_killed(service, book, clients, seconds):
    """Let the clients run, and kill the service that long after its first answer."""
    before = len(book.acknowledged)

    async def answered():
        return len(book.acknowledged) > before

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clients.run)
            await until(answered)
            await trio.sleep(seconds)
            await killed(service)


async def tells_what_it_rescued(service, trace):
    """Every run that the kill of the process before it left open is among the jobs taken back."""
    dead = [line for line in trace() if line["pid"] != service.process.pid]
    last = dead[-1]["pid"] if dead else None
    left = open_runs(line for line in dead if line["pid"] == last)
    held, _ = await rescued(service)

    assert held >= len(left)


# --- orderly ends at random moments -----------------------------------------------------------------------------------


@pytest.mark.crash
async def test_after_many_orderly_ends_at_random_moments_nothing_is_left_behind_or_spent(
    launch, trace, store
):
    """SIGTERM during the start, under load, and once more during the drain: the next process has nothing to rescue."""
    print(f"JOBPIPE_TEST_SEED={SEED}")  # noqa: T201 - pytest shows it when the test fails
    rng, book, twice = random.Random(SEED), Book(), 0
    for life in range(KILLS // 2):
        if life % 3 == 2:
            await ended_in_its_start(launch, rng)
        service = await launch(WORKERS=WORKERS, GRACE=rng.choice(("0s", "200ms", "30s")))
        await service.starts()
        assert await rescued(service) == (0, 0)
        await rule(service.http, book)
        clients = Clients(book, service.url, f"{SEED} {life}")
        twice += await used_and_ended(service, book, clients, rng)
        assert (await service.said("drained"))["abandoned"] == []
        assert nothing_runs(store)
    service = await launch(WORKERS=WORKERS)
    await service.starts()
    jobs = await all_come_to_an_end(service, book)

    lines = trace()
    assert_one_process_at_a_time(lines)
    check(book, jobs, lines)
    assert open_runs(lines) == set()
    print(f"{KILLS // 2} ends, {twice} by two signals: {len(jobs)} jobs, {count_of_starts(lines)} runs")  # noqa: T201 - shown with -s


async def ended_in_its_start(launch, rng):
    """End a process before it listens, or a little later; as the system does it, before it can hear the signal."""
    service = await launch(WORKERS=WORKERS)
    await trio.sleep(rng.uniform(0, 1))
    service.signal(signal.SIGTERM)
    assert await service.ended() in (0, -signal.SIGTERM)


async def used_and_ended(service, book, clients, rng):
    """Let the clients run, then end the service by one signal, or by two; returns whether by two."""
    before = len(book.acknowledged)

    async def answered():
        return len(book.acknowledged) > before

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clients.run)
            await until(answered)
            await trio.sleep(rng.uniform(0, 1))
            service.signal(signal.SIGTERM)
            with trio.move_on_after(rng.uniform(0, 1)):
                await service.ended()
            if twice := service.process.poll() is None:
                service.signal(signal.SIGTERM)
            assert await service.ended() == 0
    return twice
