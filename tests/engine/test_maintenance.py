"""Old ended jobs are deleted, a step at a time; what waits or runs is not."""

from typing import Any

import trio

from jobpipe.engine.maintenance import PERIOD
from jobpipe.job import Status
from jobpipe.store.base import STEP, Retention
from tests.engine.conftest import FaultyStore, new_job, running


class CountingStore(FaultyStore):
    """Remembers how much each prune deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.pruned: list[int] = []

    async def prune(self, now: float, retention: Retention) -> int:
        self.pruned.append(await super().prune(now, retention))
        return self.pruned[-1]


async def there(rig: Any, *ids: str) -> list[bool]:
    return [await rig.store.get(job_id) is not None for job_id in ids]


async def test_ended_jobs_are_kept_as_long_as_was_asked(autojump_clock) -> None:
    """Done ones and failed ones for times of their own; what waits stays."""
    async with running(keep_done=100, keep_failed=200) as rig:
        await rig.enqueue("done")
        await rig.enqueue("failed", "fail")
        await rig.enqueue("waiting", run_at=rig.node.clock.now() + 1000)
        seen = []
        for _ in range(3):
            await trio.sleep(99 - PERIOD)
            seen.append(await there(rig, "done", "failed", "waiting"))
            await trio.sleep(1 + PERIOD)
        await rig.ended("waiting")

    assert seen == [[True, True, True], [False, True, True], [False, False, True]]


async def test_many_old_jobs_are_deleted_in_steps_without_a_pause(autojump_clock) -> None:
    """No transaction is long, and the whole does not take for ever either."""
    store = CountingStore()
    async with running(store, keep_jobs=10, workers=1000, queue_size=1000) as rig:
        await rig.add(*(new_job(str(number)) for number in range(3 * STEP + 10)))
        await trio.sleep(PERIOD / 2)
        before = await rig.statuses()
        await trio.sleep(PERIOD)
        after = await rig.statuses()
        kept = await there(rig, "0", str(3 * STEP + 9))

    assert before == {Status.DONE: 3 * STEP + 10}
    assert after == {Status.DONE: 10}
    assert [pruned for pruned in store.pruned if pruned] == [STEP] * 3
    assert kept == [False, True]


async def test_ended_jobs_are_kept_up_to_so_many_bytes(autojump_clock) -> None:
    """Payloads, results and errors count; the oldest go first."""
    payload = b'["done","' + b"x" * 400 + b'"]'
    async with running(keep_bytes=1000) as rig:
        for job_id in "abcd":
            await rig.enqueue(job_id, payload=payload, kind="absent")
            await rig.node.control.cancel(job_id)
            await trio.sleep(0.01)
        await trio.sleep(2 * PERIOD)
        kept = await there(rig, *"abcd")

    assert kept == [False, False, True, True]


async def test_trouble_with_the_store_does_not_end_it(autojump_clock) -> None:
    """It is told as a warning, and tried again later."""
    store = FaultyStore()
    async with running(store, keep_done=0, lease=3600, expected=["the store cannot write"]) as rig:
        await rig.enqueue("a")
        await rig.ended("a")
        store.broken = True
        await trio.sleep(1.5 * PERIOD)
        still = await there(rig, "a")
        store.broken = False
        await trio.sleep(2 * PERIOD)
        gone = not (await there(rig, "a"))[0]

    assert (still, gone) == ([True], True)
    assert rig.logged("could not delete old jobs")[0]["log_level"] == "warning"
