"""Settlements that bring new jobs, over every store: both are stored, or neither is."""

import random
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from jobpipe.fingerprints import marked
from jobpipe.job import JobError, NewJob, Options, Outcome, Status
from jobpipe.store.base import Add, Changed, Claimed, Filter, QueueSettings, Receipts, Settlement, Store
from jobpipe.store.postgres import open_postgres
from jobpipe.store.verbs import bringing
from tests.store.server import empty_schema, server_url, with_query
from tests.store.test_contract import LATER, NOW, Node, add, get, listed, new_job, settlement, start
from tests.store.test_merging import ask, debounced, keys, payload, throttled, unique

pytestmark = pytest.mark.long


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


# --- merged with others -----------------------------------------------------------------------------------------------


async def test_where_another_job_has_the_key_that_one_stays(node: Node, job: Claimed) -> None:
    """With `return`, and within a window: nothing more is to be done, whether that job is still there or not."""
    await ask(node.store, unique("x"), unique("gone", key="g", for_=60.0), throttled("t", NOW))
    await node.store.delete(["gone"], NOW)
    before = [await get(node.store, one) for one in ("x", "t")]
    receipts = await end(
        node,
        job,
        unique("a"),
        unique("b", key="g", for_=60.0),
        throttled("c", NOW),
        unique("d", key="new"),
        new_job("e"),
    )

    assert receipts.settled == {}
    assert (await get(node.store, "parent")).status is Status.DONE
    assert [await get(node.store, one) for one in ("x", "t")] == before
    assert sorted(await listed(node.store)) == ["d", "e", "parent", "t", "x"]


async def test_what_waits_is_replaced(node: Node, job: Claimed) -> None:
    """By `replace`, a debounce, and at the end of a window."""
    await ask(node.store, unique("x", run_at=LATER), debounced("y", NOW), throttled("z", NOW, trailing=True))
    await ask(node.store, throttled("z2", NOW + 1, trailing=True))
    receipts = await end(
        node,
        job,
        unique("a", on_conflict="replace"),
        debounced("b", NOW + 2),
        throttled("c", NOW + 2, trailing=True),
    )

    assert receipts.settled == {}
    assert [await payload(node.store, one) for one in ("x", "y", "z", "z2")] == [
        b'"a"',
        b'"b"',
        b'"z"',
        b'"c"',
    ]
    assert (await get(node.store, "y")).asked.run_at == NOW + 7
    assert sorted(await listed(node.store)) == ["parent", "x", "y", "z", "z2"]


@pytest.mark.parametrize("on_conflict", ["reject", "replace"])
async def test_a_job_whose_new_jobs_have_to_have_a_key_that_is_taken_has_failed(
    node: Node, job: Claimed, on_conflict: str
) -> None:
    """By a job that runs. Nothing is stored or replaced; who is beside it is done, and the key is as it was."""
    await add(node.store, new_job("other"))
    other = await node.take()
    await ask(node.store, unique("x"), unique("y", key="m", run_at=LATER))
    await node.start(await node.take())
    receipts = await node.exchange(
        settlements=[
            ends_with(
                job,
                new_job("first"),
                unique("a", key="m", on_conflict="replace"),
                unique("b", on_conflict=on_conflict),
                unique("c", key="free"),
            ),
            ends_with(other, unique("d", key="free")),
        ]
    )
    parent = await get(node.store, "parent")

    assert receipts.settled == {job.seq: Status.FAILED}
    words = "the job 'b' is not unique: its key is that of the job 'x'"
    assert parent.state.error == marked(JobError("EnqueueError", bringing.NOTHING_STORED + words), "echo")
    assert await payload(node.store, "y") == b'"y"'
    assert sorted(await listed(node.store)) == ["d", "other", "parent", "x", "y"]
    assert [one.other for one in await ask(node.store, unique("n", key="free"), unique("o"))] == ["d", "x"]


