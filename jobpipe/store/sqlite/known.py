"""What the writer knows of the file. It is locked, so what only this writer changes need not be asked for again."""

from collections.abc import Collection, Sequence

import apsw
import msgspec

from jobpipe.store.base import ClaimRequest
from jobpipe.store.sqlite.counts import CountChanges, waiting
from jobpipe.store.sqlite.rows import fetch, fetch_one

_NODE = "select node from nodes where name = ? and lease_until is not null"
_SET = """
select
    exists (select 1 from queues where paused = 1),
    exists (select 1 from queues where gated = 1),
    exists (select 1 from queues where gated = 1 and lining_up = 1)
"""
_GATED = "select name from queues where gated = 1"
_IS_PAUSED = "select exists (select 1 from queues where name = ? and paused = 1)"
_ORDERED = "select name from queues where key_order is not null"
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
NONE_GATED = frozenset[str]()
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
    union all
    select min(until)
    from lanes
    where until is not null
)
"""


class Known:
    """Asked for once, and kept until it changes here, or is to be forgotten."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self.forget()

    def forget(self) -> None:
        """Ask the database for everything again: somebody else has written, or a transaction was undone."""
        self._set: tuple[bool, bool, bool] | None = None
        self._gated: frozenset[str] | None = None
        self._opens_at: float | None = None
        self._closed: frozenset[str] | None = None
        self._ordered: frozenset[str] | None = None
        self._served: Sequence[frozenset[str]] | None = None
        self._nodes: dict[str, int] = {}
        self._waiting: int | None = None
        self._next_due: float | None = None
        self._due_known = False
        self._followed: frozenset[int] | None = None
        self._drained: set[tuple[frozenset[str], frozenset[str] | None]] = set()

    @property
    def _any_set(self) -> tuple[bool, bool, bool]:
        if self._set is None:
            paused, gated, lining_up = self._db.execute(_SET).fetchall()[0]
            self._set = bool(paused), bool(gated), bool(lining_up)
        return self._set

    def paused(self) -> bool:
        """Whether a queue is paused."""
        return self._any_set[0]

    def lining_up(self) -> bool:
        """Whether jobs of a gated queue are not in their lanes yet."""
        return self._any_set[2]

    def gated(self) -> frozenset[str]:
        """The queues whose jobs stand in lanes."""
        if not self._any_set[1]:
            return NONE_GATED
        if self._gated is None:
            self._gated = frozenset(name for (name,) in fetch(self._db, _GATED))
        return self._gated

    def ordered(self) -> frozenset[str]:
        """The queues whose keys keep order: some of those that are gated."""
        if not self._any_set[1]:
            return NONE_GATED
        if self._ordered is None:
            self._ordered = frozenset(name for (name,) in fetch(self._db, _ORDERED))
        return self._ordered

    def gates_changed(self) -> None:
        """A queue was gated, or the jobs of one that is are in their lanes now."""
        self._set = self._gated = None
        self.ready_changed()

    def opens_at(self, at: float) -> None:
        """The rate of a queue allows its next job at a time, so far as it has one."""
        self._opens_at = at if self._opens_at is None else min(self._opens_at, at)

    def is_paused(self, queue: str) -> bool:
        """Whether this queue is paused."""
        return self.paused() and bool(self._db.execute(_IS_PAUSED, (queue,)).get)

    def pauses_changed(self) -> None:
        """A queue was resumed."""
        self._set = None
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
        """When the next job is to be promoted or expired, the next pause ends, or a limit allows a job again."""
        if not self._due_known:
            self._next_due, self._due_known = self._db.execute(_NEXT_DUE).get, True
        if self._opens_at is None:
            return self._next_due
        return self._opens_at if self._next_due is None else min(self._next_due, self._opens_at)

    def due_changed(self) -> None:
        """A job came or went that waits for a time."""
        self._due_known = False

    def came_due(self, now: float) -> None:
        """What was due by now was done."""
        self._due_known = False
        if self._opens_at is not None and self._opens_at <= now:
            self._opens_at = None
        self._drained.clear()

    def none_ready(self, claim: ClaimRequest) -> bool:
        """Whether a claim like this one found all there was, and no job has become ready since."""
        return (claim.kinds, claim.names) in self._drained

    def took_all(self, claim: ClaimRequest) -> None:
        """A claim found all that was ready of its kinds and queues."""
        self._drained.add((claim.kinds, claim.names))

    def ready_changed(self) -> None:
        """A job became ready, in a queue that is not paused."""
        self._drained.clear()
