"""Strict order within keys. Over every store."""

import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from jobpipe.job import Debounce, Options, Outcome, Status
from jobpipe.lanes import NO_LIMITS, KeySettings, Limits, PerKey, Rate
from jobpipe.store.base import OTHERS, Batch, ClaimRequest, Retention, Share, Store
from tests.store.test_contract import LEASE, NOW, Node, add, edit, get, new_job
from tests.store.test_lanes import claimed, end, exchanged, keyed, some, taken

pytestmark = pytest.mark.long

ORDERED = Limits(per_key=PerKey(ordered=True))
STOPPING = Limits(per_key=PerKey(ordered=True, on_failure="stop"))
KEEP = Retention(math.inf, math.inf, 1 << 40, 1 << 50)


@pytest.fixture
async def node(store: Store) -> Node:
    joined = Node(store)
    await joined.join(lease_until=NOW + 1e6)
    return joined


@pytest.fixture
async def other(store: Store) -> Node:
    joined = Node(store, "other")
    await joined.join(lease_until=NOW + 1e6)
    return joined


async def one(node: Node, now: float = NOW, **how: Any) -> Any:
    """The only job that it gets, though it asks for many."""
    jobs = await claimed(node, 9, now, **how)
    assert len(jobs) == 1
    return jobs[0]


async def run(node: Node, now: float = NOW, limit: int = 50) -> Sequence[str]:
    """The ids of all jobs that run until nothing more is ready, in the order of their claims."""
    ran = list[str]()
    while jobs := await claimed(node, limit, now):
        ran += [job.id for job in jobs]
        await end(node, *jobs, now=now)
    return ran


# The order


async def test_of_each_key_one_job_at_a_time_in_the_order_of_arrival(
    store: Store, node: Node, other: Node
) -> None:
    """Whatever their priorities; keys do not wait for each other."""
    await store.put_limits("mail", ORDERED)
    await add(store, keyed("a0", "a", priority=-5), keyed("a1", "a"), keyed("b0", "b", priority=3))
    await add(store, keyed("a2", "a", priority=9))
    first = {job.id: job for job in await claimed(node, 9)}
    none = await taken(other, 9)
    await end(node, first["a0"])
    second = await claimed(other, 9)
    await end(other, *second)

    assert (sorted(first), none) == (["a0", "b0"], [])
    assert [job.id for job in second] == ["a1"]
    assert await taken(node, 9) == ["a2"]


async def test_the_next_job_waits_until_the_first_has_ended_for_good(store: Store, node: Node) -> None:
    """Between its attempts, too, and when it is handed back."""
    await store.put_limits("mail", ORDERED)
    await add(store, *some("a", 2))
    first = await one(node)
    await node.settle(first, Outcome.RETRY, run_at=NOW + 5)
    none = await taken(node, 9)
    again = await one(node, NOW + 5)
    await node.settle(again, None, NOW + 5)
    third = await one(node, NOW + 5)
    await end(node, third, now=NOW + 5, outcome=Outcome.FAIL)

    assert ([first.id, again.id, third.id], none) == (["a0", "a0", "a0"], [])
    assert await taken(node, 9, NOW + 5) == ["a1"]


async def test_a_delayed_first_job_holds_the_rest(store: Store, node: Node) -> None:
    """Until its time has come; others of the queue go on."""
    await store.put_limits("mail", ORDERED)
    await add(store, keyed("a0", "a", run_at=NOW + 5), keyed("a1", "a"), keyed("b0", "b"))

    assert await taken(node, 9) == ["b0"]
    assert (await store.key("mail", "a")).state == "empty"
    assert await run(node, NOW + 5) == ["a0", "a1"]


async def test_a_blocked_first_job_holds_the_rest(store: Store, node: Node) -> None:
    """Until the job has ended on which it depends."""
    await store.put_limits("mail", ORDERED)
    await add(store, new_job("needed"))
    await store.add_dependents([keyed("a0", "a", queue="mail")], atomic=True)
    blocked = new_job("b0", queue="mail", options=Options(key="b", depends_on=("needed",)))
    await store.add_dependents([blocked], atomic=True)
    await add(store, keyed("b1", "b"))
    first = {job.id: job for job in await claimed(node, 9)}
    await end(node, *first.values())

    assert sorted(first) == ["a0", "needed"]
    assert await run(node) == ["b0", "b1"]


