"""One run of a handler: whatever it does ends its attempt, in one outcome, and nothing else."""

import asyncio
import itertools
import math
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import structlog
import trio

from jobpipe import logs
from jobpipe.engine import outcomes
from jobpipe.handlers.context import Context
from jobpipe.handlers.exceptions import Fail, Retry, Snooze
from jobpipe.handlers.registry import Handler
from jobpipe.job import Backoff, Options, Outcome, Status
from jobpipe.store.base import Batch, Receipts
from jobpipe.store.memory import MemoryStore
from tests.engine.conftest import DAY, NOW, PLAIN, Step, new_job, running, turns


def odd(function: Callable[..., Any], **asked: Any) -> Handler:
    """A handler of the kind `odd`, for what the actor has no word for."""
    usual = {"is_async": True, "takes_context": False}
    return Handler(kind="odd", function=function, **(usual | asked))


def raising(error: BaseException) -> Handler:
    async def raise_it(payload: Any) -> None:
        raise error

    return odd(raise_it)


# --- backoff and retries ----------------------------------------------------------------------------------------------


async def test_a_job_that_always_fails_has_four_attempts(autojump_clock) -> None:
    """`max_retries` 3, and the waits between them grow: 1, 2 and 4 seconds, exactly."""
    async with running() as rig:
        await rig.enqueue("a", "error", options=PLAIN)
        job = await rig.ended("a")

    assert (job.status, job.state.attempt) == (Status.FAILED, 4)
    assert rig.actor.began() == [0, 1, 3, 7]
    assert [run.attempt for run in rig.actor.runs] == [1, 2, 3, 4]
    assert [one.outcome for one in job.attempts] == [Outcome.RETRY] * 3 + [Outcome.FAIL]
    assert job.state.error is not None
    assert (job.state.error.type, job.state.error.message) == ("ValueError", "no luck")
    assert "_do" in str(job.state.error.traceback)


@pytest.mark.slow
async def test_days_of_retries_pass_in_a_moment(autojump_clock) -> None:
    """Six attempts over ten hours and more, up to the cap."""
    patient = Options(backoff=Backoff(base=3600, factor=2, cap=10_000, jitter="none"))
    async with running(lease=3600) as rig:
        await rig.enqueue("a", "error", "error", "error", "error", "done", max_retries=5, options=patient)
        job = await rig.ended("a")

    assert (job.status, job.state.attempt, job.state.error) == (Status.DONE, 5, None)
    assert rig.actor.began() == [0, 3600, 10_800, 20_800, 30_800]
    assert [one.outcome for one in job.attempts] == [Outcome.RETRY] * 4 + [Outcome.DONE]


async def test_a_retry_at_a_named_time_counts_as_an_attempt(autojump_clock) -> None:
    """`Retry(after=...)`: just then, without jitter."""
    async with running() as rig:
        await rig.enqueue("a", ("retry", 100), ("retry", 0.5), "done")
        job = await rig.ended("a")

    assert (job.status, job.state.attempt) == (Status.DONE, 3)
    assert rig.actor.began() == [0, 100, 100.5]


async def test_a_snooze_does_not_count(autojump_clock) -> None:
    """However often a job is put off, all its retries are left, and the attempt keeps its number."""
    async with running() as rig:
        await rig.enqueue("a", ("snooze", 10), ("snooze", 20), ("snooze", 30), "done", max_retries=0)
        await rig.actor.begun(1)
        await trio.sleep(5)
        put_off = await rig.job("a")
        job = await rig.ended("a")

    assert (put_off.status, put_off.state.attempt) == (Status.SCHEDULED, 0)
    assert (job.status, job.state.attempt) == (Status.DONE, 1)
    assert rig.actor.began() == [0, 10, 30, 60]
    assert [run.attempt for run in rig.actor.runs] == [1, 1, 1, 1]
    assert [one.outcome for one in job.attempts] == [Outcome.SNOOZE] * 3 + [Outcome.DONE]


