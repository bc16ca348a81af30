"""SIGINT and SIGTERM: the order in which a real process ends, and what becomes of its jobs."""

import json
import signal
import socket

import httpx
import pytest
import trio

from jobpipe.service import HTTP_GRACE
from tests.process.running import PATIENCE, nothing_runs, read_jobs, until


def jobs_of(*job_ids, **payload):
    return [{"id": job_id, "kind": "work", "payload": payload} for job_id in job_ids]


def events_of(trace, job_id):
    return [line["event"] for line in trace() if line["job"] == job_id]


# --- the first signal -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        *(pytest.param(other, marks=pytest.mark.slow) for other in (signal.SIGTERM, signal.SIGHUP)),
    ],
)
async def test_the_first_signal_drains(serve, trace, gate, store, number):
    """Nothing new is taken, active jobs finish, and the others, which no worker has, run after the next start."""
    service = await serve(WORKERS=2, QUEUE_SIZE=4)
    ids = [f"j{index}" for index in range(10)]
    answer = await service.http.post("/enqueue/bulk", json=jobs_of(*ids, until=gate.path))
    assert answer.status_code == 202
    await service.runs("j0", "j1")

    service.signal(number)
    said = await service.said(f"{number.name}: draining")
    health = await service.http.get("/health")
    refused = await service.http.post("/enqueue", json={})
    gate.open()

    assert await service.ended() == 0
    assert said["running"] == 2
    assert (health.status_code, health.json()["status"]) == (503, "draining")
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    assert "Retry-After" in health.headers
    assert "Retry-After" in refused.headers
    account = await service.said("drained")
    assert (account["finished"], account["handed_back"], account["abandoned"]) == (2, 0, [])
    assert {job_id for job_id, job in read_jobs(store).items() if job["status"] == "done"} == {"j0", "j1"}
    assert all(job["attempt"] == 0 for job in read_jobs(store).values() if job["status"] == "queued")
    assert nothing_runs(store)
    assert [line["event"] for line in trace()].count("start") == 2

    service = await serve()
    ended = await service.all_ended(*ids)

    assert not service.has_said("recovered ")
    assert {(job["status"], job["attempt"]) for job in ended.values()} == {("done", 1)}


