"""New jobs: stored, or compared with those that have their ids already."""

import functools
from collections.abc import Sequence
from typing import Any

from jobpipe.job import Job, NewJob, State
from jobpipe.store.base import STORED, Add, Receipt
from jobpipe.store.postgres.arrays import binaries, floats, integers, texts
from jobpipe.store.postgres.counts import counting
from jobpipe.store.postgres.lanes import ASKED_KEY, LANE_KEY, TOLD
from jobpipe.store.postgres.reader import several
from jobpipe.store.postgres.session import Result, Session
from jobpipe.store.rows import compared, encoded_options

_NEW = """
new as (
    insert into jobs
    (id, kind, queue, priority, run_at, max_retries, created_at, expires_at, options, payload)
    select id, kind, queue, priority, run_at, max_retries, created_at, expires_at, options, payload
    from unnest(
        %(ids)s, %(kinds)s, %(queues)s, %(priorities)s, %(run_at)s,
        %(max_retries)s, %(created_at)s, %(expires_at)s, %(options)s, %(payloads)s
    ) with ordinality as v (
        id, kind, queue, priority, run_at,
        max_retries, created_at, expires_at, options, payload, n
    )
    where v.queue <> all (array(select name from queues where closed = 1))
    order by n
    on conflict (id) do nothing
    returning seq, id, kind, queue, priority, run_at, created_at, expires_at{and_options}
)
"""
_TAGGED = """
tagged as (
    insert into tags (tag, created_at, seq)
    select t.tag, new.created_at, new.seq
    from unnest(%(tags)s, %(tagged)s, %(tagged_in)s) as t (tag, id, queue)
    join new on new.id = t.id and new.queue = t.queue
    on conflict do nothing
)
"""
_NOT_SERVED_BY_ALL = """
select k
from unnest(%(all_kinds)s) as k
where exists (
    select
    from nodes n
    where n.lease_until is not null and n.kinds <> '{}' and k <> all (n.kinds)
)
"""
_ALIVE = f"""
alive as (
    insert into live (seq, kind, queue, status, priority, run_at, created_at, expires_at)
    select
        seq,
        case when kind = any (array({_NOT_SERVED_BY_ALL})) then kind end,
        queue,
        case when run_at > created_at then 'scheduled' else 'queued' end,
        priority, run_at, created_at, expires_at
    from new
    returning queue, status
)
"""
# The same where jobs may stand in lanes.
_KEYED = f"""
keyed as (
    select new.*, {LANE_KEY.format(asked=ASKED_KEY, queue="queue")} as key
    from new
)
"""
_ALIVE_IN_LANES = f"""
alive as (
    insert into live (seq, kind, queue, status, priority, run_at, created_at, expires_at, key)
    select
        seq,
        case when key is not null or kind = any (array({_NOT_SERVED_BY_ALL})) then kind end,
        queue,
        case when run_at > created_at then 'scheduled' else 'queued' end,
        priority, run_at, created_at, expires_at, key
    from keyed
    returning queue, status, key
)
"""
_COUNTED = counting("select queue, status, 1, 0 from alive")


def _insert(*, tags: bool, lanes: bool) -> str:
    """The statement that stores jobs, where some have tags, or may stand in lanes."""
    alive = [_KEYED, _ALIVE_IN_LANES, TOLD.format(ready="true", those="alive", which="status = 'queued'")]
    parts = [
        _NEW.format(and_options=", options" if lanes else ""),
        *([_TAGGED] if tags else []),
        *(alive if lanes else [_ALIVE]),
        _COUNTED,
    ]
    return f"with {','.join(parts)} select id, queue from new"


_INSERT = {
    (tags, lanes): _insert(tags=tags, lanes=lanes) for tags in (False, True) for lanes in (False, True)
}
"""By whether there are tags, and whether jobs may stand in lanes."""


_CLOSED = "select name from queues where closed = 1 and name = any (%(names)s)"


class Conflict(Exception):  # noqa: N818 - no error: it is caught where it is raised for
    """Something that was to be all or nothing is not all: undo it, and look before it is written."""


