"""Keeps the small hot tables small: what is dead in them would be passed over by every claim."""

from contextlib import closing

import psycopg
import structlog
import trio

from jobpipe.store.postgres.connector import Connector
from jobpipe.store.postgres.session import Connection

HOT = ("live", "lanes", "lane_news")
"""The tables that claims read; in the last two nothing has died where there are no keys and limits."""

HOT_DEAD = 20_000
"""So many dead rows in "live" make a round worth it: a claim passes over 48,000 dead entries in 0.5 ms."""

COLD_DEAD, COLD_SHARE = 200_000, 0.2
"""So many in "jobs" and "ended", and this share of all its rows: there only room is at stake."""

PAUSE = 2.0
"""The shortest time, in seconds, between two rounds."""

LONGEST = 600.0
"""Seconds after which a round is given up."""

_ROWS = """
select reltuples
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where nspname = %(schema)s and relname = 'jobs'
"""

log = structlog.get_logger("jobpipe")


class Vacuum:
    """Vacuums after so much work; the server by itself would look once a minute only, whatever has happened."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._hot = self._cold = 0
        self._due = trio.Event()
        self.rounds = 0
        """how many are done"""

    def count(self, *, hot: int, cold: int) -> None:
        """So many rows of "live" have died, and so many of "jobs" with those of "ended"."""
        self._hot += hot
        self._cold += cold
        if self._hot >= HOT_DEAD:
            self._due.set()

    async def run(self) -> None:
        """Vacuum whenever it is due, for ever."""
        while True:
            await self._due.wait()
            self._due, self._hot = trio.Event(), 0
            with trio.move_on_after(LONGEST):
                await trio.to_thread.run_sync(self._round, abandon_on_cancel=True)
            await trio.sleep(PAUSE)

    def _round(self) -> None:
        try:
            with closing(self._connector.connect()) as connection:
                if (
                    not self._connector.address.pooled
                ):  # there it would stay with whoever has the connection next
                    connection.execute(f"set statement_timeout = '{LONGEST:.0f}s'".encode())
                for table in HOT:
                    self._vacuum(connection, table)
                if self._cold >= COLD_DEAD and self._cold >= COLD_SHARE * self._rows(connection):
                    self._cold = 0
                    for table in ("jobs", "ended"):
                        self._vacuum(connection, table)
            self.rounds += 1
        except psycopg.Error as error:
            log.warning("could not vacuum", error=str(error).splitlines()[:1])
        except Exception:  # the store goes on without
            log.exception("could not vacuum")

    def _vacuum(self, connection: Connection, table: str) -> None:
        """Without truncate, which waits for everybody; a table that another node is at is passed over."""
        place = f'"{self._connector.address.schema}".{table}'
        connection.execute(f"vacuum (skip_locked, truncate off, index_cleanup on) {place}".encode())

    def _rows(self, connection: Connection) -> float:
        row = connection.execute(_ROWS, {"schema": self._connector.address.schema}).fetchone()
        return float(row[0]) if row else 0.0
