"""Why a waiting job does not run yet: the first thing that a claim would meet. Pure.

The functions are asked in the order in which a claim looks, and go by the arithmetic that it goes by
(`jobpipe.lanes`). Times are seconds since the epoch.
"""

from typing import Literal

import msgspec

from jobpipe.lanes import PAUSED, Rate

Why = Literal[
    "not_due",
    "paused",
    "queue_full",
    "rate",
    "key_paused",
    "key_stopped",
    "key_order",
    "key_full",
    "key_rate",
    "no_node",
    "turn",
]
"""In the order in which a claim looks."""


class Obstacle(msgspec.Struct, frozen=True, kw_only=True):
    """What keeps a waiting job from running yet. What does not belong to the reason is None."""

    reason: Why
    run_at: float | None = None
    queue: str | None = None
    key: str | None = None
    """`''`: the jobs of the queue that have none"""
    kind: str | None = None
    """no live node runs jobs of this kind from that queue"""
    running: int | None = None
    """how many jobs of the queue or the key are held, where that is as many as may be"""
    max_running: int | None = None
    until: float | None = None
    """when the pause ends by itself, or the rate allows the next job"""
    pause_reason: str | None = None
    """why the queue is paused"""
    stopped_by: str | None = None
    """the id of the failed job for which the key is stopped"""
    behind: str | None = None
    """the id of the job of the key that has to end for good before"""
    place: int | None = None
    """in its queue, or among the jobs of its key, from 1"""
    exact: bool | None = None
    """whether it is that place, or one behind it"""


CheckName = Literal[
    "due",
    "queue_paused",
    "queue_limit",
    "queue_rate",
    "key_paused",
    "key_order",
    "key_limit",
    "key_rate",
    "served",
    "turn",
]
"""What a claim looks at, in its order."""


class Check(msgspec.Struct, frozen=True):
    """One of the things that a claim looks at, and what it finds there."""

    name: CheckName
    obstacle: Obstacle | None
    """what is in the way; of the turn, its place"""
    at: float | None = None
    """when the job is, or was, due"""
    running: int | None = None
    most: int | None = None
    """of a limit: how many jobs are held, and how many may be"""
    limited: bool = False
    """whether there is a rate, or an order"""
    claimed: bool = False
    """of the turn: whether it has come, so that a node holds the job already"""

    @property
    def passed(self) -> bool:
        """Whether nothing is in the way here: of the turn, it is the first in its line."""
        if self.obstacle is None or self.name != "turn":
            return self.obstacle is None
        return self.obstacle.place == 1 and self.obstacle.exact is True


class Use(msgspec.Struct, frozen=True):
    """How far a queue, or one key of it, uses what it may."""

    running: int = 0
    """how many of its jobs are held"""
    tat: float | None = None
    """what `Rate.taken` returned last"""


def of_time(run_at: float, now: float) -> Obstacle | None:
    """A job is not due yet."""
    return Obstacle(reason="not_due", run_at=run_at) if run_at > now else None


def of_pause(queue: str, reason: str | None, until: float | None, now: float) -> Obstacle | None:
    """A queue is paused. A pause whose time has come is over with the next exchange."""
    if until is not None and until <= now:
        return None
    return Obstacle(reason="paused", queue=queue, pause_reason=reason, until=until)


def of_queue_limit(queue: str, most: int, use: Use) -> Obstacle | None:
    """As many jobs of a queue are held as may run."""
    if use.running < most:
        return None
    return Obstacle(reason="queue_full", queue=queue, running=use.running, max_running=most)


def of_queue_rate(queue: str, rate: Rate, use: Use, now: float) -> Obstacle | None:
    """The rate of a queue allows no more jobs now."""
    until = rate.rests_until(use.tat, now)
    return None if until is None else Obstacle(reason="rate", queue=queue, until=until)


def of_key_pause(key: str, state: int) -> Obstacle | None:
    """A key is paused; `state`: how its lane stands, as `jobpipe.lanes.STANDINGS` numbers it.

    Beside `PAUSED`, that is what the last claim found: it is looked at anew.
    """
    return Obstacle(reason="key_paused", key=key) if state == PAUSED else None


def of_order(key: str, job_id: str, stopped_by: str | None, first: str | None) -> Obstacle | None:
    """A key that keeps order is stopped by a job that failed, or another job of it comes first."""
    if stopped_by is not None:
        return Obstacle(reason="key_stopped", key=key, stopped_by=stopped_by)
    if first is not None and first != job_id:
        return Obstacle(reason="key_order", key=key, behind=first)
    return None


def of_key_limit(key: str, most: int, use: Use) -> Obstacle | None:
    """As many jobs of a key are held as may run."""
    if use.running < most:
        return None
    return Obstacle(reason="key_full", key=key, running=use.running, max_running=most)


def of_key_rate(key: str, rate: Rate, use: Use, now: float) -> Obstacle | None:
    """The rate of a key allows no more jobs now."""
    until = rate.rests_until(use.tat, now)
    return None if until is None else Obstacle(reason="key_rate", key=key, until=until)
