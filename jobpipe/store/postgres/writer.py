"""What the engine writes: one exchange is one transaction, in one round trip as a rule."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from operator import itemgetter
from typing import NamedTuple

from jobpipe.errors import StoreError, StoreUnavailable, TablesLocked
from jobpipe.job import JobError, NewJob, Status
from jobpipe.store.base import LOCKED, STEP, Batch, Changed, Claimed, Receipt, Receipts, Settlement
from jobpipe.store.postgres.adding import Adding, Conflict, add_with_care, store_or_look
from jobpipe.store.postgres.address import Leases
from jobpipe.store.postgres.arrays import Texts, integers, texts
from jobpipe.store.postgres.claiming import (
    ASKED_NOW,
    CLAIM,
    CLAIMED,
    EDITED,
    HEAD,
    LAST_WALKED,
    MINE,
    PASSED,
    PLACE,
    PUT_ASIDE,
    SLICE,
    SLICES,
    WALKED,
)
from jobpipe.store.postgres.connections import TRIES, CommitUnknown, KeptConnection, Locked
from jobpipe.store.postgres.counts import CountChanges, bounded, fold
from jobpipe.store.postgres.locks import Aside, Locks
from jobpipe.store.postgres.notifications import ended_words, notify, wake
from jobpipe.store.postgres.reader import any_ready
from jobpipe.store.postgres.session import Result, Row, Session, Values
from jobpipe.store.postgres.settling import Fence, Settling, send_starts, written_before
from jobpipe.store.rows import claimed_from, encoded_error

CLOCK = "extract(epoch from clock_timestamp())::double precision"
"""The database's clock, in seconds since the epoch."""

ROUNDS = 3
"""How often an exchange is tried that met locks of other programs."""

SCATTERED = 200
"""How many rows of calls of enqueue() there are before the counts are gathered."""

_RENEW = """
update nodes
set lease_until = {until}
where name = %(node)s and lease_until is not null
returning node
"""
RENEW = {
    "database": _RENEW.format(until=f"{CLOCK} + %(until)s"),
    "caller": _RENEW.format(until="%(until)s"),
}

_PROMOTE = """
select p.ready, p.watched
from promote(%(now)s, %(limit)s, %(slot)s) p
where exists (
        select from live
        where status in ('scheduled', 'retrying') and run_at <= %(now)s
    )
    or exists (
        select from live
        where expires_at is not null and node is null and expires_at <= %(now)s
    )
"""
"""The statement that does it is in the function: to set it going costs more than to see that nothing is due."""

_WAITS_NO_MORE = """
delete from live
where seq = any(%(seqs)s)
returning seq, watched
"""
SIDELINE = """
update jobs
set status = 'failed',
    finished_at = %(now)s,
    error = %(error)s,
    size = length(payload)
where seq = any(%(seqs)s)
returning id, queue, size
"""

_UNKNOWN = """
select l.seq, j.id, l.queue, l.claim, l.attempt
from live l
join jobs j on j.seq = l.seq
where l.node = (select node from nodes where name = %(node)s)
    and l.token = any(%(tokens)s)
for update of l skip locked
"""
_IDLE = "update nodes set idle = %(idle)s where name = %(node)s"
_READ_CLOCK = f"select {CLOCK}"

_WAITING = """
coalesce(sum(jobs), 0)
+ (select coalesce(sum(jobs), 0) from totals where state in ('scheduled', 'queued', 'retrying'))
"""
# The columns of `State`. Most often all nodes serve the same kinds, which is quickly seen.
_STATE = f"""
select
    c.waiting,
    c.calls,
    least(
        (select min(run_at) from live where status in ('scheduled', 'retrying')),
        (select min(expires_at) from live where expires_at is not null and node is null)
    ),
    n.me is not null,
    n.others,
    n.idle,
    (select array_agg(array[seq, claim]) from live where status = 'cancelling' and node = n.me)
from (
    select {bounded(_WAITING)} as waiting, count(*) as calls
    from counts
    where slot < 0
) c, (
    select
        max(node) filter (where name = %(node)s) as me,
        coalesce(bool_or(name <> %(node)s), false) as others,
        coalesce(
            bool_or(idle and name <> %(node)s and (kinds = %(kinds)s or kinds && %(kinds)s)),
            false
        ) as idle
    from nodes
    where lease_until is not null
) n
"""


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
    others_idle: bool
    """whether one of them that serves a kind of this one found too few jobs"""
    cancelling: Sequence[tuple[int, int]] | None


