"""The arithmetic of a comparison: who goes first, ratios of pairs, their median and spread."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

CLOSE = 0.05
"""Sides whose times differ by less than this share are compared by CPU seconds, which other programs disturb less."""

S = TypeVar("S")

Run = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Sample:
    """One measurement of one side."""

    value: float
    cpu: float | None = None
    """seconds of CPU a job, of the process under measure; None: not asked"""


Told = Mapping[str, Sample]
"""What one run of a side tells, by the names of its lines."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """The ratios of pairs, newer to older."""

    middle: float
    least: float
    most: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.middle:.3f} ({self.least:.2f}-{self.most:.2f})"

    @property
    def close(self) -> bool:
        """Whether the median is too near to 1 for times to tell."""
        return abs(self.middle - 1) < CLOSE


def in_turns(pairs: int, older: Callable[[], S], newer: Callable[[], S], since: int = 0) -> list[tuple[S, S]]:
    """So many pairs (older, newer): A B, B A, A B ..., so that neither always follows the other.

    `since`: how many pairs there were before.
    """
    rounds = []
    for number in range(since, since + pairs):
        if number % 2:
            second = newer()
            rounds.append((older(), second))
        else:
            first = older()
            rounds.append((first, newer()))
    return rounds


def spread(pairs: Sequence[tuple[float, float]]) -> Spread | None:
    """Median, least and most of newer / older, of each pair by itself; None where one of them is no ratio."""
    ratios = [newer / older if older else math.nan for older, newer in pairs]
    if not ratios or not all(map(math.isfinite, ratios)):
        return None
    return Spread(statistics.median(ratios), min(ratios), max(ratios), len(ratios))


def times(rounds: Sequence[tuple[Told, Told]], line: str) -> Spread | None:
    """The ratios of a line's values."""
    return spread([(older[line].value, newer[line].value) for older, newer in rounds])


def work(rounds: Sequence[tuple[Told, Told]], line: str) -> Spread | None:
    """The ratios of a line's CPU seconds a job; None where they are not measured."""
    pairs = [(older[line].cpu, newer[line].cpu) for older, newer in rounds]
    known = [(older, newer) for older, newer in pairs if older is not None and newer is not None]
    return spread(known) if len(known) == len(pairs) else None


def too_close(rounds: Sequence[tuple[Told, Told]]) -> bool:
    """Whether a line has CPU seconds, and its values alone do not tell."""
    return any(
        work(rounds, line) is not None and (values := times(rounds, line)) is not None and values.close
        for line in rounds[0][0]
    )


def idle_share(runs: Sequence[Run], workers: int) -> float:
    """The share of all worker-seconds in which a worker was idle while a job waited.

    `runs` are the times (began, ended) of jobs that all waited from the start. So a job waits until the last one
    begins; worker-seconds count from the first start to the last end.
    """
    first, last = min(began for began, _ in runs), max(began for began, _ in runs)
    over = max(ended for _, ended in runs)
    busy = sum(min(ended, last) - began for began, ended in runs)
    return (workers * (last - first) - busy) / (workers * (over - first))
