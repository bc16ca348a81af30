"""The metrics of `/metrics`: names, types, labels and meanings, from what the node has counted.

Each metric comes in pieces of at most about `PIECE` samples, so that whoever writes them can let others have a turn.
"""

import itertools
import platform
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from jobpipe.api.descriptions import PROBLEMS
from jobpipe.api.standing import LIVE, Standing
from jobpipe.api.traffic import Traffic
from jobpipe.engine.node import Node
from jobpipe.engine.tallies import NOBODY, Histogram
from jobpipe.job import Outcome, Status
from jobpipe.version import VERSION

PIECE = 50
"""About the most samples of one piece: to make and write them takes a millisecond or two."""

REFUSALS = (409, 413, 422, 429, 503)
"""The statuses of requests that were understood, and refused."""

RESULTS = ("fired", "skipped", "missed")
"""What comes of a firing."""

SETTLED = (Status.DONE, Status.FAILED, Status.CANCELLED)
"""What an attempt may bring a job to for good."""

Row = tuple[Sequence[str], float]
"""The values of the labels, and that of the sample."""


def families(node: Node, traffic: Traffic, stands: Standing | None) -> Iterator[Metric]:
    """Every metric of a node, in pieces; those that the store would have to tell only where it has."""
    yield from _of_work(node)
    if stands is not None:
        yield from _of_store(stands)
    yield from _of_node(node, up=stands is not None)
    yield from _of_writing(node)
    yield from _of_requests(node, traffic)


def _of_work(node: Node) -> Iterator[Metric]:
    tallies = node.tallies
    yield from _counter(
        "jobpipe_jobs_enqueued",
        "Jobs that were stored through this node, whoever asked for them.",
        ("kind", "queue"),
        [(pair, count.value) for pair, count in tallies.enqueued.items()],
    )
    ends = [
        (kind, outcome, status, count)
        for kind, work in tallies.work.items()
        for (outcome, status), count in work.ends.items()
    ]
    attempts = {(kind, outcome): 0 for kind in tallies.work for outcome in Outcome}
    ended = {(kind, status): 0 for kind in tallies.work for status in SETTLED}
    for kind, outcome, status, count in ends:
        if outcome is not None:
            attempts[kind, outcome] += count
        if status in SETTLED:
            ended[kind, status] += count
    yield from _counter(
        "jobpipe_attempts",
        "Attempts of this node that have ended, by their outcome.",
        ("kind", "outcome"),
        attempts.items(),
    )
    yield from _counter(
        "jobpipe_jobs_ended",
        "Jobs that this node has brought to their end. Those that ended while they waited are not counted.",
        ("kind", "status"),
        ended.items(),
    )
    yield from _histogram(
        "jobpipe_wait_seconds",
        "From the time that a job was due to the start of its attempt. Counted when the attempt has ended.",
        ("queue",),
        [((queue,), waits) for queue, waits in tallies.waits.items()],
    )
    yield from _histogram(
        "jobpipe_run_seconds",
        "From the start of an attempt to its end, cleanup included.",
        ("kind",),
        [((kind,), work.runs) for kind, work in tallies.work.items()],
    )
    yield from _histogram(
        "jobpipe_cancel_seconds",
        "From the request to cancel a running job to the end of its handler's cleanup.",
        (),
        [((), tallies.cancels)],
    )


def _of_store(stands: Standing) -> Iterator[Metric]:
    queues = sorted({queue for queue, _ in stands.jobs})
    yield from _gauge(
        "jobpipe_jobs",
        "Jobs in the whole store that have not ended. Every node says the same: take max by (queue, status), no sum.",
        ("queue", "status"),
        [((queue, status), stands.jobs.get((queue, status), 0)) for queue in queues for status in LIVE],
    )
    yield from _gauge(
        "jobpipe_queue_oldest_seconds",
        "For how long the job of a queue that has been ready the longest waits, 0 where none does. Of the whole store.",
        ("queue",),
        [((queue,), seconds) for queue, seconds in stands.oldest.items()],
    )
    yield from _gauge(
        "jobpipe_queue_paused",
        "1 while a queue is paused. Of the whole store.",
        ("queue",),
        [((queue,), paused) for queue, paused in stands.paused.items()],
    )
    yield from _gauge(
        "jobpipe_unserved_jobs",
        "Ready jobs of a kind that no live node has a handler for. Of the whole store.",
        ("kind",),
        [((kind,), jobs) for kind, jobs in stands.unserved.items()],
    )


