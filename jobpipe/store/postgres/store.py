"""The store itself: each verb is one transaction as a rule, and is carried out whole though its caller is cancelled."""

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import trio

from jobpipe.errors import StoreError
from jobpipe.job import Job
from jobpipe.store.base import (
    NO_FACTS,
    QUEUES,
    Batch,
    Filter,
    NodeFacts,
    Notification,
    Overview,
    Page,
    Place,
    QueueState,
    Receipts,
    Retention,
    Unserved,
    Untold,
)
from jobpipe.store.postgres import reader
from jobpipe.store.postgres.address import Address, Leases, read_address
from jobpipe.store.postgres.background import beside
from jobpipe.store.postgres.connections import (
    BRIEF,
    INSISTENCE,
    READERS,
    SEARCH_PATIENCE,
    SEARCHERS,
    KeptConnection,
    ReadPool,
)
from jobpipe.store.postgres.connector import Connector, Limits
from jobpipe.store.postgres.failures import mapped
from jobpipe.store.postgres.listening import Listening
from jobpipe.store.postgres.looks import Looks
from jobpipe.store.postgres.nodes import Nodes, any_listening
from jobpipe.store.postgres.notifications import notify, tale_word
from jobpipe.store.postgres.opening import prepare, suited
from jobpipe.store.postgres.session import Session
from jobpipe.store.postgres.tables import Tables
from jobpipe.store.postgres.vacuum import Vacuum
from jobpipe.store.postgres.writer import Writer
from jobpipe.store.verbs.facade import SharedVerbs
from jobpipe.store.verbs.transaction import Transaction

R = TypeVar("R")

_WATCH = """
update live l
set watched = true
from jobs j
where j.id = %(id)s and l.seq = j.seq and not l.watched
"""


