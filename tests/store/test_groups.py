"""Groups of jobs, promise by promise, over every store: called back once, when all have ended, and never before."""

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest
import trio
from msgspec.structs import replace
from structlog.testing import capture_logs

from jobpipe.job import ENDED, GroupOutcome, JobError, NewJob, OnFailure, Options, Outcome, Status
from jobpipe.store.base import (
    Changed,
    Claimed,
    Filter,
    Followed,
    GroupReceipt,
    GroupState,
    NewGroup,
    OpenDependencies,
    Receipt,
    Retention,
    Store,
)
from jobpipe.store.postgres import open_postgres
from jobpipe.store.verbs.followers import MOST
from tests.store.server import empty_schema, server_url, with_query
from tests.store.test_contract import KEEP_ALL, LATER, NOW, Node, add, get, listed, new_job, settlement, start

pytestmark = pytest.mark.long


@pytest.fixture
async def node(store: Store) -> Node:
    one = Node(store)
    await one.join()
    return one


def member(job_id: str, group: str = "g", **changes: Any) -> NewJob:
    options = replace(changes.pop("options", Options()), group=group)
    return new_job(job_id, options=options, **changes)


def new_group(
    *ids: str, group: str = "g", on_failure: OnFailure = "go_on", then: bool = True, **changes: Any
) -> NewGroup:
    return NewGroup(
        id=group,
        on_failure=on_failure,
        jobs=[member(job_id, group, **changes) for job_id in ids],
        then=new_job(f"{group}.then", options=Options(callback_of=group)) if then else None,
    )


async def put(store: Store, *ids: str, **how: Any) -> None:
    receipt = await store.add_group(new_group(*ids, **how), NOW)
    assert receipt.verdict == "stored"


async def status(store: Store, job_id: str = "g.then") -> str:
    return (await get(store, job_id)).status.value


async def statuses(store: Store, ids: str) -> list[str]:
    return [await status(store, job_id) for job_id in ids]


async def group(store: Store, group_id: str = "g") -> GroupState:
    found = await store.group(group_id)
    assert found is not None
    return found


async def followed(store: Store, now: float = NOW) -> list[Changed]:
    """Go on with what follows until nothing is left."""
    changes = list[Changed]()
    more = True
    while more:
        step = await store.follow(now)
        changes += step.changes
        more = step.more
    return changes


# --- how they are stored ----------------------------------------------------------------------------------------------


async def test_a_group_is_stored_with_its_jobs(node: Node) -> None:
    """They are like any others; the one that waits for them is blocked, and shown as such."""
    await put(node.store, "a", "b", run_at=LATER)
    await add(node.store, new_job("other"))

    assert await statuses(node.store, "ab") == ["scheduled", "scheduled"]
    assert await status(node.store) == "blocked"
    assert await node.store.open_dependencies("g.then", 1) == OpenDependencies(["a"], 2, "g")
    assert await listed(node.store, group="g") == ["b", "a"]
    assert await listed(node.store, group="none") == []
    assert await group(node.store) == GroupState(
        id="g",
        on_failure="go_on",
        jobs=2,
        counts={"scheduled": 2},
        callback="g.then",
        created_at=NOW,
        open_until=None,
        closed_at=NOW,
        ended_at=None,
    )
    assert await node.store.group("none") is None


async def test_jobs_of_a_group_are_listed_with_other_filters_and_page_by_page(node: Node) -> None:
    tagged = replace(new_group("b", "d"), jobs=[member("b", options=Options(tags=("t",))), member("d")])
    await put(node.store, "x", "y", group="other")
    await node.store.add_group(tagged, NOW)
    first = await node.store.jobs(Filter(group="g"), 1, None)
    second = await node.store.jobs(Filter(group="g"), 9, first.next_before)

    assert await listed(node.store, group="g", tag="t") == ["b"]
    assert await listed(node.store, group="other", tag="t") == []
    assert await listed(node.store, group="g", status=Status.QUEUED, queue="default", kind="echo") == [
        "d",
        "b",
    ]
    assert [one.id for one in (*first.jobs, *second.jobs)] == ["d", "b"]


