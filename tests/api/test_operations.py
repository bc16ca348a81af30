"""`/jobs/cancel` and its like, for all jobs that a filter means; `/operations`; filters in queries and in JSON."""

import pytest
import trio

from jobpipe.engine import operations
from jobpipe.store.sqlite import open_sqlite
from tests.api.client import open_door


async def fill(door, count=3, **more):
    """Jobs that wait for long."""
    for number in range(count):
        await door.enqueue(id=f"j{number}", **({"delay": 1e6} | more))


async def status(door, job_id):
    return (await door.get(f"/jobs/{job_id}")).json()["status"]


async def test_many_jobs_are_cancelled_at_once(door, autojump_clock):
    """200 with what came of it, and where it is found."""
    await fill(door)
    await door.enqueue(id="other", queue="mail", delay=1e6)
    answer = await door.post("/jobs/cancel", json={"filter": {"queue": "default", "status": "scheduled"}})
    told = answer.json()

    assert answer.status_code == 200
    assert answer.headers["Location"] == f"/operations/{told['id']}"
    assert (told["verb"], told["state"]) == ("cancel", "done")
    assert (told["matched"], told["changed"], told["refused"]) == (3, 3, 0)
    assert told["filter"] == {"status": ["scheduled"], "queue": ["default"]}
    assert [await status(door, one) for one in ("j0", "j1", "j2", "other")] == ["cancelled"] * 3 + [
        "scheduled"
    ]
    assert (await door.get(answer.headers["Location"])).json() == told
    assert (await door.get("/operations")).json() == {"operations": [told], "next_cursor": None}


async def test_a_dry_run_counts_and_does_nothing(door, autojump_clock):
    await fill(door)
    answer = await door.post("/jobs/delete", json={"filter": {"queue": ["default", "mail"]}, "dry_run": True})

    assert (answer.status_code, answer.json()) == (200, {"matched": 3, "exact": True})
    assert await status(door, "j0") == "scheduled"
    assert (await door.get("/operations")).json()["operations"] == []


async def test_a_count_that_takes_long_says_at_least_how_many(door, autojump_clock, monkeypatch):
    monkeypatch.setattr(operations, "PAGE", 2)
    monkeypatch.setattr(operations, "COUNTED", 0.0)
    await fill(door)
    answer = await door.post("/jobs/retry", json={"filter": {"queue": "default"}, "dry_run": True})

    assert answer.json() == {"matched": 2, "exact": False}


async def test_an_operation_with_a_rate_takes_its_time(door, autojump_clock):
    """202 at once; it can be waited for, and it is watched on its way."""
    await fill(door, 5)
    begun = trio.current_time()
    answer = await door.post("/jobs/promote", json={"filter": {"tag": "t", "queue": "default"}, "rate": 1})
    none = answer.json()
    answer = await door.post("/jobs/promote", json={"filter": {"queue": "default"}, "rate": 1})
    soon = await door.get(answer.headers["Location"])
    later = await door.get(answer.headers["Location"] + "?wait=60")
    took = trio.current_time() - begun

    assert (none["state"], none["matched"]) == ("done", 0)
    assert (answer.status_code, soon.json()["state"], later.json()["state"]) == (202, "running", "done")
    assert soon.json()["changed"] < 5 == later.json()["changed"]
    assert 3.5 < took < 8


async def test_an_operation_is_stopped(door, autojump_clock):
    await fill(door, 5)
    answer = await door.post("/jobs/cancel", json={"filter": {"queue": "default"}, "rate": 1})
    stopped = await door.post(answer.headers["Location"] + "/stop")
    await trio.sleep(30)
    later = await door.get(answer.headers["Location"])
    none = await door.get("/operations/none")

    assert (stopped.status_code, stopped.json()["state"]) == (200, "stopped")
    assert later.json() == stopped.json()
    assert 0 < later.json()["changed"] < 5
    assert await status(door, "j0") == "scheduled"
    assert (none.status_code, none.json()["code"]) == (404, "no_such_operation")


async def test_running_jobs_are_cancelled_too(door, autojump_clock):
    """They are asked to stop, as one is."""
    await door.enqueue(id="a", kind="demo", payload={"shortest": 1000, "longest": 1000, "fail": 0})
    await trio.sleep(1)
    answer = await door.post("/jobs/cancel", json={"filter": {"status": ["running", "queued"]}})
    job = await door.ended("a")

    assert (answer.json()["changed"], job["status"]) == (1, "cancelled")


