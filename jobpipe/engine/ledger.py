"""The single writer of a node: gathers what waits, writes it in one transaction, hands out receipts."""

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeVar

import structlog
import trio

from jobpipe.clock import Clock
from jobpipe.engine import verdict as verdicts
from jobpipe.engine.attempt import Attempt, Reason
from jobpipe.engine.entries import Claimer, Entry, Gathered, Wish
from jobpipe.engine.held import USUAL_BACKOFF, Held
from jobpipe.engine.splitting import halves, plain_settlements, smaller_claim, with_settlement
from jobpipe.engine.unforeseen import Unforeseen, in_words
from jobpipe.engine.verdict import Verdict
from jobpipe.errors import StoreError, StoreUnavailable, TablesLocked
from jobpipe.events import Events
from jobpipe.job import Backoff, NewJob
from jobpipe.store.base import (
    Add,
    Batch,
    Claimed,
    ClaimRequest,
    EngineStore,
    Receipt,
    Receipts,
    Settlement,
    Start,
)

START_DELAY = 0.05
"""Seconds that a start waits for a batch to ride with, before it gets one of its own."""

SETTLE_DELAY = 0.01
"""Seconds that an outcome waits for others, and for new jobs, to share a commit with; none when somebody waits."""

COMPANY, COMPANY_DELAY = 8, 0.001
"""How many adds a commit waits for, and how many seconds at the most, where twice as many came with the last one."""

LOCKED_DELAY = 1.0
"""Seconds before what could not be written because another program had locked its row is tried again."""

LONGEST_PAUSE = 5.0
"""The longest wait, in seconds, before a store that could not write is tried again."""

ADDS = 1000
"""About how many jobs are added in one transaction at the most."""

STUCK = 0.05
"""Seconds before the store is asked again for jobs that were due before the last batch and still are."""

BATCH = 400
"""How many outcomes are written, and how many jobs claimed, in one transaction at the most."""

EXCHANGES = 8
"""Over about how many exchanges their time is averaged."""

BESIDE, ADDING = 128, 1.0
"""How many while clients add, who wait for the transaction under way; and for how many seconds they count as adding."""

W = TypeVar("W")
R = TypeVar("R")

log = structlog.get_logger("jobpipe")


