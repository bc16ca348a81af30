"""Nodes with different handlers, as in a rolling deployment: each takes what it can run, at full speed."""

import signal

import pytest
import trio

from tests.process.running import PATIENCE, until

pytestmark = pytest.mark.slow

MODULE = """
import trio
from jobpipe import handler


@handler("slow.one", max_retries=7)
async def slow(payload: int) -> int:
    await trio.sleep(0.5)
    return payload
"""

BOTH = {"HANDLERS": "traced,odd,slowmodule"}


async def test_a_node_without_the_handler_does_not_delay_the_one_that_has_it(serve, tmp_path):
    """Eight jobs of half a second, four at a time; enqueued at either node."""
    (tmp_path / "slowmodule.py").write_text(MODULE)
    without, has = await serve(WORKERS=4), await serve(WORKERS=4, **BOTH)
    asked = [
        await node.http.post("/enqueue", json={"id": f"job-{n}-{place}", "kind": "slow.one", "payload": n})
        for n in range(4)
        for place, node in enumerate((without, has))
    ]
    begun = trio.current_time()
    ended = await without.all_ended(*(answer.json()["id"] for answer in asked))
    took = trio.current_time() - begun
    attempts = [job["attempts"] for job in ended.values()]

    assert {answer.status_code for answer in asked} == {202}
    assert {(job["status"], job["attempt"]) for job in ended.values()} == {("done", 1)}
    assert len({attempt["node"] for each in attempts for attempt in each}) == 1
    assert took < PATIENCE / 2  # with the detour of earlier days it took over a minute
    assert (await without.http.get("/health")).json()["unserved"] == []


async def test_a_kind_is_accepted_as_long_as_a_live_node_serves_it(serve, tmp_path):
    """Its payload unchecked where the handler is not; then it is refused again."""
    (tmp_path / "slowmodule.py").write_text(MODULE)
    without = await serve()
    job = {"kind": "slow.one", "payload": "not a number", "max_retries": 0}
    before = await without.http.post("/enqueue", json=job)
    has = await serve(**BOTH)

    async def accepted():
        return (await without.http.post("/enqueue", json=job | {"id": "a"})).status_code == 202

    await until(accepted)
    checked = await has.http.post("/enqueue", json=job)
    failed = await without.job("a", wait=PATIENCE)
    has.signal(signal.SIGTERM)
    assert await has.ended() == 0

    async def refused():
        return (await without.http.post("/enqueue", json=job)).status_code == 422

    await until(refused)

    assert (before.status_code, checked.status_code) == (422, 422)
    assert "did you mean" not in before.text
    assert failed["status"] == "failed"


async def test_the_jobs_of_a_node_that_left_wait_until_one_with_the_handler_comes(serve, tmp_path):
    """Every node tells so; the next one takes them as soon as it joins."""
    (tmp_path / "slowmodule.py").write_text(MODULE)
    has, without = await serve(WORKERS=1, **BOTH), await serve()
    for n in range(6):
        await has.enqueue(f"job-{n}", "slow.one", payload=n)
    has.signal(signal.SIGTERM)
    assert await has.ended() == 0

    async def told():
        found = (await without.http.get("/health")).json()["unserved"]
        return [one["kind"] for one in found] == ["slow.one"]

    await until(told)
    await without.said("jobs wait: no live node has a handler for their kind")
    again = await serve(WORKERS=8, **BOTH)
    ended = await again.all_ended(*(f"job-{n}" for n in range(6)))

    assert {(job["status"], job["attempt"]) for job in ended.values()} == {("done", 1)}
