"""A handler may ask of a job what a request may ask: the same fields, which mean the same."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import trio

from jobpipe.api.schemas import DebounceRequest, EnqueueRequest, ThrottleRequest, UniqueRequest
from jobpipe.asking import AskedDebounce, AskedThrottle, AskedUnique
from jobpipe.handlers.context import Context
from jobpipe.handlers.newjobs import DURATIONS, Asked, JobOptions
from jobpipe.handlers.registry import Handler
from jobpipe.job import NewJob
from tests.api.client import open_door

OF_HANDLERS = {"now", "detach"}
"""What only a handler can ask."""

LATER = datetime(2100, 1, 1, tzinfo=UTC)

VALUES: Mapping[str, Any] = {
    "payload": {"n": 1},
    "queue": "mail",
    "priority": 7,
    "max_retries": 2,
    "delay": "1h",
    "run_at": LATER,
    "timeout": "5m",
    "backoff": {"base": "10s", "cap": "1h", "jitter": "none"},
    "expires_at": LATER,
    "deadline": LATER,
    "on_crash": "fail",
    "tags": ["blue"],
    "key": "acme",
    "depends_on": ["first"],
    "needs": "ended",
    "group": "g",
    "unique": {
        "key": "k",
        "over": ["payload", "kind"],
        "while": ["queued"],
        "for": "1m",
        "on_conflict": "replace",
    },
    "throttle": {"key": "k", "every": "1m", "trailing": True},
    "debounce": {"key": "k", "wait": "1m"},
}
"""A value for each field, not its default."""

BESIDE: Mapping[str, Mapping[str, Any]] = {"needs": {"depends_on": ["first"]}}
"""What a field has to have beside it."""


def names(model: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(model)}


def test_a_handler_may_ask_all_that_a_request_may_ask() -> None:
    """Kind, payload and id are arguments of the call."""
    of_request = names(EnqueueRequest)

    assert names(Asked) - OF_HANDLERS - {"ids"} == of_request - {"payload", "id"}
    assert set(JobOptions.__annotations__) - OF_HANDLERS == of_request - {"kind", "payload", "id"}
    assert names(UniqueRequest) == names(AskedUnique)
    assert names(ThrottleRequest) == names(AskedThrottle)
    assert names(DebounceRequest) == names(AskedDebounce)
    assert set(VALUES) == of_request - {"id", "kind"}


async def as_handler(values: Mapping[str, Any], context: Context) -> None:
    await context.enqueue("echo", values.get("payload"), id="handlers", **without_payload(values))


def without_payload(values: Mapping[str, Any]) -> Any:
    return {name: value for name, value in values.items() if name != "payload"}


@pytest.mark.parametrize("field", VALUES)
async def test_each_means_the_same(autojump_clock, field: str) -> None:
    """What is stored is the same, but for the id, the times at which it was asked, and the parent."""
    values = {field: VALUES[field], **BESIDE.get(field, {})}

    async def function(payload: Any, context: Context) -> None:
        await as_handler(values, context)

    asks = Handler(kind="asks", function=function, is_async=True, takes_context=True, payload_type=Any)
    async with open_door(handlers=[asks]) as door:
        await door.enqueue(id="first", delay=1000)
        await door.post("/groups", json={"id": "g", "open": "1h"})
        sent = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in values.items()
        }
        told = await door.enqueue(id="requests", **sent)
        await door.post("/jobs/requests/cancel")  # so that it is not merged with the other
        await trio.sleep(61)
        await door.enqueue(id="asks", kind="asks")
        await door.get("/jobs/asks?wait=9")
        stored = [await door.node.store.get(job_id) for job_id in ("requests", "handlers")]

    assert told.status_code == 202, told.text
    of_request, of_handler = [alike(job.asked) for job in stored if job is not None]
    assert of_request == of_handler
    assert of_request != alike(PLAIN)


PLAIN = NewJob(
    id="",
    kind="echo",
    queue="default",
    payload=b"null",
    priority=0,
    max_retries=None,
    created_at=0.0,
    run_at=0.0,
)


def alike(job: NewJob) -> NewJob:
    options = msgspec.structs.replace(job.options, parent=None)
    return msgspec.structs.replace(job, id="", created_at=0.0, run_at=0.0, options=options)


def test_every_duration_may_be_a_text() -> None:
    """As in a request."""
    marked = {
        name: {
            field.encode_name
            for field in msgspec.structs.fields(model)
            if "x-duration" in str(msgspec.json.schema(msgspec.defstruct("One", [("one", field.type)])))
        }
        for name, model in (
            ("unique", UniqueRequest),
            ("throttle", ThrottleRequest),
            ("debounce", DebounceRequest),
        )
    }

    assert marked == {name: set(fields) for name, fields in DURATIONS.items() if name in marked}
