"""`/openapi.json`: valid, whole, and what the routes really answer. `/docs`: all of it comes from this node."""

import functools
import hashlib
import json
import re
from importlib.resources import files
from typing import Annotated, Any

import httpx
import jsonschema  # type: ignore[import-untyped]  # it has no types
import msgspec
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator
from quart_trio import QuartTrio

from jobpipe import schedules
from jobpipe.api import problems, schemas
from jobpipe.api.problems import Code
from jobpipe.api.queues import QueueInPath
from jobpipe.api.schemas import Means
from jobpipe.api.spec import describe
from jobpipe.job import PORTABLE, JobError, JobId, Name, Tag
from jobpipe.version import VERSION
from tests.api.client import Breakable, asked, open_door
from tests.store.test_contract import Node as Foreign
from tests.store.test_contract import add, new_job

CROSS_SITE = {"Sec-Fetch-Site": "cross-site"}
NDJSON = {"Content-Type": "application/x-ndjson"}

AMONG_NO_OPERATION = {
    Code.BAD_REQUEST,
    Code.NOT_FOUND,
    Code.METHOD_NOT_ALLOWED,
    Code.REQUEST_TIMEOUT,
    Code.WRONG_HOST,
    Code.HEAD_TOO_LARGE,
    Code.NOT_IMPLEMENTED,
    Code.HTTP_VERSION,
}
"""These answer what no operation is."""


class Spec:
    """What the spec says of an answer."""

    def __init__(self, document):
        self.document, self.schemas = document, document["components"]["schemas"]
        self.operations = {
            (method, path): operation
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        }

    def operation(self, request):
        path = request.url.path
        for (method, template), operation in self.operations.items():
            if method == request.method.lower() and re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), path):
                return operation
        raise AssertionError(f"no operation for {request.method} {path}")

    def documented(self):
        """Each operation with each status and, where that is a problem, each code."""
        return {
            (operation["operationId"], int(status), code)
            for operation in self.operations.values()
            for status, answer in operation["responses"].items()
            for code in _codes(answer)
        }

    def checked(self, response):
        """The operation, status and code of an answer, when it is as the spec says; fails when it is not."""
        operation = self.operation(response.request)
        where = (response.request.method, str(response.request.url), response.status_code, response.text)
        assert str(response.status_code) in operation["responses"], where
        answer = operation["responses"][str(response.status_code)]
        kind = response.headers.get("content-type", "").partition(";")[0]
        assert kind in answer.get("content", {"": None}), where
        assert {name.lower() for name in answer.get("headers", ())} <= set(response.headers), where
        for value, schema in _values(kind, response, answer):
            jsonschema.Draft202012Validator({**schema, "components": {"schemas": self.schemas}}).validate(
                value
            )
        code = response.json()["code"] if kind == "application/problem+json" else None
        assert code in _codes(answer), where
        return operation["operationId"], response.status_code, code


def _codes(answer):
    return answer.get("content", {}).get("application/problem+json", {}).get("examples", [None])


def _values(kind, response, answer):
    """The JSON values of an answer, each with its schema."""
    if kind == "application/x-ndjson":
        schema = answer["content"][kind]["x-itemSchema"]
        return [(json.loads(line), schema) for line in response.text.splitlines()]
    if kind in ("application/json", "application/problem+json"):
        return [(response.json(), answer["content"][kind]["schema"])]
    return []


def _nodes(value):
    """Every object in a JSON value."""
    match value:
        case dict():
            yield value
            for inner in value.values():
                yield from _nodes(inner)
        case list():
            for inner in value:
                yield from _nodes(inner)


async def _spec_of(door):
    return Spec((await door.get("/openapi.json")).json())


@pytest.fixture
async def spec(door):
    return await _spec_of(door)


# What the spec is


@pytest.mark.slow
async def test_spec_is_valid_openapi(spec):
    assert list(OpenAPIV31SpecValidator(spec.document).iter_errors()) == []


async def test_spec_names_the_version_and_the_license(spec):
    info = spec.document["info"]

    assert (info["title"], info["version"]) == ("jobpipe", VERSION)
    assert info["license"] == {"name": "MIT", "identifier": "MIT"}


async def test_every_reference_leads_to_a_schema_and_every_schema_is_used(spec):
    references = {node["$ref"] for node in _nodes(spec.document) if "$ref" in node}

    assert references == {f"#/components/schemas/{name}" for name in spec.schemas}


