"""`/jobs`: one job and how to wait for it, lists, cancel, retry, promote, edit, delete."""

import functools
import threading

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from jobpipe.api.schemas import EditRequest
from jobpipe.engine.waiting import LOOKS_APART
from jobpipe.store.sqlite import open_sqlite
from tests.api.client import Breakable, asked, open_door


async def got(door, path):
    answer = await door.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


# One job


async def test_a_job_is_shown_with_its_attempts_and_its_result(door, autojump_clock):
    await door.enqueue(id="a", payload={"x": 1})

    job = await door.ended("a")

    assert (job["status"], job["attempt"], job["result"], job["error"]) == ("done", 1, {"x": 1}, None)
    (attempt,) = job["attempts"]
    assert (attempt["number"], attempt["outcome"], attempt["node"], attempt["error"]) == (
        1,
        "done",
        "n1",
        None,
    )
    assert job["created_at"] <= attempt["started_at"] <= attempt["finished_at"] == job["finished_at"]


async def test_a_job_that_failed_is_shown_with_its_error(door, autojump_clock):
    await door.enqueue(id="a", kind="play", payload="fail")

    job = await door.ended("a")

    assert (job["status"], job["result"]) == ("failed", None)
    assert (job["error"]["type"], job["error"]["message"]) == ("Fail", "as told")
    assert "Traceback" in job["error"]["traceback"]
    assert job["attempts"][0]["error"] == job["error"]


@pytest.mark.parametrize(
    "job_id", ["nobody", "%00", "%0A", "%ED%A0%80", "%2e%2e", "a" * 5000, "%F0%9F%98%80"]
)
@pytest.mark.parametrize(
    ("method", "verb"),
    [
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("POST", "/retry"),
        ("POST", "/promote"),
        ("GET", "?wait=1"),
    ],
)
async def test_a_job_that_is_not_there_is_told_with_404(either_door, method, verb, job_id):
    answer = await either_door.request(method, f"/jobs/{job_id}{verb}")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] in ("no_such_job", "not_found")


# Waiting


async def test_wait_answers_when_the_job_ends(door, autojump_clock):
    await door.enqueue(id="a", kind="play", payload="hold")
    async with trio.open_nursery() as nursery:
        answers = await asked(nursery, functools.partial(door.get, "/jobs/a?wait=60"))
        waited = not answers
        door.stage.release.set()

    assert waited
    assert answers[0].json()["status"] == "done"


async def test_wait_answers_at_the_latest_then_with_the_job_as_it_is(door, autojump_clock):
    await door.enqueue(id="a", kind="play", payload="hold")
    begun = trio.current_time()

    job = await got(door, "/jobs/a?wait=7.5")

    assert job["status"] == "running"
    assert trio.current_time() == begun + 7.5


async def test_wait_answers_at_once_when_the_job_has_ended_before(door, autojump_clock):
    await door.enqueue(id="a")
    await door.ended("a")
    begun = trio.current_time()

    job = await got(door, "/jobs/a?wait=600")

    assert job["status"] == "done"
    assert trio.current_time() == begun


async def test_wait_lasts_through_retries_and_pauses(door, autojump_clock):
    await door.post("/queues/default/pause")
    await door.enqueue(id="a")
    async with trio.open_nursery() as nursery:
        answers = await asked(nursery, functools.partial(door.get, "/jobs/a?wait=600"))
        await trio.sleep(60)
        await door.post("/queues/default/resume")

    assert answers[0].json()["status"] == "done"


async def test_wait_hears_of_a_job_that_expires(door, autojump_clock):
    await door.post("/queues/default/pause")
    await door.enqueue(id="a", expires_at="2023-11-14T22:14:20Z")
    begun = trio.current_time()

    job = await got(door, "/jobs/a?wait=600")

    assert job["status"] == "expired"
    assert trio.current_time() < begun + 70


async def test_who_waits_looks_when_an_end_may_have_been_told_to_nobody(door, autojump_clock, monkeypatch):
    """And waits on when there was none."""
    monkeypatch.setattr("jobpipe.engine.waiting.LOOK_AGAIN", 3600)
    await door.enqueue(id="a", delay=3600)
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        answers = await asked(nursery, functools.partial(door.get, "/jobs/a?wait=600"))
        door.node.events.recheck()
        await trio.testing.wait_all_tasks_blocked()
        answered = list(answers)
        await door.node.store.cancel(["a"], 0)
        door.node.events.recheck()

    assert answered == []
    assert answers[0].json()["status"] == "cancelled"
    assert trio.current_time() <= begun + LOOKS_APART


