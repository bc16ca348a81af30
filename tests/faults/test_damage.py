"""Rows that hold what no jobpipe writes: each costs its own job, and nothing else.

Jobs in every status are damaged at random; then every route of the API is called and the engine runs over them.
Nothing answers 500, the node lives, every sound job ends well, and a damaged one fails in words or is shown.
"""

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
import trio
from msgspec.structs import replace

from jobpipe.job import Debounce, JobError, Options, Outcome, Progress, Status, Throttle, Unique
from jobpipe.store.base import (
    Add,
    Batch,
    Claimed,
    ClaimRequest,
    LogLine,
    Note,
    QueueSettings,
    Retention,
    Settlement,
    Start,
    Store,
)
from jobpipe.store.memory import open_memory
from jobpipe.store.postgres import open_postgres
from jobpipe.store.sqlite import open_sqlite
from tests.api.client import Door, open_door
from tests.engine.conftest import NOW, new_job
from tests.faults.damaging import Damager, PostgresDamager, SqliteDamager
from tests.store.server import new_schema, server_url, with_query

BEFORE = NOW - 1000.0
STATES = (
    *("queued", "scheduled", "due", "expiring", "held", "running", "cancelling", "retrying"),
    *("done", "failed", "cancelled", "expired"),
    *("unique", "throttled", "debounced"),
)
KEYED = ("due", "held", "retrying", "cancelled")
"""Of these, the jobs that have a key, in a queue of their own."""
OPTIONS = Options(tags=("tag",), timeout=30)
ROUNDS = int(os.environ.get("JOBPIPE_TEST_DAMAGE", "25"))
"""How many stores the thorough form damages; each has `2 * len(STATES)` damaged jobs."""


@asynccontextmanager
async def damageable(kind: str, folder: Path) -> AsyncIterator[tuple[Store, Damager]]:
    """A store, and somebody who damages it."""
    if kind == "memory":
        async with open_memory() as memory:
            yield memory, SqliteDamager(memory._db)
    elif kind == "sqlite":
        async with open_sqlite(folder / "jobs.db", sync="normal") as store:
            yield store, SqliteDamager(apsw.Connection(str(folder / "jobs.db")))
    else:
        with new_schema() as schema:
            async with open_postgres(with_query(server_url(), schema=schema), leases="caller") as shared:
                damager = PostgresDamager(server_url(), schema)
                with damager.db:
                    yield shared, damager


def job(name: str, **changes: Any) -> Any:
    """A job of the kind `play`, made before the node starts."""
    usual = {
        "kind": "play",
        "payload": b'"tell, and end"',
        "created_at": BEFORE,
        "run_at": BEFORE,
        "options": OPTIONS,
    }
    return new_job(name, **(usual | changes))


def settled(one: Claimed, status: Status, outcome: Outcome) -> Settlement:
    error = None if outcome is Outcome.DONE else JobError("ValueError", "no luck", "Traceback")
    return Settlement(
        seq=one.seq,
        id=one.id,
        queue=one.queue,
        claim=one.claim,
        outcome=outcome,
        status=status,
        attempt=1,
        number=1,
        run_at=BEFORE + 30 if status is Status.RETRYING else None,
        started_at=BEFORE + 1,
        settled_at=BEFORE + 2,
        result=b"1" if outcome is Outcome.DONE else None,
        error=error,
    )


def said(one: Claimed) -> Note:
    lines = [LogLine(number, BEFORE + 1, "info", "hello", b'{"n":1}') for number in (1, 2)]
    progress = Progress(0.5, "half", BEFORE + 1)
    return Note(seq=one.seq, id=one.id, claim=one.claim, attempt=1, progress=progress, lines=lines)


