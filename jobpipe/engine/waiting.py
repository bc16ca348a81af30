"""The one way to wait for a job's end, whichever node it ends on."""

import math
from collections.abc import Sequence

import trio

from jobpipe.engine.listener import Listener
from jobpipe.events import Events
from jobpipe.job import ENDED, Job, Level
from jobpipe.store.base import LogPage, ReadStore

LOOK_AGAIN = 2.0
"""Seconds after which who waits reads the job anyway: the end of a job on another node may not be announced."""

LOOK_FOR_LINES = 0.5
"""The same for log lines, where nodes share the store: those of another node are never announced."""

LOOKS_APART = 0.1
"""Seconds between two reads for one who was woken though the job had not ended: anyone may wake it."""


class Waiting:
    """Keeps the order without which an end falls between: watch here, have other nodes tell of it, then read."""

    def __init__(self, store: ReadStore, events: Events, news: Listener) -> None:
        self._store, self._events, self._news = store, events, news

    async def ended(self, job_id: str) -> Job | None:
        """The job once it has ended; as it is when this node stops and can tell no more; None: there is no such job.

        Raises `StoreError`. The caller bounds the wait: a cancel changes nothing.
        """
        looked = -math.inf
        with self._events.watch(job_id) as watch:
            await self._news.expect(job_id)
            while True:
                over = watch.over  # before the read: what is told meanwhile is read again
                job = await self._store.get(job_id)
                if job is None or job.status in ENDED or over:
                    return job
                with trio.move_on_after(LOOK_AGAIN):
                    await watch.rechecked()
                with trio.move_on_at(looked + LOOKS_APART):
                    await watch.ended()
                looked = trio.current_time()

    async def logged(self, job_id: str, after: int, limit: int, levels: Sequence[Level]) -> LogPage | None:
        """A part of the job's log, once it has a line, or the job has ended; what there is when this node stops.

        None: there is no such job. Raises `StoreError`. The caller bounds the wait: a cancel changes nothing.
        """
        patience = LOOK_AGAIN if self._news.alone else LOOK_FOR_LINES
        looked = -math.inf
        with self._events.watch(job_id, log=True) as watch:
            while True:
                over = watch.over  # before the read, as above
                page = await self._store.log(job_id, after, limit, levels)
                if page is None or page.lines or page.ended or over:
                    return page
                with trio.move_on_after(patience):
                    await watch.rechecked()
                with trio.move_on_at(looked + LOOKS_APART):
                    await watch.ended()
                looked = trio.current_time()
