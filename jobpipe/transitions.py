"""How a job changes outside of a run. Pure: each transition takes a job as it is stored and returns what it becomes.

A transition returns None where the job's status does not allow it. What follows from the change (counts, tags,
notifications) is the store's business, which writes nothing that `jobpipe.job.FOLLOWS` forbids.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from jobpipe.errors import JobpipeError
from jobpipe.fingerprints import marked
from jobpipe.job import (
    ACTIVE,
    ENDED,
    FOLLOWS,
    WAITING,
    AttemptRecord,
    GroupOutcome,
    Job,
    JobError,
    NewJob,
    Outcome,
    State,
    Status,
)

MOST_RESCUED = 1_000_000
"""How far rescues of a job are counted; a damaged count must not grow beyond what a column holds."""

DIED = JobError("NodeDied", "the node died during the attempt")
DIED_LAST = JobError("NodeDied", "the node died during the last attempt")
PAST_DEADLINE = JobError("DeadlineExceeded", "the job was not done by its deadline")
DIED_FOR_GOOD = JobError("NodeDied", 'the node died during the attempt, and "on_crash" is "fail"')


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it is stored, with what only its store knows. Its `attempts` are those that have ended."""

    job: Job
    seq: int
    node: str | None = None
    """the name of the node that claimed the job last"""
    held: bool = False
    rescued: int = 0
    """how often a node died while it held the job"""
    size: int = 0
    """bytes of payload, result and error, of a job that has ended"""
    watched: bool = False
    """whether somebody on another node waits for the end of the job"""
    followed: bool = False
    """whether other jobs may wait for the end of the job"""


class ForbiddenError(JobpipeError):
    """A job was to change from one status to another that may not follow: a fault of jobpipe."""


def follows(before: Stored, after: Stored) -> None:
    """Raise `ForbiddenError` where a change of status is against the table. To stay where it is, is allowed."""
    one, next_one = before.job.status, after.job.status
    # The status of a damaged row is made up: whatever it becomes is sound again.
    if next_one not in FOLLOWS[one] | {one} and not before.job.damage:
        raise ForbiddenError(f"job {before.job.id}: {next_one} may not follow {one}")


def cancelled(stored: Stored, now: float) -> Stored | None:
    """Asked to stop: a waiting job ends at once, a held one when its attempt has been cleaned up."""
    if stored.job.status in ENDED:
        return None
    if stored.held:
        return _standing(stored, status=Status.CANCELLING)
    return _ended(stored, Status.CANCELLED, now)


def retried(stored: Stored, now: float, *, blocked: bool = False) -> Stored | None:
    """Queued again by hand, once it has ended, with all its attempts before it; its result and error are forgotten.

    And so are an expires_at and a deadline that have passed; a request for what was asked first is still the same.
    `blocked`: it waits for other jobs, as it did at first.
    """
    job, asked = stored.job, stored.job.asked
    if job.status not in ENDED:
        return None
    due = replace(asked, run_at=now)
    if asked.options.deadline is not None and asked.options.deadline <= now:
        due = replace(due, options=replace(asked.options, deadline=None))
    over = asked.expires_at is not None and asked.expires_at <= now
    if over:
        due = replace(due, expires_at=due.options.deadline)
    again = replace(
        job,
        asked=due,
        original=job.original or (asked if over else None),
        state=State(Status.BLOCKED if blocked else Status.QUEUED, claim=job.state.claim),
        attempts=(*job.attempts, *_success(stored)),
    )
    return replace(stored, job=again, size=0)


def promoted(stored: Stored, now: float) -> Stored | None:
    """Due now instead of later, while it waits and nobody holds it; a job that is ready already stays as it is.

    Its request still says when it was to run (`Options.delay`, `Options.run_at`), so that it compares as the same.
    """
    job = stored.job
    if stored.held or job.status not in WAITING or job.status is Status.BLOCKED:
        return None
    if job.status is Status.QUEUED:
        return stored
    due = replace(job, asked=replace(job.asked, run_at=now), state=replace(job.state, status=Status.QUEUED))
    return replace(stored, job=due)