async def test_who_is_woken_for_nothing_again_and_again_reads_the_job_now_and_then(
    door, autojump_clock, monkeypatch
):
    """Anyone may tell of an end: so many reads of the store nobody can cause."""
    reads = []
    get = door.store.get

    async def counted(job_id):
        reads.append(trio.current_time())
        return await get(job_id)

    monkeypatch.setattr(door.store, "get", counted)
    await door.enqueue(id="a", delay=3600)
    async with trio.open_nursery() as nursery:
        answers = await asked(nursery, functools.partial(door.get, "/jobs/a?wait=600"))
        for _ in range(1000):
            door.node.events.look_at("a")
            await trio.sleep(0.001)
        woken = len(reads)
        await door.post("/jobs/a/cancel")

    assert answers[0].json()["status"] == "cancelled"
    assert woken <= 2 + 1 / LOOKS_APART + 1


async def test_many_may_wait_for_one_job(door, autojump_clock):
    await door.enqueue(id="a", kind="play", payload="hold")
    async with trio.open_nursery() as nursery:
        answers = [await asked(nursery, functools.partial(door.get, "/jobs/a?wait=60")) for _ in range(5)]
        door.stage.release.set()

    assert [answer.json()["status"] for (answer,) in answers] == ["done"] * 5


@pytest.mark.parametrize("wait", ["-1", "601", "nan", "inf", "1e999", "soon", "", "11m", "0x1", "1_0", "%00"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/jobs/a"), ("POST", "/jobs/a/cancel")])
async def test_a_wait_that_is_none_is_refused(door, method, path, wait):
    await door.enqueue(id="a", delay=60)

    answer = await door.request(method, f"{path}?wait={wait}")

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert [fault["pointer"] for fault in answer.json()["faults"]] == ["?wait"]
    assert (await got(door, "/jobs/a"))["status"] == "scheduled"


async def test_an_unknown_parameter_is_refused(door):
    await door.enqueue(id="a", delay=60)

    answer = await door.get("/jobs/a?wiat=1&x=2")

    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["faults"]] == ["?wiat", "?x"]


async def test_nobody_waits_for_searches_that_hang(tmp_path):
    """A liveness probe above all."""
    begun, release = trio.Event(), threading.Event()

    def hang(_connection):
        trio.from_thread.run_sync(begun.set)
        release.wait(30)

    async with open_sqlite(tmp_path / "jobs.db", sync="normal") as store, open_door(store) as door:
        await door.enqueue(id="a", delay=60)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store._read_in, "search", hang)
            await begun.wait()
            for _ in range(12):
                nursery.start_soon(door.get, "/jobs?text=a")
            with trio.fail_after(10):
                answers = [await door.get(path) for path in ("/health", "/jobs/a", "/jobs", "/queues")]
            waited = store._limiters["search"].statistics().tasks_waiting
            release.set()

    assert [answer.status_code for answer in answers] == [200] * 4
    assert waited == 12


async def test_a_client_that_hangs_up_is_waited_for_no_more(door, autojump_clock):
    gone = trio.Event()
    await door.enqueue(id="a", kind="play", payload="hold")
    whole = iter([{"type": "http.request"}])

    async def receive():
        if message := next(whole, None):
            await trio.lowlevel.checkpoint()
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(door.call, "/jobs/a", receive, method="GET", query="wait=600"))
        await trio.testing.wait_all_tasks_blocked()
        watched = dict(door.node.events._watches)
        gone.set()

    assert list(watched) == ["a"]
    assert door.node.events._watches == {}


@pytest.mark.parametrize("path", ["/jobs/a", "/enqueue"])
@pytest.mark.parametrize("query", ["on_disconnect=cancel", "wait=0&on_disconnect=cancel"])
async def test_a_client_that_does_not_wait_cannot_hang_up(door, path, query):
    """The words say what to send."""
    send = functools.partial(door.post, json={"id": "b"}) if path == "/enqueue" else door.get

    answer = await send(f"{path}?{query}")

    assert (answer.status_code, answer.json()["faults"]) == (
        422,
        [{"pointer": "?on_disconnect", "detail": "needs a wait: send wait too, a number of seconds above 0"}],
    )
    assert await door.stored() == 0


@pytest.mark.parametrize("path", ["/jobs/a", "/enqueue"])
async def test_what_a_hang_up_means_is_one_of_few_words(door, path):
    send = functools.partial(door.post, json={"id": "b"}) if path == "/enqueue" else door.get

    (fault,) = (await send(f"{path}?wait=5&on_disconnect=stop")).json()["faults"]

    assert fault == {"pointer": "?on_disconnect", "detail": "expected one of cancel, got 'stop'"}


