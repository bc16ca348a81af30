"""The HTTP application: Quart with every route, behind the thin front for the hot ones."""

import functools
import http
from typing import Annotated

import structlog
from msgspec import Meta
from quart import Response, request
from quart_schema import document_querystring, tag
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from jobpipe.api import bulk, enqueue
from jobpipe.api.acting import by_client
from jobpipe.api.answers import problem_answer
from jobpipe.api.audit import audit_blueprint
from jobpipe.api.descriptions import LOCATION
from jobpipe.api.docs import STATIC_MAX_AGE, docs_blueprint
from jobpipe.api.errors import errors_blueprint
from jobpipe.api.events import events_blueprint
from jobpipe.api.front import Front
from jobpipe.api.groups import groups_blueprint
from jobpipe.api.health import health_blueprint
from jobpipe.api.holding import awaited, check
from jobpipe.api.inputs import check_inputs, query, received
from jobpipe.api.jobs import jobs_blueprint
from jobpipe.api.keys import keys_blueprint
from jobpipe.api.lives import lives_blueprint
from jobpipe.api.metrics import metrics_blueprint
from jobpipe.api.nodes import nodes_blueprint
from jobpipe.api.operations import operations_blueprint
from jobpipe.api.problems import Code, Problem, ProblemDetails, internal, no_route, problem_from, too_large
from jobpipe.api.queues import queues_blueprint
from jobpipe.api.responses import respond
from jobpipe.api.schedules import schedules_blueprint
from jobpipe.api.schemas import BulkReceipt, EnqueueQuery, EnqueueRequest, JobView, LineReceipt
from jobpipe.api.spec import Content, answers, describe, problems, takes, with_kind_required
from jobpipe.api.stack import stack_blueprint
from jobpipe.api.streams import streams_blueprint, streams_of
from jobpipe.api.traffic import Traffic, count_requests
from jobpipe.engine.node import Node
from jobpipe.errors import JobpipeError

JOB = Content(
    EnqueueRequest,
    examples={
        "job": {"id": "t1", "payload": "data", "max_retries": 3},
        "later": {"id": "t2", "delay": "5m"},
        "after": {"id": "t3", "depends_on": ["t1", "t2"]},
        "tenant": {"id": "t4", "queue": "mail", "key": "acme"},
        "unique": {"payload": 7, "unique": {"key": "user-7", "on_conflict": "reject"}},
        "throttle": {"payload": 7, "throttle": {"key": "user-7", "every": "10m", "trailing": True}},
        "debounce": {"payload": 7, "debounce": {"key": "user-7", "wait": 5, "max_wait": "1m"}},
    },
)
JOBS = Content(
    Annotated[list[EnqueueRequest], Meta(max_length=bulk.MOST)],
    examples={
        "jobs": [{"id": "t1", "payload": 1}, {"id": "t2", "kind": "demo"}],
        "flow": [{"id": "report", "depends_on": ["t3"], "needs": "ended"}, {"id": "t3"}],
    },
)
JOB_LINES = Content(
    Annotated[str, Meta(description="one job per line, each as in the array")],
    "application/x-ndjson",
    examples={"jobs": '{"id": "t1", "payload": 1}\n{"id": "t2", "kind": "demo"}\n'},
    lines=(EnqueueRequest,),
)
ANSWER_LINES = Content(
    Annotated[str, Meta(description="one line per job: a receipt, or a problem with the number of its line")],
    "application/x-ndjson",
    examples={"receipts": '{"id":"t1","status":"queued"}\n{"id":"t2","status":"queued"}\n'},
    lines=(LineReceipt, ProblemDetails),
)
REFUSALS = (
    Code.NOT_JSON,
    Code.CROSS_SITE,
    Code.ID_CONFLICT,
    Code.DEPENDENCY_FAILED,
    Code.QUEUE_CLOSED,
    Code.GROUP_CLOSED,
    Code.UNKNOWN_DEPENDENCY,
    Code.UNKNOWN_GROUP,
    Code.TOO_LARGE,
    Code.UNSUPPORTED_MEDIA_TYPE,
    Code.INVALID,
    Code.QUEUE_FULL,
    Code.DRAINING,
    Code.STORE_UNAVAILABLE,
)
"""The problems of both routes that enqueue."""

log = structlog.get_logger("jobpipe")


def create_app(node: Node) -> Front:
    """The ASGI application of a node."""
    app = QuartTrio("jobpipe.api", static_folder=None)  # docs.py serves the static files
    app.config["MAX_CONTENT_LENGTH"] = node.settings.max_body
    app.config["SEND_FILE_MAX_AGE_DEFAULT"] = STATIC_MAX_AGE
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False  # //jobs is another path than /jobs: no route, and no redirect
    spec, streams, traffic = describe(app), streams_of(node), Traffic()
    optional_kind = node.settings.shipped_kinds == "on"
    _answer_errors(app, node)
    count_requests(app, traffic)
    check_inputs(app)
    _enqueue_routes(app, node)
    for blueprint in (
        jobs_blueprint(node),
        lives_blueprint(node),
        stack_blueprint(node),
        streams_blueprint(node, streams),
        events_blueprint(node, streams),
        operations_blueprint(node),
        errors_blueprint(node),
        groups_blueprint(node),
        audit_blueprint(node),
        queues_blueprint(node),
        keys_blueprint(node),
        schedules_blueprint(node),
        nodes_blueprint(node),
        health_blueprint(node),
        metrics_blueprint(node, traffic),
        docs_blueprint(spec.schema if optional_kind else lambda: with_kind_required(spec.schema())),
    ):
        app.register_blueprint(blueprint)
    return Front(node, app, traffic)


