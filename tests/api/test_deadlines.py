"""`deadline` in requests: what is answered to what is asked."""

import pytest

TIME = "2099-01-01T00:00:00.000Z"
LATER = "2099-01-01T00:00:01.000Z"
PAST = "2001-01-01T00:00:00.000Z"


async def test_it_is_shown_as_it_was_sent(door, autojump_clock):
    first = await door.enqueue(id="a", delay=60, deadline=TIME)
    both = await door.enqueue(id="b", delay=60, expires_at=TIME, deadline=LATER)
    none = await door.enqueue(id="c", delay=60, expires_at=TIME)
    again = await door.enqueue(id="a", delay=60, deadline=TIME)
    other = await door.enqueue(id="a", delay=60, deadline=LATER)

    assert (first.json()["deadline"], first.json()["expires_at"]) == (TIME, None)
    assert (both.json()["deadline"], both.json()["expires_at"]) == (LATER, TIME)
    assert "deadline" not in none.json()
    assert (again.status_code, other.status_code) == (200, 409)


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ({"deadline": PAST}, "/deadline"),
        ({"deadline": TIME, "run_at": LATER}, "/deadline"),
        ({"deadline": TIME, "expires_at": TIME}, "/expires_at"),
        ({"deadline": TIME, "expires_at": LATER}, "/expires_at"),
        ({"deadline": LATER, "expires_at": PAST}, "/expires_at"),
        ({"deadline": "soon"}, "/deadline"),
        ({"deadline": 60}, "/deadline"),
    ],
)
async def test_one_that_cannot_be_met_is_refused(door, autojump_clock, asked, place):
    answers = [await door.enqueue(**asked), await door.post("/enqueue/bulk", json=[asked])]
    group = await door.post("/groups", json={"jobs": [asked]})

    assert [answer.status_code for answer in (*answers, group)] == [422] * 3
    assert [answer.json()["faults"][0]["pointer"] for answer in answers] == [place, f"/0{place}"]
    assert group.json()["faults"][0]["pointer"] == f"/jobs/0{place}"
    assert (await door.get("/jobs")).json()["jobs"] == []


async def test_an_edit_keeps_it(door, autojump_clock):
    await door.enqueue(id="a", delay=60, expires_at=TIME, deadline=LATER)
    cleared = await door.request("PATCH", "/jobs/a", json={"expires_at": None})
    late = await door.request("PATCH", "/jobs/a", json={"expires_at": LATER})
    too_late = await door.request("PATCH", "/jobs/a", json={"run_at": "2099-01-01T00:00:02Z"})
    again = await door.request("PATCH", "/jobs/a", json={"expires_at": TIME})

    assert (cleared.json()["expires_at"], cleared.json()["deadline"]) == (None, LATER)
    assert (late.status_code, late.json()["faults"][0]["pointer"]) == (422, "/expires_at")
    assert too_late.status_code == 422
    assert (again.json()["expires_at"], again.json()["deadline"]) == (TIME, LATER)
