"""The dashboard in a real browser: by mouse, by keyboard, without scripts; wide and narrow, light and dark."""

import hashlib
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

pytestmark = pytest.mark.browser

AXE = Path(__file__).parent / "axe"
WITHOUT_STREAM = """
const fetched = window.fetch;
window.fetch = (what, ...more) => String(what.url ?? what).endsWith("/live/overview")
  ? Promise.reject(new TypeError("no stream")) : fetched(what, ...more);
"""
LIVE = "document.querySelector('#mark')?.textContent === 'live'"
TEXT = "document.querySelector('main').innerText"

PAGES = {
    "overview": "/dashboard",
    "jobs": "/dashboard/jobs",
    "none": "/dashboard/jobs?q=queue%3Anone+status%3Afailed",
    "wrong": "/dashboard/jobs?q=status%3Afialed",
    "act": "/dashboard/jobs/act?verb=delete&scope=all&q=tag%3At",
    "failed": "/dashboard/jobs/failed",
    "retrying": "/dashboard/jobs/retrying",
    "running": "/dashboard/jobs/running",
    "waiting": "/dashboard/jobs/waiting",
    "blocked": "/dashboard/jobs/blocked",
    "gone": "/dashboard/jobs/gone",
}


@pytest.fixture(scope="module")
def api(own_service):
    """The service, with a job for each page."""
    with httpx.Client(base_url=own_service) as client:
        client.post("/queues/paused/pause", json={"reason": "printer"})
        for job in [
            {
                "id": "running",
                "kind": "demo",
                "payload": {"shortest": 600, "longest": 600, "steps": 100},
                "timeout": 900,
            },
            {"id": "failed", "kind": "demo", "payload": {"fail": 1}, "max_retries": 0},
            {
                "id": "retrying",
                "kind": "demo",
                "payload": {"fail": 1},
                "backoff": {"base": 3000, "jitter": "none"},
            },
            {"id": "waiting", "queue": "paused", "tags": ["<b>t</b>"], "key": "acme", "payload": "</pre><b>"},
            {"id": "later", "delay": 3600, "tags": ["t"]},
            {"id": "blocked", "depends_on": ["later"]},
        ]:
            client.post("/enqueue", json=job).raise_for_status()
        for number in range(60):
            client.post(
                "/enqueue", json={"id": f"d{number}", "tags": ["t"], "payload": number}
            ).raise_for_status()
        client.get("/jobs/failed?wait=60")
        yield client


@pytest.fixture
def url(own_service, api):
    return own_service


def sound(page, url, status=()):
    """Nothing complains, and nothing is asked of anybody else."""
    complaints = [one for one in page.complaints() if not (status and "status of 4" in str(one))]
    assert complaints == []
    assert [
        one for one in page.requests() if not one.startswith((f"{url}/dashboard", "about:", "data:"))
    ] == []


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (1440, True), (390, False), (390, True)])
async def test_every_page_is_accessible_fits_and_complains_of_nothing(page, url, shots, width, dark):
    axe = (AXE / "axe.min.js").read_text()
    await page.look(width=width, dark=dark)
    found: dict[str, Any] = {}
    for name, path in PAGES.items():
        await page.show(url + path)
        assert await page.value("document.documentElement.scrollWidth <= innerWidth"), (
            name,
            "scrolls sideways",
        )
        assert await page.value("document.querySelectorAll('[style], main script, style').length") == 0
        await page.shoot(shots / f"{name}-{width}-{'dark' if dark else 'light'}.png")
        await page.value(f"{axe}; 0")
        violations = await page.value(
            "axe.run().then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html)]))"
        )
        found |= {name: violations} if violations else {}

    assert found == {}
    sound(page, url, status=(404,))


async def test_a_page_changes_while_it_is_looked_at(page, url, api):
    await page.look()
    await page.show(f"{url}/dashboard")
    await page.until(LIVE)
    before = await page.value("document.querySelector('.s-cancelled').closest('.cell').innerText")
    api.post("/enqueue", json={"id": "soon", "delay": 3600})
    api.post("/jobs/soon/cancel")
    await page.until(f"document.querySelector('.s-cancelled').closest('.cell').innerText !== {before!r}")
    await page.show(f"{url}/dashboard/jobs?q=id%3Asoon+id%3Ad1")
    await page.until(LIVE)
    await page.value("document.querySelector('tbody [type=checkbox]').click()")
    api.post("/jobs/soon/retry")
    await page.until(
        "document.querySelector('tbody').innerText.includes('done') && "
        "!document.querySelector('tbody').innerText.includes('cancelled')"
    )

    assert await page.value("document.querySelector('tbody [type=checkbox]').checked"), "a tick stays"
    sound(page, url)


