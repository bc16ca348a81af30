SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
CREATE SCHEMA jobpipe_written;
CREATE DOMAIN jobpipe_written.moment AS double precision
	CONSTRAINT moment_check CHECK (((VALUE >= ('-62135596800'::bigint)::double precision) AND (VALUE <= (253402300799.999)::double precision)));
CREATE FUNCTION jobpipe_written.channel() RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'jobpipe_written', 'pg_temp'
    AS $$
    select 'jobpipe ' || current_schema()
$$;
CREATE FUNCTION jobpipe_written.enqueue(kind text, payload jsonb DEFAULT 'null'::jsonb, queue text DEFAULT 'default'::text, id text DEFAULT NULL::text, priority integer DEFAULT 0, max_retries integer DEFAULT NULL::integer, delay double precision DEFAULT NULL::double precision, run_at timestamp with time zone DEFAULT NULL::timestamp with time zone, expires_at timestamp with time zone DEFAULT NULL::timestamp with time zone, timeout double precision DEFAULT NULL::double precision, backoff jsonb DEFAULT NULL::jsonb, on_crash text DEFAULT 'retry'::text, tags text[] DEFAULT '{}'::text[]) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'jobpipe_written', 'pg_temp'
    SET standard_conforming_strings TO 'on'
    SET extra_float_digits TO '1'
    AS $_$
#variable_conflict use_column
declare
    earliest constant timestamptz := '0001-01-01T00:00:00Z';
    latest constant timestamptz := '9999-12-31T23:59:59.999Z';
    names constant text := '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$';
    -- Control characters, spaces of every kind, slashes, and what turns or hides the text around it.
    invisible constant text := '\u0001-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f'
        '\ufeff\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff';
    not_in_ids constant text := '[ /\u00a0\u1680\u2000-\u200a\u200c\u200d\u202f\u205f\u3000' || invisible || ']';
    now_at constant double precision := seconds_of(clock_timestamp());
    job_id constant text := coalesce(enqueue.id, new_id());
    due double precision;
    until double precision;
    asked jsonb;
    job_seq bigint;
    twin jobs%rowtype;
    original jsonb;
    same boolean;
    wrong text;
