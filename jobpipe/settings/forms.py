"""How the values of settings are written: durations, sizes, stores, modules."""

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any

from msgspec import Meta

DAY = 86_400
MOST_HOSTS = 100
"""How many addresses one setting may name."""
DURATIONS: dict[str, Decimal | int] = {"d": DAY, "h": 3600, "m": 60, "s": 1, "ms": Decimal("0.001"), "": 1}
SIZES: dict[str, Decimal | int] = {
    "GiB": 2**30,
    "GB": 10**9,
    "MiB": 2**20,
    "MB": 10**6,
    "KiB": 2**10,
    "KB": 10**3,
    "": 1,
}

_WITH_UNIT = r"[0-9]{1,18}(?:\.[0-9]{1,9})?[a-z]{1,2}"
_SEVERAL = rf"(?:{_WITH_UNIT}){{2,5}}"


def read_duration(text: str) -> float:
    """Seconds in `90`, `0.5`, `500ms`, `30s`, `5m`, `7d` or `1h30m`; ValueError when it is none of them."""
    several = re.fullmatch(_SEVERAL, text) is not None
    parts = re.findall(_WITH_UNIT, text) if several else [text]
    return float(sum(_measured(part, DURATIONS) for part in parts))


def read_size(text: str) -> int:
    """Bytes in `1000`, `64KB`, `1.5MiB` and the like, rounded; ValueError when it is none of them."""
    return round(_measured(text, SIZES))


def show_duration(seconds: float) -> str:
    """The shortest text that `read_duration` reads as `seconds`."""
    exact = Decimal(repr(seconds)).normalize()
    return next(_in_whole_units(exact, DURATIONS), f"{exact:f}s")


def show_size(size: int) -> str:
    """The shortest text that `read_size` reads as `size`."""
    return next(_in_whole_units(Decimal(size), SIZES), str(size))


def mask(text: str) -> str:
    """`text` with the password of a URL, if it has one, made unreadable."""
    masked = re.sub(r"(://[^:/?#\s]*):.*@", r"\1:***@", text)
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", masked)


def _measured(text: str, units: Mapping[str, Decimal | int]) -> Decimal:
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)", text)
    if match is None or match[2] not in units:
        raise ValueError(text)
    return Decimal(match[1]) * units[match[2]]


def _in_whole_units(exact: Decimal, units: Mapping[str, Decimal | int]) -> Iterator[str]:
    return (f"{exact // size}{unit}" for unit, size in units.items() if exact and exact % size == 0)


def is_loopback(name: str) -> bool:
    """Whether a plain name or address is this machine, for a browser too: `localhost`, 127.0.0.0/8, `::1`."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _whole(text: str) -> int:
    # int() alone would also take 1_0, and refuse more than 4,300 digits with a riddle.
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise ValueError(text)
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip()))


@dataclasses.dataclass(frozen=True)
class Form:
    """How the values of a setting are written; `read` raises ValueError for a text that is not of this form.

    `plain` makes the value for JSON.
    """

    words: str
    read: Callable[[str], object]
    show: Callable[[Any], str] = str
    plain: Callable[[Any], object] = lambda value: value


Whole = Annotated[int, Form("a whole number", _whole)]
Duration = Annotated[float, Form("seconds, or a number with ms, s, m, h or d", read_duration, show_duration)]
Size = Annotated[int, Form("bytes, or a number with KB, MB, GB, KiB, MiB or GiB", read_size, show_size)]
# "sqlite://" is refused: whoever is used to sqlite:///jobs.db would get /jobs.db, at the root of the disk.
Store = Annotated[
    str,
    Meta(pattern=r"^(memory:|sqlite:(?!//|:memory:).+|postgres(ql)?://\S*)$"),
    Form("memory:, sqlite:PATH or postgresql://USER@HOST/DATABASE", str, mask, mask),
]
Hosts = Annotated[
    tuple[
        Annotated[str, Meta(pattern=r"^([A-Za-z0-9._-]+|(?=.*:.*:)[0-9A-Fa-f:.]+(%[\w.-]+)?)$")],
        ...,
    ],
    Meta(min_length=1, max_length=MOST_HOSTS),
    Form("host names or IP addresses, without a port, separated by commas", _names, ",".join),
]
AllowedHosts = Annotated[
    tuple[
        Annotated[str, Meta(pattern=r"^(\*|(\*\.)?[A-Za-z0-9._-]+|(?=.*:.*:)[0-9A-Fa-f:.]+)$")],
        ...,
    ],
    Meta(max_length=MOST_HOSTS),
    Form("* or host names, *.DOMAIN or IP addresses, without a port, separated by commas", _names, ",".join),
]
_QUEUE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
EVERY_OTHER = "*"
"""In QUEUES: every queue that is not named."""


def _numbered(text: str) -> tuple[tuple[str, int], ...]:
    """Names with a number each, as in `mail:3,default`; 1 where there is none."""
    pairs = [name.rpartition(":") if ":" in name else (name, ":", "1") for name in _names(text)]
    found = tuple((name.strip(), _whole(number.strip())) for name, _, number in pairs)
    if len({name for name, _ in found}) < len(found):
        raise ValueError(text)  # twice the same
    return found


def show_weights(pairs: Iterable[tuple[str, int]]) -> str:
    """Names with their numbers as `QUEUES` has them, without those that are 1."""
    return ",".join(name if number == 1 else f"{name}:{number}" for name, number in pairs)


def show_numbered(pairs: Iterable[tuple[str, int]]) -> str:
    """Names with their numbers, as `RESERVE` has them."""
    return ",".join(f"{name}:{number}" for name, number in pairs)


_Number = Annotated[int, Meta(ge=1, le=1000)]
Weights = Annotated[
    tuple[tuple[Annotated[str, Meta(pattern=rf"^({_QUEUE}|\*)$")], _Number], ...],
    Meta(max_length=100),
    Form(
        "names of queues, each once and with a weight from 1 to 1000 where it is not 1, such as mail:3,default; "
        "* for every other queue",
        _numbered,
        show_weights,
        dict,
    ),
]
Reserved = Annotated[
    tuple[tuple[Annotated[str, Meta(pattern=rf"^{_QUEUE}$")], _Number], ...],
    Meta(max_length=100),
    Form(
        "names of queues, each once and with a number of workers where it is not 1, such as mail:2",
        _numbered,
        show_numbered,
        dict,
    ),
]
BasePath = Annotated[
    str,
    Meta(pattern=r"^(/[A-Za-z0-9._~-]{1,100}){0,10}$"),
    Form("a path such as /jobs, with a slash in front and none at its end", str),
]
Instance = Annotated[
    str,
    Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]{0,40}$"),
    Form("up to 40 characters", str),
]
Modules = Annotated[
    tuple[Annotated[str, Meta(pattern=r"^(?!.*\.py$)[^\W\d]\w*(\.[^\W\d]\w*)*$")], ...],
    Form("names of Python modules such as shop.mail, separated by commas", _names, ",".join),
]
