"""Failed jobs in groups, by the fingerprints of their errors: counted from an index that has only them.

A list goes from one fingerprint to the next, and looks up the last failure of each. What else is told of a group is
read for those of the page, and from a bounded part of the index: so it does not matter how many jobs have failed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from jobpipe.job import JobError
from jobpipe.store.base import (
    COUNTED,
    COUNTED_OF_ONE,
    EXAMPLES,
    EXAMPLES_OF_ONE,
    GROUPS,
    NAMED,
    SEEN,
    ErrorGroup,
    ErrorGroups,
    ErrorPlace,
    Window,
)
from jobpipe.store.rows import decoded_error
from jobpipe.store.verbs.transaction import Transaction

EARLIEST, LATEST = -1e300, 1e300
"""Times before and after all others that can be shown."""

FIRST = ErrorPlace(LATEST, "")
"""Before it comes every group."""

_IN_WINDOW = "finished_at >= :after and finished_at < :before"
_OF_GROUP = f"{{failed}} and fingerprint = g.fingerprint and {_IN_WINDOW}"
_NEWEST_FIRST = "order by finished_at desc, seq desc"
"""As the index has them: no other plan is as good, though nobody asks for an order."""

_GROUP = f"""
with page as (
    select fingerprint, finished_at as last_at
    from {{failed}} and fingerprint = :fingerprint and {_IN_WINDOW}
    {_NEWEST_FIRST}
    limit 1
)
"""
_GROUPS = f"""
with recursive walked (number, fingerprint) as materialized (
    select 1, (
        select fingerprint
        from {{failed}}
        order by fingerprint
        limit 1
    )
    union all
    select g.number + 1, (
        select fingerprint
        from {{failed}} and fingerprint > g.fingerprint
        order by fingerprint
        limit 1
    )
    from walked g
    where g.number <= :groups and g.fingerprint is not null
),
last as materialized (
    select g.fingerprint, (
        select finished_at
        from {_OF_GROUP}
        {_NEWEST_FIRST}
        limit 1
    ) as last_at
    from walked g
    where g.number <= :groups and g.fingerprint is not null
),
page as materialized (
    select fingerprint, last_at
    from last
    where last_at is not null and (last_at, fingerprint) < (:at, :behind)
    order by last_at desc, fingerprint desc
    limit :limit
)
"""
_FACTS = f"""
select
    g.fingerprint,
    g.last_at,
    (
        select finished_at
        from {_OF_GROUP}
        order by finished_at
        limit 1
    ),
    (
        select count(*)
        from (
            select 1
            from {_OF_GROUP}
            {_NEWEST_FIRST}
            limit :counted
        ) counted
    ),
    (
        select {{gathered distinct kind}}
        from (
            select kind
            from {_OF_GROUP}
            {_NEWEST_FIRST}
            limit :seen
        ) seen
    ),
    (
        select {{gathered distinct queue}}
        from (
            select queue
            from {_OF_GROUP}
            {_NEWEST_FIRST}
            limit :seen
        ) seen
    ),
    (
        select {{gathered seq}}
        from (
            select seq
            from {_OF_GROUP}
            {_NEWEST_FIRST}
            limit :examples
        ) newest
    )
"""
_ONE = f"{_GROUP} {_FACTS} from page g"
# The last column stands also where the page is empty.
_LIST = f"""
{_GROUPS}
{_FACTS},
    (
        select max(number)
        from walked
        where fingerprint is not null
    )
from (select 1 as one) always
left join page g on true
order by g.last_at desc, g.fingerprint desc
"""
_IDS = "select seq, id from jobs where seq {among seqs}"
_ERRORS = "select seq, error from {shown} where seq {among seqs}"

_names = msgspec.json.Decoder(list[str]).decode
_seqs = msgspec.json.Decoder(list[int]).decode


async def listed(tx: Transaction, limit: int, before: ErrorPlace | None, window: Window) -> ErrorGroups:
    """See `jobpipe.store.base.ReadStore.error_groups`."""
    place = before or FIRST
    values = {
        **_bounds(window, COUNTED, EXAMPLES),
        "groups": GROUPS,
        "at": float(place.last_at),
        "behind": place.fingerprint.replace("\0", ""),
        "limit": limit + 1,
    }
    found = await tx.rows(_LIST, values)
    rows = [row for *row, _ in found if row[0] is not None]
    groups = await _told(tx, rows[:limit], COUNTED)
    last = groups[-1] if len(rows) > limit else None
    return ErrorGroups(
        groups,
        None if last is None else ErrorPlace(last.last_at, last.fingerprint),
        complete=(found[0][-1] or 0) <= GROUPS,
    )


async def one(tx: Transaction, fingerprint: str, window: Window) -> ErrorGroup | None:
    """See `jobpipe.store.base.ReadStore.error_group`."""
    if "\0" in fingerprint:
        return None
    values = {**_bounds(window, COUNTED_OF_ONE, EXAMPLES_OF_ONE), "fingerprint": fingerprint}
    return next(iter(await _told(tx, await tx.rows(_ONE, values), COUNTED_OF_ONE)), None)


def _bounds(window: Window, counted: int, examples: int) -> dict[str, Any]:
    return {
        "after": EARLIEST if window.after is None else float(window.after),
        "before": LATEST if window.before is None else float(window.before),
        "counted": counted + 1,
        "seen": SEEN,
        "examples": examples,
    }


async def _told(tx: Transaction, rows: Sequence[Sequence[Any]], counted: int) -> Sequence[ErrorGroup]:
    """Groups with the ids of their examples, and the error of the newest."""
    newest = [_seqs(seqs) for *_, seqs in rows]
    ids = dict(await _of_jobs(tx, _IDS, [seq for seqs in newest for seq in seqs]))
    errors = dict(await _of_jobs(tx, _ERRORS, [seqs[0] for seqs in newest]))
    return [_group(row, seqs, ids, errors, counted) for row, seqs in zip(rows, newest, strict=True)]


async def _of_jobs(tx: Transaction, sql: str, seqs: Sequence[int]) -> Sequence[Any]:
    return await tx.rows(sql, {"seqs": msgspec.json.encode(seqs).decode()}) if seqs else []


def _group(
    row: Sequence[Any],
    seqs: Sequence[int],
    ids: Mapping[int, str],
    errors: Mapping[int, bytes | None],
    counted: int,
) -> ErrorGroup:
    fingerprint, last_at, first_at, jobs, kinds, queues, _ = row
    return ErrorGroup(
        fingerprint=fingerprint,
        jobs=min(jobs, counted),
        exact=jobs <= counted,
        first_at=first_at,
        last_at=last_at,
        kinds=sorted(_names(kinds))[:NAMED],
        queues=sorted(_names(queues))[:NAMED],
        newest=_read(errors.get(seqs[0])),
        examples=[ids[seq] for seq in seqs if seq in ids],
    )


def _read(stored: bytes | None) -> JobError | None:
    try:
        return decoded_error(stored)
    except Exception:  # noqa: BLE001 - whatever stands there
        return None
