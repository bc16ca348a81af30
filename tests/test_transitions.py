"""How a job changes outside of a run."""

import pytest
from msgspec.structs import replace

from jobpipe.job import (
    ACTIVE,
    ENDED,
    FOLLOWS,
    WAITING,
    AttemptRecord,
    Job,
    JobError,
    NewJob,
    Options,
    Outcome,
    State,
    Status,
)
from jobpipe.transitions import (
    ForbiddenError,
    Stored,
    cancelled,
    edited,
    expired,
    follows,
    forsaken,
    promoted,
    released,
    rescued,
    retried,
)

NOW = 1_700_000_000.0
EARLIER = AttemptRecord(
    number=1, claim=1, node="n", started_at=NOW - 9, finished_at=NOW - 8, outcome=Outcome.RETRY
)


def stored(status: Status, *, held: bool = False, damage: tuple[str, ...] = (), **fields: object) -> Stored:
    """A job with a history in a status, asked for as usual but for some fields."""
    asked = NewJob(
        id="a",
        kind="echo",
        queue="default",
        payload=b'"data"',
        priority=0,
        max_retries=3,
        created_at=NOW - 10,
        run_at=NOW - 7,
    )
    state = State(
        status,
        attempt=2,
        claim=5,
        started_at=NOW - 5,
        finished_at=NOW - 1 if status in ENDED else None,
        result=b"1" if status is Status.DONE else None,
        error=JobError("Oops", "no"),
    )
    job = Job(replace(asked, **fields), state, (EARLIER,), damage)
    return Stored(job=job, seq=7, node="n", held=held, size=99 if status in ENDED else 0)


@pytest.mark.parametrize("status", sorted(WAITING))
def test_a_waiting_job_that_is_cancelled_has_ended(status: Status) -> None:
    before = stored(status)
    after = cancelled(before, NOW)

    assert after is not None
    assert after == replace(
        before,
        job=replace(before.job, state=replace(before.job.state, status=Status.CANCELLED, finished_at=NOW)),
        size=len(before.job.asked.payload),
    )


@pytest.mark.parametrize("status", sorted(ACTIVE | {Status.QUEUED}))
def test_a_held_job_that_is_cancelled_is_asked_to_stop(status: Status) -> None:
    """Nothing else of it changes, and to ask twice is no other than once."""
    before = stored(status, held=True)
    after = cancelled(before, NOW)

    assert after is not None
    state = replace(before.job.state, status=Status.CANCELLING)
    assert after == replace(before, job=replace(before.job, state=state))
    assert cancelled(after, NOW + 1) == after


@pytest.mark.parametrize("status", sorted(ENDED))
def test_an_ended_job_is_retried_and_nothing_else(status: Status) -> None:
    """As it was asked, due now; the attempt that ended it well is kept as those before it are."""
    before = stored(status)
    after = retried(before, NOW)

    assert cancelled(before, NOW) is None
    assert after is not None
    again = after.job
    assert (again.status, again.state.attempt, again.asked.run_at, after.size) == (Status.QUEUED, 0, NOW, 0)
    assert (again.state.started_at, again.state.finished_at, again.state.result, again.state.error) == (
        None,
        None,
        None,
        None,
    )
    last = [EARLIER.outcome, Outcome.DONE] if status is Status.DONE else [EARLIER.outcome]
    assert [attempt.outcome for attempt in again.attempts] == last


@pytest.mark.parametrize("status", sorted(set(Status) - ENDED))
def test_a_job_that_has_not_ended_is_not_retried(status: Status) -> None:
    assert retried(stored(status), NOW) is None


@pytest.mark.parametrize(
    ("expires_at", "left"), [(None, None), (NOW - 1, None), (NOW, None), (NOW + 1, NOW + 1)]
)
def test_an_expiry_that_is_over_is_forgotten_by_a_retry(expires_at: float | None, left: float | None) -> None:
    after = retried(stored(Status.EXPIRED, expires_at=expires_at), NOW)

    assert after is not None
    assert after.job.asked.expires_at == left


