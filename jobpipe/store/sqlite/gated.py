"""What gated queues give to a claim: as much as their limits allow, their keys in turn. See `jobpipe.lanes`."""

import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import apsw
import msgspec

from jobpipe.lanes import EMPTY, FULL, OPEN, RESTING, STOPPED, Lane, Limits, in_turn, share
from jobpipe.store.rows import Row
from jobpipe.store.sqlite.known import Known
from jobpipe.store.sqlite.rows import FIRST_IN_LINE, READY_IN_LANE, as_json, fetch
from jobpipe.store.sqlite.values import execute_values
from jobpipe.store.verbs.lanes import LIMIT_COLUMNS, count_from, limits_from, time_from, weight_from

WALKED = 1_000
"""How many gated queues, and how many lanes of one, a claim looks at; the next one looks at queues behind them."""

SAVED_UP = 1_000.0
"""By how many turns a lane may be behind the others; one that seems to be further is damaged."""

_NEXT_QUEUE = "(select queue from lanes where state = 0 and queue > {after} order by queue limit 1)"
_QUEUES = f"""
with recursive walked (queue) as (
    select {_NEXT_QUEUE.format(after=":after")}
    union all
    select {_NEXT_QUEUE.format(after="walked.queue")}
    from walked
    where walked.queue is not null and walked.queue <= :until
    limit :queues
)
select walked.queue, gated = 1 and paused = 0, turn, tat, {LIMIT_COLUMNS}
from walked left join queues on queues.name = walked.queue
where walked.queue <= :until
"""
_QUEUE = f"select name, 1, turn, tat, {LIMIT_COLUMNS} from queues where name = ? and gated = 1 and paused = 0"
HELD_IN_QUEUE = (
    "select count(*) from jobs indexed by jobs_held_in_lane where key is not null and held = 1 and queue = ?"
)
_LANES = """
select key, turn, tat, weight, max_running, (
    select count(*)
    from jobs indexed by jobs_held_in_lane
    where jobs.key is not null and jobs.held = 1 and jobs.queue = lanes.queue and jobs.key = lanes.key
)
from lanes indexed by lanes_open
where state = 0 and queue = :queue and (turn, key) > (:turn, :key)
order by turn, key
limit :limit
"""
_JOBS = f"""
select lane.value, -j.priority, j.run_at, j.seq
from json_each(:keys) as lane
cross join json_each(:kinds) as served
cross join jobs j on j.seq in (
    select seq
    from {READY_IN_LANE}
        and queue = :queue
        and key = lane.value
        and kind = served.value
        and (expires_at is null or expires_at > :now)
    order by priority desc, run_at, seq
    limit :share
)
"""
# Where order counts only the first job of a lane can be taken, if it is ready.
_FIRST = FIRST_IN_LINE.format(queue=":queue", key="lane.value")
_FIRST_JOBS = f"""
select lane.value, -j.priority, j.run_at, j.seq
from json_each(:keys) as lane
cross join jobs j on j.seq = {_FIRST}
where j.status = 'queued'
    and j.held = 0
    and j.kind in (select value from json_each(:kinds))
    and (j.expires_at is null or j.expires_at > :now)
"""
_WAITING = f"""
select value
from json_each(:keys) as lane
where not exists (select 1 from jobs j where j.seq = {_FIRST} and j.status = 'queued')
"""
_STOPPED = """
select value
from json_each(:keys) as lane
where exists (select 1 from stopped_keys where stopped_keys.queue = :queue and stopped_keys.key = lane.value)
"""
_EMPTY = f"""
select value
from json_each(:keys) as lane
where not exists (
    select 1
    from {READY_IN_LANE}
        and queue = :queue
        and key = lane.value
)
"""
_SERVED = """
update lanes
set turn = v.column1,
    state = v.column2,
    until = v.column3,
    tat = v.column4
from ({values}) as v
where lanes.queue = v.column5 and lanes.key = v.column6
"""
_GONE = "delete from lanes where queue = ? and key = ?"
_TAKEN = "update queues set turn = ?, tat = ? where name = ?"
_BEFORE_ALL = (-math.inf, "")
LAST_NAME = chr(0x10FFFF)
"""Sorts behind the name of every queue."""


