"""A disk that is full, fails or is slow, and a file that is locked, moved, deleted or replaced under the service.

Each time: a clear line in the log, /health in words, 503 with Retry-After for who enqueues, nothing acknowledged lost,
nothing told as not stored that is, and by itself well again where that can be.
"""

import shutil
import signal
import sqlite3
from collections import Counter

import pytest
import trio

from tests.faults.invariants import broken_invariants
from tests.process.running import PATIENCE, read_jobs, until

pytestmark = pytest.mark.faults

CANNOT_WRITE = "the store cannot write"


def starts_of(trace, job_id):
    return [line for line in trace() if line["job"] == job_id and line["event"] == "start"]


async def refused(service, job_id):
    """Enqueue a job and be told to come again; returns what the problem says."""
    answer = await service.http.post("/enqueue", json={"id": job_id})
    assert answer.status_code == 503, (answer.status_code, answer.text)
    assert int(answer.headers["Retry-After"]) >= 1
    problem = answer.json()
    assert problem["code"] == "store_unavailable"
    return problem["detail"]


async def broken(service):
    """What /health says when it is not well."""
    answer = await service.http.get("/health")
    assert answer.status_code == 503, answer.text
    health = answer.json()
    assert health["status"] == "broken", health
    return health["detail"]


async def is_well(service):
    return (await service.http.get("/health")).status_code == 200


async def busy_life(service, gate):
    """Jobs that were acknowledged: some have run, one runs, some wait."""
    ids = [f"job-{index}" for index in range(10)]
    for job_id in ids:
        await service.enqueue(job_id)
    await service.all_ended(*ids)
    await service.http.post("/queues/mail/pause")
    for index in range(10):
        await service.enqueue(f"mail-{index}", queue="mail")
        ids.append(f"mail-{index}")
    await service.enqueue("active", payload={"until": gate.path})
    await service.runs("active")
    return [*ids, "active"]


async def all_done(service, trace, acknowledged, told_off):
    """Every acknowledged job ends done after one run, what was refused is not there; so it is on the disk too."""
    await until(lambda: is_well(service))
    await service.http.post("/queues/mail/resume")
    await service.enqueue("afterwards")
    await until(lambda: all_jobs_ended(service))
    ended = await service.all_jobs()
    assert {job["status"] for job in ended.values()} == {"done"}
    assert set(ended) == {*acknowledged, "afterwards"}
    starts = Counter(line["job"] for line in trace() if line["event"] == "start")
    assert [job_id for job_id in ended if starts[job_id] != 1] == []
    for job_id in told_off:
        assert (await service.http.get(f"/jobs/{job_id}")).status_code == 404
    await service.kill()


async def all_jobs_ended(service):
    health = (await service.http.get("/health")).json()
    return health["queued"] == health["scheduled"] == health["retrying"] == health["busy"] == 0


def on_disk(path, acknowledged, told_off):
    assert broken_invariants(path) == []
    stored = read_jobs(path)
    assert set(stored) == {*acknowledged, "afterwards"}
    assert {job["status"] for job in stored.values()} == {"done"}


# --- no room ----------------------------------------------------------------------------------------------------------


async def test_a_full_disk_is_told_and_nothing_acknowledged_is_lost(serve, small_disk, trace, gate):
    """What ends meanwhile is kept, and written when there is room again."""
    service = await serve(STORE="sqlite:disk/jobs.db")
    service.expected_errors.add(CANNOT_WRITE)
    acknowledged = await busy_life(service, gate)

    small_disk.fill()
    # There may be room left in pages that SQLite has already: until that is used up, what is told as stored is.
    for index in range(1000):
        job = {"id": f"f{index}", "queue": "mail", "payload": {}, "kind": "work"}
        answer = await service.http.post("/enqueue", json=job)
        if answer.status_code == 503:
            break
        acknowledged.append(f"f{index}")
    said = [await refused(service, f"no{index}") for index in range(3)]
    gate.open()
    health = await broken(service)
    small_disk.free()

    assert "is full" in said[-1]
    assert "is full" in health
    assert "is full" in (await service.said(CANNOT_WRITE))["error"]
    await all_done(service, trace, acknowledged, [f"no{index}" for index in range(3)])
    assert service.has_said("the store can write again")
    on_disk(small_disk.folder / "jobs.db", acknowledged, [])


# --- input and output errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "sync"])
async def test_while_the_log_cannot_be_written_everybody_is_told_and_nothing_is_lost(
    serve, faults, store, trace, gate, call
):
    """The file is opened anew before anything is written again; what ended meanwhile is written then."""
    service = await serve()
    service.expected_errors.add(CANNOT_WRITE)
    acknowledged = await busy_life(service, gate)

    faults.disk(call, "-wal")
    said = [await refused(service, f"no{index}") for index in range(3)]
    gate.open()
    health = await broken(service)
    faults.mend()
    await until(lambda: is_well(service))

    assert "disk I/O error" in said[0]
    assert "the store cannot write" in health
    assert "disk I/O error" in (await service.said(CANNOT_WRITE))["error"]
    assert (await service.said("reopened the store"))["level"] == "warning"
    await all_done(service, trace, acknowledged, ["no0", "no1", "no2"])
    on_disk(store, acknowledged, [])


