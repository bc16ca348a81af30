"""The store contract, promise by promise, over every store."""

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
import pytest
import trio
from msgspec.structs import replace

from jobpipe.errors import StoreError
from jobpipe.job import (
    ATTEMPTS_KEPT,
    DEEPEST,
    ENDED,
    WAITING,
    AttemptRecord,
    Backoff,
    Job,
    JobError,
    NewJob,
    Options,
    Outcome,
    State,
    Status,
)
from jobpipe.store.base import (
    STEP,
    Add,
    Batch,
    Change,
    Claimed,
    ClaimRequest,
    Filter,
    Overview,
    Place,
    QueueState,
    Receipt,
    Receipts,
    Retention,
    Settlement,
    SharedStore,
    Start,
    Store,
)
from jobpipe.transitions import DIED_LAST

NOW = 1_700_000_000.0
LATER = NOW + 60.0
LEASE = NOW + 15.0
ERROR = JobError("ValueError", "no such file", "Traceback ...")
KEEP_ALL = Retention(done_age=1e9, failed_age=1e9, jobs=10**9, size=10**12)

BECOMES = {
    Outcome.DONE: Status.DONE,
    Outcome.RETRY: Status.RETRYING,
    Outcome.FAIL: Status.FAILED,
    Outcome.SNOOZE: Status.SCHEDULED,
    Outcome.CANCELLED: Status.CANCELLED,
    Outcome.INTERRUPTED: Status.QUEUED,
    None: Status.QUEUED,
}
NOT_COUNTED = {Outcome.SNOOZE, Outcome.INTERRUPTED, None}

BY_TIME = WAITING - {Status.BLOCKED}
"""The statuses of jobs that wait for a time or a worker, not for other jobs."""

EACH = sorted(Status, key=lambda status: (status is Status.QUEUED, status is Status.BLOCKED))
"""Every status, in an order in which one job after another can be brought to it.

A queued one would be claimed next, and a blocked one waits for one that runs.
"""


def new_job(job_id: str = "a", **changes: Any) -> NewJob:
    usual = NewJob(
        id=job_id,
        kind="echo",
        queue="default",
        payload=b'{"n":1}',
        priority=0,
        max_retries=3,
        created_at=NOW,
        run_at=NOW,
    )
    return msgspec.structs.replace(usual, **changes)


def settlement(job: Claimed, outcome: Outcome | None, at: float = NOW, **changes: Any) -> Settlement:
    """What the engine writes after an attempt that began and ended at `at`."""
    usual = Settlement(
        seq=job.seq,
        id=job.id,
        queue=job.queue,
        claim=job.claim,
        outcome=outcome,
        status=BECOMES[outcome],
        attempt=job.attempt + (outcome not in NOT_COUNTED),
        number=job.attempt + 1,
        run_at=at + 10.0 if outcome in {Outcome.RETRY, Outcome.SNOOZE} else None,
        started_at=None if outcome is None else at,
        settled_at=at,
        result=b'"ok"' if outcome is Outcome.DONE else None,
        error=ERROR if outcome in {Outcome.RETRY, Outcome.FAIL} else None,
        size=len(job.payload),
    )
    return msgspec.structs.replace(usual, **changes)


def start(job: Claimed, at: float = NOW) -> Start:
    return Start(job.seq, job.claim, job.attempt + 1, at)


def then(change: Change) -> Change:
    """A change without how the job was before, which tests of the audit see to."""
    return msgspec.structs.replace(change, was=None)


async def add(store: Store, *jobs: NewJob, atomic: bool = False, now: float = NOW) -> Sequence[Receipt]:
    batch = Batch(node="door", now=now, adds=[Add(jobs, atomic=atomic)])
    return (await store.exchange(batch)).adds[0]


async def look(store: Store, now: float = NOW) -> Receipts:
    """An exchange that asks for nothing."""
    return await store.exchange(Batch(node="door", now=now))


async def get(store: Store, job_id: str = "a") -> Job:
    job = await store.get(job_id)
    assert job is not None
    return job


async def listed(store: Store, **where: Any) -> list[str]:
    return [job.id for job in (await store.jobs(Filter(**where), 1000, None)).jobs]


async def in_status(store: Store, status: Status) -> list[str]:
    """Ids in order of arrival."""
    page = await store.jobs(Filter(status=status), 10 * STEP, None)
    return [job.id for job in reversed(page.jobs)]


KINDS = frozenset({"echo", "demo", "k", "k2", "l"})
"""What the nodes of these tests serve."""


def wish(limit: int, kinds: frozenset[str] = KINDS) -> Sequence[ClaimRequest]:
    """A claim of so many jobs; none where it is for no job."""
    return [ClaimRequest(limit=limit, kinds=kinds)] if limit else []


class Node:
    """A node that has joined; each verb is one exchange."""

    def __init__(self, store: Store, name: str = "node", kinds: frozenset[str] = KINDS) -> None:
        self.store, self.name, self.kinds = store, name, kinds

    async def join(self, now: float = NOW, lease_until: float = LEASE) -> None:
        await self.store.join(self.name, now, lease_until, self.kinds)

    async def exchange(self, now: float = NOW, *, claim: int = 0, **parts: Any) -> Receipts:
        batch = Batch(node=self.name, now=now, claims=wish(claim, self.kinds), **parts)
        return await self.store.exchange(batch)

    async def claim(self, limit: int = 1, now: float = NOW) -> Sequence[Claimed]:
        return (await self.exchange(now, claim=limit)).claimed

    async def take(self, now: float = NOW) -> Claimed:
        """Claim the next job; there must be one."""
        (job,) = await self.claim(now=now)
        return job

    async def start(self, job: Claimed, at: float = NOW) -> Receipts:
        return await self.exchange(at, starts=[start(job, at)])

    async def settle(
        self, job: Claimed, outcome: Outcome | None, at: float = NOW, **changes: Any
    ) -> Receipts:
        return await self.exchange(at, settlements=[settlement(job, outcome, at, **changes)])


@pytest.fixture
async def node(store: Store) -> Node:
    """A node with a lease until LEASE."""
    one = Node(store)
    await one.join()
    return one


@pytest.fixture
async def other(store: Store) -> Node:
    """A second node, with a lease that outlives the first one's."""
    one = Node(store, "other")
    await one.join(lease_until=NOW + 1e6)
    return one


async def bring_to(node: Node, status: Status, job_id: str = "a", **changes: Any) -> Claimed | None:
    """Add a job and lead it to a status; returns the claim that led there.

    A blocked one waits for one that runs, which is made if there is none.
    """
    if status is Status.BLOCKED:
        await add_blocked(node, job_id, **changes)
        return None
    if status is Status.SCHEDULED:
        changes = {"run_at": NOW + 5.0} | changes
    if status is Status.EXPIRED:
        changes = {"expires_at": NOW} | changes
    await add(node.store, new_job(job_id, **changes))
    if status is Status.EXPIRED:
        await look(node.store)
    if status in {Status.SCHEDULED, Status.QUEUED, Status.EXPIRED}:
        return None
    job = await node.take()
    await node.start(job)
    outcome = next((outcome for outcome, becomes in BECOMES.items() if becomes is status), None)
    if status is Status.CANCELLING:
        await node.store.cancel([job_id], NOW)
    elif status is not Status.RUNNING:
        await node.settle(job, outcome)
    return job


async def add_blocked(node: Node, job_id: str, **changes: Any) -> None:
    """Add a job that waits for one that runs."""
    if not (running := await in_status(node.store, Status.RUNNING)):
        await bring_to(node, Status.RUNNING, "runs", queue="other")
        running = ["runs"]
    options = replace(changes.pop("options", Options()), depends_on=(running[0],))
    (receipt,) = await node.store.add_dependents([new_job(job_id, options=options, **changes)], atomic=False)
    assert receipt.verdict == "stored"


async def edit(store: Store, job_id: str = "a", now: float = NOW, **edits: Any) -> Job:
    """Edit a job; it must be there, and wait."""
    (change,) = await store.edit([job_id], edits, now)
    job = await get(store, job_id)
    assert then(change) == Change(job_id, "changed", job)
    return job


# --- the store itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StoreError("wrong"), KeyError("wrong"), KeyboardInterrupt()])
async def test_what_goes_wrong_while_a_store_is_open_comes_out_as_itself(
    open_store: Any, error: BaseException
) -> None:
    """Not in a group, whatever tasks the store has; and nothing else is told of it."""
    with pytest.raises(type(error)) as caught:  # noqa: PT012 - the store around it is what is tried
        async with open_store() as store:
            await add(store, new_job())
            raise error

    assert caught.value is error
    assert error.__cause__ is error.__context__ is None


async def test_a_cancel_while_a_store_is_open_is_a_cancel(open_store: Any) -> None:
    """It ends the scope that was cancelled, and no other one."""
    with trio.CancelScope() as outer, trio.CancelScope() as inner:
        async with open_store() as store:
            await add(store, new_job())
            inner.cancel()
            await trio.sleep_forever()

    assert inner.cancelled_caught
    assert not outer.cancelled_caught


# --- adds -------------------------------------------------------------------------------------------------------------


async def test_a_store_says_what_it_is(store: Store) -> None:
    """People are told its name, and the engine whether waiting jobs survive the process."""
    await store.ping()

    assert store.name.startswith(("memory:", "sqlite:", "postgresql:"))
    assert store.durable is (store.name != "memory:")


async def test_a_new_job_is_kept_as_it_was_asked_for(store: Store) -> None:
    """Every field comes back as it went in; nothing has run yet."""
    options = Options(
        timeout=1.5,
        backoff=Backoff(base=0.1, factor=3, cap=7, jitter="none"),
        on_crash="fail",
        tags=("blue", "größe"),
        delay=5,
    )
    new = new_job(
        kind="email.send",
        queue="mail",
        priority=-7,
        max_retries=0,
        run_at=NOW + 5,
        expires_at=NOW + 9,
        options=options,
    )
    receipts = await add(store, new)

    assert receipts == [Receipt("stored")]
    assert await get(store) == Job(new, State(new.status))


async def test_a_job_is_queued_when_it_is_due_and_scheduled_when_not(store: Store) -> None:
    """What counts is its run_at beside its created_at."""
    await add(store, new_job("now"), new_job("later", run_at=NOW + 0.001))

    assert (await get(store, "now")).status is Status.QUEUED
    assert (await get(store, "later")).status is Status.SCHEDULED


async def test_an_absent_job_is_none(store: Store) -> None:
    """To ask for what is not there is no error."""
    assert await store.get("absent") is None


async def test_the_same_request_twice_makes_one_job(store: Store) -> None:
    """The second is told of the first, although times and the order of the payload's keys differ."""
    await add(store, new_job(payload=b'{"x":1,"y":2}'))
    receipts = await add(store, new_job(payload=b'{"y":2, "x":1}', created_at=LATER, run_at=LATER))

    assert receipts == [Receipt("existing", await get(store))]
    assert (await get(store)).asked.created_at == NOW
    assert await listed(store) == ["a"]


async def test_the_same_id_with_other_content_is_a_conflict(store: Store) -> None:
    """The job that has the id stays as it is, and is handed over."""
    await add(store, new_job(payload=b"1"))
    before = await get(store)
    receipts = await add(store, new_job(payload=b"2"))

    assert receipts == [Receipt("conflict", before)]
    assert await get(store) == before


