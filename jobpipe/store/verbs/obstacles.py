"""What keeps a waiting job from running: the rows that its claim would look at, in its order, as far as needed."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from msgspec.structs import replace

from jobpipe.job import WAITING, Job
from jobpipe.lanes import NO_LIMITS, OPEN, PAUSED, KeySettings, Limits
from jobpipe.obstacles import (
    Check,
    Obstacle,
    Use,
    of_key_limit,
    of_key_pause,
    of_key_rate,
    of_order,
    of_pause,
    of_queue_limit,
    of_queue_rate,
    of_time,
)
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
    look = await _looked(tx, job, now)
    if look is None:
        return None
    for check in CHECKS[-1:] if look.held else CHECKS:
        if (obstacle := (await check(look)).obstacle) is not None:
            return obstacle
    return None


async def every(tx: Transaction, job: Job, now: float) -> Sequence[Check] | None:
    """See `jobpipe.store.base.ReadStore.checks`."""
    look = await _looked(tx, job, now)
    if look is None:
        return None
    checks = [await check(look) for check in CHECKS]
    if look.held:  # nothing but its turn is left to be waited for
        checks = [replace(check, obstacle=None) for check in checks[:-1]] + checks[-1:]
    return checks


class Look:
    """A waiting job, and the rows of its queue and its lane, each of which is read once."""

    def __init__(self, tx: Transaction, job: Job, place: LinePlace, now: float, *, held: bool) -> None:
        self.tx, self.job, self.now, self.held = tx, job, now, held
        self._place = place
        self._queue: Sequence[Any] | None = None
        self._lane: Sequence[Any] | None = None
        self._kinds: frozenset[str] | None = None

    @property
    def queue(self) -> str:
        """The job's queue."""
        return self._place.queue

    async def gate(self) -> Sequence[Any]:
        """Whether the queue is paused, why, until when, whether it is gated, what its rate has counted, its limits."""
        if self._queue is None:
            rows = await self.tx.rows(_QUEUE, {"queue": self.queue})
            self._queue = rows[0] if rows else (0, None, None, 0, None)
        return self._queue

    async def gated(self) -> bool:
        """Whether the jobs of the queue stand in lanes."""
        return bool((await self.gate())[3] == 1)

    async def limits(self) -> Limits:
        """What the queue allows."""
        return limits_from(list((await self.gate())[5:])) if await self.gated() else NO_LIMITS

    @property
    def key(self) -> str:
        """The key by which the job stands in a lane."""
        return self._place.key or ""

    async def lane(self) -> Sequence[Any]:
        """How its lane stands, what its rate has counted, how many jobs of it may run."""
        if self._lane is None:
            rows = await self.tx.rows(_LANE, {"queue": self.queue, "key": self.key})
            self._lane = rows[0] if rows else (OPEN, None, None)
        return self._lane

    async def in_order(self) -> bool:
        """Whether its key keeps order."""
        return (await self.limits()).per_key.ordered and bool(self._place.key)

    async def place(self) -> LinePlace:
        """Where it stands."""
        return replace(self._place, key=self.key if await self.gated() else None)

    async def kinds(self) -> frozenset[str]:
        """The kinds of which some live node takes jobs from the queue."""
        if self._kinds is None:
            self._kinds = await self.tx.served_from(self.queue)
        return self._kinds


async def _looked(tx: Transaction, job: Job, now: float) -> Look | None:
    """A job to be checked; None: it is not as it was read any more, or waits for nothing."""
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
    return Look(tx, job, place, now, held=bool(held))


async def _due(look: Look) -> Check:
    run_at = look.job.asked.run_at
    return Check("due", of_time(run_at, look.now), at=run_at)


async def _pause(look: Look) -> Check:
    paused, reason, until, *_ = await look.gate()
    obstacle = of_pause(look.queue, reason, time_from(until), look.now) if paused == 1 else None
    return Check("queue_paused", obstacle)


async def _queue_limit(look: Look) -> Check:
    limits = await look.limits()
    if limits.max_running is None:
        return Check("queue_limit", None)
    running = await look.tx.held_in(look.queue)
    obstacle = of_queue_limit(look.queue, limits.max_running, Use(running))
    return Check("queue_limit", obstacle, running=running, most=limits.max_running)


async def _queue_rate(look: Look) -> Check:
    limits = await look.limits()
    if limits.rate is None:
        return Check("queue_rate", None)
    use, now = Use(tat=time_from((await look.gate())[4])), await look.tx.rated_at(look.now)
    obstacle = of_queue_rate(look.queue, limits.rate, use, now)
    return Check("queue_rate", obstacle, limited=True)


async def _key_pause(look: Look) -> Check:
    if not await look.gated():
        return Check("key_paused", None)
    return Check("key_paused", of_key_pause(look.key, (await look.lane())[0]))


async def _key_order(look: Look) -> Check:
    ordered = await look.in_order()
    if not ordered or (await look.lane())[0] == PAUSED:
        return Check("key_order", None, limited=ordered)
    key = look.key
    per_key = (await look.limits()).per_key
    stopped_by = await order.stopped_by(look.tx, look.queue, key) if per_key.stops else None
    ahead = await look.tx.first_in_line(look.queue, key)
    return Check("key_order", of_order(key, look.job.id, stopped_by, ahead), limited=True)


async def _key_limit(look: Look) -> Check:
    if not await look.gated():
        return Check("key_limit", None)
    settings = KeySettings(max_running=count_from((await look.lane())[2]))
    per_key, key = (await look.limits()).per_key, look.key
    if (most := per_key.most(settings.max_running)) is None:
        return Check("key_limit", None)
    running = await look.tx.held_in(look.queue, key)
    obstacle = of_key_limit(key, most, Use(running))
    return Check("key_limit", obstacle, running=running, most=most)


async def _key_rate(look: Look) -> Check:
    rate = (await look.limits()).per_key.rate
    if rate is None:
        return Check("key_rate", None)
    use, now = Use(tat=time_from((await look.lane())[1])), await look.tx.rated_at(look.now)
    obstacle = of_key_rate(look.key, rate, use, now)
    return Check("key_rate", obstacle, limited=True)


async def _nodes(look: Look) -> Check:
    kind = look.job.asked.kind
    served = kind in await look.kinds()
    return Check("served", None if served else Obstacle(reason="no_node", queue=look.queue, kind=kind))


async def _turn(look: Look) -> Check:
    """The last one: it is ready, and has its turn."""
    place = await look.place()
    if look.held:
        ahead, exact = 0, True
        place = replace(place, key=look.job.asked.options.key)
    elif await look.in_order():  # else it would be behind another
        ahead, exact = 0, True
    else:
        ahead, exact = await look.tx.ahead(place, await look.kinds(), PLACES)
    obstacle = Obstacle(reason="turn", key=place.key, place=ahead + 1, exact=exact)
    return Check("turn", obstacle, claimed=look.held)


CHECKS: Sequence[Callable[[Look], Awaitable[Check]]] = (
    _due,
    _pause,
    _queue_limit,
    _queue_rate,
    _key_pause,
    _key_order,
    _key_limit,
    _key_rate,
    _nodes,
    _turn,
)
"""In the order in which a claim looks. The first obstacle that is found is the job's; the last finds one always."""
