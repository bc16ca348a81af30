-- What makes jobs by itself. `spec` says when, `job` is what it enqueues: both as JSON. Times are seconds since the epoch.

create table schedules (
    name       text primary key,
    version    integer not null,            -- grows with each edit, so that nothing fires from an older text
    spec       blob not null,
    job        blob not null,
    paused     integer not null default 0,  -- 1: by hand, 2: since no live node declares it, 3: both
    reason     text,                        -- why it was paused by hand
    next_at    real,                        -- null: it never fires again
    last_at    real,                        -- the last firing that made a job
    missed     integer not null default 0,  -- firings that made none
    created_at real not null,
    declared   text                         -- the digest of the declaration in code that it follows; null: it has none
) strict;

create index schedules_due on schedules (next_at, name) where paused = 0;

-- What the code of nodes declares. Of several for one name, the one that came last counts, while a live node declares it.
create table declarations (
    name     text not null,
    digest   text not null,  -- of spec and job
    spec     blob not null,
    job      blob not null,
    first_at real not null,
    seen_at  real not null,  -- when a node last said that it declares it
    primary key (name, digest)
) strict, without rowid;
