"""Jobs that wait for others, or are cancelled with them: what is the same whatever it is that they follow."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
import structlog

from jobpipe.job import Status
from jobpipe.store.base import Changed
from jobpipe.store.verbs.transaction import Transaction

log = structlog.get_logger("jobpipe")

FORGET = "delete from waits where seq {among seqs}"
"""What was written of the waits of jobs that wait no more."""


async def carefully(
    tx: Transaction,
    seqs: Sequence[int],
    act: Callable[[Sequence[int]], Coroutine[Any, Any, Sequence[Changed]]],
    now: float,
    *,
    loudly: bool = True,
) -> Sequence[Changed]:
    """Do something with jobs, all at once; where a row of them does not allow that, one by one: that job fails.

    So it costs neither the others nor the job that has ended.
    """
    try:
        async with tx.savepoint():
            return await act(seqs)
    except Exception as error:
        if not tx.blames(error):
            raise
        if len(seqs) == 1:
            return await _fail(tx, seqs[0], now, error)
        if loudly:  # once: the halves may well meet no error any more
            log.warning(
                "jobs that waited for others are gone through one by one", jobs=len(seqs), exc_info=error
            )
        middle = len(seqs) // 2
        first = await carefully(tx, seqs[:middle], act, now, loudly=False)
        return [*first, *await carefully(tx, seqs[middle:], act, now, loudly=False)]


async def _fail(tx: Transaction, seq: int, now: float, error: Exception) -> Sequence[Changed]:
    stored = (await tx.lock_blocked([seq])).get(seq)
    if stored is None:
        return []
    log.error("a job that waited for others cannot go on: it fails", job=stored.job.id, exc_info=error)
    reason = (str(error).splitlines() or [""])[0]
    words = f"the job could not go on once others had ended ({type(error).__name__}: {reason})"
    tx.run(FORGET, {"seqs": as_json([seq])})
    await tx.fail(stored, now, words[:500])
    return [Changed(stored.job.id, Status.FAILED)]


def as_json(numbers: Sequence[int]) -> str:
    """Numbers as one value of a statement."""
    return msgspec.json.encode(numbers).decode()