async def test_a_blocked_first_job_that_is_cancelled_with_another_holds_nobody(
    store: Store, node: Node
) -> None:
    """Those behind it go on, in the very exchange or the next."""
    await store.put_limits("mail", ORDERED)
    await add(store, new_job("needed"))
    blocked = new_job("a0", queue="mail", options=Options(key="a", depends_on=("needed",)))
    await store.add_dependents([blocked], atomic=True)
    await add(store, keyed("a1", "a"))
    needed = await one(node)
    receipts = await node.settle(needed, Outcome.FAIL)

    assert receipts.more_ready or receipts.claimed == []
    assert (await get(store, "a0")).status is Status.CANCELLED
    assert await taken(node, 9) == ["a1"]


@pytest.mark.parametrize("verb", ["cancel", "delete"])
async def test_whoever_is_behind_a_waiting_job_that_goes_is_next(store: Store, node: Node, verb: str) -> None:
    """Cancelled or deleted, ready or not."""
    await store.put_limits("mail", ORDERED)
    await add(store, keyed("a0", "a", run_at=NOW + 5), keyed("a1", "a"), keyed("a2", "a"))
    none = await taken(node, 9)
    act: Callable[[Sequence[str], float], Coroutine[Any, Any, Any]] = getattr(store, verb)
    await act(["a0"], NOW)
    await act(["a1"], NOW)

    assert none == []
    assert await taken(node, 9) == ["a2"]


@pytest.mark.parametrize("options", [Options(key="a"), Options(key="a", deadline=NOW + 3)])
async def test_whoever_is_behind_a_job_that_expires_is_next(
    store: Store, node: Node, options: Options
) -> None:
    """Or one that has failed at its deadline, in a queue that goes on."""
    await store.put_limits("mail", ORDERED)
    first = new_job("a0", queue="mail", run_at=NOW + 9, expires_at=NOW + 3, options=options)
    await add(store, first, keyed("a1", "a"))
    none = await taken(node, 9)

    assert none == []
    assert await taken(node, 9, NOW + 3) == ["a1"]


async def test_a_job_keeps_its_place_when_it_is_edited_promoted_or_replaced(store: Store, node: Node) -> None:
    """Priority and time do not count within a key."""
    await store.put_limits("mail", ORDERED)
    debounced = Options(key="a", debounce=Debounce("d", 5.0, 50.0))
    await store.add_dependents([new_job("a0", queue="mail", run_at=NOW + 5, options=debounced)], atomic=True)
    await add(store, *[keyed(f"a{number}", "a") for number in (1, 2, 3)])
    await edit(store, "a3", priority=9)
    await store.promote(["a2"], NOW)
    again = new_job("x", queue="mail", created_at=NOW + 1, run_at=NOW + 6, options=debounced)
    await store.add_dependents([again], atomic=True)
    none = await taken(node, 9, NOW + 1)

    assert none == []
    assert await run(node, NOW + 6) == ["a0", "a1", "a2", "a3"]


async def test_jobs_without_a_key_have_no_order(store: Store, node: Node) -> None:
    """They run at once, by priority, beside those that have one."""
    await store.put_limits("mail", ORDERED)
    await add(
        store, keyed("later", run_at=NOW + 5), *some(None, 3), keyed("first", priority=3), *some("a", 2)
    )

    assert sorted(await taken(node, 9)) == ["a0", "first", "none0", "none1", "none2"]


async def test_jobs_of_other_kinds_keep_their_turn(store: Store, node: Node) -> None:
    """A node that cannot run the first job passes over its key, and takes those of others."""
    await store.put_limits("mail", ORDERED)
    await add(store, keyed("a0", "a", kind="unknown"), keyed("a1", "a"), *some("b", 1))
    stranger = Node(store, "stranger", frozenset({"unknown"}))
    await stranger.join(lease_until=NOW + 1e6)
    passed = await taken(node, 1)
    none = await taken(node, 1)
    theirs = await one(stranger)
    await end(stranger, theirs)

    assert (passed, none, theirs.id) == (["b0"], [], "a0")
    assert await taken(node, 9) == ["a1"]


