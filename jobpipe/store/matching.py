"""Whether a filter means a job. Pure: what the lists of each database find in SQL, said once more for a job at hand."""

from jobpipe.job import Job, Status
from jobpipe.store.base import SEVERAL, Filter, Summary
from jobpipe.transitions import Stored


def matches(stored: Stored, where: Filter) -> bool:
    """Whether all of the filter applies to a job, as it is now. What of its row cannot be read matches nothing."""
    job = stored.job
    return (
        _one_of(job.status, where, "status")
        and _of_kind(job.asked.kind, where)
        and _one_of(job.asked.queue, where, "queue")
        and _one_of(job.id, where, "id")
        and (where.tag is None or not set(where.each("tag")).isdisjoint(job.asked.options.tags))
        and _one_of(job.asked.options.group, where, "group")
        and _one_of(job.asked.options.key, where, "key")
        and _one_of(stored.node, where, "node")
        and _one_of(None if job.state.error is None else job.state.error.type, where, "error_type")
        and _one_of(job.state.fingerprint, where, "fingerprint")
        and _within(job.asked.created_at, where.created_after, where.created_before)
        and _within(job.state.finished_at, where.ended_after, where.ended_before)
        and (where.top is None or stored.seq <= where.top)
        and (where.text is None or _holds(job, where.text))
    )


def _one_of(value: str | None, where: Filter, field: str) -> bool:
    return getattr(where, field) is None or value in where.each(field)


def _of_kind(kind: str, where: Filter) -> bool:
    return where.kind is None or kind in where.kinds or kind.startswith(where.prefixes)


def _within(at: float | None, after: float | None, before: float | None) -> bool:
    if after is None and before is None:
        return True
    return at is not None and (after is None or at >= after) and (before is None or at < before)


def _holds(job: Job, text: str) -> bool:
    error = job.state.error
    return (
        text in job.id or text.encode() in job.asked.payload or (error is not None and text in error.message)
    )


class EventFilter:
    """Whether a filter means what is told of a job: by the fields of `SEVERAL`. Made once, since events are many."""

    def __init__(self, where: Filter) -> None:
        self._where = where
        values = {name: frozenset(where.each(name)) for name in SEVERAL if getattr(where, name) is not None}
        self._status, self._id = values.pop("status", None), values.pop("id", None)
        self._tags, self._errors = values.pop("tag", None), values.pop("error_type", None)
        self._fingerprints = values.pop("fingerprint", None)
        self._any_kind = values.pop("kind", None) is None
        self._plain = list(values.items())

    def means(self, job_id: str, status: str, job: Summary | None) -> bool:
        """Whether all of it applies to a job that came to a status; None: of the job nothing else is known."""
        if (self._status is not None and status not in self._status) or (
            self._id is not None and job_id not in self._id
        ):
            return False
        if job is None:
            return (
                self._any_kind
                and not self._plain
                and self._tags is self._errors is self._fingerprints is None
            )
        return (
            (self._any_kind or _of_kind(job.kind, self._where))
            and all(getattr(job, name) in allowed for name, allowed in self._plain)
            and (self._tags is None or not self._tags.isdisjoint(job.tags))
            and (self._errors is None or (job.error is not None and job.error.type in self._errors))
            and (self._fingerprints is None or _failed_with(job, status) in self._fingerprints)
        )


def _failed_with(job: Summary, status: str) -> str | None:
    """The fingerprint of the error with which a job has failed, if it has."""
    if status != Status.FAILED or job.error is None:
        return None
    return job.error.fingerprint or None
