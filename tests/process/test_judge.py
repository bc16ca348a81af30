"""What the judge of the tests with kills finds broken, shown by made-up runs."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.process.book import EVERY, LIMITED, Book
from tests.process.judge import (
    assert_behind,
    assert_held_within_limits,
    assert_in_order,
    assert_none_lost,
    assert_not_doubled,
    assert_within_limits,
    check,
)

Runs = list[dict[str, Any]]


def line(event: str, job: str, at: float, pid: int = 1, claim: int = 1) -> dict[str, Any]:
    return {"event": event, "job": job, "at": at, "pid": pid, "claim": claim}


def book_of(keys: str) -> Book:
    """Jobs of the limited queue, numbered from 0, each of a key; `-`: of none."""
    book = Book()
    for number, key in enumerate(keys):
        job = {"id": str(number), "queue": LIMITED} | ({} if key == "-" else {"key": key})
        book.stored("plain", job)
    return book


def broken(check: Callable[[], None]) -> bool:
    try:
        check()
    except AssertionError:
        return True
    return False


def assert_named(fault: str | None, check: Callable[[], None]) -> None:
    """What the judge says names a fault; None: it finds nothing."""
    found = ""
    try:
        check()
    except AssertionError as error:
        found = str(error)
    assert (fault in found) if fault else not found, found


@pytest.mark.parametrize(
    ("keys", "exceeded"), [("aabb-", False), ("aabb--", True), ("aaa", True), ("--", False), ("---", True)]
)
def test_more_runs_than_a_limit_allows(keys: str, exceeded: bool) -> None:
    """Of the queue, or of a key; a job that has ended, or whose process is dead, runs no more."""
    starts = [line("start", str(number), number) for number in range(len(keys))]
    ended = [each for one in starts for each in (one, one | {"event": "done"})]
    other = [one | {"pid": number} for number, one in enumerate(starts)]
    held = [{"queue": LIMITED, "key": key, "held": True} for key in keys]

    assert broken(lambda: assert_within_limits(book_of(keys), starts, {})) == exceeded
    assert broken(lambda: assert_held_within_limits(held)) == exceeded
    assert not broken(lambda: assert_within_limits(book_of(keys), ended, {}))
    assert not broken(lambda: assert_within_limits(book_of(keys), other, None))
    assert not broken(lambda: assert_within_limits(book_of(keys), other, dict.fromkeys(range(9), -1.0)))


def lived(story: str) -> Runs:
    """Lines of runs, such as `a1( a1)`: job `a` begins in process 1 and ends there; `!`: it asks for a retry."""
    events = {"(": "start", ")": "done", "!": "failed"}
    claims, lines = Counter[str](), Runs()
    for at, one in enumerate(story.split()):
        claims[one[0]] += one[2] == "("
        lines.append(line(events[one[2]], one[0], at, int(one[1]), claims[one[0]]))
    return lines


@pytest.mark.parametrize(
    ("story", "broken_by"),
    [
        ("a1( a1) b2( b2) c1( c1)", None),
        ("a1( a1! a2( a2) b1( b1)", None),
        ("a1( a1) c2( c2)", None),
        ("a9( a1( a1) b1( b1)", None),
        ("a9( a9) a1( a1) b1( b1)", None),
        ("a9( b1( b1)", None),
        ("b1( b1) a1( a1)", "a ran after b"),
        ("a1( a1! b2( b2) a1( a1)", "a ran after b"),
        ("a9( b1( b1) a1( a1)", "a ran after b"),
        ("a9( a9) b1( b1) a1( a1)", "a ran after b"),
        ("a1( b2( a1) b2)", "b began while a ran"),
        ("a1( c2( c2)", "c began while a ran"),
    ],
)
def test_the_order_of_a_key_is_broken(story: str, broken_by: str | None) -> None:
    """By a job that comes too early: before an earlier one, between its runs, or in one. Process 9 was killed."""
    assert_named(broken_by, lambda: assert_in_order("k", "abc", lived(story), {9: -1.0}))


def test_a_job_ran_before_one_that_it_waits_for() -> None:
    """Or before the last of its runs had ended; or never."""
    before = [line("start", "a", 1), line("failed", "a", 2), line("start", "a", 3), line("done", "a", 4)]

    assert not broken(lambda: assert_behind([line("start", "x", 5)], [before]))
    assert broken(lambda: assert_behind([line("start", "x", 2.5)], [before]))
    assert broken(lambda: assert_behind([], [before]))


@pytest.mark.parametrize(
    ("first", "killed", "doubled"),
    [("done", (), True), ("failed", (), True), ("done", (1,), False), ("cancelled", (), False)],
)
def test_a_job_ran_again_although_it_was_done(first: str, killed: tuple[int, ...], doubled: bool) -> None:
    """But where its process may not have said so any more, or has broken it off."""
    runs = [line("start", "x", 1), line(first, "x", 2), line("start", "x", 3, 2, 2)]

    assert broken(lambda: assert_not_doubled(runs, killed)) == doubled


NONE: Mapping[str, float] = {}


def book_of_group(closing: float = 2.5, late: str = "", refused: Mapping[str, float] = NONE) -> Book:
    """An open group `g` of `a` and `b`, with its callback `t`: when its close was asked for, and who came too late."""
    book = Book()
    book.groups["g"], book.callbacks["t"] = "t", []
    book.stored("plain", {"id": "t"})
    for member in "ab":
        book.stored("plain", {"id": member, "group": "g"})
    book.closing["g"] = closing
    book.late |= set(late)
    for member, at in refused.items():
        book.sent[member], book.refused[member] = {"id": member, "group": "g"}, at
    return book


ENDED = "a1( a1) b1( b1) "


@pytest.mark.parametrize(
    ("story", "asked", "told", "broken_by"),
    [
        (ENDED + "t1( t1)", {}, 2, None),
        ("a1( a1) b9( b1( b1) t9( t9) t1( t1)", {}, 2, None),
        (ENDED + "t1( t1)", {"refused": {"c": 3.0}}, 2, None),
        ("a1( a1) b1( t1( t1) b1)", {}, 2, "t began before b had ended"),
        ("a1( a1) b9( t1( t1) b1( b1)", {}, 2, "t began before b had ended"),
        (ENDED + "t1( t1)", {"closing": 4.5}, 2, "t began before g was closed"),
        (ENDED + "t1( t1) t1( t1)", {}, 2, "t ran again although it had ended"),
        (ENDED, {}, 2, "t was never called"),
        (ENDED + "t1( t1)", {}, 1, "t was told of 1 jobs of g, which has 2"),
        (ENDED + "t1( t1)", {"late": "b"}, 2, "b joined g, which was closed before"),
        (
            ENDED + "t1( t1)",
            {"refused": {"b": 3.0}},
            2,
            "b joined g, though it was answered that it could not",
        ),
        (ENDED + "t1( t1)", {"refused": {"c": 1.0}}, 2, "c was refused while g was open"),
    ],
)
def test_an_open_group_is_called_back_early_twice_or_never_or_joined_too_late(
    story: str, asked: dict[str, Any], told: int, broken_by: str | None
) -> None:
    """Process 9 was killed: what ran there runs again, and only that."""
    book = book_of_group(**asked)
    lines = [one | ({"members": told} if one["job"] == "t" else {}) for one in lived(story)]
    claims = {one["job"]: one["claim"] for one in lines}
    jobs = {
        job_id: {"id": job_id, "status": "done" if job_id in claims else "cancelled", "attempt": 1}
        | {"result": claims.get(job_id)}
        for job_id in "abt"
    }

    assert_named(broken_by, lambda: check(book, jobs, lines, deaths={9: -1.0}))


@pytest.mark.parametrize(
    ("times", "missed", "last", "lost"),
    [
        ((1, 2, 3), 0, 3, False),
        ((), 0, None, False),
        ((1, 3), 0, 3, True),
        ((2, 3), 0, 3, True),
        ((1, 2), 0, 3, True),
        ((1, 2, 3), 1, 3, True),
        ((1, 2, 2, 3), 0, 3, True),
    ],
)
def test_a_firing_is_lost_or_doubled(
    times: tuple[int, ...], missed: int, last: int | None, lost: bool
) -> None:
    """In the middle, at the beginning, at the end, counted as missed, or made twice."""

    def at(seconds: int) -> str:
        return f"2030-01-31T12:00:{int(seconds * EVERY):02}"

    schedule = {"created_at": f"{at(0)}.500Z", "missed": missed, "last_at": last and f"{at(last)}.000Z"}

    assert broken(lambda: assert_none_lost([f"tick@{at(time)}Z" for time in times], schedule)) == lost