async def test_fail_ends_a_job_at_once(autojump_clock) -> None:
    """Whatever retries are left."""
    async with running() as rig:
        await rig.enqueue("a", "fail", max_retries=100)
        job = await rig.ended("a")

    assert (job.status, job.state.attempt, len(rig.actor.runs)) == (Status.FAILED, 1, 1)
    assert job.state.error is not None
    assert (job.state.error.type, job.state.error.message) == ("Fail", "hopeless")
    assert [line["log_level"] for line in rig.logged("job failed")] == ["warning"]


@pytest.mark.parametrize(
    ("own", "handlers", "waits"),
    [
        (None, None, None),
        (None, Backoff(base=5, factor=1, jitter="none"), [0, 5, 10]),
        (Backoff(base=7, factor=1, jitter="none"), Backoff(base=5, factor=1, jitter="none"), [0, 7, 14]),
        (Backoff(base=7, factor=1, jitter="none"), None, [0, 7, 14]),
    ],
)
async def test_a_jobs_own_backoff_goes_before_its_handlers(autojump_clock, own, handlers, waits) -> None:
    """And the handler's before the usual one, which is spread over the whole interval."""
    began: list[float] = []

    async def fail(payload: Any) -> None:
        began.append(trio.current_time())
        raise ValueError

    async with running(handlers=[odd(fail, backoff=handlers)]) as rig:
        await rig.enqueue("a", kind="odd", max_retries=2, options=Options(backoff=own))
        await rig.ended("a")
        since = [round(time - began[0], 3) for time in began]

    if waits is None:
        assert 0 <= since[1] <= 1
        assert 0 <= since[2] - since[1] <= 2
    else:
        assert since == waits


# --- timeouts ---------------------------------------------------------------------------------------------------------


async def test_an_attempt_that_takes_too_long_is_stopped_and_tried_again(autojump_clock) -> None:
    """Its child tasks and their cleanup end first."""
    options = Options(timeout=10, backoff=PLAIN.backoff)
    async with running() as rig:
        await rig.enqueue("a", ("hang", 3), "done", options=options)
        job = await rig.ended("a")
        first, second = rig.actor.runs

    assert (job.status, job.state.attempt) == (Status.DONE, 2)
    assert first.ended == first.began + 13
    assert second.began == first.ended + 1
    assert first.deadline == first.began + 10
    error = job.attempts[0].error
    assert error is not None
    assert (error.type, error.message) == ("Timeout", "the attempt ran longer than its timeout of 10 s")


@pytest.mark.parametrize(("own", "handlers", "allowed"), [(None, 20, 20), (5, 20, 5), (None, None, math.inf)])
async def test_a_jobs_own_timeout_goes_before_its_handlers(autojump_clock, own, handlers, allowed) -> None:
    """None of them: an attempt may take for ever. The context tells the deadline."""
    left: list[float] = []

    async def tell(payload: Any, context: Context) -> None:
        left.append(context.deadline - trio.current_time())
        await trio.sleep(DAY if allowed < math.inf else 0)

    async with running(handlers=[odd(tell, timeout=handlers, takes_context=True)], lease=3600) as rig:
        await rig.enqueue("a", kind="odd", max_retries=0, options=Options(timeout=own))
        job = await rig.ended("a")

    assert left == [allowed]
    assert job.status is (Status.FAILED if allowed < math.inf else Status.DONE)


async def test_a_handler_that_returns_in_spite_of_its_timeout_is_done(autojump_clock) -> None:
    """The work is done, so to do it again would be wrong."""
    async with running() as rig:
        await rig.enqueue("a", ("stubborn", 30), options=Options(timeout=10))
        job = await rig.ended("a")

    assert (job.status, job.state.attempt, job.state.result) == (Status.DONE, 1, b'"ok"')


