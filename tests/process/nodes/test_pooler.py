"""Nodes behind PgBouncer, which lends them the connections of the server: for a transaction each, or for as long as
they are connected."""

from contextlib import ExitStack

import psycopg
import pytest
import trio

from jobpipe.store.postgres.address import read_address
from tests.process.nodes.pooler import FOLLOWS, open_pooler, version
from tests.process.nodes.test_together import LONG, ONE, UNTOLD, running_on, starts_of

pytestmark = pytest.mark.nodes

POLL = {"JOBPIPE_TEST_POLL": 0.2}
"""For nodes that nobody tells anything, so that they find it before a test has lost its patience."""

SIZE = 4
"""Connections to the server, for three nodes."""


LEFT = (
    "select current_setting('search_path'), current_setting('statement_timeout'), "
    "(select count(*) from pg_listening_channels())"
)


def by_way_of(pooler, database, **more):
    """The address of the test's own schema through the pooler."""
    return pooler.url(schema=read_address(database).schema, **more)


async def three_nodes_at_work(nodes, trace, gate):
    """What is asked of one holds for all: jobs end, are cancelled, waited for, retried, and their queue is paused."""
    jobs = [f"job-{number}" for number in range(3)]
    for job_id in jobs:
        await nodes[0].enqueue(job_id, payload={"until": gate.path})
    runners = await running_on(nodes, trace, *jobs)
    cancelled = {}
    for job_id in jobs[:2]:
        other = nodes[(nodes.index(runners[job_id]) + 1) % 3]
        answer = await other.http.post(f"/jobs/{job_id}/cancel", params={"wait": LONG})
        cancelled[job_id] = (answer.status_code, answer.json()["status"])
    assert (await nodes[1].http.post("/queues/mail/pause")).is_success
    await nodes[2].enqueue("letter", queue="mail")
    gate.open()
    ended = await nodes[(nodes.index(runners[jobs[2]]) + 1) % 3].job(jobs[2], wait=LONG)
    assert (await nodes[2].http.post(f"/jobs/{jobs[0]}/retry")).status_code == 202
    again = await nodes[1].job(jobs[0], wait=LONG)
    letter = (await nodes[0].job("letter"))["status"]
    assert (await nodes[0].http.post("/queues/mail/resume")).is_success
    many = [f"many-{number}" for number in range(30)]
    for number, job_id in enumerate(many):
        await nodes[number % 3].enqueue(job_id)
    rest = await nodes[1].all_ended("letter", *many)

    assert set(runners.values()) == set(nodes)
    assert list(cancelled.values()) == [(200, "cancelled")] * 2
    assert (ended["status"], again["status"], letter) == ("done", "done", "queued")
    assert {job["status"] for job in rest.values()} == {"done"}
    assert [len(starts_of(trace, job_id)) for job_id in many] == [1] * 30


async def lent(pooler):
    """What each connection to the server has been left with by those who had it before."""

    def found():
        with ExitStack() as stack:
            clients = [
                stack.enter_context(psycopg.connect(pooler.url(), prepare_threshold=None))
                for _ in range(SIZE)
            ]
            # Each in a transaction, so that no two of them have the same.
            for client in clients:
                client.execute("select")
            return [row for client in clients for row in client.execute(LEFT).fetchall()]

    return await trio.to_thread.run_sync(found)


async def test_three_nodes_share_four_connections_that_are_lent_for_a_transaction_each(
    start, trace, gate, database
):
    """They find out by themselves, say so, and leave nothing of theirs on a connection."""
    async with open_pooler("transaction", SIZE) as pooler:
        nodes = await start(3, STORE=by_way_of(pooler, database), **POLL, **ONE)
        await three_nodes_at_work(nodes, trace, gate)
        health = (await nodes[0].http.get("/health")).json()
        left = await lent(pooler)
        for node in nodes:  # before their way goes
            await node.kill()

    assert all(node.has_said("connected to the database through a pooler") for node in nodes)
    assert (health["status"], "every few seconds" in health["detail"]) == ("ok", True)
    assert left == [('"$user", public', "0", 0)] * SIZE


async def test_statements_are_prepared_where_the_pooler_follows_them(start, trace, gate, database):
    if version() < FOLLOWS:
        pytest.skip("this PgBouncer does not follow prepared statements: install 1.21 or newer")
    async with open_pooler("transaction", SIZE) as pooler:
        nodes = await start(3, STORE=by_way_of(pooler, database, prepare="on"), **POLL, **ONE)
        await three_nodes_at_work(nodes, trace, gate)
        for node in nodes:
            await node.kill()


async def test_a_connection_that_is_lent_for_as_long_as_it_is_wanted_is_like_the_servers_own(
    start, trace, gate, database
):
    """Notifications too: these nodes never look by themselves within the time of the test."""
    async with open_pooler("session", 30) as pooler:
        url = by_way_of(pooler, database, prepare="on", listen="on")
        nodes = await start(3, STORE=url, **UNTOLD, **ONE)
        await three_nodes_at_work(nodes, trace, gate)
        for node in nodes:
            await node.kill()
