"""What the engine writes: an exchange is one transaction, carried out by the rooms for its parts."""

from collections.abc import Collection, Mapping, Sequence

import apsw

from jobpipe.fingerprints import marked
from jobpipe.job import ENDED, Status
from jobpipe.store.base import STEP, Batch, Changed, Claimed, Followed, Receipts, Settlement
from jobpipe.store.rows import Row, encoded_error, is_deadline
from jobpipe.store.sqlite.adding import Adding
from jobpipe.store.sqlite.claiming import Claiming, Unserved
from jobpipe.store.sqlite.counts import CountChanges
from jobpipe.store.sqlite.known import Known
from jobpipe.store.sqlite.lanes import Lanes
from jobpipe.store.sqlite.rows import fetch, transaction
from jobpipe.store.sqlite.settling import INTO_GROUP, Settling
from jobpipe.store.sqlite.tables import Tables
from jobpipe.store.sqlite.values import Mismatch
from jobpipe.store.verbs import bringing, followers, notes
from jobpipe.store.verbs.transaction import Ended, at_once
from jobpipe.transitions import PAST_DEADLINE

_RENEW = "update nodes set lease_until = ? where name = ? and lease_until is not null"
_DUE = """
select seq, queue, status, key
from jobs indexed by jobs_later
where status in ('scheduled', 'retrying') and run_at <= ?
order by run_at
limit ?
"""
_PROMOTE = "update jobs set status = 'queued' where seq = ?"
_OVERDUE = """
select
    seq, id, kind, queue, status, length(payload), expires_at,
    iif(instr(options, '"deadline"'), options, null), key
from jobs
where expires_at is not null and finished_at is null and held = 0 and expires_at <= ?
order by expires_at
limit ?
"""
_RESUME = "update queues set paused = 0, reason = null, paused_until = null where paused_until <= ?"
_WAIT_NO_MORE = "delete from waits where seq = ?"
_EXPIRE = "update jobs set status = ?, finished_at = ?, size = ?, error = coalesce(?, error) where seq = ?"


NOTHING = Followed()

SET_BACK = 1.0
"""By how many seconds a batch may be older than the one before, and the clock not count as set back."""


