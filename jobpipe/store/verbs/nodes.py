"""What becomes of the jobs of nodes that died."""

from collections.abc import Sequence

import structlog
from msgspec.structs import replace

from jobpipe.job import Status
from jobpipe.store.base import STEP, Rescued, Unfinished
from jobpipe.store.verbs import accounts
from jobpipe.store.verbs.transaction import DeadNodes, Transaction
from jobpipe.transitions import Stored, begun, rescued

log = structlog.get_logger("jobpipe")


async def rescue(tx: Transaction, node: str, now: float) -> Sequence[Rescued]:
    """See `jobpipe.store.base.EngineStore.rescue`."""
    told, ran = list[Rescued](), list[tuple[str | None, Unfinished | None]]()
    dead = DeadNodes(node, now)
    while held := await tx.lock_held(dead, STEP):
        for before, after in await _take_back(tx, held, now):
            ran.append((before.node, accounts.broken(before, after)))
            told.append(Rescued(after.job.id, after.job.asked.queue, after.job.status, begun(before)))
    await accounts.of_dead(tx, ran, now)
    return told


async def _take_back(tx: Transaction, held: Sequence[Stored], now: float) -> Sequence[tuple[Stored, Stored]]:
    """Take jobs back, all at once; where a row of them does not allow that, one by one: that job fails.

    Returns them as they were and as they are.
    """
    try:
        async with tx.savepoint():
            pairs = [(one, after) for one in held if (after := rescued(one, now)) is not None]
            tx.save(pairs)
    except Exception as error:
        if not tx.blames(error):
            raise
        if len(held) == 1:
            return [await _fail(tx, held[0], now, error)]
        middle = len(held) // 2
        return [*await _take_back(tx, held[:middle], now), *await _take_back(tx, held[middle:], now)]
    return pairs


async def _fail(tx: Transaction, stored: Stored, now: float, error: Exception) -> tuple[Stored, Stored]:
    job = stored.job
    log.error("a job of a dead node cannot be taken back: it fails", job=job.id, exc_info=error)
    reason = (str(error).splitlines() or [""])[0]
    words = f"the job could not be taken back from a dead node ({type(error).__name__}: {reason})"
    await tx.fail(stored, now, words[:500])
    failed = replace(job, state=replace(job.state, status=Status.FAILED))
    return stored, replace(stored, job=failed, held=False)
