"""Starts and settlements: what nodes say of the jobs that they hold, each under the fence of its claim number."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from jobpipe.job import ATTEMPTS_KEPT, ENDED, Status
from jobpipe.store.base import Settlement, Start
from jobpipe.store.postgres.arrays import binaries, floats, integers, texts
from jobpipe.store.postgres.counts import counting
from jobpipe.store.postgres.session import Result, Session
from jobpipe.store.rows import encoded_error
from jobpipe.store.verbs.transaction import Ended

Fence = tuple[int, int]
"""seq and claim"""

_SEQ = attrgetter("seq")
"""Rows are locked in the order in which they are named: see `jobpipe.store.postgres.tables`."""

# A job that others wait for ends in a transaction of its own, with what follows (`Settling.followed`); else its row is
# passed over. Seen on the row itself, since another node may have locked it to note just this.
# `coalesce(node, 0) > 0` is "held", said so that the planner does not take the index of held jobs for a short cut.
_FENCED = "l.seq = v.seq and l.claim = v.claim and coalesce(l.node, 0) > 0"

_ENDED = f"{_FENCED} and (%(followed)s or not l.followed)"
_BACK = f"{_FENCED} and (%(followed)s or not l.followed or l.status <> 'cancelling')"

_START = f"""
update live l
set status = case when l.status = 'queued' then 'running' else l.status end,
    attempt = v.attempt,
    started_at = v.started_at
from unnest(%(seqs)s, %(claims)s, %(attempts)s, %(started)s) as v (seq, claim, attempt, started_at)
where {_FENCED}
returning l.seq, l.claim
"""

_RECORD = """
insert into attempts (seq, claim, number, node, started_at, finished_at, outcome, error, due_at)
select seq, claim, number, node, attempt_started_at, settled_at, outcome, error, {due_at}
from {settled}
where outcome is not null and status <> 'done'
on conflict do nothing
"""
_FORGET = f"""
delete from attempts a
using {{settled}}
where a.seq = {{settled}}.seq
    and a.claim <= {{settled}}.claim - {ATTEMPTS_KEPT}
"""

# A job that ends leaves "live"; what became of it is written into "ended".
_LEAVE = """
delete from live l
using (
    select *
    from unnest(
        %(seqs)s, %(claims)s, %(statuses)s, %(attempts)s, %(numbers)s, %(started)s, %(settled)s,
        %(outcomes)s, %(errors)s, %(sizes)s, %(results)s{more_values}
    ) as u (
        seq, claim, status, attempt, number, started_at, settled_at,
        outcome, error, size, result{more}
    )
) as v
where {ended}
"""
_LEAVE_WELL = _LEAVE.format(more_values="", more="", ended=_ENDED)
_LEAVE_ANYHOW = _LEAVE.format(more_values=", %(fingerprints)s", more=", fingerprint", ended=_ENDED)
_STAY = """
insert into ended (
    seq, status, kind, queue, created_at, run_at, attempt,
    claim, node, rescued, started_at, finished_at, size, result, error{column}
)
select
    g.seq, {status}, j.kind, j.queue, j.created_at, g.run_at, g.attempt,
    g.claim, g.node, g.rescued, g.started_at, g.settled_at, g.size, {result}, {error}{value}
