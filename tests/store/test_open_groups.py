"""Groups to which jobs are added until they are closed, promise by promise, over every store."""

import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest
import trio
from msgspec.structs import replace

from jobpipe.job import ENDED, GroupOutcome, NewJob, OnFailure, Options, Outcome, Status
from jobpipe.store.base import Changed, Claimed, GroupReceipt, NewGroup, OpenDependencies, Receipt, Store
from jobpipe.store.postgres import open_postgres
from tests.store.server import empty_schema, server_url, with_query
from tests.store.test_contract import (
    KEEP_ALL,
    LATER,
    NOW,
    Node,
    add,
    get,
    listed,
    new_job,
    settlement,
    start,
)
from tests.store.test_groups import end_all, followed, group, member, new_group, node, status, statuses, write

pytestmark = pytest.mark.long

__all__ = ["node"]

OPEN = 3600.0


def opened(*ids: str, **how: Any) -> NewGroup:
    return replace(new_group(*ids, **how), open_for=OPEN)


async def put(store: Store, *ids: str, **how: Any) -> None:
    receipt = await store.add_group(opened(*ids, **how), NOW)
    assert receipt.verdict == "stored"


async def join(store: Store, *jobs: NewJob, atomic: bool = True) -> list[str]:
    return [one.verdict for one in await store.add_dependents(jobs, atomic=atomic)]


async def close(store: Store, group_id: str = "g", now: float = NOW) -> list[Changed]:
    """Close a group; returns what follows at once."""
    closed = await store.close_group(group_id, now)
    assert closed is not None
    return await followed(store, now)


def child(job_id: str, parent: str, group_id: str = "g") -> NewJob:
    return member(job_id, group_id, options=Options(parent=parent))


# --- adding -----------------------------------------------------------------------------------------------------------


async def test_jobs_are_added_until_it_is_closed_and_then_it_is_called_back(node: Node) -> None:
    """Not before, though all that were there had ended. Those that are added are members like any others."""
    await put(node.store, "a")
    await end_all(node)
    first = await join(node.store, member("b"), member("c", run_at=LATER))
    second = await join(node.store, member("d"), new_job("other"), atomic=False)
    await end_all(node)
    between = await status(node.store), await group(node.store)
    early = await close(node.store)
    await node.store.cancel(["c"], NOW)
    callback = await node.take()

    assert (first, second, early) == (["stored"] * 2, ["stored"] * 2, [])
    assert between[0] == "blocked"
    assert (between[1].jobs, between[1].counts) == (4, {"done": 3, "scheduled": 1})
    assert (between[1].open_until, between[1].closed_at, between[1].ended_at) == (NOW + OPEN, None, None)
    assert await listed(node.store, group="g") == ["d", "c", "b", "a"]
    assert callback.options.outcome == GroupOutcome("g", 4, done=3, cancelled=1)
    state = await group(node.store)
    assert (state.jobs, state.closed_at, state.ended_at) == (4, NOW, NOW)


async def test_it_may_have_no_jobs(node: Node) -> None:
    """Then it is called back as soon as it is closed. What waits says that it is open."""
    await put(node.store)
    waits = await node.store.open_dependencies("g.then", 9)
    before = await followed(node.store), await status(node.store)
    changes = await close(node.store)

    assert waits == OpenDependencies([], 0, "g", group_open=True)
    assert before == ([], "blocked")
    assert changes == [Changed("g.then", Status.QUEUED)]
    assert (await get(node.store, "g.then")).asked.options.outcome == GroupOutcome("g", 0)
    assert (await group(node.store)).counts == {}


async def test_without_a_callback_it_just_ends(node: Node) -> None:
    await put(node.store, then=False)
    await close(node.store, now=NOW + 5)
    state = await group(node.store)

    assert (state.callback, state.closed_at, state.ended_at) == (None, NOW + 5, NOW + 5)


