-- What is set for a queue beside whether it is paused, and which ended jobs are kept by the rule of their queue.

alter table queues add column reason text;        -- why it is paused
alter table queues add column paused_until real;  -- when the pause ends by itself; null: when somebody resumes the queue
alter table queues add column has_settings integer not null default 0;  -- 1: one of the columns below says something
alter table queues add column closed integer not null default 0;        -- 1: it takes no new jobs
alter table queues add column keep_done real check (keep_done >= 0);    -- seconds; null: as the settings of the nodes say
alter table queues add column keep_failed real check (keep_failed >= 0);
alter table queues add column keep_jobs integer check (keep_jobs >= 0);
alter table queues add column keep_bytes integer check (keep_bytes >= 0);

drop index queues_unset;
create index queues_unset on queues (name) where paused = 0 and has_settings = 0;
create index queues_ending on queues (paused_until) where paused_until is not null;
create index queues_closed on queues (name) where closed = 1;

-- Ended jobs of queues that say how long they are kept. A row is a hint: what is deleted is decided by the job and its queue.
create table kept (
    seq         integer primary key,
    queue       text not null,
    finished_at real not null,
    due         real not null  -- when it is too old, or is to be looked at again
) strict;

create index kept_due on kept (due);
create index kept_by_queue on kept (queue, finished_at, seq);

-- Up to which place the ended jobs of a status were looked through for those of such queues.
create table sweeps (
    status      text primary key,
    finished_at real not null,
    seq         integer not null,
    begun_at    real not null
) strict, without rowid;