async def test_a_cancel_cannot_be_cancelled_by_a_hang_up(door):
    await door.enqueue(id="a", delay=60)

    (fault,) = (await door.post("/jobs/a/cancel?wait=5&on_disconnect=cancel")).json()["faults"]

    assert fault == {"pointer": "?on_disconnect", "detail": "unknown parameter; known are wait"}
    assert (await got(door, "/jobs/a"))["status"] == "scheduled"


async def test_a_job_that_cannot_be_cancelled_when_its_client_hangs_up_goes_on(autojump_clock):
    """The log says so."""
    store, gone = Breakable(), trio.Event()
    whole = iter([{"type": "http.request"}])

    async def receive():
        if message := next(whole, None):
            await trio.lowlevel.checkpoint()
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async with open_door(store) as door:
        await door.enqueue(id="a", kind="play", payload="hold")
        with capture_logs() as logs:
            async with trio.open_nursery() as nursery:
                query = "wait=600&on_disconnect=cancel"
                nursery.start_soon(
                    functools.partial(door.call, "/jobs/a", receive, method="GET", query=query)
                )
                await trio.testing.wait_all_tasks_blocked()
                store.refuses = True
                gone.set()
            store.refuses = False
        door.stage.release.set()
        job = await door.ended("a")

    assert job["status"] == "done"
    assert "a client hung up, and its job could not be cancelled" in {line["event"] for line in logs}


async def test_who_waits_is_answered_when_the_node_stops(door, autojump_clock):
    await door.enqueue(id="a", delay=3600)
    async with trio.open_nursery() as nursery:
        answers = await asked(nursery, functools.partial(door.get, "/jobs/a?wait=600"))
        door.node.drain()

    assert answers[0].json()["status"] == "scheduled"


# Lists


async def test_jobs_are_listed_newest_first_without_payload_result_and_attempts(either_door):
    for number in range(3):
        await either_door.enqueue(id=f"j{number}", payload={"big": "x" * 1000}, delay=60)

    told = await got(either_door, "/jobs")

    assert [job["id"] for job in told["jobs"]] == ["j2", "j1", "j0"]
    assert told["next_cursor"] is None
    left_out = {"payload", "result", "progress", "attempts", "waits_for"}
    assert not left_out & set(told["jobs"][0])
    assert set(told["jobs"][0]) == set(await got(either_door, "/jobs/j0")) - left_out


async def test_payloads_and_results_are_listed_when_asked(either_door):
    await either_door.enqueue(id="a", payload=[1])
    await either_door.ended("a")

    (job,) = (await got(either_door, "/jobs?payload=true"))["jobs"]

    assert (job["payload"], job["result"]) == ([1], [1])
    assert "attempts" not in job


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 1000])
async def test_a_cursor_leads_through_all_jobs_once(either_door, limit):
    await either_door.post("/enqueue/bulk", json=[{"id": f"j{number}", "delay": 60} for number in range(7)])

    pages, cursor = [], ""
    while cursor is not None:
        page = await got(either_door, f"/jobs?limit={limit}{cursor and '&cursor=' + cursor}")
        pages.append([job["id"] for job in page["jobs"]])
        cursor = page["next_cursor"]

    assert [job_id for page in pages for job_id in page] == [f"j{number}" for number in reversed(range(7))]
    assert all(len(page) <= limit for page in pages)


async def test_jobs_that_come_meanwhile_do_not_disturb_a_cursor(either_door):
    await either_door.post("/enqueue/bulk", json=[{"id": f"j{number}", "delay": 60} for number in range(4)])
    page = await got(either_door, "/jobs?limit=2")
    await either_door.enqueue(id="new", delay=60)
    await either_door.delete("/jobs/j2")

    rest = await got(either_door, f"/jobs?limit=2&cursor={page['next_cursor']}")

    assert [job["id"] for job in rest["jobs"]] == ["j1", "j0"]


