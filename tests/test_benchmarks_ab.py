"""The comparison of two revisions: its arithmetic, that its short form runs, and that it leaves nothing behind."""

import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.ab.__main__ import lacks
from benchmarks.ab.compare import Sample, Spread, idle_share, in_turns, spread, times, too_close, work
from benchmarks.ab.figures import Aim, Case, Line
from benchmarks.ab.page import Result
from benchmarks.ab.trees import NoSuchRevision, commit, imported, trees
from benchmarks.adapter import LACKS
from benchmarks.processes import HERE, Failed, Tree

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PATIENCE = 300
COMPARE = [sys.executable, "-m", "benchmarks.ab"]
RATIO = re.compile(r" \d+\.\d\d\d \(\d+\.\d\d-\d+\.\d\d\) ")


def round_of(older, newer, older_cpu=None, newer_cpu=None):
    return {"rate": Sample(older, older_cpu)}, {"rate": Sample(newer, newer_cpu)}


# --- the arithmetic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "since", "order"),
    [(1, 0, "ab"), (2, 0, "abba"), (3, 0, "abbaab"), (2, 3, "baab")],
)
def test_sides_take_turns_and_neither_is_always_first(pairs, since, order):
    calls = []

    def side(letter):
        calls.append(letter)
        return letter

    rounds = in_turns(pairs, lambda: side("a"), lambda: side("b"), since=since)

    assert "".join(calls) == order
    assert rounds == [("a", "b")] * pairs


def test_spread_is_of_the_ratios_of_pairs_and_not_of_the_medians():
    assert spread([(100, 90), (200, 200), (300, 330)]) == Spread(1.0, 0.9, 1.1, 3)
    assert str(spread([(100, 90), (200, 200), (300, 330)])) == "1.000 (0.90-1.10)"


@pytest.mark.parametrize(
    "pairs", [[], [(0, 1)], [(1, 1), (math.inf, math.inf)], [(1, math.nan)], [(1, math.inf)]]
)
def test_what_is_no_ratio_has_no_spread(pairs):
    assert spread(pairs) is None


@pytest.mark.parametrize(
    ("ratio", "close"),
    [(0.95, False), (0.951, True), (1.0, True), (1.049, True), (1.05, False)],
)
def test_less_than_five_percent_is_too_close_for_times(ratio, close):
    assert Spread(ratio, 0.5, 1.5, 5).close is close
    assert too_close([round_of(1000, 1000 * ratio, 1, 1)]) is close


def test_what_has_no_cpu_seconds_is_never_too_close():
    assert not too_close([round_of(100, 100)])


def test_times_and_cpu_seconds_are_compared_apart():
    rounds = [round_of(100, 101, 2e-5, 1e-5), round_of(100, 103, 2e-5, 3e-5), round_of(100, 99, 2e-5, 2e-5)]

    assert times(rounds, "rate") == Spread(1.01, 0.99, 1.03, 3)
    assert work(rounds, "rate") == Spread(1.0, 0.5, 1.5, 3)


@pytest.mark.parametrize(
    ("runs", "workers", "share"),
    [
        ([(0, 1), (0, 1)], 2, 0),
        ([(0, 1), (1, 2), (0, 2)], 2, 0),
        ([(0, 1), (2, 3)], 1, 1 / 3),
        ([(0, 4), (0, 1), (2, 4)], 2, 1 / 8),
        ([(0, 1), (0, 10)], 2, 0),
    ],
    ids=["at once", "no gap", "a gap", "one of two waits", "nothing waits while the last one runs"],
)
def test_idle_share_counts_workers_without_work_while_a_job_waits(runs, workers, share):
    assert idle_share(runs, workers) == pytest.approx(share)


# --- the page ---------------------------------------------------------------------------------------------------------


def row_of(*rounds, unit="/s", aim=Aim(), **more):  # noqa: B008 - frozen
    case = Case(name="drain", store="sqlite", lines={"rate": Line("", unit, aim)}, measure=lambda _: {})
    return " ".join(Result(case, rounds, **more).rows()[0].split())


