"""`/groups`: put jobs into a group, which has one more run when all of them have ended; close it, see how it stands."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from msgspec import Meta
from msgspec.structs import replace
from quart import Blueprint, Response
from quart_schema import tag_blueprint

from jobpipe.api.acting import by_client
from jobpipe.api.answers import Answer, answer
from jobpipe.api.bulk import MOST, check_stored, fault_of, items_asked
from jobpipe.api.durations import in_seconds
from jobpipe.api.enqueue import check_json, read, too_late
from jobpipe.api.faults import faults_of
from jobpipe.api.inputs import received
from jobpipe.api.malformed import BOM
from jobpipe.api.problems import Code, Fault, invalid, no_group, other_group
from jobpipe.api.responses import respond
from jobpipe.api.schemas import NULL, GroupRequest, GroupView, Means, OpenFor, rfc3339, when
from jobpipe.api.spec import Content, answers, problems, takes
from jobpipe.asking import MERGED
from jobpipe.engine.admission import is_late
from jobpipe.engine.node import Node
from jobpipe.job import Name, NewJob, OnFailure
from jobpipe.store.base import GroupState, NewGroup, Receipt

GroupInPath = Annotated[Name, Means("the group's id")]

EXAMPLE: Mapping[str, Any] = {
    "id": "import",
    "jobs": [{"kind": "demo", "payload": {"fail": 0}}, {"payload": 2}],
    "then": {"payload": "all have ended"},
}
OPEN: Mapping[str, Any] = {"id": "crawl", "open": "1h", "then": {"payload": "all have ended"}}
LOCATION: Mapping[str, Any] = {
    "Location": {
        "description": "the path of the group",
        "schema": {"type": "string"},
        "example": "/groups/import",
    }
}


class SentGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request whose jobs are the bytes that were sent, so that each is read like a single request."""

    id: Name | None = None
    jobs: Annotated[list[msgspec.Raw], Meta(max_length=MOST)] = []
    then: msgspec.Raw = NULL
    on_failure: OnFailure = "go_on"
    open: msgspec.Raw = NULL


class _Named(msgspec.Struct, frozen=True):
    """Whether a request names an id."""

    id: str | None = None


_decode = msgspec.json.Decoder(SentGroup).decode
_decode_named = msgspec.json.Decoder(_Named).decode


