"""The OpenAPI spec: what a route takes and answers is said at the route; schemas come from the structs of the wire."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from itertools import groupby
from typing import Any, TypeVar

import msgspec
from msgspec import NODEFAULT
from quart_schema import Info, OpenAPIProvider, QuartSchema, Tag, document_request, document_response
from quart_trio import QuartTrio
from werkzeug.routing import Rule

from jobpipe.api import durations, lists
from jobpipe.api.descriptions import DESCRIPTION, PROBLEMS, RETRY_LATER, TAGS
from jobpipe.api.problems import Code, ProblemDetails
from jobpipe.api.schemas import meaning_of
from jobpipe.job import PORTABLE
from jobpipe.version import VERSION

R = TypeVar("R", bound=Callable[..., Any])
Json = dict[str, Any]


ANY_ROUTE = (Code.INVALID, Code.TOO_LARGE, Code.INTERNAL)
"""The problems of every route: parameters and bodies are checked before it runs."""


class Content(msgspec.Struct, frozen=True):
    """A body in one media type. `lines` are the types of its lines when it is a stream of JSON values."""

    model: Any
    media_type: str = "application/json"
    examples: Mapping[str, Any] = {}
    lines: Sequence[Any] = ()


class _Taken(msgspec.Struct, frozen=True):
    contents: Sequence[Content]
    required: bool


class _Answered(msgspec.Struct, frozen=True):
    description: str
    contents: Sequence[Content]
    headers: Mapping[str, Json]


def takes(*contents: Content, required: bool = True) -> Callable[[R], R]:
    """Say what bodies a route takes, and whether there has to be one."""
    model: Any = _Taken(
        contents, required
    )  # quart-schema only carries it from the route to the provider below
    return document_request(model)


def answers(
    status: int, description: str, *contents: Content, headers: Mapping[str, Json] | None = None
) -> Callable[[R], R]:
    """Say one answer of a route."""
    model: Any = _Answered(description, contents, headers or {})  # carried as above
    return document_response(model, status)


def problems(*codes: Code) -> Callable[[R], R]:
    """Say which problems a route answers with, beside those that any request may meet."""

    def say(route: R) -> R:
        for status, answered in _refusals(frozenset((*codes, *ANY_ROUTE))):
            model: Any = answered
            document_response(model, status)(route)
        return route

    return say


@functools.cache
def _refusals(codes: frozenset[Code]) -> Sequence[tuple[int, _Answered]]:
    """What is said of problems, by their status. Many routes have the same."""
    known = sorted((PROBLEMS[code] for code in Code if code in codes), key=_status)
    return [(status, _refusal(status, list(group))) for status, group in groupby(known, key=_status)]


def _refusal(status: int, problems: Sequence[ProblemDetails]) -> _Answered:
    description = ". ".join(f"{each.title}: `{each.code.value}`" for each in problems) + "."
    examples = {each.code.value: msgspec.to_builtins(each) for each in problems}
    headers = RETRY_LATER if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    return _Answered(description, [Content(ProblemDetails, "application/problem+json", examples)], headers)


def _status(details: ProblemDetails) -> int:
    return details.status


def describe(app: QuartTrio) -> OpenAPIProvider:
    """What makes the spec of an application, once all its routes are known."""
    return QuartSchema(
        app,
        openapi_path=None,  # served by docs.py, with its page
        conversion_preference="msgspec",
        info=Info(title="jobpipe", version=VERSION, description=DESCRIPTION),
        tags=[Tag(name, description) for name, description in TAGS.items()],
        openapi_provider_class=Spec,
    ).openapi_provider


def with_kind_required(spec: Json) -> Json:
    """The spec of a node without a default kind: every request has to name its kind."""
    request = spec["components"]["schemas"]["EnqueueRequest"]
    request["required"] = sorted({*request.get("required", ()), "kind"})
    kind = request["properties"]["kind"]
    kind["description"] = kind["description"].partition("; default: ")[0]
    return spec


class Spec(OpenAPIProvider):
    """quart-schema's walk over the routes, with schemas that are whole.

    Its own way keeps the first schema of each model and loses those that it refers to, and it knows one media type.
    """

    def schema(self) -> Json:
        spec: Json = super().schema()
        spec["servers"] = [
            {"url": self._app.config.get("BASE_PATH") or "/", "description": "the node that serves this spec"}
        ]
        spec["info"]["license"] = {"name": "MIT", "identifier": "MIT"}
        return spec

    def generate_rules(self) -> Iterable[Rule]:
        return (rule for rule in super().generate_rules() if not rule.endpoint.endswith(".static"))

    def build_paths(self, rule: Rule) -> tuple[Json, Json]:
        paths, components = super().build_paths(rule)
        in_path = _in_path(self._app.view_functions[rule.endpoint], rule)
        for path in paths.values():
            for operation in path.values():
                for parameter in operation["parameters"]:
                    parameter.update(in_path.get(parameter["name"], {}))
                operation["description"] = operation.get("description", "").strip()
                operation["responses"] = dict(sorted(operation["responses"].items()))
        return paths, components

    def operation_id(self, method: str, path: str, func: Callable[..., Any]) -> str:  # noqa: ARG002 - the base's
        """The route's function: its name is unique, a test sees to it."""
        return func.__name__

    def build_querystring_parameters(self, model: Any) -> tuple[list[Json], Json]:  # noqa: ANN401 - the base's
        parameters, components = [], {}
        for field in msgspec.structs.fields(model):
            (schema,), found = _schemas([field.type])
            components.update(found)
            schema = _given(schema)
            typed = schema.pop("description", None)
            described = {"description": meaning_of(field.type) or typed}
            default = {} if field.default in (None, NODEFAULT) else {"default": field.default}
            parameters.append({"name": field.name, "in": "query", "schema": schema | default} | described)
        return parameters, components

    def build_request_body(self, model: Any, source: Any) -> tuple[Json, Json]:  # noqa: ANN401, ARG002 - the base's
        content, components = _content(model.contents)
        return {"required": model.required, "content": content}, components

    def build_response_object(self, model: Any, headers_model: Any) -> tuple[Json, Json]:  # noqa: ANN401, ARG002 - the base's
        response = {"description": model.description}
        if model.headers:
            response["headers"] = model.headers
        if not model.contents:
            return response, {}
        content, components = _content(model.contents)
        return response | {"content": content}, components


