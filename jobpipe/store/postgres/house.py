"""What keeps the house: nodes and their leases, rescue and prune."""

import itertools
import math
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress

import structlog

from jobpipe.job import ACTIVE, ENDED, Job, JobError, Outcome, Status, after_crash
from jobpipe.store.base import LONGEST_LEASE, STEP, Rescued, Retention
from jobpipe.store.postgres.address import Leases
from jobpipe.store.postgres.control import erase
from jobpipe.store.postgres.line import ENTRYS_OWN, Line, Lines
from jobpipe.store.postgres.parameters import binaries, floats, integers, texts
from jobpipe.store.postgres.reader import JOB_COLUMNS
from jobpipe.store.postgres.session import Row, Session
from jobpipe.store.postgres.tally import Tally, bounded, fold, forget_empty, mend
from jobpipe.store.postgres.words import READY, ended_words, notify
from jobpipe.store.postgres.writer import CLOCK, RENEW, SIDELINE, clock_offset
from jobpipe.store.rows import encoded_error, job_from, tags_of

_JOIN = {
    leases: f"insert into nodes (name, lease_until, kinds) values (%s, {until}, %s) on conflict (name) do update "
    "set lease_until = excluded.lease_until, hungry = false, kinds = excluded.kinds"
    for leases, until in (("database", f"{CLOCK} + %s"), ("caller", "%s"))
}
_DROP = "delete from live where seq = any(%s)"
"""Of rows without a job: a damaged database may have them, and nobody can run them."""

_LEAVE = "update nodes set lease_until = null, hungry = false where name = %s"
# A node whose row is locked is at work just now: it is not dead.
_END_LEASES = (
    "update nodes set lease_until = null, hungry = false where node in "
    f"(select node from nodes where (lease_until <= {{0}} or lease_until > {{0}} + {LONGEST_LEASE}) "
    "and name <> {1} for update skip locked)"
)
# Locked first, then read: a start that is committed between the two would be missed by one statement for both.
_LOCK_ORPHANS = (
    "select l.seq from live l left join nodes n on n.node = l.node "
    # Also the row in "jobs", which the end of a job is written to: what anybody else has locked is left for later.
    "join jobs j on j.seq = l.seq "
    "where l.node is not null and (n.node is null or (n.lease_until is null and n.name <> %s)) "
    "order by l.seq limit %s "
    "for update of l skip locked for no key update of j skip locked"
)
_DROP_LOST = (
    "delete from live where seq in (select l.seq from live l left join nodes n on n.node = l.node "
    "where l.node is not null and (n.node is null or (n.lease_until is null and n.name <> %s)) "
    "and not exists (select from jobs j where j.seq = l.seq) for update of l skip locked)"
)
_ORPHANS = (
    f"select {', '.join('s.' + column for column in JOB_COLUMNS.split(', '))}, l.watched, l.node "
    "from live l join shown s on s.seq = l.seq where l.seq = any(%s) order by l.seq"
)
MOST_RESCUED = 1_000_000
"""How far rescues of a job are counted; a damaged count must not grow beyond what a column holds."""

_REQUEUE = (
    "update live l set status = 'queued', error = coalesce(v.error, l.error), node = null, token = null, "
    f"rescued = least(l.rescued, {MOST_RESCUED}) + 1 from unnest(%s, %s) as v (seq, error) where l.seq = v.seq"
)
_END = (
    "with gone as (delete from live l using unnest(%s, %s, %s, %s) as v (seq, status, error, size) "
    "where l.seq = v.seq "
    "returning l.*, v.status as becomes, v.error as last_error, v.size) "
    "update jobs j set status = g.becomes, finished_at = %s, error = coalesce(g.last_error, g.error), size = g.size, "
    "run_at = g.run_at, attempt = greatest(g.attempt, 0), claim = g.claim, node = g.node, "
    f"rescued = least(g.rescued, {MOST_RESCUED}) + 1, "
    "started_at = g.started_at from gone g where j.seq = g.seq"
)
_INTERRUPTED = (
    "insert into attempts (seq, claim, number, node, started_at, finished_at, outcome, error) "
    "select seq, claim, number, node, started_at, %s, outcome, error from unnest(%s, %s, %s, %s, %s, %s, %s) "
    "as v (seq, claim, number, node, started_at, outcome, error) on conflict do nothing"
)

_PRUNER = "select pg_try_advisory_xact_lock(hashtextextended(%s, 1))"
_OLDEST = (
    "select finished_at, seq, queue, status, size, options from jobs "
    "where status = %s and finished_at <= %s order by finished_at, seq limit %s for update skip locked"
)
_TOTALS = (
    f"select {bounded('coalesce(sum(jobs), 0)')}, {bounded('coalesce(sum(size), 0)')} from totals "
    "where state in ('done', 'failed', 'cancelled', 'expired')"
)


