"""Rows to structs and back, for the stores that keep a job in a row."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from jobpipe.job import (
    ACTIVE,
    NO_OPTIONS,
    AttemptRecord,
    Job,
    JobError,
    NewJob,
    Options,
    Outcome,
    State,
    Status,
    kept,
    same_content,
)
from jobpipe.merging import insists
from jobpipe.store.base import Claimed, Receipt
from jobpipe.transitions import Stored

R = TypeVar("R")

LARGEST = 1 << 40
"""More bytes than a job can have."""

Row = tuple[Any, ...]

_REFUSED = {
    "conflict": "the id {id!r} belongs to another job",
    "locked": "another program has locked the job with the id {id!r}",
    "late": "the job {id!r} expires before it could run",
    "unknown_dependency": "the job {id!r} depends on {other!r}, which does not exist",
    "dependency_failed": "the job {id!r} depends on {other!r}, which did not end as needed",
    "dependency_cycle": "the job {id!r} waits for itself, by way of others",
    "closed": "the queue {queue!r} of the job {id!r} takes no new jobs",
    "unknown_group": "the job {id!r} is for the group {group!r}, which does not exist",
    "group_closed": "the group {group!r} of the job {id!r} takes no more jobs",
    "not_unique": "the job {id!r} is not unique: its key is that of the job {other!r}",
}
"""What the verdict on a new job means that is not stored."""


class JobRow(NamedTuple):
    """A job as a store selects it: JOB_COLUMNS are these, in this order. Where a row is damaged, any value stands."""

    id: str
    kind: str
    queue: str
    status: str
    priority: int
    payload: bytes
    result: bytes | None
    error: bytes | None
    attempt: int
    max_retries: int
    claim: int
    created_at: float
    run_at: float
    started_at: float | None
    finished_at: float | None
    expires_at: float | None
    options: bytes | None
    seq: int
    node: str | None
    """the name of the one that claimed it last"""
    held: bool | int
    size: int
    rescued: int
    watched: bool | int
    followed: bool | int
    original: bytes | None


_encode = msgspec.json.Encoder().encode
_options = msgspec.json.Decoder(Options).decode
_error = msgspec.json.Decoder(JobError).decode
_asked = msgspec.json.Decoder(NewJob).decode


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


def encoded_original(original: NewJob | None) -> bytes | None:
    """What is stored of what was asked first, where it was edited since: JSON, the payload in it as base64.

    The function `enqueue` of PostgreSQL reads it, too.
    """
    return None if original is None else _encode(original)


def decoded_original(stored: bytes | None) -> NewJob | None:
    """The reverse of `encoded_original`."""
    return None if stored is None else _asked(stored)


def damage_of(row: Row) -> str | None:
    """What of a claimed row, the values of `Claimed`, cannot be read, in words; None: all of it can."""
    try:
        decoded_options(row[-1])
    except Exception as error:  # noqa: BLE001 - whatever stands there
        return f"the options cannot be read ({_reason(error)})"
    return None


def claimed_from(rows: Sequence[Row]) -> Sequence[Claimed]:
    """Claimed jobs from the values of `Claimed`, the options as they are stored. A damaged row says so."""
    try:
        return [_claimed(row[:-1], decoded_options(row[-1])) for row in rows]
    except Exception:  # noqa: BLE001 - one of them is damaged
        return [_claimed_with_care(row) for row in rows]


def _claimed_with_care(row: Row) -> Claimed:
    damage = damage_of(row)
    options = NO_OPTIONS if damage is not None else decoded_options(row[-1])
    return _claimed(row[:-1], options, damage)


def _claimed(row: Row, options: Options, damage: str | None = None) -> Claimed:
    values: Sequence[Any] = (*row, options, damage)
    return Claimed(*values)


def plausible(size: int) -> int:
    """The bytes of a job as they are counted: of a damaged row they may be any number."""
    return min(max(size, 0), LARGEST)


def readable_options(options: bytes | None) -> Options | None:
    """Stored options; None where they cannot be read."""
    try:
        return decoded_options(options)
    except Exception:  # noqa: BLE001 - whatever stands there
        return None


def is_deadline(expires_at: float, options: bytes) -> bool:
    """Whether a stored expires_at is the deadline in the stored options; no, where these cannot be read."""
    read = readable_options(options)
    return read is not None and read.deadline == expires_at


def stored_from(row: Row, attempts: Sequence[AttemptRecord] = ()) -> Stored:
    """A job as it is stored, from JOB_COLUMNS, with its attempts that have ended."""
    named = JobRow(*row)
    return Stored(
        job=msgspec.structs.replace(job_from(named), attempts=tuple(attempts)),
        seq=named.seq,
        node=named.node,
        held=named.held == 1,
        size=named.size,
        rescued=named.rescued,
        watched=bool(named.watched),
        followed=bool(named.followed),
    )


def shown(stored: Stored) -> Job:
    """A job as it is shown: with the attempt that stands in its own row, too."""
    return with_attempts(stored.job, stored.node, stored.job.attempts)


def job_from(row: Row) -> Job:
    """A job from the store's JOB_COLUMNS, without its attempts. What cannot be read is left out and named."""
    named = JobRow(*row)
    try:
        return _job(
            named,
            Status(named.status),
            decoded_error(named.error),
            decoded_options(named.options),
            decoded_original(named.original),
        )
    except Exception:  # noqa: BLE001 - whatever stands there
        return _job_with_care(named)


