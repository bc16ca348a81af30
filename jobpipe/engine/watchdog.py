"""Notices when a handler blocks the event loop: names it, has the lease kept, and ends the process if it lasts."""

import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType

import msgspec
import structlog
import trio

from jobpipe.engine.attempt import Attempt
from jobpipe.engine.executor import Executor
from jobpipe.engine.heartbeat import Heartbeat
from jobpipe.engine.tallies import NOBODY, Tallies

BEAT = 0.25
"""Seconds between two signs of life of the event loop, and between two looks; fewer where the lease is short."""

LOOKS = 6
"""Looks, at the least, within the silence after which the lease is renewed from a thread."""

PATIENCE = 1.0
"""Seconds without a sign of life after which the loop counts as blocked."""

REMEMBERED = 600.0
"""Seconds for which `/health` tells of the last block."""

FRAMES = 8
"""How many of the innermost frames are told."""

LAST_FRAMES = 40
"""How many of them when the process ends."""

BLOCKED = 75
"""Exit code when a handler has blocked the event loop for too long (EX_TEMPFAIL of sysexits.h)."""

LAST_WORDS = 5.0
"""Seconds that the last line of the log may take."""

log = structlog.get_logger("jobpipe")


class Block(msgspec.Struct, frozen=True):
    """The event loop stood still; `job` is the id of the one whose handler did it, where that could be seen."""

    job: str | None
    kind: str | None
    since: float
    """`time.monotonic()` of the loop's last sign of life"""


class Watchdog:
    """A thread that watches the loop's thread. Needs the real clock: under a virtual one it would see nothing.

    After `max_blocked` seconds it ends the process with the exit code `BLOCKED`: nothing else ends a block, and jobs of
    a process that has ended are rescued. Time in which the whole process stood still does not count.
    """

    def __init__(
        self,
        heartbeat: Heartbeat | None = None,
        *,
        max_blocked: float = math.inf,
        tallies: Tallies | None = None,
    ) -> None:
        self._heartbeat, self._max_blocked = heartbeat, max_blocked
        self._tallies = tallies or Tallies()
        self._beat = time.monotonic()
        self._loop_thread = 0
        self._over = threading.Event()
        self._block: Block | None = None
        self._seconds = 0.0

    async def run(self) -> None:
        """Give signs of life until cancelled, watched by a thread that ends with this."""
        self._loop_thread, self._beat = threading.get_ident(), time.monotonic()
        thread = threading.Thread(target=self._watch, name="jobpipe-watchdog", daemon=True)
        thread.start()
        try:
            while True:
                due = trio.current_time() + self._pause
                await trio.sleep_until(due)
                self._tallies.lags.add([trio.current_time() - due])
                self._alive()
        finally:
            self._over.set()

    def trouble(self) -> str | None:
        """The last block in words, while it is remembered; None: there was none of late."""
        block = self._block
        if block is None or time.monotonic() - block.since > REMEMBERED:
            return None
        who = f"job {block.job} ({block.kind})" if block.job else "something"
        ago = time.monotonic() - block.since
        advice = "async handlers must not block: use await"
        return f"{who} blocked the event loop for {self._seconds:.1f} s, {ago:.0f} s ago: {advice}"

    def _alive(self) -> None:
        now = time.monotonic()
        if self._block is not None and self._block.since == self._beat:
            self._seconds = now - self._beat
            self._tallies.blocked[self._block.kind or NOBODY].value += self._seconds
            log.warning(
                "the event loop is running again", job=self._block.job, seconds=round(self._seconds, 1)
            )
        self._beat = now

    @property
    def _pause(self) -> float:
        return BEAT if self._heartbeat is None else min(BEAT, self._heartbeat.after / LOOKS)

    def _watch(self) -> None:
        silent, last = 0.0, self._beat
        looked = time.monotonic(), time.process_time()
        while not self._over.wait(self._pause):
            (before, worked), looked = looked, (time.monotonic(), time.process_time())
            gap = looked[0] - before
            if gap > PATIENCE and looked[1] - worked < gap / 2:
                # SIGSTOP, a frozen container, a suspended machine: this thread was not let run either.
                _say(log.warning, "this process was suspended", seconds=round(gap, 1))
                continue
            beat = self._beat
            silent, last = (silent + gap if beat == last else 0.0), beat
            try:
                self._look(silent, last)
            except Exception:  # noqa: BLE001 - logged with its traceback; the watchdog is what keeps the lease
                _say(log.error, "the watchdog failed, and continues", exc_info=sys.exc_info())

    def _look(self, silent: float, last: float) -> None:
        """Do what is due after so many seconds without a sign of life since `last`."""
        told = self._block is not None and self._block.since == last
        if silent > PATIENCE and not told:
            self._tell(last)
        if self._heartbeat is not None:
            self._heartbeat.look(silent)
        if silent >= self._max_blocked:
            self._end(silent)

    def _tell(self, since: float) -> None:
        attempt, stack = self._seen(FRAMES)
        self._block = Block(attempt.job.id, attempt.job.kind, since) if attempt else Block(None, None, since)
        self._seconds = time.monotonic() - since
        _say(
            log.error,
            "the event loop is blocked: no job starts, and no signal is handled",
            job=self._block.job,
            kind=self._block.kind,
            stack=stack,
        )

    def _end(self, silent: float) -> None:
        attempt, stack = self._seen(LAST_FRAMES)
        said = _say(
            log.critical,
            "the event loop was blocked for MAX_BLOCKED: this process ends, and its jobs will be recovered",
            job=attempt.job.id if attempt else None,
            kind=attempt.job.kind if attempt else None,
            seconds=round(silent, 1),
            stack=stack,
        )
        said.join(LAST_WORDS)
        os._exit(BLOCKED)

    def _seen(self, frames: int) -> tuple[Attempt | None, str]:
        """The attempt whose handler the loop's thread runs just now, and the innermost frames of that thread."""
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - the documented way to another thread's stack
        stack = "".join(traceback.format_stack(frame)[-frames:]) if frame else ""
        return _attempt_in(frame), stack


def _say(tell: Callable[..., object], event: str, **more: object) -> threading.Thread:
    """Log from a thread: where nobody reads stderr, that line may be what blocks the loop, and must not block this."""
    thread = threading.Thread(
        target=tell, args=[event], kwargs=more, name="jobpipe-watchdog-log", daemon=True
    )
    thread.start()
    return thread


def _attempt_in(frame: FrameType | None) -> Attempt | None:
    """The attempt whose handler runs on a stack, innermost frame first."""
    while frame is not None:
        if frame.f_code is Executor.call.__code__:
            attempt = frame.f_locals["attempt"]
            return attempt if isinstance(attempt, Attempt) else None
        frame = frame.f_back
    return None
