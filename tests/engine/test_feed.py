"""What becomes of all jobs: what is paid for it, what other nodes are told, and what they tell."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from jobpipe.engine import feed
from jobpipe.engine.feed import LINGER, Reader
from jobpipe.engine.ring import JobEvent, Missed
from jobpipe.errors import StoreUnavailable
from jobpipe.job import Status
from jobpipe.store.base import Notification, Summary, Told, Untold
from tests.engine.conftest import NOW, Rig, new_job, running
from tests.engine.test_listener import Shared


class Looking(Shared):
    """A store that counts what is looked up for events, and may not be able to tell others anything."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_up: list[str] = []
        self.mute = False

    async def summaries(self, ids: Sequence[str]) -> Sequence[Summary]:
        self.looked_up += ids
        return await super().summaries(ids)

    async def tell_others(self, node: str, first: int, changes: Sequence[Untold], more: int) -> int:
        told = await super().tell_others(node, first, changes, more)
        if self.mute:
            raise StoreUnavailable("away")
        return told


@pytest.fixture
def shared() -> Looking:
    return Looking()


@asynccontextmanager
async def reading(rig: Rig) -> AsyncIterator[Reader]:
    async with rig.node.feed.reading() as reader:
        yield reader


def later(rig: Rig, job_id: str) -> Any:
    """Store a job that waits for a long time."""
    return rig.add(new_job(job_id, created_at=rig.node.clock.now(), run_at=NOW + 1e6))


def seen(reader: Reader) -> list[Any]:
    """The ids that there are to read; None: something is missing."""
    found: list[Any] = []
    while part := reader.take():
        found += [one.id if isinstance(one, JobEvent) else None for one in part]
    return found


def tell(shared: Shared, job_id: str, number: int, node: str = "n2", status: Any = Status.QUEUED) -> None:
    shared.tell.send_nowait(Notification("told", id=job_id, told=Told(node, number, status, NOW)))


async def test_nothing_is_paid_while_nobody_listens(autojump_clock: Any, shared: Looking) -> None:
    """Not a lookup, not a word, not an object: nothing is told of what is stored."""
    async with running(shared) as rig:
        await rig.enqueue("a")
        await rig.ended("a")
        await trio.sleep(100)
        waits = rig.node.feed.__dict__

        assert rig.node.events.sink is None
        assert (shared.looked_up, shared.told, shared.listens) == ([], [], [])
        assert waits["_own"] == waits["_heard"] == []
        assert rig.node.feed.ring.end == 0


async def test_others_know_whether_somebody_listens_here(autojump_clock: Any, shared: Looking) -> None:
    """Before the first event is read, and for a while after the last reader has gone."""
    async with running(shared) as rig:
        async with reading(rig), reading(rig):
            assert shared.listens == [True]
        await trio.sleep(LINGER / 2)
        async with reading(rig):
            pass
        await trio.sleep(LINGER - 1)
        assert shared.listens == [True]
        await trio.sleep(2)
        assert shared.listens == [True, False]


async def test_it_says_so_again_now_and_then(autojump_clock: Any, shared: Looking) -> None:
    """Its row may be a new one by then."""
    async with running(shared) as rig, reading(rig):
        await trio.sleep(100)
        shared.tell.send_nowait(Notification("look"))
        await trio.sleep(1)

        assert shared.listens == [True, True]


async def test_what_other_nodes_tell_is_looked_up(autojump_clock: Any, shared: Looking) -> None:
    """And not believed: a job that is not there is no event. What this node tells itself, it knows."""
    async with running(shared) as rig:
        await later(rig, "a")
        async with reading(rig) as reader:
            tell(shared, "a", 1)
            tell(shared, "none", 2)
            tell(shared, "a", 3, node="n1")
            tell(shared, "a", 3, status=None)
            await trio.sleep(1)
            events = [one for one in reader.take() if isinstance(one, JobEvent)]

        assert [(one.id, one.status) for one in events] == [("a", Status.QUEUED), ("a", Status.SCHEDULED)]


async def test_what_other_nodes_leave_out_is_missed(autojump_clock: Any, shared: Looking) -> None:
    """Gaps in their numbers, and what they say that they have left out; once a second at the most."""
    async with running(shared) as rig:
        await later(rig, "a")
        async with reading(rig) as reader:
            for number in (5, 6, 9, 12):
                tell(shared, "a", number)
            await trio.sleep(0.5)
            first = seen(reader)
            tell(shared, "", 20)
            tell(shared, "a", 21)
            await trio.sleep(2)

        assert sorted(map(str, first)) == ["None", "a", "a", "a", "a"]
        assert seen(reader) == ["a", None]


