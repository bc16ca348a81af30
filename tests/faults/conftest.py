"""The real process on a disk and a clock that fail as told, started by fixtures and always ended by them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.process.conftest import Gate
from tests.process.running import LAUNCH, Service, environment, read_trace

HERE = Path(__file__).parent
FAULTY = [*LAUNCH, sys.executable, str(HERE / "faulty.py"), "serve"]

Serve = Callable[..., Awaitable[Service]]


class Faults:
    """What befalls the process; see `faulty.py`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._told: dict[str, Any] = {"disk": [], "clock": 0}

    def _tell(self) -> None:
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(self._told))
        draft.replace(self.path)  # at once: it is read at any moment

    def disk(  # the whole word for a fault
        self, call: str, file: str, *, error: str | None = "io", seconds: float = 0, times: int | None = None
    ) -> None:
        """From now on such calls fail, or are slow: so often, or until `mend`."""
        fault = {"call": call, "file": file, "error": error, "seconds": seconds, "times": times}
        self._told["disk"].append(fault)
        self._tell()

    def mend(self) -> None:
        """The disk is well again."""
        self._told["disk"] = []
        self._tell()

    def clock(self, seconds: float) -> None:
        """The wall clock is off by so much."""
        self._told["clock"] = seconds
        self._tell()

    @property
    def struck(self) -> list[str]:
        """What was hit so far: `sync PATH`."""
        path = self.path.with_name(f"{self.path.name}.struck")
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    """None at first."""
    return Faults(tmp_path / "faults.json")


@pytest.fixture
async def serve(tmp_path: Path, faults: Faults) -> AsyncIterator[Serve]:
    """Start `jobpipe serve` in the test's folder, with these settings; it listens when this returns."""
    services: list[Service] = []
    async with trio.open_nursery() as nursery:

        async def served(**settings: object) -> Service:
            own = environment(tmp_path, {"HANDLERS": "traced,bad"} | settings)
            own |= {
                "JOBPIPE_TEST_FAULTS": str(faults.path),
                "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parents[1]), own["PYTHONPATH"])),
            }
            process = await trio.lowlevel.open_process(
                FAULTY,
                cwd=tmp_path,
                env=own,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            service = Service(process, tmp_path)
            services.append(service)
            await nursery.start(service.listen)
            await service.starts()
            return service

        try:
            yield served
        finally:
            with trio.CancelScope(shield=True):
                for service in services:
                    await service.close()
    assert [line for service in services for line in service.errors] == []


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The file of the service's store."""
    return tmp_path / "jobs.db"


@pytest.fixture
def trace(tmp_path: Path) -> Callable[[], Any]:
    """What handlers have written so far."""
    return lambda: read_trace(tmp_path)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """A file that handlers wait for."""
    return Gate(tmp_path / "gate")


class SmallDisk:
    """A disk of a few megabytes that can be filled, and emptied again."""

    def __init__(self, folder: Path, fill: Callable[[], None], free: Callable[[], None]) -> None:
        self.folder, self.fill, self.free = folder, fill, free


@pytest.fixture
def small_disk(tmp_path: Path, faults: Faults) -> Iterator[SmallDisk]:
    """A mounted tmpfs; where nothing may be mounted, writes that SQLite is told found no room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder) as done:
        if done:
            yield SmallDisk(folder, lambda: fill(folder), (folder / "ballast").unlink)
        else:
            yield SmallDisk(folder, lambda: faults.disk("write", "-wal", error="full"), faults.mend)


@contextmanager
def mounted(folder: Path) -> Iterator[bool]:
    """A tmpfs of 4 MB on the folder; whether that was allowed."""
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, check=False, capture_output=True).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave no room."""
    with (folder / "ballast").open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            pass
