"""What handlers enqueue: with the end of their attempt, or at once; checked in the call, never doubled, never lost."""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import trio

from jobpipe.clock import VirtualClock
from jobpipe.engine import outbox
from jobpipe.engine.unforeseen import UNFORESEEN
from jobpipe.errors import EnqueueError
from jobpipe.fingerprints import marked
from jobpipe.handlers.context import Context
from jobpipe.handlers.exceptions import Fail, Retry, Snooze
from jobpipe.handlers.registry import Handler
from jobpipe.job import Backoff, JobError, Options, Status, Unique
from jobpipe.store.base import QueueSettings
from jobpipe.store.memory import MemoryStore
from jobpipe.store.verbs.bringing import NOTHING_STORED
from tests.engine.conftest import NOW, FaultyStore, Rig, new_job, running, turns

Play = Callable[[Context], Any]
ACT = ["done"]
"""A payload of the kind `act`."""
UNIQUE = Unique("k", ("kind",), ("queued", "running"), None, "return")


def handler(play: Play, *, is_async: bool = True) -> Handler:
    """The kind `play`, whose function is given the context alone."""
    if is_async:

        async def function(payload: Any, context: Context) -> Any:
            return await play(context)
    else:

        def function(payload: Any, context: Context) -> Any:  # type: ignore[misc] # a plain one
            return play(context)

    return Handler(kind="play", function=function, is_async=is_async, takes_context=True, payload_type=Any)


async def ids(rig: Rig) -> set[str]:
    return set(await all_ids(rig.store))


async def all_ids(store: Any) -> list[str]:
    return [row[0] for row in store._db.execute("select id from jobs order by seq")]


# --- with the end of the attempt --------------------------------------------------------------------------------------


async def test_it_is_stored_with_the_end_of_the_attempt(autojump_clock) -> None:
    """And runs then; before, nobody sees it. The batch that ends the job has it."""
    store, seen = FaultyStore(), list[Any]()

    async def play(job: Context) -> None:
        seen.append(await job.enqueue("act", ACT, id="next", queue="other", priority=7))
        await trio.sleep(5)
        seen.append(await store.get("next"))

    async with running(store, handlers=[handler(play)]) as rig:
        await rig.enqueue(kind="play")
        await rig.ended()
        next_one = await rig.ended("next")
    batches = [one for batch in store.batches for one in batch.settlements if one.jobs]

    assert seen == ["next", None]
    assert [[job.id for job in one.jobs] for one in batches] == [["next"]]
    assert (next_one.status, next_one.asked.queue, next_one.asked.priority) == (Status.DONE, "other", 7)


@pytest.mark.parametrize(
    "ends", [Retry("again", after=1), Snooze(1), ValueError("no luck"), RuntimeError("hang"), Fail("no")]
)
async def test_nothing_is_stored_where_the_attempt_does_not_end_well(autojump_clock, ends: Exception) -> None:
    """A retry enqueues nothing twice."""
    made = list[str]()

    async def play(job: Context) -> None:
        made.append(await job.enqueue("act", ACT))
        if len(made) < 3:
            raise ends

    async with running(handlers=[handler(play)]) as rig:
        await rig.enqueue(kind="play")
        await rig.ended()
        left = await ids(rig)

    assert left == ({"a"} if isinstance(ends, Fail) else {"a", made[-1]})


async def test_nothing_is_stored_where_the_attempt_is_stopped(autojump_clock) -> None:
    """By its timeout, or by a cancel."""

    async def play(job: Context) -> None:
        await job.enqueue("act", ACT, id=f"of-{job.id}")
        await trio.sleep_forever()

    async with running(handlers=[handler(play)], workers=2) as rig:
        await rig.enqueue("a", kind="play", max_retries=0, options=Options(timeout=1))
        await rig.enqueue("b", kind="play")
        await rig.ended("a")
        await rig.node.control.cancel("b")
        await rig.ended("b")
        left = await ids(rig)

    assert left == {"a", "b"}


