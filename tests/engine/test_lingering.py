"""Handlers that do not end when they should are named, and keep their workers."""

import pytest
import trio

from jobpipe.engine.lingering import PATIENCE
from jobpipe.handlers.registry import Handler
from tests.engine.conftest import running

NAMED = "a handler does not end: its worker cannot take another job"


class Stubborn:
    """A handler that ends when it is let go, whatever it is asked."""

    def __init__(self, kind: str, *, timeout: float | None = None) -> None:
        self.begun, self.release = trio.Event(), trio.Event()
        self.handler = Handler(
            kind=kind,
            function=self.run,
            is_async=True,
            takes_context=False,
            takes_payload=False,
            timeout=timeout,
        )

    async def run(self) -> None:
        self.begun.set()
        with trio.CancelScope(shield=True):
            await self.release.wait()


@pytest.mark.parametrize("asked_by", ["cancel", "timeout"])
async def test_a_handler_that_does_not_end_is_named_once_and_keeps_its_worker(autojump_clock, asked_by):
    stubborn = Stubborn("stubborn", timeout=60 if asked_by == "timeout" else None)
    async with running(handlers=[stubborn.handler], workers=1) as rig:
        await rig.enqueue("a", kind="stubborn", payload=b"null")
        await stubborn.begun.wait()
        await rig.enqueue("b")
        if asked_by == "timeout":
            await trio.sleep(60)
        else:
            await rig.node.control.cancel("a")
        soon = rig.node.lingering.attempts()
        await trio.sleep(10 * PATIENCE)
        (late,) = rig.node.lingering.attempts()
        named = [line for line in rig.log if line["event"] == NAMED]
        kept = rig.actor.runs == []
        stubborn.release.set()
        await rig.actor.begun()
        over = rig.node.lingering.attempts()

    assert soon == []
    assert late.lingers() == 10 * PATIENCE
    assert [(line["job"], line["kind"], line["asked_by"]) for line in named] == [("a", "stubborn", asked_by)]
    assert kept
    assert over == []


async def test_a_handler_that_runs_long_without_being_asked_to_end_is_left_alone(autojump_clock):
    stubborn = Stubborn("stubborn")
    async with running(handlers=[stubborn.handler], workers=1) as rig:
        await rig.enqueue("a", kind="stubborn", payload=b"null")
        await trio.sleep(10_000)
        found = rig.node.lingering.attempts()
        stubborn.release.set()

    assert found == []
    assert NAMED not in [line["event"] for line in rig.log]
