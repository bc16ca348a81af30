"""Values at the annotated bounds of a type, and beyond them."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import inspect

Edge = tuple[Any, bool]
"""A value, and whether it is within the bounds."""

NAMES = ("x", "x" * 100, "x" * 101, "x" * 200, "x" * 201, "", ".", "..", "...", "a b", "a/b", "-a", "a\x9b")


def edges(kind: inspect.Type) -> Iterator[Edge]:
    """The values at each bound of a type, and one beyond each."""
    match kind:
        case inspect.Metadata(type=one):
            yield from edges(one)
        case inspect.UnionType(types=types):
            for one in types:
                yield from edges(one)
        case inspect.IntType() | inspect.FloatType():
            yield from _of_number(kind)
        case inspect.StrType():
            yield from _of_text(kind)
        case inspect.ListType():
            yield from _of_list(kind)
        case inspect.LiteralType(values=values):
            yield from ((value, True) for value in values)
            yield "other", False
        case inspect.StructType(fields=fields):
            for field in fields:
                yield from (({field.name: value}, within) for value, within in edges(field.type))
            yield {"other": 1}, False


def _of_number(kind: inspect.IntType | inspect.FloatType) -> Iterator[Edge]:
    step = 1 if isinstance(kind, inspect.IntType) else 0.001
    for edge, sign in ((kind.ge, -1), (kind.le, 1)):
        if edge is not None:
            yield edge, True
            yield edge + sign * step, False
    if kind.gt is not None:
        yield kind.gt + step, True
        yield kind.gt, False


def _of_text(kind: inspect.StrType) -> Iterator[Edge]:
    for text in NAMES if kind.pattern else ():
        yield text, re.search(kind.pattern or "", text) is not None
    for length in (kind.min_length, kind.max_length):
        if length is not None:
            yield "x" * length, True
    if kind.max_length is not None:
        yield "x" * (kind.max_length + 1), False
        yield "", not kind.min_length


def _of_list(kind: inspect.ListType) -> Iterator[Edge]:
    if kind.max_length is not None:
        yield ["x"] * kind.max_length, True
        yield ["x"] * (kind.max_length + 1), False
    yield from (([value], within) for value, within in edges(kind.item_type))


def of_fields(kind: inspect.Type, make: Callable[[str, Any], Any]) -> Iterator[Edge]:
    """The same for each field of a struct, alone."""
    assert isinstance(kind, inspect.StructType)
    for field in kind.fields:
        yield from ((make(field.name, value), within) for value, within in edges(field.type))