@pytest.fixture
async def filled_door(either_door):
    """A door with jobs of all sorts: done, failed, scheduled and cancelled ones."""
    await either_door.enqueue(id="done-1", tags=["red", "blue"], payload="alpha")
    await either_door.enqueue(id="failed-1", kind="play", payload="fail", tags=["red"])
    await either_door.enqueue(id="later-1", queue="mail", delay=3600, payload="beta 100%_")
    await either_door.enqueue(id="gone-1", queue="mail", delay=3600)
    await either_door.post("/jobs/gone-1/cancel")
    for job_id in ("done-1", "failed-1"):
        await either_door.ended(job_id)
    return either_door


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("status=done", ["done-1"]),
        ("status=failed", ["failed-1"]),
        ("status=scheduled", ["later-1"]),
        ("status=cancelled", ["gone-1"]),
        ("status=running", []),
        ("kind=play", ["failed-1"]),
        ("queue=mail", ["gone-1", "later-1"]),
        ("queue=mail&status=scheduled", ["later-1"]),
        ("tag=red", ["failed-1", "done-1"]),
        ("tag=red&status=done", ["done-1"]),
        ("tag=none", []),
        ("text=alpha", ["done-1"]),
        ("text=100%25_", ["later-1"]),
        ("text=told", ["failed-1"]),
        ("text=-1", ["gone-1", "later-1", "failed-1", "done-1"]),
        ("text=%25", ["later-1"]),
        ("text='", []),
        ("text=%00", []),
        ("queue=nobody", []),
        ("kind=nobody.--", []),
        ("created_after=2023-11-14T00:00:00Z", ["gone-1", "later-1", "failed-1", "done-1"]),
        ("created_after=2030-01-01T00:00:00Z", []),
        ("created_before=2030-01-01T00:00:00%2B02:00", ["gone-1", "later-1", "failed-1", "done-1"]),
        ("created_before=0001-01-01T00:00:00Z", []),
        ("created_after=9999-12-31T23:59:59.9999-23:59", []),
    ],
)
async def test_a_list_holds_what_its_filters_say(filled_door, query, ids):
    told = await got(filled_door, f"/jobs?{query}")

    assert [job["id"] for job in told["jobs"]] == ids


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        ("status=finished", ["?status"]),
        ("status=", ["?status"]),
        ("limit=0", ["?limit"]),
        ("limit=1001", ["?limit"]),
        ("limit=1.5", ["?limit"]),
        ("limit=" + "9" * 5000, ["?limit"]),
        ("payload=maybe", ["?payload"]),
        ("text=", ["?text"]),
        ("created_after=today", ["?created_after"]),
        ("created_after=2030-01-01T00:00:00", ["?created_after"]),
        ("created_before=2030-01-01T00:00:00+02:00", ["?created_before"]),
        ("state=done&limit=none&page=2", ["?state", "?limit", "?page"]),
        ("cursor=", ["?cursor"]),
        ("cursor=2", ["?cursor"]),
        ("cursor=!", ["?cursor"]),
        ("cursor=é", ["?cursor"]),
        ("cursor=MA", ["?cursor"]),  # 0
        ("cursor=LTE", ["?cursor"]),  # -1
        ("cursor=Im5vbmUi", ["?cursor"]),  # "none"
        ("cursor=MS41", ["?cursor"]),  # 1.5
        ("cursor=OTk5OTk5OTk5OTk5OTk5OTk5OTk5", ["?cursor"]),  # beyond 64 bits
    ],
)
async def test_a_parameter_that_is_none_is_refused(either_door, query, parameters):
    await either_door.enqueue(id="a", delay=60)

    answer = await either_door.get(f"/jobs?{query}")

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert [fault["pointer"] for fault in answer.json()["faults"]] == parameters


# Cancel


@pytest.mark.parametrize("job", [{"delay": 60}, {}])
async def test_a_job_that_waits_is_cancelled_with_200(either_door, job):
    await either_door.post("/queues/default/pause")
    await either_door.enqueue(id="a", **job)

    answer = await either_door.post("/jobs/a/cancel")

    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert answer.json()["attempts"] == []
    assert (await got(either_door, "/jobs/a"))["status"] == "cancelled"


async def test_a_job_that_runs_is_cancelling_with_202_until_its_cleanup_has_ended(either_door):
    await either_door.enqueue(id="a", kind="play", payload="hold, then clean up")
    await either_door.stage.begun.wait()

    first = await either_door.post("/jobs/a/cancel")
    again = await either_door.post("/jobs/a/cancel?wait=0.01")
    shown = await got(either_door, "/jobs/a")
    either_door.stage.cleaned.set()
    last = await either_door.post("/jobs/a/cancel?wait=600")

    assert (first.status_code, first.json()["status"]) == (202, "cancelling")
    assert (again.status_code, again.json()["status"]) == (202, "cancelling")
    assert shown["status"] == "cancelling"
    assert (last.status_code, last.json()["status"]) == (200, "cancelled")
    assert [attempt["outcome"] for attempt in last.json()["attempts"]] == ["cancelled"]


async def test_cancel_with_wait_answers_200_only_after_the_cleanup(door, autojump_clock):
    await door.enqueue(id="a", kind="play", payload="hold, then clean up")
    await door.stage.begun.wait()
    async with trio.open_nursery() as nursery:
        answers = await asked(nursery, functools.partial(door.post, "/jobs/a/cancel?wait=60"))
        waited = not answers
        door.stage.cleaned.set()

    assert waited
    assert (answers[0].status_code, answers[0].json()["status"]) == (200, "cancelled")


