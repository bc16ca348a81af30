"""What of a job has changed, as it is stored."""

from collections.abc import Mapping, Sequence
from typing import Any

from jobpipe.job import AttemptRecord
from jobpipe.store.rows import encoded_error, encoded_options
from jobpipe.transitions import Stored

_PLAIN = (
    "kind",
    "queue",
    "priority",
    "payload",
    "result",
    "attempt",
    "max_retries",
    "claim",
    "run_at",
    "started_at",
    "finished_at",
    "expires_at",
)
"""Fields of `Job` that are stored as they are."""


def changed(before: Stored, after: Stored) -> Mapping[str, Any]:
    """The columns of a job that differ, with their new values; nodes and what is held apart.

    What of a damaged row could not be read is left as it is, but for its error, which every change writes anew.
    """
    one, other = before.job, after.job
    columns: dict[str, Any] = {
        name: getattr(other, name) for name in _PLAIN if getattr(one, name) != getattr(other, name)
    }
    if one.status is not other.status or one.damage:
        columns["status"] = other.status.value
    if one.error != other.error or one.damage:
        columns["error"] = encoded_error(other.error)
    if one.options != other.options:
        columns["options"] = encoded_options(other.options)
    if before.rescued != after.rescued:
        columns["rescued"] = after.rescued
    if before.size != after.size:
        columns["size"] = after.size
    return columns


def ended_attempts(before: Stored, after: Stored) -> Sequence[AttemptRecord]:
    """The attempts that the change has ended."""
    return after.job.attempts[len(before.job.attempts) :]


def tags(before: Stored, after: Stored) -> tuple[Sequence[str], Sequence[str]]:
    """The tags that are gone, and those that are new."""
    old, new = before.job.options.tags, after.job.options.tags
    return [tag for tag in old if tag not in new], [tag for tag in new if tag not in old]