async def test_the_same_group_twice_is_one(node: Node) -> None:
    """Whatever its jobs have come to; another one with its id is a conflict, and nothing of it is stored."""
    await put(node.store, "a", "b")
    for one in await node.claim(2):
        await node.settle(one, Outcome.DONE)
    await node.store.delete(["a"], NOW)
    same = await node.store.add_group(new_group("a", "b"), LATER)
    others = [
        new_group("a", "b", "c"),
        new_group("a", "b", then=False),
        new_group("a", "b", on_failure="cancel"),
        new_group("a", "b", payload=b"2"),
    ]
    differing = [await node.store.add_group(one, NOW) for one in others]

    assert same == GroupReceipt("existing")
    assert differing == [GroupReceipt("conflict")] * 4
    assert sorted(await listed(node.store)) == ["b", "g.then"]


async def test_a_group_of_which_an_id_is_taken_is_not_stored(node: Node) -> None:
    """Not even where the job is the same: it would belong to no group, or to another."""
    await add(node.store, member("b"))
    receipt = await node.store.add_group(new_group("a", "b"), NOW)

    assert receipt == GroupReceipt(
        "conflict", [Receipt("refused"), Receipt("conflict", await get(node.store, "b")), Receipt("refused")]
    )
    assert await listed(node.store) == ["b"]
    assert await node.store.group("g") is None


async def test_jobs_of_a_group_have_ids_of_their_own(node: Node) -> None:
    receipt = await node.store.add_group(new_group("a", "b", "a"), NOW)

    assert [one.verdict for one in receipt.receipts] == ["refused", "refused", "conflict", "refused"]
    assert receipt.receipts[2].job is not None
    assert receipt.receipts[2].job.id == "a"
    assert await listed(node.store) == []


async def test_jobs_of_a_group_may_depend_on_one_another_and_on_others(node: Node) -> None:
    await add(node.store, new_job("x"))
    flow = replace(
        new_group(),
        jobs=[member("a"), member("b", options=Options(depends_on=("a", "x")))],
    )
    await node.store.add_group(flow, NOW)
    unknown = replace(new_group(group="h"), jobs=[member("c", "h", options=Options(depends_on=("no",)))])
    refused = await node.store.add_group(unknown, NOW)
    await end_all(node)

    assert [one.verdict for one in refused.receipts] == ["unknown_dependency", "refused"]
    assert await node.store.group("h") is None
    assert await node.store.get("c") is None
    assert await statuses(node.store, "ab") == ["done", "done"]
    assert await status(node.store) == "done"


async def end_all(node: Node, outcome: Outcome = Outcome.DONE) -> None:
    while taken := await node.claim(10):
        await node.exchange(settlements=[settlement(one, outcome) for one in taken])


# --- when it is called back -------------------------------------------------------------------------------------------


async def test_it_is_called_back_when_the_last_has_ended_and_told_how(node: Node) -> None:
    """The exchange of the last one says so. What it is told comes with its claim."""
    await put(node.store, "a", "b", "c")
    taken = {one.id: one for one in await node.claim(3)}
    first = await node.settle(taken["a"], Outcome.DONE)
    second = await node.settle(taken["b"], Outcome.FAIL)
    between = await status(node.store)
    last = await node.exchange(NOW, settlements=[settlement(taken["c"], Outcome.DONE)])
    callback = await node.take()

    assert (list(first.changes), list(second.changes), between) == ([], [], "blocked")
    assert list(last.changes) == [Changed("g.then", Status.QUEUED)]
    assert callback.options.outcome == GroupOutcome("g", 3, done=2, failed=1)
    assert callback.options.callback_of == "g"
    found = await group(node.store)
    assert (found.counts, found.ended_at) == ({"done": 2, "failed": 1}, NOW)


@pytest.mark.parametrize("how", ["cancel", "delete", "expire", "fail", "rescue", "together"])
async def test_whichever_way_a_job_ends_counts(node: Node, how: str) -> None:
    await put(node.store, "a", expires_at=NOW + 5 if how == "expire" else None, max_retries=0)
    if how in {"cancel", "delete"}:
        await getattr(node.store, how)(["a"], NOW)
    elif how == "expire":
        await node.exchange(NOW + 6)
    elif how == "fail":
        await node.settle(await node.take(), Outcome.FAIL)
    elif how == "rescue":
        taken = await node.take()
        await node.start(taken)
        await node.store.cancel(["a"], NOW)
        await node.store.rescue("other", NOW + 1e6)
    else:
        taken = await node.take()
        await node.exchange(starts=[start(taken)], settlements=[settlement(taken, Outcome.DONE)])
    words = {
        **dict.fromkeys(["cancel", "rescue"], "cancelled"),
        "delete": "deleted",
        "expire": "expired",
        "fail": "failed",
        "together": "done",
    }
    callback = await get(node.store, "g.then")

    assert callback.status is Status.QUEUED
    assert callback.asked.options.outcome == replace(GroupOutcome("g", 1), **{words[how]: 1})
    assert (await group(node.store)).counts == {words[how]: 1}


