"""Which queues a node serves, with what weights, and with which workers. In virtual time."""

from collections import Counter

import pytest
import trio

from jobpipe.engine.probe import prove
from jobpipe.job import Status
from jobpipe.store.base import OTHERS, Batch, ClaimRequest, Share
from tests.engine.conftest import Actor, FaultyStore, Rig, new_job, running, turns

MAIL = (("mail", 1),)
LONG = ("sleep", 1000.0)


class Durable(FaultyStore):
    """Jobs go back at the end."""

    durable = True


@pytest.fixture(params=["volatile", "durable"])
def store(request: pytest.FixtureRequest) -> FaultyStore:
    return Durable() if request.param == "durable" else FaultyStore()


async def add(rig: Rig, queue: str, number: int, *steps, first: int = 0) -> None:
    now = rig.node.clock.now()
    names = [f"{queue}{n}" for n in range(first, first + number)]
    jobs = [new_job(name, *steps, queue=queue, created_at=now, run_at=now) for name in names]
    await rig.add(*jobs)


def running_of(rig: Rig) -> Counter[str]:
    """How many jobs of each queue run."""
    return Counter(attempt.job.queue for attempt in rig.node.held.running)


async def test_mail_starts_at_once_though_long_reports_wait(autojump_clock, store: FaultyStore) -> None:
    """They never take the worker that is reserved."""
    async with running(store, reserve=MAIL, workers=4, grace=0) as rig:
        await add(rig, "reports", 100, LONG)
        await trio.sleep(1)
        before, commits = running_of(rig), rig.node.ledger.commits
        await add(rig, "mail", 1)
        await rig.ended("mail0")
        began = next(run.began for run in rig.actor.runs if run.id == "mail0")

        assert before == {"reports": 3}
        assert rig.node.ledger.commits <= commits + 2  # the add that claims it, and its outcome
        assert began == trio.current_time()


async def test_reserved_workers_are_not_needed_for_mail_to_use_the_others(
    autojump_clock, store: FaultyStore
) -> None:
    """A lone queue gets all workers; another one all but those that are reserved."""
    async with running(store, reserve=MAIL, workers=4, grace=0) as rig:
        await add(rig, "mail", 9, ("sleep", 10.0))
        await trio.sleep(1)
        mail = running_of(rig)
        await add(rig, "reports", 9, LONG)
        await trio.sleep(40)

        assert mail == {"mail": 4}
        assert running_of(rig) == {"reports": 3}


async def test_a_burst_of_mail_is_never_behind_reports(autojump_clock, store: FaultyStore) -> None:
    """Whatever was claimed ahead: all of it is done by the reserved worker while the others are busy."""
    async with running(store, reserve=MAIL, workers=3, grace=0) as rig:
        await add(rig, "reports", 5, ("done"))
        await trio.sleep(1)
        await add(rig, "reports", 50, LONG, first=5)
        await trio.sleep(1)
        begun = trio.current_time()
        await add(rig, "mail", 40, ("sleep", 0.5))
        for number in range(40):
            await rig.ended(f"mail{number}")

        assert trio.current_time() - begun <= 40 * 0.5 + 0.5


async def test_reserved_workers_of_several_queues(autojump_clock, store: FaultyStore) -> None:
    """Each has its own."""
    async with running(store, reserve=(("mail", 1), ("sms", 2)), workers=5, grace=0) as rig:
        await add(rig, "reports", 9, LONG)
        await add(rig, "sms", 9, LONG)
        await add(rig, "mail", 9, LONG)
        await trio.sleep(1)

        assert running_of(rig) == {"reports": 2, "sms": 2, "mail": 1}


async def test_a_queue_that_is_not_served_is_left_alone(autojump_clock, store: FaultyStore) -> None:
    """And the node's health does not depend on it."""
    async with running(store, queues=(("a", 1), ("b", 1))) as rig:
        await add(rig, "x", 5)
        await add(rig, "a", 2)
        await rig.ended("a1")
        commits = rig.node.ledger.commits
        await trio.sleep(4)  # less than a renewal
        proof = await prove(rig.node)

        assert rig.node.ledger.commits <= commits + 1
        assert (await rig.job("x0")).status is Status.QUEUED
        assert (proof.status, proof.detail) == ("ok", None)
        assert await rig.store.served_queues() == frozenset({"a", "b"})


async def test_jobs_of_queues_that_no_node_serves_are_told_once(autojump_clock) -> None:
    """Until another node serves them; and again when it has left."""
    said, store = "jobs wait: no live node takes jobs from their queue", Durable()
    async with running(store, queues=(("a", 1),)) as rig:
        await add(rig, "x", 2)
        await add(rig, "a", 2)
        await trio.sleep(60)
        before = [line["queue"] for line in rig.logged(said)]
        await store.join("n2", 0, rig.node.clock.now() + 1e6, frozenset({"act"}))
        await trio.sleep(60)
        await store.leave("n2")
        await trio.sleep(60)
        after = [line["queue"] for line in rig.logged(said)]

    assert (before, after) == (["x"], ["x", "x"])


async def test_a_node_with_reserved_idle_workers_is_healthy(autojump_clock, store: FaultyStore) -> None:
    """Though jobs wait that only the other workers may take."""
    async with running(store, reserve=MAIL, workers=2, grace=0) as rig:
        await add(rig, "reports", 9, LONG)
        await trio.sleep(1)
        proof = await prove(rig.node)

        assert (proof.status, proof.detail, proof.busy) == ("ok", None, 1)


