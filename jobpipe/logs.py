"""Log lines: structlog writes them to stderr, for people or as JSON; what libraries log goes the same way."""

import contextlib
import json
import logging
import sys
import threading
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

MULTI_LINE = frozenset({"exception", "stack"})


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
    _route_libraries()


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
    except (TypeError, ValueError, RecursionError):
        return json.dumps(
            {key: each if isinstance(each, str) else repr(each) for key, each in event_dict.items()}
        )


def _for_people() -> list[Processor]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(),
        exception_formatter=structlog.dev.plain_traceback,
        sort_keys=False,
    )
    return [_make_visible, renderer]


def _make_visible(_: WrappedLogger, __: str, event_dict: EventDict) -> EventDict:
    """Escape control characters: no payload or error text forges a line or steers a terminal."""
    for key, value in event_dict.items():
        if isinstance(value, str) and not value.isprintable():
            event_dict[key] = _visible(value, "\n\t" if key in MULTI_LINE else "")
    return event_dict


def _visible(text: str, kept: Collection[str]) -> str:
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


def _route_libraries() -> None:
    root = logging.getLogger()
    root.handlers = [each for each in root.handlers if not isinstance(each, _ToStructlog)]
    root.addHandler(_ToStructlog(logging.WARNING))
    root.setLevel(logging.WARNING)


class _ToStructlog(logging.Handler):
    """Hands the records of the standard library's `logging` on to structlog, which decides by its own level."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            log = structlog.get_logger()
            log.log(
                _known_level(record.levelno),
                record.getMessage(),
                logger=record.name,
                exc_info=record.exc_info,
            )
        except Exception:  # noqa: BLE001 - as every Handler: a bad log call must not hurt the code that makes it
            self.handleError(record)


def _known_level(number: int) -> int:
    """The standard level at or below `number`: libraries may have levels between them."""
    return max(each for each in (logging.WARNING, logging.ERROR, logging.CRITICAL) if each <= number)
