"""`/schedules`: put, get, list, pause, resume, run and delete schedules."""

import pytest
import trio

from jobpipe.schedules import Declaration, Spec
from tests.store.test_contract import new_job

DAILY = {"cron": "30 2 * * *", "timezone": "Europe/Berlin", "job": {"payload": {"n": 1}, "queue": "reports"}}


async def put(door, name="nightly", body=None, **more):
    return await door.request("PUT", f"/schedules/{name}", json=(DAILY if body is None else body) | more)


def pointers(answer):
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), answer.text
    return [fault["pointer"] for fault in answer.json()["faults"]]


async def test_a_schedule_is_created_with_its_next_five_firings(either_door):
    made = await put(either_door)
    shown = (await either_door.get("/schedules/nightly")).json()

    assert made.status_code == 201
    assert shown == made.json() | {"last": []}
    assert shown["in_words"] == "At 02:30 every day, Europe/Berlin"
    assert (shown["name"], shown["version"], shown["paused"], shown["missed"]) == ("nightly", 1, False, 0)
    assert len(shown["next"]) == 5
    assert {time[10:] for time in shown["next"]} <= {"T00:30:00.000Z", "T01:30:00.000Z", "T01:00:00.000Z"}
    assert (shown["overlap"], shown["catch_up"], shown["limit"], shown["jitter"]) == ("skip", "one", 100, 0)
    assert shown["job"] == {
        "kind": "echo",
        "payload": {"n": 1},
        "queue": "reports",
        "priority": 0,
        "max_retries": None,
        "timeout": None,
        "backoff": None,
        "on_crash": "retry",
        "tags": [],
        "key": None,
    }


async def test_the_same_request_changes_nothing_and_another_is_a_new_version(either_door):
    first, again, changed = [await put(either_door, jitter=jitter) for jitter in (0, 0, 5)]

    assert [one.status_code for one in (first, again, changed)] == [201, 200, 200]
    assert again.json() == first.json()
    assert (changed.json()["version"], changed.json()["jitter"]) == (2, 5)


async def test_its_jobs_are_made_and_shown(door, autojump_clock):
    await put(door, "often", {"every": 60, "job": {"payload": "x"}})
    await trio.sleep(12 * 60 + 1)
    shown = (await door.get("/schedules/often")).json()
    job = (await door.get(f"/jobs/{shown['last'][0]['id']}")).json()

    assert len(shown["last"]) == 10
    assert shown["last"][0]["at"] == shown["last_at"]
    assert {one["status"] for one in shown["last"]} == {"done"}
    assert (job["payload"], job["result"], job["kind"]) == ("x", "x", "echo")
    assert job["id"] == f"often@{shown['last_at'].replace('.000', '')}"


async def test_a_number_in_the_payload_keeps_its_digits(door):
    await door.request(
        "PUT", "/schedules/a", content=b'{"every": 60, "job": {"payload": 12345678901234567890.10}}'
    )
    ran = await door.post("/schedules/a/run")

    assert b'"payload":12345678901234567890.10' in ran.content


async def test_a_run_by_hand_is_a_job_beside_the_firings(either_door):
    await put(either_door)
    await either_door.post("/schedules/nightly/pause")
    ran = await either_door.post("/schedules/nightly/run")
    job = await either_door.ended(ran.json()["id"])
    shown = (await either_door.get("/schedules/nightly")).json()

    assert ran.status_code == 202
    assert ran.headers["location"] == "/jobs/" + ran.json()["id"].replace("@", "%40").replace(":", "%3A")
    assert (job["status"], job["queue"]) == ("done", "reports")
    assert [one["id"] for one in shown["last"]] == [job["id"]]
    assert (shown["last_at"], shown["version"]) == (None, 1)


async def test_a_job_of_somebody_whose_id_begins_so_is_not_shown(door):
    await put(door)
    await door.enqueue(id="nightly@home")

    assert (await door.get("/schedules/nightly")).json()["last"] == []


