-- older nodes: must have stopped
-- Limits of queues and of keys in them, and whose turn it is. What waits of one key in one queue is a lane.
-- A queue is gated once it has a limit or a job with a key. Each of its jobs has a key then, and stands in its lane.

-- '' for a job of a gated queue that asked for none; null: its queue was not gated when it became ready.
alter table live add column key text collate "C";  -- where it is not null, "kind" is set too: no other claim comes across it

drop index live_ready_by_queue;
drop index live_aside;
drop index live_aside_by_queue;
create index live_ready_by_queue on live
    (queue, (case when key is not null then 2 when kind is null then 0 else 1 end), priority desc, run_at, seq)
    where status = 'queued' and node is null;
create index live_aside on live (kind, priority desc, run_at, seq)
    where kind is not null and key is null and status = 'queued' and node is null;
create index live_aside_by_queue on live (queue, kind, priority desc, run_at, seq)
    where kind is not null and key is null and status = 'queued' and node is null;
create index live_in_lane on live (queue, key, kind, priority desc, run_at, seq)
    where key is not null and status = 'queued' and node is null;
create index live_held_in_lane on live (queue, key) where key is not null and node is not null;

-- A rate is kept as one time, at which all its tokens would be there again ("tat").
alter table queues
    add column gated boolean not null default false,
    add column lining_up boolean not null default false,  -- jobs may not be in their lanes yet
    add column turn double precision not null default 0,  -- of the lanes in it: new ones come no earlier
    add column max_running int,
    add column rate_limit int,
    add column rate_period double precision,
    add column rate_burst int,
    add column tat double precision,
    add column key_max_running int,
    add column key_rate_limit int,
    add column key_rate_period double precision,
    add column key_rate_burst int;

create index queues_gated on queues (name) where gated;
-- Those that the claim of jobs without keys passes over.
create index queues_passed_over on queues (name) where paused or gated;

