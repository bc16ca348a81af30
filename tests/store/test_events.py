"""What events tell of jobs, over every store."""

import math
from typing import Any

import pytest

from jobpipe.job import JobError, Options, Outcome, Status
from jobpipe.store.base import EndPlace, Store
from jobpipe.store.verbs.transaction import Transaction
from tests.store.test_contract import NOW, Node, add, bring_to, new_job

BEGIN = EndPlace(-math.inf, 0)
NOBODY: frozenset[EndPlace] = frozenset()


@pytest.fixture
async def node(store: Store) -> Node:
    """A node with a lease that outlives all of this."""
    one = Node(store)
    await one.join(lease_until=NOW + 1e6)
    return one


async def harm(store: Any, sql: str, **values: Any) -> None:
    """Damage rows by hand."""

    async def verb(tx: Transaction) -> None:
        tx.run(sql, values)

    await store._transact(verb)


async def test_a_summary_says_what_a_job_is(node: Node) -> None:
    """In short; those that are not there are left out, and so is what no id can be."""
    options = Options(tags=("x", "y"), key="k", group="g")
    await bring_to(node, Status.FAILED, "a", queue="q", kind="echo", options=options)
    await add(node.store, new_job("b"))
    found = {one.id: one for one in await node.store.summaries(["a", "b", "b", "none", "nul\0", "☃"])}
    failed, queued = found["a"], found["b"]

    assert sorted(found) == ["a", "b"]
    assert (failed.status, failed.kind, failed.queue, failed.attempt) == (Status.FAILED, "echo", "q", 1)
    assert (failed.key, failed.group, tuple(failed.tags)) == ("k", "g", ("x", "y"))
    assert (failed.node, failed.finished_at is not None) == (node.name, True)
    assert isinstance(failed.error, JobError)
    assert failed.error.traceback is None
    assert (queued.status, queued.key, queued.node, queued.error) == (Status.QUEUED, None, None, None)


async def test_ends_are_read_in_their_order_and_page_by_page(node: Node) -> None:
    """Those that are known already are looked at, and left out."""
    for number, seconds in enumerate((3, 1, 2)):
        await add(node.store, new_job(f"j{number}"))
        await node.settle(await node.take(), Outcome.DONE, settled_at=NOW + seconds)
    await bring_to(node, Status.FAILED, "other")
    first = await node.store.ends(Status.DONE, BEGIN, 2, NOBODY)
    assert first.next is not None
    rest = await node.store.ends(Status.DONE, first.next, 2, NOBODY)
    known = frozenset(place for place, _ in first.jobs)
    again = await node.store.ends(Status.DONE, BEGIN, 10, known)

    assert [(place.at, job.id) for place, job in first.jobs] == [(NOW + 1, "j1"), (NOW + 2, "j2")]
    assert [job.id for _, job in rest.jobs] == ["j0"]
    assert rest.next is None
    assert [job.id for _, job in again.jobs] == ["j0"]


@pytest.mark.parametrize("column", ["options", "error"])
async def test_a_damaged_row_keeps_no_other_from_being_told(node: Node, column: str) -> None:
    """What of it cannot be read is left out."""
    for job_id in ("a", "b"):
        await bring_to(node, Status.FAILED, job_id, options=Options(key="k"))
    table = "jobs" if column == "options" or not hasattr(node.store, "watch") else "ended"
    which = "(select seq from jobs where id = 'a')"
    await harm(node.store, f"update {table} set {column} = :value where seq = {which}", value=b"\xff{")
    found = {one.id: one for one in await node.store.summaries(["a", "b"])}
    ends = await node.store.ends(Status.FAILED, BEGIN, 10, NOBODY)

    assert sorted(found) == ["a", "b"]
    assert (found["a"].key if column == "options" else found["a"].error) is None
    assert sorted(job.id for _, job in ends.jobs) == ["a", "b"]
