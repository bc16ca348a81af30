"""What handlers do and what becomes of it, over every store: one that only the memory store plays proves only that.

Time is real here, since threads and sockets keep no virtual one: the scenes wait for events, and are short.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from jobpipe.clock import VirtualClock
from jobpipe.handlers.exceptions import Fail, Retry
from jobpipe.handlers.registry import Handler
from jobpipe.job import ENDED, LEVELS, WAITING, Backoff, Job, Options, Outcome, Status
from jobpipe.store.base import Batch, Change, ClaimRequest, LogLine, Note, Store
from tests.engine.conftest import NOW, Rig, running
from tests.store.conftest import EACH_STORE, OPENERS
from tests.store.test_contract import settlement

QUICK = Options(backoff=Backoff(base=0, jitter="none"))
PATIENCE = 30.0


@pytest.fixture(params=EACH_STORE)
async def store(request, tmp_path) -> AsyncIterator[Store]:
    """Each store, empty."""
    async with OPENERS[request.param](tmp_path) as opened:
        yield opened


@asynccontextmanager
async def scene(store: Store, **more: Any) -> AsyncIterator[Rig]:
    async with running(store, patience=PATIENCE, workers=8, **more) as rig:
        yield rig


async def is_now(rig: Rig, job_id: str, true: Callable[[Job], bool]) -> Job:
    """The job, once it is as it should be."""
    with trio.fail_after(PATIENCE):
        while not true(job := await rig.job(job_id)):  # noqa: ASYNC110 - no event tells of every change
            await trio.sleep(0.005)
    return job


async def test_every_outcome(store) -> None:
    """Done, retried, failed, put off; with the attempts that led to it."""
    async with scene(store) as rig:
        for job_id, steps in OUTCOMES.items():
            await rig.enqueue(job_id, *steps, options=QUICK, max_retries=1)
        found = {job_id: await is_now(rig, job_id, lambda job: job.status in ENDED) for job_id in OUTCOMES}

    assert {
        job_id: (job.status, job.state.attempt, [one.outcome for one in job.attempts])
        for job_id, job in found.items()
    } == ENDS
    assert {job_id: job.state.error.type for job_id, job in found.items() if job.state.error} == {
        "error": "ValueError",
        "fail": "Fail",
        "retry": "Retry",
    }


async def test_what_a_job_says_is_there_while_it_runs_and_when_it_has_ended(store) -> None:
    async with scene(store) as rig:
        await rig.enqueue("runs", ("say", 60))
        await rig.enqueue("ends", "say")
        running_one = await is_now(rig, "runs", lambda job: job.progress is not None)
        ended_one = await is_now(rig, "ends", lambda job: job.status in ENDED)
        pages = [await rig.store.log(job_id) for job_id in ("runs", "ends")]
        await rig.node.control.cancel("runs")
        await is_now(rig, "runs", lambda job: job.status in ENDED)

    assert [one.progress and one.progress.message for one in (running_one, ended_one)] == ["half", "half"]
    assert [[line.text for line in page.lines] for page in pages if page is not None] == [
        ["hello"],
        ["hello"],
    ]
    assert [page.ended for page in pages if page is not None] == [False, True]


async def test_who_waits_for_lines_sees_those_of_another_node(store) -> None:
    """Nobody tells of them: where nodes share a store they are looked for twice a second."""
    async with scene(store) as rig:
        now = rig.node.clock.now()
        await store.join("other", now, now + 1e6, frozenset({"odd"}))
        await rig.enqueue(kind="odd")
        claims = [ClaimRequest(limit=1, kinds=frozenset({"odd"}))]
        (job,) = (await store.exchange(Batch(node="other", now=now, claims=claims))).claimed
        note = Note(
            seq=job.seq, id="a", claim=job.claim, attempt=1, lines=[LogLine(1, now, "info", "from afar")]
        )
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.exchange, Batch(node="other", now=now, notes=[note]))
                page = await rig.node.waiting.logged("a", 0, 10, LEVELS)
        ended = settlement(job, Outcome.DONE, now)
        await store.exchange(Batch(node="other", now=now, settlements=[ended]))
        over = await rig.node.waiting.logged("a", 1, 10, LEVELS)
        absent = await rig.node.waiting.logged("absent", 0, 10, LEVELS)

    assert page is not None
    assert [line.text for line in page.lines] == ["from afar"]
    assert over is not None
    assert (over.ended, over.lines, absent) == (True, [], None)


OUTCOMES: dict[str, list[Any]] = {
    "done": ["done"],
    "error": ["error"],
    "error once": ["error", "done"],
    "fail": ["fail"],
    "retry": [("retry", 0.001)],
    "retry once": [("retry", 0.001), "done"],
    "snooze": [("snooze", 0.001), ("snooze", 0.001), ("snooze", 0.001), "done"],
}
RETRY, FAIL, SNOOZE, DONE = Outcome.RETRY, Outcome.FAIL, Outcome.SNOOZE, Outcome.DONE
ENDS = {
    "done": (Status.DONE, 1, [DONE]),
    "error": (Status.FAILED, 2, [RETRY, FAIL]),
    "error once": (Status.DONE, 2, [RETRY, DONE]),
    "fail": (Status.FAILED, 1, [FAIL]),
    "retry": (Status.FAILED, 2, [RETRY, FAIL]),
    "retry once": (Status.DONE, 2, [RETRY, DONE]),
    "snooze": (Status.DONE, 1, [SNOOZE, SNOOZE, SNOOZE, DONE]),
}


class Unshowable(Exception):  # noqa: N818 - no error of ours
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise SystemExit("no words")


RAISED: dict[str, Callable[[], Any]] = {
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "generator": GeneratorExit,
    "group": lambda: BaseExceptionGroup("both", [KeyError("a"), SystemExit()]),
    "word in a group": lambda: ExceptionGroup("one", [ValueError("b"), Fail("hopeless")]),
    "surrogate": lambda: ValueError("half \ud800 and \0"),
    "unshowable": Unshowable,
    "recursion": lambda: RecursionError("deep"),
    "strange wait": lambda: Retry("soon", after=float("nan")),
    "long": lambda: ValueError("x" * 100_000),
}
RESULTS: dict[str, Any] = {
    "set of objects": {object()},
    "infinity": float("inf"),
    "huge": "x" * 2_000_000,
    "bytes": b"ok",
}


async def test_every_way_to_raise_and_every_result(store) -> None:
    """Whatever it is ends its attempt alone, and can be stored and read."""

    async def odd(payload: str) -> Any:
        if payload in RAISED:
            error = RAISED[payload]()
            raise error
        return RESULTS[payload]

    handler = Handler(kind="odd", function=odd, is_async=True, takes_context=False, payload_type=str)
    async with scene(store, handlers=[handler]) as rig:
        for payload in (*RAISED, *RESULTS):
            job = {"kind": "odd", "payload": f'"{payload}"'.encode(), "max_retries": 0}
            await rig.enqueue(payload, **job)
        found = {one: await is_now(rig, one, lambda job: job.status in ENDED) for one in (*RAISED, *RESULTS)}
        await rig.enqueue("after")
        await is_now(rig, "after", lambda job: job.status is Status.DONE)

    bytes_are_fine = found.pop("bytes")
    assert bytes_are_fine.status is Status.DONE
    assert {job.status for job in found.values()} == {Status.FAILED}
    assert all(job.state.error is not None and len(job.state.error.message) <= 1000 for job in found.values())


async def test_every_timeout(store) -> None:
    """The attempt is stopped, and what its cleanup raises is its error; one that ends all the same is done."""
    late = Options(timeout=0.05, backoff=QUICK.backoff)
    async with scene(store) as rig:
        await rig.enqueue("sleeps", ("sleep", 60), options=late, max_retries=0)
        await rig.enqueue("once", ("sleep", 60), "done", options=late)
        await rig.enqueue("cleanup", "spoil", options=late, max_retries=0)
        await rig.enqueue("stubborn", ("stubborn", 0.1), options=late, max_retries=0)
        ended = [
            await is_now(rig, one, lambda job: job.status in ENDED)
            for one in ("sleeps", "once", "cleanup", "stubborn")
        ]

    assert [job.status for job in ended] == [Status.FAILED, Status.DONE, Status.FAILED, Status.DONE]
    assert [job.state.error and job.state.error.type for job in ended] == ["Timeout", None, "OSError", None]


async def test_every_cancel(store) -> None:
    """Of a job that waits, one that is held, one that runs, one whose cleanup fails, and one that has ended."""
    async with scene(store) as rig:
        await rig.enqueue("waits", run_at=rig.node.clock.now() + 3600)
        await rig.enqueue("runs", "wait")
        await rig.enqueue("spoils", "spoil")
        await rig.enqueue("done")
        await is_now(rig, "done", lambda job: job.status is Status.DONE)
        await rig.actor.begun(3)
        verdicts = [
            (await rig.node.control.cancel(one)).verdict
            for one in ("waits", "runs", "spoils", "done", "none")
        ]
        ended = [
            await is_now(rig, one, lambda job: job.status in ENDED) for one in ("waits", "runs", "spoils")
        ]

    assert verdicts == ["changed", "changed", "changed", "refused", "absent"]
    assert [job.status for job in ended] == [Status.CANCELLED] * 3
    assert [[one.outcome for one in job.attempts] for job in ended] == [
        [],
        [Outcome.CANCELLED],
        [Outcome.CANCELLED],
    ]


async def test_a_job_expires_only_while_it_waits(store) -> None:
    """One that runs by then goes on."""
    clock = VirtualClock(NOW)
    async with scene(store, clock=clock) as rig:
        now = clock.now()
        await rig.enqueue("runs", "wait", expires_at=now + 600)
        await rig.enqueue("waits", run_at=now + 3600, expires_at=now + 600)
        await rig.actor.begun()
        clock.step(700)
        rig.node.ledger.look()
        waits = await is_now(rig, "waits", lambda job: job.status in ENDED)
        rig.actor.gate.set()
        runs = await is_now(rig, "runs", lambda job: job.status in ENDED)

    assert (waits.status, runs.status) == (Status.EXPIRED, Status.DONE)


@pytest.mark.parametrize("on_crash", ["retry", "fail"])
async def test_a_crash_during_an_attempt(store, on_crash) -> None:
    """It runs again on another node, unless it asked not to."""
    options = Options(on_crash=on_crash)
    clock = VirtualClock(NOW)
    async with scene(store, name="n1", clock=clock) as rig:
        await rig.enqueue("a", "wait", options=options)
        await is_now(rig, "a", lambda job: job.status is Status.RUNNING)
        await rig.kill()
    clock.step(3600)
    async with scene(store, name="n2", clock=clock) as rig:
        rig.actor.gate.set()
        job = await is_now(rig, "a", lambda job: job.status in ENDED)

    interrupted, *again = [one.outcome for one in job.attempts]
    assert interrupted is Outcome.INTERRUPTED
    assert (job.status, again) == ((Status.DONE, [DONE]) if on_crash == "retry" else (Status.FAILED, []))


async def test_a_kind_without_a_handler(store) -> None:
    """After a deploy without its module the job waits, unspent; it can be read, cancelled, retried and deleted."""
    async with scene(store, name="n1") as rig:
        for job_id in ("waits", "cancelled", "deleted"):
            await rig.enqueue(job_id, kind="gone", max_retries=0, run_at=rig.node.clock.now() + 0.01)
        await rig.enqueue("beside", run_at=rig.node.clock.now() + 0.02)
        await is_now(rig, "beside", lambda job: job.status is Status.DONE)
        cancelled = await rig.node.control.cancel("cancelled")
        await is_now(rig, "cancelled", lambda job: job.status in ENDED)
        retried = await rig.node.control.retry("cancelled")
        deleted = await again(lambda: rig.node.control.delete("deleted"))
    async with scene(store, name="n2") as rig:  # and the next start is as sound as this one
        await rig.enqueue("after")
        await is_now(rig, "after", lambda job: job.status is Status.DONE)
        waits = await rig.job("waits")

    assert [one.verdict for one in (cancelled, retried, deleted)] == ["changed"] * 3
    assert waits.status in WAITING
    assert waits.state.attempt == 0


async def again(change: Callable[[], Awaitable[Change]]) -> Change:
    """Ask until a job may be changed: a node may look at it just now."""
    with trio.fail_after(PATIENCE):
        while (done := await change()).verdict == "refused":  # noqa: ASYNC110 - no event tells of every change
            await trio.sleep(0.005)
    return done
