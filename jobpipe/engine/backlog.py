"""The way in: who may store jobs, and how many may wait."""

from collections.abc import Sequence

from jobpipe.acts import By
from jobpipe.engine.channel import Channel
from jobpipe.engine.gathering import Gathering
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.unforeseen import Unforeseen
from jobpipe.errors import Draining, QueueFull
from jobpipe.job import NewJob, Status
from jobpipe.store.base import GroupReceipt, NewGroup, Receipt, Store


class Backlog:
    """Stores jobs through the ledger, while there is room.

    Those that wait for others or are merged with others, in transactions beside its own.
    """

    def __init__(
        self, store: Store, ledger: Ledger, channels: Sequence[Channel], *, max_backlog: int
    ) -> None:
        self._store, self._gathering = store, Gathering(store)
        self._ledger, self._channels, self._max_backlog = ledger, channels, max_backlog
        self._unforeseen = Unforeseen()
        self.draining = False
        """whether the node drains, so that no new job is taken in"""

    async def enqueue(
        self, jobs: Sequence[NewJob], *, atomic: bool = False, of_handler: bool = False
    ) -> Sequence[Receipt]:
        """Store jobs, and return a receipt for each once they survive a crash.

        Raises `Draining` and `QueueFull`, unless they are those `of_handler`, whose work must not be lost; or
        `StoreUnavailable`; then nothing was stored. A cancel leaves either all of them stored or none.
        """
        if not of_handler:
            self._check(len(jobs))
        return await self._ledger.add(jobs, atomic=atomic)

    async def enqueue_dependents(
        self, jobs: Sequence[NewJob], *, atomic: bool, of_handler: bool = False
    ) -> Sequence[Receipt]:
        """The same for jobs of which some wait for others, each of them behind those of `jobs` that it depends on.

        Or of which some are merged with others, or are children of others. Those `of_handler` are stored
        `strict`ly (see `EngineStore.add_dependents`).
        """
        if not of_handler:
            self._check(len(jobs))
        self._ledger.arriving += len(jobs)
        try:
            receipts = await self._gathering.add(jobs, atomic=atomic, strict=of_handler)
            self._ledger.waiting += sum(one.verdict == "stored" for one in receipts)  # until the next batch
            self._ledger.stored(jobs, receipts)
            self._count(jobs, receipts)
            return receipts
        finally:
            self._ledger.arriving -= len(jobs)
            self._ledger.look()

    async def enqueue_by_hand(self, new: NewJob, by: By) -> Receipt:
        """The same for one job that somebody enqueues by hand; that is written with it (see `jobpipe.acts`)."""
        self._check(1)
        self._ledger.arriving += 1
        try:
            receipt = await self._store.add_by_hand(new, by)
            self._ledger.waiting += receipt.verdict == "stored"  # until the next batch
            self._ledger.stored([new], [receipt])
            return receipt
        finally:
            self._ledger.arriving -= 1
            self._ledger.look()

    async def enqueue_group(self, new: NewGroup, now: float) -> GroupReceipt:
        """Store a group with all its jobs, or nothing of it. Raises as `enqueue`."""
        jobs = len(new.every)
        self._check(jobs)
        self._ledger.arriving += jobs
        try:
            receipt = await self._store.add_group(new, now)
            if receipt.verdict == "stored":
                self._ledger.waiting += jobs  # until the next batch
                self._ledger.made((job.id, _status_of(job)) for job in new.every)
                self._count(new.every, receipt.receipts)
            return receipt
        finally:
            self._ledger.arriving -= jobs
            self._ledger.look()

    def _count(self, jobs: Sequence[NewJob], receipts: Sequence[Receipt]) -> None:
        with self._unforeseen.costs("these jobs are not counted"):
            self._ledger.tallies.receive(jobs, receipts)

    def _check(self, jobs: int) -> None:
        if self.draining:
            raise Draining("this node is shutting down and takes no new jobs")
        if (waiting := self.waiting + self._ledger.arriving) + jobs > self._max_backlog:
            raise QueueFull(f"{waiting} jobs are waiting already, and MAX_BACKLOG allows {self._max_backlog}")

    @property
    def waiting(self) -> int:
        """How many jobs wait, in the store and in the channels."""
        waiting = self._ledger.waiting
        for channel in self._channels:
            waiting += channel.buffered
        return waiting


def _status_of(new: NewJob) -> Status:
    """What a new job of a group is: its callback waits for the others, which may wait for one another."""
    waits = new.options.depends_on or new.options.callback_of
    return Status.BLOCKED if waits else new.status