async def clock_offset(session: Session) -> float:
    """By how many seconds the database's clock is ahead of this machine's."""
    await session.row("select 1")  # so that nothing else is on the way
    before = time.time()
    row = await session.row(_READ_CLOCK)
    return (row[0] if row else before) - (before + time.time()) / 2


class Writer:
    """The writing half of the store, for one exchange at a time.

    Other nodes write too, so it is certain of nothing in the database.
    """

    def __init__(self, connection: KeptConnection, slot: int, leases: Leases, channel: str) -> None:
        self._connection, self._slot, self._leases, self._channel = connection, slot, leases, channel
        self._locks = Locks(connection)
        self._walked = ""
        self._idle: dict[str, bool] = {}
        self._token = time.time_ns()  # larger than any of an earlier run
        self._unknown: dict[int, float] = {}
        self._doubtful: dict[Fence, Settlement] = {}
        self._scattered = False
        self.offset: float | None = None
        """by how much the database's clock was ahead at the last renewal"""

    async def exchange(self, batch: Batch, patience: float) -> Receipts:
        """Carry out a batch; see `jobpipe.store.base.EngineStore.exchange`.

        `patience`: for how many seconds a claim whose commit was not answered may still come to light.
        """
        if batch.lease_until is not None:
            self.offset = await self._connection.transact(clock_offset)
        if self._unknown:
            with suppress(Locked):  # then with a later one
                await self._connection.transact(lambda session: self._hand_back(session, batch))
        self._token += 1
        exchange: Exchange | None = None
        try:
            exchange, aside = await self._around_locks(batch)
            await self._look_after(exchange)
            self._learn(exchange)
            more_ready = await self._tell(exchange)
            if exchange.met_others:
                await self._put_aside(exchange.kinds)
                more_ready = True
            receipts = exchange.receipts(more_ready=more_ready)
        except StoreError as error:
            if exchange is not None or isinstance(error, CommitUnknown):
                self._doubt(batch, patience)
            raise
        except Exception:
            self._doubt(batch, patience)  # it may have been raised after the commit
            raise
        return aside.completed(receipts)

    async def _around_locks(self, batch: Batch) -> tuple["Exchange", Aside]:
        """Write and take it all, but for what other programs have locked.

        Which that is, is asked only when something was waited for in vain. Raises `StoreUnavailable` where a lock is
        in the way that is not on a job of the batch, `TablesLocked` if the lease was renewed nevertheless.
        """
        aside = self._locks.aside(batch)
        try:
            if aside.doubtful:
                await self._locks.probe(aside)
            for _ in range(ROUNDS):
                with suppress(Locked):
                    return await self._committed(aside.rest), aside
                await self._locks.probe(aside)
        except Locked as error:
            raise await self._all_locked(batch, error) from None
        raise await self._all_locked(batch, _others_interfere())

    async def _all_locked(self, batch: Batch, error: StoreUnavailable) -> StoreUnavailable:
        if batch.lease_until is None:
            return error

        async def renew(session: Session) -> bool:
            exchange = Exchange(session, batch, self._slot)
            return await session.row(*exchange.renewal(self._leases)) is not None

        return TablesLocked(str(error), lease_lost=not await self._connection.transact(renew))

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
        exchange = await self._connection.transact(
            lambda session: self._once(session, batch, careful=careful)
        )
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
            await exchange.add()
        exchange.claim(self._token, self._walked)
        if self._scattered:
            fold(session, self._slot, all_slots=False)
        exchange.look()
        return exchange

    async def _look_after(self, exchange: "Exchange") -> None:
        """What is looked at only where something is odd.

        Claimed jobs that were edited, ids that were taken, and settlements that came before.
        """
        if exchange.edited:
            seqs = {"seqs": integers(exchange.edited)}
            exchange.take_edits(
                await self._connection.transact(lambda session: session.rows(ASKED_NOW, seqs))
            )
        doubts = [self._doubtful[fence] for fence in exchange.stale & self._doubtful.keys()]
        if doubts:
            exchange.stale -= await self._connection.transact(lambda session: written_before(session, doubts))
        if taken := exchange.taken:
            exchange.complete(await self._look_at(taken))

    async def _look_at(self, jobs: Sequence[NewJob]) -> Sequence[Receipt]:
        for _ in range(TRIES):
            # Again when somebody deleted a job between the insert and the look.
            with suppress(Conflict):
                try:
                    return await self._connection.transact(
                        lambda session: store_or_look(session, jobs, self._slot)
                    )
                except Locked:
                    return [LOCKED] * len(jobs)
        raise _others_interfere()

    async def sideline(self, batch: Batch, words: str) -> str | None:
        """See `jobpipe.store.base.EngineStore.sideline`."""
        kinds = texts(sorted(batch.claims[0].kinds)) if batch.claims else texts([])

        async def verb(session: Session) -> str | None:
            rows = await session.rows(HEAD, {"now": float(batch.now), "kinds": kinds})
            seqs = integers([seq for (seq,) in rows])
            live = session.run(_WAITS_NO_MORE, {"seqs": seqs})
            error = encoded_error(JobError("DamagedRow", words))
            gone = session.run(SIDELINE, {"now": float(batch.now), "error": error, "seqs": seqs})
            await session.answered()
            counts = CountChanges(self._slot)
            for job_id, queue, size in gone.rows():
                counts.move(queue, Status.QUEUED, Status.FAILED, size=size)
                if any(watched for _, watched in live.rows()):
                    notify(session, self._channel, ended_words([job_id]))
            counts.write(session)
            return next((str(job_id) for job_id, _, _ in gone.rows()), None)

        return await self._connection.transact(verb)

    def _doubt(self, batch: Batch, patience: float) -> None:
        """It may be written, and nobody is told: remember what is to be made good then."""
        if batch.claims:
            self._unknown[self._token] = time.monotonic() + patience
        self._doubtful |= {(one.seq, one.claim): one for one in batch.settlements}

    async def _hand_back(self, session: Session, batch: Batch) -> None:
        """Hand back what exchanges claimed whose commits were not answered: nobody here knows of those claims."""
        values = {"node": batch.node, "tokens": integers(list(self._unknown))}
        rows = await session.rows(_UNKNOWN, values)
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
            wake(session, self._channel, batch.node, None)
            notify(session, self._channel, ended_words(lost.watched))

    def _learn(self, exchange: "Exchange") -> None:
        """What is certain now that the transaction is committed."""
        self._walked = exchange.walked or self._walked
        self._scattered = exchange.scattered
        self._doubtful.clear()
        now = time.monotonic()
        self._unknown = {token: until for token, until in self._unknown.items() if until > now}

    async def _put_aside(self, kinds: Texts) -> None:
        """Put ready jobs of other kinds aside that are in front: only the first claim of a node meets many of them."""
        values = {"kinds": kinds, "slice": SLICE}
        # What is left is met by the next claim.
        with suppress(StoreError):
            for _ in range(SLICES):
                if not await self._connection.transact(lambda session: session.row(PUT_ASIDE, values)):
                    return

    async def _tell(self, exchange: "Exchange") -> bool:
        """After the commit: tell other nodes what concerns them, and look once more if this one became idle.

        Returns whether jobs became ready for it meanwhile.

        In this order no job is missed: who becomes idle says so, then looks; who leaves jobs commits, then asks who
        is idle. Not in the transaction itself, since PostgreSQL commits those that notify one after another.
        """
        node, idle, more_ready = exchange.batch.node, exchange.idle, False
        # The exchange itself is done: a failure here costs a slow wake-up.
        with suppress(StoreError):
            if idle is not None and self._idle.get(node) is not idle:
                await self._connection.run(_IDLE, {"idle": idle, "node": node})
                self._idle[node] = idle
                more_ready = idle and await self._connection.transact(
                    lambda session: any_ready(session, texts(sorted(exchange.lacking)))
                )
            if exchange.leaves_ready or exchange.watched:
                await self._connection.transact(lambda session: self._notify(session, exchange))
        return more_ready

    async def _notify(self, session: Session, exchange: "Exchange") -> None:
        if exchange.leaves_ready:
            wake(session, self._channel, exchange.batch.node, exchange.left)
        notify(session, self._channel, ended_words(exchange.watched))

    def forget(self, node: str) -> None:
        """Its row was made anew."""
        self._idle.pop(node, None)