class Ledger:
    """Runs as one task. What is handed to it while a transaction runs shares the next one.

    A waiter that is cancelled before its batch begins is taken out of it; after that its entry stands.
    Outcomes are never given up: while the store cannot write they are kept, and tried again.

    Whatever is claimed, it adds to what the node holds in the very step in which it learns of the claim, so that no
    wish to cancel falls between; and it removes what it has taken a settlement for.

    Where an exchange fails with anything else than a `StoreError`, one of its entries is to blame. The batch is cut
    in halves until that entry stands alone. It is refused, and everything else is written.
    """

    def __init__(  # noqa: PLR0913 - what it works with, and three constants of the node
        self,
        store: EngineStore,
        node: str,
        clock: Clock,
        events: Events,
        held: Held,
        *,
        lease: float,
        kinds: frozenset[str],
    ) -> None:
        self._store, self._node, self._clock, self._events, self._lease = store, node, clock, events, lease
        self._held, self._kinds = held, kinds
        # What waits, and how many new jobs each entry holds.
        self._adds: dict[Entry[Add, Sequence[Receipt]], int] = {}
        self._starts: dict[Entry[Start, bool], int] = {}
        self._renewals: dict[Entry[None, bool], int] = {}
        self._noted: dict[tuple[int, int], Start] = {}
        self._settlements: list[Settlement] = []
        # What another program had locked, and when to try again, in Trio's clock.
        self._locked: dict[tuple[int, int], Start | Settlement] = {}
        self._unlock_at = math.inf
        self._wish: Wish | None = None
        self._maybe_ready = True
        self._look_again = False
        self._suspended = False
        self._tenure = 0
        self._next_due = self._was_due = -math.inf
        self._write_at = math.inf  # in Trio's clock: when to write what is not urgent
        self._pause = 0.0
        self._writing = False
        self._added = 0  # with the last commit that had any
        self._adding_until = -math.inf  # in Trio's clock
        self._woken = trio.Event()
        self._idle = trio.Event()
        self.waiting = 0
        """how many jobs wait in the store, as of the last batch"""
        self.coming = 0
        """how many jobs are claimed whose claimer has yet to take them over"""
        self.arriving = 0
        """how many jobs were handed in and are not stored yet"""
        self.stale = 0
        """how many writes came too late and were dropped"""
        self.trouble: str | None = None
        """why the store could not write just now"""
        self.commits = 0
        self.exchange_seconds = 0.0
        """how long an exchange takes, over the last few"""
        self._recalled: set[str] = set()
        self._unforeseen = Unforeseen()

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
        if self._write_at == math.inf:
            self._write_within(START_DELAY)

    def settle(self, settlement: Settlement) -> None:
        """Write what became of a held job with the next batch. Its place is given up at once."""
        self._noted.pop((settlement.seq, settlement.claim), None)
        self._locked.pop((settlement.seq, settlement.claim), None)  # its start
        waiting = len(self._settlements) + 1
        if waiting >= BATCH or self._events.watched(settlement.id):
            self._write_within(0.0)
        elif waiting == 1:
            self._write_within(SETTLE_DELAY)
        # Late, and nothing between the two can fail: one that could not be handed in can be handed in again.
        attempt = self._held.release(settlement)
        self._settlements.append(settlement)
        if attempt is not None:
            self._held.tell(attempt, settlement)

    def end(self, attempt: Attempt, verdict: Verdict, policy: Backoff = USUAL_BACKOFF) -> None:
        """Write how an attempt ended with the next batch. One that is not held any more is left alone."""
        if not attempt.over:  # else it was abandoned, and its handler ended after all
            self.settle(self._held.settlement(attempt, verdict, policy))

    def hand_back(self, attempt: Attempt) -> None:
        """Give a job back unstarted, or cancelled when somebody asked for that."""
        self.end(attempt, verdicts.CANCELLED if attempt.reason == "cancel" else verdicts.HANDED_BACK)

    def stop(self, attempts: Iterable[Attempt], reason: Reason) -> None:
        """Cancel attempts. Returns before their cleanup has ended."""
        for attempt in attempts:
            attempt.stop(reason)
            if not attempt.taken:
                self.hand_back(attempt)  # at once: a worker may be long in coming

    def recall(self, queue: str) -> None:
        """A queue was paused: hand back its jobs that have not begun, also those that are being claimed."""
        if self._writing:
            self._recalled.add(queue)
        self.stop(self._held.unbegun(queue), "pause")

    async def renew(self) -> bool:
        """Renew the node's lease; False: it is lost. Raises `StoreUnavailable`."""
        return await self._written(self._renewals, None)

    async def claim(self, claimer: Claimer) -> Sequence[Attempt]:
        """Take ready jobs as soon as there are some: as many as the claimer wants then, `BATCH` at the most.

        One claimer at a time. The node holds the jobs already when this returns. A cancel before they are known to be
        claimed hands them back with the next batch; a later one leaves them held.
        """
        wish = self._wish = Wish(claimer)
        try:
            self._wake()
            await wish.granted.wait()
        except BaseException:
            wish.abandoned = True
            if self._wish is wish:
                self._wish = None
            raise
        finally:
            self.coming = 0
        return wish.attempts

    def hurry(self) -> None:
        """A worker is free: a claim that was to wait for company need not."""
        if self._wish is not None and self._maybe_ready:
            self._wake()

    def look(self) -> None:
        """Somebody else may have made jobs ready or due: look with the next batch."""
        self._maybe_ready, self._next_due, self._look_again = True, -math.inf, True
        self._wake()

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
                self._write_within(0.0)
            if self._idle.is_set():
                self._idle = trio.Event()  # one for all who wait
            await self._idle.wait()

    # The writing task

    async def run(self) -> None:
        """Write batches for ever. A cancel ends it between two batches: what is still handed in is not written."""
        while True:
            await self._something_to_write()
            await self._company()
            entries = self._gather()
            self._writing = True
            try:
                await self._write(entries)
            except Exception as error:  # noqa: BLE001 - a fault of the ledger itself: nothing may be lost by it
                self._unforeseen.tell(error, "what was not written of a batch is kept, and tried again")
                self._keep(entries, error)
            finally:
                self._writing = False
                self._recalled.clear()
                if not self._has_work():
                    self._idle.set()

    async def _write(self, entries: Gathered, *, part: bool = False) -> bool:
        """Write a batch, or a part of one, and hand out what came of it; returns whether the store could be written."""
        begun = trio.current_time()
        try:
            receipts = await self._store.exchange(entries.batch)
        except StoreError as error:
            await self._put_off(entries, error)
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is, an entry of the batch is to blame
            culprit = error
        else:
            self.exchange_seconds += (trio.current_time() - begun - self.exchange_seconds) / EXCHANGES
            self._hand_out(entries, receipts)
            return True
        if not part:
            self._unforeseen.tell(culprit, "the batch is written in parts, to find the entry that breaks it")
        return await self._split(entries, culprit)

    async def _split(self, entries: Gathered, error: Exception) -> bool:
        """Write all but the entry that breaks a batch; see `_write`."""
        both = halves(entries)
        if both is None:
            return await self._blame(entries, error)
        first, second = both
        if await self._write(first, part=True):
            return await self._write(second, part=True)
        self._keep(second, StoreUnavailable(self.trouble or in_words(error)))
        return False

    async def _blame(self, entries: Gathered, error: Exception) -> bool:
        """Refuse the only entry of a batch, unless the store fails without it too; see `_write`."""
        try:
            await self._store.exchange(Batch(node=self._node, now=self._clock.now()))
        except Exception as other:  # noqa: BLE001 - then it is not the entry's fault
            self._unforeseen.tell(other, "nothing can be written")
            await self._put_off(entries, StoreUnavailable(in_words(other)))
            return False
        if entries.wish is not None:
            return await self._claim_fewer(entries, error)
        if entries.batch.settlements:
            return await self._fail_plainly(entries, error)
        self._unforeseen.tell(
            error, "an entry is refused; the rest of its batch is written", entry=_named(entries)
        )
        self._arrived(entries)
        self._refuse(entries, error)
        return True

    async def _fail_plainly(self, entries: Gathered, error: Exception) -> bool:
        """Settle a job whose settlement cannot be written as failed; see `_write`."""
        (settlement,) = entries.batch.settlements
        self._unforeseen.tell(error, "the job fails, since its outcome cannot be written", job=settlement.id)
        words = (
            f"the outcome of the attempt could not be written ({in_words(error)}); the node's log has more"
        )
        for plain in plain_settlements(settlement, words):
            plainly = with_settlement(entries, plain)
            try:
                receipts = await self._store.exchange(plainly.batch)
            except StoreError as unavailable:
                await self._put_off(plainly, unavailable)
                return False
            except Exception as other:  # noqa: BLE001 - then a plainer one
                self._unforeseen.tell(other, "a plainer settlement is tried", job=settlement.id)
            else:
                self._hand_out(plainly, receipts)
                return True
        log.error("the end of a job cannot be written: it stays held until this node ends", job=settlement.id)
        self._events.wake(settlement.id)
        return True

    async def _claim_fewer(self, entries: Gathered, error: Exception) -> bool:
        """Claim half as many jobs; where the next one alone cannot be claimed, have it failed. See `_write`."""
        if (fewer := smaller_claim(entries)) is not None:
            return await self._write(fewer, part=True)
        words = f"the job could not be claimed ({in_words(error)}); the node's log has more"
        self._maybe_ready = True
        self._return(entries.wish)
        try:
            failed = await self._store.sideline(entries.batch, words)
        except Exception as other:  # noqa: BLE001 - then nothing can be claimed for now
            self._unforeseen.tell(other, "no job can be claimed now")
            unavailable = other if isinstance(other, StoreError) else StoreUnavailable(in_words(other))
            await self._put_off(entries, unavailable)
            return False
        self._unforeseen.tell(error, "the job fails, since it cannot be claimed", job=failed)
        if failed is not None:
            self._events.wake(failed)
        return True

    async def _written(self, queue: dict[Entry[W, R], int], what: W, jobs: int = 0) -> R:
        entry: Entry[W, R] = Entry(what)
        queue[entry] = jobs
        self.arriving += jobs
        try:
            self._wake()
            return await entry.receipt()
        finally:
            # Still there: the waiter was cancelled before its batch began.
            self.arriving -= queue.pop(entry, 0)

    def _wake(self) -> None:
        self._woken.set()

    def _write_within(self, seconds: float) -> None:
        """Write what is there in so many seconds, unless there is a reason to do it before."""
        at = trio.current_time() + seconds
        if at < self._write_at:
            self._wake()
            self._write_at = at

    def _has_work(self) -> bool:
        return self._writing or self._urgent() or bool(self._noted or self._settlements or self._locked)

    def _urgent(self) -> bool:
        return bool(self._adds) or self._pressing()

    def _pressing(self) -> bool:
        return bool(self._starts or self._renewals) or (
            self._wish is not None
            and self._maybe_ready
            and not self._suspended
            and self._wish.claimer.pressing()
            and self._wish.claimer.wanted() > 0
        )

    async def _something_to_write(self) -> None:
        """Return when there is something to write or to take; sleeps without looking at the store."""
        while not self._urgent():
            now, wall = trio.current_time(), self._clock.now()
            if min(self._write_at, self._unlock_at) <= now or self._next_due <= wall:
                return
            until_due = self._clock.nap(self._next_due) if self._next_due < math.inf else math.inf
            self._woken = trio.Event()
            with trio.move_on_at(min(self._write_at, self._unlock_at, now + until_due)):
                await self._woken.wait()

    async def _company(self) -> None:
        """Wait a moment for others who came with the last commit.

        Clients that had their answers together come back one after the other. A commit for the first alone would
        make the others wait; one for half of them is written while the other half is served.
        """
        enough = min(COMPANY, self._added // 2)
        if len(self._adds) not in range(1, enough):
            return
        with trio.move_on_after(COMPANY_DELAY):
            while 0 < len(self._adds) < enough and not self._pressing():
                self._woken = trio.Event()
                await self._woken.wait()

    def _gather(self) -> Gathered:
        """Take what goes into the next batch: all of it, or with an exception nothing."""
        now = self._clock.now()
        if self._unlock_at <= trio.current_time():
            self._take_locked()
        adds = self._first_adds()
        most = self._most(adding=bool(adds))
        wanted = self._wanted(most)
        batch = Batch(
            node=self._node,
            now=now,
            lease_until=now + self._lease if self._renewals else None,
            starts=[*self._noted.values(), *(entry.what for entry in self._starts)],
            settlements=self._settlements[:most],
            adds=[entry.what for entry in adds],
            claim=ClaimRequest(limit=wanted, kinds=self._kinds) if wanted else None,
        )
        wish = self._wish if wanted else None
        entries = Gathered(
            batch, adds, list(self._starts), list(self._renewals), self._noted, wish, self._tenure
        )
        self._take(entries)
        return entries

    def _take(self, entries: Gathered) -> None:
        """Leave to a batch what goes into it. Nothing here can fail halfway."""
        self._look_again = False
        for entry in entries.adds:
            del self._adds[entry]
        self._added = len(entries.adds) or self._added
        self._settlements = self._settlements[len(entries.batch.settlements) :]
        self._write_at = -math.inf if self._settlements else math.inf
        self._starts, self._renewals, self._noted = {}, {}, {}
        if entries.wish is not None:
            self._wish = None

    def _wanted(self, most: int) -> int:
        """How many jobs the batch claims; the wish for jobs stands on while that is none."""
        if self._wish is None or self._suspended:
            return 0
        return max(0, min(self._wish.claimer.wanted(), most))

    def _take_locked(self) -> None:
        """Try again to write what was locked."""
        locked = self._locked
        self._settlements += [one for one in locked.values() if isinstance(one, Settlement)]
        self._noted |= {fence: one for fence, one in locked.items() if not isinstance(one, Settlement)}
        self._locked, self._unlock_at = {}, math.inf

    def _put_aside(self, entries: Gathered, locked: Collection[tuple[int, int]]) -> None:
        """Keep the outcomes and the noted starts that could not be written, for later."""
        self._locked |= {fence: start for fence, start in entries.noted.items() if fence in locked}
        for one in entries.batch.settlements:
            if (one.seq, one.claim) in locked:
                self._locked[one.seq, one.claim] = one
        if self._locked:
            self._unlock_at = min(self._unlock_at, trio.current_time() + LOCKED_DELAY)

    def _most(self, *, adding: bool) -> int:
        """How many outcomes, and how many jobs claimed, go into the next batch at the most."""
        now = trio.current_time()
        if adding:
            self._adding_until = now + ADDING
        return BESIDE if now < self._adding_until else BATCH

    def _first_adds(self) -> list[Entry[Add, Sequence[Receipt]]]:
        """Those that have waited longest, as many as go into one batch."""
        first: list[Entry[Add, Sequence[Receipt]]] = []
        jobs = 0
        for entry in self._adds:
            jobs += len(entry.what.jobs)
            if first and jobs > ADDS:
                break
            first.append(entry)
        return first

    async def _put_off(self, entries: Gathered, error: StoreError) -> None:
        """The store did not take a batch: tell who waits, keep what must not be lost, and wait a little."""
        self._keep(entries, error if isinstance(error, StoreUnavailable) else StoreUnavailable(str(error)))
        if self.trouble is None:
            log.error("the store cannot write: outcomes are kept and retried", error=str(error))
        self.trouble = str(error)
        self._pause = min(LONGEST_PAUSE, self._lease / 6, self._pause * 2 or 0.1)  # renewals wait behind this
        with self._unforeseen.costs("the store is tried again at once"):
            await trio.sleep(self._pause)

    def _keep(self, entries: Gathered, error: Exception) -> None:
        """Of a batch that is not written, tell who waits, and keep what must not be lost."""
        self._arrived(entries)
        self._refuse(entries, error)
        self._settlements[:0] = entries.batch.settlements
        settled = {(settlement.seq, settlement.claim) for settlement in self._settlements}
        self._noted = {key: start for key, start in entries.noted.items() if key not in settled} | self._noted
        if self._settlements or self._noted:
            self._write_at = -math.inf
        self._return(entries.wish)

    def _refuse(self, entries: Gathered, error: Exception) -> None:
        """Tell those who wait that their entries are not written."""
        for entry in itertools.chain[Entry[Any, Any]](entries.adds, entries.starts):
            entry.refuse(error)
        for renewal in entries.renewals:
            if isinstance(error, TablesLocked):
                renewal.hand(not error.lease_lost)
            else:
                renewal.refuse(error)

    def _return(self, wish: Wish | None) -> None:
        """A wish that was not granted waits again."""
        if wish is not None and not (wish.abandoned or wish.granted.is_set()) and self._wish is None:
            self._wish = wish

    def _hand_out(self, entries: Gathered, receipts: Receipts) -> None:
        """Hand out what came of a batch. It is written: what fails here costs those whom it concerns alone."""
        with self._unforeseen.costs("what this node knows of the store comes with the next batch"):
            self._learn(entries, receipts)
        try:
            self._grant(entries, receipts)
        except Exception as error:  # noqa: BLE001 - costs these claims alone
            self._unforeseen.tell(error, "the claimed jobs are handed back")
            self._return_claimed(receipts.claimed)
            self._return(entries.wish)
        if self._look_again:
            # Somebody said so meanwhile: this batch may have looked before there was anything.
            self._maybe_ready, self._next_due = True, -math.inf
        try:
            self._answer(entries, receipts)
        except Exception as error:  # noqa: BLE001 - costs those who have no answer yet
            self._unforeseen.tell(error, "some who wait for this batch are told that it failed")
            self._refuse(entries, error)
        try:
            self._put_aside(entries, receipts.locked)
        except Exception as error:  # noqa: BLE001 - costs a write that the store refuses
            self._unforeseen.tell(error, "the outcomes of this batch are written once more")
            self._settlements[:0] = entries.batch.settlements
            self._write_within(LOCKED_DELAY)
        self._tell(entries, receipts)

    def _learn(self, entries: Gathered, receipts: Receipts) -> None:
        """Note how the store stands after a batch."""
        if self.trouble is not None:
            log.info("the store can write again")
        self.trouble, self._pause = None, 0.0
        self.commits += 1
        self._arrived(entries)
        self.waiting = receipts.waiting
        self._next_due = self._due_at(entries.batch.now, receipts.next_due)

    def _due_at(self, now: float, due: float | None) -> float:
        """When to look for due jobs again, given when the next one is due. A time that is no time counts as none."""
        if due is None or math.isnan(due):
            return math.inf
        # What was due before this batch and still is may be locked, or cannot be written: not again at once.
        stuck = due <= now and due == self._was_due
        self._was_due = due
        return now + STUCK if stuck else due

    def _answer(self, entries: Gathered, receipts: Receipts) -> None:
        for add, receipt in zip(entries.adds, receipts.adds, strict=True):
            add.hand(receipt)
        for renewal in entries.renewals:
            renewal.hand(not receipts.lease_lost)
        for start in entries.starts:
            fence = (start.what.seq, start.what.claim)
            if fence in receipts.locked:
                start.refuse(StoreUnavailable("another program has locked this job"))
            else:
                start.hand(fence not in receipts.stale)

    def _arrived(self, entries: Gathered) -> None:
        self.arriving -= sum(len(add.what.jobs) for add in entries.adds)

    def _grant(self, entries: Gathered, receipts: Receipts) -> None:
        """Hand claimed jobs to who wished for them, and judge whether more may be ready."""
        wish, tenure = entries.wish, entries.tenure
        claim = entries.batch.claim
        self._maybe_ready = claim is None or receipts.more_ready or len(receipts.claimed) == claim.limit
        if wish is None:
            return
        lost = wish.abandoned or tenure != self._tenure
        granted = [job for job in receipts.claimed if not lost and job.queue not in self._recalled]
        if len(granted) < len(receipts.claimed):
            self._return_claimed([job for job in receipts.claimed if lost or job.queue in self._recalled])
        if wish.abandoned:
            return
        if granted:
            wish.grant(self._held.hold(granted))
            self.coming = len(granted)
        elif self._wish is None:
            self._wish = wish

    def _return_claimed(self, jobs: Sequence[Claimed]) -> None:
        """Put jobs that were claimed for nobody back, unspent."""
        for job in jobs:
            self.settle(self._held.settlement(Attempt(job), verdicts.HANDED_BACK))

    def _tell(self, entries: Gathered, receipts: Receipts) -> None:
        for seq, claim in receipts.stale:
            self.stale += 1
            with self._unforeseen.costs("a late write is not told", seq=seq, claim=claim):
                log.warning("late write refused: a newer claim has the job", seq=seq, claim=claim)
                self.stop(self._held.of_claims([(seq, claim)]), "lease")
        if receipts.cancelling:
            with self._unforeseen.costs("a wish to cancel is told with the next renewal"):
                self.stop(self._held.of_claims(receipts.cancelling), "cancel")
        if not (receipts.stale or self._events.heard):
            return
        unwritten = receipts.stale | receipts.locked
        with self._unforeseen.costs("the ends of some jobs are not published"):
            for one in entries.batch.settlements:
                if (one.seq, one.claim) not in unwritten:
                    self._events.publish(one.id, receipts.settled.get(one.seq, one.status))


def _named(entries: Gathered) -> str:
    """What the only entry of a batch is about, for the log."""
    ids = [job.id for entry in entries.adds for job in entry.what.jobs[:5]]
    if ids:
        return f"new jobs {', '.join(ids)}"
    if entries.batch.starts:
        (start,) = entries.batch.starts
        return f"the start of job number {start.seq}"
    return "the renewal of the lease"
