-- older nodes: must have stopped
-- What became of a job is a row of its own, written once at its end: what was asked of it is not written again then, nor
-- are the entries of its indexes.

create table ended (
    seq         bigint primary key,
    status      text collate "C" not null check (status in ('done', 'failed', 'cancelled', 'expired')),
    kind        text collate "C" not null,  -- as in "jobs", for lists
    queue       text collate "C" not null,
    created_at  moment not null,
    run_at      moment not null,
    attempt     int not null check (attempt >= 0),
    claim       bigint not null,
    node        int,
    rescued     int not null,
    started_at  moment,
    finished_at moment not null,
    size        bigint not null,
    result      bytea,
    error       bytea
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_analyze_scale_factor = 0.2);

insert into ended (seq, status, kind, queue, created_at, run_at, attempt, claim, node, rescued, started_at, finished_at, size,
    result, error)
select seq, status, kind, queue, created_at, run_at, attempt, claim, node, rescued, started_at, finished_at, size, result, error
from jobs
where status is not null
order by finished_at;

-- The oldest end first, for retention.
create index ended_in_order on ended (status, finished_at, seq);
-- For lists, newest first. Most jobs are done: a queue or kind with that status is looked for among its jobs.
create index ended_by_status on ended (status, created_at, seq);
create index ended_unusual_by_queue on ended (queue, status, created_at, seq) where status <> 'done';
create index ended_unusual_by_kind on ended (kind, status, created_at, seq) where status <> 'done';

drop view shown;

-- With the columns go the indexes of which they are part.
alter table jobs
    drop column status,
    drop column attempt,
    drop column claim,
    drop column node,
    drop column rescued,
    drop column started_at,
    drop column finished_at,
    drop column size,
    drop column result,
    drop column error;

create index jobs_by_queue on jobs (queue, created_at, seq);
create index jobs_by_kind on jobs (kind, created_at, seq);

-- Every job as it stands. One that stands neither in "live" nor in "ended", since somebody deleted its row by hand, is
-- shown as cancelled.
create view shown as
select j.seq, j.id, j.kind, j.queue, coalesce(l.status, e.status, 'cancelled') as status, j.priority, j.payload,
    case when l.seq is null then e.result end as result,
    case when l.seq is null then e.error else l.error end as error,
    coalesce(l.attempt, e.attempt, 0) as attempt,
    j.max_retries,
    coalesce(l.claim, e.claim, 0) as claim,
    j.created_at,
    coalesce(l.run_at, e.run_at, j.run_at) as run_at,
    case when l.seq is null then e.started_at else l.started_at end as started_at,
    case when l.seq is null then e.finished_at end as finished_at,
    j.expires_at, j.options,
    (select n.name from nodes n where n.node = coalesce(l.node, e.node)) as node,
    l.node is not null as held,
    coalesce(e.size, 0) as size,
    coalesce(l.rescued, e.rescued, 0) as rescued,
    coalesce(l.watched, false) as watched, j.original,
    coalesce(l.followed, false) as followed
from jobs j left join live l on l.seq = j.seq left join ended e on e.seq = j.seq;

-- The jobs that have ended, with what was asked of them: to be locked, both rows of each.
create view ended_jobs as
select e.seq, e.status, e.queue, e.finished_at, e.size, j.options
from ended e join jobs j on j.seq = e.seq;

-- Make ready what is due at a time, and expire what is past its time, at most so many jobs of each; counted in a slot.
-- Returns how many became ready, the ids of the watched ones that expired, and whether there are jobs to be expired that
-- others wait for: those are left, since more follows from their ends than is done here.
create or replace function promote(
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
        for update of l skip locked),
    gone as (delete from live l using overdue o where l.seq = o.seq returning l.*),
    waited as (delete from waits w using gone g where w.seq = g.seq and g.status = 'blocked'),
    expired as (
        insert into ended (seq, status, kind, queue, created_at, run_at, attempt, claim, rescued, started_at, finished_at, size, error)
        select g.seq, 'expired', j.kind, j.queue, j.created_at, g.run_at, greatest(g.attempt, 0), g.claim, g.rescued, g.started_at,
            at_time, length(j.payload), g.error
        from gone g join jobs j on j.seq = g.seq
        returning seq, queue, size),
    due as (
        select seq, status from live where status in ('scheduled', 'retrying') and run_at <= at_time
            and (expires_at is null or expires_at > at_time)
        order by run_at limit step for update skip locked),
    queued as (
        update live l set status = 'queued' from due d where l.seq = d.seq returning l.queue, d.status as before),
    moved as (
        select queue, state, sum(jobs) as jobs, sum(size) as size from (
            select g.queue, g.status, -1, 0 from gone g join expired using (seq) union all select queue, 'expired', 1, size from expired
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
    select (select count(*) from queued),
        (select array_agg(j.id) from gone g join jobs j on j.seq = g.seq where g.watched) into ready, watched;
exception when data_exception or integrity_constraint_violation or program_limit_exceeded or raise_exception then
    select * from promote_one_by_one(at_time, step, in_slot) into ready, watched;
end
$$;

-- The same where a row cannot be written as it should: that job fails, or where not even this can be written, stays.
create or replace function promote_one_by_one(
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
                    delete from ended where seq = due.seq;
                    insert into ended (seq, status, kind, queue, created_at, run_at, attempt, claim, rescued, finished_at, size, error)
                    select j.seq, becomes, j.kind, j.queue, j.created_at, j.run_at, greatest(due.attempt, 0), greatest(due.claim, 0),
                        greatest(due.rescued, 0), at_time, length(j.payload),
                        case when wrong is null then due.error else convert_to(json_build_object(
                            'type', 'DamagedRow', 'message', 'the job could not be made ready: ' || wrong)::text, 'UTF8') end
                    from jobs j where j.seq = due.seq;
                    if due.followed then  -- what follows is done by the nodes
                        insert into follow_ups (seq, upto, id, ended)
                        select due.seq, max(w.seq), (select id from jobs where seq = due.seq), becomes
                        from waits w where w.on_seq = due.seq having count(*) > 0;
                    end if;
                    if due.watched then
                        watched := watched || (select id from jobs where seq = due.seq);
                    end if;
                end if;
                weight := case when becomes = 'queued' then 0 else coalesce((select size from ended where seq = due.seq), 0) end;
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
