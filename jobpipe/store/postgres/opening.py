"""The database before it is used: its checks and its migrations."""

import re

import psycopg
import structlog
from psycopg import pq, sql
from psycopg.conninfo import make_conninfo

from jobpipe.errors import StoreError, StoreUnavailable
from jobpipe.store.migrations import MUST_HAVE_STOPPED, UNRELEASED, migrations
from jobpipe.store.postgres.address import Address, read_address
from jobpipe.store.postgres.connector import Connector, Limits
from jobpipe.store.postgres.failures import mapped
from jobpipe.store.postgres.session import Connection

OLDEST = 130000
"""The oldest server that will do: PostgreSQL 13 has all that the statements here use."""

PATIENCE = 600
"""Seconds that one migration may take, and that a node waits for another one's."""

_VERSIONS = """
create table if not exists versions (
    version int primary key,
    applied_at timestamptz not null default now()
)
"""
# From the catalog itself: to_regclass may answer from before another node's migration that was waited for.
_HAS_VERSIONS = """
select
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = %(schema)s and c.relname = 'versions'
"""
_NEWEST_VERSION = "select coalesce(max(version), 0) from {versions}"
_APPLIED = "insert into versions (version) values (%(version)s)"
_LIVE_NODES = """
select name
from nodes
where lease_until > extract(epoch from clock_timestamp())
order by name
limit 10
"""
_HAS_SCHEMA = "select from pg_catalog.pg_namespace where nspname = %(schema)s"
_ALONE = "select pg_advisory_xact_lock(hashtextextended(%(channel)s, 0))"
_PATIENTLY = f"""
set local statement_timeout = '{PATIENCE}s';
set local lock_timeout = '{PATIENCE}s';
set local idle_in_transaction_session_timeout = 0;
set local standard_conforming_strings = on
"""


log = structlog.get_logger("jobpipe")


def migrate(url: str) -> str:
    """Apply what is missing in the database of a URL; returns what was done, in words. Raises `StoreError`."""
    address = read_address(url)
    before, now = prepare(Connector(address, Limits(lease=15.0)))
    if before == now:
        return f"{address.shown}: schema {address.schema} is at version {now} already"
    return f"{address.shown}: schema {address.schema} went from version {before} to {now}"


def prepare(connector: Connector) -> tuple[int, int]:
    """Refuse a database that will not do; then apply missing migrations. Returns the versions before and after.

    Safe with any number of nodes at once: the first applies them under a lock, the others wait and find them done.
    A schema that is up to date is only read, so a node needs no right to make anything.
    """
    with mapped(connector.address), _first_connection(connector) as connection:
        _check_server(connection, connector.address)
        numbers = [number for number, _ in migrations("jobpipe.store.postgres")]
        newest = numbers[-1]
        version = _version(connection, connector.address.schema)
        if 0 < version < numbers[0]:
            raise StoreError(
                f"schema {connector.address.schema} of {connector.address.shown} {UNRELEASED}: drop it, or name "
                "another one in STORE with `?schema=`"
            )
        if version < newest:
            version = _apply(connection, connector.address)
        if version > newest or _version(connection, connector.address.schema) > newest:
            raise _newer(connector.address, _version(connection, connector.address.schema), newest)
        return version, newest


_FULL = re.compile("too many|connection slots|no more connections")


def _first_connection(connector: Connector) -> Connection:
    """The first connection of a start. What will not pass by itself is a `StoreError`, and no `StoreUnavailable`.

    libpq does not say why a server refused: so where the server takes connections, but not this one, the user, the
    password, the database or pg_hba.conf is wrong, unless its words are those of a server that is full.
    """
    try:
        return connector.connect()
    except psycopg.OperationalError as error:
        conninfo = make_conninfo(connector.address.conninfo, **connector.options)
        if _FULL.search(str(error)) or pq.PGconn.ping(conninfo.encode()) != pq.Ping.OK:
            raise
        words = " ".join(str(error).split())
        raise StoreError(
            f"{connector.address.shown} refused the connection ({words}): check the user, the password and the database"
        ) from error


def suited(address: Address, connection: Connection) -> Address:
    """The address as it has to be used: more carefully where `connection` leads to a pooler.

    A pooler answers in the server's place when a client connects, and makes up the number of the process, which
    it needs to pass on cancels; so the number is not that of the process which carries out a statement.
    """
    row = connection.execute("select pg_backend_pid()").fetchone()
    if row is None or row[0] == connection.info.backend_pid:
        return address
    careful = address.behind_a_pooler()
    log.info("connected to the database through a pooler", prepare=careful.prepare, listen=careful.listen)
    return careful


def _newer(address: Address, version: int, newest: int) -> StoreError:
    return StoreError(
        f"schema {address.schema} of {address.shown} was made by a newer jobpipe "
        f"(version {version}, this one knows {newest}): run that version"
    )


def _check_server(connection: Connection, address: Address) -> None:
    if connection.info.server_version < OLDEST:
        raise StoreError(f"{address.shown} is too old: PostgreSQL {OLDEST // 10000} or newer is needed")
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise StoreError(
            f"{address.shown} has the encoding {encoding}: create the database with encoding UTF8"
        )


def _version(connection: Connection, schema: str) -> int:
    """The number of the last migration that was applied; 0: none."""
    if connection.execute(_HAS_VERSIONS, {"schema": schema}).fetchone() is None:
        return 0
    query = sql.SQL(_NEWEST_VERSION).format(versions=sql.Identifier(schema, "versions"))
    row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0


def _apply(connection: Connection, address: Address) -> int:
    """Apply what is missing, all in one transaction; returns the version that was found under the lock."""
    with connection.transaction():
        connection.execute(_PATIENTLY.encode())
        connection.execute(_ALONE, {"channel": address.channel})
        found = _version(connection, address.schema)
        try:
            _apply_after(connection, address.schema, found)
        except psycopg.errors.InsufficientPrivilege as error:
            raise StoreError(
                f"the user of STORE may not create the tables of jobpipe in schema {address.schema} "
                f"({error.diag.message_primary}): run `jobpipe migrate` as a user who may"
            ) from error
        return found


def _apply_after(connection: Connection, schema: str, version: int) -> None:
    if version == 0 and not _exists(connection, schema):
        connection.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
    connection.execute(sql.SQL("set local search_path = {}, pg_temp").format(sql.Identifier(schema)))
    connection.execute(_VERSIONS)
    for number, text in migrations("jobpipe.store.postgres"):
        if number > version:
            if version and text.startswith(MUST_HAVE_STOPPED):
                _check_nobody_lives(connection, number)
            connection.execute(text.encode())
            connection.execute(_APPLIED, {"version": number})


def _check_nobody_lives(connection: Connection, number: int) -> None:
    """Raise `StoreUnavailable`, which is waited for, while nodes of an older version run on these tables."""
    names = [name for (name,) in connection.execute(_LIVE_NODES).fetchall()]
    if names:
        raise StoreUnavailable(
            f"nodes of an older jobpipe run on this database, and cannot work with schema version {number}: "
            f"stop {', '.join(names)}"
        )


def _exists(connection: Connection, schema: str) -> bool:
    return connection.execute(_HAS_SCHEMA, {"schema": schema}).fetchone() is not None
