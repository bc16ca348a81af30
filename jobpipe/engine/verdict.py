"""How an attempt ended, judged from what its handler returned or raised; and what becomes of the job. Pure."""

import itertools
import math
import traceback
from collections.abc import Callable, Iterator
from typing import Any, assert_never

import msgspec
import trio

from jobpipe import backoff
from jobpipe.handlers.verdicts import Fail, Retry, Snooze
from jobpipe.job import Backoff, JobError, Outcome, Status
from jobpipe.store.base import Claimed, Settlement

MESSAGE = 1_000
"""The most characters of an error's message that are kept."""

TRACEBACK = 8_000
"""The most characters of a traceback that are kept: its head and, mostly, its tail."""

_CUT = "\n[...]\n"


class Verdict(msgspec.Struct, frozen=True):
    """How an attempt ended. `outcome` None: it never began. `after`: seconds until the next, None: by the backoff."""

    outcome: Outcome | None
    result: bytes | None = None
    error: JobError | None = None
    after: float | None = None


HANDED_BACK = Verdict(None)
CANCELLED = Verdict(Outcome.CANCELLED)
INTERRUPTED = Verdict(Outcome.INTERRUPTED)


def returned(value: Any, max_result: int) -> Verdict:  # noqa: ANN401 - a handler may return anything
    """Judge a return value: done, if JSON can hold it and it is not too large; else fail, as no retry would help."""
    try:
        result = msgspec.json.encode(value)
        if b"null" in result and _holds_nan(msgspec.to_builtins(value)):
            raise ValueError("JSON has no NaN and no infinity")  # noqa: TRY301 - the same fault as the others here
    except Exception as error:  # noqa: BLE001 - whatever stands in the value's way
        return _unfit(f"the handler returned what JSON can't hold: {_text(error)}")
    if len(result) > max_result:
        size = f"the handler returned {len(result)} bytes, and MAX_BODY allows {max_result}"
        return _unfit(f"{size}: store it and return where it is")
    return Verdict(Outcome.DONE, result=result)


def _unfit(message: str) -> Verdict:
    return Verdict(Outcome.FAIL, error=JobError("ResultError", message))


def _holds_nan(value: Any) -> bool:  # noqa: ANN401 - any JSON
    match value:
        case float():
            return not math.isfinite(value)
        case dict():
            return any(map(_holds_nan, value.values()))
        case list() | tuple() | set() | frozenset():
            return any(map(_holds_nan, value))
        case _:
            return False


def raised(error: BaseException) -> Verdict:
    """Judge an exception. In a group, as a nursery raises it, a `Fail` decides, and else what is in it alone."""
    word = next((leaf for leaf in _leaves(error) if isinstance(leaf, Fail)), _alone(error))
    match word:
        case Fail():
            return Verdict(Outcome.FAIL, error=described(error, word))
        case Retry(after=after):
            return Verdict(Outcome.RETRY, error=described(error, word), after=_wait(after))
        case Snooze(seconds=seconds):
            return Verdict(Outcome.SNOOZE, after=_wait(seconds) or 0.0)
        case _:
            return Verdict(Outcome.RETRY, error=described(error, word))


def _alone(error: BaseException) -> BaseException:
    """The one error in a group; of a group with several, the group."""
    first, *others = itertools.islice(_leaves(error), 2)
    return error if others else first


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group, in order, however deep it nests; an error that is no group is its own leaf."""
    left = [error]
    while left:
        one = left.pop()
        if isinstance(one, BaseExceptionGroup):
            left += reversed(one.exceptions)
        else:
            yield one


def _wait(seconds: float | None) -> float | None:
    """A wait that a handler named; what is no sensible number of seconds counts as not named."""
    if isinstance(seconds, int | float) and 0 <= seconds <= 315_360_000:  # noqa: PLR2004 - ten years
        return float(seconds)
    return None


def timed_out(seconds: float) -> Verdict:
    """The attempt ran longer than it may."""
    return Verdict(
        Outcome.RETRY, error=JobError("Timeout", f"the attempt ran longer than its timeout of {seconds:g} s")
    )


def without_cancelled(error: BaseException) -> BaseException | None:
    """What an exception holds beside Trio's `Cancelled`, or None."""
    if all(isinstance(leaf, trio.Cancelled) for leaf in _leaves(error)):
        return None
    try:
        return error.split(trio.Cancelled)[1] if isinstance(error, BaseExceptionGroup) else error
    except Exception:  # noqa: BLE001 - it nests too deep to be taken apart, or has its own idea of that
        return error


def described(error: BaseException, word: BaseException | None = None) -> JobError:
    """An error as it is kept: bounded, and whatever its own methods do.

    Of a group the type and message are those of `word` (None: of what is in it alone), the traceback is of the whole.
    """
    word = _alone(error) if word is None else word  # whose truth may be anything
    try:
        # The outermost frames are jobpipe's own, from here to the handler.
        lines = traceback.TracebackException.from_exception(error, compact=True, limit=-30).format()
        trace = "".join(lines)
    except BaseException as other:  # noqa: BLE001, ASYNC103 - an error that cannot even be shown, as in `_text`
        trace = f"(the traceback cannot be shown: {type(other).__name__})"
    return JobError(type(word).__name__, _text(word), _bounded(trace))


def _text(error: BaseException) -> str:
    try:
        return _clean(str(error)[:MESSAGE])
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
    match outcome:
        case Outcome.DONE:
            status, attempt = Status.DONE, number
        case Outcome.RETRY if number <= job.max_retries:
            wait = backoff.delay(policy, number, random) if verdict.after is None else verdict.after
            status, attempt, run_at = Status.RETRYING, number, round(now + wait, 3)
        case Outcome.RETRY | Outcome.FAIL:
            outcome, status, attempt = Outcome.FAIL, Status.FAILED, number
        case Outcome.SNOOZE:
            status, run_at = Status.SCHEDULED, round(now + (verdict.after or 0.0), 3)
        case Outcome.CANCELLED:
            status, attempt = Status.CANCELLED, number if started_at is not None else attempt
            outcome = outcome if started_at is not None else None
        case Outcome.INTERRUPTED | None:
            pass
        case _:
            assert_never(outcome)
    return Settlement(
        seq=job.seq,
        id=job.id,
        queue=job.queue,
        claim=job.claim,
        outcome=outcome,
        status=status,
        attempt=attempt,
        number=number,
        run_at=run_at,
        started_at=started_at,
        settled_at=now,
        result=verdict.result,
        error=verdict.error,
        size=len(job.payload) + len(verdict.result or b"") + _weight(verdict.error),
    )


def _weight(error: JobError | None) -> int:
    return 0 if error is None else len(error.message) + len(error.traceback or "")
