"""How sides are measured: in turns within one run, so that what disturbs one disturbs the other."""

from collections.abc import Callable, Sequence


def turns(
    repeats: int, ours: Callable[[], float], floor: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Measure both sides in turns; returns the results of each."""
    rounds = [(ours(), floor()) for _ in range(repeats)]
    return [one for one, _ in rounds], [other for _, other in rounds]


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share lies."""
    return sorted(values)[int(len(values) * share)]
