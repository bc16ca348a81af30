"""Real services, and lines of the docs that are pasted into a shell beside them."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from jobpipe.settings import SETTINGS

PATIENCE = 90
"""Seconds after which a service or a line is given up."""

needs_curl = pytest.mark.skipif(
    shutil.which("curl") is None or shutil.which("bash") is None,
    reason="the docs use curl and bash",
)


class Service(NamedTuple):
    """A real service: where it listens, what it logged when it started, and what it logs from then on."""

    port: int
    said: str
    process: "subprocess.Popen[str]"

    def end(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Stop it as a signal does; returns what it logged meanwhile. It must end with exit code 0."""
        self.process.send_signal(number)
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        assert self.process.wait(PATIENCE) == 0
        return said


def environment(**variables: str) -> dict[str, str]:
    """That of the tests without settings of jobpipe, and with these."""
    own = {setting.variable for setting in SETTINGS}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in own and not name.startswith(("JOBPIPE_", "PG"))
    } | variables


@contextmanager
def serving(folder: Path, port: int = 0, **variables: str) -> Iterator[Service]:
    """A real service in a folder, by default on a free port; in the end it must end in order, unless it was killed."""
    command = [sys.executable, "-m", "jobpipe", "serve", "--port", str(port)]
    with subprocess.Popen(
        command, cwd=folder, env=environment(**variables), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            said = "".join(_said_at_start(process))
            found = re.search(r"listens on http://127\.0\.0\.1:(\d+)", said)
            assert found, said
            service = Service(int(found[1]), said, process)
            yield service
            if process.poll() is None:
                service.end()
        finally:
            process.kill()


def _said_at_start(process: "subprocess.Popen[str]") -> Iterator[str]:
    """The lines that a service logs until it is up."""
    assert process.stderr is not None
    for line in process.stderr:
        yield line
        if " workers: " in line:
            return


CURL = """
curl() {
    command curl --silent --show-error --noproxy '*' --write-out '%{stderr}<<%{http_code}>>\\n' "$@"
}
"""


def shell(lines: str, folder: Path, variables: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Run lines in bash; returns what went to stdout and to stderr. The last command of each line must succeed."""
    done = subprocess.run(
        ["bash", "-e", "-c", lines],
        cwd=folder,
        env=environment() if variables is None else dict(variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, f"{lines}\n{done.stdout}{done.stderr}"
    return done.stdout, done.stderr


def pasted(lines: str, port: int, folder: Path) -> tuple[list[int], str]:
    """Paste lines into a shell: the status codes of all responses, and their bodies, one after the other."""
    told, codes = shell(CURL + lines.replace("localhost:8080", f"127.0.0.1:{port}"), folder)
    assert re.fullmatch(r"(<<\d{3}>>\n)*", codes), codes
    return [int(code) for code in re.findall(r"\d{3}", codes)], told


TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
VARIES = {
    re.escape("..."): ".*?",
    TIME: TIME,
    r"[\w.-]+-\d+-[0-9a-f]{6}": r"[\w.-]+-\d+-[0-9a-f]{6}",
    r"(?<=[\" ])\d+\.\d+\.\d+": r"\d+\.\d+\.\d+[\w.]*",
    r"127\.0\.0\.1:\d+": r"127\.0\.0\.1:\d+",
}
"""What differs from run to run: cuts, times, nodes, versions, ports."""


def shown_as(shown: str, said: str) -> bool:
    """Whether a page shows what was said: the same text but for what differs from run to run."""
    parts = re.split(f"({'|'.join(VARIES)})", shown.replace("\n", ""))
    return bool(re.fullmatch("".join(map(_loosened, parts)), said.replace("\n", "")))


def _loosened(part: str) -> str:
    return next((to for what, to in VARIES.items() if re.fullmatch(what, part)), re.escape(part))


def without_numbers(log: str) -> str:
    """Lines of a log without the numbers that count something."""
    return re.sub(r"(?<=[=( ])\d+(?![\d.])", "N", log).replace("N job ", "N jobs ")
