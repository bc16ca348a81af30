"""Requests for the same that are merged into one job, promise by promise, over every store."""

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from jobpipe.job import ENDED, Debounce, NewJob, Options, Outcome, Phase, Status, Throttle, Unique
from jobpipe.merging import key_of
from jobpipe.store.base import STEP, Change, Receipt, Retention, Store
from jobpipe.store.verbs.merging import SLACK
from tests.store.test_contract import (
    KEEP_ALL,
    NOW,
    Node,
    add,
    bring_to,
    edit,
    get,
    in_status,
    listed,
    look,
    new_job,
)

pytestmark = pytest.mark.long

WHOLE: tuple[Phase, ...] = ("queued", "running")
FIRST: tuple[Phase, ...] = ("queued",)
KEEP_NONE = Retention(done_age=0, failed_age=0, jobs=0, size=0)


@pytest.fixture
async def node(store: Store) -> Node:
    one = Node(store)
    await one.join(lease_until=NOW + 1e6)
    return one


def unique(job_id: str = "a", at: float = NOW, *, key: str | None = "k", **changes: Any) -> NewJob:
    """A job with a unique key; `changes` are fields of `Unique` and of the job."""
    asked = Unique(key, ("kind",), WHOLE, None, "return")
    mine = {name: changes.pop(name) for name in Unique.__struct_fields__ if name in changes}
    return _made(job_id, at, changes, unique=replace(asked, **mine))


def throttled(job_id: str, at: float, *, key: str = "k", trailing: bool = False, **changes: Any) -> NewJob:
    return _made(job_id, at, changes, throttle=Throttle(key, 10.0, trailing))


def debounced(
    job_id: str, at: float, *, key: str = "k", wait: float = 5.0, max_wait: float = 12.0, **changes: Any
) -> NewJob:
    return _made(job_id, at, {"run_at": at + wait} | changes, debounce=Debounce(key, wait, max_wait))


def _made(job_id: str, at: float, changes: dict[str, Any], **merging: Any) -> NewJob:
    options = replace(changes.pop("options", Options()), **merging)
    payload = b'"%s"' % job_id.encode()
    times = {"created_at": at, "run_at": at}
    return new_job(job_id, options=options, **({"payload": payload} | times | changes))


async def ask(store: Store, *jobs: NewJob, atomic: bool = True) -> Sequence[Receipt]:
    return await store.add_dependents(jobs, atomic=atomic)


async def verdicts(store: Store, *jobs: NewJob, atomic: bool = True) -> list[str]:
    return [one.verdict for one in await ask(store, *jobs, atomic=atomic)]


async def verdict(store: Store, job: NewJob) -> str:
    (one,) = await verdicts(store, job)
    return one


async def payload(store: Store, job_id: str) -> bytes:
    return (await get(store, job_id)).asked.payload


async def keys(store: Store) -> int:
    """How many keys have a row."""

    async def count(tx: Any) -> int:
        ((rows,),) = await tx.rows("select count(*) from uniques", {})
        number: int = rows
        return number

    return await store._look(count)  # type: ignore[attr-defined, no-any-return]  # each store has it


# --- unique -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", list(Status))
async def test_a_job_has_its_key_until_it_has_ended(node: Node, status: Status) -> None:
    """Whatever its status until then; that answers for every other that wants it."""
    options = unique().options
    await bring_to(node, status, options=options) if status is Status.BLOCKED else await _brought(
        node, status
    )
    before = await get(node.store)
    receipts = await ask(node.store, unique("b"), unique("c", on_conflict="reject"))

    if status in ENDED:
        assert [one.verdict for one in receipts] == ["stored", "not_unique"]
        assert receipts[1].other == "b"
    else:
        assert list(receipts) == [
            Receipt("existing", before, other="a"),
            Receipt("not_unique", before, other="a"),
        ]
        assert await get(node.store) == before
        assert "b" not in await listed(node.store)


