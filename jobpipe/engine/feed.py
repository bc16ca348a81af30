"""What becomes of all jobs, on this node and on others, for those who listen.

While nobody does, nothing is paid for it. Else each change that is stored comes in as an id and a status. Ten times a
second all that have come are looked up in the store, and put into a ring, which each reader reads at a pace of its own.
A node on which somebody listens says so in the store, and the others tell it their changes. What comes from there is an
id and a status, too: all else that an event says of a job is what the store says.
"""

import math
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Literal

import msgspec
import structlog
import trio

from jobpipe.clock import Clock
from jobpipe.engine.ring import Entry, JobEvent, Missed, Ring
from jobpipe.engine.unforeseen import Unforeseen
from jobpipe.errors import StoreError
from jobpipe.events import Events
from jobpipe.job import Status
from jobpipe.store.base import SharedStore, Store, Summary, Told

APART = 0.1
"""Seconds between two times at which changes are looked up and told to other nodes."""

MOST = 10_000
"""The most changes that wait for that; what comes when so many wait is missed."""

LOOKED_UP = 500
"""How many jobs are looked up at once."""

TOLD = 100
"""The most changes that other nodes are told at once."""

PART = 100
"""How many events a reader takes at once."""

LINGER = 30.0
"""Seconds for which events are kept when nobody listens any more: clients connect again."""

MISSED_APART = 1.0
"""Seconds between two notes in the ring that events are missing."""

ASK_AGAIN, SAY_AGAIN = 5.0, 15.0
"""Seconds after which a node asks again whether somebody listens elsewhere, while somebody does, and says again that
somebody listens here."""

LAST = 1.0
"""Seconds that a node which ends has for its last events."""

NODES = 1000
"""Of how many other nodes it is known how many changes they have told."""

_NUMBER = re.compile(r"[0-9]{1,18}")

log = structlog.get_logger("jobpipe")


class _Change(msgspec.Struct, frozen=True):
    id: str
    status: Status | Literal["deleted"] | None
    at: float


class Reader:
    """Reads the events from a place on. One that is slower than they come is told so, and goes on with the newest."""

    def __init__(self, feed: "Feed", place: int, number: int, missed: Missed | None) -> None:
        self._feed, self._place, self._first = feed, place, missed
        self._at = feed.now()
        self.number = number
        """of the event up to which all is read, or told to be missed"""

    def take(self) -> Sequence[Entry]:
        """The next events, `PART` at most; none: it has read them all."""
        ring = self._feed.ring
        if self._first is not None:
            missed, self._first = self._first, None
            entries: Sequence[Entry] = [missed]
        elif self._place < ring.first:
            entries = [Missed(ring.number, self._at, self._feed.now())]
            self._place = ring.end
        else:
            entries = ring.part(self._place, PART)
            self._place += len(entries)
        if entries:
            self._at, self.number = entries[-1].at, entries[-1].number
        return entries

    async def more(self, seconds: float) -> None:
        """Return when there may be more to read, or the feed is closed, or after so many seconds."""
        with trio.move_on_after(seconds):
            while self._place == self._feed.ring.end and not self._feed.closed:
                await self._feed.grown.wait()