@pytest.mark.parametrize("atomic", [False, True])
async def test_the_deepest_payloads_are_compared_to_their_bottom(store: Store, atomic: bool) -> None:
    """Whatever they hold, a comparison costs nobody but its request."""

    def deep(job_id: str, bottom: bytes) -> NewJob:
        return new_job(job_id, payload=b"[" * DEEPEST + bottom + b"]" * DEEPEST)

    await add(store, deep("a", b"1"))
    same = await add(store, deep("a", b" 1"), deep("b", b"1"), atomic=atomic)
    other = await add(store, deep("a", b"2"), deep("c", b"1"), atomic=atomic)

    assert [receipt.verdict for receipt in same] == ["existing", "stored"]
    assert [receipt.verdict for receipt in other] == ["conflict", "refused" if atomic else "stored"]


@pytest.mark.parametrize("status", list(Status))
async def test_the_same_request_is_known_in_every_status(node: Node, status: Status) -> None:
    """A job that runs or has ended is not run again by a repeated request."""
    await bring_to(node, status)
    before = await get(node.store)
    twin = replace(before.asked, created_at=NOW)
    receipts = await add(node.store, twin)

    assert receipts == [Receipt("existing", before)]
    assert await get(node.store) == before


async def test_a_plain_add_stores_what_it_can(store: Store) -> None:
    """A conflict in one job does not hinder the others."""
    await add(store, new_job("taken"))
    receipts = await add(store, new_job("b"), new_job("taken", kind="demo"), new_job("c"))

    assert [receipt.verdict for receipt in receipts] == ["stored", "conflict", "stored"]
    assert await listed(store) == ["c", "b", "taken"]


async def test_an_atomic_add_stores_all_or_nothing(store: Store) -> None:
    """A conflict in one means that none is stored; each is told why."""
    await add(store, new_job("twin"), new_job("taken"))
    jobs = [new_job("b", queue="unseen"), new_job("twin"), new_job("taken", kind="demo")]
    refused = await add(store, *jobs, atomic=True)
    waiting = (await look(store)).waiting
    stored = await add(store, *jobs[:2], atomic=True)

    assert [receipt.verdict for receipt in refused] == ["refused", "existing", "conflict"]
    assert [receipt.job and receipt.job.id for receipt in refused] == [None, "twin", "taken"]
    assert waiting == 2
    assert [receipt.verdict for receipt in stored] == ["stored", "existing"]
    assert await listed(store) == ["b", "taken", "twin"]


@pytest.mark.parametrize("atomic", [False, True])
async def test_a_job_that_was_not_stored_leaves_no_queue_behind(store: Store, atomic: bool) -> None:
    """A queue is known once it was used, and this one was not."""
    await add(store, new_job("taken"))
    await add(store, new_job("taken", queue="unseen"), atomic=atomic)
    await add(store, new_job("b", queue="unseen"), new_job("taken", kind="demo"), atomic=True)

    assert [queue.name for queue in await store.queues()] == ["default"]


@pytest.mark.parametrize("atomic", [False, True])
async def test_an_id_repeated_within_an_add_meets_itself(store: Store, atomic: bool) -> None:
    """The second of two equal jobs sees the first."""
    receipts = await add(store, new_job(), new_job(), atomic=atomic)

    assert [receipt.verdict for receipt in receipts] == ["stored", "existing"]
    assert receipts[1].job == Job(new_job(), State(Status.QUEUED))
    assert await listed(store) == ["a"]


async def test_two_different_jobs_of_one_id_within_an_add_are_a_conflict(store: Store) -> None:
    """The first one wins, unless the add is atomic."""
    jobs = [new_job(payload=b"1"), new_job(payload=b"2")]
    refused = await add(store, *jobs, atomic=True)
    absent = await store.get("a")
    plain = await add(store, *jobs)

    assert [receipt.verdict for receipt in refused] == ["refused", "conflict"]
    assert absent is None
    assert [receipt.verdict for receipt in plain] == ["stored", "conflict"]
    assert (await get(store)).asked.payload == b"1"


@pytest.mark.parametrize("atomic", [False, True])
async def test_a_job_that_was_not_stored_is_nobodys_twin(store: Store, atomic: bool) -> None:
    """Within an add too, each is compared with the job that has the id."""
    await add(store, new_job(payload=b"1"))
    stored = await get(store)
    receipts = await add(
        store, new_job(payload=b"2"), new_job(payload=b"1"), new_job(payload=b"2"), atomic=atomic
    )

    assert [receipt.verdict for receipt in receipts] == ["conflict", "existing", "conflict"]
    assert [receipt.job for receipt in receipts] == [stored] * 3


@pytest.mark.parametrize("atomic", [False, True])
async def test_a_repeated_request_is_compared_with_what_was_asked_first(store: Store, atomic: bool) -> None:
    """The client that repeats it may not know of the edit; however often the job was edited."""
    first = new_job(expires_at=LATER, options=Options(tags=("t",), delay=0.0))
    edited: dict[str, Any] = {
        "payload": b'"\\u0000"',
        "queue": "x",
        "priority": 7,
        "max_retries": None,
        "expires_at": None,
    }
    await add(store, first)
    await edit(store, **edited, timeout=1.0, tags=())
    job = await edit(store, payload=b"3")
    (same,) = await add(store, first, atomic=atomic)
    (other,) = await add(store, job.asked, atomic=atomic)
    page = await store.jobs(Filter(), 9, None)

    options = Options(timeout=1.0, delay=0.0)
    assert job.asked == replace(first, **edited | {"payload": b"3"}, options=options)
    assert job.original == first
    assert (same, other) == (Receipt("existing", job), Receipt("conflict", job))
    assert page.jobs[0] == replace(job, original=None)


async def test_the_adds_of_a_batch_are_judged_one_by_one_in_order(store: Store) -> None:
    """What one asker is refused does not touch another one's jobs."""
    adds = [
        Add([new_job("a", payload=b"1")]),
        Add([new_job("b"), new_job("a", payload=b"2")], atomic=True),
        Add([]),
        Add([new_job("a", payload=b"1"), new_job("c")], atomic=True),
    ]
    receipts = (await store.exchange(Batch(node="door", now=NOW, adds=adds))).adds
    verdicts = [[receipt.verdict for receipt in one] for one in receipts]

    assert verdicts == [["stored"], ["refused", "conflict"], [], ["existing", "stored"]]
    assert await listed(store) == ["c", "a"]


ODD_IDS = [
    "ü",
    "💥",
    "a'b\";--",
    "%",
    "_",
    "*?[x]",
    "x" * 200,
    "-1",
    "0",
    "A",
    "é",
    "e\u0301",
    "null",
    "\u202e\ufeff",
]


async def test_ids_may_hold_odd_characters(node: Node) -> None:
    """Each is another job, and each verb finds it by its id."""
    store = node.store
    await add(store, *(new_job(job_id) for job_id in ["a", *ODD_IDS]))
    claimed = await node.claim(100)
    await node.exchange(settlements=[settlement(job, Outcome.FAIL) for job in claimed])
    retried = await store.retry(ODD_IDS, NOW)
    cancelled = await store.cancel(ODD_IDS, NOW)
    found = [(await get(store, job_id)).status for job_id in ODD_IDS]
    deleted = await store.delete(ODD_IDS, NOW)

    assert [job.id for job in claimed] == ["a", *ODD_IDS]
    for changes in (retried, cancelled, deleted):
        assert [(change.id, change.verdict) for change in changes] == [(one, "changed") for one in ODD_IDS]
    assert set(found) == {Status.CANCELLED}
    assert await listed(store) == ["a"]


