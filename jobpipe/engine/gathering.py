"""Adds that need a transaction of their own: what comes while one is under way shares the next one."""

from collections import deque
from collections.abc import Sequence

import trio

from jobpipe.errors import StoreError
from jobpipe.job import NewJob
from jobpipe.store.base import EngineStore, Receipt

MOST = 1000
"""The most jobs that share such a transaction; more than that come from one request only."""


class _Asked:
    """Jobs that are to be stored for one asker, and what came of it."""

    def __init__(self, jobs: Sequence[NewJob], *, atomic: bool, strict: bool) -> None:
        self.jobs, self.atomic, self.strict = jobs, atomic, strict
        self.receipts: Sequence[Receipt] | None = None
        self.error: Exception | None = None

    @property
    def over(self) -> bool:
        return self.receipts is not None or self.error is not None


class Gathering:
    """Hands adds to the store, one transaction after another. Whose turn it is stores for those that wait as well."""

    def __init__(self, store: EngineStore) -> None:
        self._store = store
        self._turn = trio.Lock()
        self._waiting = deque[_Asked]()

    async def add(self, jobs: Sequence[NewJob], *, atomic: bool, strict: bool = False) -> Sequence[Receipt]:
        """Store jobs as `EngineStore.add_dependents` does; those that are atomic, alone.

        Raises what the store raises for these jobs; then nothing of them was stored. A cancel leaves either all of them
        stored or none, and those of others untouched.
        """
        mine = _Asked(jobs, atomic=atomic, strict=strict)
        self._waiting.append(mine)
        try:
            async with self._turn:
                while not mine.over:
                    await self._store_next()
        finally:
            if mine in self._waiting:
                self._waiting.remove(mine)
        if mine.error is not None:
            raise mine.error
        return mine.receipts or ()

    async def _store_next(self) -> None:
        taken = self._take()
        try:
            await self._store_for(taken)
        finally:
            # Where the one whose turn it is was cancelled, the others are stored by whoever is next.
            self._waiting.extendleft(one for one in reversed(taken) if not one.over)

    def _take(self) -> Sequence[_Asked]:
        """Those that go next, in the order in which they came."""
        taken, jobs = [self._waiting.popleft()], 0
        while self._waiting and not (taken[-1].atomic or self._waiting[0].atomic):
            jobs += len(taken[-1].jobs)
            if jobs + len(self._waiting[0].jobs) > MOST:
                break
            taken.append(self._waiting.popleft())
        return taken

    async def _store_for(self, taken: Sequence[_Asked]) -> None:
        jobs = [job for one in taken for job in one.jobs]
        try:
            first = taken[0]
            receipts = iter(await self._store.add_dependents(jobs, atomic=first.atomic, strict=first.strict))
        except Exception as error:  # noqa: BLE001 - whoever asked is told
            if len(taken) == 1 or isinstance(error, StoreError):
                for one in taken:
                    one.error = error
            else:  # one of them is to blame
                for one in taken:
                    await self._store_for([one])
        else:
            for one in taken:
                one.receipts = [next(receipts) for _ in one.jobs]
