"""The docs name everything there is, and their links lead somewhere. `tests/docs` runs their lines."""

import re
import tomllib
from typing import Any, get_args

import msgspec
import pytest

import jobpipe
from jobpipe import cli, service
from jobpipe.api.app import create_app
from jobpipe.api.bulk import MOST
from jobpipe.api.problems import LISTED, LONGEST, Code, Fault, ProblemDetails
from jobpipe.api.schemas import (
    TRACEBACKS,
    AttemptView,
    EnqueueRequest,
    Health,
    JobView,
    ListQuery,
    QueueQuery,
    QueueView,
)
from jobpipe.clock import WallClock
from jobpipe.engine import ends, feed, notes, ring, watchdog
from jobpipe.engine.node import Node
from jobpipe.engine.outcomes import MESSAGE, TRACEBACK
from jobpipe.handlers.registry import SHIPPED, load
from jobpipe.job import ATTEMPTS_KEPT, DEEPEST, FOLLOWS, LINE_BYTES, PROGRESS_MESSAGE, Backoff, Outcome
from jobpipe.obstacles import Why
from jobpipe.settings import SETTINGS, Settings
from jobpipe.store.base import LOG_BYTES, LOG_LINES, PAGE_BYTES
from jobpipe.store.memory import MemoryStore
from jobpipe.store.paging import LOOK
from jobpipe.store.verbs import summaries
from tests.docs.pages import DOCS, FENCE, PAGES, README, ROOT, first_cells, quoted, read, rows, section


def names(*models):
    return {field.encode_name for model in models for field in msgspec.structs.fields(model)}


# --- links ------------------------------------------------------------------------------------------------------------


