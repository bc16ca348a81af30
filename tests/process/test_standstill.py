"""A process that stands still for longer than its lease, as in SIGSTOP, a frozen container or a suspended machine."""

import fcntl
import os
import random
import signal
import time
from contextlib import closing

import apsw
import msgspec
import pytest
import trio

from jobpipe.engine.outcomes import Verdict, settlement
from jobpipe.job import Backoff, Outcome
from jobpipe.store.base import Batch, ClaimRequest
from jobpipe.store.sqlite.nodes import Nodes
from jobpipe.store.sqlite.opening import connect
from jobpipe.store.sqlite.tables import carry_out
from jobpipe.store.sqlite.writer import Writer
from jobpipe.store.verbs import followers, nodes
from tests.faults.invariants import broken_invariants
from tests.process.book import Book
from tests.process.clients import Clients
from tests.process.judge import all_come_to_an_end, check, count_of_starts, open_runs
from tests.process.running import jobpipe, nothing_runs, until

pytestmark = pytest.mark.crash

SEED = int(os.environ.get("JOBPIPE_TEST_SEED") or random.SystemRandom().randrange(10**6))
"""Of everything random in here; set JOBPIPE_TEST_SEED to the one that a failed test printed."""

LOST = "this node lost its lease"
REFUSED = "late write refused"
STOOD = "this process was suspended"


def starts_of(trace, job_id):
    return [line for line in trace() if line["job"] == job_id and line["event"] == "start"]


async def more_is_acknowledged(book):
    """Return when clients have been answered once more."""
    before = len(book.acknowledged)

    async def answered():
        return len(book.acknowledged) > before

    await until(answered)


# --- nobody takes its jobs meanwhile ----------------------------------------------------------------------------------


async def test_a_process_that_stood_still_for_longer_than_its_lease_goes_on_and_nothing_is_lost_or_doubled(
    serve, store, trace, tmp_path
):
    """On SQLite nobody else can have its jobs: its file stays its own, its lease is renewed, and what ran runs on."""
    print(f"JOBPIPE_TEST_SEED={SEED}")  # noqa: T201 - pytest shows it when the test fails
    rng, book, lease = random.Random(SEED), Book(), 3
    service = await serve(WORKERS=8, LEASE=lease)
    clients = Clients(book, service.url, str(SEED))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clients.run)
        for _ in range(3):
            await more_is_acknowledged(book)
            await trio.sleep(rng.uniform(0, 0.5))
            await service.stand_still()
            second = await jobpipe(tmp_path, "serve")
            await trio.sleep(lease * rng.uniform(1.1, 1.6))
            service.go_on()
            assert (second.returncode, "in use by another jobpipe" in second.stderr) == (2, True), second
        await more_is_acknowledged(book)
        clients.enough()
    jobs = await all_come_to_an_end(service, book)
    service.signal(signal.SIGTERM)

    assert await service.ended() == 0
    check(book, jobs, trace())
    ran = {job_id: count_of_starts(line for line in trace() if line["job"] == job_id) for job_id in jobs}
    unasked = [job_id for job_id in jobs if book.roles[job_id] in ("plain", "once")]
    assert {job_id: ran[job_id] for job_id in unasked if ran[job_id] != jobs[job_id]["attempt"]} == {}
    assert open_runs(trace()) == set()
    assert service.has_said(STOOD)
    assert not service.has_said(LOST)
    assert not service.has_said(REFUSED)
    assert nothing_runs(store)
    assert broken_invariants(store) == []


# --- another node takes them ------------------------------------------------------------------------------------------


class Successor:
    """The node that takes over, played by the test with jobpipe's own verbs: a second process is refused on this file.

    It takes back every job of a node whose lease has ended, runs those of a priority of 0 and above, and leaves.
    """

    def __init__(self, tmp_path):
        self.path, self.trace = tmp_path / "jobs.db", tmp_path / "trace"
        self.late: dict[str, int] = {}
        """the jobs that it took back, each with the claim number that its former node has"""
        self.begun: set[str] = set()
        """those of them whose former attempt is known to have begun"""
        self.done: dict[str, int] = {}
        """the jobs that it ran, each with the claim number that it had"""

    def takes_over(self):
        """Take back what the other node holds, run a part of it, and leave."""
        with closing(connect(self.path, flags=apsw.SQLITE_OPEN_READWRITE, sync="full")) as db:
            self.late = dict(db.execute("select id, claim from jobs where held = 1"))
            now = time.time()
            rescued, _ = carry_out(
                db, lambda tx: followers.carried_out(lambda tx: nodes.rescue(tx, "successor", now), tx, now)
            )
            assert {job.id for job in rescued} == self.late.keys()
            self.begun = {job.id for job in rescued if job.begun}
            Nodes(db).join("successor", time.time() + 60)
            self._runs_some(Writer(db))
            Nodes(db).leave("successor")

    def _runs_some(self, writer):
        now = time.time()
        some = ClaimRequest(limit=20, kinds=frozenset({"work"}))
        claimed = writer.exchange(Batch(node="successor", now=now, claims=[some])).claimed
        settlements = [self._ran(job, now) for job in claimed]
        receipts = writer.exchange(Batch(node="successor", now=now, settlements=settlements))
        assert receipts.stale == frozenset()

    def _ran(self, job, now):
        verdict = Verdict(None)
        if job.priority >= 0:
            verdict = Verdict(Outcome.DONE, result=msgspec.json.encode(job.claim))
            self.done[job.id] = job.claim
            self._writes(job, "start")
            self._writes(job, "done")
        began = now if verdict.outcome else None
        return settlement(job, verdict, started_at=began, now=now, policy=Backoff(), random=random.random)

    def _writes(self, job, event):
        line = {"event": event, "job": job.id, "claim": job.claim, "pid": os.getpid(), "at": time.monotonic()}
        with self.trace.open("ab", buffering=0) as trace:
            trace.write(msgspec.json.encode(line) + b"\n")


