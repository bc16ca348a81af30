"""Scenes in which everything happens at once, drawn from a seed; each ends with the witness's check."""

import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio
from structlog.testing import capture_logs

from jobpipe.clock import Clock, VirtualClock, WallClock
from jobpipe.engine.node import Node
from jobpipe.errors import Draining, StoreUnavailable
from jobpipe.job import ENDED, NO_OPTIONS, Backoff, NewJob, Options, Status
from jobpipe.settings import Settings
from jobpipe.store.base import NO_FACTS, OTHERS, Batch, NodeFacts, Receipts, Rescued, Store
from jobpipe.store.memory import MemoryStore
from jobpipe.store.sqlite import open_sqlite
from tests.race.witness import Step, Witness

T = TypeVar("T")

QUEUES = ("x", "y")


class Tempo(msgspec.Struct, frozen=True):
    """How long things take: long in virtual time, as short as can be in real time."""

    beat: float
    """seconds that the usual step of a handler or client takes"""
    lease: float
    patience: float
    """seconds after which a scene has hung"""


VIRTUAL = Tempo(beat=1.0, lease=15.0, patience=600.0)
REAL = Tempo(beat=0.004, lease=0.6, patience=30.0)


class SlowStore(MemoryStore):
    """A memory store whose commits wait for their turn, as they do at SQLite's writer.

    With `durable`, its nodes think that it outlives them, as here it does: so they hand back while they drain.
    """

    def __init__(self, dice: random.Random, *, durable: bool) -> None:
        super().__init__()
        self._dice, self.durable = dice, durable

    async def exchange(self, batch: Batch) -> Receipts:
        await trio.sleep(self._dice.choice([0, 0, 0.1, 0.5]) * self._dice.random())
        return await super().exchange(batch)


@asynccontextmanager
async def opened(kind: str, seed: int, folder: Path | None) -> AsyncIterator[Store]:
    """The store of a scene: `memory`, `lasting` or `sqlite`."""
    if folder is not None:
        async with open_sqlite(folder / "jobs.db", sync="normal") as store:
            yield store
    else:
        yield SlowStore(random.Random(seed), durable=kind == "lasting")


