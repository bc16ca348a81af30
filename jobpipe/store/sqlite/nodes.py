"""The rows of nodes: their leases, and the kinds and queues that they serve."""

from collections.abc import Collection

import apsw

from jobpipe.store.sqlite.counts import mend_loudly
from jobpipe.store.sqlite.rows import as_json, transaction

_JOIN = """
insert into nodes (name, lease_until, kinds, queues)
values (?, ?, ?, ?)
on conflict (name) do update set
    lease_until = excluded.lease_until,
    kinds = excluded.kinds,
    queues = excluded.queues
"""
_LEAVE = "update nodes set lease_until = null where name = ?"
_END_LEASES = "update nodes set lease_until = null"


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
    ) -> None:
        """See `jobpipe.store.base.EngineStore.join`."""
        named = None if queues is None else as_json(queues)
        with transaction(self.db):
            self.db.execute(_JOIN, (node, lease_until, as_json(kinds), named))
            mend_loudly(self.db)

    def leave(self, node: str) -> None:
        """See `jobpipe.store.base.EngineStore.leave`. The row stays: attempts are shown with the node's name."""
        with transaction(self.db):
            self.db.execute(_LEAVE, (node,))

    def end_leases(self) -> None:
        """End every lease: the lock on the file proves that their nodes are dead."""
        with transaction(self.db):
            self.db.execute(_END_LEASES)
