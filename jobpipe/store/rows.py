"""Rows to structs and back, for the stores that keep a job in a row."""

from collections.abc import Sequence
from typing import Any

import msgspec

from jobpipe.job import (
    ACTIVE,
    NO_OPTIONS,
    AttemptRecord,
    Job,
    JobError,
    Options,
    Outcome,
    Status,
    kept,
)

Row = tuple[Any, ...]

_encode = msgspec.json.Encoder().encode
_options = msgspec.json.Decoder(Options).decode
_error = msgspec.json.Decoder(JobError).decode


def encoded_options(options: Options) -> bytes | None:
    """What is stored of options: nothing, when nothing was asked."""
    return None if options is NO_OPTIONS or options == NO_OPTIONS else _encode(options)


def decoded_options(stored: bytes | None) -> Options:
    """The reverse of `encoded_options`."""
    return NO_OPTIONS if stored is None else _options(stored)


def encoded_error(error: JobError | None) -> bytes | None:
    """What is stored of an error."""
    return None if error is None else _encode(error)


def decoded_error(stored: bytes | None) -> JobError | None:
    """The reverse of `encoded_error`."""
    return None if stored is None else _error(stored)


def job_from(row: Row) -> Job:
    """A job from the store's JOB_COLUMNS, without its attempts."""
    return Job(
        id=row[0],
        kind=row[1],
        queue=row[2],
        status=Status(row[3]),
        priority=row[4],
        payload=row[5],
        result=row[6],
        error=decoded_error(row[7]),
        attempt=row[8],
        max_retries=row[9],
        claim=row[10],
        created_at=row[11],
        run_at=row[12],
        started_at=row[13],
        finished_at=row[14],
        expires_at=row[15],
        options=decoded_options(row[16]),
    )


def with_attempts(job: Job, node: str | None, earlier: Sequence[AttemptRecord]) -> Job:
    """A job with its attempts, given the name of the node that claimed it last."""
    attempts = kept([*earlier, *_last_attempt(job, node)])
    return msgspec.structs.replace(job, attempts=attempts)


def _last_attempt(job: Job, node: str | None) -> Sequence[AttemptRecord]:
    """The attempt that stands in the job's own row: one that runs, or the one that ended the job well."""
    runs = job.status in ACTIVE
    if job.started_at is None or not (runs or job.status is Status.DONE):
        return []
    return [
        AttemptRecord(
            number=job.attempt,
            claim=job.claim,
            node=node,
            started_at=job.started_at,
            finished_at=job.finished_at,
            outcome=None if runs else Outcome.DONE,
        )
    ]


def attempt_from(row: Row) -> AttemptRecord:
    """An attempt that ended, from (number, claim, node's name, started_at, finished_at, outcome, error)."""
    number, claim, node, started_at, finished_at, outcome, error = row
    return AttemptRecord(
        number=number,
        claim=claim,
        node=node,
        started_at=started_at,
        finished_at=finished_at,
        outcome=Outcome(outcome),
        error=decoded_error(error),
    )