log = structlog.get_logger("jobpipe")


class House:
    """Each verb is one transaction."""

    def __init__(self, line: Line, slot: int, leases: Leases, channel: str) -> None:
        self._line, self._slot, self._leases, self._channel = line, slot, leases, channel

    async def join(
        self, node: str, now: float, lease_until: float, kinds: frozenset[str] = frozenset()
    ) -> float:
        """See `jobpipe.store.base.EngineStore.join`. Returns how far the database's clock is ahead."""
        until = lease_until - now if self._leases == "database" else lease_until
        await self._line.run(_JOIN[self._leases], (node, float(until), texts(sorted(kinds))))
        await self._line.transact(self._mend)
        return await self._line.transact(clock_offset)

    def renew_from_thread(self, lines: Lines, node: str, now: float, lease_until: float) -> bool:
        """See `jobpipe.store.base.SharedStore.renew_from_thread`."""
        until = lease_until - now if self._leases == "database" else lease_until

        async def verb(session: Session) -> bool:
            return await session.row(RENEW[self._leases], (float(until), node)) is not None

        return lines.transact_alone(verb)

    async def leave(self, node: str) -> None:
        """See `jobpipe.store.base.EngineStore.leave`. The row stays: attempts are shown with the node's name."""

        async def verb(session: Session) -> None:
            session.run(_LEAVE, (node,))
            notify(session, self._channel, [READY])  # what it handed back is for others to take

        await self._line.transact(verb)

    async def rescue(self, node: str, now: float) -> Sequence[Rescued]:
        """See `jobpipe.store.base.EngineStore.rescue`."""

        async def verb(session: Session) -> Sequence[Rescued]:
            if self._leases == "database":
                session.run(_END_LEASES.format(CLOCK, "%(node)s"), {"node": node})
            else:
                values = {"now": float(now), "node": node}
                session.run(_END_LEASES.format("%(now)s", "%(node)s"), values)
            rescued: list[Rescued] = []
            tally = Tally(self._slot)
            session.run(_DROP_LOST, (node,))  # of jobs whose row in "jobs" was deleted by a person
            while locked := await session.rows(_LOCK_ORPHANS, (node, STEP)):
                seqs = {row[0] for row in locked}
                rows = await session.rows(_ORPHANS, (integers(list(seqs)),))
                rescued += await self._take_back(session, rows, now, tally)
                if lost := seqs - {row[17] for row in rows}:
                    session.run(_DROP, (integers(list(lost)),))
            tally.write(session)
            if tally.readied:
                notify(session, self._channel, [READY])
            return rescued

        return await self._line.transact(verb)

    async def _mend(self, session: Session) -> None:
        if await mend(session):
            log.error("the counts of jobs could not be true, and were made anew from the jobs")

    async def _take_back(
        self, session: Session, rows: Sequence[Row], now: float, tally: Tally
    ) -> Sequence[Rescued]:
        """Take jobs back, all at once; where a row of them does not allow that, one by one: that job fails."""
        own = Tally(self._slot)
        try:
            async with session.savepoint():
                rescued = Rescue(session, now, own, self._channel).take_back(rows)
        except ENTRYS_OWN as error:
            if len(rows) == 1:
                return [await self._fail(session, rows[0], now, error, tally)]
            middle = len(rows) // 2
            return [
                *await self._take_back(session, rows[:middle], now, tally),
                *await self._take_back(session, rows[middle:], now, tally),
            ]
        tally.merge(own)
        return rescued

    async def _fail(self, session: Session, row: Row, now: float, error: Exception, tally: Tally) -> Rescued:
        """Fail a job that cannot be taken back. It leaves "live" even where its end cannot be written."""
        log.error("a job of a dead node cannot be taken back: it fails", job=row[0], exc_info=error)
        words = f"the job could not be taken back from a dead node ({(str(error).splitlines() or [''])[0]})"
        stored = encoded_error(JobError("DamagedRow", words[:500]))
        session.run(_DROP, (integers([row[17]]),))
        with suppress(*ENTRYS_OWN):
            async with session.savepoint():
                session.run(SIDELINE, (float(now), stored, integers([row[17]])))
        tally.move(row[2], None, Status.FAILED)
        if row[21]:
            notify(session, self._channel, ended_words([row[0]]))
        return Rescued(row[0], row[2], Status.FAILED, begun=False)

    async def prune(self, now: float, retention: Retention) -> int:
        """See `jobpipe.store.base.EngineStore.prune`. While another node prunes, there is nothing to do here."""

        async def verb(session: Session) -> int:
            locked = await session.row(_PRUNER, (self._channel,))
            if not locked or not locked[0]:
                return 0
            await self._mend(session)  # or a wrong count might have everything deleted
            rows = await _too_much(session, now, retention)
            tally = Tally(self._slot)
            for _, _, queue, status, size, _ in rows:
                tally.drop(queue, status, 1, size)
            if rows:
                erase(session, [(row[1], tags_of(row[5])) for row in rows])
            tally.write(session)
            fold(session, self._slot, all_slots=len(rows) < STEP)
            if len(rows) < STEP:
                forget_empty(session)
            return len(rows)

        return await self._line.transact(verb)


