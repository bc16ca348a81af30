"""What is SQLite's own: which index each statement walks, the file's schema, and that a commit is a commit."""

import functools
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import apsw
import pytest
from msgspec.structs import replace

from jobpipe.errors import StoreError
from jobpipe.job import JobError, NewJob, OnFailure, Options, Outcome, Progress, Status
from jobpipe.schedules import Declaration, Spec, decided
from jobpipe.store import paging
from jobpipe.store.base import (
    EVER,
    LOG_LINES,
    OTHERS,
    Add,
    AuditFilter,
    Batch,
    Claimed,
    ClaimRequest,
    EndPlace,
    Filter,
    LogLine,
    NewGroup,
    Note,
    Place,
    QueueSettings,
    Retention,
    Settlement,
    Share,
    Start,
)
from jobpipe.store.migrations import migrations
from jobpipe.store.sqlite import lists, open_sqlite, reader
from jobpipe.store.sqlite.claiming import SLICE, SLICES
from jobpipe.store.sqlite.database import open_database
from jobpipe.store.sqlite.known import KEPT
from jobpipe.store.sqlite.nodes import Nodes
from jobpipe.store.sqlite.opening import check_path
from jobpipe.store.sqlite.tables import carry_out, looked
from jobpipe.store.sqlite.writer import Writer
from jobpipe.store.verbs import (
    audit,
    declarations,
    dependencies,
    errors,
    followers,
    groups,
    jobs,
    nodes,
    queues,
    retention,
    schedules,
    summaries,
)
from tests.store.test_contract import KEEP_ALL, wish
from tests.store.test_merging import debounced, throttled, unique

NOW = 1_700_000_000.0
TAKE = Retention(done_age=0, failed_age=0, jobs=0, size=0)
FREE = Retention(done_age=1e9, failed_age=1e9, jobs=0, size=0)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[apsw.Connection]:
    """A fresh database, with a node `n`."""
    with open_database(tmp_path / "jobs.db", "normal") as opened:
        Nodes(opened.writer).join("n", NOW + 60)
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
        sql: values for sql, values in ran.items() if re.match(r"\s*(select|insert|update|delete)\b", sql)
    }
    return {
        sql: [row[3] for row in db.execute(f"explain query plan {sql}", values)]
        for sql, values in explainable.items()
    }


def faults(found: dict[str, list[str]], allowed: str = "") -> list[str]:
    """The steps that read a table of jobs from end to end, or sort what an index should bring in order."""
    tables = r"(jobs|attempts|tags|progress|logs)"
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
        Batch(node="n", now=NOW, lease_until=NOW + 60, adds=[Add(new)], claims=wish(2))
    ).claimed
    starts = [Start(one.seq, one.claim, 1, NOW) for one in claimed]
    ends = [
        settlement(one.seq, one.claim, outcome, status)
        for one, outcome, status in zip(
            claimed, (Outcome.DONE, Outcome.RETRY), (Status.DONE, Status.RETRYING), strict=True
        )
    ]
    writer.exchange(Batch(node="n", now=NOW, starts=starts, notes=[said(one, LOG_LINES) for one in claimed]))
    writer.exchange(Batch(node="n", now=NOW, notes=[said(one, LOG_LINES + 1) for one in claimed]))
    writer.exchange(
        Batch(node="n", now=NOW + 9, settlements=ends, adds=[Add(new), Add(new, atomic=True)], claims=wish(9))
    )
    writer.exchange(Batch(node="n", now=NOW + 9, settlements=ends))


def said(one: Claimed, number: int) -> Note:
    """A progress, and a line of this number."""
    lines = [LogLine(number, NOW, "info", "hello")]
    progress = Progress(0.5, "", NOW)
    return Note(seq=one.seq, id=one.id, claim=one.claim, attempt=1, progress=progress, lines=lines)


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


def statements(db: apsw.Connection, act: Callable[[], object]) -> list[str]:
    """Every statement that an act runs, in their order."""
    ran: list[str] = []

    def trace(_cursor: apsw.Cursor, sql: str, _bindings: Any) -> bool:
        ran.append(sql)
        return True

    db.exec_trace = trace
    act()
    db.exec_trace = None
    return ran


def dependent(job_id: str, *depends_on: str) -> NewJob:
    return job(job_id, options=Options(depends_on=depends_on))


@pytest.mark.parametrize("others", [0, 1, KEPT])
def test_a_batch_that_ends_no_job_for_which_others_wait_runs_not_one_statement_more(
    db: apsw.Connection, others: int
) -> None:
    """Once the writer knows the file; however many jobs others wait for, up to as many as it remembers."""
    writer = Writer(db)
    waited_for = [job(f"w{number}", run_at=NOW + 9) for number in range(others)]
    writer.exchange(Batch(node="n", now=NOW, adds=[Add([job("a"), job("b"), job("c"), *waited_for])]))
    claimed = writer.exchange(Batch(node="n", now=NOW, claims=wish(3))).claimed
    writer.exchange(settling(claimed[:1]))  # with it the writer learns what it remembers
    alone = statements(db, lambda: writer.exchange(settling(claimed[1:2])))
    if others:
        carry_out(
            db,
            lambda tx: dependencies.add(tx, [dependent("x", *(one.id for one in waited_for))], atomic=True),
        )
        writer.forget()
    writer.exchange(settling(claimed[:1]))  # late
    beside = statements(db, lambda: writer.exchange(settling(claimed[2:])))

    assert beside == alone


