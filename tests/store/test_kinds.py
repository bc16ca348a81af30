"""A claim takes the kinds that it names; jobs of others wait, unspent, and cost it nothing. Over every store."""

from collections.abc import Sequence

import pytest
import trio

from jobpipe.job import Job, Outcome, Status
from jobpipe.store.base import UNSERVED, Add, Batch, Change, ClaimRequest, QueueState, Store, Unserved
from jobpipe.store.postgres import writer as postgres
from jobpipe.store.sqlite import claiming as sqlite
from tests.store.test_contract import LATER, LEASE, NOW, Node, add, get, new_job, settlement, start

ECHO, DEMO, BOTH = frozenset({"echo"}), frozenset({"demo"}), frozenset({"echo", "demo"})


async def joined(store: Store, name: str, kinds: frozenset[str]) -> Node:
    node = Node(store, name, kinds)
    await node.join()
    return node


async def taken(node: Node, limit: int = 10) -> Sequence[str]:
    """The ids that a node gets when it asks until nothing more is ready, as the engine does."""
    ids: list[str] = []
    while True:
        receipts = await node.exchange(claim=limit - len(ids))
        ids += [job.id for job in receipts.claimed]
        if len(ids) == limit or not receipts.more_ready:
            return ids


async def queue(store: Store) -> QueueState:
    (state,) = await store.queues()
    return state


@pytest.fixture
async def echo(store: Store) -> Node:
    """A node that serves `echo` alone."""
    return await joined(store, "echoes", ECHO)


def untouched(job: Job) -> bool:
    """Whether a job waits as if no claim had ever met it."""
    return (
        job.status,
        job.state.attempt,
        job.state.claim,
        job.state.started_at,
        job.attempts,
        job.state.error,
    ) == (
        *(Status.QUEUED, 0, 0),
        *(None, (), None),
    )


# --- what a claim takes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_job_of_a_kind_that_the_node_lacks_is_left_unspent(store: Store, when: str) -> None:
    """Whatever its priority, and whether it came before the node or after it."""
    jobs = [new_job("other", kind="demo", priority=1000), new_job("a"), new_job("b", priority=-1)]
    if when == "before":
        await add(store, *jobs)
    node = await joined(store, "echoes", ECHO)
    if when == "after":
        await add(store, *jobs)
    found, again = await taken(node), await taken(node)

    assert (found, again) == (["a", "b"], [])
    assert untouched(await get(store, "other"))
    assert (await queue(store)).counts == {Status.QUEUED: 3}  # two of them held
    assert (await node.exchange()).waiting == 1


async def test_a_node_that_joins_with_the_kind_takes_it_at_once(store: Store, echo: Node) -> None:
    """Merged with all other jobs by priority, run_at, arrival."""
    await add(store, new_job("d1", kind="demo"), new_job("e1"), new_job("d2", kind="demo", priority=1))
    await add(store, new_job("e2", priority=2), new_job("d3", kind="demo", run_at=NOW - 1))
    both = await joined(store, "both", BOTH)
    first = await taken(both, 3)

    assert first == ["e2", "d2", "d3"]
    assert (await taken(echo), await taken(both)) == (["e1"], ["d1"])


async def test_two_nodes_get_each_its_own(store: Store) -> None:
    """In any mixture, and what both serve goes to whoever asks first."""
    one, other = await joined(store, "one", ECHO), await joined(store, "other", DEMO)
    await add(store, *(new_job(f"{kind}{n}", kind=kind, priority=n % 3) for n in range(9) for kind in BOTH))
    mine, yours = await taken(one, 20), await taken(other, 20)

    order = [2, 5, 8, 1, 4, 7, 0, 3, 6]
    assert mine == [f"echo{n}" for n in order]
    assert yours == [f"demo{n}" for n in order]


async def test_jobs_that_stand_aside_obey_pauses_and_expiries(store: Store, echo: Node) -> None:
    """As all others do."""
    await add(
        store,
        new_job("paused", kind="demo", queue="held", priority=9),
        new_job("late", kind="demo", queue="q", expires_at=NOW + 5),
        new_job("fresh", kind="demo", queue="q"),
    )
    await store.pause("held")
    node = await joined(store, "demos", DEMO)
    found = [job.id for job in await node.claim(5, NOW + 6)]
    ready = (await store.overview(DEMO)).ready
    await store.resume("held")

    assert (found, ready, (await store.overview(DEMO)).ready) == (["fresh"], False, True)
    assert await taken(node) == ["paused"]
    assert (await get(store, "late")).status is Status.EXPIRED
    assert await taken(echo) == []


