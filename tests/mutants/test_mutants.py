"""Each mutant is caught by the rule that is meant for it, and the very same scene finds nothing without it."""

import pytest

from tests.mutants.mutants import CAUGHT_BY, Caught, Mutant
from tests.race.scenes import played
from tests.race.scheduling import run
from tests.race.witness import Faults

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
