"""Where new jobs come from: made with their defaults, and stored unless they come too late to run."""

import graphlib
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from jobpipe.acts import By
from jobpipe.clock import Clock
from jobpipe.engine.backlog import Backlog
from jobpipe.job import (
    DEFAULT_KIND,
    DEFAULT_QUEUE,
    NO_OPTIONS,
    Backoff,
    Debounce,
    Needs,
    NewJob,
    Options,
    Throttle,
    Unique,
    new_job_id,
)
from jobpipe.store.base import GroupReceipt, NewGroup, ReadStore, Receipt
from jobpipe.store.rows import compared

LATE, REFUSED = Receipt("late"), Receipt("refused")


class Admission:
    """Makes jobs and stores them, for every part of the program that has jobs to run."""

    def __init__(
        self, backlog: Backlog, store: ReadStore, clock: Clock, random_bits: Callable[[int], int]
    ) -> None:
        self._backlog, self._store, self._clock, self._random_bits = backlog, store, clock, random_bits

    def new_job(  # noqa: PLR0913 - what can be asked of a job; each caller names what it asks
        self,
        payload: bytes,
        *,
        job_id: str | None = None,
        kind: str = DEFAULT_KIND,
        queue: str = DEFAULT_QUEUE,
        priority: int = 0,
        max_retries: int | None = None,
        delay: float | None = None,
        run_at: float | None = None,
        expires_at: float | None = None,
        timeout: float | None = None,
        backoff: Backoff | None = None,
        on_crash: Literal["retry", "fail"] = "retry",
        tags: Sequence[str] = (),
        key: str | None = None,
        depends_on: Sequence[str] = (),
        needs: Needs = "done",
        deadline: float | None = None,
        unique: Unique | None = None,
        throttle: Throttle | None = None,
        debounce: Debounce | None = None,
        group: str | None = None,
        callback_of: str | None = None,
        parent: str | None = None,
    ) -> NewJob:
        """Make a job, even one that expires before it could start. Does not check the values.

        Takes what `EnqueueRequest` takes, with `payload` as JSON, times in seconds since the epoch, durations in
        seconds. Without an id the job gets a new one; without `delay` and `run_at` it is to run now, as with a
        `run_at` in the past, or once nobody has asked for the same for a while (`debounce`). Tags and ids given twice
        are kept once.
        """
        now = start = self._clock.now()
        options = NO_OPTIONS
        if delay is not None:
            start = round(now + delay, 3)
        elif run_at is not None:
            start = max(now, run_at)
        elif debounce is not None:
            start = round(now + debounce.wait, 3)
        merging = unique or throttle or debounce
        if (
            tags
            or depends_on
            or on_crash != "retry"
            or (timeout, backoff, delay, run_at, deadline, key) != (None,) * 6
            or (merging, group, callback_of, parent) != (None,) * 4
        ):
            options = Options(
                timeout=timeout,
                backoff=backoff,
                on_crash=on_crash,
                tags=tuple(dict.fromkeys(tags)),
                delay=delay,
                run_at=run_at,
                depends_on=tuple(dict.fromkeys(depends_on)),
                needs=needs,
                deadline=deadline,
                key=key,
                unique=unique,
                throttle=throttle,
                debounce=debounce,
                group=group,
                callback_of=callback_of,
                parent=parent,
            )
        return NewJob(
            id=job_id or new_job_id(now, self._random_bits),
            kind=kind,
            queue=queue,
            payload=payload,
            priority=priority,
            max_retries=max_retries,
            created_at=now,
            run_at=start,
            expires_at=deadline if expires_at is None else expires_at,
            options=options,
        )

    def plain_job(
        self,
        payload: bytes,
        job_id: str | None,
        kind: str,
        queue: str,
        priority: int,
        max_retries: int | None,
    ) -> NewJob:
        """The same for a job of which nothing else is asked."""
        now = self._clock.now()
        return NewJob(
            id=job_id or new_job_id(now, self._random_bits),
            kind=kind,
            queue=queue,
            payload=payload,
            priority=priority,
            max_retries=max_retries,
            created_at=now,
            run_at=now,
        )

    def new_id(self) -> str:
        """An id that nothing else has."""
        return new_job_id(self._clock.now(), self._random_bits)

    async def enqueue(
        self, jobs: Sequence[NewJob], *, atomic: bool = False, of_handler: bool = False
    ) -> Sequence[Receipt]:
        """Store jobs, and return a receipt for each once they survive a crash.

        A job that expires before it could start is not stored. Its receipt is `late`; or, where an earlier request
        stored a job with its id, `existing` or `conflict`: that request was in time, and may be repeated. With
        `atomic`, all other jobs are `refused` when the receipt of such a job is `late` or `conflict`.

        A job that depends on others may stand anywhere among `jobs` where they are `atomic`; else behind those of them
        that it depends on. What becomes of one that is merged with others, its receipt says. Those `of_handler` that
        are `atomic` are all refused where one of them has to have a key that is taken.

        Raises `Draining` and `QueueFull`, unless they are `of_handler`, or `StoreUnavailable`; then nothing was stored.
        A cancel leaves either all of them stored or none.
        """
        if not any(map(_is_special, jobs)):
            return await self._backlog.enqueue(jobs, atomic=atomic, of_handler=of_handler) if jobs else ()
        late = {place: await self._late(new) for place, new in enumerate(jobs) if is_late(new)}
        timely = [new for new in jobs if not is_late(new)]
        if atomic and any(receipt.verdict != "existing" for receipt in late.values()):
            stored: Sequence[Receipt] = [REFUSED] * len(timely)
        else:
            stored = await self._stored(timely, atomic=atomic, of_handler=of_handler) if timely else ()
        others = iter(stored)
        return [late[place] if place in late else next(others) for place in range(len(jobs))]

    async def enqueue_by_hand(self, new: NewJob, by: By | None) -> Receipt:
        """Store one job, as `enqueue` does, with a row in the audit that says who did it. None: without."""
        if by is None or is_late(new):
            (receipt,) = await self.enqueue([new])
            return receipt
        return await self._backlog.enqueue_by_hand(new, by)

    async def _stored(self, jobs: Sequence[NewJob], *, atomic: bool, of_handler: bool) -> Sequence[Receipt]:
        """Store jobs of which some may depend on others, be merged with others, or come of one."""
        if not any(map(_is_judged, jobs)):
            return await self._backlog.enqueue(jobs, atomic=atomic, of_handler=of_handler)
        if atomic:
            return await self._stored_in_order(jobs, of_handler=of_handler)
        # All others go with those of the node; one may be what another depends on.
        plain = [new for new in jobs if not _is_judged(new)]
        first = iter(await self._backlog.enqueue(plain, of_handler=of_handler) if plain else ())
        rest = [new for new in jobs if _is_judged(new)]
        then = iter(await self._backlog.enqueue_dependents(rest, atomic=False, of_handler=of_handler))
        return [next(then if _is_judged(new) else first) for new in jobs]

    async def _stored_in_order(self, jobs: Sequence[NewJob], *, of_handler: bool) -> Sequence[Receipt]:
        """Store all or none, each behind those that it depends on."""
        try:
            order = in_order(jobs)
        except graphlib.CycleError as error:
            cycle: Sequence[str] = error.args[1]
            refused = Receipt("dependency_cycle", dependencies=cycle)
            return [refused if new.id in cycle else REFUSED for new in jobs]
        receipts = await self._backlog.enqueue_dependents(
            [jobs[place] for place in order], atomic=True, of_handler=of_handler
        )
        by_place = dict(zip(order, receipts, strict=True))
        return [by_place[place] for place in range(len(jobs))]

    async def enqueue_group(self, new: NewGroup) -> GroupReceipt:
        """Store a group with its jobs, which may depend on one another, in any order; or nothing of it.

        None of them expires before it could start. Raises as `enqueue`.
        """
        try:
            order = in_order(new.jobs)
        except graphlib.CycleError as error:
            cycle: Sequence[str] = error.args[1]
            refused = Receipt("dependency_cycle", dependencies=cycle)
            return GroupReceipt("refused", [refused if job.id in cycle else REFUSED for job in new.every])
        ordered = msgspec.structs.replace(new, jobs=[new.jobs[place] for place in order])
        receipt = await self._backlog.enqueue_group(ordered, self._clock.now())
        by_place = dict(zip([*order, len(order)], receipt.receipts, strict=False))
        return msgspec.structs.replace(receipt, receipts=[by_place[place] for place in sorted(by_place)])

    async def _late(self, new: NewJob) -> Receipt:
        job = await self._store.get(new.id)
        return LATE if job is None else compared(new, job)


