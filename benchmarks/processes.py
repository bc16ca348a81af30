"""The processes that are measured: programs that print what they found, and servers on the loopback."""

import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jobpipe.settings import SETTINGS

ROOT = Path(__file__).parent.parent
PATIENCE = 900
"""Seconds after which a program is given up."""

STARTS = 60.0
"""Seconds within which a server must answer."""

CPU_OF_PROCESS = 2
"""The number that Linux adds to a process's id, shifted and inverted, for the clock of its CPU time."""


@dataclasses.dataclass(frozen=True)
class Tree:
    """Whose jobpipe is measured: the programs of one folder with the package of another."""

    code: Path = ROOT
    """the folder that has the package `jobpipe`"""
    programs: Path = ROOT
    """the folder that has these programs: its own one where it must not have another `jobpipe` beside them"""
    python: str = sys.executable
    name: str = "this tree"


HERE = Tree()


def environment(tree: Tree = HERE) -> dict[str, str]:
    """This one, without anybody's settings of jobpipe; the tree's code comes before what is installed."""
    own = {setting.variable for setting in SETTINGS}
    kept = {name: text for name, text in os.environ.items() if name not in own and "JOBPIPE" not in name}
    return kept | {"PYTHONPATH": os.pathsep.join(map(str, dict.fromkeys([tree.programs, tree.code])))}


class Failed(Exception):  # noqa: N818 - what has happened to a program
    """A program that is measured ended otherwise than it should; says what it wrote last."""

    def __init__(self, what: str, code: int, said: str) -> None:
        super().__init__(f"{what} ended with exit code {code}: {said.strip() or 'no word'}")
        self.code, self.last_line = code, (said.strip().splitlines() or [""])[-1]


def run(program: str, *arguments: object, tree: Tree = HERE) -> Any:  # noqa: ANN401 - whatever the program prints
    """Run `benchmarks.PROGRAM` to its end in a process of its own; returns what it printed, from JSON.

    Raises `Failed`.
    """
    command = [tree.python, "-m", f"benchmarks.{program}", *map(str, arguments)]
    done = subprocess.run(
        command,
        env=environment(tree),
        cwd=tree.programs,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        text=True,
    )
    if done.returncode:
        raise Failed(program, done.returncode, done.stderr)
    return json.loads(done.stdout or "null")


class Server:
    """A server that listens on a port of the loopback."""

    def __init__(self, command: list[str], port: int, folder: Path, tree: Tree = HERE) -> None:
        self.port = port
        self.began = time.perf_counter()
        self._log = (folder / f"server-{port}.log").open("wb")
        self._process = subprocess.Popen(
            command, cwd=folder, env=environment(tree), stdout=self._log, stderr=self._log
        )

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """One request on a connection of its own: status and answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"} if text else {})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        return answer.status, json.loads(content or b"null")

    def first_202(self) -> float:
        """Seconds from the start of the process to the first job that it acknowledges."""
        while time.perf_counter() < self.began + STARTS:
            if (code := self._process.poll()) is not None:
                raise Failed("the server", code, Path(self._log.name).read_text(encoding="utf-8"))
            with suppress(OSError):
                status, _ = self.ask("POST", "/enqueue", {"id": f"first-{self.began}", "payload": "data"})
                assert status == http.HTTPStatus.ACCEPTED, status
                return time.perf_counter() - self.began
            time.sleep(0.001)
        raise TimeoutError("the server did not start")

    def memory(self) -> float:
        """Resident memory in MB (10^6 bytes), as `ps` tells it."""
        command = ["ps", "-o", "rss=", "-p", str(self._process.pid)]
        return int(subprocess.check_output(command)) * 1024 / 1e6

    def cpu(self) -> float:
        """Seconds of CPU, user and system, that it has used by now. Linux only."""
        # As clock_getcpuclockid(3) makes the id; /proc counts in steps of 10 ms.
        return time.clock_gettime((~self._process.pid << 3) | CPU_OF_PROCESS)

    def stop(self) -> float:
        """Seconds from SIGTERM to its end."""
        began = time.perf_counter()
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(STARTS)
        took = time.perf_counter() - began
        assert code == 0, f"exit code {code}"
        return took

    def close(self) -> None:
        """End it, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._log.close()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def service(
    database: Path, *, paused: tuple[str, ...] = (), tree: Tree = HERE, **settings: object
) -> Iterator[Server]:
    """`jobpipe serve` on a file, once it answers; these queues take no job. The setting `store` names another store."""
    with starting(database, tree=tree, **settings) as server:
        server.first_202()
        for queue in paused:
            status, _ = server.ask("POST", f"/queues/{queue}/pause")
            assert status == http.HTTPStatus.OK, status
        yield server


@contextmanager
def starting(database: Path, *, tree: Tree = HERE, **settings: object) -> Iterator[Server]:
    """`jobpipe serve` on a file, just started."""
    port = free_port()
    given = {"store": f"sqlite:{database}", "port": port, "keep_jobs": 10**9, "max_backlog": 10**9} | settings
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    with _closing(
        Server([tree.python, "-m", "jobpipe", "serve", *flags], port, database.parent, tree)
    ) as server:
        yield server


@contextmanager
def bare_route(folder: Path, *, wait: bool = True) -> Iterator[Server]:
    """The bare route of `floor_route`."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.floor_route", str(port)]
    with _closing(Server(command, port, folder)) as server:
        if wait:
            server.first_202()
        yield server


@contextmanager
def _closing(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.close()
