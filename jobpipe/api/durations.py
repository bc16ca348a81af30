"""Durations in requests: a number of seconds, or a text such as `90s`, `5m` or `1h30m`, which is read as one."""

import re
from typing import Any, get_args

import msgspec
from msgspec import Meta

from jobpipe.settings import read_duration

MARK = "x-duration"
"""Where the schema of a type has this, its number may be sent as a text too; the spec says so in words of its own."""

OR_TEXT = Meta(extra_json_schema={MARK: True})
"""Annotates a number of seconds that may be sent as a text."""

WORDS = 'or a duration such as "90s", "5m" or "1h30m"'
"""What such a type takes beside a number, in words."""

PATTERN = r"^([0-9]{1,18}(\.[0-9]{1,9})?(ms|s|m|h|d)){1,5}$"
"""What such a text looks like, for every dialect of regular expressions."""


def takes_text(kind: Any) -> bool:  # noqa: ANN401 - any type
    """Whether a type, or what may be None beside it, is annotated with `OR_TEXT`."""
    annotations = (one for part in (kind, *get_args(kind)) for one in getattr(part, "__metadata__", ()))
    return any(MARK in (one.extra_json_schema or ()) for one in annotations if isinstance(one, Meta))


def in_seconds(value: Any, kind: Any) -> Any:  # noqa: ANN401 - any JSON, any type
    """A decoded value that is to be of a type, with numbers instead of the texts in it that are durations.

    A text that cannot be read stays. Where nothing changes, it is the same object.
    """
    if isinstance(value, str) and takes_text(kind):
        return _read(value)
    model = _struct_of(kind)
    if model is None or not isinstance(value, dict):
        return value
    types = {
        field.encode_name: field.type for field in msgspec.structs.fields(model) if field.encode_name in value
    }
    read = {name: in_seconds(value[name], one) for name, one in types.items()}
    changed = {name: one for name, one in read.items() if one is not value[name]}
    return value | changed if changed else value


def _read(text: str) -> float | str:
    # The settings take a text without a unit, too. In JSON that is a number.
    return read_duration(text) if re.fullmatch(PATTERN, text) else text


def _struct_of(kind: Any) -> type[msgspec.Struct] | None:  # noqa: ANN401 - any type
    parts = (one for one in (kind, *get_args(kind)) if isinstance(one, type))
    return next((one for one in parts if issubclass(one, msgspec.Struct)), None)
