"""Acts: what people do by hand, as the audit keeps it. Pure."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from jobpipe.job import Job, JobError, NewJob
from jobpipe.schedules import Schedule

Act = Literal[
    "enqueue",
    "cancel",
    "retry",
    "promote",
    "edit",
    "move",
    "delete",
    "put",
    "pause",
    "resume",
    "run",
    "close",
    "stop",
]
"""What was done. Of an operation: what it does to its jobs, or `stop`."""

What = Literal["job", "queue", "key", "schedule", "group", "operation"]
"""To what it was done."""

Differences = Mapping[str, tuple[Any, Any]]
"""By the name of a field: what it was, and what it has become; None: it was not there, or is not set."""

Facts = Mapping[str, Any]
"""How something stands, field by field. Of bytes only the number is kept, and that they have changed."""

TIMES = frozenset(
    (
        "run_at",
        "expires_at",
        "deadline",
        "paused_until",
        "starts_at",
        "ends_at",
        "job.expires_at",
        "job.deadline",
    )
)
"""The fields whose values are times, in seconds since the epoch."""

LONGEST_TEXT = 500
"""The most characters of a name or a reason."""

LONGEST_VALUE = 500
"""The most bytes of one value, as JSON; of a longer one the beginning is kept, as a text."""

MOST_BYTES = 3000
"""The most bytes of all values of one act, about: of many, each has less."""


class By(msgspec.Struct, frozen=True, kw_only=True):
    """Who does something by hand, and when."""

    who: str
    address: str | None
    """of the client; None: it is not known"""
    node: str
    """the name of the node that does it"""
    at: float
    reason: str | None = None
    """in the words of whoever did it"""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """An act as it is kept."""

    number: int
    at: float
    who: str
    address: str | None
    node: str
    act: Act | None
    """None: it cannot be read"""
    what: What | None
    """None: it cannot be read"""
    name: str
    """of the job, queue, schedule, group or operation; of a key: of its queue"""
    key: str | None
    changes: Differences
    reason: str | None
    jobs: int | None
    """how many jobs an operation has changed; None: it has not ended, or this is another act"""
    error: JobError | None = None
    """what of its row cannot be read"""


def differences(before: Facts, after: Facts) -> Differences:
    """What has changed of something, bounded; nothing, where nothing has."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    most = min(LONGEST_VALUE, MOST_BYTES // (2 * max(1, len(names))))
    return {name: (_bounded(before.get(name), most), _bounded(after.get(name), most)) for name in names}


def _bounded(value: object, most: int) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, bytes):
        return len(value)
    encoded = msgspec.json.encode(value)
    if len(encoded) > most:
        return encoded[:most].decode(errors="ignore") + "..."
    return msgspec.json.decode(encoded)


def brief(job: Job) -> Facts:
    """Of a job that came or is gone: what it is."""
    return {"status": job.status, "kind": job.asked.kind, "queue": job.asked.queue}


def job_facts(job: Job) -> Facts:
    """What may be changed of a job by hand."""
    return {"status": job.status, "run_at": job.asked.run_at, **asked_facts(job.asked)}


def asked_facts(asked: NewJob) -> dict[str, Any]:
    """What is asked of a job, but for its id, its kind and its times."""
    options = asked.options
    return {
        "queue": asked.queue,
        "priority": asked.priority,
        "max_retries": asked.max_retries,
        "expires_at": asked.expires_at,
        "deadline": options.deadline,
        "timeout": options.timeout,
        "backoff": options.backoff,
        "on_crash": options.on_crash,
        "tags": options.tags,
        "key": options.key,
        "payload_bytes": asked.payload,
    }


def schedule_facts(schedule: Schedule | None) -> Facts:
    """How a schedule stands, without its firings; those of its job begin with `job.`."""
    if schedule is None:
        return {}
    facts = {"paused": schedule.paused, "reason": schedule.reason, "declared": schedule.declared}
    facts |= msgspec.structs.asdict(schedule.spec)
    if schedule.job is not None:
        facts["job.kind"] = schedule.job.kind
        facts |= {f"job.{name}": value for name, value in asked_facts(schedule.job).items()}
    return facts


def cut(text: str | None, most: int = LONGEST_TEXT) -> str | None:
    """A text without NUL and lone surrogates, of so many characters at most."""
    if text is None:
        return None
    return text.replace("\0", "")[:most].encode(errors="replace").decode()
