"""What the pages are made of, read from a node and its store through the same calls that the API makes.

Whatever the store does not tell is None, and a page says so; only what a page is about raises.
"""

from collections.abc import Mapping, Sequence

import msgspec
import trio
from msgspec.structs import replace

from jobpipe.api.filters import filter_from
from jobpipe.api.holding import found
from jobpipe.api.joblog import page_of
from jobpipe.api.schemas import LogQuery, LogView, WaitsFor, stored_view
from jobpipe.api.waits import waits_of
from jobpipe.dashboard.search import Search
from jobpipe.engine.attempt import Attempt
from jobpipe.engine.attention import Late, Lingers, Seen
from jobpipe.engine.node import Node
from jobpipe.errors import StoreError
from jobpipe.job import Job, JobError, Status
from jobpipe.store.base import ErrorGroup, Filter, GateState, Page, Place, QueueState

PAGE = 50
"""The most jobs of one page."""

QUEUES = 50
"""The most queues on the overview."""

GATES = 20
"""Of how many queues with ready jobs the overview asks what they allow."""

ERRORS = 10
"""How many error groups, those that failed last, are looked through for new ones."""

ERRORS_FOR = 10.0
"""Seconds for which what was found there is good enough: that question costs more than the others."""

SCHEDULES = 10
"""How many schedules that are due are looked at for late ones."""

PATIENCE = 0.08
"""Seconds for which a page of jobs is looked for that has none so far."""

LINES = 100
"""The most lines of a log on a job's page: the newest."""


class Busy(msgspec.Struct, frozen=True):
    """An attempt that a worker of this node runs."""

    job_id: str
    kind: str
    started_at: float | None
    ignores: str
    """why it should have ended; empty: it may run"""


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """What the overview is about."""

    seen: Seen
    known: bool
    """whether the store has told"""
    busy: Sequence[Busy]
    workers: int
    more_queues: bool
    gates: Mapping[str, GateState]


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A page of jobs, and what there is of each status; None: nobody keeps count of that."""

    page: Page
    counts: Mapping[Status, int] | None


class OfJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job with what it waits for, its log, and how long an attempt of it may take."""

    job: Job
    error: JobError | None
    """its error, which also says what of its row is damaged"""
    waits: WaitsFor | None
    log: LogView
    timeout: float | None
    max_retries: int


class Facts:
    """Asks a node. One that many pages share, so that dear questions are asked once for all of them."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._errors: Sequence[ErrorGroup] = ()
        self._ask_again = -ERRORS_FOR

    async def overview(self) -> Overview:
        """All that the overview needs. Never raises `StoreError`: then the store is what needs somebody."""
        node = self._node
        now = node.clock.now()
        seen = Seen(
            now=now,
            phase=node.phase,
            store=node.ledger.trouble,
            watchdog=node.watchdog.trouble(),
            listener=node.listener.trouble(),
            lingering=[_lingers(one, now) for one in node.lingering.attempts()],
            max_backlog=node.settings.max_backlog,
        )
        queues: Sequence[QueueState] = ()
        gates: Mapping[str, GateState] = {}
        try:
            overview = await node.store.overview(node.registry.served)
            queues = await node.store.queues(QUEUES + 1)
            gates = await self._gates(queues[:QUEUES], now)
            seen = replace(
                seen,
                counts=overview.counts,
                queues=queues[:QUEUES],
                served=await node.store.served_queues(),
                unserved=await node.served.unserved(),
                errors=await self._new_errors(),
                late=await self._late(now),
            )
            known = True
        except StoreError as error:
            seen, known = replace(seen, store=seen.store or str(error)), False
        return Overview(
            seen=seen,
            known=known,
            busy=self._busy(now),
            workers=node.settings.workers,
            more_queues=len(queues) > QUEUES,
            gates=gates,
        )

    async def _gates(self, queues: Sequence[QueueState], now: float) -> Mapping[str, GateState]:
        ready = [queue.name for queue in queues if queue.counts.get(Status.QUEUED)]
        found = {name: await self._node.store.gate(name, now) for name in ready[:GATES]}
        return {name: gate for name, gate in found.items() if gate is not None}

    async def _new_errors(self) -> Sequence[ErrorGroup]:
        if trio.current_time() >= self._ask_again:
            self._ask_again = trio.current_time() + ERRORS_FOR
            self._errors = (await self._node.store.error_groups(ERRORS)).groups
        return self._errors

    async def _late(self, now: float) -> Sequence[Late]:
        due = await self._node.store.due_schedules(now, SCHEDULES)
        return [Late(one.name, one.next_at) for one in due.schedules if one.next_at is not None]

    def _busy(self, now: float) -> Sequence[Busy]:
        late = {one.job_id for one in (_lingers(one, now) for one in self._node.lingering.attempts())}
        running = self._node.held.running
        return [
            Busy(one.job.id, one.job.kind, one.started_at, (one.reason or "timeout") * (one.job.id in late))
            for one in running
        ]

    async def jobs(self, search: Search, before: Place | None) -> Listed:
        """A page of the jobs that a search means, which must be sound. Raises `StoreError`.

        While none is found it looks further, for `PATIENCE` seconds.
        """
        assert search.filter is not None  # noqa: S101 - nobody asks with a search that is wrong
        where = filter_from(search.filter, content=False)
        deadline = trio.current_time() + PATIENCE
        page = await self._node.store.jobs(where, PAGE, before)
        while not page.jobs and page.next_before is not None and trio.current_time() < deadline:
            page = await self._node.store.jobs(where, PAGE, page.next_before)
        return Listed(page=page, counts=await self.counts(search))

    async def counts(self, search: Search) -> Mapping[Status, int] | None:
        """How many jobs there are of each status, where the store keeps count. Raises `StoreError`."""
        if not search.by_counts:
            return None
        queues = search.values("queue")
        if not queues:
            return (await self._node.store.overview(self._node.registry.served)).counts
        queue = await self._node.store.queue(queues[0])
        return {} if queue is None else queue.counts

    async def some(self, ids: Sequence[str]) -> Sequence[Job]:
        """Those jobs, as they are in a list. Raises `StoreError`."""
        if not ids:
            return ()
        return (await self._node.store.jobs(Filter(id=tuple(ids), content=False), len(ids), None)).jobs

    async def newer(self, search: Search, than: float) -> int:
        """How many of the newest jobs that a search means were created after a time. Raises `StoreError`."""
        if search.filter is None:
            return 0
        page = await self._node.store.jobs(filter_from(search.filter, content=False), PAGE, None)
        return sum(job.asked.created_at > than for job in page.jobs)

    async def job(self, job_id: str) -> OfJob:
        """One job. Raises `Problem` where there is none, or `StoreError`."""
        node = self._node
        job = await found(node, job_id)
        handler = node.registry.find(job.asked.kind)
        tail = LogQuery(after=max(0, await self._last_line(job_id) - LINES), limit=LINES)
        return OfJob(
            job=job,
            error=stored_view(job, node.registry, attempts=False).error,
            waits=await waits_of(node, job),
            log=await page_of(node, job_id, tail),
            timeout=job.asked.options.timeout or (None if handler is None else handler.timeout),
            max_retries=node.registry.max_retries(job.asked.kind)
            if job.asked.max_retries is None
            else job.asked.max_retries,
        )

    async def _last_line(self, job_id: str) -> int:
        page = await self._node.store.log(job_id, 0, 1)
        return 0 if page is None else page.last


def _lingers(attempt: Attempt, now: float) -> Lingers:
    return Lingers(
        attempt.job.id, attempt.job.kind, attempt.reason or "timeout", now - max(0.0, attempt.lingers())
    )