class Adding:
    """The adds of one batch, stored all at once by `send`; what came of it can be asked for once that is answered.

    `gates`: whether there may be gated queues. A job that is stored without a key in one of them gets it from a claim.
    """

    def __init__(self, adds: Sequence[Add], slot: int, *, gates: bool = False) -> None:
        self._adds, self._slot, self._gates = adds, slot, gates
        self._jobs = [job for add in adds for job in add.jobs]
        self._answer: Result | None = None

    def send(self, session: Session) -> None:
        """Store what is not there."""
        if self._jobs:
            # Of two with one id the first is stored whose queue is not closed.
            firsts = {(job.id, job.queue): job for job in reversed(self._jobs)}.values()
            pairs = [(tag.encode(), job) for job in firsts for tag in job.options.tags]
            values = _columns(self._jobs)
            values |= {"all_kinds": texts(sorted({job.kind for job in self._jobs})), "slot": self._slot}
            if pairs:
                values |= {"tags": binaries([tag for tag, _ in pairs])}
                values |= {"tagged": texts([job.id for _, job in pairs])}
                values |= {"tagged_in": texts([job.queue for _, job in pairs])}
            lanes = self._gates or any(job.options.key is not None for job in self._jobs)
            self._answer = session.run(_INSERT[bool(pairs), lanes], values)

    async def check(self, session: Session) -> None:
        """Raise `Conflict` when one that is to be all or nothing may not be all. Waits only if there is such a one."""
        if any(add.atomic and len(add.jobs) > 1 for add in self._adds):
            await session.answered()
            atomic = [add.atomic for add in self._adds for _ in add.jobs]
            if any(one and not stored for one, stored in zip(atomic, self._stored, strict=True)):
                raise Conflict

    @functools.cached_property
    def _stored(self) -> Sequence[bool]:
        """Of each job whether it is stored now."""
        new = dict.fromkeys(self._answer.rows(), True) if self._answer else {}
        return [new.pop((job.id, job.queue), False) for job in self._jobs]

    @functools.cached_property
    def _shut_out(self) -> Sequence[bool]:
        """Of each job whether a later one with its id is stored: so its own queue takes none."""
        shut_out, stored = list[bool](), set[str]()
        for job, is_stored in zip(reversed(self._jobs), reversed(self._stored), strict=True):
            shut_out.append(job.id in stored and not is_stored)
            if is_stored:
                stored.add(job.id)
        return shut_out[::-1]

    @property
    def stored(self) -> Sequence[NewJob]:
        """The jobs that are new."""
        return [job for job, stored in zip(self._jobs, self._stored, strict=True) if stored]

    @property
    def taken(self) -> Sequence[NewJob]:
        """The jobs whose ids were taken."""
        each = zip(self._jobs, self._stored, self._shut_out, strict=True)
        return [job for job, stored, shut_out in each if not (stored or shut_out)]

    def receipts(self, taken: Sequence[Receipt]) -> Sequence[Sequence[Receipt]]:
        """Those of each add, given those of the jobs whose ids were taken."""
        others = iter(taken)
        told = zip(self._jobs, self._stored, self._shut_out, strict=True)
        each = iter(
            [
                STORED if stored else Receipt("closed", queue=job.queue) if shut_out else next(others)
                for job, stored, shut_out in told
            ]
        )
        return [[next(each) for _ in add.jobs] for add in self._adds]


async def store_or_look(session: Session, jobs: Sequence[NewJob], slot: int) -> Sequence[Receipt]:
    """Store what is not there, and look at what is. Raises `Conflict` when somebody deleted one just now."""
    adding = Adding([Add(jobs)], slot)
    adding.send(session)
    await session.answered()
    twins = await several(session, [job.id for job in adding.taken]) if adding.taken else {}
    left_out = [job for job in adding.taken if job.id not in twins]
    closed = await _closed(session, left_out)
    if any(job.queue not in closed for job in left_out):
        raise Conflict
    return adding.receipts(
        [
            compared(job, twins[job.id]) if job.id in twins else Receipt("closed", queue=job.queue)
            for job in adding.taken
        ]
    )[0]


async def _closed(session: Session, jobs: Sequence[NewJob]) -> frozenset[str]:
    """Those of the queues of jobs that take no new ones."""
    if not jobs:
        return frozenset()
    names = texts(sorted({job.queue for job in jobs}))
    return frozenset(name for (name,) in await session.rows(_CLOSED, {"names": names}))


async def add_with_care(session: Session, add: Add, slot: int) -> Sequence[Receipt]:
    """Store one add after a look whether it can be; for batches in which something was in conflict."""
    if add.atomic and (refused := await _refusal(session, add.jobs)):
        return refused
    receipts = await store_or_look(session, add.jobs, slot)
    if add.atomic and any(receipt.verdict in {"conflict", "closed"} for receipt in receipts):
        raise Conflict
    return receipts


async def _refusal(session: Session, jobs: Sequence[NewJob]) -> Sequence[Receipt] | None:
    """The receipts of an atomic add that cannot be: None when no job of it is in conflict, or for a closed queue."""
    twins = await several(session, [job.id for job in jobs])
    closed = await _closed(session, jobs)
    receipts: list[Receipt] = []
    seen: dict[str, Job] = {}
    for job in jobs:
        twin = twins.get(job.id) or seen.get(job.id)
        if twin is None and job.queue in closed:
            receipts.append(Receipt("closed", queue=job.queue))
        else:
            receipts.append(Receipt("refused") if twin is None else compared(job, twin))
            seen.setdefault(job.id, Job(job, State(job.status)))
    return receipts if any(receipt.verdict in {"conflict", "closed"} for receipt in receipts) else None


def _columns(jobs: Sequence[NewJob]) -> dict[str, Any]:
    """The values of the statement that stores jobs, by name: all but the tags."""
    return {
        "ids": texts([job.id for job in jobs]),
        "kinds": texts([job.kind for job in jobs]),
        "queues": texts([job.queue for job in jobs]),
        "priorities": integers([job.priority for job in jobs]),
        "run_at": floats([job.run_at for job in jobs]),
        "max_retries": integers([job.max_retries for job in jobs]),
        "created_at": floats([job.created_at for job in jobs]),
        "expires_at": floats([job.expires_at for job in jobs]),
        "options": binaries([encoded_options(job.options) for job in jobs]),
        "payloads": binaries([job.payload for job in jobs]),
    }
