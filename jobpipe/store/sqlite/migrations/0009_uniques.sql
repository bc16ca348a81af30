-- Keys of jobs that are merged with others: which job took each last. Whether it still has it, is asked of the job.
-- So rows may be wrong, and go when they mean nothing any more.

create table uniques (
    key   text primary key,  -- a hash of what requests have in common that are for the same
    seq   integer not null,  -- 0: no job, while it is being decided
    id    text not null,
    claim integer,           -- it has the key until it is claimed once more than so often; null: until it has ended
    since real not null,     -- when it took the key
    until real               -- taken until then too, whatever becomes of the job; for a throttle the end of its window
) strict, without rowid;

create index uniques_of on uniques (seq);
create index uniques_until on uniques (until) where until is not null;