class Feed:
    """Runs as one task, which looks changes up and tells them to other nodes; all else it does when it is told."""

    def __init__(self, store: Store, events: Events, clock: Clock, *, node: str) -> None:
        self._store, self._events, self._clock, self._node = store, events, clock, node
        self._shared = store if isinstance(store, SharedStore) else None
        self.ring = Ring()
        self.grown = trio.Event()
        """set, and replaced, when there is more to read"""
        self.closed = False
        """whether this node stops, and tells no more"""
        self._closing = trio.Event()
        self._readers = 0
        self._open, self._until = False, math.inf  # until when, in Trio's clock, where nobody reads
        self._elsewhere = False  # whether somebody listens on another node
        self._said: bool | None = False  # whether the store says that somebody listens here; None: it may
        self._saying = trio.Lock()
        self._said_at = self._asked_at = -math.inf
        self._own, self._heard = list[_Change](), list[_Change]()
        self._left_out = 0  # how many of its own changes there was no room for
        self._told = 0  # the number of the last change that others were told, or that was left out
        self._heard_to: dict[str, int] = {}
        self._gap: float | None = None  # since when events are missing that the ring does not say are missing
        self._gap_at = -math.inf  # when it last said so, in Trio's clock
        self._latest = 0.0  # the time of the last event
        self._woken, self._stepping = trio.Event(), trio.Lock()
        self._unforeseen = Unforeseen()

    def now(self) -> float:
        """The time, in seconds since the epoch."""
        return self._clock.now()

    # For readers

    @asynccontextmanager
    async def reading(self, seen: str | None = None) -> AsyncIterator[Reader]:
        """Read what comes from now on, or, where that is known here, what came behind the event with the id `seen`.

        Raises `StoreError` where other nodes cannot be told that somebody listens.
        """
        if not self._open:
            self._begin()
        self._readers += 1
        try:
            await self._announce()
            yield self._reader(seen)
        finally:
            self._readers -= 1
            if not self._readers:
                self._until = trio.current_time() + LINGER
                self._woken.set()

    def _reader(self, seen: str | None) -> Reader:
        number = None if seen is None else number_of(seen, self._node)
        place = None if number is None else self.ring.behind(number)
        if number is not None and place is not None:
            return Reader(self, place, number, None)
        missed = None if seen is None else Missed(self.ring.number, self._time_of(seen), self.now())
        return Reader(self, self.ring.end, self.ring.number, missed)

    def _time_of(self, seen: str) -> float | None:
        """When the event of an id was, whichever node told it; None where the id is none."""
        number = number_of(seen, None)
        if number is None or not 0 < number <= self.now() * 1e6:
            return None
        return number / 1e6

    def mark(self, number: int) -> str:
        """The id of the event with a number."""
        return f"{self._node}.{number}"

    def _begin(self) -> None:
        self._open = True
        self.ring.begin(self.now())
        self._latest, self._gap = self.now(), None
        self._heard_to.clear()
        self._heard.clear()
        self._listen()

    def _listen(self) -> None:
        """Be told of changes, as long as anybody wants to know."""
        wanted = (self._open or self._elsewhere) and not self.closed
        self._events.sink = self._put if wanted else None

    async def _announce(self) -> None:
        """Have other nodes know whether somebody listens here. Raises `StoreError`."""
        if self._shared is None:
            return
        async with self._saying:
            if self._said is not self._open:
                wanted, self._said = self._open, None
                await self._shared.listen(self._node, listening=wanted)
                self._said, self._said_at = wanted, trio.current_time()

    def close(self) -> None:
        """Tell no more: readers come to their end."""
        self.closed = True
        self._listen()
        self._closing.set()
        self._grow()

    async def ended(self) -> None:
        """Return when this node stops."""
        await self._closing.wait()

    def _grow(self) -> None:
        grown, self.grown = self.grown, trio.Event()
        grown.set()

    # What comes in

    def _put(self, job_id: str, status: Status | Literal["deleted"] | None) -> None:
        """Something has become of a job on this node, and is stored."""
        if len(self._own) >= MOST:
            self._left_out += 1
        else:
            self._own.append(_Change(job_id, status, self._clock.now()))
        self._woken.set()

    def heard(self, job_id: str, told: Told) -> None:
        """Another node says that something has become of a job there; without an id, that it left out some changes."""
        if not self._open or told.node == self._node:
            return
        if len(self._heard_to) >= NODES and told.node not in self._heard_to:
            self._heard_to.clear()
        last = self._heard_to.get(told.node)
        self._heard_to[told.node] = told.number
        if not job_id or len(self._heard) >= MOST or (last is not None and told.number > last + 1):
            self.missed()
        if job_id and len(self._heard) < MOST:
            self._heard.append(_Change(job_id, told.status, told.at))
            self._woken.set()

    def missed(self) -> None:
        """Events may be missing."""
        if self._open and self._gap is None:
            self._gap = self._latest
            self._woken.set()

    async def look(self) -> None:
        """Ask whether somebody listens on another node."""
        if self._shared is None:
            return
        self._asked_at = trio.current_time()
        with suppress(StoreError):  # the next look may have an answer
            self._elsewhere = await self._shared.any_listening(self._node)
        self._listen()

    async def look_again(self) -> None:
        """The same now and then, while somebody listens: who has died says nothing any more."""
        now = trio.current_time()
        if self._elsewhere and now >= self._asked_at + ASK_AGAIN:
            await self.look()
        if self._said is not False and now >= self._said_at + SAY_AGAIN:
            self._said, self._said_at = None, now  # another lease has begun, perhaps; or it could not be said
            with suppress(StoreError):
                await self._announce()

    # What becomes of it

    async def run(self) -> None:
        """Look up what has come and tell it, for ever."""
        while True:
            with trio.move_on_at(self._wake_at()):
                await self._woken.wait()
            self._woken = trio.Event()
            await self._step()
            await trio.sleep(APART)

    async def finish(self) -> None:
        """Look up and tell what has come by now, before this node ends; for `LAST` seconds at the most."""
        with trio.move_on_after(LAST), self._unforeseen.costs("the last events are not told"):
            await self._step()

    def _wake_at(self) -> float:
        ends_at = self._until if self._open and not self._readers else math.inf
        return ends_at if self._gap is None else min(ends_at, self._gap_at + MISSED_APART)

    async def _step(self) -> None:
        async with self._stepping:
            await self._tell_all()

    async def _tell_all(self) -> None:
        if self._open and not self._readers and trio.current_time() >= self._until:
            await self._end()
        own, self._own = self._own, []
        heard, self._heard = self._heard, []
        left_out, self._left_out = self._left_out, 0
        if self._elsewhere and (own or left_out):
            await self._tell(own, left_out)
        if left_out:
            self.missed()
        if self._open:
            for start in range(0, len(own) + len(heard), LOOKED_UP):
                await self._look_up([*own, *heard][start : start + LOOKED_UP])
            self._note_gap()

    async def _end(self) -> None:
        """Keep no more events: nobody has read any for a while."""
        self._open, self._gap = False, None
        self.ring.begin(self.now())
        self._listen()
        with suppress(StoreError):  # others tell what nobody hears, as long as the lease of this node stands
            await self._announce()

    async def _tell(self, changes: Sequence[_Change], left_out: int) -> None:
        assert self._shared is not None  # noqa: S101 - else nobody listens elsewhere
        untold = [(one.id, one.status, one.at) for one in changes[:TOLD]]
        more = len(changes) - len(untold) + left_out
        first, self._told = self._told + 1, self._told + len(changes) + left_out
        with (
            self._unforeseen.costs("some changes are not told to other nodes"),
            suppress(StoreError),  # those who listen see that some are missing
        ):
            await self._shared.tell_others(self._node, first, untold, more)

    async def _look_up(self, changes: Sequence[_Change]) -> None:
        found: dict[str, Summary] = {}
        try:
            ids = list({one.id for one in changes if one.status != "deleted"})
            if ids:
                found = {one.id: one for one in await self._store.summaries(ids)}
        except StoreError as error:
            log.warning("events are missing: jobs could not be looked up", error=str(error))
            self.missed()
            return
        except Exception as error:  # noqa: BLE001 - costs these events
            self._unforeseen.tell(error, "events are missing")
            self.missed()
            return
        now = self.now()
        for change in changes:
            self._append(change, found.get(change.id), now)
        self._grow()
        await trio.lowlevel.checkpoint()

    def _append(self, change: _Change, job: Summary | None, now: float) -> None:
        status = change.status or (None if job is None else job.status)
        if status is None or (job is None and status != "deleted"):
            return  # it is gone, and told as deleted; or cannot be read
        self._latest = change.at
        number = self.ring.next_number(now)
        self.ring.append(JobEvent(number, change.id, status, change.at, None if status == "deleted" else job))

    def _note_gap(self) -> None:
        """Say in the ring that events are missing, now and then."""
        now = trio.current_time()
        if self._gap is not None and now >= self._gap_at + MISSED_APART:
            self.ring.append(Missed(self.ring.next_number(self.now()), self._gap, self.now()))
            self._gap, self._gap_at = None, now
            self._grow()


def number_of(mark: str, node: str | None) -> int | None:
    """The number in an id of an event; None where it is none, or not one of this node. `node`: None for any."""
    name, _, digits = mark.rpartition(".")
    known = node is None or name == node
    return int(digits) if known and _NUMBER.fullmatch(digits) else None
