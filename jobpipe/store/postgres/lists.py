"""Which rows a list looks at: the newest first, from the index that holds the fewest others."""

import math
from typing import Any

from jobpipe.job import ACTIVE, ENDED, Status
from jobpipe.store.base import Filter, Place

FEW = 300
"""Up to how many waiting jobs are all read and sorted, rather than looked for among others."""

NEWEST = Place(math.inf, 0)
"""Before it comes every job."""

# Each arm is one range of an index that ends with created_at and seq. The server merges the arms as they come.
_ARM = (
    "(select created_at as at, seq from {source} and (created_at, seq) < (%(at)s, %(seq)s){since} "
    "order by created_at desc, seq desc limit %(look)s)"
)
_SINCE = " and created_at >= %(created_after)s"
_MERGED = " order by at desc, seq desc limit %(look)s"
_TAGGED = "tags where tag = convert_to(%(tag)s, 'UTF8')"
_OF_STATUS = "jobs where coalesce(status, 'live') = '{status}'"
_WAITING = {
    Status.SCHEDULED: "live where status = 'scheduled'",
    Status.RETRYING: "live where status = 'retrying'",
    Status.QUEUED: "live where status = 'queued' and node is null",
}
_OF_QUEUE = " and queue = %(queue)s"
_LATER = "live where status = '{status}' and status in ('scheduled', 'retrying')"
# All that are held, or wait and are few. The order and limit make the planner take the index that holds just these
# rows, "lateral" makes it begin with them.
_ALL = (
    "(select l.created_at, l.seq from (select created_at, seq from {which} order by {order}) l{of_kind}) as all_l "
    "where true"
)
_ORDER = {
    Status.QUEUED: f"queue, (case when kind is null then 0 else 1 end), priority desc, run_at, seq limit {FEW}",
    Status.SCHEDULED: f"created_at, seq limit {FEW}",
    Status.RETRYING: f"created_at, seq limit {FEW}",
}
_HELD_ORDER = "node, seq offset 0"
_OF_KIND = " cross join lateral (select from jobs j where j.seq = l.seq and j.kind = %(kind)s offset 0) k"
_HELD = "live where node is not null and status = '{status}'"

COUNTED = "select coalesce(sum(jobs), 0)::bigint from counts where state = %(status)s and queue = %(queue)s"
COUNTED_IN_ALL = (
    "select coalesce(sum(jobs), 0)::bigint from (select jobs from totals where state = %(status)s "
    "union all select jobs from counts where slot < 0 and state = %(status)s) counted"
)
"""How many jobs have a status that waits, those held by nodes not counted."""


def counted(where: Filter) -> str | None:
    """The query for the number that decides whether few jobs are to be looked at; None: it does not matter."""
    if where.tag is not None or where.status not in _WAITING:
        return None
    if where.queue is not None:
        return COUNTED if where.status is Status.QUEUED else None
    return None if where.kind is None else COUNTED_IN_ALL


def looked(where: Filter, *, few: bool) -> str:
    """The query for the places (at, seq) of the rows that a list looks at, no more than `%(look)s` of them.

    A tag, else a queue, else a kind decides on the index, each but the tag together with the status. What else is asked
    has to be looked for among these rows. `few`: the jobs that `counted` counts are few.
    """
    since = _SINCE if where.created_after is not None else ""
    arms = [_ARM.format(source=source, since=since) for source in _sources(where, few=few)]
    return arms[0] if len(arms) == 1 else " union all ".join(arms) + _MERGED


def _sources(where: Filter, *, few: bool) -> list[str]:
    if where.tag is not None:
        return [_TAGGED]
    narrow = _OF_QUEUE if where.queue is not None else "" if where.kind is None else " and kind = %(kind)s"
    if where.status is None:
        return [_OF_STATUS.format(status=one) + narrow for one in ("live", *sorted(ENDED))]
    if where.status in ENDED:
        return [_OF_STATUS.format(status=where.status.value) + narrow]
    held = [_all(_HELD.format(status=where.status.value), _HELD_ORDER, where)]
    if where.status in ACTIVE:
        return held
    # A held job that has not begun is queued, too, and not among those that wait in "live".
    apart = where.status is Status.QUEUED and (few or not narrow)
    return [_waiting(where, where.status, narrow, few=few), *(held if apart else [])]


def _waiting(where: Filter, status: Status, narrow: str, *, few: bool) -> str:
    if not narrow:
        return _WAITING[status]
    if few:
        return _all(_WAITING[status], _ORDER[status], where)
    if where.queue is not None and status is not Status.QUEUED:
        return _LATER.format(status=status.value) + narrow
    return _OF_STATUS.format(status="live") + narrow


def _all(which: str, order: str, where: Filter) -> str:
    of_kind = _OF_KIND if where.queue is None and where.kind is not None else ""
    of_queue = _OF_QUEUE if where.queue is not None else ""
    return _ALL.format(which=which + of_queue, order=order, of_kind=of_kind)


def bounds(where: Filter, before: Place | None) -> dict[str, Any]:
    """The values of that query: it ends before the place of the last page, or before a time."""
    place = before or NEWEST
    if where.created_before is not None:
        place = min(place, Place(where.created_before, 0))
    return {"at": float(place.created_at), "seq": place.seq}
