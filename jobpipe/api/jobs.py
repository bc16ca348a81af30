"""`/jobs`: get and list jobs and their logs, wait for them, cancel, retry, promote, edit and delete them."""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import structs
from quart import Blueprint, Response, request
from quart_schema import document_querystring, tag_blueprint

from jobpipe.api.acting import by_client
from jobpipe.api.answers import Answer, answer
from jobpipe.api.cursors import cursor_of, place_of
from jobpipe.api.departure import departure_of
from jobpipe.api.enqueue import check_json, edits_from
from jobpipe.api.filters import filter_from
from jobpipe.api.holding import awaited, check, found
from jobpipe.api.inputs import query, received
from jobpipe.api.joblog import page_of
from jobpipe.api.problems import Code, closed, key_taken, no_job, wrong_status
from jobpipe.api.responses import respond
from jobpipe.api.schemas import (
    EditRequest,
    HoldQuery,
    JobList,
    JobView,
    ListQuery,
    LogQuery,
    LogView,
    Means,
    WaitQuery,
    stored_view,
)
from jobpipe.api.spec import Content, answers, problems, takes
from jobpipe.api.waits import EXAMPLES, cancel_waits_for, waits_of
from jobpipe.engine.node import Node
from jobpipe.job import ENDED, WAITING, Job, JobId, Status
from jobpipe.store.base import Change, Place

REFUSALS = (Code.CROSS_SITE, Code.NO_SUCH_JOB, Code.WRONG_STATUS, Code.STORE_UNAVAILABLE)
"""The problems of every route that changes a job."""

LOG_EXAMPLE: Mapping[str, Any] = {
    "lines": [
        {
            "n": 1,
            "at": "2030-01-31T12:00:00.000Z",
            "attempt": 1,
            "level": "info",
            "text": "sent",
            "fields": {"to": "ann@example.com"},
        }
    ],
    "dropped": 0,
    "next_after": 1,
}

JobInPath = Annotated[JobId, Means("the job's id")]


