"""Claims beside paused queues and among very many queues, over every store."""

from collections.abc import Sequence

import pytest

from jobpipe.store.base import Store
from jobpipe.store.postgres import exchange as postgres
from jobpipe.store.sqlite import claiming as sqlite
from tests.store.test_contract import NOW, Node, add, new_job


@pytest.fixture
async def node(store: Store) -> Node:
    joined = Node(store)
    await joined.join()
    return joined


@pytest.fixture
def by_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim passes over no more than one job of a paused queue."""
    for writer in (postgres, sqlite):
        monkeypatch.setattr(writer, "PASSED", 1)


async def claimed(node: Node, limit: int = 1, now: float = NOW) -> Sequence[str]:
    return [job.id for job in await node.claim(limit, now)]


async def pause_at_the_head(node: Node) -> None:
    """A paused queue with more and more urgent jobs than all others."""
    await add(node.store, *(new_job(f"p{n}", queue="held", priority=9) for n in range(5)))
    await node.store.pause("held")


@pytest.mark.usefixtures("by_queue")
async def test_a_claim_that_goes_round_paused_queues_keeps_the_order(node: Node) -> None:
    """Priority, run_at and arrival count over all queues, and what is past its expires_at is left."""
    await pause_at_the_head(node)
    await add(
        node.store,
        new_job("low", queue="a", priority=-1),
        new_job("late", queue="z", expires_at=NOW + 5, priority=5),
        new_job("old", queue="z", run_at=NOW - 5),
        new_job("first", queue="b"),
        new_job("high", queue="c", priority=1),
        new_job("second", queue="a"),
        new_job("third", queue="b"),
    )
    found = [
        await claimed(node, limit=3, now=NOW + 6),
        await claimed(node, limit=3),
        await claimed(node, limit=3),
    ]

    assert found == [["high", "old", "first"], ["second", "third", "low"], []]


@pytest.mark.usefixtures("by_queue")
async def test_a_claim_takes_all_it_asked_for_from_one_queue(node: Node) -> None:
    """Though there are others whose jobs come later."""
    await pause_at_the_head(node)
    await add(
        node.store, *(new_job(f"j{n}", queue="a", priority=1) for n in range(8)), new_job("b", queue="b")
    )

    assert await claimed(node, limit=7) == [f"j{n}" for n in range(7)]
    assert await claimed(node, limit=7) == ["j7", "b"]


@pytest.mark.usefixtures("by_queue")
async def test_each_of_very_many_queues_gets_its_turn(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim reads a bounded number of queues, and the next one continues behind them, round and round."""
    for writer in (postgres, sqlite):
        monkeypatch.setattr(writer, "WALKED", 3)
    await pause_at_the_head(node)
    jobs = [new_job(f"q{queue}-{n}", queue=f"q{queue}") for n in range(2) for queue in range(7)]
    await add(node.store, *jobs)
    taken = [await claimed(node, limit=2) for _ in range(8)]

    assert sorted(job for one in taken for job in one) == sorted(job.id for job in jobs)
    assert [len(one) for one in taken] == [2] * 7 + [0]
    assert {job.partition("-")[0] for one in taken[:4] for job in one} > {"q0", "q3", "q6"}


@pytest.mark.usefixtures("by_queue")
async def test_many_paused_queues_hide_no_other(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of them have jobs that are ready."""
    for writer in (postgres, sqlite):
        monkeypatch.setattr(writer, "WALKED", 2)
    for number in range(6):
        await add(node.store, new_job(f"p{number}", queue=f"p{number}", priority=9))
        await node.store.pause(f"p{number}")
    await add(node.store, new_job("a", queue="z"))

    assert await claimed(node) == ["a"]


async def test_a_paused_queue_that_was_never_used_is_passed_over_in_a_claim(node: Node) -> None:
    """And a resumed one is taken from again."""
    await node.store.pause("x")
    await add(node.store, new_job("a"), new_job("b", queue="x", priority=5))
    first = await claimed(node, limit=5)
    await node.store.resume("x")

    assert (first, await claimed(node, limit=5)) == (["a"], ["b"])
