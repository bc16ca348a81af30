"""What nodes on one PostgreSQL tell one another, and what happens when nothing is told."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
import trio
from structlog.testing import capture_logs

from jobpipe.job import Outcome, Status
from jobpipe.schedules import Spec
from jobpipe.store.base import Batch, ClaimRequest, Filter, Notification, Share
from jobpipe.store.postgres import PostgresStore, open_postgres
from jobpipe.store.postgres.listening import APART, Stream
from jobpipe.store.postgres.notifications import LONGEST, ended_words, news
from tests.api.client import open_door
from tests.store.server import ask, server_url, with_query
from tests.store.test_contract import KINDS, LATER, NOW, Node, add, get, new_job, wish

LOOK, MISSED = Notification("look"), Notification("missed")


class Listener:
    """A node that listens."""

    def __init__(self, store: PostgresStore, stream: AsyncIterator[Notification], name: str) -> None:
        self.store, self._stream = store, stream
        self.node = Node(store, name)

    async def next(self) -> Notification:
        with trio.fail_after(4):  # sooner than anybody looks by himself
            return await anext(self._stream)


@asynccontextmanager
async def listening(schema: str, name: str) -> AsyncIterator[Listener]:
    """A node that has joined and listens; what it is told at the start is taken."""
    async with open_postgres(with_query(server_url(), schema=schema)) as store, store.changes() as stream:
        listener = Listener(store, stream, name)
        await listener.node.join(lease_until=NOW + 100)
        assert await listener.next() == MISSED
        assert store.listening
        yield listener


@pytest.fixture
async def pair(schema: str) -> AsyncIterator[tuple[Listener, Listener]]:
    """Two nodes."""
    async with listening(schema, "one") as one, listening(schema, "other") as other:
        yield one, other


async def silence(schema: str, *listeners: Listener) -> None:
    """Nothing more was told: the next thing that each hears is this."""
    ask("select pg_notify(%s, 'ended nothing')", f"jobpipe {schema}")
    for listener in listeners:
        assert await listener.next() == Notification("ended", id="nothing")


async def test_a_hungry_node_is_told_of_jobs_that_another_one_leaves(pair: Any, schema: str) -> None:
    """Within milliseconds, and without a poll."""
    one, other = pair
    assert not await other.node.claim(5)
    await add(one.store, new_job())

    assert await other.next() == LOOK
    assert [job.id for job in await other.node.claim(5)] == ["a"]


async def test_a_node_is_told_of_a_schedule_that_another_one_changes(pair: Any, schema: str) -> None:
    """Also when it is resumed. That it fires no more, nobody needs to know."""
    one, other = pair
    for _ in range(2):
        await one.store.put_schedule("a", Spec(every=60), new_job(), NOW)
    assert await other.next() == Notification("schedules")
    await one.store.pause_schedule("a", None)
    await one.store.resume_schedule("a", NOW)
    assert await other.next() == Notification("schedules")
    await one.store.delete_schedule("a")

    assert await one.next() == Notification("schedules")  # equal ones are one
    await silence(schema, one, other)


async def test_a_node_that_has_no_room_is_not_told(pair: Any, schema: str) -> None:
    """Nor is one told of jobs that the other one took at once."""
    one, other = pair
    await add(one.store, new_job("a"))
    await other.node.claim(1)
    await add(one.store, new_job("b"))
    await silence(schema, one, other)


async def test_a_job_that_its_own_node_takes_wakes_nobody(pair: Any, schema: str) -> None:
    """Notifications cost, and this one would be for nothing."""
    one, other = pair
    assert not await other.node.claim(5)
    receipts = await one.node.exchange(adds=[_add(new_job())], claim=5)

    assert len(receipts.claimed) == 1
    await silence(schema, other)


def _add(*jobs: Any) -> Any:
    from jobpipe.store.base import Add  # noqa: PLC0415 - the only use

    return Add(jobs)


async def test_a_node_leaves_what_it_does_not_serve_to_those_that_do(pair: Any, schema: str) -> None:
    """Though it is idle itself."""
    one, other = pair
    for listener, kind in ((one, "echo"), (other, "demo")):
        listener.node.kinds = frozenset({kind})
        await listener.node.join(lease_until=NOW + 100)
        assert not await listener.node.claim(5)
    await one.node.exchange(adds=[_add(new_job("a"))], claim=5)
    await silence(schema, other)
    await one.node.exchange(adds=[_add(new_job("b", kind="demo"))], claim=5)

    assert await other.next() == LOOK


def of(limit: int, *queues: str) -> Any:
    """A claim of these queues."""
    return [ClaimRequest(limit=limit, kinds=KINDS, queues=[Share(queue, limit) for queue in queues])]


async def exchange(listener: Listener, *jobs: Any, claims: Any) -> Sequence[str]:
    batch = Batch(node=listener.node.name, now=NOW, adds=[_add(*jobs)] if jobs else [], claims=claims)
    return [job.id for job in (await listener.store.exchange(batch)).claimed]


async def test_a_node_is_woken_for_the_queues_that_it_lacks_jobs_of(pair: Any, schema: str) -> None:
    """And no other ones, whether the other node takes from all queues, or looked for jobs of its own in vain."""
    one, other = pair
    assert not await exchange(other, claims=of(5, "mail", "sms"))
    await add(one.store, new_job("a", queue="reports"))
    assert await exchange(one, new_job("b", queue="reports"), claims=of(1, "reports")) == ["a"]
    await silence(schema, other)
    await add(one.store, new_job("c", queue="sms"))
    assert await other.next() == LOOK
    assert await exchange(other, claims=of(5, "mail", "sms")) == ["c"]
    assert not await exchange(one, new_job("d", queue="mail"), claims=of(5, "other"))

    assert await other.next() == LOOK


async def test_a_node_whose_reserved_worker_is_idle_is_not_woken_for_others(pair: Any, schema: str) -> None:
    """Until another of its workers asks in vain."""
    one, other = pair
    assert not await exchange(other, claims=of(1, "mail"))
    await add(one.store, new_job("a"))
    await silence(schema, other)
    assert await exchange(other, claims=[*of(1, "mail"), *wish(2)]) == ["a"]
    await add(one.store, new_job("b"))

    assert await other.next() == LOOK


async def test_a_node_that_finds_nothing_in_its_queues_does_not_look_again(store: Any) -> None:
    """However much is ready elsewhere."""
    node = Node(store)
    await node.join()
    await add(store, new_job("a", queue="reports"))
    batch = Batch(node=node.name, now=NOW, claims=of(5, "mail"))

    assert [(await store.exchange(batch)).more_ready for _ in range(3)] == [False] * 3


async def test_a_node_that_takes_all_it_can_wakes_one_that_found_nothing(pair: Any, schema: str) -> None:
    """There may be more than it took: its claim locked some that the other one passed over."""
    one, other = pair
    await add(one.store, new_job("a"), new_job("b"))
    with psycopg.connect(server_url()) as busy:
        busy.execute(f"select from {schema}.live for update".encode())
        nothing = await other.node.exchange(claim=5)
        assert nothing.more_ready  # there are ready jobs, though it could not have them
        nothing_again = await other.node.claim(5)
    full = await one.node.claim(1)

    assert (list(nothing.claimed), list(nothing_again), len(full)) == ([], [], 1)
    assert await other.next() == LOOK
    assert len(await other.node.claim(5)) == 1


async def test_a_node_that_becomes_hungry_looks_once_more(schema: str) -> None:
    """For a job whose node asked who is hungry just before."""
    async with listening(schema, "one") as one:
        with psycopg.connect(server_url()) as adding:
            adding.execute(f"select {schema}.enqueue('echo')".encode())
            adding.execute(f"update {schema}.live set run_at = 0".encode())
            # The job is committed while this claim finds nothing: it becomes hungry, and is told to look.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.node.claim, 5)
                nursery.start_soon(trio.to_thread.run_sync, adding.commit)

        assert await one.next() == LOOK
        await one.node.claim(5)
        assert (await one.store.queues())[0].counts


@pytest.mark.parametrize(
    "act", ["promoted", "retried", "handed back", "resumed", "called", "left", "rescued"]
)
async def test_whatever_makes_a_job_ready_wakes_a_hungry_node(pair: Any, schema: str, act: str) -> None:
    """Not only an add."""
    one, other = pair
    await add(one.store, new_job(), new_job("later", run_at=NOW + 9))
    claimed = await one.node.take()
    if act == "retried":
        await one.node.settle(claimed, Outcome.FAIL)
    assert not await other.node.claim(5)
    match act:
        case "promoted":
            await add(one.store, now=NOW + 9)
        case "retried":
            await one.store.retry(["a"], NOW)
        case "handed back":
            await one.node.settle(claimed, None)
        case "resumed":
            await one.store.resume("default")
        case "called":
            ask(f"select {schema}.enqueue('echo')")
        case "left":
            await one.store.leave("one")
        case "rescued":
            await one.store.leave("one")
            assert await other.next() == LOOK
            assert await one.store.rescue("third", NOW)

    assert await other.next() == LOOK


async def test_a_pause_reaches_every_node(pair: Any, schema: str) -> None:
    """As a reason to look which queues are paused."""
    one, other = pair
    await one.store.pause("b")
    await other.store.pause("a")
    heard = [await one.next(), await other.next()]
    paused = await one.store.paused()
    await other.store.resume("b")

    assert heard == [Notification("paused"), Notification("paused")]
    assert paused == ["a", "b"]
    assert await other.store.paused() == ["a"]


async def test_the_end_of_a_pause_wakes_whoever_lacks_jobs(pair: Any, schema: str) -> None:
    """Once: one node ends the pause, and the other one is told of the jobs that are left."""
    one, other = pair
    await add(one.store, *(new_job(f"j{number}", queue="mail") for number in range(3)))
    await one.store.pause("mail", None, LATER)
    assert not await other.node.claim(5)
    assert await other.next() == Notification("paused")
    taken = (await one.node.exchange(LATER, claim=1)).claimed

    assert await other.next() == LOOK
    assert len(taken) == 1
    assert len(await other.node.claim(5, LATER)) == 2
    assert await one.store.paused() == []


async def test_a_wish_to_cancel_reaches_every_node(pair: Any, schema: str) -> None:
    """As a reason to look: what was asked stands in the receipts of the next exchange."""
    one, other = pair
    await add(one.store, new_job("ü"), new_job("waits"))
    claimed = await one.node.take()
    await other.store.cancel(["ü", "waits"], NOW)

    assert await one.next() == await other.next() == LOOK
    await silence(schema, one, other)
    assert (await one.node.exchange()).cancelling == {(claimed.seq, 1)}
    assert (await other.node.exchange()).cancelling == frozenset()


async def test_the_end_of_a_job_is_told_when_somebody_watches_it(pair: Any, schema: str) -> None:
    """On any node, whoever runs it; to watch twice is to watch."""
    one, other = pair
    await add(one.store, new_job("a"), new_job("b"))
    for _ in range(2):
        await other.store.watch("a")
    for job in await one.node.claim(2):
        await one.node.settle(job, Outcome.DONE)

    assert await one.next() == await other.next() == Notification("ended", id="a")
    await silence(schema, one, other)


@pytest.mark.parametrize("end", ["cancelled", "cancelled held", "expired", "failed", "rescued", "deleted"])
async def test_a_watched_job_is_told_of_however_it_ends(pair: Any, schema: str, end: str) -> None:
    """Not only when it goes well."""
    one, other = pair
    await add(one.store, new_job(expires_at=NOW + 50, max_retries=0))
    await other.store.watch("a")
    claimed = None if end in {"cancelled", "expired", "deleted"} else await one.node.take()
    match end, claimed:
        case "cancelled", _:
            await one.store.cancel(["a"], NOW)
        case "expired", _:
            await add(one.store, now=LATER)
        case "deleted", _:
            await one.store.delete(["a"], NOW)
        case "failed", held if held:
            await one.node.settle(held, Outcome.FAIL)
        case "rescued", held if held:
            await one.node.start(held)
            await one.store.leave("one")
            assert [await one.next(), await other.next()] == [LOOK, LOOK]
            await other.store.rescue("other", NOW)
        case "cancelled held", held if held:
            await one.store.cancel(["a"], NOW)
            assert await other.next() == LOOK
            await one.node.settle(held, None)

    assert await other.next() == Notification("ended", id="a")


async def test_to_watch_a_job_that_is_not_there_or_has_ended_changes_nothing(pair: Any, schema: str) -> None:
    """Who waits reads the job afterwards."""
    one, _ = pair
    await add(one.store, new_job())
    await one.node.settle(await one.node.take(), Outcome.DONE)
    before = await get(one.store)
    for job_id in ("a", "absent", "\0"):
        await one.store.watch(job_id)

    assert await get(one.store) == before


async def test_a_node_that_lost_its_connection_listens_again(pair: Any, schema: str) -> None:
    """And is told that it may have missed something."""
    one, other = pair
    assert not await other.node.claim(5)
    ask(
        "select pg_terminate_backend(pid) from pg_stat_activity where query ilike 'listen %%' and query like %s",
        f"%{schema}%",
    )

    assert await other.next() == MISSED
    await add(one.store, new_job())
    assert await other.next() == LOOK


async def test_where_nothing_is_told_a_node_looks_every_few_seconds(
    schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a pooler, for example, no notification comes."""
    monkeypatch.setattr("jobpipe.store.postgres.listening.LOOK_EVERY", 0.01)
    async with (
        open_postgres(with_query(server_url(), schema=schema, listen="off")) as store,
        store.changes() as stream,
    ):
        told = [await anext(stream) for _ in range(3)]

        assert told == [MISSED] * 3
        assert not store.listening


