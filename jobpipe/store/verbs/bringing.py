"""Settlements that bring new jobs: what a handler has enqueued is stored with the end of its job, or not at all."""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from jobpipe.fingerprints import marked
from jobpipe.job import JobError, NewJob, Outcome, Status
from jobpipe.store.base import Settlement
from jobpipe.store.rows import refusal
from jobpipe.store.verbs import children, dependencies, merging
from jobpipe.store.verbs.transaction import Transaction

Fence = tuple[int, int]
"""seq and claim"""

_KIND = "select kind from jobs where seq = :seq"

NOTHING_STORED = "nothing that the handler has enqueued was stored: "


class Unsure(Exception):  # noqa: N818 - no error: it is caught where it is raised for
    """Some of the new jobs are there already: undo it all, and do it with care."""


class Brought(msgspec.Struct, frozen=True):
    """What became of settlements that bring jobs."""

    stale: frozenset[Fence] = frozenset()
    """those that matched no held row; they changed nothing, and none of their jobs is stored"""
    settled: Mapping[int, Status] = {}
    """seq -> status where the job failed, since what it brought could not be stored"""
    ready: int = 0
    """about how many of the new jobs are ready"""


def need_care(settlements: Sequence[Settlement]) -> bool:
    """Whether it depends on other jobs how something of what settlements bring is stored."""
    return any(_is_judged(job) for one in settlements for job in one.jobs)


def _is_judged(job: NewJob) -> bool:
    options = job.options
    return bool(options.depends_on) or options.merging is not None or options.group is not None


async def lock_keys(tx: Transaction, settlements: Sequence[Settlement]) -> None:
    """Lock the keys of what settlements bring. To be done before any other lock is waited for, if it is `careful`."""
    await merging.lock_keys(tx, [job for one in settlements for job in one.jobs])


async def settle(tx: Transaction, settlements: Sequence[Settlement], *, careful: bool) -> Brought:
    """End held jobs, and store what they bring. What follows their ends is left to `followers.finish`.

    Unless it is `careful`, as it has to be where they `need_care`, it stores all at once, and raises `Unsure` where
    that is wrong.
    """
    fences = sorted((one.seq, one.claim) for one in settlements)
    held = await tx.lock_claims(fences)
    asked = [one for one in settlements if (one.seq, one.claim) in held]
    if careful:
        ending = frozenset(one.seq for one in asked)
        ends: Sequence[Settlement] = [await _stored(tx, one, ending) for one in asked]
        late = [one for one in settlements if (one.seq, one.claim) not in held]
        merging.leave_keys(tx, [job for one in late for job in one.jobs])
    else:
        ends = await _stored_at_once(tx, asked)
    await tx.settle(ends)
    return Brought(
        frozenset(fences) - held,
        {one.seq: one.status for one in ends if one.status is not Status.DONE},
        sum(job.status is Status.QUEUED for one in ends for job in one.jobs),
    )


async def _stored_at_once(tx: Transaction, settlements: Sequence[Settlement]) -> Sequence[Settlement]:
    """Store what settlements bring, in the hope that all of it is new."""
    jobs = [job for one in settlements for job in one.jobs]
    if len(await tx.add(jobs)) != len(jobs):
        raise Unsure
    children.join(tx, jobs)
    return settlements


async def _stored(tx: Transaction, one: Settlement, ending: Collection[int]) -> Settlement:
    """Store what a settlement brings, after a look; returns how the job ends then."""
    receipts = await dependencies.add(tx, one.jobs, atomic=True, strict=True, ending=ending)
    wrong = refusal(one.jobs, receipts)
    if wrong is None:
        return one
    ((kind,),) = await tx.rows(_KIND, {"seq": one.seq})
    return _failed(one, marked(JobError("EnqueueError", NOTHING_STORED + wrong), kind))


def _failed(one: Settlement, error: JobError) -> Settlement:
    """The same attempt, as one that has failed for good: to run it again would come to the same."""
    return msgspec.structs.replace(
        one,
        outcome=Outcome.FAIL,
        status=Status.FAILED,
        result=None,
        error=error,
        size=one.size - len(one.result or b"") + len(error.message),
        jobs=(),
    )