async def test_jobs_that_end_together_have_no_key_any_more(node: Node) -> None:
    """What they bring may have it: the first of several does."""
    await ask(node.store, unique("p"), unique("q", key="m"))
    taken = {one.id: one for one in await node.claim(2)}
    receipts = await node.exchange(
        settlements=[
            ends_with(
                taken["p"], unique("a", on_conflict="reject"), unique("b", key="m", on_conflict="reject")
            ),
            ends_with(taken["q"], unique("c", key="m"), unique("d")),
        ]
    )

    assert receipts.settled == {}
    assert [(await get(node.store, one)).status.value for one in "pqab"] == [
        "done",
        "done",
        "queued",
        "queued",
    ]
    assert sorted(await listed(node.store)) == ["a", "b", "p", "q"]


async def test_a_late_settlement_takes_no_key(node: Node, job: Claimed) -> None:
    receipts = await node.exchange(settlements=[ends_with(replace(job, claim=99), unique("a"))])

    assert receipts.stale == {(job.seq, 99)}
    assert await keys(node.store) == 0


async def test_all_or_none_where_a_key_has_to_be_had(node: Node) -> None:
    """As for what a handler stores at once. One that only returns who has the key refuses nothing."""
    await ask(node.store, unique("x"))
    jobs = [new_job("a"), unique("b"), unique("c", on_conflict="reject")]
    refused = await node.store.add_dependents(jobs, atomic=True, strict=True)
    stored = await node.store.add_dependents(jobs[:2], atomic=True, strict=True)

    assert [(one.verdict, one.other) for one in refused] == [
        ("refused", None),
        ("refused", None),
        ("not_unique", "x"),
    ]
    assert [(one.verdict, one.other) for one in stored] == [("stored", None), ("existing", "x")]
    assert sorted(await listed(node.store)) == ["a", "x"]


async def test_nodes_that_bring_jobs_of_the_same_keys_store_each_once() -> None:
    """Over PostgreSQL: several keys a settlement, in any order, while requests take the same. Nobody waits for ever."""
    rng = random.Random(3)
    with empty_schema() as schema:
        url = with_query(server_url(), schema=schema)
        async with AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(open_postgres(url, leases="caller")) for _ in range(3)]
            nodes = [Node(store, f"n{number}") for number, store in enumerate(stores)]
            for one in nodes:
                await one.join()
            await add(stores[0], *(new_job(f"p{number}", queue="parents") for number in range(24)))
            held = [(one, job) for one in nodes for job in await one.claim(8)]

            def asked(whose: str) -> list[NewJob]:
                names = rng.sample("klmnop", 4)
                return [unique(f"{whose}-{name}", key=name, run_at=LATER) for name in names]

            async def bring(node: Node) -> None:
                for owner, job in held:
                    if owner is node:
                        end = ends_with(job, *asked(job.id))
                        receipts = await node.exchange(settlements=[end])
                        while receipts.locked:  # a lock was waited for in vain: a node tries again, too
                            receipts = await node.exchange(settlements=[end])
                        assert (receipts.settled, receipts.stale) == ({}, frozenset())

            async def request(store: Store, number: int) -> None:
                for turn in range(8):
                    await ask(store, *asked(f"r{number}-{turn}"))

            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    for number, one in enumerate(nodes):
                        nursery.start_soon(bring, one)
                        nursery.start_soon(request, one.store, number)
            jobs = (await stores[0].jobs(Filter(), 100, None)).jobs

    assert sum(one.status is Status.DONE for one in jobs) == 24
    assert sorted(one.id[-1] for one in jobs if one.status is Status.SCHEDULED) == list("klmnop")


@pytest.mark.slow
async def test_ten_thousand_at_once(node: Node, job: Claimed) -> None:
    receipts = await end(node, job, *(new_job(f"x{number}") for number in range(10_000)))

    assert (receipts.waiting, receipts.settled) == (10_000, {})