def _without_defaults_and_patterns(schema):
    """A schema without what the spec says in other words.

    A description has the default, patterns are portable, a duration is a number or a text, some lists are one value.
    """
    left_out = {"default", "description", "pattern", "x-portable-pattern"}
    match schema:
        case {"x-duration": _, **number}:
            return {"oneOf": [_without_defaults_and_patterns(number), {"type": "string"}]}
        case {"x-one-or-more": _, **rest}:
            array = _without_defaults_and_patterns(rest)
            return {"anyOf": [array["items"], array]}
        case dict():
            return {
                name: _without_defaults_and_patterns(value)
                for name, value in schema.items()
                if name not in left_out
            }
        case list():
            return [_without_defaults_and_patterns(value) for value in schema]
        case _:
            return schema


async def test_schemas_are_those_of_the_structs_of_the_wire(spec):
    """Made in one go, in which two structs of one name would get longer names."""
    structs = [
        struct
        for room in (schemas, problems)
        for struct in vars(room).values()
        if isinstance(struct, type)
        and issubclass(struct, msgspec.Struct)
        and struct.__module__ == room.__name__
    ]
    _, made = msgspec.json.schema_components([*structs, JobError], ref_template="#/components/schemas/{name}")
    components = json.loads(msgspec.json.encode(made))
    queries = {  # written as parameters
        *(
            "WaitQuery",
            "HoldQuery",
            "EnqueueQuery",
            "AuditQuery",
            "ListQuery",
            "LogQuery",
            "QueueQuery",
            "KeyQuery",
            "ScheduleQuery",
        ),
        *(
            "OperationQuery",
            "WindowQuery",
            "ErrorQuery",
            "EventQuery",
            "PlainFilter",
            "NodeQuery",
            "StackQuery",
        ),
    }

    assert _without_defaults_and_patterns(spec.schemas) == _without_defaults_and_patterns(
        {name: schema for name, schema in components.items() if name not in queries}
    )


async def test_a_body_is_required_but_where_none_is_as_good(spec):
    optional = {
        path
        for (_, path), operation in spec.operations.items()
        if not operation.get("requestBody", {"required": True})["required"]
    }

    assert optional == {"/queues/{name}/pause", "/schedules/{name}/pause"}


async def test_no_property_has_a_default_and_none_of_a_request_is_required(spec):
    """Generators of clients would demand it from whoever enqueues a job."""
    assert [
        (name, field)
        for name, schema in spec.schemas.items()
        for field, of_field in schema.get("properties", {}).items()
        if "default" in of_field
    ] == []
    for name in ("EnqueueRequest", "Backoff", "ScheduleRequest", "ScheduledJob", "PauseRequest"):
        assert spec.schemas[name]["required"] == []
    assert spec.schemas["EnqueueRequest"]["properties"]["kind"]["description"].endswith('; default: "echo"')
    assert "status" in spec.schemas["JobView"]["required"]


async def test_every_pattern_is_one_that_every_dialect_reads(spec):
    """RE2 has no lookaheads, JavaScript no \\Z, and they write characters beyond U+00FF differently."""
    patterns = {node["pattern"] for node in _nodes(spec.document) if isinstance(node.get("pattern"), str)}

    assert len(patterns) == 8
    for pattern in patterns:
        assert not re.search(r"\(\?[^:]|\\[A-Zu]|\\[0-9]", pattern)
        assert pattern.isascii()
        assert (pattern[0], pattern[-1]) == ("^", "$")


@pytest.mark.parametrize("kind", [JobId, Name, Tag], ids=["id", "name", "tag"])
@given(st.text(st.characters(max_codepoint=0x180), max_size=4) | st.text(".a", max_size=202))
def test_the_pattern_of_the_spec_means_what_is_taken(kind, text):
    """As far as it can say: of characters beyond U+00FF some more are refused."""
    (meta,) = kind.__metadata__

    shown = re.search(meta.extra_json_schema[PORTABLE].replace("$", r"\Z"), text)
    assert bool(shown) == bool(re.search(meta.pattern, text))


async def test_the_spec_says_where_it_is_served(spec):
    assert [server["url"] for server in spec.document["servers"]] == ["/"]


