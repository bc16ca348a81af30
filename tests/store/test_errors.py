"""Failed jobs in groups, by the fingerprints of their errors, over every store."""

from collections.abc import Sequence
from typing import Any

import pytest

from jobpipe.fingerprints import of_kind
from jobpipe.job import JobError, Options, Outcome, Status
from jobpipe.store.base import (
    COUNTED,
    NAMED,
    ErrorGroup,
    ErrorPlace,
    Filter,
    NewOperation,
    Retention,
    Store,
    Window,
)
from jobpipe.store.verbs import errors
from jobpipe.store.verbs.transaction import Transaction
from jobpipe.transitions import DIED_LAST, PAST_DEADLINE
from tests.store.test_contract import NOW, Node, add, bring_to, get, new_job
from tests.store.test_operations import do_all

pytestmark = pytest.mark.long


def error(fingerprint: str, message: str = "no such file") -> JobError:
    return JobError("ValueError", message, "Traceback ...", "shop.mail.send", fingerprint)


async def fail(node: Node, job_id: str, fingerprint: str | None, at: float = NOW, **changes: Any) -> None:
    """A job that fails at a time; with None, as one of no group."""
    await add(node.store, new_job(job_id, **changes))
    job = await node.take()
    told = (
        JobError("ValueError", "no such file") if fingerprint is None else error(fingerprint, f"of {job_id}")
    )
    await node.settle(job, Outcome.FAIL, at=at, error=told)


async def groups(store: Store, **wanted: Any) -> list[tuple[str, int]]:
    found = await store.error_groups(**wanted)
    assert found.complete
    return [(one.fingerprint, one.jobs) for one in found.groups]


@pytest.fixture
async def node(store: Store) -> Node:
    """A node with a lease that outlives all of this."""
    one = Node(store)
    await one.join(lease_until=NOW + 1e6)
    return one


async def test_failed_jobs_are_in_groups_by_their_fingerprints(node: Node) -> None:
    """What each one says, that whose last job failed last first."""
    await fail(node, "a", "1-x", NOW, queue="mail")
    await fail(node, "b", "1-y", NOW + 1)
    await fail(node, "c", "1-x", NOW + 2, kind="demo")
    await fail(node, "d", None, NOW + 3)
    await bring_to(node, Status.DONE, "e")
    found = await node.store.error_groups()

    assert found.groups == [
        ErrorGroup(
            fingerprint="1-x",
            jobs=2,
            exact=True,
            first_at=NOW,
            last_at=NOW + 2,
            kinds=["demo", "echo"],
            queues=["default", "mail"],
            newest=error("1-x", "of c"),
            examples=["c", "a"],
        ),
        ErrorGroup(
            fingerprint="1-y",
            jobs=1,
            exact=True,
            first_at=NOW + 1,
            last_at=NOW + 1,
            kinds=["echo"],
            queues=["default"],
            newest=error("1-y", "of b"),
            examples=["b"],
        ),
    ]
    assert (found.next_before, found.complete) == (None, True)
    assert await node.store.error_group("1-x") == found.groups[0]
    assert (await get(node.store, "c")).state.error == error("1-x", "of c")


