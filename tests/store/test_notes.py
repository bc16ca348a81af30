"""What held jobs write between their start and their end, over every store: fenced, bounded, and gone with the job."""

import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from jobpipe.job import LEVELS, Job, Outcome, Progress, Status
from jobpipe.store.base import (
    LOG_BYTES,
    LOG_LINES,
    Claimed,
    LogLine,
    LogPage,
    Note,
    Receipts,
    Retention,
    Store,
    StoredLine,
)
from jobpipe.store.postgres.session import Session
from jobpipe.store.postgres.store import PostgresStore
from jobpipe.store.verbs.notes import Last, line_rows
from tests.store.test_contract import KEEP_ALL, LATER, NOW, Node, add, get, new_job, settlement, start

pytestmark = pytest.mark.long

HALF, HALF_BYTES = LOG_LINES // 2, LOG_BYTES // 2


@pytest.fixture
async def node(store: Store) -> Node:
    one = Node(store)
    await one.join(lease_until=NOW + 1e6)
    return one


@pytest.fixture
async def job(node: Node) -> Claimed:
    """A job that the node runs."""
    await add(node.store, new_job())
    taken = await node.take()
    await node.start(taken)
    return taken


def line(number: int, text: str = "", **how: Any) -> LogLine:
    usual: dict[str, Any] = {
        "number": number,
        "at": NOW + number,
        "level": "info",
        "text": text or f"line {number}",
    }
    return LogLine(**(usual | how))


def note(job: Claimed, *lines: LogLine, progress: Progress | None = None) -> Note:
    return Note(
        seq=job.seq, id=job.id, claim=job.claim, attempt=job.attempt + 1, progress=progress, lines=lines
    )


def progress(fraction: float = 0.4, message: str = "page 4 of 10") -> Progress:
    return Progress(fraction, message, NOW + 1)


async def write(node: Node, *notes: Note, **rest: Any) -> Receipts:
    return await node.exchange(notes=notes, **rest)


async def log(store: Store, job_id: str = "a", **which: Any) -> LogPage:
    page = await store.log(job_id, **which)
    assert page is not None
    return page


async def texts(store: Store, job_id: str = "a", **which: Any) -> list[str]:
    return [one.text for one in (await log(store, job_id, **which)).lines]


async def again(node: Node) -> Claimed:
    """The same job, claimed for its next attempt."""
    return await node.take(now=LATER)


# --- what is written --------------------------------------------------------------------------------------------------


async def test_a_job_shows_its_progress(node: Node, job: Claimed) -> None:
    before = await get(node.store)
    receipts = await write(node, note(job, progress=progress()))

    assert before.progress is None
    assert receipts.stale == frozenset()
    assert (await get(node.store)).progress == progress()


async def test_the_latest_progress_counts(node: Node, job: Claimed) -> None:
    await write(node, note(job, progress=progress()))
    await write(node, note(job, line(1)))
    await write(node, note(job, progress=progress(1, "")))

    assert (await get(node.store)).progress == progress(1, "")


async def test_a_log_has_its_lines_in_order(node: Node, job: Claimed) -> None:
    await write(node, note(job, line(1, "grüße", level="debug"), line(2, fields=b'{"to":[1,2]}')))
    await write(node, note(job, line(3, level="error")))

    page = await log(node.store)
    assert page.lines == [
        StoredLine(1, NOW + 1, 1, "debug", "grüße", None),
        StoredLine(2, NOW + 2, 1, "info", "line 2", b'{"to":[1,2]}'),
        StoredLine(3, NOW + 3, 1, "error", "line 3", None),
    ]
    assert (page.dropped, page.last, page.ended) == (0, 3, False)


async def test_a_job_that_wrote_nothing_has_an_empty_log(node: Node, job: Claimed) -> None:
    assert await log(node.store) == LogPage(lines=[], dropped=0, last=0, ended=False)


@pytest.mark.parametrize("job_id", ["absent", "a\0b", "é"])
async def test_there_is_no_log_of_a_job_that_is_not_there(store: Store, job_id: str) -> None:
    assert await store.log(job_id) is None
    assert await store.get(job_id) is None


