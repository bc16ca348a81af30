"""What a verb may do to the rows of a database, in one transaction.

Each database has its own: it knows its tables, its locks and its notifications. A verb locks, decides, and saves.
It is written for the weaker database: others may change what it has not locked, at any time between two statements.

A verb is `async def`, since over a network it waits for answers. Over SQLite nothing in it waits: `at_once` runs it
whole, in whichever thread the connection is used.
"""

from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

import msgspec

from jobpipe.errors import StoreUnavailable
from jobpipe.job import Job, NewJob
from jobpipe.store.base import ClaimRequest, QueueState, Settlement
from jobpipe.store.rows import Row
from jobpipe.transitions import Stored

R = TypeVar("R")


class Overtaken(StoreUnavailable):
    """Something that was to be locked first became another session's meanwhile: undo it all, and try again."""


class DeadNodes(msgspec.Struct, frozen=True):
    """The jobs held by a node, other than `node`, whose lease has ended by `now`, or that has none."""

    node: str
    now: float


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """As much of a job as is needed to delete it."""

    seq: int
    queue: str
    state: str
    """what it counts as"""
    size: int
    tags: Sequence[str] | None
    """None: they cannot be read"""
    watched: str | None = None
    """the id of a job whose end somebody waits for"""
    followed: str | None = None
    """the id of a job for which other jobs may wait"""


class LinePlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where a job stands in line."""

    queue: str
    key: str | None
    """of its lane; None: it stands in none"""
    kind: str
    priority: int
    run_at: float
    seq: int


class Standing(msgspec.Struct, frozen=True):
    """How a job stands that others are to wait for."""

    seq: int
    status: str


class Ended(msgspec.Struct, frozen=True):
    """A job that others may wait for has ended, or was deleted, in this transaction."""

    seq: int
    id: str
    status: str
    """what it ended as, or `DELETED`"""


DELETED = "deleted"


class Transaction(Protocol):
    """The rows of a database within one transaction."""

    ended: list[Ended]
    """jobs that ended here and are followed: `followers.finish` does what follows, before the commit"""
    stopped: list[int]
    """numbers of jobs that were cancelled here, or asked to stop: so are their children, by the same"""
    closed: list[int]
    """numbers of groups that were closed here: it may be that they have ended"""

    async def rows(self, sql: str, values: Mapping[str, Any]) -> Sequence[Row]:
        """The rows of a statement in the shared dialect (see `jobpipe.store.verbs.dialect`)."""

    def run(self, sql: str, values: Mapping[str, Any]) -> None:
        """Carry out a statement in the shared dialect, at the latest with the commit."""

    async def lock(self, ids: Sequence[str]) -> Mapping[str, Stored]:
        """Those of the jobs that are there, with their ended attempts; nobody else changes them until the commit."""

    async def lock_claims(self, claims: Sequence[tuple[int, int]]) -> frozenset[tuple[int, int]]:
        """Those of the claims (seq, claim) under which jobs are held; they stay so until the commit."""

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """End held jobs, whose claims are locked."""

    async def lock_held(self, nodes: DeadNodes, limit: int) -> Sequence[Stored]:
        """At most so many jobs of dead nodes, without attempts, locked; also ends the leases that are over.

        Passes over jobs that somebody else has locked. Ask again until there are none: what cannot belong to a job
        is deleted on the way.
        """

    async def lock_standing(self, ids: Sequence[str]) -> Mapping[str, Standing]:
        """How those of the jobs stand that are there; none of them ends until the commit.

        It waits for a lock on one of them only while it holds none on the others: so it is in no deadlock.
        """

    async def lock_blocked(self, seqs: Sequence[int]) -> Mapping[int, Stored | None]:
        """Jobs that wait for others, or any that have not ended, by their numbers, without attempts, locked.

        None: the job has ended or is gone. Leaves out those that somebody else has locked, and waits for nobody.
        """

    async def twins(self, ids: Sequence[str]) -> Mapping[str, Job]:
        """Those of the jobs that are there, to be compared with new ones of the same ids."""

    async def first_ready(self, claim: ClaimRequest, now: float) -> Stored | None:
        """The ready job that a claim takes first, locked; None: there is none."""

    def save(self, changes: Sequence[tuple[Stored, Stored]]) -> None:
        """Write what locked jobs have become, and what follows: attempts, tags, counts, notifications.

        Raises `ForbiddenError` where a status may not follow another; then nothing is written.
        """

    async def add(self, jobs: Sequence[NewJob]) -> Sequence[str]:
        """Store new jobs, each unless its id is taken, with all that follows; returns the ids of those stored."""

    def block(self, jobs: Mapping[int, NewJob]) -> None:
        """Have new jobs, which are stored in this transaction, wait for others."""

    def follow(self, seqs: Sequence[int]) -> None:
        """Note of locked jobs, or new ones, that others wait for them: whoever ends them does what follows."""

    def erase(self, jobs: Sequence[Removal]) -> None:
        """Delete jobs with all that belongs to them, and count them out."""

    async def fail(self, stored: Stored, now: float, words: str) -> None:
        """End a job that cannot be saved as `failed`, with as little of its row as that takes.

        It is held, ready, or blocked.
        """

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """Where its body raises, what was done inside is undone, and that alone."""

    def blames(self, error: Exception) -> bool:
        """Whether an error is the fault of a row, not of the database."""

    def tell(self, what: str) -> None:
        """Notify other nodes at the commit, where there are any: `READY`, `PAUSED` or `SCHEDULES`."""

    async def queue(self, name: str) -> QueueState | None:
        """How a queue stands."""

    async def gate(self, queue: str) -> None:
        """Have each job of a queue stand in a lane from now on; those that are ready move there in bounded slices.

        Until a job has moved no claim takes it. The held ones count at once.
        """

    def move_up(self, lanes: Sequence[tuple[str, str]]) -> None:
        """Look again at these lanes (queue, key), of those queues that keep order: another job may be first there."""

    async def in_lanes(self, queue: str, keys: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        """How many jobs of keys are ready, and how many are held; a key that is left out has none."""

    async def mend_lanes(self, after: tuple[str, str], limit: int) -> tuple[str, str]:
        """Look at so many lanes (queue, key) that have ready jobs, behind one, and open those that are lost.

        Lost is a lane whose row is gone, or says what cannot be. Returns the last one; two empty texts: that was all.
        """

    async def held_in(self, queue: str, key: str | None = None) -> int:
        """How many jobs of a gated queue are held, or of one key in it."""

    async def rated_at(self, now: float) -> float:
        """The time by which rates go: that of the caller, or of the database."""

    async def first_in_line(self, queue: str, key: str) -> str | None:
        """The id of the job of a key that comes before all others where order counts; it may have to wait."""

    async def served_from(self, queue: str) -> frozenset[str]:
        """The kinds of which some live node takes jobs from a queue."""

    async def ahead(self, place: LinePlace, kinds: frozenset[str], limit: int) -> tuple[int, bool]:
        """How many ready jobs a claim of these kinds takes before one, in its queue or in its lane.

        Counted up to `limit`; and whether that is all of them.
        """

    def forget_queue(self, name: str) -> None:
        """Delete what was set for a queue and its counts, unless a job has come meanwhile."""

    def forget_empty(self, *, thoroughly: bool) -> None:
        """Gather what is scattered, and, `thoroughly`, delete counts that are zero and settings that say nothing.

        Some thousands of rows at a time.
        """

    async def mend_counts(self) -> None:
        """Count anew where the counts cannot be true."""

    async def try_alone(self, what: str) -> bool:
        """Whether this transaction alone may do something that others may be about, until its commit."""


READY = "ready"
"""Jobs may be ready."""

PAUSED = "paused"
"""A queue was paused."""

SCHEDULES = "schedules"
"""A schedule may be due earlier than it was."""


def at_once(verb: Coroutine[Any, Any, R]) -> R:
    """Run a verb over a database that never makes it wait."""
    try:
        verb.send(None)
    except StopIteration as end:
        result: R = end.value
        return result
    verb.close()
    raise RuntimeError("a verb waited, over a database that answers at once")
