-- Groups of jobs, what is called back when all of a group have ended, and which jobs come of which. Times are seconds since the epoch.

create table groups (
    grp        integer primary key autoincrement,  -- never used again
    id         text not null unique,
    callback   integer,        -- the number of the job that waits for the end of the group; null: there is none
    on_failure text not null check (on_failure in ('go_on', 'cancel')),
    jobs       integer not null,
    created_at real not null,
    ended_at   real            -- null: not all of its jobs have ended, as far as anybody has noticed
) strict;

-- For prune.
create index groups_ended on groups (ended_at) where ended_at is not null;

create index groups_callback on groups (callback);

-- The jobs of a group, for as long as the group is kept.
create table members (
    grp        integer not null,
    created_at real not null,
    seq        integer not null,
    ended      text check (ended in ('done', 'failed', 'cancelled', 'expired', 'deleted')),  -- null: it has not
    primary key (grp, created_at, seq)
) strict, without rowid;

create unique index members_of on members (seq);

-- What is left in a group: when there is nothing here, it has ended.
create index members_open on members (grp, seq) where ended is null;

-- Groups that are to be looked at again: jobs of them have ended, and what follows is not done yet.
create table group_notes (
    grp integer not null,
    seq integer not null,  -- one of those jobs
    primary key (grp, seq)
) strict, without rowid;

-- Which jobs come of which: they are cancelled with them.
create table children (
    parent integer not null,
    seq    integer not null,
    primary key (parent, seq)
) strict, without rowid;

-- Jobs that were cancelled, and whose children are to be, those behind the one numbered `after`.
create table stops (
    seq   integer primary key,
    after integer not null
) strict;
