-- older nodes: must have stopped
-- Keys of jobs that are merged with others: which job took each last. Whether it still has it, is asked of the job.
-- So rows may be wrong, and go when they mean nothing any more.

create table uniques (
    key   text collate "C" primary key,  -- a hash of what requests have in common that are for the same
    seq   bigint not null,               -- 0: no job, while it is being decided
    id    text collate "C" not null,
    claim bigint,  -- it has the key until it is claimed once more than so often; null: until it has ended
    since double precision not null,     -- when it took the key
    until double precision               -- taken until then too, whatever becomes of the job; for a throttle the end of its window
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

create index uniques_of on uniques (seq);
create index uniques_until on uniques (until) where until is not null;
