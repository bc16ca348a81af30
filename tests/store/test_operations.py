"""Operations over every store: each job is changed once, wherever a slice ends."""

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from jobpipe.job import GroupOutcome, Options, Outcome, Status
from jobpipe.lanes import Limits, PerKey
from jobpipe.store.base import Changes, Filter, NewOperation, Operation, QueueSettings, Slice, Sliced, Store
from jobpipe.store.verbs import operations
from jobpipe.store.verbs.transaction import Transaction
from tests.store.test_contract import LATER, NOW, Node, add, bring_to, get, new_job
from tests.store.test_groups import followed, put
from tests.store.test_merging import ask, unique

pytestmark = pytest.mark.long

ALL = Filter(queue="default")
RETRY = NewOperation(id="o", verb="retry", where=ALL)
UNTIL = NOW + 15


@pytest.fixture
async def node(store: Store) -> Node:
    """A node with a lease that outlives all of this."""
    one = Node(store)
    await one.join(lease_until=NOW + 1e6)
    return one


async def fill(store: Store, *ids: str, **changes: Any) -> None:
    await add(store, *(new_job(job_id, **({"run_at": LATER} | changes)) for job_id in ids))


async def do_slice(
    store: Store, operation: Operation, limit: int = 2, now: float = NOW, **changes: Any
) -> Sliced:
    """A slice of an operation, as the engine does it."""
    where = replace(operation.asked.where, content=False)
    page = await store.jobs(where, limit, operation.place)
    part = Slice(
        operation=operation.asked.id,
        place=operation.place,
        ids=[job.id for job in page.jobs],
        next=page.next_before,
        next_at=now,
    )
    return await store.slice(replace(part, **changes), "node", now, now + 15)


async def do_all(store: Store, operation: Operation, limit: int = 2) -> list[Sliced]:
    done = list[Sliced]()
    while operation.state == "running":
        done.append(await do_slice(store, operation, limit))
        moved = done[-1].operation
        assert moved is not None
        operation = moved
    return done


def numbers(operation: Operation | None) -> tuple[str, int, int, int]:
    assert operation is not None
    return operation.state, operation.matched, operation.changed, operation.refused


async def test_an_operation_is_kept_as_it_was_asked_for(store: Store) -> None:
    """And begins with the newest job."""
    await fill(store, "a")
    asked = NewOperation(
        id="o",
        verb="edit",
        where=Filter(status=(Status.QUEUED, Status.FAILED), kind="e*", created_after=NOW - 9, error_type="E"),
        changes=Changes(priority=5, payload=b'{"n":2}', tags=("a", "b"), timeout=None),
        rate=2.5,
    )
    begun = await store.begin_operation(asked, NOW)
    found = await store.operation("o")

    assert begun == found
    assert begun.asked.where.top is not None
    assert replace(begun.asked, where=replace(begun.asked.where, top=None)) == asked
    assert (begun.state, begun.place, begun.created_at, begun.ended_at) == ("running", None, NOW, None)
    assert await store.operation("other") is None


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_an_operation_changes_the_jobs_that_its_filter_means(store: Store, limit: int) -> None:
    """Each once, from the newest to the oldest, however large its slices are."""
    await fill(store, "a", "b", "c", "d")
    await fill(store, "x", queue="other")
    begun = await store.begin_operation(NewOperation(id="o", verb="cancel", where=ALL), NOW)
    slices = await do_all(store, begun, limit)

    changed = [change.id for one in slices for change in one.changes if change.verdict == "changed"]
    assert changed == ["d", "c", "b", "a"]
    assert numbers(slices[-1].operation) == ("done", 4, 4, 0)
    assert {(await get(store, one)).status for one in "abcd"} == {Status.CANCELLED}
    assert (await get(store, "x")).status is Status.SCHEDULED
    assert slices[-1].operation == await store.operation("o")


