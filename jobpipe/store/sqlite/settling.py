"""Starts and settlements: what nodes say of the jobs that they hold, each under the fence of its claim number."""

from collections.abc import Sequence

import apsw

from jobpipe.job import ATTEMPTS_KEPT, ENDED, WAITING, Status
from jobpipe.store.base import Settlement, Start
from jobpipe.store.rows import Row, encoded_error
from jobpipe.store.sqlite.counts import HELD, CountChanges
from jobpipe.store.sqlite.known import Known
from jobpipe.store.sqlite.rows import fetch_one
from jobpipe.store.sqlite.values import Mismatch, execute_values

_START = """
update jobs
set status = iif(status = 'queued', 'running', status),
    attempt = ?,
    started_at = ?
where seq = ? and claim = ? and held = 1
"""

_END = """
update jobs
set status = v.column1,
    attempt = v.column2,
    started_at = coalesce(v.column3, started_at),
    finished_at = v.column4,
    result = v.column5,
    error = v.column6,
    size = v.column7,
    held = 0
from ({values}) as v
where jobs.seq = v.column8 and jobs.claim = v.column9 and held = 1
"""
_AGAIN = """
update jobs
set status = iif(status = 'cancelling', 'cancelled', ?1),
    finished_at = iif(status = 'cancelling', ?2, null),
    size = iif(status = 'cancelling', ?3, 0),
    attempt = ?4,
    run_at = coalesce(?5, run_at),
    started_at = coalesce(?6, started_at),
    error = coalesce(?7, error),
    held = 0
where seq = ?8 and claim = ?9 and held = 1
returning status
"""
_RECORD = """
insert or replace into attempts (seq, claim, number, node, started_at, finished_at, outcome, error, due_at)
select seq, claim, ?, node, ?, ?, ?, ?, run_at
from jobs
where seq = ?
"""
_RECORD_HELD = f"{_RECORD} and claim = ? and held = 1"
"""Before the job is due at another time."""
INTO_GROUP = "update jobs set fingerprint = ? where seq = ?"
"""For a job that has failed; no other has a fingerprint."""

_FORGET = """
delete from attempts
where seq = ?1 and claim <= (select claim from jobs where seq = ?1) - ?2
"""


class Settling:
    """Writes starts and settlements."""

    def __init__(self, db: apsw.Connection, known: Known) -> None:
        self._db, self._known = db, known

    def start(self, starts: Sequence[Start]) -> set[tuple[int, int]]:
        """Write starts; returns the fences of the stale ones."""
        stale = set()
        for start in starts:
            self._db.execute(_START, (start.attempt, start.started_at, start.seq, start.claim))
            if not self._db.changes():
                stale.add((start.seq, start.claim))
        return stale

    def settle(
        self,
        settlements: Sequence[Settlement],
        counts: CountChanges,
        stale: set[tuple[int, int]],
        *,
        one_by_one: bool,
    ) -> dict[int, Status]:
        """Write outcomes under their fences; gathers stale ones, returns those that became something else."""
        ends = [one for one in settlements if one.status in ENDED]
        missed = self._end(ends, one_by_one=one_by_one)
        if missed:
            stale |= missed
            ends = [one for one in ends if (one.seq, one.claim) not in missed]
        for one in ends:
            counts.move(one.queue, HELD, one.status, size=one.size)
            if one.status is not Status.DONE:  # its one attempt stands in the job's own row
                self._fail_in_group(one)
                self._record(_RECORD, one)
        changed: dict[int, Status] = {}
        for one in settlements:
            if one.status in WAITING:
                self._settle_waiting(one, counts, stale, changed)
        return changed

    def _end(self, ends: Sequence[Settlement], *, one_by_one: bool) -> set[tuple[int, int]]:
        """End jobs, all at once or one by one; returns the stale ones."""
        if one_by_one:
            return {
                (one.seq, one.claim) for one in ends if not execute_values(self._db, _END, [_end_values(one)])
            }
        if execute_values(self._db, _END, list(map(_end_values, ends))) != len(ends):
            raise Mismatch
        return set()

    def _settle_waiting(
        self, one: Settlement, counts: CountChanges, stale: set[tuple[int, int]], changed: dict[int, Status]
    ) -> None:
        """Let a job wait again, or end it when it was asked to cancel meanwhile."""
        self._record(_RECORD_HELD, one, one.claim)
        status = self._again(one)
        if status is None:
            stale.add((one.seq, one.claim))
            return
        if status is not one.status:
            changed[one.seq] = status
        self._known.due_changed()
        self._known.ready_changed()
        counts.move(one.queue, HELD, status, size=one.size if status in ENDED else 0)

    def _again(self, one: Settlement) -> Status | None:
        values = (one.status.value, one.settled_at, one.size, one.attempt, one.run_at, one.started_at)
        row = fetch_one(self._db, _AGAIN, (*values, encoded_error(one.error), one.seq, one.claim))
        return None if row is None else Status(row[0])

    def _fail_in_group(self, one: Settlement) -> None:
        """A failure belongs to its group."""
        if one.status is Status.FAILED and one.error is not None and one.error.fingerprint:
            self._db.execute(INTO_GROUP, (one.error.fingerprint, one.seq))

    def _record(self, sql: str, one: Settlement, *fence: int) -> None:
        """Keep an attempt that did not end its job well."""
        if one.outcome is None:
            return
        values = (
            one.number,
            one.started_at,
            one.settled_at,
            one.outcome.value,
            encoded_error(one.error),
            one.seq,
        )
        self._db.execute(sql, (*values, *fence))
        self._db.execute(_FORGET, (one.seq, ATTEMPTS_KEPT))


def _end_values(one: Settlement) -> Row:
    return (
        one.status,
        one.attempt,
        one.started_at,
        one.settled_at,
        one.result,
        None if one.error is None else encoded_error(one.error),
        one.size,
        one.seq,
        one.claim,
    )
