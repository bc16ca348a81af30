"""Settlements that bring new jobs, over every store: both are stored, or neither is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from jobpipe.fingerprints import marked
from jobpipe.job import JobError, NewJob, Options, Outcome, Status
from jobpipe.store.base import Add, Changed, Claimed, QueueSettings, Receipts, Settlement, Store
from jobpipe.store.verbs import bringing
from tests.store.test_contract import LATER, NOW, Node, add, get, listed, new_job, settlement, start


@pytest.fixture
async def node(store: Store) -> Node:
    one = Node(store)
    await one.join()
    return one


@pytest.fixture
async def job(node: Node) -> Claimed:
    """A job that the node runs."""
    await add(node.store, new_job("parent", queue="parents"))
    taken = await node.take()
    await node.start(taken)
    return taken


def ends_with(job: Claimed, *jobs: NewJob, **changes: Any) -> Settlement:
    """The end of a job whose handler has enqueued others."""
    return settlement(job, Outcome.DONE, jobs=jobs, **changes)


async def end(node: Node, job: Claimed, *jobs: NewJob, **rest: Any) -> Receipts:
    return await node.exchange(settlements=[ends_with(job, *jobs)], **rest)


@contextmanager
def never_careful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is new, and waits for nothing, is stored without a look at each."""

    async def fail(*_: object) -> Settlement:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(bringing, "_stored", fail)
        yield


def of(depends_on: Sequence[str], job_id: str, **options: Any) -> NewJob:
    return new_job(job_id, options=Options(depends_on=tuple(depends_on), **options))


# --- both -------------------------------------------------------------------------------------------------------------


async def test_new_jobs_are_there_once_the_job_is_done(node: Node, job: Claimed, monkeypatch: Any) -> None:
    """With all that was asked of them; they are counted, and can be claimed."""
    later = new_job("y", run_at=LATER, options=Options(tags=("blue",), timeout=5))
    with never_careful(monkeypatch):
        receipts = await end(node, job, new_job("x"), later)
    taken = await node.claim(9)

    assert (await get(node.store, "parent")).state.result == b'"ok"'
    assert (receipts.stale, receipts.locked, receipts.settled) == (frozenset(), frozenset(), {})
    assert (await get(node.store, "y")).asked == later
    assert [one.id for one in taken] == ["x"]
    assert await listed(node.store, tag="blue") == ["y"]
    queue = await node.store.queue("default")
    assert queue is not None
    assert sum(queue.counts.values()) == 2


async def test_the_node_is_told_that_they_are_ready(node: Node, job: Claimed) -> None:
    """It has them with the same exchange, or is to ask for them at once."""
    receipts = await end(node, job, new_job("x"), claim=5)

    assert [one.id for one in receipts.claimed] == ["x"] or receipts.more_ready
    assert [*receipts.claimed, *await node.claim(5)] != []
    assert receipts.waiting == 1 - len(receipts.claimed)


async def test_a_batch_may_hold_all_sorts_of_settlements(node: Node, monkeypatch: Any) -> None:
    await add(node.store, *(new_job(job_id) for job_id in "abcde"))
    jobs = await node.claim(5)
    with never_careful(monkeypatch):
        receipts = await node.exchange(
            starts=[start(one) for one in jobs],
            settlements=[
                settlement(jobs[0], Outcome.DONE),
                ends_with(jobs[1], new_job("x")),
                settlement(jobs[2], Outcome.RETRY),
                ends_with(jobs[3], new_job("y"), new_job("z")),
                settlement(jobs[4], Outcome.FAIL),
            ],
            adds=[Add([new_job("n")])],
        )

    assert (receipts.stale, receipts.settled) == (frozenset(), {})
    assert [(await get(node.store, one)).status.value for one in "abcdexyzn"] == [
        *("done", "done", "retrying", "done", "failed"),
        *("queued",) * 4,
    ]


async def test_a_late_settlement_brings_nothing(node: Node, job: Claimed) -> None:
    """Another claim has the job; the settlements beside it are written."""
    await add(node.store, new_job("other"))
    other = await node.take()
    late = ends_with(job, new_job("x"))
    receipts = await node.exchange(
        settlements=[
            settlement(other, Outcome.DONE),
            ends_with(replace(job, claim=99), new_job("y")),
            late,
        ]
    )
    again = await node.exchange(settlements=[late])

    assert receipts.stale == {(job.seq, 99)}
    assert again.stale == {(job.seq, job.claim)}
    assert [(await get(node.store, one)).status.value for one in ("other", "parent", "x")] == [
        *("done", "done", "queued")
    ]
    assert await node.store.get("y") is None