def test_of_more_jobs_than_the_writer_remembers_the_file_is_asked(db: apsw.Connection) -> None:
    """With one statement, and what follows is done."""
    writer = Writer(db)
    waited_for = [job(f"w{number}") for number in range(KEPT + 1)]
    writer.exchange(Batch(node="n", now=NOW, adds=[Add([job("a", priority=1), *waited_for])]))
    carry_out(
        db, lambda tx: dependencies.add(tx, [dependent("x", *(one.id for one in waited_for))], atomic=True)
    )
    writer.forget()
    plain, *claimed = writer.exchange(Batch(node="n", now=NOW, claims=wish(KEPT + 2))).claimed
    asked = statements(db, lambda: writer.exchange(settling([plain])))
    last = [writer.exchange(settling(part)) for part in (claimed[:KEPT], claimed[KEPT:])][-1]

    assert sum("from waits" in sql for sql in asked) == 2
    assert [(one.id, one.status) for one in last.changes] == [("x", Status.QUEUED)]


def settling(claimed: Sequence[Claimed]) -> Batch:
    ends = [settlement(one.seq, one.claim, Outcome.DONE, Status.DONE) for one in claimed]
    return Batch(node="n", now=NOW, settlements=ends)


def test_what_follows_the_end_of_a_job_walks_indexes(db: apsw.Connection) -> None:
    """So does what is asked of jobs that wait."""
    writer = Writer(db)
    writer.exchange(Batch(node="n", now=NOW, adds=[Add([job("a"), job("b"), job("c")])]))
    new = [dependent("x", "a", "b"), dependent("y", "x"), dependent("z", "c")]

    def act() -> None:
        carry_out(db, lambda tx: dependencies.add(tx, new, atomic=True))
        looked(db, lambda tx: dependencies.still_open(tx, "x", 10))
        writer.forget()
        claimed = writer.exchange(Batch(node="n", now=NOW, claims=wish(3))).claimed
        for one, outcome, status in zip(
            claimed,
            (Outcome.DONE, Outcome.FAIL, Outcome.DONE),
            (Status.DONE, Status.FAILED, Status.DONE),
            strict=True,
        ):
            end = settlement(one.seq, one.claim, outcome, status)
            writer.exchange(Batch(node="n", now=NOW, settlements=[end]))
        carry_out(db, lambda tx: followers.follow(tx, NOW))
        carry_out(db, lambda tx: groups.retry(tx, ["b", "x"], NOW))
        carry_out(db, lambda tx: groups.retry(tx, ["x"], NOW))

    found = plans(db, act)

    assert faults(found) == []
    scans = [sql for sql, how in found.items() if re.search(r"SCAN (waits|w|follow_ups)\b", " ".join(how))]
    assert all("limit" in sql for sql in scans), scans
    assert carry_out(db, lambda tx: tx.lock(["x"]))["x"].job.status is Status.BLOCKED


def test_what_follows_the_end_of_a_group_walks_indexes(db: apsw.Connection) -> None:
    """So does what is asked of groups."""
    writer = Writer(db)

    def group(name: str, on_failure: OnFailure) -> NewGroup:
        jobs = [job(f"{name}{number}") for number in range(3)]
        in_group = [replace(one, options=Options(group=name)) for one in jobs]
        return NewGroup(id=name, on_failure=on_failure, jobs=in_group, then=job(f"{name}.then"))

    def act() -> None:
        carry_out(db, lambda tx: groups.add(tx, group("g", "go_on"), NOW))
        carry_out(db, lambda tx: groups.add(tx, group("h", "cancel"), NOW))
        looked(db, lambda tx: groups.state(tx, "g"))
        looked(db, lambda tx: groups.still_open(tx, "g.then", 10))
        reader.listed(db, Filter(group="g"), 10, None)
        writer.forget()
        claimed = writer.exchange(Batch(node="n", now=NOW, claims=wish(4))).claimed
        for one in claimed:
            end = settlement(one.seq, one.claim, Outcome.FAIL, Status.FAILED)
            writer.exchange(Batch(node="n", now=NOW, settlements=[end]))
        carry_out(db, lambda tx: groups.retry(tx, ["g0"], NOW))
        db.execute("insert into group_notes values (1, 1)")
        carry_out(db, lambda tx: followers.follow(tx, NOW))
        carry_out(db, lambda tx: groups.sweep(tx, NOW, Retention(1e9, 1e9, 1, 1)))

    found = plans(db, act)

    assert faults(found, "FOR GROUP BY") == []  # of the members of one group, or of a few
    tables = r"SCAN (groups|g|members|m|group_notes)\b(?! USING)"
    scans = [sql for sql, how in found.items() if re.search(tables, " ".join(how))]
    assert all("limit" in sql for sql in scans), scans
    assert looked(db, lambda tx: groups.state(tx, "h")).counts == {"failed": 1, "cancelled": 2}  # type: ignore[union-attr] # it is there


