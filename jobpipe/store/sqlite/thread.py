"""A thread of one's own: a call into it costs half of what one through Trio's pool of threads does."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

import outcome
import trio

R = TypeVar("R")

Call = tuple[Callable[[], Any], trio.lowlevel.Task]
"""What is to be done, and the task that waits for it."""


class OwnThread:
    """One thread that does one thing at a time for the tasks of one Trio run, those that asked first before the others.

    It is there already and remembers nothing between two calls, so there is no limiter to pass, no thread to be
    found and no context to be copied.
    """

    def __init__(self, name: str) -> None:
        self._trio = trio.lowlevel.current_trio_token()
        self._turn = trio.Lock()
        self._asked: SimpleQueue[Call | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, function: Callable[[], R]) -> R:
        """Call a function in the thread; returns what it returns and raises what it raises.

        A cancel before it begins prevents it. Once it has begun, its end is waited for, and its result counts.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._turn.acquire_nowait()
        except trio.WouldBlock:
            await self._turn.acquire()
        try:
            return await self._called(function)
        finally:
            self._turn.release()

    async def _called(self, function: Callable[[], R]) -> R:
        if not self._thread.is_alive():
            raise RuntimeError(f"the thread {self._thread.name!r} has ended")
        self._asked.put((function, trio.lowlevel.current_task()))
        result: R = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return result

    def end(self) -> None:
        """End the thread. Nothing may run in it."""
        self._asked.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (call := self._asked.get()) is not None:
            self._do(*call)
            del call  # and with it what it holds, while there is nothing to do

    def _do(self, function: Callable[[], Any], task: trio.lowlevel.Task) -> None:
        done = outcome.capture(function)
        self._trio.run_sync_soon(trio.lowlevel.reschedule, task, done)


@contextmanager
def own_thread(name: str) -> Iterator[OwnThread]:
    """A thread that ends with this context."""
    thread = OwnThread(name)
    try:
        yield thread
    finally:
        thread.end()
