"""Every fault of a decoded JSON body, each with its JSON pointer (RFC 6901)."""

import difflib
import itertools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from jobpipe.api.problems import LISTED, Fault

_PLACE = re.compile(r" - at (?:`key` in )?`\$(?P<path>[^`]*)`$")
_STEP = re.compile(r"\.(?P<field>[^.\[]+)|\[(?P<index>\d+|\.\.\.)\]")

LOOKED_AT = 1000
"""The most items of one array that are looked at for faults."""

LONGEST_NAME = 100
"""The most characters of a field's name, as the client wrote it, that an answer repeats."""


def faults_of(value: Any, kind: Any, pointer: str = "") -> Sequence[Fault]:  # noqa: ANN401 - any JSON, any type
    """Every fault of a value that is to be of a type; none when it fits.

    Looks into structs and lists, field by field; where all of those are well, the fault is that of the whole.
    """
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return list(itertools.islice(_inside(value, _plain(kind), pointer), LISTED + 1)) or [
            _whole(error, kind, pointer)
        ]
    return []


def fault_from(error: msgspec.ValidationError, root: str = "") -> Fault:
    """The fault that msgspec found first, its path as a JSON pointer below `root`. The pointer ends at a map."""
    text = str(error)
    match = _PLACE.search(text)
    if match is None:
        return Fault(root, text)
    steps = (step["field"] or step["index"] for step in _STEP.finditer(match["path"]))
    known = itertools.takewhile(lambda step: step != "...", steps)
    return Fault(root + "".join(f"/{escaped(step)}" for step in known), text[: match.start()])


def escaped(name: str) -> str:
    """A name as a step of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def _inside(value: Any, kind: Any, pointer: str) -> Iterator[Fault]:  # noqa: ANN401 - any JSON, any type
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
        yield from _in_struct(value, kind, pointer)
    elif typing.get_origin(kind) is list and isinstance(value, list):
        (item_kind,) = typing.get_args(kind)
        for index, item in enumerate(value[:LOOKED_AT]):
            yield from faults_of(item, item_kind, f"{pointer}/{index}")


def _in_struct(value: Mapping[str, Any], model: type[msgspec.Struct], pointer: str) -> Iterator[Fault]:
    config = model.__struct_config__
    fields = {field.encode_name: field for field in msgspec.structs.fields(model)}
    if config.forbid_unknown_fields:
        for name in value:
            if name not in fields and name != config.tag_field:
                yield Fault(f"{pointer}/{escaped(name[:LONGEST_NAME])}", _unknown(name, list(fields)))
    for name, field in fields.items():
        below = f"{pointer}/{escaped(name)}"
        if name in value:
            yield from faults_of(value[name], field.type, below)
        elif field.required:
            yield Fault(below, "is required")


def _unknown(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name[:LONGEST_NAME], known, 1)
    meant = f"did you mean {close[0]}? " if close else ""
    return f"unknown field; {meant}known are {', '.join(known)}"


def _whole(error: msgspec.ValidationError, kind: Any, pointer: str) -> Fault:  # noqa: ANN401 - any type
    fault = fault_from(error, pointer)
    words = _description(kind)
    # A regular expression is for machines; what it stands for is said beside it, for people.
    if words and "matching regex" in fault.detail:
        return Fault(fault.pointer, f"expected {words}")
    return fault


def _plain(kind: Any) -> Any:  # noqa: ANN401 - any type
    """A type without its annotations, and without the None beside it."""
    if hasattr(kind, "__metadata__"):
        return _plain(kind.__origin__)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        rest = [part for part in typing.get_args(kind) if part is not types.NoneType]
        return _plain(rest[0]) if len(rest) == 1 else kind
    return kind


def _description(kind: Any) -> str | None:  # noqa: ANN401 - any type
    """How a type is described, when it is a described one or that or None."""
    metas = getattr(kind, "__metadata__", ())
    inner = (_description(part) for part in typing.get_args(kind) if part is not types.NoneType)
    return next((meta.description for meta in metas if isinstance(meta, msgspec.Meta)), None) or next(
        filter(None, inner), None
    )
