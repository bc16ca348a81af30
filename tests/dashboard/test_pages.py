"""The pages over HTTP: what they say, how they escape, what they refuse, and what of them stands without a store."""

import gzip
import html
import re
from urllib.parse import quote

import pytest
import trio

from jobpipe.dashboard import Dashboard
from jobpipe.dashboard.app import HEADERS
from jobpipe.dashboard.words import UNKNOWN
from jobpipe.settings import Settings
from jobpipe.store.base import Filter, NewOperation
from tests.api.client import Breakable, open_door

HOSTILE = "</pre><script>alert(1)</script>\u2028&'\"{{7*7}}"
CROSS_SITE = {"Sec-Fetch-Site": "cross-site"}


async def test_the_way_leads_to_the_overview_which_says_that_all_is_well(door, words):
    start = await door.get("/")
    page = await door.get("/dashboard")

    assert (start.status_code, start.headers["location"]) == (302, "/dashboard")
    assert "This node is healthy. Nothing needs attention." in words(page)
    assert "No job yet. Three lines to paste" in words(page)
    assert HEADERS.items() <= dict(page.headers.multi_items()).items() or all(
        page.headers[name] == value for name, value in HEADERS.items()
    )


async def test_files_are_kept_for_a_year_under_an_address_with_their_version(door):
    page = await door.get("/dashboard")
    addresses = set(re.findall(r'"(/dashboard/static/[^"#]+)', page.text))
    answers = [await door.get(address) for address in sorted(addresses)]
    old = await door.get(re.sub(r"static/[^/]+/", "static/0.0.1-old/", min(addresses)))

    assert len(addresses) >= 5
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["cache-control"] for answer in answers} == {"public, max-age=31536000, immutable"}
    assert old.status_code == 404


async def test_the_overview_tells_of_queues_and_counts(door, words, autojump_clock):
    await door.post("/queues/mail/pause", json={"reason": "printer"})
    for number in range(3):
        await door.enqueue(id=f"m{number}", queue="mail")
    await door.enqueue(id="a", kind="play", payload="fail")
    await door.ended("a")
    await door.enqueue(id="b", kind="play", payload="hold")
    await trio.sleep(1)
    page = words(await door.get("/dashboard"))

    assert "1 of 2 workers are busy and 3 jobs are ready to run" in page
    assert "Fail in play: 1 job has failed" in page
    assert "paused: printer" in page
    assert "3 queued" in page
    assert "1 failed" in page


async def test_the_list_is_found_by_words_and_a_single_word_may_be_an_id(door, words, autojump_clock):
    await door.enqueue(id="m1", queue="mail", run_at="2030-01-01T00:00:00Z")
    await door.enqueue(id="d1")
    await door.ended("d1")
    found = await door.get("/dashboard/jobs", params={"q": "status:scheduled queue:mail"})
    none = await door.get("/dashboard/jobs", params={"q": "queue:mail tag:none"})
    jump = await door.get("/dashboard/jobs", params={"q": "d1"})
    part = await door.get("/dashboard/jobs", params={"q": "d"})
    wrong = await door.get("/dashboard/jobs", params={"q": "status:fialed"})
    counted = await door.get("/dashboard/jobs", params={"q": "kind:echo", "count": "1"})

    assert (found.text.count("<tr id="), "m1" in found.text) == (1, True)
    assert "No job matches. Without one of the words: queue:mail tag:none" in words(none)
    assert (jump.status_code, jump.headers["location"]) == (303, "/dashboard/jobs/d1")
    assert "d1" in part.text
    assert "status:fialed" in words(wrong)
    assert "2 jobs." in words(counted)


async def test_pages_of_fifty_lead_on_until_the_end(door):
    jobs = [{"id": f"j{number}", "delay": 100} for number in range(120)]
    await door.post("/enqueue/bulk", json=jobs)
    seen, path = list[str](), "/dashboard/jobs"
    while path:
        page = await door.get(path)
        seen += re.findall(r'<td class="wide mono id"><a [^>]*>(j\d+)<', page.text)
        older = re.search(r'id="older" href="([^"]+)"', page.text)
        path = html.unescape(older[1]) if older else ""

    assert seen == [f"j{number}" for number in reversed(range(120))]


