"""What a job waits for, as it is shown: why it does not run yet, or what its cancel waits for."""

import math
from collections.abc import Mapping
from typing import Any

import trio
from msgspec import structs

from jobpipe.api.schemas import WaitsFor, rfc3339
from jobpipe.engine.node import Node
from jobpipe.job import WAITING, Job, Status
from jobpipe.obstacles import Obstacle

OPEN_SHOWN = 100
"""The most jobs that are shown of those that a job waits for."""

_JOB: Mapping[str, Any] = {
    "id": "letter-1",
    "kind": "mail.send",
    "queue": "mail",
    "status": "queued",
    "priority": 0,
    "payload": {"to": "ann@example.com"},
    "result": None,
    "error": None,
    "progress": None,
    "attempt": 0,
    "max_retries": 3,
    "timeout": None,
    "backoff": None,
    "on_crash": "retry",
    "tags": [],
    "created_at": "2030-01-31T12:00:00.000Z",
    "run_at": "2030-01-31T12:00:00.000Z",
    "started_at": None,
    "finished_at": None,
    "expires_at": None,
    "key": "acme",
}
_ATTEMPT: Mapping[str, Any] = {
    "number": 1,
    "claim": 1,
    "node": "host-1",
    "started_at": "2030-01-31T12:00:01.000Z",
    "finished_at": None,
    "outcome": None,
    "error": None,
}
EXAMPLES: Mapping[str, Any] = {
    "waiting": {
        **_JOB,
        "waits_for": {"reason": "key_full", "key": "acme", "running": 2, "max_running": 2},
        "attempts": [],
    },
    "cancelling": {
        **_JOB,
        "status": "cancelling",
        "attempt": 1,
        "started_at": "2030-01-31T12:00:01.000Z",
        "waits_for": {"reason": "handler", "node": "host-1", "since": "2030-01-31T12:00:02.000Z"},
        "attempts": [_ATTEMPT],
    },
}
"""Jobs that wait for something, for the spec."""


async def waits_of(node: Node, job: Job) -> WaitsFor | None:
    """What a job waits for. None: for nothing, or it is not as it was read any more."""
    if job.status is Status.CANCELLING:
        return cancel_waits_for(node, job)
    if job.status is Status.BLOCKED:
        return await _others(node, job)
    if job.status not in WAITING:
        return None
    obstacle = await node.store.obstacle(job, node.clock.now())
    return None if obstacle is None else waits_for(obstacle)


def cancel_waits_for(node: Node, job: Job) -> WaitsFor:
    """What the cancel of a job waits for: the node that holds it knows since when."""
    for attempt in node.held.of_jobs([job.id]):
        if math.isfinite(attempt.stopped_at):
            since = node.clock.now() - (trio.current_time() - attempt.stopped_at)
            return WaitsFor(reason="handler", node=node.name, since=rfc3339(since))
    return WaitsFor(reason="handler", node=job.attempts[-1].node if job.attempts else None)


async def _others(node: Node, job: Job) -> WaitsFor | None:
    still_open = await node.store.open_dependencies(job.id, OPEN_SHOWN)
    if not (still_open.count or still_open.group_open):
        return None
    waits = WaitsFor(reason="dependencies", open=still_open.ids, count=still_open.count)
    if still_open.group is not None:
        waits = structs.replace(waits, reason="group", group=still_open.group)
    return structs.replace(waits, group_open=True) if still_open.group_open else waits


def waits_for(obstacle: Obstacle) -> WaitsFor:
    """What is in the way of a job, as it is shown: with what belongs to the reason."""
    figures = {name: value for name, value in structs.asdict(obstacle).items() if value is not None}
    figures |= {name: rfc3339(figures[name]) for name in ("run_at", "until") if name in figures}
    usual = {"pause_reason": None, "until": None} if obstacle.reason == "paused" else {}
    return WaitsFor(**(usual | figures))
