-- Failed jobs by the fingerprint of their error. Jobs that failed before have none, and no other job has one: it stands in
-- neither index, and pays for neither.

alter table jobs add column fingerprint text;

-- The failures of a group in the order of their ends, with what is told of the group: its jobs need not be read.
create index jobs_failed on jobs (fingerprint, finished_at, seq, kind, queue) where fingerprint is not null;
-- For lists, newest first; the rowid, which is seq, is at the end.
create index jobs_by_fingerprint on jobs (fingerprint, created_at) where fingerprint is not null;