@pytest.mark.parametrize(
    ("verb", "changes", "status", "refused"),
    [
        ("cancel", None, Status.CANCELLED, 1),
        ("retry", None, Status.QUEUED, 3),
        ("promote", None, Status.QUEUED, 2),
        ("delete", None, None, 1),
        ("move", Changes(queue="new"), None, 2),
        ("edit", Changes(priority=7), None, 2),
    ],
)
async def test_each_verb_refuses_what_it_refuses_of_one_job(
    node: Node, verb: Any, changes: Changes | None, status: Status | None, refused: int
) -> None:
    """Of a job that has ended, one that runs, and two that wait."""
    await bring_to(node, Status.DONE, "ended")
    await bring_to(node, Status.RUNNING, "runs")
    await fill(node.store, "a", "b")
    begun = await node.store.begin_operation(NewOperation(id="o", verb=verb, where=ALL, changes=changes), NOW)
    slices = await do_all(node.store, begun)

    assert numbers(slices[-1].operation) == ("done", 4, 4 - refused, refused)
    if verb == "delete":
        assert [job.id for job in (await node.store.jobs(Filter(), 9, None)).jobs] == ["runs"]
    elif verb == "move":
        assert [job.id for job in (await node.store.jobs(Filter(queue="new"), 9, None)).jobs] == ["b", "a"]
    elif verb == "edit":
        assert [(await get(node.store, one)).asked.priority for one in ("a", "b", "runs")] == [7, 7, 0]
    elif verb == "retry":
        assert (await get(node.store, "ended")).status is status
    else:
        assert {(await get(node.store, one)).status for one in ("a", "b")} == {status}


async def test_later_jobs_are_not_meant(store: Store) -> None:
    """Those that are enqueued while it goes on, though their times may lie before."""
    await fill(store, "a", "b", "c")
    begun = await store.begin_operation(NewOperation(id="o", verb="cancel", where=ALL), NOW)
    first = await do_slice(store, begun)
    assert first.operation is not None
    await fill(store, "late", created_at=NOW - 100)
    await do_all(store, first.operation)

    assert (await get(store, "late")).status is Status.SCHEDULED
    assert (await get(store, "a")).status is Status.CANCELLED


async def test_what_has_changed_meanwhile_is_looked_at_again(store: Store) -> None:
    """A job that the filter does not mean any more is left alone; one that is gone, too."""
    await fill(store, "a", "b", "c")
    begun = await store.begin_operation(NewOperation(id="o", verb="cancel", where=ALL), NOW)
    page = await store.jobs(begun.asked.where, 9, None)
    await store.edit(["a"], {"queue": "other"}, NOW)
    await store.delete(["b"], NOW)
    part = Slice(operation="o", place=None, ids=[job.id for job in page.jobs], next=None, next_at=NOW)
    done = await store.slice(part, "node", NOW, UNTIL)

    assert numbers(done.operation) == ("done", 1, 1, 0)
    assert (await get(store, "a")).status is Status.SCHEDULED


async def test_a_slice_is_done_once(store: Store) -> None:
    """Whoever comes second finds the operation moved on."""
    await fill(store, "a", "b", "c")
    begun = await store.begin_operation(NewOperation(id="o", verb="cancel", where=ALL), NOW)
    first = await do_slice(store, begun)
    second = await do_slice(store, begun)

    assert [change.id for change in first.changes] == ["c", "b"]
    assert (second.changes, second.operation) == ((), first.operation)


async def test_a_stopped_operation_does_no_more(store: Store) -> None:
    """What it has done stays; it is stopped once, and what has ended stays as it is."""
    await fill(store, "a", "b", "c")
    begun = await store.begin_operation(NewOperation(id="o", verb="cancel", where=ALL), NOW)
    first = await do_slice(store, begun)
    stopped = await store.stop_operation("o", LATER)
    assert first.operation is not None
    late = await do_slice(store, first.operation)
    again = await store.stop_operation("o", LATER + 9)

    assert stopped is not None
    assert (numbers(stopped), stopped.ended_at) == (("stopped", 2, 2, 0), LATER)
    assert (late.changes, late.operation, again) == ((), stopped, stopped)
    assert (await get(store, "a")).status is Status.SCHEDULED
    assert await store.stop_operation("none", NOW) is None


