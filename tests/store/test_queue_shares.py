"""Claims that name queues: their shares, their order, and what they leave alone. Over every store."""

from collections import Counter
from collections.abc import Sequence

import psycopg
import pytest

from jobpipe.job import NewJob
from jobpipe.store.base import OTHERS, Batch, ClaimRequest, Receipts, Share, Store
from jobpipe.store.postgres import exchange as postgres
from jobpipe.store.postgres import open_postgres
from jobpipe.store.sqlite import claiming as sqlite
from tests.store.server import server_url, with_query
from tests.store.test_contract import KINDS, LEASE, NOW, Node, add, get, new_job

pytestmark = pytest.mark.long

ECHO, DEMO, BOTH = frozenset({"echo"}), frozenset({"demo"}), frozenset({"echo", "demo"})


@pytest.fixture
async def node(store: Store) -> Node:
    joined = Node(store)
    await joined.join()
    return joined


async def exchanged(node: Node, limit: int, *shares: tuple[str, int], now: float = NOW) -> Receipts:
    claim = ClaimRequest(limit=limit, kinds=node.kinds, queues=[Share(*share) for share in shares])
    return await node.store.exchange(Batch(node=node.name, now=now, claims=[claim]))


async def taken(node: Node, limit: int, *shares: tuple[str, int], now: float = NOW) -> Sequence[str]:
    """The ids that it gets when it asks until nothing more is ready, as the engine does."""
    ids: list[str] = []
    while True:
        receipts = await exchanged(node, limit - len(ids), *shares, now=now)
        ids += [job.id for job in receipts.claimed]
        if len(ids) == limit or not receipts.more_ready:
            return ids


def some(queue: str, jobs: int, **how: object) -> list[NewJob]:
    """Jobs a0, a1, ... of the queue a."""
    return [new_job(f"{queue}{number}", queue=queue, **how) for number in range(jobs)]


async def test_each_queue_gives_its_share(store: Store, node: Node) -> None:
    """Whatever the others have, and whichever came first."""
    await add(store, *some("a", 20, priority=5), *some("b", 20), *some("c", 20, priority=9))

    assert await taken(node, 6, ("b", 3), ("a", 2), ("c", 1)) == ["c0", "a0", "a1", "b0", "b1", "b2"]


async def test_what_a_queue_leaves_goes_to_the_others_by_their_shares(store: Store, node: Node) -> None:
    """Round by round."""
    await add(store, *some("a", 20), *some("b", 3), *some("c", 1))
    first = await taken(node, 8, ("b", 2), ("c", 4), ("a", 2))
    then = await taken(node, 8, ("b", 2), ("c", 4), ("a", 2))

    assert sorted(first) == ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "c0"]
    assert sorted(then) == sorted(f"a{number}" for number in range(4, 12))


async def test_shares_are_given_again_until_the_limit_is_reached(store: Store, node: Node) -> None:
    """In the order of the claim."""
    await add(store, *some("a", 20), *some("b", 20))
    found = Counter(one[0] for one in await taken(node, 17, ("none", 9), ("a", 3), ("b", 1)))

    assert found == {"a": 13, "b": 4}


async def test_shares_may_be_more_than_the_limit_together(store: Store, node: Node) -> None:
    """Those who come first give theirs, up to the limit: a queue that may be empty is asked before others."""
    await add(store, *some("a", 20), *some("b", 20))
    without = await taken(node, 4, ("c", 3), ("b", 2), ("a", 2))
    await add(store, *some("c", 20))
    then = await taken(node, 4, ("c", 3), ("b", 2), ("a", 2))

    assert sorted(without) == ["a0", "a1", "b0", "b1"]
    assert sorted(then) == ["b2", "c0", "c1", "c2"]


async def test_a_share_of_none_takes_what_is_left(store: Store, node: Node) -> None:
    """Where a claim is for fewer jobs than there are queues."""
    await add(store, *some("b", 1), *some("c", 1))
    order = (("a", 1), ("b", 0), ("c", 0))
    found = [await taken(node, 1, *order) for _ in range(3)]

    assert found == [["b0"], ["c0"], []]


async def test_within_a_queue_the_order_is_that_of_all_claims(store: Store, node: Node) -> None:
    """Priority, run_at, arrival; what is past its expires_at is left."""
    await add(
        store,
        new_job("low", queue="a", priority=-1),
        new_job("late", queue="a", expires_at=NOW + 5, priority=9),
        new_job("old", queue="a", run_at=NOW - 5),
        new_job("first", queue="a"),
        new_job("high", queue="a", priority=1),
        new_job("other", queue="b", priority=9),
    )

    assert await taken(node, 3, ("a", 1), now=NOW + 6) == ["high", "old", "first"]
    assert await taken(node, 3, ("a", 3)) == ["low"]


