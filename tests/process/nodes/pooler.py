"""PgBouncer between nodes and the server of all tests.

`JOBPIPE_TEST_PGBOUNCER` names another program than the `pgbouncer` that is found.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import urlencode

import pytest
import trio
from psycopg.conninfo import conninfo_to_dict

from tests.process.running import until
from tests.store.server import server_url

Mode = Literal["transaction", "session"]

FOLLOWS = (1, 21)
"""The first version that follows prepared statements."""

_CONFIG = """
[databases]
jobs = {server}
[pgbouncer]
unix_socket_dir = {folder}
listen_port = 6432
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 200
logfile = {folder}/log
"""


def program() -> str:
    """Where PgBouncer is; skips the test where it is not."""
    found = os.environ.get("JOBPIPE_TEST_PGBOUNCER") or shutil.which("pgbouncer", path=_path())
    if found is None:
        pytest.skip("there is no PgBouncer here: install it (Debian: apt-get install pgbouncer)")
    return found


def _path() -> str:
    return os.pathsep.join(
        (os.environ.get("PATH", ""), "/usr/sbin")
    )  # where Debian has it, and users look not


def version() -> tuple[int, ...]:
    """Which PgBouncer it is, as in (1, 18)."""
    said = subprocess.run([program(), "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in said.split()[1].split(".")[:2])


class Pooler:
    """A PgBouncer that listens."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def url(self, **more: str) -> str:
        """The address of the database through it."""
        return f"postgresql://joe@/jobs?{urlencode({'host': str(self._folder), 'port': '6432'} | more)}"


@asynccontextmanager
async def open_pooler(mode: Mode, size: int) -> AsyncIterator[Pooler]:
    """Start one that has so many connections to the server at the most, for all its clients."""
    found, user = program(), _user()
    with tempfile.TemporaryDirectory() as name:  # not in pytest's folder: the name of a socket must be short
        folder = Path(name)
        config = folder / "ini"
        prepared = "max_prepared_statements = 200\n" if version() >= FOLLOWS else ""
        config.write_text(_CONFIG.format(server=_server(), folder=folder, mode=mode, size=size) + prepared)
        for path in (folder, config):
            shutil.chown(path, user)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_run, [found, "-q", str(config)], user)
            await until(trio.Path(folder / ".s.PGSQL.6432").exists)
            yield Pooler(folder)
            nursery.cancel_scope.cancel()


async def _run(command: Sequence[str], user: str) -> None:
    """Run it until this is cancelled, at once: of SIGTERM it would make a wait for its last client."""

    async def kill(process: trio.Process) -> None:
        process.kill()

    # As somebody else than root, which it refuses.
    await trio.run_process(command, user=user, check=False, stderr=subprocess.DEVNULL, deliver_cancel=kill)


def _server() -> str:
    """The server of all tests, as PgBouncer wants to have it."""
    server = conninfo_to_dict(server_url())
    names = ("host", "port", "dbname", "user", "password")
    return " ".join(f"{name}={server[name]}" for name in names if server.get(name))


def _user() -> str:
    """Who may connect to the server: its own user, where its socket is for nobody else."""
    host = str(conninfo_to_dict(server_url()).get("host") or "")
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    return Path(host).owner() if host.startswith("/") else "nobody"
