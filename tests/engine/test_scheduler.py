"""The keeper of schedules: fires on time, once over all nodes, and costs nothing where there are none."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from jobpipe.clock import VirtualClock
from jobpipe.engine.follower import Follower
from jobpipe.engine.scheduler import POSTPONED, RETRY, Scheduler
from jobpipe.engine.tallies import Tallies
from jobpipe.engine.unforeseen import UNFORESEEN
from jobpipe.errors import StoreUnavailable
from jobpipe.events import Events
from jobpipe.handlers.context import Context
from jobpipe.handlers.registry import handler, handlers_of
from jobpipe.job import Scheduled, Status
from jobpipe.schedules import Spec
from jobpipe.store.base import Store
from jobpipe.store.memory import MemoryStore, open_memory
from jobpipe.store.postgres import open_postgres
from tests.engine.conftest import NOW, Rig, new_job, running, turns
from tests.store.server import new_schema, server_url, with_query

MINUTELY = Spec(cron="* * * * *", overlap="queue")
TO_FIRST = 40.0
"""Seconds from NOW to the first full minute."""


async def put(rig: Rig, name: str = "s", spec: Spec = MINUTELY, *steps: Any) -> None:
    await rig.node.control.put_schedule(name, spec, new_job("template", *steps))


async def fired(store: Store, name: str = "s") -> Sequence[str]:
    """When the jobs of a schedule were due, the oldest first."""
    return [job.id.partition("T")[2] for job in reversed(await store.fired_jobs(name, 1000))]


class Counting(MemoryStore):
    """Counts what the scheduler asks, and can be told to raise."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = self.fires = 0
        self.raises: Exception | None = None
        self.broken = ""

    async def due_schedules(self, *args: Any) -> Any:
        self.looks += 1
        if isinstance(self.raises, StoreUnavailable):
            raise self.raises
        return await super().due_schedules(*args)

    async def fire(self, firings: Any, now: float) -> Any:
        self.fires += 1
        if any(one.name == self.broken for one in firings):
            raise ZeroDivisionError(self.broken)
        return await super().fire(firings, now)


async def test_a_schedule_fires_every_minute_and_its_jobs_run(autojump_clock):
    async with running() as rig:
        await put(rig)
        await trio.sleep(TO_FIRST + 125)

        assert await fired(rig.store) == ["22:14:00Z", "22:15:00Z", "22:16:00Z"]
        assert (await rig.statuses())[Status.DONE] == 3


async def test_a_job_is_due_at_its_time(autojump_clock):
    async with running() as rig:
        await put(rig)
        await trio.sleep(TO_FIRST - 0.01)
        before = await fired(rig.store)
        await trio.sleep(0.02)

        assert (before, await fired(rig.store)) == ([], ["22:14:00Z"])


async def test_a_schedule_that_was_there_at_the_start_fires_and_what_was_missed_is_made_up_for(
    autojump_clock,
):
    async with open_memory() as store:
        await store.put_schedule("s", MINUTELY, new_job(), NOW - 600)
        async with running(store) as rig:
            await trio.sleep(1)
            first = await fired(store)
            await trio.sleep(TO_FIRST)

            assert first == ["22:13:00Z"]
            assert await fired(store) == ["22:13:00Z", "22:14:00Z"]
            assert (await rig.statuses())[Status.DONE] == 2


async def test_without_schedules_the_store_is_looked_at_once_a_lease(autojump_clock):
    store = Counting()
    async with running(store, lease=10.0) as rig:
        for number in range(20):
            await rig.enqueue(f"j{number}")
        await trio.sleep(95)

        assert (store.looks, store.fires) == (10, 0)


async def test_a_schedule_far_ahead_is_not_looked_at_more_often(autojump_clock):
    store = Counting()
    async with running(store, lease=10.0) as rig:
        await put(rig, spec=Spec(every=1e6))
        await trio.sleep(95)

        assert store.looks == 11


async def test_nothing_fires_while_it_is_paused_nor_when_it_is_deleted(autojump_clock):
    async with running() as rig:
        await put(rig)
        await rig.node.control.pause_schedule("s", "a holiday")
        await trio.sleep(600)
        paused = await fired(rig.store)
        await rig.node.control.resume_schedule("s")
        await trio.sleep(60)
        resumed = await fired(rig.store)
        await rig.node.control.delete_schedule("s")
        await trio.sleep(600)

        assert (paused, resumed) == ([], ["22:24:00Z"])
        assert await fired(rig.store) == resumed


