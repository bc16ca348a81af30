"""Requests for the same, merged into one job: their keys are locked, then looked at in a new statement.

The rows of `uniques` are locked in the order of their keys, before anything else, and stay so until the commit: of two
requests with one key, the second sees what has become of the first. Each says which job took the key last, and whether
that job still has it is asked of the job. So what was forgotten there is never in the way, and may go at any time.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from jobpipe.job import ENDED, Job, NewJob, Status
from jobpipe.merging import (
    NOBODY,
    Decision,
    Holder,
    Taken,
    coming,
    decided,
    holder_of,
    is_taken,
    key_of,
    taken_by,
)
from jobpipe.store.base import STORED, Change, Receipt
from jobpipe.store.verbs.transaction import Transaction
from jobpipe.transitions import Stored, replaced

SWEPT = 10_000
"""How many rows one prune looks at whose time is over."""

SLACK = 60.0
"""Seconds for which rows stay whose time is over: a node whose clock is behind may still go by them."""

_LOCK = """
insert into uniques (key, seq, id, since)
select key, 0, '', 0
from {rows keys: key text}
where true
order by key
on conflict (key) do update set seq = uniques.seq
returning key, seq, id, claim, since, until
"""
_HOLDERS = "select seq, status, claim, created_at, run_at, held from {shown} where seq {among seqs}"
_SEQS = "select id, seq from jobs where id in {each ids}"
_TAKE = """
insert into uniques (key, seq, id, claim, since, until)
select key, seq, id, claim, since, until
from {rows taken: key text, seq bigint, id text, claim bigint, since double precision, until double precision}
where true
order by key
on conflict (key) do update set
    seq = excluded.seq,
    id = excluded.id,
    claim = excluded.claim,
    since = excluded.since,
    until = excluded.until