create table lanes (
    queue       text collate "C" not null,
    key         text collate "C" not null,
    turn        double precision not null,    -- how many of its jobs were claimed, by its weight: the lowest comes next
    state       smallint not null default 0,  -- 0: open, 1: rests until its rate allows a job, 2: full, 3: empty, 4: paused
    until       double precision,             -- when one that is not open is looked at again
    tat         double precision,
    weight      int not null default 1,
    max_running int,                          -- instead of what the queue says of each key
    primary key (queue, key)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

create index lanes_open on lanes (queue, turn, key) where state = 0;
create index lanes_later on lanes (until) where until is not null;
create index lanes_resting on lanes (until) where state = 1;
create index lanes_by_state on lanes (queue, state, key);

-- Lanes in which a job became ready, or a slot free, by whatever may not wait for their rows. The next exchange opens them.
create table lane_news (
    queue text collate "C" not null,
    key   text collate "C" not null,
    ready boolean not null  -- else one of its jobs is held no more
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

-- Seconds from one token of a rate to the next; null: there is none, or its row is damaged.
create function token_every(most int, period double precision, burst int) returns double precision language sql immutable as $$
    select case when burst between 1 and most and most <= 1000000 and period between 0.001 and 31536000
        then period / (most - burst + 1) end
$$;

-- How many tokens a rate has; `full_at`: when they would all be there.
create function tokens_at(every double precision, burst int, full_at double precision, at_time double precision)
returns bigint language sql immutable as $$
    select case when every is not null then greatest(0, least(burst, burst - ceil(
        (least(greatest(full_at, at_time), at_time + burst * every) - at_time) / every - 1e-6)))::bigint end
$$;

-- Subqueries for one row, here and below, are written so that the planner looks each up by its index: one with "exists" it
-- may answer by reading all jobs once.

-- What its limits say of each lane, whatever it is marked as: whether it has no ready job, whether as many of its jobs
-- are held as may be, and when its rate allows the next one.
create view lanes_judged as
select la.queue, la.key, la.weight, la.tat, la.max_running,
    (
        select l.seq
        from live l
        where l.key is not null and l.status = 'queued' and l.node is null and l.queue = la.queue and l.key = la.key
        order by l.kind, l.priority desc, l.run_at, l.seq
        limit 1
    ) is null as empty,
    coalesce(la.max_running, q.key_max_running) is not null and coalesce(la.max_running, q.key_max_running) <= (
        select count(*) from live l
        where l.key is not null and l.node is not null and l.queue = la.queue and l.key = la.key) as full_up,
    la.tat - (q.key_rate_burst - 1) * token_every(q.key_rate_limit, q.key_rate_period, q.key_rate_burst) as opens_at
from lanes la left join queues q on q.name = la.queue;

-- Open the lanes in which jobs are ready, and those marked full in which jobs are held no more; also those of "lane_news".
-- Until the end of this transaction none of them is closed by a claim, which may not see yet what was written here.
create function line_up(ready_queues text[], ready_keys text[], freed_queues text[], freed_keys text[]) returns void
language plpgsql as $$
#variable_conflict use_column
declare
    told_queues text[];
    told_keys text[];
    told_ready boolean[];
begin
    with told as (
        delete from lane_news
        where ctid = any (array(select ctid from lane_news limit 5000 for update skip locked))
        returning queue, key, ready)
    select array_agg(queue), array_agg(key), array_agg(ready) into told_queues, told_keys, told_ready from told;
    if told_queues is null and cardinality(ready_queues) = 0 and cardinality(freed_queues) = 0 then
        return;
    end if;
    ready_queues := ready_queues || array(select queue from unnest(told_queues, told_ready) t (queue, ready) where ready);
    ready_keys := ready_keys || array(select key from unnest(told_keys, told_ready) t (key, ready) where ready);
    freed_queues := freed_queues || told_queues || ready_queues;
    freed_keys := freed_keys || told_keys || ready_keys;
    insert into queues as q (name, gated, lining_up)
        select distinct r.queue, true, true
        from unnest(ready_queues) r (queue)
        where not exists (select from queues q where q.name = r.queue and q.gated)
        order by r.queue
    on conflict (name) do update set gated = true, lining_up = true where not q.gated;
    perform
        from (select distinct queue, key from unnest(freed_queues, freed_keys) f (queue, key)) f
        join lanes la on la.queue = f.queue and la.key = f.key
        where la.state <> 3
        order by la.queue, la.key
        for key share of la;
    -- Each statement sees what those before it have waited for.
    update lanes la
        set state = 0, until = null, turn = greatest(la.turn, coalesce(
            (select min(o.turn) from lanes o where o.queue = la.queue and o.state = 0),
            (select q.turn from queues q where q.name = la.queue), 0))
        from (
            select la.queue, la.key
            from (select distinct queue, key from unnest(freed_queues, freed_keys) f (queue, key)) f
            join lanes la on la.queue = f.queue and la.key = f.key
            where la.state = 2
            order by la.queue, la.key
            for no key update of la) f
        where la.queue = f.queue and la.key = f.key and la.state = 2;
    insert into lanes as la (queue, key, turn)
        select r.queue, r.key, coalesce(
            (select min(o.turn) from lanes o where o.queue = r.queue and o.state = 0),
            (select q.turn from queues q where q.name = r.queue), 0)
        from (select distinct queue, key from unnest(ready_queues, ready_keys) r (queue, key)) r
        where not exists (select from lanes la where la.queue = r.queue and la.key = r.key and la.state <> 3)
        order by r.queue, r.key
    on conflict (queue, key) do update set state = 0, until = null, turn = greatest(la.turn, excluded.turn)
        where la.state = 3;
end
$$;

-- Jobs of gated queues that are ready and have no key move into lanes, a bounded number; and so do the held ones of queues
-- that were gated a moment ago. "line_up" opens their lanes.
create function move_into_lanes(step bigint) returns void language plpgsql as $$
#variable_conflict use_column
declare
    names text[];
    held text[];
begin
    -- Of very many gated queues some, elsewhere each time.
    names := array(select name from queues where gated order by name limit 64);
    if cardinality(names) = 64 then
        names := array(
            select name from queues where gated order by name limit 64
            offset floor(random() * greatest(1, (select count(*) from queues where gated) - 32)));
    end if;
    names := names || array(select name from queues where gated and lining_up order by name limit 64);
    with found as materialized (
        select r.seq
        from unnest(names) n (queue) cross join (values (0), (1)) a (aside) cross join lateral (
            select l.seq
            from live l
            where l.status = 'queued' and l.node is null and l.queue = n.queue
                and (case when l.key is not null then 2 when l.kind is null then 0 else 1 end) = a.aside
            order by l.priority desc, l.run_at, l.seq
            limit step) r
        limit step),
    locked as materialized (
        select l.seq
        from live l
        where l.seq = any (array(select seq from found)) and l.key is null
        order by l.seq
        for update skip locked),
    moved as (
        update live l set key = '', kind = j.kind
        from locked f join jobs j on j.seq = f.seq
        where l.seq = f.seq
        returning l.queue)
    insert into lane_news (queue, key, ready) select distinct queue, '', true from moved;
    held := array(select name from queues where lining_up order by name limit 64);
    if cardinality(held) > 0 then
        with locked as materialized (
            select l.seq
            from live l
            where l.node is not null and l.key is null and l.queue = any (held)
            order by l.seq
            for update skip locked)
        update live l set key = '', kind = j.kind
            from locked f join jobs j on j.seq = f.seq
            where l.seq = f.seq;
        update queues q set lining_up = false
            from (select name from queues where name = any (held) order by name for no key update skip locked) n
            where q.name = n.name
                and not exists (select from live l where l.node is not null and l.key is null and l.queue = q.name)
                and (
                    select l.seq
                    from live l
                    where l.status = 'queued' and l.node is null and l.queue = q.name
                        and (case when l.key is not null then 2 when l.kind is null then 0 else 1 end) = 0
                    order by l.priority desc, l.run_at, l.seq
                    limit 1
                ) is null
                and (
                    select l.seq
                    from live l
                    where l.status = 'queued' and l.node is null and l.queue = q.name
                        and (case when l.key is not null then 2 when l.kind is null then 0 else 1 end) = 1
                    order by l.priority desc, l.run_at, l.seq
                    limit 1
                ) is null;
    end if;
end
$$;

-- Open lanes that rest or are full when it is time to look at them again, and forget those of which nothing is left.
create function open_due(at_time double precision) returns void language plpgsql as $$
#variable_conflict use_column
begin
    with due as materialized (
        select la.queue, la.key
        from lanes la
        where la.until is not null and la.until <= at_time
        order by la.until
        limit 1000
        for update skip locked),
    gone as (
        delete from lanes la using due d
        where la.queue = d.queue and la.key = d.key
            and la.state = 3 and la.weight = 1 and la.max_running is null)
    update lanes la
        set until = null,
            state = case when la.state in (1, 2) then 0 else la.state end,
            turn = case when la.state not in (1, 2) then la.turn else greatest(la.turn, coalesce(
                (select min(o.turn) from lanes o where o.queue = la.queue and o.state = 0),
                (select q.turn from queues q where q.name = la.queue), 0)) end
        from due d
        where la.queue = d.queue and la.key = d.key
            and not (la.state = 3 and la.weight = 1 and la.max_running is null);
end
$$;

-- Lock the queues whose limits are for all their keys together, of those from which jobs are to be claimed; null: of all.
-- One claim after another: each counts what those before it have taken. Waits a moment only, and leaves out the rest.
create function lock_limited(named text[]) returns void language plpgsql as $$
#variable_conflict use_column
declare
    waits constant text := current_setting('lock_timeout');
begin
    if not exists (select from queues where gated and (max_running is not null or rate_limit is not null)) then
        return;
    end if;
    begin
        perform set_config('lock_timeout', '100', true);
        perform
            from queues q
            where q.gated and (q.max_running is not null or q.rate_limit is not null) and not q.paused
                and (named is null or q.name = any (named))
                and (
                    select la.turn from lanes la where la.state = 0 and la.queue = q.name order by la.turn, la.key limit 1
                ) is not null
            order by q.name
            for no key update;
        perform set_config('lock_timeout', waits, true);
    exception when lock_not_available then
        null;
    end;
end
$$;

-- Take ready jobs of lanes for a node, behind the claim of those without keys under the same token: of both together the
-- first `most` are kept, in the order of the claim, and what was taken too many is given back. A job of a queue in which a
-- limit counts is taken among the first `free` only. `at_time`: null for the clock here. `named`, `shares`: as the claim names queues; null: all of them.
-- Returns the jobs that were taken (0), with their place in the order; the numbers of those that were given back (1);
-- a row (2) if jobs were left only since they were not among the first `free`; and one (3) if it has not looked at all open
-- lanes, but has changed some: a claim that found too little is to look again.
create function claim_gated(
    for_node text, at_time double precision, most bigint, free bigint, of_kinds text[], with_token bigint,
    in_slot bigint, named text[], shares bigint[]
) returns table (
    what int, by_priority bigint, by_time double precision, by_arrival bigint, place bigint,
    seq bigint, id text, kind text, queue text, key text, payload bytea, priority int, run_at double precision,
    attempt int, max_retries int, claim bigint, rescued int, options bytea, edited boolean
) language plpgsql as $$
#variable_conflict use_column
declare
    me int;
    start text collate "C";
    of_queues text[];
    caps bigint[];
    lanes_of text[];
    lanes_for text[];
    lane_caps bigint[];
    asked_time constant double precision := at_time;
    looked_at bigint;
    found bigint;
begin
    select node into me from nodes where name = for_node and lease_until is not null;
    if me is null then
        return;
    end if;
    -- From one queue with an open lane to the next by name, a thousand, from anywhere on and round.
    if named is not null and '*' <> all (named) then
        of_queues := named;
    else
        start := chr(48 + floor(random() * 75)::int);
        of_queues := array(
            with recursive walk (queue, round) as (
                select start, -1
                union all
                select n.queue, n.round
                from walk w cross join lateral (
                    select a.queue, greatest(w.round, 0) as round
                    from (
                        select la.queue from lanes la where la.state = 0 and la.queue > w.queue
                        order by la.queue, la.turn, la.key limit 1
                    ) a
                    union all
                    select b.queue, 1
                    from (
                        select la.queue from lanes la where la.state = 0
                        order by la.queue, la.turn, la.key limit 1
                    ) b
                    where w.round < 1
                    order by round
                    limit 1
                ) n
                where n.round = 0 or n.queue <= start
            )
            select w.queue from walk w where w.round >= 0 limit 1000) || named;
    end if;
    of_queues := array(
        select distinct o.queue
        from unnest(of_queues) o (queue) left join queues q on q.name = o.queue
        where q.paused is not true
            and (q.max_running is null and q.rate_limit is null or not q.gated)
            and (
                select la.turn from lanes la where la.state = 0 and la.queue = o.queue order by la.turn, la.key limit 1
            ) is not null
    ) || array(
        select q.name
        from queues q
        where q.name = any (of_queues) and not q.paused and q.gated
            and (q.max_running is not null or q.rate_limit is not null)
            and (
                select la.turn from lanes la where la.state = 0 and la.queue = q.name order by la.turn, la.key limit 1
            ) is not null
        order by q.name
        for no key update of q skip locked
    );
    -- The clock is read after the locks: so it never shows less than whoever had them before has read.
    at_time := coalesce(asked_time, extract(epoch from clock_timestamp()));
    -- Where it was set back, it delays by one token at most.
    update queues q
        set tat = at_time + q.rate_burst * token_every(q.rate_limit, q.rate_period, q.rate_burst)
        where q.name = any (of_queues)
            and q.tat > at_time + q.rate_burst * token_every(q.rate_limit, q.rate_period, q.rate_burst);
    -- Each statement sees what was committed before the locks of the one before it were had.
    select array_agg(c.queue), array_agg(c.cap) into of_queues, caps
    from (
        select o.queue, least(
            most,
            case when q.max_running is not null then greatest(0, q.max_running - (
                select count(*) from live l where l.key is not null and l.node is not null and l.queue = o.queue
            ) - (
                select count(*) from live l
                where q.lining_up and l.key is null and l.node is not null and l.queue = o.queue
            )) end,
            tokens_at(token_every(q.rate_limit, q.rate_period, q.rate_burst), q.rate_burst, q.tat, at_time)
        ) as cap
        from unnest(of_queues) o (queue) left join queues q on q.name = o.queue
    ) c
    where c.cap > 0;
    if of_queues is null then
        return;
    end if;
    -- Those that others are about are passed over. One without ready jobs is taken as well: it will be closed.
    looked_at := greatest(1, least(most, 4 * most / cardinality(of_queues)));
    select array_agg(x.queue), array_agg(x.key), array_agg(o.cap) into lanes_of, lanes_for, lane_caps
    from unnest(of_queues, caps) o (queue, cap) cross join lateral (
        select la.queue, la.key
        from lanes la
        where la.state = 0 and la.queue = o.queue
            and (
                (
                    select 1
                    from unnest(of_kinds) k (kind) cross join lateral (
                        select
                        from live l
                        where l.key is not null and l.status = 'queued' and l.node is null
                            and l.queue = la.queue and l.key = la.key and l.kind = k.kind
                        order by l.priority desc, l.run_at, l.seq
                        limit 1
                    ) r
                    limit 1
                ) is not null
                or (
                    select l.seq
                    from live l
                    where l.key is not null and l.status = 'queued' and l.node is null
                        and l.queue = la.queue and l.key = la.key
                    order by l.kind, l.priority desc, l.run_at, l.seq
                    limit 1
                ) is null
            )
        order by la.turn, la.key
        limit looked_at
        for no key update of la skip locked
    ) x;
    if lanes_of is null then
        return;
    end if;
    at_time := coalesce(asked_time, extract(epoch from clock_timestamp()));
    if not exists (select from unnest(lanes_of) u (queue) group by u.queue having count(*) >= looked_at) then
        looked_at := null;
    end if;
    if exists (select from queues q where q.name = any (of_queues) and q.key_rate_limit is not null) then
        update lanes la
            set tat = at_time + q.key_rate_burst * token_every(q.key_rate_limit, q.key_rate_period, q.key_rate_burst)
            from unnest(lanes_of, lanes_for) u (queue, key) join queues q on q.name = u.queue
            where la.queue = u.queue and la.key = u.key
                and la.tat > at_time
                    + q.key_rate_burst * token_every(q.key_rate_limit, q.key_rate_period, q.key_rate_burst);
    end if;
    return query
    with lane as materialized (
        select u.queue, u.key, u.n, u.cap, least(greatest(la.weight, 1), 1000) as weight,
            -- One that is far behind was damaged: it would have all jobs for long.
            case when la.turn between -1e300 and 1e300 then greatest(la.turn, t.turn - 1000) else t.turn end as turn,
            e.every, q.key_rate_burst as burst,
            least(
                u.cap,
                case when coalesce(la.max_running, q.key_max_running) is not null then
                    greatest(0, coalesce(la.max_running, q.key_max_running) - (
                        select count(*) from live l
                        where l.key is not null and l.node is not null and l.queue = u.queue and l.key = u.key)) end,
                tokens_at(e.every, q.key_rate_burst, la.tat, at_time)
            ) as room,
            coalesce(q.max_running, q.rate_limit, q.key_max_running, q.key_rate_limit) is not null
                or max(la.max_running) over (partition by u.queue) is not null as limited
        from unnest(lanes_of, lanes_for, lane_caps) with ordinality u (queue, key, cap, n)
        join lanes la on la.queue = u.queue and la.key = u.key
        left join queues q on q.name = u.queue
        cross join lateral (
            select token_every(q.key_rate_limit, q.key_rate_period, q.key_rate_burst) as every
        ) e
        cross join lateral (
            select case when q.turn between -1e300 and 1e300 then q.turn else 0 end as turn
        ) t
    ),
    -- Each of them is read about as far as its turns go; and farther only where its queue falls short.
    shared as materialized (
        select a.*, least(a.room, ceil(a.cap * a.weight / sum(a.weight) over (partition by a.queue))::bigint) as share
        from lane a
        where a.room > 0
    ),
    in_turn as materialized (
        select a.*, f.*
        from shared a cross join lateral (
            select r.seq, r.priority, r.run_at, row_number() over (order by r.priority desc, r.run_at, r.seq) as nth
            from unnest(of_kinds) k (kind) cross join lateral (
                select l.seq, l.priority, l.run_at
                from live l
                where l.key is not null and l.status = 'queued' and l.node is null
                    and l.queue = a.queue and l.key = a.key and l.kind = k.kind
                    and (l.expires_at is null or l.expires_at > at_time)
                    -- Not so where the database was damaged: then it would be in the way of those behind it.
                    and (select j.kind from jobs j where j.seq = l.seq) = k.kind
                order by l.priority desc, l.run_at, l.seq
                limit a.share
            ) r
            order by r.priority desc, r.run_at, r.seq
            limit a.share
        ) f
    ),
    beyond as materialized (
        select a.*, f.*
        from shared a cross join lateral (
            select r.seq, r.priority, r.run_at, row_number() over (order by r.priority desc, r.run_at, r.seq) as nth
            from unnest(of_kinds) k (kind) cross join lateral (
                select l.seq, l.priority, l.run_at
                from live l
                where l.key is not null and l.status = 'queued' and l.node is null
                    and l.queue = a.queue and l.key = a.key and l.kind = k.kind
                    and (l.expires_at is null or l.expires_at > at_time)
                    -- Not so where the database was damaged: then it would be in the way of those behind it.
                    and (select j.kind from jobs j where j.seq = l.seq) = k.kind
                order by l.priority desc, l.run_at, l.seq
                limit a.room
            ) r
            order by r.priority desc, r.run_at, r.seq
            limit a.room - a.share
            offset a.share
        ) f
        where a.room > a.share
            and a.queue <> all (array(select s.queue from in_turn s group by s.queue, s.cap having count(*) >= s.cap))
    ),
    dealt as (
        select h.*, row_number() over (
            partition by h.queue order by h.turn + (h.nth - 1) / h.weight::double precision, h.n, h.nth) as place
        from (select * from in_turn union all select * from beyond) h
    ),
    -- No job comes before one of its queue whose turn was before it.
    fit as (
        select d.queue, d.key, d.seq, d.limited, d.place, d.turn, d.weight, d.every,
            max(-d.priority::bigint) over turns as by_priority,
            max(d.run_at::double precision) over turns as by_time,
            max(d.seq) over turns as by_arrival
        from dealt d
        where d.place <= d.cap
        window turns as (partition by d.queue order by d.place)
    ),
    plain as materialized (
        select l.seq, l.queue, -l.priority::bigint as by_priority, l.run_at::double precision as by_time
        from live l
        where l.node = me and l.token = with_token
    ),
    line as (
        select f.seq, f.queue, f.key, f.limited, f.by_priority, f.by_time, f.by_arrival, f.place, f.turn, f.weight, f.every
        from fit f
        union all
        select p.seq, p.queue, null, false, p.by_priority, p.by_time, p.seq, 0, null, null, null
        from plain p
    ),
    rounds as (
        select l.*, s.place as queue_place, case when s.share > 0 then (row_number() over (
            partition by s.place order by l.by_priority, l.by_time, l.by_arrival, l.place) - 1) / s.share end as round
        from line l
        join unnest(coalesce(named, array['*']), coalesce(shares, array[0])) with ordinality s (queue, share, place)
            on s.queue = case when l.queue = any (named) then l.queue else '*' end
    ),
    ranked as (
        select r.*, row_number() over (
            order by r.round nulls last, r.queue_place, r.by_priority, r.by_time, r.by_arrival, r.place) as rank
        from rounds r
    ),
    weighed as materialized (
        select r.*, not r.limited or r.rank <= free as fits,
            count(*) filter (where not r.limited or r.rank <= free) over (order by r.rank) as fitting
        from ranked r
    ),
    kept as materialized (
        select * from weighed w where w.fits and w.fitting <= most
    ),
    locked as materialized (
        select k.*
        from kept k
        join live l on l.seq = k.seq
        where k.key is not null and l.status = 'queued' and coalesce(l.node, 0) = 0
        for update of l skip locked
    ),
    taken as (
        update live l
        set claim = l.claim + 1, node = me, token = with_token, started_at = null
        from locked k join jobs j on j.seq = k.seq
        where l.seq = k.seq
        returning l.seq, j.id, j.kind, l.queue, l.key, j.payload, l.priority, l.run_at, l.attempt, j.max_retries, l.claim,
            l.rescued, j.options, l.edited, k.by_priority, k.by_time, k.by_arrival, k.place, k.turn, k.weight, k.every
    ),
    given_back as (
        update live l
        set claim = l.claim - 1, node = null, token = null
        from plain p
        where l.seq = p.seq and p.seq <> all (array(select k.seq from kept k where k.key is null))
        returning l.seq, l.queue
    ),
    served as (
        select t.queue, t.key, t.turn, t.weight, t.every, count(*) as jobs
        from taken t
        group by t.queue, t.key, t.turn, t.weight, t.every
    ),
    turned as (
        update lanes la
        set turn = s.turn + s.jobs / s.weight::double precision,
            tat = case when s.every is null then la.tat else greatest(la.tat, at_time) + s.jobs * s.every end
        from served s
        where la.queue = s.queue and la.key = s.key
    ),
    spent as (
        update queues q
        set tat = greatest(q.tat, at_time) + s.jobs * e.every
        from (select s.queue, sum(s.jobs) as jobs from served s group by s.queue) s
        join queues r on r.name = s.queue
        cross join lateral (select token_every(r.rate_limit, r.rate_period, r.rate_burst) as every) e
        where q.name = s.queue and e.every is not null
    ),
    moved as (
        select m.queue, sum(m.jobs) as jobs
        from (
            select s.queue, -s.jobs as jobs from served s
            union all
            select g.queue, 1 from given_back g
        ) m
        group by m.queue
    ),
    counted as (
        insert into counts (queue, state, slot, jobs, size)
        select m.queue, 'queued', in_slot, m.jobs, 0 from moved m order by m.queue
        on conflict (queue, state, slot) do update set
            jobs = least(greatest(counts.jobs, -1000000000000000), 1000000000000000) + excluded.jobs
    ),
    totalled as (
        insert into totals (state, slot, jobs, size)
        select 'queued', in_slot, sum(m.jobs), 0 from moved m having count(*) > 0
        on conflict (state, slot) do update set
            jobs = least(greatest(totals.jobs, -1000000000000000), 1000000000000000) + excluded.jobs
    )
    select 0, t.by_priority, t.by_time, t.by_arrival, t.place, t.seq, t.id, t.kind, t.queue, t.key, t.payload,
        t.priority, t.run_at::double precision, t.attempt, t.max_retries, t.claim, t.rescued, t.options, t.edited
    from taken t
    union all
    select 1, null, null, null, null, g.seq, null, null, null, null, null, null, null, null, null, null, null, null, null
    from given_back g
    union all
    select 2, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null
    where exists (select from weighed w where not w.fits and w.fitting < most);
    get diagnostics found = row_count;
    -- A queue that is left without open lanes remembers how far its turns have come.
    update queues q
        set turn = t.turn
        from (
            select n.name, s.turn
            from (
                select u.queue, min(la.turn) as turn
                from unnest(lanes_of, lanes_for) u (queue, key)
                join lanes la on la.queue = u.queue and la.key = u.key
                group by u.queue
            ) s
            join queues n on n.name = s.queue
            where s.turn > n.turn or (n.turn between -1e300 and 1e300) is not true
            order by n.name
            for no key update of n skip locked
        ) t
        where q.name = t.name;
    -- Closed is only what nobody has changed who is not committed yet; it is looked at once more under the lock.
    select array_agg(c.queue), array_agg(c.key) into lanes_of, lanes_for
    from (
        select la.queue, la.key
        from unnest(lanes_of, lanes_for) u (queue, key)
        join lanes_judged j on j.queue = u.queue and j.key = u.key
        join lanes la on la.queue = u.queue and la.key = u.key
        where j.empty or j.full_up or j.opens_at > at_time
        order by la.queue, la.key
        for update of la skip locked
    ) c;
    if looked_at is not null and (found > 0 or lanes_of is not null) then
        return query select 3, null::bigint, null::double precision, null::bigint, null::bigint, null::bigint, null, null,
            null, null, null::bytea, null::int, null::double precision, null::int, null::int, null::bigint, null::int,
            null::bytea, null::boolean;
    end if;
    with verdict as materialized (
        select j.*,
            case when j.empty then 3 when j.full_up then 2 when j.opens_at > at_time then 1 else 0 end as becomes
        from unnest(lanes_of, lanes_for) u (queue, key)
        join lanes_judged j on j.queue = u.queue and j.key = u.key
    ),
    gone as (
        delete from lanes la
        using verdict v
        where la.queue = v.queue and la.key = v.key
            and v.becomes = 3 and v.weight = 1 and v.max_running is null and coalesce(v.tat, 0) <= at_time
    )
    update lanes la
        set state = v.becomes,
            until = case v.becomes when 1 then v.opens_at when 2 then at_time + 5 when 3 then nullif(greatest(v.tat, at_time), at_time) end
        from verdict v
        where la.queue = v.queue and la.key = v.key
            and not (v.becomes = 3 and v.weight = 1 and v.max_running is null and coalesce(v.tat, 0) <= at_time);
end
$$;

-- promote() leaves word of the lanes whose jobs it makes ready.
do $patch$
declare
    all_at_once constant text := pg_get_functiondef('promote'::regproc);
    place constant text := 'returning l.queue, d.status as before),';
    told constant text := $told$returning l.queue, l.key, d.status as before),
    told as (insert into lane_news (queue, key, ready) select distinct queue, key, true from queued where key is not null),$told$;
    one_by_one constant text := pg_get_functiondef('promote_one_by_one'::regproc);
    place_of_one constant text := $$update live set status = 'queued' where seq = due.seq;$$;
    told_of_one constant text := $told$
                    insert into lane_news (queue, key, ready) select due.queue, due.key, true where due.key is not null;$told$;
begin
    if strpos(all_at_once, place) = 0 or strpos(one_by_one, place_of_one) = 0 then
        raise exception 'the functions promote() and promote_one_by_one() are not as expected';
    end if;
    execute replace(all_at_once, place, told);
    execute replace(one_by_one, place_of_one, place_of_one || told_of_one);
end
$patch$;

-- enqueue() takes a key. A job that it enqueues without one into a gated queue gets its lane from a claim. It has another
-- parameter, so it is another function: whoever was allowed to execute the old one may execute it, too.
do $patch$
declare
    old constant regprocedure := (select oid::regprocedure from pg_proc where oid = 'enqueue'::regproc);
    allowed constant aclitem[] := (select proacl from pg_proc where oid = old);
    body text := pg_get_functiondef(old);
    granted record;
    changes constant text[] := array[
        ')
 RETURNS text',
        ', key text DEFAULT NULL::text)
 RETURNS text',
        'when enqueue.backoff is not null then wrong_backoff(enqueue.backoff)',
        $new$when length(enqueue.key) not between 1 and 200 or enqueue.key collate "C" ~ not_in_ids or enqueue.key in ('.', '..')
            then 'key: 1 to 200 characters, without spaces, slashes and control characters'
        when enqueue.backoff is not null then wrong_backoff(enqueue.backoff)$new$,
        $old$'delay', enqueue.delay,$old$,
        $new$'key', enqueue.key,
        'delay', enqueue.delay,$new$,
        'insert into live (seq, kind, queue, status, priority, run_at, created_at, expires_at)',
        'insert into live (seq, kind, queue, status, priority, run_at, created_at, expires_at, key)',
        'values (job_seq, case when exists (',
        'values (job_seq, case when enqueue.key is not null or exists (',
        'enqueue.priority, due, now_at, until);',
        'enqueue.priority, due, now_at, until, enqueue.key);
    insert into lane_news (queue, key, ready)
        select enqueue.queue, enqueue.key, true where enqueue.key is not null and due <= now_at;'];
begin
    for n in 1 .. cardinality(changes) by 2 loop
        if strpos(body, changes[n]) = 0 then
            raise exception 'the function enqueue() is not as expected';
        end if;
        body := replace(body, changes[n], changes[n + 1]);
    end loop;
    execute 'drop function ' || old;
    execute body;
    execute format('revoke execute on function %s from public', 'enqueue'::regproc::oid::regprocedure);
    for granted in select distinct a.grantee::regrole as name from aclexplode(allowed) a where a.grantee <> 0 loop
        execute format('grant execute on function %s to %s', 'enqueue'::regproc::oid::regprocedure, granted.name);
    end loop;
end
$patch$;

do $$ begin execute format('revoke execute on all functions in schema %I from public', current_schema()); end $$;
