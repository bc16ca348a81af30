-- older nodes: must have stopped
-- What is set for a queue beside whether it is paused, and which ended jobs are kept by the rule of their queue. A node of an
-- older version would forget the settings, and store jobs in closed queues.

alter table queues
    add column reason text,          -- why it is paused
    add column paused_until moment,  -- when the pause ends by itself; null: when somebody resumes the queue
    add column has_settings smallint not null default 0,  -- 1: one of the columns below says something
    add column closed smallint not null default 0,        -- 1: it takes no new jobs
    add column keep_done double precision check (keep_done between 0 and 1e12),  -- seconds; null: as the settings of the nodes say
    add column keep_failed double precision check (keep_failed between 0 and 1e12),
    add column keep_jobs bigint check (keep_jobs >= 0),
    add column keep_bytes bigint check (keep_bytes >= 0);

create index queues_ending on queues (paused_until) where paused_until is not null;
create index queues_closed on queues (name) where closed = 1;

-- Ended jobs of queues that say how long they are kept. A row is a hint: what is deleted is decided by the job and its queue.
create table kept (
    seq         bigint primary key,
    queue       text collate "C" not null,
    finished_at double precision not null,
    due         double precision not null  -- when it is too old, or is to be looked at again
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.2);

create index kept_due on kept (due);
create index kept_by_queue on kept (queue, finished_at, seq);

-- Up to which place the ended jobs of a status were looked through for those of such queues.
create table sweeps (
    status      text collate "C" primary key,
    finished_at double precision not null,
    seq         bigint not null,
    begun_at    double precision not null
);

-- End the pauses that were to end by a time, at most so many, and make ready what is due: see promote(). A queue that is
-- resumed counts as a job that became ready.
create function resume_and_promote(
    at_time double precision, step bigint, in_slot bigint,
    out ready bigint, out watched text[], out left_followed boolean
)
language plpgsql as $$
#variable_conflict use_column
declare
    resumed bigint;
begin
    update queues q set paused = false, reason = null, paused_until = null
    from (
        select name from queues where paused_until <= at_time
        order by paused_until limit step for update skip locked) due
    where q.name = due.name;
    get diagnostics resumed = row_count;
    select p.ready + resumed, p.watched, p.left_followed
    from promote(at_time, step, in_slot) p into ready, watched, left_followed;
end
$$;

-- enqueue() refuses a job for a closed queue, unless the job is there already.
do $patch$
declare
    before constant text := pg_get_functiondef('enqueue'::regproc);
    place constant text := 'asked := jsonb_strip_nulls(';
    checked constant text := $check$if exists (select from queues q where q.name = enqueue.queue and q.closed = 1)
        and not exists (select from jobs where jobs.id = job_id)
    then
        raise exception 'jobpipe.enqueue: the queue % is closed and takes no new jobs', enqueue.queue
            using errcode = 'object_not_in_prerequisite_state', hint = 'Name another queue, or open this one.';
    end if;
    $check$;
begin
    if strpos(before, place) = 0 then
        raise exception 'the function enqueue() is not as expected';
    end if;
    execute replace(before, place, checked || place);
end
$patch$;

do $$ begin execute format('revoke execute on all functions in schema %I from public', current_schema()); end $$;
