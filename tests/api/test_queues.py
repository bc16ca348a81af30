"""`/queues`: get and list queues, set what holds for them, pause, resume and delete them."""

import json

import pytest
import trio

from jobpipe.store.sqlite import open_sqlite
from tests.api.client import Breakable, open_door


async def queues(door):
    answer = await door.get("/queues")
    assert answer.status_code == 200
    return {queue["name"]: queue for queue in answer.json()["queues"]}


async def test_no_queue_was_used_yet(either_door):
    assert await queues(either_door) == {}


async def test_queues_are_listed_by_name_with_their_counts(either_door):
    await either_door.post("/queues/mail/pause")
    for job_id, more in (("b", {}), ("c", {"delay": 60}), ("d", {"delay": 60})):
        await either_door.enqueue(id=job_id, queue="mail", **more)
    await either_door.enqueue(id="a")
    await either_door.ended("a")

    told = await queues(either_door)

    assert list(told) == ["default", "mail"]
    assert (told["default"]["paused"], told["default"]["counts"]) == (False, {"done": 1})
    assert told["default"]["oldest_age"] is None
    assert (told["mail"]["paused"], told["mail"]["counts"]) == (True, {"queued": 1, "scheduled": 2})
    assert told["mail"]["oldest_age"] >= 0


async def test_the_age_is_how_long_the_oldest_ready_job_has_waited(door, autojump_clock):
    await door.post("/queues/default/pause")
    await door.enqueue(delay=10)
    await trio.sleep(30)
    await door.enqueue()
    await trio.sleep(5)

    assert (await queues(door))["default"]["oldest_age"] == 25


async def test_a_paused_queue_starts_nothing_until_it_is_resumed(door, autojump_clock):
    paused = await door.post("/queues/default/pause")
    await door.enqueue(id="a")
    await trio.sleep(60)
    waiting = (await door.get("/jobs/a")).json()["status"]
    resumed = await door.post("/queues/default/resume")
    job = await door.ended("a")

    assert (paused.status_code, paused.json()["name"], paused.json()["paused"]) == (200, "default", True)
    assert (resumed.status_code, resumed.json()["paused"]) == (200, False)
    assert (waiting, job["status"]) == ("queued", "done")


async def test_the_other_queues_go_on(door, autojump_clock):
    await door.post("/queues/mail/pause")

    await door.enqueue(id="a")

    assert (await door.ended("a"))["status"] == "done"


async def test_a_job_that_runs_goes_on_while_its_queue_is_paused(door, autojump_clock):
    await door.enqueue(id="a", kind="play", payload="hold")
    await door.stage.begun.wait()

    await door.post("/queues/default/pause")
    door.stage.release.set()

    assert (await door.ended("a"))["status"] == "done"


@pytest.mark.parametrize("verb", ["pause", "resume"])
async def test_to_ask_twice_changes_nothing_more(either_door, verb):
    first = await either_door.post(f"/queues/new/{verb}")
    again = await either_door.post(f"/queues/new/{verb}")

    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json() == again.json()
    assert (await queues(either_door))["new"]["paused"] == (verb == "pause")


async def test_a_paused_queue_stays_paused_over_a_restart(tmp_path):
    async with open_sqlite(tmp_path / "jobs.db", sync="normal") as store, open_door(store) as door:
        await door.post("/queues/mail/pause")

    async with open_sqlite(tmp_path / "jobs.db", sync="normal") as store, open_door(store) as door:
        assert (await queues(door))["mail"]["paused"] is True


@pytest.mark.parametrize("verb", ["pause", "resume"])
@pytest.mark.parametrize(
    "name", ["a%20b", ".a", "a%00", "a%0A", "%C3%A9", "a" * 101, "a%5Cb", "%2e%2e", "'--"]
)
async def test_a_name_that_no_queue_can_have_is_refused(either_door, verb, name):
    answer = await either_door.post(f"/queues/{name}/{verb}")

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert answer.headers["content-type"] == "application/problem+json"
    assert [fault["pointer"] for fault in answer.json()["faults"]] == ["?name"]
    assert await queues(either_door) == {}


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/queues"), ("POST", "/queues/a/pause"), ("POST", "/queues/a/resume")]
)
async def test_a_store_that_refuses_is_told_with_503(method, path):
    store = Breakable()
    async with open_door(store) as door:
        store.refuses = True
        answer = await door.request(method, path)
        store.refuses = False

        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert answer.headers["retry-after"] == "1"


# Pages


