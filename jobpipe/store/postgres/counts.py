"""The counts, kept in the transaction that changes them, in the slot of who writes.

What an exchange does, it counts in the very statements that do it (`counting`); the rarer verbs gather it in
`CountChanges`.
"""

from collections import defaultdict

import structlog

from jobpipe.job import Status
from jobpipe.store.postgres.arrays import integers, texts
from jobpipe.store.postgres.session import Session
from jobpipe.store.rows import plausible

log = structlog.get_logger("jobpipe")


def bounded(total: str) -> str:
    """A sum as a whole number that is never too large for its column, though a row in it was damaged."""
    return f"least(greatest({total}, -1e15), 1e15)::bigint"


# A row that was damaged must not outgrow its column: every later write would fail.
_ADDED = """
on conflict ({key}) do update set
    jobs = least(greatest({table}.jobs, -1000000000000000), 1000000000000000) + excluded.jobs,
    size = least(greatest({table}.size, -1000000000000000), 1000000000000000) + excluded.size
"""
_ADDED_TO_COUNTS = _ADDED.format(table="counts", key="queue, state, slot")
_ADDED_TO_TOTALS = _ADDED.format(table="totals", key="state, slot")
_JOBS, _SIZE = bounded("sum(jobs)"), bounded("sum(size)")

# What calls of enqueue() and writers before us have left becomes ours. A writer that is at it now is passed over.
_FOLD = f"""
with old as (
    delete from counts
    where (queue, state, slot) in (
        select queue, state, slot
        from counts
        where slot <> %(slot)s and (slot < 0 or %(all_slots)s)
        limit %(most)s
        for update skip locked
    )
    returning queue, state, slot, jobs, size
),
called as (
    insert into totals (state, slot, jobs, size)
    select state, %(slot)s, {_JOBS}, {_SIZE}
    from old
    where slot < 0
    group by state
    order by state
    {_ADDED_TO_TOTALS}
)
insert into counts (queue, state, slot, jobs, size)
select queue, state, %(slot)s, {_JOBS}, {_SIZE}
from old
group by queue, state
{_ADDED_TO_COUNTS}
"""
_FOLD_TOTALS = f"""
with old as (
    delete from totals
    where (state, slot) in (
        select state, slot
        from totals
        where slot <> %(slot)s
        limit %(most)s
        for update skip locked
    )
    returning state, jobs, size
)
insert into totals (state, slot, jobs, size)
select state, %(slot)s, {_JOBS}, {_SIZE}
from old
group by state
{_ADDED_TO_TOTALS}
"""
FOLDED = 10_000
"""The most rows that one fold takes."""

# Rows in which nothing is left, and queues of which nothing is set: one without limits is gated no more once it has no
# lanes and none of its jobs has a key.
_FORGET = """
delete from counts
where (queue, state, slot) in (
    select queue, state, slot
    from counts
    where jobs = 0 and size = 0
    limit %(most)s
    for update skip locked
)
"""
_UNGATE = """
update queues
set gated = false, lining_up = false
where name in (
    select name
    from queues q
    where q.gated
        and coalesce(
            q.max_running, q.rate_limit, q.key_max_running, q.key_rate_limit
        ) is null
        and q.key_order is null
        and (select la.key from lanes la where la.queue = q.name order by la.key limit 1) is null
        and (
            select l.key
            from live l
            where l.key is not null and l.node is not null and l.queue = q.name
            order by l.key
            limit 1
        ) is null
        and (
            select l.key
            from live l
            where l.key is not null and l.status = 'queued' and l.node is null and l.queue = q.name
            order by l.key, l.kind, l.priority desc, l.run_at, l.seq
            limit 1
        ) is null
    limit %(most)s
    for update skip locked
)
"""
_FORGET_QUEUES = """
delete from queues
where name in (
    select name
    from queues
    where not paused
        and has_settings = 0
        and not gated
        and coalesce(max_running, rate_limit, key_max_running, key_rate_limit) is null
        and key_order is null
    limit %(most)s
    for update skip locked
)
"""


