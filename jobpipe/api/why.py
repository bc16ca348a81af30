"""Why a job does not run, in words: all that a claim checks, from the same list that says what the job waits for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from jobpipe.api.holding import found
from jobpipe.api.schemas import AnyCheck, CheckView, WaitsFor, WhyView, rfc3339
from jobpipe.api.waits import waits_for, waits_of
from jobpipe.engine.node import Node
from jobpipe.job import ENDED, WAITING, Job, Status
from jobpipe.obstacles import Check
from jobpipe.store.base import Filter, NodeState

NAMED = 5
"""The most jobs and nodes that a sentence names."""

EXAMPLE: Mapping[str, Any] = {
    "id": "letter-1",
    "status": "queued",
    "answer": "It waits because as many jobs of queue mail run as may: 4 of 4.",
    "waits_for": {"reason": "queue_full", "queue": "mail", "running": 4, "max_running": 4},
    "checks": [
        {"name": "due", "passed": True, "detail": "since 2030-01-31T12:00:00.000Z", "links": {}},
        {
            "name": "queue_limit",
            "passed": False,
            "detail": "4 of 4 run: letter-2, letter-3, letter-4, letter-5",
            "links": {"queue": "/queues/mail", "letter-2": "/jobs/letter-2"},
        },
    ],
}


async def why_of(node: Node, job_id: str) -> WhyView:
    """Why a job is as it is. Raises `Problem` when there is none, or `StoreUnavailable`."""
    job = await found(node, job_id)
    while job.status in WAITING:
        checks = await node.store.checks(job, node.clock.now())
        if checks is not None:
            return await _of_waiting(node, job, checks)
        job = await found(node, job_id)  # it is not as it was read any more
    waits = await waits_of(node, job)
    answer = _of_ended(node, job) if job.status in ENDED else _of_active(job)
    return _view(job, answer, [], waits)


async def _of_waiting(node: Node, job: Job, checks: Sequence[Check]) -> WhyView:
    views = [await _dependencies(node, job)]
    views += [await _check_view(node, job, check) for check in checks]
    if not any(check.claimed for check in checks):
        views += _workers(node, job, await node.store.nodes())
    if job.status is Status.BLOCKED:
        waits = await waits_of(node, job)
    else:
        waits = next(waits_for(one.obstacle) for one in checks if one.obstacle is not None)
    return _view(job, _answer(job, waits, views), views, waits)


def _view(job: Job, answer: str, checks: Sequence[CheckView], waits: WaitsFor | None) -> WhyView:
    return WhyView(id=job.id, status=job.status, answer=answer, waits_for=waits, checks=checks)


async def _dependencies(node: Node, job: Job) -> CheckView:
    options = job.asked.options
    if job.status is Status.BLOCKED:
        waits = await waits_of(node, job)
        ids = [] if waits is None or not waits.open else list(waits.open)
        count = 0 if waits is None or not waits.count else waits.count
        links = {job_id: _job_path(job_id) for job_id in ids[:NAMED]}
        if waits is not None and waits.group:
            links["group"] = f"/groups/{quote(waits.group, safe='')}"
        still = (
            f"{count} of them have not ended: {_named(ids, count)}" if count else "its group is still open"
        )
        return _check("dependencies", still, links, passed=False)
    if options.callback_of is not None:
        return _check("dependencies", "its group has ended", {})
    if options.depends_on:
        return _check("dependencies", f"all {len(options.depends_on)} have ended", {})
    return _check("dependencies", "it depends on no other job", {})


async def _check_view(node: Node, job: Job, check: Check) -> CheckView:
    queue, key = job.asked.queue, job.asked.options.key
    links = {"queue": f"/queues/{quote(queue, safe='')}"} if check.name.startswith("queue_") else {}
    if check.name.startswith("key_") and key is not None:
        links = {"key": f"/queues/{quote(queue, safe='')}/keys/{quote(key, safe='')}"}
    detail, more = _DETAILS[check.name](job, check)
    of_key = check.name == "key_limit"
    if check.most is not None and check.running and (key is not None or not of_key):
        holders = await _holders(node, job, of_key=of_key)
        if holders:
            detail += f": {_named(holders, check.running)}"
        more = {job_id: _job_path(job_id) for job_id in holders[:NAMED]}
    return _check(check.name, detail, {**links, **more}, passed=check.passed)


async def _holders(node: Node, job: Job, *, of_key: bool) -> Sequence[str]:
    """Some of the jobs that run in its queue, or of its key there: they have the places."""
    where = Filter(
        status=(Status.RUNNING, Status.CANCELLING),
        queue=job.asked.queue,
        key=job.asked.options.key if of_key else None,
        content=False,
    )
    return [one.id for one in (await node.store.jobs(where, NAMED, None)).jobs]


def _workers(node: Node, job: Job, states: Sequence[NodeState]) -> Sequence[CheckView]:
    """Whether one of the nodes that would take the job has a free worker, and does not drain."""
    now = node.clock.now()
    serving = [state for state in states if _serves(state, job, now)]
    taking = [state for state in serving if not (state.draining or _is_draining(node, state))]
    free = [state for state in taking if state.workers is None or state.holds < state.workers]
    busy = sum(state.holds for state in taking)
    workers = sum(state.workers or 0 for state in taking)
    links = {state.name: f"/nodes/{quote(state.name, safe='')}" for state in serving[:NAMED]}
    detail = f"{_named([state.name for state in free], len(free))} can take it" if free else "none is free"
    return [
        _check("draining", _draining(serving, taking), links, passed=bool(taking)),
        _check("workers", f"{detail} (jobs held: {busy}, workers: {workers})", {}, passed=bool(free)),
    ]


def _serves(state: NodeState, job: Job, now: float) -> bool:
    queues = state.queues
    alive = state.lease_until is not None and state.lease_until > now
    return alive and job.asked.kind in state.kinds and (queues is None or job.asked.queue in queues)


def _is_draining(node: Node, state: NodeState) -> bool:
    return state.name == node.name and node.phase != "running"


def _draining(serving: Sequence[NodeState], taking: Sequence[NodeState]) -> str:
    names = [state.name for state in taking]
    if taking:
        return f"{_named(names, len(names))} would take it"
    return "every node that serves it is draining" if serving else "no live node serves it"


Detail = tuple[str, Mapping[str, str]]
"""What was found, and where to look further."""


def _due(_: Job, check: Check) -> Detail:
    return f"{'since' if check.passed else 'not before'} {rfc3339(check.at or 0.0)}", {}


def _pause(_: Job, check: Check) -> Detail:
    obstacle = check.obstacle
    if obstacle is None:
        return "the queue is not paused", {}
    until = "" if obstacle.until is None else f" until {rfc3339(obstacle.until)}"
    return f"the queue is paused{until}{_because(obstacle.pause_reason)}", {}


def _limit(_: Job, check: Check) -> Detail:
    return ("no limit", {}) if check.most is None else (f"{check.running} of {check.most} running", {})


def _rate(_: Job, check: Check) -> Detail:
    if check.obstacle is not None and check.obstacle.until is not None:
        return f"the rate allows the next job at {rfc3339(check.obstacle.until)}", {}
    return ("the rate allows a job now" if check.limited else "no rate"), {}


def _key_pause(_: Job, check: Check) -> Detail:
    return "the key is not paused" if check.passed else "the key is paused", {}


def _key_order(_: Job, check: Check) -> Detail:
    obstacle = check.obstacle
    if obstacle is None:
        return ("it is the first of its key" if check.limited else "no order"), {}
    if obstacle.stopped_by is not None:
        words = f"the key has stopped at job {obstacle.stopped_by}, which failed"
        return words, {obstacle.stopped_by: _job_path(obstacle.stopped_by)}
    behind = obstacle.behind or ""
    return f"job {behind} of the key comes first", {behind: _job_path(behind)}


def _served(job: Job, check: Check) -> Detail:
    kind, queue = job.asked.kind, job.asked.queue
    nodes = "a live node runs" if check.passed else "no live node runs"
    return f"{nodes} jobs of kind {kind} from queue {queue}", {"nodes": "/nodes"}


def _turn(_: Job, check: Check) -> Detail:
    if check.claimed:
        return _CLAIMED, {}
    obstacle = check.obstacle
    ahead = 0 if obstacle is None or obstacle.place is None else obstacle.place - 1
    many = f"{ahead:,}" if obstacle is not None and obstacle.exact else f"more than {ahead:,}"
    where = "of its key" if obstacle is not None and obstacle.key is not None else "of its queue"
    return f"{'none' if check.passed else many} {where} before it, by priority and then by time", {}


_DETAILS: Mapping[str, Callable[[Job, Check], Detail]] = {
    "due": _due,
    "queue_paused": _pause,
    "queue_limit": _limit,
    "queue_rate": _rate,
    "key_paused": _key_pause,
    "key_order": _key_order,
    "key_limit": _limit,
    "key_rate": _rate,
    "served": _served,
    "turn": _turn,
}


def _answer(job: Job, waits: WaitsFor | None, checks: Sequence[CheckView]) -> str:
    """Why a waiting job does not run yet, in a sentence: the first thing that is in the way."""
    failed = next((check for check in checks if not check.passed), None)
    claimed = any(check.name == "turn" and check.detail == _CLAIMED for check in checks)
    if failed is None and claimed:
        return "A node has claimed it: it starts as soon as a worker there is free."
    if failed is None or waits is None:
        return "Nothing is in the way: the next node that looks for work takes it."
    lead = _ANSWERS[failed.name].format(queue=job.asked.queue, key=job.asked.options.key or "none")
    if failed.name in ("queue_paused", "key_paused"):  # the lead says so already
        return f"{lead}{failed.detail.partition(' is paused')[2]}."
    return f"{lead}: {failed.detail}."


_CLAIMED = "a node has claimed it"
_ANSWERS = {
    "dependencies": "It waits for other jobs",
    "due": "It waits for its time",
    "queue_paused": "It waits because queue {queue} is paused",
    "queue_limit": "It waits because queue {queue} has reached its limit",
    "queue_rate": "It waits because queue {queue} has used up its rate",
    "key_paused": "It waits because its key {key} is paused",
    "key_order": "It waits because its key {key} keeps order",
    "key_limit": "It waits because its key {key} has reached its limit",
    "key_rate": "It waits because its key {key} has used up its rate",
    "served": "It waits because no node would take it",
    "turn": "It waits for its turn",
    "draining": "It waits because no node is taking jobs",
    "workers": "It waits for a free worker",
}


def _of_active(job: Job) -> str:
    last = job.attempts[-1] if job.attempts else None
    where = "" if last is None or last.node is None else f" on {last.node}"
    since = "" if job.state.started_at is None else f" since {rfc3339(job.state.started_at)}"
    if job.status is Status.CANCELLING:
        return (
            f"It was cancelled, and its handler has not ended yet{where}: the cancel waits for its cleanup."
        )
    return f"It is running: attempt {job.state.attempt}{where}{since}."


def _of_ended(node: Node, job: Job) -> str:
    """How it has ended, and why it is not tried again."""
    match job.status:
        case Status.DONE:
            return f"It is done: attempt {job.state.attempt} succeeded."
        case Status.EXPIRED:
            return "It was still waiting at its expires_at, so it did not run."
        case Status.CANCELLED:
            error = job.state.error
            caused = error is not None and error.type in ("DependencyFailed", "GroupFailed")
            return (
                f"It was cancelled: {error.message}." if caused and error else "It was cancelled on request."
            )
        case _:
            return f"It failed and will not be retried: {_why_not_again(node, job)}."


def _why_not_again(node: Node, job: Job) -> str:
    error = job.state.error
    retries = job.asked.max_retries
    retries = node.registry.max_retries(job.asked.kind) if retries is None else retries
    if error is not None and error.type == "DeadlineExceeded":
        return "its deadline has passed"
    if error is not None and error.type == "NodeDied" and job.asked.options.on_crash == "fail":
        return "its node died, and on_crash is fail"
    if job.state.attempt > retries:
        return f"that was attempt {job.state.attempt}, and max_retries is {retries}"
    if not job.attempts:
        return "it could not be started"
    return "another attempt would end with the same error"


def _because(reason: str | None) -> str:
    return "" if reason is None else f": {reason}"


def _named(names: Sequence[str], count: int) -> str:
    """Some names, and how many more there are."""
    shown = list(names[:NAMED])
    more = f" and {count - len(shown)} more" if count > len(shown) else ""
    return f"{', '.join(shown)}{more}"


def _job_path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"


def _check(name: AnyCheck, detail: str, links: Mapping[str, str], *, passed: bool = True) -> CheckView:
    return CheckView(name=name, passed=passed, detail=detail, links=links)
