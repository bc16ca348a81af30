"""Kinds over HTTP: what any live node serves is taken, others are refused, and what waits for a node is shown."""

import json

import pytest
import trio

from jobpipe.engine.served import FRESH
from tests.api.client import open_door

HOUR = 3600
OTHER = frozenset({"mail", "other.kind"})


async def join(door, kinds=OTHER):
    """Another node joins, with handlers that this one lacks."""
    now = door.node.clock.now()
    await door.store.join("n2", now, now + HOUR, kinds)


async def test_a_kind_that_another_live_node_serves_is_taken(either_door):
    """Its payload is not checked."""
    refused = await either_door.enqueue(kind="other.kind")
    await join(either_door)
    taken = await either_door.enqueue(id="a", kind="other.kind", payload={"any": ["thing"]})
    await either_door.store.leave("n2")
    told = (await either_door.get("/health")).json()
    with trio.fail_after(60):
        while not told["unserved"]:  # jobs are counted again after a moment
            await trio.sleep(FRESH)
            told = (await either_door.get("/health")).json()

    assert refused.status_code == 422
    assert taken.status_code == 202
    assert (taken.json()["status"], taken.json()["max_retries"]) == ("queued", 3)
    assert (await either_door.get("/health")).status_code == 200
    assert [(one["kind"], one["jobs"], one["since"]) for one in told["unserved"]] == [
        ("other.kind", 1, taken.json()["run_at"])
    ]
    assert (await either_door.get("/queues")).json()["unserved"] == told["unserved"]


async def test_a_handler_of_this_node_checks_whatever_others_serve(door):
    await join(door)

    assert (await door.enqueue(kind="mail", payload={"to": "nobody"})).status_code == 422


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "ecko",
            "no live node has a handler for 'ecko'; did you mean 'echo'? served are demo, echo, family, mail, play",
        ),
        (
            "nothing.like.it",
            "no live node has a handler for 'nothing.like.it'; served are demo, echo, family, mail, play",
        ),
    ],
)
async def test_a_kind_that_no_live_node_serves_is_refused_with_the_name_that_may_be_meant(door, kind, words):
    answer = await door.enqueue(kind=kind)

    assert answer.status_code == 422
    assert answer.json()["faults"] == [{"pointer": "/kind", "detail": words}]


async def test_of_many_kinds_a_refusal_names_a_few(door):
    await join(door, frozenset(f"k{number:03}" for number in range(100)))
    detail = (await door.enqueue(kind="nobody")).json()["faults"][0]["detail"]

    assert detail.endswith(" and 85 more")
    assert len(detail) < 300


async def test_an_array_and_a_stream_take_the_kinds_of_other_nodes(door):
    await join(door)
    array = await door.post("/enqueue/bulk", json=[{"id": "a", "kind": "other.kind"}, {"id": "b"}])
    await trio.sleep(1)
    lines = [{"id": "c", "kind": "other.kind"}, {"id": "d", "kind": "no.such"}, {"id": "e"}]
    stream = await door.post(
        "/enqueue/bulk",
        content=b"".join(json.dumps(line).encode() + b"\n" for line in lines),
        headers={"Content-Type": "application/x-ndjson"},
    )
    answers = [json.loads(line) for line in stream.text.splitlines()]

    assert (array.status_code, array.json()) == (
        202,
        {"enqueued": 2, "existing": 0, "replaced": 0, "rejected": 0},
    )
    assert [answer.get("id") or answer["faults"][0]["pointer"] for answer in answers] == ["c", "/kind", "e"]


async def test_an_array_of_unknown_kinds_asks_the_store_once(door, monkeypatch):
    asked = []
    kinds = door.store.kinds

    async def counted():
        asked.append(trio.current_time())
        return await kinds()

    monkeypatch.setattr(door.store, "kinds", counted)
    answer = await door.post("/enqueue/bulk", json=[{"kind": f"k{number}"} for number in range(50)])

    assert (answer.status_code, len(answer.json()["faults"])) == (422, 50)
    assert len(asked) <= 2  # one of them may be the look that comes every few seconds


async def test_a_retry_of_a_kind_that_is_gone_is_accepted_and_waits(door):
    await join(door)
    await door.enqueue(id="a", kind="other.kind")
    await door.post("/jobs/a/cancel")
    await door.store.leave("n2")
    retried = await door.post("/jobs/a/retry")

    assert (retried.status_code, retried.json()["status"]) == (202, "queued")
    assert (await door.get("/jobs/a")).json()["attempts"] == []
    assert (await door.delete("/jobs/a")).status_code == 204


async def test_health_is_not_broken_by_jobs_that_this_node_cannot_run(door, autojump_clock):
    """They are ready and workers are idle, but they are not for this intake to take."""
    await join(door)
    for number in range(3):
        await door.enqueue(id=f"a{number}", kind="other.kind")
    answer = await door.get("/health")

    assert (answer.status_code, answer.json()["status"], answer.json()["queued"]) == (200, "ok", 3)
    assert answer.json()["unserved"] == []


async def test_a_kind_is_not_refused_while_the_store_does_not_answer(door, monkeypatch):
    """Nobody can say whether a node serves it: 503, not 422."""
    from jobpipe.errors import StoreUnavailable  # noqa: PLC0415 - the only use

    async def gone():
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(door.store, "kinds", gone)

    assert (await door.enqueue(kind="no.such")).status_code == 503


async def test_without_unserved_jobs_the_lists_are_empty():
    async with open_door() as door:
        assert (await door.get("/health")).json()["unserved"] == []
        assert (await door.get("/queues")).json() == {"queues": [], "next_cursor": None, "unserved": []}