def counting(moves: str) -> str:
    """The part of a statement that counts what its other parts did, in the slot `%(slot)s`.

    `moves` selects queue, state, jobs (how many more there are in it) and size (of ended ones).
    """
    # In one order: a prune may be gathering them.
    return f"""
moved as (
    select queue, state, %(slot)s::bigint as slot, sum(jobs) as jobs, sum(size) as size
    from ({moves}) as m (queue, state, jobs, size)
    group by queue, state
    order by queue, state
),
counted as (
    insert into counts (queue, state, slot, jobs, size)
    select queue, state, slot, jobs, size
    from moved
    {_ADDED_TO_COUNTS}
),
totalled as (
    insert into totals (state, slot, jobs, size)
    select state, slot, sum(jobs), sum(size)
    from moved
    group by state, slot
    order by state
    {_ADDED_TO_TOTALS}
)
"""


_GATHERED = "select * from unnest(%(queues)s, %(states)s, %(jobs)s, %(sizes)s)"
_WRITE = f"""
with {counting(_GATHERED)}
select 1
"""


class CountChanges:
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
                self._size[queue, after] += plausible(size)
        if after == Status.QUEUED:
            self.readied += jobs

    def drop(self, queue: str, state: str, jobs: int, size: int) -> None:
        """Count ended jobs out, with their bytes."""
        self._jobs[queue, state] -= jobs
        self._size[queue, state] -= plausible(size)

    def write(self, session: Session) -> None:
        """Add what was gathered to the table."""
        rows = [(*key, jobs, self._size[key]) for key, jobs in self._jobs.items() if jobs or self._size[key]]
        if rows:
            # In one order: a prune may be gathering them.
            queues, states, jobs, sizes = zip(*sorted(rows), strict=True)
            values = {
                "slot": self._slot,
                "queues": texts(queues),
                "states": texts(states),
                "jobs": integers(jobs),
                "sizes": integers(sizes),
            }
            session.run(_WRITE, values)


_NONSENSE = """
select exists (
        select from counts
        group by queue, state
        having sum(jobs) < 0
            or sum(size) < 0
            or sum(size) > 1e15
            or sum(jobs) > (select coalesce(max(seq), 0) from jobs)
    )
    -- Both tables come to the same in each transaction, but for calls of enqueue(), which come into the totals later.
    or (select coalesce(sum(jobs), 0) from counts where slot >= 0) <> (select coalesce(sum(jobs), 0) from totals)
    or (select coalesce(sum(size), 0) from counts where slot >= 0) <> (select coalesce(sum(size), 0) from totals)
"""
# Whoever writes counts is waited for and kept waiting; of what is not committed the counts come with its commit.
_LOCK_COUNTS = "lock table counts, totals in share row exclusive mode"
_RECOUNT_LIVE = """
insert into counts (queue, state, slot, jobs, size)
select queue, status, 0, count(*), 0
from live
where node is null
group by queue, status
"""
_RECOUNT_ENDED = """
insert into counts (queue, state, slot, jobs, size)
select
    j.queue, e.status, 0, count(*),
    sum(length(j.payload) + coalesce(length(e.result), 0) + coalesce(length(e.error), 0))
from ended e join jobs j on j.seq = e.seq
group by j.queue, e.status
on conflict do nothing
"""
_RECOUNT_TOTALS = """
insert into totals (state, slot, jobs, size)
select state, 0, sum(jobs), sum(size)
from counts
group by state
"""
_RECOUNT = (
    _LOCK_COUNTS,
    "delete from counts",
    "delete from totals",
    _RECOUNT_LIVE,
    _RECOUNT_ENDED,
    _RECOUNT_TOTALS,
)


async def mend_loudly(session: Session) -> None:
    """Count everything anew where the counts cannot be true, since a row of them was damaged; the log says so."""
    row = await session.row(_NONSENSE)
    if not row or not row[0]:
        return
    for sql in _RECOUNT:
        session.run(sql)
        await session.answered()  # each sees what those it waited for have committed
    log.error("the counts of jobs could not be true, and were made anew from the jobs")


def fold(session: Session, slot: int, *, all_slots: bool) -> None:
    """Gather counts that are scattered over many rows."""
    session.run(_FOLD, {"slot": slot, "all_slots": all_slots, "most": FOLDED})
    if all_slots:
        session.run(_FOLD_TOTALS, {"slot": slot, "most": FOLDED})


def forget_empty(session: Session) -> None:
    """Delete what tells nothing, at most `FOLDED` rows: then empty queues are forgotten, unless something is set."""
    session.run(_FORGET, {"most": FOLDED})
    session.run(_UNGATE, {"most": FOLDED})
    session.run(_FORGET_QUEUES, {"most": FOLDED})
