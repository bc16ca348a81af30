"""Every store, fresh for each test. A store more is a line more in OPENERS."""

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from jobpipe.store.base import Store
from jobpipe.store.memory import open_memory
from jobpipe.store.postgres import open_postgres
from jobpipe.store.sqlite import open_sqlite
from tests.store.server import empty_schema, new_schema, server_url, with_query

Opener = Callable[[], AbstractAsyncContextManager[Store]]


@asynccontextmanager
async def _open_schema() -> AsyncIterator[Store]:
    """A store in a schema that nobody else uses; leases go by the made-up times of the tests."""
    with empty_schema() as schema:
        async with open_postgres(with_query(server_url(), schema=schema), leases="caller") as store:
            yield store


OPENERS: dict[str, Callable[[Path], AbstractAsyncContextManager[Store]]] = {
    "memory": lambda _folder: open_memory(),
    "postgres": lambda _folder: _open_schema(),
    "sqlite": lambda folder: open_sqlite(folder / "jobs.db", sync="normal"),
}

# A store without a file is the same SQLite: over a file the tests are slow ones.
EACH_STORE = [pytest.param(name, marks=[pytest.mark.slow] * (name == "sqlite")) for name in sorted(OPENERS)]

# Many more and longer lives of jobs than in each run: pytest tests/store --hypothesis-profile=thorough
settings.register_profile("thorough", max_examples=1000, stateful_step_count=80, deadline=None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long over PostgreSQL is a slow test there, and runs each time over a store without a file."""
    for item in items:
        if item.get_closest_marker("long") and "[postgres" in item.name:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def schema() -> Iterator[str]:
    """A schema of PostgreSQL that is not there yet."""
    with new_schema() as name:
        yield name


@pytest.fixture(params=EACH_STORE)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens an empty store each time it is called."""
    numbers = itertools.count()

    def opened() -> AbstractAsyncContextManager[Store]:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        return OPENERS[request.param](folder)

    return opened


@pytest.fixture
async def store(open_store: Opener) -> AsyncIterator[Store]:
    """An empty store."""
    async with open_store() as opened:
        yield opened
