"""`GET /metrics`: what this node counts, and how the store stands, for Prometheus."""

from typing import Annotated

import trio
from msgspec import Meta
from quart import Blueprint, Response, request
from quart_schema import tag_blueprint

from jobpipe.api.answers import Answer
from jobpipe.api.exposition import CONTENT_TYPES, OPENMETRICS, Format, chosen, written
from jobpipe.api.families import families
from jobpipe.api.responses import respond
from jobpipe.api.spec import Content, answers, problems
from jobpipe.api.standing import standing
from jobpipe.api.traffic import Traffic
from jobpipe.engine.node import Node

FRESH = 1.0
"""Seconds for which a text is good enough for whoever asks, so that nobody can have it made all the time."""

TEXT = Content(
    Annotated[str, Meta(description="the metrics as text, format 0.0.4 of Prometheus")],
    "text/plain",
    examples={"metrics": '# TYPE jobpipe_workers gauge\njobpipe_workers{state="busy"} 3.0\n'},
)
OPEN = Content(Annotated[str, Meta(description="the same as OpenMetrics 1.0")], OPENMETRICS)


def metrics_blueprint(node: Node, traffic: Traffic) -> Blueprint:
    """The route `/metrics`."""
    routes = Blueprint("metrics", __name__)
    tag_blueprint(routes, ["service"])
    texts = Texts(node, traffic)

    @routes.get("/metrics")
    @answers(200, "The metrics.", TEXT, OPEN)
    @problems()
    async def metrics() -> Response:
        """Get metrics.

        For Prometheus, in its text format, or as OpenMetrics where `Accept` says so. Counts are those of this node
        since its start; gauges of jobs and queues are those of the whole store, and left out while it does not answer.
        """
        form = chosen(request.accept_mimetypes)
        return respond(Answer(200, await texts.get(form), CONTENT_TYPES[form], {"Cache-Control": "no-store"}))

    return routes


class Texts:
    """The text of each format. It is made at most once in `FRESH` seconds, for all who ask meanwhile."""

    def __init__(self, node: Node, traffic: Traffic) -> None:
        self._node, self._traffic = node, traffic
        self._making = trio.Lock()
        self._made: dict[Format, tuple[float, bytes]] = {}

    async def get(self, form: Format) -> bytes:
        """The text, not older than `FRESH` seconds when this is called."""
        async with self._making:
            begun = trio.current_time()
            made = self._made.get(form)
            if made is not None and begun < made[0] + FRESH:
                return made[1]
            stands = await standing(self._node)
            text = await written(families(self._node, self._traffic, stands), form)
            self._made[form] = begun, text
            return text
