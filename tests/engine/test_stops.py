"""The account of a node's stop: its numbers are those of the attempts that ran when it began."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from jobpipe.engine import stops
from jobpipe.engine.node import CLEANUP
from jobpipe.handlers.registry import Handler
from jobpipe.job import Options
from jobpipe.store.base import Account
from tests.engine.conftest import DAY, NOW, FaultyStore, Rig, running, turns


async def account_of(rig: Rig) -> Account:
    (account,) = await rig.store.accounts(rig.node.name)
    assert account.active == account.finished + account.handed_back + account.abandoned
    assert len(account.attempts) == account.handed_back + account.abandoned
    return account


def ends(account: Account) -> Sequence[tuple[str, str, str | None]]:
    return sorted((one.job, one.end, one.status) for one in account.attempts)


async def test_a_drain_in_which_all_end_by_themselves(autojump_clock) -> None:
    """However they end. What had ended before, and what begins later, is not counted; what had not begun is told."""
    async with running(workers=3) as rig:
        await rig.enqueue("before")
        await rig.ended("before")
        await rig.enqueue("good", ("sleep", 3))
        await rig.enqueue("cancelled", ("hang", 1))
        await rig.enqueue("late", ("hang", 1), options=Options(timeout=4))
        await rig.actor.begun(4)
        await rig.enqueue("next", ("sleep", 1))
        await trio.sleep(0.1)
        rig.node.drain("SIGTERM")
        states = [await rig.store.node("n1")]
        await trio.sleep(0.1)
        states.append(await rig.store.node("n1"))
        await rig.node.control.cancel("cancelled")
        await rig.over.wait()
        states.append(await rig.store.node("n1"))
        account = await account_of(rig)

    assert (account.how, account.signal, account.attempts) == ("drained", "SIGTERM", [])
    assert (account.active, account.finished, account.unbegun) == (3, 3, 1)
    assert account.ended_at > account.began > NOW
    assert [state and (state.draining, state.lease_until is None) for state in states] == [
        (False, False),
        (True, False),
        (True, True),
    ]


async def test_what_is_cancelled_by_the_second_signal_is_named(autojump_clock) -> None:
    """And so it is when the grace is over."""
    async with running(workers=3) as rig:
        await rig.enqueue("finished", ("sleep", 3))
        for job_id in "ab":
            await rig.enqueue(job_id, ("hang", 1))
        await rig.actor.begun(3)
        rig.node.drain("SIGINT")
        await trio.sleep(5)
        rig.node.stop()
        await rig.over.wait()
        stopped = await account_of(rig)

    async with running(grace=2) as rig:
        await rig.enqueue("a", ("hang", 1))
        await rig.actor.begun()
        await rig.drained()
        over = await account_of(rig)

    back = [("a", "handed_back", "queued"), ("b", "handed_back", "queued")]
    assert (stopped.how, stopped.active, stopped.finished, ends(stopped)) == ("stopped", 3, 1, back)
    assert stopped.ended_at - stopped.began == pytest.approx(6, abs=0.5)
    assert (over.how, over.signal, over.active, ends(over)) == ("stopped", None, 1, back[:1])


async def test_abandoned_handlers_are_named_with_the_line_they_stood_at(autojump_clock) -> None:
    """Those that are async, and those in threads; one of several at different lines in threads is not guessed."""
    gate, arrived = threading.Event(), cast("Any", threading.Semaphore(0))

    def stuck(payload: object) -> None:
        _ = arrived.release() or gate.wait()

    def other(payload: object) -> None:
        if payload:
            _ = arrived.release() or gate.wait()
        _ = arrived.release() or gate.wait()

    kinds = [
        Handler(kind=kind, function=function, is_async=False, takes_context=False, payload_type=object)
        for kind, function in (("stuck", stuck), ("other", other))
    ]
    async with running(handlers=kinds, grace=1, workers=9, lease=DAY) as rig:
        await rig.enqueue("finished")
        await rig.ended("finished")
        await rig.enqueue("ended", ("hang", 1))
        await rig.enqueue("shielded", ("stubborn", 99))
        await rig.enqueue("unwanted", ("stubborn", 99))
        await rig.actor.begun(4)
        for job_id, kind, payload in (("thread", "stuck", b"0"), ("x", "other", b"0"), ("y", "other", b"1")):
            await rig.enqueue(job_id, kind=kind, payload=payload)
        await turns(200)
        assert all(arrived.acquire(timeout=9) for _ in range(3))  # blocks the loop, and so no time passes
        await rig.node.control.cancel("unwanted")
        rig.node.drain("SIGTERM")
        await trio.sleep(1 + CLEANUP)
        rig.node.abandon()
        await rig.node.settle_up()
        account = await account_of(rig)
        gate.set()
        await rig.over.wait()

    assert (account.how, account.active, account.handed_back) == ("abandoned", 6, 1)
    assert ends(account) == [
        ("ended", "handed_back", "queued"),
        *((job_id, "abandoned", "queued") for job_id in ("shielded", "thread")),
        ("unwanted", "abandoned", "cancelled"),
        *((job_id, "abandoned", "queued") for job_id in "xy"),
    ]
    lines = {one.job: one.line for one in account.attempts}
    first = stuck.__code__.co_firstlineno
    assert lines["thread"] == f"{__file__}:{first + 1} in {stuck.__code__.co_qualname}"
    shielded = lines["shielded"] or ""
    assert Path(shielded.partition(":")[0]).name == "conftest.py"
    assert shielded.endswith(" in Actor._do")
    assert (lines["x"], lines["y"], lines["ended"]) == (None, None, None)


async def test_an_account_that_cannot_be_written_or_made_costs_nothing_else(
    autojump_clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node ends as soon as it does otherwise."""
    store = FaultyStore()
    async with running(store, expected=["the last outcomes could not", "the store cannot write"]) as rig:
        await rig.enqueue("a", ("hang", 1))
        await rig.actor.begun()
        store.broken = True
        begun = trio.current_time()
        rig.node.stop()
        await rig.over.wait()
        took = trio.current_time() - begun
        store.broken = False
        assert await store.accounts("n1") == []
        await store.rescue("n2", NOW + 1e6)

    def fails(*_: object) -> None:
        raise RuntimeError("no frames")

    monkeypatch.setattr(stops, "_tasks", fails)
    async with running(grace=0, lease=DAY, expected=["unforeseen exception"]) as rig:
        await rig.enqueue("a", ("stubborn", 99))
        await rig.actor.begun()
        rig.node.drain()
        await trio.sleep(CLEANUP)
        rig.node.abandon()
        await rig.node.settle_up()
        account = await account_of(rig)

    assert took <= 1 + 2 * CLEANUP
    assert [(one.job, one.end, one.line) for one in account.attempts] == [("a", "abandoned", None)]
