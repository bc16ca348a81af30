"""What the API reads: on connections of its own, so that nothing waits for the writer."""

from collections.abc import Mapping, Sequence
from typing import Any

import apsw
import msgspec

from jobpipe.job import Job, Status
from jobpipe.store.base import UNSERVED, Filter, Page, QueueState, Unserved
from jobpipe.store.rows import Row, attempt_from, job_from, with_attempts
from jobpipe.store.sqlite.rows import JOB_COLUMNS, as_json, fetch, fetch_one, transaction
from jobpipe.store.sqlite.tally import HELD

LOOK = 100_000
"""The most rows that one list looks at."""

_ONE = f"select {JOB_COLUMNS} from jobs where jobs.id = ?"  # noqa: S608 - columns are a constant
_ATTEMPTS = (
    "select number, claim, name, started_at, finished_at, outcome, error from attempts left join nodes using (node) "
    "where seq = ? order by claim"
)
_COUNTS = "select queue, state, jobs from counts where jobs > 0"
_HELD = "select queue, status, count(*) from jobs where held = 1 group by queue, status"
_QUEUES = (
    "select name, coalesce((select paused from queues where queues.name = known.name), 0) from "
    "(select queue as name from counts union select name from queues) as known order by name"
)
_PRIORITY = (
    "select priority, min(run_at) from jobs where status = 'queued' and held = 0 and queue = ?1 and aside = ?3 "
    "and priority = (select priority from jobs where status = 'queued' and held = 0 and queue = ?1 and aside = ?3 "
    "and priority < ?2 order by priority desc limit 1)"
)
_ASIDE = "jobs indexed by jobs_aside where status = 'queued' and held = 0 and aside = 1"
_KINDS = "select value from nodes, json_each(kinds) where lease_until is not null"
# From one kind of which a job stands aside to the next by name.
_NEXT_KIND = f"(select kind from {_ASIDE} and kind > {{}} order by kind limit 1)"
_UNSERVED = (
    f"with recursive walked (kind) as (select {_NEXT_KIND.format(chr(39) * 2)} union all "
    f"select {_NEXT_KIND.format('walked.kind')} from walked where walked.kind is not null), "
    f"named as (select kind from walked where kind is not null and kind not in ({_KINDS}) limit {UNSERVED}) "
    f"select named.kind, count(*), min(run_at) from named cross join {_ASIDE} and jobs.kind = named.kind group by named.kind "
    "order by named.kind"
)
_ANY_READY = (
    "select exists (select 1 from jobs indexed by jobs_ready where status = 'queued' and held = 0 and aside = 0 "
    "and queue not in (select name from queues where paused = 1)) or exists "
    f"(select 1 from json_each(?) as served cross join {_ASIDE} and kind = served.value "
    "and queue not in (select name from queues where paused = 1))"
)
ABOVE_ALL = 1 << 40

# A list looks at rows newest first, from the index that holds the fewest of them, and at `LOOK` of them at most: the
# inner query has its own limit, so SQLite runs it as a co-routine, in its order and no further than the outer asks.
_FROM = {
    "tag": "tags where tag = :tag",
    Status.RUNNING: "jobs where held = 1 and status = 'running'",
    Status.CANCELLING: "jobs where held = 1 and status = 'cancelling'",
} | {
    status: f"jobs where status = '{status}'"
    for status in (Status.SCHEDULED, Status.RETRYING, Status.FAILED, Status.CANCELLED, Status.EXPIRED)
}
_ANY = "jobs where true"
_LOOKED = "select seq from {source} and seq < :before order by seq desc limit :look"
_LIST = (
    "select {columns} from ({looked}) as looked cross join jobs using (seq) where {conditions} limit :limit"
)
_EDGE = "select min(seq) from ({looked}) having count(*) = :look"
_CONDITIONS = {
    "status": "status = :status",
    "kind": "kind = :kind",
    "queue": "queue = :queue",
    "text": "(instr(jobs.id, :text) or instr(cast(payload as text), :text) or instr(error ->> 'message', :text))",
    "created_after": "created_at >= :created_after",
    "created_before": "created_at < :created_before",
}


