"""Stores that releases wrote are opened by this version, with every job in them, and go on."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path

import msgspec
import pytest

from jobpipe.job import Outcome, Status
from jobpipe.store.base import Store
from jobpipe.store.postgres import open_postgres
from jobpipe.store.sqlite import open_sqlite
from jobpipe.version import VERSION
from tests.store.server import ask, server_url, with_query
from tests.store.test_contract import KEEP_ALL, NOW, Node, settlement
from tests.store.writing import KEPT, SCHEMA, Seen, seen

AT = NOW + 2000
"""When the store is opened again: everything in it is due."""

VERSIONS = sorted(folder.name for folder in KEPT.iterdir())


@asynccontextmanager
async def _sqlite(version: str, folder: Path) -> AsyncIterator[Store]:
    path = folder / "jobs.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript((KEPT / version / "sqlite.sql").read_text(encoding="utf-8"))
    async with open_sqlite(path, sync="normal") as store:
        yield store


@asynccontextmanager
async def _postgres(version: str, _folder: Path) -> AsyncIterator[Store]:
    ask((KEPT / version / "postgres.sql").read_text(encoding="utf-8"))
    try:
        async with open_postgres(with_query(server_url(), schema=SCHEMA), leases="caller") as store:
            yield store
    finally:
        ask(f"drop schema {SCHEMA} cascade")


Opener = Callable[[str, Path], AbstractAsyncContextManager[Store]]
OPENERS: dict[str, Opener] = {"sqlite": _sqlite, "postgres": _postgres}


def test_stores_of_this_version_are_kept() -> None:
    """Else later versions cannot be tested against them: run `just keep-stores`."""
    assert VERSION in VERSIONS


@pytest.mark.xdist_group("written")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", OPENERS)
async def test_a_store_of_each_version_is_opened_and_goes_on(version: str, kind: str, tmp_path: Path) -> None:
    """Every job looks as it did; those of a dead node are taken back, and all that can run is run."""
    kept = msgspec.json.decode((KEPT / version / "jobs.json").read_bytes(), type=Seen)
    async with OPENERS[kind](version, tmp_path) as store:
        before = await seen(store)
        node = Node(store, "new")
        await node.join(AT, AT + 60)
        rescued = {one.id: one.status for one in await store.rescue("new", AT)}
        claimed = await node.claim(100, AT)
        ends = [settlement(job, Outcome.DONE, AT) for job in claimed]
        receipts = await node.exchange(AT, settlements=ends)
        statuses = {job_id: job[0] for job_id, job in (await seen(store)).items()}
        unserved = [one.kind for one in await store.unserved()]
        pruned = await store.prune(AT, KEEP_ALL)

    assert before == kept
    assert rescued == {"held": Status.QUEUED, "running": Status.QUEUED, "cancelling": Status.CANCELLED}
    assert {job.id for job in claimed} == {"waits", "later", "retrying", "by the handler", "held", "running"}
    assert not receipts.stale
    assert {statuses[job.id] for job in claimed} == {Status.DONE}
    assert (statuses["paused"], statuses["unserved"]) == (Status.QUEUED, Status.QUEUED)
    assert statuses["expires"] is Status.EXPIRED
    assert unserved == ["unknown"]
    assert pruned == 0