PAYLOADS = [
    b"null",
    b'""',
    b"{}",
    b"[]",
    b"123456789012345678901234567890123456789012345678901234567890",
    b'{"n":-9223372036854775809,"f":1e308}',
    '"größe 💥 \u2028"'.encode(),
    rb'"\u0000\ud83d\udca5\\\""',
    b"[" * 100 + b"]" * 100,
    b'"' + b"x" * 1_000_000 + b'"',
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
async def test_payloads_and_results_are_kept_byte_by_byte(node: Node, payload: bytes) -> None:
    """A store does not read them, so no number is rounded and no character replaced."""
    await add(node.store, new_job(payload=payload))
    claimed = await node.take()
    await node.settle(claimed, Outcome.DONE, result=payload)
    job = await get(node.store)

    assert claimed.payload == job.asked.payload == job.state.result == payload


async def test_a_cancelled_caller_leaves_a_whole_batch_or_none(store: Store) -> None:
    """A verb takes effect whole, or not at all."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await add(store, new_job("a"), new_job("b"))
    there = await listed(store)

    assert there in ([], ["b", "a"])
    assert (await look(store)).waiting == len(there)


# --- claims -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7, 30, 45, 60])
async def test_a_claim_takes_the_first_jobs_of_all_queues_wherever_they_wait(
    store: Store, limit: int
) -> None:
    """Also when most of them are in one queue, or one in each."""
    node = Node(store)
    await node.join()
    await add(
        store,
        *(new_job(f"x{number:02}", queue="x", priority=1) for number in range(40)),
        *(new_job(f"y{number:02}", queue=f"y{number}") for number in range(10)),
        *(new_job(f"z{number:02}", queue="z", priority=-1) for number in range(10)),
    )
    jobs = [job.id for job in await node.claim(limit)]
    rest = [job.id for job in await node.claim(60)]

    assert jobs + rest == [
        f"{queue}{number:02}" for queue, jobs in (("x", 40), ("y", 10), ("z", 10)) for number in range(jobs)
    ]
    assert len(jobs) == limit


async def test_jobs_are_claimed_by_priority_then_run_at_then_arrival(node: Node) -> None:
    """One order over all queues, whatever the order in which they came."""
    ranks = [(priority, run_at) for priority in (-1, 0, 10) for run_at in (NOW - 5, NOW - 1)]
    order = {}
    for number, (rank, queue, _) in enumerate(itertools.product(ranks, ("x", "y", "z"), range(2))):
        job = new_job(f"j{number}", priority=rank[0], run_at=rank[1], queue=queue)
        order[job.id] = (-job.priority, job.run_at, number)
        await add(node.store, job)
    claimed = []
    for limit in (1, 2, 5, 100):
        claimed += [job.id for job in await node.claim(limit)]

    assert claimed == sorted(order, key=order.__getitem__)


async def test_jobs_that_are_taken_out_do_not_disturb_the_order_of_the_rest(node: Node) -> None:
    """However many of those that wait are cancelled, deleted, or queued again."""
    jobs = [new_job(f"j{number:03}", priority=number % 3) for number in range(500)]
    await add(node.store, *jobs)
    ids = [job.id for job in jobs]
    await node.store.cancel(ids[:400], NOW)
    await node.store.delete(ids[300:420], NOW)
    await node.store.retry(ids[:10], NOW)
    claimed = [job.id for job in await node.claim(1000)]
    left = [job for job in jobs[:10] + jobs[420:] if job.id in claimed]

    assert len(claimed) == 90
    assert claimed == [job.id for job in sorted(left, key=lambda job: -job.priority)]


async def test_a_claim_takes_at_most_what_it_asks_for(node: Node) -> None:
    """And none when it asks for none."""
    await add(node.store, *(new_job(f"j{number}") for number in range(5)))
    counts = [len(await node.claim(limit)) for limit in (0, 2, 10, 10)]

    assert counts == [0, 2, 3, 0]


async def test_several_askers_share_one_exchange(node: Node) -> None:
    """Each is served in its turn: by kind, and no job goes to two of them."""
    kinds = ("echo", "echo", "echo", "demo", "k", "demo")
    await add(node.store, *(new_job(f"{kind}{number}", kind=kind) for number, kind in enumerate(kinds)))
    asked = [(2, ("echo",)), (5, ("demo", "k")), (1, ("k",)), (9, ("echo", "demo", "k"))]
    claims = [ClaimRequest(limit=limit, kinds=frozenset(kinds)) for limit, kinds in asked]
    receipts = await node.store.exchange(Batch(node=node.name, now=NOW, claims=claims))
    taken = [[job.id for job in claimed] for claimed in receipts.claims]

    assert taken == [["echo0", "echo1"], ["demo3", "k4", "demo5"], [], ["echo2"]]
    assert [job.id for job in receipts.claimed] == list(itertools.chain(*taken))
    assert receipts.waiting == 0


async def test_the_job_that_a_claim_takes_first_is_put_out_of_the_way(node: Node) -> None:
    """It fails in words, unrun, and is counted so; jobs of other kinds and of paused queues stay."""
    await node.store.pause("paused")
    await add(
        node.store,
        new_job("other kind", kind="demo", priority=9),
        new_job("paused", queue="paused", priority=9),
        new_job("second"),
        new_job("first", priority=1, payload=b"[1,2,3]"),
    )
    batch = Batch(node=node.name, now=LATER, claims=wish(5, frozenset({"echo"})))
    ids = [await node.store.sideline(batch, "it cannot be claimed") for _ in range(3)]
    job = await get(node.store, "first")
    counts = {queue.name: queue.counts for queue in await node.store.queues()}
    receipts = await look(node.store)
    pruned = [
        await node.store.prune(LATER, msgspec.structs.replace(KEEP_ALL, size=size)) for size in (200, 0)
    ]

    assert ids == ["first", "second", None]
    assert job.state.error == JobError("DamagedRow", "it cannot be claimed")
    assert (job.status, job.state.attempt, job.attempts) == (Status.FAILED, 0, ())
    assert job.state.finished_at == LATER
    assert counts == {"default": {Status.FAILED: 2, Status.QUEUED: 1}, "paused": {Status.QUEUED: 1}}
    assert receipts.waiting == 2
    assert pruned == [0, 2]
    assert [queue.counts for queue in await node.store.queues()] == [{Status.QUEUED: 1}] * 2


async def test_no_asker_of_a_node_without_a_lease_is_served(store: Store) -> None:
    """Whichever it is."""
    await add(store, new_job("a"), new_job("b", kind="demo"))
    claims = [*wish(1), *wish(1, frozenset({"demo"}))]
    receipts = await store.exchange(Batch(node="unknown", now=NOW, claims=claims))

    assert receipts.lease_lost
    assert [list(claimed) for claimed in receipts.claims] == [[], []]


async def test_a_claim_hands_over_all_that_an_attempt_needs(node: Node) -> None:
    """The row's number, the fence, and what was asked."""
    new = new_job(kind="demo", queue="q", priority=3, max_retries=1, options=Options(timeout=2, tags=("t",)))
    await add(node.store, new)
    job = await node.take()

    assert job == Claimed(
        seq=job.seq,
        id="a",
        kind="demo",
        queue="q",
        payload=new.payload,
        priority=3,
        run_at=NOW,
        attempt=0,
        max_retries=1,
        claim=1,
        rescued=0,
        options=new.options,
    )


async def test_a_held_job_is_not_claimed_again(node: Node, other: Node) -> None:
    """By no node, however often it asks."""
    await add(node.store, new_job())
    await node.take()

    assert list(await other.claim(10)) == []
    assert list(await node.claim(10)) == []


async def test_a_held_job_is_shown_as_queued_until_its_start_is_written(node: Node) -> None:
    """What is shown as running runs; but it does not wait any more."""
    await add(node.store, new_job("a"), new_job("b"))
    receipts = await node.exchange(claim=1)
    job = await get(node.store)

    assert (job.status, job.state.claim, job.state.attempt, job.state.started_at, job.attempts) == (
        Status.QUEUED,
        1,
        0,
        None,
        (),
    )
    assert receipts.waiting == 1


async def test_a_job_starts_with_the_commit_that_stores_it(node: Node) -> None:
    """The claim comes last in a batch, so an idle node need not ask twice."""
    receipts = await node.exchange(adds=[Add([new_job()])], claim=5)

    assert [job.id for job in receipts.claimed] == ["a"]
    assert receipts.waiting == 0


async def test_a_job_handed_back_can_be_claimed_in_the_same_exchange(node: Node) -> None:
    """Outcomes come before the claim; the claim number grows all the same."""
    await add(node.store, new_job())
    first = await node.take()
    receipts = await node.exchange(settlements=[settlement(first, None)], claim=1)

    assert [(job.id, job.claim) for job in receipts.claimed] == [("a", 2)]


async def test_the_claim_number_only_grows(node: Node) -> None:
    """Through hand-back, snooze, retry by hand and rescue: it is the fence against late writers."""
    await add(node.store, new_job())
    claims = []
    for outcome in (None, Outcome.SNOOZE, Outcome.RETRY, Outcome.FAIL):
        job = await node.take(LATER)
        claims.append(job.claim)
        await node.settle(job, outcome)
    await node.store.retry(["a"], NOW)
    claims.append((await node.take()).claim)
    await node.store.rescue("other", LATER)
    await node.join()
    claims.append((await node.take()).claim)

    assert claims == [1, 2, 3, 4, 5, 6]


async def test_nothing_is_claimed_from_a_paused_queue(node: Node) -> None:
    """Its jobs wait, those of other queues do not; to pause twice is to pause."""
    await add(node.store, new_job("a", queue="x", priority=9), new_job("b", queue="y"))
    for _ in range(2):
        await node.store.pause("x")
    while_paused = [job.id for job in await node.claim(10)]
    waiting = (await look(node.store)).waiting
    for _ in range(2):
        await node.store.resume("x")
    after = [job.id for job in await node.claim(10)]

    assert while_paused == ["b"]
    assert waiting == 1
    assert after == ["a"]


READY: Mapping[str, Callable[[Node, Claimed], Awaitable[object]]] = {
    "added": lambda node, _: add(node.store, new_job("new")),
    "due, in another exchange": lambda node, _: look(node.store, NOW + 9),
    "due, with the claim": lambda node, _: node.store.ping(),
    "handed back": lambda node, held: node.settle(held, None),
    "snoozed": lambda node, held: node.settle(held, Outcome.SNOOZE, run_at=NOW + 1),
    "to be retried": lambda node, held: node.settle(held, Outcome.RETRY, run_at=NOW),
    "its queue resumed": lambda node, _: node.store.resume("paused"),
    "promoted": lambda node, _: node.store.promote(["later"], NOW),
    "retried by hand": lambda node, _: node.store.retry(["over"], NOW),
    "moved": lambda node, _: node.store.edit(["waits"], {"queue": "default"}, NOW),
}


@pytest.mark.parametrize("how", READY)
async def test_a_job_that_becomes_ready_is_found_by_a_node_that_found_none(node: Node, how: str) -> None:
    """Also where a store remembers that there was none."""
    await add(node.store, new_job("over"))
    await node.settle(await node.take(), Outcome.DONE)
    await add(node.store, new_job("held"))
    held = await node.take()
    await node.store.pause("paused")
    await add(node.store, new_job("waits", queue="paused"), new_job("later", run_at=NOW + 9))
    nothing = [list(await node.claim(10)) for _ in range(2)]
    await READY[how](node, held)
    claimed = await node.claim(10, NOW + 9 if how.startswith("due") else NOW + 1)

    assert nothing == [[], []]
    assert claimed


async def test_a_queue_can_be_paused_before_it_has_jobs(node: Node) -> None:
    """It is known from then on, and what comes into it waits."""
    await node.store.pause("x")
    known = list(await node.store.queues())
    await add(node.store, new_job(queue="x"))
    claimed = await node.claim(10)

    assert known == [QueueState(name="x", paused=True, counts={})]
    assert list(claimed) == []


async def test_a_held_job_of_a_paused_queue_goes_on(node: Node) -> None:
    """To pause stops claims, not attempts."""
    await add(node.store, new_job())
    job = await node.take()
    await node.store.pause("default")
    receipts = await node.settle(job, Outcome.DONE)

    assert not receipts.stale
    assert (await get(node.store)).status is Status.DONE


# --- promotion and expiry ---------------------------------------------------------------------------------------------


async def test_a_scheduled_job_is_claimed_from_its_run_at_on(node: Node) -> None:
    """Not a moment before."""
    await add(node.store, new_job(run_at=NOW + 5))
    early = await node.claim(now=NOW + 4.999)
    status = (await get(node.store)).status
    due = await node.claim(now=NOW + 5)

    assert list(early) == []
    assert status is Status.SCHEDULED
    assert [job.id for job in due] == ["a"]


async def test_a_retrying_job_is_claimed_from_its_run_at_on(node: Node) -> None:
    """And knows how many runs it had."""
    await bring_to(node, Status.RETRYING)
    early = await node.claim(now=NOW + 9)
    job = await node.take(NOW + 10)

    assert list(early) == []
    assert (job.attempt, job.claim, job.run_at) == (1, 2, NOW + 10)


async def test_due_jobs_are_promoted_in_order_a_step_at_a_time(store: Store) -> None:
    """The earliest first, so that no transaction is long."""
    jobs = [new_job(f"j{number:04}", run_at=NOW + 10 - number / 1000) for number in range(STEP + 2)]
    await add(store, *jobs)
    first = await look(store, LATER)
    left = await in_status(store, Status.SCHEDULED)
    second = await look(store, LATER)

    assert left == ["j0000", "j0001"]
    assert first.next_due == jobs[1].run_at
    assert second.next_due is None
    assert await in_status(store, Status.SCHEDULED) == []


async def test_a_job_expires_when_it_still_waits_at_its_expires_at(node: Node) -> None:
    """Queued, scheduled or retrying, it is not run any more."""
    times = {"expires_at": NOW + 5}
    await bring_to(node, Status.RETRYING, "r", **times)
    await bring_to(node, Status.SCHEDULED, "s", run_at=NOW + 9, **times)
    await bring_to(node, Status.QUEUED, "q", **times)
    await look(node.store, NOW + 4.999)
    before = [(await get(node.store, job_id)).status for job_id in "rsq"]
    receipts = await node.exchange(NOW + 5, claim=10)
    after = [await get(node.store, job_id) for job_id in "rsq"]

    assert before == [Status.RETRYING, Status.SCHEDULED, Status.QUEUED]
    assert [(job.status, job.state.finished_at) for job in after] == [(Status.EXPIRED, NOW + 5)] * 3
    assert (list(receipts.claimed), receipts.waiting, receipts.next_due) == ([], 0, None)


async def test_who_watches_a_job_is_told_by_the_exchange_that_expires_it(node: Node) -> None:
    """Embedded stores tell of each; those that nodes share, of what is watched."""
    await add(node.store, new_job("a", expires_at=NOW + 5), new_job("b", expires_at=NOW + 5))
    shared = node.store if isinstance(node.store, SharedStore) else None
    if shared is not None:
        await shared.watch("a")
    receipts = await node.exchange(NOW + 5)
    told = sorted((change.id, change.status) for change in receipts.changes)

    assert told == [(job_id, Status.EXPIRED) for job_id in ("ab" if shared is None else "a")]
    assert list((await node.exchange(NOW + 6)).changes) == []


async def test_a_job_that_is_due_and_overdue_at_once_expires(node: Node) -> None:
    """As after a night in which no node ran."""
    await add(node.store, new_job(run_at=NOW + 5, expires_at=NOW + 6))
    claimed = await node.claim(now=LATER)

    assert list(claimed) == []
    assert (await get(node.store)).status is Status.EXPIRED


async def test_overdue_jobs_expire_in_order_a_step_at_a_time(node: Node) -> None:
    """Even those that are left for the next exchange are not claimed in this one."""
    jobs = [new_job(f"j{number:04}", expires_at=NOW + 10 - number / 1000) for number in range(STEP + 2)]
    await add(node.store, *jobs, new_job("fresh"))
    first = await node.exchange(LATER, claim=10)
    left = await in_status(node.store, Status.QUEUED)
    await look(node.store, LATER)

    assert [job.id for job in first.claimed] == ["fresh"]
    assert left == ["j0000", "j0001", "fresh"]
    assert first.next_due == jobs[1].expires_at
    assert len(await in_status(node.store, Status.EXPIRED)) == STEP + 2


async def test_a_held_job_does_not_expire(node: Node) -> None:
    """expires_at is for jobs that wait."""
    await add(node.store, new_job(expires_at=NOW + 5))
    job = await node.take()
    receipts = await look(node.store, LATER)
    await node.settle(job, Outcome.DONE, LATER)

    assert receipts.next_due is None
    assert (await get(node.store)).status is Status.DONE


async def test_a_job_handed_back_too_late_is_not_claimed_but_expires(node: Node) -> None:
    """Not even in the exchange that hands it back."""
    await add(node.store, new_job(expires_at=NOW + 5))
    job = await node.take()
    receipts = await node.exchange(LATER, settlements=[settlement(job, None, LATER)], claim=1)
    await look(node.store, LATER)

    assert list(receipts.claimed) == []
    assert receipts.next_due == NOW + 5
    assert (await get(node.store)).status is Status.EXPIRED


async def test_next_due_is_the_next_moment_at_which_a_job_changes_by_itself(node: Node) -> None:
    """None when no job waits for a time."""
    none = (await look(node.store)).next_due
    await add(node.store, new_job("a"), new_job("b", run_at=NOW + 9), new_job("c", expires_at=NOW + 7))
    expiry = (await look(node.store)).next_due
    await node.store.cancel(["c"], NOW)
    promotion = (await look(node.store)).next_due
    await node.store.delete(["b"], NOW)

    assert (none, expiry, promotion) == (None, NOW + 7, NOW + 9)
    assert (await look(node.store)).next_due is None


# --- starts -----------------------------------------------------------------------------------------------------------


async def test_a_started_job_is_running(node: Node) -> None:
    """Its last record is the attempt that runs, without an end."""
    await add(node.store, new_job())
    claimed = await node.take()
    receipts = await node.start(claimed, NOW + 1)
    job = await get(node.store)

    assert not receipts.stale
    assert (job.status, job.state.attempt, job.state.started_at) == (Status.RUNNING, 1, NOW + 1)
    assert job.attempts == (AttemptRecord(number=1, claim=1, node="node", started_at=NOW + 1, due_at=NOW),)


async def test_the_start_of_a_job_that_was_asked_to_stop_is_written_too(node: Node) -> None:
    """It stays `cancelling`; the attempt is on record."""
    await add(node.store, new_job())
    claimed = await node.take()
    await node.store.cancel(["a"], NOW)
    before = await get(node.store)
    await node.start(claimed)
    job = await get(node.store)

    assert (before.status, before.state.attempt, before.attempts) == (Status.CANCELLING, 0, ())
    assert (job.status, job.state.attempt, job.state.started_at) == (Status.CANCELLING, 1, NOW)
    assert [record.outcome for record in job.attempts] == [None]


# --- settlements ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True], ids=["unwritten", "begun"])
@pytest.mark.parametrize("outcome", list(Outcome))
async def test_a_settled_attempt_is_on_record(node: Node, outcome: Outcome, begun: bool) -> None:
    """The job becomes what the settlement says, whether its start was written before or not."""
    await add(node.store, new_job())
    claimed = await node.take()
    if begun:
        await node.start(claimed)
    receipts = await node.settle(claimed, outcome, NOW, settled_at=NOW + 1)
    wish = settlement(claimed, outcome)
    job = await get(node.store)

    assert (receipts.stale, receipts.settled) == (frozenset(), {})
    assert (job.status, job.state.attempt, job.state.started_at) == (BECOMES[outcome], wish.attempt, NOW)
    assert job.state.finished_at == (NOW + 1 if job.status in ENDED else None)
    assert (job.state.result, job.state.error) == (wish.result, wish.error)
    assert job.asked.run_at == (NOW if wish.run_at is None else wish.run_at)
    record = AttemptRecord(
        number=1,
        claim=1,
        node="node",
        started_at=NOW,
        finished_at=NOW + 1,
        outcome=outcome,
        error=wish.error,
        due_at=NOW,
    )
    assert job.attempts == (record,)


async def test_a_job_handed_back_has_spent_nothing(node: Node) -> None:
    """It waits at its place again, and no attempt is on record."""
    await add(node.store, new_job("a"), new_job("b"))
    claimed = await node.take()
    receipts = await node.settle(claimed, None)
    job = await get(node.store)

    assert (job.status, job.state.attempt, job.asked.run_at, job.attempts) == (Status.QUEUED, 0, NOW, ())
    assert receipts.waiting == 2
    assert [one.id for one in await node.claim(2)] == ["a", "b"]


@pytest.mark.parametrize("outcome", [None, Outcome.SNOOZE, Outcome.INTERRUPTED])
async def test_a_job_that_waits_again_keeps_its_last_error(node: Node, outcome: Outcome | None) -> None:
    """`error` is the last one, and these bring none."""
    await bring_to(node, Status.RETRYING)
    claimed = await node.take(LATER)
    await node.settle(claimed, outcome, LATER)

    assert (await get(node.store)).state.error == ERROR


async def test_a_job_that_went_well_in_the_end_has_no_error(node: Node) -> None:
    """The errors of its earlier attempts stay with them."""
    await bring_to(node, Status.RETRYING)
    claimed = await node.take(LATER)
    await node.settle(claimed, Outcome.DONE, LATER)
    job = await get(node.store)

    assert (job.status, job.state.error, job.state.attempt) == (Status.DONE, None, 2)
    assert [(record.number, record.claim, record.outcome, record.error) for record in job.attempts] == [
        (1, 1, Outcome.RETRY, ERROR),
        (2, 2, Outcome.DONE, None),
    ]


async def test_only_the_newest_attempts_are_kept(node: Node) -> None:
    """As many as ATTEMPTS_KEPT; the count of runs goes on."""
    await add(node.store, new_job(max_retries=1000))
    for number in range(ATTEMPTS_KEPT + 5):
        claimed = await node.take(LATER + number)
        await node.settle(claimed, Outcome.RETRY, LATER + number, run_at=LATER + number)
    waiting = await get(node.store)
    await node.start(await node.take(LATER + 1000), LATER + 1000)
    running = await get(node.store)

    assert waiting.state.attempt == ATTEMPTS_KEPT + 5
    assert [record.number for record in waiting.attempts] == list(range(6, ATTEMPTS_KEPT + 6))
    assert [record.number for record in running.attempts] == list(range(7, ATTEMPTS_KEPT + 7))


@pytest.mark.parametrize("outcome", [None, Outcome.RETRY, Outcome.SNOOZE, Outcome.INTERRUPTED])
async def test_a_cancelling_job_does_not_wait_again(node: Node, outcome: Outcome | None) -> None:
    """It becomes `cancelled`, and its node is told so."""
    await add(node.store, new_job())
    claimed = await node.take()
    await node.store.cancel(["a"], NOW)
    receipts = await node.settle(claimed, outcome, NOW + 1)
    job = await get(node.store)

    assert receipts.settled == {claimed.seq: Status.CANCELLED}
    assert (job.status, job.state.finished_at) == (Status.CANCELLED, NOW + 1)
    assert [record.outcome for record in job.attempts] == ([outcome] if outcome else [])
    assert (await look(node.store)).waiting == 0


@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.FAIL, Outcome.CANCELLED])
async def test_a_cancelling_job_may_end_otherwise(node: Node, outcome: Outcome) -> None:
    """The wish came too late, or was granted: what its attempt came to stands."""
    claimed = await bring_to(node, Status.CANCELLING)
    assert claimed is not None
    receipts = await node.settle(claimed, outcome)

    assert receipts.settled == {}
    assert (await get(node.store)).status is BECOMES[outcome]


