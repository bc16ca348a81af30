"""Jobs that wait for other jobs, promise by promise, over every store."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from jobpipe.errors import StoreUnavailable
from jobpipe.job import ENDED, Job, JobError, NewJob, Options, Outcome, State, Status
from jobpipe.schedules import Spec, decided
from jobpipe.store.base import (
    Batch,
    Change,
    Changed,
    Filter,
    Followed,
    OpenDependencies,
    Receipt,
    SharedStore,
    Store,
)
from jobpipe.store.verbs.followers import LEVELS, MOST
from tests.store.server import ask
from tests.store.test_contract import (
    KEEP_ALL,
    LATER,
    NOW,
    Node,
    add,
    bring_to,
    get,
    in_status,
    listed,
    look,
    new_job,
    settlement,
    wish,
)

pytestmark = pytest.mark.long


@pytest.fixture
async def node(store: Store) -> Node:
    one = Node(store)
    await one.join()
    return one


def dependent(job_id: str, *depends_on: str, needs: Any = "done", **changes: Any) -> NewJob:
    return new_job(job_id, options=Options(depends_on=depends_on, needs=needs), **changes)


async def enqueue(store: Store, *jobs: NewJob, atomic: bool = True) -> Sequence[Receipt]:
    return await store.add_dependents(jobs, atomic=atomic)


async def statuses(store: Store, ids: str) -> list[str]:
    return [(await get(store, job_id)).status.value for job_id in ids]


async def followed(store: Store, now: float = NOW) -> list[Followed]:
    """Go on with what follows until nothing is left."""
    steps = [await store.follow(now)]
    while steps[-1].more:
        steps.append(await store.follow(now))
    return steps


# --- how they are stored ----------------------------------------------------------------------------------------------


async def test_a_job_waits_until_all_that_it_depends_on_are_done(node: Node) -> None:
    """Then it is ready, from that time on; the last one's exchange says so."""
    await add(node.store, new_job("a"), new_job("b"))
    (receipt,) = await enqueue(node.store, dependent("x", "a", "b"))
    blocked = await get(node.store, "x")
    first, second = await node.claim(9)
    half = await node.settle(first, Outcome.DONE, NOW + 1)
    still = await node.store.open_dependencies("x", 10)
    whole = await node.settle(second, Outcome.DONE, NOW + 2)
    ready = await get(node.store, "x")

    assert receipt == Receipt("stored", blocked)
    assert blocked == Job(dependent("x", "a", "b"), State(Status.BLOCKED))
    assert (list(half.changes), half.waiting) == ([], 1)
    assert still == OpenDependencies(["b"], 1)
    assert (list(whole.changes), whole.following) == ([Changed("x", Status.QUEUED)], False)
    assert (ready.status, ready.asked.run_at) == (Status.QUEUED, NOW + 2)
    assert [job.id for job in await node.claim(9, NOW + 2)] == ["x"]


async def test_a_job_whose_time_has_not_come_waits_for_it_then(node: Node) -> None:
    """As if it had waited for nothing else."""
    await add(node.store, new_job("a"))
    await enqueue(node.store, dependent("x", "a", run_at=NOW + 50))
    receipts = await node.settle(await node.take(), Outcome.DONE, NOW + 1)
    job = await get(node.store, "x")

    assert (job.status, job.asked.run_at, receipts.next_due) == (Status.SCHEDULED, NOW + 50, NOW + 50)
    assert await node.claim(9, NOW + 49) == []
    assert [job.id for job in await node.claim(9, NOW + 50)] == ["x"]


@pytest.mark.parametrize("needs", ["done", "ended"])
@pytest.mark.parametrize("status", list(Status))
async def test_what_a_dependency_has_come_to_decides(node: Node, status: Status, needs: Any) -> None:
    """One that has ended as needed is not waited for; one that has ended otherwise is never waited for."""
    await bring_to(node, status)
    (receipt,) = await enqueue(node.store, dependent("x", "a", needs=needs))
    job = await node.store.get("x")

    if status not in ENDED:
        assert (receipt.verdict, job and job.status) == ("stored", Status.BLOCKED)
    elif status is Status.DONE or needs == "ended":
        assert (receipt, job and job.status) == (Receipt("stored"), Status.QUEUED)
    else:
        assert (receipt, job) == (Receipt("dependency_failed", dependencies=["a"]), None)


