"""The log of a job: what a handler says is made into lines that are bounded and can be stored."""

import logging
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import structlog

from jobpipe.job import LINE_BYTES, Level, may_nest_deeper

NOTICE = 100
"""Bytes of a line that are kept for saying what was cut."""

DEEPEST_FIELD = 50
"""About how many levels a field may nest; what nests deeper is kept as a text."""

RESERVED = frozenset({"event", "self", "job", "kind", "attempt", "level", "timestamp", "severity"})
"""What a line of the service's log says by itself; fields of these names have an underscore more there."""

log = structlog.get_logger("jobpipe.job")


class JobLog:
    """Writes lines into the job's log, from `async` handlers and from threads. Never waits, and fails for no store.

    The message is a text; fields are values of any kind. Those that JSON cannot hold are kept as their `repr`. A line
    holds at most 4 KiB; a longer one is cut and says so. Raises `TypeError` for a message that is no text.
    """

    __slots__ = ("_bound", "_write")

    def __init__(
        self, write: Callable[[Level, str, Mapping[str, Any]], None], bound: Mapping[str, Any] | None = None
    ) -> None:
        self._write, self._bound = write, bound or {}

    def bind(self, **fields: Any) -> "JobLog":  # noqa: ANN401 - any value
        """The same log, with fields that each of its lines has."""
        return JobLog(self._write, {**self._bound, **fields})

    def debug(self, message: str, /, **fields: Any) -> None:  # noqa: ANN401 - any value
        """Log what matters to whoever looks for a fault."""
        self._write("debug", _checked(message), {**self._bound, **fields})

    def info(self, message: str, /, **fields: Any) -> None:  # noqa: ANN401 - any value
        """Log what happens."""
        self._write("info", _checked(message), {**self._bound, **fields})

    def warning(self, message: str, /, **fields: Any) -> None:  # noqa: ANN401 - any value
        """Log what is not as it should be."""
        self._write("warning", _checked(message), {**self._bound, **fields})

    def error(self, message: str, /, **fields: Any) -> None:  # noqa: ANN401 - any value
        """Log what went wrong."""
        self._write("error", _checked(message), {**self._bound, **fields})

    def exception(self, message: str, /, **fields: Any) -> None:  # noqa: ANN401 - any value
        """Log what went wrong, with the traceback of the exception that is being handled."""
        shown = {"traceback": traceback.format_exc(limit=-10)}
        self._write("error", _checked(message), {**self._bound, **shown, **fields})


def _checked(message: object) -> str:
    if not isinstance(message, str):
        raise TypeError(
            f"a log line begins with a text, got {type(message).__name__}: pass values as fields, "
            'such as job.log.info("sent", to=address)'
        )
    return message


def tells_service() -> bool:
    """Whether lines of this level are written into the log of the service."""
    return bool(log.is_enabled_for(logging.DEBUG))


def tell_service(level: Level, text: str, fields: Mapping[str, Any], whose: Mapping[str, object]) -> None:
    """Write a line into the log of the service, too: at the level debug, so that it is quiet as a rule."""
    named = {f"{name}_" if name in RESERVED else name: value for name, value in fields.items()}
    log.debug(text, severity=level, **whose, **named)


def composed(message: str, fields: Mapping[str, Any]) -> tuple[str, bytes | None]:
    """The text of a line and its fields as a JSON object, together at most `LINE_BYTES`; what is cut is told."""
    text, encoded = clean(message), _encoded(fields) if fields else b""
    if len(text) + len(encoded) <= LINE_BYTES // 4:  # so few characters take no more bytes than that
        return text, encoded or None
    size = len(text.encode())
    if size + len(encoded) <= LINE_BYTES:
        return text, encoded or None
    return _cut(text, size, fields, encoded)


def _cut(text: str, size: int, fields: Mapping[str, Any], encoded: bytes) -> tuple[str, bytes | None]:
    """A line that is too long: fields are left out first, so that half of it is for the text."""
    said = list[str]()
    room = max(LINE_BYTES // 2, LINE_BYTES - NOTICE - size)
    if len(encoded) > room:
        encoded, left_out = _fitting(fields, room)
        said.append(f"{left_out} of {len(fields)} fields left out")
    rest = LINE_BYTES - NOTICE - len(encoded)
    if size > rest:
        text = text.encode()[:rest].decode(errors="ignore")
        said.append(f"{size - len(text.encode())} bytes cut")
    return f"{text} [{', '.join(said)}]", encoded or None


def _fitting(fields: Mapping[str, Any], room: int) -> tuple[bytes, int]:
    """The fields that fit, and how many do not."""
    kept, used = list[bytes](), 2
    for name, value in fields.items():
        one = _encoded({name: value})[1:-1]
        if used + len(one) + 1 <= room:
            kept.append(one)
            used += len(one) + 1
    return b"{" + b",".join(kept) + b"}", len(fields) - len(kept)


def _encoded(fields: Mapping[str, Any]) -> bytes:
    """Fields as JSON. Where they cannot be, each that cannot is kept as a text."""
    try:
        return _sound(_encode(fields))
    except Exception:  # noqa: BLE001 - a value may raise anything when it is looked at
        if len(fields) > 1:
            each = (_encoded({name: value})[1:-1] for name, value in fields.items())
            return b"{" + b",".join(each) + b"}"
        return _encode({clean(name): shown(value) for name, value in fields.items()})


def _sound(encoded: bytes) -> bytes:
    """JSON that can be stored and shown; raises where it cannot."""
    encoded.decode()
    if may_nest_deeper(encoded, DEEPEST_FIELD) or b"\0" in encoded:
        raise ValueError("nests too deep")
    return encoded


def shown(value: object) -> str:
    """What JSON cannot hold, as a text."""
    try:
        return clean(str.__str__(repr(value)))
    except Exception:  # noqa: BLE001 - as above
        return f"<{type(value).__name__} that cannot be shown>"


def clean(text: str) -> str:
    """Text that every store can hold: without NUL and lone surrogates."""
    text = str.__str__(text)
    return (text.replace("\0", "\ufffd") if "\0" in text else text).encode(errors="replace").decode()


_encode = msgspec.json.Encoder(enc_hook=shown).encode
