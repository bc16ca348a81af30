"""The benchmarks run to their end. How fast is not asked here: a busy machine must not fail a test."""

import itertools
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.figures import FIGURES
from benchmarks.load import load
from benchmarks.report import Aim, Row

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PATIENCE = 120

ROWS = {
    "enqueue": 2,
    "bulk": 1,
    "drain": 1,
    "drain-normal": 1,
    "latency": 4,
    "whole": 1,
    "memory": 2,
    "start": 2,
    "growth": 6,
    "keys": 2,
    "limits": 2,
    "fair": 1,
    "unique": 4,
    "merging": 4,
    "depends": 1,
    "groups": 1,
    "fan-in": 1,
    "schedules": 7,
}
"""How many rows the short form has for each figure."""

ABOUT = ["date", "machine", "system", "versions", "command"]
RATIO = re.compile(r" \d+\.\d\d \(\d+\.\d\d-\d+\.\d\d\) ")


def page(*arguments, program="benchmarks"):
    """What `python -m benchmarks` prints: the head, and the rows."""
    command = [sys.executable, "-m", program, "--short", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    about, rows, _ = done.stdout.split("\n\n")
    return about, rows.splitlines()[1:]


@pytest.mark.parametrize(("figure", "count"), ROWS.items())
def test_short_form_prints_a_ratio_for_each_figure(figure, count):
    about, rows = page(figure)

    assert [line.split()[0] for line in about.splitlines() if line[0] != " "] == ABOUT
    assert len(rows) == count
    assert [row for row in rows if not RATIO.search(row)] == []


@pytest.mark.parametrize(("figure", "count"), [("drain", 2), ("beside", 2), ("fan-in", 1), ("schedules", 7)])
def test_nodes_over_postgresql_are_measured_beside_their_floor(figure, count):
    """Other queues are left out where they are not installed, as here."""
    about, rows = page(figure, "--nodes", "1", program="benchmarks.postgres")

    assert "fsync on, synchronous_commit on" in about
    assert len(rows) == count
    assert [row for row in rows if not RATIO.search(row)] == []


def test_tables_are_shown_along_the_way_of_many_jobs():
    _, rows = page("--churn", "2000", program="benchmarks.postgres")

    assert len([row for row in rows if " live " in row]) == 10


def test_every_figure_is_tried_but_those_with_jobs_behind():
    """Those run the same programs on a file that was filled before: they take longer than a test may."""
    assert set(FIGURES) - set(ROWS) == {"behind"}


def test_figure_that_does_not_exist_is_refused_with_those_that_do():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "speed"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert done.returncode == 2
    assert all(figure in done.stderr for figure in FIGURES)


@pytest.fixture
def moody_port():
    """A server that hangs up on every other connection, and answers the others once."""

    def serve():
        for number in itertools.count():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65_536)
                if number % 2:
                    connection.sendall(b"HTTP/1.1 202 \r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_load_goes_on_over_a_new_connection_when_the_server_closes_one(moody_port):
    told = load(moody_port, connections=1, seconds=0.05, prefix="a", queue="default")

    assert set(told["answers"]) == {"202"}
    assert told["answers"]["202"] > 1


@pytest.mark.parametrize(
    ("aim", "ours", "unit", "verdict"),
    [
        (Aim(ratio=0.8), 80, "/s", ">= 0.8: met"),
        (Aim(ratio=0.8), 79, "/s", ">= 0.8: MISSED"),
        (Aim(at_most=70), 69.9, "MB", "< 70 MB: met"),
        (Aim(at_most=70), 70, "MB", "< 70 MB: MISSED"),
        (Aim(above=1), 100.5, "ms", "< floor + 1; is +0.50 ms: met"),
        (Aim(above=1), 101.5, "ms", "< floor + 1; is +1.50 ms: MISSED"),
        (Aim(within=0.1), 91, "/s", "within 10%: met"),
        (Aim(within=0.1), 89, "/s", "within 10%: MISSED"),
        (Aim(within=0.1), 109, "ms", "within 10%: met"),
        (Aim(within=0.1), 111, "ms", "within 10%: MISSED"),
        (Aim(), 1, "s", "-"),
    ],
)
def test_aim_is_judged_on_the_medians(aim, ours, unit, verdict):
    row = Row("figure", [ours, ours, 1000], [100, 100, 1000], unit, aim)

    assert aim.judged(row) == verdict


def test_row_shows_medians_and_the_ratio_of_each_pair_that_was_measured_together():
    row = Row("drain", [90, 200, 330], [100, 200, 300])

    assert str(row).split() == ["drain", "200/s", "200/s", "1.00", "(0.90-1.10)", "-"]
