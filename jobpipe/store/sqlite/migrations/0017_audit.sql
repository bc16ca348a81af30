-- What people have done by hand. Times are seconds since the epoch.

create table audit (
    seq     integer primary key autoincrement,
    at      real not null,
    who     text not null,
    address text,           -- of the client
    node    text not null,  -- the name of the node that has done it
    act     text not null,
    what    text not null,  -- job, queue, key, schedule, group or operation
    name    text not null,  -- of what; of a key: of its queue
    key     text,
    changes blob not null,  -- by field, what it was and what it has become, as JSON
    reason  text,
    jobs    integer         -- how many an operation has changed; null: it has not ended, or this is another act
) strict;

create index audit_at on audit (at, seq);
create index audit_who on audit (who, at, seq);
create index audit_act on audit (act, at, seq);
create index audit_what on audit (what, at, seq);
create index audit_name on audit (name, at, seq);
