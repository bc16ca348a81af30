"""Filters as they come in, in a query or in JSON, and as they are shown."""

from datetime import datetime
from typing import TypeVar

import msgspec

from jobpipe.api.schemas import FilterView, JobFilter, PlainFilter, when
from jobpipe.job import Status
from jobpipe.store.base import SEVERAL, Filter

T = TypeVar("T")


def filter_from(asked: JobFilter, *, content: bool = True) -> Filter:
    """The filter that was asked for."""
    return Filter(
        status=_some(asked.status),
        kind=_some(asked.kind),
        queue=_some(asked.queue),
        tag=_some(asked.tag),
        group=_some(asked.group),
        key=_some(asked.key),
        id=_some(asked.id),
        node=_some(asked.node),
        error_type=_some(asked.error_type),
        fingerprint=_some(asked.fingerprint),
        text=asked.text,
        created_after=seconds(asked.created_after),
        created_before=seconds(asked.created_before),
        ended_after=seconds(asked.ended_after),
        ended_before=seconds(asked.ended_before),
        content=content,
    )


def plain_filter_from(asked: PlainFilter) -> Filter:
    """The same of a filter that events can be judged by."""
    return msgspec.structs.replace(Filter(), **{name: _some(getattr(asked, name)) for name in SEVERAL})


def _some(values: list[T] | None) -> T | tuple[T, ...] | None:
    """One value or several."""
    if values is None:
        return None
    return values[0] if len(values) == 1 else tuple(dict.fromkeys(values))


def seconds(time: datetime | None) -> float | None:
    """A time that was asked for, in seconds since the epoch."""
    return None if time is None else time.timestamp()


def means_all(asked: JobFilter) -> bool:
    """Whether a filter says nothing, so that it would mean every job."""
    return not any(msgspec.structs.astuple(asked))


def filter_view(where: Filter) -> FilterView:
    """A filter as it is shown."""
    return FilterView(
        status=tuple(map(Status, where.each("status"))),
        kind=where.each("kind"),
        queue=where.each("queue"),
        tag=where.each("tag"),
        group=where.each("group"),
        key=where.each("key"),
        id=where.each("id"),
        node=where.each("node"),
        error_type=where.each("error_type"),
        fingerprint=where.each("fingerprint"),
        text=where.text,
        created_after=when(where.created_after),
        created_before=when(where.created_before),
        ended_after=when(where.ended_after),
        ended_before=when(where.ended_before),
    )
