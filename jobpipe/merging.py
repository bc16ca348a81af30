"""How requests for the same are merged into one job: what makes them the same, and what becomes of each. Pure.

A key belongs to the job that took it last, and its row says which that is. Whether that job still has it, follows from
the job itself: nothing is written when a job is claimed or ends, so no key can be left behind taken.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Literal

import msgspec

from jobpipe.job import ENDED, WAITING, Debounce, NewJob, Status, Throttle, Unique
from jobpipe.transitions import Stored

MAX_WAITS = 10
"""A debounced job waits for so many times its `wait` at the most, unless it says otherwise."""

LONGEST = 20 * 366 * 86_400.0
"""Seconds for which a key can be taken at the most: a throttle of ten years, whose next job waits for its window."""

NOBODY = 0
"""In the place of a job's number: no job has taken the key yet."""


class Taken(msgspec.Struct, frozen=True):
    """Which job took a key last."""

    key: str
    seq: int
    """the job's number, or `NOBODY`"""
    id: str = ""
    claim: int | None = None
    """it has the key until it is claimed once more than so often; None: until it has ended"""
    since: float = 0.0
    """when it took the key"""
    until: float | None = None
    """the key is also taken until then, whatever becomes of the job; for a throttle the end of its window"""

    def lasts(self, now: float) -> float | None:
        """Until when the key is taken whatever becomes of the job; None: that is over.

        A clock that was set back adds no more than what was asked for, and what nobody could ask for does not count.
        """
        span = 0.0 if self.until is None else self.until - self.since
        if self.until is None or not 0.0 < span <= LONGEST:
            return None
        end = min(self.until, now + span)
        return end if end > now else None


class Holder(msgspec.Struct, frozen=True):
    """How the job stands that took a key last."""

    status: Status
    claim: int
    created_at: float
    run_at: float
    fixed: bool = False
    """whether it cannot be changed any more: it is held, or its row is damaged"""

    @property
    def waits(self) -> bool:
        """Whether it can be changed."""
        return self.status in WAITING and not self.fixed


class Decision(msgspec.Struct, frozen=True):
    """What becomes of a request."""

    verdict: Literal["store", "replace", "return", "refuse"]
    """`store`: it becomes a job, which takes the key; `replace`: the job that has the key becomes what it asks for;
    `return`: that job is the answer; `refuse`: nothing, and the request is told of that job"""
    run_at: float = 0.0
    """when that job is due, where it is stored or replaced"""
    until: float | None = None
    """for how long it has the key whatever becomes of it, where it is stored"""


def holder_of(stored: Stored) -> Holder:
    """How a locked job stands."""
    job = stored.job
    fixed = stored.held or bool(job.damage)
    return Holder(job.status, job.state.claim, job.asked.created_at, job.asked.run_at, fixed)


def coming(new: NewJob) -> Holder:
    """How a new job stands."""
    return Holder(new.status, 0, new.created_at, new.run_at)


def key_of(asked: NewJob) -> str | None:
    """What requests have in common that are for the same; None: this one is for itself. 32 hexadecimal digits."""
    parts = _parts(asked)
    return None if parts is None else hashlib.blake2b(msgspec.json.encode(parts), digest_size=16).hexdigest()


def _parts(asked: NewJob) -> Sequence[str | None] | None:
    match asked.options.merging:
        case Unique(key=key, over=over):
            kind = asked.kind if "kind" in over else None
            payload = _canonical(asked.payload) if "payload" in over else None
            return ["unique", asked.queue, key, kind, payload]
        case Throttle(key=key):
            return ["throttle", asked.queue, key, asked.kind]
        case Debounce(key=key):
            return ["debounce", asked.queue, key, asked.kind]
        case None:
            return None


def _canonical(payload: bytes) -> str:
    """The same text for the same JSON value: 1 is 1.0, and the order of names does not matter."""
    try:
        value = json.loads(payload, parse_float=_number)
        return msgspec.json.encode(value, order="deterministic").decode()
    except (ValueError, RecursionError):  # of a damaged row
        return payload.hex()


def _number(digits: str) -> float | int:
    number = float(digits)
    return int(number) if number.is_integer() else number


def insists(new: NewJob) -> bool:
    """Whether a request for a key that is taken has failed. Else what it is about is done, or will be."""
    return new.options.unique is not None and new.options.unique.on_conflict != "return"


def taken_by(new: NewJob, key: str, seq: int, until: float | None, claim: int = 0) -> Taken:
    """The key of a job that takes it: a new one, or one that was claimed so often and is retried."""
    unique = new.options.unique
    whole = unique is not None and "running" in unique.while_
    return Taken(key, seq, new.id, None if whole else claim, new.created_at, until)


def is_taken(unique: Unique, taken: Taken, holder: Holder | None, now: float) -> bool:
    """Whether a key is another job's, given how that one stands; None: it is gone."""
    return _has(unique, taken, holder) or taken.lasts(now) is not None


def _has(unique: Unique, taken: Taken, holder: Holder | None) -> bool:
    if holder is None or holder.status in ENDED:
        return False
    return "running" in unique.while_ or taken.claim is None or holder.claim == taken.claim


def decided(new: NewJob, taken: Taken, holder: Holder | None) -> Decision:
    """What becomes of a request, given how the job stands that took its key last; None: that one is gone."""
    match new.options.merging:
        case Unique() as unique:
            return _unique(unique, new, taken, holder)
        case Throttle() as throttle:
            return _throttled(throttle, new, taken, holder)
        case Debounce() as debounce:
            return _debounced(debounce, new, taken, holder)
        case None:
            return Decision("store", new.run_at)


def _unique(unique: Unique, new: NewJob, taken: Taken, holder: Holder | None) -> Decision:
    now = new.created_at
    if not is_taken(unique, taken, holder, now):
        return Decision("store", new.run_at, None if unique.for_ is None else round(now + unique.for_, 3))
    if unique.on_conflict == "return" and holder is not None:
        return Decision("return")
    if unique.on_conflict == "replace" and holder is not None and holder.waits:
        return Decision("replace", new.run_at)
    return Decision("refuse")


def _throttled(throttle: Throttle, new: NewJob, taken: Taken, holder: Holder | None) -> Decision:
    end = taken.lasts(new.created_at)
    if end is not None and not throttle.trailing:
        return Decision("return" if holder is not None else "refuse")
    if throttle.trailing and holder is not None and _unclaimed(taken, holder) and _trails(holder):
        return Decision("replace", holder.run_at)
    start = new.created_at if end is None else end
    return Decision("store", start, round(start + throttle.every, 3))


def _trails(holder: Holder) -> bool:
    """Whether a throttled job is the one at the end of a window: the first was due when it was stored."""
    return holder.run_at > holder.created_at


def _debounced(debounce: Debounce, new: NewJob, taken: Taken, holder: Holder | None) -> Decision:
    quiet = round(new.created_at + debounce.wait, 3)
    if holder is None or not _unclaimed(taken, holder):
        return Decision("store", quiet)
    return Decision("replace", min(quiet, round(holder.created_at + debounce.max_wait, 3)))


def _unclaimed(taken: Taken, holder: Holder) -> bool:
    """Whether the job waits, and was never claimed since it took the key."""
    return holder.waits and holder.claim == taken.claim
