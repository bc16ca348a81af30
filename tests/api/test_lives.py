"""Why a job does not run, and its life as spans: what is told fits what the other routes tell."""

import pytest
import trio

from jobpipe.store.base import Account, Unfinished
from tests.api.client import open_door

ORDER = [
    "dependencies",
    "due",
    "queue_paused",
    "queue_limit",
    "queue_rate",
    "key_paused",
    "key_order",
    "key_limit",
    "key_rate",
    "served",
    "turn",
    "draining",
    "workers",
]


async def begun(door):
    """Return when a job has begun, and its start is written."""
    await door.stage.begun.wait()
    await trio.sleep(0.1)


async def told(door, path, status=200):
    answer = await door.get(path)
    assert answer.status_code == status, answer.text
    return answer.json()


async def why(door, job_id):
    """Why a job waits; it fits what the job itself says. Returns the first check that is not passed, too."""
    found, job = await told(door, f"/jobs/{job_id}/why"), await told(door, f"/jobs/{job_id}")
    assert found["waits_for"] == job.get("waits_for")
    assert [check["name"] for check in found["checks"]] in (ORDER, ORDER[:-2], [])
    for check in found["checks"]:
        for path in check["links"].values():
            await told(door, path)
    failed = [check for check in found["checks"] if not check["passed"]]
    return found, failed[0] if failed else None


async def test_each_thing_that_a_job_waits_for_is_told_in_a_sentence(door, autojump_clock):
    """Those that run and have the places are named; so are other jobs, and the reason of a pause."""
    await door.put("/queues/mail", json={"max_running": 1, "rate": {"limit": 1, "period": "1h"}})
    await door.put(
        "/queues/keyed", json={"per_key": {"max_running": 1, "ordered": True, "on_failure": "stop"}}
    )
    await door.enqueue(id="holds", kind="play", payload="hold", queue="mail")
    await begun(door)
    await door.enqueue(id="fails", kind="play", payload="fail", queue="keyed", key="k")
    await door.ended("fails")
    for job in (
        {"id": "full", "queue": "mail"},
        {"id": "behind", "queue": "keyed", "key": "k"},
        {"id": "later", "delay": 99},
        {"id": "blocked", "depends_on": ["later", "full"]},
    ):
        await door.enqueue(**job)
    await door.post("/queues/default/pause", json={"reason": "deploy"})
    await door.enqueue(id="paused")
    answers = {job_id: await why(door, job_id) for job_id in ("full", "behind", "later", "blocked", "paused")}
    await door.put("/queues/mail", json={"rate": {"limit": 1, "period": "1h"}})
    answers["rate"] = await why(door, "full")

    assert {name: failed["name"] for name, (_, failed) in answers.items()} == {
        "full": "queue_limit",
        "behind": "key_order",
        "later": "due",
        "blocked": "dependencies",
        "paused": "queue_paused",
        "rate": "queue_rate",
    }
    sentences = {name: found["answer"] for name, (found, _) in answers.items()}
    assert sentences["full"] == "It waits because queue mail has reached its limit: 1 of 1 running: holds."
    assert sentences["behind"] == (
        "It waits because its key k keeps order: the key has stopped at job fails, which failed."
    )
    assert sentences["blocked"] == "It waits for other jobs: 2 of them have not ended: full, later."
    assert sentences["paused"] == "It waits because queue default is paused: deploy."
    assert sentences["rate"].startswith(
        "It waits because queue mail has used up its rate: the rate allows the next job at"
    )
    assert answers["full"][1]["links"] == {"queue": "/queues/mail", "holds": "/jobs/holds"}


async def test_a_job_that_nobody_keeps_from_running_waits_for_a_worker_or_its_turn(autojump_clock):
    async with open_door(workers=1, queue_size=1) as door:
        await door.enqueue(id="holds", kind="play", payload="hold")
        await begun(door)
        for job_id in ("claimed", "first", "second"):
            await door.enqueue(id=job_id)
        (claimed, none), (first, busy), (second, turn) = [
            await why(door, one) for one in ("claimed", "first", "second")
        ]
        door.stage.release.set()

    assert none is None
    assert claimed["answer"] == "A node has claimed it: it starts as soon as a worker there is free."
    assert busy["name"] == "workers"
    assert first["answer"] == "It waits for a free worker: none is free (jobs held: 2, workers: 1)."
    assert turn["name"] == "turn"
    assert (
        second["answer"] == "It waits for its turn: 1 of its queue before it, by priority and then by time."
    )


async def test_who_is_to_take_a_job_may_be_gone(door, autojump_clock):
    """Or about to go: nobody takes it then."""
    await door.enqueue(id="holds", kind="play", payload="hold")
    await begun(door)
    await door.post("/queues/default/pause")
    await door.enqueue(id="a")
    door.node.drain()
    await door.post("/queues/default/resume")
    draining, _ = await why(door, "a")
    await door.store.leave(door.node.name)
    gone, check = await why(door, "a")
    await door.store.join(door.node.name, 0, 1e12, frozenset({"echo", "play"}))
    door.stage.release.set()

    assert draining["answer"] == (
        "It waits because no node is taking jobs: every node that serves it is draining."
    )
    assert check["name"] == "served"
    assert gone["waits_for"]["reason"] == "no_node"


