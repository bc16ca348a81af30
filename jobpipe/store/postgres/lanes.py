"""Lanes: the ready jobs of gated queues, of which a claim takes what limits and turns allow; see `jobpipe.lanes`.

What an exchange does about them is done by functions in the database, in this order, each of which sees what those
before it have waited for: jobs without a key move into lanes, lanes are opened, queues with limits are locked, and for
each claim jobs are taken. An exchange that has nothing to do with gated queues calls none of them.

Locks are waited for in one order: rows in "live", lanes that are opened (sorted), queues with limits (sorted). What a
claim locks beyond that, it passes over where somebody else has locked it. Other verbs wait for no lane: they leave word
in "lane_news".
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jobpipe.job import Status
from jobpipe.store.base import OTHERS, STEP, Batch, ClaimRequest, Settlement
from jobpipe.store.postgres.address import Leases
from jobpipe.store.postgres.arrays import Texts, integers, texts
from jobpipe.store.postgres.session import Result, Row, Session

TIMES: Mapping[Leases, str] = {
    "database": "extract(epoch from transaction_timestamp())::double precision",
    "caller": "%(now)s::double precision",
}
"""The time by which rates go: that of the database where leases do, the same in a whole transaction."""

FREE = 1 << 30
"""More free workers than there are."""

_MOVE = "select move_into_lanes(%(step)s)"
_LINE_UP = "select line_up(%(ready_queues)s, %(ready_keys)s, %(freed_queues)s, %(freed_keys)s)"
_OPEN_DUE = {leases: f"select open_due({time})" for leases, time in TIMES.items()}
_LOCK_LIMITED = "select lock_limited(%(queues)s)"
_CLAIM = {
    leases: f"""
select *
from claim_gated(
    %(node)s, {time}, %(limit)s, %(free)s, %(kinds)s, %(token)s,
    %(slot)s, %(queues)s, %(shares)s
)
"""
    for leases, time in {**TIMES, "database": "null"}.items()
}
GIVEN_BACK, HELD_BACK, MORE = 1, 2, 3
"""What a row of it tells that is no job that was taken."""

WHAT, PLACE, SEQ, QUEUE, KEY, CLAIMED, EDITED = 0, slice(1, 5), 5, 8, 9, (*range(5, 9), *range(10, 18)), 18
"""In a row of it: what it tells, the job's place in line, its number, queue and key, the values of `Claimed`, and
whether it was edited."""

GATES = """
exists (select from lanes)
    or exists (select from lane_news)
    or exists (select from queues where gated)
"""
"""Whether there is anything to do about lanes."""

_NEXT_ALLOWED = """
(
    select min(q.tat - (q.rate_burst - 1) * token_every(q.rate_limit, q.rate_period, q.rate_burst))
    from queues q
    where q.gated
        and not q.paused
        and q.tat - (q.rate_burst - 1) * token_every(q.rate_limit, q.rate_period, q.rate_burst) > {time}
        and (
            select la.turn
            from lanes la
            where la.state = 0 and la.queue = q.name
            order by la.turn, la.key
            limit 1
        ) is not null
)
"""
NEXT_OPEN = {
    leases: f"""
least(
    (select min(until) from lanes where state = 1),
    {_NEXT_ALLOWED.format(time=time)}
) - ({time} - %(now)s)
"""
    for leases, time in TIMES.items()
}
"""When the next lane rests no more, or a queue has a token again, by the caller's clock."""

