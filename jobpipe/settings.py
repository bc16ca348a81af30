"""Every setting, once: flags, environment, `.env`, checks, `jobpipe config` and its docs derive from `Settings`."""

import dataclasses
import difflib
import io
import os
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from jobpipe.errors import SettingsError

if typing.TYPE_CHECKING:
    from dotenv.parser import Original

PREFIX = "JOBPIPE_"
URL = "JOBPIPE_URL"
"""Where the command line finds its service; not a setting of the service itself."""
DOTENV = Path(".env")

DAY = 86_400
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


def read_duration(text: str) -> float:
    """Seconds in `90`, `0.5`, `500ms`, `30s`, `5m`, `2h` or `7d`; ValueError when it is none of them."""
    return float(_measured(text, DURATIONS))


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
    return re.sub(r"([?&]password=)[^&]*", r"\1***", masked)


def _measured(text: str, units: Mapping[str, Decimal | int]) -> Decimal:
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)", text)
    if match is None or match[2] not in units:
        raise ValueError(text)
    return Decimal(match[1]) * units[match[2]]


def _in_whole_units(exact: Decimal, units: Mapping[str, Decimal | int]) -> Iterator[str]:
    return (f"{exact // size}{unit}" for unit, size in units.items() if exact and exact % size == 0)


def _whole(text: str) -> int:
    # int() alone would also take 1_0, and refuse more than 4,300 digits with a riddle.
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise ValueError(text)
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip()))


@dataclasses.dataclass(frozen=True)
class Form:
    """How the values of a setting are written; `read` raises ValueError for a text that is not of this form."""

    words: str
    read: Callable[[str], object]
    show: Callable[[Any], str] = str


Whole = Annotated[int, Form("a whole number", _whole)]
Duration = Annotated[float, Form("seconds, or a number with ms, s, m, h or d", read_duration, show_duration)]
Size = Annotated[int, Form("bytes, or a number with KB, MB, GB, KiB, MiB or GiB", read_size, show_size)]
# "sqlite://" is refused: whoever is used to sqlite:///jobs.db would get /jobs.db, at the root of the disk.
Store = Annotated[
    str,
    Meta(pattern=r"^(memory:|sqlite:(?!//|:memory:).+)$"),
    Form("memory: or sqlite:PATH (postgresql:// comes with a later version)", str, mask),
]
Host = Annotated[
    str,
    Meta(pattern=r"^([A-Za-z0-9._-]+|(?=.*:.*:)[0-9A-Fa-f:.]+(%[\w.-]+)?)$"),
    Form("a host name or an IP address, without a port", str),
]
Modules = Annotated[
    tuple[Annotated[str, Meta(pattern=r"^(?!.*\.py$)[^\W\d]\w*(\.[^\W\d]\w*)*$")], ...],
    Form("names of Python modules such as shop.mail, with commas between", _names, ",".join),
]


def about(text: str, least: float | None = None, most: float | None = None) -> Meta:
    """What a setting does and, for a number, the least and the most that is allowed."""
    return Meta(description=text, ge=least, le=most)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What a node does and where. `load` checks the limits; who makes one by hand answers for the values.

    Durations are seconds, sizes are bytes. `max_backlog` is never 0 afterwards: its default is filled in.
    """

    workers: Annotated[Whole, about("How many jobs run at the same time.", 1, 1000)] = 4
    queue_size: Annotated[
        Whole,
        about("How many claimed jobs wait before the workers; 0 keeps priorities strict.", 0, 100_000),
    ] = 64
    store: Annotated[Store, about("Where jobs live.")] = "sqlite:jobpipe.db"
    sync: Annotated[
        Literal["full", "normal"],
        about("Whether what is acknowledged survives a power cut (full) or a dead process only (normal)."),
    ] = "full"
    host: Annotated[Host, about("The address to listen on; 0.0.0.0 is every IPv4 one.")] = "127.0.0.1"
    port: Annotated[Whole, about("The port to listen on; 0 takes any free one.", 0, 65_535)] = 8080
    handlers: Annotated[Modules, about("Modules to import, in which your handlers are.")] = ()
    grace: Annotated[
        Duration, about("How long active jobs may go on after the first signal to stop.", 0, 30 * DAY)
    ] = 30.0
    lease: Annotated[
        Duration, about("How long a silent node keeps its jobs before others may rescue them.", 1, 3600)
    ] = 15.0
    max_backlog: Annotated[
        Whole, about("How many jobs may wait before new ones are refused with 503.", 1, 10**9)
    ] = dataclasses.field(default=0, metadata={"default": "QUEUE_SIZE on memory: (at least 1), else 1000000"})
    max_body: Annotated[Size, about("The longest body of one request.", 1, 2**30)] = 2**20
    keep_done: Annotated[Duration, about("How long a job is kept after it ended done.", 0, 3650 * DAY)] = (
        7.0 * DAY
    )
    keep_failed: Annotated[
        Duration, about("How long a job is kept after it ended failed, cancelled or expired.", 0, 3650 * DAY)
    ] = 30.0 * DAY
    keep_jobs: Annotated[
        Whole, about("How many ended jobs are kept at most; the oldest go first.", 0, 10**9)
    ] = 1_000_000
    keep_bytes: Annotated[
        Size, about("How many bytes of ended jobs' payloads and results are kept at most.", 0, 2**40)
    ] = 2**30
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], about("Lines of this level and above are written.")
    ] = "info"
    log_format: Annotated[
        Literal["console", "json"], about("Log lines for people (console) or for programs (json).")
    ] = "console"

    def __post_init__(self) -> None:
        if self.max_backlog == 0:
            default = max(self.queue_size, 1) if self.store == "memory:" else 1_000_000
            object.__setattr__(self, "max_backlog", default)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of `Settings` as flags, environment, messages and docs see it."""

    name: str
    hint: Any
    form: Form
    limits: str
    help: str
    default: str

    @property
    def variable(self) -> str:
        """Its name in the environment; with `PREFIX` in front of it another one, which wins."""
        return self.name.upper()

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def allowed(self) -> str:
        """Which values are allowed, in words."""
        return self.form.words + self.limits

    def read(self, text: str) -> object:
        """The value that `text` stands for; ValueError when it is not allowed."""
        try:
            return msgspec.convert(self.form.read(text), self.hint)
        except msgspec.ValidationError as error:
            raise ValueError(text) from error


