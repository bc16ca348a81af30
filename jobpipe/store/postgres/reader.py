"""What the API reads: on connections of its own, so that nothing waits for the writer."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from jobpipe.job import Job, Status
from jobpipe.store.base import UNSERVED, Filter, Page, QueueState, Unserved
from jobpipe.store.postgres.parameters import texts
from jobpipe.store.postgres.session import Row, Session
from jobpipe.store.rows import attempt_from, job_from, with_attempts

JOB_COLUMNS = (
    "id, kind, queue, status, priority, payload, result, error, attempt, max_retries, claim, "
    "created_at, run_at, started_at, finished_at, expires_at, options, seq, node, held, size"
)
"""Of the view `shown`."""

LOOK = 100_000
"""The most rows that one list looks at."""

ABOVE_ALL = 1 << 62

_SOME = f"select {JOB_COLUMNS} from shown where id = any(%s)"
_ATTEMPTS = (
    "select j.id, a.number, a.claim, n.name, a.started_at, a.finished_at, a.outcome, a.error "
    "from jobs j join attempts a on a.seq = j.seq left join nodes n on n.node = a.node "
    "where j.id = any(%s) order by a.seq, a.claim"
)
_COUNTS = "select queue, state, sum(jobs)::bigint from counts group by queue, state having sum(jobs) > 0"
_HELD = "select queue, status, count(*) from live where node is not null group by queue, status"
_QUEUES = (
    "select name, coalesce(paused, false) from (select queue as name from counts union select name from queues) k "
    "left join queues using (name) order by name"
)
# The index of ready jobs is read at its first entry of each queue and priority.
_OLDEST = (
    "with recursive tops as (select q.name, a.aside, (select l.priority from live l where {ready} "
    "and l.queue = q.name and {aside} = a.aside order by l.priority desc limit 1) as priority "
    "from (select distinct queue as name from counts) q, (values (0), (1)) a (aside) "
    "union all select t.name, t.aside, (select l.priority from live l where {ready} and l.queue = t.name "
    "and {aside} = t.aside and l.priority < t.priority order by l.priority desc limit 1) "
    "from tops t where t.priority is not null) "
    "select t.name, min((select l.run_at from live l where {ready} and l.queue = t.name and {aside} = t.aside "
    "and l.priority = t.priority order by l.run_at limit 1)) from tops t where t.priority is not null group by t.name"
).format(
    ready="l.status = 'queued' and l.node is null", aside="(case when l.kind is null then 0 else 1 end)"
)
_KINDS = "select distinct k from nodes, unnest(kinds) as k where lease_until is not null"
_ASIDE = "l.status = 'queued' and l.node is null and l.kind is not null"
# From one kind of which a job stands aside to the next by name.
_UNSERVED = (
    "with recursive walk (kind) as ((select l.kind from live l where {aside} order by l.kind limit 1) union all "
    "select n.kind from walk w cross join lateral "
    "(select l.kind from live l where {aside} and l.kind > w.kind order by l.kind limit 1) n), "
    "named as materialized (select kind from walk where kind <> all (array({kinds})) limit %s) "
    "select n.kind, c.jobs, c.since from named n cross join lateral "
    "(select count(*) as jobs, min(l.run_at) as since from live l where {aside} and l.kind = n.kind) c "
    "order by n.kind"
).format(aside=_ASIDE, kinds=_KINDS)

# A list looks at rows newest first, from the index that holds the fewest of them, and at `LOOK` of them at most.
_LIVE = {Status.RUNNING, Status.CANCELLING, Status.SCHEDULED, Status.RETRYING, Status.QUEUED}
_FROM: dict[str, str] = (
    {"tag": "tags where tag = convert_to(%(tag)s, 'UTF8')"}
    | {status: f"live where status = '{status}'" for status in _LIVE}
    | {
        status: f"live where node is not null and status = '{status}'"
        for status in (Status.RUNNING, Status.CANCELLING)
    }
    | {
        status: f"jobs where status = '{status}'"
        for status in (Status.FAILED, Status.CANCELLED, Status.EXPIRED)
    }
)
_ANY = "jobs where true"
_LOOKED = "select seq from {source} and seq < %(before)s order by seq desc limit %(look)s"
_LIST = (
    "select {columns} from ({looked}) as looked join shown s using (seq) where {conditions} "
    "order by seq desc limit %(limit)s"
)
_EDGE = "select min(seq) from ({looked}) as looked having count(*) = %(look)s"
_CONDITIONS = {
    "status": "status = %(status)s",
    "kind": "kind = %(kind)s",
    "queue": "queue = %(queue)s",
    "text": "(position(convert_to(%(text)s, 'UTF8') in convert_to(id, 'UTF8')) > 0 "
    "or position(convert_to(%(text)s, 'UTF8') in payload) > 0 or position(%(text)s in message_of(error)) > 0)",
    "created_after": "created_at >= %(created_after)s",
    "created_before": "created_at < %(created_before)s",
}


async def several(session: Session, ids: Sequence[str]) -> dict[str, Job]:
    """Those of the jobs that are there, with their attempts."""
    return {job_id: job for job_id, (job, _) in (await found(session, ids)).items()}


async def found(session: Session, ids: Sequence[str]) -> dict[str, tuple[Job, Row]]:
    """Those of the jobs that are there, with their attempts; and their rows."""
    names = texts([job_id for job_id in ids if "\0" not in job_id])
    some, attempts = session.run(_SOME, (names,)), session.run(_ATTEMPTS, (names,))
    await session.answered()
    rows = {row[0]: row for row in some.rows()}
    earlier: dict[str, list[Row]] = {}
    for job_id, *attempt in attempts.rows():
        earlier.setdefault(job_id, []).append(tuple(attempt))
    return {
        job_id: (with_attempts(job_from(row), row[18], list(map(attempt_from, earlier.get(job_id, ())))), row)
        for job_id, row in rows.items()
    }


async def one(session: Session, job_id: str) -> Job | None:
    """See `jobpipe.store.base.ReadStore.get`."""
    return (await several(session, [job_id])).get(job_id)


async def listed(session: Session, where: Filter, limit: int, before: int | None) -> Page:
    """See `jobpipe.store.base.ReadStore.jobs`."""
    wanted = {name: value for name, value in msgspec.structs.asdict(where).items() if value is not None}
    if any(isinstance(value, str) and "\0" in value for value in wanted.values()):
        return Page([])  # no text here holds one
    conditions = " and ".join(sql for name, sql in _CONDITIONS.items() if name in wanted) or "true"
    source = _FROM["tag"] if "tag" in wanted else _FROM.get(wanted.get("status", ""), _ANY)
    looked = _LOOKED.format(source=source)
    values = wanted | {"before": before or ABOVE_ALL, "look": LOOK, "limit": limit}
    query = _LIST.format(columns=JOB_COLUMNS, looked=looked, conditions=conditions)
    rows = await _named(session, query, values)
    edge = rows[-1][17] if len(rows) == limit else await _edge(session, looked, values)
    return Page([job_from(row) for row in rows], edge)


async def _named(session: Session, sql: str, values: Mapping[str, Any]) -> list[Row]:
    # Not prepared: there are many forms of it, and each is rare.
    answer = session.run(sql, values, prepare=False)
    await session.answered()
    return answer.rows()


async def _edge(session: Session, looked: str, values: Mapping[str, Any]) -> int | None:
    """The last row looked at, when there may be more behind it."""
    rows = await _named(session, _EDGE.format(looked=looked), values)
    return rows[0][0] if rows else None


async def queues(session: Session) -> Sequence[QueueState]:
    """See `jobpipe.store.base.ReadStore.queues`."""
    names, kept, held, oldest = (session.run(sql) for sql in (_QUEUES, _COUNTS, _HELD, _OLDEST))
    await session.answered()
    rows = names.rows()
    counts = _counts([*kept.rows(), *held.rows()])
    ages: dict[str, float] = dict(oldest.rows())
    return [
        QueueState(name=name, paused=paused, counts=counts.get(name, {}), oldest_queued_at=ages.get(name))
        for name, paused in rows
    ]


def _counts(rows: Sequence[Row]) -> dict[str, dict[Status, int]]:
    """Jobs by queue and status: the kept counts and the held ones."""
    counts: dict[str, dict[Status, int]] = {}
    for queue, status, jobs in rows:
        of_queue = counts.setdefault(queue, {})
        of_queue[Status(status)] = of_queue.get(Status(status), 0) + jobs
    return counts


async def kinds(session: Session) -> frozenset[str]:
    """See `jobpipe.store.base.ReadStore.kinds`."""
    return frozenset(row[0] for row in await session.rows(_KINDS))


async def unserved(session: Session) -> Sequence[Unserved]:
    """See `jobpipe.store.base.ReadStore.unserved`."""
    return [Unserved(*row) for row in await session.rows(_UNSERVED, (UNSERVED,))]


async def ping(session: Session) -> None:
    """See `jobpipe.store.base.ReadStore.ping`."""
    await session.rows("select count(*) from nodes where false")
