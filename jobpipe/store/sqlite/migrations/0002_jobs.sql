-- Jobs, their attempts, the nodes that hold them, and the counts that queues and back-pressure ask for.
-- Times are seconds since the epoch. Each index holds just the rows that one query needs.

create table jobs (
    seq         integer primary key autoincrement,  -- never used again, so that a late write finds no other job
    id          text not null unique,
    kind        text not null,
    queue       text not null,
    status      text not null check (status in
        ('scheduled', 'queued', 'running', 'retrying', 'cancelling', 'done', 'failed', 'cancelled', 'expired')),
    priority    integer not null,
    run_at      real not null,
    attempt     integer not null default 0 check (attempt >= 0),
    max_retries integer check (max_retries >= 0),
    claim       integer not null default 0,
    node        integer,
    held        integer not null default 0,
    aside       integer not null default 0,  -- 1: its kind is not served by every node, so it stands in an index by kind
    rescued     integer not null default 0,
    created_at  real not null,
    started_at  real,
    finished_at real,
    expires_at  real,
    size        integer not null default 0,
    options     blob,
    payload     blob not null,
    result      blob,
    error       blob,
    original    blob                -- what was asked first, where it was edited since
) strict;

-- The jobs that are ready: of all queues in the order of claims, and by queue, to get round paused ones.
create index jobs_ready on jobs (priority desc, run_at, seq, queue) where status = 'queued' and held = 0 and aside = 0;
create index jobs_ready_by_queue on jobs (queue, aside, priority desc, run_at, seq) where status = 'queued' and held = 0;
-- Ready jobs that stand aside, so that a node without a handler for their kind never reads them.
create index jobs_aside on jobs (kind, priority desc, run_at, seq, queue) where aside = 1 and status = 'queued' and held = 0;
create index jobs_later on jobs (run_at) where status in ('scheduled', 'retrying');
create index jobs_expiring on jobs (expires_at) where expires_at is not null and finished_at is null and held = 0;
create index jobs_held on jobs (node) where held = 1;
create index jobs_ended on jobs (status, finished_at) where finished_at is not null;
-- For lists, newest first; the rowid, which is seq, is at the end of each.
create index jobs_by_status on jobs (status, created_at);
create index jobs_by_queue on jobs (queue, status, created_at);
create index jobs_by_kind on jobs (kind, status, created_at);

create table attempts (
    seq         integer not null,
    claim       integer not null,
    number      integer not null,
    node        integer,
    started_at  real,  -- null: put aside without having begun
    finished_at real not null,
    outcome     text not null,
    error       blob,
    primary key (seq, claim)
) strict, without rowid;

create table tags (
    tag        text not null,
    created_at real not null,  -- of the job
    seq        integer not null,
    primary key (tag, created_at, seq)
) strict, without rowid;

create table nodes (
    node        integer primary key,
    name        text not null unique,
    lease_until real,
    kinds       text not null default '[]'  -- what it serves, as a JSON array; none: it only adds jobs
) strict;

-- What was set for a queue; a queue of which nothing was set needs no row.
create table queues (
    name   text primary key,
    paused integer not null default 0
) strict, without rowid;

create index queues_paused on queues (name) where paused = 1;
create index queues_unset on queues (name) where paused = 0;

-- How many jobs of a queue are in a state, kept in the transaction that changes them.
-- The state is the status, but "held" for every job that a node holds; size counts ended jobs only.
create table counts (
    queue text not null,
    state text not null,
    jobs  integer not null,
    size  integer not null,
    primary key (queue, state)
) strict, without rowid;

create index counts_empty on counts (queue, state) where jobs = 0 and size = 0;

-- The same over all queues.
create table totals (
    state text primary key,
    jobs  integer not null,
    size  integer not null
) strict, without rowid;
