"""What the engine writes: one exchange is one transaction, in one round trip as a rule."""

import random
import time
from collections.abc import Sequence
from contextlib import suppress

import structlog
import trio
from msgspec import structs

from jobpipe.errors import StoreError, StoreUnavailable, TablesLocked
from jobpipe.job import NewJob, Status
from jobpipe.store.base import LOCKED, STEP, Add, Batch, Changed, Followed, Receipt, Receipts, Settlement
from jobpipe.store.postgres.adding import Conflict, store_or_look
from jobpipe.store.postgres.address import Leases
from jobpipe.store.postgres.arrays import Texts, integers
from jobpipe.store.postgres.claiming import (
    ASKED_NOW,
    PUT_ASIDE,
    PUT_ASIDE_OF_QUEUES,
    SLICE,
    SLICES,
)
from jobpipe.store.postgres.connections import TRIES, KeptConnection
from jobpipe.store.postgres.counts import fold
from jobpipe.store.postgres.exchange import CLOCK, Exchange
from jobpipe.store.postgres.failures import CommitUnknown, Locked
from jobpipe.store.postgres.lanes import Held, tell, tell_of
from jobpipe.store.postgres.locks import Aside, Locks
from jobpipe.store.postgres.notifications import ended_words, notify, wake
from jobpipe.store.postgres.reader import any_ready
from jobpipe.store.postgres.session import Session
from jobpipe.store.postgres.settling import Fence, Settling, written_before
from jobpipe.store.postgres.tables import Tables
from jobpipe.store.verbs import bringing, followers, notes
from jobpipe.store.verbs.bringing import Brought, Unsure

log = structlog.get_logger("jobpipe")

ROUNDS = 4
"""How often an exchange is tried that met locks of other sessions."""

APART = 0.1
"""The most seconds before it is tried again, at random: two nodes that waited for one another gave up together."""

