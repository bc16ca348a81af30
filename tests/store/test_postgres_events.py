"""What nodes on one PostgreSQL tell one another for those who listen to all jobs."""

import json
from typing import Any

import pytest
import trio

from jobpipe.api.events import ended_events, live_events
from jobpipe.engine.ends import Ending
from jobpipe.job import ENDED, Status
from jobpipe.store.base import EndPlace, Filter, Notification, Told
from jobpipe.store.matching import EventFilter
from jobpipe.store.postgres import open_postgres
from jobpipe.store.postgres.notifications import LONGEST, TOLD, news, tale_word
from tests.api.client import open_door
from tests.store.server import ask, server_url, with_query
from tests.store.test_contract import NOW, add, look, new_job
from tests.store.test_postgres_news import listening

ALL = EventFilter(Filter())


class Stream:
    """Reads a stream in a task of its own."""

    def __init__(self, events: Any) -> None:
        self.text, self._events = "", events

    async def run(self) -> None:
        async for part in self._events:
            self.text += part.decode()

    @property
    def events(self) -> list[tuple[str, Any]]:
        blocks = [block.splitlines() for block in self.text.split("\n\n")]
        named = [block for block in blocks if any(line.startswith("event: ") for line in block)]
        return [
            (block[-2].removeprefix("event: "), json.loads(block[-1].removeprefix("data: ")))
            for block in named
        ]

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(data["id"], data.get("status", name)) for name, data in self.events if name != "missed"]

    async def until(self, *wanted: tuple[str, str]) -> None:
        """Return when all of this was told."""
        with trio.fail_after(10):
            while not set(wanted) <= set(self.told):  # noqa: ASYNC110 - nobody else is told
                await trio.sleep(0.02)


def test_a_notification_holds_as_many_changes_as_fit() -> None:
    """And says how many there are more; what it holds is read as it was told."""
    changes = [("ü" * 150 + str(number), Status.DONE, NOW + number) for number in range(100)]
    word, told = tale_word('node "1" ü', 5, changes, 7)
    read = news(word) or ()

    assert len(word.encode()) <= LONGEST
    assert 0 < told < 100
    assert read[0] == Notification("told", id=changes[0][0], told=Told('node "1" ü', 5, Status.DONE, NOW))
    assert [one.id for one in read[:-1]] == [job_id for job_id, _, _ in changes[:told]]
    assert read[-1] == Notification("told", told=Told('node "1" ü', 5 + 100 + 7 - 1, None, 0.0))


@pytest.mark.parametrize(
    "tale",
    [
        "",
        "{}",
        "[]",
        '["n",1,0,[["a","done"]]]',
        '["n",1,0,[["a","exploded",1.0]]]',
        '["n",1,0,[["a","done",-1.0]]]',
        '["n",1,0,[["a","done",1e400]]]',
        '["n",1,0,[["","done",1.0]]]',
        '["n",-1,0,[]]',
        f'["n",{9 * 10**30},0,[]]',
        '["n",1,0,[["a","done",1.0,2]]]',
        '["n",1,0,[[["a"],"done",1.0]]]',
        "[" * 7000,
        "\x01\x1b[31m\u202e",
    ],
    ids=lambda tale: tale[:24],
)
def test_what_is_garbled_says_nothing(tale: str) -> None:
    assert news(f"{TOLD} {tale}") is None
    assert news(f"{TOLD}{tale} x") is None


async def test_a_node_tells_where_somebody_listens(schema: str) -> None:
    """A node that has left has nobody who listens."""
    async with listening(schema, "one") as one, listening(schema, "other") as other:
        before = await other.store.any_listening("other")
        await one.store.listen("one", listening=True)
        assert await other.next() == Notification("listeners")
        here, elsewhere = await one.store.any_listening("one"), await other.store.any_listening("other")
        await one.store.tell_others("one", 1, [("a", None, NOW)], 0)
        assert await other.next() == Notification("told", id="a", told=Told("one", 1, None, NOW))
        await one.store.leave("one")
        gone = await other.store.any_listening("other")

    assert (before, here, elsewhere, gone) == (False, False, True, False)


@pytest.mark.parametrize("damaged", [False, True])
async def test_jobs_that_expire_are_told_only_where_somebody_listens(schema: str, damaged: bool) -> None:
    """Also where a row cannot be written as it should, so that they are expired one by one."""
    async with listening(schema, "one") as one:
        for job_id, listens in (("a", False), ("b", True)):
            await one.store.listen("one", listening=listens)
            await one.next()
            await add(one.store, new_job(job_id, expires_at=NOW))
            if damaged:
                ask(
                    f"insert into {schema}.ended (seq, status, kind, queue, created_at, run_at, attempt, claim, "
                    "rescued, finished_at, size) "
                    "select seq, 'done', kind, queue, created_at, run_at, 0, 0, 0, created_at, 0 "
                    f"from {schema}.jobs where id = %s",
                    job_id,
                )
            receipts = await look(one.store)
            assert [change.id for change in receipts.changes] == ["b"] * listens


async def test_what_becomes_of_jobs_on_another_node_is_told(schema: str) -> None:
    """The lookups are this node's; and what is forged is not believed."""
    url = with_query(server_url(), schema=schema)
    async with (
        open_postgres(url) as store,
        open_postgres(url) as far,
        open_door(store, name="here") as here,
        open_door(far, name="there") as there,
        trio.open_nursery() as nursery,
    ):
        await _heard(here, there)
        live = Stream(live_events(here.node, ALL, None))
        nursery.start_soon(live.run)
        with trio.fail_after(10):
            while there.node.events.sink is None:  # noqa: ASYNC110 - nobody else is told
                await trio.sleep(0.02)
        forged = '["there",1,0,[["none","done",1.0]]]'
        await trio.to_thread.run_sync(ask, "select pg_notify(%s, %s)", f"jobpipe {schema}", f"told {forged}")
        await there.enqueue(id="a", delay=1000, tags=["x"])
        await live.until(("a", "scheduled"))
        await there.delete("/jobs/a")
        await live.until(("a", "deleted"))
        nursery.cancel_scope.cancel()

    assert ("none", "done") not in live.told
    assert live.events[-2 if live.events[-1][0] == "missed" else 0][1]["id"] == "a"


async def test_ends_on_every_node_are_told_by_each(schema: str) -> None:
    """Each once, from two streams, whichever node runs the job."""
    url = with_query(server_url(), schema=schema)
    ids = [f"j{number}" for number in range(200)]
    async with (
        open_postgres(url) as store,
        open_postgres(url) as far,
        open_door(store, name="here") as here,
        open_door(far, name="there") as there,
        trio.open_nursery() as nursery,
    ):
        streams = []
        for door in (here, there):
            reader = Ending(door.store, door.node.clock, sorted(ENDED), lease=15.0, troubled=lambda: False)
            streams.append(Stream(ended_events(door.node, reader, ALL, EndPlace(0.0, 0), None)))
            nursery.start_soon(streams[-1].run)
        for door, part in ((here, ids[::2]), (there, ids[1::2])):
            await door.post("/enqueue/bulk", json=[{"id": job_id} for job_id in part])
        for stream in streams:
            await stream.until(*((job_id, "done") for job_id in ids))
        await trio.sleep(1.5)
        nursery.cancel_scope.cancel()

    assert [sorted(stream.told) for stream in streams] == [sorted((job_id, "done") for job_id in ids)] * 2


async def _heard(*doors: Any) -> None:
    """Return when the nodes hear one another."""
    with trio.fail_after(10):
        while not all(door.store.listening for door in doors):  # noqa: ASYNC110 - nobody else is told
            await trio.sleep(0.02)