async def filled(store: Store, copies: int) -> dict[str, str]:
    """Jobs in every status, half of them to be damaged, in a queue with settings; returns their states by id."""
    await store.join("dead", BEFORE, BEFORE + 5)
    await store.put_queue("default", QueueSettings(keep_done=1e6, keep_failed=1e6))
    await store.pause("other", "for a while", NOW + 3600)
    states = {
        f"{which}-{state}-{number}": state
        for state in STATES
        for which in ("bad", "good")
        for number in range(copies)
    }
    times = {
        "scheduled": {"run_at": NOW + 3600},
        "due": {"run_at": BEFORE + 10},
        "expiring": {"expires_at": BEFORE + 10, "run_at": BEFORE + 5},
        "expired": {"expires_at": BEFORE + 0.5, "run_at": BEFORE + 0.2},
    }
    merged = {one: state for one, state in states.items() if state in MERGING}
    taken = [
        one
        for one, state in states.items()
        if state in ("held", "running", "cancelling", "retrying", "done", "failed")
    ]
    keyed = {"queue": "keyed", "options": msgspec.structs.replace(OPTIONS, key="k")}
    new = {
        one: job(one, **times.get(state, {}), **(keyed if state in KEYED else {}))
        for one, state in states.items()
    }
    await store.exchange(Batch(node="dead", now=BEFORE, adds=[Add([new[one] for one in taken])]))
    claimed = (
        await store.exchange(
            Batch(node="dead", now=BEFORE, claims=[ClaimRequest(limit=len(taken), kinds=frozenset({"play"}))])
        )
    ).claimed
    assert len(claimed) == len(taken)
    begun = [one for one in claimed if states[one.id] != "held"]
    ends = {
        "retrying": (Status.RETRYING, Outcome.RETRY),
        "done": (Status.DONE, Outcome.DONE),
        "failed": (Status.FAILED, Outcome.FAIL),
    }
    await store.exchange(
        Batch(
            node="dead",
            now=BEFORE + 2,
            starts=[Start(one.seq, one.claim, 1, BEFORE + 1) for one in begun],
            notes=[said(one) for one in begun],
            settlements=[settled(one, *ends[states[one.id]]) for one in begun if states[one.id] in ends],
            adds=[Add([new[one] for one in states if one not in taken and one not in merged])],
        )
    )
    await store.add_dependents(
        [
            job(one, run_at=NOW + 3600, options=replace(OPTIONS, **merging_of(one, MERGING[state])))
            for one, state in merged.items()
        ],
        atomic=True,
    )
    await store.cancel(
        [one for one, state in states.items() if state in ("cancelled", "cancelling")], BEFORE + 3
    )
    await store.note_kept(NOW, Retention(done_age=1e6, failed_age=1e6, jobs=10**6, size=10**12))
    return states


MERGING: dict[str, Unique | Throttle | Debounce] = {
    "unique": Unique("", ("kind",), ("queued", "running"), 60.0, "replace"),
    "throttled": Throttle("", 60.0, trailing=True),
    "debounced": Debounce("", 3600.0, 36_000.0),
}


def merging_of(job_id: str, merging: Unique | Throttle | Debounce) -> dict[str, Any]:
    """What a job asks for, with a key of its own."""
    names = {Unique: "unique", Throttle: "throttle", Debounce: "debounce"}
    return {names[type(merging)]: replace(merging, key=job_id)}


SOUND_ENDS = {
    "failed": "failed",
    "cancelled": "cancelled",
    "cancelling": "cancelled",
    "expired": "expired",
    "expiring": "expired",
    "scheduled": "scheduled",
    "unique": "scheduled",
    "debounced": "scheduled",
}
"""What becomes of sound jobs that are not `done` in the end."""


