"""What the API answers where a row is damaged, or where something happens that nobody foresaw."""

import json

import apsw
import pytest
from structlog.testing import capture_logs

from jobpipe.api.schemas import EARLIEST, rfc3339
from jobpipe.engine.unforeseen import UNFORESEEN
from jobpipe.job import LATEST
from jobpipe.store.memory import MemoryStore
from tests.api.client import open_door


class Choosy(MemoryStore):
    """A store that chokes on jobs whose id begins with `bad`."""

    async def exchange(self, batch):
        if any(job.id.startswith("bad") for add in batch.adds for job in add.jobs):
            raise OverflowError("too large")
        return await super().exchange(batch)


async def test_a_request_that_meets_what_nobody_foresaw_answers_500():
    """The log has the traceback, and the next request is served."""
    with capture_logs() as log:
        async with open_door(Choosy()) as door:
            bad = await door.enqueue(id="bad")
            good = await door.enqueue(id="good")
            array = await door.post("/enqueue/bulk", json=[{"id": "other"}, {"id": "bad"}])
            stored = await door.stored()

    assert [bad.status_code, good.status_code, array.status_code] == [500, 202, 500]
    assert bad.json()["code"] == "internal"
    assert stored == 1
    assert {line["event"] for line in log if line["log_level"] == "error"} == {UNFORESEEN, "a request failed"}


async def test_a_line_of_a_stream_that_cannot_be_stored_costs_itself_alone():
    """Its answer says so; the lines before and after it are stored."""
    lines = [{"id": "a"}, {"id": "bad-1"}, {"id": "b"}, {"id": "c"}, {"id": "bad-2"}]
    body = b"\n".join(json.dumps(line).encode() for line in lines)
    with capture_logs() as log:
        async with open_door(Choosy()) as door:
            answers = await door.post(
                "/enqueue/bulk", content=body, headers={"content-type": "application/x-ndjson"}
            )
            stored = await door.stored()

    told = [json.loads(line) for line in answers.text.splitlines()]
    assert [one.get("id") or (one["code"], one["line"]) for one in told] == [
        "a",
        ("internal", 2),
        "b",
        "c",
        ("internal", 5),
    ]
    assert stored == 3
    assert [line["job"] for line in log if line["event"].startswith("a line of a stream")] == [
        "bad-1",
        "bad-2",
    ]


DEEP = b"[" * 100_000 + b"]" * 100_000
"""Deeper than any Python reads: 3.11 reads 990 levels, 3.13 about 10,000."""


@pytest.mark.parametrize(
    ("column", "value", "shown", "words"),
    [
        ("payload", b"{", {"payload": None}, "its payload is not JSON"),
        ("payload", b'"\xff"', {"payload": None}, "its payload is not JSON"),
        ("payload", DEEP, {"payload": None}, "its payload is not JSON"),
        ("result", b"", {"result": None}, "its result is not JSON"),
        ("options", b'{"tags":1}', {"tags": []}, "its options cannot be read"),
        ("error", b"[]", {}, "its error cannot be read"),
        ("original", b"{}", {}, "its first request cannot be read"),
        ("status", "odd", {"status": "failed"}, "its status cannot be read"),
        ("run_at", 1e300, {"run_at": "9999-12-31T23:59:59.999Z"}, "its run_at is no time"),
        ("created_at", -1e300, {"created_at": "0001-01-01T00:00:00.000Z"}, "its created_at is no time"),
        ("expires_at", float("inf"), {"expires_at": "9999-12-31T23:59:59.999Z"}, "its expires_at is no time"),
        ("finished_at", -float("inf"), {"finished_at": "0001-01-01T00:00:00.000Z"}, "its finished_at"),
        ("kind", b"caf\xe9", {"kind": "caf\ufffd"}, None),
    ],
)
async def test_what_of_a_damaged_row_can_be_shown_is_shown(column, value, shown, words):
    """By itself and in lists, beside sound jobs; the error says what cannot."""
    async with open_door() as door:
        await door.enqueue(id="a", delay=1000)
        await door.enqueue(id="sound", delay=1000)
        harm(door.store._db, column, value)
        one = await door.get("/jobs/a")
        listed = await door.get("/jobs?payload=true")
        found = await door.get("/jobs?text=sound")
        cancelled = await door.post("/jobs/a/cancel")
        deleted = await door.delete("/jobs/a")

    assert [answer.status_code for answer in (one, listed, found, deleted)] == [200, 200, 200, 204]
    assert cancelled.status_code in (200, 409)
    job = one.json()
    assert job == job | shown
    assert (job["error"] or {}).get("type") == (words and "DamagedRow")
    assert (words or "") in ((job["error"] or {}).get("message") or "")
    assert [job["id"] for job in listed.json()["jobs"]] == ["sound", "a"]
    assert [job["id"] for job in found.json()["jobs"]] == ["sound"]