begin
    wrong := case
        when enqueue.kind is null or enqueue.kind collate "C" !~ names
            then 'kind: 1 to 100 letters, digits, dots, dashes and underscores'
        when enqueue.queue is null or enqueue.queue collate "C" !~ names
            then 'queue: 1 to 100 letters, digits, dots, dashes and underscores'
        when length(job_id) not between 1 and 200 or job_id collate "C" ~ not_in_ids or job_id in ('.', '..')
            then 'id: 1 to 200 characters, without spaces, slashes and control characters'
        when enqueue.payload is null then 'payload: JSON; for none the JSON value null'
        when octet_length(enqueue.payload::text) > 1048576 then 'payload: at most 1048576 bytes as text'
        when nests_deeper(enqueue.payload, 500) then 'payload: nests deeper than 500 levels'
        when holds_unreadable(enqueue.payload)
            then 'payload: holds a number that no double can hold; send it as a string'
        when enqueue.priority is null or enqueue.priority not between -1000 and 1000
            then 'priority: from -1000 to 1000'
        when enqueue.max_retries not between 0 and 10000 then 'max_retries: from 0 to 10000'
        when enqueue.delay is not null and enqueue.run_at is not null then 'delay, run_at: give one of them'
        -- NaN counts as greater than every number.
        when enqueue.delay not between 0 and 315360000 then 'delay: seconds, at most ten years'
        when enqueue.run_at not between earliest and latest then 'run_at: a time within the years 1 to 9999'
        when enqueue.expires_at not between earliest and latest then 'expires_at: a time within the years 1 to 9999'
        when enqueue.timeout <= 0 or enqueue.timeout > 315360000
            then 'timeout: seconds, more than none, at most ten years'
        when enqueue.on_crash is null or enqueue.on_crash not in ('retry', 'fail') then 'on_crash: retry or fail'
        when cardinality(enqueue.tags) > 20 then 'tags: at most 20'
        when exists (
            select from unnest(enqueue.tags) as t (tag)
            where t.tag is null or length(t.tag) not between 1 and 100 or t.tag ~ ('[' || invisible || ']'))
            then 'tags: 1 to 100 characters each, without control and invisible characters'
        when enqueue.backoff is not null then wrong_backoff(enqueue.backoff)
    end;
    if wrong is null then
        due := greatest(now_at, coalesce(
            seconds_of(enqueue.run_at),
            round((now_at + coalesce(enqueue.delay, 0))::numeric, 3)));
        until := seconds_of(enqueue.expires_at);
        if until <= due and not exists (select from jobs where jobs.id = job_id) then
            wrong := 'expires_at: lies before the job could run';
        end if;
    end if;
    if wrong is not null then
        raise exception 'jobpipe.enqueue: %', wrong using errcode = 'invalid_parameter_value';
    end if;
    asked := jsonb_strip_nulls(jsonb_build_object(
        'timeout', enqueue.timeout,
        'backoff', case when enqueue.backoff is not null then jsonb_build_object(
            'base', coalesce((enqueue.backoff ->> 'base')::double precision, 1),
            'factor', coalesce((enqueue.backoff ->> 'factor')::double precision, 2),
            'cap', coalesce((enqueue.backoff ->> 'cap')::double precision, 3600),
            'jitter', coalesce(enqueue.backoff ->> 'jitter', 'full')) end,
        'on_crash', nullif(enqueue.on_crash, 'retry'),
        'tags', (
            select jsonb_agg(tag order by n)
            from (
                select tag, min(n) as n
                from unnest(enqueue.tags) with ordinality as t (tag, n)
                group by tag) as once),
        'delay', enqueue.delay,
        'run_at', seconds_of(enqueue.run_at)));
    insert into jobs (id, kind, queue, priority, run_at, max_retries, created_at, expires_at, options, payload)
        values (job_id, enqueue.kind, enqueue.queue, enqueue.priority, due, enqueue.max_retries, now_at, until,
            case when asked <> '{}' then convert_to(asked::text, 'UTF8') end,
            convert_to(enqueue.payload::text, 'UTF8'))
        on conflict (id) do nothing
        returning seq into job_seq;
    if job_seq is null then
        select * into twin from jobs where jobs.id = job_id;
        begin
            if twin.original is not null then  -- compared is what was asked first
                original := convert_from(twin.original, 'UTF8')::jsonb;
                twin.kind := original ->> 'kind';
                twin.queue := original ->> 'queue';
                twin.priority := original ->> 'priority';
                twin.max_retries := original ->> 'max_retries';
                twin.expires_at := original ->> 'expires_at';
                twin.options := convert_to(original ->> 'options', 'UTF8');
                twin.payload := decode(original ->> 'payload', 'base64');
            end if;
            same := (twin.kind, twin.queue, twin.priority, twin.max_retries, twin.expires_at)
                    is not distinct from
                    (enqueue.kind, enqueue.queue, enqueue.priority, enqueue.max_retries, until::moment)
                and coalesce(convert_from(twin.options, 'UTF8')::jsonb, '{}') = asked
                and convert_from(twin.payload, 'UTF8')::jsonb = enqueue.payload;
        exception
            when data_exception then same := false;  -- that one holds a NUL, which no jsonb can
        end;
        if same is not true then
            raise exception 'jobpipe.enqueue: there is another job with the id %', job_id
                using errcode = 'unique_violation', hint = 'Ask for the same as before, or give another id.';
        end if;
        return job_id;
    end if;
    insert into live (seq, kind, queue, status, priority, run_at, created_at, expires_at)
        values (job_seq, case when exists (select from nodes n
                where n.lease_until is not null and n.kinds <> '{}' and enqueue.kind <> all (n.kinds)) then enqueue.kind end,
            enqueue.queue, case when due > now_at then 'scheduled' else 'queued' end, enqueue.priority, due, now_at, until);
    -- No row of "queues" is written here: the next job of that queue would wait for it.
    insert into tags (tag, created_at, seq)
        select distinct convert_to(t.tag, 'UTF8'), now_at, job_seq
        from unnest(enqueue.tags) as t (tag);
    insert into counts (queue, state, slot, jobs, size)
        values (enqueue.queue, case when due > now_at then 'scheduled' else 'queued' end, -nextval('calls'), 1, 0);
    perform pg_notify(channel(), 'ready');
    return job_id;
end
$_$;
CREATE FUNCTION jobpipe_written.holds_unreadable(value jsonb) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    AS $_$
    select value::text ~ '([0-9]{100}){3}' and exists (
        select from jsonb_path_query(value, 'strict $.** ? (@.type() == "number")') as found (number)
        where unreadable(number))
$_$;
CREATE FUNCTION jobpipe_written.locked_ids(ids text[]) RETURNS SETOF text
    LANGUAGE plpgsql
    SET search_path TO 'jobpipe_written', 'pg_temp'
    AS $$
declare
    one text;
begin
    foreach one in array ids loop
        begin
            insert into jobs (id, kind, queue, priority, run_at, created_at, payload)
                values (one, '', '', 0, 0, 0, '')
                on conflict (id) do nothing;
            raise exception using errcode = 'JP000';  -- take it back
        exception
            when lock_not_available then return next one;
            when sqlstate 'JP000' then null;
        end;
    end loop;
end
$$;
CREATE FUNCTION jobpipe_written.message_of(error bytea) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    AS $$
begin
    -- E'': the same whatever standard_conforming_strings says.
    return regexp_replace(convert_from(error, 'UTF8'), E'(?<!\\\\)((?:\\\\\\\\)*)\\\\u0000', E'\\1', 'g')::json ->> 'message';
exception when data_exception or program_limit_exceeded then
    return null;
end
$$;
CREATE FUNCTION jobpipe_written.nests_deeper(value jsonb, levels integer) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE
    AS $_$
declare
    brackets constant int := length(value::text) - length(translate(value::text, '[{', ''));
begin
    return brackets > levels and jsonb_path_exists(value,
        format('strict $.**{%s} ? (@.type() == "object" || @.type() == "array")', levels)::jsonpath);
