"""Durations in handlers: a number of seconds, a `timedelta`, or a text as in the settings."""

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

from jobpipe.settings import read_duration

Duration = float | str | timedelta
"""Seconds, or a text as in the settings: `"500ms"`, `"5m"`, `"2h"`."""


def seconds(duration: Any) -> Any:  # noqa: ANN401 - whatever was given; it is checked afterwards
    """A duration in seconds; what is none is left for the check that follows, except texts: ValueError."""
    match duration:
        case str():
            try:
                return read_duration(duration)
            except ValueError:
                raise ValueError(
                    f"{duration!r} is not a duration: give seconds, or a number with ms, s, m, h or d"
                ) from None
        case timedelta():
            return duration.total_seconds()
        case _:
            return duration


def in_seconds(option: Any, durations: Collection[str] = ("base", "cap")) -> Any:  # noqa: ANN401 - see above
    """An option of several fields (a backoff, unless others are named) with its durations in seconds."""
    if not isinstance(option, Mapping):
        return option
    return {name: seconds(value) if name in durations else value for name, value in option.items()}