async def test_order_goes_with_limits_turns_and_shares(store: Store, node: Node) -> None:
    """Of more keys than the queue may run, each gets its turn; a key of which none may run gives none."""
    limits = Limits(max_running=2, per_key=PerKey(max_running=3, ordered=True, rate=Rate(60, 60.0, 9)))
    await store.put_limits("mail", limits)
    await add(store, *some("a", 3), *some("b", 3), *some("c", 3), *some("none", 1))
    await store.put_key("mail", "none", KeySettings(max_running=0))
    ran = list[Sequence[str]]()
    for _ in range(6):
        jobs = await claimed(node, 9, NOW, Share("mail", 5), Share(OTHERS, 0))
        ran.append(sorted(job.id for job in jobs))
        await end(node, *jobs)

    assert ran[:3] == [["a0", "b0"], ["a1", "c0"], ["b1", "c1"]]
    assert ran[3:] == [["a2", "b2"], ["c2"], []]


async def test_order_limits_no_claims_ahead(store: Store, node: Node) -> None:
    """The first jobs of many keys may be claimed for workers that are not free yet, each with its turn."""
    await store.put_limits("mail", ORDERED)
    await add(store, *some("a", 2), *some("b", 2))

    assert sorted(await taken(node, 9, free=0)) == ["a0", "b0"]


async def test_a_paused_key_keeps_its_order(store: Store, node: Node) -> None:
    """It goes on where it was."""
    await store.put_limits("mail", ORDERED)
    await add(store, *some("a", 3))
    first = await one(node)
    await store.pause_key("mail", "a")
    await end(node, first)
    none = await taken(node, 9)
    await store.resume_key("mail", "a")

    assert none == []
    assert await run(node) == ["a1", "a2"]


# Crashes


async def test_the_job_of_a_dead_node_keeps_its_turn(store: Store, node: Node) -> None:
    """Before it is rescued, and after that, whether it had begun or not."""
    await store.put_limits("mail", ORDERED)
    await add(store, *some("a", 2), *some("b", 2))
    dead = Node(store, "dead")
    await dead.join()
    held = {job.id: job for job in await claimed(dead, 9)}
    await dead.start(held["a0"])
    before = await taken(node, 9, LEASE + 1)
    await store.rescue("node", LEASE + 1)

    assert (sorted(held), before) == (["a0", "b0"], [])
    assert sorted(await taken(node, 9, LEASE + 1)) == ["a0", "b0"]


async def test_a_job_that_fails_since_its_node_died_ends_its_turn(store: Store, node: Node) -> None:
    """It asked not to be run again; where keys stop, its key stops."""
    await store.put_limits("mail", ORDERED)
    await store.put_limits("strict", STOPPING)
    for queue in ("mail", "strict"):
        options = Options(key="a", on_crash="fail")
        await add(store, new_job(f"{queue}0", queue=queue, options=options), keyed(f"{queue}1", "a", queue))
    dead = Node(store, "dead")
    await dead.join()
    for job in await claimed(dead, 9):
        await dead.start(job)
    await store.rescue("node", LEASE + 1)

    assert await taken(node, 9, LEASE + 1) == ["mail1"]
    assert (await store.key("strict", "a")).stopped_by == "strict0"


# Failures


async def test_a_key_goes_on_behind_a_failed_job(store: Store, node: Node) -> None:
    """Unless it is to stop."""
    await store.put_limits("mail", ORDERED)
    await add(store, *some("a", 2))
    await end(node, await one(node), outcome=Outcome.FAIL)

    assert await taken(node, 9) == ["a1"]


async def stopped(store: Store, node: Node) -> None:
    """Have a key stop at its first job, of three."""
    await store.put_limits("mail", STOPPING)
    await add(store, *some("a", 3), *some("b", 2))
    jobs = {job.id: job for job in await claimed(node, 9)}
    await end(node, jobs["a0"], outcome=Outcome.FAIL)
    await end(node, jobs["b0"])


async def test_a_key_stops_at_a_failed_job(store: Store, node: Node, other: Node) -> None:
    """It shows at which; other keys go on, and what is added waits behind it."""
    await stopped(store, node)
    at_once = await store.key("mail", "a")
    ran = await run(other)
    await add(store, keyed("a3", "a", priority=9))
    none = await taken(node, 9)
    state = await store.key("mail", "a")
    gate = await store.gate("mail", NOW)

    assert (at_once.state, at_once.stopped_by) == ("stopped", "a0")
    assert (ran, none) == (["b1"], [])
    assert (state.state, state.stopped_by, state.waiting) == ("stopped", "a0", 3)
    assert gate is not None
    assert gate.keys["stopped"] == 1
    assert [key.key for key in await store.keys("mail", state="stopped")] == ["a"]
    assert [key.key for key in await store.keys("mail", state="empty")] == []
    assert [key.key for key in await store.keys("mail", state="open")] == []


