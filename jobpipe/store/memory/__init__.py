"""The memory store: dicts and heaps. Everything is lost with the process."""

from jobpipe.store.memory.store import MemoryStore, open_memory

__all__ = ["MemoryStore", "open_memory"]