@pytest.mark.parametrize("status", [Status.SCHEDULED, Status.RETRYING])
def test_a_job_that_waits_for_its_time_is_due_when_it_is_promoted(status: Status) -> None:
    """Its attempts, its last error and what its request said stay."""
    before = stored(status, run_at=NOW + 9, options=Options(delay=19.0))
    after = promoted(before, NOW)

    assert after is not None
    follows(before, after)
    due = Job(
        replace(before.job.asked, run_at=NOW),
        replace(before.job.state, status=Status.QUEUED),
        before.job.attempts,
    )
    assert after == replace(before, job=due)


def test_a_ready_job_that_is_promoted_keeps_its_place() -> None:
    before = stored(Status.QUEUED)

    assert promoted(before, NOW) == before


@pytest.mark.parametrize(
    "before",
    [
        *(stored(status) for status in sorted(ACTIVE | ENDED)),
        *(stored(status, held=True) for status in sorted(ACTIVE | {Status.QUEUED})),
    ],
    ids=lambda before: f"{before.job.status}-{before.held}",
)
def test_a_job_that_is_held_or_has_ended_is_not_promoted(before: Stored) -> None:
    assert promoted(before, NOW) is None


@pytest.mark.parametrize("status", sorted(WAITING))
def test_a_waiting_job_is_asked_for_otherwise(status: Status) -> None:
    """How it stands is as before, and what was asked first is kept, however often it is edited."""
    before = stored(status, options=Options(timeout=1.0, tags=("t",)))
    after = edited(before, {"payload": b"1", "queue": "x", "expires_at": NOW + 1, "tags": ("u",)}, NOW)
    assert after is not None
    again = edited(after, {"payload": before.job.asked.payload, "timeout": None}, NOW)

    assert after == replace(
        before,
        job=Job(
            replace(
                before.job.asked,
                payload=b"1",
                queue="x",
                expires_at=NOW + 1,
                options=Options(timeout=1.0, tags=("u",)),
            ),
            before.job.state,
            before.job.attempts,
            original=before.job.asked,
        ),
    )
    assert again is not None
    assert again.job.asked.options == Options(tags=("u",))
    assert again.job.original == before.job.asked


@pytest.mark.parametrize("status", sorted(WAITING - {Status.BLOCKED}))
@pytest.mark.parametrize("later", [-1, 0, 1])
def test_a_new_time_makes_a_job_ready_or_wait(status: Status, later: int) -> None:
    """One that waits for its next attempt waits for that, not as if it had never run."""
    after = edited(stored(status), {"run_at": NOW + later}, NOW)

    assert after is not None
    follows(stored(status), after)
    ahead = Status.RETRYING if status is Status.RETRYING else Status.SCHEDULED
    assert (after.job.asked.run_at, after.job.status) == (NOW + later, ahead if later > 0 else Status.QUEUED)


def test_an_edit_that_changes_nothing_leaves_a_job_as_it_was() -> None:
    before = stored(Status.SCHEDULED)

    assert edited(before, {}, NOW) == edited(before, {"priority": 0, "timeout": None}, NOW) == before


@pytest.mark.parametrize(
    "before",
    [
        *(stored(status) for status in sorted(ACTIVE | ENDED)),
        *(stored(status, held=True) for status in sorted(ACTIVE | {Status.QUEUED})),
        stored(Status.QUEUED, damage=("its options cannot be read",)),
    ],
    ids=lambda before: f"{before.job.status}-{before.held}-{before.job.damage}",
)
def test_a_job_that_is_held_or_has_ended_or_is_damaged_is_not_edited(before: Stored) -> None:
    assert edited(before, {"priority": 1}, NOW) is None


@pytest.mark.parametrize("status", sorted(Status))
def test_what_nobody_holds_is_not_rescued(status: Status) -> None:
    assert rescued(stored(status), NOW) is None


