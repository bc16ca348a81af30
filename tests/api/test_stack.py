"""`GET /jobs/ID/stack`: what the tasks of a running job do, for programs and for people."""

import sys
import threading
from collections import Counter

import msgspec
import pytest
import trio

from jobpipe.engine.looks import APART, KEPT, MOST_KEPT
from jobpipe.handlers.registry import handler, handlers_of
from tests.api.client import open_door


@handler("blocking")
def blocking(payload: str) -> None:
    """A handler in a thread."""
    release.wait()


release = threading.Event()


async def begun(door, job_id="a", **job):
    await door.enqueue(id=job_id, **job)
    await door.stage.begun.wait()


async def test_the_tasks_of_a_running_job_are_shown(door, autojump_clock):
    """As JSON; and as text, where a parameter or `Accept` asks for that."""
    await begun(door, kind="family", payload=3)
    await door.get("/jobs/a/stack")
    await trio.sleep(7)
    shown = (await door.get("/jobs/a/stack")).json()
    text = await door.get("/jobs/a/stack?format=text")
    accepted = await door.get("/jobs/a/stack", headers={"Accept": "text/plain"})
    both = await door.get("/jobs/a/stack", headers={"Accept": "application/json, text/plain;q=0.5"})

    tree = shown["tree"]
    assert (shown["job"], shown["kind"], shown["attempt"], shown["claim"]) == ("a", "family", 1, 1)
    assert (shown["node"], shown["tasks"], shown["whole"]) == (door.node.name, 4, True)
    assert (shown["stopping"], shown["rest"], shown["circles"]) == (None, [], [])
    assert (tree["name"], tree["count"], tree["still"]) == ("family", 1, 7.0)
    assert tree["function"].endswith("family")
    assert tree["waiting_on"] == {"what": "nursery", "words": "its child tasks"}
    (children,) = tree["children"]
    assert (children["count"], children["name"]) == (3, "tests.api.client.Stage.child")
    assert children["file"].endswith("tests/api/client.py")
    assert [frame["own"] for frame in children["stack"]] == [True, *[False] * (len(children["stack"]) - 1)]
    assert children["waiting_on"] == {"what": "sleep", "words": "sleep, without an end", "until": None}
    assert text.text == accepted.text
    assert accepted.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert both.json()["job"] == "a"
    lines = text.text.splitlines()
    assert lines[0] == f"a (family) attempt 1, claim 1, on {door.node.name}"
    assert lines[1].startswith("4 tasks at 20")
    assert lines[3].split()[:2] == ["family", f"client.py:{tree['line']}"]
    assert lines[4].startswith("`- tests.api.client.Stage.child x3")
    assert lines[4].endswith("still for 7 s")


async def test_a_cancel_shows_what_it_waits_for(door, autojump_clock):
    await begun(door, kind="play", payload="hold, then clean up")
    await door.post("/jobs/a/cancel")
    await trio.sleep(3)
    shown = (await door.get("/jobs/a/stack")).json()
    text = (await door.get("/jobs/a/stack?format=text")).text
    door.stage.cleaned.set()

    assert shown["stopping"]["reason"] == "cancel"
    assert shown["tree"]["waiting_on"]["what"] == "event"
    assert "should have ended 3.0 s ago: cancel" in text


async def test_so_does_a_timeout(door, autojump_clock):
    await begun(door, kind="play", payload="hold, then clean up", timeout=5)
    await trio.sleep(7)
    stopping = (await door.get("/jobs/a/stack")).json()["stopping"]
    door.stage.cleaned.set()

    assert stopping["reason"] == "timeout"


async def test_a_handler_in_a_thread_shows_its_thread():
    async with open_door(handlers=handlers_of(sys.modules[__name__])) as door:
        release.clear()
        try:
            await door.enqueue(id="a", kind="blocking", payload="x")
            with trio.fail_after(10):
                while (shown := await door.get("/jobs/a/stack")).status_code != 200:  # noqa: ASYNC110 - no event tells
                    await trio.sleep(0.01)
                while (tree := shown.json()["tree"])["function"] is None:
                    await trio.sleep(APART)
                    shown = await door.get("/jobs/a/stack")
        finally:
            release.set()

    assert (tree["function"], tree["waiting_on"]["what"]) == ("blocking", "thread")
    assert tree["children"] == []


async def test_one_look_a_second_is_shared_by_all_who_ask(door, autojump_clock, monkeypatch):
    looks = Counter[str]()
    await begun(door, kind="play", payload="hold")
    look = door.node.looks._look

    async def counted(attempt, stacks):
        looks["all"] += 1
        await trio.sleep(APART / 4)
        return await look(attempt, stacks)

    monkeypatch.setattr(door.node.looks, "_look", counted)
    times = []

    async def ask():
        times.append((await door.get("/jobs/a/stack")).json()["looked_at"])

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
    await trio.sleep(APART)
    await ask()

    assert looks["all"] == 2
    assert len(set(times)) == 2


async def test_what_nobody_looks_at_is_forgotten(door, autojump_clock):
    """And of many jobs only the latest are remembered."""
    await begun(door, kind="play", payload="hold")
    await door.get("/jobs/a/stack")
    await trio.sleep(KEPT - 1)
    again = (await door.get("/jobs/a/stack")).json()["tree"]["still"]
    kept = len(door.node.looks._watched)
    await trio.sleep(2 * KEPT + 1)
    forgotten = len(door.node.looks._watched)
    (attempt,) = door.node.held.of_jobs(["a"])
    for number in range(MOST_KEPT + 10):
        attempt.job = msgspec.structs.replace(attempt.job, id=f"j{number}")
        door.node.looks._watch(attempt, attempt.scope)

    assert (again, kept, forgotten) == (KEPT - 1, 1, 0)
    assert len(door.node.looks._watched) == MOST_KEPT


@pytest.mark.parametrize(
    ("job", "status", "code"),
    [("none", 404, "no_such_job"), ("soon", 409, "wrong_status"), ("ended", 409, "wrong_status")],
)
async def test_a_job_that_does_not_run_says_what_it_does_instead(door, autojump_clock, job, status, code):
    await door.enqueue(id="soon", delay=1000)
    await door.enqueue(id="ended")
    await door.get("/jobs/ended?wait=5")
    answer = await door.get(f"/jobs/{job}/stack")

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert {"none": "none", "soon": "is scheduled", "ended": "is done"}[job] in answer.json()["detail"]


async def test_a_worker_s_next_job_is_not_taken_for_the_one_before(autojump_clock):
    async with open_door(workers=1) as door:
        await begun(door, kind="family", payload=2)
        await door.get("/jobs/a/stack")
        await door.post("/jobs/a/cancel?wait=10")
        await door.enqueue(id="b", kind="play", payload="hold")
        await trio.sleep(5)
        first = await door.get("/jobs/a/stack")
        second = (await door.get("/jobs/b/stack")).json()

    assert first.status_code == 409
    assert (second["tasks"], second["tree"]["still"], second["tree"]["name"]) == (1, 0.0, "play")
