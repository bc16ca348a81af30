"""How a real process starts, or says in a line why it does not; what it logs; and `jobpipe health`."""

import json
import signal
import socket
from datetime import datetime

import httpx
import pytest

from tests.process.running import PATIENCE, jobpipe, read_jobs

pytestmark = pytest.mark.slow


def refusal(ended):
    """The one message of a service that did not start."""
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert ended.stderr.startswith("jobpipe: ")
    return ended.stderr.removeprefix("jobpipe: ").rstrip("\n")


# --- what it says -----------------------------------------------------------------------------------------------------


async def test_the_start_says_where_it_listens_which_store_which_kinds_and_how_many_workers(
    serve,
):
    service = await serve(WORKERS=3, QUEUE_SIZE=5)

    listens, store, kinds, workers = service.lines
    port = httpx.URL(service.url).port
    assert listens["event"] == f"jobpipe {await version(service)} listens on http://127.0.0.1:{port}"
    assert (store["event"], store["durable"]) == ("store: sqlite:jobs.db", True)
    assert kinds["event"] == "kinds: block-loop, bomb, chatty, demo, echo, stubborn, stuck, thread, work"
    assert (workers["event"], workers["queue_size"]) == ("workers: 3", 5)


async def version(service):
    return (await service.http.get("/health")).json()["version"]


async def test_it_listens_on_ipv6_too(serve):
    service = await serve(HOST="::1")

    assert service.url.startswith("http://[::1]:")
    assert (await service.http.get("/health")).json()["status"] == "ok"


async def test_json_lines_tell_time_level_event_and_of_a_job_its_id_kind_and_attempt(serve):
    service = await serve()
    await service.enqueue("bad", payload={"fail": True})
    await service.enqueue("good", "chatty")
    await service.all_ended("bad", "good")

    failed = await service.said("job failed")
    said = await service.said("the handler has something to say")
    assert failed.items() >= {"level": "warning", "job": "bad", "kind": "work", "attempt": 1}.items()
    assert (
        said.items()
        >= {"level": "info", "job": "good", "kind": "chatty", "attempt": 1, "more": "this"}.items()
    )
    assert all(datetime.fromisoformat(line["timestamp"]).tzinfo for line in service.lines)


async def test_lines_for_people_are_one_a_line_and_without_colours_in_a_file(launch):
    service = await launch(LOG_FORMAT="console")
    while not any("workers: " in line["event"] for line in service.lines):
        await service.more()
    service.signal(signal.SIGTERM)
    assert await service.ended() == 0

    lines = [line["event"] for line in service.lines]
    service.expected_errors = {""}  # they are no JSON
    assert ["[info     ]" in line for line in lines] == [True] * 6
    assert not any("\x1b" in line for line in lines)


async def test_it_is_quiet_under_load(serve):
    """Of jobs that end well nothing is said at info level, and of requests neither."""
    service = await serve()
    answer = await service.http.post("/enqueue/bulk", json=[{"id": f"e{index}"} for index in range(500)])
    assert answer.status_code == 202
    for index in range(50):
        await service.enqueue(f"o{index}")
    await service.all_ended("e499", *(f"o{index}" for index in range(50)))
    service.signal(signal.SIGTERM)
    assert await service.ended() == 0

    assert len(service.lines) == 4 + 2  # those of the start and of the drain
    assert service.lines[-1]["event"] == "drained"


# --- handlers ---------------------------------------------------------------------------------------------------------


async def test_handlers_are_looked_up_in_the_working_directory(serve, tmp_path):
    package = tmp_path / "shop"
    package.mkdir()
    module = (
        "from jobpipe.handlers.registry import handler\n"
        "@handler('greet')\n"
        "def greet(payload: str): return 'hello ' + payload\n"
    )
    (package / "mail.py").write_text(module)
    service = await serve(HANDLERS="shop.mail", PYTHONPATH="")

    await service.enqueue("g", "greet", payload="you")

    assert (await service.job("g", wait=PATIENCE))["result"] == "hello you"


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            "raise RuntimeError('not today')",
            ["cannot import 'broken'", "RuntimeError", "not today", "broken.py"],
        ),
        ("def f(:\n", ["cannot import 'broken'", "SyntaxError", "broken.py", "line 1"]),
        ("raise SystemExit(0)", ["cannot import 'broken'", "SystemExit"]),
        (
            "from jobpipe.handlers.registry import handler\n@handler('echo')\ndef mine(payload): ...",
            ["'echo'", "broken.mine"],
        ),
        (None, ["cannot import 'broken'", "there is no module 'broken'"]),
    ],
)
async def test_handlers_that_cannot_be_used_are_refused_in_words(tmp_path, module, words):
    if module is not None:
        (tmp_path / "broken.py").write_text(module)

    said = refusal(await jobpipe(tmp_path, "serve", HANDLERS="broken"))

    assert len(said.splitlines()) < 15
    assert [word for word in words if word not in said] == []
    assert not (tmp_path / "jobs.db").exists()


async def test_a_module_without_handlers_is_a_warning(serve, tmp_path):
    (tmp_path / "empty.py").write_text("")
    service = await serve(HANDLERS="traced,empty")

    warning = await service.said("HANDLERS: ")
    assert (warning["level"], "module 'empty' defines no handler" in warning["event"]) == ("warning", True)


async def test_the_shipped_kinds_can_be_turned_off(serve):
    service = await serve(SHIPPED_KINDS="off")
    forgotten = await service.http.post("/enqueue", json={})
    named = await service.http.post("/enqueue", json={"kind": "work", "payload": {}})

    assert (forgotten.status_code, named.status_code) == (422, 202)
    kinds = (await service.said("kinds: "))["event"].removeprefix("kinds: ").split(", ")
    assert {"work", "thread"} < set(kinds)
    assert not {"echo", "demo"} & set(kinds)