def _setting(field: dataclasses.Field[Any], hint: Any) -> Setting:  # noqa: ANN401 - a type form has no type yet
    metas = [part for part in hint.__metadata__ if isinstance(part, Meta)]
    form = next((part for part in hint.__metadata__ if isinstance(part, Form)), None) or _choice(hint)
    last = metas[-1]
    limits = "" if last.ge is None else f", from {form.show(last.ge)} to {form.show(last.le)}"
    default = field.metadata.get("default") or form.show(field.default) or "none"
    return Setting(field.name, hint, form, limits, last.description or "", default)


def _choice(hint: Any) -> Form:  # noqa: ANN401 - a type form has no type yet
    *rest, last = typing.get_args(hint.__origin__)
    return Form(f"{', '.join(rest)} or {last}", str.lower)


_HINTS = typing.get_type_hints(Settings, include_extras=True)
SETTINGS = tuple(_setting(field, _HINTS[field.name]) for field in dataclasses.fields(Settings))


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The settings in force, and for each field where its value came from."""

    settings: Settings
    origins: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class _Found:
    text: str
    origin: str


@dataclasses.dataclass
class _Sources:
    """Where values are looked for, and every fault met on the way."""

    flags: Mapping[str, str | None]
    places: Mapping[str, Mapping[str, str]]
    """Variables by where they are from; the first place wins."""
    faults: list[str]

    def find(self, setting: Setting) -> _Found | None:
        """The text in force: flag, then environment, then `.env`; None when none of them has it."""
        flag = self.flags.get(setting.name)
        if flag is not None:
            return _Found(flag.strip(), f"flag {setting.flag}")
        return self.variable(PREFIX + setting.variable, setting.variable)

    def variable(self, *names: str) -> _Found | None:
        """The first of the variables that is set; an empty one is not."""
        for place, variables in self.places.items():
            for name in names:
                if text := _without_links(name, variables.get(name, "").strip()):
                    return _Found(text, f"{place} {name}")
        return None

    def read(self, setting: Setting, found: _Found) -> object:
        """The value found, or None and a fault."""
        try:
            return setting.read(found.text)
        except ValueError:
            self.faults.append(
                f"{setting.variable}: {_quoted(found)} is not allowed; allowed: {setting.allowed}"
            )
            return None

    def check(self) -> None:
        """SettingsError with all faults, if there are any."""
        if self.faults:
            raise SettingsError("\n  ".join(["the settings are wrong:", *self.faults]))


def load(
    flags: Mapping[str, str | None],
    environ: Mapping[str, str] | None = None,
    dotenv: Path = DOTENV,
) -> Loaded:
    """The settings in force: flags, then `JOBPIPE_X`, then `X`, from the environment, then from `.env`.

    Args:
        flags: by field name; None when not given.
        environ: instead of the process's environment.
        dotenv: the file to read; it need not exist.

    Raises:
        SettingsError: it lists every fault: the value, where it came from, what is allowed.
    """
    sources = _open(flags, environ, dotenv)
    sources.faults.extend(_unknown_variables(sources))
    found = [(setting, hit) for setting in SETTINGS if (hit := sources.find(setting))]
    values: dict[str, Any] = {setting.name: sources.read(setting, hit) for setting, hit in found}
    sources.check()
    origins = {setting.name: "default" for setting in SETTINGS}
    origins |= {setting.name: hit.origin for setting, hit in found}
    return Loaded(Settings(**values), origins)


def service_url(
    given: str | None = None, environ: Mapping[str, str] | None = None, dotenv: Path = DOTENV
) -> str:
    """Where the command line finds its service: `given`, else `JOBPIPE_URL`, else HOST and PORT.

    Only these are looked at: a wrong WORKERS is no reason not to ask a service on another machine.

    Raises:
        SettingsError: what was found is no URL, or a PORT that was left to chance.
    """
    sources = _open({}, environ, dotenv)
    found = _Found(given, "flag --url") if given is not None else sources.variable(URL)
    if found and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", found.text):
        sources.faults.append(
            f"{URL}: {_quoted(found)} is not allowed; allowed: http://HOST:PORT or https://..."
        )
    url = found.text if found else _listening_url(sources)
    sources.check()
    return url.rstrip("/")


def _listening_url(sources: _Sources) -> str:
    host, port = (_value_of(name, sources) for name in ("host", "port"))
    if port == 0:
        sources.faults.append(f"PORT: 0 is any free port, so it must be said which; allowed: {URL} or --url")
    # A server that listens on every address is reached at the loopback one.
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(host), str(host))  # noqa: S104 - compared, not bound
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _value_of(name: str, sources: _Sources) -> object:
    setting = next(setting for setting in SETTINGS if setting.name == name)
    found = sources.find(setting)
    return sources.read(setting, found) if found else getattr(Settings, name)


def _open(flags: Mapping[str, str | None], environ: Mapping[str, str] | None, dotenv: Path) -> _Sources:
    faults: list[str] = []
    try:
        variables = _read_dotenv(dotenv)
    except (OSError, ValueError) as error:
        variables, reason = {}, error.strerror if isinstance(error, OSError) else str(error)
        faults.append(f"{dotenv}: cannot be read: {reason}; allowed: lines such as WORKERS=4")
    places = {"environment": os.environ if environ is None else environ, dotenv.name: variables}
    return _Sources(flags, places, faults)


def _read_dotenv(path: Path) -> dict[str, str]:
    try:
        text = path.read_text("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return {}  # a folder of this name is somebody's virtual environment
    # Imported only here: it costs 25 ms, and most places have no such file. `dotenv_values` would do the
    # same, but only warns of a line that it cannot read, and fills in ${...} from the environment.
    from dotenv.parser import parse_stream  # noqa: PLC0415

    bindings = list(parse_stream(io.StringIO(text)))
    if wrong := [str(_line(binding.original)) for binding in bindings if binding.error]:
        raise ValueError(f"line {', '.join(wrong)}")
    return {binding.key: binding.value for binding in bindings if binding.key and binding.value}


def _line(original: "Original") -> int:
    """The line of what could not be read; python-dotenv counts from the blank lines before it."""
    text = original.string
    return original.line + text[: len(text) - len(text.lstrip())].count("\n")


def _unknown_variables(sources: _Sources) -> Iterator[str]:
    known = {PREFIX + setting.variable for setting in SETTINGS} | {URL}
    for place, variables in sources.places.items():
        for name in sorted(variables.keys() - known):
            if (
                name.startswith(PREFIX)
                and not name.startswith(PREFIX + "TEST_")
                and _without_links(name, variables[name])
            ):
                yield f"{name}: there is no such setting (from {place}){_did_you_mean(name, known)}"


def _did_you_mean(name: str, known: set[str]) -> str:
    # Without the prefix, which would make all of them look alike.
    close = difflib.get_close_matches(
        name.removeprefix(PREFIX), [each.removeprefix(PREFIX) for each in known], 1
    )
    return f"; did you mean {PREFIX}{close[0]}?" if close else ""


def _without_links(name: str, text: str) -> str:
    """`text`, or nothing when it is no setting but what Kubernetes puts into pods beside a Service called jobpipe."""
    links = r"JOBPIPE_(SERVICE_(HOST|PORT)|PORT_[0-9]+_(TCP|UDP|SCTP))"
    link = re.match(links, name) or (name == "JOBPIPE_PORT" and re.match(r"(tcp|udp|sctp)://", text))
    return "" if link else text


def _quoted(found: _Found) -> str:
    longest = 80
    text = mask(found.text)
    shown = text if len(text) <= longest else text[:longest] + "..."
    return f"{shown!r} (from {found.origin})"
