"""When schedules fire: over years, over changes of clocks, after standstills."""

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobpipe.job import JobId, NewJob
from jobpipe.schedules import (
    COUNTED,
    LAST,
    Firing,
    Schedule,
    Spec,
    decided,
    firing_id,
    in_words,
    next_after,
    run_by_hand,
    times,
    wrong,
)

BERLIN = "Europe/Berlin"
LINES = (
    "30 2 * * *",
    "0,30 2,3 * * *",
    "*/30 * * * *",
    "0 * * * *",
    "15 */2 * * *",
    "0 0 29 2 *",
    "0 12 * * MON#5",
    "59 23 L * *",
    "0 9 LW * *",
    "0 0 1 1 *",
    "0 3 * * 1-5",
    "*/20 30 2 * * *",
    "0 0 2 * * SUN",
)
ZONES = ("UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Sao_Paulo")
JOB = NewJob(
    id="",
    kind="echo",
    queue="default",
    payload=b"1",
    priority=0,
    max_retries=None,
    created_at=0.0,
    run_at=0.0,
)


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def shown(at: float, zone: str = "UTC") -> str:
    return datetime.fromtimestamp(at, ZoneInfo(zone)).isoformat(timespec="minutes")


def following(spec: Spec, after: str, number: int) -> Sequence[str]:
    found = times(spec, 0.0, seconds(after))
    return [shown(at, spec.timezone or "UTC") for at in itertools.islice(found, number)]


def schedule(spec: Spec, next_at: float | None, **changes: Any) -> Schedule:
    usual: dict[str, Any] = {"name": "s", "version": 1, "job": JOB, "created_at": 0.0}
    return Schedule(spec=spec, next_at=next_at, **(usual | changes))


def ids(firing: Firing) -> Sequence[str]:
    return [job.id for job in firing.jobs]


# Clocks that are set


def test_a_time_that_is_skipped_in_spring_fires_once_when_the_gap_ends():
    assert following(Spec(cron="30 2 * * *", timezone=BERLIN), "2026-03-28T00:00:00+01:00", 3) == [
        "2026-03-28T02:30+01:00",
        "2026-03-29T03:00+02:00",
        "2026-03-30T02:30+02:00",
    ]


def test_a_time_that_comes_twice_in_autumn_fires_once():
    assert following(Spec(cron="30 2 * * *", timezone=BERLIN), "2026-10-24T12:00:00+02:00", 3) == [
        "2026-10-25T02:30+02:00",
        "2026-10-26T02:30+01:00",
        "2026-10-27T02:30+01:00",
    ]


def test_asked_within_the_repeated_hour_it_does_not_fire_again():
    spec = Spec(cron="30 2 * * *", timezone=BERLIN)
    asked = [next_after(spec, 0.0, seconds("2026-10-25T00:00:00Z") + minutes * 60) for minutes in range(150)]

    assert {shown(at, BERLIN) for at in asked if at} == {"2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"}
    assert asked == sorted(at for at in asked if at)


def test_every_half_hour_goes_by_real_time_through_both():
    spec = Spec(cron="*/30 * * * *", timezone=BERLIN)
    for day in ("2026-03-29", "2026-10-25"):
        found = list(itertools.islice(times(spec, 0.0, seconds(f"{day}T00:00:00+00:00")), 10))

        assert {later - earlier for earlier, later in itertools.pairwise(found)} == {1800.0}


def test_leap_days_come_every_four_years_but_not_in_2100():
    spec = Spec(cron="0 0 29 2 *")

    found = [shown(at)[:10] for at in itertools.islice(times(spec, 0.0, seconds("2089-01-01T00:00:00Z")), 4)]

    assert found == ["2092-02-29", "2096-02-29", "2104-02-29", "2108-02-29"]


BEFORE_CHANGES = tuple(
    seconds(f"{day}T06:00:00Z")
    for day in (
        "2024-02-28",
        "2026-03-07",
        "2026-03-28",
        "2026-04-04",
        "2026-10-03",
        "2026-10-24",
        "2026-10-31",
    )
)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("line", LINES)
def test_times_only_go_forward_and_are_the_same_asked_one_by_one(line, zone):
    """Over leap days, and over changes of the clock in both directions and on both halves of the earth."""
    spec = Spec(cron=line, timezone=zone)
    for start in BEFORE_CHANGES:
        at_once = list(itertools.islice(times(spec, 0.0, start), 50))
        one_by_one, at = [], start
        for _ in at_once:
            at = next_after(spec, 0.0, at) or LAST
            one_by_one.append(at)

        assert one_by_one == at_once
        assert all(later > earlier for earlier, later in itertools.pairwise([start, *at_once]))


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
def test_over_ten_years_a_daily_job_runs_once_on_each_day(zone):
    days = [
        shown(at, zone)[:10]
        for at in itertools.islice(
            times(Spec(cron="30 2 * * *", timezone=zone), 0.0, seconds("2020-01-01T00:00:00+14:00")), 3653
        )
    ]
    first = datetime.fromisoformat(days[0])

    assert days == [(first + timedelta(days=n)).date().isoformat() for n in range(3653)]


