"""Limits and keys as a node keeps them: what it claims, and when it looks again. In virtual time."""

from collections import Counter

import pytest
import trio
from msgspec.structs import replace

from jobpipe.job import Options
from jobpipe.lanes import NO_LIMITS, KeySettings, Limits, PerKey, Rate
from jobpipe.store.base import NOTHING_SET
from tests.engine.conftest import FaultyStore, Rig, new_job, running

LONG = ("sleep", 1000.0)


class Durable(FaultyStore):
    """Jobs go back at the end."""

    durable = True


@pytest.fixture(params=["volatile", "durable"])
def store(request: pytest.FixtureRequest) -> FaultyStore:
    return Durable() if request.param == "durable" else FaultyStore()


async def add(rig: Rig, queue: str, number: int, *steps, key: str | None = None) -> None:
    now = rig.node.clock.now()
    names = [f"{queue}-{key or ''}{n}" for n in range(number)]
    options = Options(key=key)
    await rig.add(
        *(new_job(one, *steps, queue=queue, options=options, created_at=now, run_at=now) for one in names)
    )


async def limit(rig: Rig, limits: Limits, queue: str = "mail") -> None:
    await rig.node.control.put_queue(queue, NOTHING_SET, limits)


def running_of(rig: Rig) -> Counter[str]:
    """How many jobs of each queue and key run."""
    return Counter(attempt.job.id.rstrip("0123456789") for attempt in rig.node.held.running)


def begun(rig: Rig, name: str) -> list[float]:
    """When jobs began whose ids begin so."""
    return [run.began for run in rig.actor.runs if run.id.startswith(name)]


async def test_a_slot_that_frees_is_taken_at_once(autojump_clock, store: FaultyStore) -> None:
    """Though nothing else happens."""
    async with running(store, workers=4) as rig:
        await limit(rig, Limits(max_running=2))
        start = trio.current_time()
        await add(rig, "mail", 6, ("sleep", 10.0))
        await rig.ended("mail-5")

        assert trio.current_time() - start == pytest.approx(30, abs=0.1)
        assert Counter(round(at - start) for at in begun(rig, "mail")) == {0: 2, 10: 2, 20: 2}


async def test_a_full_key_keeps_no_other_waiting(autojump_clock, store: FaultyStore) -> None:
    async with running(store, workers=4, grace=0) as rig:
        await limit(rig, Limits(per_key=PerKey(max_running=1)))
        await add(rig, "mail", 50, LONG, key="a")
        await add(rig, "mail", 5, LONG, key="b")
        await add(rig, "mail", 5, LONG)
        await trio.sleep(1)

        assert running_of(rig) == {"mail-a": 1, "mail-b": 1, "mail-": 1}


@pytest.mark.parametrize("limits", [Limits(rate=Rate(2, 60.0)), Limits(per_key=PerKey(rate=Rate(2, 60.0)))])
async def test_the_next_token_is_waited_for_and_not_polled(
    autojump_clock, store: FaultyStore, limits: Limits
) -> None:
    """A node sleeps until then."""
    async with running(store, workers=4, lease=3600) as rig:
        await limit(rig, limits)
        start, commits = trio.current_time(), rig.node.ledger.commits
        await add(rig, "mail", 4, ("done"), key="k")
        await rig.ended("mail-k3")

        assert [round(at - start, 1) for at in begun(rig, "mail")] == [0, 30, 60, 90]
        assert rig.node.ledger.commits - commits < 20


async def test_limited_jobs_are_not_claimed_ahead(autojump_clock) -> None:
    """Other nodes may have workers for them: what is held runs."""
    async with running(Durable(), workers=2, grace=0) as rig:
        await limit(rig, Limits(max_running=100))
        await add(rig, "mail", 50, ("sleep", 0.01))
        for _ in range(12):
            await trio.sleep(0.005)
            assert (
                len(list(rig.node.held)) <= 4
            )  # those that run, and those whose outcomes are not written yet
        await rig.ended("mail-49")


