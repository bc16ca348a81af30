"""Strict order within keys: what follows when a job leaves its line, or has failed; see `jobpipe.lanes.PerKey`.

Who is first is read from the jobs at each claim. What is written here: a row in `stopped_keys` for a job that failed
where its key is to stop, in the transaction in which it fails; and that a lane is to be looked at again, whose first
job has gone without having run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jobpipe.job import ENDED, Status
from jobpipe.store.verbs.transaction import Transaction
from jobpipe.transitions import Stored

_STOP = """
insert into stopped_keys (queue, key, seq, id)
select name, :key, :seq, :id
from queues
where name = :queue and key_order = 'stop'
on conflict (queue, key, seq) do nothing
"""
_SEEN_TO = "delete from stopped_keys where queue = :queue and key = :key and seq = :seq"
_GO_ON = "delete from stopped_keys where queue = :queue and key = :key"
_FORGET = "delete from stopped_keys where queue = :queue"
_STOPPED_BY = """
select s.id
from stopped_keys s join queues q on q.name = s.queue and q.key_order = 'stop'
where s.queue = {queue} and s.key = {key}
order by s.seq
limit 1
"""
_STOPPED_BY_OF_KEY = _STOPPED_BY.format(queue=":queue", key=":key")
STOPPED_BY = f"({_STOPPED_BY.format(queue='lanes.queue', key='lanes.key')})"
"""Of a row in `lanes`: the id of the failed job for which it is stopped; null: it is not."""

Lane = tuple[str, str]
"""A queue and a key."""


def lane_of(stored: Stored) -> Lane | None:
    """The lane in which a job may be in line; None: it has no key."""
    asked = stored.job.asked
    return None if asked.options.key is None else (asked.queue, asked.options.key)


def saved(tx: Transaction, changes: Sequence[tuple[Stored, Stored]]) -> None:
    """Jobs have changed: others may be first in their lanes now, or a key stops, or need not stop any more."""
    left = list[Lane]()
    for before, after in changes:
        if (lane := lane_of(before)) is None:
            continue
        was_over, is_over = before.job.status in ENDED, after.job.status in ENDED
        if was_over and not is_over:
            tx.run(_SEEN_TO, _named(before, lane))
        elif not was_over and after.job.status is Status.FAILED:
            tx.run(_STOP, _named(before, lane))
        if was_over is not is_over or lane_of(after) != lane:
            left.append(lane)
    tx.move_up(left)


def failed(tx: Transaction, stored: Stored) -> None:
    """A job has failed that could not be saved: its key may stop."""
    if (lane := lane_of(stored)) is not None:
        tx.run(_STOP, _named(stored, lane))
        tx.move_up([lane])


def deleted(tx: Transaction, jobs: Sequence[Stored]) -> None:
    """Somebody has deleted jobs: no key stops for them any more, and others may be first."""
    left = list[Lane]()
    for stored in jobs:
        if (lane := lane_of(stored)) is not None:
            if stored.job.status is Status.FAILED:
                tx.run(_SEEN_TO, _named(stored, lane))
            left.append(lane)
    tx.move_up(left)


async def stopped_by(tx: Transaction, queue: str, key: str) -> str | None:
    """The id of the failed job for which a key is stopped; None: it is not."""
    rows = await tx.rows(_STOPPED_BY_OF_KEY, {"queue": queue, "key": key})
    return rows[0][0] if rows else None


def go_on(tx: Transaction, queue: str, key: str) -> None:
    """A key is to go on, whatever has failed."""
    tx.run(_GO_ON, {"queue": queue, "key": key})
    tx.move_up([(queue, key)])


def forget(tx: Transaction, queue: str) -> None:
    """No key of a queue stops for what has failed until now."""
    tx.run(_FORGET, {"queue": queue})


def _named(stored: Stored, lane: Lane) -> Mapping[str, Any]:
    queue, key = lane
    return {"queue": queue, "key": key, "seq": stored.seq, "id": stored.job.id}