async def test_a_cancel_is_answered_once_a_thousand_child_tasks_have_cleaned_up(door, autojump_clock):
    """Cancelled means stopped, all the way down, and the client hears of it at once."""
    await door.enqueue(id="a", kind="family", payload=1000)
    await door.stage.begun.wait()
    await trio.sleep(1)
    before = door.stage.children
    answer = await door.post("/jobs/a/cancel?wait=60")

    assert before == 1000
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert door.stage.children == 0
    assert trio.current_time() - door.stage.last_cleanup <= 0.1


async def test_cancel_with_wait_answers_202_when_the_cleanup_takes_longer(door, autojump_clock):
    await door.enqueue(id="a", kind="play", payload="hold, then clean up")
    await door.stage.begun.wait()
    begun = trio.current_time()

    answer = await door.post("/jobs/a/cancel?wait=5")

    assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")
    assert trio.current_time() == begun + 5
    door.stage.cleaned.set()


async def test_a_job_that_waits_between_two_attempts_is_cancelled(door, autojump_clock):
    await door.enqueue(id="a", kind="demo", payload={"fail": 1}, backoff={"base": 600, "jitter": "none"})
    await trio.sleep(10)
    assert (await got(door, "/jobs/a"))["status"] == "retrying"

    answer = await door.post("/jobs/a/cancel")

    assert (answer.status_code, answer.json()["status"], answer.json()["attempt"]) == (200, "cancelled", 1)


@pytest.mark.parametrize(("payload", "status"), [("return", "done"), ("fail", "failed")])
async def test_a_job_that_has_ended_cannot_be_cancelled(either_door, payload, status):
    await either_door.enqueue(id="a", kind="play", payload=payload)
    await either_door.ended("a")

    answer = await either_door.post("/jobs/a/cancel")

    assert (answer.status_code, answer.json()["code"]) == (409, "wrong_status")
    assert (await got(either_door, "/jobs/a"))["status"] == status


async def test_a_job_that_is_cancelled_already_cannot_be_cancelled_again(either_door):
    await either_door.enqueue(id="a", delay=60)
    await either_door.post("/jobs/a/cancel")

    answer = await either_door.post("/jobs/a/cancel")

    assert (answer.status_code, answer.json()["code"]) == (409, "wrong_status")


# Retry


@pytest.mark.parametrize("payload", ["return", "fail"])
async def test_a_job_that_has_ended_is_queued_again_with_all_its_retries(either_door, payload):
    await either_door.enqueue(id="a", kind="play", payload=payload)
    await either_door.ended("a")
    await either_door.post("/queues/default/pause")

    answer = await either_door.post("/jobs/a/retry")

    job = answer.json()
    assert (answer.status_code, job["status"], job["attempt"]) == (202, "queued", 0)
    assert (job["result"], job["error"], job["finished_at"]) == (None, None, None)
    assert len(job["attempts"]) == 1


async def test_a_job_that_was_cancelled_runs_after_a_retry(either_door):
    await either_door.enqueue(id="a", delay=3600)
    await either_door.post("/jobs/a/cancel")

    await either_door.post("/jobs/a/retry")

    assert (await either_door.ended("a"))["status"] == "done"


@pytest.mark.parametrize("job", [{"delay": 60}, {"kind": "play", "payload": "hold"}])
async def test_a_job_that_has_not_ended_cannot_be_retried(door, job, autojump_clock):
    await door.enqueue(id="a", **job)
    await trio.sleep(1)

    answer = await door.post("/jobs/a/retry")

    assert (answer.status_code, answer.json()["code"]) == (409, "wrong_status")
    assert answer.headers["content-type"] == "application/problem+json"


# Promote


async def test_a_promoted_job_runs_at_once(door, autojump_clock):
    """Whether it waited for its time or for its next attempt."""
    backoff = {"base": 600, "jitter": "none"}
    await door.enqueue(id="soon", delay=60)
    await door.enqueue(id="again", kind="demo", payload={"fail": 1}, backoff=backoff)
    await trio.sleep(10)
    answers = [await door.post(f"/jobs/{job_id}/promote") for job_id in ("soon", "again")]
    await trio.sleep(5)
    jobs = [await got(door, f"/jobs/{job_id}") for job_id in ("soon", "again")]

    assert [(answer.status_code, answer.json()["status"]) for answer in answers] == [(200, "queued")] * 2
    assert [answer.json()["run_at"][:19] for answer in answers] == ["2023-11-14T22:13:30"] * 2
    assert [(job["status"], job["attempt"]) for job in jobs] == [("done", 1), ("retrying", 2)]


