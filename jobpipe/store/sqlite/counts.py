"""The counts, kept in the transaction that changes them."""

from collections import defaultdict

import apsw
import structlog

from jobpipe.job import WAITING
from jobpipe.store.rows import LARGEST, plausible
from jobpipe.store.sqlite.values import execute_values

log = structlog.get_logger("jobpipe")

HELD = "held"
"""The state of a job that a node holds, whatever its status."""

# A sum beyond 64 bits, of counts that were damaged, would be a real number, which the table refuses.
_WRITE = """
insert into counts (queue, state, jobs, size)
{values}
on conflict (queue, state) do update set
    jobs = cast(jobs + excluded.jobs as integer),
    size = cast(size + excluded.size as integer)
"""
_WRITE_TOTALS = """
insert into totals (state, jobs, size)
{values}
on conflict (state) do update set
    jobs = cast(jobs + excluded.jobs as integer),
    size = cast(size + excluded.size as integer)
"""
_WAITING = """
select cast(total(jobs) as integer)
from totals
where state in ('blocked', 'scheduled', 'queued', 'retrying')
"""


class CountChanges:
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
                self._size[queue, after] += size if 0 < size < LARGEST else plausible(size)

    def drop(self, queue: str, state: str, jobs: int, size: int) -> None:
        """Count ended jobs out, with their bytes."""
        self._jobs[queue, state] -= jobs
        self._size[queue, state] -= plausible(size)

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


# Both tables come to the same in each transaction.
_NONSENSE = """
select exists (
        select 1
        from counts
        where jobs < 0
            or size < 0
            or size > 1e15
            or jobs > (select coalesce(max(seq), 0) from jobs)
    )
    or (select total(jobs) from counts) <> (select total(jobs) from totals)
    or (select total(size) from counts) <> (select total(size) from totals)
"""
_COUNT = """
insert into counts (queue, state, jobs, size)
select
    queue,
    iif(held = 1, 'held', status),
    count(*),
    sum(iif(finished_at is null, 0, length(payload) + coalesce(length(result), 0) + coalesce(length(error), 0)))
from jobs
group by 1, 2
"""
_COUNT_TOTALS = """
insert into totals (state, jobs, size)
select state, sum(jobs), sum(size)
from counts
group by state
"""
_RECOUNT = ("delete from counts", "delete from totals", _COUNT, _COUNT_TOTALS)


def mend_loudly(db: apsw.Connection) -> None:
    """Count everything anew where the counts cannot be true, since a row of them was damaged; the log says so."""
    if not db.execute(_NONSENSE).get:
        return
    for sql in _RECOUNT:
        db.execute(sql)
    log.error("the counts of jobs could not be true, and were made anew from the jobs")


def waiting(db: apsw.Connection) -> int:
    """How many jobs wait and are held by nobody."""
    return int(db.execute(_WAITING).get)
