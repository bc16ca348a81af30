"""Whole lives of jobs with keys, drawn at random: each store against the arithmetic of limits.

A claim is to take just as many jobs as the limits of the queue and of each key allow: no more, whatever has crashed,
and no fewer, so that no slot and no token is ever lost. Of an ordered key it takes the one whose turn it is; which ones
of others, the contract tests show.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from msgspec.structs import replace

from jobpipe.job import Options, Outcome
from jobpipe.lanes import NO_LIMITS, KeySettings, Limits, PerKey, Rate
from jobpipe.obstacles import Why
from jobpipe.store.base import Add, Batch, Claimed, ClaimRequest, Retention, Store
from jobpipe.store.memory import open_memory
from jobpipe.store.sqlite import gated
from jobpipe.store.sqlite import lanes as lanes_of_sqlite
from jobpipe.store.sqlite.lanes import Lanes
from jobpipe.transitions import Stored
from tests.store.test_contract import KINDS, NOW, new_job, settlement
from tests.store.test_model import QUICK

NODES = ("n1", "n2")
KEYS = ("", "a", "b", "c")
ASKED = 12
"""The most waiting jobs for each of which is asked whether it passes the checks of a claim."""
LONG = 1000.0
"""Seconds in which every rate has all its tokens again."""

rates = st.none() | st.sampled_from(
    [Rate(1, 3.0), Rate(5, 10.0, 1), Rate(5, 10.0, 5), Rate(5, 10.0, 3), Rate(4, 60.0, 2)]
)
most = st.none() | st.integers(0, 6)
orders = st.sampled_from([{}, {"ordered": True}, {"ordered": True, "on_failure": "stop"}])
per_keys = st.builds(lambda order, **how: PerKey(**order, **how), orders, max_running=most, rate=rates)
limits = st.builds(Limits, max_running=most, rate=rates, per_key=per_keys)


@dataclass
class Entry:
    """A job in the model."""

    key: str
    number: int
    due: float = 0.0
    holder: str | None = None
    claim: Claimed | None = None
    over: bool = False

    @property
    def place(self) -> tuple[bool, int]:
        """In the line of its key."""
        return self.claim is None, self.number


class Keyed(RuleBasedStateMachine):
    """Draws what nodes and people do, all in one queue."""

    open_store: Callable[[], tuple[Store, Callable[[], None]]]

    def __init__(self) -> None:
        super().__init__()
        self.store, self.close = self.open_store()
        self.now = NOW
        self.jobs: dict[str, Entry] = {}
        self.limits = NO_LIMITS
        self.settings: dict[str, KeySettings] = {}
        self.paused = set[str]()
        self.stopped = set[str]()
        """the ids of failed jobs that stop their keys"""
        self.tat: float | None = None
        self.tats: dict[str, float] = {}
        self.starts = list[tuple[float, str]]()
        """of each claim since the limits were set: when, and of which key"""

    def teardown(self) -> None:
        self.limits, self.settings = NO_LIMITS, {}
        self.call(self.store.put_limits, "mail", NO_LIMITS)
        for key in KEYS:
            self.call(self.store.put_key, "mail", key, KeySettings())
            self.resume_key(key)
        self.pass_time(LONG)
        self.claim("n1", 1000, None)
        assert not self.ready()
        self.close()

    def call(self, verb: Callable[..., Any], *args: Any) -> Any:
        return trio.from_thread.run(verb, *args)

    def exchange(self, node: str, **parts: Any) -> Any:
        batch = Batch(node=node, now=self.now, lease_until=self.now + 1e5, **parts)
        return self.call(self.store.exchange, batch)

    @initialize(allowed=limits, first_later=st.sampled_from([0.0, 4.1]))
    def begin(self, allowed: Limits, first_later: float) -> None:
        for node in NODES:
            self.call(self.store.join, node, self.now, self.now + 1e5, KINDS)
        self.set_limits(allowed)
        for key in KEYS:
            self.add(key, 1, first_later)
            self.add(key, 5, 0.0)

    @rule(key=st.sampled_from(KEYS), number=st.integers(1, 6), later=st.sampled_from([0.0, 0.0, 0.0, 4.1]))
    def add(self, key: str, number: int, later: float) -> None:
        new = [
            new_job(
                f"j{len(self.jobs) + one}",
                queue="mail",
                created_at=self.now,
                run_at=self.now + later,
                options=Options(key=key or None),
            )
            for one in range(number)
        ]
        self.jobs |= {one.id: Entry(key, int(one.id[1:]), one.run_at) for one in new}
        self.exchange("n1", adds=[Add(new)])

    @rule(allowed=limits)
    def set_limits(self, allowed: Limits) -> None:
        """A while after the last claim, so that nothing of the rates before counts."""
        self.pass_time(LONG)
        if (self.limits.per_key.ordered, self.limits.per_key.stops) != (
            allowed.per_key.ordered,
            allowed.per_key.stops,
        ):
            self.stopped.clear()
        self.limits = allowed
        self.starts.clear()
        self.call(self.store.put_limits, "mail", allowed)

    @rule(key=st.sampled_from(KEYS), weight=st.integers(1, 3), max_running=most)
    def set_key(self, key: str, weight: int, max_running: int | None) -> None:
        self.settings[key] = KeySettings(weight=weight, max_running=max_running)
        self.call(self.store.put_key, "mail", key, self.settings[key])

    @rule(key=st.sampled_from(KEYS))
    def pause_key(self, key: str) -> None:
        self.paused.add(key)
        self.call(self.store.pause_key, "mail", key)

    @rule(key=st.sampled_from(KEYS))
    def resume_key(self, key: str) -> None:
        self.paused.discard(key)
        self.stopped = {job_id for job_id in self.stopped if self.jobs[job_id].key != key}
        self.call(self.store.resume_key, "mail", key)

    @rule(seconds=st.sampled_from([0.37, 1.21, 5.3, 31.7]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        node=st.sampled_from(NODES),
        limit=st.integers(1, 12),
        free=st.none() | st.integers(0, 4),
    )
    def claim(self, node: str, limit: int, free: int | None) -> None:
        """Takes what the limits allow, over all nodes."""
        expected = min(limit, self.allowed())
        first = {key: self.first(key) for key in KEYS}
        passing = self.passing() if free is None else None
        if free is not None and self.limits.count:
            expected = min(free, expected)
        taken = list[Claimed]()
        while True:
            left = 1 << 30 if free is None or not self.limits.count else free - len(taken)
            wanted = ClaimRequest(limit=limit - len(taken), kinds=KINDS, free=left)
            receipts = self.exchange(node, claims=[wanted])
            taken += receipts.claimed
            if len(taken) == limit or not receipts.more_ready:
                break
        assert len(taken) == expected, f"{len(taken)} jobs were taken instead of {expected}"
        if passing is not None:
            assert bool(passing) == bool(taken), (passing, taken)
            heads = {job.options.key: job.id for job in reversed(taken)}
            assert set(heads.values()) <= passing, "a check kept nobody from taking the job"
        by_key = Counter(job.options.key or "" for job in taken)
        for key, jobs in by_key.items():
            assert jobs <= self.room_of(key)
            self.starts += [(self.now, key)] * jobs
            if self.limits.per_key.rate is not None:
                self.tats[key] = self.limits.per_key.rate.taken(self.tats.get(key), jobs, self.now)
        if taken and self.limits.rate is not None:
            self.tat = self.limits.rate.taken(self.tat, len(taken), self.now)
        for job in taken:
            entry = self.jobs[job.id]
            assert not self.in_line(entry.key) or entry is first[entry.key], "not in order"
            assert not entry.over
            assert entry.holder is None
            entry.holder, entry.claim = node, job
        self.check_rates()

    def passing(self) -> set[str] | None:
        """The jobs that pass all checks of a claim: if there are any, it takes some of these; None: too many to ask."""
        self.exchange(NODES[0])  # what is due is ready
        waiting = [job_id for job_id, one in self.jobs.items() if not one.over and one.holder is None]
        if len(waiting) > ASKED:
            return None
        checks = {
            job_id: self.call(self.store.checks, self.call(self.store.get, job_id), self.now)
            for job_id in waiting
        }
        return {job_id for job_id, found in checks.items() if all(one.passed for one in found)}

    def allowed(self) -> int:
        """How many jobs may be claimed now."""
        room = 1 << 30
        if self.limits.max_running is not None:
            room = self.limits.max_running - len(self.held())
        if self.limits.rate is not None:
            room = min(room, self.limits.rate.tokens(self.tat, self.now))
        waiting = Counter(
            entry.key
            for entry in self.ready()
            if not self.in_line(entry.key) or entry is self.first(entry.key)
        )
        return max(0, min(room, sum(min(jobs, self.room_of(key)) for key, jobs in waiting.items())))

    def in_line(self, key: str) -> bool:
        """Whether jobs of a key go one after another."""
        return self.limits.per_key.ordered and key != ""

    def first(self, key: str) -> Entry | None:
        """The job of a key whose turn it is."""
        line = [one for one in self.jobs.values() if one.key == key and not one.over]
        return min(line, key=lambda one: one.place, default=None)

    def room_of(self, key: str) -> int:
        if key in self.paused or any(self.jobs[job_id].key == key for job_id in self.stopped):
            return 0
        own = self.settings.get(key, KeySettings()).max_running
        per_key = self.limits.per_key
        limit = per_key.max_running if own is None else own
        room = 1 << 30
        if self.in_line(key):
            limit = 1 if limit is None else min(limit, 1)
        if limit is not None:
            room = limit - sum(entry.key == key for entry in self.held())
        if per_key.rate is not None:
            room = min(room, per_key.rate.tokens(self.tats.get(key), self.now))
        return max(0, room)

    @rule(pick=st.randoms(use_true_random=False))
    def ask_why(self, pick: Any) -> None:
        """A waiting job says what the arithmetic says; what has the first place is what a claim would take."""
        self.exchange(NODES[0])  # what is due is ready
        waiting = [job_id for job_id, one in self.jobs.items() if not one.over and one.holder is None]
        if not waiting:
            return
        job_id = pick.choice(waiting)
        job = self.call(self.store.get, job_id)
        obstacle = self.call(self.store.obstacle, job, self.now)
        assert obstacle.reason == self.reason(self.jobs[job_id])
        checks = self.call(self.store.checks, job, self.now)
        assert next(one.obstacle for one in checks if one.obstacle is not None) == obstacle
        if obstacle.reason == "turn" and job.asked.options.key is not None:
            line = [one for one in self.ready() if one.key == obstacle.key]
            line = [one for one in line if not self.in_line(one.key) or one is self.first(one.key)]
            line.sort(key=lambda one: one.due)  # those that were due at the same time, by arrival
            assert line[obstacle.place - 1] is self.jobs[job_id]

    def reason(self, entry: Entry) -> Why:
        """The first thing that is in the way of a job."""
        held = self.held()
        own = self.settings.get(entry.key, KeySettings()).max_running
        limit, per_key = self.limits, self.limits.per_key
        most = per_key.max_running if own is None else own
        checks: Sequence[tuple[Why, bool]] = (
            ("not_due", entry.due > self.now),
            ("queue_full", limit.max_running is not None and len(held) >= limit.max_running),
            ("rate", limit.rate is not None and not limit.rate.tokens(self.tat, self.now)),
            ("key_paused", entry.key in self.paused),
            ("key_stopped", any(self.jobs[job_id].key == entry.key for job_id in self.stopped)),
            ("key_order", self.in_line(entry.key) and entry is not self.first(entry.key)),
            ("key_full", most is not None and sum(one.key == entry.key for one in held) >= most),
            (
                "key_rate",
                per_key.rate is not None and not per_key.rate.tokens(self.tats.get(entry.key), self.now),
            ),
        )
        return next((reason for reason, holds in checks if holds), "turn")

    def ready(self) -> Sequence[Entry]:
        jobs = self.jobs.values()
        return [one for one in jobs if not one.over and one.holder is None and one.due <= self.now]

    def held(self) -> Sequence[Entry]:
        return [one for one in self.jobs.values() if one.holder is not None]

    def check_rates(self) -> None:
        """In no window of its period has a rate let more through than its limit."""
        rules = [(self.limits.rate, None), *((self.limits.per_key.rate, key) for key in KEYS)]
        for rate, key in rules:
            times = [at for at, one in self.starts if key in (None, one)]
            for number, first in enumerate(times if rate is not None else ()):
                assert rate is not None
                within = [at for at in times[number:] if at < first + rate.period - 1e-4]
                assert len(within) <= rate.limit

    @rule(
        pick=st.randoms(use_true_random=False),
        jobs=st.integers(1, 3),
        outcome=st.sampled_from([*Outcome, None]),
        claims=st.booleans(),
    )
    def settle(self, pick: Any, jobs: int, outcome: Outcome | None, claims: bool) -> None:
        """Some jobs end, wait again, or go back; then others may be claimed."""
        for entry in pick.sample(self.held(), min(jobs, len(self.held()))):
            self.settle_one(entry, outcome)
        if claims:
            self.claim(NODES[0], 9, None)

    def settle_one(self, entry: Entry, outcome: Outcome | None) -> None:
        assert entry.claim is not None
        if outcome in (Outcome.SNOOZE, Outcome.INTERRUPTED):
            outcome = None
        later = {"run_at": self.now + 2.3} if outcome is Outcome.RETRY else {}
        assert entry.holder is not None
        self.exchange(entry.holder, settlements=[settlement(entry.claim, outcome, self.now, **later)])
        entry.holder = None
        if outcome is Outcome.RETRY:
            entry.due = self.now + 2.3
        elif outcome is not None:
            entry.over = True
            if outcome is Outcome.FAIL and self.limits.per_key.stops and entry.key:
                self.stopped.add(entry.claim.id)

    @rule(pick=st.randoms(use_true_random=False), verb=st.sampled_from(["retry", "delete"]))
    def see_to(self, pick: Any, verb: str) -> None:
        """Somebody sees to a job that has failed."""
        failed = sorted(self.stopped)
        if not failed:
            return
        job_id = pick.choice(failed)
        self.call(getattr(self.store, verb), [job_id], self.now)
        self.stopped.discard(job_id)
        entry = self.jobs[job_id]
        entry.over, entry.due = verb == "delete", self.now

    @rule(node=st.sampled_from(NODES))
    def crash(self, node: str) -> None:
        """A node dies; its jobs count until they are rescued, and not any longer."""
        other = NODES[1 - NODES.index(node)]
        self.call(self.store.leave, node)
        self.claim(other, 3, None)
        self.call(self.store.rescue, other, self.now)
        for entry in self.held():
            if entry.holder == node:
                entry.holder = None
        self.claim(other, 9, None)
        self.call(self.store.join, node, self.now, self.now + 1e5, KINDS)

    @rule(pick=st.randoms(use_true_random=False), verb=st.sampled_from(["cancel", "delete", "promote"]))
    def steer(self, pick: Any, verb: str) -> None:
        """Somebody has a waiting job cancelled, deleted, or due now."""
        waiting = [job_id for job_id, one in self.jobs.items() if not one.over and one.holder is None]
        if not waiting:
            return
        job_id = pick.choice(waiting)
        if verb == "delete":
            self.call(self.store.delete, [job_id], self.now)
            self.jobs[job_id].over = True
        elif verb == "cancel":
            self.call(self.store.cancel, [job_id], self.now)
            self.jobs[job_id].over = True
            self.call(self.store.retry, [job_id], self.now)
            self.jobs[job_id].over, self.jobs[job_id].due = False, self.now
        else:
            self.call(self.store.promote, [job_id], self.now)
            self.jobs[job_id].due = min(self.jobs[job_id].due, self.now)

    @rule(key=st.sampled_from(KEYS[1:]), verb=st.sampled_from(["cancel", "delete"]))
    def drop_first(self, key: str, verb: str) -> None:
        """Somebody has the waiting job dropped that is before the others of its key; then these may be claimed."""
        first = self.first(key)
        if first is not None and first.holder is None:
            self.call(getattr(self.store, verb), [f"j{first.number}"], self.now)
            first.over = True
            self.claim(NODES[0], 9, None)

    @rule()
    def prune(self) -> None:
        self.call(self.store.prune, self.now, Retention(1e9, 1e9, 1 << 40, 1 << 50))


async def lived(open_store: Any, chosen: settings) -> None:
    """Lives of a store; raises what the machine finds."""

    async def opened(task_status: trio.TaskStatus[tuple[Store, trio.CancelScope]]) -> None:
        async with open_store() as store:
            with trio.CancelScope() as scope:
                task_status.started((store, scope))
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:

        def open_one() -> tuple[Store, Callable[[], None]]:
            store, scope = trio.from_thread.run(nursery.start, opened)
            return store, lambda: trio.from_thread.run_sync(scope.cancel)

        class Machine(Keyed):
            open_store = staticmethod(open_one)

        # Hypothesis is not async: it runs in a thread, from which each verb is called in this loop.
        await trio.to_thread.run_sync(lambda: run_state_machine_as_test(Machine, settings=chosen))


@pytest.mark.long
@pytest.mark.parametrize("lives", [15, pytest.param(200, marks=pytest.mark.slow)])
async def test_limits_hold_and_nothing_is_lost(open_store: Any, lives: int) -> None:
    """Whatever nodes and people do."""
    thorough = settings.get_current_profile_name() == "thorough"
    await lived(open_store, settings() if thorough else settings(QUICK, max_examples=lives))


# What the machine must find; each breaks SQLite's store alone.
def a_slot_leaks_at_a_crash(patch: pytest.MonkeyPatch) -> None:
    """A lane that was full stays so when its jobs are rescued."""
    saved = Lanes.saved

    def forgetful(self: Lanes, changes: Sequence[tuple[Stored, Stored]]) -> None:
        saved(self, [(replace(before, held=False), after) for before, after in changes])

    patch.setattr(Lanes, "saved", forgetful)


def only_begun_jobs_count(patch: pytest.MonkeyPatch) -> None:
    """What is claimed and has not begun is not counted."""
    patch.setattr(gated, "HELD_IN_QUEUE", f"{gated.HELD_IN_QUEUE} and status = 'running'")
    patch.setattr(
        gated, "_LANES", gated._LANES.replace("jobs.held = 1", "jobs.held = 1 and jobs.status = 'running'")
    )


def a_settlement_frees_no_slot(patch: pytest.MonkeyPatch) -> None:
    """A lane that was full stays so when one of its jobs ends."""
    patch.setattr(lanes_of_sqlite, "_FREE", f"{lanes_of_sqlite._FREE} and false")


def a_retry_breaks_the_order(patch: pytest.MonkeyPatch) -> None:
    """The first job that is ready is taken, though another one waits for its next attempt."""
    patch.setattr(
        gated,
        "_FIRST_JOBS",
        gated._FIRST_JOBS.replace("order by claim", "and status = 'queued' order by claim"),
    )


def a_failure_stops_no_key(patch: pytest.MonkeyPatch) -> None:
    """The job behind one that failed is taken."""
    patch.setattr(Lanes, "_stop_failed", lambda _self, _seqs: None)


def whoever_is_behind_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Where the first job of a lane is cancelled or deleted."""
    patch.setattr(Lanes, "move_up", lambda _self, _lanes: None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    [
        a_slot_leaks_at_a_crash,
        only_begun_jobs_count,
        a_settlement_frees_no_slot,
        a_retry_breaks_the_order,
        a_failure_stops_no_key,
        whoever_is_behind_is_forgotten,
    ],
)
async def test_a_broken_store_is_found(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: Any
) -> None:
    """By the same machine."""
    broken(monkeypatch)
    many = settings(QUICK, max_examples=500, phases=[Phase.generate])
    with pytest.raises(BaseExceptionGroup) as found:
        await lived(open_memory, many)

    assert found.group_contains(AssertionError)
