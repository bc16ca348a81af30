"""The database goes away for its nodes, or for one of them: each says so, and none needs a hand afterwards."""

import random
import re
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest
import trio

from jobpipe.store.postgres.address import read_address
from tests.process.judge import all_come_to_an_end, check
from tests.process.nodes.asking import left_behind
from tests.process.nodes.crew import WORKERS, Crew, tell
from tests.process.running import PATIENCE, until
from tests.process.test_crash import KILLS, SEED
from tests.store.proxy import Proxy, open_proxy
from tests.store.server import OwnServer

pytestmark = pytest.mark.slow

LOST = "this node lost its lease"
CANNOT_WRITE = "the store cannot write"


@pytest.fixture
def server() -> Iterator[OwnServer]:
    """A server of this test's own, which writes as safely as PostgreSQL does by default."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        own = OwnServer(Path(folder) / "data")
        stack.callback(own.delete)
        yield own


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """A way to the server of all tests that can be broken."""
    # Not in pytest's folder: the name of a socket must be short.
    with tempfile.TemporaryDirectory() as folder:
        async with open_proxy(Path(folder)) as opened:
            yield opened


async def health(node, status):
    """What /health says once it says this."""
    found = {}

    async def so():
        found.update((await node.http.get("/health")).json())
        return bool(found["status"] == status)

    await until(so)
    return found


async def at_each(nodes, ask):
    """What each node answers, asked at the same time."""
    answers = {}

    async def asked(place, node):
        answers[place] = await ask(node)

    async with trio.open_nursery() as nursery:
        for place, node in enumerate(nodes):
            nursery.start_soon(asked, place, node)
    return [answers[place] for place in range(len(nodes))]


def enqueue_refused(node):
    return node.http.post("/enqueue", json={"id": "refused", "kind": "work", "payload": {}})


def lives_of(trace, job_id, nodes):
    """What a job's handlers wrote, each with the place of its node among these."""
    pids = [node.process.pid for node in nodes]
    return [(line["event"], pids.index(line["pid"])) for line in trace() if line["job"] == job_id]


# --- the server stops and starts --------------------------------------------------------------------------------------


async def test_a_database_that_is_stopped_and_started_under_load_loses_nothing(launch, trace, gate, server):
    """Each node says what is wrong and refuses new jobs; what runs goes on, and all take up work by themselves."""
    rng = random.Random(SEED)
    async with trio.open_nursery() as nursery:
        crew = Crew(lambda **more: launch(STORE=server.url, LEASE=60, **more), nursery, rng)
        await crew.join(3)
        await crew.nodes[0].enqueue("active", payload={"until": gate.path}, priority=100, max_retries=0)
        crew.book.stored("plain", {"id": "active"})
        await crew.nodes[0].runs("active")
        for node in crew.nodes:
            node.expected_errors.add(CANNOT_WRITE)
        await trio.to_thread.run_sync(server.stop)
        refused = await at_each(crew.nodes, enqueue_refused)
        told = await at_each(crew.nodes, lambda node: health(node, "broken"))
        gate.open()
        await trio.to_thread.run_sync(server.start)
        await at_each(crew.nodes, lambda node: health(node, "ok"))
        await crew.answered()
        crew.enough()
    jobs = await all_come_to_an_end(crew.nodes[0], crew.book)

    assert [
        one["detail"] for one in told if not re.match(r"the store .*: postgresql://", one["detail"])
    ] == []
    assert [answer.status_code for answer in refused] == [503] * 3
    assert {answer.json()["code"] for answer in refused} == {"store_unavailable"}
    assert [answer for answer in refused if "Retry-After" not in answer.headers] == []
    check(crew.book, jobs, trace(), deaths={})
    assert jobs["active"]["attempt"] == 1
    assert await left_behind(server.url) == (0, 0)
    tell("a stop of the database", jobs, trace())


