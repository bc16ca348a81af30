"""The overview: is all well, and what needs somebody."""

from collections.abc import Mapping, Sequence

import msgspec

from jobpipe.dashboard.draw import share
from jobpipe.dashboard.facts import Busy
from jobpipe.dashboard.facts import Overview as Facts
from jobpipe.dashboard.search import Word
from jobpipe.dashboard.views.common import job_url, jobs_url, queue_url
from jobpipe.dashboard.words import (
    UNKNOWN,
    Part,
    Sentence,
    clock,
    listed,
    many,
    number,
    says,
    strong,
    time,
)
from jobpipe.engine.attention import Need, needs
from jobpipe.job import Status
from jobpipe.store.base import GateState, QueueState

SQUARES = 64
"""The most workers that have a square of their own."""

LIVE = (Status.SCHEDULED, Status.BLOCKED, Status.QUEUED, Status.RETRYING)
RIVER: Mapping[str, Sequence[Status]] = {
    "Waiting": LIVE,
    "Working": (Status.RUNNING, Status.CANCELLING),
    "Ended and kept": (Status.DONE, Status.FAILED, Status.CANCELLED, Status.EXPIRED),
}
"""The statuses in the order of a job's life."""

PHASES = {
    "starting": "This node is starting.",
    "draining": "This node is draining.",
    "stopped": "This node has stopped.",
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Something that needs somebody: a sentence, since when, and where to go or what to do."""

    icon: str
    words: Sentence
    since: Part | None
    label: str = ""
    href: str = ""
    posts: str = ""
    """where its button posts to; else it is a link"""


class Cell(msgspec.Struct, frozen=True):
    """One status: how many jobs have it, and where those are listed."""

    status: str
    count: str
    zero: bool
    href: str


class Stage(msgspec.Struct, frozen=True):
    """Statuses that belong together."""

    name: str
    cells: Sequence[Cell]


class Tag(msgspec.Struct, frozen=True):
    """A word or two beside a name."""

    text: str
    amber: bool = False


class QueueRow(msgspec.Struct, frozen=True, kw_only=True):
    """A queue."""

    name: str
    href: str
    ready: str
    share: float
    waiting: str
    running: str
    of: str
    """ of 4, where no more may run"""
    oldest: Part | None
    failed: str
    tags: Sequence[Tag]
    act: str
    """pause or resume"""
    url: str
    href_failed: str


class Square(msgspec.Struct, frozen=True):
    """A worker of this node."""

    look: str
    """b: busy, x: its handler does not end; empty: it waits"""
    title: str
    href: str = ""


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """The page."""

    title: str
    dim: str
    sub: Sentence
    rows: Sequence[Row]
    stages: Sequence[Stage]
    queues: Sequence[QueueRow]
    more_queues: bool
    node: str
    squares: Sequence[Square]
    busy: int
    workers: int
    empty: bool
    """whether there is no job at all"""
    stale: str
    """why figures are missing; empty: they are not"""


def overview(facts: Facts, node: str) -> Overview:
    """The page of what was found."""
    seen = facts.seen
    found = needs(seen)
    counts = seen.counts if facts.known else None
    return Overview(
        title=PHASES.get(seen.phase)
        or ("This node is healthy." if _sound(found) else "This node is in trouble."),
        dim=f"{many(len(found), 'thing needs', 'things need')} attention."
        if found
        else "Nothing needs attention.",
        sub=_sub(facts),
        rows=[_row(need) for need in found],
        stages=[Stage(name, [_cell(status, counts) for status in each]) for name, each in RIVER.items()],
        queues=_queues(facts),
        more_queues=facts.more_queues,
        node=node,
        squares=_squares(facts.busy, facts.workers),
        busy=len(facts.busy),
        workers=facts.workers,
        empty=facts.known and not sum(seen.counts.values()),
        stale="" if facts.known else seen.store or "the store cannot be read",
    )


def _sound(found: Sequence[Need]) -> bool:
    return not any(need.what == "store" for need in found)


def _sub(facts: Facts) -> Sentence:
    busy = f"{number(len(facts.busy))} of {many(facts.workers, 'worker is', 'workers are')} busy"
    if not facts.known:
        return says(f"{busy}; the store cannot be read, so there are no figures.")
    ready = facts.seen.counts.get(Status.QUEUED, 0)
    oldest = min((at for one in facts.seen.queues if (at := one.oldest_queued_at) is not None), default=None)
    if not ready or oldest is None:
        return says(f"{busy} and no job is ready to run.")
    return says(
        f"{busy} and {many(ready, 'job is', 'jobs are')} ready to run; the oldest has been due ",
        time(oldest, "for"),
        ".",
    )


def _row(need: Need) -> Row:  # noqa: C901, PLR0911 - one sentence for each sort
    since = None if need.since is None else time(need.since, "since")
    jobs = need.jobs or 0
    waits = f" {many(jobs, 'job waits', 'jobs wait')}"
    match need.what:
        case "store":
            return Row(icon="failed", words=says(strong("The store"), f": {need.detail}"), since=since)
        case "blocked":
            return Row(icon="failed", words=says(strong("Event loop"), f": {need.detail}"), since=since)
        case "listener":
            return Row(icon="retrying", words=says(strong("Notifications"), f": {need.detail}"), since=since)
        case "draining":
            words = says("This node takes no new jobs, and ends once its handlers have")
            return Row(icon="cancelling", words=words, since=since)
        case "handler":
            why = "its cancel" if need.detail == "cancel" else f"its end by {need.detail}"
            words = says(strong(need.name), f" has ignored {why} and occupies a worker")
            return Row(
                icon="cancelling", words=words, since=since, label="Open the job", href=job_url(need.job_id)
            )
        case "backlog":
            text = f" is nearly full: {number(jobs)} of {number(need.most or 0)} jobs wait"
            href = jobs_url(Word("status", "queued"))
            return Row(
                icon="retrying",
                words=says(strong("The backlog"), text),
                since=since,
                label="See them",
                href=href,
            )
        case "unserved":
            words = says(waits[1:], " of kind ", strong(need.name), ", but no live node has a handler for it")
            href = jobs_url(Word("kind", need.name), Word("status", "queued"))
            return Row(icon="queued", words=words, since=since, label="See them", href=href)
        case "queue_unserved":
            words = says(waits[1:], " in queue ", strong(need.name), ", but no live node takes jobs from it")
            href = jobs_url(Word("queue", need.name), Word("status", "queued"))
            return Row(icon="queued", words=words, since=since, label="See them", href=href)
        case "error":
            words = says(
                strong(need.name or "An unreadable error"),
                f" in {listed(need.kinds)}: {many(jobs, 'job has', 'jobs have')} failed, the first ",
                time(need.since or 0.0),
            )
            href = jobs_url(Word("status", "failed"), Word("fingerprint", need.fingerprint))
            return Row(icon="failed", words=words, since=since, label="See them", href=href)
        case "schedule":
            return Row(
                icon="scheduled",
                words=says("Schedule ", strong(need.name), " should have fired"),
                since=since,
            )
        case "paused":
            why = f" ({need.detail})" if need.detail else ""
            words = says("Queue ", strong(need.name, queue_url(need.name)), f" is paused{why};{waits}")
            return Row(
                icon="pause",
                words=words,
                since=since,
                label="Resume",
                posts=queue_url(need.name, "resume"),
                href=queue_url(need.name),
            )


def _cell(status: Status, counts: Mapping[Status, int] | None) -> Cell:
    href = jobs_url(Word("status", status.value))
    if counts is None:
        return Cell(status.value, UNKNOWN, zero=True, href=href)
    count = counts.get(status, 0)
    return Cell(status.value, number(count), zero=not count, href=href)


def _queues(facts: Facts) -> Sequence[QueueRow]:
    queues = facts.seen.queues
    most = max((one.counts.get(Status.QUEUED, 0) for one in queues), default=0)
    return [_queue(one, most, facts.gates.get(one.name), facts) for one in queues]


def _queue(queue: QueueState, most: int, gate: GateState | None, facts: Facts) -> QueueRow:
    counts, now = queue.counts, facts.seen.now
    ready, running = counts.get(Status.QUEUED, 0), counts.get(Status.RUNNING, 0)
    paused = queue.paused and (queue.paused_until is None or queue.paused_until > now)
    limit = None if gate is None else gate.limits.max_running
    act = "resume" if paused else "pause"
    return QueueRow(
        name=queue.name,
        href=queue_url(queue.name),
        ready=number(ready),
        share=share(ready, most),
        waiting=number(sum(counts.get(status, 0) for status in LIVE) - ready),
        running=number(running),
        of="" if limit is None else f" of {number(limit)}",
        oldest=None if queue.oldest_queued_at is None else time(queue.oldest_queued_at, "age"),
        failed=number(counts.get(Status.FAILED, 0)),
        tags=_tags(queue, gate, facts, paused=paused),
        act=act,
        url=queue_url(queue.name, act),
        href_failed=jobs_url(Word("status", "failed"), Word("queue", queue.name)),
    )


def _tags(queue: QueueState, gate: GateState | None, facts: Facts, *, paused: bool) -> Sequence[Tag]:
    tags = list[Tag]()
    if paused:
        why = f": {queue.reason}" if queue.reason else ""
        until = f" until {clock(queue.paused_until)}" if queue.paused_until is not None else ""
        tags.append(Tag(f"paused{until}{why}", amber=True))
    if queue.settings.closed:
        tags.append(Tag("closed"))
    if facts.seen.served is not None and queue.name not in facts.seen.served:
        tags.append(Tag("no node takes its jobs", amber=True))
    if gate is not None and gate.limits.max_running is not None and gate.running >= gate.limits.max_running:
        tags.append(Tag("at its limit"))
    return tags


def _squares(busy: Sequence[Busy], workers: int) -> Sequence[Square]:
    squares = [
        Square(
            "x" if one.ignores else "b",
            f"{one.kind} {one.job_id}" + (f", ignores its {one.ignores}" if one.ignores else ""),
            job_url(one.job_id),
        )
        for one in busy
    ]
    free = max(0, workers - len(squares))
    return [*squares, *[Square("", "free")] * free][:SQUARES]