async def test_a_retry_by_hand_of_the_failed_job_is_first(store: Store, node: Node) -> None:
    """And the key goes on when it is done."""
    await stopped(store, node)
    await run(node)
    await store.retry(["a0"], NOW)

    assert (await store.key("mail", "a")).stopped_by is None
    assert await run(node) == ["a0", "a1", "a2"]


async def test_a_key_goes_on_once_the_failed_job_is_deleted(store: Store, node: Node) -> None:
    """By hand."""
    await stopped(store, node)
    await run(node)
    await store.delete(["a0"], NOW)

    assert await run(node) == ["a1", "a2"]


async def test_a_key_that_is_resumed_goes_on_behind_the_failed_job(store: Store, node: Node) -> None:
    """Also where it was paused meanwhile."""
    await stopped(store, node)
    await run(node)
    await store.pause_key("mail", "a")
    paused = await store.key("mail", "a")
    resumed = await store.resume_key("mail", "a")

    assert (paused.state, paused.stopped_by) == ("paused", "a0")
    assert (resumed.state, resumed.stopped_by) == ("open", None)
    assert await run(node) == ["a1", "a2"]


async def test_a_key_stays_stopped_when_the_failed_job_is_pruned(store: Store, node: Node) -> None:
    """Time alone lets nobody by: it is to be resumed."""
    await stopped(store, node)
    await store.prune(NOW + 9, replace(KEEP, failed_age=1.0))
    none = await taken(node, 9, NOW + 9)
    state = await store.key("mail", "a")
    await store.resume_key("mail", "a")

    assert (await store.get("a0"), none) == (None, ["b1"])
    assert (state.state, state.stopped_by) == ("stopped", "a0")
    assert await run(node) == ["a1", "a2"]


async def test_only_what_failed_stops_a_key(store: Store, node: Node) -> None:
    """Not what was cancelled, or has expired; but what was not done by its deadline."""
    await store.put_limits("mail", STOPPING)
    await add(store, keyed("a0", "a"), keyed("a1", "a", run_at=NOW + 9, expires_at=NOW + 3), keyed("a2", "a"))
    late = Options(key="b", deadline=NOW + 3)
    await add(store, new_job("b0", queue="mail", run_at=NOW + 9, expires_at=NOW + 3, options=late))
    await add(store, keyed("b1", "b"))
    await store.cancel(["a0"], NOW)
    none = await taken(node, 9)

    assert none == []
    assert await taken(node, 9, NOW + 3) == ["a2"]
    assert (await store.key("mail", "b")).stopped_by == "b0"


async def test_a_late_outcome_stops_nothing(store: Store, node: Node) -> None:
    """A job that was rescued, failed and was dealt with: its first node still says that it failed."""
    await store.put_limits("mail", STOPPING)
    await add(store, *some("a", 2))
    first = await one(node)
    await store.leave("node")
    other = Node(store, "other")
    await other.join(lease_until=NOW + 1e6)
    await store.rescue("other", NOW)
    await end(other, await one(other), outcome=Outcome.FAIL)
    await store.resume_key("mail", "a")
    await node.settle(first, Outcome.FAIL)

    assert (await store.key("mail", "a")).stopped_by is None
    assert await taken(other, 9) == ["a1"]


async def test_a_job_that_others_wait_for_stops_its_key(store: Store, node: Node) -> None:
    """It ends on another way."""
    await store.put_limits("mail", STOPPING)
    await add(store, *some("a", 2))
    await store.add_dependents([new_job("x", options=Options(depends_on=("a0",)))], atomic=True)
    await end(node, await one(node), outcome=Outcome.FAIL)

    assert await taken(node, 9) == []
    assert (await store.key("mail", "a")).stopped_by == "a0"


async def test_a_job_that_cannot_be_claimed_stops_its_key(store: Store, node: Node) -> None:
    """It has failed."""
    await store.put_limits("mail", STOPPING)
    await add(store, keyed("a0", "a", priority=-3), *[keyed(f"a{number}", "a") for number in (1, 2)])
    claim = ClaimRequest(limit=1, kinds=node.kinds)
    aside = await store.sideline(Batch(node="node", now=NOW, claims=[claim]), "cannot be read")

    assert aside == "a0"
    assert await taken(node, 9) == []
    assert (await store.key("mail", "a")).stopped_by == "a0"


