"""The job: its words, its data, and which status may follow which. Pure: no clock, no store, no task."""

import enum
import math
import operator
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

DEFAULT_KIND = "echo"
DEFAULT_QUEUE = "default"
DEFAULT_MAX_RETRIES = 3
ATTEMPTS_KEPT = 100
"""How many attempts of one job are kept; older ones are forgotten."""

DEEPEST = 500
"""How many levels a payload or a result may nest: far below what would break its readers."""

INVISIBLE = (
    r"\x00-\x1f\x7f-\x9f"  # controls: C1 too, since a terminal obeys U+009B
    r"\xad\u061c\u180e\u200b\u200e\u200f"  # soft hyphen, direction marks, zero width space
    r"\u2028-\u202e\u2060-\u206f"  # line separators, bidirectional embeddings, overrides and isolates
    r"\ufeff\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff"  # BOM, annotations, tags
)
"""Characters that nobody sees, for a class of a regular expression: they reorder text or make two ids look the same.

Joiners (U+200C, U+200D) are not among them: some scripts and emoji need them.
"""

PORTABLE = "x-portable-pattern"
"""Where a type has the pattern that the spec shows: one that RE2 and JavaScript read too.

It has no lookahead, no \\Z and no character beyond U+00FF; so it lets a few characters pass that `pattern`, which
decides, does not.
"""

_IN_PATH = Meta(
    pattern=rf"^(?!\.{{1,2}}\Z)[^\s/\u200c\u200d{INVISIBLE}]{{1,200}}\Z",
    description="1 to 200 characters, without spaces, slashes, control and invisible characters; not . or ..",
    extra_json_schema={
        PORTABLE: (
            r"^(?:[^\x00-\x20./\x7f-\xa0\xad][^\x00-\x20/\x7f-\xa0\xad]{0,199}"
            r"|\.[^\x00-\x20./\x7f-\xa0\xad][^\x00-\x20/\x7f-\xa0\xad]{0,198}"
            r"|\.\.[^\x00-\x20/\x7f-\xa0\xad]{1,198})$"
        )
    },
)
"""Of names that stand in the path of a URL, and are told apart by eye."""

JobId = Annotated[str, _IN_PATH]
Key = Annotated[str, _IN_PATH]
Name = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z",
        description="1 to 100 letters, digits, dots, dashes and underscores, the first a letter or digit",
        extra_json_schema={PORTABLE: r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"},
    ),
]
Tag = Annotated[
    str,
    Meta(
        pattern=rf"^[^{INVISIBLE}]{{1,100}}\Z",
        description="1 to 100 characters, without control and invisible characters",
        extra_json_schema={PORTABLE: r"^[^\x00-\x1f\x7f-\x9f\xad]{1,100}$"},
    ),
]
Tags = Annotated[list[Tag], Meta(max_length=20, description="an array of at most 20 tags")]
DependsOn = Annotated[
    list[JobId], Meta(max_length=1000, description="an array of at most 1000 ids of jobs that it waits for")
]
Priority = Annotated[
    int, Meta(ge=-1000, le=1000, description="a whole number from -1000 to 1000; higher runs first")
]
Seconds = Annotated[
    float, Meta(ge=0, le=315_360_000, description="a number of seconds from 0 to 315360000 (ten years)")
]
Timeout = Annotated[
    float,
    Meta(
        gt=0,
        le=315_360_000,
        description="a number of seconds above 0, up to 315360000 (ten years); how long one attempt may take",
    ),
]
UniqueKey = Annotated[
    str,
    Meta(
        pattern=rf"^[^{INVISIBLE}]{{1,200}}\Z",
        description="1 to 200 characters, without control and invisible characters",
        extra_json_schema={PORTABLE: r"^[^\x00-\x1f\x7f-\x9f\xad]{1,200}$"},
    ),
]
Span = Annotated[
    float, Meta(gt=0, le=315_360_000, description="a number of seconds above 0, up to 315360000 (ten years)")
]
Retries = Annotated[
    int, Meta(ge=0, le=10_000, description="a whole number from 0 to 10000; attempts after the first")
]


LATEST = 253_402_300_799.999
"""The last millisecond of the year 9999, the last that RFC 3339 can write."""


