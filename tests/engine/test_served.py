"""Which kinds the nodes serve together, and what is said of jobs that none of them can run."""

import itertools
from collections.abc import Sequence

import pytest
import trio
from structlog.testing import capture_logs

from jobpipe.engine.served import AGAIN, FRESH, PERIOD, RARELY, TOLD, Served
from jobpipe.errors import StoreUnavailable
from jobpipe.job import Status
from jobpipe.store.base import Unserved
from jobpipe.store.memory import MemoryStore
from tests.engine.conftest import NOW, FaultyStore, running

SAID = "jobs wait: no live node has a handler for their kind"
ACT = frozenset({"act"})


class Asked(MemoryStore):
    """A store that counts how often it was asked for kinds, and says what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []
        self.found: Sequence[Unserved] = ()
        self.counting = 0.0
        self.broken = False

    async def kinds(self) -> frozenset[str]:
        self.asked.append(trio.current_time())
        if self.broken:
            raise StoreUnavailable("gone")
        return await super().kinds()

    async def unserved(self) -> Sequence[Unserved]:
        self.asked.append(trio.current_time())
        await trio.sleep(self.counting)
        return self.found


# --- a node and its jobs ----------------------------------------------------------------------------------------------


async def test_a_job_that_no_node_serves_waits_until_one_does(autojump_clock) -> None:
    """Unspent, whatever its priority; all others go on, and the one with the handler takes it at once."""
    store = FaultyStore()
    async with running(store) as rig:
        await rig.enqueue("absent", kind="mail", priority=1000, max_retries=0)
        await rig.enqueue("a")
        await rig.ended("a")
        await trio.sleep(600)
        job, began = await rig.job("absent"), trio.current_time()
        batches = len(store.batches)
        await trio.sleep(60)
        more = len(store.batches) - batches
        await store.join("other", NOW, NOW + 10_000, frozenset({"mail"}))
        await trio.sleep(FRESH)
        mailed = await rig.node.served.unserved()

    assert (job.status, job.state.attempt, job.state.claim, job.attempts, job.state.error) == (
        Status.QUEUED,
        0,
        0,
        (),
        None,
    )
    assert began > 0
    assert more <= 60 / 5 + 1  # renewals of the lease and nothing else
    assert mailed == []
    assert [(line["kind"], line["jobs"], line["log_level"]) for line in rig.logged(SAID)] == [
        ("mail", 1, "warning")
    ]


async def test_two_nodes_run_each_its_own_kinds(autojump_clock) -> None:
    """Though one store serves both, and the other's jobs come first."""
    store = MemoryStore()
    from tests.engine.test_executor import odd  # noqa: PLC0415 - that file needs this package's conftest first

    async def mail(_: object) -> str:
        return "sent"

    async with running(store) as one, running(store, name="n2", handlers=[odd(mail)]) as other:
        for number in range(5):
            await one.enqueue(f"odd-{number}", kind="odd", priority=9)
            await one.enqueue(f"act-{number}")
        other.node.ledger.look()
        await trio.sleep(1)
        jobs = [await one.job(f"{kind}-{number}") for kind in ("odd", "act") for number in range(5)]

    assert {job.status for job in jobs} == {Status.DONE}
    assert {job.state.attempt for job in jobs} == {1}


# --- what is asked ----------------------------------------------------------------------------------------------------


async def test_a_flood_of_unknown_kinds_asks_the_store_seldom(autojump_clock) -> None:
    """Each caller gets an answer that is younger than its question, and they share them."""
    store, begun = Asked(), trio.current_time()
    served = Served(store, ACT)

    async def asks(delay: float) -> None:
        await trio.sleep(delay)
        await served.renew(trio.current_time())
        assert store.asked[-1] > begun + delay - 1e-9

    async with trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(asks, number * 2 * FRESH / 1000)

    assert 3 <= len(store.asked) <= 4
    assert all(later - earlier >= FRESH for earlier, later in zip(store.asked, store.asked[1:], strict=False))


async def test_a_kind_is_known_as_soon_as_a_node_that_serves_it_has_joined(autojump_clock) -> None:
    """After a look; and unknown again when that node has left."""
    store = Asked()
    served = Served(store, ACT)
    await served.renew(trio.current_time())
    before = served.has("mail")
    await store.join("n2", NOW, NOW + 9, frozenset({"mail"}))
    await served.renew(trio.current_time())
    after = served.has("mail")
    await store.leave("n2")
    await served.renew(trio.current_time())

    assert (before, after, served.has("mail"), served.has("act")) == (False, True, False, True)
    assert served.kinds == ACT


async def test_what_takes_long_to_count_is_counted_seldom(autojump_clock) -> None:
    store = Asked()
    store.counting = 1.0
    served = Served(store, ACT)
    for _ in range(100):
        await served.unserved()
        await trio.sleep(0.5)

    assert len(store.asked) > 1
    assert all(later - earlier >= RARELY for earlier, later in itertools.pairwise(store.asked))


# --- what is said -----------------------------------------------------------------------------------------------------


async def test_a_warning_comes_once_and_again_when_the_count_has_changed(autojump_clock) -> None:
    """But not more often than every minute; and anew when the jobs were gone meanwhile."""
    store = Asked()
    steps = [
        [Unserved("mail", 3, NOW)],
        [Unserved("mail", 4, NOW)],  # told when the minute is over
        [Unserved("mail", 4, NOW)],
        [],
        [Unserved("mail", 4, NOW)],
    ]
    with capture_logs() as log:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Served(store, ACT).run)
            told = []
            for found in steps:
                store.found = found
                await trio.sleep(AGAIN + PERIOD if found else 2 * PERIOD)
                told.append([line["jobs"] for line in log])
            nursery.cancel_scope.cancel()

    assert told == [[3], [3, 4], [3, 4], [3, 4], [3, 4, 4]]
    assert (log[0]["event"], log[0]["kind"], log[0]["since"]) == (SAID, "mail", "2023-11-14T22:13:20+00:00")


@pytest.mark.parametrize("kinds", [TOLD, TOLD + 1])
async def test_many_kinds_are_told_a_few_at_a_time(autojump_clock, kinds: int) -> None:
    store = Asked()
    store.found = [Unserved(f"k{number:02}", 1, NOW) for number in range(kinds)]
    with capture_logs() as log:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Served(store, ACT).run)
            await trio.sleep(1)
            first = len(log)
            await trio.sleep(PERIOD)
            nursery.cancel_scope.cancel()

    assert (first, len(log)) == (TOLD, kinds)


async def test_a_store_that_does_not_answer_is_asked_again(autojump_clock) -> None:
    """Nothing ends by it; others tell of the store's trouble."""
    store = Asked()
    store.broken, store.found = True, [Unserved("mail", 1, NOW)]
    with capture_logs() as log:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Served(store, ACT).run)
            await trio.sleep(1)
            store.broken = False
            await trio.sleep(PERIOD)
            nursery.cancel_scope.cancel()

    assert [line["log_level"] for line in log] == ["debug", "warning"]
