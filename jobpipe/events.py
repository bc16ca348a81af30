"""Job changes, told to whoever listens inside this process."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from jobpipe.job import ENDED, Status


class Watch:
    """Waits for one job to end."""

    def __init__(self) -> None:
        self._over = trio.Event()

    async def ended(self) -> None:
        """Return when the job has ended, or when this node stops and can tell no more."""
        await self._over.wait()

    def tell(self) -> None:
        """Wake who waits."""
        self._over.set()


class Events:
    """Hands each change, once it is stored, to those who watch the job."""

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}
        self._closed = False

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Watch]:
        """Listen to one job. Read the job after this, so that no change falls between."""
        watch = Watch()
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
    def heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self._watches)

    def watched(self, job_id: str) -> bool:
        """Whether somebody waits for this job."""
        return job_id in self._watches

    def publish(self, job_id: str, status: Status) -> None:
        """Tell that a job has a status now, as stored."""
        if status in ENDED:
            self.wake(job_id)

    def wake(self, job_id: str) -> None:
        """Have those who watch a job look at it: it has ended, here or elsewhere, or is gone."""
        for watch in self._watches.get(job_id, ()):
            watch.tell()

    def close(self) -> None:
        """Wake everybody: nothing more will be told."""
        self._closed = True
        for watches in self._watches.values():
            for watch in watches:
                watch.tell()
