"""`GET /health`: in each phase, and for each thing that can be broken, within the time that its askers have."""

import pytest
import trio

from jobpipe.cli import HEALTH_TIMEOUT
from jobpipe.engine.probe import PATIENCE, SHORTEST_NAP
from jobpipe.version import VERSION
from tests.api.client import Breakable, open_door


async def asked(door):
    """The answer of /health, and how many seconds it took."""
    begun = trio.current_time()
    answer = await door.get("/health")
    assert answer.headers["content-type"] == "application/json"
    if answer.status_code == 503:
        assert answer.headers["retry-after"] == "1"
    return answer.status_code, answer.json(), trio.current_time() - begun


async def test_a_node_that_works_says_ok_and_counts(either_door):
    await either_door.post("/queues/mail/pause")
    for more in ({}, {"delay": 60}, {"delay": 60}):
        await either_door.enqueue(queue="mail", **more)
    await either_door.enqueue(kind="play", payload="hold")
    await either_door.stage.begun.wait()

    status, told, _ = await asked(either_door)

    assert (status, told["status"], told["version"]) == (200, "ok", VERSION)
    assert (told["node"], told["store"]) == ("n1", either_door.store.name)
    assert (told["workers"], told["busy"]) == (2, 1)
    assert told["queued"] in (1, 2)  # the one that runs is shown as queued until its start is written
    assert (told["scheduled"], told["retrying"]) == (2, 0)
    assert "detail" not in told


async def test_a_node_that_drains_says_so_until_its_end(door, autojump_clock):
    await door.enqueue(id="a", kind="play", payload="hold")
    await door.stage.begun.wait()
    door.node.drain()
    status, told, _ = await asked(door)
    door.stage.release.set()
    await trio.sleep(10)
    last_status, last, seconds = await asked(door)

    assert (status, told["status"], told["busy"]) == (503, "draining", 1)
    assert (last_status, last["status"], seconds) == (503, "stopped", 0)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("refuses", "the store cannot be read: the disk is full"),
        ("hangs", "the store does not respond"),
        ("hangs_writing", "the store does not complete a write"),
        ("refuses_writing", "the store cannot write: the disk is full"),
    ],
)
async def test_a_store_that_is_broken_is_told_in_time(autojump_clock, fault, words):
    store = Breakable()
    async with open_door(store) as door:
        setattr(store, fault, True)
        status, told, seconds = await asked(door)
        setattr(store, fault, False)

        assert (status, told["status"], told["detail"]) == (503, "broken", words)
        assert seconds <= PATIENCE
        assert (told["queued"] is None) == (fault in ("refuses", "hangs"))


async def test_a_store_that_works_again_is_told(autojump_clock):
    store = Breakable()
    async with open_door(store) as door:
        store.refuses = True
        await asked(door)
        store.refuses = False
        await trio.sleep(30)

        assert (await asked(door))[:2][0] == 200


async def test_an_intake_that_takes_nothing_is_told_in_time(autojump_clock):
    store = Breakable()
    store.keeps = True
    async with open_door(store) as door:
        await door.enqueue(id="a")

        status, told, seconds = await asked(door)

        assert (status, told["status"]) == (503, "broken")
        assert "no job is claimed" in told["detail"]
        assert seconds <= PATIENCE


async def test_jobs_that_others_took_are_no_fault(autojump_clock):
    """They were ready when the probe began, and this node found none of them."""
    store = Breakable()
    store.keeps = True
    async with open_door(store) as door, trio.open_nursery() as nursery:
        await door.enqueue(id="a")

        async def taken():
            await trio.sleep(PATIENCE / 2)
            await store.delete(["a"], 0.0)

        nursery.start_soon(taken)
        status, told, _ = await asked(door)

        assert (status, told["status"]) == (200, "ok")


async def test_jobs_that_wait_are_no_fault_while_every_worker_is_busy(door, autojump_clock):
    for _ in range(100):
        await door.enqueue(kind="play", payload="hold")
    await trio.sleep(1)

    status, told, seconds = await asked(door)

    assert (status, told["busy"], told["queued"], seconds) == (200, 2, 98, pytest.approx(SHORTEST_NAP))


async def test_jobs_of_a_paused_queue_are_no_fault(door, autojump_clock):
    await door.post("/queues/default/pause")
    await door.enqueue()

    status, told, seconds = await asked(door)

    assert (status, told["queued"], seconds) == (200, 1, pytest.approx(SHORTEST_NAP))


async def test_a_busy_node_is_well(either_door):
    """Though at each moment something waits to be written, and jobs are ready."""
    async with trio.open_nursery() as nursery:

        async def load():
            while True:
                await either_door.post("/enqueue/bulk", json=[{}] * 20)

        for _ in range(3):
            nursery.start_soon(load)
        answers = [await asked(either_door) for _ in range(20)]
        nursery.cancel_scope.cancel()

    assert {status for status, _, _ in answers} == {200}


async def test_the_worst_case_leaves_time_for_the_answer():
    """`jobpipe health`, the HEALTHCHECK of the image, gives up after `HEALTH_TIMEOUT`."""
    assert PATIENCE <= HEALTH_TIMEOUT - 1


async def test_nothing_is_left_behind_by_one_who_asks_and_hangs_up(autojump_clock, parts):
    store = Breakable()
    async with open_door(store) as door:
        store.hangs = True
        answer = await door.call("/health", parts(whole=False), method="GET")
        store.hangs = False

        assert answer.status is None
        assert (await asked(door))[0] == 200


async def test_a_handler_that_ignores_its_cancel_is_shown(door, autojump_clock):
    """The node is well; its worker has not been given away."""
    await door.enqueue(id="a", kind="play", payload="hold, then clean up")
    await door.stage.begun.wait()
    await door.post("/jobs/a/cancel")
    soon = (await door.get("/health")).json()["lingering"]
    await trio.sleep(5)
    late = await door.get("/health")
    door.stage.cleaned.set()
    await door.ended("a")
    over = (await door.get("/health")).json()["lingering"]

    assert (soon, over) == ([], [])
    assert late.status_code == 200
    assert [one | {"seconds": 0} for one in late.json()["lingering"]] == [
        {"id": "a", "kind": "play", "attempt": 1, "asked_by": "cancel", "seconds": 0}
    ]
