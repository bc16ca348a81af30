"""The single writer: what is handed in together is written together, and nothing is lost."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from jobpipe.clock import VirtualClock
from jobpipe.engine.attempt import Attempt
from jobpipe.engine.batching import (
    ADDING,
    ADDS,
    BATCH,
    BATCH_WHILE_ADDING,
    GATHER_DELAY,
    LOCKED_DELAY,
    LONGEST_PAUSE,
    START_DELAY,
)
from jobpipe.engine.committer import Committer
from jobpipe.engine.follower import Follower
from jobpipe.engine.held import Held
from jobpipe.engine.ledger import Ledger
from jobpipe.errors import StoreUnavailable, TablesLocked
from jobpipe.events import Events
from jobpipe.job import Outcome, Status
from jobpipe.store.base import Add, Batch, Claimed, ClaimRequest, Receipts, Settlement, Start
from tests.engine.conftest import NOW, FaultyStore, new_job, turns


def settlement(job: Claimed, status: Status = Status.DONE) -> Settlement:
    outcome = Outcome.DONE if status is Status.DONE else None
    return Settlement(
        seq=job.seq,
        id=job.id,
        queue=job.queue,
        claim=job.claim,
        outcome=outcome,
        status=status,
        attempt=1,
        number=1,
        started_at=NOW,
        settled_at=NOW,
    )


class Taker:
    """Takes so much and once; `presses` while it cannot wait for others to share a commit."""

    def __init__(self, limit: int, kinds: frozenset[str] = frozenset({"act"})) -> None:
        self.limit, self.kinds, self.presses = limit, kinds, True
        self.jobs: list[Claimed] = []
        self.served = trio.Event()

    def learn(self, *, held_back: bool) -> None:
        pass

    def wanted(self) -> int:
        return 0 if self.served.is_set() else self.limit

    def pressing(self) -> bool:
        return self.presses

    def request(self, limit: int) -> ClaimRequest:
        return ClaimRequest(limit=limit, kinds=self.kinds)

    def take(self, asked: ClaimRequest, attempts: Sequence[Attempt]) -> None:
        self.jobs += [attempt.job for attempt in attempts]
        self.served.set()


class Desk:
    """A ledger at work, and those who ask it for something."""

    def __init__(self, store: FaultyStore, asking: trio.Nursery) -> None:
        self.store, self.asking, self.events = store, asking, Events()
        clock = VirtualClock(NOW)
        self.still_held = Held(clock, lambda _kind: 3, random.Random(0))
        self.ledger = Ledger("n1", clock, self.events, self.still_held, lease=15)
        follower = Follower(store, self.ledger, self.events, clock, period=15)
        self.committer = Committer(store, "n1", self.ledger, self.still_held, follower, self.events, clock)
        self.held: list[Claimed] = []

    async def claim(self, limit: int = 10) -> list[Claimed]:
        taker = Taker(limit)
        with self.ledger.claiming(taker):
            await taker.served.wait()
        self.held += taker.jobs
        return taker.jobs

    async def add(self, *ids: str) -> None:
        await self.ledger.add([new_job(job_id) for job_id in ids])

    async def status(self, job_id: str = "a") -> Status | None:
        job = await self.store.get(job_id)
        return None if job is None else job.status


@asynccontextmanager
async def at_work(*, errors: int = 0, store: FaultyStore | None = None) -> AsyncIterator[Desk]:
    """A ledger on its own, without a node around it."""
    with capture_logs() as log:
        async with trio.open_nursery() as keepers:
            async with trio.open_nursery() as asking:
                desk = Desk(store or FaultyStore(), asking)
                await desk.store.join("n1", NOW, NOW + 15)
                keepers.start_soon(desk.committer.run)
                await turns()  # its first look, for what may be due
                desk.store.batches.clear()
                yield desk
                asking.cancel_scope.cancel()
            await desk.ledger.flushed()
            keepers.cancel_scope.cancel()

    assert sum(line["log_level"] == "error" for line in log) == errors


def sizes(desk: Desk) -> list[tuple[int, int, int]]:
    """How many adds, settlements and starts each batch held."""
    return [(len(batch.adds), len(batch.settlements), len(batch.starts)) for batch in desk.store.batches]


# --- batches ----------------------------------------------------------------------------------------------------------


async def test_what_comes_while_a_commit_runs_shares_the_next_one(autojump_clock) -> None:
    """A hundred askers, two transactions: one fsync pays for all that waits."""
    async with at_work() as desk:
        desk.store.before = trio.Event()
        async with trio.open_nursery() as askers:
            askers.start_soon(desk.add, "first")
            await turns()
            for number in range(100):
                askers.start_soon(desk.add, str(number))
            await turns()
            desk.store.before.set()

    assert sizes(desk) == [(1, 0, 0), (100, 0, 0)]


async def crowd(desk: Desk, prefix: str, number: int) -> None:
    """So many askers at once, whose adds share a commit, however they came."""
    desk.store.before = trio.Event()
    async with trio.open_nursery() as askers:
        askers.start_soon(desk.add, f"{prefix}-first")
        await turns()
        for one in range(number):
            askers.start_soon(desk.add, f"{prefix}-{one}")
        await turns()
        desk.store.before.set()


@pytest.mark.parametrize(
    ("crowded", "again", "waits"), [(16, 7, True), (16, 8, False), (100, 8, False), (2, 1, False)]
)
async def test_an_add_waits_a_moment_for_those_who_came_with_the_last(
    autojump_clock, crowded, again, waits
) -> None:
    """For half of them, and not for many: while those are served, the others can be written."""
    async with at_work() as desk:
        await crowd(desk, "a", crowded)
        begun = trio.current_time()
        async with trio.open_nursery() as askers:
            for one in range(again):
                askers.start_soon(desk.add, f"b-{one}")
                await trio.lowlevel.checkpoint()
        took = trio.current_time() - begun

    assert took == pytest.approx(GATHER_DELAY if waits else 0)
    assert sizes(desk)[-1] == (again, 0, 0)


async def test_a_lone_asker_waits_for_nobody(autojump_clock) -> None:
    """But for once, when there was a crowd before."""
    async with at_work() as desk:
        await crowd(desk, "a", 16)
        await desk.add("b")
        begun = trio.current_time()
        for number in range(10):
            await desk.add(str(number))
        took = trio.current_time() - begun

    assert took == 0


async def test_a_claim_does_not_wait_for_company(autojump_clock) -> None:
    """An idle worker is worth more than a shared commit."""
    async with at_work() as desk:
        await crowd(desk, "a", 16)
        begun = trio.current_time()
        async with trio.open_nursery() as askers:
            askers.start_soon(desk.add, "b")
            await trio.lowlevel.checkpoint()
            await desk.claim()
            took = trio.current_time() - begun

    assert took == 0


async def test_a_job_is_claimed_by_the_very_commit_that_stores_it(autojump_clock) -> None:
    """When somebody waits for work already."""
    async with at_work() as desk:
        desk.asking.start_soon(desk.claim)
        await turns()
        looked = len(desk.store.batches)
        await desk.add("a")

    assert [job.id for job in desk.held] == ["a"]
    assert len(desk.store.batches) == looked + 1


async def test_a_look_that_is_asked_for_while_a_batch_is_under_way_is_not_forgotten(autojump_clock) -> None:
    """That batch looked before there was anything, and its answer comes after the news."""
    async with at_work() as desk:
        desk.store.after = trio.Event()
        desk.asking.start_soon(desk.claim)
        await turns()
        other = FaultyStore(beside=desk.store)
        await other.exchange(Batch(node="n2", now=NOW, adds=[Add([new_job("a")])]))
        desk.ledger.look()
        desk.store.after.set()
        await turns()

    assert [job.id for job in desk.held] == ["a"]


async def test_claimers_share_a_batch_and_each_has_its_own_kinds(autojump_clock) -> None:
    """What all of them want together is bounded as if they were one."""
    act, other = Taker(BATCH - 1), Taker(10, frozenset({"other"}))
    async with at_work() as desk:
        await desk.ledger.add([new_job("a"), new_job("b", kind="other"), new_job("c")])
        await trio.sleep(ADDING)
        with desk.ledger.claiming(act), desk.ledger.claiming(other):
            await turns()
        jobs = [[job.id for job in taker.jobs] for taker in (act, other)]
        claims = [[claim.limit for claim in batch.claims] for batch in desk.store.batches if batch.claims]
        for job in (*act.jobs, *other.jobs):
            desk.ledger.settle(settlement(job))

    assert jobs == [["a", "c"], ["b"]]
    assert claims[0] == [BATCH - 1, 1]


async def test_a_claimer_that_fails_to_take_its_jobs_gives_them_back(autojump_clock) -> None:
    """And costs the others nothing."""

    class Broken(Taker):
        def take(self, asked: ClaimRequest, attempts: Sequence[Attempt]) -> None:
            super().take(asked, attempts)
            raise ValueError("no hands")

    broken, sound = Broken(10), Taker(10, frozenset({"other"}))
    async with at_work(errors=1) as desk:
        await desk.ledger.add([new_job("a"), new_job("b", kind="other")])
        with desk.ledger.claiming(broken), desk.ledger.claiming(sound):
            await turns()
        await desk.ledger.flushed()
        job = await desk.store.get("a")
        for one in sound.jobs:
            desk.ledger.settle(settlement(one))

    assert [one.id for one in sound.jobs] == ["b"]
    assert job is not None
    assert (job.status, job.state.attempt) == (Status.QUEUED, 0)


async def test_an_idle_ledger_leaves_the_store_alone(autojump_clock) -> None:
    """One look for a wish, and then it sleeps until something is handed in."""
    async with at_work() as desk:
        desk.asking.start_soon(desk.claim)
        await trio.sleep(1000)

    assert [[claim.limit for claim in batch.claims] for batch in desk.store.batches] == [[10]]


async def test_a_ledger_wakes_when_a_job_is_due(autojump_clock) -> None:
    """At its very time, and not before."""
    async with at_work() as desk:
        desk.asking.start_soon(desk.claim)
        await desk.ledger.add([new_job("a", run_at=NOW + 500)])
        begun = trio.current_time()
        with trio.fail_after(1000):
            while not desk.held:
                await trio.testing.wait_all_tasks_blocked()
                await trio.sleep(1)
        waited = trio.current_time() - begun

    assert 500 <= waited <= 502


async def test_large_adds_are_spread_over_batches(autojump_clock) -> None:
    """No transaction holds many more than a thousand new jobs, and an add stays whole."""
    async with at_work() as desk:
        desk.store.before = trio.Event()
        async with trio.open_nursery() as askers:
            askers.start_soon(desk.add, "first")
            await turns()
            for number in range(5):
                askers.start_soon(desk.add, *(f"{number}-{one}" for one in range(400)))
            askers.start_soon(desk.add, *(f"large-{one}" for one in range(2 * ADDS)))
            await turns()
            desk.store.before.set()
        jobs = [[len(add.jobs) for add in batch.adds] for batch in desk.store.batches]

    assert jobs[0] == [1]
    assert sorted(size for batch in jobs for size in batch) == [1, 400, 400, 400, 400, 400, 2000]
    assert all(len(batch) == 1 or sum(batch) <= ADDS for batch in jobs)
    assert desk.ledger.waiting == 1 + 5 * 400 + 2 * ADDS


async def test_many_outcomes_are_spread_over_batches(autojump_clock) -> None:
    """So many in each, and the claims that hand them out are bounded too."""
    async with at_work() as desk:
        await desk.add(*map(str, range(1000)))
        await trio.sleep(ADDING)
        jobs = [job for _ in range(3) for job in await desk.claim(10_000)]
        for job in jobs:
            desk.ledger.settle(settlement(job))
        await desk.ledger.flushed()
        (queue,) = await desk.store.queues()

    assert [claim.limit for batch in desk.store.batches for claim in batch.claims] == [BATCH] * 3
    assert [count for _, count, _ in sizes(desk) if count] == [BATCH, BATCH, 1000 - 2 * BATCH]
    assert queue.counts == {Status.DONE: 1000}


async def test_clients_that_add_wait_behind_few_outcomes(autojump_clock) -> None:
    """As long as somebody adds, batches are smaller; what does not go into one goes into the next."""
    async with at_work() as desk:
        await desk.add(*map(str, range(1000)))
        await trio.sleep(ADDING)
        jobs = [job for _ in range(3) for job in await desk.claim(10_000)]
        desk.store.batches.clear()
        for job in jobs:
            desk.ledger.settle(settlement(job))
        await desk.add(*(f"more-{one}" for one in range(300)))
        await desk.ledger.flushed()
        settled = [(adds, count) for adds, count, _ in sizes(desk)]
        more = [len(await desk.claim(10_000)) for _ in range(3)]
        (queue,) = await desk.store.queues()

    assert settled[0] == (1, BATCH_WHILE_ADDING)
    assert [count for _, count in settled] == [BATCH_WHILE_ADDING] * 7 + [1000 - 7 * BATCH_WHILE_ADDING]
    assert more == [BATCH_WHILE_ADDING, BATCH_WHILE_ADDING, 300 - 2 * BATCH_WHILE_ADDING]
    assert queue.counts[Status.DONE] == 1000


# --- cancelled askers -------------------------------------------------------------------------------------------------


async def test_an_asker_that_leaves_before_its_batch_is_taken_out(autojump_clock) -> None:
    """Its job is not stored."""
    async with at_work() as desk:
        desk.store.before = trio.Event()
        desk.asking.start_soon(desk.add, "first")
        await turns()
        async with trio.open_nursery() as leaving:
            leaving.start_soon(desk.add, "a")
            await turns()
            arriving = desk.ledger.arriving
            leaving.cancel_scope.cancel()
        left = desk.ledger.arriving
        desk.store.before.set()
        await desk.ledger.flushed()
        status = await desk.status("a")

    assert (arriving, left, status) == (2, 1, None)
    assert sizes(desk) == [(1, 0, 0)]


async def test_an_asker_that_leaves_while_its_batch_is_written_leaves_its_job(autojump_clock) -> None:
    """The whole job: a client that hangs up leaves one or none."""
    async with at_work() as desk:
        desk.store.before = trio.Event()
        async with trio.open_nursery() as leaving:
            leaving.start_soon(desk.add, "a")
            await turns()
            leaving.cancel_scope.cancel()
        desk.store.before.set()
        await desk.ledger.flushed()
        status = await desk.status("a")

    assert status is Status.QUEUED
    assert desk.ledger.arriving == 0


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_claim_whose_asker_is_gone_is_handed_back(autojump_clock, moment) -> None:
    """With the next batch, unspent, so that the next asker gets it; nobody was told to hold it."""
    async with at_work() as desk:
        await desk.add("a")
        setattr(desk.store, moment, gate := trio.Event())
        async with trio.open_nursery() as leaving:
            leaving.start_soon(desk.claim)
            await turns()
            leaving.cancel_scope.cancel()
        gate.set()
        await desk.ledger.flushed()
        job = await desk.store.get("a")
        held = list(desk.held)
        (again,) = await desk.claim()
        desk.ledger.settle(settlement(again))

    assert job is not None
    assert (job.status, job.state.attempt, held) == (Status.QUEUED, 0, [])
    assert (again.id, again.attempt, again.claim) == ("a", 0, job.state.claim + 1)


async def test_an_asker_that_leaves_before_the_claim_is_written_takes_nothing(autojump_clock) -> None:
    """And the next asker is served."""
    async with at_work() as desk:
        async with trio.open_nursery() as leaving:
            leaving.start_soon(desk.claim)
            await turns()
            leaving.cancel_scope.cancel()
        await desk.add("a")
        job = await desk.store.get("a")
        (again,) = await desk.claim()
        desk.ledger.settle(settlement(again))

    assert job is not None
    assert job.state.claim == 0


async def test_a_job_that_is_cancelled_in_the_moment_of_its_claim_does_not_wait_again(autojump_clock) -> None:
    """The wish is in the store before the holder knows of the job, and is not lost."""
    async with at_work() as desk:
        desk.store.after = trio.Event()
        desk.asking.start_soon(desk.claim)
        desk.asking.start_soon(desk.add, "a")
        await turns()
        in_store = await desk.store.cancel(["a"], NOW)
        desk.store.after.set()
        await turns()
        (job,) = desk.held
        desk.ledger.settle(settlement(job, Status.QUEUED))
        await desk.ledger.flushed()
        status = await desk.status("a")

    assert [change.verdict for change in in_store] == ["changed"]
    assert status is Status.CANCELLED


# --- starts -----------------------------------------------------------------------------------------------------------


async def test_a_start_rides_with_the_next_batch(autojump_clock) -> None:
    """It gets one of its own only when none comes within its time."""
    async with at_work() as desk:
        await desk.add("a", "b")
        first, second = await desk.claim(2)
        before = len(desk.store.batches)
        desk.ledger.note_start(Start(first.seq, first.claim, 1, NOW))
        await trio.sleep(START_DELAY / 2)
        waiting = await desk.status("a")
        await desk.add("c")
        rode = await desk.status("a")
        desk.ledger.note_start(Start(second.seq, second.claim, 1, NOW))
        await trio.sleep(START_DELAY * 1.5)
        alone = await desk.status("b")

    assert (waiting, rode, alone) == (Status.QUEUED, Status.RUNNING, Status.RUNNING)
    assert sizes(desk)[before:] == [(1, 0, 1), (0, 0, 1)]


async def test_the_start_of_an_attempt_that_is_over_is_not_written(autojump_clock) -> None:
    """The outcome says it all."""
    async with at_work() as desk:
        await desk.add("a")
        (job,) = await desk.claim()
        desk.ledger.note_start(Start(job.seq, job.claim, 1, NOW))
        desk.ledger.settle(settlement(job))
        await desk.ledger.flushed()
        status = await desk.status()

    assert status is Status.DONE
    assert sum(starts for _, _, starts in sizes(desk)) == 0


async def test_a_start_for_sure_is_stored_when_it_returns(autojump_clock) -> None:
    """And tells whether the job is held still."""
    async with at_work() as desk:
        await desk.add("a")
        (job,) = await desk.claim()
        held = await desk.ledger.start(Start(job.seq, job.claim, 1, NOW))
        status = await desk.status()
        late = await desk.ledger.start(Start(job.seq, job.claim - 1, 1, NOW))

    assert (held, status, late) == (True, Status.RUNNING, False)
    assert desk.ledger.stale == 1


async def test_a_late_write_is_counted_and_told(autojump_clock) -> None:
    """It changes nothing, and whoever runs that attempt learns of it; who watches the job hears nothing."""
    async with at_work() as desk:
        await desk.add("a")
        (job,) = await desk.claim()
        (attempt,) = desk.still_held
        attempt.taken = True
        await desk.store.exchange(Batch(node="n1", now=NOW, settlements=[settlement(job, Status.QUEUED)]))
        desk.ledger.look()
        (newer,) = await desk.claim()
        with desk.events.watch("a") as watch, trio.move_on_after(10) as waiting:
            late = await desk.ledger.start(Start(job.seq, job.claim, 1, NOW))
            reason = attempt.reason
            desk.ledger.settle(settlement(job))
            await watch.ended()
        status = await desk.status()

    assert status is Status.QUEUED
    assert newer.claim == job.claim + 1
    assert (late, reason, desk.ledger.stale, waiting.cancelled_caught) == (False, "lease", 2, True)


# --- a store that cannot write ----------------------------------------------------------------------------------------


async def test_while_the_store_cannot_write_adds_are_refused(autojump_clock) -> None:
    """At once, and none of them is stored later behind the asker's back."""
    async with at_work(errors=1) as desk:
        desk.store.broken = True
        with pytest.raises(StoreUnavailable, match="disk full"):
            await desk.add("a")
        trouble, arriving = desk.ledger.trouble, desk.ledger.arriving
        desk.store.broken = False
        await desk.add("b")
        await desk.ledger.flushed()

        assert (trouble, arriving) == ("disk full", 0)
        assert desk.ledger.trouble is None
        assert await desk.status("a") is None
        assert await desk.status("b") is Status.QUEUED


