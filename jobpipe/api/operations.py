"""`/jobs/cancel` and its like, for all jobs that a filter means; `/operations`: how far that is."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

import msgspec
from quart import Blueprint, Response
from quart_schema import document_querystring, tag_blueprint

from jobpipe.api.acting import by_client
from jobpipe.api.answers import Answer, answer
from jobpipe.api.cursors import cursor_of, place_of
from jobpipe.api.enqueue import changes_from, check_json, read
from jobpipe.api.faults import faults_of
from jobpipe.api.filters import filter_from, filter_view, means_all
from jobpipe.api.inputs import query, received
from jobpipe.api.malformed import BOM
from jobpipe.api.problems import Code, Fault, Problem, closed, invalid, no_operation
from jobpipe.api.responses import respond
from jobpipe.api.schemas import (
    BulkEditRequest,
    BulkRequest,
    BulkView,
    Means,
    MoveRequest,
    OperationList,
    OperationQuery,
    OperationView,
    WaitQuery,
    rfc3339,
    when,
)
from jobpipe.api.spec import Content, answers, problems, takes
from jobpipe.engine.node import Node
from jobpipe.job import Name, new_job_id
from jobpipe.store.base import Changes, Filter, NewOperation, Operation, OperationVerb

AT_ONCE = 1.0
"""Seconds for which the response to an operation is held, since most are done by then."""

View = Callable[[], Awaitable[Response]]

OperationInPath = Annotated[Name, Means("the operation's id")]

DONE: Mapping[str, Any] = {
    "Location": {
        "description": "the path of the operation",
        "schema": {"type": "string"},
        "example": "/operations/0190c3e2-5a1e-7c6f-8d10-3f2b6a1c9e55",
    }
}
REFUSALS = (
    Code.NOT_JSON,
    Code.CROSS_SITE,
    Code.UNSUPPORTED_MEDIA_TYPE,
    Code.INVALID,
    Code.STORE_UNAVAILABLE,
)
FAILED = {"filter": {"status": "failed", "kind": "mail.*"}, "rate": 10}
COUNT = {"filter": {"queue": ["mail", "news"], "created_before": "2030-01-31T12:00:00Z"}, "dry_run": True}


class SentEdit(msgspec.Struct, frozen=True):
    """A request whose changes are the bytes that were sent."""

    changes: msgspec.Raw = msgspec.Raw(b"{}")


_decode = msgspec.json.Decoder(BulkRequest).decode
_decode_move = msgspec.json.Decoder(MoveRequest).decode
_decode_edit = msgspec.json.Decoder(BulkEditRequest).decode
_decode_raw = msgspec.json.Decoder(SentEdit).decode


def operations_blueprint(node: Node) -> Blueprint:
    """The routes that do something to many jobs, and those below `/operations`."""
    routes = Blueprint("operations", __name__)
    tag_blueprint(routes, ["operations"])
    _bulk_routes(routes, node)
    _operation_routes(routes, node)
    return routes


def _bulk_routes(routes: Blueprint, node: Node) -> None:
    def bulk(verb: OperationVerb) -> Callable[[View], View]:
        """A route that does a verb to the jobs that a filter means."""
        return _documented(routes, verb, BulkRequest, {"failed": FAILED, "count": COUNT})

    @bulk("cancel")
    async def cancel_jobs() -> Response:
        """Cancel many jobs.

        All jobs that the filter means, as `POST /jobs/ID/cancel` does one: waiting ones end, running ones are asked to
        stop.
        """
        return await _bulk("cancel")

    @bulk("retry")
    async def retry_jobs() -> Response:
        """Retry many jobs.

        All jobs that the filter means and that have ended, as `POST /jobs/ID/retry` does one.
        """
        return await _bulk("retry")

    @bulk("delete")
    async def delete_jobs() -> Response:
        """Delete many jobs.

        All jobs that the filter means and that no worker holds, as `DELETE /jobs/ID` does one.
        """
        return await _bulk("delete")

    @bulk("promote")
    async def promote_jobs() -> Response:
        """Run many waiting jobs now.

        All jobs that the filter means and that wait for a time, as `POST /jobs/ID/promote` does one.
        """
        return await _bulk("promote")

    async def _bulk(verb: OperationVerb) -> Response:
        return respond(await _begin(node, verb, read(await _body(), _decode, BulkRequest, BulkRequest)))

    @_documented(
        routes,
        "move",
        MoveRequest,
        {"move": {"filter": {"queue": "mail"}, "queue": "slow"}},
        Code.QUEUE_CLOSED,
    )
    async def move_jobs() -> Response:
        """Move many waiting jobs into another queue.

        All jobs that the filter means and that wait and that no worker holds. 409 `queue_closed` where the queue takes
        no new jobs.
        """
        request = read(await _body(), _decode_move, MoveRequest, MoveRequest)
        return respond(await _begin(node, "move", request, Changes(queue=request.queue)))

    @_documented(
        routes,
        "edit",
        BulkEditRequest,
        {"edit": {"filter": {"tag": "report"}, "changes": {"priority": 5}}},
        Code.QUEUE_CLOSED,
    )
    async def edit_jobs() -> Response:
        """Edit many waiting jobs.

        All jobs that the filter means and that wait and that no worker holds, as `PATCH /jobs/ID` does one. `changes`
        is what that takes.
        """
        body = await _body()
        request = read(body, _decode_edit, BulkEditRequest, BulkEditRequest)
        return respond(await _begin(node, "edit", request, _changes(node, body)))


def _documented(
    routes: Blueprint, verb: OperationVerb, model: type[BulkRequest], examples: Mapping[str, Any], *more: Code
) -> Callable[[View], View]:
    """A route for a verb, with all that the spec says of it."""

    def decorate(view: View) -> View:
        view = problems(*REFUSALS, *more)(view)
        view = answers(202, "The operation: it goes on.", Content(OperationView), headers=DONE)(view)
        view = answers(
            200,
            "The operation, done within a second; with `dry_run`, how many jobs the filter means.",
            Content(BulkView),
        )(view)
        view = takes(Content(model, examples=examples))(view)
        routes.post(f"/jobs/{verb}")(view)
        return view

    return decorate


def _operation_routes(routes: Blueprint, node: Node) -> None:
    @routes.get("/operations")
    @document_querystring(OperationQuery)
    @answers(200, "A page of operations.", Content(OperationList))
    @problems(Code.INVALID, Code.STORE_UNAVAILABLE)
    async def list_operations() -> Response:
        """List the operations, the newest first.

        Those that run, and for a week those that have ended.
        """
        return respond(await _list(node, query(OperationQuery)))

    @routes.get("/operations/<operation_id>")
    @document_querystring(WaitQuery)
    @answers(200, "The operation.", Content(OperationView))
    @problems(Code.NO_SUCH_OPERATION, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def get_operation(operation_id: OperationInPath) -> Response:
        """Get an operation.

        With `?wait=SECONDS` the response is held until the operation ends, for at most so long.
        """
        _check(operation_id)
        found = await node.operations.ended(operation_id, query(WaitQuery).wait)
        return respond(answer(_view(_found(operation_id, found))))

    @routes.post("/operations/<operation_id>/stop")
    @answers(200, "The operation, stopped, or as it has ended.", Content(OperationView))
    @problems(Code.CROSS_SITE, Code.NO_SUCH_OPERATION, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def stop_operation(operation_id: OperationInPath) -> Response:
        """Stop an operation.

        It changes no more jobs; those that it has changed stay so.
        """
        _check(operation_id)
        stopped = await node.operations.stop(operation_id, by=by_client(node))
        return respond(answer(_view(_found(operation_id, stopped))))


async def _body() -> bytes:
    content_type, body = await received()
    check_json(content_type)
    return body.removeprefix(BOM)


async def _begin(
    node: Node, verb: OperationVerb, request: BulkRequest, changes: Changes | None = None
) -> Answer:
    if means_all(request.filter):
        raise invalid([Fault("/filter", "names no field: send at least one, such as created_before")])
    where = filter_from(request.filter)
    if changes is not None and isinstance(changes.queue, str):
        await _check_open(node, changes.queue)
    if request.dry_run:
        return answer(await _count(node, where))
    operation_id = new_job_id(node.clock.now(), node.rng.getrandbits)
    asked = NewOperation(id=operation_id, verb=verb, where=where, changes=changes, rate=request.rate)
    begun = await node.operations.begin(asked, by=by_client(node))
    now = await node.operations.ended(operation_id, AT_ONCE) or begun
    location = {"Location": f"/operations/{operation_id}"}
    return answer(_view(now), 202 if now.state == "running" else 200, location)


async def _count(node: Node, where: Filter) -> BulkView:
    matched, exact = await node.operations.count(where)
    return BulkView(matched=matched, exact=exact)


async def _check_open(node: Node, queue: str) -> None:
    state = await node.store.queue(queue)
    if state is not None and state.settings.closed:
        raise closed([queue])


def _changes(node: Node, body: bytes) -> Changes:
    try:
        return changes_from(node, bytes(_decode_raw(body).changes))
    except Problem as problem:
        if not problem.details.faults:
            raise
        inside = [Fault(f"/changes{one.pointer}", one.detail) for one in problem.details.faults]
        raise invalid(inside) from None


def _check(operation_id: str) -> None:
    if faults := faults_of(operation_id, Name, "?operation_id"):
        raise invalid(faults)


def _found(operation_id: str, operation: Operation | None) -> Operation:
    if operation is None:
        raise no_operation(operation_id)
    return operation


async def _list(node: Node, wanted: OperationQuery) -> Answer:
    before = place_of(wanted.cursor, tuple[float, str])
    found = await node.store.operations(wanted.limit + 1, before)
    shown = found[: wanted.limit]
    last = shown[-1] if len(found) > len(shown) else None
    cursor = None if last is None else cursor_of((last.created_at, last.asked.id))
    return answer(OperationList([_view(one) for one in shown], cursor))


def _view(operation: Operation) -> OperationView:
    asked = operation.asked
    return OperationView(
        id=asked.id,
        verb=asked.verb,
        filter=filter_view(asked.where),
        changes=sorted(asked.changes.edits) if asked.changes else [],
        rate=asked.rate,
        state=operation.state,
        matched=operation.matched,
        changed=operation.changed,
        refused=operation.refused,
        created_at=rfc3339(operation.created_at),
        ended_at=when(operation.ended_at),
        error=operation.error,
    )
