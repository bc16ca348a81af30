"""The latest events of a node."""

import pytest

from jobpipe.engine.ring import JobEvent, Ring
from jobpipe.job import Status


def filled(number, size=5):
    ring = Ring(size)
    ring.begin(100.0)
    for one in range(number):
        ring.append(JobEvent(ring.next_number(100.0 + one), f"j{one}", Status.QUEUED, 100.0 + one, None))
    return ring


def ids(ring, place, limit=100):
    return [one.id for one in ring.part(place, limit)]


def test_the_oldest_are_forgotten():
    ring = filled(8)

    assert (ring.first, ring.end) == (3, 8)
    assert ids(ring, 3) == ["j3", "j4", "j5", "j6", "j7"]
    assert ids(ring, 6, 1) == ["j6"]
    assert ids(ring, 8) == []


@pytest.mark.parametrize(
    ("number", "after"),
    [
        (107_000_000, []),
        (104_000_000, ["j5", "j6", "j7"]),
        (104_500_000, ["j5", "j6", "j7"]),
        (102_000_000, ["j3", "j4", "j5", "j6", "j7"]),  # the last that is forgotten
        (101_999_999, None),
        (108_000_000, None),
        (0, None),
    ],
)
def test_who_knows_an_event_goes_on_behind_it_unless_something_is_lost(number, after):
    ring = filled(8)
    place = ring.behind(number)

    assert (None if place is None else ids(ring, place)) == after


def test_numbers_grow_whatever_the_clock_does():
    """Also over a pause in which nothing is kept."""
    ring = filled(3)
    set_back = ring.next_number(50.0)
    ring.begin(60.0)

    assert set_back == ring.number + 1 == 102_000_001
    assert (ring.first, ring.end, ring.behind(ring.number)) == (0, 0, 0)
    assert ring.behind(ring.number - 1) is None
