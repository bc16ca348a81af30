-- older nodes: go on
-- Failed jobs by the fingerprint of their error. Jobs that failed before have none, nor have those that nodes of an older version
-- fail. No other job has one: it stands in neither index, and pays for neither.

alter table ended add column fingerprint text collate "C";

-- The failures of a group in the order of their ends, with what is told of the group: its jobs need not be read.
create index ended_failed on ended (fingerprint, finished_at, seq) include (kind, queue) where fingerprint is not null;
-- For lists, newest first.
create index ended_by_fingerprint on ended (fingerprint, created_at, seq) where fingerprint is not null;