async def test_a_job_that_cannot_be_written_is_passed_over(store: Store) -> None:
    await fill(store, "a")
    begun = await store.begin_operation(NewOperation(id="o", verb="cancel", where=ALL), NOW)
    done = await do_slice(store, begun, ids=[], refused=1)

    assert numbers(done.operation) == ("done", 1, 0, 1)


async def test_no_job_is_moved_into_a_closed_queue(store: Store) -> None:
    await fill(store, "a")
    await store.put_queue("shut", QueueSettings(closed=True))
    asked = NewOperation(id="o", verb="move", where=ALL, changes=Changes(queue="shut"))
    (done,) = await do_all(store, await store.begin_operation(asked, NOW))

    assert numbers(done.operation) == ("done", 1, 0, 1)


async def test_a_node_takes_the_operation_that_waited_longest(store: Store) -> None:
    """One that is another node's is left alone until that one seems to be gone."""
    for number, name in enumerate("pq"):
        await store.begin_operation(replace(RETRY, id=name), NOW + number)
    first = await store.take_operation("one", NOW + 2, NOW + 20)
    second = await store.take_operation("two", NOW + 2, NOW + 30)
    none = await store.take_operation("three", NOW + 2, NOW + 30)
    own = await store.take_operation("one", NOW + 3, NOW + 20)
    left = await store.take_operation("three", NOW + 20, NOW + 30)

    taken = [one.operation and one.operation.asked.id for one in (first, second, none, own, left)]
    assert taken == ["p", "q", None, "p", "p"]


async def test_a_slice_says_when_the_next_one_may_be_done(store: Store) -> None:
    """Until then nobody takes the operation, and others have their turn."""
    await fill(store, "a", "b", "c")
    begun = await store.begin_operation(RETRY, NOW)
    await do_slice(store, begun, next_at=NOW + 5)
    resting = await store.take_operation("node", NOW, UNTIL)
    taken = await store.take_operation("node", NOW + 5, UNTIL)

    assert (resting.operation, resting.next_at) == (None, NOW + 5)
    assert taken.operation is not None


async def test_operations_are_listed_newest_first_and_forgotten_in_the_end(store: Store) -> None:
    """A week after their end, when another one begins."""
    for number in range(4):
        await store.begin_operation(replace(RETRY, id=f"o{number}"), NOW + number)
    await store.stop_operation("o0", NOW + 10)
    await store.stop_operation("o1", LATER)
    before = [one.asked.id for one in await store.operations(3)]
    await store.begin_operation(replace(RETRY, id="new"), NOW + 11 + operations.KEPT)

    assert before == ["o3", "o2", "o1"]
    assert [one.asked.id for one in await store.operations()] == ["new", "o3", "o2", "o1"]


@pytest.mark.parametrize(
    "damage",
    ["verb = 'explode'", "state = 'odd'", "filter = '{'", "changes = '[]'", "place_at = 1, place_seq = -5"],
)
async def test_an_operation_that_cannot_be_read_does_nothing(store: Store, damage: str) -> None:
    """It says so, is stopped, and keeps no other from going on."""
    await fill(store, "a")
    await store.begin_operation(NewOperation(id="bad", verb="delete", where=ALL), NOW)
    await store.begin_operation(replace(RETRY, id="good"), NOW + 1)

    async def harm(tx: Transaction) -> None:
        value = damage.replace("'{'", ":value").replace("'[]'", ":value")
        tx.run(f"update operations set {value} where id = 'bad'", {"value": b"{"})

    some: Any = store
    await some._transact(harm)
    shown = await store.operation("bad")
    taken: Sequence[Any] = [(await store.take_operation("node", NOW + 1, UNTIL)).operation for _ in range(2)]

    assert shown is not None
    if shown.error is not None:
        assert "cannot be read" in shown.error.message
    assert {one.asked.id for one in taken if one} <= {"good", "bad"}
    assert any(one.asked.id == "good" for one in taken if one) or taken[0].asked.id == "bad"
    assert (await get(store, "a")).status is Status.SCHEDULED


# What else belongs to jobs is done as for one job


