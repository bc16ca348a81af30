"""Locks of other programs: what stands in a batch's way is found, set aside, and written later or refused."""

import time
from collections.abc import Sequence

import msgspec

from jobpipe.job import NewJob
from jobpipe.store.base import LOCKED, Add, Batch, Receipt, Receipts
from jobpipe.store.postgres.arrays import integers, texts
from jobpipe.store.postgres.connections import KeptConnection
from jobpipe.store.postgres.session import Session
from jobpipe.store.postgres.settling import Fence

PROBE_WAIT = 0.02
"""Seconds that a probe waits for each of the first ids: other nodes hold theirs for milliseconds."""

REFUSE = 1.0
"""Seconds for which a job whose id was found locked is refused without asking again."""

REMEMBER = 10.0
"""Seconds for which a row that was found locked is looked at before it is written."""

_WAIT = "select set_config('lock_timeout', %(milliseconds)s, true)"

# As strong as what settlements take: they delete the row of the one, and read that of the other.
_LOCKED_ROWS = """
with free as materialized (
    select l.seq
    from live l join jobs j on j.seq = l.seq
    where l.seq = any(%(seqs)s)
    for update of l skip locked
)
select l.seq
from live l
where l.seq = any(%(seqs)s)
    and not exists (select from free where free.seq = l.seq)
"""

_LOCKED_IDS = "select locked_ids(%(ids)s)"


class Aside:
    """A batch without what is locked, and what to answer for that."""

    def __init__(self, batch: Batch, ids: set[str], *, doubtful: bool) -> None:
        self._batch, self.ids, self.doubtful = batch, ids, doubtful
        self.seqs: set[int] = set()

    @property
    def asked_ids(self) -> Sequence[str]:
        """The ids of new jobs that are not known to be locked."""
        return [job.id for add in self._batch.adds for job in add.jobs if job.id not in self.ids]

    @property
    def asked_seqs(self) -> Sequence[int]:
        """The rows that starts, notes and settlements are to write, as far as they are not known to be locked."""
        return sorted({seq for seq, _ in self.fences} - self.seqs)

    @property
    def fences(self) -> frozenset[Fence]:
        """Those of all starts, notes and settlements of the batch."""
        batch = self._batch
        return frozenset(
            [
                *((one.seq, one.claim) for one in batch.starts),
                *((one.seq, one.claim) for one in batch.notes),
                *((one.seq, one.claim) for one in batch.settlements),
            ]
        )

    @property
    def locked(self) -> frozenset[Fence]:
        """Those whose rows are locked."""
        return frozenset(fence for fence in self.fences if fence[0] in self.seqs)

    @property
    def rest(self) -> Batch:
        """What can be written."""
        if not (self.ids or self.seqs):
            return self._batch
        return msgspec.structs.replace(
            self._batch,
            starts=[one for one in self._batch.starts if one.seq not in self.seqs],
            notes=[one for one in self._batch.notes if one.seq not in self.seqs],
            settlements=[one for one in self._batch.settlements if one.seq not in self.seqs],
            adds=[self._free(add) for add in self._batch.adds],
        )

    def completed(self, receipts: Receipts) -> Receipts:
        """The receipts for the whole batch, given those for the rest of it."""
        if not (self.ids or self.seqs):
            return receipts
        return msgspec.structs.replace(
            receipts,
            locked=self.locked,
            adds=[self._told(add, part) for add, part in zip(self._batch.adds, receipts.adds, strict=True)],
        )

    def _free(self, add: Add) -> Add:
        """What can be stored of an add: of one that is to be all or nothing, all or nothing."""
        free = [job for job in add.jobs if job.id not in self.ids]
        return add if len(free) == len(add.jobs) else Add([] if add.atomic else free)

    def _told(self, add: Add, receipts: Sequence[Receipt]) -> Sequence[Receipt]:
        refused = Receipt("refused") if add.atomic and any(map(self._locked, add.jobs)) else None
        rest = iter(receipts)
        return [LOCKED if self._locked(job) else refused or next(rest) for job in add.jobs]

    def _locked(self, job: NewJob) -> bool:
        return job.id in self.ids


class Locks:
    """Which locks of other programs were met lately."""

    def __init__(self, connection: KeptConnection) -> None:
        self._connection = connection
        self._ids: dict[str, float] = {}
        self._seqs: dict[int, float] = {}

    def aside(self, batch: Batch) -> Aside:
        """The batch without the jobs whose ids were found locked a moment ago."""
        if not (self._ids or self._seqs):
            return Aside(batch, set(), doubtful=False)
        now = time.monotonic()
        self._ids = {job_id: until for job_id, until in self._ids.items() if until > now}
        self._seqs = {seq: until for seq, until in self._seqs.items() if until > now}
        aside = Aside(batch, set(self._ids), doubtful=False)
        aside.doubtful = not self._seqs.keys().isdisjoint(aside.asked_seqs)
        return aside

    async def probe(self, aside: Aside) -> None:
        """Set aside what is locked now. Raises `Locked` where a lock is in the way that is none of a job."""

        async def verb(session: Session) -> None:
            session.run(_WAIT, {"milliseconds": f"{PROBE_WAIT * 1000:.0f}"})
            rows = session.run(_LOCKED_ROWS, {"seqs": integers(aside.asked_seqs)})
            names = session.run(_LOCKED_IDS, {"ids": texts(aside.asked_ids)})
            await session.answered()
            aside.seqs |= {seq for (seq,) in rows.rows()}
            aside.ids |= {job_id for (job_id,) in names.rows()}

        await self._connection.transact(verb)
        now = time.monotonic()
        self._ids |= dict.fromkeys(aside.ids, now + REFUSE)
        self._seqs |= dict.fromkeys(aside.seqs, now + REMEMBER)