async def test_an_attempt_that_is_no_end_does_not_count(node: Node) -> None:
    await put(node.store, "a")
    for outcome in (Outcome.RETRY, Outcome.SNOOZE, Outcome.INTERRUPTED, None):
        await node.exchange(NOW + 100)
        await node.settle(await node.take(NOW + 100), outcome, NOW)

        assert await status(node.store) == "blocked"


async def test_many_ends_in_one_batch_call_back_once(node: Node) -> None:
    """Of several groups, too."""
    await put(node.store, "a", "b")
    await put(node.store, "c", "d", group="h")
    await put(node.store, "e", "f", group="i")
    taken = await node.claim(6)
    receipts = await node.exchange(
        settlements=[settlement(one, Outcome.DONE) for one in taken if one.id != "f"]
    )

    assert sorted(one.id for one in receipts.changes) == ["g.then", "h.then"]
    assert await status(node.store, "i.then") == "blocked"


async def test_a_callback_may_have_a_time_of_its_own(node: Node) -> None:
    """Or be cancelled, or expire: then the group ends all the same."""
    later = replace(new_group("a"), then=new_job("g.then", run_at=LATER, options=Options(callback_of="g")))
    await node.store.add_group(later, NOW)
    await put(node.store, "b", group="h")
    await node.store.cancel(["h.then"], NOW)
    await end_all(node)

    assert await status(node.store) == "scheduled"
    assert await status(node.store, "h.then") == "cancelled"
    assert (await group(node.store, "h")).ended_at == NOW


async def test_a_group_without_a_callback_just_ends(node: Node) -> None:
    await put(node.store, "a", then=False)
    await end_all(node)
    found = await group(node.store)

    assert (found.callback, found.counts, found.ended_at) == (None, {"done": 1}, NOW)


async def test_the_same_request_is_known_after_the_callback_was_told(node: Node) -> None:
    await put(node.store, "a")
    await end_all(node)

    assert await node.store.add_group(new_group("a"), NOW) == GroupReceipt("existing")


async def test_a_member_that_is_retried_before_the_end_counts_again(node: Node) -> None:
    """After the end, nothing is called back once more."""
    await put(node.store, "a", "b")
    first = {one.id: one for one in await node.claim(2)}
    await node.settle(first["a"], Outcome.FAIL)
    await node.store.retry(["a"], NOW)
    await node.settle(first["b"], Outcome.DONE)
    between = await status(node.store), (await group(node.store)).counts
    await node.settle(await node.take(), Outcome.DONE)
    callback = await node.take()
    await node.settle(callback, Outcome.DONE)
    await node.store.retry(["b"], NOW)
    await node.settle(await node.take(), Outcome.FAIL)

    assert between == ("blocked", {"done": 1, "queued": 1})
    assert callback.options.outcome == GroupOutcome("g", 2, done=2)
    assert (await get(node.store, "g.then")).status is Status.DONE
    assert (await group(node.store)).counts == {"done": 2}


async def test_a_member_that_brings_jobs_and_one_that_others_wait_for(node: Node) -> None:
    await put(node.store, "a")
    await node.store.add_dependents([new_job("next", options=Options(depends_on=("a",)))], atomic=True)
    taken = await node.take()
    receipts = await node.exchange(settlements=[settlement(taken, Outcome.DONE, jobs=[new_job("child")])])

    assert {(one.id, one.status) for one in receipts.changes} == {
        ("next", Status.QUEUED),
        ("g.then", Status.QUEUED),
    }


async def test_jobs_may_depend_on_a_callback(node: Node) -> None:
    await put(node.store, "a")
    await node.store.add_dependents([new_job("x", options=Options(depends_on=("g.then",)))], atomic=True)
    before = await status(node.store, "x")
    await end_all(node)

    assert (before, await status(node.store, "x")) == ("blocked", "done")


