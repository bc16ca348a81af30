"""The verbs of the contract that are written once: each is carried out as one transaction."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from jobpipe.job import LEVELS, Level, NewJob
from jobpipe.schedules import Declaration, Firing, Schedule, Spec
from jobpipe.store.base import (
    LOG_LINES,
    SCHEDULES,
    Batch,
    Change,
    Declared,
    Due,
    Fired,
    FiredJob,
    LogPage,
    QueueChange,
    Rescued,
    Retention,
    ScheduleDeletion,
    SchedulePut,
)
from jobpipe.store.verbs import declarations, jobs, nodes, notes, queues, retention, schedules, sidelining
from jobpipe.store.verbs.transaction import Transaction

R = TypeVar("R")

NOTHING_DECLARED = Declared()


class SharedVerbs(ABC):
    """See `jobpipe.store.base` for what each verb promises. A subclass says how a transaction is carried out."""

    @abstractmethod
    async def _carry_out(
        self, verb: Callable[[Transaction], Coroutine[Any, Any, R]], *, repeatable: bool = False
    ) -> R:
        """Carry out a verb in a transaction: whole, or not at all.

        One that is `repeatable` may be carried out twice, where nobody knows whether the first time was committed.
        """

    @abstractmethod
    async def _look(self, verb: Callable[[Transaction], Coroutine[Any, Any, R]]) -> R:
        """Carry out a verb that only reads, all from one state of the database. Never waits for a writer."""

    async def rescue(self, node: str, now: float) -> Sequence[Rescued]:
        return await self._carry_out(lambda tx: nodes.rescue(tx, node, now))

    async def prune(self, now: float, retained: Retention) -> int:
        return await self._carry_out(lambda tx: retention.prune(tx, now, retained))

    async def sideline(self, batch: Batch, words: str) -> str | None:
        return await self._carry_out(lambda tx: sidelining.sideline(tx, batch, words))

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

    async def put_schedule(self, name: str, spec: Spec, job: NewJob, now: float) -> SchedulePut:
        return await self._carry_out(lambda tx: schedules.put(tx, name, spec, job, now))

    async def pause_schedule(self, name: str, reason: str | None) -> Schedule | None:
        return await self._carry_out(lambda tx: schedules.pause(tx, name, reason), repeatable=True)

    async def resume_schedule(self, name: str, now: float) -> Schedule | None:
        return await self._carry_out(lambda tx: schedules.resume(tx, name, now))

    async def delete_schedule(self, name: str) -> ScheduleDeletion:
        return await self._carry_out(lambda tx: schedules.delete(tx, name))

    async def fire(self, firings: Sequence[Firing], now: float) -> Fired:
        return await self._carry_out(lambda tx: schedules.fire(tx, firings, now))

    async def declare(self, declared: Sequence[Declaration], now: float, live_since: float) -> Declared:
        if not declared and not await self._look(declarations.any_declared):
            return NOTHING_DECLARED
        return await self._carry_out(
            lambda tx: declarations.declare(tx, declared, now, live_since), repeatable=True
        )

    async def due_schedules(
        self, now: float, limit: int = SCHEDULES, after: tuple[float, str] | None = None
    ) -> Due:
        return await self._look(lambda tx: schedules.due(tx, now, limit, after))

    async def schedule(self, name: str) -> Schedule | None:
        return await self._look(lambda tx: schedules.one(tx, name))

    async def schedules(self, limit: int = SCHEDULES, after: str = "") -> Sequence[Schedule]:
        return await self._look(lambda tx: schedules.listed(tx, limit, after))

    async def fired_jobs(self, name: str, limit: int) -> Sequence[FiredJob]:
        return await self._look(lambda tx: schedules.fired_jobs(tx, name, limit))

    async def log(
        self, job_id: str, after: int = 0, limit: int = LOG_LINES, levels: Sequence[Level] = LEVELS
    ) -> LogPage | None:
        return await self._look(lambda tx: notes.log(tx, job_id, after, limit, levels))