# --- fences -----------------------------------------------------------------------------------------------------------


async def assert_stale(node: Node, job: Claimed) -> None:
    """No late write of a claim changes anything, and each is returned as stale."""
    before, queues = await node.store.get(job.id), await node.store.queues()
    writes: list[dict[str, Any]] = [{"starts": [start(job)]}]
    writes += [{"settlements": [settlement(job, outcome)]} for outcome in BECOMES]
    for parts in writes:
        receipts = await node.exchange(LATER, **parts)
        assert (set(receipts.stale), receipts.settled) == ({(job.seq, job.claim)}, {})
        assert await node.store.get(job.id) == before
        assert await node.store.queues() == queues


async def test_a_write_after_the_settlement_is_stale(node: Node) -> None:
    """Each claim is settled once."""
    await add(node.store, new_job())
    claimed = await node.take()
    await node.settle(claimed, Outcome.DONE)

    await assert_stale(node, claimed)


async def test_a_write_after_a_rescue_is_stale(node: Node, other: Node) -> None:
    """The node was taken for dead: the job is not its any more."""
    claimed = await bring_to(node, Status.RUNNING)
    assert claimed is not None
    await node.store.rescue("other", LEASE)

    await assert_stale(node, claimed)


async def test_a_write_of_an_earlier_claim_is_stale(node: Node, other: Node) -> None:
    """Although the job is held again, by another node or by the same one."""
    claimed = await bring_to(node, Status.RUNNING)
    assert claimed is not None
    await node.store.rescue("other", LEASE)
    second = await other.take()
    await assert_stale(node, claimed)
    await other.start(second)
    await assert_stale(node, claimed)
    receipts = await other.settle(second, Outcome.DONE)

    assert not receipts.stale


async def test_a_write_after_a_retry_by_hand_is_stale(node: Node) -> None:
    """The attempt number is set back by it, the claim number is not."""
    claimed = await bring_to(node, Status.FAILED)
    assert claimed is not None
    await node.store.retry(["a"], NOW)
    await assert_stale(node, claimed)
    again = await node.take()
    await assert_stale(node, claimed)

    assert (again.attempt, again.claim) == (0, 2)


async def test_a_write_to_a_deleted_job_is_stale(node: Node) -> None:
    """Also when its id was given to a new job."""
    claimed = await bring_to(node, Status.DONE)
    assert claimed is not None
    await node.store.delete(["a"], NOW)
    await assert_stale(node, claimed)
    await add(node.store, new_job())
    await node.take()

    await assert_stale(node, claimed)