async def test_a_clock_set_back_fires_nothing_twice(autojump_clock):
    clock = VirtualClock(NOW)
    async with running(clock=clock) as rig:
        await put(rig)
        await trio.sleep(TO_FIRST + 65)
        clock.step(-100)
        await trio.sleep(90)
        meanwhile = await fired(rig.store)
        await trio.sleep(80)

        assert meanwhile == ["22:14:00Z", "22:15:00Z"]
        assert await fired(rig.store) == ["22:14:00Z", "22:15:00Z", "22:16:00Z"]


class Quiet:
    """A ledger with nothing to do."""

    def __init__(self) -> None:
        self.tallies = Tallies()

    def look(self) -> None:
        self.looked = True

    def made(self, jobs: Any) -> None:
        pass


async def test_over_two_years_a_daily_job_in_berlin_runs_once_a_day(autojump_clock):
    """The scheduler alone: a whole node keeps house every few seconds."""
    ledger: Any = Quiet()
    spec = Spec(cron="30 2 * * *", timezone="Europe/Berlin", overlap="queue")
    async with open_memory() as store, trio.open_nursery() as nursery:
        await store.put_schedule("s", spec, new_job(), NOW)
        clock = VirtualClock(NOW)
        follower = Follower(store, ledger, Events(), clock, period=1e5)
        scheduler = Scheduler(store, ledger, follower, clock, node="n1", period=1e5)
        nursery.start_soon(scheduler.run)
        await trio.sleep(731 * 86_400)
        ids = [job.id for job in await store.fired_jobs("s", 1000)]
        nursery.cancel_scope.cancel()

    assert len({one[2:12] for one in ids}) == len(ids) == 731
    assert {one[13:] for one in ids} == {"01:30:00Z", "00:30:00Z", "01:00:00Z"}


async def test_two_nodes_of_one_store_make_one_job(autojump_clock):
    async with open_memory() as store, running(store, name="n1") as one, running(store, name="n2"):
        for name in ("a", "b"):
            await put(one, name)
        await trio.sleep(15)  # the other node hears of them with its slow look
        await trio.sleep(TO_FIRST + 600)

        for name in ("a", "b"):
            assert await fired(store, name) == [f"22:{minute}:00Z" for minute in range(14, 25)]
        assert (await one.statuses())[Status.DONE] == 22


async def test_the_other_node_fires_when_one_dies(autojump_clock):
    async with open_memory() as store, running(store, name="n1") as one, running(store, name="n2"):
        await put(one)
        await trio.sleep(TO_FIRST + 5)
        await one.kill()
        await trio.sleep(120)

        assert await fired(store) == ["22:14:00Z", "22:15:00Z", "22:16:00Z"]


async def test_replace_stops_the_job_that_runs_here(autojump_clock):
    async with running() as rig:
        await put(rig, "s", Spec(cron="* * * * *", overlap="replace"), "wait")
        await trio.sleep(TO_FIRST + 61)

        jobs = await rig.store.fired_jobs("s", 10)
        assert [job.status for job in jobs] == ["running", "cancelled"]
        await rig.node.control.delete_schedule("s")
        await rig.node.control.cancel(jobs[0].id)


async def test_a_store_that_cannot_write_is_asked_again(autojump_clock):
    store = Counting()
    async with running(store) as rig:
        await put(rig)
        await trio.sleep(TO_FIRST - 1)
        store.raises = StoreUnavailable("the disk is full")
        await trio.sleep(4.5)
        meanwhile = await fired(store)
        store.raises = None
        await trio.sleep(RETRY)

        assert (meanwhile, await fired(store)) == ([], ["22:14:00Z"])
        assert len(rig.logged("could not fire schedules")) == 4


async def test_an_unforeseen_exception_costs_its_schedule_and_no_other(autojump_clock):
    store = Counting()
    async with running(store, expected=[UNFORESEEN]) as rig:
        for number in range(5):
            await put(rig, f"s{number}")
        store.broken = "s3"
        await trio.sleep(TO_FIRST + 1)
        meanwhile = [len(await fired(store, f"s{number}")) for number in range(5)]
        store.broken = ""
        await trio.sleep(POSTPONED)

        assert meanwhile == [1, 1, 1, 0, 1]
        assert await fired(store, "s3") == ["22:14:00Z"]
        assert [line["schedule"] for line in rig.logged(UNFORESEEN)] == ["s3"]


@pytest.mark.parametrize(
    "damage",
    ["spec = x'ff'", "job = x'7b'", 'spec = cast(\'{"every":60,"limit":0}\' as blob)', "next_at = -9e99"],
)
async def test_a_damaged_row_costs_itself_alone(autojump_clock, damage):
    async with (
        open_memory() as store,
        running(store, expected=["a schedule does not fire", UNFORESEEN]) as rig,
    ):
        for name in ("a", "b"):
            await put(rig, name)
        store._db.execute(f"update schedules set {damage} where name = 'a'")
        await trio.sleep(TO_FIRST + 65)
        others = await fired(store, "b")
        await put(rig, "a", Spec(every=60))
        await trio.sleep(120)

        assert others == ["22:14:00Z", "22:15:00Z"]
        assert len(await fired(store, "a")) == 2