async def test_outcomes_are_kept_until_the_store_can_write(autojump_clock) -> None:
    """However long that takes, and in order; starts that are not over are kept with them."""
    async with at_work(errors=1) as desk:
        await desk.add("a", "b", "c")
        first, second, third = await desk.claim(3)
        desk.store.broken = True
        desk.ledger.note_start(Start(first.seq, first.claim, 1, NOW))
        desk.ledger.note_start(Start(second.seq, second.claim, 1, NOW))
        desk.ledger.settle(settlement(third))
        await trio.sleep(1000)
        desk.ledger.settle(settlement(first))
        await trio.sleep(1000)
        still = [await desk.status(job_id) for job_id in "abc"]
        desk.store.broken = False
        await desk.ledger.flushed()
        written = [await desk.status(job_id) for job_id in "abc"]

    assert still == [Status.QUEUED] * 3
    assert written == [Status.DONE, Status.RUNNING, Status.DONE]
    pause = min(LONGEST_PAUSE, 15 / 6)
    assert 2000 / pause <= desk.store.refused < 2000 / pause + 10


async def test_a_wish_for_jobs_stands_while_the_store_cannot_write(autojump_clock) -> None:
    """And is granted afterwards, without being asked again."""
    async with at_work(errors=1) as desk:
        await desk.add("a")
        desk.store.broken = True
        desk.asking.start_soon(desk.claim)
        await trio.sleep(100)
        nothing = list(desk.held)
        desk.store.broken = False
        await trio.sleep(LONGEST_PAUSE)

    assert nothing == []
    assert [job.id for job in desk.held] == ["a"]