# --- on failure -------------------------------------------------------------------------------------------------------


async def test_on_failure_go_on_changes_nothing(node: Node) -> None:
    await put(node.store, "a", "b")
    await node.settle(await node.take(), Outcome.FAIL)

    assert await statuses(node.store, "ab") == ["failed", "queued"]


async def test_on_failure_cancel_stops_the_others(node: Node) -> None:
    """Those that wait end at once, with an error that says why; those that run are asked to. Then it is called back."""
    await put(node.store, "a", "b", "c", on_failure="cancel")
    running = await node.claim(2)
    await node.exchange(starts=[start(one) for one in running])
    receipts = await node.settle(running[0], Outcome.FAIL)
    changes = [*receipts.changes, *await followed(node.store)]
    between = await statuses(node.store, "abc"), await status(node.store)
    waiting = await get(node.store, "c")
    await node.settle(running[1], Outcome.CANCELLED)
    callback = await get(node.store, "g.then")

    assert {(one.id, one.status) for one in changes} == {("b", Status.CANCELLING), ("c", Status.CANCELLED)}
    assert between == (["failed", "cancelling", "cancelled"], "blocked")
    assert waiting.state.error == JobError("GroupFailed", "another job of the group 'g' did not succeed")
    assert callback.asked.options.outcome == GroupOutcome("g", 3, failed=1, cancelled=2)


@pytest.mark.long
async def test_hundreds_are_cancelled_step_by_step(node: Node) -> None:
    ids = [f"x{number}" for number in range(6 * MOST)]
    await put(node.store, *ids, on_failure="cancel")
    (change,) = await node.store.cancel(["x7"], NOW)
    first = (await group(node.store)).counts
    steps = [await node.store.follow(NOW)]
    while steps[-1].more:
        steps.append(await node.store.follow(NOW))

    assert change.verdict == "changed"
    assert first["queued"] >= MOST
    assert max(len(one.changes) for one in steps) <= 3 * MOST
    assert (await group(node.store)).counts == {"cancelled": 6 * MOST}
    assert await status(node.store) == "queued"


# --- what may go wrong ------------------------------------------------------------------------------------------------


async def test_a_note_that_was_left_is_followed(node: Node) -> None:
    """As another node leaves it, that did not get the lock of the group; the callback is released once."""
    await put(node.store, "a", "b")
    await write(node.store, "insert into group_notes (grp, seq) select grp, seq from members")
    early = await followed(node.store)
    await end_all(node)
    await write(node.store, "insert into group_notes (grp, seq) select grp, seq from members")

    assert (early, await followed(node.store)) == ([], [])
    assert await status(node.store) == "done"


async def write(store: Store, sql: str) -> None:
    async def verb(tx: Any) -> None:
        tx.run(sql, {})

    await store._transact(verb)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "damage",
    [
        "update jobs set options = :junk where id = 'g.then'",
        "update jobs set payload = :junk, original = :junk where id = 'g.then'",
        "update groups set callback = 12345 where id = 'g'",
        "update groups set jobs = -7, created_at = 1e300 where id = 'g'",
        "delete from jobs where id = 'b'",
        "delete from members where seq = (select seq from jobs where id = 'b')",
    ],
)
async def test_damage_costs_the_group_that_it_is_in(node: Node, damage: str) -> None:
    """Every other group is called back, and every member ends."""
    await put(node.store, "a", "b")
    await put(node.store, "c", "d", group="h")

    async def verb(tx: Any) -> None:
        tx.run(
            damage.replace(":junk", "cast(:junk as bytea)" if "postgres" in node.store.name else ":junk"),
            {"junk": b"\xff{"} if ":junk" in damage else {},
        )

    with capture_logs():
        await node.store._transact(verb)  # type: ignore[attr-defined]
        taken = await node.claim(4)
        for one in taken:
            await node.settle(one, Outcome.DONE)
        await followed(node.store)
    states = [(await get(node.store, one.id)).status for one in taken]

    assert set(states) == {Status.DONE}
    assert await status(node.store, "h.then") == "queued"


