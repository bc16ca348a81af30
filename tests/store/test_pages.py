"""Lists: however much a store holds, a page is bounded in bytes and in time, and its cursor leads on to the end."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from jobpipe.job import Job, JobError, Options, Outcome, Status
from jobpipe.store import paging
from jobpipe.store.base import PAGE_BYTES, Batch, Filter, Page, Place, Store
from jobpipe.store.paging import FIRST, ROW, SECONDS, Pager
from jobpipe.store.postgres.store import PostgresStore
from jobpipe.store.sqlite import open_sqlite
from jobpipe.store.sqlite.store import SqliteStore
from tests.store.test_contract import NOW, add, new_job, settlement, wish

pytestmark = pytest.mark.long


async def walked(store: Store, limit: int = 1000, **where: Any) -> list[Page]:
    """Every page of a list, by following the cursors."""
    pages, before = list[Page](), None
    while not pages or before is not None:
        page = await store.jobs(Filter(**where), limit, before)
        assert page.next_before is None or before is None or page.next_before < before
        pages.append(page)
        before = page.next_before
    return pages


def ids(pages: Sequence[Page]) -> list[list[str]]:
    return [[job.id for job in page.jobs] for page in pages]


def payload(size: int) -> bytes:
    return b'"' + b"x" * (size - 2) + b'"'


SHARE = (PAGE_BYTES - 4 * (ROW + 1)) // 4
"""The size of a payload of which four fill a page, their ids and all."""


async def test_a_page_holds_what_fits_into_its_bytes(store: Store) -> None:
    """To the byte: four of these fill it."""
    for number in range(5):
        await add(store, new_job(str(number), payload=payload(SHARE)))
    await add(store, new_job("5", payload=payload(SHARE + 1)))

    assert ids(await walked(store)) == [["5", "4", "3"], ["2", "1", "0"]]
    assert ids(await walked(store, kind="echo")) == [["5", "4", "3"], ["2", "1", "0"]]

    await store.delete(["5"], NOW)
    assert ids(await walked(store)) == [["4", "3", "2", "1"], ["0"]]


async def test_a_job_that_is_larger_than_a_page_comes_alone(store: Store) -> None:
    """Else the list could not go on behind it."""
    for number in range(4):
        large = number in (1, 2)
        await add(store, new_job(str(number), payload=payload(PAGE_BYTES + 1) if large else b"1"))
    pages = await walked(store)

    assert ids(pages) == [["3"], ["2"], ["1"], ["0"]]
    assert [len(page.jobs[0].asked.payload) for page in pages] == [1, PAGE_BYTES + 1, PAGE_BYTES + 1, 1]


async def test_without_their_content_large_jobs_are_listed_together(store: Store) -> None:
    """Their payloads are not even read."""
    await add(store, *(new_job(str(number), payload=payload(PAGE_BYTES)) for number in range(5)))
    (page,) = await walked(store, content=False)

    assert [(job.id, job.asked.payload, job.state.result) for job in page.jobs] == [
        (str(number), b"", None) for number in reversed(range(5))
    ]
    assert [job.asked.kind for job in page.jobs] == ["echo"] * 5


async def test_results_errors_and_options_count_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is bounded by what it shows."""
    await store.join("n", NOW, NOW + 60)
    await add(store, *(new_job(str(number), options=Options(tags=("t" * 100,))) for number in range(4)))
    claimed = (await store.exchange(Batch(node="n", now=NOW, claims=wish(3)))).claimed
    error = JobError("E", "m" * 1000, "t" * 8000)
    settled = [
        settlement(claimed[0], Outcome.DONE, result=payload(9000)),
        settlement(claimed[1], Outcome.FAIL, status=Status.FAILED, error=error),
        settlement(claimed[2], Outcome.RETRY, error=error),
    ]
    await store.exchange(Batch(node="n", now=NOW, settlements=settled))
    monkeypatch.setattr(paging, "PAGE_BYTES", 10_000)

    assert ids(await walked(store)) == [["3"], ["2"], ["1"], ["0"]]
    assert ids(await walked(store, content=False)) == [["3"], ["2"], ["1"], ["0"]]


