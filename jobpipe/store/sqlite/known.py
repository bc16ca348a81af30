"""What the writer knows of the file. It is locked, so what only this writer changes need not be asked for again."""

from collections.abc import Collection, Sequence

import apsw
import msgspec

from jobpipe.store.base import ClaimRequest
from jobpipe.store.sqlite.counts import CountChanges, waiting
from jobpipe.store.sqlite.rows import fetch, fetch_one

_NODE = "select node from nodes where name = ? and lease_until is not null"
_ANY_PAUSED = "select exists (select 1 from queues where paused = 1)"
_IS_PAUSED = "select exists (select 1 from queues where name = ? and paused = 1)"
_CLOSED = "select name from queues where closed = 1"
_SERVED = "select kinds from nodes where lease_until is not null and kinds <> '[]'"
_FOLLOWED = """
select on_seq from (select distinct on_seq from waits limit ?1)
union all
select seq from (select seq from members where ended is null limit ?1)
"""
_FOLLOWED_OF = """
select on_seq from waits where on_seq in (select value from json_each(?1))
union all
select seq from members where ended is null and seq in (select value from json_each(?1))
"""
KEPT = 1000
"""Of how many jobs it is remembered that others follow them, or groups; when there are more, the file is asked."""
_NEXT_DUE = """
select min(at)
from (
    select min(run_at) as at
    from jobs indexed by jobs_later
    where status in ('scheduled', 'retrying')
    union all
    select min(expires_at)
    from jobs
    where expires_at is not null and finished_at is null and held = 0
    union all
    select min(paused_until)
    from queues indexed by queues_ending
    where paused_until is not null
)
"""


class Known:
    """Asked for once, and kept until it changes here, or is to be forgotten."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self.forget()

    def forget(self) -> None:
        """Ask the database for everything again: somebody else has written, or a transaction was undone."""
        self._any_paused: bool | None = None
        self._closed: frozenset[str] | None = None
        self._served: Sequence[frozenset[str]] | None = None
        self._nodes: dict[str, int] = {}
        self._waiting: int | None = None
        self._next_due: float | None = None
        self._due_known = False
        self._followed: frozenset[int] | None = None
        self._drained: set[tuple[frozenset[str], frozenset[str] | None]] = set()

    def paused(self) -> bool:
        """Whether a queue is paused."""
        if self._any_paused is None:
            self._any_paused = bool(self._db.execute(_ANY_PAUSED).get)
        return self._any_paused

    def is_paused(self, queue: str) -> bool:
        """Whether this queue is paused."""
        return self.paused() and bool(self._db.execute(_IS_PAUSED, (queue,)).get)

    def pauses_changed(self) -> None:
        """A queue was resumed."""
        self._any_paused = None
        self.ready_changed()

    def closed(self) -> frozenset[str]:
        """The queues that take no new jobs."""
        if self._closed is None:
            self._closed = frozenset(name for (name,) in fetch(self._db, _CLOSED))
        return self._closed

    def node(self, name: str) -> int | None:
        """The number of a node that has a lease."""
        if name not in self._nodes and (row := fetch_one(self._db, _NODE, (name,))):
            self._nodes[name] = row[0]
        return self._nodes.get(name)

    def not_served_by_all(self, kinds: Collection[str]) -> set[str]:
        """Those of the kinds that some live node has no handler for: their jobs stand aside."""
        if self._served is None:
            self._served = [frozenset(msgspec.json.decode(served)) for (served,) in fetch(self._db, _SERVED)]
        return {kind for kind in kinds if any(kind not in served for served in self._served)}

    def any_followed(self) -> bool:
        """Whether others wait for any job."""
        return bool(self._first_followed)

    def followed(self, seqs: Collection[int]) -> Collection[int]:
        """Those of the jobs that others wait for. Costs no statement where there are few such jobs in the file."""
        if len(self._first_followed) <= KEPT:
            return self._first_followed.intersection(seqs)
        asked = msgspec.json.encode(list(seqs)).decode()
        return {row[0] for row in fetch(self._db, _FOLLOWED_OF, (asked,))}

    @property
    def _first_followed(self) -> frozenset[int]:
        if self._followed is None:
            self._followed = frozenset(row[0] for row in fetch(self._db, _FOLLOWED, (KEPT + 1,)))
        return self._followed

    def waiting(self, counts: CountChanges) -> int:
        """How many jobs wait after these changes, those held by nodes not counted."""
        self._waiting = waiting(self._db) if self._waiting is None else self._waiting + counts.waiting
        return self._waiting

    def next_due(self) -> float | None:
        """When the next job is to be promoted or expired, or the next pause ends."""
        if not self._due_known:
            self._next_due, self._due_known = self._db.execute(_NEXT_DUE).get, True
        return self._next_due

    def due_changed(self) -> None:
        """A job came or went that waits for a time."""
        self._due_known = False

    def none_ready(self, claim: ClaimRequest) -> bool:
        """Whether a claim like this one found all there was, and no job has become ready since."""
        return (claim.kinds, claim.names) in self._drained

    def took_all(self, claim: ClaimRequest) -> None:
        """A claim found all that was ready of its kinds and queues."""
        self._drained.add((claim.kinds, claim.names))

    def ready_changed(self) -> None:
        """A job became ready, in a queue that is not paused."""
        self._drained.clear()
