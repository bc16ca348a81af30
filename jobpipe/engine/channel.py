"""The channel to the workers, and how much of it is filled: it claims for them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import trio

from jobpipe.engine.attempt import Attempt
from jobpipe.engine.batching import SETTLE_DELAY
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.prefetch import Prefetch
from jobpipe.engine.shares import Shares
from jobpipe.engine.unforeseen import Unforeseen
from jobpipe.store.base import ClaimRequest


class Channel:
    """Holds both ends, and claims as many jobs as are worth it for its workers: the ledger's `Claimer`.

    `prefetch` says how much of the channel is filled; with None all of it, for a store that would lose at the end
    what is not in it. `shares` says which queues it takes from; None: from all.
    """

    def __init__(
        self,
        ledger: Ledger,
        prefetch: Prefetch | None,
        shares: Shares | None = None,
        *,
        size: int,
        workers: int,
        kinds: frozenset[str],
    ) -> None:
        self._ledger, self.prefetch, self._shares = ledger, prefetch, shares
        self._size, self.workers, self._kinds = size, workers, kinds
        self.send, self.receive = trio.open_memory_channel[Attempt](size)
        self._own = self.receive.clone()
        self._short = 0
        self._held_back = False
        self._unforeseen = Unforeseen()
        self.sent = 0
        """how many jobs went in, those that were taken out again for the store not counted"""
        self.filled = trio.Event()
        """set while jobs wait in the channel, and for a while longer"""
        self.draining = False
        """whether the node drains: nothing more is claimed, and what waits in the channel goes back"""

    @property
    def buffered(self) -> int:
        """How many jobs wait in the channel."""
        return self.send.statistics().current_buffer_used

    @property
    def free(self) -> int:
        """How many workers wait for a job."""
        return self.send.statistics().tasks_waiting_receive

    @property
    def queues(self) -> frozenset[str] | None:
        """The queues that it takes from; None: all."""
        return None if self._shares is None else self._shares.names

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Claim jobs as long as the context is open. Then it ends: the workers come to the end of the channel."""
        with self.send, self._own, self._ledger.claiming(self):
            yield

    # What workers tell

    def took(self) -> None:
        """There is one place more: a worker took a job that waited in the channel, or is about to wait for one."""
        self._short -= 1
        if self._short == 0:
            self._ledger.hurry(self)

    def worked(self, jobs: int, seconds: float) -> None:
        """A worker was busy for `seconds` with so many jobs, which are over."""
        if self.prefetch is not None:
            self.prefetch.worked(jobs, seconds)

    def idle(self) -> None:
        """A worker is about to wait for a job."""
        if self.prefetch is not None:
            self.prefetch.idle()
        self.took()
        self._ledger.hurry(self)

    # What the ledger asks

    def wanted(self) -> int:
        """How many jobs to claim at this moment; none unless it pays: for a free worker, or half of what goes ahead."""
        statistics = self.send.statistics()
        free = statistics.tasks_waiting_receive
        ahead = self._ahead(free)
        room = ahead - statistics.current_buffer_used + free
        worth = 1 if self.prefetch is None else max(1, ahead // 2)
        self._short = worth - room
        return room if room >= worth else 0

    def pressing(self) -> bool:
        """Whether a claim is not to wait for outcomes to share a commit with: a worker is free, or will be by then."""
        if self.prefetch is None or self.free:
            return True
        return self.prefetch.runs_dry(self.buffered, self._ledger.exchange_seconds + SETTLE_DELAY)

    def request(self, limit: int) -> ClaimRequest:
        """What to ask the store for: each queue with its share, where it takes from some."""
        free = self.free
        if self._shares is None:
            return ClaimRequest(limit=limit, kinds=self._kinds, free=free)
        return ClaimRequest(limit=limit, kinds=self._kinds, queues=self._shares.of(limit), free=free)

    def learn(self, *, held_back: bool) -> None:
        """Claim nothing ahead while jobs wait that only a free worker may have: else none would be free for long."""
        self._held_back = held_back

    def take(self, asked: ClaimRequest, attempts: Sequence[Attempt]) -> None:
        """Send claimed jobs to the workers."""
        if self._shares is not None:
            self._shares.took(asked.queues, asked.limit, Counter(attempt.job.queue for attempt in attempts))
        for attempt in attempts:
            try:
                self.send.send_nowait(attempt)
            except (trio.WouldBlock, trio.BrokenResourceError):  # a worker that waited has gone
                self._ledger.hand_back(attempt)
            except Exception as error:  # noqa: BLE001 - costs this job a way back to the store
                self._unforeseen.tell(error, "the job is handed back", job=attempt.job.id)
                self._ledger.hand_back(attempt)
            else:
                self.sent += 1
        if self.buffered:
            self.filled.set()

    # What the intake does

    def withdraw(self, keep: int) -> Sequence[Attempt]:
        """Take what waits in the channel out of it, but for the first so many jobs."""
        waiting = [self._own.receive_nowait() for _ in range(self.buffered)]
        self.sent -= len(waiting) - keep
        for attempt in waiting[:keep]:
            self.send.send_nowait(attempt)
        return waiting[keep:]

    def _ahead(self, free: int) -> int:
        if self._held_back:
            return 0
        if self.prefetch is None:
            return self._size
        return self.prefetch.ahead(free, self._ledger.exchange_seconds)
