"""`/queues`: what waits where; pause and resume."""

import msgspec
from quart import Blueprint, Response
from quart_schema import document_response

from jobpipe.api.answers import answer
from jobpipe.api.problems import Fault, ProblemDetails, invalid, unavailable
from jobpipe.api.responses import respond
from jobpipe.api.schemas import QueueList, QueueView
from jobpipe.engine.node import Node
from jobpipe.errors import JobpipeError
from jobpipe.job import Name
from jobpipe.store.base import QueueState


def queues_blueprint(node: Node) -> Blueprint:
    """The routes below `/queues`."""
    routes = Blueprint("queues", __name__)

    @routes.get("/queues")
    @document_response(QueueList)
    async def list_queues() -> Response:
        """Every queue that was ever used or paused, with its counts by status."""
        try:
            states = await node.store.queues()
        except JobpipeError as error:
            raise unavailable(error) from None
        now = node.clock.now()
        return respond(answer(QueueList([_view(state, now) for state in states])))

    @routes.post("/queues/<name>/pause")
    @document_response(QueueView)
    @document_response(ProblemDetails, 422)
    async def pause_queue(name: str) -> Response:
        """Start no more jobs of a queue, also after a restart; those that run go on."""
        return await _set(name, paused=True)

    @routes.post("/queues/<name>/resume")
    @document_response(QueueView)
    @document_response(ProblemDetails, 422)
    async def resume_queue(name: str) -> Response:
        """Start jobs of a queue again."""
        return await _set(name, paused=False)

    async def _set(name: str, *, paused: bool) -> Response:
        try:
            msgspec.convert(name, Name)
        except msgspec.ValidationError as error:
            raise invalid([Fault("?name", str(error))]) from None
        try:
            await (node.control.pause(name) if paused else node.control.resume(name))
            states = await node.store.queues()
        except JobpipeError as error:
            raise unavailable(error) from None
        (state,) = (state for state in states if state.name == name)
        return respond(answer(_view(state, node.clock.now())))

    return routes


def _view(state: QueueState, now: float) -> QueueView:
    age = None if state.oldest_queued_at is None else max(0.0, round(now - state.oldest_queued_at, 3))
    return QueueView(name=state.name, paused=state.paused, counts=state.counts, oldest_age=age)
