"""`/audit`: who did what by hand."""

from collections.abc import Mapping
from typing import Any

import msgspec
from quart import Blueprint, Response
from quart_schema import document_querystring, tag_blueprint

from jobpipe.acts import TIMES, Done
from jobpipe.api.answers import Answer, answer
from jobpipe.api.cursors import cursor_of, place_of
from jobpipe.api.filters import filter_view, seconds
from jobpipe.api.inputs import query
from jobpipe.api.problems import Code
from jobpipe.api.responses import respond
from jobpipe.api.schemas import ActView, AuditList, AuditQuery, DifferenceView, rfc3339
from jobpipe.api.spec import Content, answers, problems
from jobpipe.engine.node import Node
from jobpipe.store.base import AuditFilter, AuditPlace, Filter

ACT: Mapping[str, Any] = {
    "number": 812,
    "at": "2030-01-31T12:00:00.000Z",
    "who": "10.0.0.7",
    "address": "10.0.0.7",
    "node": "vm-1-4711-5f0c2a",
    "act": "edit",
    "what": "job",
    "name": "welcome-9",
    "key": None,
    "changes": {
        "priority": {"from": 0, "to": 5},
        "run_at": {"from": "2030-02-01T08:00:00.000Z", "to": "2030-01-31T12:00:00.000Z"},
    },
    "reason": None,
    "jobs": None,
    "error": None,
}


def audit_blueprint(node: Node) -> Blueprint:
    """The route `/audit`."""
    routes = Blueprint("audit", __name__)
    tag_blueprint(routes, ["audit"])

    @routes.get("/audit")
    @document_querystring(AuditQuery)
    @answers(
        200,
        "A page of acts.",
        Content(AuditList, examples={"acts": {"acts": [ACT], "next_cursor": None}}),
    )
    @problems(Code.INVALID, Code.STORE_UNAVAILABLE)
    async def list_acts() -> Response:
        """List what people did by hand, newest first.

        Who cancelled, retried, promoted, edited or deleted a job, paused a queue, changed a schedule and the like, when
        that was, and what it has changed. An act must match all filters that are given: `?what=job&name=ID` is the
        history of a job, even once it is deleted. With several filters a page may hold fewer than `limit` acts although
        there are more: follow `next_cursor` until it is null. Acts are kept as long as the setting KEEP_AUDIT says.
        """
        return respond(await _list(node, query(AuditQuery)))

    return routes


async def _list(node: Node, wanted: AuditQuery) -> Answer:
    where = AuditFilter(
        who=wanted.who,
        act=wanted.act,
        what=wanted.what,
        name=wanted.name,
        after=seconds(wanted.after),
        before=seconds(wanted.before),
    )
    page = await node.store.audit(where, wanted.limit, place_of(wanted.cursor, AuditPlace))
    cursor = None if page.next_before is None else cursor_of(page.next_before)
    return answer(AuditList([_view(one) for one in page.acts], cursor))


def _view(done: Done) -> ActView:
    return ActView(
        number=done.number,
        at=rfc3339(done.at),
        who=done.who,
        address=done.address,
        node=done.node,
        act=done.act,
        what=done.what,
        name=done.name,
        key=done.key,
        changes={
            field: DifferenceView(_shown(field, before), _shown(field, after))
            for field, (before, after) in done.changes.items()
        },
        reason=done.reason,
        jobs=done.jobs,
        error=done.error,
    )


def _shown(field: str, value: Any) -> Any:  # noqa: ANN401 - any JSON
    """A value as it is shown elsewhere: times and filters are kept as the store has them."""
    if field in TIMES and isinstance(value, int | float):
        return rfc3339(value)
    if field == "filter" and isinstance(value, dict):
        try:
            return filter_view(msgspec.convert(value, Filter))
        except msgspec.ValidationError:
            return value
    return value
