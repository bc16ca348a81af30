"""Jobs that come of other jobs, over every store: cancelled with them, down the tree, and else left alone."""

from typing import Any

import psycopg
import pytest
import trio
from structlog.testing import capture_logs

from jobpipe.job import NewJob, Options, Outcome, Status
from jobpipe.store.base import Changed, NewGroup, Store
from jobpipe.store.postgres import open_postgres
from jobpipe.store.verbs.followers import MOST
from tests.store.server import empty_schema, server_url, with_query
from tests.store.test_contract import LATER, NOW, Node, add, get, new_job, settlement, start
from tests.store.test_groups import followed, statuses, write

pytestmark = pytest.mark.long


@pytest.fixture
async def node(store: Store) -> Node:
    one = Node(store)
    await one.join()
    return one


def child(job_id: str, parent: str, **changes: Any) -> NewJob:
    return new_job(job_id, options=Options(parent=parent), **changes)


async def put(store: Store, *jobs: NewJob) -> None:
    receipts = await store.add_dependents(jobs, atomic=True)
    assert {one.verdict for one in receipts} == {"stored"}


async def put_begun(node: Node, *jobs: NewJob) -> None:
    """Store jobs that have run once, and wait to run again."""
    await put(node.store, *jobs)
    taken = await node.claim(len(jobs))
    await node.exchange(settlements=[settlement(one, Outcome.SNOOZE, run_at=LATER) for one in taken])


async def cancel(node: Node, job_id: str) -> list[Changed]:
    (change,) = await node.store.cancel([job_id], NOW)
    assert change.verdict == "changed"
    return await followed(node.store)


async def test_children_are_cancelled_with_their_parent(node: Node) -> None:
    """Whether they wait or run; nobody else is."""
    await add(node.store, new_job("p"), new_job("q"))
    await put(node.store, child("a", "p"), child("b", "p", run_at=LATER), child("c", "q"))
    running = [one for one in await node.claim(9) if one.id in {"p", "a"}]
    await node.exchange(starts=[start(one) for one in running])
    changes = await cancel(node, "p")

    assert await statuses(node.store, "pabcq") == [
        "cancelling",
        "cancelling",
        "cancelled",
        "queued",
        "queued",
    ]
    assert {(one.id, one.status) for one in changes} == {("a", Status.CANCELLING), ("b", Status.CANCELLED)}
    assert (await get(node.store, "a")).asked.options.parent == "p"


async def test_a_cancel_goes_down_the_tree_through_jobs_that_have_ended(node: Node) -> None:
    """Also through what was stored with their ends."""
    await put_begun(node, new_job("p"))
    await put(node.store, child("a", "p"))
    taken = await node.take()
    await node.settle(taken, Outcome.DONE, jobs=[child("b", "a"), child("x", "nobody")])
    (b, _) = await node.claim(2)
    await node.settle(b, Outcome.DONE, jobs=[child("c", "b"), child("d", "b")])
    (c, d) = [one for one in await node.claim(3) if one.id in "cd"]
    await node.exchange(settlements=[settlement(one, Outcome.SNOOZE, run_at=LATER) for one in (c, d)])
    await put(node.store, child("e", "d", run_at=LATER))
    await cancel(node, "p")

    assert await statuses(node.store, "pabcdex") == [
        *("cancelled", "done", "done", "cancelled", "cancelled", "cancelled", "queued")
    ]


@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.FAIL])
async def test_a_parent_that_ends_by_itself_changes_nothing_for_its_children(
    node: Node, outcome: Outcome
) -> None:
    """Then it cannot be cancelled any more, nor be the reason for a cancel."""
    await add(node.store, new_job("p"))
    await put(node.store, child("a", "p"))
    for one in await node.claim(2):
        if one.id == "p":
            await node.settle(one, outcome)
    (refused,) = await node.store.cancel(["p"], NOW)
    await followed(node.store)
    await node.store.delete(["p"], NOW)

    assert refused.verdict == "refused"
    assert await followed(node.store) == []
    assert await statuses(node.store, "a") == ["queued"]


@pytest.mark.long
async def test_very_many_are_cancelled_step_by_step(node: Node) -> None:
    """The first of them with the cancel itself."""
    await put_begun(node, new_job("p"))
    for begin in range(0, 4 * MOST, MOST):
        await put(node.store, *(child(f"x{number}", "p") for number in range(begin, begin + MOST)))
    await node.store.cancel(["p"], NOW)
    first = (await node.store.overview(frozenset())).counts.get(Status.CANCELLED, 0)
    steps = [await node.store.follow(NOW)]
    while steps[-1].more:
        steps.append(await node.store.follow(NOW))
    counts = (await node.store.overview(frozenset())).counts

    assert MOST <= first <= 2 * MOST
    assert max(len(one.changes) for one in steps) <= 3 * MOST
    assert counts == {Status.CANCELLED: 4 * MOST + 1}
    assert await node.store.follow(NOW) == await node.store.follow(NOW)


