"""A job's life as spans of time, one after another, from what its rows tell. Pure: times are seconds since the epoch.

The spans cover all of it, from when the job was enqueued until it ended, or until now. Where times cannot be, since
the clocks of two machines differ, or one was set, they are moved as little as that takes, and the span says so.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from jobpipe.job import ACTIVE, ATTEMPTS_KEPT, WAITING, AttemptRecord, Job, Outcome, Status

SpanName = Literal["blocked", "not_due", "waiting", "running", "backoff", "dead", "ended", "forgotten"]
"""Other jobs had to end; it was not due; it was due, and waited to be run; an attempt ran; it waited for its next
attempt; its node was dead, and that was not noticed yet; it had ended, until it was retried by hand; its first attempts
are not kept any more."""

MarkName = Literal["enqueued", "due", "deadline", "timeout", "expires_at", "retried", "edited"]

TOLERANCE = 0.001
"""By how many seconds times may be out of order without a clock being wrong: they are rounded."""

FINAL = frozenset({Outcome.DONE, Outcome.FAIL, Outcome.CANCELLED})
"""After these, only a retry by hand leads on."""


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a job's life."""

    from_: float
    until: float
    what: SpanName
    attempt: AttemptRecord | None = None
    """that which ran, or that after which the job waits"""
    clock_skew: bool = False
    """whether a time was moved, since it cannot have been so"""


class Mark(msgspec.Struct, frozen=True):
    """Something at a time; None: it is not known when."""

    what: MarkName
    at: float | None


class Timeline(msgspec.Struct, frozen=True):
    """A job's life."""

    spans: Sequence[Span]
    """each begins where the one before it ends"""
    marks: Sequence[Mark]
    """in the order of their times, those without a time last"""


def timeline(job: Job, now: float, deaths: Mapping[int, float], timeout: float | None = None) -> Timeline:
    """The life of a job with its attempts.

    `deaths`: for attempts that ended with their node, by claim, when that node gave its last sign of life; `timeout`:
    how long the attempt that runs may take, where the job does not say.
    """
    asked = job.asked
    walk = _Walk(_sound(asked.created_at, now), _end(job, now))
    marks = [Mark("enqueued", walk.at)]
    before: AttemptRecord | None = None
    for attempt in job.attempts:
        if _by_hand(before, attempt.number) and attempt.due_at is not None:
            marks.append(Mark("retried", attempt.due_at))
        started_at = attempt.started_at if attempt.started_at is not None else attempt.finished_at
        walk.wait(started_at, attempt.due_at, _reason(job, before, attempt.number), before)
        walk.run(attempt, deaths.get(attempt.claim))
        before = attempt
    following = job.state.attempt + 1
    if before is None or before.finished_at is not None:
        if job.status in WAITING and _by_hand(before, following):
            marks.append(Mark("retried", asked.run_at))
        blocked = job.status is Status.BLOCKED
        walk.wait(
            None,
            math.inf if blocked else asked.run_at,
            "blocked" if blocked else _reason(job, before, following),
            before,
        )
    marks += _marks(job, now, timeout)
    marks.sort(key=lambda mark: math.inf if mark.at is None else mark.at)
    return Timeline(walk.spans, marks)


def _end(job: Job, now: float) -> float:
    """Until when the life lasts, or has lasted."""
    if job.status in WAITING | ACTIVE:
        return now
    ends = [attempt.finished_at for attempt in job.attempts if attempt.finished_at is not None]
    at = job.state.finished_at if job.state.finished_at is not None else max(ends, default=now)
    return _sound(at, now)


def _sound(at: float | None, otherwise: float) -> float:
    return at if at is not None and math.isfinite(at) else otherwise


def _by_hand(before: AttemptRecord | None, number: int) -> bool:
    """Whether the run of this number was asked for by hand: it comes after an end, or the count began anew."""
    return before is not None and (before.outcome in FINAL or number < before.number)


def _reason(job: Job, before: AttemptRecord | None, number: int) -> SpanName:
    """SpanName a job waits for before it is due, after an attempt, or before the first."""
    options = job.asked.options
    if before is None and len(job.attempts) >= ATTEMPTS_KEPT:
        return "forgotten"
    if before is None:
        return "blocked" if options.depends_on or options.callback_of is not None else "not_due"
    if _by_hand(before, number):
        return "ended"
    return "backoff" if before.outcome in (Outcome.RETRY, Outcome.SNOOZE) else "waiting"


def _marks(job: Job, now: float, timeout: float | None) -> Sequence[Mark]:
    """SpanName lies ahead, or did."""
    asked = job.asked
    marks = list[Mark]()
    if job.status in WAITING and asked.run_at > now:
        marks.append(Mark("due", asked.run_at))
    if asked.options.deadline is not None:
        marks.append(Mark("deadline", asked.options.deadline))
    if asked.expires_at is not None and asked.expires_at != asked.options.deadline:
        marks.append(Mark("expires_at", asked.expires_at))
    longest = asked.options.timeout or timeout
    if longest is not None and job.status in ACTIVE and job.state.started_at is not None:
        marks.append(Mark("timeout", job.state.started_at + longest))
    if job.original is not None:
        marks.append(Mark("edited", None))
    return marks


class _Walk:
    """From the begin of a life to its end: each span begins where the last one ended."""

    def __init__(self, begin: float, end: float) -> None:
        self.at, self._end = begin, max(begin, end)
        self._skewed = end < begin - TOLERANCE
        self.spans: list[Span] = []

    def wait(
        self, until: float | None, due_at: float | None, what: SpanName, after: AttemptRecord | None
    ) -> None:
        """The job waits; until it is due for `what`. None: for all of it, if a reason is known, and to the end."""
        known = due_at is not None and not math.isnan(due_at)
        until = self._moved(until)
        if not known or due_at is None:
            self._add(until, "waiting" if what in ("not_due", "blocked") else what, after)
            return
        self._add(min(max(due_at, self.at), until), what, after)
        self._add(until, "waiting", None)

    def run(self, attempt: AttemptRecord, death: float | None) -> None:
        """An attempt runs; with its node dead in the end, where that is known."""
        until = self._moved(attempt.finished_at)
        known = death is not None and math.isfinite(death)
        alive = min(max(death, self.at), until) if known and death is not None else until
        self._add(alive, "running", attempt, always=True)
        self._add(until, "dead", attempt)

    def _moved(self, at: float | None) -> float:
        """A time, moved to where it can be; None: the end."""
        if at is None:
            return self._end
        moved = min(max(at, self.at), self._end) if math.isfinite(at) else self._end
        self._skewed |= not abs(moved - at) <= TOLERANCE
        return moved

    def _add(
        self, until: float, what: SpanName, attempt: AttemptRecord | None, *, always: bool = False
    ) -> None:
        if until > self.at or always:
            skewed, self._skewed = self._skewed, False
            self.spans.append(Span(from_=self.at, until=until, what=what, attempt=attempt, clock_skew=skewed))
        self.at = until