async def test_a_listener_that_lags_is_told_to_look(schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than that news pile up."""
    monkeypatch.setattr("jobpipe.store.postgres.listening.WAITING_NEWS", 3)
    async with listening(schema, "one") as one:
        ask("select pg_notify(%s, 'ended a b c')", f"jobpipe {schema}")
        kept = [await one.next() for _ in range(3)]
        ask("select pg_notify(%s, 'ended a b c d')", f"jobpipe {schema}")

        assert kept == [Notification("ended", id=job_id) for job_id in "abc"]
        assert await one.next() == MISSED


async def test_what_is_told_while_the_connection_shows_that_it_lives_is_heard(
    schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it has to show it all the time, so whatever is told comes together with an answer."""
    monkeypatch.setattr("jobpipe.store.postgres.listening.PROBE_EVERY", 0)
    async with listening(schema, "one") as one:
        for number in range(20):
            ask("select pg_notify(%s, %s)", f"jobpipe {schema}", f"ended j{number}")
            assert await one.next() == Notification("ended", id=f"j{number}")


async def test_what_goes_wrong_while_a_node_listens_comes_out_as_itself(pair: Any) -> None:
    """Not in a group, though there are tasks that listen."""
    with pytest.raises(KeyError):
        async with pair[0].store.changes():
            raise KeyError


def test_many_ids_go_into_several_notifications() -> None:
    """Each is shorter than PostgreSQL allows."""
    ids = ["ü" * 200 + str(number) for number in range(50)]
    words = ended_words(ids)

    assert len(words) > 1
    assert max(len(word.encode()) for word in words) <= LONGEST
    assert [one.id for word in words for one in news(word) or ()] == ids


FORGED = [
    "",
    " ",
    "ended",
    "ended  a",
    "cancel 1 1 a",
    f"cancel {'9' * 5000} 1 x",
    "ready now",
    "READY",
    "\x01\x1b[31m\u202e",
    "x" * 7999,
    "{" * 7999,
]


@pytest.mark.parametrize("word", FORGED, ids=lambda word: word[:20])
def test_what_is_not_ours_says_nothing(word: str) -> None:
    """Whatever it looks like."""
    assert news(word) is None


async def test_forged_notifications_are_passed_over_with_a_line_in_the_log(schema: str) -> None:
    """A line a second at the most, however many come; what is told afterwards is heard."""
    async with listening(schema, "one") as one:
        with capture_logs() as log:
            for word in FORGED:
                ask("select pg_notify(%s, %s)", f"jobpipe {schema}", word)
            await silence(schema, one)

    told = [line for line in log if line["event"].startswith("ignored notifications")]
    assert 1 <= len(told) <= 2
    assert max(len(line["last"]) for line in told) <= 100


async def test_a_flood_of_notifications_is_told_as_few(schema: str) -> None:
    """So that it causes few looks at the store: ten thousand within a moment here."""
    async with listening(schema, "one") as one:
        ask("select pg_notify(%s, %s || n) from generate_series(1, 10000) n", f"jobpipe {schema}", "ready ")
        for _ in range(100):
            ask("select pg_notify(%s, 'ready')", f"jobpipe {schema}")
            ask("select pg_notify(%s, 'cancel')", f"jobpipe {schema}")
        ask("select pg_notify(%s, 'ended last')", f"jobpipe {schema}")
        heard = [await one.next()]
        while heard[-1] != Notification("ended", id="last"):
            heard.append(await one.next())

    assert set(heard[:-1]) == {LOOK}
    assert len(heard) < 200


async def test_equal_news_are_one_until_they_are_handed_on(autojump_clock: Any) -> None:
    """And then they wait until a little time has passed."""
    stream = Stream()
    for number in range(10_000):
        stream.put(LOOK)
        stream.put(Notification("ended", id=str(number % 3)))
    told = [await anext(stream) for _ in range(4)]
    began = trio.current_time()
    stream.put(LOOK)
    told.append(await anext(stream))
    waited = trio.current_time() - began

    assert told == [LOOK, *(Notification("ended", id=job_id) for job_id in "012"), LOOK]
    assert waited == pytest.approx(APART)


FLOOD = (
    "ready",
    "cancel",
    "missed",
    "ended a",
    "ended b c",
    "garbage {0}",
    "cancel {0} 1 a",
    "cancel 1 {0} a",
    "cancel 1 1 a",
    "ended a{0}",
)


async def test_forged_notifications_do_nothing_to_a_node_but_have_it_look(schema: str) -> None:
    """Its jobs run on, who waits goes on waiting, and ten thousand of them cost few exchanges."""
    async with open_postgres(with_query(server_url(), schema=schema)) as store, open_door(store) as door:
        await door.enqueue(id="a", kind="play", payload="hold")
        await door.stage.begun.wait()
        waited: list[Any] = []

        async def wait() -> None:
            waited.append(await door.get("/jobs/a?wait=60"))

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                while not door.node.events.has_listeners:  # noqa: ASYNC110 - nobody else is told
                    await trio.sleep(0.01)
                before, began = door.node.ledger.commits, trio.current_time()
                for word in FLOOD:
                    await trio.to_thread.run_sync(
                        ask,
                        "select pg_notify(%s, replace(%s, '{0}', n::text)) from generate_series(1, 1000) n",
                        f"jobpipe {schema}",
                        word,
                    )
                await door.enqueue(id="b", kind="play", payload="done")
                assert (await door.ended("b"))["status"] == "done"
                commits, seconds = door.node.ledger.commits - before, trio.current_time() - began
                still = [job.id for job in (await store.jobs(Filter(status=Status.RUNNING), 10, None)).jobs]
                early = list(waited)
                await door.post("/jobs/a/cancel")

    assert still == ["a"]
    assert not early
    assert waited[0].json()["status"] == "cancelled"
    assert commits < 300 + 200 * seconds


async def test_a_cancel_at_one_node_stops_the_job_at_another(schema: str) -> None:
    """The word says no more than that there is something to see."""
    url = with_query(server_url(), schema=schema)
    async with open_postgres(url) as store, open_postgres(url) as other, open_door(store) as door:
        await door.enqueue(id="a", kind="play", payload="hold")
        await door.stage.begun.wait()
        await door.node.ledger.flushed()
        await other.cancel(["a"], NOW)
        with trio.fail_after(4):  # sooner than any look without a word
            job = await door.ended("a")

    assert job["status"] == "cancelled"