class Status(enum.StrEnum):
    """Where a job stands."""

    BLOCKED = "blocked"
    """waits for other jobs to end"""
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


WAITING = frozenset({Status.BLOCKED, Status.SCHEDULED, Status.QUEUED, Status.RETRYING})
ACTIVE = frozenset({Status.RUNNING, Status.CANCELLING})
ENDED = frozenset({Status.DONE, Status.FAILED, Status.CANCELLED, Status.EXPIRED})

FOLLOWS: dict[Status, frozenset[Status]] = {
    Status.BLOCKED: frozenset(
        {Status.QUEUED, Status.SCHEDULED, Status.CANCELLED, Status.EXPIRED, Status.FAILED}
    ),
    # A waiting job fails without having run where its row cannot be read.
    Status.SCHEDULED: frozenset({Status.QUEUED, Status.CANCELLED, Status.EXPIRED, Status.FAILED}),
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
    Status.RETRYING: frozenset({Status.QUEUED, Status.CANCELLED, Status.EXPIRED, Status.FAILED}),
    Status.CANCELLING: frozenset({Status.CANCELLED, Status.DONE, Status.FAILED}),
    Status.DONE: frozenset({Status.QUEUED, Status.BLOCKED}),
    Status.FAILED: frozenset({Status.QUEUED, Status.BLOCKED}),
    Status.CANCELLED: frozenset({Status.QUEUED, Status.BLOCKED}),
    Status.EXPIRED: frozenset({Status.QUEUED, Status.BLOCKED}),
}
"""Which status may follow which; from an ended one only a retry by hand leads on."""


Level = Literal["debug", "info", "warning", "error"]
"""How much a log line of a job matters."""

LEVELS: tuple[Level, ...] = get_args(Level)
"""The levels, the least first."""


LINE_BYTES = 4096
"""The most bytes of one line of a job's log: its text and its fields."""


class Outcome(enum.StrEnum):
    """What an attempt came to."""

    DONE = "done"
    RETRY = "retry"
    FAIL = "fail"
    SNOOZE = "snooze"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


FirstWait = Annotated[
    float,
    Meta(ge=0, le=86_400, description="a number of seconds from 0 to 86400; the wait before the first retry"),
]
LongestWait = Annotated[
    float, Meta(ge=0, le=31_536_000, description="a number of seconds from 0 to 31536000; the longest wait")
]