"""
_UNUSED = "delete from uniques where key in {each keys} and seq = 0"

# Waits for no lock: who holds one of these rows may wait for the job. A row that is left is swept one day.
_FORGET = """
delete from uniques
where key in (
    select key
    from uniques
    where seq {among seqs} and (until is null or until <= :now)
    {skip locked}
)
"""
_OVER = """
select key
from uniques
where until <= :until
order by until
limit :limit
{skip locked}
"""
_DROP = "delete from uniques where key in {each keys} and not exists (select 1 from jobs j where j.seq = uniques.seq)"
_LEAVE = "update uniques set until = null where key in {each keys}"
_OLDEST = "select (select min(seq) from jobs), (select min(seq) from uniques)"
_LOST = """
delete from uniques
where key in (
    select key
    from uniques
    where seq < :oldest
    order by seq
    limit :limit
    {skip locked}
) and (until is null or until <= :until)
"""


async def lock_keys(tx: Transaction, jobs: Sequence[NewJob]) -> None:
    """Lock the keys of jobs that are judged later in this transaction, before any other lock is waited for."""
    if names := sorted({key for job in jobs if (key := key_of(job)) is not None}):
        await _locked(tx, names)


def leave_keys(tx: Transaction, jobs: Sequence[NewJob]) -> None:
    """Delete the rows that were made for keys of jobs which nobody has taken."""
    if names := sorted({key for job in jobs if (key := key_of(job)) is not None}):
        tx.run(_UNUSED, {"keys": _as_json(names)})


class _Key:
    """A key that is locked, and how the job stands that took it last."""

    def __init__(self, taken: Taken) -> None:
        self.taken = taken
        self.holder: Holder | None = None
        self.new: NewJob | None = None
        """a job that takes the key in this transaction"""


class Merging:
    """The jobs of one add that are to be merged with others; does nothing where there are none."""

    def __init__(self, tx: Transaction, jobs: Sequence[NewJob], ending: Collection[int] = ()) -> None:
        """`ending`: the numbers of jobs that end in this transaction, so that their keys are free."""
        self._tx, self._jobs, self._ending = tx, jobs, ending
        self.keys = [key_of(job) for job in jobs]
        """of each job; None: it has none"""
        self._found: dict[str, _Key] = {}
        self._stored: dict[str, Stored] = {}
        """jobs that are locked, since they may be replaced"""
        self._later: dict[str, tuple[NewJob, float]] = {}
        """what jobs are to become, and when they are due then"""

    async def lock(self) -> None:
        """Lock the keys. To be done before any other lock is waited for."""
        if names := sorted({key for key in self.keys if key is not None}):
            self._found = await _locked(self._tx, names)

    async def look(self) -> None:
        """See how the jobs stand that have the keys; those that may be replaced are locked."""
        if not self._found:
            return
        await _look_at_holders(self._tx, list(self._found.values()))
        for one in self._found.values():
            if one.holder is not None and one.taken.seq in self._ending:
                one.holder = msgspec.structs.replace(one.holder, status=Status.DONE)
        wanted = {key for job, key in zip(self._jobs, self.keys, strict=True) if key and _may_replace(job)}
        waiting = [
            one for key, one in self._found.items() if key in wanted and one.holder and one.holder.waits
        ]
        locked = await self._tx.lock([one.taken.id for one in waiting]) if waiting else {}
        for one in waiting:
            stored = locked.get(one.taken.id)
            if stored is None or stored.seq != one.taken.seq:  # deleted just now
                one.holder = None
            else:
                one.holder = holder_of(stored)
                self._stored[stored.job.id] = stored

    def judged(self, new: NewJob, key: str | None) -> tuple[NewJob, Receipt]:
        """What becomes of a job that is new: it is to be stored, when its receipt says so, as it is returned."""
        if key is None:
            return new, STORED
        one = self._found[key]
        decision = decided(new, one.taken, one.holder)
        match decision.verdict:
            case "store":
                return _taking(one, new, decision)
            case "replace":
                assert one.holder is not None  # noqa: S101 - else there was nothing to replace
                self._later[one.taken.id] = new, decision.run_at
                one.holder = msgspec.structs.replace(one.holder, run_at=decision.run_at)
                return new, Receipt("replaced", other=one.taken.id)
            case "return":
                return new, Receipt("existing", other=one.taken.id)
            case "refuse":
                return new, Receipt("not_unique", other=one.taken.id)

    async def write(self) -> None:
        """Write who has the keys now, and what became of jobs that were replaced; the new jobs are stored already."""
        takers = {one.new.id: one for one in self._found.values() if one.new is not None}
        if takers:
            seqs: Mapping[str, int] = dict(await self._tx.rows(_SEQS, {"ids": _as_json(sorted(takers))}))
            taken = [msgspec.structs.replace(one.taken, seq=seqs[job_id]) for job_id, one in takers.items()]
            self._tx.run(_TAKE, {"taken": _as_json(taken)})
        if stored_here := [job_id for job_id in self._later if job_id not in self._stored]:
            self._stored |= await self._tx.lock(stored_here)
        pairs = [
            (stored, after)
            for job_id, (new, run_at) in self._later.items()
            if (stored := self._stored.get(job_id)) is not None
            and (after := replaced(stored, new, run_at, new.created_at)) is not None
        ]
        if pairs:
            self._tx.save(pairs)

    def leave(self) -> None:
        """Delete the rows that were made for keys which nobody has taken."""
        if unused := [key for key, one in self._found.items() if one.taken.seq == NOBODY]:
            self._tx.run(_UNUSED, {"keys": _as_json(unused)})

    async def told(self, receipts: Sequence[Receipt]) -> Sequence[Receipt]:
        """The receipts with the jobs that they are about, as these are now."""
        ids = sorted({one.other for one in receipts if one.other is not None})
        if not ids:
            return receipts
        jobs = await self._tx.twins(ids)
        return [one if one.other is None else _told(one, jobs.get(one.other)) for one in receipts]


def _taking(one: _Key, new: NewJob, decision: Decision) -> tuple[NewJob, Receipt]:
    """A new job takes a key, unless it expires before it is due."""
    if decision.run_at != new.run_at:
        new = msgspec.structs.replace(new, run_at=decision.run_at)
    if new.expires_at is not None and new.expires_at <= new.run_at:
        return new, Receipt("late")
    one.taken = taken_by(new, one.taken.key, NOBODY, decision.until)
    one.holder, one.new = coming(new), new
    return new, STORED


def _told(receipt: Receipt, job: Job | None) -> Receipt:
    if job is None and receipt.verdict == "existing":  # deleted just now, or never stored
        return Receipt("not_unique", other=receipt.other)
    return msgspec.structs.replace(receipt, job=job)


def _may_replace(job: NewJob) -> bool:
    unique = job.options.unique
    return unique.on_conflict == "replace" if unique is not None else job.options.merging is not None


async def _locked(tx: Transaction, names: Sequence[str]) -> dict[str, _Key]:
    """Lock keys, in order; those that nobody has taken get a row."""
    rows = await tx.rows(_LOCK, {"keys": _as_json([{"key": name} for name in names])})
    return {taken.key: _Key(taken) for taken in (Taken(*row) for row in rows)}


async def _look_at_holders(tx: Transaction, keys: Sequence[_Key]) -> None:
    """See how the jobs stand that have the keys: a new statement, which sees what the locks have waited for."""
    seqs = [one.taken.seq for one in keys if one.taken.seq != NOBODY]
    if not seqs:
        return
    rows = await tx.rows(_HOLDERS, {"seqs": _as_json(seqs)})
    found = {seq: holder for seq, *rest in rows if (holder := _holder(rest)) is not None}
    for one in keys:
        one.holder = found.get(one.taken.seq)


def _holder(row: Sequence[Any]) -> Holder | None:
    status, claim, created_at, run_at, held = row
    if status not in set(Status):  # a damaged row is no job that anybody could wait for
        return None
    return Holder(Status(status), claim, created_at, run_at, fixed=bool(held))


class Retaking:
    """The keys of ended jobs that are to be retried by hand: each takes its own again, unless another job has it."""

    def __init__(self, tx: Transaction, stored: Sequence[Stored], now: float) -> None:
        self._tx, self._now = tx, now
        self._jobs = {one.job.id: one for one in stored if _first_asked(one).options.unique is not None}
        self._keys = {
            job_id: key
            for job_id, one in self._jobs.items()
            if (key := key_of(_first_asked(one))) is not None
        }
        self._found: dict[str, _Key] = {}
        self.others: dict[str, str] = {}
        """of the jobs whose keys others have: their ids"""

    async def lock(self) -> None:
        """Lock the keys, and see which are taken."""
        if not self._keys:
            return
        self._found = await _locked(self._tx, sorted(set(self._keys.values())))
        await _look_at_holders(self._tx, list(self._found.values()))
        for job_id, key in self._keys.items():
            self._judge(job_id, self._found[key])

    def _judge(self, job_id: str, one: _Key) -> None:
        stored = self._jobs[job_id]
        asked = _first_asked(stored)
        unique = asked.options.unique
        assert unique is not None  # noqa: S101 - only such jobs are here
        own = one.taken.seq in (NOBODY, stored.seq)
        if not own and is_taken(unique, one.taken, one.holder, self._now):
            self.others[job_id] = one.taken.id
            return
        until = None if unique.for_ is None else round(asked.created_at + unique.for_, 3)
        one.taken = taken_by(asked, one.taken.key, stored.seq, until, stored.job.state.claim)
        one.holder = Holder(Status.QUEUED, stored.job.state.claim, asked.created_at, self._now)
        one.new = asked

    def told(self, change: Change) -> Change:
        """What became of a job, with the one that has its key."""
        other = self.others.get(change.id)
        if other is None or change.verdict != "refused":
            return change
        return msgspec.structs.replace(change, verdict="not_unique", other=other)

    def write(self, changed: Collection[str]) -> None:
        """Write which of the keys are those of the jobs that are retried; of others the rows stay as they were."""
        taken = [one.taken for one in self._found.values() if one.new is not None and one.new.id in changed]
        if taken:
            self._tx.run(_TAKE, {"taken": _as_json(taken)})
        if left := sorted(set(self._found) - {one.key for one in taken}):
            self._tx.run(_UNUSED, {"keys": _as_json(left)})


async def lock_keys_of(tx: Transaction, ids: Sequence[str]) -> None:
    """Lock the keys of jobs that are to be retried, before the jobs: as every add does, so that none waits for another.

    A job that ends after this look has its key locked by `Retaking` alone.
    """
    jobs = [job for job in (await tx.twins(ids)).values() if job.status in ENDED]
    asked = [job.original or job.asked for job in jobs]
    if keys := sorted({key for one in asked if one.options.unique and (key := key_of(one)) is not None}):
        await _locked(tx, keys)


def _first_asked(stored: Stored) -> NewJob:
    """What was asked first: an edit changes no key."""
    return stored.job.original or stored.job.asked


async def forget(tx: Transaction, seqs: Sequence[int], now: float) -> None:
    """Let the keys of jobs go that are deleted, unless they are taken for longer."""
    if seqs:
        tx.run(_FORGET, {"seqs": _as_json(list(seqs)), "now": float(now)})


async def sweep(tx: Transaction, now: float) -> None:
    """Delete keys that mean nothing any more: those whose time is over and whose job is gone, some thousands a time.

    Also those whose jobs were deleted by hand in the database: what is older than every job is of none.
    """
    until = now - SLACK
    keys = [key for (key,) in await tx.rows(_OVER, {"until": until, "limit": SWEPT})]
    if keys:
        tx.run(_DROP, {"keys": _as_json(keys)})
        tx.run(_LEAVE, {"keys": _as_json(keys)})
    ((oldest, first),) = await tx.rows(_OLDEST, {})
    if first is not None and (oldest is None or first < oldest):
        older = first + SWEPT if oldest is None else oldest
        tx.run(_LOST, {"oldest": older, "until": until, "limit": SWEPT})


def _as_json(value: object) -> str:
    return msgspec.json.encode(value).decode()