async def test_trouble_is_logged_once_and_its_end_too(autojump_clock) -> None:
    """Not at every try."""
    with capture_logs() as log:
        async with trio.open_nursery() as keepers:
            desk = Desk(FaultyStore(), keepers)
            keepers.start_soon(desk.committer.run)
            await desk.ledger.flushed()
            desk.store.broken = True
            desk.ledger.look()
            await trio.sleep(100)
            desk.store.broken = False
            await trio.sleep(LONGEST_PAUSE)
            keepers.cancel_scope.cancel()

    assert [(line["log_level"], line["event"]) for line in log] == [
        ("error", "the store cannot write: outcomes are kept and retried"),
        ("info", "the store can write again"),
    ]


async def test_a_renewal_is_refused_while_the_store_cannot_write(autojump_clock) -> None:
    """The lease tries again by itself, since only it knows how long there is time."""
    async with at_work(errors=1) as desk:
        kept = await desk.ledger.renew()
        desk.store.broken = True
        with pytest.raises(StoreUnavailable):
            await desk.ledger.renew()
        desk.store.broken = False
        await desk.store.leave("n1")
        lost = await desk.ledger.renew()

    assert (kept, lost) == (True, False)


async def test_everybody_who_waits_for_a_flush_is_told(autojump_clock) -> None:
    """Not just the last one who asked."""
    async with at_work() as desk:
        desk.store.before = trio.Event()
        desk.ledger.look()
        with trio.fail_after(10):
            async with trio.open_nursery() as waiting:
                for _ in range(3):
                    waiting.start_soon(desk.ledger.flushed)
                await turns()
                desk.store.before.set()

    assert desk.ledger.commits == 2


