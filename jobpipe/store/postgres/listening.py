"""The connection that listens: its socket is waited on by Trio, and it is made anew whenever it is lost.

Anyone who can connect to the database may notify, so whatever comes is bounded here: equal news are one, and they are
handed on a few hundred times a second at the most.
"""

import itertools
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import structlog
import trio

from jobpipe.store.base import Notification
from jobpipe.store.postgres.background import beside
from jobpipe.store.postgres.connector import Connector
from jobpipe.store.postgres.notifications import news
from jobpipe.store.postgres.session import Connection

LOOK_EVERY = 5.0
"""Seconds after which somebody looks though nothing was told: notifications may get lost."""

PROBE_EVERY = 10.0
"""Seconds of silence after which the connection has to show that it lives."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds before a lost connection is made anew, doubled from try to try."""

WAITING_NEWS = 10_000
"""How many different news may wait; after more there is one `missed` for all of them."""

APART = 0.01
"""Seconds between two times that news are handed on; those that come meanwhile are handed on together."""

TURN = 100
"""Notifications that are read before other tasks have their turn."""

WARN_EVERY = 1.0
"""Seconds between two lines in the log about strange notifications."""

SHOWN = 100
"""The most characters of a strange notification in the log."""

LOOK, MISSED = Notification("look"), Notification("missed")

log = structlog.get_logger("jobpipe")


class Stream:
    """Notifications on their way to whoever acts on them."""

    def __init__(self) -> None:
        self._waiting: dict[Notification, None] = {}  # in their order
        self._handed_on: deque[Notification] = deque()
        self._some = trio.Event()
        self._at = -math.inf

    def put(self, one: Notification) -> None:
        """Add a piece of news, unless an equal one waits."""
        if len(self._waiting) >= WAITING_NEWS and one not in self._waiting:
            self._waiting.clear()
            one = MISSED
        self._waiting[one] = None
        self._some.set()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Notification:
        if not self._handed_on:
            await trio.sleep_until(self._at + APART)
            await self._some.wait()
            self._at = trio.current_time()
            self._handed_on.extend(self._waiting)
            self._waiting.clear()
            self._some = trio.Event()
        return self._handed_on.popleft()


class Listening:
    """Hears what is told on the channel, and hands it on."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._stream: Stream | None = None
        self._hearing = trio.CancelScope()
        self._strange, self._told_at = 0, -math.inf
        self.up = False
        """whether the connection stands"""
        connector.on_distrust = self._renew

    @asynccontextmanager
    async def heard(self) -> AsyncIterator[AsyncIterator[Notification]]:
        """Listen as long as the context is open."""
        tasks = [self._remind, self._listen] if self._connector.address.listen else [self._remind]
        self._stream = Stream()
        async with beside(*tasks):
            try:
                yield self._stream
            finally:
                self._stream = None

    def tell(self, one: Notification) -> None:
        """Hand something on that this process found out by itself."""
        if self._stream is not None:
            self._stream.put(one)

    def _renew(self) -> None:
        """Listen on a new connection: this one may lead to a server where nothing happens any more."""
        self._hearing.cancel()

    async def _remind(self) -> None:
        while True:
            await trio.sleep(LOOK_EVERY)
            self.tell(LOOK if self.up else MISSED)

    async def _listen(self) -> None:
        pause, limits = FIRST_PAUSE, self._connector.limits
        while True:
            try:
                connection = await self._connector.opened(self._ask, limits.connect + limits.statement)
            except psycopg.Error as error:
                log.warning(
                    "cannot listen for notifications: polling every few seconds", error=_first_line(error)
                )
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            try:
                self.up = True
                self.tell(MISSED)  # what was told while nobody listened
                with trio.CancelScope() as self._hearing:
                    await self._hear(connection)
            except (psycopg.Error, OSError) as error:
                log.warning("lost the connection that listens for notifications", error=_first_line(error))
            finally:
                self.up = False
                connection.close()
            await trio.sleep(pause)

    def _ask(self, connection: Connection) -> None:
        connection.execute(f'listen "{self._connector.address.channel}"'.encode())

    async def _hear(self, connection: Connection) -> None:
        """Hand on what is told until the connection is lost; raises what psycopg does."""
        while True:
            silent = True
            with trio.move_on_after(PROBE_EVERY):
                await trio.lowlevel.wait_readable(connection.fileno())
                silent = False
            if silent:
                # One that does not answer in time is dead. What is told meanwhile is found below.
                await self._connector.transact(connection, lambda session: session.rows("select 1"))
            else:
                connection.pgconn.consume_input()
            for number in itertools.count(1):
                notification = connection.pgconn.notifies()
                if notification is None:
                    break
                self._told(notification.extra)
                if number % TURN == 0:
                    await trio.lowlevel.checkpoint()

    def _told(self, payload: bytes) -> None:
        word = payload.decode(errors="replace")
        understood = news(word)
        if understood is None:
            self._pass_over(word)
            return
        for one in understood:
            self.tell(one)

    def _pass_over(self, word: str) -> None:
        self._strange += 1
        if trio.current_time() >= self._told_at + WARN_EVERY:
            log.warning(
                "ignored notifications that jobpipe did not send", number=self._strange, last=word[:SHOWN]
            )
            self._strange, self._told_at = 0, trio.current_time()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