def _job_with_care(row: JobRow) -> Job:
    """A job of whose row something cannot be read."""
    damage: list[str] = []

    def read(name: str, decode: Callable[[], R], otherwise: R) -> R:
        try:
            return decode()
        except Exception as error:  # noqa: BLE001 - whatever stands there
            damage.append(f"its {name} cannot be read ({_reason(error)})")
            return otherwise

    job = _job(
        row,
        # It can be retried, which writes a sound status, or deleted.
        read("status", lambda: Status(row.status), Status.FAILED),
        read("error", lambda: decoded_error(row.error), None),
        read("options", lambda: decoded_options(row.options), NO_OPTIONS),
        read("first request", lambda: decoded_original(row.original), None),
    )
    return msgspec.structs.replace(job, damage=tuple(damage))


def _reason(error: Exception) -> str:
    """An error in a line."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def _job(
    row: JobRow, status: Status, error: JobError | None, options: Options, original: NewJob | None
) -> Job:
    asked = NewJob(
        id=row.id,
        kind=row.kind,
        queue=row.queue,
        payload=row.payload,
        priority=row.priority,
        max_retries=row.max_retries,
        created_at=row.created_at,
        run_at=row.run_at,
        expires_at=row.expires_at,
        options=options,
    )
    state = State(status, row.attempt, row.claim, row.started_at, row.finished_at, row.result, error)
    return Job(asked, state, original=original)


def with_attempts(job: Job, node: str | None, earlier: Sequence[AttemptRecord]) -> Job:
    """A job with its attempts, given the name of the node that claimed it last."""
    attempts = kept([*earlier, *_last_attempt(job, node)])
    return msgspec.structs.replace(job, attempts=attempts)


def _last_attempt(job: Job, node: str | None) -> Sequence[AttemptRecord]:
    """The attempt that stands in the job's own row: one that runs, or the one that ended the job well."""
    state, runs = job.state, job.status in ACTIVE
    if state.started_at is None or not (runs or job.status is Status.DONE):
        return []
    return [
        AttemptRecord(
            number=state.attempt,
            claim=state.claim,
            node=node,
            started_at=state.started_at,
            finished_at=state.finished_at,
            outcome=None if runs else Outcome.DONE,
            due_at=job.asked.run_at,
        )
    ]


def attempt_from(row: Row) -> AttemptRecord:
    """An attempt that ended, from (number, claim, node's name, started_at, finished_at, outcome, error, due_at)."""
    number, claim, node, started_at, finished_at, outcome, error, due_at = row
    try:
        read_outcome: Outcome | None = Outcome(outcome)
        read_error = decoded_error(error)
    except Exception as reason:  # noqa: BLE001 - whatever stands there
        read_outcome = Outcome(outcome) if outcome in set(Outcome) else None
        read_error = JobError("DamagedRow", f"the attempt cannot be read ({_reason(reason)})")
    return AttemptRecord(
        number=number,
        claim=claim,
        node=node,
        started_at=started_at,
        finished_at=finished_at,
        outcome=read_outcome,
        error=read_error,
        due_at=due_at,
    )


def refusal(jobs: Sequence[NewJob], receipts: Sequence[Receipt]) -> str | None:
    """Why jobs that were to be stored together, strictly, were not, in words; None: they were."""
    for job, receipt in zip(jobs, receipts, strict=True):
        if receipt.verdict == "not_unique" and not insists(job):
            continue
        if (why := _REFUSED.get(receipt.verdict)) is not None:
            other = receipt.other or (*receipt.dependencies, "")[0]
            return why.format(id=job.id, queue=receipt.queue, group=receipt.group, other=other)
    return None


def compared(new: NewJob, job: Job | None) -> Receipt:
    """The receipt of a new job whose id was taken by `job` (None: by one that is gone).

    Compared with what was asked first: a client that repeats its request may not know that the job was edited.
    """
    try:
        same = job is not None and not job.damage and same_content(new, job.original or job.asked)
    except Exception:  # noqa: BLE001 - what cannot be compared is not the same
        same = False
    return Receipt("existing" if same else "conflict", job)