async def test_a_crash_stores_nothing_and_the_next_run_stores_it_once(autojump_clock) -> None:
    """The node dies after the call; another one takes the job over."""
    store = MemoryStore()
    clock, runs, began = VirtualClock(NOW), list[str](), trio.Event()

    async def play(job: Context) -> None:
        runs.append(job.id)
        began.set()
        await job.enqueue("act", ACT, id="next")
        if len(runs) == 1:
            await trio.sleep_forever()

    async with running(store, handlers=[handler(play)], clock=clock, name="n1") as first:
        await first.enqueue(kind="play")
        await began.wait()
        await trio.sleep(1)
        await first.kill()
        after_crash = await all_ids(store)
        async with running(store, handlers=[handler(play)], clock=clock, name="n2") as second:
            await second.ended()
            await second.ended("next")
    left = await all_ids(store)

    assert (after_crash, left, runs) == (["a"], ["a", "next"], ["a", "a"])


async def test_a_store_that_cannot_write_loses_and_doubles_nothing(autojump_clock) -> None:
    """The outcome is kept with what it brings, and written once the disk is well again."""
    store = FaultyStore()

    async def play(job: Context) -> None:
        await job.enqueue("act", ACT, id="next")
        store.broken = True

    async with running(store, handlers=[handler(play)], expected=["the store cannot write"]) as rig:
        await rig.enqueue(kind="play")
        await trio.sleep(10)
        store.broken = False
        await rig.ended()
        await rig.ended("next")
        left = await ids(rig)

    assert store.refused > 2
    assert left == {"a", "next"}
    assert rig.actor.order() == ["next"]


async def test_a_late_end_brings_nothing(autojump_clock) -> None:
    """Another node has taken the job over and ended it."""
    store = FaultyStore()

    async def play(job: Context) -> None:
        await job.enqueue("act", ACT, id=f"of-claim-{job.claim}")
        await trio.sleep(1)

    async with running(store, handlers=[handler(play)]) as rig:
        await rig.enqueue(kind="play")
        await trio.sleep(0.5)
        store._db.execute("update jobs set claim = claim + 1")
        await trio.sleep(5)
        store._db.execute("update jobs set held = 0, status = 'cancelled', finished_at = 1")
        left = await ids(rig)

    assert left == {"a"}


async def test_what_is_enqueued_while_the_node_drains_is_there_afterwards(autojump_clock) -> None:
    """The node takes in nothing more from outside, but the work of a running job is not lost."""
    store = FaultyStore()
    store.durable = True
    began = trio.Event()

    async def play(job: Context) -> None:
        began.set()
        await trio.sleep(5)
        await job.enqueue("act", ACT, id="next")
        await job.enqueue("act", ACT, id="at-once", now=True)

    async with running(store, handlers=[handler(play)]) as rig:
        await rig.enqueue(kind="play")
        await began.wait()
        await rig.drained()

    assert sorted(await all_ids(store)) == ["a", "at-once", "next"]


async def test_a_full_backlog_does_not_stand_in_the_way(autojump_clock) -> None:
    async def play(job: Context) -> None:
        await job.enqueue_many("act", [ACT] * 5)
        await job.enqueue_many("act", [ACT] * 5, now=True)

    async with running(handlers=[handler(play)], max_backlog=1) as rig:
        await rig.enqueue(kind="play")
        await rig.ended()
        left = await ids(rig)

    assert len(left) == 11


async def test_where_an_id_is_taken_the_job_fails_with_that_problem(autojump_clock) -> None:
    """It is not run again. Who waits for it is told, and the log has a line."""

    async def play(job: Context) -> None:
        await job.enqueue("act", ACT, id="taken")

    async with running(handlers=[handler(play)]) as rig:
        await rig.enqueue("taken", ("sleep", 9))
        await rig.enqueue(kind="play")
        job = await rig.ended()

    assert (job.status, job.state.attempt) == (Status.FAILED, 1)
    words = f"{NOTHING_STORED}the id 'taken' belongs to another job"
    assert job.state.error == marked(JobError("EnqueueError", words), "play")
    assert [line["job"] for line in rig.logged("job failed: what its handler")] == ["a"]


async def test_an_exception_in_what_is_brought_costs_that_job_alone(autojump_clock) -> None:
    """The batch is written in parts; a part is a settlement with all that it brings."""

    class BadStore(FaultyStore):
        async def exchange(self, batch: Any) -> Any:
            if any(job.id == "bad" for one in batch.settlements for job in one.jobs):
                raise KeyError("bad")
            return await super().exchange(batch)

    async def play(job: Context) -> None:
        await job.enqueue("act", ACT, id="bad" if job.id == "p3" else f"of-{job.id}")

    expected = [UNFORESEEN]
    async with running(BadStore(), handlers=[handler(play)], workers=8, expected=expected) as rig:
        await rig.add(*(new_job(f"p{number}", kind="play") for number in range(6)))
        jobs = [await rig.ended(f"p{number}") for number in range(6)]
        left = await ids(rig)

    assert [job.status for job in jobs] == [Status.FAILED if job.id == "p3" else Status.DONE for job in jobs]
    assert left == {f"p{number}" for number in range(6)} | {f"of-p{n}" for n in range(6) if n != 3}


