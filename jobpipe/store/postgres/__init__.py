"""The PostgreSQL store: many nodes share one database. Needs the extra `jobpipe[postgres]`."""

from jobpipe.store.postgres.opening import migrate
from jobpipe.store.postgres.store import PostgresStore, open_postgres

__all__ = ["PostgresStore", "migrate", "open_postgres"]
