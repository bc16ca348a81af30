"""Limits of a queue over HTTP, and `/queues/NAME/keys`."""

import pytest


async def shown(door, path, status=200):
    answer = await door.get(path)
    assert answer.status_code == status
    return answer.json()


async def test_a_queue_shows_what_it_allows(either_door):
    """As it was sent, with durations in seconds; lists leave it out."""
    asked = {
        "max_running": 20,
        "rate": {"limit": 100, "period": "1m", "burst": 10},
        "per_key": {"max_running": 2, "rate": {"limit": 1, "period": 0.5}},
    }
    put = await either_door.put("/queues/mail", json=asked)
    queue = await shown(either_door, "/queues/mail")
    (listed,) = (await shown(either_door, "/queues"))["queues"]

    assert put.status_code == 200
    assert put.json() == queue
    assert {name: queue[name] for name in ("max_running", "rate", "per_key", "tokens", "keys")} == {
        "max_running": 20,
        "rate": {"limit": 100, "period": 60.0, "burst": 10},
        "per_key": {
            "max_running": 2,
            "rate": {"limit": 1, "period": 0.5, "burst": 1},
            "ordered": False,
            "on_failure": "go_on",
        },
        "tokens": 10,
        "keys": {},
    }
    assert "max_running" not in listed


async def test_what_is_left_out_is_set_back(either_door):
    """So are limits."""
    await either_door.put("/queues/mail", json={"max_running": 1, "closed": True})
    queue = (await either_door.put("/queues/mail", json={"per_key": {}})).json()

    assert (queue["closed"], queue["max_running"], queue["rate"], queue["per_key"]) == (
        False,
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({"max_running": -1}, ["/max_running"]),
        ({"max_running": 1.5}, ["/max_running"]),
        ({"rate": 5}, ["/rate"]),
        ({"rate": {"limit": 0, "period": 0}}, ["/rate/limit", "/rate/period"]),
        ({"rate": {"limit": 2, "period": "1m", "burst": 3}}, ["/rate/burst"]),
        ({"per_key": {"rate": {"limit": 2, "period": "x", "burst": 3}}}, ["/per_key/rate/period"]),
        ({"per_key": {"rate": {"limit": 2, "period": 1, "burst": 3}}}, ["/per_key/rate/burst"]),
        ({"per_key": {"ordered": 1}}, ["/per_key/ordered"]),
        ({"per_key": {"ordered": True, "on_failure": "wait"}}, ["/per_key/on_failure"]),
        ({"per_key": {"on_failure": "stop"}}, ["/per_key/on_failure"]),
        ({"rate": {"period": 1}}, ["/rate/limit"]),
    ],
)
async def test_each_fault_of_a_limit_is_named(either_door, body, pointers):
    answer = await either_door.put("/queues/mail", json=body)

    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["faults"]] == pointers


async def test_no_more_jobs_run_than_a_queue_allows(either_door):
    """The others follow as soon as there is room."""
    await either_door.put("/queues/mail", json={"max_running": 1})
    for number in range(5):
        await either_door.enqueue(id=f"a{number}", queue="mail")
    for number in range(5):
        await either_door.ended(f"a{number}")

    assert (await shown(either_door, "/queues/mail"))["counts"] == {"done": 5}


async def test_a_key_is_listed_set_paused_and_resumed(either_door):
    """Its jobs wait while it is paused, and run then."""
    paused = await either_door.post("/queues/mail/keys/acme/pause")
    await either_door.enqueue(id="a", queue="mail", key="acme")
    await either_door.enqueue(id="b", queue="mail", key="other")
    await either_door.ended("b")
    put = await either_door.put("/queues/mail/keys/acme", json={"weight": 2, "max_running": 5})
    listed = await shown(either_door, "/queues/mail/keys")
    one = await shown(either_door, "/queues/mail/keys/acme")
    resumed = await either_door.post("/queues/mail/keys/acme/resume")
    await either_door.ended("a")

    assert paused.json()["state"] == "paused"
    assert one == {
        "key": "acme",
        "state": "paused",
        "until": None,
        "stopped_by": None,
        "waiting": 1,
        "running": 0,
        "weight": 2,
        "max_running": 5,
    }
    assert put.json() == one == listed["keys"][0]
    assert resumed.json()["state"] == "open"
    assert (await shown(either_door, "/jobs/a"))["key"] == "acme"


