"""Which ended jobs are deleted: what is too old, and while there are too many or they are too large, the oldest."""

import math
from collections.abc import Container, Mapping, Sequence

from jobpipe.job import ENDED, Options, Status
from jobpipe.store.base import STEP, Retention
from jobpipe.store.rows import Row, readable_options
from jobpipe.store.verbs import accounts, groups, keeping, merging, notes
from jobpipe.store.verbs.transaction import Removal, Transaction

_OLDEST = """
select finished_at, seq, queue, status, size, options
from {ended}
where status = :status and finished_at is not null and finished_at <= :until
order by finished_at, seq
limit :limit
{skip locked}
"""
_TOTALS = """
select {total jobs}, {total size}
from totals
where state in ('done', 'failed', 'cancelled', 'expired')
"""


async def prune(tx: Transaction, now: float, retention: Retention) -> int:
    """See `jobpipe.store.base.EngineStore.prune`. While another node prunes, there is nothing to do here."""
    if not await tx.try_alone("prune"):
        return 0
    await tx.mend_counts()  # or a wrong count might have everything deleted
    rows = await _too_much(tx, now, retention)
    if len(rows) < STEP and await keeping.any_keeping(tx):
        rows = [*rows, *await keeping.too_much(tx, now, retention, STEP - len(rows), without=rows)]
    options = {row[1]: readable_options(row[5]) for row in rows}
    tx.erase([_removal(row, options[row[1]]) for row in rows])
    await merging.forget(tx, [seq for seq, one in options.items() if one is None or one.merging], now)
    tx.forget_empty(thoroughly=len(rows) < STEP)
    if len(rows) < STEP:
        await notes.sweep(tx)
        await merging.sweep(tx, now)
        await groups.sweep(tx, now, retention)
        await accounts.forget(tx, now - retention.failed_age)
    return len(rows)


def _removal(row: Row, options: Options | None) -> Removal:
    _, seq, queue, status, size, _ = row
    return Removal(
        seq=seq, queue=queue, state=status, size=size, tags=None if options is None else options.tags
    )


async def _too_much(tx: Transaction, now: float, retention: Retention) -> Sequence[Row]:
    chosen = await _oldest(tx, {status: now - _age(status, retention) for status in ENDED})
    ((jobs, size),) = await tx.rows(_TOTALS, {})
    jobs, size = (jobs or 0) - len(chosen), (size or 0) - sum(row[4] for row in chosen)
    if len(chosen) == STEP or (jobs <= retention.jobs and size <= retention.size):
        return chosen
    for row in await _oldest(tx, dict.fromkeys(ENDED, math.inf), skip={row[1] for row in chosen}):
        if len(chosen) == STEP or (jobs <= retention.jobs and size <= retention.size):
            break
        chosen.append(row)
        jobs, size = jobs - 1, size - row[4]
    return chosen


async def _oldest(tx: Transaction, until: Mapping[Status, float], skip: Container[int] = ()) -> list[Row]:
    """At most `STEP` jobs that ended until then, the oldest end first."""
    found = list[Row]()
    for status, at in until.items():
        found += await tx.rows(_OLDEST, {"status": status.value, "until": float(at), "limit": STEP})
    found.sort(key=lambda row: row[:2])
    return [row for row in found if row[1] not in skip][:STEP]


def _age(status: Status, retention: Retention) -> float:
    return retention.done_age if status is Status.DONE else retention.failed_age