@pytest.mark.parametrize("limit", [1, 7, 1000])
@pytest.mark.parametrize("size", [1, 3000])
@pytest.mark.parametrize("where", [{}, {"text": "x"}, {"tag": "even"}, {"status": Status.SCHEDULED}], ids=str)
async def test_pages_hold_every_job_once_whatever_bounds_them(
    store: Store, monkeypatch: pytest.MonkeyPatch, limit: int, size: int, where: dict[str, Any]
) -> None:
    """Bytes, rows and time."""
    jobs = [
        new_job(
            str(number),
            payload=payload(size + 10),
            options=Options(tags=("even",) if number % 2 == 0 else ()),
            run_at=NOW + number % 3,
        )
        for number in range(60)
    ]
    await add(store, *jobs)
    whole = [job.id for page in await walked(store, **where) for job in page.jobs]
    monkeypatch.setattr(paging, "PAGE_BYTES", 20_000)
    monkeypatch.setattr(paging, "FIRST", 3)
    monkeypatch.setattr(paging, "SECONDS", 0.0)
    pages = await walked(store, limit, **where)

    assert [job.id for page in pages for job in page.jobs] == whole
    assert len(whole) == {"{}": 60, "{'text': 'x'}": 60, "{'tag': 'even'}": 30}.get(str(where), 40)
    assert all(sum(len(job.asked.payload) + ROW for job in page.jobs) <= 20_000 for page in pages)
    assert all(len(page.jobs) <= limit for page in pages)


async def test_a_search_that_has_spent_its_time_returns_a_short_page_with_a_cursor(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first part is always looked at, so that each request gets on."""
    await add(store, *(new_job(str(number), payload=b'"needle"') for number in range(2)))
    await add(store, *(new_job(str(number)) for number in range(2, FIRST + 1)))
    monkeypatch.setattr(paging, "SECONDS", 0.0)
    pages = await walked(store, text="needle")

    assert ids(pages) == [["1"], ["0"]]


# How much is looked at


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_search_looks_at_more_and_more_rows_while_that_is_quick() -> None:
    """And at no more once a part has taken a good part of the time."""
    clock = Clock()
    pager, looks = Pager(Filter(text="x"), 10, None, clock), list[int]()
    for seconds in (0.0, 0.0, 0.0, SECONDS / 4, SECONDS / 4, SECONDS / 2):
        looks.append(pager.look)
        clock.now += seconds
        pager.looked(Place(NOW, 1000 - len(looks)))

    assert looks == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST, 8 * FIRST, 8 * FIRST]
    assert pager.over
    assert pager.page().next_before == Place(NOW, 1000 - len(looks))


def test_a_list_looks_at_so_many_rows_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """However quick that is."""
    monkeypatch.setattr(paging, "LOOK", 5 * FIRST)
    pager, looked = Pager(Filter(text="x"), 10, None, Clock()), 0
    while not pager.over:
        looked += pager.look
        pager.looked(Place(NOW, 9999 - looked))

    assert looked == 5 * FIRST


def test_a_page_ends_where_the_list_does() -> None:
    pager = Pager(Filter(), 10, None, Clock())
    pager.looked(None)

    assert (pager.over, pager.page()) == (True, Page([], None))


# A lane of their own


async def reads(store: Store) -> list[object]:
    """What must not wait for a search."""
    job: Job | None = await store.get("a")
    await store.ping()
    return [job and job.id, len(await store.queues()), ids([await store.jobs(Filter(), 10, None)])]


@pytest.mark.parametrize("open_store", ["postgres", "sqlite"], indirect=True)  # in memory nothing can hang
async def test_nothing_waits_for_searches_that_hang(store: Store) -> None:
    """As many as there are."""
    await add(store, new_job("a"))
    begun, release = trio.Event(), threading.Event()
    async with trio.open_nursery() as nursery:
        hung = holding(store, begun, release)
        nursery.start_soon(hung)
        await begun.wait()
        for _ in range(10):
            nursery.start_soon(store.jobs, Filter(text="a"), 10, None)
        with trio.fail_after(10):
            told = await reads(store)
        release.set()

    assert told == ["a", 1, [["a"]]]


def holding(store: Store, begun: trio.Event, release: threading.Event):
    """A task that keeps the connection for searches until it is released."""

    async def sqlite() -> None:
        assert isinstance(store, SqliteStore)

        def hang(_connection: object) -> None:
            trio.from_thread.run_sync(begun.set)
            release.wait(30)

        await store._read_in("search", hang)

    async def postgres() -> None:
        assert isinstance(store, PostgresStore)

        async def hang(_session: object) -> None:
            begun.set()
            await trio.to_thread.run_sync(release.wait, 5)

        await store._searching.read(hang)

    return sqlite if isinstance(store, SqliteStore) else postgres


async def test_after_a_failed_write_the_connection_for_searches_is_opened_anew_too(tmp_path: Path) -> None:
    """It must not go on with what it remembers of the file."""
    async with open_sqlite(tmp_path / "jobs.db", sync="normal") as store:
        await add(store, new_job("a"))
        before = [await store._read_in(lane, id) for lane in ("read", "search")]
        store._database._doubt = "a failed fsync"
        await add(store, new_job("b"))
        after = [await store._read_in(lane, id) for lane in ("read", "search")]

        assert ids([await store.jobs(Filter(text="b"), 10, None)]) == [["b"]]
        assert len({*before, *after}) >= 3
