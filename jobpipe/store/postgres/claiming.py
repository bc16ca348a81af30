"""The statement of a claim: which ready jobs a node takes, and in what order.

While nothing is in its way, a claim reads the first entries of one index over all queues. Many ready jobs of paused
queues make it go queue by queue. It puts jobs of other kinds aside, where only claims for their kind look.
"""

from jobpipe.store.postgres.counts import counting
from jobpipe.store.postgres.reader import (
    ASIDE,
    FIRST_QUEUE,
    MINE_ASIDE,
    NEXT_QUEUE,
    NOT_ASIDE,
    ORDER,
    READY,
    UNPAUSED,
)

PASSED = 10_000
"""How many ready jobs of paused queues a claim may pass over, before it reads queue by queue instead."""

WALKED = 1_000
"""How many queues such a claim reads; the next one continues behind them."""

SLICE, SLICES = 1_000, 5
"""How many ready jobs are looked at in one step to put aside those of other kinds, and how often in one exchange."""

SPARE = 4
"""How many times as many jobs as it wants a claim reads where it merges: other nodes may hold the first ones."""

# "Ready", said so that the planner looks up each row by its key, and takes no index of ready jobs for a short cut.
_STILL_READY = "l.status = 'queued' and coalesce(l.node, 0) = 0"
_FRESH = "(l.expires_at is null or l.expires_at > %(now)s)"
_UNPAUSED = UNPAUSED.format(of="l")
_IN_ORDER = ORDER.format(of="l")

# The server takes one of three ways. It reads one index over all queues, and passes over the jobs of paused ones; or,
# where those are too many, it reads the first jobs of each queue; and where jobs of its kinds stand aside, it merges.
_WAY = f"""
way as materialized (
    select
        exists (select from queues where paused)
        and coalesce(
            (
                select sum(c.jobs)
                from queues q
                join counts c on c.queue = q.name and c.state = 'queued'
                where q.paused
            ) > %(passed)s,
            false
        ) as by_queue,
        (
            select l.kind
            from live l
            where {ASIDE}
            order by l.kind
            limit 1
        ) is not null
        and {MINE_ASIDE.format(which="true")} as aside
)
"""
_FIRST = f"""
first as materialized (
    select l.seq
    from live l
    where {READY}
        and {_UNPAUSED}
        and {_FRESH}
        and not (select by_queue or aside from way)
        and exists (select from me)
    {_IN_ORDER}
    limit %(limit)s
    for update skip locked
)
"""
# From one queue that has a ready job to the next, and round to where it began.
_WALK = f"""
walk (queue, round) as (
    select %(after)s::text collate "C", -1
    from way
    where by_queue
    union all
    select n.queue, n.round
    from walk w cross join lateral (
        select queue, greatest(w.round, 0) as round
        from {NEXT_QUEUE.format(after="w.queue")} a
        union all
        select queue, 1
        from {FIRST_QUEUE} b
        where w.round < 1
        order by round
        limit 1
    ) n
    where n.round = 0 or n.queue <= %(after)s
)
"""
_HEADS = f"""
heads as materialized (
    select w.queue, w.round, r.*
    from walk w cross join lateral (
        select l.priority, l.run_at, l.seq
        from live l
        where {READY}
            and l.queue = w.queue
            and {NOT_ASIDE}
            and {_FRESH}
        {_IN_ORDER}
        limit 1
    ) r
    where w.round >= 0 and {UNPAUSED.format(of="w")}
    limit %(walked)s
)
"""
_OF_QUEUES = f"""
of_queues as (
    select r.*
    from (
        select h.queue
        from heads h
        {ORDER.format(of="h")}
        limit %(limit)s
    ) h cross join lateral (
        select l.priority, l.run_at, l.seq
        from live l
        where {READY}
            and l.queue = h.queue
            and {NOT_ASIDE}
            and {_FRESH}
        {_IN_ORDER}
        limit %(limit)s
    ) r
    {ORDER.format(of="r")}
    limit 10 * %(limit)s
)
"""
_NEAR = f"""
near as (
    select l.priority, l.run_at, l.seq
    from live l
    where {READY}
        and {_UNPAUSED}
        and {_FRESH}
        and (select aside and not by_queue from way)
    {_IN_ORDER}
    limit {SPARE} * %(limit)s
)
"""
_OF_KINDS = f"""
of_kinds as (
    select r.*
    from unnest(%(kinds)s) as k (kind) cross join lateral (
        select l.priority, l.run_at, l.seq
        from live l
        where {ASIDE}
            and l.kind = k.kind
            and {_UNPAUSED}
            and {_FRESH}
        {_IN_ORDER}
        limit {SPARE} * %(limit)s
    ) r
    where (select aside from way)
)
"""
# Locking a row costs about ten times as much as reading it, so the candidates are read first and locked in order.
_MERGED = f"""
merged as materialized (
    select l.seq
    from (
        select * from of_queues
        union all
        select * from near
        union all
        select * from of_kinds
        order by priority desc, run_at, seq
        limit 10 * %(limit)s
    ) c
    join live l on l.seq = c.seq
    where {_STILL_READY} and exists (select from me)
    {ORDER.format(of="c")}
    limit %(limit)s
    for update of l skip locked
)
"""
# A job of another kind that was met is put aside, where no claim of this node meets it again.
_TAKEN = """
taken as (
    update live l
    set kind = case when r.mine then l.kind else r.kind end,
        claim = l.claim + r.mine::int,
        node = case when r.mine then (select node from me) end,
        token = case when r.mine then %(token)s::bigint end,
        started_at = case when not r.mine then l.started_at end
    from ready r
    where l.seq = r.seq
    returning
        l.priority, l.run_at, l.seq, r.id, r.kind, l.queue, r.payload, l.attempt, r.max_retries, l.claim,
        l.rescued, r.options, r.mine, l.edited
)
"""
_COUNT_TAKEN = counting("select queue, 'queued', -1, 0 from taken where mine")
# The node's row is locked, so that no rescue can take it for dead before what is claimed here is committed.
CLAIM = f"""
with recursive me as (
    select node
    from nodes
    where name = %(node)s and lease_until is not null
    for share
),
{_WAY},
{_FIRST},
{_WALK},
{_HEADS},
{_OF_QUEUES},
{_NEAR},
{_OF_KINDS},
{_MERGED},
found as (
    select seq from first
    union all
    select seq from merged
),
ready as (
    select j.seq, j.id, j.kind, j.payload, j.max_retries, j.options, j.kind = any (%(kinds)s) as mine
    from found
    join jobs j on j.seq = found.seq
),
{_TAKEN},
{_COUNT_TAKEN}
select
    mine,
    -priority::bigint, run_at,
    seq, id, kind, queue, case when mine then payload end, priority, run_at,
    attempt, max_retries, claim, rescued, options,
    (
        select h.queue
        from heads h
        order by h.round desc, h.queue desc
        limit 1
    ),
    edited
from taken
"""
MINE, PLACE, CLAIMED, LAST_WALKED, EDITED = 0, slice(4), slice(3, -2), -2, -1
"""In a row of it: whether the job is taken, where it stands in line, the values of `Claimed`, the last queue walked to,
whether the job was edited.

A job's place in line ends with seq, with which the values of `Claimed` begin.
"""

