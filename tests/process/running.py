"""The real process: `jobpipe serve` in a folder of its own, what it logs, what its handlers did, and its file."""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import httpx
import trio

from jobpipe.service import ECHO
from jobpipe.settings import SETTINGS

PATIENCE = 30.0
"""Seconds after which a test gives up on the process: far more than it ever needs, on any machine."""

HERE = Path(__file__).parent
LAUNCH = [sys.executable, "-I", "-S", str(HERE / "launch.py")]
JOBPIPE = [sys.executable, "-m", "jobpipe"]

Line = dict[str, Any]


def environment(folder: Path, settings: Mapping[str, object]) -> dict[str, str]:
    """The settings, and none that the developer has."""
    own = {setting.variable for setting in SETTINGS}
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in own and not name.startswith("JOBPIPE_")
    }
    given = {"HANDLERS": "traced", "STORE": "sqlite:jobs.db", "PORT": 0, "LOG_FORMAT": "json"} | dict(
        settings
    )
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    added = {"PYTHONPATH": path, "JOBPIPE_TEST_TRACE": str(folder / "trace"), "COLUMNS": "500"}
    return inherited | added | {name: str(value) for name, value in given.items()}


async def jobpipe(
    folder: Path, *arguments: str, powerless: bool = False, **settings: object
) -> subprocess.CompletedProcess[str]:
    """Run `jobpipe` with these arguments to its end."""
    command = [*LAUNCH, *(["--powerless"] if powerless else []), *JOBPIPE, *arguments]
    with trio.fail_after(PATIENCE):
        ended = await trio.run_process(
            command,
            cwd=folder,
            env=environment(folder, settings),
            stdin=b"",
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    return subprocess.CompletedProcess(
        command, ended.returncode, ended.stdout.decode(), ended.stderr.decode()
    )


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Look again and again, since the process tells nobody here; fails when it takes too long."""
    with trio.fail_after(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - an event of another process
            await trio.sleep(0.01)


def read_trace(folder: Path) -> list[Line]:
    """What handlers have written, in the order of writing."""
    path = folder / "trace"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_jobs(path: Path) -> dict[str, Line]:
    """The rows of the jobs in a store that no process has open, by id."""
    columns = ("id", "status", "held", "attempt", "claim", "rescued", "queue", "key")
    connection = apsw.Connection(str(path))
    try:
        rows = list(connection.execute(f"select {', '.join(columns)} from jobs order by seq"))
    finally:
        connection.close()
    return {row[0]: dict(zip(columns, row, strict=True)) for row in rows}


def nothing_runs(path: Path) -> bool:
    """Whether no job of a store is held by a node or shown as running."""
    jobs = read_jobs(path).values()
    return not any(job["held"] or job["status"] in ("running", "cancelling") for job in jobs)


def client(url: str) -> httpx.AsyncClient:
    """A client for a service, without proxies, and without the certificates that it would take 40 ms to load."""
    return httpx.AsyncClient(base_url=url, timeout=PATIENCE, trust_env=False, verify=False)


class Died(Exception):  # noqa: N818 - what has happened, and no fault
    """The process ended without doing what a test waits for."""


class Service:
    """A `jobpipe serve` that listens, with a client that talks to it."""

    def __init__(self, process: trio.Process, folder: Path) -> None:
        self.process, self.folder = process, folder
        self.lines: list[Line] = []
        """what it wrote to stderr so far; a line that is no JSON stands under "event" """
        self.expected_errors: set[str] = set()
        """how the events begin that it may log as errors; any other one fails the test"""
        self._more = trio.Event()
        self._closed = False
        self.url = ""
        self.http = client("")

    async def close(self) -> None:
        """End the process, whatever it does."""
        await self.http.aclose()
        await self.kill()
        await self.ended()

    async def listen(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Gather its lines, until it closes stderr."""
        task_status.started()
        rest = b""
        assert self.process.stderr is not None
        async for chunk in self.process.stderr:
            *whole, rest = (rest + chunk).split(b"\n")
            self.lines += map(_parsed, whole)
            self._tell()
        self._closed = True
        self._tell()

    async def more(self) -> None:
        """Wait for its next line, or for its end."""
        with trio.fail_after(PATIENCE):
            await self._more.wait()

    def _tell(self) -> None:
        self._more.set()
        self._more = trio.Event()

    async def said(self, beginning: str, since: int = 0, patience: float = PATIENCE) -> Line:
        """The first line whose event begins so, once it is there; raises `Died` when it ends without it."""
        with trio.fail_after(patience):
            for number in itertools.count(since):
                while number >= len(self.lines):
                    if self._closed:
                        raise Died(f"ended without saying {beginning!r}: {self.lines}")
                    await self._more.wait()
                if self.lines[number]["event"].startswith(beginning):
                    return self.lines[number]
        raise AssertionError

    def has_said(self, beginning: str) -> bool:
        """Whether a line is there whose event begins so."""
        return any(line["event"].startswith(beginning) for line in self.lines)

    async def starts(self, patience: float = PATIENCE) -> None:
        """Return when it listens; `url` and `http` are good from then on."""
        self.url = (await self.said("jobpipe ", patience=patience))["event"].split()[-1]
        await self.said("workers: ")  # the last line of the start
        await self.http.aclose()
        self.http = client(self.url)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def signal_again(self, number: int) -> None:
        """Send one more signal that is not taken for an echo of the last one."""
        await trio.sleep(
            ECHO + 0.1
        )  # the service goes by the time between two signals: there is nothing else to wait for
        self.process.send_signal(number)

    async def stand_still(self) -> None:
        """Stop it as SIGSTOP does; returns when every thread of it stands, until `go_on`."""
        self.process.send_signal(signal.SIGSTOP)
        await until(self._stands_still)

    def go_on(self) -> None:
        """Let it go on after `stand_still`."""
        self.process.send_signal(signal.SIGCONT)

    async def _stands_still(self) -> bool:
        return set(_states(self.process.pid)) == {"T"}

    async def ended(self) -> int:
        """Wait for its end, and for its last line; returns the exit code."""
        with trio.fail_after(PATIENCE):
            code = await self.process.wait()
            while not self._closed:
                await self._more.wait()
        return code

    async def kill(self) -> None:
        """End it as kill -9 does."""
        if self.process.poll() is None:
            self.process.kill()
        await self.process.wait()

    @property
    def errors(self) -> list[Line]:
        """What it logged as errors without being expected to, and what is no log line at all."""
        wrong = [line for line in self.lines if line.get("level") in (None, "error", "critical")]
        return [line for line in wrong if not line["event"].startswith(tuple(self.expected_errors))]

    async def enqueue(
        self, job_id: str, kind: str = "work", payload: object = None, **fields: object
    ) -> None:
        """Enqueue a job and be told that it is stored."""
        empty: dict[str, object] | None = {} if kind in ("work", "thread") else None
        body = {"id": job_id, "kind": kind, "payload": empty if payload is None else payload, **fields}
        answer = await self.http.post("/enqueue", json=body)
        assert answer.status_code == 202, answer.text

    async def job(self, job_id: str, wait: float = 0) -> Line:
        """A job as it is, or once it has ended."""
        answer = await self.http.get(f"/jobs/{job_id}", params={"wait": wait} if wait else {})
        assert answer.status_code == 200, answer.text
        found: Line = answer.json()
        return found

    async def all_ended(self, *job_ids: str) -> dict[str, Line]:
        """These jobs, each once it has ended."""
        with trio.fail_after(PATIENCE):
            return {job_id: await self.job(job_id, wait=PATIENCE) for job_id in job_ids}

    async def all_jobs(self) -> dict[str, Line]:
        """Every job, by id, as the lists show it: without attempts."""
        found: dict[str, Line] = {}
        asked: dict[str, Any] = {"limit": 1000, "payload": "true"}
        while True:
            answer = await self.http.get("/jobs", params=asked)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            found |= {job["id"]: job for job in page["jobs"]}
            if page["next_cursor"] is None:
                return found
            asked["cursor"] = page["next_cursor"]

    async def runs(self, *job_ids: str) -> None:
        """Return when these jobs' handlers run and the store says so too."""
        for job_id in job_ids:

            async def running(job_id: str = job_id) -> bool:
                return bool((await self.job(job_id))["status"] == "running")

            await until(running)


def _states(pid: int) -> Iterator[str]:
    """What each thread of a process does: the letters of proc(5)."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            yield (thread / "stat").read_text().rpartition(")")[2].split()[0]


def _parsed(line: bytes) -> Line:
    try:
        parsed: Line = json.loads(line)
    except ValueError:
        return {"event": line.decode()}
    return parsed
