"""The pages: what is asked in their addresses, read through `Facts`, made into views and drawn."""

from urllib.parse import quote

from quart import Blueprint, Response, redirect, request
from quart.typing import ResponseReturnValue

from jobpipe.api.cursors import cursor_of, place_of
from jobpipe.api.filters import filter_from
from jobpipe.api.problems import no_operation
from jobpipe.dashboard.drawing import Drawing
from jobpipe.dashboard.facts import Facts
from jobpipe.dashboard.search import Search, read
from jobpipe.dashboard.topics import Topics
from jobpipe.dashboard.views import jobs as jobs_view
from jobpipe.dashboard.views.common import HOME, job_url
from jobpipe.dashboard.views.job import Page
from jobpipe.dashboard.views.overview import overview
from jobpipe.engine.node import Node
from jobpipe.store.base import Place

HTML = "text/html; charset=utf-8"

VERBS = [(verb, label) for verb, (label, _) in jobs_view.VERBS.items()]


def html(body: bytes, status: int = 200) -> Response:
    """A page as a response."""
    return Response(body, status, content_type=HTML)


def page_routes(node: Node, facts: Facts, drawing: Drawing, topics: Topics) -> Blueprint:
    """The routes that only show."""
    routes = Blueprint("pages", __name__)

    @routes.get(HOME)
    async def home() -> Response:
        page = overview(await facts.overview(), node.name)
        return html(drawing.page("overview", "Overview", live=f"{HOME}/live/overview", page=page))

    @routes.get(f"{HOME}/jobs")
    async def list_jobs() -> ResponseReturnValue:
        search = read(request.args.get("q", ""), node.clock.now())
        word = search.only_word
        if word is not None and await node.store.get(word) is not None:
            return redirect(node.settings.base_path + job_url(word), 303)
        return html(await _list(search, request.args.get("cursor", "")))

    async def _list(search: Search, cursor: str) -> bytes:
        listed, counted = None, None
        if search.filter is not None:
            listed = await facts.jobs(search, place_of(cursor or None, Place))
            if request.args.get("count"):
                counted = await node.operations.count(filter_from(search.filter))
        after = None if listed is None else listed.page.next_before
        page = jobs_view.jobs(
            search,
            None if listed is None else listed.page,
            None if listed is None else listed.counts,
            cursor=cursor,
            next_cursor="" if after is None else cursor_of(after),
            retries=topics.retries,
            counted=counted,
        )
        known = [
            "status",
            "kind",
            "queue",
            "tag",
            "key",
            "group",
            "node",
            "error",
            "id",
            "text",
            "since",
            "ended",
        ]
        return drawing.page("jobs", "Jobs", live=page.live, page=page, words=known, verbs=VERBS)

    @routes.get(f"{HOME}/jobs/<job_id>")
    async def get_job(job_id: str) -> Response:
        return html(job_page(drawing, await topics.job(job_id)))

    @routes.get(f"{HOME}/operations/<operation_id>")
    async def get_operation(operation_id: str) -> Response:
        found = await node.store.operation(operation_id)
        if found is None:
            raise no_operation(operation_id)
        page = jobs_view.progress(found)
        live = f"{HOME}/live/operations/{quote(operation_id, safe='')}" if page.running else ""
        return html(drawing.page("operation", "Jobs", live=live, page=page))

    return routes


def job_page(drawing: Drawing, page: Page, notice: str = "", edited: dict[str, str] | None = None) -> bytes:
    """The page of a job; `notice`: why an act was refused, `edited`: what was to be saved."""
    fields = {"queue": page.queue, "priority": str(page.priority), "payload": page.payload.plain}
    return drawing.page(
        "job",
        "Jobs",
        live=page.live,
        notice=notice,
        page=page,
        quoted=quote(page.id, safe=""),
        edited=fields | (edited or {}),
        edit_open=edited is not None,
    )