async def test_a_part_of_a_log_can_be_had(node: Node, job: Claimed) -> None:
    """By number, by level, and no more than asked for."""
    levels = itertools.cycle(LEVELS)
    await write(node, note(job, *(line(number, str(number), level=next(levels)) for number in range(1, 9))))

    assert await texts(node.store, after=6) == ["7", "8"]
    assert await texts(node.store, after=2, limit=2) == ["3", "4"]
    assert await texts(node.store, levels=["warning", "error"]) == ["3", "4", "7", "8"]
    assert await texts(node.store, after=8) == []


async def test_several_jobs_write_in_one_exchange(node: Node) -> None:
    await add(node.store, *(new_job(job_id) for job_id in "abc"))
    jobs = await node.claim(3)
    notes = [note(one, line(1, one.id), progress=progress(message=one.id)) for one in reversed(jobs)]
    await write(node, *notes)
    await write(node, *notes[:2])

    for job_id in "abc":
        shown = (await get(node.store, job_id)).progress
        assert shown is not None
        assert (shown.message, await texts(node.store, job_id)) == (job_id, [job_id])


async def test_the_last_notes_are_written_with_the_end(node: Node, job: Claimed) -> None:
    """Also where the start comes with the same exchange."""
    await node.settle(job, Outcome.DONE)
    await add(node.store, new_job("b"))
    second = await node.take()
    receipts = await node.exchange(
        starts=[start(second)],
        notes=[note(second, line(1), progress=progress(1.0))],
        settlements=[settlement(second, Outcome.DONE)],
    )

    ended = await get(node.store, "b")
    assert receipts.stale == frozenset()
    assert (ended.status, ended.progress) == (Status.DONE, progress(1.0))
    assert (await log(node.store, "b")).ended
    assert await texts(node.store, "b") == ["line 1"]


async def test_lines_carry_their_attempt_and_numbers_go_on(node: Node, job: Claimed) -> None:
    await write(node, note(job, line(1), line(2)))
    await node.settle(job, Outcome.RETRY)
    second = await again(node)
    await write(node, note(second, line(1), line(2)))

    lines = (await log(node.store)).lines
    assert [(one.n, one.attempt) for one in lines] == [(1, 1), (2, 1), (3, 2), (4, 2)]


async def test_a_new_claim_begins_without_progress(node: Node, job: Claimed) -> None:
    """What an ended attempt came to is shown until then."""
    await write(node, note(job, progress=progress()))
    await node.settle(job, Outcome.RETRY)
    waiting = (await get(node.store)).progress
    second = await again(node)
    claimed = (await get(node.store)).progress
    await write(node, note(second, progress=progress(0.1, "")))

    assert (waiting, claimed) == (progress(), None)
    assert (await get(node.store)).progress == progress(0.1, "")


async def test_a_retry_by_hand_keeps_the_log(node: Node, job: Claimed) -> None:
    await write(node, note(job, line(1)))
    await node.settle(job, Outcome.FAIL)
    await node.store.retry(["a"], NOW)
    second = await node.take()
    await write(node, note(second, line(1)))

    assert [(one.n, one.attempt) for one in (await log(node.store)).lines] == [(1, 1), (2, 1)]


async def test_what_is_written_twice_is_there_once(node: Node, job: Claimed) -> None:
    """As when nobody knows whether a commit took place, and more has come meanwhile."""
    first = note(job, line(1), line(2), progress=progress())
    await write(node, first)
    await write(node, first)
    await write(node, note(job, line(1), line(2), line(3)))

    assert await texts(node.store) == ["line 1", "line 2", "line 3"]
    assert (await log(node.store)).dropped == 0


# --- the fence --------------------------------------------------------------------------------------------------------


def whole(job: Claimed) -> Note:
    return note(job, line(1), progress=progress())


async def test_a_claim_that_was_lost_writes_nothing(node: Node, job: Claimed, store: Store) -> None:
    """To another node, which writes its own."""
    other = Node(store, "other")
    await other.join(lease_until=NOW + 1e7)
    await store.rescue("other", NOW + 2e6)
    newer = await other.take(now=NOW + 2e6)
    receipts = await write(node, whole(job))
    await write(other, note(newer, line(1, "mine")))

    assert receipts.stale == {(job.seq, job.claim)}
    assert (await get(store)).progress is None
    assert await texts(store) == ["mine"]


