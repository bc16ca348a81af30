"""Which kinds and queues the live nodes serve together, and which jobs wait for a node that serves theirs."""

import difflib
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

import structlog
import trio

from jobpipe.errors import StoreError
from jobpipe.store.base import Store, Unserved

PERIOD = 5.0
"""Seconds between two looks, so that the log tells of jobs which no node can run."""

FRESH = 0.2
"""Seconds between two questions to the store at the least, however many callers ask."""

RARELY = 10
"""How many times as long as counting unserved jobs took their number is good enough: 100,000 take some 20 ms."""

TOLD, AGAIN = 10, 60.0
"""The most lines in the log for one look; and how many seconds pass before a changed count is told again."""

KINDS_NAMED, COMPARED = 20, 50
"""The most kinds that are named where one is unknown, and the most that the unknown kind is compared with."""

log = structlog.get_logger("jobpipe")


class Served:
    """Remembers what the store said of kinds, and warns of the jobs that no live node can run, or would take."""

    def __init__(self, store: Store, own: frozenset[str]) -> None:
        self._store, self._own = store, own
        self._others: frozenset[str] = frozenset()
        self._unserved: Sequence[Unserved] = ()
        # In Trio's clock: when the store was last asked for kinds, when so that it answered, when to count jobs again.
        self._asked_at = self._known_at = self._look_at = -FRESH
        self._asking, self._looking = trio.Lock(), trio.Lock()
        self._told: dict[str, tuple[int, float]] = {}
        self._told_queues: Collection[str] = ()

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds that some live node serves, as far as this node knows."""
        return self._own | self._others

    def has(self, kind: str) -> bool:
        """Whether some live node serves a kind, as far as this node knows. Before a no is final, `renew`."""
        return kind in self._own or kind in self._others

    @property
    def in_words(self) -> str:
        """Which kinds are served, in words."""
        served = sorted(self.kinds)
        more = f" and {len(served) - KINDS_NAMED} more" if len(served) > KINDS_NAMED else ""
        return f"served are {', '.join(served[:KINDS_NAMED]) or 'none'}{more}"

    def unknown(self, kind: str) -> str:
        """Why a kind is refused that no live node serves, with the name that may be meant."""
        served = sorted(self.kinds)
        alike = [name for name in served if abs(len(name) - len(kind)) <= 2][:COMPARED]  # noqa: PLR2004 - a slip of the finger
        meant = difflib.get_close_matches(kind, alike, 1)
        hint = f"did you mean {meant[0]!r}? " if meant else ""
        return f"no live node has a handler for {kind!r}; {hint}{self.in_words}"

    async def renew(self, since: float) -> None:
        """Ask the store which kinds are served, unless it was asked after `since` (in Trio's clock).

        Raises `StoreError`. However many callers there are, it is asked no more often than every `FRESH` seconds: they
        wait for one answer.
        """
        async with self._asking:
            if self._known_at > since:
                return
            await trio.sleep_until(self._asked_at + FRESH)
            asked_at = self._asked_at = trio.current_time()
            self._others = await self._store.kinds()
            self._known_at = asked_at

    async def unserved(self) -> Sequence[Unserved]:
        """The kinds of ready jobs that no live node serves. Raises `StoreError`.

        As of `FRESH` seconds ago at most, or where very many are counted, of `RARELY` times as long as that took.
        """
        async with self._looking:
            if (begun := trio.current_time()) >= self._look_at:
                self._unserved = await self._store.unserved()
                self._look_at = begun + FRESH + RARELY * (trio.current_time() - begun)
        return self._unserved

    async def run(self) -> None:
        """Look every `PERIOD` seconds, for ever, and warn."""
        while True:
            try:
                await self.renew(trio.current_time())
                self._tell(await self.unserved())
                self._tell_queues(await self._unserved_queues())
            except StoreError as error:
                log.debug("could not look for jobs that no node serves", error=str(error))
            await trio.sleep(PERIOD)

    async def _unserved_queues(self) -> Sequence[str]:
        served = await self._store.served_queues()
        return [] if served is None else await self._store.unserved_queues(served)

    def _tell_queues(self, found: Sequence[str]) -> None:
        """A warning for each queue that is new."""
        for name in [name for name in found if name not in self._told_queues][:TOLD]:
            log.warning("jobs wait: no live node takes jobs from their queue", queue=name)
        self._told_queues = found

    def _tell(self, found: Sequence[Unserved]) -> None:
        """A warning for each kind that is new, and now and then for one whose count has changed."""
        now = trio.current_time()
        self._told = {one.kind: self._told[one.kind] for one in found if one.kind in self._told}
        for one in [one for one in found if self._is_news(one, now)][:TOLD]:
            since = datetime.fromtimestamp(one.since, UTC).isoformat(timespec="seconds")
            log.warning(
                "jobs wait: no live node has a handler for their kind",
                kind=one.kind,
                jobs=one.jobs,
                since=since,
            )
            self._told[one.kind] = one.jobs, now

    def _is_news(self, one: Unserved, now: float) -> bool:
        jobs, at = self._told.get(one.kind, (0, now - AGAIN))
        return one.jobs != jobs and now >= at + AGAIN