def steps(db: apsw.Connection, act: Callable[[], object]) -> int:
    """How many steps SQLite's machine takes for all statements of an act: so many for each row that is read."""
    found: list[int] = []
    db.trace_v2(
        apsw.SQLITE_TRACE_PROFILE,
        lambda event: found.append(event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]),
    )
    act()
    db.trace_v2(0, None)
    return sum(found)


def test_jobs_of_kinds_that_no_node_serves_are_not_read_by_a_claim(db: apsw.Connection) -> None:
    """A hundred thousand of the highest priority stand aside, and a claim takes as many steps as without them."""
    echo, writer = frozenset({"echo"}), Writer(db)
    Nodes(db).join("n", NOW + 60, echo)
    ask = Batch(node="n", now=NOW, claims=wish(64, echo))
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
    ask, claimed, each = Batch(node="n", now=NOW, claims=wish(8, echo)), list[Claimed](), list[int]()
    while not claimed:
        each.append(steps(db, lambda: claimed.extend(writer.exchange(ask).claimed)))

    assert len(each) == 20 // SLICES
    assert max(each) < 200 * SLICE * SLICES
    assert steps(db, lambda: writer.exchange(ask)) < 1_000


@pytest.mark.parametrize("paused", ["no", "few", "many"])
def test_a_claim_reads_its_index_in_order(
    db: apsw.Connection, monkeypatch: pytest.MonkeyPatch, paused: str
) -> None:
    """The first entries are the next jobs, and nothing is sorted; also where it goes round paused queues."""
    monkeypatch.setattr("jobpipe.store.sqlite.claiming.PASSED", 0 if paused == "many" else 9)
    writer = Writer(db)
    jobs = [job(f"j{n}", queue=queue) for n, queue in enumerate(["a", "a", "a", "b", "c"])]
    writer.exchange(Batch(node="n", now=NOW, adds=[Add(jobs)]))
    if paused != "no":
        carry_out(db, lambda tx: queues.pause(tx, "a"))
        writer.forget()
    found = plans(db, lambda: writer.exchange(Batch(node="n", now=NOW, claims=wish(2))))

    steps = [step for sql, steps in found.items() if "priority desc" in sql for step in steps]
    assert any("INDEX jobs_ready" in step for step in steps)
    assert any("INDEX jobs_ready_by_queue" in step for step in steps) == (paused == "many")
    assert faults(found) == []


def steps_of(db: apsw.Connection, act: Callable[[], object]) -> int:
    """How many steps SQLite's machine takes for an act: what it costs, whatever else this computer does."""
    steps = 0

    def count(event: dict[str, Any]) -> None:
        nonlocal steps
        steps += event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]

    db.trace_v2(apsw.SQLITE_TRACE_PROFILE, count)
    act()
    db.trace_v2(0, None)
    return steps


def many_queues(db: apsw.Connection, count: int, status: str) -> None:
    """So many queues with a job each."""
    db.execute(
        "with recursive n (i) as (select 1 union all select i + 1 from n where i < ?1) "
        "insert or ignore into jobs "
        "(id, kind, queue, status, priority, run_at, max_retries, created_at, finished_at, payload) "
        "select 'many' || i, 'echo', 'q' || i, ?2, 0, ?3, 3, ?3, iif(?2 = 'done', ?3, null), x'31' from n",
        (count, status, NOW),
    )
    db.execute("delete from counts")
    db.execute("delete from totals")
    db.execute("insert into counts select queue, status, count(*), 0 from jobs group by queue, status")
    db.execute("insert into totals select state, sum(jobs), 0 from counts group by state")


@pytest.mark.parametrize("status", ["done", "queued"])
@pytest.mark.parametrize("paused", [0, 100, 3000])
def test_an_exchange_costs_the_same_among_fifty_thousand_queues(
    db: apsw.Connection, status: str, paused: int
) -> None:
    """Whether they have ended jobs or ready ones, also where jobs of a paused queue are in the way."""
    held = [job(f"p{n}", queue="held", priority=9) for n in range(paused)]
    Writer(db).exchange(Batch(node="n", now=NOW, adds=[Add(held)]))
    if paused:
        carry_out(db, lambda tx: queues.pause(tx, "held"))
    costs = []
    for count in (2000, 50_000):
        many_queues(db, count, status)
        writer = Writer(db)
        ready = [job(f"{count}-{n}", queue="mail", priority=5) for n in range(20)]

        def act(writer: Writer = writer, ready: Sequence[NewJob] = ready) -> None:
            writer.exchange(Batch(node="n", now=NOW, lease_until=NOW + 60, adds=[Add(ready)]))
            for _ in range(3):
                writer.exchange(Batch(node="n", now=NOW, claims=wish(10)))

        costs.append(steps_of(db, act))

    assert costs[1] <= 1.2 * costs[0]


