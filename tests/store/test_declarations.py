"""Schedules that code declares, over every store: the newest declaration of a live node counts."""

from collections.abc import Sequence
from typing import Any

import pytest
import trio

from jobpipe.schedules import Declaration, Spec
from jobpipe.store.base import Declared, Store
from tests.store.test_contract import NOW, new_job
from tests.store.test_schedules import FIRST, MINUTELY, due, fire, one, put, write

HOURLY = Spec(cron="0 * * * *")
LIVE = 60.0


def declaration(name: str = "a", spec: Spec = MINUTELY, **job: Any) -> Declaration:
    return Declaration(name=name, spec=spec, job=new_job("", **job))


async def declare(store: Store, *declared: Declaration, now: float = NOW) -> Declared:
    """What a node does that has other nodes beside it."""
    return await store.declare(declared, now, now - LIVE)


async def test_a_declared_schedule_is_there_and_fires(store: Store) -> None:
    declared = await declare(store, declaration())
    again = await declare(store, declaration(), now=NOW + 15)
    schedule = await one(store)
    fired = await fire(store, FIRST)

    assert declared == Declared(created=("a",))
    assert again == Declared()
    assert (schedule.declared, schedule.orphaned, schedule.paused, schedule.version) == (
        True,
        False,
        False,
        1,
    )
    assert len(fired.stored) == 1


async def test_a_declared_schedule_belongs_to_the_code(store: Store) -> None:
    """It can be paused, resumed and run, but neither changed nor deleted."""
    await declare(store, declaration())
    refused = await put(store, "a", HOURLY)
    deletion = await store.delete_schedule("a")

    assert refused.verdict == "declared"
    assert deletion == "declared"
    assert (await one(store)).spec == MINUTELY


async def test_a_declaration_takes_over_what_was_put(store: Store) -> None:
    """As a change, so that nothing fires from the old text; a pause by hand stays."""
    await put(store, "a", HOURLY)
    await store.pause_schedule("a", "not now")
    declared = await declare(store, declaration())
    schedule = await one(store)

    assert declared == Declared(changed=("a",))
    assert (schedule.spec, schedule.version, schedule.declared) == (MINUTELY, 2, True)
    assert (schedule.paused, schedule.reason) == (True, "not now")


async def test_a_pause_by_hand_outlives_restarts_and_changes(store: Store) -> None:
    await declare(store, declaration())
    await store.pause_schedule("a", "the printer is broken")
    await declare(store, declaration(), now=NOW + 3600)
    await declare(store, declaration(spec=HOURLY), now=NOW + 3700)
    schedule = await one(store)
    resumed = await store.resume_schedule("a", NOW + 3700)

    assert (schedule.spec, schedule.paused, schedule.reason) == (HOURLY, True, "the printer is broken")
    assert resumed is not None
    assert not resumed.paused


async def test_in_a_rolling_deploy_the_newer_declaration_wins_and_stays(store: Store) -> None:
    """However often an old node says what it declares, or starts again."""
    specs = list[Spec]()
    for seconds, spec in (
        (0, MINUTELY),
        (15, MINUTELY),
        (20, HOURLY),
        (30, MINUTELY),
        (35, HOURLY),
        (45, MINUTELY),
    ):
        await declare(store, declaration(spec=spec), now=NOW + seconds)
        specs.append((await one(store)).spec)

    assert specs == [MINUTELY, MINUTELY, HOURLY, HOURLY, HOURLY, HOURLY]
    assert (await one(store)).version == 2


async def test_after_a_rollback_the_older_declaration_counts_once_the_newer_nodes_are_gone(
    store: Store,
) -> None:
    await declare(store, declaration())
    await declare(store, declaration(spec=HOURLY), now=NOW + 10)
    soon = [await declare(store, declaration(), now=NOW + seconds) for seconds in (20, 60)]
    later = await declare(store, declaration(), now=NOW + 80)

    assert soon == [Declared(), Declared()]
    assert later == Declared(changed=("a",))
    assert (await one(store)).spec == MINUTELY


