"""How the store stands, for `/metrics`: asked with a time limit, and left out where it does not answer."""

from collections import defaultdict
from collections.abc import Sequence

import msgspec
import structlog
import trio

from jobpipe.engine.node import Node
from jobpipe.engine.tallies import OTHER
from jobpipe.errors import StoreError
from jobpipe.job import ENDED, Status
from jobpipe.store.base import QUEUES, QueueState

PATIENCE = 2.0
"""Seconds that all of it may take: whoever scrapes waits for ten, as a rule."""

PAGES = 5
"""The most pages of queues that are read; the jobs of the queues behind them count as those of others."""

LIVE = tuple(status for status in Status if status not in ENDED)

log = structlog.get_logger("jobpipe")


class Standing(msgspec.Struct, frozen=True):
    """What the store says, by the labels of queues and kinds."""

    jobs: dict[tuple[str, Status], int]
    oldest: dict[str, float]
    """by queue: for how many seconds the job that has been ready the longest waits; 0: none is"""
    paused: dict[str, bool]
    """by queue, those named `OTHER` left out"""
    unserved: dict[str, int]
    """by kind: ready jobs that no live node serves"""


async def standing(node: Node) -> Standing | None:
    """Ask the store; None: it has not answered within `PATIENCE` seconds, or cannot be read."""
    with trio.move_on_after(PATIENCE):
        try:
            return await _asked(node)
        except StoreError as error:
            log.debug("the store cannot be read for /metrics", error=str(error))
        except Exception:
            log.exception("what the store has cannot be told in /metrics")
    return None


async def _asked(node: Node) -> Standing:
    whole = (await node.store.overview(node.registry.served)).counts
    states = await _queues(node)
    unserved: defaultdict[str, int] = defaultdict(int)
    for one in await node.served.unserved():
        unserved[node.tallies.kinds.of(one.kind)] += one.jobs
    return of_queues(node, states, whole, unserved)


async def _queues(node: Node) -> Sequence[QueueState]:
    """The queues, those with the most jobs first: names that are new to this node are given in this order."""
    states: list[QueueState] = []
    for _ in range(PAGES):
        page = await node.store.queues(QUEUES, states[-1].name if states else "")
        states += page
        if len(page) < QUEUES:
            break
    return sorted(states, key=_live, reverse=True)


def _live(state: QueueState) -> int:
    return sum(state.counts.get(status, 0) for status in LIVE)


def of_queues(
    node: Node, states: Sequence[QueueState], whole: dict[Status, int], unserved: dict[str, int]
) -> Standing:
    """What the states of queues come to by their labels. `whole`: how many jobs there are in each status."""
    now, rest = node.clock.now(), dict(whole)
    jobs: dict[tuple[str, Status], int] = {}
    oldest: dict[str, float] = {}
    paused: dict[str, bool] = {}
    for state in states:
        label = node.tallies.queues.of(state.name)
        age = 0.0 if state.oldest_queued_at is None else max(now - state.oldest_queued_at, 0.0)
        oldest[label] = max(age, oldest.get(label, 0.0))
        if label == OTHER:
            continue
        paused[label] = state.paused
        for status in LIVE:
            jobs[label, status] = count = state.counts.get(status, 0)
            rest[status] = rest.get(status, 0) - count
    # Read a moment earlier than the queues: what has moved since must not come out below zero.
    jobs |= {(OTHER, status): count for status in LIVE if (count := rest.get(status, 0)) > 0}
    return Standing(jobs, oldest, paused, unserved)
