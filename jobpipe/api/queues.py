"""`/queues`: list, pause, resume and delete queues."""

from typing import Annotated

from quart import Blueprint, Response
from quart_schema import document_querystring, tag_blueprint

from jobpipe.api.answers import Answer, answer
from jobpipe.api.cursors import cursor_of, place_of
from jobpipe.api.faults import faults_of
from jobpipe.api.inputs import query
from jobpipe.api.problems import Code, invalid, no_queue, not_empty
from jobpipe.api.responses import respond
from jobpipe.api.schemas import Means, QueueList, QueueQuery, QueueView, unserved_views
from jobpipe.api.spec import Content, answers, problems
from jobpipe.engine.node import Node
from jobpipe.job import Name
from jobpipe.store.base import QueueState

QueueInPath = Annotated[Name, Means("the queue's name")]


def queues_blueprint(node: Node) -> Blueprint:
    """The routes below `/queues`."""
    routes = Blueprint("queues", __name__)
    tag_blueprint(routes, ["queues"])

    @routes.get("/queues")
    @document_querystring(QueueQuery)
    @answers(200, "A page of queues.", Content(QueueList))
    @problems(Code.INVALID, Code.STORE_UNAVAILABLE)
    async def list_queues() -> Response:
        """List the queues.

        By name, with the number of their jobs in each status. A queue is listed while it has jobs or is paused; an
        empty one drops out of the list within minutes. `served` is false where no live node takes jobs from it.
        """
        return respond(await _list(node, query(QueueQuery)))

    @routes.post("/queues/<name>/pause")
    @answers(200, "The queue, paused.", Content(QueueView))
    @problems(Code.CROSS_SITE, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def pause_queue(name: QueueInPath) -> Response:
        """Pause a queue.

        None of its jobs are started any more, even across restarts; jobs that run go on. The queue need not exist
        yet, and jobs can still be enqueued to it.
        """
        return await _set(name, paused=True)

    @routes.post("/queues/<name>/resume")
    @answers(200, "The queue, no longer paused.", Content(QueueView))
    @problems(Code.CROSS_SITE, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def resume_queue(name: QueueInPath) -> Response:
        """Resume a queue.

        Its jobs are started again, by priority. Resuming a queue that is not paused changes nothing.
        """
        return await _set(name, paused=False)

    @routes.delete("/queues/<name>")
    @answers(204, "The queue is deleted.")
    @problems(Code.CROSS_SITE, Code.NO_SUCH_QUEUE, Code.QUEUE_NOT_EMPTY, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def delete_queue(name: QueueInPath) -> Response:
        """Delete an empty queue.

        It is no longer listed, nor paused. 409 while it has jobs, including those that have ended.
        """
        _check(name)
        change = await node.control.delete_queue(name)
        if change.queue is not None:
            raise not_empty(name, change.queue.counts)
        if change.verdict == "absent":
            raise no_queue(name)
        return respond(Answer(204, b""))

    async def _set(name: str, *, paused: bool) -> Response:
        _check(name)
        await (node.control.pause(name) if paused else node.control.resume(name))
        state = await node.store.queue(name)
        # A queue that was resumed and is empty may be forgotten by now.
        shown = state or QueueState(name=name, paused=paused, counts={})
        return respond(answer(_view(shown, await node.store.served_queues(), node.clock.now())))

    return routes


def _check(name: str) -> None:
    if faults := faults_of(name, Name, "?name"):
        raise invalid(faults)


async def _list(node: Node, wanted: QueueQuery) -> Answer:
    states = await node.store.queues(wanted.limit + 1, place_of(wanted.cursor, str) or "")
    served, unserved = await node.store.served_queues(), await node.served.unserved()
    now = node.clock.now()
    shown = states[: wanted.limit]
    more = len(states) > len(shown)
    cursor = cursor_of(shown[-1].name) if more else None
    return answer(QueueList([_view(state, served, now) for state in shown], cursor, unserved_views(unserved)))


def _view(state: QueueState, served: frozenset[str] | None, now: float) -> QueueView:
    """A queue as it is shown; `served`: the queues from which live nodes take jobs, None: all."""
    age = None if state.oldest_queued_at is None else max(0.0, round(now - state.oldest_queued_at, 3))
    return QueueView(
        name=state.name,
        paused=state.paused,
        served=served is None or state.name in served,
        counts=state.counts,
        oldest_age=age,
    )