@pytest.mark.parametrize("atomic", [False, True])
async def test_what_is_not_there_cannot_be_waited_for(node: Node, atomic: bool) -> None:
    """All that are missing are named; with the others nothing is wrong."""
    await add(node.store, new_job("a"))
    jobs = [new_job("p"), dependent("x", "no", "a", "nor"), dependent("y", "x"), dependent("z", "a")]
    receipts = await enqueue(node.store, *jobs, atomic=atomic)

    rest = "refused" if atomic else "stored"
    assert [one.verdict for one in receipts] == [rest, "unknown_dependency", "unknown_dependency", rest]
    assert [list(one.dependencies) for one in receipts] == [[], ["no", "nor"], ["x"], []]
    assert await listed(node.store) == (["a"] if atomic else ["z", "p", "a"])
    assert (await look(node.store)).waiting == (1 if atomic else 3)


async def test_jobs_of_one_add_may_depend_on_one_another(node: Node) -> None:
    """Each behind those that it depends on, mixed with plain ones; they run in that order."""
    jobs = [new_job("a"), dependent("b", "a"), new_job("p"), dependent("c", "b", "a")]
    receipts = await enqueue(node.store, *jobs)
    ran = []
    while claimed := await node.claim(9):
        ran.append([job.id for job in claimed])
        await node.exchange(settlements=[settlement(job, Outcome.DONE) for job in claimed])

    assert [(one.verdict, one.job and one.job.status) for one in receipts] == [
        ("stored", None),
        ("stored", Status.BLOCKED),
        ("stored", None),
        ("stored", Status.BLOCKED),
    ]
    assert ran == [["a", "p"], ["b"], ["c"]]


async def test_a_repeated_request_is_compared_with_what_it_depends_on(node: Node) -> None:
    """Whatever that has come to, even if it is gone; nothing else changes."""
    await add(node.store, new_job("a"), new_job("b"))
    await enqueue(node.store, dependent("x", "a"))
    await node.store.delete(["a"], NOW)
    before = await get(node.store, "x")
    same = await enqueue(node.store, dependent("x", "a", created_at=NOW + 5, run_at=NOW + 5))
    others = [
        await enqueue(node.store, one, atomic=False)
        for one in (dependent("x", "b"), dependent("x", "a", needs="ended"), new_job("x"))
    ]
    plain = await add(node.store, new_job("x"), dependent("x", "a"))
    twice = await enqueue(node.store, dependent("y", "b"), dependent("y", "b"), dependent("y"), atomic=False)

    assert same == [Receipt("existing", before)]
    assert others == [[Receipt("conflict", before)]] * 3
    assert plain == [Receipt("conflict", before), Receipt("existing", before)]
    assert [one.verdict for one in twice] == ["stored", "existing", "conflict"]
    assert await get(node.store, "x") == before


async def test_blocked_jobs_are_counted_and_listed(node: Node) -> None:
    """As waiting, each in its queue; and they come at no time by themselves."""
    await add(node.store, new_job("a", run_at=LATER))
    await enqueue(
        node.store,
        *(dependent(f"x{n}", "a", queue="xy"[n % 2], created_at=NOW + n, kind="demo") for n in range(6)),
    )
    receipts = await look(node.store, NOW + 10)
    counts = {queue.name: queue.counts for queue in await node.store.queues()}
    overview = await node.store.overview(node.kinds)
    where: list[dict[str, Any]] = [
        {},
        {"queue": "x"},
        {"kind": "demo"},
        {"kind": "echo"},
        {"created_after": NOW + 4},
    ]
    lists = [await listed(node.store, status=Status.BLOCKED, **each) for each in where]

    assert (receipts.waiting, receipts.next_due) == (7, LATER)
    assert counts == {"default": {Status.SCHEDULED: 1}, "x": {Status.BLOCKED: 3}, "y": {Status.BLOCKED: 3}}
    assert overview.counts == {Status.SCHEDULED: 1, Status.BLOCKED: 6}
    assert not overview.ready
    assert lists == [
        ["x5", "x4", "x3", "x2", "x1", "x0"],
        ["x4", "x2", "x0"],
        ["x5", "x4", "x3", "x2", "x1", "x0"],
        [],
        ["x5", "x4"],
    ]
    assert await node.store.open_dependencies("x0", 1) == OpenDependencies(["a"], 1)


