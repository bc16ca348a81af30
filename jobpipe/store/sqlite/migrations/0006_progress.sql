-- What a held job writes between its start and its end. Times are seconds since the epoch. Both go with the job.

-- How far it says it is: the latest counts. One of an earlier claim is not shown any more.
create table progress (
    seq      integer primary key,
    claim    integer not null,
    at       real not null,
    fraction real not null,
    message  text not null
) strict;

-- Its log lines. Of a job with many the first and the last are kept: the gaps between the numbers are what is missing.
create table logs (
    seq     integer not null,
    n       integer not null,  -- the number of the line, over all attempts of the job
    claim   integer not null,
    number  integer not null,  -- the number of the line within that claim, by which one that is written twice is known
    attempt integer not null,
    at      real not null,
    level   text not null,
    text    text not null,
    fields  text,              -- a JSON object
    total   integer not null,  -- bytes of this line and all those before it
    primary key (seq, n)
) strict, without rowid;
