"""How an attempt ended, judged from what its handler returned or raised; and what becomes of the job. Pure."""

import itertools
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import CoroutineType, TracebackType
from typing import Any, assert_never

import msgspec
import trio

from jobpipe import backoff, fingerprints
from jobpipe.engine.unforeseen import in_words
from jobpipe.errors import DamagedRow
from jobpipe.handlers.exceptions import Fail, Retry, Snooze
from jobpipe.job import (
    DEEPEST,
    Backoff,
    JobError,
    Outcome,
    Status,
    holds_nan,
    may_nest_deeper,
    nests_deeper,
    retries_of,
)
from jobpipe.store.base import Claimed, Settlement
from jobpipe.transitions import DIED_LAST, PAST_DEADLINE

MESSAGE = 1_000
"""The most characters of an error's message that are kept."""

TRACEBACK = 8_000
"""The most characters of a traceback that are kept: its head and, mostly, its tail."""

_CUT = "\n[...]\n"

NAME = 200
"""The most characters of the name of an error's type that are kept."""

SHOWN = 80
"""The most characters of a wrong value that are told."""

FRAMES = 30
"""How many frames of a traceback are kept, the innermost ones."""

MANY = 1_000
"""How many errors may hang on one, as its causes and in groups, for all of them to be shown."""

TYPES = 10
"""How many errors that one was raised from, and how many types of those in a group, are in its fingerprint."""

LONGEST_WAIT = 315_360_000
"""Seconds: ten years, the longest wait that a handler may name."""

SHORTEST_SNOOZE, LONG_ENOUGH = 0.1, 1.0
"""Seconds that a snooze lasts at the least: the first one, and one of many in a row. A job must not spin."""

ASYNCIO = (
    "async handlers run on Trio, where asyncio does not work: write a plain `def` that calls asyncio.run(...), "
    "or use trio_asyncio (docs/handlers.md, asyncio)"
)
_ASYNCIO_SAYS = (
    "no running event loop",
    "no current event loop",
    "should be used inside a task",
    "trio.run received unrecognized yield message",
)
"""How asyncio and Trio say that asyncio is used where there is only Trio."""

_OF_TRACEBACK = BaseException.__dict__["__traceback__"].__get__
_OF_CAUSE = BaseException.__dict__["__cause__"].__get__
"""What an error has, whatever its class says."""

_PLAIN = (str, bytes, int, float, type(None))
"""Types whose values, as JSON, need no second look."""


class Verdict(msgspec.Struct, frozen=True):
    """How an attempt ended. `outcome` None: it never began. `after`: seconds until the next, None: by the backoff."""

    outcome: Outcome | None
    result: bytes | None = None
    error: JobError | None = None
    after: float | None = None


DONE_WITHOUT_RESULT = Verdict(Outcome.DONE, result=b"null")
HANDED_BACK = Verdict(None)
CANCELLED = Verdict(Outcome.CANCELLED)
INTERRUPTED = Verdict(Outcome.INTERRUPTED)
SPENT = Verdict(None, error=DIED_LAST)
"""It did not begin: the last attempt that the job may have ended with its node."""
TOO_LATE = Verdict(None, error=PAST_DEADLINE)
"""It did not begin: the job's deadline has passed."""
STOPPED_AT_DEADLINE = Verdict(Outcome.FAIL, error=PAST_DEADLINE)


def returned(value: Any, max_result: int) -> Verdict:  # noqa: ANN401 - a handler may return anything
    """Judge a return value: done if JSON can hold it within the limits, else failed, since no retry would help."""
    if value is None:
        return DONE_WITHOUT_RESULT
    try:
        result = msgspec.json.encode(value)
        if len(result) > max_result:
            size = f"the handler returned {len(result)} bytes, and MAX_BODY allows {max_result}"
            return _unfit(f"{size}: store it elsewhere and return its location")
        if b"null" in result and holds_nan(msgspec.to_builtins(value)):
            raise ValueError("JSON has no NaN and no infinity")  # noqa: TRY301 - the same fault as the others here
        # A `msgspec.Raw` anywhere in it may be anything; what is decoded to see that is also measured.
        plain = None if isinstance(value, _PLAIN) else msgspec.json.decode(result)
        too_deep = may_nest_deeper(result, DEEPEST) and nests_deeper(plain, DEEPEST)
    except RecursionError:
        too_deep, result = True, b""
    except BaseException as error:  # noqa: BLE001, ASYNC103 - whatever stands in the value's way, as in `_text`
        return _unfit(_why_unfit(value, error))  # noqa: ASYNC104 - nothing is awaited here
    if too_deep:
        return _unfit(f"the handler returned a value that nests deeper than {DEEPEST} levels: flatten it")
    return Verdict(Outcome.DONE, result=result)


