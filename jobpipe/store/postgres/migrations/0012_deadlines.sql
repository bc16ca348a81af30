-- older nodes: must have stopped
-- A job that still waits at its deadline has failed. promote() leaves such jobs to the nodes.

-- Whether options may name a deadline: the nodes look more closely.
create function names_deadline(options bytea) returns boolean language sql immutable as $$
    select coalesce(position('\x22646561646c696e6522'::bytea in options) > 0, false)  -- "deadline", in quotes
$$;

do $patch$
declare
    all_at_once text := pg_get_functiondef('promote'::regproc);
    one_by_one constant text := pg_get_functiondef('promote_one_by_one'::regproc);
    changes constant text[] := array[
        'select followed from live where expires_at is not null and node is null and expires_at <= at_time
            order by expires_at limit step) overdue',
        'select l.followed or names_deadline(j.options) as followed
            from live l join jobs j on j.seq = l.seq
            where l.expires_at is not null and l.node is null and l.expires_at <= at_time
            order by l.expires_at limit step) overdue',
        'and l.expires_at <= at_time and not l.followed
',
        'and l.expires_at <= at_time and not l.followed
            and not names_deadline(j.options)
'];
    place_of_one constant text := 'and node is null and expires_at <= at_time and not followed)';
begin
    for n in 1..array_length(changes, 1) by 2 loop
        if strpos(all_at_once, changes[n]) = 0 then
            raise exception 'the function promote() is not as expected';
        end if;
        all_at_once := replace(all_at_once, changes[n], changes[n + 1]);
    end loop;
    if strpos(one_by_one, place_of_one) = 0 then
        raise exception 'the function promote_one_by_one() is not as expected';
    end if;
    execute all_at_once;
    execute replace(one_by_one, place_of_one, 'and node is null and expires_at <= at_time and not followed
                and not exists (select from jobs j where j.seq = live.seq and names_deadline(j.options)))');
end
$patch$;

do $$ begin execute format('revoke execute on all functions in schema %I from public', current_schema()); end $$;
