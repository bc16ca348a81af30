"""`POST /enqueue`: plain functions from bytes to answer, called by the thin front and by Quart alike."""

import difflib
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

import msgspec
import trio

from jobpipe.api.answers import Answer, answer
from jobpipe.api.faults import fault_from, faults_of
from jobpipe.api.problems import (
    Fault,
    Problem,
    UnknownKind,
    conflict,
    invalid,
    not_json,
    too_large,
    unavailable,
    unsupported,
)
from jobpipe.api.schemas import EnqueueRequest, job_view
from jobpipe.engine.node import Node
from jobpipe.errors import JobpipeError
from jobpipe.job import (
    DEFAULT_MAX_RETRIES,
    NO_OPTIONS,
    Job,
    NewJob,
    Options,
    as_stored,
    new_job_id,
    same_content,
)
from jobpipe.store.base import Receipt

DEEPEST = 500
"""How deep a payload may nest: well below what would break whoever reads it."""

SHOWN, COMPARED = 20, 50
"""How many kinds a refusal names, and with how many it compares one that is unknown."""

LATEST = 253_402_300_799.0
"""The end of the year 9999, the last that RFC 3339 can write."""

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
    new = await admitted(node, body)
    if isinstance(new, Receipt):
        return _answer(known(new), 200)
    (receipt,) = await store(node, [new])
    return _answer(as_stored(new), 202) if receipt.verdict == "stored" else _answer(known(receipt), 200)


def _answer(job: Job, status: int) -> Answer:
    return answer(job_view(job), status, {"Location": "/jobs/" + quote(job.id, safe="")})


def known(receipt: Receipt) -> Job:
    """The job that an earlier request has stored; raises `Problem` when that one had other content."""
    assert receipt.job is not None  # noqa: S101 - only a stored one has none
    if receipt.verdict == "conflict":
        raise conflict([receipt.job.id])
    return receipt.job


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


async def admitted(node: Node, body: bytes, since: float | None = None) -> NewJob | Receipt:
    """The job that a body asks for, to be stored; or at once its receipt, when that needs no store any more.

    Before a kind is refused, the store is asked whether a node serves it by now, unless it was asked after `since` (in
    Trio's clock; None: now). Raises `Problem` with every fault of it.
    """
    try:
        new = asked(node, body)
    except UnknownKind:
        await renew_kinds(node, trio.current_time() if since is None else since)
        new = asked(node, body)
    return new if in_time(new) else await too_late(node, new)


async def renew_kinds(node: Node, since: float) -> None:
    """Learn which kinds live nodes served after `since`. Raises `Problem` when the store does not answer."""
    try:
        await node.served.renew(since)
    except JobpipeError as error:
        raise unavailable(error) from None


def asked(node: Node, body: bytes) -> NewJob:
    """The job that a body asks for; whether it is in time is not judged. Raises `Problem` with every fault of it.

    `UnknownKind` where it names a kind that no live node is known to serve: `renew_kinds`, and ask again.
    """
    return new_job(node, request_from(body))


def in_time(new: NewJob) -> bool:
    """Whether a job can run before it expires."""
    return new.expires_at is None or new.expires_at > new.run_at


async def too_late(node: Node, new: NewJob) -> Receipt:
    """The receipt of a job that could not run before it expires; raises `Problem` when it is new.

    The same request again after its expiry is no fault: it was in time when it stored the job.
    """
    try:
        job = await node.store.get(new.id)
    except JobpipeError as error:
        raise unavailable(error) from None
    if job is None:
        raise invalid(
            [Fault("/expires_at", "lies before the job could run: name a later time, or leave it out")]
        )
    return Receipt("existing" if same_content(new, job) else "conflict", job)


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
    # Only what has that many brackets, each with its other half, can be that deep.
    may_be_deep = len(body) > 2 * DEEPEST and body.count(b"[") + body.count(b"{") > DEEPEST
    if may_be_deep and deeper(request.payload, DEEPEST):
        raise too_deep()
    return request