async def test_failed_jobs_are_retried_by_the_type_of_their_error(door, autojump_clock):
    await door.enqueue(id="a", kind="play", payload="fail", max_retries=0)
    await door.ended("a")
    failed = (await door.get("/jobs/a")).json()
    kind = failed["error"]["type"]
    found = (await door.get(f"/jobs?error_type={kind}&error_type=KeyError")).json()["jobs"]
    none = await door.post("/jobs/retry", json={"filter": {"error_type": "KeyError"}})
    answer = await door.post("/jobs/retry", json={"filter": {"error_type": [kind], "kind": "pl*"}})

    assert [job["id"] for job in found] == ["a"]
    assert (none.json()["matched"], answer.json()["changed"]) == (0, 1)


async def test_jobs_are_moved_and_edited(door, autojump_clock):
    await fill(door)
    moved = await door.post("/jobs/move", json={"filter": {"queue": "default"}, "queue": "slow"})
    changes = {"priority": 7, "tags": ["t"], "payload": {"n": 1}, "timeout": "5m", "run_at": None}
    edited = await door.post("/jobs/edit", json={"filter": {"id": ["j0", "j1"]}, "changes": changes})
    job = (await door.get("/jobs/j0")).json()

    assert (moved.json()["changed"], edited.json()["changed"]) == (3, 2)
    assert edited.json()["changes"] == ["payload", "priority", "run_at", "tags", "timeout"]
    assert (job["queue"], job["priority"], job["tags"], job["payload"], job["timeout"]) == (
        "slow",
        7,
        ["t"],
        {"n": 1},
        300,
    )
    assert await status(door, "j2") == "scheduled"


async def test_no_job_is_moved_into_a_closed_queue(either_door):
    await either_door.put("/queues/shut", json={"closed": True})
    for path, more in (("/jobs/move", {"queue": "shut"}), ("/jobs/edit", {"changes": {"queue": "shut"}})):
        answer = await either_door.post(path, json={"filter": {"queue": "default"}} | more)
        assert (answer.status_code, answer.json()["code"]) == (409, "queue_closed")


@pytest.mark.parametrize(
    ("path", "body", "pointers"),
    [
        ("/jobs/cancel", {}, ["/filter"]),
        ("/jobs/cancel", {"filter": {}}, ["/filter"]),
        ("/jobs/cancel", {"filter": {"status": "gone"}}, ["/filter/status"]),
        ("/jobs/cancel", {"filter": {"status": ["done", "gone"]}}, ["/filter/status/1"]),
        ("/jobs/cancel", {"filter": {"state": "done"}}, ["/filter/state"]),
        ("/jobs/cancel", {"filter": {"kind": "a*b"}}, ["/filter/kind"]),
        ("/jobs/cancel", {"filter": {"queue": []}}, ["/filter/queue"]),
        ("/jobs/cancel", {"filter": {"created_after": "today"}}, ["/filter/created_after"]),
        ("/jobs/cancel", {"filter": {"id": "a"}, "rate": 0}, ["/rate"]),
        ("/jobs/cancel", {"filter": {"id": "a"}, "queue": "b"}, ["/queue"]),
        ("/jobs/move", {"filter": {"id": "a"}}, ["/queue"]),
        ("/jobs/edit", {"filter": {"id": "a"}}, ["/changes"]),
        ("/jobs/edit", {"filter": {"id": "a"}, "changes": {}}, ["/changes"]),
        ("/jobs/edit", {"filter": {"id": "a"}, "changes": {"priority": 1e9}}, ["/changes/priority"]),
        ("/jobs/edit", {"filter": {"id": "a"}, "changes": {"delay": 1}}, ["/changes/delay"]),
    ],
)
async def test_what_cannot_be_done_is_refused(either_door, path, body, pointers):
    answer = await either_door.post(path, json=body)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert [fault["pointer"] for fault in answer.json()["faults"]] == pointers
    assert (await either_door.get("/operations")).json()["operations"] == []


