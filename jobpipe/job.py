"""The job: its words, its data, and which status may follow which. Pure: no clock, no store, no task."""

import enum
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

DEFAULT_KIND = "echo"
DEFAULT_QUEUE = "default"
DEFAULT_MAX_RETRIES = 3
ATTEMPTS_KEPT = 100
"""How many attempts of one job are kept; older ones are forgotten."""

JobId = Annotated[
    str,
    Meta(
        pattern=r"^(?!\.{1,2}$)[^\s/\x00-\x1f\x7f]{1,200}$(?!\n)",
        description="1 to 200 characters, without spaces and slashes",
    ),
]
Name = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$(?!\n)",
        description="1 to 100 letters, digits, dots, dashes and underscores",
    ),
]
Tag = Annotated[str, Meta(min_length=1, max_length=100, description="1 to 100 characters")]
Seconds = Annotated[float, Meta(ge=0, le=315_360_000, description="seconds, at most ten years")]
Timeout = Annotated[float, Meta(gt=0, le=315_360_000, description="seconds that an attempt may take")]
Retries = Annotated[int, Meta(ge=0, le=10_000, description="attempts after the first one")]


class Status(enum.StrEnum):
    """Where a job stands."""

    SCHEDULED = "scheduled"
    """waits for its run_at"""
    QUEUED = "queued"
    """is ready and waits for a worker"""
    RUNNING = "running"
    """a worker runs an attempt"""
    RETRYING = "retrying"
    """an attempt failed; waits for the next one"""
    CANCELLING = "cancelling"
    """was asked to stop; its cleanup has not ended yet"""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    """was still waiting at its expires_at"""


WAITING = frozenset({Status.SCHEDULED, Status.QUEUED, Status.RETRYING})
ACTIVE = frozenset({Status.RUNNING, Status.CANCELLING})
ENDED = frozenset({Status.DONE, Status.FAILED, Status.CANCELLED, Status.EXPIRED})

FOLLOWS: dict[Status, frozenset[Status]] = {
    Status.SCHEDULED: frozenset({Status.QUEUED, Status.CANCELLED, Status.EXPIRED}),
    Status.QUEUED: frozenset(
        # A queued job may be held by a node already: its start is written with the next commit,
        # so an attempt that is over by then goes from queued to what it came to.
        {Status.RUNNING, Status.CANCELLING, Status.CANCELLED, Status.EXPIRED, Status.DONE}
        | {Status.FAILED, Status.RETRYING, Status.SCHEDULED}
    ),
    Status.RUNNING: frozenset(
        {Status.DONE, Status.FAILED, Status.RETRYING, Status.SCHEDULED, Status.QUEUED}
        | {Status.CANCELLING, Status.CANCELLED}
    ),
    Status.RETRYING: frozenset({Status.QUEUED, Status.CANCELLED, Status.EXPIRED}),
    Status.CANCELLING: frozenset({Status.CANCELLED, Status.DONE, Status.FAILED}),
    Status.DONE: frozenset({Status.QUEUED}),
    Status.FAILED: frozenset({Status.QUEUED}),
    Status.CANCELLED: frozenset({Status.QUEUED}),
    Status.EXPIRED: frozenset({Status.QUEUED}),
}
"""Which status may follow which; from an ended one only a retry by hand leads on."""


class Outcome(enum.StrEnum):
    """What an attempt came to."""

    DONE = "done"
    RETRY = "retry"
    FAIL = "fail"
    SNOOZE = "snooze"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