async def test_only_the_first_of_those_that_are_open_are_told(node: Node) -> None:
    ids = [f"a{number:03}" for number in range(120)]
    await add(node.store, *(new_job(job_id) for job_id in ids))
    await enqueue(node.store, dependent("x", *reversed(ids)))

    assert await node.store.open_dependencies("x", 100) == OpenDependencies(ids[:100], 120)
    assert await node.store.open_dependencies("absent", 100) == OpenDependencies([], 0)


# --- what follows the end of a job ------------------------------------------------------------------------------------


async def _done(node: Node) -> None:
    await node.settle(await node.take(), Outcome.DONE)


async def _failed(node: Node) -> None:
    await node.settle(await node.take(), Outcome.FAIL)


async def _cancelled_waiting(node: Node) -> None:
    await node.store.cancel(["a"], NOW)


async def _cancelled_running(node: Node) -> None:
    job = await node.take()
    await node.start(job)
    await node.store.cancel(["a"], NOW)
    await node.settle(job, Outcome.CANCELLED)


async def _handed_back_cancelled(node: Node) -> None:
    job = await node.take()
    await node.store.cancel(["a"], NOW)
    await node.settle(job, None)


async def _expired(node: Node) -> None:
    await node.store.edit(["a"], {"expires_at": NOW + 1}, NOW)
    await look(node.store, NOW + 1)


async def _failed_in_a_rescue(node: Node) -> None:
    job = await node.take()
    await node.start(job)
    await node.store.leave(node.name)
    await node.store.rescue("other", NOW)


async def _cancelled_in_a_rescue(node: Node) -> None:
    await node.take()
    await node.store.cancel(["a"], NOW)
    await node.store.leave(node.name)
    await node.store.rescue("other", NOW)


async def _sidelined(node: Node) -> None:
    await node.store.sideline(Batch(node=node.name, now=NOW, claims=wish(1)), "cannot be claimed")


async def _deleted(node: Node) -> None:
    await node.store.delete(["a"], NOW)


ENDS = {
    _done: "done",
    _failed: "failed",
    _cancelled_waiting: "cancelled",
    _cancelled_running: "cancelled",
    _handed_back_cancelled: "cancelled",
    _expired: "expired",
    _failed_in_a_rescue: "failed",
    _cancelled_in_a_rescue: "cancelled",
    _sidelined: "failed",
    _deleted: "deleted",
}
WORDS = {
    "failed": "has failed",
    "cancelled": "was cancelled",
    "expired": "has expired",
    "deleted": "was deleted",
}


@pytest.mark.parametrize("end", ENDS, ids=[end.__name__ for end in ENDS])
async def test_every_end_is_followed_at_once(node: Node, end: Any) -> None:
    """Whichever verb brings it about: there is nothing left to be done. So are the ends of those that are cancelled."""
    await add(node.store, new_job("a", max_retries=0))
    await enqueue(
        node.store,
        dependent("x", "a"),
        dependent("y", "a", needs="ended"),
        dependent("z", "x"),
        dependent("u", "z", needs="ended"),
    )
    await end(node)
    jobs = {job_id: await get(node.store, job_id) for job_id in "xyzu"}
    steps = await followed(node.store)
    receipts = await look(node.store, NOW + 1)

    became = ENDS[end]
    if became == "done":
        assert [job.status for job in jobs.values()] == ["queued", "queued", "blocked", "blocked"]
    else:
        words = f"the job depends on 'a', which {WORDS[became]}"
        assert [job.status for job in jobs.values()] == ["cancelled", "queued", "cancelled", "queued"]
        assert jobs["x"].state.error == JobError("DependencyFailed", words)
        assert jobs["z"].state.error == JobError(
            "DependencyFailed", "the job depends on 'x', which was cancelled"
        )
        assert all(jobs[job_id].state.finished_at is not None for job_id in "xz")
    assert not any(step.more for step in steps)
    assert receipts.waiting == (4 if became == "done" else 2)
    (queue,) = await node.store.queues()
    assert queue.counts == Counter([job.status for job in (await node.store.jobs(Filter(), 9, None)).jobs])


