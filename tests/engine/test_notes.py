"""What running jobs write: soon, once a second at most, no later than their end, and never at the cost of the job."""

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from jobpipe.clock import VirtualClock
from jobpipe.engine import notes as room
from jobpipe.engine.attempt import Attempt
from jobpipe.engine.notes import APART, DELAY, Notes
from jobpipe.engine.unforeseen import UNFORESEEN
from jobpipe.errors import StoreUnavailable
from jobpipe.handlers.context import Context
from jobpipe.handlers.exceptions import Retry
from jobpipe.handlers.registry import Handler
from jobpipe.job import Level, Progress, Status
from jobpipe.store.base import LOG_LINES, Batch, LogPage, Note, Receipts
from tests.engine.conftest import NOW, FaultyStore, Rig, claimed, running, turns

Play = Callable[[Context], Any]


def handler(play: Play, *, is_async: bool = True) -> Handler:
    """The kind `play`, whose function is given the context alone."""
    if is_async:

        async def function(payload: Any, context: Context) -> Any:
            return await play(context)
    else:

        def function(payload: Any, context: Context) -> Any:  # type: ignore[misc] # a plain one
            return play(context)

    return Handler(kind="play", function=function, is_async=is_async, takes_context=True, payload_type=Any)


async def log(rig: Rig, job_id: str = "a") -> LogPage:
    page = await rig.store.log(job_id)
    assert page is not None
    return page


async def texts(rig: Rig, job_id: str = "a") -> list[str]:
    return [line.text for line in (await log(rig, job_id)).lines]


async def progress(rig: Rig, job_id: str = "a") -> Progress | None:
    return (await rig.job(job_id)).progress


def noted(store: FaultyStore) -> list[Note]:
    """What was handed to the store, batch by batch."""
    return [note for batch in store.batches for note in batch.notes]


# --- when it is written -----------------------------------------------------------------------------------------------


async def test_a_line_is_written_soon(autojump_clock) -> None:
    """Without waiting for the end of the job, and together with those that come meanwhile."""
    store, seen = FaultyStore(), []

    async def play(job: Context) -> None:
        await trio.sleep(1)  # its start is written
        job.log.info("first")
        await trio.sleep(DELAY / 2)
        job.log.info("second")
        await trio.sleep(DELAY / 2 + 0.001)
        seen.append([line.text for line in (await store.log("a")).lines])  # type: ignore[union-attr] # it is there
        await trio.sleep(10)

    async with running(store, handlers=[handler(play)]) as rig:
        await rig.enqueue(kind="play")
        await rig.ended()

    assert seen == [["first", "second"]]
    assert [[line.text for line in note.lines] for note in noted(store)] == [["first", "second"]]


async def test_progress_is_written_once_a_second_at_most_and_the_last_one_always(autojump_clock) -> None:
    store = FaultyStore()

    async def play(job: Context) -> None:
        await trio.sleep(1)
        for number in range(48):
            job.progress(number / 48, f"{number} of 48")
            await trio.sleep(0.07)

    async with running(store, handlers=[handler(play)]) as rig:
        await rig.enqueue(kind="play")
        job = await rig.ended()

    written = [note.progress for note in noted(store) if note.progress is not None]
    assert [one.message for one in written] == ["2 of 48", "17 of 48", "31 of 48", "45 of 48", "47 of 48"]
    assert job.progress == written[-1] == Progress(47 / 48, "47 of 48", round(NOW + 1 + 47 * 0.07, 3))


async def test_a_progress_that_is_not_due_waits_for_its_time_alone(autojump_clock) -> None:
    """And not for something else to be written."""
    store = FaultyStore()

    async def play(job: Context) -> None:
        job.progress(0.1)
        await trio.sleep(0.5)
        job.progress(0.2)
        await trio.sleep(0.1)
        job.log.info("a line meanwhile")
        await trio.sleep(0.7)
        assert (await store.get("a")).progress.fraction == 0.2  # type: ignore[union-attr] # it is there
        await trio.sleep(60)

    async with running(store, handlers=[handler(play)]) as rig:
        await rig.enqueue(kind="play")
        job = await rig.ended()

    assert job.status is Status.DONE
    assert [(note.progress and note.progress.fraction, len(note.lines)) for note in noted(store)] == [
        *((0.1, 0), (None, 1), (0.2, 0))
    ]


