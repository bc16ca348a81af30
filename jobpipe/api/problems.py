"""Errors as RFC 9457 problem details: a stable code, a title, and a detail that says what to do."""

import enum
from collections.abc import Mapping, Sequence

import msgspec

from jobpipe.errors import Draining, JobpipeError, QueueFull
from jobpipe.job import ENDED, Job, Status

RETRY_AFTER = "1"
"""Seconds after which a refused client may try again."""

LISTED = 100
"""The most faults, and the most ids, that one problem lists."""


LONGEST = 500
"""The most characters of a text that an answer repeats; part of the text may be the client's."""


class Code(enum.StrEnum):
    """What can go wrong, for programs: these words and no others, and none of them changes its meaning."""

    BAD_REQUEST = "bad_request"
    """the request breaks HTTP's own rules (400 and other 4xx)"""
    REQUEST_TIMEOUT = "request_timeout"
    """the rest of the request did not come in time (408)"""
    WRONG_HOST = "wrong_host"
    """the request was sent to a host that this service is not known by (421)"""
    HEAD_TOO_LARGE = "head_too_large"
    """the request line and the headers are too long (431)"""
    NOT_IMPLEMENTED = "not_implemented"
    """the method or the transfer coding is unknown (501)"""
    HTTP_VERSION = "http_version"
    """the request is not HTTP/1.0 or HTTP/1.1 (505)"""
    NOT_JSON = "not_json"
    """the body is not JSON in UTF-8 (400)"""
    CROSS_SITE = "cross_site"
    """a page of another site tried to change something (403)"""
    NOT_FOUND = "not_found"
    """no such route (404)"""
    NO_SUCH_JOB = "no_such_job"
    """no job has this id (404)"""
    NO_SUCH_QUEUE = "no_such_queue"
    """no queue has this name (404)"""
    NO_SUCH_SCHEDULE = "no_such_schedule"
    """no schedule has this name (404)"""
    NO_SUCH_OPERATION = "no_such_operation"
    """no operation has this id (404)"""
    NO_SUCH_ERROR = "no_such_error"
    """no job that is there has failed with an error of that fingerprint (404)"""
    NO_SUCH_NODE = "no_such_node"
    """no node of this name has ever joined (404)"""
    NO_SUCH_GROUP = "no_such_group"
    """no group has this id (404)"""
    METHOD_NOT_ALLOWED = "method_not_allowed"
    """the route supports other methods, listed in `Allow` (405)"""
    ID_CONFLICT = "id_conflict"
    """another job, with other content, has this id (409)"""
    NOT_UNIQUE = "not_unique"
    """another job has the unique key (409)"""
    DEPENDENCY_FAILED = "dependency_failed"
    """a job that the new one needs has ended, and not as needed (409)"""
    WRONG_STATUS = "wrong_status"
    """the job's status does not allow this (409)"""
    DECLARED = "declared"
    """the code of a live node declares the schedule (409)"""
    QUEUE_CLOSED = "queue_closed"
    """the queue takes no new jobs (409)"""
    GROUP_CLOSED = "group_closed"
    """the group takes no more jobs (409)"""
    QUEUE_NOT_EMPTY = "queue_not_empty"
    """the queue still has jobs (409)"""
    TOO_LARGE = "too_large"
    """the body, or a line of a stream, is longer than MAX_BODY (413)"""
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    """the route does not accept this Content-Type (415)"""
    INVALID = "invalid"
    """the request has the listed faults (422)"""
    UNKNOWN_DEPENDENCY = "unknown_dependency"
    """a job that the new one depends on does not exist (422)"""
    UNKNOWN_GROUP = "unknown_group"
    """the group that the new job is for does not exist (422)"""
    INTERNAL = "internal"
    """a bug in jobpipe (500)"""
    QUEUE_FULL = "queue_full"
    """MAX_BACKLOG jobs are waiting already (503)"""
    DRAINING = "draining"
    """the node is shutting down (503)"""
    TOO_MANY_STREAMS = "too_many_streams"
    """half of MAX_CONNECTIONS are streams of events (503)"""
    NODE_SILENT = "node_silent"
    """the node that runs the job does not answer (503)"""
    STORE_UNAVAILABLE = "store_unavailable"
    """the store cannot be read or written at the moment (503)"""