def _in_path(route: Callable[..., Any], rule: Rule) -> Mapping[str, Json]:
    """What a route says of the parameters in its path, by their names: it annotates its arguments with them."""
    kinds = {name: route.__annotations__[name] for name in rule.arguments}
    return {
        name: {"description": meaning_of(kind), "schema": _schemas([kind])[0][0]}
        for name, kind in kinds.items()
    }


def _content(contents: Sequence[Content]) -> tuple[Json, Json]:
    """Bodies by their media type, and the schemas that they refer to."""
    written, components = {}, {}
    for content in contents:
        (schema, *lines), found = _schemas([content.model, *content.lines])
        components.update(found)
        body = {"schema": schema}
        if content.examples:
            body["examples"] = {name: {"value": value} for name, value in content.examples.items()}
        if lines:
            body["x-itemSchema"] = {"anyOf": lines}  # OpenAPI 3.2 calls it itemSchema; 3.1 has no word for it
        written[content.media_type] = body
    return written, components


def _schemas(models: Sequence[Any]) -> tuple[Sequence[Json], Json]:
    schemas, components = msgspec.json.schema_components(models, ref_template="#/components/schemas/{name}")
    shown = {name: _without_defaults(_portable(schema)) for name, schema in components.items()}
    return [_portable(schema) for schema in schemas], shown


def _portable(schema: Any) -> Any:  # noqa: ANN401 - any JSON
    """The schema with patterns that every dialect of regular expressions reads, and with durations as texts too."""
    match schema:
        case {durations.MARK: _}:
            return _duration(schema)
        case {lists.MARK: _}:
            rest = {name: value for name, value in schema.items() if name != lists.MARK}
            return {"anyOf": [_portable(schema["items"]), _portable(rest)]}
        case {"pattern": _}:
            rest = {name: value for name, value in schema.items() if name != PORTABLE}
            return rest | {"pattern": schema.get(PORTABLE, schema["pattern"])}
        case dict():
            return {name: _portable(value) for name, value in schema.items()}
        case list():
            return [_portable(value) for value in schema]
        case _:
            return schema


def _duration(schema: Json) -> Json:
    """The schema of a number of seconds that may be sent as a text."""
    said = {name: schema[name] for name in ("description", "default") if name in schema}
    if "description" in said:
        expected, *meaning = said["description"].split("; ")
        said["description"] = "; ".join([f"{expected} {durations.WORDS}", *meaning])
    number = {name: value for name, value in schema.items() if name not in {*said, durations.MARK}}
    return said | {"oneOf": [number, {"type": "string", "pattern": durations.PATTERN}]}


def _without_defaults(schema: Json) -> Json:
    """The schema of a struct that says defaults in words.

    Generators of clients take a property with a `default` for one that is always there, and demand it from whoever
    makes a request.
    """
    if "properties" not in schema:
        return schema
    return schema | {"properties": {name: _in_words(one) for name, one in schema["properties"].items()}}


def _in_words(schema: Json) -> Json:
    """The schema of a property, with all that is said of it in its own description, where generators look for it."""
    rest = {name: value for name, value in schema.items() if name != "default"}
    described = [one["description"] for one in (schema, *schema.get("anyOf", ())) if "description" in one]
    if schema.get("default") not in (None, [], ""):
        described.append(f"default: {msgspec.json.encode(schema['default']).decode()}")
    return rest | ({"description": "; ".join(described)} if described else {})


def _given(schema: Json) -> Json:
    """The schema of a parameter that is there: one that is not is left out, it is never null."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) > 1:
        return schema | {"anyOf": choices}
    given: Json = choices[0] if choices else schema
    return given
