"""The jobs that one attempt has enqueued, and that are stored if it ends well. Pure: no clock, no store, no task."""

from collections.abc import Sequence

from jobpipe.errors import EnqueueError
from jobpipe.job import NewJob, same_content

JOBS, BYTES = 10_000, 16 << 20
"""The most jobs that one attempt may enqueue, or one call that stores them at once; and the most bytes of payloads."""


class Outbox:
    """Keeps new jobs in the order in which they came, each id once."""

    __slots__ = ("_jobs", "_size")

    def __init__(self) -> None:
        self._jobs: dict[str, NewJob] = {}
        self._size = 0

    @property
    def jobs(self) -> Sequence[NewJob]:
        """What is in it."""
        return list(self._jobs.values())

    def put(self, jobs: Sequence[NewJob]) -> None:
        """Take in jobs, all or none; one that is here already is kept once. Raises `EnqueueError`."""
        new: dict[str, NewJob] = {}
        for job in jobs:
            other = self._jobs.get(job.id) or new.get(job.id)
            if other is None:
                new[job.id] = job
            elif not same_content(job, other):
                raise EnqueueError(f"the attempt has enqueued another job with the id {job.id!r}")
        size = self._size + sum(len(job.payload) for job in new.values())
        check(len(self._jobs) + len(new), size, "one attempt")
        self._jobs |= new
        self._size = size


def check(jobs: int, size: int, whose: str) -> None:
    """Raise `EnqueueError` where these are too many jobs, or too many bytes of payloads."""
    if jobs > JOBS:
        raise EnqueueError(f"{whose} can enqueue {JOBS} jobs, and these would be {jobs}")
    if size > BYTES:
        raise EnqueueError(
            f"{whose} can enqueue {BYTES} bytes of payloads, and these would be {size}: store large ones elsewhere"
        )
