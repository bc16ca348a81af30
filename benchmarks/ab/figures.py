"""What can be compared: each figure says how one tree is measured once, over each store that it is meant for."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.ab.compare import Sample, Told, idle_share
from benchmarks.ab.play import WORKERS
from benchmarks.figures import loaded, stream, whole_way
from benchmarks.measuring import quantile
from benchmarks.postgres.crew import Side, crew
from benchmarks.postgres.server import Server as Database
from benchmarks.processes import Server, Tree, run, service, starting

SQLITE, POSTGRES = "sqlite", "postgres"
STORES = {SQLITE: "SQLite", POSTGRES: "PostgreSQL"}

QUEUE_SIZE = 64

RESTS = 0.5
"""Seconds after which a service has done what it does once at its start."""

NEVER = math.inf
"""When a node was busy that ran no job."""

_number = itertools.count(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    folder: Path
    database: Callable[[], Database]
    """the server of PostgreSQL, started when it is first asked for"""
    seconds: float = 3.0
    """of load over HTTP, each time"""
    lines: int = 50_000
    """of NDJSON"""
    backlog: int = 20_000
    samples: int = 200
    shared: tuple[int, float] = (16, 0.3)
    """jobs for two nodes, and how many seconds each takes"""
    reports: tuple[int, float] = (60, 1.0)
    """jobs that stand before the urgent one, and how many seconds each takes"""
    mixture: tuple[int, float] = (200, 1.0)
    """jobs of mixed length, and how many seconds the longer half takes"""
    pairs: int | None = None
    """how many of each figure; None: as many as it is meant to have"""
    cpu_pairs: int = 11

    @contextmanager
    def store(self, kind: str) -> Iterator[str]:
        """The URL of a new store, which is taken away in the end."""
        if kind == POSTGRES:
            with self.database().database() as url:
                yield url
            return
        path = self.folder / f"jobs-{next(_number)}.db"
        try:
            yield f"sqlite:{path}"
        finally:
            for file in path.parent.glob(f"{path.name}*"):
                file.unlink()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aim:
    """What a line should be. None: not asked."""

    at_most: float | None = None
    """the newer tree's median, in the line's unit"""
    below: float | None = None
    """the same, and not that much either"""
    ratio: float | None = None
    """at least this much of the older tree's"""


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a case: what it is, beside the name of the case."""

    name: str
    unit: str = "/s"
    aim: Aim = Aim()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured together: one run of a tree tells a sample for each line."""

    name: str
    store: str
    lines: Mapping[str, Line]
    measure: Callable[[Tree], Told]
    pairs: int = 5


Figure = Callable[[Plan, str], Iterator[Case]]


@contextmanager
def served(plan: Plan, store: str, tree: Tree, **more: Any) -> Iterator[Server]:  # noqa: ANN401 - see `service`
    """The service of a tree on a new store."""
    with plan.store(store) as url, service(plan.folder / "-", tree=tree, store=url, **more) as server:
        yield server


def enqueue(plan: Plan, store: str) -> Iterator[Case]:
    """Acknowledged jobs a second over HTTP, a request each; nothing runs."""

    def measure(connections: int, tree: Tree) -> Told:
        with served(plan, store, tree, paused=("default",)) as server:
            worked = server.cpu()
            told = loaded(server, connections, plan.seconds)
            worked = server.cpu() - worked
        jobs = told["answers"]["202"]
        return {"rate": Sample(jobs / told["seconds"], worked / jobs)}

    for connections in (16, 1):
        name = f"durable enqueue, {connections} connection{'s'[: connections - 1]}"
        yield Case(name=name, store=store, lines={"rate": Line("")}, measure=partial(measure, connections))


def bulk(plan: Plan, store: str) -> Iterator[Case]:
    """NDJSON over HTTP in one request; nothing runs."""

    def measure(tree: Tree) -> Told:
        with served(plan, store, tree, paused=("default",)) as server:
            worked = server.cpu()
            rate = stream(server, plan.lines)
            return {"rate": Sample(rate, (server.cpu() - worked) / plan.lines)}

    yield Case(
        name=f"bulk enqueue, {plan.lines:,} lines", store=store, lines={"rate": Line("")}, measure=measure
    )


def drain(plan: Plan, store: str) -> Iterator[Case]:
    """No-op jobs that wait, run by a node without HTTP, until every outcome is written."""

    def measure(tree: Tree) -> Told:
        with plan.store(store) as url:
            told = run("drain", url, plan.backlog, QUEUE_SIZE, "full", tree=tree)
        return {"rate": Sample(plan.backlog / told["seconds"], told["cpu"] / plan.backlog)}

    name = f"drain of {plan.backlog:,}, QUEUE_SIZE {QUEUE_SIZE}"
    yield Case(name=name, store=store, lines={"rate": Line("", aim=Aim(ratio=0.97))}, measure=measure)


def latency(plan: Plan, store: str) -> Iterator[Case]:
    """From enqueue to the handler's first line on an idle node, without HTTP."""

    def measure(tree: Tree) -> Told:
        told = played(plan, store, tree, "latency", plan.samples)
        starts, cpu = told["starts"], told["cpu"] / plan.samples
        return {
            "median": Sample(quantile(starts, 0.5) * 1000, cpu),
            "p99": Sample(quantile(starts, 0.99) * 1000),
        }

    lines = {share: Line(f", {share}", "ms") for share in ("median", "p99")}
    yield Case(name="enqueue to start", store=store, lines=lines, measure=measure)