def one(db: apsw.Connection, job_id: str) -> Job | None:
    """See `jobpipe.store.base.ReadStore.get`."""
    found = find(db, job_id)
    return None if found is None else found[0]


def find(db: apsw.Connection, job_id: str) -> tuple[Job, int, bool, int] | None:
    """A job with its attempts; and its seq, whether it is held, and its size."""
    with transaction(db):  # both reads see the same state of the database
        row = fetch_one(db, _ONE, (job_id,))
        if row is None:
            return None
        seq, node, held, size = row[17:]
        earlier = [attempt_from(attempt) for attempt in db.execute(_ATTEMPTS, (seq,))]
        return with_attempts(job_from(row), node, earlier), seq, bool(held), size


def listed(db: apsw.Connection, where: Filter, limit: int, before: int | None) -> Page:
    """See `jobpipe.store.base.ReadStore.jobs`."""
    wanted = {name: value for name, value in msgspec.structs.asdict(where).items() if value is not None}
    conditions = " and ".join(sql for name, sql in _CONDITIONS.items() if name in wanted) or "true"
    source = _FROM["tag"] if "tag" in wanted else _FROM.get(wanted.get("status", ""), _ANY)
    looked = _LOOKED.format(source=source)
    values = wanted | {"before": before or ABOVE_ALL, "look": LOOK, "limit": limit}
    with transaction(db):
        query = _LIST.format(columns=JOB_COLUMNS, looked=looked, conditions=conditions)
        rows = fetch(db, query, values)
        edge = rows[-1][17] if len(rows) == limit else _edge(db, looked, values)
    return Page([job_from(row) for row in rows], edge)


def _edge(db: apsw.Connection, looked: str, values: Mapping[str, Any]) -> int | None:
    """The last row looked at, when there may be more behind it."""
    row = fetch_one(db, _EDGE.format(looked=looked), values)
    return None if row is None else row[0]


def queues(db: apsw.Connection) -> Sequence[QueueState]:
    """See `jobpipe.store.base.ReadStore.queues`."""
    with transaction(db):
        counts = _counts(db)
        return [
            QueueState(
                name=name,
                paused=bool(paused),
                counts=counts.get(name, {}),
                oldest_queued_at=_oldest(db, name),
            )
            for name, paused in fetch(db, _QUEUES)
        ]


def _counts(db: apsw.Connection) -> dict[str, dict[Status, int]]:
    """Jobs by queue and status: the kept counts, with the held ones told apart."""
    found: dict[str, dict[Status, int]] = {}
    kept: list[Row] = [row for row in db.execute(_COUNTS) if row[1] != HELD]
    for queue, status, jobs in kept + fetch(db, _HELD):
        counts = found.setdefault(queue, {})
        counts[Status(status)] = counts.get(Status(status), 0) + jobs
    return found


def _oldest(db: apsw.Connection, queue: str) -> float | None:
    """The earliest run_at of the ready jobs: the index is read at its first entry of each priority."""
    oldest = None
    for aside in (0, 1):
        priority = ABOVE_ALL
        while (row := fetch_one(db, _PRIORITY, (queue, priority, aside))) and row[0] is not None:
            priority, run_at = row
            oldest = run_at if oldest is None else min(oldest, run_at)
    return oldest


def kinds(db: apsw.Connection) -> frozenset[str]:
    """See `jobpipe.store.base.ReadStore.kinds`."""
    return frozenset(row[0] for row in fetch(db, _KINDS))


def unserved(db: apsw.Connection) -> Sequence[Unserved]:
    """See `jobpipe.store.base.ReadStore.unserved`."""
    return [Unserved(*row) for row in fetch(db, _UNSERVED)]


def ready(db: apsw.Connection, kinds: frozenset[str]) -> bool:
    """See `jobpipe.store.base.ReadStore.ready`."""
    return bool(db.execute(_ANY_READY, (as_json(kinds),)).get)


def ping(db: apsw.Connection) -> None:
    """See `jobpipe.store.base.ReadStore.ping`."""
    fetch(db, "select count(*) from nodes")