from {source} g
join jobs j on j.seq = g.seq
{which}
returning seq, claim, status, queue, size
"""
_ENDED_WELL = _STAY.format(
    status="g.status", result="g.result", error="g.error", source="gone", which="", column="", value=""
)
_ENDED_ANYHOW = _STAY.format(
    status="g.status",
    result="g.result",
    error="g.error",
    source="gone",
    which="",
    column=", fingerprint",
    value=", g.fingerprint",
)
# A job that failed stops its key, where keys stop.
_STOPPED = """
stopped as (
    insert into stopped_keys (queue, key, seq, id)
    select g.queue, g.key, g.seq, j.id
    from gone g
    join jobs j on j.seq = g.seq
    where g.status = 'failed'
        and g.key <> ''
        and g.queue = any (array(select name from queues where key_order = 'stop'))
    on conflict do nothing
)
"""
_COUNT_ENDED = counting("select queue, status, 1, size from ended_now")
_END_IN_LANES = f"""
with gone as (
    {_LEAVE_ANYHOW}
    returning
        l.seq, l.claim, l.node, l.run_at, l.rescued, l.watched, l.queue, l.key, v.status, v.attempt, v.number,
        coalesce(v.started_at, l.started_at) as started_at,
        v.started_at as attempt_started_at,
        v.settled_at, v.outcome, v.error, v.size, v.result, v.fingerprint
),
recorded as (
    {_RECORD.format(settled="gone", due_at="run_at")}
),
forgotten as (
    {_FORGET.format(settled="gone")}
    and gone.status <> 'done'
),
{_STOPPED},
ended_now as (
    {_ENDED_ANYHOW}
),
{_COUNT_ENDED}
select e.seq, e.claim, e.status, gone.watched
from ended_now e
join gone on gone.seq = e.seq
"""
_END = _END_IN_LANES.replace(f"{_STOPPED},", "")
# The same, for jobs that are done: nothing is recorded elsewhere.
_END_WELL = f"""
with gone as (
    {_LEAVE_WELL}
    returning
        l.seq, l.claim, l.node, l.run_at, l.rescued, l.watched, v.status, v.attempt,
        coalesce(v.started_at, l.started_at) as started_at,
        v.settled_at, v.error, v.size, v.result
),
ended_now as (
    {_ENDED_WELL}
),
{_COUNT_ENDED}
select e.seq, e.claim, e.status, gone.watched
from ended_now e
join gone on gone.seq = e.seq
"""

# A job that waits again; or, when it was asked to cancel meanwhile, has ended.
_COUNT_AGAIN = counting("""
    select queue, status, 1, 0 from back
    union all
    select queue, status, 1, size from ended_now
""")
_CANCELLED = _STAY.format(
    status="'cancelled'",
    result="null",
    error="g.last_error",
    source="hit",
    which="where g.before = 'cancelling'",
    column="",
    value="",
)
_AGAIN = f"""
with hit as (
    select
        l.seq, l.claim, l.node, l.status as before, l.watched, l.rescued, v.status, v.attempt, v.number,
        coalesce(v.run_at, l.run_at) as run_at,
        l.run_at as due_at,
        coalesce(v.started_at, l.started_at) as started_at,
        v.started_at as attempt_started_at,
        v.settled_at, v.outcome, v.error,
        coalesce(v.error, l.error) as last_error,
        v.size
    from unnest(
        %(seqs)s, %(claims)s, %(statuses)s, %(attempts)s, %(numbers)s, %(started)s, %(settled)s,
        %(outcomes)s, %(errors)s, %(sizes)s, %(run_at)s
    ) as v (
        seq, claim, status, attempt, number, started_at, settled_at,
        outcome, error, size, run_at
    )
    join live l on {_BACK}
    for update of l
),
back as (
    update live l
    set status = hit.status,
        attempt = hit.attempt,
        run_at = hit.run_at,
        started_at = hit.started_at,
        error = hit.last_error,
        node = null,
        token = null
    from hit
    where l.seq = hit.seq and hit.before <> 'cancelling'
    returning l.queue, l.status
),
gone as (
    delete from live l
    using hit
    where l.seq = hit.seq and hit.before = 'cancelling'
),
ended_now as (
    {_CANCELLED}
),
recorded as (
    {_RECORD.format(settled="hit", due_at="due_at")}
),
forgotten as (
    {_FORGET.format(settled="hit")}
),
{_COUNT_AGAIN}
select seq, claim, case when before = 'cancelling' then 'cancelled' else status end, watched
from hit
"""

# Whether a claim was settled just so by an exchange whose commit was not answered.
_WRITTEN = """
select v.seq, v.claim
from unnest(%(seqs)s, %(claims)s, %(settled)s, %(unspent)s) as v (seq, claim, settled_at, unspent)
join shown s on s.seq = v.seq and s.claim = v.claim and not s.held
where s.finished_at = v.settled_at
    or v.unspent = 1
    or exists (
        select from attempts a
        where a.seq = v.seq and a.claim = v.claim and a.finished_at = v.settled_at
    )
