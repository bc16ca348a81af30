"""What is SQLite's own: which index each statement walks, the file's schema, and that a commit is a commit."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import apsw
import pytest

from jobpipe.errors import StoreError
from jobpipe.job import JobError, NewJob, Options, Outcome, Status
from jobpipe.store.base import Add, Batch, Filter, Retention, Settlement, Start
from jobpipe.store.migrations import migrations
from jobpipe.store.sqlite import open_sqlite, reader
from jobpipe.store.sqlite.control import Control
from jobpipe.store.sqlite.database import open_database
from jobpipe.store.sqlite.writer import SLICE, SLICES, Writer
from tests.store.test_contract import wish

NOW = 1_700_000_000.0
TAKE = Retention(done_age=0, failed_age=0, jobs=0, size=0)
FREE = Retention(done_age=1e9, failed_age=1e9, jobs=0, size=0)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[apsw.Connection]:
    """A fresh database, with a node `n`."""
    with open_database(tmp_path / "jobs.db", "normal", readers=0) as opened:
        Control(opened.writer).join("n", NOW + 60)
        yield opened.writer


def job(job_id: str, **how: Any) -> NewJob:
    """A job to be stored."""
    usual: dict[str, Any] = {
        "kind": "echo",
        "queue": "default",
        "payload": b"1",
        "priority": 0,
        "max_retries": 3,
        "created_at": NOW,
        "run_at": NOW,
    }
    return NewJob(id=job_id, **(usual | how))


def plans(db: apsw.Connection, act: Callable[[], object]) -> dict[str, list[str]]:
    """The query plan of every statement that an act runs."""
    ran: dict[str, Any] = {}

    def trace(_cursor: apsw.Cursor, sql: str, bindings: Any) -> bool:
        ran.setdefault(sql, bindings)
        return True

    db.exec_trace = trace
    act()
    db.exec_trace = None
    explainable = {
        sql: values for sql, values in ran.items() if re.match(r"(select|insert|update|delete)\b", sql)
    }
    return {
        sql: [row[3] for row in db.execute(f"explain query plan {sql}", values)]
        for sql, values in explainable.items()
    }


def faults(found: dict[str, list[str]], allowed: str = "") -> list[str]:
    """The steps that read a table of jobs from end to end, or sort what an index should bring in order."""
    tables = r"(jobs|attempts|tags)"
    # A scan of a partial index reads just the rows that the query needs.
    bad = re.compile(rf"SCAN {tables}(?! USING (COVERING )?INDEX jobs_)|TEMP B-TREE")
    good = re.compile(allowed) if allowed else None
    return [
        f"{step} <- {sql}"
        for sql, steps in found.items()
        for step in steps
        if bad.search(step) and not (good and good.search(step))
    ]


def a_bit_of_everything(db: apsw.Connection) -> None:
    """Take every path of an exchange at least once."""
    writer = Writer(db)
    new = [
        job("a", options=Options(tags=("t",))),
        job("b", priority=2),
        job("later", run_at=NOW + 1),
        job("late", expires_at=NOW + 2),
        job("mail", queue="mail"),
    ]
    claimed = writer.exchange(
        Batch(node="n", now=NOW, lease_until=NOW + 60, adds=[Add(new)], claim=wish(2))
    ).claimed
    starts = [Start(one.seq, one.claim, 1, NOW) for one in claimed]
    ends = [
        settlement(one.seq, one.claim, outcome, status)
        for one, outcome, status in zip(
            claimed, (Outcome.DONE, Outcome.RETRY), (Status.DONE, Status.RETRYING), strict=True
        )
    ]
    writer.exchange(Batch(node="n", now=NOW, starts=starts))
    writer.exchange(
        Batch(node="n", now=NOW + 9, settlements=ends, adds=[Add(new), Add(new, atomic=True)], claim=wish(9))
    )
    writer.exchange(Batch(node="n", now=NOW + 9, settlements=ends))


def settlement(seq: int, claim: int, outcome: Outcome, status: Status) -> Settlement:
    """How an attempt ended."""
    return Settlement(
        seq=seq,
        id=str(seq),
        queue="default",
        claim=claim,
        outcome=outcome,
        status=status,
        attempt=1,
        number=1,
        run_at=NOW + 5,
        started_at=NOW,
        settled_at=NOW,
        error=JobError("E", "m"),
    )


def test_an_exchange_walks_indexes_that_hold_just_its_rows(db: apsw.Connection) -> None:
    """Whatever waits, is scheduled or has ended beside them costs nothing."""
    found = plans(db, lambda: a_bit_of_everything(db))

    assert faults(found) == []
    walked = " ".join(step for steps in found.values() for step in steps)
    assert {"jobs_ready", "jobs_later", "jobs_expiring"} <= set(re.findall(r"jobs_\w+", walked))


def steps(db: apsw.Connection, act: Callable[[], object]) -> int:
    """How many steps SQLite's machine takes for all statements of an act: so many for each row that is read."""
    found: list[int] = []
    db.trace_v2(
        apsw.SQLITE_TRACE_PROFILE, lambda event: found.append(event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"])
    )
    act()
    db.trace_v2(0, None)
    return sum(found)


def test_jobs_of_kinds_that_no_node_serves_are_not_read_by_a_claim(db: apsw.Connection) -> None:
    """A hundred thousand of the highest priority stand aside, and a claim takes as many steps as without them."""
    echo, writer = frozenset({"echo"}), Writer(db)
    Control(db).join("n", NOW + 60, echo)
    ask = Batch(node="n", now=NOW, claim=wish(64, echo))
    took = []
    for others in (0, 100_000):
        for start in range(0, others, 1000):
            new = [job(f"d{start + n}", kind="demo", priority=1000) for n in range(1000)]
            writer.exchange(Batch(node="n", now=NOW, adds=[Add(new)]))
        writer.exchange(Batch(node="n", now=NOW, adds=[Add([job(f"{others}-{n}") for n in range(200)])]))
        writer.exchange(ask)  # with it the writer learns what it remembers
        took.append(steps(db, lambda: writer.exchange(ask)))
    found = plans(db, lambda: writer.exchange(ask))

    assert took[1] <= 1.1 * took[0]
    assert faults(found) == []


def test_a_claim_that_meets_many_jobs_of_other_kinds_does_a_bounded_part_of_the_work(
    db: apsw.Connection,
) -> None:
    """What it put aside it does not read again, so the last claims cost as little as ever."""
    echo, writer = frozenset({"echo"}), Writer(db)
    new = [job(f"d{n}", kind="demo", priority=9) for n in range(20 * SLICE)]
    for start in range(0, len(new), 1000):
        writer.exchange(Batch(node="n", now=NOW, adds=[Add(new[start : start + 1000])]))
    writer.exchange(Batch(node="n", now=NOW, adds=[Add([job("a")])]))
    ask, claimed, each = Batch(node="n", now=NOW, claim=wish(8, echo)), [], []
    while not claimed:
        each.append(steps(db, lambda: claimed.extend(writer.exchange(ask).claimed)))

    assert len(each) == 20 // SLICES
    assert max(each) < 200 * SLICE * SLICES
    assert steps(db, lambda: writer.exchange(ask)) < 1_000


def test_a_claim_reads_its_index_in_order(db: apsw.Connection) -> None:
    """One queue or several: the first entries are the next jobs, and nothing is sorted."""
    writer = Writer(db)
    writer.exchange(Batch(node="n", now=NOW, adds=[Add([job("a")])]))
    one = plans(db, lambda: writer.exchange(Batch(node="n", now=NOW, claim=wish(5))))
    writer.exchange(Batch(node="n", now=NOW, adds=[Add([job("b"), job("c", queue="mail")])]))
    several = plans(db, lambda: writer.exchange(Batch(node="n", now=NOW, claim=wish(5))))

    for found in (one, several):
        steps = [step for sql, steps in found.items() if "priority desc" in sql for step in steps]
        assert any(
            "USING INDEX jobs_ready" in step or "USING COVERING INDEX jobs_ready" in step for step in steps
        )
        assert faults(found) == []


def test_control_walks_indexes(db: apsw.Connection) -> None:
    """Cancel, retry, delete and rescue find their rows by id, seq or the index of held jobs."""
    a_bit_of_everything(db)
    control = Control(db)

    def act() -> None:
        control.cancel(["a", "b", "later", "mail", "none"], NOW)
        control.retry(["a", "late"], NOW)
        control.delete(["later"])
        control.rescue("other", NOW + 1e6)

    found = plans(db, act)

    # The distinct nodes that hold jobs: a scan of the index of held ones, which are few.
    assert faults(found) == []


def test_a_prune_walks_the_index_of_ended_jobs(db: apsw.Connection) -> None:
    """The oldest end first, by status; never the jobs that wait."""
    a_bit_of_everything(db)
    control = Control(db)
    found = plans(db, lambda: (control.prune(NOW + 99, FREE), control.prune(NOW + 99, TAKE)))

    assert faults(found) == []
    assert any("jobs_ended" in step for steps in found.values() for step in steps)


def test_reads_walk_indexes(db: apsw.Connection) -> None:
    """One job, the queues, and lists by each status that is rare; a list looks at a bounded number of rows."""
    a_bit_of_everything(db)
    rare = [Filter(status=status) for status in Status if status not in (Status.QUEUED, Status.DONE)]

    def act() -> None:
        reader.one(db, "a")
        reader.queues(db)
        reader.unserved(db)
        reader.ready(db, frozenset({"echo"}))
        for where in (*rare, Filter(tag="t", kind="echo")):
            reader.listed(db, where, 10, None)

    found = plans(db, act)

    # Held jobs are few: they may be sorted. `looked` is the co-routine with the bounded look of a list.
    held = {sql: steps for sql, steps in found.items() if "held = 1" in sql}
    assert faults(held, "TEMP B-TREE") == []
    assert faults({sql: steps for sql, steps in found.items() if sql not in held}) == []


@pytest.mark.parametrize("where", [Filter(), Filter(status=Status.DONE), Filter(text="x")])
def test_a_list_of_what_is_not_rare_looks_at_a_bounded_number_of_rows(
    db: apsw.Connection, where: Filter
) -> None:
    """The rows come from the newest down, no more than `LOOK`, and no further than the page needs."""
    a_bit_of_everything(db)
    found = plans(db, lambda: reader.listed(db, where, 3, None))
    (steps,) = (steps for sql, steps in found.items() if "as looked" in sql)

    assert any("CO-ROUTINE" in step for step in steps)
    assert not any("TEMP B-TREE" in step for step in steps)


def test_a_list_goes_on_behind_what_it_has_looked_at(
    db: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page may be short, or empty, although there is more: its cursor leads on, to the end."""
    Writer(db).exchange(
        Batch(
            node="n", now=NOW, adds=[Add([job(f"j{n}", kind="odd" if n == 0 else "echo") for n in range(9)])]
        )
    )
    monkeypatch.setattr(reader, "LOOK", 4)
    pages, before = [], None
    while True:
        page = reader.listed(db, Filter(kind="odd"), 10, before)
        pages.append([one.id for one in page.jobs])
        before = page.next_before
        if before is None:
            break

    assert pages == [[], [], ["j0"]]


def test_migrations_are_numbered_without_a_gap() -> None:
    """0001, 0002 and so on."""
    numbers = [number for number, _ in migrations("jobpipe.store.sqlite")]

    assert numbers == list(range(1, len(numbers) + 1))


def test_an_opened_file_says_what_it_is(db: apsw.Connection) -> None:
    """Its application id, its schema's version, and that commits go through the WAL."""
    marks = (db.pragma("application_id"), db.pragma("user_version"), db.pragma("journal_mode"))

    assert marks == (0x6A6F6270, migrations("jobpipe.store.sqlite")[-1][0], "wal")


@pytest.mark.parametrize(("sync", "level"), [("full", 2), ("normal", 1)])
def test_sync_decides_what_a_commit_waits_for(
    tmp_path: Path, sync: Literal["full", "normal"], level: int
) -> None:
    """`full` syncs each commit to the disk."""
    with open_database(tmp_path / "jobs.db", sync, readers=0) as opened:
        found = opened.writer.pragma("synchronous")

    assert found == level


def test_a_failed_exchange_leaves_nothing(db: apsw.Connection) -> None:
    """Neither the job, nor its queue, nor a count."""
    writer = Writer(db)
    broken = job("b", priority=None)
    with pytest.raises(apsw.ConstraintError):
        writer.exchange(Batch(node="n", now=NOW, adds=[Add([job("a", queue="new")]), Add([broken])]))

    rows = [db.execute(f"select count(*) from {table}").get for table in ("jobs", "queues", "counts")]
    assert rows == [0, 0, 0]
    writer.exchange(Batch(node="n", now=NOW, adds=[Add([job("a", queue="new")])]))
    assert [state.name for state in reader.queues(db)] == ["new"]


def test_the_schema_refuses_what_no_job_can_be(db: apsw.Connection) -> None:
    """Whatever else must hold in each row is looked for in copies of the file, by tests/faults/invariants.py."""
    Writer(db).exchange(Batch(node="n", now=NOW, adds=[Add([job("a")])]))
    wrong: Sequence[str] = [
        "status = 'lost'",
        "attempt = -1",
        "max_retries = -1",
        "priority = null",
    ]
    for change in wrong:
        with pytest.raises(apsw.ConstraintError):
            db.execute(f"update jobs set {change}")


async def test_a_store_that_is_open_is_refused_to_a_second(tmp_path: Path) -> None:
    """By name of the process that has it, and free again once that has closed it."""
    path = tmp_path / "jobs.db"
    async with open_sqlite(path, sync="normal"):
        with pytest.raises(StoreError, match=r"in use by another jobpipe \(process \d+\)"):
            async with open_sqlite(path, sync="normal"):
                pytest.fail("it was opened twice")
    async with open_sqlite(path, sync="normal") as store:
        await store.ping()


@pytest.mark.parametrize("index", ["jobs_ready", "jobs_later", "jobs_expiring", "jobs_held", "jobs_ended"])
def test_a_missing_index_is_noticed(db: apsw.Connection, index: str) -> None:
    """The test of these tests: without an index, some statement reads the table from end to end."""
    db.execute(f"drop index {index}")

    def act() -> None:
        a_bit_of_everything(db)
        Control(db).rescue("other", NOW + 1e6)
        Control(db).prune(NOW + 99, TAKE)

    assert faults(plans(db, act)) != []


@pytest.mark.parametrize(
    "status", [Status.SCHEDULED, Status.RETRYING, Status.FAILED, Status.CANCELLED, Status.EXPIRED]
)
def test_a_list_of_a_rare_status_reads_only_its_own_rows(db: apsw.Connection, status: Status) -> None:
    """Few failed jobs among millions are found at once."""
    found = plans(db, lambda: reader.listed(db, Filter(status=status), 10, None))
    walked = " ".join(step for steps in found.values() for step in steps)

    assert f"jobs_{status.value}" in walked
