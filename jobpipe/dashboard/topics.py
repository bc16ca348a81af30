"""What there is to watch: each topic is a page with what it shows, drawn as parts by their ids in that page."""

from collections.abc import Mapping
from urllib.parse import parse_qs, unquote

import msgspec

from jobpipe.api.problems import Problem
from jobpipe.dashboard.drawing import Drawing
from jobpipe.dashboard.facts import PAGE, Facts
from jobpipe.dashboard.search import LONGEST, read
from jobpipe.dashboard.views import job as job_view
from jobpipe.dashboard.views import jobs as jobs_view
from jobpipe.dashboard.views.common import job_row, jobs_url
from jobpipe.dashboard.views.overview import overview
from jobpipe.engine.node import Node
from jobpipe.job import Job

Parts = Mapping[str, bytes]
"""Parts of a page, by the ids of the elements that they replace."""

OVERVIEW = ("head", "needs", "river", "queues", "node")
JOB = ("head", "line", "failure", "attempts", "log", "content")
"""The parts of each page."""


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """What a viewer watches."""

    page: str
    """overview, jobs, job or operation"""
    id: str = ""
    search: str = ""
    after: float | None = None
    """since when jobs are new; None: they are not told of"""
    ids: tuple[str, ...] = ()


def topic_of(path: str, query: bytes) -> Topic | None:
    """What an address below `/dashboard/live/` means; None: nothing."""
    try:
        asked = parse_qs(query.decode(), max_num_fields=PAGE + 4)
        after = float(asked["after"][0]) if "after" in asked else None
    except (UnicodeDecodeError, ValueError):
        return None
    match path.split("/"):
        case ["overview"]:
            return Topic(page="overview")
        case ["jobs"]:
            search = asked.get("q", [""])[0][:LONGEST]
            return Topic(page="jobs", search=search, after=after, ids=tuple(asked.get("id", ())))
        case ["jobs", job_id] if job_id:
            return Topic(page="job", id=unquote(job_id))
        case ["operations", operation_id] if operation_id:
            return Topic(page="operation", id=operation_id)
        case _:
            return None


class Topics:
    """Draws topics."""

    def __init__(self, node: Node, facts: Facts, drawing: Drawing) -> None:
        self._node, self._facts, self._drawing = node, facts, drawing

    async def draw(self, topic: Topic) -> Parts:
        """All parts of a topic as they are now; none where what it is about is gone. Raises `StoreError`."""
        match topic.page:
            case "overview":
                page = overview(await self._facts.overview(), self._node.name)
                return {f"f-{name}": self._drawing.part(f"overview_{name}", page=page) for name in OVERVIEW}
            case "jobs":
                return await self._jobs(topic)
            case "operation":
                operation = await self._node.store.operation(topic.id)
                if operation is None:
                    return {}
                return {"f-operation": self._drawing.part("operation", page=jobs_view.progress(operation))}
            case _:
                try:
                    drawn = await self.job(topic.id)
                except Problem:
                    return {}
                return {f"f-{name}": self._drawing.part(f"job_{name}", page=drawn) for name in JOB}

    async def job(self, job_id: str) -> job_view.Page:
        """The page of a job. Raises `Problem` where there is none, or `StoreError`."""
        node, settings = self._node, self._node.settings
        return job_view.page(
            await self._facts.job(job_id),
            node.clock.now(),
            origin=f"http://localhost:{settings.port}{settings.base_path}",
            payloads=settings.show_payloads == "yes",
            acts=settings.dashboard == "on",
        )

    def retries(self, job: Job) -> int:
        """How often a job is retried."""
        most = job.asked.max_retries
        return self._node.registry.max_retries(job.asked.kind) if most is None else most

    async def _jobs(self, topic: Topic) -> Parts:
        search = read(topic.search, self._node.clock.now())
        tabs = jobs_view.tabs(search, await self._facts.counts(search))
        parts = {"f-tabs": self._drawing.part("jobs_tabs", page={"tabs": tabs})}
        for job in await self._facts.some(topic.ids):
            row = job_row(job, self.retries(job))
            parts[row.dom] = self._drawing.row(row)
        if topic.after is not None:
            new = await self._facts.newer(search, topic.after)
            words = f"{new}+" if new >= PAGE else str(new or "")
            parts["f-new"] = self._drawing.part("jobs_new", new=words, href=jobs_url(*search.words))
        return parts