@pytest.mark.parametrize("outcome", [Outcome.RETRY, Outcome.SNOOZE, Outcome.INTERRUPTED, None])
async def test_a_job_that_waits_again_has_not_ended(node: Node, outcome: Outcome | None) -> None:
    """Those behind it go on waiting."""
    await add(node.store, new_job("a"))
    await enqueue(node.store, dependent("x", "a"))
    receipts = await node.settle(await node.take(), outcome)

    assert (receipts.stale, list(receipts.changes)) == (frozenset(), [])
    assert await statuses(node.store, "x") == ["blocked"]
    assert await node.store.open_dependencies("x", 9) == OpenDependencies(["a"], 1)


async def test_a_late_settlement_releases_nobody(node: Node) -> None:
    """It changes nothing, whoever waits."""
    await add(node.store, new_job("a"))
    await enqueue(node.store, dependent("x", "a"))
    first = await node.take()
    await node.settle(first, None)
    await node.take()
    receipts = await node.settle(first, Outcome.DONE)

    assert receipts.stale == {(first.seq, first.claim)}
    assert await statuses(node.store, "ax") == ["queued", "blocked"]


async def test_what_a_schedule_replaces_is_followed(node: Node) -> None:
    """Its firing cancels the job of the one before."""
    store = node.store
    spec = Spec(every=60.0, overlap="replace")
    put = await store.put_schedule("s", spec, new_job(), NOW)
    fired = [await store.fire([decided(put.schedule, NOW + 60)], NOW + 60)]
    await enqueue(store, dependent("x", *fired[0].stored))
    again = await store.schedule("s")
    assert again is not None
    fired.append(await store.fire([decided(again, NOW + 120)], NOW + 120))

    assert [len(one.stored) for one in fired] == [1, 1]
    assert await statuses(store, "x") == ["cancelled"]
    assert store.following
    assert (await store.follow(NOW)).changes == [Changed("x", Status.CANCELLED)]
    assert not store.following


@pytest.mark.long
async def test_the_last_of_many_ends_releases(node: Node) -> None:
    """However many there are, and though all end at once."""
    ids = [f"a{number}" for number in range(1000)]
    await add(node.store, *(new_job(job_id) for job_id in ids))
    await enqueue(node.store, dependent("x", *ids), dependent("y", *ids, needs="ended"))
    claimed = list(await node.claim(1000))
    for part in (claimed[:1], claimed[1:998], claimed[998:]):
        assert await statuses(node.store, "xy") == ["blocked", "blocked"]
        await node.exchange(settlements=[settlement(job, Outcome.DONE) for job in part])
        await followed(node.store)

    assert await statuses(node.store, "xy") == ["queued", "queued"]


async def test_a_job_that_waits_no_more_hears_of_no_end(node: Node) -> None:
    """One that was cancelled, deleted or has expired, and was retried by hand."""
    store = node.store
    await add(store, new_job("a", run_at=LATER))
    jobs = [dependent("x", "a"), dependent("y", "a"), dependent("z", "a", expires_at=NOW + 5)]
    await enqueue(store, *jobs)
    cancelled = await store.cancel(["x"], NOW)
    deleted = await store.delete(["y"], NOW)
    expired = await look(store, NOW + 5)
    before = [await get(store, job_id) for job_id in "xz"]
    await store.cancel(["a"], NOW + 6)

    assert [change.verdict for change in (*cancelled, *deleted)] == ["changed"] * 2
    assert [job.status for job in before] == ["cancelled", "expired"]
    assert expired.waiting == 1
    assert [await get(store, job_id) for job_id in "xz"] == before
    assert await followed(store) == [Followed([])]