class Writer:
    """The writing half of the store: prepared on one connection, used by one thread at a time."""

    def __init__(self, db: apsw.Connection) -> None:
        self.db, self._known = db, Known(db)
        self._lanes = Lanes(db, self._known)
        self._settling, self._adding = Settling(db, self._known), Adding(db, self._known, self._lanes)
        self._claiming = Claiming(db, self._known)
        self._latest = 0.0

    def forget(self) -> None:
        """Ask the database for everything again: somebody else has written, or a transaction was undone."""
        self._known.forget()

    def exchange(self, batch: Batch) -> Receipts:
        """Carry out a batch; see `jobpipe.store.base.EngineStore.exchange`.

        First in the hope that all is as it mostly is: what is found to be otherwise is undone, and done with care.
        """
        one_by_one = wary = False
        while True:
            try:
                return self._written(batch, one_by_one=one_by_one, wary=wary)
            except (
                Mismatch,
                bringing.Unsure,
                UnicodeDecodeError,
            ):  # a claimed row may hold text that is no UTF-8
                if one_by_one:
                    raise
                one_by_one = True
            except Unserved:
                wary = True

    def _written(self, batch: Batch, *, one_by_one: bool, wary: bool) -> Receipts:
        try:
            with transaction(self.db):
                receipts = self._carry_out(batch, one_by_one=one_by_one, wary=wary)
        except BaseException:
            self.forget()
            raise
        return receipts

    def _carry_out(self, batch: Batch, *, one_by_one: bool, wary: bool) -> Receipts:
        if batch.now < self._latest - SET_BACK:
            self.forget()  # what is remembered of times does not hold
        self._latest = batch.now
        counts = CountChanges()
        lease_lost = not self._renew(batch)
        expired = self._promote(batch.now, counts)
        stale = self._settling.start(batch.starts)
        if batch.notes:
            stale |= at_once(notes.write(Tables(self.db), batch.notes))
        with_jobs = [one for one in batch.settlements if one.jobs]
        plain = [one for one in batch.settlements if not one.jobs] if with_jobs else batch.settlements
        settled = self._settling.settle(plain, counts, stale, one_by_one=one_by_one)
        if with_jobs:
            settled |= self._bring(with_jobs, stale, careful=one_by_one)
        if batch.settlements and (gated := self._known.gated()):
            self._lanes.settled(
                [
                    one.seq
                    for one in batch.settlements
                    if one.queue in gated and (one.seq, one.claim) not in stale
                ]
            )
        followed = self._follow(batch, expired, settled, stale)
        adds = [self._adding.add(add, counts, one_by_one=one_by_one) for add in batch.adds]
        claims: list[Sequence[Claimed]] = [[]] * len(batch.claims)
        more_ready = self._known.lining_up() and not self._lanes.move_in()
        held_back = set[int]()
        if not lease_lost:
            for number, claim in enumerate(batch.claims):
                claims[number], more = self._claiming.claim(
                    batch, claim, counts, one_by_one=one_by_one, wary=wary
                )
                more_ready |= more
                if self._claiming.held_back:
                    held_back.add(number)
        counts.write(self.db)
        return Receipts(
            lease_lost=lease_lost,
            stale=frozenset(stale),
            settled=settled,
            adds=adds,
            claims=claims,
            more_ready=more_ready,
            held_back=frozenset(held_back),
            waiting=self._known.waiting(counts),
            next_due=self._known.next_due(),
            changes=[*(Changed(one.id, Status(one.status)) for one in expired), *followed.changes],
            following=followed.more,
        )

    def _bring(
        self, settlements: Sequence[Settlement], stale: set[tuple[int, int]], *, careful: bool
    ) -> Mapping[int, Status]:
        """Settle jobs with what they bring; returns those that became something else."""
        careful = careful or bringing.need_care(settlements)
        brought = at_once(bringing.settle(Tables(self.db), settlements, careful=careful))
        self._known.forget()
        stale |= brought.stale
        return brought.settled

    def _follow(
        self,
        batch: Batch,
        expired: Sequence[Ended],
        settled: Mapping[int, Status],
        stale: Collection[tuple[int, int]],
    ) -> Followed:
        """Do what follows the ends of jobs, where others wait for them."""
        if not (expired or batch.settlements) or not self._known.any_followed():
            return NOTHING
        ended = [
            Ended(one.seq, one.id, status)
            for one in batch.settlements
            if (status := settled.get(one.seq, one.status)) in ENDED and (one.seq, one.claim) not in stale
        ]
        ended += expired
        followed = self._known.followed([one.seq for one in ended])
        if not followed:
            return NOTHING
        tables = Tables(self.db)
        tables.ended += [one for one in ended if one.seq in followed]
        done = at_once(followers.finish(tables, batch.now))
        self._known.forget()
        return done

    def _renew(self, batch: Batch) -> bool:
        if batch.lease_until is not None:
            self.db.execute(_RENEW, (batch.lease_until, batch.node))
            return bool(self.db.changes())
        return not batch.claims or self._known.node(batch.node) is not None

    def _promote(self, now: float, counts: CountChanges) -> Sequence[Ended]:
        """Expire what is past its expires_at, then queue what is due; at most `STEP` of each. Returns what expired.

        First it ends the pauses that are over.
        """
        due_at = self._known.next_due()
        if due_at is None or due_at > now:
            return ()
        self.db.execute(_RESUME, (now,))
        if self.db.changes():
            self._known.pauses_changed()
        overdue = fetch(self.db, _OVERDUE, (now, STEP))
        ended = [self._expire(now, row, counts) for row in overdue]
        if overdue:
            self._lanes.expired((row[0], row[3], row[-1]) for row in overdue)
        due = fetch(self.db, _DUE, (now, STEP))
        self.db.executemany(_PROMOTE, [(seq,) for seq, _, _, _ in due])
        for _, queue, status, _ in due:
            counts.move(queue, status, Status.QUEUED)
        self._lanes.promoted((seq, queue, key) for seq, queue, _, key in due)
        if self._known.gated():
            self._lanes.open_due(now)
        self._known.came_due(now)
        return ended

    def _expire(self, now: float, row: Row, counts: CountChanges) -> Ended:
        """End a job that still waits at its expires_at."""
        seq, job_id, kind, queue, status, size, expires_at, options, _ = row
        becomes, error = Status.EXPIRED, None
        if options is not None and is_deadline(expires_at, options):
            becomes, error = Status.FAILED, marked(PAST_DEADLINE, kind)
            self.db.execute(INTO_GROUP, (error.fingerprint or None, seq))
        self.db.execute(_EXPIRE, (becomes.value, now, size, encoded_error(error), seq))
        counts.move(queue, status, becomes, size=size)
        if status == Status.BLOCKED:
            self.db.execute(_WAIT_NO_MORE, (seq,))
        return Ended(seq, job_id, becomes)