# Jobs that come from elsewhere


async def test_order_counts_for_a_backlog_and_no_more_when_it_is_switched_off(
    store: Store, node: Node
) -> None:
    """What runs goes on, and what has begun is first; then the others as they came."""
    await add(store, *some("a", 5))
    held = await claimed(node, 3)
    await store.put_limits("mail", ORDERED)
    await end(node, held[0])
    await node.settle(held[2], Outcome.RETRY, run_at=NOW)
    none = await taken(node, 9)
    await end(node, held[1])
    second = await one(node)
    await add(store, keyed("b0", "b", run_at=NOW + 5), *[keyed(f"b{number}", "b") for number in (1, 2)])
    nothing = await taken(node, 9)
    await store.put_limits("mail", NO_LIMITS)

    assert (none, second.id, nothing) == ([], "a2", [])
    assert sorted(await taken(node, 9)) == ["a3", "a4", "b1", "b2"]


@pytest.mark.parametrize("limits", [NO_LIMITS, ORDERED])
async def test_a_stopped_key_goes_on_when_keys_stop_no_more(store: Store, node: Node, limits: Limits) -> None:
    """And does not stop again for what failed before."""
    await stopped(store, node)
    await run(node)
    await store.put_limits("mail", limits)
    first = await claimed(node, 1)
    await end(node, *first)
    await store.put_limits("mail", STOPPING)

    assert [job.id for job in first] == ["a1"]
    assert await run(node) == ["a2"]


async def test_a_retry_by_hand_takes_the_place_of_its_arrival(store: Store, node: Node) -> None:
    """It comes before those that came later, once none of its key is held."""
    await store.put_limits("mail", ORDERED)
    await add(store, *some("a", 4))
    await end(node, await one(node))
    second = await one(node)
    await store.retry(["a0"], NOW)
    none = await taken(node, 9)
    await end(node, second)

    assert none == []
    assert await run(node) == ["a0", "a2", "a3"]


async def test_a_job_that_moves_takes_the_place_of_its_arrival(store: Store, node: Node) -> None:
    """Into an ordered queue or key; where it was, the one behind it is next."""
    await store.put_limits("mail", ORDERED)
    await add(store, keyed("x", "a", "elsewhere", run_at=NOW + 5), *some("a", 2), *some("b", 2))
    await edit(store, "x", queue="mail")
    none = await taken(node, 9)
    await edit(store, "x", queue="mail", key="b")
    first = await claimed(node, 9)
    await end(node, *first)
    await edit(store, "x", queue="elsewhere")

    assert none == ["b0"]
    assert [job.id for job in first] == ["a0"]
    assert sorted(await taken(node, 9)) == ["a1"]


async def test_order_outlives_pruning_and_is_forgotten_with_its_queue(store: Store, node: Node) -> None:
    """Nothing of it is left then."""
    await store.put_limits("mail", STOPPING)
    await store.prune(NOW, KEEP)
    await add(store, *some("a", 2))
    await end(node, await one(node), outcome=Outcome.FAIL)
    await store.prune(NOW + 9, replace(KEEP, failed_age=1.0))
    await store.cancel(["a1"], NOW + 9)
    await store.prune(NOW + 20, replace(KEEP, failed_age=1.0))
    deletion = await store.delete_queue("mail")
    await store.put_limits("mail", STOPPING)
    await add(store, keyed("a9", "a"))

    assert deletion.verdict == "changed"
    assert await taken(node, 9) == ["a9"]


async def test_nothing_is_claimed_in_vain(store: Store, node: Node) -> None:
    """A claim that found nothing says so, and closes the lanes at which it has looked."""
    await store.put_limits("mail", ORDERED)
    await add(store, *[keyed(f"a{key}", f"k{key}", run_at=NOW + 5) for key in range(30)])
    await add(store, *[keyed(f"b{key}", f"k{key}") for key in range(30)])
    await taken(node, 5)
    receipts = await exchanged(node, 5)
    states = {key.state for key in await store.keys("mail")}

    assert (receipts.claimed, receipts.more_ready) == ([], False)
    assert states <= {"empty"}
    assert len(await taken(node, 40, NOW + 5)) == 30
