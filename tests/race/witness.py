"""What callers were answered and what handlers saw, and the check that knows nothing else."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

import msgspec
import trio
from trio.lowlevel import checkpoint

from jobpipe.engine.node import Node
from jobpipe.handlers.context import Context
from jobpipe.handlers.exceptions import Fail, Retry, Snooze
from jobpipe.handlers.registry import Handler, Registry
from jobpipe.job import ENDED, AttemptRecord, Job, NewJob, Outcome, Status, retries_of
from jobpipe.store.base import Change, Filter, Receipt, Rescued, Store

Do = Literal["done", "error", "retry", "snooze", "fail", "work", "hang"]
Step = tuple[Do, float]
"""What one run does, and the seconds that belong to it: of `hang`, those of its cleanup."""

CameTo = Literal["done", "error", "snooze", "fail", "stopped"]


class Run(msgspec.Struct, eq=False):
    """One run of the handler, as it happened."""

    id: str
    node: str
    attempt: int
    claim: int
    number: int
    """when it began, in the order of all runs"""
    ended: bool = False
    came_to: CameTo = "stopped"
    ended_while_draining: bool = False


class Faults(AssertionError):  # noqa: N818 - it tells of several
    """What the check found, each with the name of its rule."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.rules = {fault.split(":")[0] for fault in faults}


