"""Every command of the README and the docs is run, page by page, or listed here with the reason."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, README, Block, blocks, commands, read, section
from tests.docs.services import (
    environment,
    needs_curl,
    pasted,
    serving,
    shell,
    shown_as,
    without_numbers,
)

pytestmark = pytest.mark.slow

PAGES = [README, *sorted(DOCS.glob("*.md"))]
QUICK_START = DOCS / "quick-start.md"
KILL = "## 5. Kill it"

EXCEPTIONS = {
    r"pip install rust-just && just (run|test)": "installs from the internet; CI runs both recipes in a fresh clone",
    r"just": "builds an environment from the internet; CI runs the recipe",
    r"just PYTHON=python3\.13 VENV=\.venv-3\.13 test": "needs a second Python; CI runs it",
    r"just bench\b.*": "measures for minutes; CI runs the short forms",
    r"just bench-(ab|short)\b.*": "measures for minutes; CI runs the short forms",
    r"docker compose .*": "needs Docker",
    r"\(umask 077 && echo .*": "belongs to the line with Docker",
    r"sudo .*": "needs root and systemd",
    r"curl -N '?localhost:8080/events.*": "goes on until it is stopped",
    r"sqlite3 .*": "needs the program sqlite3; where it is installed, it is run",
}
"""Commands that no test runs, as patterns, and why."""

INSTALLS = r"pip (install|wheel) .*"
"""`tests/docs/test_install.py` runs these."""

SETS = r"(just run --|\w+=\S+ (just run|jobpipe serve)|echo WORKERS=|\.venv/bin/jobpipe config).*"
"""These only set something: they are run with `jobpipe config` in place of the service, which prints what is set."""

MIGRATES = r".*jobpipe migrate"
"""`tests/docs/test_sql.py` runs it."""

ELSEWHERE = (*EXCEPTIONS, INSTALLS, SETS, MIGRATES)


def listed(command: str) -> bool:
    """Whether a command isn't pasted beside the service of its page."""
    return any(re.fullmatch(pattern, _bare(command), re.DOTALL) for pattern in ELSEWHERE)


def _bare(command: str) -> str:
    return re.sub(r"\s+# .*", "", command)


def shell_blocks(text: str) -> list[tuple[Block, Block | None]]:
    """The shell blocks of a text whose lines are pasted, each with the response that is shown right after it."""
    found = blocks(text)
    return [
        (block, after if after and after.language == "json" and not after.words.strip() else None)
        for block, after in zip(found, [*found[1:], None], strict=False)
        if block.language == "sh" and not any(map(listed, commands(block.text)))
    ]


def without(page: Path, heading: str) -> str:
    """A page without one of its sections."""
    return read(page).replace(section(page, heading), "\n")


def text_of(page: Path) -> str:
    """What is pasted from a page beside one service: all but the part that kills it."""
    return without(page, KILL) if page == QUICK_START else read(page)


# --- nothing is left out ----------------------------------------------------------------------------------------------

