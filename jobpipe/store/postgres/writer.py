"""What the engine writes: one exchange is one transaction, in two round trips as a rule."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from jobpipe.errors import StoreError, StoreUnavailable
from jobpipe.job import Status
from jobpipe.store.base import STEP, Batch, Claimed, Receipt, Receipts, Settlement
from jobpipe.store.postgres.adding import Adding, Conflict, add_with_care
from jobpipe.store.postgres.address import Leases
from jobpipe.store.postgres.line import TRIES, CommitUnknown, Line
from jobpipe.store.postgres.parameters import integers
from jobpipe.store.postgres.session import Answer, Row, Session
from jobpipe.store.postgres.settling import Fence, Settling, send_starts, written_before
from jobpipe.store.postgres.tally import WAITING_JOBS, Tally, fold
from jobpipe.store.postgres.words import ended_words, notify, wake
from jobpipe.store.rows import decoded_options

CLOCK = "extract(epoch from clock_timestamp())::double precision"
"""The database's clock, in seconds since the epoch."""

SCATTERED = 200
"""How many rows of calls of enqueue() there are before the counts are gathered."""

# Locks the node's row, so that no rescue can take it for dead before what is claimed here is committed.
_NODE = "select node from nodes where name = %s and lease_until is not null for share"
_RENEW = {
    "database": f"update nodes set lease_until = {CLOCK} + %s where name = %s and lease_until is not "
    "null returning node",
    "caller": "update nodes set lease_until = %s where name = %s and lease_until is not null returning node",
}

_PROMOTE = (
    "with overdue as (select seq, status from live where expires_at is not null and node is null and "
    "expires_at <= %s "
    "order by expires_at limit %s for update skip locked), "
    "gone as (delete from live l using overdue o where l.seq = o.seq returning l.*), "
    "expired as (update jobs j set status = 'expired', finished_at = %s, size = length(j.payload), "
    "run_at = g.run_at, attempt = g.attempt, claim = g.claim, rescued = g.rescued, started_at = "
    "g.started_at, error = g.error "
    "from gone g where j.seq = g.seq returning j.id, j.queue, g.status as before, j.size, g.watched), "
    "due as (select seq, status from live where status in ('scheduled', 'retrying') and run_at <= %s "
    "and (expires_at is null or expires_at > %s) order by run_at limit %s for update skip locked), "
    "queued as (update live l set status = 'queued' from due d where l.seq = d.seq returning "
    "l.queue, d.status as before) "
    "select 'expired', id, queue, before, size, watched from expired "
    "union all select 'queued', null, queue, before, 0, false from queued"
)

_CLAIM = (
    "with me as (select node from nodes where name = %s and lease_until is not null), "
    "ready as materialized (select r.seq from queues q cross join lateral "
    "(select l.seq, l.priority, l.run_at from live l where l.status = 'queued' and l.node is null "
    "and l.queue = q.name and (l.expires_at is null or l.expires_at > %s) "
    "order by l.priority desc, l.run_at, l.seq limit %s for update skip locked) r "
    "where not q.paused and exists (select from me) order by r.priority desc, r.run_at, r.seq limit %s), "
    "taken as (update live l set claim = l.claim + 1, node = (select node from me), token = %s, started_at = null "
    "from ready where l.seq = ready.seq returning l.*) "
    "select -t.priority, t.run_at, t.seq, j.id, j.kind, j.queue, j.payload, t.priority, t.run_at, t.attempt, "
    "j.max_retries, t.claim, t.rescued, j.options from taken t join jobs j on j.seq = t.seq"
)
_ANY_READY = (
    "select exists (select from queues q where not q.paused and exists (select from live l "
    "where l.status = 'queued' and l.node is null and l.queue = q.name))"
)
_CANCELLING = (
    "select l.seq, l.claim from live l join nodes n on n.node = l.node and n.name = %s "
    "where l.status = 'cancelling'"
)
_UNKNOWN = (
    "select l.seq, j.id, l.queue, l.claim, l.attempt from live l join jobs j on j.seq = l.seq "
    "where l.node = (select node from nodes where name = %s) and l.token = any(%s) for update of l"
)
_HUNGRY = "update nodes set hungry = %s where name = %s and hungry <> %s"
_STATE = (
    f"select ({WAITING_JOBS}), least((select min(run_at) from live where status in ('scheduled', 'retrying')), "
    "(select min(expires_at) from live where expires_at is not null and node is null)), "
    "exists (select from nodes where lease_until is not null and name <> %s), "
    "exists (select from nodes where hungry and lease_until is not null and name <> %s), "
    "(select count(*) from counts where slot < 0)"
)


def clock_offset(session: Session) -> float:
    """By how many seconds the database's clock is ahead of this machine's."""
    session.row("select 1")  # so that nothing else is on the way
    before = time.time()
    row = session.row(f"select {CLOCK}")
    return (row[0] if row else before) - (before + time.time()) / 2


