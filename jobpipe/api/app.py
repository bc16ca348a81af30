"""The HTTP application: Quart with every route, behind the thin front for the hot ones."""

import http

import structlog
from quart import Response, redirect, request
from quart.typing import ResponseReturnValue
from quart_schema import Info, QuartSchema, document_request, document_response, hide
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from jobpipe.api import bulk, enqueue
from jobpipe.api.answers import problem_answer
from jobpipe.api.front import Front
from jobpipe.api.health import health_blueprint
from jobpipe.api.jobs import jobs_blueprint
from jobpipe.api.problems import Problem, ProblemDetails, too_large
from jobpipe.api.queues import queues_blueprint
from jobpipe.api.responses import respond
from jobpipe.api.schemas import BulkReceipt, EnqueueRequest, JobView
from jobpipe.engine.node import Node
from jobpipe.version import VERSION

log = structlog.get_logger("jobpipe")


def create_app(node: Node) -> Front:
    """The ASGI application of a node."""
    app = QuartTrio("jobpipe.api")
    app.config["MAX_CONTENT_LENGTH"] = node.settings.max_body
    app.url_map.strict_slashes = False
    _describe(app)
    _answer_errors(app, node)
    _enqueue_routes(app, node)
    for blueprint in (jobs_blueprint(node), queues_blueprint(node), health_blueprint(node)):
        app.register_blueprint(blueprint)

    @app.get("/")
    @hide
    async def home() -> ResponseReturnValue:
        return redirect("/docs")

    return Front(node, app)


def _describe(app: QuartTrio) -> None:
    """The OpenAPI spec and its page, whose assets come with the package."""
    app.config["QUART_SCHEMA_SWAGGER_JS_URL"] = "/static/swagger-ui-bundle.js"
    app.config["QUART_SCHEMA_SWAGGER_CSS_URL"] = "/static/swagger-ui.css"
    QuartSchema(
        app,
        redoc_ui_path=None,
        scalar_ui_path=None,
        conversion_preference="msgspec",
        info=Info(title="jobpipe", version=VERSION, description="Background jobs: enqueue, watch, cancel, retry."),
    )


def _answer_errors(app: QuartTrio, node: Node) -> None:
    @app.errorhandler(Problem)
    async def on_problem(problem: Problem) -> Response:
        return respond(problem_answer(problem))

    @app.errorhandler(HTTPException)
    async def on_http_error(error: HTTPException) -> Response:
        return respond(problem_answer(_problem_from(error, node)))

    @app.errorhandler(Exception)
    async def on_error(error: Exception) -> Response:
        log.error("a request failed", method=request.method, path=request.path, exc_info=error)
        detail = "this is a fault of jobpipe: the log of the node tells more"
        return respond(problem_answer(Problem(500, "internal", "Internal error", detail)))


def _problem_from(error: HTTPException, node: Node) -> Problem:
    status = error.code or 500
    path = f"{request.method} {request.path}"
    headers = {name: value for name, value in error.get_headers() if name in ("Allow", "Retry-After")}
    match status:
        case 404:
            return Problem(404, "not_found", "There is nothing here", f"no route for {path}: /docs lists them all")
        case 405:
            allowed = headers.get("Allow", "")
            detail = f"{path} is not a thing here: {request.path} takes {allowed}"
            return Problem(405, "method_not_allowed", "The method is not allowed", detail, headers=headers)
        case 413:
            return too_large(node.settings.max_body)
        case _:
            title = http.HTTPStatus(status).phrase
            return Problem(status, title.lower().replace(" ", "_"), title, error.description or title, headers=headers)


def _enqueue_routes(app: QuartTrio, node: Node) -> None:
    """The hot routes once more: for the spec, and for whoever uses Quart's application without the front."""

    @app.post("/enqueue")
    @document_request(EnqueueRequest)
    @document_response(JobView)
    @document_response(JobView, 202)
    @document_response(ProblemDetails, 400)
    @document_response(ProblemDetails, 409)
    @document_response(ProblemDetails, 413)
    @document_response(ProblemDetails, 415)
    @document_response(ProblemDetails, 422)
    @document_response(ProblemDetails, 503)
    async def post_enqueue() -> Response:
        """Enqueue a job.

        202 once the job survives a crash, with its `Location`. The same request with the same `id` again: 200 and the job as it is.
        """
        body = await request.get_data(as_text=False)
        return respond(await enqueue.enqueue(node, request.headers.get("Content-Type", ""), body))

    @app.post("/enqueue/bulk")
    @document_request(list[EnqueueRequest])
    @document_response(BulkReceipt, 202)
    @document_response(ProblemDetails, 400)
    @document_response(ProblemDetails, 409)
    @document_response(ProblemDetails, 413)
    @document_response(ProblemDetails, 415)
    @document_response(ProblemDetails, 422)
    @document_response(ProblemDetails, 503)
    async def post_enqueue_bulk() -> Response:
        """Enqueue many jobs.

        A JSON array is stored whole or not at all. As `application/x-ndjson`, a stream of any length is stored as it comes,
        and answered with a line for each line, in order: `{"id", "status"}`, or a problem with its `line`.
        """
        return respond(await bulk.bulk_array(node, await request.get_data(as_text=False)))
