"""Keys, limits, rates and turns. Over every store."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from jobpipe.job import Debounce, NewJob, Options, Outcome, Status
from jobpipe.lanes import NO_LIMITS, KeySettings, Limits, PerKey, Rate
from jobpipe.store.base import (
    OTHERS,
    STEP,
    Batch,
    Claimed,
    ClaimRequest,
    NewGroup,
    Receipts,
    Retention,
    Share,
    Store,
)
from tests.store.test_contract import LEASE, NOW, Node, add, edit, get, new_job, settlement

pytestmark = pytest.mark.long

SLOW = Rate(2, 60.0)

KEEP = Retention(math.inf, math.inf, 1 << 40, 1 << 50)


@pytest.fixture
async def node(store: Store) -> Node:
    joined = Node(store)
    await joined.join()
    return joined


@pytest.fixture
async def other(store: Store) -> Node:
    joined = Node(store, "other")
    await joined.join(lease_until=NOW + 1e6)
    return joined


def keyed(job_id: str, key: str | None = None, queue: str = "mail", **how: Any) -> NewJob:
    """A job with a key; None: without."""
    return new_job(job_id, queue=queue, options=Options(key=key), **how)


def some(key: str | None, jobs: int, **how: Any) -> list[NewJob]:
    """Jobs k0, k1, ... of the key k."""
    return [keyed(f"{key or 'none'}{number}", key, **how) for number in range(jobs)]


async def exchanged(node: Node, limit: int, now: float = NOW, *shares: Share, **how: Any) -> Receipts:
    claim = ClaimRequest(limit=limit, kinds=node.kinds, queues=shares, **how)
    return await node.store.exchange(Batch(node=node.name, now=now, claims=[claim]))


async def claimed(node: Node, limit: int, now: float = NOW, *shares: Share, **how: Any) -> Sequence[Claimed]:
    """What it gets when it asks until nothing more is ready, as the engine does."""
    jobs: list[Claimed] = []
    while True:
        receipts = await exchanged(node, limit - len(jobs), now, *shares, **how)
        jobs += receipts.claimed
        if len(jobs) == limit or not receipts.more_ready:
            return jobs


async def taken(node: Node, limit: int, now: float = NOW, *shares: Share, **how: Any) -> Sequence[str]:
    """The ids of these jobs."""
    return [job.id for job in await claimed(node, limit, now, *shares, **how)]


def per_key(ids: Sequence[str]) -> Counter[str]:
    """How many jobs of each key are among them."""
    return Counter(one.rstrip("0123456789") for one in ids)


async def end(node: Node, *jobs: Claimed, now: float = NOW, outcome: Outcome = Outcome.DONE) -> None:
    for job in jobs:
        await node.settle(job, outcome, now)


# Limits of a queue


async def test_of_a_queue_no_more_run_than_it_allows(store: Store, node: Node, other: Node) -> None:
    """Over all nodes; what comes back, or ends, makes room."""
    await store.put_limits("mail", Limits(max_running=3))
    await add(store, *some(None, 9))
    first = await claimed(node, 2)
    second = await claimed(other, 9)
    full = await taken(node, 9)
    await end(node, first[0])
    await end(other, second[0], outcome=Outcome.RETRY)

    assert (len(first), len(second), full) == (2, 1, [])
    assert len(await taken(node, 9)) == 2
    assert await taken(other, 9) == []


async def test_other_queues_do_not_wait_for_a_full_one(store: Store, node: Node) -> None:
    """However urgent its jobs."""
    await store.put_limits("mail", Limits(max_running=1))
    await add(store, *some(None, 500, priority=9), *some(None, 0), new_job("x"), new_job("y", queue="z"))

    assert sorted(await taken(node, 100)) == ["none0", "x", "y"]


async def test_jobs_of_a_dead_node_count_until_they_are_rescued(
    store: Store, node: Node, other: Node
) -> None:
    """Their code may still run."""
    await store.put_limits("mail", Limits(max_running=2, per_key=PerKey(max_running=1)))
    await add(store, *some("k", 5))
    await taken(node, 9)
    before = await taken(other, 9, LEASE + 1)
    await store.rescue("other", LEASE + 1)

    assert before == []
    assert await taken(other, 9, LEASE + 1) == ["k0"]


async def test_a_node_that_joins_anew_still_frees_the_slots_of_its_jobs(store: Store, node: Node) -> None:
    """It lost its lease, and nobody took its jobs meanwhile."""
    await store.put_limits("mail", Limits(per_key=PerKey(max_running=1)))
    await add(store, *some("a", 2))
    held = await claimed(node, 9)
    await node.join()
    await end(node, *held)

    assert await taken(node, 9) == ["a1"]


async def test_what_is_claimed_in_vain_counts_no_more_once_it_is_back(store: Store, node: Node) -> None:
    """Handed back, or cancelled before it began."""
    await store.put_limits("mail", Limits(max_running=1))
    await add(store, *some(None, 3))
    (first,) = await claimed(node, 9)
    await node.settle(first, None)
    (again,) = await claimed(node, 9)
    await store.cancel([again.id], NOW)
    await node.settle(again, None)

    assert again.id == first.id
    assert await taken(node, 9) == ["none1"]


async def test_a_lowered_limit_counts_from_the_next_claim_on(store: Store, node: Node) -> None:
    """What runs goes on."""
    await store.put_limits("mail", Limits(max_running=3))
    await add(store, *some(None, 9))
    held = await claimed(node, 9)
    await store.put_limits("mail", Limits(max_running=1))
    await end(node, *held[:2])
    lowered = await taken(node, 9)
    await end(node, held[2])

    assert (len(held), lowered) == (3, [])
    assert len(await taken(node, 9)) == 1


async def test_a_raised_limit_counts_at_once_and_so_does_none(store: Store, node: Node) -> None:
    """So does a limit that is taken away."""
    await store.put_limits("mail", Limits(max_running=0, per_key=PerKey(max_running=1)))
    await add(store, *some("k", 9))
    none = await taken(node, 9)
    await store.put_limits("mail", Limits(max_running=2, per_key=PerKey(max_running=3)))
    two = await taken(node, 9)
    await store.put_limits("mail", Limits(per_key=PerKey(max_running=3)))
    three = await taken(node, 9)
    await store.put_limits("mail", NO_LIMITS)

    assert (none, two, three) == ([], ["k0", "k1"], ["k2"])
    assert len(await taken(node, 9)) == 6


async def test_a_limit_counts_for_jobs_that_wait_already(store: Store, node: Node) -> None:
    """More than are moved at once; those that are held count, too; so do those that come due later."""
    await add(
        store, *some(None, STEP + 50), keyed("later", run_at=NOW + 5), new_job("x", queue="y", priority=-1)
    )
    await node.claim(2)
    await store.put_limits("mail", Limits(max_running=5))
    three = await taken(node, 9)
    none = await taken(node, 9, NOW + 6)

    assert len(three) == 4
    assert "x" in three
    assert none == []
    assert (await store.keys("mail"))[0].waiting == STEP + 50 - 5 + 1
    assert (await get(store, "later")).status is Status.QUEUED


async def test_a_paused_queue_gives_nothing(store: Store, node: Node) -> None:
    """Whatever it allows."""
    await store.put_limits("mail", Limits(max_running=5))
    await add(store, *some("k", 2))
    await store.pause("mail")
    none = [
        await taken(node, 9),
        await taken(node, 9, NOW, Share("mail", 9)),
        await taken(node, 9, NOW, Share(OTHERS, 9)),
    ]
    await store.resume("mail")

    assert none == [[], [], []]
    assert len(await taken(node, 9)) == 2


async def test_jobs_of_other_kinds_are_left_and_do_not_close_their_lane(store: Store, node: Node) -> None:
    """However many are ahead."""
    await store.put_limits("mail", Limits(max_running=500))
    await add(store, *some("k", 300, kind="unknown"), keyed("mine", "k", priority=-1))
    await add(store, *[keyed(f"x{key}", f"x{key}", kind="unknown") for key in range(30)], keyed("a", "zz"))
    first = await taken(node, 2)
    stranger = Node(store, "stranger", frozenset({"unknown"}))
    await stranger.join()

    assert sorted(first) == ["a", "mine"]
    assert await taken(node, 9) == []
    assert len(await taken(stranger, 400)) == 330


async def test_a_job_that_expires_is_never_taken(store: Store, node: Node) -> None:
    """It leaves its lane."""
    await store.put_limits("mail", Limits(max_running=5))
    await add(store, keyed("a", expires_at=NOW + 5), keyed("b", "k", expires_at=NOW + 5, run_at=NOW + 1))

    assert await taken(node, 9, NOW + 6) == []
    assert (await get(store, "a")).status is Status.EXPIRED


# Limits of each key


async def test_of_each_key_no_more_run_than_the_queue_allows(store: Store, node: Node, other: Node) -> None:
    """A full key does not keep others from running, however many of its jobs are ahead."""
    await store.put_limits("mail", Limits(per_key=PerKey(max_running=2)))
    await add(store, *some("a", 500), *some("b", 3), *some(None, 3))
    first = await claimed(node, 3)
    second = await claimed(other, 400)
    await end(node, *(job for job in first if job.id.startswith("a")))
    third = await taken(other, 400)

    assert per_key([job.id for job in [*first, *second]]) == {"a": 2, "b": 2, "none": 2}
    assert per_key(third) == {"a": len([job for job in first if job.id.startswith("a")])}


async def test_both_limits_hold_at_once(store: Store, node: Node) -> None:
    """Of the queue and of each key."""
    await store.put_limits("mail", Limits(max_running=5, per_key=PerKey(max_running=2)))
    await add(store, *some("a", 9), *some("b", 9), *some("c", 9))

    assert sorted(per_key(await taken(node, 20)).values()) == [1, 2, 2]


async def test_a_job_that_is_tried_again_is_bound_by_its_key(store: Store, node: Node) -> None:
    """At once, or later, or by hand."""
    await store.put_limits("mail", Limits(per_key=PerKey(max_running=1)))
    await add(store, *some("a", 2))
    (first,) = await claimed(node, 9)
    await node.settle(first, Outcome.RETRY, NOW, run_at=NOW + 5)
    (second,) = await claimed(node, 9)
    none = await taken(node, 9, NOW + 6)
    await end(node, second)
    again = await claimed(node, 9, NOW + 6)
    await end(node, *again)
    await store.retry([first.id, second.id], NOW)

    assert (second.id, none, [job.id for job in again]) == ("a1", [], ["a0"])
    assert len(await taken(node, 9, NOW + 6)) == 1


async def test_a_key_may_have_a_limit_of_its_own(store: Store, node: Node) -> None:
    """Higher or lower than others, until it is set back; also before any job has it."""
    await store.put_limits("mail", Limits(per_key=PerKey(max_running=2)))
    await store.put_key("mail", "a", KeySettings(max_running=3))
    await add(store, *some("a", 9), *some("b", 9))
    first = per_key(await taken(node, 20))
    await store.put_key("mail", "b", KeySettings(max_running=1))
    await store.put_key("mail", "a", KeySettings(max_running=4))
    second = per_key(await taken(node, 20))
    await store.put_key("mail", "a", KeySettings())

    assert (first, second) == ({"a": 3, "b": 2}, {"a": 1})
    assert await taken(node, 20) == []


# Turns


async def test_a_key_with_many_jobs_does_not_keep_others_waiting(store: Store, node: Node) -> None:
    """Those who come late are served with the next claim, and with each after it."""
    await add(store, *some("a", 1000))
    await taken(node, 50)
    await add(store, *some("b", 7), *some("c", 6))
    claims = [per_key(await taken(node, 4)) for _ in range(5)]

    for so_far in (sum(claims[: number + 1], Counter[str]()) for number in range(3)):
        assert max(so_far.values()) - min(so_far[key] for key in "abc") <= 2
    assert sum(claims, Counter[str]())["b"] >= 6


async def test_jobs_without_a_key_take_turns_like_a_key(store: Store, node: Node) -> None:
    """Also those that were there before the first job with a key."""
    await add(store, *some(None, 100))
    await add(store, *some("a", 100))
    found = per_key([one for _ in range(10) for one in await taken(node, 4)])

    assert abs(found["a"] - found["none"]) <= 4


async def test_within_a_key_the_order_is_that_of_all_claims(store: Store, node: Node) -> None:
    """Priority, run_at, arrival."""
    await add(
        store,
        keyed("low", "k", priority=-1),
        keyed("old", "k", run_at=NOW - 5),
        keyed("first", "k"),
        keyed("second", "k"),
        keyed("high", "k", priority=1),
    )
    order = [one for _ in range(5) for one in await taken(node, 1)]

    assert order == ["high", "old", "first", "second", "low"]


async def test_nobody_saves_up_turns(store: Store, node: Node) -> None:
    """A key that comes late, or comes again, gets no more than its part from then on."""
    await add(store, *some("a", 200), *some("b", 1))
    await taken(node, 50)
    await add(store, *[keyed(f"b{number}", "b") for number in range(10, 100)], *some("c", 90))
    found = per_key([one for _ in range(20) for one in await taken(node, 3)])

    assert max(found.values()) - min(found.values()) <= 2


async def test_turns_go_by_weight(store: Store, node: Node) -> None:
    """A key of weight 3 gets three times as many."""
    await store.put_key("mail", "a", KeySettings(weight=3))
    await add(store, *some("a", 100), *some("b", 100))
    found = per_key([one for _ in range(10) for one in await taken(node, 4)])

    assert abs(found["a"] - 30) <= 2
    assert (await store.key("mail", "a")).settings == KeySettings(weight=3)


async def test_one_that_was_full_comes_in_its_turn(store: Store, node: Node) -> None:
    """Not before all others, for the time in which it was full."""
    await store.put_limits("mail", Limits(per_key=PerKey(max_running=1)))
    await store.put_key("mail", "b", KeySettings(max_running=100))
    await store.put_key("mail", "a", KeySettings(max_running=1))
    await add(store, *some("a", 50), *some("b", 90))
    first = [job for job in await claimed(node, 40) if job.id.startswith("a")]
    await store.put_key("mail", "a", KeySettings(max_running=100))
    await end(node, *first)
    found = per_key([one for _ in range(6) for one in await taken(node, 2)])

    assert len(first) == 1
    assert abs(found["a"] - found["b"]) <= 2


async def test_queues_that_are_named_give_their_shares(store: Store, node: Node) -> None:
    """With limits and keys or without."""
    await store.put_limits("mail", Limits(max_running=9))
    await add(
        store,
        *some("a", 20),
        *some("b", 20),
        *[new_job(f"x{n}", queue="x") for n in range(9)],
        new_job("y", priority=1),
    )
    first = per_key(await taken(node, 6, NOW, Share("mail", 4), Share("x", 2)))
    second = per_key(await taken(node, 4, NOW, Share("x", 1), Share(OTHERS, 3)))

    assert first == {"a": 2, "b": 2, "x": 2}
    assert (second["x"], second["y"], second["a"] + second["b"]) == (1, 1, 2)


# Rates


async def test_a_rate_holds_in_each_window(store: Store, node: Node, other: Node) -> None:
    """For all nodes together; the store tells when the next job may be taken."""
    await store.put_limits("mail", Limits(rate=Rate(4, 60.0, 2)))
    await add(store, *some(None, 50))
    now, times = NOW, list[float]()
    while now < NOW + 200:
        both = [await exchanged(one, 9, now) for one in (node, other)]
        times += [now for receipts in both for _ in receipts.claimed]
        next_due = both[-1].next_due
        assert next_due is not None
        assert next_due > now
        now = next_due

    assert times[:3] == [NOW, NOW, NOW + 20]
    assert len(times) == 2 + 9
    assert all(sum(first <= at < first + 60 - 1e-4 for at in times) <= 4 for first in times)


async def test_each_key_has_a_rate_of_its_own(store: Store, node: Node) -> None:
    """A key that rests keeps nobody waiting; a key that is empty meanwhile does not get round it."""
    await store.put_limits("mail", Limits(per_key=PerKey(rate=Rate(2, 60.0, 1))))
    await add(store, *some("a", 3), *some("b", 1))
    first = await taken(node, 9)
    state = await store.key("mail", "a")
    await add(store, keyed("b9", "b"))
    none = await taken(node, 9, NOW + 29)
    receipts = await exchanged(node, 9, NOW + 29)

    assert sorted(first) == ["a0", "b0"]
    assert (state.state, state.until) == ("resting", NOW + 30)
    assert none == []
    assert receipts.next_due == NOW + 30
    assert sorted(await taken(node, 9, NOW + 30)) == ["a1", "b9"]


async def test_a_retry_and_one_handed_back_have_counted(store: Store, node: Node) -> None:
    """Each claim takes a token."""
    await store.put_limits("mail", Limits(rate=Rate(2, 60.0, 2)))
    await add(store, *some("a", 3))
    first, second = await claimed(node, 9)
    await node.settle(first, None)
    await node.settle(second, Outcome.RETRY)

    assert await taken(node, 9, NOW + 59) == []
    assert len(await taken(node, 9, NOW + 60)) == 1


@pytest.mark.parametrize("limits", [Limits(rate=SLOW), Limits(per_key=PerKey(rate=SLOW))])
async def test_a_clock_set_back_stops_no_queue(store: Store, node: Node, limits: Limits) -> None:
    """It waits for one token at most, once the store has been looked through."""
    await store.put_limits("mail", limits)
    await add(store, *some("a", 9, run_at=NOW - 10_000))
    await taken(node, 1)
    back = NOW - 5000
    await store.prune(back, KEEP)

    assert await taken(node, 1, back) == []
    assert await taken(node, 1, back + SLOW.every) == ["a1"]


async def test_a_rate_that_is_taken_away_counts_no_more(store: Store, node: Node) -> None:
    """At once."""
    await store.put_limits("mail", Limits(rate=Rate(1, 1e6), per_key=PerKey(rate=Rate(1, 1e6))))
    await add(store, *some("a", 5))
    one = await taken(node, 9)
    none = await taken(node, 9, NOW + 1)
    await store.put_limits("mail", NO_LIMITS)

    assert (len(one), none) == (1, [])
    assert len(await taken(node, 9, NOW + 1)) == 4


# Free workers


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_running=9),
        Limits(rate=Rate(9, 1.0, 9)),
        Limits(per_key=PerKey(max_running=9)),
        Limits(per_key=PerKey(rate=Rate(9, 1.0, 9))),
    ],
)
async def test_no_job_that_a_limit_counts_is_claimed_ahead(store: Store, node: Node, limits: Limits) -> None:
    """It waits for a free worker; other jobs are taken; and the claim says that it left some."""
    await store.put_limits("mail", limits)
    await add(store, *some("a", 5), *[new_job(f"x{number}", run_at=NOW + 1) for number in range(5)])
    receipts = await exchanged(node, 6, NOW + 2, free=2)
    more = await exchanged(node, 3, NOW + 2, free=0)
    then = await exchanged(node, 9, NOW + 2, free=3)

    assert per_key([job.id for job in receipts.claimed]) == {"a": 2, "x": 4}
    assert (receipts.held_back, receipts.more_ready) == (frozenset({0}), False)
    assert per_key([job.id for job in more.claimed]) == {"x": 1}
    assert (more.held_back, more.more_ready) == (frozenset({0}), False)
    assert (per_key([job.id for job in then.claimed]), then.held_back) == ({"a": 3}, frozenset())


async def test_keys_without_limits_are_claimed_ahead(store: Store, node: Node) -> None:
    """As other jobs are."""
    await add(store, *some("a", 5), *some(None, 1))
    receipts = await exchanged(node, 9, free=1)

    assert (len(receipts.claimed), receipts.held_back) == (6, frozenset())


# Keys


async def test_a_paused_key_gives_nothing_until_it_is_resumed(store: Store, node: Node) -> None:
    """Also one that has no job yet; what is held goes on."""
    await store.pause_key("mail", "b")
    await add(store, *some("a", 4), *some("b", 4))
    first = await claimed(node, 2)
    paused = await store.pause_key("mail", "a")
    await node.settle(first[0], None)
    none = await taken(node, 9)
    resumed = await store.resume_key("mail", "a")
    again = per_key(await taken(node, 9))
    await store.resume_key("mail", "b")

    assert (paused.state, paused.running, none, resumed.state) == ("paused", 2, [], "open")
    assert again == {"a": 3}
    assert per_key(await taken(node, 9)) == {"b": 4}


async def test_keys_are_listed_by_name_and_by_how_they_stand(store: Store, node: Node) -> None:
    """With how many jobs wait and run; in pages."""
    await store.put_limits("mail", Limits(max_running=5, per_key=PerKey(max_running=1)))
    await add(store, *some("a", 3), *some("b", 1), *some("c", 2), *some(None, 2))
    await store.pause_key("mail", "d")
    first = await claimed(node, 4)
    states = [(one.key, one.waiting, one.running, one.state) for one in await store.keys("mail")]
    gate = await store.gate("mail", NOW)

    assert len(first) == 4
    assert states == [("", 1, 1, "full"), ("a", 2, 1, "full"), ("c", 1, 1, "full"), ("d", 0, 0, "paused")]
    assert [one.key for one in await store.keys("mail", 2)] == ["", "a"]
    assert [one.key for one in await store.keys("mail", 1, "")] == ["a"]
    assert [one.key for one in await store.keys("mail", 2, "a")] == ["c", "d"]
    assert [one.key for one in await store.keys("mail", state="paused")] == ["d"]
    assert [one.key for one in await store.keys("mail", 9, "a", "full")] == ["c"]
    assert gate is not None
    assert (gate.running, gate.tokens, gate.keys) == (4, None, {"full": 3, "paused": 1})
    assert gate.limits == Limits(max_running=5, per_key=PerKey(max_running=1))
    assert (await store.key("mail", "b")).running == 1


async def test_a_queue_without_limits_and_keys_has_no_gate(store: Store) -> None:
    """Whether it has jobs or not."""
    await add(store, new_job("a", queue="mail"))

    assert (await store.gate("mail", NOW), await store.keys("mail")) == (None, [])


async def test_keys_and_gates_are_forgotten_when_nothing_is_left_of_them(store: Store, node: Node) -> None:
    """They cost nothing then; limits stay, and so does what is set for a key."""
    await add(store, *some("a", 2), keyed("b", "b", queue="other"))
    await store.put_limits("kept", Limits(max_running=1))
    await store.put_key("other", "set", KeySettings(weight=2))
    held = await claimed(node, 9)
    await store.prune(NOW, KEEP)
    still = await store.gate("mail", NOW)
    await end(node, *held)
    await exchanged(node, 9)
    await store.prune(NOW, KEEP)

    assert still is not None
    assert (await store.gate("mail", NOW), await store.keys("mail")) == (None, [])
    assert await store.gate("kept", NOW) is not None
    assert [one.key for one in await store.keys("other")] == ["set"]


async def test_a_key_is_part_of_the_request(store: Store) -> None:
    """It is shown, and another key is another job."""
    await add(store, keyed("a", "k"))
    same, different = await add(store, keyed("a", "k"), keyed("a", "l"))

    assert (await get(store)).asked.options.key == "k"
    assert (same.verdict, different.verdict) == ("existing", "conflict")


async def test_keys_may_hold_any_text(store: Store, node: Node) -> None:
    """Quotes, and 200 of the widest characters."""
    keys = ["it's", '"', "%s", "\\", "💡" * 200, "*"]
    await add(store, *[keyed(str(number), key) for number, key in enumerate(keys)])

    assert len(await taken(node, 9)) == len(keys)


# What else happens to jobs


async def test_a_job_that_is_moved_stands_in_its_new_queue(store: Store, node: Node) -> None:
    """From a queue with limits to one without, and back; ready or not."""
    await store.put_limits("mail", Limits(max_running=0))
    await add(store, keyed("a"), keyed("b", "k"), keyed("c", run_at=NOW + 5), new_job("d", queue="plain"))
    for job_id in "abc":
        await edit(store, job_id, queue="plain")
    await edit(store, "d", queue="mail")

    assert sorted(await taken(node, 9, NOW + 6)) == ["a", "b", "c"]
    assert (await store.keys("mail"))[0].waiting == 1


async def test_a_job_that_waited_for_others_goes_by_its_limits(store: Store, node: Node) -> None:
    """Once they have ended."""
    await store.put_limits("mail", Limits(max_running=1))
    await add(store, new_job("first"))
    waiting = [
        new_job(name, queue="mail", options=Options(depends_on=("first",), key=key))
        for name, key in (("a", "k"), ("b", None))
    ]
    await store.add_dependents(waiting, atomic=True)
    first = await claimed(node, 9)
    await end(node, *first)

    assert [job.id for job in first] == ["first"]
    assert len(await taken(node, 9)) == 1


async def test_jobs_that_are_deleted_or_cancelled_leave_their_lane(store: Store, node: Node) -> None:
    """The others of their key go on."""
    await store.put_limits("mail", Limits(per_key=PerKey(max_running=1)))
    await add(store, *some("a", 4))
    await store.cancel(["a0"], NOW)
    await store.delete(["a1"], NOW)

    assert await taken(node, 9) == ["a2"]
    assert (await store.key("mail", "a")).waiting == 1


async def test_the_job_that_is_put_aside_first_may_stand_in_a_lane(store: Store, node: Node) -> None:
    """As a claim would take it."""
    await add(store, *some("a", 2), new_job("x", priority=-1))
    claim = ClaimRequest(limit=1, kinds=node.kinds)
    failed = await store.sideline(Batch(node=node.name, now=NOW, claims=[claim]), "words")

    assert failed == "a0"
    assert sorted(await taken(node, 9)) == ["a1", "x"]


async def test_jobs_that_a_handler_enqueues_stand_in_lanes(store: Store, node: Node) -> None:
    """With the settlement that brings them, whatever queue its job is in."""
    await store.put_limits("mail", Limits(max_running=2, per_key=PerKey(max_running=1)))
    await add(store, new_job("parent"), keyed("first", "a"))
    jobs = {job.id: job for job in await claimed(node, 9)}
    brought = [*some("a", 2), *some("b", 2), *some(None, 1), keyed("later", "b", run_at=NOW + 5)]
    ends = settlement(jobs["parent"], Outcome.DONE, jobs=brought)
    await node.exchange(settlements=[ends])
    one = await taken(node, 9)
    await end(node, jobs["first"])

    assert len(one) == 1
    assert set(one) <= {"b0", "none0"}
    assert len(await taken(node, 9, NOW + 6)) == 1


async def test_a_job_of_a_lane_may_bring_others_and_frees_its_slot(store: Store, node: Node) -> None:
    """All in one transaction."""
    await store.put_limits("mail", Limits(per_key=PerKey(max_running=1)))
    await add(store, *some("a", 2))
    (first,) = await claimed(node, 9)
    await node.exchange(settlements=[settlement(first, Outcome.DONE, jobs=[keyed("new", "a", priority=5)])])

    assert await taken(node, 9) == ["new"]


async def test_a_callback_stands_in_its_lane(store: Store, node: Node) -> None:
    """Once the last of its group has ended."""
    await store.put_limits("mail", Limits(max_running=1))
    jobs = [keyed("member", None, queue="default")]
    jobs = [replace(one, options=replace(one.options, group="g")) for one in jobs]
    then = new_job("then", queue="mail", options=Options(callback_of="g", key="k"))
    await add(store, keyed("busy"))
    await store.add_group(NewGroup(id="g", on_failure="go_on", jobs=jobs, then=then), NOW)
    held = {job.id: job for job in await claimed(node, 9)}
    await end(node, held["member"])
    none = await taken(node, 9)
    await end(node, held["busy"])

    assert (set(held), none) == ({"member", "busy"}, [])
    assert await taken(node, 9) == ["then"]


async def test_a_job_that_is_replaced_stands_in_the_lane_of_the_new_request(store: Store, node: Node) -> None:
    """As if it had been edited; also when it comes due."""
    await store.put_limits("mail", Limits(max_running=1))
    for job_id, at, key in (("first", NOW, "a"), ("second", NOW + 1, "b")):
        options = Options(key=key, debounce=Debounce("d", 5.0, 50.0))
        new = new_job(job_id, queue="mail", created_at=at, run_at=at + 5, options=options)
        await store.add_dependents([new], atomic=True)
    await add(store, *some("c", 2, priority=-1), now=NOW + 2)
    one = await claimed(node, 1, NOW + 2)
    none = await taken(node, 9, NOW + 7)
    await end(node, *one, now=NOW + 7)
    (debounced,) = await claimed(node, 9, NOW + 7)

    assert ([job.id for job in one], none) == (["c0"], [])
    assert debounced.id in {"first", "c1"}
    await end(node, debounced, now=NOW + 7)
    assert len(await taken(node, 9, NOW + 7)) == 1


async def test_kinds_that_no_node_serves_are_told_of_jobs_in_lanes_too(store: Store, node: Node) -> None:
    """With how many there are."""
    strange = [keyed(f"s{number}", key, kind="strange") for number, key in enumerate(["a", "a", "b", None])]
    await add(
        store, *strange, keyed("mine", "a"), run_before := keyed("old", "b", kind="strange", run_at=NOW - 9)
    )

    assert [(one.kind, one.jobs, one.since) for one in await store.unserved()] == [
        ("strange", 5, run_before.run_at)
    ]


async def test_a_queue_that_is_deleted_forgets_its_limits(store: Store) -> None:
    """And what was set for its keys."""
    await store.put_limits("mail", Limits(max_running=1))
    await store.put_key("mail", "a", KeySettings(weight=2))
    change = await store.delete_queue("mail")

    assert change.verdict == "changed"
    assert (await store.gate("mail", NOW), await store.keys("mail")) == (None, [])