async def test_what_a_job_wrote_is_there_when_it_has_ended(autojump_clock) -> None:
    """With the very batch of its end, whichever way it ends."""
    store = FaultyStore()

    async def play(job: Context) -> None:
        job.progress(0.5, job.id)
        job.log.warning("about to end", how=job.id)
        if job.id == "raises":
            raise ValueError(job.id)
        if job.id == "hangs":
            try:
                await trio.sleep_forever()
            finally:
                job.log.info("cleanup")

    async with running(store, handlers=[handler(play)]) as rig:
        for job_id in ("returns", "raises", "hangs"):
            await rig.enqueue(job_id, kind="play", max_retries=0)
        jobs = [await rig.ended("returns"), await rig.ended("raises")]
        await trio.sleep(1)
        await rig.node.control.cancel("hangs")
        jobs.append(await rig.ended("hangs"))
        lines = [await texts(rig, one.id) for one in jobs]

    assert [one.progress and one.progress.message for one in jobs] == ["returns", "raises", "hangs"]
    assert lines == [["about to end"], ["about to end"], ["about to end", "cleanup"]]
    assert all(note.attempt == 1 for note in noted(store))


async def test_a_node_that_drains_loses_nothing(autojump_clock) -> None:
    async def play(job: Context) -> None:
        job.log.info("begun")
        await trio.sleep(5)
        job.log.info("done")
        job.progress(1)

    async with running(handlers=[handler(play)]) as rig:
        await rig.enqueue(kind="play")
        await trio.sleep(1)
        await rig.drained()
        assert await texts(rig) == ["begun", "done"]
        assert await progress(rig) == Progress(1, "", NOW + 5)


async def test_a_retry_goes_on_with_the_log_and_begins_without_progress(autojump_clock) -> None:
    seen: list[Progress | None] = []

    async def play(job: Context) -> None:
        await trio.sleep(0.1)
        seen.append(await progress(rig))
        job.log.info("hello")
        job.progress(0.9)
        if job.attempt == 1:
            raise Retry(after=1)

    async with running(handlers=[handler(play)]) as rig:
        await rig.enqueue(kind="play")
        await rig.ended()
        lines = (await log(rig)).lines

    assert seen == [None, None]
    assert [(line.n, line.attempt, line.at) for line in lines] == [(1, 1, NOW + 0.1), (2, 2, NOW + 1.2)]


# --- threads ----------------------------------------------------------------------------------------------------------


async def test_threads_write_too() -> None:
    """Also those that a handler starts itself."""

    def play(job: Context) -> None:
        job.log.info("from the worker's thread")
        other = threading.Thread(target=lambda: job.log.info("from another thread"))
        other.start()
        other.join()
        job.progress(0.5, "half")

    async with running(handlers=[handler(play, is_async=False)], patience=10) as rig:
        await rig.enqueue(kind="play")
        job = await rig.ended()
        lines = await texts(rig)

    assert lines == ["from the worker's thread", "from another thread"]
    assert job.progress is not None
    assert job.progress.message == "half"


async def test_a_thread_that_goes_on_is_heard() -> None:
    """What it writes does not wait for its end."""
    go_on = threading.Event()

    def play(job: Context) -> None:
        job.log.info("waiting")
        go_on.wait(10)

    async with running(handlers=[handler(play, is_async=False)], patience=10) as rig:
        await rig.enqueue(kind="play")
        with trio.fail_after(10):
            while (page := await rig.store.log("a")) is None or not page.lines:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.01)
        go_on.set()
        await rig.ended()


