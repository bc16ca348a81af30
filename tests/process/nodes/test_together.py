"""Nodes side by side, in the sight of clients: whatever is asked of one holds for all."""

import signal

import pytest
import trio

from tests.process.nodes.asking import ask, left_behind
from tests.process.nodes.conftest import LEASE
from tests.process.running import PATIENCE, until

pytestmark = pytest.mark.slow

UNTOLD = {"JOBPIPE_TEST_POLL": 3600, "LEASE": 3600}
"""For nodes that look at the database when they are told to, and by themselves not within the time of a test."""

LONG = 10 * PATIENCE
"""Seconds to wait at a service: a client that is not answered before gives up, and its test fails."""

ONE = {"WORKERS": 1, "QUEUE_SIZE": 0}
"""For a node that takes one job, and the next one when that has ended."""


def starts_of(trace, job_id):
    return [line for line in trace() if line["job"] == job_id and line["event"] == "start"]


async def running_on(nodes, trace, *job_ids):
    """On which node each job runs, once all of them do."""

    async def all_run():
        return all(starts_of(trace, job_id) for job_id in job_ids)

    await until(all_run)
    by_pid = {node.process.pid: node for node in nodes}
    return {job_id: by_pid[starts_of(trace, job_id)[-1]["pid"]] for job_id in job_ids}


# --- what one node is told, another one does --------------------------------------------------------------------------


async def test_a_job_that_one_node_has_no_room_for_starts_on_an_idle_one_without_waiting_for_a_look(
    serve, trace, gate
):
    """And who waits for its end at the first one is told of it."""
    busy = await serve(**UNTOLD, **ONE)
    await busy.enqueue("active", payload={"until": gate.path})
    await busy.runs("active")
    idle = await serve(**UNTOLD, **ONE)

    ended = {}
    for number in range(20):  # one or two may be found by the looks that belong to a start
        await busy.enqueue(f"job-{number}")
        ended[number] = await busy.job(f"job-{number}", wait=LONG)

    assert {job["status"] for job in ended.values()} == {"done"}
    assert {line["pid"] for line in trace() if line["job"] != "active"} == {idle.process.pid}


async def test_a_running_job_is_cancelled_and_waited_for_at_any_node(start, trace):
    """The cancel is answered when the cleanup has ended, wherever the handler ran."""
    nodes = await start(3, **UNTOLD, **ONE)
    waited = {}

    async def wait(node, job_id):
        waited[job_id] = await node.job(job_id, wait=LONG)

    for shift in range(3):
        jobs = [f"job-{shift}-{number}" for number in range(3)]
        for job_id in jobs:
            await nodes[0].enqueue(job_id, payload={"until": "/never"})
        runners = await running_on(nodes, trace, *jobs)
        async with trio.open_nursery() as nursery:
            for job_id in jobs:
                place = nodes.index(runners[job_id])
                nursery.start_soon(wait, nodes[(place + shift + 1) % 3], job_id)
                asked = nodes[(place + shift) % 3]
                answer = await asked.http.post(f"/jobs/{job_id}/cancel", params={"wait": LONG})

                assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
                assert [line["event"] for line in trace() if line["job"] == job_id] == ["start", "cancelled"]
        assert set(runners.values()) == set(nodes)

    assert {job["status"] for job in waited.values()} == {"cancelled"}
    assert len(waited) == 9


async def test_a_queue_that_is_paused_at_one_node_is_so_for_all_until_any_of_them_resumes_it(start):
    nodes = await start(3, **UNTOLD, **ONE)
    letters, others = [[f"{kind}-{number}" for number in range(3)] for kind in ("letter", "other")]

    assert (await nodes[0].http.post("/queues/mail/pause")).is_success
    for node, letter, other in zip(nodes, letters, others, strict=True):
        await node.enqueue(letter, queue="mail", priority=1)
        await node.enqueue(other)
        await node.job(other, wait=LONG)
    meanwhile = [(await nodes[1].job(letter))["status"] for letter in letters]
    assert (await nodes[2].http.post("/queues/mail/resume")).is_success
    ended = [await nodes[1].job(letter, wait=LONG) for letter in letters]

    assert meanwhile == ["queued"] * 3
    assert [job["status"] for job in ended] == ["done"] * 3


async def test_the_same_id_at_two_nodes_is_one_job(start, trace):
    """Also when both are asked at the same time."""
    nodes = await start(2)
    answers = []

    async def enqueue(node, number):
        body = {"id": f"job-{number}", "kind": "work", "payload": {}}
        answers.append((await node.http.post("/enqueue", json=body)).status_code)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            for node in nodes:
                nursery.start_soon(enqueue, node, number)
    jobs = [f"job-{number}" for number in range(50)]
    await nodes[0].all_ended(*jobs)

    assert sorted(answers) == [200] * 50 + [202] * 50
    assert [len(starts_of(trace, job_id)) for job_id in jobs] == [1] * 50


# --- nodes that end ---------------------------------------------------------------------------------------------------


