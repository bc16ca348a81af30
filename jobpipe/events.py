"""Job changes, told to whoever listens inside this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import trio

from jobpipe.job import ENDED, Status

Sink = Callable[[str, Status | Literal["deleted"] | None], None]
"""Is told the id of a job, and what has become of it; None: see the store."""


class Watch:
    """Waits for one job to end or to change, and for what it logs if asked to."""

    def __init__(self, *, log: bool) -> None:
        self.log = log
        self._woken = trio.Event()
        self.over = False
        """whether the job has ended, or this node stops and can tell no more"""

    async def ended(self) -> None:
        """Return when the job has ended, or when this node stops and can tell no more."""
        while True:
            await self.rechecked()
            if self.over:
                return

    async def rechecked(self) -> None:
        """The same, or the job may have changed: look at it, and wait again. Each reason to look wakes once."""
        await self._woken.wait()
        if not self.over:
            self._woken = trio.Event()

    def tell(self) -> None:
        """Wake who waits."""
        self.over = True
        self._woken.set()

    def recheck(self) -> None:
        """Have who waits look."""
        self._woken.set()


class Events:
    """Hands each change, once it is stored, to those who watch the job."""

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}
        self._closed = False
        self.sink: Sink | None = None
        """is told of all jobs, while somebody listens to all of them"""

    @contextmanager
    def watch(self, job_id: str, *, log: bool = False) -> Iterator[Watch]:
        """Listen to one job, and to its `log`. Read the job after this, so that no change falls between."""
        watch = Watch(log=log)
        if self._closed:
            watch.tell()
        self._watches.setdefault(job_id, set()).add(watch)
        try:
            yield watch
        finally:
            watches = self._watches[job_id]
            watches.discard(watch)
            if not watches:
                del self._watches[job_id]

    @property
    def has_listeners(self) -> bool:
        """Whether anybody listens."""
        return bool(self._watches) or self.sink is not None

    def watched(self, job_id: str) -> bool:
        """Whether somebody waits for this job."""
        return job_id in self._watches

    def publish(self, job_id: str, status: Status | None) -> None:
        """Tell that a job has a status now, as stored; None: it is not known which."""
        if self.sink is not None:
            self.sink(job_id, status)
        if status in ENDED:
            self.wake(job_id)
        else:
            self.look_at(job_id)

    def deleted(self, job_id: str) -> None:
        """Tell that a job was deleted: who waits for its end waits for nothing now."""
        if self.sink is not None:
            self.sink(job_id, "deleted")
        self.wake(job_id)

    def wake(self, job_id: str) -> None:
        """Tell those who watch a job that it has ended, or was deleted, by this node."""
        for watch in self._watches.get(job_id, ()):
            watch.tell()

    def look_at(self, job_id: str) -> None:
        """Have those who watch a job look at it: it is not what it was, or may have ended elsewhere."""
        for watch in self._watches.get(job_id, ()):
            watch.recheck()

    def logged(self, job_id: str) -> None:
        """Have those who watch the log of a job look at it: there is more of it, or of its progress."""
        for watch in self._watches.get(job_id, ()):
            if watch.log:
                watch.recheck()

    def recheck(self) -> None:
        """Have every watcher look at its job: the end may not have been told."""
        for watches in self._watches.values():
            for watch in watches:
                watch.recheck()

    def close(self) -> None:
        """Wake everybody: nothing more will be told."""
        self._closed = True
        for watches in self._watches.values():
            for watch in watches:
                watch.tell()
