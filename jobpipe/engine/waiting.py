"""The one way to wait for a job's end, whichever node it ends on."""

import math

import trio

from jobpipe.engine.listener import Listener
from jobpipe.events import Events
from jobpipe.job import ENDED, Job
from jobpipe.store.base import ReadStore

LOOK_AGAIN = 2.0
"""Seconds after which who waits reads the job anyway: the end of a job on another node may not be announced."""

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
