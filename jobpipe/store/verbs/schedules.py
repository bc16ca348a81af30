"""What people ask of schedules, and how they fire: a firing is done where its row is still as it was believed to be."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from jobpipe.job import ENDED, JobError, NewJob
from jobpipe.schedules import Firing, Schedule, Spec, next_after, template
from jobpipe.store.base import Due, Fired, FiredJob, ScheduleDeletion, SchedulePut
from jobpipe.store.rows import Row
from jobpipe.store.verbs import jobs, queues
from jobpipe.store.verbs.transaction import SCHEDULES, Transaction

BY_HAND, ORPHANED = 1, 2
"""Why a schedule is paused: added up."""

ORPHANED_SINCE = "no live node declares it any more"

COLUMNS = "name, version, spec, job, paused, reason, next_at, last_at, missed, created_at, declared"
_ONE = f"select {COLUMNS} from schedules where name = :name"
_LOCK_ONE = f"{_ONE} {{lock}}"
_LIST = f"""
select {COLUMNS}
from schedules
where name > :after
order by name
limit :limit
"""
_DUE = f"""
select {COLUMNS}
from schedules
where paused = 0 and next_at <= :now and (next_at, name) > (:at, :name)
order by next_at, name
limit :limit
"""
_NEXT = """
select min(next_at)
from schedules
where paused = 0 and next_at > :now
"""
_PUT = f"""
insert into schedules (name, version, spec, job, next_at, created_at)
values (:name, 1, :spec, :job, :next_at, :now)
on conflict (name) do update set
    version = schedules.version + 1,
    spec = excluded.spec,
    job = excluded.job,
    next_at = excluded.next_at,
    paused = schedules.paused & {BY_HAND},
    declared = null
returning {COLUMNS}
"""
_PAUSE = f"""
update schedules
set paused = paused | {BY_HAND},
    reason = :reason
where name = :name
returning {COLUMNS}
"""
_RESUME = f"""
update schedules
set paused = paused & {ORPHANED},
    reason = null,
    next_at = :next_at
where name = :name
returning {COLUMNS}
"""
_DELETE = "delete from schedules where name = :name"
_LOCK_DUE = """
select name, version, next_at, paused, (select count(*) from queues where closed = 1)
from schedules
where name in {each names}
order by name
{skip locked}
"""
_MOVE_ON = """
update schedules
set next_at = :next_at,
    last_at = coalesce(:last_at, last_at),
    missed = missed + :missed
