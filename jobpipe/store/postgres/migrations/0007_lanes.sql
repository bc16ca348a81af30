-- older nodes: must have stopped
-- Limits of queues and of keys in them, and whose turn it is. What waits of one key in one queue is a lane.
-- A queue is gated once it has a limit or a job with a key. Each of its jobs has a key then, and stands in its lane.

-- '' for a job of a gated queue that asked for none; null: its queue was not gated when it was stored.
alter table jobs add column key text collate "C";
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
create index lanes_by_state on lanes (queue, state, key);
