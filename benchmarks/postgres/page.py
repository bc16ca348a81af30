"""The page: a line a figure, a column a side, and jobpipe beside the floor and beside the best of the others."""

import math
import statistics
from collections.abc import Sequence

from benchmarks.postgres.figures import FLOOR, NODE, OTHERS, PEERS, Row
from benchmarks.report import FEW

SIDES = (NODE.name, FLOOR.name, *(peer.name for peer in OTHERS))
WIDTH = 15

HEAD = (
    f"{'figure':<52}"
    + "".join(f"{side:>{WIDTH}}" for side in SIDES)
    + f"   {'of the floor':<22}{'of the best peer':<22}aim"
)


def line(row: Row) -> str:
    """One figure: medians, and ratios of what was measured next to each other, with their spread."""
    shown = "".join(f"{_shown(row.sides.get(side), row.unit):>{WIDTH}}" for side in SIDES)
    ours = row.sides[NODE.name]
    of_floor, of_best = _ratios(ours, row.sides.get(FLOOR.name)), _ratios(ours, _best(row))
    return f"{row.name:<52}{shown}   {_spread(of_floor):<22}{_spread(of_best):<22}{_judged(row, of_floor, of_best)}"


def _best(row: Row) -> Sequence[float] | None:
    """The best of the peers in each repeat."""
    peers = [row.sides[peer.name] for peer in PEERS if peer.name in row.sides]
    better = max if row.unit == "/s" else min
    return [
        better((one for one in each if not math.isnan(one)), default=math.nan)
        for each in zip(*peers, strict=True)
    ] or None


def _ratios(ours: Sequence[float], others: Sequence[float] | None) -> list[float]:
    return [one / other for one, other in zip(ours, others or ours, strict=True)] if others else []


def _spread(ratios: Sequence[float]) -> str:
    if not ratios or any(map(math.isnan, ratios)):
        return "-"
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def _shown(values: Sequence[float] | None, unit: str) -> str:
    if not values or any(map(math.isnan, values)):
        return "-"
    value = statistics.median(values)
    text = f"{value:,.0f}" if value >= FEW else f"{value:.3g}"
    return f"{text}/s" if unit == "/s" else f"{text} {unit}"


def _judged(row: Row, of_floor: Sequence[float], of_best: Sequence[float]) -> str:
    """The aim in words, and whether it is met."""
    words: list[tuple[str, bool]] = []
    if row.aim.of_floor is not None and of_floor:
        words.append(
            (f">= {row.aim.of_floor:g} of the floor", statistics.median(of_floor) >= row.aim.of_floor)
        )
    if row.aim.ahead and of_best and not any(map(math.isnan, of_best)):
        ratio = statistics.median(of_best)
        words.append(("ahead", ratio > 1 if row.unit == "/s" else ratio < 1))
    if row.aim.at_most is not None:
        words.append(
            (f"< {row.aim.at_most:g} {row.unit}", statistics.median(row.sides[NODE.name]) < row.aim.at_most)
        )
    return ", ".join(f"{text}: {'met' if met else 'MISSED'}" for text, met in words) or "-"
