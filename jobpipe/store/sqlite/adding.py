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
insert or ignore into jobs ({_NEW}, aside)
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

    def __init__(self, db: apsw.Connection, known: Known) -> None:
        self._db, self._known = db, known

    def add(self, add: Add, counts: CountChanges, *, one_by_one: bool) -> Sequence[Receipt]:
        """Store the jobs of an add, each unless its id is taken or its queue closed; if it is atomic all or none."""
        closed = self._known.closed()
        if add.atomic and (refused := self._refusal(add.jobs, closed)):
            return refused
        if closed and any(job.queue in closed for job in add.jobs):
            receipts = self._insert_around(add.jobs, closed)
        else:
            receipts = self._insert(add.jobs, one_by_one=one_by_one)
        stored = [job for job, receipt in zip(add.jobs, receipts, strict=True) if receipt is STORED]
        self._note(stored, counts)
        return receipts

    def _insert(self, jobs: Sequence[NewJob], *, one_by_one: bool) -> Sequence[Receipt]:
        aside = self._known.not_served_by_all({job.kind for job in jobs})
        if one_by_one:
            return [STORED if self._inserted([job], aside) else self._twin(job) for job in jobs]
        if self._inserted(jobs, aside) != len(jobs):
            raise Mismatch
        return [STORED] * len(jobs)

    def _insert_around(self, jobs: Sequence[NewJob], closed: Collection[str]) -> Sequence[Receipt]:
        """Insert those that are not for closed queues, one after the other: two may have one id."""
        return [
            self._shut_out(job) if job.queue in closed else self._insert([job], one_by_one=True)[0]
            for job in jobs
        ]

    def _shut_out(self, new: NewJob) -> Receipt:
        """The receipt of a job for a closed queue: it may be there already."""
        twin = reader.one(self._db, new.id)
        return Receipt("closed", queue=new.queue) if twin is None else compared(new, twin)

    def _inserted(self, jobs: Sequence[NewJob], aside: Collection[str]) -> int:
        """Insert what is not there, and tell how many were not; those of some kinds stand aside."""
        if not aside:
            return execute_values(self._db, _INSERT_NEW, list(map(new_row, jobs)))
        rows = [(*new_row(job), int(job.kind in aside)) for job in jobs]
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