async def test_the_jobs_of_a_killed_node_run_on_another_one(serve, trace, gate):
    """What had begun spent an attempt, or failed if it must not run twice; what only waited lost nothing."""
    killed = await serve(WORKERS=2, QUEUE_SIZE=4)
    await killed.enqueue("active", payload={"until": gate.path}, max_retries=1)
    await killed.enqueue("once", payload={"until": gate.path}, on_crash="fail")
    waiting = [f"w{number}" for number in range(4)]
    for job_id in waiting:
        await killed.enqueue(job_id, max_retries=0)
    await killed.runs("active", "once")
    other = await serve(WORKERS=1)

    killed.signal(signal.SIGKILL)
    assert await killed.ended() == -signal.SIGKILL
    gate.open()
    ended = await other.all_ended("active", "once", *waiting)

    assert {job_id: job["attempt"] for job_id, job in ended.items()} == {
        "active": 2,
        "once": 1,
    } | dict.fromkeys(waiting, 1)
    assert [one["outcome"] for one in ended["active"]["attempts"]] == ["interrupted", "done"]
    assert (ended["once"]["status"], ended["once"]["error"]["type"]) == ("failed", "NodeDied")
    assert {ended[job_id]["status"] for job_id in waiting} == {"done"}
    assert [len(starts_of(trace, job_id)) for job_id in ("once", *waiting)] == [1] * 5
    assert other.has_said("recovered a job of a dead node")


@pytest.mark.parametrize("grace", ["30s", "0s"])
async def test_of_a_node_that_drained_nothing_needs_rescue(serve, trace, gate, database, grace):
    """What waited in it runs elsewhere at once, and so does what it had to stop; no attempt is spent.

    Its lease is an hour, so what it had left behind would not run within the time of a test.
    """
    leaving = await serve(**UNTOLD, WORKERS=1, QUEUE_SIZE=4, GRACE=grace)
    await leaving.enqueue("active", payload={"until": gate.path}, max_retries=0)
    waiting = [f"w{number}" for number in range(4)]
    for job_id in waiting:
        await leaving.enqueue(job_id, max_retries=0)
    await leaving.runs("active")
    other = await serve(**UNTOLD, WORKERS=1)

    leaving.signal(signal.SIGTERM)
    await leaving.said("SIGTERM: draining")
    gate.open()
    assert await leaving.ended() == 0
    ended = await other.all_ended("active", *waiting)

    assert {(job["status"], job["attempt"]) for job in ended.values()} == {("done", 1)}
    assert [len(starts_of(trace, job_id)) for job_id in waiting] == [1] * 4
    stopped = [line for line in trace() if line["event"] == "cancelled"]
    assert await left_behind(database) == (0, len(stopped))


# --- many at once, and clocks that differ -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.nodes)])
async def test_nodes_that_start_at_once_on_an_empty_database_all_come_up(start, database, count):
    """The tables are made once, and each node works."""
    nodes = await start(count, WORKERS=1)
    for node in nodes:  # with so many on few processors, one may stand still for a second
        node.expected_errors.add("the event loop is blocked")
    for number, node in enumerate(nodes):
        await node.enqueue(f"job-{number}", "echo", payload=number)
    ended = [await node.job(f"job-{number}", wait=LONG) for number, node in enumerate(reversed(nodes))]
    health = [(await node.http.get("/health")).json()["status"] for node in nodes]

    assert [job["result"] for job in ended] == list(range(count))
    assert health == ["ok"] * count
    assert await ask(database, "select count(*) - count(distinct version) from versions") == [(0,)]


@pytest.mark.nodes
async def test_clocks_of_nodes_that_differ_by_two_minutes_change_nothing(launch, trace):
    """No lease is lost and no live node's job is rescued; delays are as long as they say; a dead node is found."""
    nodes = [await launch(JOBPIPE_TEST_CLOCK=ahead, **ONE) for ahead in (-60, 0, 60)]
    for node in nodes:
        await node.starts()
    long, soon = [[f"{kind}-{number}" for number in range(3)] for kind in ("long", "soon")]
    for node, job_id in zip(nodes, long, strict=True):
        await node.enqueue(job_id, payload={"seconds": LEASE + 1}, max_retries=0)
    runners = await running_on(nodes, trace, *long)
    first = [await nodes[0].job(job_id, wait=LONG) for job_id in long]
    for node, job_id in zip(nodes, soon, strict=True):
        await node.enqueue(job_id, delay=1)
    last = [await nodes[1].job(job_id, wait=LONG) for job_id in soon]
    await nodes[2].enqueue("left", payload={"until": "/never"}, max_retries=0)
    await nodes[0].runs("left")  # a start that is not stored yet would be unspent
    victim = (await running_on(nodes, trace, "left"))["left"]
    await victim.kill()
    survivor = next(node for node in nodes if node is not victim)
    left = await survivor.job("left", wait=LONG)

    assert set(runners.values()) == set(nodes)
    assert {(job["status"], job["attempt"]) for job in first + last} == {("done", 1)}
    assert max(job["run_at"] for job in first) < min(job["run_at"] for job in last)
    assert (left["status"], left["error"]["type"]) == ("failed", "NodeDied")
    assert [node for node in nodes if node.has_said("this node lost its lease")] == []