@pytest.mark.parametrize("status", [Status.QUEUED, *sorted(ACTIVE)])
def test_a_rescue_lets_go_and_keeps_the_broken_attempt(status: Status) -> None:
    """Of a job that had begun; one that had not waits again as it was."""
    before = stored(status, held=True)
    after = rescued(before, NOW)

    assert after is not None
    assert (after.held, after.rescued) == (False, 1)
    broken = {Status.CANCELLING: [Outcome.CANCELLED], Status.RUNNING: [Outcome.INTERRUPTED]}
    assert [attempt.outcome for attempt in after.job.attempts[1:]] == broken.get(status, [])
    assert all(attempt.finished_at == NOW for attempt in after.job.attempts[1:])


@pytest.mark.parametrize("status", sorted(Status))
@pytest.mark.parametrize("then", sorted(Status))
def test_a_change_of_status_is_against_the_table_or_not(status: Status, then: Status) -> None:
    before, after = stored(status), stored(then)
    if then in FOLLOWS[status] | {status}:
        follows(before, after)
    else:
        with pytest.raises(ForbiddenError, match=f"job a: {then} may not follow {status}"):
            follows(before, after)


@pytest.mark.parametrize("status", sorted(Status))
@pytest.mark.parametrize("held", [False, True])
def test_no_transition_is_against_the_table(status: Status, held: bool) -> None:
    before = stored(status, held=held)
    for transition in (cancelled, retried, rescued):
        after = transition(before, NOW)
        if after is not None and not (
            held and status not in ACTIVE | {Status.QUEUED}
        ):  # else no node holds it
            follows(before, after)


def test_what_a_damaged_row_becomes_is_sound_again() -> None:
    """Its status is made up."""
    before = stored(Status.EXPIRED, damage=("its status cannot be read",))
    follows(before, stored(Status.RUNNING))


@pytest.mark.parametrize("later", [-1, 0, 1])
def test_a_job_that_waits_for_nothing_more_is_due_now_or_at_its_time(later: int) -> None:
    """One that was due before is due from now on: it has not waited for a worker until then."""
    before = stored(Status.BLOCKED)
    asked = replace(before.job.asked, run_at=NOW + later)
    before = replace(before, job=replace(before.job, asked=asked))
    after = released(before, NOW)

    assert after is not None
    follows(before, after)
    assert (after.job.status, after.job.asked.run_at) == (
        (Status.SCHEDULED, NOW + 1) if later > 0 else (Status.QUEUED, NOW)
    )


def test_a_job_that_waits_in_vain_is_cancelled_with_the_reason() -> None:
    before = stored(Status.BLOCKED)
    after = forsaken(before, NOW, "why")

    assert after is not None
    follows(before, after)
    assert (after.job.status, after.job.state.finished_at) == (Status.CANCELLED, NOW)
    assert after.job.state.error == JobError("DependencyFailed", "why")
    assert after.size == len(before.job.asked.payload)


@pytest.mark.parametrize("status", sorted(set(Status) - {Status.BLOCKED}))
def test_only_a_blocked_job_is_released_or_forsaken(status: Status) -> None:
    assert released(stored(status), NOW) is None
    assert forsaken(stored(status), NOW, "why") is None


@pytest.mark.parametrize("status", sorted(Status))
def test_a_job_expires_while_it_waits_and_nobody_holds_it(status: Status) -> None:
    before = stored(status)
    times = [None, NOW + 1, NOW]
    jobs = [
        replace(before, job=replace(before.job, asked=replace(before.job.asked, expires_at=at)))
        for at in times
    ]
    never, later, now = [expired(job, NOW) for job in jobs]

    assert never is later is None
    assert (now is not None) == (status in WAITING and not before.held)
    if now is not None:
        follows(before, now)
        assert (now.job.status, now.job.state.finished_at) == (Status.EXPIRED, NOW)
    held = replace(jobs[-1], held=True)
    assert expired(held, NOW) is None


def test_a_retried_job_waits_for_others_again_where_it_has_to() -> None:
    before = stored(Status.CANCELLED)
    after = retried(before, NOW, blocked=True)

    assert after is not None
    follows(before, after)
    assert after.job.state == replace(State(Status.BLOCKED), claim=before.job.state.claim)
