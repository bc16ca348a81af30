"""One page: nodes over PostgreSQL, beside the least that the same work can cost and other queues. Ends by itself."""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.features import SHORT
from benchmarks.postgres.figures import FIGURES, Plan
from benchmarks.postgres.page import HEAD, line
from benchmarks.postgres.server import Server, server
from benchmarks.processes import ROOT, environment
from benchmarks.report import about

PACKAGES = ("psycopg", "pgqueuer", "asyncpg", "procrastinate")
POINTS = 10
DAY_IN_SMALL = 2_000_000


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.postgres", description=__doc__)
    parser.add_argument(
        "figures", nargs="*", metavar="FIGURE", help=f"which ones, all by default: {', '.join(FIGURES)}"
    )
    parser.add_argument(
        "--short", action="store_true", help="as little as can be: that it runs, not how fast"
    )
    parser.add_argument("--nodes", type=int, nargs="+", help="with how many nodes (1 2 4)")
    parser.add_argument("--repeats", type=int, help="how often each side is measured (3)")
    parser.add_argument("--backlog", type=int, help="how many jobs are drained (50000)")
    parser.add_argument("--seconds", type=float, help="of load, each time (3)")
    parser.add_argument(
        "--churn",
        type=int,
        nargs="?",
        const=DAY_IN_SMALL,
        metavar="JOBS",
        help="instead: so many jobs (2,000,000) through the tables, and how the tables look along the way",
    )
    parser.add_argument("--url", help="a server whose user may make databases; by default one is started")
    parser.add_argument("--dir", type=Path, help="where temporary files go: the disk that is measured")
    asked = parser.parse_args()
    if unknown := set(asked.figures) - set(FIGURES):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    return asked


def plan(asked: argparse.Namespace, on: Server, folder: Path) -> Plan:
    """How much is measured."""
    own = {name: getattr(asked, name) for name in ("nodes", "repeats", "backlog", "seconds")}
    short = (
        {"nodes": (1, 2), "repeats": 1, "backlog": 200, "seconds": 0.3, "rates": (50,), "features": SHORT}
        if asked.short
        else {}
    )
    return Plan(server=on, folder=folder, **short | {name: value for name, value in own.items() if value})


def measure(asked: argparse.Namespace, made: Plan) -> None:
    """Measure, and print each line as it is known."""
    print(HEAD, flush=True)
    for name in asked.figures or FIGURES:
        print(f"measuring {name} ...", file=sys.stderr)
        for row in FIGURES[name](made):
            print(line(row), flush=True)


def churn(jobs: int, on: Server) -> None:
    """Drive so many jobs through the tables of a new database."""
    with on.database() as url:
        command = [sys.executable, "-m", "benchmarks.postgres.churn", url, str(jobs), str(POINTS)]
        subprocess.run(command, cwd=ROOT, env=environment(), check=True)


def main() -> None:
    """Print the page."""
    asked, began = arguments(), time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # servers and files go with it
    with (
        tempfile.TemporaryDirectory(prefix="jobpipe-bench-", dir=asked.dir) as name,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(name).resolve()
        folder.chmod(0o755)  # a server that root starts runs as another user
        on = Server(asked.url) if asked.url else stack.enter_context(server(folder))
        there = [package for package in PACKAGES if importlib.util.find_spec(package)]
        versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in there)
        head = about(folder).replace("-m benchmarks", "-m benchmarks.postgres")
        print(f"{head}\nserver    {on.about()}\nbeside    {versions}\n", flush=True)
        if asked.churn:
            churn(asked.churn, on)
        else:
            measure(asked, plan(asked, on, folder))
    print(f"\ntook {(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
