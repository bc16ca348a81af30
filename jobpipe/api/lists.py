"""Lists in requests that may be one value: in JSON the value alone, in a query a parameter that is given once."""

from collections.abc import Mapping
from typing import Any, get_args

import msgspec
from msgspec import Meta

MARK = "x-one-or-more"
"""Where the schema of a list has this, one value may be sent instead of it; the spec says so in words of its own."""

ONE_OR_MORE = Meta(min_length=1, max_length=100, extra_json_schema={MARK: True})
"""Annotates a list of 1 to 100 values that may be sent as one value."""


def takes_one(kind: Any) -> bool:  # noqa: ANN401 - any type
    """Whether a type, or what may be None beside it, is annotated with `ONE_OR_MORE`."""
    annotations = (one for part in (kind, *get_args(kind)) for one in getattr(part, "__metadata__", ()))
    return any(MARK in (one.extra_json_schema or ()) for one in annotations if isinstance(one, Meta))


def in_lists(value: Any, kind: Any) -> Any:  # noqa: ANN401 - any JSON, any type
    """A decoded value that is to be of a type, with lists instead of the values in it that may be lists.

    Where nothing changes, it is the same object.
    """
    if takes_one(kind):
        return value if isinstance(value, list) or value is None else [value]
    parts = (one for one in (kind, *get_args(kind)) if isinstance(one, type))
    model = next((one for one in parts if issubclass(one, msgspec.Struct)), None)
    if model is None or not isinstance(value, dict):
        return value
    types = {field.encode_name: field.type for field in msgspec.structs.fields(model)}
    read = {name: in_lists(value[name], types[name]) for name in value if name in types}
    changed = {name: one for name, one in read.items() if one is not value[name]}
    return value | changed if changed else value


def as_sent(pointer: str, value: Any) -> str:  # noqa: ANN401 - any JSON
    """A JSON pointer into what `in_lists` has made of a value, as one into that value."""
    steps = list[str]()
    for step in pointer.split("/")[1:]:
        if isinstance(value, Mapping):
            value = value.get(step.replace("~1", "/").replace("~0", "~"))
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        elif step == "0" and not isinstance(value, list):
            continue  # the value stands for the list
        steps.append(step)
    return "".join(f"/{step}" for step in steps)
