"""Ended jobs of queues that say how long they are kept: which they are, and which of them are deleted.

What ends a job knows nothing of this. Now and then the ended jobs are looked through, in the order of their ends, and
those of such queues are noted in `kept`. A row there is a hint: whether a job is too old, or one of too many, is
decided by its own row and the settings of its queue.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from jobpipe.job import ENDED, Status
from jobpipe.store.base import QueueSettings, Retention
from jobpipe.store.rows import Row
from jobpipe.store.verbs.blocked import as_json
from jobpipe.store.verbs.queues import settings_from
from jobpipe.store.verbs.transaction import Transaction

LOOK = 2_000
"""How many ended jobs of each status are looked at in one transaction."""

LAG = 5.0
"""Seconds after its end before a job is looked at: whoever waited for the end has seen it, and commits come in."""

AGAIN = 3600.0
"""Seconds after which all ended jobs are looked through again: an end may be written long after its time."""

LOCKED = 60.0
"""Seconds before a job is looked at again whose row somebody else has locked."""

QUEUES = 100
"""The most queues of which one prune deletes jobs because they are too many."""

FIRST, LAST_SEQ = (-1e300, 0), 1 << 62
"""The place before all jobs, and a number behind that of every job."""

_KEEPS = """
(
    q.keep_done is not null
    or q.keep_failed is not null
    or q.keep_jobs is not null
    or q.keep_bytes is not null
)
"""
_ANY = f"""
select 1
from queues q
where q.has_settings = 1 and {_KEEPS}
limit 1
"""
_SWEEPS = "select status, finished_at, seq, begun_at from sweeps"
_ENDED_BEHIND = """
from {ended} j
where j.status = :status
    and j.finished_at is not null
    and (j.finished_at, j.seq) > (:at, :seq)
"""
_EDGE = f"""
select j.finished_at, j.seq
{_ENDED_BEHIND}
    and j.finished_at <= :now
order by j.finished_at, j.seq
limit 1
offset :skipped
"""
_NOTE = f"""
insert into kept (seq, queue, finished_at, due)
select
    j.seq, j.queue, j.finished_at,
    j.finished_at + case
        when j.status = 'done' then coalesce(q.keep_done, :done_age)
        else coalesce(q.keep_failed, :failed_age)
    end
from (
    select j.seq, j.queue, j.status, j.finished_at
    {_ENDED_BEHIND}
        and (j.finished_at, j.seq) <= (:to_at, :to_seq)
    order by j.finished_at, j.seq
    limit :look
) j cross join queues q
where q.name = j.queue and q.has_settings = 1 and {_KEEPS}
on conflict (seq) do update set
    queue = excluded.queue,
    finished_at = excluded.finished_at,
    due = excluded.due
"""
_MOVE = """
insert into sweeps (status, finished_at, seq, begun_at)
values (:status, :at, :seq, :begun_at)
on conflict (status) do update set
    finished_at = excluded.finished_at,
    seq = excluded.seq,
    begun_at = excluded.begun_at
"""
_DUE = """
select seq
from kept
where due <= :now
order by due
limit :limit
"""
_OF_QUEUE = """
select seq
from kept
where queue = :queue
order by finished_at, seq
limit :limit
"""
# Those of the jobs that are there, and whether each is to be had: another program may have locked it.
_THERE = "select seq from {ended} where seq {among seqs} and finished_at is not null"
_JOBS = """
select finished_at, seq, queue, status, size, options
from {ended}
where seq {among seqs} and finished_at is not null
{skip locked}
"""
_SETTINGS = f"""
select name, {", ".join(QueueSettings.__struct_fields__)}
from queues q
where name in {{each names}}
"""
_TOO_MANY = f"""
select q.name, {{total jobs}}, {{total size}}
from queues q cross join counts c
where q.has_settings = 1
    and (q.keep_jobs is not null or q.keep_bytes is not null)
    and c.queue = q.name
    and c.state in ('done', 'failed', 'cancelled', 'expired')
