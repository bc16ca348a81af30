"""The page of one job: what became of it, and why."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from msgspec import UNSET, UnsetType

from jobpipe.api.schemas import WaitsFor
from jobpipe.dashboard.draw import Lifeline, Row, lifeline, rows
from jobpipe.dashboard.facts import OfJob
from jobpipe.dashboard.search import Word
from jobpipe.dashboard.views.common import Act, curl, dom_of, job_url, jobs_url, queue_url
from jobpipe.dashboard.views.content import Frames, Text, frames, json_text
from jobpipe.dashboard.words import (
    Part,
    Sentence,
    duration,
    first_line,
    many,
    number,
    says,
    strong,
    time,
    time_of_day,
)
from jobpipe.job import WAITING, AttemptRecord, Backoff, Job, JobError, Outcome, Status

FIELDS = 300
"""The most characters of a log line's fields that are shown."""

MARKS = {
    Outcome.DONE: "done",
    Outcome.RETRY: "retrying",
    Outcome.FAIL: "failed",
    Outcome.SNOOZE: "scheduled",
    Outcome.CANCELLED: "cancelled",
    Outcome.INTERRUPTED: "cancelled",
}
"""The glyph of each outcome."""


class Fact(msgspec.Struct, frozen=True):
    """Something that was asked of a job."""

    name: str
    value: Sentence


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A run of the job's handler."""

    number: int
    claim: int
    node: str
    started: Part | None
    row: Row
    ran: Part | None
    outcome: str
    mark: str
    error: str
    frames: Sequence[Frames]
    same_as: int
    """the earlier attempt that failed with the same error; 0: none did"""


class Failure(msgspec.Struct, frozen=True):
    """Why it failed, with the place."""

    type: str
    message: str
    where: str
    frames: Sequence[Frames]
    others: str
    """where the jobs are that failed with the same error"""


class Line(msgspec.Struct, frozen=True):
    """A line of its log."""

    at: str
    """seconds since its attempt began"""
    attempt: int
    level: str
    text: str
    fields: str


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """The page."""

    dom: str
    id: str
    kind: str
    kind_href: str
    status: str
    sub: Sentence
    facts: Sequence[Fact]
    acts: Sequence[Act]
    waits: Sentence
    """why it does not run, or what its cancel waits for"""
    line: Lifeline | None
    line_words: str
    attempts: Sequence[Attempt]
    failure: Failure | None
    fraction: float | None
    """how far it is, from 0 to 1; None: it has not said"""
    message: str
    lines: Sequence[Line]
    dropped: int
    """how many lines of its log were left out"""
    hidden: bool
    """whether SHOW_PAYLOADS keeps payload, result and log back"""
    payload: Text
    result: Text | None
    edits: bool
    """whether it can be edited"""
    priority: int
    queue: str
    curl: str
    live: str


def page(of: OfJob, now: float, *, origin: str, payloads: bool, acts: bool) -> Page:
    """The page of a job; `origin` stands in the lines for a shell. `acts`: whether it has buttons."""
    job, asked = of.job, of.job.asked
    line = lifeline(job, now, of.timeout)
    attempts = _attempts(job, now)
    return Page(
        dom=dom_of(job.id),
        id=job.id,
        kind=asked.kind,
        kind_href=jobs_url(Word("kind", asked.kind)),
        status=job.status.value,
        sub=headline(of),
        facts=_facts(of),
        acts=acts_of(job, origin) if acts else (),
        waits=() if of.waits is None else why(of.waits, asked.queue),
        line=line,
        line_words="" if line is None else _in_words(line, attempts),
        attempts=attempts,
        failure=_failure(job, of.error),
        fraction=None if job.progress is None else job.progress.fraction,
        message="" if job.progress is None or not payloads else job.progress.message,
        lines=_lines(of) if payloads else (),
        dropped=of.log.dropped,
        hidden=not payloads,
        payload=json_text(asked.payload if payloads else b""),
        result=None if job.state.result is None or not payloads else json_text(job.state.result),
        edits=acts and job.status in WAITING,
        priority=asked.priority,
        queue=asked.queue,
        curl=curl(origin, f"/jobs/{job_url(job.id).rpartition('/')[2]}"),
        live=f"/dashboard/live/jobs/{job_url(job.id).rpartition('/')[2]}",
    )


