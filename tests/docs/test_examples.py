"""The Python examples of the README and the docs work."""

import math
import re
import subprocess
import sys

import msgspec
import pytest
import trio

import jobpipe
from jobpipe.engine import stacks
from jobpipe.handlers.registry import Handler, handlers_of
from jobpipe.job import Status
from tests.api.client import open_door
from tests.docs.pages import DOCS, README, blocks, examples, read
from tests.engine.conftest import running

pytestmark = pytest.mark.slow


def test_examples_of_handlers_define_a_handler_each():
    *handlers, _ = examples(DOCS / "handlers.md")

    assert len(handlers) >= 3
    for source in handlers:
        module = type(sys)("example")
        exec(source, module.__dict__)

        assert len(handlers_of(module)) == 1


def recipe():
    """The handler that runs asyncio."""
    (source,) = (each for each in examples(DOCS / "handlers.md") if "asyncio.run" in each)
    module = type(sys)("recipe")
    exec(source, module.__dict__)
    (found,) = handlers_of(module)
    return found


@pytest.mark.parametrize(("payload", "result"), [(["a", "bcd"], [1, 3]), ([], [])])
async def test_recipe_for_asyncio_works(payload, result):
    found = recipe()
    asked = jobpipe.Context(
        id="a", kind=found.kind, queue="q", attempt=1, max_retries=0, claim=1, deadline=math.inf
    )
    given = found.arguments(msgspec.json.encode(payload), asked)

    assert await trio.to_thread.run_sync(found.function, *given) == result


async def test_recipe_for_asyncio_hears_of_a_cancel():
    class Cancelled:
        """A job that is cancelled while it runs."""

        def check_cancelled(self):
            trio.from_thread.run_sync(scope.cancel)
            trio.from_thread.check_cancelled()

    with trio.CancelScope() as scope:
        await trio.to_thread.run_sync(recipe().function, ["a"], Cancelled())

    assert scope.cancelled_caught


def test_example_of_a_test_passes(tmp_path):
    (tmp_path / "myjobs.py").write_text(examples(README)[0])
    (tmp_path / "test_myjobs.py").write_text(examples(DOCS / "handlers.md")[-1])
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        f"--rootdir={tmp_path}",
        "test_myjobs.py",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def modules_of(page):
    """The examples of a page, each as a module."""
    for source in examples(page):
        module = type(sys)("example")
        exec(source, module.__dict__)
        yield module


async def test_examples_of_flows_lead_to_the_jobs_they_say(autojump_clock):
    handlers = [one for module in modules_of(DOCS / "flows.md") for one in handlers_of(module)]
    echo = Handler(kind="echo", function=print, is_async=False, takes_context=False)
    async with running(handlers=[*handlers, echo], workers=4, patience=3600) as rig:
        order = b'{"id":"o1","items":["book","pen"]}'
        await rig.enqueue("order", kind="order.place", payload=order)
        await rig.enqueue("report", kind="report", payload=b"null")
        await rig.ended("order")
        await rig.ended("report")
        await rig.ended("report-begun")
        await trio.sleep(600)
        statuses = await rig.statuses()

    assert statuses == {Status.DONE: 1 + 2 + 1 + 1 + 2}


async def test_example_of_a_stuck_job_is_seen_as_it_says(autojump_clock, monkeypatch):
    """But for numbers that depend on when that was, and on how wide the columns are."""
    monkeypatch.setattr(stacks, "IN_DETAIL", math.inf)  # a machine at work may be slow
    page = DOCS / "stuck-jobs.md"
    (source,) = examples(page)
    (shown,) = (block.text for block in blocks(read(page), ""))
    module = type(sys)("newsletter")
    exec(compile(source, "/srv/newsletter.py", "exec"), module.__dict__)
    async with open_door(handlers=handlers_of(module), name="host-1") as door:
        await door.enqueue(id="newsletter-48", kind="newsletter.send", payload=1000)
        await trio.sleep(1)
        await door.get("/jobs/newsletter-48/stack")
        await trio.sleep(37.9)
        said = (await door.get("/jobs/newsletter-48/stack?format=text")).text

    assert _loosely(said) == _loosely(shown)


def _loosely(text):
    text = re.sub(r"\S+T\S+Z", "TIME", text)
    return re.sub(r"\d+(\.\d+)? s\b", "N s", re.sub(r" +", " ", text))
