"""The verbs of the contract that are written once: each is carried out as one transaction."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from jobpipe.store.base import Batch, Change, QueueChange, Rescued, Retention
from jobpipe.store.verbs import jobs, nodes, queues, retention, sidelining
from jobpipe.store.verbs.transaction import Transaction

R = TypeVar("R")


class SharedVerbs(ABC):
    """See `jobpipe.store.base` for what each verb promises. A subclass says how a transaction is carried out."""

    @abstractmethod
    async def _carry_out(
        self, verb: Callable[[Transaction], Coroutine[Any, Any, R]], *, repeatable: bool = False
    ) -> R:
        """Carry out a verb in a transaction: whole, or not at all.

        One that is `repeatable` may be carried out twice, where nobody knows whether the first time was committed.
        """

    async def rescue(self, node: str, now: float) -> Sequence[Rescued]:
        return await self._carry_out(lambda tx: nodes.rescue(tx, node, now))

    async def prune(self, now: float, retained: Retention) -> int:
        return await self._carry_out(lambda tx: retention.prune(tx, now, retained))

    async def sideline(self, batch: Batch, words: str) -> str | None:
        kinds = frozenset[str]().union(*(claim.kinds for claim in batch.claims[:1]))
        return await self._carry_out(lambda tx: sidelining.sideline(tx, kinds, batch.now, words))

    async def cancel(self, ids: Sequence[str], now: float) -> Sequence[Change]:
        return await self._carry_out(lambda tx: jobs.cancel(tx, ids, now))

    async def retry(self, ids: Sequence[str], now: float) -> Sequence[Change]:
        return await self._carry_out(lambda tx: jobs.retry(tx, ids, now))

    async def promote(self, ids: Sequence[str], now: float) -> Sequence[Change]:
        return await self._carry_out(lambda tx: jobs.promote(tx, ids, now))

    async def edit(self, ids: Sequence[str], edits: Mapping[str, Any], now: float) -> Sequence[Change]:
        return await self._carry_out(lambda tx: jobs.edit(tx, ids, edits, now))

    async def delete(self, ids: Sequence[str]) -> Sequence[Change]:
        return await self._carry_out(lambda tx: jobs.delete(tx, ids))

    async def pause(self, queue: str) -> None:
        await self._carry_out(lambda tx: queues.pause(tx, queue), repeatable=True)

    async def resume(self, queue: str) -> None:
        await self._carry_out(lambda tx: queues.resume(tx, queue), repeatable=True)

    async def delete_queue(self, queue: str) -> QueueChange:
        return await self._carry_out(lambda tx: queues.delete(tx, queue))
