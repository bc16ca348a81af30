"""New jobs: stored, or compared with those that have their ids already."""

from collections import Counter
from collections.abc import Collection, Sequence

import apsw

from jobpipe.job import Job, NewJob, State, Status
from jobpipe.store.base import STORED, Add, Receipt
from jobpipe.store.rows import compared
from jobpipe.store.sqlite import reader
from jobpipe.store.sqlite.counts import CountChanges
from jobpipe.store.sqlite.known import Known
from jobpipe.store.sqlite.lanes import IN_LANE, Lanes
from jobpipe.store.sqlite.rows import new_row
from jobpipe.store.sqlite.values import Mismatch, execute_values

_NEW = "id, kind, queue, status, priority, run_at, max_retries, created_at, expires_at, options, payload"
_INSERT = f"""
insert into jobs ({_NEW})
{{values}}
"""
# "or ignore" costs less than "on conflict (id) do nothing".
_INSERT_NEW = f"""
insert or ignore into jobs ({_NEW})
{{values}}
"""
_INSERT_NEW_ASIDE = f"""
insert or ignore into jobs ({_NEW}, aside, key)
{{values}}
"""
_TAG = """
insert or ignore into tags (tag, created_at, seq)
select ?, created_at, seq
from jobs
where id = ?
"""


class Adding:
    """Stores new jobs."""

    def __init__(self, db: apsw.Connection, known: Known, lanes: Lanes) -> None:
        self._db, self._known, self._lanes = db, known, lanes

    def add(self, add: Add, counts: CountChanges, *, one_by_one: bool) -> Sequence[Receipt]:
        """Store the jobs of an add, each unless its id is taken or its queue closed; if it is atomic all or none."""
        closed = self._known.closed()
        if add.atomic and (refused := self._refusal(add.jobs, closed)):
            return refused
        keys = self._lanes.keys_of(add.jobs)
        if closed and any(job.queue in closed for job in add.jobs):
            receipts = self._insert_around(add.jobs, keys, closed)
        else:
            receipts = self._insert(add.jobs, keys, one_by_one=one_by_one)
        stored = [job for job, receipt in zip(add.jobs, receipts, strict=True) if receipt is STORED]
        self._note(stored, counts)
        if keys is not None:
            self._lanes.added(add.jobs, keys, receipts)
        return receipts

    def _insert(
        self, jobs: Sequence[NewJob], keys: Sequence[str | None] | None, *, one_by_one: bool
    ) -> Sequence[Receipt]:
        aside = self._known.not_served_by_all({job.kind for job in jobs})
        if one_by_one:
            each = keys or [None] * len(jobs)
            return [
                STORED if self._inserted([job], aside, keys and [key]) else self._twin(job)
                for job, key in zip(jobs, each, strict=True)
            ]
        if self._inserted(jobs, aside, keys) != len(jobs):
            raise Mismatch
        return [STORED] * len(jobs)

    def _insert_around(
        self, jobs: Sequence[NewJob], keys: Sequence[str | None] | None, closed: Collection[str]
    ) -> Sequence[Receipt]:
        """Insert those that are not for closed queues, in their order: several may have one id."""
        receipts = list[Receipt]()
        for place, job in enumerate(jobs):
            key = keys and keys[place : place + 1]
            receipts += (
                [self._shut_out(job)] if job.queue in closed else self._insert([job], key, one_by_one=True)
            )
        return receipts

    def _shut_out(self, new: NewJob) -> Receipt:
        """The receipt of a job for a closed queue: it may be there already."""
        twin = reader.one(self._db, new.id)
        return Receipt("closed", queue=new.queue) if twin is None else compared(new, twin)

    def _inserted(
        self, jobs: Sequence[NewJob], aside: Collection[str], keys: Sequence[str | None] | None
    ) -> int:
        """Insert what is not there, and tell how many were not; those of some kinds, or with a key, stand aside."""
        if not aside and keys is None:
            return execute_values(self._db, _INSERT_NEW, list(map(new_row, jobs)))
        places = [
            (int(job.kind in aside), None) if key is None else (IN_LANE, key)
            for job, key in zip(jobs, keys or [None] * len(jobs), strict=True)
        ]
        rows = [(*new_row(job), *place) for job, place in zip(jobs, places, strict=True)]
        return execute_values(self._db, _INSERT_NEW_ASIDE, rows)

    def _note(self, stored: Sequence[NewJob], counts: CountChanges) -> None:
        """Count new jobs, and make their tags known."""
        for (queue, status), jobs in Counter([(job.queue, job.status) for job in stored]).items():
            counts.move(queue, None, status, jobs)
            if status is Status.QUEUED and not self._known.is_paused(queue):
                self._known.ready_changed()
        for job in stored:
            if job.run_at > job.created_at or job.expires_at is not None:
                self._known.due_changed()
            for tag in job.options.tags:
                self._db.execute(_TAG, (tag, job.id))

    def _twin(self, new: NewJob) -> Receipt:
        twin = reader.one(self._db, new.id)
        if twin is None:
            execute_values(self._db, _INSERT, [new_row(new)])  # raises what was ignored
        return compared(new, twin)

    def _refusal(self, jobs: Sequence[NewJob], closed: Collection[str]) -> Sequence[Receipt] | None:
        """The receipts of an atomic add that cannot be; None: no job of it is in conflict, or for a closed queue."""
        receipts: list[Receipt] = []
        seen: dict[str, Job] = {}
        for job in jobs:
            twin = reader.one(self._db, job.id) or seen.get(job.id)
            if twin is None and job.queue in closed:
                receipts.append(Receipt("closed", queue=job.queue))
            else:
                receipts.append(Receipt("refused") if twin is None else compared(job, twin))
                seen.setdefault(job.id, Job(job, State(job.status)))
        return receipts if any(receipt.verdict in {"conflict", "closed"} for receipt in receipts) else None