async def test_to_close_it_again_changes_nothing(node: Node) -> None:
    """Nor does it with a group that was complete from the first; one that is not there is told."""
    await put(node.store, "a")
    await node.store.add_group(new_group("x", group="whole"), NOW)
    await close(node.store)
    before = await group(node.store), await group(node.store, "whole")
    again = await node.store.close_group("g", LATER), await node.store.close_group("whole", LATER)
    await end_all(node)
    ended = await group(node.store)

    assert again == before
    assert await node.store.close_group("g", LATER) == ended
    assert await node.store.close_group("none", NOW) is None
    assert await status(node.store) == "done"


async def test_what_takes_no_more_jobs_says_so(node: Node) -> None:
    """A closed group, one that has ended, one whose time is over, and none."""
    await put(node.store, "a")
    await put(node.store, group="ended")
    await put(node.store, group="late")
    await node.store.add_group(new_group("x", group="whole", run_at=LATER), NOW)
    await join(node.store, member("b"))
    await close(node.store)
    await close(node.store, "ended")
    late = NOW + OPEN
    receipts = await node.store.add_dependents(
        [
            member("1"),
            member("2", "ended"),
            member("3", "whole"),
            member("4", "none"),
            member("5", "late", created_at=late, run_at=late),
            member("6", "late", created_at=late - 1, run_at=late),
            member("b"),
        ],
        atomic=False,
    )

    assert [(one.verdict, one.group) for one in receipts] == [
        ("group_closed", "g"),
        ("group_closed", "ended"),
        ("group_closed", "whole"),
        ("unknown_group", "none"),
        ("group_closed", "late"),
        ("stored", ""),
        ("existing", ""),
    ]
    assert await listed(node.store, group="late") == ["6"]


async def test_of_an_array_all_or_none_are_added(node: Node) -> None:
    await put(node.store)
    receipts = await node.store.add_dependents([member("a"), member("b", "none")], atomic=True)

    assert list(receipts) == [Receipt("refused"), Receipt("unknown_group", group="none")]
    assert await node.store.get("a") is None
    assert (await group(node.store)).jobs == 0


async def test_a_job_that_is_added_may_wait_for_others(node: Node) -> None:
    await put(node.store, "a", run_at=LATER)
    await join(node.store, member("b", options=Options(depends_on=("a",))))
    await close(node.store)
    (change,) = await node.store.cancel(["a"], NOW)

    assert change.verdict == "changed"
    assert await statuses(node.store, "ab") == ["cancelled", "cancelled"]
    assert await status(node.store) == "queued"


async def test_the_same_group_twice_is_one_and_stays_as_it_is(node: Node) -> None:
    """Closed or not, whatever was added. One that is open for another time, or not at all, is another."""
    await put(node.store, "a")
    await join(node.store, member("b"))
    first = await node.store.add_group(opened("a"), LATER)
    await close(node.store)
    second = await node.store.add_group(opened("a"), LATER)
    others = [new_group("a"), replace(opened("a"), open_for=60.0)]

    assert (first, second) == (GroupReceipt("existing"),) * 2
    assert [await node.store.add_group(one, NOW) for one in others] == [GroupReceipt("conflict")] * 2
    assert (await group(node.store)).jobs == 2


async def test_a_member_that_is_retried_while_it_is_open_counts_again(node: Node) -> None:
    await put(node.store, "a")
    await node.settle(await node.take(), Outcome.FAIL)
    await node.store.retry(["a"], NOW)
    early = await close(node.store)
    await end_all(node)

    assert early == []
    assert (await get(node.store, "g.then")).asked.options.outcome == GroupOutcome("g", 1, done=1)


# --- jobs of a group that add others ----------------------------------------------------------------------------------


