"""Nodes as they are shown, and what became of the attempts of those that stopped or died. Over every store."""

import pytest
from msgspec.structs import replace

from jobpipe.job import Options
from jobpipe.store.base import (
    ACCOUNTED,
    ACCOUNTS,
    Account,
    Batch,
    NodeFacts,
    Start,
    Store,
    Unfinished,
)
from jobpipe.store.verbs.transaction import Transaction
from tests.store.test_contract import KEEP_ALL, KINDS, NOW, Node, add, get, new_job

pytestmark = pytest.mark.long

STOP = Account(
    node="n",
    how="stopped",
    began=NOW,
    ended_at=NOW + 9,
    active=3,
    finished=1,
    handed_back=1,
    abandoned=1,
    unbegun=7,
    attempts=[
        Unfinished(job="a", kind="echo", attempt=1, end="handed_back", status="queued"),
        Unfinished(job="b", kind="echo", attempt=2, end="abandoned", status="queued", line="a.py:3 in f"),
    ],
)


async def test_the_newest_accounts_of_a_node_are_kept(store: Store) -> None:
    """So many, and of each so many attempts; by age they all go. Others have nothing to do with it."""
    many = replace(STOP, attempts=[STOP.attempts[0]] * 2 * ACCOUNTED)
    await store.note_account(replace(STOP, node="other", began=NOW - 99))
    for number in range(ACCOUNTS + 2):
        await store.note_account(replace(many if number == 7 else STOP, began=NOW + number))
    await store.note_account(replace(STOP, began=NOW + ACCOUNTS))  # once more
    kept = await store.accounts("n")

    assert [one.began for one in kept] == [NOW + number for number in range(ACCOUNTS + 1, 1, -1)]
    assert kept[0] == replace(STOP, began=NOW + ACCOUNTS + 1)
    assert len(kept[-6].attempts) == ACCOUNTED
    assert len(await store.accounts("other")) == 1
    await store.prune(NOW + 19, replace(KEEP_ALL, failed_age=10.0))
    assert len(await store.accounts("n")) == ACCOUNTS
    await store.prune(NOW + 20, replace(KEEP_ALL, failed_age=10.0))
    assert await store.accounts("n") == await store.accounts("other") == []


async def test_a_node_that_dies_has_its_account_from_whoever_rescues_its_jobs(store: Store) -> None:
    """It adds up to the attempts that had begun; it began with the last sign of life."""
    dead = Node(store, "dead")
    await store.join("dead", NOW, NOW + 15, KINDS)
    await store.join("idle", NOW + 1, NOW + 16, KINDS)
    await store.join("left", NOW, NOW + 15, KINDS)
    await store.leave("left")
    jobs = [
        new_job("again"),
        new_job("spent", max_retries=0),
        new_job("fails", options=Options(on_crash="fail")),
        new_job("stopped"),
        new_job("unbegun"),
    ]
    await add(store, *jobs)
    claimed = await dead.claim(9)
    begun = [Start(job.seq, job.claim, 1, NOW + 1) for job in claimed if job.id != "unbegun"]
    await store.exchange(Batch(node="dead", now=NOW + 2, lease_until=NOW + 17, starts=begun))
    await store.cancel(["stopped"], NOW + 3)
    await store.join("n", NOW, NOW + 999, KINDS)
    await store.rescue("n", NOW + 60)
    (account,) = await store.accounts("dead")

    assert account.active == account.abandoned == 4
    assert (account.how, account.began, account.ended_at, account.unbegun) == ("died", NOW + 2, NOW + 60, 1)
    assert {one.job: (one.end, one.status) for one in account.attempts} == {
        "again": ("abandoned", "queued"),
        "spent": ("abandoned", "failed"),
        "fails": ("abandoned", "failed"),
        "stopped": ("abandoned", "cancelled"),
    }
    assert [(await get(store, one.job)).status.value for one in account.attempts] == [
        one.status for one in account.attempts
    ]
    assert [(one.active, one.began) for one in await store.accounts("idle")] == [(0, NOW + 1)]
    await store.rescue("n", NOW + 61)
    assert await store.accounts("dead") == [account]
    assert await store.accounts("left") == []


async def test_nodes_are_shown_with_what_is_known_of_them(store: Store) -> None:
    """Those with a lease first; a page goes on where the last one ended."""
    await store.join("a", NOW, NOW + 15, frozenset({"echo", "act"}), frozenset({"q"}), NodeFacts(4, "1.2"))
    for name in "bcde":
        await store.join(name, NOW + 1, NOW + 9)
    await store.note_draining("a")
    await store.note_draining("nobody")
    for name in "bd":
        await store.leave(name)
    await store.note_account(replace(STOP, node="d"))
    await store.note_account(replace(STOP, node="d", began=NOW + 1, active=0))
    await add(store, new_job(queue="q"))
    await Node(store, "a").take()
    pages, after = [], None
    while page := await store.nodes(2, after):
        pages.append([one.name for one in page])
        after = page[-1].place
    one, gone = await store.node("a"), await store.node("d")

    assert pages == [["e", "c"], ["a", "d"], ["b"]]
    assert one is not None
    assert (one.lease_until, one.lease, one.joined_at, one.draining) == (NOW + 15, 15, NOW, True)
    assert (one.workers, one.version, one.kinds, one.queues) == (4, "1.2", ["act", "echo"], ["q"])
    assert (one.holds, one.last_stop) == (1, None)
    assert gone is not None
    assert (gone.lease_until, gone.kinds, gone.queues, gone.holds) == (None, (), None, 0)
    assert gone.last_stop == replace(STOP, node="d", began=NOW + 1, active=0)
    assert await store.node("nobody") is None


async def test_what_cannot_be_read_is_left_out_and_keeps_no_job_from_being_rescued(store: Store) -> None:
    """Whatever stands in the rows of nodes and accounts."""

    async def spoil(tx: Transaction) -> None:
        tx.run("update accounts set account = '{'", {})
        tx.run("update nodes set lost_at = 1e300, joined_at = 1e300, workers = -1", {})

    dead = Node(store, "dead")
    await store.join("dead", NOW, NOW + 15, KINDS)
    await add(store, new_job())
    await dead.start(await dead.take())
    await store.note_account(replace(STOP, node="dead"))
    await store._transact(spoil)  # type: ignore[attr-defined]
    before = await store.node("dead"), await store.accounts("dead")
    await store.rescue("n", NOW + 60)
    (account,) = await store.accounts("dead")

    assert before[0] is not None
    assert (before[0].last_stop, before[1]) == (None, [])
    assert (account.how, account.began, account.active) == ("died", NOW + 60, 1)
    assert (await get(store)).status.value == "queued"
