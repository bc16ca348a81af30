"""How numbers, durations and times are said."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobpipe.dashboard.words import UNKNOWN, clock, duration, listed, many, plain, says, size, strong, time


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-3, "0 ms"),
        (0.0144, "14 ms"),
        (0.9996, "1.0 s"),
        (42.34, "42.3 s"),
        (59.96, "1 m"),
        (270, "4 m 30 s"),
        (18_720, "5 h 12 m"),
        (86_400, "1 d"),
        (1e9, "11,574 d 1 h"),
        (math.nan, UNKNOWN),
        (math.inf, UNKNOWN),
    ],
)
def test_a_duration_has_two_figures_at_most(seconds, said):
    assert duration(seconds) == said


@settings(deadline=None)
@given(st.floats())
def test_a_damaged_time_is_said_too(at):
    assert clock(at).endswith(" UTC")


def test_sentences_are_made_of_parts():
    said = says("Waiting because queue ", strong("mail"), " is paused ", time(0.0, "since"), ".")

    assert plain(said) == "Waiting because queue mail is paused since 1970-01-01 00:00:00 UTC."
    assert [many(1, "job"), many(2000, "job"), many(2, "entry", "entries")] == [
        "1 job",
        "2,000 jobs",
        "2 entries",
    ]
    assert [listed([]), listed(["a"]), listed(["a", "b", "c"])] == ["", "a", "a, b and c"]
    assert [size(12), size(3 << 20)] == ["12 bytes", "3.0 MiB"]
