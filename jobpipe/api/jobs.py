"""`/jobs`: look at jobs, wait for them, cancel, retry and delete them."""

import base64
import binascii
from collections.abc import Awaitable
from datetime import datetime
from typing import Annotated

import msgspec
import trio
from quart import Blueprint, Response, request
from quart_schema import document_querystring, tag_blueprint

from jobpipe.api.answers import Answer, answer
from jobpipe.api.problems import Code, Fault, Problem, invalid, no_job, unavailable
from jobpipe.api.responses import query, respond
from jobpipe.api.schemas import JobList, JobView, ListQuery, WaitQuery, stored_view
from jobpipe.api.spec import Content, answers, problems
from jobpipe.engine.node import Node
from jobpipe.errors import JobpipeError
from jobpipe.job import ENDED, Job, Status
from jobpipe.store.base import Change, Filter

LOOK_AGAIN = 2.0
"""Seconds after which who waits looks at the job itself: of an end that this node did not write, nobody tells."""

Place = Annotated[int, msgspec.Meta(ge=1, lt=1 << 62)]
"""Where a page of a list ended."""


def jobs_blueprint(node: Node) -> Blueprint:
    """The routes below `/jobs`."""
    routes = Blueprint("jobs", __name__)
    tag_blueprint(routes, ["jobs"])

    @routes.get("/jobs/<job_id>")
    @document_querystring(WaitQuery)
    @answers(200, "The job, with what it came to so far.", Content(JobView))
    @problems(Code.NO_SUCH_JOB, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def get_job(job_id: str) -> Response:
        """A job with its attempts.

        With `?wait=SECONDS` the answer comes when the job has ended, or at the latest then.
        """
        wait = query(request, WaitQuery).wait
        job = await _found(node, job_id)
        if wait and job.status not in ENDED:
            job = await _awaited(node, job_id, wait)
        return respond(answer(stored_view(job)))

    @routes.get("/jobs")
    @document_querystring(ListQuery)
    @answers(200, "A page of jobs.", Content(JobList))
    @problems(Code.INVALID, Code.STORE_UNAVAILABLE)
    async def list_jobs() -> Response:
        """Jobs, newest first.

        Filters go together. A page may hold fewer than `limit` jobs although there are more: go on while there is a
        `next_cursor`.
        """
        return respond(await _list(node, query(request, ListQuery)))

    @routes.post("/jobs/<job_id>/cancel")
    @document_querystring(WaitQuery)
    @answers(200, "The job is cancelled, and nothing of it runs any more.", Content(JobView))
    @answers(202, "The job is being stopped; its cleanup has not ended yet.", Content(JobView))
    @problems(Code.CROSS_SITE, Code.NO_SUCH_JOB, Code.WRONG_STATUS, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def cancel_job(job_id: str) -> Response:
        """Cancel a job that waits, or stop one that runs.

        200 when it is `cancelled`: the handler, all its child tasks and their cleanup have ended. 202 while it is
        `cancelling`: `?wait=SECONDS` waits for its end. 409 when it had ended before.
        """
        return respond(await _cancel(node, job_id, query(request, WaitQuery).wait))

    @routes.post("/jobs/<job_id>/retry")
    @answers(202, "The job, queued again.", Content(JobView))
    @problems(Code.CROSS_SITE, Code.NO_SUCH_JOB, Code.WRONG_STATUS, Code.STORE_UNAVAILABLE)
    async def retry_job(job_id: str) -> Response:
        """Queue a job that has ended once more, with all its retries."""
        change = await _changed(node.control.retry(job_id))
        return respond(answer(stored_view(_job_of(change, "retry it when it has ended")), 202))

    @routes.delete("/jobs/<job_id>")
    @answers(204, "The job is deleted.")
    @problems(Code.CROSS_SITE, Code.NO_SUCH_JOB, Code.WRONG_STATUS, Code.STORE_UNAVAILABLE)
    async def delete_job(job_id: str) -> Response:
        """Delete a job that no worker holds: 204."""
        change = await _changed(node.control.delete(job_id))
        if change.verdict != "changed":
            _job_of(change, "cancel it first")
        return respond(Answer(204, b""))

    return routes


async def _found(node: Node, job_id: str) -> Job:
    try:
        job = await node.store.get(job_id)
    except JobpipeError as error:
        raise unavailable(error) from None
    if job is None:
        raise no_job(job_id)
    return job


async def _awaited(node: Node, job_id: str, seconds: float) -> Job:
    """The job once it has ended, or as it is after so many seconds, or when this node stops."""
    with node.events.watch(job_id) as watch, trio.move_on_after(seconds):
        await _expected(node, job_id)
        while (await _found(node, job_id)).status not in ENDED:
            with trio.move_on_after(LOOK_AGAIN):
                await watch.stirred()
            if watch.over:
                break
    return await _found(node, job_id)


async def _expected(node: Node, job_id: str) -> None:
    try:
        await node.news.expect(job_id)
    except JobpipeError as error:
        raise unavailable(error) from None


async def _cancel(node: Node, job_id: str, wait: float) -> Answer:
    change = await _changed(node.control.cancel(job_id))
    job = _job_of(change, "only a job that waits or runs can be cancelled")
    if job.status is Status.CANCELLING and wait:
        job = await _awaited(node, job_id, wait)
    if job.status is Status.CANCELLING:
        return answer(stored_view(job), 202)
    if job.status is not Status.CANCELLED:
        raise _wrong_status(job, "it ended before the cancel reached it")
    return answer(stored_view(job))


async def _changed(change: Awaitable[Change]) -> Change:
    try:
        return await change
    except JobpipeError as error:
        raise unavailable(error) from None


def _job_of(change: Change, advice: str) -> Job:
    """The job that a change was made to; raises `Problem` when there was none to make."""
    if change.job is None:
        raise no_job(change.id)
    if change.verdict == "refused":
        raise _wrong_status(change.job, advice)
    return change.job


def _wrong_status(job: Job, advice: str) -> Problem:
    title = "The job's status does not allow that"
    return Problem(409, Code.WRONG_STATUS, title, f"job {job.id!r} is {job.status.value}: {advice}")


async def _list(node: Node, wanted: ListQuery) -> Answer:
    where = Filter(
        status=wanted.status,
        kind=wanted.kind,
        queue=wanted.queue,
        tag=wanted.tag,
        text=wanted.text,
        created_after=_seconds(wanted.created_after),
        created_before=_seconds(wanted.created_before),
    )
    try:
        page = await node.store.jobs(where, wanted.limit, _before(wanted.cursor))
    except JobpipeError as error:
        raise unavailable(error) from None
    views = [stored_view(job, content=wanted.payload, attempts=False) for job in page.jobs]
    return answer(JobList(views, None if page.next_before is None else _cursor(page.next_before)))


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()


def _cursor(before: int) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(before)).decode().rstrip("=")


def _before(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        return msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=Place)
    except (binascii.Error, msgspec.MsgspecError, ValueError):
        fault = Fault("?cursor", "is not a cursor: pass on what next_cursor said, or leave it out")
        raise invalid([fault]) from None