async def test_what_a_cleanup_raises_at_a_timeout_is_the_error(autojump_clock) -> None:
    """It tells more than that the time was over."""
    async with running() as rig:
        await rig.enqueue("a", "spoil", max_retries=0, options=Options(timeout=10))
        job = await rig.ended("a")

    assert job.status is Status.FAILED
    assert job.state.error is not None
    assert (job.state.error.type, job.state.error.message) == ("OSError", "the cleanup failed")


async def test_a_handlers_own_timeouts_are_its_own(autojump_clock) -> None:
    """Trio's TooSlowError is an error like any other."""

    async def slow(payload: Any) -> None:
        with trio.fail_after(1):
            await trio.sleep_forever()

    async with running(handlers=[odd(slow, timeout=10)]) as rig:
        await rig.enqueue("a", kind="odd", max_retries=0)
        job = await rig.ended("a")

    assert job.state.error is not None
    assert job.state.error.type == "TooSlowError"


# --- what handlers raise and return -----------------------------------------------------------------------------------


class Mute(Exception):  # noqa: N818 - not an error of the project
    """Cannot be shown."""

    def __str__(self) -> str:
        raise SystemExit


class Untrue(Exception):  # noqa: N818 - not an error of the project
    """Has no truth."""

    def __bool__(self) -> bool:
        raise SystemExit


def chain(length: int) -> BaseException:
    error: BaseException = ValueError("first")
    for _ in range(length):
        error, error.__cause__ = ValueError("x" * 1000), error
    return error


def deep(error: Exception, depth: int) -> Exception:
    for _ in range(depth):
        error = ExceptionGroup("nursery", [error])
    return error


RAISED: dict[str, tuple[BaseException, Status, str | None]] = {
    "exit": (SystemExit(1), Status.FAILED, "SystemExit"),
    "interrupt": (KeyboardInterrupt(), Status.FAILED, "KeyboardInterrupt"),
    "generator exit": (GeneratorExit(), Status.FAILED, "GeneratorExit"),
    "stop": (StopIteration(), Status.FAILED, "RuntimeError"),
    "async stop": (StopAsyncIteration(), Status.FAILED, "StopAsyncIteration"),
    "group": (ExceptionGroup("g", [ValueError("x"), OSError("y")]), Status.FAILED, "ExceptionGroup"),
    "group of exits": (
        BaseExceptionGroup("g", [SystemExit(), KeyboardInterrupt()]),
        Status.FAILED,
        "BaseExceptionGroup",
    ),
    "nested groups": (deep(ValueError("x"), 3), Status.FAILED, "ValueError"),
    "groups without end": (deep(ValueError("x"), 5000), Status.FAILED, "ValueError"),
    "group with Fail": (ExceptionGroup("g", [ValueError("x"), Fail("no")]), Status.FAILED, "Fail"),
    "nested Snooze": (deep(Snooze(DAY), 2), Status.SCHEDULED, None),
    "nested Retry": (deep(Retry(after=DAY), 2), Status.FAILED, "Retry"),
    "cannot be shown": (Mute(), Status.FAILED, "Mute"),
    "without truth": (Untrue(), Status.FAILED, "Untrue"),
    "surrogate": (ValueError("\ud800"), Status.FAILED, "ValueError"),
    "chain": (chain(100), Status.FAILED, "ValueError"),
}


@pytest.mark.parametrize("name", RAISED)
async def test_whatever_a_handler_raises_ends_its_attempt_alone(autojump_clock, name) -> None:
    """The one worker goes on with the next job, and the error is kept, in bounds."""
    error, status, kind = RAISED[name]
    async with running(handlers=[raising(error)], workers=1) as rig:
        await rig.enqueue("a", kind="odd", max_retries=0)
        await rig.enqueue("b")
        job, other = await rig.ended("b"), await rig.job("a")

    assert job.status is Status.DONE
    assert other.status is status
    assert (other.state.error.type if other.state.error else None) == kind
    assert other.state.error is None or len(str(other.state.error.traceback)) <= 8000