async def test_every_route_and_method_is_in_the_spec(door, spec):
    """But for the way to the page and its files; Quart itself adds HEAD and OPTIONS to every route."""
    routes = {
        (method.lower(), re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in door.app._app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }

    assert routes - {("get", "/"), ("get", "/static/{filename}")} == set(spec.operations)


async def test_every_operation_has_a_name_a_summary_a_tag_and_words_for_everything(spec):
    tags = {tag["name"] for tag in spec.document["tags"]}
    names = [operation["operationId"] for operation in spec.operations.values()]

    assert len(set(names)) == len(names)
    for operation in spec.operations.values():
        assert operation["summary"]
        assert len(operation["description"]) > len(operation["summary"])
        assert set(operation["tags"]) <= tags
        assert all(answer["description"] for answer in operation["responses"].values())
        assert all(parameter["description"] for parameter in operation["parameters"])


async def test_every_problem_is_an_answer_of_some_operation_with_its_own_status(spec):
    examples = [
        (status, code, example["value"])
        for operation in spec.operations.values()
        for status, answer in operation["responses"].items()
        for code, example in answer.get("content", {})
        .get("application/problem+json", {})
        .get("examples", {})
        .items()
    ]

    assert {code for _, code, _ in examples} == {code.value for code in set(Code) - AMONG_NO_OPERATION}
    assert [one for one in examples if one[:2] != (str(one[2]["status"]), one[2]["code"])] == []


async def test_every_example_of_a_body_fits_its_schema(spec):
    bodies = [node for node in _nodes(spec.document["paths"]) if "schema" in node and "examples" in node]

    assert len(bodies) > len(spec.operations)
    for body in bodies:
        for example in body["examples"].values():
            schema = {**body["schema"], "components": {"schemas": spec.schemas}}
            jsonschema.Draft202012Validator(schema).validate(example["value"])


async def test_query_parameters_have_their_types_bounds_and_defaults(spec):
    parameters = {one["name"]: one["schema"] for one in spec.operations["get", "/jobs"]["parameters"]}

    assert parameters["limit"] == {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
    status = {"$ref": "#/components/schemas/Status"}
    several = {"type": "array", "items": status, "minItems": 1, "maxItems": 100}
    assert parameters["status"] == {"anyOf": [status, several]}
    assert parameters["created_after"] == {"type": "string", "format": "date-time"}
    assert parameters["payload"] == {"type": "boolean", "default": False}


async def test_path_parameters_have_their_patterns(spec):
    (job_id,) = spec.operations["post", "/jobs/{job_id}/retry"]["parameters"]
    (name,) = spec.operations["post", "/queues/{name}/pause"]["parameters"]

    assert (job_id["name"], job_id["in"], job_id["required"]) == ("job_id", "path", True)
    assert re.search(job_id["schema"]["pattern"], "a/b") is None
    assert re.search(name["schema"]["pattern"], "mail.out")


async def test_a_parameter_means_what_its_route_says_whatever_it_is_called(spec):
    """`limit` counts jobs on one route and queues on another; `name` names another thing below each path."""
    app = QuartTrio("another", static_folder=None)
    provider = describe(app)
    for path, kind in (
        ("/queues/<name>", QueueInPath),
        ("/schedules/<name>", Annotated[str, Means("a schedule")]),
    ):

        async def route(name: Any) -> str:
            """Do something."""
            return ""

        route.__name__, route.__annotations__["name"] = path[1:].partition("/")[0], kind
        app.get(path)(route)
    async with app.test_request_context("/"):
        paths = provider.schema()["paths"]
    limits = [
        next(one for one in spec.operations["get", path]["parameters"] if one["name"] == "limit")
        for path in ("/jobs", "/queues")
    ]

    assert [paths[path]["get"]["parameters"][0]["description"] for path in sorted(paths)] == [
        "the queue's name",
        "a schedule",
    ]
    assert [one["description"] for one in limits] == ["the most jobs in a page", "the most queues in a page"]


async def test_bulk_takes_an_array_and_a_stream(spec):
    operation = spec.operations["post", "/enqueue/bulk"]

    assert set(operation["requestBody"]["content"]) == {"application/json", "application/x-ndjson"}
    assert set(operation["responses"]["202"]["content"]) == {"application/json"}
    assert set(operation["responses"]["200"]["content"]) == {"application/x-ndjson"}


# What the routes answer


async def _with_jobs(door):
    """Answers of a node at work; `a` has ended, `held` runs."""
    for path in ("/enqueue", "/enqueue/bulk"):
        yield await door.post(path, content=b"[")
        yield await door.post(path, json={"max_retry": 3})
        yield await door.post(path, content=b" " * 3000)
        yield await door.post(path, content=b"x", headers={"Content-Type": "text/plain"})
        yield await door.post(path, json={}, headers=CROSS_SITE)
    yield await door.enqueue(id="a")
    await door.ended("a")
    yield await door.enqueue(id="a")
    yield await door.enqueue(id="a", payload=1)
    yield await door.post("/enqueue/bulk", json=[{"id": "a"}, {"id": "later", "delay": 1000}])
    yield await door.post("/enqueue/bulk", json=[{"id": "a", "payload": 1}])
    yield await _deleted_while_it_is_waited_for(door)
    yield await door.post(
        "/enqueue/bulk", content=b'{"id":"s"}\nwrong\n{"id":"a","payload":1}', headers=NDJSON
    )
    await door.enqueue(id="held", kind="play", payload="hold, then clean up")
    await door.enqueue(id="failed", kind="play", payload="fail")
    await door.ended("failed")
    yield await door.get("/jobs/a")
    yield await door.get("/jobs/failed")
    yield await door.get("/jobs/held")
    yield await door.get("/jobs/none")
    async for response in _live(door):
        yield response
    yield await door.get("/jobs/a?wait=long")
    yield await door.get("/jobs")
    yield await door.get("/jobs?payload=true&limit=1")
    yield await door.get("/jobs?limit=0")
    for job_id in ("none", "a", "later", "held"):
        yield await door.post(f"/jobs/{job_id}/cancel")
    yield await door.post("/jobs/a/cancel?wait=long")
    for job_id in ("none", "a", "held"):
        yield await door.post(f"/jobs/{job_id}/retry")
    await door.ended("a")
    for job_id in ("none", "a", "held"):
        yield await door.delete(f"/jobs/{job_id}")
    yield await door.get("/queues")
    for verb in ("pause", "resume"):
        yield await door.post(f"/queues/default/{verb}")
        yield await door.post(f"/queues/-/{verb}")
        yield await door.post(f"/queues/default/{verb}", headers=CROSS_SITE)
        yield await door.post(f"/jobs/held/{'cancel' if verb == 'pause' else 'retry'}", headers=CROSS_SITE)
    yield await door.get("/queues?limit=0")
    await door.post("/queues/empty/pause")
    for name in ("empty", "empty", "default", "-"):
        yield await door.delete(f"/queues/{name}")
    yield await door.delete("/queues/default", headers=CROSS_SITE)
    yield await door.delete("/jobs/held", headers=CROSS_SITE)
    async for response in _with_dependents(door):
        yield response
    for path in ("/health", "/metrics", "/openapi.json", "/docs"):
        yield await door.get(path)
    door.stage.cleaned.set()


BULK: dict[str, dict[str, Any]] = {
    "cancel": {},
    "retry": {},
    "delete": {},
    "promote": {},
    "move": {"queue": "shut"},
    "edit": {"changes": {"queue": "shut"}},
}
"""What bulk routes take beside a filter."""


async def _with_errors(door):
    """Answers about errors."""
    await door.enqueue(id="fails", kind="play", payload="fail")
    await door.ended("fails")
    yield await door.get("/errors")
    yield await door.get("/errors?limit=0")
    fingerprint = (await door.get("/errors")).json()["errors"][0]["fingerprint"]
    for name in (fingerprint, "none", "-"):
        yield await door.get(f"/errors/{name}")
    for path in ("timeline", "why"):
        for job_id in ("fails", "nothing"):
            yield await door.get(f"/jobs/{job_id}/{path}")


async def _with_nodes(door):
    """Answers about nodes."""
    node, *_ = (await door.get("/nodes")).json()["nodes"]
    for path in ("", "?limit=0", f"/{node['name']}", "/none", f"/{node['name']}/stops", "/none/stops"):
        yield await door.get(f"/nodes{path}")


async def _with_operations(door):
    """Answers about operations; those that move jobs would move them into a closed queue."""
    for verb, more in BULK.items():
        path = f"/jobs/{verb}"
        body = {"filter": {"id": "none"}} | more
        yield await door.post(path, content=b"{")
        yield await door.post(path, content=b"{}", headers={"Content-Type": "text/plain"})
        yield await door.post(path, json=body, headers=CROSS_SITE)
        yield await door.post(path, json={})
        yield await door.post(path, json=body)
        open_to_all = json.loads(json.dumps(body).replace("shut", "open"))
        yield await door.post(path, json=open_to_all | {"dry_run": True})
        yield await door.post(path, json=open_to_all)
    for number in range(3):
        await door.enqueue(id=f"many{number}", queue="many", delay=1000)
    slow = await door.post("/jobs/edit", json=_slow({"changes": {"priority": 1}}))
    yield slow
    for verb in ("move", "cancel", "retry", "promote", "delete"):
        yield await door.post(f"/jobs/{verb}", json=_slow({"queue": "many2"} if verb == "move" else {}))
    yield await door.get("/operations")
    yield await door.get("/operations?limit=0")
    yield await door.get("/audit")
    yield await door.get("/audit?act=explode")
    operation_id = slow.json()["id"]
    yield await door.get(f"/operations/{operation_id}")
    yield await door.get(f"/operations/{operation_id}?wait=long")
    yield await door.get("/operations/none")
    yield await door.post(f"/operations/{operation_id}/stop", headers=CROSS_SITE)
    for name in (operation_id, "none", "-"):
        yield await door.post(f"/operations/{name}/stop")
    await door.post("/jobs/delete", json={"filter": {"queue": ["many", "many2"]}})


def _slow(more):
    return {"filter": {"queue": ["many", "many2"]}, "rate": 0.5} | more


async def _with_settings(door):
    """Answers about settings of queues, and about jobs for a closed one."""
    for method, path in (("PUT", "/queues/shut"), ("POST", "/queues/shut/pause")):
        yield await door.request(method, path, content=b"{")
        yield await door.request(method, path, content=b"{}", headers={"Content-Type": "text/plain"})
        yield await door.request(method, path, json={}, headers=CROSS_SITE)
    yield await door.put("/queues/shut", json={"keep": "all"})
    yield await door.put("/queues/shut", json={"closed": True, "keep": {"done": "1h"}})
    for name in ("shut", "none", "-"):
        yield await door.get(f"/queues/{name}")
    async for response in _with_keys(door):
        yield response
    yield await door.enqueue(queue="shut")
    yield await door.post("/enqueue/bulk", json=[{"queue": "shut"}])
    await door.enqueue(id="outside", delay=1000)
    yield await door.patch("/jobs/outside", json={"queue": "shut"})
    await door.put("/schedules/shut", json={"every": 3600, "job": {"queue": "shut"}})
    yield await door.post("/schedules/shut/run")
    await door.delete("/schedules/shut")
    await door.delete("/jobs/outside")
    async for response in _with_nodes(door):
        yield response
    async for response in _with_errors(door):
        yield response
    async for response in _with_operations(door):
        yield response


async def _with_keys(door):
    """Answers about limits, and about keys of a queue."""
    rate = {"limit": 5, "period": "1m", "burst": 2}
    yield await door.put("/queues/limited", json={"max_running": 0, "rate": rate, "per_key": {"rate": rate}})
    yield await door.enqueue(id="keyed", queue="limited", key="acme")
    for path in (
        "/queues/limited",
        "/queues/limited/keys",
        "/queues/-/keys",
        "/queues/limited/keys?state=shut",
    ):
        yield await door.get(path)
    for key in ("acme", "a%20b"):
        path = f"/queues/limited/keys/{key}"
        yield await door.get(path)
        yield await door.put(path, json={"weight": 2})
        yield await door.put(path, content=b"{")
        yield await door.put(path, content=b"{}", headers={"Content-Type": "text/plain"})
        yield await door.put(path, json={}, headers=CROSS_SITE)
        for verb in ("pause", "resume"):
            yield await door.post(f"{path}/{verb}")
            yield await door.post(f"{path}/{verb}", headers=CROSS_SITE)
    await door.delete("/jobs/keyed")


async def _with_dependents(door):
    """Answers about jobs that wait for others, and about schedules."""
    for depends_on in ("failed", "nobody", "held"):
        yield await door.enqueue(id=f"after-{depends_on}", depends_on=[depends_on])
        yield await door.post("/enqueue/bulk", json=[{"depends_on": [depends_on]}])
    yield await door.get("/jobs/after-held")
    async for response in _with_settings(door):
        yield response
    async for response in _merged(door):
        yield response
    async for response in _with_schedules(door):
        yield response
    async for response in _with_groups(door):
        yield response


async def _with_groups(door):
    jobs = [{"id": "g.a", "delay": 1000}]
    bodies: list[dict[str, object]] = [
        {"id": "g", "jobs": jobs, "then": {}},
        {"id": "g", "jobs": jobs, "then": {}},
        {"id": "h", "jobs": jobs},
        {"jobs": [{"depends_on": ["nobody"]}]},
        {"jobs": [{"depends_on": ["failed"]}]},
        {"jobs": []},
        {"jobs": [{"queue": "shut"}]},
    ]
    await door.put("/queues/shut", json={"closed": True})
    for body in bodies:
        yield await door.post("/groups", json=body)
    yield await door.post("/groups", content=b"{")
    yield await door.post("/groups", json={}, headers=CROSS_SITE)
    yield await door.post("/groups", content=b"{}", headers={"Content-Type": "text/plain"})
    yield await door.post("/groups", json={"id": "open", "open": "1h", "then": {}})
    yield await door.get("/jobs/open.then")
    for name in ("open", "none"):
        yield await door.enqueue(group=name)
        yield await door.post("/enqueue/bulk", json=[{"group": name}])
    for name in ("g", "none", "-", "open"):
        yield await door.get(f"/groups/{name}")
        yield await door.post(f"/groups/{name}/close")
    yield await door.post("/groups/open/close", headers=CROSS_SITE)
    yield await door.enqueue(group="open")
    yield await door.post("/enqueue/bulk", json=[{"group": "open"}])
    yield await door.get("/jobs/g.then")


async def _merged(door):
    """Answers about jobs that are merged with others."""
    late = {"delay": 1000}
    unique = {"unique": {"key": "k", "for": "5m", "on_conflict": "reject"}}
    throttle = {"throttle": {"key": "k", "every": 1000, "trailing": True}}
    debounce = {"debounce": {"key": "k", "wait": 1000}}
    for number in range(2):
        for asked_for in (unique | late, throttle, debounce):
            yield await door.enqueue(id=f"{next(iter(asked_for))}-{number}", **asked_for)
    yield await door.post("/enqueue/bulk", json=[unique, throttle, debounce])
    for name in ("unique", "throttle", "debounce"):
        yield await door.get(f"/jobs/{name}-0")
    await door.enqueue(id="first", unique={"key": "l"}, **late)
    await door.post("/jobs/first/cancel")
    await door.enqueue(id="second", unique={"key": "l"}, **late)
    yield await door.post("/jobs/first/retry")


async def _deleted_while_it_is_waited_for(door):
    job = {"id": "gone", "delay": 1000}
    async with trio.open_nursery() as nursery:
        answers = await asked(nursery, functools.partial(door.post, "/enqueue?wait=60", json=job))
        await door.delete("/jobs/gone")
    return answers[0]


async def _waiting(door):
    """Answers about a job that waits, `soon`, and about others that cannot be changed."""
    await door.enqueue(id="a")
    await door.ended("a")
    for job_id in ("none", "a"):
        yield await door.post(f"/jobs/{job_id}/promote")
        yield await door.patch(f"/jobs/{job_id}", json={"tags": ["t"]})
    await door.post("/queues/default/pause")
    await door.enqueue(id="soon", delay=1000)
    yield await door.patch("/jobs/soon", json={"priority": 5, "payload": None})
    yield await door.patch("/jobs/soon", json={"max_retry": 3})
    yield await door.patch("/jobs/soon", content=b"{")
    yield await door.patch("/jobs/soon", content=b"{}", headers={"Content-Type": "text/plain"})
    yield await door.patch("/jobs/soon", json={}, headers=CROSS_SITE)
    yield await door.post("/jobs/soon/promote", headers=CROSS_SITE)
    yield await door.post("/jobs/soon/promote")


async def _live(door):
    """Events and the log; at last, as many streams as there may be are open."""
    yield await door.get("/jobs/a/events")
    yield await door.get("/jobs/a/events", headers={"Last-Event-ID": "1.done"})
    yield await door.get("/jobs/none/events")
    await door.enqueue(id="told", kind="play", payload="tell, and end")
    yield await door.get("/jobs/told/log?wait=5")
    yield await door.get("/jobs/told")
    yield await door.get("/jobs/held/stack")
    yield await door.get("/jobs/held/stack?format=text")
    yield await door.get("/jobs/a/stack")
    yield await door.get("/jobs/none/stack")
    foreign = Foreign(door.store, "other", frozenset({"foreign"}))
    await foreign.join()
    await add(door.store, new_job("far", kind="foreign"))
    await foreign.start(await foreign.take())
    yield await door.get("/jobs/far/stack")
    yield await door.get("/jobs/a/stack?format=xml")
    yield await door.get("/jobs/none/log")
    yield await door.get("/jobs/a/log?level=fatal")
    yield await _refused_for_streams(door, "/jobs/held/events")


async def _refused_for_streams(door, path):
    async with trio.open_nursery() as nursery:
        for _ in range(door.node.settings.max_connections // 2):
            nursery.start_soon(door.get, path)
        await trio.testing.wait_all_tasks_blocked(0.01)
        refused = await door.get(path)
        nursery.cancel_scope.cancel()
    return refused


async def _with_schedules(door):
    for body in ({"every": 60}, {"every": 60}, {"cron": "nonsense"}):
        yield await door.request("PUT", "/schedules/a", json=body)
    yield await door.request("PUT", "/schedules/a", content=b"{")
    yield await door.request("PUT", "/schedules/a", json={}, headers=CROSS_SITE)
    yield await door.request("PUT", "/schedules/a", content=b"{}", headers={"Content-Type": "text/plain"})
    yield await door.get("/schedules")
    for name in ("a", "none", "-"):
        yield await door.get(f"/schedules/{name}")
        for verb in ("pause", "run", "resume"):
            yield await door.post(f"/schedules/{name}/{verb}")
            yield await door.post(f"/schedules/{name}/{verb}", headers=CROSS_SITE)
    yield await door.post("/schedules/a/pause", content=b"{")
    yield await door.post("/schedules/a/pause", content=b"{}", headers={"Content-Type": "text/plain"})
    yield await door.delete("/schedules/a", headers=CROSS_SITE)
    for name in ("a", "a", "-"):
        yield await door.delete(f"/schedules/{name}")
    declared = schedules.Declaration(name="own", spec=schedules.Spec(every=60), job=new_job("", kind="echo"))
    await door.node.store.declare([declared], door.node.clock.now(), door.node.clock.now())
    yield await door.request("PUT", "/schedules/own", json={"every": 60})
    yield await door.delete("/schedules/own")


async def _strange(door):
    """Requests that no route takes: parameters that it does not have, and bodies beyond the limit."""
    names = {"job_id": "a", "name": "default", "group_id": "g", "operation_id": "o", "key": "k"}
    names |= {"fingerprint": "1-x", "node_name": "n"}
    for method, path in (await _spec_of(door)).operations:
        path = path.format(**names)  # noqa: PLW2901 - filled in
        yield await door.request(method, f"{path}?never_a_name=1")
        yield await door.request(method, path, content=b"x" * 3000)


async def _full(door):
    await door.request("PUT", "/schedules/a", json={"every": 3600})
    await door.enqueue(id="first", delay=1000)
    yield await door.post("/schedules/a/run")
    yield await door.enqueue(id="second", delay=1000)
    yield await door.post("/groups", json={"jobs": [{"delay": 1000}]})
    yield await door.post("/enqueue/bulk", json=[{"id": "second", "delay": 1000}])


async def _draining(door):
    await door.request("PUT", "/schedules/a", json={"every": 3600})
    yield await _refused_for_streams(door, "/events")
    door.node.drain()
    for query in ("", "?durable=done"):
        yield await door.get(f"/events{query}")  # until the node has stopped
    yield await door.post("/schedules/a/run")
    yield await door.enqueue(id="a")
    yield await door.post("/enqueue/bulk", json=[{"id": "a"}])
    yield await door.post("/groups", json={"jobs": [{}]})
    yield await door.get("/health")


async def _broken(door):
    door.store.refuses = True
    yield await door.enqueue(id="a")
    yield await door.post("/enqueue/bulk", json=[{"id": "a"}])
    for path in (
        "/jobs/a",
        "/jobs/a/events",
        "/jobs/a/log",
        "/jobs/a/timeline",
        "/jobs/a/why",
        "/jobs/a/stack",
        "/jobs",
        "/queues",
        "/health",
        "/events",
    ):
        yield await door.get(path)
    for path in (
        "/jobs/a/cancel",
        "/jobs/a/retry",
        "/jobs/a/promote",
        "/queues/default/pause",
        "/queues/default/resume",
    ):
        yield await door.post(path)
    yield await door.get("/queues/default")
    yield await door.put("/queues/default", json={})
    for verb, more in BULK.items():
        yield await door.post(f"/jobs/{verb}", json={"filter": {"id": "none"}} | more)
    for path in (
        "/operations",
        "/operations/o",
        "/errors",
        "/errors/1-x",
        "/nodes",
        "/nodes/n",
        "/nodes/n/stops",
        "/audit",
    ):
        yield await door.get(path)
    yield await door.post("/operations/o/stop")
    for path in ("/queues/default/keys", "/queues/default/keys/a"):
        yield await door.get(path)
    yield await door.put("/queues/default/keys/a", json={})
    for verb in ("pause", "resume"):
        yield await door.post(f"/queues/default/keys/a/{verb}")
    for path in ("/schedules", "/schedules/a", "/groups/a"):
        yield await door.get(path)
    yield await door.post("/groups", json={"jobs": [{}]})
    yield await door.post("/groups/a/close")
    for verb in ("pause", "run", "resume"):
        yield await door.post(f"/schedules/a/{verb}")
    yield await door.request("PUT", "/schedules/a", json={"every": 60})
    yield await door.delete("/schedules/a")
    yield await door.patch("/jobs/a", json={})
    yield await door.delete("/jobs/a")
    yield await door.delete("/queues/default")
    door.store.refuses = False


@pytest.mark.slow
async def test_routes_answer_all_that_the_spec_says_and_nothing_else(autojump_clock):
    """Every status and every problem of every operation is provoked, but for faults of jobpipe itself."""
    documented, seen = set(), set()
    for answers, store, limits in (
        (_with_jobs, None, {"max_body": 2000}),
        (_waiting, None, {"max_body": 2000}),
        (_strange, None, {"max_body": 2000}),
        (_full, None, {"max_backlog": 1}),
        (_draining, None, {}),
        (_broken, Breakable(), {}),
    ):
        async with open_door(store, **limits) as door:
            spec = await _spec_of(door)
            documented |= spec.documented()
            seen |= {spec.checked(response) async for response in answers(door)}

    assert {one for one in documented - seen if one[1:] != (500, "internal")} == set()


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def _fitting(spec, schema):
    """Values that a schema allows, or nearly."""
    if "$ref" in schema:
        return _fitting(spec, spec.schemas[schema["$ref"].rpartition("/")[2]])
    if choices := schema.get("anyOf", schema.get("oneOf")):
        return st.one_of([_fitting(spec, one) for one in choices])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("type") == "array":
        return st.lists(_fitting(spec, schema["items"]), max_size=3)
    if schema.get("type") == "object":
        fields = {name: _fitting(spec, one) for name, one in schema["properties"].items()}
        return st.fixed_dictionaries({}, optional=fields)
    return _plain(schema)


def _plain(schema):
    near = {
        "min_value": schema.get("minimum", -1) - 1,
        "max_value": min(schema.get("maximum", 100), 10**6) + 1,
    }
    match schema:
        case {"type": "integer"}:
            return st.integers(**near)
        case {"type": "number"}:
            return st.floats(**near)
        case {"type": "string", "format": "date-time"}:
            return st.datetimes().map(lambda time: f"{time.isoformat()}Z")
        case {"type": "string", "pattern": pattern}:
            return st.sampled_from(["a", "b", "echo", "default"]) | st.from_regex(pattern)
        case _:
            return ANY_JSON


def _text(value):
    return value if isinstance(value, str) else json.dumps(value)


def _draw_request(data, spec):
    """A request for some operation, as the spec tells to send it, or with something of it wrong."""
    (method, path), operation = data.draw(
        st.sampled_from(sorted(spec.operations.items(), key=lambda one: one[0]))
    )
    query = {}
    for parameter in operation["parameters"]:
        if parameter["in"] == "path":
            path = path.replace(
                f"{{{parameter['name']}}}", data.draw(st.sampled_from(["a", "b", "none", "%20"]))
            )
        elif data.draw(st.booleans()):
            query[parameter["name"]] = _text(data.draw(_fitting(spec, parameter["schema"]) | st.text()))
    if "requestBody" not in operation:
        return httpx.Request(method, f"http://test{path}", params=query)
    kind, content = data.draw(st.sampled_from(sorted(operation["requestBody"]["content"].items())))
    values = _fitting(spec, content["schema"]) if kind == "application/json" else st.just("")
    lines = _fitting(spec, content.get("x-itemSchema", {})) | ANY_JSON
    body = json.dumps(data.draw(values | ANY_JSON)) if kind == "application/json" else ""
    if kind == "application/x-ndjson":
        body = "\n".join(json.dumps(line) for line in data.draw(st.lists(lines, max_size=4)))
    return httpx.Request(
        method, f"http://test{path}", params=query, content=body, headers={"Content-Type": kind}
    )


ENDLESS = 2000
"""Virtual seconds after which a response has no end: longer than any wait, and than the job of the test is delayed."""


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
@pytest.mark.slow
async def test_whatever_is_sent_is_answered_as_the_spec_says(autojump_clock, data):
    async with open_door() as door:
        spec = await _spec_of(door)
        await door.enqueue(id="a")
        await door.enqueue(id="b", delay=1000)
        for _ in range(5):
            request = _draw_request(data, spec)
            with trio.move_on_after(ENDLESS) as scope:
                spec.checked(await door.send(request))
            assert request.url.path == "/events" or not scope.cancelled_caught


# The page and its files


async def test_home_leads_to_the_page(door):
    response = await door.get("/")

    assert (response.status_code, response.headers["location"]) == (302, "/docs")


async def test_page_and_its_files_refer_to_nothing_of_another_host(door):
    page = await door.get("/docs")
    named = re.findall(r'(?:src|href|data-spec)="([^"]*)"', page.text)
    answers = [await door.get(url) for url in named]

    assert len(named) >= 6
    assert [url for url in named if not url.startswith("/") or url.startswith("//")] == []
    assert {answer.status_code for answer in answers} == {200}
    assert "<script>" not in page.text


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/static/docs.js", "/"])
async def test_page_and_its_files_come_with_headers_that_lock_others_out(door, path):
    headers = (await door.get(path)).headers

    assert "default-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


async def test_static_files_are_kept_by_the_browser_and_asked_for_by_version(door):
    page = await door.get("/docs")
    first = await door.get("/static/docs.css")
    again = await door.get("/static/docs.css", headers={"If-None-Match": first.headers["etag"]})

    assert page.headers["cache-control"] == "no-cache"
    assert f'"/static/docs.css?v={VERSION}"' in page.text
    assert first.headers["cache-control"] == "public, max-age=86400"
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/static/none.js", "/static/../app.py", "/static/..%2Fapp.py", "/static/%2e%2e/app.py"]
)
async def test_what_is_no_static_file_is_not_found(door, path):
    response = await door.get(path)

    assert (response.status_code, response.json()["code"]) == (404, "not_found")


def test_vendored_files_are_those_of_the_release():
    folder = files("jobpipe.api") / "static" / "swagger-ui"
    sums = re.findall(r"^([0-9a-f]{64})  (\S+)$", (folder / "VENDORED.txt").read_text(), re.MULTILINE)

    assert {name for _, name in sums} == {file.name for file in folder.iterdir()} - {"VENDORED.txt"}
    assert [
        name for known, name in sums if hashlib.sha256((folder / name).read_bytes()).hexdigest() != known
    ] == []
