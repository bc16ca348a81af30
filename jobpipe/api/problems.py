"""Errors as RFC 9457 problem details: a stable code, a title, and a detail that says what to do."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from jobpipe.errors import Draining, JobpipeError, QueueFull

RETRY_AFTER = "1"
"""Seconds after which a refused client may try again."""


class Fault(msgspec.Struct, frozen=True):
    """One fault of an input. `pointer` is a JSON pointer (RFC 6901) into the body, or `?name` for a query parameter."""

    pointer: str
    detail: str


class ProblemDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong and what to do (RFC 9457)."""

    code: str
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
        code: str,
        title: str,
        detail: str,
        *,
        faults: Sequence[Fault] = (),
        ids: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.details = ProblemDetails(code=code, title=title, status=status, detail=detail, faults=faults, ids=ids)
        self.headers = dict(headers or {})


def not_json(detail: str) -> Problem:
    """400: the body is no JSON."""
    return Problem(400, "not_json", "The body is not JSON", f"{detail}: send a JSON object")


def invalid(faults: Sequence[Fault]) -> Problem:
    """422: every fault of the input."""
    what = "; ".join(f"{fault.pointer or '/'}: {fault.detail}" for fault in faults[:5])
    return Problem(422, "invalid", "The input is not valid", f"mend these and send it again: {what}", faults=faults)


def too_large(limit: int) -> Problem:
    """413: more bytes than MAX_BODY."""
    return Problem(
        413,
        "too_large",
        "The body is too large",
        f"at most {limit} bytes are taken (MAX_BODY): send less, or stream jobs as NDJSON to /enqueue/bulk",
        headers={"Connection": "close"},
    )


def unsupported(content_type: str, allowed: str) -> Problem:
    """415: a media type that is not taken here."""
    return Problem(
        415, "unsupported_media_type", "The media type is not taken here", f"{content_type!r} came: send {allowed}"
    )


def no_job(job_id: str) -> Problem:
    """404: no such job."""
    return Problem(404, "no_such_job", "There is no such job", f"no job has the id {job_id!r}; it may have been deleted")


def unavailable(error: JobpipeError) -> Problem:
    """503: the queue is full, the node drains, or the store cannot write. Nothing was stored."""
    match error:
        case QueueFull():
            code, title = "queue_full", "The queue is full"
        case Draining():
            code, title = "draining", "The node is shutting down"
        case _:
            code, title = "store_unavailable", "The store cannot be used now"
    return Problem(503, code, title, f"{error}; nothing was stored: try again later", headers={"Retry-After": RETRY_AFTER})


def cross_site() -> Problem:
    """403: a web page of another site asked."""
    return Problem(403, "cross_site", "Refused", "a page of another site may not change anything here")


_PATH = re.compile(r" - at `(?P<path>[^`]*)`$")


def fault_from(error: msgspec.ValidationError, root: str = "") -> Fault:
    """msgspec's first fault, its path as a JSON pointer below `root`."""
    text = str(error)
    match = _PATH.search(text)
    path = match["path"].removeprefix("$").split("[...]")[0].replace(".", "/") if match else ""
    return Fault(root + path, text[: match.start()] if match else text)


def faults_of(body: Any, model: type[msgspec.Struct]) -> Sequence[Fault]:  # noqa: ANN401 - any JSON
    """Every fault of a decoded body, field by field; where the fields are well, the fault of the whole."""
    if not isinstance(body, dict):
        return [Fault("", f"expected an object, got {_kind_of(body)}")]
    fields = {field.encode_name: field for field in msgspec.structs.fields(model)}
    faults = [
        Fault(f"/{_escaped(name)}", f"unknown field; known are {', '.join(fields)}") for name in body if name not in fields
    ]
    for name, field in fields.items():
        if name in body:
            faults += _field_faults(body[name], field.type, f"/{name}")
        elif field.required:
            faults.append(Fault(f"/{name}", "is required"))
    return faults


def _field_faults(value: Any, kind: Any, pointer: str) -> Sequence[Fault]:  # noqa: ANN401 - any JSON, any type
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return [fault_from(error, pointer)]
    return []


def _kind_of(value: Any) -> str:  # noqa: ANN401 - any JSON
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