async def test_a_paused_schedule_says_why_and_has_no_next(either_door):
    await put(either_door)
    paused = await either_door.post("/schedules/nightly/pause", json={"reason": "the printer is broken"})
    edited = await put(either_door, jitter=1)
    resumed = await either_door.post("/schedules/nightly/resume")

    assert (paused.json()["paused"], paused.json()["next"]) == (True, [])
    assert edited.json()["reason"] == paused.json()["reason"] == "the printer is broken"
    assert (resumed.json()["paused"], resumed.json()["reason"], len(resumed.json()["next"])) == (
        False,
        None,
        5,
    )


async def test_a_reason_need_not_be_given(door):
    await put(door)
    bare = await door.post("/schedules/nightly/pause")
    empty = await door.post("/schedules/nightly/pause", json={})

    assert (
        (bare.status_code, bare.json()["reason"])
        == (empty.status_code, empty.json()["reason"])
        == (200, None)
    )


async def test_a_deleted_schedule_is_gone(either_door):
    await put(either_door)
    answers = [await either_door.delete("/schedules/nightly") for _ in range(2)]

    assert [one.status_code for one in answers] == [204, 404]
    assert answers[1].json()["code"] == "no_such_schedule"


@pytest.mark.parametrize(
    ("method", "verb"),
    [("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/resume"), ("POST", "/run")],
)
async def test_an_absent_schedule_is_404_and_a_name_that_cannot_be_422(door, method, verb):
    absent = await door.request(method, f"/schedules/none{verb}")
    wrong = await door.request(method, f"/schedules/-x{verb}")

    assert (absent.status_code, absent.json()["code"]) == (404, "no_such_schedule")
    assert pointers(wrong) == ["?name"]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, ["/cron"]),
        ({"cron": "* * * * *", "every": 60}, ["/cron"]),
        ({"cron": "61 * * * *"}, ["/cron"]),
        ({"cron": ""}, ["/cron"]),
        ({"cron": "0 0 30 2 *"}, ["/cron"]),
        ({"cron": "* * * * *", "timezone": "Europe/Atlantis"}, ["/timezone"]),
        ({"every": 60, "timezone": "Europe/Berlin"}, ["/timezone"]),
        ({"every": 0.5}, ["/every"]),
        ({"every": "500ms"}, ["/every"]),
        ({"every": "soon", "jitter": "5 min"}, ["/every", "/jitter"]),
        ({"every": 60, "jitter": -1, "limit": 0, "overlap": "x"}, ["/overlap", "/limit", "/jitter"]),
        ({"every": 60, "catch_up": "all"}, ["/catch_up"]),
        ({"every": 60, "starts_at": "2030-01-01"}, ["/starts_at"]),
        ({"every": 60, "starts_at": "2030-01-01T00:00:00Z", "ends_at": "2029-01-01T00:00:00Z"}, ["/ends_at"]),
        ({"every": 60, "job": {"kind": "unknown-kind"}}, ["/job/kind"]),
        ({"every": 60, "job": {"kind": "mail", "payload": {"to": "x"}}}, ["/job/payload/to"]),
        ({"every": 60, "job": {"id": "a"}}, ["/job/id"]),
        (
            {"every": 60, "job": {"run_at": "2030-01-01T00:00:00Z", "priority": 5000}},
            ["/job/priority", "/job/run_at"],
        ),
        ({"every": 60, "job": {"kind": "unknown-kind"}, "catch_up": "all"}, ["/catch_up", "/job/kind"]),
        ({"every": 60, "job": []}, ["/job"]),
        ({"every": 60, "job": {"payload": "x" * 65536}}, ["/job"]),
        ({"every": 60, "corn": "* * * * *"}, ["/corn"]),
        ([], [""]),
    ],
)
async def test_every_fault_is_named(door, body, where):
    answer = await door.request("PUT", "/schedules/a", json=body)

    assert sorted(pointers(answer)) == sorted(where)
    assert (await door.get("/schedules")).json()["schedules"] == []