class Fault(msgspec.Struct, frozen=True):
    """One fault of an input. `pointer` is a JSON pointer (RFC 6901) into the body, or `?name` for a parameter."""

    pointer: str
    detail: str


class ProblemDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong and what to do (RFC 9457)."""

    code: Code
    title: str
    status: int
    detail: str
    faults: Sequence[Fault] = ()
    ids: Sequence[str] = ()
    """the ids of the jobs that are the cause, where there are several"""
    line: int | None = None
    """in a stream: the line that the problem is about, from 1"""


class Problem(Exception):  # noqa: N818 - a Problem is the field's word (RFC 9457)
    """Raise to answer with a problem."""

    def __init__(  # noqa: PLR0913 - the members of RFC 9457
        self,
        status: int,
        code: Code,
        title: str,
        detail: str,
        *,
        faults: Sequence[Fault] = (),
        ids: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.details = ProblemDetails(
            code=code, title=title, status=status, detail=detail, faults=faults, ids=ids
        )
        self.headers = dict(headers or {})


class UnknownKind(Problem):
    """422: a kind that no live node serves, as far as this node knows; one may have joined just now."""


def cut(text: str) -> str:
    """A text, or the beginning of a long one."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def not_json(detail: str) -> Problem:
    """400: the body is not JSON; `detail` says what to send."""
    return Problem(400, Code.NOT_JSON, "The body is not JSON", detail)


def invalid(faults: Sequence[Fault], problem: type[Problem] = Problem) -> Problem:
    """422: every fault of the request, up to `LISTED` of them."""
    listed = [Fault(cut(fault.pointer), cut(fault.detail)) for fault in faults[:LISTED]]
    what = "; ".join(f"{fault.pointer or 'the body'}: {fault.detail}" for fault in listed[:5])
    if len(faults) > len(listed):
        what += f"; only the first {LISTED} faults are listed"
    detail = f"fix these and resend: {what}"
    return problem(422, Code.INVALID, "Invalid request", detail, faults=listed)


def too_large(limit: int, advice: str = "send less, or stream jobs as NDJSON to /enqueue/bulk") -> Problem:
    """413: more bytes than MAX_BODY."""
    return Problem(
        413,
        Code.TOO_LARGE,
        "The body is too large",
        f"MAX_BODY allows {limit} bytes: {advice}",
        headers={"Connection": "close"},
    )


def unsupported(content_type: str, allowed: str) -> Problem:
    """415: a media type that the route does not accept."""
    detail = f"got Content-Type {cut(content_type)!r}: send {allowed}"
    return Problem(415, Code.UNSUPPORTED_MEDIA_TYPE, "Unsupported media type", detail)


def no_route(path: str) -> Problem:
    """404: no such route."""
    return Problem(404, Code.NOT_FOUND, "Not found", f"no route for {path}: /docs lists them all")


def no_job(job_id: str) -> Problem:
    """404: no such job."""
    detail = f"no job has the id {cut(job_id)!r}; it may have been deleted"
    return Problem(404, Code.NO_SUCH_JOB, "No such job", detail)


def wrong_status(job: Job, advice: str, *, again: bool = False) -> Problem:
    """409: a job's status does not allow this; `again`: unless it has ended, it may do so soon."""
    detail = f"job {job.id!r} is {job.status.value}: {advice}"
    soon = again and job.status not in ENDED | {Status.BLOCKED}
    headers = {"Retry-After": RETRY_AFTER} if soon else None
    title = "The job's status does not allow this"
    return Problem(409, Code.WRONG_STATUS, title, detail, headers=headers)


def node_silent(node: str, why: str) -> Problem:
    """503: the node that runs a job does not answer."""
    detail = f"the node {cut(node)!r}, which runs the job, {why}"
    headers = {"Retry-After": RETRY_AFTER}
    return Problem(503, Code.NODE_SILENT, "The node does not answer", detail, headers=headers)


def no_queue(name: str) -> Problem:
    """404: no such queue."""
    detail = f"no queue {name!r} has jobs, is paused or has settings; it may have been deleted"
    return Problem(404, Code.NO_SUCH_QUEUE, "No such queue", detail)