class Writer:
    """The writing half of the store, used by one thread at a time.

    Other nodes write too, so it remembers nothing of the database but what cannot become untrue: names of queues.
    """

    def __init__(self, line: Line, slot: int, leases: Leases, channel: str) -> None:
        self._line, self._slot, self._leases, self._channel = line, slot, leases, channel
        self._names: set[str] = set()
        self._hungry: dict[str, bool] = {}
        self._token = time.time_ns()  # larger than any of an earlier run
        self._unknown: dict[int, float] = {}
        self._doubtful: dict[Fence, Settlement] = {}
        self._scattered = False
        self.offset: float | None = None
        """by how much the database's clock was ahead at the last renewal"""
        self.more_ready = False
        """whether jobs became ready while the last exchange that found too few of them was committed"""

    def exchange(self, batch: Batch, patience: float) -> Receipts:
        """Carry out a batch; see `jobpipe.store.base.EngineStore.exchange`.

        `patience`: for how many seconds a claim whose commit was not answered may still come to light.
        """
        self.more_ready = False
        self._token += 1
        try:
            exchange = self._carry_out(batch)
        except CommitUnknown:
            if batch.claim:
                self._unknown[self._token] = time.monotonic() + patience
            self._doubtful |= {(one.seq, one.claim): one for one in batch.settlements}
            self._hungry.clear()
            raise
        self._learn(exchange)
        self._wake(exchange)
        return exchange.receipts

    def _carry_out(self, batch: Batch) -> "Exchange":
        if batch.lease_until is not None:
            self.offset = self._line.transact(clock_offset)
        with suppress(Conflict):
            return self._line.transact(lambda session: self._once(session, batch, careful=False)).concluded()
        for _ in range(TRIES):
            # Again when somebody stored or deleted a job of the same id between the look and the insert.
            with suppress(Conflict):
                return self._line.transact(
                    lambda session: self._once(session, batch, careful=True)
                ).concluded()
        raise StoreUnavailable("others store and delete jobs of the same ids all the time: try again")

    def _once(self, session: Session, batch: Batch, *, careful: bool) -> "Exchange":
        exchange = Exchange(session, batch, Tally(self._slot), self._channel)
        if self._unknown:
            exchange.return_unknown(list(self._unknown))
        exchange.send(self._leases)
        if careful:
            exchange.judge_settlements(self._doubtful)
            exchange.add_with_care()
            exchange.send_claim(self._token)
        else:
            exchange.send_adds(self._names)
            exchange.send_claim(self._token)
            exchange.judge_settlements(self._doubtful)
            exchange.judge_adds()
        exchange.judge_claim()
        hungry = exchange.hungry
        if hungry is not None and self._hungry.get(batch.node) is not hungry:
            session.run(_HUNGRY, (hungry, batch.node, hungry))
            exchange.newly_hungry = hungry
        exchange.finish()
        if self._scattered:
            fold(session, self._slot, all_slots=False)
        return exchange

    def _learn(self, exchange: "Exchange") -> None:
        """What is certain now that the transaction is committed."""
        self._names |= exchange.names
        if exchange.hungry is not None:
            self._hungry[exchange.batch.node] = exchange.hungry
        self._scattered = exchange.scattered
        self._doubtful.clear()
        now = time.monotonic()
        self._unknown = {token: until for token, until in self._unknown.items() if until > now}

    def _wake(self, exchange: "Exchange") -> None:
        """After the commit: tell hungry nodes of ready jobs that were left, and look once more if we became one.

        In this order none is missed: who becomes hungry says so, then looks; who leaves jobs commits, then asks who
        is hungry. Not in the transaction itself, since PostgreSQL commits those that notify one after another.
        """
        if not exchange.leaves_ready and not exchange.newly_hungry:
            return
        # The exchange itself is done: a failure here costs a slow wake-up.
        with suppress(StoreError):
            self.more_ready = self._line.transact(lambda session: self._after(session, exchange))

    def _after(self, session: Session, exchange: "Exchange") -> bool:
        if exchange.leaves_ready:
            wake(session, self._channel, exchange.batch.node)
        if not exchange.newly_hungry:
            return False
        row = session.row(_ANY_READY)
        return bool(row and row[0])

    def forget(self, node: str) -> None:
        """Its row was made anew."""
        self._hungry.pop(node, None)


