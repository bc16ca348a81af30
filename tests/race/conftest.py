"""How many seeds, and which."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SHORT = 25
"""Seeds where nobody says how many: the short form."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("race", "schedules of Trio")
    group.addoption(
        "--race-seeds", type=int, default=SHORT, help=f"how many seeds each scene plays ({SHORT})"
    )
    group.addoption("--race-seed", type=int, help="the one seed to play; also JOBPIPE_TEST_SEED")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", _seeds(metafunc.config), ids=lambda seed: f"seed{seed}")


def _seeds(config: pytest.Config) -> list[int]:
    one = config.getoption("race_seed", None)
    if one is None and (text := os.environ.get("JOBPIPE_TEST_SEED")):
        one = int(text)
    return list(range(config.getoption("race_seeds", SHORT))) if one is None else [one]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where the machine has one, so that a commit costs no disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)