async def test_a_job_of_a_group_that_runs_may_add_others_to_it(node: Node) -> None:
    """Also when it is closed, or was complete from the first: with its end, or at once. Not once it has ended."""
    await node.store.add_group(new_group("a"), NOW)
    taken = await node.take()
    await node.start(taken)
    at_once = await join(node.store, child("b", "a"))
    ended = await node.exchange(
        settlements=[settlement(taken, Outcome.DONE, jobs=[child("c", "a"), member("d", "g")])]
    )
    failed = await get(node.store, "a")
    await node.store.retry(["a"], NOW)
    taken = {one.id: one for one in await node.claim(9)}["a"]
    again = await node.exchange(settlements=[settlement(taken, Outcome.DONE, jobs=[child("c", "a")])])
    late = await join(node.store, child("e", "a"), atomic=False)
    between = await status(node.store)
    await node.store.rescue("other", NOW + 1e6)
    await node.join()
    await end_all(node)

    assert (at_once, late) == (["stored"], ["group_closed"])
    assert ended.settled == {taken.seq: Status.FAILED}
    assert failed.state.error is not None
    assert failed.state.error.message.endswith("the group 'g' of the job 'd' takes no more jobs")
    assert (again.settled, between) == ({}, "blocked")
    assert (await get(node.store, "g.then")).asked.options.outcome == GroupOutcome("g", 3, done=3)


async def test_a_job_of_another_group_may_not(node: Node) -> None:
    await node.store.add_group(new_group("a"), NOW)
    await node.store.add_group(new_group("x", group="h"), NOW)
    await node.claim(2)

    assert await join(node.store, child("b", "x"), child("c", "none"), atomic=False) == ["group_closed"] * 2


async def test_it_goes_on_as_long_as_somebody_adds(node: Node) -> None:
    """The last end comes with nothing new."""
    await node.store.add_group(new_group("0"), NOW)
    for number in range(5):
        taken = await node.take()
        jobs = [child(str(number + 1), str(number))] if number < 4 else []
        receipts = await node.exchange(settlements=[settlement(taken, Outcome.DONE, jobs=jobs)])

        assert [one.id for one in receipts.changes] == ([] if jobs else ["g.then"])
    assert (await node.take()).options.outcome == GroupOutcome("g", 5, done=5)


# --- time -------------------------------------------------------------------------------------------------------------


async def test_what_nobody_closes_closes_by_itself(node: Node) -> None:
    """With a prune. The callback is told; who closes it by hand too late comes to the same."""
    await put(node.store, "a")
    await put(node.store, group="h")
    await put(node.store, group="i", then=False)
    await end_all(node)
    await node.store.prune(NOW + OPEN - 1, KEEP_ALL)
    before = await status(node.store)
    await close(node.store, "h", NOW + OPEN + 5)
    await node.store.prune(NOW + OPEN + 9, KEEP_ALL)
    told = [(await get(node.store, one)).asked.options.outcome for one in ("g.then", "h.then")]
    states = [await group(node.store, one) for one in "ghi"]

    assert before == "blocked"
    assert told == [GroupOutcome("g", 1, done=1, timed_out=True), GroupOutcome("h", 0, timed_out=True)]
    assert [one.closed_at for one in states] == [NOW + OPEN] * 3
    assert [one.ended_at for one in states] == [NOW + OPEN + 9, NOW + OPEN + 5, NOW + OPEN + 9]


# --- on failure -------------------------------------------------------------------------------------------------------


async def test_a_failure_closes_a_group_that_gives_up(node: Node) -> None:
    """And cancels the others; where there are none, it has ended."""
    await put(node.store, "a", on_failure="cancel")
    await put(node.store, "x", group="h", on_failure="cancel")
    await join(node.store, member("b", run_at=LATER), member("c", run_at=LATER))
    taken = {one.id: one for one in await node.claim(2)}
    receipts = await node.exchange(settlements=[settlement(taken[one], Outcome.FAIL) for one in "ax"])
    changes = [*receipts.changes, *await followed(node.store)]
    late = await join(node.store, member("d"), member("y", "h"), atomic=False)

    assert sorted(one.id for one in changes) == ["b", "c", "g.then", "h.then"]
    assert late == ["group_closed"] * 2
    assert (await get(node.store, "g.then")).asked.options.outcome == GroupOutcome(
        "g", 3, failed=1, cancelled=2
    )
    assert (await group(node.store, "h")).ended_at == NOW


