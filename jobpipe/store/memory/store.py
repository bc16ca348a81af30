"""The store itself. No threads, so it follows virtual time.

Each verb has one checkpoint, before its effect: a cancel comes before anything was done, or too late.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from trio.lowlevel import checkpoint

from jobpipe.job import Job
from jobpipe.store.base import Batch, Change, Filter, Page, QueueState, Receipts, Rescued, Retention
from jobpipe.store.memory import reader
from jobpipe.store.memory.control import Control
from jobpipe.store.memory.shelves import Shelves
from jobpipe.store.memory.writer import Writer


class MemoryStore:
    """See `jobpipe.store.base` for what each verb promises. Several nodes of one process may share it."""

    name = "memory:"
    durable = False

    def __init__(self) -> None:
        self._shelves = Shelves()
        self._writer, self._control = Writer(self._shelves), Control(self._shelves)

    async def join(self, node: str, now: float, lease_until: float) -> None:  # noqa: ARG002 - the contract's `now`
        await checkpoint()
        self._control.join(node, lease_until)

    async def exchange(self, batch: Batch) -> Receipts:
        await checkpoint()
        return self._writer.exchange(batch)

    async def rescue(self, node: str, now: float) -> Sequence[Rescued]:
        await checkpoint()
        return self._control.rescue(node, now)

    async def prune(self, now: float, retention: Retention) -> int:
        await checkpoint()
        return self._control.prune(now, retention)

    async def leave(self, node: str) -> None:
        await checkpoint()
        self._control.leave(node)

    async def cancel(self, ids: Sequence[str], now: float) -> Sequence[Change]:
        await checkpoint()
        return [self._control.cancel(job_id, now) for job_id in ids]

    async def retry(self, ids: Sequence[str], now: float) -> Sequence[Change]:
        await checkpoint()
        return [self._control.retry(job_id, now) for job_id in ids]

    async def delete(self, ids: Sequence[str]) -> Sequence[Change]:
        await checkpoint()
        return [self._control.delete(job_id) for job_id in ids]

    async def pause(self, queue: str) -> None:
        await checkpoint()
        self._control.pause(queue, paused=True)

    async def resume(self, queue: str) -> None:
        await checkpoint()
        self._control.pause(queue, paused=False)

    async def get(self, job_id: str) -> Job | None:
        await checkpoint()
        return reader.one(self._shelves, job_id)

    async def jobs(self, where: Filter, limit: int, before: int | None) -> Page:
        await checkpoint()
        return reader.listed(self._shelves, where, limit, before)

    async def queues(self) -> Sequence[QueueState]:
        await checkpoint()
        return reader.queues(self._shelves)

    async def ping(self) -> None:
        await checkpoint()


@asynccontextmanager
async def open_memory() -> AsyncIterator[MemoryStore]:
    """A store for as long as it is open."""
    await checkpoint()
    yield MemoryStore()