"""


_HOLD = f"""
select l.seq, l.claim
from unnest(%(seqs)s, %(claims)s) as v (seq, claim)
join live l on {_FENCED}
for no key update of l
"""


async def lock_claims(session: Session, claims: Sequence[Fence]) -> frozenset[Fence]:
    """Those of the claims, in order of seq, under which jobs are held; their rows are locked."""
    seqs, numbers = [seq for seq, _ in claims], [claim for _, claim in claims]
    return frozenset(await session.rows(_HOLD, {"seqs": integers(seqs), "claims": integers(numbers)}))


def send_starts(session: Session, starts: Sequence[Start]) -> Result:
    """Write starts; the answer holds the fences that matched."""
    seqs, claims, attempts, times = zip(*sorted(map(_start, starts)), strict=True)
    values = {
        "seqs": integers(seqs),
        "claims": integers(claims),
        "attempts": integers(attempts),
        "started": floats(times),
    }
    return session.run(_START, values)


def _start(one: Start) -> tuple[int, int, int, float]:
    return one.seq, one.claim, one.attempt, one.started_at


class Settling:
    """The settlements of one batch, in two steps: `send` asks for it, `judge` once that is answered."""

    def __init__(
        self, settlements: Sequence[Settlement], slot: int, *, followed: bool = False, in_lanes: bool = True
    ) -> None:
        settlements = sorted(settlements, key=_SEQ)
        self._ends = [one for one in settlements if one.status in ENDED]
        self._again = [one for one in settlements if one.status not in ENDED]
        self._slot, self._followed = slot, followed
        self._end = _END_IN_LANES if in_lanes else _END
        self._answers: list[Result] = []
        self.stale: set[Fence] = set()
        """those that matched no held row"""
        self.changed: dict[int, Status] = {}
        """what became of jobs, by seq, where it is not what was asked"""
        self.watched: list[str] = []
        """ids of the watched jobs that have ended"""
        self.readied = 0
        """how many jobs are ready again"""
        self.ended: list[Ended] = []
        """the jobs that have ended, where others may wait for them (`followed`)"""

    def send(self, session: Session) -> None:
        """Write them."""
        if self._ends:
            well = all(one.status is Status.DONE for one in self._ends)
            values = _columns(self._ends)
            values |= {"results": binaries([one.result for one in self._ends])} | self._common
            if not well:
                values["fingerprints"] = texts([_fingerprint(one) for one in self._ends])
            self._answers.append(session.run(_END_WELL if well else self._end, values))
        if self._again:
            values = _columns(self._again)
            values |= {"run_at": floats([one.run_at for one in self._again])} | self._common
            self._answers.append(session.run(_AGAIN, values))

    @property
    def _common(self) -> dict[str, Any]:
        return {"slot": self._slot, "followed": self._followed}

    def judge(self) -> None:
        """Learn what became of them."""
        became = {(row[0], row[1]): row for answer in self._answers for row in answer.rows()}
        for one in (*self._ends, *self._again):
            row = became.get((one.seq, one.claim))
            if row is None:
                self.stale.add((one.seq, one.claim))
                continue
            _, _, status, watched = row
            if status != one.status:
                self.changed[one.seq] = Status(status)
            if self._followed and status in ENDED:
                self.ended.append(Ended(one.seq, one.id, status))
            if watched and status in ENDED:
                self.watched.append(one.id)
            self.readied += status == Status.QUEUED


def _columns(settlements: Sequence[Settlement]) -> dict[str, Any]:
    """The values of a statement that settles, by name: all but what only some have."""
    values = [
        (
            one.seq,
            one.claim,
            one.status.value,
            one.attempt,
            one.number,
            one.started_at,
            one.settled_at,
            None if one.outcome is None else one.outcome.value,
            encoded_error(one.error),
            one.size,
        )
        for one in settlements
    ]
    seqs, claims, statuses, attempts, numbers, started, settled, outcomes, errors, sizes = zip(
        *values, strict=True
    )
    return {
        "seqs": integers(seqs),
        "claims": integers(claims),
        "statuses": texts(statuses),
        "attempts": integers(attempts),
        "numbers": integers(numbers),
        "started": floats(started),
        "settled": floats(settled),
        "outcomes": texts(outcomes),
        "errors": binaries(errors),
        "sizes": integers(sizes),
    }


def _fingerprint(one: Settlement) -> str | None:
    """Of which failures a settlement is one."""
    if one.status is not Status.FAILED or one.error is None:
        return None
    return one.error.fingerprint or None


async def written_before(session: Session, settlements: Sequence[Settlement]) -> set[Fence]:
    """Which of these settlements an exchange wrote that did not come to know it."""
    values = {
        "seqs": integers([one.seq for one in settlements]),
        "claims": integers([one.claim for one in settlements]),
        "settled": floats([one.settled_at for one in settlements]),
        "unspent": integers([int(one.outcome is None) for one in settlements]),
    }
    return {(seq, claim) for seq, claim in await session.rows(_WRITTEN, values)}
