-- Lists of a queue or a kind. Most jobs go from queued to done: an index that has the status changes with them, so these have it
-- for the other statuses only. The rowid, which is seq, is at the end of each.

drop index jobs_by_queue;
drop index jobs_by_kind;
create index jobs_by_queue on jobs (queue, created_at);
create index jobs_by_kind on jobs (kind, created_at);
create index jobs_unusual_by_queue on jobs (queue, status, created_at) where status not in ('queued', 'done');
create index jobs_unusual_by_kind on jobs (kind, status, created_at) where status not in ('queued', 'done');
