-- What is known of nodes, what became of the attempts that ran when one began to stop or died, and when attempts were due.
-- Times are seconds since the epoch.

alter table nodes add column joined_at real;
alter table nodes add column lease real;    -- how many seconds a lease of it lasts
alter table nodes add column workers integer;
alter table nodes add column version text;
alter table nodes add column draining integer not null default 0;
alter table nodes add column lost_at real;  -- its last sign of life, where its lease was ended by others and that is not in an account

create index nodes_lost on nodes (node) where lost_at is not null;

create table accounts (
    node     text not null,  -- its name
    began    real not null,
    ended_at real not null,
    account  text not null,  -- JSON
    primary key (node, began)
) strict, without rowid;

-- For prune.
create index accounts_ended on accounts (ended_at);

alter table attempts add column due_at real;