async def test_a_batch_holds_about_a_thousand_new_jobs(autojump_clock) -> None:
    """Several attempts that fan out at once are several transactions."""
    store = FaultyStore()

    async def play(job: Context) -> None:
        await job.enqueue_many("act", [ACT] * 400)

    async with running(store, handlers=[handler(play)], workers=8) as rig:
        await rig.add(*(new_job(f"p{number}", kind="play") for number in range(8)))
        for number in range(8):
            await rig.ended(f"p{number}")
    sizes = [sum(len(one.jobs) for one in batch.settlements) for batch in store.batches]

    assert sum(sizes) == 8 * 400
    assert max(sizes) == 800


async def test_jobs_may_depend_on_one_another(autojump_clock) -> None:
    """A fan-out and what comes after it, by one handler."""

    async def play(job: Context) -> None:
        parts = await job.enqueue_many("act", [[("sleep", 1.0)], [("sleep", 2.0)]])
        await job.enqueue("act", ACT, id="merge", depends_on=[*parts, job.id])

    async with running(handlers=[handler(play)], workers=3) as rig:
        await rig.enqueue(kind="play")
        await trio.sleep(0.5)
        between = (await rig.job("merge")).status
        merged = await rig.ended("merge")

    assert (between, merged.status) == (Status.BLOCKED, Status.DONE)
    assert rig.actor.order()[-1] == "merge"


# --- at once ----------------------------------------------------------------------------------------------------------


async def test_now_stores_it_before_the_call_returns(autojump_clock) -> None:
    """Whatever becomes of the attempt."""
    seen = list[Any]()

    async with running() as helper:

        async def play(job: Context) -> None:
            await job.enqueue("act", ACT, id="now", now=True)
            seen.append((await rig.job("now")).status)
            raise Fail("no")

        async with running(handlers=[handler(play)], workers=1) as rig:
            await rig.enqueue(kind="play")
            job = await rig.ended()
            await rig.ended("now")
    assert helper.log is not None

    assert seen == [Status.QUEUED]
    assert job.status is Status.FAILED


async def test_now_tells_of_a_taken_id_in_the_call(autojump_clock) -> None:
    """The same job again is no conflict, as where a retry comes to it once more."""
    told = list[str]()

    async def play(job: Context) -> None:
        assert await job.enqueue("act", ACT, id="x", now=True) == "x"
        assert await job.enqueue("act", ACT, id="x", now=True) == "x"
        for options in ({"id": "a"}, {"depends_on": ["nobody"], "id": "y"}):
            with pytest.raises(EnqueueError) as caught:
                await job.enqueue("act", ACT, now=True, **options)
            told.append(str(caught.value))

    async with running(handlers=[handler(play)]) as rig:
        await rig.enqueue(kind="play")
        job = await rig.ended()

    assert job.status is Status.DONE
    assert told == [
        "the id 'a' belongs to another job",
        "the job 'y' depends on 'nobody', which does not exist",
    ]


async def test_now_returns_the_id_of_the_job_that_is_there_already(autojump_clock) -> None:
    """Of the one that has the key; a key that the job has to have is told in the call, and nothing is stored."""
    unique = {"key": "k", "while": ["queued", "running"]}
    seen = list[Any]()

    async def play(job: Context) -> None:
        for on_conflict in ("return", "replace"):
            again = {**unique, "on_conflict": on_conflict}
            seen.append(await job.enqueue("act", ["fail"], id=on_conflict, unique=again, delay=60, now=True))
        seen.append(
            await job.enqueue_many("act", [ACT, ACT], ids=["y", "z"], unique={**unique, "key": "m"}, now=True)
        )
        with pytest.raises(EnqueueError) as caught:
            await job.enqueue_many(
                "act",
                [ACT, ACT],
                ids=["v", "w"],
                unique={**unique, "key": "n", "on_conflict": "reject"},
                now=True,
            )
        seen.append(str(caught.value))

    async with running(handlers=[handler(play)]) as rig:
        await rig.node.admission.enqueue([new_job("x", run_at=NOW + 60, options=Options(unique=UNIQUE))])
        await rig.enqueue(kind="play")
        job = await rig.ended()
        x = (await rig.job("x")).asked
        left = await ids(rig)

    assert job.status is Status.DONE
    assert seen == ["x", "x", ["y", "y"], "the job 'w' is not unique: its key is that of the job 'v'"]
    assert (x.payload, left) == (b'["fail"]', {"a", "x", "y"})