async def _brought(node: Node, status: Status) -> None:
    """Bring a unique job to a status."""
    times: dict[Status, dict[str, Any]] = {
        Status.SCHEDULED: {"run_at": NOW + 5},
        Status.EXPIRED: {"expires_at": NOW + 1},
    }
    await ask(node.store, unique(**times.get(status, {})))
    if status is Status.EXPIRED:
        await look(node.store, NOW + 1)
    if status in {Status.SCHEDULED, Status.QUEUED, Status.EXPIRED}:
        return
    job = await node.take()
    await node.start(job)
    match status:
        case Status.CANCELLING:
            await node.store.cancel(["a"], NOW)
        case Status.DONE:
            await node.settle(job, Outcome.DONE)
        case Status.FAILED:
            await node.settle(job, Outcome.FAIL)
        case Status.CANCELLED:
            await node.settle(job, Outcome.CANCELLED)
        case Status.RETRYING:
            await node.settle(job, Outcome.RETRY)
    assert (await get(node.store)).status is status


@pytest.mark.parametrize("outcome", [Outcome.RETRY, Outcome.SNOOZE, Outcome.INTERRUPTED, None])
async def test_with_the_first_phase_alone_it_has_its_key_until_it_is_claimed(
    node: Node, outcome: Outcome | None
) -> None:
    """And does not take it again when it waits once more."""
    first = await verdicts(node.store, unique(while_=FIRST), unique("b", while_=FIRST))
    job = await node.take()
    second = await verdicts(node.store, unique("b", while_=FIRST), unique("c", while_=FIRST))
    await node.settle(job, outcome)
    await node.store.delete(["b"], NOW)
    third = await verdict(node.store, unique("d", while_=FIRST))

    assert (first, second, third) == (["stored", "existing"], ["stored", "existing"], "stored")


async def test_who_wants_no_running_one_beside_it_is_told_of_it(node: Node) -> None:
    """Also when that one asked for less."""
    await ask(node.store, unique(while_=FIRST))
    await node.take()

    assert await verdict(node.store, unique("b")) == "existing"


async def test_what_counts_for_a_key(node: Node) -> None:
    """The queue always, the kind unless it is left out, the payload if it is asked for, as a value."""
    await ask(node.store, unique(payload=b'{"x":1,"y":[2]}'))
    others = [
        unique("b", queue="other"),
        unique("c", kind="demo"),
        unique("d", key="l"),
        unique("e", key=None),
        unique("f", key="p", over=("kind", "payload"), payload=b'{"x":1,"y":[2]}'),
        unique("g", key="p", over=("kind", "payload"), payload=b'{"x":2,"y":[2]}'),
        unique("h", key="q", over=()),
    ]
    same = [
        unique("i", payload=b"9"),
        unique("j", key="p", over=("kind", "payload"), payload=b'{ "y": [2.0], "x":1e0 }'),
        unique("k", key="q", over=(), kind="demo"),
    ]

    assert await verdicts(node.store, *others) == ["stored"] * len(others)
    assert [one.other for one in await ask(node.store, *same)] == ["a", "f", "h"]


async def test_a_key_may_be_taken_for_a_while_after_the_end(node: Node) -> None:
    """Counted from when the job was stored, also when it is gone: its id is told then."""
    await ask(node.store, unique(for_=100.0))
    await node.settle(await node.take(), Outcome.DONE, NOW + 1)
    done = await get(node.store)
    soon = await ask(node.store, unique("b", NOW + 99), unique("c", NOW + 99, on_conflict="replace"))
    await node.store.delete(["a"], NOW + 99)
    gone = await ask(node.store, unique("d", NOW + 99.9))
    later = await ask(node.store, unique("e", NOW + 100))

    assert list(soon) == [Receipt("existing", done, other="a"), Receipt("not_unique", done, other="a")]
    assert list(gone) == [Receipt("not_unique", other="a")]
    assert list(later) == [Receipt("stored")]


async def test_a_clock_that_was_set_back_keeps_no_key_for_longer_than_asked(node: Node) -> None:
    await ask(node.store, unique(at=NOW + 1e6, for_=100.0))
    await node.store.delete(["a"], NOW)

    assert await verdict(node.store, unique("b", NOW)) == "not_unique"
    assert await verdict(node.store, unique("b", NOW + 1e6 + 100)) == "stored"


