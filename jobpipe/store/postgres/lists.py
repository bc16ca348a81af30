"""Which rows a list looks at: the newest first, from the index that holds the fewest others."""

import math
from typing import Any, NamedTuple

from jobpipe.job import ACTIVE, ENDED, Status
from jobpipe.store.base import Filter, Place

FEW = 300
"""Up to how many waiting jobs are all read and sorted, rather than looked for among others."""

NEWEST = Place(math.inf, 0)
"""Before it comes every job."""

# Each arm is one range of an index that ends with created_at and seq. The server merges the arms as they come.
_ARM = """
(
    select created_at as at, seq
    {source}
        and (created_at, seq) < (%(at)s, %(seq)s)
        {since}
    order by created_at desc, seq desc
    limit %(look)s
)
"""
_SINCE = "and created_at >= %(created_after)s"
_MERGED = """
{arms}
order by at desc, seq desc
limit %(look)s
"""

# Sources, and what narrows them down.
_TAGGED = "from tags where tag = convert_to(%(tag)s, 'UTF8')"
_IN_GROUP = "from members where grp = (select grp from groups where id = %(group)s)"
_OF_JOBS = "from jobs where true"
_ENDED = "from ended where status = '{status}'"
_UNUSUAL = f"{_ENDED} and status <> 'done'"
_WAITING = {
    Status.BLOCKED: "from live where status = 'blocked'",
    Status.SCHEDULED: "from live where status = 'scheduled'",
    Status.RETRYING: "from live where status = 'retrying'",
    Status.QUEUED: "from live where status = 'queued' and node is null",
}
_LATER = "from live where status = '{status}' and status in ('blocked', 'scheduled', 'retrying')"
_HELD = "from live where node is not null"
_OF_STATUS = "and status = '{status}'"
_OF_QUEUE = "and queue = %(queue)s"
_OF_KIND = "and kind = %(kind)s"

# All that are held, or wait and are few. The order and limit make the planner take the index that holds just these
# rows, "lateral" makes it begin with them.
_ALL = """
from (
    select l.created_at, l.seq
    from (
        select created_at, seq
        {which}
            {of_queue}
        {order}
    ) l
    {with_kind}
) as all_l
where true
"""
_FIRST_QUEUED = f"""
order by queue, (case when key is not null then 2 when kind is null then 0 else 1 end), priority desc, run_at, seq
limit {FEW}
"""
_FIRST_LATER = f"""
order by created_at, seq
limit {FEW}
"""
_FIRST = {
    Status.QUEUED: _FIRST_QUEUED,
    Status.BLOCKED: _FIRST_LATER,
    Status.SCHEDULED: _FIRST_LATER,
    Status.RETRYING: _FIRST_LATER,
}
_EACH_HELD = """
order by node, seq
offset 0
"""
_WITH_KIND = """
cross join lateral (
    select
    from jobs j
    where j.seq = l.seq and j.kind = %(kind)s
    offset 0
) k
"""

COUNTED = """
select coalesce(sum(jobs), 0)::bigint
from counts
where state = %(status)s and queue = %(queue)s
"""
COUNTED_IN_ALL = """
select coalesce(sum(jobs), 0)::bigint
from (
    select jobs from totals where state = %(status)s
    union all
    select jobs from counts where slot < 0 and state = %(status)s
) counted
"""
"""How many jobs have a status, those held by nodes not counted."""


class Form(NamedTuple):
    """What of a filter decides on the statements of a list: never a value, but for the status."""

    status: Status | None
    given: frozenset[str]
    """names of the fields that have values"""


def counted(form: Form) -> str | None:
    """The query for the number that decides whether few jobs are to be looked at; None: it does not matter."""
    narrow = form.given & {"queue", "kind"}
    if form.given & {"tag", "group"} or not narrow:
        return None
    if form.status is Status.DONE:
        return COUNTED_IN_ALL
    if form.status not in _WAITING:
        return None
    if "queue" in form.given:
        return COUNTED if form.status is Status.QUEUED else None
    return COUNTED_IN_ALL


def looked(form: Form, *, few: bool) -> str:
    """The query for the places (at, seq) of the rows that a list looks at, no more than `%(look)s` of them.

    A tag, else a group, else a queue, else a kind decides on the index, the last two together with the status unless
    most jobs have that. What else is asked has to be looked for among these rows. `few`: the jobs that `counted` counts
    are few.
    """
    since = _SINCE if "created_after" in form.given else ""
    arms = [_ARM.format(source=source, since=since) for source in _sources(form, few=few)]
    return arms[0] if len(arms) == 1 else _MERGED.format(arms="union all".join(arms))


def _sources(form: Form, *, few: bool) -> list[str]:
    """Where the rows come from: each is a "from" with its "where"."""
    if "tag" in form.given:
        return [_TAGGED]
    if "group" in form.given:
        return [_IN_GROUP]
    narrow = _OF_QUEUE if "queue" in form.given else _OF_KIND if "kind" in form.given else ""
    if form.status is None:
        return [f"{_OF_JOBS} {narrow}"] if narrow else _every(form)
    if form.status in ENDED:
        return [_of_ended(form.status, narrow, few=few)]
    held = [_all(f"{_HELD} {_OF_STATUS.format(status=form.status.value)}", _EACH_HELD, form)]
    if form.status in ACTIVE:
        return held
    # A held job that has not begun is queued, too, and not among those that wait in "live".
    apart = form.status is Status.QUEUED and (few or not narrow)
    return [_waiting(form, form.status, narrow, few=few), *(held if apart else [])]


def _every(form: Form) -> list[str]:
    """All jobs: of each status those that wait or have ended, and those that are held."""
    ended = [_ENDED.format(status=one) for one in sorted(ENDED)]
    return [*ended, *_WAITING.values(), _all(_HELD, _EACH_HELD, form)]


def _of_ended(status: Status, narrow: str, *, few: bool) -> str:
    if not narrow or few:
        return _ENDED.format(status=status.value)
    return f"{_OF_JOBS if status is Status.DONE else _UNUSUAL.format(status=status.value)} {narrow}"


def _waiting(form: Form, status: Status, narrow: str, *, few: bool) -> str:
    if not narrow:
        return _WAITING[status]
    if few:
        return _all(_WAITING[status], _FIRST[status], form)
    if "queue" in form.given and status is not Status.QUEUED:
        return f"{_LATER.format(status=status.value)} {narrow}"
    return f"{_OF_JOBS} {narrow}"


def _all(which: str, order: str, form: Form) -> str:
    of_queue = "queue" in form.given
    return _ALL.format(
        which=which,
        of_queue=_OF_QUEUE if of_queue else "",
        order=order,
        with_kind=_WITH_KIND if "kind" in form.given and not of_queue else "",
    )


def bounds(where: Filter, before: Place | None) -> dict[str, Any]:
    """The values of that query: it ends before the place of the last page, or before a time."""
    place = before or NEWEST
    if where.created_before is not None:
        place = min(place, Place(where.created_before, 0))
    return {"at": float(place.created_at), "seq": place.seq}