def _why_unfit(value: Any, error: BaseException) -> str:  # noqa: ANN401 - a handler may return anything
    match value:
        case CoroutineType():
            value.close()  # else Python warns that nobody awaited it
            return "the handler returned a coroutine that was never awaited: define it with `async def`"
        case Retry() | Snooze() | Fail():
            return f"the handler returned {type(value).__name__}: raise it"
        case _:
            return f"the handler returned a value that JSON can't hold: {_text(error)}"


def _unfit(message: str) -> Verdict:
    return Verdict(Outcome.FAIL, error=JobError("ResultError", message))


def raised(error: BaseException) -> Verdict:
    """Judge an exception. In a group, as a nursery raises it, a `Fail` decides, and else what is in it alone."""
    try:
        return _judged(error)
    except BaseException as other:  # noqa: BLE001, ASYNC103 - an error that cannot be looked at, as in `_text`
        words = f"(the error cannot be looked at: {type(other).__name__})"
        return Verdict(Outcome.RETRY, error=JobError("Exception", words))  # noqa: ASYNC104 - nothing is awaited here


def _judged(error: BaseException) -> Verdict:
    word = next((leaf for leaf in _leaves(error) if isinstance(leaf, Fail)), _alone(error))
    match word:
        case Fail():
            return Verdict(Outcome.FAIL, error=described(error, word))
        case Retry(after=None):
            return Verdict(Outcome.RETRY, error=described(error, word))
        case Retry(after=named) | Snooze(seconds=named):
            return _put_off(error, word, named)
        case DamagedRow():
            return Verdict(Outcome.FAIL, error=JobError("DamagedRow", _text(word)))
        case _:
            return Verdict(Outcome.RETRY, error=described(error, word))


def _put_off(error: BaseException, word: Retry | Snooze, named: object) -> Verdict:
    """Run again after the time that a handler named; a time that is none is an error of the handler."""
    wait = _wait(named)
    if wait is None:
        expected = f"{type(word).__name__} takes a number of seconds, from 0 to {LONGEST_WAIT:,} (ten years)"
        return Verdict(Outcome.RETRY, error=described(error, word, f"{expected}: got {_shown(named)}"))
    if isinstance(word, Snooze):
        return Verdict(Outcome.SNOOZE, after=wait)
    return Verdict(Outcome.RETRY, error=described(error, word), after=wait)


def _alone(error: BaseException) -> BaseException:
    """The one error in a group; of a group with several, the group."""
    first, *others = itertools.islice(_leaves(error), 2)
    return error if others else first


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group, in order, however deep it nests; an error that is no group is its own leaf.

    Each is looked at once: a group may hold the same one many times over.
    """
    left, seen = [error], set[int]()
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if inner := _grouped(one):
            left += reversed(inner)
        else:
            yield one


def _grouped(error: BaseException) -> Sequence[BaseException]:
    """What is in a group, as it was made, whatever its class says; nothing in an error that is no group."""
    if not issubclass(type(error), BaseExceptionGroup):  # isinstance would ask the error for its __class__
        return ()
    inner: Sequence[BaseException] = BaseExceptionGroup.exceptions.__get__(error)
    return inner


def _wait(seconds: object) -> float | None:
    """A wait that a handler named, or None when it is no sensible number of seconds."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    try:
        exact = float(seconds)
    except OverflowError:  # an int that no float can hold
        return None
    return exact if 0 <= exact <= LONGEST_WAIT else None


def _shown(value: object) -> str:
    """What somebody gave, for a message."""
    try:
        return _clean(str.__str__(repr(value))[:SHOWN])
    except BaseException:  # noqa: BLE001, ASYNC103 - as in `_text`
        return type(value).__name__  # noqa: ASYNC104 - nothing is awaited here


