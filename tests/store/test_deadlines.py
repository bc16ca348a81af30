"""A deadline: what becomes of jobs that still wait then, on every store."""

from typing import Any

import pytest

from jobpipe.fingerprints import marked
from jobpipe.job import NewJob, Options, Outcome, Status
from jobpipe.store.base import Changed, Store
from jobpipe.transitions import PAST_DEADLINE
from tests.store.test_contract import NOW, Node, add, get, new_job, start
from tests.store.test_dependencies import dependent, enqueue

LATE = marked(PAST_DEADLINE, "echo")


@pytest.fixture
async def node(store: Store) -> Node:
    one = Node(store)
    await one.join()
    return one


def due(job_id: str = "a", deadline: float = NOW + 10, **more: Any) -> NewJob:
    return new_job(job_id, **{"expires_at": deadline, "options": Options(deadline=deadline), **more})


async def test_a_job_that_waits_at_its_deadline_has_failed(node: Node) -> None:
    """One that expires before does that."""
    early = new_job("early", expires_at=NOW + 5, options=Options(deadline=NOW + 10))
    await add(node.store, due(), early, new_job("plain", expires_at=NOW + 10))
    before = await node.exchange(NOW + 9)
    receipts = await node.exchange(NOW + 10)
    jobs = {job_id: await get(node.store, job_id) for job_id in ("a", "early", "plain")}
    counts = (await node.store.queue("default")).counts  # type: ignore[union-attr]

    assert before.next_due == NOW + 10
    assert {one.id: one.status for one in receipts.changes if one.id == "a"} in ({}, {"a": Status.FAILED})
    assert {job_id: job.status for job_id, job in jobs.items()} == {
        "a": Status.FAILED,
        "early": Status.EXPIRED,
        "plain": Status.EXPIRED,
    }
    assert (jobs["a"].state.error, jobs["a"].state.finished_at) == (LATE, NOW + 10)
    assert jobs["plain"].state.error is None
    assert counts == {Status.FAILED: 1, Status.EXPIRED: 2}


@pytest.mark.parametrize("status", [Status.SCHEDULED, Status.RETRYING, Status.BLOCKED])
async def test_whatever_it_waits_for(node: Node, status: Status) -> None:
    if status is Status.SCHEDULED:
        await add(node.store, due(run_at=NOW + 9.5))
    elif status is Status.RETRYING:
        await add(node.store, due())
        await node.settle(await node.take(), Outcome.RETRY, run_at=NOW + 60)
    else:
        await add(node.store, new_job("first", run_at=NOW + 60))
        job = dependent("a", "first")
        await enqueue(
            node.store,
            new_job(
                "a",
                expires_at=NOW + 10,
                options=Options(depends_on=job.options.depends_on, deadline=NOW + 10),
            ),
        )
    waits = (await get(node.store, "a")).status
    await node.exchange(NOW + 10)
    job_then = await get(node.store, "a")

    assert waits is status
    assert (job_then.status, job_then.state.error) == (Status.FAILED, LATE)


async def test_those_that_wait_for_it_are_cancelled(node: Node) -> None:
    await add(node.store, due())
    await enqueue(node.store, dependent("next", "a"))
    receipts = await node.exchange(NOW + 10)

    assert Changed("a", Status.FAILED) in receipts.changes
    assert Changed("next", Status.CANCELLED) in receipts.changes


async def test_a_held_job_is_left_to_its_node(node: Node) -> None:
    """And fails when it waits again; a rescue is such a case."""
    await add(node.store, due())
    job = await node.take()
    await node.exchange(NOW + 5, starts=[start(job)])
    await node.exchange(NOW + 20)
    held = await get(node.store, "a")
    await node.settle(job, Outcome.INTERRUPTED, NOW + 21)
    await node.exchange(NOW + 22)

    assert held.status is Status.RUNNING
    assert (await get(node.store, "a")).state.error == LATE


async def test_a_retry_by_hand_drops_a_deadline_that_has_passed(node: Node) -> None:
    """The first request, sent again, still asks for the same."""
    first = due()
    await add(node.store, first)
    await node.exchange(NOW + 10)
    await node.store.retry(["a"], NOW + 20)
    job = await get(node.store, "a")
    (again,) = await add(node.store, first)

    assert (job.status, job.asked.expires_at, job.asked.options.deadline) == (Status.QUEUED, None, None)
    assert again.verdict == "existing"


async def test_a_retry_by_hand_keeps_a_deadline_that_lies_ahead(node: Node) -> None:
    """Also where an earlier expires_at has passed."""
    early = new_job("a", expires_at=NOW + 5, options=Options(deadline=NOW + 10))
    await add(node.store, early)
    await node.exchange(NOW + 6)
    await node.store.retry(["a"], NOW + 7)
    job = await get(node.store, "a")
    await node.exchange(NOW + 10)

    assert (job.asked.expires_at, job.asked.options.deadline) == (NOW + 10, NOW + 10)
    assert (await get(node.store, "a")).state.error == LATE


async def test_options_that_only_look_like_a_deadline_are_none(node: Node) -> None:
    """A tag, say."""
    await add(node.store, new_job("a", expires_at=NOW + 10, options=Options(tags=("deadline",))))
    await node.exchange(NOW + 10)

    assert (await get(node.store, "a")).status is Status.EXPIRED
