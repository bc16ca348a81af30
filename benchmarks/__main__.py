"""One page: what jobpipe costs beside the least that the same work can cost on this machine. Ends by itself."""

import argparse
import dataclasses
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.features import SHORT
from benchmarks.figures import FIGURES, Plan
from benchmarks.report import HEAD, about

MILLION = 1_000_000


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "figures", nargs="*", metavar="FIGURE", help=f"which ones, all by default: {', '.join(FIGURES)}"
    )
    parser.add_argument("--short", action="store_true", help="a second each: that it runs, not how fast")
    parser.add_argument("--repeats", type=int, help="how often each side is measured (5)")
    parser.add_argument("--seconds", type=float, help="of load over HTTP, each time (3)")
    parser.add_argument(
        "--behind",
        type=int,
        nargs="?",
        const=MILLION,
        default=0,
        metavar="JOBS",
        help="measure with so many jobs (1,000,000) scheduled, waiting and finished behind it, too: takes long",
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=6,
        choices=range(3, 8),
        help="the table of costs goes up to 10^ROWS rows (6)",
    )
    parser.add_argument("--dir", type=Path, help="where temporary files go: the disk that is measured")
    asked = parser.parse_args()
    if "behind" in asked.figures:
        asked.behind = asked.behind or MILLION
    if unknown := set(asked.figures) - set(FIGURES):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    return asked


def plan(asked: argparse.Namespace, folder: Path) -> Plan:
    """How much is measured."""
    made = Plan(folder=folder, rows=[10**power for power in range(3, asked.rows + 1)], behind=asked.behind)
    if asked.short:
        made = dataclasses.replace(
            made,
            repeats=1,
            seconds=0.1,
            lines=500,
            backlogs=(300,),
            queue_sizes=(64,),
            samples=5,
            waiting=1000,
            rows=(100, 1000),
            batches=2,
            features=SHORT,
        )
    own = {"repeats": asked.repeats, "seconds": asked.seconds}
    return dataclasses.replace(made, **{name: value for name, value in own.items() if value})


def measure(names: Sequence[str], made: Plan) -> None:
    """Measure, and print each row as it is known."""
    for name in names:
        print(f"measuring {name} ...", file=sys.stderr)
        for row in FIGURES[name](made):
            print(row, flush=True)


def main() -> None:
    """Print the page."""
    asked, began = arguments(), time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # servers and files go with it
    with tempfile.TemporaryDirectory(prefix="jobpipe-bench-", dir=asked.dir) as folder:
        made = plan(asked, Path(folder).resolve())
        print(f"{about(made.folder)}\n\n{HEAD}", flush=True)
        measure(asked.figures or list(FIGURES), made)
    print(
        f"\n{made.repeats} repeats of each side, in turns; took {(time.monotonic() - began) / 60:.1f} minutes"
    )


if __name__ == "__main__":
    main()