async def test_a_cancelled_from_elsewhere_ends_its_attempt_alone(autojump_clock) -> None:
    """A handler that keeps Trio's Cancelled from one scope and raises it outside of it."""

    async def mix_up(payload: Any) -> None:
        kept: list[BaseException] = []
        with trio.move_on_after(1):
            try:
                await trio.sleep_forever()
            except trio.Cancelled as error:
                kept.append(error)
                raise
        raise kept[0]

    async with running(handlers=[odd(mix_up)], workers=1) as rig:
        await rig.enqueue("a", kind="odd", max_retries=1, options=PLAIN)
        job = await rig.ended("a")
        await rig.enqueue("b")
        other = await rig.ended("b")

    assert (job.status, job.state.attempt) == (Status.FAILED, 2)
    assert job.state.error is not None
    assert job.state.error.type == "Cancelled"
    assert other.status is Status.DONE


async def test_a_handler_that_leaves_a_scope_open_ends_its_attempt_alone(autojump_clock) -> None:
    """Even a broken stack of cancel scopes does not hurt the worker."""

    async def leave_open(payload: Any) -> None:
        trio.CancelScope().__enter__()

    async with running(handlers=[odd(leave_open)], workers=1) as rig:
        await rig.enqueue("a", kind="odd", max_retries=0)
        job = await rig.ended("a")
        await rig.enqueue("b", ("sleep", 10), options=Options(timeout=20))
        other = await rig.ended("b")

    assert job.status is Status.FAILED
    assert job.state.error is not None
    assert "Cancel scope stack corrupted" in job.state.error.message
    assert other.status is Status.DONE


@pytest.mark.parametrize(
    "value",
    [object(), math.nan, {object()}, "\ud800", [[object()]], "x" * 100],
    ids=["object", "NaN", "set", "surrogate", "nested", "large"],
)
async def test_a_result_that_cannot_be_kept_fails_the_job(autojump_clock, value) -> None:
    """At once, and with a word on why: JSON cannot hold it, or it is too large."""

    async def give(payload: Any) -> Any:
        return value

    async with running(handlers=[odd(give)], max_body=100) as rig:
        await rig.enqueue("a", kind="odd")
        job = await rig.ended("a")

    assert (job.status, job.state.attempt, job.state.result) == (Status.FAILED, 1, None)
    assert job.state.error is not None
    assert job.state.error.type == "ResultError"


async def test_a_payload_that_does_not_fit_ends_its_attempt_alone(autojump_clock) -> None:
    """As after a deployment that changed the handler's payload type."""

    async def add_up(payload: list[int]) -> int:
        return sum(payload)

    async with running(handlers=[odd(add_up, payload_type=list[int])]) as rig:
        await rig.enqueue("a", kind="odd", payload=b'["one"]', max_retries=0)
        await rig.enqueue("b", kind="odd", payload=b"[1,2]")
        job, other = await rig.ended("a"), await rig.ended("b")

    assert (job.status, other.status, other.state.result) == (Status.FAILED, Status.DONE, b"3")
    assert job.state.error is not None
    assert job.state.error.type == "ValidationError"
    assert "Expected `int`, got `str`" in job.state.error.message


async def test_a_handler_knows_its_job(autojump_clock) -> None:
    """Id, kind, queue, attempt, retries and claim number; its logger carries the job too."""
    seen: list[Context] = []

    async def look(payload: Any, context: Context) -> None:
        seen.append(context)
        context.log.info("looked", here=True)
        if context.attempt == 1:
            raise Retry(after=1)

    async with running(handlers=[odd(look, takes_context=True)]) as rig:
        await rig.enqueue("a", kind="odd", queue="mail", max_retries=7)
        await rig.ended("a")
        lines = rig.logged("looked")

    assert [(one.id, one.kind, one.queue, one.attempt, one.max_retries) for one in seen] == [
        ("a", "odd", "mail", 1, 7),
        ("a", "odd", "mail", 2, 7),
    ]
    assert seen[0].claim < seen[1].claim
    assert [(line["job"], line["kind"], line["attempt"], line["here"]) for line in lines] == [
        ("a", "odd", 1, True),
        ("a", "odd", 2, True),
    ]


