"""What each feature costs beside the same work without it, over any store: a figure each, for both pages."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial

from benchmarks.measuring import quantile, turns
from benchmarks.processes import run
from benchmarks.report import Row

QUEUE_SIZE = 64

GROUP = 11
"""Jobs of a small group: ten, and the one that waits for them."""

PER_SECOND = 1_000_000 / 86_400
"""How many schedules fire in a second, however many there are: as a million over a day."""

FEW = 12
"""As few schedules as can fire so often: none fires more than once a second."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Amounts:
    """How much is measured."""

    repeats: int = 5
    backlogs: Sequence[int] = (5_000, 20_000, 100_000)
    limited: int = 5_000
    """jobs of a drain where limits count: each takes its own way through the store"""
    keys: Sequence[int] = (10, 1_000, 100_000)
    others: int = 99
    """how many keys have one job each, beside the one that has most"""
    requests: int = 5_000
    """for jobs that are merged with others"""
    fan_in: int = 10_000
    """members of one group"""
    schedules: Sequence[int] = (100, 10_000, 1_000_000)
    firings: int = 40
    seconds: float = 10.0
    """for which a node fires schedules, each time"""

    @property
    def backlog(self) -> int:
        """The usual number of jobs of a drain."""
        return sorted(self.backlogs)[len(self.backlogs) // 2]


USUAL = Amounts()
SHORT = Amounts(
    repeats=1,
    backlogs=(300,),
    limited=50,
    keys=(3,),
    others=5,
    requests=50,
    fan_in=200,
    schedules=(100, 300),
    firings=2,
    seconds=1.0,
)
"""That it runs, not how fast."""

NewStore = Callable[[], AbstractContextManager[str]]
"""The URL of a new store, which is taken away in the end."""

Feature = Callable[[Amounts, NewStore], Iterator[Row]]


@dataclasses.dataclass(frozen=True)
class Drain:
    """A drain of so many jobs that use a feature (see `benchmarks.drain`), out of more that wait."""

    jobs: int
    shape: str
    number: int = 0
    waiting: int = 0

    def beside_plain(self, repeats: int, store: NewStore) -> tuple[list[float], list[float]]:
        """Seconds of it, and of the same without the feature, in turns."""
        plain = dataclasses.replace(self, shape="", number=0)
        return turns(repeats, partial(self.seconds, store), partial(plain.seconds, store))

    def seconds(self, store: NewStore) -> float:
        """Seconds of it."""
        with store() as url:
            shape = (self.shape, self.number, self.waiting)
            return float(run("drain", url, self.jobs, QUEUE_SIZE, "full", *shape)["seconds"])

    def row(self, name: str, amounts: Amounts, store: NewStore) -> Row:
        """Jobs a second of both."""
        ours, floor = self.beside_plain(amounts.repeats, store)
        rates = ([self.jobs / seconds for seconds in side] for side in (ours, floor))
        return Row(f"drain of {self.jobs:,}{name}", *rates)


def keys(amounts: Amounts, store: NewStore) -> Iterator[Row]:
    """Jobs with keys, and with a limit for each key, beside the same jobs without."""
    for number in amounts.keys:
        for shape, jobs, words in (
            ("keys", amounts.backlog, ""),
            ("limited-keys", amounts.limited, ", 2 at once of each"),
        ):
            drain = Drain(jobs, shape, number, waiting=max(jobs, number))
            yield drain.row(f", {number:,} keys{words}", amounts, store)


def limits(amounts: Amounts, store: NewStore) -> Iterator[Row]:
    """Jobs of a queue whose limits never hold anything up, beside one without limits."""
    for shape, words in (("max-running", "max_running"), ("rate", "a rate")):
        yield Drain(amounts.limited, shape).row(f", {words}", amounts, store)


def groups(amounts: Amounts, store: NewStore) -> Iterator[Row]:
    """Jobs in small groups, each with one that waits for the others, beside as many without."""
    for jobs in amounts.backlogs:
        yield Drain(jobs, "groups", GROUP).row(" in groups of 10 + 1", amounts, store)


def depends(amounts: Amounts, store: NewStore) -> Iterator[Row]:
    """Jobs of which every second depends on the one before it, beside as many without."""
    for jobs in amounts.backlogs:
        yield Drain(jobs, "depends").row(", half depend on the others", amounts, store)


def fan_in(amounts: Amounts, store: NewStore) -> Iterator[Row]:
    """One large group, until the job that waits for it has run, beside a drain of as many jobs."""
    jobs = amounts.fan_in + 1
    seconds = Drain(jobs, "groups", jobs).beside_plain(amounts.repeats, store)
    yield Row(f"fan-in of {amounts.fan_in:,}, 1 node", *seconds, unit="s")


def fair(amounts: Amounts, store: NewStore) -> Iterator[Row]:
    """The wait of keys with one job each while another key has very many, beside the same while it has none."""
    backlog = max(amounts.backlogs)

    def wait(jobs: int) -> float:
        with store() as url:
            return float(run("turns", url, jobs, amounts.others)["seconds"] * 1000)

    sides = turns(amounts.repeats, partial(wait, backlog), partial(wait, 0))
    yield Row(f"{amounts.others} keys beside one with {backlog:,}", *sides, unit="ms")


def merged(way: str, amounts: Amounts, store: NewStore, sides: Sequence[str] = ("taken",)) -> Iterator[Row]:
    """Enqueues of jobs that are merged with others, at more and more keys that are taken, beside plain ones."""
    for number in amounts.keys:
        rounds = []
        for _ in range(amounts.repeats):
            with store() as url:
                rounds.append(run("merging", url, way, number, amounts.requests))
        for side in sides:
            for calls in ("", " in calls of 1,000"):
                yield Row(
                    f"{way}, {side} keys, {number:,} taken{calls}",
                    [one[side + calls] for one in rounds],
                    [one["none" + calls] for one in rounds],
                )


def unique(amounts: Amounts, store: NewStore) -> Iterator[Row]:
    """Enqueues of unique jobs, whose keys are new or taken, beside jobs without a key."""
    yield from merged("unique", amounts, store, ("new", "taken"))


def merging(amounts: Amounts, store: NewStore) -> Iterator[Row]:
    """Enqueues for windows and quiet periods that have begun, beside jobs without."""
    for way in ("throttle", "debounce"):
        yield from merged(way, amounts, store)


def schedules(amounts: Amounts, store: NewStore) -> Iterator[Row]:
    """What a firing costs at more and more schedules, and a node that fires many of them beside one that has few."""
    with ExitStack() as stack:

        def scheduled(count: int) -> str:
            url = stack.enter_context(store())
            run("schedules", "fill", url, count, count / PER_SECOND)
            return url

        urls = [scheduled(count) for count in amounts.schedules]
        yield from _firing_nodes(amounts, urls[-1], scheduled(FEW))
        costs = run("schedules", "costs", amounts.repeats, amounts.firings, *urls)
    least = amounts.schedules[0]
    for at_once, words in (("1", "a firing"), ("100", "a firing among 100")):
        for count, cost in zip(amounts.schedules, costs, strict=True):
            yield Row(
                f"{words}, {count:,} schedules, beside {least:,}", cost[at_once], costs[0][at_once], "us"
            )


def _firing_nodes(amounts: Amounts, many: str, few: str) -> Iterator[Row]:
    """A node with many schedules and one with few, in turns."""
    rounds = [
        [run("schedules", "fires", url, amounts.seconds) for url in (many, few)]
        for _ in range(amounts.repeats)
    ]
    name = f"{max(amounts.schedules):,} schedules"
    cpu = [[100 * one["cpu"] for one in sides] for sides in zip(*rounds, strict=True)]
    yield Row(f"CPU of {name}, {PER_SECOND:.3g} a second, beside {FEW}", cpu[0], cpu[1], "%")
    for share, word in ((0.5, "median"), (0.99, "p99")):
        sides = [[1000 * quantile(one[side]["late"], share) for one in rounds] for side in (0, 1)]
        yield Row(f"firing to start, {word}, {name}, beside {FEW}", *sides, unit="ms")


FEATURES: dict[str, Feature] = {
    "keys": keys,
    "limits": limits,
    "fair": fair,
    "unique": unique,
    "merging": merging,
    "depends": depends,
    "groups": groups,
    "fan-in": fan_in,
    "schedules": schedules,
}
