"""The figures: every side does the same work in turn, on the same server, in a database of its own."""

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.features import FEATURES, USUAL, Amounts, Feature
from benchmarks.measuring import quantile
from benchmarks.postgres.crew import Crew, Side, crew
from benchmarks.postgres.server import Server, settle_down

NODE = Side("jobpipe", "node", asks_inside=True)
FLOOR = Side("floor", "floor")
OTHERS = (Side("PgQueuer", "pgqueuer"), Side("Procrastinate", "procrastinate"))
PEERS = tuple(side for side in OTHERS if importlib.util.find_spec(side.program))
"""Those that are installed."""

PATIENCE = 300.0
"""Seconds for jobs that must all run."""

LARGE = 1000
"""The larger channel."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    server: Server
    folder: Path
    nodes: Sequence[int] = (1, 2, 4)
    repeats: int = 3
    backlog: int = 50_000
    seconds: float = 3.0
    """of each measurement over time"""
    rates: Sequence[int] = (200, 1000)
    """jobs a second of a steady load"""
    features: Amounts = USUAL
    """how much of each feature; its repeats are those of the plan"""


@dataclasses.dataclass(frozen=True)
class Aim:
    """What a figure should be. None: not asked."""

    of_floor: float | None = None
    """at least this share of the floor"""
    ahead: bool = False
    """ahead of all peers"""
    at_most: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure: repeat by repeat, for each side that has it."""

    name: str
    sides: dict[str, Sequence[float]]
    unit: str = "/s"
    aim: Aim = Aim()


Figure = Callable[[Plan], Iterator[Row]]


def row(
    plan: Plan, name: str, measures: dict[str, Callable[[], float]], unit: str = "/s", aim: Aim = Aim()
) -> Row:
    """Measure all sides in turns."""
    rounds = [{side: measure() for side, measure in measures.items()} for _ in range(plan.repeats)]
    return Row(name, {side: [one[side] for one in rounds] for side in measures}, unit, aim)


def drained(plan: Plan, side: Side, nodes: int) -> float:
    """Jobs a second, from the moment that every process has begun one until the last begins, or the time is over."""
    with plan.server.database() as url:
        side.fill(url, plan.backlog)
        settle_down(url)
        with crew(plan.folder, [(side, ("work",))] * nodes, url, plan.backlog + nodes) as workers:
            workers.wait_for(plan.backlog, 2 * plan.seconds)
        return rate(workers)


def rate(workers: Crew) -> float:
    """Jobs a second of all, from when all were at it."""
    begun = [sorted(at for at, _ in process.begun()) for process in workers.processes]
    begun = [times for times in begun if times]
    first = max(times[0] for times in begun)
    times = sorted(at for one in begun for at in one if at >= first)
    return (len(times) - 1) / (times[-1] - times[0])


def drain(plan: Plan) -> Iterator[Row]:
    """No-op jobs that wait."""
    for size in (NODE.size, LARGE):
        for nodes in plan.nodes:
            sides = [dataclasses.replace(side, size=size) for side in (NODE, FLOOR)]
            sides += PEERS if size == NODE.size else ()
            measures = {side.name: partial(drained, plan, side, nodes) for side in sides}
            name = f"drain of {plan.backlog:,}, QUEUE_SIZE {size:,}, {_nodes(nodes)}"
            yield row(plan, name, measures, aim=Aim(of_floor=0.7, ahead=True))


def enqueued(plan: Plan, side: Side, nodes: int, tasks: int, size: int) -> float:
    """Jobs a second, stored by so many processes while none runs any."""
    with plan.server.database() as url:
        side.fill(url, 0)
        with crew(plan.folder, [(side, ("enqueue", plan.seconds, tasks, size))] * nodes, url, 1) as clients:
            told = [process.told() for process in clients.processes]
        return sum(one["jobs"] / one["seconds"] for one in told)


def enqueue(plan: Plan) -> Iterator[Row]:
    """Jobs one by one from one task and from sixteen, and a thousand a call."""
    for tasks, size, name in (
        (1, 1, "one at a time"),
        (16, 1, "one a call, 16 tasks"),
        (1, LARGE, "1,000 a call"),
    ):
        for nodes in plan.nodes:
            measures = {
                side.name: partial(enqueued, plan, side, nodes, tasks, size) for side in (NODE, FLOOR, *PEERS)
            }
            yield row(plan, f"enqueue, {name}, {_nodes(nodes)}", measures, aim=Aim(of_floor=0.7, ahead=True))


