"""The making of jobs, and what becomes of those that come too late to run."""

import graphlib
import random
from typing import Any

import msgspec
import pytest
import trio

from jobpipe.engine.admission import in_order
from jobpipe.errors import Draining, QueueFull
from jobpipe.job import DEFAULT_KIND, DEFAULT_QUEUE, NO_OPTIONS, Backoff, NewJob, Options, Status, Unique
from tests.engine.conftest import HOUR, NOW, Rig, new_job, running


def late_job(job_id: str = "late", **changes: Any) -> NewJob:
    """A job that expires at the moment at which it could start."""
    return new_job(job_id, **({"expires_at": NOW} | changes))


async def verdicts(rig: Rig, *jobs: NewJob, atomic: bool = False) -> list[str]:
    return [receipt.verdict for receipt in await rig.node.admission.enqueue(jobs, atomic=atomic)]


# Making


async def test_a_job_of_which_nothing_is_asked_has_the_defaults(autojump_clock) -> None:
    async with running() as rig:
        new = rig.node.admission.new_job(b"1")
        other = rig.node.admission.new_job(b"1")

    assert (new.kind, new.queue, new.priority, new.max_retries) == (DEFAULT_KIND, DEFAULT_QUEUE, 0, None)
    assert new.payload == b"1"
    assert new.created_at == new.run_at
    assert new.expires_at is None
    assert new.options is NO_OPTIONS
    assert new.id != other.id


@pytest.mark.parametrize(
    ("asked", "run_at", "status"),
    [
        ({}, NOW, Status.QUEUED),
        ({"delay": 0.0}, NOW, Status.QUEUED),
        ({"delay": 1.5}, NOW + 1.5, Status.SCHEDULED),
        ({"run_at": NOW + HOUR}, NOW + HOUR, Status.SCHEDULED),
        ({"run_at": NOW - HOUR}, NOW, Status.QUEUED),
        ({"run_at": 0.0}, NOW, Status.QUEUED),
        ({"run_at": -1.0}, NOW, Status.QUEUED),
    ],
)
async def test_a_job_starts_when_it_was_asked_to_or_now(autojump_clock, asked, run_at, status) -> None:
    """What was asked is kept, so that the same request can be known again."""
    async with running() as rig:
        new = rig.node.admission.new_job(b"1", **asked)

    assert (new.run_at, new.status) == (run_at, status)
    assert (new.options.delay, new.options.run_at) == (asked.get("delay"), asked.get("run_at"))


UNIQUE = Unique("k", ("kind",), ("queued",), 5.0, "reject")


async def test_whatever_is_asked_of_a_job_is_in_it(autojump_clock) -> None:
    async with running() as rig:
        new = rig.node.admission.new_job(
            b"1",
            job_id="a",
            kind="mail",
            queue="slow",
            priority=5,
            max_retries=2,
            expires_at=NOW + HOUR,
            timeout=3.0,
            backoff=Backoff(base=9),
            on_crash="fail",
            tags=["b", "a", "b"],
            depends_on=["y", "x", "y"],
            needs="ended",
            unique=UNIQUE,
        )

    options = Options(
        timeout=3.0,
        backoff=Backoff(base=9),
        on_crash="fail",
        tags=("b", "a"),
        depends_on=("y", "x"),
        needs="ended",
        unique=UNIQUE,
    )
    assert new == NewJob(
        id="a",
        kind="mail",
        queue="slow",
        payload=b"1",
        priority=5,
        max_retries=2,
        created_at=NOW,
        run_at=NOW,
        expires_at=NOW + HOUR,
        options=options,
    )


# Jobs that come too late


async def test_a_job_that_expires_before_it_could_start_is_late_and_not_stored(autojump_clock) -> None:
    """At that moment is too late; a millisecond after it is not."""
    async with running() as rig:
        told = await verdicts(rig, late_job(), new_job("a"), new_job("b", expires_at=NOW + 0.001))
        stored = await rig.store.get("late")

    assert told == ["late", "stored", "stored"]
    assert stored is None


async def test_a_request_that_was_in_time_may_be_repeated_after_its_expiry(autojump_clock) -> None:
    first = new_job("a", expires_at=NOW + 1)
    later = msgspec.structs.replace(first, created_at=NOW + HOUR, run_at=NOW + HOUR)
    async with running() as rig:
        told = await verdicts(rig, first)
        told += await verdicts(rig, later, msgspec.structs.replace(later, priority=1))

    assert told == ["stored", "existing", "conflict"]