def headline(of: OfJob) -> Sentence:  # noqa: C901, PLR0911 - one sentence for each status
    """How a job stands, in a sentence or two."""
    job, state = of.job, of.job.state
    last = job.attempts[-1] if job.attempts else None
    most = of.max_retries + 1
    match job.status:
        case Status.RUNNING:
            began = state.started_at
            since = () if began is None else (Part(" "), time(began, "for"))
            if began is None or of.timeout is None:
                return says(f"Attempt {state.attempt} of {most} runs{_on(last)}", *since, ".")
            ends = time(began + of.timeout, "in")
            return says(
                f"Attempt {state.attempt} of {most} runs{_on(last)}", *since, "; it times out ", ends, "."
            )
        case Status.CANCELLING:
            return says(
                f"It was cancelled while attempt {state.attempt} ran{_on(last)}, and its cleanup still runs."
            )
        case Status.DONE:
            return says("Done ", *_ended(job), f" in {_tries(state.attempt)}{_took(job)}.")
        case Status.FAILED:
            error = "" if state.error is None else f" with {state.error.type}"
            return says("Failed", error, " ", *_ended(job), f" after {_tries(state.attempt)}.")
        case Status.CANCELLED:
            return says("Cancelled ", *_ended(job), f" after {_tries(state.attempt)}.")
        case Status.EXPIRED:
            return says("Expired ", *_ended(job), ": it was still waiting at its expires_at.")
        case Status.RETRYING:
            return says(
                f"Attempt {state.attempt} of {most} failed; the next is due ",
                time(job.asked.run_at, "in"),
                ".",
            )
        case Status.SCHEDULED:
            return says("It is due ", time(job.asked.run_at, "in"), ".")
        case Status.QUEUED:
            return says("It has been due ", time(job.asked.run_at, "for"), ".")
        case Status.BLOCKED:
            return says("It waits for other jobs ", time(job.asked.created_at, "since"), ".")


def _on(last: AttemptRecord | None) -> str:
    return f" on {last.node}" if last is not None and last.node else ""


def _ended(job: Job) -> Sentence:
    at = job.state.finished_at
    return () if at is None else (time(at),)


def _tries(count: int) -> str:
    return "no attempt" if not count else many(count, "attempt")


def _took(job: Job) -> str:
    began, ended = job.state.started_at, job.state.finished_at
    return "" if began is None or ended is None else f"; the last took {duration(ended - began)}"


