-- older nodes: go on
-- What is known of nodes, what became of the attempts that ran when one began to stop or died, and when attempts were due.
-- Times are seconds since the epoch.

alter table nodes
    add column joined_at double precision,
    add column lease     double precision,  -- how many seconds a lease of it lasts
    add column workers   int,
    add column version   text collate "C",
    add column draining  boolean not null default false,
    add column lost_at   double precision;  -- its last sign of life, where its lease was ended by others and that is not in an account

create index nodes_lost on nodes (node) where lost_at is not null;

create table accounts (
    node     text collate "C" not null,  -- its name
    began    double precision not null,
    ended_at double precision not null,
    account  text collate "C" not null,  -- JSON
    primary key (node, began)
);

-- For prune.
create index accounts_ended on accounts (ended_at);

alter table attempts add column due_at moment;
