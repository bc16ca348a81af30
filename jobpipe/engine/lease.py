"""The heartbeat of this node, what happens when it is lost, and the rescue of the jobs of dead nodes."""

from collections.abc import Sequence

import structlog
import trio

from jobpipe.clock import Clock
from jobpipe.engine.follower import Follower
from jobpipe.engine.heartbeat import Heartbeat
from jobpipe.engine.held import Held
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.unforeseen import Unforeseen
from jobpipe.errors import StoreError
from jobpipe.store.base import NO_FACTS, Changed, EngineStore, NodeFacts, Rescued, SharedStore

BEATS = 3
"""Renewals within the time of one lease."""

SAFE = 5 / 6
"""The share of the lease after which a node that could not renew it stops its attempts; the rest is for cleanup."""

RETRY = 0.2
"""Seconds between tries to renew while the store cannot write."""

log = structlog.get_logger("jobpipe")


class Lease:
    """Keeps the node's lease. Renewals go through the ledger, and never wait behind handlers."""

    def __init__(  # noqa: PLR0913, PLR0917 - what it works with, and the constants of the node
        self,
        store: EngineStore,
        ledger: Ledger,
        held: Held,
        follower: Follower,
        clock: Clock,
        node: str,
        seconds: float,
        kinds: frozenset[str] = frozenset(),
        queues: frozenset[str] | None = None,
        facts: NodeFacts = NO_FACTS,
    ) -> None:
        self._store, self._ledger, self._held, self._clock = store, ledger, held, clock
        self._follower = follower
        self._node, self._seconds = node, seconds
        self._kinds, self._queues, self._facts = kinds, queues, facts
        self._shared = isinstance(store, SharedStore)
        self._renewed_at = 0.0
        self.heartbeat = Heartbeat(store, clock, node, seconds)
        """what renews the lease while the event loop is blocked"""
        self.losses = 0
        """how often the lease was lost"""
        self._unforeseen = Unforeseen()

    async def join(self) -> None:
        """Register the node, its kinds and its queues, with a lease that has not ended by the time it is written.

        Raises `StoreUnavailable`.
        """
        while True:
            begun, now = trio.current_time(), self._clock.now()
            lease_until = now + self._seconds
            await self._store.join(self._node, now, lease_until, self._kinds, self._queues, self._facts)
            self._renewed_at = begun
            self.heartbeat.armed = True
            if trio.current_time() < begun + self._seconds * SAFE:
                return

    async def run(self) -> None:
        """Renew the lease and rescue the jobs of dead nodes, for ever."""
        while True:
            await trio.sleep(self._seconds / BEATS)
            if not await self._renew():
                await self._lose()
            await self._rescue_if_possible()

    async def _renew(self) -> bool:
        """Renew the lease before it is too late to stop in time; False when it is, or when the lease is lost.

        If that time has already passed, because this process was suspended or a handler blocked the event loop, the
        store is asked whether the lease still stands. It may well, and then nothing needs to be stopped.
        """
        while True:
            until = self._patience()
            with trio.move_on_at(until):
                return await self._renewed()
            if trio.current_time() < until + self._seconds * (1 - SAFE):
                return False
            # The loop was blocked meanwhile: an answer may lie there that it had no time to read.

    def _patience(self) -> float:
        """Until when the store may be asked, in Trio's time."""
        now = trio.current_time()
        self._renewed_at = max(self._renewed_at, now - self.heartbeat.age())
        too_late = self._renewed_at + self._seconds * SAFE
        # Nobody can have taken the jobs of a store that this process has to itself: then there is no hurry.
        rest = SAFE if too_late <= now and not self._shared else 1 - SAFE
        return max(too_late, now + self._seconds * rest)

    async def _renewed(self) -> bool:
        """Renew the lease, again and again while the store cannot write; False: it is lost."""
        while True:
            begun = trio.current_time()
            try:
                kept = await self._ledger.renew()
            except StoreError:
                await trio.sleep(RETRY)
                continue
            except Exception as error:  # noqa: BLE001 - costs this renewal
                self._unforeseen.tell(error, "the renewal of the lease is tried again")
                await trio.sleep(RETRY)
                continue
            if kept:
                self._renewed_at = begun
            return kept

    async def _lose(self) -> None:
        """Stop every attempt, since another node may run those jobs now, and ask for a new lease."""
        self.losses += 1
        self.heartbeat.armed = False
        log.error("this node lost its lease: its attempts are stopped", running=self._held.busy)
        self._ledger.suspend()
        self._ledger.stop(self._held, "lease")
        with trio.move_on_after(self._seconds):
            await self._held.quiet()  # a job must not run here twice at once: its cleanup comes first
        while True:
            try:
                await self.join()
            except StoreError:
                await trio.sleep(RETRY)
            except Exception as error:  # noqa: BLE001 - costs this try
                self._unforeseen.tell(error, "a new lease is asked for again")
                await trio.sleep(RETRY)
            else:
                self._ledger.resume()
                return

    async def _rescue_if_possible(self) -> None:
        try:
            await self.rescue()
        except StoreError as error:
            log.warning("could not look for jobs of dead nodes", error=str(error))

    async def rescue(self) -> Sequence[Rescued]:
        """Take back the jobs of dead nodes; returns them. Raises `StoreError`.

        What nobody foresaw keeps no node from its start: those jobs are looked for again with the next renewal.
        """
        try:
            rescued = await self._store.rescue(self._node, self._clock.now())
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - costs this look
            self._unforeseen.tell(error, "the jobs of dead nodes are looked for again later")
            return []
        for job in rescued:
            self._ledger.changed(Changed(job.id, job.status))
            self._ledger.tallies.rescued[job.begun] += 1
            tell = log.info if job.begun else log.debug  # those that only waited are many, and lost nothing
            tell("recovered a job of a dead node", job=job.id, status=job.status.value, begun=job.begun)
        if rescued:
            self._follower.look()
            self._ledger.look()
        return rescued