_UNKNOWN = """
select l.seq, j.id, l.queue, l.claim, l.attempt
from live l
join jobs j on j.seq = l.seq
where l.node = (select node from nodes where name = %(node)s)
    and l.token = any(%(tokens)s)
for update of l skip locked
"""
_IDLE = "update nodes set idle = %(idle)s, idle_for = %(queues)s where name = %(node)s"
_READ_CLOCK = f"select {CLOCK}"


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
        self._walked, self._plainly = "", True
        self._idle: dict[str, tuple[bool, Texts | None]] = {}
        self._token = self._first_token = time.time_ns()  # larger than any of an earlier run
        self._unknown: dict[int, float] = {}
        self._doubtful: dict[Fence, Settlement] = {}
        self._scattered = False
        self._held = Held()
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
        self._first_token = self._token + 1
        self._token += max(1, len(batch.claims))
        exchange: Exchange | None = None
        try:
            exchange, aside = await self._around_locks(batch)
            await self._claim_around(exchange)
            unsettled = await self._settle_followed(exchange)
            await self._look_after(exchange)
            self._learn(exchange)
            more_ready = await self._tell(exchange)
            if exchange.met_others:
                await self._put_aside(exchange.kinds, exchange.queues)
                more_ready = True
            receipts = exchange.receipts(more_ready=more_ready or exchange.released or exchange.overlooked)
        except StoreError as error:
            if exchange is not None or isinstance(error, CommitUnknown):
                self._doubt(batch, patience)
            raise
        except Exception:
            self._doubt(batch, patience)  # it may have been raised after the commit
            raise
        completed = aside.completed(receipts)
        return structs.replace(completed, locked=completed.locked | unsettled) if unsettled else completed

    async def _claim_around(self, exchange: Exchange) -> None:
        """Claim once more, for the claims that took nothing since something was in the way."""
        plainly, self._plainly = self._plainly, not exchange.obstructed
        if plainly and (left_over := exchange.left_over):
            batch = exchange.batch
            again = Batch(node=batch.node, now=batch.now, claims=list(left_over.values()))
            self._token += len(left_over)
            exchange.take_claims(await self._tried(again, careful=False))

    async def _settle_followed(self, exchange: Exchange) -> frozenset[Fence]:
        """End the jobs that others wait for, or that bring others, with what follows, in one transaction.

        Returns the fences of those settlements that were not written, and are to be tried again: another program has
        locked their rows, or the transaction failed.
        """
        late = exchange.unsettled
        if not (late or exchange.overdue):
            return frozenset()
        adds = [Add(one.jobs, atomic=True) for one in late if one.jobs]
        aside = Aside(
            Batch(node=exchange.batch.node, now=exchange.batch.now, settlements=late, adds=adds),
            set(),
            doubtful=False,
        )
        careful = False
        try:
            for _ in range(ROUNDS):
                try:
                    await self._settle_rest(exchange, aside.rest.settlements, careful=careful)
                except Unsure:
                    careful = True
                except Locked:
                    await self._locks.probe(aside)
                    aside.seqs |= {one.seq for one in late if any(job.id in aside.ids for job in one.jobs)}
                else:
                    return aside.locked
        except StoreError as error:
            log.warning("outcomes could not be written with what follows: trying again", error=str(error))
        exchange.stale -= aside.fences
        return aside.fences

    async def _settle_rest(
        self, exchange: Exchange, settlements: Sequence[Settlement], *, careful: bool
    ) -> None:
        now = exchange.batch.now
        freed = self._held.freed(settlements)
        with_jobs = [one for one in settlements if one.jobs]
        others = [one for one in settlements if not one.jobs]
        careful = careful or bringing.need_care(with_jobs)

        async def verb(session: Session) -> tuple[Settling, Brought, Sequence[Changed], Followed]:
            tables = self._tables(session)
            if careful:
                await bringing.lock_keys(tables, with_jobs)
            settling = await _settled(tables, session, others, self._slot)
            brought = await bringing.settle(tables, with_jobs, careful=careful) if with_jobs else Brought()
            if freed:
                tell_of(session, freed)
            expired = await tables.expire_with_care(now, STEP) if exchange.overdue else ()
            followed = await followers.finish(tables, now)
            exchange.look(session)
            return settling, brought, [Changed(one.job.id, one.job.status) for one in expired], followed

        settling, brought, expired, followed = await self._connection.transact(verb)
        exchange.take_followed(settling, brought, expired, followed)
        exchange.watched = [*exchange.watched, *settling.watched]

    def _tables(self, session: Session) -> Tables:
        return Tables(session, self._slot, self._leases, self._channel)

    async def _around_locks(self, batch: Batch) -> tuple[Exchange, Aside]:
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
                await trio.sleep(random.uniform(0.0, APART))  # noqa: S311 - no secret
                await self._locks.probe(aside)
        except Locked as error:
            raise await self._all_locked(batch, error) from None
        raise await self._all_locked(batch, _others_interfere())

    async def _all_locked(self, batch: Batch, error: StoreUnavailable) -> StoreUnavailable:
        if batch.lease_until is None:
            return error

        async def renew(session: Session) -> bool:
            exchange = self._begun(session, batch)
            return await session.row(*exchange.renewal()) is not None

        return TablesLocked(str(error), lease_lost=not await self._connection.transact(renew))

    async def _committed(self, batch: Batch) -> Exchange:
        """Write and take it all, and know what came of it."""
        with suppress(Conflict):
            return await self._tried(batch, careful=False)
        for _ in range(TRIES):
            # Again when somebody stored or deleted a job of the same id between the look and the insert.
            with suppress(Conflict):
                return await self._tried(batch, careful=True)
        raise _others_interfere()

    async def _tried(self, batch: Batch, *, careful: bool) -> Exchange:
        exchange = await self._connection.transact(
            lambda session: self._once(session, batch, careful=careful)
        )
        exchange.judge()
        return exchange

    def _begun(self, session: Session, batch: Batch) -> Exchange:
        return Exchange(session, batch, self._slot, self._leases, self._held)

    async def _once(self, session: Session, batch: Batch, *, careful: bool) -> Exchange:
        exchange = self._begun(session, batch)
        exchange.renew()
        exchange.promote()
        exchange.start()
        if batch.notes:
            tables = Tables(session, self._slot, self._leases, self._channel)
            exchange.stale |= await notes.write(tables, batch.notes)
        exchange.settle()
        if careful:
            await exchange.add_with_care()
        else:
            await exchange.add()
        exchange.claim(self._token, self._walked, plainly=self._plainly)
        if self._scattered:
            fold(session, self._slot, all_slots=False)
        exchange.look()
        return exchange

    async def _look_after(self, exchange: Exchange) -> None:
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

    def _doubt(self, batch: Batch, patience: float) -> None:
        """It may be written, and nobody is told: remember what is to be made good then."""
        until = time.monotonic() + patience
        if batch.claims:
            self._unknown |= dict.fromkeys(range(self._first_token, self._token + 1), until)
        self._doubtful |= {(one.seq, one.claim): one for one in batch.settlements}

    async def _hand_back(self, session: Session, batch: Batch) -> None:
        """Hand back what exchanges claimed whose commits were not answered: nobody here knows of those claims."""
        values = {"node": batch.node, "tokens": integers(list(self._unknown))}
        rows = await session.rows(_UNKNOWN, values)
        if rows:
            tell(session, [seq for seq, *_ in rows])
        back = [
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
        ]
        tables = self._tables(session)
        lost = await _settled(tables, session, back, self._slot)
        await followers.finish(tables, batch.now)
        if rows:
            wake(session, self._channel, batch.node, None, None)
            notify(session, self._channel, ended_words(lost.watched))

    def _learn(self, exchange: Exchange) -> None:
        """What is certain now that the transaction is committed."""
        self._walked = exchange.walked or self._walked
        self._scattered = exchange.scattered
        self._held.learn(exchange.batch, exchange.gating.taken)
        self._held.gates = exchange.gates
        self._doubtful.clear()
        now = time.monotonic()
        self._unknown = {token: until for token, until in self._unknown.items() if until > now}

    async def _put_aside(self, kinds: Texts, queues: Texts | None) -> None:
        """Put ready jobs of other kinds aside that are in front: only the first claim of a node meets many of them."""
        values = {"kinds": kinds, "slice": SLICE, "queues": queues}
        sql = PUT_ASIDE if queues is None else PUT_ASIDE_OF_QUEUES
        # What is left is met by the next claim.
        with suppress(StoreError):
            for _ in range(SLICES):
                if not await self._connection.transact(lambda session: session.row(sql, values)):
                    return

    async def _tell(self, exchange: Exchange) -> bool:
        """After the commit: tell other nodes what concerns them, and look once more if this one became idle.

        Returns whether jobs became ready for it meanwhile.

        In this order no job is missed: who becomes idle says so, then looks; who leaves jobs commits, then asks who
        is idle. Not in the transaction itself, since PostgreSQL commits those that notify one after another.
        """
        node, idle, more_ready = exchange.batch.node, exchange.idle, False
        # The exchange itself is done: a failure here costs a slow wake-up.
        with suppress(StoreError):
            stands = idle, exchange.lacking_of
            if idle is not None and self._idle.get(node) != stands:
                await self._connection.run(_IDLE, {"idle": idle, "queues": exchange.lacking_of, "node": node})
                self._idle[node] = idle, exchange.lacking_of
                more_ready = idle and await self._connection.transact(
                    lambda session: any_ready(session, exchange.lacking, exchange.lacking_of)
                )
            if exchange.leaves_ready or exchange.watched:
                await self._connection.transact(lambda session: self._notify(session, exchange))
        return more_ready

    async def _notify(self, session: Session, exchange: Exchange) -> None:
        if exchange.leaves_ready:
            wake(session, self._channel, exchange.batch.node, *exchange.left)
        notify(session, self._channel, ended_words(exchange.watched))

    def forget(self, node: str) -> None:
        """Its row was made anew."""
        self._idle.pop(node, None)


async def _settled(
    tables: Tables, session: Session, settlements: Sequence[Settlement], slot: int
) -> Settling:
    """Settle jobs that others may wait for; what follows is to be done by `followers.finish`."""
    settling = Settling(settlements, slot, followed=True)
    settling.send(session)
    await session.answered()
    settling.judge()
    tables.ended += settling.ended
    return settling


def _others_interfere() -> StoreUnavailable:
    return StoreUnavailable("other requests keep storing and deleting jobs with these ids: try again")
