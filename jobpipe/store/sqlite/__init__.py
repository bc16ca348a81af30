"""The SQLite store: one file, one writer, readers apart (WAL)."""

from jobpipe.store.sqlite.store import SqliteStore, open_sqlite

__all__ = ["SqliteStore", "open_sqlite"]