@pytest.mark.slow
async def test_under_nohup_a_hangup_changes_nothing(launch):
    """SIGHUP is ignored from the start, and stays so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the process inherits that
    try:
        service = await launch()
    finally:
        signal.signal(signal.SIGHUP, before)
    await service.starts()
    service.signal(signal.SIGHUP)
    await service.enqueue("after")

    assert (await service.job("after", wait=PATIENCE))["status"] == "done"
    service.signal(signal.SIGTERM)
    assert await service.ended() == 0
    assert not service.has_said("SIGHUP")


@pytest.mark.slow
async def test_while_it_drains_every_way_in_is_shut_and_jobs_can_still_be_looked_at_and_cancelled(
    serve, gate
):
    service = await serve(WORKERS=1)
    await service.enqueue("active", payload={"until": gate.path})
    await service.enqueue("waiting")
    await service.runs("active")

    service.signal(signal.SIGTERM)
    await service.said("SIGTERM: draining")
    array = await service.http.post("/enqueue/bulk", json=jobs_of("new"))
    stream = await service.http.post(
        "/enqueue/bulk", content=b'{"id": "new"}\n', headers={"Content-Type": "application/x-ndjson"}
    )
    seen = await service.http.get("/jobs/active")
    absent = await service.http.get("/jobs/new")
    cancelled = await service.http.post("/jobs/active/cancel", params={"wait": PATIENCE})

    assert await service.ended() == 0
    assert (array.status_code, array.json()["code"]) == (503, "draining")
    assert "Retry-After" in array.headers
    assert [json.loads(line)["code"] for line in stream.text.splitlines()] == ["draining"]
    assert (seen.status_code, seen.json()["status"]) == (200, "running")
    assert absent.status_code == 404
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")


@pytest.mark.slow
async def test_a_stream_that_is_under_way_is_refused_from_the_drain_on_line_by_line(serve, store):
    service = await serve()
    send, receive = trio.open_memory_channel[bytes](0)
    lines: list[dict[str, object]] = []

    async def stream():
        headers = {"Content-Type": "application/x-ndjson"}
        async with (
            receive,
            service.http.stream("POST", "/enqueue/bulk", content=receive, headers=headers) as answer,
        ):
            lines.extend([json.loads(line) async for line in answer.aiter_lines()])

    async def stored(job_id):
        return (await service.http.get(f"/jobs/{job_id}")).status_code == 200

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream)
        async with send:
            await send.send(b'{"id": "before", "kind": "stubborn"}\n')
            await until(lambda: stored("before"))
            await service.runs("before")
            service.signal(signal.SIGTERM)
            await service.said("SIGTERM: draining")
            await send.send(b'{"id": "after"}\n')

    assert [(line.get("id"), line.get("code"), line.get("line")) for line in lines] == [
        ("before", None, None),
        (None, "draining", 2),
    ]
    await service.kill()
    assert set(read_jobs(store)) == {"before"}


@pytest.mark.slow
async def test_a_memory_store_lets_the_jobs_that_it_took_run_before_the_end(serve, trace, gate):
    """Nothing else keeps them; as many as MAX_BACKLOG allows, here the size of the channel."""
    service = await serve(STORE="memory:", WORKERS=1, QUEUE_SIZE=4)
    ids = ["active", "b1", "b2", "b3", "b4"]
    await service.enqueue("active", payload={"until": gate.path})
    await service.runs("active")
    for job_id in ids[1:]:
        await service.enqueue(job_id)

    service.signal(signal.SIGINT)
    await service.said("SIGINT: draining")
    gate.open()

    assert await service.ended() == 0
    assert {job_id: events_of(trace, job_id) for job_id in ids} == {
        job_id: ["start", "done"] for job_id in ids
    }
    account = await service.said("drained")
    assert (account["finished"], account["handed_back"], account["abandoned"]) == (5, 0, [])


@pytest.mark.slow
async def test_a_signal_that_comes_twice_at_once_is_one(serve, gate, trace):
    """As with Ctrl+C under `just` or `timeout`, which hand it on to a process that had it already."""
    service = await serve()
    await service.enqueue("active", payload={"until": gate.path})
    await service.runs("active")

    service.signal(signal.SIGINT)
    service.signal(signal.SIGINT)
    await service.said("SIGINT: draining")
    service.signal(signal.SIGTERM)
    gate.open()

    assert await service.ended() == 0
    assert events_of(trace, "active") == ["start", "done"]
    assert not service.has_said("stopping")


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
@pytest.mark.slow
@pytest.mark.slow
async def test_a_signal_during_the_start_ends_it_before_any_job_runs(
    serve, launch, store, trace, tmp_path, again
):
    service = await serve(WORKERS=1)
    await service.http.post("/queues/default/pause")
    await service.enqueue("waiting")
    await service.http.post("/queues/default/resume")
    service.signal(signal.SIGKILL)
    await service.ended()
    begun = trace()
    slow = (
        "import pathlib, sys, time\n"
        "print('importing', file=sys.stderr, flush=True)\n"
        "while not pathlib.Path('go-on').exists(): time.sleep(0.01)\n"
    )
    (tmp_path / "slow.py").write_text(slow)

    service = await launch(HANDLERS="traced,slow")
    service.expected_errors = {"importing"}
    await service.said("importing")
    service.signal(signal.SIGTERM)
    if again:
        await service.signal_again(signal.SIGTERM)
    (tmp_path / "go-on").touch()

    assert await service.ended() == 0
    assert trace() == begun
    assert nothing_runs(store)


# --- the second signal, and the end of the grace ----------------------------------------------------------------------


@pytest.mark.slow
async def test_the_second_signal_cancels_what_runs_and_its_cleanup_is_waited_for(serve, trace, gate, store):
    service = await serve(WORKERS=1)
    await service.enqueue("active", payload={"until": "/never", "cleanup_until": gate.path})
    await service.enqueue("waiting")
    await service.runs("active")

    service.signal(signal.SIGINT)
    await service.said("SIGINT: draining")
    await service.signal_again(signal.SIGTERM)
    await service.said("stopping")
    assert events_of(trace, "active") == ["start"]
    gate.open()

    assert await service.ended() == 0
    assert events_of(trace, "active") == ["start", "cancelled"]
    account = await service.said("drained")
    assert (account["finished"], account["handed_back"], account["abandoned"]) == (0, 1, [])
    assert {job_id: (job["status"], job["attempt"]) for job_id, job in read_jobs(store).items()} == {
        "active": ("queued", 0),
        "waiting": ("queued", 0),
    }
    assert nothing_runs(store)


@pytest.mark.slow
async def test_when_the_grace_is_over_what_runs_is_cancelled_and_goes_back(serve, trace, store):
    service = await serve(WORKERS=2, GRACE="300ms")
    await service.enqueue("long", payload={"until": "/never"}, max_retries=0)
    await service.enqueue("short", payload={"until": "/never"}, max_retries=0)
    await service.runs("long", "short")

    service.signal(signal.SIGTERM)

    assert await service.ended() == 0
    assert service.has_said("stopping")
    assert [events_of(trace, job_id) for job_id in ("long", "short")] == [["start", "cancelled"]] * 2
    assert (await service.said("drained"))["handed_back"] == 2
    assert [(job["status"], job["attempt"]) for job in read_jobs(store).values()] == [("queued", 0)] * 2
    assert nothing_runs(store)


@pytest.mark.slow
@pytest.mark.slow
async def test_a_job_that_was_interrupted_runs_again_with_all_its_attempts(serve, gate):
    service = await serve(GRACE=0)
    await service.enqueue("active", payload={"until": gate.path}, max_retries=0)
    await service.runs("active")
    service.signal(signal.SIGTERM)
    assert await service.ended() == 0
    gate.open()

    service = await serve()
    job = await service.job("active", wait=PATIENCE)

    assert (job["status"], job["attempt"]) == ("done", 1)
    assert [(one["number"], one["outcome"]) for one in job["attempts"]] == [(1, "interrupted"), (1, "done")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
async def test_signals_at_the_very_end_change_nothing(serve, store, number):
    """They come when everything is over: the process ends as it would have."""
    service = await serve()
    await service.enqueue("one")
    await service.job("one", wait=PATIENCE)

    service.signal(number)
    await service.said("drained")
    while service.process.poll() is None:
        service.signal(number)
        await trio.sleep(0.001)

    assert await service.ended() == 0
    assert service.lines[-1]["event"] == "drained"
    assert nothing_runs(store)


# --- handlers that would not end --------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_the_third_signal_abandons_by_name_what_ignores_its_cancel(serve, trace, store):
    """A handler under a shield, a cleanup that does not end, a thread: exit code 70, and their jobs go back."""
    service = await serve(WORKERS=5)
    service.expected_errors = {"abandoned"}
    await service.enqueue("shielded", "stubborn")
    await service.enqueue("cleaning", payload={"until": "/never", "cleanup_until": "/never"})
    await service.enqueue("thread", "stuck")
    await service.enqueue("good", payload={"until": "/never"})
    await service.enqueue("unwanted", "stubborn")
    await service.runs("shielded", "cleaning", "thread", "good", "unwanted")
    assert (await service.http.post("/jobs/unwanted/cancel")).status_code == 202

    service.signal(signal.SIGINT)
    await service.said("SIGINT: draining")
    await service.signal_again(signal.SIGINT)
    await service.said("stopping")
    await service.signal_again(signal.SIGINT)

    assert await service.ended() == 70
    account = await service.said("abandoned")
    assert sorted(account["abandoned"]) == [
        "cleaning (work)",
        "shielded (stubborn)",
        "thread (stuck)",
        "unwanted (stubborn)",
    ]
    assert (account["finished"], account["handed_back"]) == (0, 1)
    assert events_of(trace, "good") == ["start", "cancelled"]
    stored = read_jobs(store)
    assert stored.pop("unwanted")["status"] == "cancelled"
    assert {(job["status"], job["attempt"]) for job in stored.values()} == {("queued", 0)}
    assert nothing_runs(store)


@pytest.mark.slow
@pytest.mark.slow
async def test_a_thread_that_never_ends_holds_up_the_end_only_for_the_cleanup(serve, store):
    service = await serve(GRACE=0, WORKERS=2)
    service.expected_errors = {"abandoned"}
    await service.enqueue("endless", "stuck")
    await service.enqueue("slow", "thread", payload={"seconds": 1})
    await service.runs("endless", "slow")

    service.signal(signal.SIGTERM)

    assert await service.ended() == 70
    account = await service.said("abandoned")
    assert (account["abandoned"], account["handed_back"], account["finished"]) == (["endless (stuck)"], 0, 1)
    assert {job_id: job["status"] for job_id, job in read_jobs(store).items()} == {
        "endless": "queued",
        "slow": "done",
    }


# --- clients that are connected ---------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_who_waits_for_a_job_is_answered_before_the_end(serve, gate):
    """Whether the job finishes in the grace or goes back to the store."""
    service = await serve(WORKERS=1)
    await service.enqueue("active", payload={"until": gate.path})
    await service.enqueue("waiting")
    await service.runs("active")
    answers: dict[str, httpx.Response] = {}

    async def wait(job_id):
        answers[job_id] = await service.http.get(f"/jobs/{job_id}", params={"wait": 600})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "active")
        nursery.start_soon(wait, "waiting")
        await trio.testing.wait_all_tasks_blocked(0.1)
        service.signal(signal.SIGINT)
        await service.said("SIGINT: draining")
        gate.open()

    assert await service.ended() == 0
    assert {job_id: answer.json()["status"] for job_id, answer in answers.items()} == {
        "active": "done",
        "waiting": "queued",
    }


@pytest.mark.slow
async def test_idle_connections_are_closed_at_once(serve):
    """Those that never asked anything, and those kept alive after an answer: they do not spend the grace of HTTP."""
    service = await serve()
    address = ("127.0.0.1", httpx.URL(service.url).port)
    await service.enqueue("one", "echo")
    await service.job("one", wait=PATIENCE)  # the connections of these two stay open
    with socket.create_connection(address):
        await service.http.get("/health")

        service.signal(signal.SIGTERM)

        with trio.fail_after(HTTP_GRACE):
            assert await service.ended() == 0


@pytest.mark.slow
@pytest.mark.slow
async def test_half_a_request_does_not_hold_up_the_end(serve):
    service = await serve()
    with socket.create_connection(("127.0.0.1", httpx.URL(service.url).port)) as half:
        half.sendall(b"POST /enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        await service.http.get("/health")

        service.signal(signal.SIGTERM)

        assert await service.ended() == 0


@pytest.mark.parametrize("signals", [0, 1])
@pytest.mark.slow
@pytest.mark.slow
async def test_a_client_that_does_not_take_its_answer_does_not_hold_up_the_end(serve, store, signals):
    """When only clients are left, one more signal ends it at once, and the end of the grace changes nothing."""
    service = await serve(MAX_BODY="32MB", GRACE=1)
    await service.enqueue("large", "echo", payload="x" * 20_000_000)
    await service.job("large", wait=PATIENCE)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", httpx.URL(service.url).port))
        deaf.sendall(b"GET /jobs/large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert deaf.recv(12) == b"HTTP/1.1 200"

        service.signal(signal.SIGTERM)
        await service.said("drained")
        for _ in range(signals):
            await service.signal_again(signal.SIGTERM)

        assert await service.ended() == 0

    assert service.lines[-1]["event"] == "drained"
    assert nothing_runs(store)
