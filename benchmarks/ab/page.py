"""The page of a comparison: a row a line, the older tree beside the newer one."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from benchmarks.ab.compare import Spread, Told, times, too_close, work
from benchmarks.ab.figures import STORES, Case, Line
from benchmarks.report import FEW

WIDTH = 66


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a case: pairs, or what the newer tree alone told where the older one lacks it."""

    case: Case
    rounds: Sequence[tuple[Told, Told]] = ()
    alone: Sequence[Told] = ()
    lacking: str = ""
    """why the older tree has it not"""

    def rows(self) -> list[str]:
        """A row for each line."""
        compared = bool(self.rounds) and too_close(self.rounds)
        return [self._row(key, line, compared=compared) for key, line in self.case.lines.items()]

    def _row(self, key: str, line: Line, *, compared: bool) -> str:
        older = [told[key].value for told, _ in self.rounds]
        newer = [told[key].value for _, told in self.rounds] or [told[key].value for told in self.alone]
        ratio = times(self.rounds, key)
        name = f"{self.case.name}{line.name}, {STORES[self.case.store]}"
        shown = f"{shown_in(line.unit, older):>12}{shown_in(line.unit, newer):>12}   {ratio or '-'!s:<22}"
        cpu = self._cpu(key) if compared else "-"
        return f"{name:<{WIDTH}}{shown}{cpu:<46}{self._judged(line, newer, ratio)}"

    def _cpu(self, key: str) -> str:
        """CPU a job of both, and how they compare."""
        ratio = work(self.rounds, key)
        if ratio is None:
            return "-"
        older, newer = (
            statistics.median(side[key].cpu or 0 for side in told) * 1e6
            for told in zip(*self.rounds, strict=True)
        )
        return f"{older:.1f} -> {newer:.1f} us: {ratio} of {ratio.pairs}"

    def _judged(self, line: Line, newer: Sequence[float], ratio: Spread | None) -> str:
        """The aim in words and whether it is met; or why there is nothing to compare."""
        if self.lacking:
            return f"not in REV ({self.lacking})"
        value, words = statistics.median(newer), list[tuple[str, bool]]()
        if line.aim.below is not None:
            words.append((f"< {line.aim.below:g} {line.unit}", value < line.aim.below))
        if line.aim.at_most is not None:
            words.append((f"<= {line.aim.at_most:g} {line.unit}", value <= line.aim.at_most))
        if line.aim.ratio is not None and ratio is not None:
            words.append((f">= {line.aim.ratio:g} of before", ratio.middle >= line.aim.ratio))
        return ", ".join(f"{text}: {'met' if met else 'MISSED'}" for text, met in words) or "-"


def shown_in(unit: str, values: Sequence[float]) -> str:
    """The median of some values in their unit."""
    if not values or any(map(math.isnan, values)):
        return "-"
    value = statistics.median(values)
    if math.isinf(value):
        return "never"
    number = f"{value:,.0f}" if value >= FEW else f"{value:.3g}"
    return f"{number}{unit}" if unit in {"/s", "%"} else f"{number} {unit}"


def head(older: str, newer: str) -> str:
    """What stands over the columns."""
    return (
        f"{'figure':<{WIDTH}}{older:>12}{newer:>12}   {'ratio (spread)':<22}"
        f"{'CPU a job, where times are within 5 %':<46}aim"
    )