async def pages(door, limit):
    """The names of each page, to the end."""
    cursor, found = "", []
    while cursor is not None:
        page = (await door.get(f"/queues?limit={limit}{cursor and '&cursor=' + cursor}")).json()
        found.append([queue["name"] for queue in page["queues"]])
        cursor = page["next_cursor"]
    return found


async def test_a_cursor_leads_through_all_queues_once(either_door):
    """Also when the page is as long as the list, or one shorter or longer; queues that are only paused count."""
    for name in ("b", "d", "a"):
        await either_door.enqueue(queue=name, delay=60)
    for name in ("c", "e", "a"):
        await either_door.post(f"/queues/{name}/pause")

    assert await pages(either_door, 2) == [["a", "b"], ["c", "d"], ["e"]]
    assert await pages(either_door, 4) == [["a", "b", "c", "d"], ["e"]]
    assert await pages(either_door, 5) == [["a", "b", "c", "d", "e"]]
    assert await pages(either_door, 6) == [["a", "b", "c", "d", "e"]]


async def test_a_page_holds_a_hundred_queues_unless_asked(either_door):
    for number in range(101):
        await either_door.post(f"/queues/q{number:03}/pause")
    page = (await either_door.get("/queues")).json()

    assert len(page["queues"]) == 100
    assert page["next_cursor"] is not None


async def test_queues_that_come_and_go_do_not_disturb_a_cursor(either_door):
    for name in ("a", "b", "d"):
        await either_door.post(f"/queues/{name}/pause")
    page = (await either_door.get("/queues?limit=2")).json()
    await either_door.delete("/queues/b")
    await either_door.post("/queues/c/pause")
    rest = (await either_door.get(f"/queues?cursor={page['next_cursor']}")).json()

    assert [queue["name"] for queue in rest["queues"]] == ["c", "d"]


@pytest.mark.parametrize(
    ("query", "places"),
    [
        ("limit=0", ["?limit"]),
        ("limit=1001", ["?limit"]),
        ("cursor=", ["?cursor"]),
        ("cursor=MQ", ["?cursor"]),
    ],
)
async def test_a_wrong_page_is_refused(door, query, places):
    answer = await door.get(f"/queues?{query}")

    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["faults"]] == places


async def test_the_longest_page_is_taken(door):
    assert (await door.get("/queues?limit=1000")).status_code == 200


# Deleting


async def test_an_empty_queue_is_deleted_and_is_no_longer_paused(either_door):
    await either_door.post("/queues/mail/pause")
    answers = [await either_door.delete("/queues/mail") for _ in range(2)]
    await either_door.enqueue(id="a", queue="mail")

    assert [answer.status_code for answer in answers] == [204, 404]
    assert answers[1].json()["code"] == "no_such_queue"
    assert (await either_door.ended("a"))["status"] == "done"


@pytest.mark.parametrize(
    ("jobs", "held"),
    [([{}], "1 done job"), ([{}, {"delay": 60}, {"delay": 60}], "2 scheduled, 1 done jobs")],
)
async def test_a_queue_with_jobs_is_not_deleted(either_door, jobs, held):
    """The answer says what it still has; when the last job is deleted, it goes."""
    for number, job in enumerate(jobs):
        await either_door.enqueue(id=f"j{number}", queue="mail", **job)
    await either_door.ended("j0")
    refused = await either_door.delete("/queues/mail")
    for number in range(len(jobs)):
        await either_door.delete(f"/jobs/j{number}")
    deleted = await either_door.delete("/queues/mail")

    assert (refused.status_code, refused.json()["code"]) == (409, "queue_not_empty")
    assert refused.json()["detail"] == f"queue 'mail' still has {held}: delete those first"
    assert deleted.status_code == 204
    assert await queues(either_door) == {}


async def test_a_name_that_cannot_be_is_refused(door):
    assert (await door.delete("/queues/-")).status_code == 422


async def test_a_resumed_queue_is_shown_though_it_is_forgotten(door, monkeypatch):
    """A prune may come between the resume and the look."""

    async def forgotten(name):
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(door.store, "queue", forgotten)
    answer = await door.post("/queues/mail/resume")

    assert answer.json() == {
        "name": "mail",
        "paused": False,
        "reason": None,
        "paused_until": None,
        "closed": False,
        "keep": None,
        "max_running": None,
        "rate": None,
        "per_key": None,
        "tokens": None,
        "keys": {},
        "served": True,
        "counts": {},
        "oldest_age": None,
    }