@pytest.mark.parametrize(
    ("job", "answer"),
    [
        ({"payload": "ok"}, "It is done: attempt 1 succeeded."),
        (
            {"payload": "fail"},
            "It failed and will not be retried: another attempt would end with the same error.",
        ),
        (
            {"payload": "fail", "max_retries": 0},
            "It failed and will not be retried: that was attempt 1, and max_retries is 0.",
        ),
        (
            {"payload": "hold", "deadline": "2023-11-14T22:13:30Z"},
            "It failed and will not be retried: its deadline has passed.",
        ),
    ],
)
async def test_an_ended_job_says_why_it_is_not_tried_again(door, autojump_clock, job, answer):
    await door.enqueue(id="a", kind="play", **job)
    await door.ended("a")
    found, _ = await why(door, "a")

    assert (found["answer"], found["checks"], found["waits_for"]) == (answer, [], None)


async def test_a_job_that_runs_or_is_cancelled_says_so(door, autojump_clock):
    await door.enqueue(id="a", kind="play", payload="hold, then clean up")
    await begun(door)
    runs, _ = await why(door, "a")
    await door.post("/jobs/a/cancel")
    ends, _ = await why(door, "a")
    door.stage.cleaned.set()
    await door.ended("a")
    over, _ = await why(door, "a")

    assert runs["answer"].startswith(f"It is running: attempt 1 on {door.node.name} since ")
    assert ends["answer"].startswith("It was cancelled, and its handler has not ended yet on ")
    assert ends["waits_for"]["reason"] == "handler"
    assert over["answer"] == "It was cancelled on request."


async def test_a_life_is_told_as_spans(door, autojump_clock):
    """They cover it, and their sums by what they are are told as well."""
    await door.enqueue(id="a", kind="play", payload="hold", delay=3)
    await begun(door)
    await trio.sleep(2)
    runs = await told(door, "/jobs/a/timeline")
    door.stage.release.set()
    await door.ended("a")
    ended = await told(door, "/jobs/a/timeline")
    await told(door, "/jobs/none/timeline", 404)
    await told(door, "/jobs/none/why", 404)

    assert [span["what"] for span in runs["spans"]] == ["not_due", "running"]
    assert [span["what"] for span in ended["spans"]] == ["not_due", "running"]
    assert runs["seconds"] == pytest.approx({"not_due": 3, "running": 2}, abs=0.2)
    assert [(span["attempt"], span["outcome"]) for span in ended["spans"]] == [(None, None), (1, "done")]
    job = await told(door, "/jobs/a")
    assert (ended["spans"][0]["from"], ended["spans"][-1]["until"]) == (job["created_at"], job["finished_at"])
    assert runs["marks"] == ended["marks"] == [{"what": "enqueued", "at": job["created_at"]}]


async def test_nodes_are_listed_with_their_stops(door, autojump_clock):
    """A page at a time; a node that nobody knows is a 404."""
    now = door.node.clock.now()
    for name in ("n2", "n3"):
        await door.store.join(name, now, now + 60, frozenset({"mail"}))
    await door.store.leave("n3")
    stop = Account(
        node="n3",
        how="abandoned",
        signal="SIGTERM",
        began=now - 10,
        ended_at=now,
        active=1,
        finished=0,
        handed_back=0,
        abandoned=1,
        unbegun=2,
        attempts=[Unfinished(job="a", kind="mail", attempt=1, end="abandoned", line="a.py:3 in f")],
    )
    await door.store.note_account(stop)
    first = await told(door, "/nodes?limit=2")
    rest = await told(door, f"/nodes?limit=2&cursor={first['next_cursor']}")
    one = await told(door, "/nodes/n3")
    (shown,) = (await told(door, "/nodes/n3/stops"))["stops"]

    names = [node["name"] for node in first["nodes"] + rest["nodes"]]
    assert (names, rest["next_cursor"]) == (["n2", door.node.name, "n3"], None)
    assert [node["live"] for node in first["nodes"]] == [True, True]
    assert (one["live"], one["last_stop"]["how"], "attempts" in one["last_stop"]) == (
        False,
        "abandoned",
        False,
    )
    assert (shown["seconds"], shown["active"], shown["unbegun"]) == (10, 1, 2)
    assert shown["attempts"][0] == {
        "job": "a",
        "kind": "mail",
        "attempt": 1,
        "end": "abandoned",
        "status": None,
        "line": "a.py:3 in f",
    }
    own = first["nodes"][1]
    assert (own["workers"], own["jobs"], own["draining"]) == (door.node.settings.workers, 0, False)
    assert await told(door, "/nodes/n2/stops") == {"stops": []}
    for path in ("/nodes/none", "/nodes/none/stops"):
        assert (await told(door, path, 404))["code"] == "no_such_node"
    await told(door, "/nodes?cursor=x", 422)