class Exchange:
    """One batch on its way: what is sent, and what came of it."""

    receipts: Receipts
    _state: Answer

    def __init__(self, session: Session, batch: Batch, tally: Tally, channel: str) -> None:
        self._session, self.batch, self._tally, self._channel = session, batch, tally, channel
        self._lease: Answer | None = None
        self._starts: Answer | None = None
        self._claim: Answer | None = None
        self._settling = Settling(batch.settlements)
        self._adding = Adding((), set())
        self._adds: Sequence[Sequence[Receipt]] = ()
        self._claimed: Sequence[Claimed] = ()
        self._stale: set[Fence] = set()
        self._settled: dict[int, Status] = {}
        self._watched: list[str] = []
        self._lease_lost = False
        self.newly_hungry = False
        self.leaves_ready = self.scattered = False
        self.names: set[str] = set()

    def return_unknown(self, tokens: Sequence[int]) -> None:
        """Hand back what exchanges claimed whose commits were not answered: nobody here knows of those claims."""
        rows = self._session.rows(_UNKNOWN, (self.batch.node, integers(tokens)))
        lost = Settling(
            [
                Settlement(
                    seq=seq,
                    id=job_id,
                    queue=queue,
                    claim=claim,
                    outcome=None,
                    status=Status.QUEUED,
                    attempt=attempt,
                    settled_at=self.batch.now,
                )
                for seq, job_id, queue, claim, attempt in rows
            ]
        )
        lost.send(self._session)
        _, _, watched = lost.judge(self._tally)
        self._watched += watched

    def send(self, leases: Leases) -> None:
        """Send what comes before the adds."""
        batch, session = self.batch, self._session
        if batch.lease_until is not None:
            until = batch.lease_until - batch.now if leases == "database" else batch.lease_until
            self._lease = session.run(_RENEW[leases], (until, batch.node))
        elif batch.claim:
            self._lease = session.run(_NODE, (batch.node,))
        now = float(batch.now)
        self._due = session.run(_PROMOTE, (now, STEP, now, now, now, STEP))
        if batch.starts:
            self._starts = send_starts(session, batch.starts)
        self._settling.send(session)

    def send_adds(self, names: set[str]) -> None:
        """Store new jobs, in the hope that nothing is in conflict."""
        self._adding = Adding(self.batch.adds, names)
        self._adding.send(self._session)

    def send_claim(self, token: int) -> None:
        """Take ready jobs, and ask which held ones were asked to stop."""
        batch = self.batch
        if batch.claim:
            limit = batch.claim
            values = (batch.node, float(batch.now), limit, limit, token)
            self._claim = self._session.run(_CLAIM, values)
        self._cancelling = None
        if batch.claim or batch.starts or batch.lease_until is not None:
            self._cancelling = self._session.run(_CANCELLING, (batch.node,))

    def judge_settlements(self, doubtful: dict[Fence, Settlement]) -> None:
        """Learn what became of promotions, starts and settlements."""
        self._lease_lost = self._lease is not None and self._lease.row() is None
        for status, job_id, queue, before, size, watched in self._due.rows():
            self._tally.move(queue, before, status, size=size)
            if watched:
                self._watched.append(job_id)
        if self._starts is not None:
            self._stale = {(one.seq, one.claim) for one in self.batch.starts} - set(self._starts.rows())
        stale, self._settled, watched_ids = self._settling.judge(self._tally)
        if doubts := [doubtful[fence] for fence in stale & doubtful.keys()]:
            stale -= written_before(self._session, doubts)
        self._stale |= stale
        self._watched += watched_ids

    def judge_adds(self) -> None:
        """Learn what became of new jobs; raises `Conflict`."""
        self._adds = self._adding.judge(self._session, self._tally)
        self._note_names()

    def add_with_care(self) -> None:
        """Add one after another, each after a look."""
        self._adds = [add_with_care(self._session, add, self._tally) for add in self.batch.adds]
        self._note_names()

    def _note_names(self) -> None:
        self.names = {
            job.queue
            for add, receipts in zip(self.batch.adds, self._adds, strict=True)
            for job, receipt in zip(add.jobs, receipts, strict=True)
            if receipt.verdict == "stored"
        }

    def judge_claim(self) -> None:
        """Learn what was claimed."""
        if self._claim is None:
            return
        rows = self._claim.rows()
        rows.sort()  # by -priority, run_at, seq: what an update returns has no order
        self._claimed = list(map(_claimed, rows))
        readied = self._tally.readied
        for job in self._claimed:
            self._tally.move(job.queue, Status.QUEUED, None)
        self._tally.readied = readied

    @property
    def hungry(self) -> bool | None:
        """Whether the node has room and found too little; None: it did not ask."""
        if not self.batch.claim or self._lease_lost:
            return None
        return len(self._claimed) < self.batch.claim

    def finish(self) -> None:
        """Write the counts, and ask how the store stands; what it answers comes with the commit."""
        session, batch = self._session, self.batch
        self._tally.write(session)
        if self._watched:
            notify(session, self._channel, ended_words(self._watched))
        self._state = session.run(_STATE, (batch.node, batch.node))

    def concluded(self) -> "Exchange":
        """Make the receipts, once it is committed."""
        row = self._state.row()
        waiting, next_due, others, others_hungry, calls = row or (0, None, False, False, 0)
        self.scattered = calls > SCATTERED
        # A full claim may have left some as well: ready before, or passed over by a node that asked at the same time.
        self.leaves_ready = not self.hungry and (
            (others and self._tally.readied > 0) or (others_hungry and self.hungry is False)
        )
        self.receipts = Receipts(
            lease_lost=self._lease_lost,
            stale=frozenset(self._stale),
            settled=self._settled,
            adds=self._adds,
            claimed=self._claimed,
            waiting=waiting,
            next_due=next_due,
            cancelling=frozenset(self._cancelling.rows()) if self._cancelling is not None else frozenset(),
        )
        return self


def _claimed(row: Row) -> Claimed:
    values: Sequence[Any] = (*row[2:-1], decoded_options(row[-1]))
    return Claimed(*values)
