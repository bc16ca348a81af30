-- Groups to which jobs can be added until they are closed. Times are seconds since the epoch.

alter table groups add column open_until real;  -- jobs can be added until then at the most; null: it was complete when it was stored
alter table groups add column closed_at real;   -- null: jobs can still be added, if `open_until` is set

-- For prune, which closes those whose time is over.
create index groups_open on groups (open_until) where closed_at is null and open_until is not null;
