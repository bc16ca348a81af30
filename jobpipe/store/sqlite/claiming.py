"""The claim: which ready jobs a node takes, and in what order.

While nothing is in its way, a claim reads the first entries of one index over all queues. Many ready jobs of paused
queues make it go queue by queue. It puts jobs of other kinds aside, where only claims for their kind look.
A claim that names queues reads each of them as far as it takes from it.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import apsw
import msgspec

from jobpipe.job import Status
from jobpipe.store.base import OTHERS, Batch, Claimed, ClaimRequest, Share
from jobpipe.store.rows import Row, claimed_from
from jobpipe.store.sqlite.counts import HELD, CountChanges
from jobpipe.store.sqlite.gated import LAST_NAME, Gated
from jobpipe.store.sqlite.known import Known
from jobpipe.store.sqlite.rows import (
    ASIDE,
    CLAIMED_AS_BYTES,
    CLAIMED_COLUMNS,
    NEXT_QUEUE,
    READY,
    READY_BY_QUEUE,
    as_json,
    as_text,
    fetch,
    fetch_one,
)

PASSED = 2_000
"""How many ready jobs of paused queues a claim passes over before it reads queue by queue instead."""

WALKED = 1_000
"""How many queues such a claim reads; the next one continues behind them."""

SLICE, SLICES = 1_000, 5
"""How many ready jobs are looked at in one step to put aside those of other kinds, and how often in one exchange."""

# Also a gated queue whose jobs are not all in their lanes yet: what is in its lanes is claimed elsewhere.
_PAUSED = """
select name from queues where paused = 1
union all
select name from queues where gated = 1 and lining_up = 1
"""
_PAUSED_OR_NAMED = f"{_PAUSED} union all select value from json_each(:named)"
_FRESH = "(expires_at is null or expires_at > :now)"
_ORDER = "order by priority desc, run_at, seq"
_FIRST = f"""
select seq
from {READY}
    and {_FRESH}
{_ORDER}
limit :limit
"""
# These pass over the queues of `{passed}`.
# The inner query reads only its index, where passing over an entry costs a tenth of a microsecond.
_FIRST_AROUND = f"""
select -priority, run_at, seq
from (
    select seq, queue
    from {READY}
    {_ORDER}
    limit :look
) as near
cross join jobs using (seq)
where near.queue not in ({{passed}})
    and {_FRESH}
limit :limit
"""
_ANY_BEHIND = f"""
select 1
from {READY}
{_ORDER}
limit 1
offset :look
"""
_OF_QUEUE = f"""
select -priority, run_at, seq
from {READY_BY_QUEUE}
    and queue = :name
    and aside = 0
    and {_FRESH}
{_ORDER}
limit :limit
"""
_OF_KIND_AROUND = f"""
select -priority, run_at, seq
from {ASIDE}
    and kind = :name
    and queue not in ({{passed}})
    and {_FRESH}
{_ORDER}
limit :limit
"""
_OF_KIND_IN_QUEUE = f"""
select -priority, run_at, seq
from {ASIDE}
    and kind = :name
    and queue = :queue
    and {_FRESH}
{_ORDER}
limit :limit
"""
_KIND_HEADS_AROUND = f"""
select -j.priority, j.run_at, j.seq, served.value
from json_each(:kinds) as served
cross join jobs j on j.seq = (
    select seq
    from {ASIDE}
        and kind = served.value
        and queue not in ({{passed}})
        and {_FRESH}
    {_ORDER}
    limit 1
)
"""
_ANY_ASIDE = f"select exists (select 1 from {ASIDE})"
_MINE_ASIDE = f"""
select exists (
    select 1
    from json_each(:kinds) as served cross join {ASIDE}
        and kind = served.value
)
"""
_HEADS_AROUND = f"""
with recursive walked (queue) as (
    select {NEXT_QUEUE.format(after=":after")}
    union all
    select {NEXT_QUEUE.format(after="walked.queue")}
    from walked
    where walked.queue < :until
)
select -j.priority, j.run_at, j.seq, walked.queue
from walked
cross join jobs j on j.seq = (
    select seq
    from {READY_BY_QUEUE}
        and queue = walked.queue
        and aside = 0
        and {_FRESH}
    {_ORDER}
    limit 1
)
where walked.queue <= :until and walked.queue not in ({{passed}})
limit :queues
"""
_SET_OF_NAMED = """
select name, paused
from queues
where name in (select value from json_each(:named)) and (paused = 1 or (gated = 1 and lining_up = 1))
"""

IS_SERVED = "kind in (select value from json_each(:kinds))"
_CLAIM = """
update jobs
set claim = claim + 1,
    node = :node,
    held = 1,
    started_at = null
