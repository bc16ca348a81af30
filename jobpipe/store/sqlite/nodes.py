"""The rows of nodes: their leases, and the kinds and queues that they serve."""

from collections.abc import Collection

import apsw

from jobpipe.store.base import NO_FACTS, NodeFacts
from jobpipe.store.sqlite.counts import mend_loudly
from jobpipe.store.sqlite.rows import as_json, transaction

_JOIN = """
insert into nodes (name, lease_until, kinds, queues, joined_at, lease, workers, version)
values (?, ?, ?, ?, ?, ?, ?, ?)
on conflict (name) do update set
    lease_until = excluded.lease_until,
    kinds = excluded.kinds,
    queues = excluded.queues,
    lease = excluded.lease,
    workers = excluded.workers,
    version = excluded.version,
    lost_at = null
"""
_LEAVE = "update nodes set lease_until = null where name = ?"
_END_LEASES = """
update nodes
set lost_at = lease_until - coalesce(lease, 0), lease_until = null
where lease_until is not null
"""


class Nodes:
    """Each method is one transaction."""

    def __init__(self, db: apsw.Connection) -> None:
        self.db = db

    def join(
        self,
        node: str,
        lease_until: float,
        kinds: Collection[str] = (),
        queues: Collection[str] | None = None,
        *,
        now: float | None = None,
        facts: NodeFacts = NO_FACTS,
    ) -> None:
        """See `jobpipe.store.base.EngineStore.join`."""
        named = None if queues is None else as_json(queues)
        with transaction(self.db):
            lease = None if now is None else lease_until - now
            known = (now, lease, facts.workers, facts.version)
            self.db.execute(_JOIN, (node, lease_until, as_json(kinds), named, *known))
            mend_loudly(self.db)

    def leave(self, node: str) -> None:
        """See `jobpipe.store.base.EngineStore.leave`. The row stays: attempts are shown with the node's name."""
        with transaction(self.db):
            self.db.execute(_LEAVE, (node,))

    def end_leases(self) -> None:
        """End every lease: the lock on the file proves that their nodes are dead."""
        with transaction(self.db):
            self.db.execute(_END_LEASES)
