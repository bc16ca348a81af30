"""The page: each figure beside its floor, as ratio with median and spread."""

import dataclasses
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import apsw

from jobpipe.version import VERSION

PACKAGES = ("trio", "quart", "quart-trio", "hypercorn", "h11", "msgspec", "apsw")

FEW = 1000
"""Below this, a value is shown with three digits; from it on, as a whole number."""

HEAD = f"{'figure':<58}{'jobpipe':>12}{'floor':>12}   {'ratio (spread)':<20}{'aim':<30}"


@dataclasses.dataclass(frozen=True)
class Aim:
    """What a figure should be, on its medians. None: not asked."""

    ratio: float | None = None
    """at least this ratio"""
    at_most: float | None = None
    """at most this, in the figure's unit"""
    above: float | None = None
    """at most this much above the floor, in the figure's unit"""
    within: float | None = None
    """at most this share slower than the floor"""

    def judged(self, row: "Row") -> str:
        """The aim in words, and whether it is met."""
        ours, floor, ratio = row.middle, row.floor_middle, statistics.median(row.ratios)
        words: list[tuple[str, bool]] = []
        if self.ratio is not None:
            words.append((f">= {self.ratio:g}", ratio >= self.ratio))
        if self.at_most is not None:
            words.append((f"< {self.at_most:g} {row.unit}", ours < self.at_most))
        if self.above is not None:
            words.append(
                (f"< floor + {self.above:g}; is {ours - floor:+.2f} {row.unit}", ours < floor + self.above)
            )
        if self.within is not None:
            slower = ratio <= 1 + self.within if row.less_is_better else ratio >= 1 - self.within
            words.append((f"within {self.within:.0%}", slower))
        return ", ".join(f"{text}: {'met' if met else 'MISSED'}" for text, met in words) or "-"


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure: repeat by repeat, with its floor."""

    name: str
    ours: Sequence[float]
    floor: Sequence[float]
    unit: str = "/s"
    aim: Aim = Aim()

    @property
    def less_is_better(self) -> bool:
        """Whether it is a time or a size, and no rate."""
        return self.unit != "/s"

    @property
    def middle(self) -> float:
        """The median of the figure."""
        return statistics.median(self.ours)

    @property
    def floor_middle(self) -> float:
        """The median of its floor."""
        return statistics.median(self.floor)

    @property
    def ratios(self) -> list[float]:
        """Each repeat beside the floor that was measured next to it."""
        return [ours / floor for ours, floor in zip(self.ours, self.floor, strict=True)]

    def __str__(self) -> str:
        ratio = statistics.median(self.ratios)
        spread = f"{ratio:.2f} ({min(self.ratios):.2f}-{max(self.ratios):.2f})"
        ours, floor = self._shown(self.middle), self._shown(self.floor_middle)
        return f"{self.name:<58}{ours:>12}{floor:>12}   {spread:<20}{self.aim.judged(self)}"

    def _shown(self, value: float) -> str:
        return f"{value:,.0f}{self.unit}" if value >= FEW else f"{value:.3g} {self.unit}".replace(" /s", "/s")


def about(folder: Path) -> str:
    """Machine, versions and date."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return "\n".join(
        [
            f"date      {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC",
            f"machine   {_processor()}, {os.cpu_count()} cores, {_memory():.0f} GB, load {os.getloadavg()[0]:.1f}",
            f"system    {platform.system()} {platform.release()}, temporary files on {_file_system(folder)}",
            f"versions  jobpipe {VERSION}, Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()},",
            f"          {versions}",
            f"command   python -m benchmarks {' '.join(sys.argv[1:])}".rstrip(),
        ]
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _file_system(folder: Path) -> str:
    """The type of the file system: on one in memory, fsync costs nothing, and the page says nothing about disks."""
    mounts = Path("/proc/mounts")
    lines = mounts.read_text(encoding="utf-8").splitlines() if mounts.exists() else []
    fields = [line.split() for line in lines]
    above = [one for one in fields if folder.is_relative_to(one[1])]
    return max(above, key=lambda one: len(one[1]))[2] if above else "an unknown file system"