async def test_news_that_were_lost_are_missed(autojump_clock: Any, shared: Looking) -> None:
    async with running(shared) as rig, reading(rig) as reader:
        await later(rig, "a")
        await trio.sleep(1)
        shared.tell.send_nowait(Notification("missed"))
        await trio.sleep(2)
        entries = [*reader.take()]

    assert isinstance(entries[0], JobEvent)
    assert isinstance(entries[1], Missed)
    assert entries[1].since == entries[0].at


async def test_others_are_told_while_somebody_listens_there(autojump_clock: Any, shared: Looking) -> None:
    """As many as go into a notification, ten times a second; and how many more there were."""
    shared.elsewhere = True
    async with running(shared) as rig:
        shared.tell.send_nowait(Notification("listeners"))
        await trio.sleep(1)
        await rig.add(*[new_job(f"j{number}", created_at=NOW, run_at=NOW + 1e6) for number in range(150)])
        await trio.sleep(1)
        await later(rig, "a")
        await trio.sleep(1)
        shared.elsewhere = False
        shared.tell.send_nowait(Notification("listeners"))
        await trio.sleep(1)
        await later(rig, "b")
        await trio.sleep(1)

    (first, many, more), (second, one, rest) = shared.told
    assert (first, len(many), more) == (1, feed.TOLD, 150 - feed.TOLD)
    assert (second, one, rest) == (151, [("a", "scheduled")], 0)
    assert shared.looked_up == []


async def test_a_node_that_dies_while_somebody_listens_there_is_told_no_more(
    autojump_clock: Any, shared: Looking
) -> None:
    """It says nothing any more: the others ask now and then."""
    shared.elsewhere = True
    async with running(shared) as rig:
        shared.tell.send_nowait(Notification("listeners"))
        await trio.sleep(10)
        shared.elsewhere = False
        shared.tell.send_nowait(Notification("look"))
        await trio.sleep(1)

        assert rig.node.events.sink is None


async def test_what_cannot_be_told_is_a_gap(autojump_clock: Any, shared: Looking) -> None:
    """And costs nothing else."""
    shared.elsewhere = shared.mute = True
    async with running(shared) as rig:
        shared.tell.send_nowait(Notification("listeners"))
        await trio.sleep(1)
        await later(rig, "a")
        await trio.sleep(1)
        shared.mute = False
        await later(rig, "b")
        await trio.sleep(1)

    assert [first for first, _, _ in shared.told] == [1, 2]


async def test_the_names_of_nodes_that_are_made_up_are_not_kept_for_ever(
    autojump_clock: Any, shared: Looking, monkeypatch: Any
) -> None:
    monkeypatch.setattr(feed, "NODES", 10)
    async with running(shared) as rig, reading(rig):
        for number in range(50):
            tell(shared, "none", 1, node=f"forged-{number}")
        await trio.sleep(1)

        assert len(rig.node.feed._heard_to) <= 10


async def test_what_could_not_be_said_is_said_later(
    autojump_clock: Any, shared: Looking, monkeypatch: Any
) -> None:
    """That nobody listens any more, or that somebody does."""
    said, listen = list[bool](), shared.listen

    async def once(node: str, *, listening: bool) -> None:
        said.append(listening)
        if len(said) == 2:
            raise StoreUnavailable("away")
        await listen(node, listening=listening)

    monkeypatch.setattr(shared, "listen", once)
    async with running(shared) as rig:
        async with reading(rig):
            pass
        await trio.sleep(LINGER + 1)
        for _ in range(2):
            shared.tell.send_nowait(Notification("look"))
            await trio.sleep(20)

        assert said == [True, False, False]
        assert shared.listens == [True, False]


async def test_a_node_that_ends_waits_for_a_lookup_under_way(autojump_clock: Any, monkeypatch: Any) -> None:
    """Else the end of its last job, which woke the feed at once, would not be told."""
    shared = Looking()
    look = shared.summaries

    async def slowly(ids: Sequence[str]) -> Sequence[Summary]:
        await trio.sleep(0.5)
        return await look(ids)

    monkeypatch.setattr(shared, "summaries", slowly)
    async with running(shared) as rig, reading(rig) as reader:
        await later(rig, "a")
        await trio.sleep(0.1)
        await rig.drained()

        assert seen(reader) == ["a"]