# The values of `Claimed`, of jobs that "live" says were edited: their claim may have joined them as they were before.
ASKED_NOW = """
select
    l.seq, j.id, j.kind, l.queue, j.payload, l.priority, l.run_at,
    l.attempt, j.max_retries, l.claim, l.rescued, j.options
from live l
join jobs j on j.seq = l.seq
where l.seq = any (%(seqs)s)
"""

# Done in slices behind a claim that met a job of another kind, so that the next claim meets few.
PUT_ASIDE = f"""
with near as materialized (
    select l.seq
    from live l
    where {READY} and {_UNPAUSED}
    {_IN_ORDER}
    limit %(slice)s
),
others as materialized (
    select l.seq, j.kind
    from near n
    join jobs j on j.seq = n.seq
    join live l on l.seq = n.seq
    where j.kind <> all (%(kinds)s) and l.kind is null and {_STILL_READY}
    order by l.seq
    for update of l skip locked
)
update live l
set kind = o.kind
from others o
where l.seq = o.seq
returning 1
"""

# The job that a claim of one job would take.
HEAD = f"""
with near as (
    select l.priority, l.run_at, l.seq
    from live l
    join jobs j on j.seq = l.seq
    where {READY}
        and {_UNPAUSED}
        and {_FRESH}
        and j.kind = any (%(kinds)s)
    {_IN_ORDER}
    limit 1
),
of_kinds as (
    select r.*
    from unnest(%(kinds)s) as k (kind) cross join lateral (
        select l.priority, l.run_at, l.seq
        from live l
        where {ASIDE}
            and l.kind = k.kind
            and {_UNPAUSED}
            and {_FRESH}
        {_IN_ORDER}
        limit 1
    ) r
)
select l.seq
from (
    select * from near
    union all
    select * from of_kinds
    order by priority desc, run_at, seq
    limit 1
) c
join live l on l.seq = c.seq
for update of l skip locked
"""