@pytest.mark.parametrize("spoiler", ["late", "conflict"])
async def test_all_or_none_means_none_when_one_comes_too_late(autojump_clock, spoiler) -> None:
    async with running() as rig:
        if spoiler == "conflict":
            await rig.enqueue("late", priority=1)
        told = await verdicts(rig, new_job("a"), late_job(), new_job("b"), atomic=True)
        stored = [await rig.store.get(job_id) for job_id in "ab"]

    assert told == ["refused", spoiler, "refused"]
    assert stored == [None, None]


async def test_all_or_none_means_all_when_the_one_that_comes_too_late_is_there(autojump_clock) -> None:
    async with running() as rig:
        await rig.enqueue("late", expires_at=NOW + 1)
        again = new_job("late", created_at=NOW + 2, run_at=NOW + 2, expires_at=NOW + 1)
        told = await verdicts(rig, again, new_job("a"), atomic=True)

    assert told == ["existing", "stored"]


async def test_a_late_job_takes_no_room_and_is_answered_while_others_are_refused(autojump_clock) -> None:
    async with running(max_backlog=1) as rig:
        await rig.node.control.pause("default")
        told = await verdicts(rig, late_job(), new_job("a"), late_job("b"))
        with pytest.raises(QueueFull):
            await verdicts(rig, new_job("c"))
        rig.node.drain()
        told += await verdicts(rig, late_job())
        with pytest.raises(Draining):
            await verdicts(rig, late_job(), new_job("d"))

    assert told == ["late", "stored", "late", "late"]


async def test_nothing_is_asked_of_the_store_when_there_is_nothing_to_store(autojump_clock) -> None:
    async with running() as rig:
        rig.node.drain()
        told = await verdicts(rig, atomic=True)
        await trio.lowlevel.checkpoint()

    assert told == []


def after(job_id: str, *depends_on: str) -> NewJob:
    return new_job(job_id, options=Options(depends_on=depends_on))


def test_jobs_are_put_behind_those_that_they_depend_on() -> None:
    """Others stay as they come; what is not among them does not count, and one id may stand there twice."""
    jobs = [
        after("c", "b", "elsewhere"),
        new_job("p"),
        after("b", "a"),
        new_job("a"),
        after("c", "b"),
        new_job("q"),
    ]

    assert [jobs[place].id for place in in_order(jobs)] == ["p", "a", "q", "b", "c", "c"]


def test_the_order_holds_for_any_flow() -> None:
    """Ten thousand in one chain included: it is no recursion."""
    chance = random.Random(1)
    jobs = [after(str(number), *([str(number - 1)] if number else [])) for number in range(10_000)]
    chance.shuffle(jobs)

    assert [jobs[place].id for place in in_order(jobs)] == [str(number) for number in range(10_000)]


def test_jobs_that_wait_for_themselves_have_no_order() -> None:
    """The ids of a cycle are told, whatever hangs on it."""
    jobs = [after("x", "a"), after("a", "b"), after("b", "c"), after("c", "a"), new_job("p")]
    with pytest.raises(graphlib.CycleError) as caught:
        in_order(jobs)

    assert set(caught.value.args[1]) == {"a", "b", "c"}


async def test_a_cycle_among_all_or_none_is_told_of_those_in_it(autojump_clock) -> None:
    """Nothing is stored."""
    async with running() as rig:
        jobs = [new_job("p"), after("a", "b"), after("b", "a")]
        receipts = await rig.node.admission.enqueue(jobs, atomic=True)
        found = await rig.statuses()

    assert [one.verdict for one in receipts] == ["refused", "dependency_cycle", "dependency_cycle"]
    assert set(receipts[1].dependencies) == {"a", "b"}
    assert found == {}


async def test_jobs_that_depend_on_others_and_late_ones_may_come_together(autojump_clock) -> None:
    """Each has its receipt, in the order in which they were given."""
    async with running() as rig:
        jobs = [
            after("x", "a"),
            late_job(),
            new_job("a", run_at=NOW + HOUR),
            after("y", "x"),
            after("z", "none"),
        ]
        receipts = await rig.node.admission.enqueue(jobs)
        spoiled = await rig.node.admission.enqueue([after("u", "a"), late_job()], atomic=True)
        stored = [one.job and one.job.status for one in receipts]

    assert [one.verdict for one in receipts] == ["stored", "late", "stored", "stored", "unknown_dependency"]
    assert stored == [Status.BLOCKED, None, None, Status.BLOCKED, None]
    assert [one.verdict for one in spoiled] == ["refused", "late"]