def _of_node(node: Node, *, up: bool) -> Iterator[Metric]:
    tallies, lingering = node.tallies, len(node.lingering.attempts())
    busy = max(node.held.busy - lingering, 0)
    idle = max(node.settings.workers - busy - lingering, 0)
    yield from _gauge(
        "jobpipe_workers",
        "Workers of this node: busy, idle, or stuck with a handler that does not end though it should.",
        ("state",),
        [(("busy",), busy), (("idle",), idle), (("stuck",), lingering)],
    )
    yield from _gauge(
        "jobpipe_cancels_ignored",
        "Handlers that should have ended more than 5 seconds ago, as they were cancelled or timed out, and run on.",
        (),
        [((), lingering)],
    )
    yield from _histogram(
        "jobpipe_loop_lag_seconds",
        "How much later than asked the event loop of this node wakes a task, looked at four times a second.",
        (),
        [((), tallies.lags)],
    )
    yield from _counter(
        "jobpipe_loop_blocked_seconds",
        "For how long the event loop stood still, a second or more at a time, by the kind whose handler did it.",
        ("kind",),
        # From 0 on for each: a first second that appears from nowhere is no increase to Prometheus.
        [((kind,), tallies.blocked[kind].value) for kind in (*tallies.work, NOBODY)],
    )
    yield from _counter(
        "jobpipe_schedule_firings",
        "Firings of schedules by this node: fired, skipped (its job was not stored) or missed (too late).",
        ("result",),
        [((result,), tallies.fired[result]) for result in RESULTS],
    )
    yield from _histogram(
        "jobpipe_schedule_late_seconds",
        "How much later than planned this node has fired a schedule.",
        (),
        [((), tallies.lateness)],
    )
    yield from _gauge("jobpipe_store_up", "1 where the store has answered for this scrape.", (), [((), up)])
    yield from _gauge(
        "jobpipe_backlog_limit",
        "How many jobs may wait before this node refuses new ones.",
        (),
        [((), node.settings.max_backlog)],
    )
    yield from _gauge(
        "jobpipe_draining",
        "1 while this node is shutting down.",
        (),
        [((), node.phase in ("draining", "stopped"))],
    )
    labels = {"version": VERSION, "python": platform.python_version()}
    yield InfoMetricFamily("jobpipe_build", "What this node runs.", value=labels)


def _of_writing(node: Node) -> Iterator[Metric]:
    tallies = node.tallies
    yield from _histogram(
        "jobpipe_commit_seconds",
        "How long a transaction of this node took: one that writes new jobs and outcomes, and claims jobs.",
        (),
        [((), tallies.commits)],
    )
    yield from _histogram(
        "jobpipe_batch_jobs",
        "How many jobs such a transaction had, of each part that it had.",
        ("part",),
        [((part,), sizes) for part, sizes in tallies.sizes.items()],
    )
    yield from _counter(
        "jobpipe_stale_results",
        "Writes of this node that came too late and changed nothing: another claim has the job.",
        (),
        [((), node.ledger.stale)],
    )
    yield from _counter(
        "jobpipe_leases_lost", "How often this node was taken for dead.", (), [((), node.lease.losses)]
    )
    yield from _counter(
        "jobpipe_heartbeats_late",
        "Renewals of the lease from a thread, as the event loop was blocked.",
        (),
        [((), node.lease.heartbeat.renewals)],
    )
    yield from _counter(
        "jobpipe_rescued",
        "Jobs that this node took back from dead nodes, by whether an attempt had begun.",
        ("begun",),
        [((word,), tallies.rescued[begun]) for word, begun in (("yes", True), ("no", False))],
    )


def _of_requests(node: Node, traffic: Traffic) -> Iterator[Metric]:
    codes = [code for code, details in PROBLEMS.items() if details.status in REFUSALS]
    yield from _counter(
        "jobpipe_refused",
        "Requests, and lines of streams, that were refused, by the code of the problem.",
        ("code",),
        [((code,), node.tallies.refused[code]) for code in codes],
    )
    yield from _counter(
        "jobpipe_http_requests",
        "Requests that this node has answered.",
        ("route", "method", "status"),
        [*traffic.requests.items()],
    )
    yield from _histogram(
        "jobpipe_http_request_seconds",
        "From a request to the beginning of the response, waits that it asked for included.",
        ("route",),
        [((route,), seconds) for route, seconds in traffic.seconds.items()],
    )


def _counter(name: str, meaning: str, labels: Sequence[str], rows: Iterable[Row]) -> Iterator[Metric]:
    return _pieces(CounterMetricFamily, name, meaning, labels, rows)


def _gauge(name: str, meaning: str, labels: Sequence[str], rows: Iterable[Row]) -> Iterator[Metric]:
    return _pieces(GaugeMetricFamily, name, meaning, labels, rows)


def _pieces(
    kind: Any,  # noqa: ANN401 - the classes of the library share no type that takes rows
    name: str,
    meaning: str,
    labels: Sequence[str],
    rows: Iterable[Row],
) -> Iterator[Metric]:
    """A metric in pieces; without any rows in one, which says what it means."""
    left = iter(rows)
    part = [*itertools.islice(left, PIECE)]
    while True:
        family = kind(name, meaning, labels=labels)
        for values, value in part:
            family.add_metric(values, value)
        yield family
        if not (part := [*itertools.islice(left, PIECE)]):
            return


def _histogram(
    name: str, meaning: str, labels: Sequence[str], rows: Sequence[tuple[Sequence[str], Histogram]]
) -> Iterator[Metric]:
    left = iter(rows)
    samples = len(rows[0][1].buckets) + 2 if rows else 1
    part = [*itertools.islice(left, max(1, PIECE // samples))]
    while True:
        family = HistogramMetricFamily(name, meaning, labels=labels)
        for values, histogram in part:
            family.add_metric(values, _cumulative(histogram), histogram.total)
        yield family
        if not (part := [*itertools.islice(left, max(1, PIECE // samples))]):
            return


def _cumulative(histogram: Histogram) -> Sequence[tuple[str, float]]:
    """The buckets as Prometheus counts them: each with all those below it."""
    bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, itertools.accumulate(histogram.buckets), strict=True))