async def test_what_was_added_as_it_failed_is_cancelled_too(node: Node) -> None:
    """By a job of the group that still ran."""
    await put(node.store, "a", "b", on_failure="cancel")
    taken = {one.id: one for one in await node.claim(2)}
    await node.exchange(starts=[start(one) for one in taken.values()])
    await node.settle(taken["a"], Outcome.FAIL)
    await followed(node.store)
    await node.exchange(settlements=[settlement(taken["b"], Outcome.DONE, jobs=[child("c", "b")])])
    await followed(node.store)

    assert await statuses(node.store, "abc") == ["failed", "done", "cancelled"]
    assert await status(node.store) == "queued"


# --- circles ----------------------------------------------------------------------------------------------------------


async def test_a_job_cannot_wait_for_the_end_of_its_own_group(node: Node) -> None:
    """Not by way of others either, of the same array, of other groups."""
    await put(node.store)
    await put(node.store, group="h")
    await add(node.store, new_job("x", run_at=LATER))
    await join(node.store, new_job("y", options=Options(depends_on=("g.then",))))
    await join(node.store, member("in-h", "h", options=Options(depends_on=("y",))))
    circles = [("g.then",), ("x", "y"), ("h.then",), ("x", "in-h")]
    receipts = [
        await node.store.add_dependents([member(f"c{number}", options=Options(depends_on=on))], atomic=False)
        for number, on in enumerate(circles)
    ]
    array = await node.store.add_dependents(
        [
            new_job("n", options=Options(depends_on=("h.then",))),
            member("m", options=Options(depends_on=("n",))),
        ],
        atomic=False,
    )
    fine = await join(
        node.store,
        member("ok", options=Options(depends_on=("x",))),
        member("also-ok", "h", options=Options(depends_on=("g.then",))),
    )

    assert [(one.verdict, list(one.dependencies)) for (one,) in receipts] == [
        ("dependency_cycle", [f"c{number}", "g.then", f"c{number}"]) for number in range(4)
    ]
    assert [one.verdict for one in array] == ["stored", "dependency_cycle"]
    assert fine == ["stored", "stored"]


async def test_two_that_come_together_make_no_circle(node: Node) -> None:
    """Each of them alone would not."""
    await put(node.store)
    await put(node.store, group="h")
    receipts = await node.store.add_dependents(
        [
            member("a", options=Options(depends_on=("h.then",))),
            member("b", "h", options=Options(depends_on=("g.then",))),
        ],
        atomic=False,
    )

    assert [one.verdict for one in receipts] == ["dependency_cycle", "dependency_cycle"]


# --- what may go wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        "update groups set open_until = 1e300 where id = 'g'",
        "update groups set closed_at = -1e300 where id = 'g'",
        "update groups set open_until = null, closed_at = null where id = 'g'",
        "update groups set callback = 12345 where id = 'g'",
        "delete from groups where id = 'g'",
        "delete from jobs where id = 'a'",
    ],
)
async def test_damage_costs_the_group_that_it_is_in(node: Node, damage: str) -> None:
    """Any other takes jobs, is closed and called back."""
    await put(node.store, "a")
    await put(node.store, "b", group="h")
    await write(node.store, damage)
    told = await join(node.store, member("c"), member("d", "h"), atomic=False)
    await node.store.close_group("g", NOW)
    await close(node.store, "h")
    await end_all(node)
    await node.store.prune(NOW + OPEN, KEEP_ALL)
    await end_all(node)

    assert told[1] == "stored"
    assert await status(node.store, "h.then") == "done"


# --- several nodes ----------------------------------------------------------------------------------------------------


