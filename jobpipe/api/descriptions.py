"""The words of the OpenAPI spec: what no type says."""

from collections.abc import Mapping
from typing import Any

from jobpipe.api.problems import (
    RETRY_AFTER,
    Code,
    Fault,
    Problem,
    closed,
    conflict,
    cross_site,
    declared,
    dependency_failed,
    group_closed,
    internal,
    invalid,
    no_error,
    no_group,
    no_job,
    no_node,
    no_operation,
    no_queue,
    no_schedule,
    node_silent,
    not_empty,
    not_json,
    not_unique,
    too_large,
    too_many_streams,
    unavailable,
    unknown_dependency,
    unknown_group,
    unsupported,
)
from jobpipe.errors import Draining, QueueFull, StoreUnavailable
from jobpipe.job import Status

DESCRIPTION = """\
Background jobs: enqueue them, get their results, cancel and retry them.

- **JSON** in and out. Times are RFC 3339 in UTC, durations are seconds; requests may give them as `"90s"`, `"5m"`
  or `"1h30m"` too.
- **202** means that the request is stored and survives a crash.
- **Errors** are problem details (RFC 9457, `application/problem+json`): `code` is stable, `detail` says what to do, and
  `faults` points at each wrong part of the request. An unknown path is a 404 `not_found`, an unsupported method a 405
  `method_not_allowed` with `Allow`.
- **Unknown parameters and fields** are refused on every route, with 422 `invalid` and their names.
- **503** comes with `Retry-After`: nothing was stored, send the request again after so many seconds.
- **Lists** come in pages of at most 4 MiB: follow `next_cursor` until it is null.
- Pages of other sites cannot change anything: their requests are refused with 403 `cross_site`.
"""

TAGS = {
    "enqueue": "New jobs",
    "jobs": "Get and list jobs, wait for them, cancel, retry, promote, edit and delete them",
    "groups": "Jobs that belong together, and one that is run when all of them have ended",
    "queues": "Get and list queues, set what holds for them, pause, resume and delete them",
    "operations": "Cancel, retry, delete, promote, move and edit many jobs at once",
    "audit": "Who did what by hand",
    "errors": "Failed jobs, grouped by their errors",
    "schedules": "Jobs that are enqueued again and again: put, get, list, pause, resume, run and delete schedules",
    "service": "The service itself",
}

PROBLEMS = {
    problem.details.code: problem.details
    for problem in (
        not_json("JSON is malformed: expected ':' (byte 9): send JSON in UTF-8"),
        cross_site(),
        no_job("t1"),
        Problem(
            409,
            Code.WRONG_STATUS,
            "The job's status does not allow this",
            "job 't1' is done: only a waiting or running job can be cancelled",
        ),
        no_queue("reports"),
        no_schedule("nightly"),
        no_operation("0190c3e2-5a1e-7c6f-8d10-3f2b6a1c9e55"),
        no_error("1-5d0a2c4b7e91f683"),
        no_node("host-1"),
        no_group("import"),
        declared("nightly"),
        not_empty("reports", {Status.QUEUED: 3}),
        closed(["reports"]),
        group_closed("import"),
        conflict(["t1"]),
        not_unique("t1", Status.RUNNING),
        dependency_failed(["t1"]),
        unknown_dependency(["t1"]),
        unknown_group("import"),
        too_large(1 << 20),
        unsupported("text/plain", "application/json"),
        invalid([Fault("/max_retry", "unknown field; known are id, kind, payload, queue, max_retries")]),
        internal(),
        too_many_streams(500),
        node_silent("host-1", "has died or lost its lease: the job is recovered from it soon"),
        unavailable(QueueFull("64 jobs are waiting already, and MAX_BACKLOG allows 64")),
        unavailable(Draining("this node is shutting down and takes no new jobs")),
        unavailable(StoreUnavailable("the disk is full")),
    )
}
"""Every problem that a route answers with, by its code, as it looks."""

LOCATION: Mapping[str, Any] = {
    "Location": {"description": "the path of the job", "schema": {"type": "string"}, "example": "/jobs/t1"}
}
RETRY_LATER: Mapping[str, Any] = {
    "Retry-After": {
        "description": "seconds after which to try again",
        "schema": {"type": "integer"},
        "example": int(RETRY_AFTER),
    }
}
