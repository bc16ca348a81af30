"""The store contract: what the engine needs and what the API asks.

Every verb is one transaction and takes one call, `now` is always passed in (seconds since the epoch),
and a cancel of the caller never breaks a verb in two: it took effect whole, or not at all. Each may raise
`StoreUnavailable`, after which nothing of it was written. Whatever else a verb raises than a `StoreError` is the fault
of what it was given, or of a row that it met; nothing of it was written then either.

Over a network one thing is left that nobody can know: whether a commit took place whose answer was lost. So each verb
may be repeated after it raised: starts and settlements that were written after all are not stale then, jobs that were
added are "existing", and jobs that were claimed unknown to all are handed back by the same node's next exchange.

A job that a node has claimed is *held* by it until the attempt is settled. Its status stays `queued` until its
start is written, with the next commit; so what is shown as running runs, and what a crash finds held
but not begun has not spent an attempt.
"""

from collections.abc import AsyncIterator, Container, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import msgspec
from msgspec import UNSET, UnsetType

from jobpipe.acts import By, Done
from jobpipe.job import (
    LEVELS,
    NO_OPTIONS,
    Backoff,
    Job,
    JobError,
    Level,
    NewJob,
    OnFailure,
    Options,
    Outcome,
    Progress,
    Status,
)
from jobpipe.lanes import KeySettings, KeyStanding, Limits
from jobpipe.obstacles import Check, Obstacle
from jobpipe.schedules import Declaration, Firing, Schedule, Spec

STEP = 1000
"""The most jobs that one exchange promotes or expires, and one prune deletes, so that no transaction is long."""

QUEUES = 1000
"""The most queues of one list, unless asked for fewer."""

KEYS = 100
"""The most keys of one list, unless asked for fewer."""

PLACES = 1000
"""How far a job's place in line is counted."""

SCHEDULES = 100
"""The most schedules of one list, and the most that are fired in one transaction."""

PAGE_BYTES = 4 << 20
"""The most bytes of one page of a list; a job that is larger comes alone."""


LOG_LINES, LOG_BYTES = 1000, 256 << 10
"""The most log lines that are kept of a job, and the most bytes: the first half and the last half of each."""

LONGEST_LEASE = 8_640_000.0
"""A lease that ends in more than a hundred days is none: no node asks for so long a one, so its row is damaged."""
UNSERVED = 100
"""The most kinds, and the most queues, that are listed as served by no node."""


class Claimed(msgspec.Struct, frozen=True):
    """A job handed to this node to be run. `attempt` counts the runs before this one."""

    seq: int
    id: str
    kind: str
    queue: str
    payload: bytes
    priority: int
    run_at: float
    attempt: int
    max_retries: int | None
    """None: as many as the handler says"""
    claim: int
    rescued: int
    """how often a node died while it held the job"""
    options: Options = NO_OPTIONS
    damage: str | None = None
    """what of its row cannot be read, in words: such a job fails instead of running"""


class Start(msgspec.Struct, frozen=True):
    """An attempt has begun."""

    seq: int
    claim: int
    attempt: int
    started_at: float


class LogLine(msgspec.Struct, frozen=True):
    """What a handler has logged."""

    number: int
    """from 1 within the claim; lines that were left out are counted"""
    at: float
    level: Level
    text: str
    """without NUL and lone surrogates"""
    fields: bytes | None = None
    """a JSON object"""

    @property
    def size(self) -> int:
        """Its bytes, as far as they are limited."""
        return len(self.text.encode()) + len(self.fields or b"")


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What a held job has written since its last note: how far it is, and log lines."""

    seq: int
    id: str
    claim: int
    attempt: int
    """which attempt this is"""
    progress: Progress | None = None
    """None: as it was"""
    lines: Sequence[LogLine] = ()
    """in their order; one whose number is not above those of the claim that are there is there already"""


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a held job. `outcome` is None for one that is handed back without having begun."""

    seq: int
    id: str
    queue: str
    kind: str = ""
    claim: int
    outcome: Outcome | None
    status: Status
    """what the job becomes; one that was asked to cancel becomes `cancelled` instead of waiting again"""
    attempt: int
    """the job's count of runs from now on"""
    number: int = 0
    """which attempt this was"""
    run_at: float | None = None
    """when it is due again; None leaves it as it was"""
    due_at: float = 0.0
    """when the attempt was due"""
    started_at: float | None = None
    settled_at: float
    result: bytes | None = None
    error: JobError | None = None
    size: int = 0
    """bytes of payload, result and error, for the retention of ended jobs"""
    jobs: Sequence[NewJob] = ()
    """what its handler has enqueued: new jobs, stored with this and only with this; `status` is `done` then

    One that depends on others of them comes behind those.
    """


class Add(msgspec.Struct, frozen=True):
    """Jobs to be stored for one asker. With `atomic`, a conflict in one means that none is stored."""

    jobs: Sequence[NewJob]
    atomic: bool = False


class Receipt(msgspec.Struct, frozen=True):
    """What became of one job of an `Add`. `job` is the one that has the id already, unless `stored`."""

    verdict: Literal[
        "stored",
        "existing",
        "conflict",
        "refused",
        "locked",
        "late",
        "unknown_dependency",
        "dependency_failed",
        "dependency_cycle",
        "closed",
        "unknown_group",
        "group_closed",
        "replaced",
        "not_unique",
    ]
    """`refused`: nothing wrong with this one, but it shared an atomic add with one that was not stored;
    `locked`: an unfinished transaction of another program stores or deletes a job of this id, so nothing can be said
    yet; `late`: the job is new and expires before it could start (the engine hands no store such a job);
    `dependency_cycle`: it waits for itself, by way of others of the same add (the engine hands no store such a job), or
    as it is for a group for whose end it waits; `unknown_dependency` and `dependency_failed`: a job that it depends on
    is not there, or did not end as needed; `closed`: the job is new, and its queue takes none; `unknown_group` and
    `group_closed`: its group is not there, or takes no more jobs; `replaced`: `other` waits, and is what this one asks
    for now; `not_unique`: `other` has its key. One that is `existing` may be `other`, too"""
    job: Job | None = None
    """also where it is `stored`, and waits for other jobs or for another time than it said"""
    dependencies: Sequence[str] = ()
    """the jobs that it depends on and that are not there, or did not end as needed; or those of a cycle"""
    queue: str = ""
    """the queue that is closed"""
    group: str = ""
    """the group that is not there, or takes no more jobs"""
    other: str | None = None
    """the id of the job that has its key (`Options.merging`). That job may be gone: then `job` is None"""


STORED = Receipt("stored")
LOCKED = Receipt("locked")


OTHERS = "*"
"""In the place of a queue's name: every queue that is not named beside it. No queue has this name."""