def _others_interfere() -> StoreUnavailable:
    return StoreUnavailable("other requests keep storing and deleting jobs with these ids: try again")


class Exchange:
    """One batch on its way: what is sent, without waiting for an answer, and what came of it once it is committed."""

    def __init__(self, session: Session, batch: Batch, slot: int) -> None:
        self._session, self.batch, self._slot = session, batch, slot
        self._starts: Result | None = None
        self._claims: list[Result] = []
        self._settling = Settling(batch.settlements, slot)
        self._adding = Adding((), slot)
        self._careful: Sequence[Sequence[Receipt]] | None = None
        self._taken: Sequence[Receipt] = ()
        self._claimed: Sequence[Sequence[Claimed]] = ()
        self.edited: list[int] = []
        """seqs of the claimed jobs that were edited while they waited"""
        self.kinds = texts(sorted({kind for claim in batch.claims for kind in claim.kinds}))
        """what the claims ask for"""
        self.met_others = False
        """whether a claim met jobs of other kinds, and put them aside"""
        self.stale: set[Fence] = set()
        self.walked: str | None = None
        """the last queue that a claim read, where it went queue by queue"""
        self._expired: Sequence[str] = ()
        self.watched: Sequence[str] = ()
        """ids of watched jobs that have ended"""

    def renew(self, leases: Leases) -> None:
        """Renew the node's lease."""
        if self.batch.lease_until is not None:
            self._session.run(*self.renewal(leases))

    def renewal(self, leases: Leases) -> tuple[str, Values]:
        """The statement that renews the lease, with its values; it answers a row if there was a lease to renew."""
        batch = self.batch
        until = batch.lease_until or 0.0
        until = until - batch.now if leases == "database" else until
        return RENEW[leases], {"until": float(until), "node": batch.node}

    def promote(self) -> None:
        """Make ready what is due, and expire what is past its time."""
        values = {"now": float(self.batch.now), "limit": STEP, "slot": self._slot}
        self._promoted = self._session.run(_PROMOTE, values)

    def settle(self) -> None:
        """Write starts and settlements."""
        if self.batch.starts:
            self._starts = send_starts(self._session, self.batch.starts)
        self._settling.send(self._session)

    async def add(self) -> None:
        """Store new jobs, in the hope that nothing is in conflict; raises `Conflict` when all or nothing is not all."""
        self._adding = Adding(self.batch.adds, self._slot)
        self._adding.send(self._session)
        await self._adding.check(self._session)

    async def add_with_care(self) -> None:
        """Add one after another, each after a look."""
        self._careful = [await add_with_care(self._session, add, self._slot) for add in self.batch.adds]

    def claim(self, token: int, after: str) -> None:
        """Take ready jobs; where it goes queue by queue, from behind the one named `after`."""
        for claim in self.batch.claims:
            values = {
                "node": self.batch.node,
                "now": float(self.batch.now),
                "limit": claim.limit,
                "kinds": texts(sorted(claim.kinds)),
                "passed": PASSED,
                "walked": WALKED,
                "after": after,
                "token": token,
                "slot": self._slot,
            }
            self._claims.append(self._session.run(CLAIM, values))

    def look(self) -> None:
        """Ask how the store stands."""
        self._asked = self._session.run(_STATE, {"node": self.batch.node, "kinds": self.kinds})

    def judge(self) -> None:
        """Learn what came of it, once it is committed."""
        self._state = State(*self._asked.rows()[0])
        promoted, expired = self._promoted.row() or (0, None)
        self._settling.judge()
        self._readied = promoted + self._settling.readied
        self._expired = expired or ()
        self.watched = [*self._expired, *self._settling.watched]
        self.stale |= self._settling.stale
        if self._starts is not None:
            self.stale |= {(one.seq, one.claim) for one in self.batch.starts} - set(self._starts.rows())
        self._claimed = [self._taken_by(claim) for claim in self._claims]

    def _taken_by(self, claim: Result) -> Sequence[Claimed]:
        """What a claim took."""
        # What an update returns has no order. All that are taken share the first value of their place.
        rows = sorted(claim.rows(), key=itemgetter(PLACE))
        claimed = claimed_from([row[CLAIMED] for row in rows if row[MINE]])
        self.met_others |= len(claimed) < len(rows)
        self.edited += [row[CLAIMED][0] for row in rows if row[EDITED] and row[MINE]]
        if rows:
            self.walked = rows[0][LAST_WALKED]
        return claimed

    def take_edits(self, rows: Sequence[Row]) -> None:
        """Take in what was asked of the edited jobs: the values of `Claimed`, read after the claim."""
        now = {(one.seq, one.claim): one for one in claimed_from(rows)}
        self._claimed = [[now.get((one.seq, one.claim), one) for one in taken] for taken in self._claimed]

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
    def idle(self) -> bool | None:
        """Whether the node has room and found too little; None: it did not ask, or has to ask again."""
        if not self.batch.claims or not self._state.alive or self.met_others:
            return None
        return bool(self.lacking)

    @property
    def lacking(self) -> frozenset[str]:
        """The kinds of those claims that found too little."""
        pairs = zip(self.batch.claims, self._claimed, strict=True)
        short = (claim.kinds for claim, claimed in pairs if len(claimed) < claim.limit)
        return frozenset[str]().union(*short)

    @property
    def leaves_ready(self) -> bool:
        """Whether there are ready jobs for other nodes.

        A full claim may have left some as well: ready before, or passed over by a node that asked at the same time.
        """
        if self.idle or not self._state.others:
            return False
        if self._state.others_idle and self.idle is False:
            return True
        return self._readied > 0 or any(job.status is Status.QUEUED for job in self.stored)

    @property
    def left(self) -> Texts | None:
        """The kinds of which it leaves ready jobs; None: of any. A full claim may have left more of what it took."""
        if self._readied:
            return None
        queued = (job.kind for job in self.stored if job.status is Status.QUEUED)
        taken = (job.kind for claimed in self._claimed for job in claimed)
        return texts(sorted({*queued, *taken}))

    def receipts(self, *, more_ready: bool) -> Receipts:
        """For the caller; `more_ready`: see there."""
        batch, state = self.batch, self._state
        return Receipts(
            lease_lost=bool(batch.claims or batch.lease_until is not None) and not state.alive,
            stale=frozenset(self.stale),
            settled=self._settling.changed,
            adds=self._adds,
            claims=self._claimed,
            more_ready=more_ready,
            waiting=state.waiting,
            next_due=state.next_due,
            changes=[Changed(job_id, Status.EXPIRED) for job_id in self._expired],
            cancelling=frozenset((seq, claim) for seq, claim in state.cancelling or ()),
        )
