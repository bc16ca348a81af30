"""What people ask of jobs and queues."""

from collections.abc import Sequence

from jobpipe.errors import StoreUnavailable
from jobpipe.job import ENDED, Job, Status
from jobpipe.store.base import Change, QueueChange
from jobpipe.store.postgres import reader
from jobpipe.store.postgres.line import TRIES, Line
from jobpipe.store.postgres.parameters import binaries, integers
from jobpipe.store.postgres.reader import found, one
from jobpipe.store.postgres.session import Row, Session
from jobpipe.store.postgres.tally import Tally
from jobpipe.store.postgres.words import CANCEL, PAUSED, READY, ended_words, notify

# Locks in the order in which exchanges take them: first the row in "live", then that in "jobs".
_LOCK_LIVE = (
    "select l.seq, l.watched from live l join jobs j on j.seq = l.seq where j.id = %s for update of l"
)
_LIVES = "select seq from live where seq = %s"
_LOCK_JOB = "select seq, status from jobs where id = %s for update"

_ASK_CANCEL = "update live set status = 'cancelling' where seq = %s"
_CANCEL = (
    "with gone as (delete from live where seq = %s returning *) "
    "update jobs j set status = 'cancelled', finished_at = %s, size = length(j.payload), run_at = g.run_at, "
    "attempt = greatest(g.attempt, 0), claim = g.claim, rescued = g.rescued, started_at = g.started_at, "
    "error = g.error from gone g where j.seq = g.seq"
)
_KEEP_ATTEMPT = (
    "insert into attempts (seq, claim, number, node, started_at, finished_at, outcome) "
    "select seq, claim, attempt, node, started_at, coalesce(finished_at, created_at), 'done' from jobs "
    "where seq = %s on conflict do nothing"
)
_RETRY = (
    "with again as (update jobs set status = null, run_at = %(now)s, finished_at = null, started_at "
    "= null, attempt = 0, "
    "expires_at = case when expires_at <= %(now)s then null else expires_at end, result = null, "
    "error = null, size = 0 "
    "where seq = %(seq)s returning *) "
    "insert into live (seq, queue, status, priority, run_at, created_at, expires_at, claim, rescued) "
    "select seq, queue, 'queued', priority, run_at, created_at, expires_at, claim, rescued from again "
    # Only a damaged job that has ended is there already.
    "on conflict (seq) do update set status = excluded.status, queue = excluded.queue, priority = excluded.priority, "
    "run_at = excluded.run_at, created_at = excluded.created_at, attempt = 0, node = null, token = null, "
    "started_at = null, error = null, expires_at = excluded.expires_at"
)
_DELETE = (
    "delete from live where seq = any(%s)",
    "delete from jobs where seq = any(%s)",
    "delete from attempts where seq = any(%s)",
)
_UNTAG = (
    "delete from tags t using unnest(%s, %s) as v (tag, seq) join jobs j on j.seq = v.seq "
    "where t.tag = v.tag and t.created_at = j.created_at and t.seq = v.seq"
)
_UNTAG_ALL = "delete from tags where seq = any(%s)"  # reads them all
# Locked and summed once more: a job may have come since the look. One that comes later is counted in a row of its own.
_FORGET_COUNTS = (
    "with locked as (select state, jobs, size from counts where queue = %s for update) "
    "delete from counts where queue = %s and not exists "
    "(select from locked group by state having sum(jobs) <> 0 or sum(size) <> 0)"
)
_FORGET_QUEUE = "delete from queues where name = %s"
_PAUSE = "insert into queues (name, paused) values (%s, %s) on conflict (name) do update set paused = excluded.paused"
_WATCH = (
    "update live l set watched = true from jobs j "
    "where j.id = %s and l.seq = j.seq and not l.watched returning l.seq"
)

LOOKS = 5
"""How often a job is looked at again that others change at the same time."""


