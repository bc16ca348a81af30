"""The real process, started by fixtures and always ended by them."""

import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import trio

from tests.process.running import JOBPIPE, LAUNCH, Line, Service, environment, read_trace

Serve = Callable[..., Awaitable[Service]]


@pytest.fixture
async def launch(tmp_path: Path) -> AsyncIterator[Serve]:
    """Start `jobpipe serve` in the test's folder, with these settings; does not wait until it listens."""
    services: list[Service] = []
    async with trio.open_nursery() as nursery:

        async def launched(*arguments: str, folder: Path = tmp_path, **settings: object) -> Service:
            process = await trio.lowlevel.open_process(
                [*LAUNCH, *JOBPIPE, "serve", *arguments],
                cwd=folder,
                env=environment(folder, settings),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            service = Service(process, folder)
            services.append(service)
            await nursery.start(service.listen)
            return service

        try:
            yield launched
        finally:
            with trio.CancelScope(shield=True):
                for service in services:
                    await service.close()
    assert [line for service in services for line in service.errors] == []


@pytest.fixture
def serve(launch: Serve) -> Serve:
    """Start `jobpipe serve` in the test's folder, with these settings; it listens when this returns."""

    async def served(*arguments: str, **settings: object) -> Service:
        service = await launch(*arguments, **settings)
        await service.starts()
        return service

    return served


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The file of the service's store."""
    return tmp_path / "jobs.db"


@pytest.fixture
def trace(tmp_path: Path) -> Callable[[], Sequence[Line]]:
    """What handlers have written so far."""
    return lambda: read_trace(tmp_path)


class Gate:
    """A file that handlers wait for."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def open(self) -> None:
        """Let every handler that waits go on."""
        Path(self.path).touch()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Closed at first."""
    return Gate(tmp_path / "gate")
