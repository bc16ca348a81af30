"""What the API reads: on connections of its own, so that nothing waits for the writer."""

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import apsw

from jobpipe.job import Job, Status
from jobpipe.store.base import STEP, UNSERVED, Filter, Overview, Page, Place, QueueState, Unserved
from jobpipe.store.paging import Pager
from jobpipe.store.rows import JobRow, Row, attempt_from, shown, stored_from
from jobpipe.store.sqlite import lists
from jobpipe.store.sqlite.counts import HELD
from jobpipe.store.sqlite.rows import (
    ASIDE,
    BARE_JOB_COLUMNS,
    FIRST_QUEUE,
    JOB_COLUMNS,
    LISTED_COLUMNS,
    NEXT_QUEUE,
    READY_BY_QUEUE,
    READY_IN_LANE,
    as_json,
    fetch,
    fetch_one,
    stream,
    transaction,
)
from jobpipe.store.verbs.notes import PROGRESS_COLUMNS, with_progress
from jobpipe.store.verbs.queues import COLUMNS, settings_from
from jobpipe.transitions import Stored

_ONE = f"""
select {JOB_COLUMNS}
from jobs
where jobs.id = ?
"""
_ATTEMPTS = """
select number, claim, name, started_at, finished_at, outcome, error, due_at
from attempts left join nodes using (node)
where seq = ?
order by claim
"""
_PROGRESS = f"select {PROGRESS_COLUMNS} from progress where seq = ?"
_QUEUES = f"""
select known.name, {COLUMNS}
from (
    select queue as name from counts where queue > ?1
    union
    select name from queues where name > ?1
    order by name
    limit ?2
) as known left join queues on queues.name = known.name
order by known.name
"""
_QUEUE = f"""
select asked.name, {COLUMNS}
from (select ?1 as name) as asked left join queues on queues.name = asked.name
where exists (select 1 from queues where name = ?1)
    or exists (select 1 from counts where queue = ?1)
"""
_COUNTS = f"""
select queue, state, jobs
from counts
where queue between ? and ? and jobs > 0 and state <> '{HELD}'
"""
_HELD = """
select queue, status, count(*)
from jobs indexed by jobs_held
where held = 1 and queue between ? and ?
group by queue, status
"""
_TOTALS = f"""
select state, jobs
from totals
where jobs > 0 and state <> '{HELD}'
union all
select status, count(*)
from jobs indexed by jobs_held
where held = 1
group by status
"""
_ANY_READY = f"""
with recursive walked (queue) as (
    select {FIRST_QUEUE}
    union all
    select {NEXT_QUEUE.format(after="walked.queue")}
    from walked
    where walked.queue is not null
)
select exists (
        select 1
        from walked
        where queue is not null
            and queue not in (select name from queues where paused = 1)
            and exists (
                select 1
                from {READY_BY_QUEUE}
                    and jobs.queue = walked.queue
                    and aside = 0
            )
    )
    or exists (
        select 1
        from json_each(?) as served cross join {ASIDE}
            and kind = served.value
            and queue not in (select name from queues where paused = 1)
    )
"""
# The same of some queues.
_ANY_READY_OF_QUEUES = f"""
select exists (
    select 1
    from json_each(:queues) as named
    where named.value not in (select name from queues where paused = 1)
        and (
            exists (
                select 1
                from {READY_BY_QUEUE}
                    and jobs.queue = named.value
                    and aside = 0
            )
            or exists (
                select 1
                from json_each(:kinds) as served cross join {ASIDE}
                    and kind = served.value
                    and jobs.queue = named.value
            )
        )
)
"""
_UNSERVED_QUEUES = f"""
with recursive walked (queue) as (
    select {FIRST_QUEUE}
    union all
    select {NEXT_QUEUE.format(after="walked.queue")}
    from walked
    where walked.queue is not null
    limit {STEP}
)
select queue
from walked
where queue is not null
    and queue not in (select value from json_each(?))
    and queue not in (select name from queues where paused = 1)
limit {UNSERVED}
"""
_PRIORITY = f"""
select priority, min(run_at)
from {READY_BY_QUEUE}
    and queue = ?1
    and aside = ?3
    and priority = (
        select priority
        from {READY_BY_QUEUE}
            and queue = ?1
            and aside = ?3
            and priority < ?2
        order by priority desc
        limit 1
    )
"""
_KINDS = """
select value
from nodes, json_each(kinds)
where lease_until is not null
"""
_SERVED_QUEUES = """
select distinct named.value
from nodes left join json_each(nodes.queues) as named
where lease_until is not null and kinds <> '[]'
"""
"""Null for all of them."""
# From one kind of which a job stands aside to the next by name.
_NEXT_KIND = f"""
(
    select kind
    from {ASIDE}
        and kind > {{after}}
    order by kind
    limit 1
)
"""
_FIRST_KIND = _NEXT_KIND.format(after="''")
_UNSERVED = f"""
with recursive walked (kind) as (
    select {_FIRST_KIND}
    union all
    select {_NEXT_KIND.format(after="walked.kind")}
    from walked
    where walked.kind is not null
),
named as (
    select kind
    from walked
    where kind is not null and kind not in ({_KINDS})
    limit {UNSERVED}
)
select named.kind, count(*), min(run_at)
from named cross join {ASIDE}
    and jobs.kind = named.kind
group by named.kind
order by named.kind
"""
# From one kind in a lane to the next: how many jobs it has there does not matter.
_NEXT_IN_LANES = f"""
select queue, key, kind
from {READY_IN_LANE}
    and (queue, key, kind) > (?, ?, ?)
order by queue, key, kind
limit 1
"""
_OF_LANE = f"select count(*), min(run_at) from {READY_IN_LANE} and queue = ? and key = ? and kind = ?"
_OF_STATUS = "select coalesce(sum(jobs), 0) from totals where state = ?"
FEW = 1000
"""How many jobs of a usual status are read and sorted for a list."""