async def test_what_is_stale_does_not_hinder_the_rest_of_the_batch(node: Node) -> None:
    """The others are written, in whatever order they come."""
    ids = ["a", "b", "c", "d", "e"]
    await add(node.store, *(new_job(job_id) for job_id in ids))
    jobs = {job.id: job for job in await node.claim(5)}
    await node.exchange(settlements=[settlement(jobs["a"], Outcome.DONE), settlement(jobs["b"], None)])
    receipts = await node.exchange(
        starts=[start(jobs["a"]), start(jobs["c"])],
        settlements=[
            settlement(jobs["a"], Outcome.FAIL),
            settlement(jobs["d"], Outcome.DONE),
            settlement(jobs["b"], Outcome.RETRY),
            settlement(jobs["e"], Outcome.RETRY),
        ],
    )
    statuses = [(await get(node.store, job_id)).status for job_id in ids]

    assert receipts.stale == {(jobs["a"].seq, 1), (jobs["b"].seq, 1)}
    assert statuses == [Status.DONE, Status.QUEUED, Status.RUNNING, Status.DONE, Status.RETRYING]


# --- leases and rescue ------------------------------------------------------------------------------------------------


async def test_a_node_that_never_joined_claims_nothing(store: Store) -> None:
    """It has no lease, so another one might take its jobs at any time."""
    await add(store, new_job())
    receipts = await Node(store).exchange(claim=1)

    assert receipts.lease_lost
    assert list(receipts.claimed) == []


async def test_a_node_that_never_joined_has_no_lease_to_renew(store: Store) -> None:
    """To renew does not register it."""
    receipts = [await Node(store).exchange(lease_until=LEASE) for _ in range(2)]

    assert [one.lease_lost for one in receipts] == [True, True]


async def test_an_exchange_that_needs_no_lease_does_not_lose_one(store: Store) -> None:
    """The door of a node may add jobs before it has joined."""
    receipts = await Node(store).exchange(adds=[Add([new_job()])])

    assert not receipts.lease_lost
    assert receipts.waiting == 1


async def test_a_node_without_a_lease_still_writes_what_it_may(node: Node, other: Node) -> None:
    """Adds, and outcomes under their fences, are carried out; nothing is claimed."""
    await add(node.store, new_job("a"), new_job("b"))
    jobs = await node.claim(2)
    await node.store.leave("node")
    receipts = await node.exchange(
        lease_until=LEASE,
        starts=[start(jobs[0])],
        settlements=[settlement(jobs[1], Outcome.DONE)],
        adds=[Add([new_job("c")])],
        claim=5,
    )

    assert receipts.lease_lost
    assert not receipts.stale
    assert list(receipts.claimed) == []
    assert (await get(node.store, "a")).status is Status.RUNNING
    assert (await get(node.store, "b")).status is Status.DONE
    assert (await get(node.store, "c")).status is Status.QUEUED


async def test_a_lease_that_ran_out_may_be_renewed_while_nobody_took_it(node: Node, other: Node) -> None:
    """Only a rescue takes it."""
    late = await node.exchange(LATER, lease_until=LATER + 15)
    rescued = await node.store.rescue("other", LATER)
    still = await node.exchange(LATER, lease_until=LATER + 15)

    assert not late.lease_lost
    assert list(rescued) == []
    assert not still.lease_lost


async def test_a_renewed_lease_keeps_the_jobs(node: Node, other: Node) -> None:
    """Until the moment at which it ends."""
    await bring_to(node, Status.RUNNING)
    await node.exchange(lease_until=NOW + 100)
    before = await node.store.rescue("other", NOW + 99.999)
    after = await node.store.rescue("other", NOW + 100)

    assert list(before) == []
    assert [one.id for one in after] == ["a"]


async def test_a_rescued_node_has_lost_its_lease_until_it_joins_again(node: Node, other: Node) -> None:
    """Held jobs or not."""
    await add(node.store, new_job())
    await node.store.rescue("other", LEASE)
    lost = await node.exchange(LEASE, lease_until=LATER, claim=1)
    await node.join(LEASE, LATER)
    found = await node.exchange(LEASE, lease_until=LATER, claim=1)

    assert (lost.lease_lost, list(lost.claimed)) == (True, [])
    assert (found.lease_lost, [job.id for job in found.claimed]) == (False, ["a"])


async def test_to_join_again_sets_the_lease_anew(node: Node, other: Node) -> None:
    """What the node held, it holds still."""
    claimed = await bring_to(node, Status.RUNNING)
    assert claimed is not None
    await node.join(LEASE, LATER)
    rescued = await node.store.rescue("other", LEASE)
    receipts = await node.settle(claimed, Outcome.DONE)

    assert list(rescued) == []
    assert not receipts.stale


async def test_a_node_that_left_is_forgotten(node: Node) -> None:
    """It can neither renew nor claim; to leave twice is to leave."""
    await add(node.store, new_job())
    for _ in range(2):
        await node.store.leave("node")
    receipts = [await node.exchange(lease_until=LATER), await node.exchange(claim=1)]

    assert [one.lease_lost for one in receipts] == [True, True]


async def test_jobs_of_a_node_that_left_are_rescued_at_once(node: Node, other: Node) -> None:
    """No job stays held for want of an owner, however far its lease went."""
    await bring_to(node, Status.RUNNING)
    await node.store.leave("node")
    rescued = await node.store.rescue("other", NOW)

    assert [(one.id, one.status) for one in rescued] == [("a", Status.QUEUED)]
    assert (await get(node.store)).attempts[0].node == "node"


async def test_a_node_does_not_rescue_from_itself(node: Node) -> None:
    """Not even when its own lease has ended; and it may still renew it."""
    claimed = await bring_to(node, Status.RUNNING)
    assert claimed is not None
    rescued = await node.store.rescue("node", LATER)
    renewed = await node.exchange(LATER, lease_until=LATER + 15)
    receipts = await node.settle(claimed, Outcome.DONE)

    assert list(rescued) == []
    assert not renewed.lease_lost
    assert not receipts.stale


async def test_a_node_that_left_does_not_rescue_from_itself_either(node: Node) -> None:
    """What it holds, it may still settle; only another one takes it."""
    claimed = await bring_to(node, Status.RUNNING)
    assert claimed is not None
    await node.store.leave("node")
    rescued = await node.store.rescue("node", LATER)
    receipts = await node.settle(claimed, Outcome.DONE)

    assert list(rescued) == []
    assert not receipts.stale


async def test_a_rescue_leaves_the_living_alone(node: Node, other: Node) -> None:
    """It takes the jobs of the dead, and those alone."""
    await add(node.store, new_job("a"), new_job("b"), new_job("c"))
    await node.take()
    theirs = await other.take()
    rescued = await node.store.rescue("third", LATER)
    receipts = await other.settle(theirs, Outcome.DONE)

    assert [one.id for one in rescued] == ["a"]
    assert not receipts.stale


async def test_a_job_that_had_not_begun_is_rescued_unspent(node: Node, other: Node) -> None:
    """It waits again as before; only the count of rescues tells."""
    await add(node.store, new_job())
    before = await get(node.store)
    await node.take()
    (rescued,) = await node.store.rescue("other", LATER)
    job = await get(node.store)
    again = await other.take(LATER)

    assert (rescued.id, rescued.queue, rescued.status, rescued.begun) == (
        "a",
        "default",
        Status.QUEUED,
        False,
    )
    assert job == Job(before.asked, State(Status.QUEUED, claim=1))
    assert (again.claim, again.attempt, again.rescued) == (2, 0, 1)


async def test_a_running_job_is_rescued_with_its_attempt_spent(node: Node, other: Node) -> None:
    """So a job that kills its node cannot do so for ever."""
    await bring_to(node, Status.RUNNING)
    (rescued,) = await node.store.rescue("other", LATER)
    job = await get(node.store)
    again = await other.take(LATER)

    assert (rescued.status, rescued.begun) == (Status.QUEUED, True)
    assert (job.status, job.state.attempt, job.asked.run_at, job.state.finished_at) == (
        Status.QUEUED,
        1,
        NOW,
        None,
    )
    assert job.state.error is not None
    assert job.state.error.type == "NodeDied"
    assert job.attempts == (
        AttemptRecord(
            number=1,
            claim=1,
            node="node",
            started_at=NOW,
            finished_at=LATER,
            outcome=Outcome.INTERRUPTED,
            error=job.state.error,
            due_at=NOW,
        ),
    )
    assert (again.attempt, again.rescued) == (1, 1)


@pytest.mark.parametrize(
    "changes", [{"max_retries": 0}, {"options": Options(on_crash="fail")}], ids=["last attempt", "on_crash"]
)
async def test_a_job_that_may_not_run_again_fails_when_its_node_dies(
    node: Node, other: Node, changes: dict[str, Any]
) -> None:
    """Its retries are used up, or it asked not to be run again."""
    await bring_to(node, Status.RUNNING, **changes)
    (rescued,) = await node.store.rescue("other", LATER)
    job = await get(node.store)

    assert (rescued.status, rescued.begun) == (Status.FAILED, True)
    assert (job.status, job.state.finished_at, job.state.attempt) == (Status.FAILED, LATER, 1)
    assert job.state.error is not None
    assert [(record.outcome, record.error) for record in job.attempts] == [
        (Outcome.INTERRUPTED, job.state.error)
    ]


async def test_a_job_that_leaves_its_retries_to_the_handler_is_judged_by_who_claims_it(
    node: Node, other: Node
) -> None:
    """A store knows of no handler: such a job is queued when its node dies, and fails when it is settled so."""
    await bring_to(node, Status.RUNNING, max_retries=None)
    (rescued,) = await node.store.rescue("other", LATER)
    claimed = await other.take(LATER)
    spent = settlement(
        claimed, None, LATER, status=Status.FAILED, attempt=claimed.attempt, error=DIED_LAST, started_at=None
    )
    receipts = await other.exchange(LATER, settlements=[spent])
    job = await get(node.store)

    assert (rescued.status, rescued.begun) == (Status.QUEUED, True)
    assert (claimed.max_retries, claimed.attempt, claimed.rescued) == (None, 1, 1)
    assert not receipts.stale
    assert (job.status, job.state.attempt, job.asked.max_retries, job.state.error) == (
        Status.FAILED,
        1,
        None,
        DIED_LAST,
    )
    assert [record.outcome for record in job.attempts] == [Outcome.INTERRUPTED]


async def test_what_was_asked_is_compared_not_what_the_handler_says(store: Store) -> None:
    """A number of retries is other content than none."""
    await add(store, new_job(max_retries=None))
    (same,) = await add(store, new_job(max_retries=None))
    (other,) = await add(store, new_job(max_retries=3))

    assert (same.verdict, other.verdict) == ("existing", "conflict")


@pytest.mark.parametrize("begun", [False, True])
async def test_a_cancelling_job_of_a_dead_node_is_cancelled(node: Node, other: Node, begun: bool) -> None:
    """Nobody runs it any more; an attempt that had begun is on record."""
    await add(node.store, new_job())
    claimed = await node.take()
    if begun:
        await node.start(claimed)
    await node.store.cancel(["a"], NOW)
    (rescued,) = await node.store.rescue("other", LATER)
    job = await get(node.store)

    assert (rescued.status, rescued.begun) == (Status.CANCELLED, begun)
    assert (job.status, job.state.finished_at, job.state.attempt) == (Status.CANCELLED, LATER, int(begun))
    assert [record.outcome for record in job.attempts] == [Outcome.CANCELLED] * begun


