"""What is SQLite's own about lanes: its indexes, its statements, and rows that are damaged."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest

from jobpipe.job import Job, NewJob, Options, Outcome, State, Status
from jobpipe.lanes import KeySettings, Limits, PerKey, Rate
from jobpipe.store.base import Add, Batch, Claimed, ClaimRequest, Share
from jobpipe.store.sqlite import gated
from jobpipe.store.sqlite.database import open_database
from jobpipe.store.sqlite.nodes import Nodes
from jobpipe.store.sqlite.tables import carry_out
from jobpipe.store.sqlite.writer import Writer
from jobpipe.store.verbs import jobs, lanes
from jobpipe.store.verbs.obstacles import first
from tests.store.test_sqlite import NOW, faults, job, plans, settlement, statements

KINDS = frozenset({"echo"})


@pytest.fixture
def db(tmp_path: Path) -> Iterator[apsw.Connection]:
    """A fresh database, with a node `n`."""
    with open_database(tmp_path / "jobs.db", "normal") as opened:
        Nodes(opened.writer).join("n", NOW + 1e6, KINDS)
        yield opened.writer


def keyed(job_id: str, key: str | None, **how: Any) -> NewJob:
    return job(job_id, queue="mail", options=Options(key=key), **how)


def wish(limit: int, **how: Any) -> Sequence[ClaimRequest]:
    return [ClaimRequest(limit=limit, kinds=KINDS, **how)]


def taken(writer: Writer, limit: int = 100, now: float = NOW, **how: Any) -> Sequence[Claimed]:
    found = list[Claimed]()
    while True:
        receipts = writer.exchange(Batch(node="n", now=now, claims=wish(limit - len(found), **how)))
        found += receipts.claimed
        if len(found) == limit or not receipts.more_ready:
            return found


def ended(claimed: Sequence[Claimed], status: Status = Status.DONE) -> Batch:
    ends = [settlement(one.seq, one.claim, Outcome.DONE, status) for one in claimed]
    return Batch(node="n", now=NOW, settlements=ends)


def a_bit_of_everything(db: apsw.Connection) -> None:
    """Take every path of lanes at least once."""
    writer = Writer(db)
    rate = Rate(2, 60.0)
    writer.exchange(Batch(node="n", now=NOW, adds=[Add([job("old", queue="mail"), job("plain")])]))
    carry_out(db, lambda tx: lanes.put_limits(tx, "mail", Limits(max_running=9, rate=rate)))
    carry_out(db, lambda tx: lanes.put_limits(tx, "mail", Limits(per_key=PerKey(max_running=1, rate=rate))))
    stopping = PerKey(ordered=True, on_failure="stop")
    carry_out(db, lambda tx: lanes.put_limits(tx, "line", Limits(per_key=stopping)))
    carry_out(db, lambda tx: lanes.put_limits(tx, "line", Limits(per_key=PerKey(ordered=True))))
    carry_out(db, lambda tx: lanes.put_limits(tx, "line", Limits(per_key=stopping)))
    carry_out(db, lambda tx: lanes.put_key(tx, "mail", "b", KeySettings(weight=2)))
    writer.forget()
    new = [keyed(f"{key}{number}", key) for key in "abc" for number in range(3)]
    later = [keyed("late", "a", run_at=NOW + 5), job("then", queue="mail", run_at=NOW + 5)]
    later += [job("due", queue="line", options=Options(key="a"), run_at=NOW + 9, expires_at=NOW + 5)]
    later += [job(f"l{number}", queue="line", options=Options(key="b")) for number in range(3)]
    later += [job("none", queue="line")]
    writer.exchange(Batch(node="n", now=NOW, adds=[Add([*new, *later])]))
    first = taken(writer, 4)
    writer.exchange(ended(first[:2]))
    writer.exchange(ended(first[2:], Status.QUEUED))
    taken(writer, 4, queues=[Share("mail", 2), Share("*", 2)])
    taken(writer, 4, NOW + 60)
    carry_out(db, lambda tx: lanes.pause_key(tx, "mail", "a"))
    carry_out(db, lambda tx: lanes.resume_key(tx, "mail", "a"))
    writer.exchange(ended(taken(writer, 9, NOW + 60), Status.FAILED))
    carry_out(db, lambda tx: lanes.one(tx, "line", "b"))
    carry_out(db, lambda tx: lanes.listed(tx, "line", 10, None, "stopped"))
    carry_out(db, lambda tx: lanes.resume_key(tx, "line", "b"))
    carry_out(db, lambda tx: jobs.delete(tx, ["l1", "l2"], NOW + 60))


def test_claims_of_lanes_walk_indexes(db: apsw.Connection) -> None:
    """Whatever waits in other lanes costs nothing."""
    found = plans(db, lambda: a_bit_of_everything(db))
    scans = [
        f"{step} <- {sql}"
        for sql, steps in found.items()
        for step in steps
        if re.search(r"SCAN (lanes|queues)(?! USING (COVERING )?INDEX)", step)
    ]

    # The places of lanes that were settled in are few, and told apart in memory.
    assert faults(found, allowed="FOR DISTINCT") == []
    assert scans == []


def test_why_a_job_waits_is_looked_up_by_indexes(db: apsw.Connection) -> None:
    """In a lane and in none, whatever the limits are."""
    writer = Writer(db)
    rate = Rate(2, 60.0)
    limits = Limits(max_running=9, rate=rate, per_key=PerKey(max_running=9, rate=rate))
    carry_out(db, lambda tx: lanes.put_limits(tx, "mail", limits))
    new = [keyed("a", "a"), job("b")]
    writer.exchange(Batch(node="n", now=NOW, adds=[Add(new)]))

    def act() -> None:
        for one in new:
            asked = Job(one, State(Status.QUEUED))
            carry_out(db, lambda tx, asked=asked: first(tx, asked, NOW))  # type: ignore[misc]  # mypy can't tell

    found = plans(db, act)

    assert faults(found) == []
    assert [sql for sql, how in found.items() if re.search(r"SCAN (lanes|queues)", " ".join(how))] == []


def test_a_batch_without_keys_and_limits_runs_not_one_statement_more(db: apsw.Connection) -> None:
    """Once the writer knows that there are none."""
    writer = Writer(db)

    def a_life(number: int) -> None:
        new = [job(f"a{number}"), job(f"later{number}", run_at=NOW + number)]
        receipts = writer.exchange(Batch(node="n", now=NOW + number, adds=[Add(new)], claims=wish(9)))
        writer.exchange(ended(receipts.claimed))

    a_life(0)
    ran = statements(db, lambda: a_life(1))

    about_lanes = ("gated", "in_lane", "in_line", "key_order", "stopped_keys", "update lanes")
    assert [sql for sql in ran if any(word in sql for word in about_lanes)] == []


@pytest.mark.parametrize("limits", [Limits(max_running=5), Limits(per_key=PerKey(max_running=2))])
def test_a_claim_of_many_keys_runs_few_statements(db: apsw.Connection, limits: Limits) -> None:
    """What it reads of all its keys it reads at once."""
    writer = Writer(db)
    carry_out(db, lambda tx: lanes.put_limits(tx, "mail", limits))
    writer.forget()
    writer.exchange(Batch(node="n", now=NOW, adds=[Add([keyed(f"k{key}", f"{key}") for key in range(100)])]))
    ran = statements(db, lambda: taken(writer, 50))

    assert len([sql for sql in ran if sql.lstrip().startswith("select")]) < 15


DAMAGE = {
    "a key stopped by nobody": "insert into stopped_keys values ('mail', 'a', -7, ''), ('none', 'none', 0, 'x')",
    "a lane stopped by nobody": "update lanes set state = 5 where key = 'a'",
    "a turn beyond all": "update lanes set turn = 9e999 where key = 'a'",
    "a turn before all": "update lanes set turn = -9e999 where key = 'a'",
    "a weight of nothing": "update lanes set weight = 0",
    "a weight below nothing": "update lanes set weight = -7",
    "a negative limit of a key": "update lanes set max_running = -3 where key = 'b'",
    "a time beyond all": "update lanes set tat = 9e999, until = 9e999",
    "an open lane with a time": "update lanes set until = 5.0",
    "a rate of nothing": "update queues set rate_limit = 0, rate_period = -1, rate_burst = 9",
    "half a rate": "update queues set rate_limit = 1, key_rate_period = 1.0",
    "a rate used up for ever": "update queues set rate_limit = 99, rate_period = 1.0, rate_burst = 99, tat = 9e999",
    "a turn of the queue beyond all": "update queues set turn = 9e999, tat = -9e999",
    "huge limits": "update queues set max_running = 9223372036854775807, key_max_running = 9223372036854775807",
    "a lane without jobs": "insert into lanes (queue, key, turn) values ('mail', 'none', -5), ('none', 'none', 0)",
}


@pytest.mark.parametrize("sql", DAMAGE.values(), ids=DAMAGE)
def test_damaged_rows_keep_no_other_job_from_being_claimed(db: apsw.Connection, sql: str) -> None:
    """Nor, where they can be read somehow, those of their own key."""
    writer = Writer(db)
    new = [keyed(f"{key}{number}", key) for key in "abc" for number in range(3)]
    writer.exchange(Batch(node="n", now=NOW, adds=[Add([*new, job("plain")])]))
    db.execute(sql)
    writer.forget()
    found = {one.id for one in taken(writer)} | {one.id for one in taken(writer, now=NOW + 5.0)}
    states = carry_out(db, lambda tx: lanes.listed(tx, "mail", 10, None, None))
    carry_out(db, lambda tx: lanes.gate(tx, "mail", NOW))

    assert "plain" in found
    assert {"c0", "c1", "c2"} <= found
    assert all(one.waiting >= 0 for one in states)


LOST = {
    "a lane is gone": "delete from lanes where key = 'a'",
    "a lane is full for ever": "update lanes set state = 2 where key = 'a'",
    "a lane stands nowhere": "update lanes set state = 77 where key = 'a'",
    "a lane is stopped, it says": "update lanes set state = 5 where key = 'a'",
    "a lane rests for ever": "update lanes set state = 1 where key = 'a'",
    "a lane is empty, it says": "update lanes set state = 3 where key = 'a'",
    "all lanes are gone": "delete from lanes",
    "the queue is not gated, it says": "update queues set gated = 0",
    "the queue's row is gone": "delete from queues",
}


@pytest.mark.parametrize("sql", LOST.values(), ids=LOST)
def test_a_lane_that_is_lost_is_found_by_prune(db: apsw.Connection, sql: str) -> None:
    """Its jobs wait until then."""
    writer = Writer(db)
    new = [keyed(f"{key}{number}", key) for key in "ab" for number in range(3)]
    writer.exchange(Batch(node="n", now=NOW, adds=[Add(new)]))
    db.execute(sql)
    sweep(db)
    writer.forget()

    assert len(taken(writer)) == 6


def test_lost_lanes_are_found_a_part_at_a_time(db: apsw.Connection, monkeypatch: Any) -> None:
    """However many there are."""
    monkeypatch.setattr("jobpipe.store.verbs.lanes.SWEPT", 3)
    writer = Writer(db)
    writer.exchange(Batch(node="n", now=NOW, adds=[Add([keyed(f"k{key:02}", f"{key}") for key in range(8)])]))
    db.execute("delete from lanes")
    found = list[int]()
    after = ("", "")
    for _ in range(4):
        after = sweep(db, after)
        writer.forget()
        found.append(len(taken(writer)))

    assert sum(found) == 8
    assert max(found) <= 3


def sweep(db: apsw.Connection, after: tuple[str, str] = ("", "")) -> tuple[str, str]:
    return carry_out(db, lambda tx: lanes.sweep(tx, NOW, after))


def test_many_gated_queues_are_looked_at_in_turn(db: apsw.Connection, monkeypatch: Any) -> None:
    """Those behind them with the next claims."""
    monkeypatch.setattr(gated, "WALKED", 3)
    writer = Writer(db)
    new = [job(f"q{number}", queue=f"q{number}", options=Options(key="k")) for number in range(10)]
    writer.exchange(Batch(node="n", now=NOW, adds=[Add(new)]))
    found = [one.id for _ in range(10) for one in taken(writer, 1)]

    assert sorted(found) == sorted(one.id for one in new)
