"""Why a waiting job does not run yet, by the rows that its claim would look at. Over every store."""

import pytest

from jobpipe.job import Job, Outcome, State, Status
from jobpipe.lanes import KeySettings, Limits, PerKey, Rate
from jobpipe.obstacles import Obstacle
from jobpipe.store import base
from jobpipe.store.base import Store
from jobpipe.store.verbs import obstacles
from tests.store.test_contract import LEASE, NOW, Node, add, get, new_job
from tests.store.test_lanes import claimed, end, keyed, some, taken

pytestmark = pytest.mark.long

SLOW = Rate(2, 60.0)


@pytest.fixture
async def node(store: Store) -> Node:
    joined = Node(store)
    await joined.join()
    return joined


async def obstacle(store: Store, job_id: str, now: float = NOW) -> Obstacle | None:
    return await store.obstacle(await get(store, job_id), now)


def turn(place: int, key: str | None = None, *, exact: bool = True) -> Obstacle:
    return Obstacle(reason="turn", key=key, place=place, exact=exact)


async def test_a_job_that_is_not_due_waits_for_its_time(store: Store, node: Node) -> None:
    """Before all else; one whose time has come is as good as ready."""
    await add(store, new_job("a", run_at=NOW + 9))
    await store.pause("default")
    later = await obstacle(store, "a")
    await store.resume("default")

    assert later == Obstacle(reason="not_due", run_at=NOW + 9)
    assert await obstacle(store, "a", NOW + 9) == turn(1)


async def test_a_paused_queue_says_why_and_until_when(store: Store, node: Node) -> None:
    """A pause whose time has come is over."""
    await add(store, new_job("a"))
    await store.pause("default", "deploy", NOW + 5)

    paused = Obstacle(reason="paused", queue="default", pause_reason="deploy", until=NOW + 5)
    assert await obstacle(store, "a") == paused
    assert await obstacle(store, "a", NOW + 5) == turn(1)


async def test_the_first_limit_that_a_claim_meets_is_named(store: Store, node: Node) -> None:
    """The queue's before the key's, how many run before how many start."""
    rate = Rate(1, 60.0)
    key = PerKey(max_running=1, rate=rate)
    await store.put_limits("mail", Limits(max_running=1, rate=rate, per_key=key))
    await add(store, *some("a", 2))
    held = await claimed(node, 9)
    found = [await obstacle(store, "a1")]
    for limits in (Limits(rate=rate, per_key=key), Limits(per_key=key), Limits(per_key=PerKey(rate=rate))):
        await store.put_limits("mail", limits)
        found.append(await obstacle(store, "a1"))
    await store.pause_key("mail", "a")
    found.append(await obstacle(store, "a1"))

    assert [job.id for job in held] == ["a0"]
    assert found == [
        Obstacle(reason="queue_full", queue="mail", running=1, max_running=1),
        Obstacle(reason="rate", queue="mail", until=NOW + 60),
        Obstacle(reason="key_full", key="a", running=1, max_running=1),
        Obstacle(reason="key_rate", key="a", until=NOW + 60),
        Obstacle(reason="key_paused", key="a"),
    ]
    assert await taken(node, 9, NOW + 60) == []
    await store.resume_key("mail", "a")
    assert await obstacle(store, "a1", NOW + 60) == turn(1, "a")
    assert await taken(node, 9, NOW + 60) == ["a1"]


async def test_a_key_goes_by_its_own_limit_where_it_has_one(store: Store, node: Node) -> None:
    """And jobs without a key in a gated queue by that of each key."""
    await store.put_limits("mail", Limits(per_key=PerKey(max_running=1)))
    await store.put_key("mail", "a", KeySettings(max_running=2))
    await add(store, *some("a", 3), *some(None, 2))
    await taken(node, 9)

    assert await obstacle(store, "a2") == Obstacle(reason="key_full", key="a", running=2, max_running=2)
    assert await obstacle(store, "none1") == Obstacle(reason="key_full", key="", running=1, max_running=1)


async def test_a_limit_that_has_room_again_is_no_obstacle(store: Store, node: Node) -> None:
    """Though the lane is marked full until a claim looks."""
    await store.put_limits("mail", Limits(max_running=1))
    await add(store, *some(None, 2))
    held = await claimed(node, 9)
    assert await taken(node, 9) == []
    await end(node, *held)

    assert await obstacle(store, "none1") == turn(1, "")