class Share(msgspec.Struct, frozen=True):
    """How many jobs a claim takes from a queue before it is the next queue's turn."""

    queue: str
    """its name, or `OTHERS`"""
    jobs: int


class ClaimRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which ready jobs one asker wants: the workers of a node, or whoever else runs jobs under its lease."""

    limit: int
    """the most jobs to take, 1 or more"""
    kinds: frozenset[str]
    """the kinds that the asker can run; a job of any other kind is left where it is, unspent"""
    queues: Sequence[Share] = ()
    """the queues to take from; none: from all of them, as if they were one

    Each gives its share at most, in this order, and then again and again, until the limit is reached or none has more.
    Those with a share of 0 come last, one after the other. Where nodes claim at the same time, it is about so.
    """
    free: int = 1 << 30
    """how many workers wait for a job: one that a limit of its queue counts is taken for one of these, or not at all

    Of the jobs that are taken, no such job is beyond so many of the first. So none waits claimed while another node has
    a worker for it, and starts keep to the rate of the claims.
    """

    @property
    def names(self) -> frozenset[str] | None:
        """The queues that it takes from; None: all of them."""
        names = frozenset(share.queue for share in self.queues)
        return names if names and OTHERS not in names else None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What a node writes and takes in one transaction, carried out in the order of the fields."""

    node: str
    now: float
    lease_until: float | None = None
    """renew the node's lease until then; None: leave it"""
    starts: Sequence[Start] = ()
    notes: Sequence[Note] = ()
    settlements: Sequence[Settlement] = ()
    adds: Sequence[Add] = ()
    claims: Sequence[ClaimRequest] = ()
    """take ready jobs for each asker in its turn, in order of priority (highest first), run_at, arrival

    With `ClaimRequest.queues` this is the order within each queue, and that in which the taken jobs are returned.
    In a gated queue (see `jobpipe.lanes`) this is the order within each key, and its limits hold whoever claims. Its
    keys take turns: while two of them have ready jobs and their limits allow more, the numbers of their jobs that are
    taken differ, by weight, by at most what one claim takes of a key, however many jobs wait of each. A job comes no
    earlier among those of other queues than one of its queue whose turn was before it.
    A claim clears the job's started_at, so that a held job which has one has begun. It passes over jobs that are
    past their expires_at and not expired yet. Ready jobs of other kinds do not slow it down, however many are ahead of
    the jobs that it may take. Each is met by one claim at most; then it stands aside until a node that serves its kind
    takes it.
    """


class Changed(msgspec.Struct, frozen=True):
    """A job that an exchange has brought to another status by itself."""

    id: str
    status: Status


class Receipts(msgspec.Struct, frozen=True, kw_only=True):
    """What an exchange came to."""

    lease_lost: bool = False
    """the node has no lease to renew: another one took it for dead. Nothing was claimed"""
    stale: frozenset[tuple[int, int]] = frozenset()
    """(seq, claim) of the starts, notes and settlements that matched no held row; they changed nothing"""
    locked: frozenset[tuple[int, int]] = frozenset()
    """the same of those whose row another program has locked: not written, try again later"""
    settled: dict[int, Status] = {}
    """seq -> status where the job became something else than its settlement said"""
    adds: Sequence[Sequence[Receipt]] = ()
    """for each add, a receipt for each of its jobs"""
    claims: Sequence[Sequence[Claimed]] = ()
    """for each claim, the jobs that were taken, in their order"""
    more_ready: bool = False
    """whether more jobs may be ready although fewer than `limit` were claimed: ask again at once"""
    held_back: frozenset[int] = frozenset()
    """the numbers of the claims, in their order from 0, that left jobs which might be taken, but for `free`

    Nothing is to be claimed ahead of free workers then, or those jobs would wait for long.
    """
    waiting: int = 0
    """how many jobs wait in the store, those held by nodes not counted"""
    next_due: float | None = None
    """when the next job is to be promoted or expired, or the next pause ends; None: nothing waits for a time"""
    changes: Sequence[Changed] = ()
    """the jobs that expired, and those that waited for jobs which have ended; from a store that nodes share, of those
    that expired only the ones that somebody watches or waits for, unless somebody listens to all jobs"""
    following: bool = False
    """whether more follows from the ends of jobs than was done: `follow` goes on with it"""
    cancelling: frozenset[tuple[int, int]] = frozenset()
    """(seq, claim) of this node's held jobs that were asked to stop; told with starts, claims and renewals

    From a store that nodes share: notifications only tell that there may be some.
    """

    @property
    def claimed(self) -> Sequence[Claimed]:
        """The jobs that were taken, for whomever."""
        return [job for claimed in self.claims for job in claimed]


class Followed(msgspec.Struct, frozen=True):
    """What followed the ends of jobs that others waited for."""

    changes: Sequence[Changed] = ()
    """what became of those others"""
    more: bool = False
    """whether something is left to be done"""


