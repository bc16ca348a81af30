"""Values of statements in PostgreSQL's binary form, arrays made in one go: psycopg's own lists cost ten times as much.

An array: number of dimensions, whether there are nulls, the element's type, then length and lower bound of the
dimension, then each element after its length; -1 for null (PostgreSQL's array_send).
"""

import functools
import struct
from collections.abc import Iterable, Sequence
from typing import ClassVar

Parameter = tuple[bytes | None, int, int]
"""A value, the number of its type, and its form: 0 for text, 1 for binary."""

_NULL = struct.pack(">i", -1)


class Array(bytes):
    """A whole array; each subclass is one type of elements."""

    __slots__ = ()
    oid: ClassVar[int]


class Integers(Array):
    """Whole numbers: bigint[]."""

    __slots__ = ()
    oid = 1016


class Floats(Array):
    """Numbers: double precision[]."""

    __slots__ = ()
    oid = 1022


class Texts(Array):
    """Texts: text[]."""

    __slots__ = ()
    oid = 1009


class Binaries(Array):
    """Bytes: bytea[]."""

    __slots__ = ()
    oid = 1001


def _header(element: int, length: int) -> bytes:
    if not length:
        return struct.pack(">iii", 0, 0, element)
    return struct.pack(">iiiii", 1, 1, element, length, 1)


@functools.lru_cache(maxsize=2048)
def _fixed(code: str, length: int) -> struct.Struct:
    return struct.Struct(">" + f"i{code}" * length)


def integers(values: Sequence[int | None]) -> Integers:
    """An array of whole numbers."""
    if None in values:
        parts = [_NULL if value is None else struct.pack(">iq", 8, value) for value in values]
        return Integers(_header(20, len(values)) + b"".join(parts))
    flat: list[int | None] = [8] * (2 * len(values))
    flat[1::2] = values
    return Integers(_header(20, len(values)) + _fixed("q", len(values)).pack(*flat))


def floats(values: Sequence[float | None]) -> Floats:
    """An array of numbers."""
    if None in values:
        parts = [_NULL if value is None else struct.pack(">id", 8, value) for value in values]
        return Floats(_header(701, len(values)) + b"".join(parts))
    flat: list[float | None] = [8] * (2 * len(values))
    flat[1::2] = values
    return Floats(_header(701, len(values)) + _fixed("d", len(values)).pack(*flat))


def texts(values: Iterable[str | None]) -> Texts:
    """An array of texts."""
    return Texts(_sized(25, [None if value is None else value.encode() for value in values]))


def binaries(values: Sequence[bytes | None]) -> Binaries:
    """An array of bytes."""
    return Binaries(_sized(17, values))


def _sized(element: int, values: Sequence[bytes | None]) -> bytes:
    parts = [_header(element, len(values))]
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (len(value).to_bytes(4), value)
    return b"".join(parts)


def in_binary(value: object) -> Parameter:  # noqa: PLR0911 - a line for each type
    """A value as it is sent."""
    match value:
        case Array():
            return value, value.oid, 1
        case bool():
            return b"\1" if value else b"\0", 16, 1
        case int():
            return struct.pack(">q", value), 20, 1
        case float():
            return struct.pack(">d", value), 701, 1
        case bytes():
            return value, 17, 1
        case str():  # a text, or whatever else PostgreSQL takes it for
            return value.encode(), 0, 0
        case None:
            return None, 0, 0
        case _:
            raise TypeError(f"{type(value).__name__} is no value for a statement")