def is_at_rest(path):
    """Whether the process that stands still has no transaction open, not even to read.

    Else it would shut a writer out, or find that what it has read is no longer so. SQLite's locks on a log are those
    of 8 bytes of its index (sqlite.org/walformat.html, "WAL locks").
    """
    with path.with_name(f"{path.name}-shm").open("rb+") as index:
        try:
            fcntl.lockf(index, fcntl.LOCK_EX | fcntl.LOCK_NB, 8, 120)
        except OSError:
            return False
        return True


async def stands_between_two_writes(service, path, rng):
    """Stop the process at some moment at which another one can write."""
    while True:
        await trio.sleep(rng.uniform(0, 0.2))
        await service.stand_still()
        if is_at_rest(path):
            return
        service.go_on()


def work(job_id, **fields):
    usual = {"id": job_id, "kind": "work", "priority": -1, "on_crash": "retry", "max_retries": 5}
    return usual | fields


async def test_what_a_process_writes_that_was_taken_for_dead_is_refused_and_its_attempts_are_cancelled(
    serve, store, trace, gate, tmp_path
):
    """Its jobs run again, and what the last run of each came to stands, here or on the node that took them."""
    print(f"JOBPIPE_TEST_SEED={SEED}")  # noqa: T201 - pytest shows it when the test fails
    rng, book, lease = random.Random(SEED), Book(), 1
    answers = tmp_path / "answers"
    cut = [work(f"cut-{number}", payload={"until": gate.path}) for number in range(3)]
    late = [work(f"late-{number}", payload={"until": str(answers)}) for number in range(3)]
    once = work("once", payload={"until": gate.path}, on_crash="fail")
    theirs = work("theirs", payload={"until": str(answers)}, priority=9)
    service = await serve(WORKERS=16, LEASE=lease)
    service.expected_errors = {LOST}
    for job in (*cut, *late, once, theirs):
        assert (await service.http.post("/enqueue", json=job)).status_code == 202
        book.stored("once" if job is once else "plain", job)
    await service.runs(*book.acknowledged)
    clients, successor = Clients(book, service.url, str(SEED)), Successor(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clients.run)
        await more_is_acknowledged(book)
        await stands_between_two_writes(service, store, rng)
        await trio.sleep(lease * rng.uniform(1.1, 2))
        successor.takes_over()
        answers.touch()  # so that these handlers return as soon as the process goes on
        service.go_on()
        await service.said(LOST)
        await service.said(REFUSED)
        await until(lambda: are_cancelled(trace, "once", *(job["id"] for job in cut)))
        gate.open()
        await more_is_acknowledged(book)
        clients.enough()
    jobs = await all_come_to_an_end(service, book)
    shown = {job_id: await service.job(job_id) for job_id in successor.late}
    service.signal(signal.SIGTERM)

    assert await service.ended() == 0
    lines = trace()
    starts = [(line["job"], line["claim"]) for line in lines if line["event"] == "start"]
    assert len(starts) == len(set(starts)), "a claim number was given twice"
    in_time = [line for line in lines if successor.late.get(line["job"]) != line["claim"]]
    check(book, jobs, in_time, uncounted=len(successor.begun))
    assert jobs["theirs"]["result"] == successor.done["theirs"]
    assert (jobs["once"]["status"], jobs["once"]["error"]["type"]) == ("failed", "NodeDied")
    assert [events_of(lines, job["id"]) for job in cut] == [["start", "cancelled", "start", "done"]] * 3
    assert [jobs[job["id"]]["attempt"] for job in (*cut, *late)] == [2] * 6
    for job_id, job in shown.items():
        claims = [one["claim"] for one in job["attempts"]]
        assert claims == sorted(set(claims)), job
        outcomes = [one["outcome"] for one in job["attempts"] if one["claim"] == successor.late[job_id]]
        assert outcomes in ([], ["interrupted"], ["cancelled"]), job
    assert open_runs(lines) == set()
    assert nothing_runs(store)
    assert broken_invariants(store) == []


def events_of(lines, job_id):
    return [line["event"] for line in lines if line["job"] == job_id]


async def are_cancelled(trace, *job_ids):
    return all("cancelled" in events_of(trace(), job_id) for job_id in job_ids)
