"""A job's life as spans: whole, in order, and named for what they were."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from jobpipe.job import ENDED, AttemptRecord, Job, NewJob, Options, Outcome, State, Status
from jobpipe.timelines import Mark, Timeline, timeline

NOW = 1_700_000_000.0


def a_job(
    status: Status,
    *attempts: AttemptRecord,
    run_at: float = 0.0,
    ended: float | None = None,
    **options: Any,
) -> Job:
    """One that was enqueued at NOW; all times are counted from there."""
    started = [one.started_at for one in attempts if one.outcome is None]
    asked = NewJob(
        id="a",
        kind="echo",
        queue="default",
        payload=b"null",
        priority=0,
        max_retries=3,
        created_at=NOW,
        run_at=NOW + run_at,
        options=Options(**options),
    )
    state = State(
        status,
        attempt=attempts[-1].number if attempts else 0,
        started_at=started[0] if started else None,
        finished_at=None if ended is None else NOW + ended,
    )
    return Job(asked, state, attempts)


def ran(
    number: int,
    due: float | None,
    started: float,
    finished: float | None,
    outcome: Outcome | None,
    claim: int = 0,
) -> AttemptRecord:
    return AttemptRecord(
        number=number,
        claim=claim or number,
        node="n",
        started_at=NOW + started,
        finished_at=None if finished is None else NOW + finished,
        outcome=outcome,
        due_at=None if due is None else NOW + due,
    )


def spans(line: Timeline) -> Sequence[tuple[str, float, float]]:
    return [(one.what, one.from_ - NOW, one.until - NOW) for one in line.spans]


RETRY, DONE, FAIL, INTERRUPTED, SNOOZE = (
    Outcome.RETRY,
    Outcome.DONE,
    Outcome.FAIL,
    Outcome.INTERRUPTED,
    Outcome.SNOOZE,
)


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (a_job(Status.SCHEDULED, run_at=50), [("not_due", 0, 20)]),
        (a_job(Status.QUEUED, run_at=5), [("not_due", 0, 5), ("waiting", 5, 20)]),
        (a_job(Status.BLOCKED, depends_on=("b",)), [("blocked", 0, 20)]),
        (a_job(Status.EXPIRED, ended=9), [("waiting", 0, 9)]),
        (
            a_job(Status.RUNNING, ran(1, 4, 6, None, None), run_at=4, depends_on=("b",)),
            [("blocked", 0, 4), ("waiting", 4, 6), ("running", 6, 20)],
        ),
        (
            a_job(Status.DONE, ran(1, 0, 1, 2, RETRY), ran(2, 7, 8, 9, DONE), run_at=7, ended=9),
            [("waiting", 0, 1), ("running", 1, 2), ("backoff", 2, 7), ("waiting", 7, 8), ("running", 8, 9)],
        ),
        (
            a_job(Status.RETRYING, ran(1, 0, 0, 2, RETRY), run_at=30),
            [("running", 0, 2), ("backoff", 2, 20)],
        ),
        (
            a_job(Status.QUEUED, ran(1, 0, 0, 12, INTERRUPTED)),
            [("running", 0, 6), ("dead", 6, 12), ("waiting", 12, 20)],
        ),
        (
            a_job(Status.RUNNING, ran(1, 0, 0, 2, FAIL), ran(1, 9, 10, None, None, claim=2), run_at=9),
            [("running", 0, 2), ("ended", 2, 9), ("waiting", 9, 10), ("running", 10, 20)],
        ),
        (
            a_job(Status.DONE, ran(1, None, 1, 2, RETRY), ran(2, None, 5, 6, DONE), ended=6),
            [("waiting", 0, 1), ("running", 1, 2), ("backoff", 2, 5), ("running", 5, 6)],
        ),
        (
            a_job(
                Status.DONE,
                *(ran(n, n, n, n + 0.5, RETRY) for n in range(101, 200)),
                ran(200, 200, 200, 201, DONE),
                ended=201,
            ),
            [("forgotten", 0, 101), ("running", 101, 101.5), ("backoff", 101.5, 102)],
        ),
    ],
)
def test_spans_say_what_the_job_waited_for(job: Job, expected: Sequence[tuple[str, float, float]]) -> None:
    line = timeline(
        job, NOW + 20, {1: NOW + 6} if job.attempts[:1] and job.attempts[0].outcome is INTERRUPTED else {}
    )

    assert spans(line)[: len(expected)] == expected
    assert len(line.spans) == len(expected) or expected[0][0] == "forgotten"
    assert not any(one.clock_skew for one in line.spans)


def test_a_span_whose_times_cannot_be_is_moved_and_says_so() -> None:
    """A job that starts before it was enqueued, on a machine whose clock is behind; the next attempt is fine."""
    job = a_job(Status.DONE, ran(1, 0, -5, 3, RETRY), ran(2, 4, 5, 2, RETRY), ran(3, 6, 7, 8, DONE), ended=8)
    line = timeline(job, NOW + 20, {})

    assert spans(line) == [
        ("running", 0, 3),
        ("backoff", 3, 4),
        ("waiting", 4, 5),
        ("running", 5, 5),
        ("backoff", 5, 6),
        ("waiting", 6, 7),
        ("running", 7, 8),
    ]
    assert [one.clock_skew for one in line.spans] == [True, False, False, True, False, False, False]


def test_marks_are_what_lies_ahead_and_what_was_done_by_hand() -> None:
    job = a_job(
        Status.RUNNING, ran(1, 0, 0, 2, FAIL), ran(1, 9, 10, None, None, claim=2), run_at=9, deadline=NOW + 99
    )
    line = timeline(replace(job, original=job.asked), NOW + 20, {}, timeout=30.0)
    waits = timeline(replace(a_job(Status.SCHEDULED, run_at=50)), NOW + 20, {}).marks

    assert line.marks == [
        Mark("enqueued", NOW),
        Mark("retried", NOW + 9),
        Mark("timeout", NOW + 40),
        Mark("deadline", NOW + 99),
        Mark("edited", None),
    ]
    assert waits == [Mark("enqueued", NOW), Mark("due", NOW + 50)]


times = st.integers(-50, 100).map(lambda seconds: NOW + seconds / 2) | st.sampled_from(
    [NOW, NOW + 20, math.nan, math.inf, -1e18]
)
attempts = st.builds(
    AttemptRecord,
    number=st.integers(1, 4),
    claim=st.integers(1, 9),
    node=st.none(),
    started_at=st.none() | times,
    finished_at=st.none() | times,
    outcome=st.none() | st.sampled_from(Outcome),
    due_at=st.none() | times,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    status=st.sampled_from(Status),
    attempts=st.lists(attempts, max_size=4),
    created_at=times,
    run_at=times,
    finished_at=st.none() | times,
    deaths=st.dictionaries(st.integers(1, 9), times),
)
def test_spans_cover_the_whole_life_without_a_gap(
    status: Status,
    attempts: list[AttemptRecord],
    created_at: float,
    run_at: float,
    finished_at: float | None,
    deaths: dict[int, float],
) -> None:
    """Whatever stands in the rows: none is negative, none overlaps, and together they are all of it."""
    job = a_job(status, *attempts)
    job = replace(
        job,
        asked=replace(job.asked, created_at=created_at, run_at=run_at),
        state=replace(job.state, finished_at=finished_at),
    )
    line = timeline(job, NOW + 20, deaths)
    begin = created_at if math.isfinite(created_at) else NOW + 20

    assert all(math.isfinite(one.from_) and one.from_ <= one.until for one in line.spans)
    assert all(one.until == after.from_ for one, after in zip(line.spans, line.spans[1:], strict=False))
    if line.spans:
        assert line.spans[0].from_ == begin
        if status not in ENDED:
            assert line.spans[-1].until == max(begin, NOW + 20)
        elif finished_at is not None and math.isfinite(finished_at):
            assert line.spans[-1].until == max(begin, finished_at)
    assert [one.attempt for one in line.spans if one.what == "running"] == attempts
