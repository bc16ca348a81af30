"""Keeps the store small: deletes ended jobs that are too old or too many, and what the audit has kept for too long."""

import structlog
import trio

from jobpipe.clock import Clock
from jobpipe.engine.unforeseen import Unforeseen
from jobpipe.errors import StoreError
from jobpipe.store.base import STEP, EngineStore, Retention

PERIOD = 10.0
"""Seconds between two looks."""

log = structlog.get_logger("jobpipe")


class Maintenance:
    """Runs as one task, beside the ledger."""

    def __init__(self, store: EngineStore, clock: Clock, retention: Retention, keep_audit: float) -> None:
        """`keep_audit`: for how many seconds acts are kept."""
        self._store, self._clock, self._retention = store, clock, retention
        self._keep_audit = keep_audit
        self._unforeseen = Unforeseen()

    async def run(self) -> None:
        """Prune for ever: a step at a time, so that nobody waits long for the writer."""
        while True:  # noqa: ASYNC110 - nobody tells when a job is too old
            await trio.sleep(0 if await self._prune() else PERIOD)

    async def _prune(self) -> bool:
        """Do a step; returns whether more is left to do."""
        try:
            now = self._clock.now()
            more_to_note = await self._store.note_kept(now, self._retention)
            more_acts = await self._store.forget_audit(now - self._keep_audit) == STEP
            return await self._store.prune(now, self._retention) == STEP or more_to_note or more_acts
        except StoreError as error:
            log.warning("could not delete old jobs", error=str(error))
        except Exception as error:  # noqa: BLE001 - costs this look
            self._unforeseen.tell(error, "old jobs are not deleted this time")
        return False