def slug(heading):
    """The anchor that a heading gets."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.strip().replace(" ", "-")


def anchors(page):
    text = FENCE.sub("", read(page))
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def links(page):
    """The links of a page to other pages and within itself: (file, anchor)."""
    text = FENCE.sub("", read(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://", target):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_that_exist(page):
    dead = [(str(file), anchor) for file, anchor in links(page) if not file.is_file()]
    lost = [
        (file.name, anchor)
        for file, anchor in links(page)
        if anchor and file.is_file() and anchor not in anchors(file)
    ]

    assert (dead, lost) == ([], [])


def test_every_page_can_be_reached_from_the_readme():
    reached, ahead = set(), [README]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        ahead += {file for file, _ in links(page) if file.suffix == ".md" and file.is_file()} - reached

    assert {str(page) for page in PAGES} - {str(page) for page in reached} == set()


def test_decisions_are_numbered_without_a_gap_and_listed():
    pages = sorted((DOCS / "decisions").glob("*.md"))
    numbers = [int(page.name[:4]) for page in pages]
    listed = section(DOCS / "architecture.md", "## Decisions")

    assert numbers == list(range(1, len(pages) + 1))
    for number, page in zip(numbers, pages, strict=True):
        assert read(page).startswith(f"# {number}. ")
        assert f"| [{number}](decisions/{page.name}) |" in listed


# --- names ------------------------------------------------------------------------------------------------------------


def test_docs_name_every_setting_with_its_flag():
    headings = re.findall(r"^### `([A-Z_]+)`$", read(DOCS / "settings.md"), re.MULTILINE)
    text = read(DOCS / "settings.md")

    assert sorted(headings) == sorted(each.variable for each in SETTINGS)
    assert [each.flag for each in SETTINGS if f"`{each.flag}`" not in text] == []


PLACES = {
    "job_id": "ID",
    "group_id": "ID",
    "operation_id": "ID",
    "name": "NAME",
    "key": "KEY",
    "node_name": "NAME",
    "fingerprint": "FINGERPRINT",
}
PLACE = rf"<(?:[^:>]*:)?({'|'.join(PLACES)})>"


def test_docs_name_every_route_and_no_other():
    node = Node(Settings(store="memory:"), MemoryStore(), load([]), WallClock())
    app: Any = create_app(node)._app
    routes = {
        f"{method} {re.sub(PLACE, lambda found: PLACES[found[1]], rule.rule)}"
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if "static" not in rule.rule
    }
    page = read(DOCS / "http-api.md")
    headings = set(re.findall(r"^## `([A-Z]+ /.*)`$", page, re.MULTILINE))

    assert set(quoted("".join(row[0] for row in rows(page.split("\n## ")[0])))) == routes
    assert headings == routes - {"GET /"}


def test_table_of_statuses_says_what_may_follow_what():
    table = {
        quoted(row[0])[0]: set(quoted(row[2]))
        for row in rows(section(DOCS / "life-of-a-job.md", "## Statuses").split("\n### ")[0])
    }

    assert table == {status.value: {each.value for each in follow} for status, follow in FOLLOWS.items()}


def test_table_of_outcomes_has_every_outcome():
    table = first_cells(section(DOCS / "life-of-a-job.md", "## Attempts").split("\n### ")[0])

    assert sorted(table) == sorted(outcome.value for outcome in Outcome)


def test_table_of_reasons_has_everything_that_a_job_may_wait_for_in_the_order_of_the_claim():
    table = first_cells(section(DOCS / "why-does-my-job-not-run.md", "## Reasons"))

    assert table == ["dependencies", "group", *get_args(Why), "handler"]


def test_table_of_the_backoff_tells_the_defaults():
    table = {
        quoted(row[0])[0]: row[1].strip("`")
        for row in rows(section(DOCS / "life-of-a-job.md", "### Backoff"))
    }
    backoff = Backoff()

    assert table == {
        "base": f"{backoff.base:g}",
        "factor": f"{backoff.factor:g}",
        "cap": f"{backoff.cap:g}",
        "jitter": backoff.jitter,
    }


def test_table_of_problems_has_every_code():
    table = [quoted(row[1])[0] for row in rows(section(DOCS / "http-api.md", "### Problems"))]

    assert sorted(table) == sorted(code.value for code in Code)


@pytest.mark.parametrize(
    ("heading", "models"),
    [
        ("## `POST /enqueue`", [EnqueueRequest]),
        ("## `GET /health`", [Health]),
        ("## `GET /jobs`", [ListQuery]),
        ("## `GET /queues`", [QueueQuery, QueueView]),
    ],
)
def test_table_of_a_route_has_every_field_and_parameter(heading, models):
    table = [word for word in first_cells(section(DOCS / "http-api.md", heading)) if not word.isdecimal()]

    assert sorted(table) == sorted(names(*models))


def test_docs_name_every_field_of_a_job_of_its_attempts_and_of_a_problem():
    job = section(DOCS / "http-api.md", "### The job")
    problems = section(DOCS / "http-api.md", "### Problems")

    assert set(first_cells(job)) == names(JobView)
    assert [name for name in names(AttemptView) if f'"{name}"' not in job] == []
    assert [name for name in names(ProblemDetails, Fault) if name not in problems] == []


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("http-api.md", f"at most {MOST:,} jobs"),
        ("http-api.md", f"at most {DEEPEST} levels deep"),
        ("http-api.md", f"the first {LISTED} of them"),
        ("http-api.md", f"cut at {MESSAGE:,} and {TRACEBACK:,} characters"),
        ("http-api.md", f"the newest {ATTEMPTS_KEPT}, oldest first"),
        ("http-api.md", f"looks at {LOOK:,} jobs at most"),
        ("http-api.md", f"holds at most {PAGE_BYTES >> 20} MiB"),
        ("http-api.md", f"cut at {LONGEST} characters"),
        ("http-api.md", f"take {TRACEBACKS >> 20} MiB"),
        ("handlers.md", f"deeper than {DEEPEST} levels"),
        ("handlers.md", f"at most {MESSAGE:,} characters"),
        ("life-of-a-job.md", f"at most the newest {ATTEMPTS_KEPT}"),
        ("events.md", f"keeps its latest {ring.KEPT:,} events, and for {feed.LINGER:.0f} seconds"),
        ("events.md", f"at most {feed.TOLD} changes each"),
        ("events.md", f"more than {ends.REMEMBERED:,} are not remembered"),
        ("events.md", f"the first {summaries.MESSAGE} characters of its message"),
        ("progress.md", f"{LOG_LINES:,} lines and {LOG_BYTES >> 10} KiB a job"),
        ("progress.md", f"{LINE_BYTES >> 10} KiB a line"),
        ("progress.md", f"of which {PROGRESS_MESSAGE} characters are kept"),
        ("progress.md", f"{notes.DELAY} seconds | after which a line is written"),
        ("progress.md", f"{notes.MEMORY >> 20} MiB a node"),
    ],
)
def test_limits_in_the_docs_are_those_in_force(page, words):
    assert words in " ".join(read(DOCS / page).split())


def test_docs_name_every_command_and_every_exit_code():
    verbs = {f"jobpipe {name}" for name in cli.app if not name.startswith("-")}
    codes = {cli.OK, cli.UNHEALTHY, cli.WRONG, cli.INTERRUPTED, service.STUCK, watchdog.BLOCKED}
    table = section(DOCS / "shutdown-and-crash.md", "### Exit codes")

    assert set(first_cells(section(DOCS / "quick-start.md", "## The command line"))) == verbs
    assert {int(row[0]) for row in rows(table)} == codes


def test_readme_has_the_two_commands():
    assert "\npip install rust-just && just run\npip install rust-just && just test\n" in read(README)


def test_docs_name_every_recipe():
    justfile = re.sub(r"^\[.*\n", "", read(ROOT / "justfile"), flags=re.MULTILINE)
    recipes = re.findall(r"^([a-z][\w-]*)(?: [^:\n]*)?:(?!=)", justfile, re.MULTILINE)
    table = first_cells(
        "".join(f"| {row[0]}\n" for row in rows(section(DOCS / "development.md", "## Recipes")))
    )

    assert sorted(table) == sorted("just" if recipe == "default" else f"just {recipe}" for recipe in recipes)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_only_commands_and_recipes_that_exist(page):
    verbs = {name for name in cli.app if not name.startswith("-")}
    recipes = re.findall(r"^_?([a-z][\w-]*)(?: [^:\n]*)?:(?!=)", read(ROOT / "justfile"), re.MULTILINE)
    spans = [span for span in quoted(FENCE.sub("", read(page))) if "\n" not in span]
    named = [re.match(r"(just|jobpipe) ([a-z][\w-]*)", span) for span in spans]

    assert [
        found[0] for found in named if found and found[2] not in {"just": recipes, "jobpipe": verbs}[found[1]]
    ] == []


METHODS = {
    "check_cancelled()",
    "enqueue()",
    "enqueue_from_thread()",
    "enqueue_many()",
    "enqueue_many_from_thread()",
    "log",
    "progress()",
}
"""What a context can do."""


def test_docs_name_what_handlers_may_use():
    page = DOCS / "handlers.md"
    public = first_cells(section(page, "## Names"))
    context = first_cells(section(page, "## The function"))

    assert sorted(public) == sorted(jobpipe.__all__)
    told = {name for name in names(jobpipe.Context) if not name.startswith("_")}
    assert set(context) == told | METHODS
    assert set(first_cells(section(page, "## Shipped kinds"))) == set(load([]).kinds)
    assert len(load([]).kinds) == len(SHIPPED)


def test_architecture_names_every_room():
    contracts = tomllib.loads(read(ROOT / "pyproject.toml"))["tool"]["importlinter"]["contracts"]
    layers = [layer for each in contracts if each["type"] == "layers" for layer in each["layers"]]
    named = re.findall(r"\w+", " ".join(layers))
    rooms = {
        room
        for room in named
        if list((ROOT / "jobpipe").rglob(f"{room}.py")) or (ROOT / "jobpipe" / room).is_dir()
    }
    drawn = section(DOCS / "architecture.md", "## Rooms").split("```")[1]

    assert len(rooms) > 20
    assert [room for room in rooms if not re.search(rf"\b{room}\b", drawn)] == []
