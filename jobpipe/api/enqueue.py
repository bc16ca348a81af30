"""`POST /enqueue`: plain functions from bytes to answer, called by the thin front and by Quart alike."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import msgspec
import trio
from msgspec import UNSET, UnsetType

from jobpipe.acts import By
from jobpipe.api.answers import Answer, answer
from jobpipe.api.durations import in_seconds
from jobpipe.api.faults import fault_from, faults_of
from jobpipe.api.lists import as_sent, in_lists
from jobpipe.api.malformed import BOM, malformed
from jobpipe.api.numbers import may_vanish, vanishing
from jobpipe.api.problems import (
    Fault,
    Problem,
    UnknownKind,
    closed,
    conflict,
    dependency_failed,
    group_closed,
    invalid,
    not_unique,
    too_large,
    unknown_dependency,
    unknown_group,
    unsupported,
)
from jobpipe.api.schemas import NULL, EditRequest, EnqueueRequest, JobView, job_view, stored_view
from jobpipe.asking import AFTER_DEADLINE, TOO_FAR, debounce, seconds, throttle, unique, wrong
from jobpipe.engine.node import Node
from jobpipe.errors import StoreUnavailable
from jobpipe.handlers.registry import Handler
from jobpipe.job import (
    DEEPEST,
    DEFAULT_KIND,
    ENDED,
    LATEST,
    WAITING,
    Backoff,
    Job,
    Name,
    NewJob,
    State,
    may_nest_deeper,
    nests_deeper,
)
from jobpipe.store.base import Changes, Receipt

TOO_LATE = "is not after the time at which the job could run: send a later time"
"""What is wrong with an expires_at, or a deadline."""

SHOWN = 10
"""The most ids of a cycle that are shown."""

LOCKED = "another program has locked the job with this id"


class AskedRequest(EnqueueRequest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request as it is read, with durations in seconds; it shows whether a kind was named."""

    kind: Name | UnsetType = UNSET  # type: ignore[assignment]  # to clients it is a Name with a default
    backoff: Backoff | None = None  # type: ignore[assignment]  # as it is stored and compared


