"""The counts, kept in the transaction that changes them."""

from collections import defaultdict

import apsw

from jobpipe.job import WAITING
from jobpipe.store.sqlite.values import execute_values

HELD = "held"
"""The state of a job that a node holds, whatever its status."""

_WRITE = (
    "insert into counts (queue, state, jobs, size) {values} "
    "on conflict (queue, state) do update set jobs = jobs + excluded.jobs, size = size + excluded.size"
)
_WRITE_TOTALS = (
    "insert into totals (state, jobs, size) {values} "
    "on conflict (state) do update set jobs = jobs + excluded.jobs, size = size + excluded.size"
)
_WAITING = "select coalesce(sum(jobs), 0) from totals where state in ('scheduled', 'queued', 'retrying')"


class Tally:
    """Gathers what a transaction does to the counts, and writes it at its end: rows for queues and states."""

    def __init__(self) -> None:
        self._jobs: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._size: defaultdict[tuple[str, str], int] = defaultdict(int)

    def move(self, queue: str, before: str | None, after: str | None, jobs: int = 1, size: int = 0) -> None:
        """Count jobs out of one state and into another; `size` in bytes is that of ended ones."""
        if before is not None:
            self._jobs[queue, before] -= jobs
        if after is not None:
            self._jobs[queue, after] += jobs
            if size:
                self._size[queue, after] += size

    def drop(self, queue: str, state: str, jobs: int, size: int) -> None:
        """Count ended jobs out, with their bytes."""
        self._jobs[queue, state] -= jobs
        self._size[queue, state] -= size

    @property
    def waiting(self) -> int:
        """By how many the jobs that wait, held by nobody, have become more."""
        return sum(jobs for (_, state), jobs in self._jobs.items() if state in WAITING)

    def write(self, db: apsw.Connection) -> None:
        """Add what was gathered to the table."""
        rows = [(*key, jobs, self._size[key]) for key, jobs in self._jobs.items() if jobs or self._size[key]]
        execute_values(db, _WRITE, rows)
        totals: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        for _, state, jobs, size in rows:
            totals[state][0] += jobs
            totals[state][1] += size
        execute_values(db, _WRITE_TOTALS, [(state, jobs, size) for state, (jobs, size) in totals.items()])


def waiting(db: apsw.Connection) -> int:
    """How many jobs wait and are held by nobody."""
    return int(db.execute(_WAITING).get)