class Control:
    """Each verb is one transaction."""

    def __init__(self, line: Line, slot: int, channel: str) -> None:
        self._line, self._slot, self._channel = line, slot, channel

    async def cancel(self, ids: Sequence[str], now: float) -> Sequence[Change]:
        """See `jobpipe.store.base.ControlStore.cancel`."""

        async def verb(session: Session) -> Sequence[Change]:
            return [await self._cancel(session, job_id, now) for job_id in ids]

        return await self._line.transact(verb)

    async def _cancel(self, session: Session, job_id: str, now: float) -> Change:
        job, row, watched = await self._lock(session, job_id)
        if job is None:
            return Change(job_id, "absent")
        if job.status in ENDED:
            return Change(job_id, "refused", job)
        seq, held = row[17], row[19]
        if held:
            session.run(_ASK_CANCEL, (seq,))
            notify(session, self._channel, [CANCEL])
        else:
            session.run(_CANCEL, (seq, now))
            self._count(session, job, job.status, Status.CANCELLED, size=len(job.payload))
            if watched:
                notify(session, self._channel, ended_words([job_id]))
        return Change(job_id, "changed", await one(session, job_id))

    async def _lock(self, session: Session, job_id: str) -> tuple[Job | None, Row, bool]:
        """A job as it is now and stays until the end of this transaction; its row; whether it is watched."""
        if "\0" in job_id:
            return None, (), False
        for _ in range(TRIES):
            alive = await session.row(_LOCK_LIVE, (job_id,))
            if alive is None:
                ended = await session.row(_LOCK_JOB, (job_id,))
                if ended is None:
                    return None, (), False
                if ended[1] is None and await session.row(_LIVES, (ended[0],)):
                    continue  # somebody retried it between the two
            there = (await found(session, [job_id])).get(job_id)
            if there is not None:
                return there[0], there[1], bool(alive and alive[1])
        raise StoreUnavailable("other requests keep retrying and deleting this job: try again")

    async def retry(self, ids: Sequence[str], now: float) -> Sequence[Change]:
        """See `jobpipe.store.base.ControlStore.retry`."""

        async def verb(session: Session) -> Sequence[Change]:
            changes = [await self._retry(session, job_id, now) for job_id in ids]
            if any(change.verdict == "changed" for change in changes):
                notify(session, self._channel, [READY])
            return changes

        return await self._line.transact(verb)

    async def _retry(self, session: Session, job_id: str, now: float) -> Change:
        job, row, _ = await self._lock(session, job_id)
        if job is None:
            return Change(job_id, "absent")
        if job.status not in ENDED:
            return Change(job_id, "refused", job)
        seq, size = row[17], row[20]
        if job.status is Status.DONE:
            session.run(_KEEP_ATTEMPT, (seq,))
        session.run(_RETRY, {"now": float(now), "seq": seq})
        self._drop(session, job.queue, job.status, size)
        self._count(session, job, None, Status.QUEUED)
        return Change(job_id, "changed", await one(session, job_id))

    async def delete(self, ids: Sequence[str]) -> Sequence[Change]:
        """See `jobpipe.store.base.ControlStore.delete`."""

        async def verb(session: Session) -> Sequence[Change]:
            return [await self._delete(session, job_id) for job_id in ids]

        return await self._line.transact(verb)

    async def _delete(self, session: Session, job_id: str) -> Change:
        job, row, watched = await self._lock(session, job_id)
        if job is None:
            return Change(job_id, "absent")
        seq, held, size = row[17], row[19], row[20]
        if held:
            return Change(job_id, "refused", job)
        erase(session, [(seq, None if job.damage else job.options.tags)])
        self._drop(session, job.queue, job.status, size)
        if watched:
            notify(session, self._channel, ended_words([job_id]))
        return Change(job_id, "changed")

    async def pause(self, queue: str, *, paused: bool) -> None:
        """Pause a queue, or resume it."""

        async def verb(session: Session) -> None:
            session.run(_PAUSE, (queue, paused))
            notify(session, self._channel, [PAUSED if paused else READY])

        await self._line.transact(verb, repeatable=True)

    async def delete_queue(self, queue: str) -> QueueChange:
        """See `jobpipe.store.base.ControlStore.delete_queue`."""

        async def verb(session: Session) -> QueueChange:
            state = await reader.queue(session, queue)
            if state is None:
                return QueueChange("absent")
            if state.counts:
                return QueueChange("refused", state)
            session.run(_FORGET_COUNTS, (queue, queue))
            session.run(_FORGET_QUEUE, (queue,))
            return QueueChange("changed")

        return await self._line.transact(verb)

    async def watch(self, job_id: str) -> None:
        """See `jobpipe.store.base.SharedStore.watch`."""
        if "\0" not in job_id:
            await self._line.run(_WATCH, (job_id,))

    def _count(self, session: Session, job: Job, before: str | None, after: str, size: int = 0) -> None:
        tally = Tally(self._slot)
        tally.move(job.queue, before, after, size=size)
        tally.write(session)

    def _drop(self, session: Session, queue: str, state: str, size: int) -> None:
        tally = Tally(self._slot)
        tally.drop(queue, state, 1, size)
        tally.write(session)


def erase(session: Session, jobs: Sequence[tuple[int, Sequence[str] | None]]) -> None:
    """Delete jobs, given seq and tags (None: they cannot be read), with all that belongs to them."""
    if unreadable := [seq for seq, tags in jobs if tags is None]:
        session.run(_UNTAG_ALL, (integers(unreadable),))
    pairs = [(tag.encode(), seq) for seq, tags in jobs for tag in tags or ()]
    if pairs:
        tags, numbers = zip(*pairs, strict=True)
        session.run(_UNTAG, (binaries(tags), integers(numbers)))
    seqs = integers([seq for seq, _ in jobs])
    for sql in _DELETE:
        session.run(sql, (seqs,))