class _Open(Lane):
    """An open lane, as a claim looks at it."""

    stored_turn: float = 0.0
    tat: float | None = None
    running: int = 0
    max_running: int | None = None
    """of its own or of each key; None: no limit"""
    usual: bool = True
    """whether nothing is set for its key"""
    barren: bool = False
    """whether it has no job for this claim, at least"""
    in_line: bool = False
    """whether its jobs go one after another, in the order of arrival"""
    stopped: bool = False
    """whether none of its jobs may be taken since one has failed"""


class _Gate:
    """A gated queue, as a claim looks at it."""

    def __init__(self, row: Row) -> None:
        self.queue, _, turn, tat, *columns = row
        self.turn: float = turn if math.isfinite(turn) else 0.0
        self.tat = time_from(tat)
        self.limits: Limits = limits_from(columns)
        self.counted = self.limits.count
        """whether a limit counts its jobs; also where only one of its keys has one"""
        self.lanes: dict[str, _Open] = {}


class Gated:
    """What gated queues give to one claim, read as far as it is asked for; `took` then writes what was taken of it.

    A lane that has nothing to give is closed until it may have. One whose jobs are all of kinds that the claim does not
    serve stays open: it is passed over.
    """

    def __init__(
        self,
        db: apsw.Connection,
        known: Known,
        kinds: Collection[str],
        *,
        limit: int,
        free: int,
        now: float,
    ) -> None:
        self._db, self._known, self._limit, self._free, self._now = db, known, limit, free, now
        self._kinds = as_json(kinds)
        self._gates: dict[str, _Gate] = {}
        self._lane_of: dict[int, tuple[_Gate, _Open]] = {}
        self.held_back = False
        """whether more is ready, and was not given since there is no free worker for it"""
        self.walked = ""
        """the last queue that was looked at, where there are more"""

    def of(self, queue: str, plain: Iterable[Row]) -> Iterator[Row]:
        """The jobs of one queue, merged with `plain` ones that stand in no lane."""
        return self._merged(plain, fetch(self._db, _QUEUE, (queue,)))

    def others(self, named: Collection[str], walked: str, plain: Iterable[Row]) -> Iterator[Row]:
        """The jobs of all queues but some, merged with `plain` ones; `walked`: where an earlier claim has stopped."""
        return self._merged(plain, [row for row in self._rows_of_queues(walked) if row[0] not in named])

    def _merged(self, plain: Iterable[Row], queues: Iterable[Row]) -> Iterator[Row]:
        """The jobs of some queues and `plain` ones, the next one first."""
        gates = [None, *map(_Gate, queues)]
        sources = [iter(plain) if gate is None else self._jobs_of(gate) for gate in gates]
        heads = [(head, place) for place, jobs in enumerate(sources) if (head := next(jobs, None))]
        heapq.heapify(heads)
        while heads:
            job, place = heads[0]
            gate = gates[place]
            head = None
            if gate is not None and gate.counted and self._free <= 0:
                self.held_back = True
            else:
                self._free -= 1
                yield job
                head = next(sources[place], None)
            if head is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (head, place))

    def _rows_of_queues(self, walked: str) -> Sequence[Row]:
        rows: list[Row] = []
        for after, until in ((walked, LAST_NAME), ("", walked)):
            part = {"after": after, "until": until, "queues": WALKED - len(rows)}
            rows += fetch(self._db, _QUEUES, part) if part["queues"] else []
        if len(rows) == WALKED:
            self.walked = rows[-1][0]
        return [row for row in rows if row[1]]

    def _jobs_of(self, gate: _Gate) -> Iterator[Row]:
        """The jobs of a queue that its limits allow, in turn. None comes earlier than the one before it."""
        self._gates[gate.queue] = gate
        room = self._room(gate)
        last: Row = ()
        after = _BEFORE_ALL
        while room > 0 and len(gate.lanes) < WALKED:
            lanes = self._open_lanes(gate, after, room)
            for lane, row in in_turn(self._with_jobs(gate, lanes, room)):
                last = max(last, row)
                self._lane_of[row[2]] = (gate, lane)
                yield (*last[:2], row[2])
                room -= 1
                if not room:
                    break
            if len(lanes) < self._limit:
                break
            after = (lanes[-1].stored_turn, lanes[-1].key)

    def _room(self, gate: _Gate) -> int:
        """How many jobs of a queue may be taken."""
        room = self._limit
        if gate.limits.max_running is not None:
            room = min(room, gate.limits.max_running - self._db.execute(HELD_IN_QUEUE, (gate.queue,)).get)
        if gate.limits.rate is not None:
            tat = gate.limits.rate.cut(gate.tat, self._now)
            if tat != gate.tat:
                gate.tat = tat
                self._db.execute(_TAKEN, (gate.turn, tat, gate.queue))
            tokens = gate.limits.rate.tokens(tat, self._now)
            if tokens < room:
                self._known.opens_at(
                    gate.limits.rate.opens_at(gate.limits.rate.taken(gate.tat, tokens, self._now), self._now)
                )
            room = min(room, tokens)
        return room

    def _open_lanes(self, gate: _Gate, after: tuple[float, str], room: int) -> Sequence[_Open]:
        """The next open lanes by turn, each with the room that its own limits leave."""
        turn, key = after
        rows = fetch(self._db, _LANES, {"queue": gate.queue, "turn": turn, "key": key, "limit": self._limit})
        per_key = gate.limits.per_key
        lanes = list[_Open]()
        for key, stored_turn, tat, weight, max_running, running in rows:
            most = per_key.most(count_from(max_running))
            gate.counted |= max_running is not None
            in_line = per_key.ordered and key != ""
            if in_line:
                most = 1 if most is None else min(most, 1)
            lane = _Open(
                key=key,
                turn=_sound(stored_turn, gate.turn),
                weight=weight_from(weight),
                room=room if most is None else min(room, most - running),
                tat=time_from(tat),
                running=running,
                max_running=most,
                usual=weight == 1 and max_running is None,
                stored_turn=stored_turn,
                in_line=in_line,
            )
            if per_key.rate is not None:
                lane.tat = per_key.rate.cut(lane.tat, self._now)
                lane.room = min(lane.room, per_key.rate.tokens(lane.tat, self._now))
            lanes.append(lane)
            gate.lanes[key] = lane
        if per_key.stops:
            self._stop(gate, lanes)
        return lanes

    def _stop(self, gate: _Gate, lanes: Sequence[_Open]) -> None:
        """Have those of the lanes give nothing that stand still since a job has failed."""
        asked = {"queue": gate.queue, "keys": _as_array([lane.key for lane in lanes if lane.in_line])}
        for (key,) in fetch(self._db, _STOPPED, asked):
            lane = gate.lanes[key]
            lane.stopped, lane.room = True, 0

    def _with_jobs(
        self, gate: _Gate, lanes: Sequence[_Open], room: int
    ) -> Sequence[tuple[_Open, Iterator[Row]]]:
        """Lanes that have room, with their ready jobs: a share of each is read at once, the others when asked for."""
        open_lanes = [lane for lane in lanes if lane.room > 0]
        part = share(room, len(open_lanes)) + 1
        jobs = self._read(gate, [lane.key for lane in open_lanes], part)
        for lane in open_lanes:
            lane.barren = lane.key not in jobs
        return [
            (lane, self._in_order(gate, lane, jobs[lane.key], part)) for lane in open_lanes if not lane.barren
        ]

    def _in_order(self, gate: _Gate, lane: _Open, first: Sequence[Row], part: int) -> Iterator[Row]:
        """The jobs of a lane, of which the first few are read: then more each time."""
        read, rows = 0, first[:part]
        while True:
            yield from rows[read:]
            if len(rows) < part or part >= self._limit:
                return
            read, part = part, min(4 * part, self._limit)
            rows = self._read(gate, [lane.key], part).get(lane.key, ())[:part]

    def _read(self, gate: _Gate, keys: Sequence[str], limit: int) -> Mapping[str, Sequence[Row]]:
        """The first jobs of some lanes, of each kind so many, in order."""
        values = {"queue": gate.queue, "kinds": self._kinds, "now": self._now, "share": limit}
        jobs: dict[str, list[Row]] = {}
        for sql, some in self._by_order(gate, keys, _JOBS, _FIRST_JOBS):
            for key, *row in fetch(self._db, sql, values | {"keys": _as_array(some)}):
                jobs.setdefault(key, []).append(tuple(row))
        for rows in jobs.values():
            rows.sort()
        return jobs

    def _by_order(
        self, gate: _Gate, keys: Sequence[str], freely: str, in_line: str
    ) -> Iterator[tuple[str, Sequence[str]]]:
        """What to ask about the lanes of keys: one statement for those without order, one for those with."""
        ordered = [key for key in keys if gate.lanes[key].in_line] if gate.limits.per_key.ordered else []
        free = [key for key in keys if not gate.lanes[key].in_line] if ordered else keys
        if free:
            yield freely, free
        if ordered:
            yield in_line, ordered

    def took(self, seqs: Collection[int]) -> None:
        """Jobs were taken: write whose turn it is now, and close the lanes that have nothing more to give."""
        taken = Counter(
            (gate.queue, lane.key)
            for seq in seqs
            if seq in self._lane_of
            for gate, lane in (self._lane_of[seq],)
        )
        for gate in self._gates.values():
            if gate.lanes:
                self._write(gate, {key: taken[gate.queue, key] for key in gate.lanes})

    def _write(self, gate: _Gate, taken: Mapping[str, int]) -> None:
        served = [key for key, lane in gate.lanes.items() if taken[key] or lane.barren or lane.room <= 0]
        if not served:
            return
        empty = {
            key
            for sql, some in self._by_order(gate, served, _EMPTY, _WAITING)
            for (key,) in fetch(self._db, sql, {"queue": gate.queue, "keys": _as_array(some)})
        }
        after = [self._after(gate, gate.lanes[key], taken[key], empty=key in empty) for key in served]
        execute_values(self._db, _SERVED, [row for row in after if row is not None])
        jobs = sum(taken.values())
        if jobs:
            turn = max(
                gate.turn, min(lane.turn + taken[key] / lane.weight for key, lane in gate.lanes.items())
            )
            rate = gate.limits.rate
            tat = gate.tat if rate is None else rate.taken(gate.tat, jobs, self._now)
            self._db.execute(_TAKEN, (turn, tat, gate.queue))

    def _after(self, gate: _Gate, lane: _Open, jobs: int, *, empty: bool) -> Row | None:
        """How a lane stands from now on, of which so many jobs were taken; None: as before, or it is gone."""
        rate = gate.limits.per_key.rate
        tat = lane.tat if rate is None or not jobs else rate.taken(lane.tat, jobs, self._now)
        until = None
        if lane.stopped:
            state = STOPPED
        elif lane.in_line and lane.running + jobs:
            state = FULL
        elif empty:
            state, until = EMPTY, tat if tat is not None and tat > self._now else None
            if lane.usual and until is None:
                self._db.execute(_GONE, (gate.queue, lane.key))
                return None
        elif lane.max_running is not None and lane.running + jobs >= lane.max_running:
            state = FULL
        elif rate is not None and not rate.tokens(tat, self._now):
            state, until = RESTING, rate.opens_at(tat, self._now)
        else:
            state = OPEN
        if state == OPEN and not jobs:
            return None
        if until is not None:
            self._known.due_changed()
        return lane.turn + jobs / lane.weight, state, until, tat, gate.queue, lane.key


def _as_array(keys: Sequence[str]) -> str:
    return msgspec.json.encode(keys).decode()


def _sound(turn: float, others: float) -> float:
    """The turn of a lane, given about that of the others: one that is far behind would have all jobs for long."""
    return max(turn, others - SAVED_UP) if math.isfinite(turn) else others