async def test_a_request_may_replace_a_job_that_waits(node: Node) -> None:
    """That one becomes what the request asks for, and stays itself; a request that is sent again finds what it sent."""
    await ask(node.store, unique(priority=3, options=Options(tags=("old",))))
    new = unique(
        "b",
        NOW + 1,
        on_conflict="replace",
        priority=7,
        max_retries=1,
        run_at=NOW + 50,
        options=Options(tags=("new",), timeout=5.0),
    )
    (receipt,) = await ask(node.store, new)
    job = await get(node.store)
    again = await ask(node.store, unique(priority=3, options=Options(tags=("old",))))

    assert receipt == Receipt("replaced", job, other="a")
    assert job.asked == replace(new, id="a", created_at=NOW)
    assert (job.status, job.original) == (
        Status.SCHEDULED,
        unique(priority=3, options=Options(tags=("old",))),
    )
    assert list(again) == [Receipt("existing", job)]
    assert await listed(node.store) == ["a"]
    assert await listed(node.store, tag="new") == ["a"]
    assert await node.claim(9, NOW + 49) == []
    (claimed,) = await node.claim(9, NOW + 50)
    assert (claimed.payload, claimed.priority, claimed.max_retries) == (b'"b"', 7, 1)


async def test_a_job_that_a_worker_has_is_not_replaced(node: Node) -> None:
    await ask(node.store, unique(on_conflict="replace"))
    job = await node.take()
    held = await verdict(node.store, unique("b", on_conflict="replace"))
    await node.start(job)
    running = await verdict(node.store, unique("b", on_conflict="replace"))
    await node.settle(job, Outcome.RETRY)
    (retrying,) = await ask(node.store, unique("b", NOW + 1, on_conflict="replace"))

    assert (held, running, retrying.verdict) == ("not_unique", "not_unique", "replaced")
    assert retrying.job is not None
    assert (retrying.job.status, retrying.job.asked.run_at) == (Status.RETRYING, NOW + 10)


async def test_the_same_id_is_the_same_job_whatever_has_its_key(node: Node) -> None:
    """Whichever way it would be merged; other content is a conflict as ever."""
    await ask(node.store, unique(on_conflict="reject"), unique("z", key="other", on_conflict="reject"))
    await node.store.cancel(["a"], NOW)
    await ask(node.store, unique("b", on_conflict="reject"))
    before = await get(node.store)
    receipts = await ask(
        node.store,
        unique(at=NOW + 5, on_conflict="reject"),
        unique(on_conflict="return"),
        new_job("b"),
        atomic=False,
    )
    plain = await add(node.store, unique(on_conflict="reject"))

    assert list(receipts) == [
        Receipt("existing", before),
        Receipt("conflict", before),
        Receipt("conflict", await get(node.store, "b")),
    ]
    assert plain == [Receipt("existing", before)]


async def test_the_jobs_of_one_add_are_merged_with_one_another(node: Node) -> None:
    """In their order."""
    receipts = await ask(
        node.store,
        unique("a"),
        unique("b"),
        new_job("p"),
        unique("c", on_conflict="reject"),
        unique("d", on_conflict="replace"),
        unique("e", on_conflict="replace"),
    )
    job = await get(node.store)

    assert [one.verdict for one in receipts] == [
        "stored",
        "existing",
        "stored",
        "not_unique",
        "replaced",
        "replaced",
    ]
    assert [one.job for one in receipts] == [None, job, None, job, job, job]
    assert job.asked.payload == b'"e"'
    assert sorted(await listed(node.store)) == ["a", "p"]
    assert (await look(node.store)).waiting == 2


async def test_an_add_that_is_refused_changes_no_key(node: Node) -> None:
    """Nor the job that it would have replaced."""
    await ask(node.store, unique("a"))
    await add(node.store, new_job("taken"))
    receipts = await ask(
        node.store,
        unique("b", on_conflict="replace"),
        unique("c", key="l"),
        unique("d", key="l"),
        new_job("taken", payload=b"9"),
    )

    assert [one.verdict for one in receipts] == ["refused", "refused", "refused", "conflict"]
    assert (await payload(node.store, "a"), await keys(node.store)) == (b'"a"', 1)
    assert await verdict(node.store, unique("e", key="l")) == "stored"