class Witness:
    """Gathers answers and runs while a scene plays, and judges them at its end."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.by_job: defaultdict[str, list[Run]] = defaultdict(list)
        self.stored: dict[str, NewJob] = {}
        self.unsure: set[str] = set()
        """ids whose enqueue was given up: stored or not"""
        self.atomic_unsure: list[tuple[str, ...]] = []
        self.refused: set[str] = set()
        self.deleted: set[str] = set()
        self.cancelled: dict[str, int] = {}
        """id -> how many runs had begun in all when its cancel was answered"""
        self.retried: Counter[str] = Counter()
        self.rescued: Counter[str] = Counter()
        self.taken_by_force: set[str] = set()
        """jobs that were rescued while their node lived and did not know: here two runs may overlap, on two nodes"""
        self.nodes: list[Node] = []
        self.faults: list[str] = []

    # What is told while the scene plays

    def add(self, jobs: Sequence[NewJob], receipts: Sequence[Receipt]) -> None:
        """An enqueue was answered."""
        for job, receipt in zip(jobs, receipts, strict=True):
            match receipt.verdict:
                case "stored":
                    if job.id in self.stored:
                        self.fault("stored twice", job.id)
                    self.stored[job.id] = job
                case "existing" | "conflict":
                    pass
                case "refused":
                    self.refused.add(job.id)

    def not_added(self, jobs: Sequence[NewJob]) -> None:
        """An enqueue was refused: nothing of it may be stored."""
        self.refused |= {job.id for job in jobs}

    def gave_up(self, jobs: Sequence[NewJob], *, atomic: bool) -> None:
        """Who enqueued was cancelled before the answer."""
        self.unsure |= {job.id for job in jobs}
        if atomic:
            self.atomic_unsure.append(tuple(job.id for job in jobs))

    def changed(self, verb: Literal["cancel", "retry", "delete"], change: Change) -> None:
        """A wish was answered."""
        if change.verdict != "changed":
            return
        match verb:
            case "cancel":
                self.cancelled.setdefault(change.id, len(self.runs))
            case "retry":
                self.retried[change.id] += 1
                self.cancelled.pop(change.id, None)
            case "delete":
                self.deleted.add(change.id)

    def told_cancelled(self, job_id: str) -> None:
        """Somebody was told that a job is cancelled: nothing of it may run any more."""
        if self.running(job_id) and job_id not in self.taken_by_force:
            self.fault("cancelled before its cleanup ended", job_id)

    def saw_rescued(self, jobs: Sequence[Rescued], *, by_force: bool = False) -> None:
        """Jobs were taken back from a node that is dead, or that was taken for dead."""
        self.rescued.update(job.id for job in jobs)
        if by_force:
            self.taken_by_force |= {job.id for job in jobs}

    def fault(self, rule: str, about: object) -> None:
        self.faults.append(f"{rule}: {about}")

    # The handler

    def registry(self, node_name: str) -> Registry:
        """The handlers of a node."""

        async def perform(payload: list[Step], context: Context) -> Any:
            return await self._perform(node_name, payload, context)

        return Registry(
            [
                Handler(
                    kind="race",
                    function=perform,
                    is_async=True,
                    takes_context=True,
                    payload_type=list[Step],
                )
            ]
        )

    def running(self, job_id: str) -> list[Run]:
        return [run for run in self.by_job[job_id] if not run.ended]

    async def _perform(self, node_name: str, payload: list[Step], context: Context) -> Any:
        run = self._begin(node_name, context)
        step, seconds = payload[min(len(self.by_job[run.id]), len(payload)) - 1]
        try:
            return await self._do(step, seconds, run)
        except (Retry, ValueError):
            run.came_to = _unless_stopped("error")
            raise
        except Snooze:
            run.came_to = _unless_stopped("snooze")
            raise
        except Fail:
            run.came_to = _unless_stopped("fail")
            raise
        finally:
            run.ended = True
            run.ended_while_draining = any(
                node.name == node_name and node.backlog.draining for node in self.nodes
            )

    def _begin(self, node_name: str, context: Context) -> Run:
        for other in self.running(context.id):
            if other.node == node_name or context.id not in self.taken_by_force:
                self.fault("ran twice at once", f"{context.id} on {other.node} and {node_name}")
        run = Run(context.id, node_name, context.attempt, context.claim, len(self.runs))
        self.runs.append(run)
        self.by_job[context.id].append(run)
        return run

    async def _do(self, step: Do, seconds: float, run: Run) -> Any:
        match step:
            case "error":
                raise ValueError("no luck")
            case "retry":
                raise Retry("once more", after=seconds)
            case "snooze":
                raise Snooze(seconds)
            case "fail":
                raise Fail("hopeless")
            case "hang":
                await _hang(seconds)
            case "work":
                await trio.sleep(seconds)
            case "done":
                await checkpoint()
        run.came_to = "done"
        return run.claim

    # The check

    async def check(self, store: Store) -> None:
        """Judge everything once all nodes have ended; raises `Faults`."""
        jobs = {job_id: job async for job_id, job in _all_jobs(store)}
        now = max(node.clock.now() for node in self.nodes)
        for held in await store.rescue("inspector", now):
            self.fault("held by nobody", held.id)
        self._existence(jobs)
        for job in jobs.values():
            self._end(job)
        for job_id, runs in self.by_job.items():
            self._order(job_id, runs)
        for job in jobs.values():
            self._attempts(job)
        await self._counts(store, jobs)
        for node in self.nodes:
            self._node(node)
        if self.faults:
            raise Faults(self.faults)

    def _existence(self, jobs: dict[str, Job]) -> None:
        for job_id in self.stored.keys() - jobs.keys() - self.deleted:
            self.fault("acknowledged and lost", job_id)
        for job_id in self.deleted & jobs.keys():
            self.fault("deleted and there", job_id)
        for job_id in jobs.keys() - self.stored.keys() - self.unsure:
            self.fault("stored though nobody was told so", job_id)
        for job_id in (self.refused - self.stored.keys() - self.unsure) & jobs.keys():
            self.fault("refused and stored", job_id)
        for ids in self.atomic_unsure:
            if len({job_id in jobs or job_id in self.deleted for job_id in ids}) > 1:
                self.fault("half of an atomic add", ids)

    def _end(self, job: Job) -> None:
        """A job ended as its last run and what was asked of it allow."""
        runs = self.by_job.get(job.id, [])
        last = runs[-1] if runs else None
        if job.status not in ENDED:
            self.fault("did not end", f"{job.id} is {job.status.value}")
        elif job.status is Status.CANCELLED:
            if job.id not in self.cancelled and not (job.id in self.unsure or self.retried[job.id]):
                self.fault("cancelled unasked", job.id)
        elif last is None:
            if not self.rescued[job.id]:
                self.fault("ended without a run", job.id)
        elif job.status is Status.DONE:
            if last.came_to != "done" or job.state.result != str(last.claim).encode():
                self.fault("not the last run's result", f"{job.id}: {job.state.result!r}, {last}")
        elif not self._may_have_failed(job, last):
            self.fault("failed without cause", f"{job.id}: {job.state.error}, {last}")
        self._no_run_after_cancel(job, runs)

    def _may_have_failed(self, job: Job, last: Run) -> bool:
        spent, rescued = job.state.attempt > retries_of(job.asked.max_retries), bool(self.rescued[job.id])
        if rescued and (spent or job.asked.options.on_crash == "fail"):
            return True
        return last.came_to == "fail" or (spent and last.came_to != "done")

    def _no_run_after_cancel(self, job: Job, runs: list[Run]) -> None:
        answered_at = self.cancelled.get(job.id, math.inf)
        excused = self.retried[job.id] or job.id in self.taken_by_force
        if any(run.number >= answered_at for run in runs) and not excused:
            self.fault("ran though its cancel was answered", job.id)

    def _order(self, job_id: str, runs: list[Run]) -> None:
        """Claim numbers grow, attempts go up by one a claim at the most, and nothing that came to an end runs again."""
        retries, rescues = self.retried[job_id], self.rescued[job_id]
        for before, after in pairwise(runs):
            if after.claim <= before.claim:
                self.fault("claim number not grown", f"{before}, {after}")
            counted = before.attempt + (before.came_to in {"done", "error", "fail"})
            allowed = {counted}
            if before.came_to == "stopped" or rescues:
                allowed |= {before.attempt, before.attempt + 1}
            # A start is stored before its handler runs where a job was rescued: each such claim may have counted.
            without_run = min(after.claim - before.claim - 1, rescues)
            allowed |= set(range(max(allowed), max(allowed) + without_run + 1))
            if after.attempt not in allowed or before.came_to in {"done", "fail"}:
                if after.attempt == 1 and retries:
                    retries -= 1
                elif before.came_to in {"done", "fail"} and not rescues:
                    self.fault("ran again though it had ended", f"{before}, {after}")
                elif after.attempt not in allowed:
                    self.fault("attempts do not add up", f"{before}, {after}")

    def _attempts(self, job: Job) -> None:
        """What is kept of a job's attempts matches what its handler saw."""
        runs = {run.claim: run for run in self.by_job.get(job.id, [])}
        claims = [record.claim for record in job.attempts]
        if claims != sorted(set(claims)):
            self.fault("attempts out of order", f"{job.id}: {claims}")
        for record in job.attempts:
            run = runs.get(record.claim)
            fits = run is not None and run.attempt == record.number and _fits(record, run)
            # A rescued or an `on_crash: fail` job has its start stored before its handler runs: it may never have.
            taken_back = record.outcome in {Outcome.INTERRUPTED, Outcome.CANCELLED}
            if not fits and not (self.rescued[job.id] and (run or taken_back)):
                self.fault("an attempt that was none", f"{job.id}: {record}, {run}")
        if runs and job.state.claim < max(runs):
            self.fault("claim number not grown", job.id)
        last = self.by_job[job.id][-1] if runs else None
        ended = job.status in {Status.DONE, Status.FAILED}
        if (
            last is not None
            and ended
            and job.state.attempt - last.attempt not in {0, int(self.rescued[job.id] > 0)}
        ):
            self.fault("attempts do not add up", f"{job.id}: {job.state.attempt}, {last}")
        if last is None and job.state.attempt and not self.rescued[job.id]:
            self.fault("attempts do not add up", f"{job.id}: {job.state.attempt} and no run")
        if not self.rescued[job.id]:
            counted = {run.claim for run in runs.values() if run.came_to != "stopped"}
            if missing := counted - set(claims):
                self.fault("attempts do not add up", f"{job.id}: no record of {missing}")

    async def _counts(self, store: Store, jobs: dict[str, Job]) -> None:
        shown = {queue.name: queue.counts for queue in await store.queues()}
        real: defaultdict[str, Counter[Status]] = defaultdict(Counter)
        for job in jobs.values():
            real[job.asked.queue][job.status] += 1
        for name in shown.keys() | real.keys():
            if shown.get(name, {}) != real[name]:
                self.fault("counts differ from rows", f"{name}: {shown.get(name)} and {real[name]}")

    def _node(self, node: Node) -> None:
        if node.phase != "stopped":
            return  # it crashed
        if left := [attempt.job.id for attempt in node.held]:
            self.fault("held by a node that ended", left)
        account = node.account()
        finished = sum(
            run.node == node.name and run.ended_while_draining and run.came_to != "stopped"
            for run in self.runs
        )
        stopped = sum(
            run.node == node.name and run.ended_while_draining and run.came_to == "stopped"
            for run in self.runs
        )
        told = account["finished"], account["handed_back"]
        if not (isinstance(told[0], int) and finished <= told[0] <= finished + stopped) or not (
            isinstance(told[1], int) and told[0] + told[1] >= finished + stopped
        ):
            self.fault("the account does not add up", f"{account}, {finished} finished, {stopped} stopped")

    def open_jobs(self) -> Iterator[str]:
        """The ids of the jobs that are, or may be, in the store."""
        yield from (self.stored.keys() | self.unsure) - self.deleted


def _unless_stopped(came_to: CameTo) -> CameTo:
    """What a handler raises in the very step in which it is stopped counts as its cleanup's: the job runs again."""
    return "stopped" if trio.current_effective_deadline() == -math.inf else came_to


def _fits(record: AttemptRecord, run: Run) -> bool:
    match record.outcome:
        case Outcome.DONE:
            return run.came_to == "done"
        case Outcome.SNOOZE:
            return run.came_to == "snooze"
        case Outcome.FAIL:
            return run.came_to in {"fail", "error", "stopped"}
        case Outcome.RETRY:
            return run.came_to in {"error", "stopped"}
        case Outcome.CANCELLED | Outcome.INTERRUPTED:
            return run.came_to == "stopped"
        case None:
            return False


async def _all_jobs(store: Store) -> Any:
    """Every job with its attempts, by way of the list."""
    before = None
    while True:
        page = await store.jobs(Filter(), 100, before)
        for listed in page.jobs:
            job = await store.get(listed.id)
            assert job is not None
            assert job.status is listed.status
            yield job.id, job
        if page.next_before is None:
            return
        before = page.next_before


async def _hang(cleanup: float) -> None:
    """Never end; when cancelled, let a child task clean up for so many seconds."""

    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(cleanup)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)