def no_schedule(name: str) -> Problem:
    """404: no such schedule."""
    detail = f"no schedule has the name {name!r}; it may have been deleted"
    return Problem(404, Code.NO_SUCH_SCHEDULE, "No such schedule", detail)


def no_operation(operation_id: str) -> Problem:
    """404: no such operation."""
    detail = f"no operation has the id {cut(operation_id)!r}; they are kept for a week after their end"
    return Problem(404, Code.NO_SUCH_OPERATION, "No such operation", detail)


def no_error(fingerprint: str) -> Problem:
    """404: no such error group."""
    detail = f"no job that is there has failed with an error of the fingerprint {cut(fingerprint)!r}"
    return Problem(404, Code.NO_SUCH_ERROR, "No such error", detail)


def no_node(name: str) -> Problem:
    """404: no such node."""
    detail = f"no node named {cut(name)!r} has ever joined: GET /nodes lists those that have"
    return Problem(404, Code.NO_SUCH_NODE, "No such node", detail)


def no_group(group_id: str) -> Problem:
    """404: no such group."""
    detail = f"no group has the id {group_id!r}; it may have been forgotten some time after its end"
    return Problem(404, Code.NO_SUCH_GROUP, "No such group", detail)


def other_group(group_id: str) -> Problem:
    """409: another group has the id."""
    detail = (
        f"a group with the id {group_id!r} exists and has other content; nothing was stored: send another id"
    )
    return Problem(409, Code.ID_CONFLICT, "The id is already used", detail)


def too_many_streams(most: int) -> Problem:
    """503: no room for one more stream of events."""
    return Problem(
        503,
        Code.TOO_MANY_STREAMS,
        "Too many streams",
        f"{most} streams of events are open, and half of MAX_CONNECTIONS may be: close some, or try again later",
        headers={"Retry-After": RETRY_AFTER},
    )


def declared(name: str) -> Problem:
    """409: a schedule that was to be changed or deleted is declared in code."""
    detail = f"the code of a live node declares the schedule {name!r}: change it there, or pause it"
    return Problem(409, Code.DECLARED, "The schedule is declared in code", detail)


def not_empty(name: str, counts: Mapping[Status, int]) -> Problem:
    """409: a queue that was to be deleted has jobs."""
    held = ", ".join(f"{counts[status]} {status.value}" for status in Status if counts.get(status))
    what = "job" if sum(counts.values()) == 1 else "jobs"
    detail = f"queue {name!r} still has {held} {what}: delete those first"
    return Problem(409, Code.QUEUE_NOT_EMPTY, "The queue is not empty", detail)


def closed(names: Sequence[str]) -> Problem:
    """409: queues that jobs were to be stored in, or moved into, are closed."""
    named = ", ".join(map(repr, names[:5]))
    what = f"queue {named} is closed and takes" if len(names) == 1 else f"queues {named} are closed and take"
    advice = 'use another queue, or open it with PUT /queues/NAME and "closed": false'
    detail = f"{what} no new jobs; nothing was stored: {advice}"
    return Problem(409, Code.QUEUE_CLOSED, "The queue is closed", detail)


def unknown_group(group_id: str) -> Problem:
    """422: the group that a new job is for does not exist."""
    detail = f"no group has the id {group_id!r}; nothing was stored: make it with POST /groups first"
    return Problem(422, Code.UNKNOWN_GROUP, "The group does not exist", detail)


def group_closed(group_id: str) -> Problem:
    """409: the group that a new job is for takes no more."""
    detail = (
        f"the group {group_id!r} takes no more jobs; nothing was stored: "
        'while it has not ended, its own jobs can add some, and POST /groups with "open" makes one that takes more'
    )
    return Problem(409, Code.GROUP_CLOSED, "The group is closed", detail)


def conflict(ids: Sequence[str]) -> Problem:
    """409: the ids belong to jobs with other content."""
    named = ", ".join(map(repr, ids[:5]))
    return Problem(
        409,
        Code.ID_CONFLICT,
        "The id is already used",
        f"a job with the id {named} exists and has other content; nothing was stored: send another id",
        ids=ids[:LISTED],
    )


