"""One running jobpipe: the rooms of the engine put together, and the order in which they start and end."""

import os
import random
import secrets
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

import structlog
import trio

from jobpipe.clock import Clock
from jobpipe.engine.admission import Admission
from jobpipe.engine.attempt import Attempt
from jobpipe.engine.backlog import Backlog
from jobpipe.engine.channel import Channel
from jobpipe.engine.committer import Committer
from jobpipe.engine.control import Control
from jobpipe.engine.enqueuing import Enqueuing
from jobpipe.engine.executor import Executor
from jobpipe.engine.feed import Feed
from jobpipe.engine.follower import Follower
from jobpipe.engine.held import Held
from jobpipe.engine.intake import Intake
from jobpipe.engine.lease import Lease
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.lingering import Lingering
from jobpipe.engine.listener import Listener
from jobpipe.engine.looks import Looks
from jobpipe.engine.maintenance import Maintenance
from jobpipe.engine.operations import Operations
from jobpipe.engine.prefetch import Prefetch
from jobpipe.engine.scheduler import Scheduler
from jobpipe.engine.served import Served
from jobpipe.engine.shares import Shares
from jobpipe.engine.stops import Stops
from jobpipe.engine.unforeseen import Unforeseen
from jobpipe.engine.waiting import Waiting
from jobpipe.engine.watchdog import Watchdog
from jobpipe.engine.worker import work
from jobpipe.errors import StoreError
from jobpipe.events import Events
from jobpipe.handlers.registry import Registry
from jobpipe.job import Outcome
from jobpipe.settings import Settings
from jobpipe.store.base import OTHERS, NodeFacts, Rescued, Retention, Store
from jobpipe.version import VERSION

CLEANUP = 5.0
"""Seconds that handlers have for their cleanup once they are cancelled, and the store for its last writes."""

Phase = Literal["starting", "running", "draining", "stopped"]

log = structlog.get_logger("jobpipe")