async def test_the_expiry_of_a_blocked_job_reaches_those_behind_it(node: Node) -> None:
    await add(node.store, new_job("a", run_at=LATER))
    await enqueue(node.store, dependent("x", "a", expires_at=NOW + 5), dependent("y", "x"))
    receipts = await look(node.store, NOW + 5)

    assert set(receipts.changes) == {Changed("x", Status.EXPIRED), Changed("y", Status.CANCELLED)}
    assert await statuses(node.store, "xy") == ["expired", "cancelled"]
    assert (await get(node.store, "y")).state.error == JobError(
        "DependencyFailed", "the job depends on 'x', which has expired"
    )


# --- by hand ----------------------------------------------------------------------------------------------------------


async def test_a_blocked_job_stays_blocked_when_it_is_edited(node: Node) -> None:
    """Also with another time, which counts once nothing blocks it."""
    await add(node.store, new_job("a"))
    await enqueue(node.store, dependent("x", "a"))
    (change,) = await node.store.edit(["x"], {"priority": 3, "run_at": NOW + 50}, NOW)
    await node.settle(await node.take(), Outcome.DONE)

    assert change.job is not None
    assert (change.job.status, change.job.asked.priority) == (Status.BLOCKED, 3)
    assert change.job.asked.options.depends_on == ("a",)
    assert await statuses(node.store, "x") == ["scheduled"]


async def test_a_retry_of_what_failed_brings_nobody_back(node: Node) -> None:
    """Those that were cancelled with it wait again once they are retried themselves, and may be retried only then."""
    store = node.store
    await add(store, new_job("a"))
    await enqueue(store, dependent("x", "a"), dependent("y", "x"))
    await node.settle(await node.take(), Outcome.FAIL)
    refused = await store.retry(["x"], NOW)
    await store.retry(["a"], NOW)
    left = await statuses(store, "axy")
    again = await store.retry(["x"], NOW)
    behind = await store.retry(["y"], NOW)
    await node.settle(await node.take(), Outcome.DONE)
    after = await statuses(store, "axy")
    await node.settle(await node.take(), Outcome.DONE)

    assert [change.verdict for change in refused] == ["refused"]
    assert left == ["queued", "cancelled", "cancelled"]
    for (change,), job_id in ((again, "x"), (behind, "y")):
        assert change.job is not None
        assert (change.id, change.verdict, change.job.status) == (job_id, "changed", Status.BLOCKED)
        assert change.job.state == State(Status.BLOCKED)
    assert after == ["done", "queued", "blocked"]
    assert await statuses(store, "axy") == ["done", "done", "queued"]


async def test_a_retried_job_does_not_wait_for_what_is_gone(node: Node) -> None:
    """Nor for what is done."""
    store = node.store
    await add(store, new_job("a"), new_job("b"), new_job("c", run_at=LATER))
    await enqueue(store, dependent("x", "a", "b", "c"))
    await node.exchange(settlements=[settlement(job, Outcome.DONE) for job in await node.claim(2)])
    await store.delete(["c"], NOW)
    (change,) = await store.retry(["x"], NOW)
    await store.delete(["a"], NOW)

    assert change.job is not None
    assert (change.verdict, change.job.status) == ("changed", Status.QUEUED)
    assert (await node.take()).id == "x"


async def test_what_is_added_after_a_retry_waits_for_the_new_end(node: Node) -> None:
    """Though many that waited for the first end have not heard of it yet."""
    store, waiting = node.store, MOST + 20
    await add(store, new_job("a"))
    await enqueue(store, *(dependent(f"x{number}", "a") for number in range(waiting)))
    receipts = await node.settle(await node.take(), Outcome.FAIL)
    await store.retry(["a"], NOW)
    await enqueue(store, dependent("y", "a"))
    await followed(store)
    between = (len(await in_status(store, Status.CANCELLED)), await statuses(store, "y"))
    await node.settle(await node.take(), Outcome.DONE)

    assert receipts.following
    assert between == (waiting, ["blocked"])
    assert await statuses(store, "y") == ["queued"]


