"""What goes over the wire: one definition for reading, writing and the OpenAPI spec."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from jobpipe.acts import Act, What
from jobpipe.api.durations import OR_TEXT
from jobpipe.api.faults import TIME
from jobpipe.api.lists import ONE_OR_MORE
from jobpipe.asking import AskedDebounce, AskedThrottle, AskedUnique
from jobpipe.engine.attempt import Attempt
from jobpipe.engine.awaits import Awaited, Direction
from jobpipe.handlers.registry import Registry
from jobpipe.job import (
    DEFAULT_KIND,
    DEFAULT_QUEUE,
    INVISIBLE,
    LATEST,
    PORTABLE,
    AttemptRecord,
    Backoff,
    Debounce,
    DependsOn,
    FirstWait,
    Job,
    JobError,
    JobId,
    Key,
    Level,
    LongestWait,
    Name,
    Needs,
    OnFailure,
    Outcome,
    Priority,
    Progress,
    Retries,
    Seconds,
    Span,
    Status,
    Tag,
    Tags,
    Throttle,
    Timeout,
    Unique,
)
from jobpipe.lanes import LONGEST, SHORTEST, AfterFailure, KeyStanding, Rate, Running, Weight
from jobpipe.obstacles import CheckName, Why
from jobpipe.schedules import CatchUp, Overlap
from jobpipe.store.base import (
    AUDIT,
    ERRORS,
    KEYS,
    LOG_LINES,
    NODES,
    OPERATIONS,
    QUEUES,
    SCHEDULES,
    How,
    Unserved,
)
from jobpipe.timelines import MarkName, SpanName

Time = Annotated[datetime, Meta(tz=True, description=TIME)]

Reason = Annotated[
    str,
    Meta(
        pattern=rf"^[^{INVISIBLE}]{{1,500}}\Z",
        description="1 to 500 characters, without control and invisible characters",
        extra_json_schema={PORTABLE: r"^[^\x00-\x1f\x7f-\x9f\xad]{1,500}$"},
    ),
]
"""Why something is paused."""

When = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
"""A time as it is shown: RFC 3339, UTC, with milliseconds."""


class BackoffRequest(Backoff, frozen=True, forbid_unknown_fields=True):
    """How long to wait before a retry: `base * factor ** (retry - 1)` seconds, at most `cap`, and jittered."""

    base: Annotated[FirstWait, OR_TEXT] = 1.0
    cap: Annotated[LongestWait, OR_TEXT] = 3600.0


class UniqueRequest(AskedUnique, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """At most one job of the queue has the key at a time: `key`, the fields named in `over`, or both.

    Without `over` the kind belongs to it, and without `key` the payload too.
    """

    for_: Annotated[Span, OR_TEXT] | None = None


class ThrottleRequest(AskedThrottle, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """At most one job of the queue and kind with the key is due in each window of `every` seconds.

    With `trailing`, what is sent within a window becomes one job at its end, with the last payload.
    """

    every: Annotated[Span, OR_TEXT]


class DebounceRequest(AskedDebounce, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One job of the queue and kind with the key, with the last payload, once none was sent for `wait` seconds.

    But at the latest `max_wait` seconds after the first; ten times `wait`, unless it is sent.
    """

    wait: Annotated[Span, OR_TEXT]
    max_wait: Annotated[Span, OR_TEXT] | None = None


class EnqueueRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A job to be run. Everything may be left out."""

    id: JobId | None = None
    kind: Name = DEFAULT_KIND
    payload: Any = None
    queue: Name = DEFAULT_QUEUE
    priority: Priority = 0
    max_retries: Retries | None = None
    delay: Annotated[Seconds, OR_TEXT] | None = None
    run_at: Time | None = None
    timeout: Annotated[Timeout, OR_TEXT] | None = None
    backoff: BackoffRequest | None = None
    expires_at: Time | None = None
    deadline: Time | None = None
    on_crash: Literal["retry", "fail"] = "retry"
    tags: Tags = []
    key: Key | None = None
    depends_on: DependsOn = []
    needs: Needs = "done"
    group: Name | None = None
    unique: UniqueRequest | None = None
    throttle: ThrottleRequest | None = None
    debounce: DebounceRequest | None = None


class EditRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to change of a waiting job. A field that is left out stays as it is; null sets its default again."""

    payload: Any = UNSET
    queue: Name | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    max_retries: Retries | UnsetType | None = UNSET
    run_at: Time | UnsetType | None = UNSET
    timeout: Annotated[Timeout, OR_TEXT] | UnsetType | None = UNSET
    backoff: BackoffRequest | UnsetType | None = UNSET
    expires_at: Time | UnsetType | None = UNSET
    tags: Tags | UnsetType = UNSET
    key: Key | UnsetType | None = UNSET


OpenFor = Annotated[Span, OR_TEXT]
"""For how long jobs can be added to a group."""


class GroupRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Jobs that belong together, and `then` one that waits until all of them have ended.

    With `open`, more jobs can be added for so long, or until the group is closed; else there has to be one at least.
    """

    id: Name | None = None
    jobs: Annotated[
        list[EnqueueRequest], Meta(max_length=10_000, description="an array of at most 10000 jobs")
    ] = []
    then: EnqueueRequest | None = None
    on_failure: OnFailure = "go_on"
    open: OpenFor | None = None


class GroupView(msgspec.Struct, frozen=True, kw_only=True):
    """A group. `counts` say how many of its `jobs` have which status.

    Those that have ended count as they had ended, until the group has: deleted ones as `deleted`. `then` is the id of
    the job that waits for its end; null: there is none, or it was deleted. While `closed_at` is null, jobs can be
    added, until `open_until` at the most; that is null where the group was complete when it was stored.
    """

    id: str
    jobs: int
    counts: Mapping[str, int]
    then: str | None
    on_failure: str
    created_at: When
    open_until: When | None
    closed_at: When | None
    ended_at: When | None


class AttemptView(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the job's handler; `outcome` is null while it runs."""

    number: int
    claim: int
    node: str | None
    started_at: When | None
    finished_at: When | None
    outcome: Outcome | None
    error: JobError | None


