"""Schedules: when jobs are made by themselves. Pure: no clock, no store, no task.

Cron lines are read by cronsim, which keeps Debian's rules where clocks change: a job of a certain time of day runs once
on each day, one of every so many minutes or hours goes by real time.
"""

import hashlib
import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError
from msgspec import Meta

from jobpipe.job import JobError, NewJob, Scheduled

Overlap = Literal["skip", "queue", "replace"]
CatchUp = Literal["none", "one", "all"]

LATE = 60.0
"""Seconds after which a firing is missed where missed ones are not made up for (`catch_up` is `none`)."""

COUNTED = 1000
"""The most firings of one standstill that are counted as missed."""

FIRST_LOOK = 64.0
"""Seconds before now in which the latest firings are looked for first; then twice as many, and so on."""

LAST = 253_402_300_799.0
"""The last second of the year 9999: nothing fires after it."""

INSTANT = 0.001
"""Times are whole milliseconds."""


class Spec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When a schedule fires, and what becomes of a firing that comes too late or too early.

    Exactly one of `cron` and `every` is there (see `wrong`). Times are seconds since the epoch.
    """

    cron: Annotated[str, Meta(max_length=200)] | None = None
    timezone: Annotated[str, Meta(max_length=100)] | None = None
    """of the cron line; None: UTC"""
    every: Annotated[float, Meta(ge=1, le=315_360_000)] | None = None
    """an interval: fires at `starts_at + k * every`"""
    starts_at: float | None = None
    """the first time at which it may fire; None: an interval goes by when the schedule was first stored"""
    ends_at: float | None = None
    """it fires before this time only"""
    overlap: Overlap = "skip"
    catch_up: CatchUp = "one"
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    """how many missed firings are made up for, when all are"""
    jitter: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    """a job is due up to so many seconds after its firing"""


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule as it is stored."""

    name: str
    version: int
    """grows with each edit"""
    spec: Spec
    job: NewJob | None
    """what each firing enqueues; its id and times are made anew. None only where the row is damaged"""
    created_at: float
    paused: bool = False
    reason: str | None = None
    """why it is paused, in the words of whoever did it"""
    next_at: float | None = None
    """when it fires next; None: never again"""
    last_at: float | None = None
    """the last firing that made a job"""
    missed: int = 0
    """how many firings made no job"""
    declared: bool = False
    """whether code declares it, or did: it owns its name"""
    orphaned: bool = False
    """whether code declared it, and no live node does any more: it is paused then"""
    error: JobError | None = None
    """what of its row cannot be read: it does not fire then"""