class Caller:
    """Calls every route of the API, and gathers what answers with a fault of jobpipe."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.wrong: list[str] = []

    async def call(self, method: str, path: str, **more: Any) -> None:
        response = await self._door.request(method, path, **more)
        if response.status_code >= 500 and path != "/health":
            self.wrong.append(f"{method} {path}: {response.status_code} {response.text[:300]}")
        elif response.content and "ndjson" not in response.headers["content-type"]:
            response.json()

    async def read(self, ids: list[str]) -> None:
        for query in QUERIES:
            await self.call("GET", f"/jobs?{query}")
        for job_id in ids:
            await self.call("GET", f"/jobs/{job_id}")
            await self.call("GET", f"/jobs/{job_id}/log?limit=1000")
        await self.call("GET", "/queues")
        await self.call("GET", "/health")

    async def change(self, job_id: str, act: str) -> None:
        again = {"id": job_id, "kind": "play", "payload": "tell, and end"}
        match act:
            case "delete":
                await self.call("DELETE", f"/jobs/{job_id}")
            case "enqueue":
                await self.call("POST", "/enqueue", json=again)
            case "stream":
                body = msgspec.json.encode(again)
                await self.call("POST", "/enqueue/bulk", content=body, headers=NDJSON)
            case "merge":
                asked = {"kind": "play", "payload": "tell, and end"}
                unique = {"key": job_id, "on_conflict": "replace"}
                debounce = {"key": job_id, "wait": 3600}
                throttle = {"key": job_id, "every": 3600, "trailing": True}
                for one in ({"unique": unique}, {"debounce": debounce}, {"throttle": throttle}):
                    await self.call("POST", "/enqueue", json=asked | one)
            case "bulk":
                await self.call("POST", "/enqueue/bulk", json=[again, {"id": f"{job_id}-too"}])
            case _:
                await self.call("POST", f"/jobs/{job_id}/{act}")


NDJSON = {"content-type": "application/x-ndjson"}
QUERIES = [
    *("", "payload=true", "text=luck", "kind=play&payload=true", "queue=default", "tag=tag", "limit=3"),
    *(f"status={status}&payload=true" for status in Status),
]
ACTS = ["cancel", "retry", "promote", "delete", "enqueue", "stream", "bulk", "merge"]


async def live_through(store: Store, damager: Damager, seed: int, copies: int = 1) -> tuple[int, list[str]]:
    """Damage a store and live on with it; returns how many rows were damaged, and what went wrong."""
    chance = random.Random(seed)
    states = await filled(store, copies)
    bad = [one for one in states if one.startswith("bad")]
    harm = [damager.harm_job(one, chance) for one in bad for _ in range(chance.randint(1, 3))]
    harm += [damager.harm_others(chance) for _ in range(8)]
    done = [one for one in harm if one is not None]
    async with open_door(store, max_backlog=10_000_000) as door:
        caller = Caller(door)
        for _ in range(2):
            await caller.read(bad)
            for job_id in chance.sample(bad, len(bad) // 3):
                await caller.change(job_id, chance.choice(ACTS))
            for job_id in (one for one in bad if states[one] in MERGING):
                await caller.change(job_id, "merge")
        wrong = [f"{one} is {await store.get(one)}" for one in await left_after(20, store, states)]
        await caller.read(bad)
        new = await door.enqueue(id="new", kind="play", payload="y")
        if new.status_code != 202 or (await door.ended("new"))["status"] != "done":
            wrong.append(f"a new job: {new.text}")
        await store.prune(NOW + 10, Retention(0, 0, 0, 0))
        await caller.read(bad[:4])
        if door.node.phase != "running":
            wrong.append(f"the node is {door.node.phase}")
    return len(done), [f"seed {seed}: {one}\n  after {done}" for one in (*caller.wrong, *wrong)]


async def left_after(seconds: float, store: Store, states: dict[str, str]) -> list[str]:
    """The sound jobs that have not ended as they should; waits for them so long at the most."""
    left = [one for one in states if one.startswith("good")]
    with trio.move_on_after(seconds):
        while left:
            left = [one for one in left if not await _is_well(store, one, states[one])]
            await trio.sleep(0.02)
    return left


async def _is_well(store: Store, job_id: str, state: str) -> bool:
    job = await store.get(job_id)
    return job is not None and job.status == SOUND_ENDS.get(state, "done")


@pytest.mark.parametrize("kind", ["memory", "postgres", "sqlite"])
async def test_a_damaged_row_costs_its_own_job_alone(kind, tmp_path) -> None:
    """A few dozen rows of each store."""
    async with damageable(kind, tmp_path) as (store, damager):
        damaged, wrong = await live_through(store, damager, seed=1)

    assert wrong == []
    assert damaged > len(STATES) / 2


@pytest.mark.faults
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("kind", ["memory", "postgres", "sqlite"])
async def test_a_thousand_damaged_rows_cost_their_own_jobs_alone(kind, part, tmp_path) -> None:
    """Many stores, each damaged in another way."""
    damaged = 0
    wrong: list[str] = []
    for seed in range(part, ROUNDS, 4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        async with damageable(kind, folder) as (store, damager):
            number, faults = await live_through(store, damager, seed=1000 + seed, copies=2)
            damaged, wrong = damaged + number, wrong + faults

    assert wrong == []
    print(f"{damaged} damaged rows of {kind}")  # noqa: T201 - the thorough form says how thorough it was
