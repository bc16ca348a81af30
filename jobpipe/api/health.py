"""`GET /health`: checks that the store can be read and written, and that ready jobs are taken."""

from collections.abc import Callable, Sequence

import trio
from quart import Blueprint, Response
from quart_schema import tag_blueprint

from jobpipe.api.answers import Answer, answer
from jobpipe.api.problems import RETRY_AFTER
from jobpipe.api.responses import respond
from jobpipe.api.schemas import Health, unserved_views
from jobpipe.api.spec import Content, answers, problems
from jobpipe.api.words import RETRY_LATER
from jobpipe.engine.node import Node
from jobpipe.errors import JobpipeError
from jobpipe.job import Status
from jobpipe.store.base import Overview, Unserved
from jobpipe.version import VERSION

PATIENCE = 2.0
"""Seconds that all of it may take: `jobpipe health` and the HEALTHCHECK of the image wait for 3."""

SHORTEST_NAP, LONGEST_NAP = 0.001, 0.05
"""Seconds between two looks."""

SILENT = "the store does not respond"


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
    """Probe the node now; takes at most `PATIENCE` seconds."""
    probe = Probe(node)
    with trio.move_on_after(PATIENCE):
        await probe.run()
    broken = probe.told()
    status = node.phase if node.phase != "running" else "broken" if broken else "ok"
    body = Health(
        status=status,
        version=VERSION,
        node=node.name,
        store=node.store.name,
        workers=node.settings.workers,
        busy=node.held.busy,
        queued=probe.count(Status.QUEUED),
        scheduled=probe.count(Status.SCHEDULED),
        retrying=probe.count(Status.RETRYING),
        unserved=unserved_views(probe.unserved),
        detail=broken or node.watchdog.told() or node.news.told(),
    )
    return answer(body) if status == "ok" else answer(body, 503, {"Retry-After": RETRY_AFTER})


class Probe:
    """Checks one thing after another; `broken` says what a check that failed, or did not end, means."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._seen: Overview | None = None
        self.unserved: Sequence[Unserved] = ()
        self.broken: str | None = SILENT

    async def run(self) -> None:
        """Probe; while the node starts or drains, only whether the store can be read."""
        ticks = (
            self._node.intake.ticks
        )  # from before the look at the queues: what is ready there may be taken meanwhile
        try:
            self._seen = await self._node.store.overview(self._node.registry.served)
            self.unserved = await self._node.served.unserved()
        except JobpipeError as error:
            self.broken = f"the store cannot be read: {error}"
            return
        if self._node.phase == "running":
            self.broken = "the store does not complete a write"
            await self._written()
            trouble = self._node.ledger.trouble
            if trouble is not None:
                self.broken = f"the store cannot write: {trouble}"
                return
            self.broken = "jobs are ready and workers are idle, but no job is claimed"
            await self._taken(self._seen, ticks)
        self.broken = None

    def told(self) -> str | None:
        """What is broken, if anything; why the store does not respond, where writing it has told."""
        trouble = self._node.ledger.trouble
        return f"{SILENT}: {trouble}" if self.broken == SILENT and trouble else self.broken

    def count(self, status: Status) -> int | None:
        """How many jobs have a status; None when the store did not tell."""
        return None if self._seen is None else self._seen.counts.get(status, 0)

    async def _written(self) -> None:
        """Wait until a transaction got through, or the ledger says why none can."""
        ledger = self._node.ledger
        commits = ledger.commits
        ledger.look()
        await _until(lambda: ledger.commits > commits or ledger.trouble is not None)

    async def _taken(self, seen: Overview, ticks: int) -> None:
        """Wait until the intake has taken jobs, where some that it may take were ready and workers are idle."""
        node = self._node
        if seen.ready:
            await _until(lambda: node.intake.ticks > ticks or node.held.busy >= node.settings.workers)


async def _until(true: Callable[[], bool]) -> None:
    """Return when something is so that does not tell when it changes."""
    nap = SHORTEST_NAP
    while not true():
        await trio.sleep(nap)
        nap = min(LONGEST_NAP, nap * 2)