async def test_who_waits_for_the_job_goes_on(node: Node, job: Claimed) -> None:
    await node.store.add_dependents([of(["parent"], "next")], atomic=True)
    receipts = await end(node, job, new_job("x"))

    assert receipts.changes == [Changed("next", Status.QUEUED)]
    assert [(await get(node.store, one)).status.value for one in ("parent", "x", "next")] == [
        *("done", "queued", "queued")
    ]


async def test_new_jobs_may_wait_for_others_and_for_the_one_that_enqueues_them(
    node: Node, job: Claimed
) -> None:
    """For one another, for jobs that were there before, and for the job that ends here."""
    await add(node.store, new_job("old", run_at=LATER))
    receipts = await end(
        node, job, new_job("a"), of(["a", "old"], "b"), of(["parent"], "c"), of(["b"], "d", needs="ended")
    )
    await node.store.cancel(["old"], NOW)

    assert receipts.settled == {}
    assert receipts.changes == [Changed("c", Status.QUEUED)]
    assert [(await get(node.store, one)).status.value for one in "abcd"] == [
        *("queued", "cancelled", "queued", "queued")
    ]


# --- neither ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (new_job("taken", payload=b"2"), "the id 'taken' belongs to another job"),
        (of(["nobody"], "x"), "the job 'x' depends on 'nobody', which does not exist"),
        (new_job("x", queue="shut"), "the queue 'shut' of the job 'x' takes no new jobs"),
        (of(["failed"], "x"), "the job 'x' depends on 'failed', which did not end as needed"),
    ],
)
async def test_a_job_whose_new_jobs_cannot_be_stored_has_failed(
    node: Node, job: Claimed, wrong: NewJob, words: str
) -> None:
    """None of them is stored; for good, since to run it again would come to the same. Others beside it are done."""
    await add(node.store, new_job("taken", run_at=LATER), new_job("other"), new_job("failed"))
    others = {one.id: one for one in await node.claim(9)}
    await node.settle(others["failed"], Outcome.FAIL)
    await node.store.put_queue("shut", QueueSettings(closed=True))
    receipts = await node.exchange(
        settlements=[ends_with(job, new_job("first"), wrong), ends_with(others["other"], new_job("well"))]
    )
    parent = await get(node.store, "parent")

    assert receipts.settled == {job.seq: Status.FAILED}
    assert receipts.stale == frozenset()
    assert parent.status is Status.FAILED
    assert parent.state.error == marked(JobError("EnqueueError", bringing.NOTHING_STORED + words), "echo")
    assert parent.state.result is None
    assert [one.outcome for one in parent.attempts] == [Outcome.FAIL]
    assert await node.store.get("first") is None
    assert [(await get(node.store, one)).status.value for one in ("other", "well")] == ["done", "queued"]


async def test_jobs_that_depend_on_a_job_that_failed_so_are_cancelled(node: Node, job: Claimed) -> None:
    await node.store.add_dependents([of(["parent"], "next")], atomic=True)
    receipts = await end(node, job, of(["nobody"], "x"))

    assert receipts.changes == [Changed("next", Status.CANCELLED)]


async def test_a_job_that_is_there_already_is_not_in_the_way(node: Node, job: Claimed) -> None:
    """A job that is retried by hand enqueues the same jobs; two jobs may enqueue the same one."""
    await add(node.store, new_job("x", run_at=LATER), new_job("other"))
    other = await node.take()
    receipts = await node.exchange(
        settlements=[
            ends_with(job, new_job("x", run_at=LATER), new_job("y")),
            ends_with(other, new_job("y"), new_job("z")),
        ]
    )

    assert receipts.settled == {}
    assert [(await get(node.store, one)).status.value for one in ("parent", "other", "x", "y", "z")] == [
        *("done", "done", "scheduled", "queued", "queued")
    ]


async def test_a_settlement_that_is_written_twice_brings_its_jobs_once(node: Node, job: Claimed) -> None:
    await end(node, job, new_job("x"))
    taken = await node.take()
    await node.settle(taken, Outcome.DONE)
    await end(node, job, new_job("x"))

    assert (await get(node.store, "x")).status is Status.DONE
    assert await listed(node.store) == ["x", "parent"]


@pytest.mark.slow
async def test_ten_thousand_at_once(node: Node, job: Claimed) -> None:
    receipts = await end(node, job, *(new_job(f"x{number}") for number in range(10_000)))

    assert (receipts.waiting, receipts.settled) == (10_000, {})
