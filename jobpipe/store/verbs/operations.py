"""What is done to all jobs that a filter means, a slice at a time: each moves the operation on as it changes jobs."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import msgspec
import structlog

from jobpipe.job import JobError
from jobpipe.store.base import (
    Change,
    Changes,
    Filter,
    NewOperation,
    Operation,
    OperationState,
    OperationVerb,
    Place,
    Slice,
    Sliced,
    TakenOperation,
)
from jobpipe.store.matching import matches
from jobpipe.store.rows import Row
from jobpipe.store.verbs import groups, jobs, merging
from jobpipe.store.verbs.transaction import Transaction
from jobpipe.transitions import Stored, cancelled, promoted

KEPT = 7 * 86_400.0
"""Seconds for which operations are kept that have ended."""

FORGOTTEN = 1_000
"""How many older ones are deleted when one begins."""

LAST = 1e300
"""A time after all others."""

_VERBS: Mapping[str, OperationVerb] = {verb: verb for verb in get_args(OperationVerb)}
_STATES: Mapping[str, OperationState] = {state: state for state in get_args(OperationState)}

log = structlog.get_logger("jobpipe")

COLUMNS = """
    id, verb, filter, changes, rate, state, place_at, place_seq, matched, changed, refused,
    created_at, ended_at, next_at
"""
_ONE = f"select {COLUMNS} from operations where id = :id"
_LOCK_ONE = f"{_ONE} {{lock}}"
_LIST = f"""
select {COLUMNS}
from operations
where (created_at, id) < (:at, :id)
order by created_at desc, id desc
limit :limit
"""
_BEGIN = f"""
insert into operations (id, verb, filter, changes, rate, state, top, created_at, next_at)
values (:id, :verb, :filter, :changes, :rate, 'running', :top, :now, :now)
returning {COLUMNS}
"""
_TOP = "select coalesce(max(seq), 0) from jobs"
_FORGET = """
delete from operations
where id in (
    select id
    from operations
    where ended_at < :until
    order by ended_at
    limit :limit
)
"""
_FREE = f"""
select {COLUMNS}
from operations
where state = 'running' and next_at <= :now and (node is null or node = :node or node_until <= :now)
order by next_at, created_at, id
limit :limit
{{skip locked}}
"""
_ANY = "select 1 from operations where state = 'running' limit 1"
_NEXT = "select min(next_at) from operations where state = 'running' and next_at > :now"
_TAKE = "update operations set node = :node, node_until = :until where id = :id"
_MOVE = f"""
update operations
set place_at = :place_at,
    place_seq = :place_seq,
    matched = matched + :matched,
    changed = changed + :changed,
    refused = refused + :refused,
    state = :state,
    ended_at = :ended_at,
    next_at = :next_at,
    node = :node,
    node_until = :until