def edited(stored: Stored, changes: Mapping[str, Any], now: float) -> Stored | None:
    """Asked for otherwise, while it waits and nobody holds it: `changes` are fields of `NewJob` and `Options`.

    It expires at its deadline at the latest, whatever the changes say.
    """
    job, asked, status = stored.job, stored.job.asked, stored.job.status
    if stored.held or status not in WAITING or job.damage:
        return None
    named = {name: value for name, value in changes.items() if name in NewJob.__struct_fields__}
    if "expires_at" in named and asked.options.deadline is not None:
        expires_at, deadline = named["expires_at"], asked.options.deadline
        named["expires_at"] = deadline if expires_at is None else min(expires_at, deadline)
    options = {name: value for name, value in changes.items() if name not in named}
    asked = replace(asked, **named, options=replace(asked.options, **options))
    return _asked_anew(stored, asked, now, moved="run_at" in changes)


def replaced(stored: Stored, new: NewJob, run_at: float, now: float) -> Stored | None:
    """Asked for as a later request says, while it waits and nobody holds it.

    It stays the same job, of the same queue and kind, and behind the same jobs. A retry that is due later stays so.
    """
    job, asked = stored.job, stored.job.asked
    if stored.held or job.status not in WAITING or job.damage:
        return None
    options = replace(
        new.options,
        depends_on=asked.options.depends_on,
        needs=asked.options.needs,
        schedule=asked.options.schedule,
    )
    later = replace(
        new,
        id=asked.id,
        kind=asked.kind,
        queue=asked.queue,
        created_at=asked.created_at,
        run_at=max(run_at, asked.run_at) if job.status is Status.RETRYING else run_at,
        options=options,
    )
    return _asked_anew(stored, later, now, moved=True)


def _asked_anew(stored: Stored, asked: NewJob, now: float, *, moved: bool) -> Stored:
    """A waiting job of which something else is asked; `moved`: also when it is due. What was asked first is kept."""
    job, status = stored.job, stored.job.status
    ready = status is Status.QUEUED or asked.run_at <= now
    if moved and ready and status is not Status.BLOCKED:
        status = Status.SCHEDULED if asked.run_at > now else Status.QUEUED
    original = job.original or (None if asked == job.asked else job.asked)
    state = replace(job.state, status=status)
    return replace(stored, job=replace(job, asked=asked, state=state, original=original))


def expired(stored: Stored, now: float) -> Stored | None:
    """Over, since it still waited at its expires_at; failed, where that is its deadline."""
    expires_at = stored.job.asked.expires_at
    if stored.held or stored.job.status not in WAITING or expires_at is None or expires_at > now:
        return None
    if not stored.job.asked.waits_until_its_deadline:
        return _ended(stored, Status.EXPIRED, now)
    after = _ended(stored, Status.FAILED, now)
    error = marked(PAST_DEADLINE, stored.job.asked.kind)
    return replace(after, job=replace(after.job, state=replace(after.job.state, error=error)))


def released(stored: Stored, now: float) -> Stored | None:
    """Due now, or at its run_at, once the jobs that it waited for have ended."""
    job = stored.job
    if job.status is not Status.BLOCKED:
        return None
    later = job.asked.run_at > now
    asked = job.asked if later else replace(job.asked, run_at=now)
    state = replace(job.state, status=Status.SCHEDULED if later else Status.QUEUED)
    return replace(stored, job=replace(job, asked=asked, state=state))


def forsaken(stored: Stored, now: float, words: str) -> Stored | None:
    """Cancelled, since a job that it needed did not end as needed; `words` say which, and how it ended."""
    if stored.job.status is not Status.BLOCKED:
        return None
    after = _ended(stored, Status.CANCELLED, now)
    state = replace(after.job.state, error=JobError("DependencyFailed", words))
    return replace(after, job=replace(after.job, state=state))