@pytest.mark.parametrize("end", ["done", "given back", "cancelled", "deleted", "never"])
async def test_nothing_is_written_to_a_job_that_is_not_held(node: Node, job: Claimed, end: str) -> None:
    claim = job
    if end == "never":
        claim = Claimed(99, "z", "echo", "default", b"1", 0, NOW, 0, 3, 1, 0)
    elif end == "given back":
        await node.settle(job, None)
    elif end == "cancelled":
        await node.settle(job, Outcome.CANCELLED)
    else:
        await node.settle(job, Outcome.DONE)
    if end == "deleted":
        await node.store.delete(["a"], NOW)
    receipts = await write(node, whole(claim))

    assert receipts.stale == {(claim.seq, claim.claim)}
    if end != "deleted":
        assert (await get(node.store)).progress is None
        assert await texts(node.store) == []


async def test_a_stale_note_costs_the_others_nothing(node: Node, job: Claimed) -> None:
    await add(node.store, new_job("b"))
    second = await node.take()
    await node.settle(job, Outcome.DONE)
    receipts = await write(node, whole(job), whole(second), settlements=[settlement(second, Outcome.DONE)])

    assert receipts.stale == {(job.seq, job.claim)}
    assert await texts(node.store, "b") == ["line 1"]
    assert (await get(node.store, "b")).status is Status.DONE


async def test_a_job_that_is_being_cancelled_still_writes(node: Node, job: Claimed) -> None:
    """Its cleanup has something to say."""
    await node.store.cancel(["a"], NOW)
    receipts = await write(node, whole(job))

    assert receipts.stale == frozenset()
    assert await texts(node.store) == ["line 1"]


# --- the bounds -------------------------------------------------------------------------------------------------------


async def logged(node: Node, job: Claimed, lines: Sequence[LogLine], by: int = 200) -> None:
    for first in range(0, len(lines), by):
        await write(node, note(job, *lines[first : first + by]))


async def test_of_a_long_log_the_first_and_the_last_lines_are_kept(node: Node, job: Claimed) -> None:
    await logged(node, job, [line(number) for number in range(1, 1501)])

    page = await log(node.store)
    assert [one.n for one in page.lines] == [*range(1, HALF + 1), *range(1500 - HALF + 1, 1501)]
    assert (page.dropped, page.last) == (500, 1500)


async def test_a_log_of_just_so_many_lines_is_whole(node: Node, job: Claimed) -> None:
    await logged(node, job, [line(number) for number in range(1, LOG_LINES + 1)])
    before = await log(node.store)
    await write(node, note(job, line(LOG_LINES + 1)))
    after = await log(node.store)

    assert (len(before.lines), before.dropped) == (LOG_LINES, 0)
    assert (len(after.lines), after.dropped) == (LOG_LINES, 1)


async def test_long_lines_are_bounded_by_their_bytes(node: Node, job: Claimed) -> None:
    """Of text and fields together, in UTF-8."""
    lines = [line(number, "ü" * 1000, fields=b'{"x":"%s"}' % (b"y" * 1992)) for number in range(1, 101)]
    await logged(node, job, lines, by=30)

    page = await log(node.store, limit=LOG_LINES)
    sizes = [len(one.text.encode()) + len(one.fields or b"") for one in page.lines]
    numbers = [one.n for one in page.lines]
    assert {*sizes} == {4000}
    assert numbers == [*range(1, 33), *range(69, 101)]
    assert sum(sizes) <= LOG_BYTES
    assert page.dropped == 36


async def test_lines_that_were_left_out_before_are_counted(node: Node, job: Claimed) -> None:
    """What did not fit into memory has a number, and nothing else."""
    await write(node, note(job, line(3), line(4)))
    await write(node, note(job, line(10)))
    await node.settle(job, Outcome.RETRY)
    second = await again(node)
    await write(node, note(second, line(2)))

    page = await log(node.store)
    assert [one.n for one in page.lines] == [3, 4, 10, 12]
    assert (page.last, page.dropped) == (12, 8)