async def test_a_queue_says_whether_a_live_node_takes_jobs_from_it(tmp_path):
    """This one or another one."""
    async with open_door(queues=(("mail", 1),)) as door:
        await door.post("/queues/mail/pause")
        resumed = (await door.post("/queues/reports/resume")).json()
        for queue in ("mail", "reports"):
            await door.enqueue(queue=queue)
        alone = {name: told["served"] for name, told in (await queues(door)).items()}
        await door.store.join("n2", 0, 1e12, frozenset({"echo"}))
        together = {name: told["served"] for name, told in (await queues(door)).items()}

    assert alone == {"mail": True, "reports": False}
    assert together == {"mail": True, "reports": True}
    assert resumed["served"] is False


# --- pauses that end by themselves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lasts", [600, "10m"])
async def test_a_pause_ends_by_itself(door, autojump_clock, lasts):
    """In its time, with the reason shown until then; what waited runs at once."""
    paused = await door.post("/queues/default/pause", json={"reason": "the printer is broken", "for": lasts})
    await door.enqueue(id="a")
    begun = trio.current_time()
    await trio.sleep(500)
    job = await door.ended("a")
    took = trio.current_time() - begun
    told = (await door.get("/queues/default")).json()

    assert paused.status_code == 200
    assert (paused.json()["paused"], paused.json()["reason"]) == (True, "the printer is broken")
    assert paused.json()["paused_until"].endswith("Z")
    assert job["status"] == "done"
    assert 599.9 < took < 600.1
    assert (told["paused"], told["reason"], told["paused_until"]) == (False, None, None)


async def test_a_pause_is_over_though_nobody_has_ended_it_yet(door, monkeypatch):
    """It is shown by its time."""
    await door.post("/queues/default/pause", json={"for": 0.01})
    now = door.node.clock.now() + 0.01
    monkeypatch.setattr(type(door.node.clock), "now", lambda _: now)

    assert (await door.get("/queues/default")).json()["paused"] is False


async def test_a_pause_that_ends_by_itself_does_so_after_a_restart(tmp_path):
    """Without anybody who asks."""
    async with open_sqlite(tmp_path / "jobs.db", sync="normal") as store, open_door(store=store) as door:
        await door.post("/queues/mail/pause", json={"for": 0.2})
        await door.enqueue(id="a", queue="mail")
    async with open_sqlite(tmp_path / "jobs.db", sync="normal") as store, open_door(store=store) as door:
        job = (await door.get("/jobs/a?wait=5")).json()

    assert job["status"] == "done"


@pytest.mark.parametrize("body", ["", "{}", "null", '{"reason":null,"for":null}'])
async def test_a_pause_needs_neither_reason_nor_end(either_door, body):
    answer = await either_door.post("/queues/mail/pause", content=body)

    assert answer.status_code == 200
    assert [answer.json()[name] for name in ("paused", "reason", "paused_until")] == [True, None, None]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"for": 0}, "/for"),
        ({"for": "soon"}, "/for"),
        ({"for": 1e10}, "/for"),
        ({"for_": 5}, "/for_"),
        ({"reason": ""}, "/reason"),
        ({"until": 5}, "/until"),
    ],
)
async def test_a_pause_that_cannot_be_is_refused(either_door, body, pointer):
    answer = await either_door.post("/queues/mail/pause", json=body)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert [fault["pointer"] for fault in answer.json()["faults"]] == [pointer]
    assert await queues(either_door) == {}


# --- settings ---------------------------------------------------------------------------------------------------------


async def test_settings_are_shown_with_the_queue_and_replaced_as_a_whole(either_door):
    path = "/queues/mail"
    first = await either_door.put(path, json={"closed": True, "keep": {"done": "1h", "jobs": 10}})
    listed = (await queues(either_door))["mail"]
    got = await either_door.get(path)
    second = await either_door.put(path, json={"keep": {"failed": 60, "bytes": 5}})
    third = await either_door.put(path, json={"keep": "none"})
    last = await either_door.put(path, json={})

    assert (first.status_code, first.json()["closed"]) == (200, True)
    assert first.json()["keep"] == {"done": 3600.0, "failed": None, "jobs": 10, "bytes": None}
    assert first.json() == got.json() == got.json() | listed
    assert (second.json()["closed"], second.json()["keep"]) == (
        False,
        {"done": None, "failed": 60.0, "jobs": None, "bytes": 5},
    )
    assert (third.json()["keep"], last.json()["keep"]) == ("none", None)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"closed": 1}, "/closed"),
        ({"close": True}, "/close"),
        ({"keep": "all"}, "/keep"),
        ({"keep": {"done": -1}}, "/keep/done"),
        ({"keep": {"done": "8d"}}, "/keep/done"),
        ({"keep": {"failed": "31d"}}, "/keep/failed"),
        ({"keep": {"jobs": 1.5}}, "/keep/jobs"),
        ({"keep": {"dome": 1}}, "/keep/dome"),
        ([], ""),
    ],
)
async def test_settings_that_cannot_be_are_refused(either_door, body, pointer):
    """Among them ages beyond those that the settings of the node allow."""
    answer = await either_door.put("/queues/mail", json=body)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert [fault["pointer"] for fault in answer.json()["faults"]] == [pointer]
    assert await queues(either_door) == {}


