"""What goes over the wire: times, and how a job is shown."""

import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from jobpipe.api.answers import encode
from jobpipe.api.schemas import TRACEBACKS, EnqueueRequest, job_view, rfc3339
from jobpipe.handlers.registry import Registry
from jobpipe.job import (
    LATEST,
    AttemptRecord,
    Backoff,
    Debounce,
    Job,
    JobError,
    NewJob,
    Options,
    Outcome,
    Progress,
    State,
    Status,
    Throttle,
    Unique,
)

JOB = Job(
    NewJob(
        id="a",
        kind="echo",
        queue="default",
        priority=0,
        payload=b'{"x":1}',
        max_retries=3,
        created_at=1_700_000_000.0,
        run_at=1_700_000_000.25,
        options=Options(timeout=1.5, backoff=Backoff(), on_crash="fail", tags=("a", "b")),
    ),
    State(
        Status.DONE,
        attempt=1,
        started_at=1_700_000_001.0,
        finished_at=1_700_000_002.0,
        result=b"[2]",
        error=JobError("Oops", "it broke", "Traceback"),
    ),
    attempts=(AttemptRecord(number=1, claim=7, node="n1", started_at=1_700_000_001.0, outcome=Outcome.DONE),),
    progress=Progress(0.4, "page 4 of 10", 1_700_000_001.5),
)


def shown(job, **how):
    return json.loads(encode(job_view(job, Registry([]), **how)))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000.123, "2023-11-14T22:13:20.123Z"),
        (1_700_000_000.999, "2023-11-14T22:13:20.999Z"),
        (-62_135_596_800.0, "0001-01-01T00:00:00.000Z"),
        (LATEST, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_rfc_3339_in_utc_with_milliseconds(seconds, text):
    assert rfc3339(seconds) == text


@given(st.integers(0, int(LATEST) * 1000))
def test_a_time_survives_its_way_through_json(milliseconds):
    told = rfc3339(round(milliseconds / 1000, 3))

    since = datetime.fromisoformat(told) - datetime(1970, 1, 1, tzinfo=UTC)
    assert since == timedelta(milliseconds=milliseconds)


def test_a_job_is_shown_whole():
    assert shown(JOB) == {
        "id": "a",
        "kind": "echo",
        "queue": "default",
        "status": "done",
        "priority": 0,
        "payload": {"x": 1},
        "result": [2],
        "error": {"type": "Oops", "message": "it broke", "traceback": "Traceback"},
        "progress": {"fraction": 0.4, "message": "page 4 of 10", "at": "2023-11-14T22:13:21.500Z"},
        "attempt": 1,
        "max_retries": 3,
        "timeout": 1.5,
        "backoff": {"base": 1.0, "factor": 2.0, "cap": 3600.0, "jitter": "full"},
        "on_crash": "fail",
        "tags": ["a", "b"],
        "created_at": "2023-11-14T22:13:20.000Z",
        "run_at": "2023-11-14T22:13:20.250Z",
        "started_at": "2023-11-14T22:13:21.000Z",
        "finished_at": "2023-11-14T22:13:22.000Z",
        "expires_at": None,
        "attempts": [
            {
                "number": 1,
                "claim": 7,
                "node": "n1",
                "started_at": "2023-11-14T22:13:21.000Z",
                "finished_at": None,
                "outcome": "done",
                "error": None,
            }
        ],
    }


def test_in_a_list_a_job_is_shown_without_its_content_and_attempts():
    assert set(shown(JOB)) - set(shown(JOB, content=False, attempts=False)) == {
        "payload",
        "result",
        "progress",
        "attempts",
    }
    assert set(shown(JOB)) - set(shown(JOB, attempts=False)) == {"progress", "attempts"}


def test_a_job_that_said_nothing_is_shown_with_null():
    assert shown(replace(JOB, progress=None))["progress"] is None


def test_a_job_without_a_result_is_shown_with_null():
    job = replace(JOB, state=replace(JOB.state, result=None))

    assert shown(job)["result"] is None


@pytest.mark.parametrize(
    "content", [b"1e2", b'"\xc3\xa9"', b"123456789012345678901234567890", b'{"b":1,"a":2}']
)
def test_a_payload_is_shown_byte_by_byte_as_it_is_stored(content):
    job = replace(JOB, asked=replace(JOB.asked, payload=content), state=replace(JOB.state, result=content))

    assert encode(job_view(job, Registry([]))).count(content) == 2


def test_a_request_can_say_what_a_job_shows():
    """What may be asked for is shown again under the same name."""
    asked = {field.encode_name for field in msgspec.structs.fields(EnqueueRequest)}

    options = replace(
        JOB.asked.options,
        depends_on=("b",),
        needs="ended",
        key="k",
        unique=Unique("k", ("kind",), ("queued",), 5.0, "reject"),
        throttle=Throttle("k", 5.0, trailing=True),
        debounce=Debounce("k", 5.0, 50.0),
        deadline=1_700_000_000.0,
        group="g",
    )
    after = shown(replace(JOB, asked=replace(JOB.asked, options=options)))

    assert asked - set(after) == {"delay"}
    assert {name: after[name] for name in set(after) - set(shown(JOB))} == {
        "depends_on": ["b"],
        "needs": "ended",
        "key": "k",
        "group": "g",
        "unique": {"key": "k", "over": ["kind"], "while": ["queued"], "for": 5.0, "on_conflict": "reject"},
        "throttle": {"key": "k", "every": 5.0, "trailing": True},
        "debounce": {"key": "k", "wait": 5.0, "max_wait": 50.0},
        "deadline": "2023-11-14T22:13:20.000Z",
    }


@pytest.mark.parametrize(
    ("size", "shown_whole"), [(7998, 100), (TRACEBACKS // 50 - 2, 50), (TRACEBACKS // 50 - 1, 49)]
)
def test_tracebacks_are_shown_of_the_newest_attempts_as_many_as_there_is_room_for(size, shown_whole):
    records = tuple(
        AttemptRecord(
            number=number,
            claim=number,
            node="n1",
            started_at=1_700_000_001.0,
            outcome=Outcome.RETRY,
            error=JobError("E", "m", "x" * size),
        )
        for number in range(1, 101)
    )
    attempts = shown(replace(JOB, attempts=records))["attempts"]

    assert [one["number"] for one in attempts] == list(range(1, 101))
    assert [one["error"]["traceback"] is not None for one in attempts] == [
        number > 100 - shown_whole for number in range(1, 101)
    ]
    assert {one["error"]["message"] for one in attempts} == {"m"}
    assert sum(len(one["error"]["traceback"] or "") for one in attempts) <= TRACEBACKS


def test_a_traceback_counts_as_it_is_written():
    """A control character takes six bytes in JSON."""
    record = AttemptRecord(
        number=1, claim=1, node=None, started_at=1.0, error=JobError("E", "m", "\0" * (TRACEBACKS // 6))
    )
    one, two = (shown(replace(JOB, attempts=(record,) * count)) for count in (1, 2))

    assert [attempt["error"]["traceback"] is None for attempt in one["attempts"]] == [False]
    assert [attempt["error"]["traceback"] is None for attempt in two["attempts"]] == [True, False]
