"""Which rows a list looks at: the newest first, from the index that holds the fewest others."""

import math

from jobpipe.job import Status
from jobpipe.store.base import Filter, Place

USUAL = (Status.QUEUED, Status.DONE)
"""What most jobs are. Indexes that had these statuses would change with each job that runs."""

NEWEST = Place(math.inf, 0)
"""Before it comes every job."""

# Each arm is one range of an index that ends with created_at and the rowid. SQLite merges the arms as they come.
_ARM = """
select created_at as at, seq
{source}
    and (created_at, seq) < (:at, :seq)
    {since}
"""
_SINCE = "and created_at >= :created_after"
_MERGED = """
{arms}
order by at desc, seq desc
limit :look
"""
_OF_STATUS = "from jobs indexed by jobs_by_status where status = '{status}'"
_OF_COLUMN = "from jobs indexed by jobs_by_{column} where {column} = :{column}"
_UNUSUAL = f"""
from jobs indexed by jobs_unusual_by_{{column}}
where {{column}} = :{{column}}
    and status = '{{status}}'
    and status not in {tuple(status.value for status in USUAL)}
"""
_TAGGED = "from tags where tag = :tag"
_IN_GROUP = "from members where grp = (select grp from groups where id = :group)"


def looked(where: Filter, *, few: bool = False) -> str:
    """The query for the places (at, seq) of the rows that a list looks at, no more than `:look` of them.

    A tag, else a group, else a queue, else a kind decides on the index, queue and kind together with the status unless
    that is a usual one. A usual status decides alone where few jobs have it. What else is asked has to be looked for
    among these rows.
    """
    since = _SINCE if where.created_after is not None else ""
    arms = [_ARM.format(source=source, since=since) for source in _sources(where, few=few)]
    return _MERGED.format(arms="union all".join(arms))


def _sources(where: Filter, *, few: bool) -> list[str]:
    """Where the rows come from: each is a "from" with its "where"."""
    if where.tag is not None:
        return [_TAGGED]
    if where.group is not None:
        return [_IN_GROUP]
    status, column = where.status, column_of(where)
    if column is None:
        return [_OF_STATUS.format(status=one.value) for one in ([status] if status else Status)]
    if status is None or (status in USUAL and not few):
        return [_OF_COLUMN.format(column=column)]
    if status in USUAL:
        return [_OF_STATUS.format(status=status.value)]
    return [_UNUSUAL.format(column=column, status=status.value)]


def column_of(where: Filter) -> str | None:
    """What decides on the index beside the status."""
    return "queue" if where.queue is not None else "kind" if where.kind is not None else None


def bounds(where: Filter, before: Place | None) -> dict[str, float]:
    """The values of that query: it ends before the place of the last page, or before a time."""
    place = before or NEWEST
    if where.created_before is not None:
        place = min(place, Place(where.created_before, 0))
    return {"at": float(place.created_at), "seq": place.seq}
