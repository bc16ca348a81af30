"""`/docs` in a real browser: it shows the whole spec, is there to be tried, and needs nothing from the internet."""

import httpx
import pytest

pytestmark = pytest.mark.browser

SHOWN = """[...document.querySelectorAll(".opblock-summary")].map(each =>
    each.querySelector(".opblock-summary-method").innerText + " " +
    each.querySelector(".opblock-summary-path").dataset.path)"""

ENQUEUE = "document.querySelector('#operations-enqueue-enqueue_job')"
MODELS = ".models > .no-margin > article"
ANSWER = ".live-responses-table .response-col_status:not(.col_header)"


@pytest.fixture
async def docs(page, service):
    """The page, once it shows its operations."""
    await page.goto(f"{service}/docs")
    await page.until("!!document.querySelector('.opblock')")
    return page


@pytest.fixture
async def spec(service):
    async with httpx.AsyncClient() as client:
        return (await client.get(f"{service}/openapi.json")).json()


def _all_from(service, urls):
    return {url for url in urls if not url.startswith((f"{service}/", "data:"))} == set()


async def test_page_shows_every_operation_of_the_spec_without_a_complaint(docs, spec, service):
    shown = await docs.value(SHOWN)

    assert sorted(shown) == sorted(
        f"{method.upper()} {path}" for path, methods in spec["paths"].items() for method in methods
    )
    assert await docs.value("document.title") == f"jobpipe {spec['info']['version']}: HTTP API"
    assert docs.complaints() == []
    assert _all_from(service, docs.requests())


async def test_every_operation_and_schema_opens_without_a_complaint(docs, spec, service):
    """Each reference is followed when an operation or schema is opened: one that leads nowhere shows as an error."""
    operations = sum(len(methods) for methods in spec["paths"].values())
    for number in range(operations):  # one after another: each that opens has the page drawn anew
        control = f"document.querySelectorAll('.opblock-summary-control')[{number}]"
        await docs.value(f"{control}.click()")
        await docs.until("document.querySelectorAll('.opblock-body .responses-table').length == 1")
        assert await docs.value("document.body.innerText.includes('Could not')") is False
        await docs.value(f"{control}.click()")
        await docs.until("document.querySelectorAll('.opblock-body').length == 0")
    await docs.value("document.querySelector('.models-control').click()")
    schemas = len(spec["components"]["schemas"])
    await docs.until(f"document.querySelectorAll('{MODELS}').length == {schemas}")

    assert await docs.value("document.querySelectorAll('.errors-wrapper').length") == 0
    assert await docs.value("document.body.innerText.includes('Could not')") is False
    assert docs.complaints() == []
    assert _all_from(service, docs.requests())


async def test_try_it_out_enqueues_the_example(docs, service):
    await docs.value(f"{ENQUEUE}.querySelector('.opblock-summary-control').click()")
    # The button is there before the example is, and would send nothing then.
    await docs.until(f"{ENQUEUE}.querySelector('textarea')?.value.includes('t1')")
    await docs.value(f"{ENQUEUE}.querySelector('.execute').click()")
    status = await docs.until(f"{ENQUEUE}.querySelector('{ANSWER}')?.innerText")
    async with httpx.AsyncClient() as client:
        job = (await client.get(f"{service}/jobs/t1", params={"wait": 30})).json()

    assert status.split()[0] == "202"
    assert (job["status"], job["payload"], job["result"]) == ("done", "data", "data")
    assert docs.complaints() == []
    assert _all_from(service, docs.requests())


async def test_page_is_kept_from_what_is_not_of_this_node(docs):
    """Also what Swagger UI might do one day: the browser itself refuses it."""
    refusal = (
        "addEventListener('securitypolicyviolation', it => resolve(it.effectiveDirective), {once: true})"
    )
    violations = {
        "connect-src": "fetch('http://127.0.0.2:9/').catch(() => 0)",
        "script-src-elem": "document.head.append(Object.assign(document.createElement('script'), {text: 'ran = 1'}))",
        "img-src": "new Image().src = 'http://127.0.0.2:9/'",
    }
    refused = [
        await docs.value(f"new Promise(resolve => {{ {refusal}; {violation}; }})")
        for violation in violations.values()
    ]

    assert refused == list(violations)
    assert await docs.value("typeof ran") == "undefined"


async def test_home_leads_to_the_dashboard_and_that_to_the_page(page, service):
    await page.show(f"{service}/")
    home = await page.value("location.pathname")
    await page.value("document.querySelector('footer a').click()")

    assert home == "/dashboard"
    assert await page.until("document.querySelector('.opblock') && location.pathname") == "/docs"
