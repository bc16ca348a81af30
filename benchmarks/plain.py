"""A plain table of jobs in SQLite, as little as a durable queue with fences needs: the floors write to it."""

from pathlib import Path

import apsw

_TABLE = """
create table if not exists jobs (
    seq integer primary key, id text not null unique, kind text not null, payload blob not null,
    status text not null default 'queued', priority integer not null default 0, run_at real not null,
    attempt integer not null default 0, max_retries integer not null default 3, claim integer not null default 0,
    node text, created_at real not null, started_at real, finished_at real, result blob, error text
) strict;
create index if not exists jobs_ready on jobs (priority desc, run_at, seq) where status = 'queued';
"""

INSERT = (
    "insert into jobs (id, kind, payload, max_retries, run_at, created_at) values (?, ?, ?, ?, ?, ?) "
    "on conflict (id) do nothing"
)


def table(path: Path, sync: str) -> apsw.Connection:
    """Open the table in a file; `sync` as jobpipe's setting of that name."""
    connection = apsw.Connection(str(path))
    for pragma in ("journal_mode=wal", f"synchronous={sync}", "cache_size=-16384"):
        connection.execute(f"pragma {pragma}").fetchall()
    connection.execute(_TABLE)
    return connection
