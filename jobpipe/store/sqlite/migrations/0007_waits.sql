-- Jobs that wait for other jobs, and what is left to be done that follows the ends of jobs.

-- A status more. The rows stay as they are, so the text of the table is changed in place, as SQLite's documentation of
-- ALTER TABLE describes it: to copy the table would take minutes where it is large.
pragma writable_schema = on;
update sqlite_schema
set sql = replace(sql, '(''scheduled'', ''queued''', '(''blocked'', ''scheduled'', ''queued''')
where type = 'table' and name = 'jobs';
pragma writable_schema = reset;

-- Who waits for whom: rows only for jobs that asked for it, deleted when the one ends or the other waits no more.
create table waits (
    on_seq     integer not null,
    seq        integer not null,
    needs_done integer not null,  -- 1: it has to be done; 0: it has to end, however that is
    primary key (on_seq, seq)
) strict, without rowid;

create index waits_of on waits (seq);

-- Jobs that have ended while others, with numbers up to `upto`, wait for it and do not know yet.
create table follow_ups (
    seq   integer not null,
    upto  integer not null,
    id    text not null,
    ended text not null check (ended in ('done', 'failed', 'cancelled', 'expired', 'deleted')),
    primary key (seq, upto)
) strict, without rowid;