class Careless(MemoryStore):
    """A store that hands over whatever is ready, though other kinds were asked for."""

    async def exchange(self, batch: Batch) -> Receipts:
        any_kind = [msgspec.structs.replace(claim, kinds=claim.kinds | {"absent"}) for claim in batch.claims]
        return await super().exchange(msgspec.structs.replace(batch, claims=any_kind))


async def test_a_job_of_a_kind_that_was_not_asked_for_goes_back_unspent(autojump_clock) -> None:
    """A store never hands one over; if it did, no attempt would be spent, and the log would say so sparingly."""
    said = "the store handed over a job of a kind not asked for"
    async with running(Careless(), expected=[said]) as rig:
        await rig.enqueue("a", kind="absent", max_retries=0)
        await turns(200)
        await rig.node.store.cancel(["a"], NOW)
        job = await rig.ended("a")
        lines = rig.logged(said)

    assert (job.status, job.state.attempt, job.attempts) == (Status.CANCELLED, 0, ())
    assert 1 <= len(lines) <= 20


# --- handlers in threads: real time, since the autojump clock jumps over threads --------------------------------------


def in_thread(function: Callable[..., Any], **asked: Any) -> Handler:
    return odd(function, is_async=False, **asked)


async def test_a_handler_that_is_not_async_runs_in_a_thread() -> None:
    """Its result and its errors count as any other's."""

    def name(payload: bool) -> str:
        if not payload:
            raise ValueError("no payload")
        return threading.current_thread().name

    async with running(handlers=[in_thread(name)], patience=20) as rig:
        await rig.enqueue("a", kind="odd", payload=b"true")
        await rig.enqueue("b", kind="odd", payload=b"false", max_retries=0)
        job, other = await rig.ended("a"), await rig.ended("b")

    assert job.status is Status.DONE
    assert threading.current_thread().name.encode() not in (job.state.result or b"")
    assert (other.status, other.state.error and other.state.error.message) == (Status.FAILED, "no payload")


async def test_threads_of_handlers_starve_nobody() -> None:
    """They have a limiter of their own, with a place for each worker: all run at once."""
    meet = threading.Barrier(50, timeout=20)

    def wait(payload: Any) -> str:
        meet.wait()
        return "met"

    async with running(handlers=[in_thread(wait)], workers=50, patience=20) as rig:
        for number in range(50):
            await rig.enqueue(str(number), kind="odd", max_retries=0)
        jobs = [await rig.ended(str(number)) for number in range(50)]

    assert {job.state.result for job in jobs} == {b'"met"'}


async def test_a_thread_that_looks_is_stopped_by_its_timeout() -> None:
    """`check_cancelled` raises in the thread once the attempt has timed out."""
    cleaned = threading.Event()

    def spin(payload: Any, context: Context) -> None:
        try:
            while True:
                context.check_cancelled()
                cleaned.wait(0.001)
        finally:
            cleaned.set()

    async with running(handlers=[in_thread(spin, takes_context=True)], patience=20) as rig:
        await rig.enqueue("a", kind="odd", max_retries=0, options=Options(timeout=0.01))
        job = await rig.ended("a")

    assert cleaned.is_set()
    assert (job.status, job.state.error and job.state.error.type) == (Status.FAILED, "Timeout")


async def test_a_thread_that_does_not_look_ends_in_its_own_time() -> None:
    """Nobody can stop a thread: what it returns after its timeout counts, since the work is done."""

    def work(payload: Any) -> str:
        threading.Event().wait(0.05)
        return "late"

    async with running(handlers=[in_thread(work)], patience=20) as rig:
        await rig.enqueue("a", kind="odd", options=Options(timeout=0.001))
        job = await rig.ended("a")

    assert (job.status, job.state.attempt, job.state.result) == (Status.DONE, 1, b'"late"')


