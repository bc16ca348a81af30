"""Nodes that serve different queues of one database: each takes its own at once, and leaves the others alone."""

import pytest
import trio

from tests.process.running import PATIENCE, until

pytestmark = pytest.mark.slow

MODULE = """
import trio
from jobpipe import handler


@handler("nap")
async def nap(payload: float) -> None:
    await trio.sleep(payload)
"""


@pytest.fixture
def naps(tmp_path):
    """The handlers of these nodes."""
    (tmp_path / "naps.py").write_text(MODULE)
    return {"HANDLERS": "naps", "WORKERS": 2}


async def enqueue(node, queue, *ids, seconds=0.0):
    for job_id in ids:
        body = {"id": job_id, "kind": "nap", "queue": queue, "payload": seconds}
        assert (await node.http.post("/enqueue", json=body)).status_code == 202


def nodes_of(jobs):
    return {attempt["node"] for job in jobs.values() for attempt in job["attempts"]}


async def test_each_node_runs_the_jobs_of_its_queues(serve, naps):
    """Enqueued at either, and at once: an idle node is woken for them. A queue that none serves waits, and is shown."""
    mail, reports = await serve(QUEUES="mail:2,sms", **naps), await serve(QUEUES="reports", **naps)
    names = [(await node.http.get("/health")).json()["node"] for node in (mail, reports)]
    await enqueue(mail, "other", "o1", "o2")
    took = []
    for number in range(5):
        begun = trio.current_time()
        await enqueue(reports, "mail", f"m{number}")
        await enqueue(mail, "reports", f"r{number}")
        await mail.all_ended(f"m{number}", f"r{number}")
        took.append(trio.current_time() - begun)
    of_mail = await mail.all_ended(*(f"m{number}" for number in range(5)))
    of_reports = await mail.all_ended(*(f"r{number}" for number in range(5)))
    shown = {one["name"]: one for one in (await mail.http.get("/queues")).json()["queues"]}
    health = [(await node.http.get("/health")).json() for node in (mail, reports)]

    assert (nodes_of(of_mail), nodes_of(of_reports)) == ({names[0]}, {names[1]})
    assert sorted(took)[2] < 2  # a node that is not woken looks every few seconds
    assert shown["other"]["counts"] == {"queued": 2}
    assert {name: one["served"] for name, one in shown.items()} == {
        "mail": True,
        "other": False,
        "reports": True,
    }
    assert [one["status"] for one in health] == ["ok", "ok"]


async def test_the_next_node_that_serves_all_queues_takes_what_waited(serve, naps):
    """Long reports keep all its workers but those that are reserved."""
    mail = await serve(QUEUES="mail", **naps)
    await enqueue(mail, "reports", *(f"r{number}" for number in range(9)), seconds=PATIENCE)
    every = await serve(RESERVE="sms:1", **(naps | {"WORKERS": 3}), GRACE=0)
    name = (await every.http.get("/health")).json()["node"]

    async def busy():
        return (await mail.http.get("/health")).json()["busy"] == 0 and (
            await every.http.get("/health")
        ).json()["busy"] == 2

    await until(busy)
    begun = trio.current_time()
    await enqueue(mail, "sms", "s1", "s2", "s3")
    sms = await mail.all_ended("s1", "s2", "s3")
    took = trio.current_time() - begun
    health = (await every.http.get("/health")).json()

    assert nodes_of(sms) == {name}
    assert took < PATIENCE / 3
    assert (health["status"], health["busy"]) == ("ok", 2)


async def test_nodes_drain_a_backlog_together_by_their_own_weights(serve, naps):
    """Whatever one leaves, the other takes: each job runs once."""
    first = await serve(QUEUES="a:3,b", **naps)
    await serve(QUEUES="b:5,*:1", RESERVE="b:1", **naps)
    ids = [f"{queue}{number}" for number in range(60) for queue in "abc"]
    body = [{"id": job_id, "kind": "nap", "queue": job_id[0], "payload": 0.005} for job_id in ids]
    assert (await first.http.post("/enqueue/bulk", json=body)).status_code == 202
    ended = await first.all_ended(*ids)

    assert {(job["status"], job["attempt"]) for job in ended.values()} == {("done", 1)}
    assert len(nodes_of({job_id: job for job_id, job in ended.items() if job_id[0] == "c"})) == 1
    assert len(nodes_of(ended)) == 2
