"""Fires schedules: sleeps until the next is due, decides what each firing makes, and has the store do it once.

Every node does so, and needs no leader: a firing is done by whoever moves the schedule's row on first.
"""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence

import structlog
import trio

from jobpipe.clock import Clock
from jobpipe.engine.follower import Follower
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.unforeseen import Unforeseen
from jobpipe.errors import StoreError
from jobpipe.job import Status
from jobpipe.schedules import Declaration, Firing, Schedule, decided
from jobpipe.store.base import SCHEDULES, Declared, EngineStore, Fired, SharedStore

RETRY = 1.0
"""Seconds before what could not be fired is tried again: the store cannot write, or another node is about it."""

POSTPONED = 5.0
"""Seconds before a schedule is tried again whose firing raised what nobody foresaw, or whose row cannot be read."""

APART = 0.05
"""Nodes wake up to so many seconds apart, so that the first has fired when the others look."""

LIVE = 60.0
"""Seconds for which a node that has said so counts as one that declares a schedule, on a store with other nodes."""

log = structlog.get_logger("jobpipe")


class Scheduler:
    """Runs as one task. Where there are no schedules it looks at the store once in `period` seconds.

    As often it says which schedules the code of this node declares.
    """

    def __init__(  # noqa: PLR0913 - what it works with, and two constants of the node
        self,
        store: EngineStore,
        ledger: Ledger,
        follower: Follower,
        clock: Clock,
        declarations: Sequence[Declaration] = (),
        *,
        node: str,
        period: float,
    ) -> None:
        self._store, self._ledger, self._follower = store, ledger, follower
        self._clock, self._period = clock, period
        self._declarations, self._declare_at = declarations, -math.inf
        self._live = max(LIVE, 4 * period) if isinstance(store, SharedStore) else 0.0
        self._apart = (
            zlib.crc32(node.encode()) % 1000 / 1000 * APART if isinstance(store, SharedStore) else 0.0
        )
        self._woken = trio.Event()
        # In Trio's clock: when to look again though nothing is due, and until when schedules are left alone.
        self._again_at = math.inf
        self._postponed: dict[str, float] = {}
        self._unforeseen = Unforeseen()

    def wake(self) -> None:
        """A schedule may be due earlier than it was."""
        self._woken.set()

    async def run(self) -> None:
        """Fire what is due, for ever."""
        while True:
            self._woken, begun = trio.Event(), trio.current_time()
            self._postponed = {name: until for name, until in self._postponed.items() if until > begun}
            self._again_at = min(self._postponed.values(), default=math.inf)
            next_at: float | None = None
            try:
                await self._declare()
                next_at = await self._fire_due()
            except StoreError as error:
                log.warning("could not fire schedules: trying again", error=str(error))
                self._look_in(RETRY)
            await self._sleep(next_at)

    async def _sleep(self, next_at: float | None) -> None:
        """Sleep until a schedule is due at `next_at`, or there is another reason to look."""
        look_at = min(trio.current_time() + self._period, self._again_at)
        while not self._woken.is_set() and (left := look_at - trio.current_time()) > 0:
            if next_at is not None:
                left = min(left, self._clock.nap(next_at + self._apart))
                if left <= 0:
                    return
            with trio.move_on_after(left):
                await self._woken.wait()

    async def _declare(self) -> None:
        """Say what this node declares, once in `period` seconds, so that it stays known. Raises `StoreError`."""
        if trio.current_time() < self._declare_at:
            return
        now = self._clock.now()
        try:
            done = await self._store.declare(self._declarations, now, now - self._live)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - costs these declarations a while, and no firing
            self._unforeseen.tell(error, "declared schedules stay as they are", seconds=self._period)
            done = Declared()
        self._declare_at = trio.current_time() + self._period
        for name in (*done.created, *done.changed):
            log.info("a schedule follows its declaration", schedule=name)
        for name in done.orphaned:
            log.warning("a schedule is paused: no live node declares it any more", schedule=name)

    def _look_in(self, seconds: float) -> None:
        self._again_at = min(self._again_at, trio.current_time() + seconds)

    async def _fire_due(self) -> float | None:
        """Fire all that is due; returns when the next will be. Raises `StoreError`."""
        now, after = self._clock.now(), None
        times = list[float]()
        while True:
            due = await self._store.due_schedules(now, SCHEDULES, after)
            firings = list(self._decided(due.schedules, now))
            await self._fire(firings, now)
            times += [one.next_at for one in firings if one.next_at is not None]
            if len(due.schedules) < SCHEDULES:
                return min(times if due.next_at is None else [*times, due.next_at], default=None)
            last = due.schedules[-1]
            after = (last.next_at or now, last.name)

    def _decided(self, schedules: Sequence[Schedule], now: float) -> Iterator[Firing]:
        """What is to be done for each. One that cannot be decided is left alone for a while."""
        for one in schedules:
            if one.name in self._postponed:
                continue
            if one.error is not None:
                log.error("a schedule does not fire", schedule=one.name, error=one.error.message)
                self._postpone(one.name)
                continue
            try:
                yield decided(one, now)
            except Exception as error:  # noqa: BLE001 - costs this schedule's firing
                self._tell(one.name, error)

    async def _fire(self, firings: Sequence[Firing], now: float) -> None:
        """Fire, all at once; where one of them does not allow that, in halves until it stands alone."""
        if not firings:
            return
        try:
            fired = await self._store.fire(firings, now)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - costs the firing that it belongs to
            if len(firings) == 1:
                self._tell(firings[0].name, error)
                return
            middle = len(firings) // 2
            await self._fire(firings[:middle], now)
            await self._fire(firings[middle:], now)
        else:
            self._act(fired, {job.id: job.status for firing in firings for job in firing.jobs})
            with self._unforeseen.costs("these firings are not counted"):
                self._count(firings, fired, now)

    def _act(self, fired: Fired, statuses: Mapping[str, Status]) -> None:
        """Do here what follows from what is written."""
        for change in fired.cancelled:
            if change.verdict == "changed" and change.job is not None:
                self._ledger.cancelled(change.id, change.job.status)
        self._follower.look()
        self._ledger.made((job_id, statuses.get(job_id)) for job_id in fired.stored)
        if fired.stored:
            self._ledger.look()
        if fired.locked:
            self._look_in(RETRY)

    def _count(self, firings: Sequence[Firing], fired: Fired, now: float) -> None:
        """Count what came of firings, which other nodes have not done."""
        tallies, stored = self._ledger.tallies, frozenset(fired.stored)
        for firing in firings:
            if firing.name in fired.fired:
                made = [job for job in firing.jobs if job.id in stored]
                tallies.add(made)
                tallies.fire(
                    late=now - firing.due_at,
                    fired=len(made),
                    skipped=len(firing.jobs) - len(made),
                    missed=firing.missed,
                )

    def _tell(self, name: str, error: Exception) -> None:
        self._unforeseen.tell(error, "the schedule is tried again later", schedule=name, seconds=POSTPONED)
        self._postpone(name)

    def _postpone(self, name: str) -> None:
        self._postponed[name] = trio.current_time() + POSTPONED
        self._look_in(POSTPONED)
