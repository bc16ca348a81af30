"""Schedules that code declares: each follows the newest declaration of a live node, and is paused without one.

One that is not paused for that has a row in `declarations`: such rows are forgotten long after nobody is live who said
so, by a transaction that has paused it before. So only those schedules are looked at, however many others there are.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from jobpipe.schedules import Declaration, next_after, template
from jobpipe.store.base import Declared
from jobpipe.store.verbs.schedules import (
    BY_HAND,
    COLUMNS,
    ORPHANED,
    as_json,
    encode,
    job_of,
    schedule_from,
    spec_of,
)
from jobpipe.store.verbs.transaction import SCHEDULES, Transaction

FORGOTTEN = 3600.0
"""Seconds after which a declaration that no node has repeated is forgotten: should it return, it is a new one."""

_ANY = "select exists (select 1 from declarations)"
_SAY = """
insert into declarations (name, digest, spec, job, first_at, seen_at)
values (:name, :digest, :spec, :job, :now, :now)
on conflict (name, digest) do update set
    seen_at = excluded.seen_at
"""
_CREATE = """
insert into schedules (name, version, spec, job, next_at, created_at, declared)
values (:name, 1, :spec, :job, :next_at, :now, :digest)
on conflict (name) do nothing
returning name
"""
_LOCK = f"""
select {COLUMNS}
from schedules
where name in (select d.name from declarations d) and (declared is not null or name in {{each names}})
order by name
{{lock}}
"""
_LIVE = """
select name, digest, spec, job
from declarations
where seen_at >= :live_since
order by first_at, digest
"""
_FOLLOW = f"""
update schedules
set version = version + 1,
    spec = :spec,
    job = :job,
    next_at = :next_at,
    paused = paused & {BY_HAND},
    declared = :digest
where name = :name
"""
_ORPHAN = f"""
update schedules
set paused = paused | {ORPHANED}
where name = :name
"""
_FORGET = "delete from declarations where seen_at < :before"


async def any_declared(tx: Transaction) -> bool:
    """Whether a schedule may follow a declaration that is not known to be gone."""
    ((found,),) = await tx.rows(_ANY, {})
    return bool(found)


async def declare(
    tx: Transaction, declared: Sequence[Declaration], now: float, live_since: float
) -> Declared:
    """See `jobpipe.store.base.EngineStore.declare`.

    The rows of schedules are locked before declarations are read, in a statement of its own: of two nodes that declare
    at the same time, the second sees what the first has said.
    """
    own = sorted(declared, key=lambda one: one.name)
    created = [one.name for one in own if await _said(tx, one, now)]
    rows = await tx.rows(_LOCK, {"names": as_json([one.name for one in own])})
    newest = await _newest(tx, live_since)
    changed, orphaned = list[str](), list[str]()
    for row in rows:
        schedule, digest = schedule_from(row), row[-1]
        live_digest, live = newest.get(schedule.name, (None, None))
        if live is not None and (schedule.orphaned or live_digest != digest):
            tx.run(_FOLLOW, _values(live, schedule.created_at, now) | {"digest": live_digest})
            changed.append(schedule.name)
        elif live is None and not schedule.orphaned:
            tx.run(_ORPHAN, {"name": schedule.name})
            orphaned.append(schedule.name)
    tx.run(_FORGET, {"before": min(now - FORGOTTEN, live_since)})
    if created or changed:
        tx.tell(SCHEDULES)
    return Declared(created=tuple(created), changed=tuple(changed), orphaned=tuple(orphaned))


async def _said(tx: Transaction, one: Declaration, now: float) -> bool:
    """Note a declaration, and make its schedule where there is none; whether there was none."""
    values = _values(one, now, now) | {"digest": one.digest, "now": float(now)}
    tx.run(_SAY, {name: value for name, value in values.items() if name != "next_at"})
    return bool(await tx.rows(_CREATE, values))


async def _newest(tx: Transaction, live_since: float) -> Mapping[str, tuple[str, Declaration]]:
    """What live nodes declare, the newest for each name, with its digest. What cannot be read is left out."""
    found: dict[str, tuple[str, Declaration]] = {}
    for name, digest, spec, job in await tx.rows(_LIVE, {"live_since": float(live_since)}):
        with suppress(msgspec.DecodeError, TypeError, UnicodeDecodeError):  # whatever stands there
            found[name] = digest, Declaration(name=name, spec=spec_of(spec), job=job_of(job))
    return found


def _values(one: Declaration, created_at: float, now: float) -> dict[str, Any]:
    return {
        "name": one.name,
        "spec": encode(one.spec),
        "job": encode(template(one.job)),
        "next_at": next_after(one.spec, created_at, now),
    }
