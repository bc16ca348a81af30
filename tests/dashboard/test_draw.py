"""The geometry of a lifeline: nothing outside, nothing backwards, nothing that cannot be seen."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from jobpipe.dashboard.draw import LEAST, lifeline, rows, share, stretches
from jobpipe.job import AttemptRecord, Job, NewJob, Options, Outcome, State, Status


def job(*attempts, status=Status.DONE, created=100.0, run_at=100.0, finished=None, **options):
    asked = NewJob(
        id="a",
        kind="k",
        queue="q",
        payload=b"1",
        priority=0,
        max_retries=3,
        created_at=created,
        run_at=run_at,
        options=Options(**options),
    )
    return Job(asked, State(status, attempt=len(attempts), finished_at=finished), tuple(attempts))


def run(number, begin, end, outcome):
    return AttemptRecord(
        number=number, claim=number, node="n1", started_at=begin, finished_at=end, outcome=outcome
    )


def test_a_life_is_told_in_its_parts():
    one = job(
        run(1, 112.0, 114.0, Outcome.RETRY),
        run(2, 120.0, 130.0, Outcome.DONE),
        finished=130.0,
        delay=10.0,
    )

    assert [(each.shape, each.begin, each.end) for each in stretches(one, 999.0)] == [
        ("wait", 100.0, 110.0),
        ("ready", 110.0, 112.0),
        ("run", 112.0, 114.0),
        ("backoff", 114.0, 120.0),
        ("run", 120.0, 130.0),
    ]


def test_a_running_job_goes_on_until_now_and_its_limit_is_in_sight():
    one = job(run(1, 110.0, None, None), status=Status.RUNNING)
    line = lifeline(one, 140.0, timeout=60.0)

    assert line is not None
    assert (line.running, line.waiting) == (30.0, 10.0)
    assert line.now is not None
    assert line.limit is not None
    assert line.now < line.limit <= 100
    far = lifeline(one, 140.0, timeout=1e6)
    assert far is not None
    assert far.limit is None, "a limit far away would leave nothing to see"


def test_a_retry_waits_until_it_is_due_and_then_for_a_worker():
    one = job(run(1, 100.0, 101.0, Outcome.RETRY), status=Status.RETRYING, run_at=105.0)

    assert [(each.shape, each.end) for each in stretches(one, 107.0)][-2:] == [
        ("backoff", 105.0),
        ("ready", 107.0),
    ]


times = st.floats(0, 1e6)
records = st.lists(st.tuples(times, st.none() | times, st.sampled_from([None, *Outcome])), max_size=6)


@settings(deadline=None)
@given(records, times, st.sampled_from(Status), times, times, st.none() | st.floats(0.1, 1e6))
def test_whatever_the_times_are_all_of_it_is_inside(runs, created, status, now, finished, timeout):
    attempts = [run(number, *each) for number, each in enumerate(runs, 1)]
    one = job(*attempts, status=status, created=created, run_at=created, finished=finished)
    line = lifeline(one, now, timeout)

    for each in line.stretches if line else ():
        assert 0 <= each.x <= each.end <= 100.001
        assert each.shape != "run" or each.width >= LEAST - 0.002
    assert all(0 <= tick.x <= 100 for tick in (line.ticks if line else ()))
    assert all(0 <= row.waited + row.ran <= 100.02 for row in rows(one, now))
    assert msgspec.json.encode(line)


def test_a_share_is_of_the_longest():
    assert [share(0, 0), share(1, 3), share(3, 3)] == [0.0, 33.3, 100.0]
