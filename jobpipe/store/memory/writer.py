"""What the engine writes: the parts of an exchange, in their order."""

from collections.abc import Sequence

from msgspec.structs import replace

from jobpipe.job import ENDED, WAITING, AttemptRecord, Job, NewJob, Status, as_stored, kept, same_content
from jobpipe.store.base import STEP, STORED, Add, Batch, Claimed, Receipt, Receipts, Settlement, Start
from jobpipe.store.memory.shelves import Row, Shelves


class Writer:
    """The writing half of the store."""

    def __init__(self, shelves: Shelves) -> None:
        self._shelves = shelves

    def exchange(self, batch: Batch) -> Receipts:
        """Carry out a batch; see `jobpipe.store.base.EngineStore.exchange`."""
        lease_lost = not self._renew(batch)
        self._expire(batch.now)
        self._promote(batch.now)
        stale = {(start.seq, start.claim) for start in batch.starts if not self._start(start)}
        settled = self._settle(batch.settlements, stale)
        adds = [self._add(add) for add in batch.adds]
        claimed = self._claim(batch) if batch.claim and not lease_lost else ()
        return Receipts(
            lease_lost=lease_lost,
            stale=frozenset(stale),
            settled=settled,
            adds=adds,
            claimed=claimed,
            waiting=self._shelves.waiting,
            next_due=self._shelves.next_due(),
        )

    def _renew(self, batch: Batch) -> bool:
        if batch.node not in self._shelves.leases:
            return batch.lease_until is None and not batch.claim
        if batch.lease_until is not None:
            self._shelves.leases[batch.node] = batch.lease_until
        return True

    def _expire(self, now: float) -> None:
        for seq in self._shelves.expiring.until(now):
            row = self._shelves.rows[seq]
            self._shelves.end(row, replace(row.job, status=Status.EXPIRED, finished_at=now))

    def _promote(self, now: float) -> None:
        for seq in self._shelves.due.until(now):
            row = self._shelves.rows[seq]
            self._shelves.become(row, replace(row.job, status=Status.QUEUED))

    def _held(self, seq: int, claim: int) -> Row | None:
        """The row that a claim number gives the right to write."""
        row = self._shelves.rows.get(seq)
        return row if row is not None and row.node is not None and row.job.claim == claim else None

    def _start(self, start: Start) -> bool:
        row = self._held(start.seq, start.claim)
        if row is None:
            return False
        job = replace(
            row.job,
            status=Status.RUNNING if row.job.status is Status.QUEUED else row.job.status,
            attempt=start.attempt,
            started_at=start.started_at,
            attempts=_begun(row, start),
        )
        self._shelves.become(row, job, row.node)
        return True

    def _settle(self, settlements: Sequence[Settlement], stale: set[tuple[int, int]]) -> dict[int, Status]:
        """Write outcomes under their fences; gathers stale ones, returns those that became something else."""
        changed: dict[int, Status] = {}
        for one in settlements:
            row = self._held(one.seq, one.claim)
            if row is None:
                stale.add((one.seq, one.claim))
                continue
            job = _settled(row, one)
            self._shelves.become(row, job, size=one.size)
            if job.status is not one.status:
                changed[one.seq] = job.status
        return changed

    def _add(self, add: Add) -> Sequence[Receipt]:
        if add.atomic and (refused := self._refusal(add.jobs)):
            return refused
        return [self._add_one(new) for new in add.jobs]

    def _add_one(self, new: NewJob) -> Receipt:
        if row := self._shelves.by_id.get(new.id):
            return _compared(new, row.job)
        self._shelves.add(new)
        return STORED

    def _refusal(self, jobs: Sequence[NewJob]) -> Sequence[Receipt] | None:
        """The receipts of an atomic add that cannot be: None when no job of it is in conflict."""
        seen: dict[str, Job] = {}
        receipts = []
        for new in jobs:
            row = self._shelves.by_id.get(new.id)
            twin = row.job if row else seen.get(new.id)
            receipts.append(Receipt("refused") if twin is None else _compared(new, twin))
            seen.setdefault(new.id, as_stored(new))
        return receipts if any(receipt.verdict == "conflict" for receipt in receipts) else None

    def _claim(self, batch: Batch) -> Sequence[Claimed]:
        """Take ready jobs. Passes over those that are overdue, as after more than `STEP` expired: `STEP` of them."""
        taken: list[Row] = []
        overdue: list[Row] = []
        for row in self._shelves.ready():
            expires_at = row.job.expires_at
            (taken if expires_at is None or expires_at > batch.now else overdue).append(row)
            if len(taken) == batch.claim or len(overdue) == STEP:
                break
        for row in overdue:
            self._shelves.become(row, row.job)  # back into the line that it left
        return [self._hold(row, batch.node) for row in taken]

    def _hold(self, row: Row, node: str) -> Claimed:
        # What is told of a start belongs to the claim: so a held job with started_at has begun.
        job = replace(row.job, claim=row.job.claim + 1, started_at=None)
        self._shelves.become(row, job, node)
        return Claimed(
            seq=row.seq,
            id=job.id,
            kind=job.kind,
            queue=job.queue,
            payload=job.payload,
            priority=job.priority,
            run_at=job.run_at,
            attempt=job.attempt,
            max_retries=job.max_retries,
            claim=job.claim,
            rescued=row.rescued,
            options=job.options,
        )


def _begun(row: Row, start: Start) -> tuple[AttemptRecord, ...]:
    record = AttemptRecord(
        number=start.attempt, claim=start.claim, node=row.node, started_at=start.started_at
    )
    return kept((*_ended_attempts(row.job), record))


def _settled(row: Row, one: Settlement) -> Job:
    """The job after a settlement; one that waits again keeps its last error."""
    job, again = row.job, one.status in WAITING
    status = Status.CANCELLED if again and job.status is Status.CANCELLING else one.status
    error = one.error or job.error if again else one.error
    return replace(
        job,
        status=status,
        attempt=one.attempt,
        run_at=job.run_at if one.run_at is None else one.run_at,
        started_at=job.started_at if one.started_at is None else one.started_at,
        finished_at=one.settled_at if status in ENDED else None,
        result=one.result if status in ENDED else None,
        error=None if status is Status.DONE else error,
        attempts=_attempts_after(row, one),
    )


def _attempts_after(row: Row, one: Settlement) -> tuple[AttemptRecord, ...]:
    earlier = _ended_attempts(row.job)
    if one.outcome is None:
        return earlier
    began = (one.started_at, row.job.started_at, one.settled_at)
    record = AttemptRecord(
        number=one.number,
        claim=one.claim,
        node=row.node,
        started_at=next(time for time in began if time is not None),
        finished_at=one.settled_at,
        outcome=one.outcome,
        error=one.error,
    )
    return kept((*earlier, record))


def _ended_attempts(job: Job) -> tuple[AttemptRecord, ...]:
    """A job's attempts but the one that runs."""
    return job.attempts[:-1] if job.attempts and job.attempts[-1].outcome is None else job.attempts


def _compared(new: NewJob, job: Job) -> Receipt:
    return Receipt("existing" if same_content(new, job) else "conflict", job)