where seq {which}
returning -priority, run_at, {columns}, expires_at
"""
_THESE = "in (select value from json_each(:seqs))"
_CLAIM_FIRST = _CLAIM.format(which=f"in ({_FIRST})", columns=CLAIMED_COLUMNS)
_CLAIM_FIRST_SERVED = _CLAIM.format(which=f"in ({_FIRST}) and {IS_SERVED}", columns=CLAIMED_COLUMNS)
_CLAIM_THESE = _CLAIM.format(which=f"{_THESE} and {IS_SERVED}", columns=CLAIMED_COLUMNS)
_CLAIM_AS_BYTES = _CLAIM.format(which=f"= :seq and {IS_SERVED}", columns=CLAIMED_AS_BYTES)
_CLAIMED, _KIND, _QUEUE, _EXPIRES_AT = slice(2, -1), 4, 5, -1
"""In what is returned: the values of `Claimed`, and where kind, queue and expires_at stand."""

_PUT_ASIDE = f"""
update jobs
set aside = 1
where seq {{which}} and not {IS_SERVED}
"""
_PUT_FIRST_ASIDE = _PUT_ASIDE.format(which=f"in ({_FIRST})")
_PUT_THESE_ASIDE = _PUT_ASIDE.format(which=_THESE)


class Unserved(Exception):  # noqa: N818 - no error: it is caught where it is raised for
    """A claim took a job of a kind that it did not ask for."""


Values = dict[str, Any]


class Around:
    """The statements that read ready jobs, but pass over some queues."""

    def __init__(self, passed: str) -> None:
        self.first, self.heads = _FIRST_AROUND.format(passed=passed), _HEADS_AROUND.format(passed=passed)
        self.of_kind = _OF_KIND_AROUND.format(passed=passed)
        self.kind_heads = _KIND_HEADS_AROUND.format(passed=passed)


PAUSED, PAUSED_OR_NAMED = Around(_PAUSED), Around(_PAUSED_OR_NAMED)


class Claiming:
    """Takes ready jobs."""

    def __init__(self, db: apsw.Connection, known: Known) -> None:
        self._db, self._known = db, known
        self._walked = self._walked_gates = ""
        self.held_back = False
        """whether the last claim left jobs for which there is no free worker"""

    def claim(
        self, batch: Batch, claim: ClaimRequest, counts: CountChanges, *, one_by_one: bool, wary: bool
    ) -> tuple[Sequence[Claimed], bool]:
        """Hold ready jobs; returns them, and whether more may be ready although fewer were taken than asked for."""
        self.held_back = False
        if self._known.none_ready(claim):
            return (), False
        rows, more_ready = self._take(batch, claim, one_by_one=one_by_one, wary=wary)
        walked = self._walked or self._walked_gates
        if len(rows) < claim.limit and not (more_ready or one_by_one or walked or self.held_back):
            self._known.took_all(claim)
        if any(row[_EXPIRES_AT] is not None for row in rows):
            self._known.due_changed()  # a held job does not expire
        claimed = claimed_from([row[_CLAIMED] for row in rows])
        for queue, jobs in Counter(job.queue for job in claimed).items():
            counts.move(queue, Status.QUEUED, HELD, jobs)
        return claimed, more_ready

    def _take(
        self, batch: Batch, claim: ClaimRequest, *, one_by_one: bool, wary: bool
    ) -> tuple[list[Row], bool]:
        """Hold the next jobs; returns their rows in order, and whether more may be ready.

        Raises `Unserved` when one of them is of another kind, unless it is `wary` of that.
        """
        values: Values = {"node": self._known.node(batch.node), "now": batch.now, "limit": claim.limit}
        if self._known.gated() and not claim.queues:
            return self._take_gated(claim, values | {"kinds": as_json(claim.kinds)}, one_by_one=one_by_one)
        if claim.queues:
            values["kinds"] = as_json(claim.kinds)
            return self._take_by_queue(claim, values, one_by_one=one_by_one)
        if one_by_one:
            values["kinds"] = as_json(claim.kinds)
            return self._take_with_care(values, _seqs(self._in_order(values))), False
        if wary or self._known.paused() or self._db.execute(_ANY_ASIDE).get:
            return self._take_served(values | {"kinds": as_json(claim.kinds)})
        rows = self._sorted(_CLAIM_FIRST, values)
        if any(row[_KIND] not in claim.kinds for row in rows):
            raise Unserved
        return rows, False

    def _take_gated(self, claim: ClaimRequest, values: Values, *, one_by_one: bool) -> tuple[list[Row], bool]:
        """Hold the next jobs where some queues are gated; see `_take`. What is in their way is put aside."""
        rows: list[Row] = []
        for _ in range(SLICES):
            limit = claim.limit - len(rows)
            part = values | {"limit": limit}
            gated = self._gates(claim, rows, limit, values["now"])
            jobs = gated.others((), self._walked_gates, self._next(part, PAUSED))
            seqs = _seqs(itertools.islice(jobs, limit))
            held = self._held(values, seqs, one_by_one=one_by_one)
            self._took(gated, held)
            rows += held
            if len(rows) == claim.limit or len(held) == len(seqs):
                return rows, False
            self._put_aside(values | {"limit": SLICE})
        return rows, True

    def _gates(self, claim: ClaimRequest, rows: Sequence[Row], limit: int, now: float) -> Gated:
        """What gated queues give to what is left of a claim, of which some jobs are held already."""
        free = claim.free - len(rows)
        return Gated(self._db, self._known, claim.kinds, limit=limit, free=free, now=now)

    def _took(self, gated: Gated, held: Sequence[Row]) -> None:
        gated.took(_seqs(row[:3] for row in held))
        self._walked_gates = gated.walked
        self.held_back |= gated.held_back

    def _held(self, values: Values, seqs: Sequence[int], *, one_by_one: bool) -> list[Row]:
        """Hold those of the jobs that are of the served kinds, and return them in their order."""
        if one_by_one:
            return self._take_with_care(values, seqs)
        place = {seq: number for number, seq in enumerate(seqs)}
        rows = fetch(self._db, _CLAIM_THESE, values | {"seqs": as_numbers(seqs)}) if seqs else []
        return sorted(rows, key=lambda row: place[row[2]])

    def _take_served(self, values: Values) -> tuple[list[Row], bool]:
        """Hold the next jobs of the kinds that are served. What is in their way, of other kinds, is put aside."""
        limit = values["limit"]
        rows, all_seen = self._hold(values)
        for _ in range(SLICES):
            if all_seen or len(rows) == limit or not self._put_aside(values | {"limit": SLICE}):
                return rows, False
            more, all_seen = self._hold(values | {"limit": limit - len(rows)})
            rows += more
        return rows, len(rows) < limit

    def _take_by_queue(
        self, claim: ClaimRequest, values: Values, *, one_by_one: bool
    ) -> tuple[list[Row], bool]:
        """Hold the next jobs of the queues that are asked for; see `_take`. What is in their way is put aside."""
        rows: list[Row] = []
        for _ in range(SLICES):
            limit = claim.limit - len(rows)
            gated = self._gates(claim, rows, limit, values["now"]) if self._known.gated() else None
            seqs = _seqs(dealt(self._queues(claim, values | {"limit": limit}, gated, without=rows), limit))
            held = self._held(values, seqs, one_by_one=one_by_one)
            if gated is not None:
                self._took(gated, held)
            rows = sorted(rows + held, key=lambda row: row[:3])
            if len(rows) == claim.limit or len(held) == len(seqs):
                return rows, False
            self._clear(claim, values)
        return rows, True

    def _clear(self, claim: ClaimRequest, values: Values) -> bool:
        """Put jobs of other kinds aside that are in front of the queues asked for; whether there were any."""
        queues = self._queues(claim, values | {"limit": SLICE}, None, without=())
        near = [row for _, queue in queues for row in itertools.islice(queue, SLICE)]
        self._db.execute(_PUT_THESE_ASIDE, values | {"seqs": as_numbers(_seqs(near))})
        return bool(self._db.changes())

    def first(self, claim: ClaimRequest, now: float) -> Sequence[int]:
        """The job that a claim takes first, if there is one; what is in its way is put aside, a bounded number."""
        values = {"now": now, "limit": 1, "kinds": as_json(claim.kinds)}
        gated = self._gates(claim, (), 1, now)
        if not claim.queues:
            return _seqs(itertools.islice(gated.others((), "", self._in_order(values)), 1))
        for _ in range(SLICES):
            if not self._clear(claim, values):
                break
        return _seqs(dealt(self._queues(claim, values, gated, without=()), 1))

    def _queues(
        self, claim: ClaimRequest, values: Values, gated: Gated | None, *, without: Sequence[Row]
    ) -> Sequence[tuple[int, Iterator[Row]]]:
        """What each queue gives at first, less the jobs `without`, and its ready jobs in order, read when asked for.

        `gated`: what gated queues give; None: leave out what stands in lanes.
        """
        named = {share.queue for share in claim.queues} - {OTHERS}
        values = values | {"named": as_json(named)}
        some_set = self._known.paused() or self._known.lining_up()
        # Paused queues, and those whose jobs are not all in their lanes yet.
        passed: dict[str, int] = dict(fetch(self._db, _SET_OF_NAMED, values)) if some_set else {}
        aside = sorted(claim.kinds) if self._db.execute(_MINE_ASIDE, values).get else ()
        taken = Counter(row[_QUEUE] if row[_QUEUE] in named else OTHERS for row in without)
        queues = list[tuple[int, Iterator[Row]]]()
        for share in claim.queues:
            jobs: Iterator[Row] = iter(())
            if share.queue not in passed:
                jobs = self._queue(share, aside, values)
            if gated is not None and share.queue == OTHERS:
                jobs = gated.others(named, self._walked_gates, jobs)
            elif gated is not None and passed.get(share.queue) != 1:
                jobs = gated.of(share.queue, jobs)
            queues.append((max(0, share.jobs - taken[share.queue]), jobs))
        return queues

    def _queue(self, share: Share, aside: Collection[str], values: Values) -> Iterator[Row]:
        """The ready jobs of a queue in order, with those of the kinds that may stand `aside`."""
        if share.queue == OTHERS:
            yield from self._next(values, PAUSED_OR_NAMED)
            return
        ready = self._read(_OF_QUEUE, max(1, share.jobs), values | {"name": share.queue})
        of_kinds = (
            self._read(_OF_KIND_IN_QUEUE, 1, values | {"name": kind, "queue": share.queue}) for kind in aside
        )
        yield from heapq.merge(ready, *of_kinds)

    def _read(self, sql: str, first: int, values: Values) -> Iterator[Row]:
        """The rows of a query: the first few, and when more are asked for the others."""
        rows = fetch(self._db, sql, values | {"limit": first})
        yield from rows
        if len(rows) == first < values["limit"]:
            yield from fetch(self._db, sql, values)[first:]

    def _take_with_care(self, values: Values, seqs: Iterable[int]) -> list[Row]:
        """Hold jobs one by one: some of their text may not be UTF-8."""
        rows: list[Row] = []
        for seq in seqs:
            found = self._db.execute(_CLAIM_AS_BYTES, values | {"seq": seq}).fetchall()
            for minus_priority, run_at, _, job_id, kind, queue, *rest in found:
                names = (as_text(1, name) for name in (job_id, kind, queue))
                rows.append((minus_priority, run_at, seq, *names, *rest))
        return rows

    def _in_order(self, values: Values) -> Sequence[Row]:
        """The next jobs of the served kinds; what is in their way is put aside, a bounded number."""
        for _ in range(SLICES):
            if not self._put_aside(values | {"limit": SLICE}):
                break
        return self._next(values, PAUSED)

    def _hold(self, values: Values) -> tuple[list[Row], bool]:
        """Hold the next jobs that are served; also whether there were fewer, none of another kind among them."""
        if self._known.paused() or self._db.execute(_MINE_ASIDE, values).get:
            near = _seqs(self._next(values, PAUSED))
            rows = self._sorted(_CLAIM_THESE, values | {"seqs": as_numbers(near)})
            return rows, len(rows) == len(near) < values["limit"] and not self._walked
        return self._sorted(_CLAIM_FIRST_SERVED, values), False

    def _sorted(self, sql: str, values: Values) -> list[Row]:
        return sorted(
            fetch(self._db, sql, values)
        )  # by -priority, run_at, seq: what an update returns has no order

    def _put_aside(self, values: Values) -> bool:
        """Put jobs of other kinds aside that are in front; whether there were any."""
        if self._known.paused() or self._known.lining_up():
            self._db.execute(
                _PUT_THESE_ASIDE, values | {"seqs": as_numbers(_seqs(self._around(values, PAUSED)))}
            )
        else:
            self._db.execute(_PUT_FIRST_ASIDE, values)
        return bool(self._db.changes())

    def _next(self, values: Values, around: Around) -> Sequence[Row]:
        """The next jobs around some queues, merged with those of the served kinds that stand aside."""
        limit = values["limit"]
        heads = fetch(self._db, around.kind_heads, values)
        aside = [self._from(head, around.of_kind, _share(limit, heads), values) for head in heads]
        return list(itertools.islice(heapq.merge(self._around(values, around), *aside), limit))

    def _around(self, values: Values, around: Around) -> Sequence[Row]:
        """The next jobs around some queues, those that stand aside left out.

        They are read from the index over all queues, unless too many jobs of those queues are in the way.
        """
        limit = values["limit"]
        looked = values | {"look": limit + PASSED}
        near = fetch(self._db, around.first, looked)
        if len(near) == limit or fetch_one(self._db, _ANY_BEHIND, looked) is None:
            return near
        heads = sorted(self._heads(values, around))[:limit]
        merged = heapq.merge(*(self._from(head, _OF_QUEUE, _share(limit, heads), values) for head in heads))
        return list(itertools.islice(merged, limit))

    def _heads(self, values: Values, around: Around) -> list[Row]:
        """The first ready job of each of the other queues, of `WALKED` queues at most: each in its turn.

        Among more queues than that, priorities hold among those that are read together.
        """
        heads: list[Row] = []
        for after, until in ((self._walked, LAST_NAME), ("", self._walked)):
            part = {"after": after, "until": until, "queues": WALKED - len(heads)}
            heads += fetch(self._db, around.heads, values | part)
        self._walked = ""
        if len(heads) == WALKED:
            *_, self._walked = heads[-1]
        return heads

    def _from(self, head: Row, sql: str, share: int, values: Values) -> Iterator[Row]:
        """The ready jobs of a queue or kind, given its first; more are read when asked for, and first only a share."""
        *place, name = head
        yield tuple(place)
        named = values | {"name": name}
        rows = fetch(self._db, sql, named | {"limit": share})
        yield from rows[1:]
        if len(rows) == share:
            yield from fetch(self._db, sql, named)[share:]


def _share(limit: int, heads: Sequence[Row]) -> int:
    return 2 * limit // max(len(heads), 1) + 1


def _seqs(rows: Iterable[Row]) -> Sequence[int]:
    return [seq for _, _, seq in rows]


def as_numbers(seqs: Sequence[int]) -> str:
    """Numbers of jobs as one value; a statement reads them with `json_each`."""
    return msgspec.json.encode(seqs).decode()


def dealt(queues: Sequence[tuple[int, Iterator[Row]]], limit: int) -> Sequence[Row]:
    """So many rows of several queues, of each its share at most, round by round; see `ClaimRequest.queues`."""
    rows: list[Row] = []
    giving = [(share, queue) for share, queue in queues if share]
    while giving and len(rows) < limit:
        more = list[tuple[int, Iterator[Row]]]()
        for share, queue in giving:
            given = list(itertools.islice(queue, min(share, limit - len(rows))))
            rows += given
            if len(given) == share:
                more.append((share, queue))
        giving = more
    for share, queue in queues:
        if not share:
            rows += itertools.islice(queue, limit - len(rows))
    return rows