def _every_fault(body: bytes, first: msgspec.ValidationError) -> Sequence[Fault]:
    """The faults behind the first one; raises `Problem` when the body turns out to be no JSON after that one."""
    try:
        faults = faults_of(msgspec.json.decode(body), EnqueueRequest)
    except (msgspec.ValidationError, RecursionError):  # a number beyond all bounds, or too deep
        faults = []
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise not_json(str(error)) from None
    return faults or [fault_from(first)]  # none: of a key given twice, the one that does not count was wrong


def too_deep(pointer: str = "/payload") -> Problem:
    """422: the payload nests too deep."""
    return invalid([Fault(pointer, f"nests deeper than {DEEPEST} levels")])


def deeper(value: Any, levels: int) -> bool:  # noqa: ANN401 - any JSON
    """Whether arrays and objects nest deeper than so many levels."""
    layer = [value]
    for _ in range(levels):
        parts = (
            one.values() if isinstance(one, dict) else one for one in layer if isinstance(one, dict | list)
        )
        layer = [inner for part in parts for inner in part]
        if not layer:
            return False
    return any(isinstance(one, dict | list) for one in layer)


def new_job(node: Node, request: EnqueueRequest) -> NewJob:
    """The job that a request asks for; raises `Problem` when it can't be. Whether it is in time is not judged."""
    now = node.clock.now()
    handler = node.registry.find(request.kind)
    faults: list[Fault] = []
    unknown = handler is None and not node.served.has(request.kind)
    if unknown:
        faults.append(Fault("/kind", _unknown(request.kind, sorted(node.served.kinds))))
    elif handler is not None and handler.payload_type is not Any:
        faults += faults_of(request.payload, handler.payload_type, "/payload")
    asked_run_at = None if request.run_at is None else _seconds(request.run_at, "/run_at", faults)
    expires_at = None if request.expires_at is None else _seconds(request.expires_at, "/expires_at", faults)
    if request.delay is not None and request.run_at is not None:
        faults.append(Fault("/run_at", "goes not together with delay: give one of them"))
    if faults:
        raise invalid(faults, UnknownKind if unknown else Problem)
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
        run_at=_run_at(request.delay, asked_run_at, now),
        expires_at=expires_at,
        options=_options(request, asked_run_at),
    )


def _unknown(kind: str, served: Sequence[str]) -> str:
    """Why a kind is refused, with the name that may be meant."""
    alike = [name for name in served if abs(len(name) - len(kind)) <= 2][:COMPARED]  # noqa: PLR2004 - a slip of the finger
    meant = difflib.get_close_matches(kind, alike, 1)
    hint = f"did you mean {meant[0]!r}? " if meant else ""
    more = f" and {len(served) - SHOWN} more" if len(served) > SHOWN else ""
    return f"no live node has a handler for {kind!r}; {hint}served are {', '.join(served[:SHOWN])}{more}"


def _seconds(time: datetime, pointer: str, faults: list[Fault]) -> float:
    """A time in whole milliseconds, or a fault more when no answer could show it."""
    seconds = round(time.timestamp(), 3)
    if seconds > LATEST:
        faults.append(Fault(pointer, "lies after the year 9999"))
    return seconds


def _run_at(delay: float | None, asked: float | None, now: float) -> float:
    if delay is not None:
        return round(now + delay, 3)
    return now if asked is None else max(now, asked)


def _options(request: EnqueueRequest, run_at: float | None) -> Options:
    times = (request.timeout, request.backoff, request.delay, request.run_at)
    if times == (None, None, None, None) and not request.tags and request.on_crash == "retry":
        return NO_OPTIONS
    return Options(
        timeout=request.timeout,
        backoff=request.backoff,
        on_crash=request.on_crash,
        tags=tuple(dict.fromkeys(request.tags)),
        delay=request.delay,
        run_at=run_at,
    )
