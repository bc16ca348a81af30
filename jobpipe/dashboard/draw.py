"""The geometry of drawings, in percent of their width. Pure: no markup, no colours, no clock."""

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from jobpipe.job import ENDED, AttemptRecord, Job, Outcome, Status

LEAST = 0.35
"""The least width of a bar: about 3 px of a drawing that is 900 px wide."""

TICKS = 5
"""About how many times are written below a drawing."""

ROOM = 11.0
"""How far apart two labels have to be so that neither covers the other."""

STEPS = (
    *(1.0, 2.0, 5.0, 10.0, 15.0, 30.0),
    *(60.0, 120.0, 300.0, 600.0, 900.0, 1800.0),
    *(3600.0, 7200.0, 10_800.0, 21_600.0, 43_200.0),
    *(86_400.0, 172_800.0, 604_800.0, 2_592_000.0, 31_536_000.0, 315_360_000.0),
)
"""Seconds between two ticks: round figures of a clock, which is written to the second."""

Shape = Literal["wait", "ready", "backoff", "dead", "run"]
"""What a part of a lifeline is: not due, due and waiting, between two attempts, held by a dead node, an attempt."""

BARS: dict[Outcome | None, str] = {
    None: "running",
    Outcome.DONE: "done",
    Outcome.RETRY: "retrying",
    Outcome.FAIL: "failed",
    Outcome.SNOOZE: "scheduled",
    Outcome.CANCELLED: "cancelled",
    Outcome.INTERRUPTED: "cancelled",
}
"""The status whose colour the bar of an attempt has."""


Place = Callable[[float], float]
"""Where a time is, in percent."""


class Stretch(msgspec.Struct, frozen=True):
    """A part of a job's life: from when to when, in seconds since the epoch."""

    shape: Shape
    begin: float
    end: float
    color: str = ""
    label: str = ""
    note: str = ""


class Drawn(msgspec.Struct, frozen=True):
    """A stretch as it is drawn."""

    shape: Shape
    x: float
    width: float
    color: str
    label: str
    note: str
    """its label and what is below that; empty where there is no room for them"""

    @property
    def end(self) -> float:
        """Where it ends."""
        return self.x + self.width


class Tick(msgspec.Struct, frozen=True):
    """A time that is written below a drawing."""

    x: float
    at: float


class Lifeline(msgspec.Struct, frozen=True):
    """A job's life to scale."""

    begin: float
    end: float
    stretches: Sequence[Drawn]
    ticks: Sequence[Tick]
    now: float | None
    """where now is, for a job that has not ended"""
    limit: float | None
    """where its attempt times out, or its deadline is"""
    running: float
    waiting: float
    """how many seconds it has run and waited by now"""

    @property
    def begins_alone(self) -> bool:
        """Whether there is room for a label at its beginning."""
        return not any(one.label and one.x < ROOM for one in self.stretches)


class Row(msgspec.Struct, frozen=True):
    """An attempt on the scale that all attempts of a job share: how long it waited, and how long it ran."""

    waited: float
    ran: float
    color: str


def stretches(job: Job, now: float) -> Sequence[Stretch]:
    """What a job has done so far, one part after another. Times that contradict each other make no part backwards."""
    created, options = job.asked.created_at, job.asked.options
    asked_for = options.run_at or (None if options.delay is None else created + options.delay)
    due = max(created, asked_for or created)
    runs = [one for one in job.attempts if one.started_at is not None]
    until = job.state.finished_at if job.status in ENDED and job.state.finished_at is not None else now
    first = runs[0].started_at if runs else until
    found = [*_waits(created, min(due, first or until), "wait"), *_waits(due, first or until, "ready")]
    for number, run in enumerate(runs):
        begin = run.started_at or until
        end = until if run.finished_at is None else run.finished_at
        found.append(Stretch("run", begin, max(begin, end), BARS[run.outcome], *_said_of(run)))
        after = runs[number + 1].started_at if number + 1 < len(runs) else None
        found += _between(run, job, end, after, until)
    return found


def _said_of(run: AttemptRecord) -> tuple[str, str]:
    outcome = "running" if run.outcome is None else run.outcome.value
    return f"{run.number} {outcome}", run.error.type if run.error is not None else run.node or ""


