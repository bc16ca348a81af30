"""Adds that share transactions beside the ledger's: who goes with whom, and what a failure or a cancel costs others."""

from collections.abc import Sequence

import pytest
import trio

from jobpipe.engine.gathering import MOST, Gathering
from jobpipe.errors import StoreUnavailable
from jobpipe.job import NewJob
from jobpipe.store.base import Receipt
from jobpipe.store.memory import MemoryStore
from tests.engine.conftest import new_job, turns


class Slow(MemoryStore):
    """A store whose adds wait for a word, and fail where one of the jobs is called so."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = trio.Event()
        self.went: list[list[str]] = []

    async def add_dependents(
        self, jobs: Sequence[NewJob], *, atomic: bool, strict: bool = False
    ) -> Sequence[Receipt]:
        self.went.append([job.id for job in jobs])
        await self.go_on.wait()
        for job in jobs:
            if job.id == "bad":
                raise ValueError("a row that breaks the statement")
            if job.id == "broken":
                raise StoreUnavailable("disk full")
        return await super().add_dependents(jobs, atomic=atomic, strict=strict)


class Askers:
    """Several askers at once."""

    def __init__(self, store: Slow, nursery: trio.Nursery) -> None:
        self.store, self.nursery, self.gathering = store, nursery, Gathering(store)
        self.told: dict[str, str] = {}

    async def ask(self, *names: str, atomic: bool = False) -> trio.CancelScope:
        """Begin to ask; returns what cancels it."""
        scope = trio.CancelScope()

        async def asking() -> None:
            with scope:
                try:
                    receipts = await self.gathering.add([new_job(name) for name in names], atomic=atomic)
                except (ValueError, StoreUnavailable) as error:
                    self.told[names[0]] = str(error)
                else:
                    self.told |= {name: one.verdict for name, one in zip(names, receipts, strict=True)}

        self.nursery.start_soon(asking)
        await turns(2)
        return scope

    async def answered(self) -> dict[str, str]:
        """What all are told."""
        self.store.go_on.set()
        await turns(100)
        return self.told


async def test_what_comes_while_one_is_stored_shares_the_next_transaction() -> None:
    """Each is told of its own, whatever came of the others."""
    async with trio.open_nursery() as nursery:
        askers = Askers(Slow(), nursery)
        for names in (("a",), ("b", "c"), ("a",), ("d",)):
            await askers.ask(*names)
        told = await askers.answered()

    assert askers.store.went == [["a"], ["b", "c", "a", "d"]]
    assert told == {"a": "existing", "b": "stored", "c": "stored", "d": "stored"}


async def test_what_is_all_or_nothing_goes_alone() -> None:
    """In its turn."""
    async with trio.open_nursery() as nursery:
        askers = Askers(Slow(), nursery)
        for name in "abcde":
            await askers.ask(name, atomic=name == "c")
        await askers.answered()

    assert askers.store.went == [["a"], ["b"], ["c"], ["d", "e"]]


async def test_only_so_many_share_a_transaction() -> None:
    """One request may have more."""
    async with trio.open_nursery() as nursery:
        askers = Askers(Slow(), nursery)
        await askers.ask("first")
        await askers.ask(*(f"a{number}" for number in range(MOST - 1)))
        await askers.ask("b")
        await askers.ask("c")
        await askers.ask(*(f"d{number}" for number in range(MOST + 1)))
        told = await askers.answered()

    assert [len(jobs) for jobs in askers.store.went] == [1, MOST, 1, MOST + 1]
    assert set(told.values()) == {"stored"}


async def test_a_job_that_breaks_the_store_costs_its_own_request() -> None:
    async with trio.open_nursery() as nursery:
        askers = Askers(Slow(), nursery)
        for name in ("a", "b", "bad", "c"):
            await askers.ask(name)
        told = await askers.answered()

    assert told == {"a": "stored", "b": "stored", "bad": "a row that breaks the statement", "c": "stored"}


async def test_a_store_that_cannot_be_written_is_told_to_all() -> None:
    """None of them was stored."""
    async with trio.open_nursery() as nursery:
        askers = Askers(Slow(), nursery)
        for name in ("a", "b", "broken"):
            await askers.ask(name)
        told = await askers.answered()

    assert told == {"a": "stored", "b": "disk full", "broken": "disk full"}
    assert await askers.store.get("b") is None


@pytest.mark.parametrize("who", [0, 1, 2])
async def test_a_cancel_costs_nobody_else_anything(who: int) -> None:
    """Whether it is the turn of who is cancelled, or not yet."""
    async with trio.open_nursery() as nursery:
        askers = Askers(Slow(), nursery)
        scopes = [await askers.ask(name) for name in "abc"]
        scopes[who].cancel()
        await turns(5)
        told = await askers.answered()

    others = {name: "stored" for number, name in enumerate("abc") if number != who}
    assert told == others
    assert await askers.store.get("abc"[who]) is None