async def test_a_job_shows_all_of_itself_and_nothing_of_it_is_markup(door, words, autojump_clock):
    await door.enqueue(id="h", kind="play", payload=HOSTILE, tags=["<b>t</b>"], key="k'<i>")
    await door.ended("h")
    await door.enqueue(id="n<i>", kind="play", payload="tell")
    await door.stage.begun.wait()
    await trio.sleep(1)
    page = await door.get("/dashboard/jobs/h")
    told = await door.get(f"/dashboard/jobs/{quote('n<i>')}")
    listed = await door.get("/dashboard/jobs")

    for text in (page.text, told.text, listed.text):
        assert "<script>alert" not in text
        assert "<i>" not in text
        assert "<b>t" not in text
    assert "{{7*7}}" in words(page)
    assert "Done" in words(page)
    assert "half of it" in words(told)
    assert "second" in words(told)
    assert "runs on n1" in words(told)


async def test_numbers_are_shown_with_the_digits_that_were_sent(door, words, autojump_clock):
    body = b'{"id": "n", "payload": {"big": 3544790567247868102, "dec": 1.10}}'
    await door.post("/enqueue", content=body)
    await door.enqueue(id="long", payload="x" * 50_000)

    assert '"big" : 3544790567247868102 , "dec" : 1.10' in words(await door.get("/dashboard/jobs/n"))
    long = await door.get("/dashboard/jobs/long")
    assert "The first 16 KiB of 48.8 KiB" in words(long)
    assert len(long.text) < 60_000


async def test_a_waiting_job_says_why(door, words):
    await door.post("/queues/mail/pause", json={"reason": "printer"})
    await door.enqueue(id="p", queue="mail")
    await door.enqueue(id="s", delay=60)
    await door.enqueue(id="b", depends_on=["s"])

    assert "Waiting because queue mail is paused (printer)." in words(await door.get("/dashboard/jobs/p"))
    assert "Waiting because it is not due yet" in words(await door.get("/dashboard/jobs/s"))
    assert "Waiting because 1 job has not ended: s ." in words(await door.get("/dashboard/jobs/b"))


async def test_what_is_not_there_is_a_page_too(door, words):
    gone = await door.get("/dashboard/jobs/none")
    nowhere = await door.get("/dashboard/none")
    wrong = await door.post("/dashboard")
    cursor = await door.get("/dashboard/jobs", params={"cursor": "x"})
    stop = await door.post("/dashboard/operations/none/stop")

    assert [one.status_code for one in (gone, nowhere, wrong, cursor, stop)] == [404, 404, 405, 422, 404]
    assert {one.headers["content-type"] for one in (gone, nowhere, wrong, cursor, stop)} == {
        "text/html; charset=utf-8"
    }
    assert "Look for it among all jobs" in words(gone)


async def test_without_a_store_the_frame_stays_and_no_figure_is_made_up(words):
    store = Breakable()
    async with open_door(store, pages=Dashboard) as door:
        await door.enqueue(id="a", delay=60)
        store.refuses = True
        page = await door.get("/dashboard")
        jobs = await door.get("/dashboard/jobs")
        store.refuses = False

    assert page.status_code == 200
    assert "This node is in trouble." in words(page)
    assert "the disk is full" in words(page)
    assert re.findall(r'<span class="v[^>]*>([^<]*)</span>', page.text) == [UNKNOWN] * 10
    assert (jobs.status_code, "the disk is full" in words(jobs)) == (503, True)


async def test_pages_are_packed_for_who_can_unpack_them(door):
    async with door.stream("GET", "/dashboard", headers={"Accept-Encoding": "gzip"}) as answer:
        raw = b"".join([part async for part in answer.aiter_raw()])

    assert answer.headers["content-encoding"] == "gzip"
    assert b"<!doctype html>" in gzip.decompress(raw)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "mode"),
    [
        (("127.0.0.1",), "on"),
        (("localhost", "::1"), "on"),
        (("0.0.0.0",), "read"),
        (("127.0.0.1", "10.0.0.1"), "read"),
    ],
)
def test_buttons_are_there_where_only_this_machine_gets_in(host, mode):
    assert Settings(host=host).dashboard == mode
    assert Settings(host=host, dashboard="off").dashboard == "off"


