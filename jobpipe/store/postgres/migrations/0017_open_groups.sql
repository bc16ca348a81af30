-- older nodes: must have stopped
-- Groups to which jobs can be added until they are closed. Times are seconds since the epoch.

alter table groups
    add column open_until double precision,  -- jobs can be added until then at the most; null: it was complete when it was stored
    add column closed_at  double precision;  -- null: jobs can still be added, if `open_until` is set

-- For prune, which closes those whose time is over.
create index groups_open on groups (open_until) where closed_at is null and open_until is not null;