# The first job of each queue's lane whose turn it is.
_FIRST_IN_LANES = """
select -l.priority::bigint, l.run_at, l.seq
from (
    select r.seq
    from lanes la cross join lateral (
        select l.seq, l.priority, l.run_at
        from unnest(%(kinds)s) k (kind) cross join lateral (
            select l.seq, l.priority, l.run_at
            from live l
            where l.key is not null and l.status = 'queued' and l.node is null
                and l.queue = la.queue and l.key = la.key and l.kind = k.kind
                and (l.expires_at is null or l.expires_at > %(now)s)
                and (
                    la.key = ''
                    or la.queue <> all ({ordered})
                    or l.seq = (select f.seq from first_in_line(la.queue, la.key) f)
                )
            order by l.priority desc, l.run_at, l.seq
            limit 1
        ) l
        order by l.priority desc, l.run_at, l.seq
        limit 1
    ) r
    where la.state = 0 and {queue} and la.queue <> all (array(select name from queues where paused))
    order by la.queue, la.turn, la.key
    limit 1
) c
join live l on l.seq = c.seq
for update of l skip locked
"""
_ORDERED = "array(select name from queues where key_order is not null)"
HEAD_IN_LANES, HEAD_IN_LANES_OF_QUEUE, HEAD_IN_LANES_OF_OTHERS = (
    _FIRST_IN_LANES.format(queue=queue, ordered=_ORDERED)
    for queue in ("true", "la.queue = %(name)s", "la.queue <> all (%(queues)s::text[])")
)

# Told at once, and opened by the next exchange.
TOLD = """
told as (
    insert into lane_news (queue, key, ready)
    select distinct queue, key, {ready}
    from {those}
    where key is not null and {which}
)
"""
"""The part of a statement that leaves word of lanes in which its other parts have changed something."""

_TELL = """
insert into lane_news (queue, key, ready)
select distinct queue, key, true
from live
where seq = any (%(seqs)s) and key is not null
"""

_TELL_OF = """
insert into lane_news (queue, key, ready)
select distinct queue, key, ready = 1
from unnest(%(queues)s, %(keys)s, %(ready)s) as v (queue, key, ready)
"""
_MOVE_UP = """
insert into lane_news (queue, key, ready)
select distinct v.queue, v.key, true
from unnest(%(queues)s, %(keys)s) as v (queue, key) join queues q on q.name = v.queue
where q.key_order is not null
"""
Freed = tuple[str, str, bool]
"""Queue and key of a lane of which a job is settled, and whether that job is ready again."""

ASKED_KEY = "convert_from(options, 'UTF8')::json ->> 'key'"
"""The key that a new job asks for: what is stored now is no damaged row."""

LANE_KEY = """
coalesce(
    {asked},
    case when {queue} = any (array(select name from queues where gated)) then '' end
)
"""
"""The key of a job in its queue; null: it stands in no lane."""

GATE = (
    """
    insert into queues as q (name, gated, lining_up)
    values (%(queue)s, true, true)
    on conflict (name) do update set gated = true, lining_up = true where not q.gated
    """,
    # Of those that somebody is about just now, the next claim waits for the rest.
    """
    with found as materialized (
        select l.seq
        from live l
        where l.node is not null and l.key is null and l.queue = %(queue)s
        order by l.seq
        for update skip locked
    )
    update live l
    set key = '', kind = j.kind
    from found f
    join jobs j on j.seq = f.seq
    where l.seq = f.seq
    """,
)
"""Have the jobs of a queue stand in lanes: the held ones at once, the others by and by."""

# From one lane with ready jobs to the next: how many jobs each has does not matter.
_NEXT_LANE = """
select queue, key
from live
where key is not null and status = 'queued' and node is null and (queue, key) > ({after})
order by queue, key
limit 1
"""
MEND = f"""
with recursive walked as (
    ({_NEXT_LANE.format(after="%(queue)s, %(key)s")})
    union all
    select n.queue, n.key
    from walked w cross join lateral ({_NEXT_LANE.format(after="w.queue, w.key")}) n
),
looked as materialized (
    select queue, key
    from walked
    limit %(limit)s
),
told as (
    insert into lane_news (queue, key, ready)
    select w.queue, w.key, true
    from looked w left join lanes la on la.queue = w.queue and la.key = w.key
    where la.key is null or la.state not in (0, 1, 2, 4) or (la.state = 1 and la.until is null)
)
select queue, key, count(*) over ()
from looked
order by queue desc, key desc
limit 1
"""
"""Looks for lanes that are lost, and has the next exchange open them; a full one is looked at again by itself."""

