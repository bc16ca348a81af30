"""What several pages have: links, marks of statuses, acts, and how a job stands in a list."""

import hashlib
import shlex
from collections.abc import Sequence
from urllib.parse import quote, urlencode

import msgspec

from jobpipe.dashboard.search import Word, written
from jobpipe.dashboard.words import Part, duration, first_line, time
from jobpipe.job import ENDED, Job, Status

HOME = "/dashboard"


def jobs_url(*words: Word, **more: str) -> str:
    """Where the jobs are listed that some words mean."""
    query = ({"q": written(words)} if words else {}) | more
    return f"{HOME}/jobs?{urlencode(query)}" if query else f"{HOME}/jobs"


def job_url(job_id: str, act: str = "") -> str:
    """Where one job is shown, or acted on."""
    return f"{HOME}/jobs/{quote(job_id, safe='')}" + (f"/{act}" if act else "")


def queue_url(name: str, act: str = "") -> str:
    """Where the jobs of a queue are listed, or the queue is acted on."""
    return f"{HOME}/queues/{quote(name, safe='')}/{act}" if act else jobs_url(Word("queue", name))


def curl(origin: str, path: str, method: str = "GET", body: str = "") -> str:
    """The line for a shell that does the same as a button; the page puts its own origin in."""
    words = ["curl", *([] if method == "GET" else ["-X", method])]
    words += ["-H", "Content-Type: application/json", "-d", body] if body else []
    return shlex.join([*words, f"{origin}{path}"])


FAILING = frozenset({Status.FAILED, Status.RETRYING, Status.CANCELLED, Status.EXPIRED})
"""The statuses in which the last error of a job still says something."""


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """A button: what it posts to, and the same for a shell."""

    verb: str
    label: str
    url: str
    curl: str
    key: str = ""
    """the key that does it"""
    warns: bool = False
    """whether it takes something away"""
    asks: str = ""
    """what is asked before; empty: it is done at once"""


class JobRow(msgspec.Struct, frozen=True, kw_only=True):
    """A job in a list."""

    dom: str
    """the id of its row in the page, whatever its own id is made of"""
    id: str
    href: str
    status: str
    kind: str
    queue: str
    when: Part | None
    """when it is due, has started, or has ended, by its status"""
    took: Part | None
    attempt: str
    error: str


def dom_of(job_id: str) -> str:
    """A name for a job that is sound in a page and in a selector."""
    return f"j-{hashlib.sha256(job_id.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def job_row(job: Job, max_retries: int) -> JobRow:
    """A job as it stands in a list."""
    state, asked = job.state, job.asked
    error = state.error if job.status in FAILING else None
    return JobRow(
        dom=dom_of(job.id),
        id=job.id,
        href=job_url(job.id),
        status=job.status.value,
        kind=asked.kind,
        queue=asked.queue,
        when=_when(job),
        took=_took(job),
        attempt=f"{state.attempt} of {max_retries + 1}" if state.attempt else "",
        error="" if error is None else first_line(f"{error.type}: {error.message}"),
    )


def _when(job: Job) -> Part | None:
    at = (
        job.state.finished_at
        if job.status in ENDED
        else job.state.started_at
        if job.status in (Status.RUNNING, Status.CANCELLING)
        else job.asked.run_at
    )
    return None if at is None else time(at)


def _took(job: Job) -> Part | None:
    started, finished = job.state.started_at, job.state.finished_at
    if job.status in (Status.RUNNING, Status.CANCELLING) and started is not None:
        return time(started, "age")
    if job.status in ENDED and started is not None and finished is not None:
        return Part(duration(finished - started))
    return None


def listed_statuses() -> Sequence[Status]:
    """The statuses in the order of a job's life."""
    return (
        Status.SCHEDULED,
        Status.BLOCKED,
        Status.QUEUED,
        Status.RETRYING,
        Status.RUNNING,
        Status.CANCELLING,
        Status.DONE,
        Status.FAILED,
        Status.CANCELLED,
        Status.EXPIRED,
    )