async def test_a_retry_comes_too_early_while_an_end_is_still_being_told(node: Node) -> None:
    """Or it would be told once more to those that wait for the new one; nothing is changed."""
    store = node.store
    await add(store, new_job("a"))
    await enqueue(store, *(dependent(f"x{number}", "a") for number in range(MOST + 20)))
    await node.settle(await node.take(), Outcome.FAIL)
    await store.retry(["a"], NOW)
    before = await get(store, "x0")
    with pytest.raises(StoreUnavailable, match="try again"):
        await store.retry(["x0"], NOW)
    left = await get(store, "x0")
    await followed(store)
    (change,) = await store.retry(["x0"], NOW)

    assert left == before
    assert change.job is not None
    assert change.job.status is Status.BLOCKED


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.long
async def test_a_wide_cascade_is_done_in_steps(node: Node) -> None:
    """Each of some hundred jobs, and what is left is noted with the end."""
    store, behind = node.store, 3 * MOST + 50
    await add(store, new_job("a"), *(new_job(f"b{number}", run_at=LATER) for number in range(3)))
    await enqueue(
        store, *(dependent(f"x{number}", "a", *(["b0"] if number % 2 else [])) for number in range(behind))
    )
    receipts = await node.settle(await node.take(), Outcome.FAIL)
    first = len(await in_status(store, Status.CANCELLED))
    steps = await followed(store)

    assert (first, receipts.following, len(receipts.changes)) == (MOST, True, MOST)
    assert all(len(step.changes) <= MOST for step in steps)
    assert sum(len(step.changes) for step in steps) == behind - MOST
    assert len(await in_status(store, Status.CANCELLED)) == behind
    assert (await look(store)).waiting == 3


async def test_a_deep_cascade_is_done_in_steps(node: Node) -> None:
    """So many levels each; no step calls itself for the next one."""
    store, deep = node.store, 5 * LEVELS
    await add(store, new_job("x0"))
    await enqueue(store, *(dependent(f"x{number}", f"x{number - 1}") for number in range(1, deep + 1)))
    receipts = await node.settle(await node.take(), Outcome.FAIL)
    first = len(await in_status(store, Status.CANCELLED))
    steps = await followed(store)

    assert (first, receipts.following) == (LEVELS, True)
    assert all(len(step.changes) <= LEVELS + 1 for step in steps)
    assert len(await in_status(store, Status.CANCELLED)) == deep


@pytest.mark.slow
async def test_a_cascade_of_a_hundred_thousand_ends(node: Node) -> None:
    """A failure with ten thousand behind it, and ten behind each of these."""
    store = node.store
    await add(store, new_job("a"))
    for start in range(0, 10_000, 1000):
        await enqueue(store, *(dependent(f"x{n}", "a") for n in range(start, start + 1000)))
        for part in range(10):
            jobs = (dependent(f"y{n}-{part}", f"x{n}") for n in range(start, start + 1000))
            await enqueue(store, *jobs)
    await node.settle(await node.take(), Outcome.FAIL)
    steps = await followed(store)

    assert all(len(step.changes) <= 2 * MOST for step in steps)
    assert (await look(store)).waiting == 0
    (queue,) = await store.queues()
    assert queue.counts == {Status.FAILED: 1, Status.CANCELLED: 110_000}


