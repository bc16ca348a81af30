"""What a job waits for, over HTTP: only where one job is asked for."""

import pytest
import trio
import trio.testing

from tests.api.client import open_door
from tests.api.test_spec import Spec


@pytest.fixture
async def busy(autojump_clock):
    """A service whose only worker has a job for ever."""
    async with open_door(workers=1, queue_size=0) as door:
        await door.enqueue(id="busy", kind="play", payload="hold", queue="mail", key="acme")
        await door.stage.begun.wait()
        yield door


async def waits_for(door, job_id):
    return (await door.get(f"/jobs/{job_id}")).json().get("waits_for")


async def test_a_job_that_is_not_due_says_when_it_is(busy):
    job = (await busy.enqueue(id="a", delay=60)).json()

    assert await waits_for(busy, "a") == {"reason": "not_due", "run_at": job["run_at"]}


async def test_a_job_of_a_paused_queue_says_why_it_is_paused_and_until_when(busy):
    await busy.enqueue(id="a")
    await busy.post("/queues/default/pause")
    plain = await waits_for(busy, "a")
    queue = (await busy.post("/queues/default/pause", json={"reason": "deploy", "for": 60})).json()

    paused = {"reason": "paused", "queue": "default"}
    assert plain == paused | {"pause_reason": None, "until": None}
    assert await waits_for(busy, "a") == paused | {
        "pause_reason": "deploy",
        "until": queue["paused_until"],
    }


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"max_running": 1}, {"reason": "queue_full", "queue": "mail", "running": 1, "max_running": 1}),
        (
            {"per_key": {"max_running": 1}},
            {"reason": "key_full", "key": "acme", "running": 1, "max_running": 1},
        ),
    ],
)
async def test_a_job_behind_a_limit_says_which_and_how_far_it_is_used(busy, settings, shown):
    await busy.enqueue(id="a", queue="mail", key="acme")
    await busy.put("/queues/mail", json=settings)

    assert await waits_for(busy, "a") == shown


@pytest.mark.parametrize("per_key", [False, True])
async def test_a_job_behind_a_rate_says_when_the_next_one_may_start(autojump_clock, per_key):
    rate = {"rate": {"limit": 1, "period": 60}}
    async with open_door() as door:
        await door.put("/queues/mail", json={"per_key": rate} if per_key else rate)
        await door.enqueue(id="first", queue="mail", key="acme")
        await door.ended("first")
        await door.enqueue(id="a", queue="mail", key="acme")
        shown = await waits_for(door, "a")
        job = await door.ended("a")

    named = {"reason": "key_rate", "key": "acme"} if per_key else {"reason": "rate", "queue": "mail"}
    assert shown == named | {"until": shown["until"]}
    assert job["started_at"] >= shown["until"]


async def test_a_job_of_a_paused_key_says_so(busy):
    await busy.enqueue(id="a", queue="mail", key="acme")
    await busy.post("/queues/mail/keys/acme/pause")

    assert await waits_for(busy, "a") == {"reason": "key_paused", "key": "acme"}


async def test_a_job_that_no_node_would_take_says_so(autojump_clock):
    async with open_door(queues=(("mail", 1),)) as door:
        await door.enqueue(id="a", queue="other")

        assert await waits_for(door, "a") == {"reason": "no_node", "kind": "echo", "queue": "other"}


async def test_a_ready_job_says_its_place(busy):
    """In its queue, or among the jobs of its key."""
    for job_id in ("a", "b"):
        await busy.enqueue(id=job_id)
        await busy.enqueue(id=f"{job_id}-keyed", queue="mail", key="globex")

    assert await waits_for(busy, "b") == {"reason": "turn", "place": 2, "exact": True}
    assert await waits_for(busy, "b-keyed") == {
        "reason": "turn",
        "key": "globex",
        "place": 2,
        "exact": True,
    }


async def test_a_job_that_runs_or_has_ended_waits_for_nothing(busy):
    await busy.post("/jobs/busy/cancel?wait=10")
    await busy.enqueue(id="a", kind="play", payload="hold")
    await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(10):
        while (await busy.get("/jobs/a")).json()["status"] != "running":  # noqa: ASYNC110 - a start tells nobody
            await trio.sleep(0.1)

    assert await waits_for(busy, "a") is None
    assert await waits_for(busy, "busy") is None


async def test_lists_and_answers_to_changes_leave_it_out(busy):
    """Only one job is looked at so closely."""
    enqueued = (await busy.enqueue(id="a")).json()
    listed = (await busy.get("/jobs?id=a")).json()["jobs"][0]
    edited = (await busy.patch("/jobs/a", json={"priority": 1})).json()

    assert [one for one in (enqueued, listed, edited) if "waits_for" in one] == []


async def test_a_cancel_says_that_it_waits_for_the_handler_and_since_when(autojump_clock, door):
    """Both where it is asked for, and where the job is looked at."""
    await door.enqueue(id="a", kind="play", payload="hold, then clean up")
    await door.stage.begun.wait()
    told = (await door.post("/jobs/a/cancel")).json()
    await trio.sleep(7)
    shown = (await door.get("/jobs/a")).json()
    door.stage.cleaned.set()
    ended = await door.ended("a")

    assert told["status"] == "cancelling"
    assert told["waits_for"] == {
        "reason": "handler",
        "node": door.node.name,
        "since": told["waits_for"]["since"],
    }
    assert ended["started_at"] <= told["waits_for"]["since"] < ended["finished_at"]
    assert shown["waits_for"] == told["waits_for"]
    assert (ended["status"], "waits_for" in ended) == ("cancelled", False)


async def test_a_cancel_on_another_node_names_the_node_alone(door, monkeypatch):
    """Only that one knows since when."""
    await door.enqueue(id="a", kind="play", payload="hold, then clean up")
    await door.stage.begun.wait()
    await door.post("/jobs/a/cancel")
    monkeypatch.setattr(door.node.held, "of_jobs", lambda _ids: [])
    shown = await waits_for(door, "a")

    assert shown == {"reason": "handler", "node": door.node.name}


async def test_the_spec_has_examples_of_what_jobs_wait_for(door):
    """Each of them is a job."""
    spec = Spec((await door.get("/openapi.json")).json())
    answer = spec.operations["get", "/jobs/{job_id}"]["responses"]["200"]
    examples = answer["content"]["application/json"]["examples"]

    assert {name: example["value"]["waits_for"]["reason"] for name, example in examples.items()} == {
        "waiting": "key_full",
        "cancelling": "handler",
    }