class WaitsFor(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job does not run yet, or what its cancel waits for: the first thing that is in the way, and its figures.

    `dependencies`, `group`: jobs have not ended yet, `count` of them, the first of which are `open`, or the group is
    open itself (`group_open`), so that its close is waited for too; `not_due`: until `run_at`; `paused`: the queue is,
    `until` when, and why; `queue_full`, `key_full`: as many of its jobs are `running` as may; `rate`, `key_rate`:
    `until` the next job may start; `key_paused`: the key is; `key_stopped`: the key is, by the failed job `stopped_by`;
    `key_order`: the key keeps order, and the job `behind` which it is comes first; `no_node`: no live node runs jobs of
    this `kind` from this `queue`; `turn`: it is ready, at this `place` in its queue, or among the jobs of its key, or,
    where that is not `exact`, behind it; `handler`: it was cancelled, and its handler has not ended on `node`, which
    told it so at `since`; that is left out where another node is asked.
    """

    reason: Literal["dependencies", "group", Why, "handler"]
    run_at: When | UnsetType = UNSET
    queue: str | UnsetType = UNSET
    pause_reason: str | UnsetType | None = UNSET
    key: str | UnsetType = UNSET
    stopped_by: str | UnsetType = UNSET
    behind: str | UnsetType = UNSET
    running: int | UnsetType = UNSET
    max_running: int | UnsetType = UNSET
    until: When | UnsetType | None = UNSET
    kind: str | UnsetType = UNSET
    place: int | UnsetType = UNSET
    exact: bool | UnsetType = UNSET
    node: str | UnsetType | None = UNSET
    since: When | UnsetType = UNSET
    group: str | UnsetType = UNSET
    group_open: bool | UnsetType = UNSET
    open: Sequence[str] | UnsetType = UNSET
    count: int | UnsetType = UNSET


class ScheduledView(msgspec.Struct, frozen=True):
    """The firing of a schedule that made a job."""

    name: str
    at: When


class ProgressView(msgspec.Struct, frozen=True):
    """How far an attempt says that it is: a fraction from 0 to 1, and a message."""

    fraction: float
    message: str
    at: When


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job. `attempt` counts the runs so far; lists leave payload and result out unless asked.

    `progress` is that of its latest attempt; lists leave it and the attempts out. A job that a schedule made says which
    one and when. `key` is left out where a job has none, `depends_on` and `needs` where it depends on no other,
    `unique`, `throttle` and `debounce` where it was not sent, `group` where it belongs to none, `callback_of` where it
    waits for the end of none, `parent` where no handler enqueued it. `waits_for` is there while a job waits, or is
    being cancelled, where one job is asked for.
    """

    id: str
    kind: str
    queue: str
    status: Status
    priority: int
    payload: msgspec.Raw | UnsetType = UNSET
    result: msgspec.Raw | UnsetType = UNSET
    error: JobError | None
    progress: ProgressView | UnsetType | None = UNSET
    attempt: int
    max_retries: int
    timeout: float | None
    backoff: Backoff | None
    on_crash: Literal["retry", "fail"]
    tags: Sequence[str]
    created_at: When
    run_at: When
    started_at: When | None
    finished_at: When | None
    expires_at: When | None
    key: str | UnsetType = UNSET
    depends_on: Sequence[str] | UnsetType = UNSET
    needs: Needs | UnsetType = UNSET
    deadline: When | UnsetType = UNSET
    waits_for: WaitsFor | UnsetType = UNSET
    unique: Unique | UnsetType = UNSET
    throttle: Throttle | UnsetType = UNSET
    debounce: Debounce | UnsetType = UNSET
    group: str | UnsetType = UNSET
    callback_of: str | UnsetType = UNSET
    parent: str | UnsetType = UNSET
    schedule: ScheduledView | UnsetType = UNSET
    attempts: Sequence[AttemptView] | UnsetType = UNSET


class JobList(msgspec.Struct, frozen=True):
    """A page of jobs, newest first. `next_cursor` is null at the end; a page may be short and not the last."""

    jobs: Sequence[JobView]
    next_cursor: str | None


class EventError(msgspec.Struct, frozen=True):
    """Why an attempt failed, in short."""

    type: str
    message: str
    fingerprint: str | UnsetType = UNSET


class EventView(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a job: the status to which it came, and when. All else is as it was shortly after.

    `error` is that of its last attempt that had one, its message cut at 500 characters. `key` and `group` are left out
    where a job has none.
    """

    id: str
    status: Status
    at: When
    kind: str
    queue: str
    key: str | UnsetType = UNSET
    group: str | UnsetType = UNSET
    tags: Sequence[str]
    attempt: int
    node: str | None
    error: EventError | None


class GoneView(msgspec.Struct, frozen=True):
    """A job was deleted by hand."""

    id: str


class MissedView(msgspec.Struct, frozen=True):
    """Events are missing. `since` is null where nobody knows since when: then since the last event that was sent."""

    since: When | None


AnyCheck = Literal["dependencies", CheckName, "draining", "workers"]
"""What a claim looks at, in its order."""


class CheckView(msgspec.Struct, frozen=True, kw_only=True):
    """One of the things that a claim looks at before it takes a job.

    `detail` says what was found there, and `links` are the paths of what it names.
    """

    name: AnyCheck
    passed: bool
    detail: str
    links: Mapping[str, str]


class WhyView(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job is as it is: `answer` in a sentence.

    `checks` are all that a claim looks at, in its order, while the job waits; the first that is not passed is what
    `waits_for` says, and once all are passed, the next claim takes the job. `waits_for` is null where the job waits for
    nothing.
    """

    id: str
    status: Status
    answer: str
    waits_for: WaitsFor | None
    checks: Sequence[CheckView]


class SpanView(msgspec.Struct, frozen=True, kw_only=True, rename={"from_": "from"}):
    """A part of a job's life: until its end, or until now.

    `blocked`: other jobs had to end; `not_due`: it waited for its time; `waiting`: it was due, and waited to be run;
    `running`: an attempt ran; `backoff`: it waited for the next attempt; `dead`: its node was dead, and that was not
    noticed yet; `ended`: it had ended, until it was retried by hand; `forgotten`: its first attempts are not kept.
    `attempt`, `claim`, `node` and `outcome` are those of the attempt that ran, or that came before the wait; `cause`
    is its error. `clock_skew`: clocks differed, or one was set, so the time was moved to where it can have been.
    """

    from_: When
    until: When
    what: SpanName
    attempt: int | None
    claim: int | None
    node: str | None
    outcome: Outcome | None
    cause: EventError | None
    clock_skew: bool


class MarkView(msgspec.Struct, frozen=True):
    """Something in a job's life; `at` is null where it is not known when that was."""

    what: MarkName
    at: When | None


class TimelineView(msgspec.Struct, frozen=True, kw_only=True):
    """A job's life: each span begins where the one before it ends. `seconds` are their sums, by what they are."""

    id: str
    status: Status
    spans: Sequence[SpanView]
    marks: Sequence[MarkView]
    seconds: Mapping[str, float]


class WaitView(msgspec.Struct, frozen=True, kw_only=True):
    """What a task waits for, in words too: with what belongs to it.

    `sleep`: `until` when, null for one without an end; `socket`, `pipe`: in which `direction`; `lock`: the task that
    is its `holder`, and the id of that task's job in `holder_job` where it is another one; `channel_room`,
    `channel_value`, `limiter`: how much is `filled`, of which `size`, null for any; `process`: its number. The others:
    `semaphore`, `event`, `condition`; `thread`, whose frames are in the stack; `nursery`: the child tasks; `start`: a
    task that is to say that it has started; `turn`: nothing, it goes on next; `first_turn`: it has not begun; `other`:
    something that is not Trio's.
    """

    what: Awaited
    words: str
    until: When | UnsetType | None = UNSET
    direction: Direction | UnsetType = UNSET
    holder: str | UnsetType | None = UNSET
    holder_job: str | UnsetType = UNSET
    filled: int | UnsetType = UNSET
    size: int | UnsetType | None = UNSET
    process: int | UnsetType = UNSET


class FrameView(msgspec.Struct, frozen=True):
    """A place in code; `own`: in the user's own, not in that of a library."""

    function: str
    file: str
    line: int
    own: bool


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks that stand at the same line and wait for the same: `count` of them.

    `function`, `file` and `line` are where the innermost frame of own code stands, null where there is none. `stack`
    has the innermost frames, outermost first, and `left_out` how many more there are. For at least `still` seconds none
    of the tasks has moved, and one of them for at least `longest_still`: 0 at the first look.
    """

    name: str
    count: int
    function: str | None
    file: str | None
    line: int | None
    waiting_on: WaitView
    still: float
    longest_still: float
    stack: Sequence[FrameView]
    left_out: int
    children: Sequence["TaskView"]


class CountedView(msgspec.Struct, frozen=True):
    """Tasks that are only counted, by the line at which their function stands."""

    function: str
    file: str
    line: int
    count: int


class StoppingView(msgspec.Struct, frozen=True):
    """Since when an attempt should have ended, and why."""

    reason: Literal["cancel", "shutdown", "lease", "pause", "timeout"]
    since: When


class StackView(msgspec.Struct, frozen=True, kw_only=True):
    """The tasks of a running job at one time.

    `tasks` is how many there are, and at least so many where not `whole`; `rest` counts those that are not in the tree.
    `circles` names tasks that wait for each other. `stopping` is null unless the attempt should have ended already.
    """

    job: str
    kind: str
    attempt: int
    claim: int
    node: str
    looked_at: When
    stopping: StoppingView | None
    tasks: int
    whole: bool
    circles: Sequence[Sequence[str]]
    tree: TaskView
    rest: Sequence[CountedView]


class LineView(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a job's log. `n` grows over all its attempts, and a gap is what was left out.

    `fields` are what the handler gave beside the text; null when it gave nothing.
    """

    n: int
    at: When
    attempt: int
    level: str
    text: str
    fields: msgspec.Raw | None


class LogView(msgspec.Struct, frozen=True):
    """A part of a job's log. `dropped` counts the lines of the whole log that were left out of its middle.

    `next_after` continues it; null when the job has ended and there is no more.
    """

    lines: Sequence[LineView]
    dropped: int
    next_after: int | None


class BulkReceipt(msgspec.Struct, frozen=True):
    """What became of the jobs of an array: they are new, or were there already.

    With `unique`, `throttle` or `debounce`, `existing` counts also those for which another job is the answer.
    `replaced` are those that another job, which waits, has become; `rejected` are those that another one has kept out.
    """

    enqueued: int
    existing: int
    replaced: int
    rejected: int


class LineReceipt(msgspec.Struct, frozen=True):
    """The answer to one line of a stream."""

    id: str
    status: Status


Age = Annotated[
    float,
    Meta(
        ge=0,
        le=315_360_000,
        description="a number of seconds from 0 to 315360000 (ten years)",
    ),
    OR_TEXT,
]
Number = Annotated[int, Meta(ge=0, le=1 << 50, description="a whole number from 0 to 1125899906842624")]


class Keep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long ended jobs of a queue are kept: `done` ones, and `failed`, cancelled and expired ones, in seconds.

    And how many `jobs`, and `bytes` of their payloads, results and errors. What is left out or null is as the settings
    say (KEEP_DONE, KEEP_FAILED), or has no limit of the queue's own.
    """

    done: Age | None = None
    failed: Age | None = None
    jobs: Number | None = None
    bytes: Number | None = None


class RateRequest(Rate, frozen=True, forbid_unknown_fields=True):
    """At most `limit` jobs start in any `period`, and at most `burst` of them at once."""

    period: Annotated[
        float,
        Meta(ge=SHORTEST, le=LONGEST, description="a number of seconds from 0.001 to 31536000"),
        OR_TEXT,
    ]


class PerKeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What each key of a queue may do: how many jobs run at once, how many start over time, and in which order.

    With `ordered`, jobs of a key run one at a time in the order of arrival; `on_failure` says whether a key stops at a
    job that failed.
    """

    max_running: Running | None = None
    rate: RateRequest | None = None
    ordered: bool = False
    on_failure: AfterFailure = "go_on"


class QueueRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings of a queue. What is left out is set back."""

    closed: bool = False
    keep: Keep | Literal["none"] | None = None
    max_running: Running | None = None
    rate: RateRequest | None = None
    per_key: PerKeyRequest | None = None


class KeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings of a key in a queue. What is left out is set back.

    `max_running` stands for what the queue says of each key.
    """

    weight: Weight = 1
    max_running: Running | None = None


class QueuePauseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why a queue is paused, and for how long."""

    reason: Reason | None = None
    for_: (
        Annotated[
            float,
            Meta(
                gt=0,
                le=315_360_000,
                description="a number of seconds above 0, up to 315360000 (ten years); then it is resumed by itself",
            ),
            OR_TEXT,
        ]
        | None
    ) = msgspec.field(default=None, name="for")


class PerKeyView(msgspec.Struct, frozen=True, kw_only=True):
    """What each key of a queue may do; null: as much as anybody likes.

    `ordered`: one job at a time, in the order of arrival.
    """

    max_running: int | None
    rate: Rate | None
    ordered: bool
    on_failure: AfterFailure


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A key of a queue: how many of its jobs are ready (`waiting`) or held by nodes (`running`), and how it stands.

    `until` is when one that is `resting` may go on. It says what the last claim has found: an `open` key may be found
    `full` by the next one. `stopped_by` is the id of the failed job at which a key has stopped.
    """

    key: str
    state: KeyStanding
    until: When | None
    stopped_by: str | None
    waiting: int
    running: int
    weight: int
    max_running: int | None


class KeyList(msgspec.Struct, frozen=True):
    """A page of keys. `next_cursor` is null at the end."""

    keys: Sequence[KeyView]
    next_cursor: str | None


class QueueView(msgspec.Struct, frozen=True, kw_only=True):
    """A queue with its counts by status; `oldest_age` is how many seconds its oldest ready job has waited.

    `paused_until` is when a pause ends by itself. A `closed` queue takes no new jobs. `keep` says how long its ended
    jobs are kept; null: as the settings say. `served` is false where no live node takes jobs from it. Lists leave out
    what it allows (`max_running`, `rate`, `per_key`), how many jobs its rate allows at this moment (`tokens`), and how
    many of its `keys` stand how.
    """

    name: str
    paused: bool
    reason: str | None
    paused_until: When | None
    closed: bool
    keep: Keep | Literal["none"] | None
    max_running: int | UnsetType | None = UNSET
    rate: Rate | UnsetType | None = UNSET
    per_key: PerKeyView | UnsetType | None = UNSET
    tokens: int | UnsetType | None = UNSET
    keys: dict[KeyStanding, int] | UnsetType = UNSET
    served: bool
    counts: dict[Status, int]
    oldest_age: float | None


class UnservedView(msgspec.Struct, frozen=True):
    """Ready jobs that no live node has a handler for; `since` is when the first of them became due."""

    kind: str
    jobs: int
    since: When


class QueueList(msgspec.Struct, frozen=True):
    """A page of queues, by name. `next_cursor` is null at the end.

    `unserved`: the kinds of ready jobs that no live node serves, in whatever queue, at most 100.
    """

    queues: Sequence[QueueView]
    next_cursor: str | None
    unserved: Sequence[UnservedView]


class ScheduledJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What each firing enqueues. Everything may be left out."""

    kind: Name = DEFAULT_KIND
    payload: Any = None
    queue: Name = DEFAULT_QUEUE
    priority: Priority = 0
    max_retries: Retries | None = None
    timeout: Annotated[Timeout, OR_TEXT] | None = None
    backoff: BackoffRequest | None = None
    on_crash: Literal["retry", "fail"] = "retry"
    tags: Tags = []
    key: Key | None = None


class ScheduleRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When to enqueue which job: by a cron line or at an interval."""

    cron: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=200,
                description="minute, hour, day of the month, month, day of the week; a sixth field in front: second",
            ),
        ]
        | None
    ) = None
    timezone: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=100,
                description="of the cron line, such as Europe/Berlin; default: UTC",
            ),
        ]
        | None
    ) = None
    every: (
        Annotated[
            float,
            Meta(ge=1, le=315_360_000, description="a number of seconds from 1 to 315360000 (ten years)"),
            OR_TEXT,
        ]
        | None
    ) = None
    starts_at: Time | None = None
    ends_at: Time | None = None
    job: ScheduledJob | None = None
    overlap: Overlap = "skip"
    catch_up: CatchUp = "one"
    limit: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description='a whole number from 1 to 1000; how many missed firings "catch_up": "all" makes up for',
        ),
    ] = 100
    jitter: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="a number of seconds from 0 to 86400; a job is due up to so much after its firing",
        ),
        OR_TEXT,
    ] = 0.0


class PauseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why a schedule is paused."""

    reason: Reason | None = None


class ScheduledJobView(msgspec.Struct, frozen=True, kw_only=True):
    """What each firing enqueues, as it was asked for; lists leave the payload out."""

    kind: str
    payload: msgspec.Raw | UnsetType = UNSET
    queue: str
    priority: int
    max_retries: int | None
    timeout: float | None
    backoff: Backoff | None
    on_crash: Literal["retry", "fail"]
    tags: Sequence[str]
    key: str | None


class FiringView(msgspec.Struct, frozen=True, kw_only=True):
    """A firing, or a run by hand, and how its job stands."""

    at: When
    id: str
    status: str
    started_at: When | None
    finished_at: When | None


class ScheduleView(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule. `next` are its next five firings, in a list the next one; none while it is paused.

    `last` are its last ten firings whose jobs are still there, the newest first; lists leave them out. `missed` counts
    the firings that made no job. `declared`: in the code of a node. `error` says what of its row in the store cannot be
    read.
    """

    name: str
    version: int
    in_words: str | None
    cron: str | None
    timezone: str | None
    every: float | None
    starts_at: When | None
    ends_at: When | None
    overlap: Overlap
    catch_up: CatchUp
    limit: int
    jitter: float
    job: ScheduledJobView | None
    paused: bool
    reason: str | None
    declared: bool
    missed: int
    created_at: When
    last_at: When | None
    next: Sequence[When]
    last: Sequence[FiringView] | UnsetType = UNSET
    error: JobError | None