async def test_a_job_claimed_again_has_not_begun(node: Node, other: Node) -> None:
    """What its earlier attempts left does not count as a start of this claim."""
    await bring_to(node, Status.RETRYING)
    await node.take(LATER)
    (rescued,) = await node.store.rescue("other", LATER)
    job = await get(node.store)

    assert not rescued.begun
    assert (job.state.attempt, job.state.error) == (1, ERROR)
    assert [record.outcome for record in job.attempts] == [Outcome.RETRY]


async def test_a_job_is_rescued_once(node: Node, other: Node) -> None:
    """A second rescue finds nothing."""
    await bring_to(node, Status.RUNNING)
    await node.store.rescue("other", LATER)
    job = await get(node.store)
    again = await node.store.rescue("other", LATER)

    assert list(again) == []
    assert await get(node.store) == job


# --- cancel, retry, delete --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", sorted(WAITING))
async def test_a_waiting_job_is_cancelled_at_once(node: Node, status: Status) -> None:
    """It has ended, and is never claimed."""
    await bring_to(node, status)
    (change,) = await node.store.cancel(["a"], NOW + 1)
    job = await get(node.store)
    receipts = await node.exchange(LATER, claim=1)

    assert then(change) == Change("a", "changed", job)
    assert (job.status, job.state.finished_at) == (Status.CANCELLED, NOW + 1)
    assert (list(receipts.claimed), receipts.waiting, receipts.next_due) == ([], 0, None)


async def test_a_held_job_is_asked_to_stop(node: Node) -> None:
    """Begun or not, its node has to say what became of it; to ask twice is to ask."""
    await bring_to(node, Status.RUNNING, "begun")
    await add(node.store, new_job("held"))
    await node.take()
    for _ in range(2):
        changes = await node.store.cancel(["begun", "held"], NOW)
        jobs = [await get(node.store, job_id) for job_id in ("begun", "held")]

        assert [*map(then, changes)] == [
            Change("begun", "changed", jobs[0]),
            Change("held", "changed", jobs[1]),
        ]
        assert [(job.status, job.state.finished_at) for job in jobs] == [(Status.CANCELLING, None)] * 2


@pytest.mark.parametrize("status", sorted(ENDED))
async def test_a_job_that_has_ended_cannot_be_cancelled(node: Node, status: Status) -> None:
    """It stays as it is, and is handed over."""
    await bring_to(node, status)
    before = await get(node.store)
    changes = await node.store.cancel(["a"], LATER)

    assert list(changes) == [Change("a", "refused", before)]
    assert await get(node.store) == before


@pytest.mark.parametrize("status", sorted(ENDED))
async def test_a_job_that_has_ended_can_be_retried(node: Node, status: Status) -> None:
    """It waits as new, with its history; an expires_at that has passed is dropped."""
    await bring_to(node, status)
    before = await get(node.store)
    (change,) = await node.store.retry(["a"], LATER)
    job = await get(node.store)
    again = await node.take(LATER)

    assert then(change) == Change("a", "changed", job)
    assert job == Job(
        msgspec.structs.replace(before.asked, run_at=LATER, expires_at=None),
        State(Status.QUEUED, claim=before.state.claim),
        before.attempts,
        original=before.asked if status is Status.EXPIRED else None,
    )
    assert (again.claim, again.attempt) == (before.state.claim + 1, 0)


@pytest.mark.parametrize("status", sorted(set(Status) - ENDED))
async def test_a_job_that_has_not_ended_cannot_be_retried(node: Node, status: Status) -> None:
    """Its own retries are its business."""
    await bring_to(node, status)
    before = await get(node.store)
    changes = await node.store.retry(["a"], LATER)

    assert list(changes) == [Change("a", "refused", before)]
    assert await get(node.store) == before


async def test_a_retry_keeps_an_expires_at_that_lies_ahead(node: Node) -> None:
    """Only one that has passed would end the job at once."""
    await bring_to(node, Status.FAILED, expires_at=LATER)
    await node.store.retry(["a"], LATER - 1)
    kept = (await get(node.store)).asked.expires_at
    await look(node.store, LATER)
    expired = (await get(node.store)).status
    await node.store.retry(["a"], LATER)

    assert kept == LATER
    assert expired is Status.EXPIRED
    assert (await get(node.store)).asked.expires_at is None


async def test_a_retried_job_ends_anew(node: Node) -> None:
    """All its attempts are on record, those before and those after."""
    await bring_to(node, Status.DONE)
    await node.store.retry(["a"], NOW)
    claimed = await node.take()
    await node.start(claimed)
    await node.settle(claimed, Outcome.FAIL)
    job = await get(node.store)

    assert [(record.number, record.claim, record.outcome) for record in job.attempts] == [
        (1, 1, Outcome.DONE),
        (1, 2, Outcome.FAIL),
    ]
    assert (job.state.attempt, job.state.result, job.state.error) == (1, None, ERROR)


@pytest.mark.parametrize("status", sorted(WAITING | ENDED))
async def test_a_job_that_nobody_holds_can_be_deleted(node: Node, status: Status) -> None:
    """Nothing of it is left, and its id is free."""
    await bring_to(node, status, options=Options(tags=("t",)))
    changes = await node.store.delete(["a"], NOW)
    gone = await node.store.get("a")
    tagged = await listed(node.store, tag="t")
    receipts = await node.exchange(LATER, claim=1)
    await add(node.store, new_job(payload=b"2"))

    assert [*map(then, changes)] == [Change("a", "changed")]
    assert gone is None
    assert tagged == []
    assert (list(receipts.claimed), receipts.waiting, receipts.next_due) == ([], 0, None)
    assert await get(node.store) == Job(new_job(payload=b"2"), State(Status.QUEUED))


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_held_job_cannot_be_deleted(node: Node, begun: bool, cancelled: bool) -> None:
    """Cancel it first, and wait until it has ended."""
    await add(node.store, new_job())
    claimed = await node.take()
    if begun:
        await node.start(claimed)
    if cancelled:
        await node.store.cancel(["a"], NOW)
    before = await get(node.store)
    changes = await node.store.delete(["a"], NOW)

    assert list(changes) == [Change("a", "refused", before)]
    assert await get(node.store) == before


async def test_each_of_many_ids_gets_its_own_verdict(node: Node) -> None:
    """In the order in which they were named; what is absent hinders nobody."""
    store = node.store
    await bring_to(node, Status.DONE, "done")
    await add(store, new_job("a"), new_job("b"))
    ids = ["b", "absent", "done", "a"]
    cancelled = [change.verdict for change in await store.cancel(ids, NOW)]
    retried = [change.verdict for change in await store.retry(ids, NOW)]
    deleted = [change.verdict for change in await store.delete([*ids, "a"], NOW)]

    assert cancelled == ["changed", "absent", "refused", "changed"]
    assert retried == ["changed", "absent", "changed", "changed"]
    assert deleted == ["changed", "absent", "changed", "changed", "absent"]
    assert list(await store.cancel([], NOW)) == []


# --- promote ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", sorted(BY_TIME))
async def test_a_waiting_job_is_ready_when_it_is_promoted(node: Node, status: Status) -> None:
    """With the attempts that it has had; one that was ready keeps its place."""
    await bring_to(node, status)
    before = await get(node.store)
    (change,) = await node.store.promote(["a"], NOW + 1)
    after = await get(node.store)
    receipts = await node.exchange(NOW + 1, claim=1)

    run_at = before.asked.run_at if status is Status.QUEUED else NOW + 1
    assert then(change) == Change("a", "changed", after)
    assert after == replace(
        before,
        asked=replace(before.asked, run_at=run_at),
        state=replace(before.state, status=Status.QUEUED),
    )
    assert [(job.id, job.run_at, job.attempt) for job in receipts.claimed] == [
        ("a", run_at, before.state.attempt)
    ]


@pytest.mark.parametrize("status", sorted(set(Status) - WAITING | {Status.BLOCKED}))
async def test_what_waits_for_others_runs_or_has_ended_is_not_promoted(node: Node, status: Status) -> None:
    """Nor is what is not there."""
    await bring_to(node, status)
    before = await get(node.store)
    changes = await node.store.promote(["a", "nobody"], LATER)

    assert list(changes) == [Change("a", "refused", before), Change("nobody", "absent")]
    assert await get(node.store) == before


async def test_a_held_job_is_not_promoted_before_it_begins_either(node: Node) -> None:
    await add(node.store, new_job())
    await node.take()
    before = await get(node.store)
    changes = await node.store.promote(["a"], NOW)

    assert list(changes) == [Change("a", "refused", before)]


async def test_promoted_jobs_count_as_ready_and_run_in_the_usual_order(node: Node) -> None:
    """A queue that is paused stays so."""
    store = node.store
    await add(store, new_job("last", run_at=LATER), new_job("x", run_at=LATER, queue="x"), new_job("first"))
    await store.pause("x")
    await store.promote(["x", "last"], NOW + 1)
    queues = {one.name: (one.counts, one.oldest_queued_at) for one in await store.queues()}
    receipts = await node.exchange(NOW + 1, claim=9)

    assert queues == {"default": ({Status.QUEUED: 2}, NOW), "x": ({Status.QUEUED: 1}, NOW + 1)}
    assert [job.id for job in receipts.claimed] == ["first", "last"]
    assert receipts.next_due is None


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("options", [Options(delay=1000.0), Options(run_at=LATER)])
async def test_a_repeated_request_is_the_same_after_its_job_was_promoted(
    store: Store, options: Options, atomic: bool
) -> None:
    """What it says of the time is compared as it was sent."""
    first = new_job(run_at=LATER, expires_at=LATER + 1, options=options)
    await add(store, first)
    await store.promote(["a"], NOW)
    job = await get(store)
    (same,) = await add(store, first, atomic=atomic)
    (other,) = await add(store, replace(first, run_at=NOW, options=Options()), atomic=atomic)

    assert (same, other) == (Receipt("existing", job), Receipt("conflict", job))
    assert (job.asked, job.original) == (replace(first, run_at=NOW), None)


# --- edit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", sorted(BY_TIME))
async def test_a_waiting_job_can_be_edited(node: Node, status: Status) -> None:
    """What is not named stays as it was, and so does how it stands."""
    await bring_to(node, status, options=Options(on_crash="fail", tags=("t", "u")))
    before = await get(node.store)
    backoff = Backoff(base=9.0)
    edits: dict[str, Any] = {"payload": b"[2]", "priority": -7, "max_retries": 0, "expires_at": LATER + 100}
    job = await edit(node.store, **edits, timeout=5.0, backoff=backoff, tags=("u", "v"))
    claimed = await node.take(LATER)

    options = Options(timeout=5.0, backoff=backoff, on_crash="fail", tags=("u", "v"))
    assert (job.asked, job.state) == (replace(before.asked, **edits, options=options), before.state)
    assert (job.attempts, job.original) == (before.attempts, before.asked)
    assert (claimed.payload, claimed.priority, claimed.max_retries) == (b"[2]", -7, 0)
    assert claimed.options == options
    assert [await listed(node.store, tag=tag) for tag in "tuv"] == [[], ["a"], ["a"]]


@pytest.mark.parametrize("status", sorted(set(Status) - WAITING))
async def test_what_runs_or_has_ended_is_not_edited(node: Node, status: Status) -> None:
    """Nor is what is not there."""
    await bring_to(node, status)
    before = await get(node.store)
    changes = await node.store.edit(["a", "nobody"], {"priority": 1}, LATER)

    assert list(changes) == [Change("a", "refused", before), Change("nobody", "absent")]
    assert await get(node.store) == before