def node_name() -> str:
    """A name that no other node has: host, process, and a few random digits for the next start."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


class Node:
    """Everything that makes jobs move in this process, around one store."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        registry: Registry,
        clock: Clock,
        *,
        name: str | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.settings, self.store, self.registry, self.clock = settings, store, registry, clock
        self.name = name or node_name()
        self.rng = rng or random.Random()  # noqa: S311 - jitter and ids, no secrets
        self.phase: Phase = "starting"
        self.events = Events()
        self.held = Held(clock, registry.max_retries, self.rng)
        self.tallies = self.held.tallies
        self.tallies.expect(registry.served)
        self.ledger = Ledger(self.name, clock, self.events, self.held, lease=settings.lease)
        self.follower = Follower(store, self.ledger, self.events, clock, period=settings.lease)
        self.committer = Committer(
            store, self.name, self.ledger, self.held, self.follower, self.events, clock
        )
        *reserved, self.channel = self._channels()
        self.channels = [*reserved, self.channel]
        """in the order in which they claim: those of reserved workers first, so that those are used first"""
        self.backlog = Backlog(store, self.ledger, self.channels, max_backlog=settings.max_backlog)
        self.admission = Admission(self.backlog, store, clock, self.rng.getrandbits)
        self.served = Served(store, registry.served)
        self.enqueuing = Enqueuing(self.admission, self.served, registry, max_payload=settings.max_body)
        self.executor = Executor(
            self.ledger,
            self.held,
            registry,
            clock,
            self.enqueuing,
            threads=settings.workers,
            max_result=settings.max_body,
        )
        self.scheduler = Scheduler(
            store,
            self.ledger,
            self.follower,
            clock,
            registry.declarations,
            node=self.name,
            period=settings.lease,
        )
        self.operations = Operations(
            store,
            self.ledger,
            self.follower,
            self.events,
            clock,
            node=self.name,
            period=settings.lease,
        )
        self.control = Control(store, self.ledger, self.follower, self.scheduler, self.events, clock)
        self.feed = Feed(store, self.events, clock, node=self.name)
        self.looks = Looks(store, self.held, clock, self.name)
        self.listener = Listener(store, self.ledger, self.scheduler, self.events, self.feed, self.looks)
        self.waiting = Waiting(store, self.events, self.listener)
        self.intake = Intake(self.ledger, self.channels)
        self.lease = Lease(
            store,
            self.ledger,
            self.held,
            self.follower,
            clock,
            self.name,
            settings.lease,
            registry.served,
            self.channel.queues,
            NodeFacts(settings.workers, VERSION),
        )
        self.lingering = Lingering(self.held)
        self.stops = Stops(store, self.held, registry, clock, self.name)
        self.maintenance = Maintenance(store, clock, _retention(settings), settings.keep_audit)
        self._unforeseen = Unforeseen()
        # Run by the service: it needs the real clock.
        self.watchdog = Watchdog(self.lease.heartbeat, max_blocked=settings.max_blocked, tallies=self.tallies)
        self._crew = trio.CancelScope()
        self._tally_at_drain: Counter[Outcome | None] = Counter()

    def _channels(self) -> Sequence[Channel]:
        """One for each reservation, and at last that of all other workers."""
        settings = self.settings
        weights = dict(settings.queues)
        rest = settings.workers - sum(workers for _, workers in settings.reserve)
        some = None if set(weights) <= {OTHERS} else Shares(weights)
        size = settings.queue_size
        parts = [(Shares({queue: 1}), workers) for queue, workers in settings.reserve]
        sizes = [size * workers // settings.workers for _, workers in parts]
        return [
            self._channel(shares, workers, part)
            for (shares, workers), part in zip(
                [*parts, (some, rest)], [*sizes, size - sum(sizes)], strict=True
            )
        ]

    def _channel(self, shares: Shares | None, workers: int, size: int) -> Channel:
        # While a node drains over a volatile store it runs what is in the channel: that is kept full there. Not with
        # reserved workers: jobs of theirs would wait in the channel of the others.
        kept_full = not self.store.durable and not self.settings.reserve
        prefetch = None if kept_full else Prefetch(size, workers)
        return Channel(self.ledger, prefetch, shares, size=size, workers=workers, kinds=self.registry.served)

    async def run(
        self, *, task_status: trio.TaskStatus[Sequence[Rescued]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run jobs until drained; started with the jobs that were taken back from dead nodes.

        Keepers outlive the crew, so that every outcome is written. Returns when nothing is held any more.
        """
        await self.lease.join()
        rescued = await self.lease.rescue()
        async with trio.open_nursery() as keepers:
            for keeper in (
                self.committer,
                self.lease,
                self.maintenance,
                self.follower,
                self.scheduler,
                self.operations,
                self.lingering,
                self.stops,
                self.listener,
                self.feed,
                self.served,
                self.looks,
            ):
                keepers.start_soon(self._unforeseen.keep, keeper.run, type(keeper).__name__.lower())
            if self.phase == "starting":  # a signal may have come already
                self.phase = "running"
            task_status.started(rescued)
            await self._run_crew()
            await self.settle_up()
            await self.feed.finish()
            keepers.cancel_scope.cancel()
        self.phase = "stopped"
        self.events.close()
        self.feed.close()

    async def _run_crew(self) -> None:
        run_buffered = not self.store.durable
        with self._crew:
            async with trio.open_nursery() as crew:
                for channel in self.channels:
                    for _ in range(channel.workers):
                        clone = channel.receive.clone()
                        crew.start_soon(
                            lambda end, channel: work(
                                end, channel, self.ledger, self.executor, run_buffered=run_buffered
                            ),
                            clone,
                            channel,
                        )
                    channel.receive.close()
                crew.start_soon(self.intake.run)

    async def settle_up(self) -> None:
        """Hand back what was never begun, and have everything written, within `CLEANUP` seconds."""
        self._release()
        with trio.move_on_after(CLEANUP) as patience:
            await self.ledger.flushed()
        if patience.cancelled_caught:
            log.error(
                "the last outcomes could not be written: those jobs will run again", error=self.ledger.trouble
            )
        self.lease.heartbeat.armed = False
        # A lease that stays ends by itself, and an account that is not written is lost.
        with trio.move_on_after(CLEANUP):
            with self._unforeseen.costs("the lease ends by itself"), suppress(StoreError):
                await self.store.leave(self.name)
            await self.stops.write()

    def _release(self) -> None:
        """Hand back what no worker has taken."""
        for attempt in self.held.untaken():
            self.ledger.hand_back(attempt)

    def drain(self, signal: str | None = None) -> None:
        """Take no new job, let active ones finish for `GRACE` seconds, then stop them.

        `signal`: the name of the one that asked for it.
        """
        if self.phase in ("starting", "running"):
            self.phase, self.backlog.draining = "draining", True
            for channel in self.channels:
                channel.draining = True
            self._tally_at_drain = self.held.tally.copy()
            self.stops.begin(signal)
            self.intake.scope.cancel()
            if self.store.durable:
                self._release()
            self._crew.deadline = trio.current_time() + self.settings.grace

    def stop(self) -> None:
        """Stop active jobs now; each handler's cleanup runs, and its job goes back to the store."""
        self.drain()
        self._crew.cancel()

    def abandon(self) -> Sequence[Attempt]:
        """Give up the handlers that would not end, and hand their jobs back; returns them, to be named."""
        self.stops.abandon(self.held.running)
        return self.executor.abandon(self.stops.line)

    def account(self, abandoned: Sequence[Attempt] = ()) -> dict[str, object]:
        """What became of every attempt since the drain began."""
        tally = self.held.tally - self._tally_at_drain
        handed_back = tally[None] + tally[Outcome.INTERRUPTED] - len(abandoned)
        return {
            "finished": tally.total() - handed_back - len(abandoned),
            "handed_back": handed_back,
            "abandoned": [f"{one.job.id} ({one.job.kind})" for one in abandoned],
        }


def _retention(settings: Settings) -> Retention:
    return Retention(
        done_age=settings.keep_done,
        failed_age=settings.keep_failed,
        jobs=settings.keep_jobs,
        size=settings.keep_bytes,
    )
