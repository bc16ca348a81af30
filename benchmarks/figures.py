"""The figures: each measures jobpipe and its floor in turns, A B A B, and yields its rows."""

import dataclasses
import http.client
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.features import FEATURES, USUAL, Amounts, Feature
from benchmarks.measuring import quantile, turns
from benchmarks.processes import Server, bare_route, run, service, starting
from benchmarks.report import Aim, Row

SETTLES = 120.0
"""Seconds that the last jobs may take to be settled."""

_number = itertools.count(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    folder: Path
    repeats: int = 5
    seconds: float = 3.0
    """of load, each time"""
    lines: int = 50_000
    """of NDJSON"""
    backlogs: Sequence[int] = (5_000, 20_000, 100_000)
    queue_sizes: Sequence[int] = (64, 1000)
    samples: int = 200
    waiting: int = 1_000_000
    """jobs that wait, for the memory"""
    rows: Sequence[int] = (1_000, 10_000, 100_000, 1_000_000)
    batches: int = 40
    behind: int = 0
    """jobs that lie behind; 0: none of that is measured"""
    features: Amounts = USUAL
    """how much of each feature; its repeats are those of the plan"""

    def database(self) -> Path:
        """A new file."""
        return self.folder / f"jobs-{next(_number)}.db"

    @contextmanager
    def store(self) -> Iterator[str]:
        """The URL of a new file, which is deleted in the end."""
        path = self.database()
        try:
            yield f"sqlite:{path}"
        finally:
            delete(path)


Figure = Callable[[Plan], Iterator[Row]]


def delete(path: Path) -> None:
    """Delete a database and the files beside it."""
    for one in path.parent.glob(f"{path.name}*"):
        one.unlink()


def rate(server: Server, connections: int, seconds: float) -> float:
    """Acknowledged jobs a second."""
    told = loaded(server, connections, seconds)
    return float(told["answers"]["202"] / told["seconds"])


def loaded(server: Server, connections: int, seconds: float, queue: str = "default") -> dict[str, Any]:
    """Load a server; every answer must be 202."""
    told: dict[str, Any] = run("load", server.port, connections, seconds, f"l{next(_number)}", queue)
    assert set(told["answers"]) == {"202"}, told["answers"]
    return told


def enqueue(plan: Plan) -> Iterator[Row]:
    """Durable enqueues, a request each, beside a bare Quart-Trio route; the queue is paused, as it would be full."""
    with service(plan.database(), paused=("default",)) as ours, bare_route(plan.folder) as floor:
        for connections, least in ((16, 1.3), (1, 0.85)):
            sides = turns(
                plan.repeats,
                partial(rate, ours, connections, plan.seconds),
                partial(rate, floor, connections, plan.seconds),
            )
            name = f"durable enqueue, {connections} connection{'s'[: connections - 1]}, beside a bare route"
            yield Row(name, *sides, aim=Aim(ratio=least))


def stream(server: Server, lines: int) -> float:
    """Lines a second, sent as one stream of NDJSON."""
    told = run("bulk_client", server.port, f"b{next(_number)}", lines)
    assert told["stored"] == lines, told
    return float(lines / told["seconds"])


def bulk(plan: Plan) -> Iterator[Row]:
    """NDJSON over HTTP, the queue paused, beside a loop that decodes and inserts."""
    plain = plan.database()

    def floor() -> float:
        told = run("floor_bulk", plain, f"b{next(_number)}", plan.lines)
        return float(plan.lines / told["seconds"])

    with service(plan.database(), paused=("default",)) as ours:
        sides = turns(plan.repeats, lambda: stream(ours, plan.lines), floor)
    yield Row(f"bulk enqueue, {plan.lines:,} lines, beside decode + insert", *sides, aim=Aim(ratio=0.6))


def drained(program: str, file: Callable[[], Path], jobs: int, size: int, sync: str) -> float:
    """Jobs a second; the file is made for it, and deleted."""
    path = file()
    where = f"sqlite:{path}" if program == "drain" else path
    told = run(program, where, jobs, size, sync)
    delete(path)
    return float(jobs / told["seconds"])


def drain(plan: Plan, sync: str = "full") -> Iterator[Row]:
    """No-op jobs that wait, run by a node in a process without HTTP, beside the plain pipeline."""
    for size in plan.queue_sizes:
        for jobs in plan.backlogs:
            sides = turns(
                plan.repeats,
                partial(drained, "drain", plan.database, jobs, size, sync),
                partial(drained, "floor_drain", plan.database, jobs, size, sync),
            )
            aim = Aim(ratio=0.8) if sync == "full" else Aim()
            yield Row(f"drain of {jobs:,}, QUEUE_SIZE {size:,}, SYNC={sync}", *sides, aim=aim)


def drain_normal(plan: Plan) -> Iterator[Row]:
    """The same with SYNC=normal on both sides."""
    yield from drain(plan, "normal")


def latency(plan: Plan) -> Iterator[Row]:
    """Enqueue to the handler's first line on an idle node (in one process), and over HTTP, beside a commit alone."""
    runs = [run("latency", plan.database(), plan.samples) for _ in range(plan.repeats)]
    with service(plan.database(), handlers="benchmarks.handlers") as server:
        asked = [over_http(server, plan.samples) for _ in range(plan.repeats)]
    for share, label, most in ((0.5, "median", 1.0), (0.99, "p99", 4.0)):
        starts = [quantile(one["starts"], share) * 1000 for one in runs]
        commits = [quantile(one["commits"], share) * 1000 for one in runs]
        requests = [quantile(waits, share) * 1000 for waits in asked]
        yield Row(
            f"enqueue to start, in process, {label}, beside a commit", starts, commits, "ms", Aim(above=most)
        )
        yield Row(f"POST to start, over HTTP, {label}, beside a commit", requests, commits, "ms")


def over_http(server: Server, samples: int) -> list[float]:
    """Seconds from the request to the handler's first line, which the job's result tells."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers, waits = {"Content-Type": "application/json"}, []
    for _ in range(samples):
        time.sleep(0.01)
        job_id = f"stamp-{next(_number)}"
        body = json.dumps({"id": job_id, "kind": "stamp", "queue": "front"})
        began = time.perf_counter()
        connection.request("POST", "/enqueue", body, headers)
        assert connection.getresponse().read()
        connection.request("GET", f"/jobs/{job_id}?wait=10")
        waits.append(json.loads(connection.getresponse().read())["result"] - began)
    connection.close()
    return waits


def done(server: Server, queue: str) -> int:
    """How many jobs of a queue are done, as the service tells."""
    _, told = server.ask("GET", "/queues")
    return sum(one["counts"].get("done", 0) for one in told["queues"] if one["name"] == queue)


def whole_way(server: Server, seconds: float) -> float:
    """Jobs a second from the first request until the last job is settled."""
    before = done(server, "front")
    told = loaded(server, 64, seconds, "front")
    jobs = told["answers"]["202"]
    until = time.perf_counter() + SETTLES
    while done(server, "front") < before + jobs:
        assert time.perf_counter() < until, "the jobs are not settled"
        time.sleep(0.01)
    return float(jobs / (time.perf_counter() - told["began"]))


def whole(plan: Plan) -> Iterator[Row]:
    """Enqueue, run and settle with 64 connections, beside the same with the queue paused."""
    with (
        service(plan.database()) as ours,
        service(plan.database(), paused=("front",)) as floor,
    ):
        sides = turns(
            plan.repeats,
            lambda: whole_way(ours, plan.seconds),
            lambda: acknowledged(floor, plan.seconds),
        )
    yield Row("enqueue, run, settle, 64 connections, beside enqueue", *sides, aim=Aim(ratio=0.8))


def acknowledged(server: Server, seconds: float) -> float:
    """Jobs a second with 64 connections, while the queue `front` is paused."""
    told = loaded(server, 64, seconds, "front")
    return float(told["answers"]["202"] / told["seconds"])


def resident(path: Path) -> float:
    """MB of a service that has started on a file, answered a health check and taken a job."""
    with service(path) as server:
        server.ask("GET", "/health")
        time.sleep(0.5)  # what it does once at its start is over
        return server.memory()


def memory(plan: Plan) -> Iterator[Row]:
    """Resident memory of the service: at rest beside a bare route, with many jobs waiting beside at rest."""
    full = filled(plan, "waiting", plan.waiting)

    def bare() -> float:
        with bare_route(plan.folder) as server:
            time.sleep(0.5)
            return server.memory()

    rounds = [(resident(plan.database()), bare(), resident(full)) for _ in range(min(plan.repeats, 3))]
    rest, route, waiting = ([one[side] for one in rounds] for side in range(3))
    yield Row("memory at rest, beside a bare route", rest, route, "MB", Aim(at_most=70))
    yield Row(f"memory with {plan.waiting:,} waiting, beside at rest", waiting, rest, "MB", Aim(above=20))


def filled(plan: Plan, state: str, jobs: int) -> Path:
    """A file with so many jobs in a state, in the queue `default`, which is paused."""
    path = plan.folder / f"filled-{state}-{jobs}.db"
    if not path.exists():
        run("fill", path, state, jobs)
    return path


def start_and_exit(plan: Plan) -> Iterator[Row]:
    """From the process's start to the first 202, and from SIGTERM to the end of an idle one, beside a bare route."""

    def ours() -> tuple[float, float]:
        with starting(plan.database()) as server:
            begun = server.first_202()
            time.sleep(0.5)
            return begun, server.stop()

    def floor() -> tuple[float, float]:
        with bare_route(plan.folder, wait=False) as server:
            begun = server.first_202()
            time.sleep(0.5)
            return begun, server.stop()

    rounds = [(ours(), floor()) for _ in range(plan.repeats)]
    for index, name, most in ((0, "start to first 202", 0.8), (1, "SIGTERM to exit, idle", 0.3)):
        yield Row(
            f"{name}, beside a bare route",
            [one[index] for one, _ in rounds],
            [other[index] for _, other in rounds],
            "s",
            Aim(at_most=most),
        )


def growth(plan: Plan) -> Iterator[Row]:
    """What a job costs in the store at more and more waiting rows, beside the fewest."""
    costs = run("growth", plan.folder, plan.repeats, plan.batches, *plan.rows)
    for verb, by_rows in costs.items():
        for rows, cost in by_rows.items():
            least = by_rows[str(plan.rows[0])]
            yield Row(f"{verb} a job at {int(rows):,} rows, beside {plan.rows[0]:,}", cost, least, "us")


def behind(plan: Plan) -> Iterator[Row]:
    """Each of the above with many jobs behind it, beside the same on a new file."""
    for state in ("scheduled", "waiting", "finished") if plan.behind else ():
        full = filled(plan, state, plan.behind)
        for row in (*_service_behind(plan, full), *_drain_behind(plan, full), *_latency_behind(plan, full)):
            yield dataclasses.replace(row, name=f"{row.name}, {plan.behind:,} {state}", aim=Aim(within=0.1))


def copy(plan: Plan, full: Path) -> Path:
    """A copy of a file that nobody has open."""
    return Path(shutil.copy(full, plan.database()))


def _service_behind(plan: Plan, full: Path) -> Iterator[Row]:
    paused = ("default",)
    with (
        service(copy(plan, full), paused=paused) as ours,
        service(plan.database(), paused=paused) as floor,
    ):
        measures: dict[str, Callable[[Server], float]] = {
            "enqueue, 16 connections": lambda server: rate(server, 16, plan.seconds),
            "enqueue, 1 connection": lambda server: rate(server, 1, plan.seconds),
            "bulk": lambda server: stream(server, plan.lines),
            "enqueue, run, settle, 64": lambda server: whole_way(server, plan.seconds),
        }
        for name, measure in measures.items():
            sides = turns(plan.repeats, partial(measure, ours), partial(measure, floor))
            yield Row(name, *sides)


def _drain_behind(plan: Plan, full: Path) -> Iterator[Row]:
    jobs = sorted(plan.backlogs)[len(plan.backlogs) // 2]
    for size in plan.queue_sizes:
        sides = turns(
            plan.repeats,
            partial(drained, "drain", partial(copy, plan, full), jobs, size, "full"),
            partial(drained, "drain", plan.database, jobs, size, "full"),
        )
        yield Row(f"drain of {jobs:,}, {size:,}", *sides)


def _latency_behind(plan: Plan, full: Path) -> Iterator[Row]:
    def started(path: Path) -> float:
        return quantile(run("latency", path, plan.samples)["starts"], 0.5) * 1000

    sides = turns(plan.repeats, lambda: started(copy(plan, full)), lambda: started(plan.database()))
    yield Row("enqueue to start, median", *sides, unit="ms")


def over_a_file(feature: Feature, plan: Plan) -> Iterator[Row]:
    """What a feature costs on SQLite."""
    return feature(dataclasses.replace(plan.features, repeats=plan.repeats), plan.store)


FIGURES: dict[str, Figure] = {
    "enqueue": enqueue,
    "bulk": bulk,
    "drain": drain,
    "drain-normal": drain_normal,
    "latency": latency,
    "whole": whole,
    "memory": memory,
    "start": start_and_exit,
    "growth": growth,
    "behind": behind,
    **{name: partial(over_a_file, feature) for name, feature in FEATURES.items()},
}
