"""The docs name everything there is, their links lead somewhere, and their lines do what they say."""

import contextlib
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import trio

import jobpipe
from jobpipe import cli, service
from jobpipe.api.app import create_app
from jobpipe.api.bulk import MOST
from jobpipe.api.problems import LISTED, LONGEST, Code, Fault, ProblemDetails
from jobpipe.api.schemas import TRACEBACKS, AttemptView, EnqueueRequest, Health, JobView, ListQuery, QueueView
from jobpipe.clock import WallClock
from jobpipe.engine import watchdog
from jobpipe.engine.node import Node
from jobpipe.engine.verdict import MESSAGE, TRACEBACK
from jobpipe.handlers.registry import SHIPPED, handlers_of, load
from jobpipe.job import ATTEMPTS_KEPT, DEEPEST, FOLLOWS, Backoff, Outcome
from jobpipe.settings import SETTINGS, Settings
from jobpipe.store.base import PAGE_BYTES
from jobpipe.store.memory import MemoryStore
from jobpipe.store.paging import LOOK

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = sorted([README, ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATIENCE = 60
"""Seconds after which a service or a line is given up."""


def read(page):
    return page.read_text(encoding="utf-8")


def section(page, heading):
    """What stands below a heading, up to the next of its level."""
    level = heading.split(" ")[0]
    text = read(page).split(f"\n{heading}\n", 1)[1]
    return re.split(rf"^#{{1,{len(level)}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text):
    """The rows of all tables in a text: cells, without the head."""
    lines = [line.strip().strip("|") for line in text.splitlines() if line.startswith("|")]
    rules = {number for number, line in enumerate(lines) if set(line) <= set("-|: ")}
    heads = {number - 1 for number in rules}
    return [
        [cell.strip() for cell in line.split(" | ")]
        for number, line in enumerate(lines)
        if number not in rules | heads
    ]


def quoted(text):
    """The words in backticks."""
    return re.findall(r"`([^`]+)`", text)


def first_cells(text):
    """The words in backticks in the first column of all tables."""
    return [word for row in rows(text) for word in quoted(row[0])]


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


def test_docs_name_every_route_and_no_other():
    node = Node(Settings(store="memory:"), MemoryStore(), load([]), WallClock())
    app: Any = create_app(node)._app
    routes = {
        f"{method} {re.sub('<([^:>]*:)?job_id>', 'ID', re.sub('<([^:>]*:)?name>', 'NAME', rule.rule))}"
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
        ("## `GET /queues`", [QueueView]),
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


def test_readme_has_the_two_commands_and_every_recipe():
    justfile = re.sub(r"^\[.*\n", "", read(ROOT / "justfile"), flags=re.MULTILINE)
    recipes = re.findall(r"^([a-z][\w-]*)(?: [^:\n]*)?:(?!=)", justfile, re.MULTILINE)
    table = first_cells("".join(f"| {row[0]}\n" for row in rows(section(README, "## Recipes"))))

    assert "\npip install rust-just && just run\npip install rust-just && just test\n" in read(README)
    assert sorted(table) == sorted("just" if recipe == "default" else f"just {recipe}" for recipe in recipes)


def test_docs_name_what_handlers_may_use():
    page = DOCS / "handlers.md"
    public = first_cells(section(page, "## Names"))
    context = first_cells(section(page, "## The function"))

    assert sorted(public) == sorted(jobpipe.__all__)
    assert set(context) == names(jobpipe.Context) | {"check_cancelled()", "log"}
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


# --- lines to paste ---------------------------------------------------------------------------------------------------


class Service(NamedTuple):
    """A real service: where it listens, and what it said when it started."""

    port: int
    said: str
    process: "subprocess.Popen[str]"


@contextlib.contextmanager
def serving(folder, **variables):
    """A real service in a folder, on a free port; it must end in order."""
    own = {setting.variable for setting in SETTINGS}
    environment = {
        k: v for k, v in os.environ.items() if k not in own and not k.startswith("JOBPIPE_")
    } | variables
    command = [sys.executable, "-m", "jobpipe", "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = "".join(said_at_start(process.stderr))
            port = re.search(r"listens on http://127\.0\.0\.1:(\d+)", said)
            assert port, said
            yield Service(int(port[1]), said, process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def said_at_start(stderr):
    """The lines that a service says until it is up."""
    for line in stderr:
        yield line
        if " workers: " in line:
            return


class Step(NamedTuple):
    """Lines to paste, the words before them, and the answer that is shown."""

    words: str
    lines: str
    answer: str | None


def steps(text):
    """The shell blocks of a page, each with the words since the block before and the JSON that follows."""
    blocks = list(FENCE.finditer(text))
    ends = [0, *(block.end() for block in blocks)]
    for number, block in enumerate(blocks):
        if block[1] == "sh":
            after = blocks[number + 1] if number + 1 < len(blocks) else None
            shown = after and after[1] == "json" and not text[block.end() : after.start()].strip()
            yield Step(text[ends[number] : block.start()], block[2], after[2] if after and shown else None)


def without_kill(text):
    """The README without the part that kills the service."""
    return re.sub(r"^### Kill it\n.*?(?=^## )", "", text, flags=re.MULTILINE | re.DOTALL)


CURL = """curl() { command curl --silent --show-error --noproxy '*' --write-out '\\n<<%{http_code}>>\\n' "$@"; }\n"""


def pasted(lines, service, folder):
    """Paste lines into a shell: the status codes of all answers, and their bodies, one after the other."""
    script = CURL + lines.replace("localhost:8080", f"127.0.0.1:{service.port}")
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), lines
    *answers, rest = re.split(r"\n<<(\d{3})>>\n", done.stdout)
    assert rest == ""
    return [int(code) for code in answers[1::2]], "".join(answers[::2])


TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
VARIES = {
    re.escape("..."): ".*?",
    TIME: TIME,
    r"[\w.-]+-\d+-[0-9a-f]{6}": r"[\w.-]+-\d+-[0-9a-f]{6}",
    r"(?<=[\" ])\d+\.\d+\.\d+": r"\d+\.\d+\.\d+[\w.]*",
    r"127\.0\.0\.1:\d+": r"127\.0\.0\.1:\d+",
}
"""What differs from run to run, and is shown as it once was: cuts, times, nodes, versions, ports."""


def pattern(shown):
    """What is shown, as a pattern."""
    parts = re.split(f"({'|'.join(VARIES)})", shown.replace("\n", ""))
    return re.compile("".join(map(loosened, parts)), re.DOTALL)


def loosened(part):
    return next((to for what, to in VARIES.items() if re.fullmatch(what, part)), re.escape(part))


needs_curl = pytest.mark.skipif(
    shutil.which("curl") is None or shutil.which("bash") is None,
    reason="curl and bash are what the docs ask for",
)


@needs_curl
def test_lines_of_the_readme_answer_as_it_says(tmp_path):
    text = without_kill(read(README))
    (handlers,) = (block[2] for block in FENCE.finditer(text) if block[1] == "python")
    (tmp_path / "myjobs.py").write_text(handlers)
    told = list(steps(text))
    with serving(tmp_path, HANDLERS="myjobs") as service:
        for step in told:
            codes, body = pasted(step.lines, service, tmp_path)

            assert codes == [int(code) for code in re.findall(r"`(\d{3})`", step.words)], step.lines
            assert step.answer is not None
            assert pattern(step.answer).fullmatch(body.replace("\n", "")), f"{step.lines}\n{body}"
    assert len(told) > 15


@needs_curl
@pytest.mark.parametrize("page", ["quick-start.md", "http-api.md"])
def test_lines_of_the_docs_work_in_order(tmp_path, page):
    text = read(DOCS / page)
    variables = {"GRACE": "0"}  # what still works at the end is not waited for
    for block in FENCE.finditer(text):
        if block[1] == "python":
            (tmp_path / "hello.py").write_text(block[2])
            variables["HANDLERS"] = "hello"
    told = list(steps(text))
    with serving(tmp_path, **variables) as service:
        for step in told:
            codes, body = pasted(step.lines, service, tmp_path)

            assert codes
            assert all(200 <= code < 300 for code in codes), f"{step.lines}\n{body}"
    assert len(told) >= 4


def test_start_and_end_look_as_the_readme_shows(tmp_path):
    shown = [block[2] for block in FENCE.finditer(section(README, "## Quick start")) if not block[1]]
    with serving(tmp_path) as service:
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(PATIENCE)
        said = service.process.stderr.read().replace("SIGTERM", "SIGINT")
    start, end = shown[0], shown[-1]

    assert pattern(start).fullmatch(service.said.replace("\n", ""))
    assert pattern(without_numbers(end)).fullmatch(without_numbers(said).replace("\n", ""))


def without_numbers(line):
    return re.sub(r"=\d+(\.\d)?", "=N", line)


# --- examples of code -------------------------------------------------------------------------------------------------


def examples(page):
    return [block[2] for block in FENCE.finditer(read(page)) if block[1] == "python"]


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
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
