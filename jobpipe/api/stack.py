"""`GET /jobs/ID/stack`: the tasks of a running job, as JSON or as text for people."""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import UNSET
from quart import Blueprint, Response, request
from quart_schema import document_querystring, tag_blueprint

from jobpipe.api.answers import Answer, answer
from jobpipe.api.holding import found
from jobpipe.api.inputs import query
from jobpipe.api.problems import Code, Problem, node_silent, wrong_status
from jobpipe.api.responses import respond
from jobpipe.api.schemas import (
    CountedView,
    FrameView,
    Means,
    StackQuery,
    StackView,
    StoppingView,
    TaskView,
    WaitView,
    rfc3339,
)
from jobpipe.api.spec import Content, answers, problems
from jobpipe.api.stacktext import in_text, in_words
from jobpipe.engine.awaits import Wait
from jobpipe.engine.looks import Look, Missing
from jobpipe.engine.node import Node
from jobpipe.engine.tasktree import Node as TaskNode
from jobpipe.job import ENDED, Job, JobId, Status

AS_TEXT = "text/plain"

TIMES = 2
"""How often a job is looked for that has gone to another node, or ended, meanwhile."""

STACK: Mapping[str, Any] = {
    "job": "newsletter-7",
    "kind": "newsletter.send",
    "attempt": 1,
    "claim": 1,
    "node": "host-1",
    "looked_at": "2030-01-31T12:00:09.000Z",
    "stopping": None,
    "tasks": 4,
    "whole": True,
    "circles": [],
    "tree": {
        "name": "newsletter.send",
        "count": 1,
        "function": "send",
        "file": "/srv/news.py",
        "line": 41,
        "waiting_on": {"what": "nursery", "words": "its child tasks"},
        "still": 8.4,
        "longest_still": 8.4,
        "stack": [{"function": "send", "file": "/srv/news.py", "line": 41, "own": True}],
        "left_out": 0,
        "children": [
            {
                "name": "news.deliver",
                "count": 3,
                "function": "deliver",
                "file": "/srv/news.py",
                "line": 58,
                "waiting_on": {"what": "lock", "words": "lock held by news.report", "holder": "news.report"},
                "still": 8.4,
                "longest_still": 8.4,
                "stack": [{"function": "deliver", "file": "/srv/news.py", "line": 58, "own": True}],
                "left_out": 0,
                "children": [],
            }
        ],
    },
    "rest": [],
}
"""The tasks of a job, for the spec."""


def stack_blueprint(node: Node) -> Blueprint:
    """The route `/jobs/ID/stack`."""
    routes = Blueprint("stack", __name__)
    tag_blueprint(routes, ["jobs"])

    @routes.get("/jobs/<job_id>/stack")
    @document_querystring(StackQuery)
    @answers(
        200,
        "The tasks of the job.",
        Content(StackView, examples={"stack": STACK}),
        Content(str, AS_TEXT),
    )
    @problems(Code.NO_SUCH_JOB, Code.WRONG_STATUS, Code.NODE_SILENT, Code.STORE_UNAVAILABLE)
    async def get_job_stack(job_id: Annotated[JobId, Means("the job's id")]) -> Response:
        """See what the tasks of a running job are doing right now.

        All Trio tasks of the attempt, and the thread of a handler that is not `async`: where each stands in code, what
        it waits for, and for how long at least it has not moved, by the looks of the last minute. Tasks that are equal
        are one node. Local variables are never in it. A job is looked at once a second at the most: whoever asks
        meanwhile is given the same. At most 5,000 tasks and 64 KiB; more tasks are counted by their line. `text` is for
        people. 409 when the job does not run; 503 `node_silent` when it runs on another node that does not answer.
        """
        look = await look_of(node, job_id)
        if _wants_text(query(StackQuery).format):
            return respond(Answer(200, in_text(look).encode(), f"{AS_TEXT}; charset=utf-8"))
        return respond(answer(view(look)))

    return routes


async def look_of(node: Node, job_id: str) -> Look:
    """The tasks of a job, whichever node runs it. Raises `Problem` where none does, or `StoreUnavailable`."""
    job = None
    for _ in range(TIMES):
        if (look := await node.looks.here(job_id)) is not None:
            return look
        job = await found(node, job_id)
        attempt = job.attempts[-1] if job.attempts else None
        if job.status not in {Status.RUNNING, Status.CANCELLING} or attempt is None or attempt.node is None:
            raise wrong_status(job, _why_not(job))
        if attempt.node == node.name:
            continue  # it has ended since, or is about to begin
        elsewhere = await node.looks.elsewhere(job.id, attempt.claim, attempt.node)
        if isinstance(elsewhere, Look):
            return elsewhere
        if elsewhere != "gone":
            raise _silent(attempt.node, elsewhere)
    assert job is not None  # noqa: S101 - the loop has at least one turn
    raise wrong_status(job, "it has only just begun or ended: ask again", again=True)


def _why_not(job: Job) -> str:
    if job.status in ENDED:
        return "it has no tasks any more; see its attempts and its error, and its log"
    if job.status is Status.QUEUED:
        return (
            "it has no tasks yet; `waits_for` of the job says what it waits for, and when nothing, it begins"
        )
    return "it has no tasks now; `waits_for` of the job says what it waits for"


def _silent(node: str, missing: Missing) -> Problem:
    if missing == "dead":
        return node_silent(node, "has died or lost its lease: the job is recovered from it soon")
    why = "has not answered in time: its event loop may be blocked, or it runs an older version of jobpipe"
    return node_silent(node, why)


def _wants_text(asked: str | None) -> bool:
    """Whether the request under way is answered with text."""
    preferred = request.accept_mimetypes.best_match(["application/json", AS_TEXT])
    return preferred == AS_TEXT if asked is None else asked == "text"


def view(look: Look) -> StackView:
    """A look as it is shown."""
    tree, stopping = look.tree, look.stopping
    return StackView(
        job=look.job,
        kind=look.kind,
        attempt=look.attempt,
        claim=look.claim,
        node=look.node,
        looked_at=rfc3339(look.looked_at),
        stopping=None if stopping is None else StoppingView(stopping.reason, rfc3339(stopping.since)),
        tasks=tree.tasks,
        whole=tree.whole,
        circles=tree.circles,
        tree=_task(tree.root, look.looked_at),
        rest=[CountedView(one.function, one.file, one.line, one.count) for one in tree.rest],
    )


def _task(task: TaskNode, now: float) -> TaskView:
    return TaskView(
        name=task.name,
        count=task.count,
        function=None if task.at is None else task.at.function,
        file=None if task.at is None else task.at.file,
        line=None if task.at is None else task.at.line,
        waiting_on=_wait(task.waiting_on, now),
        still=round(task.still, 1),
        longest_still=round(task.longest_still, 1),
        stack=[FrameView(one.function, one.file, one.line, one.own) for one in task.stack],
        left_out=task.left_out,
        children=[_task(child, now) for child in task.children],
    )


def _wait(wait: Wait, now: float) -> WaitView:
    until = None if wait.until is None else rfc3339(wait.until)
    sized = wait.what in {"channel_room", "channel_value", "limiter"}
    return WaitView(
        what=wait.what,
        words=in_words(wait, now),
        until=until if wait.what == "sleep" else UNSET,
        direction=UNSET if wait.direction is None else wait.direction,
        holder=wait.holder if wait.what == "lock" else UNSET,
        holder_job=UNSET if wait.holder_job is None else wait.holder_job,
        filled=(wait.filled or 0) if sized else UNSET,
        size=wait.size if sized else UNSET,
        process=UNSET if wait.process is None else wait.process,
    )
