"""What the API reads: on connections of its own, so that nothing waits for the writer."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import trio

from jobpipe.job import Job, Status
from jobpipe.store.base import STEP, UNSERVED, Filter, Overview, Page, Place, QueueState, Unserved
from jobpipe.store.paging import Pager
from jobpipe.store.postgres import lists
from jobpipe.store.postgres.arrays import Texts, integers, texts
from jobpipe.store.postgres.counts import bounded
from jobpipe.store.postgres.lanes import ANY_READY
from jobpipe.store.postgres.session import Result, Row, Session
from jobpipe.store.rows import attempt_from, shown, stored_from
from jobpipe.store.verbs.notes import PROGRESS_COLUMNS, with_progress
from jobpipe.store.verbs.queues import COLUMNS, settings_from
from jobpipe.transitions import Stored

_COLUMNS = """
    id, kind, queue, status, priority, {payload}, {result}, error, attempt, max_retries, claim,
    created_at, run_at, started_at, finished_at, expires_at, options, seq, node, held, size, rescued, watched, followed,
    {original}
"""
JOB_COLUMNS = _COLUMNS.format(payload="payload", result="result", original="original")
"""Of the view `shown`."""

STATUSES = frozenset(Status)

_QUEUED = "l.status = 'queued' and l.node is null"
READY = f"{_QUEUED} and l.kind is null"
ASIDE = f"{_QUEUED} and l.kind is not null and l.key is null"
"""Ready jobs that do not stand aside, and those that do; neither stands in a lane."""

IN_LANE = f"{_QUEUED} and l.key is not null"
"""Ready jobs that stand in lanes."""

_IS_ASIDE = "(case when l.key is not null then 2 when l.kind is null then 0 else 1 end)"
NOT_ASIDE = f"{_IS_ASIDE} = 0"
"""As the index by queue has it."""

ORDER = "order by {of}.priority desc, {of}.run_at, {of}.seq"
UNPAUSED = "{of}.queue <> all (array(select name from queues where paused))"
CLAIMABLE = "{of}.queue <> all (array(select name from queues where paused or gated))"
"""A queue whose jobs are claimed without lanes."""

NEXT_QUEUE = f"""
(
    select l.queue
    from live l
    where {_QUEUED} and l.queue > {{after}}
    order by l.queue
    limit 1
)
"""
"""From one queue that has a ready job to the next by name: queues without ready jobs cost nothing."""

FIRST_QUEUE = NEXT_QUEUE.format(after="''")

MINE_ASIDE = f"""
exists (
    select
    from unnest(%(kinds)s::text[]) as k (kind) cross join lateral (
        select
        from live l
        where {ASIDE} and l.kind = k.kind and {{which}}
        {ORDER.format(of="l")}
        limit 1
    ) a
)
"""
"""Whether jobs of some kinds stand aside: in the order of their index, so that the planner takes no other one."""

_PAUSED = """
select name
from queues
where paused
order by name
limit %(limit)s
"""
_SOME = f"""
select {JOB_COLUMNS}
from shown
where id = any(%(ids)s)
"""
_ATTEMPTS = """
select j.id, a.number, a.claim, n.name, a.started_at, a.finished_at, a.outcome, a.error, a.due_at
from jobs j
join attempts a on a.seq = j.seq
left join nodes n on n.node = a.node
where j.id = any(%(ids)s)
order by a.seq, a.claim
"""
_PROGRESS = f"""
select id, {PROGRESS_COLUMNS.replace("claim", "p.claim")}
from jobs j
join progress p on p.seq = j.seq
where id = any(%(ids)s)
"""
# Held jobs are not in the counts.
_QUEUES = f"""
select name, {COLUMNS}
from (
    select name
    from (
        (select distinct queue as name from counts where queue > %(after)s order by queue limit %(limit)s)
        union
        (select name from queues where name > %(after)s order by name limit %(limit)s)
        union
        select queue from live where node is not null and queue > %(after)s
    ) as named
    order by name
    limit %(limit)s
) as known
left join queues using (name)
order by name
"""
_QUEUE = f"""
select asked.name, {COLUMNS}
from (select %(name)s::text collate "C" as name) as asked left join queues using (name)
where exists (select from queues where name = %(name)s)
    or exists (select from counts where queue = %(name)s)
    or exists (select from live where node is not null and queue = %(name)s)
