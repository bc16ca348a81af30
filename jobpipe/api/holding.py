"""Requests that are held until a job has ended."""

import trio

from jobpipe.api.problems import Fault, invalid, no_job
from jobpipe.api.schemas import HoldQuery
from jobpipe.engine.node import Node
from jobpipe.job import Job


def check(hold: HoldQuery) -> None:
    """Raise `Problem` where parameters go without one that they need."""
    if hold.on_disconnect is not None and not hold.wait:
        raise invalid([Fault("?on_disconnect", "needs a wait: send wait too, a number of seconds above 0")])


async def found(node: Node, job_id: str) -> Job:
    """The job as it is. Raises `Problem` when there is none, or `StoreUnavailable`."""
    job = await node.store.get(job_id)
    if job is None:
        raise no_job(job_id)
    return job


async def awaited(node: Node, job_id: str, seconds: float) -> Job:
    """The job once it has ended, or as it is after so many seconds, or when this node stops.

    Raises as `found` does. A cancel changes nothing.
    """
    with trio.move_on_after(seconds):
        job = await node.waiting.ended(job_id)
        if job is None:
            raise no_job(job_id)
        return job
    return await found(node, job_id)
