"""One exchange on its way: what is sent, and what came of it."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from operator import itemgetter
from typing import NamedTuple

from msgspec.structs import replace

from jobpipe.job import NewJob, Status
from jobpipe.store.base import (
    STEP,
    Batch,
    Changed,
    Claimed,
    ClaimRequest,
    Followed,
    Receipt,
    Receipts,
    Settlement,
)
from jobpipe.store.postgres.adding import Adding, add_with_care
from jobpipe.store.postgres.address import Leases
from jobpipe.store.postgres.arrays import Texts, integers, texts
from jobpipe.store.postgres.claiming import (
    CLAIM,
    CLAIM_OF_QUEUES,
    CLAIM_PLAINLY,
    CLAIM_WITH_OTHERS,
    CLAIMED,
    EDITED,
    LAST_WALKED,
    MINE,
    PASSED,
    PLACE,
    WALKED,
)
from jobpipe.store.postgres.counts import bounded
from jobpipe.store.postgres.lanes import GATES, NEXT_OPEN, Gating, Held
from jobpipe.store.postgres.session import Result, Row, Session, Values
from jobpipe.store.postgres.settling import Fence, Settling, send_starts
from jobpipe.store.rows import claimed_from
from jobpipe.store.verbs.bringing import Brought

CLOCK = "extract(epoch from clock_timestamp())::double precision"
"""The database's clock, in seconds since the epoch."""

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
select p.ready, p.watched, p.left_followed
from resume_and_promote(%(now)s, %(limit)s, %(slot)s) p
where exists (
        select from live
        where status in ('scheduled', 'retrying') and run_at <= %(now)s
    )
    or exists (
        select from live
        where expires_at is not null and node is null and expires_at <= %(now)s
    )
    or exists (
        select from queues
        where paused_until <= %(now)s
    )
"""
"""The statement that does it is in the function: to set it going costs more than to see that nothing is due."""

_WAITING = """
coalesce(sum(jobs), 0)
+ (select coalesce(sum(jobs), 0) from totals where state in ('blocked', 'scheduled', 'queued', 'retrying'))
"""
# The columns of `State`. Most often all nodes serve the same kinds, which is quickly seen.
_STATE_FOR = f"""
select
    c.waiting,
    c.calls,
    least(
        (select min(run_at) from live where status in ('scheduled', 'retrying')),
        (select min(expires_at) from live where expires_at is not null and node is null),
        (select min(paused_until) from queues where paused_until is not null){{or_open}}
    ),
    n.me is not null,
    n.others,
    n.idle,
    (select array_agg(array[seq, claim]) from live where status = 'cancelling' and node = n.me),
    {GATES}