def harm(db: apsw.Connection, column: str, value: object) -> None:
    db.execute("pragma ignore_check_constraints = on")
    text = isinstance(value, bytes) and column == "kind"
    db.execute(f"update jobs set {column} = {'cast(? as text)' if text else '?'} where id = 'a'", (value,))
    db.execute("pragma ignore_check_constraints = off")


async def test_an_error_of_a_job_is_told_beside_the_damage():
    """With its traceback."""
    async with open_door() as door:
        await door.enqueue(id="a", kind="play", payload="fail")
        await door.ended("a")
        harm(door.store._db, "payload", b"")
        error = (await door.get("/jobs/a")).json()["error"]

    assert error["type"] == "DamagedRow"
    assert error["message"].endswith("; its last error was Fail: as told")
    assert error["traceback"]


async def test_an_attempt_that_never_began_is_shown_without_a_start():
    """As one that was put aside for want of a handler."""
    async with open_door() as door:
        await door.enqueue(id="a", kind="play")
        await door.ended("a")
        door.store._db.execute(
            "insert into attempts (seq, claim, number, started_at, finished_at, outcome) "
            "values (1, 0, 1, null, 1, 'odd')"
        )
        first, last = (await door.get("/jobs/a")).json()["attempts"]

    assert (first["started_at"], first["outcome"], first["error"]["type"]) == (None, None, "DamagedRow")
    assert last["outcome"] == "done"


@pytest.mark.parametrize(
    ("column", "value", "status"),
    [
        ("run_at", 1e300, "done"),
        ("error", b"[]", "done"),
        ("options", b'{"tags":1}', "failed"),
    ],
)
async def test_a_job_with_a_damaged_row_can_be_promoted(column, value, status):
    """It runs as far as its row lets it."""
    async with open_door() as door:
        await door.enqueue(id="a", delay=1000)
        harm(door.store._db, column, value)
        promoted = await door.post("/jobs/a/promote")
        job = await door.ended("a")

    assert (promoted.status_code, job["status"]) == (200, status)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (LATEST, "9999-12-31T23:59:59.999Z"),
        (LATEST + 0.001, "9999-12-31T23:59:59.999Z"),
        (EARLIEST, "0001-01-01T00:00:00.000Z"),
        (EARLIEST - 0.001, "0001-01-01T00:00:00.000Z"),
        (float("nan"), "0001-01-01T00:00:00.000Z"),
        (-1.0, "1969-12-31T23:59:59.000Z"),
    ],
)
def test_every_number_of_seconds_is_shown_as_a_time(seconds, shown):
    """The first and the last that RFC 3339 can write, and beyond them these."""
    assert rfc3339(seconds) == shown


@pytest.mark.parametrize("count", [-1, 2**62])
async def test_counts_that_cannot_be_true_are_made_anew(count):
    """Else a damaged one would refuse every job, or have every ended one deleted."""
    store = MemoryStore()
    async with open_door(store) as door:
        await door.enqueue(id="a", delay=1000)
        await door.enqueue(id="b", kind="play")
        await door.ended("b")
    store._db.execute("update counts set jobs = ?1, size = ?1", (count,))
    with capture_logs() as log:
        async with open_door(store) as door:
            counts = (await door.get("/queues")).json()["queues"][0]["counts"]
            new = await door.enqueue(id="c", delay=1000)

    assert counts == {"scheduled": 1, "done": 1}
    assert new.status_code == 202
    assert [line["event"] for line in log if line["log_level"] == "error"] == [
        "the counts of jobs could not be true, and were made anew from the jobs"
    ]