where id = :id
returning {COLUMNS}
"""
_END = f"""
update operations
set state = :state, ended_at = :now
where id = :id
returning {COLUMNS}
"""

_encode = msgspec.json.Encoder().encode
_filter = msgspec.json.Decoder(Filter).decode
_changes = msgspec.json.Decoder(Changes).decode


def operation_from(row: Row) -> Operation:
    """An operation from its columns. Where it cannot be read, it says so, and means no job."""
    asked_id, verb, where, changes, rate, state, place_at, place_seq, matched, changed, refused, *times = row
    created_at, ended_at, next_at = times
    error = None
    try:
        asked = NewOperation(
            id=asked_id,
            verb=_VERBS[verb],
            where=_filter(where),
            changes=None if changes is None else _changes(changes),
            rate=rate,
        )
        place = None if place_at is None else Place(place_at, place_seq)
        state = _STATES[state]
    except Exception as wrong:  # noqa: BLE001 - whatever stands there
        words = (str(wrong).splitlines() or [""])[0][:200]
        error = JobError("DamagedRow", f"the operation's row cannot be read ({words}): begin another one")
        asked = NewOperation(id=asked_id, verb="cancel", where=Filter(id=()))
        place, state = None, "stopped"
    return Operation(
        asked=asked,
        state=state,
        place=place,
        matched=matched,
        changed=changed,
        refused=refused,
        created_at=created_at,
        ended_at=ended_at,
        next_at=next_at,
        error=error,
    )


async def begin(tx: Transaction, operation: NewOperation, now: float) -> Operation:
    """See `jobpipe.store.base.ControlStore.begin_operation`."""
    tx.run(_FORGET, {"until": now - KEPT, "limit": FORGOTTEN})
    ((top,),) = await tx.rows(_TOP, {})
    values = {
        "id": operation.id,
        "verb": operation.verb,
        "filter": _encode(msgspec.structs.replace(operation.where, top=top)),
        "changes": None if operation.changes is None else _encode(operation.changes),
        "rate": None if operation.rate is None else float(operation.rate),
        "top": top,
        "now": float(now),
    }
    rows = await tx.rows(_BEGIN, values)
    return operation_from(rows[0])


async def one(tx: Transaction, operation: str) -> Operation | None:
    """See `jobpipe.store.base.ReadStore.operation`."""
    return _first(await tx.rows(_ONE, {"id": operation}))


async def listed(tx: Transaction, limit: int, before: tuple[float, str] | None) -> Sequence[Operation]:
    """See `jobpipe.store.base.ReadStore.operations`."""
    at, operation = before or (LAST, "")
    values = {"at": float(at), "id": operation, "limit": limit}
    return [operation_from(row) for row in await tx.rows(_LIST, values)]


async def any_running(tx: Transaction) -> bool:
    """Whether any operation runs."""
    return bool(await tx.rows(_ANY, {}))


async def take(tx: Transaction, node: str, now: float, until: float) -> TakenOperation:
    """See `jobpipe.store.base.EngineStore.take_operation`. One whose row cannot be read is stopped."""
    values: dict[str, Any] = {"node": node, "now": float(now), "limit": 1}
    while found := _first(await tx.rows(_FREE, values)):
        if found.error is None:
            tx.run(_TAKE, {"id": found.asked.id, "node": node, "until": float(until)})
            return TakenOperation(found)
        log.error("an operation is stopped", operation=found.asked.id, error=found.error.message)
        await tx.rows(_END, {"id": found.asked.id, "state": "stopped", "now": float(now)})
    ((next_at,),) = await tx.rows(_NEXT, {"now": float(now)})
    return TakenOperation(None, next_at)


async def stop(tx: Transaction, operation: str, now: float) -> Operation | None:
    """See `jobpipe.store.base.ControlStore.stop_operation`."""
    found = _first(await tx.rows(_LOCK_ONE, {"id": operation}))
    if found is None or found.state != "running":
        return found
    return _first(await tx.rows(_END, {"id": operation, "state": "stopped", "now": float(now)}))


async def sliced(tx: Transaction, part: Slice, node: str, now: float, until: float) -> Sliced:
    """See `jobpipe.store.base.EngineStore.slice`."""
    found = _first(await tx.rows(_LOCK_ONE, {"id": part.operation}))
    if found is None or found.state != "running" or found.place != part.place:
        return Sliced(found)
    if found.asked.verb == "retry":
        await merging.lock_keys_of(tx, part.ids)
    there = await tx.lock(part.ids)
    meant = [one for one in part.ids if one in there and matches(there[one], found.asked.where)]
    changes = await _done(tx, found.asked, there, meant, now) if meant else []
    changed = sum(one.verdict == "changed" for one in changes)
    values = {
        "id": part.operation,
        "place_at": None if part.next is None else float(part.next.created_at),
        "place_seq": None if part.next is None else part.next.seq,
        "matched": len(meant) + part.refused,
        "changed": changed,
        "refused": len(meant) - changed + part.refused,
        "state": "running" if part.next is not None else "done",
        "ended_at": None if part.next is not None else float(now),
        "next_at": float(part.next_at),
        "node": node,
        "until": float(until),
    }
    return Sliced(_first(await tx.rows(_MOVE, values)), changes)


async def _done(
    tx: Transaction, asked: NewOperation, locked: Mapping[str, Stored], ids: Sequence[str], now: float
) -> Sequence[Change]:
    match asked.verb:
        case "cancel":
            return jobs.change_locked(tx, locked, ids, lambda stored: cancelled(stored, now))
        case "retry":
            return await groups.retry_locked(tx, locked, ids, now)
        case "delete":
            return await jobs.delete_locked(tx, locked, ids, now)
        case "promote":
            return jobs.change_locked(tx, locked, ids, lambda stored: promoted(stored, now))
        case "move" | "edit":
            edits = asked.changes.edits if asked.changes else {}
            return await jobs.edit_locked(tx, locked, ids, edits, now)


def _first(rows: Sequence[Row]) -> Operation | None:
    return operation_from(rows[0]) if rows else None
