"""What the engine writes: one exchange is one transaction, in one round trip as a rule."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import NamedTuple

from jobpipe.errors import StoreError, StoreUnavailable
from jobpipe.job import JobError, NewJob, Status
from jobpipe.store.base import STEP, Batch, Claimed, Receipt, Receipts, Settlement
from jobpipe.store.postgres.adding import Adding, Conflict, add_with_care, store_or_look
from jobpipe.store.postgres.address import Leases
from jobpipe.store.postgres.line import TRIES, CommitUnknown, Line
from jobpipe.store.postgres.parameters import integers
from jobpipe.store.postgres.session import Answer, Row, Session
from jobpipe.store.postgres.settling import Fence, Settling, send_starts, written_before
from jobpipe.store.postgres.tally import Tally, bounded, counting, fold
from jobpipe.store.postgres.words import ended_words, notify, wake
from jobpipe.store.rows import claimed_from, encoded_error

CLOCK = "extract(epoch from clock_timestamp())::double precision"
"""The database's clock, in seconds since the epoch."""

SCATTERED = 200
"""How many rows of calls of enqueue() there are before the counts are gathered."""

_RENEW = {
    "database": f"update nodes set lease_until = {CLOCK} + %s where name = %s and lease_until is not "
    "null returning node",
    "caller": "update nodes set lease_until = %s where name = %s and lease_until is not null returning node",
}

_PROMOTE = (
    "select p.ready, p.watched from promote(%s, %s, %s) p "
    "where exists (select from live where status in ('scheduled', 'retrying') and run_at <= %s) "
    "or exists (select from live where expires_at is not null and node is null and expires_at <= %s)"
)
"""The statement that does it is in the function: to set it going costs more than to see that nothing is due."""

_READY = (
    "select l.seq, l.priority, l.run_at from live l where l.status = 'queued' and l.node is null "
    "and {which} and (l.expires_at is null or l.expires_at > %(now)s) "
    "order by l.priority desc, l.run_at, l.seq limit %(limit)s for update skip locked"
)
# Two ways, of which the server takes one. The first entries of one index over all queues: but jobs of paused queues
# are passed over there. Or the first of each queue that is not paused: but so many are locked from each of them. To
# lock a row costs about ten times as much as to pass one over.
_BY_QUEUE = (
    "select exists (select from queues where paused) and "
    "10 * %(limit)s * (select count(*) from queues where not paused) < (select sum(c.jobs) from counts c "
    "join queues q on q.name = c.queue where q.paused and c.state = 'queued')"
)
_CLAIM = (
    # Locked, so that no rescue can take the node for dead before what is claimed here is committed.
    "with me as (select node from nodes where name = %(node)s and lease_until is not null for share), "
    f"way as materialized (select coalesce(({_BY_QUEUE}), false) as by_queue), "
    "first as materialized ("
    + _READY.format(
        which="l.queue <> all (array(select name from queues where paused)) "
        "and not (select by_queue from way) and exists (select from me)"
    )
    + "), of_queues as materialized (select r.seq from queues q cross join lateral "
    f"({_READY.format(which='l.queue = q.name')}) r "
    "where (select by_queue from way) and not q.paused and exists (select from me) "
    "order by r.priority desc, r.run_at, r.seq limit %(limit)s), "
    "ready as (select seq from first union all select seq from of_queues), "
    "taken as (update live l set claim = l.claim + 1, node = (select node from me), token = %(token)s, "
    "started_at = null from ready where l.seq = ready.seq returning l.*), "
    + counting("select queue, 'queued', -1, 0 from taken").replace("%s", "%(slot)s")
    + " "
    "select -t.priority::bigint, t.run_at, t.seq, j.id, j.kind, j.queue, j.payload, t.priority, t.run_at, t.attempt, "
    "j.max_retries, t.claim, t.rescued, j.options from taken t join jobs j on j.seq = t.seq"
)
_ANY_READY = (
    "select exists (select from queues q where not q.paused and exists (select from live l "
    "where l.status = 'queued' and l.node is null and l.queue = q.name))"
)
_HEAD = _READY.format(which="l.queue <> all (array(select name from queues where paused))")
_WAITS_NO_MORE = "delete from live where seq = any(%s) returning seq, watched"
SIDELINE = (
    "update jobs set status = 'failed', finished_at = %s, error = %s, size = length(payload) where seq = any(%s) "
    "returning id, queue, size"
)
_UNKNOWN = (
    "select l.seq, j.id, l.queue, l.claim, l.attempt from live l join jobs j on j.seq = l.seq "
    "where l.node = (select node from nodes where name = %s) and l.token = any(%s) for update of l"
)
_HUNGRY = "update nodes set hungry = %s where name = %s"
_WAITING = "coalesce(sum(jobs) filter (where state in ('scheduled', 'queued', 'retrying')), 0)"
_STATE = (
    "select c.waiting, c.calls, least((select min(run_at) from live where status in ('scheduled', 'retrying')), "
    "(select min(expires_at) from live where expires_at is not null and node is null)), n.me is not null, "
    "n.others, n.hungry, (select array_agg(array[seq, claim]) from live where status = 'cancelling' and node = n.me) "
    "from (select "
    f"{bounded(_WAITING)} as waiting, count(*) filter (where slot < 0) as calls from counts) c, "
    "(select max(node) filter (where name = %s) as me, coalesce(bool_or(name <> %s), false) as others, "
    "coalesce(bool_or(hungry and name <> %s), false) as hungry from nodes where lease_until is not null) n"
)


