"""Goes on with what follows the ends of jobs, where one transaction did not do all of it."""

import structlog
import trio

from jobpipe.clock import Clock
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.unforeseen import Unforeseen
from jobpipe.errors import StoreError
from jobpipe.events import Events
from jobpipe.job import Status
from jobpipe.store.base import EngineStore, Followed

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 1.0
"""Seconds before what another transaction has locked is tried again, doubled from try to try."""

log = structlog.get_logger("jobpipe")


class Follower:
    """Runs as one task, beside the ledger. It looks at the store once in `period` seconds, or when it is woken.

    Exchanges and verbs do what follows an end themselves, as far as it goes in one transaction: so there is mostly
    nothing left to do, and what it learns here is what to tell.
    """

    def __init__(
        self, store: EngineStore, ledger: Ledger, events: Events, clock: Clock, *, period: float
    ) -> None:
        self._store, self._ledger, self._events, self._clock = store, ledger, events, clock
        self._period = period
        self._woken = trio.Event()
        self._unforeseen = Unforeseen()

    def wake(self) -> None:
        """Something is left to be done."""
        self._woken.set()

    def look(self) -> None:
        """A verb may have ended jobs that others wait for."""
        if self._store.following:
            self.wake()

    async def run(self) -> None:
        """Follow for ever: a step at a time, so that nobody waits long for the writer."""
        pause = FIRST_PAUSE
        while True:
            self._woken = trio.Event()
            followed = await self._follow()
            if followed.changes:
                pause = FIRST_PAUSE
                await trio.lowlevel.checkpoint()
            if followed.more and followed.changes:
                continue
            with trio.move_on_after(pause if followed.more else self._period):
                await self._woken.wait()
            pause = min(2 * pause, LONGEST_PAUSE) if followed.more else FIRST_PAUSE

    async def _follow(self) -> Followed:
        try:
            followed = await self._store.follow(self._clock.now())
        except StoreError as error:
            log.warning("could not go on with jobs that waited for others", error=str(error))
            return Followed(more=True)
        except Exception as error:  # noqa: BLE001 - costs this step
            self._unforeseen.tell(error, "jobs that wait for others may wait longer")
            return Followed(more=True)
        self._tell(followed)
        return followed

    def _tell(self, followed: Followed) -> None:
        for change in followed.changes:
            self._ledger.changed(change)
        if any(change.status is not Status.CANCELLED for change in followed.changes):
            self._ledger.look()