"""
_COUNTS = f"""
select queue, state, {bounded("sum(jobs)")}
from counts
where queue between %(first)s and %(last)s
group by queue, state
having sum(jobs) > 0
"""
_HELD = """
select queue, status, count(*)
from live
where node is not null and queue between %(first)s and %(last)s
group by queue, status
"""
# The index of ready jobs is read at its first entry of each queue and priority.
_OLDEST = f"""
with recursive tops as (
    select q.name, a.aside, (
        select l.priority
        from live l
        where {_QUEUED} and l.queue = q.name and {_IS_ASIDE} = a.aside
        order by l.priority desc
        limit 1
    ) as priority
    from unnest(%(names)s) as q (name), (values (0), (1), (2)) a (aside)
    union all
    select t.name, t.aside, (
        select l.priority
        from live l
        where {_QUEUED} and l.queue = t.name and {_IS_ASIDE} = t.aside and l.priority < t.priority
        order by l.priority desc
        limit 1
    )
    from tops t
    where t.priority is not null
)
select t.name, min((
    select l.run_at
    from live l
    where {_QUEUED} and l.queue = t.name and {_IS_ASIDE} = t.aside and l.priority = t.priority
    order by l.run_at
    limit 1
))
from tops t
where t.priority is not null
group by t.name
"""
_TOTALS = """
select state, sum(jobs)::bigint
from (
    select state, jobs from totals
    union all
    select state, jobs from counts where slot < 0
) t
group by state
having sum(jobs) > 0
union all
select status, count(*)
from live
where node is not null
group by status
"""

_KINDS = """
select distinct k
from nodes, unnest(kinds) as k
where lease_until is not null
"""
# From one kind of which a job stands aside to the next by name; and through the first lanes.
_UNSERVED = f"""
with recursive walk (kind) as (
    (
        select l.kind
        from live l
        where {ASIDE}
        order by l.kind
        limit 1
    )
    union all
    select n.kind
    from walk w cross join lateral (
        select l.kind
        from live l
        where {ASIDE} and l.kind > w.kind
        order by l.kind
        limit 1
    ) n
),
named as materialized (
    select kind
    from walk
    where kind <> all (array({_KINDS}))
    limit %(limit)s
),
through (queue, key, kind) as (
    (
        select l.queue, l.key, l.kind
        from live l
        where {IN_LANE}
        order by l.queue, l.key, l.kind
        limit 1
    )
    union all
    select n.*
    from through t cross join lateral (
        select l.queue, l.key, l.kind
        from live l
        where {IN_LANE} and (l.queue, l.key, l.kind) > (t.queue, t.key, t.kind)
        order by l.queue, l.key, l.kind
        limit 1
    ) n
),
looked as materialized (
    select queue, key, kind
    from (select * from through limit %(walked)s) t
    where kind <> all (array({_KINDS}))
)
select f.kind, sum(f.jobs)::bigint, min(f.since)
from (
    select n.kind, c.jobs, c.since
    from named n cross join lateral (
        select count(*) as jobs, min(l.run_at) as since
        from live l
        where {ASIDE} and l.kind = n.kind
    ) c
    union all
    select n.kind, c.jobs, c.since
    from looked n cross join lateral (
        select count(*) as jobs, min(l.run_at) as since
        from live l
        where {IN_LANE} and l.queue = n.queue and l.key = n.key and l.kind = n.kind
    ) c
) f
group by f.kind
order by f.kind
limit %(limit)s
"""

_ANY_READY = f"""
with recursive walk (queue) as (
    {FIRST_QUEUE}
    union all
    select n.queue
    from walk w cross join lateral {NEXT_QUEUE.format(after="w.queue")} n
)
select exists (
        select
        from walk w
        where {UNPAUSED.format(of="w")}
            and exists (
                select
                from live l
                where {READY} and l.queue = w.queue and {NOT_ASIDE}
                {ORDER.format(of="l")}
                limit 1
            )
    )
    or {MINE_ASIDE.format(which=UNPAUSED.format(of="l"))}
    or {ANY_READY.format(queue="true")}
