"""The counts, kept in the transaction that changes them, in the slot of who writes.

What an exchange does, it counts in the very statements that do it (`counting`); the rarer verbs gather in a `Tally`.
"""

from collections import defaultdict

from jobpipe.job import Status
from jobpipe.store.postgres.parameters import integers, texts
from jobpipe.store.postgres.session import Session

_ADDED = (
    "on conflict (queue, state, slot) do update set jobs = counts.jobs + excluded.jobs, "
    "size = counts.size + excluded.size"
)
_ADDED_TO_TOTALS = (
    "on conflict (state, slot) do update set "
    "jobs = totals.jobs + excluded.jobs, size = totals.size + excluded.size"
)
# What calls of enqueue() and writers before us have left becomes ours. A writer that is at it now is passed over.
_FOLD = (
    "with old as (delete from counts where (queue, state, slot) in "
    "(select queue, state, slot from counts where slot <> %s and (slot < 0 or %s) limit %s for update skip locked) "
    "returning queue, state, slot, jobs, size), "
    "called as (insert into totals (state, slot, jobs, size) "
    "select state, %s, sum(jobs), sum(size) from old where slot < 0 group by state order by state "
    f"{_ADDED_TO_TOTALS}) "
    "insert into counts (queue, state, slot, jobs, size) "
    f"select queue, state, %s, sum(jobs), sum(size) from old group by queue, state {_ADDED}"
)
_FOLD_TOTALS = (
    "with old as (delete from totals where (state, slot) in "
    "(select state, slot from totals where slot <> %s limit %s for update skip locked) returning state, jobs, size) "
    "insert into totals (state, slot, jobs, size) "
    f"select state, %s, sum(jobs), sum(size) from old group by state {_ADDED_TO_TOTALS}"
)
FOLDED = 10_000
"""The most rows that one fold takes."""

# Rows in which nothing is left, and queues of which nothing is set.
_FORGET = (
    "delete from counts where (queue, state, slot) in (select queue, state, slot from counts "
    "where jobs = 0 and size = 0 limit %s for update skip locked)"
)
_FORGET_QUEUES = (
    "delete from queues where name in "
    "(select name from queues where not paused limit %s for update skip locked)"
)


def counting(moves: str) -> str:
    """The part of a statement that counts what its other parts did; its last value is the slot.

    `moves` selects queue, state, jobs (how many more there are in it) and size (of ended ones).
    """
    return (
        # In one order: a prune may be gathering them.
        "moved as (select queue, state, %s::bigint as slot, sum(jobs) as jobs, sum(size) as size "
        f"from ({moves}) as m (queue, state, jobs, size) group by queue, state order by queue, state), "
        "counted as (insert into counts (queue, state, slot, jobs, size) "
        f"select queue, state, slot, jobs, size from moved {_ADDED}), "
        "totalled as (insert into totals (state, slot, jobs, size) select state, slot, sum(jobs), sum(size) "
        f"from moved group by state, slot order by state {_ADDED_TO_TOTALS})"
    )


_WRITE = f"with {counting('select * from unnest(%s, %s, %s, %s)')} select 1"


class Tally:
    """Gathers what a transaction does to the counts, and writes it at its end: a row a queue and state.

    A state of None is that of a job which a node holds, or which is not there.
    """

    def __init__(self, slot: int) -> None:
        self._slot = slot
        self._jobs: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._size: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.readied = 0
        """how many jobs became ready"""

    def move(self, queue: str, before: str | None, after: str | None, jobs: int = 1, size: int = 0) -> None:
        """Count jobs out of one state and into another; `size` in bytes is that of ended ones."""
        if before is not None:
            self._jobs[queue, before] -= jobs
        if after is not None:
            self._jobs[queue, after] += jobs
            if size:
                self._size[queue, after] += size
        if after == Status.QUEUED:
            self.readied += jobs

    def drop(self, queue: str, state: str, jobs: int, size: int) -> None:
        """Count ended jobs out, with their bytes."""
        self._jobs[queue, state] -= jobs
        self._size[queue, state] -= size

    def write(self, session: Session) -> None:
        """Add what was gathered to the table."""
        rows = [(*key, jobs, self._size[key]) for key, jobs in self._jobs.items() if jobs or self._size[key]]
        if rows:
            # In one order: a prune may be gathering them.
            queues, states, jobs, sizes = zip(*sorted(rows), strict=True)
            session.run(_WRITE, (self._slot, texts(queues), texts(states), integers(jobs), integers(sizes)))


def fold(session: Session, slot: int, *, all_slots: bool) -> None:
    """Gather counts that are scattered over many rows."""
    session.run(_FOLD, (slot, all_slots, FOLDED, slot, slot))
    if all_slots:
        session.run(_FOLD_TOTALS, (slot, FOLDED, slot))


def forget_empty(session: Session) -> None:
    """Delete what tells nothing, at most `FOLDED` rows: then queues that are empty and not paused are forgotten."""
    session.run(_FORGET, (FOLDED,))
    session.run(_FORGET_QUEUES, (FOLDED,))