async def test_weights_hold_over_time_where_all_have_backlogs(autojump_clock) -> None:
    """With jobs of a second, one of which each worker takes at a time."""
    async with running(Durable(), queues=(("a", 3), ("b", 1)), workers=2, grace=0) as rig:
        await add(rig, "b", 200, ("sleep", 1.0))
        await add(rig, "a", 200, ("sleep", 1.0))
        await trio.sleep(50.5)
        begun = Counter(run.id[0] for run in rig.actor.runs)

    assert begun.total() == 102
    assert abs(begun["a"] - 3 * begun["b"]) <= 6


async def test_weights_hold_for_short_jobs_that_are_claimed_ahead(autojump_clock) -> None:
    """They go through the channel by the dozen."""
    async with running(Durable(), queues=(("a", 3), (OTHERS, 1)), workers=2) as rig:
        now = rig.node.clock.now()
        ids = [f"{queue}{number}" for queue in "ba" for number in range(300)]
        await rig.add(*(new_job(one, queue=one[0], created_at=now, run_at=now) for one in ids))
        await rig.ended("a299")
        order = rig.actor.order()
        begun = Counter(one[0] for one in order[: order.index("a299")])

    assert abs(begun["b"] - 100) <= 70


async def test_a_queue_without_jobs_leaves_its_part_to_the_others(autojump_clock, store: FaultyStore) -> None:
    """All workers are used."""
    async with running(store, queues=(("a", 1000), ("b", 1)), workers=4, grace=0) as rig:
        await add(rig, "b", 9, LONG)
        await trio.sleep(1)

        assert running_of(rig) == {"b": 4}


async def test_a_node_without_these_settings_asks_for_all_queues_at_once(autojump_clock) -> None:
    """Its claims name none."""
    store = Durable()
    async with running(store) as rig:
        await add(rig, "a", 3)
        await rig.ended("a2")
    claims = [claim for batch in store.batches for claim in batch.claims]

    assert claims
    assert {claim.queues for claim in claims} == {()}
    assert all(len(batch.claims) <= 1 for batch in store.batches)


async def test_reserved_workers_ask_first(autojump_clock) -> None:
    """So that a job of theirs does not keep another worker from a report."""
    store = Durable()
    async with running(store, reserve=MAIL, workers=3) as rig:
        await turns()
        await add(rig, "mail", 1)
        await rig.ended("mail0")
    asked = next(batch for batch in store.batches if batch.adds).claims
    kinds = asked[0].kinds

    assert asked == [
        ClaimRequest(limit=1, kinds=kinds, queues=[Share("mail", 1)], free=1),
        ClaimRequest(limit=2, kinds=kinds, free=2),
    ]


async def test_workers_that_become_free_look_though_reserved_ones_found_nothing(autojump_clock) -> None:
    """What one claimer lacks says nothing about another."""
    async with running(Durable(), reserve=MAIL, workers=2, grace=0) as rig:
        await add(rig, "reports", 20, ("sleep", 1.0))
        await trio.sleep(15.5)

        assert Counter(run.id[:7] for run in rig.actor.runs) == {"reports": 16}


async def test_a_drain_hands_back_what_waits_in_every_channel(autojump_clock) -> None:
    """And lets every worker end."""
    actor = Actor()
    async with running(Durable(), actor=actor, reserve=MAIL, workers=2) as rig:
        await add(rig, "mail", 30, ("sleep", 0.001))
        await add(rig, "reports", 30, ("sleep", 0.001))
        await trio.sleep(0.02)
        await rig.drained()
        statuses = await rig.statuses()

    assert statuses[Status.DONE] == len(actor.runs)
    assert statuses[Status.QUEUED] == 60 - len(actor.runs)


async def test_a_paused_queue_keeps_its_reserved_workers_idle(autojump_clock) -> None:
    """They are nobody else's."""
    async with running(Durable(), reserve=MAIL, workers=2, grace=0) as rig:
        await rig.node.control.pause("mail")
        await add(rig, "mail", 2, LONG)
        await add(rig, "reports", 2, LONG)
        await trio.sleep(1)
        paused = running_of(rig)
        await rig.node.control.resume("mail")
        await trio.sleep(1)

        assert paused == {"reports": 1}
        assert running_of(rig) == {"reports": 1, "mail": 1}


async def test_a_broken_row_of_a_reserved_queue_is_put_out_of_the_way(autojump_clock) -> None:
    """As by any other claim."""

    class Poisoned(Durable):
        async def exchange(self, batch: Batch):
            if any(claim.queues for claim in batch.claims) and not self.sidelined:
                raise TypeError("no such thing")
            return await super().exchange(batch)

        sidelined = False

        async def sideline(self, batch: Batch, words: str) -> str | None:
            self.sidelined = True
            return await super().sideline(batch, words)

    store = Poisoned()
    await store.exchange(Batch(node="n0", now=0))
    async with running(store, reserve=MAIL, workers=2, expected=["unforeseen exception"]) as rig:
        await add(rig, "reports", 1)
        await rig.ended("reports0")
        await add(rig, "mail", 1)
        await rig.ended("mail0")
