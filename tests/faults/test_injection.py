"""An exception that nobody foresaw, at every place of the heart in turn: it costs at most the entry it belongs to.

A small scene is played over each store, with an exception at the n-th call of one function. Then the node lives,
every job has ended as it should, or at most one failed in words; new jobs run, and the log has the traceback.
"""

import functools
import importlib
import inspect
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
import trio
from msgspec.structs import replace

from jobpipe.engine.unforeseen import UNFORESEEN
from jobpipe.job import ENDED, Backoff, Debounce, Job, NewJob, OnFailure, Options, Status, Unique
from jobpipe.schedules import Spec
from jobpipe.store.base import Filter, NewGroup, Store
from tests.engine.conftest import Rig, Step, new_job, running
from tests.store.conftest import OPENERS

HEART = {
    "engine": (
        "backlog",
        "batching",
        "channel",
        "committer",
        "control",
        "enqueuing",
        "ends",
        "executor",
        "feed",
        "follower",
        "gathering",
        "held",
        "intake",
        "lease",
        "ledger",
        "lingering",
        "listener",
        "looks",
        "maintenance",
        "notebook",
        "notes",
        "operations",
        "outbox",
        "outcomes",
        "prefetch",
        "ring",
        "scheduler",
        "scope",
        "served",
        "splitting",
        "stops",
        "tallies",
        "worker",
    ),
    "verbs": (
        "accounts",
        "audit",
        "blocked",
        "bringing",
        "children",
        "declarations",
        "dependencies",
        "dialect",
        "difference",
        "errors",
        "facade",
        "followers",
        "groups",
        "jobs",
        "joining",
        "keeping",
        "lanes",
        "merging",
        "nodes",
        "notes",
        "obstacles",
        "operations",
        "order",
        "queues",
        "retention",
        "sidelining",
        "schedules",
        "summaries",
        "transaction",
    ),
    "sqlite": (
        "adding",
        "claiming",
        "counts",
        "gated",
        "known",
        "lanes",
        "lists",
        "nodes",
        "reader",
        "rows",
        "settling",
        "tables",
        "values",
        "verbs",
        "writer",
    ),
    "postgres": (
        "adding",
        "arrays",
        "counts",
        "exchange",
        "lanes",
        "locks",
        "looks",
        "nodes",
        "notifications",
        "reader",
        "session",
        "settling",
        "tables",
        "writer",
    ),
}
"""The rooms in which a fault may cost one entry at the most; every function of theirs is a place to strike at."""
UNGUARDED = ("committer.Committer._hand_out",)
"""What is guarded step by step inside: the batch is written then, and cannot be taken back."""
HUSHED = ("outcomes._clean", "outcomes._types", "outcomes._full_name", "outcomes._raised_in")
"""Where an exception counts as one of the handler's error, which says then that its text cannot be shown.

Or it has no fingerprint then.
"""
CHOSEN = {
    "sqlite": [
        "tables.Tables.lock_claims",
        "settling.Settling._end",
        "claiming.claimed_from",
        "adding.new_row",
        "tables.Tables.save",
    ],
    "postgres": [
        "tables.Tables.lock_claims",
        "exchange.Exchange.judge",
        "exchange.claimed_from",
        "settling.integers",
        "adding.texts",
        "reader.stored_from",
    ],
}
HEARTBEAT = ("_renew", "_rescue_if_possible", "rescue", "_prune", "prune", "_too_much", "_oldest", "_age")
"""What comes by itself after a few seconds."""
ROOMS = {"memory": "sqlite", "sqlite": "sqlite", "postgres": "postgres"}


class InjectedError(RuntimeError):
    """What nobody foresees."""

    told = False
    """whether somebody who asked was told of it"""


