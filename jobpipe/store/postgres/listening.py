"""The connection that listens: its socket is waited on by Trio, and it is made anew whenever it is lost."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import structlog
import trio

from jobpipe.store.base import News
from jobpipe.store.postgres.beside import beside
from jobpipe.store.postgres.line import Lines
from jobpipe.store.postgres.session import Connection
from jobpipe.store.postgres.words import news

LOOK_EVERY = 5.0
"""Seconds after which somebody looks though nothing was told: notifications may get lost."""

PROBE_EVERY = 10.0
"""Seconds of silence after which the connection has to show that it lives."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds before a lost connection is made anew, doubled from try to try."""

WAITING_NEWS = 10_000
"""How many news may wait; after more there is one `missed` for all that were not kept."""

LOOK, MISSED = News("look"), News("missed")

log = structlog.get_logger("jobpipe")


class Listening:
    """Hears what is told on the channel, and hands it on."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._send: trio.MemorySendChannel[News] | None = None
        self._missed = False
        self.up = False
        """whether the connection stands"""

    @asynccontextmanager
    async def heard(self) -> AsyncIterator[AsyncIterator[News]]:
        """Listen as long as the context is open."""
        send, receive = trio.open_memory_channel[News](WAITING_NEWS)
        tasks = [self._remind, self._listen] if self._lines.address.listen else [self._remind]
        with send, receive:
            self._send = send
            async with beside(*tasks):
                try:
                    yield receive
                finally:
                    self._send = None

    def tell(self, one: News) -> None:
        """Hand something on that this process found out by itself."""
        if self._send is None:
            return
        try:
            if self._missed:
                self._send.send_nowait(MISSED)
                self._missed = False
            self._send.send_nowait(one)
        except trio.WouldBlock:
            self._missed = True

    async def _remind(self) -> None:
        while True:
            await trio.sleep(LOOK_EVERY)
            self.tell(LOOK if self.up else MISSED)

    async def _listen(self) -> None:
        pause, limits = FIRST_PAUSE, self._lines.limits
        while True:
            try:
                connection = await self._lines.opened(self._ask, limits.connect + limits.statement)
            except psycopg.Error as error:
                log.warning(
                    "cannot listen to other nodes: looking every few seconds", error=_first_line(error)
                )
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            try:
                self.up = True
                self.tell(MISSED)  # what was told while nobody listened
                await self._hear(connection)
            except (psycopg.Error, OSError) as error:
                log.warning("the connection that listens to other nodes was lost", error=_first_line(error))
            finally:
                self.up = False
                connection.close()
            await trio.sleep(pause)

    def _ask(self, connection: Connection) -> None:
        connection.execute(f'listen "{self._lines.address.channel}"'.encode())

    async def _hear(self, connection: Connection) -> None:
        """Hand on what is told until the connection is lost; raises what psycopg does."""
        while True:
            silent = True
            with trio.move_on_after(PROBE_EVERY):
                await trio.lowlevel.wait_readable(connection.fileno())
                silent = False
            if silent:
                # One that does not answer in time is dead. What is told meanwhile is found below.
                await self._lines.transact(connection, lambda session: session.rows("select 1"))
            else:
                connection.pgconn.consume_input()
            while (notification := connection.pgconn.notifies()) is not None:
                self._told(notification.extra.decode())

    def _told(self, word: str) -> None:
        for one in news(word):
            self.tell(one)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
