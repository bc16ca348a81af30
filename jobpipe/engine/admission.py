"""Where new jobs come from: made with their defaults, and stored unless they come too late to run."""

from collections.abc import Callable, Sequence
from typing import Literal

from jobpipe.clock import Clock
from jobpipe.engine.backlog import Backlog
from jobpipe.job import (
    DEFAULT_KIND,
    DEFAULT_QUEUE,
    NO_OPTIONS,
    Backoff,
    NewJob,
    Options,
    new_job_id,
)
from jobpipe.store.base import ReadStore, Receipt
from jobpipe.store.rows import compared

LATE, REFUSED = Receipt("late"), Receipt("refused")


class Admission:
    """Makes jobs and stores them, for every part of the program that has jobs to run."""

    def __init__(
        self, backlog: Backlog, store: ReadStore, clock: Clock, random_bits: Callable[[int], int]
    ) -> None:
        self._backlog, self._store, self._clock, self._random_bits = backlog, store, clock, random_bits

    def new_job(  # noqa: PLR0913 - what can be asked of a job; each caller names what it asks
        self,
        payload: bytes,
        *,
        job_id: str | None = None,
        kind: str = DEFAULT_KIND,
        queue: str = DEFAULT_QUEUE,
        priority: int = 0,
        max_retries: int | None = None,
        delay: float | None = None,
        run_at: float | None = None,
        expires_at: float | None = None,
        timeout: float | None = None,
        backoff: Backoff | None = None,
        on_crash: Literal["retry", "fail"] = "retry",
        tags: Sequence[str] = (),
    ) -> NewJob:
        """Make a job, even one that expires before it could start. Does not check the values.

        Takes what `EnqueueRequest` takes, with `payload` as JSON, times in seconds since the epoch, durations in
        seconds. Without an id the job gets a new one; without `delay` and `run_at` it is to run now, as with a
        `run_at` in the past. Tags given twice are kept once.
        """
        now = start = self._clock.now()
        options = NO_OPTIONS
        if delay is not None:
            start = round(now + delay, 3)
        elif run_at is not None:
            start = max(now, run_at)
        if tags or on_crash != "retry" or (timeout, backoff, delay, run_at) != (None, None, None, None):
            options = Options(
                timeout=timeout,
                backoff=backoff,
                on_crash=on_crash,
                tags=tuple(dict.fromkeys(tags)),
                delay=delay,
                run_at=run_at,
            )
        return NewJob(
            id=job_id or new_job_id(now, self._random_bits),
            kind=kind,
            queue=queue,
            payload=payload,
            priority=priority,
            max_retries=max_retries,
            created_at=now,
            run_at=start,
            expires_at=expires_at,
            options=options,
        )

    async def enqueue(self, jobs: Sequence[NewJob], *, atomic: bool = False) -> Sequence[Receipt]:
        """Store jobs, and return a receipt for each once they survive a crash.

        A job that expires before it could start is not stored. Its receipt is `late`; or, where an earlier request
        stored a job with its id, `existing` or `conflict`: that request was in time, and may be repeated. With
        `atomic`, all other jobs are `refused` when the receipt of such a job is `late` or `conflict`.

        Raises `Draining`, `QueueFull` or `StoreUnavailable`; then nothing was stored. A cancel leaves either all of
        them stored or none.
        """
        if not any(map(is_late, jobs)):
            return await self._backlog.enqueue(jobs, atomic=atomic) if jobs else ()
        late = {place: await self._late(new) for place, new in enumerate(jobs) if is_late(new)}
        timely = [new for new in jobs if not is_late(new)]
        if atomic and any(receipt.verdict != "existing" for receipt in late.values()):
            stored: Sequence[Receipt] = [REFUSED] * len(timely)
        else:
            stored = await self._backlog.enqueue(timely, atomic=atomic) if timely else ()
        others = iter(stored)
        return [late[place] if place in late else next(others) for place in range(len(jobs))]

    async def _late(self, new: NewJob) -> Receipt:
        job = await self._store.get(new.id)
        return LATE if job is None else compared(new, job)


def is_late(new: NewJob) -> bool:
    """Whether a job expires before it could start."""
    return new.expires_at is not None and new.expires_at <= new.run_at
