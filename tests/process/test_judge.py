"""What the judge of the tests with kills finds broken, shown by made-up runs."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.process.book import EVERY, LIMITED, Book
from tests.process.judge import (
    assert_behind,
    assert_held_within_limits,
    assert_none_lost,
    assert_not_doubled,
    assert_within_limits,
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
