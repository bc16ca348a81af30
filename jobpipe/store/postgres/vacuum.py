"""Keeps the small hot table small: what is dead in it would be passed over by every claim."""

from contextlib import closing

import psycopg
import structlog
import trio

from jobpipe.store.postgres.line import Lines

DEAD_ROWS = 20_000
"""So many claims and settlements of this node make it worth it: a claim passes over 48,000 dead entries in 0.5 ms."""

PAUSE = 2.0
"""The shortest time, in seconds, between two rounds."""

LONGEST = 60.0

log = structlog.get_logger("jobpipe")


class Vacuum:
    """Vacuums after so much work, rather than once a minute as the server would by itself."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._dead = 0
        self._due = trio.Event()
        self.rounds = 0

    def count(self, rows: int) -> None:
        """So many rows were changed."""
        self._dead += rows
        if self._dead >= DEAD_ROWS:
            self._due.set()

    async def run(self) -> None:
        """Vacuum whenever it is due, for ever."""
        while True:
            await self._due.wait()
            self._due, self._dead = trio.Event(), 0
            await trio.to_thread.run_sync(self._vacuum)
            await trio.sleep(PAUSE)

    def _vacuum(self) -> None:
        """One round; another node that is at it is passed over."""
        table = f'"{self._lines.address.schema}".live'
        try:
            connection = self._lines.connect(autocommit=True)
            with closing(connection), self._lines.deadlines.bound(connection, LONGEST):
                connection.execute(f"set statement_timeout = '{LONGEST:.0f}s'".encode())
                # Without truncate: that waits for everybody, and the room is needed again at once.
                connection.execute(f"vacuum (skip_locked, truncate off, index_cleanup on) {table}".encode())
            self.rounds += 1
        except psycopg.Error as error:
            log.warning("could not vacuum", error=str(error).splitlines()[:1])