def test_an_add_to_a_paused_queue_costs_the_same_however_many_jobs_wait_there(db: apsw.Connection) -> None:
    """A node that is hungry claims with each batch; that nothing is ready is known."""
    carry_out(db, lambda tx: queues.pause(tx, "default"))
    writer, numbers = Writer(db), itertools.count()

    def add(count: int) -> None:
        for _ in range(count):
            new = [job(f"j{next(numbers)}")]
            writer.exchange(Batch(node="n", now=NOW, lease_until=NOW + 60, adds=[Add(new)], claims=wish(4)))

    add(5)  # with what the first claim asks for
    few = steps_of(db, functools.partial(add, 5))
    add(1000)
    many = steps_of(db, functools.partial(add, 5))

    assert many <= 1.2 * few


def test_an_add_costs_not_one_statement_more_while_no_queue_is_closed(db: apsw.Connection) -> None:
    """Once the writer knows the file; nor where others are closed."""
    writer, numbers = Writer(db), itertools.count()

    def added() -> list[str]:
        new = [job(f"j{next(numbers)}", queue="default")]
        return statements(db, lambda: writer.exchange(Batch(node="n", now=NOW, adds=[Add(new)])))

    added()
    without = added()
    carry_out(db, lambda tx: queues.put(tx, "mail", QueueSettings(closed=True)))
    writer.forget()
    added()

    assert not any("queues" in sql for sql in without)
    assert added() == without


def of_queues(kinds: frozenset[str], **jobs: int) -> Sequence[ClaimRequest]:
    """A claim of queues with so many jobs of each."""
    shares = [Share(OTHERS if queue == "others" else queue, share) for queue, share in jobs.items()]
    return [ClaimRequest(limit=sum(jobs.values()), kinds=kinds, queues=shares)]


@pytest.mark.parametrize("others", [0, 4])
@pytest.mark.parametrize("aside", [False, True])
def test_a_claim_that_names_queues_reads_about_what_it_takes(
    db: apsw.Connection, monkeypatch: pytest.MonkeyPatch, others: int, aside: bool
) -> None:
    """Among fifty thousand other queues, also where jobs of its own kinds stand aside; and nothing is sorted."""
    monkeypatch.setattr("jobpipe.store.sqlite.claiming.PASSED", 99)
    echo, both = frozenset({"echo"}), frozenset({"echo", "demo"})
    writer, ask = Writer(db), Batch(node="n", now=NOW, claims=of_queues(both, b=3, a=9, others=others))
    if aside:
        Nodes(db).join("other", NOW + 60, echo)
        writer.forget()
    costs, taken, found = list[int](), list[str](), dict[str, list[str]]()
    for count in (2000, 50_000):
        many_queues(db, count, "queued")
        ready = [job(f"{count}{queue}{n}", queue=queue) for queue in ("a", "b") for n in range(200)]
        ready += [job(f"{count}d{n}", kind="demo", queue="a") for n in range(20)]
        writer.exchange(Batch(node="n", now=NOW, adds=[Add(ready)]))
        costs.append(steps_of(db, lambda: taken.extend(one.queue for one in writer.exchange(ask).claimed)))
        found |= plans(db, lambda: writer.exchange(ask))
    claims = {sql: steps for sql, steps in found.items() if "priority desc" in sql}

    assert Counter(queue if queue in {"a", "b"} else "others" for queue in taken) == Counter(
        {"a": 18, "b": 6, "others": 2 * others}
    )
    assert costs[1] <= 1.2 * costs[0]
    assert faults(claims) == []


def test_a_health_check_costs_the_same_among_fifty_thousand_queues(db: apsw.Connection) -> None:
    """So do a page of queues, and one queue."""
    costs = []
    for count in (2000, 50_000):
        many_queues(db, count, "queued")
        acts: Sequence[Callable[[], object]] = (
            lambda: reader.overview(db, frozenset({"echo"})),
            lambda: reader.overview(db, frozenset({"echo"}), frozenset({"q7", "none"})),
            lambda: reader.queues(db, 100, "q1"),
            lambda: reader.queue(db, "q77"),
        )
        costs.append([steps_of(db, act) for act in acts])

    assert all(after <= 1.2 * before + 100 for before, after in zip(*costs, strict=True))


