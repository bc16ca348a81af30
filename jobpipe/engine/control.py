"""What people ask of jobs, groups, queues and schedules: cancel, retry, promote, edit, delete, close, pause, resume."""

from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from jobpipe.acts import By
from jobpipe.clock import Clock
from jobpipe.engine.follower import Follower
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.scheduler import Scheduler
from jobpipe.engine.throttle import LogThrottle
from jobpipe.events import Events
from jobpipe.job import NewJob
from jobpipe.lanes import KeySettings, Limits
from jobpipe.schedules import Schedule, Spec
from jobpipe.store.base import (
    Change,
    ControlStore,
    GroupState,
    KeyState,
    QueueChange,
    QueueSettings,
    ScheduleDeletion,
    SchedulePut,
)

ACTS = 20
"""How many acts of people a second have a line in the log."""

log = structlog.get_logger("jobpipe")


class Control:
    """Writes a wish to the store, then acts on it here. Every method may raise `StoreUnavailable`: nothing was done.

    `by`: whose wish it is; that is written with it (see `jobpipe.acts`). None: it is no act of anybody.
    """

    def __init__(
        self,
        store: ControlStore,
        ledger: Ledger,
        follower: Follower,
        scheduler: Scheduler,
        events: Events,
        clock: Clock,
    ) -> None:
        self._store, self._ledger, self._follower, self._scheduler = store, ledger, follower, scheduler
        self._events, self._clock = events, clock
        self._acts = LogThrottle(ACTS)

    async def cancel(self, job_id: str, *, by: By | None = None) -> Change:
        """Cancel a waiting job, or stop a running one: its cleanup may go on after this returns.

        The wish is stored first, so it survives a crash.
        """
        (change,) = await self._store.cancel([job_id], self._clock.now(), by=by)
        if change.verdict == "changed" and change.job is not None:
            self._ledger.cancelled(job_id, change.job.status)
            self._tell("cancel requested", job=job_id, status=change.job.status.value)
        self._follower.look()
        return change

    async def retry(self, job_id: str, *, by: By | None = None) -> Change:
        """Queue a job that has ended once more."""
        return self._waits(await self._store.retry([job_id], self._clock.now(), by=by), "retry requested")

    async def close_group(self, group_id: str, *, by: By | None = None) -> GroupState | None:
        """Take no more jobs into a group; None: there is none."""
        group = await self._store.close_group(group_id, self._clock.now(), by=by)
        if group is not None:
            self._tell("group closed", group=group_id)
        self._follower.look()
        self._ledger.look()
        return group

    async def promote(self, job_id: str, *, by: By | None = None) -> Change:
        """Make a waiting job due now."""
        return self._waits(await self._store.promote([job_id], self._clock.now(), by=by), "promote requested")

    async def edit(self, job_id: str, edits: Mapping[str, Any], *, by: By | None = None) -> Change:
        """Change what was asked of a waiting job."""
        return self._waits(await self._store.edit([job_id], edits, self._clock.now(), by=by), "job edited")

    async def delete(self, job_id: str, *, by: By | None = None) -> Change:
        """Delete a job that no node holds."""
        (change,) = await self._store.delete([job_id], self._clock.now(), by=by)
        if change.verdict == "changed":
            self._events.deleted(job_id)
            self._tell("job deleted", job=job_id)
        self._follower.look()
        self._ledger.look()
        return change

    async def pause(
        self, queue: str, reason: str | None = None, seconds: float | None = None, *, by: By | None = None
    ) -> None:
        """Start no more jobs of a queue; those that run go on. None starts here once this has returned.

        After so many seconds the queue is resumed by itself; None: it is not.
        """
        until = None if seconds is None else round(self._clock.now() + seconds, 3)
        await self._store.pause(queue, reason, until, by=by)
        self._ledger.recall(queue)
        if until is not None:
            self._ledger.look()  # to know when the pause ends
        self._tell("queue paused", queue=queue)

    async def put_queue(
        self, queue: str, settings: QueueSettings, limits: Limits, *, by: By | None = None
    ) -> None:
        """Set all of a queue's settings, and what it allows: that counts from the next claim on."""
        await self._store.put_queue(queue, settings, limits, by=by)
        self._ledger.look()
        self._tell("queue settings changed", queue=queue)

    async def delete_queue(self, queue: str, *, by: By | None = None) -> QueueChange:
        """Forget a queue that has no jobs, with its pause and its settings."""
        return await self._store.delete_queue(queue, by=by)

    async def resume(self, queue: str, *, by: By | None = None) -> None:
        """Start jobs of a queue again."""
        await self._store.resume(queue, by=by)
        self._ledger.look()
        self._tell("queue resumed", queue=queue)

    async def put_key(self, queue: str, key: str, settings: KeySettings, *, by: By | None = None) -> KeyState:
        """Set what one key of a queue may do."""
        state = await self._store.put_key(queue, key, settings, by=by)
        self._ledger.look()
        self._tell("key set", queue=queue, key=key)
        return state

    async def pause_key(self, queue: str, key: str, *, by: By | None = None) -> KeyState:
        """Start no more jobs of a key; those that run go on. None starts here once this has returned."""
        state = await self._store.pause_key(queue, key, by=by)
        self._ledger.recall(queue, key)
        self._tell("key paused", queue=queue, key=key)
        return state

    async def resume_key(self, queue: str, key: str, *, by: By | None = None) -> KeyState:
        """Start jobs of a key again."""
        state = await self._store.resume_key(queue, key, by=by)
        self._ledger.look()
        self._tell("key resumed", queue=queue, key=key)
        return state

    async def put_schedule(self, name: str, spec: Spec, job: NewJob, *, by: By | None = None) -> SchedulePut:
        """Store a schedule, or change what it says."""
        put = await self._store.put_schedule(name, spec, job, self._clock.now(), by=by)
        self._scheduler.wake()  # also for what was sent again, since the first time may have gone wrong here
        if put.verdict in ("created", "changed"):
            self._tell(f"schedule {put.verdict}", schedule=name)
        return put

    async def pause_schedule(self, name: str, reason: str | None, *, by: By | None = None) -> Schedule | None:
        """Have a schedule fire no more; None: there is none."""
        schedule = await self._store.pause_schedule(name, reason, by=by)
        if schedule is not None:
            self._tell("schedule paused", schedule=name)
        return schedule

    async def resume_schedule(self, name: str, *, by: By | None = None) -> Schedule | None:
        """Have a schedule fire again, from now on; None: there is none."""
        schedule = await self._store.resume_schedule(name, self._clock.now(), by=by)
        if schedule is not None:
            self._scheduler.wake()
            self._tell("schedule resumed", schedule=name)
        return schedule

    async def delete_schedule(self, name: str, *, by: By | None = None) -> ScheduleDeletion:
        """Delete a schedule, not its jobs; one that code declares stays."""
        deletion = await self._store.delete_schedule(name, by=by)
        if deletion == "deleted":
            self._tell("schedule deleted", schedule=name)
        return deletion

    def _waits(self, changes: Sequence[Change], act: str) -> Change:
        """A job may wait for this node now."""
        (change,) = changes
        if change.verdict == "changed" and change.job is not None:
            self._events.publish(change.id, change.job.status)
            self._tell(act, job=change.id)
        self._ledger.look()
        return change

    def _tell(self, act: str, **what: str) -> None:
        """A line about what somebody asked for; of thousands at once, a few a second."""
        self._acts.tell(log.info, act, **what)
