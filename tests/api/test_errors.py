"""`/errors`: failed jobs in groups, one for each error; how they are found and retried."""

import re

import pytest

from jobpipe.api.filters import plain_filter_from
from jobpipe.api.schemas import EventQuery
from jobpipe.job import JobError
from jobpipe.store.base import Summary
from jobpipe.store.matching import EventFilter

DEMO = {"kind": "demo", "payload": {"shortest": 0, "longest": 0, "fail": 1}}
"""A job that fails with another error."""


async def fail(door, job_id, **more):
    await door.enqueue(**({"id": job_id, "kind": "play", "payload": "fail", "max_retries": 0} | more))
    return await door.ended(job_id)


async def test_jobs_that_failed_with_the_same_error_are_one_group(door, autojump_clock):
    """Which error, where, how many, since when, and which jobs."""
    jobs = [await fail(door, f"j{number}") for number in range(5)]
    await fail(door, "other", **DEMO)
    listed = (await door.get("/errors")).json()
    error = jobs[0]["error"]
    other, group = listed["errors"]
    (one,) = [(await door.get(f"/errors/{error['fingerprint']}")).json()]

    assert re.fullmatch(r"1-[0-9a-f]{16}", error["fingerprint"])
    assert group == {
        "fingerprint": error["fingerprint"],
        "type": error["type"],
        "message": error["message"],
        "where": error["where"],
        "jobs": 5,
        "exact": True,
        "first_at": jobs[0]["finished_at"],
        "last_at": jobs[4]["finished_at"],
        "kinds": ["play"],
        "queues": ["default"],
        "examples": ["j4", "j3", "j2"],
    }
    assert one == group | {"examples": ["j4", "j3", "j2", "j1", "j0"], "traceback": one["traceback"]}
    assert one["traceback"].startswith("Traceback")
    assert (other["fingerprint"] == error["fingerprint"], other["jobs"]) == (False, 1)
    assert other["where"] == "jobpipe.handlers.demo.demo"
    assert (listed["complete"], listed["next_cursor"]) == (True, None)


async def test_a_group_is_found_and_retried_by_its_fingerprint(door, autojump_clock):
    jobs = [await fail(door, f"j{number}") for number in range(3)]
    fingerprint = jobs[0]["error"]["fingerprint"]
    found = (await door.get(f"/jobs?fingerprint={fingerprint}&fingerprint=none")).json()["jobs"]
    dry = await door.post("/jobs/retry", json={"filter": {"fingerprint": [fingerprint]}, "dry_run": True})
    answer = await door.post("/jobs/retry", json={"filter": {"fingerprint": fingerprint}, "rate": 10})
    gone = [await door.get(path) for path in (f"/errors/{fingerprint}", "/errors")]
    again = await door.ended("j0")

    assert [one["id"] for one in found] == ["j2", "j1", "j0"]
    assert dry.json() == {"matched": 3, "exact": True}
    assert (answer.json()["state"], answer.json()["changed"]) == ("done", 3)
    assert answer.json()["filter"] == {"fingerprint": [fingerprint]}
    assert (gone[0].status_code, gone[0].json()["code"]) == (404, "no_such_error")
    assert gone[1].json()["errors"] == []
    assert again["error"]["fingerprint"] == fingerprint


async def test_errors_are_listed_in_pages_and_of_a_time(door, autojump_clock):
    ends = [
        (await fail(door, job_id, **more))["finished_at"]
        for job_id, more in (("a", {}), ("b", DEMO), ("c", {}))
    ]
    first = (await door.get("/errors?limit=1")).json()
    second = (await door.get(f"/errors?limit=1&cursor={first['next_cursor']}")).json()
    within = (await door.get("/errors", params={"ended_after": ends[1], "ended_before": ends[2]})).json()
    fingerprint = first["errors"][0]["fingerprint"]
    one = await door.get(f"/errors/{fingerprint}", params={"ended_after": ends[2]})
    none = await door.get(f"/errors/{fingerprint}", params={"ended_after": "2999-01-01T00:00:00Z"})

    assert [page["errors"][0]["examples"] for page in (first, second)] == [["c", "a"], ["b"]]
    assert second["next_cursor"] is None
    assert [group["examples"] for group in within["errors"]] == [["b"]]
    assert (one.json()["jobs"], none.status_code) == (1, 404)


def test_events_are_filtered_by_fingerprint():
    """Those of jobs that have failed: an error from which a job recovers is of no group."""
    of_group = EventFilter(plain_filter_from(EventQuery(fingerprint=["1-x", "1-y"])))
    told = [
        of_group.means("a", status, _summary(JobError("E", "x", fingerprint=fingerprint)))
        for status, fingerprint in (("failed", "1-y"), ("failed", "1-z"), ("retrying", "1-y"))
    ]

    assert told == [True, False, False]
    assert not of_group.means("a", "failed", _summary(None))
    assert not of_group.means("a", "deleted", None)


def _summary(error):
    return Summary(
        seq=1,
        id="a",
        status=None,
        kind="k",
        queue="q",
        key=None,
        group=None,
        tags=(),
        attempt=1,
        node=None,
        error=error,
        finished_at=None,
    )


async def test_a_failure_that_no_handler_raised_has_a_group_of_its_kind(door, autojump_clock):
    """It was raised nowhere in the handler's code."""
    job = await fail(door, "a", kind="play", payload="hold", timeout=1)
    group = (await door.get(f"/errors/{job['error']['fingerprint']}")).json()

    assert job["error"]["type"] == "Timeout"
    assert "where" not in job["error"]
    assert (group["where"], group["traceback"], group["kinds"]) == (None, None, ["play"])


async def test_a_job_without_a_group_says_so(door, autojump_clock):
    """As those do that failed with an older version."""
    job = await fail(door, "a")

    async def harm(tx):
        tx.run("update jobs set fingerprint = null, error = :error where id = 'a'", {"error": b"{"})

    await door.node.store._transact(harm)
    shown = (await door.get("/jobs/a")).json()

    assert "fingerprint" in job["error"]
    assert "fingerprint" not in shown["error"]
    assert (await door.get("/errors")).json()["errors"] == []


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        ("/errors?limit=0", "?limit"),
        ("/errors?limit=101", "?limit"),
        ("/errors?cursor=!", "?cursor"),
        ("/errors?ended_after=today", "?ended_after"),
        ("/errors?kind=play", "?kind"),
        ("/errors/1-x?limit=1", "?limit"),
        ("/errors/-", "?fingerprint"),
        ("/jobs?fingerprint=", "?fingerprint"),
    ],
)
async def test_what_is_asked_wrongly_is_refused(door, path, pointer):
    answer = await door.get(path)

    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["faults"]] == [pointer]