@pytest.mark.parametrize("call", ["write", "sync"])
async def test_after_one_failure_the_file_is_opened_anew_before_anything_is_acknowledged(
    serve, faults, store, trace, gate, call
):
    """Who was told that nothing was stored sends it again, and it is stored once."""
    service = await serve()
    service.expected_errors.add(CANNOT_WRITE)
    acknowledged = await busy_life(service, gate)

    faults.disk(call, "-wal", times=1)
    said = await refused(service, "again")
    await service.enqueue("again")
    gate.open()

    assert "disk I/O error" in said
    assert len(faults.struck) == 1
    events = [line["event"] for line in service.lines]
    assert events.index("reopened the store") < events.index("the store can write again")
    await all_done(service, trace, [*acknowledged, "again"], [])
    on_disk(store, [*acknowledged, "again"], [])


async def test_what_was_told_as_not_stored_does_not_come_back_out_of_the_log(
    serve, faults, store, trace, gate
):
    """Its frames are in SQLite's log, whole and valid, when the fsync fails; the next ones fail too."""
    service = await serve()
    service.expected_errors.add(CANNOT_WRITE)
    acknowledged = await busy_life(service, gate)

    faults.disk("sync", "-wal", times=3)
    await refused(service, "ghost")
    await until(lambda: is_well(service))
    gate.open()

    assert len(faults.struck) == 3
    await all_done(service, trace, acknowledged, ["ghost"])
    on_disk(store, acknowledged, [])


@pytest.mark.parametrize("call", ["write", "sync"])
async def test_a_kill_while_the_disk_fails_loses_nothing(serve, faults, store, trace, gate, call):
    service = await serve()
    service.expected_errors.add(CANNOT_WRITE)
    acknowledged = await busy_life(service, gate)

    faults.disk(call, "-wal")
    await refused(service, "perhaps")
    await service.kill()
    faults.mend()
    gate.open()
    service = await serve()
    await service.http.post("/queues/mail/resume")
    ended = await service.all_ended(*acknowledged)

    assert {job["status"] for job in ended.values()} == {"done"}
    await service.kill()
    assert broken_invariants(store) == []


@pytest.mark.parametrize("call", ["write", "sync"])
async def test_a_failure_while_the_log_is_moved_into_the_database_loses_nothing(
    serve, faults, store, trace, gate, call
):
    """What was in the log is acknowledged already, and stays: only who comes next may be told to wait."""
    service = await serve()
    service.expected_errors.add(CANNOT_WRITE)
    acknowledged = await busy_life(service, gate)

    faults.disk(call, "jobs.db")
    while not faults.struck:  # until the log is long enough to be moved
        ids = [f"bulk-{len(acknowledged) + each}" for each in range(500)]
        jobs = [{"id": job_id, "queue": "mail", "kind": "work", "payload": {}} for job_id in ids]
        answer = await service.http.post("/enqueue/bulk", json=jobs)
        assert answer.status_code == 202, answer.text
        acknowledged += ids
    health = await broken(service)
    faults.mend()
    await until(lambda: is_well(service))
    gate.open()

    assert "disk I/O error" in health
    assert service.has_said("reopened the store")
    await all_done(service, trace, acknowledged, [])
    on_disk(store, acknowledged, [])


async def test_a_disk_that_fails_during_the_drain_does_not_hold_the_process(
    serve, faults, store, trace, gate
):
    """It says that the last outcomes could not be written; those jobs may run again at the next start."""
    service = await serve()
    service.expected_errors |= {CANNOT_WRITE, "the last outcomes could not be written"}
    acknowledged = await busy_life(service, gate)

    faults.disk("sync", "-wal")
    service.signal(signal.SIGTERM)
    gate.open()
    await service.ended()
    faults.mend()

    assert service.has_said("the last outcomes could not be written")
    service = await serve()
    await service.http.post("/queues/mail/resume")
    assert {job["status"] for job in (await service.all_ended(*acknowledged)).values()} == {"done"}
    # What reached SQLite's log without an fsync may still be there: nobody was told that it is not.
    assert len(starts_of(trace, "active")) in (1, 2)


# --- slow -------------------------------------------------------------------------------------------------------------


async def test_a_slow_fsync_makes_everybody_wait_and_breaks_nothing(serve, faults, store, trace, gate):
    """/health answers meanwhile, and says so; the lease survives it, and so do the runs."""
    service = await serve(LEASE=9)
    acknowledged = await busy_life(service, gate)

    faults.disk("sync", "-wal", error=None, seconds=4, times=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.enqueue, "slow")
        await until(lambda: struck(faults))
        health = await broken(service)
    gate.open()

    assert health == "the store does not complete a write"
    await all_done(service, trace, [*acknowledged, "slow"], [])
    assert not service.has_said("this node lost its lease")
    on_disk(store, [*acknowledged, "slow"], [])