class PostgresStore(SharedVerbs):
    """See `jobpipe.store.base` for what each verb promises. Any number of nodes share one database."""

    durable = True

    def __init__(self, connector: Connector, leases: Leases, slot: int) -> None:
        super().__init__()
        self.name = connector.address.shown
        self.clock_offset = 0.0
        self._connector, self._leases = connector, leases
        # The engine's connection never waits for what people ask, nor for what keeps the house.
        self._engine_connection, self._other_connection = (
            KeptConnection(connector, lock=BRIEF),
            KeptConnection(connector, insists=INSISTENCE),
        )
        self._reading = ReadPool(connector, READERS, connector.limits.read)
        self._searching = ReadPool(connector, SEARCHERS, SEARCH_PATIENCE)
        self._channel = connector.address.channel
        self._slot = 2 * slot + 1  # for what goes over the other connection
        self._writer = Writer(self._engine_connection, 2 * slot, leases, self._channel)
        self._nodes = Nodes(self._other_connection, leases, self._channel)
        self._looks = Looks(self._other_connection, self._reading, self._channel)
        self.vacuum = Vacuum(connector)
        self._listening = Listening(connector)

    @property
    def listening(self) -> bool:
        """Whether news come at once."""
        return self._listening.up

    async def _transact(
        self, verb: Callable[[Transaction], Coroutine[Any, Any, R]], *, repeatable: bool = False
    ) -> R:
        async def whole(session: Session) -> R:
            return await verb(Tables(session, self._slot, self._leases, self._channel))

        return await self._other_connection.transact(whole, repeatable=repeatable)

    async def _look(self, verb: Callable[[Transaction], Coroutine[Any, Any, R]]) -> R:
        async def whole(session: Session) -> R:
            return await verb(Tables(session, self._slot, self._leases, self._channel))

        return await self._reading.read(whole)

    async def join(
        self,
        node: str,
        now: float,
        lease_until: float,
        kinds: frozenset[str] = frozenset(),
        queues: frozenset[str] | None = None,
        facts: NodeFacts = NO_FACTS,
    ) -> None:
        self.clock_offset = await self._nodes.join(node, now, lease_until, kinds, queues, facts)
        self._writer.forget(node)

    def renew_from_thread(self, node: str, now: float, lease_until: float) -> bool:
        return self._nodes.renew_from_thread(self._connector, node, now, lease_until)

    async def exchange(self, batch: Batch) -> Receipts:
        with trio.CancelScope(shield=True):  # whole, though it may be several transactions
            receipts = await self._writer.exchange(batch, self._connector.limits.lease)
        if batch.lease_until is not None and self._writer.offset is not None:
            self.clock_offset = self._writer.offset
        self.vacuum.count(hot=len(receipts.claimed) + len(batch.settlements), cold=0)
        return receipts

    async def prune(self, now: float, retained: Retention) -> int:
        pruned = await super().prune(now, retained)
        self.vacuum.count(hot=0, cold=pruned)
        await self._looks.prune(now)
        return pruned

    async def leave(self, node: str) -> None:
        await self._nodes.leave(node)

    async def paused(self) -> Sequence[str]:
        return await self._reading.read(reader.paused)

    async def listen(self, node: str, *, listening: bool) -> None:
        await self._nodes.listen(node, listening=listening)

    async def any_listening(self, node: str) -> bool:
        return await self._reading.read(lambda session: any_listening(session, node))

    async def tell_others(self, node: str, first: int, changes: Sequence[Untold], more: int) -> int:
        word, told = tale_word(node, first, changes, more)

        async def verb(session: Session) -> None:
            notify(session, self._channel, [word])

        await self._other_connection.transact(verb, repeatable=True)
        return told

    async def ask_look(self, job_id: str, claim: int, node: str, now: float) -> bool:
        return await self._looks.ask(job_id, claim, node, now)

    async def look(self, job_id: str, claim: int) -> bytes | None:
        return await self._looks.answer_of(job_id, claim)

    async def asked_looks(self, node: str) -> Sequence[tuple[str, int]]:
        return await self._looks.asked(node)

    async def answer_look(self, job_id: str, claim: int, node: str, answer: bytes) -> None:
        await self._looks.answer(job_id, claim, node, answer)

    async def watch(self, job_id: str) -> None:
        if "\0" not in job_id:
            await self._other_connection.run(_WATCH, {"id": job_id})

    def changes(self) -> AbstractAsyncContextManager[AsyncIterator[Notification]]:
        """See `jobpipe.store.base.SharedStore.changes`."""
        return self._listening.heard()

    async def get(self, job_id: str) -> Job | None:
        return await self._reading.read(lambda session: reader.one(session, job_id))

    async def jobs(self, where: Filter, limit: int, before: Place | None) -> Page:
        reading = self._reading if where.text is None else self._searching
        return await reading.read(lambda session: reader.listed(session, where, limit, before))

    async def queues(self, limit: int = QUEUES, after: str = "") -> Sequence[QueueState]:
        return await self._reading.read(lambda session: reader.queues(session, limit, after))

    async def queue(self, name: str) -> QueueState | None:
        return await self._reading.read(lambda session: reader.queue(session, name))

    async def overview(self, kinds: frozenset[str], queues: frozenset[str] | None = None) -> Overview:
        return await self._reading.read(lambda session: reader.overview(session, kinds, queues))

    async def kinds(self) -> frozenset[str]:
        return await self._reading.read(reader.kinds)

    async def served_queues(self) -> frozenset[str] | None:
        return await self._reading.read(reader.served_queues)

    async def unserved_queues(self, served: frozenset[str]) -> Sequence[str]:
        return await self._reading.read(lambda session: reader.unserved_queues(session, served))

    async def unserved(self) -> Sequence[Unserved]:
        return await self._reading.read(reader.unserved)

    async def ping(self) -> None:
        await self._reading.read(reader.ping)

    def close(self) -> None:
        """Close what is open."""
        self._engine_connection.close()
        self._other_connection.close()
        self._reading.close()
        self._searching.close()


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
    address, slot = await trio.to_thread.run_sync(_prepared, Connector(read_address(url), limits))
    connector = Connector(address, limits)
    store = PostgresStore(connector, leases, slot)
    async with beside(store.vacuum.run):
        try:
            yield store
        finally:
            store.close()


def _prepared(connector: Connector) -> tuple[Address, int]:
    """Make the database ready; returns the address as it has to be used, and a slot for counts of its own."""
    prepare(connector)
    with mapped(connector.address), connector.connect() as connection:
        query = f"select nextval('\"{connector.address.schema}\".slots')"
        row = connection.execute(query.encode()).fetchone()
        if row is None:
            raise StoreError(f"{connector.address.shown}: no slot for counts")
        return suited(connector.address, connection), int(row[0])