class ScheduleList(msgspec.Struct, frozen=True):
    """A page of schedules, by name. `next_cursor` is null at the end."""

    schedules: Sequence[ScheduleView]
    next_cursor: str | None


class UnfinishedView(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that did not end by itself when its node stopped.

    `handed_back`: its handler was cancelled, and cleaned up; `abandoned`: it ran on until the process ended, and stood
    at this `line`, where that could be seen. `status` is what the job became.
    """

    job: str
    kind: str
    attempt: int
    end: Literal["handed_back", "abandoned"]
    status: str | None
    line: str | None


class StopView(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the attempts that ran when a node began to stop.

    `drained`: all ended by themselves; `stopped`: some were cancelled; `abandoned`: some ran on until the process
    ended; `died`: the node was taken for dead, and `began_at` is its last sign of life. `active` is the sum of
    `finished`, `handed_back` and `abandoned`; `unbegun` jobs had been claimed besides, and had not begun. Lists leave
    `attempts` out.
    """

    how: How
    signal: str | None
    began_at: When
    ended_at: When
    seconds: float
    active: int
    finished: int
    handed_back: int
    abandoned: int
    unbegun: int
    attempts: Sequence[UnfinishedView] | UnsetType = UNSET


class StopList(msgspec.Struct, frozen=True):
    """The stops of a node, the newest first."""

    stops: Sequence[StopView]


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """A node. It is `live` while its lease lasts; `queues` is null where it takes jobs from all of them.

    It holds so many `jobs`: they run, or have been claimed. `last_stop` says how it stopped or died; null: it did
    not, or nobody could note it.
    """

    name: str
    live: bool
    draining: bool
    joined_at: When | None
    lease_until: When | None
    version: str | None
    workers: int | None
    kinds: Sequence[str]
    queues: Sequence[str] | None
    jobs: int
    last_stop: StopView | None


class NodeList(msgspec.Struct, frozen=True):
    """A page of nodes: those that run first, the newest first."""

    nodes: Sequence[NodeView]
    next_cursor: str | None


class LingeringView(msgspec.Struct, frozen=True):
    """A job whose handler does not end: its worker cannot take another one. `asked_by`: why it should have ended."""

    id: str
    kind: str
    attempt: int
    asked_by: Literal["cancel", "shutdown", "lease", "pause", "timeout"]
    seconds: float


class Health(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether this node works: `ok`, `draining`, or what is broken, in words."""

    status: str
    version: str
    node: str
    store: str
    workers: int
    busy: int
    queued: int | None
    scheduled: int | None
    retrying: int | None
    blocked: int | None
    unserved: Sequence[UnservedView]
    """kinds of ready jobs that no live node serves, at most 100; they do not make the node unhealthy"""
    lingering: Sequence[LingeringView]
    """jobs of this node whose handlers did not end within 5 seconds of a cancel or a timeout, at most 100"""
    detail: str | None = None


class Means(NamedTuple):
    """Annotates a parameter of a query or a path: what it means there, for the spec.

    The description of its type says what values it takes.
    """

    description: str


def meaning_of(kind: Any) -> str | None:  # noqa: ANN401 - any type
    """What the type of a parameter is annotated to mean; None when its own description says all."""
    annotations = (one for part in (kind, *get_args(kind)) for one in getattr(part, "__metadata__", ()))
    return next((one.description for one in annotations if isinstance(one, Means)), None)


Cursor = Annotated[str, Means("the `next_cursor` of the previous page")]


class WaitQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long to wait for the job to end."""

    wait: Annotated[float, Meta(ge=0, le=600, description="a number of seconds from 0 to 600"), OR_TEXT] = 0.0


class HoldQuery(WaitQuery, frozen=True, forbid_unknown_fields=True):
    """How long to wait for the job to end, and what a client that hangs up before means by it."""

    on_disconnect: (
        Annotated[
            Literal["cancel"],
            Means("with `wait`: cancel the job when the client hangs up before the job has ended"),
        ]
        | None
    ) = None


class EnqueueQuery(HoldQuery, frozen=True, forbid_unknown_fields=True):
    """The same for a new job, and whether somebody enqueues it by hand."""

    by_hand: Annotated[bool, Means("whether somebody enqueues the job by hand: then the audit says so")] = (
        False
    )


KindPattern = Annotated[
    str,
    Meta(
        pattern=r"^(?:[A-Za-z0-9][A-Za-z0-9._-]{0,99}\*?|\*)\Z",
        description="a kind, or what kinds begin with and a *",
        extra_json_schema={PORTABLE: r"^(?:[A-Za-z0-9][A-Za-z0-9._-]{0,99}\*?|\*)$"},
    ),
]
ErrorType = Annotated[
    str, Meta(min_length=1, max_length=200, description="1 to 200 characters; the name of an exception")
]
Known = Annotated[str, Meta(min_length=1, max_length=500, description="1 to 500 characters")]
NodeName = Annotated[str, Meta(min_length=1, max_length=200, description="1 to 200 characters")]


class PlainFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As much of a filter as an event can be judged by."""

    status: (
        Annotated[list[Status], ONE_OR_MORE, Means("only jobs with this status, or one of these")] | None
    ) = None
    kind: (
        Annotated[
            list[KindPattern],
            ONE_OR_MORE,
            Means(
                "only jobs of this kind, or one of these; `mail.*` means all kinds that begin with `mail.`"
            ),
        ]
        | None
    ) = None
    queue: Annotated[list[Name], ONE_OR_MORE, Means("only jobs of this queue, or one of these")] | None = None
    tag: Annotated[list[Tag], ONE_OR_MORE, Means("only jobs that have this tag, or one of these")] | None = (
        None
    )
    group: Annotated[list[Name], ONE_OR_MORE, Means("only jobs of this group, or one of these")] | None = None
    key: Annotated[list[Key], ONE_OR_MORE, Means("only jobs with this key, or one of these")] | None = None
    id: (
        Annotated[list[JobId], ONE_OR_MORE, Means("only the job with this id, or with one of these")] | None
    ) = None
    node: (
        Annotated[
            list[NodeName],
            ONE_OR_MORE,
            Means("only jobs that this node has claimed last, or one of these"),
        ]
        | None
    ) = None
    error_type: (
        Annotated[
            list[ErrorType],
            ONE_OR_MORE,
            Means("only jobs whose last error is of this type, or one of these"),
        ]
        | None
    ) = None
    fingerprint: (
        Annotated[
            list[Name],
            ONE_OR_MORE,
            Means("only jobs that have failed with an error of this fingerprint, or of one of these"),
        ]
        | None
    ) = None


class JobFilter(PlainFilter, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which jobs are meant: those to which all fields apply. Of several values of a field, one has to apply."""

    text: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=1000,
                description="1 to 1000 characters; part of the id, the payload or the error message",
            ),
        ]
        | None
    ) = None
    created_after: (
        Annotated[
            Time,
            Means("only jobs created at this time or later: RFC 3339 with a time zone, 2030-01-31T12:00:00Z"),
        ]
        | None
    ) = None
    created_before: (
        Annotated[
            Time,
            Means("only jobs created before this time: RFC 3339 with a time zone, 2030-01-31T12:00:00Z"),
        ]
        | None
    ) = None
    ended_after: (
        Annotated[
            Time,
            Means(
                "only jobs that ended at this time or later: RFC 3339 with a time zone, 2030-01-31T12:00:00Z"
            ),
        ]
        | None
    ) = None
    ended_before: (
        Annotated[
            Time,
            Means("only jobs that ended before this time: RFC 3339 with a time zone, 2030-01-31T12:00:00Z"),
        ]
        | None
    ) = None


