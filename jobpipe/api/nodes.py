"""`/nodes`: the nodes that run, those that did, and what became of their attempts each time that one stopped."""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import UNSET
from quart import Blueprint, Response
from quart_schema import document_querystring, tag_blueprint

from jobpipe.api.answers import Answer, answer
from jobpipe.api.cursors import cursor_of, place_of
from jobpipe.api.inputs import query
from jobpipe.api.problems import Code, no_node
from jobpipe.api.responses import respond
from jobpipe.api.schemas import (
    Means,
    NodeList,
    NodeQuery,
    NodeView,
    StopList,
    StopView,
    UnfinishedView,
    rfc3339,
    when,
)
from jobpipe.api.spec import Content, answers, problems
from jobpipe.engine.node import Node
from jobpipe.job import Key
from jobpipe.store.base import Account, NodePlace, NodeState

NodeInPath = Annotated[Key, Means("the node's name")]

_STOP: Mapping[str, Any] = {
    "how": "abandoned",
    "signal": "SIGTERM",
    "began_at": "2030-01-31T12:00:00.000Z",
    "ended_at": "2030-01-31T12:00:35.000Z",
    "seconds": 35.0,
    "active": 3,
    "finished": 2,
    "handed_back": 0,
    "abandoned": 1,
    "unbegun": 4,
}
STOPS: Mapping[str, Any] = {
    "stops": [
        {
            **_STOP,
            "attempts": [
                {
                    "job": "report-7",
                    "kind": "report.total",
                    "attempt": 1,
                    "end": "abandoned",
                    "status": "queued",
                    "line": "/srv/shop/reports.py:41 in total",
                }
            ],
        }
    ]
}
NODE: Mapping[str, Any] = {
    "name": "host-1-4711-a1b2c3",
    "live": True,
    "draining": False,
    "joined_at": "2030-01-31T09:00:00.000Z",
    "lease_until": "2030-01-31T12:00:10.000Z",
    "version": "1.0.0",
    "workers": 10,
    "kinds": ["report.total"],
    "queues": None,
    "jobs": 3,
    "last_stop": None,
}


def nodes_blueprint(node: Node) -> Blueprint:
    """The routes below `/nodes`."""
    routes = Blueprint("nodes", __name__)
    tag_blueprint(routes, ["service"])

    @routes.get("/nodes")
    @document_querystring(NodeQuery)
    @answers(
        200,
        "A page of nodes.",
        Content(NodeList, examples={"nodes": {"nodes": [NODE], "next_cursor": None}}),
    )
    @problems(Code.INVALID, Code.STORE_UNAVAILABLE)
    async def list_nodes() -> Response:
        """List nodes.

        Those that run come first, then those that have stopped or died; the newest first of each. With what each
        serves, how many jobs it holds, and how it stopped.
        """
        return respond(await _list(node, query(NodeQuery)))

    @routes.get("/nodes/<node_name>")
    @answers(200, "The node.", Content(NodeView, examples={"node": NODE}))
    @problems(Code.NO_SUCH_NODE, Code.STORE_UNAVAILABLE)
    async def get_node(node_name: NodeInPath) -> Response:
        """Get a node.

        One that runs, or one that has stopped or died.
        """
        return respond(answer(_view(await _found(node, node_name), node.clock.now())))

    @routes.get("/nodes/<node_name>/stops")
    @answers(200, "Its stops, the newest first.", Content(StopList, examples={"stops": STOPS}))
    @problems(Code.NO_SUCH_NODE, Code.STORE_UNAVAILABLE)
    async def list_stops(node_name: NodeInPath) -> Response:
        """Get the account of each stop of a node.

        What became of the attempts that ran when it began to stop, or when it died: `active` is the sum of `finished`,
        `handed_back` and `abandoned`. Those that did not finish are named, at most 100. The newest 50 stops are kept.
        """
        await _found(node, node_name)
        return respond(
            answer(StopList([_stop_view(one, whole=True) for one in await node.store.accounts(node_name)]))
        )

    return routes


async def _found(node: Node, name: str) -> NodeState:
    state = await node.store.node(name)
    if state is None:
        raise no_node(name)
    return state


async def _list(node: Node, wanted: NodeQuery) -> Answer:
    states = await node.store.nodes(wanted.limit + 1, place_of(wanted.cursor, NodePlace))
    shown, now = states[: wanted.limit], node.clock.now()
    cursor = cursor_of(shown[-1].place) if len(states) > len(shown) else None
    return answer(NodeList([_view(state, now) for state in shown], cursor))


def _view(state: NodeState, now: float) -> NodeView:
    stop = state.last_stop
    return NodeView(
        name=state.name,
        live=state.lease_until is not None and state.lease_until > now,
        draining=state.draining,
        joined_at=when(state.joined_at),
        lease_until=when(state.lease_until),
        version=state.version,
        workers=state.workers,
        kinds=state.kinds,
        queues=state.queues,
        jobs=state.holds,
        last_stop=None if stop is None else _stop_view(stop),
    )


def _stop_view(account: Account, *, whole: bool = False) -> StopView:
    attempts = [
        UnfinishedView(
            job=one.job,
            kind=one.kind,
            attempt=one.attempt,
            end=one.end,
            status=one.status,
            line=one.line,
        )
        for one in account.attempts
    ]
    return StopView(
        how=account.how,
        signal=account.signal,
        began_at=rfc3339(account.began),
        ended_at=rfc3339(account.ended_at),
        seconds=round(account.ended_at - account.began, 3),
        active=account.active,
        finished=account.finished,
        handed_back=account.handed_back,
        abandoned=account.abandoned,
        unbegun=account.unbegun,
        attempts=attempts if whole else UNSET,
    )
