-- older nodes: must have stopped
-- Strict order within keys: of a key in a queue that keeps order, one job at a time, the first that has not ended. A node of
-- an older version would not stop a key at a job that failed.

-- Null: none; 'go_on' or 'stop': what a failed job means for those behind it.
alter table queues add column key_order text check (key_order in ('go_on', 'stop'));

create index queues_ordered on queues (name) where key_order is not null;

-- The jobs of a key, in line: those that were claimed before, then the others; each as they came.
create index live_in_line on live (queue, key, (claim = 0), seq) where key is not null;

-- The failed jobs for which a key stands still, until somebody has seen to them.
create table stopped_keys (
    queue text collate "C" not null,
    key   text collate "C" not null,
    seq   bigint not null,
    id    text collate "C" not null,
    primary key (queue, key, seq)
);

-- The job of a lane that comes before all others, where order counts; it may have to wait. Not one that would be first for
-- ever since the database was damaged: it could not be claimed, or seems to run and is not held.
create function first_in_line(of_queue text, of_key text) returns table (
    seq bigint, kind text, priority int, run_at double precision, expires_at double precision, ready boolean
) language sql stable as $$
    select l.seq, l.kind::text, l.priority::int, l.run_at::double precision, l.expires_at::double precision,
        l.status = 'queued' and l.node is null
    from live l
    where l.key is not null and l.queue = of_queue and l.key = of_key
        and (l.node is not null or l.status not in ('running', 'cancelling'))
        and (select j.kind from jobs j where j.seq = l.seq) = l.kind
    order by (l.claim = 0), l.seq
    limit 1
$$;

-- In an ordered lane one job at a time is held, nothing is ready while its first job is not, and it may be stopped.
create or replace view lanes_judged as
select la.queue, la.key, la.weight, la.tat, la.max_running,
    case when o.in_line then
        (
            select l.seq
            from live l
            where l.key is not null and l.node is not null and l.queue = la.queue and l.key = la.key
            limit 1
        ) is null and (select f.ready from first_in_line(la.queue, la.key) f) is not true
    else
        (
            select l.seq
            from live l
            where l.key is not null and l.status = 'queued' and l.node is null and l.queue = la.queue and l.key = la.key
            order by l.kind, l.priority desc, l.run_at, l.seq
            limit 1
        ) is null
    end as empty,
    o.most is not null and o.most <= (
        select count(*) from live l
        where l.key is not null and l.node is not null and l.queue = la.queue and l.key = la.key) as full_up,
    la.tat - (q.key_rate_burst - 1) * token_every(q.key_rate_limit, q.key_rate_period, q.key_rate_burst) as opens_at,
    o.in_line and q.key_order = 'stop'
        and exists (select from stopped_keys s where s.queue = la.queue and s.key = la.key) as stopped
from lanes la
left join queues q on q.name = la.queue
cross join lateral (
    select q.key_order is not null and la.key <> '' as in_line,
        least(
            coalesce(la.max_running, q.key_max_running),
            case when q.key_order is not null and la.key <> '' then 1 end
        ) as most
) o;

-- Functions of earlier versions take order into account.
create function patched(which regproc, changes text[]) returns void language plpgsql as $$
declare
    body text := pg_get_functiondef(which);
begin
    for n in 1 .. cardinality(changes) by 2 loop
        if strpos(body, changes[n]) = 0 then
            raise exception 'the function % is not as expected', which;
        end if;
        body := replace(body, changes[n], changes[n + 1]);
    end loop;
    execute body;
end
$$;

-- A lane that had stopped is looked at again like one that was empty.
select patched('line_up', array[
    'where la.state <> 3',
    'where la.state not in (3, 5)',
    'and la.key = r.key and la.state <> 3)',
    'and la.key = r.key and la.state not in (3, 5))',
    'where la.state = 3;',
    'where la.state in (3, 5);'
]);