_IN_LIST = "cannot be judged by an event: ask GET /jobs for a list with this filter, or leave it out"


class EventQuery(PlainFilter, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which events to send."""

    refused: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("text", "created_after", "created_before", "ended_before"), _IN_LIST
    )
    """what other filters have, and what to do instead"""

    durable: (
        Annotated[
            str,
            Meta(
                pattern=r"^(done|failed|cancelled|expired)(,(done|failed|cancelled|expired)){0,9}\Z",
                description="done, failed, cancelled and expired, or some of these, with commas between them",
                extra_json_schema={
                    PORTABLE: r"^(done|failed|cancelled|expired)(,(done|failed|cancelled|expired)){0,9}$"
                },
            ),
            Means(
                "only ends of jobs, from the store, so that none is missed: `done,failed,cancelled,expired`, or some"
            ),
        ]
        | None
    ) = None
    ended_after: (
        Annotated[
            Time,
            Means("with `durable`: begin with what ended at this time, and not with what ends from now on"),
        ]
        | None
    ) = None


class ListQuery(JobFilter, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which jobs to list."""

    limit: Annotated[
        int,
        Meta(ge=1, le=1000, description="a whole number from 1 to 1000"),
        Means("the most jobs in a page"),
    ] = 100
    cursor: Cursor | None = None
    payload: Annotated[bool, Meta(description="true or false; true lists payloads and results too")] = False


class BulkRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to do it to. With `dry_run`, nothing is done, and the jobs are counted."""

    filter: JobFilter
    dry_run: bool = False
    rate: (
        Annotated[
            float,
            Meta(
                gt=0, le=100_000, description="a number above 0, up to 100000; at most so many jobs a second"
            ),
        ]
        | None
    ) = None


class MoveRequest(BulkRequest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which jobs to move, and into which queue."""

    queue: Name


class BulkEditRequest(BulkRequest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which jobs to edit, and what of them."""

    changes: EditRequest


class FilterView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A filter as it is shown: each field that was asked for; those that may have several values as arrays."""

    status: Sequence[Status] = ()
    kind: Sequence[str] = ()
    queue: Sequence[str] = ()
    tag: Sequence[str] = ()
    group: Sequence[str] = ()
    key: Sequence[str] = ()
    id: Sequence[str] = ()
    node: Sequence[str] = ()
    error_type: Sequence[str] = ()
    fingerprint: Sequence[str] = ()
    text: str | None = None
    created_after: When | None = None
    created_before: When | None = None
    ended_after: When | None = None
    ended_before: When | None = None


Verb = Literal["cancel", "retry", "delete", "promote", "move", "edit"]


class OperationView(msgspec.Struct, frozen=True, kw_only=True):
    """What is done to many jobs. `state` is `running`, `done` or `stopped`.

    `matched` counts the jobs that it has come to; of these it has `changed` some, and `refused` are those whose status
    does not allow it. `error` says what of its row in the store cannot be read.
    """

    id: str
    verb: Verb
    filter: FilterView
    changes: Sequence[str]
    rate: float | None
    state: Literal["running", "done", "stopped"]
    matched: int
    changed: int
    refused: int
    created_at: When
    ended_at: When | None
    error: JobError | None


class BulkView(msgspec.Struct, frozen=True, kw_only=True):
    """An operation that has ended; or, with `dry_run`, how many jobs a filter means, and nothing else.

    Where that is not `exact`, there are at least so many.
    """

    matched: int
    exact: bool | UnsetType = UNSET
    id: str | UnsetType = UNSET
    verb: Verb | UnsetType = UNSET
    filter: FilterView | UnsetType = UNSET
    changes: Sequence[str] | UnsetType = UNSET
    rate: float | UnsetType | None = UNSET
    state: Literal["running", "done", "stopped"] | UnsetType = UNSET
    changed: int | UnsetType = UNSET
    refused: int | UnsetType = UNSET
    created_at: When | UnsetType = UNSET
    ended_at: When | UnsetType | None = UNSET
    error: JobError | UnsetType | None = UNSET


class OperationList(msgspec.Struct, frozen=True):
    """A page of operations, the newest first. `next_cursor` is null at the end."""

    operations: Sequence[OperationView]
    next_cursor: str | None


class OperationQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which operations to list."""

    limit: Annotated[
        int,
        Meta(ge=1, le=OPERATIONS, description=f"a whole number from 1 to {OPERATIONS}"),
        Means("the most operations in a page"),
    ] = OPERATIONS
    cursor: Cursor | None = None


class DifferenceView(msgspec.Struct, frozen=True):
    """What a field was, and what it has become; null: it was not there, or is not set.

    Of a value that takes more than some hundred bytes as JSON, the beginning, as a text.
    """

    from_: Any = msgspec.field(name="from")
    to: Any


class ActView(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody did by hand, to `what` of this `name`; of a key, that is its queue, beside the `key`.

    `who` is the client's `address`. `changes` say of each field that has changed what it was and what it has become; of
    a payload only the number of its bytes. `jobs`: how many an operation has changed, once it has ended. `error` says
    what of its row in the store cannot be read.
    """

    number: int
    at: When
    who: str
    address: str | None
    node: str
    act: Act | None
    what: What | None
    name: str
    key: str | None
    changes: dict[str, DifferenceView]
    reason: str | None
    jobs: int | None
    error: JobError | None


class AuditList(msgspec.Struct, frozen=True):
    """A page of acts, the newest first. `next_cursor` is null at the end."""

    acts: Sequence[ActView]
    next_cursor: str | None


class AuditQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which acts to list."""

    who: Annotated[Known, Means("only acts of this client: its address")] | None = None
    act: Annotated[Act, Means("only acts of this kind")] | None = None
    what: Annotated[What, Means("only acts on such a thing")] | None = None
    name: Annotated[Known, Means("only acts on what has this name: of a job, its id")] | None = None
    after: (
        Annotated[
            Time, Means("only acts at this time or later: RFC 3339 with a time zone, 2030-01-31T12:00:00Z")
        ]
        | None
    ) = None
    before: (
        Annotated[Time, Means("only acts before this time: RFC 3339 with a time zone, 2030-01-31T12:00:00Z")]
        | None
    ) = None
    limit: Annotated[
        int,
        Meta(ge=1, le=AUDIT, description=f"a whole number from 1 to {AUDIT}"),
        Means("the most acts in a page"),
    ] = 50
    cursor: Cursor | None = None


class WindowQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of which failures to tell: those within a time."""

    ended_after: (
        Annotated[
            Time,
            Means(
                "only jobs that failed at this time or later: RFC 3339 with a time zone, 2030-01-31T12:00:00Z"
            ),
        ]
        | None
    ) = None
    ended_before: (
        Annotated[
            Time,
            Means("only jobs that failed before this time: RFC 3339 with a time zone, 2030-01-31T12:00:00Z"),
        ]
        | None
    ) = None


class ErrorQuery(WindowQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which error groups to list."""

    limit: Annotated[
        int,
        Meta(ge=1, le=ERRORS, description=f"a whole number from 1 to {ERRORS}"),
        Means("the most error groups in a page"),
    ] = 50
    cursor: Cursor | None = None


class ErrorView(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs that have failed with the same error: its `fingerprint` is the filter that finds them.

    `type`, `message`, `where` and `traceback` are those of the job that failed last: null where it has none, or where
    its row cannot be read. `where` is the function of the handler's own code that raised it. There are at least `jobs`
    of them where that is not `exact`. `kinds` and `queues` are those of the newest 500, 20 at most; `examples` are the
    ids of the newest. Lists leave the traceback out.
    """

    fingerprint: str
    type: str | None
    message: str | None
    where: str | None
    jobs: int
    exact: bool
    first_at: When
    last_at: When
    kinds: Sequence[str]
    queues: Sequence[str]
    examples: Sequence[str]
    traceback: str | UnsetType | None = UNSET


class ErrorList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of error groups, that whose last job failed last first. `next_cursor` is null at the end.

    Where it is not `complete`, there are more than 10000 groups, and only so many were looked at.
    """

    errors: Sequence[ErrorView]
    complete: bool
    next_cursor: str | None


class LogQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which lines of a log to return, and how long to wait for one."""

    after: Annotated[
        int,
        Meta(ge=0, le=1 << 53, description="a whole number from 0 to 9007199254740992"),
        Means("only lines behind the one of this number: the `next_after` of the previous page"),
    ] = 0
    limit: Annotated[
        int,
        Meta(ge=1, le=LOG_LINES, description="a whole number from 1 to 1000"),
        Means("the most lines in a page"),
    ] = 100
    level: Annotated[Level, Means("only lines of this level and those above it")] = "debug"
    wait: Annotated[
        float,
        Meta(
            ge=0,
            le=600,
            description="a number of seconds from 0 to 600; how long to wait for a line, or the end of the job",
        ),
        OR_TEXT,
    ] = 0.0


class StackQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the tasks of a job are shown."""

    format: Annotated[
        Literal["json", "text"] | None,
        Means("`text` for people; without it, JSON, or text where `Accept` asks for `text/plain`"),
    ] = None


class QueueQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which queues to list."""

    limit: Annotated[
        int,
        Meta(ge=1, le=QUEUES, description="a whole number from 1 to 1000"),
        Means("the most queues in a page"),
    ] = 100
    cursor: Cursor | None = None


class KeyQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which keys to list."""

    state: Annotated[KeyStanding, Means("only keys that stand so")] | None = None
    limit: Annotated[
        int,
        Meta(ge=1, le=1000, description="a whole number from 1 to 1000"),
        Means("the most keys in a page"),
    ] = KEYS
    cursor: Cursor | None = None


class ScheduleQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which schedules to list."""

    limit: Annotated[
        int,
        Meta(ge=1, le=SCHEDULES, description="a whole number from 1 to 100"),
        Means("the most schedules in a page"),
    ] = 100
    cursor: Cursor | None = None


class NodeQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which nodes to list."""

    limit: Annotated[
        int,
        Meta(ge=1, le=NODES, description="a whole number from 1 to 100"),
        Means("the most nodes in a page"),
    ] = NODES
    cursor: Cursor | None = None


LINGERING = 100
"""How many jobs whose handlers do not end are shown."""

TRACEBACKS = 1 << 20
"""The most bytes of tracebacks that are shown of one job, from the newest attempt back."""

NULL = msgspec.Raw(b"null")


EARLIEST = -62_135_596_800.0
"""The first and the last time that RFC 3339 can write: years 1 to 9999."""


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339, UTC, with milliseconds; beyond `EARLIEST` or `LATEST`, these."""
    # Of a damaged row it may be anything. In this order NaN, which is no number, becomes EARLIEST.
    shown = min(LATEST, max(EARLIEST, seconds))
    # isoformat cuts off what is below a millisecond; with a half more, that is rounding.
    return datetime.fromtimestamp(shown + 0.0005, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def when(seconds: float | None) -> str | None:
    """The same of a time that may not be."""
    return None if seconds is None else rfc3339(seconds)


def attempt_view(record: AttemptRecord) -> AttemptView:
    """An attempt as it is shown."""
    return AttemptView(
        number=record.number,
        claim=record.claim,
        node=record.node,
        started_at=when(record.started_at),
        finished_at=when(record.finished_at),
        outcome=record.outcome,
        error=record.error,
    )


def stored_view(
    job: Job, registry: Registry, *, content: bool = True, attempts: bool = True, progress: bool = False
) -> JobView:
    """A stored job as it is shown. Parts of its row that cannot be shown are null or left out; its error names them.

    That error has the type `DamagedRow`.
    """
    asked, state, damage = job.asked, job.state, list(job.damage)
    payload, result = asked.payload, state.result
    if content and not _is_json(payload):
        payload = b"null"
        damage.append("its payload is not JSON that can be shown")
    if content and result is not None and not _is_json(result):
        result = None
        damage.append("its result is not JSON that can be shown")
    damage += [f"its {name} is no time that can be shown" for name, time in _times(job) if not _is_time(time)]
    if damage:
        job = Job(
            msgspec.structs.replace(asked, payload=payload),
            msgspec.structs.replace(state, result=result, error=_told(damage, state.error)),
            job.attempts,
            progress=job.progress,
        )
    return job_view(job, registry, content=content, attempts=attempts, progress=progress)


def _is_json(stored: bytes) -> bool:
    """Whether it can be put into an answer as it is: JSON in UTF-8, not nested too deep to be read."""
    try:
        _skip(stored)
        stored.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


_skip = msgspec.json.Decoder(msgspec.Raw).decode
"""Reads JSON without making anything of it."""


def _times(job: Job) -> Sequence[tuple[str, float | None]]:
    return (
        ("created_at", job.asked.created_at),
        ("run_at", job.asked.run_at),
        ("started_at", job.state.started_at),
        ("finished_at", job.state.finished_at),
        ("expires_at", job.asked.expires_at),
        ("deadline", job.asked.options.deadline),
    )


def _is_time(seconds: float | None) -> bool:
    return seconds is None or EARLIEST <= seconds <= LATEST


def _told(damage: Sequence[str], error: JobError | None) -> JobError:
    words = f"the job's row in the store is damaged: {'; '.join(damage)}"
    if error is None:
        return JobError("DamagedRow", words)
    told = f"{words}; its last error was {error.type}: {error.message}"
    return msgspec.structs.replace(error, type="DamagedRow", message=told)


def unserved_views(found: Sequence[Unserved]) -> Sequence[UnservedView]:
    """Kinds without a node, as they are shown."""
    return [UnservedView(one.kind, one.jobs, rfc3339(one.since)) for one in found]


def lingering_views(found: Sequence[Attempt]) -> Sequence[LingeringView]:
    """Handlers that do not end, as they are shown."""
    return [
        LingeringView(one.job.id, one.job.kind, one.number, one.reason or "timeout", round(one.lingers(), 1))
        for one in found[:LINGERING]
    ]


def job_view(
    job: Job, registry: Registry, *, content: bool = True, attempts: bool = True, progress: bool = False
) -> JobView:
    """A sound job as it is shown; with its payload and result if `content`, its progress if that or `attempts`.

    Where the job does not say how often it is retried, its handler in `registry` does.
    """
    asked, state, options = job.asked, job.state, job.asked.options
    created_at = rfc3339(asked.created_at)
    return JobView(
        id=asked.id,
        kind=asked.kind,
        queue=asked.queue,
        status=state.status,
        priority=asked.priority,
        payload=msgspec.Raw(asked.payload) if content else UNSET,
        result=(NULL if state.result is None else msgspec.Raw(state.result)) if content else UNSET,
        error=state.error,
        progress=_progress_view(job.progress) if attempts or progress else UNSET,
        attempt=state.attempt,
        max_retries=registry.max_retries(asked.kind) if asked.max_retries is None else asked.max_retries,
        timeout=options.timeout,
        backoff=options.backoff,
        on_crash=options.on_crash,
        tags=options.tags,
        created_at=created_at,
        run_at=created_at if asked.run_at == asked.created_at else rfc3339(asked.run_at),
        started_at=when(state.started_at),
        finished_at=when(state.finished_at),
        expires_at=None if asked.waits_until_its_deadline else when(asked.expires_at),
        deadline=when(options.deadline) or UNSET,
        key=UNSET if options.key is None else options.key,
        depends_on=options.depends_on or UNSET,
        needs=options.needs if options.depends_on else UNSET,
        unique=options.unique or UNSET,
        throttle=options.throttle or UNSET,
        debounce=options.debounce or UNSET,
        group=options.group or UNSET,
        callback_of=options.callback_of or UNSET,
        parent=options.parent or UNSET,
        schedule=UNSET
        if options.schedule is None
        else ScheduledView(options.schedule.name, rfc3339(options.schedule.at)),
        attempts=_attempt_views(job.attempts) if attempts else UNSET,
    )


def _progress_view(progress: Progress | None) -> ProgressView | None:
    return (
        None if progress is None else ProgressView(progress.fraction, progress.message, rfc3339(progress.at))
    )


def _attempt_views(records: Sequence[AttemptRecord]) -> Sequence[AttemptView]:
    """Attempts as they are shown, oldest first; once the tracebacks take too much, those of older ones are left out."""
    room, shown = TRACEBACKS, []
    for record in reversed(records):
        room -= 0 if record.error is None else len(msgspec.json.encode(record.error.traceback))
        if room < 0 and record.error is not None:
            bare = msgspec.structs.replace(record.error, traceback=None)
            shown.append(attempt_view(msgspec.structs.replace(record, error=bare)))
        else:
            shown.append(attempt_view(record))
    return shown[::-1]