class Backoff(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long to wait before a retry: `base * factor ** (retry - 1)` seconds, at most `cap`, and jittered."""

    base: Annotated[float, Meta(ge=0, le=86_400, description="seconds before the first retry")] = 1.0
    factor: Annotated[float, Meta(ge=1, le=100, description="growth from one retry to the next")] = 2.0
    cap: Annotated[float, Meta(ge=0, le=31_536_000, description="seconds, the longest wait")] = 3600.0
    jitter: Literal["full", "equal", "none"] = "full"


class Options(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was asked of a job beyond the usual; most jobs ask nothing, and store nothing."""

    timeout: float | None = None
    backoff: Backoff | None = None
    on_crash: Literal["retry", "fail"] = "retry"
    tags: tuple[str, ...] = ()
    delay: float | None = None
    run_at: float | None = None


NO_OPTIONS = Options()


class JobError(msgspec.Struct, frozen=True):
    """Why an attempt failed."""

    type: str
    message: str
    traceback: str | None = None


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it is to be stored. `payload` is JSON; times are seconds since the epoch."""

    id: str
    kind: str
    queue: str
    payload: bytes
    priority: int
    max_retries: int
    created_at: float
    run_at: float
    expires_at: float | None = None
    options: Options = NO_OPTIONS

    @property
    def status(self) -> Status:
        """`scheduled` when its run_at lies ahead, else `queued`."""
        return Status.SCHEDULED if self.run_at > self.created_at else Status.QUEUED


class AttemptRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a job's handler, as it is kept. `outcome` is None while it runs."""

    number: int
    claim: int
    node: str | None
    started_at: float | None
    """None: it was settled without having begun"""
    finished_at: float | None = None
    outcome: Outcome | None = None
    error: JobError | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as the store has it. `attempt` counts the runs so far, `error` is the last one."""

    id: str
    kind: str
    queue: str
    status: Status
    priority: int
    payload: bytes
    result: bytes | None = None
    error: JobError | None = None
    attempt: int = 0
    max_retries: int
    claim: int = 0
    created_at: float
    run_at: float
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    options: Options = NO_OPTIONS
    attempts: tuple[AttemptRecord, ...] = ()
    damage: tuple[str, ...] = ()
    """what of its row cannot be read, in words; shown with the error"""


def as_stored(new: NewJob) -> Job:
    """The job that `new` is right after it was stored."""
    return Job(
        id=new.id,
        kind=new.kind,
        queue=new.queue,
        status=new.status,
        priority=new.priority,
        payload=new.payload,
        max_retries=new.max_retries,
        created_at=new.created_at,
        run_at=new.run_at,
        expires_at=new.expires_at,
        options=new.options,
    )


def same_content(new: NewJob, job: Job) -> bool:
    """Whether `new` asks for what `job` was asked for, so that the same request twice makes one job."""
    return (
        (new.kind, new.queue, new.priority, new.max_retries, new.options, new.expires_at)
        == (job.kind, job.queue, job.priority, job.max_retries, job.options, job.expires_at)
    ) and (
        new.payload == job.payload
        or _same(msgspec.json.decode(new.payload), msgspec.json.decode(job.payload))
    )


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401 - any JSON
    """Whether two JSON values are the same: to Python `True == 1`, to JSON it is not."""
    match one, other:
        case (bool(), _) | (_, bool()):
            return one is other
        case dict(), dict():
            return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
        case list(), list():
            return len(one) == len(other) and all(map(_same, one, other))
        case _:
            return bool(one == other)


def after_crash(job: Job) -> tuple[Status, JobError | None]:
    """What becomes of a job whose node died while it held it.

    A queued one had not begun as far as anyone knows and simply waits again. The broken attempt
    of a running one counts: it runs again while retries are left, unless it asked not to.
    """
    match job.status:
        case Status.CANCELLING:
            return Status.CANCELLED, None
        case Status.RUNNING if job.options.on_crash == "fail":
            return Status.FAILED, JobError(
                "NodeDied", 'the node died during the attempt, and "on_crash" is "fail"'
            )
        case Status.RUNNING if job.attempt > job.max_retries:
            return Status.FAILED, JobError("NodeDied", "the node died during the last attempt")
        case Status.RUNNING:
            return Status.QUEUED, JobError("NodeDied", "the node died during the attempt")
        case _:
            return Status.QUEUED, None


def new_job_id(now: float, random_bits: Callable[[int], int]) -> str:
    """A time-ordered id: a UUID of version 7 (RFC 9562, section 5.7), so that neighbours lie together in an index."""
    bits = (
        (int(now * 1000) & (1 << 48) - 1) << 80 | 7 << 76 | random_bits(12) << 64 | 2 << 62 | random_bits(62)
    )
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def kept(attempts: Sequence[AttemptRecord]) -> tuple[AttemptRecord, ...]:
    """The newest of a job's attempts, as many as are kept."""
    return tuple(attempts[-ATTEMPTS_KEPT:])