IN_LANES = """
select k.key, w.jobs, h.jobs
from unnest(%(keys)s) k (key)
cross join lateral (
    select count(*) as jobs
    from live l
    where l.key is not null and l.status = 'queued' and l.node is null and l.queue = %(queue)s and l.key = k.key
) w
cross join lateral (
    select count(*) as jobs
    from live l
    where l.key is not null and l.node is not null and l.queue = %(queue)s and l.key = k.key
) h
"""
HELD_IN = """
select count(*)
from live l
where l.key is not null and l.node is not null and l.queue = %(queue)s
"""
HELD_IN_LANE = f"{HELD_IN} and l.key = %(key)s"
RATED_AT = {leases: f"select {time}" for leases, time in TIMES.items()}
AHEAD_IN_LANE = """
select c.ahead
from unnest(%(kinds)s::text[]) k (kind) cross join lateral (
    select count(*) as ahead
    from (
        select l.priority, l.run_at, l.seq
        from live l
        where l.key is not null and l.status = 'queued' and l.node is null
            and l.queue = %(queue)s and l.key = %(key)s and l.kind = k.kind
        order by l.priority desc, l.run_at, l.seq
        limit %(limit)s
    ) r
    where (-r.priority::bigint, r.run_at, r.seq) < (-%(priority)s::bigint, %(run_at)s, %(seq)s)
) c
"""
"""How many jobs of each kind come before one in its lane, of so many at most."""

ANY_READY = """
exists (
    select
    from (
        select la.queue, la.key
        from lanes la
        where la.state = 0
            and {queue}
            and la.queue <> all (
                array(
                    select q.name
                    from queues q
                    where q.paused
                        or q.max_running <= (
                            select count(*)
                            from live l
                            where l.key is not null and l.node is not null and l.queue = q.name
                        )
                )
            )
        order by la.queue, la.turn, la.key
        limit 1000
    ) la
    where (
        select 1
        from unnest(%(kinds)s::text[]) k (kind) cross join lateral (
            select
            from live l
            where l.key is not null and l.status = 'queued' and l.node is null
                and l.queue = la.queue and l.key = la.key and l.kind = k.kind
            order by l.priority desc, l.run_at, l.seq
            limit 1
        ) r
        limit 1
    ) is not null
        and (
            la.key = ''
            or la.queue <> all (array(select name from queues where key_order is not null))
            or (
                select f.ready and f.kind = any (%(kinds)s::text[])
                from first_in_line(la.queue, la.key) f
            )
        )
)
"""
"""Whether a job of some kinds is ready in an open lane, of a thousand, and its queue is neither paused nor full."""


def tell(session: Session, seqs: Sequence[int]) -> None:
    """Leave word of the lanes of jobs: they may be ready, or held no more."""
    session.run(_TELL, {"seqs": integers(seqs)})


def tell_of(session: Session, lanes: Sequence[Freed]) -> None:
    """Leave word of lanes of which jobs were settled."""
    queues, keys, ready = zip(*lanes, strict=True)
    values = {"queues": texts(queues), "keys": texts(keys), "ready": integers([int(one) for one in ready])}
    session.run(_TELL_OF, values)


def move_up(session: Session, lanes: Sequence[tuple[str, str]]) -> None:
    """Leave word of lanes, of queues that keep order, in which another job may be first."""
    queues, keys = zip(*lanes, strict=True)
    session.run(_MOVE_UP, {"queues": texts(queues), "keys": texts(keys)})


class Held:
    """What a writer knows of gated queues: whether there are any, and in which lanes the jobs stand that it holds.

    Also those that it holds no more, since its lease was lost, until it hands in what became of them: to open a lane in
    vain does no harm.
    """

    def __init__(self) -> None:
        self.gates = True
        """whether there were any when it last looked"""
        self._lanes: dict[int, tuple[str, str]] = {}

    def concerns(self, batch: Batch) -> bool:
        """Whether a batch may have something to do with them."""
        return (
            self.gates
            or (bool(self._lanes) and any(one.seq in self._lanes for one in batch.settlements))
            or any(job.options.key is not None for add in batch.adds for job in add.jobs)
        )

    def freed(self, settlements: Sequence[Settlement]) -> Sequence[Freed]:
        """The lanes of which jobs are settled."""
        if not self._lanes:
            return []
        return [
            (*lane, one.status is Status.QUEUED)
            for one in settlements
            if (lane := self._lanes.get(one.seq)) is not None
        ]

    def learn(self, batch: Batch, taken: Mapping[int, tuple[str, str]]) -> None:
        """The batch is committed: it has settled jobs, and taken some out of lanes."""
        if self._lanes:
            for one in batch.settlements:
                self._lanes.pop(one.seq, None)
        self._lanes.update(taken)


