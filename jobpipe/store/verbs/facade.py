"""The verbs of the contract that are written once: each is carried out as one transaction."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Container, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from jobpipe.acts import By
from jobpipe.job import LEVELS, Job, Level, NewJob, Status
from jobpipe.lanes import KeySettings, KeyStanding, Limits
from jobpipe.obstacles import Check, Obstacle
from jobpipe.schedules import Declaration, Firing, Schedule, Spec
from jobpipe.store.base import (
    AUDIT,
    ERRORS,
    EVER,
    KEYS,
    LOG_LINES,
    NODES,
    OPERATIONS,
    SCHEDULES,
    STEP,
    Account,
    AuditFilter,
    AuditPage,
    AuditPlace,
    Batch,
    Change,
    Changed,
    Declared,
    Due,
    EndPlace,
    Ends,
    ErrorGroup,
    ErrorGroups,
    ErrorPlace,
    Fired,
    FiredJob,
    Followed,
    GateState,
    GroupReceipt,
    GroupState,
    KeyState,
    LogPage,
    NewGroup,
    NewOperation,
    NodePlace,
    NodeState,
    OpenDependencies,
    Operation,
    QueueChange,
    QueueSettings,
    Receipt,
    Rescued,
    Retention,
    ScheduleDeletion,
    SchedulePut,
    Slice,
    Sliced,
    Summary,
    TakenOperation,
    Window,
)
from jobpipe.store.verbs import (
    accounts,
    audit,
    declarations,
    dependencies,
    errors,
    followers,
    groups,
    jobs,
    keeping,
    lanes,
    nodes,
    notes,
    obstacles,
    operations,
    queues,
    retention,
    schedules,
    sidelining,
    summaries,
)
from jobpipe.store.verbs.audit import Noun
from jobpipe.store.verbs.transaction import Transaction

R = TypeVar("R")

NOTHING_DECLARED = Declared()
NO_OPERATION = TakenOperation(None)


TOLD = 10_000
"""How many changes are kept until `follow` tells them; of more, the first are forgotten."""


class SharedVerbs(ABC):
    """See `jobpipe.store.base` for what each verb promises. A subclass says how a transaction is carried out."""

    def __init__(self) -> None:
        self._followed = deque[Changed](maxlen=TOLD)
        self.following = False
        self._swept = ("", "")

    @abstractmethod
    async def _transact(
        self, verb: Callable[[Transaction], Coroutine[Any, Any, R]], *, repeatable: bool = False
    ) -> R:
        """Carry out a verb in a transaction: whole, or not at all.

        One that is `repeatable` may be carried out twice, where nobody knows whether the first time was committed.
        """

    @abstractmethod
    async def _look(self, verb: Callable[[Transaction], Coroutine[Any, Any, R]]) -> R:
        """Carry out a verb that only reads, all from one state of the database. Never waits for a writer."""

    async def _carry_out(
        self,
        verb: Callable[[Transaction], Coroutine[Any, Any, R]],
        now: float | None = None,
        *,
        repeatable: bool = False,
    ) -> R:
        """Carry out a verb with all that follows the ends of jobs in it; `now`: None for a verb that ends none."""
        result, followed = await self._transact(
            lambda tx: followers.carried_out(verb, tx, now), repeatable=repeatable
        )
        self._followed += followed.changes
        self.following |= followed.more or bool(followed.changes)
        return result

    async def follow(self, now: float) -> Followed:
        self.following = False
        followed = await self._transact(lambda tx: followers.follow(tx, now))
        changes = [*self._followed, *followed.changes]
        self._followed.clear()
        self.following |= followed.more
        return Followed(changes, followed.more)

    async def add_dependents(
        self, jobs: Sequence[NewJob], *, atomic: bool, strict: bool = False
    ) -> Sequence[Receipt]:
        return await self._carry_out(lambda tx: dependencies.add(tx, jobs, atomic=atomic, strict=strict))

    async def add_by_hand(self, job: NewJob, by: By) -> Receipt:
        async def add(tx: Transaction) -> Receipt:
            (receipt,) = await dependencies.add(tx, [job], atomic=True)
            audit.enqueued(tx, by, job, receipt)
            return receipt

        return await self._carry_out(add)

    async def summaries(self, ids: Sequence[str]) -> Sequence[Summary]:
        return await self._look(lambda tx: summaries.of_jobs(tx, ids))

    async def ends(self, status: Status, after: EndPlace, limit: int, known: Container[EndPlace]) -> Ends:
        return await self._look(lambda tx: summaries.ends(tx, status, after, limit, known))

    async def open_dependencies(self, job_id: str, limit: int) -> OpenDependencies:
        return await self._look(lambda tx: groups.still_open(tx, job_id, limit))

    async def obstacle(self, job: Job, now: float) -> Obstacle | None:
        return await self._look(lambda tx: obstacles.first(tx, job, now))

    async def checks(self, job: Job, now: float) -> Sequence[Check] | None:
        return await self._look(lambda tx: obstacles.every(tx, job, now))

    async def add_group(self, new: NewGroup, now: float) -> GroupReceipt:
        return await self._carry_out(lambda tx: groups.add(tx, new, now))

    async def close_group(self, group_id: str, now: float, *, by: By | None = None) -> GroupState | None:
        async def close(tx: Transaction) -> None:
            await groups.close(tx, group_id, now)
            audit.closed(tx, by, group_id)

        await self._carry_out(close, now, repeatable=True)
        return await self.group(group_id)

    async def group(self, group_id: str) -> GroupState | None:
        return await self._look(lambda tx: groups.state(tx, group_id))

    async def rescue(self, node: str, now: float) -> Sequence[Rescued]:
        return await self._carry_out(lambda tx: nodes.rescue(tx, node, now), now)

    async def note_draining(self, node: str) -> None:
        await self._carry_out(lambda tx: accounts.draining(tx, node), repeatable=True)

    async def note_account(self, account: Account) -> None:
        await self._carry_out(lambda tx: accounts.put(tx, account), repeatable=True)

    async def nodes(self, limit: int = NODES, after: NodePlace | None = None) -> Sequence[NodeState]:
        return await self._look(lambda tx: accounts.states(tx, limit, after))

    async def node(self, name: str) -> NodeState | None:
        return await self._look(lambda tx: accounts.state(tx, name))

    async def accounts(self, node: str) -> Sequence[Account]:
        return await self._look(lambda tx: accounts.listed(tx, node))

    async def prune(self, now: float, retained: Retention) -> int:
        deleted = await self._carry_out(lambda tx: retention.prune(tx, now, retained), now)
        if deleted < STEP:
            self._swept = await self._carry_out(lambda tx: lanes.sweep(tx, now, self._swept), repeatable=True)
        return deleted

    async def note_kept(self, now: float, retained: Retention) -> bool:
        if not await self._look(keeping.any_keeping):
            return False
        return await self._carry_out(lambda tx: keeping.note(tx, now, retained), repeatable=True)

    async def forget_audit(self, until: float) -> int:
        if not await self._look(lambda tx: audit.any_before(tx, until)):
            return 0
        return await self._carry_out(lambda tx: audit.forget(tx, until), repeatable=True)

    async def sideline(self, batch: Batch, words: str) -> str | None:
        return await self._carry_out(lambda tx: sidelining.sideline(tx, batch, words), batch.now)

    async def cancel(self, ids: Sequence[str], now: float, *, by: By | None = None) -> Sequence[Change]:
        return await self._carry_out(audit.of_jobs(by, "cancel", lambda tx: jobs.cancel(tx, ids, now)), now)

    async def retry(self, ids: Sequence[str], now: float, *, by: By | None = None) -> Sequence[Change]:
        return await self._carry_out(audit.of_jobs(by, "retry", lambda tx: groups.retry(tx, ids, now)))

    async def promote(self, ids: Sequence[str], now: float, *, by: By | None = None) -> Sequence[Change]:
        return await self._carry_out(audit.of_jobs(by, "promote", lambda tx: jobs.promote(tx, ids, now)))

    async def edit(
        self, ids: Sequence[str], edits: Mapping[str, Any], now: float, *, by: By | None = None
    ) -> Sequence[Change]:
        return await self._carry_out(audit.of_jobs(by, "edit", lambda tx: jobs.edit(tx, ids, edits, now)))

    async def delete(self, ids: Sequence[str], now: float, *, by: By | None = None) -> Sequence[Change]:
        return await self._carry_out(audit.of_jobs(by, "delete", lambda tx: jobs.delete(tx, ids, now)), now)

    async def pause(
        self, queue: str, reason: str | None = None, until: float | None = None, *, by: By | None = None
    ) -> None:
        await self._carry_out(
            audit.around(
                by, "pause", Noun("queue", queue), lambda tx: queues.pause(tx, queue, reason, until)
            ),
            repeatable=True,
        )

    async def resume(self, queue: str, *, by: By | None = None) -> None:
        await self._carry_out(
            audit.around(by, "resume", Noun("queue", queue), lambda tx: queues.resume(tx, queue)),
            repeatable=True,
        )

    async def put_queue(
        self, queue: str, settings: QueueSettings, limits: Limits | None = None, *, by: By | None = None
    ) -> None:
        async def put(tx: Transaction) -> None:
            await queues.put(tx, queue, settings)
            if limits is not None:
                await lanes.put_limits(tx, queue, limits)

        await self._carry_out(audit.around(by, "put", Noun("queue", queue), put), repeatable=True)

    async def delete_queue(self, queue: str, *, by: By | None = None) -> QueueChange:
        return await self._carry_out(audit.of_deletion(by, queue, lambda tx: queues.delete(tx, queue)))

    async def begin_operation(
        self, operation: NewOperation, now: float, *, by: By | None = None
    ) -> Operation:
        async def begin(tx: Transaction) -> Operation:
            audit.begun(tx, by, operation)
            return await operations.begin(tx, operation, now)

        return await self._carry_out(begin)

    async def stop_operation(self, operation: str, now: float, *, by: By | None = None) -> Operation | None:
        stop = audit.around(
            by, "stop", Noun("operation", operation), lambda tx: operations.stop(tx, operation, now)
        )

        async def stopped(tx: Transaction) -> Operation | None:
            return audit.counted(tx, await stop(tx))

        return await self._carry_out(stopped, repeatable=True)

    async def take_operation(self, node: str, now: float, until: float) -> TakenOperation:
        if not await self._look(operations.any_running):
            return NO_OPERATION
        return await self._carry_out(lambda tx: operations.take(tx, node, now, until), repeatable=True)

    async def slice(self, part: Slice, node: str, now: float, until: float) -> Sliced:
        async def sliced(tx: Transaction) -> Sliced:
            done = await operations.sliced(tx, part, node, now, until)
            audit.counted(tx, done.operation)
            return done

        return await self._carry_out(sliced, now)

    async def operation(self, operation: str) -> Operation | None:
        return await self._look(lambda tx: operations.one(tx, operation))

    async def operations(
        self, limit: int = OPERATIONS, before: tuple[float, str] | None = None
    ) -> Sequence[Operation]:
        return await self._look(lambda tx: operations.listed(tx, limit, before))

    async def audit(
        self, where: AuditFilter, limit: int = AUDIT, before: AuditPlace | None = None
    ) -> AuditPage:
        return await self._look(lambda tx: audit.listed(tx, where, limit, before))

    async def error_groups(
        self, limit: int = ERRORS, before: ErrorPlace | None = None, window: Window = EVER
    ) -> ErrorGroups:
        return await self._look(lambda tx: errors.listed(tx, limit, before, window))

    async def error_group(self, fingerprint: str, window: Window = EVER) -> ErrorGroup | None:
        return await self._look(lambda tx: errors.one(tx, fingerprint, window))

    async def put_limits(self, queue: str, limits: Limits) -> None:
        await self._carry_out(lambda tx: lanes.put_limits(tx, queue, limits), repeatable=True)

    async def put_key(self, queue: str, key: str, settings: KeySettings, *, by: By | None = None) -> KeyState:
        return await self._carry_out(
            audit.around(
                by, "put", Noun("key", queue, key), lambda tx: lanes.put_key(tx, queue, key, settings)
            ),
            repeatable=True,
        )

    async def pause_key(self, queue: str, key: str, *, by: By | None = None) -> KeyState:
        return await self._carry_out(
            audit.around(by, "pause", Noun("key", queue, key), lambda tx: lanes.pause_key(tx, queue, key)),
            repeatable=True,
        )

    async def resume_key(self, queue: str, key: str, *, by: By | None = None) -> KeyState:
        return await self._carry_out(
            audit.around(by, "resume", Noun("key", queue, key), lambda tx: lanes.resume_key(tx, queue, key)),
            repeatable=True,
        )

    async def gate(self, queue: str, now: float) -> GateState | None:
        return await self._look(lambda tx: lanes.gate(tx, queue, now))

    async def keys(
        self, queue: str, limit: int = KEYS, after: str | None = None, state: KeyStanding | None = None
    ) -> Sequence[KeyState]:
        return await self._look(lambda tx: lanes.listed(tx, queue, limit, after, state))

    async def key(self, queue: str, key: str) -> KeyState:
        return await self._look(lambda tx: lanes.one(tx, queue, key))

    async def put_schedule(
        self, name: str, spec: Spec, job: NewJob, now: float, *, by: By | None = None
    ) -> SchedulePut:
        return await self._carry_out(
            audit.around(
                by, "put", Noun("schedule", name), lambda tx: schedules.put(tx, name, spec, job, now)
            )
        )

    async def pause_schedule(self, name: str, reason: str | None, *, by: By | None = None) -> Schedule | None:
        return await self._carry_out(
            audit.around(by, "pause", Noun("schedule", name), lambda tx: schedules.pause(tx, name, reason)),
            repeatable=True,
        )

    async def resume_schedule(self, name: str, now: float, *, by: By | None = None) -> Schedule | None:
        return await self._carry_out(
            audit.around(by, "resume", Noun("schedule", name), lambda tx: schedules.resume(tx, name, now))
        )

    async def delete_schedule(self, name: str, *, by: By | None = None) -> ScheduleDeletion:
        return await self._carry_out(
            audit.around(by, "delete", Noun("schedule", name), lambda tx: schedules.delete(tx, name))
        )

    async def fire(self, firings: Sequence[Firing], now: float) -> Fired:
        return await self._carry_out(lambda tx: schedules.fire(tx, firings, now), now)

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
