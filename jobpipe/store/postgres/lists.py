"""Which rows a list looks at: the newest first, from the index that holds the fewest others."""

import itertools
import math
from typing import Any, NamedTuple

import msgspec

from jobpipe.job import ACTIVE, ENDED, Status
from jobpipe.store.base import SEVERAL, Filter, Place
from jobpipe.store.postgres.arrays import texts

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
_TAGGED = "from tags where tag = convert_to(%({name})s, 'UTF8')"
_OF_IDS = "from jobs where id = any (%(id)s)"
_OF_STATUS = "from jobs where coalesce(status, 'live') = '{status}'"
_WAITING = {
    Status.BLOCKED: "from live where status = 'blocked'",
    Status.SCHEDULED: "from live where status = 'scheduled'",
    Status.RETRYING: "from live where status = 'retrying'",
    Status.QUEUED: "from live where status = 'queued' and node is null",
}
_LATER = "from live where status = '{status}' and status in ('blocked', 'scheduled', 'retrying')"
_HELD = "from live where node is not null and status = '{status}'"
_OF_QUEUE = "and queue = %({name})s"
_OF_KIND = "and kind = %({name})s"

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
order by queue, (case when kind is null then 0 else 1 end), priority desc, run_at, seq
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
    where j.seq = l.seq and j.kind = %({name})s
    offset 0
) k
"""

COUNTED = """
select coalesce(sum(jobs), 0)::bigint
from counts
where state = %(status_0)s and queue = %(queue_0)s
"""
COUNTED_IN_ALL = """
select coalesce(sum(jobs), 0)::bigint
from (
    select jobs from totals where state = %(status_0)s
    union all
    select jobs from counts where slot < 0 and state = %(status_0)s
) counted
"""
"""How many jobs have a status that waits, those held by nodes not counted."""


MOST = 50
"""The most ranges of indexes that a list merges; where there would be more, fewer fields decide on them."""


NO_TEXT = "\x01"
"""In the place of a character that no text here may hold: no name has this one either."""


class Form(NamedTuple):
    """What of a filter decides on the statements of a list: never a value, but for the statuses."""

    statuses: tuple[Status, ...]
    given: frozenset[str]
    """names of the fields that have values"""
    several: tuple[tuple[str, int], ...]
    """how many values a field has that may have several"""
    prefixes: bool
    """whether kinds are given by what they begin with"""

    def names(self, field: str) -> list[str]:
        """The names under which a statement has the values of a field, one by one."""
        return names_of(field, dict(self.several).get(field, 0))

    @property
    def narrow(self) -> str | None:
        """What decides on the index beside the status."""
        for column in ("queue", "kind"):
            ranges = len(self.names(column)) * (len(self.statuses) or 1)
            if 0 < ranges <= MOST and not (column == "kind" and self.prefixes):
                return column
        return None

    @property
    def by_tag(self) -> bool:
        """Whether the tags decide on the index."""
        return "id" not in self.given and 0 < len(self.names("tag")) <= MOST


def form_of(where: Filter) -> Form:
    """The form of a filter."""
    given = frozenset(name for name in where.__struct_fields__ if getattr(where, name) is not None)
    several = tuple((field, len(where.each(field))) for field in SEVERAL if where.each(field))
    return Form(tuple(map(Status, where.each("status"))), given, several, bool(where.prefixes))


def names_of(field: str, number: int) -> list[str]:
    """The names under which a statement has the values of a field, one by one."""
    return [f"{field}_{one}" for one in range(number)]


def values_of(where: Filter) -> dict[str, Any]:
    """All that is asked, as the values of a statement: fields that may have several as an array, and one by one."""
    values = {
        name: value
        for name, value in msgspec.structs.asdict(where).items()
        if value is not None and name not in SEVERAL
    }
    for field in SEVERAL:
        if asked := where.each(field):
            asked = tuple(one.replace("\0", NO_TEXT) for one in asked)
            values[field] = texts(asked)
            values |= dict(zip(names_of(field, len(asked)), asked, strict=True))
    return values | {"kinds": texts(where.kinds), "prefixes": texts(where.prefixes)}


def counted(form: Form) -> str | None:
    """The query for the number that decides whether few jobs are to be looked at; None: it does not matter."""
    status, *others = form.statuses or (None,)
    if others or form.by_tag or "id" in form.given or status not in _WAITING:
        return None
    if form.narrow is None or len(form.names(form.narrow)) > 1:
        return None
    if form.narrow == "queue":
        return COUNTED if status is Status.QUEUED else None
    return COUNTED_IN_ALL


def looked(form: Form, *, few: bool) -> str:
    """The query for the places (at, seq) of the rows that a list looks at, no more than `%(look)s` of them.

    An id, else a tag, else a queue, else a kind decides on the index, each but the first two together with the status.
    What else is asked has to be looked for among these rows. Where one of several values is asked for, there is a range
    for each. `few`: the jobs that `counted` counts are few.
    """
    since = _SINCE if "created_after" in form.given else ""
    sources = list(dict.fromkeys(_sources(form, few=few)))
    arms = [_ARM.format(source=source, since=since) for source in sources]
    # A job may be in several ranges, with several tags for example.
    several = any(number > 1 for _, number in form.several)
    return (
        arms[0] if len(arms) == 1 else _MERGED.format(arms=("union" if several else "union all").join(arms))
    )


def _sources(form: Form, *, few: bool) -> list[str]:
    """Where the rows come from: each is a "from" with its "where"."""
    if "id" in form.given:
        return [_OF_IDS]
    if form.by_tag:
        return [_TAGGED.format(name=name) for name in form.names("tag")]
    pairs = itertools.product(form.names(form.narrow) if form.narrow else [None], form.statuses or [None])
    return [
        source for name, status in pairs for source in _of_one(_Range(form.narrow, name), status, few=few)
    ]


class _Range(NamedTuple):
    """What a range of an index is narrowed down to beside a status: one value of a queue or a kind, or nothing."""

    column: str | None
    name: str | None
    """under which a statement has the value"""

    @property
    def condition(self) -> str:
        which = {"queue": _OF_QUEUE, "kind": _OF_KIND}.get(self.column or "", "")
        return which.format(name=self.name)


def _of_one(which: _Range, status: Status | None, *, few: bool) -> list[str]:
    narrow = which.condition
    if status is None:
        return [f"{_OF_STATUS.format(status=one)} {narrow}" for one in ("live", *sorted(ENDED))]
    if status in ENDED:
        return [f"{_OF_STATUS.format(status=status.value)} {narrow}"]
    held = [_all(_HELD.format(status=status.value), _EACH_HELD, which)]
    if status in ACTIVE:
        return held
    # A held job that has not begun is queued, too, and not among those that wait in "live".
    apart = status is Status.QUEUED and (few or not narrow)
    return [_waiting(which, status, few=few), *(held if apart else [])]


def _waiting(which: _Range, status: Status, *, few: bool) -> str:
    narrow = which.condition
    if not narrow:
        return _WAITING[status]
    if few:
        return _all(_WAITING[status], _FIRST[status], which)
    if which.column == "queue" and status is not Status.QUEUED:
        return f"{_LATER.format(status=status.value)} {narrow}"
    return f"{_OF_STATUS.format(status='live')} {narrow}"


def _all(source: str, order: str, which: _Range) -> str:
    return _ALL.format(
        which=source,
        of_queue=which.condition if which.column == "queue" else "",
        order=order,
        with_kind=_WITH_KIND.format(name=which.name) if which.column == "kind" else "",
    )


def bounds(where: Filter, before: Place | None) -> dict[str, Any]:
    """The values of that query: it ends before the place of the last page, or before a time."""
    place = before or NEWEST
    if where.created_before is not None:
        place = min(place, Place(where.created_before, 0))
    return {"at": float(place.created_at), "seq": place.seq}
