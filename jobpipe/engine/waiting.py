"""The one way to wait for a job to end or to change, whichever node holds it."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from jobpipe.engine.listener import Listener
from jobpipe.events import Events, Watch
from jobpipe.job import ENDED, Job
from jobpipe.store.base import ReadStore

LOOK_AGAIN = 2.0
"""Seconds after which who waits reads the job anyway: the end of a job on another node may not be announced."""

LOOKS_APART = 0.1
"""Seconds between two reads for one who was woken though the job had not ended: anyone may wake it."""


class Following:
    """One job, looked at whenever it may be something else."""

    def __init__(self, store: ReadStore, watch: Watch, job_id: str) -> None:
        self._store, self._watch, self._id = store, watch, job_id
        self._woken_at: float | None = None
        """when it was last woken; None: it has not looked yet"""
        self.over = False
        """whether this node stops, and what was seen last is all that it tells"""

    async def look(self) -> Job | None:
        """The job as it is, at first at once, then when it may have changed, or after `LOOK_AGAIN` seconds anyway.

        None: there is no such job. Raises `StoreError`. A cancel changes nothing.
        """
        if self._woken_at is None:
            self._woken_at = -math.inf
        else:
            with trio.move_on_after(LOOK_AGAIN):
                await self._watch.rechecked()
            with trio.move_on_at(self._woken_at + LOOKS_APART):
                await self._watch.ended()
            self._woken_at = trio.current_time()
        self.over = self._watch.over  # before the read: what is told meanwhile is read again
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
    async def following(self, job_id: str) -> AsyncIterator[Following]:
        """Follow one job, whether it is there or not. Raises `StoreError`."""
        with self._events.watch(job_id) as watch:
            await self._news.expect(job_id)
            yield Following(self._store, watch, job_id)
