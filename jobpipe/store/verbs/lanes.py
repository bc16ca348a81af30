"""What is set for gated queues and their keys, and how they stand; see `jobpipe.lanes`.

Claims go by the same rows, and are written for each database. Whatever stands in a row, it is read: what cannot be
meant counts as not set.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jobpipe.lanes import (
    EMPTY,
    FULL,
    OPEN,
    PAUSED,
    RESTING,
    STANDINGS,
    STOPPED,
    USUAL,
    KeySettings,
    KeyStanding,
    Limits,
    PerKey,
    Rate,
)
from jobpipe.store.base import GateState, KeyState
from jobpipe.store.rows import Row
from jobpipe.store.verbs import order
from jobpipe.store.verbs.order import STOPPED_BY
from jobpipe.store.verbs.transaction import READY, Transaction

SWEPT = 1000
"""How many lanes are looked at, with each prune, whether they are lost."""

LIMIT_COLUMNS = """
    max_running, rate_limit, rate_period, rate_burst,
    key_max_running, key_rate_limit, key_rate_period, key_rate_burst, key_order
"""
"""Of `queues`: what `limits_from` reads."""

_PUT_LIMITS = f"""
insert into queues (name, {LIMIT_COLUMNS})
values (
    :name, :max_running, :rate_limit, :rate_period, :rate_burst,
    :key_max_running, :key_rate_limit, :key_rate_period, :key_rate_burst, :key_order
)
on conflict (name) do update set
    max_running = excluded.max_running,
    rate_limit = excluded.rate_limit,
    rate_period = excluded.rate_period,
    rate_burst = excluded.rate_burst,
    key_max_running = excluded.key_max_running,
    key_rate_limit = excluded.key_rate_limit,
    key_rate_period = excluded.key_rate_period,
    key_rate_burst = excluded.key_rate_burst,
    key_order = excluded.key_order
"""
_ORDER = "select key_order from queues where name = :queue"
# Where a new lane, or one that opens again, takes its place: in front of the others, but it has saved up no turns.
PLACE = """
coalesce(
    (select min(o.turn) from lanes o where o.queue = {queue} and o.state = 0),
    (select q.turn from queues q where q.name = {queue}),
    0
)
"""
_LATER = """
case when turn > {place} then turn else {place} end
""".format(place=PLACE.format(queue="lanes.queue"))
REOPEN = f"""
update lanes
set state = 0, until = null, turn = {_LATER}
"""
"""Open lanes again, those of a condition that is to be added."""

_REOPEN_ALL = f"{REOPEN} where queue = :queue and state in ({RESTING}, {FULL})"
_REOPEN_ONE = f"{REOPEN} where queue = :queue and key = :key and state in ({RESTING}, {FULL})"
_RESUME = f"{REOPEN} where queue = :queue and key = :key and state = {PAUSED}"
_PAUSE = f"""
insert into lanes (queue, key, turn, state)
values (:queue, :key, 0, {PAUSED})
on conflict (queue, key) do update set state = {PAUSED}, until = null
"""
_PUT_KEY = f"""
insert into lanes (queue, key, turn, state, weight, max_running)
values (:queue, :key, 0, {EMPTY}, :weight, :max_running)
on conflict (queue, key) do update set weight = excluded.weight, max_running = excluded.max_running
"""
_GATE = f"""
select tat, {LIMIT_COLUMNS}
from queues
where name = :queue and gated
"""
_LANES = f"""
select key, state, until, weight, max_running, {STOPPED_BY}
from lanes
where queue = :queue and {{which}}
order by key
limit :limit
"""
_KEY = _LANES.format(which="key = :key")
# No lane rests for longer than the period of its rate, but where the clock was set back.
_WAKE = f"""
{REOPEN}
where state = {RESTING}
    and until is not null
    and until > :now + 1 + coalesce((select q.key_rate_period from queues q where q.name = lanes.queue), 0)
"""
_FORGET_KEY = f"""
delete from lanes
where queue = :queue
    and key = :key
    and state = {EMPTY}
    and weight = 1
    and max_running is null
    and tat is null
