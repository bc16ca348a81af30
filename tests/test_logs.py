"""Log lines: what is written, how, and that nothing in them does harm."""

import io
import json
import logging
import re
import sys

import pytest
import structlog
from hypercorn.config import Config
from structlog.testing import capture_logs

from jobpipe import logs


@pytest.fixture(autouse=True)
def _restored():
    """Leave structlog and `logging` as they were."""
    root = logging.getLogger()
    level = root.level
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    root.setLevel(level)
    root.handlers = [each for each in root.handlers if not isinstance(each, logs._ToStructlog)]


@pytest.fixture
def lines(capsys):
    def read():
        return capsys.readouterr().err.splitlines()

    return read


def while_handling(error, call, *arguments, **keywords):
    """Call while `error` is what an `except` handles."""
    try:
        raise error
    except type(error):
        call(*arguments, **keywords)


def test_console_lines_say_time_level_event_and_what_it_is_about(lines):
    logs.configure("info", "console")

    structlog.get_logger("jobpipe").info("job failed", job="t1", kind="echo", attempt=2, why="it was late")

    (line,) = lines()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \[info     \] job failed ", line)
    assert line.endswith("job=t1 kind=echo attempt=2 why='it was late'")


def test_colours_are_for_terminals(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    logs.configure("info", "console")

    structlog.get_logger().info("hello")

    assert "\x1b[" in terminal.getvalue()


def test_json_lines_have_the_same_in_fields(lines):
    logs.configure("info", "json")

    structlog.get_logger().warning("job failed", job="t1", attempt=2)

    (line,) = lines()
    told = json.loads(line)
    assert list(told) == ["timestamp", "level", "event", "job", "attempt"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told.pop("timestamp"))
    assert told == {"level": "warning", "event": "job failed", "job": "t1", "attempt": 2}


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, {(1, 2): 3}, b"\xff", "\ud800", {"deep": {"er": {(): 0}}}]
)
def test_what_json_cannot_hold_is_written_all_the_same(lines, value):
    logs.configure("info", "json")

    structlog.get_logger().info("odd", value=value)

    (line,) = lines()
    assert json.loads(line)["event"] == "odd"


def test_a_value_that_holds_itself_is_written_all_the_same(lines):
    logs.configure("info", "json")
    loop: list[object] = []
    loop.append(loop)

    structlog.get_logger().info("odd", value=loop)

    (line,) = lines()
    assert json.loads(line)["value"] == "[[...]]"


def test_lines_below_the_level_are_not_written(lines):
    logs.configure("warning", "console")
    log = structlog.get_logger()

    log.debug("no")
    log.info("no")
    log.error("yes")

    assert ["yes" in line for line in lines()] == [True]


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_an_exception_is_written_with_its_traceback_and_its_parts(lines, log_format):
    logs.configure("info", log_format)

    group = ExceptionGroup("many", [ValueError("one of them")])
    while_handling(group, structlog.get_logger().exception, "attempt failed", job="t1")

    text = "\n".join(lines())
    assert "test_logs.py" in text
    assert "ValueError: one of them" in text
    assert log_format == "console" or text.count("\n") == 0


def test_nothing_logged_forges_a_line_or_steers_the_terminal(lines):
    logs.configure("info", "console")
    evil = "a\n2030-01-01 [info] all is well\x1b[2J\r\x9b"

    structlog.get_logger().info(evil, error=evil)
    while_handling(ValueError(evil), structlog.get_logger().exception, "failed")

    written = lines()
    assert len(written[0]) > 2 * len(evil)
    assert not any(set(line) & {"\x1b", "\r", "\x9b"} for line in written)


def test_a_kept_logger_follows_later_configurations_and_where_stderr_goes(lines, monkeypatch):
    """A module's logger outlives the pytest capture, the file, the format that it was first used with."""
    logs.configure("info", "console")
    log = structlog.get_logger("jobpipe")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    log.info("first")
    sys.stderr.close()
    monkeypatch.undo()

    logs.configure("info", "json")
    log.info("second")

    (line,) = lines()
    assert json.loads(line)["event"] == "second"


def test_a_kept_logger_can_be_captured(lines):
    logs.configure("info", "console")
    log = structlog.get_logger("jobpipe")
    log.info("first")
    lines()

    with capture_logs() as captured:
        log.info("second", job="t1")
    log.info("third")

    assert captured == [{"event": "second", "job": "t1", "log_level": "info"}]
    assert len(lines()) == 1


def test_a_stderr_that_is_gone_hurts_nobody(monkeypatch):
    logs.configure("info", "console")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    sys.stderr.close()

    structlog.get_logger().info("lost")


def test_what_libraries_log_at_warning_and_above_goes_the_same_way_once(lines):
    logs.configure("info", "json")
    logs.configure("info", "json")
    library = logging.getLogger("some.library")

    library.info("not this")
    library.warning("%s is odd", "this")
    library.log(35, "between the levels")
    while_handling(ValueError("inside"), library.exception, "broken")

    odd, between, broken = map(json.loads, lines())
    assert (odd["level"], odd["event"], odd["logger"]) == ("warning", "this is odd", "some.library")
    assert (between["level"], between["event"]) == ("warning", "between the levels")
    assert (broken["level"], broken["event"]) == ("error", "broken")
    assert "ValueError: inside" in broken["exception"]
    assert "exception" not in odd


def test_libraries_obey_the_level(lines):
    logs.configure("error", "console")

    logging.getLogger("some.library").warning("not this")

    assert lines() == []


def test_a_wrong_log_call_of_a_library_does_not_hurt_it(lines, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [])  # pytest's own would raise
        logs.configure("info", "console")

        logging.getLogger("some.library").warning("%d", "no number")

    assert any("--- Logging error ---" in line for line in lines())


async def test_hypercorn_writes_through_structlog_when_it_is_given_its_logger(lines):
    logs.configure("info", "json")
    config = Config()
    config.errorlog = logging.getLogger("hypercorn.error")

    await config.log.info("Running on ...")
    await config.log.error("it broke")

    (line,) = lines()
    assert json.loads(line)["event"] == "it broke"
