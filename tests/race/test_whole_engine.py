"""Whole lives of a node, drawn at random, against a plain model: what people do, crashes, drains, clocks that are set.

The model has as many workers as it needs, and so have the nodes: every ready job starts at once, so that its status
and its count of attempts are known at every moment. Time is Trio's mock clock; it moves only when a rule says so.
"""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jobpipe.clock import NAP, VirtualClock
from jobpipe.engine.node import CLEANUP, Node
from jobpipe.handlers.context import Context
from jobpipe.handlers.exceptions import Fail, Snooze
from jobpipe.handlers.registry import Handler, Registry
from jobpipe.job import ENDED, Backoff, NewJob, Options, Status
from jobpipe.settings import Settings
from jobpipe.store.memory import MemoryStore

pytestmark = pytest.mark.race

BOUNDED = settings(
    max_examples=300,
    stateful_step_count=30,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

Do = Literal["ok", "errors", "fail", "snooze", "long", "never"]
IDS = ("a", "b", "c", "d")
QUEUES = ("x", "y")
WAIT, LONG, MOMENT, GRACE = 10.0, 100.0, 0.1, 30.0
"""Seconds of a backoff or a snooze; of a long run; for whatever is under way to be written; of the drain."""

SHOWN_AS_WAITING = {Status.SCHEDULED, Status.QUEUED, Status.RETRYING}


class NappingClock(VirtualClock):
    """Virtual time whose sleepers look again after a while, as those of the machine's clock do."""

    def nap(self, until: float) -> float:
        return min(super().nap(until), NAP)


# --- the model --------------------------------------------------------------------------------------------------------


@dataclass
class Life:
    """A job as the model has it: it waits until `due` (wall time), runs until `ends` (Trio's time), or has ended."""

    do: Do
    queue: str
    max_retries: int
    due: float
    attempt: int = 0
    ends: float | None = None
    end: Status | None = None
    snoozed: bool = False

    @property
    def runs(self) -> bool:
        return self.ends is not None

    def rest(self, *, counted: int) -> None:
        self.ends, self.attempt = None, self.attempt + counted

    def ended(self, status: Status, *, counted: int = 0) -> None:
        self.rest(counted=counted)
        self.end = status


class Model:
    """Jobs, and what becomes of them as time goes by."""

    def __init__(self) -> None:
        self.jobs: dict[str, Life] = {}
        self.paused: set[str] = set()
        self.now = 0.0
        self.set_by = 0.0
        """how far the wall clock is ahead of Trio's"""
        self.open = True
        """whether a node claims"""

    def pass_time(self, seconds: float) -> None:
        """Let everything happen that is due until then, in order."""
        until = self.now + seconds
        while True:
            self._start_what_is_due()
            times = [life.ends for life in self.jobs.values() if life.ends is not None]
            if self.open:
                times += [life.due - self.set_by for life in self.jobs.values() if self._waits(life)]
            following = min((time for time in times if time > self.now), default=math.inf)
            if following > until:
                break
            self.now = following
            for life in self.jobs.values():
                if life.ends is not None and life.ends <= self.now:
                    self._finish(life)
        self.now = until

    def _waits(self, life: Life) -> bool:
        return life.end is None and not life.runs and life.queue not in self.paused

    def _queue_what_is_due(self) -> None:
        """A job that is due is ready from then on, wherever the clock is set to."""
        for life in self.jobs.values():
            if self.open and life.end is None and not life.runs and life.due - self.set_by <= self.now:
                life.due = -math.inf

    def _start_what_is_due(self) -> None:
        self._queue_what_is_due()
        while self.open and (
            due := [
                one for one in self.jobs.values() if self._waits(one) and one.due - self.set_by <= self.now
            ]
        ):
            for life in due:
                life.ends = self.now + {"long": LONG, "never": math.inf}.get(life.do, 0.0)
                if life.ends <= self.now:
                    self._finish(life)

    def _finish(self, life: Life) -> None:
        wall = self.now + self.set_by
        match life.do:
            case "errors" if life.attempt < 2:
                life.rest(counted=1)
                if life.attempt > life.max_retries:
                    life.end = Status.FAILED
                else:
                    life.due = wall + WAIT
            case "snooze" if not life.snoozed:
                life.snoozed = True
                life.rest(counted=0)
                life.due = wall + WAIT
            case "fail":
                life.ended(Status.FAILED, counted=1)
            case _:
                life.ended(Status.DONE, counted=1)

    def crash(self) -> None:
        """The node is gone; each attempt that ran is spent."""
        self.open = False
        for life in self.jobs.values():
            if life.runs:
                life.rest(counted=1)
                if life.attempt > life.max_retries:
                    life.end = Status.FAILED

    def stop(self) -> None:
        """What still runs is handed back, unspent."""
        for life in self.jobs.values():
            if life.runs:
                life.rest(counted=0)


# --- the machine ------------------------------------------------------------------------------------------------------


class Engine:
    """The real thing, in Trio: one node at a time on a memory store."""

    def __init__(self, clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
        self.mock, self.nursery = clock, nursery
        self.clock, self.store = NappingClock(0.0), MemoryStore()
        self.started = 0
        self.snoozed: set[str] = set()
        self.running: set[str] = set()
        self.life, self.over = trio.CancelScope(), trio.Event()

    async def start(self) -> None:
        self.clock.now()  # its origin
        self.started += 1
        handler = Handler(
            kind="act", function=self._act, is_async=True, takes_context=True, payload_type=tuple[Do, str]
        )
        self.node = Node(
            Settings(store="memory:", workers=50, queue_size=50, grace=GRACE, max_backlog=1000),
            self.store,
            Registry([handler]),
            self.clock,
            name=f"n{self.started}",
        )
        self.life, self.over = trio.CancelScope(), trio.Event()
        await self.nursery.start(self._live, self.node, self.life, self.over)

    async def _live(
        self, node: Node, life: trio.CancelScope, over: trio.Event, *, task_status: trio.TaskStatus[Any]
    ) -> None:
        with life:
            await node.run(task_status=task_status)
        over.set()

    async def crash(self) -> None:
        """End the node without a word; the next one is told that it is dead, as by the lock on a file."""
        self.life.cancel()
        await self.over.wait()
        await self.store.leave(self.node.name)

    async def pass_time(self, seconds: float) -> None:
        """Move the clock from one deadline to the next, so that everybody wakes in time."""
        until = trio.current_time() + seconds
        while True:
            await trio.testing.wait_all_tasks_blocked()
            left = until - trio.current_time()
            if left <= 1e-9:
                return
            step = trio.lowlevel.current_statistics().seconds_to_next_deadline
            self.mock.jump(min(left, max(step, 1e-6)))

    async def _act(self, payload: tuple[Do, str], context: Context) -> str:
        assert context.id not in self.running
        self.running.add(context.id)
        try:
            await self._do(payload, context)
        finally:
            self.running.discard(context.id)
        return "ok"

    async def _do(self, payload: tuple[Do, str], context: Context) -> None:
        do, mark = payload
        match do:
            case "errors" if context.attempt <= 2:
                raise ValueError("no luck")
            case "snooze" if mark not in self.snoozed:
                self.snoozed.add(mark)
                raise Snooze(WAIT)
            case "fail":
                raise Fail("hopeless")
            case "long":
                await trio.sleep(LONG)
            case "never":
                await trio.sleep_forever()


class Lives(RuleBasedStateMachine):
    """Does the same to the engine and to the model, and compares after each step."""

    open_engine: Callable[[], tuple[Engine, Callable[[], None]]]

    @initialize()
    def begin(self) -> None:
        self.engine, self.close = type(self).open_engine()
        self.model, self.marks = Model(), 0
        self.call(self.engine.start)
        self.settle()

    def teardown(self) -> None:
        if hasattr(self, "close"):
            self.close()

    def call(self, verb: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return trio.from_thread.run(verb, *args)

    def settle(self, seconds: float = MOMENT) -> None:
        self.call(self.engine.pass_time, seconds)
        self.model.pass_time(seconds)

    @rule(
        job_id=st.sampled_from(IDS),
        do=st.sampled_from(["ok", "errors", "fail", "snooze", "long", "never"]),
        queue=st.sampled_from(QUEUES),
        max_retries=st.sampled_from([0, 1, 5]),
        delay=st.sampled_from([0.0, 0.0, 20.0]),
    )
    def enqueue(self, job_id: str, do: Do, queue: str, max_retries: int, delay: float) -> None:
        stored = self._enqueue(job_id, do, queue, max_retries, delay)

        assert stored == (job_id not in self.model.jobs)
        if stored:
            due = self.model.now + self.model.set_by + delay
            self.model.jobs[job_id] = Life(do, queue, max_retries, due)
        self.settle()

    def _enqueue(self, job_id: str, do: Do, queue: str, max_retries: int, delay: float) -> bool:
        self.marks += 1
        now = trio.from_thread.run_sync(self.engine.clock.now)
        new = NewJob(
            id=job_id,
            kind="act",
            queue=queue,
            payload=f'["{do}","{self.marks}"]'.encode(),
            priority=0,
            max_retries=max_retries,
            created_at=now,
            run_at=now + delay,
            options=Options(backoff=Backoff(base=WAIT, factor=1, jitter="none")),
        )
        (receipt,) = self.call(self.engine.node.backlog.enqueue, [new])
        return bool(receipt.verdict == "stored")

    @rule(job_id=st.sampled_from(IDS))
    def cancel(self, job_id: str) -> None:
        change = self.call(self.engine.node.control.cancel, job_id)
        life = self.model.jobs.get(job_id)

        assert change.verdict == ("absent" if life is None else "refused" if life.end else "changed")
        if life is not None and life.end is None:
            life.ended(Status.CANCELLED, counted=int(life.runs))
        self.settle()
        assert job_id not in self.engine.running

    @rule(job_id=st.sampled_from(IDS))
    def retry(self, job_id: str) -> None:
        change = self.call(self.engine.node.control.retry, job_id)
        life = self.model.jobs.get(job_id)

        assert change.verdict == ("absent" if life is None else "changed" if life.end else "refused")
        if life is not None and life.end:
            life.end, life.attempt, life.due = None, 0, self.model.now + self.model.set_by
        self.settle()

    @rule(job_id=st.sampled_from(IDS))
    def delete(self, job_id: str) -> None:
        change = self.call(self.engine.node.control.delete, job_id)
        life = self.model.jobs.get(job_id)

        assert change.verdict == ("absent" if life is None else "refused" if life.runs else "changed")
        if change.verdict == "changed":
            del self.model.jobs[job_id]
        self.settle()

    @rule(queue=st.sampled_from(QUEUES))
    def pause(self, queue: str) -> None:
        self.call(self.engine.node.control.pause, queue)
        self.model.paused.add(queue)
        self.settle()

    @rule(queue=st.sampled_from(QUEUES))
    def resume(self, queue: str) -> None:
        self.call(self.engine.node.control.resume, queue)
        self.model.paused.discard(queue)
        self.settle()

    @rule(seconds=st.sampled_from([1.0, 15.0, 60.0, 300.0]))
    def time_passes(self, seconds: float) -> None:
        self.settle(seconds)

    @rule(seconds=st.sampled_from([-3600.0, -30.0, 15.0, 86_400.0]))
    def somebody_sets_the_clock(self, seconds: float) -> None:
        """Of which the ledger learns with the next job that comes, or after a nap."""
        self.engine.clock.step(seconds)
        self.model.set_by += seconds
        self.marks += 1
        self._enqueue(f"wake-{self.marks}", "ok", "z", 0, 0.0)
        self.settle()

    @rule()
    def crash_and_start(self) -> None:
        self.call(self.engine.crash)
        self.model.crash()
        self.start_anew()

    @precondition(lambda self: self.engine.started < 6)
    @rule()
    def drain_and_start(self) -> None:
        """Until the grace is over, and then the rest is stopped."""
        trio.from_thread.run_sync(self.engine.node.drain)
        self.model.open = False
        self.settle(GRACE + MOMENT)
        self.model.stop()
        self.settle(CLEANUP)

        assert self.engine.over.is_set()
        assert list(self.engine.node.held) == []
        self.start_anew()

    def start_anew(self) -> None:
        self.call(self.engine.start)
        self.model.open = True
        self.settle()

    @invariant()
    def each_job_is_as_the_model_has_it(self) -> None:
        if not hasattr(self, "model"):
            return
        for job_id in IDS:
            job, life = self.call(self.engine.store.get, job_id), self.model.jobs.get(job_id)

            assert (job is None) == (life is None), job_id
            if life is None:
                continue
            expected = {life.end} if life.end else {Status.RUNNING} if life.runs else SHOWN_AS_WAITING
            assert job.status in expected, (job, life)
            assert job.state.attempt == life.attempt + life.runs, (job, life)
            assert (job.state.finished_at is not None) == (job.status in ENDED)
        assert self.engine.running == {one for one, life in self.model.jobs.items() if life.runs}


async def test_the_engine_lives_like_the_model(mock_clock: trio.testing.MockClock) -> None:
    """Whatever people do and whatever befalls the node, each job stands where the model has it."""
    async with trio.open_nursery() as nursery:

        async def opened(task_status: trio.TaskStatus[tuple[Engine, trio.CancelScope]]) -> None:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as lives:
                    task_status.started((Engine(mock_clock, lives), scope))
                    await trio.sleep_forever()

        def open_one() -> tuple[Engine, Callable[[], None]]:
            engine, scope = trio.from_thread.run(nursery.start, opened)
            return engine, lambda: trio.from_thread.run_sync(scope.cancel)

        class Machine(Lives):
            open_engine = staticmethod(open_one)

        # Hypothesis is not async: it runs in a thread, from which each step is taken in this loop.
        await trio.to_thread.run_sync(lambda: run_state_machine_as_test(Machine, settings=BOUNDED))