def asked(plan: Plan, side: Side, role: str, nodes: int, per_second: float) -> dict[str, float]:
    """Ask at a rate: p50 and p99 of the enqueue, and from its call to the job's start, in ms."""
    jobs = int(per_second * plan.seconds)
    workers = nodes - side.asks_inside
    commands: list[tuple[Side, tuple[object, ...]]] = [(side, ("work",))] * workers
    commands.append((side, (role, per_second, plan.seconds)))
    with plan.server.database() as url:
        side.fill(url, 0)
        settle_down(url)
        with crew(plan.folder, commands, url, 2 * jobs + 10) as all_of_them:
            waits = all_of_them.processes[-1].told()["waits"]
            if side is not FLOOR:
                all_of_them.wait_for(jobs, 2 * plan.seconds)
        starts = [at - asked for process in all_of_them.processes for at, asked in process.begun() if asked]
    if side is FLOOR:
        starts = waits
    return quantiles(starts if len(starts) >= jobs else [math.nan])


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median and p99 in ms."""
    return {"median": quantile(seconds, 0.5) * 1000, "p99": quantile(seconds, 0.99) * 1000}


def started(
    plan: Plan, name: str, roles: dict[str, tuple[Side, str]], nodes: int, per_second: float
) -> Iterator[Row]:
    """Rows of the median and the p99 from the call to the start."""
    rounds = [
        {label: asked(plan, side, role, nodes, per_second) for label, (side, role) in roles.items()}
        for _ in range(plan.repeats)
    ]
    for share in ("median", "p99"):
        sides = {label: [one[label][share] for one in rounds] for label in roles}
        yield Row(f"{name}, {_nodes(nodes)}, {share}", sides, "ms", Aim(ahead=True))


def latency(plan: Plan) -> Iterator[Row]:
    """From the call to enqueue to the handler's first line, idle and under load; beside a commit alone."""
    others = {side.name: (side, "asking") for side in (FLOOR, *PEERS)}
    for nodes in plan.nodes:
        idle = "enqueue to start, idle"
        yield from started(plan, idle, {"jobpipe": (NODE, "asking")} | others, nodes, 50)
    if max(plan.nodes) > 1:
        yield from started(plan, "the same, at a busy node", {"jobpipe": (NODE, "asking-busy")}, 2, 50)
    yield from started(plan, "the same, by SQL", {"jobpipe": (NODE, "asking-sql")}, 1, 50)
    for per_second in plan.rates:
        for nodes in plan.nodes:
            name = f"enqueue to start, {per_second:,} a second"
            yield from started(plan, name, {"jobpipe": (NODE, "asking")} | others, nodes, per_second)


def beside_drain(plan: Plan, side: Side, nodes: int) -> float:
    """p99 in ms of an enqueue, one at a time, as long as a backlog is drained."""
    with plan.server.database() as url:
        side.fill(url, plan.backlog)
        settle_down(url)
        workers = nodes - side.asks_inside
        commands: list[tuple[Side, tuple[object, ...]]] = [(side, ("work",))] * workers
        commands.append((side, ("asking", 100, plan.seconds)))
        with crew(plan.folder, commands, url, plan.backlog + 1000) as all_of_them:
            waits = all_of_them.processes[-1].told()["waits"]
        return quantiles(waits)["p99"]


def beside(plan: Plan) -> Iterator[Row]:
    """An enqueue while everybody drains: it must not wait behind outcomes."""
    for size in (NODE.size, LARGE):
        for nodes in plan.nodes:
            sides = [dataclasses.replace(side, size=size) for side in (NODE, FLOOR)]
            sides += PEERS if size == NODE.size else ()
            long = dataclasses.replace(plan, backlog=4 * plan.backlog)
            measures = {side.name: partial(beside_drain, long, side, nodes) for side in sides}
            name = f"enqueue under drain, QUEUE_SIZE {size:,}, {_nodes(nodes)}, p99"
            yield row(plan, name, measures, "ms", Aim(at_most=50))


def _nodes(count: int) -> str:
    return f"{count} node{'s'[: count - 1]}"


def of_a_feature(feature: Feature, plan: Plan) -> Iterator[Row]:
    """What a feature costs with one node, beside the same without it."""
    amounts = dataclasses.replace(plan.features, repeats=plan.repeats)
    for one in feature(amounts, plan.server.database):
        yield Row(one.name, {NODE.name: one.ours, FLOOR.name: one.floor}, one.unit)


def ended(plan: Plan, jobs: int, nodes: int, *shape: object) -> float:
    """Seconds from the first of so many jobs until the last begins."""
    with plan.server.database() as url:
        NODE.fill(url, jobs, *shape)
        settle_down(url)
        with crew(plan.folder, [(NODE, ("work",))] * nodes, url, jobs) as workers:
            if not workers.wait_for(jobs, PATIENCE):
                raise TimeoutError(f"{workers.count()} of {jobs} jobs began")
            begun = [at for process in workers.processes for at, _ in process.begun()]
    return max(begun) - min(begun)


def fan_in(plan: Plan) -> Iterator[Row]:
    """One large group, until the job that waits for it runs, beside as many jobs, with the most nodes."""
    jobs, nodes = plan.features.fan_in + 1, max(plan.nodes)
    measures = {
        NODE.name: partial(ended, plan, jobs, nodes, "groups", jobs),
        FLOOR.name: partial(ended, plan, jobs, nodes),
    }
    yield row(plan, f"fan-in of {plan.features.fan_in:,}, {_nodes(nodes)}", measures, "s")


FIGURES: dict[str, Figure] = {
    "drain": drain,
    "enqueue": enqueue,
    "latency": latency,
    "beside": beside,
    **{name: partial(of_a_feature, feature) for name, feature in FEATURES.items()},
    "fan-in": fan_in,
}