async def test_a_step_may_be_full_when_others_wait_for_the_job(node: Node) -> None:
    """The job that takes very many with it is one that another depends on."""
    await put_begun(node, new_job("p"))
    await put_begun(node, child("a", "p"))
    await put(node.store, new_job("next", options=Options(depends_on=("a",))))
    await put(node.store, *(child(f"x{number}", "a") for number in range(MOST + 50)))
    await cancel(node, "p")

    assert (await node.store.overview(frozenset())).counts == {Status.CANCELLED: MOST + 53}


async def test_a_deep_tree_is_cancelled_to_its_leaves(node: Node) -> None:
    await put_begun(node, new_job("x0"))
    for number in range(1, 60):
        await put_begun(node, child(f"x{number}", f"x{number - 1}"))
    await cancel(node, "x0")

    assert (await node.store.overview(frozenset())).counts == {Status.CANCELLED: 60}


async def test_those_that_wait_for_a_child_hear_of_it(node: Node) -> None:
    """And a group, which stops its members, stops their children."""
    await put_begun(node, new_job("p"))
    await put(node.store, child("a", "p", run_at=LATER))
    await put(node.store, new_job("next", options=Options(depends_on=("a",))))
    members = [new_job(one, options=Options(group="g")) for one in "mn"]
    await node.store.add_group(NewGroup(id="g", on_failure="cancel", jobs=members, then=None), NOW)
    taken = await node.claim(2)
    await node.exchange(settlements=[settlement(one, Outcome.SNOOZE, run_at=LATER) for one in taken])
    await put(node.store, child("c", "n", run_at=LATER))
    await cancel(node, "p")
    await cancel(node, "m")

    assert (await get(node.store, "next")).status is Status.CANCELLED
    assert await statuses(node.store, "mnc") == ["cancelled"] * 3


async def test_the_same_job_may_be_enqueued_by_several(node: Node) -> None:
    """It is the child of the first."""
    await put_begun(node, new_job("p"), new_job("q"))
    await put(node.store, child("a", "p", run_at=LATER))
    (again,) = await node.store.add_dependents([child("a", "q", run_at=LATER)], atomic=True)
    (other,) = await add(node.store, new_job("a", run_at=LATER))
    await cancel(node, "q")
    between = await statuses(node.store, "a")
    await cancel(node, "p")

    assert (again.verdict, other.verdict) == ("existing", "existing")
    assert (between, await statuses(node.store, "a")) == (["scheduled"], ["cancelled"])


async def test_a_damaged_child_costs_itself(node: Node) -> None:
    await put_begun(node, new_job("p"))
    await put(node.store, *(child(job_id, "p", run_at=LATER) for job_id in "abc"))
    await write(
        node.store,
        "update jobs set options = cast('junk' as bytea) where id = 'b'"
        if "postgres" in node.store.name
        else "update jobs set options = cast('junk' as blob) where id = 'b'",
    )
    await write(node.store, "insert into children (parent, seq) values (1, 98765), (98765, 1)")
    with capture_logs():
        await cancel(node, "p")
    states = await statuses(node.store, "abc")

    assert (states[0], states[2]) == ("cancelled", "cancelled")
    assert states[1] in {"cancelled", "failed"}
    assert await followed(node.store) == []


async def test_nothing_is_left_of_a_tree_that_was_deleted(node: Node) -> None:
    await put_begun(node, new_job("p"))
    await put(node.store, child("a", "p"))
    await cancel(node, "p")
    await node.store.delete(["p", "a"], NOW)

    async def left(tx: Any) -> Any:
        return await tx.rows("select parent from children union all select seq from stops", {})

    assert await node.store._look(left) == []  # type: ignore[attr-defined]


async def test_a_locked_child_is_cancelled_when_it_can_be() -> None:
    """Over PostgreSQL; those behind it are, too, and nobody waits."""
    with empty_schema() as schema:
        async with open_postgres(with_query(server_url(), schema=schema), leases="caller") as store:
            node = Node(store)
            await node.join()
            await put_begun(node, new_job("p"))
            await put(store, *(child(job_id, "p") for job_id in "abc"))
            with psycopg.connect(server_url()) as other:
                other.execute(f"set search_path = {schema}".encode())
                other.execute("select from live join jobs using (seq) where id = 'b' for update of live")
                with trio.fail_after(5):
                    await store.cancel(["p"], NOW)
                    step = await store.follow(NOW)
                between = await statuses(store, "abc")
                other.rollback()
            await followed(store)

            assert step.more
            assert between == ["cancelled", "queued", "cancelled"]
            assert await statuses(store, "abc") == ["cancelled"] * 3
            assert [settlement(one, Outcome.DONE) for one in await node.claim(5)] == []
