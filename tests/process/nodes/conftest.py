"""Several real nodes over one PostgreSQL, each test in a schema of its own."""

from collections.abc import Awaitable, Callable, Iterator, Sequence

import pytest

from tests.process.conftest import Serve
from tests.process.running import PATIENCE, Service
from tests.store.server import new_schema, server_url, with_query

Start = Callable[..., Awaitable[Sequence[Service]]]

LEASE = 4
"""Seconds: a test that kills a node waits so long, and a machine with much else to do must not lose one."""


@pytest.fixture
def database() -> Iterator[str]:
    """The address of the store that all nodes of the test share; empty at first."""
    with new_schema() as schema:
        yield with_query(server_url(), schema=schema)


@pytest.fixture
def launch(launch: Serve, database: str) -> Serve:
    """Start a node; does not wait until it listens. `serve` does."""

    async def launched(*arguments: str, **settings: object) -> Service:
        own = {"STORE": database, "LEASE": LEASE, "HANDLERS": "traced,odd"}
        return await launch(*arguments, **(own | settings))

    return launched


@pytest.fixture
def start(launch: Serve) -> Start:
    """Start some nodes at once; all listen when this returns."""

    async def started(count: int, **settings: object) -> Sequence[Service]:
        nodes = [await launch(**settings) for _ in range(count)]
        for node in nodes:
            await node.starts(PATIENCE + count * PATIENCE / 5)  # they share the processors
        return nodes

    return started