from (
    select {bounded(_WAITING)} as waiting, count(*) as calls
    from counts
    where slot < 0
) c, (
    select
        max(node) filter (where name = %(node)s) as me,
        coalesce(bool_or(name <> %(node)s), false) as others,
        coalesce(
            bool_or(idle and name <> %(node)s and (kinds = %(kinds)s or kinds && %(kinds)s){{and_queues}}),
            false
        ) as idle
    from nodes
    where lease_until is not null
) n
"""
_AND_QUEUES = " and (idle_for is null or idle_for && %(queues)s)"
_OR_OPEN: dict[Leases | None, str] = {None: "", **{by: f",\n        {sql}" for by, sql in NEXT_OPEN.items()}}
_STATE, _STATE_OF_QUEUES = (
    {by: _STATE_FOR.format(and_queues=of_queues, or_open=sql) for by, sql in _OR_OPEN.items()}
    for of_queues in ("", _AND_QUEUES)
)
"""By the clock of the rates; None: without a look at lanes."""


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
    gates: bool
    """whether there are gated queues"""


class Exchange:
    """One batch on its way: what is sent, without waiting for an answer, and what came of it once it is committed."""

    def __init__(self, session: Session, batch: Batch, slot: int, leases: Leases, held: Held) -> None:
        self._session, self.batch, self._slot, self._leases = session, batch, slot, leases
        self.gating = Gating(session, batch, held, leases)
        self._starts: Result | None = None
        self._claims: list[Result] = []
        self._with_jobs = [one for one in batch.settlements if one.jobs]
        self._settling = Settling(
            [one for one in batch.settlements if not one.jobs] if self._with_jobs else batch.settlements,
            slot,
            in_lanes=self.gating.concerned,
        )
        self._adding = Adding((), slot)
        self._careful: Sequence[Sequence[Receipt]] | None = None
        self._taken: Sequence[Receipt] = ()
        self._claimed: list[Sequence[Claimed]] = []
        self.edited: list[int] = []
        """seqs of the claimed jobs that were edited while they waited"""
        self.kinds = texts(sorted({kind for claim in batch.claims for kind in claim.kinds}))
        """what the claims ask for"""
        self.queues = _queues_of(batch.claims)
        """the queues that they name; None: they ask for all"""
        self.obstructed: list[int] = []
        """which of its claims have something in the way; a plain one took nothing then"""
        self.met_others = False
        """whether a claim met jobs of other kinds, and put them aside"""
        self.stale: set[Fence] = set()
        self.walked: str | None = None
        """the last queue that a claim read, where it went queue by queue"""
        self._expired: list[Changed] = []
        self.watched: Sequence[str] = ()
        """ids of watched jobs that have ended"""
        self.overdue = False
        """whether jobs are past their time that others wait for, or past their deadline"""
        self._followed = Followed()
        self._freed_late = False
        self._brought_ready = 0

    def renew(self) -> None:
        """Renew the node's lease."""
        if self.batch.lease_until is not None:
            self._session.run(*self.renewal())

    def renewal(self) -> tuple[str, Values]:
        """The statement that renews the lease, with its values; it answers a row if there was a lease to renew."""
        batch = self.batch
        until = batch.lease_until or 0.0
        until = until - batch.now if self._leases == "database" else until
        return RENEW[self._leases], {"until": float(until), "node": batch.node}

    def promote(self) -> None:
        """End pauses that are over, make ready what is due, and expire what is past its time."""
        values = {"now": float(self.batch.now), "limit": STEP, "slot": self._slot}
        self._promoted = self._session.run(_PROMOTE, values)

    def start(self) -> None:
        """Write starts."""
        if self.batch.starts:
            self._starts = send_starts(self._session, self.batch.starts)

    def settle(self) -> None:
        """Write settlements."""
        self._settling.send(self._session)

    async def add(self) -> None:
        """Store new jobs, in the hope that nothing is in conflict; raises `Conflict` when all or nothing is not all."""
        self._adding = Adding(self.batch.adds, self._slot, gates=self.gating.concerned)
        self._adding.send(self._session)
        await self._adding.check(self._session)

    async def add_with_care(self) -> None:
        """Add one after another, each after a look."""
        self._careful = [await add_with_care(self._session, add, self._slot) for add in self.batch.adds]

    def claim(self, token: int, after: str, *, plainly: bool) -> None:
        """Take ready jobs; where it goes queue by queue, from behind the one named `after`.

        The token is that of the first claim; each of the others has the number before.
        `plainly`: take jobs of all queues only if nothing is in the way.
        """
        self.gating.open()
        for number, claim in enumerate(self.batch.claims):
            values = {
                "node": self.batch.node,
                "now": float(self.batch.now),
                "limit": claim.limit,
                "kinds": texts(sorted(claim.kinds)),
                "passed": PASSED,
                "walked": WALKED,
                "after": after,
                "token": token - number,
                "slot": self._slot,
            }
            sql = CLAIM_PLAINLY if plainly else CLAIM
            if claim.queues:
                values["queues"] = texts([share.queue for share in claim.queues])
                values["shares"] = integers([share.jobs for share in claim.queues])
                sql = CLAIM_WITH_OTHERS if claim.names is None else CLAIM_OF_QUEUES
            self._claims.append(self._session.run(sql, values))
            self.gating.claim(claim, token - number, self._slot)

    def look(self, session: Session | None = None) -> None:
        """Ask how the store stands; once more, where something is written after the exchange."""
        values: dict[str, object] = {
            "node": self.batch.node,
            "kinds": self.kinds,
            "now": float(self.batch.now),
        }
        by = self._leases if self.gating.concerned else None
        sql = _STATE[by]
        if self.queues is not None:
            sql, values["queues"] = _STATE_OF_QUEUES[by], self.queues
        self._asked = (session or self._session).run(sql, values)

    def judge(self) -> None:
        """Learn what came of it, once it is committed."""
        self._state = State(*self._asked.rows()[0])
        promoted, expired, overdue = self._promoted.row() or (0, None, None)
        self.overdue = bool(overdue)
        self._settling.judge()
        self._readied = promoted + self._settling.readied
        self._expired = [Changed(job_id, Status.EXPIRED) for job_id in expired or ()]
        self.watched = [*(expired or ()), *self._settling.watched]
        self.stale |= self._settling.stale
        self.stale |= {(one.seq, one.claim) for one in self._with_jobs}
        if self._starts is not None:
            self.stale |= {(one.seq, one.claim) for one in self.batch.starts} - set(self._starts.rows())
        self._claimed = [self._taken_by(number, claim) for number, claim in enumerate(self._claims)]
        self.edited += self.gating.edited

    def _taken_by(self, number: int, claim: Result) -> Sequence[Claimed]:
        """What a claim took."""
        # What an update returns has no order. All that are taken share the first value of their place.
        rows = sorted((row for row in claim.rows() if row[MINE] is not None), key=itemgetter(PLACE))
        if len(rows) < len(claim.rows()):
            self.obstructed.append(number)
        gated = self.gating.took(number)
        mine = [row for row in rows if row[MINE]]
        self.met_others |= len(mine) < len(rows)
        if rows:
            self.walked = rows[0][LAST_WALKED]
        if gated or self.gating.given_back:
            mine = [row for row in mine if row[CLAIMED][0] not in self.gating.given_back]
        self.edited += [row[CLAIMED][0] for row in mine if row[EDITED]]
        if not gated:
            return claimed_from([row[CLAIMED] for row in mine])
        placed = [((*row[PLACE][1:], 0), row[CLAIMED]) for row in mine]
        return claimed_from([values for _, values in sorted([*placed, *gated], key=itemgetter(0))])

    def take_edits(self, rows: Sequence[Row]) -> None:
        """Take in what was asked of the edited jobs: the values of `Claimed`, read after the claim."""
        now = {(one.seq, one.claim): one for one in claimed_from(rows)}
        self._claimed = [[now.get((one.seq, one.claim), one) for one in taken] for taken in self._claimed]

    @property
    def left_over(self) -> Mapping[int, ClaimRequest]:
        """What its obstructed claims have left to ask for, by their numbers: they took from lanes alone."""
        taken = {number: len(self._claimed[number]) for number in self.obstructed}
        return {
            number: replace(claim, limit=claim.limit - jobs, free=max(0, claim.free - jobs))
            for number, jobs in taken.items()
            if (claim := self.batch.claims[number]).limit > jobs
        }

    def take_claims(self, again: "Exchange") -> None:
        """Take in what an exchange after this one took for what was left over."""
        numbers = list(self.left_over)
        for number, claimed in zip(numbers, again._claimed, strict=True):  # noqa: SLF001 - of the same class
            self._claimed[number] = [*self._claimed[number], *claimed]
        self.gating.take_claims(again.gating, numbers)
        self._state = again._state  # noqa: SLF001 - of the same class
        self.edited += again.edited
        self.met_others |= again.met_others
        self.walked = again.walked or self.walked

    @property
    def taken(self) -> Sequence[NewJob]:
        """The new jobs whose ids were taken."""
        return self._adding.taken

    @property
    def unsettled(self) -> Sequence[Settlement]:
        """The settlements that changed nothing: they bring jobs, are late, or of jobs that others wait for."""
        late = self._settling.stale
        if not late:
            return self._with_jobs
        return [one for one in self.batch.settlements if one.jobs or (one.seq, one.claim) in late]

    def take_followed(
        self, settling: Settling, brought: Brought, expired: Sequence[Changed], followed: Followed
    ) -> None:
        """Take in what was settled after the exchange, with the jobs that it brought, and with what followed."""
        self._state = State(*self._asked.rows()[0])
        self.stale -= {(one.seq, one.claim) for one in self.unsettled} - settling.stale - brought.stale
        self._settling.changed |= settling.changed
        self._settling.changed |= brought.settled
        self._brought_ready = brought.ready
        self._expired += expired
        self._followed = followed
        released = sum(one.status is Status.QUEUED for one in followed.changes)
        self._readied += settling.readied + brought.ready + released
        # Whoever was behind a job that has ended may be first in its lane.
        moved_up = self.gating.concerned and bool(expired or followed.changes)
        self._freed_late = self.gating.freed > 0 or moved_up

    @property
    def released(self) -> bool:
        """Whether jobs are ready that were brought, or have waited for others until now; or a slot is free since."""
        waited = any(one.status is Status.QUEUED for one in self._followed.changes)
        return self._brought_ready > 0 or self._freed_late or waited

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
        if not self.batch.claims or not self._state.alive or self.met_others or self.overlooked:
            return None
        return bool(self._short)

    @property
    def overlooked(self) -> bool:
        """Whether a claim that found too little has to ask again.

        There are gated queues of which it did not know, or lanes at which it has not looked.
        """
        if not self.gating.concerned:
            return self._state.gates and bool(self._short)
        return any(
            len(self._claimed[number]) < self.batch.claims[number].limit
            for number in self.gating.unread - self.gating.held_back
        )

    @property
    def gates(self) -> bool:
        """Whether there are gated queues."""
        return self._state.gates

    @cached_property
    def _short(self) -> Sequence[ClaimRequest]:
        """The claims that found too little."""
        pairs = zip(self.batch.claims, self._claimed, strict=True)
        return [
            claim
            for number, (claim, claimed) in enumerate(pairs)
            if len(claimed) < claim.limit and number not in self.gating.held_back
        ]

    @property
    def lacking(self) -> Texts:
        """The kinds of those claims."""
        return texts(sorted({kind for claim in self._short for kind in claim.kinds}))

    @property
    def lacking_of(self) -> Texts | None:
        """The queues of those claims; None: all of them."""
        return _queues_of(self._short)

    @property
    def leaves_ready(self) -> bool:
        """Whether there are ready jobs for other nodes.

        A full claim may have left some as well: ready before, or passed over by a node that asked at the same time.
        """
        if not self._state.others:
            return False
        full = len(self._short) < len(self.batch.claims)
        if self._state.others_idle and self.idle is not None and full:
            return True
        # Jobs that became ready by time or by their outcome are of the kinds of this node, as far as it knows.
        readied = self._readied > 0 and not (self.idle and self.lacking_of is None)
        # A slot that is free again may be taken by a node that has more free workers than this one.
        return readied or self.gating.freed > 0 or any(True for _ in self._untaken)

    @property
    def _untaken(self) -> Iterator[NewJob]:
        """The new jobs that are ready, but for those that a claim would have taken which found too little."""
        looked = [(claim.kinds, claim.names) for claim in self._short if self.idle]
        if self.gating.concerned:
            yield from self._not_taken
            return
        for job in self.stored:
            if job.status is Status.QUEUED and not any(
                job.kind in kinds and (names is None or job.queue in names) for kinds, names in looked
            ):
                yield job

    @property
    def _not_taken(self) -> Iterator[NewJob]:
        """The new jobs that are ready: a claim may have left some for want of free workers."""
        taken = {job.id for claimed in self._claimed for job in claimed}
        yield from (job for job in self.stored if job.status is Status.QUEUED and job.id not in taken)

    @property
    def left(self) -> tuple[Texts | None, Texts | None]:
        """The kinds and the queues of which it leaves ready jobs; None: of any.

        A full claim may have left more of what it took.
        """
        if self._readied or self.gating.freed:
            return None, None
        kinds = {job.kind for job in self._untaken}
        queues = {job.queue for job in self._untaken}
        for claimed in self._claimed:
            kinds.update(job.kind for job in claimed)
            queues.update(job.queue for job in claimed)
        return texts(sorted(kinds)), texts(sorted(queues))

    def receipts(self, *, more_ready: bool) -> Receipts:
        """For the caller; `more_ready`: see there."""
        batch, state = self.batch, self._state
        return Receipts(
            lease_lost=bool(batch.claims or batch.lease_until is not None) and not state.alive,
            stale=frozenset(self.stale),
            settled=self._settling.changed,
            adds=self._adds,
            claims=self._claimed,
            held_back=frozenset(self.gating.held_back),
            more_ready=more_ready,
            waiting=state.waiting,
            next_due=state.next_due,
            changes=[
                *self._expired,
                *self._followed.changes,
            ],
            following=self._followed.more,
            cancelling=frozenset((seq, claim) for seq, claim in state.cancelling or ()),
        )


def _queues_of(claims: Sequence[ClaimRequest]) -> Texts | None:
    """The queues that claims name; None where one of them asks for all, and where there is none."""
    names = [claim.names for claim in claims]
    if not names or None in names:
        return None
    return texts(sorted(frozenset[str]().union(*(some for some in names if some is not None))))
