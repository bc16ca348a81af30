"""What a handler asks of a job that it enqueues: checked in the very call, as `POST /enqueue` checks a request."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, TypedDict

import msgspec
from msgspec import Meta

from jobpipe.asking import AskedDebounce, AskedThrottle, AskedUnique, wrong
from jobpipe.errors import EnqueueError
from jobpipe.handlers.durations import Duration, in_seconds, seconds
from jobpipe.job import (
    DEEPEST,
    DEFAULT_QUEUE,
    Backoff,
    DependsOn,
    JobId,
    Key,
    Name,
    Needs,
    Priority,
    Retries,
    Seconds,
    Tags,
    Timeout,
    holds_nan,
    may_nest_deeper,
    nests_deeper,
)

Time = Annotated[datetime, Meta(tz=True, description="a time with a time zone")]


class JobOptions(TypedDict, total=False):
    """What may be asked of a new job beside kind, payload and id: as in `POST /enqueue`, times as `datetime`."""

    queue: str
    priority: int
    max_retries: int | None
    delay: Duration | None
    """counted from the call"""
    run_at: datetime | None
    expires_at: datetime | None
    deadline: datetime | None
    timeout: Duration | None
    backoff: Backoff | Mapping[str, Any] | None
    on_crash: Literal["retry", "fail"]
    tags: list[str]
    key: str | None
    depends_on: list[str]
    needs: Needs
    group: str | None
    unique: Mapping[str, Any] | None
    throttle: Mapping[str, Any] | None
    debounce: Mapping[str, Any] | None
    now: bool
    """store it at once, whatever becomes of the attempt"""
    detach: bool
    """it is no child of this job: it is not cancelled with it"""


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same once it is checked; durations in seconds."""

    kind: Name
    ids: list[JobId] | None = None
    queue: Name = DEFAULT_QUEUE
    priority: Priority = 0
    max_retries: Retries | None = None
    delay: Seconds | None = None
    run_at: Time | None = None
    expires_at: Time | None = None
    deadline: Time | None = None
    timeout: Timeout | None = None
    backoff: Backoff | None = None
    on_crash: Literal["retry", "fail"] = "retry"
    tags: Tags = []
    key: Key | None = None
    depends_on: DependsOn = []
    needs: Needs = "done"
    group: Name | None = None
    unique: AskedUnique | None = None
    throttle: AskedThrottle | None = None
    debounce: AskedDebounce | None = None
    now: bool = False
    detach: bool = False


def checked(kind: str, ids: list[str] | None, options: JobOptions) -> Asked:
    """What is asked of new jobs of a kind. Raises `EnqueueError`."""
    try:
        # By way of builtins, since the values of a ready-made Backoff would not be checked.
        given = msgspec.to_builtins({"kind": kind, "ids": ids, **options, **_durations(options)})
        asked = msgspec.convert(given, Asked)
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise EnqueueError(f"a job of kind {kind!r} cannot be enqueued: {error}") from None
    if together := wrong(asked, asked.ids or ()):
        words = f"{together[0].pointer[1:].replace('/', '.')} {together[0].detail}"
        raise EnqueueError(f"a job of kind {kind!r} cannot be enqueued: {words}")
    return asked


DURATIONS: Mapping[str, tuple[str, ...]] = {
    "backoff": ("base", "cap"),
    "unique": ("for",),
    "throttle": ("every",),
    "debounce": ("wait", "max_wait"),
}
"""The durations within an option."""


def _durations(options: JobOptions) -> Mapping[str, Any]:
    read: dict[str, Any] = {}
    for name, value in options.items():
        if name in ("delay", "timeout"):
            read[name] = seconds(value)
        elif name in DURATIONS:
            read[name] = in_seconds(value, DURATIONS[name])
    return read


def encoded(payload: Any) -> bytes:  # noqa: ANN401 - a handler may give anything
    """A payload as JSON, as it is stored. Raises `EnqueueError` where that cannot be."""
    try:
        sent = msgspec.json.encode(payload)
        if b"null" in sent and holds_nan(msgspec.to_builtins(payload)):
            raise ValueError("JSON has no NaN and no infinity")  # noqa: TRY301 - the same fault as the others here
        too_deep = may_nest_deeper(sent, DEEPEST) and nests_deeper(msgspec.json.decode(sent), DEEPEST)
    except RecursionError:
        too_deep, sent = True, b""
    except Exception as error:  # noqa: BLE001 - whatever stands in its way
        raise EnqueueError(f"the payload cannot be written as JSON: {error}") from None
    if too_deep:
        raise EnqueueError(f"the payload nests deeper than {DEEPEST} levels")
    return sent
