-- What makes jobs by itself. `spec` says when, `job` is what it enqueues: both as JSON. Times are seconds since the epoch.

create table schedules (
    name       text primary key,
    version    integer not null,            -- grows with each edit, so that nothing fires from an older text
    spec       blob not null,
    job        blob not null,
    paused     integer not null default 0,
    reason     text,                        -- why it is paused
    next_at    real,                        -- null: it never fires again
    last_at    real,                        -- the last firing that made a job
    missed     integer not null default 0,  -- firings that made none
    created_at real not null
) strict;

create index schedules_due on schedules (next_at, name) where paused = 0;