async def test_a_scheduled_job_without_a_node_becomes_ready_and_waits(store: Store, echo: Node) -> None:
    """A delay does not bring it past the look at its kind."""
    await add(store, new_job("a", kind="demo", run_at=NOW + 5))
    await echo.exchange(LATER, claim=5)
    again = await echo.exchange(LATER, claim=5)

    assert list(again.claimed) == []
    assert untouched(await get(store, "a"))
    assert [(one.kind, one.jobs, one.since) for one in await store.unserved()] == [("demo", 1, NOW + 5)]


async def test_what_another_node_handed_back_or_failed_stands_aside_too(store: Store, echo: Node) -> None:
    """It keeps what it had: its attempts, its error, its priority."""
    demo = await joined(store, "demos", DEMO)
    await add(store, new_job("a", kind="demo"), new_job("b", kind="demo"))
    first, second = await demo.claim(2)
    await demo.exchange(starts=[start(second)])
    retry = settlement(second, Outcome.RETRY, NOW, run_at=NOW + 1)
    await demo.exchange(settlements=[settlement(first, None), retry])
    await store.leave("demos")
    nothing = [job.id for _ in range(2) for job in (await echo.exchange(LATER, claim=5)).claimed]
    back = await joined(store, "demos", DEMO)
    found = [job.id for job in await back.claim(5, LATER)]

    assert (nothing, found) == ([], ["a", "b"])
    (record,) = (await get(store, "b")).attempts
    assert (record.number, record.outcome, (await get(store, "b")).state.attempt) == (1, Outcome.RETRY, 1)


@pytest.mark.parametrize("act", ["cancel", "delete", "expire"])
async def test_a_job_without_a_node_obeys_people(store: Store, echo: Node, act: str) -> None:
    """It can be read, listed, cancelled and deleted, and it expires."""
    await add(store, new_job("a", kind="demo", expires_at=NOW + 5))
    await taken(echo)
    assert (await get(store, "a")).asked.kind == "demo"
    changes: Sequence[Change] = ()
    match act:
        case "cancel":
            changes = await store.cancel(["a"], NOW)
        case "delete":
            changes = await store.delete(["a"], NOW)
        case _:
            await echo.exchange(LATER)
    job = await store.get("a")

    assert {change.verdict for change in changes} <= {"changed"}
    assert (job and job.status) == {"cancel": Status.CANCELLED, "delete": None, "expire": Status.EXPIRED}[act]
    assert list(await store.unserved()) == []
    assert (await store.overview(DEMO)).counts.get(Status.QUEUED, 0) == 0


async def test_a_retry_by_hand_of_a_kind_that_is_gone_is_accepted_and_waits(store: Store) -> None:
    """Until a node serves it again."""
    demo = await joined(store, "demos", DEMO)
    await add(store, new_job("a", kind="demo"))
    (job,) = await demo.claim(1)
    await demo.exchange(settlements=[settlement(job, Outcome.DONE)])
    await store.leave("demos")
    echo = await joined(store, "echoes", ECHO)
    (change,) = await store.retry(["a"], LATER)
    nothing = await echo.claim(5, LATER)
    unserved = list(await store.unserved())
    back = await joined(store, "demos", DEMO)
    found = [job.id for job in await back.claim(5, LATER)]

    assert (change.verdict, list(nothing), found) == ("changed", [], ["a"])
    assert unserved == [Unserved("demo", 1, LATER)]


