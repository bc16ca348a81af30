"""The list of jobs: which jobs there are, and what can be done to many of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal
from urllib.parse import urlencode

import msgspec

from jobpipe.api.problems import Fault, invalid
from jobpipe.dashboard.facts import PAGE
from jobpipe.dashboard.search import Search, Word, Wrong, written
from jobpipe.dashboard.views.common import HOME, JobRow, job_row, jobs_url, listed_statuses
from jobpipe.dashboard.words import Sentence, many, number, says, time
from jobpipe.job import Job, Status
from jobpipe.store.base import Operation, Page

Verb = Literal["cancel", "retry", "promote", "move", "delete"]

VERBS: Mapping[Verb, tuple[str, str]] = {
    "cancel": ("Cancel", "to be cancelled"),
    "retry": ("Retry", "to be retried"),
    "promote": ("Promote", "to be run now"),
    "move": ("Move", "to be moved"),
    "delete": ("Delete", "to be deleted"),
}
"""What can be done to many jobs: on a button, and in a sentence."""

TYPED = 1000
"""Above so many jobs the number has to be typed; to delete jobs it always has to be."""

LIVE_QUERY = 4000
"""The most characters of ids in the address of a stream; the rows of other jobs stand still."""

WHEN = {"done": "Ended", "failed": "Ended", "cancelled": "Ended", "expired": "Ended"} | {
    "running": "Started",
    "cancelling": "Started",
}
"""What the time of a row is, where all rows have one status; else it is told by each status."""


class Tab(msgspec.Struct, frozen=True):
    """All jobs, or those of one status."""

    status: str
    label: str
    count: str
    href: str
    current: bool


class Filter(msgspec.Struct, frozen=True):
    """A word of the search, and the list without it."""

    text: str
    href: str


class Jobs(msgspec.Struct, frozen=True, kw_only=True):
    """The page."""

    text: str
    wrong: Sequence[Wrong]
    tabs: Sequence[Tab]
    rows: Sequence[JobRow]
    when: str
    scan: Sentence
    """how far was looked, where the search has not come to its end"""
    further: str
    """where it goes on"""
    older: str
    first: str
    """where the newest are, on a later page"""
    drops: Sequence[Filter]
    live: str
    """where its stream is"""
    count: str
    """what was counted, or empty"""
    count_href: str


def jobs(  # noqa: PLR0913 - what was asked, and what came of it
    search: Search,
    page: Page | None,
    counts: Mapping[Status, int] | None,
    *,
    cursor: str,
    next_cursor: str,
    retries: Callable[[Job], int],
    counted: tuple[int, bool] | None = None,
) -> Jobs:
    """The page of a search, whatever came of it; `cursor` and `next_cursor` are empty at either end."""
    found = page.jobs if page is not None else ()
    text = search.text
    further = jobs_url(*search.words, cursor=next_cursor) if next_cursor else ""
    short = bool(next_cursor) and len(found) < PAGE
    statuses = search.values("status")
    return Jobs(
        text=text,
        wrong=search.wrong,
        tabs=tabs(search, counts),
        rows=[job_row(job, retries(job)) for job in found],
        when=WHEN.get(statuses[0], "Due") if len(statuses) == 1 else "Time",
        scan=_scan(page, len(found)) if short else (),
        further=further if short else "",
        older="" if short else further,
        first=jobs_url(*search.words) if cursor else "",
        drops=[
            Filter(written([word]), jobs_url(*(w for w in search.words if w != word)))
            for word in search.words
        ],
        live="" if search.wrong else live_url(text, found, first=not cursor),
        count="" if counted is None else _counted(*counted),
        count_href="" if search.by_counts or search.wrong else jobs_url(*search.words, count="1"),
    )


def live_url(text: str, found: Sequence[Job], *, first: bool) -> str:
    """Where the stream of a page is: the search, the jobs on it, and since when more are new ones."""
    room, pairs = LIVE_QUERY, [("q", text)]
    if first:
        newest = max((job.asked.created_at for job in found), default=0.0)
        pairs.append(("after", repr(newest)))
    for job in found:
        room -= len(job.id) + 4
        if room < 0:
            break
        pairs.append(("id", job.id))
    return f"{HOME}/live/jobs?{urlencode(pairs)}"


def tabs(search: Search, counts: Mapping[Status, int] | None) -> Sequence[Tab]:
    """All jobs, and those of each status, with their numbers where the store keeps count."""
    rest = search.without("status")
    chosen = search.values("status")

    def tab(status: str, label: str, count: int | None) -> Tab:
        words = [*([Word("status", status)] if status else []), *rest]
        current = chosen == [status] if status else not chosen
        return Tab(status, label, "" if count is None else number(count), jobs_url(*words), current)

    each = [
        tab(status.value, status.value, None if counts is None else counts.get(status, 0))
        for status in listed_statuses()
    ]
    return [tab("", "all", None if counts is None else sum(counts.values())), *each]


def _scan(page: Page | None, found: int) -> Sentence:
    place = None if page is None else page.next_before
    if place is None:
        return ()
    what = many(found, "job") if found else "none"
    return says("Looked back to ", time(place.created_at), f" and found {what}.")


def _counted(count: int, exact: bool) -> str:  # noqa: FBT001 - as `Operations.count` tells it
    return many(count, "job") if exact else f"at least {many(count, 'job')}"


class Confirm(msgspec.Struct, frozen=True, kw_only=True):
    """What is about to be done to many jobs."""

    verb: Verb
    label: str
    """on the button: `Retry 214 jobs`"""
    title: str
    text: str
    """the filter in words; empty where single jobs were ticked"""
    ids: Sequence[str]
    count: int
    exact: bool
    examples: Sequence[JobRow]
    typed: bool
    """whether the number has to be typed"""
    back: str
    refused: str
    """why it was not done; empty: it was not tried"""


def confirm(
    verb: Verb,
    search: Search,
    ids: Sequence[str],
    counted: tuple[int, bool],
    examples: Sequence[JobRow],
    refused: str = "",
) -> Confirm:
    """What to ask before something is done to many jobs."""
    count, exact = counted
    label, sentence = VERBS[verb]
    jobs_ = _counted(count, exact)
    return Confirm(
        verb=verb,
        label=f"{label} {jobs_}",
        title=f"{jobs_[0].upper()}{jobs_[1:]} {sentence}",
        text="" if ids else search.text,
        ids=ids,
        count=count,
        exact=exact,
        examples=examples,
        typed=verb == "delete" or count > TYPED or not exact,
        back=jobs_url(*search.words),
        refused=refused,
    )


def check_typed(verb: Verb, typed: str, shown: str, counted: tuple[int, bool]) -> None:
    """Raise `Problem` where the number of the jobs has to be typed, and was not, or is not theirs any more.

    Of very many jobs nobody knows the number exactly: then the one that was `shown` has to be typed.
    """
    count, exact = counted
    needed = verb == "delete" or count > TYPED or not exact
    if needed and typed.strip().replace(",", "") != (str(count) if exact else shown):
        raise invalid([Fault("/typed", f"is not the number of the jobs, which is {count}: type that")])


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What is done to many jobs, and how far that is."""

    id: str
    title: str
    state: str
    sub: Sentence
    matched: str
    changed: str
    refused: str
    running: bool
    stop: str
    error: str
    back: str


def progress(operation: Operation) -> Progress:
    """An operation as its page shows it."""
    asked = operation.asked
    label = asked.verb.capitalize()
    begun = time(operation.created_at, "since" if operation.state == "running" else "at")
    rate = f", at most {asked.rate:g} a second" if asked.rate is not None else ""
    return Progress(
        id=asked.id,
        title=f"{label}: {many(operation.matched, 'job')}",
        state=operation.state,
        sub=says("Begun ", begun, f"{rate}. ", *_ended(operation)),
        matched=number(operation.matched),
        changed=number(operation.changed),
        refused=number(operation.refused),
        running=operation.state == "running",
        stop=f"{HOME}/operations/{asked.id}/stop",
        error="" if operation.error is None else f"{operation.error.type}: {operation.error.message}",
        back=jobs_url(),
    )


def _ended(operation: Operation) -> Sentence:
    if operation.ended_at is None:
        return says("It goes on, whatever becomes of this page.")
    return says(f"{operation.state.capitalize()} ", time(operation.ended_at), ".")
