"""Errors as RFC 9457 problem details: a stable code, a title, and a detail that says what to do."""

import enum
from collections.abc import Mapping, Sequence

import msgspec

from jobpipe.errors import Draining, JobpipeError, QueueFull

RETRY_AFTER = "1"
"""Seconds after which a refused client may try again."""

LISTED = 100
"""The most faults, and the most ids, that one problem lists."""


class Code(enum.StrEnum):
    """What can go wrong, for programs: these words and no others, and none of them changes its meaning."""

    BAD_REQUEST = "bad_request"
    """the request breaks HTTP's own rules (400 and other 4xx)"""
    NOT_JSON = "not_json"
    """the body is not JSON in UTF-8 (400)"""
    CROSS_SITE = "cross_site"
    """a web page of another site asked for a change (403)"""
    NOT_FOUND = "not_found"
    """there is no such route (404)"""
    NO_SUCH_JOB = "no_such_job"
    """there is no job with that id (404)"""
    METHOD_NOT_ALLOWED = "method_not_allowed"
    """the route takes other methods, listed in `Allow` (405)"""
    ID_CONFLICT = "id_conflict"
    """the id belongs to a job with other content (409)"""
    WRONG_STATUS = "wrong_status"
    """the job's status does not allow that (409)"""
    TOO_LARGE = "too_large"
    """the body, or a line of a stream, is longer than MAX_BODY (413)"""
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    """the Content-Type is not taken there (415)"""
    INVALID = "invalid"
    """the input has the faults that are listed (422)"""
    INTERNAL = "internal"
    """a fault of jobpipe (500)"""
    QUEUE_FULL = "queue_full"
    """as many jobs wait as MAX_BACKLOG allows (503)"""
    DRAINING = "draining"
    """the node is shutting down (503)"""
    STORE_UNAVAILABLE = "store_unavailable"
    """the store cannot be read or written now (503)"""


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


def not_json(detail: str) -> Problem:
    """400: the body is no JSON."""
    return Problem(400, Code.NOT_JSON, "The body is not JSON", f"{detail}: send JSON in UTF-8")


def invalid(faults: Sequence[Fault], problem: type[Problem] = Problem) -> Problem:
    """422: every fault of the input, up to `LISTED` of them."""
    listed = faults[:LISTED]
    what = "; ".join(f"{fault.pointer or 'the body'}: {fault.detail}" for fault in listed[:5])
    if len(faults) > len(listed):
        what += f"; only the first {LISTED} faults are listed"
    detail = f"mend these and send it again: {what}"
    return problem(422, Code.INVALID, "The input is not valid", detail, faults=listed)


def too_large(limit: int, advice: str = "send less, or stream jobs as NDJSON to /enqueue/bulk") -> Problem:
    """413: more bytes than MAX_BODY."""
    return Problem(
        413,
        Code.TOO_LARGE,
        "The body is too large",
        f"at most {limit} bytes are taken (MAX_BODY): {advice}",
        headers={"Connection": "close"},
    )


def unsupported(content_type: str, allowed: str) -> Problem:
    """415: a media type that is not taken here."""
    title = "The media type is not taken here"
    return Problem(415, Code.UNSUPPORTED_MEDIA_TYPE, title, f"{content_type!r} came: send {allowed}")


def no_job(job_id: str) -> Problem:
    """404: no such job."""
    detail = f"no job has the id {job_id!r}; it may have been deleted"
    return Problem(404, Code.NO_SUCH_JOB, "There is no such job", detail)


def conflict(ids: Sequence[str]) -> Problem:
    """409: the ids belong to jobs with another content."""
    named = ", ".join(map(repr, ids[:5]))
    return Problem(
        409,
        Code.ID_CONFLICT,
        "The id belongs to another job",
        f"another job, with other content, has the id {named}; nothing was stored: choose another id",
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
            code, title = Code.STORE_UNAVAILABLE, "The store cannot be used now"
    detail = f"{error}; nothing was stored: try again later"
    return Problem(503, code, title, detail, headers={"Retry-After": RETRY_AFTER})


def cross_site() -> Problem:
    """403: a web page of another site asked."""
    return Problem(403, Code.CROSS_SITE, "Refused", "a page of another site may not change anything here")


def internal() -> Problem:
    """500: a fault of jobpipe, told in the log."""
    detail = "this is a fault of jobpipe: the log of the node tells more"
    return Problem(500, Code.INTERNAL, "Internal error", detail)
