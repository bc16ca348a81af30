"""Lives of jobs that are merged with others, drawn at random, over every store: what is promised of keys holds always.

Whether a key is taken is told here from all jobs that there are, and not from a row that says who took it last.
"""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from jobpipe.job import ENDED, WAITING, Job, NewJob, Outcome, Phase
from jobpipe.merging import key_of
from jobpipe.store.base import Batch, Claimed, Receipt, Retention, Store
from tests.store.test_contract import KINDS, NOW, settlement, wish
from tests.store.test_merging import FIRST, WHOLE, debounced, throttled, unique
from tests.store.test_model import QUICK

KEYS = st.sampled_from(["k", "k", "k", "l"])
EVERY, WAIT, MAX_WAIT = 10.0, 5.0, 12.0

ACTS = ("ask", "ask", "claim", "done", "again", "cancel", "retry", "retry", "wait")

REQUESTS = st.one_of(
    st.fixed_dictionaries(
        {
            "key": KEYS,
            "on_conflict": st.sampled_from(["return", "reject", "replace"]),
            "for_": st.sampled_from([None, None, 8.0]),
            "delay": st.sampled_from([0.0, 0.0, 3.0]),
        }
    ).map(lambda asked: ("unique", asked)),
    st.fixed_dictionaries({"key": KEYS, "trailing": st.booleans()}).map(lambda asked: ("throttle", asked)),
    st.fixed_dictionaries({"key": KEYS}).map(lambda asked: ("debounce", asked)),
)


