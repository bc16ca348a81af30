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
    command = [sys.executable, "-m", "jobpipe", "serve", "--port", "0", "--store", "memory:"]
    folder = tmp_path_factory.mktemp("service")
    environment = {"PATH": os.environ["PATH"], "COLUMNS": "500"}
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