async def test_nobody_waits_for_an_add_and_it_is_not_missed() -> None:
    """Over PostgreSQL: another session is about to add a job. Adds go on beside it, the group is closed beside it."""
    with empty_schema() as schema:
        async with open_postgres(with_query(server_url(), schema=schema), leases="caller") as store:
            node = Node(store)
            await node.join()
            await put(store)
            await add(store, new_job("late", run_at=LATER))
            with psycopg.connect(server_url(), options=f"-csearch_path={schema}") as other:
                other.execute("select from groups for key share")
                other.execute(
                    "insert into members (grp, created_at, seq) select grp, 0, (select max(seq) from jobs) from groups"
                )
                other.execute("update live set followed = true where seq = (select max(seq) from jobs)")
                with trio.fail_after(2):
                    beside = await join(store, member("a"))
                    await end_all(node)
                    state = await store.close_group("g", NOW)
                    step = await store.follow(NOW)
                    refused = await join(store, member("b"), atomic=False)
                other.commit()
            early = await followed(store)
            await store.cancel(["late"], NOW)
            callback = await get(store, "g.then")

    assert (beside, refused) == (["stored"], ["group_closed"])
    assert state is not None
    assert (state.closed_at, state.ended_at) == (NOW, None)
    assert (step.more, early) == (True, [])
    assert callback.asked.options.outcome == GroupOutcome("g", 2, done=1, cancelled=1)


async def test_a_failure_closes_a_group_beside_an_add() -> None:
    """Over PostgreSQL: else it would have to wait for a moment without adds. What was added is cancelled after that."""
    with empty_schema() as schema:
        async with open_postgres(with_query(server_url(), schema=schema), leases="caller") as store:
            node = Node(store)
            await node.join()
            await put(store, "a", on_failure="cancel")
            taken = await node.take()
            await join(store, member("b", run_at=LATER))
            with psycopg.connect(server_url(), options=f"-csearch_path={schema}") as other:
                other.execute("select from groups for key share")
                with trio.fail_after(2):
                    receipts = await node.settle(taken, Outcome.FAIL)
                    refused = await join(store, member("c"), atomic=False)
                between = await group(store)
            changes = await followed(store)

    assert (receipts.following, list(receipts.changes), refused) == (True, [], ["group_closed"])
    assert (between.closed_at, between.counts) == (NOW, {"failed": 1, "scheduled": 1})
    assert [one.id for one in changes] == ["b", "g.then"]


async def test_an_add_that_is_refused_keeps_nobody_from_ending_the_group() -> None:
    """Over PostgreSQL: it locks nothing. So requests that never cease cannot put off the end of a closed group."""
    with empty_schema() as schema:
        async with open_postgres(with_query(server_url(), schema=schema), leases="caller") as store:
            await put(store)
            await store.add_group(new_group("x", group="whole", run_at=LATER), NOW)
            await close(store)
            with psycopg.connect(server_url(), options=f"-csearch_path={schema}") as other:
                other.execute("select from groups for update")
                with trio.fail_after(2):
                    told = await join(store, member("a"), member("b", "whole"), atomic=False)
                    told += await join(store, child("c", "x", "g"), atomic=False)

    assert told == ["group_closed"] * 3


async def test_an_add_waits_for_whoever_is_about_to_end_the_group() -> None:
    """Over PostgreSQL. Then it is told; to go on beside would be to add a job that nobody has seen."""
    told = list[str]()
    with empty_schema() as schema:
        async with open_postgres(with_query(server_url(), schema=schema), leases="caller") as store:
            await put(store)

            async def ask() -> None:
                told.extend(await join(store, member("a"), atomic=False))

            with psycopg.connect(server_url(), options=f"-csearch_path={schema}") as other:
                other.execute("select from groups for update")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ask)
                    with trio.fail_after(5):
                        while not (told or waits_for(other)):  # noqa: ASYNC110 - a session waits, no task
                            await trio.sleep(0.01)
                    assert told == []
                    other.execute("update groups set closed_at = 1, ended_at = 1")
                    other.commit()

    assert told == ["group_closed"]