def called_back(stored: Stored, now: float, outcome: GroupOutcome) -> Stored | None:
    """Released, since the group has ended for which it waited; it is told how.

    Its first request, which did not say that, is kept to be compared with.
    """
    after = released(stored, now)
    if after is None or stored.job.damage:
        return after
    asked = replace(after.job.asked, options=replace(after.job.asked.options, outcome=outcome))
    return replace(
        after, job=replace(after.job, asked=asked, original=stored.job.original or stored.job.asked)
    )


def given_up(stored: Stored, now: float, words: str) -> Stored | None:
    """Asked to stop, since another job of its group did not succeed; `words` say so where it ends at once."""
    after = cancelled(stored, now)
    if after is None or after.job.status not in ENDED:
        return after
    state = replace(after.job.state, error=JobError("GroupFailed", words))
    return replace(after, job=replace(after.job, state=state))


def rescued(stored: Stored, now: float) -> Stored | None:
    """Taken back from a node that died while it held the job.

    A queued job had not begun as far as anyone knows and simply waits again. The broken attempt of a running one
    counts: it runs again while retries are left, unless it asked not to. Where only its handler knows how many those
    are, it is queued, and the node that claims it decides.
    """
    if not stored.held:
        return None
    job = stored.job
    status, error = _after_crash(job)
    attempts = (*job.attempts, *_broken(stored, status, error, now))
    back = _standing(stored, status=status, error=error or job.state.error)
    back = _ended(back, status, now) if status in ENDED else back
    return replace(
        back,
        job=replace(back.job, attempts=attempts),
        held=False,
        rescued=min(stored.rescued, MOST_RESCUED) + 1,
    )


def _after_crash(job: Job) -> tuple[Status, JobError | None]:
    retries = job.asked.max_retries
    match job.status:
        case Status.CANCELLING:
            return Status.CANCELLED, None
        case Status.RUNNING if job.asked.options.on_crash == "fail":
            return Status.FAILED, marked(DIED_FOR_GOOD, job.asked.kind)
        case Status.RUNNING if retries is not None and job.state.attempt > retries:
            return Status.FAILED, marked(DIED_LAST, job.asked.kind)
        case Status.RUNNING:
            return Status.QUEUED, marked(DIED, job.asked.kind)
        case _:
            return Status.QUEUED, None


def begun(stored: Stored) -> bool:
    """Whether an attempt of a held job is known to have begun."""
    return stored.held and stored.job.status in ACTIVE and stored.job.state.started_at is not None


def _broken(stored: Stored, status: Status, error: JobError | None, now: float) -> tuple[AttemptRecord, ...]:
    """The attempt that a crash ended, if one had begun."""
    if not begun(stored):
        return ()
    outcome = Outcome.CANCELLED if status is Status.CANCELLED else Outcome.INTERRUPTED
    return (_record(stored, outcome, now, error),)


def _success(stored: Stored) -> tuple[AttemptRecord, ...]:
    """The attempt that ended a job well: until now it stood in the job's own row alone."""
    job = stored.job
    if job.status is not Status.DONE:
        return ()
    ended_at = job.asked.created_at if job.state.finished_at is None else job.state.finished_at
    return (_record(stored, Outcome.DONE, ended_at),)


def _record(
    stored: Stored, outcome: Outcome, finished_at: float, error: JobError | None = None
) -> AttemptRecord:
    state = stored.job.state
    return AttemptRecord(
        number=state.attempt,
        claim=state.claim,
        node=stored.node,
        started_at=state.started_at,
        finished_at=finished_at,
        outcome=outcome,
        error=error,
        due_at=stored.job.asked.run_at,
    )


def _ended(stored: Stored, status: Status, now: float) -> Stored:
    after = _standing(stored, status=status, finished_at=now)
    return replace(after, size=len(stored.job.asked.payload))


def _standing(stored: Stored, **changes: object) -> Stored:
    """The same job, which stands otherwise."""
    state = replace(stored.job.state, **changes)
    return replace(stored, job=replace(stored.job, state=state))
