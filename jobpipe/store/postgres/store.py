"""The store itself: each verb is one function, run in one thread call, so it is atomic under cancellation."""

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import Concatenate, ParamSpec, TypeVar

import psycopg
import psycopg_pool
import structlog
import trio

from jobpipe.errors import StoreError
from jobpipe.job import Job
from jobpipe.store.base import Batch, Change, Filter, News, Page, QueueState, Receipts, Rescued, Retention
from jobpipe.store.postgres import reader
from jobpipe.store.postgres.address import Address, Leases, read_address
from jobpipe.store.postgres.beside import beside
from jobpipe.store.postgres.control import Control
from jobpipe.store.postgres.house import House
from jobpipe.store.postgres.line import Limits, Line, Lines, mapped
from jobpipe.store.postgres.listening import LOOK, Listening
from jobpipe.store.postgres.opening import prepare, suited
from jobpipe.store.postgres.session import Connection, Session
from jobpipe.store.postgres.vacuum import Vacuum
from jobpipe.store.postgres.writer import Writer

P = ParamSpec("P")
R = TypeVar("R")

READERS = 3
"""The most connections that read."""

AT_ONCE = 0.25
"""Seconds within which a read may be tried again."""

PATIENCE = 2.0
"""The most seconds that a read waits for a connection: who asks /health does not wait much longer."""

WATCH_EVERY = 0.25
"""Seconds between two looks for transactions that take too long."""

log = structlog.get_logger("jobpipe")


class PostgresStore:
    """See `jobpipe.store.base` for what each verb promises. Any number of nodes share one database."""

    durable = True

    def __init__(
        self, lines: Lines, leases: Leases, pool: psycopg_pool.ConnectionPool[Connection], slot: int
    ) -> None:
        self.name = lines.address.shown
        self.clock_offset = 0.0
        self._lines, self._leases, self._pool = lines, leases, pool
        # The engine's line never waits for what people ask, nor for what keeps the house.
        self._engine_line, self._other_line = Line(lines), Line(lines)
        channel = lines.address.channel
        self._writer = Writer(self._engine_line, 2 * slot, leases, channel)
        self._control = Control(self._other_line, 2 * slot + 1, channel)
        self._house = House(self._other_line, 2 * slot + 1, leases, channel)
        self.vacuum = Vacuum(lines)
        self._listening = Listening(lines)
        # Limiters of their own: handlers in threads must never starve the store, nor readers the writer.
        self._writing, self._changing = trio.CapacityLimiter(1), trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(READERS)

    @property
    def listening(self) -> bool:
        """Whether news come at once."""
        return self._listening.up

    async def _change(self, verb: Callable[[], R]) -> R:
        return await trio.to_thread.run_sync(verb, limiter=self._changing)

    async def _read(self, verb: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        def call() -> R:
            with mapped(self._lines.address):
                begun = time.monotonic()
                for _ in range(READERS):
                    try:
                        return self._once(lambda session: verb(session, *args, **kwargs))
                    except psycopg.OperationalError:
                        # The pool may have handed out a connection that was lost while it lay there: that fails
                        # at once. What took its time is not repeated.
                        if time.monotonic() > begun + AT_ONCE:
                            raise
                return self._once(lambda session: verb(session, *args, **kwargs))

        # A read changes nothing: who is cancelled need not wait for one that hangs.
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._reading)

    def _once(self, verb: Callable[[Session], R]) -> R:
        with self._pool.connection() as connection, self._lines.transaction(connection) as session:
            return verb(session)

    async def join(self, node: str, now: float, lease_until: float) -> None:
        self.clock_offset = await self._change(lambda: self._house.join(node, now, lease_until))
        await trio.to_thread.run_sync(self._writer.forget, node, limiter=self._writing)

    async def exchange(self, batch: Batch) -> Receipts:
        receipts = await trio.to_thread.run_sync(self._exchange, batch, limiter=self._writing)
        self.vacuum.count(len(receipts.claimed) + len(batch.settlements), len(batch.settlements))
        if self._writer.more_ready:
            self._listening.tell(LOOK)
        return receipts

    def _exchange(self, batch: Batch) -> Receipts:
        receipts = self._writer.exchange(batch, self._lines.limits.lease)
        if batch.lease_until is not None and self._writer.offset is not None:
            self.clock_offset = self._writer.offset
        return receipts

    async def rescue(self, node: str, now: float) -> Sequence[Rescued]:
        return await self._change(lambda: self._house.rescue(node, now))

    async def prune(self, now: float, retention: Retention) -> int:
        pruned = await self._change(lambda: self._house.prune(now, retention))
        self.vacuum.count(0, pruned)
        return pruned

    async def leave(self, node: str) -> None:
        await self._change(lambda: self._house.leave(node))

    async def cancel(self, ids: Sequence[str], now: float) -> Sequence[Change]:
        return await self._change(lambda: self._control.cancel(ids, now))

    async def retry(self, ids: Sequence[str], now: float) -> Sequence[Change]:
        return await self._change(lambda: self._control.retry(ids, now))

    async def delete(self, ids: Sequence[str]) -> Sequence[Change]:
        return await self._change(lambda: self._control.delete(ids))

    async def pause(self, queue: str) -> None:
        await self._change(lambda: self._control.pause(queue, paused=True))

    async def resume(self, queue: str) -> None:
        await self._change(lambda: self._control.pause(queue, paused=False))

    async def watch(self, job_id: str) -> None:
        await self._change(lambda: self._control.watch(job_id))

    def changes(self) -> AbstractAsyncContextManager[AsyncIterator[News]]:
        """See `jobpipe.store.base.SharedStore.changes`."""
        return self._listening.heard()

    async def get(self, job_id: str) -> Job | None:
        return await self._read(reader.one, job_id)

    async def jobs(self, where: Filter, limit: int, before: int | None) -> Page:
        return await self._read(reader.listed, where, limit, before)

    async def queues(self) -> Sequence[QueueState]:
        return await self._read(reader.queues)

    async def ping(self) -> None:
        await self._read(reader.ping)

    async def keep(self) -> None:
        """Cut connections that do not answer, for ever; so no thread waits longer than `Limits.transaction` says."""
        while True:
            await trio.sleep(WATCH_EVERY)
            if late := self._lines.deadlines.sever_late():
                log.warning("the database does not answer: its connections are cut", connections=late)

    def close(self) -> None:
        """Close what is open."""
        for line in (self._engine_line, self._other_line):
            line.close()


