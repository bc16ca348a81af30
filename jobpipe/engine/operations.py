"""Does to many jobs what was asked of them: a slice at a time, so that nobody waits for it, and a crash loses nothing.

Any node goes on with an operation whose node has gone. A slice is done where the operation still stands where it was
believed to stand, in the transaction that moves it on: so two nodes never do the same slice.
"""

from collections.abc import Sequence

import structlog
import trio
from msgspec.structs import replace

from jobpipe.acts import By
from jobpipe.clock import Clock
from jobpipe.engine.follower import Follower
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.unforeseen import Unforeseen
from jobpipe.errors import StoreError
from jobpipe.events import Events
from jobpipe.store.base import Change, Filter, NewOperation, Operation, Slice, Store

SLICE = 100
"""The most jobs of one slice."""

RETRY = 1.0
"""Seconds before an operation is gone on with after the store could not be used."""

LOOK = 1.0
"""Seconds after which whoever waits for an operation looks at it again: another node may be about it."""

COUNTED = 1.0
"""Seconds for which jobs are counted before it is said that there are at least so many."""

MOVES = ("retry", "promote")
"""The other verbs that bring jobs to another status."""

PAGE = 1000
"""How many jobs are read at once to be counted."""

log = structlog.get_logger("jobpipe")


class Operations:
    """Runs as one task. Where there are no operations it looks at the store once in `period` seconds."""

    def __init__(  # noqa: PLR0913 - what it works with, and two constants of the node
        self,
        store: Store,
        ledger: Ledger,
        follower: Follower,
        events: Events,
        clock: Clock,
        *,
        node: str,
        period: float,
    ) -> None:
        self._store, self._ledger, self._follower, self._events = store, ledger, follower, events
        self._clock, self._node, self._period = clock, node, period
        self._woken, self._ended = trio.Event(), trio.Event()
        self._unforeseen = Unforeseen()

    async def begin(self, operation: NewOperation, *, by: By | None = None) -> Operation:
        """Have something done to all jobs that a filter means; `by`: who asks for it. Raises `StoreUnavailable`."""
        begun = await self._store.begin_operation(operation, self._clock.now(), by=by)
        log.info("operation begun", operation=operation.id, verb=operation.verb)
        self._woken.set()
        return begun

    async def stop(self, operation_id: str, *, by: By | None = None) -> Operation | None:
        """Have an operation do no more; what it has done stays. None: there is none. `by`: who asks for it."""
        stopped = await self._store.stop_operation(operation_id, self._clock.now(), by=by)
        self._tell_end()
        return stopped

    async def ended(self, operation_id: str, seconds: float) -> Operation | None:
        """An operation once it has ended, or as it is after so many seconds; None: there is none."""
        deadline = trio.current_time() + seconds
        while True:
            ended = self._ended
            found = await self._store.operation(operation_id)
            left = deadline - trio.current_time()
            if found is None or found.state != "running" or left <= 0:
                return found
            with trio.move_on_after(min(left, LOOK)):
                await ended.wait()

    async def count(self, where: Filter) -> tuple[int, bool]:
        """How many jobs a filter means, and whether that is exact; else there are at least so many."""
        deadline, jobs, before = trio.current_time() + COUNTED, 0, None
        while True:
            page = await self._store.jobs(replace(where, content=False), PAGE, before)
            jobs, before = jobs + len(page.jobs), page.next_before
            if before is None or trio.current_time() >= deadline:
                return jobs, before is None

    async def run(self) -> None:
        """Do slices for ever, of each operation in its turn."""
        while True:
            self._woken = trio.Event()
            try:
                next_at = await self._go_on()
            except StoreError as error:
                log.warning("could not go on with operations: trying again", error=str(error))
                await trio.sleep(RETRY)
            else:
                await self._sleep(next_at)

    async def _sleep(self, next_at: float | None) -> None:
        left = self._period if next_at is None else min(self._period, self._clock.nap(next_at))
        with trio.move_on_after(left):
            await self._woken.wait()

    async def _go_on(self) -> float | None:
        """Do all slices that may be done now; returns when there will be the next. Raises `StoreError`."""
        while True:
            now = self._clock.now()
            taken = await self._store.take_operation(self._node, now, now + self._period)
            if taken.operation is None:
                return taken.next_at
            await self._do(taken.operation, _most(taken.operation))

    async def _do(self, operation: Operation, limit: int) -> None:
        """Do a slice; where a job of it does not allow that, a smaller one, until that job stands alone."""
        where = replace(operation.asked.where, content=False)
        page = await self._store.jobs(where, limit, operation.place)
        now, rate = self._clock.now(), operation.asked.rate
        part = Slice(
            operation=operation.asked.id,
            place=operation.place,
            ids=[job.id for job in page.jobs],
            next=page.next_before,
            next_at=now if rate is None else now + len(page.jobs) / rate,
        )
        try:
            done = await self._store.slice(part, self._node, now, now + self._period)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - costs the job that it belongs to
            if len(part.ids) > 1:
                await self._do(operation, len(part.ids) // 2)
                return
            self._unforeseen.tell(error, "the operation passes over a job", job=", ".join(part.ids))
            passed = replace(part, ids=[], refused=len(part.ids))
            done = await self._store.slice(passed, self._node, now, now + self._period)
        self._act(operation, done.changes)
        if done.operation is None or done.operation.state != "running":
            self._tell_end()

    def _act(self, operation: Operation, changes: Sequence[Change]) -> None:
        """Do here what follows from what is written."""
        for change in changes:
            if change.verdict != "changed":
                continue
            if operation.asked.verb == "cancel" and change.job is not None:
                self._ledger.cancelled(change.id, change.job.status)
            elif operation.asked.verb == "delete":
                self._events.deleted(change.id)
            elif operation.asked.verb in MOVES and change.job is not None:
                self._events.publish(change.id, change.job.status)
        self._follower.look()
        self._ledger.look()

    def _tell_end(self) -> None:
        ended, self._ended = self._ended, trio.Event()
        ended.set()


def _most(operation: Operation) -> int:
    """How many jobs a slice may have: with a rate, those of a second."""
    rate = operation.asked.rate
    return SLICE if rate is None else max(1, min(SLICE, int(rate)))
