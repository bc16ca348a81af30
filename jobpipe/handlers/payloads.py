"""Whether a payload type can be read from JSON, found out when the handler is defined."""

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

from jobpipe.errors import HandlerError

ADVICE = "use msgspec.Struct, a dataclass, a TypedDict or built-in types"

JSON_VALUES: tuple[Any, ...] = (None, True, 0, 0.0, "", [], {})
"""One of each kind of value that JSON has."""

_SHAPES = (
    inspect.ListType,
    inspect.SetType,
    inspect.FrozenSetType,
    inspect.VarTupleType,
    inspect.TupleType,
    inspect.DictType,
    inspect.StructType,
    inspect.DataclassType,
    inspect.TypedDictType,
    inspect.NamedTupleType,
)
_NO_KEYS = (*_SHAPES, inspect.BoolType, inspect.NoneType, inspect.CustomType)
_UNHASHABLE = (inspect.ListType, inspect.SetType, inspect.DictType, inspect.TypedDictType)


def check(payload_type: Any) -> None:  # noqa: ANN401 - a type form has no type yet
    """Raise `HandlerError` when no JSON can be read as the type; it names the field and its type."""
    try:
        msgspec.json.Decoder(payload_type)
        found = inspect.type_info(payload_type)
    except Exception as error:  # whatever a class of the user's raises when it is looked into
        raise HandlerError(f"its type cannot be read from JSON: {error}") from error
    for place, part in _parts(found, "", set()):
        if fault := _fault_of(part):
            raise HandlerError(f"its field {place} {fault}" if place else f"it {fault}")


def _fault_of(one: inspect.Type) -> str | None:
    """Why JSON cannot hold a type, whatever is inside it; None when it can."""
    match one:
        case inspect.CustomType(cls=cls) if not _may_be(cls):
            return f"is of type {cls.__module__}.{cls.__qualname__}, which JSON cannot hold: {ADVICE}"
        case inspect.ExtType() | inspect.RawType():
            return f"is of type msgspec.{type(one).__name__.removesuffix('Type')}: annotate it with Any"
        case inspect.DictType(key_type=key) if all(isinstance(each, _NO_KEYS) for each in _members(key)):
            return "is a dict whose keys cannot be text, as the keys of a JSON object are"
        case inspect.SetType(item_type=item) | inspect.FrozenSetType(item_type=item):
            if all(isinstance(each, _UNHASHABLE) for each in _members(item)):
                return "is a set of items that no set can hold: make it a list"
    return None


def _parts(one: inspect.Type, place: str, seen: set[type]) -> Iterator[tuple[str, inspect.Type]]:
    """A type with everything inside it, each with its place: `orders[].price`."""
    yield place, one
    for step, part in _inside(one, seen):
        yield from _parts(part, f"{place}{step}" if place else step.removeprefix("."), seen)


def _inside(one: inspect.Type, seen: set[type]) -> Iterator[tuple[str, inspect.Type]]:
    match one:
        case inspect.DictType(value_type=value):
            yield "{}", value
        case inspect.TupleType(item_types=items):
            yield from ((f"[{number}]", item) for number, item in enumerate(items))
        case inspect.UnionType(types=members):
            yield from (("", member) for member in members)
        case (
            inspect.StructType()
            | inspect.DataclassType()
            | inspect.TypedDictType()
            | inspect.NamedTupleType()
        ):
            if one.cls not in seen:  # a type may hold itself
                seen.add(one.cls)
                yield from ((f".{field.encode_name}", field.type) for field in one.fields)
        case _ if (item := getattr(one, "item_type", None)) is not None:  # lists, sets, tuples of any length
            yield "[]", item


def _members(one: inspect.Type) -> tuple[inspect.Type, ...]:
    return one.types if isinstance(one, inspect.UnionType) else (one,)


def _may_be(cls: Any) -> bool:  # noqa: ANN401 - a class, or what stands in for one
    """Whether a value of JSON can be an instance: of `object` and `Hashable` some are, of `Path` none."""
    try:
        return any(isinstance(value, cls) for value in JSON_VALUES)
    except TypeError:
        return False
