"""Clients that generators make from the spec: they compile, and they work against the running service."""

import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
import trio

from tests.api.client import open_door

pytestmark = pytest.mark.clients

HERE = Path(__file__).parent

VENV = Path(os.environ.get("JOBPIPE_TEST_CLIENTS", ".venv-clients")).absolute() / "bin"
"""Where `just test-clients` has put the generator of Python clients."""

PATIENCE = 300.0
"""Seconds for npm to fetch a compiler over a slow line; it is there the next time."""


async def run(folder, *command):
    """Run a program to its end; returns what it wrote, and fails with that when it fails."""
    path = f"{VENV}{os.pathsep}{os.environ['PATH']}"  # the generator looks for its formatter there
    with trio.fail_after(PATIENCE):
        ended = await trio.run_process(
            command,
            cwd=folder,
            env=os.environ | {"PATH": path},
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
    assert ended.returncode == 0, ended.stdout.decode()
    return ended.stdout.decode()


@pytest.fixture
async def service():
    """The address of a service on a socket."""
    async with open_door() as door, door.served() as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
async def folder(service, tmp_path):
    """A folder with the service's spec."""
    async with httpx.AsyncClient(trust_env=False) as client:
        spec = await client.get(f"{service}/openapi.json")
    (tmp_path / "openapi.json").write_bytes(spec.content)
    return tmp_path


async def test_a_typescript_client_compiles_and_works(service, folder):
    for name in ("package.json", "tsconfig.json", "use.ts"):
        shutil.copy(HERE / name, folder)

    await run(folder, "npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--prefer-offline")
    await run(folder, "npm", "run", "generate")
    await run(folder, "npm", "run", "build")

    assert await run(folder, "node", "built/use.js", service) == "works\n"


async def test_a_python_client_compiles_and_works(service, folder):
    shutil.copy(HERE / "use.py", folder)
    generator = (VENV / "openapi-python-client", "generate", "--path", "openapi.json", "--meta", "none")

    await run(folder, *generator, "--output-path", "client")
    await run(folder, VENV / "python", "-m", "compileall", "-q", "client", "use.py")

    assert await run(folder, VENV / "python", "use.py", service) == "works\n"
