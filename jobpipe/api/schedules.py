"""`/schedules`: put, get, list, pause, resume, run and delete schedules."""

import itertools
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated
from urllib.parse import quote

import msgspec
from msgspec import UNSET
from quart import Blueprint, Response
from quart_schema import document_querystring, tag_blueprint

from jobpipe.api.acting import by_client
from jobpipe.api.answers import Answer, answer
from jobpipe.api.cursors import cursor_of, place_of
from jobpipe.api.descriptions import LOCATION
from jobpipe.api.enqueue import asked, check_json, known, read, unix_time
from jobpipe.api.faults import faults_of
from jobpipe.api.inputs import query, received
from jobpipe.api.malformed import BOM
from jobpipe.api.problems import Code, Fault, Problem, declared, invalid, no_schedule
from jobpipe.api.responses import respond
from jobpipe.api.schemas import (
    FiringView,
    JobView,
    Means,
    PauseRequest,
    ScheduledJobView,
    ScheduleList,
    ScheduleQuery,
    ScheduleRequest,
    ScheduleView,
    rfc3339,
    stored_view,
    when,
)
from jobpipe.api.spec import Content, answers, problems, takes
from jobpipe.engine.node import Node
from jobpipe.job import Job, Name, NewJob, State
from jobpipe.schedules import Schedule, Spec, in_words, run_by_hand, times, wrong
from jobpipe.store.base import FiredJob

NEXT, LAST = 5, 10
"""How many firings to come, and how many that were, are shown of a schedule."""

LARGEST = 1 << 16
"""The most bytes of the job in a schedule: it is stored again with each firing."""

ScheduleInPath = Annotated[Name, Means("the schedule's name")]

EXAMPLE = {
    "cron": "30 2 * * *",
    "timezone": "Europe/Berlin",
    "job": {"kind": "demo", "payload": {"fail": 0}, "queue": "reports"},
}


class SentSchedule(msgspec.Struct, frozen=True):
    """A request whose job is the bytes that were sent."""

    job: msgspec.Raw = msgspec.Raw(b"{}")


_decode = msgspec.json.Decoder(ScheduleRequest).decode
_decode_raw = msgspec.json.Decoder(SentSchedule).decode
_decode_pause = msgspec.json.Decoder(PauseRequest).decode


