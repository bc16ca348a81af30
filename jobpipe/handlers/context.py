"""What a handler may know of the job that it performs, and what it can say of it."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
import trio

from jobpipe.handlers.joblog import JobLog, clean, composed, tell_service, tells_service
from jobpipe.job import PROGRESS_MESSAGE, Level, Scheduled

ROUNDING = 1e-9
"""By how much a fraction may be out of its bounds: what comes of adding up others."""


class Notes(Protocol):
    """Takes what a handler writes of its attempt, at once and without fail."""

    def progress(self, run: Any, fraction: float, message: str) -> None:  # noqa: ANN401 - whatever tells it the attempt
        """Take how far the attempt is."""

    def line(self, run: Any, level: Level, text: str, fields: bytes | None) -> None:  # noqa: ANN401 - as above
        """Take a line of the job's log."""


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
    _notes: Notes | None = None
    """where progress and log lines go; None: nowhere, as in a test of a handler"""
    _run: object = None
    """the attempt, for `_notes`"""

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