@given(
    st.sampled_from(LINES),
    st.sampled_from(ZONES),
    st.floats(0, 4e9),
    st.lists(st.floats(0, 1e7), min_size=1, max_size=8),
)
@settings(max_examples=50, deadline=None)
def test_whenever_it_is_looked_at_the_next_time_lies_ahead_and_none_is_passed_over(line, zone, start, waits):
    spec = Spec(cron=line, timezone=zone)
    now = start
    for wait in waits:
        later = next_after(spec, 0.0, now)
        assert later is not None
        assert later > now
        between = next_after(spec, 0.0, min(now + wait, later - 0.001))
        assert between == later
        now += wait


# Intervals


@given(st.floats(1, 1e7), st.floats(0, 4e9), st.floats(0, 4e9))
def test_an_interval_does_not_drift(every, origin, after):
    found = list(itertools.islice(times(Spec(every=every, starts_at=origin), 0.0, after), 20))
    steps = [round((at - origin) / every) for at in found]

    assert found == [round(origin + k * every, 3) for k in steps]
    assert steps == list(range(steps[0], steps[0] + 20))
    assert found[0] > after or steps[0] == 0
    assert steps[0] == 0 or found[0] - every <= after + 0.002


def test_an_interval_begins_at_starts_at():
    spec = Spec(every=90, starts_at=seconds("2026-01-01T00:00:00Z"))

    assert following(spec, "2025-01-01T00:00:00Z", 2) == ["2026-01-01T00:00+00:00", "2026-01-01T00:01+00:00"]


def test_without_starts_at_an_interval_goes_by_when_the_schedule_was_stored():
    assert list(itertools.islice(times(Spec(every=60), 1000.25, 1000.25), 2)) == [1060.0, 1120.0]


def test_it_fires_from_starts_at_until_before_ends_at():
    spec = Spec(
        cron="0 * * * *",
        starts_at=seconds("2026-01-01T02:00:00Z"),
        ends_at=seconds("2026-01-01T04:00:00Z"),
    )

    assert following(spec, "2025-01-01T00:00:00Z", 9) == ["2026-01-01T02:00+00:00", "2026-01-01T03:00+00:00"]


def test_nothing_fires_after_the_year_9999():
    spec = Spec(every=3600.0)

    assert len(list(times(spec, 0.0, seconds("9999-12-31T21:30:00Z")))) == 2
    assert len(list(times(Spec(cron="0 * * * *"), 0.0, seconds("9999-12-31T21:30:00Z")))) == 2


# What is due


EVERY_MINUTE = Spec(cron="* * * * *")


def test_what_is_due_on_time_is_one_job():
    firing = decided(schedule(EVERY_MINUTE, 600.0), 600.02)

    assert ids(firing) == ["s@1970-01-01T00:10:00Z"]
    assert (firing.due_at, firing.next_at, firing.last_at, firing.missed) == (600.0, 660.0, 600.0, 0)
    assert (firing.jobs[0].created_at, firing.jobs[0].run_at) == (600.02, 600.02)


@pytest.mark.parametrize(
    ("catch_up", "made", "missed"),
    [
        ({"catch_up": "one"}, ["00:20:00"], 10),
        ({"catch_up": "all", "limit": 3}, ["00:18:00", "00:19:00", "00:20:00"], 8),
        ({"catch_up": "all"}, [f"00:{minute}:00" for minute in range(10, 21)], 0),
    ],
)
def test_after_a_standstill_missed_firings_are_made_up_for_as_asked(catch_up, made, missed):
    spec = Spec(cron="* * * * *", overlap="queue", **catch_up)

    firing = decided(schedule(spec, 600.0), 1230.0)

    assert ids(firing) == [f"s@1970-01-01T{time}Z" for time in made]
    assert (firing.missed, firing.last_at, firing.next_at) == (missed, 1200.0, 1260.0)


@pytest.mark.parametrize(("now", "made"), [(660.0, 1), (660.1, 0)])
def test_without_catch_up_a_firing_is_missed_after_a_minute(now, made):
    firing = decided(schedule(Spec(cron="0 * * * *", starts_at=0.0, catch_up="none", jitter=0), 600.0), now)

    assert (len(firing.jobs), firing.missed) == (made, 1 - made)
    assert firing.next_at == 3600.0


def test_a_standstill_of_years_costs_little_and_counts_a_bounded_number():
    now = seconds("2036-01-01T00:00:00Z") + 0.5
    spec = Spec(cron="* * * * * *", overlap="queue", catch_up="all", limit=100)

    firing = decided(schedule(spec, seconds("2026-01-01T00:00:00Z")), now)

    assert len(firing.jobs) == 100
    assert ids(firing)[-1] == "s@2036-01-01T00:00:00Z"
    assert firing.missed == COUNTED - 100


