"""The file of the store: what is used, and what is refused at the start in one clear line and left as it was."""

import os
import random
import signal
import stat
import sys

import apsw
import pytest
import trio

from tests.process.running import PATIENCE, jobpipe, read_jobs

pytestmark = pytest.mark.slow


async def refused(folder, **settings):
    """What a `jobpipe serve` says that does not start: one line, without a traceback, with exit code 2."""
    ended = await jobpipe(folder, "serve", **settings)
    assert (ended.returncode, ended.stdout) == (2, ""), ended
    assert ended.stderr.startswith("jobpipe: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr.removeprefix("jobpipe: ").rstrip("\n")


@pytest.fixture
async def used(serve, store):
    """The file of a service that has run a hundred jobs and was killed with one more held."""
    service = await serve(WORKERS=1)
    jobs = [{"id": f"job-{index:03}", "payload": "x" * 200} for index in range(100)]
    assert (await service.http.post("/enqueue/bulk", json=jobs)).status_code == 202
    await service.enqueue("active", payload={"until": "/never"})
    await service.runs("active")
    await service.kill()
    return store


def in_one_file(path):
    """Write SQLite's log into the database, so that the file is all there is, and every page of it is in use."""
    connection = apsw.Connection(str(path))
    connection.execute("pragma journal_mode=delete").fetchall()
    connection.execute("vacuum")
    connection.close()


# --- two processes ----------------------------------------------------------------------------------------------------


async def test_a_second_process_on_the_same_file_is_refused_and_told_who_has_it(serve, tmp_path, store):
    """Also when it calls the file by another name. The first one is not disturbed."""
    service = await serve()
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.db"
    link.symlink_to(store)

    plain = await refused(tmp_path)
    linked = await refused(tmp_path, STORE=f"sqlite:{link}")

    assert plain.startswith(f"jobs.db is in use by another jobpipe (process {service.process.pid}): ")
    assert linked.startswith(f"{link} is in use by another jobpipe (process {service.process.pid}): ")
    await service.enqueue("still", "echo", payload="well")
    assert (await service.job("still", wait=PATIENCE))["result"] == "well"


async def test_a_hard_link_to_the_file_is_refused(serve, tmp_path, store):
    """Also while nobody has the file: what a crashed process left beside one name would be missed by the other."""
    service = await serve()
    link = tmp_path / "link.db"
    link.hardlink_to(store)
    while_used = await refused(tmp_path, STORE=f"sqlite:{link}")
    await service.enqueue("still", "echo", payload="well")
    assert (await service.job("still", wait=PATIENCE))["result"] == "well"
    await service.kill()
    by_link = await refused(tmp_path, STORE=f"sqlite:{link}")
    by_name = await refused(tmp_path)
    link.unlink()
    again = await serve()

    assert [said.partition(":")[0] for said in (while_used, by_link, by_name)] == [
        f"{link} has 2 names (hard links), and SQLite keeps a log beside each",
        f"{link} has 2 names (hard links), and SQLite keeps a log beside each",
        "jobs.db has 2 names (hard links), and SQLite keeps a log beside each",
    ]
    assert (await again.job("still"))["status"] == "done"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
async def test_a_file_that_is_mounted_alone_is_refused(tmp_path, store):
    """As `docker run -v ./jobs.db:/data/jobs.db` does: the log would stay in the container."""
    for name in ("jobs.db", "a b.db"):
        (tmp_path / name).touch()
    mount = "mount --bind jobs.db 'a b.db' && exec \"$@\""
    entered = await trio.run_process(
        ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-m", "jobpipe", "serve"],
        cwd=tmp_path,
        env=os.environ | {"JOBPIPE_STORE": "sqlite:a b.db", "JOBPIPE_PORT": "0"},
        capture_stderr=True,
        check=False,
    )
    if b"unshare" in entered.stderr or b"mount" in entered.stderr.split(b"\n")[0][:6]:
        pytest.skip("mounting is not allowed here")

    assert entered.returncode == 2
    assert entered.stderr.startswith(b"jobpipe: a b.db is mounted as a single file")


async def test_two_processes_on_two_files_do_not_mind_each_other(serve):
    services = [await serve(STORE=f"sqlite:{name}.db") for name in ("one", "two")]

    for service in services:
        await service.enqueue("job", "echo")
        assert (await service.job("job", wait=PATIENCE))["status"] == "done"


async def test_what_a_dead_process_left_behind_is_no_obstacle(serve, used):
    """Its lock, which names a process that may be anybody's by now, and SQLite's log."""
    lock = used.with_name("jobs.db.lock")
    assert lock.exists()
    lock.write_text(f"{os.getpid()}\n")

    service = await serve()

    assert await service.said("recovered 1 jobs")
    assert (await service.job("active"))["status"] in ("queued", "running")


# --- files that it can use --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["new.db", "empty.db", "- Ärger?x=1#y%20.db"])
async def test_a_file_that_is_not_there_or_empty_becomes_a_store(serve, tmp_path, name):
    path = tmp_path / name
    if name == "empty.db":
        path.touch()
    service = await serve(STORE=f"sqlite:{name}")
    await service.enqueue("job", "echo")
    await service.job("job", wait=PATIENCE)
    service.signal(signal.SIGTERM)

    assert await service.ended() == 0
    assert read_jobs(path)["job"]["status"] == "done"
    assert {file.name for file in tmp_path.iterdir()} == {name, f"{name}.lock"}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_new_files_are_for_their_owner_alone(serve, tmp_path, umask):
    """The database, its log and its lock, whatever the umask."""
    before = os.umask(umask)
    try:
        service = await serve(STORE="sqlite:new.db")
    finally:
        os.umask(before)
    await service.enqueue("job", "echo")
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.glob("new.db*")}

    assert modes == dict.fromkeys(["new.db", "new.db-wal", "new.db-shm", "new.db.lock"], 0o600)