async def test_a_job_may_be_unique_and_wait_for_others(node: Node) -> None:
    """One that cannot wait takes no key."""
    await add(node.store, new_job("x"))
    unknown = await verdicts(node.store, unique("a", options=Options(depends_on=("no",))), atomic=False)
    rows = await keys(node.store)
    receipts = await ask(node.store, unique("a", options=Options(depends_on=("x",))), unique("b"))
    await node.settle(await node.take(), Outcome.DONE)

    assert (unknown, rows) == (["unknown_dependency"], 0)
    assert [one.verdict for one in receipts] == ["stored", "existing"]
    assert [one.job and one.job.status for one in receipts] == [Status.BLOCKED] * 2
    assert (await get(node.store)).status is Status.QUEUED
    assert await verdict(node.store, unique("b")) == "existing"


async def test_a_blocked_job_may_be_replaced(node: Node) -> None:
    """It goes on waiting for what it waited for."""
    await add(node.store, new_job("x"))
    await ask(
        node.store,
        unique("a", options=Options(depends_on=("x",))),
        unique("b", on_conflict="replace"),
    )
    first = await get(node.store)
    await ask(node.store, unique("c", on_conflict="replace"))
    job = await get(node.store)

    assert (first.status, first.asked.payload) == (Status.BLOCKED, b'"b"')
    assert (job.status, job.asked.payload, job.asked.options.depends_on) == (Status.BLOCKED, b'"c"', ("x",))


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [WHOLE, FIRST])
async def test_a_retry_by_hand_takes_the_key_again(node: Node, phase: Any) -> None:
    """Until it is claimed or has ended, as at first."""
    await ask(node.store, unique(while_=phase))
    await node.settle(await node.take(), Outcome.FAIL)
    (change,) = await node.store.retry(["a"], NOW)
    waits = await verdict(node.store, unique("b", while_=phase))
    job = await node.take()
    claimed = await verdict(node.store, unique("c", while_=phase))
    await node.settle(job, Outcome.DONE)

    assert change.verdict == "changed"
    assert (waits, claimed) == ("existing", "existing" if phase == WHOLE else "stored")
    assert await verdict(node.store, unique("d", while_=phase)) == (
        "stored" if phase == WHOLE else "existing"
    )


async def test_a_retry_by_hand_is_refused_while_another_job_has_the_key(node: Node) -> None:
    await ask(node.store, unique())
    await node.store.cancel(["a"], NOW)
    before = await get(node.store)
    await ask(node.store, unique("b"))
    waiting = await get(node.store, "b")
    refused = await node.store.retry(["a", "b"], NOW)
    await node.store.cancel(["b"], NOW)
    (retried,) = await node.store.retry(["a"], NOW)
    (other,) = await node.store.retry(["b"], NOW)

    assert list(refused) == [
        Change("a", "not_unique", before, other="b"),
        Change("b", "refused", waiting),
    ]
    assert (retried.verdict, other.verdict, other.other) == ("changed", "not_unique", "a")
    assert await in_status(node.store, Status.QUEUED) == ["a"]


async def test_of_two_that_are_retried_at_once_the_first_gets_the_key(node: Node) -> None:
    await ask(node.store, unique())
    await node.store.cancel(["a"], NOW)
    await ask(node.store, unique("b"))
    await node.store.cancel(["b"], NOW)
    changes = await node.store.retry(["a", "b"], NOW)

    assert [(one.verdict, one.other) for one in changes] == [("changed", None), ("not_unique", "a")]


async def test_a_retry_that_is_refused_for_another_reason_takes_no_key(node: Node) -> None:
    await add(node.store, new_job("x"))
    await ask(node.store, unique(options=Options(depends_on=("x",))))
    await node.store.cancel(["x"], NOW)
    (change,) = await node.store.retry(["a"], NOW)

    assert change.verdict == "refused"
    assert await verdict(node.store, unique("b")) == "stored"


async def test_the_key_of_a_job_that_was_pruned_with_its_row_is_taken_anew(node: Node) -> None:
    """A retry finds no row, as after a crash that nobody thought of."""
    await ask(node.store, unique())
    await node.store.cancel(["a"], NOW)
    await _forget_all(node.store)
    await node.store.retry(["a"], NOW)

    assert await verdict(node.store, unique("b")) == "existing"


