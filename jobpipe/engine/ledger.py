"""What is to be written, by whoever hands it in: gathered into batches, each of which is one transaction."""

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import trio

from jobpipe.clock import Clock
from jobpipe.engine import outcomes
from jobpipe.engine.attempt import Attempt, Reason
from jobpipe.engine.batching import BATCH, LOCKED_DELAY, Batching
from jobpipe.engine.entries import Claimer, Entry, Gathered
from jobpipe.engine.held import USUAL_BACKOFF, Held
from jobpipe.engine.notes import Notes
from jobpipe.engine.outcomes import Verdict
from jobpipe.errors import TablesLocked
from jobpipe.events import Events
from jobpipe.job import Backoff, NewJob, Status
from jobpipe.store.base import Add, Batch, Changed, Claimed, ClaimRequest, Receipt, Settlement, Start

W = TypeVar("W")
R = TypeVar("R")


class Ledger:
    """Everything that this node writes goes through here. What is handed in while a batch is written shares the next.

    A waiter that is cancelled before its batch begins is taken out of it; after that its entry stands.
    Outcomes are never given up: while the store cannot write they are kept, and tried again.

    It calls down to what is held: a job is held no more in the very step in which its settlement is handed in.
    """

    def __init__(
        self,
        node: str,
        clock: Clock,
        events: Events,
        held: Held,
        *,
        lease: float,
    ) -> None:
        self._node, self._clock, self._lease = node, clock, lease
        self._events, self._held, self.tallies = events, held, held.tallies
        self.batching = Batching(clock, lease)
        self.notes = Notes(clock, self.batching.within)
        """what running jobs have written"""
        # What waits, and how many new jobs each entry holds.
        self._adds: dict[Entry[Add, Sequence[Receipt]], int] = {}
        self._starts: dict[Entry[Start, bool], int] = {}
        self._renewals: dict[Entry[None, bool], int] = {}
        self._noted: dict[tuple[int, int], Start] = {}
        self._settlements: list[Settlement] = []
        self._locked: dict[tuple[int, int], Start | Settlement] = {}
        self._claimers: list[Claimer] = []
        self._suspended = False
        self._tenure = 0
        self._writing = False
        self._recalled: set[tuple[str, str | None]] = set()
        self._idle = trio.Event()
        self.arriving = 0
        """how many jobs were handed in and are not stored yet"""
        # What the committer has learned.
        self.waiting = 0
        """how many jobs wait in the store, as of the last batch"""
        self.stale = 0
        """how many writes came too late and were dropped"""
        self.trouble: str | None = None
        """why the store could not write just now"""
        self.commits = 0
        self.claims = 0
        """how many batches have claimed jobs"""
        self.exchange_seconds = 0.0
        """how long an exchange takes, over the last few"""

    # What others hand in

    async def add(self, jobs: Sequence[NewJob], *, atomic: bool = False) -> Sequence[Receipt]:
        """Store jobs; returns a receipt each once they survive a crash. Raises `StoreUnavailable`: nothing was stored.

        Raises whatever the store raises for these jobs alone; then they are refused, and nothing was stored either.
        A cancel before the batch begins stores nothing; a later one leaves the jobs stored.
        """
        return await self._written(self._adds, Add(jobs, atomic), len(jobs))

    async def start(self, start: Start) -> bool:
        """Write that an attempt begins, and return once that survives a crash; False: the job is held no more."""
        return await self._written(self._starts, start)

    def note_start(self, start: Start) -> None:
        """Write with one of the next batches that an attempt has begun, unless it is over by then."""
        self._noted[start.seq, start.claim] = start
        if self.batching.write_at == math.inf:
            self.batching.noted()

    def settle(self, settlement: Settlement) -> None:
        """Write what became of a held job with the next batch. Its place is given up at once."""
        self._noted.pop((settlement.seq, settlement.claim), None)
        if self._locked:
            self._locked.pop((settlement.seq, settlement.claim), None)  # its start
        waiting = len(self._settlements) + 1
        if self._events.watched(settlement.id):
            self.batching.within(0.0)
        elif waiting == 1 or waiting >= BATCH:
            self.batching.settled(waiting)
        # Late, and nothing between the two can fail: one that could not be handed in can be handed in again.
        attempt = self._held.release(settlement)
        self._settlements.append(settlement)
        if attempt is not None:
            if attempt.notebook is not None:
                attempt.notebook.closed = True
            self._held.tell(attempt, settlement)

    async def renew(self) -> bool:
        """Renew the node's lease; False: it is lost. Raises `StoreUnavailable`."""
        return await self._written(self._renewals, None)

    @contextmanager
    def claiming(self, claimer: Claimer) -> Iterator[None]:
        """Claim ready jobs as long as the context is open: as many as the claimer wants each time, `BATCH` at the most.

        The node holds the jobs when the claimer takes them. What is being claimed when the context ends goes back.
        """
        self._claimers.append(claimer)
        try:
            self.batching.wake()
            yield
        finally:
            self._claimers.remove(claimer)

    async def _written(self, queue: dict[Entry[W, R], int], what: W, jobs: int = 0) -> R:
        entry: Entry[W, R] = Entry(what)
        queue[entry] = jobs
        self.arriving += jobs
        try:
            self.batching.wake()
            return await entry.receipt()
        finally:
            # Still there: the waiter was cancelled before its batch began.
            self.arriving -= queue.pop(entry, 0)

    # How what is held ends

    def end(self, attempt: Attempt, verdict: Verdict, policy: Backoff = USUAL_BACKOFF) -> None:
        """Write how an attempt ended with the next batch. One that is not held any more is left alone."""
        if not attempt.over:  # else it was abandoned, and its handler ended after all
            self.settle(self._held.settlement(attempt, verdict, policy))

    def hand_back(self, attempt: Attempt) -> None:
        """Give a job back unstarted, or cancelled when somebody asked for that."""
        self.end(attempt, outcomes.CANCELLED if attempt.reason == "cancel" else outcomes.HANDED_BACK)

    def stop(self, attempts: Iterable[Attempt], reason: Reason) -> None:
        """Cancel attempts. Returns before their cleanup has ended."""
        for attempt in attempts:
            attempt.stop(reason)
            if not attempt.taken:
                self.hand_back(attempt)  # at once: a worker may be long in coming

    def cancelled(self, job_id: str, status: Status) -> None:
        """A cancel of a job is stored, which has this status now: stop it here, and tell those who wait for it."""
        # Also where the store does not count it as held here any more.
        self.stop(self._held.of_jobs([job_id]), "cancel")
        self._events.publish(job_id, status)
        self.look()

    def stored(self, jobs: Sequence[NewJob], receipts: Sequence[Receipt]) -> None:
        """New jobs were stored, but for those whose receipts say otherwise: tell those who listen to all jobs."""
        self.made(
            (job.id, job.status if receipt.job is None else receipt.job.status)
            for job, receipt in zip(jobs, receipts, strict=True)
            if receipt.verdict == "stored"
        )

    def made(self, jobs: Iterable[tuple[str, Status | None]]) -> None:
        """New jobs were stored, with their ids and statuses; None: the store knows which. The same."""
        if self._events.sink is not None:
            for job_id, status in jobs:
                self._events.publish(job_id, status)

    def changed(self, change: Changed) -> None:
        """The store has brought a job to another status by itself: tell who waits for it, and stop it if need be."""
        if change.status is Status.CANCELLING:
            self.cancelled(change.id, change.status)
        else:
            self._events.publish(change.id, change.status)

    def recall(self, queue: str, key: str | None = None) -> None:
        """A queue, or a key of it, was paused: hand back what has not begun of it, also what is being claimed."""
        if self._writing:
            self._recalled.add((queue, key))
        self.stop(self._held.unbegun(queue, key), "pause")

    # When there is something to take

    def hurry(self, claimer: Claimer) -> None:
        """A claimer wants more than it did, or cannot wait any longer."""
        if self._claimers:
            self.batching.hurry(claimer)

    def look(self) -> None:
        """Somebody else may have made jobs ready or due: look with the next batch."""
        self.batching.look()

    def suspend(self) -> None:
        """The node's lease is lost: claim nothing, and give back what is being claimed, until `resume`."""
        self._suspended = True
        self._tenure += 1

    def resume(self) -> None:
        """The node has a lease again."""
        self._suspended = False
        self.look()

    async def flushed(self) -> None:
        """Return when nothing waits to be written. As long as the store cannot write, something does."""
        while self._has_work():
            if self._settlements or self._noted:
                self.batching.within(0.0)
            if self._idle.is_set():
                self._idle = trio.Event()  # one for all who wait
            await self._idle.wait()

    def _has_work(self) -> bool:
        waits = self._adds or self._noted or self._settlements or self._locked
        return self._writing or bool(waits) or self._presses()

    def _presses(self) -> bool:
        """Whether something has to be written now: somebody waits for it."""
        if self._starts or self._renewals:
            return True
        return not self._suspended and any(map(self.batching.presses, self._claimers))

    # What the committer does with it

    async def batch(self) -> Gathered:
        """The next batch, as soon as it is time to write one; to ask for it says that the one before is over.

        Raises with nothing taken. A cancel takes nothing either.
        """
        self._writing = False
        self._recalled.clear()
        if not self._has_work():
            self._idle.set()
        while (at := self.batching.when(len(self._adds), self._presses)) > trio.current_time():
            await self.batching.woken(at)  # sleeps without looking at the store
        entries = self._gather()
        self._writing = True
        return entries

    def _gather(self) -> Gathered:
        """Take what goes into the next batch: all of it, or with an exception nothing."""
        now = self._clock.now()
        if self.batching.unlocks():
            self._take_locked()
            self.batching.unlocked()
        adds = self.batching.first_adds(self._adds)
        most = self.batching.most(adding=bool(adds))
        claims = self._claims(most)
        batch = Batch(
            node=self._node,
            now=now,
            lease_until=now + self._lease if self._renewals else None,
            starts=[*self._noted.values(), *(entry.what for entry in self._starts)],
            notes=self.notes.gathered(),
            settlements=self.batching.first_outcomes(self._settlements, most),
            adds=[entry.what for entry in adds],
            claims=list(claims.values()),
        )
        entries = Gathered(
            batch, adds, list(self._starts), list(self._renewals), self._noted, list(claims), self._tenure
        )
        self._take(entries)
        return entries

    def _take(self, entries: Gathered) -> None:
        """Leave to a batch what goes into it. Nothing here can fail but the first step, before anything is taken."""
        rest = self._settlements[len(entries.batch.settlements) :]
        self.batching.gathered(len(entries.adds), left=bool(rest))
        for entry in entries.adds:
            del self._adds[entry]
        self._settlements = rest
        self._starts, self._renewals, self._noted = {}, {}, {}

    def _claims(self, most: int) -> dict[Claimer, ClaimRequest]:
        """What the batch claims: so many jobs at the most, of all claimers together."""
        claims: dict[Claimer, ClaimRequest] = {}
        for claimer in self._claimers if not self._suspended else ():
            if (limit := min(claimer.wanted(), most)) > 0:
                claims[claimer] = claimer.request(limit)
                most -= limit
        return claims

    def _take_locked(self) -> None:
        """Try again to write what was locked."""
        locked = self._locked
        self._settlements += [one for one in locked.values() if isinstance(one, Settlement)]
        self._noted |= {fence: one for fence, one in locked.items() if not isinstance(one, Settlement)}
        self._locked = {}

    def arrived(self, entries: Gathered) -> None:
        """The new jobs of a batch are stored, or refused."""
        self.arriving -= sum(len(add.what.jobs) for add in entries.adds)

    def keep(self, entries: Gathered, error: Exception) -> None:
        """Of a batch that is not written, tell who waits, and keep what must not be lost."""
        self.arrived(entries)
        refuse(entries, error)
        self._settlements[:0] = entries.batch.settlements
        settled = {(settlement.seq, settlement.claim) for settlement in self._settlements}
        self._noted = {key: start for key, start in entries.noted.items() if key not in settled} | self._noted
        if self._settlements or self._noted:
            self.batching.kept()
        self.notes.again()

    def write_again(self, settlements: Sequence[Settlement]) -> None:
        """Outcomes may not have been written: write them once more, after a while."""
        self._settlements[:0] = settlements
        self.batching.within(LOCKED_DELAY)

    def put_aside(self, entries: Gathered, locked: Collection[tuple[int, int]]) -> None:
        """Keep the outcomes and the noted starts that could not be written, for later."""
        self._locked |= {fence: start for fence, start in entries.noted.items() if fence in locked}
        for one in entries.batch.settlements:
            if (one.seq, one.claim) in locked:
                self._locked[one.seq, one.claim] = one
        if self._locked:
            self.batching.locked()

    def grant(self, claimer: Claimer, tenure: int, asked: ClaimRequest, claimed: Sequence[Claimed]) -> None:
        """Hold jobs that were claimed, and hand them to their claimer.

        Those that nobody may have any more go back: the claimer has gone, the lease was lost, the queue was paused.
        """
        lost = claimer not in self._claimers or tenure != self._tenure
        granted: Sequence[Claimed] = () if lost else claimed
        if not lost and self._recalled:
            granted = [job for job in claimed if not self._is_recalled(job)]
        if len(granted) < len(claimed):
            self.return_claimed([job for job in claimed if lost or self._is_recalled(job)])
        if granted:
            claimer.take(asked, self._held.hold(granted))

    def _is_recalled(self, job: Claimed) -> bool:
        return not self._recalled.isdisjoint([(job.queue, None), (job.queue, job.options.key or "")])

    def return_claimed(self, jobs: Sequence[Claimed]) -> None:
        """Put jobs that were claimed for nobody back, unspent."""
        for job in jobs:
            self.settle(self._held.settlement(Attempt(job), outcomes.HANDED_BACK))


def refuse(entries: Gathered, error: Exception) -> None:
    """Tell those who wait for a batch that their entries are not written."""
    for entry in itertools.chain[Entry[Any, Any]](entries.adds, entries.starts):
        entry.refuse(error)
    for renewal in entries.renewals:
        if isinstance(error, TablesLocked):
            renewal.hand(not error.lease_lost)
        else:
            renewal.refuse(error)
