-- What is done to many jobs at once, a slice at a time.

create table operations (
    id         text primary key,
    verb       text not null,
    filter     blob not null,    -- which jobs are meant, as JSON
    changes    blob,             -- what is changed of each, as JSON
    rate       real,             -- at most so many jobs a second
    state      text not null,    -- running, done or stopped
    top        integer not null, -- the highest number of a job that was there when it began
    place_at   real,             -- the jobs behind this place are left to be done; null: all of them
    place_seq  integer,
    matched    integer not null default 0,
    changed    integer not null default 0,
    refused    integer not null default 0,
    created_at real not null,
    ended_at   real,
    next_at    real not null,    -- when the next slice may be done
    node       text,             -- which node is about it, until when
    node_until real not null default 0
) strict;

create index operations_running on operations (created_at, id) where state = 'running';
create index operations_ended on operations (ended_at) where ended_at is not null;