"""
_STANDINGS = "select state, count(*) from lanes where queue = :queue group by state"


async def put_limits(tx: Transaction, queue: str, limits: Limits) -> None:
    """See `jobpipe.store.base.ControlStore.put_limits`."""
    values = {
        "max_running": limits.max_running,
        **_rate_values("rate", limits.rate),
        "key_max_running": limits.per_key.max_running,
        **_rate_values("key_rate", limits.per_key.rate),
        "key_order": limits.per_key.on_failure if limits.per_key.ordered else None,
    }
    before = await tx.rows(_ORDER, {"queue": queue})
    tx.run(_PUT_LIMITS, {"name": queue, **values})
    if any(value is not None for value in values.values()):
        await tx.gate(queue)
    tx.run(_REOPEN_ALL, {"queue": queue})
    if before and before[0][0] not in (None, values["key_order"]):
        await _order_changed(tx, queue)
    tx.tell(READY)


async def _order_changed(tx: Transaction, queue: str) -> None:
    """Keys that kept order go by another rule: none is stopped, and whoever waited behind another job may be next."""
    order.forget(tx, queue)
    place = (queue, "")
    while place[0] == queue:
        place = await tx.mend_lanes(place, SWEPT)


def _rate_values(prefix: str, rate: Rate | None) -> Mapping[str, float | None]:
    values = (None, None, None) if rate is None else (rate.limit, float(rate.period), rate.burst)
    return dict(zip((f"{prefix}_limit", f"{prefix}_period", f"{prefix}_burst"), values, strict=True))


async def put_key(tx: Transaction, queue: str, key: str, settings: KeySettings) -> KeyState:
    """See `jobpipe.store.base.ControlStore.put_key`."""
    named = {"queue": queue, "key": key}
    tx.run(_PUT_KEY, named | {"weight": settings.weight, "max_running": settings.max_running})
    tx.run(_REOPEN_ONE, named)
    if settings == USUAL:
        tx.run(_FORGET_KEY, named)
    tx.tell(READY)
    return await one(tx, queue, key)


async def pause_key(tx: Transaction, queue: str, key: str) -> KeyState:
    """See `jobpipe.store.base.ControlStore.pause_key`."""
    tx.run(_PAUSE, {"queue": queue, "key": key})
    return await one(tx, queue, key)


async def resume_key(tx: Transaction, queue: str, key: str) -> KeyState:
    """See `jobpipe.store.base.ControlStore.resume_key`."""
    tx.run(_RESUME, {"queue": queue, "key": key})
    order.go_on(tx, queue, key)
    tx.tell(READY)
    return await one(tx, queue, key)


async def gate(tx: Transaction, queue: str, now: float) -> GateState | None:
    """See `jobpipe.store.base.ReadStore.gate`."""
    rows = await tx.rows(_GATE, {"queue": queue})
    if not rows:
        return None
    ((tat, *columns),) = rows
    limits = limits_from(columns)
    rate = limits.rate
    now = now if rate is None else await tx.rated_at(now)
    standings = await tx.rows(_STANDINGS, {"queue": queue})
    return GateState(
        limits=limits,
        running=await tx.held_in(queue),
        tokens=None if rate is None else rate.tokens(rate.cut(time_from(tat), now), now),
        keys={_standing(state, stopped=state == STOPPED): jobs for state, jobs in standings},
    )


async def sweep(tx: Transaction, now: float, after: tuple[str, str]) -> tuple[str, str]:
    """Open the lanes that would rest for too long, since the clock was set back, and lost ones, `SWEPT` at most.

    `after`: where the one before has stopped, as it returned.
    """
    tx.run(_WAKE, {"now": now})
    return await tx.mend_lanes(after, SWEPT)


async def listed(
    tx: Transaction, queue: str, limit: int, after: str | None, state: KeyStanding | None
) -> Sequence[KeyState]:
    """See `jobpipe.store.base.ReadStore.keys`."""
    which = [] if after is None else ["key > :after"]
    if state == STANDINGS[STOPPED]:
        which.append(f"state <> {PAUSED} and {STOPPED_BY} is not null")
    elif state is not None:
        which.append(f"state = :state and (state = {PAUSED} or {STOPPED_BY} is null)")
    values: dict[str, Any] = {"queue": queue, "after": after, "limit": limit}
    values["state"] = None if state is None else STANDINGS.index(state)
    sql = _LANES.format(which=" and ".join(["true", *which]))
    return await _states(tx, queue, await tx.rows(sql, values))


async def one(tx: Transaction, queue: str, key: str) -> KeyState:
    """See `jobpipe.store.base.ReadStore.key`."""
    rows = await tx.rows(_KEY, {"queue": queue, "key": key, "limit": 1})
    if not rows:
        rows = [(key, EMPTY, None, USUAL.weight, None, await order.stopped_by(tx, queue, key))]
    (state,) = await _states(tx, queue, rows)
    return state


async def _states(tx: Transaction, queue: str, rows: Sequence[Row]) -> Sequence[KeyState]:
    counts = await tx.in_lanes(queue, [row[0] for row in rows]) if rows else {}
    states = list[KeyState]()
    for key, state, until, weight, max_running, stopped_by in rows:
        waiting, running = counts.get(key, (0, 0))
        states.append(
            KeyState(
                key=key,
                waiting=waiting,
                running=running,
                state=_standing(state, stopped=stopped_by is not None),
                until=time_from(until) if state == RESTING else None,
                stopped_by=stopped_by,
                settings=KeySettings(weight=weight_from(weight), max_running=count_from(max_running)),
            )
        )
    return states


def limits_from(columns: Sequence[Any]) -> Limits:
    """The limits of a queue, from LIMIT_COLUMNS. Whatever is said of an order: keys keep it."""
    max_running, *rate = columns[:4]
    key_max_running, *key_rate = columns[4:8]
    key_order = columns[8]
    return Limits(
        max_running=count_from(max_running),
        rate=_rate_from(rate),
        per_key=PerKey(
            max_running=count_from(key_max_running),
            rate=_rate_from(key_rate),
            ordered=key_order is not None,
            on_failure="stop" if key_order == "stop" else "go_on",
        ),
    )


def _rate_from(columns: Sequence[Any]) -> Rate | None:
    if any(value is None for value in columns):
        return None
    rate = Rate(*columns)
    return rate if rate.sound else None


def count_from(value: int | None) -> int | None:
    """How many jobs run at once, as it is stored."""
    return None if value is None else max(0, value)


def weight_from(value: int) -> int:
    """The weight of a key, as it is stored."""
    return min(max(value, 1), 1000)


def time_from(value: float | None) -> float | None:
    """A time, as it is stored."""
    return None if value is None or not math.isfinite(value) else value


def _standing(state: int, *, stopped: bool) -> KeyStanding:
    """How a lane stands: what it is stopped by is read from the jobs that failed, not from its row."""
    if stopped and state != PAUSED:
        return STANDINGS[STOPPED]
    return STANDINGS[state] if state in range(STOPPED) else STANDINGS[OPEN]
