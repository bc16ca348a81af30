"""Settlements that bring new jobs: what a handler has enqueued is stored with the end of its job, or not at all."""

from collections.abc import Mapping, Sequence

import msgspec

from jobpipe.fingerprints import marked
from jobpipe.job import JobError, Outcome, Status
from jobpipe.store.base import Settlement
from jobpipe.store.rows import refusal
from jobpipe.store.verbs import children, dependencies
from jobpipe.store.verbs.transaction import Transaction

Fence = tuple[int, int]
"""seq and claim"""

_KIND = "select kind from jobs where seq = :seq"

NOTHING_STORED = "nothing that the handler has enqueued was stored: "


class Unsure(Exception):  # noqa: N818 - no error: it is caught where it is raised for
    """Not every new job is one that simply can be stored: undo it all, and do it with care."""


class Brought(msgspec.Struct, frozen=True):
    """What became of settlements that bring jobs."""

    stale: frozenset[Fence] = frozenset()
    """those that matched no held row; they changed nothing, and none of their jobs is stored"""
    settled: Mapping[int, Status] = {}
    """seq -> status where the job failed, since what it brought could not be stored"""
    ready: int = 0
    """about how many of the new jobs are ready"""


async def settle(tx: Transaction, settlements: Sequence[Settlement], *, careful: bool) -> Brought:
    """End held jobs, and store what they bring. What follows their ends is left to `followers.finish`.

    Unless it is `careful`, it stores all at once, and raises `Unsure` where that may be wrong.
    """
    fences = sorted((one.seq, one.claim) for one in settlements)
    held = await tx.lock_claims(fences)
    asked = [one for one in settlements if (one.seq, one.claim) in held]
    ends = [await _stored(tx, one) for one in asked] if careful else await _stored_at_once(tx, asked)
    await tx.settle(ends)
    return Brought(
        frozenset(fences) - held,
        {one.seq: one.status for one in ends if one.status is not Status.DONE},
        sum(job.status is Status.QUEUED for one in ends for job in one.jobs),
    )


async def _stored_at_once(tx: Transaction, settlements: Sequence[Settlement]) -> Sequence[Settlement]:
    """Store what settlements bring, in the hope that all of it is new, and waits for no other job."""
    jobs = [job for one in settlements for job in one.jobs]
    if any(job.options.depends_on for job in jobs) or len(await tx.add(jobs)) != len(jobs):
        raise Unsure
    children.join(tx, jobs)
    return settlements


async def _stored(tx: Transaction, one: Settlement) -> Settlement:
    """Store what a settlement brings, after a look; returns how the job ends then."""
    receipts = await dependencies.add(tx, one.jobs, atomic=True)
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