def test_keys_are_found_by_index(db: apsw.Connection) -> None:
    """Whatever is done with those: jobs are stored, replaced, retried, deleted and pruned."""
    new = [unique("a"), unique("b", on_conflict="replace"), throttled("c", NOW), debounced("d", NOW)]

    def act() -> None:
        carry_out(db, lambda tx: dependencies.add(tx, new, atomic=True))
        carry_out(db, lambda tx: dependencies.add(tx, [debounced("e", NOW + 1)], atomic=True))
        carry_out(db, lambda tx: jobs.cancel(tx, ["a"], NOW))
        carry_out(db, lambda tx: groups.retry(tx, ["a"], NOW))
        carry_out(db, lambda tx: jobs.delete(tx, ["a", "c"], NOW))
        carry_out(db, lambda tx: retention.prune(tx, NOW + 1000, KEEP_ALL))

    found = plans(db, act)

    # The keys of one request are sorted as they come.
    assert faults({sql: how for sql, how in found.items() if "insert into uniques" not in sql}) == []
    scans = [sql for sql, how in found.items() if re.search(r"SCAN uniques\b(?! USING)", " ".join(how))]
    assert scans == []
    assert sum("uniques" in sql for sql in found) >= 8


def test_schedules_are_found_by_index(db: apsw.Connection) -> None:
    """Those that are due, and those that code declares: however many others there are."""
    minutely, new = Spec(every=60), job("")

    def act() -> None:
        carry_out(db, lambda tx: schedules.put(tx, "put", minutely, new, NOW))
        declared = Declaration(name="declared", spec=minutely, job=new)
        for own in ([declared], [declared], []):
            looked(db, declarations.any_declared)
            carry_out(db, lambda tx, own=own: declarations.declare(tx, own, NOW, NOW))  # type: ignore[misc]
        found = looked(db, lambda tx: schedules.due(tx, NOW + 60, 10, None))
        firings = [decided(one, NOW + 60) for one in found.schedules]
        assert len(firings) == 2
        carry_out(db, lambda tx: schedules.fire(tx, firings, NOW + 60))

    found = {sql: steps for sql, steps in plans(db, act).items() if re.search(r"\bschedules\b", sql)}

    scans = [sql for sql, steps in found.items() if "SCAN schedules" in " ".join(steps)]
    assert scans == []
    assert len(found) >= 6


def test_control_walks_indexes(db: apsw.Connection) -> None:
    """Cancel, retry, delete and rescue find their rows by id, seq or the index of held jobs."""
    a_bit_of_everything(db)

    def act() -> None:
        carry_out(db, lambda tx: jobs.cancel(tx, ["a", "b", "later", "mail", "none"], NOW))
        carry_out(db, lambda tx: groups.retry(tx, ["a", "late"], NOW))
        carry_out(db, lambda tx: jobs.delete(tx, ["later"], NOW))
        carry_out(db, lambda tx: nodes.rescue(tx, "other", NOW + 1e6))

    found = plans(db, act)

    # The distinct nodes that hold jobs: a scan of the index of held ones, which are few.
    assert faults(found) == []


def test_a_prune_walks_the_index_of_ended_jobs(db: apsw.Connection) -> None:
    """The oldest end first, by status; never the jobs that wait."""
    a_bit_of_everything(db)

    def act() -> None:
        for kept in (FREE, TAKE):
            carry_out(db, lambda tx, kept=kept: retention.prune(tx, NOW + 99, kept))  # type: ignore[misc]

    found = plans(db, act)

    assert faults(found) == []
    assert any("jobs_ended" in step for steps in found.values() for step in steps)


@pytest.mark.parametrize("given", [(), ("who",), ("act",), ("what",), ("name", "what"), ("who", "act")])
def test_the_audit_is_read_by_an_index_in_its_order(db: apsw.Connection, given: tuple[str, ...]) -> None:
    """That of the first filter, within the times; and so is what is deleted of it."""
    where = AuditFilter(**dict.fromkeys(given, "x"), after=NOW, before=NOW + 9)
    found = plans(db, lambda: carry_out(db, lambda tx: audit.listed(tx, where, 10, None)))
    found |= plans(db, lambda: carry_out(db, lambda tx: audit.forget(tx, NOW)))
    steps = [step for steps in found.values() for step in steps if "audit" in step]
    index = f"INDEX audit_{given[0] if given else 'at'} ("

    assert faults(found) == []
    assert index in steps[0]
    assert not any(step.startswith("SCAN audit") for step in steps)


