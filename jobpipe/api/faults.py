"""Every fault of a decoded JSON body, each with its JSON pointer (RFC 6901)."""

import difflib
import enum
import itertools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from jobpipe.api.durations import WORDS, takes_text
from jobpipe.api.problems import LISTED, Fault

_PLACE = re.compile(r" - at (?:`key` in )?`\$(?P<path>[^`]*)`$")
_STEP = re.compile(r"\.(?P<field>[^.\[]+)|\[(?P<index>\d+|\.\.\.)\]")

_QUOTED = re.compile(r"`([^`]+)`")
_LEAP = re.compile(r":60(?:[.Zz+-]|$)")

TIME = "a time in RFC 3339 with a time zone, such as 2030-01-31T12:00:00Z"
"""What a time is to be, in words."""

LEVELS = 20
"""How many levels down faults are looked for: a type that holds itself lets a payload nest far deeper."""

LOOKED_AT = 1000
"""The most items of one array that are looked at for faults."""

LONGEST_NAME = 100
"""The most characters of a field's name, as the client wrote it, that an answer repeats."""


def faults_of(value: Any, kind: Any, pointer: str = "", levels: int = LEVELS) -> Sequence[Fault]:  # noqa: ANN401 - any JSON, any type
    """Every fault of a value that is to be of a type; none when it fits.

    Looks into structs and lists, field by field, so many levels down; where nothing is wrong inside, or it lies
    deeper, the fault is that of the whole.
    """
    try:
        msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        inside = _inside(value, _plain(kind), pointer, levels - 1) if levels else iter(())
        return list(itertools.islice(inside, LISTED + 1)) or [_whole(error, value, kind, pointer)]
    return []


def fault_from(error: msgspec.ValidationError, root: str = "") -> Fault:
    """The fault that msgspec found first, its path as a JSON pointer below `root`. The pointer ends at a map."""
    text = str(error)
    match = _PLACE.search(text)
    if match is None:
        return Fault(root, plain(text))
    steps = (step["field"] or step["index"] for step in _STEP.finditer(match["path"]))
    known = itertools.takewhile(lambda step: step != "...", steps)
    return Fault(root + "".join(f"/{escaped(step)}" for step in known), plain(text[: match.start()]))


_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "str": "a string",
    "bool": "true or false",
    "null": "null",
    "array": "an array",
    "object": "an object",
    "any": "any JSON",
    "datetime": "a time",
    "date": "a date",
    "uuid": "a UUID",
    "bytes": "base64",
}
_GOT = {"bool": "a boolean", "int": "a number", "float": "a number"}


def plain(text: str) -> str:
    """What msgspec says of a value, in words that name JSON's types and not Python's."""
    expected, got, found = text.partition(", got ")
    expected = _QUOTED.sub(lambda quoted: _named(quoted[1], _TYPES), expected)
    found = _QUOTED.sub(lambda quoted: _named(quoted[1], _TYPES | _GOT), found)
    return (
        (expected[:1].lower() + expected[1:] + got + found)
        .replace(" >= ", " of at least ")
        .replace(" <= ", " of at most ")
    )


def _named(types_: str, words: Mapping[str, str]) -> str:
    return " or ".join(words.get(one, one) for one in types_.split(" | "))


def escaped(name: str) -> str:
    """A name as a step of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def _inside(value: Any, kind: Any, pointer: str, levels: int) -> Iterator[Fault]:  # noqa: ANN401 - any JSON, any type
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
        yield from _in_struct(value, kind, pointer, levels)
    elif typing.get_origin(kind) is list and isinstance(value, list):
        (item_kind,) = typing.get_args(kind)
        for index, item in enumerate(value[:LOOKED_AT]):
            yield from faults_of(item, item_kind, f"{pointer}/{index}", levels)


def _in_struct(
    value: Mapping[str, Any], model: type[msgspec.Struct], pointer: str, levels: int
) -> Iterator[Fault]:
    config = model.__struct_config__
    fields = {field.encode_name: field for field in msgspec.structs.fields(model)}
    if config.forbid_unknown_fields:
        for name in value:
            if name not in fields and name != config.tag_field:
                yield Fault(f"{pointer}/{escaped(name[:LONGEST_NAME])}", unknown("field", name, list(fields)))
    for name, field in fields.items():
        below = f"{pointer}/{escaped(name)}"
        if name in value:
            yield from faults_of(value[name], field.type, below, levels)
        elif field.required:
            yield Fault(below, "is required")


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """What is said of a field or parameter that does not exist, given those that do."""
    close = difflib.get_close_matches(name[:LONGEST_NAME], known, 1)
    meant = f"did you mean {close[0]}? " if close else ""
    others = f"known are {', '.join(known)}" if known else f"this request takes no {what}s"
    return f"unknown {what}; {meant}{others}"


def _whole(error: msgspec.ValidationError, value: Any, kind: Any, pointer: str) -> Fault:  # noqa: ANN401 - any JSON, any type
    fault = fault_from(error, pointer)
    words = _description(kind) or _choices(kind)
    if words is None or fault.pointer != pointer:
        return fault
    if words == TIME and isinstance(value, str) and _LEAP.search(value):
        return Fault(pointer, "a leap second (:60) is not supported: send the second before it")
    _, got, found = fault.detail.rpartition(", got ")
    # What follows a semicolon explains the field, and is not part of what is expected.
    expected = words.partition(";")[0] + (f" {WORDS}" if takes_text(kind) else "")
    return Fault(fault.pointer, f"expected {expected}{got}{found if got else ''}")


def _choices(kind: Any) -> str | None:  # noqa: ANN401 - any type
    """The values of a closed set, so that a wrong one, which may be long, need not be repeated."""
    kind = _plain(kind)
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(kind)))}"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return f"one of {', '.join(str(one.value) for one in kind)}"
    return None


def _plain(kind: Any) -> Any:  # noqa: ANN401 - any type
    """A type without its annotations, and without the None beside it, or what stands for a field that is not sent.

    Of a struct and a closed set of words, the struct: what is no word is looked through as that.
    """
    if hasattr(kind, "__metadata__"):
        return _plain(kind.__origin__)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        rest = [
            part
            for part in typing.get_args(kind)
            if part not in (types.NoneType, msgspec.UnsetType)
            and typing.get_origin(part) is not typing.Literal
        ] or [part for part in typing.get_args(kind) if typing.get_origin(part) is typing.Literal]
        return _plain(rest[0]) if len(rest) == 1 else kind
    return kind


def _description(kind: Any) -> str | None:  # noqa: ANN401 - any type
    """How a type is described, when it is a described one or that or None."""
    if hasattr(kind, "__metadata__"):
        metas = (meta.description for meta in kind.__metadata__ if isinstance(meta, msgspec.Meta))
        return next(filter(None, metas), None) or _description(kind.__origin__)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(filter(None, map(_description, typing.get_args(kind))), None)
    return None
