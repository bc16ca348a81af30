"""The life of a job over HTTP: what its rows tell, as spans of time."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from jobpipe.api.holding import found
from jobpipe.api.schemas import (
    EventError,
    MarkView,
    SpanView,
    TimelineView,
    rfc3339,
    when,
)
from jobpipe.engine.node import Node
from jobpipe.job import ACTIVE, Job, Outcome
from jobpipe.timelines import Span, timeline

NODES = 10
"""The most nodes of a job that are asked for when they died."""

CAUSE = 500
"""The most characters of an error's message that are shown as the cause of a wait."""

EXAMPLE: Mapping[str, Any] = {
    "id": "letter-1",
    "status": "running",
    "spans": [
        {
            "from": "2030-01-31T12:00:00.000Z",
            "until": "2030-01-31T12:00:01.000Z",
            "what": "waiting",
            "attempt": None,
            "claim": None,
            "node": None,
            "outcome": None,
            "cause": None,
            "clock_skew": False,
        },
        {
            "from": "2030-01-31T12:00:01.000Z",
            "until": "2030-01-31T12:00:03.500Z",
            "what": "running",
            "attempt": 1,
            "claim": 1,
            "node": "host-1",
            "outcome": None,
            "cause": None,
            "clock_skew": False,
        },
    ],
    "marks": [{"what": "enqueued", "at": "2030-01-31T12:00:00.000Z"}],
    "seconds": {"waiting": 1.0, "running": 2.5},
}


async def timeline_of(node: Node, job_id: str) -> TimelineView:
    """The life of a job. Raises `Problem` when there is none, or `StoreUnavailable`."""
    job = await found(node, job_id)
    handler = node.registry.find(job.asked.kind)
    line = timeline(
        job, node.clock.now(), await _deaths(node, job), None if handler is None else handler.timeout
    )
    seconds = Counter[str]()
    for span in line.spans:
        seconds[span.what] += span.until - span.from_  # type: ignore[assignment]  # a sum of seconds, not of things
    return TimelineView(
        id=job.id,
        status=job.status,
        spans=[_span_view(span, job) for span in line.spans],
        marks=[MarkView(mark.what, when(mark.at)) for mark in line.marks],
        seconds={what: round(total, 3) for what, total in seconds.items()},
    )


async def _deaths(node: Node, job: Job) -> Mapping[int, float]:
    """For each attempt that ended with its node, by claim, when that node gave its last sign of life."""
    broken = [
        attempt
        for attempt in job.attempts
        if attempt.node is not None
        and attempt.error is not None
        and attempt.error.type == "NodeDied"
        and attempt.outcome is Outcome.INTERRUPTED
    ]
    deaths = dict[int, float]()
    for name in list(dict.fromkeys(attempt.node for attempt in reversed(broken)))[:NODES]:
        accounts = await node.store.accounts(name or "")
        died = {account.ended_at: account.began for account in accounts if account.how == "died"}
        deaths |= {
            attempt.claim: died[attempt.finished_at]
            for attempt in broken
            if attempt.node == name and attempt.finished_at in died
        }
    return deaths


def _span_view(span: Span, job: Job) -> SpanView:
    attempt = span.attempt
    error = None if attempt is None or span.what == "running" else attempt.error
    if span.what == "running" and attempt is not None and job.status not in ACTIVE:
        error = attempt.error
    return SpanView(
        from_=rfc3339(span.from_),
        until=rfc3339(span.until),
        what=span.what,
        attempt=None if attempt is None else attempt.number,
        claim=None if attempt is None else attempt.claim,
        node=None if attempt is None else attempt.node,
        outcome=None if attempt is None else attempt.outcome,
        cause=None if error is None else EventError(error.type, error.message[:CAUSE], error.fingerprint),
        clock_skew=span.clock_skew,
    )
