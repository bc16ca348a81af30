"""Looks at the tasks of running jobs, here and, over a store that nodes share, on other nodes."""

import math
from typing import Literal

import msgspec
import structlog
import trio

from jobpipe.clock import Clock
from jobpipe.engine.attempt import Attempt, Reason
from jobpipe.engine.executor import Executor
from jobpipe.engine.held import Held
from jobpipe.engine.scope import ReusableScope
from jobpipe.engine.stacks import Root, Stacks
from jobpipe.engine.tasktree import TaskTree, tree
from jobpipe.engine.unforeseen import Unforeseen
from jobpipe.errors import StoreError
from jobpipe.store.base import Notification, SharedStore, Store

APART = 1.0
"""Seconds between two looks at one job, however many callers ask: they are given the same."""

KEPT, MOST_KEPT = 60.0, 100
"""Seconds for which is known where tasks stood, once nobody looks any more; and the most jobs of which it is."""

PATIENCE = 6.0
"""Seconds that another node has for its answer: without notifications it looks for questions every 5."""

READ_AGAIN = 0.5
"""Seconds after which the answer is looked for anyway."""

log = structlog.get_logger("jobpipe")


class Stopping(msgspec.Struct, frozen=True):
    """Since when an attempt should have ended, and why."""

    reason: Reason | Literal["timeout"]
    since: float


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """The tasks of a job at one time."""

    job: str
    kind: str
    attempt: int
    claim: int
    node: str
    looked_at: float
    stopping: Stopping | None
    tree: TaskTree


Missing = Literal["gone", "dead", "silent"]
"""Why there is no look: that attempt has ended; its node has no lease any more; it has one, and does not answer."""

_encode = msgspec.json.Encoder().encode
_answer = msgspec.json.Decoder(Look | None).decode


class _Watched:
    """A job that somebody looks at."""

    def __init__(self, root: Root) -> None:
        self.stacks = Stacks(root)
        self.asked_at = trio.current_time()
        self.looking = trio.Lock()
        self.looked_at = -math.inf
        self.look: Look | None = None


class Looks:
    """Runs as one task, which answers other nodes and forgets what nobody looks at."""

    def __init__(self, store: Store, held: Held, clock: Clock, node: str) -> None:
        self._store = store if isinstance(store, SharedStore) else None
        self._held, self._clock, self._node = held, clock, node
        self._watched: dict[tuple[str, int], _Watched] = {}
        self._woken, self._told = trio.Event(), trio.Event()
        self._unforeseen = Unforeseen()

    async def here(self, job_id: str) -> Look | None:
        """Look at a job that runs on this node; None: it does not. Shared by whoever asks within `APART` seconds."""
        for attempt in self._held.of_jobs([job_id]):
            if attempt.scope is None:
                continue
            watched = self._watch(attempt, attempt.scope)
            async with watched.looking:
                if not attempt.over and trio.current_time() >= watched.looked_at + APART:
                    watched.looked_at = trio.current_time()
                    watched.look = await self._look(attempt, watched.stacks)
                return watched.look
        return None

    async def elsewhere(self, job_id: str, claim: int, node: str) -> Look | Missing:
        """Have another node look at a job that it runs, and wait for its answer. Raises `StoreError`."""
        if self._store is None:
            return "dead"
        asked = await self._store.ask_look(job_id, claim, node, self._clock.now())
        with trio.move_on_after(PATIENCE):
            while True:
                told = self._told
                if (answer := await self._store.look(job_id, claim)) is not None:
                    return self._read(answer)
                if not asked:
                    return "dead"
                with trio.move_on_after(READ_AGAIN):
                    await told.wait()
        return "silent"

    def heard(self, news: Notification) -> None:
        """Look for what this node may have been asked, or for what may have been answered."""
        if news.what == "answered":
            self._tell()
        elif news.id == self._node:
            self._woken.set()

    def missed(self) -> None:
        """Look for both."""
        self._woken.set()
        self._tell()

    def _tell(self) -> None:
        told, self._told = self._told, trio.Event()
        told.set()

    async def run(self) -> None:
        """Answer other nodes, and forget what nobody looks at, for ever."""
        while True:
            self._woken = trio.Event()
            try:
                await self._answer_all()
            except StoreError as error:
                log.debug("could not tell other nodes of tasks", error=str(error))
            with trio.move_on_after(KEPT if self._watched else math.inf):
                await self._woken.wait()
            self._forget()

    def _watch(self, attempt: Attempt, scope: ReusableScope) -> _Watched:
        key = attempt.job.id, attempt.job.claim
        watched = self._watched.pop(key, None)
        if watched is None:
            root = Root(scope.task, attempt.job.kind, Executor.call.__code__, scope.encloses)
            watched = _Watched(root)
            self._woken.set()  # to know when it is to be forgotten
        watched.asked_at = trio.current_time()
        self._watched[key] = watched  # the latest last
        while len(self._watched) > MOST_KEPT:
            del self._watched[next(iter(self._watched))]
        return watched

    def _forget(self) -> None:
        before = trio.current_time() - KEPT
        self._watched = {key: one for key, one in self._watched.items() if one.asked_at > before}

    async def _look(self, attempt: Attempt, stacks: Stacks) -> Look:
        """See all tasks in one go; what is made of it afterwards takes no part in that."""
        jobs = {one.scope.task: one.job.id for one in self._held.running if one.scope is not None}
        sight, now = stacks.look(jobs), self._clock.now()
        ahead, stopping = now - trio.current_time(), self._stopping(attempt)
        await trio.lowlevel.checkpoint()
        return Look(
            job=attempt.job.id,
            kind=attempt.job.kind,
            attempt=attempt.number,
            claim=attempt.job.claim,
            node=self._node,
            looked_at=now,
            stopping=stopping,
            tree=tree(sight, ahead),
        )

    def _stopping(self, attempt: Attempt) -> Stopping | None:
        since = min(attempt.stopped_at, attempt.deadline)
        if (seconds := trio.current_time() - since) < 0:
            return None
        reason = attempt.reason if attempt.stopped_at <= attempt.deadline else None
        return Stopping(reason or "timeout", self._clock.now() - seconds)

    async def _answer_all(self) -> None:
        """Answer what this node was asked; what it runs no more is answered too."""
        if self._store is None:
            return
        for job_id, claim in await self._store.asked_looks(self._node):
            with self._unforeseen.costs("another node has no answer", job=job_id):
                look = await self.here(job_id)
                await self._store.answer_look(job_id, claim, self._node, _encode(look))

    def _read(self, answer: bytes) -> Look | Missing:
        try:
            return _answer(answer) or "gone"
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("the answer of another node cannot be read", error=str(error)[:200])
            return "silent"
