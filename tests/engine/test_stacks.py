"""What the tasks of an attempt are seen to do: tasks that somebody started, without any job."""

import contextlib
import socket
import subprocess
import threading
import types
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from jobpipe.engine import stacks
from jobpipe.engine.stacks import Root, Sight, Stacks
from jobpipe.engine.tasktree import REST, TREE, Node, TaskTree, tree


class Watched:
    """A function that runs as a handler does, in the task of a worker that has a nursery of its own too."""

    def __init__(self, nursery: trio.Nursery, clock: Callable[[], float]) -> None:
        self.nursery, self._clock = nursery, clock

    async def begin(self, handler: Callable[[], Any]) -> None:
        """Start it."""
        root: Root = await self.nursery.start(self._work, handler)
        self.stacks = Stacks(root, self._clock)

    async def _work(
        self, handler: Callable[[], Any], *, task_status: trio.TaskStatus[Root] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with trio.open_nursery() as own:
            own.start_soon(trio.sleep_forever)
            task = trio.lowlevel.current_task()
            root = Root(task, "job", self.call.__code__, lambda nursery: nursery is not own)
            task_status.started(root)
            await self.call(handler)
            own.cancel_scope.cancel()

    async def call(self, handler: Callable[[], Any]) -> None:
        await handler()

    def look(self) -> Sight:
        return self.stacks.look({})

    def tree(self) -> TaskTree:
        seen = tree(self.look())
        assert len(msgspec.json.encode(seen)) <= 64 * 1024
        return seen


@asynccontextmanager
async def watched(
    handler: Callable[[], Any], clock: Callable[[], float] = lambda: 0.0
) -> AsyncIterator[Watched]:
    """A handler that runs and is cancelled at the end. `clock`: by which a look takes time; none passes."""
    async with trio.open_nursery() as nursery:
        job = Watched(nursery, clock)
        await job.begin(handler)
        await wait_all_tasks_blocked(0.005)
        yield job
        nursery.cancel_scope.cancel()


def place(node: Node) -> str:
    return node.at.function.rpartition(".")[2] if node.at else "-"


async def event() -> None:
    await trio.Event().wait()


async def sleep() -> None:
    await trio.sleep(7)


async def sleep_for_ever() -> None:
    with trio.move_on_after(9):
        await trio.sleep_forever()


async def read() -> None:
    one, other = trio.socket.socketpair()
    with one, other:
        await one.recv(1)


async def write() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while one.send(b"x" * 65536):
                pass
        await trio.lowlevel.wait_writable(one)


async def locked() -> None:
    lock = trio.Lock()

    async def hold() -> None:
        async with lock:
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, name="the holder")
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        async with lock:
            raise AssertionError


async def notified() -> None:
    condition = trio.Condition()
    async with condition:
        await condition.wait()


async def relocked() -> None:
    """One that was notified waits for the lock of the condition, not for the condition."""
    condition = trio.Condition()

    async def wait() -> None:
        async with condition:
            await condition.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        async with condition:
            condition.notify_all()
            await trio.sleep_forever()


async def semaphore() -> None:
    await trio.Semaphore(0).acquire()


async def limited() -> None:
    limiter = trio.CapacityLimiter(1)
    limiter.acquire_on_behalf_of_nowait("somebody")
    await limiter.acquire()


async def send() -> None:
    full, receive = trio.open_memory_channel[int](1)
    async with full, receive:
        await full.send(1)
        await full.send(2)


async def receive() -> None:
    hold, empty = trio.open_memory_channel[int](float("inf"))
    async with hold, empty:
        async for _ in empty:
            pass


async def in_thread() -> None:
    release = threading.Event()
    try:
        await trio.to_thread.run_sync(release.wait, abandon_on_cancel=True)
    finally:
        release.set()