async def test_a_job_that_is_queued_already_is_promoted_as_it_is(either_door):
    await either_door.post("/queues/default/pause")
    before = (await either_door.enqueue(id="a")).json()

    answer = await either_door.post("/jobs/a/promote")

    assert (answer.status_code, answer.json()) == (200, before)


async def test_a_job_that_is_held_or_has_ended_cannot_be_promoted(door, autojump_clock):
    """A client may try again soon while a worker holds it."""
    await door.enqueue(id="a", kind="play", payload="hold")
    await trio.sleep(1)
    running = await door.post("/jobs/a/promote")
    await door.post("/jobs/a/cancel?wait=60")
    ended = await door.post("/jobs/a/promote")

    assert (running.status_code, running.json()["code"]) == (409, "wrong_status")
    assert running.json()["detail"] == (
        "job 'a' is running: only a waiting job that no worker holds can be promoted"
    )
    assert running.headers["Retry-After"] == "1"
    assert (ended.status_code, ended.json()["code"]) == (409, "wrong_status")
    assert "Retry-After" not in ended.headers


@pytest.mark.parametrize("when", [{"delay": 3600}, {"run_at": "2100-01-01T00:00:00Z"}])
async def test_a_request_that_is_sent_again_after_its_job_was_promoted_is_the_same_job(either_door, when):
    """Whether or not the job has ended since."""
    await either_door.post("/queues/default/pause")
    await either_door.enqueue(id="a", **when)
    promoted = await either_door.post("/jobs/a/promote")

    again = await either_door.enqueue(id="a", **when)
    other = await either_door.enqueue(id="a")
    await either_door.post("/queues/default/resume")
    await either_door.ended("a")
    late = await either_door.enqueue(id="a", **when)

    assert (again.status_code, again.json()) == (200, promoted.json())
    assert (other.status_code, other.json()["code"]) == (409, "id_conflict")
    assert (late.status_code, late.json()["status"]) == (200, "done")


# Edit


async def test_all_that_can_be_edited_is_edited_and_shown(either_door):
    """As it was sent; what is not named stays as it was."""
    before = (await either_door.enqueue(id="a", delay=60, on_crash="fail", tags=["old"])).json()
    edits = {
        "payload": {"text": "é"},
        "queue": "x",
        "priority": -3,
        "max_retries": 0,
        "run_at": "2100-01-31T12:00:00.123Z",
        "timeout": 1.5,
        "backoff": {"base": 2.0, "factor": 3.0, "cap": 4.0, "jitter": "none"},
        "expires_at": "2100-01-31T13:00:00.000Z",
        "tags": ["t", "u"],
        "key": "acme",
    }

    answer = await either_door.patch("/jobs/a", json=edits | {"tags": ["t", "u", "t"]})

    assert answer.status_code == 200
    waits_for = {"reason": "not_due", "run_at": edits["run_at"]}
    assert answer.json() == before | edits
    assert await got(either_door, "/jobs/a") == answer.json() | {"waits_for": waits_for}
    assert set(edits) == set(EditRequest.__struct_fields__)


async def test_an_edit_may_change_nothing(either_door):
    before = (await either_door.enqueue(id="a", delay=60, payload=[1], priority=5)).json()

    answers = [await either_door.patch("/jobs/a", json=edits) for edits in ({}, {"priority": 5})]

    assert [answer.json() for answer in answers] == [before, before]


async def test_null_sets_a_default_again(either_door):
    asked = {"timeout": 1, "backoff": {}, "max_retries": 9, "expires_at": "2100-01-31T12:00:00Z"}
    asked |= {"key": "acme"}
    await either_door.enqueue(id="a", kind="mail", delay=60, payload={"to": "a@b"}, **asked)
    await either_door.post("/queues/default/pause")

    answer = await either_door.patch("/jobs/a", json=dict.fromkeys([*asked, "run_at"]))

    assert answer.json() == answer.json() | {
        "timeout": None,
        "backoff": None,
        "max_retries": 7,  # as its handler says
        "expires_at": None,
        "status": "queued",
    }


@pytest.mark.parametrize("number", ["1.10", "12345678901234567890123", "1e3"])
async def test_no_digit_of_an_edited_payload_is_lost(either_door, number):
    await either_door.enqueue(id="a", delay=60)

    answer = await either_door.patch("/jobs/a", content=f'{{"payload": [{number}]}}'.encode())

    assert f'"payload":[{number}]' in answer.text


