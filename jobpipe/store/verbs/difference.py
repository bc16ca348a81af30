"""What of a job has changed, as it is stored."""

from collections.abc import Mapping, Sequence
from typing import Any

from jobpipe.job import ENDED, AttemptRecord, NewJob, State, Status
from jobpipe.store.rows import encoded_error, encoded_options, encoded_original
from jobpipe.store.verbs.transaction import Ended
from jobpipe.transitions import Stored

_ASKED = tuple(name for name in NewJob.__struct_fields__ if name != "options")
_STATE = tuple(name for name in State.__struct_fields__ if name not in {"status", "error"})
"""Fields of a job that are stored as they are."""


def changed(before: Stored, after: Stored) -> Mapping[str, Any]:
    """The columns of a job that differ, with their new values; nodes and what is held apart.

    What of a damaged row could not be read is left as it is, but for its error, which every change writes anew.
    """
    one, other = before.job, after.job
    columns = _differing(one.asked, other.asked, _ASKED) | _differing(one.state, other.state, _STATE)
    if one.status is not other.status or one.damage:
        columns["status"] = other.status.value
    if one.state.error != other.state.error or one.damage:
        columns["error"] = encoded_error(other.state.error)
    if Status.FAILED in {one.status, other.status}:  # written anew, whatever stands there
        columns["fingerprint"] = other.state.fingerprint
    if one.asked.options != other.asked.options:
        columns["options"] = encoded_options(other.asked.options)
    if one.original is not other.original:
        columns["original"] = encoded_original(other.original)
    if before.rescued != after.rescued:
        columns["rescued"] = after.rescued
    if before.size != after.size:
        columns["size"] = after.size
    return columns


def _differing(one: object, other: object, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(other, name) for name in names if getattr(one, name) != getattr(other, name)}


def ended_attempts(before: Stored, after: Stored) -> Sequence[AttemptRecord]:
    """The attempts that the change has ended."""
    return after.job.attempts[len(before.job.attempts) :]


def ended(changes: Sequence[tuple[Stored, Stored]]) -> Sequence[Ended]:
    """The jobs that the changes have ended and that others may wait for."""
    return [
        Ended(before.seq, before.job.id, after.job.status.value)
        for before, after in changes
        if before.followed and after.job.status in ENDED and before.job.status not in ENDED
    ]


def stopped(changes: Sequence[tuple[Stored, Stored]]) -> Sequence[int]:
    """The numbers of the jobs that the changes have cancelled, or asked to stop, and that may have children.

    One that nobody has claimed has none: only its handler could have enqueued them.
    """
    stops = {Status.CANCELLED, Status.CANCELLING}
    return [
        one.seq
        for one, after in changes
        if after.job.status in stops and one.job.status not in stops and one.job.state.claim
    ]


def wait_no_more(changes: Sequence[tuple[Stored, Stored]]) -> Sequence[int]:
    """The numbers of the jobs that waited for others before the changes, and do no more."""
    blocked = Status.BLOCKED
    return [one.seq for one, after in changes if one.job.status is blocked is not after.job.status]


def tags(before: Stored, after: Stored) -> tuple[Sequence[str], Sequence[str]]:
    """The tags that are gone, and those that are new."""
    old, new = before.job.asked.options.tags, after.job.asked.options.tags
    return [tag for tag in old if tag not in new], [tag for tag in new if tag not in old]
