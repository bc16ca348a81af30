"""Which rows a list looks at: the newest first, from the index that holds the fewest others."""

import math

from jobpipe.job import Status
from jobpipe.store.base import Filter, Place

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
_OF_STATUS = "from jobs where status = '{status}'"
_OF_QUEUE = "and queue = :queue"
_OF_KIND = "and kind = :kind"
_TAGGED = "from tags where tag = :tag"


def looked(where: Filter) -> str:
    """The query for the places (at, seq) of the rows that a list looks at, no more than `:look` of them.

    A tag, else a queue, else a kind decides on the index, each but the tag together with the status. What else is asked
    has to be looked for among these rows.
    """
    since = _SINCE if where.created_after is not None else ""
    arms = [_ARM.format(source=source, since=since) for source in _sources(where)]
    return _MERGED.format(arms="union all".join(arms))


def _sources(where: Filter) -> list[str]:
    """Where the rows come from: each is a "from" with its "where"."""
    if where.tag is not None:
        return [_TAGGED]
    narrow = _OF_QUEUE if where.queue is not None else _OF_KIND if where.kind is not None else ""
    statuses = [where.status] if where.status is not None else list(Status)
    return [f"{_OF_STATUS.format(status=status.value)} {narrow}" for status in statuses]


def bounds(where: Filter, before: Place | None) -> dict[str, float]:
    """The values of that query: it ends before the place of the last page, or before a time."""
    place = before or NEWEST
    if where.created_before is not None:
        place = min(place, Place(where.created_before, 0))
    return {"at": float(place.created_at), "seq": place.seq}
