"""`POST /enqueue`: plain functions from bytes to answer, called by the thin front and by Quart alike."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from jobpipe.api.answers import Answer, answer
from jobpipe.api.problems import Fault, Problem, fault_from, faults_of, invalid, not_json, too_large, unavailable, unsupported
from jobpipe.api.schemas import EnqueueRequest, job_view
from jobpipe.engine.node import Node
from jobpipe.errors import JobpipeError
from jobpipe.job import DEFAULT_MAX_RETRIES, NO_OPTIONS, Job, NewJob, Options, as_stored, new_job_id
from jobpipe.store.base import Receipt

DEEPEST = 500
"""How deep a payload may nest: well below what would break whoever reads it."""

_decode = msgspec.json.Decoder(EnqueueRequest).decode
_encode = msgspec.json.Encoder().encode

# curl -d says application/x-www-form-urlencoded when nobody says anything else.
JSON_TYPES = frozenset({"", "application/json", "text/json", "application/x-www-form-urlencoded"})


async def enqueue(node: Node, content_type: str, body: bytes) -> Answer:
    """Store one job: 202 once it survives a crash, 200 when the same request has stored it before.

    Raises `Problem`; then nothing was stored. A cancel leaves either the whole job or none.
    """
    if not is_json(content_type):
        raise unsupported(content_type, "application/json")
    if len(body) > node.settings.max_body:
        raise too_large(node.settings.max_body)
    new = new_job(node, request_from(body))
    (receipt,) = await store(node, [new])
    location = {"Location": "/jobs/" + quote(new.id, safe="")}
    match receipt.verdict:
        case "stored":
            return answer(job_view(as_stored(new)), 202, location)
        case "existing":
            return answer(job_view(existing(receipt)), 200, location)
        case _:
            raise conflict([new.id])


def is_json(content_type: str) -> bool:
    """Whether a body of this media type is read as JSON."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind in JSON_TYPES or kind.endswith("+json")


async def store(node: Node, jobs: Sequence[NewJob], *, atomic: bool = False) -> Sequence[Receipt]:
    """Enqueue, with the engine's refusals as problems."""
    try:
        return await node.queue.enqueue(jobs, atomic=atomic)
    except JobpipeError as error:
        raise unavailable(error) from None


def request_from(body: bytes) -> EnqueueRequest:
    """Read one request; raises `Problem` with every fault of it."""
    try:
        request = _decode(body)
    except msgspec.ValidationError as error:
        raise invalid(_every_fault(body, error)) from None
    except RecursionError:
        raise too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise not_json(str(error)) from None
    # Only what has that many brackets can be that deep.
    if body.count(b"[") + body.count(b"{") > DEEPEST and deeper(request.payload, DEEPEST):
        raise too_deep()
    return request


def _every_fault(body: bytes, first: msgspec.ValidationError) -> Sequence[Fault]:
    try:
        return faults_of(msgspec.json.decode(body), EnqueueRequest) or [fault_from(first)]
    except (msgspec.MsgspecError, RecursionError):
        return [fault_from(first)]


def too_deep() -> Problem:
    """422: the payload nests too deep."""
    return invalid([Fault("/payload", f"nests deeper than {DEEPEST} levels")])


def deeper(value: Any, levels: int) -> bool:  # noqa: ANN401 - any JSON
    """Whether arrays and objects nest deeper than so many levels."""
    layer = [value]
    for _ in range(levels + 1):
        parts = (one.values() if isinstance(one, dict) else one for one in layer if isinstance(one, dict | list))
        layer = [inner for part in parts for inner in part]
        if not layer:
            return False
    return True


def new_job(node: Node, request: EnqueueRequest) -> NewJob:
    """The job that a request asks for; raises `Problem` when it can't be."""
    now = node.clock.now()
    handler = node.registry.find(request.kind)
    faults: list[Fault] = []
    if handler is None:
        faults.append(Fault("/kind", f"no handler performs {request.kind!r} here; known are {', '.join(node.registry.kinds)}"))
    elif handler.payload_type is not Any:
        try:
            handler.typed(request.payload)
        except msgspec.ValidationError as error:
            faults.append(fault_from(error, "/payload"))
    run_at = _run_at(request, now, faults)
    expires_at = None if request.expires_at is None else round(request.expires_at.timestamp(), 3)
    if expires_at is not None and expires_at <= run_at:
        faults.append(Fault("/expires_at", "lies before the job could run: name a later time, or leave it out"))
    if faults:
        raise invalid(faults)
    default_retries = DEFAULT_MAX_RETRIES
    if handler is not None and handler.max_retries is not None:
        default_retries = handler.max_retries
    return NewJob(
        id=request.id or new_job_id(now, node.rng.getrandbits),
        kind=request.kind,
        queue=request.queue,
        payload=_encode(request.payload),
        priority=request.priority,
        max_retries=default_retries if request.max_retries is None else request.max_retries,
        created_at=now,
        run_at=run_at,
        expires_at=expires_at,
        options=_options(request),
    )


def _run_at(request: EnqueueRequest, now: float, faults: list[Fault]) -> float:
    if request.delay is not None and request.run_at is not None:
        faults.append(Fault("/run_at", "goes not together with delay: give one of them"))
    if request.delay is not None:
        return round(now + request.delay, 3)
    return now if request.run_at is None else max(now, round(request.run_at.timestamp(), 3))


def _options(request: EnqueueRequest) -> Options:
    asked = (request.timeout, request.backoff, request.delay, request.run_at, request.tags)
    if request.on_crash == "retry" and not any(part is not None and part != [] for part in asked):
        return NO_OPTIONS
    return Options(
        timeout=request.timeout,
        backoff=request.backoff,
        on_crash=request.on_crash,
        tags=tuple(dict.fromkeys(request.tags)),
        delay=request.delay,
        run_at=None if request.run_at is None else round(request.run_at.timestamp(), 3),
    )


def existing(receipt: Receipt) -> Job:
    """The job that was there already."""
    assert receipt.job is not None
    return receipt.job


def conflict(ids: Sequence[str]) -> Problem:
    """409: the ids belong to jobs with another content."""
    return Problem(
        409,
        "id_conflict",
        "The id belongs to another job",
        f"another job, with other content, has the id {', '.join(map(repr, ids[:5]))}; nothing was stored: choose another id",
        ids=ids,
    )