end
$_$;
CREATE FUNCTION jobpipe_written.new_id() RETURNS text
    LANGUAGE sql
    AS $$
    select encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6),
        52, 1), 53, 1), 'hex')::uuid::text
$$;
CREATE FUNCTION jobpipe_written.promote(at_time double precision, step bigint, in_slot bigint, OUT ready bigint, OUT watched text[]) RETURNS record
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
begin
    with overdue as (
        select l.seq, l.status
        from live l join jobs j on j.seq = l.seq
        where l.expires_at is not null and l.node is null and l.expires_at <= at_time
        order by l.expires_at
        limit step
        for update of l skip locked
        for no key update of j skip locked),
    gone as (delete from live l using overdue o where l.seq = o.seq returning l.*),
    expired as (
        update jobs j set status = 'expired', finished_at = at_time, size = length(j.payload), run_at = g.run_at,
            attempt = greatest(g.attempt, 0), claim = g.claim, rescued = g.rescued, started_at = g.started_at, error = g.error
        from gone g where j.seq = g.seq returning j.id, j.queue, g.status as before, j.size, g.watched),
    due as (
        select seq, status from live where status in ('scheduled', 'retrying') and run_at <= at_time
            and (expires_at is null or expires_at > at_time)
        order by run_at limit step for update skip locked),
    queued as (
        update live l set status = 'queued' from due d where l.seq = d.seq returning l.queue, d.status as before),
    moved as (
        select queue, state, sum(jobs) as jobs, sum(size) as size from (
            select queue, before, -1, 0 from expired union all select queue, 'expired', 1, size from expired
            union all select queue, before, -1, 0 from queued union all select queue, 'queued', 1, 0 from queued
        ) as m (queue, state, jobs, size) group by queue, state),
    counted as (
        insert into counts (queue, state, slot, jobs, size)
        select queue, state, in_slot, jobs, size from moved order by queue, state
        on conflict (queue, state, slot) do update set
            jobs = least(greatest(counts.jobs, -1000000000000000), 1000000000000000) + excluded.jobs,
            size = least(greatest(counts.size, -1000000000000000), 1000000000000000) + excluded.size),
    totalled as (
        insert into totals (state, slot, jobs, size)
        select state, in_slot, sum(jobs), sum(size) from moved group by state order by state
        on conflict (state, slot) do update set
            jobs = least(greatest(totals.jobs, -1000000000000000), 1000000000000000) + excluded.jobs,
            size = least(greatest(totals.size, -1000000000000000), 1000000000000000) + excluded.size)
    select (select count(*) from queued), (select array_agg(e.id) from expired e where e.watched) into ready, watched;
exception when data_exception or integrity_constraint_violation or program_limit_exceeded or raise_exception then
    select * from promote_one_by_one(at_time, step, in_slot) into ready, watched;
end
$$;
CREATE FUNCTION jobpipe_written.promote_one_by_one(at_time double precision, step bigint, in_slot bigint, OUT ready bigint, OUT watched text[]) RETURNS record
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
declare
    due live%rowtype;
    becomes text;
    weight bigint;
    wrong text;
begin
    ready := 0;
    for due in
        select * from live where (status in ('scheduled', 'retrying') and run_at <= at_time)
            or (expires_at is not null and node is null and expires_at <= at_time)
        order by run_at limit step for update skip locked
    loop
        becomes := case when due.node is null and due.expires_at <= at_time then 'expired' else 'queued' end;
        wrong := null;
        for attempt_at in 1..2 loop
            begin
                if becomes = 'queued' then
                    update live set status = 'queued' where seq = due.seq;
                    ready := ready + 1;
                else
                    delete from live where seq = due.seq;
                    update jobs set status = becomes, finished_at = at_time, size = length(payload),
                        error = case when wrong is null then due.error else convert_to(json_build_object(
                            'type', 'DamagedRow', 'message', 'the job could not be made ready: ' || wrong)::text, 'UTF8') end
                    where seq = due.seq;
                    if due.watched then
                        watched := watched || (select id from jobs where seq = due.seq);
                    end if;
                end if;
                weight := case when becomes = 'queued' then 0 else (select size from jobs where seq = due.seq) end;
                insert into counts (queue, state, slot, jobs, size)
                    values (due.queue, due.status, in_slot, -1, 0), (due.queue, becomes, in_slot, 1, weight)
                on conflict (queue, state, slot) do update set
                    jobs = least(greatest(counts.jobs, -1000000000000000), 1000000000000000) + excluded.jobs,
                    size = least(greatest(counts.size, -1000000000000000), 1000000000000000) + excluded.size;
                insert into totals (state, slot, jobs, size)
                    values (due.status, in_slot, -1, 0), (becomes, in_slot, 1, weight)
                on conflict (state, slot) do update set
                    jobs = least(greatest(totals.jobs, -1000000000000000), 1000000000000000) + excluded.jobs,
                    size = least(greatest(totals.size, -1000000000000000), 1000000000000000) + excluded.size;
                exit;
            exception when data_exception or integrity_constraint_violation or program_limit_exceeded or raise_exception then
                wrong := sqlerrm;
                becomes := 'failed';
            end;
        end loop;
    end loop;
