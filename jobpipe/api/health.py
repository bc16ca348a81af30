"""`GET /health`: what the node proves of itself."""

from quart import Blueprint, Response
from quart_schema import tag_blueprint

from jobpipe.api.answers import Answer, answer
from jobpipe.api.descriptions import RETRY_LATER
from jobpipe.api.problems import RETRY_AFTER
from jobpipe.api.responses import respond
from jobpipe.api.schemas import Health, lingering_views, unserved_views
from jobpipe.api.spec import Content, answers, problems
from jobpipe.engine.node import Node
from jobpipe.engine.probe import prove
from jobpipe.job import Status
from jobpipe.version import VERSION


def health_blueprint(node: Node) -> Blueprint:
    """The route `/health`."""
    routes = Blueprint("health", __name__)
    tag_blueprint(routes, ["service"])

    @routes.get("/health")
    @answers(200, "The node works.", Content(Health))
    @answers(503, "The node is draining, or a check failed.", Content(Health), headers=RETRY_LATER)
    @problems()
    async def health() -> Response:
        """Check the node's health.

        Reads the store, writes a transaction, and checks that ready jobs are taken while workers are idle.
        200 with the status `ok` when all of that works; 503 while the node drains, or with `detail` on what fails.
        """
        return respond(await check(node))

    return routes


async def check(node: Node) -> Answer:
    """Probe the node now, and say what came of it."""
    proof = await prove(node)
    body = Health(
        status=proof.status,
        version=VERSION,
        node=node.name,
        store=node.store.name,
        workers=node.settings.workers,
        busy=proof.busy,
        queued=proof.count(Status.QUEUED),
        scheduled=proof.count(Status.SCHEDULED),
        retrying=proof.count(Status.RETRYING),
        blocked=proof.count(Status.BLOCKED),
        unserved=unserved_views(proof.unserved),
        lingering=lingering_views(node.lingering.attempts()),
        detail=proof.detail,
    )
    return answer(body) if proof.status == "ok" else answer(body, 503, {"Retry-After": RETRY_AFTER})
