"""Jobs that wait for other jobs: how they are stored, retried, and shown."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from jobpipe.job import ENDED, Job, NewJob, Options, State, Status
from jobpipe.merging import insists
from jobpipe.store.base import STORED, Change, OpenDependencies, Receipt
from jobpipe.store.rows import compared
from jobpipe.store.verbs import children, queues
from jobpipe.store.verbs.jobs import change_locked
from jobpipe.store.verbs.joining import Joining
from jobpipe.store.verbs.merging import Merging, Retaking
from jobpipe.store.verbs.transaction import Overtaken, Standing, Transaction
from jobpipe.transitions import Stored, retried

_SEQS = "select id, seq from jobs where id in {each ids}"
_WAIT = """
insert into waits (on_seq, seq, needs_done)
select on_seq, seq, needs_done
from {rows new_waits: on_seq bigint, seq bigint, needs_done smallint}
where true
on conflict (on_seq, seq) do nothing
"""
_STILL_FOLLOWED = """
select 1
from follow_ups f join waits w on w.on_seq = f.seq
where w.seq {among seqs} and w.seq <= f.upto
limit 1
"""
_OPEN = """
select j.id
from waits w join jobs j on j.seq = w.on_seq
where w.seq = (select seq from jobs where id = :id)
order by w.on_seq
limit :limit
"""
_COUNT = "select count(*) from waits where seq = (select seq from jobs where id = :id)"

ANSWERED = frozenset({"stored", "existing", "replaced", "not_unique"})
"""What may become of the jobs of an atomic add without its being refused."""


async def add(
    tx: Transaction,
    jobs: Sequence[NewJob],
    *,
    atomic: bool,
    strict: bool = False,
    ending: Collection[int] = (),
    of_group: str | None = None,
) -> Sequence[Receipt]:
    """See `jobpipe.store.base.EngineStore.add_dependents`.

    `ending`: jobs that end in this transaction; `of_group`: a group that is made in it, with its jobs.
    """
    merging = Merging(tx, jobs, ending)
    joining = Joining(tx, jobs, of_group)
    await merging.lock()
    named = _named(job.options for job in jobs)
    standing = await tx.lock_standing(named) if named else {}
    await joining.lock()
    twins = dict(await tx.twins([job.id for job in jobs]))
    await merging.look()
    closed = await queues.closed(tx, {job.queue for job in jobs})
    receipts, new = list[Receipt](), dict[str, NewJob]()
    for job, key in zip(jobs, merging.keys, strict=True):
        made = job
        if job.id in twins:
            receipt = compared(job, twins[job.id])
        elif job.queue in closed:
            receipt = Receipt("closed", queue=job.queue)
        else:
            receipt = judged(job, standing, new)
        if receipt is STORED:
            receipt = joining.judged(job)
        if receipt is STORED:
            made, receipt = merging.judged(job, key)
        if receipt is STORED:
            new[job.id] = made
            twins[job.id] = Job(made, State(made.status))
        receipts.append(receipt)
    refused = [_is_refused(job, one, strict) for job, one in zip(jobs, receipts, strict=True)]
    if atomic and any(refused):
        merging.leave()
        return [
            one if wrong or (one is not STORED and one.other is None) else Receipt("refused")
            for one, wrong in zip(receipts, refused, strict=True)
        ]
    if len(await tx.add(list(new.values()))) != len(new):
        raise Overtaken("other requests keep storing and deleting jobs with these ids: try again")
    children.join(tx, list(new.values()))
    await joining.write(new.values())
    blocked = await _block(tx, new, standing)
    await merging.write()
    merging.leave()
    return await merging.told(
        [
            _stored(new[job.id], job, blocked) if one is STORED else one
            for job, one in zip(jobs, receipts, strict=True)
        ]
    )


def _is_refused(job: NewJob, receipt: Receipt, strict: bool) -> bool:  # noqa: FBT001 - as it is handed on
    """Whether a receipt refuses a whole atomic add."""
    if strict and receipt.verdict == "not_unique":
        return insists(job)
    return receipt.verdict not in ANSWERED


def _stored(made: NewJob, asked: NewJob, blocked: Collection[str]) -> Receipt:
    """The receipt of a job that is stored, with the job where it is not simply as it was asked for."""
    if made.id in blocked:
        return Receipt("stored", Job(made, State(Status.BLOCKED)))
    return STORED if made is asked else Receipt("stored", Job(made, State(made.status)))


def judged(job: NewJob, standing: Mapping[str, Standing], coming: Collection[str]) -> Receipt:
    """Whether a new job can be stored, given how the jobs stand that it depends on, and those stored with it."""
    asked = [one for one in job.options.depends_on if one not in coming]
    if unknown := [one for one in asked if one not in standing]:
        return Receipt("unknown_dependency", dependencies=unknown)
    if failed := [one for one in asked if in_vain(job.options, standing[one])]:
        return Receipt("dependency_failed", dependencies=failed)
    return STORED


def in_vain(options: Options, dependency: Standing) -> bool:
    """Whether a job would wait in vain for one that has not ended as needed."""
    return dependency.status in ENDED and options.needs == "done" and dependency.status != Status.DONE


async def _block(
    tx: Transaction, new: Mapping[str, NewJob], standing: Mapping[str, Standing]
) -> Collection[str]:
    """Have those of the new jobs wait that depend on jobs which have not ended; returns their ids."""
    waits = {
        job_id: still
        for job_id, job in new.items()
        if (still := [one for one in job.options.depends_on if one in new or _is_open(standing.get(one))])
    }
    if waits:
        seqs = await _wait(tx, {job_id: (new[job_id].options, still) for job_id, still in waits.items()})
        tx.block({seqs[job_id]: new[job_id] for job_id in waits})
    return waits


def _is_open(dependency: Standing | None) -> bool:
    return dependency is not None and dependency.status not in ENDED


async def _wait(tx: Transaction, waits: Mapping[str, tuple[Options, Sequence[str]]]) -> Mapping[str, int]:
    """Write which jobs wait for which; returns the numbers of all of them, by id."""
    ids = sorted({*waits, *(one for _, still in waits.values() for one in still)})
    seqs: Mapping[str, int] = dict(await tx.rows(_SEQS, {"ids": _as_json(ids)}))
    rows = [
        {"on_seq": seqs[one], "seq": seqs[job_id], "needs_done": int(options.needs == "done")}
        for job_id, (options, still) in waits.items()
        for one in still
    ]
    tx.run(_WAIT, {"new_waits": _as_json(rows)})
    tx.follow(sorted({row["on_seq"] for row in rows}))
    return seqs


async def retry_locked(
    tx: Transaction, locked: Mapping[str, Stored], ids: Sequence[str], now: float
) -> Sequence[Change]:
    """Retry jobs, with those of them that are there locked before; one may have to wait for others again."""
    asked = {
        job_id: one.job.asked.options
        for job_id, one in locked.items()
        if one.job.asked.options.depends_on and one.job.status in ENDED
    }
    retaking = Retaking(tx, [one for one in locked.values() if one.job.status in ENDED], now)
    await retaking.lock()
    standing = await tx.lock_standing(_named(asked.values())) if asked else {}
    still = {
        job_id: [one for one in options.depends_on if _is_open(standing.get(one))]
        for job_id, options in asked.items()
    }

    def becomes(stored: Stored) -> Stored | None:
        options = stored.job.asked.options
        if stored.job.id in retaking.others:
            return None
        if any(in_vain(options, standing[one]) for one in options.depends_on if one in standing):
            return None
        return retried(stored, now, blocked=bool(still.get(stored.job.id)))

    changes = change_locked(tx, locked, ids, becomes)
    changed = {one.id for one in changes if one.verdict == "changed"}
    retaking.write(changed)
    if waits := {
        job_id: (asked[job_id], still[job_id]) for job_id in asked if job_id in changed and still[job_id]
    }:
        seqs = await _wait(tx, waits)
        # A note of an earlier end would take them for jobs that have waited since then.
        if await tx.rows(_STILL_FOLLOWED, {"seqs": _as_json([seqs[job_id] for job_id in waits])}):
            raise Overtaken("the last end of a job that this one depends on is still being told: try again")
    return [retaking.told(one) for one in changes]


async def still_open(tx: Transaction, job_id: str, limit: int) -> OpenDependencies:
    """Which jobs a job still waits for that it depends on, the first of them by arrival."""
    ids = await tx.rows(_OPEN, {"id": job_id, "limit": limit})
    ((count,),) = await tx.rows(_COUNT, {"id": job_id})
    return OpenDependencies([one for (one,) in ids], count)


def _named(asked: Iterable[Options]) -> Sequence[str]:
    """The ids of all jobs that others depend on."""
    return sorted({one for options in asked for one in options.depends_on})


def _as_json(value: object) -> str:
    return msgspec.json.encode(value).decode()