async def test_other_queues_are_left_alone(store: Store, node: Node) -> None:
    """However urgent their jobs."""
    await add(store, *some("x", 5, priority=9), *some("a", 1))
    receipts = await exchanged(node, 3, ("a", 3))

    assert [job.id for job in receipts.claimed] == ["a0"]
    assert (receipts.more_ready, receipts.waiting) == (False, 5)


async def test_all_others_are_one_queue(store: Store, node: Node) -> None:
    """In the order of all their jobs, with a share and a place like any other."""
    await add(store, *some("a", 9, priority=9), *some("x", 3), *some("y", 3, priority=1))
    first = await taken(node, 4, (OTHERS, 2), ("a", 2))
    then = await taken(node, 20, (OTHERS, 9), ("a", 9))

    assert first == ["a0", "a1", "y0", "y1"]
    assert then == [*(f"a{number}" for number in range(2, 9)), "y2", "x0", "x1", "x2"]


@pytest.mark.parametrize("passed", [1, 10_000])
async def test_many_jobs_of_the_named_queues_do_not_hide_the_others(
    store: Store, node: Node, passed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read queue by queue then, and each has its turn."""
    for writer in (postgres, sqlite):
        monkeypatch.setattr(writer, "PASSED", passed)
        monkeypatch.setattr(writer, "WALKED", 2)
    await add(store, *some("a", 30, priority=9))
    others = [new_job(f"{queue}{number}", queue=queue) for number in range(2) for queue in "vwxyz"]
    await add(store, *others)
    found = [await taken(node, 2, (OTHERS, 1), ("a", 1)) for _ in range(10)]

    assert sorted(job for one in found for job in one if job[0] != "a") == sorted(job.id for job in others)
    assert [len(one) for one in found] == [2] * 10


async def test_paused_queues_give_nothing(store: Store, node: Node) -> None:
    """Named or not; their share goes to the others."""
    await add(store, *some("a", 3), *some("b", 3), *some("x", 3), *some("y", 3))
    await store.pause("a")
    await store.pause("x")
    found = await taken(node, 20, ("a", 10), ("b", 1), (OTHERS, 1))
    await store.resume("a")

    assert found == ["b0", "b1", "b2", "y0", "y1", "y2"]
    assert await taken(node, 2, ("a", 1), ("b", 1)) == ["a0", "a1"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_jobs_of_other_kinds_are_neither_taken_nor_in_the_way(store: Store, when: str) -> None:
    """Whether they were marked when they came, or are met by the claim."""
    jobs = [
        *(new_job(f"d{n}", kind="demo", queue="a", priority=9) for n in range(7)),
        *(new_job(f"x{n}", kind="demo", queue="x", priority=9) for n in range(7)),
        *some("a", 3),
        *some("b", 2),
        *some("y", 2),
    ]
    if when == "before":
        await add(store, *jobs)
    echo = Node(store, "echoes", ECHO)
    await echo.join()
    if when == "after":
        await add(store, *jobs)

    assert sorted(await taken(echo, 5, ("a", 4), ("b", 1))) == ["a0", "a1", "a2", "b0", "b1"]
    assert await taken(echo, 9, ("a", 5), ("b", 1), (OTHERS, 3)) == ["y0", "y1"]
    assert (await get(store, "d0")).state.claim == 0


async def test_jobs_that_stand_aside_for_others_are_merged_in(store: Store) -> None:
    """In order, of the queues that are asked for."""
    echo, both = Node(store, "echoes", ECHO), Node(store, "both", BOTH)
    await echo.join()
    await add(
        store,
        new_job("a2", queue="a"),
        new_job("a1", queue="a", kind="demo", priority=1),
        new_job("a3", queue="a", kind="demo"),
        *(new_job(f"x{n}", queue="x", kind="demo", priority=9) for n in range(50)),
        new_job("b1", queue="b", kind="demo"),
        new_job("y1", queue="y", kind="demo", priority=9),
    )
    await both.join()
    first = await taken(both, 3, ("a", 2), ("b", 1))
    then = await taken(both, 3, ("a", 1), ("x", 1), (OTHERS, 1))

    assert first == ["a1", "a2", "b1"]
    assert sorted(then) == ["a3", "x0", "y1"]


async def test_claims_of_one_exchange_take_one_after_another(store: Store, node: Node) -> None:
    """What the first has taken is not there for the second."""
    await add(store, *some("a", 3), *some("b", 3))
    claims = [
        ClaimRequest(limit=2, kinds=KINDS, queues=[Share("a", 2)]),
        ClaimRequest(limit=2, kinds=KINDS),
        ClaimRequest(limit=5, kinds=KINDS, queues=[Share("b", 1), Share("a", 1)]),
    ]
    receipts = await store.exchange(Batch(node=node.name, now=NOW, claims=claims))

    assert [[job.id for job in one] for one in receipts.claims] == [["a0", "a1"], ["a2", "b0"], ["b1", "b2"]]


async def test_a_job_that_cannot_be_claimed_is_put_out_of_the_way_of_its_queue(
    store: Store, node: Node
) -> None:
    """The one that such a claim takes first."""
    await add(store, *some("x", 1, priority=9), *some("a", 2), *some("b", 1))
    named = ClaimRequest(limit=1, kinds=KINDS, queues=[Share("b", 1), Share("a", 0)])
    others = ClaimRequest(limit=1, kinds=KINDS, queues=[Share(OTHERS, 1), Share("a", 0)])
    failed = [
        await store.sideline(Batch(node=node.name, now=NOW, claims=[claim]), "no")
        for claim in (named, named, others, named, others)
    ]

    assert failed == ["b0", "a0", "x0", "a1", None]


# --- what is told of them ---------------------------------------------------------------------------------------------


async def test_an_overview_of_some_queues_knows_what_is_ready_there(store: Store, node: Node) -> None:
    """Paused ones, other kinds and other queues do not count."""
    await add(store, *some("x", 1), new_job("d", kind="demo", queue="a"), *some("p", 1))
    await store.pause("p")

    async def ready(kinds: frozenset[str], *queues: str) -> bool:
        return (await store.overview(kinds, frozenset(queues))).ready

    echo = Node(store, "echoes", ECHO)
    await echo.join()
    await taken(echo, 5, ("a", 1))  # meets the job of the other kind
    assert [
        await ready(ECHO, "x"),
        await ready(ECHO, "a"),
        await ready(BOTH, "a"),
        await ready(ECHO, "p", "b"),
        await ready(ECHO),
    ] == [True, False, True, False, False]
    assert (await store.overview(ECHO)).ready


async def test_the_queues_that_live_nodes_serve_are_known(store: Store) -> None:
    """Those of all nodes together; one that names none serves all, and one without kinds serves none."""

    async def join(name: str, kinds: frozenset[str], *queues: str) -> frozenset[str] | None:
        await store.join(name, NOW, LEASE, kinds, frozenset(queues) if queues else None)
        return await store.served_queues()

    assert await store.served_queues() == frozenset()
    assert await join("adds", frozenset()) == frozenset()
    assert await join("n1", ECHO, "a", "b") == frozenset("ab")
    assert await join("n2", ECHO, "b", "c") == frozenset("abc")
    assert await join("n1", ECHO, "d") == frozenset("bcd")
    assert await join("n3", ECHO) is None
    await store.leave("n3")
    assert await store.served_queues() == frozenset("bcd")


async def test_queues_with_ready_jobs_that_nobody_serves_are_found(store: Store, node: Node) -> None:
    """Not those that are paused, empty or wait for a time."""
    await add(store, *some("a", 2), *some("b", 2), *some("c", 2), *some("later", 1, run_at=NOW + 9))
    await add(store, *some("held", 1), *some("paused", 1), *some("z", 1))
    await store.pause("paused")
    await taken(node, 1, ("held", 1))

    assert await store.unserved_queues(frozenset({"b", "none"})) == ["a", "c", "z"]
    assert await store.unserved_queues(frozenset("abcz")) == []


# --- many nodes -------------------------------------------------------------------------------------------------------


async def test_what_another_node_is_taking_is_passed_over(schema: str) -> None:
    """Of each queue, and the claim is full nevertheless."""
    async with open_postgres(with_query(server_url(), schema=schema), leases="caller") as store:
        node = Node(store)
        await node.join()
        await add(store, *some("a", 9), *some("b", 9), *some("x", 9))
        with psycopg.connect(server_url()) as other:
            other.execute(
                f"select from {schema}.live l join {schema}.jobs j using (seq) "
                "where j.id in ('a0', 'a1', 'b0', 'x0', 'x1') for update of l".encode()
            )
            found = await taken(node, 6, ("a", 3), ("b", 1), (OTHERS, 2))

    assert Counter(one[0] for one in found) == {"a": 4, "b": 1, "x": 1}