def schedules_blueprint(node: Node) -> Blueprint:
    """The routes below `/schedules`."""
    routes = Blueprint("schedules", __name__)
    tag_blueprint(routes, ["schedules"])

    @routes.get("/schedules")
    @document_querystring(ScheduleQuery)
    @answers(200, "A page of schedules.", Content(ScheduleList))
    @problems(Code.INVALID, Code.STORE_UNAVAILABLE)
    async def list_schedules() -> Response:
        """List the schedules.

        By name, each with its next firing. Payloads and last firings are left out.
        """
        return respond(await _list(node, query(ScheduleQuery)))

    @routes.get("/schedules/<name>")
    @answers(200, "The schedule.", Content(ScheduleView))
    @problems(Code.NO_SUCH_SCHEDULE, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def get_schedule(name: ScheduleInPath) -> Response:
        """Get a schedule.

        With its next five firings, and the last ten whose jobs are still there.
        """
        _check(name)
        schedule = _found(name, await node.store.schedule(name))
        return respond(answer(_view(schedule, await node.store.fired_jobs(name, LAST))))

    @routes.put("/schedules/<name>")
    @takes(Content(ScheduleRequest, examples={"schedule": EXAMPLE}))
    @answers(
        200, "The schedule, changed, or as it was when the request says the same.", Content(ScheduleView)
    )
    @answers(201, "The schedule, created.", Content(ScheduleView))
    @problems(
        Code.NOT_JSON,
        Code.CROSS_SITE,
        Code.DECLARED,
        Code.UNSUPPORTED_MEDIA_TYPE,
        Code.INVALID,
        Code.STORE_UNAVAILABLE,
    )
    async def put_schedule(name: ScheduleInPath) -> Response:
        """Create or change a schedule.

        Each firing enqueues `job`, whose id is the schedule's name, `@` and the time of the firing. A firing is done
        once, however many nodes there are. A changed schedule fires at the first time after now, and stays paused if
        it was. 409 while the code of a live node declares a schedule of this name.
        """
        _check(name)
        content_type, body = await received()
        check_json(content_type)
        return respond(await _put(node, name, body.removeprefix(BOM)))

    @routes.post("/schedules/<name>/pause")
    @takes(Content(PauseRequest, examples={"reason": {"reason": "the printer is broken"}}), required=False)
    @answers(200, "The schedule, paused.", Content(ScheduleView))
    @problems(
        Code.NOT_JSON,
        Code.CROSS_SITE,
        Code.NO_SUCH_SCHEDULE,
        Code.UNSUPPORTED_MEDIA_TYPE,
        Code.INVALID,
        Code.STORE_UNAVAILABLE,
    )
    async def pause_schedule(name: ScheduleInPath) -> Response:
        """Pause a schedule.

        It does not fire until it is resumed, also over restarts. The reason is shown with it; send `{}` for none.
        """
        _check(name)
        reason = _reason(*await received())
        paused = await node.control.pause_schedule(name, reason, by=by_client(node, reason))
        return respond(answer(_view(_found(name, paused))))

    @routes.post("/schedules/<name>/resume")
    @answers(200, "The schedule, no longer paused.", Content(ScheduleView))
    @problems(Code.CROSS_SITE, Code.NO_SUCH_SCHEDULE, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def resume_schedule(name: ScheduleInPath) -> Response:
        """Resume a schedule.

        It fires at the first time after now; what it would have fired while it was paused was not missed.
        """
        _check(name)
        resumed = await node.control.resume_schedule(name, by=by_client(node))
        return respond(answer(_view(_found(name, resumed))))

    @routes.post("/schedules/<name>/run")
    @answers(202, "The job, stored so that it survives a crash.", Content(JobView), headers=LOCATION)
    @problems(
        Code.CROSS_SITE,
        Code.NO_SUCH_SCHEDULE,
        Code.QUEUE_CLOSED,
        Code.INVALID,
        Code.QUEUE_FULL,
        Code.DRAINING,
        Code.STORE_UNAVAILABLE,
    )
    async def run_schedule(name: ScheduleInPath) -> Response:
        """Run a schedule's job now.

        Beside its firings, which it does not change: also while it is paused, and whether or not an earlier job has
        ended.
        """
        _check(name)
        return respond(await _run(node, _found(name, await node.store.schedule(name))))

    @routes.delete("/schedules/<name>")
    @answers(204, "The schedule is deleted.")
    @problems(Code.CROSS_SITE, Code.NO_SUCH_SCHEDULE, Code.DECLARED, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def delete_schedule(name: ScheduleInPath) -> Response:
        """Delete a schedule.

        It does not fire any more; the jobs that it has made stay. 409 while the code of a live node declares it.
        """
        _check(name)
        await _delete(node, name)
        return respond(Answer(204, b""))

    return routes


def _check(name: str) -> None:
    if faults := faults_of(name, Name, "?name"):
        raise invalid(faults)


def _found(name: str, schedule: Schedule | None) -> Schedule:
    if schedule is None:
        raise no_schedule(name)
    return schedule


def _reason(content_type: str, body: bytes) -> str | None:
    """Why a schedule is to be paused; a body that says nothing gives no reason. Raises `Problem`."""
    check_json(content_type)
    said = body.removeprefix(BOM).strip()
    return None if said in (b"", b"null") else read(said, _decode_pause, PauseRequest, PauseRequest).reason


async def _asked(node: Node, body: bytes) -> tuple[Spec, NewJob]:
    """The schedule that a body asks for, and its job. Raises `Problem` with every fault of either, or `StoreError`."""
    request = read(body, _decode, ScheduleRequest, ScheduleRequest)
    faults = list[Fault]()
    spec = _spec(request, faults)
    faults += [Fault(f"/{field}", words) for field, words in wrong(spec)]
    raw = bytes(_decode_raw(body).job)
    if len(raw) > LARGEST:
        faults.append(Fault("/job", f"takes {len(raw)} bytes: send at most {LARGEST}"))
        raise invalid(faults)
    try:
        job = await asked(node, b"{}" if request.job is None else raw)
    except Problem as problem:
        inside = [Fault(f"/job{one.pointer}", one.detail) for one in problem.details.faults]
        raise invalid([*faults, *inside]) from None
    if faults:
        raise invalid(faults)
    return spec, job


def _spec(request: ScheduleRequest, faults: list[Fault]) -> Spec:
    def seconds(time: datetime | None, pointer: str) -> float | None:
        return None if time is None else unix_time(time, pointer, faults)

    return Spec(
        cron=request.cron,
        timezone=request.timezone,
        every=request.every,
        starts_at=seconds(request.starts_at, "/starts_at"),
        ends_at=seconds(request.ends_at, "/ends_at"),
        overlap=request.overlap,
        catch_up=request.catch_up,
        limit=request.limit,
        jitter=request.jitter,
    )


async def _put(node: Node, name: str, body: bytes) -> Answer:
    put = await node.control.put_schedule(name, *await _asked(node, body), by=by_client(node))
    if put.verdict == "declared":
        raise declared(name)
    return answer(_view(put.schedule), 201 if put.verdict == "created" else 200)


async def _delete(node: Node, name: str) -> None:
    match await node.control.delete_schedule(name, by=by_client(node)):
        case "missing":
            raise no_schedule(name)
        case "declared":
            raise declared(name)


async def _run(node: Node, schedule: Schedule) -> Answer:
    new = run_by_hand(schedule, node.clock.now())
    if new is None:
        raise invalid([Fault("?name", "the schedule's row in the store is damaged: PUT it again")])
    receipt = await node.admission.enqueue_by_hand(new, by_client(node))
    job = Job(new, State(new.status)) if receipt.verdict == "stored" else known(new, receipt)
    location = {"Location": "/jobs/" + quote(job.id, safe="")}
    return answer(stored_view(job, node.registry), 202, location)


async def _list(node: Node, wanted: ScheduleQuery) -> Answer:
    found = await node.store.schedules(wanted.limit + 1, place_of(wanted.cursor, str) or "")
    shown = found[: wanted.limit]
    cursor = cursor_of(shown[-1].name) if len(found) > len(shown) else None
    return answer(ScheduleList([_view(one, whole=False) for one in shown], cursor))


def _view(schedule: Schedule, fired: Sequence[FiredJob] | None = None, *, whole: bool = True) -> ScheduleView:
    """A schedule as it is shown; one that is not `whole` without the payload, and with its next firing alone."""
    spec = schedule.spec
    sound = schedule.error is None
    return ScheduleView(
        name=schedule.name,
        version=schedule.version,
        in_words=in_words(spec) if sound else None,
        cron=spec.cron,
        timezone=spec.timezone or ("UTC" if spec.cron is not None else None),
        every=spec.every,
        starts_at=when(spec.starts_at),
        ends_at=when(spec.ends_at),
        overlap=spec.overlap,
        catch_up=spec.catch_up,
        limit=spec.limit,
        jitter=spec.jitter,
        job=None if schedule.job is None else _job_view(schedule.job, whole=whole),
        paused=schedule.paused,
        reason=schedule.reason,
        declared=schedule.declared,
        missed=schedule.missed,
        created_at=rfc3339(schedule.created_at),
        last_at=when(schedule.last_at),
        next=[rfc3339(at) for at in _next(schedule, NEXT if whole else 1)],
        last=UNSET if fired is None else [_firing_view(one) for one in fired if _is_time(one)],
        error=schedule.error,
    )


def _next(schedule: Schedule, number: int) -> Sequence[float]:
    if schedule.paused or schedule.next_at is None or schedule.error is not None:
        return []
    later = times(schedule.spec, schedule.created_at, schedule.next_at)
    return [schedule.next_at, *itertools.islice(later, number - 1)]


def _job_view(job: NewJob, *, whole: bool) -> ScheduledJobView:
    options = job.options
    return ScheduledJobView(
        kind=job.kind,
        payload=msgspec.Raw(job.payload) if whole else UNSET,
        queue=job.queue,
        priority=job.priority,
        max_retries=job.max_retries,
        timeout=options.timeout,
        backoff=options.backoff,
        on_crash=options.on_crash,
        tags=options.tags,
        key=options.key,
    )


def _time_of(job: FiredJob) -> datetime:
    return datetime.fromisoformat(job.id.partition("@")[2])


def _is_time(job: FiredJob) -> bool:
    """Whether a job was made by a schedule: somebody may have given one of their own an id that begins so."""
    try:
        _time_of(job)
    except ValueError:
        return False
    return True


def _firing_view(job: FiredJob) -> FiringView:
    return FiringView(
        at=rfc3339(_time_of(job).timestamp()),
        id=job.id,
        status=job.status,
        started_at=when(job.started_at),
        finished_at=when(job.finished_at),
    )