async def test_hundreds_that_are_due_at_once_share_transactions(autojump_clock):
    store = Counting()
    async with running(store, lease=1e6) as rig:
        for number in range(250):
            await put(rig, f"s{number}")
        await turns()
        store.looks = store.fires = 0
        await trio.sleep(TO_FIRST + 1)

        assert (store.looks, store.fires) == (3, 3)


async def test_nodes_on_postgresql_hear_of_a_schedule_and_fire_it_once():
    """Long before they look by themselves; and also when the node that stored it has died."""
    with new_schema() as schema:
        await fired_by_two(with_query(server_url(), schema=schema))


async def fired_by_two(url: str) -> None:
    async with (
        open_postgres(url, lease=60.0) as first,
        open_postgres(url, lease=60.0) as second,
        running(first, name="n1", lease=60.0) as one,
        running(second, name="n2", lease=60.0),
    ):
        await put(one, "s", Spec(every=1, overlap="queue"))
        with trio.fail_after(10):
            while len(await second.fired_jobs("s", 10)) < 2:  # noqa: ASYNC110 - nobody tells of a firing
                await trio.sleep(0.05)
        await one.kill()
        made = len(await second.fired_jobs("s", 100))
        with trio.fail_after(10):
            while len(await second.fired_jobs("s", 100)) < made + 2:  # noqa: ASYNC110 - likewise
                await trio.sleep(0.05)
        schedule = await second.schedule("s")
        await second.delete_schedule("s")
        times = [job.id for job in await second.fired_jobs("s", 100)]

    assert schedule is not None
    assert schedule.missed == 0
    assert len(set(times)) == len(times)


class Report:
    """A handler that declares when it runs, and keeps what it was told."""

    def __init__(self, **schedule: Any) -> None:
        self.firings: list[Scheduled | None] = []

        @handler("report", **schedule)
        async def report(context: Context) -> None:
            self.firings.append(context.schedule)

        (self.handler,) = handlers_of(SimpleNamespace(report=report))  # type: ignore[arg-type]


async def test_a_schedule_declared_at_a_handler_fires_and_tells_it_when(autojump_clock):
    report = Report(cron="* * * * *", overlap="queue")
    async with running(handlers=[report.handler]) as rig:
        await trio.sleep(TO_FIRST + 65)
        schedule = await rig.store.schedule("report")

    first = NOW + TO_FIRST
    assert report.firings == [Scheduled("report", first), Scheduled("report", first + 60)]
    assert Scheduled("report", first).time.isoformat() == "2023-11-14T22:14:00+00:00"
    assert schedule is not None
    assert schedule.declared


async def test_a_restart_changes_nothing_about_a_declared_schedule(autojump_clock):
    """What was missed meanwhile is made up for, as for one that was put."""
    report, clock = Report(every=600), VirtualClock(NOW)
    async with open_memory() as store:
        for _ in range(3):
            async with running(store, handlers=[report.handler], clock=clock):
                await trio.sleep(1)
            await trio.sleep(600)
        schedule = await store.schedule("report")

    assert schedule is not None
    assert (schedule.version, schedule.paused) == (1, False)
    assert len(report.firings) == 2


async def test_a_schedule_that_the_code_no_longer_declares_is_paused(autojump_clock):
    report, clock = Report(every=60), VirtualClock(NOW)
    async with open_memory() as store:
        async with running(store, handlers=[report.handler], clock=clock):
            await trio.sleep(65)
        async with running(store, clock=clock) as rig:
            await trio.sleep(200)
            warnings = [one["event"] for one in rig.log if one["log_level"] == "warning"]
        schedule = await store.schedule("report")

    assert schedule is not None
    assert (schedule.paused, schedule.reason) == (True, "no live node declares it any more")
    assert warnings == ["a schedule is paused: no live node declares it any more"]
    assert len(report.firings) == 1


async def test_a_store_that_cannot_declare_is_tried_again(autojump_clock):
    """And schedules that are there fire meanwhile, unless the store is away."""

    class Broken(MemoryStore):
        faults = 2

        async def declare(self, *args: Any) -> Any:
            self.faults -= 1
            if self.faults >= 0:
                raise ZeroDivisionError("as told") if self.faults else StoreUnavailable("as told")
            return await super().declare(*args)

    report, store = Report(every=60), Broken()
    async with running(store, handlers=[report.handler], expected=[UNFORESEEN], lease=10.0):
        await trio.sleep(125)

    assert store.faults < 0
    assert report.firings
