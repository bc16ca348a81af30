"""What needs somebody: one function over what a node and its store have told, worst first. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

import msgspec

from jobpipe.job import WAITING, Status
from jobpipe.store.base import ErrorGroup, QueueState, Unserved

MOST = 8
"""The most things that are told at once: more help nobody to begin."""

PAUSED_FOR = 300.0
"""Seconds that jobs have waited in a paused queue before that is told."""

UNSERVED_FOR = 60.0
"""Seconds that jobs have waited for a node that serves their kind, or their queue, before that is told."""

LATE = 30.0
"""Seconds after its time from which on a firing is late."""

NEW = 3600.0
"""Seconds for which an error group is new."""

NEARLY_FULL = 0.8
"""The part of MAX_BACKLOG from which on the backlog is told."""

What = Literal[
    "store",
    "blocked",
    "handler",
    "draining",
    "backlog",
    "unserved",
    "queue_unserved",
    "error",
    "schedule",
    "paused",
    "listener",
]
"""In order: what keeps all jobs from running, what keeps some, what has gone wrong, what may be forgotten."""


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that needs somebody. What does not belong to it is empty."""

    what: What
    name: str = ""
    """the kind, the queue, the schedule, or the type of the error"""
    job_id: str = ""
    fingerprint: str = ""
    kinds: Sequence[str] = ()
    """the kinds of the jobs that failed"""
    jobs: int | None = None
    most: int | None = None
    """MAX_BACKLOG"""
    since: float | None = None
    detail: str = ""
    """what is broken in words, why a handler was to end, or why a queue is paused"""


class Lingers(msgspec.Struct, frozen=True):
    """A handler that has not ended although it was to."""

    job_id: str
    kind: str
    reason: str
    """cancel, timeout, shutdown, lease or pause"""
    since: float


class Late(msgspec.Struct, frozen=True):
    """A schedule that should have fired."""

    name: str
    due_at: float


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a node and its store have told. What is not known is empty, and nothing is said of it."""

    now: float
    phase: str = "running"
    store: str | None = None
    """why the store cannot be used"""
    watchdog: str | None = None
    listener: str | None = None
    lingering: Sequence[Lingers] = ()
    counts: Mapping[Status, int] = {}
    max_backlog: int = 0
    unserved: Sequence[Unserved] = ()
    queues: Sequence[QueueState] = ()
    served: frozenset[str] | None = None
    """the queues from which live nodes take jobs; None: all"""
    errors: Sequence[ErrorGroup] = ()
    late: Sequence[Late] = ()


def needs(seen: Seen) -> Sequence[Need]:
    """What needs somebody, the worst first, `MOST` at most; of one sort that which has lasted longest."""
    order = get_args(What)
    found = [*_of_node(seen), *_of_jobs(seen), *_of_queues(seen)]
    found.sort(key=lambda need: (order.index(need.what), need.since if need.since is not None else seen.now))
    return found[:MOST]


def _of_node(seen: Seen) -> Iterator[Need]:
    if seen.store is not None:
        yield Need(what="store", detail=seen.store)
    if seen.watchdog is not None:
        yield Need(what="blocked", detail=seen.watchdog)
    if seen.phase not in ("running", "starting"):
        yield Need(what="draining")
    if seen.listener is not None:
        yield Need(what="listener", detail=seen.listener)
    for one in seen.lingering:
        yield Need(what="handler", name=one.kind, job_id=one.job_id, detail=one.reason, since=one.since)


def _of_jobs(seen: Seen) -> Iterator[Need]:
    waiting = sum(seen.counts.get(status, 0) for status in WAITING)
    if seen.max_backlog and waiting > NEARLY_FULL * seen.max_backlog:
        yield Need(what="backlog", jobs=waiting, most=seen.max_backlog)
    for kind in seen.unserved:
        if seen.now - kind.since > UNSERVED_FOR:
            yield Need(what="unserved", name=kind.kind, jobs=kind.jobs, since=kind.since)
    for group in seen.errors:
        if seen.now - group.first_at <= NEW:
            yield Need(
                what="error",
                name=group.newest.type if group.newest is not None else "",
                fingerprint=group.fingerprint,
                kinds=group.kinds,
                jobs=group.jobs,
                since=group.first_at,
            )
    for schedule in seen.late:
        if seen.now - schedule.due_at > LATE:
            yield Need(what="schedule", name=schedule.name, since=schedule.due_at)


def _of_queues(seen: Seen) -> Iterator[Need]:
    for queue in seen.queues:
        oldest, ready = queue.oldest_queued_at, queue.counts.get(Status.QUEUED, 0)
        if oldest is None or not ready:
            continue
        paused = queue.paused and (queue.paused_until is None or queue.paused_until > seen.now)
        if paused and seen.now - oldest > PAUSED_FOR:
            detail = queue.reason or ""
            yield Need(what="paused", name=queue.name, jobs=ready, since=oldest, detail=detail)
        elif not paused and not _is_served(queue, seen) and seen.now - oldest > UNSERVED_FOR:
            yield Need(what="queue_unserved", name=queue.name, jobs=ready, since=oldest)


def _is_served(queue: QueueState, seen: Seen) -> bool:
    return seen.served is None or queue.name in seen.served