class State(NamedTuple):
    """How the store stands after an exchange."""

    waiting: int
    calls: int
    """of enqueue(), whose counts are not gathered yet"""
    next_due: float | None
    alive: bool
    """whether the node has a lease"""
    others: bool
    """whether there are other nodes"""
    others_hungry: bool
    cancelling: Sequence[tuple[int, int]] | None


async def clock_offset(session: Session) -> float:
    """By how many seconds the database's clock is ahead of this machine's."""
    await session.row("select 1")  # so that nothing else is on the way
    before = time.time()
    row = await session.row(f"select {CLOCK}")
    return (row[0] if row else before) - (before + time.time()) / 2


class Writer:
    """The writing half of the store, for one exchange at a time.

    Other nodes write too, so of the database it is certain only of what cannot become untrue: names of queues.
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

    async def exchange(self, batch: Batch, patience: float) -> Receipts:
        """Carry out a batch; see `jobpipe.store.base.EngineStore.exchange`.

        `patience`: for how many seconds a claim whose commit was not answered may still come to light.
        """
        self.more_ready = False
        if batch.lease_until is not None:
            self.offset = await self._line.transact(clock_offset)
        if self._unknown:
            await self._line.transact(lambda session: self._hand_back(session, batch))
        self._token += 1
        exchange: Exchange | None = None
        try:
            exchange = await self._committed(batch)
            await self._look_after(exchange)
            self._learn(exchange)
            await self._tell(exchange)
            receipts = exchange.receipts
        except StoreError as error:
            if exchange is not None or isinstance(error, CommitUnknown):
                self._doubt(batch, patience)
            raise
        except Exception:
            self._doubt(batch, patience)  # it may have been raised after the commit
            raise
        return receipts

    async def _committed(self, batch: Batch) -> "Exchange":
        """Write and take it all, and know what came of it."""
        with suppress(Conflict):
            return await self._tried(batch, careful=False)
        for _ in range(TRIES):
            # Again when somebody stored or deleted a job of the same id between the look and the insert.
            with suppress(Conflict):
                return await self._tried(batch, careful=True)
        raise _others_interfere()

    async def _tried(self, batch: Batch, *, careful: bool) -> "Exchange":
        exchange = await self._line.transact(lambda session: self._once(session, batch, careful=careful))
        exchange.judge()
        return exchange

    async def _once(self, session: Session, batch: Batch, *, careful: bool) -> "Exchange":
        exchange = Exchange(session, batch, self._slot)
        exchange.renew(self._leases)
        exchange.promote()
        exchange.settle()
        if careful:
            await exchange.add_with_care()
        else:
            await exchange.add(self._names)
        exchange.claim(self._token)
        if self._scattered:
            fold(session, self._slot, all_slots=False)
        exchange.look()
        return exchange

    async def _look_after(self, exchange: "Exchange") -> None:
        """What is looked at only where something is odd: ids that were taken, and settlements that came before."""
        doubts = [self._doubtful[fence] for fence in exchange.stale & self._doubtful.keys()]
        if doubts:
            exchange.stale -= await self._line.transact(lambda session: written_before(session, doubts))
        if taken := exchange.taken:
            exchange.complete(await self._look_at(taken))

    async def _look_at(self, jobs: Sequence[NewJob]) -> Sequence[Receipt]:
        for _ in range(TRIES):
            # Again when somebody deleted a job between the insert and the look.
            with suppress(Conflict):
                return await self._line.transact(lambda session: store_or_look(session, jobs, self._slot))
        raise _others_interfere()

    async def sideline(self, batch: Batch, words: str) -> str | None:
        """See `jobpipe.store.base.EngineStore.sideline`."""

        async def verb(session: Session) -> str | None:
            rows = await session.rows(_HEAD, {"now": float(batch.now), "limit": 1})
            seqs = integers([row[0] for row in rows])
            live = session.run(_WAITS_NO_MORE, (seqs,))
            error = encoded_error(JobError("DamagedRow", words))
            gone = session.run(SIDELINE, (float(batch.now), error, seqs))
            await session.answered()
            tally = Tally(self._slot)
            for job_id, queue, size in gone.rows():
                tally.move(queue, Status.QUEUED, Status.FAILED, size=size)
                if any(watched for _, watched in live.rows()):
                    notify(session, self._channel, ended_words([job_id]))
            tally.write(session)
            return next((str(job_id) for job_id, _, _ in gone.rows()), None)

        return await self._line.transact(verb)

    def _doubt(self, batch: Batch, patience: float) -> None:
        """It may be written, and nobody is told: remember what is to be made good then."""
        if batch.claim:
            self._unknown[self._token] = time.monotonic() + patience
        self._doubtful |= {(one.seq, one.claim): one for one in batch.settlements}

    async def _hand_back(self, session: Session, batch: Batch) -> None:
        """Hand back what exchanges claimed whose commits were not answered: nobody here knows of those claims."""
        rows = await session.rows(_UNKNOWN, (batch.node, integers(list(self._unknown))))
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
                    settled_at=batch.now,
                )
                for seq, job_id, queue, claim, attempt in rows
            ],
            self._slot,
        )
        lost.send(session)
        await session.answered()
        lost.judge()
        if rows:
            wake(session, self._channel, batch.node)
            notify(session, self._channel, ended_words(lost.watched))

    def _learn(self, exchange: "Exchange") -> None:
        """What is certain now that the transaction is committed."""
        self._names.update(job.queue for job in exchange.stored)
        self._scattered = exchange.scattered
        self._doubtful.clear()
        now = time.monotonic()
        self._unknown = {token: until for token, until in self._unknown.items() if until > now}

    async def _tell(self, exchange: "Exchange") -> None:
        """After the commit: tell other nodes what concerns them, and look once more if this one became hungry.

        In this order no job is missed: who becomes hungry says so, then looks; who leaves jobs commits, then asks who
        is hungry. Not in the transaction itself, since PostgreSQL commits those that notify one after another.
        """
        node, hungry = exchange.batch.node, exchange.hungry
        # The exchange itself is done: a failure here costs a slow wake-up.
        with suppress(StoreError):
            if hungry is not None and self._hungry.get(node) is not hungry:
                await self._line.run(_HUNGRY, (hungry, node))
                self._hungry[node] = hungry
                self.more_ready = hungry and await self._line.transact(_any_ready)
            if exchange.leaves_ready or exchange.watched:
                await self._line.transact(lambda session: self._notify(session, exchange))

    async def _notify(self, session: Session, exchange: "Exchange") -> None:
        if exchange.leaves_ready:
            wake(session, self._channel, exchange.batch.node)
        notify(session, self._channel, ended_words(exchange.watched))

    def forget(self, node: str) -> None:
        """Its row was made anew."""
        self._hungry.pop(node, None)


async def _any_ready(session: Session) -> bool:
    row = await session.row(_ANY_READY)
    return bool(row and row[0])


def _others_interfere() -> StoreUnavailable:
    return StoreUnavailable("others store and delete jobs of the same ids all the time: try again")


class Exchange:
    """One batch on its way: what is sent, without waiting for an answer, and what came of it once it is committed."""

    def __init__(self, session: Session, batch: Batch, slot: int) -> None:
        self._session, self.batch, self._slot = session, batch, slot
        self._starts: Answer | None = None
        self._claim: Answer | None = None
        self._settling = Settling(batch.settlements, slot)
        self._adding = Adding((), set(), slot)
        self._careful: Sequence[Sequence[Receipt]] | None = None
        self._taken: Sequence[Receipt] = ()
        self._claimed: Sequence[Claimed] = ()
        self.stale: set[Fence] = set()
        self.watched: Sequence[str] = ()
        """ids of watched jobs that have ended"""

    def renew(self, leases: Leases) -> None:
        """Renew the node's lease."""
        batch = self.batch
        if batch.lease_until is not None:
            until = batch.lease_until - batch.now if leases == "database" else batch.lease_until
            self._session.run(_RENEW[leases], (float(until), batch.node))

    def promote(self) -> None:
        """Make ready what is due, and expire what is past its time."""
        now = float(self.batch.now)
        self._promoted = self._session.run(_PROMOTE, (now, STEP, self._slot, now, now))

    def settle(self) -> None:
        """Write starts and settlements."""
        if self.batch.starts:
            self._starts = send_starts(self._session, self.batch.starts)
        self._settling.send(self._session)

    async def add(self, names: set[str]) -> None:
        """Store new jobs, in the hope that nothing is in conflict; raises `Conflict` when all or nothing is not all."""
        self._adding = Adding(self.batch.adds, names, self._slot)
        self._adding.send(self._session)
        await self._adding.check(self._session)

    async def add_with_care(self) -> None:
        """Add one after another, each after a look."""
        self._careful = [await add_with_care(self._session, add, self._slot) for add in self.batch.adds]

    def claim(self, token: int) -> None:
        """Take ready jobs."""
        if limit := self.batch.claim:
            values = {"node": self.batch.node, "now": float(self.batch.now), "limit": limit}
            self._claim = self._session.run(_CLAIM, values | {"token": token, "slot": self._slot})

    def look(self) -> None:
        """Ask how the store stands."""
        self._asked = self._session.run(_STATE, (self.batch.node,) * 3)

    def judge(self) -> None:
        """Learn what came of it, once it is committed."""
        self._state = State(*self._asked.rows()[0])
        promoted, expired = self._promoted.row() or (0, None)
        self._settling.judge()
        self._readied = promoted + self._settling.readied
        self.watched = [*(expired or ()), *self._settling.watched]
        self.stale |= self._settling.stale
        if self._starts is not None:
            self.stale |= {(one.seq, one.claim) for one in self.batch.starts} - set(self._starts.rows())
        if self._claim is not None:
            # By -priority, run_at, seq: what an update returns has no order.
            self._claimed = claimed_from([row[2:] for row in sorted(self._claim.rows(), key=_order)])

    @property
    def taken(self) -> Sequence[NewJob]:
        """The new jobs whose ids were taken."""
        return self._adding.taken

    def complete(self, taken: Sequence[Receipt]) -> None:
        """Take in the receipts of those jobs."""
        self._taken = taken

    @cached_property
    def _adds(self) -> Sequence[Sequence[Receipt]]:
        return self._careful if self._careful is not None else self._adding.receipts(self._taken)

    @property
    def stored(self) -> Iterator[NewJob]:
        """The jobs that are new."""
        for add, receipts in zip(self.batch.adds, self._adds, strict=True):
            yield from (job for job, one in zip(add.jobs, receipts, strict=True) if one.verdict == "stored")

    @property
    def scattered(self) -> bool:
        """Whether the counts want to be gathered."""
        return self._state.calls > SCATTERED

    @property
    def hungry(self) -> bool | None:
        """Whether the node has room and found too little; None: it did not ask."""
        if not self.batch.claim or not self._state.alive:
            return None
        return len(self._claimed) < self.batch.claim

    @property
    def leaves_ready(self) -> bool:
        """Whether there are ready jobs for other nodes.

        A full claim may have left some as well: ready before, or passed over by a node that asked at the same time.
        """
        if self.hungry or not self._state.others:
            return False
        if self._state.others_hungry and self.hungry is False:
            return True
        return self._readied > 0 or any(job.status is Status.QUEUED for job in self.stored)

    @property
    def receipts(self) -> Receipts:
        """For who asked."""
        batch, state = self.batch, self._state
        return Receipts(
            lease_lost=bool(batch.claim or batch.lease_until is not None) and not state.alive,
            stale=frozenset(self.stale),
            settled=self._settling.changed,
            adds=self._adds,
            claimed=self._claimed,
            waiting=state.waiting,
            next_due=state.next_due,
            cancelling=frozenset((seq, claim) for seq, claim in state.cancelling or ()),
        )


def _order(row: Row) -> Row:
    return row[:3]