class Lives(RuleBasedStateMachine):
    """Draws what clients, nodes and people do."""

    open_store: Callable[[], tuple[Store, Callable[[], None]]]

    def __init__(self) -> None:
        super().__init__()
        self.store, self.close = self.open_store()
        self.now, self.numbers = NOW, 0
        self.held: list[Claimed] = []
        self.jobs: dict[str, NewJob] = {}
        """every job that was stored, as it was asked for"""
        self.until: dict[str, float] = {}
        """of each key, how long it is taken whatever becomes of its job"""
        self.due: dict[str, list[float]] = {}
        """of each key of a throttle, when its jobs were due"""
        self.claims: dict[str, int] = {}
        """of jobs that were retried by hand, how often they had been claimed until then"""

    def teardown(self) -> None:
        self.close()

    def call(self, verb: Callable[..., Any], *args: Any, **options: Any) -> Any:
        async def called() -> Any:
            return await verb(*args, **options)

        return trio.from_thread.run(called)

    @initialize(phase=st.sampled_from([WHOLE, FIRST]))
    def join(self, phase: tuple[Phase, ...]) -> None:
        self.phase = phase
        self.call(self.store.join, "n", self.now, self.now + 1e6, KINDS)

    # what clients do

    @rule(requests=st.lists(REQUESTS, min_size=1, max_size=4), atomic=st.booleans())
    def ask(self, requests: list[tuple[str, dict[str, Any]]], atomic: bool) -> None:
        """One after another they are as all of them at once."""
        jobs = [self.job(what, dict(asked)) for what, asked in requests]
        for job in jobs:
            before = self.there()
            (receipt,) = self.call(self.store.add_dependents, [job], atomic=atomic)
            self.check(job, receipt, before)

    @rule(requests=st.lists(REQUESTS, min_size=2, max_size=4))
    def ask_at_once(self, requests: list[tuple[str, dict[str, Any]]]) -> None:
        jobs = [self.job(what, dict(asked)) for what, asked in requests]
        receipts = self.call(self.store.add_dependents, jobs, atomic=True)
        for job, receipt in zip(jobs, receipts, strict=True):
            if receipt.verdict == "stored":
                self.note(job, self.get(job.id))

    def job(self, what: str, asked: dict[str, Any]) -> NewJob:
        self.numbers += 1
        job_id = f"{what}-{self.numbers}"
        match what:
            case "unique":
                run_at = self.now + asked.pop("delay")
                return unique(job_id, self.now, while_=self.phase, run_at=run_at, **asked)
            case "throttle":
                return throttled(job_id, self.now, **asked)
            case _:
                return debounced(job_id, self.now, wait=WAIT, max_wait=MAX_WAIT, **asked)

    def check(self, job: NewJob, receipt: Receipt, before: dict[str, Job]) -> None:
        """What became of a request, given all jobs that were there before it."""
        key = key_of(job)
        assert key is not None
        options = job.options
        having = [one for one in before.values() if key_of(self.jobs[one.id]) == key and self.has(one)]
        lasting = self.until.get(key, self.now) > self.now
        if options.unique is not None:
            assert (receipt.verdict == "stored") == (not having and not lasting)
            if having and receipt.verdict == "replaced":
                assert receipt.job is not None
                assert receipt.job.asked.payload == job.payload
            if options.unique.on_conflict == "reject":
                assert receipt.verdict in {"stored", "not_unique"}
        elif options.debounce is not None:
            assert receipt.verdict == ("replaced" if having else "stored")
            said = self.get(receipt.other or job.id)
            bound = said.asked.created_at + MAX_WAIT
            assert said.asked.payload == job.payload
            assert said.asked.run_at == min(self.now + WAIT, bound)
        elif options.throttle is not None and options.throttle.trailing:
            said = self.get(receipt.other or job.id)
            assert receipt.verdict in {"stored", "replaced"}
            assert said.asked.payload == job.payload
        if receipt.verdict == "stored":
            self.note(job, self.get(job.id))

    def note(self, job: NewJob, stored: Job) -> None:
        key = key_of(job)
        assert key is not None
        self.jobs[job.id] = job
        if job.options.unique is not None and job.options.unique.for_ is not None:
            self.until[key] = self.now + job.options.unique.for_
        if job.options.throttle is not None:
            self.due.setdefault(key, []).append(stored.asked.run_at)

    def has(self, job: Job) -> bool:
        """Whether a job has its key."""
        if job.status in ENDED:
            return False
        if self.jobs[job.id].options.unique is not None and self.phase == WHOLE:
            return True
        return job.status in WAITING and job.state.claim == self.claims.get(job.id, 0)

    # what nodes and people do

    @rule(limit=st.integers(1, 3))
    def claim(self, limit: int) -> None:
        receipts = self.call(self.store.exchange, Batch(node="n", now=self.now, claims=wish(limit)))
        self.held += receipts.claimed

    @rule(outcome=st.sampled_from([*Outcome, None]))
    def settle(self, outcome: Outcome | None) -> None:
        ends = [settlement(job, outcome, self.now) for job in self.held]
        self.call(self.store.exchange, Batch(node="n", now=self.now, settlements=ends))
        self.held = []

    @rule(outcome=st.sampled_from([Outcome.DONE, Outcome.FAIL, Outcome.RETRY]))
    def run(self, outcome: Outcome) -> None:
        """All that is ready."""
        self.claim(9)
        self.settle(outcome)

    @rule()
    def cancel_all(self) -> None:
        self.call(self.store.cancel, sorted(self.there()), self.now)

    @rule()
    def crash(self) -> None:
        """The node dies; another one takes its jobs back."""
        self.call(self.store.leave, "n")
        self.call(self.store.rescue, "other", self.now)
        self.held = []
        self.call(self.store.join, "n", self.now, self.now + 1e6, KINDS)

    @rule(seconds=st.sampled_from([0.001, 1.0, 4.0, 5.0, 9.0, 60.0]))
    def pass_time(self, seconds: float) -> None:
        self.now = round(self.now + seconds, 3)
        self.call(self.store.exchange, Batch(node="door", now=self.now))

    @rule(data=st.data(), verb=st.sampled_from(["cancel", "delete", "promote"]))
    def by_hand(self, data: st.DataObject, verb: str) -> None:
        ids = [job_id for job_id in self.there() if not (verb == "promote" and job_id.startswith("throttle"))]
        if ids:
            self.call(getattr(self.store, verb), [data.draw(st.sampled_from(sorted(ids)))], self.now)

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        """Only a unique key is in the way."""
        before = self.there()
        ids = sorted(job_id for job_id, job in before.items() if job.status in ENDED and job_id[0] == "u")
        if not ids:
            self.cancel_all()
            return
        job_id = data.draw(st.sampled_from(ids))
        key = key_of(self.jobs[job_id])
        others = [one for one in before.values() if key_of(self.jobs[one.id]) == key and self.has(one)]
        (change,) = self.call(self.store.retry, [job_id], self.now)
        assert key is not None
        lasting = self.until.get(key, self.now) > self.now
        if others:
            assert change.verdict == "not_unique"
        elif not lasting:
            assert change.verdict == "changed"
        if change.verdict == "changed":
            self.claims[job_id] = before[job_id].state.claim
            self.until.pop(key, None)
            asked = self.jobs[job_id]
            if asked.options.unique is not None and asked.options.unique.for_ is not None:
                self.until[key] = asked.created_at + asked.options.unique.for_

    @rule()
    def prune(self) -> None:
        self.call(
            self.store.prune, self.now - 20, Retention(done_age=0, failed_age=0, jobs=10_000, size=1 << 40)
        )

    @rule(data=st.data(), acts=st.lists(st.sampled_from(ACTS), min_size=6, max_size=15))
    def one_after_another(self, data: st.DataObject, acts: list[str]) -> None:
        """What happens to the jobs of one key mostly: asked for, run, cancelled, and retried in turn."""
        for act in acts:
            match act:
                case "ask":
                    self.ask(
                        [("unique", {"key": "k", "on_conflict": "return", "for_": None, "delay": 0.0})], True
                    )
                case "claim":
                    self.claim(9)
                case "done":
                    self.settle(Outcome.DONE)
                case "again":
                    self.settle(Outcome.RETRY)
                case "cancel":
                    self.cancel_all()
                case "retry":
                    self.retry(data)
                case _:
                    self.pass_time(60.0)
            self.no_key_is_that_of_two_jobs()

    # what must hold

    @invariant()
    def no_key_is_that_of_two_jobs(self) -> None:
        taken: dict[str, str] = {}
        for job_id, job in self.there().items():
            key = key_of(self.jobs[job_id])
            assert key is not None
            if self.jobs[job_id].options.unique is not None and self.has(job):
                assert taken.setdefault(key, job_id) == job_id

    @invariant()
    def a_window_has_one_job(self) -> None:
        for due in self.due.values():
            times = sorted(due)
            assert all(later - sooner >= EVERY - 1e-6 for sooner, later in itertools.pairwise(times))

    # how

    def there(self) -> dict[str, Job]:
        found = {job_id: self.call(self.store.get, job_id) for job_id in self.jobs}
        return {job_id: job for job_id, job in found.items() if job is not None}

    def get(self, job_id: str) -> Job:
        job: Job | None = self.call(self.store.get, job_id)
        assert job is not None
        return job


@pytest.mark.long
@pytest.mark.parametrize("lives", [8, pytest.param(60, marks=pytest.mark.slow)])
async def test_keys_are_kept_whatever_happens(open_store: Any, lives: int) -> None:
    """Whatever clients, nodes and people do, in whatever order."""
    thorough = settings.get_current_profile_name() == "thorough"
    chosen = settings() if thorough else settings(QUICK, max_examples=lives)

    async def opened(task_status: trio.TaskStatus[tuple[Store, trio.CancelScope]]) -> None:
        async with open_store() as store:
            with trio.CancelScope() as scope:
                task_status.started((store, scope))
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:

        def open_one() -> tuple[Store, Callable[[], None]]:
            store, scope = trio.from_thread.run(nursery.start, opened)
            return store, lambda: trio.from_thread.run_sync(scope.cancel)

        class Machine(Lives):
            open_store = staticmethod(open_one)

        # Hypothesis is not async: it runs in a thread, from which each verb is called in this loop.
        await trio.to_thread.run_sync(lambda: run_state_machine_as_test(Machine, settings=chosen))
