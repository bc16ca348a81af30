"""What a node proves of itself: that the store can be read and written, and that ready jobs are taken."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal

import msgspec
import trio

from jobpipe.engine.channel import Channel
from jobpipe.engine.node import Node
from jobpipe.errors import JobpipeError
from jobpipe.job import Status
from jobpipe.store.base import Overview, Unserved

PATIENCE = 2.0
"""Seconds that all of it may take: `jobpipe health` and the HEALTHCHECK of the image wait for 3."""

SHORTEST_NAP, LONGEST_NAP = 0.001, 0.05
"""Seconds between two looks."""

SILENT = "the store does not respond"


class Proof(msgspec.Struct, frozen=True):
    """What a probe came to."""

    status: Literal["ok", "broken", "starting", "draining", "stopped"]
    busy: int
    """how many handlers run"""
    counts: dict[Status, int] | None
    """how many jobs have which status; None: the store did not tell"""
    unserved: Sequence[Unserved]
    detail: str | None
    """what is broken; where nothing is, what people should know anyway"""

    def count(self, status: Status) -> int | None:
        """How many jobs have a status; None when the store did not tell."""
        return None if self.counts is None else self.counts.get(status, 0)


async def prove(node: Node) -> Proof:
    """Probe a node now; takes at most `PATIENCE` seconds. While it starts or drains, only the store is read."""
    probe = Probe(node)
    with trio.move_on_after(PATIENCE):
        await probe.run()
    broken = probe.trouble()
    return Proof(
        status=node.phase if node.phase != "running" else "broken" if broken else "ok",
        busy=node.held.busy,
        counts=None if probe.seen is None else probe.seen.counts,
        unserved=probe.unserved,
        detail=broken or node.watchdog.trouble() or node.listener.trouble(),
    )


class Probe:
    """Checks one thing after another; `broken` says what a check that failed, or did not end, means."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.seen: Overview | None = None
        self.unserved: Sequence[Unserved] = ()
        self.broken: str | None = SILENT

    async def run(self) -> None:
        """Probe; while the node starts or drains, only whether the store can be read."""
        # From before the look at the queues: what is ready there may be taken meanwhile.
        claims = self._node.ledger.claims
        try:
            self.seen = await self._overview()
            self.unserved = await self._node.served.unserved()
        except JobpipeError as error:
            self.broken = f"the store cannot be read: {error}"
            return
        if self._node.phase == "running":
            self.broken = "the store does not complete a write"
            await self._written()
            trouble = self._node.ledger.trouble
            if trouble is not None:
                self.broken = f"the store cannot write: {trouble}"
                return
            self.broken = "jobs are ready and workers are idle, but no job is claimed"
            await self._taken(claims)
        self.broken = None

    def trouble(self) -> str | None:
        """What is broken, if anything; why the store does not respond, where writing it has told."""
        trouble = self._node.ledger.trouble
        return f"{SILENT}: {trouble}" if self.broken == SILENT and trouble else self.broken

    async def _written(self) -> None:
        """Wait until a transaction got through, or the ledger says why none can."""
        ledger = self._node.ledger
        commits = ledger.commits
        ledger.look()
        await _until(lambda: ledger.commits > commits or ledger.trouble is not None)

    async def _taken(self, claims: int) -> None:
        """Wait until the node has claimed jobs, as long as some are ready that an idle worker may take."""
        nap = SHORTEST_NAP
        while self.seen and self.seen.ready:
            if self._node.ledger.claims > claims or not self._idle():
                return
            await trio.sleep(nap)
            nap = min(LONGEST_NAP, nap * 2)
            with suppress(JobpipeError):  # another node may have taken them
                self.seen = await self._overview()

    def _idle(self) -> Sequence[Channel]:
        """The channels whose workers are not all busy."""
        return [channel for channel in self._node.channels if channel.free]

    async def _overview(self) -> Overview:
        """What the store has, for the idle workers; where there are none, for all of them."""
        queues = [channel.queues for channel in self._idle() or self._node.channels]
        named = [some for some in queues if some is not None]
        of = frozenset[str]().union(*named) if len(named) == len(queues) else None
        return await self._node.store.overview(self._node.registry.served, of)


async def _until(true: Callable[[], bool]) -> None:
    """Return when something is so that does not tell when it changes."""
    nap = SHORTEST_NAP
    while not true():
        await trio.sleep(nap)
        nap = min(LONGEST_NAP, nap * 2)
