"""`GET /jobs/ID/log` and the progress in `GET /jobs/ID`: what a handler says, as it says it."""

import functools

import pytest
import trio

from jobpipe.store.base import Batch, ClaimRequest, LogLine, Note
from tests.api.client import asked, open_door


async def told(door, job_id="a"):
    """A job that runs, and has said something."""
    await door.enqueue(id=job_id, kind="play", payload="tell")
    answer = await door.get(f"/jobs/{job_id}/log?wait=5")
    assert answer.status_code == 200, answer.text
    return answer.json()


def texts(answer):
    return [line["text"] for line in answer.json()["lines"]]


async def test_a_job_shows_its_progress_while_it_runs_and_after_it(either_door):
    await either_door.enqueue(id="a", delay=1000)
    await told(either_door, "b")
    running = (await either_door.get("/jobs/b")).json()
    either_door.stage.release.set()
    ended = (await either_door.get("/jobs/b?wait=5")).json()

    assert (running["status"], ended["status"]) == ("running", "done")
    assert running["progress"] == ended["progress"]
    assert (running["progress"]["fraction"], running["progress"]["message"]) == (0.5, "half of it")
    assert running["progress"]["at"].endswith("Z")
    assert (await either_door.get("/jobs/a")).json()["progress"] is None
    assert all("progress" not in job for job in (await either_door.get("/jobs")).json()["jobs"])


async def test_a_log_has_its_lines_and_where_to_go_on(either_door):
    first = await told(either_door)
    either_door.stage.release.set()
    await either_door.get("/jobs/a?wait=5")
    rest = await either_door.get(f"/jobs/a/log?after={first['next_after']}")
    whole = (await either_door.get("/jobs/a/log")).json()

    assert (first["dropped"], first["next_after"], rest.json()["next_after"]) == (0, 2, None)
    assert texts(rest) == ["third"]
    assert whole["lines"] == first["lines"] + rest.json()["lines"]
    assert [(line["n"], line["attempt"], line["level"]) for line in whole["lines"]] == [
        *((1, 1, "info"), (2, 1, "warning"), (3, 1, "error"))
    ]
    assert [line["fields"] for line in whole["lines"]] == [{"to": ["ann"]}, None, None]


async def test_a_log_comes_in_pages(door, autojump_clock):
    """Which end with null once the job has ended and all has been read."""
    await told(door)
    door.stage.release.set()
    await door.ended("a")
    pages, after = [], 0
    while after is not None:
        page = await door.get(f"/jobs/a/log?limit=2&after={after}")
        pages.append(texts(page))
        after = page.json()["next_after"]

    assert pages == [["first", "second"], ["third"]]


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        ("debug", ["first", "second"]),
        ("info", ["first", "second"]),
        ("warning", ["second"]),
        ("error", []),
    ],
)
async def test_a_log_can_be_had_from_a_level_on(door, autojump_clock, level, seen):
    """What is below it is passed over, and not read again."""
    await told(door)
    page = await door.get(f"/jobs/a/log?level={level}")

    assert texts(page) == seen
    assert page.json()["next_after"] == 2


async def test_a_job_that_logs_nothing_has_an_empty_log(door, autojump_clock):
    await door.enqueue(id="a", delay=1000)
    waiting = (await door.get("/jobs/a/log")).json()
    await door.enqueue(id="b")
    await door.ended("b")

    assert waiting == {"lines": [], "dropped": 0, "next_after": 0}
    assert (await door.get("/jobs/b/log?wait=60")).json() == {"lines": [], "dropped": 0, "next_after": None}


@pytest.mark.parametrize("query", ["", "?wait=60"])
async def test_there_is_no_log_of_an_absent_job(door, autojump_clock, query):
    answer = await door.get(f"/jobs/none/log{query}")

    assert (answer.status_code, answer.json()["code"]) == (404, "no_such_job")


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        *(("after=-1", "?after"), ("after=9007199254740993", "?after"), ("after=x", "?after")),
        *(("limit=0", "?limit"), ("limit=1001", "?limit"), ("level=fatal", "?level")),
        *(("wait=601", "?wait"), ("cursor=x", "?cursor")),
    ],
)
async def test_a_parameter_that_is_none_is_refused(door, query, pointer):
    await door.enqueue(id="a", delay=1000)
    answer = await door.get(f"/jobs/a/log?{query}")

    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["faults"]] == [pointer]


