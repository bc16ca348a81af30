"""Which rows a list looks at: the newest first, from the index that holds the fewest others."""

import itertools
import math
from collections.abc import Sequence
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
# A job may be in several of the arms. "union" would read them to their ends.
_MERGED_ONCE = """
select distinct on (at, seq) at, seq
from (
{arms}
) as arms
order by at desc, seq desc
limit %(look)s
"""

# Sources, and what narrows them down.
_OF_IDS = "from jobs where id = any (%(id)s)"
_TAGGED = "from tags where tag = convert_to(%({name})s, 'UTF8')"
_IN_GROUP = "from members where grp = (select grp from groups where id = %({name})s)"
_FAILED = "from ended where fingerprint = %({name})s"
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
"""How many jobs have a status, those held by nodes not counted."""


MOST = 50
"""The most ranges of indexes that a list merges; where there would be more, fewer fields decide on them."""

NO_TEXT = "\x01"
"""In the place of a character that no text here may hold: no name has this one either."""


USUAL = frozenset(
    {"status", "kind", "queue", "tag", "group", "created_after", "created_before", "top", "content"}
)


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
    def is_usual(self) -> bool:
        """Whether it is one of a few hundred forms, which most lists have."""
        return self.given <= USUAL and all(number == 1 for _, number in self.several)

    @property
    def decides(self) -> str | None:
        """What decides on the index; None: the status.

        An id, else a fingerprint, else a tag, else a group, else a queue, else a kind.
        Not where there would be too many ranges, nor a kind that is given by what it begins with.
        """
        if "id" in self.given:
            return "id"
        statuses = len(self.statuses) or 1
        ranges_of_each = {"fingerprint": 1, "tag": 1, "group": 1, "queue": statuses, "kind": statuses}
        for field, ranges in ranges_of_each.items():
            if 0 < len(self.names(field)) * ranges <= MOST and not (field == "kind" and self.prefixes):
                return field
        return None


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
    column = form.decides
    if others or column not in ("queue", "kind") or len(form.names(column)) > 1:
        return None
    if status is Status.DONE:
        return COUNTED_IN_ALL
    if status not in _WAITING:
        return None
    if column == "queue":
        return COUNTED if status is Status.QUEUED else None
    return COUNTED_IN_ALL


def looked(form: Form, *, few: bool) -> str:
    """The query for the places (at, seq) of the rows that a list looks at, no more than `%(look)s` of them.

    What `form.decides` decides on the index, a queue and a kind together with the status unless most jobs have that.
    What else is asked has to be looked for among these rows. Where one of several values is asked for, there is a range
    for each. `few`: the jobs that `counted` counts are few.
    """
    since = _SINCE if "created_after" in form.given else ""
    arms = [_ARM.format(source=source, since=since) for source in _sources(form, few=few)]
    if len(arms) == 1:
        return arms[0]
    # A job may have several of the tags; of all else it has one value, so it is in one range.
    merged = _MERGED_ONCE if form.decides == "tag" else _MERGED
    return merged.format(arms="union all".join(arms))


def _sources(form: Form, *, few: bool) -> list[str]:
    """Where the rows come from: each is a "from" with its "where"."""
    field = form.decides
    match field:
        case "id":
            return [_OF_IDS]
        case "fingerprint":
            return [_FAILED.format(name=name) for name in form.names(field)]
        case "tag":
            return [_TAGGED.format(name=name) for name in form.names(field)]
        case "group":
            return [_IN_GROUP.format(name=name) for name in form.names(field)]
        case "queue" | "kind":
            each = [_Range(field, name) for name in form.names(field)]
            return list(itertools.chain(*(_narrow(one, form.statuses, few=few) for one in each)))
        case _:
            every = [_of_one(EVERY, status, few=few) for status in form.statuses]
            return list(itertools.chain(*every)) if every else _every()


class _Range(NamedTuple):
    """What a range of an index is narrowed down to beside a status: one value of a queue or a kind, or nothing."""

    column: str | None
    name: str | None
    """under which a statement has the value"""

    @property
    def condition(self) -> str:
        which = {"queue": _OF_QUEUE, "kind": _OF_KIND}.get(self.column or "", "")
        return which.format(name=self.name)


EVERY = _Range(None, None)


def _narrow(which: _Range, statuses: Sequence[Status], *, few: bool) -> list[str]:
    """The sources of the jobs of one queue or kind; where all of these are looked at, nothing else need be."""
    every = f"{_OF_JOBS} {which.condition}"
    sources = list(itertools.chain(*(_of_one(which, status, few=few) for status in statuses)))
    return sources if sources and every not in sources else [every]


def _every() -> list[str]:
    """All jobs: of each status those that wait or have ended, and those that are held."""
    ended = [_ENDED.format(status=one) for one in sorted(ENDED)]
    return [*ended, *_WAITING.values(), _all(_HELD, _EACH_HELD, EVERY)]


def _of_one(which: _Range, status: Status, *, few: bool) -> list[str]:
    """The sources of the jobs that have a status."""
    if status in ENDED:
        return [_of_ended(which, status, few=few)]
    held = [_all(f"{_HELD} {_OF_STATUS.format(status=status.value)}", _EACH_HELD, which)]
    if status in ACTIVE:
        return held
    # A held job that has not begun is queued, too, and not among those that wait in "live".
    apart = status is Status.QUEUED and (few or not which.condition)
    return [_waiting(which, status, few=few), *(held if apart else [])]


def _of_ended(which: _Range, status: Status, *, few: bool) -> str:
    if not which.condition or few:
        return _ENDED.format(status=status.value)
    source = _OF_JOBS if status is Status.DONE else _UNUSUAL.format(status=status.value)
    return f"{source} {which.condition}"


def _waiting(which: _Range, status: Status, *, few: bool) -> str:
    if not which.condition:
        return _WAITING[status]
    if few:
        return _all(_WAITING[status], _FIRST[status], which)
    if which.column == "queue" and status is not Status.QUEUED:
        return f"{_LATER.format(status=status.value)} {which.condition}"
    return f"{_OF_JOBS} {which.condition}"


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
