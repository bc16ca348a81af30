"""Nodes that come and go while clients use each of them."""

import random
import signal
import time
from collections.abc import Mapping, Sequence

import trio

from tests.process.book import Book
from tests.process.clients import Clients, rule
from tests.process.conftest import Serve
from tests.process.judge import count_of_starts
from tests.process.running import Line, Service, until
from tests.process.test_crash import SEED

WORKERS = 8

CLOCKS = (-60, 0, 60)
"""By how many seconds the clocks of nodes are wrong."""

PAUSE = 0.3
"""The longest rest of a client, in seconds: three nodes start and end while they are used, on two cores."""


class Crew:
    """Nodes with clients at each, and what became of both."""

    def __init__(
        self, launch: Serve, nursery: trio.Nursery, rng: random.Random, *, rules: bool = False
    ) -> None:
        """`rules`: whether limits and a schedule are set, which hold as long as no node is without its database."""
        self._launch, self._nursery, self._rng, self._rules = launch, nursery, rng, rules
        self.book = Book()
        self.nodes: list[Service] = []
        self.deaths: dict[int, float] = {}
        """when nodes that were killed were seen dead, by pid"""
        self._clients: list[Clients] = []

    async def join(self, count: int = 1, **settings: object) -> None:
        """So many nodes more, started at once; clients use each as soon as it listens."""
        clocks = [self._rng.choice(CLOCKS) for _ in range(count)]
        nodes = [
            await self._launch(WORKERS=WORKERS, JOBPIPE_TEST_CLOCK=ahead, **settings) for ahead in clocks
        ]
        for node in nodes:
            await node.starts()
            if self._rules:
                await rule(node.http, self.book)
            clients = Clients(self.book, node.url, f"{SEED} {len(self._clients)}", pause=PAUSE)
            self._nursery.start_soon(clients.run)
            self.nodes.append(node)
            self._clients.append(clients)

    async def kill(self, node: Service) -> None:
        """End a node as kill -9 does."""
        node.signal(signal.SIGKILL)
        assert await node.ended() == -signal.SIGKILL
        self.deaths[node.process.pid] = time.monotonic()

    async def kill_in_its_start(self) -> None:
        """Start one node more, and kill it before it listens, or a little later."""
        node = await self._launch(WORKERS=WORKERS)
        await trio.sleep(self._rng.uniform(0, 1))
        await self.kill(node)

    async def answered(self) -> None:
        """Return when something more was acknowledged."""
        before = len(self.book.acknowledged)

        async def more() -> bool:
            return len(self.book.acknowledged) > before

        await until(more)

    def enough(self) -> None:
        """Let the clients come to an end."""
        for clients in self._clients:
            clients.enough()


def tell(what: str, jobs: Mapping[str, Line], lines: Sequence[Line]) -> None:
    """Say what came of it, for who looks."""
    print(f"{what}: {len(jobs)} jobs, {count_of_starts(lines)} runs, JOBPIPE_TEST_SEED={SEED}")  # noqa: T201 - shown with -s