async def test_the_key_of_a_handlers_job_is_free_for_what_comes_after_it(autojump_clock) -> None:
    """Its own job has ended when the next one is stored: so a job with a key may go on and on."""
    runs = list[str]()

    async def play(job: Context) -> None:
        runs.append(job.id)
        if len(runs) < 3:
            await job.enqueue("play", id=f"run-{len(runs)}", unique={"key": "k", "on_conflict": "reject"})

    async with running(handlers=[handler(play)]) as rig:
        await rig.node.admission.enqueue([new_job(kind="play", options=Options(unique=UNIQUE))])
        for job_id in ("a", "run-1", "run-2"):
            await rig.ended(job_id)

    assert runs == ["a", "run-1", "run-2"]


# --- from threads -----------------------------------------------------------------------------------------------------


async def test_a_handler_in_a_thread_enqueues_too() -> None:
    made = list[Any]()

    def play(job: Context) -> None:
        made.append(job.enqueue_from_thread("act", ACT, id="x"))
        made.append(job.enqueue_many_from_thread("act", [ACT, ACT], ids=["y", "z"]))
        made.append(trio.from_thread.run(job.enqueue, "act", ACT))
        try:
            job.enqueue("act", ACT)  # type: ignore[unused-coroutine] # it raises
        except EnqueueError as error:
            made.append(str(error))

    async with running(handlers=[handler(play, is_async=False)], patience=10) as rig:
        await rig.enqueue(kind="play")
        job = await rig.ended()
        left = await ids(rig)

    assert job.status is Status.DONE
    assert made[:2] == ["x", ["y", "z"]]
    assert made[3] == "a handler in a thread calls job.enqueue_from_thread(...)"
    assert left == {"a", "x", "y", "z", made[2]}


# --- what is checked in the call --------------------------------------------------------------------------------------


class Order(msgspec.Struct):
    """A payload that fits not everything."""

    pieces: int


async def take(order: Order) -> None:
    """A handler with such a payload."""


ORDERS = Handler(kind="order", function=take, is_async=True, takes_context=False, payload_type=Order)


async def told_by(call: Callable[[Context], Any], **settings: Any) -> str:
    """What a call raises in a handler; the attempt goes on, and nothing is stored."""
    told = list[str]()

    async def play(job: Context) -> None:
        with pytest.raises(EnqueueError) as caught:
            await call(job)
        told.append(str(caught.value))

    async with running(handlers=[handler(play), ORDERS], **settings) as rig:
        await rig.enqueue(kind="play")
        job = await rig.ended()
        assert (job.status, await ids(rig)) == (Status.DONE, {"a"})
    return told[0]


NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001 - that is what is wrong with it


