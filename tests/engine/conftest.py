"""A node that runs for the length of a test, and the one handler whose jobs do as their payload says."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, assert_never

import msgspec
import trio
from structlog.testing import capture_logs
from structlog.typing import EventDict
from trio.lowlevel import checkpoint

from jobpipe.acts import By
from jobpipe.clock import VirtualClock
from jobpipe.engine.node import Node
from jobpipe.errors import StoreUnavailable
from jobpipe.handlers.context import Context
from jobpipe.handlers.exceptions import Fail, Retry, Snooze
from jobpipe.handlers.registry import Handler, Registry
from jobpipe.job import ENDED, Backoff, Job, NewJob, Options, Status
from jobpipe.settings import Settings
from jobpipe.store.base import (
    NO_FACTS,
    Account,
    Batch,
    Change,
    Claimed,
    NodeFacts,
    Receipt,
    Receipts,
    Rescued,
    Store,
)
from jobpipe.store.memory import MemoryStore

NOW = 1_700_000_000.0
HOUR, DAY = 3600.0, 86_400.0

Do = Literal[
    "done",
    "error",
    "retry",
    "snooze",
    "fail",
    "sleep",
    "wait",
    "hang",
    "stubborn",
    "spoil",
    "block",
    "say",
    "enqueue",
    "bear",
]
Step = Do | tuple[Do, float]
"""What one run does, and the seconds that belong to it."""


class Run(msgspec.Struct):
    """One run of the handler, as it happened. Times are Trio's."""

    id: str
    attempt: int
    claim: int
    began: float
    deadline: float
    ended: float | None = None


class Actor:
    """The handler of the kind `act`, for as many nodes as wish.

    Its payload has a step for each run; the last one stays.
    """

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.overlaps: list[str] = []
        """the jobs that ran twice at once"""
        self.gate = trio.Event()
        """opens for the runs that `wait`"""
        self._begun = trio.Event()

    @property
    def handler(self) -> Handler:
        return Handler(
            kind="act", function=self._act, is_async=True, takes_context=True, payload_type=list[Step]
        )

    def running(self, job_id: str) -> bool:
        return any(run.id == job_id and run.ended is None for run in self.runs)

    def order(self) -> list[str]:
        """The ids in the order in which their runs began."""
        return [run.id for run in self.runs]

    def began(self) -> list[float]:
        """When each run began, from the first one on."""
        return [round(run.began - self.runs[0].began, 3) for run in self.runs]

    async def begun(self, runs: int = 1) -> None:
        """Return when so many runs have begun."""
        with trio.fail_after(DAY):
            while len(self.runs) < runs:
                self._begun = trio.Event()
                await self._begun.wait()

    async def _act(self, payload: list[Step], context: Context) -> Any:
        if self.running(context.id):
            self.overlaps.append(context.id)
        number = self.order().count(context.id)
        step = payload[min(number, len(payload) - 1)]
        run = Run(context.id, context.attempt, context.claim, trio.current_time(), context.deadline)
        self.runs.append(run)
        self._begun.set()
        try:
            return await self._do(context, *((step, 0.0) if isinstance(step, str) else step))
        finally:
            run.ended = trio.current_time()

    async def _do(self, context: Context, what: Do, seconds: float) -> Any:  # noqa: C901, PLR0911, PLR0912 - one case for each word
        match what:
            case "done":
                return "ok"
            case "error":
                raise ValueError("no luck")
            case "retry":
                raise Retry("once more", after=seconds or None)
            case "snooze":
                raise Snooze(seconds)
            case "fail":
                raise Fail("hopeless")
            case "sleep" | "say":
                if what == "say":
                    context.progress(0.5, "half")
                    context.log.info("hello", n=1)
                await trio.sleep(seconds)
                return "ok"
            case "enqueue":
                return await context.enqueue("act", ["done"], id=f"{context.id}-enqueued")
            case "bear":
                await context.enqueue("act", ["done"], id=f"{context.id}-born", delay=3600, now=True)
                await self.gate.wait()
                return "ok"
            case "wait":
                await self.gate.wait()
                return "ok"
            case "hang":
                return await _hang(seconds)
            case "stubborn":
                with trio.CancelScope(shield=True):
                    await trio.sleep(seconds)
                return "ok"
            case "block":
                time.sleep(seconds)  # noqa: ASYNC251 - a bad handler blocks the event loop
                return "ok"
            case "spoil":
                try:
                    await trio.sleep_forever()
                finally:
                    raise OSError("the cleanup failed")
            case _:
                assert_never(what)


async def _hang(seconds: float) -> None:
    """Never end, and when cancelled, let a child task clean up for so many seconds."""

    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(seconds)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)


class FaultyStore(MemoryStore):
    """A store whose disk fails on demand, and whose commits can be held up before and after they take effect.

    With `beside`, one node's own way to a store that others use too.
    """

    def __init__(self, beside: MemoryStore | None = None) -> None:
        super().__init__()
        if beside is not None:
            self.__dict__.update(beside.__dict__)
        self.broken = False
        self.before = self.after = trio.Event()
        self.before.set()
        self.batches: list[Batch] = []
        self.refused = 0

    async def exchange(self, batch: Batch) -> Receipts:
        await self.before.wait()
        self._fail()
        self.batches.append(batch)
        receipts = await super().exchange(batch)
        await self.after.wait()
        return receipts

    async def join(
        self,
        node: str,
        now: float,
        lease_until: float,
        kinds: frozenset[str] = frozenset(),
        queues: frozenset[str] | None = None,
        facts: NodeFacts = NO_FACTS,
    ) -> None:
        self._fail()
        await super().join(node, now, lease_until, kinds, queues, facts)

    async def note_account(self, account: Account) -> None:
        self._fail()
        await super().note_account(account)

    async def leave(self, node: str) -> None:
        self._fail()
        await super().leave(node)

    async def rescue(self, node: str, now: float) -> Sequence[Rescued]:
        self._fail()
        return await super().rescue(node, now)

    async def cancel(self, ids: Sequence[str], now: float, *, by: By | None = None) -> Sequence[Change]:
        self._fail()
        return await super().cancel(ids, now, by=by)

    async def prune(self, now: float, retention: Any) -> int:
        self._fail()
        return await super().prune(now, retention)

    def _fail(self) -> None:
        if self.broken:
            self.refused += 1
            raise StoreUnavailable("disk full")


