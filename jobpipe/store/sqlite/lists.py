"""Which rows a list looks at: the newest first, from the index that holds the fewest others."""

import math
from collections.abc import Sequence

import msgspec

from jobpipe.job import Status
from jobpipe.store.base import SEVERAL, Filter, Place
from jobpipe.store.sqlite.rows import READY_BY_QUEUE, as_json

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
_OF_ALL = "from jobs indexed by jobs_by_time where true"
_OF_COLUMN = "from jobs indexed by jobs_by_{column} where {column} = :{name}"
_NOT_USUAL = " and ".join(f"status <> '{status.value}'" for status in USUAL)
_UNUSUAL = f"""
from jobs indexed by jobs_unusual_by_{{column}}
where {{column}} = :{{name}}
    and status = '{{status}}'
    and {_NOT_USUAL}
"""
_OF_UNUSUAL = f"from jobs indexed by jobs_unusual_by_status where status = '{{status}}' and {_NOT_USUAL}"
# All jobs of a usual status, where they are few: they are not in the order of a list, so they are sorted.
_OF_USUAL = {
    Status.QUEUED: (
        f"from {READY_BY_QUEUE}",
        "from jobs indexed by jobs_held where held = 1 and status = 'queued'",
    ),
    Status.DONE: ("from jobs indexed by jobs_ended where status = 'done' and finished_at is not null",),
}
_TAGGED = "from tags where tag = :{name}"
_IN_GROUP = "from members where grp = (select grp from groups where id = :{name})"
_FAILED = "from jobs indexed by jobs_by_fingerprint where fingerprint = :{name}"
_OF_IDS = "from jobs where id in (select value from json_each(:id))"

MOST = 50
"""The most ranges of indexes that a list merges; where there would be more, fewer fields decide on them."""


def looked(where: Filter, *, few: bool = False) -> str:
    """The query for the places (at, seq) of the rows that a list looks at, no more than `:look` of them.

    What `decides` decides on the index, together with the status unless that is a usual one. A usual status decides
    alone where few jobs have it; where not, it is looked for among the others, as is what else is asked. Where one of
    several values is asked for, there is a range for each.
    """
    since = _SINCE if where.created_after is not None else ""
    arms = [_ARM.format(source=source, since=since) for source in _sources(where, few=few)]
    # A job may have several of the tags; of all else it has one value, so it is in one range.
    return _MERGED.format(arms=("union" if decides(where) == "tag" else "union all").join(arms))


def decides(where: Filter) -> str | None:
    """What decides on the index; None: the status alone.

    An id, else a fingerprint, else a tag, else a group, else a queue, else a kind.

    Not where there would be too many ranges, nor a kind that is given by what it begins with.
    """
    if where.id is not None:
        return "id"
    statuses = len(where.each("status")) or 1
    ranges_of_each = {"fingerprint": 1, "tag": 1, "group": 1, "queue": statuses, "kind": statuses}
    for field, ranges in ranges_of_each.items():
        if 0 < len(where.each(field)) * ranges <= MOST and not (field == "kind" and where.prefixes):
            return field
    return None


def _sources(where: Filter, *, few: bool) -> list[str]:
    """Where the rows come from: each is a "from" with its "where"."""
    statuses = [Status(one) for one in where.each("status")]
    match decides(where):
        case None:
            of_each = statuses and (few or not asks_usual(where))
            return [source for one in statuses for source in _of_status(one)] if of_each else [_OF_ALL]
        case "id":
            return [_OF_IDS]
        case "fingerprint":
            return [_FAILED.format(name=name) for name in names_of(where, "fingerprint")]
        case "tag":
            return [_TAGGED.format(name=name) for name in names_of(where, "tag")]
        case "group":
            return [_IN_GROUP.format(name=name) for name in names_of(where, "group")]
        case column:
            return _of_column(where, column, statuses, few=few)


def asks_usual(where: Filter) -> bool:
    """Whether a usual status is among those asked for."""
    return any(one in USUAL for one in where.each("status"))


def _of_status(status: Status) -> Sequence[str]:
    return _OF_USUAL.get(status) or (_OF_UNUSUAL.format(status=status.value),)


def _of_column(where: Filter, column: str, statuses: Sequence[Status], *, few: bool) -> list[str]:
    names = names_of(where, column)
    if few:
        return [source for one in statuses for source in _of_status(one)]
    if not statuses or asks_usual(where):
        return [_OF_COLUMN.format(column=column, name=name) for name in names]
    return [_UNUSUAL.format(column=column, name=name, status=one.value) for name in names for one in statuses]


def names_of(where: Filter, field: str) -> list[str]:
    """The names under which a statement has the values of a field, one by one."""
    return [f"{field}_{number}" for number in range(len(where.each(field)))]


def values_of(where: Filter) -> dict[str, object]:
    """All that is asked, as the values of a statement; of fields that may have several: as JSON, and one by one."""
    values = {
        name: value
        for name, value in msgspec.structs.asdict(where).items()
        if value is not None and name not in SEVERAL
    }
    for field in SEVERAL:
        if asked := where.each(field):
            values[field] = as_json(asked)
            values |= dict(zip(names_of(where, field), asked, strict=True))
    values |= {"kinds": as_json(where.kinds), "prefixes": as_json(where.prefixes)}
    return values


def bounds(where: Filter, before: Place | None) -> dict[str, float]:
    """The values of that query: it ends before the place of the last page, or before a time."""
    place = before or NEWEST
    if where.created_before is not None:
        place = min(place, Place(where.created_before, 0))
    return {"at": float(place.created_at), "seq": place.seq}