async def test_times_are_local_and_ages_tick(page, url):
    await page.call("Emulation.setTimezoneOverride", timezoneId="Asia/Kolkata")
    await page.look()
    await page.show(f"{url}/dashboard/jobs/waiting")
    shown = await page.value(
        "[...document.querySelectorAll('.facts time')].map(t => [t.innerText, t.dateTime])"
    )
    first = await page.value("document.querySelector('.sub time').innerText")
    await page.until(f"document.querySelector('.sub time').innerText !== {first!r}")

    minute = int(shown[0][1][14:16])
    assert shown[0][0].split(":")[1] == f"{(minute + 30) % 60:02}"


async def test_by_keyboard_alone_a_job_is_found_and_cancelled(page, url, api):
    api.post("/enqueue", json={"id": "by-key", "delay": 3600})
    await page.look()
    await page.show(f"{url}/dashboard")
    await page.press("gj")
    await page.arrive("location.pathname.endsWith('/jobs')")
    await page.press("/")
    await page.call("Input.insertText", text="id:by-key")
    await page.press("Enter")
    await page.arrive("location.search.includes('by-key')")
    await page.press("jx")
    assert await page.value("document.querySelector('tbody [type=checkbox]').checked")
    await page.press("Enter")
    await page.arrive("location.pathname.endsWith('/by-key')")
    await page.press("c")
    await page.arrive(f"{TEXT}.includes('Cancelled')")
    await page.press("?")
    assert await page.value("document.querySelector('#keys').open")
    await page.press("Escape")
    theme = await page.value("document.documentElement.dataset.theme")
    await page.until("!document.querySelector('#keys').open")
    await page.press("d")
    assert await page.value("document.documentElement.dataset.theme") != theme
    sound(page, url)


async def test_every_act_works_without_a_script(page, url, api):
    await page.look(scripts=False)
    for name in ("n1", "n2", "n3"):
        api.post("/enqueue", json={"id": name, "delay": 3600, "queue": "plain"})

    async def click(selector, then):
        await page.value(f"document.querySelector({selector!r}).click()")
        await page.arrive(then)

    await page.show(f"{url}/dashboard/jobs/n1")
    await click("form[action$='/n1/promote'] button", "!document.querySelector('form[action$=\"promote\"]')")
    api.get("/jobs/n1?wait=60")
    await page.show(f"{url}/dashboard/jobs/n1")
    await click("form[action$='/n1/retry'] button", "true")
    while len(api.get("/jobs/n1").json()["attempts"]) < 2:  # noqa: ASYNC110 - another process
        await trio.sleep(0.05)
    api.get("/jobs/n1?wait=60")
    await page.show(f"{url}/dashboard/jobs/n1")
    await page.value("document.querySelector('.ask summary').click()")
    await click("form[action$='/n1/delete'] button", "location.pathname.endsWith('/jobs')")
    await page.show(f"{url}/dashboard/jobs?q=queue%3Aplain")
    await page.value("document.querySelector('[value=all]').click()")
    await click("[name=verb][value=cancel]", f"{TEXT}.includes('2 jobs to be cancelled')")
    await click("form[action$='/act'] button", f"{TEXT}.includes('Changed')")
    await page.show(f"{url}/dashboard")
    await click(
        "[aria-label='Pause queue plain']", "!!document.querySelector('[aria-label=\"Resume queue plain\"]')"
    )
    await click(
        "[aria-label='Resume queue plain']", "!!document.querySelector('[aria-label=\"Pause queue plain\"]')"
    )

    assert api.get("/jobs/n1").status_code == 404
    assert api.get("/jobs/n2").json()["status"] == "cancelled"
    assert "Refresh" in await page.value("document.querySelector('header').innerText")
    sound(page, url)


async def test_where_no_stream_is_to_be_had_the_page_asks(page, url, api):
    await page.look()
    await page.call("Page.addScriptToEvaluateOnNewDocument", source=WITHOUT_STREAM)
    await page.show(f"{url}/dashboard")
    await page.until("document.querySelector('#mark').dataset.state === 'late'")
    before = await page.value("document.querySelector('.s-cancelled').closest('.cell').innerText")
    api.post("/enqueue", json={"id": "polled", "delay": 3600})
    api.post("/jobs/polled/cancel")
    await page.value("htmx.trigger('#poll', 'poll')")

    await page.until(f"document.querySelector('.s-cancelled').closest('.cell').innerText !== {before!r}")


def test_axe_is_that_of_the_release():
    sums = dict(re.findall(r"^([0-9a-f]{64})  (\S+)$", (AXE / "VENDORED.txt").read_text(), re.MULTILINE))

    assert {hashlib.sha256((AXE / name).read_bytes()).hexdigest() for name in sums.values()} == set(sums)
