"""What a request may bring: the query parameters and the body that its route declares, and nothing else."""

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from quart import g, request
from quart_schema.validation import QUART_SCHEMA_QUERYSTRING_ATTRIBUTE, QUART_SCHEMA_REQUEST_ATTRIBUTE
from quart_trio import QuartTrio

from jobpipe.api.durations import in_seconds
from jobpipe.api.faults import LONGEST_NAME, escaped, faults_of, unknown
from jobpipe.api.malformed import BOM
from jobpipe.api.problems import LISTED, Fault, invalid

Q = TypeVar("Q", bound=msgspec.Struct)
View = Callable[..., Any]

SHOWN = 40
"""The most characters of a value that an answer repeats."""

NUMBERS = (int, float, bool)
"""What is written otherwise in a query string than in JSON, where it would be no string."""


class NoQuery(msgspec.Struct, frozen=True):
    """No parameters."""


def check_inputs(app: QuartTrio) -> None:
    """Refuse, before a route of the application runs, whatever it does not declare.

    A route declares its parameters with `document_querystring` and its body with `takes`; one that declares nothing
    takes nothing. What was declared is there for the route in `query`.
    """

    @app.before_request
    async def check() -> None:
        if request.url_rule is None:
            return  # there is no such route, which is the answer
        view = app.view_functions[request.url_rule.endpoint]
        g.query = query_from(request.query_string, getattr(view, QUART_SCHEMA_QUERYSTRING_ATTRIBUTE, NoQuery))
        if not hasattr(view, QUART_SCHEMA_REQUEST_ATTRIBUTE):
            refuse_body((await received())[1])


def query(model: type[Q]) -> Q:
    """The parameters of the request under way, as its route has declared them."""
    assert isinstance(g.query, model)  # noqa: S101 - the route asks for another model than it declares
    return g.query


async def received() -> tuple[str, bytes]:
    """The media type and the body of the request under way."""
    body = await request.get_data(cache=True, as_text=False, parse_form_data=False)
    return request.headers.get("Content-Type", ""), body


def refuse_body(body: bytes) -> None:
    """Raise `Problem` unless a body says nothing; it names each field, since one may be known some day."""
    if not body.strip():
        return
    try:
        value = msgspec.json.decode(body.removeprefix(BOM))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        value = body
    if value is None:
        return
    if not isinstance(value, dict):
        raise invalid([Fault("", "this request takes no body: send none")])
    faults = [Fault(f"/{escaped(name[:LONGEST_NAME])}", unknown("field", name, ())) for name in value]
    if faults:
        raise invalid(faults)


def query_from(raw: bytes, model: type[Q]) -> Q:
    """A query string as a struct; raises `Problem` with every fault of it."""
    if not raw:
        return model()
    fields = {field.name: field for field in msgspec.structs.fields(model)}
    faults: list[Fault] = []
    values: dict[str, Any] = {}
    for name, text in _pairs(raw):
        pointer = f"?{name[:LONGEST_NAME]}"
        if name not in fields:
            refused: Mapping[str, str] = getattr(model, "refused", {})
            faults.append(Fault(pointer, refused.get(name) or unknown("parameter", name, list(fields))))
            continue
        kind = _given(fields[name].type)
        item = _item(kind)
        if name in values and item is None:
            faults.append(Fault(pointer, "is given twice: send it once"))
            continue
        value, wrong = _value(text, kind if item is None else item, pointer)
        values[name] = value if item is None else [*values.get(name, ()), value]
        faults += wrong
    if faults:
        raise invalid(faults)
    return model(**values)


def _pairs(raw: bytes) -> Sequence[tuple[str, str]]:
    try:
        return parse_qsl(raw.decode(), keep_blank_values=True, errors="strict", max_num_fields=LISTED)
    except UnicodeDecodeError:
        raise invalid([Fault("?", "is not UTF-8: percent-encode each byte of it")]) from None
    except ValueError:
        raise invalid([Fault("?", f"holds more than {LISTED} parameters")]) from None


def _value(text: str, kind: Any, pointer: str) -> tuple[Any, Sequence[Fault]]:  # noqa: ANN401 - any type
    plain = _without_meta(kind)
    try:
        return msgspec.convert(in_seconds(text, kind), kind, strict=plain not in NUMBERS), ()
    except msgspec.ValidationError:
        pass
    ((fault, *_),) = (faults_of(text, kind, pointer) or [Fault(pointer, "is not a number")],)
    expected = fault.detail.partition(", got ")[0]
    hint = "; in a query string write + as %2B" if plain is datetime and " " in text else ""
    got = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return None, [Fault(pointer, f"{expected}, got {got!r}{hint}")]


def _item(kind: Any) -> Any:  # noqa: ANN401 - any type
    """What the type of a parameter is a list of, which may be given several times; None: it may not."""
    plain = _without_meta(kind)
    return typing.get_args(plain)[0] if typing.get_origin(plain) is list else None


def _given(kind: Any) -> Any:  # noqa: ANN401 - any type
    """The type of a parameter that is there: one that is not is left out, and the text `null` means nothing else."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = (one for one in typing.get_args(kind) if one is not types.NoneType)
    return kind


def _without_meta(kind: Any) -> Any:  # noqa: ANN401 - any type
    return kind.__origin__ if hasattr(kind, "__metadata__") else kind