async def do(store: Store, verb: Any, where: Filter = ALL, changes: Changes | None = None) -> Operation:
    """Do a verb to all jobs that a filter means; returns the operation at its end."""
    asked = NewOperation(id=f"{verb}-all", verb=verb, where=where, changes=changes)
    slices = await do_all(store, await store.begin_operation(asked, NOW))
    done = slices[-1].operation
    assert done is not None
    return done


async def test_members_of_a_group_that_are_retried_count_again(node: Node) -> None:
    await put(node.store, "a", "b", "c")
    await node.store.cancel(["a", "b"], NOW)
    await followed(node.store)
    done = await do(node.store, "retry", Filter(group="g", status=Status.CANCELLED))
    for _ in range(3):
        await node.settle(await node.take(), Outcome.DONE)
    callback = await node.take()

    assert numbers(done) == ("done", 2, 2, 0)
    assert callback.options.outcome == GroupOutcome("g", 3, done=3)


async def test_a_group_whose_jobs_are_cancelled_ends(node: Node) -> None:
    await put(node.store, "a", "b", "c")
    done = await do(node.store, "cancel", Filter(group="g"))
    await followed(node.store)

    assert numbers(done) == ("done", 3, 3, 0)
    assert (await node.take()).options.outcome == GroupOutcome("g", 3, cancelled=3)


@pytest.mark.parametrize("verb", ["delete", "cancel"])
async def test_unique_keys_are_let_go(node: Node, verb: Any) -> None:
    await ask(node.store, unique("a"))
    await do(node.store, verb)
    (receipt,) = await ask(node.store, unique("b"))

    assert receipt.verdict == "stored"


async def test_of_jobs_with_one_unique_key_one_is_retried(node: Node) -> None:
    for job_id in ("a", "b"):
        await ask(node.store, unique(job_id))
        await node.store.cancel([job_id], NOW)
    done = await do(node.store, "retry")

    assert numbers(done) == ("done", 2, 1, 1)
    assert {(await get(node.store, one)).status for one in "ab"} == {Status.QUEUED, Status.CANCELLED}


async def test_children_of_jobs_that_are_cancelled_are_too(node: Node) -> None:
    await fill(node.store, "p", "q", run_at=NOW)
    await node.claim(2)
    children = [new_job(f"{one}1", queue="other", options=Options(parent=one)) for one in "pq"]
    await node.store.add_dependents(children, atomic=True)
    await do(node.store, "cancel")
    await followed(node.store)

    assert {(await get(node.store, one)).status for one in ("p1", "q1")} == {Status.CANCELLED}


async def test_jobs_of_a_key_leave_their_lane_and_stand_in_another(node: Node) -> None:
    """Limits of the queue hold for those that are moved there."""
    await node.store.put_limits("mail", Limits(per_key=PerKey(max_running=1)))
    await fill(node.store, "a", "b", "c", queue="mail", run_at=NOW, options=Options(key="k"))
    await fill(node.store, "d", "e", queue="news", run_at=NOW)
    cancelled = await do(node.store, "cancel", Filter(queue="mail", key="k", id=("a", "b")))
    renamed = await do(node.store, "edit", Filter(queue="news"), Changes(key="k"))
    moved = await do(node.store, "move", Filter(key="k", queue="news"), Changes(queue="mail"))
    key = await node.store.key("mail", "k")
    taken = await node.claim(9)

    assert [one.changed for one in (cancelled, renamed, moved)] == [2, 2, 2]
    assert key.waiting == 3
    assert [one.id for one in taken] == ["c"]


async def test_no_job_expires_after_its_deadline(node: Node) -> None:
    """Whatever an edit says."""
    await fill(node.store, "a", expires_at=LATER + 5, options=Options(deadline=LATER + 9))
    await fill(node.store, "b")
    ends = list[Any]()
    for number, expires_at in enumerate((LATER + 50, None, LATER + 7)):
        changes = Changes(expires_at=expires_at)
        asked = NewOperation(id=f"o{number}", verb="edit", where=ALL, changes=changes)
        await do_all(node.store, await node.store.begin_operation(asked, NOW))
        ends.append(tuple([(await get(node.store, one)).asked.expires_at for one in "ab"]))

    assert ends == [(LATER + 9, LATER + 50), (LATER + 9, None), (LATER + 7, LATER + 7)]