ABOVE_ALL = 1 << 40
STATUSES = frozenset(Status)

# The inner query has its own limit, so SQLite runs it as a co-routine: in its order, as far as the outer one asks.
_LIST = """
select {columns}
from ({looked}) as looked
cross join jobs using (seq)
where {conditions}
limit :limit
"""
_EDGE = """
select at, seq
from ({looked})
limit 1
offset :look - 1
"""
_WITH_TEXT = """
(
    instr(jobs.id, :text)
    or instr(cast(payload as text), :text)
    or (
        error is not null
        and json_valid(cast(error as text))
        and instr(cast(error as text) ->> 'message', :text)
    )
)
"""
_OF_KINDS = """
(
    kind in (select value from json_each(:kinds))
    or exists (
        select 1
        from json_each(:prefixes) as prefix
        where substr(kind, 1, length(prefix.value)) = prefix.value
    )
)
"""
_HAS_TAG = """
exists (
    select 1
    from json_each(:tag) as asked
    join tags on tags.tag = asked.value
    where tags.created_at = jobs.created_at and tags.seq = jobs.seq
)
"""
_IN_GROUP = """
jobs.seq in (
    select seq
    from members
    where grp in (select grp from groups where id in (select value from json_each(:group)))
)
"""
# What is damaged has no such field.
_FIELD = """
(
    {stored} is not null
    and json_valid(cast({stored} as text))
    and cast({stored} as text) ->> '{field}' in (select value from json_each(:{asked}))
)
"""
ALL_FOUND = ("tag", "group", "fingerprint")
"""Where one of these decides on the index, only jobs are looked at to which it applies."""