def test_row_shows_both_sides_and_cpu_where_times_are_close():
    assert row_of(round_of(100, 102, 2e-5, 1e-5)) == (
        "drain, SQLite 100/s 102/s 1.020 (1.02-1.02) 20.0 -> 10.0 us: 0.500 (0.50-0.50) of 1 -"
    )
    assert row_of(round_of(100, 110, 2e-5, 1e-5)) == "drain, SQLite 100/s 110/s 1.100 (1.10-1.10) - -"


def test_row_of_what_the_older_side_lacks_says_why_and_shows_the_newer_one():
    row = row_of(alone=[{"rate": Sample(7)}], lacking="no store on PostgreSQL")

    assert row == "drain, SQLite - 7/s - - not in REV (no store on PostgreSQL)"


@pytest.mark.parametrize(
    ("aim", "older", "newer", "verdict"),
    [
        (Aim(below=1.5), 14.8, 1.4, "< 1.5 s: met"),
        (Aim(below=1.5), 14.8, 1.5, "< 1.5 s: MISSED"),
        (Aim(below=1.5), 14.8, math.inf, "< 1.5 s: MISSED"),
        (Aim(at_most=1.2), 1, 1.2, "<= 1.2 s: met"),
        (Aim(at_most=1.2), 1, 1.21, "<= 1.2 s: MISSED"),
        (Aim(ratio=0.97), 100, 97, ">= 0.97 of before: met"),
        (Aim(ratio=0.97), 100, 96, ">= 0.97 of before: MISSED"),
    ],
)
def test_aim_is_judged_on_the_newer_side(aim, older, newer, verdict):
    assert row_of(round_of(older, newer), unit="s", aim=aim).endswith(verdict)


# --- the trees --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "said", "lacking"),
    [
        (LACKS, "no store on PostgreSQL", True),
        (2, "jobpipe: no such flag", True),
        (1, "ImportError: cannot import name 'Batch'", True),
        (1, "ModuleNotFoundError: No module named 'jobpipe.engine'", True),
        (1, "AttributeError: 'Node' object has no attribute 'queue'", False),
        (1, "AssertionError", False),
        (-9, "", False),
    ],
)
def test_program_that_lacks_something_is_told_from_one_that_fails(code, said, lacking):
    assert lacks(Failed("drain", code, f"Traceback\n{said}\n")) is lacking


def test_each_side_imports_its_own_code(tmp_path):
    with trees("HEAD", tmp_path) as (older, newer):
        assert imported(older) == (tmp_path / f"jobpipe-{older.name}/jobpipe/__init__.py").resolve()
        assert imported(newer) == ROOT / "jobpipe/__init__.py"
    assert not older.code.exists()


def test_side_that_would_run_other_code_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="not the code of"):
        imported(Tree(code=tmp_path, programs=HERE.programs))


def test_revision_that_does_not_exist_is_refused():
    with pytest.raises(NoSuchRevision, match="no commit 'nonsense'"):
        commit("nonsense")


# --- the whole --------------------------------------------------------------------------------------------------------


def compared(*arguments):
    """The head and the rows of a short comparison."""
    command = [*COMPARE, "HEAD", "--short", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    head, rows, _ = done.stdout.split("\n\n")
    return head, rows.splitlines()[1:]


def test_short_form_compares_every_figure_of_its_own():
    head, rows = compared()

    assert re.search(r"^REV .*/jobpipe-\w+/jobpipe/__init__.py$", head, re.MULTILINE)
    assert re.search(rf"^tree .* {ROOT}/jobpipe/__init__.py$", head, re.MULTILINE)
    assert len(rows) == 10
    assert [row for row in rows if not RATIO.search(row) and "never" not in row] == []


def test_short_form_compares_other_figures_that_are_named():
    _, rows = compared("enqueue", "bulk", "latency", "whole", "start", "--store", "sqlite")

    assert len(rows) == 9
    assert [row for row in rows if not RATIO.search(row)] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_comparison_that_is_ended_takes_its_worktree_away(tmp_path, number):
    command = [*COMPARE, "HEAD", "urgent", "--store", "sqlite", "--dir", str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        assert "measuring urgent" in process.stderr.readline()
        process.send_signal(number)
        code = process.wait(PATIENCE)

    assert code == 128 + number
    assert list(tmp_path.iterdir()) == []
    worktrees = subprocess.check_output(["git", "-C", ROOT, "worktree", "list"], text=True)
    assert str(tmp_path) not in worktrees