EACH_LIST = [
    {"status": status, **also}
    for status in (None, *Status)
    for also in (
        {},
        {"queue": "mail"},
        {"kind": "echo"},
        {"tag": "t"},
        {"created_before": NOW, "created_after": NOW - 5},
    )
]
SEVERAL: list[tuple[dict[str, Any], str, int]] = [
    ({"id": ("a", "b")}, "(id=?)", 1),
    ({"fingerprint": ("1-x", "1-y"), "queue": "mail"}, "jobs_by_fingerprint (fingerprint=? AND ", 2),
    ({"tag": ("t", "u"), "queue": "mail"}, "PRIMARY KEY (tag=? AND ", 2),
    ({"group": ("g", "h"), "queue": "mail"}, "PRIMARY KEY (grp=? AND ", 2),
    ({"group": "g", "key": "k"}, "PRIMARY KEY (grp=? AND ", 1),
    ({"queue": ("mail", "news"), "kind": "echo"}, "jobs_by_queue (queue=? AND ", 2),
    (
        {"queue": ("a", "b"), "status": (Status.FAILED, Status.EXPIRED)},
        "jobs_unusual_by_queue (queue=? AND ",
        4,
    ),
    ({"queue": "mail", "status": (Status.DONE, Status.EXPIRED)}, "jobs_by_queue (queue=? AND ", 1),
    ({"kind": ("echo", "demo"), "error_type": "E"}, "jobs_by_kind (kind=? AND ", 2),
    ({"kind": "e*", "status": (Status.FAILED, Status.EXPIRED)}, "jobs_unusual_by_status (status=? AND ", 2),
    ({"key": "k", "node": ("n", "m"), "ended_after": NOW}, "jobs_by_time (", 1),
]


@pytest.mark.parametrize("where", EACH_LIST, ids=str)
def test_a_list_walks_the_index_of_its_filters(db: apsw.Connection, where: dict[str, Any]) -> None:
    """In its order, from the first entry that may be shown; nothing is sorted. Not few have a usual status."""
    db.execute("insert or replace into totals values ('queued', 2000, 0), ('done', 2000, 0)")
    found = plans(db, lambda: reader.listed(db, Filter(**where), 10, Place(NOW, 5)))
    (steps,) = (steps for sql, steps in found.items() if "as looked" in sql)
    first = next((name for name in ("queue", "kind") if name in where), None)
    usual = where["status"] in (None, *lists.USUAL)
    if first is None:
        index = "jobs_by_time (" if usual else "jobs_unusual_by_status (status=?"
    else:
        index = f"jobs_by_{first} ({first}=?" if usual else f"jobs_unusual_by_{first} ({first}=? AND status=?"
    if "tag" in where:
        index = "PRIMARY KEY (tag=?"

    assert faults(found) == []
    assert any(index in step and "created_at" in step.partition(index)[2] for step in steps)


@pytest.mark.parametrize(("where", "index", "ranges"), SEVERAL, ids=str)
def test_a_list_walks_an_index_for_each_of_several_values(
    db: apsw.Connection, where: dict[str, Any], index: str, ranges: int
) -> None:
    db.execute("insert or replace into totals values ('queued', 2000, 0), ('done', 2000, 0)")
    found = plans(db, lambda: reader.listed(db, Filter(**where), 10, Place(NOW, 5)))
    (steps,) = (steps for sql, steps in found.items() if "as looked" in sql)

    assert not any(step.startswith("SCAN jobs") for step in steps)
    assert sum(index in step for step in steps) == ranges


def test_reads_walk_indexes(db: apsw.Connection) -> None:
    """One job, the queues, and what a health check asks."""
    a_bit_of_everything(db)

    def act() -> None:
        reader.one(db, "a")
        reader.queues(db, 10, "")
        reader.queue(db, "default")
        reader.overview(db, frozenset({"echo"}))
        reader.overview(db, frozenset({"echo"}), frozenset({"mail"}))
        reader.unserved(db)
        reader.unserved_queues(db, frozenset({"mail"}))
        looked(db, lambda tx: summaries.of_jobs(tx, ["a", "b"]))
        looked(db, lambda tx: summaries.ends(tx, Status.DONE, EndPlace(0.0, 0), 10, ()))

    found = plans(db, act)

    # Held jobs are few: they may be sorted.
    held = {sql: steps for sql, steps in found.items() if "held = 1" in sql}
    assert faults(held, "TEMP B-TREE") == []
    assert faults({sql: steps for sql, steps in found.items() if sql not in held}) == []


NEWER = 200_000
"""How many jobs are newer than those that a list shows."""


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[apsw.Connection]:
    """Very many jobs; below them, the oldest, fifty of a rare queue, a rare kind and each status."""
    with open_database(tmp_path_factory.mktemp("crowded") / "jobs.db", "normal") as opened:
        db = opened.writer
        rows = (
            "with recursive n (i) as (select 1 union all select i + 1 from n where i < ?) insert into jobs "
            "(id, kind, queue, status, priority, run_at, max_retries, created_at, finished_at, payload) "
        )
        for status in Status:
            for kind, queue in (("rare", "mail"), ("echo", "rare"), ("echo", "mail")):
                db.execute(
                    rows + "select ?2 || ?3 || ?4 || i, ?3, ?4, ?2, 0, ?5, 3, ?5 + i, "
                    "iif(?2 in ('done', 'failed', 'cancelled', 'expired'), ?5, null), x'31' from n",
                    (50, status.value, kind, queue, NOW),
                )
        db.execute(
            rows + "select 'm' || i, 'echo', 'mail', iif(i % 2, 'done', 'queued'), 0, ?2, 3, "
            "?2 + 1000 + i, iif(i % 2, ?2, null), x'31' from n",
            (NEWER, NOW),
        )
        db.execute("insert into counts select queue, status, count(*), 0 from jobs group by queue, status")
        db.execute("insert or replace into totals select status, count(*), 0 from jobs group by status")
        yield db


