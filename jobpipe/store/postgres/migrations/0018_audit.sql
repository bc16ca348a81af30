-- older nodes: go on
-- What people have done by hand. Nodes of an older version write nothing here.

create table audit (
    seq     bigint generated always as identity primary key,
    at      moment not null,
    who     text collate "C" not null,
    address text collate "C",           -- of the client
    node    text collate "C" not null,  -- the name of the node that has done it
    act     text collate "C" not null,
    what    text collate "C" not null,  -- job, queue, key, schedule, group or operation
    name    text collate "C" not null,  -- of what; of a key: of its queue
    key     text collate "C",
    changes bytea not null,             -- by field, what it was and what it has become, as JSON
    reason  text,
    jobs    bigint                      -- how many an operation has changed; null: it has not ended, or this is another act
);

create index audit_at on audit (at, seq);
create index audit_who on audit (who, at, seq);
create index audit_act on audit (act, at, seq);
create index audit_what on audit (what, at, seq);
create index audit_name on audit (name, at, seq);