async def test_an_end_that_nobody_noticed_is_found_by_a_prune(node: Node) -> None:
    """Of a job that somebody has deleted in the database."""
    await put(node.store, "a", "b")
    await node.settle(await node.take(), Outcome.DONE)
    await write(node.store, "delete from jobs where id = 'b'")
    if "postgres" in node.store.name:
        await write(node.store, "delete from live where seq not in (select seq from jobs)")
    before = await status(node.store)
    await node.store.prune(NOW, KEEP_ALL)

    assert (before, await status(node.store)) == ("blocked", "queued")
    assert (await group(node.store)).counts == {"done": 1, "deleted": 1}


async def test_a_group_is_forgotten_when_its_jobs_may_be(node: Node) -> None:
    """Pruned jobs count as they ended until then."""
    await put(node.store, "a", "b")
    await put(node.store, "c", group="h", run_at=LATER)
    await end_all(node)
    retention = Retention(done_age=10, failed_age=20, jobs=10**9, size=10**15)
    await node.store.prune(NOW + 15, retention)
    between = await group(node.store)
    await node.store.prune(NOW + 25, retention)
    await node.store.prune(NOW + 25, retention)

    assert between.counts == {"done": 2}
    assert between.callback is None
    assert await node.store.group("g") is None
    assert await node.store.group("h") is not None


# --- several nodes ----------------------------------------------------------------------------------------------------


async def test_nodes_that_end_the_last_at_once_call_back_once_and_never_early() -> None:
    """Over PostgreSQL: each end in an exchange of its own, several nodes at a time, many groups."""
    rng = random.Random(7)
    with empty_schema() as schema:
        url = with_query(server_url(), schema=schema)
        async with AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(open_postgres(url, leases="caller")) for _ in range(4)]
            nodes = [Node(store, f"n{number}") for number, store in enumerate(stores)]
            for one in nodes:
                await one.join()
            for number in range(12):
                await put(stores[0], *(f"{number}:{place}" for place in range(8)), group=f"g{number}")
            held = [(one, job) for one in nodes for job in await one.claim(24)]
            rng.shuffle(held)
            released = list[Changed]()

            async def end(node: Node) -> None:
                for owner, job in held:
                    if owner is node:
                        receipts = await node.settle(job, Outcome.DONE)
                        released.extend(receipts.changes)

            async def follow(node: Node) -> None:
                for _ in range(20):
                    released.extend((await node.store.follow(NOW)).changes)
                    await trio.sleep(0.01)

            async with trio.open_nursery() as nursery:
                for one in nodes:
                    nursery.start_soon(end, one)
                    nursery.start_soon(follow, one)
            for store in stores:
                released.extend(await followed(store))
            callbacks = [await get(stores[0], f"g{number}.then") for number in range(12)]

    assert sorted(one.id for one in released) == sorted(f"g{number}.then" for number in range(12))
    assert {one.status for one in callbacks} == {Status.QUEUED}
    assert all(
        one.asked.options.outcome == GroupOutcome(f"g{number}", 8, done=8)
        for number, one in enumerate(callbacks)
    )


async def test_a_group_that_is_locked_is_noted_and_looked_at_again() -> None:
    """Whoever does not get the lock goes on at once; nothing waits, and nothing is lost."""
    with empty_schema() as schema:
        async with open_postgres(with_query(server_url(), schema=schema), leases="caller") as store:
            node = Node(store)
            await node.join()
            await put(store, "a")
            with psycopg.connect(server_url()) as other:
                other.execute(f"select from {schema}.groups for update".encode())
                with trio.fail_after(5):
                    receipts = await node.settle(await node.take(), Outcome.DONE)
                    first: Followed = await store.follow(NOW)
                between = await status(store)
                other.rollback()
            changes = await followed(store)

    assert (receipts.following, first.more, first.changes, between) == (True, True, [], "blocked")
    assert changes == [Changed("g.then", Status.QUEUED)]


@pytest.mark.slow
async def test_ten_thousand_members(node: Node) -> None:
    """Stored at once, ended by hundreds, called back once."""
    ids = [f"x{number}" for number in range(10_000)]
    await put(node.store, *ids)
    released = list[Changed]()
    taken: Sequence[Claimed] = await node.claim(400)
    while taken:
        ends = [settlement(one, Outcome.DONE) for one in taken if one.id != "g.then"]
        receipts = await node.exchange(settlements=ends, claim=400)
        released += receipts.changes
        taken = [one for one in receipts.claimed if one.id != "g.then"]
        if not taken and receipts.more_ready:
            taken = [one for one in await node.claim(400) if one.id != "g.then"]
    released += await followed(node.store)

    assert released == [Changed("g.then", Status.QUEUED)]
    assert (await get(node.store, "g.then")).asked.options.outcome == GroupOutcome("g", 10_000, done=10_000)
    assert (await group(node.store)).counts == {"done": 10_000}


