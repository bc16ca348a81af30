"""What this node counts of its own work, for `/metrics`: plain numbers that only grow. Pure.

The first `MOST` kinds and queues that are seen have counts of their own for as long as the process lives; all later
ones share one. So nothing that is counted moves from one name to another, and no count ever goes back.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Generic, TypeVar

from jobpipe.job import NewJob, Outcome, Status
from jobpipe.store.base import Batch, Receipt, Receipts, Settlement

MOST = 64
"""How many kinds, and how many queues, are counted by their names."""

PAIRS = 128
"""How many pairs of a kind and a queue are counted by their names; of a later one only the kind is."""

OTHER = "other"
"""What all those are counted under that have no counts of their own."""

NOBODY = "none"
"""In the place of a kind: no handler was seen to be to blame."""

WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
"""Upper bounds of the buckets, in seconds, from the time a job is due to its start."""

RUNS = (*WAITS, 21_600)
"""The same of attempts."""

LAGS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
"""The same of how late the event loop is."""

WRITES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
"""The same of transactions."""

CANCELS = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""The same from the wish to cancel a handler to its end."""

FIRINGS = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300, 3600)
"""The same of how late schedules fire."""

SIZES = (1, 4, 16, 64, 256, 1024, 4096)
"""Upper bounds of the buckets of numbers of jobs."""

K = TypeVar("K")
V = TypeVar("V")

_JOBS, _PAIR, _VERDICT = attrgetter("jobs"), attrgetter("kind", "queue"), attrgetter("verdict")
_ALL_STORED = {"stored"}


