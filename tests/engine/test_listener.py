"""What other nodes do, told by a store that nodes share: played here by a memory store with a second user."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from jobpipe.errors import StoreUnavailable
from jobpipe.job import Status
from jobpipe.store.base import Add, Batch, Notification, Receipts, SharedStore, Untold
from jobpipe.store.memory import MemoryStore
from tests.engine.conftest import NOW, new_job, running


class Shared(MemoryStore):
    """A memory store that another node uses as well, which is the test."""

    clock_offset = 0.0
    listening = True

    def __init__(self) -> None:
        super().__init__()
        self.tell, self._news = trio.open_memory_channel[Notification](100)
        self.watched: list[str] = []
        self.cancel_when_claimed: str | None = None
        self.listens: list[bool] = []
        """what the node has said of those who listen"""
        self.elsewhere = False
        """whether somebody listens on the other node"""
        self.told: list[tuple[int, list[tuple[str, str | None]], int]] = []
        """what it has told"""
        self.questions: list[tuple[str, int, str]] = []
        """the looks that the node has asked of others (job, claim, node)"""
        self.asked: list[tuple[str, int]] = []
        """those that it is asked for itself"""
        self.answers: dict[tuple[str, int], bytes] = {}
        self.wishes: frozenset[tuple[int, int]] = frozenset()
        """to cancel held jobs"""

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[AsyncIterator[Notification]]:
        yield self._news

    async def paused(self) -> list[str]:
        return [queue.name for queue in await self.queues() if queue.paused]

    async def watch(self, job_id: str) -> None:
        self.watched.append(job_id)

    async def listen(self, node: str, *, listening: bool) -> None:
        self.listens.append(listening)

    async def any_listening(self, node: str) -> bool:
        return self.elsewhere

    async def tell_others(self, node: str, first: int, changes: Sequence[Untold], more: int) -> int:
        self.told.append((first, [(job_id, status) for job_id, status, _ in changes], more))
        return len(changes)

    async def ask_look(self, job_id: str, claim: int, node: str, now: float) -> bool:
        self.questions.append((job_id, claim, node))
        return node != "dead"

    async def look(self, job_id: str, claim: int) -> bytes | None:
        return self.answers.get((job_id, claim))

    async def asked_looks(self, node: str) -> Sequence[tuple[str, int]]:
        return list(self.asked)

    async def answer_look(self, job_id: str, claim: int, node: str, answer: bytes) -> None:
        self.asked.remove((job_id, claim))
        self.answers[job_id, claim] = answer

    def renew_from_thread(self, node: str, now: float, lease_until: float) -> bool:
        raise NotImplementedError  # no test here blocks the event loop

    async def exchange(self, batch: Batch) -> Receipts:
        receipts = await super().exchange(batch)
        if self.wishes:
            return msgspec.structs.replace(receipts, cancelling=self.wishes)
        taken = [job for job in receipts.claimed if job.id == self.cancel_when_claimed]
        if not taken:
            return receipts
        await self.cancel([taken[0].id], batch.now)
        return msgspec.structs.replace(receipts, cancelling=frozenset({(taken[0].seq, taken[0].claim)}))


class Away(Shared):
    """One that cannot be reached at times."""

    away = False

    async def exchange(self, batch: Batch) -> Receipts:
        if self.away:
            raise StoreUnavailable("away")
        return await super().exchange(batch)


@pytest.fixture
def shared() -> Shared:
    return Shared()


def test_what_is_played_here_is_a_shared_store(shared) -> None:
    """And the store of one process is none."""
    assert isinstance(shared, SharedStore)
    assert not isinstance(MemoryStore(), SharedStore)


async def test_a_job_that_another_node_has_added_starts_when_that_is_told(autojump_clock, shared) -> None:
    """At once: nothing else makes the node look."""
    async with running(shared) as rig:
        await shared.exchange(Batch(node="n2", now=NOW, adds=[Add([new_job()])]))
        await trio.sleep(1)  # less than a lease is renewed in
        before = len(rig.actor.runs)
        shared.tell.send_nowait(Notification("look"))
        job = await rig.ended("a")

    assert before == 0
    assert job.status is Status.DONE


async def test_a_job_that_was_cancelled_at_another_node_stops_here(autojump_clock, shared) -> None:
    async with running(shared) as rig:
        await rig.enqueue("a", ("sleep", 1000))
        await rig.actor.begun()
        (attempt,) = rig.node.held
        await shared.cancel(["a"], NOW)
        shared.wishes = frozenset({(attempt.job.seq, attempt.job.claim)})
        shared.tell.send_nowait(Notification("look"))
        job = await rig.ended("a")
        ended = trio.current_time()

    assert job.status is Status.CANCELLED
    assert ended < 1


@pytest.mark.parametrize("news", ["paused", "missed"])
async def test_jobs_of_a_queue_that_was_paused_at_another_node_go_back(autojump_clock, shared, news) -> None:
    """Those that have not begun: within a moment, and other queues go on."""
    async with running(shared, workers=1, queue_size=8) as rig:
        await rig.add(new_job("running", ("sleep", 5)), *(new_job(str(number)) for number in range(4)))
        await rig.enqueue("other", queue="other")
        await rig.actor.begun()
        await shared.pause("default")
        shared.tell.send_nowait(Notification(news))
        await trio.sleep(100)
        begun, waiting = rig.actor.order(), [await rig.job(str(number)) for number in range(4)]
        await shared.resume("default")
        shared.tell.send_nowait(Notification("look"))
        for number in range(4):
            await rig.ended(str(number))

    assert begun == ["running", "other"]
    assert [(job.status, job.state.attempt) for job in waiting] == [(Status.QUEUED, 0)] * 4


async def test_a_pause_that_nobody_made_stops_nothing(autojump_clock, shared) -> None:
    """Anyone may tell of one."""
    async with running(shared, workers=1) as rig:
        await rig.add(*(new_job(str(number), ("sleep", 1)) for number in range(4)))
        await rig.actor.begun()
        shared.tell.send_nowait(Notification("paused", "default"))
        jobs = [await rig.ended(str(number)) for number in range(4)]

    assert {job.status for job in jobs} == {Status.DONE}


async def test_what_the_store_does_not_say_stops_nothing(autojump_clock, shared) -> None:
    """Whoever tells of a cancel or an end: the job runs on, and who waits for it goes on waiting."""
    async with running(shared) as rig:
        await rig.enqueue("a", ("sleep", 10))
        await rig.actor.begun()
        with rig.node.events.watch("a") as watch:
            for what in ("look", "missed", "ended"):
                shared.tell.send_nowait(Notification(what, "a"))
            await trio.sleep(1)
            over = watch.over
        job = await rig.ended("a")

    assert not over
    assert job.status is Status.DONE


async def test_a_cancel_between_a_claim_and_its_answer_is_not_lost(autojump_clock, shared) -> None:
    """Nobody here knew of the job when it was told; so the receipts tell it again."""
    shared.cancel_when_claimed = "a"
    async with running(shared) as rig:
        await rig.enqueue("a", ("sleep", 1000))
        await rig.enqueue("b")
        jobs = [await rig.ended(job_id) for job_id in "ab"]

    assert [job.status for job in jobs] == [Status.CANCELLED, Status.DONE]
    assert rig.actor.order() == ["b"]


async def test_who_waits_here_is_woken_by_an_end_elsewhere(autojump_clock, shared) -> None:
    async with running(shared) as rig:
        with rig.node.events.watch("a") as watch, trio.fail_after(10):
            await rig.node.listener.expect("a")
            shared.tell.send_nowait(Notification("ended", "a"))
            await watch.rechecked()

    assert shared.watched == ["a"]


async def test_what_was_told_while_nobody_listened_is_looked_for(autojump_clock, shared) -> None:
    """At once: ready jobs, ends that somebody waits for, wishes to cancel."""
    async with running(shared) as rig:
        await rig.enqueue("a", ("sleep", 1000))
        await rig.actor.begun()
        (attempt,) = rig.node.held
        await shared.cancel(["a"], NOW)
        shared.wishes = frozenset({(attempt.job.seq, attempt.job.claim)})
        await shared.exchange(Batch(node="n2", now=NOW, adds=[Add([new_job("b")])]))
        with rig.node.events.watch("elsewhere") as watch, trio.fail_after(1):
            shared.tell.send_nowait(Notification("missed"))
            await watch.rechecked()
        jobs = [await rig.ended(job_id) for job_id in "ab"]
        ended = trio.current_time()

    assert [job.status for job in jobs] == [Status.CANCELLED, Status.DONE]
    assert ended < 1


async def test_what_cannot_be_looked_for_now_ends_nothing(autojump_clock) -> None:
    """While the store is away, there is more to be missed."""
    shared = Away()
    async with running(shared, expected=["the store cannot write"]) as rig:
        shared.away = True
        shared.tell.send_nowait(Notification("missed"))
        await trio.sleep(1)
        shared.away = False
        with rig.node.events.watch("a") as watch, trio.fail_after(10):
            shared.tell.send_nowait(Notification("ended", "a"))
            await watch.rechecked()


async def test_a_store_that_is_not_shared_has_no_news(autojump_clock) -> None:
    """Nobody need be asked, and nothing is amiss."""
    async with running() as rig:
        await rig.node.listener.expect("a")
        told = rig.node.listener.trouble()

    assert told is None


async def test_it_is_told_when_other_nodes_are_not_heard(autojump_clock, shared) -> None:
    """For `/health`."""
    async with running(shared) as rig:
        heard = rig.node.listener.trouble()
        shared.listening = False
        told = rig.node.listener.trouble()

    assert heard is None
    assert told is not None