async def test_a_queue_that_is_not_there_is_not_found(either_door):
    answer = await either_door.get("/queues/mail")
    wrong = await either_door.get("/queues/-")

    assert (answer.status_code, answer.json()["code"]) == (404, "no_such_queue")
    assert wrong.status_code == 422


async def test_jobs_of_a_queue_that_keeps_none_are_gone_soon(door, autojump_clock):
    """Within half a minute of their end; whoever waits for one sees it."""
    await door.put("/queues/mail", json={"keep": "none"})
    answer = await door.post("/enqueue?wait=5", json={"id": "a", "queue": "mail"})
    await door.enqueue(id="b")
    await door.ended("b")
    await trio.sleep(30)

    assert (answer.status_code, answer.json()["status"]) == (200, "done")
    assert (await door.get("/jobs/a")).status_code == 404
    assert (await door.get("/jobs/b")).status_code == 200


# --- closed queues ----------------------------------------------------------------------------------------------------


async def test_a_closed_queue_answers_409_and_runs_what_waits(door, autojump_clock):
    await door.post("/queues/mail/pause", json={"for": 60})
    await door.enqueue(id="old", queue="mail")
    await door.put("/queues/mail", json={"closed": True})
    refused = await door.post("/enqueue", json={"id": "new", "queue": "mail"})
    again = await door.post("/enqueue", json={"id": "old", "queue": "mail"})
    waited = await door.post("/enqueue?wait=5", json={"queue": "mail"})
    job = await door.ended("old")
    await door.put("/queues/mail", json={})
    stored = await door.post("/enqueue", json={"id": "new", "queue": "mail"})

    assert (refused.status_code, refused.json()["code"]) == (409, "queue_closed")
    assert "'mail' is closed" in refused.json()["detail"]
    assert (again.status_code, waited.status_code) == (200, 409)
    assert (job["status"], stored.status_code) == ("done", 202)


async def test_an_array_with_a_job_for_a_closed_queue_is_refused_whole(either_door):
    await either_door.put("/queues/mail", json={"closed": True})
    jobs = [{"id": "a"}, {"id": "b", "queue": "mail"}]
    answer = await either_door.post("/enqueue/bulk", json=jobs)
    dependents = await either_door.post(
        "/enqueue/bulk", json=[*jobs[:1], {"queue": "mail", "depends_on": ["a"]}]
    )

    for refused in (answer, dependents):
        assert (refused.status_code, refused.json()["code"]) == (409, "queue_closed")
    assert (await either_door.get("/jobs/a")).status_code == 404


async def test_in_a_stream_the_lines_for_a_closed_queue_are_refused(either_door):
    await either_door.put("/queues/mail", json={"closed": True})
    lines = (
        '{"id":"a"}\n{"id":"b","queue":"mail"}\n{"id":"c","depends_on":["a"],"queue":"mail"}\n{"id":"d"}\n'
    )
    answer = await either_door.post(
        "/enqueue/bulk", content=lines, headers={"Content-Type": "application/x-ndjson"}
    )
    told = [json.loads(line) for line in answer.text.splitlines()]

    assert [one.get("code", one.get("id")) for one in told] == ["a", "queue_closed", "queue_closed", "d"]
    assert [one["line"] for one in told[1:3]] == [2, 3]


async def test_no_job_is_moved_into_a_closed_queue(either_door):
    await either_door.put("/queues/mail", json={"closed": True})
    await either_door.enqueue(id="a", delay=60)
    answer = await either_door.patch("/jobs/a", json={"queue": "mail"})

    assert (answer.status_code, answer.json()["code"]) == (409, "queue_closed")
    assert (await either_door.get("/jobs/a")).json()["queue"] == "default"


async def test_a_schedule_is_not_run_by_hand_into_a_closed_queue(either_door):
    await either_door.put("/queues/mail", json={"closed": True})
    await either_door.put("/schedules/s", json={"every": "1h", "job": {"queue": "mail"}})
    answer = await either_door.post("/schedules/s/run")

    assert (answer.status_code, answer.json()["code"]) == (409, "queue_closed")