async def test_who_may_only_look_sees_no_button_and_is_refused(words):
    async with open_door(pages=Dashboard, dashboard="read") as door:
        await door.enqueue(id="a", delay=60)
        pages = [await door.get(path) for path in ("/dashboard", "/dashboard/jobs", "/dashboard/jobs/a")]
        acts = [
            await door.post(path)
            for path in ("/dashboard/jobs/a/cancel", "/dashboard/queues/default/pause", "/dashboard/jobs/act")
        ]
        asked = await door.get("/dashboard/jobs/act", params={"verb": "delete", "id": "a"})
        after = (await door.get("/jobs/a")).json()

    assert [
        re.findall(r'method="post"|name="verb"|type="checkbox" name="id"', page.text) for page in pages
    ] == [[]] * 3
    assert [act.status_code for act in (*acts, asked)] == [403] * 4
    assert "DASHBOARD is read" in words(acts[0])
    assert after["status"] == "scheduled"


async def test_payloads_results_and_logs_can_be_kept_back(words, autojump_clock):
    async with open_door(pages=Dashboard, show_payloads="no") as door:
        await door.enqueue(id="a", kind="play", payload="tell, and end")
        await door.ended("a")
        page = words(await door.get("/dashboard/jobs/a"))

    assert "tell, and end" not in page
    assert "first" not in page.partition("Progress and log")[2]
    assert page.count("SHOW_PAYLOADS is no") == 2


async def test_every_link_leads_below_the_base_path(words):
    async with open_door(pages=Dashboard, base_path="/ops/q") as door:
        await door.enqueue(id="a", delay=60)
        start = await door.get("/")
        pages = [
            await door.get(f"/ops/q{path}") for path in ("/dashboard", "/dashboard/jobs", "/dashboard/jobs/a")
        ]
        taken_off = await door.get("/dashboard/jobs/a")
        act = await door.post("/ops/q/dashboard/jobs/a/cancel")
        api = await door.get("/ops/q/jobs/a")
        docs = await door.get("/ops/q/docs")
        spec = await door.get("/openapi.json")

    links = [
        link
        for page in pages
        for link in re.findall(r'(?:href|src|action|hx-get|hx-sse:connect)="(/[^"]*)"', page.text)
    ]
    assert start.headers["location"] == "/ops/q/dashboard"
    assert len(links) > 30
    assert [link for link in links if not link.startswith("/ops/q/")] == []
    assert (taken_off.status_code, '"/ops/q/dashboard/jobs"' in taken_off.text) == (200, True)
    assert act.headers["location"] == "/ops/q/dashboard/jobs/a"
    assert api.json()["status"] == "cancelled"
    assert '"/ops/q/static/' in docs.text
    assert spec.json()["servers"][0]["url"] == "/ops/q"


# --- acts -------------------------------------------------------------------------------------------------------------


async def test_each_button_of_a_job_does_what_the_api_does(door, autojump_clock):
    await door.enqueue(id="a", delay=60)
    promoted = await door.post("/dashboard/jobs/a/promote")
    await door.ended("a")
    retried = await door.post("/dashboard/jobs/a/retry")
    await door.ended("a")
    await door.enqueue(id="c", delay=60)
    cancelled = await door.post("/dashboard/jobs/c/cancel")
    gone = await door.post("/dashboard/jobs/a/delete")
    statuses = [(await door.get(f"/jobs/{job}")).status_code for job in "ac"]

    assert {answer.status_code for answer in (promoted, retried, cancelled, gone)} == {303}
    assert [answer.headers["location"] for answer in (promoted, gone)] == [
        "/dashboard/jobs/a",
        "/dashboard/jobs",
    ]
    assert statuses == [404, 200]


async def test_what_was_refused_is_told_where_it_was_asked(door, words, autojump_clock):
    await door.enqueue(id="a")
    await door.ended("a")
    refused = await door.post("/dashboard/jobs/a/promote")
    gone = await door.post("/dashboard/jobs/none/cancel")

    assert refused.status_code == 409
    assert "job 'a' is done: only a waiting job" in words(refused)
    assert gone.status_code == 404


async def test_a_job_is_edited_as_far_as_something_was_changed(door, words):
    await door.enqueue(id="a", delay=60, payload={"n": 1})
    page = await door.get("/dashboard/jobs/a")
    shown = html.unescape(page.text.partition("<textarea")[2].partition(">")[2].partition("</textarea>")[0])
    same = {"queue": "default", "priority": "0", "payload": shown.replace("\n", "\r\n")}
    nothing = await door.post("/dashboard/jobs/a/edit", data=same)
    edited = await door.post(
        "/dashboard/jobs/a/edit", data={**same, "priority": "7", "payload": '{"n": 9007199254740993}'}
    )
    wrong = await door.post("/dashboard/jobs/a/edit", data={**same, "priority": "7", "payload": "{n: 1}"})
    far = await door.post("/dashboard/jobs/a/edit", data={**same, "priority": "high"})
    job = await door.get("/jobs/a")

    assert (nothing.status_code, edited.status_code) == (303, 303)
    assert (wrong.status_code, far.status_code) == (422, 422)
    assert "{n: 1}" in wrong.text
    assert "is not JSON" in words(wrong)
    assert job.json()["priority"] == 7
    assert b"9007199254740993" in job.content


