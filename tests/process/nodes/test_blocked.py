"""A handler that blocks its node's event loop, while another node watches: the lease is kept, but not for ever."""

import pytest

from jobpipe.engine.watchdog import BLOCKED
from jobpipe.store.postgres.address import read_address
from tests.process.nodes.asking import left_behind
from tests.process.running import PATIENCE, until
from tests.store.proxy import open_proxy

pytestmark = pytest.mark.slow

LEASE = 2
SOON = 0.3
"""Seconds before the job that blocks is due: the answer to who enqueued it is out by then."""
LOST = "this node lost its lease"
BLOCKS = {"the event loop is blocked", "the store cannot write", "the event loop was blocked"}
KEPT = "the event loop is blocked: a thread renews the lease"


@pytest.fixture
async def proxy(tmp_path_factory):
    """A way to the server of all tests that can be broken."""
    async with open_proxy(tmp_path_factory.mktemp("way")) as opened:
        yield opened


def events_of(trace, job_id, *nodes):
    """What a job's handlers wrote, each with the place of its node among these."""
    pids = [node.process.pid for node in nodes]
    return [(line["event"], pids.index(line["pid"])) for line in trace() if line["job"] == job_id]


async def blocked(serve, trace, job_id="blocker", payload=None, **settings):
    """A node whose event loop is blocked by a handler, and another one."""
    node = await serve(LEASE=LEASE, WORKERS=1, **settings)
    node.expected_errors |= BLOCKS
    await node.enqueue(job_id, "block-loop", payload=payload, delay=SOON)

    async def runs():
        return bool(events_of(trace, job_id, node))

    await until(runs)
    return node, await serve(LEASE=LEASE, WORKERS=1)


async def test_a_handler_that_blocks_its_node_for_three_leases_runs_once(serve, trace, database):
    """A thread keeps the lease; the other node finds nothing to rescue, and both go on afterwards."""
    node, other = await blocked(serve, trace, payload={"seconds": 3 * LEASE + 1})
    ended = await other.job("blocker", wait=PATIENCE)
    await node.enqueue("next")
    await node.all_ended("next")

    assert (ended["status"], ended["attempt"], ended["error"]) == ("done", 1, None)
    assert events_of(trace, "blocker", node, other) == [("start", 0), ("done", 0)]
    assert node.has_said(KEPT)
    assert not node.has_said(LOST)
    assert await left_behind(database) == (0, 0)


async def test_a_node_that_stays_blocked_ends_and_its_job_runs_elsewhere(serve, trace, gate):
    """After MAX_BLOCKED, with the exit code and the handler's stack; the next node has it after a lease."""
    node, other = await blocked(serve, trace, payload={"until": gate.path}, MAX_BLOCKED=2 * LEASE)
    code = await node.ended()
    gate.open()
    ended = await other.job("blocker", wait=PATIENCE)
    last = await node.said("the event loop was blocked for MAX_BLOCKED")

    assert code == BLOCKED
    assert (last["job"], last["kind"]) == ("blocker", "block-loop")
    assert "in block_loop" in last["stack"]
    assert ended["status"] == "done"
    assert events_of(trace, "blocker", node, other) == [("start", 0), ("start", 1), ("done", 1)]


async def test_a_blocked_node_that_cannot_reach_its_database_loses_its_lease(
    serve, trace, gate, proxy, database
):
    """Another node runs its job meanwhile, and what the blocked one says of it afterwards is refused."""
    way = proxy.url(schema=read_address(database).schema)
    node, other = await blocked(serve, trace, payload={"until": gate.path}, STORE=way)
    node.expected_errors |= {LOST}
    proxy.mode = "refuse"
    proxy.cut()
    other.expected_errors |= BLOCKS  # the same handler blocks it too, until the gate opens

    async def runs_at_both():
        return len(events_of(trace, "blocker", node, other)) > 1

    await until(runs_at_both)
    gate.open()
    ended = await other.job("blocker", wait=PATIENCE)
    proxy.mode = "open"
    await node.said("late write refused")
    afterwards = await other.job("blocker")

    assert events_of(trace, "blocker", node, other)[:2] == [("start", 0), ("start", 1)]
    assert (ended["status"], ended["result"]) == ("done", 2)  # the claim number of the second run
    assert afterwards == ended