# --- locks of other programs ------------------------------------------------------------------------------------------


class LockedStore(FaultyStore):
    """A store in which another program holds locks: on rows, or on what every write needs."""

    def __init__(self) -> None:
        super().__init__()
        self.seqs: set[int] = set()
        self.everything: TablesLocked | None = None

    async def exchange(self, batch: Batch) -> Receipts:
        if self.everything is not None:
            raise self.everything
        fences = [
            *((one.seq, one.claim) for one in batch.starts),
            *((one.seq, one.claim) for one in batch.settlements),
        ]
        locked = frozenset(fence for fence in fences if fence[0] in self.seqs)
        rest = msgspec.structs.replace(
            batch,
            starts=[one for one in batch.starts if one.seq not in self.seqs],
            settlements=[one for one in batch.settlements if one.seq not in self.seqs],
        )
        return msgspec.structs.replace(await super().exchange(rest), locked=locked)


async def test_an_outcome_whose_row_is_locked_is_written_when_it_is_not(autojump_clock) -> None:
    """Tried again once a second; others are written meanwhile, and who waits for the end is told then."""
    store = LockedStore()
    async with at_work(store=store) as desk:
        await desk.add("a", "b")
        first, second = await desk.claim(2)
        store.seqs = {first.seq}
        with desk.events.watch("a") as watch:
            desk.ledger.settle(settlement(first))
            desk.ledger.settle(settlement(second))
            await trio.sleep(10)
            before = (await desk.status("a"), await desk.status("b"), watch.over)
            tries = len(store.batches)
            store.seqs = set()
            await trio.sleep(LOCKED_DELAY + 0.1)

            assert before == (Status.QUEUED, Status.DONE, False)
            assert tries < 15
            assert await desk.status("a") is Status.DONE
            assert watch.over


