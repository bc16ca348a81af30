"""Everything at once, under many schedules: whatever the order, no job is lost, doubled or miscounted.

A failure names its seed; `just test-race --race-seed 17` (or JOBPIPE_TEST_SEED=17) plays that one again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.race.scenes import SCENES, played
from tests.race.scheduling import run
from tests.race.witness import Witness

pytestmark = pytest.mark.race


@contextmanager
def telling(seed: int) -> Iterator[None]:
    """Print how to have a failure again."""
    try:
        yield
    except BaseException:
        print(f"\nseed {seed}: play it again with --race-seed {seed}, or JOBPIPE_TEST_SEED={seed}")  # noqa: T201 - for who reads the failure
        raise


def virtual(scene: str, kind: str, seed: int) -> Witness:
    """A scene on a memory store."""
    return run(seed, lambda: played(scene, kind, seed), virtual=True)


@pytest.mark.parametrize("kind", ["memory", "lasting"])
def test_everything_at_once_in_virtual_time(kind: str, seed: int) -> None:
    """Enqueue, claim, settle, cancel, retry, delete, pause, lease loss, rescue, drain, stop and crash, all at once."""
    with telling(seed):
        virtual("storm", kind, seed)


def test_everything_at_once_on_sqlite(folder: Path, seed: int) -> None:
    """The same in real time, with the store's threads."""
    with telling(seed):
        run(seed, lambda: played("storm", "sqlite", seed, folder), virtual=False)


@pytest.mark.parametrize("scene", [scene for scene in SCENES if scene != "storm"])
def test_two_nodes_on_one_store(scene: str, seed: int) -> None:
    """No run overlaps another, though one of the nodes is cut off, answered late, crashes or drains."""
    with telling(seed):
        virtual(scene, "memory", seed)


def test_a_seed_plays_the_same_again() -> None:
    """In virtual time, step by step."""
    scripts = [
        [(run.id, run.claim, run.came_to) for run in virtual("storm", "lasting", 7).runs] for _ in range(2)
    ]

    assert scripts[0]
    assert scripts[0] == scripts[1]


def test_another_seed_plays_another_order() -> None:
    """Else many seeds would prove no more than one."""

    def order(seed: int) -> list[str]:
        return [one.id for one in run(seed, lambda: played("pair", "memory", 3), virtual=True).runs]

    assert len({tuple(order(seed)) for seed in range(8)}) > 1
