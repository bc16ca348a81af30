"""`/queues`: what waits where; pause and resume."""

from quart import Blueprint, Response
from quart_schema import tag_blueprint

from jobpipe.api.answers import answer
from jobpipe.api.faults import faults_of
from jobpipe.api.problems import Code, invalid, unavailable
from jobpipe.api.responses import respond
from jobpipe.api.schemas import QueueList, QueueView, unserved_views
from jobpipe.api.spec import Content, answers, problems
from jobpipe.engine.node import Node
from jobpipe.errors import JobpipeError
from jobpipe.job import Name
from jobpipe.store.base import QueueState


def queues_blueprint(node: Node) -> Blueprint:
    """The routes below `/queues`."""
    routes = Blueprint("queues", __name__)
    tag_blueprint(routes, ["queues"])

    @routes.get("/queues")
    @answers(200, "The queues, by name.", Content(QueueList))
    @problems(Code.STORE_UNAVAILABLE)
    async def list_queues() -> Response:
        """Every queue that was ever used or paused, with its counts by status."""
        try:
            states = await node.store.queues()
            unserved = await node.served.unserved()
        except JobpipeError as error:
            raise unavailable(error) from None
        now = node.clock.now()
        views = [_view(state, now) for state in states]
        return respond(answer(QueueList(views, unserved_views(unserved))))

    @routes.post("/queues/<name>/pause")
    @answers(200, "The queue, paused.", Content(QueueView))
    @problems(Code.CROSS_SITE, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def pause_queue(name: str) -> Response:
        """Start no more jobs of a queue, also after a restart; those that run go on."""
        return await _set(name, paused=True)

    @routes.post("/queues/<name>/resume")
    @answers(200, "The queue, at work.", Content(QueueView))
    @problems(Code.CROSS_SITE, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def resume_queue(name: str) -> Response:
        """Start jobs of a queue again."""
        return await _set(name, paused=False)

    async def _set(name: str, *, paused: bool) -> Response:
        if faults := faults_of(name, Name, "?name"):
            raise invalid(faults)
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