async def test_a_key_that_keeps_order_says_which_job_comes_first(store: Store, node: Node) -> None:
    """Also one that waits for its time; and whether it is stopped."""
    await store.put_limits("mail", Limits(per_key=PerKey(ordered=True, on_failure="stop")))
    await add(store, keyed("a", "k"), keyed("b", "k"), new_job("c", queue="mail"))
    found = [await obstacle(store, "b"), await obstacle(store, "a")]
    (held,) = [job for job in await claimed(node, 9) if job.id == "a"]
    found.append(await obstacle(store, "b"))
    await node.settle(held, Outcome.RETRY)
    found.append(await obstacle(store, "b"))
    (held,) = await claimed(node, 9, NOW + 99)
    await node.settle(held, Outcome.FAIL)
    found.append(await obstacle(store, "b"))
    await store.pause_key("mail", "k")
    found.append(await obstacle(store, "b"))
    await store.resume_key("mail", "k")
    found.append(await obstacle(store, "b"))

    behind = Obstacle(reason="key_order", key="k", behind="a")
    stopped = Obstacle(reason="key_stopped", key="k", stopped_by="a")
    paused = Obstacle(reason="key_paused", key="k")
    assert found == [behind, turn(1, "k"), behind, behind, stopped, paused, turn(1, "k")]


@pytest.mark.parametrize("queues", [None, frozenset({"default"}), frozenset({"mail"})])
async def test_a_job_that_no_live_node_would_take_says_so(
    store: Store, queues: frozenset[str] | None
) -> None:
    """The node has to serve its kind and its queue; one that has left serves nothing."""
    node = Node(store)
    await store.join(node.name, NOW, LEASE, frozenset({"echo"}), queues)
    await add(store, new_job("a"), new_job("b", kind="odd"), keyed("c", "k", kind="odd"))
    found = [await obstacle(store, job_id) for job_id in "abc"]
    await store.leave(node.name)

    no_node = Obstacle(reason="no_node", queue="default", kind="echo")
    assert found[0] == (no_node if queues == frozenset({"mail"}) else turn(1))
    assert found[1] == Obstacle(reason="no_node", queue="default", kind="odd")
    assert found[2] == Obstacle(reason="no_node", queue="mail", kind="odd")
    assert await obstacle(store, "a") == no_node


async def test_the_place_in_line_is_the_order_of_the_claims(store: Store, node: Node) -> None:
    """By priority, time and arrival, in its queue; jobs of kinds that nobody serves are in nobody's way."""
    await add(
        store,
        new_job("u", kind="odd", priority=9),
        *(new_job(f"j{number}", priority=number % 2) for number in range(4)),
        new_job("x", queue="other", priority=9),
    )
    places = [(await obstacle(store, f"j{number}")) for number in range(4)]

    assert places == [turn(3), turn(1), turn(4), turn(2)]
    assert await taken(node, 9) == ["x", "j1", "j3", "j0", "j2"]


async def test_in_a_lane_the_place_is_among_the_jobs_of_the_key(store: Store, node: Node) -> None:
    """Of kinds that are served: a claim passes over the others."""
    await add(store, *some("a", 3), *some("b", 5), keyed("u", "a", kind="odd", priority=9))

    assert [await obstacle(store, f"a{number}") for number in range(3)] == [
        turn(place, "a") for place in (1, 2, 3)
    ]


async def test_the_place_of_a_job_that_stood_aside_is_among_its_kind(store: Store, node: Node) -> None:
    """Of its own queue, once a node serves it."""
    odd = [new_job(f"o{number}", kind="odd") for number in range(3)]
    await add(store, *odd, new_job("p", kind="odd", queue="other"), new_job("a"))
    assert await taken(node, 9) == ["a"]
    await store.join("late", NOW, LEASE, frozenset({"odd", "echo"}))

    assert [await obstacle(store, job_id) for job_id in ("o0", "o2")] == [turn(1), turn(3)]
    assert await obstacle(store, "p") == turn(1)


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_place_far_behind_is_a_bound(
    store: Store, node: Node, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many jobs are counted and no more, whatever comes behind."""
    monkeypatch.setattr(obstacles, "PLACES", 3)
    await add(store, *some(key, 6))
    name = key or "none"
    found = [await obstacle(store, f"{name}{number}") for number in (2, 3, 5)]

    assert base.PLACES > 3
    assert found == [
        turn(3, key),
        turn(4, key, exact=False),
        turn(4, key, exact=False),
    ]


async def test_a_claimed_job_is_next_until_it_begins(store: Store, node: Node) -> None:
    await add(store, new_job("a"), new_job("b"))
    await taken(node, 1)

    assert await obstacle(store, "a") == turn(1)


@pytest.mark.parametrize("status", sorted(set(Status) - {Status.QUEUED}))
async def test_a_job_that_is_not_as_it_was_read_has_no_obstacle(
    store: Store, node: Node, status: Status
) -> None:
    """It has changed since, or runs, or has ended, or is gone."""
    await add(store, new_job("a"))
    job = await get(store, "a")

    assert await store.obstacle(Job(job.asked, State(status)), NOW) is None
    assert await store.obstacle(Job(new_job("gone"), State(Status.QUEUED)), NOW) is None


async def test_a_retry_waits_for_its_time(store: Store, node: Node) -> None:
    await add(store, new_job("a"))
    (job,) = await claimed(node, 1)
    await node.settle(job, Outcome.RETRY, NOW, run_at=NOW + 7)

    assert await obstacle(store, "a") == Obstacle(reason="not_due", run_at=NOW + 7)
