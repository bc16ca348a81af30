"""The account of this node's stop: what becomes of the attempts that run when it begins."""

import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FrameType

import structlog
import trio

from jobpipe.clock import Clock
from jobpipe.engine.attempt import Attempt
from jobpipe.engine.executor import Executor
from jobpipe.engine.held import Held
from jobpipe.engine.unforeseen import Unforeseen
from jobpipe.errors import StoreError
from jobpipe.handlers.registry import Registry
from jobpipe.job import Outcome
from jobpipe.store.base import ACCOUNTED, Account, EngineStore, How, Settlement, Unfinished

LIBRARIES = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {str(Path(__file__).parent.parent)}
)
"""Where code lies that is not the user's own."""

log = structlog.get_logger("jobpipe")


class Stops:
    """Looks at the attempts when the stop begins, and once more when all is settled: between, it costs nothing."""

    def __init__(self, store: EngineStore, held: Held, registry: Registry, clock: Clock, node: str) -> None:
        self._store, self._held, self._registry, self._clock = store, held, registry, clock
        self._node = node
        self._begun = trio.Event()
        self._began, self._signal = 0.0, ""
        self._active: Sequence[Attempt] = ()
        self._unbegun = 0
        self._abandoned: Mapping[Attempt, str | None] = {}
        self._unforeseen = Unforeseen()

    async def run(self) -> None:
        """Note in the store that the node drains, once it does; then sleep."""
        await self._begun.wait()
        try:
            await self._store.note_draining(self._node)
        except StoreError as error:
            log.debug("could not note that this node drains", error=str(error))
        await trio.sleep_forever()

    def begin(self, signal: str | None) -> None:
        """The node begins to stop. Only the first time counts."""
        if self._begun.is_set():
            return
        self._began, self._signal = self._clock.now(), signal or ""
        self._active = self._held.running
        self._unbegun = sum(1 for _ in self._held) - len(self._active)
        self._begun.set()

    def abandon(self, attempts: Sequence[Attempt]) -> None:
        """These attempts are to be abandoned: see where their handlers stand, as far as that can be seen."""
        lines = dict.fromkeys(attempts[:ACCOUNTED])
        with self._unforeseen.costs("nobody knows where the abandoned handlers stood"):
            lines |= {attempt: self._line(attempt) for attempt in attempts[:ACCOUNTED]}
        self._abandoned = dict.fromkeys(attempts) | lines

    def line(self, attempt: Attempt) -> str | None:
        """Where the handler of an abandoned attempt stood; None: that could not be seen."""
        return self._abandoned.get(attempt)

    def account(self) -> Account | None:
        """What became of the attempts; None: the node did not begin to stop."""
        if not self._begun.is_set():
            return None
        left = [one for one in self._active if _was_stopped(one)]
        abandoned = sum(one in self._abandoned for one in left)
        return Account(
            node=self._node,
            how=_how(len(left), abandoned),
            signal=self._signal or None,
            began=self._began,
            ended_at=max(self._clock.now(), self._began),
            active=len(self._active),
            finished=len(self._active) - len(left),
            handed_back=len(left) - abandoned,
            abandoned=abandoned,
            unbegun=self._unbegun,
            attempts=[self._unfinished(one) for one in left[:ACCOUNTED]],
        )

    async def write(self) -> None:
        """Keep the account in the store; where that cannot be, it is lost."""
        account = self.account()
        if account is None:
            return
        with self._unforeseen.costs("the account of this stop is lost"):
            try:
                await self._store.note_account(account)
            except StoreError as error:
                log.warning("the account of this stop could not be written", error=str(error))

    def _unfinished(self, attempt: Attempt) -> Unfinished:
        settled = attempt.over
        status = settled.status.value if isinstance(settled, Settlement) else None
        return Unfinished(
            job=attempt.job.id,
            kind=attempt.job.kind,
            attempt=attempt.number,
            end="abandoned" if attempt in self._abandoned else "handed_back",
            status="cancelled" if attempt.reason == "cancel" else status,
            line=self.line(attempt),
        )

    def _line(self, attempt: Attempt) -> str | None:
        """Where a handler stands: the innermost line that is the user's own."""
        handler = self._registry.find(attempt.job.kind)
        if handler is None:
            return None
        code = getattr(handler.function, "__code__", None)
        if handler.is_async:
            return next((_own_line(frames, code) for frames in _tasks() if _runs(frames, attempt)), None)
        return _line_in_threads(code)


def _was_stopped(attempt: Attempt) -> bool:
    """Whether an attempt did not end by itself."""
    settled = attempt.over
    return not isinstance(settled, Settlement) or settled.outcome in (None, Outcome.INTERRUPTED)


def _how(left: int, abandoned: int) -> How:
    if abandoned:
        return "abandoned"
    return "stopped" if left else "drained"


Frames = Sequence[tuple[FrameType, int]]
"""Frames with their lines, the outermost first."""


def _tasks() -> Iterator[Frames]:
    """Where each task of this run of Trio stands."""
    root = trio.lowlevel.current_root_task()
    left = [] if root is None else [root]
    while left:
        task = left.pop()
        left += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        yield list(task.iter_await_frames())


def _runs(frames: Frames, attempt: Attempt) -> bool:
    """Whether a task is that which runs an attempt."""
    return any(
        frame.f_code is Executor.call.__code__ and frame.f_locals.get("attempt") is attempt
        for frame, _ in frames
    )


def _line_in_threads(function: CodeType | None) -> str | None:
    """Where a function stands in a thread, if it runs in one thread alone, or at one line in all."""
    lines = set[str | None]()
    for innermost in sys._current_frames().values():  # noqa: SLF001 - the documented way to another thread's stack
        frames = list[tuple[FrameType, int]]()
        frame: FrameType | None = innermost
        while frame is not None:
            frames.append((frame, frame.f_lineno))
            frame = frame.f_back
        if any(one.f_code is function for one, _ in frames):
            lines.add(_own_line(frames[::-1], function))
    return lines.pop() if len(lines) == 1 else None


def _own_line(frames: Frames, handler: CodeType | None) -> str | None:
    """The innermost line of the user's own code, in words: file, line and function.

    Where all code lies among libraries, that of the handler itself.
    """
    inner = list(reversed(frames))
    own = [one for one in inner if not one[0].f_code.co_filename.startswith((*LIBRARIES, "<"))]
    for frame, line in own or [one for one in inner if one[0].f_code is handler]:
        return f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_qualname}"
    return None
