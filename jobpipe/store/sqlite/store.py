"""The store itself: each verb is one function, run in one thread call, so it is atomic under cancellation."""

from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec, TypeVar

import apsw
import structlog
import trio

from jobpipe.store.base import Filter, Page, Place
from jobpipe.store.sqlite import reader
from jobpipe.store.sqlite.database import POOLS, Database, Pool, open_database
from jobpipe.store.sqlite.nodes import Nodes
from jobpipe.store.sqlite.opening import mapped
from jobpipe.store.sqlite.thread import OwnThread, own_thread
from jobpipe.store.sqlite.verbs import Verbs
from jobpipe.store.sqlite.writer import Writer

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger("jobpipe")


class SqliteStore(Verbs):
    """See `jobpipe.store.base` for what each verb promises. The file is locked: this process is its only node."""

    durable = True

    def __init__(self, database: Database, thread: OwnThread) -> None:
        super().__init__()
        self.name = f"sqlite:{database.path}"
        self._database, self._thread = database, thread
        self._prepare()
        # Like the writer's own thread: handlers in threads must never starve the store, nor readers the writer.
        self._limiters = {pool: trio.CapacityLimiter(readers) for pool, readers in POOLS.items()}

    def _prepare(self) -> None:
        self._writer, self._nodes = Writer(self._database.writer), Nodes(self._database.writer)

    async def _write(self, verb: Callable[[], R]) -> R:
        return await self._thread.run(lambda: self._written(verb))

    def _written(self, verb: Callable[[], R]) -> R:
        with mapped(self._database.path):
            try:
                if after := self._database.ready():
                    self._prepare()
                    log.warning("reopened the store", store=self.name, after=after)
                done = verb()
            except apsw.IOError as error:
                self._database.doubt(error)
                raise
        self._database.checkpoint()
        return done

    async def _read(
        self, verb: Callable[Concatenate[apsw.Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        return await self._read_in("read", lambda connection: verb(connection, *args, **kwargs))

    async def _read_in(self, pool: Pool, verb: Callable[[apsw.Connection], R]) -> R:
        def call() -> R:
            with self._database.reader(pool) as connection, mapped(self._database.path):
                return verb(connection)

        # A read changes nothing, so a caller that is cancelled need not wait for one that hangs.
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiters[pool])

    async def jobs(self, where: Filter, limit: int, before: Place | None) -> Page:
        pool: Pool = "read" if where.text is None else "search"
        return await self._read_in(pool, lambda db: reader.listed(db, where, limit, before))


@asynccontextmanager
async def open_sqlite(path: Path, *, sync: Literal["full", "normal"]) -> AsyncIterator[SqliteStore]:
    """Open a store in a file, made when it is not there.

    `sync`: `full` syncs each commit to the disk, so that it survives a power cut; `normal` leaves that to the
    system, so that it survives the end of the process. Raises `StoreError` when the file cannot be used.
    """
    with ExitStack() as stack:
        database = await trio.to_thread.run_sync(stack.enter_context, open_database(path, sync))
        store = SqliteStore(database, stack.enter_context(own_thread("jobpipe-sqlite")))
        await store._change(store._nodes.end_leases)  # noqa: SLF001 - this is the store's own constructor
        yield store
