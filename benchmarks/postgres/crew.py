"""Processes that start together: nodes, workers, clients."""

import dataclasses
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.postgres import slots
from benchmarks.processes import HERE, Tree, environment

SLICE = 0.005


@dataclasses.dataclass(frozen=True)
class Side:
    """One of those that are compared. `program`: the module here that plays it."""

    name: str
    program: str
    size: int = 64
    """of the channel between intake and workers, where it has one"""
    asks_inside: bool = False
    """whether what enqueues is one of the nodes, and no client beside them"""
    tree: Tree = HERE

    def command(self, url: str, slot: Path, jobs: int, role: str, *more: object) -> list[str]:
        """How a process of it is started."""
        module = f"benchmarks.postgres.{self.program}"
        return [
            self.tree.python,
            "-W",
            "ignore",
            "-m",
            module,
            *map(str, (url, slot, jobs, self.size, role, *more)),
        ]

    def fill(self, url: str, jobs: int, *shape: object) -> None:
        """Make its tables, with so many jobs, maybe of a shape with its number (see `benchmarks.shapes`)."""
        command = self.command(url, Path("-"), jobs, "fill", *shape)
        subprocess.run(command, env=environment(self.tree), cwd=self.tree.programs, check=True)


class Process:
    """One of a crew."""

    def __init__(self, command: Sequence[str], slot: Path, tree: Tree = HERE) -> None:
        self.slot = slot
        self._process = subprocess.Popen(
            command,
            env=environment(tree),
            cwd=tree.programs,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def wait_until_ready(self) -> None:
        """Return when it is ready."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line == "ready\n", f"{self._process.args} said {line!r}"

    def go(self) -> None:
        """Let it begin."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def told(self) -> Any:  # noqa: ANN401 - whatever it tells
        """The next thing that it tells."""
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()

    def begun(self) -> list[tuple[float, float]]:
        """When each of its jobs began, and when it was asked for."""
        return slots.begun(self.slot)


class Crew:
    """Several of one side, begun at the same time."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self.processes = processes
        for process in processes:
            process.wait_until_ready()
        for process in processes:
            process.go()

    def count(self) -> int:
        """How many jobs have begun."""
        return sum(slots.count(process.slot) for process in self.processes)

    def wait_for(self, jobs: int, seconds: float) -> bool:
        """Wait until so many jobs have begun; False: it took too long."""
        until = time.perf_counter() + seconds
        while self.count() < jobs:
            if time.perf_counter() > until:
                return False
            time.sleep(SLICE)
        return True


@contextmanager
def crew(
    folder: Path, commands: Sequence[tuple[Side, tuple[object, ...]]], url: str, jobs: int
) -> Iterator[Crew]:
    """Start a process for each role, and end them all."""
    processes: list[Process] = []
    try:
        for number, (side, role) in enumerate(commands):
            slot = folder / f"slot-{number}"
            processes.append(Process(side.command(url, slot, jobs, *map(str, role)), slot, side.tree))
        yield Crew(processes)
    finally:
        for process in processes:
            process.end()
