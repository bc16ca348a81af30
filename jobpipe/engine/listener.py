"""What other nodes did, as a store that nodes share tells it. Nothing of it is believed: each is a reason to look."""

from contextlib import suppress
from typing import assert_never

from jobpipe.engine.feed import Feed
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.looks import Looks
from jobpipe.engine.scheduler import Scheduler
from jobpipe.engine.unforeseen import Unforeseen
from jobpipe.errors import StoreError
from jobpipe.events import Events
from jobpipe.store.base import Notification, SharedStore, Store


class Listener:
    """Listens to a shared store; with one that this process has to itself there is nothing to hear."""

    def __init__(
        self, store: Store, ledger: Ledger, scheduler: Scheduler, events: Events, feed: Feed, looks: Looks
    ) -> None:
        self._store = store if isinstance(store, SharedStore) else None
        self._ledger, self._scheduler, self._events, self._feed = ledger, scheduler, events, feed
        self._looks = looks
        self._unforeseen = Unforeseen()

    @property
    def alone(self) -> bool:
        """Whether there is nobody else to hear."""
        return self._store is None

    async def run(self) -> None:
        """Act on each piece of news, for ever.

        A look costs an exchange of the ledger, whose receipts say which held jobs were asked to stop.
        """
        if self._store is None:
            return
        async with self._store.changes() as changes:
            async for news in changes:
                with self._unforeseen.costs("the notification is ignored", news=news):
                    await self._act(news)

    async def _act(self, news: Notification) -> None:
        match news.what:
            case "look":
                self._ledger.look()
                await self._feed.look_again()
            case "missed":
                await self._catch_up()
            case "ended":
                self._events.look_at(news.id)
            case "paused":
                await self._recall_paused()
                self._ledger.look()  # to know when a pause ends
            case "schedules":
                self._scheduler.wake()
            case "listeners":
                await self._feed.look()
            case "told":
                if news.told is not None:
                    self._feed.heard(news.id, news.told)
            case "asked" | "answered":
                self._looks.heard(news)
            case _:
                assert_never(news.what)

    async def _catch_up(self) -> None:
        """Look for whatever was told while nobody listened: ready jobs, ends, pauses, schedules, wishes to cancel."""
        self._ledger.look()
        self._scheduler.wake()
        self._events.recheck()
        self._feed.missed()
        self._looks.missed()
        await self._feed.look()
        await self._recall_paused()
        with suppress(StoreError):  # then it is told with the next one
            await self._ledger.renew()  # with it come the wishes

    async def _recall_paused(self) -> None:
        """Hand back the jobs of paused queues that have not begun here, and those that are being claimed."""
        if self._store is None:
            return
        with suppress(StoreError):  # no job waits claimed for long: they go back by themselves
            for queue in await self._store.paused():
                self._ledger.recall(queue)

    async def expect(self, job_id: str) -> None:
        """Have this node told when a job ends, whichever node runs it. Raises `StoreUnavailable`."""
        if self._store is not None:
            await self._store.watch(job_id)

    def trouble(self) -> str | None:
        """Why news of other nodes come late, in words; None: they do not."""
        if self._store is None or self._store.listening:
            return None
        return "notifications of other nodes do not arrive: polling every few seconds"