async def test_limited_jobs_get_their_turn_beside_short_jobs_that_are_claimed_ahead(
    autojump_clock, store: FaultyStore
) -> None:
    """Though no worker would ever be free as long as others are claimed ahead."""
    async with running(store, workers=2) as rig:
        await limit(rig, Limits(max_running=1))
        await add(rig, "plain", 3000, ("sleep", 0.01))
        start = trio.current_time()
        now = rig.node.clock.now()
        await rig.add(new_job("mail", "done", queue="mail", created_at=now, run_at=now, priority=1))
        await rig.ended("mail")

        assert trio.current_time() - start < 2.5


async def test_a_limit_that_is_set_or_taken_away_counts_at_once(autojump_clock, store: FaultyStore) -> None:
    async with running(store, workers=4, grace=0) as rig:
        await limit(rig, Limits(max_running=0))
        await add(rig, "mail", 9, LONG, key="k")
        await trio.sleep(1)
        none = running_of(rig)
        await limit(rig, Limits(per_key=PerKey(max_running=1)))
        await trio.sleep(1)
        one = running_of(rig)
        await rig.node.control.put_key("mail", "k", KeySettings(max_running=2))
        await trio.sleep(1)
        two = running_of(rig)
        await rig.node.control.put_key("mail", "k", KeySettings())
        await limit(rig, NO_LIMITS)
        await trio.sleep(1)

        assert (none, one, two, running_of(rig)) == ({}, {"mail-k": 1}, {"mail-k": 2}, {"mail-k": 4})


async def test_jobs_of_an_ordered_key_run_one_after_another(autojump_clock, store: FaultyStore) -> None:
    """Retries included; the next begins at once. Keys do not wait for each other."""
    async with running(store, workers=4) as rig:
        await limit(rig, Limits(per_key=PerKey(ordered=True)))
        start = trio.current_time()
        await add(rig, "mail", 1, ("sleep", 10.0), "fail", ("sleep", 10.0), "done", key="a")
        await add(rig, "mail", 3, ("sleep", 10.0), key="b")
        now = rig.node.clock.now()
        last = new_job("last", queue="mail", options=Options(key="a"), created_at=now, run_at=now, priority=9)
        await rig.add(last)
        await rig.ended("last")
        await rig.ended("mail-b2")

        assert [round(at - start) for at in begun(rig, "mail-b")] == [0, 10, 20]
        (first,) = [run for run in rig.actor.runs if run.id == "mail-a0"][-1:]
        assert begun(rig, "last")[0] == pytest.approx(first.ended, abs=0.1)


@pytest.mark.parametrize("how", ["cancel", "delete", "expire"])
async def test_whoever_is_behind_a_job_that_goes_starts_at_once(
    autojump_clock, store: FaultyStore, how: str
) -> None:
    """Though the node sleeps."""
    async with running(store, workers=4, lease=3600) as rig:
        await limit(rig, Limits(per_key=PerKey(ordered=True)))
        now = rig.node.clock.now()
        options = Options(key="a")
        first = new_job("first", queue="mail", options=options, created_at=now, run_at=now + 1000)
        await rig.add(replace(first, expires_at=now + 50) if how == "expire" else first)
        await rig.add(new_job("next", queue="mail", options=options, created_at=now, run_at=now))
        await trio.sleep(50)
        start, before = trio.current_time(), begun(rig, "next") if how != "expire" else []
        if how != "expire":
            await getattr(rig.node.control, how)("first")
        await rig.ended("next")

        assert before == []
        assert trio.current_time() - start < 0.1


async def test_a_paused_key_starts_nothing_until_it_is_resumed(autojump_clock, store: FaultyStore) -> None:
    """What was claimed ahead goes back; other keys go on."""
    async with running(store, workers=1, grace=0) as rig:
        await add(rig, "mail", 5, ("sleep", 10.0), key="a")
        await add(rig, "mail", 2, ("sleep", 10.0), key="b")
        await trio.sleep(1)
        await rig.node.control.pause_key("mail", "a")
        await rig.ended("mail-b1")
        await trio.sleep(100)
        before = [run.id for run in rig.actor.runs]
        await rig.node.control.resume_key("mail", "a")
        await trio.sleep(1)

        assert sorted(before) == ["mail-a0", "mail-b0", "mail-b1"]
        assert running_of(rig) == {"mail-a": 1}
        await rig.ended("mail-a4")
