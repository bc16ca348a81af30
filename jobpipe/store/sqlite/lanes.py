"""Which lane a job stands in, and which lanes are open; see `jobpipe.lanes`. What they give is in `gated`.

A lane without ready jobs has no row, unless something is set for its key, or its rate has a past.
"""

from collections.abc import Collection, Iterable, Sequence

import apsw
import msgspec

from jobpipe.job import ACTIVE, NewJob, Status
from jobpipe.lanes import EMPTY, FULL, OPEN, PAUSED, RESTING, STOPPED
from jobpipe.store.base import STEP, STORED, Receipt
from jobpipe.store.sqlite.known import Known
from jobpipe.store.sqlite.rows import READY_BY_QUEUE, READY_IN_LANE, fetch, fetch_one
from jobpipe.store.verbs.lanes import PLACE, REOPEN
from jobpipe.transitions import Stored

IN_LANE = 2
"""What `aside` is of a job that stands in a lane."""

STANDING = frozenset({OPEN, RESTING, PAUSED})
"""How a lane with ready jobs may stand, whatever the limits are."""

_THESE = "seq in (select value from json_each(:seqs))"
_GATE = """
insert into queues (name, gated, lining_up)
values (?, 1, 1)
on conflict (name) do update set
    gated = 1,
    lining_up = iif(gated = 1, lining_up, 1)
"""
_KEY_HELD = f"""
update jobs
set key = '', aside = {IN_LANE}
where held = 1 and queue = ? and key is null
"""
_MOVE_IN = f"""
update jobs
set key = coalesce(key, ''), aside = {IN_LANE}
where seq in (
    select seq
    from {READY_BY_QUEUE}
        and queue = :queue
        and aside = :aside
    limit :limit
)
"""
_LINED_UP = "update queues set lining_up = 0 where name = ?"
_LINING_UP = "select name from queues where gated = 1 and lining_up = 1"
_PUT = f"update jobs set key = ?, aside = {IN_LANE} where seq = ?"
_TAKE_OUT = (
    f"update jobs set key = null, aside = iif(aside = {IN_LANE}, 0, aside) where seq = ? and key is not null"
)
_OPEN = f"""
insert into lanes (queue, key, turn)
values (:queue, :key, {PLACE.format(queue=":queue")})
on conflict (queue, key) do update set
    state = {OPEN},
    until = null,
    turn = max(turn, excluded.turn)
where state in ({EMPTY}, {STOPPED})
"""
_READY_OF = f"""
select queue, key
from jobs
where {_THESE} and key is not null and aside = {IN_LANE} and status = 'queued' and held = 0
"""
_NEXT_LANE = f"""
select queue, key, (
    select iif(state = 1 and until is null, null, state)
    from lanes
    where lanes.queue = jobs.queue and lanes.key = jobs.key
)
from {READY_IN_LANE}
    and (queue, key) > (?, ?)
order by queue, key
limit 1
"""
_OPEN_LOST = f"""
insert into lanes (queue, key, turn)
values (:queue, :key, {PLACE.format(queue=":queue")})
on conflict (queue, key) do update set state = {OPEN}, until = null
"""
_FREE = f"""
{REOPEN}
where state = {FULL}
    and (queue, key) in (
        select queue, key
        from jobs
        where {_THESE} and key is not null
    )
"""
_STOP_FAILED = f"""
insert into stopped_keys (queue, key, seq, id)
select queue, key, seq, id
from jobs
where {_THESE}
    and status = 'failed'
    and key <> ''
    and queue in (select name from queues where key_order = 'stop')
on conflict (queue, key, seq) do nothing
"""
_DUE = "(select queue, key from lanes where until is not null and until <= :now order by until limit :limit)"
_FORGET_DUE = f"""
delete from lanes
where (queue, key) in {_DUE} and state = {EMPTY} and weight = 1 and max_running is null
"""
_SETTLE_DUE = f"update lanes set until = null where (queue, key) in {_DUE} and state not in (0, 1, 2)"
_OPEN_DUE = f"{REOPEN} where (queue, key) in {_DUE}"