async def struck(faults):
    return bool(faults.struck)


# --- another hand on the file -----------------------------------------------------------------------------------------


async def test_a_lock_that_lasts_is_told_and_waited_for(serve, store, trace, gate):
    service = await serve()
    service.expected_errors.add(CANNOT_WRITE)
    acknowledged = await busy_life(service, gate)

    other = sqlite3.connect(store, isolation_level=None)
    other.execute("begin immediate")
    said = await refused(service, "no")
    gate.open()
    await service.said(CANNOT_WRITE)
    health = await broken(service)
    other.execute("rollback")
    other.close()

    assert "is in use by another program" in said
    assert health == "the store does not complete a write" or "is in use by another program" in health
    assert not service.has_said("reopened the store")
    await all_done(service, trace, acknowledged, ["no"])
    on_disk(store, acknowledged, [])


async def test_a_short_lock_is_waited_for(serve, store, trace, gate):
    service = await serve()
    acknowledged = await busy_life(service, gate)

    other = sqlite3.connect(store, isolation_level=None)
    other.execute("begin immediate")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.enqueue, "patient")
        await trio.sleep(0.5)  # how long the other program holds its lock
        other.execute("rollback")
    other.close()
    gate.open()

    await all_done(service, trace, [*acknowledged, "patient"], [])
    on_disk(store, [*acknowledged, "patient"], [])


async def test_a_file_moved_away_is_told_and_used_again_once_it_is_back(serve, store, trace, gate):
    service = await serve()
    service.expected_errors.add(CANNOT_WRITE)
    acknowledged = await busy_life(service, gate)

    store.rename(store.with_name("elsewhere.db"))
    said = await refused(service, "no")
    health = await broken(service)
    gate.open()
    store.with_name("elsewhere.db").rename(store)

    assert "jobs.db was deleted or moved away" in said
    assert "jobs.db was deleted or moved away" in health
    assert "jobs.db was deleted or moved away" in (await service.said(CANNOT_WRITE))["error"]
    await all_done(service, trace, acknowledged, ["no"])
    on_disk(store, acknowledged, [])


async def test_a_file_moved_away_for_good_holds_everything_after_the_end(serve, store, gate):
    """Also what stood only in the log."""
    service = await serve()
    service.expected_errors |= {CANNOT_WRITE, "the last outcomes could not be written"}
    acknowledged = await busy_life(service, gate)

    elsewhere = store.with_name("elsewhere.db")
    store.rename(elsewhere)
    await refused(service, "no")
    gate.open()
    service.signal(signal.SIGTERM)
    await service.ended()

    assert not store.exists()
    assert set(read_jobs(elsewhere)) == set(acknowledged)


async def test_into_a_deleted_file_nothing_is_acknowledged(serve, store, gate):
    """The next start begins with a new file."""
    service = await serve()
    service.expected_errors |= {CANNOT_WRITE, "the last outcomes could not be written"}
    await busy_life(service, gate)

    store.unlink()
    said = await refused(service, "no")
    health = await broken(service)
    gate.open()
    service.signal(signal.SIGTERM)
    await service.ended()
    service = await serve()
    await service.enqueue("new")

    assert "jobs.db was deleted or moved away" in said
    assert "jobs.db was deleted or moved away" in health
    assert (await service.job("new", wait=PATIENCE))["status"] == "done"
    assert (await service.http.get("/jobs/active")).status_code == 404


async def test_a_file_replaced_by_another_is_told_and_the_other_is_left_as_it_is(
    serve, store, tmp_path, gate
):
    """It is used from the next start on."""
    service = await serve(STORE="sqlite:other.db")
    await service.enqueue("theirs")
    await service.job("theirs", wait=PATIENCE)
    service.signal(signal.SIGTERM)
    assert await service.ended() == 0
    other = (tmp_path / "other.db").read_bytes()
    service = await serve()
    service.expected_errors |= {CANNOT_WRITE, "the last outcomes could not be written"}
    await busy_life(service, gate)

    shutil.move(tmp_path / "other.db", store)
    said = await refused(service, "no")
    health = await broken(service)
    gate.open()
    service.signal(signal.SIGTERM)
    await service.ended()

    assert "jobs.db was replaced by another file" in said
    assert "jobs.db was replaced by another file" in health
    assert store.read_bytes() == other
    service = await serve()
    assert (await service.job("theirs"))["status"] == "done"
    await service.kill()
    assert broken_invariants(store) == []


async def test_a_deleted_log_is_made_anew_and_loses_nothing(serve, store, trace, gate):
    """SQLite still has it open: it is moved into the database before anything else is written."""
    service = await serve()
    acknowledged = await busy_life(service, gate)

    store.with_name("jobs.db-wal").unlink()
    await service.enqueue("next")
    gate.open()

    assert "jobs.db-wal was deleted" in (await service.said("reopened the store"))["after"]
    await all_done(service, trace, [*acknowledged, "next"], [])
    on_disk(store, [*acknowledged, "next"], [])
