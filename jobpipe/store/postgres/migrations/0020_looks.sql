-- older nodes: go on
-- What nodes ask each other of the tasks of running jobs, and what they answer. None of it matters after a crash, so it
-- is not written ahead. Nodes of an older version do not answer.

create unlogged table looks (
    job      text collate "C" not null,
    claim    bigint not null,
    node     text collate "C" not null,  -- the name of the node that is asked
    asked_at double precision not null,
    answer   bytea check (octet_length(answer) <= 131072),  -- null: none so far
    primary key (job, claim)
);

create index looks_open on looks (node, asked_at) where answer is null;