def timed_out(seconds: float) -> Verdict:
    """The attempt ran longer than it may."""
    return Verdict(
        Outcome.RETRY, error=JobError("Timeout", f"the attempt ran longer than its timeout of {seconds:g} s")
    )


def broken(error: Exception) -> Verdict:
    """Something of jobpipe itself raised what nobody foresaw; the log of the node has its traceback."""
    message = f"a fault of jobpipe ended the attempt ({in_words(error)}); the node's log has more"
    return Verdict(Outcome.FAIL, error=JobError("InternalError", message))


def without_cancelled(error: BaseException) -> BaseException | None:
    """What an exception holds beside Trio's `Cancelled`, or None."""
    try:
        if all(isinstance(leaf, trio.Cancelled) for leaf in _leaves(error)):
            return None
        return error.split(trio.Cancelled)[1] if isinstance(error, BaseExceptionGroup) else error
    except Exception:  # noqa: BLE001 - it nests too deep to be taken apart, or has its own idea of that
        return error


def described(
    error: BaseException, word: BaseException | None = None, message: str | None = None
) -> JobError:
    """An error as it is kept: bounded, and whatever its own methods do.

    For a group, type and message are those of `word` (None: of the only error in it), and the traceback is that of the
    whole. `message` is put before the error's own.
    """
    word = _alone(error) if word is None else word  # whose truth may be anything
    parts = filter(None, (message, _text(word), _advice(word)))
    told = JobError(_name(word), "; ".join(parts)[:MESSAGE], _bounded(_traced(error)))
    return _marked(told, error, word)


def _marked(told: JobError, error: BaseException, word: BaseException) -> JobError:
    """An error with where it was raised in the handler's own code, and its fingerprint; else as it is."""
    try:
        mine = fingerprints.own(fingerprints.frames(_raised_in(word)), fingerprints.frames(_raised_in(error)))
        if not mine:
            return told
        fingerprint = fingerprints.of_frames(_types(word), mine, told.message)
        return msgspec.structs.replace(told, where=_clean(mine[0].name[:NAME]), fingerprint=fingerprint)
    except BaseException:  # noqa: BLE001, ASYNC103 - an error that cannot be looked at, as in `_text`
        return told  # noqa: ASYNC104 - nothing is awaited here


def _raised_in(error: BaseException) -> TracebackType | None:
    traceback_of_error: TracebackType | None = _OF_TRACEBACK(error)
    return traceback_of_error


def _types(word: BaseException) -> Sequence[str]:
    """The types of an error, of those that it was raised from, and of those in a group, each once."""
    causes, cause = [word], _OF_CAUSE(word)
    while cause is not None and len(causes) < TYPES:
        causes.append(cause)
        cause = _OF_CAUSE(cause)
    names = dict.fromkeys(map(_full_name, causes))
    inner = {_full_name(leaf) for leaf in itertools.islice(_leaves(word), MANY)} if _grouped(word) else ()
    return [*names, *sorted(inner)[:TYPES]]


def _full_name(error: BaseException) -> str:
    """The name of an error's type, with its module."""
    shape = type(error)
    return f"{type.__dict__['__module__'].__get__(shape)}.{type.__dict__['__qualname__'].__get__(shape)}"


def _name(error: BaseException) -> str:
    # By way of `type`: a class may have its own idea of its name.
    return _clean(str(type.__dict__["__name__"].__get__(type(error)))[:NAME])


def _traced(error: BaseException) -> str:
    """The traceback of an error with all that led to it; of very many only its own."""
    try:
        if _is_vast(error):
            lines = [
                *traceback.format_tb(error.__traceback__, -FRAMES),
                "(there were too many errors to show them)\n",
            ]
        else:
            # The outermost frames are jobpipe's own, from here to the handler.
            lines = list(
                traceback.TracebackException.from_exception(error, compact=True, limit=-FRAMES).format()
            )
    except BaseException as other:  # noqa: BLE001, ASYNC103 - an error that cannot even be shown, as in `_text`
        return f"(the traceback cannot be shown: {type(other).__name__})"  # noqa: ASYNC104 - nothing is awaited here
    return "".join(lines)