async def test_a_page_of_another_site_can_do_nothing(door):
    await door.enqueue(id="a", delay=60)
    answers = [
        await door.post(path, headers=CROSS_SITE)
        for path in ("/dashboard/jobs/a/delete", "/dashboard/queues/default/pause", "/dashboard/jobs/act")
    ]

    assert [answer.status_code for answer in answers] == [403] * 3
    assert (await door.get("/jobs/a")).json()["status"] == "scheduled"


async def test_a_queue_is_paused_and_resumed(door):
    paused = await door.post("/dashboard/queues/mail/pause")
    state = (await door.get("/queues/mail")).json()["paused"]
    resumed = await door.post("/dashboard/queues/mail/resume")
    wrong = await door.post("/dashboard/queues/%20/pause")

    assert [paused.status_code, resumed.status_code, wrong.status_code] == [303, 303, 422]
    assert state


async def test_many_jobs_are_counted_before_and_only_those_are_meant(door, words, autojump_clock):
    await door.post("/enqueue/bulk", json=[{"id": f"j{n}", "delay": 100, "tags": ["t"]} for n in range(5)])
    await door.enqueue(id="other", delay=100)
    asked = await door.get("/dashboard/jobs/act", params={"verb": "cancel", "scope": "all", "q": "tag:t"})
    done = await door.post("/dashboard/jobs/act", data={"verb": "cancel", "q": "tag:t", "count": "5"})
    progress = await door.get(done.headers["location"])
    left = (await door.get("/jobs", params={"status": "scheduled"})).json()["jobs"]

    assert "5 jobs to be cancelled" in words(asked)
    assert "Cancel 5 jobs" in words(asked)
    assert "Came to 5 Changed 5 Stayed as they were 0" in words(progress)
    assert [job["id"] for job in left] == ["other"]


async def test_to_delete_jobs_their_number_has_to_be_typed(door, words, autojump_clock):
    await door.post("/enqueue/bulk", json=[{"id": f"j{n}", "delay": 100} for n in range(3)])
    form = {"verb": "delete", "id": ["j0", "j1"], "q": "", "count": "2"}
    asked = await door.get(
        "/dashboard/jobs/act", params={"verb": "delete", "id": ["j0", "j1"], "scope": "ticked"}
    )
    refused = await door.post("/dashboard/jobs/act", data=form)
    done = await door.post("/dashboard/jobs/act", data={**form, "typed": "2"})

    assert "Type 2 to go on" in words(asked)
    assert (refused.status_code, done.status_code) == (422, 303)
    assert "is not the number of the jobs, which is 2" in words(refused)
    assert await door.stored() == 1


async def test_jobs_are_moved_at_a_rate_and_nothing_means_all(door, words, autojump_clock):
    await door.enqueue(id="a", delay=100)
    form = {"verb": "move", "id": "a", "count": "1", "queue": "slow", "rate": "5"}
    changes = list[dict[str, object]]([{"queue": "no name"}, {"rate": "0"}, {"verb": "explode"}, {"id": []}])
    answers = [await door.post("/dashboard/jobs/act", data={**form, **change}) for change in changes]
    none = await door.get("/dashboard/jobs/act", params={"verb": "move", "scope": "ticked"})
    moved = await door.post("/dashboard/jobs/act", data=form)

    assert [answer.status_code for answer in answers] == [422] * 4
    assert (none.status_code, moved.status_code) == (422, 303)
    assert (await door.get("/jobs/a")).json()["queue"] == "slow"


async def test_what_goes_on_can_be_stopped(door, words):
    await door.enqueue(id="a", delay=100)
    asked = NewOperation(id="o", verb="cancel", where=Filter(queue="none"), rate=0.1)
    await door.store.begin_operation(asked, door.node.clock.now())
    stopped = await door.post("/dashboard/operations/o/stop")
    page = await door.get("/dashboard/operations/o")

    assert stopped.headers["location"] == "/dashboard/operations/o"
    assert "at most 0.1 a second" in words(page)
