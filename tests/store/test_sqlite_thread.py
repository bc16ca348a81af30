"""The store's own thread: one call at a time, what a cancel does, and that nobody waits for a dead one."""

import gc
import threading
import traceback
import weakref

import pytest
import trio
import trio.testing

from jobpipe.store.sqlite.thread import own_thread


async def test_every_call_runs_in_the_one_thread() -> None:
    """It has the name that it was given, and is not the one that Trio runs in."""
    with own_thread("own") as thread:
        names = [await thread.run(lambda: threading.current_thread().name) for _ in range(3)]

    assert names == ["own"] * 3


async def test_an_error_comes_back_with_its_traceback() -> None:
    """It names the function in the thread that raised it."""

    def fail() -> None:
        raise ValueError("no")

    with own_thread("own") as thread:
        with pytest.raises(ValueError, match="no") as raised:
            await thread.run(fail)

        assert await thread.run(lambda: "it goes on") == "it goes on"
    assert "fail" in [frame.name for frame in traceback.extract_tb(raised.tb)]


async def test_calls_run_one_after_the_other_in_the_order_of_their_asking() -> None:
    """Those who ask while one runs wait for their turn."""
    free, ran = threading.Event(), []

    def first() -> None:
        free.wait()
        ran.append(0)

    with own_thread("own") as thread:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread.run, first)
            await trio.testing.wait_all_tasks_blocked()
            for number in (1, 2, 3):
                nursery.start_soon(thread.run, lambda number=number: ran.append(number))
                await trio.testing.wait_all_tasks_blocked()
            free.set()

    assert ran == [0, 1, 2, 3]


async def test_a_cancel_waits_for_what_has_begun_and_its_result_counts() -> None:
    """The caller is not let go before the end."""
    free, results, scope = threading.Event(), [], trio.CancelScope()

    async def call() -> None:
        with scope:
            results.append(await thread.run(lambda: free.wait() and "done"))

    with own_thread("own") as thread:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            before = list(results)
            free.set()

    assert (before, results) == ([], ["done"])


async def test_a_cancel_prevents_what_has_not_begun() -> None:
    """Whether it waits for its turn or is about to ask."""
    free, ran = threading.Event(), []
    with own_thread("own") as thread:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread.run, free.wait)
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0):
                await thread.run(lambda: ran.append("waited"))
            free.set()
        with trio.CancelScope() as scope:
            scope.cancel()
            await thread.run(lambda: ran.append("asked"))

    assert ran == []


async def test_the_thread_ends_with_its_context() -> None:
    """Who asks later hears so, and does not wait for ever."""
    with own_thread("own") as thread:
        worker = await thread.run(threading.current_thread)

    assert not worker.is_alive()
    with pytest.raises(RuntimeError, match="'own' has ended"):
        await thread.run(lambda: None)


async def test_what_was_done_is_kept_by_nobody() -> None:
    """Neither a call's function nor its result is held while the thread waits for the next one."""

    class Large:
        def __call__(self) -> "Large":
            return Large()

    with own_thread("own") as thread:
        asked = Large()
        done = await thread.run(asked)
        kept = [weakref.ref(asked), weakref.ref(done)]
        del asked, done
        await thread.run(lambda: None)  # by now the thread has let go of the call before
        gc.collect()

        assert [one() for one in kept] == [None, None]