class Rescue:
    """Takes back jobs of dead nodes, many at a time."""

    def __init__(self, session: Session, now: float, tally: Tally, channel: str) -> None:
        self._session, self._now, self._tally, self._channel = session, now, tally, channel
        self._again: list[tuple[int, bytes | None]] = []
        self._ends: list[tuple[int, str, bytes | None, int]] = []
        self._attempts: list[tuple[int, int, int, int, float, str, bytes | None]] = []
        self._watched: list[str] = []

    def take_back(self, rows: Sequence[Row]) -> Sequence[Rescued]:
        """Decide on each, then write what was decided."""
        rescued = [self._decide(row) for row in rows]
        if self._again:
            seqs, errors = zip(*self._again, strict=True)
            self._session.run(_REQUEUE, (integers(seqs), binaries(errors)))
        if self._attempts:
            seqs, claims, numbers, nodes, started, outcomes, errors = zip(*self._attempts, strict=True)
            numbers_of = (integers(seqs), integers(claims), integers(numbers), integers(nodes))
            self._session.run(
                _INTERRUPTED,
                (float(self._now), *numbers_of, floats(started), texts(outcomes), binaries(errors)),
            )
        if self._ends:
            seqs, statuses, errors, sizes = zip(*self._ends, strict=True)
            values = (integers(seqs), texts(statuses), binaries(errors), integers(sizes))
            self._session.run(_END, (*values, float(self._now)))
        if self._watched:
            notify(self._session, self._channel, ended_words(self._watched))
        return rescued

    def _decide(self, row: Row) -> Rescued:
        job, seq = job_from(row), row[17]
        watched, node = row[21:]
        status, error = after_crash(job)
        begun = job.status in ACTIVE and job.started_at is not None
        if begun:
            self._interrupt(job, seq, node, status, error)
        size = len(job.payload) if status in ENDED else 0
        if status in ENDED:
            self._ends.append((seq, status.value, encoded_error(error), size))
            self._watched += [job.id] * watched
        else:
            self._again.append((seq, encoded_error(error)))
        self._tally.move(job.queue, None, status, size=size)
        return Rescued(job.id, job.queue, status, begun)

    def _interrupt(self, job: Job, seq: int, node: int, status: Status, error: JobError | None) -> None:
        outcome = Outcome.CANCELLED if status is Status.CANCELLED else Outcome.INTERRUPTED
        started = job.started_at or self._now
        self._attempts.append(
            (seq, job.claim, job.attempt, node, started, outcome.value, encoded_error(error))
        )


async def _too_much(session: Session, now: float, retention: Retention) -> list[Row]:
    """The ended jobs to delete: what is too old, and while there are too many or they are too large, the oldest."""
    chosen = await _oldest(session, {status: now - _age(status, retention) for status in ENDED})
    jobs, size = await session.row(_TOTALS) or (0, 0)
    jobs, size = jobs - len(chosen), size - sum(row[4] for row in chosen)
    if len(chosen) == STEP or (jobs <= retention.jobs and size <= retention.size):
        return chosen
    for row in await _oldest(session, dict.fromkeys(ENDED, math.inf), skip={row[1] for row in chosen}):
        if len(chosen) == STEP or (jobs <= retention.jobs and size <= retention.size):
            break
        chosen.append(row)
        jobs, size = jobs - 1, size - row[4]
    return chosen


async def _oldest(session: Session, until: Mapping[Status, float], skip: Container[int] = ()) -> list[Row]:
    """At most `STEP` jobs that ended until then, the oldest end first."""
    answers = [session.run(_OLDEST, (status.value, float(at), STEP)) for status, at in until.items()]
    await session.answered()
    found = itertools.chain.from_iterable(answer.rows() for answer in answers)
    return [row for row in sorted(found, key=lambda row: row[:2]) if row[1] not in skip][:STEP]


def _age(status: Status, retention: Retention) -> float:
    return retention.done_age if status is Status.DONE else retention.failed_age
