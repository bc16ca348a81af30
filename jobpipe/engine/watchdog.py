"""Notices when a handler blocks the event loop, and names it: nothing else can be done while that lasts."""

import sys
import threading
import time
import traceback
from types import FrameType

import msgspec
import structlog
import trio

from jobpipe.engine.attempt import Attempt
from jobpipe.engine.attempts import Attempts

BEAT = 0.25
"""Seconds between two signs of life of the event loop."""

PATIENCE = 1.0
"""Seconds without a sign of life after which the loop counts as blocked."""

REMEMBERED = 600.0
"""Seconds for which `/health` tells of the last block."""

FRAMES = 8
"""How many of the innermost frames are told."""

log = structlog.get_logger("jobpipe")


class Block(msgspec.Struct, frozen=True):
    """The event loop stood still; `job` is the id of the one whose handler did it, where that could be seen."""

    job: str | None
    kind: str | None
    since: float
    """`time.monotonic()` of the loop's last sign of life"""


class Watchdog:
    """A thread that watches the loop's thread. Needs the real clock: under a virtual one it would see nothing."""

    def __init__(self) -> None:
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
                await trio.sleep(BEAT)
                self._alive()
        finally:
            self._over.set()

    def told(self) -> str | None:
        """The last block in words, while it is remembered; None: there was none of late."""
        block = self._block
        if block is None or time.monotonic() - block.since > REMEMBERED:
            return None
        who = f"job {block.job} ({block.kind})" if block.job else "something"
        ago = time.monotonic() - block.since
        advice = "nothing in an async handler may wait without await"
        return f"{who} blocked the event loop for {self._seconds:.1f} s, {ago:.0f} s ago: {advice}"

    def _alive(self) -> None:
        now = time.monotonic()
        if self._block is not None and self._block.since == self._beat:
            self._seconds = now - self._beat
            log.warning("the event loop goes on", job=self._block.job, seconds=round(self._seconds, 1))
        self._beat = now

    def _watch(self) -> None:
        looked = time.monotonic(), time.process_time()
        while not self._over.wait(BEAT):
            (before, worked), looked = looked, (time.monotonic(), time.process_time())
            gap = looked[0] - before
            if gap > PATIENCE and looked[1] - worked < gap / 2:
                # SIGSTOP, a frozen container, a suspended machine: this thread was not let run either.
                log.warning("this process stood still", seconds=round(gap, 1))
                continue
            last = self._beat
            told = self._block is not None and self._block.since == last
            if time.monotonic() - last > PATIENCE and not told:
                try:
                    self._tell(last)
                except Exception:  # the frames of a running thread may be in any state
                    log.exception("the event loop is blocked, and it cannot be seen by what")

    def _tell(self, since: float) -> None:
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - the documented way to another thread's stack
        attempt = _attempt_in(frame)
        self._block = Block(attempt.job.id, attempt.job.kind, since) if attempt else Block(None, None, since)
        self._seconds = time.monotonic() - since
        stack = "".join(traceback.format_stack(frame)[-FRAMES:]) if frame else ""
        log.error(
            "the event loop is blocked: no job starts, no signal is heard",
            job=self._block.job,
            kind=self._block.kind,
            stack=stack,
        )


def _attempt_in(frame: FrameType | None) -> Attempt | None:
    """The attempt whose handler runs on a stack, innermost frame first."""
    while frame is not None:
        if frame.f_code is Attempts.call.__code__:
            attempt = frame.f_locals["attempt"]
            return attempt if isinstance(attempt, Attempt) else None
        frame = frame.f_back
    return None
