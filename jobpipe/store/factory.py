"""Opens the store that the settings name."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType
from typing import Literal

from jobpipe.errors import StoreError
from jobpipe.store.base import Store
from jobpipe.store.memory import open_memory
from jobpipe.store.sqlite import open_sqlite

POSTGRES = ("postgresql://", "postgres://")


def open_store(
    store: str, sync: Literal["full", "normal"], lease: float = 15.0
) -> AbstractAsyncContextManager[Store]:
    """Open `memory:`, `sqlite:PATH` or `postgresql://...`, as the settings have checked it.

    `lease`: within so many seconds a dead connection has to be noticed. Raises `StoreError`, some on entering.
    """
    if store == "memory:":
        return open_memory()
    if store.startswith(POSTGRES):
        opened: AbstractAsyncContextManager[Store] = _postgres().open_postgres(
            store, lease=lease, durable_commits=sync == "full"
        )
        return opened
    return open_sqlite(Path(store.removeprefix("sqlite:")), sync=sync)


def migrate(store: str) -> str:
    """Bring the tables of a store up to date; returns what was done, in words. Raises `StoreError`."""
    if store.startswith(POSTGRES):
        done: str = _postgres().migrate(store)
        return done
    return f"{store} needs no migration: its tables are created at the start"


def _postgres() -> ModuleType:
    try:
        from jobpipe.store import postgres  # noqa: PLC0415 - an extra, and 150 ms that other stores do without
    except ImportError as error:
        raise StoreError(
            f"STORE=postgresql://... needs the driver psycopg ({error}): pip install 'psycopg[binary]'"
        ) from error
    return postgres