def not_unique(other: str, status: Status | None = None) -> Problem:
    """409: another job has the key of a new one; `status` is what it is, None where it is gone."""
    if status is None:
        words = "which is gone, but its time is not over"
    elif status in ENDED:
        words = f"which is {status.value}, but its time is not over"
    else:
        words = f"which is {status.value}"
    return _not_unique(other, f"the key is that of job {cut(other)!r}, {words}; nothing was stored")


def key_taken(job_id: str, other: str) -> Problem:
    """409: another job has the key of one that was to be retried."""
    taken = f"the key of job {cut(job_id)!r} is that of job {cut(other)!r} now"
    return _not_unique(other, f"{taken}; nothing was changed: cancel that one first")


def _not_unique(other: str, detail: str) -> Problem:
    return Problem(409, Code.NOT_UNIQUE, "Another job has the key", detail, ids=[other])


def unknown_dependency(ids: Sequence[str]) -> Problem:
    """422: jobs that a new one depends on do not exist."""
    named = ", ".join(map(repr, ids[:5]))
    return Problem(
        422,
        Code.UNKNOWN_DEPENDENCY,
        "A dependency does not exist",
        f"no job has the id {named}; nothing was stored: enqueue what it depends on first, or in the same array",
        ids=ids[:LISTED],
    )


def dependency_failed(ids: Sequence[str]) -> Problem:
    """409: jobs that a new one needs have ended otherwise than needed."""
    named = ", ".join(map(repr, ids[:5]))
    return Problem(
        409,
        Code.DEPENDENCY_FAILED,
        "A dependency did not succeed",
        f"the job needs {named} to be done, which ended otherwise; nothing was stored: retry that job first, or send "
        '"needs": "ended"',
        ids=ids[:LISTED],
    )


def unavailable(error: JobpipeError) -> Problem:
    """503: the queue is full, the node drains, or the store cannot be used. Nothing was stored."""
    match error:
        case QueueFull():
            code, title = Code.QUEUE_FULL, "The queue is full"
        case Draining():
            code, title = Code.DRAINING, "The node is shutting down"
        case _:
            code, title = Code.STORE_UNAVAILABLE, "The store is unavailable"
    detail = f"{error}; nothing was stored: try again later"
    return Problem(503, code, title, detail, headers={"Retry-After": RETRY_AFTER})


def problem_from(error: Problem | JobpipeError) -> Problem:
    """The problem to answer with: one that was raised as such, or 503 for what the engine or the store refused."""
    return error if isinstance(error, Problem) else unavailable(error)


def cross_site() -> Problem:
    """403: a page of another site tried to change something."""
    detail = "pages of other sites may not change anything; a proxy in between must pass on `Host` unchanged"
    return Problem(403, Code.CROSS_SITE, "Cross-site request", detail)


def wrong_host(host: str) -> Problem:
    """421: the request names another host."""
    detail = f"this service is not known as {host[:100]!r}: add the name to ALLOWED_HOSTS, or use localhost"
    return Problem(421, Code.WRONG_HOST, "Wrong host", detail)


def bad_request(detail: str) -> Problem:
    """400: the request breaks HTTP's rules."""
    return Problem(400, Code.BAD_REQUEST, "Malformed request", detail)


def timed_out() -> Problem:
    """408: a request came no further."""
    detail = "the rest of the request did not arrive in time: send it again without pausing"
    return Problem(408, Code.REQUEST_TIMEOUT, "Request timed out", detail)


def too_long_head(limit: int) -> Problem:
    """431: too long a request line, or too many headers."""
    detail = f"the request line and headers may have at most {limit} bytes: send shorter ones"
    return Problem(431, Code.HEAD_TOO_LARGE, "Headers too large", detail)


def not_implemented(detail: str) -> Problem:
    """501: a method or a transfer coding that is not known."""
    return Problem(501, Code.NOT_IMPLEMENTED, "Not implemented", detail)


def other_version(version: str) -> Problem:
    """505: another version of HTTP."""
    detail = f"HTTP/{version} is not supported: send HTTP/1.1"
    return Problem(505, Code.HTTP_VERSION, "HTTP version not supported", detail)


def internal() -> Problem:
    """500: a bug in jobpipe; the log has the traceback."""
    detail = "this is a bug in jobpipe: the node's log has the traceback"
    return Problem(500, Code.INTERNAL, "Internal error", detail)
