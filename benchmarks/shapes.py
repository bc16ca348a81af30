"""Jobs that use a feature, put into a store: the work of a drain beside which the same number of plain jobs is drained.

A shape is a word and, where it has one, a number: see `SHAPES`. Each fills a store with so many jobs of the kind
`counted`, all of which run. Not for older versions: what one lacks is an `ImportError`.
"""

import uuid
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from benchmarks.fill import NODE, now
from benchmarks.work import jobs, slices
from jobpipe.job import NewJob
from jobpipe.lanes import Limits, PerKey, Rate
from jobpipe.store.base import Add, Batch, NewGroup, Store

MOST_OF_A_KEY = 2
"""How many jobs of a key run at once, where keys are limited."""

ROOM = 1000
"""How many jobs of a queue run at once, where that is limited: far more than there are workers and places for them."""

FAST = Rate(limit=1_000_000, period=1, burst=ROOM)
"""A rate that no drain reaches."""


def some(count: int) -> list[NewJob]:
    """So many jobs, whose ids nobody else has."""
    return jobs(f"drain-{uuid.uuid4().hex[:12]}", count, kind="counted")


def with_options(job: NewJob, **options: object) -> NewJob:
    """The same job with some of its options set."""
    return msgspec.structs.replace(job, options=msgspec.structs.replace(job.options, **options))


async def keys(store: Store, count: int, number: int) -> None:
    """Jobs of so many keys, one key after the other."""
    for part, size in slices(count):
        await add(
            store,
            [
                with_options(job, key=f"k{(part * 1000 + place) % number}")
                for place, job in enumerate(some(size))
            ],
        )


async def limited_keys(store: Store, count: int, number: int) -> None:
    """The same, and few of each key may run at once."""
    await store.put_limits("default", Limits(per_key=PerKey(max_running=MOST_OF_A_KEY)))
    await keys(store, count, number)


async def groups(store: Store, count: int, number: int) -> None:
    """Groups of so many jobs, of which the last waits until the others have ended."""
    for _, size in slices(count, number):
        name, new = f"group-{uuid.uuid4().hex[:12]}", some(size)
        members = [with_options(job, group=name) for job in new[:-1]]
        then = with_options(new[-1], callback_of=name)
        receipt = await store.add_group(NewGroup(id=name, on_failure="go_on", jobs=members, then=then), now())
        assert receipt.verdict == "stored", receipt


async def depends(store: Store, count: int, _: int) -> None:
    """Pairs of jobs, of which the second depends on the first."""
    for _, size in slices(count):
        new = some(size)
        pairs = [
            with_options(job, depends_on=(new[place - 1].id,)) if place % 2 else job
            for place, job in enumerate(new)
        ]
        receipts = await store.add_dependents(pairs, atomic=False)
        assert {one.verdict for one in receipts} == {"stored"}, receipts


async def max_running(store: Store, count: int, _: int) -> None:
    """Jobs of a queue that is limited to more of them at once than can run."""
    await store.put_limits("default", Limits(max_running=ROOM))
    await plain(store, count)


async def rate(store: Store, count: int, _: int) -> None:
    """Jobs of a queue that is limited to more of them a second than can run."""
    await store.put_limits("default", Limits(rate=FAST))
    await plain(store, count)


async def plain(store: Store, count: int) -> None:
    """Jobs that use nothing."""
    for _, size in slices(count):
        await add(store, some(size))


async def add(store: Store, new: Sequence[NewJob]) -> None:
    """Add jobs in one transaction."""
    await store.exchange(Batch(node=NODE, now=now(), adds=[Add(new)]))


SHAPES: dict[str, Callable[[Store, int, int], Awaitable[None]]] = {
    "keys": keys,
    "limited-keys": limited_keys,
    "groups": groups,
    "depends": depends,
    "max-running": max_running,
    "rate": rate,
}
