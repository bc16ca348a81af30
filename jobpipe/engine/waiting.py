"""The one way to wait for a job to end or to change, whichever node holds it."""

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from jobpipe.engine.listener import Listener
from jobpipe.events import Events, Watch
from jobpipe.job import ENDED, Job, Level
from jobpipe.store.base import LogPage, ReadStore

LOOK_AGAIN = 2.0
"""Seconds after which who waits reads the job anyway: the end of a job on another node may not be announced."""

LOOK_FOR_LINES = 0.5
"""The same for log lines, where nodes share the store: those of another node are never announced."""

LOOKS_APART = 0.1
"""Seconds between two reads for one who was woken though the job had not ended: anyone may wake it."""


class Looks:
    """When one who waits is to read: at first at once, then when there is a reason, or after `patience` seconds."""

    def __init__(self, watch: Watch, patience: float = LOOK_AGAIN) -> None:
        self._watch, self._patience = watch, patience
        self._woken_at: float | None = None
        """when there was the last reason; None: nothing was read yet"""
        self.over = False
        """whether the job has ended, or this node stops: what is read now is the last that it tells"""

    async def next(self) -> None:
        """Return when it is time to read. A cancel changes nothing."""
        if self._woken_at is None:
            self._woken_at = -math.inf
        else:
            with trio.move_on_after(self._patience):
                await self._watch.rechecked()
            with trio.move_on_at(self._woken_at + LOOKS_APART):
                await self._watch.ended()
            self._woken_at = trio.current_time()
        self.over = self._watch.over  # before the read: what is told meanwhile is read again


class Following:
    """One job, looked at whenever it may have changed, its progress too."""

    def __init__(self, store: ReadStore, looks: Looks, job_id: str) -> None:
        self._store, self._looks, self._id = store, looks, job_id

    @property
    def over(self) -> bool:
        """Whether what was seen last is all that there is to see."""
        return self._looks.over

    async def look(self) -> Job | None:
        """The job as it is, as soon as there is a reason to look; None: there is no such job.

        Raises `StoreError`. A cancel changes nothing.
        """
        await self._looks.next()
        return await self._store.get(self._id)


class Waiting:
    """Keeps the order without which an end falls between: watch here, have other nodes tell of it, then read."""

    def __init__(self, store: ReadStore, events: Events, news: Listener) -> None:
        self._store, self._events, self._news = store, events, news

    async def ended(self, job_id: str) -> Job | None:
        """The job once it has ended; as it is when this node stops and can tell no more; None: there is no such job.

        Raises `StoreError`. The caller bounds the wait: a cancel changes nothing.
        """
        async with self.following(job_id) as following:
            while True:
                job = await following.look()
                if job is None or job.status in ENDED or following.over:
                    return job

    @asynccontextmanager
    async def following(self, job_id: str, *, progress: bool = False) -> AsyncIterator[Following]:
        """Follow one job, whether it is there or not, and its `progress` if asked to. Raises `StoreError`."""
        with self._events.watch(job_id, log=progress) as watch:
            await self._news.expect(job_id)
            yield Following(self._store, Looks(watch), job_id)

    async def logged(self, job_id: str, after: int, limit: int, levels: Sequence[Level]) -> LogPage | None:
        """A part of the job's log, once it has a line, or the job has ended; what there is when this node stops.

        None: there is no such job. Raises `StoreError`. The caller bounds the wait: a cancel changes nothing.
        """
        patience = LOOK_AGAIN if self._news.alone else LOOK_FOR_LINES
        with self._events.watch(job_id, log=True) as watch:
            looks = Looks(watch, patience)
            while True:
                await looks.next()
                page = await self._store.log(job_id, after, limit, levels)
                if page is None or page.lines or page.ended or looks.over:
                    return page
