"""`/errors`: failed jobs in groups, one for each error."""

from typing import Annotated

from msgspec import UNSET
from quart import Blueprint, Response
from quart_schema import document_querystring, tag_blueprint

from jobpipe.api.answers import Answer, answer
from jobpipe.api.cursors import cursor_of, place_of
from jobpipe.api.faults import faults_of
from jobpipe.api.filters import seconds
from jobpipe.api.inputs import query
from jobpipe.api.problems import Code, invalid, no_error
from jobpipe.api.responses import respond
from jobpipe.api.schemas import ErrorList, ErrorQuery, ErrorView, Means, WindowQuery, rfc3339
from jobpipe.api.spec import Content, answers, problems
from jobpipe.engine.node import Node
from jobpipe.job import Name
from jobpipe.store.base import ErrorGroup, ErrorPlace, Window

FingerprintInPath = Annotated[Name, Means("the fingerprint of the error")]

GROUP = {
    "fingerprint": "1-5d0a2c4b7e91f683",
    "type": "ConnectError",
    "message": "could not reach host-7:587",
    "where": "shop.mail.send",
    "jobs": 1280,
    "exact": True,
    "first_at": "2030-01-31T02:10:04.512Z",
    "last_at": "2030-01-31T05:47:31.020Z",
    "kinds": ["mail.invoice", "mail.welcome"],
    "queues": ["mail"],
    "examples": ["welcome-9", "invoice-12", "welcome-8"],
}
TRACEBACK = "Traceback (most recent call last):\n  ..."


def errors_blueprint(node: Node) -> Blueprint:
    """The routes below `/errors`."""
    routes = Blueprint("errors", __name__)
    tag_blueprint(routes, ["errors"])

    @routes.get("/errors")
    @document_querystring(ErrorQuery)
    @answers(
        200,
        "A page of error groups.",
        Content(ErrorList, examples={"errors": {"errors": [GROUP], "complete": True, "next_cursor": None}}),
    )
    @problems(Code.INVALID, Code.STORE_UNAVAILABLE)
    async def list_errors() -> Response:
        """List the errors with which jobs have failed.

        Failed jobs with the same error are one group: which error, where, how many jobs, since when, and until when.
        That whose last job failed last comes first. With `ended_after` and `ended_before`, of the jobs that failed
        within that time.
        """
        return respond(await _list(node, query(ErrorQuery)))

    @routes.get("/errors/<fingerprint>")
    @document_querystring(WindowQuery)
    @answers(
        200,
        "The error group.",
        Content(ErrorView, examples={"error": GROUP | {"traceback": TRACEBACK}}),
    )
    @problems(Code.NO_SUCH_ERROR, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def get_error(fingerprint: FingerprintInPath) -> Response:
        """Get an error with which jobs have failed.

        With the traceback of the job that failed last, and the ids of more jobs than in the list.
        `GET /jobs?fingerprint=...` lists them all, and `POST /jobs/retry {"filter": {"fingerprint": ...}}` retries
        them.
        """
        if faults := faults_of(fingerprint, Name, "?fingerprint"):
            raise invalid(faults)
        found = await node.store.error_group(fingerprint, _window(query(WindowQuery)))
        if found is None:
            raise no_error(fingerprint)
        return respond(answer(_view(found, whole=True)))

    return routes


async def _list(node: Node, wanted: ErrorQuery) -> Answer:
    before = place_of(wanted.cursor, ErrorPlace)
    found = await node.store.error_groups(wanted.limit, before, _window(wanted))
    cursor = None if found.next_before is None else cursor_of(found.next_before)
    views = [_view(one) for one in found.groups]
    return answer(ErrorList(errors=views, complete=found.complete, next_cursor=cursor))


def _window(wanted: WindowQuery) -> Window:
    return Window(seconds(wanted.ended_after), seconds(wanted.ended_before))


def _view(group: ErrorGroup, *, whole: bool = False) -> ErrorView:
    error = group.newest
    return ErrorView(
        fingerprint=group.fingerprint,
        type=None if error is None else error.type,
        message=None if error is None else error.message,
        where=None if error is None else error.where or None,
        jobs=group.jobs,
        exact=group.exact,
        first_at=rfc3339(group.first_at),
        last_at=rfc3339(group.last_at),
        kinds=group.kinds,
        queues=group.queues,
        examples=group.examples,
        traceback=(None if error is None else error.traceback) if whole else UNSET,
    )
