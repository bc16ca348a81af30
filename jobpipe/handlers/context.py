"""What a handler may know of the job that it performs."""

from typing import Any

import msgspec
import structlog
import trio

from jobpipe.job import Scheduled


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

    @property
    def log(self) -> Any:  # noqa: ANN401 - structlog's loggers have no common type
        """A structlog logger that carries the job's id, kind and attempt."""
        return structlog.get_logger("jobpipe.job").bind(job=self.id, kind=self.kind, attempt=self.attempt)

    def check_cancelled(self) -> None:
        """For handlers in threads: raise `trio.Cancelled` when the attempt was cancelled or has timed out."""
        trio.from_thread.check_cancelled()
