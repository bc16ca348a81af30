-- older nodes: go on
-- What makes jobs by itself. `spec` says when, `job` is what it enqueues: both as JSON. Times are seconds since the epoch.

create table schedules (
    name       text collate "C" primary key,
    version    int not null,              -- grows with each edit, so that nothing fires from an older text
    spec       bytea not null,
    job        bytea not null,
    paused     smallint not null default 0, -- 1: by hand, 2: since no live node declares it, 3: both
    reason     text,                      -- why it was paused by hand
    next_at    moment,                    -- null: it never fires again
    last_at    moment,                    -- the last firing that made a job
    missed     bigint not null default 0, -- firings that made none
    created_at moment not null,
    declared   text collate "C"           -- the digest of the declaration in code that it follows; null: it has none
);

create index schedules_due on schedules (next_at, name) where paused = 0;

-- What the code of nodes declares. Of several for one name, the one that came last counts, while a live node declares it.
create table declarations (
    name     text collate "C" not null,
    digest   text collate "C" not null,  -- of spec and job
    spec     bytea not null,
    job      bytea not null,
    first_at moment not null,
    seen_at  moment not null,            -- when a node last said that it declares it
    primary key (name, digest)
);