group by q.name, q.keep_jobs, q.keep_bytes
having {{total jobs}} > q.keep_jobs or {{total size}} > q.keep_bytes
limit {QUEUES}
"""
_POSTPONE = "update kept set due = :due where seq = :seq"
_FORGET = "delete from kept where seq {among seqs}"


async def any_keeping(tx: Transaction) -> bool:
    """Whether any queue says how long its ended jobs are kept."""
    return bool(await tx.rows(_ANY, {}))


async def note(tx: Transaction, now: float, retention: Retention) -> bool:
    """See `jobpipe.store.base.EngineStore.note_kept`. While another node prunes, there is nothing to do here."""
    if not await tx.try_alone("prune"):
        return False
    places = {status: rest for status, *rest in await tx.rows(_SWEEPS, {})}
    left = [
        await _swept(tx, status, places.get(status.value, (*FIRST, now)), now, retention)
        for status in sorted(ENDED)
    ]
    return any(left)


async def _swept(
    tx: Transaction, status: Status, place: Sequence[float], now: float, retention: Retention
) -> bool:
    """Look at the jobs behind a place, `LOOK` at most, and move it on; returns whether more are left."""
    at, seq, begun_at = place
    values = {"status": status.value, "at": float(at), "seq": int(seq)}
    edges = await tx.rows(_EDGE, {**values, "now": now - LAG, "skipped": LOOK - 1})
    to_at, to_seq = edges[0] if edges else (max(at, now - LAG), LAST_SEQ)
    noted = {
        "to_at": float(to_at),
        "to_seq": to_seq,
        "look": LOOK,
        "done_age": float(retention.done_age),
        "failed_age": float(retention.failed_age),
    }
    tx.run(_NOTE, {**values, **noted})
    if not edges and not 0 <= now - begun_at < AGAIN:
        (to_at, to_seq), begun_at = FIRST, now
    moved = {"at": float(to_at), "seq": to_seq, "begun_at": float(begun_at)}
    tx.run(_MOVE, {"status": status.value, **moved})
    return bool(edges)


async def too_much(
    tx: Transaction, now: float, retention: Retention, limit: int, without: Sequence[Row]
) -> Sequence[Row]:
    """At most `limit` ended jobs that their queues do not keep, locked; `without` those that are chosen already.

    Rows are those of `jobpipe.store.verbs.retention`.
    """
    tx.run(_FORGET, {"seqs": as_json([row[1] for row in without])})
    chosen = await _too_old(tx, now, retention, limit)
    if len(chosen) < limit:
        chosen += await _too_many(tx, now, limit - len(chosen), [*without, *chosen])
    tx.run(_FORGET, {"seqs": as_json([row[1] for row in chosen])})
    return chosen


async def _too_old(tx: Transaction, now: float, retention: Retention, limit: int) -> list[Row]:
    due = [seq for (seq,) in await tx.rows(_DUE, {"now": float(now), "limit": limit})]
    jobs = await _had(tx, due, now)
    rules = await _rules(tx, {row[2] for row in jobs})
    too_old, no_more = list[Row](), list[int]()
    for row in jobs:
        ends_at, seq, queue, status, *_ = row
        rule = rules.get(queue)
        if rule is None or not rule.keeps or status not in ENDED:
            no_more.append(seq)
        elif (due_at := ends_at + _age(status, rule, retention)) <= now:
            too_old.append(row)
        else:
            tx.run(_POSTPONE, {"seq": seq, "due": float(due_at)})
    tx.run(_FORGET, {"seqs": as_json(no_more)})
    return too_old


def _age(status: str, rule: QueueSettings, retention: Retention) -> float:
    """For how many seconds a job is kept that ended so."""
    if status == Status.DONE:
        return retention.done_age if rule.keep_done is None else rule.keep_done
    return retention.failed_age if rule.keep_failed is None else rule.keep_failed


async def _too_many(tx: Transaction, now: float, limit: int, without: Sequence[Row]) -> list[Row]:
    """The oldest ended jobs of queues that have too many or too large ones."""
    chosen = list[Row]()
    full = await tx.rows(_TOO_MANY, {})
    rules = await _rules(tx, {name for name, _, _ in full})
    for name, jobs, size in full:
        rule, gone = rules.get(name), [row for row in without if row[2] == name]
        if rule is None or len(chosen) == limit:
            break
        left, weight = jobs - len(gone), size - sum(row[4] for row in gone)
        seqs = [seq for (seq,) in await tx.rows(_OF_QUEUE, {"queue": name, "limit": limit - len(chosen)})]
        taken = {row[1] for row in gone}
        for row in sorted(await _had(tx, seqs, now), key=lambda row: row[:2]):
            if not _exceeds(rule, left, weight):
                break
            if row[2] == name and row[3] in ENDED and row[1] not in taken:
                chosen.append(row)
                left, weight = left - 1, weight - row[4]
    return chosen


def _exceeds(rule: QueueSettings, jobs: int, size: int) -> bool:
    return (rule.keep_jobs is not None and jobs > rule.keep_jobs) or (
        rule.keep_bytes is not None and size > rule.keep_bytes
    )


async def _had(tx: Transaction, seqs: Sequence[int], now: float) -> Sequence[Row]:
    """Those of the noted jobs that still stand as ended, locked. Of those that do not, the notes are deleted."""
    if not seqs:
        return []
    jobs = await tx.rows(_JOBS, {"seqs": as_json(seqs)})
    missing = set(seqs) - {row[1] for row in jobs}
    if missing:
        there = {seq for (seq,) in await tx.rows(_THERE, {"seqs": as_json(sorted(missing))})}
        for seq in there:
            tx.run(_POSTPONE, {"seq": seq, "due": now + LOCKED})
        tx.run(_FORGET, {"seqs": as_json(sorted(missing - there))})
    return jobs


async def _rules(tx: Transaction, names: Collection[str]) -> Mapping[str, QueueSettings]:
    """What is set for each of the queues."""
    if not names:
        return {}
    values = {"names": msgspec.json.encode(sorted(names)).decode()}
    return {name: settings_from(rest) for name, *rest in await tx.rows(_SETTINGS, values)}