async def test_a_store_without_failures_has_no_groups(store: Store) -> None:
    found = await store.error_groups()

    assert (found.groups, found.next_before, found.complete) == ([], None, True)
    for absent in ("1-x", "", "\0", "'"):
        assert await store.error_group(absent) is None


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_groups_are_listed_in_pages(node: Node, limit: int) -> None:
    """Also those whose last jobs failed at one time."""
    for number in range(5):
        await fail(node, f"j{number}", f"1-{number}", NOW + number // 2)
    pages, before = list[str](), None
    while True:
        page = await node.store.error_groups(limit, before)
        assert len(page.groups) <= limit
        pages += [one.fingerprint for one in page.groups]
        if (before := page.next_before) is None:
            break

    assert pages == ["1-4", "1-3", "1-2", "1-1", "1-0"]
    for place in (ErrorPlace(NOW - 1, "1-0"), ErrorPlace(NOW, "\0")):
        assert (await node.store.error_groups(5, place)).groups == []


async def test_groups_of_a_time_have_the_jobs_that_failed_within_it(node: Node) -> None:
    """From its beginning on until just before its end."""
    for number in range(4):
        await fail(node, f"x{number}", "1-x", NOW + number)
    await fail(node, "y", "1-y", NOW + 3)
    window = Window(NOW + 1, NOW + 3)
    (found,) = (await node.store.error_groups(window=window)).groups

    assert (found.fingerprint, found.jobs, found.first_at, found.last_at) == ("1-x", 2, NOW + 1, NOW + 2)
    assert found.examples == ["x2", "x1"]
    assert await node.store.error_group("1-x", window) == found
    assert await node.store.error_group("1-y", window) is None
    assert await groups(node.store, window=Window(after=NOW + 3)) == [("1-y", 1), ("1-x", 1)]
    assert await groups(node.store, window=Window(before=NOW + 1)) == [("1-x", 1)]


async def test_a_group_shrinks_and_goes(node: Node) -> None:
    """With a retry by hand, a delete and a prune."""
    for number, job_id in enumerate("abcd"):
        await fail(node, job_id, "1-x", NOW + number)
    await node.store.retry(["a"], NOW + 9)
    retried = await groups(node.store)
    await node.store.delete(["b"], NOW + 9)
    deleted = await groups(node.store)
    await node.store.prune(NOW + 9, Retention(done_age=1e9, failed_age=7, jobs=10**9, size=10**12))
    pruned = await groups(node.store)
    await node.store.delete(["d"], NOW + 9)

    assert (retried, deleted, pruned) == ([("1-x", 3)], [("1-x", 2)], [("1-x", 1)])
    assert await groups(node.store) == []
    assert await node.store.error_group("1-x") is None


async def test_a_job_that_fails_again_is_in_the_group_of_its_last_error(node: Node) -> None:
    await fail(node, "a", "1-x")
    await node.store.retry(["a"], NOW)
    await node.settle(await node.take(), Outcome.FAIL, at=NOW + 1, error=error("1-y"))
    again = await groups(node.store)
    await node.store.retry(["a"], NOW)
    await node.settle(await node.take(), Outcome.DONE)

    assert again == [("1-y", 1)]
    assert await groups(node.store) == []


async def test_only_jobs_that_have_failed_are_in_groups(node: Node) -> None:
    """Not those that wait for a retry, nor those that were cancelled while their cleanup failed."""
    for job_id, outcome in (("a", Outcome.RETRY), ("b", Outcome.CANCELLED)):
        await add(node.store, new_job(job_id))
        job = await node.take()
        await node.settle(job, outcome, error=error("1-x"))
    found = await node.store.jobs(Filter(fingerprint="1-x"), 9, None)

    assert await groups(node.store) == []
    assert not found.jobs
    assert (await get(node.store, "a")).attempts[-1].error == error("1-x")


async def test_failures_that_no_handler_raised_are_grouped_by_kind(node: Node, store: Store) -> None:
    """A job that was rescued too often, and one that still waits at its deadline."""
    await add(store, new_job("late", run_at=NOW + 9, expires_at=NOW + 5, options=Options(deadline=NOW + 5)))
    dying = Node(store, "dying")
    await dying.join(lease_until=NOW + 1)
    await add(store, new_job("a", max_retries=0, kind="demo"))
    await dying.start(await dying.take())
    await store.rescue(node.name, NOW + 2)
    await node.exchange(NOW + 6)

    assert await groups(store) == [(of_kind("echo", PAST_DEADLINE), 1), (of_kind("demo", DIED_LAST), 1)]


async def test_what_is_told_of_a_group_is_bounded(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its jobs are counted up to a number; so are groups."""
    monkeypatch.setattr(errors, "COUNTED", 2)
    monkeypatch.setattr(errors, "COUNTED_OF_ONE", 3)
    monkeypatch.setattr(errors, "GROUPS", 2)
    for number in range(4):
        await fail(node, f"x{number}", "1-x", NOW + number)
    for number in range(2):
        await fail(node, f"y{number}", "1-y", NOW + number)
    listed = await node.store.error_groups()
    one = await node.store.error_group("1-x")
    complete = listed.complete
    await fail(node, "z", "1-z")
    more = await node.store.error_groups()

    assert [(each.jobs, each.exact) for each in listed.groups] == [(2, False), (2, True)]
    assert one is not None
    assert (one.jobs, one.exact) == (3, False)
    assert [each.fingerprint for each in more.groups] == ["1-x", "1-y"]
    assert (complete, more.complete) == (True, False)
    assert COUNTED > NAMED


async def test_a_group_is_retried_as_an_operation(node: Node) -> None:
    for number, fingerprint in enumerate(("1-x", "1-y", "1-x", "1-z")):
        await fail(node, f"j{number}", fingerprint)
    asked = NewOperation(id="o", verb="retry", where=Filter(fingerprint=("1-x", "1-z")), rate=10)
    slices = await do_all(node.store, await node.store.begin_operation(asked, NOW), limit=1)
    done = slices[-1].operation

    assert done is not None
    assert (done.state, done.matched, done.changed) == ("done", 3, 3)
    assert await groups(node.store) == [("1-y", 1)]


FILTERS: Sequence[tuple[dict[str, Any], str]] = [
    ({"fingerprint": "1-x"}, "dba"),
    ({"fingerprint": ("1-y", "1-x", "none")}, "dcba"),
    ({"fingerprint": "1-x", "queue": "mail"}, "d"),
    ({"fingerprint": "1-x", "status": Status.FAILED, "kind": "e*"}, "dba"),
    ({"fingerprint": "1-x", "status": Status.DONE}, ""),
    ({"fingerprint": "1-x", "id": ("a", "c")}, "a"),
    ({"fingerprint": "1-x", "tag": "t"}, "a"),
    ({"fingerprint": "1-x", "ended_after": NOW + 1}, "db"),
    ({"fingerprint": "1-x", "created_after": NOW}, "dba"),
    ({"fingerprint": (*(f"1-{number}" for number in range(60)), "1-y")}, "c"),
    ({"fingerprint": ("1-x'", "1-x\0")}, ""),
]


@pytest.mark.parametrize(("where", "meant"), FILTERS, ids=str)
async def test_a_list_holds_the_jobs_of_groups(node: Node, where: dict[str, Any], meant: str) -> None:
    await fail(node, "a", "1-x", options=Options(tags=("t",)))
    await fail(node, "b", "1-x", NOW + 1)
    await fail(node, "c", "1-y", NOW + 2)
    await fail(node, "d", "1-x", NOW + 3, queue="mail")
    await fail(node, "e", None)
    pages, before = "", None
    while True:
        page = await node.store.jobs(Filter(**where), 1, before)
        pages += "".join(job.id for job in page.jobs)
        if (before := page.next_before) is None:
            break

    assert pages == meant


async def harm(store: Any, column: str, value: str | bytes, job_id: str) -> None:
    """Write something into the row of a failed job that no jobpipe writes."""
    table = "ended" if store.name.startswith("postgresql") else "jobs"
    kind = "text" if column == "fingerprint" else "bytea" if table == "ended" else "blob"
    which = "seq = (select seq from jobs where id = :id)"

    async def written(tx: Transaction) -> None:
        tx.run(
            f"update {table} set {column} = cast(:value as {kind}) where {which}",
            {"value": value, "id": job_id},
        )

    await store._transact(written)


@pytest.mark.parametrize("damage", ["", "/", "\x7f", "é", "x" * 5000])
async def test_a_fingerprint_that_is_none_hides_no_other_group(node: Node, damage: str) -> None:
    """It is shown as it is; its job goes from there when it is retried."""
    await fail(node, "a", "1-x", NOW)
    await fail(node, "b", "1-y", NOW + 1)
    await harm(node.store, "fingerprint", damage, "b")
    shown = await groups(node.store)
    first = await node.store.error_groups(1)
    second = await node.store.error_groups(1, first.next_before)
    await node.store.retry(["b"], NOW)

    assert shown == [(damage, 1), ("1-x", 1)]
    assert [one.fingerprint for one in second.groups] == ["1-x"]
    assert await groups(node.store) == [("1-x", 1)]


async def test_a_fingerprint_that_is_no_text_hides_no_other_group(node: Node) -> None:
    """In SQLite a text may be any bytes."""
    await fail(node, "a", "1-x", NOW)
    await fail(node, "b", "1-y", NOW + 1)
    await harm(node.store, "fingerprint", b"\xff1", "b")
    shown = await groups(node.store)
    await node.store.delete(["b"], NOW)

    assert shown[1:] == [("1-x", 1)]
    assert shown[0][1] == 1
    assert await groups(node.store) == [("1-x", 1)]


@pytest.mark.parametrize("damage", [b"{", b"\xff", b"[1]", b""])
async def test_a_group_whose_newest_error_cannot_be_read_is_shown(node: Node, damage: bytes) -> None:
    await fail(node, "a", "1-x")
    await harm(node.store, "error", damage, "a")
    (found,) = (await node.store.error_groups()).groups

    assert (found.newest, found.jobs, found.examples) == (None, 1, ["a"])