async def test_many_threads_write_at_once() -> None:
    """Each line is there once, in the order in which its thread wrote it."""

    def play(job: Context) -> None:
        def say(name: str) -> None:
            for number in range(100):
                job.log.info(name, number=number)

        threads = [threading.Thread(target=say, args=(str(name),)) for name in range(5)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()

    async with running(handlers=[handler(play, is_async=False)], patience=20) as rig:
        await rig.enqueue(kind="play")
        await rig.ended()
        page = await log(rig)

    assert [line.n for line in page.lines] == list(range(1, 501))
    for name in map(str, range(5)):
        of_one = [
            msgspec.json.decode(line.fields or b"")["number"] for line in page.lines if line.text == name
        ]
        assert of_one == list(range(100))


async def test_what_is_written_after_the_end_is_dropped(autojump_clock) -> None:
    """By a thread that goes on, or by whoever kept the context; nothing is written late, and nothing fails."""
    kept: list[Context] = []
    store = FaultyStore()

    async def play(job: Context) -> None:
        kept.append(job)
        if job.id == "b":
            job.log.info("in time")

    async with running(store, handlers=[handler(play)]) as rig:
        for job_id in ("a", "b"):
            await rig.enqueue(job_id, kind="play")
            await rig.ended(job_id)
        for job in kept:
            job.log.info("late")
            job.progress(1)
        await trio.sleep(30)
        lines = [await texts(rig, job_id) for job_id in ("a", "b")]

    assert lines == [[], ["in time"]]
    assert rig.node.ledger.stale == 0
    assert not rig.logged("late write refused")


# --- a store that fails -----------------------------------------------------------------------------------------------


async def test_a_store_that_is_away_costs_no_job(autojump_clock) -> None:
    """What it wrote comes when the store is back; of very much the first and the last lines, the rest is counted."""
    store = FaultyStore()
    lines = 3 * LOG_LINES

    async def play(job: Context) -> None:
        store.broken = True
        for number in range(lines):
            job.log.info(f"line {number}")
            job.progress(number / lines)
        await trio.sleep(5)
        store.broken = False
        await trio.sleep(10)
        seen.append(await log(rig))

    seen: list[LogPage] = []
    async with running(store, handlers=[handler(play)], expected=["the store cannot write"]) as rig:
        await rig.enqueue(kind="play")
        job = await rig.ended()
        page = await log(rig)

    assert job.status is Status.DONE
    assert page.dropped == lines - LOG_LINES
    assert [page.lines[0].text, page.lines[-1].text] == ["line 0", f"line {lines - 1}"]
    assert len(page.lines) == LOG_LINES
    assert job.progress is not None
    assert job.progress.fraction == (lines - 1) / lines
    assert [one.lines for one in seen] == [page.lines]


async def test_memory_is_bounded_over_all_jobs(autojump_clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps its last line, and everything is counted."""
    monkeypatch.setattr(room, "MEMORY", 20_000)
    store = FaultyStore()

    async def play(job: Context) -> None:
        await trio.sleep(1)
        store.broken = True
        for number in range(100):
            job.log.info(f"line {number}")
        largest.append(rig.node.ledger.notes._size)
        await trio.sleep(10)
        store.broken = False

    largest: list[int] = []
    async with running(
        store, handlers=[handler(play)], workers=8, expected=["the store cannot write"]
    ) as rig:
        for number in range(8):
            await rig.enqueue(str(number), kind="play")
        for number in range(8):
            await rig.ended(str(number))
        pages = [await log(rig, str(number)) for number in range(8)]

    assert max(largest) <= 20_000 + 8 * 300
    assert [page.lines[-1].text for page in pages] == ["line 99"] * 8
    assert [len(page.lines) + page.dropped for page in pages] == [100] * 8
    assert any(page.lines[0].text == "line 0" for page in pages)
    assert rig.node.ledger.notes._size == 0


class Doubtful(FaultyStore):
    """A store that writes a batch with notes, and then says that it did not: the first time."""

    doubts = 1

    async def exchange(self, batch: Batch) -> Receipts:
        receipts = await super().exchange(batch)
        if batch.notes and self.doubts:
            self.doubts -= 1
            raise StoreUnavailable("the answer was lost")
        return receipts


async def test_a_line_whose_commit_was_not_answered_is_there_once(autojump_clock) -> None:
    async def play(job: Context) -> None:
        await trio.sleep(1)
        job.log.info("first")
        await trio.sleep(DELAY + 0.05)
        job.log.info("second")
        await trio.sleep(5)

    async with running(Doubtful(), handlers=[handler(play)], expected=["the store cannot write"]) as rig:
        await rig.enqueue(kind="play")
        await rig.ended()
        page = await log(rig)

    assert [line.text for line in page.lines] == ["first", "second"]
    assert page.dropped == 0


class Unwilling(FaultyStore):
    """A store that cannot write notes which say `bad`."""

    async def exchange(self, batch: Batch) -> Receipts:
        if any(line.text == "bad" for note in batch.notes for line in note.lines):
            raise ValueError("unwilling")
        return await super().exchange(batch)


async def test_a_note_that_breaks_a_batch_costs_itself_alone(autojump_clock) -> None:
    async def play(job: Context) -> None:
        job.log.info("bad" if job.id == "a" else "good")
        await trio.sleep(1)
        job.log.info("later")

    async with running(Unwilling(), handlers=[handler(play)], expected=[UNFORESEEN]) as rig:
        await rig.enqueue("a", kind="play")
        await rig.enqueue("b", kind="play")
        jobs = [await rig.ended("a"), await rig.ended("b")]
        pages = [await log(rig, "a"), await log(rig, "b")]

    assert [one.status for one in jobs] == [Status.DONE] * 2
    assert [[line.text for line in page.lines] for page in pages] == [["later"], ["good", "later"]]
    assert [page.dropped for page in pages] == [1, 0]


async def test_a_node_that_lost_its_job_writes_nothing_more(autojump_clock) -> None:
    """It learns so from the note, and stops the handler."""
    stopped: list[str] = []

    async def play(job: Context) -> None:
        if job.claim > 1:
            job.log.info("mine")
            return
        await rig.store._change(  # type: ignore[attr-defined] # the memory store's
            lambda: rig.store._writer.db.execute("update jobs set claim = 7")  # type: ignore[attr-defined]
        )
        try:
            while True:
                job.log.info("not mine any more")
                job.progress(0.5)
                await trio.sleep(0.05)
        finally:
            stopped.append(job.id)

    async with running(handlers=[handler(play)]) as rig:
        await rig.enqueue(kind="play")
        await trio.sleep(1)
        lines = await texts(rig)
        await rig.kill()

    assert stopped == ["a"]
    assert lines == []
    assert rig.node.ledger.notes._open == {}


# --- the room itself --------------------------------------------------------------------------------------------------


class Writer:
    """Remembers in how many seconds the ledger was to write."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.notes = Notes(VirtualClock(NOW), self.asked.append)


async def test_a_line_asks_for_a_batch_once(autojump_clock) -> None:
    writer, run = Writer(), Attempt(claimed())
    levels: list[Level] = ["info", "error"]
    for level in levels:
        writer.notes.line(run, level, "hello", None)
    (note,) = writer.notes.gathered()
    writer.notes.written([note])

    assert [round(seconds, 3) for seconds in writer.asked] == [DELAY]
    assert [line.level for line in note.lines] == ["info", "error"]
    assert list(writer.notes.gathered()) == []


async def test_what_is_not_written_is_gathered_again(autojump_clock) -> None:
    """With what has come meanwhile; the ledger is asked for a batch once more."""
    writer, run = Writer(), Attempt(claimed())
    writer.notes.line(run, "info", "first", None)
    writer.notes.gathered()
    writer.notes.line(run, "info", "second", None)
    writer.notes.again()
    (note,) = writer.notes.gathered()

    assert [line.text for line in note.lines] == ["first", "second"]
    assert len(writer.asked) == 2


async def test_a_progress_waits_for_its_second(autojump_clock) -> None:
    writer, run = Writer(), Attempt(claimed())
    writer.notes.progress(run, 0.1, "")
    writer.notes.written(writer.notes.gathered())
    await trio.sleep(0.3)
    writer.notes.progress(run, 0.2, "")
    early = writer.notes.gathered()
    assert run.notebook is not None
    run.over, run.notebook.closed = "lost", True
    (late,) = writer.notes.gathered()

    assert early == []
    assert [round(seconds, 3) for seconds in writer.asked] == [DELAY, APART - 0.3]
    assert late.progress is not None
    assert late.progress.fraction == 0.2


async def test_a_note_that_cannot_be_had_costs_itself_alone(
    autojump_clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, broken, sound = Writer(), Attempt(claimed("a")), Attempt(claimed("b"))
    for run in (broken, sound):
        writer.notes.line(run, "info", run.job.id, None)
    monkeypatch.setattr(Attempt, "number", property(lambda run: 1 // (run.job.id == "b")))
    with capture_logs() as told:
        notes = writer.notes.gathered()

    assert [note.id for note in notes] == ["b"]
    assert list(writer.notes._open) == [sound]
    assert [(line["event"], line["job"]) for line in told] == [(UNFORESEEN, "a")]


async def test_an_attempt_whose_claim_is_lost_is_dropped(autojump_clock) -> None:
    writer, run = Writer(), Attempt(claimed())
    writer.notes.line(run, "info", "hello", None)
    run.over = "lost"

    assert writer.notes.gathered() == []
    assert writer.notes._size == 0


async def test_a_job_that_has_ended_takes_no_memory(autojump_clock) -> None:
    store = FaultyStore()

    async def play(job: Context) -> None:
        job.log.info("hello")

    async with running(store, handlers=[handler(play)]) as rig:
        for number in range(20):
            await rig.enqueue(str(number), kind="play")
        for number in range(20):
            await rig.ended(str(number))
        await turns()
        assert rig.node.ledger.notes._open == {}
