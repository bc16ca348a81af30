-- What makes jobs by itself. `spec` says when, `job` is what it enqueues: both as JSON. Times are seconds since the epoch.

create table schedules (
    name       text collate "C" primary key,
    version    int not null,              -- grows with each edit, so that nothing fires from an older text
    spec       bytea not null,
    job        bytea not null,
    paused     smallint not null default 0,
    reason     text,                      -- why it is paused
    next_at    moment,                    -- null: it never fires again
    last_at    moment,                    -- the last firing that made a job
    missed     bigint not null default 0, -- firings that made none
    created_at moment not null
);

create index schedules_due on schedules (next_at, name) where paused = 0;