async def test_an_ordered_key_stops_at_a_failed_job_until_it_is_resumed(either_door):
    """It says at which; the next job runs then."""
    order = {"ordered": True, "on_failure": "stop"}
    put = await either_door.put("/queues/mail", json={"per_key": order})
    await either_door.enqueue(
        id="a",
        kind="demo",
        payload={"fail": 1, "shortest": 0, "longest": 0},
        queue="mail",
        key="acme",
        max_retries=0,
    )
    await either_door.enqueue(id="b", queue="mail", key="acme")
    await either_door.enqueue(id="c", queue="mail", key="other")
    failed = await either_door.ended("a")
    await either_door.ended("c")
    stopped = await shown(either_door, "/queues/mail/keys?state=stopped")
    waiting = await shown(either_door, "/jobs/b")
    resumed = await either_door.post("/queues/mail/keys/acme/resume")
    await either_door.ended("b")

    assert put.json()["per_key"] == {"max_running": None, "rate": None, **order}
    assert (failed["status"], waiting["status"]) == ("failed", "queued")
    assert [(one["key"], one["state"], one["stopped_by"]) for one in stopped["keys"]] == [
        ("acme", "stopped", "a")
    ]
    assert resumed.json()["stopped_by"] is None


async def test_keys_come_in_pages(either_door):
    """By name, or only those that stand in one way; the jobs without a key come first."""
    await either_door.put("/queues/mail", json={"max_running": 0})
    for number, key in enumerate([None, "a", "é"]):
        await either_door.enqueue(id=str(number), queue="mail", **({"key": key} if key else {}))
    await either_door.post("/queues/mail/keys/b/pause")
    keys, cursor = [], ""
    while cursor is not None:
        page = await shown(either_door, f"/queues/mail/keys?limit=1{cursor and '&cursor='}{cursor}")
        keys += [one["key"] for one in page["keys"]]
        cursor = page["next_cursor"]
    of_state = await shown(either_door, "/queues/mail/keys?state=paused")

    assert keys == ["", "a", "b", "é"]
    assert [one["key"] for one in of_state["keys"]] == ["b"]
    assert (await shown(either_door, "/queues/mail"))["keys"] == {"open": 3, "paused": 1}


@pytest.mark.parametrize(
    ("method", "path", "body", "pointers"),
    [
        ("PUT", "/queues/-/keys/a b", {}, ["?name", "?key"]),
        ("PUT", f"/queues/mail/keys/{'k' * 201}", {}, ["?key"]),
        ("PUT", "/queues/mail/keys/a", {"weight": 0, "max_running": -1}, ["/weight", "/max_running"]),
        ("PUT", "/queues/mail/keys/a", {"rate": {}}, ["/rate"]),
        ("GET", "/queues/mail/keys?state=shut", None, ["?state"]),
        ("GET", "/queues/mail/keys?limit=0", None, ["?limit"]),
        ("POST", "/queues/-/keys/a/pause", None, ["?name"]),
    ],
)
async def test_each_fault_of_a_key_is_named(either_door, method, path, body, pointers):
    answer = await either_door.request(method, path, json=body)

    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["faults"]] == pointers


@pytest.mark.parametrize("key", ["", "a b", "a/b", "k" * 201, "\u202e", 5])
async def test_a_key_that_no_path_can_name_is_refused(either_door, key):
    answer = await either_door.enqueue(queue="mail", key=key)

    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["faults"]] == ["/key"]