@pytest.mark.parametrize(("mode", "told"), [(0o640, False), (0o644, True)])
async def test_an_existing_file_keeps_its_mode(serve, used, mode, told):
    """Somebody may have chosen it; the log says when everybody may read it."""
    used.chmod(mode)
    service = await serve()
    assert stat.S_IMODE(used.stat().st_mode) == mode
    assert service.has_said("every user of this machine may open the store") == told


# --- files that it must not touch -------------------------------------------------------------------------------------

JUNK = {
    "text": b"Dear diary, today I wrote a file that is no database.\n" * 100,
    "garbage": random.Random(1).randbytes(50_000),
    "a header and garbage": b"SQLite format 3\0" + random.Random(2).randbytes(50_000),
}


@pytest.mark.parametrize("content", JUNK.values(), ids=JUNK.keys())
async def test_a_file_that_is_no_database_is_refused(tmp_path, store, content):
    store.write_bytes(content)

    said = await refused(tmp_path)

    assert said.startswith(("jobs.db is not a SQLite database: ", "jobs.db is corrupt ("))
    assert store.read_bytes() == content


@pytest.mark.parametrize("journal", ["delete", "wal"])
async def test_a_database_of_another_program_is_refused_and_left_as_it_was(tmp_path, store, journal):
    connection = apsw.Connection(str(store))
    connection.execute(f"pragma journal_mode={journal}").fetchall()
    connection.execute(
        "create table diary (line text); insert into diary values ('mine'); pragma user_version=7"
    )
    connection.close()
    before = store.read_bytes()

    said = await refused(tmp_path)

    assert said.startswith("jobs.db is a SQLite database, but not one of jobpipe's: ")
    assert store.read_bytes() == before


async def test_a_store_of_a_newer_version_is_refused_and_left_as_it_was(tmp_path, used):
    in_one_file(used)
    connection = apsw.Connection(str(used))
    connection.execute("pragma user_version=999")
    connection.close()
    before = used.read_bytes()

    said = await refused(tmp_path)

    assert said.startswith("jobs.db was made by a newer jobpipe (schema 999, this one knows ")
    assert used.read_bytes() == before


async def test_a_store_of_an_unreleased_version_is_refused_and_left_as_it_was(tmp_path, used):
    in_one_file(used)
    connection = apsw.Connection(str(used))
    connection.execute("pragma user_version=1")
    connection.close()
    before = used.read_bytes()

    said = await refused(tmp_path)

    assert said == (
        "jobs.db was made by an unreleased version of jobpipe, whose tables no other version reads: "
        "move it away, or name another file in STORE"
    )
    assert used.read_bytes() == before


async def test_a_corrupt_store_is_refused_wherever_the_damage_is(tmp_path, used):
    in_one_file(used)
    sound, garbage, page = used.read_bytes(), random.Random(3).randbytes(4096), 4096
    damaged = {
        "in the first page": sound[:100] + garbage[:1000] + sound[1100:],
        "the second page": sound[:page] + garbage + sound[2 * page :],
        "the last page": sound[:-page] + garbage,
        "cut off": sound[: len(sound) // 2],
    }

    said = {}
    for where, content in damaged.items():
        used.write_bytes(content)
        said[where] = await refused(tmp_path)
        assert used.read_bytes() == content

    assert [where for where, line in said.items() if not line.startswith("jobs.db is corrupt (")] == []


# --- paths and permissions --------------------------------------------------------------------------------------------


async def test_a_path_that_cannot_hold_a_database_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")

    assert (await refused(tmp_path, STORE="sqlite:folder")).startswith("folder is a directory: ")
    assert (await refused(tmp_path, STORE="sqlite:no/such/jobs.db")).startswith("no/such does not exist: ")
    assert (await refused(tmp_path, STORE="sqlite:pipe")).startswith("pipe is not a regular file: ")


async def test_a_file_without_permission_is_refused(tmp_path, used):
    used.chmod(0o444)
    read_only = await refused(tmp_path, powerless=True)
    used.chmod(0)
    closed = await refused(tmp_path, powerless=True)

    assert [said.partition(": ")[0] for said in (read_only, closed)] == [
        "no permission to read and write jobs.db"
    ] * 2


@pytest.mark.parametrize("mode", [0o555, 0o000])
async def test_a_folder_without_permission_is_refused(tmp_path, mode):
    folder = tmp_path / "locked"
    folder.mkdir(mode=mode)
    try:
        said = await refused(tmp_path, powerless=True, STORE=f"sqlite:{folder}/jobs.db")
    finally:
        folder.chmod(0o755)

    assert said.startswith(f"no permission to write in {folder}: ")


async def test_a_lock_or_a_log_without_permission_is_refused(tmp_path, used):
    """As after a start by root: the database was given back, what lies beside it was not."""
    lock, wal = used.with_name("jobs.db.lock"), used.with_name("jobs.db-wal")
    lock.chmod(0)
    locked = await refused(tmp_path, powerless=True)
    lock.chmod(0o644)
    wal.chmod(0)
    logged = await refused(tmp_path, powerless=True)

    assert "jobs.db.lock (Permission denied)" in locked
    assert logged.startswith("jobs.db cannot be used now (")
