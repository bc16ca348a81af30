"""The words of the OpenAPI spec: what no type says."""

from collections.abc import Mapping
from typing import Any

from jobpipe.api.problems import (
    RETRY_AFTER,
    Code,
    Fault,
    Problem,
    conflict,
    cross_site,
    internal,
    invalid,
    no_job,
    no_queue,
    not_empty,
    not_json,
    too_large,
    unavailable,
    unsupported,
)
from jobpipe.errors import Draining, QueueFull, StoreUnavailable
from jobpipe.job import JobId, Name, Status

DESCRIPTION = """\
Background jobs: enqueue, watch, cancel, retry.

- **JSON** in and out. Times are RFC 3339 in UTC, durations are seconds.
- **202** is sent when what was asked is stored and survives a crash.
- **Errors** are problem details (RFC 9457, `application/problem+json`): `code` is stable, `detail` says what to do, and
  `faults` point at each part of an input that is wrong. An unknown path is a 404 `not_found`, another method than those
  below a 405 `method_not_allowed` with `Allow`.
- **503** carries `Retry-After`: nothing was stored, send it again after so many seconds.
- A page of another site may not change anything here: what `Sec-Fetch-Site` tells apart is refused with 403.
"""

TAGS = {
    "enqueue": "New jobs",
    "jobs": "Look at jobs, wait for them, cancel, retry and delete them",
    "queues": "List, pause, resume and delete queues",
    "service": "The node itself",
}

PARAMETERS = {
    "job_id": "the job's id",
    "name": "the queue's name",
    "status": "only jobs with this status",
    "kind": "only jobs of this kind",
    "queue": "only jobs of this queue",
    "tag": "only jobs that have this tag",
    "created_after": "only jobs created later: RFC 3339 with a time zone, such as 2030-01-31T12:00:00Z",
    "created_before": "only jobs created earlier: RFC 3339 with a time zone, such as 2030-01-31T12:00:00Z",
    "limit": "the most entries of a page",
    "cursor": "the `next_cursor` of the previous page",
}
"""What parameters mean; where nothing stands, the type says it."""

PATH_TYPES = {"job_id": JobId, "name": Name}
"""The types of the parameters in paths."""

PROBLEMS = {
    problem.details.code: problem.details
    for problem in (
        not_json("JSON is malformed: expected ':' (byte 9)"),
        cross_site(),
        no_job("t1"),
        Problem(
            409,
            Code.WRONG_STATUS,
            "The job's status does not allow that",
            "job 't1' is done: only a job that waits or runs can be cancelled",
        ),
        no_queue("reports"),
        not_empty("reports", {Status.QUEUED: 3}),
        conflict(["t1"]),
        too_large(1 << 20),
        unsupported("text/plain", "application/json"),
        invalid([Fault("/max_retry", "unknown field; known are id, kind, payload, queue, max_retries")]),
        internal(),
        unavailable(QueueFull("64 jobs wait already, and MAX_BACKLOG allows 64")),
        unavailable(Draining("this node is shutting down and takes no new job")),
        unavailable(StoreUnavailable("the disk is full")),
    )
}
"""Every problem that a route answers with, by its code, as it looks."""

LOCATION: Mapping[str, Any] = {
    "Location": {"description": "where the job is", "schema": {"type": "string"}, "example": "/jobs/t1"}
}
RETRY_LATER: Mapping[str, Any] = {
    "Retry-After": {
        "description": "seconds after which to try again",
        "schema": {"type": "integer"},
        "example": int(RETRY_AFTER),
    }
}