def test_lines_go_on_behind_the_last_one() -> None:
    one = Note(seq=7, id="a", claim=3, attempt=2, lines=[line(4, "four"), line(6, "six")])

    other_claim = line_rows(one, Last(claim=2, number=9, n=20, total=100))
    same_claim = line_rows(one, Last(claim=3, number=4, n=20, total=100))

    assert [(row.n, row.total, row.claim, row.number) for row in other_claim] == [
        (24, 104, 3, 4),
        (26, 107, 3, 6),
    ]
    assert [(row.n, row.total, row.claim, row.number) for row in same_claim] == [(22, 103, 3, 6)]


# --- the end ----------------------------------------------------------------------------------------------------------


async def rows_left(store: Any) -> int:
    """The rows of both tables, whosever they are."""

    async def count(tx: Any) -> int:
        ((number,),) = await tx.rows(
            "select (select count(*) from progress) + (select count(*) from logs)", {}
        )
        return int(number)

    return int(await store._look(count))


async def ended(node: Node, *ids: str) -> list[Job]:
    """Jobs that wrote something and have ended."""
    await add(node.store, *map(new_job, ids))
    for job in await node.claim(len(ids)):
        await write(node, whole(job), settlements=[settlement(job, Outcome.DONE)])
    return [await get(node.store, job_id) for job_id in ids]


async def test_what_was_written_goes_with_the_job(node: Node) -> None:
    await ended(node, "a", "b")
    before = await rows_left(node.store)
    await node.store.delete(["a"], NOW)

    assert (before, await rows_left(node.store)) == (4, 2)
    await add(node.store, new_job("a"))
    assert (await get(node.store)).progress is None
    assert await texts(node.store) == []


async def test_what_was_written_is_pruned_with_the_job(node: Node) -> None:
    await ended(node, "a", "b", "c")
    pruned = await node.store.prune(NOW, Retention(done_age=1e9, failed_age=1e9, jobs=1, size=10**9))

    assert pruned == 2
    assert await rows_left(node.store) == 2
    assert await node.store.prune(NOW, KEEP_ALL) == 0


async def test_what_deleted_jobs_have_left_is_swept(node: Node, store: Any) -> None:
    """By somebody in the database, or by a node of a version that had no notes; what belongs to a job stays."""

    async def delete(tx: Any) -> None:
        tx.run("delete from jobs where id = :id", {"id": "a"})

    await ended(node, "a", "b")
    await store._carry_out(delete)
    await store.prune(NOW, KEEP_ALL)

    assert await rows_left(store) == 2
    assert await texts(store, "b") == ["line 1"]


# --- an exchange without notes ----------------------------------------------------------------------------------------


@contextmanager
def asked(store: Any) -> Iterator[list[str]]:
    """The statements of the exchanges of a store."""
    statements: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        if isinstance(store, PostgresStore):
            run = Session.run

            def noted(self: Session, sql: str, *args: Any, **how: Any) -> Any:
                statements.append(sql)
                return run(self, sql, *args, **how)

            patch.setattr(Session, "run", noted)
        else:

            def trace(_cursor: Any, sql: str, _values: Any) -> bool:
                statements.append(sql)
                return True

            store._writer.db.exec_trace = trace
        yield statements
        if not isinstance(store, PostgresStore):
            store._writer.db.exec_trace = None


async def test_an_exchange_without_notes_carries_out_not_one_statement_more(node: Node) -> None:
    """However many jobs it starts, settles, adds and claims; with notes it carries out three to four."""
    await add(node.store, *(new_job(job_id) for job_id in "abcd"))
    first, second, third, fourth = await node.claim(4)
    await node.exchange(
        settlements=[settlement(fourth, Outcome.DONE)], claim=1
    )  # it has asked what it asks once

    async def statements(job: Claimed, *notes: Note) -> list[str]:
        with asked(node.store) as ran:
            await node.exchange(
                starts=[start(job)], notes=notes, settlements=[settlement(job, Outcome.DONE)], claim=1
            )
        return ran

    without = await statements(first)
    with_both = await statements(second, whole(second))
    with_progress = await statements(third, note(third, progress=progress()))

    assert not any(re.search("logs|progress", sql) for sql in without)
    assert len(with_both) - len(without) == 4
    assert len(with_progress) - len(without) == 2