def _at(text: str | UnsetType | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if isinstance(text, str) else None


def why(waits: WaitsFor, queue: str) -> Sentence:  # noqa: C901, PLR0911, PLR0912 - one sentence for each reason
    """Why a job does not run yet, or what its cancel waits for: what is in the way, and until when."""
    of_queue = strong(queue, queue_url(queue))
    key = waits.key or "jobs without a key"
    until = _at(waits.until)
    then = () if until is None else (" ", time(until, "in"))
    match waits.reason:
        case "not_due":
            return says(
                "Waiting because it is not due yet: it is due ", time(_at(waits.run_at) or 0.0, "in"), "."
            )
        case "paused":
            reason = f" ({waits.pause_reason})" if waits.pause_reason else ""
            ends = (", which ends", *then) if then else ()
            return says("Waiting because queue ", of_queue, f" is paused{reason}", *ends, ".")
        case "queue_full":
            figures = f" is at its limit: {waits.running} of {waits.max_running} running."
            return says("Waiting because queue ", of_queue, figures)
        case "rate":
            return says(
                "Waiting because queue ", of_queue, " is at its rate; the next job may start", *then, "."
            )
        case "key_paused":
            return says("Waiting because key ", strong(key), " is paused.")
        case "key_stopped":
            failed = waits.stopped_by or ""
            return says(
                "Waiting because key ",
                strong(key),
                " has stopped at ",
                strong(failed, job_url(failed)),
                ", which failed.",
            )
        case "key_order":
            first = waits.behind or ""
            return says(
                "Waiting because jobs of key ",
                strong(key),
                " run in order, and ",
                strong(first, job_url(first)),
                " comes first.",
            )
        case "key_full":
            figures = f" is at its limit: {waits.running} of {waits.max_running} running."
            return says("Waiting because key ", strong(key), figures)
        case "key_rate":
            return says(
                "Waiting because key ", strong(key), " is at its rate; the next job may start", *then, "."
            )
        case "no_node":
            kind = waits.kind or ""
            return says(
                "Waiting because no live node runs jobs of kind ", strong(kind), " from queue ", of_queue, "."
            )
        case "turn":
            place = waits.place or 1
            line = f"number {number(place)}" if waits.exact else f"behind {number(place)} others"
            return says(f"Ready, and {line} in line" + (f" of key {key}." if waits.key else "."))
        case "dependencies" | "group":
            return _others(waits)
        case "handler":
            since = _at(waits.since)
            told = () if since is None else (", which was told ", time(since, "since"))
            return says(f"Its handler has not ended on {waits.node or 'its node'}", *told, ".")


def _others(waits: WaitsFor) -> Sentence:
    count = 0 if waits.count is UNSET else waits.count
    ids = [] if waits.open is UNSET else list(waits.open)[:3]
    links = [part for job_id in ids for part in (" ", strong(job_id, job_url(job_id)))]
    more = [f" and {number(count - len(ids))} more"] if count > len(ids) else []
    whose = f" of group {waits.group}" if waits.group is not UNSET else ""
    still = " The group is still open." if waits.group_open is True else ""
    if not count:
        return says(f"Waiting for group {waits.group} to be closed.")
    return says(
        f"Waiting because {many(count, 'job')}{whose} {'has' if count == 1 else 'have'} not ended:",
        *links,
        *more,
        f".{still}",
    )


def acts_of(job: Job, origin: str) -> Sequence[Act]:
    """What can be done to a job as it stands."""
    path = f"/jobs/{job_url(job.id).rpartition('/')[2]}"

    def act(verb: str, label: str, key: str = "", *, warns: bool = False, asks: str = "") -> Act:
        line = curl(origin, path, "DELETE") if verb == "delete" else curl(origin, f"{path}/{verb}", "POST")
        url = job_url(job.id, verb)
        return Act(verb=verb, label=label, url=url, curl=line, key=key, warns=warns, asks=asks)

    delete = act(
        "delete", "Delete", warns=True, asks="The job, its attempts and its log will be gone for good."
    )
    cancel = act("cancel", "Cancel", "c", warns=True)
    match job.status:
        case Status.SCHEDULED | Status.RETRYING:
            return [act("promote", "Run now"), cancel, delete]
        case Status.QUEUED | Status.BLOCKED:
            return [cancel, delete]
        case Status.RUNNING:
            return [cancel]
        case Status.CANCELLING:
            return []
        case _:
            return [act("retry", "Retry", "r"), delete]


def _facts(of: OfJob) -> Sequence[Fact]:
    asked, options = of.job.asked, of.job.asked.options
    found = [
        Fact("Queue", says(Part(asked.queue, href=queue_url(asked.queue)))),
        Fact("Priority", says(str(asked.priority))),
        Fact("Retries", says(_retries(of.max_retries, options.backoff))),
        Fact("Enqueued", says(time(asked.created_at))),
    ]
    if of.timeout is not None:
        found.append(Fact("Timeout", says(duration(of.timeout))))
    if options.key is not None:
        found.append(Fact("Key", says(Part(options.key, href=jobs_url(Word("key", options.key))))))
    if options.tags:
        links = [part for tag in options.tags for part in (Part(tag, href=jobs_url(Word("tag", tag))), ", ")]
        found.append(Fact("Tags", says(*links[:-1])))
    if options.group is not None:
        found.append(Fact("Group", says(Part(options.group, href=jobs_url(Word("group", options.group))))))
    if options.parent is not None:
        found.append(Fact("Enqueued by", says(Part(options.parent, href=job_url(options.parent)))))
    if options.schedule is not None:
        found.append(Fact("Schedule", says(options.schedule.name)))
    if options.depends_on:
        found.append(Fact("Depends on", says(many(len(options.depends_on), "job"))))
    if options.deadline is not None:
        found.append(Fact("Deadline", says(time(options.deadline))))
    elif asked.expires_at is not None:
        found.append(Fact("Expires", says(time(asked.expires_at))))
    return found


def _retries(most: int, backoff: Backoff | None) -> str:
    if backoff is None or not most:
        return number(most)
    return f"{number(most)}, base {duration(backoff.base)}, cap {duration(backoff.cap)}"


def _attempts(job: Job, now: float) -> Sequence[Attempt]:
    """The attempts, the newest first."""
    seen, found = dict[str, int](), list[Attempt]()
    for record, row in zip(job.attempts, rows(job, now), strict=True):
        same = _same(record.error, seen)
        if record.error is not None and not same and record.error.fingerprint is not UNSET:
            seen[record.error.fingerprint] = record.number
        found.append(_attempt(record, row, same))
    return found[::-1]


def _same(error: JobError | None, seen: dict[str, int]) -> int:
    return 0 if error is None or error.fingerprint is UNSET else seen.get(error.fingerprint, 0)


def _attempt(record: AttemptRecord, row: Row, same: int) -> Attempt:
    error, began, ended = record.error, record.started_at, record.finished_at
    ran = None
    if began is not None:
        ran = time(began, "age") if ended is None else Part(duration(ended - began))
    return Attempt(
        number=record.number,
        claim=record.claim,
        node=record.node or "",
        started=None if began is None else time(began),
        row=row,
        ran=ran,
        outcome="running" if record.outcome is None else record.outcome.value,
        mark="running" if record.outcome is None else MARKS[record.outcome],
        error="" if error is None else first_line(f"{error.type}: {error.message}"),
        frames=() if error is None or same else frames(error.traceback),
        same_as=same,
    )


def _failure(job: Job, error: JobError | None) -> Failure | None:
    """The error of a job that has failed or waits for its next attempt, or whose row is damaged."""
    if error is None or (job.status not in (Status.FAILED, Status.RETRYING) and not job.damage):
        return None
    fingerprint = error.fingerprint if isinstance(error.fingerprint, str) else ""
    others = (
        jobs_url(Word("status", "failed"), Word("fingerprint", fingerprint))
        if fingerprint and job.status is Status.FAILED
        else ""
    )
    where = error.where if isinstance(error.where, str) else ""
    return Failure(error.type, error.message[:4000], where, frames(error.traceback), others)


def _lines(of: OfJob) -> Sequence[Line]:
    began = {one.number: one.started_at for one in of.job.attempts}
    found = list[Line]()
    for line in of.log.lines:
        at, first = _at(line.at) or 0.0, began.get(line.attempt)
        said = time_of_day(at) if first is None else f"{at - first:.1f}"
        found.append(Line(said, line.attempt, line.level, line.text, _fields(line.fields)))
    return found


def _fields(stored: msgspec.Raw | None) -> str:
    """The fields of a log line as `name=value`, values as they were written."""
    if stored is None:
        return ""
    try:
        fields = msgspec.json.decode(stored, type=dict[str, msgspec.Raw])
        said = " ".join(f"{name}={bytes(value).decode()}" for name, value in fields.items())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        said = bytes(stored).decode("utf-8", "replace")
    return said[:FIELDS]


def _in_words(line: Lifeline, attempts: Sequence[Attempt]) -> str:
    """The drawing in a sentence."""
    what = many(len(attempts), "attempt") if attempts else "no attempt yet"
    return (
        f"Lifeline: {duration(line.running + line.waiting)} since it was enqueued, {duration(line.running)} running, "
        f"{duration(line.waiting)} waiting, {what}"
    )
