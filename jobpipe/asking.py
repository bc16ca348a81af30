"""What is asked of a job by several fields together, whoever asks: over HTTP, or from a handler. Pure.

Each field by itself is checked where it is read.
"""

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Annotated, NamedTuple, Protocol

import msgspec
from msgspec import Meta

from jobpipe.job import LATEST, Debounce, Needs, OnConflict, Over, Phase, Span, Throttle, Unique, UniqueKey
from jobpipe.merging import MAX_WAITS

PHASES: Sequence[tuple[Phase, ...]] = (("queued",), ("queued", "running"))

MERGED = ("unique", "throttle", "debounce")

Phases = Annotated[
    list[Phase],
    Meta(
        min_length=1,
        max_length=2,
        description='["queued"] (until a worker takes the job) or ["queued", "running"] (until it has ended); '
        "default: the latter",
    ),
]


class AskedUnique(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    rename={"while_": "while", "for_": "for"},
):
    """How a job is to be unique, with what may be left out."""

    key: UniqueKey | None = None
    over: Annotated[list[Over], Meta(max_length=2, description="an array of kind and payload")] | None = None
    while_: Phases | None = None
    for_: Span | None = None
    on_conflict: OnConflict = "return"


class AskedThrottle(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How jobs of a key are to be spaced."""

    key: UniqueKey
    every: Span
    trailing: bool = False


class AskedDebounce(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """For how long it has to be quiet before a job runs, with what may be left out."""

    key: UniqueKey
    wait: Span
    max_wait: Span | None = None


class Asking(Protocol):
    """The fields of a request that mean something together."""

    @property
    def delay(self) -> float | None: ...
    @property
    def run_at(self) -> datetime | None: ...
    @property
    def expires_at(self) -> datetime | None: ...
    @property
    def deadline(self) -> datetime | None: ...
    @property
    def depends_on(self) -> Sequence[str]: ...
    @property
    def needs(self) -> Needs: ...
    @property
    def group(self) -> str | None: ...
    @property
    def unique(self) -> AskedUnique | None: ...
    @property
    def throttle(self) -> AskedThrottle | None: ...
    @property
    def debounce(self) -> AskedDebounce | None: ...


class Wrong(NamedTuple):
    """What is wrong with a request."""

    pointer: str
    """the field, as a JSON pointer"""
    detail: str
    """what is wrong with it, and what to do: goes on from the name of the field"""


TOO_FAR = "is after the year 9999, in UTC: send an earlier time"

AFTER_DEADLINE = (
    "is not before the deadline, by which the job has to be done: send an earlier time, or leave it out"
)


def seconds(time: datetime) -> float:
    """A time in seconds since the epoch, in whole milliseconds."""
    return round(time.timestamp(), 3)


def wrong(asked: Asking, ids: Collection[str | None] = ()) -> list[Wrong]:
    """What is wrong with the fields of a request together; `ids` are those of the jobs that it asks for."""
    faults: list[Wrong] = []
    if asked.run_at is not None or asked.expires_at is not None or asked.deadline is not None:
        faults += _wrong_times(asked)
    if asked.delay is not None and asked.run_at is not None:
        faults.append(Wrong("/run_at", "cannot be combined with delay: send one of them"))
    if asked.needs != "done" and not asked.depends_on:
        faults.append(Wrong("/needs", "says how other jobs have to end: send depends_on too"))
    if asked.depends_on and not set(asked.depends_on).isdisjoint(ids):
        faults.append(Wrong("/depends_on", "names the job itself"))
    if asked.unique is not None or asked.throttle is not None or asked.debounce is not None:
        faults += _wrong_merging(asked)
    return faults


def _wrong_times(asked: Asking) -> Iterator[Wrong]:
    for name in ("run_at", "expires_at", "deadline"):
        time: datetime | None = getattr(asked, name)
        if time is not None and seconds(time) > LATEST:
            yield Wrong(f"/{name}", TOO_FAR)
    if asked.expires_at is not None and asked.deadline is not None and asked.expires_at >= asked.deadline:
        yield Wrong("/expires_at", AFTER_DEADLINE)


def _wrong_merging(asked: Asking) -> Iterator[Wrong]:
    first, *others = (name for name in MERGED if getattr(asked, name) is not None)
    for name in others:
        yield Wrong(f"/{name}", f"cannot be combined with {first}: send one of them")
    if first != "unique":
        for name in ("delay", "run_at"):
            if getattr(asked, name) is not None:
                yield Wrong(f"/{name}", f"cannot be combined with {first}, which says when the job is due")
        if asked.depends_on:
            yield Wrong("/depends_on", f"cannot be combined with {first}")
    if asked.group is not None:
        yield Wrong(f"/{first}", "cannot be combined with group: a group has jobs of its own")
    if (
        first == "unique"
        and asked.depends_on
        and asked.unique is not None
        and asked.unique.on_conflict == "replace"
    ):
        yield Wrong("/depends_on", 'cannot be combined with "on_conflict": "replace"')
    if asked.unique is not None:
        yield from _wrong_unique(asked.unique)
    if asked.debounce is not None and debounce(asked.debounce).max_wait < asked.debounce.wait:
        yield Wrong("/debounce/max_wait", "is less than wait")


def _wrong_unique(asked: AskedUnique) -> Iterator[Wrong]:
    over = _over(asked)
    if asked.key is None and not over:
        yield Wrong("/unique", "names nothing that is to be unique: send key or over")
    if asked.on_conflict == "replace" and "kind" not in over:
        yield Wrong("/unique/over", "lacks kind: a job is replaced by one of its own kind only")
    if _phases(asked) not in PHASES:
        yield Wrong("/unique/while", 'begins with queued: send ["queued"] or ["queued", "running"]')


def unique(asked: AskedUnique) -> Unique:
    """How a job is to be unique, with what was left out."""
    return Unique(asked.key, _over(asked), _phases(asked), asked.for_, asked.on_conflict)


def _over(asked: AskedUnique) -> tuple[Over, ...]:
    """What belongs to a unique key beside the key that was sent."""
    if asked.over is not None:
        return tuple(sorted(set(asked.over)))
    return ("kind",) if asked.key is not None else ("kind", "payload")


def _phases(asked: AskedUnique) -> tuple[Phase, ...]:
    return PHASES[-1] if asked.while_ is None else tuple(sorted(set(asked.while_)))


def throttle(asked: AskedThrottle) -> Throttle:
    """How jobs of a key are to be spaced."""
    return Throttle(asked.key, asked.every, asked.trailing)


def debounce(asked: AskedDebounce) -> Debounce:
    """For how long it has to be quiet, with what was left out."""
    max_wait = MAX_WAITS * asked.wait if asked.max_wait is None else asked.max_wait
    return Debounce(asked.key, asked.wait, max_wait)
