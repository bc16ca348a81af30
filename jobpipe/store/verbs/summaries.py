"""What events tell of jobs: of some by their ids, and of those that have ended in the order of their ends."""

from collections.abc import Container, Sequence

import msgspec

from jobpipe.job import NO_OPTIONS, JobError, Status
from jobpipe.store.base import EndPlace, Ends, Summary
from jobpipe.store.rows import Row, decoded_error, readable_options
from jobpipe.store.verbs.blocked import as_json
from jobpipe.store.verbs.transaction import Transaction

MESSAGE = 500
"""The most characters of an error's message in an event."""

_STATUSES = {one.value: one for one in Status}

_COLUMNS = """
    j.seq, j.id, j.status, j.kind, j.queue, j.attempt, {node of j}, j.finished_at, j.options,
    case when j.status = 'done' then null else j.error end
"""
_BY_ID = f"""
select {_COLUMNS}
from {{shown}} j
where j.id in {{each ids}}
"""
_PLACES = """
select j.finished_at, j.seq
from {ended} j
where j.status = :status
    and j.finished_at is not null
    and (j.finished_at, j.seq) > (:at, :seq)
order by j.finished_at, j.seq
limit :limit
"""
_BY_SEQ = f"""
select {_COLUMNS}
from {{shown}} j
where j.seq {{among seqs}} and j.status = :status and j.finished_at is not null
"""


async def of_jobs(tx: Transaction, ids: Sequence[str]) -> Sequence[Summary]:
    """See `jobpipe.store.base.ReadStore.summaries`."""
    asked = [
        job_id for job_id in ids if "\0" not in job_id
    ]  # no job has such an id, and PostgreSQL refuses it
    return [_summary(row) for row in await tx.rows(_BY_ID, {"ids": msgspec.json.encode(asked).decode()})]


async def ends(
    tx: Transaction, status: Status, after: EndPlace, limit: int, known: Container[EndPlace]
) -> Ends:
    """See `jobpipe.store.base.ReadStore.ends`."""
    values = {"status": status.value, "at": float(after.at), "seq": after.seq, "limit": limit}
    places = [EndPlace(*row) for row in await tx.rows(_PLACES, values)]
    last = places[-1] if len(places) == limit else None
    new = {place.seq: place for place in places if place not in known}
    if not new:
        return Ends([], last)
    rows = await tx.rows(_BY_SEQ, {"seqs": as_json(list(new)), "status": status.value})
    found = {one.seq: one for one in map(_summary, rows)}
    return Ends([(place, found[seq]) for seq, place in new.items() if seq in found], last)


def _summary(row: Row) -> Summary:
    seq, job_id, status, kind, queue, attempt, node, finished_at, options, error = row
    read = readable_options(options) or NO_OPTIONS
    return Summary(
        seq=seq,
        id=job_id,
        status=_STATUSES.get(status),
        kind=kind,
        queue=queue,
        key=read.key,
        group=read.group,
        tags=read.tags,
        attempt=attempt,
        node=node,
        error=_error(error),
        finished_at=finished_at,
    )


def _error(stored: bytes | None) -> JobError | None:
    try:
        error = decoded_error(stored)
    except Exception:  # noqa: BLE001 - whatever stands there
        return None
    if error is None:
        return None
    return msgspec.structs.replace(error, message=error.message[:MESSAGE], traceback=None)