def _between(
    run: AttemptRecord, job: Job, end: float, after: float | None, until: float
) -> Sequence[Stretch]:
    """What is between an attempt and the next one, or now."""
    if run.finished_at is None:
        return ()
    if after is None and job.status in ENDED:
        return ()
    begin = after if after is not None else until
    if run.outcome is Outcome.INTERRUPTED:
        return _waits(end, begin, "ready")
    due = begin if after is not None else min(begin, max(end, job.asked.run_at))
    return [*_waits(end, due, "backoff"), *_waits(due, begin, "ready")]


def _waits(begin: float, end: float, shape: Shape) -> Sequence[Stretch]:
    return [Stretch(shape, begin, end)] if end > begin else []


def lifeline(job: Job, now: float, timeout: float | None = None) -> Lifeline | None:
    """A job's life to scale; None: there is nothing to show. `timeout`: of its running attempt, in seconds."""
    parts = stretches(job, now)
    if not parts:
        return None
    begin = min(part.begin for part in parts)
    end = max(part.end for part in parts)
    open_ended = job.status not in ENDED
    limit = _limit(job, parts, timeout) if open_ended else None
    # A limit that is far away would leave nothing to see of what was.
    if limit is not None and limit - begin > 4 * max(end - begin, 0.001):
        limit = None
    last = max(end, limit or end)
    span = max(last - begin, 0.001) * (1.02 if open_ended else 1.0)

    def place(at: float) -> float:
        return round(min(100.0, max(0.0, (at - begin) / span * 100)), 3)

    drawn = _labelled([_drawn(part, place) for part in parts])
    return Lifeline(
        begin=begin,
        end=begin + span,
        stretches=drawn,
        ticks=[Tick(place(at), at) for at in _ticks(begin, span)],
        now=place(max(now, begin)) if open_ended else None,
        limit=None if limit is None else place(limit),
        running=sum(part.end - part.begin for part in parts if part.shape == "run"),
        waiting=sum(part.end - part.begin for part in parts if part.shape != "run"),
    )


def _drawn(part: Stretch, place: Place) -> Drawn:
    x = place(part.begin)
    width = max(place(part.end) - x, LEAST if part.shape == "run" else 0.0)
    x = min(x, 100.0 - width)
    return Drawn(part.shape, round(x, 3), round(width, 3), part.color, part.label, part.note)


def _labelled(drawn: Sequence[Drawn]) -> Sequence[Drawn]:
    """The parts with the labels that have room: from the last one back, since that says how it stands."""
    right, shown = 100.0 + ROOM, list[Drawn]()
    for part in reversed(drawn):
        room = bool(part.label) and right - part.x >= ROOM
        shown.append(part if room else msgspec.structs.replace(part, label="", note=""))
        right = part.x if room else right
    return shown[::-1]


def _limit(job: Job, parts: Sequence[Stretch], timeout: float | None) -> float | None:
    last = parts[-1]
    if job.status is Status.RUNNING and last.shape == "run" and timeout is not None:
        return last.begin + timeout
    return job.asked.options.deadline


def _ticks(begin: float, span: float) -> Sequence[float]:
    """Round times of a clock within a span."""
    step = next((one for one in STEPS if span / one <= TICKS + 1), STEPS[-1])
    first = -(-begin // step) * step
    times = [first + number * step for number in range(TICKS + 2)]
    return [at for at in times if begin + span * 0.08 <= at <= begin + span * 0.94]


def rows(job: Job, now: float) -> Sequence[Row]:
    """Each attempt on a common scale, oldest first: what was before it since the one before, and how long it ran."""
    ended, both = job.asked.created_at, list[tuple[float, float, str]]()
    for run in job.attempts:
        begin = ended if run.started_at is None else run.started_at
        end = now if run.finished_at is None else run.finished_at
        both.append((max(0.0, begin - ended), max(0.0, end - begin), BARS[run.outcome]))
        ended = end
    longest = max((waited + ran for waited, ran, _ in both), default=0.0) or 1.0
    return [Row(round(100 * w / longest, 2), round(100 * r / longest, 2), color) for w, r, color in both]


def share(count: int, most: int) -> float:
    """How long the bar of a figure is beside the longest one, in percent."""
    return round(100 * count / most, 1) if most > 0 else 0.0
