-- older nodes: go on
-- Whether somebody listens to all jobs on a node. Nodes of an older version tell it nothing.

alter table nodes add column listening boolean not null default false;

-- While somebody listens, promote() tells of all jobs that expire, not only of those that are watched.
do $patch$
declare
    all_at_once constant text := pg_get_functiondef('promote'::regproc);
    one_by_one constant text := pg_get_functiondef('promote_one_by_one'::regproc);
    place constant text := 'from gone g join jobs j on j.seq = g.seq where g.watched)';
    place_of_one constant text := 'if due.watched then';
    anybody_listens constant text := 'exists (select from nodes where listening and lease_until is not null)';
begin
    if strpos(all_at_once, place) = 0 then
        raise exception 'the function promote() is not as expected';
    end if;
    if strpos(one_by_one, place_of_one) = 0 then
        raise exception 'the function promote_one_by_one() is not as expected';
    end if;
    execute replace(all_at_once, place, 'from gone g join jobs j on j.seq = g.seq where g.watched or ' || anybody_listens || ')');
    execute replace(one_by_one, place_of_one, 'if due.watched or ' || anybody_listens || ' then');
end
$patch$;
