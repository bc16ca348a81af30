"""Numbers, durations and times as people read them, and sentences made of parts. Pure."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec

from jobpipe.api.schemas import rfc3339

MINUTE, HOUR, DAY = 60, 3600, 86_400

UNKNOWN = "–"  # noqa: RUF001 - a dash, on purpose
"""What stands where nothing is known; never a zero."""

Form = Literal["at", "since", "for", "in", "age"]
"""How the browser says a time: as a time of day, or as a duration up to now or from now on."""

_BEFORE: dict[Form, str] = {"at": "", "since": "since ", "for": "since ", "in": "at ", "age": "since "}
"""What a page without a script says before the time itself."""


class Part(msgspec.Struct, frozen=True):
    """A part of a sentence: text, in bold or as a link, or a time that the browser says in its own words."""

    text: str
    style: Literal["", "strong", "quiet"] = ""
    href: str = ""
    at: float | None = None
    form: Form = "at"


Sentence = Sequence[Part]


def says(*parts: "str | Part") -> Sentence:
    """A sentence of texts and parts."""
    return tuple(Part(one) if isinstance(one, str) else one for one in parts)


def strong(text: str, href: str = "") -> Part:
    """A part that matters."""
    return Part(text, "strong", href)


def time(at: float, form: Form = "at") -> Part:
    """A part that is a time."""
    return Part(_BEFORE[form] + clock(at), at=at, form=form)


def plain(sentence: Sentence) -> str:
    """A sentence as one text, for a label that a screen reader says."""
    return "".join(part.text for part in sentence)


def number(count: int) -> str:
    """A whole number with commas."""
    return f"{count:,}"


def many(count: int, one: str, more: str = "") -> str:
    """So many of something: `1 job`, `1,204 jobs`."""
    return f"{number(count)} {one if count == 1 else more or f'{one}s'}"


def duration(seconds: float) -> str:
    """A duration in two figures at most: `14 ms`, `42.3 s`, `5 h 12 m`, `12 d`. Below zero it is none."""
    if not math.isfinite(seconds):
        return UNKNOWN
    seconds = max(0.0, seconds)
    if seconds < 0.9995:  # noqa: PLR2004 - what rounds to fewer than 1,000 ms
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:  # noqa: PLR2004 - what rounds to less than a minute
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for large, small, names in ((DAY, HOUR, "dh"), (HOUR, MINUTE, "hm"), (MINUTE, 1, "ms")):
        if whole >= large:
            rest = whole % large // small
            first = f"{number(whole // large)} {names[0]}"
            return f"{first} {rest} {names[1]}" if rest else first
    return f"{whole} s"


def clock(at: float) -> str:
    """A time in UTC as a page without a script shows it: to the second."""
    return f"{_utc(at):%Y-%m-%d %H:%M:%S} UTC"


def time_of_day(at: float) -> str:
    """The time of day in UTC, to the second."""
    return f"{_utc(at):%H:%M:%S}"


def _utc(at: float) -> datetime:
    # By way of RFC 3339, which takes any float that a damaged row may hold.
    return datetime.fromisoformat(rfc3339(at)).astimezone(UTC)


def size(count: int) -> str:
    """A number of bytes."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:  # noqa: PLR2004 - what a unit is of the one below
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def first_line(text: str, most: int = 200) -> str:
    """The first line of a text, cut."""
    line = next(iter(text.strip().splitlines()), "")
    return line if len(line) <= most else f"{line[:most]}..."


def listed(names: Sequence[str]) -> str:
    """Names in a row: `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
