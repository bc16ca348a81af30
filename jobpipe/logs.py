"""Log lines: structlog writes them to stderr, for people or as JSON; what libraries log goes the same way."""

import contextlib
import json
import logging
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

MULTI_LINE = frozenset({"exception", "stack"})
"""Fields that may have several lines; each is indented, so that none looks like a line of the log."""

QUIET = ("asyncio", "hypercorn", "psycopg", "quart", "quart_trio", "trio")
"""Loggers of the libraries that jobpipe and Python use themselves: written from `warning` on, whatever the level."""


class Performed(Protocol):
    """The attempt that a line belongs to."""

    def named(self) -> Mapping[str, object]:
        """What such a line says of it: the job, its kind, which run it is."""


performed: ContextVar[Performed | None] = ContextVar("performed", default=None)
"""The attempt that runs here. Set around each call of a handler; its threads and child tasks inherit it."""


def configure(
    level: Literal["debug", "info", "warning", "error"], log_format: Literal["console", "json"]
) -> None:
    """From now on write lines of `level` and above to stderr. May be called again; the last call counts.

    A line below `level` costs one call of an empty function. Loggers are assembled at first use and then kept
    with their level; what renders and where it goes follows later calls, and `capture_logs`, all the same.
    """
    # Changed in place, as `structlog.testing.capture_logs` does: loggers that were kept hold this very list.
    processors = structlog.get_config()["processors"]
    processors[:] = [
        structlog.contextvars.merge_contextvars,
        _name_the_job,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _stamp,
        *(_as_json() if log_format == "json" else _for_people()),
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_Stderr,
        cache_logger_on_first_use=True,
    )
    _route_libraries(logging.getLevelNamesMapping()[level.upper()])


def writes(level: int) -> bool:
    """Whether lines of a level are written. Ask once, where a line for each job would cost too much otherwise."""
    configured = structlog.get_config()["logger_factory"] is _Stderr  # else nobody has said where to
    return configured and bool(structlog.get_logger().is_enabled_for(level))


def _name_the_job(_: WrappedLogger, __: str, event_dict: EventDict) -> EventDict:
    """Say whose attempt it is, in lines of a handler and of what it calls."""
    if (attempt := performed.get()) is not None:
        for name, value in attempt.named().items():
            event_dict.setdefault(name, value)
    return event_dict


def _stamp(_: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
    """Put time, level and event in front, where eyes and `cut` look for them."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"timestamp": now, "level": method, "event": event_dict.pop("event", ""), **event_dict}


def _as_json() -> list[Processor]:
    return [structlog.processors.JSONRenderer(serializer=_to_json)]


def _to_json(event_dict: EventDict, **options: Any) -> str:  # noqa: ANN401 - handed through to json.dumps
    """One line of JSON, whatever is in it: a log call must not end the attempt that makes it."""
    try:
        return json.dumps(event_dict, **options)
    except Exception:  # noqa: BLE001 - a value may raise anything when it is looked at
        return json.dumps({str(key): _as_text(each) for key, each in event_dict.items()})


def _as_text(value: object, form: Callable[[object], str] = repr) -> str:
    """A text as it is, anything else by its `repr`; whatever that raises."""
    if type(value) is str:
        return value
    try:
        return str.__str__(form(value))
    except Exception:  # noqa: BLE001 - see above
        return f"<{type(value).__name__} that cannot be shown>"


def _for_people() -> list[Processor]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(),
        exception_formatter=structlog.dev.plain_traceback,
        sort_keys=False,
    )
    return [_make_visible, renderer]


def _make_visible(_: WrappedLogger, __: str, event_dict: EventDict) -> EventDict:
    """Escape control characters: no payload or error text forges a line or steers a terminal."""
    return {_visible(_as_text(key)): _shown(key, value) for key, value in event_dict.items()}


def _shown(key: object, value: object) -> object:
    if key in MULTI_LINE:
        lines = _as_text(value).split("\n")
        return "\n".join("    " + _visible(line, "\t") for line in lines)
    if isinstance(value, bool | int | float | None) and type(value).__module__ == "builtins":
        return value
    return _visible(_as_text(value))


def _visible(text: str, kept: Collection[str] = "") -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in kept else repr(each)[1:-1] for each in text)


class _Stderr:
    """Writes whole lines to what `sys.stderr` is at that moment, so that kept loggers follow when it is replaced."""

    _lock = threading.Lock()  # sync handlers log from threads

    def __init__(self, *_: object) -> None:
        """Take a logger's name, which stands in no line."""

    def msg(self, line: str) -> None:
        """Write `line`, or lose it when stderr is gone: that is no reason to fail a job."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    debug = info = warning = error = critical = msg


def _route_libraries(level: int) -> None:
    root = logging.getLogger()
    root.handlers = [each for each in root.handlers if not isinstance(each, _ToStructlog)]
    root.addHandler(_ToStructlog())
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


class _ToStructlog(logging.Handler):
    """Hands the records of the standard library's `logging` on to structlog, which decides by its own level."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            log = structlog.get_logger()
            stack = {} if record.stack_info is None else {"stack": record.stack_info}
            log.log(
                _known_level(record.levelno),
                record.getMessage(),
                logger=record.name,
                exc_info=record.exc_info,
                **stack,
            )
        except Exception:  # noqa: BLE001 - as every Handler: a bad log call must not hurt the code that makes it
            self.handleError(record)


def _known_level(number: int) -> int:
    """The standard level at or below `number`, since libraries may have levels between them; the lowest is debug."""
    known = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
    return max((each for each in known if each <= number), default=logging.DEBUG)