async def test_at_random_each_job_runs_after_those_that_it_needs(node: Node) -> None:
    """A hundred jobs that depend on one another: each comes to what follows from the others."""
    chance = random.Random(7)
    jobs: list[NewJob] = []
    for number in range(100):
        ids = chance.sample([job.id for job in jobs], min(len(jobs), chance.randrange(4)))
        jobs.append(dependent(f"j{number}", *ids, needs=chance.choice(["done", "done", "ended"])))
    await enqueue(node.store, *jobs)
    ended: dict[str, Status] = {}
    options_of = {job.id: job.options for job in jobs}
    while claimed := await node.claim(7):
        for job in claimed:
            options = options_of[job.id]
            found = {one: (await get(node.store, one)).status for one in options.depends_on}
            assert set(found.values()) <= (ENDED if options.needs == "ended" else {Status.DONE})
        ends = [settlement(job, chance.choice([Outcome.DONE, Outcome.DONE, Outcome.FAIL])) for job in claimed]
        ended |= {one.id: one.status for one in ends}
        await node.exchange(settlements=ends)
        await followed(node.store)

    for job_id, options in options_of.items():
        others = [await get(node.store, one) for one in options.depends_on]
        vain = options.needs == "done" and any(one.status is not Status.DONE for one in others)
        assert (await get(node.store, job_id)).status is (Status.CANCELLED if vain else ended[job_id])
    assert (await look(node.store)).waiting == 0


async def test_a_prune_of_jobs_that_others_depended_on_changes_nothing(node: Node) -> None:
    """What has ended is told; only then may it go."""
    await add(node.store, new_job("a"), new_job("b", run_at=LATER))
    await enqueue(node.store, dependent("x", "a", "b"))
    await node.settle(await node.take(), Outcome.DONE)
    pruned = await node.store.prune(NOW + 5, replace(KEEP_ALL, jobs=0))

    assert pruned == 1
    assert await statuses(node.store, "x") == ["blocked"]
    assert await node.store.open_dependencies("x", 9) == OpenDependencies(["b"], 1)


async def test_ids_may_be_odd(node: Node) -> None:
    odd = ["ü'%", "a\\b", '"', "{}", "x" * 200]
    await enqueue(node.store, *(new_job(job_id) for job_id in odd), dependent("x", *odd))
    for job in await node.claim(9):
        await node.settle(job, Outcome.DONE)

    assert await statuses(node.store, "x") == ["queued"]
    assert await node.store.retry(["\0"], NOW) == [Change("\0", "absent")]


async def test_a_job_that_cannot_go_on_fails_alone(open_store: Any) -> None:
    """Neither the job that has ended pays for it, nor the others that waited."""
    async with open_store() as store, broken_row(store, "x"):
        node = Node(store)
        await node.join()
        await add(store, new_job("a"))
        await enqueue(store, *(dependent(job_id, "a") for job_id in "wxyz"), dependent("u", "x"))
        with capture_logs() as log:
            receipts = await node.settle(await node.take(), Outcome.DONE)
        x = await get(store, "x")
        waiting = (await look(store)).waiting

        assert await statuses(store, "awxyzu") == [
            "done",
            "queued",
            "failed",
            "queued",
            "queued",
            "cancelled",
        ]
        assert x.state.error is not None
        assert x.state.error.message.startswith("the job could not go on once others had ended (")
        assert receipts.stale == frozenset()
        assert waiting == 3
        assert [line["job"] for line in log if line["log_level"] == "error"] == ["x"]


@asynccontextmanager
async def broken_row(store: Any, job_id: str) -> AsyncIterator[None]:
    """Nothing can make this job ready: somebody's trigger has it so."""
    if not isinstance(store, SharedStore):
        db = store._db if store.name == "memory:" else store._database.writer
        db.execute(
            f"create trigger refuse before update on jobs when new.id = '{job_id}' and new.status = 'queued' "
            "begin select raise(abort, 'refused'); end"
        )
        yield
        return
    schema = store.name.rpartition("schema=")[2]
    ask(
        f"create function {schema}.refuse() returns trigger language plpgsql as "
        f"$$ begin if old.status = 'blocked' and new.status = 'queued' "
        f"and (select id from {schema}.jobs where seq = new.seq) = '{job_id}' "
        "then raise exception 'refused'; end if; return new; end $$"
    )
    ask(
        f"create trigger refuse before update on {schema}.live for each row execute function {schema}.refuse()"
    )
    try:
        yield
    finally:  # the schema is used by other tests, too
        ask(f"drop function {schema}.refuse() cascade")