# --- live -------------------------------------------------------------------------------------------------------------


async def waiting(door, nursery, query="wait=60&after=2", job_id="a"):
    """A request that is held."""
    answers = await asked(nursery, functools.partial(door.get, f"/jobs/{job_id}/log?{query}"))
    await trio.testing.wait_all_tasks_blocked()
    return answers


async def test_a_request_that_waits_is_answered_with_the_next_line(door, autojump_clock):
    await told(door)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        answers = await waiting(door, nursery)
        await trio.sleep(7)
        before = list(answers)
        door.stage.release.set()

    assert before == []
    assert texts(answers[0]) == ["third"]
    assert answers[0].json()["next_after"] is None
    assert trio.current_time() - began < 7.5


async def test_a_request_that_waits_long_enough_is_answered_with_nothing(door, autojump_clock):
    await told(door)
    began = trio.current_time()
    answer = await door.get("/jobs/a/log?after=2&wait=20")

    assert answer.json() == {"lines": [], "dropped": 0, "next_after": 2}
    assert 20 <= trio.current_time() - began < 21


async def test_a_request_that_waits_is_answered_when_the_job_is_deleted(door, autojump_clock):
    await door.enqueue(id="a", delay=1000)
    async with trio.open_nursery() as nursery:
        answers = await waiting(door, nursery)
        await door.delete("/jobs/a")

    assert answers[0].status_code == 404


async def test_a_request_that_waits_is_answered_when_the_node_stops(autojump_clock):
    async with open_door() as door:
        await told(door)
        async with trio.open_nursery() as nursery:
            answers = await waiting(door, nursery)
            door.node.stop()

    assert answers[0].status_code == 200


async def test_lines_that_nobody_tells_of_come_too(door, autojump_clock):
    """They are looked for, now and then."""
    await door.node.store.join("other", door.node.clock.now(), door.node.clock.now() + 1e6)
    job = await held_by_another(door)
    async with trio.open_nursery() as nursery:
        answers = await waiting(door, nursery, "wait=60")
        await trio.sleep(3)
        began = trio.current_time()
        line = LogLine(1, door.node.clock.now(), "info", "from afar")
        note = Note(seq=job.seq, id=job.id, claim=job.claim, attempt=1, lines=[line])
        await door.node.store.exchange(Batch(node="other", now=door.node.clock.now(), notes=[note]))

    assert texts(answers[0]) == ["from afar"]
    assert trio.current_time() - began <= 2.0


async def held_by_another(door):
    """A job that another node runs."""
    await door.post("/queues/default/pause")
    await door.enqueue(id="a")
    await door.node.store.resume("default")
    now = door.node.clock.now()
    claims = [ClaimRequest(limit=1, kinds=frozenset({"echo"}))]
    (job,) = (await door.node.store.exchange(Batch(node="other", now=now, claims=claims))).claimed
    return job


async def test_who_waits_for_the_end_is_not_woken_by_lines(door, autojump_clock):
    reads = []
    get = door.node.store.get

    async def counted(job_id):
        reads.append(job_id)
        return await get(job_id)

    await told(door)
    door.node.store.get = counted
    async with trio.open_nursery() as nursery:
        await asked(nursery, functools.partial(door.get, "/jobs/a?wait=60"))
        await trio.testing.wait_all_tasks_blocked()
        before = len(reads)
        door.node.events.logged("a")
        await trio.testing.wait_all_tasks_blocked()
        after = len(reads)
        door.stage.release.set()

    assert after == before


async def test_a_damaged_progress_and_log_are_shown_as_far_as_they_can_be_read(door, autojump_clock):
    await told(door)
    db = door.node.store._db
    db.execute("update progress set fraction = 1e308, message = ?", ["x" * 10_000])
    db.execute("update logs set at = 9e999, text = cast(x'ff' as text), fields = '{' where n = 1")
    db.execute("update logs set fields = '[1]', attempt = -1 where n = 2")
    door.stage.release.set()
    job, log = await door.get("/jobs/a?wait=5"), await door.get("/jobs/a/log")

    assert (job.status_code, job.json()["status"], job.json()["progress"]) == (200, "done", None)
    assert log.status_code == 200
    assert [(line["text"], line["attempt"], line["fields"]) for line in log.json()["lines"]] == [
        *(("\ufffd", 1, None), ("second", -1, None), ("third", 1, None))
    ]
