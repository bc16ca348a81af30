"""The log of a job over HTTP: a page of it, or what comes next."""

from collections.abc import Sequence

import msgspec
import trio

from jobpipe.api.problems import no_job
from jobpipe.api.schemas import LineView, LogQuery, LogView, rfc3339
from jobpipe.engine.node import Node
from jobpipe.job import LEVELS, Level
from jobpipe.store.base import LogPage, StoredLine


async def page_of(node: Node, job_id: str, wanted: LogQuery) -> LogView:
    """The part of a job's log that is asked for; with `wait`, as soon as there is a line, or the job has ended.

    Raises `Problem` when there is no such job, or `StoreUnavailable`.
    """
    asked = (job_id, wanted.after, wanted.limit, levels_from(wanted.level))
    page = await node.store.log(*asked)
    if wanted.wait and page is not None and not (page.lines or page.ended):
        with trio.move_on_after(wanted.wait):
            page = await node.waiting.logged(*asked)
    if page is None:
        raise no_job(job_id)
    return view(page, wanted)


def levels_from(level: Level) -> Sequence[Level]:
    """A level, and those that matter more."""
    return LEVELS[LEVELS.index(level) :]


def view(page: LogPage, wanted: LogQuery) -> LogView:
    """A page as it is shown, and where the next one begins."""
    full = len(page.lines) == wanted.limit
    last = page.lines[-1].n if full else page.last
    return LogView(
        lines=[_line(one) for one in page.lines],
        dropped=page.dropped,
        next_after=None if page.ended and not full else last,
    )


def _line(one: StoredLine) -> LineView:
    return LineView(
        n=one.n,
        at=rfc3339(one.at),
        attempt=one.attempt,
        level=one.level,
        text=one.text,
        fields=None if one.fields is None else msgspec.Raw(one.fields),
    )