async def test_a_payload_that_nests_too_deep_is_refused(door):
    for levels in (600, 100_000):
        body = b'{"every":60,"job":{"payload":' + b"[" * levels + b"]" * levels + b"}}"
        answer = await door.request("PUT", "/schedules/a", content=body)

        assert answer.status_code == 422


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"job": NaN}'])
async def test_a_body_that_is_no_json_is_refused(door, body):
    answer = await door.request("PUT", "/schedules/a", content=body)

    assert (answer.status_code, answer.json()["code"]) == (400, "not_json")


@pytest.mark.parametrize("reason", ["", "x" * 501, "a\nb", "\u202e", 5])
async def test_a_reason_that_cannot_be_shown_is_refused(door, reason):
    await put(door)

    assert pointers(await door.post("/schedules/nightly/pause", json={"reason": reason})) == ["/reason"]


async def test_schedules_are_listed_by_name_in_pages_without_payloads(either_door):
    for name in ("c", "a", "b"):
        await put(either_door, name)
    page = (await either_door.get("/schedules?limit=2")).json()
    rest = (await either_door.get(f"/schedules?cursor={page['next_cursor']}")).json()

    assert [one["name"] for one in page["schedules"]] == ["a", "b"]
    assert ([one["name"] for one in rest["schedules"]], rest["next_cursor"]) == (["c"], None)
    assert len(page["schedules"][0]["next"]) == 1
    assert "last" not in page["schedules"][0]
    assert "payload" not in page["schedules"][0]["job"]


async def test_a_damaged_schedule_is_shown_and_can_be_put_again(door):
    await put(door)
    door.store._db.execute("update schedules set spec = x'ff'")
    shown = (await door.get("/schedules/nightly")).json()
    ran = await door.post("/schedules/nightly/run")
    again = await put(door)

    assert shown["error"]["type"] == "DamagedRow"
    assert (shown["next"], shown["in_words"]) == ([], None)
    assert pointers(ran) == ["?name"]
    assert (again.status_code, again.json()["error"], again.json()["cron"]) == (200, None, "30 2 * * *")


async def test_durations_may_be_texts(door):
    job = {"timeout": "1m", "backoff": {"base": "2s"}}
    shown = (await put(door, "a", {"every": "5m", "jitter": "1m30s", "job": job})).json()

    assert (shown["every"], shown["jitter"], shown["job"]["timeout"]) == (300, 90, 60)
    assert shown["job"]["backoff"]["base"] == 2


async def test_a_job_says_which_schedule_made_it_and_when(door, autojump_clock):
    await put(door, "often", {"every": 60})
    await trio.sleep(60)
    last = (await door.get("/schedules/often")).json()["last"][0]
    by_hand = (await door.post("/schedules/often/run")).json()
    await door.enqueue(id="plain")

    assert (await door.get(f"/jobs/{last['id']}")).json()["schedule"] == {"name": "often", "at": last["at"]}
    assert by_hand["schedule"]["name"] == "often"
    assert "schedule" not in (await door.get("/jobs/plain")).json()


async def test_a_schedule_that_is_declared_in_code_is_changed_there(door):
    declared = Declaration(name="a", spec=Spec(every=60), job=new_job("", kind="echo"))
    now = door.node.clock.now()
    await door.node.store.declare([declared], now, now)
    shown = (await door.get("/schedules/a")).json()
    refused = [await put(door, "a"), await door.delete("/schedules/a")]
    paused = await door.post("/schedules/a/pause", json={"reason": "by hand"})
    ran = await door.post("/schedules/a/run")
    resumed = await door.post("/schedules/a/resume")

    assert (shown["declared"], shown["every"]) == (True, 60)
    for answer in refused:
        assert (answer.status_code, answer.json()["code"]) == (409, "declared")
    assert (paused.json()["paused"], paused.json()["reason"]) == (True, "by hand")
    assert (ran.status_code, resumed.json()["paused"]) == (202, False)