LANGUAGES = {"sh", "console", "json", "log", "python", "sql", "yaml", "ini", ""}
PROGRAMS = "pip|pipx|uvx|just|jobpipe|curl|python3?|docker|sqlite3|git|sudo|select|grant|create"
COMMAND = rf"(\$ |[A-Z_]+=\S+ )?({PROGRAMS})\b(?!: | ──)"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_without_a_language_and_indented_text_hold_no_command(page):
    text = read(page)
    plain = [block.text for block in blocks(text, "")]
    indented = re.findall(r"(?<=\n\n)(?: {4}|\t).*", text)

    assert {block.language for block in blocks(text)} <= LANGUAGES
    assert [
        line for each in [*plain, *indented] for line in each.splitlines() if re.match(rf"\s*{COMMAND}", line)
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_block_of_commands_is_pasted_as_a_whole_or_listed_as_a_whole(page):
    for block in blocks(read(page), "sh"):
        assert len({listed(command) for command in commands(block.text)}) == 1, block.text


def test_every_exception_is_still_in_the_docs():
    found = [
        _bare(each) for page in PAGES for block in blocks(read(page), "sh") for each in commands(block.text)
    ]

    assert [each for each in EXCEPTIONS if not any(re.fullmatch(each, command) for command in found)] == []


# --- beside a service -------------------------------------------------------------------------------------------------

PASTED = [page for page in PAGES if shell_blocks(read(page))]


def prepare(folder: Path, pages: list[Path]) -> dict[str, str]:
    """Save the handlers of the pages to a folder; returns the settings for a service that has them."""
    names = {README: "myjobs", QUICK_START: "hello"}
    wanted = [page for page in pages if page in names]
    for page in wanted:
        (example,) = blocks(read(page), "python")
        (folder / f"{names[page]}.py").write_text(example.text)
    return {"HANDLERS": ",".join(names[page] for page in wanted), "GRACE": "0"}


def codes_in(words: str) -> list[int]:
    """The status codes that the words before a block promise."""
    return [int(code) for code in re.findall(r"`(\d{3})`", words.rsplit("\n\n", 2)[-2])]


@needs_curl
@pytest.mark.parametrize("page", PASTED, ids=lambda page: page.name)
def test_commands_of_a_page_answer_as_it_says(tmp_path, page):
    with serving(tmp_path, **prepare(tmp_path, [page])) as service:
        for block, shown in shell_blocks(text_of(page)):
            codes, body = pasted(block.text, service.port, tmp_path)

            if shown is None:
                assert all(200 <= code < 300 for code in codes), f"{block.text}\n{body}"
            else:
                assert shown_as(shown.text, body), f"{block.text}\n{body}"
                assert codes == codes_in(block.words), block.text


@needs_curl
@pytest.mark.parametrize("order", [PASTED, PASTED[::-1]], ids=["forward", "backward"])
def test_pages_can_be_pasted_one_after_another(tmp_path, order):
    with serving(tmp_path, **prepare(tmp_path, order)) as service:
        for page in order:
            for block, shown in shell_blocks(text_of(page)):
                codes, body = pasted(block.text, service.port, tmp_path)

                if shown is None:
                    assert all(200 <= code < 300 for code in codes), f"{block.text}\n{body}"
                else:
                    assert codes == codes_in(block.words), f"{block.text}\n{body}"


@needs_curl
def test_kill_it_goes_as_the_page_shows(tmp_path):
    (kill, _), (after, shown) = shell_blocks(section(QUICK_START, KILL))
    (log,) = blocks(section(QUICK_START, KILL), "log")
    with serving(tmp_path) as service:
        quietly(kill.text, service.port, tmp_path)
        assert service.process.wait(10) == -signal.SIGKILL
    with serving(tmp_path) as service:
        recovered = next(line for line in service.said.splitlines() if re.search(r" recovered \d+ job", line))
        queues = quietly(after.text, service.port, tmp_path)

    started = re.search(r"\((\d+) had started\)", recovered)
    assert started is not None
    assert int(started[1]) > 0
    assert shown_as(without_numbers(log.text), without_numbers(recovered))
    assert shown is not None
    assert shown_as(shown.text, queues), queues


def quietly(lines: str, port: int, folder: Path) -> str:
    """Paste lines whose responses go on into other programs; returns what is printed in the end."""
    script = "curl() { command curl --silent --show-error --noproxy '*' --fail \"$@\"; }\n" + lines
    return shell(script.replace("localhost:8080", f"127.0.0.1:{port}"), folder)[0]


# --- logs -------------------------------------------------------------------------------------------------------------


def test_start_and_end_look_as_the_quick_start_shows(tmp_path):
    (start,) = blocks(section(QUICK_START, "## 1. Start it"), "log")
    (end,) = blocks(section(QUICK_START, "## 6. Stop it"), "log")
    with serving(tmp_path) as service:
        said = service.end(signal.SIGINT)

    assert shown_as(start.text, service.said)
    assert shown_as(without_numbers(end.text), without_numbers(said))


def test_lines_of_the_log_are_shown_alike_everywhere():
    """Those of other pages are among those of the quick start, which are compared with a real service."""
    known = {_event(line) for block in blocks(read(QUICK_START), "log") for line in block.text.splitlines()}
    shown = {
        _event(line)
        for page in PAGES
        for block in blocks(read(page), "log")
        for line in block.text.splitlines()
    }

    assert shown <= known


def _event(line: str) -> str:
    return re.sub(r"  +.*", "", without_numbers(line)[len("2026-11-24T11:45:59.413Z ") :])


def test_second_process_on_a_file_is_refused_as_the_page_shows(tmp_path):
    (shown,) = blocks(section(DOCS / "shutdown-and-crash.md", "## One process for each SQLite file"), "")
    with serving(tmp_path) as service:
        done = subprocess.run(
            [sys.executable, "-m", "jobpipe", "serve", "--port", "0"],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert done.returncode == 2
    assert done.stderr == shown.text.replace("18226", str(service.process.pid))


# --- without a service ------------------------------------------------------------------------------------------------

JUST = f"""
just() {{ [ "$1" = run ] && shift && jobpipe serve "$@"; }}
jobpipe() {{ shift; {sys.executable} -m jobpipe config "$@"; }}
"""


def _settings_lines() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in blocks(read(page), "sh"):
            for command in commands(block.text):
                if re.fullmatch(SETS, _bare(command)):
                    yield page.name, _bare(command)


@pytest.mark.parametrize(("page", "command"), sorted(_settings_lines()))
def test_commands_that_set_something_set_it(tmp_path, page, command):
    bin_ = tmp_path / ".venv" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "jobpipe").symlink_to(Path(sys.executable).parent / "jobpipe")
    for name in ("myjobs", "hello"):
        (tmp_path / f"{name}.py").write_text("from jobpipe import handler\n\n@handler('x')\ndef x(): ...\n")

    told, faults = shell(JUST + command, tmp_path)

    assert faults == ""
    given = re.findall(r"\b([A-Z_]+)=(\S+)", command) + [
        (flag.upper().replace("-", "_"), value) for flag, value in re.findall(r"--([a-z-]+) (\S+)", command)
    ]
    for name, value in given:
        assert re.search(rf"^{name} +{re.escape(value)} .*(flag|environment|\.env)", told, re.MULTILINE), told
    assert "WORKERS" in told


@pytest.mark.parametrize(
    "block",
    [block.text for page in PAGES for block in blocks(read(page), "console")],
    ids=lambda text: text.splitlines()[0],
)
def test_transcripts_are_what_the_command_prints(tmp_path, block):
    command, shown = block.removeprefix("$ ").split("\n", 1)
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment(PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert shown_as(shown, done.stdout + done.stderr)


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="without the program sqlite3")
def test_backup_by_sqlite3_is_a_whole_database(tmp_path):
    (command,) = [
        each
        for block in blocks(read(DOCS / "shutdown-and-crash.md"), "sh")
        for each in commands(block.text)
        if each.startswith("sqlite3")
    ]
    with serving(tmp_path):
        shell(command, tmp_path)
    told, _ = shell("sqlite3 copy.db 'pragma integrity_check'", tmp_path)

    assert told == "ok\n"