@pytest.mark.parametrize(
    ("kind", "payload", "options", "words"),
    [
        ("ordr", {}, {}, "no live node has a handler for 'ordr'; did you mean 'order'?"),
        ("no kind", {}, {}, "a job of kind 'no kind' cannot be enqueued: "),
        (
            "order",
            {"pieces": "x"},
            {},
            "is no payload of kind 'order': Expected `int`, got `str` - at `$.pieces`",
        ),
        ("order", {}, {}, "Object missing required field `pieces`"),
        ("act", math.nan, {}, "the payload cannot be written as JSON: JSON has no NaN and no infinity"),
        ("act", object(), {}, "the payload cannot be written as JSON"),
        ("act", msgspec.Raw(b"{"), {}, "is no payload of kind 'act'"),
        ("act", ACT, {"id": "a/b"}, "cannot be enqueued: "),
        ("act", ACT, {"queue": ""}, "cannot be enqueued: "),
        ("act", ACT, {"priority": 1001}, "cannot be enqueued: "),
        ("act", ACT, {"delay": "soon"}, "'soon' is not a duration"),
        ("act", ACT, {"delay": -1}, "cannot be enqueued: "),
        ("act", ACT, {"run_at": NAIVE}, "cannot be enqueued: "),
        ("act", ACT, {"run_at": datetime.now(UTC), "delay": 1}, "run_at cannot be combined with delay"),
        ("act", ACT, {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "expires_at is not after the time"),
        ("act", ACT, {"needs": "ended"}, "needs says how other jobs have to end: send depends_on"),
        ("act", ACT, {"depends_on": ["x"], "id": "x"}, "depends_on names the job itself"),
        ("act", ACT, {"deadline": datetime(2020, 1, 1, tzinfo=UTC)}, "deadline is not after the time"),
        ("act", ACT, {"unique": {"over": []}}, "unique names nothing that is to be unique"),
        ("act", ACT, {"unique": {"key": "k", "for": "soon"}}, "'soon' is not a duration"),
        (
            "act",
            ACT,
            {"unique": {"key": "k", "over": ["payload"], "on_conflict": "replace"}},
            "unique.over lacks",
        ),
        ("act", ACT, {"throttle": {"key": "k", "every": 0}}, "- at `$.throttle.every`"),
        (
            "act",
            ACT,
            {"debounce": {"key": "k", "wait": "1m"}, "delay": 5},
            "delay cannot be combined with debounce",
        ),
        ("act", ACT, {"whatever": 1}, "unknown field `whatever`"),
        ("act", "x" * 3000, {}, "the payload has 3002 bytes, and MAX_BODY allows 2000"),
    ],
)
async def test_what_cannot_be_enqueued_is_told_in_the_call(
    autojump_clock, kind: str, payload: Any, options: Any, words: str
) -> None:
    """And costs nothing else."""
    assert words in await told_by(lambda job: job.enqueue(kind, payload, **options), max_body=2000)


async def test_what_may_be_asked_arrives(autojump_clock) -> None:
    async def play(job: Context) -> None:
        await job.enqueue(
            "order",
            Order(2),
            id="x",
            delay="1h",
            timeout=timedelta(minutes=5),
            backoff={"base": "10s"},
            max_retries=7,
            on_crash="fail",
            tags=["blue", "blue"],
            key="acme",
            expires_at=datetime.fromtimestamp(NOW + 9999, UTC),
        )
        await job.enqueue(
            "act", ACT, id="y", run_at=datetime.fromtimestamp(NOW + 60, UTC), backoff=Backoff(base=2)
        )

    async with running(handlers=[handler(play), ORDERS]) as rig:
        await rig.enqueue(kind="play")
        await rig.ended()
        x, y = (await rig.job("x")).asked, (await rig.job("y")).asked

    assert (x.payload, x.run_at, x.expires_at, x.max_retries) == (b'{"pieces":2}', NOW + 3600, NOW + 9999, 7)
    assert x.options == Options(
        timeout=300.0,
        backoff=Backoff(base=10),
        on_crash="fail",
        tags=("blue",),
        delay=3600.0,
        parent="a",
        key="acme",
    )
    assert (y.run_at, y.options.backoff) == (NOW + 60, Backoff(base=2))


async def test_ten_thousand_jobs_and_16_mib_an_attempt(autojump_clock, monkeypatch: Any) -> None:
    """The limit itself is allowed; of a call beyond it nothing is kept, of those before it everything."""
    monkeypatch.setattr(outbox, "JOBS", 5)
    monkeypatch.setattr(outbox, "BYTES", 100)
    told = list[str]()

    async def play(job: Context) -> None:
        await job.enqueue_many("act", [ACT] * 3, ids=["x1", "x2", "x3"])
        for payloads, now in (([ACT] * 3, False), ([["done"] * 11], False), ([ACT] * 6, True)):
            with pytest.raises(EnqueueError) as caught:
                await job.enqueue_many("act", payloads, now=now)
            told.append(str(caught.value))
        await job.enqueue_many("act", [ACT] * 2, ids=["x4", "x5"])
        await job.enqueue("act", ACT, id="x5")  # the same once more
        with pytest.raises(EnqueueError, match="another job with the id 'x5'"):
            await job.enqueue("act", ["fail"], id="x5")

    async with running(handlers=[handler(play)]) as rig:
        await rig.enqueue(kind="play")
        job = await rig.ended()
        left = await ids(rig)

    assert job.status is Status.DONE
    assert left == {"a", "x1", "x2", "x3", "x4", "x5"}
    assert told == [
        "one attempt can enqueue 5 jobs, and these would be 6",
        "one attempt can enqueue 100 bytes of payloads, and these would be 102: store large ones elsewhere",
        "one call can enqueue 5 jobs, and these would be 6",
    ]


async def test_as_many_ids_as_payloads(autojump_clock) -> None:
    assert await told_by(lambda job: job.enqueue_many("act", [ACT], ids=["x", "y"])) == (
        "there are 2 ids for 1 payloads"
    )


async def test_an_attempt_that_is_over_enqueues_nothing(autojump_clock) -> None:
    """What a handler has left running, in a nursery of its own, has lost the job."""
    told = list[str]()

    async with trio.open_nursery() as outside:

        async def late(job: Context) -> None:
            await trio.sleep(5)
            for now in (False, True):
                with pytest.raises(EnqueueError) as caught:
                    await job.enqueue("act", ACT, now=now)
                told.append(str(caught.value))

        async def play(job: Context) -> None:
            outside.start_soon(late, job)

        async with running(handlers=[handler(play)]) as rig:
            await rig.enqueue(kind="play")
            await rig.ended()
            await trio.sleep(6)
            left = await ids(rig)

    assert left == {"a"}
    assert {one[:23] for one in told} == {"the attempt is over: it"}


async def test_a_test_of_a_handler_needs_no_node() -> None:
    """A context that was made by hand checks what is asked, and gives ids."""
    job = Context(id="j", kind="k", queue="q", attempt=1, max_retries=3, claim=1, deadline=math.inf)
    await turns(1)

    assert await job.enqueue("mail", {"to": "ann"}, id="x") == "x"
    assert len(set(await job.enqueue_many("mail", [1, 2]))) == 2
    with pytest.raises(EnqueueError):
        await job.enqueue("mail", object())


# --- children ---------------------------------------------------------------------------------------------------------


async def test_what_a_handler_enqueues_is_cancelled_with_its_job(autojump_clock) -> None:
    """Handlers that run are stopped. Not what is detached, nor what its cleanup enqueues."""

    async def play(job: Context) -> None:
        await job.enqueue("act", [("hang", 1.0)], id="child", now=True)
        await job.enqueue("act", [("sleep", 50.0)], id="detached", now=True, detach=True)
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await job.enqueue("act", ACT, id="cleanup", now=True)

    async with running(handlers=[handler(play)], workers=4) as rig:
        await rig.enqueue(kind="play")
        await trio.sleep(10)
        await rig.node.control.cancel("a")
        jobs = [await rig.ended(job_id) for job_id in ("a", "child", "detached", "cleanup")]

    assert [job.status for job in jobs] == [Status.CANCELLED, Status.CANCELLED, Status.DONE, Status.DONE]
    assert [job.asked.options.parent for job in jobs] == [None, "a", None, "a"]


async def test_what_is_stored_with_the_end_of_a_job_is_its_child(autojump_clock) -> None:
    """It goes on when the parent has ended, however that was."""

    async def play(job: Context) -> None:
        await job.enqueue("act", [("sleep", 9.0)], id="child")
        await job.enqueue("act", ACT, id="detached", detach=True)

    async with running(handlers=[handler(play)], workers=4) as rig:
        await rig.enqueue(kind="play")
        await rig.ended()
        refused = await rig.node.control.cancel("a")
        jobs = [await rig.ended(job_id) for job_id in ("child", "detached")]

    assert refused.verdict == "refused"
    assert [job.status for job in jobs] == [Status.DONE, Status.DONE]
    assert [job.asked.options.parent for job in jobs] == ["a", None]


async def test_a_job_that_enqueues_into_a_closed_queue_fails(autojump_clock) -> None:
    """And says so; nothing of what it enqueued is stored."""

    async def play(job: Context) -> None:
        await job.enqueue("act", ACT, id="open")
        await job.enqueue("act", ACT, id="shut", queue="mail")

    async with running(handlers=[handler(play)]) as rig:
        await rig.node.store.put_queue("mail", QueueSettings(closed=True))
        await rig.enqueue(kind="play")
        job = await rig.ended()
        left = await ids(rig)

    assert job.status is Status.FAILED
    assert job.state.error is not None
    assert job.state.error.type == "EnqueueError"
    assert "the queue 'mail' of the job 'shut' takes no new jobs" in job.state.error.message
    assert left == {"a"}