def _is_vast(error: BaseException) -> bool:
    """Whether so many errors hang on one that to show them all would block the event loop."""
    left = [error]
    for _ in range(MANY):
        if not left:
            return False
        one = left.pop()
        linked = (one.__cause__, None if one.__suppress_context__ else one.__context__)
        left += [each for each in linked if each is not None]
        if inner := _grouped(one):
            left += inner
            shape: Any = type(one)
            if shape.exceptions is not BaseExceptionGroup.exceptions:  # what it says may have no end
                return True
    return True


def _advice(error: BaseException) -> str | None:
    """What to do about an error that says little: an async handler that uses asyncio."""
    text = _text(error) if issubclass(type(error), RuntimeError | TypeError) else ""
    return ASYNCIO if any(each in text for each in _ASYNCIO_SAYS) else None


def _text(error: BaseException) -> str:
    try:
        # str.__str__: what an error's own __str__ returns may be a str with methods of its own.
        return _clean(str.__str__(str(error))[:MESSAGE])
    except BaseException:  # noqa: BLE001, ASYNC103 - an error that cannot even be shown: its __str__ may raise SystemExit
        return "(the error cannot be shown)"  # noqa: ASYNC104 - nothing is awaited here


def _bounded(text: str) -> str:
    text = _clean(text)
    if len(text) <= TRACEBACK:
        return text
    head = TRACEBACK // 4
    return text[:head] + _CUT + text[len(text) - (TRACEBACK - head - len(_CUT)) :]


def _clean(text: str) -> str:
    """Text that JSON can hold: lone surrogates replaced."""
    return text.encode(errors="replace").decode()


def settlement(
    job: Claimed,
    verdict: Verdict,
    *,
    started_at: float | None,
    now: float,
    policy: Backoff,
    random: Callable[[], float],
) -> Settlement:
    """What becomes of a job after an attempt: the one place that turns outcomes into statuses.

    A retry counts as an attempt; a snooze, an interruption and a hand-back do not.
    `max_retries: 3` means at most four attempts.
    """
    number = job.attempt + 1
    outcome, status, attempt, run_at = verdict.outcome, Status.QUEUED, job.attempt, None
    error = None if verdict.error is None else fingerprints.marked(verdict.error, job.kind)
    match outcome:
        case Outcome.DONE:
            status, attempt = Status.DONE, number
        case Outcome.RETRY if number <= retries_of(job.max_retries):
            wait = backoff.delay(policy, number, random) if verdict.after is None else verdict.after
            status, attempt, run_at = Status.RETRYING, number, round(now + wait, 3)
        case Outcome.RETRY | Outcome.FAIL:
            outcome, status, attempt = Outcome.FAIL, Status.FAILED, number
        case Outcome.SNOOZE:
            status, run_at = (
                Status.SCHEDULED,
                round(now + max(verdict.after or 0.0, _shortest_snooze(job)), 3),
            )
        case Outcome.CANCELLED:
            status, attempt = Status.CANCELLED, number if started_at is not None else attempt
            outcome = outcome if started_at is not None else None
        case None if verdict is SPENT or verdict is TOO_LATE:
            status = Status.FAILED
        case Outcome.INTERRUPTED | None:
            pass
        case _:
            assert_never(outcome)
    return Settlement(
        seq=job.seq,
        id=job.id,
        queue=job.queue,
        kind=job.kind,
        claim=job.claim,
        outcome=outcome,
        status=status,
        attempt=attempt,
        number=number,
        run_at=run_at,
        due_at=job.run_at,
        started_at=started_at,
        settled_at=now,
        result=verdict.result,
        error=error,
        size=len(job.payload) + len(verdict.result or b"") + _weight(verdict.error),
    )


def _shortest_snooze(job: Claimed) -> float:
    """A snooze is no attempt, so nothing else bounds how often a job may snooze: each in a row waits longer."""
    in_a_row = max(0, job.claim - job.attempt - 1)  # claims that were no attempt
    return min(LONG_ENOUGH, math.ldexp(SHORTEST_SNOOZE, min(in_a_row, 10)))


def _weight(error: JobError | None) -> int:
    return 0 if error is None else len(error.message) + len(error.traceback or "")