end
$$;
CREATE FUNCTION jobpipe_written.seconds_of(at_time timestamp with time zone) RETURNS double precision
    LANGUAGE sql IMMUTABLE
    AS $$
    select round(extract(epoch from at_time)::numeric, 3)::double precision
$$;
CREATE FUNCTION jobpipe_written.unreadable(value jsonb) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE
    AS $_$
declare
    digits constant text := value::text;
begin
    if digits ~ '^-?[0-9]+$' then
        return length(ltrim(digits, '-')) > 4300;
    end if;
    perform digits::double precision;
    return false;
exception
    when numeric_value_out_of_range then return true;
end
$_$;
CREATE FUNCTION jobpipe_written.wrong_backoff(backoff jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE
    AS $$
    select case
        when jsonb_typeof(backoff) <> 'object' then 'backoff: an object of base, factor, cap and jitter'
        when exists (
            select from jsonb_object_keys(backoff) as k (name)
            where name not in ('base', 'factor', 'cap', 'jitter'))
            then 'backoff: base, factor, cap and jitter, and nothing else'
        when exists (
            select from jsonb_each(backoff) as e (name, value)
            where name <> 'jitter' and (jsonb_typeof(value) <> 'number' or unreadable(value)))
            then 'backoff: base, factor and cap are numbers'
        when (backoff ->> 'base')::numeric not between 0 and 86400 then 'backoff: base from 0 to 86400'
        when (backoff ->> 'factor')::numeric not between 1 and 100 then 'backoff: factor from 1 to 100'
        when (backoff ->> 'cap')::numeric not between 0 and 31536000 then 'backoff: cap from 0 to 31536000'
        when backoff ? 'jitter' and (backoff -> 'jitter') not in ('"full"', '"equal"', '"none"')
            then 'backoff: jitter is full, equal or none'
    end
$$;
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE jobpipe_written.attempts (
    seq bigint NOT NULL,
    claim bigint NOT NULL,
    number integer NOT NULL,
    node integer,
    started_at jobpipe_written.moment,
    finished_at jobpipe_written.moment NOT NULL,
    outcome text NOT NULL,
    error bytea
);
CREATE SEQUENCE jobpipe_written.calls
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
CREATE TABLE jobpipe_written.counts (
    queue text NOT NULL COLLATE pg_catalog."C",
    state text NOT NULL COLLATE pg_catalog."C",
    slot bigint NOT NULL,
    jobs bigint NOT NULL,
    size bigint NOT NULL
)
WITH (fillfactor='20', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE jobpipe_written.jobs (
    seq bigint NOT NULL,
    id text NOT NULL COLLATE pg_catalog."C",
    kind text NOT NULL COLLATE pg_catalog."C",
    queue text NOT NULL COLLATE pg_catalog."C",
    status text COLLATE pg_catalog."C",
    priority integer NOT NULL,
    run_at jobpipe_written.moment NOT NULL,
    attempt integer DEFAULT 0 NOT NULL,
    max_retries integer,
    claim bigint DEFAULT 0 NOT NULL,
    node integer,
    rescued integer DEFAULT 0 NOT NULL,
    created_at jobpipe_written.moment NOT NULL,
    started_at jobpipe_written.moment,
    finished_at jobpipe_written.moment,
    expires_at jobpipe_written.moment,
    size bigint DEFAULT 0 NOT NULL,
    options bytea,
    payload bytea NOT NULL,
    result bytea,
    error bytea,
    original bytea,
    CONSTRAINT jobs_attempt_check CHECK ((attempt >= 0)),
    CONSTRAINT jobs_check CHECK (((finished_at IS NOT NULL) = (status IS NOT NULL))),
    CONSTRAINT jobs_max_retries_check CHECK ((max_retries >= 0)),
    CONSTRAINT jobs_status_check CHECK ((status = ANY (ARRAY['done'::text, 'failed'::text, 'cancelled'::text, 'expired'::text])))
)
WITH (autovacuum_vacuum_scale_factor='0.05', autovacuum_vacuum_insert_scale_factor='0.2', autovacuum_analyze_scale_factor='0.2');
ALTER TABLE jobpipe_written.jobs ALTER COLUMN seq ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME jobpipe_written.jobs_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE jobpipe_written.live (
    seq bigint NOT NULL,
    kind text COLLATE pg_catalog."C",
    queue text NOT NULL COLLATE pg_catalog."C",
    status text NOT NULL COLLATE pg_catalog."C",
    priority integer NOT NULL,
    run_at jobpipe_written.moment NOT NULL,
    created_at jobpipe_written.moment NOT NULL,
    attempt integer DEFAULT 0 NOT NULL,
    claim bigint DEFAULT 0 NOT NULL,
    node integer,
    token bigint,
    rescued integer DEFAULT 0 NOT NULL,
    started_at jobpipe_written.moment,
    expires_at jobpipe_written.moment,
    watched boolean DEFAULT false NOT NULL,
    edited boolean DEFAULT false NOT NULL,
    error bytea,
    CONSTRAINT live_check CHECK (((node IS NULL) OR (status = ANY (ARRAY['queued'::text, 'running'::text, 'cancelling'::text])))),
    CONSTRAINT live_check1 CHECK (((status <> ALL (ARRAY['running'::text, 'cancelling'::text])) OR (node IS NOT NULL))),
    CONSTRAINT live_status_check CHECK ((status = ANY (ARRAY['scheduled'::text, 'queued'::text, 'running'::text, 'retrying'::text, 'cancelling'::text])))
)
WITH (fillfactor='60', autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_cost_delay='0', autovacuum_vacuum_insert_scale_factor='0.1');
CREATE TABLE jobpipe_written.nodes (
    node integer NOT NULL,
    name text NOT NULL COLLATE pg_catalog."C",
    lease_until jobpipe_written.moment,
    idle boolean DEFAULT false NOT NULL,
    kinds text[] DEFAULT '{}'::text[] NOT NULL COLLATE pg_catalog."C"
)
WITH (fillfactor='20', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='500');
ALTER TABLE jobpipe_written.nodes ALTER COLUMN node ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME jobpipe_written.nodes_node_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE jobpipe_written.queues (
    name text NOT NULL COLLATE pg_catalog."C",
    paused boolean DEFAULT false NOT NULL
);
CREATE VIEW jobpipe_written.shown AS
 SELECT j.seq,
    j.id,
    j.kind,
    j.queue,
    COALESCE(l.status, j.status, 'cancelled'::text) AS status,
    j.priority,
    j.payload,
    j.result,
        CASE
            WHEN (l.seq IS NULL) THEN j.error
            ELSE l.error
        END AS error,
        CASE
            WHEN (l.seq IS NULL) THEN j.attempt
            ELSE l.attempt
        END AS attempt,
    j.max_retries,
        CASE
            WHEN (l.seq IS NULL) THEN j.claim
            ELSE l.claim
        END AS claim,
    j.created_at,
        CASE
            WHEN (l.seq IS NULL) THEN j.run_at
            ELSE l.run_at
        END AS run_at,
        CASE
            WHEN (l.seq IS NULL) THEN j.started_at
            ELSE l.started_at
        END AS started_at,
    j.finished_at,
    j.expires_at,
    j.options,
    ( SELECT n.name
           FROM jobpipe_written.nodes n
          WHERE (n.node = COALESCE(l.node, j.node))) AS node,
    (l.node IS NOT NULL) AS held,
    j.size,
        CASE
            WHEN (l.seq IS NULL) THEN j.rescued
            ELSE l.rescued
        END AS rescued,
    COALESCE(l.watched, false) AS watched,
    j.original
   FROM (jobpipe_written.jobs j
     LEFT JOIN jobpipe_written.live l ON ((l.seq = j.seq)));
CREATE SEQUENCE jobpipe_written.slots
    START WITH 0
    INCREMENT BY 1
    MINVALUE 0
    NO MAXVALUE
    CACHE 1;
CREATE TABLE jobpipe_written.tags (
    tag bytea NOT NULL,
    created_at double precision NOT NULL,
    seq bigint NOT NULL
);
CREATE TABLE jobpipe_written.totals (
    state text NOT NULL COLLATE pg_catalog."C",
    slot bigint NOT NULL,
    jobs bigint NOT NULL,
    size bigint NOT NULL
)
WITH (fillfactor='20', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE jobpipe_written.versions (
    version integer NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);
INSERT INTO jobpipe_written.attempts VALUES (2, 1, 1, 1, 1700000000, 1700000000, 'fail', '\x7b2274797065223a2256616c75654572726f72222c226d657373616765223a226e6f20737563682066696c65222c2274726163656261636b223a2254726163656261636b202e2e2e227d');
INSERT INTO jobpipe_written.attempts VALUES (3, 1, 1, 1, 1700000000, 1700000000, 'retry', '\x7b2274797065223a2256616c75654572726f72222c226d657373616765223a226e6f20737563682066696c65222c2274726163656261636b223a2254726163656261636b202e2e2e227d');
INSERT INTO jobpipe_written.attempts VALUES (2, 2, 1, 1, 1700000007, 1700000007, 'fail', '\x7b2274797065223a2256616c75654572726f72222c226d657373616765223a226e6f20737563682066696c65222c2274726163656261636b223a2254726163656261636b202e2e2e227d');
INSERT INTO jobpipe_written.counts VALUES ('default', 'cancelled', 1, 1, 7);
INSERT INTO jobpipe_written.counts VALUES ('default', 'done', 0, 1, 7);
INSERT INTO jobpipe_written.counts VALUES ('default', 'retrying', 0, 1, 0);
INSERT INTO jobpipe_written.counts VALUES ('default', 'expired', 0, 1, 7);
INSERT INTO jobpipe_written.counts VALUES ('default', 'failed', 1, -1, -7);
INSERT INTO jobpipe_written.counts VALUES ('default', 'queued', 1, 0, 0);
INSERT INTO jobpipe_written.counts VALUES ('default', 'failed', 0, 2, 14);
INSERT INTO jobpipe_written.counts VALUES ('default', 'scheduled', 0, 2, 0);
INSERT INTO jobpipe_written.counts VALUES ('night', 'queued', 0, 1, 0);
INSERT INTO jobpipe_written.counts VALUES ('default', 'queued', 0, 3, 0);
INSERT INTO jobpipe_written.jobs VALUES (3, 'retrying', 'echo', 'default', NULL, 0, 1700000000, 0, 3, 0, NULL, 0, 1700000000, NULL, NULL, NULL, 0, '\x7b2274696d656f7574223a352e302c226261636b6f6666223a7b2262617365223a322e302c22666163746f72223a322e302c22636170223a333630302e302c226a6974746572223a2266756c6c227d2c226f6e5f6372617368223a226661696c222c2274616773223a5b22726564222c22626c7565225d2c2264656c6179223a312e307d', '\x7b226e223a317d', NULL, NULL, NULL);
INSERT INTO jobpipe_written.jobs VALUES (4, 'cancelled', 'echo', 'default', 'cancelled', 0, 1700000000, 0, 3, 0, NULL, 0, 1700000000, NULL, 1700000000, NULL, 7, '\x7b2274696d656f7574223a352e302c226261636b6f6666223a7b2262617365223a322e302c22666163746f72223a322e302c22636170223a333630302e302c226a6974746572223a2266756c6c227d2c226f6e5f6372617368223a226661696c222c2274616773223a5b22726564222c22626c7565225d2c2264656c6179223a312e307d', '\x7b226e223a317d', NULL, NULL, NULL);
INSERT INTO jobpipe_written.jobs VALUES (1, 'done', 'echo', 'default', 'done', 0, 1700000000, 1, 3, 1, 1, 0, 1700000000, 1700000000, 1700000000, NULL, 7, '\x7b2274696d656f7574223a352e302c226261636b6f6666223a7b2262617365223a322e302c22666163746f72223a322e302c22636170223a333630302e302c226a6974746572223a2266756c6c227d2c226f6e5f6372617368223a226661696c222c2274616773223a5b22726564222c22626c7565225d2c2264656c6179223a312e307d', '\x7b226e223a317d', '\x226f6b22', NULL, NULL);
INSERT INTO jobpipe_written.jobs VALUES (5, 'expired', 'echo', 'default', 'expired', 0, 1700000009, 0, 3, 0, NULL, 0, 1700000000, NULL, 1700000006, 1700000005, 7, NULL, '\x7b226e223a317d', NULL, NULL, NULL);
INSERT INTO jobpipe_written.jobs VALUES (2, 'failed', 'echo', 'default', 'failed', 0, 1700000000, 1, 3, 2, 1, 0, 1700000000, 1700000007, 1700000007, NULL, 7, '\x7b2274696d656f7574223a352e302c226261636b6f6666223a7b2262617365223a322e302c22666163746f72223a322e302c22636170223a333630302e302c226a6974746572223a2266756c6c227d2c226f6e5f6372617368223a226661696c222c2274616773223a5b22726564222c22626c7565225d2c2264656c6179223a312e307d', '\x7b226e223a317d', NULL, '\x7b2274797065223a2256616c75654572726f72222c226d657373616765223a226e6f20737563682066696c65222c2274726163656261636b223a2254726163656261636b202e2e2e227d', NULL);
INSERT INTO jobpipe_written.jobs VALUES (6, 'waits', 'echo', 'default', NULL, 9, 1700000000, 0, 3, 0, NULL, 0, 1700000000, NULL, NULL, NULL, 0, '\x7b2274696d656f7574223a352e302c226261636b6f6666223a7b2262617365223a322e302c22666163746f72223a322e302c22636170223a333630302e302c226a6974746572223a2266756c6c227d2c226f6e5f6372617368223a226661696c222c2274616773223a5b22726564222c22626c7565225d2c2264656c6179223a312e307d', '\x7b226e223a317d', NULL, NULL, NULL);
INSERT INTO jobpipe_written.jobs VALUES (7, 'paused', 'echo', 'night', NULL, 0, 1700000000, 0, 3, 0, NULL, 0, 1700000000, NULL, NULL, NULL, 0, NULL, '\x7b226e223a317d', NULL, NULL, NULL);
INSERT INTO jobpipe_written.jobs VALUES (8, 'later', 'echo', 'default', NULL, 0, 1700001000, 0, 3, 0, NULL, 0, 1700000000, NULL, NULL, NULL, 0, NULL, '\x7b226e223a317d', NULL, NULL, NULL);
INSERT INTO jobpipe_written.jobs VALUES (9, 'expires', 'echo', 'default', NULL, 0, 1700001000, 0, 3, 0, NULL, 0, 1700000000, NULL, NULL, 1700000500, 0, NULL, '\x7b226e223a317d', NULL, NULL, NULL);
INSERT INTO jobpipe_written.jobs VALUES (10, 'unserved', 'unknown', 'default', NULL, 100, 1700000000, 0, 3, 0, NULL, 0, 1700000000, NULL, NULL, NULL, 0, NULL, '\x7b226e223a317d', NULL, NULL, NULL);
INSERT INTO jobpipe_written.jobs VALUES (11, 'by the handler', 'echo', 'default', NULL, 0, 1700000000, 0, NULL, 0, NULL, 0, 1700000000, NULL, NULL, NULL, 0, NULL, '\x7b2274657874223a2022c3a9e282ac227d', NULL, NULL, NULL);
INSERT INTO jobpipe_written.jobs VALUES (12, 'held', 'echo', 'default', NULL, 1000, 1700000000, 0, 3, 0, NULL, 0, 1700000000, NULL, NULL, NULL, 0, NULL, '\x7b226e223a317d', NULL, NULL, NULL);
INSERT INTO jobpipe_written.jobs VALUES (13, 'running', 'echo', 'default', NULL, 1000, 1700000000, 0, 3, 0, NULL, 0, 1700000000, NULL, NULL, NULL, 0, NULL, '\x7b226e223a317d', NULL, NULL, NULL);
INSERT INTO jobpipe_written.jobs VALUES (14, 'cancelling', 'echo', 'default', NULL, 1000, 1700000000, 0, 3, 0, NULL, 0, 1700000000, NULL, NULL, NULL, 0, NULL, '\x7b226e223a317d', NULL, NULL, NULL);
INSERT INTO jobpipe_written.live VALUES (3, NULL, 'default', 'retrying', 0, 1700000010, 1700000000, 1, 1, NULL, NULL, 0, 1700000000, NULL, false, false, '\x7b2274797065223a2256616c75654572726f72222c226d657373616765223a226e6f20737563682066696c65222c2274726163656261636b223a2254726163656261636b202e2e2e227d');
INSERT INTO jobpipe_written.live VALUES (6, NULL, 'default', 'queued', 9, 1700000000, 1700000000, 0, 0, NULL, NULL, 0, NULL, NULL, false, false, NULL);
INSERT INTO jobpipe_written.live VALUES (7, NULL, 'night', 'queued', 0, 1700000000, 1700000000, 0, 0, NULL, NULL, 0, NULL, NULL, false, false, NULL);
INSERT INTO jobpipe_written.live VALUES (8, NULL, 'default', 'scheduled', 0, 1700001000, 1700000000, 0, 0, NULL, NULL, 0, NULL, NULL, false, false, NULL);
INSERT INTO jobpipe_written.live VALUES (9, NULL, 'default', 'scheduled', 0, 1700001000, 1700000000, 0, 0, NULL, NULL, 0, NULL, 1700000500, false, false, NULL);
INSERT INTO jobpipe_written.live VALUES (10, 'unknown', 'default', 'queued', 100, 1700000000, 1700000000, 0, 0, NULL, NULL, 0, NULL, NULL, false, false, NULL);
INSERT INTO jobpipe_written.live VALUES (11, NULL, 'default', 'queued', 0, 1700000000, 1700000000, 0, 0, NULL, NULL, 0, NULL, NULL, false, false, NULL);
INSERT INTO jobpipe_written.live VALUES (12, NULL, 'default', 'queued', 1000, 1700000000, 1700000000, 0, 1, 2, 1795762922267998603, 0, NULL, NULL, false, false, NULL);
INSERT INTO jobpipe_written.live VALUES (13, NULL, 'default', 'running', 1000, 1700000000, 1700000000, 1, 1, 2, 1795762922267998603, 0, 1700000000, NULL, false, false, NULL);
INSERT INTO jobpipe_written.live VALUES (14, NULL, 'default', 'cancelling', 1000, 1700000000, 1700000000, 1, 1, 2, 1795762922267998603, 0, 1700000000, NULL, false, false, NULL);
INSERT INTO jobpipe_written.nodes OVERRIDING SYSTEM VALUE VALUES (1, 'node', 1700000015, false, '{demo,echo,k,k2,l}');
INSERT INTO jobpipe_written.nodes OVERRIDING SYSTEM VALUE VALUES (2, 'dead', 1700000015, false, '{demo,echo,k,k2,l}');
INSERT INTO jobpipe_written.queues VALUES ('night', true);
INSERT INTO jobpipe_written.tags VALUES ('\x726564', 1700000000, 4);
INSERT INTO jobpipe_written.tags VALUES ('\x626c7565', 1700000000, 4);
INSERT INTO jobpipe_written.tags VALUES ('\x726564', 1700000000, 3);
INSERT INTO jobpipe_written.tags VALUES ('\x626c7565', 1700000000, 3);
INSERT INTO jobpipe_written.tags VALUES ('\x726564', 1700000000, 2);
INSERT INTO jobpipe_written.tags VALUES ('\x626c7565', 1700000000, 2);
INSERT INTO jobpipe_written.tags VALUES ('\x726564', 1700000000, 1);
INSERT INTO jobpipe_written.tags VALUES ('\x626c7565', 1700000000, 1);
INSERT INTO jobpipe_written.tags VALUES ('\x726564', 1700000000, 6);
INSERT INTO jobpipe_written.tags VALUES ('\x626c7565', 1700000000, 6);
INSERT INTO jobpipe_written.totals VALUES ('cancelled', 1, 1, 7);
INSERT INTO jobpipe_written.totals VALUES ('done', 0, 1, 7);
INSERT INTO jobpipe_written.totals VALUES ('retrying', 0, 1, 0);
INSERT INTO jobpipe_written.totals VALUES ('expired', 0, 1, 7);
INSERT INTO jobpipe_written.totals VALUES ('failed', 1, -1, -7);
INSERT INTO jobpipe_written.totals VALUES ('queued', 1, 0, 0);
INSERT INTO jobpipe_written.totals VALUES ('failed', 0, 2, 14);
INSERT INTO jobpipe_written.totals VALUES ('scheduled', 0, 2, 0);
INSERT INTO jobpipe_written.totals VALUES ('queued', 0, 4, 0);
INSERT INTO jobpipe_written.versions VALUES (2, '2026-11-27 07:02:02.210652+00');
SELECT pg_catalog.setval('jobpipe_written.calls', 1, false);
SELECT pg_catalog.setval('jobpipe_written.jobs_seq_seq', 14, true);
SELECT pg_catalog.setval('jobpipe_written.nodes_node_seq', 2, true);
SELECT pg_catalog.setval('jobpipe_written.slots', 0, true);
ALTER TABLE ONLY jobpipe_written.attempts
    ADD CONSTRAINT attempts_pkey PRIMARY KEY (seq, claim);
ALTER TABLE ONLY jobpipe_written.counts
    ADD CONSTRAINT counts_pkey PRIMARY KEY (queue, state, slot);
ALTER TABLE ONLY jobpipe_written.jobs
    ADD CONSTRAINT jobs_id_key UNIQUE (id);
ALTER TABLE ONLY jobpipe_written.jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY jobpipe_written.live
    ADD CONSTRAINT live_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY jobpipe_written.nodes
    ADD CONSTRAINT nodes_name_key UNIQUE (name);
ALTER TABLE ONLY jobpipe_written.nodes
    ADD CONSTRAINT nodes_pkey PRIMARY KEY (node);
ALTER TABLE ONLY jobpipe_written.queues
    ADD CONSTRAINT queues_pkey PRIMARY KEY (name);
ALTER TABLE ONLY jobpipe_written.tags
    ADD CONSTRAINT tags_pkey PRIMARY KEY (tag, created_at, seq);
ALTER TABLE ONLY jobpipe_written.totals
    ADD CONSTRAINT totals_pkey PRIMARY KEY (state, slot);
ALTER TABLE ONLY jobpipe_written.versions
    ADD CONSTRAINT versions_pkey PRIMARY KEY (version);
CREATE INDEX counts_of_calls ON jobpipe_written.counts USING btree (slot) WHERE (slot < 0);
CREATE INDEX jobs_by_kind ON jobpipe_written.jobs USING btree (kind, COALESCE(status, 'live'::text), created_at, seq);
CREATE INDEX jobs_by_queue ON jobpipe_written.jobs USING btree (queue, COALESCE(status, 'live'::text), created_at, seq);
CREATE INDEX jobs_by_status ON jobpipe_written.jobs USING btree (COALESCE(status, 'live'::text), created_at, seq);
CREATE INDEX jobs_ended ON jobpipe_written.jobs USING btree (status, finished_at, seq) WHERE (status IS NOT NULL);
CREATE INDEX live_aside ON jobpipe_written.live USING btree (kind, priority DESC, run_at, seq) WHERE ((kind IS NOT NULL) AND (status = 'queued'::text) AND (node IS NULL));
CREATE INDEX live_cancelling ON jobpipe_written.live USING btree (node) WHERE (status = 'cancelling'::text);
CREATE INDEX live_expiring ON jobpipe_written.live USING btree (expires_at) WHERE ((expires_at IS NOT NULL) AND (node IS NULL));
CREATE INDEX live_held ON jobpipe_written.live USING btree (node, seq) WHERE (node IS NOT NULL);
CREATE INDEX live_later ON jobpipe_written.live USING btree (run_at) WHERE (status = ANY (ARRAY['scheduled'::text, 'retrying'::text]));
CREATE INDEX live_later_by_queue ON jobpipe_written.live USING btree (queue, status, created_at, seq) WHERE (status = ANY (ARRAY['scheduled'::text, 'retrying'::text]));
CREATE INDEX live_queued ON jobpipe_written.live USING btree (created_at, seq) WHERE ((status = 'queued'::text) AND (node IS NULL));
CREATE INDEX live_ready ON jobpipe_written.live USING btree (priority DESC, run_at, seq) WHERE ((status = 'queued'::text) AND (node IS NULL) AND (kind IS NULL));
CREATE INDEX live_ready_by_queue ON jobpipe_written.live USING btree (queue, (
CASE
    WHEN (kind IS NULL) THEN 0
    ELSE 1
END), priority DESC, run_at, seq) WHERE ((status = 'queued'::text) AND (node IS NULL));
CREATE INDEX live_retrying ON jobpipe_written.live USING btree (created_at, seq) WHERE (status = 'retrying'::text);
CREATE INDEX live_scheduled ON jobpipe_written.live USING btree (created_at, seq) WHERE (status = 'scheduled'::text);
CREATE INDEX nodes_alive ON jobpipe_written.nodes USING btree (node) WHERE (lease_until IS NOT NULL);
CREATE INDEX queues_paused ON jobpipe_written.queues USING btree (name) WHERE paused;