async def test_a_held_job_is_not_edited_before_it_begins_either(node: Node) -> None:
    """And can be edited once it is handed back."""
    await add(node.store, new_job())
    job = await node.take()
    before = await get(node.store)
    (held,) = await node.store.edit(["a"], {"payload": b"2"}, NOW)
    await node.settle(job, None)
    await edit(node.store, payload=b"2")

    assert held == Change("a", "refused", before)
    assert (await node.take()).payload == b"2"


async def test_a_job_that_is_moved_counts_in_its_new_queue(node: Node) -> None:
    """And is claimed there, though its old one is paused."""
    store = node.store
    await add(store, new_job(), new_job("b"), new_job("later", run_at=LATER))
    await store.pause("default")
    await store.edit(["a", "later"], {"queue": "x"}, NOW)
    queues = {one.name: (one.counts, one.oldest_queued_at) for one in await store.queues()}
    claimed = await node.claim(9, LATER)

    assert queues["default"] == ({Status.QUEUED: 1}, NOW)
    assert queues["x"] == ({Status.QUEUED: 1, Status.SCHEDULED: 1}, NOW)
    assert [(job.id, job.queue) for job in claimed] == [("a", "x"), ("later", "x")]
    assert await listed(store, queue="x") == ["later", "a"]
    assert (await look(store, LATER)).waiting == 1


async def test_a_new_priority_changes_the_order_of_claims(node: Node) -> None:
    """As does a new time."""
    await add(node.store, *(new_job(job_id) for job_id in "abcd"))
    await edit(node.store, "c", priority=1)
    await edit(node.store, "a", priority=-1)
    await edit(node.store, "b", now=NOW + 1, run_at=NOW + 1)

    assert [job.id for job in await node.claim(9, NOW + 1)] == ["c", "d", "b", "a"]


@pytest.mark.parametrize("status", sorted(BY_TIME))
async def test_a_job_is_ready_at_its_new_time(node: Node, status: Status) -> None:
    """The store says when that is; until then it counts as waiting for it."""
    await bring_to(node, status)
    job = await edit(node.store, run_at=LATER)
    before = await node.exchange(LATER - 1, claim=1)
    after = await node.exchange(LATER, claim=1)

    ahead = Status.RETRYING if status is Status.RETRYING else Status.SCHEDULED
    assert (job.status, before.claimed, before.next_due) == (ahead, [], LATER)
    assert [one.id for one in after.claimed] == ["a"]


@pytest.mark.parametrize("status", sorted(BY_TIME))
async def test_a_job_that_is_due_now_is_ready_at_once(node: Node, status: Status) -> None:
    """With the attempts that it has had."""
    await bring_to(node, status)
    before = await get(node.store)
    job = await edit(node.store, run_at=NOW)

    assert (job.status, job.attempts) == (Status.QUEUED, before.attempts)
    assert (await node.take()).attempt == before.state.attempt


async def test_a_job_expires_at_its_new_time(node: Node) -> None:
    """And not at all once that is taken back."""
    await add(node.store, new_job(expires_at=NOW + 1), new_job("b"))
    await edit(node.store, expires_at=None)
    await edit(node.store, "b", expires_at=NOW + 2)
    due = (await look(node.store)).next_due
    receipts = await look(node.store, NOW + 2)

    assert due == NOW + 2
    assert [change.id for change in receipts.changes] in (["b"], [])  # a shared store tells of watched jobs
    assert [(await get(node.store, job_id)).status for job_id in "ab"] == [Status.QUEUED, Status.EXPIRED]


# --- prune ------------------------------------------------------------------------------------------------------------


async def ended_at(
    node: Node, job_id: str, at: float, outcome: Outcome = Outcome.DONE, **changes: Any
) -> None:
    """Add a job and end it at a time."""
    await add(node.store, new_job(job_id, run_at=at, created_at=at), now=at)
    await node.settle(await node.take(at), outcome, at, **changes)


def retention(**changes: Any) -> Retention:
    return msgspec.structs.replace(KEEP_ALL, **changes)


async def test_nothing_is_pruned_that_may_be_kept(node: Node) -> None:
    """Nor does what waits or runs count."""
    for number, status in enumerate(EACH):
        await bring_to(node, status, f"j{number}", queue=f"q{number}")
    keep_no_ended = Retention(done_age=0, failed_age=0, jobs=0, size=0)
    kept = await node.store.prune(LATER, KEEP_ALL)
    pruned = await node.store.prune(LATER, keep_no_ended)

    assert (kept, pruned) == (0, len(ENDED))
    assert {job.status for job in (await node.store.jobs(Filter(), 100, None)).jobs} == set(Status) - ENDED


@pytest.mark.parametrize("status", sorted(ENDED))
async def test_ended_jobs_are_pruned_by_age(node: Node, status: Status) -> None:
    """Done ones after done_age, all others after failed_age, counted from their end."""
    await bring_to(node, status)
    ages = {"done_age": 10.0} if status is Status.DONE else {"failed_age": 10.0}
    early = await node.store.prune(NOW + 9, retention(**ages))
    pruned = await node.store.prune(NOW + 11, retention(**ages))

    assert (early, pruned) == (0, 1)
    assert await node.store.get("a") is None


async def test_too_many_ended_jobs_are_pruned_the_oldest_end_first(node: Node) -> None:
    """Whatever they came to, and in whatever order they were added."""
    await add(node.store, new_job("waits"))
    held = await node.take()
    for job_id, at, outcome in (("b", 2, Outcome.FAIL), ("c", 3, Outcome.DONE), ("a", 1, Outcome.DONE)):
        await ended_at(node, job_id, NOW + at, outcome)
    await node.settle(held, None)
    pruned = await node.store.prune(LATER, retention(jobs=1))

    assert pruned == 2
    assert await listed(node.store) == ["c", "waits"]


async def test_ended_jobs_that_take_too_much_room_are_pruned(node: Node) -> None:
    """The oldest end first, until the rest fits."""
    for number, size in enumerate((50, 10, 30, 20)):
        await ended_at(node, f"j{number}", NOW + number, size=size)
    enough = await node.store.prune(LATER, retention(size=110))
    pruned = await node.store.prune(LATER, retention(size=55))

    assert (enough, pruned) == (0, 2)
    assert await listed(node.store) == ["j3", "j2"]


async def test_a_job_that_ended_without_a_settlement_weighs_its_payload(node: Node, other: Node) -> None:
    """Cancelled, expired, or failed with its node."""
    payload = b'"' + b"x" * 98 + b'"'
    await bring_to(node, Status.QUEUED, "cancelled", payload=payload)
    await node.store.cancel(["cancelled"], NOW)
    await bring_to(node, Status.EXPIRED, "expired", payload=payload, expires_at=NOW)
    await bring_to(node, Status.RUNNING, "died", payload=payload, options=Options(on_crash="fail"))
    await node.store.rescue("other", LATER)
    kept = await node.store.prune(LATER, retention(size=300))
    pruned = await node.store.prune(LATER, retention(size=299))

    assert (kept, pruned) == (0, 1)
    assert await listed(node.store) == ["died", "expired"]


async def test_one_prune_goes_by_age_and_by_number(node: Node) -> None:
    """When it deletes less than a step, nothing is left to delete."""
    await ended_at(node, "old", NOW, Outcome.FAIL)
    for number in range(3):
        await ended_at(node, f"j{number}", NOW + 10 + number)
    pruned = await node.store.prune(NOW + 20, retention(failed_age=15, jobs=2))

    assert pruned == 2
    assert await listed(node.store) == ["j2", "j1"]


@pytest.mark.long
@pytest.mark.parametrize("limits", [{"done_age": 5.0, "failed_age": 5.0}, {"jobs": 0}, {"size": 0}], ids=str)
async def test_a_prune_deletes_a_step_at_most(node: Node, limits: dict[str, Any]) -> None:
    """The oldest end first, over all statuses."""
    await add(node.store, *(new_job(f"j{number:04}") for number in range(STEP + 3)))
    claimed = await node.claim(STEP + 3)
    ends = [
        settlement(job, Outcome.FAIL if number % 2 else Outcome.DONE, NOW + number / 1000)
        for number, job in enumerate(claimed)
    ]
    await node.exchange(settlements=ends)
    pruned = await node.store.prune(LATER, retention(**limits))
    left = await listed(node.store)
    rest = await node.store.prune(LATER, retention(**limits))

    assert (pruned, rest) == (STEP, 3)
    assert left == [job.id for job in reversed(claimed[STEP:])]
    assert await listed(node.store) == []


async def test_a_retried_job_is_not_pruned(node: Node) -> None:
    """It has not ended any more, and weighs nothing."""
    await ended_at(node, "a", NOW, size=1000)
    await node.store.retry(["a"], NOW)
    pruned = await node.store.prune(LATER, Retention(done_age=0, failed_age=0, jobs=0, size=0))

    assert pruned == 0
    assert await listed(node.store) == ["a"]


# --- lists ------------------------------------------------------------------------------------------------------------


async def test_a_list_holds_the_newest_jobs_first_without_attempts(node: Node) -> None:
    """Otherwise as each is told alone."""
    await bring_to(node, Status.DONE, "a")
    await bring_to(node, Status.RUNNING, "b")
    await add(node.store, new_job("c"))
    page = await node.store.jobs(Filter(), 10, None)
    alone = [await get(node.store, job_id) for job_id in ("c", "b", "a")]

    assert list(page.jobs) == [msgspec.structs.replace(job, attempts=()) for job in alone]
    assert page.next_before is None


async def test_an_empty_store_lists_nothing(store: Store) -> None:
    """And there is no more."""
    page = await store.jobs(Filter(), 10, None)

    assert (list(page.jobs), page.next_before) == ([], None)


@pytest.mark.parametrize("status", list(Status))
async def test_a_list_goes_by_status(node: Node, status: Status) -> None:
    """Each has its own."""
    for one in EACH:
        await bring_to(node, one, one.value, queue=one.value)

    assert await listed(node.store, status=status) == [status]


async def test_a_list_goes_by_kind_queue_and_tag(store: Store) -> None:
    """Whole names only; together they all must match."""
    await add(
        store,
        new_job("a", kind="mail", queue="x", options=Options(tags=("red", "blue"))),
        new_job("b", kind="mail", queue="y", options=Options(tags=("blue", "blue"))),
        new_job("c", kind="mail.send", queue="x", options=Options(tags=("bluest",))),
    )

    assert await listed(store, kind="mail") == ["b", "a"]
    assert await listed(store, queue="x") == ["c", "a"]
    assert await listed(store, tag="blue") == ["b", "a"]
    assert await listed(store, tag="red") == ["a"]
    assert await listed(store, tag="blue", queue="x", status=Status.QUEUED) == ["a"]
    assert await listed(store, tag="blue", kind="mail.send") == []
    assert await listed(store, queue="absent") == []