async def test_a_running_thread_is_cancelled_when_it_looks() -> None:
    """The cancel of a job reaches handlers in threads too."""
    begun = trio.Event()

    def spin(payload: Any, context: Context) -> None:
        trio.from_thread.run_sync(begun.set)
        while True:
            context.check_cancelled()
            threading.Event().wait(0.001)

    async with running(handlers=[in_thread(spin, takes_context=True)], patience=20) as rig:
        await rig.enqueue("a", kind="odd")
        await begun.wait()
        await rig.node.control.cancel("a")
        job = await rig.ended("a")

    assert (job.status, job.state.attempt) == (Status.CANCELLED, 1)


async def test_a_function_that_only_looks_sync_is_told_so() -> None:
    """A plain function that returns a coroutine."""

    async def inner() -> None: ...

    def outer(payload: Any) -> Awaitable[None]:
        return inner()

    async with running(handlers=[in_thread(outer)], patience=20) as rig:
        await rig.enqueue("a", kind="odd", max_retries=0)
        job = await rig.ended("a")

    assert job.state.error is not None
    assert (job.status, job.state.error.type) == (Status.FAILED, "TypeError")
    assert "async" in job.state.error.message


async def test_context_variables_of_one_attempt_do_not_reach_the_next(autojump_clock) -> None:
    """A worker runs many jobs; what one binds to its log lines must not stand in another's."""

    async def bind(payload: Any, context: Context) -> dict[str, Any]:
        before = structlog.contextvars.get_contextvars()
        structlog.contextvars.bind_contextvars(customer=context.id)
        return before

    async with running(handlers=[odd(bind, takes_context=True)], workers=1) as rig:
        await rig.add(
            *(new_job(job_id, kind="odd") for job_id in "ab")
        )  # the worker need not wait for the second
        await rig.ended("a")
        job = await rig.ended("b")

    assert job.state.result == b"{}"


# --- lines of the log -------------------------------------------------------------------------------------------------


