-- older nodes: must have stopped
-- Jobs that wait for other jobs, and what is left to be done that follows the ends of jobs.

alter table live
    drop constraint live_status_check,
    add constraint live_status_check check (status in
        ('blocked', 'scheduled', 'queued', 'running', 'retrying', 'cancelling')),
    add column followed boolean not null default false;  -- others may wait for its end: whoever ends it does what follows

-- For lists, newest first.
create index live_blocked on live (created_at, seq) where status = 'blocked';
drop index live_later_by_queue;
create index live_later_by_queue on live (queue, status, created_at, seq)
    where status in ('blocked', 'scheduled', 'retrying');

-- Who waits for whom: rows only for jobs that asked for it, deleted when the one ends or the other waits no more.
create table waits (
    on_seq     bigint not null,
    seq        bigint not null,
    needs_done smallint not null,  -- 1: it has to be done; 0: it has to end, however that is
    primary key (on_seq, seq)
);

create index waits_of on waits (seq);

-- Jobs that have ended while others, with numbers up to `upto`, wait for it and do not know yet.
create table follow_ups (
    seq   bigint not null,
    upto  bigint not null,
    id    text collate "C" not null,
    ended text collate "C" not null check (ended in ('done', 'failed', 'cancelled', 'expired', 'deleted')),
    primary key (seq, upto)
);

create or replace view shown as
select j.seq, j.id, j.kind, j.queue, coalesce(l.status, j.status, 'cancelled') as status, j.priority, j.payload, j.result,
    case when l.seq is null then j.error else l.error end as error,
    case when l.seq is null then j.attempt else l.attempt end as attempt,
    j.max_retries,
    case when l.seq is null then j.claim else l.claim end as claim,
    j.created_at,
    case when l.seq is null then j.run_at else l.run_at end as run_at,
    case when l.seq is null then j.started_at else l.started_at end as started_at,
    j.finished_at, j.expires_at, j.options,
    (select n.name from nodes n where n.node = coalesce(l.node, j.node)) as node,
    l.node is not null as held, j.size,
    case when l.seq is null then j.rescued else l.rescued end as rescued,
    coalesce(l.watched, false) as watched, j.original,
    coalesce(l.followed, false) as followed
from jobs j left join live l on l.seq = j.seq;

drop function promote(double precision, bigint, bigint);
drop function promote_one_by_one(double precision, bigint, bigint);

-- Make ready what is due at a time, and expire what is past its time, at most so many jobs of each; counted in a slot.
-- Returns how many became ready, the ids of the watched ones that expired, and whether there are jobs to be expired that
-- others wait for: those are left, since more follows from their ends than is done here.
create function promote(
    at_time double precision, step bigint, in_slot bigint,
    out ready bigint, out watched text[], out left_followed boolean
)
language plpgsql as $$
#variable_conflict use_column
begin
    left_followed := exists (
        select from (
            select followed from live where expires_at is not null and node is null and expires_at <= at_time
            order by expires_at limit step) overdue
        where followed);
    with overdue as (
        select l.seq, l.status
        from live l join jobs j on j.seq = l.seq
        where l.expires_at is not null and l.node is null and l.expires_at <= at_time and not l.followed
        order by l.expires_at
        limit step
        for update of l skip locked
        for no key update of j skip locked),
    gone as (delete from live l using overdue o where l.seq = o.seq returning l.*),
    waited as (delete from waits w using gone g where w.seq = g.seq and g.status = 'blocked'),
    expired as (
        update jobs j set status = 'expired', finished_at = at_time, size = length(j.payload), run_at = g.run_at,
            attempt = greatest(g.attempt, 0), claim = g.claim, rescued = g.rescued, started_at = g.started_at, error = g.error
        from gone g where j.seq = g.seq returning j.id, j.queue, g.status as before, j.size, g.watched),
    due as (
        select seq, status from live where status in ('scheduled', 'retrying') and run_at <= at_time
            and (expires_at is null or expires_at > at_time)
        order by run_at limit step for update skip locked),
    queued as (
        update live l set status = 'queued' from due d where l.seq = d.seq returning l.queue, d.status as before),
    moved as (
        select queue, state, sum(jobs) as jobs, sum(size) as size from (
            select queue, before, -1, 0 from expired union all select queue, 'expired', 1, size from expired
            union all select queue, before, -1, 0 from queued union all select queue, 'queued', 1, 0 from queued
        ) as m (queue, state, jobs, size) group by queue, state),
    counted as (
        insert into counts (queue, state, slot, jobs, size)
        select queue, state, in_slot, jobs, size from moved order by queue, state
        on conflict (queue, state, slot) do update set
            jobs = least(greatest(counts.jobs, -1000000000000000), 1000000000000000) + excluded.jobs,
            size = least(greatest(counts.size, -1000000000000000), 1000000000000000) + excluded.size),
    totalled as (
        insert into totals (state, slot, jobs, size)
        select state, in_slot, sum(jobs), sum(size) from moved group by state order by state
        on conflict (state, slot) do update set
            jobs = least(greatest(totals.jobs, -1000000000000000), 1000000000000000) + excluded.jobs,
            size = least(greatest(totals.size, -1000000000000000), 1000000000000000) + excluded.size)
    select (select count(*) from queued), (select array_agg(e.id) from expired e where e.watched) into ready, watched;
