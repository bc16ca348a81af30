"""The statement of a claim: which ready jobs a node takes, and in what order.

While nothing is in its way, a claim reads the first entries of one index over all queues: a small statement, since each
part of a large one costs time even where it has nothing to do. Many ready jobs of paused queues make it go queue by
queue. It puts jobs of other kinds aside, where only claims for their kind look.
A claim that names queues is another statement, which reads each of them about as far as it takes from it.
"""

from jobpipe.store.base import OTHERS
from jobpipe.store.postgres.counts import counting
from jobpipe.store.postgres.reader import (
    ASIDE,
    CLAIMABLE,
    FIRST_QUEUE,
    MINE_ASIDE,
    NEXT_QUEUE,
    NOT_ASIDE,
    ORDER,
    READY,
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
_CLAIMABLE = CLAIMABLE.format(of="l")
_PASSED_OVER = """
array(
    select name from queues where paused or gated
    union all
    select unnest(%(queues)s::text[])
)
"""
_OTHERS = f"{{of}}.queue <> all ({_PASSED_OVER})"
"""Neither paused nor gated, nor named by the claim."""
_IN_ORDER = ORDER.format(of="l")

# The large statement takes one of three ways. It reads one index over all queues, and passes over the jobs of paused
# ones; or, where those are too many, it reads the first jobs of each queue; and where jobs of its kinds stand aside, it
# merges.
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
        and {_CLAIMABLE}
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
    where w.round >= 0 and {{passing}}
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
        and {{passing}}
        and {_FRESH}
        and (select {{when}} from way)
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
            and {{passing}}
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
_ME = """
me as (
    select node
    from nodes
    where name = %(node)s and lease_until is not null
    for share
)
"""
_READY_ROWS = """
ready as (
    select j.seq, j.id, j.kind, j.payload, j.max_retries, j.options, j.kind = any (%(kinds)s) as mine
    from found
    join jobs j on j.seq = found.seq
)
"""
_ANSWER = """
select
    mine,
    -priority::bigint, run_at,
    seq, id, kind, queue, case when mine then payload end, priority, run_at,
    attempt, max_retries, claim, rescued, options,
    {last_walked},
    edited
from taken
"""
_LAST_WALKED = """
(
    select h.queue
    from heads h
    order by h.round desc, h.queue desc
    limit 1
)
"""
# A row without values says that something is in the way: many jobs of paused queues, or jobs of its kinds that stand
# aside.
_OBSTRUCTED = f"""
union all
select {", ".join(["null"] * 17)}
from way
where by_queue or aside
"""
CLAIM_PLAINLY = f"""
with {_ME},
{_WAY},
{_FIRST},
found as (
    select seq from first
),
{_READY_ROWS},
{_TAKEN},
{_COUNT_TAKEN}
{_ANSWER.format(last_walked="null::text")}
{_OBSTRUCTED}
"""
"""The claim while nothing is in its way; else it takes nothing, and `CLAIM` has to be asked."""

CLAIM = f"""
with recursive {_ME},
{_WAY},
{_FIRST},
{_WALK},
{_HEADS.format(passing=CLAIMABLE.format(of="w"))},
{_OF_QUEUES},
{_NEAR.format(passing=_CLAIMABLE, when="aside and not by_queue")},
{_OF_KINDS.format(passing=_CLAIMABLE)},
{_MERGED},
found as (
    select seq from first
    union all
    select seq from merged
),
{_READY_ROWS},
{_TAKEN},
{_COUNT_TAKEN}
{_ANSWER.format(last_walked=_LAST_WALKED)}
{_OBSTRUCTED}
"""
MINE, PLACE, CLAIMED, LAST_WALKED, EDITED = 0, slice(4), slice(3, -2), -2, -1
"""In a row of them: whether the job is taken (null: the row tells of no job), where it stands in line, the values of
`Claimed`, the last queue walked to, whether the job was edited.

A job's place in line ends with seq, with which the values of `Claimed` begin.
"""

# A claim that names queues. In each round they give their shares, in the order of the claim; in the last one come those
# without a share.
_LAST_ROUND = 1_000_000_000
_ASKED = f"""
asked as materialized (
    select a.queue, a.share, a.place
    from unnest(%(queues)s::text[], %(shares)s::bigint[]) with ordinality as a (queue, share, place)
    where {CLAIMABLE.format(of="a")}
)
"""
_WAY_BY_NAME = f"""
way as materialized (
    select {MINE_ASIDE.format(which="true")} as aside
)
"""
_WAY_AROUND = f"""
way as materialized (
    select
        coalesce(
            (
                select sum(c.jobs)
                from counts c
                where c.state = 'queued' and c.queue = any ({_PASSED_OVER})
            ) > %(passed)s,
            false
        ) as by_queue,
        {MINE_ASIDE.format(which="true")} as aside
)
"""
_AROUND = f"""
others as materialized (
    select *
    from (
        select * from of_queues
        union all
        select * from near
        union all
        select * from of_kinds
    ) o
    {ORDER.format(of="o")}
    limit {SPARE} * %(limit)s
)
"""
# What a queue has for the claim, as far as it is read.
_OF_NAMED = f"""
(
    select l.priority, l.run_at, l.seq
    from live l
    where {READY}
        and l.queue = a.queue
        and {NOT_ASIDE}
        and {_FRESH}
    {_IN_ORDER}
    limit {{most}}
)
union all
select r.*
from unnest(%(kinds)s) as k (kind) cross join lateral (
    select l.priority, l.run_at, l.seq
    from live l
    where {ASIDE}
        and l.queue = a.queue
        and l.kind = k.kind
        and {_FRESH}
    {_IN_ORDER}
    limit {{most}}
) r
where (select aside from way)
"""
_OF_OTHERS = f"""
union all
select o.priority, o.run_at, o.seq
from others o
where a.queue = '{OTHERS}'
"""
_GIVES = """
select
    case when a.share > 0 then (g.nth - 1) / a.share else {last} end as round,
    a.place, g.priority, g.run_at, g.seq
from asked a cross join lateral (
    select o.*, row_number() over (order by o.priority desc, o.run_at, o.seq) as nth
    from ({of_queue}) o
    order by o.priority desc, o.run_at, o.seq
    limit {most}
    offset {after}
) g
"""


def _by_queue(*, others: bool) -> str:
    """The statement of a claim that names queues, and perhaps all `others` with them."""
    of_queue = _OF_NAMED + (_OF_OTHERS if others else "")
    share = f"{SPARE} * a.share"

    def gives(most: str, after: str) -> str:
        of_these = of_queue.format(most=f"{most} + {after}")
        return _GIVES.format(last=_LAST_ROUND, of_queue=of_these, most=most, after=after)

    # More than that is read only as far as queues fall short: the second part is cut off by the limit.
    dealt = f"""
    dealt as (
        select d.*
        from (
            select * from ({gives(share, "0")}) at_first
            union all
            select * from ({gives("%(limit)s", share)}) then_more
        ) d
        limit {SPARE} * %(limit)s
    )
    """
    around = [
        _WALK,
        _HEADS.format(passing=_OTHERS.format(of="w")),
        _OF_QUEUES,
        _NEAR.format(passing=_OTHERS.format(of="l"), when="not by_queue"),
        _OF_KINDS.format(passing=_OTHERS.format(of="l")),
        _AROUND,
    ]
    parts = [
        _ME,
        _ASKED,
        *([_WAY_AROUND, *around] if others else [_WAY_BY_NAME]),
        dealt,
        _FOUND_BY_QUEUE,
        _READY_ROWS,
        _TAKEN,
        _COUNT_TAKEN,
    ]
    last_walked = _LAST_WALKED if others else "null"
    return f"with recursive {','.join(parts)} {_ANSWER.format(last_walked=last_walked)}"


_FOUND_BY_QUEUE = f"""
found as materialized (
    select l.seq
    from dealt d
    join live l on l.seq = d.seq
    where {_STILL_READY} and exists (select from me)
    order by d.round, d.place, d.priority desc, d.run_at, d.seq
    limit %(limit)s
    for update of l skip locked
)
"""
CLAIM_OF_QUEUES, CLAIM_WITH_OTHERS = _by_queue(others=False), _by_queue(others=True)
"""The claim of named queues, and of those and all others: their rows are those of `CLAIM`."""

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
_PUT_ASIDE = f"""
with near as materialized (
    {{near}}
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
_FRONT = f"""
    select l.seq
    from live l
    where {READY} and {_CLAIMABLE}
    {_IN_ORDER}
    limit %(slice)s
"""
_FRONT_OF_QUEUES = f"""
    select r.seq
    from unnest(%(queues)s::text[]) as a (queue) cross join lateral (
        select l.seq
        from live l
        where {READY} and l.queue = a.queue and {NOT_ASIDE}
        {_IN_ORDER}
        limit %(slice)s
    ) r
    where {CLAIMABLE.format(of="a")}
"""
PUT_ASIDE, PUT_ASIDE_OF_QUEUES = _PUT_ASIDE.format(near=_FRONT), _PUT_ASIDE.format(near=_FRONT_OF_QUEUES)

# The job that a claim of one job would take.
_HEAD = f"""
with near as (
    select l.priority, l.run_at, l.seq
    from live l
    join jobs j on j.seq = l.seq
    where {READY}
        and {{passing}}
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
            and {{passing}}
            and {_FRESH}
        {_IN_ORDER}
        limit 1
    ) r
)
select -l.priority::bigint, l.run_at, l.seq
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
HEAD = _HEAD.format(passing=_CLAIMABLE)
HEAD_OF_QUEUE = _HEAD.format(passing=f"l.queue = %(name)s and {_CLAIMABLE}")
HEAD_OF_OTHERS = _HEAD.format(passing=_OTHERS.format(of="l"))
