"""What a suspended task waits for, told from the innermost of its frames that are Trio's. Pure.

Frames are known by their code, so that a name which Trio changes is missed at the import, not told wrongly. Of what
stands in frames only Trio's own is read: the lock, the channel or the deadline that a function of Trio waits for.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any, Literal, NamedTuple

import msgspec
import trio

Awaited = Literal[
    "sleep",
    "socket",
    "pipe",
    "lock",
    "semaphore",
    "limiter",
    "event",
    "condition",
    "channel_room",
    "channel_value",
    "thread",
    "process",
    "nursery",
    "start",
    "turn",
    "first_turn",
    "other",
]

Direction = Literal["read", "write"]


class Wait(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a task waits for. Each figure is there for what has one."""

    what: Awaited
    until: float | None = None
    """when a sleep is over: in Trio's clock as it is told here; None: it has no end of its own"""
    direction: Direction | None = None
    """of a socket or a pipe"""
    holder: str | None = None
    """the name of the task that holds a lock"""
    holder_job: str | None = None
    """the id of that task's job, where it is another one"""
    filled: int | None = None
    """how many values are in a channel"""
    size: int | None = None
    """how many a channel, or how many holders at a time a limiter, has room for; None: any number"""
    process: int | None = None
    """the number of a process"""


class Told(NamedTuple):
    """What a task waits for, and the task that holds the lock where it is one."""

    wait: Wait
    holder: trio.lowlevel.Task | None = None


Tell = Callable[[FrameType, trio.lowlevel.Task], Told]


class Rule(NamedTuple):
    """What a function of Trio waits for. Of several, the highest rank tells, then the innermost."""

    rank: int
    tell: Tell
    """told of the frame of the function"""
    always: Told | None = None
    """what is told of every one; None: it has to be asked"""


def _always(what: Awaited, direction: Direction | None = None) -> Told:
    return Told(Wait(what=what, direction=direction))


TURN, FIRST_TURN, OTHER = (
    Told(Wait(what="turn")),
    Told(Wait(what="first_turn")),
    Told(Wait(what="other")),
)


def _sleep(frame: FrameType, _: trio.lowlevel.Task) -> Told:
    until = frame.f_locals["deadline"]
    return Told(Wait(what="sleep", until=until if math.isfinite(until) else None))


def _lock(frame: FrameType, _: trio.lowlevel.Task) -> Told:
    holder = frame.f_locals["self"].statistics().owner
    return Told(Wait(what="lock", holder=None if holder is None else holder.name), holder)


def _condition(frame: FrameType, task: trio.lowlevel.Task) -> Told:
    """One that was notified stands in line for the lock, whose owner it has to wait for."""
    condition = frame.f_locals["self"]
    if task.custom_sleep_data is condition._lot:  # noqa: SLF001 - nothing public tells in which line a task stands
        return _always("condition")
    holder = condition.statistics().lock_statistics.owner
    return Told(Wait(what="lock", holder=None if holder is None else holder.name), holder)


def _limiter(frame: FrameType, _: trio.lowlevel.Task) -> Told:
    statistics = frame.f_locals["self"].statistics()
    return Told(Wait(what="limiter", filled=statistics.borrowed_tokens, size=_size(statistics.total_tokens)))


def _channel(what: Awaited) -> Tell:
    def tell(frame: FrameType, _: trio.lowlevel.Task) -> Told:
        statistics = frame.f_locals["self"].statistics()
        size = _size(statistics.max_buffer_size)
        return Told(Wait(what=what, filled=statistics.current_buffer_used, size=size))

    return tell


def _process(frame: FrameType, _: trio.lowlevel.Task) -> Told:
    return Told(Wait(what="process", process=frame.f_locals["self"].pid))


def _size(size: float) -> int | None:
    return int(size) if math.isfinite(size) else None


def _code(function: Any) -> CodeType:  # noqa: ANN401 - functions of Trio, some of which are typed as protocols
    code: CodeType = inspect.unwrap(function).__code__
    return code


def _rule(rank: int, tell: Tell | Told) -> Rule:
    return Rule(rank, lambda _, __: tell, always=tell) if isinstance(tell, Told) else Rule(rank, tell)


ANYTHING, ROUGHLY, EXACTLY, SURELY = 0, 1, 2, 3
"""Ranks. What only gives way to other tasks stands above all: a lock that is free is passed so."""

_NURSERY = type(trio.open_nursery(strict_exception_groups=True))

RULES: Mapping[CodeType, Rule] = {
    _code(function): _rule(rank, tell)
    for function, rank, tell in (
        (trio.lowlevel.cancel_shielded_checkpoint, SURELY, _always("turn")),
        (trio.sleep_until, EXACTLY, _sleep),
        (trio.lowlevel.wait_readable, ROUGHLY, _always("socket", "read")),
        (trio.lowlevel.wait_writable, ROUGHLY, _always("socket", "write")),
        (trio.lowlevel.FdStream.receive_some, EXACTLY, _always("pipe", "read")),
        (trio.lowlevel.FdStream.send_all, EXACTLY, _always("pipe", "write")),
        (trio.Lock.acquire, EXACTLY, _lock),
        (trio.Semaphore.acquire, EXACTLY, _always("semaphore")),
        (trio.CapacityLimiter.acquire_on_behalf_of, EXACTLY, _limiter),
        (trio.Event.wait, EXACTLY, _always("event")),
        (trio.Condition.wait, EXACTLY, _condition),
        (trio.MemorySendChannel.send, EXACTLY, _channel("channel_room")),
        (trio.MemoryReceiveChannel.receive, EXACTLY, _channel("channel_value")),
        (trio.to_thread.run_sync, EXACTLY, _always("thread")),
        (trio.Process.wait, EXACTLY, _process),
        (trio.Nursery.start, EXACTLY, _always("start")),
        (_NURSERY.__aexit__, ROUGHLY, _always("nursery")),
        (trio.sleep_forever, ROUGHLY, _always("sleep")),
        (trio.lowlevel.wait_task_rescheduled, ANYTHING, _always("other")),
    )
}


def told(rule: Rule, frame: FrameType, task: trio.lowlevel.Task) -> Told:
    """What a task waits for, by the frame of the function that a rule is for.

    A holder that is the task itself has the lock already: it only waits for its turn.
    """
    try:
        found = rule.tell(frame, task)
    except (AttributeError, KeyError):  # not as this version of Trio has it
        return OTHER
    return TURN if found.holder is task else found