_CONDITIONS = {
    "status": "status in (select value from json_each(:status))",
    "kind": _OF_KINDS,
    "queue": "queue in (select value from json_each(:queue))",
    "tag": _HAS_TAG,
    "group": _IN_GROUP,
    "key": _FIELD.format(stored="options", field="key", asked="key"),
    "node": "jobs.node in (select node from nodes where name in (select value from json_each(:node)))",
    "error_type": _FIELD.format(stored="error", field="type", asked="error_type"),
    "fingerprint": "fingerprint in (select value from json_each(:fingerprint))",
    "text": _WITH_TEXT,
    "ended_after": "finished_at >= :ended_after",
    "ended_before": "finished_at < :ended_before",
    "top": "jobs.seq <= :top",
}


def one(db: apsw.Connection, job_id: str) -> Job | None:
    """See `jobpipe.store.base.ReadStore.get`."""
    found = stored(db, job_id)
    return None if found is None else shown(found)


def stored(db: apsw.Connection, job_id: str) -> Stored | None:
    """A job with its attempts that have ended, and its progress."""
    with transaction(db):  # all reads see the same state of the database
        row = fetch_one(db, _ONE, (job_id,))
        if row is None:
            return None
        seq = (JobRow(*row).seq,)
        attempts = [attempt_from(attempt) for attempt in fetch(db, _ATTEMPTS, seq)]
        return with_progress(stored_from(row, attempts), fetch_one(db, _PROGRESS, seq))


def listed(db: apsw.Connection, where: Filter, limit: int, before: Place | None) -> Page:
    """See `jobpipe.store.base.ReadStore.jobs`."""
    wanted = lists.values_of(where)
    found = lists.decides(where) if lists.decides(where) in ALL_FOUND else None
    asked = [name for name in wanted if name != found]
    conditions = "\n    and ".join(sql for name, sql in _CONDITIONS.items() if name in asked) or "true"
    columns = LISTED_COLUMNS if where.content else BARE_JOB_COLUMNS
    pager = Pager(where, limit, before)
    with transaction(db):
        looked = lists.looked(where, few=_are_few(db, where))
        query = _LIST.format(columns=columns, looked=looked, conditions=conditions)
        while not pager.over:
            bounds = lists.bounds(where, pager.before)
            values = wanted | bounds | {"look": pager.look, "limit": pager.room}
            _take(stream(db, query, values), pager)
            if not pager.over:
                pager.looked(_edge(db, looked, values))
    return pager.page()


def _are_few(db: apsw.Connection, where: Filter) -> bool:
    """Whether a usual status is asked for that few jobs have: then they are read, and sorted."""
    if not lists.asks_usual(where) or lists.decides(where) not in (None, "queue", "kind"):
        return False
    usual = [one for one in where.each("status") if one in lists.USUAL]
    return bool(sum(db.execute(_OF_STATUS, (status,)).get for status in usual) < FEW)


def _take(rows: Generator[Row, None, None], pager: Pager) -> None:
    """Take rows one by one, so that no more than a page is in memory, and one job."""
    for row in map(JobRow._make, rows):
        long = (row.id, row.payload, row.result, row.error, row.options)
        if not pager.fits(sum(len(value or b"") for value in long), Place(row.created_at, row.seq)):
            break
        pager.take(row)
    rows.close()


def _edge(db: apsw.Connection, looked: str, values: Mapping[str, Any]) -> Place | None:
    """The last row looked at, when there may be more behind it."""
    row = fetch_one(db, _EDGE.format(looked=looked), values)
    return None if row is None else Place(*row)


def queues(db: apsw.Connection, limit: int, after: str) -> Sequence[QueueState]:
    """See `jobpipe.store.base.ReadStore.queues`."""
    with transaction(db):
        return _told(db, fetch(db, _QUEUES, (after, limit)))


def queue(db: apsw.Connection, name: str) -> QueueState | None:
    """See `jobpipe.store.base.ReadStore.queue`."""
    with transaction(db):
        return next(iter(_told(db, fetch(db, _QUEUE, (name,)))), None)


