"""Three nodes under load, of which one after another ends, by kill -9 or in order: what was acknowledged ends, once."""

import random
import signal

import pytest
import trio

from tests.process.judge import all_come_to_an_end, check, open_runs
from tests.process.nodes.asking import left_behind, watch_limits
from tests.process.nodes.crew import WORKERS, Crew, tell
from tests.process.running import PATIENCE
from tests.process.test_crash import KILLS, SEED

pytestmark = pytest.mark.slow

# --- kill -9 ----------------------------------------------------------------------------------------------------------


async def test_nodes_killed_under_load_lose_nothing(launch, trace, database):
    await live_and_die(launch, trace, database, kills=2)


@pytest.mark.nodes
async def test_nodes_killed_under_load_again_and_again_lose_nothing(launch, trace, database):
    book = await live_and_die(launch, trace, database, kills=KILLS)

    assert book.cancelled, "nothing was cancelled meanwhile"
    assert book.retried, "nothing was retried meanwhile"
    assert book.refused, "nobody came too late for a group"


async def live_and_die(launch, trace, database, *, kills):
    """Kill one of three nodes after the other while clients use all of them, and see what came of their jobs.

    Before each third one, another one is killed in its start; each fourth time two are killed at once.
    """
    print(f"JOBPIPE_TEST_SEED={SEED}")  # noqa: T201 - pytest shows it when the test fails
    rng = random.Random(SEED)
    async with trio.open_nursery() as nursery:
        crew = Crew(launch, nursery, rng, rules=True)
        await crew.join(3)
        watching = await nursery.start(watched, database)
        killed = 0
        while killed < kills:
            if killed % 3 == 2:
                await crew.kill_in_its_start()
            await crew.answered()
            await trio.sleep(rng.uniform(0, 1))
            for node in rng.sample(crew.nodes, 2 if killed % 4 == 3 else 1):
                await crew.kill(node)
                crew.nodes.remove(node)
                killed += 1
            await crew.join(3 - len(crew.nodes))
        watching.cancel()
        crew.enough()
    jobs = await all_come_to_an_end(crew.nodes[0], crew.book)

    lines = trace()
    check(crew.book, jobs, lines, uncounted=WORKERS * len(crew.deaths), deaths=crew.deaths)
    tell(f"{killed} kills under load", jobs, lines)
    return crew.book


async def watched(database, *, task_status):
    """Watch the limits until the scope that this is started with is cancelled."""
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await watch_limits(database)


# --- orderly ends -----------------------------------------------------------------------------------------------------


@pytest.mark.nodes
async def test_a_rolling_restart_under_load_loses_no_job_and_spends_no_attempt(launch, trace, database):
    await roll(launch, trace, database, rounds=1)


@pytest.mark.nodes
async def test_rolling_restarts_one_after_another_lose_no_job_and_spend_no_attempt(launch, trace, database):
    await roll(launch, trace, database, rounds=max(1, KILLS // 5))


async def roll(launch, trace, database, *, rounds):
    """End one of three nodes after the other by SIGTERM while clients use all of them, each with one in its place."""
    rng = random.Random(SEED)
    async with trio.open_nursery() as nursery:
        crew = Crew(launch, nursery, rng, rules=True)
        await crew.join(3)
        for _ in range(3 * rounds):
            await crew.answered()
            leaving = crew.nodes.pop(0)
            leaving.signal(signal.SIGTERM)
            assert await leaving.ended() == 0
            assert (await leaving.said("drained"))["abandoned"] == []
            await crew.join()
        crew.enough()
    jobs = await all_come_to_an_end(crew.nodes[0], crew.book)

    lines = trace()
    check(crew.book, jobs, lines, deaths={})
    assert open_runs(lines) == set()
    assert await left_behind(database) == (0, 0)
    tell(f"{rounds} rolling restarts", jobs, lines)


# --- nodes that stand still -------------------------------------------------------------------------------------------


@pytest.mark.nodes
async def test_a_node_that_stood_still_for_longer_than_its_lease_writes_nothing_over_the_work_of_others(
    serve, trace, gate
):
    """Its jobs run elsewhere meanwhile; its late word of them is refused, and it takes up work again."""
    still = await serve(WORKERS=1, QUEUE_SIZE=0)
    still.expected_errors.add("this node lost its lease")
    await still.enqueue("active", payload={"until": gate.path})
    await still.runs("active")
    other = await serve(WORKERS=1, QUEUE_SIZE=0)

    await still.stand_still()
    await other.said("recovered a job of a dead node")
    gate.open()
    ended = await other.job("active", wait=PATIENCE)
    still.go_on()
    await still.said("this node lost its lease")
    other.signal(signal.SIGTERM)
    assert await other.ended() == 0
    await still.enqueue("next")
    again = await still.job("next", wait=PATIENCE)
    afterwards = await still.job("active")

    assert (ended["status"], ended["attempt"], ended["result"]) == ("done", 2, 2)
    assert afterwards == ended
    assert again["status"] == "done"
