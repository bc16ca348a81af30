"""The verbs of the contract over SQLite, wherever its database lies and whichever thread works on it."""

from abc import abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import apsw

from jobpipe.job import Job
from jobpipe.store.base import (
    NO_FACTS,
    QUEUES,
    Batch,
    Filter,
    NodeFacts,
    Overview,
    Page,
    Place,
    QueueState,
    Receipts,
    Unserved,
)
from jobpipe.store.sqlite import reader
from jobpipe.store.sqlite.nodes import Nodes
from jobpipe.store.sqlite.tables import carry_out, looked
from jobpipe.store.sqlite.writer import Writer
from jobpipe.store.verbs.facade import SharedVerbs
from jobpipe.store.verbs.transaction import Transaction

P = ParamSpec("P")
R = TypeVar("R")


class Verbs(SharedVerbs):
    """See `jobpipe.store.base` for what each verb promises. Each is one function, so a cancel cannot break it in two.

    A subclass says where such a function runs.
    """

    _writer: Writer
    _nodes: Nodes

    @abstractmethod
    async def _write(self, verb: Callable[[], R]) -> R:
        """Run a function that writes, whole, or not at all when cancelled before it began."""

    @abstractmethod
    async def _read(
        self, verb: Callable[Concatenate[apsw.Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run a function that reads, with a connection."""

    async def _change(self, verb: Callable[[], R]) -> R:
        """Write something that the engine's writer does not know of: it has to ask the database again."""

        def call() -> R:
            try:
                return verb()
            finally:
                self._writer.forget()

        return await self._write(call)

    async def _transact(
        self,
        verb: Callable[[Transaction], Coroutine[Any, Any, R]],
        *,
        repeatable: bool = False,  # noqa: ARG002 - here it is always known what was committed
    ) -> R:
        return await self._change(lambda: carry_out(self._writer.db, verb))

    async def _look(self, verb: Callable[[Transaction], Coroutine[Any, Any, R]]) -> R:
        return await self._read(looked, verb)

    async def join(
        self,
        node: str,
        now: float,
        lease_until: float,
        kinds: frozenset[str] = frozenset(),
        queues: frozenset[str] | None = None,
        facts: NodeFacts = NO_FACTS,
    ) -> None:
        await self._change(lambda: self._nodes.join(node, lease_until, kinds, queues, now=now, facts=facts))

    async def exchange(self, batch: Batch) -> Receipts:
        return await self._write(lambda: self._writer.exchange(batch))

    async def leave(self, node: str) -> None:
        await self._change(lambda: self._nodes.leave(node))

    async def get(self, job_id: str) -> Job | None:
        return await self._read(reader.one, job_id)

    async def jobs(self, where: Filter, limit: int, before: Place | None) -> Page:
        return await self._read(reader.listed, where, limit, before)

    async def queues(self, limit: int = QUEUES, after: str = "") -> Sequence[QueueState]:
        return await self._read(reader.queues, limit, after)

    async def queue(self, name: str) -> QueueState | None:
        return await self._read(reader.queue, name)

    async def overview(self, kinds: frozenset[str], queues: frozenset[str] | None = None) -> Overview:
        return await self._read(reader.overview, kinds, queues)

    async def kinds(self) -> frozenset[str]:
        return await self._read(reader.kinds)

    async def served_queues(self) -> frozenset[str] | None:
        return await self._read(reader.served_queues)

    async def unserved_queues(self, served: frozenset[str]) -> Sequence[str]:
        return await self._read(reader.unserved_queues, served)

    async def unserved(self) -> Sequence[Unserved]:
        return await self._read(reader.unserved)

    async def ping(self) -> None:
        await self._read(reader.ping)