def waits_for(session: psycopg.Connection[Any]) -> bool:
    waiting = "select from pg_locks where not granted and pg_backend_pid() = any(pg_blocking_pids(pid))"
    return bool(session.execute(waiting).fetchall())


FEWEST = 5
"""So many jobs are added to each group at least."""


class Node4:
    """One of several nodes that add to groups, run their jobs and close them, all at the same time."""

    def __init__(self, node: Node, rng: random.Random, added: dict[str, set[str]]) -> None:
        self.node, self.rng, self.added = node, rng, added
        self.released = list[Changed]()

    async def add(self, whose: str) -> None:
        """Add jobs to every group until each is closed."""
        left, number = set(self.added), 0
        while left:
            number += 1
            name = self.rng.choice(sorted(left))
            job_id = f"{name}:{whose}:{number}"
            (receipt,) = await self.node.store.add_dependents([member(job_id, name)], atomic=False)
            if receipt.verdict == "stored":
                self.added[name].add(job_id)
            else:
                assert receipt.verdict == "group_closed"
                left.discard(name)

    async def run(self) -> None:
        """Run jobs; some of them add one more to their group, whether it is closed or not."""
        idle = 0
        while idle < 20:
            taken: Sequence[Claimed] = await self.node.claim(self.rng.randint(1, 5))
            ends = []
            for one in taken:
                jobs = []
                if one.options.group is not None and self.rng.random() < 0.2:
                    jobs = [child(f"{one.id}+", one.id, one.options.group)]
                    self.added[one.options.group].add(f"{one.id}+")
                ends.append(settlement(one, Outcome.DONE, jobs=jobs))
            if ends:
                receipts = await self.node.exchange(settlements=ends)
                assert (receipts.settled, receipts.stale) == ({}, frozenset())
                self.released += receipts.changes
            self.released += (await self.node.store.follow(NOW)).changes
            idle = 0 if taken else idle + 1
            await trio.sleep(0 if taken else 0.01)

    async def close(self) -> None:
        """Close each group once some jobs were added."""
        for name in self.rng.sample(sorted(self.added), len(self.added)):
            while len(self.added[name]) < FEWEST:  # noqa: ASYNC110 - others add them
                await trio.sleep(0.005)
            await self.node.store.close_group(name, NOW)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_nodes_that_add_run_and_close_at_once_call_back_once_and_never_early(seed: int) -> None:
    """Over PostgreSQL. A callback counts every job that was ever added, all of them ended."""
    rng = random.Random(seed)
    added: dict[str, set[str]] = {f"g{number}": set() for number in range(12)}
    with empty_schema() as schema:
        url = with_query(server_url(), schema=schema)
        async with AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(open_postgres(url, leases="caller")) for _ in range(4)]
            nodes = [Node4(Node(store, f"n{place}"), rng, added) for place, store in enumerate(stores)]
            for one in nodes:
                await one.node.join()
            for name in added:
                await put(stores[0], group=name)
            with trio.fail_after(120):
                async with trio.open_nursery() as nursery:
                    for place, one in enumerate(nodes):
                        nursery.start_soon(one.add, str(place))
                        nursery.start_soon(one.run)
                    nursery.start_soon(nodes[0].close)
                    nursery.start_soon(nodes[1].close)
            released = [change.id for one in nodes for change in one.released]
            for store in stores:
                released += [change.id for change in await followed(store)]
            states = {name: await group(stores[0], name) for name in added}
            callbacks = {name: await get(stores[0], f"{name}.then") for name in added}

    assert sorted(released) == sorted(f"{name}.then" for name in added)
    assert min(map(len, added.values())) >= FEWEST
    for name, ids in added.items():
        assert states[name].counts == ({"done": len(ids)} if ids else {})
        assert callbacks[name].asked.options.outcome == GroupOutcome(name, len(ids), done=len(ids))
        assert callbacks[name].status is Status.DONE


