-- Limits of queues and of keys in them, and whose turn it is. What waits of one key in one queue is a lane.
-- A queue is gated once it has a limit or a job with a key. Each of its jobs has a key then, and stands, when it is
-- ready, in its lane: with aside = 2, so that no other claim comes across it.

alter table jobs add column key text;  -- '' for a job of a gated queue that asked for none; null: its queue is not gated

create index jobs_in_lane on jobs (queue, key, kind, priority desc, run_at, seq)
    where key is not null and aside = 2 and status = 'queued' and held = 0;
create index jobs_held_in_lane on jobs (queue, key) where key is not null and held = 1;

-- A rate is kept as one time, at which all its tokens would be there again ("tat").
alter table queues add column gated integer not null default 0;
alter table queues add column lining_up integer not null default 0;  -- 1: ready jobs may not be in their lanes yet
alter table queues add column turn real not null default 0;  -- of the lanes in it: new ones come no earlier
alter table queues add column max_running integer;
alter table queues add column rate_limit integer;
alter table queues add column rate_period real;
alter table queues add column rate_burst integer;
alter table queues add column tat real;
alter table queues add column key_max_running integer;
alter table queues add column key_rate_limit integer;
alter table queues add column key_rate_period real;
alter table queues add column key_rate_burst integer;

create index queues_gated on queues (name) where gated = 1;
drop index queues_unset;
create index queues_unset on queues (name) where paused = 0 and has_settings = 0 and gated = 0;

create table lanes (
    queue       text not null,
    key         text not null,
    turn        real not null,               -- how many of its jobs were claimed, by its weight: the lowest comes next
    state       integer not null default 0,  -- 0: open, 1: rests until its rate allows a job, 2: full, 3: empty, 4: paused
    until       real,                        -- when one that is not open is looked at again
    tat         real,
    weight      integer not null default 1,
    max_running integer,                     -- instead of what the queue says of each key
    primary key (queue, key)
) strict, without rowid;

create index lanes_open on lanes (queue, turn, key) where state = 0;
create index lanes_later on lanes (until) where until is not null;
create index lanes_by_state on lanes (queue, state, key);
