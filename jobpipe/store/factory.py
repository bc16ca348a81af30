"""Opens the store that the settings name."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal

from jobpipe.store.base import Store
from jobpipe.store.memory import open_memory
from jobpipe.store.sqlite import open_sqlite


def open_store(store: str, sync: Literal["full", "normal"]) -> AbstractAsyncContextManager[Store]:
    """Open `memory:` or `sqlite:PATH`, as the settings have checked it; raises `StoreError` on entering."""
    if store == "memory:":
        return open_memory()
    return open_sqlite(Path(store.removeprefix("sqlite:")), sync=sync)
