"""The dashboard as an ASGI application of its own, before which the API's front stands with its checks."""

import gzip
import http
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from jobpipe.api.front import PAGES
from jobpipe.api.problems import Code, Problem, internal, problem_from
from jobpipe.dashboard.acts import act_routes
from jobpipe.dashboard.assets import FOREVER, Assets
from jobpipe.dashboard.drawing import Drawing
from jobpipe.dashboard.facts import Facts
from jobpipe.dashboard.live import Live
from jobpipe.dashboard.pages import page_routes
from jobpipe.dashboard.search import Word
from jobpipe.dashboard.topics import Topics
from jobpipe.dashboard.views.common import jobs_url
from jobpipe.engine.node import Node
from jobpipe.errors import JobpipeError

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

PACKED = 1000
"""Bytes from which on a page is packed for a browser that can unpack it."""

App = Callable[[Any, Any, Any], Awaitable[None]]

log = structlog.get_logger("jobpipe")


class Dashboard:
    """Serves everything below `/dashboard`. `run` has to run for its streams to tell anything."""

    def __init__(self, node: Node) -> None:
        facts, assets = Facts(node), Assets()
        drawing = Drawing(node, assets)
        topics = Topics(node, facts, drawing)
        self.live = Live(topics)
        self.run = self.live.run
        self._pages: App = _pages(node, facts, drawing, assets, topics)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI's own
        """Serve one request (ASGI 3): streams here, where a write has a limit of time; all else by Quart."""
        if scope["type"] == "http" and scope["path"].startswith(f"{PAGES}/live/"):
            await self.live.serve(scope, receive, send)
        else:
            await self._pages(scope, receive, send)


def _pages(node: Node, facts: Facts, drawing: Drawing, assets: Assets, topics: Topics) -> QuartTrio:
    app = QuartTrio("jobpipe.dashboard", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = node.settings.max_body
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    _answer_errors(app, drawing)
    app.register_blueprint(page_routes(node, facts, drawing, topics))
    app.register_blueprint(act_routes(node, facts, drawing, topics))

    @app.get(f"{PAGES}/static/<version>/<path:name>")
    async def static(version: str, name: str) -> Response:
        asset = assets.find(version, name)
        if asset is None:
            raise Problem(404, Code.NOT_FOUND, "Not found", "no such file in this version")
        packs = _packs()
        headers = {"Cache-Control": FOREVER, "Vary": "Accept-Encoding"}
        if packs:
            headers["Content-Encoding"] = "gzip"
        body = asset.packed if packs else asset.body
        return Response(body, headers=headers, content_type=asset.content_type)

    @app.after_request
    async def finish(response: Response) -> Response:
        response.headers.update(HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        if response.mimetype == "text/html" and _packs():
            body = await response.get_data(as_text=False)
            if len(body) > PACKED:
                response.set_data(gzip.compress(body, 3, mtime=0))
                response.headers["Content-Encoding"] = "gzip"
                response.headers["Vary"] = "Accept-Encoding"
        return response

    return app


def _packs() -> bool:
    return "gzip" in request.headers.get("Accept-Encoding", "")


def _answer_errors(app: QuartTrio, drawing: Drawing) -> None:
    def shown(problem: Problem) -> Response:
        details = problem.details
        job_id = (request.view_args or {}).get("job_id")
        sought = jobs_url(Word("", job_id)) if job_id and details.code is Code.NO_SUCH_JOB else ""
        body = drawing.page("problem", "", title=details.title, detail=details.detail, sought=sought)
        headers = dict(problem.headers)
        return Response(body, details.status, headers, content_type="text/html; charset=utf-8")

    @app.errorhandler(Problem)
    @app.errorhandler(JobpipeError)
    async def on_problem(error: Problem | JobpipeError) -> Response:
        return shown(problem_from(error))

    @app.errorhandler(HTTPException)
    async def on_http_error(error: HTTPException) -> Response:
        status = error.code or 500
        title = http.HTTPStatus(status).phrase
        allowed = {name: value for name, value in error.get_headers() if name == "Allow"}
        detail = f"There is nothing at {request.path}." if status == http.HTTPStatus.NOT_FOUND else title
        return shown(Problem(status, Code.BAD_REQUEST, title, detail, headers=allowed))

    @app.errorhandler(Exception)
    async def on_error(error: Exception) -> Response:
        log.error("a request failed", method=request.method, path=request.path, exc_info=error)
        return shown(internal())
