"""What a handler may know of the job that it performs, and what it can say of it."""

import functools
import math
import uuid
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol, Unpack

import msgspec
import trio

from jobpipe.errors import EnqueueError
from jobpipe.handlers.joblog import JobLog, clean, composed, tell_service, tells_service
from jobpipe.handlers.newjobs import Asked, JobOptions, checked, encoded
from jobpipe.job import PROGRESS_MESSAGE, GroupOutcome, Level, Scheduled

ROUNDING = 1e-9
"""By how much a fraction may be out of its bounds: what comes of adding up others."""


class Notes(Protocol):
    """Takes what a handler writes of its attempt, at once and without fail."""

    def progress(self, run: Any, fraction: float, message: str) -> None:  # noqa: ANN401 - whatever tells it the attempt
        """Take how far the attempt is."""

    def line(self, run: Any, level: Level, text: str, fields: bytes | None) -> None:  # noqa: ANN401 - as above
        """Take a line of the job's log."""


class Enqueues(Protocol):
    """Takes what a handler enqueues."""

    async def enqueue(self, run: Any, asked: Asked, payloads: Sequence[Any]) -> Sequence[str]:  # noqa: ANN401 - whatever tells it the attempt
        """Keep new jobs for the end of the attempt, or store them now; returns their ids. Raises `EnqueueError`."""


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """The job's side of one attempt."""

    id: str
    kind: str
    queue: str
    attempt: int
    """which run this is, from 1"""
    max_retries: int
    claim: int
    """grows with every claim of the job: hand it on as a fencing token, so that a late worker's write can be refused"""
    deadline: float
    """when the attempt times out, in Trio's clock (`trio.current_time()`); infinity: never"""
    schedule: Scheduled | None = None
    """the firing of a schedule that made the job: its `name`, and when, as `at` and as `time`"""
    group: GroupOutcome | None = None
    """how the jobs of a group have ended, where this job was to wait for that"""
    member_of: str | None = None
    """the group that the job belongs to: it may enqueue further jobs of that, with `group=job.member_of`"""
    _notes: Notes | None = None
    """where progress and log lines go; None: nowhere, as in a test of a handler"""
    _enqueues: Enqueues | None = None
    """where new jobs go; None: nowhere, as in a test of a handler"""
    _run: object = None
    """the attempt, for both"""

    def progress(self, fraction: float, message: str = "") -> None:
        """Say how far the attempt is: a number from 0 to 1, and a text of which 200 characters are kept.

        The latest counts; at most one a second is written, and the last one no later than the end of the attempt. May
        be called from `async` handlers and from threads; never waits, and fails for no store. Raises `TypeError` and
        `ValueError` for anything else.
        """
        share = _share(fraction)
        if not isinstance(message, str):
            raise TypeError(f"the message of a progress is a text, got {type(message).__name__}")
        if self._notes is not None:
            self._notes.progress(self._run, share, clean(message[:PROGRESS_MESSAGE]))

    @property
    def log(self) -> JobLog:
        """The job's log: `job.log.info("sent", to=address)`. Its lines are kept with the job."""
        return JobLog(self._line)

    def _line(self, level: Level, message: str, fields: Mapping[str, Any]) -> None:
        text, encoded = composed(message, fields)
        if self._notes is not None:
            self._notes.line(self._run, level, text, encoded)
        if tells_service():
            whose = {"job": self.id, "kind": self.kind, "attempt": self.attempt}
            tell_service(level, message, fields, whose)

    def enqueue(
        self,
        kind: str,
        payload: Any = None,  # noqa: ANN401 - any JSON
        *,
        id: str | None = None,  # noqa: A002 - as in a request
        **options: Unpack[JobOptions],
    ) -> Coroutine[Any, Any, str]:
        """Enqueue a job with the end of this attempt, and return its id: `await job.enqueue("mail", {"to": "ann"})`.

        It is stored in the same transaction that makes this job `done`. If the attempt ends otherwise, it is not: so a
        retry enqueues nothing twice. If it cannot be stored then, since another job has its id, this job fails. With
        `now=True` it is stored before this returns, whatever becomes of the attempt.

        Raises `EnqueueError` where the job cannot be enqueued so, or is too much beside what the attempt has enqueued,
        and `StoreUnavailable`; then nothing of it is stored. A cancel leaves either all of it or nothing.
        """
        return self._one(self._asked(kind, None if id is None else [id], options), payload)

    def enqueue_many(
        self,
        kind: str,
        payloads: Iterable[Any],
        *,
        ids: Iterable[str] | None = None,
        **options: Unpack[JobOptions],
    ) -> Coroutine[Any, Any, list[str]]:
        """Enqueue a job for each payload, all or none; returns their ids. Else as `enqueue`."""
        return self._many(self._asked(kind, None if ids is None else list(ids), options), list(payloads))

    def enqueue_from_thread(
        self,
        kind: str,
        payload: Any = None,  # noqa: ANN401 - any JSON
        *,
        id: str | None = None,  # noqa: A002 - as in a request
        **options: Unpack[JobOptions],
    ) -> str:
        """The same as `enqueue`, for handlers in threads: `job.enqueue_from_thread("mail", {"to": "ann"})`."""
        return trio.from_thread.run(functools.partial(self.enqueue, kind, payload, id=id, **options))

    def enqueue_many_from_thread(
        self,
        kind: str,
        payloads: Iterable[Any],
        *,
        ids: Iterable[str] | None = None,
        **options: Unpack[JobOptions],
    ) -> list[str]:
        """The same as `enqueue_many`, for handlers in threads."""
        return trio.from_thread.run(functools.partial(self.enqueue_many, kind, payloads, ids=ids, **options))

    def _asked(self, kind: str, ids: list[str] | None, options: JobOptions) -> Asked:
        if not trio.lowlevel.in_trio_task():  # else a thread would never know that it has to await this
            raise EnqueueError("a handler in a thread calls job.enqueue_from_thread(...)")
        return checked(kind, ids, options)

    async def _one(self, asked: Asked, payload: Any) -> str:  # noqa: ANN401 - any JSON
        (job_id,) = await self._many(asked, [payload])
        return job_id

    async def _many(self, asked: Asked, payloads: Sequence[Any]) -> list[str]:
        if asked.ids is not None and len(asked.ids) != len(payloads):
            raise EnqueueError(f"there are {len(asked.ids)} ids for {len(payloads)} payloads")
        if self._enqueues is not None:
            return list(await self._enqueues.enqueue(self._run, asked, payloads))
        for payload in payloads:
            encoded(payload)
        return asked.ids or [str(uuid.uuid4()) for _ in payloads]

    def check_cancelled(self) -> None:
        """For handlers in threads: raise `trio.Cancelled` when the attempt was cancelled or has timed out."""
        trio.from_thread.check_cancelled()


def _share(fraction: float) -> float:
    """A fraction from 0 to 1. Raises `TypeError`, `ValueError`."""
    if isinstance(fraction, bool) or not isinstance(fraction, int | float):
        raise TypeError(
            f"progress takes a number from 0 to 1, got {type(fraction).__name__}: pass done / total"
        )
    if not -ROUNDING <= fraction <= 1 + ROUNDING or not math.isfinite(fraction):
        raise ValueError(f"progress takes a number from 0 to 1, got {fraction!r}: pass done / total")
    return min(max(float(fraction), 0.0), 1.0)