async def test_very_many_jobs_of_other_kinds_in_front_are_met_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim puts a bounded number of them aside, says that more may be ready, and comes to its own."""
    for writer in (sqlite, postgres):
        monkeypatch.setattr(writer, "SLICE", 10)
        monkeypatch.setattr(writer, "SLICES", 2)
    await add(store, *(new_job(f"d{n}", kind="demo", priority=5) for n in range(100)), new_job("a"))
    node = await joined(store, "echoes", ECHO)
    first = await node.exchange(claim=5)
    found, rounds = [job.id for job in first.claimed], 0
    while not found:
        receipts = await node.exchange(claim=5)
        assert receipts.more_ready or receipts.claimed
        found, rounds = [job.id for job in receipts.claimed], rounds + 1

    assert (list(first.claimed), first.more_ready) == ([], True)
    assert (found, 2 < rounds < 12) == (["a"], True)
    assert await store.unserved() == [Unserved("demo", 100, NOW)]
    assert not (await node.exchange(claim=5)).more_ready


async def test_jobs_of_other_kinds_behind_paused_ones_do_not_keep_a_claim_busy(
    store: Store, echo: Node
) -> None:
    """It ends, though neither may be taken."""
    await add(store, *(new_job(f"p{n}", queue="held", priority=9) for n in range(5)))
    await store.leave("echoes")
    await add(
        store, *(new_job(f"d{n}", kind="demo", queue="held") for n in range(5)), new_job("d", kind="demo")
    )
    await echo.join()
    await store.pause("held")

    assert await taken(echo) == []
    assert not (await store.overview(ECHO)).ready


async def test_an_add_and_a_claim_in_one_exchange_go_by_the_kinds_too(store: Store, echo: Node) -> None:
    """A job that is added stands aside in the same step."""
    batch = Batch(
        node="echoes",
        now=NOW,
        adds=[Add([new_job("d", kind="demo", priority=9), new_job("a")])],
        claims=[ClaimRequest(limit=5, kinds=ECHO)],
    )
    receipts = await store.exchange(batch)

    assert [job.id for job in receipts.claimed] == ["a"]
    assert receipts.waiting == 1


async def test_a_node_of_two_kinds_gets_both_in_order_whatever_stands_aside(store: Store, echo: Node) -> None:
    """Limits hold over both, and two nodes share without loss."""
    both, also = await joined(store, "both", BOTH), await joined(store, "also", BOTH)
    await add(store, *(new_job(f"j{n:02}", kind="echo" if n % 3 else "demo") for n in range(60)))
    got: list[str] = []
    async with trio.open_nursery() as nursery:

        async def claims(node: Node) -> None:
            while jobs := await taken(node, 7):
                got.extend(jobs)

        nursery.start_soon(claims, both)
        nursery.start_soon(claims, also)

    assert sorted(got) == [f"j{n:02}" for n in range(60)]
    assert await taken(echo) == []


# --- what is known of kinds -------------------------------------------------------------------------------------------


async def test_the_kinds_of_live_nodes_are_known(store: Store) -> None:
    """Set anew at each join, gone with the node; a node that serves none changes nothing."""
    before = await store.kinds()
    one, other = await joined(store, "one", ECHO), await joined(store, "other", BOTH)
    await store.join("door", NOW, LEASE)
    both = await store.kinds()
    other.kinds = frozenset({"mail", "ü"})
    await other.join()
    again = await store.kinds()
    await store.leave("other")
    await store.rescue("door", LATER)  # the lease of `one` has ended

    assert [before, both, again] == [frozenset(), BOTH, frozenset({"echo", "mail", "ü"})]
    assert await store.kinds() == frozenset()
    assert one.kinds == ECHO


async def test_a_node_without_kinds_has_no_jobs_put_aside(store: Store) -> None:
    """It only adds; what it adds is for others."""
    await store.join("door", NOW, LEASE)
    await add(store, new_job("a"))

    assert await store.unserved() == []
    assert await taken(await joined(store, "echoes", ECHO)) == ["a"]


async def test_unserved_jobs_are_counted_by_kind(store: Store, echo: Node) -> None:
    """Only ready ones, whose kind no live node serves; `since` is the oldest run_at."""
    await add(
        store,
        new_job("a", kind="demo", run_at=NOW - 7),
        new_job("b", kind="demo", priority=9, run_at=NOW - 3),
        new_job("later", kind="demo", run_at=NOW + 9),
        new_job("c", kind="mail"),
        new_job("d"),
    )
    found = list(await store.unserved())
    await joined(store, "mails", frozenset({"mail"}))

    assert found == [Unserved("demo", 2, NOW - 7), Unserved("mail", 1, NOW)]
    assert [one.kind for one in await store.unserved()] == ["demo"]
    assert (await queue(store)).oldest_queued_at == NOW - 7


async def test_the_list_of_unserved_kinds_is_bounded(store: Store, echo: Node) -> None:
    """The first by name; a kind more is left out."""
    await add(store, *(new_job(f"j{n}", kind=f"k{n:03}") for n in range(UNSERVED)))
    full = [one.kind for one in await store.unserved()]
    await add(store, new_job("more", kind="k999"))

    assert full == [f"k{n:03}" for n in range(UNSERVED)]
    assert [one.kind for one in await store.unserved()] == full


async def test_ready_is_about_the_kinds_that_are_asked_for(store: Store, echo: Node) -> None:
    """And about jobs that nobody holds."""
    await add(store, new_job("d", kind="demo"), new_job("a"))
    before = [(await store.overview(kinds)).ready for kinds in (ECHO, DEMO, frozenset({"mail"}))]
    await taken(echo)

    assert before == [True, True, True]  # the plain ones may be of any kind
    assert [(await store.overview(kinds)).ready for kinds in (ECHO, DEMO)] == [False, True]