class Gating:
    """The part of an exchange that has to do with lanes: what is sent, and what came of it."""

    def __init__(self, session: Session, batch: Batch, held: Held, leases: Leases) -> None:
        self._session, self._batch, self._leases = session, batch, leases
        self.concerned = held.concerns(batch)
        self._freed = held.freed(batch.settlements) if self.concerned else ()
        self._claims: list[Result] = []
        self.taken: dict[int, tuple[str, str]] = {}
        """queue and key of the jobs that were taken, by their numbers"""
        self.given_back: set[int] = set()
        self.held_back: set[int] = set()
        """the numbers of the claims that left jobs for want of free workers"""
        self.unread: set[int] = set()
        """the numbers of the claims that may find more in lanes that they have not looked at"""
        self.edited: list[int] = []

    @property
    def freed(self) -> int:
        """How many jobs of gated queues it settles."""
        return len(self._freed)

    def open(self) -> None:
        """Open lanes, and lock what limits count together."""
        if not self.concerned:
            return
        claims = self._batch.claims
        if claims:
            self._session.run(_MOVE, {"step": STEP})
        ready = [lane for lane in self._freed if lane[2]]
        values: dict[str, Any] = {
            "ready_queues": texts([queue for queue, _, _ in ready]),
            "ready_keys": texts([key for _, key, _ in ready]),
            "freed_queues": texts([queue for queue, _, _ in self._freed]),
            "freed_keys": texts([key for _, key, _ in self._freed]),
        }
        self._session.run(_LINE_UP, values)
        if claims:
            self._session.run(_OPEN_DUE[self._leases], {"now": float(self._batch.now)})
            self._session.run(_LOCK_LIMITED, {"queues": _named(claims)})

    def claim(self, claim: ClaimRequest, token: int, slot: int) -> None:
        """Take jobs out of lanes, after those that stand in none."""
        if not self.concerned:
            return
        values: dict[str, Any] = {
            "node": self._batch.node,
            "now": float(self._batch.now),
            "limit": claim.limit,
            "free": min(claim.free, FREE),
            "kinds": texts(sorted(claim.kinds)),
            "token": token,
            "slot": slot,
            "queues": None,
            "shares": None,
        }
        if claim.queues:
            values["queues"] = texts([share.queue for share in claim.queues])
            values["shares"] = integers([share.jobs for share in claim.queues])
        self._claims.append(self._session.run(_CLAIM[self._leases], values))

    def take_claims(self, again: "Gating", numbers: Sequence[int]) -> None:
        """Take in what a later exchange took for the claims of these numbers."""
        self.taken |= again.taken
        self.held_back |= {numbers[number] for number in again.held_back}
        self.unread |= {numbers[number] for number in again.unread}

    def took(self, number: int) -> Sequence[tuple[Row, Row]]:
        """What the claim of that number took out of lanes, once it is committed.

        Of each job its place in line, and the values of `Claimed`.
        """
        if not self._claims:
            return []
        found = list[tuple[Row, Row]]()
        for row in self._claims[number].rows():
            if row[WHAT] == HELD_BACK:
                self.held_back.add(number)
            elif row[WHAT] == MORE:
                self.unread.add(number)
            elif row[WHAT] == GIVEN_BACK:
                self.given_back.add(row[SEQ])
            else:
                self.taken[row[SEQ]] = row[QUEUE], row[KEY]
                if row[EDITED]:
                    self.edited.append(row[SEQ])
                found.append((row[PLACE], tuple(row[column] for column in CLAIMED)))
        return found


def _named(claims: Sequence[ClaimRequest]) -> Texts | None:
    """The queues that claims name; None: all of them, some may be asked for as others."""
    if any(claim.names is None for claim in claims):
        return None
    return texts(sorted({share.queue for claim in claims for share in claim.queues if share.queue != OTHERS}))
