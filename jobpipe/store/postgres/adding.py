"""New jobs: stored, or compared with those that have their ids already."""

from collections.abc import Sequence

from jobpipe.job import Job, NewJob, as_stored, same_content
from jobpipe.store.base import STORED, Add, Receipt
from jobpipe.store.postgres.parameters import binaries, floats, integers, texts
from jobpipe.store.postgres.reader import several
from jobpipe.store.postgres.session import Answer, Row, Session
from jobpipe.store.postgres.tally import Tally
from jobpipe.store.rows import encoded_options

_NEW = (
    "with new as (insert into jobs "
    "(id, kind, queue, priority, run_at, max_retries, created_at, expires_at, options, payload) "
    "select id, kind, queue, priority, run_at, max_retries, created_at, expires_at, options, payload "
    "from unnest(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) with ordinality as v "
    "(id, kind, queue, priority, run_at, max_retries, created_at, expires_at, options, payload, n) order by n "
    "on conflict (id) do nothing returning seq, id, queue, priority, run_at, created_at, expires_at), "
)
_LIVE = (
    "alive as (insert into live (seq, queue, status, priority, run_at, expires_at) "
    "select seq, queue, case when run_at > created_at then 'scheduled' else 'queued' end, priority, "
    "run_at, expires_at "
    "from new) select id, seq from new"
)
_INSERT = _NEW + _LIVE
_INSERT_AND_NAME = (
    f"{_NEW} named as (insert into queues (name) select distinct queue from new order by queue "
    f"on conflict do nothing), {_LIVE}"
)
_TAG = (
    "insert into tags (tag, seq) select tag, seq from unnest(%s, %s) as v (tag, seq) on conflict do nothing"
)


class Conflict(Exception):  # noqa: N818 - no error: it is caught where it is raised for
    """Something that was to be all or nothing is not all: undo it, and look before it is written."""


class Adding:
    """The adds of one batch, stored all at once: `send` does not wait, `judge` does.

    `names`: the queues that are known to be known.
    """

    def __init__(self, adds: Sequence[Add], names: set[str]) -> None:
        self._adds, self._names = adds, names
        self._jobs = [job for add in adds for job in add.jobs]
        self._answer: Answer | None = None

    def send(self, session: Session) -> None:
        """Store what is not there."""
        if self._jobs:
            new_names = any(job.queue not in self._names for job in self._jobs)
            self._answer = session.run(_INSERT_AND_NAME if new_names else _INSERT, _columns(self._jobs))

    def judge(self, session: Session, tally: Tally) -> Sequence[Sequence[Receipt]]:
        """A receipt for each job; raises `Conflict` when an atomic add has one, or somebody interfered."""
        stored: dict[str, int] = dict(self._answer.rows()) if self._answer else {}
        seqs = dict(stored)
        first = [seqs.pop(job.id, None) is not None for job in self._jobs]
        others = [job.id for job, is_first in zip(self._jobs, first, strict=True) if not is_first]
        twins = several(session, others) if others else {}
        fresh = [job for job, is_first in zip(self._jobs, first, strict=True) if is_first]
        for job in fresh:
            tally.move(job.queue, None, job.status)
        _tag(session, fresh, stored)
        receipts = iter(
            [
                STORED if is_first else _of_twin(job, twins)
                for job, is_first in zip(self._jobs, first, strict=True)
            ]
        )
        return [self._of_one(add, [next(receipts) for _ in add.jobs]) for add in self._adds]

    def _of_one(self, add: Add, receipts: Sequence[Receipt]) -> Sequence[Receipt]:
        if add.atomic and any(receipt.verdict == "conflict" for receipt in receipts):
            raise Conflict
        return receipts


def _of_twin(job: NewJob, twins: dict[str, Job]) -> Receipt:
    if job.id not in twins:  # it was deleted just now
        raise Conflict
    return compared(job, twins[job.id])


def _tag(session: Session, jobs: Sequence[NewJob], seqs: dict[str, int]) -> None:
    pairs = [(tag.encode(), seqs[job.id]) for job in jobs for tag in job.options.tags]
    if pairs:
        tags, numbers = zip(*pairs, strict=True)
        session.run(_TAG, (binaries(tags), integers(numbers)))


def add_with_care(session: Session, add: Add, tally: Tally) -> Sequence[Receipt]:
    """Store one add after a look whether it can be; for batches in which something was in conflict."""
    if add.atomic and (refused := _refusal(session, add.jobs)):
        return refused
    one = Adding([add], set())
    one.send(session)
    return one.judge(session, tally)[0]


def _refusal(session: Session, jobs: Sequence[NewJob]) -> Sequence[Receipt] | None:
    """The receipts of an atomic add that cannot be: None when no job of it is in conflict."""
    twins = several(session, [job.id for job in jobs])
    receipts: list[Receipt] = []
    seen: dict[str, NewJob] = {}
    for job in jobs:
        twin = twins.get(job.id) or (as_stored(seen[job.id]) if job.id in seen else None)
        receipts.append(Receipt("refused") if twin is None else compared(job, twin))
        seen.setdefault(job.id, job)
    return receipts if any(receipt.verdict == "conflict" for receipt in receipts) else None


def compared(new: NewJob, job: Job) -> Receipt:
    """The receipt of a job whose id was taken."""
    return Receipt("existing" if same_content(new, job) else "conflict", job)


def _columns(jobs: Sequence[NewJob]) -> Row:
    return (
        texts([job.id for job in jobs]),
        texts([job.kind for job in jobs]),
        texts([job.queue for job in jobs]),
        integers([job.priority for job in jobs]),
        floats([job.run_at for job in jobs]),
        integers([job.max_retries for job in jobs]),
        floats([job.created_at for job in jobs]),
        floats([job.expires_at for job in jobs]),
        binaries([encoded_options(job.options) for job in jobs]),
        binaries([job.payload for job in jobs]),
    )
