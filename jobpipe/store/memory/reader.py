"""What the API reads."""

from collections.abc import Sequence

from msgspec.structs import replace

from jobpipe.job import Job
from jobpipe.store.base import Filter, Page, QueueState
from jobpipe.store.memory.shelves import Shelves

LOOK = 100_000
"""The most rows that one list looks at."""


def one(shelves: Shelves, job_id: str) -> Job | None:
    """See `jobpipe.store.base.ReadStore.get`."""
    row = shelves.by_id.get(job_id)
    return None if row is None else row.job


def listed(shelves: Shelves, where: Filter, limit: int, before: int | None) -> Page:
    """See `jobpipe.store.base.ReadStore.jobs`. Goes down the seqs one by one, over those of deleted jobs too."""
    newest, oldest = next(reversed(shelves.rows), 0), next(iter(shelves.rows), 1)
    start = newest if before is None else min(newest, before - 1)
    edge = max(oldest, start - LOOK + 1)
    found: list[Job] = []
    for seq in range(start, edge - 1, -1):
        row = shelves.rows.get(seq)
        if row is not None and _matches(row.job, where):
            found.append(replace(row.job, attempts=()))
            if len(found) == limit:
                edge = seq
                break
    return Page(found, edge if edge > oldest else None)


def _matches(job: Job, where: Filter) -> bool:
    return (
        (where.status is None or job.status is where.status)
        and (where.kind is None or job.kind == where.kind)
        and (where.queue is None or job.queue == where.queue)
        and (where.tag is None or where.tag in job.options.tags)
        and (where.created_after is None or job.created_at >= where.created_after)
        and (where.created_before is None or job.created_at < where.created_before)
        and (where.text is None or _holds(job, where.text))
    )


def _holds(job: Job, text: str) -> bool:
    message = job.error.message if job.error else ""
    return text in job.id or text in message or text in job.payload.decode(errors="replace")


def queues(shelves: Shelves) -> Sequence[QueueState]:
    """See `jobpipe.store.base.ReadStore.queues`."""
    return [
        QueueState(
            name=name,
            paused=queue.paused,
            counts={status: jobs for status, jobs in queue.counts.items() if jobs},
            oldest_queued_at=queue.since.start(),
        )
        for name, queue in sorted(shelves.queues.items())
    ]