def _told(db: apsw.Connection, rows: Sequence[Row]) -> Sequence[QueueState]:
    """The state of queues that stand next to one another, given their names and whether they are paused."""
    counts = _counts(db, rows[0][0], rows[-1][0]) if rows else {}
    return [
        QueueState(
            name=name,
            paused=bool(paused),
            reason=reason,
            paused_until=until,
            settings=settings_from(settings),
            counts=counts.get(name, {}),
            oldest_queued_at=_oldest(db, name),
        )
        for name, paused, reason, until, *settings in rows
    ]


def _counts(db: apsw.Connection, first: str, last: str) -> dict[str, dict[Status, int]]:
    """Jobs by queue and status: the kept counts, with the held ones told apart."""
    found: dict[str, dict[Status, int]] = {}
    for name, status, jobs in fetch(db, _COUNTS, (first, last)) + fetch(db, _HELD, (first, last)):
        if status in STATUSES:  # else the row is damaged
            counts = found.setdefault(name, {})
            counts[Status(status)] = counts.get(Status(status), 0) + jobs
    return found


def overview(db: apsw.Connection, kinds: frozenset[str], queues: frozenset[str] | None = None) -> Overview:
    """See `jobpipe.store.base.ReadStore.overview`."""
    counts: dict[Status, int] = {}
    with transaction(db):
        for status, jobs in fetch(db, _TOTALS):
            counts[Status(status)] = counts.get(Status(status), 0) + jobs
        if queues is None:
            return Overview(counts, bool(db.execute(_ANY_READY, (as_json(kinds),)).get))
        values = {"kinds": as_json(kinds), "queues": as_json(queues)}
        return Overview(counts, bool(db.execute(_ANY_READY_OF_QUEUES, values).get))


def _oldest(db: apsw.Connection, name: str) -> float | None:
    """The earliest run_at of the ready jobs: the index is read at its first entry of each priority."""
    oldest = None
    for aside in (0, 1):
        priority = ABOVE_ALL
        while (row := fetch_one(db, _PRIORITY, (name, priority, aside))) and row[0] is not None:
            priority, run_at = row
            oldest = run_at if oldest is None else min(oldest, run_at)
    return oldest


def kinds(db: apsw.Connection) -> frozenset[str]:
    """See `jobpipe.store.base.ReadStore.kinds`."""
    return frozenset(kind for (kind,) in fetch(db, _KINDS))


def served_queues(db: apsw.Connection) -> frozenset[str] | None:
    """See `jobpipe.store.base.ReadStore.served_queues`."""
    names = {name for (name,) in fetch(db, _SERVED_QUEUES)}
    return None if None in names else frozenset(names)


def unserved_queues(db: apsw.Connection, served: frozenset[str]) -> Sequence[str]:
    """See `jobpipe.store.base.ReadStore.unserved_queues`."""
    return [name for (name,) in fetch(db, _UNSERVED_QUEUES, (as_json(served),))]


def unserved(db: apsw.Connection) -> Sequence[Unserved]:
    """See `jobpipe.store.base.ReadStore.unserved`."""
    jobs, since = Counter[str](), dict[str, float]()
    for kind, number, at in [*fetch(db, _UNSERVED), *_unserved_in_lanes(db, kinds(db))]:
        jobs[kind] += number
        since[kind] = min(since.get(kind, at), at)
    return [Unserved(kind, jobs[kind], since[kind]) for kind in sorted(jobs)][:UNSERVED]


def _unserved_in_lanes(db: apsw.Connection, served: frozenset[str]) -> Iterator[Row]:
    """Kinds that are not served, how many jobs there are, and since when: of each of the first lanes."""
    place: Row = ("", "", "")
    for _ in range(STEP):
        row = fetch_one(db, _NEXT_IN_LANES, place)
        if row is None or row == place:  # the same again: its text is not UTF-8, so nobody can name it
            return
        place = row
        jobs, since = (0, None) if place[-1] in served else db.execute(_OF_LANE, place).fetchall()[0]
        if jobs:
            yield place[-1], jobs, since


def ping(db: apsw.Connection) -> None:
    """See `jobpipe.store.base.ReadStore.ping`."""
    fetch(db, "select count(*) from nodes")