def jobs_blueprint(node: Node) -> Blueprint:
    """The routes below `/jobs`."""
    routes = Blueprint("jobs", __name__)
    tag_blueprint(routes, ["jobs"])

    @routes.get("/jobs/<job_id>")
    @document_querystring(HoldQuery)
    @answers(200, "The job, with its result or error so far.", Content(JobView, examples=EXAMPLES))
    @problems(Code.NO_SUCH_JOB, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def get_job(job_id: JobInPath) -> Response:
        """Get a job with its attempts.

        With `?wait=SECONDS` the response is held until the job ends, for at most so long; with `on_disconnect=cancel`,
        a client that hangs up before has the job cancelled. The newest attempts come with their tracebacks, until those
        take 1 MiB; the tracebacks of older attempts are null. `waits_for` says why a job does not run yet, or what its
        cancel waits for.
        """
        job = await _get(node, job_id, query(HoldQuery))
        return respond(answer(await _shown(node, job)))

    @routes.get("/jobs/<job_id>/log")
    @document_querystring(LogQuery)
    @answers(200, "A part of the log.", Content(LogView, examples={"log": LOG_EXAMPLE}))
    @problems(Code.NO_SUCH_JOB, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def get_job_log(job_id: JobInPath) -> Response:
        """Get what a job has logged.

        The lines that its handler wrote with `job.log`, in order. Of a long log the first and the last 500 lines and
        128 KiB each are kept. With `?wait=SECONDS` the response is held until there is a line behind `after`, or the
        job has ended, for at most so long: follow `next_after` until it is null to see the log as it grows.
        """
        return respond(answer(await page_of(node, job_id, query(LogQuery))))

    @routes.get("/jobs")
    @document_querystring(ListQuery)
    @answers(200, "A page of jobs.", Content(JobList))
    @problems(Code.INVALID, Code.STORE_UNAVAILABLE)
    async def list_jobs() -> Response:
        """List jobs, newest first.

        A job must match all filters that are given. One that is given several times matches any of its values:
        `?status=failed&status=expired`. A page may hold fewer than `limit` jobs although there are more: it holds at
        most 4 MiB (or one larger job), and a search stops after a quarter of a second. Follow `next_cursor` until it is
        null.
        """
        return respond(await _list(node, query(ListQuery)))

    @routes.post("/jobs/<job_id>/cancel")
    @document_querystring(WaitQuery)
    @answers(200, "The job is cancelled, and none of its code still runs.", Content(JobView))
    @answers(202, "The job is being cancelled; its cleanup still runs.", Content(JobView))
    @problems(*REFUSALS, Code.INVALID)
    async def cancel_job(job_id: JobInPath) -> Response:
        """Cancel a waiting or running job.

        200 when it is `cancelled`: the handler, all its child tasks and their cleanup have ended. 202 while it is
        `cancelling`: `?wait=SECONDS` waits for its end. 409 when the job had already ended. The jobs that its handler
        has enqueued are cancelled with it, soon after.
        """
        return respond(await _cancel(node, job_id, query(WaitQuery).wait))

    @routes.post("/jobs/<job_id>/retry")
    @answers(202, "The job, queued again.", Content(JobView))
    @problems(*REFUSALS, Code.NOT_UNIQUE)
    async def retry_job(job_id: JobInPath) -> Response:
        """Retry a job manually.

        The job must have ended, whether it succeeded or not. It is queued again with all its retries; 202 when that
        is stored, 409 when the job has not ended. It is `blocked` while a job that it depends on has not ended; 409
        when one of those did not end as needed. A job with a `unique` key takes it again: 409 `not_unique`, with the id
        of the other job, while that one has it.
        """
        change = await node.control.retry(job_id, by=by_client(node))
        return respond(answer(stored_view(_retried(change), node.registry), 202))

    @routes.post("/jobs/<job_id>/promote")
    @answers(200, "The job, due now.", Content(JobView))
    @problems(*REFUSALS)
    async def promote_job(job_id: JobInPath) -> Response:
        """Run a waiting job now.

        A scheduled or retrying job is queued at once, instead of at its `run_at`; a queued one is returned as it is.
        409 when the job waits for other jobs or has ended, or with `Retry-After` when a worker holds it.
        """
        change = await node.control.promote(job_id, by=by_client(node))
        job = _job_of(change, _why_not_promoted(change), again=True)
        return respond(answer(stored_view(job, node.registry)))

    @routes.patch("/jobs/<job_id>")
    @takes(Content(EditRequest, examples={"job": {"priority": 5, "run_at": None}}))
    @answers(200, "The job as it is now.", Content(JobView))
    @problems(*REFUSALS, Code.QUEUE_CLOSED, Code.NOT_JSON, Code.UNSUPPORTED_MEDIA_TYPE)
    async def edit_job(job_id: JobInPath) -> Response:
        """Edit a waiting job.

        Fields that are left out stay as they are. 409 when the job has ended, or with `Retry-After` when a worker
        holds it; 409 `queue_closed` when it was to be moved into a closed queue.
        """
        content_type, body = await received()
        check_json(content_type)
        return respond(answer(stored_view(await _edit(node, job_id, body), node.registry)))

    @routes.delete("/jobs/<job_id>")
    @answers(204, "The job is deleted.")
    @problems(*REFUSALS)
    async def delete_job(job_id: JobInPath) -> Response:
        """Delete a job.

        204 when it is deleted, and its id is free again. 409 while a worker holds the job: cancel it first.
        """
        change = await node.control.delete(job_id, by=by_client(node))
        if change.verdict != "changed":
            _job_of(change, "cancel it first")
        return respond(Answer(204, b""))

    return routes


async def _get(node: Node, job_id: str, hold: HoldQuery) -> Job:
    check(hold)
    if hold.on_disconnect == "cancel":
        departure_of(request.scope).job_id = job_id
    job = await found(node, job_id)
    if hold.wait and job.status not in ENDED:
        return await awaited(node, job_id, hold.wait)
    return job


async def _shown(node: Node, job: Job) -> JobView:
    """A job with what it waits for."""
    waits_for = await waits_of(node, job)
    if waits_for is None and job.status in WAITING:  # it is not as it was read any more
        job = await found(node, job.id)
    view = stored_view(job, node.registry)
    return view if waits_for is None else structs.replace(view, waits_for=waits_for)


def _retried(change: Change) -> Job:
    if change.verdict == "not_unique":
        raise key_taken(change.id, change.other or "")
    return _job_of(change, _why_not_retried(change))


def _why_not_retried(change: Change) -> str:
    if change.job is not None and change.job.status in ENDED:
        return "a job that it depends on did not end as needed: retry that one first"
    return "only a job that has ended can be retried"


def _why_not_promoted(change: Change) -> str:
    if change.job is not None and change.job.status is Status.BLOCKED:
        return "it waits for other jobs to end"
    return "only a waiting job that no worker holds can be promoted"


async def _edit(node: Node, job_id: str, body: bytes) -> Job:
    edits = edits_from(node, await found(node, job_id), body)
    change = await node.control.edit(job_id, edits, by=by_client(node))
    if change.verdict == "closed":
        raise closed([edits["queue"]])
    return _job_of(change, "only a waiting job that no worker holds can be edited", again=True)


async def _cancel(node: Node, job_id: str, wait: float) -> Answer:
    change = await node.control.cancel(job_id, by=by_client(node))
    job = _job_of(change, "only a waiting or running job can be cancelled")
    if job.status is Status.CANCELLING and wait:
        job = await awaited(node, job_id, wait)
    if job.status is Status.CANCELLING:
        view = structs.replace(stored_view(job, node.registry), waits_for=cancel_waits_for(node, job))
        return answer(view, 202)
    if job.status is not Status.CANCELLED:
        raise wrong_status(job, "it ended before the cancel reached it")
    return answer(stored_view(job, node.registry))


def _job_of(change: Change, advice: str, *, again: bool = False) -> Job:
    """The job that a change was made to; raises `Problem` when there was none to make."""
    if change.job is None:
        raise no_job(change.id)
    if change.verdict == "refused":
        raise wrong_status(change.job, advice, again=again)
    return change.job


async def _list(node: Node, wanted: ListQuery) -> Answer:
    where = filter_from(wanted, content=wanted.payload)
    page = await node.store.jobs(where, wanted.limit, place_of(wanted.cursor, Place))
    views = [stored_view(job, node.registry, content=wanted.payload, attempts=False) for job in page.jobs]
    return answer(JobList(views, None if page.next_before is None else cursor_of(page.next_before)))