# --- whole lives ------------------------------------------------------------------------------------------------------


class Lives:
    """Draws what becomes of open groups; after each step a callback is blocked just as long as it has to be."""

    def __init__(self, node: Node, rng: random.Random) -> None:
        self.node, self.rng, self.now = node, rng, NOW
        self.members: dict[str, list[str]] = {f"g{number}": [] for number in range(4)}
        self.hasty = {"g2", "g3"}
        self.closed, self.called = set[str](), set[str]()
        self.held: list[Claimed] = []
        self.number = 0

    async def begin(self) -> None:
        for name in self.members:
            on_failure: OnFailure = "cancel" if name in self.hasty else "go_on"
            await put(self.node.store, group=name, on_failure=on_failure)

    async def live(self, steps: int) -> None:
        acts = ["join", "join", "join", "claim", "claim", "settle", "settle", "cancel", "retry", "delete"]
        for step in range(steps):
            self.now += 1
            await getattr(self, "close" if step % 25 == 24 else self.rng.choice(acts))()
            await followed(self.node.store, self.now)
            await self.check()

    async def join(self) -> None:
        name = self.rng.choice(sorted(self.members))
        self.number += 1
        new = member(f"{name}:{self.number}", name, created_at=self.now, run_at=self.now)
        (verdict,) = await join(self.node.store, new, atomic=False)
        state = await group(self.node.store, name)
        assert (verdict == "stored") == (state.closed_at is None)
        if verdict == "stored":
            self.members[name].append(new.id)

    async def claim(self) -> None:
        self.held += [one for one in await self.node.claim(3, self.now) if one.options.group is not None]

    async def settle(self) -> None:
        self.rng.shuffle(self.held)
        ending, self.held = self.held[:2], self.held[2:]
        ends = []
        for one in ending:
            outcome = self.rng.choice([Outcome.DONE, Outcome.DONE, Outcome.FAIL, Outcome.SNOOZE])
            new = child(f"{one.id}+{self.now}", one.id, str(one.options.group))
            jobs = [new] if outcome is Outcome.DONE and self.rng.random() < 0.4 else []
            ends.append(settlement(one, outcome, self.now, jobs=jobs))
        receipts = await self.node.exchange(self.now, settlements=ends)
        for end in ends:
            for job in end.jobs:
                name = str(job.options.group)
                if end.seq in receipts.settled:  # it was retried after the end of its group
                    assert name in self.called
                else:
                    self.members[name].append(job.id)

    def some(self) -> list[str]:
        ids = [one for each in self.members.values() for one in each]
        return self.rng.sample(ids, min(2, len(ids)))

    async def cancel(self) -> None:
        await self.node.store.cancel(self.some(), self.now)

    async def retry(self) -> None:
        await self.node.store.retry(self.some(), self.now)

    async def delete(self) -> None:
        await self.node.store.delete(self.some()[:1], self.now)

    async def close(self) -> None:
        if left := sorted(self.members.keys() - self.closed):
            self.closed.add(left[0])
            await self.node.store.close_group(left[0], self.now)

    async def check(self) -> None:
        for name, ids in self.members.items():
            there = [await self.node.store.get(one) for one in ids]
            unfinished = any(one is not None and one.status not in ENDED for one in there)
            state = await group(self.node.store, name)
            assert name not in self.closed or state.closed_at is not None
            waits = (await get(self.node.store, f"{name}.then")).status is Status.BLOCKED
            assert waits == (name not in self.called and (unfinished or state.closed_at is None))
            if not waits and name not in self.called:
                self.called.add(name)
                assert sum(state.counts.values()) == len(ids) == state.jobs


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
async def test_a_callback_is_neither_early_nor_late_whatever_happens(node: Node, seed: int) -> None:
    await node.join(lease_until=NOW + 1e6)
    lives = Lives(node, random.Random(seed))
    await lives.begin()
    await lives.live(120)

    assert lives.closed == lives.members.keys()
    assert lives.called