async def _forget_all(store: Store) -> None:
    async def delete(tx: Any) -> None:
        tx.run("delete from uniques", {})

    await store._transact(delete)  # type: ignore[attr-defined]


async def test_an_edit_changes_no_key(node: Node) -> None:
    """It is that of what was asked first, also for a retry."""
    asked = unique(key=None, over=("kind", "payload"), payload=b"1")
    await ask(node.store, asked)
    await edit(node.store, payload=b"2")
    first = await verdicts(
        node.store, replace(asked, id="b", payload=b"1"), replace(asked, id="c", payload=b"2")
    )
    await node.store.cancel(["a", "c"], NOW)
    await node.store.retry(["a"], NOW)
    second = await verdicts(
        node.store, replace(asked, id="d", payload=b"1"), replace(asked, id="e", payload=b"2")
    )

    assert (first, second) == (["existing", "stored"], ["existing", "stored"])


async def test_a_deleted_job_has_no_key(node: Node) -> None:
    """Nor a row that says so."""
    await ask(node.store, unique(), unique("b", key="l"))
    await node.store.delete(["a"], NOW)

    assert await keys(node.store) == 1
    assert await verdict(node.store, unique("c")) == "stored"


async def test_a_job_that_is_rescued_has_its_key_still(node: Node) -> None:
    await ask(node.store, unique())
    await node.start(await node.take())
    await node.store.leave(node.name)
    await node.store.rescue("other", NOW)

    assert (await get(node.store)).status is Status.QUEUED
    assert await verdict(node.store, unique("b")) == "existing"


async def test_another_job_of_that_id_has_not_the_key(node: Node) -> None:
    """The row says which job it was by its number."""
    await ask(node.store, unique(for_=50.0))
    await node.store.delete(["a"], NOW)
    await add(node.store, new_job("a"))
    lasting = await ask(node.store, unique("b", on_conflict="replace"))
    later = await verdict(node.store, unique("b", NOW + 50, on_conflict="replace"))

    assert [one.verdict for one in lasting] == ["not_unique"]
    assert later == "stored"
    assert await payload(node.store, "a") == b'{"n":1}'


# --- rows that go -----------------------------------------------------------------------------------------------------


async def test_keys_go_with_their_jobs_and_when_their_time_is_over(node: Node) -> None:
    """A prune deletes them with the jobs, unless they are taken for longer; then a later one does."""
    await ask(node.store, unique("a"), unique("b", key="l", for_=100.0), unique("c", key="m"))
    for job in await node.claim(2):
        await node.settle(job, Outcome.DONE)
    pruned = await node.store.prune(NOW + 1, KEEP_NONE)
    first = await keys(node.store)
    taken = await verdict(node.store, unique("d", NOW + 99, key="l"))
    await node.store.prune(NOW + 100 + SLACK, KEEP_ALL)

    assert (pruned, first, taken) == (2, 2, "not_unique")
    assert await keys(node.store) == 1
    assert await verdict(node.store, unique("e", key="m")) == "existing"


async def test_a_key_whose_time_is_over_before_its_job_is_gone_goes_with_the_job(node: Node) -> None:
    await ask(node.store, unique("a", for_=100.0))
    await node.store.prune(NOW + 100 + SLACK, KEEP_ALL)
    alive = await verdict(node.store, unique("b", NOW + 200))
    await node.store.delete(["a"], NOW + 200)

    assert (alive, await keys(node.store)) == ("existing", 0)


async def test_keys_of_jobs_that_nobody_has_seen_go_are_swept(node: Node) -> None:
    """Some thousands at a time, once every job is younger."""

    async def lose(tx: Any) -> None:
        tx.run("insert into uniques (key, seq, id, since) values ('lost', 1, 'a', 0)", {})

    await ask(node.store, unique("a"))
    await node.store.delete(["a"], NOW)
    await node.store._transact(lose)  # type: ignore[attr-defined]
    await ask(node.store, unique("b", key="l"))
    before = await keys(node.store)
    await node.store.prune(NOW, KEEP_ALL)

    assert (before, await keys(node.store)) == (2, 1)