LISTS: Sequence[dict[str, Any]] = [
    {},
    {"queue": "rare"},
    {"kind": "rare"},
    {"queue": "mail"},
    {"created_before": NOW + 900},
    *({"status": status} for status in Status),
    *(
        {"status": status, name: "rare"}
        for status in Status
        for name in ("queue", "kind")
        if status not in lists.USUAL
    ),
    *({"status": status, "created_before": NOW + 900} for status in Status if status not in lists.USUAL),
]


@pytest.mark.parametrize("where", LISTS, ids=str)
def test_a_list_among_very_many_jobs_reads_what_it_shows(
    crowded: apsw.Connection, where: dict[str, Any]
) -> None:
    """Though what it shows is the oldest of all."""
    pages: list[Any] = []
    steps = steps_of(crowded, lambda: pages.append(reader.listed(crowded, Filter(**where), 50, None)))

    assert len(pages[0].jobs) == 50
    assert steps < 100 * 50


USUAL_LISTS: Sequence[dict[str, Any]] = [
    *({"status": status, name: "rare"} for status in lists.USUAL for name in ("queue", "kind")),
    *({"status": status, "created_before": NOW + 900} for status in lists.USUAL),
    {"queue": "mail", "status": Status.QUEUED, "created_before": NOW + 900},
]


@pytest.mark.parametrize("where", USUAL_LISTS, ids=str)
def test_a_list_with_a_usual_status_looks_for_its_jobs_among_others(
    crowded: apsw.Connection, where: dict[str, Any]
) -> None:
    """No index has the two together: it would change with each job that runs."""
    pages: list[Any] = []
    steps = steps_of(crowded, lambda: pages.append(reader.listed(crowded, Filter(**where), 50, None)))

    assert len(pages[0].jobs) == 50
    assert steps < 100 * 1000


def test_a_list_with_a_usual_status_reads_those_who_have_it_where_they_are_few(
    db: apsw.Connection,
) -> None:
    """A few that wait below a million that are done: of all, of the queue, and of the kind."""
    Writer(db).exchange(Batch(node="n", now=NOW, adds=[Add([job(f"j{n}") for n in range(9)])]))
    for column, value in (("time", None), ("queue", "default"), ("kind", "echo")):
        where = replace(Filter(status=Status.QUEUED), **({column: value} if value else {}))
        listed = functools.partial(reader.listed, db, where, 10, None)
        db.execute("update totals set jobs = 999 where state = 'queued'")
        few = plans(db, listed)
        db.execute("update totals set jobs = 1000 where state = 'queued'")
        many = plans(db, listed)

        assert any("jobs_ready_by_queue" in step for steps in few.values() for step in steps)
        assert any("jobs_held" in step for steps in few.values() for step in steps)
        assert any(f"jobs_by_{column}" in step for steps in many.values() for step in steps)


@pytest.mark.slow
def test_error_groups_are_told_from_an_index(db: apsw.Connection) -> None:
    """However many jobs have failed, and whatever else there is."""
    filled = (
        "with recursive n (i) as (select 1 union all select i + 1 from n where i < ?) insert into jobs "
        "(id, kind, queue, status, priority, run_at, max_retries, created_at, finished_at, payload, fingerprint) "
        "select ?2 || i, 'echo', 'mail', ?2, 0, ?3, 3, ?3 + i, ?3 + i, x'31', "
        "iif(?2 = 'failed', iif(i % 1000, '1-hot', '1-' || i), null) from n"
    )
    for status in (Status.FAILED, Status.DONE):
        db.execute(filled, (100_000, status.value, NOW))
    found: list[Any] = []
    costs = [
        steps_of(db, lambda: found.append(carry_out(db, lambda tx: errors.listed(tx, 50, None, EVER)))),
        steps_of(db, lambda: found.append(carry_out(db, lambda tx: errors.listed(tx, 1, None, EVER)))),
        steps_of(db, lambda: found.append(reader.listed(db, Filter(fingerprint="1-hot"), 50, None))),
        steps_of(db, lambda: found.append(reader.listed(db, Filter(fingerprint="1-1000"), 50, None))),
    ]

    assert (len(found[0].groups), found[0].complete, found[0].next_before is None) == (50, True, False)
    assert [(one.jobs, one.exact) for one in found[1].groups] == [(1, True)]
    assert [len(page.jobs) for page in found[2:]] == [50, 1]
    assert max(costs) < 200_000