"""
# The same of some queues.
_ANY_READY_OF_QUEUES = f"""
select exists (
    select
    from unnest(%(queues)s::text[]) as q (queue)
    where {UNPAUSED.format(of="q")}
        and (
            exists (
                select
                from live l
                where {READY} and l.queue = q.queue and {NOT_ASIDE}
                {ORDER.format(of="l")}
                limit 1
            )
            or exists (
                select
                from unnest(%(kinds)s::text[]) as k (kind) cross join lateral (
                    select
                    from live l
                    where {ASIDE} and l.queue = q.queue and l.kind = k.kind
                    {ORDER.format(of="l")}
                    limit 1
                ) a
            )
        )
)
or {ANY_READY.format(queue="la.queue = any (%(queues)s::text[])")}
"""
SERVED_FROM = """
select distinct k
from nodes n, unnest(n.kinds) as k
where n.lease_until is not null and (n.queues is null or %(queue)s = any (n.queues))
"""
"""The kinds of which some live node takes jobs from a queue."""

_AHEAD = """
select count(*)
from (
    select l.priority, l.run_at, l.seq
    from live l
    where {ready} and l.queue = %(queue)s
    order by l.priority desc, l.run_at, l.seq
    limit %(limit)s
) r
where (-r.priority::bigint, r.run_at, r.seq) < (-%(priority)s::bigint, %(run_at)s, %(seq)s)
"""
AHEAD = (
    _AHEAD.format(ready=f"{READY} and {NOT_ASIDE}"),
    _AHEAD.format(ready=f"{ASIDE} and l.kind = %(kind)s"),
)
"""How many jobs come before one that stands in no lane, of so many at most: of those that stand aside, of its kind."""

_SERVED_QUEUES = """
select distinct q.name
from nodes n cross join lateral unnest(coalesce(n.queues, array[null])) as q (name)
where n.lease_until is not null and n.kinds <> '{}'
"""
"""Null for all of them."""
_UNSERVED_QUEUES = f"""
with recursive walk (queue) as (
    {FIRST_QUEUE}
    union all
    select n.queue
    from walk w cross join lateral {NEXT_QUEUE.format(after="w.queue")} n
)
select w.queue
from (select queue from walk limit %(walked)s) w
where w.queue <> all (%(served)s::text[]) and {UNPAUSED.format(of="w")}
order by w.queue
limit %(limit)s
"""

_LIST = """
select created_at, seq, {size}
from ({looked}) as looked
join shown s using (seq)
where {conditions}
order by looked.at desc, seq desc
limit %(limit)s
"""
_BARE_SIZE = "octet_length(id) + coalesce(octet_length(error), 0) + coalesce(octet_length(options), 0)"
_SIZE = f"{_BARE_SIZE} + octet_length(payload) + coalesce(octet_length(result), 0)"
_PAGE = """
select {columns}
from shown
where seq = any(%(seqs)s)
order by created_at desc, seq desc
"""
_LISTED = {"original": "null::bytea"}
_WITH_CONTENT = _PAGE.format(columns=_COLUMNS.format(payload="payload", result="result", **_LISTED))
_BARE = _PAGE.format(columns=_COLUMNS.format(payload="''::bytea", result="null::bytea", **_LISTED))
_EDGE = """
select at, seq
from ({looked}) as looked
order by at desc, seq desc
limit 1
offset %(look)s - 1
"""
_WITH_TEXT = """
(
    position(convert_to(%(text)s, 'UTF8') in convert_to(id, 'UTF8')) > 0
    or position(convert_to(%(text)s, 'UTF8') in payload) > 0
    or position(%(text)s in message_of(error)) > 0
)
"""
_OF_KINDS = """
(
    kind = any (%(kinds)s)
    or exists (select from unnest(%(prefixes)s::text[]) as prefix where starts_with(kind, prefix))
)
"""
_HAS_TAG = """
exists (
    select
    from unnest(%(tag)s::text[]) as asked
    join tags t on t.tag = convert_to(asked, 'UTF8')
    where t.created_at = s.created_at and t.seq = s.seq
)
"""
_IN_GROUP = """
seq in (
    select m.seq
    from groups g join members m using (grp)
    where g.id = any (%(group)s)
)
"""
ALL_FOUND = ("tag", "group", "fingerprint")
"""Where one of these decides on the index, only jobs are looked at to which it applies."""

_OF_ERRORS = """
exists (
    select
    from ended f
    where f.seq = s.seq and f.fingerprint = any (%(fingerprint)s)
)
"""
_CONDITIONS = {
    "status": "status = any (%(status)s)",
    "kind": _OF_KINDS,
    "queue": "queue = any (%(queue)s)",
    "tag": _HAS_TAG,
    "group": _IN_GROUP,
    "key": "text_of(options, 'key') = any (%(key)s)",
    "node": "node = any (%(node)s)",
    "error_type": "text_of(error, 'type') = any (%(error_type)s)",
    "fingerprint": _OF_ERRORS,
    "text": _WITH_TEXT,
    "ended_after": "finished_at >= %(ended_after)s",
    "ended_before": "finished_at < %(ended_before)s",
    "top": "seq <= %(top)s",
}


@functools.lru_cache(maxsize=1000)
def _list(form: lists.Form, *, few: bool, content: bool) -> tuple[str, str]:
    """The statements for the places of the jobs on a page, and for the last place that was looked at."""
    looked = lists.looked(form, few=few)
    found = form.decides if form.decides in ALL_FOUND else None
    conditions = [sql for name, sql in _CONDITIONS.items() if name in form.given and name != found]
    query = _LIST.format(
        size=_SIZE if content else _BARE_SIZE,
        looked=looked,
        conditions="\n    and ".join(conditions) or "true",
    )
    return query, _EDGE.format(looked=looked)


async def several(session: Session, ids: Sequence[str]) -> dict[str, Job]:
    """Those of the jobs that are there, with their attempts."""
    return {job_id: shown(found) for job_id, found in (await stored(session, ids)).items()}


async def stored(session: Session, ids: Sequence[str]) -> dict[str, Stored]:
    """Those of the jobs that are there, with their attempts that have ended, and their progress."""
    values = {"ids": texts([job_id for job_id in ids if "\0" not in job_id])}
    some, attempts = session.run(_SOME, values), session.run(_ATTEMPTS, values)
    told = session.run(_PROGRESS, values)
    await session.answered()
    rows = {row[0]: row for row in some.rows()}
    earlier: dict[str, list[Row]] = {}
    for job_id, *attempt in attempts.rows():
        earlier.setdefault(job_id, []).append(tuple(attempt))
    progress: dict[str, Row] = {job_id: tuple(row) for job_id, *row in told.rows()}
    return {
        job_id: with_progress(
            stored_from(row, list(map(attempt_from, earlier.get(job_id, ())))), progress.get(job_id)
        )
        for job_id, row in rows.items()
    }


async def one(session: Session, job_id: str) -> Job | None:
    """See `jobpipe.store.base.ReadStore.get`."""
    return (await several(session, [job_id])).get(job_id)


async def listed(session: Session, where: Filter, limit: int, before: Place | None) -> Page:
    """See `jobpipe.store.base.ReadStore.jobs`."""
    wanted = lists.values_of(where)
    if "\0" in (where.text or ""):
        return Page([])  # no text here holds one
    form = lists.form_of(where)
    query, edge = _list(form, few=await _few(session, form, wanted), content=where.content)
    pager = Pager(where, limit, before, trio.current_time)
    while not pager.over:
        bounds = lists.bounds(where, pager.before)
        values = wanted | bounds | {"look": pager.look, "limit": pager.room}
        found = await _once(session, query, values, form)
        fitting = itertools.takewhile(lambda row: pager.fits(row[2], Place(row[0], row[1])), found)
        if seqs := [seq for _, seq, _ in fitting]:
            page = _WITH_CONTENT if where.content else _BARE
            for row in await session.rows(page, {"seqs": integers(seqs)}):
                pager.take(row)
        if not pager.over:
            ends = await _once(session, edge, values, form)
            pager.looked(Place(*ends[0]) if ends else None)
    return pager.page()


async def _few(session: Session, form: lists.Form, wanted: Mapping[str, Any]) -> bool:
    """Whether there are so few of the wanted jobs that all are read."""
    query = lists.counted(form)
    if query is None:
        return False
    ((jobs,),) = await _once(session, query, wanted, form)
    return bool(jobs <= lists.FEW)


async def _once(session: Session, sql: str, values: Mapping[str, Any], form: lists.Form) -> list[Row]:
    # To plan a list takes longer than to read it. There are more forms of other searches, which take their time anyway.
    answer = session.run(sql, values, prepare=form.is_usual)
    await session.answered()
    return answer.rows()


async def queues(session: Session, limit: int, after: str) -> Sequence[QueueState]:
    """See `jobpipe.store.base.ReadStore.queues`."""
    return await _told(session, await session.rows(_QUEUES, {"after": after, "limit": limit}))


async def queue(session: Session, name: str) -> QueueState | None:
    """See `jobpipe.store.base.ReadStore.queue`."""
    return next(iter(await _told(session, await session.rows(_QUEUE, {"name": name}))), None)


async def _told(session: Session, rows: Sequence[Row]) -> Sequence[QueueState]:
    """The state of queues that stand next to one another, given their names and whether they are paused."""
    if not rows:
        return []
    ends = {"first": rows[0][0], "last": rows[-1][0]}
    kept, held = session.run(_COUNTS, ends), session.run(_HELD, ends)
    oldest = session.run(_OLDEST, {"names": texts([name for name, *_ in rows])})
    await session.answered()
    counts = _counts([*kept.rows(), *held.rows()])
    ages: dict[str, float] = dict(oldest.rows())
    return [
        QueueState(
            name=name,
            paused=bool(paused),
            reason=reason,
            paused_until=until,
            settings=settings_from(settings),
            counts=counts.get(name, {}),
            oldest_queued_at=ages.get(name),
        )
        for name, paused, reason, until, *settings in rows
    ]


def _counts(rows: Sequence[Row]) -> dict[str, dict[Status, int]]:
    """Jobs by queue and status: the kept counts and the held ones."""
    counts: dict[str, dict[Status, int]] = {}
    for queue, status, jobs in rows:
        if status not in STATUSES:  # the row is damaged
            continue
        of_queue = counts.setdefault(queue, {})
        of_queue[Status(status)] = of_queue.get(Status(status), 0) + jobs
    return counts


async def overview(session: Session, kinds: frozenset[str], queues: frozenset[str] | None = None) -> Overview:
    """See `jobpipe.store.base.ReadStore.overview`."""
    totals = session.run(_TOTALS)
    ready = _look_for_ready(session, texts(sorted(kinds)), None if queues is None else texts(sorted(queues)))
    await session.answered()
    counts: dict[Status, int] = {}
    for status, jobs in totals.rows():
        if status in STATUSES:  # else the row is damaged
            counts[Status(status)] = counts.get(Status(status), 0) + jobs
    return Overview(counts, ready.rows()[0][0])


async def any_ready(session: Session, kinds: Texts, queues: Texts | None) -> bool:
    """Whether a job of these kinds is ready, or one that no claim has met yet, in a queue that is not paused.

    And in one of `queues`; None: in any.
    """
    answer = _look_for_ready(session, kinds, queues)
    await session.answered()
    return bool(answer.rows()[0][0])


def _look_for_ready(session: Session, kinds: Texts, queues: Texts | None) -> Result:
    if queues is None:
        return session.run(_ANY_READY, {"kinds": kinds})
    return session.run(_ANY_READY_OF_QUEUES, {"kinds": kinds, "queues": queues})


async def paused(session: Session) -> Sequence[str]:
    """See `jobpipe.store.base.SharedStore.paused`."""
    return [name for (name,) in await session.rows(_PAUSED, {"limit": STEP})]


async def kinds(session: Session) -> frozenset[str]:
    """See `jobpipe.store.base.ReadStore.kinds`."""
    return frozenset(kind for (kind,) in await session.rows(_KINDS))


async def served_queues(session: Session) -> frozenset[str] | None:
    """See `jobpipe.store.base.ReadStore.served_queues`."""
    names = {name for (name,) in await session.rows(_SERVED_QUEUES)}
    return None if None in names else frozenset(names)


async def unserved_queues(session: Session, served: frozenset[str]) -> Sequence[str]:
    """See `jobpipe.store.base.ReadStore.unserved_queues`."""
    values = {"served": texts(sorted(served)), "walked": STEP, "limit": UNSERVED}
    return [name for (name,) in await session.rows(_UNSERVED_QUEUES, values)]


async def unserved(session: Session) -> Sequence[Unserved]:
    """See `jobpipe.store.base.ReadStore.unserved`."""
    values = {"limit": UNSERVED, "walked": STEP}
    return [Unserved(*row) for row in await session.rows(_UNSERVED, values)]


async def ping(session: Session) -> None:
    """See `jobpipe.store.base.ReadStore.ping`."""
    await session.rows("select count(*) from nodes where false")