async def test_a_list_goes_by_parts_of_id_payload_and_error(node: Node) -> None:
    """Upper and lower case differ, and no character is special."""
    await add(
        node.store, new_job("red-50%", payload='{"city":"Köln"}'.encode()), new_job("blue_1", payload=b"[17]")
    )
    for job in await node.claim(2):
        if job.id == "blue_1":
            await node.settle(job, Outcome.FAIL, error=JobError("KeyError", "No 'x' in Köln"))
    found = {
        text: await listed(node.store, text=text)
        for text in ("50%", "Köln", "17]", "No '", "no '", "_", "%", "KeyError")
    }

    assert found == {
        "50%": ["red-50%"],
        "Köln": ["blue_1", "red-50%"],
        "17]": ["blue_1"],
        "No '": ["blue_1"],
        "no '": [],
        "_": ["blue_1"],
        "%": ["red-50%"],
        "KeyError": [],
    }


async def test_a_list_goes_by_the_time_of_creation(store: Store) -> None:
    """From created_after on, until before created_before."""
    await add(store, *(new_job(f"j{number}", created_at=NOW + number) for number in range(5)))

    assert await listed(store, created_after=NOW + 3) == ["j4", "j3"]
    assert await listed(store, created_before=NOW + 1) == ["j0"]
    assert await listed(store, created_after=NOW + 1, created_before=NOW + 3) == ["j2", "j1"]


@pytest.mark.parametrize(
    "where", [{}, {"status": Status.FAILED}, {"tag": "t"}, {"queue": "default"}, {"text": "j"}], ids=str
)
async def test_pages_show_each_job_once_while_new_ones_come(node: Node, where: dict[str, Any]) -> None:
    """A list goes on where it ended, over deleted jobs too."""
    options = Options(tags=("t",))
    await add(node.store, *(new_job(f"j{number}", options=options) for number in range(10)))
    await node.exchange(settlements=[settlement(job, Outcome.FAIL) for job in await node.claim(10)])
    await node.store.delete(["j9", "j4", "j0"], NOW)
    seen: list[str] = []
    before: Place | None = None
    for number in itertools.count():
        page = await node.store.jobs(Filter(**where), 3, before)
        seen += [job.id for job in page.jobs]
        before = page.next_before
        if before is None:
            break
        await bring_to(node, Status.FAILED, f"new{number}", options=options)
        await node.store.delete([page.jobs[-1].id] if page.jobs else [], NOW)

    assert seen == ["j8", "j7", "j6", "j5", "j3", "j2", "j1"]


# --- queues -----------------------------------------------------------------------------------------------------------


async def test_queues_are_told_by_name_with_their_counts(node: Node) -> None:
    """A job that is held but has not begun counts as queued; what there is none of is left out."""
    for number, status in enumerate(EACH):
        await bring_to(node, status, f"j{number}", queue="all", priority=10)
    await add(node.store, new_job("x", queue="b"), new_job("y", queue="b"))
    await node.store.pause("a")
    await node.store.pause("b")
    await node.store.resume("b")
    await node.store.pause("all")
    await node.take()
    states = {queue.name: queue for queue in await node.store.queues()}

    assert list(states) == ["a", "all", "b"]
    assert [states[name].paused for name in states] == [True, True, False]
    assert states["a"].counts == {}
    assert states["all"].counts == dict.fromkeys(Status, 1)
    assert states["b"].counts == {Status.QUEUED: 2}


async def test_a_queue_tells_how_long_its_oldest_ready_job_waits(node: Node) -> None:
    """Over all priorities; those that are held or not due do not count."""
    times = {"high": (9, NOW - 5), "low": (-9, NOW - 20), "mid": (0, NOW - 10), "ahead": (0, NOW + 5)}
    for job_id, (priority, run_at) in times.items():
        await add(node.store, new_job(job_id, priority=priority, run_at=run_at))
    first = (await node.store.queues())[0].oldest_queued_at
    await node.store.cancel(["low"], NOW)
    second = (await node.store.queues())[0].oldest_queued_at
    await node.claim(2)

    assert (first, second) == (NOW - 20, NOW - 10)
    assert (await node.store.queues())[0].oldest_queued_at is None


async def test_a_queue_is_listed_until_a_prune_forgets_it(node: Node) -> None:
    """When it has no jobs and is not paused; ended jobs keep it, and a held one does."""
    await bring_to(node, Status.DONE, queue="x")
    await node.store.delete(["a"], NOW)
    await node.store.pause("paused")
    await node.store.pause("resumed")
    await node.store.resume("resumed")
    await bring_to(node, Status.DONE, "ended", queue="ended")
    await bring_to(node, Status.RUNNING, "running", queue="held")
    before = [queue.name for queue in await node.store.queues()]
    await node.store.prune(NOW, KEEP_ALL)

    assert before == ["ended", "held", "paused", "resumed", "x"]
    assert [queue.name for queue in await node.store.queues()] == ["ended", "held", "paused"]
    assert await node.store.queue("x") is None
    assert await node.store.queue("held") == QueueState(name="held", paused=False, counts={Status.RUNNING: 1})


@pytest.mark.long
async def test_a_prune_that_has_more_to_delete_forgets_no_queue_yet(node: Node) -> None:
    """The last one does: a full step is long enough."""
    jobs = [new_job(f"j{number}", queue="many", run_at=LATER, expires_at=LATER + 1) for number in range(STEP)]
    await add(node.store, *jobs, new_job("a", queue="x", run_at=LATER + 9))
    await look(node.store, LATER + 1)
    await node.store.delete(["a"], NOW)
    everything = Retention(done_age=0, failed_age=0, jobs=0, size=0)
    first = (await node.store.prune(LATER + 2, everything), len(await node.store.queues()))
    last = (await node.store.prune(LATER + 2, everything), len(await node.store.queues()))

    assert (first, last) == ((STEP, 2), (0, 0))


async def test_a_forgotten_queue_is_used_again(node: Node) -> None:
    """With counts from zero."""
    await bring_to(node, Status.DONE, queue="x")
    await node.store.delete(["a"], NOW)
    await node.store.prune(NOW, KEEP_ALL)
    await add(node.store, new_job("b", queue="x"))

    assert [job.id for job in await node.claim()] == ["b"]
    assert await node.store.queues() == [QueueState(name="x", paused=False, counts={Status.QUEUED: 1})]


async def test_queues_come_in_pages(store: Store) -> None:
    """By name, whether they have jobs or are only paused."""
    for name in ("d", "b", "f"):
        await add(store, new_job(name, queue=name), new_job(f"{name}2", queue=name, run_at=LATER))
    for name in ("a", "c", "b"):
        await store.pause(name)
    pages = [
        [queue.name for queue in await store.queues(limit, after)]
        for limit, after in ((2, ""), (3, "b"), (9, "e"))
    ]

    assert pages == [["a", "b"], ["c", "d", "f"], ["f"]]
    assert (await store.queues(1, "a"))[0].counts == {Status.QUEUED: 1, Status.SCHEDULED: 1}
    assert await store.queues(5, "f") == []


async def test_one_queue_is_as_in_the_list(node: Node) -> None:
    """With its counts, its pause, and how long its oldest job waits."""
    for number, status in enumerate(EACH):
        await bring_to(node, status, f"j{number}", queue="all")
        await bring_to(node, status, f"other{number}", queue="allez")
    await add(node.store, new_job("waits", queue="all", run_at=NOW - 9))
    await node.store.pause("all")

    assert await node.store.queue("all") == (await node.store.queues())[0]
    assert await node.store.queue("al") is None


@pytest.mark.parametrize("status", EACH)
async def test_a_queue_with_jobs_is_not_deleted(node: Node, status: Status) -> None:
    """Whatever their status."""
    await bring_to(node, status, queue="x")
    change = await node.store.delete_queue("x")

    assert (change.verdict, change.queue) == ("refused", await node.store.queue("x"))


async def test_an_empty_queue_is_deleted_with_its_pause(node: Node) -> None:
    """Once; after that there is none."""
    await bring_to(node, Status.DONE, queue="x")
    await node.store.delete(["a"], NOW)
    await node.store.pause("x")
    await node.store.pause("y")
    verdicts = [(await node.store.delete_queue("x")).verdict for _ in range(2)]
    await add(node.store, new_job("b", queue="x"))

    assert verdicts == ["changed", "absent"]
    assert [job.id for job in await node.claim()] == ["b"]
    assert [queue.name for queue in await node.store.queues()] == ["x", "y"]


async def test_an_overview_counts_over_all_queues(node: Node) -> None:
    """And tells whether a job is ready that may be claimed."""
    empty = await node.store.overview(KINDS)
    for number, status in enumerate(EACH):
        for queue in ("a", "b"):
            await bring_to(node, status, f"{queue}{number}", queue=queue)
    await node.claim(9)
    held = await node.store.overview(KINDS)
    await add(node.store, new_job("c", queue="c"))
    ready = await node.store.overview(KINDS)
    await node.store.pause("c")
    paused = await node.store.overview(KINDS)
    await node.store.delete(["c"], NOW)

    assert empty == Overview({}, ready=False)
    assert held == Overview(dict.fromkeys(Status, 2), ready=False)
    assert (ready.ready, ready.counts[Status.QUEUED]) == (True, 3)
    assert paused == Overview(ready.counts, ready=False)
    assert await node.store.overview(KINDS) == held


# --- lists by time and cursor -----------------------------------------------------------------------------------------


async def test_a_list_is_in_the_order_of_creation(node: Node) -> None:
    """Then of arrival, over all statuses; also where a clock was set back."""
    times = [5, 3, 5, 4]
    for number, at in enumerate(times):
        await bring_to(
            node, EACH[number], f"j{number}", created_at=NOW + at, queue="x", options=Options(tags=("t",))
        )
    newest = ["j2", "j0", "j3", "j1"]

    for where in ({}, {"queue": "x"}, {"kind": "echo"}, {"tag": "t"}):
        assert await listed(node.store, **where) == newest
        assert await listed(node.store, **where, created_after=NOW + 4, created_before=NOW + 5) == ["j3"]
        assert await listed(node.store, **where, created_before=NOW + 4) == ["j1"]
        assert await listed(node.store, **where, created_after=NOW + 4) == newest[:3]


@pytest.mark.parametrize("status", EACH)
@pytest.mark.parametrize(
    "also", [{}, {"queue": "x"}, {"kind": "k"}, {"tag": "t"}, {"queue": "x", "kind": "k"}]
)
@pytest.mark.parametrize("few", [300, -1])
@pytest.mark.slow
async def test_each_pair_of_filters_leads_through_its_pages(
    node: Node, monkeypatch: pytest.MonkeyPatch, status: Status, also: dict[str, str], few: int
) -> None:
    """No job comes twice, none is left out, and none of another status, queue, kind or tag; be they few or not."""
    monkeypatch.setattr("jobpipe.store.postgres.lists.FEW", few)
    monkeypatch.setattr("jobpipe.store.sqlite.reader.FEW", few)
    await add(node.store, new_job("z", queue="y", kind="l", run_at=LATER))
    for number in range(5):
        one = {"queue": "x", "kind": "k", "options": Options(tags=("t",)), "created_at": NOW + number // 2}
        await bring_to(node, status, f"j{number}", **one)
    for name, value in also.items():
        other = Options(tags=("u",)) if name == "tag" else value + "2"
        changed = {"options" if name == "tag" else name: other}
        await bring_to(node, status, f"not-{name}", **({"queue": "x", "kind": "k"} | changed))
    seen: list[str] = []
    before: Place | None = None
    while True:
        page = await node.store.jobs(msgspec.convert({"status": status, **also}, Filter), 2, before)
        seen += [job.id for job in page.jobs if job.id.startswith("j") or also]
        before = page.next_before
        if before is None:
            break

    assert seen == ["j4", "j3", "j2", "j1", "j0"]