async def test_a_store_of_one_node_follows_its_code_at_once(store: Store) -> None:
    """Nobody else can declare anything, so what was said before does not count."""
    await store.declare([declaration(), declaration("b")], NOW, NOW)
    await store.declare([declaration(spec=HOURLY), declaration("b")], NOW + 1, NOW + 1)
    back = await store.declare([declaration()], NOW + 2, NOW + 2)

    assert back == Declared(changed=("a",), orphaned=("b",))


async def test_what_no_live_node_declares_is_paused_and_says_so(store: Store) -> None:
    """And goes on from then on when a node declares it again."""
    await declare(store, declaration(), declaration("b"))
    early = await declare(store, declaration("b"), now=NOW + 50)
    late = await declare(store, declaration("b"), now=NOW + 65)
    orphan = await one(store)
    nothing = await due(store, FIRST + 60)
    again = await declare(store, declaration(), declaration("b"), now=FIRST + 90)
    back = await one(store)

    assert (early, late) == (Declared(), Declared(orphaned=("a",)))
    assert (orphan.paused, orphan.reason) == (True, "no live node declares it any more")
    assert [firing.name for firing in nothing] == ["b"]
    assert again == Declared(changed=("a",))
    assert (back.paused, back.reason, back.next_at) == (False, None, FIRST + 120)


async def test_nodes_that_declare_nothing_notice_it_too(store: Store) -> None:
    await declare(store, declaration())

    assert await declare(store, now=NOW + 100) == Declared(orphaned=("a",))
    assert await declare(store, now=NOW + 200) == Declared()


async def test_what_is_paused_for_both_reasons_needs_both_to_be_over(store: Store) -> None:
    await declare(store, declaration())
    await store.pause_schedule("a", "by hand")
    await declare(store, now=NOW + 100)
    resumed = await store.resume_schedule("a", NOW + 101)
    declared = await declare(store, declaration(), now=NOW + 200)

    assert resumed is not None
    assert (resumed.paused, resumed.reason) == (True, "no live node declares it any more")
    assert declared == Declared(changed=("a",))
    assert not (await one(store)).paused


@pytest.mark.parametrize("act", ["delete", "put"])
async def test_an_orphan_belongs_to_whoever_wants_it(store: Store, act: str) -> None:
    await declare(store, declaration())
    await declare(store, now=NOW + 100)
    if act == "delete":
        assert await store.delete_schedule("a") == "deleted"
        assert await store.schedule("a") is None
    else:
        changed = await put(store, "a", MINUTELY, now=NOW + 101)
        assert (changed.verdict, changed.schedule.declared, changed.schedule.paused) == (
            "changed",
            False,
            False,
        )
        assert await declare(store, now=NOW + 200) == Declared()


async def test_declarations_that_cannot_be_read_are_left_out(store: Store) -> None:
    """Another node's, say of a version to come; the own ones are written anew each time."""
    await declare(store, declaration())
    await declare(store, declaration(spec=HOURLY), now=NOW + 10)
    await write(
        store, "update declarations set spec = :bytes where first_at > :now", {"bytes": b"\xff{", "now": NOW}
    )

    assert await declare(store, declaration(), now=NOW + 20) == Declared(changed=("a",))


async def test_nodes_that_declare_at_the_same_time_agree(store: Store) -> None:
    """Both rows are there, and one of the two declarations counts."""
    async with trio.open_nursery() as nursery:
        for spec in (MINUTELY, HOURLY) * 4:
            for name in ("a", "b"):
                nursery.start_soon(declare, store, declaration(name, spec))
    settled: Sequence[Declared] = [
        await declare(store, *(declaration(name, spec) for name in ("a", "b")), now=NOW + 1)
        for spec in (MINUTELY, HOURLY, MINUTELY)
    ]

    assert settled[1:] == [Declared(), Declared()]