@pytest.mark.long
async def test_many_unique_jobs_are_stored_and_pruned_at_once(node: Node) -> None:
    jobs = [unique(f"a{number}", key=str(number)) for number in range(STEP)]
    stored = await verdicts(node.store, *jobs)
    again = await verdicts(node.store, *(unique(f"b{number}", key=str(number)) for number in range(STEP)))
    await node.store.cancel([job.id for job in jobs], NOW)
    await node.store.prune(NOW + 1, KEEP_NONE)

    assert (stored, again) == (["stored"] * STEP, ["existing"] * STEP)
    assert await keys(node.store) == 0


# --- throttle ---------------------------------------------------------------------------------------------------------


async def test_of_a_window_the_first_runs_at_once_and_no_other(node: Node) -> None:
    """Whatever has become of it; the next window begins with the next one that is asked for."""
    first = await verdicts(node.store, throttled("a", NOW), throttled("b", NOW + 1))
    await node.settle(await node.take(), Outcome.DONE)
    second = await ask(node.store, throttled("c", NOW + 9.9))
    third = await verdicts(node.store, throttled("d", NOW + 13), throttled("e", NOW + 22.9))
    await node.store.delete(["d"], NOW + 14)
    gone = await ask(node.store, throttled("f", NOW + 22.9))
    fourth = await verdict(node.store, throttled("g", NOW + 23))

    assert (first, third, fourth) == (["stored", "existing"], ["stored", "existing"], "stored")
    assert list(second) == [Receipt("existing", await get(node.store), other="a")]
    assert list(gone) == [Receipt("not_unique", other="d")]


async def test_with_trailing_the_last_of_a_window_runs_at_its_end(node: Node) -> None:
    """And so in the windows after it, at most one in each."""

    async def told(job_id: str, at: float) -> tuple[str, str | None, float]:
        (one,) = await ask(node.store, throttled(job_id, NOW + at, trailing=True))
        job = one.job or await get(node.store, job_id)
        return one.verdict, one.other, job.asked.run_at - NOW

    first = [await told("a", 0), await told("b", 1), await told("c", 9)]
    ran = [job.payload for job in await node.claim(9, NOW + 9)]
    second = await told("d", 9.5)
    ran += [job.payload for job in await node.claim(9, NOW + 10)]
    third = [await told("e", 11), await told("f", 19.9)]
    ran += [job.payload for job in await node.claim(9, NOW + 20)]
    later = await told("g", 31)

    assert first == [("stored", None, 0), ("stored", None, 10), ("replaced", "b", 10)]
    assert second == ("replaced", "b", 10)
    assert third == [("stored", None, 20), ("replaced", "e", 20)]
    assert later == ("stored", None, 31)
    assert ran == [b'"a"', b'"d"', b'"f"']


async def test_a_trailing_job_that_is_late_still_takes_what_is_said(node: Node) -> None:
    """While no worker has come to it: so there is no second one beside it."""
    await ask(node.store, throttled("a", NOW, trailing=True), throttled("b", NOW + 1, trailing=True))
    late = await ask(node.store, throttled("c", NOW + 50, trailing=True))

    assert (late[0].verdict, late[0].other) == ("replaced", "b")
    assert [job.payload for job in await node.claim(9, NOW + 50)] == [b'"a"', b'"c"']


async def test_a_throttled_job_that_would_expire_before_its_window_is_late(node: Node) -> None:
    await ask(node.store, throttled("a", NOW, trailing=True))
    late = await verdicts(
        node.store, throttled("b", NOW + 1, trailing=True, expires_at=NOW + 10), atomic=False
    )

    assert late == ["late"]
    assert await listed(node.store) == ["a"]


async def test_keys_of_a_throttle_are_of_a_queue_and_a_kind(node: Node) -> None:
    jobs = [
        throttled("a", NOW),
        throttled("b", NOW, queue="other"),
        throttled("c", NOW, kind="demo"),
        throttled("d", NOW, key="l"),
        unique("e"),
        debounced("f", NOW),
    ]

    assert await verdicts(node.store, *jobs) == ["stored"] * 6
    assert len({key_of(job) for job in jobs}) == 6


# --- debounce ---------------------------------------------------------------------------------------------------------