@asynccontextmanager
async def open_postgres(
    url: str, *, lease: float = 15.0, leases: Leases = "database", durable_commits: bool = True
) -> AsyncIterator[PostgresStore]:
    """Open a store in a database, whose tables are made when they are not there.

    `lease`: within so many seconds a dead connection has to be noticed. `leases`: whose clock they go by; the
    caller's is for tests with made-up times. Without `durable_commits` a commit does not wait for the server's disk.
    Raises `StoreError` when the database cannot be used.
    """
    limits = Limits(lease=lease, durable_commits=durable_commits)
    address, slot = await trio.to_thread.run_sync(_prepared, Lines(read_address(url), limits))
    lines = Lines(address, limits)
    with _pool(lines) as pool:
        store = PostgresStore(lines, leases, pool, slot)
        async with beside(store.keep, store.vacuum.run):
            try:
                yield store
            finally:
                store.close()


def _prepared(lines: Lines) -> tuple[Address, int]:
    """Make the database ready; returns the address as it has to be used, and a slot for counts that few others have."""
    prepare(lines)
    with mapped(lines.address), lines.connect() as connection:
        query = f"select nextval('\"{lines.address.schema}\".slots')"
        row = connection.execute(query.encode()).fetchone()
        if row is None:
            raise StoreError(f"{lines.address.shown}: no slot for counts")
        return suited(lines.address, connection), int(row[0])


@contextmanager
def _pool(lines: Lines) -> Iterator[psycopg_pool.ConnectionPool[Connection]]:
    """Connections that read, each from one state of the database."""

    def configure(connection: Connection) -> None:
        connection.autocommit = True
        lines.tune(connection)
        connection.read_only = True

    pool = psycopg_pool.ConnectionPool(
        lines.address.conninfo,
        connection_class=Connection,
        kwargs=lines.options,
        min_size=1,
        max_size=READERS,
        timeout=min(PATIENCE, lines.limits.statement),
        max_idle=300,
        reconnect_timeout=5,
        configure=configure,
        name="jobpipe-read",
        open=False,
    )
    pool.open()
    try:
        yield pool
    finally:
        with suppress(psycopg.Error):
            pool.close(timeout=1.0)