class NewGroup(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a group."""

    id: str
    on_failure: OnFailure
    jobs: Sequence[NewJob]
    """its members, each with `Options.group`; one that depends on others of them comes behind those"""
    then: NewJob | None
    """the job that waits until all of them have ended, with `Options.callback_of`"""
    open_for: float | None = None
    """for so long jobs can be added to it, unless it is closed before; None: it is complete"""

    @property
    def every(self) -> Sequence[NewJob]:
        """All jobs, the one that waits last."""
        return self.jobs if self.then is None else [*self.jobs, self.then]


class GroupReceipt(msgspec.Struct, frozen=True):
    """What became of a new group."""

    verdict: Literal["stored", "existing", "conflict", "refused"]
    """`conflict`: there is another one of this id, or another job has the id of one of its jobs; `refused`: a job of it
    cannot be stored"""
    receipts: Sequence[Receipt] = ()
    """those of its jobs, where these are the reason: the job that waits comes last"""


class GroupState(msgspec.Struct, frozen=True, kw_only=True):
    """A group, and how its jobs stand."""

    id: str
    on_failure: str
    jobs: int
    """how many there are by now"""
    counts: dict[str, int]
    """how many have which status; those that have ended as they had ended first, and `deleted` ones too"""
    callback: str | None
    """the id of the job that waits for its end; None: there is none, or it was deleted"""
    created_at: float
    open_until: float | None
    """jobs can be added until then at the most; None: it was complete when it was stored"""
    closed_at: float | None
    """since when no more jobs can be added, but by one of the group that runs; None: they can"""
    ended_at: float | None


class OpenDependencies(msgspec.Struct, frozen=True):
    """Which jobs a job still waits for."""

    ids: Sequence[str]
    """the first of them"""
    count: int
    group: str | None = None
    """the group that these are of, where it waits for the end of one"""
    group_open: bool = False
    """whether jobs can still be added to that group: it also waits for its close"""


class Change(msgspec.Struct, frozen=True):
    """A verb's effect on one job, or why there was none."""

    id: str
    verdict: Literal["changed", "absent", "refused", "closed", "not_unique"]
    """`refused`: the job's status does not allow the verb; `closed`: it was to be moved into a queue that takes no
    jobs; `not_unique`: another job has its key"""
    job: Job | None = None
    """the job as it is now, with its attempts; None when absent or deleted"""
    other: str | None = None
    """the id of the job that has its key"""
    was: Job | None = None
    """where it has changed: the job before that"""


class Rescued(msgspec.Struct, frozen=True):
    """A job taken back from a dead node."""

    id: str
    queue: str
    status: Status
    """what it became"""
    begun: bool
    """whether an attempt is known to have begun"""


class NodeFacts(msgspec.Struct, frozen=True):
    """What a node says of itself when it joins."""

    workers: int | None = None
    version: str | None = None


NO_FACTS = NodeFacts()


class NodePlace(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Where a node stands in a list: those with a lease first, then by when they joined for the first time."""

    leased: bool
    number: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    """A node, one that runs or one that did. What nobody has noted, or cannot be read, is None, or empty."""

    place: NodePlace
    name: str
    lease_until: float | None
    """None: it has left, or was taken for dead"""
    draining: bool
    joined_at: float | None
    """when it joined for the first time"""
    lease: float | None
    """how many seconds a lease lasts"""
    workers: int | None
    version: str | None
    kinds: Sequence[str]
    """the kinds that it serves"""
    queues: Sequence[str] | None
    """those from which it takes jobs; None: from all"""
    holds: int
    """how many jobs it holds"""
    last_stop: "Account | None"
    """the newest of its accounts"""


How = Literal["drained", "stopped", "abandoned", "died"]
"""How a node ended: all that ran ended by itself, or was cancelled, or not even then; or it was taken for dead."""


class Unfinished(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that ran when its node began to stop, and did not end by itself."""

    job: str
    kind: str
    attempt: int
    end: Literal["handed_back", "abandoned"]
    """`handed_back`: its handler was cancelled, and cleaned up; `abandoned`: it ran on until the process ended"""
    status: str | None = None
    """what its job became; None: that cannot be said"""
    line: str | None = None
    """where its handler stood when it was abandoned: file, line and function; None: that could not be seen"""


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the attempts that ran when a node began to stop, or died.

    `active` is the sum of `finished`, `handed_back` and `abandoned`.
    """

    node: str
    how: How
    signal: str | None = None
    """its name; None: it was no signal"""
    began: float
    """of a node that died: its last sign of life"""
    ended_at: float
    active: int
    finished: int
    handed_back: int
    abandoned: int
    unbegun: int
    """how many jobs it held besides, which had not begun"""
    attempts: Sequence[Unfinished] = ()
    """those that did not finish, `ACCOUNTED` at the most"""


ACCOUNTED = 100
"""The most attempts that an account names."""

ACCOUNTS = 50
"""The most accounts that are kept of a node."""

NODES = 100
"""The most nodes of one list, unless asked for fewer."""


class Retention(msgspec.Struct, frozen=True):
    """How long and how many ended jobs are kept. Ages in seconds; `size` in bytes of payloads, results and errors."""

    done_age: float
    failed_age: float
    """for failed, cancelled and expired jobs"""
    jobs: int
    size: int


class QueueSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is set for a queue. None: nothing is said, so the settings of the nodes count. Each field is a column."""

    closed: bool = False
    """whether it takes no new jobs"""
    keep_done: float | None = None
    """seconds for which done jobs are kept"""
    keep_failed: float | None = None
    """the same of failed, cancelled and expired jobs"""
    keep_jobs: int | None = None
    """the most ended jobs that are kept"""
    keep_bytes: int | None = None
    """the most bytes of payloads, results and errors of ended jobs"""

    @property
    def keeps(self) -> bool:
        """Whether it says how long ended jobs are kept."""
        return (self.keep_done, self.keep_failed, self.keep_jobs, self.keep_bytes) != (None,) * 4


NOTHING_SET = QueueSettings()


class QueueState(msgspec.Struct, frozen=True, kw_only=True):
    """One queue: whether it is paused, what is set for it, and how many jobs it has in each status."""

    name: str
    paused: bool
    reason: str | None = None
    """why it is paused"""
    paused_until: float | None = None
    """when the pause ends by itself; the queue may be shown as paused until the next exchange after that"""
    settings: QueueSettings = NOTHING_SET
    counts: dict[Status, int]
    oldest_queued_at: float | None = None
    """run_at of the job that has been ready the longest"""


class KeyState(msgspec.Struct, frozen=True, kw_only=True):
    """One key of a queue."""

    key: str
    """`''`: the jobs of the queue that have none"""
    waiting: int
    """how many of its jobs are ready"""
    running: int
    """how many of its jobs are held"""
    state: KeyStanding
    until: float | None = None
    """when its rate allows the next job, where it rests"""
    stopped_by: str | None = None
    """id of the failed job for which it is stopped; that job may be gone by now"""
    settings: KeySettings


class GateState(msgspec.Struct, frozen=True, kw_only=True):
    """What a queue allows, and how far it is used."""

    limits: Limits
    running: int
    """how many of its jobs are held"""
    tokens: int | None
    """how many jobs its rate allows now; None: it has no rate"""
    keys: dict[KeyStanding, int]
    """how many of its keys stand how; those of which there is nothing to tell are not counted"""


class Unserved(msgspec.Struct, frozen=True):
    """Ready jobs of a kind that no live node serves."""

    kind: str
    jobs: int
    since: float
    """run_at of the job that has been ready the longest"""


class Overview(msgspec.Struct, frozen=True):
    """What a health check asks of all queues together."""

    counts: dict[Status, int]
    ready: bool
    """whether a job of the kinds and queues asked for is ready, in a queue that is not paused; or one that no claim has
    met yet"""


class QueueChange(msgspec.Struct, frozen=True):
    """What became of a queue that was to be deleted."""

    verdict: Literal["changed", "absent", "refused"]
    """`refused`: it still has jobs"""
    queue: QueueState | None = None
    """the queue as it is, when refused"""


class SchedulePut(msgspec.Struct, frozen=True):
    """What became of a schedule that was stored."""

    schedule: Schedule
    verdict: Literal["created", "changed", "same", "declared"]
    """`declared`: nothing was stored, since code declares a schedule of this name"""


ScheduleDeletion = Literal["deleted", "missing", "declared"]
"""What became of a schedule that was to be deleted; one that code declares stays."""


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What declarations in code have changed: names of schedules."""

    created: Sequence[str] = ()
    changed: Sequence[str] = ()
    """those that follow another declaration now, or one where there was none before"""
    orphaned: Sequence[str] = ()
    """those that no live node declares any more: they are paused"""


class Due(msgspec.Struct, frozen=True):
    """Schedules that are due, and when the next of the others will be; None: none will."""

    schedules: Sequence[Schedule]
    next_at: float | None


class Fired(msgspec.Struct, frozen=True, kw_only=True):
    """What came of firings."""

    fired: frozenset[str] = frozenset()
    """the names of those that were done; the others were done, edited, paused or deleted by somebody else"""
    locked: frozenset[str] = frozenset()
    """the names of those that somebody else is about just now, or has deleted"""
    stored: Sequence[str] = ()
    """the ids of the jobs that were made"""
    cancelled: Sequence[Change] = ()
    """jobs of earlier firings that were replaced"""


class FiredJob(msgspec.Struct, frozen=True, kw_only=True):
    """The job of a firing, as far as a schedule shows it."""

    id: str
    status: str
    started_at: float | None
    finished_at: float | None


class Filter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which jobs are meant: those to which all of it applies. None means any; of several values one has to apply.

    A kind that ends in `*` means all kinds that begin so. Texts match parts of id, payload and error. Times `after` are
    inclusive, and times `before` are not.
    """

    status: Status | tuple[Status, ...] | None = None
    kind: str | tuple[str, ...] | None = None
    queue: str | tuple[str, ...] | None = None
    tag: str | tuple[str, ...] | None = None
    group: str | tuple[str, ...] | None = None
    key: str | tuple[str, ...] | None = None
    """whom the job is for"""
    id: str | tuple[str, ...] | None = None
    node: str | tuple[str, ...] | None = None
    """the node that claimed the job last"""
    error_type: str | tuple[str, ...] | None = None
    fingerprint: str | tuple[str, ...] | None = None
    """of the error with which the job has failed"""
    text: str | None = None
    created_after: float | None = None
    created_before: float | None = None
    ended_after: float | None = None
    ended_before: float | None = None
    top: int | None = None
    """the highest number of a job that is meant"""
    content: bool = True
    """whether the jobs come with payload and result; without them a payload is empty"""

    def each(self, name: str) -> tuple[str, ...]:
        """The values of a field that may have several, each once, those of `status` as texts."""
        value = getattr(self, name)
        values = () if value is None else value if isinstance(value, tuple) else (value,)
        return tuple(dict.fromkeys(str(one) for one in values))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that are named in full."""
        return tuple(kind for kind in self.each("kind") if not kind.endswith(ANY_KIND))

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What other kinds begin with."""
        return tuple(kind.removesuffix(ANY_KIND) for kind in self.each("kind") if kind.endswith(ANY_KIND))


SEVERAL = ("status", "kind", "queue", "tag", "group", "key", "id", "node", "error_type", "fingerprint")
"""The fields of a filter that may have several values."""

ANY_KIND = "*"


class Changes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is changed of each of many jobs: fields of `NewJob` and `Options`. One that is unset stays as it is."""

    payload: bytes | UnsetType = UNSET
    queue: str | UnsetType = UNSET
    priority: int | UnsetType = UNSET
    max_retries: int | UnsetType | None = UNSET
    run_at: float | UnsetType = UNSET
    expires_at: float | UnsetType | None = UNSET
    timeout: float | UnsetType | None = UNSET
    backoff: Backoff | UnsetType | None = UNSET
    tags: tuple[str, ...] | UnsetType = UNSET
    key: str | UnsetType | None = UNSET

    @property
    def edits(self) -> Mapping[str, Any]:
        """The fields that are changed, with their values."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not UNSET}


OperationVerb = Literal["cancel", "retry", "delete", "promote", "move", "edit"]
OperationState = Literal["running", "done", "stopped"]


class NewOperation(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done to all jobs that a filter means."""

    id: str
    verb: OperationVerb
    where: Filter
    changes: Changes | None = None
    """for `edit`, and the queue for `move`"""
    rate: float | None = None
    """at most so many jobs a second; None: as fast as it goes"""


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """An operation as it stands. It goes on from the newest job to the oldest one."""

    asked: NewOperation
    state: OperationState
    place: "Place | None"
    """the jobs behind it are left; None: all of them"""
    matched: int = 0
    """how many jobs it has come to that the filter meant by then"""
    changed: int = 0
    refused: int = 0
    """how many of them stayed as they were, since their status does not allow the verb, or they could not be written"""
    created_at: float
    ended_at: float | None = None
    next_at: float
    """when the next slice may be done"""
    error: JobError | None = None
    """what of its row cannot be read: it does nothing"""


class TakenOperation(msgspec.Struct, frozen=True):
    """An operation that a node is to go on with, or when there will be one; None: there is none."""

    operation: Operation | None
    next_at: float | None = None


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an operation: some jobs behind the place to which it has come."""

    operation: str
    place: "Place | None"
    """where it is believed to stand"""
    ids: Sequence[str]
    """the jobs that the filter seemed to mean"""
    refused: int = 0
    """how many jobs more are left out, since they cannot be written"""
    next: "Place | None"
    """where it stands then; None: it is done"""
    next_at: float
    """when the slice after it may be done"""


class Sliced(msgspec.Struct, frozen=True):
    """What came of a slice."""

    operation: Operation | None
    """as it stands now; None: it is not there any more"""
    changes: Sequence[Change] = ()
    """what the verb did; none where somebody else has moved the operation on, or stopped it"""


OPERATIONS = 100
"""The most operations of one list."""

AUDIT = 100
"""The most acts of one list."""


class AuditFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which acts are meant: those to which all of it applies. None means any. `after` is inclusive, `before` is not."""

    who: str | None = None
    act: str | None = None
    what: str | None = None
    name: str | None = None
    after: float | None = None
    before: float | None = None


class AuditPlace(msgspec.Struct, frozen=True):
    """The place of an act in the list."""

    at: float
    number: int


class AuditPage(msgspec.Struct, frozen=True):
    """A page of acts, the newest first."""

    acts: Sequence[Done]
    next_before: AuditPlace | None
    """where the next page begins; None: this is the last one"""


class Window(msgspec.Struct, frozen=True):
    """A time from `after` on until just before `before`; None: it is open to that side."""

    after: float | None = None
    before: float | None = None


EVER = Window()


class ErrorGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs that have failed with errors of one fingerprint, within a time."""

    fingerprint: str
    jobs: int
    exact: bool
    """whether there are just so many jobs; else at least so many"""
    first_at: float
    last_at: float
    """when the first of them failed that is still there, and the last one"""
    kinds: Sequence[str]
    queues: Sequence[str]
    """of the newest `SEEN` of them, sorted; `NAMED` of each at the most"""
    newest: JobError | None
    """the error of the newest; None where it cannot be read"""
    examples: Sequence[str]
    """ids of the newest jobs, the newest first"""


class ErrorGroups(msgspec.Struct, frozen=True):
    """A part of a list of groups, that whose last job failed last first."""

    groups: Sequence[ErrorGroup]
    next_before: "ErrorPlace | None"
    """continues it; None: there is no more"""
    complete: bool
    """whether all groups were looked at: of very many only the `GROUPS` that come first by fingerprint are"""


class ErrorPlace(msgspec.Struct, frozen=True, array_like=True):
    """Where a group stands in that list. Means the same when the group is gone."""

    last_at: float
    fingerprint: str


ERRORS = 100
"""The most error groups of one list."""

GROUPS = 10_000
"""The most error groups that a list looks at."""

COUNTED, COUNTED_OF_ONE = 5_000, 100_000
"""Up to how many jobs of an error group are counted in a list, and where one group is asked for."""

SEEN, NAMED = 500, 20
"""Of how many of its newest jobs the kinds and queues of an error group are gathered, and how many of each are told."""

EXAMPLES, EXAMPLES_OF_ONE = 3, 20
"""How many of its newest jobs are told of an error group in a list, and where one group is asked for."""


class Place(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Where a job stands in a list: by created_at, then by arrival. Means the same when that job is gone."""

    created_at: float
    seq: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class Page(msgspec.Struct, frozen=True):
    """A part of a list, newest job first. `next_before` continues it; None: there is no more."""

    jobs: Sequence[Job]
    next_before: Place | None = None


class StoredLine(msgspec.Struct, frozen=True):
    """A log line as it is shown. Where its row is damaged, level and text may be any, and the fields None."""

    n: int
    """grows over all attempts of the job; a gap is what was left out"""
    at: float
    attempt: int
    level: str
    text: str
    fields: bytes | None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What an event tells of a job. What of its row cannot be read is left out."""

    seq: int
    id: str
    status: Status | None
    """None: it cannot be read"""
    kind: str
    queue: str
    key: str | None
    group: str | None
    tags: Sequence[str]
    attempt: int
    node: str | None
    """the node that claimed it last"""
    error: JobError | None
    """without its traceback"""
    finished_at: float | None


class EndPlace(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Where a job stands among those that have ended as it has: by its end, then by its number."""

    at: Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]
    seq: Annotated[int, msgspec.Meta(ge=-1, lt=1 << 62)]


class Ends(msgspec.Struct, frozen=True):
    """A part of the jobs that have ended, the earliest end first."""

    jobs: Sequence[tuple[EndPlace, Summary]]
    """without those that were known already"""
    next: EndPlace | None
    """the next part begins behind it; None: there is no more"""


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a job's log."""

    lines: Sequence[StoredLine]
    dropped: int
    """how many lines of the whole log were left out"""
    last: int
    """the number of the log's last line; 0: there is none"""
    ended: bool
    """whether the job has ended, so that no more will come"""


class EngineStore(Protocol):
    """What makes jobs move."""

    name: str
    """as in the settings, for people; without secrets"""
    durable: bool
    """whether waiting jobs survive the end of this process"""
    following: bool
    """whether `follow` has something to tell: verbs other than `exchange` have ended jobs that others waited for"""

    async def join(
        self,
        node: str,
        now: float,
        lease_until: float,
        kinds: frozenset[str] = frozenset(),
        queues: frozenset[str] | None = None,
        facts: NodeFacts = NO_FACTS,
    ) -> None:
        """Register a node with a lease and the kinds that it serves; none for a node that only adds jobs.

        `queues`: those from which it takes jobs; None: from all. Repeatable: a node that joins again has all of this
        set anew.
        """

    async def exchange(self, batch: Batch) -> Receipts:
        """Write and take a batch in one transaction; when this returns, it survives a crash.

        Pauses that were to end by `now` do. Due jobs (run_at, expires_at at or before `now`) are promoted and expired
        first, at most `STEP` of each. A new job of a closed queue is not stored; one that is there already is compared.
        Every start, note and settlement matches on the claim number: where no held row has it, nothing changes
        and the pair is returned as stale. A job that waits again keeps its last error unless its settlement brings one.
        The jobs that a settlement brings are stored in the transaction in which it is written, before it. Where one of
        them cannot be, none is, and the job has `failed` with an error that says why (`Receipts.settled`); those that
        are there already are compared, as in an add.
        Of the log lines of a job `LOG_LINES` and `LOG_BYTES` are kept, half of each from the first line on and half up
        to the last.
        """

    async def add_dependents(
        self, jobs: Sequence[NewJob], *, atomic: bool, strict: bool = False
    ) -> Sequence[Receipt]:
        """Store jobs of which some wait for others (`Options.depends_on`): these are `blocked` until those have ended.

        Or of which some are merged with others (`Options.merging`): see below.

        A job comes after those of `jobs` that it depends on. One is queued, or scheduled, whose dependencies have all
        ended as needed. One that is not there makes its receipt `unknown_dependency`, one that has ended otherwise
        `dependency_failed`. With `atomic`, none is stored then. A job that is there already is compared, as in an
        exchange, whatever its dependencies have come to. New jobs of a closed queue are not stored.

        One with `Options.group` belongs to that group from then on, if it is open at the job's created_at, or the job's
        parent (`Options.parent`) belongs to it and has not ended; else it is not stored.

        What becomes of a job that is to be merged with others, and whose id is new, `jobpipe.merging.decided` says: by
        its created_at. Adds with one key take turns, so no two jobs have it at any time. Where the job is due at
        another time than it said, its receipt has it; one that expires by then is `late`. No other job of an atomic add
        is refused because one is `replaced` or `not_unique`; unless it is `strict`, and a job that has to have its key
        (see `jobpipe.merging.insists`) is `not_unique`.
        """

    async def add_group(self, new: NewGroup, now: float) -> GroupReceipt:
        """Store a group with all its jobs, or nothing of it.

        The job that waits is `blocked` until the others have ended, however that was; then it is released once, with
        `Options.outcome`. With `on_failure` "cancel", the first that is not done has the others cancelled. Where the
        same group is there already, whatever its jobs have come to, nothing is stored.

        One with `open_for` has not ended before it is closed, with `close_group`, by a prune once that time is over, or
        by the first job that is not done where `on_failure` is "cancel". It may have no jobs.
        """

    async def follow(self, now: float) -> Followed:
        """Go on with what follows the ends of jobs, a step at a time: ask again at once while more is left.

        In the transaction in which a job ends, whichever verb that is, the jobs are queued that have waited for it and
        wait for nothing else, and those cancelled that needed it to be done, where it is not; also those behind them.
        What is more than a transaction should do, or is locked by somebody else, is noted and left to this.
        So it is with the job that waits for the end of a group, with those that a group has cancelled, and with the
        children of jobs that were cancelled.
        Returns also what followed in the verbs before it, those of exchanges left out: their receipts tell it.
        """

    async def sideline(self, batch: Batch, words: str) -> str | None:
        """Fail the ready job that the first claim of `batch` takes first: it raises something else than `StoreError`.

        Its error is `words`. Returns the job's id; None where there is none any more. Nothing else of `batch` is done.
        """

    async def rescue(self, node: str, now: float) -> Sequence[Rescued]:
        """Take back every job held by a node, other than `node`, whose lease has ended by `now` or that has none.

        Goes by rows, so that no job stays held for want of an owner; drops such nodes. Repeatable. Never takes from
        `node` itself, nor drops it, though its lease has lapsed: one that nobody took may be renewed.
        What becomes of each job is `jobpipe.transitions.rescued`. What becomes of the attempts of each such node is
        kept as its account, unless that cannot be written.
        """

    async def prune(self, now: float, retention: Retention) -> int:
        """Delete at most `STEP` ended jobs that are too old or too many, oldest end first; returns how many.

        Fewer than `STEP`: nothing is left to delete. Too old is what ended at or before `now` less its age. Of a queue
        that says how long its jobs are kept, those that `note_kept` has noted are deleted by that as well. Then queues
        are forgotten that have no jobs, are not paused, and have no settings, and keys that are gone, or that no job
        can have any more, some thousands at a time.
        """

    async def note_kept(self, now: float, retention: Retention) -> bool:
        """Look through ended jobs for those of queues that say how long they are kept, and note them for `prune`.

        Looks at a bounded number of jobs that have ended some seconds before `now`; returns whether more are left to be
        looked at. Where no queue says so, it only reads that. Repeatable.
        """

    async def forget_audit(self, until: float) -> int:
        """Delete acts of before a time, `STEP` at most; returns how many that were. Fewer than `STEP`: that was all."""

    async def due_schedules(
        self, now: float, limit: int = SCHEDULES, after: tuple[float, str] | None = None
    ) -> Due:
        """At most `limit` schedules that are to fire by `now`, the earliest first; paused ones never are.

        `after`: next_at and name of one, to go on behind it. What of a row cannot be read is in `Schedule.error`.
        """

    async def fire(self, firings: Sequence[Firing], now: float) -> Fired:
        """Carry firings out, each if its schedule is as the firing says: its version and its `next_at`, and not paused.

        Then `next_at` moves on and the jobs are stored, those whose ids are taken left as they are. So each firing is
        done once, whoever else does the same at this time. Where the previous job has not ended: `skip` stores nothing
        and counts the firing as missed, `replace` cancels that job, `queue` does nothing about it. A firing into a
        closed queue stores and cancels nothing, and counts as missed.
        """

    async def declare(self, declared: Sequence[Declaration], now: float, live_since: float) -> Declared:
        """Say what this node's code declares, and have schedules follow what live nodes declare. Repeatable.

        A declaration is that of a live node when a node has said so at `live_since` or later. Of several for one name
        the one counts that was said first at the latest time, so nodes that are deployed one after another do not take
        turns. It owns its name, and takes over a schedule that was put by hand. A pause by hand stays.
        """

    async def take_operation(self, node: str, now: float, until: float) -> TakenOperation:
        """An operation that has a slice to be done now, and that no other node is about: the one that waited longest.

        Until then it is this node's; a slice makes that longer.
        """

    async def slice(self, part: Slice, node: str, now: float, until: float) -> Sliced:
        """Do a slice of an operation, if it stands where it is believed to stand, and move it on, in one transaction.

        Of the jobs only those are changed that its filter means now. So each job is changed once at most, whoever else
        does the same, and a crash loses nothing.
        """

    async def note_draining(self, node: str) -> None:
        """Note that a node takes no more jobs: for people to see."""

    async def leave(self, node: str) -> None:
        """Forget a node that has drained. Held jobs, were there any, are left to rescue."""

    async def note_account(self, account: Account) -> None:
        """Keep what became of a node's attempts; `ACCOUNTS` of each node are kept, the newest."""


class ControlStore(Protocol):
    """What people ask of jobs and queues. Each verb is atomic and repeatable.

    `by`: who asks for it by hand. What has changed by that is written with it, once for each job, or for whatever else
    the verb is about (see `jobpipe.acts`). Where nothing has changed, nothing is written. None: it is no act.
    """

    async def add_by_hand(self, job: NewJob, by: By) -> Receipt:
        """Store one job as `EngineStore.add_dependents` does. Where it comes of a schedule, that is what was run."""

    async def cancel(self, ids: Sequence[str], now: float, *, by: By | None = None) -> Sequence[Change]:
        """Cancel waiting jobs; held ones become `cancelling`, which survives a restart. Refused for ended ones.

        Their children (`Options.parent`) are cancelled too, and the children of these, also of those that have ended: a
        step at a time (see `follow`).
        """

    async def retry(self, ids: Sequence[str], now: float, *, by: By | None = None) -> Sequence[Change]:
        """Queue ended jobs again, their count of attempts set back to 0. Refused for jobs that have not ended.

        A job of a group that has not ended counts as one of it again.
        A job that depends on others is blocked while one of them has not ended, and refused while one that is still
        there has ended otherwise than needed. One with a unique key takes it again, unless another job has it.
        """

    async def close_group(self, group_id: str, now: float, *, by: By | None = None) -> GroupState | None:
        """Take no more jobs into a group, as it is then; None: there is none. Repeatable.

        If all its jobs have ended, so has the group, with this or with the next `follow`.
        """

    async def promote(self, ids: Sequence[str], now: float, *, by: By | None = None) -> Sequence[Change]:
        """Make scheduled and retrying jobs due now: queued. Ready ones stay as they are.

        Refused for blocked, held and ended ones.
        """

    async def edit(
        self, ids: Sequence[str], edits: Mapping[str, Any], now: float, *, by: By | None = None
    ) -> Sequence[Change]:
        """Change fields of `NewJob` and `Options` of waiting jobs. Refused for held and ended ones.

        No job is moved into a closed queue; one that is there already may be edited.
        """

    async def delete(self, ids: Sequence[str], now: float, *, by: By | None = None) -> Sequence[Change]:
        """Delete jobs. Refused for held ones: cancel them first. For those that wait for them it is as if cancelled."""

    async def pause(
        self, queue: str, reason: str | None = None, until: float | None = None, *, by: By | None = None
    ) -> None:
        """Claim nothing from a queue from now on; it need not exist yet. Survives a restart.

        Until then it ends by itself, with the first exchange at that time or later. The last pause counts.
        """

    async def resume(self, queue: str, *, by: By | None = None) -> None:
        """Claim from a queue again."""

    async def put_queue(
        self, queue: str, settings: QueueSettings, limits: Limits | None = None, *, by: By | None = None
    ) -> None:
        """Set all of a queue's settings; it need not exist yet. Whether it is paused stays as it is.

        `limits`: as with `put_limits`; None: they stay as they are.
        An exchange under way may still store jobs in a queue that is closed just now.
        """

    async def delete_queue(self, queue: str, *, by: By | None = None) -> QueueChange:
        """Forget a queue, its pause and its settings. Refused while it has jobs, ended ones too."""

    async def begin_operation(
        self, operation: NewOperation, now: float, *, by: By | None = None
    ) -> Operation:
        """Store an operation, for the jobs that are there now. It is done by slices. Old ones that have ended go."""

    async def stop_operation(self, operation: str, now: float, *, by: By | None = None) -> Operation | None:
        """Have an operation do no more; one that has ended stays as it is. None: there is none."""

    async def put_limits(self, queue: str, limits: Limits) -> None:
        """Set what a queue allows, and each of its keys, instead of what it allowed; the queue need not exist yet.

        Counts from the next claim on: jobs that wait already are bound by it too, though some may wait a moment longer.
        Keys that stopped at failed jobs go on where `per_key.stops` is changed.
        """

    async def put_key(self, queue: str, key: str, settings: KeySettings, *, by: By | None = None) -> KeyState:
        """Set what one key of a queue may do; no job need have it yet. Stays until it is set back to what is usual."""

    async def pause_key(self, queue: str, key: str, *, by: By | None = None) -> KeyState:
        """Claim no job of a key from now on; no job need have it yet. Those that are held go on."""

    async def resume_key(self, queue: str, key: str, *, by: By | None = None) -> KeyState:
        """Claim jobs of a key again, that was paused, or has stopped at a failed job."""

    async def put_schedule(
        self, name: str, spec: Spec, job: NewJob, now: float, *, by: By | None = None
    ) -> SchedulePut:
        """Store a schedule, or change what it says; with the same content nothing changes. Refused when it is declared.

        It fires next at the first time after `now`. A paused one stays paused; `created_at` and `missed` stay.
        """

    async def pause_schedule(self, name: str, reason: str | None, *, by: By | None = None) -> Schedule | None:
        """Have a schedule fire no more; None: there is none. Repeatable: the last reason stands."""

    async def resume_schedule(self, name: str, now: float, *, by: By | None = None) -> Schedule | None:
        """Have a paused schedule fire again, from the first time after `now` on; None: there is none."""

    async def delete_schedule(self, name: str, *, by: By | None = None) -> ScheduleDeletion:
        """Delete a schedule, not its jobs. Refused while a live node declares it."""


class ReadStore(Protocol):
    """What the API reads. Never waits for a writer.

    What of a row cannot be read is left out, and named in `Job.damage`: no row keeps others from being read.
    """

    async def get(self, job_id: str) -> Job | None:
        """One job with its attempts, oldest first, and its progress."""

    async def log(
        self, job_id: str, after: int = 0, limit: int = LOG_LINES, levels: Sequence[Level] = LEVELS
    ) -> LogPage | None:
        """At most `limit` log lines of a job, of some levels, in order, behind the one numbered `after`.

        None: there is no such job.
        """

    async def summaries(self, ids: Sequence[str]) -> Sequence[Summary]:
        """What there is to tell of some hundreds of jobs, as they are now; those that are gone are left out."""

    async def ends(self, status: Status, after: EndPlace, limit: int, known: Container[EndPlace]) -> Ends:
        """Look at no more than `limit` jobs that have ended with a status, behind a place.

        Commits come out of order: an end may be written after another one that is behind it.
        """

    async def open_dependencies(self, job_id: str, limit: int) -> OpenDependencies:
        """Which jobs a job still waits for, the first of them by arrival."""

    async def obstacle(self, job: Job, now: float) -> Obstacle | None:
        """What keeps a job from running that waits for no other: the first thing that a claim would meet.

        Reads a bounded number of rows; `PLACES` jobs ahead of it are counted. What of a row cannot be read counts as
        not set. None: nothing does any more, it is not as it was read.
        """

    async def checks(self, job: Job, now: float) -> Sequence[Check] | None:
        """All that a claim looks at before it takes a job that waits, in its order; None: it is not as it was read.

        The first obstacle of them is what `obstacle` says.
        """

    async def group(self, group_id: str) -> GroupState | None:
        """One group; None: there is none, or it was forgotten some time after its end."""

    async def jobs(self, where: Filter, limit: int, before: Place | None) -> Page:
        """At most `limit` jobs (without attempts), newest first, that come after the page which ended at `before`.

        Newest by created_at, then by arrival. Looks at a bounded number of rows, for a bounded time, and holds at most
        `PAGE_BYTES`, or one larger job: a page may hold fewer than `limit` jobs although there are more. Where a text
        is searched for, nothing else that is read waits for it.
        """

    async def queues(self, limit: int = QUEUES, after: str = "") -> Sequence[QueueState]:
        """At most `limit` queues by name, behind the one named `after`.

        A queue is there while it has jobs, is paused or has settings, and a while longer: until a prune forgets it.
        """

    async def queue(self, name: str) -> QueueState | None:
        """One queue; None when there is nothing to tell of it."""

    async def operation(self, operation: str) -> Operation | None:
        """One operation."""

    async def operations(
        self, limit: int = OPERATIONS, before: tuple[float, str] | None = None
    ) -> Sequence[Operation]:
        """At most `limit` operations, the newest first, behind the one that has `before`: its created_at and its id."""

    async def audit(
        self, where: AuditFilter, limit: int = AUDIT, before: AuditPlace | None = None
    ) -> AuditPage:
        """At most `limit` acts, the newest first, behind a place.

        Looks at a bounded number of rows: with several filters a page may have fewer although there are more.
        """

    async def error_groups(
        self, limit: int = ERRORS, before: ErrorPlace | None = None, window: Window = EVER
    ) -> ErrorGroups:
        """At most `limit` groups of failed jobs, by their fingerprints, of those that failed in a time.

        That whose last job failed last comes first. Its cost grows with the number of groups, not with that of jobs.
        """

    async def error_group(self, fingerprint: str, window: Window = EVER) -> ErrorGroup | None:
        """One group; None: no job that failed in that time has the fingerprint."""

    async def gate(self, queue: str, now: float) -> GateState | None:
        """What a queue allows, and how far it is used; None where it has neither limits nor keys.

        What of its row cannot be read counts as not set.
        """

    async def keys(
        self, queue: str, limit: int = KEYS, after: str | None = None, state: KeyStanding | None = None
    ) -> Sequence[KeyState]:
        """At most `limit` keys of a queue by name, behind the one named `after`; of those that stand so, or of all.

        The jobs without a key come first, under `''`. A key is there while it has ready jobs, something is set for it,
        or its rate counts jobs of the past.
        """

    async def key(self, queue: str, key: str) -> KeyState:
        """One key of a queue, whether there is anything to tell of it or not."""

    async def schedule(self, name: str) -> Schedule | None:
        """One schedule. What of its row cannot be read is in `Schedule.error`."""

    async def schedules(self, limit: int = SCHEDULES, after: str = "") -> Sequence[Schedule]:
        """At most `limit` schedules by name, behind the one named `after`."""

    async def fired_jobs(self, name: str, limit: int) -> Sequence[FiredJob]:
        """The jobs that a schedule has made and that are still there, the newest firing first.

        They are found by their ids: `NAME@` and more.
        """

    async def overview(self, kinds: frozenset[str], queues: frozenset[str] | None = None) -> Overview:
        """What all queues come to, for a node that serves these kinds, of these queues; None: of all.

        Its cost does not grow with the number of queues, but for paused ones with ready jobs.
        """

    async def kinds(self) -> frozenset[str]:
        """Every kind that some live node serves."""

    async def served_queues(self) -> frozenset[str] | None:
        """Every queue from which some live node takes jobs; None: all of them."""

    async def unserved_queues(self, served: frozenset[str]) -> Sequence[str]:
        """The queues with ready jobs that are neither `served` nor paused, by name, `UNSERVED` at most.

        Of the first `STEP` queues with ready jobs.
        """

    async def unserved(self) -> Sequence[Unserved]:
        """The kinds of ready jobs that no live node serves, by name, `UNSERVED` at most.

        A job that became ready before the node which served it left is counted once a claim has met it; one with a key,
        at once, if it is in one of the first `STEP` keys.
        """

    async def nodes(self, limit: int = NODES, after: NodePlace | None = None) -> Sequence[NodeState]:
        """At most `limit` nodes: those with a lease first, then those that are gone; the newest first of each."""

    async def node(self, name: str) -> NodeState | None:
        """One node; None: none of this name has ever joined."""

    async def accounts(self, node: str) -> Sequence[Account]:
        """What became of the attempts of a node each time that it stopped, the newest first.

        One that cannot be read is left out.
        """

    async def ping(self) -> None:
        """Return when the store answers."""


class Store(EngineStore, ControlStore, ReadStore, Protocol):
    """All of it."""


class Told(msgspec.Struct, frozen=True):
    """One of the changes that a node tells to others while somebody listens there."""

    node: str
    number: int
    """its place among all changes that the node would tell: what others miss are gaps"""
    status: Status | Literal["deleted"] | None
    """what it came to; None: what the store says"""
    at: float


Untold = tuple[str, Status | Literal["deleted"] | None, float]
"""A change that is to be told: the id of a job, and what it came to when, as in `Told`."""


class Notification(msgspec.Struct, frozen=True):
    """Something that another node did, or a reason to look for oneself."""

    what: Literal["look", "missed", "ended", "paused", "schedules", "listeners", "told", "asked", "answered"]
    """`look`: jobs may have become ready, or held ones may have been asked to stop; `missed`: anything may have
    happened; `ended`: a job that is watched may have ended, or was deleted; `paused`: a queue may have been paused;
    `schedules`: a schedule may be due earlier than it was; `listeners`: on another node somebody may listen to all
    jobs, or nobody any more; `told`: what may have become of a job there, or, without an id, that such changes were
    left out; `asked`: the node that the id names may have been asked for a look; `answered`: some node may have
    answered"""
    id: str = ""
    told: Told | None = None


@runtime_checkable
class SharedStore(Store, Protocol):
    """A store that many nodes share. Embedded stores have nothing of this: there is nobody else."""

    clock_offset: float
    """by how many seconds the store's clock is ahead of this machine's; measured at `join` and with renewals

    Leases go by the store's clock alone: of `lease_until` only its distance from `now` counts.
    """
    listening: bool
    """whether news come at once; otherwise a `missed` every few seconds is all"""

    def changes(self) -> AbstractAsyncContextManager[AsyncIterator[Notification]]:
        """Listen to what other nodes do, as long as the context is open; one listener at a time.

        Notifications may come twice, late, forged, or not at all. After each time that the connection was lost comes a
        `missed`, and every few seconds a `look`, or a `missed` while nobody listens. So they are hints; what is true is
        in the store. Equal ones that come within milliseconds are one.
        """

    def renew_from_thread(self, node: str, now: float, lease_until: float) -> bool:
        """Renew a node's lease without its event loop, on a connection made for it that is closed again; blocks.

        For a thread, while the event loop is blocked. False: the node has no lease to renew, since another node took it
        for dead. Raises `StoreError`. Takes no longer than the lease.
        """

    async def paused(self) -> Sequence[str]:
        """The names of paused queues, at most `STEP` of them."""

    async def listen(self, node: str, *, listening: bool) -> None:
        """Say whether somebody listens to all jobs on a node. Other nodes are told; a node that leaves has nobody."""

    async def any_listening(self, node: str) -> bool:
        """Whether somebody listens to all jobs on a live node other than this one."""

    async def tell_others(self, node: str, first: int, changes: Sequence[Untold], more: int) -> int:
        """Tell other nodes of changes, numbered from `first` on; behind them `more` are left out.

        Only as many as one notification holds; those behind them are left out too. Returns how many were told.
        """

    async def watch(self, job_id: str) -> None:
        """Have every node told when the job ends. Read the job after this, so that no end falls between.

        Costs a write, so it is for jobs that somebody waits for. Repeatable; absent and ended jobs stay as they are.
        """

    async def ask_look(self, job_id: str, claim: int, node: str, now: float) -> bool:
        """Ask a node to look at a job that it runs under a claim; it is told. Repeatable.

        What was asked less than a second ago, and its answer, stay. Returns whether the node has a lease.
        """

    async def look(self, job_id: str, claim: int) -> bytes | None:
        """What a node has answered, at most 128 KiB; None: nothing yet."""

    async def asked_looks(self, node: str) -> Sequence[tuple[str, int]]:
        """What a node was asked (job, claim) and has not answered, at most `STEP` of it."""

    async def answer_look(self, job_id: str, claim: int, node: str, answer: bytes) -> None:
        """Answer what this node was asked; whoever waits for that is told. Repeatable. It is kept for a minute."""
