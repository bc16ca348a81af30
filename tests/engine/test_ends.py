"""Every end of a job, whenever it comes to light; over a store that says what has been written by now."""

import functools
import math
import operator
import random
from bisect import bisect_right
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobpipe.clock import VirtualClock
from jobpipe.engine import ends
from jobpipe.engine.ends import BACK, NEAR, Ending, Remembered
from jobpipe.job import Status
from jobpipe.store.base import EndPlace, Ends, Summary

NOW, LEASE = 1_000_000.0, 10.0


class Written:
    """What is written so far."""

    def __init__(self):
        self.places: dict[Status, list[EndPlace]] = {Status.DONE: [], Status.FAILED: []}
        self.looks = 0

    def write(self, at, seq, status=Status.DONE):
        self.places[status].append(EndPlace(at, seq))
        self.places[status].sort()

    async def ends(self, status, after, limit, known):
        self.looks += 1
        places = self.places[status]
        start = bisect_right(places, after)
        looked = places[start : start + limit]
        jobs = [(place, _summary(place, status)) for place in looked if place not in known]
        return Ends(jobs, looked[-1] if len(looked) == limit else None)


def _summary(place, status):
    return Summary(
        seq=place.seq,
        id=str(place.seq),
        status=status,
        kind="echo",
        queue="default",
        key=None,
        group=None,
        tags=(),
        attempt=1,
        node=None,
        error=None,
        finished_at=place.at,
    )


class Scene:
    def __init__(self, *, horizon=None, trouble=False):
        self.clock, self.store, self.trouble = Settable(NOW), Written(), trouble
        self.reader = self.another(horizon)

    def another(self, horizon=None):
        store: Any = self.store
        reader = Ending(
            store,
            self.clock,
            [Status.DONE, Status.FAILED],
            lease=LEASE,
            troubled=lambda: self.trouble,
        )
        if horizon is not None:
            reader.go_on(horizon)
        return reader

    async def look(self, reader=None):
        """All ends that come to light."""
        found = []
        while part := await (reader or self.reader).part():
            found += [place.seq for place, _ in part]
        return found


class Settable(VirtualClock):
    """A clock that is set by hand."""

    def __init__(self, at):
        super().__init__(at)
        self.at = at

    def now(self):
        return self.at


@pytest.fixture
async def scene():
    made = Scene()
    made.store.write(NOW - 1, 1)
    await made.reader.pass_over()
    return made


async def test_what_has_ended_by_now_is_passed_over_and_each_end_is_told_once(scene):
    scene.store.write(NOW + 0.5, 2)
    scene.store.write(NOW + 0.4, 3, Status.FAILED)
    scene.clock.at = NOW + 1
    first = await scene.look()
    told = [first]
    for _ in range(60):
        scene.clock.at += 1
        told.append(await scene.look())

    assert first == [3, 2]
    assert functools.reduce(operator.iadd, told, []) == [3, 2]


async def test_an_end_that_was_under_way_when_the_reader_came_is_told(scene):
    scene.store.write(NOW - 0.5, 2)
    scene.clock.at += 1

    assert await scene.look() == [2]


async def test_an_end_that_is_written_late_is_told(scene):
    """Soon if it is a little late, and else after a while."""
    for number in range(40):
        scene.clock.at += 1
        scene.store.write(scene.clock.at - 0.1, 100 + number)
        await scene.look()
    scene.store.write(scene.clock.at - 0.9 * NEAR, 2)
    scene.clock.at += 0.5
    near = await scene.look()
    scene.store.write(scene.clock.at - 0.99 * BACK * LEASE, 3)
    late: list[int] = []
    while not late:
        scene.clock.at += 1
        late = await scene.look()

    assert (near, late) == ([2], [3])


async def test_while_this_node_cannot_write_no_end_is_too_late(scene):
    """And a lease longer."""
    scene.trouble = True
    for _ in range(100):
        scene.clock.at += 1
        await scene.look()
    scene.trouble = False
    scene.clock.at += 1
    scene.store.write(NOW + 3, 2)
    told = []
    for _ in range(20):
        told += await scene.look()
        scene.clock.at += 1

    assert told == [2]
    assert scene.reader.horizon.at > NOW + 50


async def test_a_clock_that_is_set_back_costs_no_end(scene):
    for _ in range(50):
        scene.clock.at += 1
        await scene.look()
    scene.clock.at -= 40
    scene.store.write(scene.clock.at + 0.5, 2)
    scene.clock.at += 1

    assert 2 in await scene.look()


async def test_a_row_that_says_it_ended_at_no_time_hides_no_other(scene):
    for seq, at in enumerate((math.inf, -math.inf, 1e300, NOW + 1e9), start=10):
        scene.store.write(at, seq)
    told = []
    for number in range(60):
        scene.clock.at += 1
        scene.store.write(scene.clock.at, 100 + number)
        told += await scene.look()

    assert sorted(told) == [10, 12, 13, *range(100, 160)]


async def test_what_is_remembered_is_bounded(monkeypatch):
    """Of very many, the horizon goes past the first."""
    monkeypatch.setattr(ends, "REMEMBERED", 100)
    scene = Scene()
    for seq in range(1000):
        scene.store.write(NOW + seq / 100, seq)
    scene.clock.at += 10
    told = await scene.look()
    for _ in range(40):
        scene.clock.at += 1
        told += await scene.look()

    assert told == list(range(1000))
    assert scene.reader._read._number <= 100


def test_a_job_that_ends_twice_within_a_second_is_told_twice():
    read = Remembered()
    read.add(EndPlace(NOW + 0.25, 7))

    assert EndPlace(NOW + 0.25, 7) in read
    assert EndPlace(NOW + 0.5, 7) not in read
    assert EndPlace(NOW + 0.25, 8) not in read


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 32), page=st.integers(1, 7))
async def test_none_is_lost_whatever_comes_late_and_whenever_the_client_connects_again(seed, page):
    """Any end that is written within the time that ends may take; a connection never tells one twice."""
    rng, scene = random.Random(seed), Scene()
    ends_page, ends.PAGE = ends.PAGE, page
    try:
        await scene.reader.pass_over()
        to_write, told, here, seq = list[Any](), set[int](), set[int](), 0
        known = scene.reader.horizon
        for _ in range(120):
            scene.clock.at += rng.random()
            for _ in range(rng.randrange(3)):
                seq += 1
                late = rng.choice((0.0, 0.1, NEAR / 2, 0.9 * BACK * LEASE)) * rng.random()
                status = rng.choice((Status.DONE, Status.FAILED))
                to_write.append((scene.clock.at + late, scene.clock.at, seq, status))
            for one in [one for one in to_write if one[0] <= scene.clock.at]:
                scene.store.write(*one[1:])
                to_write.remove(one)
            part = await scene.reader.part()
            found = [place.seq for place, _ in part]
            assert here.isdisjoint(found)
            here.update(found)
            if rng.random() < 0.05:  # the client is gone before it has these
                scene.clock.at += rng.random() * 30
                scene.reader, here = scene.another(known), set()
            else:
                told.update(found)
            known = scene.reader.horizon
        for one in to_write:
            scene.store.write(*one[1:])
        for _ in range(40):
            told.update(await scene.look())
            scene.clock.at += 1
        assert told == set(range(1, seq + 1))
    finally:
        ends.PAGE = ends_page