async def test_a_query_takes_several_values_of_a_filter(either_door):
    """Where one of them applies; other parameters are given once."""
    for number, queue in enumerate(("a", "b", "c")):
        await either_door.enqueue(id=f"j{number}", queue=queue, delay=1000)
    found = await either_door.get("/jobs?queue=a&queue=c&status=scheduled&status=done&kind=*")
    one = await either_door.get("/jobs?id=j1&kind=e*")
    wrong = await either_door.get("/jobs?queue=a&queue=-&status=odd&text=a&text=b")

    assert [job["id"] for job in found.json()["jobs"]] == ["j2", "j0"]
    assert [job["id"] for job in one.json()["jobs"]] == ["j1"]
    assert [fault["pointer"] for fault in wrong.json()["faults"]] == ["?queue", "?status", "?text"]


async def test_jobs_are_found_by_their_group_and_their_key(either_door):
    members = [{"id": "a", "key": "acme"}, {"id": "b", "key": "bell"}]
    await either_door.post("/groups", json={"id": "g", "jobs": [job | {"delay": 1000} for job in members]})
    await either_door.enqueue(id="c", key="acme", delay=1000)
    group = await either_door.get("/jobs?group=g&group=h")
    key = await either_door.get("/jobs?key=acme&key=other")
    both = await either_door.get("/jobs?group=g&key=bell")
    changes = {"key": None, "priority": 3}
    where = {"group": "g", "key": ["acme", "bell"]}
    edited = await either_door.post("/jobs/edit", json={"filter": where, "changes": changes})
    left = await either_door.get("/jobs?key=acme&key=bell")

    found = [[job["id"] for job in one.json()["jobs"]] for one in (group, key, both, left)]
    assert found == [["b", "a"], ["c", "a"], ["b"], ["c"]]
    assert edited.json()["filter"] == {"group": ["g"], "key": ["acme", "bell"]}
    assert (edited.json()["changed"], edited.json()["changes"]) == (2, ["key", "priority"])


async def test_ended_jobs_are_found_by_when_they_ended(door, autojump_clock):
    await door.enqueue(id="a")
    ended = (await door.ended("a"))["finished_at"]
    await trio.sleep(5)
    await door.enqueue(id="b")
    await door.ended("b")
    await door.enqueue(id="waits", delay=1000)
    after = (await door.get(f"/jobs?ended_after={ended}")).json()["jobs"]
    before = (await door.get(f"/jobs?ended_before={ended}")).json()["jobs"]
    node = (await door.get(f"/jobs?node={door.node.name}&node=other")).json()["jobs"]

    assert [[job["id"] for job in jobs] for jobs in (after, before, node)] == [["b", "a"], [], ["b", "a"]]


async def test_an_operation_goes_on_after_a_restart(tmp_path):
    """From where it stood; the node that was about it does not come back."""
    async with open_sqlite(tmp_path / "jobs.db", sync="normal") as store, open_door(store=store) as door:
        await fill(door, 4)
        answer = await door.post("/jobs/cancel", json={"filter": {"queue": "default"}, "rate": 2})
    async with (
        open_sqlite(tmp_path / "jobs.db", sync="normal") as store,
        open_door(store=store, lease=3) as door,
    ):
        with trio.fail_after(30):
            told = (await door.get(answer.headers["Location"] + "?wait=25")).json()
        left = (await door.get("/jobs?status=scheduled")).json()["jobs"]

    assert answer.status_code == 202
    assert (told["state"], told["changed"], left) == ("done", 4, [])


async def test_operations_come_in_pages(either_door):
    ids = []
    for _ in range(5):
        answer = await either_door.post("/jobs/cancel", json={"filter": {"id": "none"}})
        ids.append(answer.json()["id"])
    first = (await either_door.get("/operations?limit=3")).json()
    rest = (await either_door.get(f"/operations?limit=3&cursor={first['next_cursor']}")).json()
    wrong = await either_door.get("/operations?cursor=x")

    assert sorted(one["id"] for one in first["operations"] + rest["operations"]) == sorted(ids)
    assert (len(first["operations"]), rest["next_cursor"], wrong.status_code) == (3, None, 422)


async def test_a_job_may_have_the_name_of_a_verb(either_door):
    await either_door.enqueue(id="cancel", delay=1000)

    assert (await either_door.get("/jobs/cancel")).json()["id"] == "cancel"
    assert (await either_door.post("/jobs/cancel/cancel")).json()["status"] == "cancelled"
