"""`/queues`: get and list queues, set what holds for them, pause, resume and delete them."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET
from quart import Blueprint, Response
from quart_schema import document_querystring, tag_blueprint

from jobpipe.api.acting import by_client
from jobpipe.api.answers import Answer, answer
from jobpipe.api.cursors import cursor_of, place_of
from jobpipe.api.enqueue import check_json, read
from jobpipe.api.faults import faults_of
from jobpipe.api.inputs import query, received
from jobpipe.api.malformed import BOM
from jobpipe.api.problems import Code, Fault, invalid, no_queue, not_empty
from jobpipe.api.responses import respond
from jobpipe.api.schemas import (
    Keep,
    Means,
    PerKeyRequest,
    PerKeyView,
    QueueList,
    QueuePauseRequest,
    QueueQuery,
    QueueRequest,
    QueueView,
    RateRequest,
    unserved_views,
    when,
)
from jobpipe.api.spec import Content, answers, problems, takes
from jobpipe.engine.node import Node
from jobpipe.job import Name
from jobpipe.lanes import NO_LIMITS, Limits, PerKey, Rate
from jobpipe.settings import Settings
from jobpipe.store.base import GateState, QueueSettings, QueueState

NO_GATE = GateState(limits=NO_LIMITS, running=0, tokens=None, keys={})

LIMITS_EXAMPLE = {
    "max_running": 20,
    "rate": {"limit": 100, "period": "1m", "burst": 10},
    "per_key": {"max_running": 2, "rate": {"limit": 1, "period": 1}},
}
ORDER_EXAMPLE = {"per_key": {"ordered": True, "on_failure": "stop"}}
SETTINGS_EXAMPLE = {"closed": False, "keep": {"done": "1h", "failed": "7d", "jobs": 10_000}}

_decode = msgspec.json.Decoder(QueueRequest).decode
_decode_pause = msgspec.json.Decoder(QueuePauseRequest).decode

QueueInPath = Annotated[Name, Means("the queue's name")]


def queues_blueprint(node: Node) -> Blueprint:
    """The routes below `/queues`."""
    routes = Blueprint("queues", __name__)
    tag_blueprint(routes, ["queues"])

    @routes.get("/queues")
    @document_querystring(QueueQuery)
    @answers(200, "A page of queues.", Content(QueueList))
    @problems(Code.INVALID, Code.STORE_UNAVAILABLE)
    async def list_queues() -> Response:
        """List the queues.

        By name, with the number of their jobs in each status. A queue is listed while it has jobs, is paused or has
        settings; any other one drops out of the list within minutes. `served` is false where no live node takes jobs
        from it.
        """
        return respond(await _list(node, query(QueueQuery)))

    @routes.get("/queues/<name>")
    @answers(200, "The queue.", Content(QueueView))
    @problems(Code.NO_SUCH_QUEUE, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def get_queue(name: QueueInPath) -> Response:
        """Get a queue.

        With its settings, its pause, the number of its jobs in each status, and how its keys stand.
        """
        _check(name)
        return respond(await _shown(_found(name, await node.store.queue(name))))

    @routes.put("/queues/<name>")
    @takes(
        Content(
            QueueRequest,
            examples={
                "keep": SETTINGS_EXAMPLE,
                "close": {"closed": True},
                "limits": LIMITS_EXAMPLE,
                "order": ORDER_EXAMPLE,
            },
        )
    )
    @answers(200, "The queue with its settings.", Content(QueueView))
    @problems(
        Code.NOT_JSON, Code.CROSS_SITE, Code.UNSUPPORTED_MEDIA_TYPE, Code.INVALID, Code.STORE_UNAVAILABLE
    )
    async def put_queue(name: QueueInPath) -> Response:
        """Set what holds for a queue.

        All settings are replaced: what is left out is set back. A `closed` queue takes no new jobs (409
        `queue_closed`), and the jobs that wait there run. `keep` says how long its ended jobs are kept, which is never
        longer than the settings KEEP_DONE and KEEP_FAILED say; `"none"`: for some seconds. `max_running` says how many
        of its jobs run at once, over all nodes, and `rate` how many start over time; `per_key` says both of each key.
        Where `per_key` is `ordered`, jobs of a key run one at a time in the order of arrival, and with `on_failure`
        `"stop"` a key stops at a job that failed, until that is retried or deleted, or the key is resumed. The queue
        need not exist yet.
        """
        _check(name)
        content_type, body = await received()
        check_json(content_type)
        request = read(body.removeprefix(BOM), _decode, QueueRequest, QueueRequest)
        settings, limits = _settings(request, node.settings), _limits(request)
        await node.control.put_queue(name, settings, limits, by=by_client(node))
        return await _after(name, QueueState(name=name, paused=False, settings=settings, counts={}))

    @routes.post("/queues/<name>/pause")
    @takes(
        Content(QueuePauseRequest, examples={"pause": {"reason": "the printer is broken", "for": "10m"}}),
        required=False,
    )
    @answers(200, "The queue, paused.", Content(QueueView))
    @problems(
        Code.NOT_JSON, Code.CROSS_SITE, Code.UNSUPPORTED_MEDIA_TYPE, Code.INVALID, Code.STORE_UNAVAILABLE
    )
    async def pause_queue(name: QueueInPath) -> Response:
        """Pause a queue.

        None of its jobs are started any more, even across restarts; jobs that run go on. The queue need not exist
        yet, and jobs can still be enqueued to it. With `for`, it is resumed by itself after so long. The reason is
        shown with it. The last pause counts; send no body, or `{}`, for one without reason and end.
        """
        _check(name)
        request = _pause_from(*await received())
        await node.control.pause(name, request.reason, request.for_, by=by_client(node, request.reason))
        return await _after(name, QueueState(name=name, paused=True, counts={}))

    @routes.post("/queues/<name>/resume")
    @answers(200, "The queue, no longer paused.", Content(QueueView))
    @problems(Code.CROSS_SITE, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def resume_queue(name: QueueInPath) -> Response:
        """Resume a queue.

        Its jobs are started again, by priority, whenever the pause was to end. Resuming a queue that is not paused
        changes nothing.
        """
        _check(name)
        await node.control.resume(name, by=by_client(node))
        return await _after(name, QueueState(name=name, paused=False, counts={}))

    @routes.delete("/queues/<name>")
    @answers(204, "The queue is deleted.")
    @problems(Code.CROSS_SITE, Code.NO_SUCH_QUEUE, Code.QUEUE_NOT_EMPTY, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def delete_queue(name: QueueInPath) -> Response:
        """Delete an empty queue.

        It is no longer listed, nor paused, and its settings are gone. 409 while it has jobs, including those that have
        ended.
        """
        _check(name)
        await _delete(node, name)
        return respond(Answer(204, b""))

    async def _after(name: str, otherwise: QueueState) -> Response:
        """A queue that was changed. One that is empty, and of which nothing is set, may be forgotten by now."""
        return respond(await _shown(await node.store.queue(name) or otherwise))

    async def _shown(state: QueueState) -> Answer:
        now = node.clock.now()
        gate = await node.store.gate(state.name, now) or NO_GATE
        return answer(_view(state, await node.store.served_queues(), now, gate))

    return routes


def _pause_from(content_type: str, body: bytes) -> QueuePauseRequest:
    """What a request says of a pause; a body that says nothing gives neither reason nor end. Raises `Problem`."""
    check_json(content_type)
    said = body.removeprefix(BOM).strip()
    if said in (b"", b"null"):
        return QueuePauseRequest()
    return read(said, _decode_pause, QueuePauseRequest, QueuePauseRequest)


def _settings(request: QueueRequest, settings: Settings) -> QueueSettings:
    """What a request sets. Raises `Problem` where jobs were to be kept longer than the settings allow."""
    keep = request.keep or Keep()
    if keep == "none":
        return QueueSettings(closed=request.closed, keep_done=0.0, keep_failed=0.0)
    most = {
        "done": ("KEEP_DONE", settings.keep_done),
        "failed": ("KEEP_FAILED", settings.keep_failed),
    }
    faults = [
        Fault(f"/keep/{name}", f"is more than the setting {setting} allows, which is {limit:g} seconds")
        for name, (setting, limit) in most.items()
        if (asked := getattr(keep, name)) is not None and asked > limit
    ]
    if faults:
        raise invalid(faults)
    return QueueSettings(
        closed=request.closed,
        keep_done=keep.done,
        keep_failed=keep.failed,
        keep_jobs=keep.jobs,
        keep_bytes=keep.bytes,
    )


def _limits(request: QueueRequest) -> Limits:
    """What a request allows. Raises `Problem` where a burst is larger than what it is a part of, or no key can stop."""
    per_key = request.per_key or PerKeyRequest()
    rates = {"/rate": request.rate, "/per_key/rate": per_key.rate}
    faults = [
        Fault(f"{pointer}/burst", f"is more than limit, which is {rate.limit}")
        for pointer, rate in rates.items()
        if rate is not None and rate.burst > rate.limit
    ]
    if per_key.on_failure == "stop" and not per_key.ordered:
        faults.append(Fault("/per_key/on_failure", 'can be "stop" only where ordered is true'))
    if faults:
        raise invalid(faults)
    return Limits(
        max_running=request.max_running,
        rate=_rate(request.rate),
        per_key=PerKey(
            max_running=per_key.max_running,
            rate=_rate(per_key.rate),
            ordered=per_key.ordered,
            on_failure=per_key.on_failure,
        ),
    )


def _rate(request: RateRequest | None) -> Rate | None:
    return None if request is None else Rate(request.limit, request.period, request.burst)


def _check(name: str) -> None:
    if faults := faults_of(name, Name, "?name"):
        raise invalid(faults)


def _found(name: str, state: QueueState | None) -> QueueState:
    if state is None:
        raise no_queue(name)
    return state


async def _delete(node: Node, name: str) -> None:
    change = await node.control.delete_queue(name, by=by_client(node))
    if change.queue is not None:
        raise not_empty(name, change.queue.counts)
    if change.verdict == "absent":
        raise no_queue(name)


async def _list(node: Node, wanted: QueueQuery) -> Answer:
    states = await node.store.queues(wanted.limit + 1, place_of(wanted.cursor, str) or "")
    served, unserved = await node.store.served_queues(), await node.served.unserved()
    now = node.clock.now()
    shown = states[: wanted.limit]
    more = len(states) > len(shown)
    cursor = cursor_of(shown[-1].name) if more else None
    return answer(QueueList([_view(state, served, now) for state in shown], cursor, unserved_views(unserved)))


def _view(
    state: QueueState, served: frozenset[str] | None, now: float, gate: GateState | None = None
) -> QueueView:
    """A queue as it is shown; `served`: the queues from which live nodes take jobs, None: all.

    `gate`: what it allows; None: that is left out.
    """
    paused = state.paused and (state.paused_until is None or state.paused_until > now)
    age = None if state.oldest_queued_at is None else max(0.0, round(now - state.oldest_queued_at, 3))
    return QueueView(
        name=state.name,
        paused=paused,
        reason=state.reason if paused else None,
        paused_until=when(state.paused_until) if paused else None,
        closed=state.settings.closed,
        keep=_keep(state.settings),
        max_running=UNSET if gate is None else gate.limits.max_running,
        rate=UNSET if gate is None else gate.limits.rate,
        per_key=UNSET if gate is None else _per_key(gate.limits.per_key),
        tokens=UNSET if gate is None else gate.tokens,
        keys=UNSET if gate is None else gate.keys,
        served=served is None or state.name in served,
        counts=state.counts,
        oldest_age=age,
    )


def _per_key(allowed: PerKey) -> PerKeyView | None:
    if allowed == PerKey():
        return None
    return PerKeyView(
        max_running=allowed.max_running,
        rate=allowed.rate,
        ordered=allowed.ordered,
        on_failure=allowed.on_failure,
    )


def _keep(settings: QueueSettings) -> Keep | Literal["none"] | None:
    if not settings.keeps:
        return None
    if (settings.keep_done, settings.keep_failed) == (0, 0):
        return "none"
    return Keep(
        done=settings.keep_done,
        failed=settings.keep_failed,
        jobs=settings.keep_jobs,
        bytes=settings.keep_bytes,
    )
