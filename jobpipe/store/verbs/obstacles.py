"""What keeps a waiting job from running: the rows that its claim would look at, in its order, as far as needed."""

from msgspec.structs import replace

from jobpipe.job import WAITING, Job
from jobpipe.lanes import OPEN, PAUSED, KeySettings, Limits, PerKey
from jobpipe.obstacles import Obstacle, Use, of_key, of_order, of_pause, of_queue, of_time
from jobpipe.store.base import PLACES
from jobpipe.store.verbs import order
from jobpipe.store.verbs.lanes import LIMIT_COLUMNS, count_from, limits_from, time_from
from jobpipe.store.verbs.transaction import LinePlace, Transaction

_JOB = "select seq, status, priority, run_at, held from {shown} where id = :id"
_QUEUE = f"""
select paused, reason, paused_until, gated, tat, {LIMIT_COLUMNS}
from queues
where name = :queue
"""
_LANE = """
select state, tat, max_running
from lanes
where queue = :queue and key = :key
"""


async def first(tx: Transaction, job: Job, now: float) -> Obstacle | None:
    """See `jobpipe.store.base.ReadStore.obstacle`."""
    rows = await tx.rows(_JOB, {"id": job.id})
    if not rows or rows[0][1] != job.status or job.status not in WAITING:
        return None
    ((seq, _, priority, run_at, held),) = rows
    place = LinePlace(
        queue=job.asked.queue,
        key=job.asked.options.key,
        kind=job.asked.kind,
        priority=priority,
        run_at=run_at,
        seq=seq,
    )
    if held:
        return _turn(place, 0, exact=True)
    return of_time(job.asked.run_at, now) or await _in_line(tx, job.id, place, now)


async def _in_line(tx: Transaction, job_id: str, place: LinePlace, now: float) -> Obstacle:
    """What is in the way of a job that is due."""
    gate = await _gate(tx, place.queue, now)
    if isinstance(gate, Obstacle):
        return gate
    place = replace(place, key=None if gate is None else place.key or "")
    in_lane = None if gate is None else await _of_lane(tx, job_id, place, gate.per_key, now)
    is_first = (
        gate is not None and gate.per_key.ordered and bool(place.key)
    )  # else it would be behind another
    return in_lane or await _of_nodes(tx, place, is_first=is_first)


async def _gate(tx: Transaction, queue: str, now: float) -> Obstacle | Limits | None:
    """What is in the way of all jobs of a queue, or what it allows; None: its jobs stand in no lanes."""
    rows = await tx.rows(_QUEUE, {"queue": queue})
    if not rows:
        return None
    ((paused, reason, until, gated, tat, *columns),) = rows
    if paused == 1 and (obstacle := of_pause(queue, reason, time_from(until), now)) is not None:
        return obstacle
    if gated != 1:
        return None
    limits = limits_from(columns)
    running = 0 if limits.max_running is None else await tx.held_in(queue)
    if limits.rate is not None:
        now = await tx.rated_at(now)
    return of_queue(queue, limits, Use(running, time_from(tat)), now) or limits


async def _of_lane(
    tx: Transaction, job_id: str, place: LinePlace, per_key: PerKey, now: float
) -> Obstacle | None:
    """What is in the way of all jobs of a key."""
    queue, key = place.queue, place.key or ""
    rows = await tx.rows(_LANE, {"queue": queue, "key": key})
    state, tat, own = rows[0] if rows else (OPEN, None, None)
    if per_key.ordered and key and state != PAUSED:
        stopped_by = await order.stopped_by(tx, queue, key) if per_key.stops else None
        if (obstacle := of_order(key, job_id, stopped_by, await tx.first_in_line(queue, key))) is not None:
            return obstacle
    settings = KeySettings(max_running=count_from(own))
    running = 0 if per_key.most(settings.max_running) is None else await tx.held_in(queue, key)
    if per_key.rate is not None:
        now = await tx.rated_at(now)
    return of_key(key, per_key, settings, state, Use(running, time_from(tat)), now)


async def _of_nodes(tx: Transaction, place: LinePlace, *, is_first: bool) -> Obstacle:
    """No node takes the job; or some take it, once it has its turn."""
    kinds = await tx.served_from(place.queue)
    if place.kind not in kinds:
        return Obstacle(reason="no_node", queue=place.queue, kind=place.kind)
    ahead, exact = (0, True) if is_first else await tx.ahead(place, kinds, PLACES)
    return _turn(place, ahead, exact=exact)


def _turn(place: LinePlace, ahead: int, *, exact: bool) -> Obstacle:
    """It is the job's turn after so many others."""
    return Obstacle(reason="turn", key=place.key, place=ahead + 1, exact=exact)
