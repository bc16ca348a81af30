"""Looks at jobs that run on another node: who asks, and who answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from jobpipe.engine.looks import PATIENCE, Look
from jobpipe.store.base import Notification
from tests.engine.conftest import running
from tests.engine.test_listener import Shared


@asynccontextmanager
async def asker() -> AsyncIterator[tuple[Any, Shared]]:
    store = Shared()
    async with running(store) as rig:
        yield rig.node.looks, store


async def look_at_own_job(rig: Any) -> bytes:
    """What this node answers of a job that it runs."""
    await rig.enqueue("a", "wait")
    await rig.actor.begun()
    return msgspec.json.encode(await rig.node.looks.here("a"))


async def test_a_node_answers_what_it_is_asked(autojump_clock: Any) -> None:
    """Of a job that it does not run, that it does not; whatever else waits for an answer gets one."""
    store = Shared()
    async with running(store) as rig:
        await rig.enqueue("a", "wait")
        await rig.actor.begun()
        store.asked += [("none", 7), ("a", 1), ("\x00", -1)]
        await store.tell.send(Notification("asked", id="another"))
        await trio.sleep(1)
        left_alone = len(store.asked)
        await store.tell.send(Notification("asked", id=rig.node.name))
        await trio.sleep(1)

    assert left_alone == 3
    assert store.asked == []
    assert store.answers["none", 7] == store.answers["\x00", -1] == b"null"
    look = msgspec.json.decode(store.answers["a", 1], type=Look)
    assert (look.job, look.claim, look.tree.tasks) == ("a", 1, 1)


async def test_an_answer_ends_the_wait_for_it(autojump_clock: Any) -> None:
    """With a notification, or without one a little later."""
    async with running(Shared()) as rig:
        told = await look_at_own_job(rig)
    async with asker() as (looks, store), trio.open_nursery() as nursery:

        async def answer(claim: int, tell: bool) -> None:
            await trio.sleep(1.1)
            store.answers["b", claim] = told
            if tell:
                await store.tell.send(Notification("answered"))

        took = []
        for claim in (1, 2):
            begun = trio.current_time()
            nursery.start_soon(answer, claim, claim == 1)
            look = await looks.elsewhere("b", claim, "other")
            took.append(trio.current_time() - begun)
            assert look == msgspec.json.decode(told, type=Look)

    assert store.questions == [("b", 1, "other"), ("b", 2, "other")]
    assert took == [pytest.approx(1.1, abs=0.05), pytest.approx(1.5, abs=0.05)]


async def test_a_dead_node_is_not_waited_for_and_a_silent_one_not_for_long(autojump_clock: Any) -> None:
    async with asker() as (looks, _):
        begun = trio.current_time()
        dead = await looks.elsewhere("b", 1, "dead")
        at_once = trio.current_time() - begun
        silent = await looks.elsewhere("b", 1, "other")
        in_the_end = trio.current_time() - begun
    async with running() as rig:
        alone = await rig.node.looks.elsewhere("b", 1, "other")

    assert (dead, at_once) == ("dead", 0)
    assert (silent, in_the_end) == ("silent", PATIENCE)
    assert alone == "dead"  # nobody else is there


@pytest.mark.parametrize(
    ("answer", "expected"), [(b"null", "gone"), (b"", "silent"), (b"{}", "silent"), (b"[" * 9999, "silent")]
)
async def test_a_strange_answer_is_none(autojump_clock: Any, answer: bytes, expected: str) -> None:
    async with asker() as (looks, store):
        store.answers["b", 1] = answer
        with capture_logs() as lines:
            look = await looks.elsewhere("b", 1, "other")

    assert look == expected
    assert len(lines) == (expected == "silent")