@given(
    st.sampled_from(LINES),
    st.sampled_from(ZONES),
    st.floats(1.7e9, 2e9),
    st.floats(0, 1e6),
    st.integers(1, 20),
)
@settings(max_examples=50, deadline=None)
def test_what_is_made_are_the_newest_that_are_due(line, zone, start, standstill, limit):
    spec = Spec(cron=line, timezone=zone, overlap="queue", catch_up="all", limit=limit)
    next_at = next_after(spec, 0.0, start)
    assert next_at is not None
    now = next_at + standstill
    due = [next_at, *itertools.takewhile(lambda at: at <= now, times(spec, 0.0, next_at))]

    firing = decided(schedule(spec, next_at), now)

    assert ids(firing) == [firing_id("s", at) for at in due[-limit:]]
    assert firing.missed == max(
        0, min(len(due), COUNTED + 1 if len(due) <= COUNTED else COUNTED) - len(firing.jobs)
    )
    assert firing.next_at == next_after(spec, 0.0, now)


def test_a_clock_that_is_set_back_fires_nothing_twice():
    """Next_at only moves on: what was fired ahead of time is not due again."""
    first = decided(schedule(EVERY_MINUTE, 600.0), 7200.0)

    assert first.next_at == 7260.0


def test_the_previous_job_matters_unless_overlaps_are_queued():
    def previous(**changes: Any) -> str | None:
        return decided(schedule(Spec(cron="* * * * *", **changes), 600.0, last_at=540.0), 600.0).previous

    assert previous() == previous(overlap="replace") == "s@1970-01-01T00:09:00Z"
    assert previous(overlap="queue") is None
    assert decided(schedule(EVERY_MINUTE, 600.0), 600.0).previous is None


def test_jitter_is_the_same_for_a_firing_wherever_it_is_decided():
    spec = Spec(every=60, starts_at=0.0, jitter=30, overlap="queue", catch_up="all", limit=1000)

    firing = decided(schedule(spec, 60.0), 60.0 * 1000)
    later = decided(schedule(spec, 60_000.0), 60_000.0)
    delays = [decided(schedule(spec, at), at).jobs[0].run_at - at for at in (60.0 * k for k in range(1, 300))]

    assert firing.jobs[-1].run_at == later.jobs[0].run_at
    assert 0 <= min(delays) < 3
    assert 27 < max(delays) < 30
    assert 12 < sum(delays) / len(delays) < 18


def test_ids_are_those_of_jobs_and_sort_by_time():
    long = "x" * 100
    made = [firing_id(long, at) for at in (0.0, 59.0, 59.5, 60.0, seconds("2026-03-29T01:00:00Z"), LAST)]
    by_hand = run_by_hand(schedule(EVERY_MINUTE, None), 60.0)

    assert firing_id("a", seconds("2026-03-29T01:00:00Z")) == "a@2026-03-29T01:00:00Z"
    assert firing_id("a", 59.5) == "a@1970-01-01T00:00:59.500Z"
    assert by_hand is not None
    assert by_hand.id == "s@1970-01-01T00:01:00.000Z"
    assert msgspec.convert(made, list[JobId]) == made
    assert sorted(made[:2] + made[3:]) == made[:2] + made[3:]


# What is wrong


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        (Spec(cron="30 2 * * *", timezone=BERLIN), []),
        (Spec(every=60), []),
        (Spec(), ["cron"]),
        (Spec(cron="* * * * *", every=60), ["cron"]),
        (Spec(cron="* * * *"), ["cron"]),
        (Spec(cron="61 * * * *"), ["cron"]),
        (Spec(cron=""), ["cron"]),
        (Spec(cron="0 0 30 2 *"), ["cron"]),
        (Spec(cron="0 0 */30 2 MON#3"), ["cron"]),
        (Spec(cron="* * * * *", timezone="Europe/Atlantis"), ["timezone"]),
        (Spec(cron="* * * * *", timezone="Europe"), ["timezone"]),
        (Spec(cron="* * * * *", timezone="../etc/passwd"), ["timezone"]),
        (Spec(cron="* * * * *", timezone=""), ["timezone"]),
        (Spec(cron="* * * * *", timezone="a\0b"), ["timezone"]),
        (Spec(cron="* * *", timezone="Mars"), ["timezone", "cron"]),
        (Spec(every=60, timezone=BERLIN), ["timezone"]),
        (Spec(every=60, starts_at=2.0, ends_at=2.0), ["ends_at"]),
        (Spec(every=60, catch_up="all"), ["catch_up"]),
        (Spec(every=60, catch_up="all", overlap="queue"), []),
    ],
)
def test_what_is_wrong_with_a_spec_is_named(spec, fields):
    assert [field for field, _ in wrong(spec)] == fields


@given(st.text("0123456789*,-/#LW MONJAN", max_size=30))
def test_no_line_raises(line):
    assert isinstance(wrong(Spec(cron=line)), list)


def test_schedules_are_told_in_words():
    assert in_words(Spec(cron="30 2 * * *", timezone=BERLIN)) == "At 02:30 every day, Europe/Berlin"
    assert in_words(Spec(cron="0 * * * *")) == "At the start of every hour, UTC"
    assert in_words(Spec(every=300)) == "Every 300 seconds"


def test_utc_is_the_default_zone():
    after = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()

    assert next_after(Spec(cron="0 0 * * *"), 0.0, after) == next_after(
        Spec(cron="0 0 * * *", timezone="UTC"), 0.0, after
    )