class Stage:
    """One store, the nodes on it one after another or side by side, and the clients that ask them."""

    def __init__(self, seed: int, store: Store, clock: Clock, tempo: Tempo) -> None:
        self.seed, self.store, self.clock, self.tempo = seed, store, clock, tempo
        self.witness = Witness()
        self.rng = self.dice("stage")
        self._crashed: set[Node] = set()
        self._asking: dict[trio.CancelScope, Node] = {}

    def dice(self, who: str) -> random.Random:
        """Randomness of one's own, so that what one draws depends on no schedule."""
        return random.Random(f"{self.seed} {who}")

    def node(self, name: str, store: Store | None = None, **settings: Any) -> Node:
        usual: dict[str, Any] = {
            "store": "memory:",
            "max_backlog": 1_000_000,
            "lease": self.tempo.lease,
            "workers": self.rng.randint(1, 4),
            "queue_size": self.rng.choice([0, 1, 3, 8]),
            "grace": self.rng.choice([0, 1, 30]) * self.tempo.beat,
        }
        dice = self.dice(f"queues of {name}")
        usual["queues"] = dice.choice([(), ((QUEUES[0], 3), (OTHERS, 1))])
        if (usual | settings)["workers"] > 1:
            usual["reserve"] = dice.choice([(), ((QUEUES[-1], 1),)])
        node = Node(
            Settings(**(usual | settings)),
            store or self.store,
            self.witness.registry(name),
            self.clock,
            name=name,
            rng=self.dice(name),
        )
        self.witness.nodes.append(node)
        return node

    async def live(
        self,
        node: Node,
        life: trio.CancelScope,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run a node until it has drained, or until its life is cancelled, which is its crash."""
        with life:
            async with trio.open_nursery() as nursery:
                rescued = await nursery.start(node.run)
                self.witness.saw_rescued(rescued)
                ended = [one for one in self.witness.nodes if one is not node]
                if rescued and all(one.phase == "stopped" for one in ended):
                    self.witness.fault("left behind by an orderly stop", [one.id for one in rescued])
                task_status.started()
        if life.cancelled_caught:
            # Whoever asks it gets no answer either.
            self._crashed.add(node)
            for scope, asked in self._asking.items():
                if asked is node:
                    scope.cancel()

    async def ask(
        self, node: Node, question: Callable[[], Awaitable[T]], patience: float = math.inf
    ) -> T | None:
        """The answer; None when the node crashed before, or the patience ran out."""
        with trio.move_on_after(0 if node in self._crashed else patience) as scope:
            self._asking[scope] = node
            try:
                return await question()
            finally:
                del self._asking[scope]
        return None

    async def enqueue(
        self, node: Node, jobs: Sequence[NewJob], *, atomic: bool = False, patience: float = math.inf
    ) -> bool:
        """Store jobs, and see at once that what was acknowledged is there; False: the node drains."""
        answered = False

        async def add() -> bool:
            nonlocal answered
            try:
                receipts = await node.backlog.enqueue(jobs, atomic=atomic)
            except (Draining, StoreUnavailable) as refusal:
                answered = True
                self.witness.not_added(jobs)
                return not isinstance(refusal, Draining)
            answered = True
            self.witness.add(jobs, receipts)
            return True

        going = await self.ask(node, add, patience)
        if not answered:
            self.witness.gave_up(jobs, atomic=atomic)
        elif going:
            for job in jobs:
                there = job.id not in self.witness.stored or await self.store.get(job.id) is not None
                if not there and job.id not in self.witness.deleted:
                    self.witness.fault("acknowledged before it was stored", job.id)
        return going is not False

    async def end_of(self, node: Node, job_id: str) -> Status | None:
        """The status of a job once it has ended, as `?wait=` tells it: also of an end that another node wrote."""
        with node.events.watch(job_id) as watch:
            while (job := await self.store.get(job_id)) is not None and job.status not in ENDED:
                with trio.move_on_after(10 * self.tempo.beat):
                    await watch.ended()
                if node.phase == "stopped":
                    break
        return None if job is None else job.status

    async def all_ended(self, node: Node) -> None:
        """Return when every job has ended: without patience, the scene has hung, and the check says on what."""
        with trio.move_on_after(self.tempo.patience):
            for job_id in sorted(self.witness.open_jobs()):
                await self.end_of(node, job_id)


def plan(dice: random.Random, tempo: Tempo) -> tuple[list[Step], Options]:
    """What a job's runs do, and what is asked for it: it may take several of them, and each plan has an end."""
    beat = tempo.beat
    options = Options(backoff=Backoff(base=beat, cap=2 * beat))
    last = dice.choices(["done", "work", "fail", "error"], [5, 3, 1, 1])[0]
    steps: list[Any] = [(last, dice.random() * beat)]
    for _ in range(dice.choice([0, 0, 0, 1, 1, 2])):
        steps.insert(0, (dice.choice(["error", "retry", "snooze"]), dice.random() * beat))
    if dice.random() < 0.15:
        options = msgspec.structs.replace(options, timeout=3 * beat)
        steps.insert(0, ("hang", dice.random() * beat))
    if dice.random() < 0.2:
        options = msgspec.structs.replace(options, on_crash=dice.choice(["retry", "fail"]))
    return steps, NO_OPTIONS if len(steps) == 1 and last == "done" else options


def job(stage: Stage, dice: random.Random, job_id: str, **changes: Any) -> NewJob:
    steps, options = plan(dice, stage.tempo)
    now = stage.clock.now()
    usual = NewJob(
        id=job_id,
        kind="race",
        queue=dice.choice(QUEUES),
        payload=msgspec.json.encode(steps),
        priority=dice.randint(0, 2),
        max_retries=dice.choice([0, 3, 3]),
        created_at=now,
        run_at=now + (stage.tempo.beat * dice.random() if dice.random() < 0.2 else 0.0),
        options=options,
    )
    return msgspec.structs.replace(usual, **changes)


# --- one node after another, and every verb at once -------------------------------------------------------------------


class Storm:
    """Clients that enqueue, cancel, retry, delete, pause; nodes that drain, stop, crash, and are taken for dead."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.witness, self.beat = stage, stage.witness, stage.tempo.beat
        self.node = stage.node("n0")
        self._known: list[str] = []

    async def play(self) -> None:
        async with trio.open_nursery() as nursery:
            lives = trio.Event()
            nursery.start_soon(self._nodes, lives)
            async with trio.open_nursery() as clients:
                for number in range(3):
                    clients.start_soon(self._enqueuer, f"e{number}")
                for person in (self._canceller, self._retrier, self._deleter, self._pauser, self._inspector):
                    clients.start_soon(person)
            for queue in QUEUES:
                await self.stage.store.resume(queue)
            lives.set()

    async def _nodes(self, no_more: trio.Event) -> None:
        """Two nodes that end too early, one way or another, and one that finishes everything."""
        dice = self.stage.dice("nodes")
        for number in range(2):
            life = trio.CancelScope()
            async with trio.open_nursery() as nursery:
                await nursery.start(self.stage.live, self.node, life)
                await trio.sleep(dice.uniform(2, 15) * self.beat)
                match dice.choice(["drain", "drain", "stop", "late stop", "crash"]):
                    case "drain":
                        self.node.drain()
                        await trio.sleep(self.node.settings.grace)
                        self.node.stop()
                    case "late stop":
                        self.node.drain()
                        await trio.sleep(dice.random() * self.beat)
                        self.node.stop()
                    case "stop":
                        self.node.stop()
                    case "crash":
                        life.cancel()
            self.node = self.stage.node(f"n{number + 1}")
        async with trio.open_nursery() as nursery:
            await nursery.start(self.stage.live, self.node, trio.CancelScope())
            await no_more.wait()
            await trio.sleep(2 * self.beat)  # what clients gave up on may still be on its way into the store
            for queue in QUEUES:
                await self.node.control.resume(queue)
            await self.stage.all_ended(self.node)
            self.node.drain()

    async def _enqueuer(self, name: str) -> None:
        dice = self.stage.dice(name)
        for number in range(8):
            await trio.sleep(dice.random() * 3 * self.beat)
            ids = [f"{name}-{number}-{part}" for part in range(dice.choice([1, 1, 1, 4]))]
            jobs = [job(self.stage, dice, job_id) for job_id in ids]
            atomic, hurried = dice.random() < 0.5, dice.random() < 0.25
            patience = dice.choice([0, 0.001]) if hurried else math.inf
            if dice.random() < 0.2 and not hurried:
                await self._twice(jobs, atomic=atomic)
            else:
                await self.stage.enqueue(self.node, jobs, atomic=atomic, patience=patience)
            self._known += [job_id for job_id in ids if job_id in self.witness.stored]

    async def _twice(self, jobs: Sequence[NewJob], *, atomic: bool) -> None:
        """The same request from two clients: it makes one job."""
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(lambda: self.stage.enqueue(self.node, jobs, atomic=atomic))

    async def _some_jobs(self, who: str, times: int) -> AsyncIterator[str]:
        dice = self.stage.dice(who)
        for _ in range(times):
            await trio.sleep(dice.random() * 4 * self.beat)
            if self._known:
                yield dice.choice(self._known[-6:])

    async def _canceller(self) -> None:
        async for job_id in self._some_jobs("canceller", 8):
            node, begun = self.node, self.witness.retried[job_id]
            change = await self.stage.ask(node, lambda: node.control.cancel(job_id))  # noqa: B023 - awaited here
            if change is None:
                continue
            self.witness.changed("cancel", change)
            if change.verdict == "changed":
                status = await self.stage.ask(node, lambda: self.stage.end_of(node, job_id), 5 * self.beat)  # noqa: B023 - awaited here
                if status is Status.CANCELLED and self.witness.retried[job_id] == begun:
                    self.witness.told_cancelled(job_id)

    async def _retrier(self) -> None:
        async for job_id in self._some_jobs("retrier", 6):
            self.witness.changed("retry", await self.node.control.retry(job_id))

    async def _deleter(self) -> None:
        async for job_id in self._some_jobs("deleter", 4):
            self.witness.changed("delete", await self.node.control.delete(job_id))

    async def _pauser(self) -> None:
        dice = self.stage.dice("pauser")
        for _ in range(4):
            await trio.sleep(dice.random() * 4 * self.beat)
            queue = dice.choice(QUEUES)
            await self.node.control.pause(queue)
            await trio.sleep(dice.random() * 3 * self.beat)
            await self.node.control.resume(queue)

    async def _inspector(self) -> None:
        """Takes the node for dead although it lives, as a node with a wrong clock would."""
        dice = self.stage.dice("inspector")
        if dice.random() < 0.4:
            await trio.sleep(dice.random() * 20 * self.beat)
            await self.stage.store.leave(self.node.name)
            taken = await self.stage.store.rescue("inspector", self.stage.clock.now())
            self.witness.saw_rescued(taken, by_force=True)


async def storm(stage: Stage) -> None:
    """Everything at once on one node, which ends early twice; the third finishes."""
    await Storm(stage).play()


# --- two nodes on one store -------------------------------------------------------------------------------------------


class Line(MemoryStore):
    """One node's own line to a store that others use too, which can hang: before a commit, or after it."""

    def __init__(self, store: MemoryStore, *, durable: bool) -> None:
        super().__init__()
        self.__dict__.update(store.__dict__)
        self.durable = durable
        self._before = self._after = trio.Event()
        self._before.set()

    async def hang(self, seconds: float, *, after: bool) -> None:
        """Answer nothing for so long. With `after`, what is asked takes effect at once all the same."""
        event = trio.Event()
        if after:
            self._after = event
        else:
            self._before = event
        await trio.sleep(seconds)
        event.set()

    async def exchange(self, batch: Batch) -> Receipts:
        await self._before.wait()
        receipts = await super().exchange(batch)
        await self._after.wait()
        return receipts

    async def join(
        self,
        node: str,
        now: float,
        lease_until: float,
        kinds: frozenset[str] = frozenset(),
        queues: frozenset[str] | None = None,
        facts: NodeFacts = NO_FACTS,
    ) -> None:
        await self._before.wait()
        await super().join(node, now, lease_until, kinds, queues, facts)
        await self._after.wait()

    async def rescue(self, node: str, now: float) -> Sequence[Rescued]:
        await self._before.wait()
        return await super().rescue(node, now)


class Pair:
    """Two nodes side by side, of which one is cut off, crashes or drains; jobs that run longer than a lease."""

    def __init__(self, stage: Stage, ill: Sequence[str]) -> None:
        self.stage, self.witness, self.ill = stage, stage.witness, ill
        assert isinstance(stage.store, MemoryStore)
        self.lines = [Line(stage.store, durable=True) for _ in range(2)]

    async def play(self) -> None:
        dice, lease = self.stage.dice("pair"), self.stage.tempo.lease
        nodes = [
            self.stage.node(f"n{number}", line, workers=2, grace=lease)
            for number, line in enumerate(self.lines)
        ]
        life = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            await nursery.start(self.stage.live, nodes[0], life)
            await nursery.start(self.stage.live, nodes[1], trio.CancelScope())
            async with trio.open_nursery() as clients:
                for node in nodes:
                    clients.start_soon(self._enqueuer, node)
                await trio.sleep(dice.uniform(0, 6))
                match dice.choice(self.ill):
                    case "cut off":
                        await self.lines[0].hang(dice.uniform(1, 3) * lease, after=False)
                    case "answered late":
                        await self.lines[0].hang(dice.uniform(1, 3) * lease, after=True)
                    case "crash":
                        life.cancel()
                    case "drain":
                        nodes[0].drain()
                    case _:
                        pass
            await trio.sleep(3 * lease)  # so that what came late has come
            await self.stage.all_ended(nodes[1])
            for node in nodes:
                node.drain()

    async def _enqueuer(self, node: Node) -> None:
        dice = self.stage.dice(f"client of {node.name}")
        for number in range(5):
            await trio.sleep(dice.random() * 3)
            one = job(self.stage, dice, f"{node.name}-{number}")
            if dice.random() < 0.4:
                steps = [("work", dice.uniform(1, 2.5) * self.stage.tempo.lease)]
                one = msgspec.structs.replace(one, payload=msgspec.json.encode(steps), options=NO_OPTIONS)
            await self.stage.enqueue(node, [one])


ILLS = ("none", "cut off", "crash", "drain")


async def pair(stage: Stage) -> None:
    """Two nodes on one store: no run overlaps another though one of them is cut off, crashes or drains."""
    await Pair(stage, ILLS).play()


async def late_answers(stage: Stage) -> None:
    """Two nodes on one store, of which one is answered only when its lease is over."""
    await Pair(stage, ["answered late"]).play()


SCENES: dict[str, Callable[[Stage], Awaitable[None]]] = {
    "storm": storm,
    "pair": pair,
    "late_answers": late_answers,
}


async def played(scene: str, kind: str, seed: int, folder: Path | None = None) -> Witness:
    """Play a scene under a seed, and judge it; raises `Faults`."""
    tempo = VIRTUAL if folder is None else REAL
    clock: Clock = VirtualClock() if folder is None else WallClock()
    with capture_logs() as log:
        async with opened(kind, seed, folder) as store:
            stage = Stage(seed, store, clock, tempo)
            with trio.move_on_after(2 * tempo.patience) as scope:
                await SCENES[scene](stage)
            if scope.cancelled_caught:
                stage.witness.fault("hung", f"after {scope.deadline}")
            for line in log:
                if line["event"] == "recovered a job of a dead node":
                    stage.witness.rescued[line["job"]] += 1
            await stage.witness.check(store)
    return stage.witness