def new_job(job_id: str = "a", *steps: Step, **changes: Any) -> NewJob:
    """A job for the actor, that is done at once unless steps are named."""
    usual = NewJob(
        id=job_id,
        kind="act",
        queue="default",
        payload=msgspec.json.encode(steps or ("done",)),
        priority=0,
        max_retries=3,
        created_at=NOW,
        run_at=NOW,
    )
    return msgspec.structs.replace(usual, **changes)


def claimed(job_id: str = "a", **changes: Any) -> Claimed:
    """A job as a claim hands it over."""
    usual = Claimed(1, job_id, "act", "default", b"null", 0, NOW, 0, 3, 1, 0)
    return msgspec.structs.replace(usual, **changes)


PLAIN = Options(backoff=Backoff(jitter="none"))
"""Waits of 1, 2, 4, 8... seconds between the attempts, exactly."""


class Rig:
    """A running node with what a test asks of it."""

    def __init__(self, node: Node, actor: Actor, patience: float) -> None:
        self.node, self.actor, self._patience = node, actor, patience
        self.store, self.life, self.over = node.store, trio.CancelScope(), trio.Event()
        self.log: list[EventDict] = []

    async def run(self, *, task_status: trio.TaskStatus[Sequence[Rescued]]) -> None:
        try:
            with self.life:
                await self.node.run(task_status=task_status)
        finally:
            self.over.set()

    async def add(self, *jobs: NewJob) -> Sequence[Receipt]:
        return await self.node.backlog.enqueue(jobs)

    async def enqueue(self, job_id: str = "a", *steps: Step, **changes: Any) -> None:
        """Store one job that is ready now."""
        now = self.node.clock.now()
        (receipt,) = await self.add(new_job(job_id, *steps, **({"created_at": now, "run_at": now} | changes)))
        assert receipt.verdict == "stored"

    async def job(self, job_id: str = "a") -> Job:
        job = await self.store.get(job_id)
        assert job is not None
        return job

    async def ended(self, job_id: str = "a") -> Job:
        """The job once it has ended."""
        with trio.fail_after(self._patience), self.node.events.watch(job_id) as watch:
            job = await self.job(job_id)
            if job.status not in ENDED:
                await watch.ended()
        return await self.job(job_id)

    async def statuses(self) -> Counter[Status]:
        """How many jobs have which status."""
        total: Counter[Status] = Counter()
        for queue in await self.store.queues():
            total.update(queue.counts)
        return total

    async def kill(self) -> None:
        """End the node as a crash does: nothing more is written."""
        self.life.cancel()
        await self.over.wait()

    async def drained(self) -> None:
        """Drain the node and wait for its end."""
        self.node.drain()
        await self.over.wait()

    def logged(self, event: str) -> list[EventDict]:
        """The lines that begin so."""
        return [line for line in self.log if line["event"].startswith(event)]


@asynccontextmanager
async def running(
    store: Store | None = None,
    *,
    actor: Actor | None = None,
    handlers: Collection[Handler] = (),
    name: str = "n1",
    clock: VirtualClock | None = None,
    expected: Collection[str] = (),
    patience: float = DAY,
    **settings: Any,
) -> AsyncIterator[Rig]:
    """A node that works; at the end it is drained, holds nothing, and has logged no ERROR but the `expected` ones."""
    actor = actor or Actor()
    registry = Registry([actor.handler, *handlers])
    usual: dict[str, Any] = {"store": "memory:", "max_backlog": 1_000_000}
    node = Node(
        Settings(**(usual | settings)),
        store or MemoryStore(),
        registry,
        clock or VirtualClock(NOW),
        name=name,
    )
    rig = Rig(node, actor, patience)
    with capture_logs() as rig.log:
        async with trio.open_nursery() as nursery:
            await nursery.start(rig.run)
            await turns()  # its first look at the store
            yield rig
            await rig.drained()
    killed = rig.life.cancel_called
    held = [] if killed else await _held(node)

    assert [
        line["event"] for line in rig.log if line["log_level"] == "error" and not _is_one(line, expected)
    ] == []
    assert killed or (node.phase, list(node.held), held) == ("stopped", [], [])
    assert actor.overlaps == []


async def _held(node: Node) -> list[str]:
    """The ids of the jobs that the store believes a node to hold though it has left."""
    if isinstance(node.store, MemoryStore):
        held = "select id from jobs join nodes using (node) where held = 1 and name = ?"
        return [row[0] for row in node.store._db.execute(held, (node.name,))]
    return [job.id for job in await node.store.rescue("inspector", node.clock.now())]


def _is_one(line: EventDict, expected: Collection[str]) -> bool:
    return any(line["event"].startswith(one) for one in expected)


async def turns(number: int = 20) -> None:
    """Let the other tasks run a while, without time passing."""
    for _ in range(number):
        await checkpoint()
