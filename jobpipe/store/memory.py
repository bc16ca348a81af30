"""The memory store: SQLite without a file and without a thread, so it follows virtual time. Gone with the process."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Concatenate, ParamSpec, TypeVar

import apsw
from trio.lowlevel import checkpoint

from jobpipe.store.migrations import migrations
from jobpipe.store.sqlite.nodes import Nodes
from jobpipe.store.sqlite.opening import mapped
from jobpipe.store.sqlite.verbs import Verbs
from jobpipe.store.sqlite.writer import Writer

P = ParamSpec("P")
R = TypeVar("R")


class MemoryStore(Verbs):
    """See `jobpipe.store.base` for what each verb promises. Several nodes of one process may share it.

    A verb runs in the event loop, after one checkpoint: a cancel comes before anything was done, or too late.
    """

    name = "memory:"
    durable = False

    def __init__(self) -> None:
        super().__init__()
        self._db = apsw.Connection(":memory:")
        make_tables(self._db)
        self._writer, self._nodes = Writer(self._db), Nodes(self._db)

    async def _write(self, verb: Callable[[], R]) -> R:
        await checkpoint()
        with mapped(self.name):
            return verb()

    async def _read(
        self, verb: Callable[Concatenate[apsw.Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        await checkpoint()
        with mapped(self.name):
            return verb(self._db, *args, **kwargs)

    def close(self) -> None:
        """Give the memory back."""
        self._db.close()


def make_tables(db: apsw.Connection) -> None:
    """Make the tables of this version in an empty database."""
    for _, sql in migrations("jobpipe.store.sqlite"):
        db.execute(sql)


@asynccontextmanager
async def open_memory() -> AsyncIterator[MemoryStore]:
    """Open an empty store, for the length of the context."""
    store = MemoryStore()
    try:
        yield store
    finally:
        store.close()