class Backoff(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long to wait before a retry: `base * factor ** (retry - 1)` seconds, at most `cap`, and jittered."""

    base: FirstWait = 1.0
    factor: Annotated[
        float, Meta(ge=1, le=100, description="a number from 1 to 100; growth from one retry to the next")
    ] = 2.0
    cap: LongestWait = 3600.0
    jitter: Literal["full", "equal", "none"] = "full"


Needs = Literal["done", "ended"]
"""What a job needs of those that it depends on: that they are done, or that they have ended, however that was."""


class Scheduled(msgspec.Struct, frozen=True):
    """The firing of a schedule that made a job."""

    name: str
    """of the schedule"""
    at: float
    """when it fired, in seconds since the epoch, however late the job runs"""

    @property
    def time(self) -> datetime:
        """The same in UTC."""
        return datetime.fromtimestamp(self.at, UTC)


Over = Literal["kind", "payload"]
"""What two jobs may have in common to be the same one."""

Phase = Literal["queued", "running"]
"""Until when a job has a unique key: until it is first claimed, or until it has ended."""

OnConflict = Literal["return", "reject", "replace"]
"""What becomes of a request whose key another job has."""


class Unique(msgspec.Struct, frozen=True, rename={"while_": "while", "for_": "for"}):
    """At most one job has a key at a time. Keys are of one queue."""

    key: str | None
    over: tuple[Over, ...]
    """what belongs to the key beside `key`"""
    while_: tuple[Phase, ...]
    for_: float | None
    """the job has the key for so long after it was stored, whatever becomes of it"""
    on_conflict: OnConflict


class Throttle(msgspec.Struct, frozen=True):
    """At most one job of a key is due in each window. Keys are of one queue and kind."""

    key: str
    every: float
    trailing: bool
    """whether what is asked within a window becomes one job at its end"""


class Debounce(msgspec.Struct, frozen=True):
    """The last request of a key counts, once none has come for a while. Keys are of one queue and kind."""

    key: str
    wait: float
    max_wait: float
    """how long the job waits at the most, counted from when it was stored"""


OnFailure = Literal["go_on", "cancel"]
"""What a group does when one of its jobs does not succeed: nothing, or cancel those that have not ended."""


class GroupOutcome(msgspec.Struct, frozen=True):
    """How the jobs of a group have ended: how many, in each way."""

    id: str
    """of the group"""
    jobs: int
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    deleted: int = 0
    timed_out: bool = False
    """whether the group was open, and nobody closed it in time"""


class Options(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was asked of a job beyond the usual; most jobs ask nothing, and store nothing."""

    timeout: float | None = None
    backoff: Backoff | None = None
    on_crash: Literal["retry", "fail"] = "retry"
    tags: tuple[str, ...] = ()
    delay: float | None = None
    run_at: float | None = None
    schedule: Scheduled | None = None
    depends_on: tuple[str, ...] = ()
    """ids of the jobs that it waits for"""
    needs: Needs = "done"
    deadline: float | None = None
    """when it has to be done, over all its attempts; then `NewJob.expires_at` is that time or an earlier one"""
    key: str | None = None
    """whom the job is for, within its queue: limits and turns go by it (see `jobpipe.lanes`)"""
    unique: Unique | None = None
    throttle: Throttle | None = None
    debounce: Debounce | None = None
    group: str | None = None
    """the group that it belongs to"""
    callback_of: str | None = None
    """the group for whose end it waits"""
    outcome: GroupOutcome | None = None
    """how that group has ended"""
    parent: str | None = None
    """the job whose handler enqueued it; no part of what is compared: several may enqueue the same job"""

    @property
    def merging(self) -> Unique | Throttle | Debounce | None:
        """How requests for the same are merged into one job; None: each makes a job of its own."""
        return self.unique or self.throttle or self.debounce


NO_OPTIONS = Options()


class JobError(msgspec.Struct, frozen=True):
    """Why an attempt failed."""

    type: str
    message: str
    traceback: str | None = None
    where: str | UnsetType = UNSET
    """module and function in which the handler's own code raised it"""
    fingerprint: str | UnsetType = UNSET
    """the same for all errors that are taken to be the same one (see `jobpipe.fingerprints`)"""


_SCHEDULED, _QUEUED = Status.SCHEDULED, Status.QUEUED
"""Asked for several times a job; to look up a member of an enum takes longer than all the rest of that."""


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a job. `payload` is JSON; times are seconds since the epoch."""

    id: str
    kind: str
    queue: str
    payload: bytes
    priority: int
    max_retries: int | None
    """None: as many as the handler says"""
    created_at: float
    run_at: float
    """when it is due: at first as it was asked for, then as a retry or a snooze has set it"""
    expires_at: float | None = None
    options: Options = NO_OPTIONS

    @property
    def waits_until_its_deadline(self) -> bool:
        """Whether its expires_at is its deadline: where it still waits then, it has failed."""
        return self.expires_at is not None and self.expires_at == self.options.deadline

    @property
    def status(self) -> Status:
        """What it is when it waits for no other job: `scheduled` when its run_at lies ahead, else `queued`."""
        return _SCHEDULED if self.run_at > self.created_at else _QUEUED


PROGRESS_MESSAGE = 200
"""The most characters of the message of a progress."""


class Progress(msgspec.Struct, frozen=True):
    """How far an attempt says that it is."""

    fraction: Annotated[float, Meta(ge=0, le=1)]
    message: Annotated[str, Meta(max_length=PROGRESS_MESSAGE)]
    at: float


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
    due_at: float | None = None
    """when the job was due; None: nobody has noted it"""


class State(msgspec.Struct, frozen=True):
    """How a job stands. When it is due is in what was asked (`NewJob.run_at`): a retry asks for another time."""

    status: Status
    attempt: int = 0
    """the runs so far"""
    claim: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    result: bytes | None = None
    error: JobError | None = None
    """of the last attempt that failed"""

    @property
    def fingerprint(self) -> str | None:
        """Of which failures it is one; None: it has not failed, or is of no group."""
        if self.status is not Status.FAILED or self.error is None:
            return None
        return self.error.fingerprint or None


class Job(msgspec.Struct, frozen=True):
    """A job as the store has it: what was asked, and how it stands.

    Its id and its status can be had directly: what is told of a job names it by the one, and whatever is done to it
    depends on the other. All else is said with where it belongs.
    """

    asked: NewJob
    state: State
    attempts: tuple[AttemptRecord, ...] = ()
    damage: tuple[str, ...] = ()
    """what of its row cannot be read, in words; shown with the error. Of this reading alone: it is stored nowhere"""
    original: NewJob | None = None
    """what was asked first, where it was edited since. Lists leave it out"""
    progress: Progress | None = None
    """of its latest claim. Lists leave it out"""

    @property
    def id(self) -> str:
        """The id that was asked for, or made for it."""
        return self.asked.id

    @property
    def status(self) -> Status:
        """Where it stands."""
        return self.state.status


def same_content(new: NewJob, old: NewJob) -> bool:
    """Whether `new` asks for what `old` asked for, so that sending a request twice makes one job.

    Never raises: a stored payload that cannot be read is another content.
    """
    return _content(_of_nobody(new)) == _content(_of_nobody(old)) and (
        new.payload == old.payload or _same_json(new.payload, old.payload)
    )


def _of_nobody(job: NewJob) -> NewJob:
    """A job without its parent."""
    if job.options.parent is None:
        return job
    return msgspec.structs.replace(job, options=msgspec.structs.replace(job.options, parent=None))


_content = operator.attrgetter(
    *(name for name in NewJob.__struct_fields__ if name not in {"id", "payload", "created_at", "run_at"})
)
"""What of two requests has to be equal, but for their payloads. When a job runs is in its options as it was asked."""


def _same_json(one: bytes, other: bytes) -> bool:
    try:
        return _same(msgspec.json.decode(one), msgspec.json.decode(other))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401 - any JSON
    """Whether two JSON values are the same. Numbers go by value: 1 is 1.0, but not true, which it is to Python.

    Walks with a list of its own instead of the stack, which deep values would exhaust.
    """
    left = [(one, other)]
    same = True
    while left and same:
        match left.pop():
            case (bool() as a, b) | (b, bool() as a):
                same = a is b
            case dict() as a, dict() as b:
                same = a.keys() == b.keys()
                left += [(value, b[key]) for key, value in a.items()] if same else []
            case list() as a, list() as b:
                same = len(a) == len(b)
                left += zip(a, b, strict=True) if same else []
            case (a, b):
                same = bool(a == b)
    return same


def nests_deeper(value: Any, levels: int) -> bool:  # noqa: ANN401 - any JSON
    """Whether arrays and objects nest deeper than so many levels; walks level by level, without recursion."""
    layer = [value]
    for _ in range(levels):
        parts = (
            one.values() if isinstance(one, dict) else one for one in layer if isinstance(one, dict | list)
        )
        layer = [inner for part in parts for inner in part]
        if not layer:
            return False
    return any(isinstance(one, dict | list) for one in layer)


def holds_nan(value: Any) -> bool:  # noqa: ANN401 - any JSON
    """Whether a NaN or an infinity is in a value; walks with a list of its own, since a value may nest deep."""
    left = [value]
    while left:
        match left.pop():
            case float() as number:
                if not math.isfinite(number):
                    return True
            case dict() as table:
                left += table.values()
            case list() | tuple() | set() | frozenset() as items:
                left += items
    return False


def may_nest_deeper(encoded: bytes, levels: int) -> bool:
    """Whether JSON may nest that deep, by its brackets alone: a quick look that spares most values the walk."""
    return len(encoded) > 2 * levels and encoded.count(b"[") + encoded.count(b"{") > levels


def retries_of(max_retries: int | None) -> int:
    """How many retries a job has that asked for so many; None: what nobody has said is the default."""
    return DEFAULT_MAX_RETRIES if max_retries is None else max_retries


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