@pytest.mark.parametrize(
    "edits",
    [
        {"queue": ""},
        {"queue": None},
        {"priority": 1001},
        {"priority": None},
        {"priority": 1.5},
        {"max_retries": -1},
        {"run_at": "soon"},
        {"run_at": "9999-12-31T23:59:59-01:00"},
        {"timeout": 0},
        {"backoff": {"base": -1, "odd": 1}},
        {"expires_at": 5},
        {"tags": ["t"] * 21},
        {"tags": [""], "priority": "high", "timeout": False},
        {"tags": None},
        {"payload": {"to": "nobody", "lines": ["x"]}},
        {"payload": None},
    ],
    ids=str,
)
async def test_faults_of_an_edit_are_told_as_on_enqueue(either_door, edits):
    """Every one, with its pointer; and nothing is changed."""
    mail = {"kind": "mail", "payload": {"to": "a@b"}, "delay": 60}
    await either_door.enqueue(id="a", **mail)
    before = await got(either_door, "/jobs/a")
    new = await either_door.post("/enqueue", json={**mail, "delay": None, **edits})

    answer = await either_door.patch("/jobs/a", json=edits)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert answer.json()["faults"] == new.json()["faults"]
    assert await got(either_door, "/jobs/a") == before


@pytest.mark.parametrize("content", [b'{"payload":1e400}', b'{"payload":' + b"[" * 600 + b"]" * 600 + b"}"])
async def test_a_payload_that_cannot_be_kept_is_refused_as_on_enqueue(either_door, content):
    await either_door.enqueue(id="a", delay=60)
    new = await either_door.post("/enqueue", content=content)

    answer = await either_door.patch("/jobs/a", content=content)

    assert answer.status_code == 422
    assert answer.json() == new.json()


@pytest.mark.parametrize("name", ["priorty", "id", "kind", "delay", "on_crash", "status"])
async def test_what_cannot_be_edited_is_named_with_what_can(either_door, name):
    await either_door.enqueue(id="a", delay=60)

    answer = await either_door.patch("/jobs/a", json={name: "x"})

    (fault,) = answer.json()["faults"]
    assert (answer.status_code, fault["pointer"]) == (422, f"/{name}")
    assert "unknown field" in fault["detail"]
    assert fault["detail"].endswith("known are " + ", ".join(EditRequest.__struct_fields__))


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b"", "application/json", 400, "not_json"),
        (b"{", "application/json", 400, "not_json"),
        (b"[]", "application/json", 422, "invalid"),
        (b"null", "application/json", 422, "invalid"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
    ],
)
async def test_an_edit_is_a_json_object(either_door, content, content_type, status, code):
    await either_door.enqueue(id="a", delay=60)

    answer = await either_door.patch("/jobs/a", content=content, headers={"Content-Type": content_type})

    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    ("job", "edits"),
    [
        ({"delay": 60}, {"expires_at": "2023-11-14T22:14:20Z"}),
        ({"delay": 60, "expires_at": "2023-11-14T22:15:00Z"}, {"run_at": "2023-11-14T22:15:00Z"}),
        ({"delay": 60}, {"run_at": "2023-11-14T22:15:00Z", "expires_at": "2023-11-14T22:14:59Z"}),
        ({}, {"expires_at": "2023-11-14T22:13:30Z"}),
    ],
)
async def test_a_job_that_would_expire_before_it_could_start_is_refused(door, autojump_clock, job, edits):
    """As on enqueue, and by the time at which it would run then."""
    await door.post("/queues/default/pause")
    await door.enqueue(id="a", **job)
    await trio.sleep(10)
    late = await door.enqueue(expires_at="2000-01-01T00:00:00Z")

    answer = await door.patch("/jobs/a", json=edits)

    assert answer.status_code == 422
    assert answer.json() == late.json()


async def test_a_job_that_is_held_or_has_ended_cannot_be_edited(door, autojump_clock):
    """A client may try again soon while a worker holds it."""
    await door.enqueue(id="a", kind="play", payload="hold")
    await trio.sleep(1)
    running = await door.patch("/jobs/a", json={"priority": 1})
    await door.post("/jobs/a/cancel?wait=60")
    ended = await door.patch("/jobs/a", json={"priority": 1, "expires_at": "2000-01-01T00:00:00Z"})

    assert (running.status_code, running.json()["code"]) == (409, "wrong_status")
    assert running.json()["detail"] == (
        "job 'a' is running: only a waiting job that no worker holds can be edited"
    )
    assert running.headers["Retry-After"] == "1"
    assert (ended.status_code, ended.json()["code"]) == (409, "wrong_status")
    assert "Retry-After" not in ended.headers