class Injection:
    """Raises at the n-th call of a function, once."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0
        self.error: InjectedError | None = None

    def strike(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            self.error = InjectedError(f"at call {self.at}")
            raise self.error

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def struck_async(*args: Any, **kwargs: Any) -> Any:
                self.strike()
                return await function(*args, **kwargs)

            return struck_async

        @functools.wraps(function)
        def struck(*args: Any, **kwargs: Any) -> Any:
            self.strike()
            return function(*args, **kwargs)

        return struck


def inject(patch: pytest.MonkeyPatch, place: str, at: int) -> Injection:
    """Strike at a function or method, given with its module."""
    injection = Injection(at)
    names = place.split(".")
    for length in range(len(names) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(names[:length]))
        except ImportError:
            continue
        for name in names[length:-1]:
            owner = getattr(owner, name)
        patch.setattr(owner, names[-1], injection.around(getattr(owner, names[-1])))
        return injection
    raise AssertionError(place)


QUICK = Options(backoff=Backoff(base=0, jitter="none"))


async def again(act: Callable[[], Any]) -> Any:
    """Ask once more where the first time met the exception, as a client does after a 500."""
    try:
        return await act()
    except InjectedError as error:
        error.told = True
        return await act()


async def until_ended(rig: Rig, *ids: str) -> dict[str, Job]:
    """The jobs, once all of them have ended; asked again and again, since an event may be what was lost."""
    with trio.fail_after(30):
        while True:
            jobs = {job_id: await again(functools.partial(rig.job, job_id)) for job_id in ids}
            if all(job.status in ENDED for job in jobs.values()):
                return jobs
            await trio.sleep(0.02)


async def store_job(rig: Rig, job: NewJob) -> None:
    """Enqueue; the same request twice makes one job."""
    (receipt,) = await again(lambda: rig.add(job))
    assert receipt.verdict in ("stored", "existing")


async def play(rig: Rig) -> dict[str, Job]:
    """Jobs of every kind: that are done, retried, failed, put off, cancelled while they wait and while they run.

    And some that are merged with others, and the job of a schedule that fires once.
    """
    now, name = rig.node.clock.now(), rig.node.name

    def job(what: str, *steps: Step, later: float = 0.0) -> NewJob:
        times = {"created_at": now, "run_at": now + later}
        return new_job(f"{name}:{what}", *steps, options=QUICK, **times)

    made = [
        *(job(f"done {number}") for number in range(4)),
        job("says something", "say"),
        job("enqueues", "enqueue"),
        job("bears", "bear"),
        job("retried", "error", "done"),
        job("failed", "fail"),
        job("snoozed", ("snooze", 0.01), "done"),
        job("scheduled", later=0.05),
        job("waits", "wait"),
        job("held back", later=3600),
    ]
    behind = [
        *(depending(job(f"after {what}"), f"{name}:{what}", "ended") for what in ("done 0", "scheduled")),
        depending(job("in vain"), f"{name}:held back", "done"),
    ]
    for one in made:
        await store_job(rig, one)
    await again(lambda: rig.node.backlog.enqueue_dependents(behind, atomic=True))
    groups = [
        in_group(f"{name}.g", "go_on", job("grouped 0"), job("grouped 1", "retry", "done"), job("then")),
        in_group(
            f"{name}.h", "cancel", job("held back too", later=3600), job("failed too", "fail"), job("at last")
        ),
    ]
    for group in groups:
        await again(functools.partial(rig.node.admission.enqueue_group, group))
    behind += [one for group in groups for one in group.every]
    behind += await opened(rig, job("opened"), with_options(job("joins"), group=f"{name}.o"))
    alone = with_options(job("alone"), unique=Unique(name, ("kind",), ("queued", "running"), None, "return"))
    quiet = [
        with_options(job(what, later=0.05), debounce=Debounce(name, 0.05, 0.5)) for what in ("quiet", "same")
    ]
    await again(lambda: rig.node.backlog.enqueue_dependents([alone, *quiet], atomic=False))
    with trio.fail_after(30):
        while not rig.actor.running(f"{name}:waits"):  # noqa: ASYNC110 - `begun` counts the others too
            await trio.sleep(0.01)
    born = f"{name}:bears-born"
    with trio.fail_after(30):
        while await again(lambda: rig.store.get(born)) is None:  # noqa: ASYNC110 - nobody tells of a new job
            await trio.sleep(0.01)
    once = Spec(every=1e6, starts_at=rig.node.clock.now() + 0.05, overlap="replace")
    await again(lambda: rig.node.control.put_schedule(f"{name}.s", once, new_job("template", options=QUICK)))
    for what in ("waits", "held back", "bears"):
        await again(functools.partial(rig.node.control.cancel, f"{name}:{what}"))
    with trio.fail_after(30):
        while not (fired := await again(lambda: rig.store.fired_jobs(f"{name}.s", 2))):  # noqa: ASYNC110 - nobody tells of a firing
            await trio.sleep(0.01)
    jobs = await until_ended(rig, born, *(one.id for one in (*made, *behind, alone, quiet[0], *fired)))
    enqueued = [one.id + "-enqueued" for one in jobs.values() if one.id.endswith(":enqueues")]
    return jobs | (
        await until_ended(rig, *enqueued) if jobs[f"{name}:enqueues"].status is Status.DONE else {}
    )


async def opened(rig: Rig, then: NewJob, joins: NewJob) -> Sequence[NewJob]:
    """A group to which a job is added, and that is closed; returns its jobs."""
    group = replace(in_group(f"{rig.node.name}.o", "go_on", then), open_for=3600.0)
    await again(lambda: rig.node.admission.enqueue_group(group))
    await again(lambda: rig.node.admission.enqueue([joins]))
    await again(lambda: rig.node.control.close_group(group.id))
    return [then, joins]


def depending(job: NewJob, job_id: str, needs: Literal["done", "ended"]) -> NewJob:
    return with_options(job, depends_on=(job_id,), needs=needs)


def with_options(job: NewJob, **options: Any) -> NewJob:
    return replace(job, options=replace(job.options, **options))


def in_group(name: str, on_failure: OnFailure, *jobs: NewJob) -> NewGroup:
    """A group of all but the last of the jobs, which waits for them."""
    *members, then = jobs
    return NewGroup(
        id=name,
        on_failure=on_failure,
        jobs=[replace(one, options=replace(one.options, group=name)) for one in members],
        then=replace(then, options=replace(then.options, callback_of=name)),
    )


ENDS = {
    "failed": Status.FAILED,
    "failed too": Status.FAILED,
    "held back too": Status.CANCELLED,
    "waits": Status.CANCELLED,
    "held back": Status.CANCELLED,
    "in vain": Status.CANCELLED,
    "bears": Status.CANCELLED,
    "bears-born": Status.CANCELLED,
}


def wrong_ends(jobs: dict[str, Job]) -> list[str]:
    """What did not end as it should."""
    return [
        f"{one.id}: {one.status} {one.state.error}"
        for one in jobs.values()
        if one.status != ENDS.get(one.id.partition(":")[2], Status.DONE)
    ]


@asynccontextmanager
async def scene(name: str, store: Store) -> AsyncIterator[Rig]:
    async with running(
        store,
        expected=(
            UNFORESEEN,
            "the store cannot write",
            "the end of a job",
            "a job that waited for others",
            "jobs that waited for others",
            "a request failed",
        ),
        patience=30,
        name=name,
    ) as rig:
        yield rig


async def strike(store: Store, place: str, at: int, name: str) -> bool:
    """Play the scene with an exception at a place; whether the place was reached so often."""
    struck = await struck_before(store)
    async with scene(name, store) as rig:
        with pytest.MonkeyPatch.context() as patch:
            injection = inject(patch, place, at)
            jobs = await play(rig)
            if injection.error is None and place.endswith(HEARTBEAT):
                await trio.sleep(12 if store.name == "memory:" else 0)
        await rig.enqueue(f"{name}:after")
        jobs |= await until_ended(rig, f"{name}:after")

    wrong = wrong_ends(jobs)
    assert len(wrong) <= (1 if injection.error else 0), (place, at, wrong)
    assert all("at call" in one for one in wrong), (place, at, wrong)
    if injection.error is not None and not place.endswith(HUSHED):
        logged = any(line.get("exc_info") is injection.error for line in rig.log)
        errors = [str(attempt.error) for job in jobs.values() for attempt in job.attempts]
        in_job = any("at call" in error or InjectedError.__name__ in error for error in errors)
        in_job |= await struck_before(store) > struck  # one that an earlier scene has left
        way = "".join(traceback.format_exception(injection.error))
        assert logged or injection.error.told or in_job, f"nobody was told of {place}, {at}:\n{way}"
    return injection.error is not None


async def struck_before(store: Store) -> int:
    """How many jobs have failed by an exception of this test."""
    return len((await store.jobs(Filter(text="at call"), 1000, None)).jobs)


def places(store: str) -> list[str]:
    """Every function and method of the heart, with one store."""
    rooms = [f"jobpipe.engine.{room}" for room in HEART["engine"]]
    rooms += [f"jobpipe.store.verbs.{room}" for room in HEART["verbs"]]
    rooms += [f"jobpipe.store.{ROOMS[store]}.{room}" for room in HEART[ROOMS[store]]]
    return [place for room in rooms for place in defined(room) if not place.endswith(UNGUARDED)]


def defined(module: str) -> Iterator[str]:
    """The functions that a module defines, and those of its classes."""
    for name, value in vars(importlib.import_module(module)).items():
        if getattr(value, "__module__", None) != module:
            continue
        if inspect.isfunction(value):
            yield f"{module}.{name}"
        elif inspect.isclass(value) and not getattr(value, "_is_protocol", False):
            methods = [each for each, what in vars(value).items() if inspect.isfunction(what)]
            yield from (f"{module}.{name}.{method}" for method in methods if not method.startswith("__"))


async def test_no_exception_at_any_place_ends_a_node(tmp_path, autojump_clock) -> None:
    """Over the memory store, at the first call of every sixteenth function; `just test-faults` has all of them."""
    chosen = places("memory")[::16]
    async with OPENERS["memory"](tmp_path) as store:
        reached = [await strike(store, place, 1, f"n{number}") for number, place in enumerate(chosen)]

    assert sum(reached) > len(reached) / 3


@pytest.mark.faults
@pytest.mark.parametrize("at", [1, 2, 3, 5, 8])
async def test_no_exception_at_any_call_over_the_memory_store_ends_a_node(
    at, tmp_path, autojump_clock
) -> None:
    """Every function, at more of its calls, which some are not called often enough for."""
    async with OPENERS["memory"](tmp_path) as store:
        reached = [
            await strike(store, place, at, f"n{number}") for number, place in enumerate(places("memory"))
        ]

    assert sum(reached) > len(reached) / 4


@pytest.mark.parametrize("kind", [pytest.param("postgres", marks=pytest.mark.slow), "sqlite"])
async def test_no_exception_at_the_places_of_a_store_ends_a_node(kind, tmp_path) -> None:
    """At the places that matter most: where rows are written and read."""
    async with OPENERS[kind](tmp_path) as store:
        for number, place in enumerate(CHOSEN[kind]):
            assert await strike(store, f"jobpipe.store.{kind}.{place}", 1, f"n{number}")


@pytest.mark.faults
@pytest.mark.parametrize("at", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
async def test_no_exception_at_any_call_ends_a_node(kind, at, tmp_path) -> None:
    """Every function, at more of its calls."""
    async with OPENERS[kind](tmp_path) as store:
        reached = [await strike(store, place, at, f"n{number}") for number, place in enumerate(places(kind))]

    assert sum(reached) > len(reached) / 4