exception when data_exception or integrity_constraint_violation or program_limit_exceeded or raise_exception then
    select * from promote_one_by_one(at_time, step, in_slot) into ready, watched;
end
$$;

-- The same where a row cannot be written as it should: that job fails, or where not even this can be written, stays.
create function promote_one_by_one(
    at_time double precision, step bigint, in_slot bigint, out ready bigint, out watched text[]
) language plpgsql as $$
#variable_conflict use_column
declare
    due live%rowtype;
    becomes text;
    weight bigint;
    wrong text;
begin
    ready := 0;
    for due in
        select * from live where (status in ('scheduled', 'retrying') and run_at <= at_time)
            or (expires_at is not null and node is null and expires_at <= at_time and not followed)
        order by run_at limit step for update skip locked
    loop
        becomes := case when due.node is null and due.expires_at <= at_time then 'expired' else 'queued' end;
        wrong := null;
        for attempt_at in 1..2 loop
            begin
                if becomes = 'queued' then
                    update live set status = 'queued' where seq = due.seq;
                    ready := ready + 1;
                else
                    delete from live where seq = due.seq;
                    delete from waits where seq = due.seq;
                    update jobs set status = becomes, finished_at = at_time, size = length(payload),
                        error = case when wrong is null then due.error else convert_to(json_build_object(
                            'type', 'DamagedRow', 'message', 'the job could not be made ready: ' || wrong)::text, 'UTF8') end
                    where seq = due.seq;
                    if due.followed then  -- what follows is done by the nodes
                        insert into follow_ups (seq, upto, id, ended)
                        select due.seq, max(w.seq), (select id from jobs where seq = due.seq), becomes
                        from waits w where w.on_seq = due.seq having count(*) > 0;
                    end if;
                    if due.watched then
                        watched := watched || (select id from jobs where seq = due.seq);
                    end if;
                end if;
                weight := case when becomes = 'queued' then 0 else (select size from jobs where seq = due.seq) end;
                insert into counts (queue, state, slot, jobs, size)
                    values (due.queue, due.status, in_slot, -1, 0), (due.queue, becomes, in_slot, 1, weight)
                on conflict (queue, state, slot) do update set
                    jobs = least(greatest(counts.jobs, -1000000000000000), 1000000000000000) + excluded.jobs,
                    size = least(greatest(counts.size, -1000000000000000), 1000000000000000) + excluded.size;
                insert into totals (state, slot, jobs, size)
                    values (due.status, in_slot, -1, 0), (becomes, in_slot, 1, weight)
                on conflict (state, slot) do update set
                    jobs = least(greatest(totals.jobs, -1000000000000000), 1000000000000000) + excluded.jobs,
                    size = least(greatest(totals.size, -1000000000000000), 1000000000000000) + excluded.size;
                exit;
            exception when data_exception or integrity_constraint_violation or program_limit_exceeded or raise_exception then
                wrong := sqlerrm;
                becomes := 'failed';
            end;
        end loop;
    end loop;
end
$$;

do $$ begin execute format('revoke execute on all functions in schema %I from public', current_schema()); end $$;
