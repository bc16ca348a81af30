"""What people ask of jobs and queues: cancel, retry, delete, pause, resume."""

from jobpipe.clock import Clock
from jobpipe.engine.attempts import Attempts
from jobpipe.engine.ledger import Ledger
from jobpipe.events import Events
from jobpipe.store.base import Change, ControlStore, QueueChange


class Control:
    """Writes a wish to the store, then acts on it here. Every method may raise `StoreUnavailable`: nothing was done."""

    def __init__(
        self, store: ControlStore, ledger: Ledger, attempts: Attempts, events: Events, clock: Clock
    ) -> None:
        self._store, self._ledger, self._attempts = store, ledger, attempts
        self._events, self._clock = events, clock

    async def cancel(self, job_id: str) -> Change:
        """Cancel a waiting job, or stop a running one: its cleanup may go on after this returns.

        The wish is stored first, so it survives a crash.
        """
        (change,) = await self._store.cancel([job_id], self._clock.now())
        if change.verdict == "changed" and change.job is not None:
            # Also where the store does not count it as held here any more.
            self._attempts.stop([job_id], "cancel")
            self._events.publish(job_id, change.job.status)
            self._ledger.look()
        return change

    async def retry(self, job_id: str) -> Change:
        """Queue a job that has ended once more."""
        (change,) = await self._store.retry([job_id], self._clock.now())
        self._ledger.look()
        return change

    async def delete(self, job_id: str) -> Change:
        """Delete a job that no node holds."""
        (change,) = await self._store.delete([job_id])
        if change.verdict == "changed":
            self._events.wake(job_id)  # who waits for its end waits for nothing now
        self._ledger.look()
        return change

    async def pause(self, queue: str) -> None:
        """Start no more jobs of a queue; those that run go on. None starts here once this has returned."""
        await self._store.pause(queue)
        self._ledger.recall(queue)
        self._attempts.recall(queue)

    async def delete_queue(self, queue: str) -> QueueChange:
        """Forget a queue that has no jobs, and that it is paused."""
        return await self._store.delete_queue(queue)

    async def resume(self, queue: str) -> None:
        """Start jobs of a queue again."""
        await self._store.resume(queue)
        self._ledger.look()
