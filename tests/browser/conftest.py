"""The real service, and a browser to look at it."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import Page, chromium


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`jobpipe serve` with an empty store; its URL."""
    yield from _served(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def own_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One for the tests of a file alone, with a name and room for jobs; its URL."""
    yield from _served(tmp_path_factory.mktemp("service"), "--instance", "test", "--max-backlog", "1000")


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of pages are kept: the folder in `JOBPIPE_TEST_SHOTS`, or one that is deleted some day."""
    named = os.environ.get("JOBPIPE_TEST_SHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("shots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _served(folder: Path, *flags: str) -> Iterator[str]:
    command = [sys.executable, "-m", "jobpipe", "serve", "--port", "0", "--store", "memory:", *flags]
    environment = {"PATH": os.environ["PATH"], "COLUMNS": "500"}
    environment |= {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            listens = process.stderr.readline()
            url = re.search(r"listens on (http://\S+)", listens)
            assert url, listens
            yield url[1]
        finally:
            process.terminate()
            process.stderr.read()
    assert process.returncode == 0


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    """An empty tab of a new browser."""
    async with chromium(tmp_path) as opened:
        yield opened