async def test_a_start_whose_row_is_locked_is_refused_or_noted_later(autojump_clock) -> None:
    """Refused where somebody waits for it, so that the job goes back; else tried again until the attempt is over."""
    store = LockedStore()
    async with at_work(store=store) as desk:
        await desk.add("a", "b")
        first, second = await desk.claim(2)
        store.seqs = {first.seq, second.seq}
        with pytest.raises(StoreUnavailable, match="locked"):
            await desk.ledger.start(Start(first.seq, 1, 1, NOW))
        desk.ledger.note_start(Start(first.seq, 1, 1, NOW))
        desk.ledger.note_start(Start(second.seq, 1, 1, NOW))
        await trio.sleep(5)
        desk.ledger.settle(settlement(second))
        store.seqs = set()
        await trio.sleep(LOCKED_DELAY + 0.1)

        assert await desk.status("a") is Status.RUNNING
        assert await desk.status("b") is Status.DONE


@pytest.mark.parametrize("lost", [False, True])
async def test_a_renewal_has_its_answer_though_everything_is_locked(autojump_clock, lost) -> None:
    """What else was handed in is refused or kept."""
    store = LockedStore()
    async with at_work(errors=1, store=store) as desk:
        store.everything = TablesLocked("locked", lease_lost=lost)
        kept = await desk.ledger.renew()
        with pytest.raises(StoreUnavailable, match="locked"):
            await desk.add("a")
        store.everything = None

    assert kept is not lost