def groups_blueprint(node: Node) -> Blueprint:
    """The routes below `/groups`."""
    routes = Blueprint("groups", __name__)
    tag_blueprint(routes, ["groups"])

    @routes.post("/groups")
    @takes(Content(GroupRequest, examples={"group": EXAMPLE, "open": OPEN}))
    @answers(
        200,
        "The group as it is now: the same request stored it before.",
        Content(GroupView),
        headers=LOCATION,
    )
    @answers(202, "The group, stored so that it survives a crash.", Content(GroupView), headers=LOCATION)
    @problems(
        Code.NOT_JSON,
        Code.CROSS_SITE,
        Code.ID_CONFLICT,
        Code.DEPENDENCY_FAILED,
        Code.QUEUE_CLOSED,
        Code.UNKNOWN_DEPENDENCY,
        Code.UNSUPPORTED_MEDIA_TYPE,
        Code.QUEUE_FULL,
        Code.DRAINING,
        Code.STORE_UNAVAILABLE,
    )
    async def post_group() -> Response:
        """Enqueue a group of jobs.

        Stored whole or not at all. `then` is `blocked` until all `jobs` have ended, however that was; its handler is
        told how many ended in which way. With `"on_failure": "cancel"`, the first of them that does not succeed has the
        others cancelled. Jobs without an `id` get that of the group and a number, so the request can be sent again: 200
        and the group as it is now. 409 when another group, or another job, has one of the ids.

        With `open`, jobs can be added (`group` in `POST /enqueue`) for so long, or until the group is closed. Until
        then it has not ended, whatever its jobs have come to. It may have no jobs yet.
        """
        content_type, body = await received()
        check_json(content_type)
        return respond(await _post(node, body.removeprefix(BOM)))

    @routes.post("/groups/<group_id>/close")
    @answers(200, "The group, which takes no more jobs.", Content(GroupView))
    @problems(Code.NO_SUCH_GROUP, Code.CROSS_SITE, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def close_group(group_id: GroupInPath) -> Response:
        """Close a group.

        No more jobs can be added, but by jobs of the group that still run. `then` runs once all of its jobs have ended:
        at once, if they have. A group that is closed stays as it is.
        """
        _check_id(group_id)
        return respond(
            answer(_view(_there(group_id, await node.control.close_group(group_id, by=by_client(node)))))
        )

    @routes.get("/groups/<group_id>")
    @answers(200, "The group.", Content(GroupView))
    @problems(Code.NO_SUCH_GROUP, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def get_group(group_id: GroupInPath) -> Response:
        """Get a group.

        With how many of its jobs have which status; `GET /jobs?group=ID` lists them.
        """
        _check_id(group_id)
        return respond(answer(_view(await _found(node, group_id))))

    return routes


async def _post(node: Node, body: bytes) -> Answer:
    new = await _asked(node, body)
    receipt = await node.admission.enqueue_group(new)
    if receipt.verdict not in {"stored", "existing"}:
        _refuse(new, receipt.receipts)
    view = _view(await _found(node, new.id))
    location = {"Location": "/groups/" + quote(new.id, safe="")}
    return answer(view, 202 if receipt.verdict == "stored" else 200, location)


async def _asked(node: Node, body: bytes) -> NewGroup:
    """The group that a body asks for. Raises `Problem` with every fault of it, or `StoreError`."""
    sent = read(body, _decode, SentGroup, GroupRequest)
    has_then = sent.then != NULL
    items = [*sent.jobs, sent.then] if has_then else sent.jobs
    made, faults = await items_asked(node, items)
    faults |= {place: [too_late(job)] for place, job in made.items() if is_late(job)}
    faults |= {place: found for place, job in made.items() if (found := _not_here(job))}
    last = len(sent.jobs)
    if last in made and made[last].options.depends_on:
        faults[last] = [
            Fault("/depends_on", "cannot be combined: this job waits for the others of the group")
        ]
    open_for, wrong = _open_for(sent)
    if faults or wrong:
        raise invalid(
            [
                *wrong,
                *(
                    Fault(f"/{'then' if place == last else f'jobs/{place}'}{one.pointer}", one.detail)
                    for place in sorted(faults)
                    for one in faults[place]
                ),
            ]
        )
    group_id = sent.id or node.admission.new_id()
    jobs = [
        _member(made[place], group_id, f"{group_id}.{place + 1}", raw) for place, raw in enumerate(sent.jobs)
    ]
    then = None if not has_then else _callback(made[last], group_id, sent.then)
    return NewGroup(id=group_id, on_failure=sent.on_failure, jobs=jobs, then=then, open_for=open_for)


def _open_for(sent: SentGroup) -> tuple[float | None, Sequence[Fault]]:
    """For how long a group is to be open, which may be sent as a text; and what is wrong with that."""
    value = in_seconds(msgspec.json.decode(sent.open), OpenFor)
    if value is None and not sent.jobs:
        return None, [Fault("/jobs", "holds no job: send one, or open to add some later")]
    return value, faults_of(value, OpenFor | None, "/open")


def _not_here(job: NewJob) -> Sequence[Fault]:
    """What is wrong with a job that is to be merged with others, or belong to a group: this one has jobs of its own."""
    return [
        Fault(f"/{name}", "cannot be combined: a group has jobs of its own")
        for name in ("group", *MERGED)
        if getattr(job.options, name) is not None
    ]


def _member(job: NewJob, group_id: str, otherwise: str, raw: msgspec.Raw) -> NewJob:
    return replace(job, id=_named(raw) or otherwise, options=replace(job.options, group=group_id))


def _callback(job: NewJob, group_id: str, raw: msgspec.Raw) -> NewJob:
    job_id = _named(raw) or f"{group_id}.then"
    return replace(job, id=job_id, options=replace(job.options, callback_of=group_id))


def _named(raw: msgspec.Raw) -> str | None:
    """The id that a valid request names; None: it leaves that to the service."""
    return _decode_named(raw).id


def _refuse(new: NewGroup, receipts: Sequence[Receipt]) -> None:
    """Raise why a group was not stored."""
    places = enumerate(receipts)
    if cycle := [
        Fault(f"/jobs/{place}{fault.pointer}", fault.detail)
        for place, receipt in places
        if (fault := fault_of(new.every[place], receipt)) is not None
    ]:
        raise invalid(cycle)
    check_stored(receipts)
    raise other_group(new.id)


def _check_id(group_id: str) -> None:
    if faults := faults_of(group_id, Name, "?group_id"):
        raise invalid(faults)


async def _found(node: Node, group_id: str) -> GroupState:
    return _there(group_id, await node.store.group(group_id))


def _there(group_id: str, group: GroupState | None) -> GroupState:
    if group is None:
        raise no_group(group_id)
    return group


def _view(group: GroupState) -> GroupView:
    return GroupView(
        id=group.id,
        jobs=group.jobs,
        counts=group.counts,
        then=group.callback,
        on_failure=group.on_failure,
        created_at=rfc3339(group.created_at),
        open_until=when(group.open_until),
        closed_at=when(group.closed_at),
        ended_at=when(group.ended_at),
    )
