"""Looks at jobs that run on another node of the same PostgreSQL."""

from typing import Any

import pytest
import trio

from jobpipe.engine import looks
from jobpipe.store.base import Notification, Retention
from jobpipe.store.postgres import open_postgres
from jobpipe.store.postgres.notifications import news
from tests.api.client import open_door
from tests.store.server import ask, server_url, with_query
from tests.store.test_contract import NOW
from tests.store.test_postgres_news import listening

pytestmark = pytest.mark.long

ELSEWHERE = (("none", 1),)
"""The queues of a node that only asks: what runs, runs on the other one."""


async def _running(door: Any, **job: Any) -> None:
    await door.enqueue(id="a", **job)
    await door.stage.begun.wait()


async def test_a_job_is_looked_at_from_another_node(schema: str) -> None:
    """The same is seen there; and once it has ended, that it has."""
    url = with_query(server_url(), schema=schema)
    async with (
        open_postgres(url) as store,
        open_postgres(url) as far,
        open_door(store, name="here", queues=ELSEWHERE) as here,
        open_door(far, name="there") as there,
    ):
        with trio.fail_after(60):
            while not (store.listening and far.listening):  # noqa: ASYNC110 - nobody else is told
                await trio.sleep(0.02)
        await _running(there, kind="family", payload=5)
        with trio.fail_after(60):
            while (first := await here.get("/jobs/a/stack")).status_code == 409:  # noqa: ASYNC110 - its start is written soon
                await trio.sleep(0.02)
        own = (await there.get("/jobs/a/stack")).json()
        ended = await there.post("/jobs/a/cancel?wait=10")
        gone = await here.get("/jobs/a/stack")

    assert first.status_code == 200, first.text
    assert (first.json()["node"], first.json()["tasks"]) == ("there", 6)
    assert [child["count"] for child in first.json()["tree"]["children"]] == [5]
    assert (own["node"], own["claim"], own["tasks"]) == ("there", first.json()["claim"], 6)
    assert ended.json()["status"] == "cancelled"
    assert (gone.status_code, gone.json()["code"]) == (409, "wrong_status")


async def test_a_node_that_has_died_or_is_silent_is_said_to_be(
    schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a problem of its own, instead of a wait without an end; garbage in the row is no answer."""
    monkeypatch.setattr(looks, "PATIENCE", 0.2)
    url = with_query(server_url(), schema=schema)
    async with (
        open_postgres(url) as store,
        open_postgres(url) as far,
        open_door(store, name="here", lease=60, queues=ELSEWHERE) as here,
        open_door(far, name="there", lease=60) as there,
    ):
        await _running(there, kind="play", payload="hold")
        with trio.fail_after(60):
            while (await here.get("/jobs/a")).json()["status"] != "running":  # noqa: ASYNC110 - soon
                await trio.sleep(0.02)
        monkeypatch.setattr(there.node.looks, "_answer_all", trio.lowlevel.checkpoint)
        silent = await here.get("/jobs/a/stack")
        path = f'set search_path to "{schema}"; '
        await trio.to_thread.run_sync(ask, path + "update looks set answer = '\\x7b'")
        garbled = await here.get("/jobs/a/stack")
        await trio.to_thread.run_sync(ask, path + "update nodes set lease_until = 1 where name = 'there'")
        await trio.to_thread.run_sync(ask, path + "update looks set answer = null")
        dead = await here.get("/jobs/a/stack")
        there.stage.release.set()

    for answer, why in ((silent, "has not answered"), (garbled, "has not answered"), (dead, "has died")):
        assert (answer.status_code, answer.json()["code"]) == (503, "node_silent")
        assert "'there'" in answer.json()["detail"]
        assert why in answer.json()["detail"]
        assert answer.headers["Retry-After"]


async def test_questions_and_answers_are_shared_for_a_second_and_kept_for_a_minute(schema: str) -> None:
    async with listening(schema, "one") as one, listening(schema, "other") as other:
        store, far = one.store, other.store
        lives = [await store.ask_look("a", 1, name, NOW) for name in ("other", "none")]
        assert await other.next() == Notification("asked", id="other")
        asked = await far.asked_looks("other"), await far.asked_looks("none")
        none_yet = await store.look("a", 1)
        await far.answer_look("a", 1, "none", b"of nobody")
        await far.answer_look("a", 1, "other", b"first")
        await far.answer_look("a", 1, "other", b"late")
        found = [await store.look("a", 1)]
        for now in (NOW + 1, NOW + 1.1, NOW - 5):
            await store.ask_look("a", 1, "other", now)
            found.append(await store.look("a", 1))
            await far.answer_look("a", 1, "other", b"next")
        left = []
        for now in (NOW + 50, NOW + 100):
            await store.prune(now, Retention(done_age=1, failed_age=1, jobs=1, size=1))
            left.append(await store.look("a", 1))

    assert lives == [True, False]
    assert asked == ([("a", 1)], [])
    assert none_yet is None
    assert found == [b"first", b"first", None, None]
    assert left == [b"next", None]


def test_notifications_of_looks_are_read_whatever_the_node_is_called() -> None:
    assert news("asked a b \x01") == [Notification("asked", id="a b \x01")]
    assert news("answered") == [Notification("answered")]
    assert news("answered a") is None
