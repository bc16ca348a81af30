"""The audit: what people have done by hand, written in the transaction in which it is done.

The verbs themselves know nothing of it. Around a verb stands what tells how something stands before and after it: where
that is the same, as with an act that is refused, nothing is written.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, get_args

import msgspec

from jobpipe.acts import (
    Act,
    By,
    Differences,
    Done,
    Facts,
    What,
    brief,
    cut,
    differences,
    job_facts,
    schedule_facts,
)
from jobpipe.job import Job, JobError, NewJob, State
from jobpipe.store.base import (
    STEP,
    AuditFilter,
    AuditPage,
    AuditPlace,
    Change,
    NewOperation,
    Operation,
    QueueChange,
    QueueSettings,
    Receipt,
)
from jobpipe.store.rows import Row
from jobpipe.store.verbs import lanes, queues, schedules
from jobpipe.store.verbs.transaction import Transaction

R = TypeVar("R")
Verb = Callable[[Transaction], Coroutine[Any, Any, R]]

LOOKED = 2_000
"""How many rows one page is made of at the most, where several filters are given."""

EARLIEST, LATEST, LAST = -1e300, 1e300, 1 << 62
"""Times before and after all others, and a number behind all others."""

_COLUMNS = "seq, at, who, address, node, act, what, name, key, changes, reason, jobs"
_WRITE = """
insert into audit (at, who, address, node, act, what, name, key, changes, reason)
values (:at, :who, :address, :node, :act, :what, :name, :key, :changes, :reason)
"""
_COUNTED = """
update audit
set jobs = :jobs
where name = :name and what = 'operation'
"""
# Those with one value of a column, as a range of its index: with `=`, PostgreSQL may prefer to walk that of the time.
_BEHIND = """
from audit
where ({of} at, seq) < ({is} :at, :seq) and ({of} at) >= ({is} :after)
order by {newest} at desc, seq desc
"""
_LIST = f"""
select {_COLUMNS}
from (select {_COLUMNS} {_BEHIND} limit :looked) looked
where {{rest}}
order by {{newest}} at desc, seq desc
limit :limit
"""
_EDGE = f"""
select at, seq
{_BEHIND}
limit 1
offset :skipped
"""
_BY = ("name", "who", "act", "what")
"""What the list may be filtered by, with an index of each; that which leaves the fewest rows comes first."""

_OLD = "select 1 from audit where at < :until limit 1"
_FORGET = """
delete from audit
where seq in (
    select seq
    from audit
    where at < :until
    order by at, seq
    limit :limit
    {skip locked}
)
returning seq
"""
_QUEUE = f"select {queues.COLUMNS}, {lanes.LIMIT_COLUMNS} from queues where name = :queue {{lock}}"
_LOCK_KEY = "select 1 from lanes where queue = :queue and key = :key {lock}"
SETTINGS, LIMITS = len(QueueSettings.__struct_fields__), lanes.LIMIT_COLUMNS.count(",") + 1
"""How many columns they have."""

_OPERATION = "select state from operations where id = :id {lock}"

_ACTS: Mapping[str, Act] = {act: act for act in get_args(Act)}
_WHATS: Mapping[str, What] = {what: what for what in get_args(What)}

_changes = msgspec.json.Decoder(dict[str, tuple[Any, Any]]).decode
_encode = msgspec.json.Encoder().encode


class Noun(msgspec.Struct, frozen=True):
    """To what something is done."""

    what: What
    name: str
    key: str | None = None


def around(by: By | None, act: Act, noun: Noun, verb: Verb[R]) -> Verb[R]:
    """A verb that also writes what it has changed of something; the verb itself, where nobody does it by hand."""
    if by is None:
        return verb

    async def noted(tx: Transaction) -> R:
        before = await _facts(tx, noun, by)
        result = await verb(tx)
        write(tx, by, act, noun, differences(before, await _facts(tx, noun, by)))
        return result

    return noted


def write(tx: Transaction, by: By, act: Act, noun: Noun, changes: Differences) -> None:
    """Write an act, where it has changed anything."""
    if not changes:
        return
    values = {
        "at": float(by.at),
        "who": cut(by.who),
        "address": cut(by.address),
        "node": cut(by.node),
        "act": act,
        "what": noun.what,
        "name": cut(noun.name),
        "key": cut(noun.key),
        "changes": _encode(changes),
        "reason": cut(by.reason),
    }
    tx.run(_WRITE, values)


def of_jobs(by: By | None, act: Act, verb: Verb[Sequence[Change]]) -> Verb[Sequence[Change]]:
    """A verb that also writes what it has changed of jobs; the verb itself, where nobody does it by hand."""
    if by is None:
        return verb

    async def noted(tx: Transaction) -> Sequence[Change]:
        changes = await verb(tx)
        for one in changes:
            if one.was is not None:
                write(tx, by, act, Noun("job", one.id), _of_job(one.was, one.job))
        return changes

    return noted


def _of_job(before: Job, after: Job | None) -> Differences:
    if after is None:
        return differences(brief(before), {})
    return differences(job_facts(before), job_facts(after))


def of_deletion(by: By | None, queue: str, verb: Verb[QueueChange]) -> Verb[QueueChange]:
    """A verb that deletes a queue and also writes that; the verb itself, where nobody does it by hand."""
    if by is None:
        return verb
    noun = Noun("queue", queue)

    async def noted(tx: Transaction) -> QueueChange:
        before = await _facts(tx, noun, by)
        change = await verb(tx)
        if change.verdict == "changed":
            set_before = differences(before, await _facts(tx, noun, by))
            write(tx, by, "delete", noun, {"name": (queue, None), **set_before})
        return change

    return noted


def closed(tx: Transaction, by: By | None, group: str) -> None:
    """Write that a group was closed, if it was in this transaction."""
    if by is not None and tx.closed:
        write(tx, by, "close", Noun("group", group), {"closed": (False, True)})


def enqueued(tx: Transaction, by: By | None, job: NewJob, receipt: Receipt) -> None:
    """Write that a job was enqueued by hand, or merged with one that it has changed; or that a schedule was run."""
    if by is None or receipt.verdict not in ("stored", "replaced"):
        return
    if job.options.schedule is not None:
        write(tx, by, "run", Noun("schedule", job.options.schedule.name), differences({}, {"job": job.id}))
    elif receipt.verdict == "stored":
        stored = receipt.job or Job(job, State(job.status))
        write(tx, by, "enqueue", Noun("job", job.id), differences({}, brief(stored)))
    else:
        write(tx, by, "enqueue", Noun("job", receipt.other or job.id), differences({}, {"merged": job.id}))


def begun(tx: Transaction, by: By | None, asked: NewOperation) -> None:
    """Write that an operation was begun; how many jobs it has changed is written when it has ended."""
    if by is None:
        return
    edits = dict(asked.changes.edits) if asked.changes else {}
    if "payload" in edits:
        edits["payload_bytes"] = edits.pop("payload")
    facts = {"filter": asked.where, "rate": asked.rate, **edits}
    write(tx, by, asked.verb, Noun("operation", asked.id), differences({}, facts))


def counted(tx: Transaction, operation: Operation | None) -> Operation | None:
    """Write how many jobs an operation has changed, once it has ended; returns the operation."""
    if operation is not None and operation.state != "running":
        tx.run(_COUNTED, {"name": operation.asked.id, "jobs": operation.changed})
    return operation


async def listed(tx: Transaction, where: AuditFilter, limit: int, before: AuditPlace | None) -> AuditPage:
    """See `jobpipe.store.base.ReadStore.audit`."""
    given = {name: value for name in _BY if (value := getattr(where, name)) is not None}
    if any("\0" in value for value in given.values()):
        return AuditPage([], None)
    first, *rest = given or [""]
    parts = {
        "of": first and f"{first},",
        "is": first and f":{first},",
        "newest": first and f"{first} desc,",
        "rest": " and ".join(["true", *(f"{name} = :{name}" for name in rest)]),
    }
    place = before or (AuditPlace(LATEST, LAST) if where.before is None else AuditPlace(where.before, 0))
    values = {
        **given,
        "after": EARLIEST if where.after is None else float(where.after),
        "at": float(place.at),
        "seq": place.number,
        "looked": LOOKED if rest else limit + 1,
        "limit": limit + 1,
    }
    found = [done_from(row) for row in await tx.rows(_LIST.format(**parts), values)]
    shown = found[:limit]
    if len(found) > limit:
        return AuditPage(shown, AuditPlace(shown[-1].at, shown[-1].number))
    edge = await tx.rows(_EDGE.format(**parts), {**values, "skipped": LOOKED - 1}) if rest else ()
    return AuditPage(shown, AuditPlace(*edge[0]) if edge else None)


async def any_before(tx: Transaction, until: float) -> bool:
    """Whether there are rows of before a time."""
    return bool(await tx.rows(_OLD, {"until": float(until)}))


async def forget(tx: Transaction, until: float) -> int:
    """See `jobpipe.store.base.EngineStore.forget_audit`."""
    return len(await tx.rows(_FORGET, {"until": float(until), "limit": STEP}))


def done_from(row: Row) -> Done:
    """An act from its columns. What cannot be read of it is left out and named."""
    number, at, who, address, node, act, what, name, key, changes, reason, jobs = row
    read: Differences = {}
    wrong = [word for word, known in ((act, _ACTS), (what, _WHATS)) if word not in known]
    words = [f"nothing is known of {word[:40]!r}" for word in wrong]
    try:
        read = _changes(changes)
    except Exception as error:  # noqa: BLE001 - whatever stands there
        words.append((str(error).splitlines() or [""])[0][:200])
    return Done(
        number=number,
        at=at,
        who=who,
        address=address,
        node=node,
        act=_ACTS.get(act),
        what=_WHATS.get(what),
        name=name,
        key=key,
        changes=read,
        reason=reason,
        jobs=jobs,
        error=JobError("DamagedRow", f"the row cannot be read ({'; '.join(words)})") if words else None,
    )


async def _facts(tx: Transaction, noun: Noun, by: By) -> Facts:
    """How something stands; it is locked, if it is there."""
    match noun.what:
        case "queue":
            return _queue_facts(await tx.rows(_QUEUE, {"queue": noun.name}), by.at)
        case "key":
            return await _key_facts(tx, noun.name, noun.key or "")
        case "schedule":
            return schedule_facts(await schedules.locked(tx, noun.name))
        case "operation":
            rows = await tx.rows(_OPERATION, {"id": noun.name})
            return {"state": rows[0][0]} if rows else {}
        case "job" | "group":
            raise ValueError(noun.what)  # their verbs say themselves what they have changed


def _queue_facts(rows: Sequence[Row], now: float) -> Facts:
    """How a queue stands; one that is not there as one of which nothing is set. A pause that is over is none."""
    paused, reason, until, *rest = rows[0] if rows else [None] * (3 + SETTINGS + LIMITS)
    settings = queues.settings_from(rest[:SETTINGS])
    limits = lanes.limits_from(rest[SETTINGS:])
    over = until is not None and until <= now
    is_paused = bool(paused) and not over
    return {
        "paused": is_paused,
        "reason": reason if is_paused else None,
        "paused_until": until if is_paused else None,
        **msgspec.structs.asdict(settings),
        "max_running": limits.max_running,
        "rate": limits.rate,
        **{f"per_key.{name}": value for name, value in msgspec.structs.asdict(limits.per_key).items()},
    }


async def _key_facts(tx: Transaction, queue: str, key: str) -> Facts:
    await tx.rows(_LOCK_KEY, {"queue": queue, "key": key})
    state = await lanes.one(tx, queue, key)
    return {
        "paused": state.state == "paused",
        "stopped_by": state.stopped_by,
        "weight": state.settings.weight,
        "max_running": state.settings.max_running,
    }