@pytest.fixture
def debug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of every level are written."""
    monkeypatch.setattr(logs, "writes", lambda _level: True)


@pytest.mark.usefixtures("debug")
async def test_each_start_outcome_and_retry_has_a_line_at_debug(autojump_clock) -> None:
    """With the job, its kind and the attempt."""
    async with running() as rig:
        await rig.enqueue("a", "error", ("retry", 5), ("snooze", 7), "fail")
        await rig.ended("a")
        lines = [line for line in rig.log if line.get("job") == "a"]

    assert all((line["kind"], line["log_level"]) == ("act", "debug") for line in lines[:-1])
    assert [(line["event"], line["attempt"], line.get("outcome"), line.get("status")) for line in lines] == [
        ("attempt started", 1, None, None),
        ("attempt ended", 1, "retry", "retrying"),
        ("job runs again", 1, None, None),
        ("attempt started", 2, None, None),
        ("attempt ended", 2, "retry", "retrying"),
        ("job runs again", 2, None, None),
        ("attempt started", 3, None, None),
        ("attempt ended", 3, "snooze", "scheduled"),
        ("job runs again", 3, None, None),
        ("attempt started", 3, None, None),
        ("attempt ended", 3, "fail", "failed"),
        ("job failed", 3, None, None),
    ]
    assert [line["seconds"] for line in rig.logged("job runs again")][1:] == [5, 7]


async def test_jobs_that_end_well_have_no_line_unless_debug_is_written(autojump_clock) -> None:
    """A line a job would cost more than the job."""
    async with running() as rig:
        await rig.enqueue("a")
        await rig.ended("a")

        assert rig.log == []


def own() -> list[Any]:
    """The attempt that a line of the log would name."""
    attempt = logs.performed.get()
    return [] if attempt is None else list(attempt.named().values())


async def test_what_a_handler_logs_says_whose_attempt_it_is() -> None:
    """Also in its child tasks and threads, and for every way to run it; afterwards nothing is left of it."""

    async def sends(payload: Any) -> list[Any]:
        told = [own(), await trio.to_thread.run_sync(own)]

        async def child() -> None:
            told.append(own())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
        return told

    def computes(payload: Any) -> list[Any]:
        return own()

    threaded = msgspec.structs.replace(in_thread(computes), kind="threaded")
    async with running(handlers=[odd(sends), threaded], patience=20, workers=1) as rig:
        await rig.enqueue("a", kind="odd")
        await rig.enqueue("b", kind="threaded")
        sent, computed = await rig.ended("a"), await rig.ended("b")

    assert sent.state.result == b'[["a","odd",1],["a","odd",1],["a","odd",1]]'
    assert computed.state.result == b'["b","threaded",1]'
    assert own() == []


async def test_jobs_that_are_abandoned_are_named(autojump_clock) -> None:
    """A line each, a few a second."""
    async with running(workers=2) as rig:
        for job_id in "ab":
            await rig.enqueue(job_id, ("stubborn", 60.0))
        await rig.actor.begun(2)
        rig.node.executor.abandon()

        assert {line["job"] for line in rig.logged("job abandoned")} == {"a", "b"}


# --- snoozes that spin ------------------------------------------------------------------------------------------------


async def test_a_job_that_snoozes_again_and_again_leaves_time_between(autojump_clock) -> None:
    """Each snooze is at least as long as the one before, up to a second."""
    async with running() as rig:
        snooze: Step = ("snooze", 0)
        await rig.enqueue("a", *[snooze] * 7, "done", max_retries=0)
        job = await rig.ended("a")
        began = rig.actor.began()

    waits = [round(later - before, 1) for before, later in itertools.pairwise(began)]
    assert (job.status, job.state.attempt) == (Status.DONE, 1)
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]


# --- asyncio ----------------------------------------------------------------------------------------------------------


async def sleeps(payload: Any) -> None:
    await asyncio.sleep(0.01)


async def gives_way(payload: Any) -> None:
    await asyncio.sleep(0)


async def starts_a_task(payload: Any) -> None:
    work = sleeps(payload)
    try:
        asyncio.create_task(work)  # noqa: RUF006 - it never starts
    finally:
        work.close()


async def asks_for_the_loop(payload: Any) -> None:
    asyncio.get_running_loop()


async def has_a_timeout(payload: Any) -> None:
    async with asyncio.timeout(1):
        await asyncio.sleep(0)


async def awaits_a_future(payload: Any) -> None:
    loop = asyncio.new_event_loop()
    try:
        await asyncio.Future(loop=loop)
    finally:
        loop.close()


@pytest.mark.parametrize(
    "function", [sleeps, gives_way, starts_a_task, asks_for_the_loop, has_a_timeout, awaits_a_future]
)
async def test_an_async_handler_that_uses_asyncio_is_told_what_to_do(autojump_clock, function) -> None:
    """Its own error says only that there is no loop."""
    async with running(handlers=[odd(function)]) as rig:
        await rig.enqueue("a", kind="odd", max_retries=0)
        job = await rig.ended("a")

    assert job.state.error is not None
    assert job.state.error.message.endswith(outcomes.ASYNCIO)
    assert "asyncio.run(...)" in outcomes.ASYNCIO


async def test_a_plain_handler_may_run_asyncio() -> None:
    """In its thread."""

    async def work() -> str:
        await asyncio.sleep(0)
        return "ok"

    def function(payload: Any) -> str:
        return asyncio.run(work())

    async with running(handlers=[in_thread(function)], patience=20) as rig:
        await rig.enqueue("a", kind="odd")

        assert (await rig.ended("a")).state.result == b'"ok"'
