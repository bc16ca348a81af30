-- older nodes: go on
-- What a held job writes between its start and its end. Times are seconds since the epoch. Both go with the job.

-- How far it says it is: the latest counts. One of an earlier claim is not shown any more.
create table progress (
    seq      bigint primary key,
    claim    bigint not null,
    at       moment not null,
    fraction double precision not null,
    message  text not null
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

-- Its log lines. Of a job with many the first and the last are kept: the gaps between the numbers are what is missing.
create table logs (
    seq     bigint not null,
    n       bigint not null,  -- the number of the line, over all attempts of the job
    claim   bigint not null,
    number  bigint not null,  -- the number of the line within that claim, by which one that is written twice is known
    attempt int not null,
    at      moment not null,
    level   text not null,
    text    text not null,
    fields  text,             -- a JSON object
    total   bigint not null,  -- bytes of this line and all those before it
    primary key (seq, n)
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.2);
