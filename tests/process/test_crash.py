"""kill -9 and handlers that take their node along: what was acknowledged ends, and no two runs of a job overlap."""

import itertools
import os
import random
import signal
from collections import defaultdict
from contextlib import suppress

import pytest
import trio

from tests.process.clients import GONE, Book, Clients
from tests.process.running import PATIENCE, Died, until

SEED = int(os.environ.get("JOBPIPE_TEST_SEED") or random.SystemRandom().randrange(10**6))
"""Of everything random in here; set JOBPIPE_TEST_SEED to the one that a failed test printed."""

ENDED = {"done", "failed", "cancelled"}


def starts_of(trace, job_id):
    return [line for line in trace() if line["job"] == job_id and line["event"] == "start"]


async def killed(service):
    service.signal(signal.SIGKILL)
    assert await service.ended() == -signal.SIGKILL


async def rescued(service):
    """How many jobs were taken back at the start, and how many of those had begun."""
    line = await service.said("rescued: ")
    return int(line["event"].split()[1]), line["begun"]


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
    assert 2 <= held <= 5  # the one that ran, and what was in the channel: at least half of it
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


async def test_after_kills_at_random_moments_every_acknowledged_job_ends(launch, trace):
    await live_and_die(launch, trace, kills=2)


@pytest.mark.crash
async def test_after_many_kills_at_random_moments_every_acknowledged_job_ends(launch, trace):
    await live_and_die(launch, trace, kills=10)


async def live_and_die(launch, trace, *, kills):
    """Let clients use one process after the other, each killed at some moment, and see what came of their jobs."""
    print(f"JOBPIPE_TEST_SEED={SEED}")  # noqa: T201 - pytest shows it when the test fails
    rng, book = random.Random(SEED), Book()
    for life in range(kills):
        service = await launch(WORKERS=8, SYNC=rng.choice(("full", "normal")))
        if life % 3 == 2:
            await trio.sleep(rng.uniform(0, 1))  # somewhere in its start
            await killed(service)
        else:
            await service.starts()
            await tells_what_it_rescued(service, trace)
            clients = Clients(book, service.url, f"{SEED} {life}")
            await used_and_killed(service, book, clients, rng.uniform(0, 1.5))
    service = await launch(WORKERS=8)
    await service.starts()
    await tells_what_it_rescued(service, trace)
    for job in book.unanswered:
        answer = await service.http.post("/enqueue", json=job)
        assert answer.status_code in (200, 202), answer.text
        book.acknowledged[job["id"]] = None
    jobs = await service.all_jobs()
    unended = [job_id for job_id in book.acknowledged if jobs.get(job_id, {}).get("status") not in ENDED]
    jobs |= await service.all_ended(*unended)

    assert {job_id: job["status"] for job_id, job in jobs.items() if job["status"] not in ENDED} == {}
    assert set(jobs) == set(book.acknowledged)
    check_runs(book, jobs, trace())


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
    """Every run that a kill left open is among the jobs taken back."""
    dead = [line for line in trace() if line["pid"] != service.process.pid]
    last = dead[-1]["pid"] if dead else None
    left = open_runs(line for line in dead if line["pid"] == last)
    held, _ = await rescued(service)

    assert held >= len(left)


def open_runs(lines):
    """The jobs of these lines whose last run was begun and not ended."""
    last = {line["job"]: line["event"] for line in lines}
    return {job_id for job_id, event in last.items() if event == "start"}


def check_runs(book, jobs, lines):
    """Judge by what clients were answered and what handlers wrote."""
    pids = [pid for pid, _ in itertools.groupby(line["pid"] for line in lines)]
    assert len(pids) == len(set(pids)), "two nodes ran at the same time"
    by_job = defaultdict(list)
    for line in lines:
        by_job[line["job"]].append(line)
    for job_id, written in by_job.items():
        assert_no_overlap(written)
        if book.roles[job_id] == "once":
            assert_not_repeated(jobs[job_id], written)
    uncounted = 0
    for job_id, job in jobs.items():
        written = by_job[job_id]
        events = [line["event"] for line in written]
        if job["status"] == "done":
            assert "done" in events, job_id
        if job_id in book.cancelled:
            assert job["status"] == "cancelled"
            assert not [line for line in written if line["at"] > book.cancelled[job_id]]
        if job_id in book.retried:
            assert [
                line for line in written if line["event"] == "start" and line["at"] > book.retried[job_id]
            ]
        elif job["attempt"] > events.count("start"):
            uncounted += 1
    # A kill can fall between the stored start of an attempt and the first line of its handler.
    assert uncounted <= 8 * len(pids)


def assert_no_overlap(written):
    """A run begins after the one before has ended, by itself or with its process, and with a higher claim number."""
    running = None
    claim = 0
    for line in written:
        if line["event"] == "start":
            assert running is None or running["pid"] != line["pid"], written
            assert line["claim"] > claim, written
            running, claim = line, line["claim"]
        else:
            assert running is not None, written
            assert running["claim"] == line["claim"], written
            running = None


def assert_not_repeated(job, written):
    """A run that a kill left open is the last one, and the job has failed."""
    for line, following in itertools.pairwise(written):
        assert line["event"] != "start" or following["event"] != "start", written
    if written[-1]["event"] == "start":
        assert (job["status"], job["error"]["type"]) == ("failed", "NodeDied"), written