async def test_what_handlers_log_comes_through_with_their_job(serve, tmp_path):
    """Whatever they log with, in JSON as for people."""
    module = (
        "import asyncio, logging\n"
        "from jobpipe.handlers.registry import handler\n"
        "shop = logging.getLogger('shop')\n"
        "@handler('tells')\n"
        "async def tells(payload): shop.info('sent %s', payload)\n"
        "@handler('tells_in_asyncio')\n"
        "def tells_in_asyncio(payload):\n"
        "    async def work(): shop.info('sent %s', payload)\n"
        "    asyncio.run(work())\n"
    )
    (tmp_path / "shop.py").write_text(module)
    service = await serve(HANDLERS="shop")
    await service.enqueue("a", "tells", payload="one")
    await service.enqueue("b", "tells_in_asyncio", payload="two")
    first, second = await service.said("sent one"), await service.said("sent two")

    assert (
        first.items()
        >= {"level": "info", "logger": "shop", "job": "a", "kind": "tells", "attempt": 1}.items()
    )
    assert (
        second.items() >= {"level": "info", "logger": "shop", "job": "b", "kind": "tells_in_asyncio"}.items()
    )


# --- waiting for the store --------------------------------------------------------------------------------------------


async def test_a_second_process_waits_for_the_file_of_the_first(serve, launch):
    """And starts when that has ended."""
    first = await serve()
    second = await launch(WAIT_FOR_STORE="5m")
    line = await second.said("waiting for the store")
    first.signal(signal.SIGTERM)
    assert await first.ended() == 0
    await second.starts()

    assert (line["level"], "in use by another jobpipe" in line["error"]) == ("warning", True)
    assert 290 <= line["seconds_left"] <= 300
    assert (await second.http.get("/health")).json()["status"] == "ok"


async def test_a_signal_ends_the_wait(serve, launch):
    await serve()
    second = await launch("--wait")
    await second.said("waiting for the store")
    second.signal(signal.SIGTERM)

    assert await second.ended() == 0
    assert second.lines[-1]["event"] == "SIGTERM: no longer waiting for the store"


async def test_a_wait_that_is_over_ends_as_without_one(serve, tmp_path):
    await serve()

    for wait in ("0", "50ms"):
        ended = await jobpipe(tmp_path, "serve", WAIT_FOR_STORE=wait)
        assert ended.returncode == 2
        assert "jobs.db is in use by another jobpipe" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("store", ["sqlite:no/such/folder/jobs.db", "sqlite:."])
async def test_what_will_not_pass_by_itself_is_not_waited_for(tmp_path, store):
    said = refusal(await jobpipe(tmp_path, "serve", "--wait", "10m", STORE=store))

    assert "waiting" not in said


# --- what is wrong around it ------------------------------------------------------------------------------------------


async def test_wrong_settings_are_told_all_at_once(tmp_path):
    said = refusal(
        await jobpipe(tmp_path, "serve", "--grace", "soon", WORKERS="0", STORE="mysql:x", JOBPIPE_WORKER=3)
    )

    assert [line.partition(":")[0].strip() for line in said.splitlines()] == [
        "the settings are wrong",
        "JOBPIPE_WORKER",
        "WORKERS",
        "STORE",
        "GRACE",
    ]
    assert list(tmp_path.iterdir()) == []


async def test_a_port_that_is_taken_is_told_before_any_job_is_touched(serve, tmp_path, store):
    service = await serve(WORKERS=1)
    await service.enqueue("active", payload={"until": "/never"})
    await service.runs("active")
    await service.kill()
    before = store.read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        said = refusal(await jobpipe(tmp_path, "serve", PORT=port))

    assert said.startswith(f"cannot listen on 127.0.0.1:{port} (")
    assert "\n" not in said
    assert store.read_bytes() == before
    assert read_jobs(store)["active"]["held"] == 1


async def test_an_address_that_is_not_its_own_is_told(tmp_path):
    said = refusal(await jobpipe(tmp_path, "serve", HOST="192.0.2.1"))

    assert said.startswith("cannot listen on 192.0.2.1:0 (")
    assert "\n" not in said


# --- jobpipe health ---------------------------------------------------------------------------------------------------


async def test_health_of_a_service_that_works_that_drains_and_that_is_gone(serve, tmp_path, gate):
    service = await serve(WORKERS=2)
    await service.enqueue("active", payload={"until": gate.path})
    await service.runs("active")

    well = await jobpipe(tmp_path, "health", "--url", service.url)
    service.signal(signal.SIGTERM)
    await service.said("SIGTERM: draining")
    draining = await jobpipe(tmp_path, "health", JOBPIPE_URL=service.url)
    gate.open()
    assert await service.ended() == 0
    gone = await jobpipe(tmp_path, "health", PORT=httpx.URL(service.url).port)

    assert (well.returncode, well.stdout) == (0, f"ok: 2 workers, 1 busy, 0 queued ({service.url})\n")
    assert draining.returncode == 1
    assert draining.stdout.startswith("draining: ")
    assert (gone.returncode, gone.stdout) == (1, f"nothing listens there ({service.url})\n")
    assert [ended.stderr for ended in (well, draining, gone)] == [""] * 3


async def test_python_m_jobpipe_reads_its_settings_from_the_folder_it_starts_in(serve, tmp_path):
    (tmp_path / ".env").write_text("WORKERS=7\n")
    service = await serve()

    assert json.loads((await service.http.get("/health")).text)["workers"] == 7