# --- whole lives ------------------------------------------------------------------------------------------------------


class Lives:
    """Draws what becomes of groups; after each step a callback is blocked just as long as a member is open."""

    def __init__(self, node: Node, rng: random.Random) -> None:
        self.node, self.rng, self.now = node, rng, NOW
        self.groups = {f"g{number}": [f"g{number}:{place}" for place in range(4)] for number in range(4)}
        self.hasty = {"g2", "g3"}
        self.held: list[Claimed] = []
        self.called: set[str] = set()

    async def begin(self) -> None:
        for name, ids in self.groups.items():
            on_failure: OnFailure = "cancel" if name in self.hasty else "go_on"
            await put(self.node.store, *ids, group=name, on_failure=on_failure, expires_at=NOW + 60)

    async def live(self, steps: int) -> None:
        ids = [one for each in self.groups.values() for one in each]
        for _ in range(steps):
            self.now += 1
            act = self.rng.choice(
                ["claim", "claim", "settle", "settle", "settle", "cancel", "retry", "delete", "rescue"]
            )
            await getattr(self, act)(self.rng.sample(ids, 2))
            await followed(self.node.store, self.now)
            await self.check()

    async def claim(self, _: list[str]) -> None:
        self.held += await self.node.claim(2, self.now)

    async def settle(self, _: list[str]) -> None:
        self.rng.shuffle(self.held)
        ending, self.held = self.held[:2], self.held[2:]
        outcomes = [
            Outcome.DONE,
            Outcome.DONE,
            Outcome.FAIL,
            Outcome.RETRY,
            Outcome.SNOOZE,
            Outcome.CANCELLED,
            None,
        ]
        ends = [settlement(one, self.rng.choice(outcomes), self.now) for one in ending]
        await self.node.exchange(self.now, settlements=ends)

    async def cancel(self, ids: list[str]) -> None:
        await self.node.store.cancel(ids, self.now)

    async def retry(self, ids: list[str]) -> None:
        await self.node.store.retry(ids, self.now)

    async def delete(self, ids: list[str]) -> None:
        await self.node.store.delete(ids[:1], self.now)

    async def rescue(self, _: list[str]) -> None:
        if self.rng.random() < 0.2:
            await self.node.store.rescue("other", self.now + 1e7)
            await self.node.join(self.now, self.now + 1e6)
            self.held = []

    async def check(self) -> None:
        for name, ids in self.groups.items():
            members = [await self.node.store.get(one) for one in ids]
            is_open = any(one is not None and one.status not in ENDED for one in members)
            then = await get(self.node.store, f"{name}.then")
            if name not in self.called:
                assert (then.status is Status.BLOCKED) == is_open, (name, then, members)
            else:
                assert then.status is not Status.BLOCKED
            if not is_open and name not in self.called:
                self.called.add(name)
                outcome = then.asked.options.outcome
                assert outcome is not None
                there = Counter(one.status.value for one in members if one is not None)
                told = {
                    status: getattr(outcome, status) for status in ("done", "failed", "cancelled", "expired")
                }
                assert sum(told.values()) + outcome.deleted == len(ids)
                assert all(told[status] >= count for status, count in there.items())


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
async def test_a_callback_is_neither_early_nor_late_whatever_happens(node: Node, seed: int) -> None:
    """A deleted one counts as it ended before that, or as deleted."""
    await node.join(lease_until=NOW + 1e6)
    lives = Lives(node, random.Random(seed))
    await lives.begin()
    await lives.live(80)
    await node.exchange(NOW + 1000)
    await followed(node.store, NOW + 1000)
    for one in lives.held:
        await node.exchange(NOW + 1000, settlements=[settlement(one, Outcome.DONE, NOW + 1000)])
    await followed(node.store, NOW + 1000)
    await lives.check()

    assert len(lives.called) >= 3
