"""Schedules over every store: what is put is there, and each firing is done once."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import trio

from jobpipe.job import Job, Status
from jobpipe.schedules import Firing, Schedule, Spec, decided
from jobpipe.store.base import Due, Fired, SchedulePut, Store
from jobpipe.store.verbs.transaction import Transaction
from tests.store.test_contract import NOW, Node, add, get, new_job

pytestmark = pytest.mark.long

MINUTELY = Spec(cron="* * * * *", overlap="queue")
FIRST = 1_700_000_040.0
"""The first full minute after NOW."""
A, NONE = frozenset({"a"}), frozenset[str]()
FIRST_ID = "a@2023-11-14T22:14:00Z"
SECOND_ID = "a@2023-11-14T22:15:00Z"


async def put(
    store: Store, name: str = "a", spec: Spec = MINUTELY, now: float = NOW, **job: Any
) -> SchedulePut:
    return await store.put_schedule(name, spec, new_job("template", **job), now)


async def one(store: Store, name: str = "a") -> Schedule:
    schedule = await store.schedule(name)
    assert schedule is not None
    return schedule


async def due(store: Store, now: float) -> Sequence[Firing]:
    return [decided(schedule, now) for schedule in (await store.due_schedules(now)).schedules]


async def fire(store: Store, now: float) -> Fired:
    """Fire all that is due."""
    return await store.fire(await due(store, now), now)


async def test_a_schedule_that_is_put_is_there(store: Store) -> None:
    spec = Spec(
        cron="30 2 * * *",
        timezone="Europe/Berlin",
        starts_at=NOW + 0.5,
        ends_at=NOW + 1e6,
        overlap="replace",
        catch_up="none",
        limit=7,
        jitter=1.5,
    )
    made = await put(store, "a", spec, kind="mail", payload=b'{"n": 1}', queue="q", priority=3)

    schedule = await one(store)
    assert (made.verdict, made.schedule) == ("created", schedule)
    assert (schedule.name, schedule.version, schedule.spec, schedule.created_at) == ("a", 1, spec, NOW)
    assert (schedule.paused, schedule.reason, schedule.missed, schedule.last_at) == (False, None, 0, None)
    assert schedule.next_at == 1_700_011_800.0
    assert schedule.job == new_job(
        "", kind="mail", payload=b'{"n": 1}', queue="q", priority=3, created_at=0.0, run_at=0.0
    )
    assert await store.schedule("b") is None


async def test_the_same_content_changes_nothing(store: Store) -> None:
    first = await put(store)
    await fire(store, FIRST)
    before = await one(store)

    again = await put(store, now=NOW + 7200)

    assert (first.verdict, again.verdict) == ("created", "same")
    assert again.schedule == await one(store) == before


async def test_another_content_is_a_new_version_that_fires_from_now_on(store: Store) -> None:
    await put(store)
    await fire(store, FIRST)

    changed = await put(store, spec=Spec(every=600), now=NOW + 100, payload=b"2")

    schedule = changed.schedule
    assert (changed.verdict, schedule.version, schedule.spec.every) == ("changed", 2, 600)
    assert (schedule.created_at, schedule.last_at) == (NOW, FIRST)
    assert schedule.next_at == NOW + 600
    assert schedule.job is not None
    assert schedule.job.payload == b"2"


async def test_schedules_are_listed_by_name_in_pages(store: Store) -> None:
    for name in ("c", "a", "B", "b-1", "b"):
        await put(store, name)

    assert [each.name for each in await store.schedules()] == ["B", "a", "b", "b-1", "c"]
    assert [each.name for each in await store.schedules(2)] == ["B", "a"]
    assert [each.name for each in await store.schedules(2, "a")] == ["b", "b-1"]
    assert await store.schedules(2, "c") == []


async def test_what_is_due_comes_in_order_with_the_time_of_the_next(store: Store) -> None:
    assert await store.due_schedules(NOW) == Due([], None)
    await put(store, "later", Spec(every=3600))
    await put(store, "b", Spec(every=60))
    await put(store, "a", Spec(every=60))
    await put(store, "first", Spec(every=30))
    await put(store, "paused", Spec(every=10))
    await store.pause_schedule("paused", None)

    found = await store.due_schedules(NOW + 60)
    page = await store.due_schedules(NOW + 60, 2)
    rest = await store.due_schedules(NOW + 60, 2, (NOW + 60, "a"))

    assert [each.name for each in found.schedules] == ["first", "a", "b"]
    assert [each.name for each in page.schedules] == ["first", "a"]
    assert [each.name for each in rest.schedules] == ["b"]
    assert found.next_at == page.next_at == NOW + 3600
    assert await store.due_schedules(NOW) == Due([], NOW + 30)


async def test_a_firing_makes_its_job_and_moves_on(store: Store) -> None:
    await put(store, priority=5, payload=b"7")

    fired = await fire(store, FIRST + 1)

    job = await get(store, FIRST_ID)
    schedule = await one(store)
    assert fired == Fired(fired=A, stored=[FIRST_ID])
    assert (job.status, job.asked.priority, job.asked.payload) == (Status.QUEUED, 5, b"7")
    assert (job.asked.created_at, job.asked.run_at) == (FIRST + 1, FIRST + 1)
    assert (schedule.next_at, schedule.last_at, schedule.missed) == (FIRST + 60, FIRST, 0)
    assert [(each.id, each.status) for each in await store.fired_jobs("a", 10)] == [(FIRST_ID, "queued")]


async def test_what_was_decided_twice_is_done_once(store: Store) -> None:
    """Two nodes look at the same time, or one whose answer was lost tries again."""
    await put(store)
    firings = await due(store, FIRST)

    first, second = [await store.fire(firings, FIRST) for _ in range(2)]

    assert (first.fired, second.fired) == (A, NONE)
    assert (first.stored, second.stored) == ([FIRST_ID], ())


async def test_many_that_fire_at_the_same_time_make_one_job_each(store: Store) -> None:
    for number in range(20):
        await put(store, f"s{number}")
    firings = await due(store, FIRST)
    results = list[Fired]()

    async def act() -> None:
        results.append(await store.fire(firings, FIRST))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(act)

    stored = [job_id for fired in results for job_id in fired.stored]
    assert sorted(stored) == sorted(job.id for firing in firings for job in firing.jobs)
    assert [len(await store.fired_jobs(f"s{number}", 10)) for number in range(20)] == [1] * 20


@pytest.mark.parametrize("change", ["edit", "pause", "delete"])
async def test_nothing_fires_from_what_was_changed_meanwhile(store: Store, change: str) -> None:
    await put(store)
    firings = await due(store, FIRST)
    match change:
        case "edit":
            await put(store, payload=b"2")
        case "pause":
            await store.pause_schedule("a", None)
        case _:
            await store.delete_schedule("a")

    fired = await store.fire(firings, FIRST)

    assert (fired.fired, fired.stored) == (NONE, ())
    assert fired.locked == (A if change == "delete" else NONE)
    assert await store.get(FIRST_ID) is None


async def test_a_job_whose_id_is_there_is_not_made_again(store: Store) -> None:
    await put(store)
    await add(store, new_job(FIRST_ID))
    await store.cancel([FIRST_ID], NOW)

    fired = await fire(store, FIRST)

    assert (fired.fired, fired.stored) == (A, [])
    assert (await get(store, FIRST_ID)).status is Status.CANCELLED


async def test_jobs_of_firings_are_counted_tagged_and_run_like_others(store: Store) -> None:
    options = msgspec.structs.replace(new_job().options, tags=("nightly",))
    await put(store, queue="reports", options=options)
    await put(store, "b", Spec(every=60, jitter=3000, overlap="queue"), queue="reports")

    await fire(store, NOW + 60)
    counts = await store.queue("reports")
    node = Node(store)
    await node.join(lease_until=NOW + 1e6)
    claimed = await node.take(NOW + 61)

    assert counts is not None
    assert counts.counts == {Status.QUEUED: 1, Status.SCHEDULED: 1}
    assert (claimed.id, claimed.options.tags) == (SECOND_ID.replace("15", "14"), ("nightly",))


async def previous_job(store: Store, overlap: Any, *, catch_up: Any = "one") -> Job:
    """A schedule with such an overlap, whose first job waits."""
    await put(store, spec=Spec(cron="* * * * *", overlap=overlap, catch_up=catch_up))
    await fire(store, FIRST)
    return await get(store, FIRST_ID)


async def test_skip_makes_no_job_while_the_previous_one_has_not_ended(store: Store) -> None:
    await previous_job(store, "skip")

    fired = await fire(store, FIRST + 60)

    schedule = await one(store)
    assert (fired.fired, fired.stored) == (A, ())
    assert (schedule.missed, schedule.last_at, schedule.next_at) == (1, FIRST, FIRST + 120)
    assert await store.get(SECOND_ID) is None


async def test_skip_goes_by_the_last_job_that_was_made(store: Store) -> None:
    """Not by the last firing, which may have been skipped: that job still runs."""
    await previous_job(store, "skip")
    await fire(store, FIRST + 60)

    await fire(store, FIRST + 120)

    assert (await one(store)).missed == 2
    await store.cancel([FIRST_ID], FIRST + 121)
    assert len((await fire(store, FIRST + 180)).stored) == 1


async def test_queue_makes_the_next_job_nevertheless(store: Store) -> None:
    await previous_job(store, "queue")

    fired = await fire(store, FIRST + 60)

    assert fired.stored == [SECOND_ID]
    assert (await get(store, FIRST_ID)).status is Status.QUEUED


async def test_replace_cancels_the_previous_job(store: Store) -> None:
    await previous_job(store, "replace")

    fired = await fire(store, FIRST + 60)

    assert fired.stored == [SECOND_ID]
    assert [(each.id, each.verdict) for each in fired.cancelled] == [(FIRST_ID, "changed")]
    assert (await get(store, FIRST_ID)).status is Status.CANCELLED


async def test_replace_asks_a_running_job_to_stop(store: Store) -> None:
    await previous_job(store, "replace")
    node = Node(store)
    await node.join(lease_until=NOW + 1e6)
    job = await node.take(FIRST)

    await fire(store, FIRST + 60)

    assert (await get(store, FIRST_ID)).status is Status.CANCELLING
    assert job.id == FIRST_ID


@pytest.mark.parametrize("overlap", ["skip", "replace"])
async def test_a_previous_job_that_has_ended_or_is_gone_is_in_nobodys_way(store: Store, overlap: str) -> None:
    await previous_job(store, overlap)
    await store.cancel([FIRST_ID], FIRST)
    second = await fire(store, FIRST + 60)
    await store.cancel([SECOND_ID], FIRST + 61)
    await store.delete([SECOND_ID], NOW)
    third = await fire(store, FIRST + 120)

    assert (second.stored, second.cancelled) == ([SECOND_ID], ())
    assert (len(third.stored), third.cancelled) == (1, ())
    assert (await one(store)).missed == 0


async def test_missed_firings_are_made_up_for_and_counted(store: Store) -> None:
    await put(store, spec=Spec(cron="* * * * *", overlap="queue", catch_up="all", limit=3))

    fired = await fire(store, FIRST + 600)

    assert len(fired.stored) == 3
    assert (await one(store)).missed == 8
    assert [each.id[-9:] for each in await store.fired_jobs("a", 2)] == ["22:24:00Z", "22:23:00Z"]


async def test_a_paused_schedule_does_not_fire_and_keeps_its_reason(store: Store) -> None:
    await put(store)
    paused = await store.pause_schedule("a", "the printer is broken")
    again = await put(store, payload=b"9")

    assert paused is not None
    assert (paused.paused, paused.reason) == (True, "the printer is broken")
    assert (again.schedule.paused, again.schedule.reason) == (True, "the printer is broken")
    assert await due(store, FIRST + 600) == []
    assert await store.pause_schedule("b", None) is None


async def test_a_resumed_schedule_fires_from_then_on(store: Store) -> None:
    """What it would have fired meanwhile was not missed."""
    await put(store)
    await store.pause_schedule("a", "why not")
    resumed = await store.resume_schedule("a", FIRST + 590)
    again = await store.resume_schedule("a", FIRST + 9999)

    assert resumed is not None
    assert (resumed.paused, resumed.reason, resumed.next_at, resumed.missed) == (False, None, FIRST + 600, 0)
    assert again == resumed
    assert await store.resume_schedule("b", NOW) is None


async def test_a_deleted_schedule_is_gone_and_its_jobs_stay(store: Store) -> None:
    await put(store)
    await fire(store, FIRST)

    assert [await store.delete_schedule("a") for _ in range(2)] == ["deleted", "missing"]
    assert await store.schedule("a") is None
    assert (await get(store, FIRST_ID)).status is Status.QUEUED
    assert (await put(store)).schedule.version == 1


async def test_a_schedule_that_is_over_fires_no_more(store: Store) -> None:
    await put(store, spec=Spec(cron="* * * * *", ends_at=FIRST + 60, overlap="queue"))
    await fire(store, FIRST)

    assert (await one(store)).next_at is None
    assert await store.due_schedules(FIRST + 600) == Due([], None)


async def test_jobs_of_other_schedules_and_of_people_are_not_shown(store: Store) -> None:
    for name in ("a", "a-b", "aa", "A"):
        await put(store, name)
    await fire(store, FIRST)

    assert [each.id for each in await store.fired_jobs("a", 10)] == [FIRST_ID]


async def test_hundreds_that_are_due_fire_in_pages(store: Store) -> None:
    for number in range(120):
        await put(store, f"s{number:03}")
    page = await store.due_schedules(FIRST)
    rest = await store.due_schedules(FIRST, 100, (FIRST, page.schedules[-1].name))

    for found in (page, rest):
        await store.fire([decided(each, FIRST) for each in found.schedules], FIRST)

    assert (len(page.schedules), len(rest.schedules)) == (100, 20)
    queue = await store.queue("default")
    assert queue is not None
    assert queue.counts == {Status.QUEUED: 120}


@pytest.mark.parametrize("column", ["spec", "job"])
async def test_a_damaged_row_costs_itself_alone(store: Store, column: str) -> None:
    await put(store)
    await put(store, "b")
    await write(store, f"update schedules set {column} = :bytes where name = 'a'", {"bytes": b"\xff{"})

    found = {each.name: each.error for each in (await store.due_schedules(FIRST)).schedules}
    listed = {each.name: each.error for each in await store.schedules()}
    resumed = await store.resume_schedule("a", NOW)
    again = await put(store)

    assert found == listed
    assert found["b"] is None
    assert found["a"] is not None
    assert "cannot be read" in found["a"].message
    assert resumed is not None
    assert (again.verdict, again.schedule.error, again.schedule.version) == ("changed", None, 2)


async def write(store: Any, sql: str, values: Any) -> None:
    async def verb(tx: Transaction) -> None:
        tx.run(sql, values)

    await store._carry_out(verb)