where name = :name
"""
_UNFINISHED = "select id, status from {shown} where id in {each ids}"
# "A" comes right after "@".
_FIRED = """
select id, status, started_at, finished_at
from {shown}
where id > :low and id < :high
order by id desc
limit :limit
"""

spec_of = msgspec.json.Decoder(Spec).decode
job_of = msgspec.json.Decoder(NewJob).decode
encode = msgspec.json.Encoder().encode


def schedule_from(row: Row) -> Schedule:
    """A schedule from its columns. What cannot be read of it is left out and named."""
    name, version, spec, job, paused, reason, next_at, last_at, missed, created_at, declared = row
    read_spec, read_job, error = Spec(), None, None
    try:
        read_spec, read_job = spec_of(spec), job_of(job)
    except Exception as wrong:  # noqa: BLE001 - whatever stands there
        words = (str(wrong).splitlines() or [""])[0][:200]
        error = JobError("DamagedRow", f"the schedule's row cannot be read ({words}): PUT it again")
    return Schedule(
        name=name,
        version=version,
        spec=read_spec,
        job=read_job,
        created_at=created_at,
        paused=bool(paused),
        reason=reason or (ORPHANED_SINCE if paused & ORPHANED else None),
        next_at=next_at,
        last_at=last_at,
        missed=missed,
        declared=declared is not None,
        orphaned=bool(paused & ORPHANED),
        error=error,
    )


async def one(tx: Transaction, name: str) -> Schedule | None:
    """See `jobpipe.store.base.ReadStore.schedule`."""
    return _first(await tx.rows(_ONE, {"name": name}))


async def locked(tx: Transaction, name: str) -> Schedule | None:
    """One schedule, locked."""
    return _first(await tx.rows(_LOCK_ONE, {"name": name}))


async def listed(tx: Transaction, limit: int, after: str) -> Sequence[Schedule]:
    """See `jobpipe.store.base.ReadStore.schedules`."""
    return [schedule_from(row) for row in await tx.rows(_LIST, {"limit": limit, "after": after})]


async def fired_jobs(tx: Transaction, name: str, limit: int) -> Sequence[FiredJob]:
    """See `jobpipe.store.base.ReadStore.fired_jobs`."""
    rows = await tx.rows(_FIRED, {"low": f"{name}@", "high": f"{name}A", "limit": limit})
    return [
        FiredJob(id=job_id, status=status, started_at=started_at, finished_at=finished_at)
        for job_id, status, started_at, finished_at in rows
    ]


async def put(tx: Transaction, name: str, spec: Spec, job: NewJob, now: float) -> SchedulePut:
    """See `jobpipe.store.base.ControlStore.put_schedule`."""
    job = template(job)
    before = await locked(tx, name)
    if before is not None and before.declared and not before.orphaned:
        return SchedulePut(before, "declared")
    if before is not None and (before.spec, before.job, before.error, before.declared) == (
        spec,
        job,
        None,
        False,
    ):
        return SchedulePut(before, "same")
    created_at = now if before is None else before.created_at
    values = {
        "name": name,
        "spec": encode(spec),
        "job": encode(job),
        "next_at": next_after(spec, created_at, now),
        "now": float(now),
    }
    rows = await tx.rows(_PUT, values)
    tx.tell(SCHEDULES)
    return SchedulePut(schedule_from(rows[0]), "created" if before is None else "changed")


async def pause(tx: Transaction, name: str, reason: str | None) -> Schedule | None:
    """See `jobpipe.store.base.ControlStore.pause_schedule`."""
    return _first(await tx.rows(_PAUSE, {"name": name, "reason": reason}))


async def resume(tx: Transaction, name: str, now: float) -> Schedule | None:
    """See `jobpipe.store.base.ControlStore.resume_schedule`."""
    before = await locked(tx, name)
    if before is None or not before.paused:
        return before
    # Where it is paused by hand no more, and no node declares it, it stays paused.
    next_at = None if before.error else next_after(before.spec, before.created_at, now)
    rows = await tx.rows(_RESUME, {"name": name, "next_at": next_at})
    tx.tell(SCHEDULES)
    return _first(rows)


async def delete(tx: Transaction, name: str) -> ScheduleDeletion:
    """See `jobpipe.store.base.ControlStore.delete_schedule`."""
    before = await locked(tx, name)
    if before is None:
        return "missing"
    if before.declared and not before.orphaned:
        return "declared"
    tx.run(_DELETE, {"name": name})
    return "deleted"


async def due(tx: Transaction, now: float, limit: int, after: tuple[float, str] | None) -> Due:
    """See `jobpipe.store.base.EngineStore.due_schedules`."""
    at, name = after or (-1e300, "")
    values = {"now": float(now), "at": float(at), "name": name, "limit": limit}
    found = [schedule_from(row) for row in await tx.rows(_DUE, values)]
    ((next_at,),) = await tx.rows(_NEXT, {"now": float(now)})
    return Due(found, next_at)


async def fire(tx: Transaction, firings: Sequence[Firing], now: float) -> Fired:
    """See `jobpipe.store.base.EngineStore.fire`.

    Rows that somebody else has locked are passed over: whoever it is fires them, or has changed them.
    """
    names = as_json([one.name for one in firings])
    rows = await tx.rows(_LOCK_DUE, {"names": names})
    locked = {name: [version, next_at, paused] for name, version, next_at, paused, _ in rows}
    hits = [one for one in firings if locked.get(one.name) == [one.version, one.due_at, 0]]
    skipped = await _into_closed(tx, hits) if any(closed for *_, closed in rows) else set()
    unfinished = await _unfinished(tx, [one.previous for one in hits if one.previous is not None])
    overlapping = [one for one in hits if one.previous in unfinished and one.name not in skipped]
    skipped |= {one.name for one in overlapping if one.overlap == "skip"}
    replaced = [one.previous for one in overlapping if one.overlap == "replace" and one.previous is not None]
    cancelled = await jobs.cancel(tx, replaced, now) if replaced else ()
    for one in hits:
        tx.run(_MOVE_ON, _moved(one, skipped=one.name in skipped))
    new = [job for one in hits if one.name not in skipped for job in one.jobs]
    return Fired(
        fired=frozenset(one.name for one in hits),
        locked=frozenset(one.name for one in firings if one.name not in locked),
        stored=await tx.add(new) if new else (),
        cancelled=cancelled,
    )


async def _into_closed(tx: Transaction, firings: Sequence[Firing]) -> set[str]:
    """The names of those of the schedules whose jobs go into a closed queue."""
    closed = await queues.closed(tx, {job.queue for one in firings for job in one.jobs})
    return {one.name for one in firings if any(job.queue in closed for job in one.jobs)}


def _moved(firing: Firing, *, skipped: bool) -> Mapping[str, Any]:
    return {
        "name": firing.name,
        "next_at": firing.next_at,
        "last_at": None if skipped else firing.last_at,
        "missed": firing.missed + (len(firing.jobs) if skipped else 0),
    }


async def _unfinished(tx: Transaction, ids: Sequence[str]) -> frozenset[str]:
    """Those of the jobs that are there and have not ended."""
    if not ids:
        return frozenset()
    rows = await tx.rows(_UNFINISHED, {"ids": as_json(ids)})
    return frozenset(job_id for job_id, status in rows if status not in ENDED)


def as_json(texts: Sequence[str]) -> str:
    """Texts as a value for `{each NAME}`: see `jobpipe.store.verbs.dialect`."""
    return msgspec.json.encode(texts).decode()


def _first(rows: Sequence[Row]) -> Schedule | None:
    return schedule_from(rows[0]) if rows else None
