"""Writes what the ledger gathers, each batch in one transaction, and hands out the receipts."""

from collections.abc import Collection

import structlog
import trio

from jobpipe.clock import Clock
from jobpipe.engine.entries import Gathered
from jobpipe.engine.follower import Follower
from jobpipe.engine.held import Held
from jobpipe.engine.ledger import Ledger, refuse
from jobpipe.engine.splitting import halves, plain_settlements, smaller_claim, with_settlement
from jobpipe.engine.unforeseen import PAUSE, Unforeseen, in_words
from jobpipe.errors import StoreError, StoreUnavailable
from jobpipe.events import Events
from jobpipe.job import Status
from jobpipe.store.base import Batch, EngineStore, Receipts

EXCHANGES = 8
"""Over about how many exchanges their time is averaged."""

log = structlog.get_logger("jobpipe")


class Committer:
    """Runs as one task, so that a node has one writer.

    Where an exchange fails with anything else than a `StoreError`, one of its entries is to blame. The batch is cut
    in halves until that entry stands alone. It is refused, and everything else is written.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what it writes to, and whom it tells
        self,
        store: EngineStore,
        node: str,
        ledger: Ledger,
        held: Held,
        follower: Follower,
        events: Events,
        clock: Clock,
    ) -> None:
        self._store, self._node, self._clock = store, node, clock
        self._ledger, self._held, self._follower, self._events = ledger, held, follower, events
        self._unforeseen = Unforeseen()

    async def run(self) -> None:
        """Write batches for ever. A cancel ends it between two batches: what is still handed in is not written."""
        while True:
            entries = await self._ledger.batch()
            try:
                await self._write(entries)
            except Exception as error:  # noqa: BLE001 - a fault of the committer itself: nothing may be lost by it
                self._unforeseen.tell(error, "what was not written of a batch is kept, and tried again")
                self._ledger.keep(entries, error)
                await trio.sleep(PAUSE)

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
            took = trio.current_time() - begun
            self._ledger.exchange_seconds += (took - self._ledger.exchange_seconds) / EXCHANGES
            self._hand_out(entries, receipts, took)
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
        self._ledger.keep(second, StoreUnavailable(self._ledger.trouble or in_words(error)))
        return False

    async def _blame(self, entries: Gathered, error: Exception) -> bool:
        """Refuse the only entry of a batch, unless the store fails without it too; see `_write`."""
        try:
            await self._store.exchange(Batch(node=self._node, now=self._clock.now()))
        except Exception as other:  # noqa: BLE001 - then it is not the entry's fault
            self._unforeseen.tell(other, "nothing can be written")
            await self._put_off(entries, StoreUnavailable(in_words(other)))
            return False
        if entries.claimers:
            return await self._claim_fewer(entries, error)
        if entries.batch.settlements:
            return await self._fail_plainly(entries, error)
        self._unforeseen.tell(
            error, "an entry is refused; the rest of its batch is written", entry=_named(entries)
        )
        self._ledger.arrived(entries)
        self._ledger.notes.written(entries.batch.notes)
        refuse(entries, error)
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
        self._ledger.look()
        try:
            failed = await self._store.sideline(entries.batch, words)
        except Exception as other:  # noqa: BLE001 - then nothing can be claimed for now
            self._unforeseen.tell(other, "no job can be claimed now")
            unavailable = other if isinstance(other, StoreError) else StoreUnavailable(in_words(other))
            await self._put_off(entries, unavailable)
            return False
        self._unforeseen.tell(error, "the job fails, since it cannot be claimed", job=failed)
        if failed is not None:
            self._events.publish(failed, Status.FAILED)
        self._follower.look()
        return True

    async def _put_off(self, entries: Gathered, error: StoreError) -> None:
        """The store did not take a batch: tell who waits, keep what must not be lost, and wait a little."""
        self._ledger.keep(
            entries, error if isinstance(error, StoreUnavailable) else StoreUnavailable(str(error))
        )
        if self._ledger.trouble is None:
            log.error("the store cannot write: outcomes are kept and retried", error=str(error))
        self._ledger.trouble = str(error)
        with self._unforeseen.costs("the store is tried again at once"):
            await trio.sleep(self._ledger.batching.pause())

    def _hand_out(self, entries: Gathered, receipts: Receipts, took: float | None = None) -> None:
        """Hand out what came of a batch. It is written: what fails here costs those whom it concerns alone."""
        with self._unforeseen.costs("what this node knows of the store comes with the next batch"):
            self._learn(entries, receipts)
        with self._unforeseen.costs("what running jobs wrote is written once more"):
            notes, locked = entries.batch.notes, receipts.locked
            self._ledger.notes.written([one for one in notes if (one.seq, one.claim) not in locked])
        try:
            self._grant(entries, receipts)
        except Exception as error:  # noqa: BLE001 - costs these claims alone
            self._unforeseen.tell(error, "the claimed jobs are handed back")
            self._ledger.return_claimed(receipts.claimed)
        try:
            self._answer(entries, receipts)
        except Exception as error:  # noqa: BLE001 - costs those who have no answer yet
            self._unforeseen.tell(error, "some who wait for this batch are told that it failed")
            refuse(entries, error)
        try:
            self._ledger.put_aside(entries, receipts.locked)
        except Exception as error:  # noqa: BLE001 - costs a write that the store refuses
            self._unforeseen.tell(error, "the outcomes of this batch are written once more")
            self._ledger.write_again(entries.batch.settlements)
        with self._unforeseen.costs("what came of this batch is not told"):
            self._tell(entries, receipts)
        with self._unforeseen.costs("this batch is not counted"):
            self._held.tallies.write(entries.batch, receipts, took)

    def _learn(self, entries: Gathered, receipts: Receipts) -> None:
        """Note how the store stands after a batch."""
        if self._ledger.trouble is not None:
            log.info("the store can write again")
        self._ledger.trouble = None
        self._ledger.commits += 1
        self._ledger.arrived(entries)
        self._ledger.waiting = receipts.waiting
        if receipts.following:
            self._follower.wake()
        self._ledger.claims += any(receipts.claims)
        short = []
        asked = zip(entries.claimers, entries.batch.claims, receipts.claims, strict=True)
        for number, (claimer, claim, took) in enumerate(asked):
            held_back = number in receipts.held_back
            claimer.learn(held_back=held_back)
            if len(took) < claim.limit and not held_back:
                short.append(claimer)
        dry = [] if receipts.more_ready else short
        self._ledger.batching.learn(entries.batch.now, due=receipts.next_due, dry=dry)

    def _grant(self, entries: Gathered, receipts: Receipts) -> None:
        claims = zip(entries.claimers, entries.batch.claims, receipts.claims, strict=True)
        for claimer, asked, claimed in claims:
            try:
                self._ledger.grant(claimer, entries.tenure, asked, claimed)
            except Exception as error:  # noqa: BLE001 - costs this claim alone
                self._unforeseen.tell(error, "the jobs of one claim are handed back")
                self._ledger.return_claimed(claimed)

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

    def _tell(self, entries: Gathered, receipts: Receipts) -> None:
        for seq, claim in receipts.stale:
            self._ledger.stale += 1
            with self._unforeseen.costs("a late write is not told", seq=seq, claim=claim):
                log.warning("late write refused: a newer claim has the job", seq=seq, claim=claim)
                self._ledger.stop(self._held.of_claims([(seq, claim)]), "lease")
        if receipts.cancelling:
            with self._unforeseen.costs("a wish to cancel is told with the next renewal"):
                self._ledger.stop(self._held.of_claims(receipts.cancelling), "cancel")
        for change in receipts.changes:
            with self._unforeseen.costs("what became of a job is not published", job=change.id):
                self._ledger.changed(change)
        if receipts.settled:
            self._tell_failed(entries, receipts)
        if receipts.stale or self._events.has_listeners:
            with self._unforeseen.costs("what became of some jobs is not published"):
                self._publish(entries, receipts)

    def _publish(self, entries: Gathered, receipts: Receipts) -> None:
        unwritten = receipts.stale | receipts.locked
        for attempt in self._held.of_claims((start.seq, start.claim) for start in entries.batch.starts):
            self._events.publish(attempt.job.id, Status.RUNNING)
        for note in entries.batch.notes:
            self._events.logged(note.id)
        for one in entries.batch.settlements:
            if (one.seq, one.claim) not in unwritten:
                self._events.publish(one.id, receipts.settled.get(one.seq, one.status))
        if self._events.sink is not None:
            self._tell_new(entries, receipts, unwritten)

    def _tell_new(
        self, entries: Gathered, receipts: Receipts, unwritten: Collection[tuple[int, int]]
    ) -> None:
        """Tell those who listen to all jobs of the new ones."""
        for add, added in zip(entries.batch.adds, receipts.adds, strict=True):
            self._ledger.stored(add.jobs, added)
        for one in entries.batch.settlements:
            if (one.seq, one.claim) not in unwritten and one.seq not in receipts.settled:
                self._ledger.made(
                    (job.id, None if job.options.depends_on else job.status) for job in one.jobs
                )

    def _tell_failed(self, entries: Gathered, receipts: Receipts) -> None:
        """Log which jobs failed since what their handlers had enqueued could not be stored."""
        for one in entries.batch.settlements:
            if one.jobs and receipts.settled.get(one.seq) is Status.FAILED:
                with self._unforeseen.costs("a failed job is not told", job=one.id):
                    log.warning("job failed: what its handler has enqueued could not be stored", job=one.id)


def _named(entries: Gathered) -> str:
    """What the only entry of a batch is about, for the log."""
    ids = [job.id for entry in entries.adds for job in entry.what.jobs[:5]]
    if ids:
        return f"new jobs {', '.join(ids)}"
    if entries.batch.starts:
        (start,) = entries.batch.starts
        return f"the start of job number {start.seq}"
    if entries.batch.notes:
        (note,) = entries.batch.notes
        return f"progress and log lines of {note.id}"
    return "the renewal of the lease"