async def test_a_job_runs_at_its_new_time_with_its_new_payload(door, autojump_clock):
    """And a scheduled one at once when it is due now."""
    await door.enqueue(id="later", delay=60)
    await door.enqueue(id="now", delay=60)
    begun = trio.current_time()
    scheduled = await door.patch("/jobs/later", json={"run_at": "2023-11-14T22:15:00Z", "payload": 2})
    await door.patch("/jobs/now", json={"run_at": None, "payload": 3})
    now = await door.ended("now")
    took = trio.current_time() - begun
    later = await door.ended("later")

    assert scheduled.json()["status"] == "scheduled"
    assert (now["result"], took < 1) == (3, True)
    assert (later["result"], later["started_at"][:19]) == (2, "2023-11-14T22:15:00")


async def test_a_job_between_two_attempts_waits_for_its_next_one_at_a_new_time(door, autojump_clock):
    await door.enqueue(id="a", kind="demo", payload={"fail": 1}, backoff={"base": 600, "jitter": "none"})
    await trio.sleep(10)

    answer = await door.patch("/jobs/a", json={"run_at": "2023-11-14T22:15:00Z"})
    await trio.sleep(120)
    job = await got(door, "/jobs/a")

    assert (answer.json()["status"], answer.json()["attempt"]) == ("retrying", 1)
    assert (job["attempt"], job["started_at"][:19]) == (2, "2023-11-14T22:15:00")


async def test_a_job_that_is_moved_out_of_a_paused_queue_runs(door, autojump_clock):
    await door.post("/queues/default/pause")
    await door.enqueue(id="a")

    await door.patch("/jobs/a", json={"queue": "x"})

    assert (await door.ended("a"))["status"] == "done"


async def test_a_request_that_is_sent_again_after_an_edit_is_the_same_job(either_door):
    """Its client may not know of the edit; the edited content is another request."""
    first = {"id": "a", "delay": 60, "payload": 1}
    await either_door.enqueue(**first)
    await either_door.patch("/jobs/a", json={"payload": 2, "queue": "x"})

    again = await either_door.enqueue(**first)
    other = await either_door.enqueue(**first | {"payload": 2, "queue": "x"})

    assert (again.status_code, again.json()["payload"]) == (200, 2)
    assert (other.status_code, other.json()["code"]) == (409, "id_conflict")


async def test_a_job_that_no_node_serves_any_more_can_be_edited(door, autojump_clock):
    """Its payload is for its handler to judge, wherever that is."""
    new = door.node.admission.new_job(b"1", job_id="a", kind="gone")
    await door.node.admission.enqueue([new])

    answer = await door.patch("/jobs/a", json={"payload": 2, "priority": 1})

    assert (answer.status_code, answer.json()["payload"]) == (200, 2)


# Delete


async def test_a_job_is_deleted_with_204_and_nothing_else(either_door):
    await either_door.enqueue(id="a", delay=60)

    answer = await either_door.delete("/jobs/a")

    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-type" not in answer.headers
    assert "content-length" not in answer.headers
    assert (await either_door.delete("/jobs/a")).status_code == 404
    assert (await got(either_door, "/jobs"))["jobs"] == []


async def test_a_job_that_is_held_cannot_be_deleted(door, autojump_clock):
    await door.enqueue(id="a", kind="play", payload="hold")
    await trio.sleep(1)

    answer = await door.delete("/jobs/a")

    assert (answer.status_code, answer.json()["code"]) == (409, "wrong_status")
    assert "cancel it first" in answer.json()["detail"]
    assert (await got(door, "/jobs/a"))["status"] == "running"


async def test_an_id_is_free_again_after_its_job_was_deleted(either_door):
    await either_door.enqueue(id="a", delay=60)
    await either_door.delete("/jobs/a")

    answer = await either_door.enqueue(id="a", payload="other", delay=60)

    assert answer.status_code == 202


async def test_a_deletion_over_a_socket_leaves_the_connection_as_it_was(door):
    await door.enqueue(id="a", delay=60)
    async with door.connected() as stream:
        await stream.send_all(b"DELETE /jobs/a HTTP/1.1\r\nHost: test\r\n\r\n")
        await stream.send_all(b"GET /jobs/a HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        received = b"".join([part async for part in stream])

    assert [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]] == [b"204", b"404"]


# When the store refuses


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/jobs"),
        ("GET", "/jobs/a"),
        ("GET", "/jobs/a?wait=5"),
        ("POST", "/jobs/a/cancel"),
        ("POST", "/jobs/a/retry"),
        ("POST", "/jobs/a/promote"),
        ("PATCH", "/jobs/a"),
        ("DELETE", "/jobs/a"),
    ],
)
async def test_a_store_that_refuses_is_told_with_503(method, path):
    store = Breakable()
    async with open_door(store) as door:
        store.refuses = True
        answer = await door.request(method, path)
        store.refuses = False

        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["content-type"] == "application/problem+json"