def _answer_errors(app: QuartTrio, node: Node) -> None:
    def refused(problem: Problem) -> Response:
        node.tallies.refused[problem.details.code] += 1
        return respond(problem_answer(problem))

    @app.errorhandler(Problem)
    @app.errorhandler(JobpipeError)
    async def on_problem(error: Problem | JobpipeError) -> Response:
        return refused(problem_from(error))

    @app.errorhandler(HTTPException)
    async def on_http_error(error: HTTPException) -> Response:
        return refused(_problem_from(error, node))

    @app.errorhandler(Exception)
    async def on_error(error: Exception) -> Response:
        log.error("a request failed", method=request.method, path=request.path, exc_info=error)
        return respond(problem_answer(internal()))


def _problem_from(error: HTTPException, node: Node) -> Problem:
    status = error.code or 500
    path = f"{request.method} {request.path}"
    headers = {name: value for name, value in error.get_headers() if name in ("Allow", "Retry-After")}
    match status:
        case 404:
            return no_route(path)
        case 405:
            allowed = headers.get("Allow", "")
            detail = f"{path} is not supported: use {allowed}"
            return Problem(405, Code.METHOD_NOT_ALLOWED, "Method not allowed", detail, headers=headers)
        case 413:
            return too_large(node.settings.max_body)
        case _ if status >= 500:  # noqa: PLR2004 - HTTP's classes of statuses
            return internal()
        case _:
            title = http.HTTPStatus(status).phrase
            return Problem(status, Code.BAD_REQUEST, title, error.description or title, headers=headers)


def _enqueue_routes(app: QuartTrio, node: Node) -> None:
    """The hot routes again: for the spec, and for use of Quart's application without the front."""

    @app.post("/enqueue")
    @tag(["enqueue"])
    @document_querystring(EnqueueQuery)
    @takes(JOB)
    @answers(
        200,
        "The job as it is now: the same request stored it before, or this one was merged with it; or, with `wait`, it "
        "has ended.",
        Content(JobView),
        headers=LOCATION,
    )
    @answers(202, "The job, stored so that it survives a crash.", Content(JobView), headers=LOCATION)
    @problems(*REFUSALS, Code.NOT_UNIQUE, Code.NO_SUCH_JOB)
    async def enqueue_job() -> Response:
        """Enqueue a job.

        202 once the job is stored and survives a crash. Sending the request again with the same `id` is safe: 200 and
        the job as it is now. 409 when a job with the same `id` and other content exists.

        With `depends_on`, the job is `blocked` until those jobs are done, or with `"needs": "ended"` until they have
        ended. 422 `unknown_dependency` when one does not exist, 409 `dependency_failed` when one has ended otherwise.

        With `group`, the job is added to that group while it is open (`open` in `POST /groups`). 422 `unknown_group`
        when there is none, 409 `group_closed` when it takes no more jobs.

        With `unique`, `throttle` or `debounce`, the request is merged with others for the same: 200 and the job that
        has the key, which this request may have changed, or 409 `not_unique` with its id.

        With `?wait=SECONDS` the response is held until the job ends, for at most so long: 200 when it has ended, else
        202 and the job as it is. 404 when it was deleted meanwhile. With `on_disconnect=cancel`, a client that hangs up
        before has the job cancelled. With `by_hand=true`, the audit says who has enqueued the job: for people, not for
        programs, since such a job is stored in a transaction of its own.
        """
        wanted = query(EnqueueQuery)
        check(wanted)
        hold = functools.partial(awaited, node, seconds=wanted.wait) if wanted.wait else None
        by = by_client(node) if wanted.by_hand else None
        return respond(await enqueue.enqueue(node, *await received(), hold, by))

    @app.post("/enqueue/bulk")
    @tag(["enqueue"])
    @takes(JOBS, JOB_LINES)
    @answers(
        200,
        "The response to NDJSON: one line per request line, in order, sent while the request is still coming in.",
        ANSWER_LINES,
    )
    @answers(202, "The array is stored, and survives a crash.", Content(BulkReceipt))
    @problems(*REFUSALS)
    async def enqueue_jobs() -> Response:
        """Enqueue many jobs.

        A JSON array is stored whole or not at all; its jobs may depend on one another, in any order. With
        `application/x-ndjson`, send one job per line, any number of them: each is stored as it arrives, and answered in
        order with one line, `{"id", "status"}` or a problem with its `line`. A line may depend on lines before it.
        """
        return respond(await bulk.bulk(node, *await received()))
