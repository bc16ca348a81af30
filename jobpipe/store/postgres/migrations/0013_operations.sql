-- older nodes: go on
-- What is done to many jobs at once, a slice at a time, and what lists search for. Nodes of an older version leave it to newer ones.

create table operations (
    id         text collate "C" primary key,
    verb       text collate "C" not null,
    filter     bytea not null,             -- which jobs are meant, as JSON
    changes    bytea,                      -- what is changed of each, as JSON
    rate       double precision,           -- at most so many jobs a second
    state      text collate "C" not null,  -- running, done or stopped
    top        bigint not null,            -- the highest number of a job that was there when it began
    place_at   double precision,           -- the jobs behind this place are left to be done; null: all of them
    place_seq  bigint,
    matched    bigint not null default 0,
    changed    bigint not null default 0,
    refused    bigint not null default 0,
    created_at moment not null,
    ended_at   moment,
    next_at    double precision not null,  -- when the next slice may be done
    node       text collate "C",           -- which node is about it, until when
    node_until double precision not null default 0
);

create index operations_running on operations (created_at, id) where state = 'running';
create index operations_ended on operations (ended_at) where ended_at is not null;

-- A field of what is stored as JSON, to be searched. What is damaged has none.
create function text_of(stored bytea, field text) returns text language plpgsql immutable strict as $$
begin
    return convert_from(stored, 'UTF8')::json ->> field;
exception when data_exception or program_limit_exceeded then
    return null;
end
$$;

do $$ begin execute format('revoke execute on all functions in schema %I from public', current_schema()); end $$;
