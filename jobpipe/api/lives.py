"""What became of a job, and why: `/jobs/ID/timeline` and `/jobs/ID/why`."""

from quart import Blueprint, Response
from quart_schema import tag_blueprint

from jobpipe.api import timelines, why
from jobpipe.api.answers import answer
from jobpipe.api.jobs import JobInPath
from jobpipe.api.problems import Code
from jobpipe.api.responses import respond
from jobpipe.api.schemas import TimelineView, WhyView
from jobpipe.api.spec import Content, answers, problems
from jobpipe.engine.node import Node


def lives_blueprint(node: Node) -> Blueprint:
    """The routes that explain a job."""
    routes = Blueprint("lives", __name__)
    tag_blueprint(routes, ["jobs"])

    @routes.get("/jobs/<job_id>/timeline")
    @answers(200, "The job's life.", Content(TimelineView, examples={"timeline": timelines.EXAMPLE}))
    @problems(Code.NO_SUCH_JOB, Code.STORE_UNAVAILABLE)
    async def get_job_timeline(job_id: JobInPath) -> Response:
        """Get a job's life as spans of time.

        What it waited for, when its attempts ran and how each ended, and what lies ahead. The spans cover all of it,
        from when it was enqueued until its end, or until now.
        """
        return respond(answer(await timelines.timeline_of(node, job_id)))

    @routes.get("/jobs/<job_id>/why")
    @answers(200, "Why the job is as it is.", Content(WhyView, examples={"why": why.EXAMPLE}))
    @problems(Code.NO_SUCH_JOB, Code.STORE_UNAVAILABLE)
    async def get_job_why(job_id: JobInPath) -> Response:
        """Say why a job does not run.

        In one sentence, and with all that a claim checks, in its order: the first check that is not passed is what
        `waits_for` of the job says. Of a job that runs, since when and where, or what its cancel waits for; of one that
        has ended, how, and why it is not tried again.
        """
        return respond(answer(await why.why_of(node, job_id)))

    return routes