select patched('claim_gated', array[
    '    found bigint;
begin',
    '    found bigint;
    in_order text[];
begin',
    'select array_agg(c.queue), array_agg(c.cap) into of_queues, caps',
    'select array_agg(c.queue), array_agg(c.cap), coalesce(array_agg(c.queue) filter (where c.in_order), ''{}'')
    into of_queues, caps, in_order',
    ') as cap
        from unnest(of_queues)',
    ') as cap, q.key_order is not null as in_order
        from unnest(of_queues)',
    -- Of a lane in order the first job counts alone; one whose first job is of another kind is left to other nodes.
    'where la.state = 0 and la.queue = o.queue
            and (',
    'where la.state = 0 and la.queue = o.queue
            and case when la.key <> '''' and la.queue = any (in_order) then
                (
                    select f.ready and f.kind <> all (of_kinds) from first_in_line(la.queue, la.key) f
                ) is not true
            else (',
    ') is null
            )
        order by la.turn, la.key
        limit looked_at',
    ') is null
            ) end
        order by la.turn, la.key
        limit looked_at',
    'e.every, q.key_rate_burst as burst,',
    'e.every, q.key_rate_burst as burst, u.key <> '''' and u.queue = any (in_order) as in_line,',
    'case when coalesce(la.max_running, q.key_max_running) is not null then
                    greatest(0, coalesce(la.max_running, q.key_max_running) - (',
    'case when u.key <> '''' and q.key_order = ''stop''
                    and exists (select from stopped_keys s where s.queue = u.queue and s.key = u.key)
                then 0 end,
                case when coalesce(la.max_running, q.key_max_running) is not null
                    or u.key <> '''' and u.queue = any (in_order)
                then
                    greatest(0, least(
                        coalesce(la.max_running, q.key_max_running),
                        case when u.key <> '''' and u.queue = any (in_order) then 1 end
                    ) - (',
    'limit a.share
        ) f
    ),',
    'limit a.share
        ) f
        where not a.in_line
        union all
        select a.*, f.seq, f.priority, f.run_at, 1::bigint
        from shared a cross join lateral first_in_line(a.queue, a.key) f
        where a.in_line and f.ready and f.kind = any (of_kinds) and (f.expires_at is null or f.expires_at > at_time)
    ),',
    'where a.room > a.share
',
    'where a.room > a.share and not a.in_line
',
    -- One that was moved since it was looked at is no more of this lane.
    'where k.key is not null and l.status = ''queued'' and coalesce(l.node, 0) = 0',
    'where k.key is not null and l.status = ''queued'' and coalesce(l.node, 0) = 0
            and (l.queue, l.key) is not distinct from (k.queue, k.key)',
    'where j.empty or j.full_up or j.opens_at > at_time',
    'where j.empty or j.full_up or j.opens_at > at_time or j.stopped',
    'case when j.empty then 3',
    'case when j.stopped then 5 when j.empty then 3'
]);

-- Where a job expires that was first in its lane, another one is first.
select patched('promote', array[
    'waited as (delete from waits w using gone g where w.seq = g.seq and g.status = ''blocked''),',
    'waited as (delete from waits w using gone g where w.seq = g.seq and g.status = ''blocked''),
    moved_up as (
        insert into lane_news (queue, key, ready)
        select distinct g.queue, g.key, true
        from gone g
        where g.key <> '''' and g.queue = any (array(select name from queues where key_order is not null))),'
]);
select patched('promote_one_by_one', array[
    'delete from waits where seq = due.seq;',
    'delete from waits where seq = due.seq;
                    insert into lane_news (queue, key, ready)
                        select q.name, due.key, true from queues q
                        where q.name = due.queue and q.key_order is not null and due.key <> '''';
                    insert into stopped_keys (queue, key, seq, id)
                        select q.name, due.key, due.seq, j.id from queues q join jobs j on j.seq = due.seq
                        where q.name = due.queue and q.key_order = ''stop'' and due.key <> '''' and becomes = ''failed''
                    on conflict do nothing;'
]);

drop function patched(regproc, text[]);

do $$ begin execute format('revoke execute on all functions in schema %I from public', current_schema()); end $$;