def whole(plan: Plan, store: str) -> Iterator[Case]:
    """Enqueue over HTTP with 64 connections, run and settle: until the last job is settled."""

    def measure(tree: Tree) -> Told:
        with served(plan, store, tree) as server:
            worked, before = server.cpu(), time.perf_counter()
            rate = whole_way(server, plan.seconds)
            jobs = rate * (time.perf_counter() - before)
            return {"rate": Sample(rate, (server.cpu() - worked) / jobs)}

    name = "enqueue, run, settle, 64 connections"
    yield Case(name=name, store=store, lines={"rate": Line("")}, measure=measure)


def start(plan: Plan, store: str) -> Iterator[Case]:
    """From the process's start to its first 202, its memory at rest, and from SIGTERM to its end."""

    def measure(tree: Tree) -> Told:
        with plan.store(store) as url, starting(plan.folder / "-", tree=tree, store=url) as server:
            begun = server.first_202()
            time.sleep(RESTS)
            memory = server.memory()
            return {"start": Sample(begun), "memory": Sample(memory), "exit": Sample(server.stop())}

    lines = {
        "start": Line("start to first 202", "s"),
        "memory": Line("memory at rest", "MB"),
        "exit": Line("SIGTERM to exit, idle", "s"),
    }
    yield Case(name="", store=store, lines=lines, measure=measure)


def two_nodes(plan: Plan, store: str) -> Iterator[Case]:
    """Jobs that one of two idle nodes is given in one call: until both run some, and until all are done."""
    if store != POSTGRES:
        return
    jobs, seconds = plan.shared

    def measure(tree: Tree) -> Told:
        side = Side("jobpipe", "node", QUEUE_SIZE, tree=tree)
        roles = [(side, ("asking-many", jobs, seconds)), (side, ("work",))]
        with plan.store(store) as url:
            side.fill(url, 0)
            with crew(plan.folder, roles, url, jobs) as nodes:
                asked = nodes.processes[0].told()["asked"]
                if not nodes.wait_for(jobs, 60):
                    raise TimeoutError(f"{nodes.count()} of {jobs} jobs ended")
                runs = [process.begun() for process in nodes.processes]  # (ended, began)
        busy = max(min((began for _, began in of_one), default=NEVER) for of_one in runs)
        done = max(ended for of_one in runs for ended, _ in of_one)
        return {"busy": Sample(busy - asked), "done": Sample(done - asked)}

    lines = {
        "busy": Line(", until both run some", "s", Aim(below=0.5)),
        "done": Line(", until all are done", "s", Aim(below=0.8)),
    }
    name = f"{jobs} jobs of {seconds * 1000:g} ms, 2 nodes"
    yield Case(name=name, store=store, lines=lines, measure=measure, pairs=3)


def urgent(plan: Plan, store: str) -> Iterator[Case]:
    """From enqueue to start of a job of priority 1000 in a queue of its own, behind many long ones of another."""
    jobs, seconds = plan.reports

    def measure(tree: Tree) -> Told:
        return {"wait": Sample(played(plan, store, tree, "urgent", jobs, seconds)["seconds"])}

    lines = {"wait": Line("", "s", Aim(below=1.5))}
    yield Case(
        name=f"urgent behind {jobs} of {seconds:g} s", store=store, lines=lines, measure=measure, pairs=3
    )


def mixed(plan: Plan, store: str) -> Iterator[Case]:
    """Workers that are idle while a job waits; beside tasks that claim one job at a time, in the same run."""
    jobs, seconds = plan.mixture

    def idle(tree: Tree, role: str) -> float:
        runs = played(plan, store, tree, role, jobs, seconds)["runs"]
        if len(runs) != jobs:
            raise ValueError(f"{len(runs)} of {jobs} jobs ran")
        return idle_share(runs, WORKERS)

    def measure(tree: Tree) -> Told:
        ours, pool = idle(tree, "mixed"), idle(tree, "pool")
        return {"idle": Sample(ours * 100), "beside": Sample(ours / pool if pool else math.nan)}

    lines = {
        "idle": Line(", workers idle", "%", Aim(below=2)),
        "beside": Line(", idle beside one-by-one claims", "x", Aim(at_most=1.2)),
    }
    name = f"{jobs} jobs of 1 ms or {seconds:g} s"
    yield Case(name=name, store=store, lines=lines, measure=measure, pairs=2)


def played(plan: Plan, store: str, tree: Tree, role: str, *more: object) -> Any:  # noqa: ANN401 - what the role tells
    """What a node of a tree told of its role, on a new store."""
    with plan.store(store) as url:
        return run("ab.play", role, url, *more, tree=tree)


FIGURES: dict[str, Figure] = {
    "drain": drain,
    "two-nodes": two_nodes,
    "urgent": urgent,
    "mixed": mixed,
    "enqueue": enqueue,
    "bulk": bulk,
    "latency": latency,
    "whole": whole,
    "start": start,
}


def cases(plan: Plan, names: Sequence[str], stores: Sequence[str]) -> Iterator[Case]:
    """All cases of these figures, the stores of one figure after each other."""
    for name in names:
        for store in stores:
            yield from FIGURES[name](plan, store)
