"""The acts: forms of the pages, done through the same calls as the API's routes. Each returns to a page.

They come as POST, so the front has checked that no page of another site sent them. With `DASHBOARD=read` all of them
are refused.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast, get_args

import msgspec
from quart import Blueprint, Response, redirect, request
from quart.typing import ResponseReturnValue
from werkzeug.datastructures import MultiDict

from jobpipe.api import jobs as verbs
from jobpipe.api.acting import by_client
from jobpipe.api.faults import faults_of
from jobpipe.api.operations import begin, meant
from jobpipe.api.problems import Code, Fault, Problem, invalid, no_operation, problem_from
from jobpipe.api.schemas import BulkRequest, JobFilter
from jobpipe.dashboard.drawing import Drawing
from jobpipe.dashboard.facts import Facts
from jobpipe.dashboard.pages import html, job_page
from jobpipe.dashboard.search import Search, Word, meaning, read
from jobpipe.dashboard.topics import Topics
from jobpipe.dashboard.views import jobs as jobs_view
from jobpipe.dashboard.views.common import HOME, job_row, job_url
from jobpipe.dashboard.views.job import Page
from jobpipe.engine.node import Node
from jobpipe.errors import JobpipeError
from jobpipe.job import Name
from jobpipe.store.base import Changes

WAIT = 0.5
"""Seconds for which a cancel is waited for, so that the page shows its end where that is near."""

EXAMPLES = 3
"""How many of the jobs are shown before something is done to them."""

SEE_OTHER = 303


def act_routes(node: Node, facts: Facts, drawing: Drawing, topics: Topics) -> Blueprint:
    """The routes of all buttons."""
    routes = Blueprint("acts", __name__)

    @routes.before_request
    async def check() -> None:
        if node.settings.dashboard != "on":
            detail = "this dashboard is read-only: DASHBOARD is read"
            raise Problem(403, Code.CROSS_SITE, "Not allowed", detail)

    def back_to(path: str) -> ResponseReturnValue:
        return redirect(node.settings.base_path + path, SEE_OTHER)

    _job_routes(routes, node, drawing, topics, back_to)
    _bulk_routes(routes, node, facts, drawing, topics, back_to)

    @routes.post(f"{HOME}/queues/<name>/pause")
    async def pause_queue(name: str) -> ResponseReturnValue:
        _check_name(name)
        await node.control.pause(name, by=by_client(node))
        return back_to(HOME)

    @routes.post(f"{HOME}/queues/<name>/resume")
    async def resume_queue(name: str) -> ResponseReturnValue:
        _check_name(name)
        await node.control.resume(name, by=by_client(node))
        return back_to(HOME)

    return routes


Back = Callable[[str], ResponseReturnValue]


def _job_routes(  # noqa: C901 - one route after another
    routes: Blueprint, node: Node, drawing: Drawing, topics: Topics, back_to: Back
) -> None:
    async def act(job_id: str, done: Awaitable[Any]) -> ResponseReturnValue:
        """Back to the job, or its page with what was refused."""
        try:
            await done
        except (Problem, JobpipeError) as error:
            return await refused(job_id, problem_from(error))
        return back_to(job_url(job_id))

    async def refused(
        job_id: str, problem: Problem, edited: dict[str, str] | None = None
    ) -> ResponseReturnValue:
        if problem.details.code is Code.NO_SUCH_JOB:
            raise problem
        page = await topics.job(job_id)
        return html(job_page(drawing, page, problem.details.detail, edited), problem.details.status)

    @routes.post(f"{HOME}/jobs/<job_id>/cancel")
    async def cancel_job(job_id: str) -> ResponseReturnValue:
        return await act(job_id, verbs.cancel(node, job_id, WAIT))

    @routes.post(f"{HOME}/jobs/<job_id>/retry")
    async def retry_job(job_id: str) -> ResponseReturnValue:
        return await act(job_id, verbs.retry(node, job_id))

    @routes.post(f"{HOME}/jobs/<job_id>/promote")
    async def promote_job(job_id: str) -> ResponseReturnValue:
        return await act(job_id, verbs.promote(node, job_id))

    @routes.post(f"{HOME}/jobs/<job_id>/delete")
    async def delete_job(job_id: str) -> ResponseReturnValue:
        try:
            await verbs.delete(node, job_id)
        except (Problem, JobpipeError) as error:
            return await refused(job_id, problem_from(error))
        return back_to(f"{HOME}/jobs")

    @routes.post(f"{HOME}/jobs/<job_id>/edit")
    async def edit_job(job_id: str) -> ResponseReturnValue:
        form = await request.form
        page = await topics.job(job_id)
        try:
            await verbs.edit(node, job_id, edit_body(form, page))
        except (Problem, JobpipeError) as error:
            sent = {name: form[name] for name in ("queue", "priority", "payload") if name in form}
            return await refused(job_id, problem_from(error), sent)
        return back_to(job_url(job_id))


def edit_body(form: MultiDict[str, str], page: Page) -> bytes:
    """What a form changes of a job, as the body of `PATCH /jobs/ID`. Raises `Problem` for a payload that is no JSON."""
    fields = list[bytes]()
    queue, priority = form.get("queue", page.queue).strip(), form.get("priority", "").strip()
    if queue != page.queue:
        fields.append(b'"queue":' + msgspec.json.encode(queue))
    if priority != str(page.priority):
        # A number as it was typed; whatever else it is, the API says what is wrong with it.
        number = priority if priority.lstrip("-").isdecimal() and priority.isascii() else None
        fields.append(b'"priority":' + (number.encode() if number else msgspec.json.encode(priority)))
    payload = form.get("payload")
    if payload is not None and _lines(payload) != _lines(page.payload.plain):
        try:
            msgspec.json.decode(payload.encode(), type=msgspec.Raw)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
            raise invalid([Fault("/payload", f"is not JSON: {error}")]) from None
        fields.append(b'"payload":' + payload.encode())
    return b"{" + b",".join(fields) + b"}"


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def _bulk_routes(
    routes: Blueprint, node: Node, facts: Facts, drawing: Drawing, topics: Topics, back_to: Back
) -> None:
    async def asked(
        verb: jobs_view.Verb, listed: Search, ids: Sequence[str], refused: str = "", status: int = 200
    ) -> Response:
        """The page that asks before something is done."""
        search = _meant(listed, ids, node.clock.now())
        where = await meant(node, BulkRequest(filter=_filter(search)))
        counted = await node.operations.count(where)
        examples = (await facts.jobs(search, None)).page.jobs[:EXAMPLES]
        rows = [job_row(job, topics.retries(job)) for job in examples]
        page = jobs_view.confirm(verb, listed, ids, counted, rows, refused)
        form = await request.form
        body = drawing.page(
            "act",
            "Jobs",
            page=page,
            back_text=listed.text,
            typed_rate=form.get("rate", ""),
            typed_queue=form.get("queue", ""),
        )
        return html(body, status)

    @routes.get(f"{HOME}/jobs/act")
    async def ask() -> Response:
        args = request.args
        verb = _verb(args.get("verb", ""))
        ids = [] if args.get("scope") == "all" else args.getlist("id")[:100]
        if not ids and args.get("scope") != "all":
            raise invalid([Fault("?id", "is missing: tick the jobs, or choose all that match")])
        return await asked(verb, read(args.get("q", ""), node.clock.now()), ids)

    @routes.post(f"{HOME}/jobs/act")
    async def do() -> ResponseReturnValue:
        form = await request.form
        verb, ids = _verb(form.get("verb", "")), form.getlist("id")[:100]
        listed = read(form.get("q", ""), node.clock.now())
        search = _meant(listed, ids, node.clock.now())
        try:
            changes = _changes(verb, form)
            wanted = BulkRequest(filter=_filter(search), rate=_rate(form))
            where = await meant(node, wanted, changes)
            counted = await node.operations.count(where)
            jobs_view.check_typed(verb, form.get("typed", ""), form.get("count", ""), counted)
            begun = await begin(node, verb, wanted, changes)
        except Problem as problem:
            if not ids and not listed.words:
                raise
            return await asked(verb, listed, ids, problem.details.detail, problem.details.status)
        return back_to(f"{HOME}/operations/{begun.asked.id}")

    @routes.post(f"{HOME}/operations/<operation_id>/stop")
    async def stop_operation(operation_id: str) -> ResponseReturnValue:
        if await node.operations.stop(operation_id, by=by_client(node)) is None:
            raise no_operation(operation_id)
        return back_to(f"{HOME}/operations/{operation_id}")


def _verb(text: str) -> jobs_view.Verb:
    if text not in get_args(jobs_view.Verb):
        raise invalid([Fault("?verb", f"is none of {', '.join(get_args(jobs_view.Verb))}")])
    return cast("jobs_view.Verb", text)


def _meant(listed: Search, ids: Sequence[str], now: float) -> Search:
    """The search for the jobs that were ticked, or the one that listed them."""
    if not ids:
        return listed
    return meaning([Word("id", one) for one in ids], now)


def _filter(search: Search) -> JobFilter:
    if search.filter is None:
        raise invalid([Fault(one.word, one.detail) for one in search.wrong])
    return search.filter


def _changes(verb: jobs_view.Verb, form: MultiDict[str, str]) -> Changes | None:
    if verb != "move":
        return None
    queue = form.get("queue", "").strip()
    _check_name(queue, "/queue")
    return Changes(queue=queue)


def _rate(form: MultiDict[str, str]) -> float | None:
    text = form.get("rate", "").strip()
    try:
        rate = float(text) if text else None
    except ValueError:
        rate = 0.0
    if rate is not None and not 0 < rate <= 100_000:  # noqa: PLR2004 - as the API has it
        raise invalid([Fault("/rate", "is no number above 0, up to 100000")])
    return rate


def _check_name(name: str, pointer: str = "?name") -> None:
    if faults := faults_of(name, Name, pointer):
        raise invalid(faults)
