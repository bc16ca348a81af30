"""The rows of nodes: their leases, and the kinds and queues that they serve."""

from jobpipe.store.base import NO_FACTS, NodeFacts
from jobpipe.store.postgres.address import Leases
from jobpipe.store.postgres.arrays import texts
from jobpipe.store.postgres.connections import KeptConnection
from jobpipe.store.postgres.connector import Connector
from jobpipe.store.postgres.counts import mend_loudly
from jobpipe.store.postgres.exchange import CLOCK, RENEW
from jobpipe.store.postgres.notifications import LISTENERS, READY, notify
from jobpipe.store.postgres.session import Session
from jobpipe.store.postgres.writer import clock_offset

_JOIN = """
insert into nodes (name, lease_until, kinds, queues, joined_at, lease, workers, version)
values (%(node)s, {until}, %(kinds)s, %(queues)s, {now}, %(lease)s, %(workers)s, %(version)s)
on conflict (name) do update set
    lease_until = excluded.lease_until,
    idle = false,
    kinds = excluded.kinds,
    queues = excluded.queues,
    lease = excluded.lease,
    workers = excluded.workers,
    version = excluded.version,
    lost_at = null
"""
_JOIN_BY = {
    "database": _JOIN.format(until=f"{CLOCK} + %(until)s", now=CLOCK),
    "caller": _JOIN.format(until="%(until)s", now="%(now)s"),
}
_LISTEN = "update nodes set listening = %(listening)s where name = %(node)s"
_ANY_LISTENING = """
select exists (
    select from nodes
    where lease_until is not null and listening and name <> %(node)s
)
"""
_LEAVE = "update nodes set lease_until = null, idle = false where name = %(node)s"


class Nodes:
    """Each method is a transaction of its own, or a few."""

    def __init__(self, connection: KeptConnection, leases: Leases, channel: str) -> None:
        self._connection, self._leases, self._channel = connection, leases, channel

    async def join(
        self,
        node: str,
        now: float,
        lease_until: float,
        kinds: frozenset[str] = frozenset(),
        queues: frozenset[str] | None = None,
        facts: NodeFacts = NO_FACTS,
    ) -> float:
        """See `jobpipe.store.base.EngineStore.join`. Returns how far the database's clock is ahead."""
        until = lease_until - now if self._leases == "database" else lease_until
        values = {
            "node": node,
            "until": float(until),
            "kinds": texts(sorted(kinds)),
            "queues": None if queues is None else texts(sorted(queues)),
            "now": float(now),
            "lease": float(lease_until - now),
            "workers": facts.workers,
            "version": facts.version,
        }
        await self._connection.run(_JOIN_BY[self._leases], values)
        await self._connection.transact(mend_loudly)
        return await self._connection.transact(clock_offset)

    def renew_from_thread(self, connector: Connector, node: str, now: float, lease_until: float) -> bool:
        """See `jobpipe.store.base.SharedStore.renew_from_thread`."""
        until = lease_until - now if self._leases == "database" else lease_until

        async def verb(session: Session) -> bool:
            values = {"until": float(until), "node": node}
            return await session.row(RENEW[self._leases], values) is not None

        return connector.transact_alone(verb)

    async def listen(self, node: str, *, listening: bool) -> None:
        """See `jobpipe.store.base.SharedStore.listen`."""

        async def verb(session: Session) -> None:
            session.run(_LISTEN, {"node": node, "listening": listening})
            notify(session, self._channel, [LISTENERS])

        await self._connection.transact(verb, repeatable=True)

    async def leave(self, node: str) -> None:
        """See `jobpipe.store.base.EngineStore.leave`. The row stays: attempts are shown with the node's name."""

        async def verb(session: Session) -> None:
            session.run(_LEAVE, {"node": node})
            notify(session, self._channel, [READY])  # what it handed back is for others to take

        await self._connection.transact(verb)


async def any_listening(session: Session, node: str) -> bool:
    """See `jobpipe.store.base.SharedStore.any_listening`."""
    row = await session.row(_ANY_LISTENING, {"node": node})
    return row is not None and row[0] is True
