"""What nodes ask each other of the tasks of running jobs: a row for each job, which is there for a minute."""

from collections.abc import Sequence

from jobpipe.store.base import STEP
from jobpipe.store.postgres.connections import KeptConnection, ReadPool
from jobpipe.store.postgres.notifications import ANSWERED, ASKED, notify
from jobpipe.store.postgres.session import Session

FRESH = 1.0
"""Seconds for which a question, and its answer, are good enough for others who ask the same."""

KEPT = 60.0
"""Seconds for which they are kept."""

# A clock that was set back leaves questions of later than now.
_ASK = """
insert into looks (job, claim, node, asked_at)
values (%(job)s, %(claim)s, %(node)s, %(now)s)
on conflict (job, claim) do update
set node = excluded.node, asked_at = excluded.asked_at, answer = null
where abs(looks.asked_at - excluded.asked_at) > %(fresh)s
"""
_LIVES = "select from nodes where name = %(node)s and lease_until > %(now)s"
_ANSWER_OF = "select answer from looks where job = %(job)s and claim = %(claim)s and answer is not null"
_ASKED = """
select job, claim
from looks
where node = %(node)s and answer is null
order by asked_at desc
limit %(limit)s
"""
_ANSWER = """
update looks
set answer = %(answer)s
where job = %(job)s and claim = %(claim)s and node = %(node)s and answer is null
"""
_FORGET = "delete from looks where abs(asked_at - %(now)s) > %(kept)s"


class Looks:
    """See `jobpipe.store.base.SharedStore` for what each of them promises."""

    def __init__(self, connection: KeptConnection, reading: ReadPool, channel: str) -> None:
        self._connection, self._reading, self._channel = connection, reading, channel

    async def ask(self, job_id: str, claim: int, node: str, now: float) -> bool:
        """See `ask_look`."""
        values = {"job": job_id, "claim": claim, "node": node, "now": float(now), "fresh": FRESH}

        async def verb(session: Session) -> bool:
            session.run(_ASK, values)
            notify(session, self._channel, [f"{ASKED} {node}"])
            return await session.row(_LIVES, {"node": node, "now": float(now)}) is not None

        return await self._connection.transact(verb, repeatable=True)

    async def answer_of(self, job_id: str, claim: int) -> bytes | None:
        """See `look`."""
        row = await self._reading.read(
            lambda session: session.row(_ANSWER_OF, {"job": job_id, "claim": claim})
        )
        return None if row is None else bytes(row[0])

    async def asked(self, node: str) -> Sequence[tuple[str, int]]:
        """See `asked_looks`."""
        rows = await self._reading.read(lambda session: session.rows(_ASKED, {"node": node, "limit": STEP}))
        return [(job_id, claim) for job_id, claim in rows]

    async def answer(self, job_id: str, claim: int, node: str, answer: bytes) -> None:
        """See `answer_look`."""
        values = {"job": job_id, "claim": claim, "node": node, "answer": answer}

        async def verb(session: Session) -> None:
            session.run(_ANSWER, values)
            notify(session, self._channel, [ANSWERED])

        await self._connection.transact(verb, repeatable=True)

    async def prune(self, now: float) -> None:
        """Delete what was asked more than a minute ago."""
        await self._connection.run(_FORGET, {"now": float(now), "kept": KEPT})