class Declaration(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule that the code of a node declares."""

    name: str
    spec: Spec
    job: NewJob

    @property
    def digest(self) -> str:
        """Tells one from another for the same name."""
        content = msgspec.json.encode((self.spec, template(self.job)))
        return hashlib.blake2b(content, digest_size=16).hexdigest()


class Firing(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done for a schedule that is due, if it still is as it was when that was decided."""

    name: str
    version: int
    due_at: float
    """its `next_at` so far"""
    next_at: float | None
    """its `next_at` from now on"""
    jobs: Sequence[NewJob]
    last_at: float | None
    """the time of the last of `jobs`; None: there is none"""
    missed: int
    """how many firings this adds to those that made no job"""
    overlap: Overlap
    previous: str | None
    """the id of the job that fired last; None: there is none, or overlaps do not matter"""


def wrong(spec: Spec) -> Sequence[tuple[str, str]]:
    """What is wrong with a spec beyond the bounds of its fields: names of fields, each with words."""
    faults = list[tuple[str, str]]()
    if (spec.cron is None) == (spec.every is None):
        faults.append(("cron", "send either cron or every"))
    zone = _zone_or_none(spec.timezone)
    if zone is None:
        faults.append(("timezone", f"unknown time zone {spec.timezone!r}: send a name such as Europe/Berlin"))
    elif spec.timezone is not None and spec.cron is None:
        faults.append(("timezone", "goes with cron only: intervals know no time zone"))
    if spec.cron is not None and (words := _wrong_cron(spec.cron)):
        faults.append(("cron", words))
    if spec.ends_at is not None and spec.starts_at is not None and spec.ends_at <= spec.starts_at:
        faults.append(("ends_at", "is not after starts_at: send a later time"))
    if spec.catch_up == "all" and spec.overlap != "queue":
        faults.append(("catch_up", '"all" needs "overlap": "queue", since those jobs overlap'))
    return faults


def _wrong_cron(line: str) -> str | None:
    try:
        found = next(iter(CronSim(line, datetime(2000, 1, 1, tzinfo=UTC))), None)
    except CronSimError as error:
        return f"{str(error)[:1].lower()}{str(error)[1:]}: send five fields (minute, hour, day, month, weekday), or six"
    return None if found else "never fires: no day matches in 50 years"


def _zone_or_none(name: str | None) -> tzinfo | None:
    try:
        return _zone(name)
    except (LookupError, ValueError, OSError):  # no such file, no name of a file, a folder
        return None


def _zone(name: str | None) -> tzinfo:
    return UTC if name is None or name == "UTC" else ZoneInfo(name)


def in_words(spec: Spec) -> str:
    """When a schedule fires, for people."""
    if spec.cron is None:
        return f"Every {spec.every:.15g} seconds"
    return f"{CronSim(spec.cron, datetime(2000, 1, 1, tzinfo=UTC)).explain()}, {spec.timezone or 'UTC'}"


def times(spec: Spec, created_at: float, after: float) -> Iterator[float]:
    """The times at which a schedule fires after a moment, in order, each once.

    The same whether they are asked for at once or one after another.
    """
    first = after if spec.starts_at is None else max(after, spec.starts_at - INSTANT)
    found = _intervals(spec, created_at, first) if spec.cron is None else _cron_times(spec, spec.cron, first)
    end = math.inf if spec.ends_at is None else spec.ends_at
    return itertools.takewhile(lambda at: at < end and at <= LAST, found)


def _intervals(spec: Spec, created_at: float, after: float) -> Iterator[float]:
    every = spec.every or math.inf
    origin = float(math.floor(created_at)) if spec.starts_at is None else spec.starts_at
    for k in itertools.count(max(0, math.floor((after - origin) / every))):
        at = round(origin + k * every, 3)
        if at > after:
            yield at


def _cron_times(spec: Spec, line: str, after: float) -> Iterator[float]:
    begin = datetime.fromtimestamp(math.floor(after), _zone(spec.timezone))
    try:
        # Where clocks are set back, cronsim goes by the first of the two hours: in the second, it begins in the past.
        for found in CronSim(line, begin):
            if (at := found.timestamp()) > after:
                yield at
                after = at
    except OverflowError:  # beyond the year 9999
        return


def next_after(spec: Spec, created_at: float, after: float) -> float | None:
    """When a schedule fires next after a moment; None: never."""
    return next(times(spec, created_at, after), None)


def decided(schedule: Schedule, now: float) -> Firing:
    """What is to be done for a schedule that is due and can be read."""
    assert schedule.next_at is not None and schedule.job is not None  # noqa: S101, PT018 - else it is not due
    spec = schedule.spec
    missed, due = _due(schedule, schedule.next_at, now)
    jobs = [firing_job(schedule.name, schedule.job, at, now, spec.jitter) for at in due]
    last_at = schedule.last_at
    return Firing(
        name=schedule.name,
        version=schedule.version,
        due_at=schedule.next_at,
        next_at=next_after(spec, schedule.created_at, now),
        jobs=jobs,
        last_at=due[-1] if due else None,
        missed=missed,
        overlap=spec.overlap,
        previous=None if last_at is None or spec.overlap == "queue" else firing_id(schedule.name, last_at),
    )


def _due(schedule: Schedule, since: float, now: float) -> tuple[int, Sequence[float]]:
    """How many firings from `since` to `now` are missed for good, and those that are made, oldest first."""
    spec = schedule.spec
    later = itertools.takewhile(lambda at: at <= now, times(spec, schedule.created_at, since))
    found = [since, *itertools.islice(later, COUNTED)]
    most = spec.limit if spec.catch_up == "all" else 1
    newest = found[-most:] if len(found) <= COUNTED else _newest(schedule, since, now, most)
    made = [at for at in newest if spec.catch_up != "none" or at >= now - LATE]
    return max(0, min(len(found), COUNTED) - len(made)), made


def _newest(schedule: Schedule, since: float, now: float, most: int) -> Sequence[float]:
    """The last `most` firings up to now, at a cost that does not grow with how many there are."""
    width = FIRST_LOOK
    while True:
        begin = max(since, now - width)
        later = times(schedule.spec, schedule.created_at, begin)
        found = deque(itertools.takewhile(lambda at: at <= now, later), maxlen=most)
        if len(found) == most or begin == since:
            return list(found)
        width *= 2


def template(job: NewJob) -> NewJob:
    """What each firing enqueues, without what each makes anew."""
    return msgspec.structs.replace(job, id="", created_at=0.0, run_at=0.0)


def firing_id(name: str, at: float) -> str:
    """The id of the job that a firing makes: it sorts by time."""
    form = "seconds" if at == math.floor(at) else "milliseconds"
    return f"{name}@{datetime.fromtimestamp(round(at, 3), UTC).isoformat(timespec=form)[:-6]}Z"


def firing_job(name: str, job: NewJob, at: float, now: float, jitter: float = 0.0) -> NewJob:
    """The job of one firing, made `now`."""
    run_at = max(now, round(at + jitter * _fraction(name, at), 3))
    options = msgspec.structs.replace(job.options, schedule=Scheduled(name, at))
    return msgspec.structs.replace(
        job, id=firing_id(name, at), created_at=now, run_at=run_at, options=options
    )


def run_by_hand(schedule: Schedule, now: float) -> NewJob | None:
    """A job beside the firings, whose id says when to a millisecond; None where the schedule cannot be read."""
    if schedule.job is None:
        return None
    time = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")[:-6]
    made = firing_job(schedule.name, schedule.job, now, now)
    return msgspec.structs.replace(made, id=f"{schedule.name}@{time}Z")


def _fraction(name: str, at: float) -> float:
    """A number from 0 to 1 that looks random, and is the same on every node."""
    digest = hashlib.blake2b(firing_id(name, at).encode(), digest_size=6).digest()
    return int.from_bytes(digest) / (1 << 48)
