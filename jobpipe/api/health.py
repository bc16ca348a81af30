"""`GET /health`: proves that the store answers, that it can be written, and that the intake takes jobs."""

from collections.abc import Sequence

import trio
from quart import Blueprint, Response
from quart_schema import document_response

from jobpipe.api.answers import Answer, answer
from jobpipe.api.problems import RETRY_AFTER
from jobpipe.api.responses import respond
from jobpipe.api.schemas import Health
from jobpipe.engine.node import Node
from jobpipe.errors import JobpipeError
from jobpipe.job import Status
from jobpipe.store.base import QueueState
from jobpipe.version import VERSION

PATIENCE = 2.0
"""Seconds that the store has to answer, and the intake to take a job."""


def health_blueprint(node: Node) -> Blueprint:
    """The route `/health`."""
    routes = Blueprint("health", __name__)

    @routes.get("/health")
    @document_response(Health)
    @document_response(Health, 503)
    async def health() -> Response:
        """200 `ok` when the node works; 503 when it drains, or with what is broken."""
        return respond(await check(node))

    return routes


async def check(node: Node) -> Answer:
    """Probe the node now."""
    queues: Sequence[QueueState] = ()
    broken: str | None = "the store does not answer"
    with trio.move_on_after(PATIENCE):
        try:
            queues = await node.store.queues()
            broken = None if node.ledger.trouble is None else f"the store cannot write: {node.ledger.trouble}"
        except JobpipeError as error:
            broken = f"the store cannot be read: {error}"
    if broken is None and node.phase == "running":
        broken = await _stuck(node, queues)
    status = node.phase if node.phase != "running" else "broken" if broken else "ok"
    healthy = status == "ok"
    counted = {status: sum(queue.counts.get(status, 0) for queue in queues) if queues else None for status in Status}
    body = Health(
        status=status,
        version=VERSION,
        node=node.name,
        store=node.store.name,
        workers=node.settings.workers,
        busy=node.attempts.busy,
        queued=counted[Status.QUEUED] or 0,
        scheduled=counted[Status.SCHEDULED] or 0,
        retrying=counted[Status.RETRYING] or 0,
        detail=broken,
    )
    return answer(body, 200 if healthy else 503, None if healthy else {"Retry-After": RETRY_AFTER})


async def _stuck(node: Node, queues: Sequence[QueueState]) -> str | None:
    """What is wrong when jobs are ready and workers idle: the intake is asked to look, and has `PATIENCE` to do it."""
    ready = any(not queue.paused and queue.oldest_queued_at is not None for queue in queues)
    if not ready or node.attempts.busy >= node.settings.workers:
        return None
    ticks = node.intake.ticks
    node.ledger.look()
    with trio.move_on_after(PATIENCE):
        while node.intake.ticks == ticks and node.attempts.busy < node.settings.workers:
            await node.ledger.flushed()
            await trio.sleep(PATIENCE / 20)
        return None
    return "jobs are ready and workers idle, but the intake takes none"
