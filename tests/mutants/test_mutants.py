"""Each mutant is caught by what is meant for it, and the very same scene or test finds nothing without it."""

import inspect

import pytest

from jobpipe.store.memory import open_memory
from tests.mutants.mutants import CAUGHT_BY, FAILS, Caught, Mutant, Test
from tests.race.scenes import played
from tests.race.scheduling import run
from tests.race.witness import Faults
from tests.store.test_contract import LEASE, Node

pytestmark = pytest.mark.mutants

SEEDS = range(1, 61)
"""As many schedules as a mutant may survive at the most, and no more than the short form of `test-race` plays twice."""


def broken_rules(caught: Caught, seed: int) -> set[str]:
    """The rules that a scene finds broken."""
    try:
        run(seed, lambda: played(caught.scene, caught.store, seed), virtual=True)
    except Faults as faults:
        return faults.rules
    return set()


def catches(mutant: Mutant, caught: Caught, seed: int) -> bool:
    """Whether the mutant breaks a rule that is meant for it, in a scene that is clean without it."""
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        if not broken_rules(caught, seed) & caught.rules:
            return False
    return broken_rules(caught, seed) == set()


@pytest.mark.parametrize("mutant", CAUGHT_BY, ids=lambda mutant: mutant.__name__)
def test_a_mutant_is_caught(mutant: Mutant) -> None:
    """By the rule that is meant for it, within a bounded number of schedules."""
    caught = CAUGHT_BY[mutant]
    seed = next((seed for seed in SEEDS if catches(mutant, caught, seed)), None)

    assert seed is not None, f"{mutant.__name__} survives: {mutant.__doc__}"


async def passes(test: Test) -> bool:
    """Whether a test of the stores passes over an empty one in memory."""
    async with open_memory() as store:
        fixtures = {"store": store, "node": Node(store), "other": Node(store, "other")}
        asked = {name: fixtures[name] for name in inspect.signature(test).parameters}
        for one in asked.values():
            if isinstance(one, Node):
                await one.join(lease_until=LEASE if one.name == "node" else LEASE + 1e6)
        try:
            await test(**asked)
        except AssertionError:
            return False
        return True


@pytest.mark.parametrize("mutant", FAILS, ids=lambda mutant: mutant.__name__)
async def test_a_mutant_fails_the_test_of_what_it_breaks(
    mutant: Mutant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which passes without it."""
    sound = await passes(FAILS[mutant])
    mutant(monkeypatch)

    assert sound
    assert not await passes(FAILS[mutant]), f"{mutant.__name__} survives: {mutant.__doc__}"