def _is_special(new: NewJob) -> bool:
    """Whether a job cannot simply be handed to the ledger: it is late, or what becomes of it depends on others."""
    return (new.expires_at is not None and new.expires_at <= new.run_at) or (
        new.options is not NO_OPTIONS and _is_judged(new)  # mostly there are none, and a call saved
    )


def _is_judged(new: NewJob) -> bool:
    """Whether it depends on others how a job is stored.

    It waits for some jobs, is merged with some, belongs to a group with some, or comes of one.
    """
    options = new.options
    return (
        bool(options.depends_on)
        or options.merging is not None
        or options.parent is not None
        or options.group is not None
    )


def in_order(jobs: Sequence[NewJob]) -> Sequence[int]:
    """The places of jobs, each behind those that it depends on, else as they come.

    Raises `graphlib.CycleError`, with the ids of a cycle.
    """
    places: dict[str, list[int]] = {}
    for place, new in enumerate(jobs):
        places.setdefault(new.id, []).append(place)
    graph = graphlib.TopologicalSorter[str]()
    for job_id in places:
        graph.add(job_id)
    for new in jobs:
        graph.add(new.id, *(one for one in new.options.depends_on if one in places))
    return [place for job_id in graph.static_order() for place in places[job_id]]


def is_late(new: NewJob) -> bool:
    """Whether a job expires before it could start."""
    return new.expires_at is not None and new.expires_at <= new.run_at
