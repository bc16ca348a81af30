-- Strict order within keys: of a key in a queue that keeps order, one job at a time, the first that has not ended.

-- Null: none; 'go_on' or 'stop': what a failed job means for those behind it.
alter table queues add column key_order text check (key_order in ('go_on', 'stop'));

create index queues_ordered on queues (name) where key_order is not null;

-- The jobs of a key that have not ended, in line: those that were claimed before, then the others; each as they came.
create index jobs_in_line on jobs (queue, key, claim = 0, seq)
    where key is not null and status not in ('done', 'failed', 'cancelled', 'expired');

-- The failed jobs for which a key stands still, until somebody has seen to them.
create table stopped_keys (
    queue text not null,
    key   text not null,
    seq   integer not null,
    id    text not null,
    primary key (queue, key, seq)
) strict, without rowid;