class AskedEdit(EditRequest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An edit as it is read, with durations in seconds."""

    backoff: Backoff | UnsetType | None = UNSET  # type: ignore[assignment]  # as it is stored and compared


class SentRequest(msgspec.Struct, frozen=True):
    """The payload of a valid request, as the bytes that were sent."""

    payload: msgspec.Raw = NULL


_decode = msgspec.json.Decoder(AskedRequest).decode
_decode_edit = msgspec.json.Decoder(AskedEdit).decode
_decode_raw = msgspec.json.Decoder(SentRequest).decode
_encode = msgspec.json.Encoder().encode

# curl -d sends application/x-www-form-urlencoded by default.
JSON_TYPES = frozenset({"", "application/json", "text/json", "application/x-www-form-urlencoded"})

_PAYLOAD = b'"payload":'

_ESCAPE = re.compile(rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}|u[0-9a-fA-F]{4}|.)", re.DOTALL)


Hold = Callable[[str], Awaitable[Job]]
"""Given a job's id, waits for its end; returns the job as it is then, or as it is after long enough."""


async def enqueue(
    node: Node, content_type: str, body: bytes, hold: Hold | None = None, by: By | None = None
) -> Answer:
    """Store one job: 202 once it survives a crash, 200 when the same request has stored it before.

    With `hold`, 200 means that the job has ended, and 202 that it has not. `by`: who enqueues it by hand. Raises
    `Problem`, `Draining`, `QueueFull` or `StoreUnavailable`; then nothing was stored, unless the problem is that the
    job was deleted during `hold`. A cancel leaves either the whole job or none.
    """
    check_json(content_type)
    if len(body) > node.settings.max_body:
        raise too_large(node.settings.max_body)
    new = await asked(node, body)
    if by is None:
        (receipt,) = await node.admission.enqueue([new])
    else:
        receipt = await node.admission.enqueue_by_hand(new, by)
    if hold is not None:
        return await _held(node, new, receipt, hold)
    if receipt.verdict == "stored":
        return _answer(job_view(stored_job(new, receipt), node.registry), 202)
    return _answer(stored_view(known(new, receipt), node.registry), 200)


async def _held(node: Node, new: NewJob, receipt: Receipt, hold: Hold) -> Answer:
    job = stored_job(new, receipt) if receipt.verdict == "stored" else known(new, receipt)
    if job.status not in ENDED:
        with suppress(StoreUnavailable):  # which would say that nothing was stored
            job = await hold(job.id)
    return _answer(stored_view(job, node.registry), 200 if job.status in ENDED else 202)


def _answer(job: JobView, status: int) -> Answer:
    return answer(job, status, {"Location": "/jobs/" + quote(job.id, safe="")})


def stored_job(new: NewJob, receipt: Receipt) -> Job:
    """A job as it is once it is stored."""
    return receipt.job or Job(new, State(new.status))


def too_late(new: NewJob) -> Fault:
    """What is wrong with a job that expires before it could start."""
    return Fault("/deadline" if new.waits_until_its_deadline else "/expires_at", TOO_LATE)


def cycle(receipt: Receipt) -> Fault:
    """What is wrong with a job that waits for itself."""
    return Fault("/depends_on", f"waits for itself: {' -> '.join(receipt.dependencies[:SHOWN])}")


_REFUSED: Mapping[str, Callable[[NewJob, Receipt], Exception]] = {
    "unknown_dependency": lambda _, receipt: unknown_dependency(receipt.dependencies),
    "dependency_failed": lambda _, receipt: dependency_failed(receipt.dependencies),
    "dependency_cycle": lambda _, receipt: invalid([cycle(receipt)]),
    "closed": lambda _, receipt: closed([receipt.queue]),
    "unknown_group": lambda _, receipt: unknown_group(receipt.group),
    "group_closed": lambda _, receipt: group_closed(receipt.group),
    "not_unique": lambda _, receipt: not_unique(
        receipt.other or "", None if receipt.job is None else receipt.job.status
    ),
    "late": lambda new, _: invalid([too_late(new)]),
    "locked": lambda _, __: StoreUnavailable(LOCKED),
}
"""What is raised for a job that was not stored, by its verdict."""


def known(new: NewJob, receipt: Receipt) -> Job:
    """The job that an earlier request stored, or the one that the new one was merged with.

    Raises `Problem` when its content differs, or when there is none because the new one comes too late, is for a closed
    queue, cannot join its group, cannot wait for the jobs that it depends on, or is not unique; `StoreUnavailable` when
    another program has locked it.
    """
    if (refused := _REFUSED.get(receipt.verdict)) is not None:
        raise refused(new, receipt)
    assert receipt.job is not None  # noqa: S101 - an existing one or a conflict has it
    if receipt.verdict == "conflict":
        raise conflict([receipt.job.id])
    return receipt.job


def check_json(content_type: str) -> None:
    """Raise `Problem` where a body of this media type is not read as JSON."""
    if not is_json(content_type):
        raise unsupported(content_type, "application/json")


def is_json(content_type: str) -> bool:
    """Whether a body of this media type is read as JSON."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind in JSON_TYPES or kind.endswith("+json")


async def asked(node: Node, body: bytes, since: float | None = None) -> NewJob:
    """The job that a body asks for.

    Before a kind is refused, the store is asked whether a node serves it by now, unless it was asked after `since` (in
    Trio's clock; None: now). Raises `Problem` with every fault of the body, or `StoreError`.
    """
    try:
        return new_job_from(node, body)
    except UnknownKind:
        await node.served.renew(trio.current_time() if since is None else since)
        return new_job_from(node, body)


class _WithPayload(Protocol):
    @property
    def payload(self) -> Any: ...  # noqa: ANN401 - any JSON


R = TypeVar("R", bound=_WithPayload)
S = TypeVar("S")


def read(body: bytes, decode: Callable[[bytes], S], kind: type[S], model: type[msgspec.Struct]) -> S:
    """Read a request as a `kind`, which clients know as `model`. Raises `Problem` with every fault of the body."""
    try:
        try:
            return decode(body)
        except msgspec.ValidationError as error:
            return _in_words(body, error, kind, model)
    except RecursionError:
        raise too_deep("") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise malformed(body, error) from None


def request_from(
    body: bytes, decode: Callable[[bytes], R], kind: type[R], model: type[msgspec.Struct]
) -> tuple[R, bytes]:
    """Read one request as a `kind`, which clients know as `model`; also its payload as it is to be stored.

    Raises `Problem` with every fault of the body.
    """
    body = body.removeprefix(BOM)
    try:
        try:
            request = decode(body)
        except msgspec.ValidationError as error:
            request = _in_words(body, error, kind, model)
        # Taken apart and put together again: left as it is, a payload with bad UTF-8 or with 1e400 would pass.
        usual = b"" if request.payload is UNSET else _encode(request.payload)
    except RecursionError:
        raise too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise malformed(body, error) from None
    if may_nest_deeper(body, DEEPEST) and nests_deeper(request.payload, DEEPEST):
        raise too_deep()
    return request, usual if request.payload is None or _is_in(body, usual) else _exactly(body)


def _is_in(body: bytes, usual: bytes) -> bool:
    """Whether the body has the payload exactly as it is encoded here, as most do: no second decoding is needed."""
    start = body.find(_PAYLOAD) + len(_PAYLOAD)
    end = start + len(usual)
    return start >= len(_PAYLOAD) and body[start:end] == usual and body[end] in b",}"


def _exactly(body: bytes) -> bytes:
    """The payload of a valid request as it was sent, so that no number loses a digit.

    Escapes become the characters that they stand for, except where JSON needs them: a search for é has to find it.
    Raises `Problem` for a number that the handler could not be given.
    """
    sent = bytes(_decode_raw(body).payload)
    if may_vanish(sent) and (number := vanishing(sent)):
        raise invalid([Fault("/payload", f"the number {number} is too small for 64 bits and would become 0")])
    return _ESCAPE.sub(_unescaped, sent) if b"\\u" in sent else sent


def _in_words(body: bytes, first: msgspec.ValidationError, kind: type[S], model: type[msgspec.Struct]) -> S:
    """Read a request whose first fault is known.

    It may be a duration that is a text, which is a number then, or one value instead of a list.

    Raises `Problem` with every fault of the body, or `msgspec.DecodeError` where it is no JSON further on.
    """
    try:
        value = msgspec.json.decode(body)
        meant = in_lists(in_seconds(value, model), model)
        faults = [Fault(as_sent(one.pointer, value), one.detail) for one in faults_of(meant, model)]
        if meant is not value and not faults:
            return msgspec.convert(meant, kind)
    except (msgspec.ValidationError, RecursionError):  # a number beyond all bounds, or too deep
        value, faults = None, []
    if isinstance(value, list) and issubclass(model, EnqueueRequest):
        several = "expected an object (one job), got an array: an array of jobs goes to /enqueue/bulk"
        faults = [Fault("", f"{several} as application/json")]
    # There is none when a key is given twice and the value that does not count was wrong.
    raise invalid(faults or [fault_from(first)]) from None


def too_deep(pointer: str = "/payload") -> Problem:
    """422: the payload nests too deep."""
    return invalid([Fault(pointer, f"nests deeper than {DEEPEST} levels")])


def new_job_from(node: Node, body: bytes) -> NewJob:
    """The job that a body asks for. Raises `Problem` with every fault of the body.

    `UnknownKind` where it names a kind that no live node is known to serve: `Served.renew`, and ask again.
    """
    request, payload = request_from(body, _decode, AskedRequest, EnqueueRequest)
    kind = DEFAULT_KIND if request.kind is UNSET else request.kind
    handler = node.registry.find(kind)
    faults: list[Fault] = []
    unknown = handler is None and not node.served.has(kind)
    if request.kind is UNSET and node.settings.shipped_kinds == "off":
        faults.append(Fault("/kind", f"is required here; {node.served.in_words}"))
    elif unknown:
        faults.append(Fault("/kind", node.served.unknown(kind)))
    elif handler is not None and handler.payload_type is not Any:
        faults += unfit(payload, request.payload, handler)
    return made(node, request, payload, kind, faults, UnknownKind if unknown else Problem)


_NOTHING = (None,) * 11


def _is_plain(asked: EnqueueRequest) -> bool:
    """Whether a request asks for nothing but what each job has: so do most, and the many other fields cost time."""
    rest = (
        asked.delay,
        asked.run_at,
        asked.expires_at,
        asked.timeout,
        asked.backoff,
        asked.key,
        asked.group,
        asked.deadline,
        asked.unique,
        asked.throttle,
        asked.debounce,
    )
    return rest == _NOTHING and not (
        asked.tags or asked.depends_on or asked.needs != "done" or asked.on_crash != "retry"
    )


def made(
    node: Node,
    request: EnqueueRequest,
    payload: bytes,
    kind: str,
    faults: list[Fault],
    problem: type[Problem] = Problem,
) -> NewJob:
    """The job of a kind that a request asks for. Raises a problem where it has faults, known before or not."""
    if not faults and _is_plain(request):
        return node.admission.plain_job(
            payload, request.id, kind, request.queue, request.priority, request.max_retries
        )
    if together := wrong(request, (request.id,)):
        faults += [Fault(one.pointer, one.detail) for one in together]
    if faults:
        raise invalid(faults, problem)
    return node.admission.new_job(
        payload,
        job_id=request.id,
        kind=kind,
        queue=request.queue,
        priority=request.priority,
        max_retries=request.max_retries,
        delay=request.delay,
        run_at=None if request.run_at is None else seconds(request.run_at),
        expires_at=None if request.expires_at is None else seconds(request.expires_at),
        timeout=request.timeout,
        backoff=request.backoff,
        on_crash=request.on_crash,
        tags=request.tags,
        key=request.key,
        depends_on=request.depends_on,
        needs=request.needs,
        group=request.group,
        deadline=None if request.deadline is None else seconds(request.deadline),
        unique=None if request.unique is None else unique(request.unique),
        throttle=None if request.throttle is None else throttle(request.throttle),
        debounce=None if request.debounce is None else debounce(request.debounce),
    )


def edits_from(node: Node, job: Job, body: bytes) -> Mapping[str, Any]:
    """The fields that a body names, as a request for such a job has them. Raises `Problem` with every fault."""
    request, payload = request_from(body, _decode_edit, AskedEdit, EditRequest)
    given = {name: value for name, value in msgspec.structs.asdict(request).items() if value is not UNSET}
    handler = node.registry.find(job.asked.kind)
    faults = [*unfit(payload, request.payload, handler)] if handler and "payload" in given else []
    new = made(node, AskedRequest(id=job.id, **given), payload, job.asked.kind, faults)
    run_at = new.run_at if "run_at" in given else max(new.created_at, job.asked.run_at)
    expires_at, deadline = job.asked.expires_at, job.asked.options.deadline
    if "expires_at" in given:
        expires_at = deadline if new.expires_at is None else new.expires_at
        if new.expires_at is not None and deadline is not None and new.expires_at >= deadline:
            raise invalid([Fault("/expires_at", AFTER_DEADLINE)])
    if job.status in WAITING and expires_at is not None and expires_at <= run_at:
        raise invalid([Fault("/expires_at", TOO_LATE)])
    edits = {name: getattr(new if hasattr(new, name) else new.options, name) for name in given}
    return {**edits, "expires_at": expires_at} if "expires_at" in given else edits


def changes_from(node: Node, body: bytes) -> Changes:
    """The fields that a body names, to be changed of jobs of any kind. Raises `Problem` with every fault."""
    request, payload = request_from(body, _decode_edit, AskedEdit, EditRequest)
    given = {name: value for name, value in msgspec.structs.asdict(request).items() if value is not UNSET}
    if not given:
        raise invalid([Fault("", "names no field: send what is to be changed")])
    new = made(node, AskedRequest(**given), payload, DEFAULT_KIND, [])
    until = new.expires_at
    if {"run_at", "expires_at"} <= given.keys() and until is not None and until <= new.run_at:
        raise invalid([Fault("/expires_at", TOO_LATE)])
    return Changes(**{name: getattr(new if hasattr(new, name) else new.options, name) for name in given})


def unfit(sent: bytes, payload: Any, handler: Handler) -> Sequence[Fault]:  # noqa: ANN401 - any JSON
    """The faults of a payload for its handler; it is decoded here as it will be for the handler."""
    try:
        msgspec.json.decode(sent, type=handler.payload_type)
    except msgspec.ValidationError as error:
        return faults_of(payload, handler.payload_type, "/payload") or [fault_from(error, "/payload")]
    except RecursionError:
        return [Fault("/payload", "nests deeper than its handler can read")]
    except Exception as error:  # noqa: BLE001 - what a type of the handler's own raises when it is made
        return [Fault("/payload", f"its handler cannot read it: {type(error).__name__}: {str(error)[:200]}")]
    return []


def _unescaped(escape: re.Match[bytes]) -> bytes:
    """The character behind an escape, or the escape where JSON needs it."""
    if escape[0][1:2] != b"u":
        return escape[0]
    character: str = msgspec.json.decode(b'"%b"' % escape[0])
    return escape[0] if character < " " or character in '"\\' else character.encode()


def unix_time(time: datetime, pointer: str, faults: list[Fault]) -> float:
    """A time in whole milliseconds, or a fault more when no answer could show it."""
    unix = seconds(time)
    if unix > LATEST:
        faults.append(Fault(pointer, TOO_FAR))
    return unix