class Histogram:
    """How many values fell into each bucket, and their sum. The last bucket has no bound."""

    __slots__ = ("bounds", "buckets", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.total = bounds, 0.0
        self.buckets = [0] * (len(bounds) + 1)

    def add(self, values: list[float]) -> None:
        """Count values; one below 0, as where a clock was set back, as 0. Of many each costs little. Sorts the list."""
        if not values:
            return
        values.sort()
        if values[0] < 0:
            values = [max(value, 0.0) for value in values]
        self.total += sum(values)
        at, last = 0, len(values)
        for bucket, bound in enumerate(self.bounds):
            end = bisect_right(values, bound, at)
            self.buckets[bucket] += end - at
            if end == last:
                return
            at = end
        self.buckets[-1] += last - at


class Work:
    """What has come of the attempts of a kind."""

    __slots__ = ("ends", "runs")

    def __init__(self) -> None:
        self.ends: defaultdict[tuple[Outcome | None, Status], int] = defaultdict(int)
        """how many ended with an outcome, and left their job with a status; None: handed back without having begun"""
        self.runs = Histogram(RUNS)


class Count:
    """A number that grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Labels:
    """Which names have counts of their own: the first `MOST` that are asked for. They never lose them."""

    def __init__(self) -> None:
        self._own: set[str] = set()

    def of(self, name: str) -> str:
        """What a name is counted under: itself, or `OTHER`."""
        if name in self._own:
            return name
        if name == OTHER or len(self._own) >= MOST:
            return OTHER
        self._own.add(name)
        return name


class Named(dict[K, V], Generic[K, V]):
    """What is counted under each label. A name is looked up as it is: those that are labels are found at once."""

    def __init__(self, label: Callable[[K], K], make: Callable[[], V]) -> None:
        super().__init__()
        self._label, self._make = label, make

    def __missing__(self, name: K) -> V:
        label = self._label(name)
        if label not in self:
            self[label] = self._make()
        return self[label]


class Tallies:
    """What is counted. Whoever learns of something counts it; only what the store has written counts as done."""

    def __init__(self) -> None:
        self.kinds, self.queues = Labels(), Labels()
        self.work: Named[str, Work] = Named(self.kinds.of, Work)
        """by kind"""
        self.waits: Named[str, Histogram] = Named(self.queues.of, lambda: Histogram(WAITS))
        """by queue: seconds from the time that a job was due to the start of an attempt, counted at its end"""
        self.enqueued: Named[tuple[str, str], Count] = Named(self._pair, Count)
        """by kind and queue: new jobs"""
        self.commits = Histogram(WRITES)
        """seconds that exchanges with the store took"""
        self.sizes = {part: Histogram(SIZES) for part in ("adds", "outcomes", "claims")}
        """how many jobs an exchange had of each part that it had"""
        self.cancels = Histogram(CANCELS)
        self.lags = Histogram(LAGS)
        self.blocked: Named[str, Count] = Named(
            lambda kind: NOBODY if kind == NOBODY else self.kinds.of(kind), Count
        )
        """by kind, or under `NOBODY`: seconds for which the event loop was blocked"""
        self.rescued: Counter[bool] = Counter()
        """jobs taken back from dead nodes, by whether they had begun"""
        self.fired: Counter[str] = Counter()
        """firings of schedules, by what came of them"""
        self.lateness = Histogram(FIRINGS)
        self.refused: Counter[str] = Counter()
        """what was refused over HTTP, by the code of the problem"""

    def expect(self, kinds: Collection[str]) -> None:
        """This node serves these kinds: each has its counts from now on, as far as there is room."""
        for kind in sorted(kinds):
            _ = self.work[kind]

    def _pair(self, pair: tuple[str, str]) -> tuple[str, str]:
        kind, queue = self.kinds.of(pair[0]), self.queues.of(pair[1])
        return (
            (kind, queue) if (kind, queue) in self.enqueued or len(self.enqueued) < PAIRS else (kind, OTHER)
        )

    def add(self, jobs: Iterable[NewJob]) -> None:
        """New jobs are stored."""
        for pair, jobs_of_pair in Counter(map(_PAIR, jobs)).items():
            self.enqueued[pair].value += jobs_of_pair

    def receive(self, jobs: Iterable[NewJob], receipts: Sequence[Receipt]) -> None:
        """New jobs are stored, but for those whose receipts say otherwise."""
        if {*map(_VERDICT, receipts)} == _ALL_STORED:
            self.add(jobs)
        else:
            self.add(job for job, receipt in zip(jobs, receipts, strict=True) if receipt.verdict == "stored")

    def write(self, batch: Batch, receipts: Receipts, seconds: float | None = None) -> None:
        """A batch is written, in so many seconds: its new jobs, and the ends of attempts that the store took."""
        if seconds is not None:
            self.commits.add([seconds])
        if batch.adds:
            jobs = chain.from_iterable(map(_JOBS, batch.adds))
            self.receive(jobs, [*chain.from_iterable(receipts.adds)])
        if batch.settlements:
            self._end(batch.settlements, receipts)
        parts = (sum(map(len, receipts.adds)), len(batch.settlements), len(receipts.claimed))
        for size, number in zip(self.sizes.values(), parts, strict=True):
            if number:
                size.add([number])

    def _end(self, settlements: Sequence[Settlement], receipts: Receipts) -> None:
        """Attempts have ended. They come in hundreds that are alike: each is put to its like, and those are counted."""
        unwritten, others = receipts.stale | receipts.locked, receipts.settled
        alike: dict[tuple[str, str, Outcome | None, Status], list[Settlement]] = {}
        for one in settlements:
            if unwritten and (one.seq, one.claim) in unwritten:
                continue
            status = others.get(one.seq, one.status) if others else one.status
            key = one.kind, one.queue, one.outcome, status
            if (those := alike.get(key)) is None:
                alike[key] = [one]
            else:
                those.append(one)
            if one.jobs and status is one.status:
                self.add(one.jobs)
        for (kind, queue, outcome, status), those in alike.items():
            work = self.work[kind]
            work.ends[outcome, status] += len(those)
            if outcome is not None:
                work.runs.add([one.settled_at - at for one in those if (at := one.started_at) is not None])
                self.waits[queue].add(
                    [at - one.due_at for one in those if (at := one.started_at) is not None]
                )

    def fire(self, *, late: float, fired: int, skipped: int, missed: int) -> None:
        """A schedule has fired so many seconds late: jobs it made, those not stored, and firings it let pass."""
        self.fired += Counter(fired=fired, skipped=skipped, missed=missed)
        self.lateness.add([late])