class Lanes:
    """Has jobs stand in their lanes."""

    def __init__(self, db: apsw.Connection, known: Known) -> None:
        self._db, self._known = db, known

    def gate(self, queue: str) -> None:
        """Have each job of a queue stand in a lane from now on; see `Transaction.gate`."""
        self._db.execute(_GATE, (queue,))
        self._db.execute(_KEY_HELD, (queue,))
        self._known.gates_changed()

    def key_of(self, job: NewJob) -> str | None:
        """The key under which a job stands in a lane; None: it stands in none. Gates the queue of one that asks."""
        key = job.options.key
        if key is None:
            return "" if job.queue in self._known.gated() else None
        if job.queue not in self._known.gated():
            self.gate(job.queue)
        return key

    def keys_of(self, jobs: Sequence[NewJob]) -> Sequence[str | None] | None:
        """The keys of jobs; None: none of them has any."""
        asked = {job.queue for job in jobs if job.options.key is not None}
        if not (asked or self._known.gated()):
            return None
        for queue in asked - self._known.gated():
            self.gate(queue)
        return [self.key_of(job) for job in jobs]

    def added(self, jobs: Sequence[NewJob], keys: Sequence[str | None], receipts: Sequence[Receipt]) -> None:
        """New jobs with these keys were handed in: of those that are stored and ready, open the lanes."""
        self.line_up(
            (job.queue, key)
            for job, key, receipt in zip(jobs, keys, receipts, strict=True)
            if key is not None and receipt is STORED and job.status is Status.QUEUED
        )

    def line_up(self, lanes: Iterable[tuple[str, str]]) -> None:
        """Jobs of lanes (queue, key) are ready: open those that were empty, or had stopped."""
        self._db.executemany(_OPEN, [{"queue": queue, "key": key} for queue, key in sorted(set(lanes))])

    def promoted(self, rows: Iterable[tuple[int, str, str | None]]) -> None:
        """Jobs (seq, queue, key) have become ready: have them stand in their lanes, those that have any."""
        gated = self._known.gated()
        concerned = [row for row in rows if row[2] is not None or row[1] in gated]
        for seq, queue, key in concerned:
            if key or queue in self._known.gated():
                self._put(seq, queue, key or "")
            else:
                self._db.execute(_TAKE_OUT, (seq,))

    def _put(self, seq: int, queue: str, key: str) -> None:
        if queue not in self._known.gated():
            self.gate(queue)
        self._db.execute(_PUT, (key, seq))
        self.line_up([(queue, key)])

    def move_up(self, lanes: Iterable[tuple[str, str]]) -> None:
        """Somebody else may be first in these lanes; see `Transaction.move_up`."""
        if ordered := self._known.ordered():
            self.line_up(lane for lane in lanes if lane[0] in ordered)
            self._known.ready_changed()

    def expired(self, rows: Iterable[tuple[int, str, str | None]]) -> None:
        """Jobs (seq, queue, key) that waited have expired, or have failed at their deadline."""
        if not self._known.ordered():
            return
        in_lanes = [(seq, (queue, key)) for seq, queue, key in rows if key]
        self._stop_failed([seq for seq, _ in in_lanes])
        self.move_up(lane for _, lane in in_lanes)

    def _stop_failed(self, seqs: Collection[int]) -> None:
        """Of these jobs, those that failed stop their keys, where keys are to stop."""
        self._db.execute(_STOP_FAILED, {"seqs": msgspec.json.encode(list(seqs)).decode()})

    def settled(self, seqs: Collection[int]) -> None:
        """Jobs are held no more: there is room in their lanes, and some of them may be ready again, or have failed."""
        these = {"seqs": msgspec.json.encode(list(seqs)).decode()}
        if self._known.ordered():
            self._stop_failed(seqs)
        self._db.execute(_FREE, these)
        self.line_up(set(fetch(self._db, _READY_OF, these)))
        self._known.ready_changed()

    def saved(self, changes: Sequence[tuple[Stored, Stored]]) -> None:
        """Jobs have been changed by a verb."""
        if not self._known.gated() and all(after.job.asked.options.key is None for _, after in changes):
            for before, after in changes:
                if before.job.asked.options.key is not None:
                    self._db.execute(_TAKE_OUT, (after.seq,))
            return
        if freed := [before.seq for before, after in changes if before.held and not after.held]:
            self.settled(freed)
        for before, after in changes:
            if not after.held and after.job.status not in ACTIVE:
                self._stand(before, after)

    def _stand(self, before: Stored, after: Stored) -> None:
        """A job that nobody holds stands where it belongs, if it is ready or goes by another queue or key now."""
        ready = after.job.status is Status.QUEUED
        asked, was = after.job.asked, before.job.asked
        if not ready and (asked.queue, asked.options.key) == (was.queue, was.options.key):
            return
        key = self.key_of(asked)
        if key is None:
            self._db.execute(_TAKE_OUT, (after.seq,))
            return
        self._db.execute(_PUT, (key, after.seq))
        if ready:
            self.line_up([(asked.queue, key)])

    def move_in(self) -> bool:
        """Have ready jobs of newly gated queues stand in their lane, `STEP` of them; whether that is all."""
        left = STEP
        for (queue,) in fetch(self._db, _LINING_UP):
            moved = 0
            for aside in (0, 1):
                self._db.execute(_MOVE_IN, {"queue": queue, "aside": aside, "limit": left - moved})
                moved += self._db.changes()
            if moved:
                self.line_up([(queue, "")])
                self._known.ready_changed()
            left -= moved
            if not left:
                return False
            self._db.execute(_LINED_UP, (queue,))
        self._known.gates_changed()
        return True

    def mend(self, after: tuple[str, str], limit: int) -> tuple[str, str]:
        """Look for lost lanes; see `Transaction.mend_lanes`. Full ones are opened too: the next claim closes them."""
        for _ in range(limit):
            row = fetch_one(self._db, _NEXT_LANE, after)
            if (
                row is None or row[:2] == after
            ):  # the same again: its text is not UTF-8, so nobody can name it
                return "", ""
            after, state = row[:2], row[2]
            if after[0] not in self._known.gated():
                self.gate(after[0])
            if state not in STANDING:
                self._db.execute(_OPEN_LOST, {"queue": after[0], "key": after[1]})
        return after

    def open_due(self, now: float) -> None:
        """Open lanes whose time has come, `STEP` at most; forget those of which nothing is left but a time."""
        values = {"now": now, "limit": STEP}
        for sql in (_FORGET_DUE, _SETTLE_DUE, _OPEN_DUE):
            self._db.execute(sql, values)
