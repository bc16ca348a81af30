"""Where values are looked for: flags, environment, `.env`; and every fault at once."""

import dataclasses
import difflib
import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobpipe.errors import SettingsError
from jobpipe.settings.definition import PREFIX, SETTINGS, Setting, Settings, conflicts
from jobpipe.settings.forms import mask

if TYPE_CHECKING:
    from dotenv.parser import Binding, Original

URL = "JOBPIPE_URL"
"""Where the command line finds its service; not a setting of the service itself."""
DOTENV = Path(".env")


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
    settings = Settings(**values)
    sources.faults.extend(conflicts(settings))
    sources.check()
    origins = {setting.name: "default" for setting in SETTINGS}
    origins |= {setting.name: hit.origin for setting, hit in found}
    return Loaded(settings, origins)


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
    hosts, port = (_value_of(name, sources) for name in ("host", "port"))
    if port == 0:
        sources.faults.append(f"PORT: 0 is any free port, so the port must be given; allowed: {URL} or --url")
    # A server that listens on every address is reached at the loopback one; on `::` it listens on IPv4 too.
    host = str(hosts[0]) if isinstance(hosts, tuple) and hosts else ""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _value_of(name: str, sources: _Sources) -> object:
    setting = next(setting for setting in SETTINGS if setting.name == name)
    found = sources.find(setting)
    return sources.read(setting, found) if found else getattr(Settings, name)


def _open(flags: Mapping[str, str | None], environ: Mapping[str, str] | None, dotenv: Path) -> _Sources:
    faults: list[str] = []
    variables: Mapping[str, str] = {}
    try:
        variables = _read_dotenv(dotenv)
    except OSError as error:
        faults.append(f"{dotenv}: cannot be read: {error.strerror}")
    except ValueError as error:
        faults.append(f"{dotenv}: {error}; allowed: lines such as WORKERS=4, in UTF-8")
    places = {"environment": os.environ if environ is None else environ, dotenv.name: variables}
    return _Sources(flags, places, faults)


def _read_dotenv(path: Path) -> dict[str, str]:
    """The variables of a file; ValueError, in words and without the secrets in it, when a line means nothing."""
    try:
        text = _decoded(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return {}  # a folder of this name is somebody's virtual environment
    # Imported only here: it costs 25 ms, and most places have no such file. `dotenv_values` would do the
    # same, but only warns of a line that it cannot read, and fills in ${...} from the environment.
    from dotenv.parser import parse_stream  # noqa: PLC0415

    bindings = list(parse_stream(io.StringIO(text)))
    if wrong := [str(_line(binding.original)) for binding in bindings if _is_wrong(binding)]:
        raise ValueError(f"line {', '.join(wrong)} cannot be read")
    return {binding.key: binding.value for binding in bindings if binding.key and binding.value}


UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""How a file in UTF-16 begins, as Windows may save it."""


def _decoded(content: bytes) -> str:
    if content.startswith(UTF_16) or b"\0" in content:
        line = content.partition(b"\0")[0].count(b"\n") + 1
        raise ValueError(f"line {line} is not UTF-8 text, but looks like UTF-16: save the file as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} is not UTF-8 text (byte {content[error.start]:#04x})") from None


def _line(original: "Original") -> int:
    """The line of what could not be read; python-dotenv counts from the blank lines before it."""
    text = original.string
    return original.line + text[: len(text) - len(text.lstrip())].count("\n")


def _is_wrong(binding: "Binding") -> bool:
    """Whether a line means nothing: no NAME=value, or a name that no variable has."""
    if binding.error or binding.key is None:
        return binding.error  # without a key it is a comment, or empty
    return binding.value is None or not (binding.key.isascii() and binding.key.isprintable())


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


_ENDPOINT = r"PORT_[0-9]+_(TCP|UDP|SCTP)"
_ADDRESS = r"[0-9A-Fa-f.:]*"
_LINKS = {
    r"SERVICE_HOST": _ADDRESS,
    r"SERVICE_PORT(_[A-Z0-9_]+)?": r"[0-9]*",
    rf"PORT|{_ENDPOINT}": r"(tcp|udp|sctp)://.*",
    rf"{_ENDPOINT}_PROTO": r"tcp|udp|sctp",
    rf"{_ENDPOINT}_PORT": r"[0-9]*",
    rf"{_ENDPOINT}_ADDR": _ADDRESS,
}
"""What Kubernetes sets in pods for a Service, without its name: for JOBPIPE_API_SERVICE_HOST this is SERVICE_HOST."""


def _without_links(name: str, text: str) -> str:
    """`text`, or nothing when it is no setting but what Kubernetes says of a Service whose name begins with jobpipe."""
    if not name.startswith(PREFIX):
        return text
    is_link = any(
        re.fullmatch(rf"JOBPIPE(_[A-Z0-9_]+)?_({names})", name) and re.fullmatch(values, text)
        for names, values in _LINKS.items()
    )
    return "" if is_link else text


def _quoted(found: _Found) -> str:
    longest = 80
    text = mask(found.text)
    shown = text if len(text) <= longest else text[:longest] + "..."
    return f"{shown!r} (from {found.origin})"