def test_deep_pages_cost_no_more_than_the_first(crowded: apsw.Connection) -> None:
    """A cursor is a place in the index."""
    places = (None, Place(NOW + 1000 + NEWER // 2, NEWER // 2))
    pages = [functools.partial(reader.listed, crowded, Filter(queue="mail"), 50, place) for place in places]
    costs = [steps_of(crowded, page) for page in pages]

    assert costs[1] <= 1.2 * costs[0]


@pytest.mark.parametrize("where", [Filter(), Filter(status=Status.DONE), Filter(text="x")])
def test_a_list_of_what_is_not_rare_looks_at_a_bounded_number_of_rows(
    db: apsw.Connection, where: Filter
) -> None:
    """The rows come from the newest down, no more than `LOOK`, and no further than the page needs."""
    a_bit_of_everything(db)
    db.execute("insert or replace into totals values ('queued', 2000, 0), ('done', 2000, 0)")
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
    monkeypatch.setattr(paging, "LOOK", 4)
    pages, before = [], None
    while True:
        page = reader.listed(db, Filter(queue="default", kind="odd"), 10, before)
        pages.append([one.id for one in page.jobs])
        before = page.next_before
        if before is None:
            break

    assert pages == [[], [], ["j0"]]


@pytest.mark.parametrize("package", ["sqlite", "postgres"])
def test_migrations_are_numbered_without_a_gap(package: str) -> None:
    """From 2 on: stores at version 1 were made before the first release."""
    numbers = [number for number, _ in migrations(f"jobpipe.store.{package}")]

    assert numbers == list(range(2, len(numbers) + 2))


def test_an_opened_file_says_what_it_is(db: apsw.Connection) -> None:
    """Its application id, its schema's version, and that commits go through the WAL."""
    marks = (db.pragma("application_id"), db.pragma("user_version"), db.pragma("journal_mode"))

    assert marks == (0x6A6F6270, migrations("jobpipe.store.sqlite")[-1][0], "wal")


@pytest.mark.parametrize(("sync", "level"), [("full", 2), ("normal", 1)])
def test_sync_decides_what_a_commit_waits_for(
    tmp_path: Path, sync: Literal["full", "normal"], level: int
) -> None:
    """`full` syncs each commit to the disk."""
    with open_database(tmp_path / "jobs.db", sync) as opened:
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
    assert [state.name for state in reader.queues(db, 10, "")] == ["new"]


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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has locks of open files")
async def test_a_file_that_was_moved_while_in_use_is_refused_to_others(tmp_path: Path) -> None:
    """The lock lies on the file itself, too. It is free once the file is closed."""
    path, moved = tmp_path / "jobs.db", tmp_path / "moved.db"
    async with open_sqlite(path, sync="normal"):
        path.rename(moved)
        with pytest.raises(StoreError, match=r"in use by another jobpipe .which opened it by another name"):
            async with open_sqlite(moved, sync="normal"):
                pytest.fail("it was opened twice")
    async with open_sqlite(moved, sync="normal") as store:
        await store.ping()


def held_locks() -> str | None:
    """Every lock on this machine, where the system tells."""
    return Path("/proc/locks").read_text(encoding="ascii") if sys.platform == "linux" else None


async def test_links_in_one_process_are_one_store(tmp_path: Path) -> None:
    """A symbolic link leads to the same lock; a hard link is refused before the file is opened and closed again.

    For that would end the locks that SQLite has on it.
    """
    path, soft, hard = (tmp_path / name for name in ("jobs.db", "soft.db", "hard.db"))
    async with open_sqlite(path, sync="normal") as store:
        soft.symlink_to(path)
        hard.hardlink_to(path)
        for link, said in ((soft, "in use by another jobpipe"), (hard, "has 2 names")):
            with pytest.raises(StoreError, match=said):
                async with open_sqlite(link, sync="normal"):
                    pytest.fail("it was opened twice")
        inode = path.stat().st_ino
        found = held_locks()
        await store.ping()

    assert found is None or re.search(rf"POSIX .* {os.getpid()} \S+:{inode} ", found)


def test_a_file_system_that_is_read_only_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a missing permission."""
    flags = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StoreError, match=r"^no permission to write in"):
        check_path(tmp_path / "jobs.db")
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=flags.f_flag | os.ST_RDONLY))
    with pytest.raises(StoreError, match=r"^the file system is read-only: jobpipe cannot write in"):
        check_path(tmp_path / "jobs.db")


@pytest.mark.parametrize("index", ["jobs_expiring", "jobs_held", "jobs_ended"])
def test_a_missing_index_is_noticed(db: apsw.Connection, index: str) -> None:
    """The test of these tests: without an index, some statement reads the table from end to end."""
    db.execute(f"drop index {index}")

    def act() -> None:
        a_bit_of_everything(db)
        carry_out(db, lambda tx: nodes.rescue(tx, "other", NOW + 1e6))
        carry_out(db, lambda tx: retention.prune(tx, NOW + 99, TAKE))

    assert faults(plans(db, act)) != []