async def test_the_last_of_a_burst_runs_after_a_quiet_period(node: Node) -> None:
    """But at the latest so long after the first; each is answered by the job that waits."""
    (first,) = await ask(node.store, debounced("a", NOW))
    due = [(await get(node.store)).asked.run_at]
    receipts = list[Receipt]()
    for number, at in enumerate((3, 7, 9, 11)):
        receipts += await ask(node.store, debounced(f"b{number}", NOW + at))
        due.append((await get(node.store)).asked.run_at)
    early = await node.claim(9, NOW + 11.9)
    (job,) = await node.claim(9, NOW + 12)

    assert first.verdict == "stored"
    assert [(one.verdict, one.other) for one in receipts] == [("replaced", "a")] * 4
    assert [at - NOW for at in due] == [5, 8, 12, 12, 12]
    assert (early, job.payload, await listed(node.store)) == ([], b'"b3"', ["a"])


async def test_while_one_runs_the_next_lines_up(node: Node) -> None:
    """Nothing that was said is lost: also when that one was claimed and has not begun, or waits for a retry."""
    await ask(node.store, debounced("a", NOW))
    job = await node.take(NOW + 5)
    held = await verdicts(node.store, debounced("b", NOW + 5.1), debounced("c", NOW + 5.2))
    await node.settle(job, Outcome.RETRY, NOW + 6)
    waits = await verdict(node.store, debounced("d", NOW + 6))

    assert (held, waits) == (["stored", "replaced"], "replaced")
    assert await payload(node.store, "a") == b'"a"'
    assert (await get(node.store, "b")).asked.run_at == NOW + 11
    assert await payload(node.store, "b") == b'"d"'


async def test_a_debounced_job_that_is_late_waits_no_longer_than_it_should(node: Node) -> None:
    """It takes what is said while no worker has come to it, and keeps its place."""
    await ask(node.store, debounced("a", NOW))
    await look(node.store, NOW + 5)
    (receipt,) = await ask(node.store, debounced("b", NOW + 100))

    assert receipt.job is not None
    assert (receipt.job.status, receipt.job.asked.run_at) == (Status.QUEUED, NOW + 12)
    assert [job.payload for job in await node.claim(9, NOW + 100)] == [b'"b"']


@pytest.mark.parametrize("end", ["cancel", "delete"])
async def test_a_debounced_job_that_is_no_more_is_not_replaced(node: Node, end: str) -> None:
    await ask(node.store, debounced("a", NOW))
    await getattr(node.store, end)(["a"], NOW)

    assert await verdict(node.store, debounced("b", NOW + 1)) == "stored"


async def test_a_retry_by_hand_of_a_debounced_job_runs_at_once(node: Node) -> None:
    """Beside the one that waits."""
    await ask(node.store, debounced("a", NOW))
    await node.settle(await node.take(NOW + 5), Outcome.FAIL, NOW + 5)
    await ask(node.store, debounced("b", NOW + 6))
    (change,) = await node.store.retry(["a"], NOW + 6)

    assert change.verdict == "changed"
    assert [job.id for job in await node.claim(9, NOW + 6)] == ["a"]
    assert await verdict(node.store, debounced("c", NOW + 7)) == "replaced"


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("since", [0.0, 1e300])
async def test_a_damaged_row_of_a_key_keeps_nobody_from_being_stored(node: Node, since: float) -> None:
    """Whatever stands in it, each job is stored or told of another; none is lost."""

    async def damage(tx: Any) -> None:
        values = f"seq = -7, id = '', claim = -1, since = {since}, until = 1e300"
        tx.run(f"update uniques set {values}", {})

    await ask(node.store, unique(), throttled("t", NOW), debounced("d", NOW))
    await node.store._transact(damage)  # type: ignore[attr-defined]
    receipts = await ask(node.store, unique("b"), throttled("u", NOW), debounced("e", NOW))
    await node.store.prune(NOW, KEEP_ALL)

    assert [one.verdict for one in receipts] == ["stored", "stored", "stored"]


async def test_plain_jobs_have_no_key(node: Node) -> None:
    """And leave nothing behind."""
    await add(node.store, new_job("a"))
    await ask(node.store, new_job("b"), new_job("c"))
    await node.store.cancel(["a"], NOW)
    await node.store.retry(["a"], NOW)

    assert await keys(node.store) == 0
