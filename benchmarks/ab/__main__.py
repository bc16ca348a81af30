"""Compares a revision with this tree as it is, in turns: A B, B A, A B ... Leaves nothing behind."""

import argparse
import dataclasses
import functools
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.ab.compare import in_turns, too_close
from benchmarks.ab.figures import FIGURES, POSTGRES, STORES, Case, Plan, cases
from benchmarks.ab.page import Result, head
from benchmarks.ab.trees import NoSuchRevision, imported, trees
from benchmarks.adapter import LACKS
from benchmarks.postgres.server import Server, server
from benchmarks.processes import Failed, Tree
from benchmarks.report import about

REFUSED = 2
"""Exit code of a service that does not know a setting, or a store."""

INTERRUPTED = 130

IN_SHORT = ("drain", "two-nodes", "urgent", "mixed")
"""What the short form compares when nothing is named."""

SHORT = {
    "pairs": 1,
    "cpu_pairs": 1,
    "seconds": 0.1,
    "lines": 500,
    "backlog": 300,
    "samples": 5,
    "shared": (16, 0.05),
    "reports": (12, 0.1),
    "mixture": (12, 0.1),
}


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ab", description=__doc__)
    parser.add_argument("revision", metavar="REV", help="the older side: a commit, a branch, a tag")
    parser.add_argument(
        "figures",
        nargs="*",
        metavar="FIGURE",
        help=f"which ones, all by default: {', '.join(FIGURES)} (with --short: {', '.join(IN_SHORT)})",
    )
    parser.add_argument("--store", choices=STORES, help="over one store only")
    parser.add_argument("--pairs", type=int, help="how often each side is measured (2 to 5, by figure)")
    parser.add_argument(
        "--short", action="store_true", help="as little as can be: that it runs, not how fast"
    )
    parser.add_argument("--url", help="a PostgreSQL whose user may make databases; by default one is started")
    parser.add_argument("--dir", type=Path, help="where temporary files go: the disk that is measured")
    asked = parser.parse_intermixed_args()  # flags may stand between figures
    if unknown := set(asked.figures) - set(FIGURES):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    return asked


def plan(asked: argparse.Namespace, folder: Path, database: Callable[[], Server]) -> Plan:
    """How much is measured."""
    made = Plan(folder=folder, database=database)
    if asked.short:
        made = dataclasses.replace(made, **SHORT)
    return dataclasses.replace(made, pairs=asked.pairs or made.pairs)


def compare(case: Case, older: Tree, newer: Tree, made: Plan) -> Result:
    """Measure both in turns; where times are too close to tell, until there are enough pairs for CPU seconds.

    Raises `Failed` when a side ends otherwise than it should, but not where the older one lacks the figure.
    """
    pairs = made.pairs or case.pairs
    sides = (partial(case.measure, older), partial(case.measure, newer))
    if case.store == POSTGRES and not (older.code / "jobpipe" / "store" / "postgres").exists():
        return Result(case, alone=[sides[1]() for _ in range(pairs)], lacking="no store on PostgreSQL")
    try:
        rounds = in_turns(pairs, *sides)
    except Failed as failure:
        if not lacks(failure):
            raise
        return Result(case, alone=[sides[1]() for _ in range(pairs)], lacking=failure.last_line)
    if too_close(rounds) and pairs < made.cpu_pairs:
        rounds += in_turns(made.cpu_pairs - pairs, *sides, since=pairs)
    return Result(case, rounds)


def lacks(failure: Failed) -> bool:
    """Whether a program could not begin, since its version of jobpipe has not what it needs."""
    missing = ("ImportError", "ModuleNotFoundError", "AttributeError: module")
    return failure.code in (LACKS, REFUSED) or failure.last_line.startswith(missing)


def measure(asked: argparse.Namespace, folder: Path, stack: ExitStack) -> int:
    """Compare, and print each row as it is known; returns how many figures failed."""
    older, newer = stack.enter_context(trees(asked.revision, folder))
    print(f"{about(folder).replace('-m benchmarks', '-m benchmarks.ab')}")
    for side, tree in (("REV", older), ("tree", newer)):
        print(f"{side:<10}{tree.name}: {imported(tree)}")
    print(f"\n{head(older.name, newer.name)}", flush=True)

    @functools.cache
    def database() -> Server:
        return Server(asked.url) if asked.url else stack.enter_context(server(folder))

    made, failed = plan(asked, folder, database), 0
    stores = [asked.store] if asked.store else list(STORES)
    for case in cases(made, asked.figures or (IN_SHORT if asked.short else list(FIGURES)), stores):
        print(f"measuring {case.name or 'start'} on {STORES[case.store]} ...", file=sys.stderr)
        try:
            print(*compare(case, older, newer, made).rows(), sep="\n", flush=True)
        except (Failed, AssertionError, TimeoutError) as failure:
            print(f"{case.name or 'start'}, {STORES[case.store]}: FAILED: {failure}", flush=True)
            failed += 1
    return failed


def main() -> int:
    """Print the page; returns the exit code."""
    asked, began = arguments(), time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # the worktree and servers go with it
    with tempfile.TemporaryDirectory(prefix="jobpipe-bench-", dir=asked.dir) as name, ExitStack() as stack:
        folder = Path(name).resolve()
        folder.chmod(0o755)  # a server that root starts runs as another user
        try:
            failed = measure(asked, folder, stack)
        except NoSuchRevision as error:
            print(error, file=sys.stderr)
            return REFUSED
    print(f"\ntook {(time.monotonic() - began) / 60:.1f} minutes")
    return min(failed, 1)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
