"""What keeps a waiting job from running: the rows that its claim would look at, in its order, as far as needed."""

from msgspec.structs import replace

from jobpipe.job import WAITING, Job
from jobpipe.lanes import OPEN, KeySettings, Limits, PerKey
from jobpipe.obstacles import Obstacle, Use, of_key, of_pause, of_queue, of_time
from jobpipe.store.base import PLACES
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
    return of_time(job.asked.run_at, now) or await _in_line(tx, place, now)


async def _in_line(tx: Transaction, place: LinePlace, now: float) -> Obstacle:
    """What is in the way of a job that is due."""
    gate = await _gate(tx, place.queue, now)
    if isinstance(gate, Obstacle):
        return gate
    place = replace(place, key=None if gate is None else place.key or "")
    in_lane = None if gate is None else await _of_lane(tx, place, gate.per_key, now)
    return in_lane or await _of_nodes(tx, place)


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


async def _of_lane(tx: Transaction, place: LinePlace, per_key: PerKey, now: float) -> Obstacle | None:
    """What is in the way of all jobs of a key."""
    queue, key = place.queue, place.key or ""
    rows = await tx.rows(_LANE, {"queue": queue, "key": key})
    state, tat, own = rows[0] if rows else (OPEN, None, None)
    settings = KeySettings(max_running=count_from(own))
    running = 0 if per_key.most(settings.max_running) is None else await tx.held_in(queue, key)
    if per_key.rate is not None:
        now = await tx.rated_at(now)
    return of_key(key, per_key, settings, state, Use(running, time_from(tat)), now)


async def _of_nodes(tx: Transaction, place: LinePlace) -> Obstacle:
    """No node takes the job; or some take it, once it has its turn."""
    kinds = await tx.served_from(place.queue)
    if place.kind not in kinds:
        return Obstacle(reason="no_node", queue=place.queue, kind=place.kind)
    ahead, exact = await tx.ahead(place, kinds, PLACES)
    return _turn(place, ahead, exact=exact)


def _turn(place: LinePlace, ahead: int, *, exact: bool) -> Obstacle:
    """It is the job's turn after so many others."""
    return Obstacle(reason="turn", key=place.key, place=ahead + 1, exact=exact)