async def process(*, read: bool) -> None:
    child = await trio.lowlevel.open_process(["sleep", "100"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        await (child.stdout.receive_some(1) if read else child.wait())
    finally:
        child.kill()
        with trio.CancelScope(shield=True):
            await child.wait()
            await child.stdout.aclose()


async def children() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)


async def start() -> None:
    async def slow(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep_forever()
        task_status.started()

    async with trio.open_nursery() as nursery:
        await nursery.start(slow)


async def parked() -> None:
    await trio.lowlevel.ParkingLot().park()


class Odd:
    """What wraps a coroutine."""

    def __await__(self) -> Generator[Any, Any, Any]:
        return event().__await__()


async def wrapped() -> None:
    await Odd()


async def generated() -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1
        await event()
        yield 2

    async for _ in numbers():
        pass


@types.coroutine
def old_style() -> Iterator[Any]:
    yield from event().__await__()


async def by_generator() -> None:
    await old_style()


WAITS: list[tuple[Callable[[], Any], dict[str, Any], str]] = [
    (event, {"what": "event"}, "event"),
    (sleep_for_ever, {"what": "sleep"}, "sleep_for_ever"),
    (read, {"what": "socket", "direction": "read"}, "read"),
    (write, {"what": "socket", "direction": "write"}, "write"),
    (locked, {"what": "lock", "holder": "the holder"}, "locked"),
    (notified, {"what": "condition"}, "notified"),
    (semaphore, {"what": "semaphore"}, "semaphore"),
    (limited, {"what": "limiter", "filled": 1, "size": 1}, "limited"),
    (send, {"what": "channel_room", "filled": 1, "size": 1}, "send"),
    (receive, {"what": "channel_value", "filled": 0}, "receive"),
    (in_thread, {"what": "thread"}, "in_thread"),
    (children, {"what": "nursery"}, "children"),
    (start, {"what": "start"}, "start"),
    (parked, {"what": "other"}, "parked"),
    (wrapped, {"what": "event"}, "event"),
    (generated, {"what": "event"}, "event"),
    (by_generator, {"what": "event"}, "event"),
]


@pytest.mark.parametrize(
    ("handler", "expected", "where"), WAITS, ids=lambda one: getattr(one, "__name__", "")
)
async def test_what_a_task_waits_for_is_named(
    handler: Callable[[], Any], expected: dict[str, Any], where: str
) -> None:
    """And the innermost frame of own code, through whatever lies between it and Trio."""
    async with watched(handler) as job:
        root = job.tree().root

    assert msgspec.to_builtins(root.waiting_on) == expected
    assert place(root) == where
    assert root.name == "job"


@pytest.mark.parametrize("read", [False, True])
async def test_a_process_is_named_by_its_number_and_its_output_as_a_pipe(read: bool) -> None:
    """To start one takes a thread."""
    begun = {"process", "pipe"}
    async with watched(lambda: process(read=read)) as job:
        with trio.move_on_after(10):
            while (wait := job.tree().root.waiting_on).what not in begun:  # noqa: ASYNC110 - nobody is told
                await trio.sleep(0.01)

    assert (wait.what, wait.direction) == (("pipe", "read") if read else ("process", None))
    assert (wait.process is None) is read


async def test_a_task_that_was_notified_waits_for_the_lock() -> None:
    async with watched(relocked) as job:
        (child,) = job.tree().root.children

    assert (child.waiting_on.what, child.waiting_on.holder) == ("lock", "job")


async def test_a_sleep_says_when_it_is_over(autojump_clock: trio.testing.MockClock) -> None:
    async with watched(sleep) as job:
        begun = trio.current_time()
        near = tree(job.look()).root.waiting_on
        far = tree(job.look(), 1_000).root.waiting_on

    assert near.what == "sleep"
    assert near.until == pytest.approx(begun + 7, abs=0.1)
    assert far.until == pytest.approx(begun + 1_007, abs=0.1)


async def test_a_lock_that_was_handed_over_only_waits_for_its_turn() -> None:
    lock, held = trio.Lock(), trio.Event()

    async def take() -> None:
        async with lock:
            await held.wait()

    await lock.acquire()
    async with watched(take) as job:
        before = job.tree().root.waiting_on
        lock.release()
        after = job.tree().root.waiting_on

    assert (before.what, after.what) == ("lock", "turn")


async def test_the_worker_s_own_frames_and_tasks_are_not_the_job_s() -> None:
    async with watched(children) as job:
        seen = job.tree()

    assert seen.tasks == 2
    assert seen.root.stack[0].function == "children"
    assert [child.name for child in seen.root.children] == ["trio.sleep_forever"]


async def fan_out(number: int, odd: Callable[[], Any]) -> None:
    async def deliver(which: int) -> None:
        try:
            await trio.sleep(0 if which == 17 else 1_000)
        finally:
            if which == 17:
                with trio.CancelScope(shield=True):
                    await odd()

    async with trio.open_nursery() as nursery:
        for which in range(number):
            nursery.start_soon(deliver, which, name=f"deliver {which}")


async def test_one_task_of_a_thousand_that_hangs_in_its_cleanup_is_seen_at_a_glance(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """All others are one node, with the name of their function, since each has a name of its own."""
    gate = trio.Event()
    async with watched(lambda: fan_out(1_000, gate.wait)) as job:
        seen = job.tree()
        gate.set()

    odd, rest = sorted(seen.root.children, key=lambda node: node.count)
    assert seen.tasks == 1_001
    assert seen.whole
    assert (odd.name, odd.count, odd.waiting_on.what) == ("deliver 17", 1, "event")
    assert (rest.count, rest.waiting_on.what, rest.name.rpartition(".")[2]) == (999, "sleep", "deliver")
    assert odd.at != rest.at


async def test_what_has_not_moved_is_still(autojump_clock: trio.testing.MockClock) -> None:
    """By two looks. One that goes round a loop moves, though it always stands at the same place."""

    async def turn() -> None:
        for _ in range(1_000):
            await trio.sleep(1)

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(turn, name="turn")
            nursery.start_soon(trio.sleep_forever, name="stay")

    async with watched(both) as job:
        first = job.tree()
        await trio.sleep(30.5)
        second = job.tree()
        await trio.sleep(30)
        third = {node.name: node.still for node in job.tree().root.children}

    assert {node.still for node in first.root.children} == {0.0}
    assert [(node.name, node.still) for node in second.root.children] == [("stay", 30.5), ("turn", 0.0)]
    assert third == {"stay": 60.5, "turn": 0.0}


async def test_equal_tasks_are_told_apart_by_how_long_they_are_still(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def turn(steady: bool) -> None:
        for _ in range(1_000):
            await trio.sleep(1_000 if steady else 1)

    async def many() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(turn, number == 3)

    async with watched(many) as job:
        job.look()
        await trio.sleep(20.5)
        counts = [(node.count, node.still) for node in job.tree().root.children]

    assert counts == [(1, 20.5), (9, 0.0)]


async def test_tasks_that_wait_for_each_other_are_told() -> None:
    """Two that hold a lock each; and a parent whose child waits for the lock that it holds."""
    one, other = trio.Lock(), trio.Lock()

    async def both(first: trio.Lock, second: trio.Lock) -> None:
        async with first:
            await trio.lowlevel.checkpoint()
            async with second:
                raise AssertionError

    async def two() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both, one, other, name="left")
            nursery.start_soon(both, other, one, name="right")

    async def child(lock: trio.Lock) -> None:
        async with lock:
            raise AssertionError

    async def parent() -> None:
        async with trio.Lock() as _, trio.open_nursery() as nursery:
            lock = trio.Lock()
            await lock.acquire()
            nursery.start_soon(child, lock, name="child")

    async with watched(two) as job:
        two_of_them = job.tree()
    async with watched(parent) as job:
        of_family = job.tree()
    async with watched(locked) as job:
        none = job.tree()

    assert [sorted(circle) for circle in two_of_them.circles] == [["left", "right"]]
    assert {node.waiting_on.holder for node in two_of_them.root.children} == {"left", "right"}
    assert [sorted(circle) for circle in of_family.circles] == [["child", "job"]]
    assert none.circles == []


async def test_the_holder_of_another_job_is_named_with_its_job() -> None:
    lock = trio.Lock()

    async def take() -> None:
        async with lock:
            await trio.sleep_forever()

    async def inner() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, name="holder")

    async with watched(inner) as first, watched(take) as second:
        jobs = {job.stacks._root.task: job_id for job, job_id in ((first, "a"), (second, "b"))}
        wait = second.stacks.look(jobs).root.wait

    assert (wait.what, wait.holder, wait.holder_job) == ("lock", "holder", "a")


async def test_a_thread_is_part_of_the_stack() -> None:
    """Of a function of a handler, and of one that is the handler's own; another thread is not."""
    release = threading.Event()

    def wait() -> None:
        release.wait()

    async def two() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, wait)
            nursery.start_soon(trio.to_thread.run_sync, partial(release.wait), name="no own code")

    async with watched(lambda: trio.to_thread.run_sync(wait)) as own, watched(two) as job:
        try:
            with trio.move_on_after(10):
                while True:  # until the threads are there
                    root, nodes = own.tree().root, {place(node): node for node in job.tree().root.children}
                    if all(node.stack[-1].function == "Condition.wait" for node in (root, *nodes.values())):
                        break
                    await trio.sleep(0.01)
        finally:
            release.set()

    for node in (root, nodes["wait"]):
        functions = [frame.function for frame in node.stack]
        assert node.waiting_on.what == "thread"
        assert functions[-1] == "Condition.wait"
        assert any(name.endswith("wait") and "<locals>" in name for name in functions)
    assert nodes["-"].stack[-1].function == "Condition.wait"


async def test_a_task_that_comes_back_from_its_thread_waits_for_something_else() -> None:
    async def handler() -> None:
        await trio.to_thread.run_sync(trio.from_thread.run, event, abandon_on_cancel=False)

    async with watched(handler) as job:
        root = job.tree().root

    assert (root.waiting_on.what, place(root)) == ("event", "event")


async def test_a_task_that_has_not_begun_and_one_that_goes_on_next() -> None:
    nurseries: list[trio.Nursery] = []

    async def handler() -> None:
        async with trio.open_nursery() as nursery:
            nurseries.append(nursery)
            for _ in range(1_000):
                await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        job = Watched(nursery, lambda: 0.0)
        await job.begin(handler)
        while not nurseries:
            await trio.lowlevel.checkpoint()
        nurseries[0].start_soon(sleep)
        seen = job.tree().root
        nursery.cancel_scope.cancel()

    assert (seen.waiting_on.what, seen.children[0].waiting_on.what) == ("turn", "first_turn")


async def test_tasks_that_end_while_they_are_looked_at_again_and_again() -> None:
    """Whatever happens between two looks, each is whole."""

    async def flicker() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(trio.sleep, number / 10_000)

    counts = []
    async with watched(flicker) as job:
        for _ in range(50):
            counts.append(job.tree().tasks)
            await trio.sleep(0.001)

    assert counts[-1] <= 1
    assert counts == sorted(counts, reverse=True)


async def test_a_handler_that_has_ended_has_no_frames() -> None:
    ended, gate = trio.Event(), trio.Event()

    async def handler() -> None:
        ended.set()

    async with watched(handler) as job:
        root = job.tree().root
        gate.set()

    assert (root.stack, root.at, root.children) == ([], None, [])


def ticking(step: float) -> Callable[[], float]:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += step
        return now

    return clock


@pytest.mark.parametrize("bound", ["tasks", "time", "all"])
async def test_what_is_beyond_the_bounds_is_counted_by_its_line(
    monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    """Where even that takes too long, it is said that there are more."""
    monkeypatch.setattr(stacks, "MOST", 101 if bound == "tasks" else 5_000)
    monkeypatch.setattr(stacks, "SLICE", 50)
    step = {"tasks": 0.0, "time": stacks.IN_DETAIL / 53, "all": stacks.IN_ALL}[bound]

    async def many() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(1_000):
                nursery.start_soon(children if number % 10 == 0 else event)

    async with watched(many, ticking(step)) as job:
        seen = job.tree()

    counted = sum(line.count for line in seen.rest)
    shown = 1 + sum(node.count + sum(one.count for one in node.children) for node in seen.root.children)
    assert seen.tasks == shown + counted
    if bound == "all":
        assert not seen.whole
        assert 0 < seen.tasks < 1_101
    else:
        assert (seen.tasks, seen.whole) == (1_101, True)
        assert {line.function for line in seen.rest} <= {"children", "event", "sleep_forever"}
        assert counted > 0
    if bound == "tasks":
        assert shown == 101


async def test_however_different_tasks_are_the_tree_has_a_bound() -> None:
    """Stacks are cut first; then what is farther from the root is counted by its line."""
    source = "\n".join(
        f"async def a_function_of_some_length_{number}(wait):\n    await wait()" for number in range(600)
    )
    functions: dict[str, Any] = {}
    exec(compile(source, "x" * 500, "exec"), functions)
    several = [one for name, one in functions.items() if name.startswith("a_function")]

    async def deep(depth: int) -> None:
        if depth:
            await deep(depth - 1)
        await trio.sleep_forever()

    async def many(of: int, depth: int) -> None:
        async with trio.open_nursery() as nursery:
            for function in several[:of]:
                nursery.start_soon(function, lambda: deep(depth), name="\x1b" * 1_000)

    async with watched(lambda: many(40, 50)) as job:
        cut = job.tree()
    async with watched(lambda: many(600, 5)) as job:
        counted = job.tree()

    assert (len(cut.root.children), cut.rest) == (40, [])
    assert cut.root.children[0].left_out > 30
    assert cut.root.children[0].name == " " * stacks.LONGEST_NAME
    assert 40 < len(counted.root.children) < 600
    assert 0 < sum(line.count for line in counted.rest) <= 600 - len(counted.root.children)
    assert len(msgspec.json.encode(counted.rest)) <= REST
    assert len(msgspec.json.encode(counted.root)) <= TREE + 10_000


async def test_frames_of_the_user_s_are_not_kept() -> None:
    """Nor anything that is in them, once a task goes on."""

    class Payload:
        pass

    gone: list[Any] = []
    gate = trio.Event()

    async def handler() -> None:
        payload = Payload()
        gone.append(weakref.ref(payload))
        await gate.wait()
        del payload
        await trio.sleep_forever()

    async with watched(handler) as job:
        sight = job.look()
        there = gone[0]() is not None
        gate.set()
        await wait_all_tasks_blocked()
        left = gone[0]()

    assert there
    assert left is None
    assert sight.tasks == 1