@pytest.mark.nodes
async def test_a_database_that_is_away_again_and_again_for_longer_than_a_lease_or_not_loses_nothing(
    launch, trace, server
):
    rng = random.Random(SEED)
    async with trio.open_nursery() as nursery:
        crew = Crew(lambda **more: launch(STORE=server.url, LEASE=3, **more), nursery, rng)
        await crew.join(3)
        for node in crew.nodes:
            node.expected_errors |= {CANNOT_WRITE, LOST}
        stops = max(1, KILLS // 5)
        for _ in range(stops):
            await crew.answered()
            await trio.sleep(rng.uniform(0, 1))
            await trio.to_thread.run_sync(server.stop)
            await trio.sleep(rng.choice((0, rng.uniform(0, 2), rng.uniform(2, 8))))
            await trio.to_thread.run_sync(server.start)
            await at_each(crew.nodes, lambda node: health(node, "ok"))
        crew.enough()
    jobs = await all_come_to_an_end(crew.nodes[0], crew.book)

    check(crew.book, jobs, trace(), uncounted=3 * WORKERS * stops, deaths={})
    tell(f"{stops} stops of the database", jobs, trace())


# --- the ways to it break ---------------------------------------------------------------------------------------------


@pytest.mark.nodes
async def test_nodes_whose_ways_to_the_database_break_at_random_moments_lose_nothing(launch, trace, database):
    """Connections that are cut or refused or fall silent, commits that are lost, and commits whose answers are."""
    rng, schema = random.Random(SEED), read_address(database).schema
    async with AsyncExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(3)]
        ways = [await stack.enter_async_context(open_proxy(folder)) for folder in folders]
        async with trio.open_nursery() as nursery:
            crew = Crew(lambda **more: launch(LEASE=6, **more), nursery, rng)
            for way in ways:
                await crew.join(STORE=way.url(schema=schema))
            for node in crew.nodes:
                node.expected_errors |= {CANNOT_WRITE, LOST}
            for _ in range(KILLS):
                await crew.answered()
                await trio.sleep(rng.uniform(0, 0.5))
                await break_and_mend(rng.choice(ways), rng)
            await at_each(crew.nodes, lambda node: health(node, "ok"))
            crew.enough()
        jobs = await all_come_to_an_end(crew.nodes[0], crew.book)
        for node in crew.nodes:  # before their ways go
            await node.kill()

    check(crew.book, jobs, trace(), uncounted=WORKERS * KILLS, deaths={})
    tell(f"{KILLS} breaks of the ways to the database", jobs, trace())


async def break_and_mend(way, rng):
    """Break a way in one of five ways; for so long that the lease of its node is lost, or not."""
    way.mode = rng.choice(("open", "refuse", "silent", "lose the commit", "lose its answer"))
    if way.mode in ("open", "refuse"):
        way.cut()
    await trio.sleep(rng.choice((rng.uniform(0, 1), rng.uniform(0, 3), rng.uniform(3, 10))))
    way.mode = "open"


# --- one node is cut off ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["silent", pytest.param("refuse", marks=pytest.mark.nodes)])
async def test_a_node_that_is_cut_off_stops_its_jobs_before_another_one_runs_them(
    serve, trace, gate, proxy, database, mode
):
    """Also when it is told nothing, because nobody answers. It joins again when it can."""
    way = proxy.url(schema=read_address(database).schema)
    alone = await serve(STORE=way, WORKERS=1, QUEUE_SIZE=0)
    alone.expected_errors |= {LOST, CANNOT_WRITE}
    await alone.enqueue("active", payload={"until": gate.path})
    await alone.runs("active")
    other = await serve(WORKERS=1, QUEUE_SIZE=0)

    proxy.mode = mode
    if mode == "refuse":
        proxy.cut()
    told = await health(alone, "broken")
    await alone.said(LOST)
    await other.said("recovered a job of a dead node")
    await other.runs("active")
    lives = lives_of(trace, "active", [alone, other])
    proxy.mode = "open"
    well = await health(alone, "ok")
    gate.open()
    ended = await alone.job("active", wait=PATIENCE)
    other.signal(signal.SIGTERM)
    assert await other.ended() == 0
    await alone.enqueue("next")
    afterwards = await alone.job("next", wait=PATIENCE)

    assert told["detail"].startswith("the store ")
    assert lives == [("start", 0), ("cancelled", 0), ("start", 1)]
    assert (well["busy"], ended["status"], ended["attempt"]) == (0, "done", 2)
    assert (afterwards["status"], afterwards["attempt"]) == ("done", 1)
    assert lives_of(trace, "next", [alone, other]) == [("start", 0), ("done", 0)]
